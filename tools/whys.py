"""What the choices of the paper do, each changed alone: the same small SDN-VAE of digits, trained for a few epochs with several seeds.

    python tools/whys.py                    # about half an hour on two cores; goes on where it was interrupted
    python tools/whys.py --only state gate  # some of the questions

writes results/whys.json, which nbs/experiments/whys.ipynb draws."""
import argparse, json, time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from fastai.callback.training import ShortEpochCallback
from sdn_nb.commands import about
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.layers import LAYERS, ResSDN, n_params, register_layer
from sdn_nb.saving import atomic
from sdn_nb.training import vae_learner
from sdn_nb.vae import SDNVAE, preset_config, preset_recipe

root = Path(__file__).resolve().parent.parent

class Sweep(nn.Module):
    "A literal sweep in one direction, with one thing changed"
    def __init__(self, C, direction, state='uncorrected', neighbours=3, gates=True):
        super().__init__()
        self.direction,self.state,self.neighbours,self.gates = direction,state,neighbours,gates
        n = 3 if gates else 1
        shapes = dict(weight_ih=(n*C,neighbours*C), weight_hh=(n*C,C), bias_ih=(n*C,), bias_hh=(n*C,))
        if state=='last': shapes['weight_x'] = (n*C,C)
        for name,shape in shapes.items(): setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-C**-.5, C**-.5)))

    def forward(self, x):
        d = self.direction
        if d in ('down','up'): x = x.transpose(2, 3)
        first,*rest = (x.flip(3) if d in ('left','up') else x).unbind(3)
        y = [first]
        for xj in rest:
            before = F.pad(y[-1], (1,1))
            u = torch.cat([before[...,:-2], before[...,1:-1], before[...,2:]], 1) if self.neighbours==3 else y[-1]
            h = xj if self.state=='uncorrected' else y[-1]
            a,b = self.weight_ih@u + self.bias_ih[:,None],self.weight_hh@h + self.bias_hh[:,None]
            if self.state=='last': a = a + self.weight_x@xj             # else the vector itself would not be seen
            if not self.gates: y.append(torch.tanh(a+b)); continue
            (ar,ac,an),(br,bc,bn) = a.chunk(3, 1),b.chunk(3, 1)
            c = torch.sigmoid(ac+bc)
            y.append((1-c)*torch.tanh(an + torch.sigmoid(ar+br)*bn) + c*h)
        y = torch.stack(y, 3)
        if d in ('left','up'): y = y.flip(3)
        return y.transpose(2, 3) if d in ('down','up') else y

def changed(sweep):
    "A ResSDN layer whose sweeps are others"
    def make(i, o, *, n_features, directions=(), **kw):
        layer = ResSDN(i, o, n_features=n_features, directions=directions, **kw)
        layer.sdn.correction = nn.ModuleList(sweep(n_features, d) for d in directions)
        return layer
    return make

def plain_start(model):
    "Convolutions as PyTorch starts them, without weight normalization"
    for m in model.modules():
        if parametrize.is_parametrized(m):
            parametrize.remove_parametrizations(m, 'weight')
            m.reset_parameters()

for name,kw in dict(OwnState=dict(state='last'), OneNeighbour=dict(neighbours=1), NoGates=dict(gates=False), Literal={}).items():
    if name not in LAYERS: register_layer(name, changed(partial(Sweep, **kw)))

# question -> answer -> what is changed in the configuration; `start` is done to the model, `constant` to the learning rate
QUESTIONS = dict(
    state={'uncorrected vector': dict(layer='Literal'), 'own last output': dict(layer='OwnState')},
    neighbours={'three': dict(layer='Literal'), 'one': dict(layer='OneNeighbour')},
    gates={'gated': dict(layer='Literal'), 'tanh alone': dict(layer='NoGates')},
    directions={'none': dict(sdn=False), 'one': dict(n_directions=1), 'two': {}, 'four': dict(n_directions=4)},
    residual={'gate': {}, 'sum': dict(residual='sum')},
    free_bits={'0': dict(free_bits=0.), '0.1': dict(free_bits=.1), '0.5': {}},
    start={'orthogonal, weight norm': {}, "PyTorch's": dict(start=plain_start)},
    chance={'the model': {}, 'the same, other numbers': dict(layer='Literal')},
    average={'learning rate falls': {}, 'learning rate stays': dict(constant=True)})

def train(changes, seed, epochs, toy):
    "Validation bits/dim of the averaged and of the last weights, nats of each block, parameters, seconds"
    changes = dict(changes)
    start,constant = changes.pop('start', None),changes.pop('constant', False)
    dls = get_dls('digits', bs=32, seed=seed, num_workers=0, device='cpu')
    torch.manual_seed(seed)
    model = SDNVAE(replace(preset_config('digits'), **changes))
    if start: start(model)
    recipe = preset_recipe('digits')
    learn = vae_learner(dls, model, lr=recipe.lr, ema=recipe.ema, cbs=[ShortEpochCallback(.05, short_valid=False)]*toy)
    began = time.perf_counter()
    with learn.no_bar(),learn.no_logging(): learn.fit(epochs) if constant else learn.fit_flat_cos(epochs, pct_start=.25)
    curve = [row[2] for row in learn.recorder.values]
    averaged = elbo_bpd(model, dls.valid, progress=False)
    with torch.no_grad(): kl = torch.cat([model(x).kl for x,_ in dls.valid]).mean(0).tolist()
    learn.ema.use(False)
    last = elbo_bpd(model, dls.valid, progress=False)
    return dict(seed=seed, bpd=averaged, last_weights=last, kl=kl, curve=curve, parameters=n_params(model), seconds=time.perf_counter()-began)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=QUESTIONS, default=list(QUESTIONS), metavar='QUESTION', help=f"of {', '.join(QUESTIONS)}")
    p.add_argument('--epochs', type=int, default=10, help='of each training (default 10); a file that is there keeps its own')
    p.add_argument('--seeds', type=int, default=3, help='trainings of each kind (default 3)')
    p.add_argument('--out', type=Path, default=root/'results/whys.json', help='file to write; trainings that it has are not repeated')
    p.add_argument('--toy', action='store_true', help='a twentieth of each epoch, to try the command')
    a = p.parse_args()
    torch.set_num_threads(1)
    result = json.loads(a.out.read_text()) if a.out.exists() else about('python tools/whys.py', 'cpu') | dict(epochs=a.epochs, runs={})
    def write():
        with atomic(a.out) as tmp: tmp.write_text(json.dumps(result, indent=1)+'\n')
    for question in a.only:
        for answer,changes in QUESTIONS[question].items():
            key = json.dumps({k: v if isinstance(v, (str,int,float,bool)) else v.__name__ for k,v in changes.items()}, sort_keys=True)
            done = result['runs'].setdefault(key, [])
            for seed in range(len(done), a.seeds):
                done.append(train(changes, seed, result['epochs'], a.toy))
                write()
                print(f"{question}, {answer}, seed {seed}: {done[-1]['bpd']:.3f} bits/dim, {done[-1]['seconds']:.0f} s", flush=True)
            result.setdefault('answers', {}).setdefault(question, {})[answer] = key
            write()

if __name__=='__main__': main()
