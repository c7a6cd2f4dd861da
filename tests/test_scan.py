"`scan` does what `scan_reference` does, however it is called."
import copy, json, random, subprocess, sys
from pathlib import Path
import pytest, torch, torch._dynamo.testing
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from sdn_nb.bench import published, saved_bytes
from sdn_nb.scan.compiled import compiler
from sdn_nb.scan import scan, scan_reference, choose_backend, register_backend, BACKENDS, DIRECTIONS

NAMES = ('y','x','weight_ih','weight_hh','bias_ih','bias_hh')
LAYOUTS = dict(contiguous=lambda x: x.contiguous(), channels_last=lambda x: x.contiguous(memory_format=torch.channels_last),
               transposed=lambda x: x.mT.contiguous().mT, strided=lambda x: torch.stack([x,x],-1)[...,0], expanded=lambda x: x[:1].expand_as(x))
SIZES = [(1,1),(1,7),(7,1),(2,2),(3,9),(9,3),(7,8),(13,11)]

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def cell(C, dtype=torch.float32): return [p.detach().requires_grad_() for p in nn.GRUCell(3*C, C, dtype=dtype).parameters()]

def run(f, x, params):
    "Output of `f` and the gradients of a random projection; zeros where there is none"
    x = x.detach().requires_grad_()
    y = f(x, *params)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, *torch.autograd.grad(y, [x,*params], g, allow_unused=True, materialize_grads=True)

def agree(got, want, tol):
    "Same shapes, and relative error at most `tol`; NaN fails"
    for name,g,w in zip(NAMES, got, want):
        assert g.shape==w.shape, name
        err = ((g.double()-w.double()).norm()/w.double().norm().clamp(min=1e-30)).item() if w.numel() and w.norm()>0 else g.double().abs().sum().item()
        if not err<=tol: raise AssertionError(f'{name}: relative error {err:.1e} > {tol:.0e}')

@pytest.mark.parametrize('mode', [{}, dict(recompute=True)], ids=['chosen','recompute'])
@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('size', SIZES, ids=lambda s: f'{s[0]}x{s[1]}')
def test_conformance_double(size, direction, mode):
    for B,C in ((2,3),(1,5),(0,2)):
        x,params = torch.randn(B,C,*size,dtype=torch.float64),cell(C,torch.float64)
        agree(run(lambda *a: scan(*a,direction,**mode), x, params), run(lambda *a: scan_reference(*a,direction), x, params), 1e-12)

@pytest.mark.parametrize('seed', range(12))
def test_conformance_random(seed):
    r = random.Random(seed)
    B,C,H,W,direction = r.randint(1,5),r.randint(1,40),r.randint(1,24),r.randint(1,24),r.choice(DIRECTIONS)
    layout,mode = r.choice(list(LAYOUTS)),r.choice([{}, dict(recompute=True)])
    x,params = LAYOUTS[layout](torch.randn(B,C,H,W)),cell(C)
    want = run(lambda *a: scan_reference(*a,direction), x.double(), [p.double().detach().requires_grad_() for p in params])
    agree(run(lambda *a: scan(*a,direction,**mode), x, params), want, 1e-4)

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('grad_layout', LAYOUTS)
def test_layouts(layout, grad_layout):
    x,params = LAYOUTS[layout](torch.randn(3,4,8,9,dtype=torch.float64)),cell(4,torch.float64)
    g = LAYOUTS[grad_layout](torch.randn(3,4,8,9,dtype=torch.float64))
    kept_x,kept_g = x.clone(),g.clone()
    both = []
    for f in (scan, scan_reference):
        xr = x.detach().requires_grad_()
        y = f(xr,*params,'up')
        both.append((y,*torch.autograd.grad(y,[xr,*params],g)))
    agree(*both, 1e-12)
    assert x.equal(kept_x) and g.equal(kept_g)

def test_backward_twice_through_one_graph():
    x,params = torch.randn(2,3,8,9,requires_grad=True),cell(3)
    y = scan(x,*params)
    first,second = (torch.autograd.grad(y.sum(), [x,*params], retain_graph=True) for _ in range(2))
    for a,b in zip(first,second): assert a.equal(b)

