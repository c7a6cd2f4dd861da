"""Published sets in small: files written here in the exact formats go through sdn_nb.formats and get_dls, and come back whole, parted and identified, or refused by name.
The real Fashion-MNIST is read too where the Debian package dataset-fashion-mnist is installed."""
import dataclasses, gzip, hashlib, io, json, pickle, struct, tarfile, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np, pytest, torch, torchvision.datasets
from PIL import Image
from sklearn.model_selection import train_test_split
from sdn_nb import formats
from sdn_nb.data import DataInfo, get_dls, to_levels, to_unit
from sdn_nb.data import _cut
from sdn_nb.formats import read_cifar10, read_fashion_mnist, read_idx, read_imagenet32

debian = Path('/usr/share/datasets/fashion-mnist')
def noise(*shape, seed=0): return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
def dls_of(name, folder, **kw): return get_dls(name, path=folder, device='cpu', num_workers=0, **kw)
def images(dl): return torch.cat([to_levels(x, dl.after_batch.fs[-1].n_levels) for x,_ in dl]).numpy()
def rows(a): return [i.tobytes() for i in np.ascontiguousarray(a)]
def stored(dls): return [images(dl.new(shuffle=False, drop_last=False)) for dl in (dls.train, dls.valid, dls.test)]

# Writers of the formats

def idx(a): return bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()

def fashion_files(train, test, ends=('.gz','.gz')):
    for name,a,end in zip(('train-images-idx3-ubyte','t10k-images-idx3-ubyte'), (train,test), ends):
        yield name+end, gzip.compress(idx(a[:,0])) if end else idx(a[:,0])

def cifar_records(a, k=0): return b''.join(bytes([(i+k)%10])+x.tobytes() for i,x in enumerate(a))
batches = [f'data_batch_{i}' for i in range(1,6)]+['test_batch']
def cifar_parts(train, test): return dict(zip(batches, [*np.split(train, 5), test]))

def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name,data in dict(files).items(): (folder/name).write_bytes(data)
    return folder

def write_fashion(folder, train, test, **kw): return write(folder, fashion_files(train, test, **kw))
def write_binary(folder, train, test): return write(folder, {f'{b}.bin':cifar_records(a) for b,a in cifar_parts(train, test).items()})

def pickles(train, test):
    files = {b:pickle.dumps(dict(data=a.reshape(len(a), -1), labels=[0]*len(a), batch_label=b, filenames=[])) for b,a in cifar_parts(train, test).items()}
    return files | {'batches.meta':pickle.dumps(dict(label_names=list('abcdefghij')))}

