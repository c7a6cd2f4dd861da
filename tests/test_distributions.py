"Distributions price what they say: any size, channels, levels and float type; flows against their whole Jacobian; masks that nothing lifts."
import copy, math
import pytest, torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import AffineTransform, Normal, SigmoidTransform, TransformedDistribution, Uniform
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close
from sdn_nb.data import to_levels, to_unit
from sdn_nb.distributions import IAF, LIKELIHOODS, Bernoulli, DiscretizedLogistic, DiscretizedMixLogistic, Likelihood, MaskedConv2d, draw, gaussian, quantize

KINDS = list(LIKELIHOODS)
LEVELS = [2,16,17,32,256]
SIZES = [(1,1),(1,5),(5,1),(3,4)]
HALF = [torch.float16,torch.bfloat16]
both = pytest.mark.parametrize('normed', [False,True], ids=['plain','weight norm'])
each_kind = pytest.mark.parametrize('kind', KINDS)

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def seeded(n=0): return torch.Generator().manual_seed(n)
def grid(L, dtype=torch.float64): return torch.linspace(-1, 1, L, dtype=dtype)
def colours(C, L): return torch.cartesian_prod(*[grid(L)]*C).reshape(-1, C, 1, 1)
def images(B, C, size, L, dtype=torch.float32): return grid(L)[torch.randint(L, (B,C,*size))].to(dtype)

def lik(kind, params, C, mix=3, L=17): return LIKELIHOODS[kind](params, C, mix, L)
def params_of(kind, B, C, size=(1,1), mix=3, dtype=torch.float32): return torch.randn(B, LIKELIHOODS[kind].n_params(C, mix), *size, dtype=dtype)

# likelihoods

@each_kind
@pytest.mark.parametrize('size', SIZES, ids=lambda s: f'{s[0]}x{s[1]}')
@pytest.mark.parametrize('C', [1,2,3,4])
@pytest.mark.parametrize('B', [0,2])
def test_shapes(kind, C, size, B):
    L = 2 if kind=='bernoulli' else 17
    dist = lik(kind, params_of(kind, B, C, size).requires_grad_(), C, L=L)
    x,mean,logp = dist.sample(seeded()),dist.mean(),dist.log_prob(images(B, C, size, L))
    assert (x.shape, mean.shape, logp.shape) == ((B,C,*size), (B,C,*size), (B,*size))
    assert (x.dtype, mean.dtype, logp.dtype) == (torch.float32,)*3
    assert_close(x, quantize(x, L), rtol=0, atol=1e-6)
    assert ((mean>=-1) & (mean<=1)).all() and (logp<=0).all()

@pytest.mark.parametrize('kind, C, L', [(k,1,L) for k in KINDS[:2] for L in LEVELS] + [(k,C,L) for k in KINDS[:2] for C,L in ((2,2),(2,17),(3,2),(3,7),(4,4))] + [('bernoulli',C,2) for C in (1,2,3,4)])
def test_sums_to_one(kind, C, L):
    params,x = 2*params_of(kind, 1, C, dtype=torch.float64),colours(C, L)
    assert_close(lik(kind, params.expand(len(x),-1,-1,-1), C, L=L).log_prob(x).exp().sum(), torch.tensor(1., dtype=torch.float64), rtol=1e-10, atol=0)

@pytest.mark.parametrize('L', LEVELS)
def test_logistic_against_torch(L):
    mean,log_scale = torch.rand(9, dtype=torch.float64)*1.6-.8,torch.rand(9, dtype=torch.float64)*3-2.5
    zero = torch.zeros(9, 1, dtype=torch.float64)
    logistic = TransformedDistribution(Uniform(zero, zero+1), [SigmoidTransform().inv, AffineTransform(mean[:,None], log_scale.exp()[:,None])])
    cdf = logistic.cdf(((grid(L)[:-1]+grid(L)[1:])/2).expand(9,-1))
    want = torch.cat([cdf, zero+1], 1).diff(prepend=zero)
    x = grid(L)[None,None,None].expand(9,1,1,-1)
    params = torch.stack([mean,log_scale], 1)[:,:,None,None].expand(-1,-1,1,L)
    assert_close(DiscretizedLogistic(params, 1, 1, L).log_prob(x).exp().squeeze(1), want, rtol=1e-8, atol=1e-12)
    weights = torch.tensor([.2,.5,.3], dtype=torch.float64)
    mixed = torch.cat([weights.log().repeat(3,1), mean.reshape(3,3), log_scale.reshape(3,3)], 1)[:,:,None,None].expand(-1,-1,1,L)
    want = (weights[:,None]*want.reshape(3,3,L)).sum(1)
    assert_close(DiscretizedMixLogistic(mixed, 1, 3, L).log_prob(x[:3]).exp().squeeze(1), want, rtol=1e-8, atol=1e-12)

