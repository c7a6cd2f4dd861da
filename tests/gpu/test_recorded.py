"Sweeps recorded as CUDA graphs and played again: never another's data, another's weights or another's stream"
import copy
import pytest, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from sdn_nb.layers import SubLayer
from .common import (DTYPES, LINES, agree, arguments, cuda, device, either, gradients, kernels, on, only_cuda, pair,
                     reference, scan, streams, synchronize)

C = either(128, 3)
SIZE = 2,C,*either((9,12), (2,3))
SQUARE = 2,C,*either((12,12), (3,3))
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2*either(1, 2)}
pytestmark = pytest.mark.usefixtures('deterministic')

def sweep(args, dy, direction='left', recompute=False):
    return gradients(lambda *a: scan.scan(*a, direction, recompute, LINES), args, dy)

def data(dtype=torch.float32, size=SIZE):
    "A map, parameters and a gradient, other ones with every call"
    return arguments(size, dtype),torch.randn(size).to(device, dtype)

def unrecorded(monkeypatch, f):
    "Result of `f` while nothing is recorded"
    with monkeypatch.context() as mp:
        mp.setattr(kernels, 'GRAPH_BYTES', 0)
        return f()

def same(got, want):
    "Bit by bit; NaN fails"
    for i,(g,w) in enumerate(zip(got, want, strict=True)):
        far = (g.double()-w.double()).abs().max().item() if g.numel() else 0.
        assert torch.equal(g, w), f'tensor {i} of {len(want)} differs by up to {far:.1e}'

@pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=['fp32','fp16','bf16'])
def test_other_data_and_other_weights(recorded, dtype, recompute):
    "The first sweep is not recorded, the second is, those after it play the recording"
    for k in range(4):
        args,dy = data(dtype)
        agree(sweep(args, dy, recompute=recompute), reference(args, dy, 'left'), TOLERANCE[dtype])
        assert len(recorded)==2*(k>0)                                     # forward and backward

def test_precisions_are_told_apart(recorded):
    "A recording made with exact products does not serve for tf32"
    args,dy = data()
    for precision in ('highest','high'):
        torch.set_float32_matmul_precision(precision)
        for _ in range(3): agree(sweep(args, dy), reference(args, dy, 'left'), 1e-4 if precision=='highest' else 5e-3)
    assert len(recorded)==either(4, 2)                                    # the interpreter knows one precision

def test_shapes_in_turn(recorded):
    "Several recordings at once, of all directions, each with results of its own"
    sizes = [(2,C,3,4), (2,C,4,3), (1,C,3,4), (2,C+1,3,4)]
    for _ in range(3):
        for size,direction in zip(sizes, scan.DIRECTIONS):
            args,dy = data(size=size)
            agree(sweep(args, dy, direction), reference(args, dy, direction), TOLERANCE[torch.float32])
    assert len(recorded)==2*len(sizes)

def test_results_outlive_the_next_sweep(recorded, monkeypatch):
    "Output, kept gates and gradients are copies: forward twice, then backward twice"
    args = [data()[0] for _ in range(2)]
    def both():
        leaves = [[a.detach().requires_grad_() for a in arg] for arg in args]
        ys = [scan.scan(*l, 'left', backend=LINES) for l in leaves]
        grads = [torch.autograd.grad(y.sin().sum(), l) for y,l in zip(ys, leaves)]
        return [*(y.detach() for y in ys), *(g for gs in grads for g in gs)]
    want = unrecorded(monkeypatch, both)
    assert not recorded
    for _ in range(3): same(both(), want)
    assert len(recorded)==2

# Streams and threads

def test_on_a_second_stream(recorded):
    "A stream has recordings of its own, which wait for what was given to it before"
    inputs = [data() for _ in range(6)]
    synchronize()
    other, = streams(1)
    got = [sweep(*i) for i in inputs[:3]]
    with on(other): got += [sweep(*i) for i in inputs[3:]]
    synchronize()
    for (args,dy),g in zip(inputs, got): agree(g, reference(args, dy, 'left'), TOLERANCE[torch.float32])
    assert len(recorded)==4

def test_two_streams_interleaved(recorded):
    "Neither waits for the other, nor finds the other's numbers"
    both,inputs = streams(2),[data() for _ in range(12)]
    synchronize()
    got = []
    for k,i in enumerate(inputs):
        with on(both[k%2]): got.append(sweep(*i))
    synchronize()
    for (args,dy),g in zip(inputs, got): agree(g, reference(args, dy, 'left'), TOLERANCE[torch.float32])
    assert len(recorded)==4

def train(model, x, dtype=None, rerun=lambda f, x: f(x)):
    "Output and all gradients, after a backward pass in autograd's own thread"
    for p in model.parameters(): p.grad = None
    x = x.detach().requires_grad_()
    with torch.autocast(device, dtype, enabled=dtype is not None): y = rerun(model, x)
    y.float().sin().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]

HOW = dict(plain={}, fp16=dict(dtype=torch.float16), bf16=dict(dtype=torch.bfloat16),
           checkpoint=dict(rerun=lambda f, x: checkpoint(f, x, use_reentrant=False)),
           reentrant=dict(rerun=lambda f, x: checkpoint(f, x, use_reentrant=True)))

