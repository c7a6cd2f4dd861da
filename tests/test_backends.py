"""Every registered backend against the literal loop in float64, on any device that it can run on. One that is registered
elsewhere gets all of this for nothing: `pytest tests/test_backends.py -p the_module_that_registers_it -k its_name`."""
import importlib.util, itertools, random
from functools import cache, partial
import pytest, torch
from torch import nn
from sdn_nb.scan import BACKENDS, DIRECTIONS, empty_map, register_backend, scan, scan_reference
from test_scan import LAYOUTS, NAMES

cuda = torch.cuda.is_available()
DEVICES = ['cpu', *['cuda']*cuda, *['mps']*torch.backends.mps.is_available()]
fp64,fp32,fp16,bf16 = torch.float64,torch.float32,torch.float16,torch.bfloat16
# relative to the largest entry. Under Triton's interpreter bf16 is cut off where a GPU rounds to nearest
TOLERANCE = {fp64: 1e-12, fp32: 1e-5, fp16: 4e-3, bf16: 4e-2}

# Triton's kernels where there is no GPU: interpreted, in a copy of their own, so that the rest of the process does not meet them

def interpreted_kernels():
    "A copy of the module of the kernels, interpreted; None without Triton"
    if importlib.util.find_spec('triton') is None: return None
    spec = importlib.util.find_spec('sdn_nb.scan.triton_sweep')
    mod = importlib.util.module_from_spec(importlib.util.spec_from_file_location('sdn_nb.scan._interpreted_sweep', spec.origin))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('TRITON_INTERPRET', '1')
        mod.__spec__.loader.exec_module(mod)
    return mod

INTERPRETED = ('triton, interpreted','triton_lines, interpreted')
kernels = None if cuda else interpreted_kernels()
EVERY = list(BACKENDS) if kernels is None else [n for n in BACKENDS if not n.startswith('triton')] + list(INTERPRETED)
QUICK = [n for n in EVERY if n not in INTERPRETED]     # an interpreted kernel takes a hundred times as long

@pytest.fixture(autouse=True, scope='module')
def interpreted():
    "The interpreted kernels are registered meanwhile, and never chosen"
    if kernels is not None:
        for name in INTERPRETED:
            lines = name.startswith('triton_lines')
            register_backend(name, partial(kernels.triton_forward, lines=lines), partial(kernels.triton_backward, lines=lines),
                             kernels.triton_buffers, why_not=kernels.triton_why_not, suits=lambda x: False)
    yield
    for name in INTERPRETED: BACKENDS.pop(name, None)

pytestmark = pytest.mark.usefixtures('poisoned')

@cache
def device_for(name, dtype):
    "A device on which the backend takes maps of this type; None if there is none"
    able = lambda d: BACKENDS[name].why_not(torch.empty(2,3,4,5, device=d, dtype=dtype)) is None
    if BACKENDS[name].prepare() is not None: return None
    return next((d for d in DEVICES if not (d=='mps' and dtype==fp64) and able(d)), None)

def widest(name):
    "The most exact type of numbers that a backend takes, or the test is skipped with its own reason"
    found = next((t for t in (fp64,fp32,bf16,fp16) if device_for(name, t)), None)
    if found is None: pytest.skip(BACKENDS[name].prepare() or BACKENDS[name].why_not(torch.empty(2,3,4,5)))
    return found

def require(name, dtype):
    "The device for a backend and type, or the test is skipped"
    widest(name)
    return device_for(name, dtype) or pytest.skip(f'{name} does not take {dtype}')

def arguments(size, dtype, device='cpu', param_dtype=None):
    "A map and the parameters of a cell"
    params = nn.GRUCell(3*size[1], size[1]).parameters()
    return [torch.randn(size).to(device, dtype), *(p.detach().to(device, param_dtype or dtype) for p in params)]

def steps(t):
    "Distances in memory along the axes that have any"
    return [(n,s) for n,s in zip(t.shape, t.stride()) if n>1] if t.numel() else []