def vouch(monkeypatch, files):
    "Let torchvision expect the MD5 sums of these pickles"
    md5 = {n:hashlib.md5(d).hexdigest() for n,d in files.items()}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'train_list', [[b, md5[b]] for b in batches[:5]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'test_list', [['test_batch', md5['test_batch']]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'meta', dict(filename='batches.meta', key='label_names', md5=md5['batches.meta']))

def npz(**arrays): f = io.BytesIO(); np.savez_compressed(f, **arrays); return f.getvalue()
def batch(a): return npz(data=a.reshape(len(a), -1), labels=np.ones(len(a), int), mean=np.zeros(3072))
def write_npz(folder, train, test):
    return write(folder, {f'train_data_batch_{i+1}.npz':batch(a) for i,a in enumerate(np.array_split(train, 10))} | {'val_data.npz':batch(test)})

def write_pngs(folder, arrays):
    for sub,a in arrays.items():
        (folder/sub).mkdir(parents=True, exist_ok=True)
        for i,x in enumerate(a): Image.fromarray(x.transpose(1,2,0)).save(folder/sub/f'{i:05}.png')
    return folder
def write_png(folder, train, test): return write_pngs(folder, dict(train_32x32=train, valid_32x32=test))

sets = dict(fashion=('fashion_mnist', write_fashion, (1,28,28)), cifar=('cifar10', write_binary, (3,32,32)),
    npz=('imagenet32', write_npz, (3,32,32)), png=('imagenet32', write_png, (3,32,32)))

@pytest.fixture(params=sets)
def tiny(request, tmp_path):
    "name of the set, its folder, published training images, test images, and the function that writes them"
    name,writer,shape = sets[request.param]
    train,test = noise(60, *shape),noise(12, *shape, seed=1)
    return name,writer(tmp_path/'set', train, test),train,test,writer

# IDX

@pytest.mark.parametrize('shape', [(1,), (7,), (3,4), (2,3,5), (2,3,4,5), (0,4)], ids=str)
@pytest.mark.parametrize('packed', [False, True], ids=['plain','gzip'])
def test_idx(tmp_path, shape, packed):
    a,f = noise(*shape),tmp_path/'a'
    f.write_bytes(gzip.compress(idx(a)) if packed else idx(a))
    got = read_idx(f)
    assert got.dtype==np.uint8 and got.shape==shape and np.array_equal(got, a) and got.flags.writeable
    assert np.array_equal(read_idx(str(f)), a)

@pytest.mark.parametrize('packed', [False, True], ids=['plain','gzip'])
def test_idx_every_byte_of_the_header_counts(tmp_path, packed):
    good,f = idx(noise(3, 4, 5)),tmp_path/'a-file'
    for i in range(16):
        bad = bytearray(good); bad[i] ^= 1
        f.write_bytes(gzip.compress(bytes(bad)) if packed else bytes(bad))
        with pytest.raises(ValueError, match='a-file'): read_idx(f)

def test_idx_cut_at_any_place_or_too_long(tmp_path):
    f = tmp_path/'a-file'
    for good in (idx(noise(3, 4)), gzip.compress(idx(noise(3, 4)))):
        for n in range(len(good)):
            f.write_bytes(good[:n])
            with pytest.raises(ValueError, match='a-file'): read_idx(f)
    f.write_bytes(idx(noise(3, 4))+b'\0')
    with pytest.raises(ValueError, match='13 values; its header says 3 x 4, which is 12'): read_idx(f)

def test_idx_gzip_proves_its_checksum(tmp_path):
    a,f = noise(40, 28, 28),tmp_path/'a.gz'
    good = gzip.compress(idx(a), mtime=0)
    for i in range(10, len(good), 997):
        bad = bytearray(good); bad[i] ^= 1; f.write_bytes(bytes(bad))
        with pytest.raises(ValueError, match=r'a\.gz is a damaged gzip file'): read_idx(f)

def test_idx_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing'): read_idx(tmp_path/'nothing')

# Whole sets, through get_dls

def test_parts_are_the_published_images(tiny):
    name,folder,train,test,_ = tiny
    dls = dls_of(name, folder, bs=7)
    a,b,c = stored(dls)
    assert np.array_equal(c, test) # in the published order
    assert (len(a), len(b), len(c)) == (54, 6, 12) == (dls.info.n_train, dls.info.n_valid, dls.info.n_test)
    assert sorted(rows(a)+rows(b))==sorted(rows(train)) and len(set(rows(a)+rows(b)+rows(c)))==72 # nothing lost, nothing on two sides
    order = [rows(train).index(r) for r in rows(a)]; assert order==sorted(order)
    assert dls.info.name==name and dls.info.levels==256 and (dls.info.channels, *dls.info.image_size)==train.shape[1:]
    assert DataInfo(**json.loads(json.dumps(dataclasses.asdict(dls.info))))==dls.info

def test_seed_moves_order_and_nothing_else(tiny):
    name,folder,*_ = tiny
    one,two = (dls_of(name, folder, bs=9, seed=s, flip=False) for s in (1,2))
    assert one.info==two.info
    for a,b in zip(stored(one), stored(two)): assert np.array_equal(a, b)
    assert not np.array_equal(images(one.train), images(two.train))

def test_only_training_is_mirrored_and_only_where_it_is_natural(tiny):
    name,folder,train,test,_ = tiny
    dls = dls_of(name, folder, bs=9)
    seen = set(rows(images(dls.train)))
    assert seen <= set(rows(train)+rows(train[...,::-1]))
    assert (seen <= set(rows(train))) == (name=='fashion_mnist')
    assert np.array_equal(images(dls.test), test) and set(rows(images(dls.valid))) <= set(rows(train))
    assert dls_of(name, folder, flip=False).train_ds.flip is False and dls_of(name, folder, flip=True).train_ds.flip is True

def test_identity_is_that_of_the_images(tiny, tmp_path):
    name,folder,train,test,writer = tiny
    info = dls_of(name, folder).info
    assert info.sha256==hashlib.sha256(train.tobytes()+test.tobytes()).hexdigest()
    assert dls_of(name, writer(tmp_path/'again', train, test)).info==info
    for part in 0,1:
        changed = [train.copy(), test.copy()]; changed[part][3,0,5,5] ^= 1
        assert dls_of(name, writer(tmp_path/f'changed{part}', *changed)).info.sha256!=info.sha256

def test_containers_share_an_identity(tmp_path, monkeypatch):
    train,test = noise(60, 1, 28, 28),noise(12, 1, 28, 28, seed=1)
    infos = {dls_of('fashion_mnist', write_fashion(tmp_path/f'f{i}', train, test, ends=e)).info for i,e in enumerate((('.gz','.gz'), ('',''), ('.gz','')))}
    assert len(infos)==1
    train,test = noise(60, 3, 32, 32),noise(12, 3, 32, 32, seed=1)
    files = pickles(train, test); vouch(monkeypatch, files)
    assert dls_of('cifar10', write(tmp_path/'p', files)).info==dls_of('cifar10', write_binary(tmp_path/'b', train, test)).info

def test_editions_of_imagenet32_differ_in_version(tmp_path):
    train,test = noise(40, 3, 32, 32),noise(8, 3, 32, 32, seed=1)
    a,b = (dls_of('imagenet32', w(tmp_path/w.__name__, train, test)).info for w in (write_npz, write_png))
    assert 'Chrabaszcz' in a.version and 'van den Oord' in b.version and a!=b
    assert dataclasses.replace(a, version=b.version)==b # else the same images, parted in the same way

def test_validation_is_5000_of_a_large_set_and_a_tenth_of_a_small_one():
    for n,want in (60_000,5000),(50_000,5000),(49_999,4999),(30,3),(2,1):
        k = np.arange(n, dtype=np.uint16)[:,None,None,None]
        train,valid = _cut(k.copy())
        assert len(valid)==want and valid.ravel().tolist()==sorted(train_test_split(range(n), test_size=want, random_state=0)[1]) and np.array_equal(train, np.delete(k, valid.ravel(), 0)) and np.array_equal(np.sort(np.r_[train, valid], 0), k)

def test_folder_above_and_home(tmp_path, monkeypatch):
    train,test = noise(60, 3, 32, 32),noise(12, 3, 32, 32, seed=1)
    write_binary(tmp_path/'cifar-10-batches-bin', train, test)
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in tmp_path,str(tmp_path/'cifar-10-batches-bin'),'~': assert np.array_equal(read_cifar10(path)[0], train)
    write_fashion(tmp_path/'FashionMNIST'/'raw', noise(6, 1, 28, 28), noise(2, 1, 28, 28))
    assert np.array_equal(read_fashion_mnist(tmp_path)[1], noise(2, 1, 28, 28))

# Refusals

@pytest.mark.parametrize('name', ['fashion_mnist', 'cifar10', 'imagenet32', 'celebahq256'])
def test_a_folder_that_is_given_and_empty(tmp_path, name):
    with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)): get_dls(name, path=tmp_path)
    assert not list(tmp_path.iterdir()) # nothing was downloaded
    with pytest.raises(FileNotFoundError, match='no such folder|there is no folder'): get_dls(name, path=tmp_path/'nowhere')

