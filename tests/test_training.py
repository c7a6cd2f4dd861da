"""What a run saves, how large its steps may be, which are skipped, and how it goes on."""
import csv, io, json, math, os, platform, sys
from dataclasses import replace

import psutil, pytest, torch
import sdn_nb.ladder
from fastai.basics import Callback, CancelBatchException, CancelFitException, Learner, noop, set_seed
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.analysis import SamplePictures, save_samples
from sdn_nb.training import EMA, Guard, RunFolder, tensorboard_logger, vae_learner, wandb_logger
from sdn_nb.vae import SDNVAE, VAEConfig

cfg = VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(0,1), h=6, z=2, features=4, mix=2)

def first(dl, n):
    "Leave a loader its first `n` images; all if None"
    dl.dataset.levels = dl.dataset.levels[:n]
    dl.n = len(dl.dataset)

def quiet(learn, scale=None):
    "A learner without progress bar and table; with a loss scale to begin with"
    if scale: learn.mixed_precision.kwargs['init_scale'] = float(scale)
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def learner(*cbs, bs=512, flip=None, n=None, scale=None, **kw):
    "On all digits, or the first `n`; with a loss scale to begin with"
    set_seed(0)
    dls = get_dls('digits', bs=bs, flip=flip, device='cpu')
    for dl in dls: first(dl, n)
    return quiet(vae_learner(dls, SDNVAE(cfg), cbs=cbs, **kw), scale)

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

# Half precision, accumulation, warm-up

class Gradients(Callback):
    "Gradients at each step before they are clipped, the loss scale divided out"
    order = 10.5
    def before_fit(self): self.seen = []
    def before_step(self): self.seen.append({k: p.grad.clone() for k,p in self.model.named_parameters()})

def gradients(monkeypatch, **kw):
    monkeypatch.setattr(sdn_nb.ladder, 'draw', lambda dist, generator=None: dist.loc + .3*dist.scale)
    learn = learner(Gradients(), **kw)
    learn.fit(1)
    return learn,learn.gradients.seen

def test_accumulated_gradients_are_those_of_the_joined_batch(monkeypatch):
    model_free = VAEConfig(**{**vars(cfg), 'free_bits':0.})
    monkeypatch.setattr(sys.modules[__name__], 'cfg', model_free)
    (_,joined),(learn,parts) = gradients(monkeypatch, bs=256),gradients(monkeypatch, bs=64, accumulate=4)
    assert len(joined)==len(parts)==5 and learn.ema.average.n_averaged==5
    for k in 0,4:
        for name,g in joined[k].items(): torch.testing.assert_close(parts[k][name], g, rtol=2e-3, atol=2e-3*g.abs().max().item())

@pytest.mark.parametrize('precision', ['bf16','fp16'])
def test_half_precision_gives_nearly_the_same_gradients(monkeypatch, precision):
    "fp16's are multiplied by 512 on the way: they must have been divided by it before the guard and the clipping see them"
    (_,exact),(learn,half) = gradients(monkeypatch, bs=32, n=64),gradients(monkeypatch, bs=32, n=64, precision=precision, scale=512 if precision=='fp16' else None)
    flat = [torch.cat([g.flatten() for g in gs[0].values()]) for gs in (exact,half)]
    assert (flat[0]-flat[1]).norm() < .05*flat[0].norm() and flat[0].ne(flat[1]).any()
    assert learn.guard.mean==pytest.approx(torch.stack([torch.cat([g.flatten() for g in gs.values()]).norm() for gs in half]).mean().item(), rel=1e-3)

def test_clipped_after_the_scale_is_divided_out():
    learn = learner(Norms(), bs=32, n=64, clip=2., precision='fp16', scale=512)
    learn.fit(1)
    assert learn.norms.seen==pytest.approx([2.]*2, rel=1e-3)

class End(Callback):
    "Raise at the third batch, before, in or after the model's forward pass"
    def __init__(self, where, error): self.where,self.error = where,error
    def before_fit(self): self.model.blocks[0].up_a.register_forward_hook(lambda *args: self.stop('forward'))
    def stop(self, where):
        if where==self.where and self.training and self.train_iter==2: raise self.error
    def before_batch(self): self.stop('before')
    def after_pred(self): self.stop('after')

