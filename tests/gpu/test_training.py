"Models learn on the GPU in every precision, go on as if nothing had happened, and are the same models elsewhere"
import copy, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
import sdn_nb.distributions, sdn_nb.ladder
from fastai.basics import Callback, set_seed
from fastai.data.external import fastai_path
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_estimate, iw_bpd
from sdn_nb.analysis import save_samples
from sdn_nb.training import RunFolder, vae_learner
from sdn_nb.vae import RECIPES
from sdn_nb.vae import PRESETS, SDNVAE, bits_per_dim
from test_training import Cut, Some, final, first, quiet, same as same_state
from .common import cuda, device, either

DATA = dict(digits='digits', fashion_mnist='fashion_mnist', home32='photos')
SMALL = dict(digits=dict(depth=2, downsample=(0,1), h=6, z=2, features=4, mix=2),
             fashion_mnist=dict(depth=2, downsample=(0,), h=8, features=8),
             home32=dict(depth=2, downsample=(0,), h=8, context=8, features=8, features_step=0, max_scale=16))
def config(name): return replace(PRESETS[name], **either({}, SMALL[name]))

def folder(name):
    "Where the files of a set are; the test is skipped where they are missing, and nothing is downloaded"
    if name!='fashion_mnist': return None
    given = os.environ.get('SDN_FASHION_MNIST')
    places = [given] if given else ['/usr/share/datasets/fashion-mnist', fastai_path('data')/'FashionMNIST'/'raw']
    for p in map(Path, places):
        if all(list(p.glob(f'{part}-images-idx3-ubyte*')) for part in ('train','t10k')): return p
    pytest.skip(f"Fashion-MNIST is not in {' or '.join(map(str, places))}; SDN_FASHION_MNIST may name its folder")

def learner(name, *cbs, n=None, bs=None, scale=None, valid=64, **kw):
    "On the first `n` training images, with the recipe of a preset; `scale`: the loss scale to begin with"
    path = folder(DATA[name])
    set_seed(0)
    dls = get_dls(DATA[name], bs=bs or RECIPES[name].bs, path=path, device=device)
    for dl,most in zip(dls, (n, valid)): first(dl, most)
    return quiet(vae_learner(dls, SDNVAE(config(name)), cbs=cbs, **dict(lr=RECIPES[name].lr)|kw), scale)

class Watch(Callback):
    "The loss of each training batch, and the loss scale after it"
    order = 100
    def before_fit(self): self.loss_of,self.scale_of = [],[]
    def after_loss(self):
        if self.training: self.loss_of.append(self.loss.item())
    def after_batch(self):
        if self.training and hasattr(self.learn, 'scaler'): self.scale_of.append(self.learn.scaler.get_scale())

PRECISIONS = 'fp32','fp16','bf16'

@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', DATA)
def test_learns(name, precision):
    bs,steps = either(RECIPES[name].bs, 8),either(30, 12)
    lr,scale = either(RECIPES[name].lr, 3e-2),2**10 if precision=='fp16' else None
    learn = learner(name, Watch(), n=bs*steps, bs=bs, lr=lr, precision=precision, scale=scale)
    learn.fit(1)
    losses,k = learn.watch.loss_of,steps//4
    assert next(learn.model.parameters()).device.type==device and len(losses)==steps
    assert torch.tensor(losses).isfinite().all(), losses
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert sum(losses[-k:]) < either(.95, 1)*sum(losses[:k]), losses
    assert learn.guard.skipped==0 and all(map(torch.isfinite, map(torch.tensor, learn.recorder.values[-1])))

def test_recovers_from_an_overflow():
    "A loss scale far too large is halved until steps can be taken; those before are not faults"
    steps = 30
    learn = learner('digits', Watch(), n=16*steps, bs=16, precision='fp16', scale=2.**30)
    learn.fit(1)
    assert 0 < learn.ema.average.n_averaged < steps and learn.guard.skipped==0
    assert 1 < learn.watch.scale_of[-1] < 2.**30 and torch.tensor(learn.watch.loss_of).isfinite().all()

# Going on

def far(a, b):
    "How far one state of a model is from another"
    a,b = (torch.cat([v.flatten().double() for v in s.values()]) for s in (a, b))
    return f'up to {(a-b).abs().max().item():.2e} in a weight, {((a-b).norm()/b.norm()).item():.2e} of the norm of all'

HOW = {'fp32': {}, 'bf16': dict(precision='bf16', warmup=.5),
       'fp16, two batches a step': dict(precision='fp16', accumulate=2, scale=2.**17)}