def test_a_file_that_is_missing(tiny):
    name,folder,*_ = tiny
    f = sorted(folder.iterdir())[1]
    f.rename(folder.parent/'elsewhere')
    with pytest.raises(FileNotFoundError, match=f'lacks {f.name}'): get_dls(name, path=folder)

def test_a_size_that_is_not_the_sets(tiny):
    name,folder,train,*_ = tiny
    with pytest.raises(ValueError, match='only a folder can be resized'): get_dls(name, path=folder, size=64)
    assert dls_of(name, folder, size=train.shape[-1]).info.image_size==train.shape[2:]

@pytest.mark.parametrize('a,words', [(noise(5, 8, 8), r'\(5, 8, 8\); Fashion-MNIST has \(N, 28, 28\)'), (noise(5), r'\(5,\)'), (noise(0, 28, 28), r'\(0, 28, 28\)')], ids=['digits','labels','none'])
def test_fashion_of_another_shape(tmp_path, a, words):
    write_fashion(tmp_path, noise(9, 1, 28, 28), noise(3, 1, 28, 28))
    (tmp_path/'t10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx(a)))
    with pytest.raises(ValueError, match=r't10k-images-idx3-ubyte\.gz holds an array of shape '+words): get_dls('fashion_mnist', path=tmp_path)

good = cifar_records(noise(4, 3, 32, 32))
@pytest.mark.parametrize('data,words', [(b'', 'has 0 bytes'), (good[:-1], 'has 12,291 bytes'), (good+b'\0', 'has 12,293 bytes'), (good[3073:], 'has 3 images, others have 4'),
    (b'\x0a'+good[1:], 'record 0 has the label 10'), (b'\0'.join(good[i:i+3073] for i in range(0, len(good), 3073)), 'has 12,295 bytes')], ids=['empty','cut','long','record','label','cifar100'])
@pytest.mark.parametrize('file', ['data_batch_2.bin', 'test_batch.bin'])
def test_cifar_refused(tmp_path, file, data, words):
    write_binary(tmp_path, noise(20, 3, 32, 32), noise(4, 3, 32, 32))
    (tmp_path/file).write_bytes(data)
    with pytest.raises(ValueError, match=f'{file}:? {words}'): get_dls('cifar10', path=tmp_path)

class Trap:
    def __init__(self, file): self.file = file
    def __reduce__(self): return Path.touch,(self.file,)

@pytest.mark.parametrize('name', batches+['batches.meta'])
def test_a_pickle_of_anothers_making_is_not_opened(tmp_path, monkeypatch, name):
    files = pickles(noise(10, 3, 32, 32), noise(2, 3, 32, 32)); vouch(monkeypatch, files)
    write(tmp_path/'p', files | {name:pickle.dumps(Trap(tmp_path/'sprung'))})
    with pytest.raises(ValueError, match=f'{name} has the MD5 sum .* was not opened'): get_dls('cifar10', path=tmp_path/'p')
    assert not (tmp_path/'sprung').exists()
    pickle.loads((tmp_path/'p'/name).read_bytes()); assert (tmp_path/'sprung').exists() # the trap does spring

@pytest.mark.parametrize('data,words', [(b'', 'cannot be read'), (b'\x93NUMPY', 'cannot be read'), (pickle.dumps({}), r'cannot be read \(ValueError: .*pickle'), (batch(noise(4, 3, 32, 32))[:5000], 'cannot be read'),
    (npz(labels=np.ones(4)), r"cannot be read \(KeyError: .data"), (npz(data=noise(4, 3072)), 'cannot be read .KeyError'), (npz(data=noise(4, 3072), labels=np.ones(3)), r'labels have the shape \(3,\)'),
    (npz(data=noise(4, 12288), labels=np.ones(4)), r'uint8 of shape \(4, 12288\)'), (npz(data=noise(4, 3072).astype(int), labels=np.ones(4)), r'int64 of shape \(4, 3072\)'),
    (npz(data=noise(0, 3072), labels=np.ones(0)), r'shape \(0, 3072\)')], ids=['empty','npy','pickle','cut','data','labels','fewer','64x64','int','none'])
@pytest.mark.parametrize('file', ['train_data_batch_10.npz', 'val_data.npz'])
def test_npz_refused(tmp_path, file, data, words):
    write_npz(tmp_path, noise(20, 3, 32, 32), noise(4, 3, 32, 32))
    (tmp_path/file).write_bytes(data)
    with pytest.raises(ValueError, match=f'{file}:? .*{words}'): get_dls('imagenet32', path=tmp_path)

def test_npz_proves_its_checksum(tmp_path):
    write_npz(tmp_path, noise(20, 3, 32, 32), noise(4, 3, 32, 32))
    f = tmp_path/'val_data.npz'; np.savez(f, data=noise(4, 3072), labels=np.ones(4))
    read_imagenet32(tmp_path)
    bad = bytearray(f.read_bytes()); bad[5000] ^= 1; f.write_bytes(bytes(bad))
    with pytest.raises(ValueError, match=r'val_data\.npz cannot be read .*CRC'): read_imagenet32(tmp_path)

def test_png_refused(tmp_path):
    write_png(tmp_path, noise(20, 3, 32, 32), noise(4, 3, 32, 32))
    f = tmp_path/'train_32x32'/'00007.png'; whole = f.read_bytes()
    def refused(words):
        with pytest.raises(ValueError, match=r'00007\.png '+words): read_imagenet32(tmp_path)
    f.write_bytes(whole[:-100]); refused('cannot be read as a PNG')
    f.write_bytes(b''); refused('cannot be read as a PNG')
    Image.fromarray(noise(32, 32, 3)).save(f, format='JPEG'); refused('cannot be read as a PNG')
    Image.fromarray(noise(32, 64, 3)).save(f); refused('is 32x64, PIL mode RGB')
    Image.fromarray(noise(32, 32)).save(f); refused('is 32x32, PIL mode L')
    for f in (tmp_path/'valid_32x32').iterdir(): f.unlink()
    (tmp_path/'train_32x32'/'00007.png').write_bytes(whole)
    with pytest.raises(FileNotFoundError, match=r'valid_32x32 holds no \.png'): read_imagenet32(tmp_path)

def test_both_editions_in_one_folder(tmp_path):
    for w in write_npz,write_png: w(tmp_path, noise(20, 3, 32, 32), noise(4, 3, 32, 32))
    with pytest.raises(ValueError, match='both editions'): get_dls('imagenet32', path=tmp_path)

# Downloads, by torchvision, from a server of our own

@pytest.fixture
def server(tmp_path, monkeypatch):
    "A folder, and the address at which it is served on this machine"
    (tmp_path/'server').mkdir(); monkeypatch.setenv('no_proxy', '127.0.0.1')
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path/'server'))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield tmp_path/'server',f'http://127.0.0.1:{httpd.server_port}/'
    httpd.shutdown(); httpd.server_close()