@pytest.mark.parametrize('where', ['before','forward','after'])
@pytest.mark.parametrize('error', [CancelFitException,CancelBatchException,KeyboardInterrupt])
def test_half_precision_ends_with_the_fit(where, error):
    "However a fit ends, what follows is computed as if there had been none; and the next fit is in half precision again"
    learn = learner(End(where, error), bs=32, n=128, precision='bf16')
    try: learn.fit(1)
    except KeyboardInterrupt: pass
    assert not torch.is_autocast_enabled('cpu')
    learn.end.where = None
    x,fresh = learn.dls.valid.one_batch()[0],SDNVAE(cfg)
    fresh.load_state_dict(learn.model.state_dict())
    types = []
    learn.model.first.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    noise = [torch.manual_seed(0) and m(x).elbo for m in (learn.model.train(), fresh.train())]
    assert torch.equal(*noise) and types==[torch.float32]
    learn.fit(1)
    assert set(types[1:])=={torch.bfloat16} and 'forward' not in vars(learn.model)

@pytest.mark.parametrize('graphs', [False,True])
def test_nothing_of_an_interrupted_fit_is_in_the_next_learner(monkeypatch, graphs):
    "Its average is a model of its own, not one that calls what the interrupted fit put round the first"
    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', lambda module, args, **kw: module)
    old = learner(End('before', KeyboardInterrupt), bs=32, n=128, precision='bf16', graphs=graphs)
    with pytest.raises(KeyboardInterrupt): old.fit(1)
    assert 'forward' in vars(old.model)
    new = quiet(vae_learner(old.dls, old.model, ema=.9))
    new.fit(1)
    assert not any('forward' in vars(m) for m in (new.model, new.ema.average.module))

def test_search_for_a_scale_is_no_fault():
    learn = learner(bs=16, n=400, precision='fp16', patience=2, scale=2.**30)
    learn.fit(1)
    assert 0 < learn.ema.average.n_averaged < 20 and learn.guard.skipped==0      # of 25 batches

class Break(Callback):
    "From batch `first` on, multiply the output of a layer, or the gradient of its output, by a number"
    def __init__(self, layer, first=0, last=10**9, by=math.nan, back=False): self.layer,self.first,self.last,self.by,self.back = layer,first,last,by,back
    def before_fit(self):
        def hook(module, args, out):
            if not (self.training and self.first<=self.train_iter<=self.last): return
            if not self.back: return out*self.by
            if out.requires_grad: out.register_hook(lambda g: g*self.by)
        self.model.get_submodule(self.layer).register_forward_hook(hook)

def test_half_precision_stops_once_the_scale_can_fall_no_further():
    "Scales 4 and 2 are search; 1, 1/2 and 1/4 are faults"
    learn = learner(Break('first'), bs=16, n=160, precision='fp16', patience=3, scale=4)
    with pytest.raises(FloatingPointError, match='3 steps in a row had to be skipped, the last in batch 4 of epoch 0.* output of first is not finite'): learn.fit(1)

@pytest.mark.parametrize('brk,words', [
    (Break('blocks.0.up_a', back=True), r'gradient of blocks\.0\.up_a\.bias \(block 1 from the top, map 4×4\) is not finite'),
    (Break('blocks.1.down_a.sdn.correction.0'), r'output of blocks\.1\.down_a\.sdn\.correction\.0 \(block 0 from the top, map 2×2\)'),
    (Break('blocks.0.down_b.conv', back=True), r'gradient of blocks\.0\.down_b\.conv\.bias'),
    (Break('last.conv', by=math.inf), r'output of last\.conv is'),
    (Break('last.conv', by=1e30, back=True), r"norm is inf, though each number in it is finite")], ids=lambda v: getattr(v, 'layer', None))
def test_what_broke_is_named(brk, words):
    with pytest.raises(FloatingPointError, match=words): learner(brk, bs=64, patience=3).fit(1)

def test_broken_images_and_divergences_are_named(monkeypatch):
    class Images(Callback):
        def before_batch(self): self.learn.x[[1,5],0,0,0] = math.nan
    with pytest.raises(FloatingPointError, match=r'images \[1, 5\] of the batch are not finite'): learner(Images(), patience=1).fit(1)
    monkeypatch.setattr(sdn_nb.ladder, 'kl_divergence', lambda q, p: q.loc*(math.nan if q.loc.shape[-1]==4 else 1))
    with pytest.raises(FloatingPointError, match='divergence of block 1 from the top is not finite'): learner(patience=1).fit(1)

