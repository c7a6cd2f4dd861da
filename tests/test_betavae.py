"The β-VAE: its numbers against torch's own, its sizes, its callbacks inside real training, and what it refuses."
import json, subprocess, sys
from dataclasses import asdict, replace

import pytest, torch
from fastai.basics import Callback, DataLoader, DataLoaders, noop
from torch.distributions import Independent, Normal, kl_divergence
from sdn_nb.betavae import BetaAnnealing, BetaVAE, BetaVAEConfig, beta_loss, beta_vae_learner
from sdn_nb.layers import LAYERS, ResSDN, SDNLayer
from sdn_nb.vae import SDNVAE, VAEConfig

cfg = BetaVAEConfig((16,32), channels=2, levels=9, z=3, sdn_scales=(16,), features=5)
def images(cfg, n=4, seed=1): return torch.randint(0, cfg.levels, (n, cfg.channels, *cfg.image_size), generator=torch.Generator().manual_seed(seed))*2/(cfg.levels-1)-1
def build(cfg, seed=0):
    torch.manual_seed(seed)
    return BetaVAE(cfg)
@pytest.fixture
def model(): return build(cfg)

# Numbers

@pytest.mark.parametrize('likelihood', ['logistic','bernoulli','gaussian'])
def test_output_is_what_its_parts_say(likelihood):
    model,x = build(replace(cfg, likelihood=likelihood)).double(),images(cfg).double()
    torch.manual_seed(3); out = model(x)
    mean,log_var = model.encoder(x).split(cfg.z, 1)
    torch.manual_seed(3); z = mean + (log_var/2).exp()*torch.randn(4, cfg.z, dtype=torch.float64)
    torch.testing.assert_close(out.z, z)
    posterior,prior = Independent(Normal(mean, (log_var/2).exp()), 1),Independent(Normal(torch.zeros_like(mean), 1.), 1)
    torch.testing.assert_close(out.kl.sum(1), kl_divergence(posterior, prior))
    p = model.decoder(z)
    if likelihood=='gaussian': want = Normal(p, 1.).log_prob(x)
    if likelihood=='bernoulli': want = -torch.nn.functional.binary_cross_entropy_with_logits(p, (x+1)/2, reduction='none')
    if likelihood=='logistic':
        m,s,half = p[:,:2],p[:,2:].clamp(min=-7).exp(),1/(cfg.levels-1)
        cdf = lambda v: torch.sigmoid((v-m)/s)
        want = (torch.where(x==1, 1, cdf(x+half)) - torch.where(x==-1, 0, cdf(x-half))).log()
    torch.testing.assert_close(out.log_px, want.sum((1,2,3)))

def test_gradient_is_linear_in_beta(model):
    def grads(beta):
        model.zero_grad(); torch.manual_seed(2)
        beta_loss(model(images(cfg)), beta).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    g0,g1,g7 = grads(0.),grads(1.),grads(7.)
    assert (g1-g0).abs().max()>0
    torch.testing.assert_close(g7, g0 + 7*(g1-g0), rtol=1e-4, atol=1e-3*g0.abs().max().item())

def test_images_do_not_touch_each_other(model):
    x = images(cfg)
    torch.testing.assert_close(model.encode(x)[2:3], model.encode(x[2:3]))
    z = model.encode(x)
    torch.testing.assert_close(model.decode(z)[1:2], model.decode(z[1:2]))

# Sizes