@pytest.mark.parametrize('how', HOW)
def test_two_layers_of_one_shape(recorded, monkeypatch, how):
    "They share recordings, and train as they do without"
    model,x = pair(C),torch.randn(SQUARE, device=device)
    step = lambda: train(model, x, **HOW[how])
    want = unrecorded(monkeypatch, step)
    assert not recorded
    for _ in range(3): same(step(), want)
    assert recorded

def test_inference_and_training_in_turn(recorded, monkeypatch):
    "What inference mode records serves in training, and the other way round"
    model,x = pair(C),torch.randn(SQUARE, device=device)
    def infer():
        with torch.inference_mode(): return [model(x).clone()]
    def score():
        with torch.no_grad(): return [model(x)]
    calls = infer,score,lambda: train(model, x)
    want = unrecorded(monkeypatch, lambda: [f() for f in calls])
    for order in ((0,0,1,2,2), (2,2,1,0,0), (1,1,0,2,1)):
        kernels._sweeps.clear()
        for k in order: same(calls[k](), want[k])

# Graphs that a user records

def outer(model, x, dtype):
    "The model's output on `x`, recorded, and what plays it again"
    side, = streams(1)
    with on(side):
        for _ in range(3): score(model, x, dtype)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with kernels.uncollected(), torch.cuda.graph(graph): y = score(model, x, dtype)
    return y,graph.replay

def score(model, x, dtype):
    cast = torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)
    with torch.no_grad(), cast: return model(x)

MODELS = dict(chosen=lambda: nn.Sequential(SubLayer(16, 'right'), SubLayer(16, 'up')).to(device), lines=lambda: pair(C))
def model_and_map(name):
    model = MODELS[name]()
    return model,torch.randn(2, model[0].weight_hh.shape[1], 12, 12, device=device)

@pytest.mark.parametrize('dtype', [None,*DTYPES.values()], ids=['fp32',*DTYPES])
@pytest.mark.parametrize('before', [False,True], ids=['first','after recordings'])
@pytest.mark.parametrize('name', MODELS)
def test_inside_a_graph_of_ones_own(monkeypatch, name, before, dtype):
    "Played again with other data and other weights, it gives what the model gives"
    only_cuda('a CUDA graph')
    model,x = model_and_map(name)
    plain = lambda: [unrecorded(monkeypatch, lambda: score(model, x, dtype))]
    for _ in range(3*before): score(model, x, dtype)
    y,replay = outer(model, x, dtype)
    for _ in range(2):
        with torch.no_grad():
            x.normal_()
            for p in model.parameters(): p.mul_(.9)
        y.fill_(torch.nan)
        replay()
        synchronize()
        same([y], plain())
    for _ in range(2): same([score(model, x, dtype)], plain())    # sweeps outside still play their own recordings

@pytest.mark.parametrize('before', [False,True], ids=['first','after recordings'])
@pytest.mark.parametrize('name', MODELS)
def test_inside_graphed_callables(monkeypatch, name, before):
    "Forward and backward passes in graphs: the gradients are those of the model itself"
    only_cuda('a CUDA graph')
    model,x = model_and_map(name)
    twin = copy.deepcopy(model)
    for _ in range(3*before): train(model, x)
    for p in model.parameters(): p.grad = None
    with kernels.uncollected(): graphed = torch.cuda.make_graphed_callables(model, (torch.randn_like(x).requires_grad_(),))
    for _ in range(3):
        x.normal_()
        for g,w in zip(train(graphed, x), unrecorded(monkeypatch, lambda: train(twin, x)), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5*w.abs().max().item())

# Memory

def held(): return sum(s.bytes for s in kernels._sweeps.values() if s)
def allocated():
    synchronize()
    return torch.cuda.memory_allocated() if cuda else 0

def test_memory_stays_within_its_limit(recorded, monkeypatch):
    "Many shapes in turn, each recorded; the recordings longest unused make room"
    size = lambda n: (n, *either((200,16,16), (3,3,4)))
    sweep(*data(size=size(1)))                                            # libraries take their work space
    kernels._sweeps.clear()
    limit,before = either(64<<20, 25000),allocated()
    monkeypatch.setattr(kernels, 'GRAPH_BYTES', limit)
    most = 0
    for n in either(range(1, 13), range(1, 6)):
        for _ in range(2): sweep(*data(size=size(n)))
        most = max(most, held())
        assert held()<=limit and allocated()-before<=limit+(16<<20)
    assert most>limit/2 and len(recorded)>sum(s is not None for s in kernels._sweeps.values())

def test_what_is_larger_than_the_limit_is_not_recorded(recorded, monkeypatch):
    monkeypatch.setattr(kernels, 'GRAPH_BYTES', 1000)
    for _ in range(3):
        args,dy = data()
        agree(sweep(args, dy), reference(args, dy, 'left'), TOLERANCE[torch.float32])
    assert not recorded and not kernels._sweeps
