"The Triton kernels beyond what every backend is tested for: edges of tiles, recorded sweeps, compiled for an H100. Interpreted where there is no GPU"
import os, subprocess, sys
from types import SimpleNamespace
import pytest, torch
from torch import nn
from sdn_nb import scan
from sdn_nb.scan import triton_sweep
from test_backends import TOLERANCE as tolerance, agree, interpreted_kernels, short

triton = pytest.importorskip('triton')
cuda = torch.cuda.is_available()
device = 'cuda' if cuda else 'cpu'

kernels = triton_sweep if cuda else interpreted_kernels()

pytestmark = pytest.mark.usefixtures('poisoned')

@pytest.fixture(autouse=True)
def forgotten():
    "No sweep is remembered"
    yield kernels._sweeps.clear()

fp32,fp16,bf16 = torch.float32,torch.float16,torch.bfloat16

def arguments(size, dtype):
    "A map and a cell's parameters, on the device"
    cell = nn.GRUCell(3*size[1], size[1]).parameters()
    return [torch.randn(size).to(device, dtype), *(p.detach().to(device, dtype) for p in cell)]

def both_ways(args, direction, keep, dy, lines=False):
    "Output and gradients of the kernels: of those for whole sweeps, or for lines"
    y,saved = kernels.triton_forward(*args, direction, keep, lines)
    assert bool(saved)==keep
    return [y, *kernels.triton_backward(dy, args[0], y, saved, *args[1:], direction, lines)]

def reference(args, direction, dy, dtype=torch.float64):
    "Output and gradients of the literal loop on the same numbers"
    args = [a.to(dtype).requires_grad_() for a in args]
    y = scan.scan_reference(*args, direction)
    return [y.detach(), *torch.autograd.grad(y, args, dy.to(dtype), allow_unused=True, materialize_grads=True)]

def check(size, dtype, direction, keep, lines):
    args = arguments(size, dtype)
    dy = torch.randn(size).to(device, dtype)
    agree(both_ways(args, direction, keep, dy, lines), reference(args, direction, dy), tolerance[dtype])

both_kernels = pytest.mark.parametrize('lines', [True,False], ids=['lines','whole'])

@pytest.mark.parametrize('keep', [True,False], ids=['keep','recompute'])
@pytest.mark.parametrize('size', [(2,20,6,3), (1,33,17,2)], ids=short)
@pytest.mark.parametrize('dtype', [fp32,fp16], ids=short)
def test_edges_of_tiles(monkeypatch, dtype, size, keep):
    "Several programs with edges in all three directions of the tiling"
    monkeypatch.setattr(kernels, '_tiles', lambda *a: dict(BM=16, BN=16, BK=16, num_warps=4, num_stages=2))
    check(size, dtype, 'left', keep, True)

@pytest.mark.parametrize('keep', [True,False], ids=['keep','recompute'])
@pytest.mark.parametrize('size', [(5,20,5,3), (3,33,9,2)], ids=short)
def test_edges_of_tiles_of_whole_sweeps(monkeypatch, size, keep):
    "Two samples a program and one left over, several tiles of rows and of features"
    def options(x, processors):
        _,_,L,C = x.shape
        return 2*L,dict(C=C, UP=kernels._interpreted(), PRECISION=kernels._precision(x), BM=16, BN=16, BK=16, num_warps=4, num_stages=2)
    monkeypatch.setattr(kernels, '_whole_options', options)
    check(size, fp32, 'left', keep, False)

def test_many_samples_share_a_program():
    own,o = kernels._whole_options(torch.empty(3, 300, 7, 20, device='meta'), 132)
    assert own==3*7 and o['BM']==32

@both_kernels
def test_default_tiles_many_programs(lines): check((3,70,25,3), fp32, 'right', True, lines)

def test_which_kernels(monkeypatch):
    "One launch up to `WHOLE` features, lines above, and lines where they are asked for"
    ran = []
    for name in ('_forward_loop','_forward_whole'):
        monkeypatch.setattr(kernels, name, lambda s, name=name, f=getattr(kernels, name): ran.append(name) or f(s))
    monkeypatch.setattr(kernels, 'WHOLE', 3)
    for C,lines in ((3,False),(4,False),(3,True)): kernels.triton_forward(*arguments((1,C,2,3), fp32), 'right', False, lines)
    assert ran==['_forward_whole','_forward_loop','_forward_loop']