@pytest.mark.parametrize('size', [(16,16), (64,64), (32,80)], ids=str)
@pytest.mark.parametrize('sdn', [False, True])
def test_sizes(size, sdn):
    c = BetaVAEConfig(size, channels=1, z=2, sdn=sdn, sdn_scales=(max(size)//2,), features=3, likelihood='bernoulli')
    model,x = build(c),images(c, 2)
    assert model(x).log_px.shape==(2,) and model(x).kl.shape==(2,2) and model.decode(model.encode(x)).shape==x.shape
    assert model.traverse(x, [1], [0.,1.,2.]).shape==(2,1,3,1,*size)
    assert any('correction' in n for n,_ in model.named_parameters())==sdn

@pytest.mark.parametrize('scale,place', [(4,0), (8,1), (16,2), (32,3)])
def test_the_sdn_layer_makes_the_map_of_its_scale(scale, place):
    model = build(replace(cfg, sdn_scales=(scale,)))
    made = []
    for m in model.decoder:
        if isinstance(m, (SDNLayer, torch.nn.ConvTranspose2d)): m.register_forward_hook(lambda m,i,o: made.append((type(m), max(o.shape[2:]))))
    model.decode(torch.zeros(1, cfg.z))
    assert [s for _,s in made]==[4,8,16,32] and [k is SDNLayer for k,_ in made]==[i==place for i in range(4)]

def test_sweeps_are_left_out_or_take_turns():
    layers = lambda **kw: [m for m in build(replace(cfg, **kw)).decoder if isinstance(m, SDNLayer)]
    assert [len(l.correction) for l in layers(n_directions=0)]==[0]
    assert [[s.direction for s in l.correction] for l in layers(n_directions=3, sdn_scales=(8,32))]==[['right','left','down'], ['up','right','left']]

def test_parameters_are_named_once():
    model = build(cfg)
    assert len(model.state_dict())==len(list(model.parameters())) and {n.split('.')[0] for n in model.state_dict()}=={'encoder','decoder'}

# Traversals

def test_a_traversal_turns_one_dimension(model):
    x,values = images(cfg),torch.tensor([-2., 0., 5.])
    y,z = model.traverse(x, [2,0], values),model.encode(x)
    for b in range(4):
        for i,d in enumerate((2,0)):
            for j,v in enumerate(values):
                one = z[b:b+1].clone(); one[0,d] = v
                torch.testing.assert_close(y[b:b+1,i,j], model.decode(one))
    assert not y.requires_grad and not z.requires_grad

# Training

class Notes(Callback):
    "What each training iteration saw, taken from the loss itself"
    run_valid,order = False,BetaAnnealing.order-5
    def __init__(self): self.rows = []
    def after_loss(self):
        log_px,kl = self.pred.log_px.mean().item(),self.pred.kl.sum(1).mean().item()
        self.rows.append((log_px, kl, (self.loss.item()+log_px)/kl))    # β as it went into the loss
def learner(beta=8., **kw):
    torch.manual_seed(0)
    dls = DataLoaders(*[DataLoader([(v,v) for v in images(cfg, 12)], bs=4) for _ in 'ab'])
    learn = beta_vae_learner(dls, build(replace(cfg, beta=beta)), cbs=Notes(), **kw)
    learn.logger = noop
    return learn

def test_beta_in_the_loss_of_each_iteration():
    learn = learner(anneal=4, every=2)
    learn.fit(1); learn.validate(); learn.fit(2)                        # 3 iterations an epoch; validation does not count
    assert [b for *_,b in learn.notes.rows]==pytest.approx([0,2,4,6,8,8,8,8,8], abs=1e-3)
    assert learn.beta_annealing.beta==8.

def test_validation_uses_the_current_beta():
    learn = learner(anneal=6)
    learn.fit(1)
    torch.manual_seed(5); loss = learn.validate()[0]
    torch.manual_seed(5)
    with torch.no_grad(): want = sum(beta_loss(learn.model(x), 4.) for x,_ in learn.dls.valid)/3
    assert loss==pytest.approx(want.item(), rel=1e-5)

def test_no_annealing():
    learn = learner(anneal=0)
    learn.fit(1)
    assert [b for *_,b in learn.notes.rows]==pytest.approx([8]*3, abs=1e-3)

def test_curves_are_means_of_what_training_saw():
    learn = learner(anneal=5, every=4)
    learn.fit(2); learn.fit(1)                                          # 9 iterations: two rows, and one left over
    assert [r['iteration'] for r in learn.curves.rows]==[4,8] and [r['beta'] for r in learn.curves.rows]==pytest.approx([8*3/5, 8.])
    for k,r in enumerate(learn.curves.rows):
        rows = torch.tensor(learn.notes.rows[4*k:4*k+4])
        want = dict(log_px=rows[:,0], kl=rows[:,1], elbo=rows[:,0]-rows[:,1], beta_kl=rows[:,1]*rows[:,2])
        for name,v in want.items(): assert r[name]==pytest.approx(v.mean().item(), rel=1e-4, abs=1e-3), name
    json.dumps(learn.curves.rows)

def test_training_lowers_the_loss():
    learn = learner(beta=1., anneal=0, lr=3e-3, every=3)
    learn.fit(30)
    assert learn.curves.rows[-1]['elbo'] > learn.curves.rows[0]['elbo']+20

# Saving

def test_saved_and_read(model, tmp_path):
    model.save_pretrained(tmp_path, data=dict(name='noise'))
    again = BetaVAE.from_pretrained(str(tmp_path))
    assert again.config==cfg and not again.training and type(again) is BetaVAE
    assert all(torch.equal(a, b) for a,b in zip(again.state_dict().values(), model.state_dict().values()))
    assert json.loads((tmp_path/'config.json').read_text())==dict(model=json.loads(json.dumps(asdict(cfg))), data=dict(name='noise'))

def test_kinds_are_not_mixed_up(model, tmp_path):
    model.save_pretrained(tmp_path/'beta')
    SDNVAE(VAEConfig((4,4), channels=1, depth=1, downsample=(), h=2, z=1, features=2, mix=1)).save_pretrained(tmp_path/'ladder')
    with pytest.raises(ValueError, match='config.json does not define a model'): SDNVAE.from_pretrained(tmp_path/'beta')
    with pytest.raises(ValueError, match='config.json does not define a model'): BetaVAE.from_pretrained(tmp_path/'ladder')
    with pytest.raises(ValueError, match='config.json does not define a model'): BetaVAE.from_pretrained('digits')

def test_weights_of_another_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(dict(model=asdict(replace(cfg, sdn=False)))))
    with pytest.raises(ValueError, match='model.safetensors is damaged or not of the model'): BetaVAE.from_pretrained(tmp_path)

# A layer of one's own

class Point(torch.nn.Module):
    "A gated 1x1 convolution without bias"
    def __init__(self, in_channels, out_channels, n_features, directions, kernel_size=3, stride=1, padding=1, upsample=False):
        super().__init__()
        self.stride,self.conv = stride,torch.nn.Conv2d(in_channels, 2*out_channels, 1, bias=False)
    def forward(self, x):
        a,b = self.conv(torch.nn.functional.interpolate(x, scale_factor=self.stride)).chunk(2, 1)
        return a*b.sigmoid()

@pytest.fixture
def point(monkeypatch):
    monkeypatch.setitem(LAYERS, 'Point', Point)
    return Point

@pytest.mark.parametrize('scales', [(16,), (4,32)], ids=str)
def test_another_layer_in_the_decoder(point, scales, tmp_path):
    c = replace(cfg, layer=Point, sdn_scales=scales)
    model,x = build(c),images(c)
    beta_loss(model(x), 2.).backward()
    assert c.layer=='Point' and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kinds = lambda m: [type(l) for l in m.decoder if isinstance(l, (Point, SDNLayer, torch.nn.ConvTranspose2d))]
    assert [k is Point for k in kinds(model)]==[k is SDNLayer for k in kinds(build(replace(c, layer='SDNLayer')))] and kinds(model).count(Point)==len(scales)
    assert model.traverse(x, [0], [1.,2.]).shape==(4,1,2,2,16,32)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path/'config.json').read_text())['model']['layer']=='Point'
    assert torch.equal(BetaVAE.from_pretrained(tmp_path).decode(model.encode(x)), model.decode(model.encode(x)))
    told = subprocess.run([sys.executable, '-c', f"from sdn_nb.betavae import BetaVAE; BetaVAE.from_pretrained({str(tmp_path)!r})"], capture_output=True, text=True)
    assert told.returncode and "BetaVAEConfig: `layer` must be one of ResSDN, SDNLayer, or be made known first by sdn_nb.layers.register_layer('Point', what_makes_it), got 'Point'" in told.stderr

