"Properties of sdn_nb.explore: pictures are functions of their settings, every control counts, the last request wins, errors are seen, files are never written over."
import errno, io, json, os, shutil, socket, subprocess, sys, threading, time
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path
from threading import Event
from urllib.error import HTTPError
from urllib.request import urlopen
import numpy as np, pytest, torch
from PIL import Image
from fastai.data.core import DataLoaders
pytest.importorskip('ipywidgets', reason='no ipywidgets: pip install "sdn_nb[explore]"')
from sdn_nb import explore as lib
from sdn_nb.data import ImageDL, TensorImages, ToUnit, to_unit
from sdn_nb.explore import (Settings, _Latest, block_names, describe, explain, explore, explore_models, explore_run, file_name, found_models,
    given_images, picture, save_png, serve, to_png, variants)
from sdn_nb.saving import shipped
from sdn_nb.vae import SDNVAE, VAEConfig

grey = VAEConfig((8,12), channels=1, levels=17, depth=3, downsample=(1,), h=6, z=2, features=5, mix=2)
colour = replace(grey, image_size=(12,4), channels=3, levels=32, downsample=(0,2))
odd = replace(grey, image_size=(5,7), downsample=(), context=2)
configs = pytest.mark.parametrize('cfg', [grey,colour,odd], ids=['grey 8x12','colour 12x4','grey 5x7, IAF'])
warm = (1.,)*3

def make(cfg=grey):
    "A small model whose blocks all have something to say"
    torch.manual_seed(0)
    m = SDNVAE(cfg)
    for p in m.parameters(): p.data += .3*torch.randn_like(p)
    return m.eval()

