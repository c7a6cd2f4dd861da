"Every CUDA backend against the literal loop in float64, on the same rounded numbers"
import itertools
import pytest, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from sdn_nb.layers import SubLayer
from sdn_nb.scan import DIRECTIONS, scan
from .common import (BACKENDS, DTYPES, NAMES, PRECISIONS, agree, arguments, device, either, gradients, kernels,
                     reference, rehearse)

pytestmark = pytest.mark.usefixtures('deterministic')

def _tolerance(y, x, weights, biases): return dict(zip(NAMES, (y, x, weights, weights, biases, biases)))

# Largest ‖got-want‖/‖want‖ of the output, the gradient of x, those of the weights, those of the biases
TOLERANCE = dict(
    # products as exact as fp32 (three of tf32); sums over all positions are rounded in fp32
    fp32=_tolerance(2e-5, 5e-5, 1e-4, 1e-4),
    # operands cut to 10 bits, an error of up to 1e-3 each that leans towards zero and is passed on from line to line
    tf32=_tolerance(3e-3, 5e-3, 1e-2, 1e-2),
    # lines, gates and their gradients are rounded to 11 bits, 5e-4; so may be parts of a sum over positions, whose
    # terms have either sign: a bias of one feature may be all but nothing
    fp16=_tolerance(3e-3, 5e-3, 5e-3, 1e-2),
    # the same with 8 bits, 4e-3
    bf16=_tolerance(2e-2, 3e-2, 4e-2, 8e-2))
# the interpreter cuts bf16 off where a GPU rounds
if rehearse: TOLERANCE['bf16'] = {k: 2*v for k,v in TOLERANCE['bf16'].items()}

FEATURES = either((1,3,16,33,64,200,360), (1,2,3,4,5,6,17))
MAPS = either([(1,1),(1,7),(7,1),(5,3),(17,33),(32,32),(64,16)], [(1,1),(1,3),(3,1),(3,2),(2,4),(3,3),(4,2)])
BATCHES = either((0,1,5,32), (0,1,2,3))
MOST = 2**22                                                              # numbers in a map

def by_features():
    "All features in all precisions, on the larger maps; direction, map and batch take turns"
    for (i,C),(j,precision) in itertools.product(enumerate(FEATURES), enumerate(PRECISIONS)):
        H,W = MAPS[3:][(i+2*j)%4]
        B = BATCHES[1:][(i+j)%3]
        yield precision, (B if B*C*H*W<=MOST else BATCHES[2], C, H, W), DIRECTIONS[(i+j)%4]

def by_maps():
    "All maps in all directions; precision, features and batch take turns"
    for (i,size),(k,direction) in itertools.product(enumerate(MAPS), enumerate(DIRECTIONS)):
        yield list(PRECISIONS)[(i+k)%4], (BATCHES[1:][(i+2*k)%3], FEATURES[1:4][(2*i+k)%3], *size), direction

def many_tiles():
    "Several tiles or samples a program: long lines, many features, more samples than processors"
    sizes = either([(2,112,100,4), (150,100,5,9)], [(1,40,33,2), (5,2,3,2)])
    for (j,precision),size in itertools.product(enumerate(PRECISIONS), sizes):
        yield precision, size, ('right','left')[j%2]

def cases(those): return [pytest.param(*c, id=f"{c[0]}-{'x'.join(map(str, c[1]))}-{c[2]}") for c in those]

def check(precision, size, direction, backend, recompute, note=True):
    dtype,matmul = PRECISIONS[precision]
    args,dy = arguments(size, dtype),torch.randn(size).to(device, dtype)
    torch.set_float32_matmul_precision(matmul)
    got = gradients(lambda *a: scan(*a, direction, recompute, backend), args, dy)
    assert all(g.dtype==dtype for g in got)
    agree(got, reference(args, dy, direction), TOLERANCE[precision], precision if note else None)

over_backends = pytest.mark.parametrize('backend', BACKENDS)
over_modes = pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])

@over_modes
@over_backends
@pytest.mark.parametrize('precision, size, direction', cases(by_features()))
def test_features(precision, size, direction, backend, recompute):
    check(precision, size, direction, backend, recompute)