def test_layers_by_name(point):
    assert not any(isinstance(m, (Point,SDNLayer)) for m in build(replace(cfg, layer='Point', sdn=False)).modules())
    assert sum(isinstance(m, ResSDN) for m in build(replace(cfg, layer='ResSDN')).decoder)==1
    with pytest.raises(ValueError, match='BetaVAEConfig: `layer` must be one of'): replace(cfg, layer='Rays')

def test_configurations_from_before_there_was_a_layer(model, tmp_path):
    model.save_pretrained(tmp_path)
    section = json.loads((tmp_path/'config.json').read_text())['model']
    assert section.pop('layer')=='SDNLayer'
    (tmp_path/'config.json').write_text(json.dumps(dict(model=section)))
    assert BetaVAE.from_pretrained(tmp_path).config==cfg

# Faults

@pytest.mark.parametrize('kw,words', [
    (dict(image_size=(16,20)), r'next size that fits is \(16, 32\)'), (dict(image_size=16), '`image_size` must be a pair'), (dict(image_size=(16,)), 'a pair'), (dict(image_size=(0,16)), 'positive'), (dict(image_size=(16.,32.)), 'integers'),
    (dict(channels=0), '`channels`'), (dict(z=-1), '`z`'), (dict(features=2.5), '`features`'), (dict(levels=1), '`levels`'), (dict(levels=257), '`levels`'), (dict(sdn='no'), '`sdn`'),
    (dict(n_directions=5), '`n_directions`'), (dict(sdn_scales=(64,)), r'one or more of \(4, 8, 16, 32\)'), (dict(sdn_scales=16), '`sdn_scales`'), (dict(sdn_scales=()), '`sdn_scales`'),
    (dict(likelihood='mix_logistic'), 'one of logistic, bernoulli, gaussian'), (dict(beta=-.1), '`beta`'), (dict(beta=float('inf')), '`beta`'), (dict(beta=float('nan')), '`beta`'), (dict(beta='4'), '`beta`')], ids=str)
