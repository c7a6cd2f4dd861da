"""Properties and faults of sdn_nb.data that nbs/06_data.ipynb leaves out: all numbers of levels, odd image files, worker processes, every refusal."""
import dataclasses, json, os, random, shutil, subprocess, sys, warnings

import numpy as np, pytest, torch
from fastai.basics import F, Learner, defaults, nn
from PIL import Image
from sdn_nb import data
from sdn_nb.data import DataInfo, FileImages, ImageDL, TensorImages, get_dls, image_sets, register_dataset, show_images, to_levels, to_unit
from sdn_nb.data import _photo_crops
from sdn_nb.saving import model_folder
from sdn_nb.sources import ImagesWarning

def dls_of(name, num_workers=0, **kw): return get_dls(name, device='cpu', num_workers=num_workers, **kw)
def epoch(dl): return torch.cat([x for x,_ in dl])
def rows(x): return {a.numpy().tobytes() for a in x}
def same(a, b):
    if a.shape!=b.shape or a.dtype!=b.dtype or not torch.equal(a, b): raise AssertionError(f'{tuple(a.shape)} {a.dtype} differs from {tuple(b.shape)} {b.dtype}')

def noise(*shape, seed=0): return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
def save(path, a, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(a)
    (im.convert(mode) if mode else im).save(path)
    return path

@pytest.fixture
def folder(tmp_path):
    "20 different RGB images, 6 x 9, in three levels of folders"
    for i in range(20): save(tmp_path/('a', 'a/b', '.')[i%3]/f'{i:02}.png', noise(6, 9, 3, seed=i))
    return tmp_path

# Levels

def test_levels_there_and_back_for_every_number_of_levels():
    for n in range(2, 257):
        k = torch.arange(n).byte()
        x = to_unit(k, n)
        assert x.dtype==torch.float32 and x[0]==-1 and x[-1]==1
        same(to_levels(x, n), k)
        for off in -.49,.49: same(to_levels(x+off*2/(n-1), n), k)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_levels_from_other_floats(dtype): same(to_levels(to_unit(torch.arange(17).byte(), 17).to(dtype), 17), torch.arange(17).byte())

@pytest.mark.parametrize('n', [-1, 0, 1, 257])
@pytest.mark.parametrize('f', [to_unit, to_levels])
def test_impossible_n_levels(f, n):
    with pytest.raises(ValueError, match=f'n_levels is {n};'): f(torch.zeros(1), n)

# The embedded sets

@pytest.mark.parametrize('name,shape,n_levels,n,flips', [('digits', (1,8,8), 17, (1437,360), False), ('photos', (3,32,32), 256, (4096,512), True)])
def test_embedded_sets(name, shape, n_levels, n, flips):
    dls = dls_of(name, bs=300)
    info = dls.info
    assert (info.name, info.channels, info.image_size, info.levels, (info.n_train, info.n_valid)) == (name, shape[0], shape[1:], n_levels, n)
    assert len(info.sha256)==64 and DataInfo(**json.loads(json.dumps(dataclasses.asdict(info))))==info
    for dl in dls:
        for x,y in dl:
            assert x is y and x.dtype==torch.float32 and x.shape[1:]==shape and -1<=x.min() and x.max()<=1
            same(to_unit(to_levels(x, n_levels), n_levels), x)
    assert (len(dls.train), len(epoch(dls.train))) == (n[0]//300, n[0]//300*300) # incomplete last batch dropped
    assert len(epoch(dls.valid))==n[1]
    assert dls.train_ds.flip==flips and not dls.valid_ds.flip

def test_info_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError): dls_of('digits').info.levels = 256

def test_digits_are_parted_without_loss():
    from sklearn.datasets import load_digits
    dls = dls_of('digits')
    both = torch.cat([dls.train_ds.levels, dls.valid_ds.levels])
    same(both.flatten(1).sort(0).values, torch.tensor(load_digits().images).byte().flatten(1).sort(0).values)
    assert not rows(dls.train_ds.levels) & rows(dls.valid_ds.levels) # no digit occurs twice in this set

def test_photo_crops_share_no_pixel():
    seen = {}
    for part,n in ('train',4096),('valid',512):
        crops,corners = _photo_crops(part, n)
        same(torch.as_tensor(crops), getattr(dls_of('photos'), f'{part}_ds').levels)
        seen[part] = [{int(y)+i for y,_ in c for i in range(32)} for c in corners] # the rows that its crops touch
    for a,b in zip(*seen.values()): assert not a & b

@pytest.mark.parametrize('name', ['digits', 'photos'])
def test_seed_moves_order_and_nothing_else(name):
    a,b = (dls_of(name, seed=s, bs=400) for s in (1,2))
    assert a.info==b.info
    same(a.train_ds.levels, b.train_ds.levels); same(epoch(a.valid), epoch(b.valid))
    assert not torch.equal(epoch(a.train), epoch(b.train))

# Order, mirrors, resumption

@pytest.mark.parametrize('seed', [0, 7, np.int64(7), 2**32-1])
def test_order_is_free_of_global_state(seed):
    got = []
    for g in range(2):
        random.seed(g); np.random.seed(g); torch.manual_seed(g)
        dls = dls_of('photos', seed=seed, bs=400)
        got.append(torch.cat([epoch(dls.train), epoch(dls.train)]))
        torch.rand(g)
    same(*got)
    assert not torch.equal(*got[0].chunk(2)) # a new order every epoch

def test_state_of_rng_resumes_a_run():
    whole = dls_of('photos', seed=3, bs=400); epochs = [epoch(whole.train) for _ in range(3)]
    part = dls_of('photos', seed=3, bs=400); epoch(part.train)
    state = json.loads(json.dumps(part.train.rng.getstate())) # a checkpoint is a file
    resumed = dls_of('photos', seed=99, bs=400)
    resumed.train.rng.setstate((state[0], tuple(state[1]), state[2]))
    for e in epochs[1:]: same(epoch(resumed.train), e)

def test_validation_between_epochs_and_looking_change_nothing():
    a,b = (dls_of('photos', seed=5, bs=400) for _ in range(2))
    for _ in range(2):
        b.one_batch(); b.valid.one_batch(); epoch(b.valid); b.show_batch()
        same(epoch(a.train), epoch(b.train))

def test_half_are_mirrored_and_every_image_comes_once():
    k = noise(1000, 1, 4, 4)
    dl = ImageDL(TensorImages(k, flip=True), bs=64, shuffle=True, num_workers=0)
    plain,mirrored = ({a.tobytes() for a in b} for b in (k, k[...,::-1].copy()))
    got = [a.numpy().tobytes() for b in dl for a in b]
    assert len(set(got))==1000 and set(got)<=plain|mirrored and 400<len(set(got)&mirrored)<600
    same(torch.cat(list(dl.new(shuffle=False))), torch.tensor(k))
    same(dl.dataset.levels, torch.tensor(k)) # the set itself was not mirrored in place

@pytest.mark.parametrize('flip,expected', [(True, True), (False, False)])
def test_flip_is_the_users_choice(flip, expected):
    for name in 'digits','photos':
        dls = dls_of(name, flip=flip)
        assert dls.train_ds.flip==expected and not dls.valid_ds.flip
        known = rows(to_unit(dls.train_ds.levels, dls.info.levels))
        assert (rows(epoch(dls.train)) <= known) == (not flip)

def test_indices_can_be_dealt_out():
    "What distributed training does: take the indices, give each process its part, ask the loader for those batches"
    dl = ImageDL(TensorImages(noise(32, 1, 4, 4), flip=True), bs=4, shuffle=True, num_workers=0)
    whole = torch.cat(list(dl)); dl.rng = random.Random(0); dl.randomize()
    idxs = torch.tensor(dl.get_idxs()).tolist()
    same(torch.cat([b for r in range(2) for b in dl.create_batches(idxs[r*16:(r+1)*16])]), whole)

def test_small_set_is_kept_whole():
    dl = ImageDL(TensorImages(noise(3, 1, 4, 4)), bs=64, num_workers=0)
    assert [len(b) for b in dl]==[3]

def test_learner_predicts_training_images_in_order():
    dls = dls_of('photos', bs=100)
    _,y = Learner(dls, nn.Conv2d(3, 3, 1), loss_func=F.mse_loss, cbs=[]).get_preds(ds_idx=0)
    same(y, to_unit(dls.train_ds.levels, 256)) # neither shuffled, nor mirrored, nor cut short

# Folders

def test_folder(folder):
    dls = dls_of(folder, bs=4)
    i = dls.info
    assert (i.name, i.channels, i.image_size, i.levels, i.n_train, i.n_valid) == (folder.name, 3, (6,9), 256, 18, 2)
    assert 'seed 0' in i.split and str(folder) not in json.dumps(dataclasses.asdict(i))
    train,valid = (rows(to_levels(epoch(dl.new(shuffle=False, drop_last=False)), 256)) for dl in dls)
    assert not train&valid
    assert train|valid == {noise(6, 9, 3, seed=i).transpose(2,0,1).tobytes() for i in range(20)}

def test_folder_split_follows_seed(folder):
    a,b,c = (dls_of(str(folder), seed=s) for s in (0,0,1))
    assert a.train_ds.files==b.train_ds.files and a.info==b.info
    assert set(a.valid_ds.files)!=set(c.valid_ds.files) and a.info.sha256==c.info.sha256

def test_workers_change_nothing(folder, monkeypatch):
    monkeypatch.setattr(data, 'IN_MEMORY', 0)
    assert get_dls('digits').train.fake_l.num_workers==0 and get_dls(folder).train.fake_l.num_workers==min(16, defaults.cpus)
    a,b = (dls_of(folder, bs=4, flip=True, num_workers=n) for n in (0,2))
    assert b.train.fake_l.num_workers==2
    for _ in range(2): same(epoch(a.train), epoch(b.train))
    state = a.train.rng.getstate(); b.train.rng.setstate(state)
    same(epoch(a.train), epoch(b.train))

def test_folder_smaller_than_a_batch(folder):
    dls = dls_of(folder, bs=64)
    assert len(epoch(dls.train))==18 and len(epoch(dls.valid))==2

def test_two_images_are_enough(tmp_path):
    for i in range(2): save(tmp_path/f'{i}.png', noise(4, 4, seed=i))
    info = dls_of(tmp_path).info
    assert (info.n_train, info.n_valid, info.channels)==(1, 1, 1)

def test_digest_notices_added_renamed_and_changed_files(folder):
    seen = [dls_of(folder).info.sha256]
    save(folder/'new.png', noise(6, 9, 3, seed=99)); seen.append(dls_of(folder).info.sha256)
    (folder/'new.png').rename(folder/'newer.png'); seen.append(dls_of(folder).info.sha256)
    with open(folder/'newer.png', 'ab') as f: f.write(b'\0')
    seen.append(dls_of(folder).info.sha256)
    assert len(set(seen))==4

@pytest.mark.parametrize('make,channels', [
    (lambda a: Image.fromarray(a), 1), (lambda a: Image.fromarray(a>127), 1), (lambda a: Image.fromarray(np.stack([a,0*a+255], 2)), 1),
    (lambda a: Image.fromarray(a.astype(np.uint16)*256+37), 1), (lambda a: Image.fromarray(a).convert('RGB'), 3),
    (lambda a: Image.fromarray(np.stack([a,a,a,0*a+255], 2)), 3), (lambda a: Image.fromarray(np.stack([a,a,a], 2)).quantize(256), 3)],
    ids=['L','1','LA','I;16','RGB','RGBA','P'])
def test_modes(tmp_path, make, channels):
    a = noise(5, 7)
    for i in range(2): make(a).save(tmp_path/f'{i}.png')
    dls = dls_of(tmp_path)
    want = np.where(a>127, 255, 0) if Image.open(tmp_path/'0.png').mode=='1' else a
    assert dls.info.channels==channels
    same(to_levels(dls.valid.one_batch()[0][0], 256), torch.tensor(want).byte().expand(channels, 5, 7))

def test_one_colour_image_makes_all_rgb(tmp_path):
    save(tmp_path/'a.png', noise(4, 4)); save(tmp_path/'b.png', noise(4, 4).astype(np.uint16)*257); save(tmp_path/'c.png', noise(4, 4, 3))
    dls = dls_of(tmp_path)
    assert dls.info.channels==3 and epoch(dls.train).shape==(2,3,4,4)
    for f in dls.train_ds.files + dls.valid_ds.files:
        x = FileImages([f], 'RGB', (4,4))[0]
        same(x, torch.tensor(noise(4, 4, 3)).permute(2,0,1) if f.name=='c.png' else torch.tensor(noise(4, 4)).expand(3, 4, 4))

@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.ppm', '.webp', '.PNG'])
def test_formats(tmp_path, suffix):
    for i in range(2): Image.fromarray(noise(6, 4, 3, seed=i)).save(tmp_path/f'{i}{suffix}', **(dict(lossless=True) if suffix=='.webp' else {}))
    dls = dls_of(tmp_path)
    assert rows(to_levels(torch.cat([epoch(dls.train), epoch(dls.valid)]), 256)) == {noise(6, 4, 3, seed=i).transpose(2,0,1).tobytes() for i in range(2)}

def test_names_of_all_kinds(tmp_path):
    for i,n in enumerate(('größe 1.png', '図/β–vae.png', "it's [0] %s.png", '.hidden.png', '.cache/x.png')): save(tmp_path/n, noise(4, 4, seed=i))
    (tmp_path/'readme.txt').write_text('no image')
    dls = dls_of(tmp_path)
    assert dls.info.n_train+dls.info.n_valid==3 # hidden ones and other files are left out
    assert len(epoch(dls.train))==2

def test_read_only_folder_is_enough(folder):
    before = sorted(folder.rglob('*'))
    for p in [*before, folder]: os.chmod(p, 0o555 if p.is_dir() else 0o444)
    try: assert len(epoch(dls_of(folder).train))==18 and sorted(folder.rglob('*'))==before
    finally:
        for p in [folder, *before]: os.chmod(p, 0o755)

@pytest.mark.parametrize('size,hw', [(4, (4,4)), ((3,8), (3,8)), ([12,5], (12,5)), ((6,9), (6,9)), (np.int64(20), (20,20))])
def test_size(folder, size, hw):
    save(folder/'tall.png', noise(40, 7, 3))
    dls = dls_of(folder, size=size)
    assert dls.info.image_size==hw and epoch(dls.train).shape[1:]==(3,*hw)
    json.dumps(dataclasses.asdict(dls.info))

def test_centre_is_kept(tmp_path):
    a = np.zeros((4, 12), np.uint8); a[:,4:8] = 255
    for i in range(2): save(tmp_path/f'{i}.png', a)
    same(dls_of(tmp_path, size=4).valid.one_batch()[0], torch.ones(1,1,4,4))

def test_name_wins_over_folder_and_path_does_not(tmp_path, monkeypatch):
    for i in range(2): save(tmp_path/'digits'/f'{i}.png', noise(4, 4))
    monkeypatch.chdir(tmp_path)
    assert dls_of('digits').info.n_train==1437
    assert dls_of('./digits').info.n_train==1 and dls_of(tmp_path/'digits').info.n_train==1
    from pathlib import Path
    assert dls_of(Path('digits')).info.n_train==1

# Refusals: before any training, by name

@pytest.mark.parametrize('name,kind,words', [
    ('photo', ValueError, ["'photo'", 'digits, photos', "Did you mean 'photos'?"]), ('DIGITS', ValueError, ["Did you mean 'digits'?"]),
    ('mnist', ValueError, ["'mnist'", 'nor a folder that exists', 'Check the spelling']), ('', ValueError, ["''"]),
    ('no/such/place', FileNotFoundError, ["'no/such/place'", 'nor a folder that exists']), (None, ValueError, ['name_or_folder is None']), (3, ValueError, ['name_or_folder is 3'])])
def test_unknown_name(name, kind, words):
    with pytest.raises(kind) as e: get_dls(name)
    for w in words: assert w in str(e.value)

@pytest.mark.parametrize('kw,words', [(dict(bs=0), 'bs is 0;'), (dict(bs=-3), 'bs is -3;'), (dict(bs=2.5), 'bs is 2.5;'), (dict(bs=None), 'bs is None;'),
    (dict(seed=-1), 'seed is -1;'), (dict(seed=2**32), 'seed is'), (dict(seed=None), 'seed is None;'), (dict(seed=.5), 'seed is 0.5;'),
    *[(dict(size=s), f'size is {s!r}; it must be') for s in (0, -1, 2.5, 'big', (8,), (8,8,8), (8,0), True, ())]], ids=str)
@pytest.mark.parametrize('where', ['digits', 'folder'])
def test_bad_arguments(where, kw, words, folder):
    with pytest.raises(ValueError) as e: get_dls(folder if where=='folder' else where, **kw)
    assert words in str(e.value)

def test_embedded_sets_are_not_resized():
    assert dls_of('digits', size=8).info.image_size==(8,8)
    with pytest.raises(ValueError, match='digits are 8x8; only a folder can be resized'): get_dls('digits', size=(8,9))

@pytest.mark.parametrize('n,words', [(0, 'holds no image files'), (1, 'holds 1 image file ')])
def test_too_few_images(tmp_path, n, words):
    for i in range(n): save(tmp_path/f'{i}.png', noise(4, 4))
    with pytest.raises(ValueError, match=words): get_dls(tmp_path)

def test_mixed_sizes_name_both(folder):
    save(folder/'z.png', noise(9, 6, 3))
    with pytest.raises(ValueError, match=r'02\.png is 6x9, .*z\.png is 9x6 .*size=6'): get_dls(folder)

@pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0'], ids=['empty','text','png-head','jpeg-head'])
def test_unreadable_file(folder, content):
    (folder/'a'/'broken.png').write_bytes(content)
    with pytest.raises(ValueError, match=r'broken\.png cannot be read as an image') as e: get_dls(folder)
    assert ' object at 0x' not in str(e.value)

def test_truncated_png_is_found_at_the_start(folder):
    f = save(folder/'cut.png', noise(6, 9, 3))
    f.write_bytes(f.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r'cut\.png cannot be read'): get_dls(folder)

@pytest.mark.parametrize('num_workers', [0, 2])
def test_truncated_jpeg_is_named_when_its_turn_comes(tmp_path, num_workers, monkeypatch):
    monkeypatch.setattr(data, 'IN_MEMORY', 0)                                          # too many to be kept
    for i in range(4): Image.fromarray(noise(64, 64, 3)).save(tmp_path/f'{i}.jpg', quality=95)
    dls = dls_of(tmp_path, bs=1, num_workers=num_workers)
    f = dls.train_ds.files[0]; f.write_bytes(f.read_bytes()[:4000])
    with pytest.raises(ValueError, match=rf'{f.name} could not be read'): epoch(dls.train)

def test_a_file_is_read_to_its_end_before_training(tmp_path):
    for i in range(6): Image.fromarray(noise(64, 64, 3, seed=i)).save(tmp_path/f'{i}.jpg', quality=95)
    whole = dls_of(tmp_path).info
    f = tmp_path/'3.jpg'
    f.write_bytes(f.read_bytes()[:4000])                                               # its header is all right
    with pytest.raises(ValueError, match=r"3\.jpg cannot be read as an image \(.*damaged='skip'"): dls_of(tmp_path)
    with pytest.warns(data.DamagedFileWarning, match=r'1 of 6 files in .* are left out: 3\.jpg\.'): less = dls_of(tmp_path, damaged='skip')
    assert less.info.n_train+less.info.n_valid==5 and less.info.sha256!=whole.sha256
    f.unlink()
    assert dls_of(tmp_path).info==less.info                                            # as if it had never been there
    with pytest.raises(ValueError, match="damaged is 'maybe'; it must be 'stop' or 'skip'"): dls_of(tmp_path, damaged='maybe')

def test_kept_or_read_again_is_the_same(folder, monkeypatch):
    kept = dls_of(folder, bs=4, size=5)
    monkeypatch.setattr(data, 'IN_MEMORY', 300)                                        # some are kept at first
    read = dls_of(folder, bs=4, size=5)
    assert isinstance(read.train_ds, FileImages) and isinstance(kept.train_ds, TensorImages)
    assert kept.info==read.info and kept.train_ds.files==read.train_ds.files
    for _ in range(2): same(epoch(kept.train), epoch(read.train))
    same(epoch(kept.valid), epoch(read.valid))

@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kept', [True, False])
def test_pictures_stand_as_viewers_show_them(tmp_path, orientation, kept, monkeypatch):
    if not kept: monkeypatch.setattr(data, 'IN_MEMORY', 0)
    from PIL import ImageOps
    exif = Image.Exif(); exif[0x0112] = orientation
    ramp = np.stack([np.add.outer(np.arange(32)*6, np.arange(24)*2)]*3, -1).astype(np.uint8)
    for i in range(2): Image.fromarray(ramp).save(tmp_path/f'{i}.jpg', exif=exif, quality=100)
    with Image.open(tmp_path/'0.jpg') as im: shown = np.asarray(ImageOps.exif_transpose(im))
    dls = dls_of(tmp_path, bs=1)
    assert dls.info.image_size==shown.shape[:2]==((32,24) if orientation<5 else (24,32))
    assert np.array_equal(dls.train_ds[0].permute(1,2,0).numpy(), shown)
    other = {1: ramp, 3: ramp[::-1,::-1], 6: np.rot90(ramp, -1), 8: np.rot90(ramp)}.get(orientation)  # by the standard
    if other is not None: assert abs(shown.astype(int)-other).mean()<2

def test_the_same_bytes_are_the_same_pictures(folder, tmp_path):
    import shutil
    a = dls_of(folder, size=4).info
    shutil.copytree(folder, moved := tmp_path/'elsewhere'/folder.name)
    assert dls_of(moved, size=4).info==a
    f = sorted(moved.rglob('*.png'))[0]
    with Image.open(f) as im: pixels = np.array(im)
    pixels[0,0] ^= 1
    size = f.stat().st_size
    save(f, pixels)
    assert dls_of(moved, size=4).info.sha256!=a.sha256, size

@pytest.mark.parametrize('k', [2, 5])
def test_an_epoch_of_several_passes(k):
    dls = dls_of('digits', bs=32, repeat=k, flip=True)
    assert len(dls.train)==k*1437//32 and dls.info==dls_of('digits').info
    counts = np.bincount(np.array(dls.train.dataset.index), minlength=1437)
    assert (counts==k).all()
    same(epoch(dls.train), epoch(dls_of('digits', bs=32, repeat=k, flip=True).train))
    with pytest.raises(ValueError, match='repeat is 0'): dls_of('digits', repeat=0)

@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_32_bit_is_refused(tmp_path, dtype):
    for i in range(2): Image.fromarray(noise(4, 4).astype(dtype)).save(tmp_path/f'{i}.tif')
    with pytest.raises(ValueError, match=r'0\.tif cannot be read .* 32-bit pixels'): get_dls(tmp_path)

# Figures

@pytest.mark.parametrize('shape,kw,pixels', [((5,1,8,8), {}, (19,28)), ((5,3,8,8), dict(nrow=5), (10,46)), ((3,8,8), {}, (8,8)), ((2,1,4,64), dict(nrow=9), (8,134))])
def test_show_images(shape, kw, pixels):
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    ax = show_images(torch.rand(shape, requires_grad=True)*4-2, title='t', **kw)
    shown = ax.images[0].get_array()
    assert shown.shape[:2]==pixels and 0<=shown.min() and shown.max()<=1 and ax.get_title()=='t' and ax.images[0].get_interpolation()=='nearest'
    assert show_images(torch.zeros(2,1,8,8).half(), ax=ax) is ax
    plt.close('all')

@pytest.mark.parametrize('shape', [(0,1,8,8), (2,2,8,8), (8,8), (1,2,3,4,5)])
def test_show_images_refuses(shape):
    with pytest.raises(ValueError, match='show_images takes'): show_images(torch.zeros(shape))

def test_path_is_where_a_folder_is_looked_for(tmp_path):
    (tmp_path/'cats').mkdir()
    for i in range(4): Image.new('L', (8,8), i).save(tmp_path/'cats'/f'{i}.png')
    assert get_dls('cats', bs=2, path=tmp_path, num_workers=0).info==get_dls(tmp_path/'cats', bs=2, num_workers=0).info
    assert get_dls('digits', path=tmp_path).info.name=='digits'
    with pytest.raises(FileNotFoundError, match='dogs'): get_dls('dogs', path=tmp_path)

# Folders that are parted by their owner

def parted(root, **n):
    for part,k in n.items():
        for i in range(k): save(root/part/f'{i}.png', noise(4, 4, seed=1000*sum(map(ord, part))+i))
    return root
def names(ds, root): return [f.relative_to(root).as_posix() for f in ds.files]

@pytest.mark.parametrize('val', ['valid', 'val'])
def test_subfolders_part_a_folder(tmp_path, val):
    parted(tmp_path, train=5, test=3, **{val:2}); save(tmp_path/'other'/'x.png', noise(9, 9)) # left alone, of whatever size
    a,b = (dls_of(tmp_path, seed=s) for s in (0,1))
    assert [names(d.dataset, tmp_path) for d in a]==[[f'train/{i}.png' for i in range(5)], [f'{val}/{i}.png' for i in range(2)], [f'test/{i}.png' for i in range(3)]]
    assert a.info==b.info and (a.info.n_train, a.info.n_valid, a.info.n_test)==(5, 2, 3) and a.test is a[2] and not a.test.shuffle
    (tmp_path/'test'/'0.png').rename(tmp_path/'train'/'9.png') # the same images, parted otherwise
    assert dls_of(tmp_path).info.sha256!=a.info.sha256

def test_without_test_or_without_validation(tmp_path):
    dls = dls_of(parted(tmp_path/'a', train=3, valid=1))
    assert (dls.test, dls.info.n_test, len(dls.loaders))==(None, 0, 2)
    one,two = (dls_of(parted(tmp_path/'b', train=20, test=3), seed=s) for s in (0,1))
    assert (one.info.n_train, one.info.n_valid, one.info.n_test)==(18, 2, 3) and one.info==two.info and one.valid_ds.files==two.valid_ds.files
    assert sorted(names(one.train_ds, tmp_path/'b')+names(one.valid_ds, tmp_path/'b'))==sorted(f'train/{i}.png' for i in range(20))
    dls = dls_of(parted(tmp_path/'c', train=20)) # one subfolder is no split
    assert (dls.info.n_train, dls.info.n_valid, dls.info.n_test)==(18, 2, 0) and 'by seed 0' in dls.info.split

@pytest.mark.parametrize('n,words', [(dict(train=2, valid=1, val=1), 'a subfolder valid and a subfolder val'), (dict(train=1, test=1), 'holds 1 image file, and there is no folder valid')])
def test_subfolders_refused(tmp_path, n, words):
    with pytest.raises(ValueError, match=words): get_dls(parted(tmp_path, **n))

@pytest.mark.parametrize('part', ['train', 'valid', 'test'])
def test_empty_part(tmp_path, part):
    parted(tmp_path, train=3, valid=1, test=1)
    for f in (tmp_path/part).iterdir(): f.unlink()
    with pytest.raises(ValueError, match=f"{part}' holds no image files"): get_dls(tmp_path)

def test_levels_of_a_folder(folder, monkeypatch):
    monkeypatch.setattr(data, 'IN_MEMORY', 0)
    a,b = (dls_of(folder, bs=4, levels=n) for n in (None, 32))
    assert b.info==dataclasses.replace(a.info, levels=32) and b.train.fake_l.num_workers==0
    same(to_levels(epoch(a.train), 256)>>3, to_levels(epoch(b.train), 32))
    assert get_dls(folder, levels=32).train.fake_l.num_workers==min(16, defaults.cpus)

def test_a_folder_called_like_a_set_keeps_its_levels(tmp_path):
    for i in range(3): save(tmp_path/'celebahq256'/f'{i}.png', noise(4, 4, seed=i))
    assert dls_of(tmp_path/'celebahq256').info.levels==256

# Names of parts: understood, or refused with what to rename

@pytest.mark.parametrize('layout,counts', [
    ('train validation', (8,8,0)), ('Train Val', (8,8,0)), ('training validation testing', (8,8,8)), ('train dev', (8,8,0)), ('TRAIN TEST', (7,1,8)), ('train_images test_images', (7,1,8)),
    ('train2017 val2017 test2017', (8,8,8)), ('seg_train/seg_train seg_test/seg_test', (7,1,8)), ('Training/cats Training/dogs Test/cats Test/dogs', (14,2,16)), ('trainval test', (7,1,8))])
def test_parts_are_understood_by_other_names(tmp_path, layout, counts):
    parted(tmp_path, **{n:8 for n in layout.split()}, extra=2)
    dls = dls_of(tmp_path, bs=2)
    assert (dls.info.n_train, dls.info.n_valid, dls.info.n_test)==counts and dls.info.split.startswith('By the subfolders '+', '.join(dict.fromkeys(n.split('/')[0] for n in layout.split())))
    assert all(n[:5].lower()=='train' or n[:9]=='seg_train' for n in names(dls.train_ds, tmp_path)) and len({*names(dls.train_ds, tmp_path)})==counts[0]
    assert dls.test is None or all('test' in n.lower() for n in names(dls.test.dataset, tmp_path))

@pytest.mark.parametrize('layout,words', [
    (('valid','test'), "has a subfolder valid, but none for training. Call the one with the training images train"), (('test','.'), 'has a subfolder test, but none for training'),
    (('test',), "if these are all there is, give '.*test' itself"), (('cats','dogs','eval'), 'has a subfolder eval, but none for training'),
    (('train','cats'), 'has a subfolder train, and images elsewhere, such as cats/0.png'), (('train','.'), 'images elsewhere, such as 0.png'),
    (('train','Train','test'), 'a subfolder train and a subfolder Train; training is one of them'), (('train','test','testing'), 'a subfolder testing and a subfolder test; test is one of them'),
    (('trainA','trainB','testA','testB'), 'a subfolder trainB and a subfolder trainA; training is one of them'), (('images/train','images/val'), "images/val, which is called after validation.*give '.*images'"),
    (('cats/train','cats/test','dogs/train','dogs/test'), 'images in cats/test, which is called after test'), (('train','train/val'), 'images in train/val, which is called'),
    (('train','test','test/train'), 'images in test/train, which is called after training'), (('train/a_train','train/a_test','valid'), 'images in train/a_test')], ids=str)
def test_parts_that_cannot_be_understood(tmp_path, layout, words):
    with pytest.raises(ValueError, match=words): get_dls(parted(tmp_path, **{n:2 for n in layout}))

@pytest.mark.parametrize('layout', [('cats','dogs'), ('bullet_train','cats'), ('test_tube','flask'), ('train',), ('all/train',), ('train/train',), ('.',), ('contest','valley')], ids=', '.join)
def test_no_parts_are_drawn_at_random(tmp_path, layout):
    parted(tmp_path, **{n:10 for n in layout})
    if not (tmp_path/'train').exists(): (tmp_path/'test').mkdir()                      # empty, and no part of anything
    info = dls_of(tmp_path).info
    assert 'at random' in info.split and info.n_train+info.n_valid==10*len(layout)

# One picture by several names

def pictures(root, n=20, start=0):
    for i in range(n): save(root/f'{i:02}.png', noise(4, 4, seed=start+i))
    return root
def contents(ds): return {f.read_bytes() for f in ds.files}

@pytest.mark.parametrize('links', [{'self':'.'}, {'a/one':'..', 'a/two':'..', 'three':'a'}, {'all':'.', '99.png':'03.png'}, {'away':'../other', '50.png':'../other/01.png'}], ids=str)
def test_links_give_no_picture_twice(tmp_path, links):
    pictures(tmp_path/'p'); pictures(tmp_path/'other', 5, 100); (tmp_path/'p/a').mkdir()
    for name,to in links.items(): (tmp_path/'p'/name).symlink_to(to)
    with warnings.catch_warnings(): warnings.simplefilter('ignore', ImagesWarning); dls = dls_of(tmp_path/'p')
    assert dls.info.n_train+dls.info.n_valid==20+5*('away' in links) and not contents(dls.train_ds)&contents(dls.valid_ds)

@pytest.mark.parametrize('copy', [shutil.copy, os.link, os.symlink])
def test_copies_stand_on_one_side_and_are_told(tmp_path, copy):
    pictures(tmp_path)
    for i in range(20): copy(tmp_path/f'{i:02}.png', tmp_path/f'x{i}.png')
    for seed in range(5):
        with pytest.warns(ImagesWarning, match=r'20 of 40 files in .* are copies of others and are left out: x0\.png is 00\.png\.'): dls = dls_of(tmp_path, seed=seed)
        assert (dls.info.n_train, dls.info.n_valid)==(18, 2) and not contents(dls.train_ds)&contents(dls.valid_ds)

def test_a_held_out_picture_is_trained_on_by_no_name(tmp_path):
    parted(tmp_path, train=5, val=2, test=3)
    for a,b in ('test/0','train/again'),('val/1','train/b/once more'),('test/2','val/9'),('train/0','train/same'): (tmp_path/'train/b').mkdir(exist_ok=True); shutil.copy(tmp_path/f'{a}.png', tmp_path/f'{b}.png')
    with pytest.warns(ImagesWarning, match=r'4 of 14 files in .* are copies of others, 3 of them of a picture that another part holds out, and are left out: val/9\.png is test/2\.png'): dls = dls_of(tmp_path)
    assert [names(d.dataset, tmp_path) for d in dls]==[[f'train/{i}.png' for i in range(5)], ['val/0.png','val/1.png'], [f'test/{i}.png' for i in range(3)]]
    (tmp_path/'train/linked').symlink_to('../val')                                     # a link to what is held out
    with pytest.warns(ImagesWarning): assert contents(dls_of(tmp_path).train_ds)==contents(dls.train_ds)

def test_a_part_of_nothing_but_copies(tmp_path):
    parted(tmp_path, test=3)
    shutil.copytree(tmp_path/'test', tmp_path/'train')
    with pytest.warns(ImagesWarning), pytest.raises(ValueError, match="train' holds no image files .* copies of held-out images do not count"): get_dls(tmp_path)

def test_one_picture_many_times_is_told(tmp_path):
    for i in range(10): save(tmp_path/f'{i}.png', noise(4, 4))
    with pytest.warns(ImagesWarning, match="9 of 10 files in .* are copies of a single picture, so that training and validation can't differ"): assert dls_of(tmp_path).info.n_train==9

def test_celebahq_without_copies(tmp_path):
    for i in range(30): Image.fromarray(np.full((256,256,3), i, np.uint8)).save(tmp_path/f'{i:02}.png'); shutil.copy(tmp_path/f'{i:02}.png', tmp_path/f'x{i:02}.png')
    with pytest.warns(ImagesWarning, match='30 of 60'): dls = dls_of('celebahq256', path=tmp_path)
    assert (dls.info.n_train, dls.info.n_valid, dls.info.n_test)==(24, 3, 3)

def pgm(path, *values): path.parent.mkdir(parents=True, exist_ok=True); path.write_bytes(f'P5 {len(values)} 1 255\n'.encode()+bytes(values))

def test_plain_folders_are_what_they_were(tmp_path):
    "Identity and split of runs that exist already"
    for i in range(20): pgm(tmp_path/'plain'/('sub' if i%3 else '.')/f'{i:02}.pgm', i, 200); pgm(tmp_path/f'two/train/{i}.pgm', i, 5)
    for part,n in dict(train=8, val=2, test=3).items():
        for i in range(n): pgm(tmp_path/f'parted/{part}/{i}.pgm', i, len(part)*7+ord(part[0]))
    for i in range(3): pgm(tmp_path/f'two/test/{i}.pgm', i, 4)
    plain,own,two = (dls_of(tmp_path/n, seed=3) for n in ('plain','parted','two'))
    assert [dataclasses.astuple(d.info)[4:] for d in (plain, own, two)]==[
        (18, 2, 'e60e6cb44eee9adb42d5513ce0917c78063b593469d3ba53c46e0bd2f0034878', 'Drawn at random, 90 % to 10 %, by seed 3.', 0, ''),
        (8, 2, 'f8b1dcce21d730724e6562c1bdcc268906ae58dbf15b95d5385e877518932954', 'By the subfolders train, val, test.', 3, ''),
        (18, 2, '051e192b9641b358058b43fc622c5bfc8151d28013d25a85b681a283e19a6b2d', 'By the subfolders train, test; a tenth of train was drawn for validation, the same for every seed.', 3, '')]
    assert names(plain.valid_ds, tmp_path/'plain')==['06.pgm','sub/11.pgm'] and names(two.valid_ds, tmp_path/'two')==['train/1.pgm','train/8.pgm']

# Files as people have them

def test_icons_on_a_clear_ground_differ(tmp_path):
    for i in range(12):
        a = np.zeros((32,32,4), np.uint8); a[8:24,4+i:10+i,3] = 255
        Image.fromarray(a).save(tmp_path/f'{i}.png')
    with pytest.warns(ImagesWarning, match='12 of 12 images of .* are transparent in places, and stand on white: 0.png and others'): dls = dls_of(tmp_path, bs=4)
    assert len(rows(dls.train_ds.levels)|rows(dls.valid_ds.levels))==12
    x = to_levels(dls.valid.one_batch()[0][0], 256)
    assert x[:,0,0].tolist()==[255]*3 and x.min()==0

@pytest.mark.parametrize('kept', [True, False])
def test_twelve_bits_keep_one_range(tmp_path, kept, monkeypatch):
    "The brightest picture decides for the dark ones; a grey picture of 8 bits stays what it is"
    if not kept: monkeypatch.setattr(data, 'IN_MEMORY', 0)
    for i,most in enumerate((4095,1024,255)): Image.fromarray(np.linspace(0, most, 64).round().astype(np.uint16).reshape(8,8)).save(tmp_path/f'{i}.tif')
    save(tmp_path/'3.png', np.full((8,8), 200, np.uint8))
    with pytest.warns(ImagesWarning, match='3 images of .* needs 12: the values from 0 to 4095 become'): dls = dls_of(tmp_path)
    assert isinstance(dls.train_ds, TensorImages if kept else FileImages)
    most = {f.name: int(ds[i].max()) for ds in (dls.train_ds,dls.valid_ds) for i,f in enumerate(ds.files)}
    assert most=={'0.tif':255, '1.tif':64, '2.tif':15, '3.png':200}
    (tmp_path/'0.tif').unlink()
    with pytest.warns(ImagesWarning, match='needs 11'): less = dls_of(tmp_path).info
    assert less.sha256!=dls.info.sha256

@pytest.mark.parametrize('make,plain', [(lambda i: np.stack([noise(4, 4)]*3+[0*noise(4, 4)+i], 2), False), (lambda i: noise(4, 4, seed=i).astype(np.uint16)*16, False),
    (lambda i: noise(4, 4, seed=i).astype(np.uint16)*257, True), (lambda i: np.stack([noise(4, 4, seed=i)]*3+[0*noise(4, 4)+255], 2), True)], ids=['clear','12 bits','16 bits','opaque'])
def test_the_identity_covers_what_was_done(tmp_path, make, plain):
    "Where the same bytes gave other pixels in older runs"
    from hashlib import sha256
    for i in range(2): Image.fromarray(make(i)).save(tmp_path/f'{i}.png')
    with warnings.catch_warnings(): warnings.simplefilter('ignore', ImagesWarning); info = dls_of(tmp_path).info
    assert (info.sha256==sha256('\n'.join(f'{i}.png {sha256((tmp_path/f"{i}.png").read_bytes()).hexdigest()}' for i in range(2)).encode()).hexdigest())==plain

@pytest.mark.parametrize('folder', [b'p', b'caf\xe9'])
def test_names_in_any_encoding(tmp_path, folder):
    root = os.path.join(os.fsencode(tmp_path), folder)
    try: os.makedirs(root)
    except OSError: pytest.skip('this file system has no such names')
    root = os.fsdecode(root)
    for i in range(4): Image.fromarray(noise(4, 4, seed=i)).save(os.path.join(root, os.fsdecode(b'caf\xe9 %d.png'%i)))
    dls = dls_of(root)
    json.dumps(dataclasses.asdict(dls.info)).encode(); dls.info.name.encode()
    assert dls.info.n_train+dls.info.n_valid==4 and len(epoch(dls.train))==3
    shutil.copy(dls.train_ds.files[0], os.path.join(root, os.fsdecode(b'\xff.png')))
    with pytest.warns(ImagesWarning) as told: dls_of(root)
    assert b'\\xff.png' in str(told[0].message).encode()
    open(os.path.join(root, os.fsdecode(b'\xfe.png')), 'wb').close()
    with pytest.raises(ValueError) as e: dls_of(root)
    assert b'\\xfe.png cannot be read' in str(e.value).encode()
    Image.new('L', (9,9)).save(os.path.join(root, os.fsdecode(b'\xfe.png')))
    with pytest.warns(ImagesWarning), pytest.raises(ValueError) as e: dls_of(root)
    assert b'\\xfe.png is 9x9' in str(e.value).encode()
    monkey = FileImages([dls.train_ds.files[0].with_name(os.fsdecode(b'\xfd.png'))], 'L', (4,4))
    with pytest.raises(ValueError) as e: monkey[0]
    assert b'\\xfd.png could not be read' in str(e.value).encode()

def test_endings_do_not_come_from_the_machine(tmp_path):
    import mimetypes
    for i,ending in enumerate(('jfif','jpe','jp2','webp','avif','PNG','bmp','tga','gif','ppm')):
        Image.fromarray(noise(8, 8, 3, seed=i)).save(tmp_path/f'{i}.{ending}')
    for name in 'labels.h5','notes.txt','film.mpg','paper.pdf','list': (tmp_path/name).write_text('no picture')
    known = mimetypes.types_map.copy()
    try:
        mimetypes.types_map.clear()
        assert sum(map(len, (dls_of(tmp_path).train_ds, dls_of(tmp_path).valid_ds)))==10
    finally: mimetypes.types_map.update(known)
    (tmp_path/'a.heic').write_bytes(b'x')
    with pytest.warns(ImagesWarning, match=r"1 files in .* are of kinds that can't be read here, and are left out: a\.heic\."): dls_of(tmp_path)

def test_endings_do_not_come_from_what_was_opened_before():
    code = "import mimetypes; mimetypes.knownfiles = []; mimetypes.init(); from sdn_nb.data import image_endings; print(*sorted(image_endings()))"
    fresh = subprocess.run([sys.executable,'-W','ignore','-c',code], capture_output=True, text=True, check=True).stdout.split()
    assert {'.png','.jpg','.jfif','.tif','.webp','.gif','.bmp','.jp2','.mpo'}<={*fresh}=={*data.image_endings()} and '.h5' not in fresh

def test_hidden_files_of_other_systems(tmp_path):
    pictures(tmp_path, 5)
    for name in '._00.png','.DS_Store','Thumbs.db','desktop.ini','__MACOSX/00.png','@eaDir/00.png/THUMB.png','.thumbnails/1.png','$RECYCLE.BIN/1.png','sub/__MACOSX/._1.png':
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).write_bytes(b'no picture')
    assert dls_of(tmp_path).info.n_train==4

