"""How batch, rate and number of steps decide what is learnt from two hundred images, which no recipe was made for.
`python tools/own_images.py` writes results/own_images.json, which nbs/engine/plan.ipynb draws; about an hour."""
import argparse,json,time
from dataclasses import replace
from pathlib import Path
import torch
from sdn_nb.commands import about
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd,histogram_bpd
from sdn_nb.plan import steps_in
from sdn_nb.training import vae_learner
from sdn_nb.vae import SDNVAE,preset_config

RUNS = '8:8e-3:50,200,800','8:4e-3:50,200,800,2000','32:2e-3:50,200'
root = Path(__file__).resolve().parent.parent

def images(bs, repeat=1):
    "180 training crops of two photographs, and 64 from other parts of them"
    photos = get_dls('photos', device='cpu')
    train,valid = photos.train.dataset.levels[::23][:180],photos.valid.dataset.levels[::8]
    return get_dls((train, valid), bs=bs, device='cpu', repeat=repeat)

def trained(bs, lr, steps, seed):
    "Price of the validation images after so many steps, bits/dim, and the seconds that they took"
    repeat = max(1, -(-min(50, steps)//steps_in(images(bs).info, bs)))
    dls = images(bs, repeat)
    torch.manual_seed(seed)
    model = SDNVAE(replace(preset_config('photos'), image_size=dls.info.image_size))
    learn = vae_learner(dls, model, lr=lr, ema=.998)
    began = time.perf_counter()
    with learn.no_bar(),learn.no_logging(): learn.fit_flat_cos(-(-steps//len(dls.train)), pct_start=.25)
    return elbo_bpd(model, dls.valid, progress=False),time.perf_counter()-began

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--runs', nargs='+', default=RUNS, help='batch:rate:steps,steps,...')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', default=root/'results/own_images.json', help='JSON file to write')
    a = p.parse_args()
    dls,rows = images(8),[]
    for run in a.runs:
        bs,lr,numbers = run.split(':')
        for steps in map(int, numbers.split(',')):
            bpd,seconds = trained(int(bs), float(lr), steps, a.seed)
            rows.append(dict(bs=int(bs), lr=float(lr), steps=steps, bpd=bpd, seconds=seconds))
            print(rows[-1], flush=True)
    histogram = histogram_bpd(dls.train.new(shuffle=False, drop_last=False), dls.valid, 256)
    result = about('python tools/own_images.py', 'cpu')|dict(histogram_bpd=histogram, seed=a.seed, rows=rows)
    Path(a.out).write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
