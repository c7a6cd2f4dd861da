"""What `pip install --no-deps sdn_nb` beside torch must give: the scan and the layers, and torch alone behind them.
A plain program, since pytest is not there either: `python tests/torch_alone.py`, in an environment that has torch, what torch itself requires, and this package."""
import io, sys
import torch
from torch import nn
from sdn_nb.scan import scan, scan_reference
from sdn_nb.layers import ResSDN, SDNLayer

others = {'fastai','fastcore','fastprogress','numpy','scipy','sklearn','matplotlib','pandas','PIL','torchvision','safetensors','huggingface_hub','nbdev','IPython'}
torch.manual_seed(0)

x,C = torch.randn(2,5,6,7),5
weights = [torch.randn(3*C,3*C)/4, torch.randn(3*C,C)/4, torch.randn(3*C), torch.randn(3*C)]
for direction in ('right','left','down','up'):
    grads = []
    for f in (scan, scan_reference):
        args = [t.clone().requires_grad_() for t in (x,*weights)]
        y = f(*args, direction)
        y.square().sum().backward()
        grads.append([y.detach(), *(t.grad for t in args)])
    for a,b in zip(*grads): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

net = nn.Sequential(ResSDN(1, 8, n_features=8), nn.ReLU(), SDNLayer(8, 4, n_features=8, kernel_size=4, stride=2), nn.Flatten(), nn.Linear(4*4*4, 1))
opt = torch.optim.Adam(net.parameters(), lr=.01)
pictures = torch.randn(64,1,8,8)
target = pictures[:,:,0,0]*pictures[:,:,-1,-1]                          # corners that no convolution here sees together
losses = []
for _ in range(40):
    loss = (net(pictures)-target).square().mean()
    opt.zero_grad(); loss.backward(); opt.step()
    losses.append(loss.item())
assert losses[-1] < .7*losses[0], losses

file = io.BytesIO()
torch.save(net.state_dict(), file); file.seek(0)
before = net(pictures[:2])
nn.init.zeros_(net[-1].weight)
net.load_state_dict(torch.load(file, weights_only=True))
torch.testing.assert_close(net(pictures[:2]), before)

loaded = {m for m in others if sys.modules.get(m)}
if '--alone' in sys.argv: assert not loaded, f'{loaded} came along'
try: import sdn_nb.saving
except ModuleNotFoundError as e: print(f'the rest is missing, as it should be: {e}')
else: assert '--alone' not in sys.argv, 'what saving needs is there too'
print(f'scan and layers work with torch {torch.__version__} alone, python {sys.version.split()[0]}; loss {losses[0]:.2f} -> {losses[-1]:.2f}')
