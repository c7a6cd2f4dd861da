"""Every public function and command with bad values for one argument after the other: it works, or says in words what is wrong.

A call may raise ValueError, TypeError, OSError, ImportError, NotImplementedError, FloatingPointError or, for what won't fit, MemoryError; where the error is raised
by our own line, its message names the argument, the value or the file. A command ends with exit status and one line. What it may not: end in AttributeError, KeyError,
IndexError, ZeroDivisionError and their like, in an internal error of torch, or not at all.

Fixed bad values come first, in turn; after them hypothesis draws others, in CI few and always the same. By hand, for as long as one likes and never twice the same:

    SDN_FUZZ_MINUTES=60 pytest tests/test_fuzz.py

USERS has what users call: it is called with wrong types, too. PARTS has what our own code is made of: a wrong type there is a mistake of ours, which Python's own errors
tell well enough; wrong values are not. KNOWN has what is not mended yet."""
import contextlib, ctypes, functools, importlib, inspect, io, json, math, os, pkgutil, random, resource, signal, stat, sys, time, traceback, warnings
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, seed as seeded, settings, strategies as st
from torch import Tensor, nn
import sdn_nb

MINUTES = float(os.environ.get('SDN_FUZZ_MINUTES', 0))
LIMIT = 20                                      # seconds for a call
FURTHER = 4                                     # draws of hypothesis for each function in CI
TOLD = ValueError,TypeError,OSError,ImportError,NotImplementedError,FloatingPointError,MemoryError,TimeoutError

# What the calls work on

class Modules:
    "Modules of the package by their names"
    def __getattr__(self, name): return importlib.import_module(f'sdn_nb.{name}')
m = Modules()