@pytest.mark.parametrize('needs', range(5), ids=NAMES[1:])
def test_one_gradient_alone(needs):
    args = [torch.randn(2,3,8,9),*[p.detach() for p in cell(3)]]
    grads = []
    for f in (scan, scan_reference):
        a = [t.clone().requires_grad_(i==needs) for i,t in enumerate(args)]
        f(*a,'left').square().sum().backward()
        assert [t.grad is not None for t in a]==[i==needs for i in range(5)]
        grads.append(a[needs].grad)
    assert_close(*grads, rtol=1e-4, atol=1e-4)

class Layer(nn.Module):
    "Two sweeps between two convolutions"
    def __init__(self, C=6):
        super().__init__()
        self.inp,self.out = nn.Conv2d(3,C,3,padding=1),nn.Conv2d(C,2,1)
        self.sweeps = nn.ModuleList(nn.ParameterList(cell(C)) for _ in range(2))
    def forward(self, x):
        h = torch.tanh(self.inp(x))
        for p,d in zip(self.sweeps, ('right','up')): h = scan(h,*p,d)
        return self.out(h)

@pytest.mark.parametrize('grad', [True,False], ids=['training','inference'])
def test_compiles_once(grad):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    with torch.set_grad_enabled(grad):
        for B in (2,5,3,8):
            x = torch.randn(B,3,8,9)
            y = compiled(x)
            assert_close(y, layer(x))
            if grad: y.sum().backward()
    assert counter.frame_count==1

def test_compiled_gradients():
    torch._dynamo.reset()
    layer = Layer().double()
    x = torch.randn(2,3,8,9,dtype=torch.float64)
    want = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    got = torch.autograd.grad(torch.compile(layer,fullgraph=True,backend='aot_eager')(x).square().sum(), list(layer.parameters()))
    for g,w in zip(got,want): assert_close(g,w)

@pytest.mark.parametrize('C', [8,160])
@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16], ids=['fp16','bf16'])
def test_autocast(dtype, C):
    x,params = torch.randn(2,C,9,8),cell(C)
    want = run(lambda *a: scan_reference(*a,'down'), x, params)
    def cast(*a):
        with torch.autocast('cpu', dtype): return scan(*a,'down')
    for x in (x, x.to(dtype)):
        got = run(cast, x, params)
        assert got[0].dtype==dtype and got[1].dtype==x.dtype and all(g.dtype==torch.float32 for g in got[2:])
        agree(got, want, 3e-3 if dtype==torch.float16 else 2e-2)

@pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])
@pytest.mark.parametrize('size', [(9,1),(7,2),(8,40)], ids=lambda s: f'{s[0]}x{s[1]}')
def test_bf16_operands(size, recompute):
    "Wide enough for products with bf16 operands, on thin maps and over several blocks"
    x,params = torch.randn(40,130,*size),[(p.detach()/4).requires_grad_() for p in cell(130)]
    def cast(*a):
        with torch.autocast('cpu', torch.bfloat16): return scan(*a,'up',recompute)
    agree(run(cast, x, params), run(lambda *a: scan_reference(*a,'up'), x, params), 2e-2)

def test_autocast_leaves_double_alone():
    x,params = torch.randn(2,3,8,9,dtype=torch.float64),cell(3,torch.float64)
    with torch.autocast('cpu', torch.bfloat16): y = scan(x,*params)
    assert_close(y, scan_reference(x,*params))

def test_backward_inside_autocast():
    x,params = torch.randn(2,3,8,9,requires_grad=True),cell(3)
    want = torch.autograd.grad(scan(x,*params).sum(), [x,*params])
    y = scan(x,*params).sum()
    with torch.autocast('cpu', torch.bfloat16): got = torch.autograd.grad(y, [x,*params])
    for g,w in zip(got,want): assert g.equal(w)

def test_inference_mode():
    x,params = torch.randn(2,3,8,9),cell(3)
    with torch.inference_mode(): y = scan(x,*params)
    assert y.is_inference()
    assert_close(y, scan_reference(x,*params).detach())

@pytest.mark.parametrize('reentrant', [True,False], ids=['reentrant','not reentrant'])
def test_checkpoint(reentrant):
    x,params = torch.randn(2,3,8,9,dtype=torch.float64),cell(3,torch.float64)
    grads = []
    for f in (lambda *a: checkpoint(scan,*a,'left',use_reentrant=reentrant), lambda *a: scan_reference(*a,'left')):
        for t in (x.requires_grad_(),*params): t.grad = None
        f(x,*params).square().sum().backward()
        grads.append([t.grad for t in (x,*params)])
    for g,w in zip(*grads): assert_close(g, w)

