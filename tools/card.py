"Draw nbs/images/card.png, what a link to the site shows elsewhere: how far one pixel of a map reaches in a sweep to the right"
from pathlib import Path
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ground,light = '#12344d','#f2a65a'
fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=ground)
ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(0, 630))
ax.axis('off')
side,gap,rows,columns = 44,8,9,8
for i in range(rows):
    for j in range(columns):
        reached = abs(i-rows//2) <= j # three neighbours in the column before: one row more to each side with every step
        alpha = max(.95-.11*j, .15) if reached else .07
        corner = 720+j*(side+gap), 85+i*(side+gap)
        ax.add_patch(FancyBboxPatch(corner, side, side, boxstyle='round,pad=0,rounding_size=6', color=light, alpha=alpha, lw=0))
ax.text(70, 420, 'sdn_nb', color='white', size=60, weight='bold', va='center')
ax.text(70, 300, 'Spatial dependency networks\nin PyTorch', color='white', size=25, va='center', linespacing=1.5)
ax.text(70, 185, 'gated sweeps over feature maps,\nand the autoencoders built of them', color='#c9d6df', size=17, va='center', linespacing=1.5)
fig.savefig(Path(__file__).resolve().parent.parent/'nbs/images/card.png', pil_kwargs=dict(optimize=True), metadata={'Software': None})
