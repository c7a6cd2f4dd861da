"""Plans for images of one's own: what nbs/engine/plan.ipynb leaves out, and the command on folders, files and weights."""
import csv, json, os, subprocess, sys
from dataclasses import asdict, replace
import numpy as np, pytest, torch
from PIL import Image
from sdn_nb import cli, plan
from sdn_nb.cli import read_changes, sdn_eval, sdn_sample, sdn_train
from sdn_nb.data import DATASETS, DataInfo, get_dls
from sdn_nb.plan import check_memory, count_sweeping, doubts, epochs_in, fit_config, fit_settings, free_memory, own_recipe, steps_in
from sdn_nb.runs import Settings, read_run
from sdn_nb.saving import model_folder
from sdn_nb.vae import PRESETS, RECIPES, SDNVAE, VAEConfig, check_levels, plan_blocks, preset_config, preset_recipe, read_preset

def info_of(n=180, size=(32,32), **kw): return DataInfo('mine', 3, size, 256, n, max(1, n//9), '', '', **kw)
def pictures(folder, n=24, size=8, seed=0, colour=True):
    folder.mkdir(parents=True, exist_ok=True)
    r = np.random.default_rng(seed)
    for i in range(n): Image.fromarray(r.integers(0, 256, (size,size,3) if colour else (size,size), dtype=np.uint8)).save(folder/f'{i:03}.png')
    return folder
TINY = dict(preset='digits', width=8, epochs=1)

@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('size', [(8,8), (16,24), (28,28), (32,32), (64,96), (256,256), (512,512), (1024,768)])
def test_the_top_map_keeps_its_size(preset, size):
    cfg = PRESETS[preset]
    try: fitted = fit_config(cfg, size)
    except ValueError as e:                                                            # 28 pixels can be halved twice
        assert 'can be halved' in str(e) and size==(28,28)
        return
    n = len(fitted.downsample)
    before,now = max(cfg.image_size)/2**len(cfg.downsample),max(size)/2**n
    assert before/2.9<now<before*2.9 or n==0 and now<before
    assert fitted.depth>=cfg.depth and list(fitted.downsample)==sorted(fitted.downsample) and n<=fitted.depth
    if size==cfg.image_size: assert fitted==cfg
    with torch.device('meta'): assert len(SDNVAE(fitted).blocks)==fitted.depth
    assert count_sweeping(fitted)[0]>0

@pytest.mark.parametrize('size,words', [((101,101), '--size 96 or 128'), ((30,32), 'can be halved only once'), ((31,31), "can't be halved")])
def test_sizes_that_cannot_be_halved(size, words):
    with pytest.raises(ValueError, match=words): fit_config(PRESETS['photos'], size)

def test_sweeping_layers_are_counted_as_they_are():
    from sdn_nb.layers import ResSDN
    for cfg in (*PRESETS.values(), replace(PRESETS['photos'], sdn=False), replace(PRESETS['photos'], max_scale=8), replace(PRESETS['photos'], scales=(16,)), replace(PRESETS['photos'], scales=(32,8))):
        with torch.device('meta'): model = SDNVAE(cfg)
        assert count_sweeping(cfg)==(sum(isinstance(m, ResSDN) for m in model.modules()), 2*cfg.depth+1)

@pytest.mark.parametrize('n', [1, 3, 9, 60, 180, 300, 512, 5000, 10**6])
@pytest.mark.parametrize('device', ['cpu','cuda'])
def test_own_recipes(n, device):
    preset,own = own_recipe(n, device)
    assert 1<=own['bs']<=min(32, n) and preset in PRESETS
    s = fit_settings(Settings('./mine'), info_of(n), device)
    batches = steps_in(info_of(n), s.bs, s.repeat)
    assert own['steps']<=s.epochs*batches<own['steps']+batches
    assert batches>=plan.ROW or s.repeat==1 and batches>=plan.ROW
    assert s.epochs*batches==own['steps'] or s.repeat>1 or n>400

@pytest.mark.parametrize('given', [dict(epochs=3), dict(steps=7), dict(steps=100), dict(hours=.5), dict(bs=5, lr=.3), dict(preset='digits'), dict(preset='digits', bs=2)], ids=str)
def test_what_is_given_stays(given):
    s = fit_settings(Settings('./mine', **given), info_of())
    for k,v in given.items(): assert getattr(s, k)==v
    assert None not in (s.preset, s.bs, s.lr, s.ema) and (s.epochs is None)==('hours' in given)
    if 'steps' in given: assert given['steps']<=s.epochs*steps_in(info_of(), s.bs, s.repeat)
    assert Settings(**asdict(s))==s                                                    # as a resumed run reads it
    if 'preset' in given: assert s.lr==RECIPES['digits'].lr
    if 'epochs' in given: assert s.repeat==1

def test_named_sets_keep_their_recipes():
    for name in ('digits','photos','fashion_mnist','cifar10'):
        s = Settings(name)
        assert fit_settings(s, info_of())==s and s.epochs==RECIPES[name].epochs
    s = fit_settings(Settings('digits', steps=100), info_of(1437))
    assert s.epochs*steps_in(info_of(1437), s.bs, s.repeat)>=100

@pytest.mark.parametrize('a,b', [('epochs','steps'), ('epochs','hours'), ('steps','hours')])
def test_one_way_to_say_how_long(a, b, tmp_path, capsys):
    with pytest.raises(SystemExit, match=f'--{a} and --{b} exclude each other'): sdn_train('digits', out=str(tmp_path/'r'), **{a: 1, b: 2})

def test_hours_become_epochs():
    info = info_of(180)
    assert epochs_in(1, 1., info, 8, 3)==3600//(67+1) and epochs_in(1e-9, 1., info, 8, 1)==1

def test_memory_is_what_is_free(monkeypatch):
    model = SDNVAE.from_preset('digits')
    assert 0<free_memory('cpu')<=plan.psutil.virtual_memory().total
    with pytest.raises(MemoryError, match='--bs .* --accumulate .*--anyway'): check_memory(model, 4096, 50e6)
    with pytest.raises(MemoryError, match='No batch would'): check_memory(model, 1, 1e4)
    model.recompute = True
    assert 'GiB free' in check_memory(model, 4096, 50e6)                               # nobody has counted that

def test_a_run_that_will_not_fit_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, 'free_memory', lambda device: 2e6)
    with pytest.raises(SystemExit, match='will not fit'): sdn_train('digits', epochs=1, bs=512, out=str(tmp_path/'r'))
    assert not (tmp_path/'r').exists()
    sdn_train('digits', epochs=1, bs=512, anyway=True, out=str(tmp_path/'r'), threads=1)
    assert (tmp_path/'r/model.safetensors').exists() and 'will not fit' in capsys.readouterr().out

def test_doubts():
    cfg,s = PRESETS['photos'],fit_settings(Settings('./mine'), info_of())
    assert doubts(s, info_of(), cfg)==[]
    few = doubts(replace(s, epochs=1, repeat=1), info_of(), cfg)
    assert len(few)==1 and few[0].startswith('22 steps are too few')
    assert doubts(replace(s, epochs=1, init='digits'), info_of(), cfg)==[]
    assert '20 training images are few' in doubts(s, info_of(20), cfg)[-1]
    assert 'no layer sweeps' in doubts(s, info_of(), replace(cfg, min_scale=40, scales=(3,)))[0]

# The command

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

def trained(name, **kw):
    sdn_train(name, **TINY|dict(bs=8, threads=1)|kw)

def test_header_says_what_a_run_is(here, capsys):
    pictures(here/'mine')
    trained('mine', out='r')
    text = capsys.readouterr().out
    for words in ('mine: 22 training, 2 validation; 8×8, colour, 256 levels', '4 blocks, ', '9 of 9 layers sweep', 'cpu, 1 thread, fp32',
                  '2 batches of 8, 2 in each of 1 epochs; learning rate 0.01', 'GiB free', 'folder  r', 'note    2 steps are too few', 'note    22 training images are few'):
        assert words in text, (words,text)
    assert text.index('images  mine')<text.index('valid bpd')

def test_name_and_folder_are_told_apart(here):
    pictures(here/'photos')
    with pytest.raises(SystemExit, match=r'photos is a data set of the package.*write \./photos'): trained('photos', out='r')
    trained('./photos', out='r')
    assert read_run(here/'r')[1]['n_train']==22
    (here/'digits').mkdir(); (here/'digits/notes.txt').write_text('no picture')        # no folder of images
    trained('digits', bs=512, out='d')
    sdn_eval('d')
    pictures(here/'digits')
    sdn_eval('d')                                                                      # what was meant then is meant now

def test_images_that_moved(here):
    pictures(here/'a'); trained('a', out='r')
    (here/'a').rename(here/'b')
    with pytest.raises(SystemExit, match='nor a folder that exists'): sdn_eval('r')
    sdn_eval('r', path='b')
    sdn_train(resume=True, epochs=2, out='r', path='b')
    assert len((here/'r/history.csv').read_text().splitlines())==3
    sdn_eval('r')                                                                      # the run knows it now

@pytest.mark.parametrize('damaged', ['stop','skip'])
def test_damaged_files(here, damaged, capsys):
    pictures(here/'mine', 24)
    f = here/'mine/007.png'
    f.write_bytes(f.read_bytes()[:100])
    if damaged=='stop':
        with pytest.raises(SystemExit, match=r"007\.png cannot be read .*--damaged skip"): trained('mine', out='r')
        return
    trained('mine', out='r', damaged='skip')
    assert '1 of 24 files' in capsys.readouterr().out and read_run(here/'r')[1]['n_train']==21
    f.unlink()
    sdn_train(resume=True, epochs=2, out='r')

def test_file_of_arrays(here):
    r = np.random.default_rng(0)
    np.savez('mine.npz', train=r.integers(0, 256, (40,8,8,3), dtype=np.uint8), test=r.integers(0, 256, (8,8,8,3), dtype=np.uint8))
    trained('mine.npz')
    assert read_run(here/'runs/mine')[1]|{}=={**read_run(here/'runs/mine')[1], 'n_train': 36, 'n_test': 8, 'name': 'mine'}
    sdn_eval('runs/mine', split='test')

def test_images_in_python(here):
    r = np.random.default_rng(0)
    x = torch.from_numpy(r.integers(0, 256, (40,3,8,8), dtype=np.uint8))
    data = torch.utils.data.TensorDataset(x/255, torch.arange(40))
    with pytest.raises(SystemExit, match='bs'): sdn_train(data, **TINY, bs=0, out='r')
    with pytest.raises(SystemExit, match='from -0.5 to'): sdn_train(x/255-.5, **TINY, bs=8, out='r')
    assert not (here/'r').exists()
    trained((data, x[:8]), out='r')
    assert read_run(here/'r')[1]['n_valid']==8 and len(list((here/'r').glob('images_*.npz')))==1
    sdn_train(resume=True, epochs=2, out='r')
    sdn_eval('r'); sdn_sample('r', n=2)
    old = list((here/'r').glob('images_*.npz'))
    with pytest.raises(SystemExit, match='bs'): sdn_train(x, **TINY, bs=0, out='r', overwrite=True)
    assert list((here/'r').glob('images_*.npz'))==old                                  # nothing is lost by a mistake
    sdn_eval('r')
    trained(x, out='r', overwrite=True)
    assert read_run(here/'r')[1]['n_train']==36 and len(now := list((here/'r').glob('images_*.npz')))==1 and now!=old
    sdn_eval('r')

def test_folders_with_a_dot_keep_their_names(here):
    for name in ('v1.0','v1.1'): trained(str(pictures(here/name, 12)))
    assert {p.name for p in (here/'runs').iterdir()}=={'v1.0','v1.1'}

def test_steps_and_passes(here, monkeypatch):
    monkeypatch.setattr(plan, 'ROW', 10)
    pictures(here/'mine'); trained('mine', epochs=None, steps=24, out='r')
    s,_ = read_run(here/'r')
    assert (s.repeat, s.epochs)==(5, 2)                                                # 22 images, 2 batches a pass; 13 of 5
    assert [int(r['epoch']) for r in csv.DictReader(open('r/history.csv'))]==[0,1]
    sdn_train(resume=True, steps=39, out='r')
    assert read_run(here/'r')[0].epochs==3

def test_hours(here):
    pictures(here/'mine'); trained('mine', epochs=None, hours=1/1800, out='r')
    assert read_run(here/'r')[0].epochs>=1
    with pytest.raises(SystemExit, match='hours was'): sdn_train(resume=True, hours=1., out='r')

def test_resumed_as_if_nothing_had_happened(here, monkeypatch):
    "Also where an epoch is several passes, and the preset of the name is another by now"
    monkeypatch.setattr(plan, 'ROW', 10)
    pictures(here/'mine')
    for out,steps in (('a',48), ('b',24)): trained('mine', epochs=None, steps=steps, out=out)
    before = PRESETS['digits']
    try:
        PRESETS['digits'] = replace(before, depth=7)
        sdn_train(resume=True, steps=48, out='b')
    finally: PRESETS['digits'] = before
    a,b = ((here/r/'config.json').read_text() for r in 'ab')
    assert json.loads(a)['model']==json.loads(b)['model'] and read_run(here/'a')[0].epochs==read_run(here/'b')[0].epochs

# Weights to begin with

def test_begin_from_weights_of_the_same_kind(here, capsys):
    trained('digits', bs=512, out='a', sample_every=0, lr=1e-9, init='digits', width=None)
    assert 'init' in capsys.readouterr().out
    a,b = (SDNVAE.from_pretrained(m).state_dict() for m in ('a','digits'))
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=0)