def test_what_is_no_regular_file(tmp_path):
    pictures(tmp_path, 3); os.mkfifo(tmp_path/'pipe.png')
    with pytest.raises(ValueError, match=r'pipe\.png cannot be read as an image \(it is not a regular file\)'): get_dls(tmp_path)
    (tmp_path/'pipe.png').unlink(); (tmp_path/'gone.png').symlink_to('nowhere.png')
    with pytest.raises(ValueError, match=r'gone\.png cannot be read as an image'): get_dls(tmp_path)
    (tmp_path/'gone.png').unlink(); (tmp_path/'me.png').symlink_to('me.png')
    with pytest.raises(ValueError, match=r'me\.png cannot be read as an image'): get_dls(tmp_path)

def test_a_folder_of_anything_is_refused_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'MOST_OTHERS', 50)
    pictures(tmp_path, 6)
    for i in range(60): (tmp_path/f'{i:02}.txt').touch()
    assert dls_of(tmp_path).info.n_train==5                                            # a text to ten images is no wonder
    for i in range(10): (tmp_path/f'x{i}').touch()
    (tmp_path/'deeper').mkdir(); monkeypatch.setattr(data.Path, 'read_bytes', lambda f: pytest.fail('was read'))
    with pytest.raises(ValueError, match='holds 70 files that are no images and, so far, 6 that are, .* Give the folder of the images alone'): get_dls(tmp_path)

