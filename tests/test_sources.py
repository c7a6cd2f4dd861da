"""Images that are in Python already: what nbs/engine/sources.ipynb leaves out."""
import io, struct, warnings, zlib

import numpy as np, pytest, torch
from PIL import Image
from sdn_nb.data import DataInfo, get_dls, image_sets
from sdn_nb.sources import ImagesWarning, as_levels, as_shown, bits_of, eight_bits, is_array_file, part_names, read_array_file

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

# What a viewer shows, of files written by hand

def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
def png(depth, colour, rows, *more):
    "A PNG, its rows being packed already; the width is told by their length"
    per = {0:1, 2:3, 3:1, 4:2, 6:4}[colour]*depth
    head = struct.pack('>2I5B', len(rows[0])*8//per, len(rows), depth, colour, 0, 0, 0)
    chunks = [(b'IHDR', head), *more, (b'IDAT', zlib.compress(b''.join(b'\0'+r for r in rows))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n'+b''.join(chunk(*c) for c in chunks)

def tiff(w, h, bits, photometric, data, **more):
    "A TIFF of one strip, unpacked; `more` tags as t338=1"
    tags = {256:w, 257:h, 258:bits, 259:1, 262:photometric, 273:None, 277:len(bits), 278:h, 279:len(data), **{int(k[1:]):v for k,v in more.items()}}
    at = 8+2+12*len(tags)+4
    beyond = b''.join(struct.pack(f'<{len(v)}H', *v) for _,v in sorted(tags.items()) if isinstance(v, (list,tuple)) and len(v)>2)
    tags[273] = at+len(beyond)
    out = struct.pack('<2sHIH', b'II', 42, 8, len(tags))
    for tag,v in sorted(tags.items()):
        if isinstance(v, int): out += struct.pack('<HHII', tag, 4, 1, v) if tag in (273,279) else struct.pack('<HHIHH', tag, 3, 1, v, 0)
        elif len(v)<=2: out += struct.pack('<HHI2H', tag, 3, len(v), *(*v,0)[:2])
        else:
            out += struct.pack('<HHII', tag, 3, len(v), at)
            at += 2*len(v)
    return out+b'\0'*4+beyond+data

def be(*v): return struct.pack(f'>{len(v)}H', *v)
def le(*v): return struct.pack(f'<{len(v)}H', *v)
def plte(*colours): return b'PLTE',bytes(sum(colours, ()))
def on(ground, alpha, *colours): return [round(c*alpha/255+ground*(1-alpha/255)) for c in colours]
def xbm(*rows): return f'#define x_width 8\n#define x_height {len(rows)}\nstatic char x_bits[] = {{\n{", ".join(map(hex, rows))}}};'.encode()
W = 255
FILES = dict(                          # bytes of a file, the pixels that a viewer shows, what was done, bits where they are more than 8
    grey=(png(8, 0, [bytes([0,128,255])]), [[0,128,255]], [], 0),
    grey_1=(png(1, 0, [b'\xa0']), [[W,0,W,0,0,0,0,0]], [], 0),
    grey_2=(png(2, 0, [bytes([0b00011011])]), [[0,85,170,255]], [], 0),
    grey_4=(png(4, 0, [b'\x0f']), [[0,255]], [], 0),
    grey_16=(png(16, 0, [be(0,258,65535)]), [[0,1,255]], [], 16),
    grey_12_in_16=(png(16, 0, [be(0,2048,4095)]), [[0,128,255]], [], 12),
    grey_8_in_16=(png(16, 0, [be(0,7,255)]), [[0,7,255]], [], 8),
    grey_key=(png(8, 0, [bytes([0,100,200])], (b'tRNS', be(100))), [[0,W,200]], ['white'], 0),
    grey_1_key=(png(1, 0, [b'\xf0'], (b'tRNS', be(0))), [[W]*4+[0]*4], ['black'], 0),
    grey_2_key=(png(2, 0, [bytes([0b00011011])], (b'tRNS', be(1))), [[0,W,170,255]], ['white'], 0),
    grey_4_key=(png(4, 0, [b'\x3f'], (b'tRNS', be(3))), [[0,W]], ['black'], 0),
    grey_alpha=(png(8, 4, [bytes([0,0, 0,255, 100,128])]), [[W,0,on(W,128,100)[0]]], ['white'], 0),
    grey_alpha_16=(png(16, 4, [be(0,0, 25600,65535)]), [[W,100]], ['upper','white'], 0),
    rgb=(png(8, 2, [bytes([1,2,3, 4,5,6])]), [[[1,2,3],[4,5,6]]], [], 0),
    rgb_16=(png(16, 2, [be(258,512,65535)]), [[[1,2,255]]], ['upper'], 0),
    rgb_key=(png(8, 2, [bytes([1,2,3, 4,5,6])], (b'tRNS', be(1,2,3))), [[[W,W,W],[4,5,6]]], ['white'], 0),
    rgba=(png(8, 6, [bytes([0,0,0,0, 10,20,30,255, 10,20,30,100])]), [[[W]*3,[10,20,30],on(W,100,10,20,30)]], ['white'], 0),
    rgba_opaque=(png(8, 6, [bytes([0,0,0,255, 10,20,30,255])]), [[[0]*3,[10,20,30]]], [], 0),
    rgba_16=(png(16, 6, [be(25600,0,0,65535, 0,0,0,0)]), [[[100,0,0],[W]*3]], ['upper','white'], 0),
    black_icon=(png(8, 6, [bytes([0,0,0,0, 0,0,0,255])]), [[[W]*3,[0]*3]], ['white'], 0),
    white_icon=(png(8, 6, [bytes([W,W,W,0, W,W,W,255])]), [[[0]*3,[W]*3]], ['black'], 0),
    nothing=(png(8, 6, [bytes([0,0,0,0, 9,9,9,0])]), [[[W]*3,[W]*3]], ['white'], 0),
    palette=(png(8, 3, [bytes([0,1])], plte((1,2,3), (4,5,6))), [[[1,2,3],[4,5,6]]], [], 0),
    palette_4=(png(4, 3, [b'\x10'], plte((1,2,3), (4,5,6))), [[[4,5,6],[1,2,3]]], [], 0),
    palette_alpha=(png(8, 3, [bytes([0,1,2])], plte((9,0,0), (0,200,0), (0,0,9)), (b'tRNS', bytes([0,128]))), [[[W]*3,on(W,128,0,200,0),[0,0,9]]], ['white'], 0),
    palette_one_clear=(png(8, 3, [bytes([0,1])], plte((0,0,0), (7,7,7)), (b'tRNS', bytes([0]))), [[[W]*3,[7]*3]], ['white'], 0),
    pgm=(b'P5 2 1 255\n'+bytes([3,200]), [[3,200]], [], 0),
    pgm_16=(b'P5 2 1 65535\n'+be(258,65535), [[1,255]], ['upper'], 0),
    pgm_12=(b'P5 2 1 4095\n'+be(2048,4095), [[128,255]], ['upper'], 0),
    pbm=(b'P4 8 1\n\xf0', [[0]*4+[W]*4], [], 0),
    ppm=(b'P6 1 1 255\n'+bytes([1,2,3]), [[[1,2,3]]], [], 0),
    xbm=(xbm(0x0f), [[0]*4+[W]*4], [], 0),
    bmp=(struct.pack('<2sIHHI', b'BM', 54+12, 0, 0, 54)+struct.pack('<IiiHHIIiiII', 40, 1, 2, 1, 24, 0, 12, 0, 0, 0, 0)+bytes([3,2,1,0, 6,5,4,0]),
        [[[4,5,6]],[[1,2,3]]], [], 0),                                            # rows from below, blue first
    bmp_565=(struct.pack('<2sIHHI', b'BM', 54+4, 0, 0, 54)+struct.pack('<IiiHHIIiiII', 40, 1, 1, 1, 16, 0, 4, 0, 0, 0, 0)+le(0x7c00,0), [[[255,0,0]]], [], 0),
    tga=(struct.pack('<BBBHHBHHHHBB', 0, 0, 2, 0, 0, 0, 0, 0, 1, 1, 32, 0x28)+bytes([3,2,1,0]), [[[W]*3]], ['white'], 0),
    tiff=(tiff(2, 1, [8], 1, bytes([3,200])), [[3,200]], [], 0),
    tiff_white_is_zero=(tiff(2, 1, [8], 0, bytes([3,200])), [[252,55]], [], 0),
    tiff_16=(tiff(2, 1, [16], 1, le(258,65535)), [[1,255]], [], 16),
    tiff_12_in_16=(tiff(2, 1, [16], 1, le(2048,4095)), [[128,255]], [], 12),
    tiff_12=(tiff(2, 1, [12], 1, bytes([0x80,0x0f,0xff])), [[128,255]], [], 12),
    tiff_rgb_16=(tiff(1, 1, [16]*3, 2, le(258,512,65535)), [[[1,2,255]]], ['upper'], 0),
    tiff_alpha=(tiff(2, 1, [8]*4, 2, bytes([0,0,0,0, 10,20,30,100]), t338=2), [[[W]*3,on(W,100,10,20,30)]], ['white'], 0),
    tiff_premultiplied=(tiff(2, 1, [8]*4, 2, bytes([0,0,0,0, 50,20,0,100]), t338=1), [[[W]*3,[205,175,155]]], ['white'], 0),
    tiff_padded=(tiff(1, 1, [8]*4, 2, bytes([10,20,30,0]), t338=0), [[[10,20,30]]], [], 0),
    tiff_cmyk=(tiff(2, 1, [8]*4, 5, bytes([255,0,0,0, 0,0,0,128])), [[[0,W,W],[127]*3]], [], 0),
    tiff_turned=(tiff(2, 1, [8], 1, bytes([3,200]), t274=6), [[3],[200]], [], 0),
    tiff_16_turned=(tiff(2, 1, [16], 1, le(258,65535), t274=3), [[255,1]], [], 16))

@pytest.mark.parametrize('name', FILES)
@pytest.mark.filterwarnings('error')
def test_the_picture_that_a_viewer_shows(name):
    data,want,done,bits = FILES[name]
    with Image.open(io.BytesIO(data)) as im: picture,keys = as_shown(im)
    assert (keys, bits_of(picture))==(done, bits)
    got,want = np.asarray(eight_bits(picture, bits or 16)),np.array(want)
    assert got.dtype==np.uint8 and got.shape==want.shape and abs(got.astype(int)-want).max()<=(1 if 'white' in done else 0), (got, want)

@pytest.mark.parametrize('data,words', [
    (png(16, 0, [be(5,6)], (b'tRNS', be(5))), 'one value means transparent'), (png(16, 2, [be(5,6,7)], (b'tRNS', be(5,6,7))), 'one value means transparent'),
    (tiff(1, 1, [32], 1, struct.pack('<f', .5), t339=3), '32-bit pixels, PIL mode F'), (tiff(1, 1, [32], 1, struct.pack('<I', 5)), '32-bit pixels, PIL mode I'),
    (b'PF 1 1 -1.0\n'+struct.pack('<3f', 1, 2, 3), ''), (b'Pf 1 1 -1.0\n'+struct.pack('<f', 1), '32-bit pixels, PIL mode F'), (png(8, 0, [bytes(9)])[:-30], '')])
def test_pictures_without_a_range_are_refused(tmp_path, data, words):
    for n in 'ab': (tmp_path/f'{n}.png').write_bytes(data+n.encode())
    with pytest.raises(ValueError, match=rf'a\.png cannot be read as an image \(.*{words}'): get_dls(tmp_path)

EXIF = lambda o: b'Exif\0\0'+b'MM\0*'+struct.pack('>IH', 8, 1)+struct.pack('>HHIHH', 0x112, 3, 1, o, 0)+b'\0'*4
TURNS = {1: lambda a: a, 2: lambda a: a[:,::-1], 3: lambda a: a[::-1,::-1], 4: lambda a: a[::-1], 5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a)}        # by the standard
@pytest.mark.parametrize('o', TURNS)
@pytest.mark.parametrize('kind', ['png','png16','webp','avif','jpg','tif'])
def test_orientation_wherever_it_is_noted(kind, o):
    a = np.add.outer(np.arange(16)*10, np.arange(24)*4).astype(np.uint8)
    rows = [r.astype('>u2')*257 if kind=='png16' else r for r in a]
    if kind[:3]=='png': data = png(16 if kind=='png16' else 8, 0, [r.tobytes() for r in rows], (b'eXIf', EXIF(o)[6:]))
    elif kind=='tif': data = tiff(24, 16, [8], 1, a.tobytes(), t274=o)
    else: Image.fromarray(a).convert('RGB').save(f := io.BytesIO(), {'jpg':'JPEG'}.get(kind, kind.upper()), exif=EXIF(o), quality=100); data = f.getvalue()
    with Image.open(io.BytesIO(data)) as im: got = np.asarray(eight_bits(as_shown(im)[0]).convert('L')).astype(int)
    want = TURNS[o](a)
    assert got.shape==want.shape and abs(got-want).max()<(12 if kind in ('webp','avif','jpg') else 1)

def profile(space, tags, pcs=b'XYZ ', kind=b'mntr'):
    "An ICC profile of version 2 with these tags, {name: bytes}"
    tags = dict(desc=b'desc'+bytes(4)+struct.pack('>I', 2)+b't\0'+bytes(78), cprt=b'text'+bytes(4)+b'none\0',
                wtpt=xyz(.9642, 1, .8249)) | tags
    at,table,data = 132+12*len(tags),b'',b''
    for name,v in tags.items():
        v += bytes(-len(v)%4)
        table += name.encode()+struct.pack('>II', at+len(data), len(v)); data += v
    head = struct.pack('>I4sI4s4s4s12s4s', at+len(data), b'none', 0x02400000, kind, space, pcs, bytes(12), b'acsp')+bytes(28)+xyz(.9642, 1, .8249)[8:]+bytes(48)
    return head+struct.pack('>I', len(tags))+table+data
def xyz(*v): return b'XYZ '+bytes(4)+struct.pack('>3i', *(round(65536*o) for o in v))
def power(gamma): return b'curv'+bytes(4)+struct.pack('>IH', 1, round(256*gamma))
def curve(f): return b'curv'+bytes(4)+struct.pack('>I1024H', 1024, *(round(65535*f(i/1023)) for i in range(1024)))
def rgb_profile(primaries, trc): return profile(b'RGB ', {f'{c}{t}': v for c,p in zip('rgb', primaries) for t,v in (('XYZ',xyz(*p)), ('TRC',trc))})

# primaries of the two spaces, adapted to D50: Bruce Lindbloom's tables
SRGB = (.4360747,.2225045,.0139322),(.3850649,.7168786,.0971045),(.1430804,.0606169,.7141733)
ADOBE = (.6097559,.3111242,.0194811),(.2052401,.6256560,.0608902),(.1492240,.0632197,.7448387)
def linear(v): return v/12.92 if v<=.04045 else ((v+.055)/1.055)**2.4
def encode(v): return np.where(v<=.0031308, 12.92*v, 1.055*np.clip(v, 0, None)**(1/2.4)-.055)
def from_adobe(levels):
    "Levels of Adobe RGB as levels of sRGB, (..., 3), not rounded"
    light = (np.asarray(levels)/255)**(563/256)@np.array(ADOBE)@np.linalg.inv(np.array(SRGB))
    return 255*encode(light.clip(0, 1))
def saved(picture, **kw):
    f = io.BytesIO(); picture.save(f, **kw); f.seek(0)
    return Image.open(f)

photo = rng.integers(0, 256, (16,16,3), dtype=np.uint8)
adobe = rgb_profile(ADOBE, power(563/256))

@pytest.mark.parametrize('kind', ['png','tiff','webp','jpeg'])
def test_colour_profiles_are_applied(kind):
    how = dict(webp=dict(lossless=True), jpeg=dict(quality=100, subsampling=0)).get(kind, {})
    picture = saved(Image.fromarray(photo), format=kind, icc_profile=adobe, **how)
    levels = np.asarray(picture.convert('RGB'))                            # a JPEG's are not quite those it was given
    shown,done = as_shown(picture)
    assert done==['profile'] and shown.mode=='RGB' and abs(np.asarray(shown)-from_adobe(levels)).max()<1.6
    assert abs(from_adobe(levels)-levels).max()>40 and as_shown(shown)==(shown,[]) # once

def test_colour_profiles_with_transparency_and_a_palette():
    clear = np.concatenate((photo, np.full((16,16,1), 128, np.uint8)), 2)
    shown,done = as_shown(saved(Image.fromarray(clear), format='png', icc_profile=adobe))
    want = from_adobe(photo)*128/255+255*(1-128/255)
    assert done==['profile','white'] and abs(np.asarray(shown)-want).max()<2.1
    few = Image.fromarray(photo).quantize(16)
    shown,done = as_shown(saved(few, format='png', icc_profile=adobe))
    assert done==['profile'] and abs(np.asarray(shown)-from_adobe(np.asarray(few.convert('RGB')))).max()<1.6

@pytest.mark.parametrize('gamma', [1.,1.8,2.2])
def test_colour_profiles_of_grey(gamma):
    level = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    icc = profile(b'GRAY', dict(kTRC=power(gamma)))
    shown,done = as_shown(saved(Image.fromarray(level), format='png', icc_profile=icc))
    assert done==['profile'] and shown.mode=='L' and abs(np.asarray(shown)-255*encode((level/255)**(round(256*gamma)/256))).max()<.6
    both = Image.merge('LA', (Image.fromarray(level), Image.new('L', (256,2), 255)))
    assert np.array_equal(as_shown(saved(both, format='png', icc_profile=icc))[0], shown)

def test_colour_profiles_of_cmyk():
    "A profile by which black ink alone is seen, and lightness falls with it"
    table = b'mft1'+bytes(4)+bytes([4,3,2,0])+struct.pack('>9i', *(65536*(i%4==0) for i in range(9)))+bytes(range(256))*4+bytes([255,128,128,0,128,128]*8)+bytes(range(256))*3
    icc = profile(b'CMYK', dict(A2B0=table, B2A0=table), b'Lab ', b'prtr')
    ink = rng.integers(0, 256, (16,16,4), dtype=np.uint8)
    picture = Image.frombytes('CMYK', (16,16), ink.tobytes())
    shown,done = as_shown(saved(picture, format='tiff', icc_profile=icc))
    lightness = 100*(1-ink[...,3:]/255)
    light = np.where(lightness>8, ((lightness+16)/116)**3, lightness/903.3)
    assert done==['profile'] and abs(np.asarray(shown)-255*encode(light)).max()<2
    assert as_shown(saved(picture, format='tiff'))[1]==[]

@pytest.mark.parametrize('what', ['sRGB','grey','damaged','empty','for others'])
def test_colour_profiles_that_change_nothing(what):
    like_srgb = curve(linear)
    icc = dict(sRGB=rgb_profile(SRGB, like_srgb), grey=profile(b'GRAY', dict(kTRC=like_srgb)), damaged=adobe[:200], empty=b'no',
               **{'for others': adobe})[what]
    pixels = photo[...,0].copy() if what in ('grey','for others') else photo
    shown,done = as_shown(saved(Image.fromarray(pixels), format='png', icc_profile=icc))
    assert done==[] and np.array_equal(np.asarray(shown), pixels)

def test_a_folder_tells_of_colour_profiles(tmp_path):
    for i in range(12): Image.fromarray(np.roll(photo, i, 0)).save(tmp_path/f'{i}.png', icc_profile=adobe)
    with pytest.warns(ImagesWarning, match='12 of 12 images of .* have a colour profile other than sRGB, and are shown in sRGB'):
        dls = get_dls(tmp_path, device='cpu', bs=4)
    assert abs(dls.train.dataset[0].numpy().transpose(1,2,0).mean()-from_adobe(photo).mean())<1

@pytest.mark.parametrize('kind,paged', [('GIF',True), ('TIFF',True), ('PNG',True), ('WEBP',True), ('MPO',False)])
def test_the_first_frame(kind, paged):
    frames = [Image.new('RGB', (16,16), c) for c in ('#ff0000','#00ff00')]
    frames[0].save(f := io.BytesIO(), kind, save_all=True, append_images=frames[1:], **({'lossless':True} if kind=='WEBP' else {}))
    with Image.open(f) as im: picture,done = as_shown(im)
    assert done==['first']*paged and abs(np.asarray(picture).astype(int)-[255,0,0]).max()<3

def test_modes_that_arise_in_memory():
    for mode in 'La','LA','RGBa','RGBA','PA':
        clear = Image.new('LA' if mode=='La' else 'RGBA', (2,1), (9,0) if mode=='La' else (9,9,9,0))
        picture,done = as_shown(clear.convert('LA' if mode=='La' else 'RGBA').convert(mode))
        assert done==['white'] and set(picture.get_flattened_data() if hasattr(picture, 'get_flattened_data') else picture.getdata())<={255,(255,)*3}
    assert as_shown(Image.new('CMYK', (1,1), (0,255,0,0)))[0].getpixel((0,0))==(255,0,255)

def test_a_data_set_of_pictures_tells_what_was_done():
    icons = [Image.open(io.BytesIO(FILES['black_icon'][0])) for _ in range(3)]+[Image.open(io.BytesIO(FILES['white_icon'][0]))]
    with pytest.warns(ImagesWarning) as told: k = as_levels(icons, 'train')
    assert [str(w.message) for w in told]==[
        '3 of 4 images of train are transparent in places, and stand on white: number 0 and others.', '1 of 4 images of train are white where they are not transparent, and stand on black: number 3.']
    assert k[:,0].tolist()==[[[W,0]]]*3+[[[0,W]]]
    deep = [Image.fromarray(a.astype(np.uint16)*16) for a in grey]
    with pytest.warns(ImagesWarning, match='12 images of train .*needs 12: the values from 0 to 4095 become'): assert np.array_equal(as_levels(deep, 'train'), grey[:,None])
    with warnings.catch_warnings(): warnings.simplefilter('error'); as_levels([Image.fromarray(a) for a in grey])

@pytest.mark.parametrize('a,words', [(torch.from_numpy(grey).bfloat16(), 'bfloat16'), (torch.from_numpy(grey).half(), 'float16'), (torch.from_numpy(grey).to_sparse(), 'sparse'),
    ((grey>99).astype(np.uint8), 'nothing but 0 and 1'), ((grey>99).astype(int), 'nothing but 0 and 1'), (grey.astype(complex), 'complex128'), (grey.astype(np.longdouble)/255, 'give uint8')])
def test_other_numbers_are_refused(a, words):
    with pytest.raises(ValueError, match=words): opened(a)

@pytest.mark.parametrize('names,told', [
    ('train valid test', 'tvs'), ('Train VAL Test', 'tvs'), ('training validation testing', 'tvs'), ('train dev', 'tv'), ('trn tst', 'ts'), ('TrainSet TestSet', 'ts'),
    ('training_set test-set', 'ts'), ('train_images val_images', 'tv'), ('train2017 val2017', 'tv'), ('01_train 02_test', 'ts'), ('trainval test', 'ts'), ('seg_train seg_test', 'ts'),
    ('train_32x32 valid_32x32', 'tv'), ('trainA trainB testA testB', 'ttss'), ('DIV2K_train_HR DIV2K_valid_HR', 'tv'), ('evaluation', 'v'), ('train held_out', 't'), ('train holdout', 'tv')])
def test_names_of_parts(names, told):
    names = names.split()
    if 'held_out' in names: told = 't'
    assert part_names(names)==dict(zip(names, [dict(t='train', v='valid', s='test')[c] for c in told]))

@pytest.mark.parametrize('names', ['cats dogs', 'bullet_train cats', 'test_tube flask', 'train_station test_tube', 'valley tests_of_time', 'contest latest', 'train_test', '', '1 2 3'])
def test_names_that_mean_no_part(names): assert part_names(names.split(' '))=={}

def test_arrays_by_other_names():
    a,b = (opened({n: colour[i::2] for i,n in enumerate(names)}) for names in (('train','valid'), ('Training','dev')))
    assert a.info==b.info
    with pytest.raises(ValueError, match='called x_train, y_train'): opened(dict(x_train=grey, y_train=grey))