@pytest.mark.parametrize('size,colour', [(8,False), (16,False), (8,True), (32,True)])
def test_begin_from_weights_for_other_images(here, size, colour, capsys):
    pictures(here/'mine', 12, size, colour=colour)
    sdn_train('mine', init='digits', epochs=1, bs=4, threads=1, out='r')
    text = capsys.readouterr().out
    told = next(l for l in text.splitlines() if l.startswith('init'))
    assert ('first' in told and 'last' in told)==colour, told
    model,given = SDNVAE.from_pretrained('r'),SDNVAE.from_pretrained('digits')
    assert (model.config.h, model.config.image_size, model.config.channels, model.config.levels)==(given.config.h, (size,size), 3 if colour else 1, 256)

def test_weights_that_are_none(here):
    with pytest.raises(SystemExit, match="no folder 'nothing'"): trained('digits', bs=512, init='nothing', out='r')
    assert not (here/'r').exists()

# Ablations

def test_every_field_can_be_set(here):
    values = dict(depth=3, downsample=[0], h=6, z=2, context=3, sdn=True, features=5, features_step=1, min_scale=2, max_scale=8, scales=[8], n_directions=3,
                  directions=['down','up'], residual='sum', likelihood='logistic', mix=2, free_bits=.25, layer='SDNLayer')
    own = {f for f in VAEConfig.__dataclass_fields__}-{'image_size','channels','levels'}
    assert set(values)==own                                                            # a new field is in here, too
    for name,value in values.items():
        text = ','.join(map(str, value)) if isinstance(value, list) else json.dumps(value) if not isinstance(value, str) else value
        if isinstance(value, list) and len(value)==1: text = str(value[0])
        got = read_changes([f'{name}={text}'])[name]
        assert got==value or [got]==value
    trained('digits', bs=512, out='r', set=['directions=down,up','scales=8','h=6'])
    cfg = SDNVAE.from_pretrained('r').config
    assert (cfg.directions, cfg.scales, cfg.h)==(('down','up'), (8,), 6) and read_run(here/'r')[0].changes==dict(directions=['down','up'], scales=8, h=6)
    sdn_train(resume=True, epochs=2, out='r')