def test_one_component_is_one_logistic():
    p,x = params_of('logistic', 2, 3, (2,3)),images(2, 3, (2,3), 32)
    mixed = torch.cat([torch.randn(2,1,2,3), p, torch.zeros(2,3,2,3)], 1)
    one,mix = DiscretizedLogistic(p, 3, 9, 32),DiscretizedMixLogistic(mixed, 3, 1, 32)
    assert_close(one.log_prob(x), mix.log_prob(x))
    assert_close(one.mean(), mix.mean())

def test_channels_lean_on_those_before():
    "One component: a logistic whose means are moved by hand"
    p,x = params_of('logistic', 2, 4, (2,3), dtype=torch.float64),images(2, 4, (2,3), 32, torch.float64)
    coefs = torch.randn(2, 6, 2, 3, dtype=torch.float64)
    moved,pairs = p.clone(),[(1,0),(2,0),(2,1),(3,0),(3,1),(3,2)]      # (channel, the one it leans on), in the order of the coefficients
    for k,(c,e) in enumerate(pairs): moved[:,c] += torch.tanh(coefs[:,k])*x[:,e]
    mixed = torch.cat([torch.zeros(2,1,2,3), p, coefs], 1)
    assert_close(DiscretizedMixLogistic(mixed, 4, 1, 32).log_prob(x), DiscretizedLogistic(moved, 4, 1, 32).log_prob(x))

def test_narrowest_scale():
    x = torch.zeros(1, 1, 1, 1)
    logp = [DiscretizedLogistic(torch.tensor([.02,s])[None,:,None,None], 1, 1, 256).log_prob(x) for s in (-6.5,-7.,-7.5,-100.)]
    assert logp[0] > logp[1] and logp[1]==logp[2]==logp[3]

def test_bernoulli_is_cross_entropy():
    logits,x = torch.randn(2, 3, 4, 5, dtype=torch.float64),torch.rand(2, 3, 4, 5, dtype=torch.float64)*2-1
    p,t = logits.sigmoid(),(x+1)/2
    assert_close(Bernoulli(logits, 3, 1, 256).log_prob(x), (t*p.log()+(1-t)*(1-p).log()).sum(1))
    assert_close(Bernoulli(logits, 3, 1, 256).mean(), 2*p-1)

@pytest.mark.parametrize('ignored', [('logistic', 'mix'), ('bernoulli', 'mix'), ('bernoulli', 'levels')], ids='-'.join)
def test_ignored(ignored):
    kind,what = ignored
    p,x = params_of(kind, 2, 3),images(2, 3, (1,1), 2)
    a,b = (dict(mix=1, levels=2),dict(mix=1, levels=2) | {what: 7})
    assert_close(*(LIKELIHOODS[kind](p, 3, **k).log_prob(x) for k in (a,b)), rtol=0, atol=0)

@each_kind
@pytest.mark.parametrize('dtype', HALF, ids=str)
@pytest.mark.parametrize('autocast', [False,True])
def test_never_in_half_precision(kind, dtype, autocast):
    p,x = params_of(kind, 2, 3, (2,3)).to(dtype),images(2, 3, (2,3), 17)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): got = lik(kind, p, 3)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast): got = got.log_prob(x),got.mean(),got.sample(seeded())
    want = lik(kind, p.float(), 3)
    for g,w in zip(got, (want.log_prob(x),want.mean(),want.sample(seeded()))): assert_close(g, w, rtol=0, atol=0) # and the type

