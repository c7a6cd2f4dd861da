"""Properties and faults of sdn_nb.shapes that nbs/engine/shapes.ipynb leaves out: one interface for all sets, a second renderer, the files' odd forms, every refusal."""
import math, pickle, sys

import h5py, numpy as np, pytest, torch
from sdn_nb import shapes
from sdn_nb.data import ImageDL, ToUnit, get_dls
from sdn_nb.shapes import DSpritesFile, FactorImages, Shapes3D, Shapes3DFile, Sprites
from torch.utils.data import DataLoader

def same(a, b):
    if a.shape!=b.shape or a.dtype!=b.dtype or not torch.equal(a, b): raise AssertionError(f'{tuple(a.shape)} {a.dtype} differs from {tuple(b.shape)} {b.dtype}')

def grid(sizes): return np.array(list(np.ndindex(*sizes)))
def labels_of(full, f): return np.stack([v[i] for v,i in zip(full.values, f.T)], 1)

def write_h5(path, f=grid((2,3,1,2,4,3)), order=slice(None), **other):
    f = f[order]
    arrays = dict(images=Shapes3D().images(f).permute(0,2,3,1).numpy(), labels=labels_of(Shapes3D(), f)) | other
    with h5py.File(path, 'w') as file:
        for k,v in arrays.items():
            if v is not None: file[k] = v
    return path

def write_npz(path, f=grid((3,2,4,2,3)), order=slice(None), save=np.savez_compressed, **other):
    f = f[order]
    values = np.concatenate([np.ones((len(f), 1)), labels_of(Sprites(), f)], 1)
    classes = np.concatenate([np.zeros((len(f), 1), int), f], 1)
    arrays = dict(metadata=np.array({'author': 'nobody'}, dtype=object), imgs=Sprites().images(f)[:,0].numpy(), latents_classes=classes, latents_values=values) | other
    save(path, **{k:v for k,v in arrays.items() if v is not None})
    return path

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp('files')
    return dict(h5=write_h5(d/'3dshapes.h5'), npz=write_npz(d/'dsprites.npz'))

SETS = dict(Shapes3D=(lambda f: Shapes3D(), 3, 256), Sprites=(lambda f: Sprites(), 1, 2), Shapes3DFile=(lambda f: Shapes3DFile(f['h5']), 3, 256), DSpritesFile=(lambda f: DSpritesFile(f['npz']), 1, 2))
@pytest.fixture(params=SETS)
def a_set(request, files): return SETS[request.param][0](files),*SETS[request.param][1:]

# One interface

def test_attributes(a_set):
    s,_,n_levels = a_set
    assert isinstance(s, FactorImages) and (s.num_workers, s.flip, s.n_levels)==(0, False, n_levels)
    assert isinstance(s.names, tuple) and isinstance(s.sizes, tuple) and len(s.names)==len(s.sizes)==len(s.values)==len(set(s.names))
    assert s.sizes==tuple(len(v) for v in s.values) and len(s)==math.prod(s.sizes) and type(len(s)) is int
    for v in s.values: assert (np.diff(v)>0).all() or len(v)==1

def test_index_counts_like_a_clock(a_set):
    "Against digits taken off one by one with Python's integers"
    s,*_ = a_set
    i = np.random.default_rng(0).integers(len(s), size=200)
    def digits(j):
        out = []
        for n in reversed(s.sizes): j,r = divmod(j, n); out.append(r)
        return out[::-1]
    f = s.factors(i)
    assert f.dtype==np.int64 and f.tolist()==[digits(int(j)) for j in i]
    assert s.index(f).dtype==np.int64 and (s.index(f)==i).all() and s.index(f[0])==i[0] and (s.index(f.reshape(2,100,-1))==i.reshape(2,100)).all()
    assert (s.index(torch.tensor(f))==i).all() and (s.factors(torch.tensor(i))==f).all() and s.factors(int(i[0])).tolist()==f[0].tolist()

def test_items(a_set):
    s,c,n_levels = a_set
    i = np.random.default_rng(1).integers(len(s), size=9).tolist() + [0, len(s)-1, 0]
    x = s[i]
    assert x.shape==(12,c,64,64) and x.dtype==torch.uint8 and x.is_contiguous() and 0<x.max().item()<n_levels
    for j,one in zip(i, x): same(s[j], one)
    for form in (tuple(i), np.array(i), np.array(i, np.int32), torch.tensor(i)): same(s[form], x)
    same(s[np.int64(i[3])], x[3]); same(s[np.reshape(i, (3,4))], x.reshape(3,4,c,64,64)); same(s[[]], x[:0])
    same(s.images(s.factors(i)), x); same(s.images(s.factors(i[2])), x[2])