def both_ways(name, args, direction, keep, dy):
    "Output and gradients of the operation, with what the backend promises of shapes and memory"
    x = args[0]
    with torch.no_grad():
        y,*saved = torch.ops.sdn_nb.scan(*args, direction, keep, name)
        got = [y, *torch.ops.sdn_nb.scan_backward(dy, x, y, *saved, *args[1:], direction, name)]
    promised = BACKENDS[name].buffers(x, direction) if keep else []
    for s,p in itertools.zip_longest(saved, promised):
        if p is None: assert s.numel()==0
        else: assert (s.shape,s.dtype,s.device)==(p.shape,p.dtype,p.device)
    lines = empty_map(x, direction)
    layouts = (lines,lines) if BACKENDS[name].in_lines else (torch.empty_like(x, memory_format=torch.channels_last),torch.empty_like(x))
    for t,layout in zip(got, layouts): assert t.dtype==x.dtype and steps(t)==steps(layout)
    for g,p in zip(got[2:], args[1:], strict=True): assert g.dtype==p.dtype and g.is_contiguous()
    return got

def by_scan(name, args, direction, recompute, dy):
    "The same by way of `scan`"
    args = [a.detach().requires_grad_() for a in args]
    y = scan(*args, direction, recompute, name)
    return [y.detach(), *torch.autograd.grad(y, args, dy, allow_unused=True, materialize_grads=True)]

def reference(args, direction, dy):
    "Output and gradients of the literal loop in double precision, on the same numbers"
    args = [a.detach().double().cpu().requires_grad_() for a in args]
    y = scan_reference(*args, direction)
    return [y.detach(), *torch.autograd.grad(y, args, dy.double().cpu(), allow_unused=True, materialize_grads=True)]

def agree(got, want, tolerance):
    "Shapes exactly, then the error relative to the largest entry; NaN fails"
    for name,g,w in zip(NAMES, got, want, strict=True):
        assert g.shape==w.shape, name
        if not w.numel(): continue
        g,w = g.double().cpu(),w.cpu()
        err = ((g-w).abs().max()/w.abs().max().clamp(min=1e-30)).item()
        if not err<=tolerance: raise AssertionError(f'{name}: error {err:.1e} > {tolerance:.0e}')

def short(v): return 'x'.join(map(str,v)) if isinstance(v, tuple) else str(v).removeprefix('torch.')
every = pytest.mark.parametrize('name', EVERY)
quick = pytest.mark.parametrize('name', QUICK)
directions = pytest.mark.parametrize('direction', DIRECTIONS)
kept = pytest.mark.parametrize('keep', [True,False], ids=['keep','recompute'])

# (B, C, H, W): one position; one line; lines of one position; no two sizes alike; features that fill no vector and no tile
SIZES = [(1,1,1,1), (2,3,1,4), (2,3,4,1), (3,5,2,2), (1,16,3,4), (2,19,5,3)]

def refused(name, dtype):
    "Does a backend refuse maps of this type on every device, as far as one can see without making it ready?"
    why_not = kernels.triton_why_not if name in INTERPRETED else BACKENDS[name].why_not
    return all(why_not(torch.empty(2,3,4,5, device=d, dtype=dtype)) for d in DEVICES if not (d=='mps' and dtype==fp64))

TYPES = [(t,n) for t,n in itertools.product(TOLERANCE, EVERY) if not refused(n, t) or all(refused(n, u) for u in TOLERANCE)]

@kept
@directions
@pytest.mark.parametrize('size', SIZES, ids=short)
@pytest.mark.parametrize('dtype,name', TYPES, ids=[f'{n}-{short(t)}' for t,n in TYPES])
def test_agrees(dtype, size, direction, keep, name):
    device = require(name, dtype)
    args,dy = arguments(size, dtype, device),torch.randn(size).to(device, dtype)
    agree(both_ways(name, args, direction, keep, dy), reference(args, direction, dy), TOLERANCE[dtype])