def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    pictures(tmp_path, 3); (tmp_path/'mine').mkdir()
    def scandir(at, real=os.scandir):
        if str(at).endswith('mine'): raise PermissionError(13, 'Permission denied')
        return real(at)
    monkeypatch.setattr(data.os, 'scandir', scandir)
    with pytest.raises(ValueError, match=r"mine' can't be looked into \(Permission denied\)"): get_dls(tmp_path)

@pytest.mark.parametrize('kw,words', [(dict(num_workers=-1), 'num_workers is -1;'), (dict(num_workers='2'), "num_workers is '2';"), (dict(path=3), 'path is 3;'), (dict(size=10**9), 'size is 1000000000;'),
    (dict(repeat=10**12), 'repeat is 1000000000000, which makes')], ids=str)
def test_absurd_arguments(folder, kw, words):
    with pytest.raises(ValueError, match=words): get_dls(folder, **kw)

@pytest.mark.parametrize('k,words', [(torch.rand(4,1,8,8), 'torch.float32'), (torch.zeros(4,3,8,8).byte(), r'shape \(3, 8, 8\)'), (torch.full((4,1,8,8), 17).byte(), 'up to 17'),
    (torch.zeros(4,1,8,9).byte(), r'shape \(1, 8, 9\)'), (np.zeros((4,1,8,8), np.uint8), 'uint8')], ids=['type','channels','levels','size','array'])
