"""Sweeps against convolutions at equal cost: SDN-VAE and four models without sweeps, trained on Fashion-MNIST for the same time and the same steps.

    python tools/arms.py 14_cpu     # images halved to 14×14, small models: an hour and a half of one core
    python tools/arms.py 14_cuda    # the same on a GPU, longer: four minutes
    python tools/arms.py 28_cuda    # whole images, larger models: four minutes

writes results/arms_14_cpu.json (or what was asked for) and samples beside it, goes on where it was interrupted, and does not repeat what is there. The
protocol, which was written before the first run, stands in nbs/experiments/arms.ipynb, and that notebook draws the results."""
import argparse, json, multiprocessing, os, subprocess, sys, time, traceback
from bisect import bisect_left
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from threading import BrokenBarrierError

import numpy as np
import torch
from fastai.basics import Callback, CancelFitException, noop
from torch import nn
from sdn_nb.commands import about
from sdn_nb.data import get_dls, to_levels
from sdn_nb.evaluation import at_rest, elbo_estimate, histogram_bpd, iw_bpd
from sdn_nb.layers import LAYERS, NonLocal, ResSDN, convolution, n_params, register_layer
from sdn_nb.saving import atomic
from sdn_nb.training import block_rates, vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig

root = Path(__file__).resolve().parent.parent

# The models

def no_sweeps(i, o, *, n_features, directions=(), **kw):
    "A ResSDN layer without its sweeps: the gated residual convolution"
    return ResSDN(i, o, n_features=n_features, directions=(), **kw)

def attends(i, o, *, n_features, directions=(), **kw):
    "A convolution, then self-attention over the whole map"
    return nn.Sequential(convolution(i, o, **kw), NonLocal(o, n_features))

for name,layer in dict(GatedConvolution=no_sweeps, Attention=attends).items():
    if name not in LAYERS: register_layer(name, layer)

@cache
def size(cfg):
    "Number of parameters, counted without taking memory"
    with torch.device('meta'): return n_params(SDNVAE(cfg))

def widened(cfg, like):
    "`cfg` with the width `h` at which it is nearest in size to the configuration `like`"
    target,of = size(like),lambda h: replace(cfg, h=h)
    h = 2+bisect_left(range(2, 2**10), target, key=lambda h: size(of(h)))
    return of(min(h-1, h, key=lambda h: abs(size(of(h))-target)))

def arms(cfg):
    "The configurations that are compared, by name"
    conv,gated,attention = replace(cfg, sdn=False),replace(cfg, layer='GatedConvolution'),replace(cfg, layer='Attention')
    return {'SDN': cfg, 'convolution, equal width': conv, 'convolution': widened(conv, cfg), 'gated block': widened(gated, cfg),
            'non-local': widened(attention, cfg)}

@dataclass(frozen=True)
class Scale:
    "What is trained, and for how long"
    config:VAEConfig
    data:str
    bs:int
    seconds:float         # of training: of one core's work on a CPU, of the clock on a GPU, where all trainings run at once
    steps:int             # at which equal steps are compared
    iw:tuple              # importance samples, test images
    changes:dict          # ablations: what is changed in the configuration
    arms:tuple=('SDN','convolution, equal width','convolution','gated block','non-local')

SMALL = VAEConfig((14,14), channels=1, depth=3, downsample=(1,), h=24, features=24, n_directions=1, max_scale=14, free_bits=.05)
LARGE = VAEConfig((28,28), channels=1, depth=5, downsample=(1,3), h=48, features=64, n_directions=1, max_scale=14, free_bits=.05)
PHOTOS = VAEConfig((32,32), channels=3, depth=3, downsample=(0,2), h=24, features=24, n_directions=1, max_scale=16, free_bits=.05)
ABLATIONS = {
    'two directions': dict(n_directions=2), 'four directions': dict(n_directions=4), 'half the features': dict(features=12),
    'twice the features': dict(features=48), 'sweeps at 14×14 alone': dict(scales=(14,)), 'sweeps at 7×7 alone': dict(scales=(7,)),
    'sum': dict(residual='sum'), 'single logistic': dict(likelihood='logistic'), 'no free bits': dict(free_bits=0.),
    'IAF posterior': dict(context=12)}