def test_configurations_refused(kw, words):
    with pytest.raises(ValueError, match=words): replace(cfg, **kw)

def test_scales_of_no_sdn_layer_do_not_matter(): assert replace(cfg, sdn=False, sdn_scales=(32,5)).sdn is False

@pytest.mark.parametrize('shape', [(2,16,32), (2,3,16,32), (2,2,32,16), (2,2,16,48)], ids=str)
def test_images_refused(model, shape):
    for f in (model, model.encode, lambda x: model.traverse(x, [0], [0.])):
        with pytest.raises(ValueError, match=r'images must be \(B, 2, 16, 32\), got shape'): f(torch.zeros(shape))

@pytest.mark.parametrize('shape', [(3,), (2,4), (2,3,1,1)], ids=str)
def test_codes_refused(model, shape):
    with pytest.raises(ValueError, match=r'codes must be \(B, 3\), got shape'): model.decode(torch.zeros(shape))

@pytest.mark.parametrize('dim', [-1, 3, 1.5])
def test_dimensions_refused(model, dim):
    with pytest.raises(ValueError, match=f'traverse: dims holds {dim}; dimensions count from 0 to 2'): model.traverse(images(cfg), [0,dim], [0.])

def test_annealing_refused():
    with pytest.raises(ValueError, match='anneal must be zero or more'): learner(anneal=-1)