def test_a_source_whose_images_are_not_what_it_says(registered, k, words):
    class Own:
        flip,num_workers = False,0
        def __len__(self): return len(k)
        def __getitem__(self, i): return k[i]
    info = DataInfo('mine', 1, (8,8), 17, 4, 4, 'ab', 'by hand')
    register_dataset('mine', lambda seed, flip, path: (Own(), Own(), None, info))
    with pytest.raises(ValueError, match=f'the sets of mine must hold images of torch.uint8 and shape .* there is .*{words}'): get_dls('mine')
    if isinstance(k, torch.Tensor) and k.is_floating_point():
        with pytest.raises(ValueError, match='`levels` must be uint8'): TensorImages(k)

# What a run kept

def test_info_of_an_older_run():
    saved = json.loads((model_folder('digits')/'config.json').read_text())['data']
    assert DataInfo(**saved)==dls_of('digits').info

def test_embedded_sets_have_no_test_part():
    for name in 'digits','photos':
        dls = dls_of(name)
        assert dls.test is None and dls.info.n_test==0

# Registered sets

@pytest.fixture
def registered(monkeypatch):
    "The register is as it was afterwards"
    from sdn_nb import data
    monkeypatch.setattr(data, 'DATASETS', dict(data.DATASETS))

def test_registered_set(registered):
    "It is known by its name, with levels, mirroring and a test part of its own, and keeps the name from a folder"
    k = noise(40, 3, 4, 6)
    asked = []
    def source(seed, flip, path):
        asked.append((seed, flip, path))
        return image_sets('mine', k, test=k[:5], flip=bool(flip), version='2')
    register_dataset('mine', source, levels=32)
    dls = dls_of('mine', bs=9, seed=3, flip=True, path='somewhere')
    info = dls.info
    assert asked==[(3, True, 'somewhere')]
    assert (info.name, info.channels, info.image_size, info.levels, info.n_train, info.n_valid, info.n_test, info.version)==('mine', 3, (4,6), 32, 36, 4, 5, '2')
    assert rows(to_levels(epoch(dls.test), 32))==rows(torch.tensor(k[:5]>>3))
    parts = [rows(epoch(dls.train.new(shuffle=False, drop_last=False))), rows(epoch(dls.valid))]
    assert len(parts[0])==36 and len(parts[1])==4 and not parts[0]&parts[1]
    assert dls_of('mine', levels=256).info.levels==256
    with pytest.raises(ValueError, match="Did you mean 'mine'"): get_dls('nine')

