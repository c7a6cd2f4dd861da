"Properties of sdn_nb.analysis: agreement with brute force, independence of batches, seeds, what is kept and what is drawn, and that nothing else is touched."
import warnings
from dataclasses import replace
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest, torch
from torch import nn
from torch.testing import assert_close
from sdn_nb.analysis import (band, block_bits, block_variance, interpolations, nearest, neighbourhood, prior_samples, read_histories,
    receptive_field, reconstructions, redraw_block, show_bits, show_curves, show_maps, show_nearest, show_neighbourhood, show_rows)
from sdn_nb.data import ImageDL, TensorImages, ToUnit, to_levels, to_unit
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.layers import SDNLayer, conv2x2
from sdn_nb.vae import SDNVAE, VAEConfig

grey = VAEConfig((8,12), channels=1, levels=17, depth=3, downsample=(1,), h=6, z=2, features=5, mix=2)
colour = replace(grey, image_size=(12,4), channels=3, levels=32, downsample=(0,2))
odd = replace(grey, image_size=(5,7), downsample=())
configs = pytest.mark.parametrize('cfg', [grey,colour,odd], ids=['grey 8x12','colour 12x4','grey 5x7'])

def same(a, b):
    if a.shape!=b.shape or not torch.equal(a, b): raise AssertionError(f'{tuple(a.shape)} differs from {tuple(b.shape)}, by {(a-b).abs().max() if a.shape==b.shape else "shape"}')
def differ(a, b): assert a.shape==b.shape and not torch.allclose(a, b, atol=1e-3)
def seeded(s): return torch.Generator().manual_seed(s)
def levels_of(cfg, n, seed=0): return torch.randint(0, cfg.levels, (n, cfg.channels, *cfg.image_size), generator=seeded(seed), dtype=torch.uint8)
def images(cfg, n, seed=0): return to_unit(levels_of(cfg, n, seed), cfg.levels)
def loader(levels, n_levels, bs=7): return ImageDL(TensorImages(levels), bs=bs, num_workers=0, after_batch=ToUnit(n_levels))

def make(cfg):
    "A small model whose blocks all have something to say"
    torch.manual_seed(0)
    m = SDNVAE(cfg)
    for p in m.parameters(): p.data += .3*torch.randn_like(p)
    return m

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

# What comes from where

@configs
def test_samples_share_noise_and_seed_decides(cfg):
    m = make(cfg)
    a = prior_samples(m, 5, [1.,.5,[1.,1.,1.]], seed=1)
    assert a.shape==(3,5,cfg.channels,*cfg.image_size)
    same(a[0], a[2]); differ(a[0], a[1])
    same(a, prior_samples(m, 5, [1.,.5,[1.,1.,1.]], seed=1)); differ(a, prior_samples(m, 5, [1.,.5,[1.,1.,1.]], seed=2))

def test_samples_in_batches():
    m = make(grey)
    g = seeded(4)
    same(prior_samples(m, 5, [.9], seed=4, bs=2)[0], torch.cat([m.sample(k, .9, g) for k in (2,2,1)]))
    differ(*prior_samples(m, 4, [1.], bs=2)[0].split(2)) # batches do not repeat the noise

@pytest.mark.parametrize('block', range(3))
def test_temperature_of_each_block(block):
    m,ones = make(grey),[1.]*3
    ones[block] = .2
    differ(*prior_samples(m, 6, [1.,ones]))

@configs
def test_reconstructions(cfg):
    m,x = make(cfg),images(cfg, 5)
    out = reconstructions(m, x, seed=3)
    same(out[0], x); same(out[1], m.decode(m.encode(x, seeded(3))))
    same(out, reconstructions(m, x, seed=3)); differ(out[1], reconstructions(m, x, seed=4)[1])
    g = seeded(3)
    same(reconstructions(m, x, seed=3, bs=2)[1], torch.cat([m.decode(m.encode(b, g)) for b in x.split(2)]))

