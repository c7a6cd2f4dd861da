"Derivatives of every kind and the transforms of torch.func, through a sweep and through layers, against the literal loop in double precision."
import pytest, torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from sdn_nb.bench import saved_bytes
from sdn_nb.layers import ResSDN, SDNLayer
from sdn_nb.scan import DIRECTIONS, scan, scan_reference

double = dict(dtype=torch.float64)

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def cell(C, dtype=torch.float64): return [p.detach().requires_grad_() for p in nn.GRUCell(3*C, C, dtype=dtype).parameters()]
def weight(t): return torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view(t.shape)     # no symmetry to hide behind

# forward mode

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('size', [(1,1),(1,6),(6,1),(4,5)], ids=lambda s: f'{s[0]}x{s[1]}')
def test_tangents(size, direction):
    "Of the map and of every parameter, against finite differences and the literal loop"
    args = torch.randn(2,3,*size,**double),*[p.detach() for p in cell(3)]
    tangents = tuple(torch.randn_like(a) for a in args)
    got = jvp(lambda *a: scan(*a, direction), args, tangents)
    for g,w in zip(got, jvp(lambda *a: scan_reference(*a, direction), args, tangents)): assert_close(g, w)
    ahead,behind = (scan(*(a+e*t for a,t in zip(args,tangents)), direction) for e in (1e-6,-1e-6))
    assert_close(got[1], (ahead-behind)/2e-6, rtol=1e-5, atol=1e-7)
    assert got[1].abs().max()>.1

def test_dual_numbers():
    "Forward mode without torch.func, with parameters that require a gradient"
    x,v,params = torch.randn(2,3,8,9,**double),torch.randn(2,3,8,9,**double),cell(3)
    with forward_ad.dual_level():
        y,t = forward_ad.unpack_dual(scan(forward_ad.make_dual(x, v), *params))
        plain = scan(x, *params)                             # no tangent: numbers as ever
    want = jvp(lambda x: scan_reference(x, *params), (x,), (v,))
    assert_close((y,t), want)
    assert_close(plain, want[0])

@pytest.mark.parametrize('kind', [SDNLayer,ResSDN])
def test_tangents_of_a_layer(kind):
    layer = kind(3, 4, n_features=4, kernel_size=4, stride=2).double()
    x,v = torch.randn(2,1,3,4,6,**double)
    got = jvp(layer, (x,), (v,))[1]
    assert_close(got, (layer(x+1e-6*v)-layer(x-1e-6*v))/2e-6, rtol=1e-4, atol=1e-7)
    assert_close(linearize(layer, x)[1](v), got)

@pytest.mark.parametrize('op', ['scan','scan_backward'])
def test_the_operations_refuse_tangents(op):
    "They would drop them; the message says what to call"
    x,params = torch.randn(2,3,4,5,**double),[p.detach() for p in cell(3)]
    y,s0,s1 = torch.ops.sdn_nb.scan(x,*params,'up',True,'torch')
    call = dict(scan=lambda x: torch.ops.sdn_nb.scan(x,*params,'up',False,'torch')[0],
                scan_backward=lambda dy: torch.ops.sdn_nb.scan_backward(dy,x,y,s0,s1,*params,'up','torch')[0])[op]
    with pytest.raises(RuntimeError, match='no derivative in forward mode. Call sdn_nb.scan.scan'): jvp(call, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match='no derivative in forward mode'): call(forward_ad.make_dual(x, x))

def test_a_named_backend_is_not_replaced_in_silence():
    x,params = torch.randn(2,3,8,9),[p.detach() for p in cell(3, torch.float32)]
    f = lambda x: scan(x, *params, backend='torch')
    for transformed in (lambda: jvp(f, (x,), (x,)), lambda: vmap(f)(x[None]), lambda: grad(lambda x: f(x).sum())(x)):
        with pytest.raises(RuntimeError, match="scan: backend 'torch' can't be .* Leave `backend` out"): transformed()

# the gradient of the gradient

@pytest.mark.parametrize('options', [{}, dict(recompute=True), dict(backend='torch')], ids=['chosen','recompute','named'])
@pytest.mark.parametrize('direction', ['right','up'])   # a row and a column, there and back
def test_gradcheck_and_gradgradcheck(direction, options):
    x,params = torch.randn(2,2,3,3,requires_grad=True,**double),cell(2)
    f = lambda *a: scan(*a, direction, **options)
    assert torch.autograd.gradcheck(f, (x,*params), check_forward_ad='backend' not in options, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x,*params))

def test_forward_over_reverse():
    x,params = torch.randn(1,2,3,4,requires_grad=True,**double),cell(2)
    assert torch.autograd.gradgradcheck(lambda *a: scan(*a,'left'), (x,*params), check_fwd_over_rev=True)

def derivatives(f, args, n):
    "Gradients of all arguments of order 1 to n, each of a projection of the last"
    y,found = f(*args),[]
    for order in range(n):
        y = torch.autograd.grad((y*weight(y)).sum(), args, create_graph=order<n-1)
        found += y
        y = torch.cat([g.flatten() for g in y])
    return found

