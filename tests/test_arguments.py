"What a model, its configuration and its pictures are given: taken, or refused at once in words that name it."
import json, math, time, warnings
from dataclasses import asdict, fields, replace

import matplotlib
matplotlib.use('Agg')
import numpy as np, pytest, torch
from torch.testing import assert_close
from sdn_nb.analysis import SamplePictures, block_variance, interpolations, neighbourhood, prior_samples, reconstructions, redraw_block, save_reconstructions, save_samples
from sdn_nb.betavae import BetaAnnealing, BetaVAE, BetaVAEConfig, Curves, beta_vae_learner
from sdn_nb.data import get_dls
from sdn_nb.distributions import LIKELIHOODS, quantize
from sdn_nb.ladder import LadderBlock
from sdn_nb.layers import ResSDN, SDNLayer, SubLayer
from sdn_nb.training import vae_learner
from sdn_nb.vae import PRESETS, RECIPES, Recipe, SDNVAE, VAEConfig, check_levels

small = VAEConfig((8,12), channels=2, levels=32, depth=3, downsample=(1,), h=6, z=2, features=5, mix=2)
beta = BetaVAEConfig((16,32), channels=2, levels=9, z=3, sdn_scales=(16,), features=5)
def seeded(s=0): return torch.Generator().manual_seed(s)
def images(cfg, n=2): return quantize(torch.rand(n, cfg.channels, *cfg.image_size, generator=seeded())*2-1, cfg.levels)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return SDNVAE(small).eval()

@pytest.fixture(scope='module')
def code():
    torch.manual_seed(0)
    return BetaVAE(beta).eval()

# Configurations

NOT_WHOLE = [1.5, 2., True, '3', None, [3], float('nan'), float('inf'), 1j, b'3', (), {}, object(), np.float64(3), np.bool_(True), -1, -10**30]
TOO_LARGE = [10**6, 10**12, 10**100]
WORDS = [1, True, None, ['gate'], ('gate',), {}, 'Gate', '', b'gate', 3.5, float('nan')]
NOT_NUMBERS = [True, '1', None, [1.], (1.,), 1j, float('nan'), float('inf'), -.5, -10**30, np.float32('nan')]
NOT_PAIRS = [8, None, '88', (8,), (8,8,8), (8,8.), (8,True), (0,8), (-8,8), (8,None), ((8,),8), {8,16}, (10**12,10**12), (2**40,8), (10**100,10**100)]
NOT_BOOLS = [0, 1, None, 'yes', 'False', [True], 1., np.int64(1), float('nan')]
BAD = dict(image_size=NOT_PAIRS, downsample=[1, None, '1', (5,), (-1,), (1,1), (1.,), (True,), ('1',), (None,), (10**12,), ([],)], sdn=NOT_BOOLS,
    scales=[8, '8', (8.,), ('8',), (True,), None], n_directions=NOT_WHOLE+[0,5], directions=[1, None, ('left','wrong'), (1,), ([],), 'sideways', (None,)],
    residual=WORDS, likelihood=WORDS, layer=[1, None, True, 'Rays', 3.5, ('ResSDN',), {}], free_bits=NOT_NUMBERS, levels=NOT_WHOLE+TOO_LARGE+[0,1,257],
    context=NOT_WHOLE+TOO_LARGE, features_step=NOT_WHOLE, min_scale=NOT_WHOLE, max_scale=NOT_WHOLE)
BAD |= {name: NOT_WHOLE+TOO_LARGE+[0] for name in ('channels','depth','h','z','features','mix')}
BAD_BETA = {name: BAD[name] for name in ('image_size','channels','levels','z','sdn','features','likelihood','layer')} | dict(
    sdn_scales=[16, '16', None, (5,), (16.5,), ('16',), ([],), ()], n_directions=NOT_WHOLE+[5], beta=NOT_NUMBERS)

