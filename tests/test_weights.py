"Which weights a learner's model holds, whoever puts them in or takes them out: fastai, a run's folder, a user."
import random, warnings
from copy import deepcopy

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, pytest, torch
from fastai.basics import Callback, CancelFitException, Learner, noop, set_seed
from fastai.callback.schedule import LRFinder
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
import numpy as np
from sdn_nb.analysis import SamplePictures
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.training import EMA, Guard, RunFolder, vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig

cfg = VAEConfig((8,8), channels=1, levels=17, depth=1, downsample=(), sdn=False, h=4, z=2, mix=1)

def quiet(learn):
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def data(bs=24, n=72):
    dls = get_dls('digits', bs=bs, device='cpu')
    for dl in dls:
        dl.dataset.levels = dl.dataset.levels[:n]
        dl.n = len(dl.dataset)
    return dls

@pytest.fixture
def make(tmp_path):
    def of(*cbs, bs=24, n=72, lr=1e-2, ema=.9, **kw):
        set_seed(0)
        return quiet(vae_learner(data(bs, n), SDNVAE(cfg), cbs=cbs, lr=lr, ema=ema, path=tmp_path, **kw))
    yield of
    plt.close('all')

def flat(weights): return torch.cat([v.detach().flatten().clone() for v in (weights.values() if isinstance(weights, dict) else weights.parameters())])
def inside(learn): return flat(dict(learn.model.named_parameters()))
def average(learn): return flat(dict(learn.ema.average.module.named_parameters()))
def trained(learn): return flat({k: learn.ema.training_state()[k] for k,_ in learn.model.named_parameters()})
def steps(learn): return learn.ema.average.n_averaged.item()

class Begin(Callback):
    "Weights at the first batch that a fit trains on, and those that are judged and found after each epoch"
    order = -5
    def before_fit(self): self.began,self.judged,self.after = None,[],[]
    def before_batch(self):
        if self.training and self.began is None: self.began = inside(self.learn)
        if not self.training: self.judged.append(inside(self.learn))
    def after_epoch(self): self.after.append(inside(self.learn))

def begins(learn, n=1):
    "What a further fit begins from, and how many steps the average has after it"
    with learn.added_cbs(Begin()):
        learn.fit(n)
        return learn.begin.began,steps(learn)

def begins_from_training(learn):
    "A further fit goes on from the training weights, and with their average"
    want,n = trained(learn),steps(learn)
    first,m = begins(learn)
    return torch.equal(first, want) and m==n+3

def begins_anew(learn, want):
    first,m = begins(learn)
    return torch.equal(first, want) and m==3

def at_rest(learn): return torch.equal(inside(learn), average(learn)) and not torch.equal(inside(learn), trained(learn))

# Within a fit, and from one to the next

def test_training_weights_in_training_the_average_elsewhere(make):
    learn = make(Begin())
    learn.fit(2)
    seen = learn.begin
    assert torch.equal(seen.judged[-1], seen.after[-1]) and torch.equal(seen.after[-1], inside(learn)) and not torch.equal(seen.after[0], seen.after[1])
    assert at_rest(learn) and begins_from_training(learn)

def test_two_fits_walk_as_one(make):
    "The training weights are those of a fit that was not parted, bit for bit; a look between changes nothing"
    def walk(*parts, look=noop):
        learn = make()
        for i,n in enumerate(parts):
            if i: look(learn)
            torch.manual_seed(7); random.seed(7); learn.dls.train.rng.seed(7)
            learn.fit(n)
        return trained(learn),average(learn)
    def look(learn): learn.validate(); learn.get_preds(); learn.predict(learn.dls.valid_ds[0]); learn.show_results(); learn.summary(); learn.export(); learn.save('x')
    for a,b in zip(walk(1, 1), walk(1, 1, look=look)): assert torch.equal(a, b)