def levels(cfg, n=6): return torch.randint(0, cfg.levels, (n, cfg.channels, *cfg.image_size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
def data(cfg=grey, n=6):
    sets = [TensorImages(levels(cfg, n), flip) for flip in (True,False)]
    return DataLoaders(*(ImageDL(s, bs=4, num_workers=0, after_batch=ToUnit(cfg.levels)) for s in sets), device='cpu')
def seeded(s): return torch.Generator().manual_seed(s)
def same(a, b):
    if a.shape!=b.shape or not torch.equal(a, b): raise AssertionError(f'{tuple(a.shape)} and {tuple(b.shape)} differ')
def pixels(png): return np.array(Image.open(io.BytesIO(png)))

# Pictures

@configs
def test_images_are_those_of_the_set_or_of_the_model(cfg):
    m,dls,x = make(cfg),data(cfg),to_unit(levels(cfg), cfg.levels)
    same(given_images(m, Settings(warm, image=5, other=2), dls), x[[5,2]])
    same(given_images(m, Settings(warm, image=3, other=3), dls), x[[3,3]])
    same(given_images(m, Settings(warm, image=9, other=4, drawn=True), dls), torch.cat([m.sample(1, 1., seeded(i)) for i in (9,4)]))

@pytest.mark.parametrize('s', [Settings(warm, image=6), Settings(warm, other=6), Settings(warm, image=-1)])
def test_images_that_are_not_there(s):
    with pytest.raises(ValueError, match='numbered from 0 to 5'): given_images(make(), s, data()) # 6 would be the mirror image of 0

@configs
def test_variants_are_what_the_model_makes(cfg):
    m,t = make(cfg),(.3,.6,.9)
    x = to_unit(levels(cfg), cfg.levels)[:2]
    s = Settings(t, seed=4)
    same(variants(m, x, s, 5), m.sample(5, t, seeded(4)))
    for k in (1,2,3):
        for w,one in (0.,x[:1]),(1.,x[1:]): same(variants(m, x, replace(s, keep=k, mix=w), 5), m.resample(one, k, t, 5, seeded(4)))
    z0,z1 = (m.encode(v, seeded(4)) for v in x.split(1))
    z = [.4*a+.6*b for a,b in zip(z0, z1)]
    torch.testing.assert_close(variants(m, x, replace(s, keep=3, mix=.6), 1), m.decode(z))

@configs
def test_pure_and_deterministic(cfg):
    m,dls,s = make(cfg).train(),data(cfg),Settings((.5,1.,1.), 1, 1, 2, .3, 7)
    before,order = torch.get_rng_state(),dls.train.rng.getstate()
    a = picture(m, s, dls)
    torch.manual_seed(9); after = torch.get_rng_state()
    assert picture(m, s, dls)==a and m.training and all(p.grad is None for p in m.parameters())
    assert torch.equal(torch.get_rng_state(), after) and dls.train.rng.getstate()==order
    torch.set_rng_state(before)

@pytest.mark.parametrize('change', [dict(image=3), dict(other=3), dict(mix=.4), dict(keep=2), dict(keep=0), dict(seed=1), dict(drawn=True), dict(temperatures=(1.,.2,1.)), dict(temperatures=(1.,1.,.2))], ids=str)
def test_each_setting_counts(change):
    m,dls,s = make(),data(),Settings(warm, 1, 1, 2, .2, 0)
    a,b = (pixels(picture(m, t, dls).made) for t in (s, replace(s, **change)))
    assert a.shape==b.shape and (a!=b).any() and file_name(s)!=file_name(replace(s, **change))

def test_temperature_of_the_top_counts_where_nothing_is_kept():
    m,dls = make(),data()
    a,b,c = (picture(m, Settings(t, k), dls).made for t,k in ((warm,0),((.2,1.,1.),0),((.2,1.,1.),1)))
    assert a!=b and c==picture(m, Settings(warm, 1), dls).made # and not where the block is kept

@configs
@pytest.mark.parametrize('n,nrow,px', [(9,3,420),(2,2,210),(4,2,1),(1,1,64)])
def test_png_has_the_images_pixels(cfg, n, nrow, px):
    x,(h,w) = to_unit(levels(cfg, n), cfg.levels),cfg.image_size
    a = pixels(to_png(x, nrow, px))
    H,W = (-(-n//nrow))*(h+1)-1,nrow*(w+1)-1
    k = max(1, px//max(H, W))
    assert a.shape==(H*k,W*k,3)
    for i in range(n):
        y0,x0 = i//nrow*(h+1)*k,i%nrow*(w+1)*k
        cell = a[y0:y0+h*k, x0:x0+w*k].reshape(h, k, w, k, 3)
        want = ((x[i].double()+1)*127.5).round().numpy().transpose(1,2,0).repeat(3//cfg.channels, 2)
        assert (cell==want[:,None,:,None]).all()

def test_not_finite_is_refused():
    m = make()
    m.top.data[0] = torch.nan
    with pytest.raises(ValueError, match='not finite'): picture(m, Settings(warm), data())

@pytest.mark.parametrize('s,words,name', [
    (Settings(warm), 'Blocks 0 to 2 drawn at temperature 1; seed 0.', 'explore_T1_seed0'),
    (Settings((.5,1.,1.), 1, 4, seed=3), 'Block 0 from validation image 4; blocks 1 to 2 drawn at temperature 1; seed 3.', 'explore_image4_keep1_T1_seed3'),
    (Settings((.5,.05,.7), 0), 'Blocks 0 to 2 drawn at temperature 0.5, 0.05, 0.7; seed 0.', 'explore_T0.5-0.05-0.7_seed0'),
    (Settings(warm, 3, 4, 5, .25, drawn=True), 'Blocks 0 to 2 from 75% of sample 4 and 25% of sample 5; seed 0.', 'explore_sample4_to5_mix0.25_keep3_seed0'),
    (Settings((1.,), 0), 'Block 0 drawn at temperature 1; seed 0.', 'explore_T1_seed0')])
def test_words(s, words, name): assert (describe(s),file_name(s))==(words,name)

@pytest.mark.parametrize('s,words', [
    (Settings(warm), 'makes these up'), (Settings(warm, 3), 'All blocks copy the first image'), (Settings(warm, 3, mix=1.), 'All blocks copy the second image'),
    (Settings(warm, 1), 'uppermost block copies the first image'), (Settings(warm, 2, mix=.25), '2 uppermost of 3 blocks copy a point 25% of the way')])
def test_plain_words(s, words): assert words in explain(s)

@pytest.mark.parametrize('sizes,names', [
    ([(2,2),(4,4)], ['0: coarse shape, 2×2','1: fine detail, 4×4']),
    ([(1,2),(2,4),(2,4),(4,8)], ['0: coarse shape, 1×2','1: in between, 2×4','2: in between, 2×4','3: fine detail, 4×8']),
    ([(5,7)]*2, ['0: 5×7','1: 5×7'])])
def test_block_names_go_by_scale(sizes, names): assert block_names(sizes)==names

# Files

def test_files_are_never_written_over(tmp_path):
    (tmp_path/'a.png').write_text('mine'); (tmp_path/'a_2.png').mkdir()
    assert [save_png(b'x', tmp_path, 'a').name for _ in range(2)]==['a_3.png','a_4.png'] and (tmp_path/'a.png').read_text()=='mine'
    threads = [threading.Thread(target=lambda i=i: save_png(bytes([i]), tmp_path, 'b')) for i in range(20)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sorted(p.read_bytes()[0] for p in tmp_path.glob('b*'))==list(range(20))

def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space'): save_png(b'x', tmp_path, 'a')
    assert not list(tmp_path.iterdir())

# The last request wins

def test_requests_while_it_computes_are_answered_by_one():
    state,seen,go,begun,told = [0],[],Event(),Event(),[]
    def f():
        seen.append(state[0]); begun.set(); assert go.wait(20)
    worker = _Latest(f, told.append)
    worker.ask(); assert begun.wait(20)
    for state[0] in range(1, 100): worker.ask()
    assert told==[True]
    go.set(); worker.wait()
    assert seen==[0,99] and told==[True,False]
    worker.ask(); worker.wait()
    assert seen==[0,99,99] and told==[True,False]*2

def test_one_at_a_time_and_none_lost():
    "Requests from several threads; each must be followed by a call that began after it"
    state,shown,running,most = [0],[None],[0],[0]
    def f():
        running[0] += 1; most[0] = max(most[0], running[0])
        shown[0] = state[0]
        running[0] -= 1
    worker = _Latest(f)
    def hand(k):
        for i in range(300): state[0] = (k,i); worker.ask()
    for _ in range(5):
        hands = [threading.Thread(target=hand, args=(k,)) for k in range(3)]
        for h in hands: h.start()
        for h in hands: h.join()
        worker.wait()
        assert shown[0]==state[0] and most[0]==1

def test_the_last_of_many_fast_moves_is_shown(monkeypatch):
    m,dls,calls,go,begun = make(),data(),[],Event(),Event()
    app = explore(m, dls).app
    def slow(model, s, *args):
        calls.append(s); begun.set(); assert go.wait(20)
        return picture(model, s, *args)
    monkeypatch.setattr(lib, 'picture', slow)
    old = app.made.value
    app.keep.value = 2; assert begun.wait(20)
    assert 'working' in app.status.value and app.made.value==old
    for t in np.linspace(0, 1.5, 31): app.all.value = t
    for i in range(6): app.image.value,app.other.value = i,5-i
    app.mix.value,app.seed.value = .5,77
    go.set(); app.worker.wait()
    last = Settings((1.5,)*3, 2, 5, 0, .5, 77)
    assert app.settings()==last and calls==[Settings(warm, 2, 0, 1), last]
    assert app.made.value==picture(m, last, dls).made and app.given.value==picture(m, last, dls).given
    assert describe(last) in unescape(app.caption.value) and 'ready' in app.status.value

# Controls

def settle(app): app.worker.wait(); return app.made.value
def widgets(box): return [box]+[w for c in getattr(box, 'children', ()) for w in widgets(c)]
def html_of(box): return '\n'.join(w.value for w in widgets(box) if type(w).__name__=='HTML')

@configs
def test_each_control_changes_the_picture(cfg):
    app = explore(make(cfg), data(cfg)).app
    seen = [settle(app)]
    for name,v in [('keep',2),('image',3),('mix',.5),('other',4),('seed',8),('all',.5),('keep',0),('all',.8)]: setattr(getattr(app, name), 'value', v); seen.append(settle(app))
    for b in app.blocks: b.value = .3; seen.append(settle(app))
    app.resample.click(); seen.append(settle(app))
    assert app.seed.value==9 and len(set(seen))==len(seen)

def test_sliders_are_the_vector():
    app = explore(make(), data()).app
    for i,b in enumerate(app.blocks): b.value = .25*(i+1)
    assert app.settings().temperatures==(.25,.5,.75)
    app.all.value = 1.25
    assert app.settings().temperatures==(1.25,)*3
    app.keep.value = 0
    assert settle(app)==to_png(app.model.sample(9, [1.25]*3, seeded(0)), 3)

def test_what_has_no_say_is_locked():
    app = explore(make(), data()).app
    for k in (0,3,2): # another one each time: an observer hears changes alone
        app.keep.value = k
        assert [b.disabled for b in app.blocks]==[i<k for i in range(3)] and [c.disabled for c in (app.drawn,app.image,app.other,app.mix)]==[k==0]*4

@configs
@pytest.mark.parametrize('name,keep,mix', [('New pictures',0,0.), ('Around an image',1,0.), ('Between two images',1,.5)])
def test_starting_points(cfg, name, keep, mix):
    app = explore(make(cfg), data(cfg)).app
    app.keep.value,app.mix.value,app.seed.value,app.image.value = 3,.8,5,2
    for b in app.blocks: b.value = .4
    app.starts[name].click()
    assert settle(app)==picture(app.model, Settings(warm, keep, 2, 1, mix, 5), app.dls).made
    assert [n for n,b in app.starts.items() if 'sdn-begun' in b._dom_classes]==[name]
    assert ('sdn-unused' in app.given._dom_classes)==(keep==0)

def test_each_control_says_what_it_does():
    app = explore(make(), data()).app
    controls = [w for w in widgets(app.box) if hasattr(w, 'tooltip') and not hasattr(w, 'children') and type(w).__name__ not in ('HTML','Image')]
    assert len(controls)==15 and all(len(w.tooltip)>10 for w in controls)
    assert len({w.tooltip for w in controls})==15

def test_images_of_the_model():
    app = explore(make(), data()).app
    assert app.image.max==app.other.max==5
    app.drawn.value = True
    assert app.image.max==app.other.max==99
    app.image.value,app.other.value = 50,60
    assert settle(app)==picture(app.model, Settings(warm, 1, 50, 60, drawn=True)).made
    app.drawn.value = False
    assert settle(app)==picture(app.model, Settings(warm, 1, 5, 5), app.dls).made

def test_without_data():
    app = explore(make(), note='no <data>').app
    assert app.settings().drawn and len(app.drawn.options)==1 and settle(app)==picture(app.model, app.settings()).made
    assert 'no &lt;data&gt;' in html_of(app.box)

# Errors

def test_errors_take_the_pictures_place(tmp_path):
    app = explore(make(), data(), tmp_path).app
    good = settle(app)
    app.seed.value = -1; settle(app)
    assert '`seed` must be from 0' in app.error.value and 'Traceback' in app.error.value and app.caption.value==''
    assert app.made.layout.display==app.given.layout.display=='none' and 'error' in app.status.value
    app.save.click()
    assert 'no picture to save' in app.saved.value and not list(tmp_path.iterdir())
    app.seed.value = 0
    assert settle(app)==good and app.error.value=='' and app.made.layout.display is app.given.layout.display is None and 'ready' in app.status.value

def test_errors_of_the_model_are_seen_and_escaped(monkeypatch):
    app = explore(make(), data()).app
    def broken(*args): raise RuntimeError('<script>')
    monkeypatch.setattr(app.model, 'decode', broken)
    app.keep.value = 2; settle(app)
    assert 'RuntimeError' in app.error.value and '&lt;script&gt;' in app.error.value and '<script>' not in app.error.value

def test_images_of_another_kind_of_model():
    app = explore(make(grey), data(colour)).app
    assert 'images must have 1 channels, got 3' in app.error.value
    app.drawn.value = True; settle(app)
    assert app.error.value==''

# Saving

def test_saves_what_is_seen(tmp_path):
    app = explore(make(), data(), tmp_path).app
    app.image.value = 4; png = settle(app)
    app.save.click()
    path = tmp_path/'explore_image4_keep1_T1_seed0.png'
    assert [*tmp_path.iterdir()]==[path] and path.read_bytes()==png and str(path) in app.saved.value and f'download="{path.name}"' in app.saved.value
    app.save.click()
    assert (tmp_path/'explore_image4_keep1_T1_seed0_2.png').read_bytes()==png and len([*tmp_path.iterdir()])==2

def test_saves_what_is_seen_while_the_next_is_made(tmp_path, monkeypatch):
    app,go,begun = explore(make(), data(), tmp_path).app,Event(),Event()
    def slow(*args): begun.set(); assert go.wait(20); return picture(*args)
    monkeypatch.setattr(lib, 'picture', slow)
    png = app.made.value
    app.keep.value = 3; assert begun.wait(20)
    app.save.click(); go.set(); settle(app)
    assert (tmp_path/'explore_image0_keep1_T1_seed0.png').read_bytes()==png!=app.made.value

def test_a_folder_that_is_gone(tmp_path):
    app = explore(make(), data(), tmp_path/'gone').app
    app.save.click()
    assert 'FileNotFoundError' in app.saved.value and not (tmp_path/'gone').exists()

# Runs

def saved(tmp_path, **sections): return make().save_pretrained(tmp_path/'run', **sections)
def notes(box): return box.app.note

def test_run_without_its_images(tmp_path):
    assert 'does not say' in notes(explore_run(saved(tmp_path)))
    box = explore_run(saved(tmp_path, training=dict(dataset=str(tmp_path/'none'), seed=0, size=None)))
    assert "can't be opened" in notes(box) and box.app.settings().drawn and box.app.error.value==''

def test_run_with_its_images(tmp_path):
    (tmp_path/'images').mkdir()
    for i,a in enumerate(levels(replace(grey, levels=256), 8)): Image.fromarray(a[0].numpy()).save(tmp_path/f'images/{i}.png')
    box = explore_run(saved(tmp_path, training=dict(dataset=str(tmp_path/'images'), seed=3, size=None)))
    from sdn_nb.data import get_dls
    valid = get_dls(tmp_path/'images', seed=3, device='cpu').valid.one_batch()[0]
    assert notes(box)=='' and box.app.given.value==to_png(valid[[0,-1]], 2, 210)

def test_why_images_are_missing_is_folded_away(tmp_path):
    box = explore_run(saved(tmp_path, training=dict(dataset=str(tmp_path/'none'), seed=0, size=None)))
    assert '<summary>why</summary>FileNotFoundError' in html_of(box)

# A choice of models

def test_found_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = ['fashion_mnist','digits']
    assert list(found_models())==ours and list(found_models('digits'))==ours[::-1]
    for name in ('runs/b','runs/a','other/x','other/y'): make().save_pretrained(tmp_path/name)
    (tmp_path/'runs/empty').mkdir(); (tmp_path/'runs/file').write_text('x')
    (tmp_path/'runs/broken').mkdir(); (tmp_path/'runs/broken/config.json').write_text('{'); (tmp_path/'runs/broken/model.safetensors').write_text('x')
    shutil.copytree(tmp_path/'runs/a', tmp_path/'runs/alien')
    (tmp_path/'runs/alien/config.json').write_text(json.dumps(dict(model=dict(beta=4.))))
    assert list(found_models())==[*ours, 'runs/a','runs/b']
    assert list(found_models('other/y'))==['other/y', *ours, 'other/x','runs/a','runs/b']
    assert list(found_models('runs/b'))==['runs/b', *ours, 'runs/a']
    assert list(found_models(tmp_path/'runs/b'))==[str(tmp_path/'runs/b'), *ours, 'runs/a'] # listed once, by whatever path
    with pytest.raises(FileNotFoundError, match='no-such'): found_models('no-such')

def test_choosing_a_model(tmp_path, monkeypatch):
    a,b = (make(c).save_pretrained(tmp_path/n) for n,c in dict(a=grey, b=odd).items())
    (tmp_path/'c').mkdir(); shutil.copy(a/'config.json', tmp_path/'c'); (tmp_path/'c/model.safetensors').write_text('x')
    box = explore_models(dict(a=a, b=b, c=tmp_path/'c'))
    choice,first = box.children[0].children[0],box.app
    assert first.model.config==grey and first.folder==a
    first.keep.value = 3
    choice.value = 'b'
    assert box.app.model.config==odd and box.app.folder==b
    choice.value = 'c'
    assert 'is damaged' in html_of(box) and box.app.model.config==odd
    choice.value = 'a'
    assert box.app is first and first.keep.value==3 and 'is damaged' not in html_of(box)

def test_pictures_of_a_models_of_the_package_go_elsewhere(tmp_path):
    for kind in (Path,str): assert explore_models(dict(digits=kind(shipped()['digits'])), tmp_path).app.folder==tmp_path

# The notebook

def test_the_notebook_leaves_comms_alone():
    "A notebook that holds views of controls shows 'model not found' to whoever opens it; one that replaces comms, to whoever runs it"
    nb = json.loads((Path(__file__).parent.parent/'nbs'/'11_explore.ipynb').read_text())
    assert 'widgets' not in nb['metadata'] and 'application/vnd.jupyter.widget' not in json.dumps([c.get('outputs') for c in nb['cells']])
    import comm
    real = comm.create_comm
    changing = [s for c in nb['cells'] if 'create_comm' in (s := ''.join(c['source']))]
    space = dict(comm=comm, torch=torch, contextmanager=contextmanager)
    for s in changing: exec(s, space)
    assert len(changing)==1 and comm.create_comm is real
    with space['unseen'](): assert comm.create_comm is comm.DummyComm
    assert comm.create_comm is real
    assert any('\nexplore(model, dls)' in ''.join(c['source']) and c['metadata'].get('tags')==['skip-execution'] for c in nb['cells'])

# What is missing

@pytest.mark.parametrize('gone,f', [('ipywidgets', lambda: explore(make())), ('ipywidgets', serve), ('voila', serve), ('voila.app', serve)])
def test_missing_packages_are_named(monkeypatch, gone, f):
    monkeypatch.setitem(sys.modules, gone, None)
    monkeypatch.delitem(sys.modules, 'voila.app', raising=False) if gone=='voila' else None
    with pytest.raises(ImportError, match=r'pip install "sdn_nb\[explore\]"'): f()

def test_a_damaged_model_is_refused_before_the_server_starts(tmp_path, monkeypatch):
    app = pytest.importorskip('voila.app', reason='no voila: pip install "sdn_nb[explore]"')
    monkeypatch.setattr(app.Voila, 'launch_instance', lambda *args: pytest.fail('started'))
    folder = saved(tmp_path)
    (folder/'model.safetensors').write_bytes(b'x')
    with pytest.raises(ValueError, match='damaged'): serve(folder)

# The server

SERVER = """
import json, sys
from sdn_nb import explore
def write_page(folder, models, pictures):                               # one that needs no torch
    code = "import os; open(os.path.join(os.environ['PIDS'], str(os.getpid())), 'w').close(); print('shown')"
    cell = dict(cell_type='code', execution_count=None, metadata={}, outputs=[], source=code)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    page = json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=4))
    for name,text in {'explorer.ipynb':page, 'index.html.j2':explore.TEMPLATE, 'error.html':explore.REFUSAL}.items(): (folder/name).write_text(text)
explore._write_page = write_page
explore.PAGES = 2
explore.PROCESSES |= {'MappingKernelManager.cull_idle_timeout': 2, 'MappingKernelManager.cull_interval': 1}
explore.serve('digits', int(sys.argv[1]), False)
"""

def answer(url):
    try:
        with urlopen(url) as page: return page.status,page.read().decode()
    except HTTPError as e: return e.code,e.read().decode()

def exists(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True

@pytest.mark.skipif(sys.platform=='win32', reason='no SIGTERM')
def test_processes_of_pages_are_few_and_end(tmp_path):
    pytest.importorskip('voila', reason='no Voilà: pip install "sdn_nb[explore]"')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    (tmp_path/'pids').mkdir()
    with open(tmp_path/'log', 'w') as log: p = subprocess.Popen([sys.executable, '-c', SERVER, str(port)], stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ|dict(PIDS=str(tmp_path/'pids')))
    def there(): return [pid for pid in map(int, os.listdir(tmp_path/'pids')) if exists(pid)]
    try:
        url = p.stdout.readline().split()[1]
        assert [answer(url)[0] for _ in range(2)]==[200,200] and len(there())==2
        status,text = answer(url)
        assert status==503 and 'open on 2 pages' in text and 'https:' not in text
        end = time.time()+30
        while there() and time.time()<end: time.sleep(.1)
        assert not there()                                              # nobody was connected
        assert answer(url)[0]==200 and len(there())==1
        p.terminate()
        assert p.wait(30)==0 and not there()
        assert 'Traceback' not in (tmp_path/'log').read_text()
    finally: p.kill()
