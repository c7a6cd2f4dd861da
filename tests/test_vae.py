"""The model seen from outside: any shape trains, the numbers are those of the distributions, and the generator decides what is random."""
import itertools, json, subprocess, sys
from contextlib import ExitStack
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close
from sdn_nb.distributions import DiscretizedMixLogistic, quantize
from sdn_nb.layers import LAYERS, SubLayer, register_layer
from sdn_nb.saving import shipped
from sdn_nb.vae import PRESETS, RECIPES, Recipe, SDNVAE, VAEConfig, free_bits_loss, preset_config, preset_recipe, register_preset
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
    q_ups,size = m.up(x)
    like,kl,z = m.down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1), sampled=True)
    assert w.shape==(2,3)
    assert_close(w.flatten(), like.log_prob(x.repeat_interleave(3,0)).sum((1,2)) - kl.sum(1))
    if context==0:
        again = m.down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1))[1]
        assert all(torch.equal(a, b) for a,b in zip(z, m.down(6, size, [q.repeat_interleave(3,0) for q in q_ups], generator=seeded(1))[2]))
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

# A layer of one's own

class Point(torch.nn.Module):
    "A gated 1x1 convolution without bias, which notes what it was called with"
    def __init__(self, in_channels, out_channels, n_features, directions, kernel_size=3, stride=1, padding=1, upsample=False):
        super().__init__()
        self.asked = dict(n_features=n_features, directions=directions, kernel_size=kernel_size, stride=stride, padding=padding, upsample=upsample)
        self.conv = torch.nn.Conv2d(in_channels, 2*out_channels, 1, bias=False)
    def forward(self, x):
        if self.asked['upsample']: x = F.interpolate(x, scale_factor=self.asked['stride'])
        a,b = self.conv(x).chunk(2, 1)
        return a*b.sigmoid()

@pytest.fixture
def layers():
    "Registrations of one test are gone after it"
    before = [dict(d) for d in (LAYERS, PRESETS, RECIPES)]
    yield LAYERS
    for d,b in zip((LAYERS, PRESETS, RECIPES), before): d.clear(); d.update(b)

def sweeps(model): return [m for m in model.modules() if isinstance(m, SubLayer)]

@pytest.mark.parametrize('changes', [{}, dict(context=3), dict(likelihood='logistic'), dict(features_step=1, min_scale=6)], ids=str)
def test_another_layer_in_the_place_of_ressdn(layers, changes):
    cfg = replace(small, layer=Point, **changes)
    assert cfg.layer=='Point' and replace(cfg, h=7).layer=='Point' and replace(small, layer='Point', **changes)==cfg
    train_one_step(cfg)
    model,was = SDNVAE(cfg),SDNVAE(replace(small, **changes))
    assert not sweeps(model) and sweeps(was)
    x = images(cfg, 2)
    assert model.log_weights(x, 3).shape==(2,3) and model.resample(x, 2, n=2).shape==(4,3,8,12) and model.interpolate(x[:1], x[1:], 1).isfinite().all()
    places = lambda m, kind: [n for n,k in m.named_modules() if isinstance(k, kind)]
    assert places(model, Point)==places(was, LAYERS['ResSDN'])              # there, and nowhere else

def test_another_layer_is_called_as_resdn_is(layers):
    "Features, directions and the halving block's kernel, as the configuration deals them out"
    model = SDNVAE(replace(small, layer=Point, features=9, features_step=2, n_directions=3))
    got = [m.asked for m in model.modules() if isinstance(m, Point)]
    same,halve = dict(kernel_size=3, stride=1, padding=1, upsample=False),dict(kernel_size=4, stride=2, padding=1, upsample=True)
    assert got[2:4]==[dict(n_features=9, directions=('down','up','right'), **same), dict(n_features=9, directions=('left','down','up'), **halve)]
    assert got[-1]==dict(n_features=9, directions=('right','left','down','up'), **same) and len(got)==2*small.depth+1

def test_without_sdn_another_layer_changes_nothing(layers):
    a,b = SDNVAE(replace(small, sdn=False)),SDNVAE(replace(small, sdn=False, layer=Point))
    assert list(a.state_dict())==list(b.state_dict()) and not any(isinstance(m, Point) for m in b.modules())

