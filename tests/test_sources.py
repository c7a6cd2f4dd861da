"""Images that are in Python already: what nbs/engine/sources.ipynb leaves out."""
import numpy as np, pytest, torch
from PIL import Image
from sdn_nb.data import DataInfo, get_dls, image_sets
from sdn_nb.sources import as_levels, is_array_file, read_array_file

rng = np.random.default_rng(0)
grey,colour = rng.integers(0, 256, (12,6,5), dtype=np.uint8),rng.integers(0, 256, (12,3,6,5), dtype=np.uint8)
def opened(source, **kw): return get_dls(source, device='cpu', bs=4, **kw)
def pixels(dls): return [None if dl is None else dl.dataset.levels.numpy() for dl in (dls.train, dls.valid, dls.test)]

@pytest.mark.parametrize('a,want', [
    (grey, grey[:,None]), (grey[...,None], grey[:,None]), (grey[:,None], grey[:,None]), (colour, colour), (colour.transpose(0,2,3,1), colour),
    (torch.from_numpy(colour), colour), (torch.from_numpy(colour)/255, colour), (colour.astype(np.float64)/255, colour), (colour.astype(np.int64), colour),
    (grey>128, (grey>128)[:,None]*np.uint8(255)), (list(torch.from_numpy(colour)), colour), ([Image.fromarray(a) for a in grey], grey[:,None]),
    ([(Image.fromarray(a),0) for a in colour.transpose(0,2,3,1)], colour), ([dict(label=1, img=Image.fromarray(a)) for a in grey], grey[:,None])])
def test_every_form_gives_the_same_levels(a, want):
    got = as_levels(a)
    assert got.dtype==np.uint8 and np.array_equal(got, want) and got.flags.c_contiguous

@pytest.mark.parametrize('kind', [list, torch.utils.data.TensorDataset])
@pytest.mark.parametrize('bs', [5, 12, 100])
def test_loaders_give_all_images_in_order(kind, bs):
    x = torch.from_numpy(colour)
    source = kind(x) if kind is list else kind(x, torch.arange(12))
    assert np.array_equal(as_levels(torch.utils.data.DataLoader(source, batch_size=bs)), colour)

def test_our_own_loaders_are_refused_by_their_numbers():
    with pytest.raises(ValueError, match='hold numbers from -0.9.* to 0.9.*; floats must be levels divided by 255'): as_levels(opened(grey).valid)

def test_parts():
    train,valid,test = pixels(opened((colour[:8], colour[8:10], colour[10:])))
    assert np.array_equal(train, colour[:8]) and np.array_equal(valid, colour[8:10]) and np.array_equal(test, colour[10:])
    for names in (('train','valid','test'), ('train','val','test'), ('train','validation','test')):
        for a,b in zip(pixels(opened(dict(zip(names, (colour[:8], colour[8:10], colour[10:]))))), (train,valid,test)): assert np.array_equal(a, b)
    dls = opened(colour)
    assert (dls.info.n_train, dls.info.n_valid, dls.info.n_test, dls.info.levels, dls.info.image_size)==(11, 1, 0, 256, (6,5))
    assert opened(colour).info==dls.info!=opened(colour[::-1]).info

@pytest.mark.parametrize('source,words', [
    (dict(test=grey), 'there must be train'), (dict(train=grey, val=grey, valid=grey), 'called train, val, valid'), (dict(train=grey, rest=grey), 'called train, rest'),
    ((grey, colour), 'has images of shape'), (grey[:1], 'holds 1 image'), (grey[:0], 'at least 1'), (np.zeros((3,5,8,8), np.uint8), r'shape \(3, 5, 8, 8\)'),
    (grey-300., 'from -300'), (grey.astype(np.int16)+900, 'whole numbers from'), (torch.from_numpy(grey)/127.5-1, 'from -1 to 1'), (torch.rand(4,3,8,8), 'between levels'),
    ([Image.new('L', (4,4)), Image.new('L', (5,4))], 'different shapes'), ([dict(label=3)]*3, 'has label, and none of it is an image'), (grey.astype('U3'), 'of type <U3')])
def test_refused_by_name(source, words):
    with pytest.raises((ValueError,TypeError), match=words): opened(source)

def test_sixteen_bits_keep_their_upper_half():
    deep = grey.astype(np.uint16)*256+7
    assert np.array_equal(as_levels([Image.fromarray(a) for a in deep]), grey[:,None])
    with pytest.raises(ValueError, match='whole numbers from'): as_levels([Image.fromarray(a.astype(np.int32)*300) for a in grey])

def test_other_levels_come_through_image_sets():
    dls = opened(image_sets('mine', grey[:,None]//16, levels=16))
    assert isinstance(dls.info, DataInfo) and dls.info.levels==16 and dls.one_batch()[0].max()<=1

@pytest.mark.parametrize('content', [grey, colour])
def test_files(tmp_path, content):
    np.save(tmp_path/'one.npy', content); np.savez_compressed(tmp_path/'one.npz', content); np.savez(tmp_path/'parts.npz', train=content[:8], valid=content[8:])
    a,b,c = (opened(str(tmp_path/f)) for f in ('one.npy','one.npz','parts.npz'))
    assert a.info==b.info and a.info.name=='one' and (c.info.n_train, c.info.n_valid)==(8,4)
    assert opened(tmp_path/'one.npy').info==a.info

def test_file_faults(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file .*none.npy'): opened(tmp_path/'none.npy')
    (tmp_path/'cut.npz').write_bytes(b'PK\x03\x04 cut')
    with pytest.raises(ValueError, match=r'cut\.npz can.t be read as a file of arrays'): opened(tmp_path/'cut.npz')
    np.save(tmp_path/'objects.npy', np.array([print], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r'objects\.npy can.t be read'): read_array_file(tmp_path/'objects.npy')
    with pytest.raises(ValueError, match='only a folder'): np.save(tmp_path/'g.npy', grey); opened(tmp_path/'g.npy', size=9)
    assert is_array_file('a.npz') and not is_array_file('a.png') and not is_array_file(3)

def test_hugging_face(tmp_path):
    datasets = pytest.importorskip('datasets')
    d = datasets.Dataset.from_dict(dict(image=[Image.fromarray(a) for a in grey], label=list(range(12))))
    assert np.array_equal(as_levels(d), grey[:,None])
    dls = opened(datasets.DatasetDict(train=d, test=d))
    assert dls.info.n_test==12
