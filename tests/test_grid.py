"A grid goes on where it stopped, cell by cell, and comes out the same; what does not fit is refused before anything is trained."
import json, os, random, re, signal, time
from dataclasses import asdict, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from fastai.basics import Callback, set_seed
from sdn_nb import betavae, data, grid
from sdn_nb.betavae import BetaVAE
from sdn_nb.data import _factor_images, get_dls
from sdn_nb.grid import ARCHS, Cell, Pace, cell_config, draw_curves, draw_metric, measure_pace, read_grid, run_cell, run_grid, sdn_grid
from sdn_nb.layers import SDNLayer, n_params
from sdn_nb.shapes import FactorImages

class Bars(FactorImages):
    "Bars on a ground, 16x16 grey: brightness of the ground, place, width"
    def __init__(self): super().__init__(dict(ground=range(5), place=range(6), width=range(1, 5)))
    def _fetch(self, i):
        x = np.zeros((len(i), 1, 16, 16), np.uint8)
        for v,(g,p,w) in zip(x, self.factors(i)): v[:] = 30*g; v[:,:,2*p:2*p+w+1] = 255
        return x

@pytest.fixture(autouse=True)
def bars(monkeypatch):
    monkeypatch.setattr(data, 'DATASETS', dict(data.DATASETS))
    data.register_dataset('bars', lambda seed, flip, path: _factor_images('bars', flip, Bars()))

tiny = dict(data='bars', iterations=6, anneal=3, bs=8, z=3, features=4, scale=8, every=2, trials=10)
small = dict(archs=('conv','sdn'), betas=(1,4), seeds=(0,), device='cpu', **tiny)
def args(out, **kw): return [str(out), *[w for k,v in ({k: ' '.join(map(str, v)) if isinstance(v, tuple) else v for k,v in small.items()}|kw).items() for w in (f'--{k}', str(v))]]
def outcome(f): return {k: v for k,v in json.loads(Path(f).read_text()).items() if k not in ('seconds','about')}
def names(folder): return sorted(p.name for p in folder.iterdir())
@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kw): raise AssertionError('trained')
    monkeypatch.setattr(grid, 'run_cell', fail)

# Going on

@pytest.fixture
def stop_in_third(monkeypatch):
    "Ctrl-C in the fourth step of the third cell"
    after,cells = grid._StopAfterIterations.after_batch,[]
    def stop(self):
        if self.cell not in cells: cells.append(self.cell)
        if len(cells)==3 and self.learn.curves.n==4: cells.append(None); os.kill(os.getpid(), signal.SIGINT)
        after(self)
    monkeypatch.setattr(grid._StopAfterIterations, 'after_batch', stop)
    return cells

def test_a_stop_in_the_middle_changes_nothing(tmp_path, stop_in_third):
    with pytest.raises(KeyboardInterrupt): run_grid(tmp_path/'a', **small)
    assert names(tmp_path/'a')==['conv_beta1_seed0.json','sdn_beta1_seed0.json']
    times = {p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()}
    files = run_grid(tmp_path/'a', **small)
    assert {p: p.stat().st_mtime_ns for p in times}==times
    whole = run_grid(tmp_path/'b', **small)
    assert len(files)==4 and [outcome(f) for f in files]==[outcome(f) for f in whole]

def test_the_command_stops_in_one_line(tmp_path, stop_in_third):
    with pytest.raises(SystemExit, match='stopped; the cells that are done lie in .*, and the same command goes on'): sdn_grid.main(args(tmp_path/'a'))
    assert len(names(tmp_path/'a'))==2
    sdn_grid.main(args(tmp_path/'a'))
    assert len(names(tmp_path/'a'))==4

def test_finished_cells_are_not_trained_again(tmp_path, monkeypatch):
    files = run_grid(tmp_path, **small)
    monkeypatch.setattr(grid, 'run_cell', None)
    assert run_grid(tmp_path, **small)==files
    assert run_grid(tmp_path, **(small|dict(archs=('sdn',))))==[f for f in files if f.name.startswith('sdn')]