def test_deepcopy():
    layer = Layer()
    x = torch.randn(2,3,8,9)
    layer(x).sum().backward()
    twin = copy.deepcopy(layer)
    assert twin(x).equal(layer(x))
    twin(x).sum().backward()

def test_share_memory():
    layer = Layer().share_memory()
    x = torch.randn(2,3,8,9).share_memory_()
    layer(x).sum().backward()
    assert all(p.is_shared() for p in layer.parameters())

def test_meta():
    y = scan(torch.empty(2,3,8,9,device='meta'), *[p.detach().to('meta') for p in cell(3)])
    assert y.shape==(2,3,8,9) and y.is_meta

def test_no_gradient_nothing_kept():
    x,params = torch.randn(2,3,8,9),[p.detach() for p in cell(3)]
    assert not scan(x,*params).requires_grad
    _,*saved = torch.ops.sdn_nb.scan(x,*params,'right',False,'torch')
    assert all(s.numel()==0 for s in saved)

@pytest.mark.parametrize('shape', [(8,64,32,32),(32,16,8,8)], ids=lambda s: 'x'.join(map(str,s)))
def test_kept_for_backward(shape):
    x,params = torch.randn(shape,requires_grad=True),cell(shape[1])
    peer = saved_bytes(published, x, params)
    assert saved_bytes(scan, x, params) <= .65*peer
    assert saved_bytes(lambda *a: scan(*a,recompute=True), x, params) <= .25*peer

def test_published_is_a_sound_peer():
    x,params = torch.randn(2,3,8,9,dtype=torch.float64),cell(3,torch.float64)
    agree(run(published,x,params), run(scan_reference,x,params), 1e-12)

@pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])
def test_double_backward(recompute):
    "More of it in test_transforms.py"
    x,params = torch.randn(2,3,8,9,requires_grad=True,dtype=torch.float64),cell(3,torch.float64)
    both = []
    for f in (lambda *a: scan(*a, recompute=recompute), scan_reference):
        g, = torch.autograd.grad(f(x,*params).square().sum(), x, create_graph=True)
        both.append(torch.autograd.grad(g.sum(), [x,*params]))
    for a,b in zip(*both): assert_close(a, b)

def test_the_way_back_by_itself_has_no_derivative_and_says_so():
    x,params = torch.randn(2,3,8,9,requires_grad=True),cell(3)
    y,*saved = torch.ops.sdn_nb.scan(x,*params,'right',True,'torch')
    g,*_ = torch.ops.sdn_nb.scan_backward(torch.ones_like(y).requires_grad_(), x, y, *saved, *params, 'right', 'torch')
    with pytest.raises(RuntimeError, match='scan with create_graph=True, or scan_reference'): g.sum().backward()

def test_unknown_backend():
    with pytest.raises(ValueError, match="one of .*'torch'.* got 'abacus'"): scan(torch.randn(1,3,8,9),*cell(3),backend='abacus')

@pytest.fixture
def abacus():
    "A backend that runs nowhere"
    def never(*args): raise AssertionError('called')
    register_backend('abacus', never, never, never, why_not=lambda x: 'it wants beads. Buy some.', priority=99)
    yield
    del BACKENDS['abacus']

def test_backend_that_cannot_run(abacus):
    x,params = torch.randn(1,3,8,9),cell(3)
    with pytest.raises(RuntimeError, match="'abacus' can't run.*Buy some"): scan(x,*params,backend='abacus')
    assert_close(scan(x,*params), scan_reference(x,*params))