@configs
def test_interpolation_ends_and_mixture(cfg):
    m,(x0,x1) = make(cfg),images(cfg, 2).split(1)
    out = interpolations(m, x0, x1, [(3,1.),(2,.5),(1,[1.,1.,.3])], steps=3, seed=2)
    assert out.shape==(3,5,cfg.channels,*cfg.image_size)
    for row in out: same(row[:1], x0); same(row[-1:], x1)
    g = seeded(2)
    z0,z1 = m.encode(x0, g),m.encode(x1, g)
    for i,w in enumerate((0,.5,1)): assert_close(out[0,i+1:i+2], m.decode([(1-w)*a+w*b for a,b in zip(z0,z1)]), atol=1e-4, rtol=0)
    same(out[:1], interpolations(m, x0, x1, [(3,.1)], steps=3, seed=2)) # all latents mixed: no temperature
    differ(out[1], interpolations(m, x0, x1, [(2,1.)], steps=3, seed=2)[0])

@configs
def test_neighbourhood(cfg):
    m,x = make(cfg),images(cfg, 1)
    out = neighbourhood(m, x, [3,1], [.5,1.,[0.]*3], side=3, seed=5)
    assert out.shape==(2,3,9,cfg.channels,*cfg.image_size)
    centre = reconstructions(m, x, seed=5)[1,0]
    for group in out.flatten(0,1): same(group[4], centre)
    assert_close(out[0], centre.expand_as(out[0]), atol=1e-4, rtol=0) # all kept: the reconstruction everywhere
    differ(out[1,0], out[1,1])
    cold = out[1,2][[i for i in range(9) if i!=4]]
    assert_close(cold, cold[:1].expand_as(cold), atol=1e-4, rtol=0) # at zero the neighbours agree with one another
    same(neighbourhood(m, x, [2], side=1, seed=5)[0,0,0], centre)
    assert neighbourhood(m, x, [2], side=5).shape[2]==25

@configs
@pytest.mark.parametrize('block', range(3))
def test_redraw_changes_one_block(cfg, block):
    m,x = make(cfg),images(cfg, 1)
    z = m.encode(x, seeded(0))
    out = redraw_block(m, z, block, 4, seed=1)
    g,state,n = seeded(1),m.top[:,None,None].expand(4, -1, *z[0].shape[2:]),0
    with torch.no_grad():
        for b,v in zip(reversed(m.blocks), z): # by hand: down to the block, held latents above it
            rung = b.down(state, z=v.expand(4,-1,-1,-1) if n<block else None, generator=g)
            if n==block: break
            state,n = rung.x,n+1
    assert rung.z.std(0).min()>0
    held = [v.expand(4,-1,-1,-1) for v in z]
    assert_close(out, m.decode([*held[:block], rung.z, *held[block+1:]]), atol=1e-5, rtol=0)
    differ(out, m.decode(held))

def test_block_variance():
    m,x = make(colour),images(colour, 2)
    z = m.encode(x, seeded(0))
    v = block_variance(m, z, n=6, seed=3)
    assert v.shape==(3,12,4) and (v.flatten(1).amax(1)>0).all()
    want = sum(redraw_block(m, [t[i:i+1] for t in z], 1, 6, seed=3+i).var(0).mean(0) for i in range(2))/2
    assert_close(v[1], want)

# Nearest images

def brute(x, data, n_levels, k):
    "All differences in double precision; of equals the first"
    q,t = (v.double()*2/(n_levels-1)-1 for v in (to_levels(x, n_levels), data))
    d = torch.stack([(a-t).square().flatten(1).mean(1) for a in q])
    order = torch.tensor([sorted(range(len(t)), key=lambda j: (round(r[j].item(), 12), j))[:k] for r in d])
    return d.gather(1, order),order