def cut_and_resume(tmp_path, **kw):
    "Compare a run with one that has a checkpoint in the middle of an epoch, and loses the batches after it"
    def fit(folder, *cbs):
        learn = learner('digits', Some(folder, (1,1)), *cbs, bs=32, n=160, **kw)
        learn.fit_flat_cos(3, pct_start=.1)
        return final(folder, learn)
    whole = fit(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'cut', Cut(1, 4))
    resumed = fit(tmp_path/'cut')
    for part in 'model','ema':
        a,b = resumed[part],whole[part]
        assert all(torch.equal(v, b[k]) for k,v in a.items()), f'{part} differs by {far(a, b)}'
    same_state(resumed, whole)

@pytest.mark.parametrize('how', HOW)
def test_resumed_run_is_the_same_run(tmp_path, deterministic, how): cut_and_resume(tmp_path, **HOW[how])

def test_two_runs_are_the_same_run(deterministic):
    "The seed decides everything"
    a,b = (learner('digits', bs=32, n=160) for _ in 'ab')
    set_seed(1); a.fit(1)
    set_seed(1); b.fit(1)
    a,b = (l.model.state_dict() for l in (a, b))
    assert all(torch.equal(v, b[k]) for k,v in a.items()), far(a, b)

# The same model on another device

@pytest.fixture
def steady(monkeypatch):
    "Latent variables that are not random, and exact convolutions"
    draw = lambda dist, generator=None: dist.loc + .3*dist.scale
    for module in (sdn_nb.ladder, sdn_nb.distributions): monkeypatch.setattr(module, 'draw', draw)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)

def images(name, n=32, on=device):
    dls = get_dls(DATA[name], bs=16, path=folder(DATA[name]), device=on)
    first(dls.valid, n)
    return dls.valid

@pytest.mark.parametrize('name', DATA)
def test_prices_agree_with_a_processor(steady, name):
    "Trained models (of home32 a fresh one, with a flow) give each image and block the same bits/dim on either device"
    model = SDNVAE(config(name)).eval() if name=='home32' else SDNVAE.from_pretrained(name)
    x,_ = images(name, either(32, 8), 'cpu').one_batch()
    prices = []
    for where in ('cpu',device):
        with torch.no_grad(): out = copy.deepcopy(model).to(where)(x.to(where))
        assert out.elbo.device.type==where
        prices.append([bits_per_dim(v, x).cpu() for v in (out.log_px, out.kl, out.elbo)])
    for want,got in zip(*prices): torch.testing.assert_close(got, want, rtol=0, atol=1e-3)

def test_evaluation_agrees_with_a_processor(steady):
    "Estimates over a loader: the bound, and the importance-weighted one"
    model = SDNVAE.from_pretrained('digits')
    for estimate in (elbo_estimate, lambda m, dl, progress: iw_bpd(m, dl, samples=4, progress=progress)):
        on = lambda d: estimate(copy.deepcopy(model).to(d), images('digits', on=d), progress=False)
        want,got = on('cpu'),on(device)
        assert got.n==32 and abs(got.bpd-want.bpd)<1e-3 and (got.bits-want.bits).abs().max()<1e-2

# Sampling

def test_samples_follow_the_generator():
    model = SDNVAE.from_pretrained('digits', device)
    def sample(seed, **kw): return model.sample(4, generator=torch.Generator(device).manual_seed(seed), **kw)
    for draw in (False, True):
        a,b,other = (sample(seed, draw=draw) for seed in (1,1,2))
        assert a.device.type==device and a.shape==(4,1,8,8) and a.isfinite().all() and a.abs().max()<=1
        assert torch.equal(a, b) and not torch.equal(a, other)
    assert torch.equal(sample(1, temperature=0), sample(2, temperature=0))

def test_pictures(tmp_path):
    save_samples(SDNVAE.from_pretrained('digits', device), tmp_path/'samples.png', 4)
    assert (tmp_path/'samples.png').read_bytes().startswith(b'\x89PNG')

LOAD = """
import sys, torch
from sdn_nb.vae import SDNVAE
assert not torch.cuda.is_available()
model = SDNVAE.from_pretrained(sys.argv[1])
out = model(torch.zeros(2, 1, *model.config.image_size))
assert out.elbo.isfinite().all() and out.elbo.device.type=='cpu'
state = torch.load(sys.argv[1]+'/checkpoint.pt', map_location='cpu', weights_only=True)
print(state['epoch'])
"""

def test_a_run_can_be_read_without_a_gpu(tmp_path):
    learner('digits', RunFolder(tmp_path), bs=32, n=64, precision='fp16').fit(1)
    env = {k:v for k,v in os.environ.items() if k!='TRITON_INTERPRET'}
    env |= dict(CUDA_VISIBLE_DEVICES='', PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run([sys.executable, '-c', LOAD, tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode==0 and done.stdout.split()==['1'], done.stderr