def test_another_backend_is_chosen_and_served():
    "The one with the highest priority that can run and suits is chosen; it gets and gives what the contract says"
    calls,torch_ = [],BACKENDS['torch']
    def forward(*a): calls.append('forward'); y,s = torch_.forward(*a); return y,[*s,*(t[:1].clone() for t in s)]
    def backward(dy, x, y, saved, *a): calls.append(('backward',len(saved))); return torch_.backward(dy, x, y, saved[:1], *a)
    register_backend('twin', forward, backward, lambda x,d: [t for b in torch_.buffers(x,d) for t in (b,b[:1].clone())],
                     suits=lambda x: x.dtype==torch.float32, priority=50)
    try:
        x,params = torch.randn(2,3,8,9),cell(3)
        agree(run(scan,x,params), run(scan_reference,x,params), 1e-5)
        run(lambda *a: scan(*a,recompute=True), x, params)
        assert calls==['forward',('backward',2),'forward',('backward',0)]
        run(scan, x.double(), cell(3,torch.float64))
        assert len(calls)==4
    finally: del BACKENDS['twin']

def test_priority_and_readiness_decide():
    "Of equals the latest; one that can't be made ready is passed over unasked, and named when it is asked for"
    asked,x = [],torch.randn(1,3,40,40)
    def prepare(name, why): return lambda: asked.append(name) or why
    with_priority = {n: dict(prepare=prepare(n, why), priority=p) for n,why,p in (('first',None,30),('second',None,30),('broken','it is broken',40))}
    try:
        for n,kw in with_priority.items(): register_backend(n, None, None, None, **kw)
        assert list(BACKENDS)[:3]==['broken','second','first'] and not asked
        assert choose_backend(x)=='second' and asked==['broken','second']
        with pytest.raises(RuntimeError, match="'broken' can't run.*it is broken"): choose_backend(x, 'broken')
    finally:
        for n in with_priority: BACKENDS.pop(n, None)

def test_a_plain_loop_serves_the_smallest_maps():
    "The rule is the backend's own; a named backend and `recompute` are obeyed"
    C = 8
    loop = lambda **kw: 'sdn_nb_scan' not in scan(torch.randn(40,C,3,kw.pop('lines')).requires_grad_(), *cell(C), **kw).grad_fn.name()
    few,many = [loop(lines=n) for n in (2,3)],[loop(lines=2, **kw) for kw in (dict(backend='torch'), dict(recompute=True))]
    assert few[0] and not any(many)
    if choose_backend(torch.randn(1,C,3,3))=='cpp': assert not few[1]
    small = lambda lines, keep: BACKENDS['torch'].too_small(torch.randn(40,C,3,lines), lines, keep)
    assert [small(n, keep) for keep in (True,False) for n in (6,7,12,13)]==[True,False,False,False, True,True,True,False]

FRESH = """
import json, subprocess, sys, warnings
import torch
def state(): return [torch.get_num_threads(), torch.get_default_dtype().__str__(), torch.initial_seed(), torch.get_float32_matmul_precision(), len(warnings.filters), torch.is_grad_enabled()]
before,known,ran = state(),set(sys.modules),[]
subprocess.Popen.__init__ = lambda self,*a,**k: ran.append(a) or sys.exit('a process was started')
from sdn_nb.scan import scan, BACKENDS
heavy = [m for m in ('fastai','matplotlib','torch._dynamo','torch._inductor','sklearn') if m in set(sys.modules)-known]
print(json.dumps(dict(state=before==state(), backends=list(BACKENDS), heavy=heavy, cuda=torch.cuda.is_initialized())))
"""

def test_a_fresh_interpreter_has_every_backend():
    "Whatever else is imported; importing compiles nothing, asks no GPU, brings no other library along, and changes no state"
    out = subprocess.run([sys.executable,'-W','error','-c',FRESH], capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    assert json.loads(out.stdout)==dict(state=True, backends=['triton','cpp','torch','triton_lines'], heavy=[], cuda=False)

@pytest.mark.parametrize('wrong,message', [(lambda x,p: scan(x[0],*p),'feature map'), (lambda x,p: scan(x,*p,'sideways'),'direction'),
    (lambda x,p: scan(x,p[1],*p[1:]),'weight_ih'), (lambda x,p: scan(x,*p[:3],p[3][:2]),'bias_hh'), (lambda x,p: scan(x.half(),*p),'weight_ih.*float32.*float16')],
    ids=['map','direction','weight','bias','dtype'])
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message): wrong(torch.randn(2,3,8,9), cell(3))

