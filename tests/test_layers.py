"""Layers seen from outside: who hears whom, and the numbers, against a GRUCell walked pixel by pixel from the state_dict alone."""
import copy, pickle
from functools import cache

import pytest, torch, torch._dynamo.testing, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from sdn_nb.layers import LAYERS, ResSDN, SDNLayer, SubLayer, layer_name, register_layer
from sdn_nb.scan.compiled import compiler
from sdn_nb.scan import DIRECTIONS, op, scan
from sdn_nb.vae import SDNVAE, VAEConfig

BACK = dict(right=(0,-1), left=(0,1), down=(-1,0), up=(1,0))    # one step back along the sweep, as (row, column)
SIZES = [(1,1), (1,6), (6,1), (2,7), (7,2), (5,4)]
gate_names = 'weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'
SDN_KEYS = ['project_in.weight', 'project_in.bias', *[f'correction.{i}.{n}' for i in range(4) for n in gate_names], 'project_out.weight', 'project_out.bias']
size_ids = dict(argvalues=SIZES, ids=lambda s: f'{s[0]}x{s[1]}')
double = dict(dtype=torch.float64)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def previous(i, j, H, W, direction):
    "The three neighbours on the previous line, rows or columns ascending; None outside; nothing at all on the first line"
    di,dj = BACK[direction]
    if not (0<=i+di<H and 0<=j+dj<W): return []
    three = [(i+di+k*abs(dj), j+dj+k*abs(di)) for k in (-1,0,1)]
    return [p if 0<=p[0]<H and 0<=p[1]<W else None for p in three]

@cache
def heard(i, j, H, W, direction):
    "All positions that (i, j) hears: itself, and what its neighbours on the previous line hear"
    return frozenset({(i,j)}).union(*(heard(*p, H, W, direction) for p in previous(i, j, H, W, direction) if p))

def reach(f, i, j, H, W, C=3):
    x = torch.randn(1, C, H, W, requires_grad=True, **double)
    g, = torch.autograd.grad(f(x)[0,:,i,j].sum(), x)
    return {tuple(p) for p in g.abs().sum((0,1)).nonzero().tolist()}

@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('size', **size_ids)
def test_every_position_hears_its_cone_and_no_more(size, direction):
    layer = SubLayer(3, direction).double()
    for i in range(size[0]):
        for j in range(size[1]): assert reach(layer, i, j, *size)==heard(i, j, *size, direction), (i,j)

@pytest.mark.parametrize('size', **size_ids)
@pytest.mark.parametrize('kind', [SDNLayer, ResSDN])
def test_one_layer_hears_the_whole_map(kind, size):
    layer = kind(3, 2, n_features=4, kernel_size=1, padding=0).double()     # 1x1 convolutions carry nothing from place to place
    for i in range(size[0]):
        for j in range(size[1]): assert len(reach(layer, i, j, *size))==size[0]*size[1], (i,j)

@pytest.mark.parametrize('kind,keys', [(SDNLayer, SDN_KEYS), (ResSDN, [*('sdn.'+k for k in SDN_KEYS), 'conv.weight', 'conv.bias'])])
@pytest.mark.parametrize('upsample', [False, True])
def test_keys_and_shapes(kind, keys, upsample):
    layer = kind(3, 5, n_features=8, kernel_size=4, stride=2, upsample=upsample)
    state = {k.removeprefix('sdn.'): tuple(v.shape) for k,v in layer.state_dict().items()}
    assert list(layer.state_dict())==keys
    assert state['project_in.weight']==((3,8,4,4) if upsample else (8,3,4,4)) and state['project_out.weight'][1:]==(8,1,1)
    assert [state[f'correction.3.{n}'] for n in gate_names]==[(24,24), (24,8), (24,), (24,)]

def walk(x, state, direction):
    "One sweep, a GRUCell at each place; the order of places is that of need"
    (B,C,H,W),y = x.shape,{}
    cell = torch.nn.GRUCell(3*C, C, **double)
    def at(i, j):
        if (i,j) not in y:
            three = previous(i, j, H, W, direction)
            u = torch.cat([at(*p) if p else x.new_zeros(B, C) for p in three], 1) if three else None
            y[i,j] = x[:,:,i,j] if u is None else torch.func.functional_call(cell, state, (u, x[:,:,i,j]))
        return y[i,j]
    return torch.stack([torch.stack([at(i, j) for j in range(W)], -1) for i in range(H)], -2)

def by_hand(x, state, directions, stride, upsample):
    "What an SDNLayer, or with a `conv` in its state a ResSDN, should give"
    sdn = {k.removeprefix('sdn.'): v for k,v in state.items()}
    conv = lambda name: (F.conv_transpose2d if upsample else F.conv2d)(x, sdn[name+'.weight'], sdn[name+'.bias'], stride=stride, padding=1)
    h = conv('project_in').tanh()
    for i,d in enumerate(directions): h = walk(h, {n: sdn[f'correction.{i}.{n}'] for n in gate_names}, d)
    y = torch.einsum('of,bfhw->bohw', sdn['project_out.weight'][:,:,0,0], h) + sdn['project_out.bias'][:,None,None]
    if 'conv.weight' not in state: return y
    n = y.shape[1]//2
    gate = 1/(1+torch.exp(-y[:,n:]))
    return gate*conv('conv') + (1-gate)*y[:,:n]

