"""Files of images: what comes back is what went in, whatever the model; the length is what the ELBO says; what can't be right is refused before anything is decoded."""
import json, multiprocessing, os, struct, subprocess, sys, zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sdn_nb import compression
from sdn_nb.compression import MAGIC, Stack, compress, decompress, next_batch, pop, pop_images, probe, push, push_images, read_exactly, read_packed, sdn_compress, sdn_decompress, unpack
from sdn_nb.data import get_dls, to_unit
from sdn_nb.saving import model_folder
from sdn_nb.scan import BACKENDS
from sdn_nb.vae import SDNVAE, VAEConfig

pytest.importorskip('constriction')
root = Path(__file__).resolve().parent.parent
cfg = VAEConfig((8,12), channels=3, levels=256, depth=3, downsample=(0,2), h=8, z=2, features=6, mix=3)
KINDS = dict(
    colour=cfg, grey=replace(cfg, channels=1, levels=17), two=replace(cfg, channels=2, levels=5), convolutional=replace(cfg, sdn=False),
    logistic=replace(cfg, likelihood='logistic'), bernoulli=replace(cfg, likelihood='bernoulli', levels=2, channels=1), flat=replace(cfg, image_size=(4,4), depth=1, downsample=(), z=1),
    wide=replace(cfg, image_size=(4,36), downsample=(1,)))

def make(cfg, seed=0):
    "A model whose latent variables and pixels depend on something"
    torch.manual_seed(seed)
    model = SDNVAE(cfg).eval()
    for p in model.parameters(): p.data += .1*torch.randn_like(p)
    return model

def images(cfg, n, seed=0): return torch.from_numpy(np.random.default_rng(seed).integers(0, cfg.levels, (n,cfg.channels,*cfg.image_size)).astype(np.uint8))
def quiet(*args, **kw): return compress(*args, progress=False, **kw)
def read(*args): return decompress(*args, progress=False)

# There and back

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_model(kind, tmp_path):
    model,k = make(KINDS[kind]),images(KINDS[kind], 37)
    report = quiet(model, k, tmp_path/'a', bs=8)
    assert torch.equal(read(tmp_path/'a', model), k)
    packed = read_packed(tmp_path/'a')
    assert sum(1<<b[0] for b in packed.header['batches'])==37 and report.file==(tmp_path/'a').stat().st_size
    assert model.training is False and torch.get_num_threads()>0

@pytest.mark.parametrize('bits', [1,4,16])
@pytest.mark.parametrize('bs', [1,3,64])
def test_bins_and_batches(bits, bs, tmp_path):
    model,k = make(KINDS['grey']),images(KINDS['grey'], 20)
    quiet(model, k, tmp_path/'a', bits=bits, bs=bs)
    assert torch.equal(read(tmp_path/'a', model), k)

def test_one_image_and_images_of_one_level(tmp_path):
    model = make(KINDS['grey'])
    for k in images(KINDS['grey'], 1), torch.zeros(9,1,8,12, dtype=torch.uint8), torch.full((9,1,8,12), 16, dtype=torch.int64):
        quiet(model, k, tmp_path/'a')
        assert torch.equal(read(tmp_path/'a', model), k.to(torch.uint8))

def test_memory_does_not_matter():
    "How the images lie in memory when they are pushed is not known when they are popped"
    model,k = make(cfg),images(cfg, 4)
    for laid in (k, k.contiguous(memory_format=torch.channels_last), k.repeat(2,1,1,1)[::2], k.transpose(2,3).contiguous().transpose(2,3)):
        stack = Stack(np.arange(1, 3000, dtype=np.uint32))
        push_images(stack, model, laid, 8)
        assert torch.equal(pop_images(stack, model, 4, 8), laid.long()) and np.array_equal(stack.words(), np.arange(1, 3000))

def test_length_is_that_of_the_elbo(tmp_path):
    model,k = SDNVAE.from_pretrained('digits'),get_dls('digits', num_workers=0, device='cpu').valid.dataset.levels
    report = quiet(model, k, tmp_path/'a')
    with torch.no_grad(): elbo = -sum(model(to_unit(k, 17)).elbo.double().sum().item() for _ in range(10))/10/np.log(2)
    assert abs(report.stack/report.values/report.elbo-1)<.01 and abs(report.stack/elbo-1)<.02
    assert 8*report.file-report.stack<8*1000

