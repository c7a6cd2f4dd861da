"""The model seen from outside: any shape trains, the numbers are those of the distributions, and the generator decides what is random."""
import itertools
from contextlib import ExitStack
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close
from sdn_nb.distributions import DiscretizedMixLogistic, quantize
from sdn_nb.vae import PRESETS, SDNVAE, VAEConfig, free_bits_loss
from sdn_nb.memory import kept_bytes

small = VAEConfig((8,12), channels=3, levels=32, depth=4, downsample=(1,3), h=6, z=2, features=5, mix=2)
def images(cfg, n=3): return quantize(torch.rand(n, cfg.channels, *cfg.image_size)*2-1, cfg.levels)
def seeded(s): return torch.Generator().manual_seed(s)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@pytest.fixture
def model():
    "A small model whose blocks all have something to say"
    m = SDNVAE(small)
    for p in m.parameters(): p.data += .3*torch.randn_like(p)
    return m.eval()

# Any shape

def train_one_step(cfg):
    model,x = SDNVAE(cfg),images(cfg)
    opt = torch.optim.Adamax(model.parameters(), 1e-3)
    free_bits_loss(model(x), cfg.free_bits).backward()
    bad = [n for n,p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    opt.step()
    out = model(x)
    assert not bad and out.elbo.isfinite().all() and (out.log_px<0).all() and (cfg.context or (out.kl>=-1e-5).all())
    assert out.kl.shape==(3, cfg.depth) and [len(z) for z in out.z]==[3]*cfg.depth
    for y in model.sample(2, generator=seeded(0)), model.decode(model.encode(x[:2])):
        assert y.shape==x[:2].shape and y.isfinite().all() and y.abs().max()<=1

@pytest.mark.parametrize('sdn', [True, False], ids=['sdn','conv'])
@pytest.mark.parametrize('size,downsample', [((8,8),(0,1)), ((4,10),(2,)), ((3,5),()), ((24,16),(0,1,2)), ((2,2),()), ((2,7),())], ids=str)
@pytest.mark.parametrize('channels,levels', [(1,2), (2,17), (3,32), (3,256)])
def test_any_shape_trains(size, downsample, channels, levels, sdn):
    train_one_step(replace(small, image_size=size, depth=3, downsample=downsample, channels=channels, levels=levels, sdn=sdn))

@pytest.mark.parametrize('sdn', [True, False], ids=['sdn','conv'])
@pytest.mark.parametrize('name', ['digits','photos','fashion_mnist'])
def test_presets_train(name, sdn): train_one_step(replace(PRESETS[name], sdn=sdn))

@pytest.mark.parametrize('sdn', [True, False], ids=['sdn','conv'])
@pytest.mark.parametrize('name', ['cifar10','imagenet32','celebahq256','home32'])
def test_large_presets_train_shrunken(name, sdn):
    "The same blocks, halvings, directions, mixture and bits; fewer features, and for CelebA-HQ half of the scales"
    cfg = PRESETS[name]
    n = 2 if max(cfg.image_size)>64 else 1
    train_one_step(replace(cfg, sdn=sdn, h=8, z=2, context=4, features=12, features_step=cfg.features_step//32, max_scale=cfg.max_scale//n, image_size=tuple(s//n for s in cfg.image_size)))

def test_presets_are_those_of_the_paper():
    "The figures of the paper's appendix, written down a second time"
    want = dict(cifar10=(15,(5,10),360,128,2,5,256), imagenet32=(16,(3,7,11),424,0,3,10,256), celebahq256=(17,(4,7,9,11,13,15),360,0,2,30,32))
    for name,w in want.items():
        c = PRESETS[name]
        assert (c.depth,c.downsample,c.features,c.features_step,c.n_directions,c.mix,c.levels)==w
        assert (c.z,c.h,c.context,c.free_bits,c.likelihood)==(4,200,100,.01,'mix_logistic')

@pytest.mark.parametrize('kw', [dict(context=3), dict(likelihood='logistic'), dict(likelihood='bernoulli', levels=2), dict(context=3, likelihood='logistic', sdn=False)], ids=str)
def test_posteriors_and_likelihoods_train(kw): train_one_step(replace(small, **kw))

@pytest.mark.parametrize('context', [0,3])
def test_importance_weights_of_one_model_and_noise(model, context):
    "With the same noise, log weights are log p(x|z) - (log q - log p), computed block by block"
    m = SDNVAE(replace(small, context=context)).double()
    x = images(small, 2).double()
    w = m.log_weights(x, 3, seeded(1))
    q_ups,size = m._up(x)
    like,kl,z = m._down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1), sampled=True)
    assert w.shape==(2,3)
    assert_close(w.flatten(), like.log_prob(x.repeat_interleave(3,0)).sum((1,2)) - kl.sum(1))
    if context==0:
        again = m._down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1))[1]
        assert all(torch.equal(a, b) for a,b in zip(z, m._down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1))[2]))
        assert not torch.allclose(again, kl)                              # closed form and sample differ, image by image