@pytest.mark.parametrize('options', [{}, dict(recompute=True), dict(backend='torch')], ids=['chosen','recompute','named'])
def test_three_orders(options):
    args = torch.randn(2,3,8,9,requires_grad=True,**double),*cell(3)
    for g,w in zip(derivatives(lambda *a: scan(*a,'up',**options), args, 3), derivatives(lambda *a: scan_reference(*a,'up'), args, 3)): assert_close(g, w)

def test_gradient_penalty_of_a_layer():
    "As one trains a critic: a loss of gradients of the input, and of nothing else, reaches every weight"
    layer,x = ResSDN(3, 2, n_features=4).double(),torch.randn(2,3,8,9,requires_grad=True,**double)
    g, = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    got = torch.autograd.grad(g.square().sum(), list(layer.sdn.correction.parameters()))
    def penalty(weights): return grad(lambda x: functional_call(layer, weights, (x,)).sum())(x.detach()).square().sum()
    want = grad(penalty)({n: p.detach() for n,p in layer.named_parameters()})
    for (n,_),g in zip(layer.sdn.correction.named_parameters(), got): assert_close(g, want['sdn.correction.'+n]); assert g.abs().max()>0

def test_only_some_gradients_again():
    x,params = torch.randn(2,3,8,9,requires_grad=True,**double),[p.detach() for p in cell(3)]
    for some in (dict(x=True), dict(w=True)):
        xs,w = x.detach().requires_grad_('x' in some),params[0].clone().requires_grad_('w' in some)
        leaf = xs if 'x' in some else w
        both = []
        for f in (scan,scan_reference):
            g, = torch.autograd.grad(f(xs,w,*params[1:]).square().sum(), leaf, create_graph=True)
            both.append(torch.autograd.grad(g.square().sum(), leaf)[0])
        assert_close(*both)

def test_gradients_of_half_precision_again():
    x,params = torch.randn(2,8,8,9,requires_grad=True),cell(8, torch.float32)
    def twice(f):
        with torch.autocast('cpu', torch.bfloat16): y = f(x, *params)
        g, = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        return g,*torch.autograd.grad(g.square().sum(), params)
    got = twice(scan)
    g, = torch.autograd.grad(scan_reference(x, *params).square().sum(), x, create_graph=True)
    want = g,*torch.autograd.grad(g.square().sum(), params)
    for a,b in zip(got, want): assert a.dtype==torch.float32 and (a-b).norm()<.03*b.norm()

def test_training_keeps_its_backward():
    "Without create_graph the backend computes the gradient, and no step of a loop is recorded"
    x,params = torch.randn(2,3,32,32,requires_grad=True),cell(3, torch.float32)
    ran = []
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ran.append(str(func)); return func(*args, **(kwargs or {}))
    with Watch(): scan(x, *params, backend='torch').sum().backward()
    assert any('scan_backward' in f for f in ran) and not any('tanh' in f for f in ran)
    assert saved_bytes(scan, x, params) <= 6.2*x.nbytes

# transforms

def per_sample(layer):
    weights = {n: p.detach() for n,p in layer.named_parameters()}
    return weights,lambda weights,x: (lambda y: (y*weight(y)).sum())(functional_call(layer, weights, (x[None],)))

@pytest.mark.parametrize('kind', [SDNLayer,ResSDN])
def test_grad_vmap_and_gradients_per_sample(kind):
    layer,x = kind(3, 2, n_features=4).double(),torch.randn(5,3,6,7,**double)
    weights,f = per_sample(layer)
    want = [torch.autograd.grad(f(dict(layer.named_parameters()), one), list(layer.parameters())) for one in x]
    for n,w in zip(weights, want[0]): assert_close(grad(f)(weights, x[0])[n], w)
    each = vmap(grad(f), (None,0))(weights, x)
    for n,w in zip(weights, zip(*want)): assert_close(each[n], torch.stack(w))
    assert_close(vmap(lambda one: functional_call(layer, weights, (one[None],))[0])(x), layer(x))
    assert_close(vmap(layer, 1, 1)(x[:,None]), layer(x)[:,None])

def test_ensemble():
    "Many layers on one map"
    layers,x = [SDNLayer(3, 2, n_features=4).double() for _ in range(3)],torch.randn(2,3,6,7,**double)
    weights,_ = stack_module_state(layers)
    assert_close(vmap(lambda w: functional_call(layers[0], w, (x,)))(weights), torch.stack([l(x) for l in layers]))

def test_vmap_below_autograd():
    layer,x = SDNLayer(3, 2, n_features=4).double(),torch.randn(4,2,3,6,7,**double)
    got,want = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (vmap(layer)(x), layer(x.flatten(0,1))))
    for g,w in zip(got, want): assert_close(g, w)