class Weights(Callback):
    "All weights, and the number of averages, after each batch"
    order = 100
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append((torch.cat([p.detach().flatten() for p in self.model.parameters()]), self.learn.ema.average.n_averaged.item()))

def test_a_broken_step_is_skipped_and_counted(tmp_path):
    learn = learner(Break('first', 2, 3), Weights(), RunFolder(tmp_path), bs=256, patience=3)
    learn.fit(2)
    w = [w for w,_ in learn.weights.seen]
    assert [torch.equal(a, b) for a,b in zip(w, w[1:])]==[False,True,True]+[False]*6 and learn.weights.seen[-1][1]==8
    rows = list(csv.DictReader(open(tmp_path/'history.csv')))
    assert [r['skipped'] for r in rows]==['2','0'] and all(math.isfinite(float(v)) for r in rows for k,v in r.items() if k!='time'), rows

def test_large_gradients_are_skipped():
    free = norms(math.inf)
    learn = learner(Weights(), clip=math.inf, skip_above=free[0]*.99)
    learn.fit(1)
    assert learn.guard.skipped>=1 and learn.weights.seen[0][1]==0
    with pytest.raises(FloatingPointError, match=r'norm is .*, above skip_above=1'): learner(skip_above=1., patience=2).fit(1)

def test_warm_up_counts_steps_and_leaves_the_schedule():
    lrs = []
    for kw in dict(), dict(warmup=4), dict(warmup=.4):
        learn = learner(bs=8, n=176, accumulate=2, lr=1., **kw)
        learn.fit_flat_cos(1, pct_start=.5)                            # 22 batches, 11 steps
        lrs.append(torch.tensor(learn.recorder.lrs))
    k = torch.arange(1., 23)
    for n,got in zip((8,8.8), lrs[1:]): torch.testing.assert_close(got, lrs[0]*(k/n).clamp(max=1))
    learn = learner(bs=16, n=32, warmup=4, lr=1.)
    learn.fit(2)                                                       # a constant rate is not multiplied twice
    assert learn.recorder.lrs==[.25,.5,.75,1.]

# Going on

class Cut(Callback):
    def __init__(self, epoch, batch): self.at = epoch,batch
    def before_batch(self):
        if self.training and (self.epoch,self.iter)==self.at: raise KeyboardInterrupt

class Some(RunFolder):
    "A checkpoint after certain batches only"
    name = 'run_folder'
    def __init__(self, folder, *after): super().__init__(folder); self.after = after
    def _due(self): return (self.epoch,self.iter) in self.after

def final(folder, learn):
    s = torch.load(folder/'checkpoint.pt', weights_only=True)
    return dict(model=s['model'], ema=s['ema'], opt=s['opt'], scaler=s['scaler'], grads=s['grads'], count=s['count'], random=s['random'], loader=s['loader'], rows=[r[:-1] for r in s['rows']], train_iter=s['train_iter'])

def same(a, b, path=''):
    if isinstance(a, torch.Tensor): assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys()==b.keys(), path
        for k in a: same(a[k], b[k], f'{path}.{k}')
    elif isinstance(a, (list,tuple)):
        assert len(a)==len(b), path
        for i,(u,v) in enumerate(zip(a, b)): same(u, v, f'{path}.{i}')
    else: assert a==b or a!=a and b!=b, (path,a,b)

def fit(folder, kw, *cbs):
    "Three epochs of 5 batches, mirrored at random"
    learn = learner(*cbs, **dict(bs=32, n=160, flip=True, lr=1e-2) | kw)
    learn.fit_flat_cos(3, pct_start=.1)
    return final(folder, learn)

@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
    "How a run ends that nothing interrupts, by its settings"
    def run(kw):
        if str(kw) not in ends:
            folder = tmp_path_factory.mktemp('whole')
            ends[str(kw)] = fit(folder, kw, Some(folder))
        return ends[str(kw)]
    ends = {}
    return run