@configs
@pytest.mark.parametrize('bs', [1,2,10,53,100])
def test_nearest_agrees_with_brute_force(cfg, bs):
    data,x = levels_of(cfg, 53, 1),torch.rand(6, cfg.channels, *cfg.image_size, generator=seeded(2))*2.4-1.2 # off the grid, and beyond it
    data[40:] = data[:13] # copies: ties between batches and within one
    x[:3] = to_unit(data[[5,0,52]], cfg.levels)
    found,(d,index) = nearest(x, loader(data, cfg.levels, bs), cfg.levels, k=4),brute(x, data, cfg.levels, 4)
    same(found.index, index); assert_close(found.mse, d, rtol=1e-12, atol=1e-15)
    same(found.images, to_unit(data, cfg.levels)[index])
    assert found.index[:3,:2].tolist()==[[5,45],[0,40],[12,52]] and not found.mse[:3,:2].any()

@pytest.mark.parametrize('bs', [1,4,9,50])
def test_of_equals_the_first(bs):
    data = levels_of(grey, 1).expand(50,-1,-1,-1).clone()
    found = nearest(images(grey, 3, 9), loader(data, 17, bs), 17, k=6)
    assert found.index.tolist()==[list(range(6))]*3 and (found.mse==found.mse[:,:1]).all()

def test_nearest_does_not_cancel():
    "Large bright images that differ in one level of one pixel: in single precision the product form loses them"
    data = torch.full((40,3,32,32), 255, dtype=torch.uint8)
    for i in range(40): data[i].view(-1)[:40-i] -= 1 # image i differs from white in 40-i pixels
    found = nearest(torch.ones(1,3,32,32), loader(data, 256, 7), 256, k=5)
    assert found.index.tolist()==[[39,38,37,36,35]]
    assert_close(found.mse[0], torch.arange(1,6).double()*(2/255)**2/3072, rtol=1e-12, atol=0)

def test_nearest_refuses():
    dl,x = loader(levels_of(grey, 9), 17),images(grey, 2)
    for bad in (dl.new(shuffle=True), dl.new(drop_last=True)):
        with pytest.raises(ValueError, match='shuffles or drops'): nearest(x, bad, 17)
    with pytest.raises(ValueError, match='`k` is 10, but `dl` has only 9'): nearest(x, dl, 17, k=10)
    with pytest.raises(ValueError, match='`k` must be a whole number'): nearest(x, dl, 17, k=0)
    with pytest.raises(ValueError, match='must have one shape'): nearest(x[...,:5], dl, 17)
    with pytest.raises(ValueError, match='n_levels'): nearest(x, dl, 1)

def test_nearest_remembers_only_the_best(monkeypatch):
    "What is merged after each batch is as large at the end of the set as at its beginning"
    import sdn_nb.analysis as A
    sizes,best = [],A._best
    def spy(k, d, index, levels):
        out = best(k, d, index, levels)
        sizes.append((d.shape[1], out[2].untyped_storage().nbytes()))
        return out
    monkeypatch.setattr(A, '_best', spy)
    nearest(images(grey, 2), loader(levels_of(grey, 80), 17, 8), 17, k=3)
    assert set(sizes)=={(8,2*3*96),(6,2*3*96)}

# Bits

@configs
def test_bits_add_up(cfg):
    m,dl = make(cfg),loader(levels_of(cfg, 11), cfg.levels, 4)
    bits = block_bits(m, dl, seed=3)
    assert_close(bits.mean.sum().item(), elbo_bpd(m, dl, seed=3, progress=False), rtol=1e-6, atol=0)
    torch.manual_seed(3)
    m.eval()
    with torch.no_grad(): outs = [m(x) for x,_ in dl]
    nats = torch.cat([torch.cat([o.kl, -o.log_px[:,None]], 1) for o in outs]).double()/(cfg.channels*cfg.image_size[0]*cfg.image_size[1])
    per = nats/torch.log(torch.tensor(2.).double())
    assert_close(bits.mean, per.mean(0), rtol=1e-6, atol=1e-9); assert_close(bits.error, (per.var(0)/11).sqrt(), rtol=1e-5, atol=1e-9)
    assert bits.sizes==[tuple(z.shape[2:]) for z in outs[0].z]+[cfg.image_size] and bits.mean.shape==(4,)