UNFIT = dict(meta=(lambda t: t.to('meta'),'is on meta, but `x` is on cpu'), complex=(lambda t: t+1j,'got torch.complex64. Take .real'),
             integer=(lambda t: t.long(),'got torch.int64. Convert it, e.g. with .float'), sparse=(lambda t: t.to_sparse(),'got torch.sparse_coo. Convert it, e.g. with .to_dense'),
             nothing=(lambda t: None,'got NoneType. Make it one'), array=(lambda t: t.numpy(),'got ndarray. Make it one'))

@pytest.mark.parametrize('f', [scan,scan_reference], ids=['scan','reference'])
@pytest.mark.parametrize('unfit', UNFIT)
def test_arguments_of_no_use(f, unfit):
    "Named, with what was given and what to do"
    x,params = torch.randn(2,3,8,9),[p.detach() for p in cell(3)]
    make,said = UNFIT[unfit]
    for i,name in enumerate(NAMES[2:]):
        with pytest.raises(ValueError, match=f'^scan: `{name}` .*{said}'): f(x, *(make(p) if j==i else p for j,p in enumerate(params)))
    with pytest.raises(ValueError, match='`x`.*' + said.replace('is on meta, but `x` is on cpu','is on meta')): f(make(x), *params)

def test_nested_maps():
    nested = torch.nested.nested_tensor([torch.randn(3,8,9),torch.randn(3,5,4)])
    with pytest.raises(ValueError, match='`x` must be .* got a nested one. Pad it'): scan(nested, *cell(3))

@pytest.mark.parametrize('unfit', ['meta','complex','integer'])
def test_compiled_and_of_no_use(unfit):
    torch._dynamo.reset()
    x,(weight,*rest) = torch.randn(2,3,8,9),[p.detach() for p in cell(3)]
    with pytest.raises(Exception, match='weight_ih'): torch.compile(scan, backend='aot_eager')(x, UNFIT[unfit][0](weight), *rest)

def test_subclasses_work():
    x,params = torch.randn(2,3,8,9),cell(3)
    class Image(torch.Tensor): pass
    y = scan(x.as_subclass(Image), *params)
    assert type(y) is Image and y.as_subclass(torch.Tensor).equal(scan(x, *params))
    turned = torch.complex(x,x).conj().imag          # its numbers in memory have the other sign
    assert turned.is_neg() and scan(turned, *params).equal(scan(-x, *params))

@pytest.mark.parametrize('direction', DIRECTIONS)
def test_gradient_lies_as_its_neighbours_want_it(direction):
    "channels_last where the map came from a layer, lines where it came from another sweep"
    seen = {}
    x,params = torch.randn(2,3,8,9,requires_grad=True),cell(3)
    h = x.tanh()
    h.register_hook(lambda g: seen.update(first=g))
    y = scan(h, *params, direction, backend='torch')
    y.register_hook(lambda g: seen.update(between=g))
    scan(y, *params, direction, backend='torch').sum().backward()
    assert seen['first'].is_contiguous(memory_format=torch.channels_last)
    assert seen['between'].stride()==y.stride()

@pytest.mark.parametrize('layout', [torch.contiguous_format,torch.channels_last], ids=['planes','channels_last'])
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_compiled_sweep_keeps_layouts(direction, layout):
    "channels_last out, whatever goes in; the gradient lies as the map does"
    if compiler() is None: pytest.skip('there is no C++ compiler')
    x,params = torch.randn(2,3,8,9).contiguous(memory_format=layout).requires_grad_(),cell(3)
    y = scan(x, *params, direction, backend='cpp')
    dx, = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.stride()==x.stride()

def test_a_notebook_leaves_the_operation_alone():
    "To define an operation twice would free the first, while this module still calls it"
    from torch._library.custom_ops import OPDEF_TO_LIB
    notebook = Path(__file__).parents[1]/'nbs/engine/op.ipynb'
    if not notebook.exists(): pytest.skip('the notebooks are part of the repository')
    before = {k: v for k,v in OPDEF_TO_LIB.items() if k.startswith('sdn_nb::')}
    assert len(before)==2
    cells = (''.join(c['source']) for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code')
    space = dict(__name__='__main__')
    for source in cells:
        if source.startswith('#| export'): exec(source, space)
    assert {k: v for k,v in OPDEF_TO_LIB.items() if k.startswith('sdn_nb::')}==before
    assert hasattr(torch.ops.sdn_nb_notebook, 'scan_backward')