@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    "fastai's data folder, empty; and no Debian package"
    monkeypatch.setattr(formats, 'fastai_path', lambda _: tmp_path/'data'); monkeypatch.setattr('sdn_nb.data.fastai_path', lambda _: tmp_path/'data')
    monkeypatch.setattr(formats, 'DEBIAN_FASHION', str(tmp_path/'debian'))
    return tmp_path

def test_download_fashion(nothing_here, server, monkeypatch, capsys):
    train,test = noise(60, 1, 28, 28),noise(12, 1, 28, 28, seed=1)
    files = dict(fashion_files(train, test)) | {f'{p}-labels-idx1-ubyte.gz':gzip.compress(idx(np.zeros(n, np.uint8))) for p,n in (('train',60), ('t10k',12))}
    write(server[0], files)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, 'mirrors', [server[1]])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, 'resources', [(n, hashlib.md5(d).hexdigest()) for n,d in files.items()])
    dls = dls_of('fashion_mnist', None)
    out = capsys.readouterr().out
    assert f'downloading 30 MB from {server[1]} into {nothing_here/"data"}' in out
    assert np.array_equal(stored(dls)[2], test) and dls.info==dls_of('fashion_mnist', server[0]).info
    dls_of('fashion_mnist', None); assert 'downloading' not in capsys.readouterr().out # it is there now
    for f in (nothing_here/'data').rglob('t10k-images*'): f.unlink() # as if it had been interrupted
    assert dls_of('fashion_mnist', None).info==dls.info