def test_pictures_are_not_shared(a_set):
    s,*_ = a_set
    x = s[[3, 3]]; before = x[1].clone(); x[0] += 1
    same(x[1], before); same(s[3], before)

@pytest.mark.parametrize('i, error, text', [
    (-1, IndexError, 'index -1 is not in the set'), (10**7, IndexError, 'index 10000000 is not in the set; its'), ([0, -2], IndexError, 'index -2'),
    (1.5, ValueError, 'index holds float64'), ([True, False], ValueError, 'index holds bool'), ('a', ValueError, 'index holds <U1'), (slice(2), ValueError, 'index holds object'), (None, ValueError, 'index holds object')])
def test_bad_index(a_set, i, error, text):
    for f in (a_set[0].__getitem__, a_set[0].factors):
        with pytest.raises(error, match=text): f(i)

def test_bad_factors(a_set):
    s,*_ = a_set
    k,good = len(s.names),np.zeros((4, len(s.names)), int)
    for j,(name,n) in enumerate(zip(s.names, s.sizes)):
        for v in (-1, n):
            bad = good.copy(); bad[2,j] = v
            for f in (s.index, s.images):
                with pytest.raises(ValueError, match=f'^{name} is {v}; it counts from 0 to {n-1}'): f(bad)
    for bad,text in [(good[:,1:], rf'shape \(4, {k-1}\); its last axis must hold the {k} factors {s.names[0]}'), (3, r'shape \(\)'), (good+.0, 'factors holds float64'), (good>0, 'factors holds bool')]:
        with pytest.raises(ValueError, match=text): s.index(bad)

def test_sample(a_set):
    s,*_ = a_set
    f = s.sample(4000, rng=5)
    assert f.shape==(4000,len(s.names)) and f.dtype==np.int64 and s.sample(0, 1).shape==(0,len(s.names))
    assert (f==s.sample(4000, rng=5)).all() and (len(s.names)==1 or (f!=s.sample(4000, rng=6)).any())
    for j,n in enumerate(s.sizes): # each count within five standard deviations of its mean
        counts = np.bincount(f[:,j], minlength=n)
        assert len(counts)==n and (abs(counts-4000/n)<=5*math.sqrt(4000/n)).all()
    gen = np.random.default_rng(5)
    assert (s.sample(4000, gen)==f).all() and (s.sample(4000, gen)!=f).any()
    assert (s.sample(50)!=s.sample(50)).any()

def test_sample_with_fixed_factors(a_set):
    s,*_ = a_set
    f = s.sample(30, rng=5)
    for j,(name,n) in enumerate(zip(s.names, s.sizes)):
        rest = np.arange(len(s.names))!=j
        many = np.arange(30)%n
        for v in (n-1, np.int64(0), many, torch.tensor(many), many.tolist()):
            g = s.sample(30, 5, **{name: v})
            assert (g[:,j]==np.asarray(v)).all() and (g[:,rest]==f[:,rest]).all()
        for v,text in [(n, f'^{name} is {n}; it counts'), (-1, f'^{name} is -1'), (.5, f'{name} holds float64'), (True, f'{name} holds bool'), ([0]*29, rf'{name} has shape \(29,\); give one value, or n=30'), (None, f'{name} holds object')]:
            with pytest.raises(ValueError, match=text): s.sample(30, 5, **{name: v})
    with pytest.raises(ValueError, match=f"there is no factor 'colour'; the factors are {s.names[0]}"): s.sample(3, colour=1)

def test_a_loader_takes_it(a_set):
    s,c,n_levels = a_set
    few = ImageDL(s, bs=8, shuffle=True, num_workers=0, after_batch=ToUnit(n_levels), seed=3)
    x,y = few.one_batch()
    assert x is y and x.shape==(8,c,64,64) and x.dtype==torch.float32 and -1<=x.min() and x.max()<=1
    if len(s)<1000: # the files: an epoch is every picture once
        x = torch.cat([b for b,_ in few])
        key = lambda t: sorted(a.numpy().tobytes() for a in t)
        assert key(ToUnit(n_levels)(s[range(len(s))])[0])==key(x)