# Coins and symbols

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32-1), st.integers(1, 9), st.integers(1, 40))
def test_symbols_of_any_distribution(seed, bits, n):
    "Also those that have no mass at all"
    rng = np.random.default_rng(seed)
    masses = rng.random(2**bits)**rng.integers(1, 30)*(rng.random(2**bits)<.7)
    below = torch.from_numpy(np.concatenate([[0.], np.cumsum(masses)/max(masses.sum(), 1e-300)]))
    i = torch.from_numpy(rng.integers(0, 2**bits, n))
    words = rng.integers(1, 2**32, 5, dtype=np.uint32)
    stack = Stack(words)
    push(stack, lambda j: below[j], bits, i)
    assert torch.equal(pop(stack, lambda j: below[j], bits, i.shape), i) and np.array_equal(stack.words(), words)

def test_drawing_from_random_bits():
    "Popped symbols have the frequencies of their distribution"
    below = torch.tensor([0,.1,.15,.55,1.], dtype=torch.float64)
    stack = Stack(np.random.default_rng(0).integers(1, 2**32, 20000, dtype=np.uint32))
    i = pop(stack, lambda j: below[j], 2, (100_000,))
    assert torch.allclose(torch.bincount(i, minlength=4)/1e5, below.diff().float(), atol=.005)

@given(st.integers(0, 10**7), st.integers(1, 10**5), st.integers(1, 10**4), st.integers(1, 16), st.integers(1, 1000))
def test_next_batch(available, left, latents, bits, most):
    n,fine = next_batch(available, left, latents, bits, most)
    assert 1<=n<=min(left, most) and n&(n-1)==0 and 0<=fine<=bits and n*fine*latents<=available
    assert fine==bits or n==1

# The same bits, or a word about it

def written(tmp_path, threads=None):
    model,k = make(KINDS['grey']),images(KINDS['grey'], 40)
    quiet(model, k, tmp_path/'a', threads=threads)
    return model,k

READ = """
import sys, torch
from sdn_nb.compression import decompress
from sdn_nb.vae import SDNVAE
torch.set_num_threads(int(sys.argv[3]))
torch.save(decompress(sys.argv[1], SDNVAE.from_pretrained(sys.argv[2]), progress=False), sys.argv[4])"""

@pytest.mark.parametrize('wrote, reads', [(1,2),(2,1),(3,1)])
def test_fresh_process_with_other_threads(wrote, reads, tmp_path):
    model,k = written(tmp_path, wrote)
    model.save_pretrained(tmp_path/'model')
    subprocess.run([sys.executable, '-c', READ, tmp_path/'a', tmp_path/'model', str(reads), tmp_path/'k.pt'], check=True, cwd=root)
    assert torch.equal(torch.load(tmp_path/'k.pt', weights_only=True), k)

def _in_child(file, model, k): os._exit(0 if torch.equal(read(file, model), k) else 1)

def test_forked_process(tmp_path):
    model,k = written(tmp_path, 1)
    p = multiprocessing.get_context('fork').Process(target=_in_child, args=(tmp_path/'a', model, k))
    p.start(); p.join(120)
    assert p.exitcode==0

def test_programs_of_the_sweep(tmp_path, monkeypatch):
    "A file that was written with one of them is read with that one, also where a faster one is there"
    model,k = make(KINDS['grey']),images(KINDS['grey'], 12)
    kept = dict(BACKENDS)
    try:
        for name in list(BACKENDS):
            if name!='torch': del BACKENDS[name]
        quiet(model, k, tmp_path/'a')
    finally:
        BACKENDS.clear(); BACKENDS.update(kept)
    assert read_packed(tmp_path/'a').header['backends']==['torch']
    assert torch.equal(read(tmp_path/'a', model), k) and list(BACKENDS)==list(kept)
    header(tmp_path/'a', backends=['torch','abacus'])
    with pytest.raises(ValueError, match='the sweep by abacus, which can.t run here: nobody has registered it'): read(tmp_path/'a', model)

def header(file, **changes):
    "Write a file's header anew, as somebody would who means it"
    packed = read_packed(file)
    file.write_bytes(compression._pack(packed.header|changes, packed.words))

def never(*args, **kw): raise AssertionError('something was decoded')

def test_another_machine_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    model,_ = written(tmp_path)
    packed = read_packed(tmp_path/'a')
    monkeypatch.setattr(compression, 'pop_images', never)
    header(tmp_path/'a', probe=packed.header['probe']^1, made=packed.header['made']|dict(torch='1.0', processor='ABACUS'))
    with pytest.raises(ValueError, match=r'computes other bits .* torch 1.0 \(.* here\), .*processor ABACUS \('): read(tmp_path/'a', model)