def test_whoever_looks_finds_the_average(make, tmp_path):
    learn = make()
    learn.fit(2)
    learn.export('e')
    learn.save('s', with_opt=False)
    want = average(learn)
    assert torch.equal(flat(SDNVAE.from_pretrained(tmp_path/'e')), want)
    assert torch.equal(flat({k: v for k,v in torch.load(tmp_path/'models'/'s.pth').items()}), want)
    learn.validate(); learn.get_preds(); learn.show_results(); learn.predict(learn.dls.valid_ds[0])
    assert torch.equal(inside(learn), want) and torch.equal(average(learn), want) and begins_from_training(learn)

@pytest.mark.parametrize('fit', ['fit_one_cycle','fine_tune'])
def test_schedules(make, fit):
    learn = make()
    for _ in range(2):
        getattr(learn, fit)(1)
        assert at_rest(learn) and inside(learn).isfinite().all()
    assert steps(learn)==(12 if fit=='fine_tune' else 6)
    learn.freeze(); learn.unfreeze()
    assert begins_from_training(learn)

@pytest.mark.parametrize('precision', ['fp16','bf16'])
def test_half_precision_from_now_on(make, precision):
    learn = make()
    learn.fit(1)
    getattr(learn, f'to_{precision}')()
    learn.mixed_precision.kwargs['init_scale'] = 512.
    assert begins_from_training(learn)
    learn.to_fp32()
    assert at_rest(learn) and begins_from_training(learn)

# Fits that end early

class Stop(Callback):
    "End a fit at a batch, in training or in validation"
    def __init__(self, error, at, training=True): self.error,self.at,self.in_training = error,at,training
    def before_batch(self):
        if self.error and self.training==self.in_training and self.iter==self.at: raise self.error

@pytest.mark.parametrize('in_training', [True,False])
@pytest.mark.parametrize('error', [CancelFitException, KeyboardInterrupt, RuntimeError('no memory')], ids=str)
def test_a_fit_that_ends_early(make, error, in_training):
    learn = make(Stop(error, 2, in_training))
    try: learn.fit(2)
    except (KeyboardInterrupt,RuntimeError): pass
    assert at_rest(learn) and steps(learn)==(2 if in_training else 3)
    n = steps(learn)
    learn.stop.error = None
    want = trained(learn)
    assert [torch.equal(a, b) if isinstance(b, torch.Tensor) else a==b for a,b in zip(begins(learn), (want, n+3))]==[True,True]

def test_a_fit_that_ends_before_its_first_step(make):
    learn = make(Stop(KeyboardInterrupt, 0))
    before = inside(learn)
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert torch.equal(inside(learn), before) and steps(learn)==0
    learn.stop.error = None
    assert begins_anew(learn, before)

def test_an_error_before_the_weights_are_looked_for(make):
    learn = make()
    learn.fit(1)
    with pytest.raises(TypeError): learn.fit('many')
    assert at_rest(learn) and begins_from_training(learn)

# Weights that others put in

def test_loaded_weights_are_those_that_training_begins_from(make):
    learn = make()
    learn.fit(1)
    learn.save('a')
    a = inside(learn)
    learn.fit(1)
    assert not torch.equal(inside(learn), a)
    learn.load('a')
    assert torch.equal(inside(learn), a)
    learn.validate()
    assert torch.equal(inside(learn), a) and begins_anew(learn, a)

def test_the_average_that_is_loaded_where_it_is_already_changes_nothing(make):
    learn = make()
    learn.fit(1)
    learn.save('a'); learn.load('a')
    assert begins_from_training(learn)

@pytest.mark.parametrize('how', ['load_state_dict','copy_','data','one'])
def test_weights_put_in_by_hand(make, how):
    learn,other = make(),SDNVAE(cfg)
    learn.fit(1)
    if how=='load_state_dict': learn.model.load_state_dict(other.state_dict())
    for p,q in zip(learn.model.parameters(), other.parameters()):
        if how=='copy_':
            with torch.no_grad(): p.copy_(q)
        elif how=='data': p.data = q.data.clone()
    if how=='one': learn.model.top.data[0] += 1
    want = inside(learn)
    assert begins_anew(learn, want) and at_rest(learn)