# The renderers

FACTS = [(Shapes3D, ('floor_hue','wall_hue','object_hue','scale','shape','orientation'), (10,10,10,8,4,15), 480_000, [(0,.9), (0,.9), (0,.9), (.75,1.25), (0,3), (-30,30)]),
         (Sprites, ('shape','scale','orientation','x','y'), (3,6,40,32,32), 737_280, [(1,3), (.5,1), (0,2*np.pi), (0,1), (0,1)])]
@pytest.mark.parametrize('cls, names, sizes, n, ends', FACTS, ids=lambda o: getattr(o, '__name__', ''))
def test_factors_of_the_public_sets(cls, names, sizes, n, ends):
    s = cls()
    assert (s.names, s.sizes, len(s))==(names, sizes, n)
    for v,size,(lo,hi) in zip(s.values, sizes, ends): np.testing.assert_allclose(v, np.linspace(lo, hi, size), rtol=0, atol=1e-12)

@pytest.mark.parametrize('cls, cached', [(Shapes3D, '_rounded_maps'), (Sprites, '_silhouette')])
def test_rendering_again_gives_the_same(cls, cached):
    i = cls().index(cls().sample(20, rng=8))
    x = cls()[i]
    getattr(shapes, cached).cache_clear()
    same(torch.stack([cls()[int(j)] for j in i[::-1]]).flip(0), x)

def _distance(shape, s, p):
    "Signed distance from point `p` to the object of scale `s` that stands on the floor"
    x,y,z = (v/s for v in p)
    if shape==0:
        q = [abs(x)-.45, abs(y)-.45, abs(z-.45)-.45]
        return s*(math.hypot(*(max(v, 0) for v in q)) + min(max(q), 0))
    if shape==1:
        q = math.hypot(x, y)-.48,abs(z-.5)-.5
        return s*(math.hypot(max(q[0], 0), max(q[1], 0)) + min(max(q), 0))
    if shape==2: return s*(math.hypot(x, y, z-.54)-.54)
    return s*(math.hypot(x, y, z-min(max(z, .38), .98))-.38)

def _march(f, o, d, far):
    "Distance along unit `d` at which `f` gets to zero, or None up to `far`: steps of the distance itself"
    t = 0.
    while t<far:
        step = f([a+t*b for a,b in zip(o, d)])
        if step<1e-7: return t
        t += step

def _along(a): n = math.hypot(*a); return [v/n for v in a]

def _shade_of_ray(scale, shape, angle, u, v):
    "What one ray sees (0 floor, 1 wall, 2 object), and its shade"
    a,p = math.radians(45+angle),math.radians(14.5)
    turn = lambda q: [q[0]*math.cos(a)+q[1]*math.sin(a), q[0]*math.sin(a)-q[1]*math.cos(a), q[2]] # ahead, right, up of a level camera -> room
    o = turn([-3.6, 0, 1.55])
    d = _along(turn([2.5*math.cos(p)+v*math.sin(p), u, v*math.cos(p)-2.5*math.sin(p)]))
    room = [(o[2]/-d[2] if d[2]<0 else math.inf, 0, [0,0,1], .4)] + [((2.3-o[k])/d[k] if d[k]>0 else math.inf, 1, [-(k==0),-(k==1),0], .55) for k in (0,1)]
    t,what,n,ambient = min(room)
    body = lambda q: _distance(shape, scale, q)
    hit = _march(body, o, d, t)
    P = [x+(hit or t)*y for x,y in zip(o, d)]
    if hit is not None:
        what,ambient = 2,.45
        n = _along([body([x+1e-4*(j==k) for j,x in enumerate(P)])-body([x-1e-4*(j==k) for j,x in enumerate(P)]) for k in range(3)])
    lamp = -2.3,-1.,3.9
    shade = ambient + (1-ambient)*max(0, sum(x*y for x,y in zip(n, _along([x-y for x,y in zip(lamp, P)]))))
    if what==2: return what,shade
    hidden = 0
    for k in range(16):
        r,w = .5*math.sqrt((k+.5)/16),(k+.5)*math.pi*(3-math.sqrt(5))
        to = [lamp[0]+r*math.cos(w)-P[0], lamp[1]+r*math.sin(w)-P[1], lamp[2]-P[2]]
        hidden += _march(body, P, _along(to), math.hypot(*to)) is not None
    return what,shade*(1-.55*hidden/16)