@quick
@kept
@directions
@pytest.mark.parametrize('size', [(1,7),(7,1),(3,9),(9,3),(7,8),(13,11)], ids=short)
def test_larger_maps(size, direction, keep, name):
    dtype = widest(name)
    for B,C in ((2,3),(1,5)):
        args,dy = arguments((B,C,*size), dtype, require(name, dtype)),torch.randn(B,C,*size).to(require(name, dtype), dtype)
        want = reference(args, direction, dy)
        agree(both_ways(name, args, direction, keep, dy), want, TOLERANCE[dtype])
        agree(by_scan(name, args, direction, not keep, dy), want, TOLERANCE[dtype])

@quick
@directions
@pytest.mark.parametrize('size', [(3,2,9,300),(3,2,70,40),(1,5,300,3),(1,5,3,300)], ids=short)
def test_many_lines_and_long_ones(size, direction, name):
    dtype = widest(name)
    args,dy = arguments(size, dtype, require(name, dtype)),torch.randn(size).to(require(name, dtype), dtype)
    want = reference(args, direction, dy)
    for keep in (True,False): agree(both_ways(name, args, direction, keep, dy), want, 1e-10 if dtype==fp64 else 2e-5)

@quick
@pytest.mark.parametrize('seed', range(24))
def test_random_maps(seed, name):
    device,r = require(name, fp32),random.Random(seed)
    torch.set_num_threads(r.randint(1,4))
    C = r.choice((r.randint(1,40),r.randint(40,120)))
    size = r.randint(1,6),C,r.randint(2,24),r.randint(2,24)
    x,*params = arguments(size, fp32, device)
    args,dy = [r.choice(list(LAYOUTS.values()))(x),*params],torch.randn(size).to(device)
    direction = r.choice(DIRECTIONS)
    agree(by_scan(name, args, direction, r.random()<.5, dy), reference(args, direction, dy), 2e-5)

@every
@pytest.mark.parametrize('size', [(0,3,5,4),(2,3,0,4),(2,3,4,0)], ids=short)
@kept
def test_nothing_to_do(size, keep, name):
    dtype = widest(name)
    args = arguments(size, dtype, require(name, dtype))
    for direction in DIRECTIONS:
        y,*grads = both_ways(name, args, direction, keep, torch.empty_like(args[0]))
        assert y.shape==grads[0].shape==size and not any(g.any() for g in grads)

@every
@directions
def test_any_memory_layout(direction, name):
    "Of the map and of the gradient; what came in is left alone"
    dtype = widest(name)
    x,*params = arguments((2,4,3,5), dtype, require(name, dtype))
    dy = torch.randn_like(x)
    layouts = list(itertools.product(LAYOUTS, LAYOUTS)) if name in QUICK else list(zip(LAYOUTS, list(LAYOUTS)[::-1]))
    for of_x,of_dy in layouts:
        args,g = [LAYOUTS[of_x](x),*params],LAYOUTS[of_dy](dy)
        held = [t.clone() for t in (*args,g)]
        agree(both_ways(name, args, direction, True, g), reference(args, direction, g), TOLERANCE[dtype])
        for a,b in zip((*args,g), held, strict=True): assert a.equal(b)

@every
def test_parameters_in_another_type(name):
    "As under autocast: the map in half precision, parameters and their gradients in single"
    device = require(name, fp16)
    args,dy = arguments((2,4,3,3), fp16, device, fp32),torch.randn(2,4,3,3).to(device, fp16)
    got = both_ways(name, args, 'up', True, dy)
    assert [g.dtype for g in got]==[fp16]*2 + [fp32]*4
    agree(got, reference(args, 'up', dy), TOLERANCE[fp16])

@every
@pytest.mark.parametrize('dtype', [fp16,bf16], ids=short)
def test_half_precision_does_not_drift(dtype, name):
    "40 lines are no worse than 4"
    device = require(name, dtype)
    args,dy = arguments((1,8,3,40), dtype, device),torch.randn(1,8,3,40).to(device, dtype)
    agree(both_ways(name, args, 'left', True, dy), reference(args, 'left', dy), TOLERANCE[dtype])