def refused(f, field, words='must be'):
    began = time.monotonic()
    with pytest.raises(ValueError) as e: f()
    text = str(e.value)
    assert f'`{field}` {words}' in text and ' got ' in text and len(text)<800 and time.monotonic()-began<2, text

def test_all_fields_are_tried(): assert BAD.keys()=={f.name for f in fields(VAEConfig)} and BAD_BETA.keys()=={f.name for f in fields(BetaVAEConfig)}

@pytest.mark.parametrize('field,value', [(f,v) for f,vs in BAD.items() for v in vs], ids=lambda v: str(v)[:20])
def test_impossible_fields(field, value): refused(lambda: replace(small, **{field: value}), field)

@pytest.mark.parametrize('field,value', [(f,v) for f,vs in BAD_BETA.items() for v in vs], ids=lambda v: str(v)[:20])
def test_impossible_fields_of_a_beta_vae(field, value): refused(lambda: replace(beta, **{field: value}), field)

@pytest.mark.parametrize('kw', [dict(depth=1000, h=2**16), dict(h=60000, z=60000), dict(features=2**16), dict(channels=2**16, mix=2**16), dict(context=2**16, h=2**15)], ids=str)
def test_models_that_no_machine_holds(kw):
    with pytest.raises(ValueError, match='VAEConfig: .* make a model of more than .* weights; at most 2e\\+10 can be. Make one of them smaller'): replace(small, **kw)

def test_numbers_of_numpy_become_plain():
    "Also in tuples, so that the configuration is saved and compared as any other"
    given = {f.name: (np.int64(v) if type(v) is int else np.float32(v) if type(v) is float else np.bool_(v) if type(v) is bool else tuple(map(np.int32, v)) if v and isinstance(v, tuple) else v) for f in fields(small) for v in [getattr(small, f.name)]}
    cfg = VAEConfig(**given | dict(free_bits=np.float64(.01), z=torch.tensor(2)))
    assert cfg==small and json.loads(json.dumps(asdict(cfg)))==json.loads(json.dumps(asdict(small))) and all(type(getattr(cfg, f.name)) is type(getattr(small, f.name)) for f in fields(cfg))
    assert replace(beta, z=np.int64(3), beta=np.float64(1), image_size=np.array([16,32]).tolist())==beta
    assert Recipe(np.int64(3), np.int64(16), np.float64(.1))==Recipe(3, 16, .1)

def test_presets_are_as_they_were():
    for name,cfg in PRESETS.items(): assert replace(cfg)==cfg and Recipe(**asdict(RECIPES[name]))==RECIPES[name]

@pytest.mark.parametrize('kind', [SDNVAE,BetaVAE])
@pytest.mark.parametrize('config', [None, 'digits', dict(h=3), 3], ids=str)
def test_no_configuration(kind, config):
    with pytest.raises(ValueError, match=f'{kind.__name__}: `config` must be a {kind.Config.__name__}, got'): kind(config)

@pytest.mark.parametrize('value', [0, -3, True, 1.5, '8', None, float('nan')], ids=str)
def test_layers_refuse(value):
    for f,name in ((lambda: SubLayer(value), 'SubLayer'), (lambda: LadderBlock(value, 2), 'LadderBlock'), (lambda: LadderBlock(6, value), 'LadderBlock'), *(() if value is None else ((lambda: SDNLayer(3, 5, n_features=value), 'SDNLayer'), (lambda: ResSDN(3, 5, n_features=value), 'ResSDN')))):
        with pytest.raises(ValueError, match=f'^{name}: `\\w+` must be a whole number, at least 1, got'): f()

# Likelihoods