@over_backends
@pytest.mark.parametrize('precision, size, direction', cases(by_maps()))
def test_maps(precision, size, direction, backend): check(precision, size, direction, backend, size[0]==BATCHES[1])

@over_modes
@over_backends
@pytest.mark.parametrize('precision, size, direction', cases(many_tiles()))
def test_many_tiles(precision, size, direction, backend, recompute):
    check(precision, size, direction, backend, recompute)

@over_modes
@over_backends
@pytest.mark.parametrize('precision', PRECISIONS)
def test_no_images(precision, backend, recompute):
    for direction in DIRECTIONS: check(precision, (0,FEATURES[2],*MAPS[3]), direction, backend, recompute)

def test_the_choice_of_cases():
    "Every precision meets all features, maps, directions and batches"
    seen = {p: [set(), set(), set(), {0}] for p in PRECISIONS}
    for precision,(B,C,*size),direction in itertools.chain(by_features(), by_maps()):
        for s,v in zip(seen[precision], (C, tuple(size), direction, B)): s.add(v)
    assert all(s==[set(FEATURES), set(MAPS), set(DIRECTIONS), set(BATCHES)] for s in seen.values()), seen

# The comparison itself

def _shifted(f): return lambda *a: f(*a).roll(1, 0)
def _larger(f): return lambda *a: f(*a).mul_(1.01)

@over_backends
@pytest.mark.parametrize('name, broken', [('_project_hidden',_larger), ('_transposed',_larger), ('_windows',_shifted)],
                         ids=['forward','gradient of x','gradient of weights'])
def test_what_is_wrong_is_noticed(monkeypatch, name, broken, backend):
    "One part in a hundred too much, or one position beside"
    size = BATCHES[2],FEATURES[2],*MAPS[3]
    check('fp32', size, 'right', backend, False)
    monkeypatch.setattr(kernels, name, broken(getattr(kernels, name)))
    with pytest.raises(AssertionError, match='>'): check('fp32', size, 'right', backend, False, note=False)

def test_what_is_not_a_number_is_noticed():
    args,dy = arguments((2,3,4,5)),torch.randn(2,3,4,5, device=device)
    want = reference(args, dy, 'right')
    for i,name in enumerate(NAMES):
        got = [w.clone() for w in want]
        got[i].view(-1)[0] = torch.nan
        with pytest.raises(AssertionError, match=f'^{name}: nan'): agree(got, want, 1e9)

# Ways to call it

@over_backends
@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('C', either((16,200), (3,)))
def test_autocast(C, precision, backend):
    "Inputs are rounded, gradients come in the type of the input"
    size,dtype = (3,C,*either((8,9), (3,4))),DTYPES[precision]
    args,dy = arguments(size),torch.randn(size).to(device, dtype)
    def cast(*a):
        with torch.autocast(device, dtype): return scan(*a, 'down', backend=backend)
    for recast in (torch.float32, dtype):
        args[0] = args[0].to(recast)
        y,dx,*rest = got = gradients(cast, args, dy)
        assert y.dtype==dtype and dx.dtype==recast and all(g.dtype==torch.float32 for g in rest)
        agree(got, reference([a.to(dtype) for a in args], dy, 'down'), TOLERANCE[precision], f'autocast {precision}')

LAYOUTS = dict(channels_last=lambda x: x.contiguous(memory_format=torch.channels_last),
               transposed=lambda x: x.mT.contiguous().mT,
               sliced=lambda x: torch.cat([x,x], 1)[:,::2], expanded=lambda x: x[:1].expand_as(x))

@over_backends
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, backend):
    "Whatever the order in memory of map and gradient, which are left as they were"
    size = either((2,16,5,6), (2,3,2,3))
    for direction in DIRECTIONS:
        args,dy = arguments(size),torch.randn(size).to(device)
        args[0],dy = LAYOUTS[layout](args[0]),LAYOUTS[layout](dy)
        kept = [a.clone() for a in (*args,dy)]
        got = gradients(lambda *a: scan(*a, direction, backend=backend), args, dy)
        agree(got, reference(args, dy, direction), TOLERANCE['fp32'])
        assert all(a.equal(b) for a,b in zip((*args,dy), kept))