@every
def test_backward_may_be_called_twice(name):
    dtype = widest(name)
    args,dy = arguments((2,4,3,5), dtype, require(name, dtype)),torch.randn(2,4,3,5).to(require(name, dtype), dtype)
    b = BACKENDS[name]
    y,saved = b.forward(*args, 'right', True)
    held = [t.clone() for t in (dy,y,*saved)]
    first,second = (b.backward(dy, args[0], y, saved, *args[1:], 'right') for _ in range(2))
    for a,c in zip((dy,y,*saved,*first), (*held,*second), strict=True): assert a.equal(c)

@quick
@directions
@kept
def test_opcheck(direction, keep, name):
    "PyTorch's own examination of the operation and of its backward: schema, shapes, autograd, dynamic sizes"
    torch.use_deterministic_algorithms(False)   # it compares what is saved, the unused ends of which hold anything
    dtype = fp32 if device_for(name, fp32) else widest(name)
    for size in ((2,3,4,5),(1,2,9,3)):
        x,*params = arguments(size, dtype, require(name, dtype))
        leaves = [t.requires_grad_() for t in (x,*params)]
        torch.library.opcheck(torch.ops.sdn_nb.scan.default, (*leaves,direction,keep,name))
        x,*params = [t.detach() for t in leaves]
        y,*saved = torch.ops.sdn_nb.scan(x,*params,direction,keep,name)
        torch.library.opcheck(torch.ops.sdn_nb.scan_backward.default, (y.clone(),x,y,*saved,*params,direction,name))

def replaced(args, i, f): return [f(a) if j==i else a for j,a in enumerate(args)]
def on_meta(t): return t.to('meta')
def quantized(t): return torch.quantize_per_tensor(t.float(), .1, 0, torch.qint8)
UNFIT = dict(meta=on_meta, complex=lambda t: t+1j, integer=lambda t: t.long(), bool=lambda t: t>0, fp8=lambda t: t.float().to(torch.float8_e4m3fn), quantized=quantized,
             sparse=lambda t: t.to_sparse(), mkldnn=lambda t: t.float().to_mkldnn(), nothing=lambda t: None, misshapen=lambda t: t[:-1], misshapen_last=lambda t: t[...,:-1])

@quick
@pytest.mark.filterwarnings('ignore:torch.quantize_per_tensor')
@pytest.mark.parametrize('i', range(5), ids=NAMES[1:])
@pytest.mark.parametrize('unfit', UNFIT)
@pytest.mark.parametrize('cast', [False,True], ids=['','autocast'])
def test_what_does_not_fit_is_refused(name, unfit, i, cast):
    "By the name of the argument, by `scan` and by the operation and its backward, instead of reading memory as something that it is not"
    dtype = widest(name)
    device = require(name, dtype)
    args = arguments((2,3,4,5), dtype, device)
    dy,y,*saved = torch.randn_like(args[0]),*torch.ops.sdn_nb.scan(*args, 'right', True, name)
    try: wrong = replaced(args, i, UNFIT[unfit])
    except (RuntimeError,NotImplementedError): pytest.skip('no such tensor on this device')
    if i==0 and unfit=='misshapen': wrong[0] = args[0][None]
    if i==0 and unfit=='misshapen_last': wrong[0] = args[0][0]
    about = '`weight_ih` is on' if i==0 and unfit=='meta' else f'`{NAMES[1+i]}`'
    with torch.autocast(device, enabled=cast):
        calls = [lambda: scan(*wrong, backend=name), lambda: scan(*wrong)]
        if wrong[i] is not None: calls += [lambda: torch.ops.sdn_nb.scan(*wrong, 'right', True, name),
                                           lambda: torch.ops.sdn_nb.scan_backward(dy, wrong[0], y, *saved, *wrong[1:], 'right', name)]
        for call in calls:
            with pytest.raises(ValueError, match=f'^scan: {about}'): call()

@quick
def test_double_and_single_do_not_mix(name):
    "Neither way, nor under autocast; in half precision a map may have parameters of another type, but not in double"
    for dtype in (fp32,fp64,fp16):
        if not (device := device_for(name, dtype)): continue
        other = fp32 if dtype==fp64 else fp64
        for i in range(1,5):
            wrong = replaced(arguments((2,3,4,5), dtype, device), i, lambda t: t.to(other))
            for cast in (False,True):
                with torch.autocast(device, enabled=cast):
                    for call in (lambda: scan(*wrong, backend=name), lambda: torch.ops.sdn_nb.scan(*wrong, 'up', True, name)):
                        with pytest.raises(ValueError, match=f'`{NAMES[1+i]}` is {other} but `x` is {dtype}'): call()