@pytest.mark.parametrize('kind', LIKELIHOODS)
def test_likelihoods_refuse(kind):
    make = LIKELIHOODS[kind]
    n = make.n_params(3, 2)
    for shape in ((n,4,4), (2,n,4), (n,), (), (1,2,n,4,4)):
        with pytest.raises(ValueError, match=rf'{make.__name__}: `params` must be \(B, {n}, H, W\), got shape'): make(torch.zeros(shape), 3, 2, 16)
    for kw in (dict(channels=0), dict(channels=1.5), dict(channels=True), dict(mix=-1), dict(mix='2'), dict(levels=1), dict(levels=16.), dict(levels=None)):
        name, = kw
        with pytest.raises(ValueError, match=f'{make.__name__}: `{name}` must be a whole number'): make(torch.zeros(1,n,4,4), **dict(channels=3, mix=2, levels=16)|kw)
    dist = make(torch.zeros(2,n,4,4), 3, 2, 16)
    with pytest.raises(ValueError, match=r'images must be \(B, 3, 4, 4\), as `params` are, got shape \(2, 3, 1, 1\)'): dist.log_prob(torch.zeros(2,3,1,1))
    with pytest.raises(ValueError, match='floating-point numbers in .* got torch.uint8.*to_unit'): dist.log_prob(torch.zeros(2,3,4,4, dtype=torch.uint8))

def test_a_bernoulli_of_greys_is_not_priced():
    with pytest.raises(ValueError, match='`likelihood` must be mix_logistic or logistic for 256 levels: a Bernoulli is a likelihood of black and white, levels=2'): replace(small, likelihood='bernoulli', levels=256)
    assert replace(small, likelihood='bernoulli', levels=2).likelihood=='bernoulli'
    dls = get_dls('digits', bs=64, device='cpu')
    greys = BetaVAE(replace(beta, channels=1, levels=17, likelihood='bernoulli'))
    with pytest.warns(UserWarning, match='a Bernoulli of 17 levels is a cross entropy, which trains, but no probability'): beta_vae_learner(dls, greys)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        beta_vae_learner(dls, BetaVAE(replace(beta, channels=1, levels=2, likelihood='bernoulli')))

@pytest.mark.parametrize('kw,name', [(dict(anneal=-1), 'anneal'), (dict(anneal=1.5), 'anneal'), (dict(anneal=float('nan')), 'anneal'), (dict(every=0), 'every'), (dict(every='x'), 'every'), (dict(lr=-1), 'lr'), (dict(lr=float('nan')), 'lr'), (dict(lr=None), 'lr')], ids=str)
def test_beta_learner_refuses(code, kw, name):
    with pytest.raises(ValueError, match=f': `?{name}`? must be .*, got '): beta_vae_learner(None, code, **kw)

def test_annealing_refuses():
    for b in (-1, float('nan'), float('inf'), 'x', True):
        with pytest.raises(ValueError, match='BetaAnnealing: `beta` must be'): BetaAnnealing(b, 3)
    with pytest.raises(ValueError, match='Curves: `every`'): Curves(0)

# Images

@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16,torch.float64], ids=str)
@pytest.mark.parametrize('levels', [2,17,256])
def test_images_in_other_precisions_cost_the_same(dtype, levels):
    "Half precision stands for levels, and is priced as them, to the last bit"
    model = SDNVAE(replace(small, levels=levels)).eval()
    x = images(model.config)
    def of(x, f):
        torch.manual_seed(3)
        return f(x)
    for f in (lambda x: model(x).elbo, lambda x: model.log_weights(x, 2), lambda x: torch.cat([z.flatten() for z in model.encode(x)])):
        a,b = of(x, f),of(x.to(dtype), f)
        assert a.dtype==b.dtype==torch.float32 and torch.equal(a, b)

def test_images_of_a_beta_vae_in_other_precisions(code):
    x = images(beta)
    for dtype in (torch.float16, torch.float64): assert torch.equal(code.encode(x.to(dtype)), code.encode(x))
    assert code.double()(x).elbo.dtype==torch.float64
    code.float()

def test_a_model_in_double_takes_single():
    model,x = SDNVAE(small).double().eval(),images(small)
    assert model(x).elbo.dtype==torch.float64 and model.up(x)[0][0].dtype==torch.float64