def test_a_grid_grows_in_either_direction(tmp_path):
    run_grid(tmp_path, **(small|dict(archs=('conv',), betas=(1,))))
    one = outcome(tmp_path/'conv_beta1_seed0.json')
    run_grid(tmp_path, **(small|dict(seeds=(0,2), betas=(.5,1))))
    assert names(tmp_path)==[f'{a}_beta{b}_seed{s}.json' for a in ('conv','sdn') for b in ('0.5','1') for s in (0,2)] and outcome(tmp_path/'conv_beta1_seed0.json')==one

def test_cells_that_another_process_did_meanwhile_are_left(tmp_path, monkeypatch):
    done,train = [],grid.run_cell
    def other(cell, *args, **kw):
        done.append(cell.name)
        if len(done)==1: run_grid(tmp_path, **(small|dict(archs=('sdn','conv'), betas=(4,))))  # begins at the other end
        return train(cell, *args, **kw)
    monkeypatch.setattr(grid, 'run_cell', other)
    assert len(run_grid(tmp_path, **small))==4
    assert sorted(done)==['conv_beta1_seed0','conv_beta4_seed0','sdn_beta1_seed0','sdn_beta4_seed0']

@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()], ids=['full','stopped'])
def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch, error):
    def fail(self, text):
        with open(self, 'w') as f: f.write(text[:50])
        raise error
    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(type(error)): run_grid(tmp_path, **small)
    assert names(tmp_path)==[]

# Refused before training

@pytest.mark.parametrize('change', [dict(lr=.01), dict(bs=4), dict(iterations=8), dict(anneal=0), dict(features=5), dict(likelihood='bernoulli'), dict(trials=20), dict(scale=16), dict(z=2), dict(every=3), dict(n_directions=2)], ids=str)
def test_other_settings_are_refused(tmp_path, monkeypatch, change):
    one = dict(archs=('sdn',), betas=(4,))                              # the last of the four
    monkeypatch.setattr(grid, 'run_cell', lambda cell, *_, **kw: dict(settings=asdict(cell), valid=dict(elbo=0.), metrics={}, seconds={}))
    run_grid(tmp_path, **(small|one))
    monkeypatch.setattr(grid, 'run_cell', None)
    (k,v), = change.items()
    with pytest.raises(ValueError, match=f'sdn_beta4_seed0.json was made with other settings: {k} was .* and {v!r} is asked for'): run_grid(tmp_path, **(small|change))
    assert names(tmp_path)==['sdn_beta4_seed0.json']

@pytest.mark.parametrize('text', ['{', '', '[]', '{"settings": 3}', '{}'], ids=['cut','empty','list','number','none'])
def test_files_that_are_no_results(tmp_path, no_training, text):
    (tmp_path/'conv_beta4_seed0.json').write_text(text)
    with pytest.raises(ValueError, match='conv_beta4_seed0.json is no result of this command|made with other settings'): run_grid(tmp_path, **small)
    with pytest.raises(ValueError, match='read_grid: .*conv_beta4_seed0.json is no result of sdn_grid'): read_grid(tmp_path)
    assert names(tmp_path)==['conv_beta4_seed0.json']

@pytest.mark.parametrize('change,words', [(dict(archs=('conv','cnn')), 'arch must be one of conv, sdn, conv_wide'), (dict(betas=(1,-1)), '`beta` must be zero or more'), (dict(scale=32), '`sdn_scales` must be'), (dict(likelihood='mix'), '`likelihood` must be'),
    (dict(lr=0.), 'lr must be'), (dict(bs=0), 'bs must be at least 1'), (dict(every=7), 'every must be at most iterations=6'), (dict(trials=3), 'trials must be at least 10'), (dict(anneal=-1), 'anneal must be'), (dict(seeds=()), 'one value each'), (dict(data='bras'), 'Did you mean')], ids=str)
def test_settings_that_cannot_be(tmp_path, no_training, change, words):
    with pytest.raises(ValueError, match=words): run_grid(tmp_path/'new', **(small|change))
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('option,value,words', [('betas','1,4','--betas must be numbers'), ('seeds','0.5','--seeds must be numbers'), ('archs','','one value each'), ('lr','-1','lr must be')])
def test_the_command_refuses_in_one_line(tmp_path, no_training, option, value, words):
    with pytest.raises(SystemExit, match=f'^error: .*{words}'): sdn_grid.main(args(tmp_path/'new', **{option: value}))
    assert not (tmp_path/'new').exists()