def test_download_cifar(nothing_here, server, monkeypatch, capsys):
    train,test = noise(60, 3, 32, 32),noise(12, 3, 32, 32, seed=1)
    files = pickles(train, test); vouch(monkeypatch, files)
    tar = server[0]/'cifar-10-python.tar.gz'
    with tarfile.open(tar, 'w:gz') as t: t.add(write(nothing_here/'p', files), 'cifar-10-batches-py')
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'url', server[1]+tar.name); monkeypatch.setattr(torchvision.datasets.CIFAR10, 'tgz_md5', hashlib.md5(tar.read_bytes()).hexdigest())
    assert np.array_equal(stored(dls_of('cifar10', None))[2], test) and 'downloading 170 MB' in capsys.readouterr().out

def test_a_download_that_fails(nothing_here, server, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, 'mirrors', [server[1]]); monkeypatch.setattr(torchvision.datasets.CIFAR10, 'url', server[1]+'cifar-10-python.tar.gz')
    for name,cls in ('fashion_mnist','FashionMNIST'),('cifar10','CIFAR10'):
        with pytest.raises(OSError, match=f'{cls} could not be downloaded .*404.* give the folder as path'): get_dls(name)
    (server[0]/'cifar-10-python.tar.gz').write_bytes(b'something else')
    with pytest.raises(OSError, match='CIFAR10 could not be downloaded .*corrupted'): get_dls('cifar10')