def test_another_layer_is_saved_by_name(layers, tmp_path):
    model = SDNVAE(replace(small, layer=Point)).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path/'config.json').read_text())['model']['layer']=='Point'
    again = SDNVAE.from_pretrained(tmp_path)
    assert again.config==model.config and torch.equal(again.sample(2, generator=seeded(1)), model.sample(2, generator=seeded(1)))
    code = f"from sdn_nb.vae import SDNVAE; SDNVAE.from_pretrained({str(tmp_path)!r})"
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert told.returncode and "`layer` must be one of ResSDN, SDNLayer, or be made known first by sdn_nb.layers.register_layer('Point', what_makes_it), got 'Point'" in told.stderr
    assert 'from_pretrained: ' in told.stderr and 'config.json' in told.stderr
    code = f"from sdn_nb.layers import ResSDN, register_layer; register_layer('Point', ResSDN); " + code
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)   # another layer of that name
    assert told.returncode and 'model.safetensors is damaged or not of the model' in told.stderr

@pytest.mark.parametrize('layer', ['Rays', '', 3, None, ['ResSDN']], ids=str)
def test_unknown_layers(layer):
    with pytest.raises(ValueError, match=r'VAEConfig: `layer` must be one of ResSDN, SDNLayer, .*, got '): replace(small, layer=layer)

def test_factories_without_a_name_or_with_a_taken_one(layers):
    with pytest.raises(ValueError, match='plain word'): replace(small, layer=lambda *a, **k: None)
    other = type('Point', (Point,), {})
    replace(small, layer=Point)
    with pytest.raises(ValueError, match="the name 'Point' belongs to"): replace(small, layer=other)

def test_configurations_from_before_there_was_a_layer():
    for folder in shipped().values():
        assert 'layer' not in json.loads((folder/'config.json').read_text())['model'] and SDNVAE.from_pretrained(folder).config.layer=='ResSDN'

# Presets and recipes

def test_a_preset_of_one_s_own(layers):
    register_preset('own-8', small, Recipe(epochs=3, bs=16))
    assert preset_config('own-8')==small and preset_recipe('own-8')==Recipe(epochs=3, bs=16, lr=2e-3) and SDNVAE.from_preset('own-8', sdn=False).config==replace(small, sdn=False)
    register_preset('own-8', small, Recipe(epochs=3, bs=16))
    for config,recipe in (replace(small, h=7), Recipe(epochs=3, bs=16)), (small, Recipe(epochs=4, bs=16)):
        with pytest.raises(ValueError, match="another preset 'own-8' already"): register_preset('own-8', config, recipe)
    assert preset_config('own-8')==small

@pytest.mark.parametrize('name', list(PRESETS))
def test_shipped_presets_are_not_replaced(layers, name):
    before = PRESETS[name],RECIPES[name]
    with pytest.raises(ValueError, match='already'): register_preset(name, small, Recipe(epochs=3, bs=16))
    assert (PRESETS[name],RECIPES[name])==before
    assert preset_recipe(name) is RECIPES[name]

@pytest.mark.parametrize('args,words', [(('a b', small, Recipe(1,1)), 'plain word'), (('', small, Recipe(1,1)), 'plain word'), (('../a', small, Recipe(1,1)), 'plain word'), ((3, small, Recipe(1,1)), 'plain word'),
    (('a', dict(depth=3), Recipe(1,1)), '`config` must be a VAEConfig'), (('a', small, dict(epochs=3)), '`recipe` must be a Recipe'), (('a', small, None), '`recipe` must be a Recipe')], ids=str)
def test_presets_refused(layers, args, words):
    with pytest.raises(ValueError, match=words): register_preset(*args)
    assert 'a' not in PRESETS and 'a' not in RECIPES

def test_a_preset_without_a_recipe(layers):
    PRESETS['bare'] = small
    with pytest.raises(ValueError, match=r"preset 'bare' has no recipe.*register_preset\('bare', PRESETS\['bare'\], Recipe\("): preset_recipe('bare')
    register_preset('bare', PRESETS['bare'], Recipe(epochs=3, bs=16))
    assert preset_recipe('bare').epochs==3
    with pytest.raises(ValueError, match="no preset 'baree'.*Did you mean 'bare'"): preset_recipe('baree')

@pytest.mark.parametrize('kw,field', [(dict(epochs=0), 'epochs'), (dict(epochs=1.), 'epochs'), (dict(bs=-1), 'bs'), (dict(bs=True), 'bs'), (dict(lr=0), 'lr'), (dict(lr=float('nan')), 'lr'), (dict(lr='1e-3'), 'lr'),
    (dict(ema=1.), 'ema'), (dict(ema=-.1), 'ema'), (dict(temperature=-1), 'temperature'), (dict(temperature=float('inf')), 'temperature')], ids=str)
def test_impossible_recipes_name_the_field(kw, field):
    with pytest.raises(ValueError, match=f'Recipe: `{field}` must be .*, got '): Recipe(**dict(epochs=3, bs=16) | kw)