@pytest.mark.parametrize('shape', range(4), ids=('cube','cylinder','ball','capsule'))
def test_rooms_against_a_slow_renderer(shape):
    "Which shares nothing with the module but the numbers of the scene: it walks along rays by signed distances, and takes normals from differences"
    rng,s = np.random.default_rng(shape),Shapes3D()
    off = seen = 0
    for f in s.sample(3, rng, shape=shape):
        x,colours = s.images(f),shapes.PALETTE[f[:3]]
        spots = np.argwhere(shapes._rounded_maps(int(s.index(f))%480)[2].reshape(64, 64)>0)
        for row,col in [*rng.permutation(spots)[:40], *zip(rng.integers(20, 60, 40), rng.integers(14, 60, 40))]:
            want = np.zeros(3)
            for dy in (.25,.75):
                for dx in (.25,.75):
                    what,shade = _shade_of_ray(.75+f[3]/14, shape, -30+f[5]*30/7, (col+dx)/32-1, 1-(row+dy)/32)
                    want += colours[what]*shade/4
                    seen += what==2
            off += (abs(want-x[:,row,col].numpy())>.75).any() # half a level by rounding, and a rest for shades that were rounded
    assert seen>400 and off==0, (seen, off)

def test_shadow_leaves_no_point_out():
    "Only some points get all rays to the lamp; here all points of floor and a wall do"
    a,b = (v.ravel() for v in np.meshgrid(np.linspace(-3, 2.3, 120), np.linspace(-3, 2.3, 120)))
    points = np.stack([np.r_[a, 0*a+2.3], np.r_[b, b], np.r_[0*a, abs(a)]])
    for shape,(entry,r,h,half) in enumerate(shapes.BODIES):
        for scale in (.75,1.25):
            c = np.array([[0], [0], [scale*half]])
            with np.errstate(all='ignore'):
                got = shapes._shadow(points, shape, c, scale)
                want = np.mean([np.isfinite(entry((points-c)/scale, (lamp[:,None]-points)/scale, r, h)) for lamp in shapes.LAMP_POINTS.T], 0)
            assert (got==want).all() and (want[:14400]==1).any() and (want[:14400]%1>0).any()

def test_rooms_of_one_colour_differ():
    s = Shapes3D()
    for hue in 0,3,8:
        x = s[np.arange(480)+int(s.index([hue]*3+[0]*3))]
        assert len({a.tobytes() for a in x.numpy()})==480

def test_sprites_area():
    "Pixels of a silhouette are its area, up to its border; the heart's by a fine grid"
    s = Sprites()
    y,x = np.mgrid[-1.5:1.5:2000j,-1.5:1.5:2000j]
    area = dict(square=21.6**2, ellipse=math.pi*15*8.5, heart=11.5**2*((x*x+y*y-1)**3<=x*x*y**3).mean()*9)
    for k,a in enumerate(area.values()):
        for scale in range(6):
            n = s.images([[k, scale, o, 7, 9] for o in range(40)]).sum((1,2,3)).double()
            assert (abs(n-a*(.5+scale/10)**2)<=30).all() and abs(n.mean()-a*(.5+scale/10)**2)<=3

def test_sprites_turn():
    "The long axis of an ellipse turns with the orientation, half a turn in 19.5 steps; x counts to the right, y downward"
    s = Sprites()
    for o in range(40):
        row,col = s.images([1, 5, o, 20, 3])[0].nonzero().double().T
        assert abs(col.mean()-36)<.1 and abs(row.mean()-19)<.1
        col,row = col-col.mean(),row-row.mean()
        angle = math.atan2(2*(col*-row).mean(), ((col**2).mean()-(row**2).mean()))/2 # principal axis, y upward
        want = o*2*math.pi/39
        assert abs((angle-want+math.pi/2)%math.pi-math.pi/2)<.02

# 3dshapes.h5

def test_h5_pictures(files):
    s,full,f = Shapes3DFile(files['h5']),Shapes3D(),grid((2,3,1,2,4,3))
    assert s.sizes==(2,3,1,2,4,3) and [v.tolist() for v in s.values[:3]]==[[0,.1],[0,.1,.2],[0]]
    same(s[range(len(s))], full.images(f))
    same(s[[140, 2, 140, 0, 77]], full.images(f[[140, 2, 140, 0, 77]]))

