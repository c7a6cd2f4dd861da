"""Train an SDN-VAE and its convolutional twin of equal size on Fashion-MNIST, the same time each, and judge both by the
test images: `python tools/fashion_mnist.py --minutes 5 --out FOLDER`"""
import argparse, json, math, os, time
from bisect import bisect_left
from dataclasses import asdict, replace
from pathlib import Path
import torch
from fastai.basics import Callback, CancelFitException, noop, set_seed
from matplotlib.figure import Figure
from safetensors.torch import save_file
from sdn_nb.bench import StepProfile
from sdn_nb.data import get_dls, show_images
from sdn_nb.evaluation import elbo_estimate, histogram_bpd, iw_bpd
from sdn_nb.layers import n_params
from sdn_nb.training import vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig
from sdn_nb.saving import atomic

CONFIG = VAEConfig((28,28), channels=1, depth=6, downsample=(2,4), h=80, features=96, n_directions=1, max_scale=14,
                   free_bits=.05)
TOY = replace(CONFIG, depth=3, downsample=(0,1), h=8, features=8)
TRAIN,IW_SAMPLES = .36,64   # share of the time in which each model trains; importance samples

class Budget(Callback):
    "Let the learning rate rise, stay and fall as time goes by, look at validation images ten times, stop when time is up"
    order = 65
    def __init__(self, seconds, lr, valid): self.seconds,self.lr,self.valid,self.curve = seconds,lr,valid,[]
    def before_fit(self): self.began = None
    def before_batch(self):
        if not self.training: return
        if self.began is None: self.began = time.monotonic()
        share = (time.monotonic()-self.began)/self.seconds
        if share>=1: raise CancelFitException
        if share>=(len(self.curve)+1)/10: self.look(self.learn.ema.average.module)
        rising,falling = (self.train_iter+1)/200,.5+.5*math.cos(math.pi*max(0, (share-.3)/.7))
        self.opt.set_hyper('lr', self.lr*min(1, rising, falling))

    def look(self, model):
        bits = elbo_estimate(model, self.valid, progress=False).bpd
        seconds = time.monotonic()-self.began
        self.curve.append(dict(seconds=seconds, steps=self.train_iter, valid_bpd=bits))
        print(f"  {seconds:6.1f} s  step {self.train_iter:6}  {bits:.4f} bits/dim on validation images", flush=True)

def few(dl, n, bs):
    "The first `n` images of a loader"
    images = type(dl.dataset)(dl.dataset.levels[:n])
    return dl.new(images, bs=bs, n=len(images))

def size(cfg):
    "Number of parameters, counted without taking memory"
    with torch.device('meta'): return n_params(SDNVAE(cfg))

def twin(cfg):
    "The convolutional model nearest in size"
    of = lambda h: replace(cfg, sdn=False, h=h)
    h = bisect_left(range(2, 1024), size(cfg), key=lambda h: size(of(h))) + 2
    return of(min(h-1, h, key=lambda h: abs(size(of(h))-size(cfg))))

def train(cfg, dls, seconds, lr, precision, cuda, valid):
    "A learner that has trained for `seconds`, the average of its weights in the model, and what to tell of it"
    set_seed(0)
    budget,profiled = Budget(seconds, lr, valid),StepProfile(30, 5)
    learn = vae_learner(dls, SDNVAE(cfg), lr=lr, precision=precision, graphs=cuda, cbs=[budget,profiled])
    learn.remove_cb(learn.progress)
    learn.logger,learn._do_epoch_validate = noop,noop
    learn.fit(10**6)
    took = time.monotonic()-budget.began
    budget.look(learn.model)                                             # the average is in it now
    steps = budget.train_iter
    return learn.model.eval(),dict(parameters=n_params(learn.model), steps=steps, images=steps*dls.train.bs, train_seconds=took,
        images_per_second=steps*dls.train.bs/took, kernels=profiled.kernels,
        curve=budget.curve, config=asdict(cfg))

def figures(e):
    "An estimate for JSON"
    return dict(bpd=e.bpd, stderr=e.stderr, n=e.n, samples=e.samples)

def pictures(models, path, device):
    "Samples of each model, side by side"
    fig = Figure((4*len(models), 4.2), dpi=110, layout='constrained')
    for ax,(name,model) in zip(fig.subplots(1, len(models), squeeze=False)[0], models.items()):
        x = model.sample(64, .9, torch.Generator(device).manual_seed(0))
        show_images(x, nrow=8, ax=ax, title=f'{name}, temperature 0.9')
    with atomic(path) as tmp: fig.savefig(tmp, format='png')

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--minutes', type=float, default=5, help='time for all; each model trains for 36 %% of it (default 5)')
    p.add_argument('--out', type=Path, default=Path('fashion_mnist'), help='folder to write into')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cuda or cpu')
    p.add_argument('--bs', type=int, default=128, help='images in a batch')
    p.add_argument('--lr', type=float, default=4e-3, help='learning rate of Adamax')
    p.add_argument('--precision', default='fp16', help='fp32, fp16 or bf16 (default fp16; fp32 on a CPU)')
    p.add_argument('--toy', action='store_true', help='a small model and few images, to try the command')
    a = p.parse_args()
    began,cuda = time.monotonic(),a.device.startswith('cuda')
    a.out.mkdir(parents=True, exist_ok=True)
    dls = get_dls('fashion_mnist', bs=a.bs, path=os.environ.get('SDN_FASHION_MNIST'), device=a.device)
    test,valid,cfg = dls.test,few(dls.valid, 64 if a.toy else 1000, 500),CONFIG
    if a.toy: test,cfg = few(dls.test, 64, 32),TOY
    precision = a.precision if cuda else 'fp32'
    configs = dict(sdn=cfg, conv=twin(cfg))
    result = dict(data=asdict(dls.info), bs=a.bs, lr=a.lr, precision=precision, graphs=cuda, device=a.device, models={})
    def write():
        with atomic(a.out/'fashion_mnist.json') as tmp: tmp.write_text(json.dumps(result, indent=1))
    models = {}
    for name,c in configs.items():
        print(f'{name}:', flush=True)
        models[name],told = train(c, dls, TRAIN*60*a.minutes, a.lr, precision, cuda, valid)
        e = elbo_estimate(models[name], test, progress=False)
        result['models'][name] = told | dict(test_elbo=figures(e))
        print(f"  {told['parameters']:,} parameters, {told['steps']} steps, test ELBO {e}", flush=True)
        write()
        if name=='sdn':
            weights = {k: v.contiguous() for k,v in models[name].state_dict().items()}
            save_file(weights, a.out/'fashion_mnist_sdn.safetensors')
        pictures(models, a.out/'fashion_mnist_samples.png', a.device)
    for i,(name,model) in enumerate(models.items()):
        left = 60*a.minutes-(time.monotonic()-began)
        bs = 8192 if cuda else 256
        e = iw_bpd(model, test, IW_SAMPLES, bs=bs, seconds=.9*left/(len(models)-i), progress=False)
        result['models'][name]['test_iw'] = figures(e)
        print(f"{name}: {e}, importance-weighted, {IW_SAMPLES} samples, {e.n} images", flush=True)
        write()
    result['histogram_bpd'] = histogram_bpd(dls.train.new(shuffle=False, drop_last=False), test, dls.info.levels)
    write()

if __name__=='__main__': main()