@over_backends
@pytest.mark.parametrize('needs', range(5), ids=NAMES[1:])
def test_one_gradient_alone(needs, backend):
    args,dy = arguments((2,3,4,5)),torch.randn(2,3,4,5, device=device)
    want = reference(args, dy, 'left')
    args[needs].requires_grad_()
    got, = torch.autograd.grad(scan(*args, 'left', backend=backend), args[needs], dy)
    agree([*want[:needs+1], got, *want[needs+2:]], want, TOLERANCE['fp32'])

@over_backends
@pytest.mark.parametrize('reentrant', [True,False], ids=['reentrant','not reentrant'])
def test_checkpoint(reentrant, backend):
    args,dy = arguments((2,3,4,5)),torch.randn(2,3,4,5, device=device)
    again = lambda *a: checkpoint(lambda *a: scan(*a, 'up', backend=backend), *a, use_reentrant=reentrant)
    args = [a.requires_grad_() for a in args]
    y = again(*args)
    y.backward(dy)
    agree([y.detach(), *(a.grad for a in args)], reference(args, dy, 'up'), TOLERANCE['fp32'])

@over_backends
def test_inference_mode(backend):
    args = arguments((2,3,4,5))
    want = scan(*args, 'left', backend=backend)
    with torch.inference_mode(): got = scan(*args, 'left', backend=backend)
    assert got.is_inference() and torch.equal(got, want)

def test_chosen_on_a_gpu():
    "The backend that is taken unasked is `triton`"
    args = arguments((2,3,4,5))
    assert not kernels.triton_why_not(args[0])
    if args[0].is_cuda: assert torch.equal(scan(*args, 'left'), scan(*args, 'left', backend='triton'))

@over_backends
def test_weights_elsewhere_are_refused(backend):
    "Each parameter in turn lies on another device than the map"
    args = arguments((2,3,4,5))
    for i,name in enumerate(NAMES[2:], 1):
        moved = [a.to(either('cpu','meta')) if k==i else a for k,a in enumerate(args)]
        with pytest.raises(ValueError, match=f'`{name}` is on'): scan(*moved, backend=backend)

# torch.compile

@pytest.fixture
def compiler():
    "Compile from scratch; new tensors are not filled, since compiled code makes its own"
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    yield lambda m, **kw: torch.compile(m, fullgraph=True, backend=either('inductor','aot_eager'), **kw)
    torch._dynamo.reset()

def layer(C=either(16,3)):
    "Two sweeps between two convolutions"
    sweeps = SubLayer(C, 'right'),SubLayer(C, 'up')
    return nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.Tanh(), *sweeps, nn.Conv2d(C, 2, 1)).to(device)

def both_gradients(f, params, x):
    x = x.detach().requires_grad_()
    y = f(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x,*params])]

@pytest.mark.parametrize('precision', ['fp32','fp16'])
def test_compiled(compiler, monkeypatch, precision):
    "One graph, with the gradients of the uncompiled layer"
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    model = layer()
    x,params = torch.randn(2,3,8,9, device=device),list(model.parameters())
    with torch.autocast(device, torch.float16, enabled=precision=='fp16'):
        want,got = both_gradients(model, params, x),both_gradients(compiler(model), params, x)
    tol = 1e-2 if precision=='fp16' else 1e-4
    for w,g in zip(want, got): torch.testing.assert_close(g, w, rtol=0, atol=tol*w.abs().max().item())

@pytest.mark.parametrize('grad', [True,False], ids=['training','inference'])
def test_compiled_for_any_size(compiler, monkeypatch, grad):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    model = layer()
    params,compiled = list(model.parameters()),compiler(model, dynamic=True)
    with torch.set_grad_enabled(grad):
        for B,S in ((2,8),(3,8),(5,10)):
            x = torch.randn(B,3,S,9, device=device)
            got,want = (both_gradients(f, params, x) if grad else [f(x)] for f in (compiled, model))
            for g,w in zip(got, want): torch.testing.assert_close(g, w, rtol=0, atol=1e-4*w.abs().max().item())