def test_arrays_given_in_parts_stay_as_they_are(registered):
    train,valid = noise(8, 1, 4, 4)%17,noise(3, 1, 4, 4, seed=1)%17
    register_dataset('mine', lambda seed, flip, path: image_sets('mine', train, valid, levels=17, split='By hand.'))
    dls = dls_of('mine', bs=8)
    assert dls.info.split=='By hand.' and dls.test is None and dls.info.levels==17
    same(to_levels(epoch(dls.valid), 17), torch.tensor(valid))

def test_a_registered_set_is_the_same_each_time_it_is_opened(registered):
    k = noise(200, 1, 4, 4)
    before = k.copy()
    register_dataset('mine', lambda seed, flip, path: image_sets('mine', k))
    a,b = dls_of('mine'),dls_of('mine', seed=1)
    assert np.array_equal(k, before) and a.info==b.info
    same(a.train_ds.levels, b.train_ds.levels); same(a.valid_ds.levels, b.valid_ds.levels)
    assert rows(b.train_ds.levels)|rows(b.valid_ds.levels)==rows(torch.tensor(k)) and not rows(b.train_ds.levels)&rows(b.valid_ds.levels)

def test_overwriting_saves_memory_and_changes_nothing():
    k = noise(200, 1, 4, 4)
    *kept,info = image_sets('mine', k)
    *moved,same_info = image_sets('mine', k, overwrite=True)
    assert info==same_info and np.shares_memory(moved[0].levels.numpy(), k) and not np.shares_memory(kept[0].levels.numpy(), k)
    for a,b in zip(kept[:2], moved[:2]): same(a.levels, b.levels)