@pytest.mark.parametrize('name', ['imagenet32', 'celebahq256'])
def test_what_is_not_downloaded(nothing_here, name):
    with pytest.raises(FileNotFoundError, match=f'data/{name}.* as path'): get_dls(name)

def test_debian_comes_first(nothing_here):
    write_fashion(nothing_here/'debian', noise(20, 1, 28, 28, seed=5), noise(4, 1, 28, 28, seed=6))
    write_fashion(nothing_here/'data'/'FashionMNIST'/'raw', noise(20, 1, 28, 28), noise(4, 1, 28, 28))
    assert np.array_equal(read_fashion_mnist()[1], noise(4, 1, 28, 28, seed=6))
    (nothing_here/'debian').rename(nothing_here/'d')
    assert np.array_equal(read_fashion_mnist()[1], noise(4, 1, 28, 28))

# CelebA-HQ

def test_celebahq_flat(tmp_path):
    k = noise(30, 3, 256, 256); write_pngs(tmp_path, {'.':k})
    one,two = (dls_of('celebahq256', tmp_path, bs=4, seed=s) for s in (0,1))
    assert one.info==two.info and (one.info.n_train, one.info.n_valid, one.info.n_test, one.info.levels)==(24, 3, 3, 32)
    parts = [rows(p) for p in stored(one)]
    assert sorted(sum(parts, []))==sorted(rows(k>>3)) # disjoint, complete, and exactly 5 bits
    assert parts==[rows(p) for p in stored(two)] and one.train_ds.flip and not one.valid_ds.flip
    assert dls_of('celebahq256', tmp_path, levels=256).info.levels==256
    (tmp_path/'00003.png').unlink(); assert dls_of('celebahq256', tmp_path).info.sha256!=one.info.sha256