def test_recomputation_keeps_less(model):
    "What autograd saves outside of the blocks' own recomputation is a small part"
    def saved(recompute):
        m = SDNVAE(small)
        m.recompute = recompute
        return kept_bytes(lambda: m(images(small)), m.parameters())
    assert saved(True) < .5*saved(False)

@pytest.mark.parametrize('size,downsample', [((1,1),()), ((1,9),()), ((8,8),(0,1,2))], ids=['1x1','1x9','8x8-halved-to-1x1'])
def test_maps_of_one_line(size, downsample):
    cfg = replace(small, image_size=size, depth=3, downsample=downsample)
    model = SDNVAE(cfg)
    assert model(images(cfg)).elbo.isfinite().all() and model.sample(2).shape==(2,3,*size)

@pytest.mark.parametrize('kw,field', [(dict(channels=0), 'channels'), (dict(h=-1), 'h'), (dict(mix=1.5), 'mix'), (dict(levels=1), 'levels'), (dict(levels=257), 'levels'),
    (dict(image_size=(8,8,3)), 'image_size'), (dict(image_size=(0,8)), 'image_size'), (dict(downsample=(1,1)), 'downsample'), (dict(downsample=(-1,)), 'downsample'),
    (dict(free_bits=-1.), 'free_bits'), (dict(context=-1), 'context'), (dict(likelihood='normal'), 'likelihood'), (dict(n_directions=0), 'n_directions')], ids=str)
def test_impossible_configurations_name_the_field(kw, field):
    with pytest.raises(ValueError, match=f'`{field}` must be .*, got '): replace(small, **kw)

# The numbers

def record(model, f):
    "Result of `f()`, and (input, output) of the layers around every latent, numbered from the top, and of the last layer"
    seen = {}
    with ExitStack() as hooks:
        layers = {(n,i): getattr(b, n) for i,b in enumerate(reversed(model.blocks)) for n in ('up_a','down_a','down_b')}
        for key,module in (layers | {'last': model.last}).items():
            hooks.callback(module.register_forward_hook(lambda m, args, y, key=key: seen.update({key: (args[0],y)})).remove)
        return f(), seen

def halves(p): return p[:,:small.z], (p[:,small.z:]/2).exp()             # mean, standard deviation

@torch.no_grad()
def test_elbo_is_that_of_the_distributions(model):
    x,h,z = images(small),small.h,small.z
    out,seen = record(model, lambda: model(x))
    kls = []
    for i in range(small.depth):
        q_up,down = seen['up_a',i][1][:,h:],seen['down_a',i][1]
        q,p = Normal(*halves(down[:,h:h+2*z]+q_up)),Normal(*halves(down[:,h+2*z:]))
        kls.append(kl_divergence(q, p).sum((1,2,3)))
        assert ((out.z[i]-q.mean)/q.stddev).abs().max()<6                 # drawn from the posterior
        assert_close(seen['down_b',i][0][:,:z], F.elu(out.z[i]))          # and what the block goes on with
    assert_close(out.kl, torch.stack(kls, 1), rtol=1e-4, atol=1e-4)
    assert_close(out.elbo, out.log_px-torch.stack(kls).sum(0), rtol=1e-5, atol=1e-3)
    decoded,again = record(model, lambda: model.decode(out.z))
    lik = DiscretizedMixLogistic(again['last'][1], small.channels, small.mix, small.levels)
    assert_close(out.log_px, lik.log_prob(x).sum((1,2)))
    assert torch.equal(decoded, lik.mean())

