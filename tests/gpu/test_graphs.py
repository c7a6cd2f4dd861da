"Training steps recorded as CUDA graphs train as those that are not, and leave nothing behind"
import pytest, torch
from fastai.basics import set_seed
from sdn_nb.scan import triton_sweep as kernels
from .common import cuda
from .test_training import Watch, cut_and_resume, far, learner

pytestmark = pytest.mark.usefixtures('replayed')

@pytest.fixture
def replayed(monkeypatch):
    "How often a recording was made; without a GPU a stand-in that calls the model"
    log,real = [],torch.cuda.make_graphed_callables
    def note(module, args, **kw):
        log.append(kernels.GRAPH_BYTES)
        return real(module, args, **kw) if cuda else module
    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', note)
    return log

def fit(*cbs, epochs=2, n=160, **kw):
    learn = learner('digits', Watch(), *cbs, bs=32, n=n, valid=40, **kw)
    set_seed(1)
    learn.fit(epochs)
    return learn

@pytest.mark.parametrize('precision', ['fp32','fp16','bf16'])
def test_trains_as_without(replayed, precision):
    "Losses and weights after ten steps, with the same noise"
    kw = dict(precision=precision, scale=2**10 if precision=='fp16' else None)
    usual,ours = fit(**kw),fit(graphs=True, **kw)
    assert replayed==[0] and kernels.GRAPH_BYTES>0                      # recorded once, and no sweep by itself meanwhile
    a,b = (torch.tensor(l.watch.loss_of) for l in (ours, usual))
    state = [l.model.state_dict() for l in (ours, usual)]
    assert (a/b-1).abs().max()<(1e-3 if precision=='fp32' else 2e-2), (a, b, far(*state))

def test_afterwards_the_model_is_as_it_was(replayed):
    learn = fit(graphs=True, n=72)
    losses = learn.watch.loss_of                                        # two batches of 32 an epoch; 8 images are left out
    assert len(losses)==4 and torch.tensor(losses).isfinite().all()
    x = learn.dls.train.one_batch()[0][:5]
    assert 'forward' not in vars(learn.model) and learn.model.train()(x).z[0].requires_grad

def test_looks_for_a_scale(replayed):
    "Overflows are skipped; the recording is not disturbed"
    learn = fit(graphs=True, n=320, precision='fp16', scale=2.**30, epochs=3)
    assert 0 < learn.ema.average.n_averaged < 30 and learn.guard.skipped==0
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_a_second_fit_records_anew(replayed):
    learn = fit(graphs=True, epochs=1)
    learn.fit(1)
    assert len(replayed)==2 and all(p.isfinite().all() for p in learn.model.parameters())

def test_resumed_run_is_the_same_run(tmp_path, deterministic):
    "Recording draws no noise that a run would miss"
    cut_and_resume(tmp_path, graphs=True)