@quick
def test_the_operation_refuses_what_the_backend_would(name):
    "Directions and backends that are not there; maps that the backend can't take; what comes back to it from elsewhere"
    dtype = widest(name)
    args = arguments((2,3,4,5), dtype, require(name, dtype))
    scan_,back = torch.ops.sdn_nb.scan,torch.ops.sdn_nb.scan_backward
    with pytest.raises(ValueError, match='direction'): scan_(*args, 'sideways', True, name)
    with pytest.raises(ValueError, match="got 'abacus'"): scan_(*args, 'right', True, 'abacus')
    for t in TOLERANCE:
        if not refused(name, t): continue
        with pytest.raises(RuntimeError, match=f"backend '{name}' can't run"): scan_(*(a.to(t) for a in args), 'right', True, name)
    dy,results = torch.randn_like(args[0]),scan_(*args, 'right', True, name)
    maps = [dy,*results]
    spread = results[1].new_zeros(()).expand_as(results[1])      # one number in memory, as many as there should be by its shape
    with torch.no_grad(): back(dy, args[0], results[0], spread, *results[2:], *args[1:], 'right', name)
    for i,what in enumerate(('dy','y','saved0')):
        for wrong in (maps[i].flatten()[1:], maps[i].half() if dtype!=fp16 else maps[i].float(), on_meta(maps[i]), maps[i][:1]):
            d,y,*saved = replaced(maps, i, lambda t: wrong)
            if what=='saved0' and wrong.ndim==1: continue       # stands for nothing kept
            with pytest.raises(ValueError, match=f'`{what}` must have'): back(d, args[0], y, *saved, *args[1:], 'right', name)

@quick
def test_shapes_alone(name):
    "All on meta: the operation and its backward say what would come out"
    dtype = widest(name)
    args = [on_meta(a) for a in arguments((2,3,4,5), dtype)]
    y,*saved = torch.ops.sdn_nb.scan(*args, 'down', True, name)
    grads = torch.ops.sdn_nb.scan_backward(y, args[0], y, *saved, *args[1:], 'down', name)
    assert all(t.is_meta and t.shape==a.shape for t,a in zip((y,*grads), (args[0],*args), strict=True))

@every
def test_why_not_only_looks(name, monkeypatch):
    "Every refusal says what to do; asking starts no compiler and loads no library"
    import ctypes, subprocess
    def refuse(*a, **k): raise AssertionError('why_not did more than look')
    for owner,f in ((subprocess,'run'), (subprocess,'Popen'), (ctypes,'CDLL')): monkeypatch.setattr(owner, f, refuse)
    for dtype in TOLERANCE:
        for device in ('cpu','meta'):
            why = BACKENDS[name].why_not(torch.empty(1,3,4,4, device=device, dtype=dtype))
            assert why is None or len(why)>20

def test_a_wrong_backend_is_refused():
    "The suite can fail: gates that leak from another sample, a gradient forgotten, a promise of memory broken"
    t = BACKENDS['torch']
    def roll(*a): y,saved = t.forward(*a); return y+1e-3*y.roll(1,0),saved
    def forget(*a): dx,*grads = t.backward(*a); return dx,*grads[:3],0*grads[3]
    def rows(*a): y,saved = t.forward(*a); return y.contiguous(),saved
    for broken in (dict(forward=roll), dict(backward=forget), dict(forward=rows)):
        parts = dict(forward=t.forward, backward=t.backward) | broken
        register_backend('broken', parts['forward'], parts['backward'], t.buffers, suits=lambda x: False)
        try:
            with pytest.raises(AssertionError): test_agrees(fp64, (2,19,5,3), 'right', True, 'broken')
        finally: del BACKENDS['broken']