def test_training_that_diverges_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match='conv_beta1_seed0 has an ELBO that is not finite after [246] iterations'): run_grid(tmp_path, **(small|dict(lr=1e30)))
    assert names(tmp_path)==[]

# Told before

def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit): sdn_grid.main(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for f in fields(Cell):
        if f.name in ('arch','beta','seed'): continue                   # lists of their own
        assert re.search(rf'--{f.name} \w+ (?:(?! --\w).)*; {f.default} if left out', text), f.name
    for default in ('runs/disentanglement','conv sdn','1 32 100 300 500','0 1 2 3 4 5 6 7 8 9','the working directory','cuda where there is one','24'): assert f'{default} if left out' in text

def test_pace_is_that_of_ten_steps(monkeypatch):
    steps = []
    class Slow(Callback):
        def after_loss(self): steps.append(self.iter); time.sleep(1.5 if len(steps)==1 else .03)   # the first compiles
    learner = grid.beta_vae_learner
    monkeypatch.setattr(grid, 'beta_vae_learner', lambda *args, cbs: learner(*args, cbs=[cbs, Slow()]))
    random.seed(1); np.random.seed(2); torch.manual_seed(3)
    before = states()
    pace = measure_pace(Cell('conv', 1., 0, **tiny), device='cpu', n=20)
    assert len(steps)==11 and .03 < pace.step < .15 and 0 < pace.picture < .01 and pace.pictures==120 and states()==before

@pytest.mark.parametrize('pictures, encoded', [(120,120), (10**9,15*64*3+2*200)])
def test_seconds_of_a_cell(pictures, encoded):
    assert Pace(2., .5, pictures).seconds(Cell('conv', 1., 0, **tiny))==pytest.approx(6*2+encoded*.5, rel=1e-4)

def test_metrics_encode_as_many_pictures_as_is_foretold(monkeypatch):
    "Counted with so many pictures that none comes twice"
    class Many:
        sizes = (1000,1000,1000)
    seen = []
    def encode(f): seen.append(len(f)); return f.astype(float)
    cell = Cell('conv', 1., 0, **tiny)
    monkeypatch.setattr(grid, 'encoder', lambda *args, **kw: encode)
    grid._metrics(BetaVAE(cell_config(cell, get_dls('bars', device='cpu').info)), Many, cell.trials, 'cpu')
    assert Pace(0., 1., 10**9).seconds(cell)==pytest.approx(sum(seen), rel=1e-4)

@pytest.fixture
def known_pace(monkeypatch):
    "3 s a step with sweeps, 1 s without; judging is free"
    measured = []
    def pace(cell, path, device): measured.append(cell.arch); return Pace(3. if cell.arch=='sdn' else 1., 0., 120)
    monkeypatch.setattr(grid, 'measure_pace', pace)
    return measured

def test_what_takes_too_long_is_refused(tmp_path, no_training, known_pace, capsys):
    long = dict(archs='conv sdn conv_wide', iterations=3600, betas='1 4', seeds='0 1 2')    # 6*(1+3+1) hours
    with pytest.raises(SystemExit, match='^error: sdn_grid: 18 cells would take about 30 hours here, more than --max_hours 24. .* begin all the same with --max_hours 45'): sdn_grid.main(args(tmp_path/'new', **long))
    assert known_pace==['conv','sdn','conv_wide'] and not (tmp_path/'new').exists()
    assert capsys.readouterr().out=='18 cells to train on cpu, 3,600 steps each\na step takes 1 s (conv), 3 s (sdn), 1 s (conv_wide): about 30 hours for all, one after the other\n'
    with pytest.raises(AssertionError, match='trained'): sdn_grid.main(args(tmp_path/'new', max_hours=31, **long))

def test_only_what_is_left_counts(tmp_path, known_pace, capsys):
    run_grid(tmp_path, **(small|dict(archs=('conv',))))
    assert not known_pace                                               # in Python nothing is measured unless asked for
    sdn_grid.main(args(tmp_path))
    assert known_pace==['sdn'] and '2 cells to train on cpu, 6 steps each\na step takes 3 s (sdn): about 36 seconds for all' in capsys.readouterr().out
    sdn_grid.main(args(tmp_path, max_hours=0))                          # nothing is left
    assert known_pace==['sdn'] and capsys.readouterr().out.startswith('4 cells in')

def test_hours_that_cannot_be(tmp_path):
    for bad in ('-1','nan'):
        with pytest.raises(SystemExit, match='^error: sdn_grid: --max_hours must be zero or more'): sdn_grid.main(args(tmp_path/'new', max_hours=bad))

# Equal terms

def seen(monkeypatch, cell):
    "Pictures and noise of each step of a cell, and the encoder it began with"
    notes = dict(x=[], eps=[])
    class Note(Callback):
        run_valid = False
        def before_fit(self): notes['encoder'] = [p.detach().clone() for p in self.model.encoder.parameters()]
        def after_pred(self):
            mean,log_var = self.model.encoder(self.x).chunk(2, 1)
            notes['x'].append(self.x); notes['eps'].append(((self.pred.z-mean)/(log_var/2).exp()).detach())
    learner = grid.beta_vae_learner
    with monkeypatch.context() as m:
        m.setattr(grid, 'beta_vae_learner', lambda *args, cbs: learner(*args, cbs=[cbs, Note()]))
        run_cell(cell, device='cpu')
    return {k: torch.cat([v.flatten() for v in vs]) for k,vs in notes.items()}

def test_decoders_start_and_train_on_equal_terms(monkeypatch):
    cell = Cell('conv', 4., 3, **tiny)
    a = seen(monkeypatch, cell)
    for other in (replace(cell, arch='sdn'), replace(cell, arch='conv_wide')):
        b = seen(monkeypatch, other)
        assert torch.equal(a['x'], b['x']) and torch.equal(a['encoder'], b['encoder'])
        torch.testing.assert_close(a['eps'], b['eps'], rtol=1e-3, atol=1e-3)
    c = seen(monkeypatch, replace(cell, seed=4))
    assert not torch.equal(a['x'], c['x']) and not torch.equal(a['encoder'], c['encoder']) and (a['eps']-c['eps']).abs().mean()>.1

@pytest.mark.parametrize('features', [3, 20, 60])
def test_sizes_of_the_three(features):
    info = get_dls('shapes3d', device='cpu').info
    models = {a: BetaVAE(cell_config(Cell(a, 1., 0, features=features), info)) for a in ARCHS}
    layers = {a: [m for m in model.decoder if isinstance(m, SDNLayer)] for a,model in models.items()}
    assert [len(l) for l in layers.values()]==[0,1,1] and [len(l[0].correction) for l in list(layers.values())[1:]]==[1,0]
    assert abs(n_params(models['conv_wide'])/n_params(models['sdn'])-1) < .001

# What is in a result

def test_a_result_says_what_was_done(tmp_path):
    cell = Cell('sdn', 2., 1, **(tiny|dict(iterations=30, anneal=20, every=10)))    # epochs have 13 steps
    r = json.loads(run_grid(tmp_path, ('sdn',), (2,), (1,), device='cpu', command='told', **(tiny|dict(iterations=30, anneal=20, every=10)))[0].read_text())
    assert r['settings']==asdict(cell) and r['curves']['iteration']==[10,20,30] and r['curves']['beta']==pytest.approx([.9, 1.9, 2.])
    assert list(r['about'])==['command','device','sdn_nb','torch','fastai','sklearn','python'] and r['about']['command']=='told' and r['data']['name']=='bars' and len(r['data']['sha256'])==64 and r['about']['torch']==torch.__version__
    assert r['valid']['elbo']==pytest.approx(r['valid']['log_px']-sum(r['valid']['kl']), rel=1e-5) and len(r['valid']['kl'])==3
    assert r['parameters']==n_params(BetaVAE(cell_config(cell, get_dls('bars', device='cpu').info)))
    assert set(r['metrics'])=={'beta_vae','factor_vae','mig'} and all(0<=v<=1 for v in r['metrics'].values())

def test_validation_is_a_mean_over_the_first_pictures(monkeypatch):
    learn = grid._train(Cell('conv', 1., 0, **tiny), device='cpu')
    assert learn.curves.n==6
    monkeypatch.setattr(betavae, 'draw', lambda q: q.loc)               # no noise
    for n,want in ((5,5), (12,12), (1000,12)):                          # there are 12
        with torch.no_grad(): out = learn.model(learn.dls.valid.dataset[list(range(want))].float()/127.5-1)
        got = grid._mean_elbo(learn.model, learn.dls, n)
        assert got['log_px']==pytest.approx(out.log_px.mean().item(), rel=1e-5) and got['kl']==pytest.approx(out.kl.mean(0).tolist(), rel=1e-4)

def states(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()

def test_judging_draws_from_seed_0_and_leaves_the_generators():
    "The figures are those that follow set_seed(0), whatever was drawn before"
    learn = grid._train(Cell('conv', 1., 0, **tiny), device='cpu')
    set_seed(0)
    with torch.no_grad(): out = learn.model(next(iter(learn.dls.valid))[0][:5])
    random.seed(1); np.random.seed(2); torch.manual_seed(3)
    before = states()
    got = [grid._mean_elbo(learn.model, learn.dls, 5) for _ in 'ab']
    assert states()==before and got[0]==got[1] and got[0]['log_px']==out.log_px.mean().item()

def test_a_cell_leaves_the_generators():
    random.seed(1); np.random.seed(2); torch.manual_seed(3)
    before = states()
    a = run_cell(Cell('sdn', 4., 1, **tiny), device='cpu')
    assert states()==before
    torch.manual_seed(4)
    assert run_cell(Cell('sdn', 4., 1, **tiny), device='cpu')['curves']==a['curves']

def test_metrics_ask_as_often_as_they_say(monkeypatch):
    asked = {}
    for name in ('beta_vae_metric','factor_vae_metric','mig'): monkeypatch.setattr(grid, name, lambda e, sizes, *a, name=name, **kw: asked.setdefault(name, (sizes, a, kw)) and 0.)
    for trials,n in ((10,200), (10_000,10_000)):
        asked.clear(); grid._metrics(BetaVAE(cell_config(Cell('conv', 1., 0, **tiny), get_dls('bars', device='cpu').info)), Bars(), trials, 'cpu')
        assert asked==dict(beta_vae_metric=((5,6,4), (trials, trials//2), {}), factor_vae_metric=((5,6,4), (trials, trials//2), dict(n_var=n)), mig=((5,6,4), (n,), {}))

# Reading and drawing

def fake(arch, beta, seed, v): return dict(settings=asdict(Cell(arch, beta, seed, **tiny)), metrics=dict(beta_vae=v, factor_vae=v/2, mig=0.), curves={k: [v, v+1] for k in ('iteration','beta','elbo','log_px','kl','beta_kl')}, about={})
def test_results_are_read_in_order(tmp_path):
    for b,s in ((10.,1), (2.,0), (10.,0)): (tmp_path/f'sdn_beta{b:g}_seed{s}.json').write_text(json.dumps(fake('sdn', b, s, .5)))
    assert [(r['settings']['beta'],r['settings']['seed']) for r in read_grid(tmp_path)]==[(2.,0), (10.,0), (10.,1)]

def test_drawn_is_what_was_measured():
    results = [fake(a, b, s, .1*s+b/100+(a=='sdn')/4) for a in ('conv','sdn') for b in (1.,32.) for s in range(3)]
    _,ax = plt.subplots()
    draw_metric(results, 'beta_vae', ax, 1/6)
    dots = sorted((round(x,3),round(y,3)) for l in ax.lines if l.get_marker()=='o' for x,y in zip(*l.get_data()))
    want = sorted((k+(-.2 if a=='conv' else .2), round(r['metrics']['beta_vae'],3)) for r in results for a,k in [(r['settings']['arch'], [1.,32.].index(r['settings']['beta']))])
    assert dots==want and [t.get_text() for t in ax.get_xticklabels()]==['1','32']
    _,axs = plt.subplots(1, 4)
    draw_curves(results, axs, 32.)
    for i,a in enumerate(('conv','sdn')):
        y = np.array([r['curves']['kl'] for r in results if (r['settings']['arch'],r['settings']['beta'])==(a,32.)])
        np.testing.assert_allclose(axs[2].lines[i].get_ydata(), y.mean(0), rtol=1e-5)
    assert axs[0].lines[-1].get_xdata()==[3,3]
    plt.close('all')
