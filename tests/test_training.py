"""What a run saves and how large its steps may be."""
import csv, json, math

import pytest, torch
from fastai.basics import Callback, noop, set_seed
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.training import RunFolder, vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig

cfg = VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(0,1), h=6, z=2, features=4, mix=2)

def learner(*cbs, **kw):
    set_seed(0)
    learn = vae_learner(get_dls('digits', bs=512, device='cpu'), SDNVAE(cfg), cbs=cbs, **kw)
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

class Norms(Callback):
    "Norm of the gradient at each step, after all other callbacks"
    order = 100
    def before_fit(self): self.seen = []
    def before_step(self): self.seen.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())

def norms(clip):
    learn = learner(Norms(), clip=clip)
    learn.fit(1)
    return learn.norms.seen

def test_gradients_are_clipped_to_the_norm_asked_for():
    free,clipped = norms(math.inf),norms(2.)
    assert min(free)>5 and clipped==pytest.approx([2.]*len(free), rel=1e-3)

def test_gradients_below_the_limit_are_left_alone(): assert norms(1e9)==norms(math.inf)

def test_average_is_what_is_saved_and_judged(tmp_path):
    learn = learner(RunFolder(tmp_path), lr=1e-2, ema=.9)
    learn.fit(2)
    state,saved = torch.load(tmp_path/'checkpoint.pt', weights_only=True),SDNVAE.from_pretrained(tmp_path)
    average = {k.removeprefix('module.'): v for k,v in state['ema'].items() if k!='n_averaged'}
    for k,v in saved.state_dict().items(): assert torch.equal(v, average[k]), k
    trained = SDNVAE(cfg)
    trained.load_state_dict(state['model'])
    of_average,of_weights = (elbo_bpd(m, learn.dls.valid, progress=False) for m in (saved, trained))
    last = float(list(csv.DictReader(open(tmp_path/'history.csv')))[-1]['bpd'])
    assert abs(last-of_average) < .2*abs(of_weights-of_average)              # the two differ in the posterior's samples alone

def test_average_of_the_checkpoint_is_that_of_all_steps(tmp_path):
    "The whole path of one weight, averaged by hand"
    class Walk(Callback):
        order = 100
        def before_fit(self): self.seen = []
        def after_step(self): self.seen.append(self.model.top.detach().clone())
    learn = learner(Walk(), RunFolder(tmp_path), lr=1e-2, ema=.7)
    learn.fit(2)
    first,*rest = learn.walk.seen
    mean = first
    for n,v in enumerate(rest, 1):
        past = min(.7, (1+n)/(10+n))
        mean = past*mean + (1-past)*v
    torch.testing.assert_close(SDNVAE.from_pretrained(tmp_path).top.data, mean)

def test_config_keeps_the_sections_of_the_run(tmp_path):
    learner(RunFolder(tmp_path, data=dict(name='digits'), training=dict(lr=.1))).fit(1)
    config = json.loads((tmp_path/'config.json').read_text())
    assert config.keys()=={'model','data','training'} and config['training']==dict(lr=.1)