@pytest.mark.parametrize('text,words', [('h', 'FIELD=VALUE'), ('hh=3', "no field 'hh'.*Did you mean 'h'"), ('h=x', '`h` must be'), ('image_size=8', 'follows the images'),
    ('directions=left,wrong', '`directions` must be'), ('scales=x', '`scales` must be'), ('residual=1', '`residual` must be'), ('layer=None', '`layer` must be')])
def test_settings_that_cannot_be(here, text, words):
    with pytest.raises(SystemExit, match=words): trained('digits', bs=512, out='r', set=[text])
    assert not (here/'r').exists()

def test_directions_and_scales_are_those_of_the_layers():
    from sdn_nb.layers import SDNLayer
    cfg = replace(PRESETS['photos'], directions=('up','left'), scales=(16,))
    blocks,last = plan_blocks(cfg)
    assert [b[1] is not None for b in blocks]==[False, False, True, False, False] and last==('up','left')
    with torch.device('meta'): model = SDNVAE(cfg)
    assert isinstance(model.last, torch.nn.Conv2d) and all(b[2]==b[3]==('up','left') for b in blocks if b[1])

@pytest.mark.parametrize('ending', ['toml','json'])
def test_presets_in_files(here, ending):
    given = dict(base='digits', model=dict(h=8, directions=['right'], features=8), recipe=dict(epochs=1, lr=.005, bs=512))
    toml = 'base = "digits"\n[model]\nh = 8\ndirections = ["right"]\nfeatures = 8\n[recipe]\nepochs = 1\nlr = 0.005\nbs = 512\n'
    (here/f'mine.{ending}').write_text(json.dumps(given) if ending=='json' else toml)
    sdn_train('digits', preset=f'mine.{ending}', out='r', threads=1)
    s,_ = read_run(here/'r')
    assert (s.epochs, s.lr, s.bs, SDNVAE.from_pretrained('r').config.directions)==(1, .005, 512, ('right',))
    (here/f'mine.{ending}').unlink()
    sdn_train(resume=True, epochs=2, out='r')                                          # the run has all that it needs