def test_weights_put_in_between_two_epochs(make):
    class Put(Callback):
        order = 100
        def after_epoch(self):
            if self.epoch==0: self.model.load_state_dict(other.state_dict())
    other = SDNVAE(cfg)
    class See(Callback):
        order = -5
        def before_batch(self):
            if self.training and self.epoch==1 and self.iter==0: self.learn.seen = inside(self.learn)
    learn = make(Put(), See())
    learn.fit(2)
    assert torch.equal(learn.seen, flat(other)) and steps(learn)==3

def test_another_model(make):
    learn,other = make(),SDNVAE(cfg)
    learn.fit(1)
    learn.model,learn.opt = other,None
    assert begins_anew(learn, flat(other)) and at_rest(learn)

def test_a_model_in_another_precision(make):
    learn = make()
    learn.fit(1)
    learn.model.double()
    learn.validate()
    assert inside(learn).dtype==torch.float64 and at_rest(learn)

# Trackers

@pytest.mark.parametrize('with_opt', [False,True])
def test_the_best_epoch_is_what_was_judged(make, with_opt):
    "Learning that gets worse: the rate is raised to what ruins the model"
    class Worse(Callback):
        def before_epoch(self): self.opt.set_hyper('lr', 1e-2 if self.epoch<2 else 3.)
    learn = make(Begin(), Worse(), clip=float('inf'))
    learn.fit(4, cbs=SaveModelCallback(monitor='bpd', comp=np.less, fname='best', with_opt=with_opt))
    prices = [v[2] for v in learn.recorder.values]
    best = min(range(4), key=prices.__getitem__)
    assert best<3 and torch.equal(inside(learn), learn.begin.after[best])
    assert elbo_bpd(learn.model, learn.dls.valid, progress=False)==pytest.approx(prices[best], abs=.05)
    assert begins_anew(learn, learn.begin.after[best])

@pytest.mark.parametrize('tracker', [SaveModelCallback,EarlyStoppingCallback,ReduceLROnPlateau])
def test_less_of_a_price_is_better(make, tracker):
    "fastai would take more of it for better, and keep the worst epoch of all"
    learn = make(Begin())
    with pytest.warns(UserWarning, match=f'{tracker.__name__}: bpd is a cost, and the lower is the better'): cb = tracker(monitor='bpd', min_delta=.25); learn.add_cb(cb)
    asked = tracker(monitor='bpd', comp=np.less, min_delta=.25)
    assert (cb.comp,cb.min_delta)==(asked.comp,asked.min_delta)==(np.less,-.25)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        for ok in (asked, tracker(monitor='valid_loss'), tracker(monitor='grad_norm'), tracker): make().add_cb(ok)

def test_the_best_epoch_by_default(make):
    learn = make(Begin())
    with pytest.warns(UserWarning): learn.fit(3, cbs=SaveModelCallback(monitor='bpd', fname='best'))
    prices = [v[2] for v in learn.recorder.values]
    assert min(prices)<max(prices)-.02 and torch.equal(inside(learn), learn.begin.after[prices.index(min(prices))])

@pytest.mark.parametrize('kw', [dict(every_epoch=True), dict(at_end=True)], ids=str)
def test_what_is_saved_without_being_best(make, kw, tmp_path):
    learn = make(Begin())
    learn.fit(2, cbs=SaveModelCallback(monitor='bpd', fname='m', with_opt=True, **kw))
    files = {p.name: flat(torch.load(p, weights_only=False)['model']) for p in (tmp_path/'models').glob('m*.pth')}
    want = {'m_0.pth': learn.begin.after[0], 'm_1.pth': learn.begin.after[1]} if 'every_epoch' in kw else {'m.pth': learn.begin.after[1]}
    assert files.keys()==want.keys() and all(torch.equal(files[k], want[k]) for k in want)
    assert at_rest(learn) and begins_from_training(learn)