def test_bits_of_nothing():
    with pytest.raises(ValueError, match='has no images'): block_bits(make(grey), loader(levels_of(grey, 3), 17, 4).new(drop_last=True))

# Receptive fields

@pytest.mark.parametrize('layer,inside', [(nn.Conv2d(3, 4, 3, padding=1), (slice(3,6),slice(5,8))), (conv2x2(3, 4), (slice(3,5),slice(5,7))), (nn.Conv2d(3, 4, (1,5), padding=(0,2)), (slice(4,5),slice(4,9)))], ids=['3x3','2x2','1x5'])
def test_field_of_a_convolution_is_its_kernel(layer, inside):
    R = receptive_field(layer, (3,9,13), n=3)
    weight = (layer[1] if isinstance(layer, nn.Sequential) else layer).weight
    assert_close(R[inside], weight.detach().square().sum((0,1)).sqrt())
    outside = R.clone(); outside[inside] = 0
    assert outside.eq(0).all() and all(p.grad is None for p in layer.parameters())

def test_field_of_sweeps():
    torch.manual_seed(0)
    one = receptive_field(SDNLayer(1, 3, n_features=4, directions=('right',), kernel_size=1, padding=0), (1,7,9))
    assert (one[:,5:]==0).all() and (one.nonzero()[:,1]<=4).all() and one[0,1]>0 # to the left of the centre, a cone that widens by a row each column
    assert [(one[:,c]>0).sum().item() for c in range(5)]==[7,7,5,3,1]
    assert (receptive_field(SDNLayer(3, 2, n_features=4), (3,6,11))>0).all()

def test_field_averages_over_inputs():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh())
    x = torch.randn(4, 2, 5, 5, generator=seeded(7))
    J = torch.stack([torch.autograd.functional.jacobian(lambda v: layer(v[None])[0,:,2,2], v) for v in x]) # (n, C', C, H, W)
    assert_close(receptive_field(layer, (2,5,5), n=4, seed=7), J.square().sum((1,2)).mean(0).sqrt())

# Nothing else is touched

def calls():
    m,x = make(grey),images(grey, 3)
    dl,z = loader(levels_of(grey, 9), 17),m.eval().encode(x[:1])
    return m,dict(prior_samples=lambda: prior_samples(m, 2), reconstructions=lambda: reconstructions(m, x), interpolations=lambda: interpolations(m, x[:1], x[1:2], [(1,1.)], 2),
        neighbourhood=lambda: neighbourhood(m, x[:1], [1]), nearest=lambda: nearest(x, dl, 17).mse, block_bits=lambda: block_bits(m, dl).mean, redraw_block=lambda: redraw_block(m, z, 0, 2),
        block_variance=lambda: block_variance(m, z, 3), receptive_field=lambda: receptive_field(m.last, (6,8,12), 2))

@pytest.mark.parametrize('name', calls()[1])
def test_mode_gradients_and_random_state_stay(name):
    m,fs = calls()
    m.train(); m.blocks[1].eval()
    modes,state = [s.training for s in m.modules()],torch.get_rng_state()
    out = fs[name]()
    assert [s.training for s in m.modules()]==modes and not out.requires_grad and all(p.grad is None for p in m.parameters())
    same(torch.get_rng_state(), state)
    torch.manual_seed(99)
    same(fs[name](), out) # the global state decides nothing

def test_mode_returns_after_an_error():
    m = make(grey).train()
    with pytest.raises(ValueError): prior_samples(m, 2, [-1.])
    assert all(s.training for s in m.modules())