class World:
    "A small model, its images, a run, and files of all kinds, in a folder of their own"
    def __init__(self, folder):
        self.folder,(self.out) = folder,folder/'out'
        self.out.mkdir()
        self.cfg = m.vae.VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(1,), h=6, z=2, features=5, mix=2)
        torch.manual_seed(0)
        self.model = m.vae.SDNVAE(self.cfg).eval()
        k = np.random.RandomState(0).randint(0, 17, (24,1,8,8)).astype(np.uint8)
        self.levels = torch.from_numpy(k)
        self.x = m.data.to_unit(self.levels, 17)
        np.savez(folder/'images.npz', train=k[:20], valid=k[20:])
        self.dls = m.data.get_dls(folder/'images.npz', bs=4, levels=None, num_workers=0, device='cpu')
        self.cfg256 = replace(self.cfg, levels=256)
        with torch.random.fork_rng(): self.model256 = m.vae.SDNVAE(self.cfg256).eval()
        self.settings = m.runs.Settings(dataset=str(folder/'images.npz'), preset='digits', epochs=1, bs=4, seed=0)
        self.run = self.model256.save_pretrained(folder/'run', data=asdict(self.dls.info), training=asdict(self.settings), versions=dict(device='cpu'))
        (self.run/'history.csv').write_text('epoch,train_loss,valid_loss,bpd,rate,distortion,time\n0,90.5,80.5,2.5,0.1,2.4,00:02\n1,70.5,60.5,2.25,0.25,2.0,1:00:03\n')
        (self.run/'evaluation.json').write_text(json.dumps(dict(elbo_bpd=2.5)))
        (folder/'images').mkdir()
        from PIL import Image
        for i in range(6): Image.fromarray(k[i,0]*15).save(folder/f'images/{i}.png')
        self.packed = folder/'packed.sdn'
        m.compression.compress(self.model256, self.levels*15, self.packed, bs=4, threads=1, progress=False)
        self._bad_files()
        self.beta_cfg = m.betavae.BetaVAEConfig((16,16), channels=1, z=3, features=4, sdn_scales=(8,))
        self.beta_model = m.betavae.BetaVAE(self.beta_cfg).eval()
        self.sizes = [3,4]

    def _bad_files(self):
        "Files and folders of all kinds that a path may lead to"
        f = self.folder/'files'
        f.mkdir()
        png = (self.folder/'images/0.png').read_bytes()
        content = dict(empty=b'', noise=bytes(range(256))*4, list=b'[]', word=b'"x"', null=b'null', object=b'{}', open=b'{"model": ', nan=b'{"model": NaN}', model=b'{"model": []}',
            picture=png, half_picture=png[:len(png)//2], archive=b'PK\x03\x04'+bytes(40), gzip=b'\x1f\x8b\x08'+bytes(20), weights=(self.run/'model.safetensors').read_bytes()[:200],
            latin='caf\u00e9'.encode('latin1'))
        for name,b in content.items(): (f/name).write_bytes(b)
        (f/'array.npy').write_bytes(b'\x93NUMPY\x01\x00')
        (f/'broken.png').write_bytes(content['half_picture'])
        (f/'preset.json').write_text('[]')
        (f/'preset.toml').write_text('= 3')
        (f/'nothing.py').write_text('this is no Python')
        for name in ('list','object','open','model','null'):           # folders that look like runs
            (f/f'run_{name}').mkdir()
            (f/f'run_{name}'/'config.json').write_bytes(content[name])
            (f/f'run_{name}'/'model.safetensors').write_bytes(content['weights'])
            (f/f'run_{name}'/'evaluation.json').write_bytes(content[name])
            (f/f'run_{name}'/'history.csv').write_bytes(content[name])
        (f/'no_files').mkdir()
        self.paths = [*sorted(f.iterdir()), self.folder/'none', self.folder/'none'/'below', f/'empty'/'below a file', Path('/proc/none'), self._device()]

    def _device(self):
        "What swallows all; one of our own where we could replace the system's"
        if not os.access('/dev', os.W_OK): return Path(os.devnull)
        os.mknod(self.folder/'null', stat.S_IFCHR | 0o666, os.stat(os.devnull).st_rdev)
        return self.folder/'null'

class Bars:
    "Made on demand: pictures of few factors, so that a grid has something to work on"
    @staticmethod
    def register():
        class Set(m.shapes.FactorImages):
            def __init__(self): super().__init__(dict(ground=range(3), place=range(4), width=range(1,4)))
            def _fetch(self, i):
                x = np.zeros((len(i),1,16,16), np.uint8)
                for v,(g,p,w) in zip(x, self.factors(i)): v[:] = 30*g; v[:,:,2*p:2*p+w+1] = 255
                return x
        if 'bars' not in m.data.DATASETS: m.data.register_dataset('bars', lambda seed, flip, path: m.data._factor_images('bars', flip, Set()))

@pytest.fixture(scope='module')
def w(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    kept = dict(m.data.DATASETS),dict(m.layers.LAYERS),dict(m.vae.PRESETS),dict(m.vae.RECIPES)
    import matplotlib
    matplotlib.use('Agg')
    Bars.register()
    yield World(folder)
    for known,was in zip((m.data.DATASETS,m.layers.LAYERS,m.vae.PRESETS,m.vae.RECIPES), kept): known.clear(); known.update(was)

@pytest.fixture(autouse=True)
def elsewhere(w, monkeypatch):
    "Calls that write do so here, and what they print is nobody's concern"
    monkeypatch.chdir(w.out)
    with warnings.catch_warnings(), limited_memory():
        warnings.simplefilter('ignore')
        yield
    import matplotlib.pyplot as plt
    plt.close('all')

@contextlib.contextmanager
def limited_memory(more=3*2**30):
    "What asks for more is refused by the system, and doesn't bring the machine down"
    before = resource.getrlimit(resource.RLIMIT_AS)
    try: now = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    except OSError: now = None
    if now: resource.setrlimit(resource.RLIMIT_AS, (now+more, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_AS, before)

# Calls that work: one for each function, an argument by its name. Paths are Path objects, so that they are spoiled as paths

def weights(C=2): return dict(zip(('weight_ih','weight_hh','bias_ih','bias_hh'), m.bench.gru_weights(C)))
def ax(): return importlib.import_module('matplotlib.figure').Figure().subplots()
def axs(n): return list(importlib.import_module('matplotlib.figure').Figure().subplots(1, n).flat)
def x4(*shape): return torch.randn(*(shape or (2,2,3,4)))
def identity(x): return x
def pictures(w): return m.data.DATASETS['bars'].source(0, None, None)[0].images

def users(w):
    "name -> arguments, or (function, arguments)"
    model,run,out,x = w.model256,w.run,w.out,w.dls.valid.one_batch()[0]
    z = model.encode(x[:1])
    layer = dict(in_channels=3, out_channels=2, n_features=8, directions=('right','up'), kernel_size=3, stride=1, padding=1, upsample=False, dilation=1, bias=True, padding_mode='zeros', recompute=None)
    seen = m.explore.Settings((1.,1.), keep=1)
    found = m.analysis.Nearest(torch.zeros(2,1), torch.zeros(2,1).long(), x[:2,None])
    cell = dict(arch='conv', beta=1., seed=0, data='bars', iterations=2, anneal=1, bs=4, lr=1e-3, z=3, features=4, n_directions=1, scale=8, likelihood='logistic', every=1, trials=10)
    compared = [m.compare.read_compared(run), m.compare.read_compared(run)._replace(name='other')]
    result = dict(settings=cell, metrics=dict(mig=.5), curves=dict(iteration=[1,2], elbo=[1.,2.], log_px=[1.,2.], kl=[1.,2.], beta_kl=[1.,2.]), about={})
    metric = dict(encode=lambda v, rng=None: np.asarray(v, float), sizes=w.sizes, seed=0)
    return {
        'scan.scan': dict(x=x4(), **weights(), direction='right', recompute=False, backend='torch'),
        'scan.scan_reference': dict(x=x4(), **weights(), direction='right'),
        'scan.choose_backend': dict(x=x4(), name='torch'),
        'layers.SubLayer': dict(n_features=4, direction='right', recompute=None),
        'layers.SDNLayer': layer,
        'layers.ResSDN': dict(**layer, residual='gate'),
        'layers.NonLocal': dict(channels=3, n_features=4),
        'layers.conv2x2': dict(in_channels=3, out_channels=2),
        'layers.n_params': dict(module=nn.Linear(2, 2)),
        'layers.matching_width': dict(target=100, make=lambda F: nn.Linear(F, 4)),
        'layers.register_layer': dict(name='a_layer', factory=nn.Linear),
        'layers.layer_name': dict(layer='ResSDN'),
        'ladder.LadderBlock': dict(h=4, z=2, downsample=False, features=5, directions_a=('right',), directions_b=('up',), top=False, context=0),
        'distributions.IAF': dict(z=2, context=3),
        'distributions.quantize': dict(x=w.x[:2], levels=17),
        'vae.VAEConfig': {f: getattr(w.cfg, f) for f in w.cfg.__dataclass_fields__},
        'vae.SDNVAE': dict(config=w.cfg),
        'vae.SDNVAE.forward': (w.model, dict(x=w.x[:2])),
        'vae.SDNVAE.log_weights': (w.model.log_weights, dict(x=w.x[:2], n=2, generator=None)),
        'vae.SDNVAE.encode': (w.model.encode, dict(x=w.x[:2], generator=None)),
        'vae.SDNVAE.decode': (model.decode, dict(z=model.encode(x), temperature=1., generator=None)),
        'vae.SDNVAE.sample': (w.model.sample, dict(n=2, temperature=1., generator=None)),
        'vae.SDNVAE.load_what_fits': (m.vae.SDNVAE(w.cfg).load_what_fits, dict(other=w.model)),
        'vae.SDNVAE.from_pretrained': (m.vae.SDNVAE.from_pretrained, dict(folder=run, device='cpu', revision=None)),
        'vae.SDNVAE.save_pretrained': (m.vae.SDNVAE(w.cfg).save_pretrained, dict(folder=out/'saved', license='mit')),
        'vae.SDNVAE.write_card': (m.vae.SDNVAE.write_card, dict(folder=run, license='mit', name='a', evaluation={})),
        'vae.preset_config': dict(name='digits'),
        'vae.preset_recipe': dict(name='digits'),
        'vae.read_preset': dict(path=preset_file(w)),
        'vae.is_preset_file': dict(name='x.toml'),
        'vae.register_preset': dict(name=f'a{random.getrandbits(60)}', config=w.cfg, recipe=m.vae.Recipe(1, 2)),
        'vae.change_fields': dict(config=w.cfg, changes=dict(h=4)),
        'vae.Recipe': dict(epochs=1, bs=2, lr=.1, ema=.9, temperature=1.),
        'vae.check_levels': dict(x=w.x[:2], levels=17),
        'memory.training_memory': dict(cfg=w.cfg),
        'data.get_dls': (lambda name_or_folder, bs, **kw: m.data.get_dls(name_or_folder, bs, **kw),
            dict(name_or_folder=w.folder/'images', bs=2, path=None, seed=0, size=8, levels=256, flip=False, num_workers=0, device='cpu', damaged='stop', repeat=1)),
        'data.get_dls, of an array': (lambda array, levels: m.data.get_dls(array, 4, num_workers=0, device='cpu', levels=levels), dict(array=w.levels.numpy()*15, levels=256)),
        'data.open_images': dict(name_or_folder=w.folder/'images.npz', path=None, seed=0, size=None, levels=256, flip=False, damaged='stop'),
        'data.as_parts': dict(source=dict(train=w.levels.numpy(), valid=w.levels.numpy())),
        'data.image_sets': dict(name='a', train=w.levels.numpy(), valid=w.levels.numpy(), test=None, levels=17, flip=False, split='', version='', overwrite=False),
        'data.register_dataset': dict(name=f'd{random.getrandbits(60)}', source=lambda seed, flip, path: None, levels=None),
        'data.to_unit': dict(levels=w.levels, n_levels=17),
        'data.to_levels': dict(x=w.x, n_levels=17),
        'data.show_images': dict(x=w.x[:2], nrow=2, ax=ax(), figsize=None),
        'sources.as_levels': dict(source=w.levels.numpy(), what='train'),
        'sources.is_array_file': dict(path=w.folder/'images.npz'),
        'sources.read_array_file': dict(path=w.folder/'images.npz'),
        'formats.read_idx': dict(file=idx_file(w)),
        'shapes.Shapes3DFile': None, 'shapes.DSpritesFile': None,
        'shapes.FactorImages.sample': (pictures(w).sample, dict(n=2, rng=0)),
        'training.vae_learner': dict(dls=w.dls, model=m.vae.SDNVAE(w.cfg256), lr=.002, ema=.9, clip=5., precision='fp32', accumulate=1, warmup=0., skip_above=math.inf, patience=20, graphs=False),
        'training.EMA': dict(decay=.9),
        'training.Guard': dict(clip=5., skip_above=math.inf, patience=20),
        'training.WarmUp': dict(steps=3., accumulate=1),
        'training.RunFolder': dict(folder=out/'folder', replace=(), minutes=10.),
        'training.tensorboard_logger': dict(folder=out/'board'),
        'evaluation.elbo_estimate': dict(model=model, dl=w.dls.valid, seed=0, progress=False),
        'evaluation.elbo_bpd': dict(model=model, dl=w.dls.valid, seed=0, progress=False),
        'evaluation.iw_bpd': dict(model=model, dl=w.dls.valid, samples=2, seed=0, bs=8, file=None, identity=None, seconds=math.inf, progress=False),
        'evaluation.iw_bpd, kept': (lambda file: m.evaluation.iw_bpd(model, w.dls.valid, 2, file=file, identity=dict(a=1), progress=False), dict(file=out/'prices.jsonl')),
        'compression.compress': dict(model=w.model, k=w.levels[:2], file=out/'a.sdn', name='a', names=None, bits=4, bs=2, threads=1, progress=False),
        'compression.decompress': dict(file=w.packed, model=w.model256, progress=False), 'compression.read_packed': dict(file=w.packed),
        'compression.Stack': dict(words=None),
        'evaluation.histogram_bpd': dict(train_dl=w.dls.train, valid_dl=w.dls.valid, levels=256),
        'analysis.show_rows': dict(x=w.x[None,:2], labels=['a'], ax=ax(), title=''),
        'analysis.prior_samples': dict(model=w.model, n=2, temperatures=(1.,), seed=0, bs=2),
        'analysis.reconstructions': dict(model=w.model, x=w.x[:2], seed=0, bs=2),
        'analysis.interpolations': dict(model=w.model, x0=w.x[:1], x1=w.x[1:2], pairs=[(1,1.)], steps=2, seed=0),
        'analysis.neighbourhood': dict(model=w.model, x=w.x[:1], keeps=[1], temperatures=(1.,), side=3, seed=0),
        'analysis.show_neighbourhood': dict(x=w.x[:9][None,None], keeps=[1], temperatures=[1.], fig=None),
        'analysis.nearest': dict(x=x[:2], dl=w.dls.valid, levels=256, k=1),
        'analysis.show_nearest': dict(x=x[:2], found=found, ax=ax(), title=''),
        'analysis.read_histories': (lambda run: m.analysis.read_histories(run), dict(run=run)),
        'analysis.band': dict(values=torch.rand(2, 3)),
        'analysis.show_curves': dict(histories=dict(a=m.analysis.read_histories(run)), names=None, axs=None, mark=None),
        'analysis.block_bits': dict(model=model, dl=w.dls.valid, seed=0),
        'analysis.show_bits': dict(bits=m.analysis.BlockBits(torch.ones(3), torch.ones(3), [(4,4),(8,8)]), ax=ax()),
        'analysis.redraw_block': dict(model=model, z=z, block=0, n=2, seed=0),
        'analysis.block_variance': dict(model=model, z=z, n=2, seed=0),
        'analysis.show_maps': dict(maps=torch.rand(2,3,3), titles=['a','b'], log=False, label='', fig=None),
        'analysis.receptive_field': dict(layer=nn.Conv2d(1,1,3), shape=(1,5,5), n=2, seed=0),
        'analysis.save_samples': dict(model=w.model, path=out/'samples.png', n=2, temperature=1., seed=0),
        'analysis.save_reconstructions': dict(model=w.model, x=w.x[:2], path=out/'reconstructions.png'),
        'analysis.save_learning_curve': (lambda folder: m.analysis.save_learning_curve(folder), dict(folder=run)),
        'analysis.SamplePictures': dict(folder=out, every=1, n=2, temperature=1.),
        'betavae.BetaVAEConfig': {f: getattr(w.beta_cfg, f) for f in w.beta_cfg.__dataclass_fields__},
        'betavae.BetaVAE': dict(config=w.beta_cfg),
        'betavae.BetaVAE.forward': (w.beta_model, dict(x=2*torch.rand(2,1,16,16).mul(255).round()/255-1)),
        'betavae.beta_vae_learner': dict(dls=w.dls, model=w.beta_model, anneal=2, lr=.001, every=1),
        'betavae.BetaAnnealing': dict(beta=2., anneal=3),
        'betavae.Curves': dict(every=3),
        'betavae.map_scales': dict(image_size=(16,16)),
        'disentanglement.mutual_information': dict(**metric, n=20, bins=4),
        'disentanglement.mig': dict(**metric, n=20, bins=4),
        'disentanglement.beta_vae_metric': dict(**metric, n_train=10, n_test=10, pairs=2),
        'disentanglement.factor_vae_metric': dict(**metric, n_train=10, n_test=10, batch=2, n_var=20, threshold=.05),
        'disentanglement.sap': dict(**metric, n_train=20, n_test=10),
        'disentanglement.dci': dict(**metric, n_train=30, n_test=10),
        'disentanglement.evaluate': dict(**metric, repeats=2, metrics=dict(mig=lambda encode, sizes, seed: .5)),
        'disentanglement.Rows': dict(who='a', codes=np.random.rand(6,2), factors=np.arange(12).reshape(6,2)%3),
        'disentanglement.encoder': dict(f=w.beta_model.encode, data=pictures(w), bs=4, device='cpu'),
        'published.read_published': dict(path=w.folder/'files/noise', image_size=(8,8), channels=1),
        'hub.may_be_on_hub': dict(name='owner/name'),
        'saving.model_folder': dict(name=run, revision=None),
        'explore.Settings': dict(temperatures=(1.,1.), keep=1, image=0, other=0, mix=0., seed=0, drawn=False),
        'explore.given_images': dict(model=model, s=seen, dls=w.dls),
        'explore.variants': dict(model=model, x=x[:2], s=seen, n=4),
        'explore.to_png': dict(x=x[:2], nrow=2, px=20),
        'explore.picture': dict(model=model, s=seen, dls=w.dls, n=4),
        'explore.describe': dict(s=seen), 'explore.file_name': dict(s=seen), 'explore.explain': dict(s=seen),
        'explore.block_names': dict(sizes=[(2,2),(4,4)]),
        'explore.save_png': dict(png=b'x', folder=out, name='a'),
        'explore.explore': (lambda **kw: m.explore.explore(folder=out, **kw), dict(model=model, dls=w.dls, n=4, note='a')),
        'explore.explore_run': (lambda run: m.explore.explore_run(run, out), dict(run=run)),
        'explore.found_models': dict(run=run),
        'explore.explore_models': (lambda models: m.explore.explore_models(models, out), dict(models=dict(mine=run))),
        'explore.serve': (not_served, dict(run=run, port=8866, browser=False)),
        'grid.Cell': cell,
        'grid.run_cell': dict(cell=m.grid.Cell(**cell), path=None, device='cpu', progress=False),
        'grid.cell_config': dict(cell=m.grid.Cell(**cell), info=m.data.get_dls('bars', 4, num_workers=0).info),
        'grid.run_grid': (no_cell_is_trained(m.grid.run_grid), dict(out=out/'grid', archs=('conv',), betas=(1,), seeds=(0,), path=None, device='cpu', command='a', max_hours=None,
            **{k: v for k,v in cell.items() if k not in ('arch','beta','seed')})),
        'grid.announce': (no_cell_is_trained(m.grid.announce), dict(cells=[m.grid.Cell(**cell)], path=None, device='cpu', max_hours=1.)),
        'grid.spoken_time': dict(seconds=300.),
        'grid.judging_draws': dict(trials=20),
        'grid.read_grid': dict(folder=w.folder/'files/no_files'),
        'grid.draw_metric': dict(results=[result], metric='mig', ax=ax(), guess=None),
        'grid.draw_curves': dict(results=[result], axs=axs(4), beta=1.),
        'compare.read_compared': dict(name=run),
        'compare.comparison': dict(runs=compared), 'compare.differing_settings': dict(runs=compared), 'compare.remarks': dict(runs=compared), 'compare.draw_curves': dict(runs=compared),
        'compare.measured': dict(run=compared[0]), 'compare.facts': dict(run=compared[0]),
        'compare.sample_picture': dict(run=compared[0], n=4, seed=0),
        'compare.as_text': dict(table={'a': {'b': ['c','d']}}, names=['x','y']),
        'compare.comparison_page': (quick_page, dict(runs=compared)),
        'bench.gru_weights': dict(n_features=2, dtype=torch.float32, device='cpu'),
        'bench.measure': (untimed(m.bench.measure), dict(B=1, C=2, S=2, direction='right', precision='fp32', device='cpu', rounds=1, backends=['torch'], recompute=False)),
        'bench.rival_layers': dict(C=4),
        'bench.measure_layers': (untimed(m.bench.measure_layers), dict(B=1, C=2, S=2, device='cpu', rounds=1)),
        'compression.read_exactly': dict(file=w.folder/'images/0.png', cfg=w.cfg256), 'compression.collect': dict(sources=[w.folder/'images'], cfg=w.cfg256, split='test', path=None),
        'bench.growth_shapes': dict(B=8, C=32, S=16),
        'bench.measure_busy': (untimed(m.bench.measure_busy), dict(B=1, C=2, S=2, busy=1, rounds=1, backends=['torch'], least=.01)),
        'bench.StepProfile': dict(first=1, n=2), 'bench.StepParts': dict(first=1, n=2),
        'commands.use': (runs_a_file, dict(file=python_file(w))),
        'commands.in_one_line': dict(e=ValueError('a')),
        'commands.named_device': dict(name='cpu', command='a'),
        'commands.about': dict(command='a', device='cpu'),
        'cli.read_changes': dict(texts=['h=4']),
        'runs.Settings': asdict(w.settings),
        'plan.fit_config': dict(cfg=w.cfg, image_size=(8,8)),
        'results.results_folder': dict(start=Path(__file__).parent),
        'results.gpu_result': dict(name='speed', folder=w.folder),
        'threads.computing_with': (entered(m.threads.computing_with), dict(n=1)),
        'threads.choose_threads': dict(step=lambda: None, seconds=.001),
        'diagrams.draw_blocks': dict(ax=ax(), boxes=dict(a=(0,0,'a')), arrows=[]),
    }

def parts(w):
    "The same for what our own code is made of"
    s,info,cfg = w.settings,w.dls.info,w.cfg
    out = w.model(w.x[:2])
    like = dict(params=x4(2,6,3,3), channels=1, mix=2, levels=17)
    evaluation,run = dict(valid=dict(elbo=dict(bpd=2.5))),w.run
    read = json.loads((run/'config.json').read_text())
    return {
        'layers.convolution': dict(in_channels=3, out_channels=2, kernel_size=3, stride=1, padding=1, upsample=False, dilation=1, bias=True, padding_mode='zeros'),
        'layers.number_of_features': dict(layer=nn.Identity(), positional=(), named=8),
        'ladder.gated_residual': dict(x=x4(2,2,3,3), vg=x4(2,4,3,3)),
        'distributions.gaussian': dict(params=x4(2,4,3,3), temperature=1.),
        'distributions.DiscretizedMixLogistic': like,
        'distributions.MaskedConv2d': dict(in_channels=2, out_channels=3, center=True),
        'vae.plan_blocks': dict(cfg=cfg), 'vae.last_sweeps': dict(cfg=cfg),
        'vae.free_bits_loss': dict(out=out, free_bits=.1),
        'vae.bits_per_dim': dict(nats=torch.ones(2), x=w.x[:2]),
        'training.bpd': dict(out=out, x=w.x[:2]), 'training.rate': dict(out=out, x=w.x[:2]), 'training.distortion': dict(out=out, x=w.x[:2]), 'training.block_rates': dict(out=out, x=w.x[:2]),
        'betavae.beta_loss': dict(out=out, beta=2.),
        'evaluation.at_rest': (entered(m.evaluation.at_rest), dict(model=w.model, seed=0)),
        'analysis.picture': (entered(m.analysis.picture), dict(path=w.out/'a.png', width=2., height=1.)),
        'analysis.draw_learning_curve': dict(run=w.run, ax=ax()),
        'data.DataInfo': asdict(info), 'data.TensorImages': dict(levels=w.levels, flip=False, files=None),
        'data.FewerLevels': dict(images=w.dls.train_ds, levels=32), 'data.Part': dict(images=w.dls.train_ds, index=[0,1], flip=False),
        'data.ToUnit': dict(n_levels=17), 'data.find_images': dict(folder=w.folder),
        'hub.signed': dict(text='a'), 'hub.read_card': dict(file=w.run/'README.md'), 'hub.is_own_card': dict(file=w.run/'README.md'),
        'hub.front_matter': dict(fields=dict(a='b', c=[1])), 'hub.card_results': dict(data='digits', evaluation=evaluation),
        'hub.model_card': dict(name='a', kind=m.vae.SDNVAE, config=read, evaluation=evaluation, license='mit'),
        'hub.license_in': dict(card='license: mit'),
        'saving.read_config': dict(file=run/'config.json', kind=m.vae.VAEConfig),
        'runs.read_config': dict(run=run), 'runs.read_run': dict(run=run), 'runs.read_history': dict(run=w.run), 'saving.read_evaluation': dict(folder=w.run), 'saving.weights_digest': dict(folder=w.run),
        'runs.check_images': dict(info=w.dls.info, data=read['data']),
        'runs.record': dict(run=run, split='valid', name='elbo', estimate=m.evaluation.Estimate(1., .1, 2, 1, torch.ones(2)), seed=0),
        'runs.write_evaluation': dict(run=run, figures=dict(elbo_bpd=2.5)),
        'runs.check_folder': dict(run=w.out/'new', resume=False, overwrite=False),
        'runs.check_apart': dict(run=w.out/'new', dataset='digits'),
        'runs.begin': dict(run=w.out/'new', resume=False, overwrite=False, dataset='digits'),
        'saving.are_whole': dict(), 'saving.atomic': (written, dict(path=w.out/'b')),
        'runs.is_ours': dict(name='config.json'), 'runs.own_files': dict(run=w.run), 'runs.is_own': dict(dataset='digits'), 'runs.check_name': dict(dataset='digits'),
        'runs.resumed': dict(saved=s, epochs=3), 'runs.run_images': dict(settings=s, data=None, path=None), 'runs.run_dls': dict(settings=s, data=None, path=None, bs=4, device='cpu', num_workers=0),
        'plan.count_sweeping': dict(cfg=cfg), 'plan.own_recipe': dict(n_train=20, device='cpu'), 
        'plan.fit_settings': dict(settings=s, info=info, device='cpu', repeat=None), 
        'plan.free_memory': dict(device='cpu'),
        'plan.check_memory': dict(model=w.model, bs=4, free=1e12), 'plan.doubts': dict(settings=s, info=info, cfg=cfg),
        'plan.describe_run': dict(settings=s, info=info, model=w.model, device=torch.device('cpu'), run=w.run, memory=''), 'plan.TimeLeft': dict(least=30., after=5.),
        'published.our_name': dict(name='ladder_layers.0.up_a.bias'), 'published.unpickle_data': dict(path=w.folder/'files/noise'), 'published.read_checkpoint': dict(path=w.folder/'files/noise'),
        'published.hyper_parameter': dict(hp=dict(depth=3), name='depth', kind=int, default=None), 
        'scan.lines.to_lines': dict(x=x4(), direction='right'), 'scan.lines.n_lines': dict(x=x4(), direction='right'), 'scan.reference.turn': dict(x=x4(), direction='right'),
        'scan.reference.check_arguments': dict(x=x4(), **weights(), direction='right'),
        'saving.as_path': dict(path=w.out), 'saving.read_json': dict(file=run/'config.json'), 'layers.is_number': dict(value=1.), 'layers.is_whole': dict(value=1, least=1),
        'sources.printable': dict(path=w.out), 'sources.part_names': dict(names=['train','valid']), 'sources.is_grey': dict(mode='L'), 'results.unmeasured': dict(), 
    }

# What has no call in the tables, and why
NOT_CALLED = {
    'they hold what they are given, and look at nothing': '''analysis.Nearest analysis.Band analysis.BlockBits evaluation.Estimate disentanglement.DCI disentanglement.Score explore.Pictures grid.Pace
        ladder.Rung memory.Memory compare.Compared published.Published vae.VAEOutput data.DataSet data.DamagedFileWarning sources.ImagesWarning scan.Backend scan.op.Backend saving.Pretrained training.Autocast
        training.StepGraphs training.CheckPixels training.EpochTable training.VAELearner data.ImageDL disentanglement.Drawn runs.setting showdoc.TblRenderer''',
    'parts of `compress` and `decompress`, which have checked their arguments': '''compression.halve compression.pop compression.push compression.latent_cdf compression.latent_value
        compression.pixel_cdf compression.push_images compression.pop_images compression.next_batch compression.probe compression.model_digest compression.unpack compression.Packed compression.Report''',
    'called as commands below': 'compression.sdn_compress compression.sdn_decompress bench.sdn_bench cli.sdn_train cli.sdn_eval cli.sdn_sample cli.sdn_explore cli.train compare.sdn_compare grid.sdn_grid',
    'they take nothing': 'data.image_endings cli.list_choices hub.hub_library hub.hub_endpoint saving.shipped scan.compiled.compiler scan.compiled.missing_compiler scan.compiled.n_threads scan.cpp_sweep.cpp_prepare scan.op.is_going_to_onnx shapes.Shapes3D shapes.Sprites threads.wait_briefly training.n_processes',
    'they would ask the network, or a service': 'hub.hub_folder hub.send_folder hub.plain_hub_errors training.wandb_logger',
    'they would look for files of hundreds of megabytes': 'formats.read_fashion_mnist formats.read_cifar10 formats.read_imagenet32 shapes.Shapes3DFile shapes.DSpritesFile',
    'they need a GPU, minutes, or so many processes': 'threads.spinning bench.device_profile bench.measure_step bench.measure_busy_training grid.measure_pace scan.triton_sweep.resources',
    'programs behind `scan`, which has checked their arguments': '''scan.cpp_sweep.cpp_forward scan.cpp_sweep.cpp_backward scan.cpp_sweep.cpp_why_not scan.cpp_sweep.cpp_suits scan.cpp_sweep.cpp_too_small
        scan.torch_sweep.torch_forward scan.torch_sweep.torch_backward scan.torch_sweep.plain_loop scan.torch_sweep.loop_is_quicker scan.torch_sweep.torch_too_small
        scan.triton_sweep.triton_buffers scan.triton_sweep.triton_forward scan.triton_sweep.triton_backward scan.triton_sweep.triton_why_not scan.triton_sweep.triton_suits
        scan.empty_map scan.lines.is_sideways scan.lines.is_reversed scan.lines.from_lines scan.lines.empty_map scan.lines.with_previous scan.lines.in_order scan.lines.neighbour_rows
        scan.lines.at_least_single scan.lines.gate_buffers scan.op.transform_is_active scan.op.sweep_step_by_step scan.op.sweep_flops scan.op.sweep_for_onnx scan.op.keeping_is_dear scan.reference.turn_back''',
    'tested under other names': 'scan.op.register_backend scan.op.choose_backend scan.op.scan scan.reference.scan_reference shapes.FactorImages sources.eight_bits data.make_dls memory.kept_bytes threads.start',
    'the arithmetic of likelihoods and metrics, called by them': '''distributions.at_least_single distributions.draw distributions.log_bin_mass distributions.clamp_log_scale distributions.logistic_noise
        distributions.Likelihood distributions.DiscretizedLogistic distributions.leaning_mean distributions.Bernoulli betavae.UnitGaussian disentanglement.number_rows disentanglement.source disentanglement.trials''',
    'they change what others see: a compiled library, a backend, the processes': 'scan.compiled.load_library scan.register_backend training.distribute',
    'arithmetic and words of our own numbers, which were checked before': '''plan.steps_in plan.epochs_in plan.time_step plan.told_time published.our_order results.machine threads.threads_note
        vae.size_that_fits data.FileImages runs.read_settings runs.run_identity saving.tensor_digest sources.as_shown sources.bits_of sources.tell sources.tell_range
        vae.as_images vae.check_pictures vae.plain_numbers''',
    'decorators and blocks whose arguments stand in our own code': 'commands.command commands.plain_errors threads.printing layers.require_argument layers.require_whole runs.held published.blaming saving.as_tuples saving.require vae.name_layer',
    'the reader of checkpoints, which `read_published` calls': 'published.published_config published.our_outputs published.choose_weights',
    'peers and tools of the benchmark, which gives them what fits': 'bench.published bench.loop bench.floor bench.seconds bench.in_turn bench.saved_bytes bench.fill_in_turn',
    'of the site': '''showdoc.class_source showdoc.param_docs showdoc.param_table showdoc.names_of showdoc.to_mathml showdoc.show_formulas showdoc.formulas showdoc.RunForDocs showdoc.FoldAnswers showdoc.FoldHidden
        showdoc.ColabBadge showdoc.foreign_init showdoc.png_width showdoc.BoxFigures showdoc.join_prints showdoc.own_names showdoc.LinkNames''',
}

# Functions for the tables

def preset_file(w):
    file = w.folder/'mine.json'
    file.write_text(json.dumps(dict(model=dict(image_size=[8,8]))))
    return file
def idx_file(w):
    file = w.folder/'a.idx'
    file.write_bytes(bytes([0,0,8,1,0,0,0,2,1,2]))
    return file
def python_file(w):
    file = w.folder/'registers_nothing.py'
    file.write_text('')
    return file

def runs_a_file(file):
    "`use`, which hands on what is wrong with the file itself"
    try: m.commands.use(file)
    except (SyntaxError,NameError): pass

def entered(block):
    "A function that enters a block and leaves it"
    def call(**kw):
        with block(**kw): pass
    return call

def written(path):
    with m.saving.atomic(path) as tmp: Path(tmp).write_text('')

@contextlib.contextmanager
def replaced(*what):
    "Attributes of modules are something else meanwhile: (module, name, value)"
    with pytest.MonkeyPatch.context() as patch:
        for o,name,value in what: patch.setattr(o, name, value)
        yield

class Reached(Exception): "All is checked; what comes next would take long"
def reach(*args, **kw): raise Reached

def until_reached(f, *what):
    "`f`, which works where it comes to something that would take long"
    def call(*args, **kw):
        with replaced(*what), contextlib.suppress(Reached): return f(*args, **kw)
    return call

def untimed(f):
    "Benchmarks without the time they take"
    def once(f, x, weights, training=True, n=1): return .1
    return until_reached(f, (m.bench,'seconds',once), (m.bench,'fill_in_turn',lambda calls, seconds, rounds, told=None: {k: [f()] for k,f in calls.items()}), (m.bench,'measure_busy_training',reach))

def no_cell_is_trained(f):
    return until_reached(f, (m.grid,'run_cell',reach), (m.grid,'measure_pace',lambda *args, **kw: m.grid.Pace(1e-6, 1e-6, 10)))

def not_served(**kw):
    "`serve` without a server"
    pytest.importorskip('voila')
    from voila.app import Voila
    return until_reached(m.explore.serve, (Voila,'launch_instance',classmethod(reach)))(**kw)

def quick_page(runs): return until_reached(m.compare.comparison_page, (m.compare,'draw_curves',reach))(runs)

# Bad values by kind of argument

class Named:
    "A value with a name to show, made when it is asked for"
    def __init__(self, name, make): self.name,self.make = name,make
def v(*values): return [Named(repr(o)[:40], lambda o=o: o) for o in values]

WRONG_TYPES = v(None, object, 'nonsense', 3, 1.5, [], {}, b'x', (1,2,3,4,5,6,7), math.nan)
INTS = v(0, -1, 2, 1.5, math.nan, math.inf, 2**31, 2**63, 10**12, -10**12)
FLOATS = v(math.nan, math.inf, -math.inf, -1., 0., -1e-9, 2., 1e300)
WORDS = v('', ' ', 'nonsense', '../x', 'a\0b', 'a\nb', 'x'*5000, 'é', '%s{0}', '\udcff', 'nan', '-1')
LISTS = v([], [None], ['nonsense'], [math.nan], [-1], [0], [10**12], [[]], (1.5,), [1]*7, (2**63,2**63))

def dicts(base):
    "A dictionary that lacks one entry, or has a wrong one"
    yield from v({}, {'nonsense': 1}, {1: 2})
    for k in list(base)[:12]:
        yield Named(f'without {k!r}', lambda k=k: {n: o for n,o in base.items() if n!=k})
        for bad in (None, 'nonsense', [], -1): yield Named(f'{k!r}: {bad!r}', lambda k=k, bad=bad: {**base, k: bad})

def tensors(base):
    "Tensors of other shapes, types and places, and with other numbers"
    def of(*shape): return Named(f'of shape {shape}', lambda: torch.zeros(shape))
    yield from (of(), of(0), of(1), of(2,3), of(2,3,4), of(1,1,1,1), of(2,3,4,5), of(1,2,3,4,5), of(2,1,2,1,2,1), of(0,*base.shape[1:]), of(*base.shape[:-1],0) if base.ndim else of(0))
    for name,f in dict(transposed=lambda t: t.mT if t.ndim>1 else t, doubled=lambda t: torch.cat([t,t], -1) if t.ndim else t, integers=lambda t: t.long(), booleans=lambda t: t.bool(), half=lambda t: t.half(),
        double=lambda t: t.double(), complex=lambda t: t.to(torch.complex64), nan=lambda t: t.float()*math.nan, infinite=lambda t: t.float()/0, large=lambda t: t.float()+1e30).items(): yield Named(name, lambda f=f: f(base.detach().clone()))

def arrays(base):
    for name,f in dict(floats=lambda a: a.astype(float), objects=lambda a: a.astype(object), flat=lambda a: a.reshape(-1), none=lambda a: a[:0], one=lambda a: a[:1], nan=lambda a: a.astype(float)*math.nan,
        negative=lambda a: -a.astype(int), words=lambda a: a.astype(str), zero_dimensions=lambda a: np.array(3), reversed=lambda a: a[::-1], complex=lambda a: a.astype(complex)).items():
        yield Named(name, lambda f=f: f(base.copy()))

MODULES = [Named('Identity', nn.Identity), Named('empty module', nn.Module)]
CALLABLES = [Named('of nothing', lambda: lambda: None), Named('gives None', lambda: lambda *a, **kw: None), Named('gives a word', lambda: lambda *a, **kw: 'nonsense'), Named('class', lambda: int)]

def kind_of(base, annotation):
    "What an argument is, by its value in the call that works, or by its annotation where that is None"
    if isinstance(base, bool): return 'bool'
    if hasattr(base, '_fields'): return 'any'                           # a named tuple
    if base is None: return {int: 'int', float: 'float', str: 'word', tuple: 'list', list: 'list'}.get(annotation, 'any')
    for kind,types in dict(int=int, float=float, word=str, path=Path, tensor=Tensor, array=np.ndarray, list=(list,tuple), dict=dict, module=nn.Module).items():
        if isinstance(base, types): return kind
    return 'callable' if inspect.isroutine(base) or inspect.isclass(base) else 'any'

# counts of what is done one after the other: who asks for much gets it
LENGTHY = {('evaluation.iw_bpd','samples'),('analysis.prior_samples','n'),('disentanglement.evaluate','repeats'),('threads.choose_threads','seconds'),
    ('bench.measure','rounds'),('bench.measure_layers','rounds'),('bench.measure_busy','rounds'),('bench.measure_busy','least'),('compare.sample_picture','n'),('disentanglement.mutual_information','n'),
    ('vae.SDNVAE.sample','n')}

def bad_values(w, kind, base, all_types, lengthy=False):
    "Values to put in the place of one that works"
    text = str if all_types else Path
    if kind in ('tensor','dict') and not all_types: return              # they come from our own code
    given = dict(
        int=INTS, float=FLOATS, word=WORDS, list=LISTS, bool=[], dict=lambda: dicts(base), tensor=lambda: tensors(base), array=lambda: arrays(base), module=MODULES, callable=CALLABLES,
        path=lambda: [Named(f'.../{p.parent.name}/{p.name}' if p.is_relative_to(w.folder) else str(p), lambda p=p: p) for p in w.paths]+[Named(repr(t)[:20], lambda t=t: text(t)) for t in ('', '\0', 'x'*5000, '~none/x', 'a\nb')], any=[])[kind]
    for o in given() if callable(given) else given:
        if not (lengthy and (o.name in ('inf','1e+300') or len(o.name)>9 and o.name.isdigit())): yield o
    if all_types and kind!='bool': yield from (o for o in WRONG_TYPES if kind!='path' or o.name!='3') # a number may be an open file

# How a call ended

class TooLong(BaseException): pass

@contextlib.contextmanager
def in_time(seconds):
    "Raise where it takes longer"
    def stop(*_): raise TooLong
    was = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)

def is_ours(frame): return '/sdn_nb/' in frame.filename.replace(os.sep, '/') and '/tests/' not in frame.filename

TORCH_SAYS = "can't allocate memory",'not enough memory','Storage size calculation overflowed','integer multiplication overflow','out of memory','device string','Device string','error unpacking string as utf-8','Expected one of cpu, cuda','Found no NVIDIA driver'

def is_told_by_others(e, kind):
    "Torch's own words for memory and devices, and Python's for an object of another kind where any with the right attributes would do"
    if isinstance(e, RuntimeError): return any(t in str(e) for t in TORCH_SAYS)
    return isinstance(e, AttributeError) and kind not in ('int','float','word','path','bool') and ' has no attribute ' in str(e)

def fault(e, name, argument, value, kind):
    "What is wrong with an error, or None"
    last = traceback.extract_tb(e.__traceback__)[-1]
    text = str(e)
    if is_told_by_others(e, kind): return None
    if not isinstance(e, TOLD): return f'{type(e).__name__}: {text[:150]}'
    if not is_ours(last) or 'raise' not in (last.line or ''): return None
    return None if len(text)>20 else f'says little: {text!r}'

def outcome(f, arguments, name, argument, value, kind):
    "Call, and give what is wrong with the way in which it ended, or None"
    try:
        with in_time(LIMIT): f(**arguments)
    except TooLong: return None if kind=='int' and 1000<value<10**8 else f'longer than {LIMIT} s' # so many take so long
    except (Exception,SystemExit) as e: return fault(e, name, argument, value, kind)

# Not mended yet: function or command, and the arguments that can end it in an error without words. An entry that is mended fails the test until it is gone

KNOWN_ARGUMENTS = {
}
KNOWN = {(name,argument) for name,arguments in KNOWN_ARGUMENTS.items() for argument in arguments.split()}

# Functions

MODULES_OF = [i.name.removeprefix('sdn_nb.') for i in pkgutil.walk_packages(sdn_nb.__path__, 'sdn_nb.') if '_modidx' not in i.name]
NO_SUCH_CALL = {'published.read_published','published.unpickle_data','published.read_checkpoint'} # there is no published checkpoint here: test_published writes some

def function(name):
    "The function of a name in a table; what follows a comma only tells calls of one function apart"
    module,_,f = name.partition(',')[0].rpartition('.')
    return getattr(importlib.import_module(f'sdn_nb.{module}'), f)

def entries(w, table):
    "name, function, arguments and whether wrong types count, of each call"
    for all_types,calls in ((True,users(w)), (False,parts(w))):
        for name,call in calls.items():
            if call is not None: yield name,*(call if isinstance(call, tuple) else (function(name),call)),all_types

def annotations(f):
    try: return {k: p.annotation for k,p in inspect.signature(f).parameters.items()}
    except (TypeError,ValueError): return {}

@functools.cache
def groups(): return sorted({m.partition('.')[0] for m in MODULES_OF})

def calls_of(w, module): return [e for e in entries(w, None) if e[0].split('.')[0]==module]

def compare_with_known(found, module):
    "Exactly what is known is found"
    known = {k for k in KNOWN if k[0].split('.')[0]==module}
    new = '\n'.join(f'{name}({argument}={value}): {what}' for (name,argument),(value,what) in found.items() if (name,argument) not in known)
    assert not new, f'not in words:\n{new}'
    assert not (mended := known-found.keys()), f'mended, so take it out of KNOWN: {sorted(mended)}'

@pytest.mark.parametrize('module', groups())
def test_bad_values_in_turn(w, module):
    found = {}
    for name,f,arguments,all_types in calls_of(w, module):
        if name not in NO_SUCH_CALL:
            f(**arguments)                                              # the call that works
        types = annotations(f)
        for argument,base in arguments.items():
            kind = kind_of(base, types.get(argument))
            for bad in bad_values(w, kind, base, all_types, (name,argument) in LENGTHY):
                value = bad.make()
                if (name,argument) not in found and (what := outcome(f, {**arguments, argument: value}, name, argument, value, kind)): found[name,argument] = bad.name,what
    compare_with_known(found, module)

def public():
    "Functions and classes of all modules, each by its first name"
    for module in MODULES_OF:
        of = importlib.import_module(f'sdn_nb.{module}')
        for name in getattr(of, '__all__', ()):
            if callable(getattr(of, name)) and getattr(getattr(of, name), '__module__', '').startswith('sdn_nb'): yield f'{module}.{name}'

def test_every_public_name_is_called_or_said_why_not(w):
    called = {name.partition(',')[0] for name,*_ in entries(w, None)}
    excused = {name for names in NOT_CALLED.values() for name in names.split()}
    assert not (missing := sorted({*public()}-called-excused)), f'neither in a table nor in NOT_CALLED: {missing}'
    assert not (gone := sorted((excused|{n for n in called if n.count('.')==1})-{*public()})), f'there is no such name: {gone}'
    assert not (both := sorted(called&excused)), f'called after all: {both}'

# Drawn values

DRAWN = dict(
    int=st.one_of(st.integers(), st.integers(-3, 70), st.floats()), float=st.one_of(st.floats(), st.integers(-3, 3)), word=st.text(max_size=40), bool=st.just(True),
    path=st.text(max_size=40).map(lambda t: t if not t.isdigit() else 'x'), list=st.one_of(*(st.lists(o, max_size=8) for o in (st.integers(), st.integers(0, 9), st.floats(), st.text(max_size=5), st.none()))),
    dict=st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8), st.lists(st.floats(), max_size=3))),
    tensor=st.lists(st.integers(0, 5), max_size=6).map(lambda shape: torch.randn(shape)), array=st.lists(st.integers(0, 5), max_size=5).map(lambda shape: np.ones(shape, np.uint8)))