def test_arrays_in_any_layout():
    k = noise(20, 4, 6, 3)
    turned = [k[:,:,:,::-1].transpose(0,3,1,2), np.broadcast_to(k[:1].transpose(0,3,1,2), (20,3,4,6))]  # channels last and reversed; read-only
    for a in turned:
        train,valid,_,info = image_sets('mine', a, test=a)
        assert (info.channels, info.image_size, info.n_train, info.n_valid)==(3, (4,6), 18, 2)
        assert rows(train.levels)|rows(valid.levels)==rows(torch.tensor(np.array(a)))

@pytest.mark.parametrize('name,source,words', [('digits', image_sets, "a data set 'digits' already"), ('a/b', image_sets, 'a word of letters'),
    ('', image_sets, 'a word of letters'), (3, image_sets, 'a word of letters'), ('mine', 'file.npy', 'a function of')])
def test_registering_refused(registered, name, source, words):
    with pytest.raises(ValueError, match=words): register_dataset(name, source)

@pytest.mark.parametrize('give,words', [(lambda sets: None, 'no tuple of four'), (lambda sets: sets[:3], 'no tuple of four'),
    (lambda sets: (*sets[:3], {}), 'no DataInfo in the last place'), (lambda sets: (sets[0], [1,2], None, sets[3]), 'no set for validation')])