def test_one_bit_of_one_weight(tmp_path, monkeypatch):
    model,_ = written(tmp_path)
    before = probe(model, [2], 10)
    weight = model.blocks[1].up_a.bias.data
    weight[3] = torch.nextafter(weight[3], torch.tensor(9.))
    assert probe(model, [2], 10)!=before
    monkeypatch.setattr(compression, 'pop_images', never)
    with pytest.raises(ValueError, match='SHA-256 .* this is another'): read(tmp_path/'a', model)

def test_another_definition_of_the_same_weights(tmp_path):
    "What the sweeps do with the weights is not in the weights"
    written(tmp_path)
    model = make(replace(KINDS['grey'], directions=('up','left')))
    with pytest.raises(ValueError, match='this is another'): read(tmp_path/'a', model)

def test_a_machine_that_does_not_repeat_itself(tmp_path, monkeypatch):
    "The file never gets its name"
    model,k = make(KINDS['grey']),images(KINDS['grey'], 5)
    pops = compression.pop_images
    monkeypatch.setattr(compression, 'pop_images', lambda *args: pops(*args)^1)
    with pytest.raises(ValueError, match='does not compute the same bits twice'): quiet(model, k, tmp_path/'a')
    assert list(tmp_path.iterdir())==[]

# Damage

def test_damage_is_found(tmp_path):
    model,k = written(tmp_path)
    data = (tmp_path/'a').read_bytes()
    at = len(data)-4*len(read_packed(tmp_path/'a').words)
    rng,wrong = np.random.default_rng(0),set()
    places = [*range(0, at, 7), *rng.integers(at, len(data), 25)]
    for i in places:
        (tmp_path/'b').write_bytes(data[:i]+bytes([data[i]^(1<<rng.integers(8))])+data[i+1:])
        with pytest.raises(ValueError) as e: read(tmp_path/'b', model)
        wrong.add(' '.join(str(e.value).replace(str(tmp_path/'b'), '').split()[:4]))
    assert any(w.startswith('unpack: the file is') for w in wrong), wrong
    for n in (0, 3, 11, 12, at-1, at, at+5, at+8, len(data)-4, len(data)-1):
        (tmp_path/'b').write_bytes(data[:n])
        with pytest.raises(ValueError): read(tmp_path/'b', model)
    (tmp_path/'b').write_bytes(data+b'\1\0\0\0')
    with pytest.raises(ValueError): read(tmp_path/'b', model)