def drawn(kind, base):
    "Values of the kind of an argument, and of an array or a dictionary also the working one, changed"
    if kind=='dict': return st.one_of(DRAWN['dict'], DRAWN['dict'].map(lambda d: {**base, **dict(zip(base, d.values()))}))
    return DRAWN.get(kind, st.one_of(st.none(), st.integers(), st.text(max_size=5)))

def try_drawn(w, calls, examples, number):
    "Call with `examples` values drawn by hypothesis, with `number` for a seed, or always the same if None"
    spots = [(name,f,arguments,argument,kind_of(base, annotations(f).get(argument)),base,all_types) for name,f,arguments,all_types in calls for argument,base in arguments.items()]
    spots = [s for s in spots if (s[0],s[3]) not in KNOWN|LENGTHY and s[4] not in ('bool','module','callable') and (s[6] or s[4] in ('int','float','word'))]
    if not spots: return
    @settings(max_examples=examples, derandomize=number is None, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data):
        name,f,arguments,argument,kind,base,_ = data.draw(st.sampled_from(spots))
        value = data.draw(drawn(kind, base))
        what = outcome(f, {**arguments, argument: value}, name, argument, value, kind)
        assert not what, f'{name}({argument}={value!r}): {what}'
    (attempt if number is None else seeded(number)(attempt))()