@each_kind
def test_double_stays_double(kind):
    dist = lik(kind, params_of(kind, 2, 3, dtype=torch.float64), 3)
    assert dist.log_prob(images(2, 3, (1,1), 17)).dtype==dist.mean().dtype==torch.float64

@each_kind
@pytest.mark.parametrize('L', LEVELS)
@pytest.mark.parametrize('value', [-6e4,-90.,-20.,20.,90.,6e4])
def test_extreme_parameters(kind, L, value):
    "Each parameter in turn, then all of them, at an end of what half precision can hold"
    n,x = LIKELIHOODS[kind].n_params(2, 3),torch.cartesian_prod(grid(L)[[0,L//2,-1]], grid(L)[[0,L//2,-1]]).float().reshape(-1,2,1,1)
    for which in [*range(n), slice(None)]:
        p = torch.randn(1, n, 1, 1)
        p[:,which] = value
        p.requires_grad_()
        dist = lik(kind, p.expand(len(x),-1,-1,-1), 2, L=L)
        logp = dist.log_prob(x)
        grad, = torch.autograd.grad(logp.sum(), p)
        for t in (logp,grad,dist.mean(),dist.sample(seeded())): assert t.isfinite().all()

@each_kind
@pytest.mark.parametrize('C, L', [(1,2),(1,17),(2,5),(3,3)])
def test_samples_follow_the_probabilities(kind, C, L):
    if kind=='bernoulli': L = 2
    n,x,p = 40_000,colours(C, L).float(),params_of(kind, 1, C)
    prob = lik(kind, p.expand(len(x),-1,-1,-1), C, L=L).log_prob(x).exp().flatten()
    draws = to_levels(lik(kind, p.expand(n,-1,-1,-1), C, L=L).sample(seeded()), L).long().flatten(1)
    code = (draws*L**torch.arange(C-1, -1, -1)).sum(1)
    freq = torch.bincount(code, minlength=L**C)/n
    assert ((freq-prob).abs() < 5*(prob*(1-prob)/n).sqrt()+2/n).all()

@each_kind
def test_generator(kind):
    dist = lik(kind, params_of(kind, 4, 3, (5,5)), 3)
    state = torch.get_rng_state()
    a,b,c = dist.sample(seeded(1)),dist.sample(seeded(1)),dist.sample(seeded(2))
    assert (a==b).all() and (a!=c).any() and (torch.get_rng_state()==state).all()

@each_kind
@pytest.mark.parametrize('shape', [(2,1,4,4),(2,4,4,4),(3,4,4),(2,3,4)], ids=str)
def test_refuses_other_images(kind, shape):
    dist = lik(kind, params_of(kind, 2, 3, (4,4)), 3)
    with pytest.raises(ValueError, match=rf'{type(dist).__name__}: images must be \(B, 3, H, W\)'): dist.log_prob(torch.zeros(shape))

@each_kind
@pytest.mark.parametrize('extra', [-1,1])
def test_refuses_other_parameters(kind, extra):
    n = LIKELIHOODS[kind].n_params(3, 5)
    with pytest.raises(ValueError, match=f'{LIKELIHOODS[kind].__name__}: `params` must have {n} channels for channels=3 and mix=5, got {n+extra}'):
        LIKELIHOODS[kind](torch.zeros(1, n+extra, 2, 2), 3, 5, 256)

def test_kinds(): assert all(issubclass(k, Likelihood) for k in LIKELIHOODS.values()) and KINDS==['mix_logistic','logistic','bernoulli']

@pytest.mark.parametrize('L', LEVELS)
def test_quantize_is_the_rounding_of_the_data(L):
    x = torch.cat([torch.randn(500), grid(L).float(), torch.tensor([-torch.inf,torch.inf])])
    assert_close(quantize(x, L), to_unit(to_levels(x, L), L), rtol=0, atol=0)
    for dtype in HALF: assert_close(quantize(x.to(dtype), L), quantize(x.to(dtype).float(), L), rtol=0, atol=0)

# Gaussian

@pytest.mark.parametrize('temperature', [0.,.5,1.,2.])
def test_temperature(temperature):
    p = torch.randn(2, 6, 1, 5)
    q,cold = gaussian(p),gaussian(p, temperature)
    assert_close(cold.scale, temperature*q.scale)
    assert_close(cold.loc, q.loc)
    assert_close(draw(cold, seeded())-q.loc, temperature*(draw(q, seeded())-q.loc), rtol=1e-4, atol=1e-6)

# masked convolutions

def conv(center, normed, n_in=2, n_out=3, dtype=torch.float64):
    c = MaskedConv2d(n_in, n_out, center).to(dtype)
    return weight_norm(c, dim=0) if normed else c

def matrix(c, n_in=2, n_out=3, size=(4,5)):
    "(places out, channels out, places in, channels in): what each output depends on"
    x = torch.zeros(1, n_in, *size, dtype=torch.float64)
    n = math.prod(size)
    return jacobian(c, x)[0,:,:,:,0].reshape(n_out,n,n_in,n).permute(1,0,3,2)

def obeys(c, center, n_in=2, n_out=3):
    J = matrix(c, n_in, n_out)
    future = torch.ones(20, 20).triu(1 if center else 0).bool()
    assert not J.transpose(1,2)[future].any()
    places = torch.arange(20)
    inside = [p for p in places.tolist() if p//5>0 and 0<p%5<4]
    for p in inside: assert J[p][:,[p-6,p-5,p-4,p-1]].all(), 'the past must be seen, in all channels'
    if center: assert J[places,:,places].all()

@both
@pytest.mark.parametrize('center', [False,True])
def test_mask_before_and_after_training(center, normed):
    c = conv(center, normed)
    obeys(c, center)
    opt = torch.optim.Adam(c.parameters(), lr=.1, weight_decay=.1)
    before = copy.deepcopy(c)
    for _ in range(4):
        x = torch.randn(4, 2, 4, 5, dtype=torch.float64)
        opt.zero_grad(); (c(x)-x.flip(2).sum(1, keepdim=True)).square().mean().backward(); opt.step()
    assert (matrix(c)!=matrix(before)).any(), 'it learns'
    obeys(c, center)

@pytest.mark.parametrize('center', [False,True])
def test_norm_is_taken_before_the_mask(center):
    c = conv(center, True)
    g,v = c.parametrizations.weight.original0,c.parametrizations.weight.original1
    assert g.shape==(3,1,1,1)
    with torch.no_grad(): g.mul_(torch.tensor([1.,2.,3.])[:,None,None,None])
    mask = torch.tensor([[1,1,1],[1,int(center),0],[0,0,0]])
    want = g*v/v.square().sum((1,2,3), keepdim=True).sqrt()*mask
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    assert_close(c(x), torch.nn.functional.conv2d(x, want, c.bias, padding=1))

def test_mask_is_not_saved_and_moves():
    c = MaskedConv2d(2, 3, True)
    assert set(c.state_dict()) == {'weight','bias'}
    assert c.half().mask.dtype==torch.float16

# flows

def flow(Z=2, K=5, normed=False, dtype=torch.float64):
    iaf = IAF(Z, K).to(dtype)
    for c in (iaf.conv_a, *iaf.conv_b[1::2]):
        nn.init.normal_(c.weight, std=.4); nn.init.normal_(c.bias)
        if normed: weight_norm(c, dim=0)
    return iaf

def test_state_dict():
    assert set(IAF(2, 5).state_dict()) == {f'{m}.{p}' for m in ('conv_a','conv_b.1','conv_b.3') for p in ('weight','bias')}
    assert [tuple(p.shape) for k,p in IAF(2, 5).state_dict().items() if 'weight' in k] == [(5,2,3,3),(5,5,3,3),(4,5,3,3)]

def test_only_the_first_convolution_hides_the_place():
    iaf = IAF(2, 5)
    assert [c.mask[1,1].item() for c in (iaf.conv_a, *iaf.conv_b[1::2])] == [0,1,1]

def check_density(iaf, size):
    "The whole Jacobian is triangular with the promised diagonal, and its determinant accounts for log q"
    Z,n = iaf.z,math.prod(size)*iaf.z
    params = torch.randn(3, iaf.n_params, *size, dtype=torch.float64)
    z,log_q = iaf(params, seeded(3))
    z0,context = draw(gaussian(params[:,:2*Z]), seeded(3)),params[:,2*Z:]
    assert_close(z, iaf.flow(z0, context)[0])
    for b in range(3):
        base,ctx = z0[b:b+1],context[b:b+1]
        J = jacobian(lambda t: iaf.flow(t, ctx)[0], base)[0,:,:,:,0].permute(1,2,0,4,5,3).reshape(n,n)
        assert not J.triu(1).any()
        assert_close(J.diagonal(), torch.exp(-iaf.flow(base, ctx)[1])[0].permute(1,2,0).flatten())
        assert_close(log_q[b], gaussian(params[b:b+1,:2*Z]).log_prob(base).sum()-J.slogdet().logabsdet)
    return J

@both
@pytest.mark.parametrize('size', SIZES, ids=lambda s: f'{s[0]}x{s[1]}')
@pytest.mark.parametrize('Z', [1,3])
def test_density(Z, size, normed):
    J = check_density(flow(Z, normed=normed), size)
    if math.prod(size)>1: assert J.tril(-Z).any(), 'bends'

@both
def test_density_after_training(normed):
    iaf = flow(normed=normed)
    opt = torch.optim.Adamax(iaf.parameters(), lr=.05)
    for _ in range(4):
        z,log_q = iaf(torch.randn(4, iaf.n_params, 3, 4, dtype=torch.float64))
        opt.zero_grad(); (log_q-Normal(0,.5).log_prob(z).sum((1,2,3))).mean().backward(); opt.step()
    check_density(iaf, (3,4))

def test_steps_are_a_tenth():
    "A network of constants m=2, s=-3 (its last bias): one place shows the formula"
    iaf = IAF(1, 2).double()
    for p in iaf.parameters(): nn.init.zeros_(p)
    iaf.conv_b[3].bias.data = torch.tensor([2.,-3.]).double()
    params = torch.tensor([.5,math.log(4.),0,0]).double()[None,:,None,None]
    eps = torch.randn(1, generator=seeded(), dtype=torch.float64)
    z,log_q = iaf(params, seeded())
    assert_close(z.flatten(), (.5+2*eps-.2)/math.exp(-.3))
    assert_close(log_q, -eps**2/2-math.log(2*math.pi)/2-math.log(2.)-.3)

def test_context_enters_after_the_first_convolution():
    iaf,params = flow(),torch.randn(1, 9, 3, 3, dtype=torch.float64)
    seen = []
    iaf.conv_b.register_forward_pre_hook(lambda m,a: seen.append(a[0]))
    iaf(params, seeded())
    assert_close(seen[0], iaf.conv_a(draw(gaussian(params[:,:4]), seeded())) + params[:,4:])

@both
def test_trivial_flow_is_the_gaussian(normed):
    iaf = flow(dtype=torch.float32)
    nn.init.zeros_(iaf.conv_b[3].weight); nn.init.zeros_(iaf.conv_b[3].bias)
    if normed:
        for c in (iaf.conv_a, iaf.conv_b[1]): weight_norm(c, dim=0)
    params = torch.randn(2, 9, 3, 4)
    z,log_q = iaf(params, seeded())
    q = gaussian(params[:,:4])
    assert_close(z, draw(q, seeded()), rtol=0, atol=0)
    assert_close(log_q, q.log_prob(z).sum((1,2,3)))

@both
def test_bent_density_has_mass_one(normed):
    "The mean of p/q over samples of q is the mass of p where p is narrower than q"
    iaf = flow(1, 4, normed, torch.float32)
    params = torch.cat([torch.zeros(1,2,1,3), torch.randn(1,4,1,3)], 1)
    with torch.no_grad(): z,log_q = iaf(params.expand(100_000,-1,-1,-1))
    p = Normal(z.mean(0), .5*z.std(0))
    ratio = (p.log_prob(z).sum((1,2,3))-log_q).exp()
    err = ratio.std()/len(ratio)**.5
    assert err < .02 and (ratio.mean()-1).abs() < 5*err

@both
def test_gradients(normed):
    iaf,params = flow(normed=normed),torch.randn(3, 9, 4, 4, dtype=torch.float64, requires_grad=True)
    z,log_q = iaf(params)
    (log_q-Normal(0,1).log_prob(z).sum((1,2,3))).sum().backward()
    grad = params.grad
    assert grad[:,:4].all(), 'mean and log variance, everywhere'
    assert grad[:,4:].flatten(2).any(2).all(), 'each map of the context'
    for c in (iaf.conv_a, *iaf.conv_b[1::2]):
        v = c.parametrizations.weight.original1 if normed else c.weight
        seen = (c.mask>0).expand_as(v)
        assert v.grad[seen].all() and c.bias.grad.all()
        assert normed or not v.grad[~seen].any()
    if normed: assert all(c.parametrizations.weight.original0.grad.all() for c in (iaf.conv_a, *iaf.conv_b[1::2]))

@pytest.mark.parametrize('case', ['autocast','half parameters','bfloat16 parameters','half model','half model, full parameters'])
def test_flow_never_in_half_precision(case):
    iaf,params = flow(dtype=torch.float32),torch.randn(3, 9, 3, 4)
    if case=='half parameters': params = params.half()
    if case in ('bfloat16 parameters','half model'): params = params.bfloat16()
    if 'half model' in case: iaf = iaf.bfloat16()
    seen = []
    for m in (iaf.conv_a, iaf.conv_b): m.register_forward_hook(lambda m,a,y: seen.append(y.detach()))
    with torch.autocast('cpu', torch.bfloat16, enabled=case=='autocast'): z,log_q = iaf(params, seeded())
    assert z.dtype==log_q.dtype==torch.float32
    assert {y.dtype for y in seen} == {torch.bfloat16 if case=='autocast' or 'half model' in case else torch.float32}
    m,s = seen[-1].double().chunk(2, 1)
    q = gaussian(params[:,:4].float())
    z0 = draw(q, seeded())
    assert_close(z.double(), (z0.double()-.1*m)/(.1*s).exp(), rtol=1e-5, atol=1e-6)
    assert_close(log_q.double(), (q.log_prob(z0)+.1*s).double().sum((1,2,3)), rtol=1e-5, atol=1e-4)

def test_batch_and_generator():
    iaf,params = flow(),torch.randn(3, 9, 1, 5, dtype=torch.float64)
    z,log_q = iaf(params[:1].expand(3,-1,-1,-1), seeded())
    assert z.shape==(3,2,1,5) and log_q.shape==(3,) and len(set(log_q.tolist()))==3
    state = torch.get_rng_state()
    assert_close(iaf(params, seeded(1))[0], iaf(params, seeded(1))[0], rtol=0, atol=0)
    assert (torch.get_rng_state()==state).all()
    z,log_q = iaf(params[:0])
    assert z.shape==(0,2,1,5) and log_q.shape==(0,)

def test_log_density_is_exact_far_from_zero():
    "A narrow posterior round a large mean: the price comes from the noise, not from a difference that single precision rounds away"
    iaf = flow(1, 2, dtype=torch.float32)
    nn.init.zeros_(iaf.conv_b[3].weight); nn.init.zeros_(iaf.conv_b[3].bias)
    params = torch.tensor([1000.,-20.,0.,0.])[None,:,None,None].expand(1,-1,4,4)
    eps = torch.randn(1, 1, 4, 4, generator=seeded())
    want = (-eps**2/2-math.log(2*math.pi)/2+10.).sum()
    assert_close(iaf(params, seeded())[1][0], want)

@pytest.mark.parametrize('n', [8,10])
def test_flow_refuses_other_parameters(n):
    with pytest.raises(ValueError, match=f'IAF: `params` must have 9 channels .* got {n}'): IAF(2, 5)(torch.zeros(1, n, 2, 2))

def test_draw_is_randn_and_compiles_for_every_size():
    torch._dynamo.reset()
    compiled = torch.compile(lambda mean, std: draw(Normal(mean, std)), fullgraph=True, dynamic=True, backend='aot_eager')
    for n in (2,5):
        mean,std = torch.randn(n,3,4,4),torch.rand(n,3,4,4)
        torch.manual_seed(n); want = mean + std*torch.randn(n,3,4,4)
        for f in (compiled, lambda m,s: draw(Normal(m,s)), lambda m,s: draw(Normal(m,s), seeded(n))):
            torch.manual_seed(n)
            assert_close(f(mean,std), want)