def test_jacobians():
    layer,x = SDNLayer(2, 2, n_features=3).double(),torch.randn(1,2,3,4,**double)
    want = torch.autograd.functional.jacobian(layer, x)
    for J in (jacrev(layer)(x), jacfwd(layer)(x), torch.autograd.functional.jacobian(layer, x, vectorize=True),
              torch.autograd.functional.jacobian(layer, x, vectorize=True, strategy='forward-mode')): assert_close(J, want)

def test_hessians():
    params,x = [p.detach() for p in cell(2)],torch.randn(1,2,3,4,**double)
    f,r = (lambda x,s=s: (s(x,*params)*weight(x)).square().sum() for s in (scan,scan_reference))
    want = torch.autograd.functional.hessian(r, x)
    for H in (hessian(f)(x), torch.autograd.functional.hessian(f, x), torch.autograd.functional.hessian(f, x, vectorize=True),
              torch.autograd.functional.hessian(f, x, vectorize=True, outer_jacobian_strategy='forward-mode'), jacrev(jacrev(f))(x)): assert_close(H, want)

@pytest.mark.parametrize('backend', [None,'torch'])
def test_several_gradients_at_once(backend):
    "Whatever computed the sweep"
    x,params = torch.randn(2,3,8,9,requires_grad=True,**double),cell(3)
    y = scan(x.tanh(), *params, 'left', backend=backend)
    dy = torch.randn(4, *y.shape, **double)
    at_once = torch.autograd.grad(y, (x,*params), dy, is_grads_batched=True, retain_graph=True)
    for i,d in enumerate(dy):
        for a,w in zip(at_once, torch.autograd.grad(y, (x,*params), d, retain_graph=True)): assert_close(a[i], w)

def test_tangents_of_a_gradient_alone():
    "The sweep was computed before forward mode began"
    x,params = torch.randn(2,3,8,9,requires_grad=True,**double),cell(3)
    y = scan(x, *params, backend='torch')
    dy,v = torch.randn(2,*y.shape,**double)
    with forward_ad.dual_level():
        g, = torch.autograd.grad(y, x, forward_ad.make_dual(dy, v), retain_graph=True)
        t = forward_ad.unpack_dual(g).tangent
    assert_close(t, torch.autograd.grad(y, x, v)[0])

def test_vjp_under_autocast():
    x,params = torch.randn(2,8,8,9),[p.detach() for p in cell(8, torch.float32)]
    with torch.autocast('cpu', torch.bfloat16): y,back = vjp(lambda *a: scan(*a), x, *params)
    assert y.dtype==torch.bfloat16
    want,back_ = vjp(lambda *a: scan_reference(*a), x, *params)
    assert (y.float()-want).norm()<.01*want.norm()
    for g,w in zip(back(torch.ones_like(y)), back_(torch.ones_like(want))): assert g.dtype==torch.float32 and (g-w).norm()<.02*w.norm()

def test_compiled_gradient():
    torch._dynamo.reset()
    params,x = [p.detach() for p in cell(3)],torch.randn(2,3,8,9,**double)
    f = lambda x: grad(lambda x: scan(x,*params).square().sum())(x)
    assert_close(torch.compile(f, backend='aot_eager', fullgraph=True)(x), grad(lambda x: scan_reference(x,*params).square().sum())(x))

def test_compiled_outside_of_a_transform_is_compiled_anew_inside():
    torch._dynamo.reset()
    params,x = [p.detach() for p in cell(3)],torch.randn(2,3,20,30,**double)
    compiled = torch.compile(lambda x: scan(x,*params), backend='aot_eager')
    assert_close(compiled(x), scan(x,*params))
    assert_close(vmap(compiled)(x[None])[0], scan(x,*params))
    assert_close(grad(lambda x: compiled(x).square().sum())(x), grad(lambda x: scan_reference(x,*params).square().sum())(x))

# arithmetic

def flops(f):
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()

@pytest.mark.parametrize('shape', [(2,16,9,11),(1,8,1,12),(3,8,12,1),(2,64,20,16)], ids=lambda s: 'x'.join(map(str,s)))
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_flops_are_those_of_the_literal_loop(shape, direction):
    x,params = torch.randn(shape, requires_grad=True),cell(shape[1], torch.float32)
    B,C,H,W = shape
    lines,positions = (W,H) if direction in ('right','left') else (H,W)
    def there(f): return flops(lambda: f(x, *params, direction))
    def both(f): return flops(lambda: f(x, *params, direction).sum().backward())
    for f in (scan, lambda *a: scan(*a, backend='torch')):
        assert there(f)==there(scan_reference)==24*C*C*B*positions*(lines-1) and both(f)==both(scan_reference)
    again = both(lambda *a: scan(*a, recompute=True, backend='torch'))
    assert again==both(scan_reference)+there(scan_reference)

def test_flops_of_a_layer():
    layer,x = SDNLayer(8, 4, n_features=16),torch.randn(2,8,40,40)
    convolutions = 2*2*1600*(8*16*9+16*4)
    assert flops(lambda: layer(x))==convolutions+4*24*16**2*2*40*39