def test_evaluation_mode_inside():
    m,seen = make(grey).train(),[]
    m.first.register_forward_hook(lambda mod,*_: seen.append((mod.training, torch.is_grad_enabled())))
    reconstructions(m, images(grey, 1)); block_bits(m, loader(levels_of(grey, 2), 17))
    assert seen==[(False,False)]*2

# Learning curves

def history(folder, epochs, columns=('bpd','rate'), start=0.):
    folder.mkdir()
    rows = [','.join(['epoch',*columns,'time'])]+[','.join([str(e),*(str(start+e+10*i) for i in range(len(columns))),'00:01']) for e in range(epochs)]
    (folder/'history.csv').write_text('\n'.join(rows)+'\n')
    return folder

def test_histories_of_different_length(tmp_path):
    h = read_histories(history(tmp_path/'a', 2), history(tmp_path/'b', 4, ('bpd','other','rate'), start=.5))
    assert set(h)=={'bpd','rate'} # what both have
    nan = float('nan')
    assert_close(h['bpd'], torch.tensor([[0,1,nan,nan],[.5,1.5,2.5,3.5]], dtype=torch.float64), equal_nan=True)
    b = band(h['bpd'])
    for got,want in zip(b, ([.25,1.25,2.5,3.5],[0,1,2.5,3.5],[.5,1.5,2.5,3.5])): assert_close(got, torch.tensor(want, dtype=torch.float64))

def test_a_run_that_diverged(tmp_path):
    a = history(tmp_path/'a', 3)
    (a/'history.csv').write_text('epoch,bpd,time\n0,1.0,00:01\n1,nan,00:01\n2,,00:01\n')
    assert read_histories(a)['bpd'].isnan().tolist()==[[False,True,True]]
    assert all(v.isnan().tolist()==[False,True,True] for v in band(read_histories(a)['bpd']))

@pytest.mark.parametrize('text', ['', 'bpd\n1\n', 'epoch,bpd\n0,many\n', '\x00\x01'], ids=['empty','no epoch','words','bytes'])
def test_damaged_history(tmp_path, text):
    (tmp_path/'history.csv').write_text(text)
    with pytest.raises(ValueError, match='history.csv is not a table of numbers'): read_histories(tmp_path)

def test_missing_history(tmp_path):
    with pytest.raises(FileNotFoundError, match='no history.csv in'): read_histories(tmp_path)
    with pytest.raises(ValueError, match='at least one'): read_histories()

# Refusals

def test_refusals():
    m,x = make(grey),images(grey, 2)
    for f,match in [(lambda: prior_samples(m, 2, []), '`temperatures` must be a list'), (lambda: prior_samples(m, 2, [1.], bs=0), '`bs` must be a whole number'), (lambda: prior_samples(m, 1.5), '`n` must be'),
        (lambda: reconstructions(m, x[0]), 'images must be'), (lambda: reconstructions(m, x[:,:,:7]), 'divisible by 2'), (lambda: interpolations(m, x, x, [(1,1.)]), 'one image each'),
        (lambda: interpolations(m, x[:1], x[1:], [(0,1.)]), '`keep` must be from 1 to 3'), (lambda: interpolations(m, x[:1], x[1:], []), '`pairs` must be a list'), (lambda: neighbourhood(m, x, [1]), '`x` must be one image'),
        (lambda: neighbourhood(m, x[:1], 1), 'give \\[1\\]'), (lambda: neighbourhood(m, x[:1], [1], side=2), '`side` must be odd'), (lambda: redraw_block(m, m.encode(x), 0), 'latent variables of one image'),
        (lambda: redraw_block(m, m.encode(x[:1])[:2], 0), 'must hold the 3'), (lambda: redraw_block(m, m.encode(x[:1]), -1), '`block` must be from 0')]:
        with pytest.raises(ValueError, match=match): f()

# Drawing

def drawn(ax): return ax.images[0].get_array()