@pytest.mark.parametrize('dtype', [torch.uint8,torch.int64,torch.bool,torch.complex64], ids=str)
def test_whole_numbers_are_no_images(model, code, dtype):
    for m,calls in ((model, ('__call__','log_weights','encode','up')), (code, ('__call__','encode'))):
        x = torch.zeros(2, 2, *m.config.image_size, dtype=dtype)
        for f in calls:
            with pytest.raises(ValueError, match=rf"{type(m).__name__}: images must be a tensor of floating-point numbers in \[-1, 1\], got {dtype}. .*to_unit\(levels, {m.config.levels}\)"): getattr(m, f)(x)
    if dtype!=torch.complex64:
        with pytest.raises(ValueError, match='must be 17 levels .* got whole numbers .*to_unit'): check_levels(x, 17)

@pytest.mark.parametrize('x', [None, 3., 'x', [[1.]], np.zeros((2,2,8,12))], ids=lambda v: type(v).__name__)
def test_what_is_no_tensor(model, code, x):
    for m in (model, code):
        with pytest.raises(ValueError, match=f'images must be a tensor .* got {type(x).__name__}'): m.encode(x)

@pytest.mark.parametrize('least,most', [(0,255), (-1.1,1), (0,1.01), (-math.inf,0)])
def test_images_beyond_their_range(model, code, least, most):
    for m in (model, code):
        x = torch.zeros(2, 2, *m.config.image_size)
        x[0,0,0,:2] = torch.tensor([least,most])
        for f in (m, m.encode):
            for dtype in (torch.float32, torch.float16):
                with pytest.raises(ValueError, match=r'images must lie in \[-1, 1\], got numbers from'): f(x.to(dtype))

# Temperatures

@pytest.mark.parametrize('t', [torch.tensor(.5), torch.tensor(.5, dtype=torch.float64), np.float64(.5), np.float32(.5), np.array(.5), [.5]*3, (.5,)*3, torch.full((3,), .5), np.full(3, .5), [np.float32(.5), torch.tensor(.5), .5]], ids=lambda t: f'{type(t).__name__}-{t}')
def test_temperatures_as_they_come(model, t):
    x = images(small)
    assert torch.equal(model.sample(2, t, seeded()), model.sample(2, .5, seeded()))
    assert torch.equal(model.resample(x, 1, t, generator=seeded()), model.resample(x, 1, .5, generator=seeded()))
    assert torch.equal(prior_samples(model, 2, [t]), prior_samples(model, 2, [.5]))

def test_lists_of_temperatures_as_they_come(model):
    want = prior_samples(model, 2, [.5,1.])
    for ts in (np.array([.5,1.]), torch.tensor([.5,1.]), (.5,1)): assert torch.equal(prior_samples(model, 2, ts), want)
    for ts in (.5, np.float64(.5), torch.tensor(.5), [], np.zeros(0), None, 'hot'):
        with pytest.raises(ValueError, match='`temperatures` must be a list'): prior_samples(model, 2, ts)

@pytest.mark.parametrize('t', [-1, -.1, float('nan'), float('inf'), '1', None, [1.,1.], [1.]*4, [1.,-1.,1.], ['1','1','1'], torch.tensor(-1.), np.float64('nan'), torch.ones(3,1), [[1.],[1.],[1.]], {}, 1j], ids=str)
def test_temperatures_refused(model, t):
    for f in (lambda: model.sample(2, t), lambda: model.decode(model.encode(images(small))[:1], t), lambda: model.resample(images(small), 1, t)):
        with pytest.raises(ValueError, match='SDNVAE: `temperature` must be zero or more, one number for all blocks or 3 of them, top first, got'): f()

@pytest.mark.parametrize('n', [-1, 1.5, True, '3', None], ids=str)
def test_numbers_of_pictures_refused(model, n):
    x = images(small, 1)
    for f in (lambda: model.sample(n), lambda: model.resample(x, 1, n=n), lambda: model.interpolate(x, x, 1, steps=n), lambda: model.resample(x, n), lambda: prior_samples(model, n), lambda: reconstructions(model, x, bs=n)):
        with pytest.raises(ValueError, match='`(n|steps|keep|bs)` must be'): f()