@pytest.mark.parametrize('text,words', [('base = "nothing"', 'base is'), ('[model]\nhh = 3', "no field 'hh'"), ('[recipe]\nlr = -1', '`lr` must be'), ('what = 1', 'unknown: what'), ('[[', 'mine.toml')])
def test_presets_that_cannot_be(here, text, words):
    (here/'mine.toml').write_text(text)
    with pytest.raises(ValueError, match=words): read_preset(here/'mine.toml')
    with pytest.raises(SystemExit, match='mine.toml'): sdn_train('digits', preset='mine.toml', out='r')

def test_list_and_help(capsys):
    sdn_train(list=True)
    text = capsys.readouterr().out
    assert all(name in text for name in (*PRESETS, *DATASETS, 'digits'))
    help = subprocess.run([sys.executable, '-c', 'from sdn_nb.cli import sdn_train; sdn_train.main(["--help"])'], capture_output=True, text=True).stdout
    assert all(name in help for name in ('--set','--list','--init','--hours','--steps','--damaged'))

# Pixels that are no levels

@pytest.mark.parametrize('levels', [2, 17, 256])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_levels_are_levels(levels, dtype):
    from sdn_nb.data import to_unit
    k = torch.arange(levels, dtype=torch.uint8)
    check_levels(to_unit(k, levels).to(dtype), levels)
    check_levels(torch.tensor([float('nan')]), levels)
    for bad in (k.float()*3-2, torch.full((3,), 1.5)):
        with pytest.raises(ValueError, match=f'must be {levels} levels'): check_levels(bad, levels)
    if dtype==torch.float32:
        with pytest.raises(ValueError, match='between them'): check_levels(to_unit(k, levels)*.9, levels)

def test_pixels_are_checked_where_it_counts():
    from fastai.basics import DataLoaders
    from sdn_nb.evaluation import elbo_bpd, iw_bpd
    from sdn_nb.training import vae_learner
    model = SDNVAE.from_preset('digits')
    x = torch.randint(0, 256, (8,1,8,8)).float()
    for wrong in (x, x/255*2-1):
        dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(wrong, wrong), batch_size=4)
        with pytest.raises(ValueError, match='17 levels|\\[-1, 1\\]'): elbo_bpd(model, dl, progress=False)
        with pytest.raises(ValueError, match='17 levels|\\[-1, 1\\]'): iw_bpd(model, dl, 2)
    with pytest.raises(ValueError, match=r'must lie in \[-1, 1\], got numbers from .*to_unit\(levels, 17\)'): model(x)
    dls = get_dls('digits', device='cpu', bs=64)
    learn = vae_learner(dls, SDNVAE.from_preset('digits', levels=16))
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='must be 16 levels'): learn.fit(1)