def test_a_plain_learner_with_an_average(tmp_path):
    set_seed(0)
    learn = quiet(Learner(data(), SDNVAE(cfg), loss_func=lambda out,x: -out.elbo.mean(), cbs=[EMA(.9), Guard(), Begin()], path=tmp_path, lr=1e-2))
    learn.fit(2, cbs=SaveModelCallback(every_epoch=True, fname='m'))
    for i in range(2): assert torch.equal(flat(torch.load(tmp_path/'models'/f'm_{i}.pth')), learn.begin.after[i])
    assert at_rest(learn) and begins_from_training(learn)

def test_early_stopping(make):
    learn = make(Begin())
    learn.fit(5, cbs=EarlyStoppingCallback(monitor='bpd', comp=np.less, min_delta=10., patience=2))
    assert len(learn.begin.after)==3 and torch.equal(inside(learn), learn.begin.judged[-1]) and at_rest(learn) and begins_from_training(learn)

def test_a_run_that_is_stopped_early_has_its_last_epoch(make, tmp_path):
    learn = make(RunFolder(tmp_path/'run'))
    learn.fit(5, cbs=EarlyStoppingCallback(monitor='bpd', comp=np.less, min_delta=10., patience=2))
    assert len((tmp_path/'run/history.csv').read_text().splitlines())==1+3
    assert torch.equal(flat(SDNVAE.from_pretrained(tmp_path/'run').state_dict()), inside(learn))

def test_the_rate_falls_on_a_plateau(make):
    learn = make()
    learn.fit(4, cbs=ReduceLROnPlateau(monitor='bpd', comp=np.less, min_delta=10., patience=1, factor=10.))
    assert learn.recorder.lrs==pytest.approx([1e-2]*6+[1e-3]*3+[1e-4]*3)
    assert begins_from_training(learn)

# The search for a learning rate

def everything(learn):
    opt = deepcopy(learn.opt.state_dict()) if learn.opt else None
    return inside(learn),average(learn) if learn.ema.average else None,trained(learn),opt

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

def search(learn, **kw): learn.lr_find(num_it=8, show_plot=False, **kw)

@pytest.mark.parametrize('how', ['lr_find','by hand','interrupted','broken'])
def test_a_search_leaves_no_trace(make, how):
    learn = make(Stop(None, 1))
    learn.fit(1)
    before,n = everything(learn),steps(learn)
    learn.stop.error = dict(interrupted=KeyboardInterrupt, broken=RuntimeError('no memory')).get(how)
    if how=='lr_find': search(learn)
    elif how=='by hand': learn.fit(3, cbs=LRFinder(num_it=8))
    else:
        with pytest.raises((KeyboardInterrupt,RuntimeError)): search(learn)
    learn.stop.error = None
    assert same(everything(learn), before) and steps(learn)==n and begins_from_training(learn)

@pytest.mark.parametrize('stop', [None,KeyboardInterrupt])
def test_a_search_before_anything_else(make, stop):
    learn = make(Stop(stop, 1))
    before = inside(learn)
    try: search(learn)
    except KeyboardInterrupt: pass
    assert torch.equal(inside(learn), before) and learn.opt is None
    learn.stop.error = None
    assert begins_anew(learn, before)

def test_a_search_that_breaks_the_model_ends(make):
    "Steps that can't be taken are the end of a search, not of the program"
    class Break(Callback):
        def before_fit(self): self.hook = self.model.last.register_forward_hook(lambda m,i,o: o*(float('nan') if self.model.training and self.train_iter>10 else 1))
        def after_fit(self): self.hook.remove()
    learn = make(Break(), patience=3)
    before = inside(learn)
    learn.lr_find(num_it=60, show_plot=False, suggest_funcs=None)
    assert torch.equal(inside(learn), before) and len(learn.recorder.losses)<20, learn.recorder.losses

# Runs

def files(folder): return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}