@pytest.mark.parametrize('module', groups())
def test_drawn_values(w, module):
    calls = calls_of(w, module)
    if not MINUTES: return try_drawn(w, calls, FURTHER*len(calls), None)
    end = time.monotonic()+60*MINUTES/len(groups())
    while time.monotonic()<end: try_drawn(w, calls, 200, random.getrandbits(64))

# Commands

def commands(w):
    "command -> (what would take long, options that work): None for a flag, a list for arguments without a name"
    model = dict(bs='4', lr='.01', seed='0', size='8', width='6', accumulate='1', warmup='0', minutes='10', sample_every='0', threads='1')
    train = dict(dataset=[w.folder/'images'], preset='digits', epochs='1', out=w.out/'run', path=w.folder/'images', damaged='stop', set='free_bits=.1', **model)
    grid = dict(out=[w.out/'grid'], archs='conv', betas='1', seeds='0', path=w.folder, device='cpu', max_hours='1', data='bars', iterations='2', anneal='1', bs='4', lr='.001', z='3', features='4',
        n_directions='1', scale='8', likelihood='logistic', every='1', trials='10')
    bench = dict(shapes='1,2,2', directions='right', precisions='fp32', backends='torch', device='cpu', rounds='1', steps='digits', busy='1', out=w.out/'bench.json')
    return dict(
        sdn_train=train,
        sdn_eval=dict(run=[w.run], samples='2', split='valid', seed='0', bs='4', device='cpu', path=w.folder/'images.npz'),
        sdn_sample=dict(run=[w.run], n='2', temperature='1', seed='0', out=w.out/'samples.png'),
        sdn_compare=dict(runs=[w.run,'digits'], out=w.out/'page'),
        sdn_explore=dict(run=[w.run], port='8866'),
        sdn_compress=dict(model=[w.run], images=[w.folder/'images'], out=w.out/'new.sdn', split='test', path=w.folder, bits='4', bs='2', threads='1'),
        sdn_decompress=dict(file=[w.packed], out=w.out/'decoded', model=w.run), sdn_bench=bench, sdn_grid=grid)