def test_celebahq_parted_by_its_owner(tmp_path):
    k = noise(9, 3, 256, 256); write_pngs(tmp_path, {'train/female':k[:3], 'train/male':k[3:5], 'valid':k[5:7], 'test':k[7:]})
    assert [rows(p) for p in stored(dls_of('celebahq256', tmp_path, levels=256, bs=2))]==[rows(k[:5]), rows(k[5:7]), rows(k[7:])]

@pytest.mark.parametrize('hw', [(128,128), (256,255)])
def test_celebahq_of_another_size(tmp_path, hw):
    write_pngs(tmp_path, {'.':noise(4, 3, 256, 256)}); Image.fromarray(noise(*hw, 3)).save(tmp_path/'00002.png')
    with pytest.raises(ValueError, match=rf'00002\.png is {hw[0]}x{hw[1]}; celebahq256 are 256x256'): get_dls('celebahq256', path=tmp_path)

# Levels

@pytest.mark.parametrize('levels', [2, 4, 32, 128, 256, np.int64(16)])
def test_levels_are_exact(tiny, levels):
    name,folder,train,test,_ = tiny
    whole,few = dls_of(name, folder),dls_of(name, folder, levels=levels, bs=5)
    assert few.info==dataclasses.replace(whole.info, levels=int(levels)) and json.dumps(dataclasses.asdict(few.info))
    for a,b in zip(stored(whole), stored(few)): assert np.array_equal(a.astype(int)*levels//256, b)
    x = few.test.one_batch()[0]
    assert torch.equal(x, to_unit(torch.tensor(test[:5].astype(int)*levels//256), levels)) and x.max()<=1

def test_fewer_levels_keep_the_order():
    a,b = (get_dls('photos', device='cpu', bs=400, seed=3, levels=n) for n in (None, 32))
    for (x,_),(y,_) in zip(a.train, b.train): assert torch.equal(to_levels(x, 256)>>3, to_levels(y, 32))

@pytest.mark.parametrize('levels', [0, 1, 3, 33, 512, -2, 2.5, 32., True, '32', (32,)], ids=repr)
def test_impossible_levels(levels):
    with pytest.raises(ValueError, match='levels is .* a power of two from 2 to 256'): get_dls('photos', levels=levels)

def test_levels_of_the_digits():
    assert get_dls('digits', levels=17, device='cpu').info==get_dls('digits', device='cpu').info
    for n in 16,256:
        with pytest.raises(ValueError, match=f'levels is {n}, but digits has 17 levels'): get_dls('digits', levels=n)

# The real Fashion-MNIST

@pytest.mark.skipif(not debian.is_dir(), reason='the real Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)')
def test_real_fashion_mnist():
    "Against the bytes as gunzipped by hand, and the mean and standard deviation that are quoted for it"
    train,test = (np.frombuffer(gzip.decompress((debian/f'{p}-images-idx3-ubyte.gz').read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28) for p in ('train','t10k'))
    assert round(train.mean()/255, 4)==.286 and round(train.std()/255, 4)==.353
    dls = get_dls('fashion_mnist', device='cpu')
    i = dls.info
    assert (i.name, i.channels, i.image_size, i.levels, i.n_train, i.n_valid, i.n_test)==('fashion_mnist', 1, (28,28), 256, 55_000, 5_000, 10_000)
    a,b,c = (o.dataset.levels.numpy() for o in dls)
    assert np.array_equal(c, test) and sorted(rows(a)+rows(b))==sorted(rows(train)) and i.sha256==hashlib.sha256(train.tobytes()+test.tobytes()).hexdigest()
    assert len(set(rows(a)+rows(b)+rows(c)))==70_000 # no two images of the real set are equal
    x,y = dls.one_batch(); assert x is y and x.shape==(64,1,28,28)