def test_a_search_and_a_look_do_not_touch_the_run(make, tmp_path):
    "Nor does the run take them for epochs of its own"
    folder = tmp_path/'r'
    learn = make(RunFolder(folder), SamplePictures(folder, 1, n=4))
    search(learn)
    assert not folder.exists() or not list(folder.iterdir())
    learn.fit(2)
    kept,before = files(folder),everything(learn)
    search(learn)
    assert len(learn.validate())>=4 and len(learn.get_preds()[0].elbo)==72
    learn.show_results()
    assert files(folder)==kept and same(everything(learn), before) and hasattr(learn, 'run_folder')

def test_a_run_goes_on_after_a_search_as_if_there_had_been_none(make, tmp_path):
    def run(name, look):
        learn = make(RunFolder(tmp_path/name))
        learn.fit(1)
        if look: search(learn); learn.validate()
        learn.fit(3)
        s = torch.load(tmp_path/name/'checkpoint.pt', weights_only=True)
        return s['model'],s['ema'],[r[:-1] for r in s['rows']]
    assert same(run('a', False), run('b', True))

def test_a_checkpoint_holds_both(make, tmp_path):
    learn = make(RunFolder(tmp_path/'r'))
    learn.fit(2)
    s = torch.load(tmp_path/'r'/'checkpoint.pt', weights_only=True)
    names = [k for k,_ in learn.model.named_parameters()]
    assert torch.equal(flat({k: s['model'][k] for k in names}), trained(learn)) and torch.equal(flat({k: s['ema']['module.'+k] for k in names}), average(learn))
    again = make(RunFolder(tmp_path/'r'), Begin())
    again.fit(3)
    assert torch.equal(again.begin.began, trained(learn)) and steps(again)==9

def test_a_run_whose_best_epoch_is_kept_goes_on_from_its_last(make, tmp_path):
    learn = make(RunFolder(tmp_path/'r'))
    learn.fit(2, cbs=SaveModelCallback(monitor='bpd', comp=np.less, fname='best'))
    s = torch.load(tmp_path/'r'/'checkpoint.pt', weights_only=True)
    again = make(RunFolder(tmp_path/'r'), Begin())
    again.fit(3)
    assert torch.equal(again.begin.began, flat({k: s['model'][k] for k,_ in learn.model.named_parameters()}))

# Arguments

@pytest.mark.parametrize('kw', [dict(ema=float('nan')), dict(ema=2.), dict(ema=-.1), dict(ema='x'), dict(ema=True), dict(clip=0), dict(clip=-1), dict(clip=float('nan')), dict(clip=None),
    dict(patience=float('nan')), dict(patience=0), dict(patience=2.5), dict(patience=True), dict(lr=-1), dict(lr=0), dict(lr=float('nan')), dict(lr=float('inf')), dict(lr='fast'), dict(lr=None),
    dict(warmup='x'), dict(warmup=float('nan')), dict(warmup=-1), dict(skip_above=float('nan')), dict(skip_above=-1), dict(accumulate=1.5), dict(accumulate=True), dict(precision=16), dict(precision=None), dict(precision=[])], ids=str)
def test_a_learner_refuses(kw):
    name, = kw
    with pytest.raises(ValueError, match=f'^vae_learner: {name} must be .*, got '): vae_learner(None, None, **kw)

@pytest.mark.parametrize('make_it,words', [(lambda: EMA(2.), 'EMA: `decay` must be a number from 0 to 1'), (lambda: EMA(float('nan')), 'EMA: `decay`'), (lambda: Guard(0), 'Guard: `clip` must be a positive'),
    (lambda: Guard(patience=0), 'Guard: `patience`'), (lambda: Guard(skip_above=float('nan')), 'Guard: `skip_above`'), (lambda: SamplePictures('x', every=0), 'SamplePictures: `every`'), (lambda: SamplePictures('x', n=2.5), 'SamplePictures: `n`')])
def test_callbacks_refuse(make_it, words):
    with pytest.raises(ValueError, match=words): make_it()

def test_numbers_of_numpy_will_do(make):
    learn = make(ema=np.float32(.9), clip=np.float64(5), lr=np.float64(1e-2), patience=np.int64(3), accumulate=np.int64(1))
    learn.fit(1)
    assert at_rest(learn)