def test_h5_in_worker_processes(files):
    s = Shapes3DFile(str(files['h5']))
    same(torch.cat(list(DataLoader(s, batch_size=40, num_workers=2))), s[range(len(s))])
    same(pickle.loads(pickle.dumps(s))[5], s[5])

def test_h5_is_closed_after_use(files, tmp_path):
    path = write_h5(tmp_path/'a.h5')
    s = Shapes3DFile(path); s[[1, 2]]
    with h5py.File(path, 'a') as f: f['images'][3] = 7 # refused while the file is open for reading
    assert (s[3]==7).all()

def test_h5_labels_in_single_precision(tmp_path):
    "Values that differ in the last bits are one value"
    f = grid((2,3,1,2,4,3)); noise = np.random.default_rng(0).normal(size=(len(f), 6))*1e-13
    s = Shapes3DFile(write_h5(tmp_path/'a.h5', labels=labels_of(Shapes3D(), f)+noise))
    assert s.sizes==(2,3,1,2,4,3)

reverse,n = slice(None, None, -1),144
H5_FAULTS = dict(no_images=(dict(images=None), 'lacks images; it has labels'), no_labels=(dict(labels=None), 'lacks labels; it has images'),
    floats=(dict(images=np.zeros((n,64,64,3), np.float32)), 'images are float32'), channels_first=(dict(images=np.zeros((n,3,64,64), np.uint8)), r'images are uint8 \(144, 3, 64, 64\)'),
    fewer_labels=(dict(labels=np.zeros((n-1,6))), r'labels \(143, 6\)'), flat_labels=(dict(labels=np.zeros(n)), r'labels \(144,\)'),
    five_factors=(dict(labels=labels_of(Shapes3D(), grid((2,3,1,2,4,3)))[:,[0,1,3,4,5]]), 'its 144 labels are not all combinations'),
    reversed=(dict(order=reverse), 'not all combinations of floor_hue, wall_hue, object_hue, scale, shape, orientation in order'), cut=(dict(order=slice(100)), 'its 100 labels'),
    other_order=(dict(labels=labels_of(Shapes3D(), grid((2,3,1,2,4,3)))[:,[5,1,2,3,4,0]]), 'in order'), nan=(dict(labels=np.full((n,6), np.nan)), 'not all combinations'), empty=(dict(order=slice(0)), 'its 0 labels'))
@pytest.mark.parametrize('kw, text', H5_FAULTS.values(), ids=H5_FAULTS)
def test_h5_refused(tmp_path, kw, text):
    with pytest.raises(ValueError, match=text) as e: Shapes3DFile(write_h5(tmp_path/'a.h5', **kw))
    assert 'a.h5' in str(e.value)

def test_h5_broken_off(files, tmp_path):
    data = files['h5'].read_bytes()
    for i,b in enumerate((b'', data[:100], data[:-1000], b'x'*5000)):
        (tmp_path/f'{i}.h5').write_bytes(b)
        with pytest.raises(ValueError, match='cannot be read as an HDF5 file'): Shapes3DFile(tmp_path/f'{i}.h5')

@pytest.mark.parametrize('cls', [Shapes3DFile, DSpritesFile])
def test_no_such_file(cls, tmp_path):
    for path in (tmp_path/'nothing', tmp_path):
        with pytest.raises(FileNotFoundError, match=r'which is no file. The set .*github.com/google-deepmind/'): cls(path)

def test_h5_without_h5py(files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match='pip install h5py'): Shapes3DFile(files['h5'])

# dSprites

def test_npz_pictures(files):
    s,full,f = DSpritesFile(files['npz']),Sprites(),grid((3,2,4,2,3))
    assert (s.names, s.sizes)==(full.names, (3,2,4,2,3))
    for v,w,n in zip(s.values, full.values, s.sizes): np.testing.assert_allclose(v, w[:n], rtol=0, atol=1e-9)
    same(s[range(len(s))], full.images(f)); same(s[[9, 1, 9]], full.images(f[[9, 1, 9]]))

def test_npz_of_many_pieces(tmp_path):
    "More pictures than are read at once, and not a multiple of them; not compressed"
    f = grid((3,1,3,32,31))
    s = DSpritesFile(write_npz(tmp_path/'a.npz', f, save=np.savez))
    assert len(s)==8928
    i = np.r_[0, 4095, 4096, 8191:8195, 8927]
    same(s[i], Sprites().images(f[i]))