@pytest.mark.parametrize('directions', [(), 'up', ('left','left'), ('down','up','left'), DIRECTIONS], ids=lambda d: d if isinstance(d, str) else '-'.join(d) or 'none')
@pytest.mark.parametrize('kw', [{}, dict(kernel_size=4, stride=2), dict(kernel_size=4, stride=2, upsample=True)], ids=['same','halve','double'])
@pytest.mark.parametrize('kind', [SDNLayer, ResSDN])
def test_value_and_every_gradient(kind, kw, directions):
    layer,x = kind(2, 3, n_features=3, directions=directions, **kw).double(),torch.randn(2, 2, 4, 6, requires_grad=True, **double)
    dirs = (directions,) if isinstance(directions, str) else directions
    ours,theirs = layer(x),by_hand(x, dict(layer.named_parameters()), dirs, kw.get('stride', 1), kw.get('upsample', False))
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    leaves,weight = [x, *layer.parameters()],torch.randn_like(ours)
    for a,b in zip(*(torch.autograd.grad((y*weight).sum(), leaves) for y in (ours,theirs))): assert_close(a, b, rtol=1e-9, atol=1e-11)

def test_images_of_a_batch_and_their_memory_layout_do_not_matter():
    layer,x = ResSDN(3, 4, n_features=5).double(),torch.randn(4, 3, 5, 6, **double)
    for other in torch.cat([layer(v[None]) for v in x]), layer(x.to(memory_format=torch.channels_last)), layer(x.mT.contiguous().mT): assert_close(other, layer(x))

def test_copies_are_equal_and_independent(tmp_path):
    layer,x = ResSDN(3, 4, n_features=5, kernel_size=4, stride=2, upsample=True),torch.randn(2, 3, 4, 5)
    save_file(layer.state_dict(), tmp_path/'layer.safetensors')
    loaded = ResSDN(3, 4, n_features=5, kernel_size=4, stride=2, upsample=True)
    loaded.load_state_dict(load_file(tmp_path/'layer.safetensors'))
    before = layer(x)
    for other in loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert torch.equal(other(x), before)
        torch.nn.init.zeros_(other.sdn.correction[0].weight_ih)
        assert torch.equal(layer(x), before) and not torch.equal(other(x), before)

def test_half_precision_stays_near():
    x,cell = torch.randn(2, 4, 6, 5),[p.detach() for p in SubLayer(4).parameters()]
    assert_close(scan(x.bfloat16(), *(p.bfloat16() for p in cell), 'left').float(), scan(x, *cell, 'left'), rtol=.05, atol=.05)

@pytest.mark.skipif(compiler() is None, reason="PyTorch's compiler wants a C++ compiler")
def test_compiles_once_by_default():
    "By PyTorch's own compiler, for batches of every number; outputs and gradients as without it"
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('inductor')
    layer = ResSDN(3, 5, n_features=8)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for B in (2,5,3):
        x = torch.randn(B, 3, 9, 8)
        (y,want),grads = (compiled(x),layer(x)),[]
        for out in (y,want): grads.append(torch.autograd.grad(out.square().sum(), list(layer.parameters())))
        assert_close(y, want, rtol=1e-4, atol=1e-5)
        for g,w in zip(*grads): assert_close(g, w, rtol=1e-3, atol=1e-4)
    assert counter.frame_count==1

# layers by name

def own(in_channels, out_channels, n_features, directions, **k): return torch.nn.Conv2d(in_channels, out_channels, 1)

@pytest.fixture
def layers():
    before = dict(LAYERS)
    yield LAYERS
    LAYERS.clear(); LAYERS.update(before)

def test_layers_have_names(layers):
    assert layers==dict(ResSDN=ResSDN, SDNLayer=SDNLayer) and layer_name(ResSDN)=='ResSDN' and list(layers)==['ResSDN','SDNLayer']
    register_layer('mine', own)
    assert layers['mine'] is own and layer_name(own)=='own' and layers['own'] is own and layer_name('nowhere')=='nowhere'
    register_layer('mine', own)

@pytest.mark.parametrize('name', ['ResSDN', 'a b', '', '3d', 'a-b', None, 3], ids=str)
def test_names_refused(layers, name):
    before = dict(layers)
    with pytest.raises(ValueError, match="register_layer: .*('ResSDN' belongs to|must be a plain word)"): register_layer(name, own)
    assert layers==before