TEXTS = ['', ' ', 'nonsense', '0', '-1', '2', '1.5', 'nan', 'inf', '-inf', '1e400', '9'*30, '1,2', '1 1', 'a b', '[]', 'h=', '=', 'h=nan', 'h=[', 'depth=1000000000000', 'x'*5000, 'a\nb', 'a\0b', '\udcff',
    '~none/x', 'owner/', 'a/b/c', 'cuda:7', 'meta', 'digits', '\u2028']

PLACES = ['', ' ', 'nonsense', 'x'*5000, 'a\nb', 'a\0b', '\udcff', '~', '~none/x', '.', '/proc/none', '\u2028']
NUMBERS = ['', 'nonsense', '0', '-1', '1.5', 'nan', 'inf', '1e400', '9'*30]

def stubs():
    "What commands come to when all is checked, and would take long"
    from fastai.learner import Learner
    no = [(Learner,'fit_flat_cos',reach), (m.cli,'time_step',lambda step: .1), (m.cli,'elbo_estimate',reach), (m.grid,'run_cell',reach), (m.grid,'measure_pace',lambda *args, **kw: m.grid.Pace(1e-6, 1e-6, 10)),
        (m.bench,'seconds',lambda *args, **kw: .1), (m.bench,'measure_step',reach), (m.bench,'measure_busy',reach), (m.bench,'measure_busy_training',reach), (m.compare,'comparison_page',lambda runs: 'a page'),
        (m.plan,'training_memory',lambda cfg: m.memory.Memory(1, 1))]
    with contextlib.suppress(ImportError):
        from voila.app import Voila
        no.append((Voila,'launch_instance',classmethod(reach)))
    return no