def test_what_was_decoded_before_the_damage_is_whole(tmp_path):
    model,k = written(tmp_path)
    packed = read_packed(tmp_path/'a')
    packed.words[len(packed.words)//2] ^= 1
    found = {}
    with pytest.raises(ValueError, match=r'Of its 40 images those from (\d+) on were decoded and are whole') as e:
        for first,part in unpack(packed, model, progress=False): found[first] = part
    left = int(e.value.args[0].split('those from ')[1].split()[0])
    assert 0<left<40 and min(found)==left and all(torch.equal(part, k[first:first+len(part)]) for first,part in found.items())

@pytest.mark.parametrize('changes', [
    dict(images=[10**9,1,8,12]), dict(images=[40,1,8]), dict(images=None), dict(images=[40,1,-8,12]), dict(levels='many'), dict(batches=[[6,99,0]]), dict(batches=[[-1,3,0]]), dict(batches=[[1.5,3,0]]), dict(batches=[]),
    dict(batches=[[400,3,0]]), dict(threads=0), dict(threads=10**9), dict(names=['a']), dict(names=7), dict(bits=-1), dict(bits=99), dict(backends=7), dict(backends=[7]), dict(made=None), dict(sha256=3), dict(probe=None)],
    ids=lambda c: ' '.join(f'{k} {v}' for k,v in c.items()))
def test_hostile_headers(changes, tmp_path):
    "A header that somebody wrote with care, and a right checksum, ends in words"
    model,_ = written(tmp_path)
    header(tmp_path/'a', **changes)
    with pytest.raises(ValueError, match='is damaged|was written with|computes other bits'): read(tmp_path/'a', model)

def test_a_header_that_would_fill_the_memory(tmp_path):
    text = zlib.compress(b' '*2**29, 1)
    (tmp_path/'a').write_bytes(MAGIC+struct.pack('<II', len(text), zlib.crc32(text))+text)
    with pytest.raises(ValueError, match='is damaged: its header'): read_packed(tmp_path/'a')

def test_other_files(tmp_path):
    for content in (b'', b'PNG', b'SDN\x02'+bytes(40), bytes(100)):
        (tmp_path/'a').write_bytes(content)
        with pytest.raises(ValueError, match='not a file that sdn_compress has written|of version 2 of the format'): read_packed(tmp_path/'a')

# Arguments

def test_flows_are_refused(tmp_path):
    model = make(replace(cfg, context=2))
    with pytest.raises(ValueError, match='autoregressive flows.*context=0'): quiet(model, images(cfg, 2), tmp_path/'a')

@pytest.mark.parametrize('k, words', [
    (torch.zeros(0,3,8,12, dtype=torch.uint8), 'N at least 1'), (torch.zeros(2,1,8,12, dtype=torch.uint8), r'\(N, 3, 8, 12\)'), (torch.zeros(2,3,8,12), 'torch.float32'),
    (torch.full((2,3,8,12), 256), '0 to 255'), (torch.full((2,3,8,12), -1), '0 to 255'), (None, 'NoneType')], ids=range(6))
def test_images_that_are_none(k, words, tmp_path):
    with pytest.raises(ValueError, match=words): quiet(make(cfg), k, tmp_path/'a')

@pytest.mark.parametrize('option', [dict(bits=0), dict(bits=17), dict(bits=2.5), dict(bs=0), dict(bs=-4), dict(threads=-1)], ids=str)
def test_impossible_options(option, tmp_path):
    with pytest.raises(ValueError): quiet(make(cfg), images(cfg, 2), tmp_path/'a', **option)

# Files and commands

@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(replace(cfg, image_size=(8,8))).save_pretrained('model')
    rng = np.random.default_rng(0)
    for name in ('a.png','b/c.png','b/d é.bmp','b/.hidden.png','notes.txt'):
        Path('in', name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('txt'): Path('in', name).write_text('text')
        else: Image.fromarray(rng.integers(0, 256, (8,8,3), dtype=np.uint8)).save(Path('in', name))
    return tmp_path

def pixels(file): return np.asarray(Image.open(file))

def test_folder_to_folder(work, capsys):
    sdn_compress.main(['model','in'])
    assert 'in.sdn: 3 images' in capsys.readouterr().out
    sdn_decompress.main(['in.sdn','--model','model','--out','out'])
    assert sorted(p.relative_to('out').as_posix() for p in Path('out').rglob('*') if p.is_file())==['a.png','b/c.png','b/d é.bmp.png']
    for name in ('a.png','b/c.png'): assert np.array_equal(pixels(Path('in')/name), pixels(Path('out')/name))
    assert np.array_equal(pixels('in/b/d é.bmp'), pixels('out/b/d é.bmp.png'))

def test_nothing_is_replaced(work):
    sdn_compress.main(['model','in'])
    before = Path('in.sdn').read_bytes()
    with pytest.raises(SystemExit, match='in.sdn exists. Replace it with --overwrite'): sdn_compress.main(['model','in/a.png','--out','in.sdn'])
    with pytest.raises(SystemExit, match='there is no folder none'): sdn_compress.main(['model','in','--out','none/a.sdn'])
    assert Path('in.sdn').read_bytes()==before
    sdn_compress.main(['model','in/a.png','--out','in.sdn','--overwrite'])
    assert Path('in.sdn').read_bytes()!=before
    Path('full').mkdir(); Path('full/letter').write_text('dear')
    for out in ('full','full/letter'):
        with pytest.raises(SystemExit, match='exists, and is not an empty folder'): sdn_decompress.main(['in.sdn','--model','model','--out',out])

def test_a_model_that_is_not_in_the_package(work):
    sdn_compress.main(['model','in'])
    with pytest.raises(SystemExit, match="with the model 'model', SHA-256 .* Name its folder with --model"): sdn_decompress.main(['in.sdn','--out','out'])
    with pytest.raises(SystemExit, match='this is another'): sdn_decompress.main(['in.sdn','--model','digits','--out','out'])
    assert not Path('out').exists()

@pytest.mark.parametrize('name', ['/etc/a.png', '../a.png', 'a/../../b.png', 'a\0.png', 'a\\..\\b.png', ''])
def test_names_that_lead_away(work, name):
    sdn_compress.main(['model','in/a.png'])
    header(Path('a.sdn'), names=[name])
    with pytest.raises(SystemExit, match='does not lie in a folder'): sdn_decompress.main(['a.sdn','--model','model','--out','out'])
    assert not Path('out').exists()

def save(name, a, mode=None, **kw):
    Image.fromarray(a, mode).save(name, **kw) if mode else Image.fromarray(a).save(name, **kw)
    return name

def exactly(file, channels=3, levels=256, size=(8,8)): return read_exactly(Path(file), SimpleNamespace(channels=channels, image_size=size, levels=levels))

def test_pictures_that_would_not_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    colour,grey = rng.integers(0, 256, (8,8,3), dtype=np.uint8),rng.integers(0, 256, (8,8), dtype=np.uint8)
    def refused(words, name, channels=3, levels=256):
        with pytest.raises(ValueError, match=f'^{name} {words}'): exactly(name, channels, levels)
    refused('is 8x9', save('wide.png', np.zeros((8,9,3), np.uint8)))
    refused('is in colour', save('colour.png', colour), channels=1)
    refused('has other values than the 17 levels', save('grey.png', grey), channels=1, levels=17)
    refused('is transparent', save('clear.png', rng.integers(0, 200, (8,8,4), dtype=np.uint8)))
    refused('has more than 8 bits|is transparent, has more than 8 bits', save('deep.png', grey.astype(np.uint16)*256))
    Path('half.png').write_bytes(Path('colour.png').read_bytes()[:90])
    refused('can.t be read', 'half.png')
    k = exactly(save('palette.gif', grey), 1)
    assert np.array_equal(k[0], grey)
    k = exactly('grey.png')                    # grey is a colour
    assert np.array_equal(k, np.broadcast_to(grey, (3,8,8)))
    exif = Image.Exif(); exif[0x112] = 6
    Image.fromarray(colour).save('turned.png', exif=exif)
    assert np.array_equal(exactly('turned.png').permute(1,2,0), np.rot90(colour, -1)) # as it is shown

@pytest.mark.parametrize('levels', [2,3,17,32,255,256])
def test_levels_on_paper(levels, tmp_path):
    k = torch.arange(levels).to(torch.uint8)[None,None].expand(1, 8, -1)
    grey = compression._grey_levels(levels)
    assert len({*grey.tolist()})==levels and grey[0]==0 and grey[-1]==255
    Image.fromarray(grey[k[0].long()].numpy()).save(tmp_path/'a.png')
    assert torch.equal(exactly(tmp_path/'a.png', 1, levels, (8,levels)), k)

def test_idx_and_data_sets(work, capsys):
    k = get_dls('digits', num_workers=0, device='cpu').valid.dataset.levels[:5]
    Path('five-idx3-ubyte').write_bytes(bytes([0,0,8,3])+struct.pack('>3I', 5, 8, 8)+k.numpy().tobytes())
    sdn_compress.main(['digits','five-idx3-ubyte'])
    sdn_decompress.main(['five-idx3-ubyte.sdn','--out','five'])           # it comes with the package: no --model
    assert sorted(os.listdir('five'))==[f'{i}.png' for i in range(5)]
    assert all(torch.equal(exactly(f'five/{i}.png', 1, 17), k[i]) for i in range(5))
    for argv,words in [
        (['digits','fashion_mnist'], 'images of fashion_mnist have 1 channels, 28x28 pixels and 256 levels; the model knows 1, 8x8 and 17'),
        (['digits','digits'], 'digits has no part test'), (['digits','digits','--split','all'], '--split must be train, valid or test'),
        (['digits','in','five-idx3-ubyte'], 'in/a.png is in colour'), (['model','five-idx3-ubyte'], r'an array \(5, 8, 8\) of values up to 16'), (['digits','none'], 'none'),
        (['digits','model'], 'there are no pictures in model')]:
        with pytest.raises(SystemExit, match=f'^error: .*{words}'): sdn_compress.main([*argv, '--out', 'x.sdn'])
    assert not Path('x.sdn').exists()

def test_two_pictures_of_one_name(work):
    Image.open('in/a.png').save('in/b/d é.bmp.png')
    with pytest.raises(SystemExit, match='two pictures would come back as b/d é.bmp.png'): sdn_compress.main(['model','in'])

def test_without_constriction(work, monkeypatch):
    monkeypatch.setitem(sys.modules, 'constriction', None)
    with pytest.raises(SystemExit, match=r'pip install "sdn_nb\[compress\]"'): sdn_compress.main(['model','in'])
    assert not Path('in.sdn').exists()

def test_the_shipped_model_is_found_by_its_weights(work):
    "Whatever it was called when the file was written"
    k = get_dls('digits', num_workers=0, device='cpu').valid.dataset.levels[:3]
    quiet(SDNVAE.from_pretrained('digits'), k, 'k.sdn', 'mine')
    sdn_decompress.main(['k.sdn'])
    assert json.loads(json.dumps(sorted(os.listdir('k'))))==['0.png','1.png','2.png'] and model_folder('digits').is_dir()