SCALES = {
    '14_cpu': Scale(SMALL, 'halved', 32, 240, 1000, (8,1000), ABLATIONS),
    'photos_cpu': Scale(PHOTOS, 'photos', 32, 240, 600, (8,512), {}, ('SDN','convolution','gated block')),
    '14_cuda': Scale(SMALL, 'halved', 128, 150, 1000, (64,2000), ABLATIONS),
    '28_cuda': Scale(LARGE, 'fashion_mnist', 128, 180, 1000, (64,1000), {}, ('SDN','convolution','gated block'))}
RATES,RATE_SECONDS = (2e-3,4e-3,8e-3),45
WARMUP,LOOKS,N_VALID = 100,10,1000

# The data

def halved(dl):
    "Images of 8 bits, (N, 1, 2h, 2w), of a loader as their 2×2 means, rounded"
    k = dl.dataset.levels.numpy().astype(np.uint16)
    return ((k[...,::2,::2]+k[...,1::2,::2]+k[...,::2,1::2]+k[...,1::2,1::2]+2)//4).astype(np.uint8)

def loaders(data, bs, seed, device):
    "Batches of a set; always the same split"
    name,kw = 'fashion_mnist' if data=='halved' else data,dict(bs=bs, seed=seed, device=device, num_workers=0)
    dls = get_dls(name, path=os.environ.get('SDN_FASHION_MNIST') if 'fashion' in name else None, **kw)
    if data!='halved': return dls
    return get_dls({k: halved(dl) for k,dl in dict(train=dls.train, valid=dls.valid, test=dls.test).items()}, **kw)

def few(dl, n, bs):
    "The first `n` images of a loader"
    images = type(dl.dataset)(dl.dataset.levels[:n])
    return dl.new(images, bs=bs, n=len(images), shuffle=False, drop_last=False)

# A training

class Budget(Callback):
    """Train for `seconds` and for `steps`, whichever is later, and keep the averaged weights of ten moments, of the step and of the end: `kept`.
    The learning rate rises, then stays. `together()` is called before the clock starts"""
    order = 65
    def __init__(self, seconds, steps, lr, together=noop): self.seconds,self.steps,self.lr,self.together = seconds,steps,lr,together
    def now(self): return time.monotonic() if self.x.is_cuda else time.process_time()
    def before_fit(self): self.began,self.kept = None,[]
    def before_batch(self):
        if self.began is None:
            self.together()
            self.began = self.now()
        spent = self.now()-self.began
        share,places = spent/self.seconds,[place for *_,place,_ in self.kept]
        looks = sum(isinstance(place, int) for place in places)
        if share>=(looks+1)/LOOKS and looks<LOOKS: self.keep(spent, looks)
        if self.steps and self.train_iter==self.steps: self.keep(spent, 'steps')
        if share>=1 and 'time' not in places: self.keep(spent, 'time')
        if share>=1 and self.train_iter>=self.steps: raise CancelFitException
        self.opt.set_hyper('lr', self.lr*min((self.train_iter+1)/WARMUP, 1))

    def keep(self, spent, place): self.kept.append((spent, self.train_iter, place, [w.clone() for w in self.learn.ema.average.module.parameters()]))

def figures(e):
    "An estimate for JSON"
    return dict(bpd=e.bpd, stderr=e.stderr, n=e.n, samples=e.samples)

def by_block(model, dl):
    "Bits/dim of each block's divergence, top first"
    with at_rest(model, 0): return torch.stack([block_rates(model(x), x)*len(x) for x,_ in dl]).sum(0).div(len(dl.dataset)).tolist()

barrier = None
def begin(given):
    "Remember what lets the trainings of a GPU begin at once"
    global barrier
    barrier = given

def wait():
    "Wait until all trainings of a GPU can begin; where one can't, the others begin after a while"
    if barrier:
        with suppress(BrokenBarrierError): barrier.wait()

def train(job):
    "Train one model as `job` says; what to tell of it, and the model's samples"
    cuda,toy,scale,cfg = job['device'].startswith('cuda'),job['toy'],SCALES[job['scale']],VAEConfig(**job['config'])
    torch.set_num_threads(1)
    dls = loaders(scale.data, scale.bs, job['seed'], job['device'])
    valid = dls.valid if job['part']=='ablations' else few(dls.valid, N_VALID, 500)
    test = few(dls.test or dls.valid, 10**6, 500)                        # photographs have no test images
    if toy: valid,test = few(valid, 64, 64),few(test, 64, 64)
    torch.manual_seed(job['seed'])
    model = SDNVAE(cfg)
    budget = Budget(job['seconds'], job['steps'], job['lr'], together=wait)
    learn = vae_learner(dls, model, lr=job['lr'], precision='fp16' if cuda else 'fp32', graphs=cuda, cbs=[budget])
    learn._do_epoch_validate = noop
    if cuda: torch.cuda.reset_peak_memory_stats()
    with learn.no_bar(),learn.no_logging(): learn.fit(10**6)
    told = dict(seed=job['seed'], lr=job['lr'], parameters=n_params(model), curve=[])
    if cuda: told |= dict(peak_bytes=torch.cuda.max_memory_allocated(), at_once=barrier.parties if barrier else 1)
    for seconds,steps,place,weights in budget.kept:
        with torch.no_grad(): torch._foreach_copy_([*model.parameters()], weights)
        here = dict(seconds=seconds, steps=steps)
        if isinstance(place, int): told['curve'].append(here | dict(valid_bpd=elbo_estimate(model, few(valid, N_VALID, 500), progress=False).bpd))
        elif job['part']=='arms': told[place] = here | dict(test=figures(elbo_estimate(model, test, progress=False)))
        else: told[place] = here | dict(valid=figures(elbo_estimate(model, valid, progress=False)))
        if place=='time': told['kl'],last = by_block(model, valid),weights
    with torch.no_grad(): torch._foreach_copy_([*model.parameters()], last)
    if job['part']=='arms': told['iw'] = figures(iw_bpd(model, few(test, scale.iw[1], 500), scale.iw[0], bs=4096 if cuda else 256, progress=False))
    pictures = model.eval().sample(36, generator=torch.Generator(job['device']).manual_seed(0)).cpu()
    return told,to_levels(pictures, cfg.levels).to(torch.uint8).numpy()

# What is to be done

def rate_of(result, name):
    "The learning rate that was best for an arm on validation images, 0.004 where none was tried"
    tried = result['rates'].get(name) or {'0.004': dict(time=dict(valid=dict(bpd=0)))}
    return float(min(tried, key=lambda lr: tried[lr]['time']['valid']['bpd']))

def plan(scale, result, rates, device, seeds, toy, only):
    "Jobs that are not done, [(where the result goes, job)]; the rates come first, for the others need them, where they are tried"
    s,seconds = SCALES[scale],(lambda t: t/100) if toy else float
    compared = {name: cfg for name,cfg in arms(s.config).items() if name in s.arms}
    def job(part, cfg, **kw): return dict(part=part, scale=scale, device=device, toy=toy, config=asdict(cfg), steps=0, seconds=seconds(s.seconds)) | kw
    if 'rates' in only:
        todo = [(('rates', name, f'{lr:g}'), job('rates', cfg, seed=100, lr=lr, seconds=seconds(RATE_SECONDS))) for name,cfg in compared.items() for lr in RATES]
        if todo := [(where, j) for where,j in todo if where[2] not in result['rates'].get(where[1], {})]: return todo
    todo = []
    if 'arms' in only:
        todo += [(('arms', name, seed), job('arms', cfg, seed=seed, lr=rate_of(rates, name), steps=3 if toy else s.steps))
                 for seed in range(seeds) for name,cfg in compared.items()]
    if 'ablations' in only and s.changes:
        todo += [(('ablations', name, seed), job('ablations', replace(s.config, **c), seed=seed, lr=rate_of(rates, 'SDN')))
                 for seed in range(min(seeds, 2)) for name,c in {'as it is': {}, **s.changes}.items()]
    return [(where, j) for where,j in todo if not any(r['seed']==where[2] for r in result[where[0]].get(where[1], []))]

def done(todo, workers, cuda):
    """Do jobs in so many processes, on a GPU all at once from the same moment on; yields (where the result goes, what `train` gives). The command ends
    where one has failed, after the others"""
    failed = False
    spawn = multiprocessing.get_context('spawn')
    for batch in ([todo[i:i+workers] for i in range(0, len(todo), workers)] if cuda else [todo]):
        together = spawn.Barrier(len(batch), timeout=100) if cuda and len(batch)>1 else None
        with ProcessPoolExecutor(min(workers, len(batch)), spawn, begin, (together,)) as pool:
            running = {pool.submit(train, j): where for where,j in batch}
            for ended in as_completed(running):
                if ended.exception(): failed = True; traceback.print_exception(ended.exception()); continue
                yield running[ended],*ended.result()
    if failed: sys.exit('a training failed, see above; the others are kept')

def commit():
    "Of the code that runs; none outside a repository"
    with suppress(OSError): return subprocess.run(['git', '-C', root, 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip() or None

def main():
    parts = 'rates','arms','ablations'
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('scale', choices=SCALES, help='what is trained: images of 14×14 or 28×28 pixels or photographs, on a CPU or a GPU')
    p.add_argument('--only', nargs='+', choices=parts, default=None, metavar='PART', help='rates: the learning rate of each arm (on a CPU; a GPU takes what '
                   'was found there); arms: the comparison; ablations: SDN-VAE with one thing changed (default: rates and arms)')
    p.add_argument('--seeds', type=int, default=3, help='trainings of each arm (default 3; of ablations at most 2)')
    p.add_argument('--workers', type=int, default=0, help='trainings at once (default: one for each core, 15 on a GPU)')
    p.add_argument('--out', type=Path, default=None, help='file to write; trainings that it has are not repeated (default results/arms_SCALE.json)')
    p.add_argument('--toy', action='store_true', help='a hundredth of the time and few images, to try the command')
    a = p.parse_args()
    torch.set_num_threads(1)                                             # as the trainings do
    out,began,cuda = a.out or root/f'results/arms_{a.scale}.json',time.monotonic(),a.scale.endswith('cuda') and not (a.toy and not torch.cuda.is_available())
    device,pictures_file = 'cuda' if cuda else 'cpu',out.with_suffix('.npz')
    only = a.only or (['arms'] if a.scale.endswith('cuda') else ['rates','arms'])
    workers = a.workers or (15 if cuda else os.cpu_count())
    result = json.loads(out.read_text()) if out.exists() else dict(rates={}, arms={}, ablations={})
    result |= about(f'python tools/arms.py {a.scale}', device) | dict(commit=commit())
    pictures = dict(np.load(pictures_file)) if pictures_file.exists() else {}
    found = root/'results/arms_14_cpu.json'
    rates = json.loads(found.read_text()) if cuda and found.exists() else result
    def write():
        with atomic(out) as tmp: tmp.write_text(json.dumps(result, indent=1)+'\n')
        with atomic(pictures_file) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, **pictures)
    if 'histogram_bpd' not in result:
        dls = loaders(SCALES[a.scale].data, 500, 0, 'cpu')
        result['histogram_bpd'] = histogram_bpd(dls.train.new(shuffle=False, drop_last=False), dls.test or dls.valid, dls.info.levels)
        result['data'] = asdict(dls.info)
    while todo := plan(a.scale, result, rates, device, a.seeds, a.toy, only):
        for (part,name,key),told,samples in done(todo, workers, cuda):
            told['commit'] = result['commit']
            if part=='rates': result[part].setdefault(name, {})[key] = told
            else: result[part][name] = sorted([*result[part].get(name, []), told], key=lambda r: r['seed'])
            if part=='arms' and key==0: pictures[name] = samples
            write()
            end = told['time']
            print(f"{(time.monotonic()-began)/60:6.1f} min  {part}, {name}, {key}: {told['parameters']:,} parameters, {end['steps']} steps in {end['seconds']:.0f} s, "
                  f"{end.get('test', end.get('valid'))['bpd']:.4f} bits/dim", flush=True)

if __name__=='__main__': main()