def arguments(options):
    "The command line"
    for name,o in options.items():
        if isinstance(o, list): yield from map(str, o)
    for name,o in options.items():
        if not isinstance(o, list): yield f'--{name}={o}'

def run_command(command, options):
    "What is wrong with how a command ended, or None"
    main = getattr(importlib.import_module(f'sdn_nb.{m.threads.COMMANDS[command]}'), command).main
    try:
        with in_time(LIMIT), replaced(*stubs()), contextlib.suppress(Reached), contextlib.redirect_stdout(io.StringIO()): main(list(arguments(options)))
    except TooLong: return f'longer than {LIMIT} s'
    except SystemExit as e:
        if e.code in (None,0,2): return None
        return None if isinstance(e.code, str) and len(e.code.strip())>15 and '\n' not in e.code.strip() else f'not one line: {e.code!r}'
    except (SyntaxError,NameError) as e: return None if 'use' in options else f'{type(e).__name__}: {str(e)[:150]}' # the file's own
    except Exception as e: return f'{type(e).__name__}: {str(e)[:150]}'

def spoiled(w, base):
    "Texts in the place of one; paths where there was a path"
    first = base[0] if isinstance(base, list) else base
    texts = PLACES+[str(p) for p in w.paths] if isinstance(first, Path) else NUMBERS if first.strip('.').replace('.', '').isdigit() else TEXTS
    return [[t,*base[1:]] for t in texts] if isinstance(base, list) else texts

@pytest.mark.parametrize('command', ['sdn_train','sdn_eval','sdn_sample','sdn_compare','sdn_explore','sdn_bench','sdn_grid','sdn_compress','sdn_decompress'])
def test_commands_say_it_in_a_line(w, command):
    options,found = commands(w)[command],{}
    if command=='sdn_explore': pytest.importorskip('voila')
    more = dict(use=python_file(w)) | (dict(init=w.run) if command=='sdn_train' else {})
    for option,base in (options|more).items():
        for value in spoiled(w, base):
            if (command,option) not in found and (what := run_command(command, {**options, option: value})): found[command,option] = repr(value)[:60],what
    compare_with_known(found, command)