# Pictures

HOT = 1e30
broken_pictures = pytest.mark.filterwarnings('error::RuntimeWarning')

@broken_pictures
@pytest.mark.parametrize('likelihood', LIKELIHOODS)
def test_pictures_that_are_not_finite_are_refused(likelihood):
    torch.manual_seed(0)
    model = SDNVAE(replace(small, likelihood=likelihood, levels=2)).eval()
    x = images(model.config)
    made = [lambda draw=draw: model.sample(2, HOT, draw=draw) for draw in (False,True)]
    made += [lambda: model.resample(x, 1, HOT), lambda: model.interpolate(x[:1], x[1:], 1, HOT), lambda: model.decode(model.encode(x)[:1], HOT), lambda: prior_samples(model, 2, [1.,HOT]),
        lambda: interpolations(model, x[:1], x[1:], [(1,HOT)]), lambda: neighbourhood(model, x[:1], [1], [HOT])]
    for f in made:
        with pytest.raises(ValueError, match=r"SDNVAE: \d+ of \d+ pictures at temperature 1e\+30 are not finite, the model's weights are. Lower the temperature"): f()

def test_which_temperature_of_several(model):
    with pytest.raises(ValueError, match=r'pictures at temperature \[1e\+30, 0.0, 0.0\] are not finite'): model.sample(2, [HOT,0.,0.])

def test_latent_variables_that_are_not_finite(model):
    z = model.encode(images(small))
    z[0] = z[0]*math.nan
    with pytest.raises(ValueError, match='2 of 2 pictures at temperature 1.0 are not finite, the model.s weights are. .*latent variables'): model.decode(z)

def test_weights_that_are_not_finite():
    model = SDNVAE(small).eval()
    model.top.data[0] = math.nan
    for f in (lambda: model.sample(1), lambda: reconstructions(model, images(small)), lambda: redraw_block(model, model.encode(images(small, 1)), 0), lambda: block_variance(model, model.encode(images(small, 1)), 2)):
        with pytest.raises(ValueError, match="are not finite, nor are the model's weights: take another checkpoint"): f()

def test_codes_that_are_too_large(code):
    for f in (lambda: code.decode(torch.full((1,3), math.nan)), lambda: code.traverse(images(beta), [0], [math.nan])):
        with pytest.raises(ValueError, match='BetaVAE: .* pictures of these codes are not finite'): f()

def test_no_file_of_what_is_no_picture(tmp_path):
    grey = replace(small, channels=1)
    model,sick = SDNVAE(grey).eval(),SDNVAE(grey).eval()
    sick.top.data[0] = math.nan
    for f in (lambda: save_samples(model, tmp_path/'a.png', 4, HOT), lambda: save_samples(sick, tmp_path/'b.png', 4), lambda: save_reconstructions(sick, images(grey), tmp_path/'c.png')):
        with pytest.raises(ValueError, match='are not finite'): f()
    assert not list(tmp_path.iterdir())
    for i,t in enumerate((.5, np.float32(.5), torch.tensor(.5), [.5]*3)): save_samples(model, tmp_path/f'{i}.png', 4, t)
    assert len(list(tmp_path.iterdir()))==4

def test_training_goes_on_without_a_picture(tmp_path):
    torch.manual_seed(0)
    learn = vae_learner(get_dls('digits', bs=512, device='cpu'), SDNVAE(replace(small, channels=1, levels=17, image_size=(8,8))), cbs=SamplePictures(tmp_path, 1, 4, HOT))
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match=r'no samples_epoch_002.png: SDNVAE: .* at temperature 1e\+30 are not finite'): learn.fit(2)
    assert len(learn.recorder.values)==2 and not list(tmp_path.iterdir())