@pytest.mark.parametrize('dtype', [fp16,bf16], ids=short)
def test_no_worse_than_the_loop_in_half_precision(dtype):
    "The literal loop in the same dtype rounds more often; the interpreter's cut-off costs a factor of two"
    args,dy = arguments((2,16,8,12), dtype),torch.randn(2,16,8,12).to(device, dtype)
    want = reference(args, 'right', dy)
    rel = lambda got: [((g.double()-w).abs().max()/w.abs().max()).item() for g,w in zip(got,want)]
    ours,loop = rel(both_ways(args, 'right', True, dy)),rel(reference(args, 'right', dy, dtype))
    assert max(ours) <= (1.5 if cuda or dtype==fp16 else 4)*max(loop), (ours, loop)

def test_saves_four_maps():
    args = arguments((2,8,5,9), fp32)
    _,saved = kernels.triton_forward(*args, 'right', True)
    assert sum(s.numel() for s in saved)==4*args[0].numel()*8/9     # the first line has no gates

# recorded sweeps: the copying in and out, with a stand-in for the graph where there is no GPU

@pytest.fixture
def recorded(monkeypatch):
    "Sweeps are recorded; the list of what was"
    log,real = [],kernels._record
    monkeypatch.setattr(kernels, '_record', lambda s: log.append(s) or (real(s) if cuda else lambda: s.loop(s)))
    if not cuda:
        monkeypatch.setattr(kernels, '_may_record', lambda given,new: kernels.GRAPH_BYTES>0)
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda *a: SimpleNamespace(cuda_stream=0))
    return log

def interleaved(keep, size=(2,4,3,5)):
    "Two layers: forward both, then backward both"
    torch.manual_seed(5)
    args = [arguments(size, fp32) for _ in range(2)]
    outs = [kernels.triton_forward(*a, 'left', keep, True) for a in args]
    return [y for y,_ in outs] + [g for a,(y,saved) in zip(args,outs)
                                  for g in kernels.triton_backward(y.cos(), a[0], y, saved, *a[1:], 'left', True)]

@pytest.mark.parametrize('keep', [True,False], ids=['keep','recompute'])
def test_recorded_sweeps_do_not_share(monkeypatch, recorded, keep):
    with monkeypatch.context() as mp:
        mp.setattr(kernels, 'GRAPH_BYTES', 0)
        plain = interleaved(keep)
    assert not recorded
    for _ in range(3):
        for a,b in zip(interleaved(keep), plain): assert torch.equal(a, b)
    assert len(recorded)==2                          # forward and backward, once each

def test_a_shape_met_once_is_not_recorded(recorded):
    for n in (1,2,3): kernels.triton_forward(*arguments((n,4,3,5), fp32), 'left', True, True)
    assert not recorded

def test_recorded_sweeps_hold_no_graph(recorded):
    "Nor do they keep a parameter's gradient node, which belongs to the stream of the first backward pass"
    for inference in (False,True):
        kernels._sweeps.clear()
        for _ in range(3):
            args = [a.requires_grad_() for a in arguments((1,4,3,5), fp32)]
            with torch.inference_mode(inference): y,saved = kernels.triton_forward(*args, 'left', True, True)
            with torch.no_grad(): kernels.triton_backward(torch.ones_like(y), args[0], y, saved, *args[1:], 'left', True)
        held = [v for s in kernels._sweeps.values() for v in vars(s).values() if isinstance(v, torch.Tensor)]
        assert held and not any(v.requires_grad or v.is_inference() for v in held)

def test_whole_sweeps_are_not_recorded(recorded):
    for _ in range(3): kernels.triton_forward(*arguments((1,4,3,5), fp32), 'left', True)
    assert not recorded and not kernels._sweeps