@pytest.mark.parametrize('factory', [None, 'ResSDN', 3], ids=str)
def test_factories_refused(layers, factory):
    with pytest.raises(ValueError, match='`factory` must be a class or a function'): register_layer('mine', factory)

# arguments of a convolution

@pytest.mark.parametrize('kind', [SDNLayer,ResSDN])
def test_the_number_of_features_is_named(kind):
    "A third number would read like a kernel"
    for wrong in ((3,), (7,), ((3,3),), (12,3), (12,DIRECTIONS)):
        with pytest.raises(TypeError, match=f'{kind.__name__}: `n_features` must be given by name.*write n_features='): kind(8, 16, *wrong)
    with pytest.raises(TypeError, match='`n_features` must be given by name'): kind(8, 16, 12, n_features=3)
    with pytest.raises(TypeError, match='`n_features` must be given by name'): kind(8, 16, kernel_size=3)
    assert kind(8, 16, n_features=3)(torch.randn(1,8,4,5)).shape==(1,16,4,5)
    assert list(kind(8, 16, 12).state_dict())==list(kind(8, 16, n_features=12).state_dict())

CONV = [dict(dilation=2, padding=2), dict(bias=False), dict(padding_mode='reflect'), dict(kernel_size=5, padding=2, padding_mode='circular'),
        dict(dilation=2, stride=2, bias=False, padding_mode='replicate'), dict(kernel_size=4, stride=2, upsample=True, dilation=2, bias=False)]

@pytest.mark.parametrize('kw', CONV, ids=lambda kw: '-'.join(f'{k}={v}' for k,v in kw.items()))
def test_arguments_of_a_convolution(kw):
    "Reach every convolution, and mean there what they mean to PyTorch's"
    layer,x = ResSDN(3, 4, n_features=5, **kw).double(),torch.randn(2,3,9,8,**double)
    kind = torch.nn.ConvTranspose2d if kw.get('upsample') else torch.nn.Conv2d
    plain = dict(kernel_size=3, padding=1)|{k: v for k,v in kw.items() if k!='upsample'}
    for ours,out in ((layer.conv,4), (layer.sdn.project_in,5)):
        theirs = kind(3, out, **plain).double()
        theirs.load_state_dict(ours.state_dict())
        assert_close(ours(x), theirs(x))
    assert (layer.sdn.project_out.bias is None)==('bias' in kw) and layer.sdn.correction[0].bias_ih is not None
    assert layer(x).shape==layer.conv(x).shape

def test_a_transposed_convolution_pads_with_zeros_only():
    with pytest.raises(ValueError, match='padding mode'): ResSDN(3, 4, n_features=5, kernel_size=4, stride=2, upsample=True, padding_mode='reflect')

# memory against time

def kept(layer, x):
    seen = {}
    def note(t): seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): layer(x)
    return sum(seen.values())

def test_recompute_is_handed_on(monkeypatch):
    "To every sweep; None goes by the size of the map; outputs and gradients are the same"
    x = torch.randn(2,3,20,24)
    def make(recompute): torch.manual_seed(1); return ResSDN(3, 4, n_features=8, recompute=recompute)
    keep,again,auto = (make(r) for r in (False,True,None))
    assert kept(again, x)<.6*kept(keep, x)
    assert kept(auto, x)==kept(keep, x)
    gates = 4*4*2*8*20*24                                # four maps in single precision, in bytes
    for most,like in ((gates,again), (gates+1,keep)):
        monkeypatch.setattr(op, 'MUCH_MEMORY', most)
        assert kept(auto, x)==kept(like, x)
        assert_close(auto(x), keep(x))
        for a,b in zip(*(torch.autograd.grad(l(x).square().sum(), list(l.parameters())) for l in (auto,keep))): assert_close(a, b, rtol=1e-4, atol=1e-5)

# weights of a wrapped model

@pytest.mark.parametrize('prefix', ['module.','_orig_mod.','module._orig_mod.'])
def test_weights_of_a_wrapped_model(prefix, tmp_path):
    "As DataParallel, DistributedDataParallel and torch.compile save them"
    cfg = VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(1,), h=6, z=2, features=4, mix=2)
    model,other = SDNVAE(cfg),SDNVAE(cfg)
    wrapped = {prefix+k: v for k,v in model.state_dict().items()}
    other.load_state_dict(wrapped)
    assert list(wrapped)[0].startswith(prefix)           # the caller's own is left as it is
    model.save_pretrained(tmp_path)
    save_file({k: v.contiguous() for k,v in wrapped.items()}, tmp_path/'model.safetensors')
    for same in other,SDNVAE.from_pretrained(tmp_path):
        for (n,p),(m,q) in zip(model.state_dict().items(), same.state_dict().items()): assert n==m and torch.equal(p, q)
    wrapped['odd'] = wrapped.popitem()[1]
    with pytest.raises(RuntimeError, match='Missing key'): SDNVAE(cfg).load_state_dict(wrapped)