@pytest.mark.parametrize('kw', [dict(), dict(accumulate=3, warmup=3), dict(precision='bf16', warmup=.5), dict(precision='fp16', accumulate=2, scale=2.**17)], ids=str)
@pytest.mark.parametrize('after,cut', [([(0,1)],(0,4)), ([(1,0)],(1,1)), ([(1,1),(1,3)],(1,4)), ([],(1,3))], ids=str)
def test_resumed_run_is_the_same_run(tmp_path, whole_run, kw, after, cut):
    "A checkpoint in the middle of an epoch, and batches after it that are lost: weights, average, optimizer, loss scale, half-accumulated gradients, random states and history end alike"
    with pytest.raises(KeyboardInterrupt): fit(tmp_path, kw, Some(tmp_path, *after), Cut(*cut))
    done = torch.load(tmp_path/'checkpoint.pt', weights_only=True)
    assert (done['epoch'],done['done'])==((after[-1][0],after[-1][1]+1) if after else (1,0))
    same(fit(tmp_path, kw, Some(tmp_path, *after)), whole_run(kw))

def test_skips_are_counted_across_an_interruption(tmp_path):
    kw = dict(bs=256, patience=3)
    learn = learner(Some(tmp_path, (0,2)), Break('first', 1, 2), Cut(0,3), **kw)
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    resumed = learner(RunFolder(tmp_path), **kw)
    resumed.fit(1)
    assert next(csv.DictReader(open(tmp_path/'history.csv')))['skipped']=='2'

def test_faults_in_a_row_are_counted_across_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt): learner(Some(tmp_path, (0,2)), Break('first', 1), Cut(0,3), bs=256, patience=3).fit(1)
    with pytest.raises(FloatingPointError, match='in batch 3 of epoch 0'): learner(RunFolder(tmp_path), Break('first'), bs=256, patience=3).fit(1)

def test_batches_that_are_done_are_not_fetched(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt): learner(Some(tmp_path, (0,2)), Cut(0,4), bs=256).fit(1)
    learn,fetched = learner(RunFolder(tmp_path), bs=256),[]
    monkeypatch.setattr(type(learn.dls.train_ds), '__getitem__', lambda self, i: fetched.append(len(i)) or torch.from_numpy(self.levels.numpy()[i]))
    learn.fit(1)
    assert [n for n in fetched if n>1]==[256]*2+[256,104]               # fastai itself looks at one image

def test_checkpoints_follow_the_clock(tmp_path, monkeypatch):
    now = [0.]
    monkeypatch.setattr('sdn_nb.training.time.monotonic', lambda: now[0])
    saved = []
    class Watch(RunFolder):
        name = 'run_folder'
        def after_batch(self):
            now[0] += 30*self.training                                   # each batch takes half a minute
            super().after_batch()
        def save(self, done=0):
            super().save(done)
            saved.append((self.epoch,done))
    learner(Watch(tmp_path, minutes=1), bs=256).fit(2)
    assert saved==[(0,2),(0,4),(0,0),(1,2),(1,4),(1,0)]

def test_damaged_and_older_checkpoints_are_refused(tmp_path):
    for content,words in ((b'PK', 'damaged'), (None, 'not of this version')):
        if content: (tmp_path/'checkpoint.pt').write_bytes(content)
        else: torch.save(dict(epoch=1), tmp_path/'checkpoint.pt')
        with pytest.raises(ValueError, match=words): learner(RunFolder(tmp_path)).fit(1)

def test_a_folder_has_one_writer(tmp_path):
    "As long as the fit lasts, however it ends"
    parent = psutil.Process(os.getppid())
    (tmp_path/'.lock').write_text(json.dumps(dict(host=platform.node(), process=parent.pid, began=parent.create_time())))
    with pytest.raises(ValueError, match=f'process {parent.pid} on .* is writing into it'): learner(RunFolder(tmp_path)).fit(1)
    assert [p.name for p in tmp_path.iterdir()]==['.lock']
    (tmp_path/'.lock').unlink()
    held = []
    class Look(Callback):
        def before_batch(self):
            held.append(json.loads((tmp_path/'.lock').read_text())['process'])
            raise KeyboardInterrupt
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): learner(Look()).fit(1, cbs=RunFolder(tmp_path))
        assert held.pop()==os.getpid() and not (tmp_path/'.lock').exists()