@configs
def test_rows_are_where_their_labels_are(cfg):
    x = -torch.ones(3, 4, cfg.channels, *cfg.image_size)
    x[1,2] = 1 # one white image among black ones; gaps are white
    ax = show_rows(x, ['a','b','c'])
    a,(h,w) = drawn(ax)[...,0],cfg.image_size
    y = [t.get_position()[1] for t in ax.texts]
    assert a.shape==(3*(h+1)+1,4*(w+1)+1) and [t.get_text() for t in ax.texts]==['a','b','c']
    assert [[a[round(v), c*(w+1)+1+w//2] for c in range(4)] for v in y]==[[0]*4,[0,0,1,0],[0]*4]

@configs
def test_drawing_takes_what_computing_gives(cfg):
    m,x = make(cfg),images(cfg, 3)
    dl,z = loader(levels_of(cfg, 9), cfg.levels),m.encode(x[:1])
    found = nearest(x, dl, cfg.levels, k=2)
    assert len(show_nearest(x, found).texts)==3
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning) # layouts that do not fit
        fig = show_neighbourhood(neighbourhood(m, x[:1], [1,2], [.5,[1.,1.,1.],1.]), [1,2], [.5,[1.,1.,1.],1.])
        fig.canvas.draw()
    assert len(fig.axes)==6 and all(len(a.patches)==1 for a in fig.axes)
    bits = block_bits(m, dl)
    assert_close(torch.tensor([b.get_width() for b in show_bits(bits).patches]).double(), bits.mean[:3])
    for log in (False,True):
        fig = show_maps(block_variance(m, z, 3), 'abc', log=log)
        fig.canvas.draw()
        assert [a.get_title() for a in fig.axes[:3]]==list('abc') and len(fig.axes)==4

def test_frame_surrounds_the_middle():
    x = -torch.ones(1, 1, 9, 1, 6, 10); x[0,0,4] = 1
    ax = show_neighbourhood(x, [1], [1.]).axes[0]
    r,a = ax.patches[0],drawn(ax)[...,0]
    y,x0 = round(r.get_y()+.5),round(r.get_x()+.5) # the first row and column of pixels inside, half a gap away
    assert (a[y+1:y+7, x0+1:x0+11]==1).all() and a[y+3, x0-4]==0 and a[y-4, x0+5]==0

def test_logarithmic_maps_leave_zeros_white():
    m = torch.tensor([[[0.,1e-3],[1.,1e-9]]])
    assert drawn(show_maps(m, ['a'], log=True).axes[0]).mask.tolist()==[[True,False],[False,False]]

def test_curves(tmp_path):
    h = read_histories(history(tmp_path/'a', 12), history(tmp_path/'b', 9, start=1.))
    axs = show_curves(dict(one=h, two={k:v[:1] for k,v in h.items()}), dict(bpd='ELBO', rate='rate'), mark=5)
    assert [a.get_title() for a in axs]==['ELBO','rate'] and len(axs[0].collections)==2 and [t.get_text() for t in axs[0].get_legend().get_texts()]==['one','two']
    line = axs[0].lines[0]
    assert list(line.get_xdata())==list(range(1,13))
    assert_close(torch.tensor(line.get_ydata()).double(), torch.tensor([e+.5 for e in range(9)]+[9.,10.,11.]).double())
    assert list(axs[0].lines[-1].get_xdata())==[5,5]
    low,high = axs[0].collections[0].get_paths()[0].get_extents().get_points()[:,1]
    assert (low,high)==(0,11) and len(show_curves(dict(one=h), dict(bpd='ELBO'), axs=axs[1:]))==1
    for n,want in (1,[1]),(2,[1,2]): # epochs are whole numbers
        ax = show_curves(dict(one={k:v[:,:n] for k,v in h.items()}), dict(bpd='ELBO'))[0]
        assert [t for t in ax.get_xticks() if ax.get_xlim()[0]<=t<=ax.get_xlim()[1]]==want