def test_likelihoods_of_all_images_sum_to_one():
    cfg = replace(small, image_size=(1,3), channels=1, levels=4, downsample=())
    model = SDNVAE(cfg).double()
    every = torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.float64).view(-1,1,1,3)/1.5-1
    z = [v.expand(64,-1,-1,-1) for v in model.encode(every[:1])]
    _,seen = record(model, lambda: model.decode(z))
    lik = DiscretizedMixLogistic(seen['last'][1], 1, cfg.mix, 4)
    assert_close(lik.log_prob(every).sum((1,2)).exp().sum().item(), 1., rtol=1e-12, atol=0)

# What is random

def test_encode_is_what_a_forward_pass_draws(model):
    x,draws = images(small),[]
    for f in (lambda: model(x).z, lambda: model.encode(x)):
        torch.manual_seed(5); draws.append(f())
    for a,b in zip(*draws): assert_close(a, b)  # with gradients and without, sweeps over 7 to 12 lines take different roads
    one,same,other = (model.encode(x, seeded(s)) for s in (1,1,2))
    for a,b,c in zip(one, same, other): assert torch.equal(a, b) and not torch.equal(a, c)
    assert not any(v.requires_grad for v in one)

@pytest.mark.parametrize('f', [lambda m,x,g: m.encode(x, g)[0], lambda m,x,g: m.sample(2, 1., g), lambda m,x,g: m.sample(2, 1., g, draw=True), lambda m,x,g: m.resample(x, 1, 1., 2, g),
    lambda m,x,g: m.interpolate(x[:1], x[1:2], 1, 1., 3, g), lambda m,x,g: m.decode(m.encode(x, g), draw=True, generator=g)], ids=['encode','sample','draw','resample','interpolate','decode'])
def test_own_generator_leaves_the_global_one_alone(model, f):
    x,state = images(small),torch.get_rng_state()
    a,b,c = (f(model, x, seeded(s)) for s in (1,1,2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('keep', [1, 2, 3, 4])
def test_resample_keeps_the_top(model, keep):
    x = images(small)
    y,seen = record(model, lambda: model.resample(x, keep, n=2, generator=seeded(3)))
    for i,z in enumerate(model.encode(x, seeded(3))):
        used = seen['down_b',i][0][:,:small.z].unflatten(0, (3,2))         # image, copy
        if i<keep: assert_close(used, F.elu(z)[:,None].expand_as(used))
        else: assert not torch.equal(used[:,0], used[:,1])
    assert y.shape==(6,3,8,12)

def test_interpolation_ends_at_its_images(model):
    a,b = images(small)[:1],images(small)[:1]
    g,y = seeded(4),model.interpolate(a, b, keep=4, steps=5, generator=seeded(4))
    for end,x in ((y[:1],a), (y[-1:],b)): assert_close(end, model.decode(model.encode(x, g)))

@pytest.mark.parametrize('block', range(small.depth))
def test_temperature_scales_the_prior_of_every_block(model, block):
    above = model.double().encode(images(small).double())[:block]           # ELU can be undone in double precision
    def drawn(t):
        _,seen = record(model, lambda: model.decode(above, t, seeded(7)) if block else model.sample(3, t, seeded(7)))
        return seen['down_a',block][1][:,-2*small.z:-small.z],seen['down_b',block][0][:,:small.z]
    (mean,full),(_,half),(_,none) = map(drawn, (1.,.5,0.))
    inverse = lambda y: torch.where(y>0, y, torch.log1p(y))
    assert_close(inverse(none), mean)
    assert_close(inverse(half)-mean, (inverse(full)-mean)/2)