def test_a_checkpoint_that_changed_or_is_anothers(tmp_path):
    learner(RunFolder(tmp_path, run='a')).fit(1)
    whole = (tmp_path/'checkpoint.pt').read_bytes()
    for at in range(100, len(whole), len(whole)//25):
        (tmp_path/'checkpoint.pt').write_bytes(whole[:at] + bytes([whole[at]^16]) + whole[at+1:])
        try: learner(RunFolder(tmp_path, run='a')).fit(1)               # there is nothing left to do
        except ValueError as e: assert 'checkpoint.pt' in str(e)
        else: assert final_of(tmp_path, whole)
    (tmp_path/'checkpoint.pt').write_bytes(whole)
    with pytest.raises(ValueError, match='of another run than config.json'): learner(RunFolder(tmp_path, run='b')).fit(2)
    wider = quiet(vae_learner(get_dls('digits', bs=512, device='cpu'), SDNVAE(replace(cfg, h=cfg.h+2)), cbs=RunFolder(tmp_path)))
    with pytest.raises(ValueError, match=r'checkpoint\.pt does not fit this model and its training \(RuntimeError: '): wider.fit(2)

def test_a_rank_without_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    with pytest.raises(ValueError, match='RANK is 3 in the environment of a single process'): learner(RunFolder(tmp_path/'new')).fit(1)
    assert not (tmp_path/'new').exists()

def final_of(folder, whole):
    "Whether a checkpoint that was let in has the numbers of the whole one"
    read = lambda data: torch.load(io.BytesIO(data), weights_only=True)
    same(read((folder/'checkpoint.pt').read_bytes()), read(whole))
    return True

def test_a_plain_learner_is_told_what_it_lacks(tmp_path):
    set_seed(0)
    dls,model = get_dls('digits', bs=512, device='cpu'),SDNVAE(cfg)
    for cbs,lacks in ([],'no EMA and no Guard,'), ([EMA()],'no Guard,'), ([Guard()],'no EMA,'):
        learn = quiet(Learner(dls, model, loss_func=lambda out,x: -out.elbo.mean(), cbs=[*cbs, RunFolder(tmp_path)]))
        with pytest.raises(ValueError, match=f'RunFolder: the learner has {lacks} .* vae_learner makes a learner that has both'): learn.fit(1)
    assert not list(tmp_path.iterdir())

# Pictures and loggers

def test_pictures_are_of_the_average_and_do_not_touch_training(tmp_path):
    def fit(epochs, *cbs):
        learn = learner(*cbs, bs=64, n=256, ema=.9, lr=1e-2)
        learn.fit(epochs)
        return learn.model
    same(fit(3, SamplePictures(tmp_path, 2, n=4)).state_dict(), fit(3).state_dict())
    assert [p.name for p in tmp_path.iterdir()]==['samples_epoch_002.png']
    save_samples(fit(2), tmp_path/'average.png', 4)
    assert (tmp_path/'average.png').read_bytes()==(tmp_path/'samples_epoch_002.png').read_bytes()

def test_pictures_are_not_drawn_again_in_epochs_that_are_skipped(tmp_path):
    learner(RunFolder(tmp_path)).fit(2)
    learner(RunFolder(tmp_path), SamplePictures(tmp_path, 1, n=4)).fit(3)
    assert [p.name for p in tmp_path.glob('*.png')]==['samples_epoch_003.png']

@pytest.mark.parametrize('package,make', [('tensorboard', lambda: tensorboard_logger('x')), ('wandb', lambda: wandb_logger('x', {}))])
def test_missing_logger_is_named(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f'fastai.callback.{package}', raising=False)
    with pytest.raises(ImportError, match=f'pip install {package}'): make()

def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learner(tensorboard_logger(tmp_path)).fit(2)
    log = EventAccumulator(str(tmp_path)).Reload()
    assert {'train_loss','bpd','rate','distortion','grad_norm','skipped','lr_0'} <= set(log.Tags()['scalars']) and len(log.Scalars('bpd'))==2

def test_wandb(monkeypatch):
    "fastai's callback against a package that only listens"
    class Listener:
        config,run,logged = dict(lr=.1),None,[]
        def init(self, **kw): self.run,self.begun = type('Run', (), dict(step=0, summary={}))(),kw
        def log(self, d, step=None): self.logged.append(d)
    listener = Listener()
    monkeypatch.setitem(sys.modules, 'wandb', listener)
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    learn = learner(wandb_logger('digits', dict(lr=.1)))
    for _ in range(2): learn.fit(1)
    assert listener.begun==dict(project='sdn_nb', name='digits', config=dict(lr=.1)) and {'train_loss','bpd','grad_norm'} <= {k for d in listener.logged for k in d}
    assert listener.config==dict(lr=.1, allow_val_change=True)          # and nothing that fastai has gathered
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