class _Harm:
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open,(self.file, 'w')

def test_npz_metadata_is_never_unpickled(tmp_path):
    DSpritesFile(write_npz(tmp_path/'a.npz', metadata=np.array(_Harm(tmp_path/'harm'), dtype=object)))
    assert not (tmp_path/'harm').exists()
    for key in ('imgs','latents_values'):
        with pytest.raises(ValueError, match='cannot be read as dSprites'): DSpritesFile(write_npz(tmp_path/'b.npz', **{key: np.array(_Harm(tmp_path/'harm'), dtype=object)}))
        assert not (tmp_path/'harm').exists()
    np.load(tmp_path/'b.npz', allow_pickle=True)['latents_values'] # the trap works
    assert (tmp_path/'harm').exists()

values = np.concatenate([np.ones((n, 1)), labels_of(Sprites(), grid((3,2,4,2,3)))], 1)
NPZ_FAULTS = dict(no_imgs=(dict(imgs=None), 'archive lacks imgs.npy'), no_values=(dict(latents_values=None), 'archive lacks latents_values.npy'), levels=(dict(imgs=np.full((n,64,64), 255, np.uint8)), 'values other than 0 and 1'),
    small=(dict(imgs=np.zeros((n,32,32), np.uint8)), r'imgs is uint8 \(144, 32, 32\)'), bools=(dict(imgs=np.zeros((n,64,64), bool)), 'imgs is bool'), fortran=(dict(imgs=np.zeros((n,64,64), np.uint8, order='F')), 'in C order'),
    fewer=(dict(imgs=np.zeros((n-1,64,64), np.uint8)), r'143 pictures and labels \(144, 6\)'), five=(dict(latents_values=values[:,1:]), r'labels \(144, 5\)'),
    reversed=(dict(order=reverse), 'not all combinations of shape, scale, orientation, x, y in order'), cut=(dict(order=slice(100)), 'its 100 labels'))
@pytest.mark.parametrize('kw, text', NPZ_FAULTS.values(), ids=NPZ_FAULTS)
def test_npz_refused(tmp_path, kw, text):
    with pytest.raises(ValueError, match=text) as e: DSpritesFile(write_npz(tmp_path/'a.npz', **kw))
    assert 'a.npz' in str(e.value)

def test_npz_broken(files, tmp_path):
    data = files['npz'].read_bytes()
    spoilt = bytearray(data); at = data.index(b'imgs.npy')+300; spoilt[at:at+200] = bytes(200)
    one = tmp_path/'one.npy'; np.save(one, np.zeros(3))
    for i,b in enumerate((b'', data[:-500], bytes(spoilt), one.read_bytes())):
        (tmp_path/f'{i}.npz').write_bytes(b)
        with pytest.raises(ValueError, match='cannot be read as dSprites'): DSpritesFile(tmp_path/f'{i}.npz')

# through get_dls

@pytest.mark.parametrize('name, write, file, levels', [('3dshapes', write_h5, '3dshapes.h5', 256), ('dsprites', write_npz, 'dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz', 2)])
@pytest.mark.parametrize('by_folder', [True, False], ids=['folder','file'])
def test_public_sets_by_name(tmp_path, name, write, file, levels, by_folder):
    write(tmp_path/file)
    dls = get_dls(name, 4, path=tmp_path if by_folder else tmp_path/file)
    (train,valid),info,whole = (dls.train_ds,dls.valid_ds),dls.info,dls.train_ds.images
    assert sorted([*train.index, *valid.index])==list(range(len(whole))) and len(valid)==info.n_valid==len(whole)//10 and dls.test is None
    assert info.levels==levels and info.image_size==(64,64) and torch.equal(valid[[0,1]], whole[valid.index[:2]])
    x,_ = dls.one_batch()
    assert x.shape==(4, info.channels, 64, 64) and x.min()>=-1 and x.max()<=1
    assert get_dls(name, 4, path=tmp_path, seed=5).info==info

def test_public_sets_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match='3d-shapes'): get_dls('3dshapes', path=tmp_path)

def test_shapes3d_by_name():
    dls = get_dls('shapes3d', 8)
    assert (dls.info.n_train,dls.info.n_valid,dls.info.channels)==(475_000,5_000,3) and not set(dls.train_ds.index)&set(dls.valid_ds.index)
    assert dls.one_batch()[0].shape==(8,3,64,64)