def test_a_source_that_gives_something_else(registered, give, words):
    register_dataset('mine', lambda seed, flip, path: give(image_sets('mine', noise(20, 1, 4, 4))))
    with pytest.raises(ValueError, match=f"the source of 'mine'.*{words}"): get_dls('mine')

@pytest.mark.parametrize('arrays,words', [(dict(train=noise(9,1,4,4).astype(float)), '`train` of mine must be a uint8 array'), (dict(train=noise(9,4,4)), 'must be a uint8 array'),
    (dict(train=[[1]]), '`train` of mine must be a uint8 array .*got list'), (dict(train=torch.zeros(9,1,4,4).byte()), 'must be a uint8 array'), (dict(train=noise(9,1,4,4), levels=257), 'n_levels is 257'),
    (dict(train=noise(9,2,4,4)), '1 or 3 channels'), (dict(train=noise(9,1,4,4), valid=noise(0,1,4,4)), '`valid` of mine must hold images'),
    (dict(train=noise(9,1,4,4), test=noise(2,1,4,5)), '`test` of mine has images of shape'), (dict(train=noise(9,1,4,4), levels=17), 'holds the value'), (dict(train=noise(1,1,4,4)), 'holds 1 image')])
def test_arrays_that_hold_no_images(arrays, words):
    with pytest.raises(ValueError, match=words): image_sets('mine', **arrays)