def test_recorded_sweeps_are_forgotten(monkeypatch, recorded):
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *a: None)
    args = [arguments((n,4,3,5), fp32) for n in (1,2,3)]
    for a in args[:2]: kernels.triton_forward(*a, 'left', False, True), kernels.triton_forward(*a, 'left', False, True)
    assert len(recorded)==2
    monkeypatch.setattr(kernels, 'GRAPH_BYTES', sum(s.bytes for s in kernels._sweeps.values()))
    want = kernels.triton_forward(*args[2], 'left', False, True)[0]
    assert torch.equal(kernels.triton_forward(*args[2], 'left', False, True)[0], want)
    assert list(kernels._sweeps.values())==recorded[2:]

@pytest.mark.skipif(not cuda, reason='needs a GPU')
def test_inside_an_outer_graph():
    args = arguments((2,16,8,8), fp16)
    want,_ = kernels.triton_forward(*args, 'down', False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): got,_ = kernels.triton_forward(*args, 'down', False)
    got.fill_(torch.nan)
    graph.replay()
    assert torch.equal(got, want)

# a backend that cannot run says why

def test_why_not():
    ok = torch.randn(1,3,4,4, device=device)
    assert kernels.triton_why_not(ok) is None
    assert 'float64' in kernels.triton_why_not(ok.double()) and 'convert' in kernels.triton_why_not(ok.double())

def python(code, **env):
    env = {k:v for k,v in os.environ.items() if k!='TRITON_INTERPRET'} | {'PYTHONPATH': os.pathsep.join(sys.path)} | env
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout

def test_why_not_on_a_processor():
    out = python('import torch\nfrom sdn_nb.scan.triton_sweep import triton_why_not\nprint(triton_why_not(torch.ones(1,1,1,1)))')
    assert 'cpu' in out and 'x.cuda()' in out and 'TRITON_INTERPRET=1' in out

def test_imports_without_triton():
    out = python("import sys; sys.modules['triton'] = None\nimport torch\nfrom sdn_nb.scan.triton_sweep import triton_why_not\nprint(triton_why_not(torch.ones(1,1,1,1)))")
    assert 'pip install triton' in out

# compiled for an H100, with or without one

cases = [(kernel, *shape, dtype) for kernel in ('forward','backward') for shape,dtypes in [
    ((32,360,32), (fp16,fp32)), ((32,200,32), (fp16,)), ((128,64,32), (fp16,)), ((8,200,64), (bf16,)), ((3,13,7), (fp16,)), ((2,20,1), (fp32,))] for dtype in dtypes]
cases += [(f'{kernel} sweep', *shape) for kernel in ('forward','backward') for shape in [
    (128,64,32,fp16), (32,104,8,fp16), (512,112,32,bf16), (512,112,32,fp32), (2,32,128,fp16), (4,13,7,fp16)]]

@pytest.mark.parametrize('kernel, B, C, L, dtype', cases, ids=short)
def test_compiles_for_sm90(record_property, kernel, B, C, L, dtype):
    found = kernels.resources(kernel, C, B, L, dtype)
    record_property('resources', found)
    print(kernel, B, C, L, short(dtype), found)
    assert found['spilled']==0 and 0<found['registers']<255 and found['shared']<=227*1024
    assert found['hgmma' if found['tiles'][0]==64 else 'hmma']>0

@pytest.mark.parametrize('kernel, flags', [('forward',dict(KEEP=False)), ('forward',dict(WRITE=False)), ('backward',dict(PRODUCT=False)), ('backward',dict(GATES=False))])
def test_every_switch_compiles_for_sm90(kernel, flags):
    found = kernels.resources(kernel, 200, **flags)
    assert found['spilled']==0 and (found['hgmma']>0 or flags==dict(PRODUCT=False))

def test_a_position_alone_compiles_for_sm90():
    "B = L = 1, which Triton compiles in as constants"
    for kernel in ('forward','backward'): assert kernels.resources(kernel, 5, 1, 1)['spilled']==0

def test_spills_would_be_seen(monkeypatch):
    "The count is a real one: a tile far too large for the registers spills"
    monkeypatch.setattr(kernels, '_tiles', lambda *a: dict(BM=128, BN=64, BK=64, num_warps=4, num_stages=2))
    assert kernels.resources('forward', 64)['spilled']>0
