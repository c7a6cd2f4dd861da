"The folder of a run and its settings: one field is all that an option needs, older runs are read, and what is not a run's is left alone"
from dataclasses import asdict, dataclass, fields

import pytest
from sdn_nb import runs
from sdn_nb.cli import sdn_train
from sdn_nb.commands import command
from sdn_nb.runs import CONFIG, FILES, Settings, begin, is_ours, read_run, resumed
from sdn_nb.saving import model_folder, shipped
from sdn_nb.vae import PRESETS, RECIPES, SDNVAE

def saved(folder, **training):
    "A folder whose config.json has these settings"
    return SDNVAE.from_preset('digits').save_pretrained(folder, training=training, data={})

# Settings

@dataclass(frozen=True)
class More(Settings):
    "Settings, and one more option in one line"
    dropout:float = runs.setting(.1, (lambda v: 0<=v<1, 'from 0 to below 1')) # share of features that are left out

def test_an_option_is_one_field(capsys):
    "Its option and help, its default, its check, whether it may change, and its entry in config.json"
    got = []
    @command('dataset', settings=More)
    def train(**given): got.append(given)
    with pytest.raises(SystemExit): train.main(['--help'])
    assert '--dropout float' in (out := capsys.readouterr().out) and 'share of features that are left out; 0.1 if left out' in ' '.join(out.split())
    train.main(['digits', '--dropout', '.5'])
    assert got==[dict(dataset='digits', dropout=.5)]
    assert asdict(More())==asdict(Settings())|dict(dropout=.1)
    with pytest.raises(ValueError, match='sdn_train: --dropout must be from 0 to below 1, got 1.0'): More(dropout=1.)
    with pytest.raises(ValueError, match='dropout was 0.1 and 0.5 is asked for'): resumed(More(), dropout=.5)

def test_every_setting_is_explained(capsys):
    with pytest.raises(SystemExit): sdn_train.main(['--help'])
    helps = capsys.readouterr().out
    for f in fields(Settings):
        if f.metadata.get('option', True) and f.name!='dataset': assert f"--{'no-' if f.default is True else ''}{f.name} " in helps, f.name

def test_keys_of_a_run_stay():
    "Those of every run so far, in their order"
    keys = 'dataset preset epochs bs lr ema seed sdn size path width recompute graphs precision accumulate warmup minutes sample_every tensorboard wandb threads steps hours repeat damaged init changes'
    assert list(asdict(Settings()))==keys.split()
    assert asdict(Settings())==dict(dataset='digits', preset='digits', epochs=60, bs=32, lr=1e-2, ema=.995, seed=0, sdn=True, size=None, path=None, width=None, recompute=False,
        graphs=True, precision='fp32', accumulate=1, warmup=0., minutes=10., sample_every=10, tensorboard=False, wandb=False, threads=None,
        steps=None, hours=None, repeat=1, damaged='stop', init=None, changes=None)

@pytest.mark.parametrize('name', PRESETS)
def test_recipe_of_each_preset(name):
    s,r = Settings(preset=name),RECIPES[name]
    assert (s.epochs,s.bs,s.lr,s.ema)==(r.epochs,r.bs,r.lr,r.ema)

def test_a_preset_without_recipe_is_refused(monkeypatch):
    monkeypatch.setitem(PRESETS, 'mine', PRESETS['digits'])
    with pytest.raises(ValueError, match="preset 'mine' has no recipe"): Settings('digits', 'mine')
    assert Settings('digits', 'mine', epochs=1, bs=1, lr=1., ema=.9).preset=='mine'      # as in a run that was trained elsewhere

def test_free_settings_change_and_others_do_not():
    other = dict(dataset='photos', preset='photos', epochs=1, bs=1, lr=.5, ema=.5, seed=1, sdn=False, size=9, path='/', width=9, recompute=True, graphs=False, precision='bf16',
        accumulate=9, warmup=9., minutes=1., sample_every=1, tensorboard=True, wandb=True, threads=9, steps=9, hours=9., repeat=9, damaged='skip', init='digits', changes=dict(h=9))
    assert list(other)==[f.name for f in fields(Settings)]
    free = {'epochs','path','recompute','graphs','minutes','sample_every','tensorboard','wandb','threads','steps'}
    for k,v in other.items():
        if k in free: assert getattr(resumed(Settings(), **{k: v}), k)==v
        else:
            with pytest.raises(ValueError, match=f'{k} was .* is asked for'): resumed(Settings(), **{k: v})

def test_folders_are_known_by_their_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('mine','digits','shapes3d'): (tmp_path/name).mkdir()
    assert Settings('mine').dataset==str(tmp_path/'mine') and Settings('mine', path='mine').path==str(tmp_path/'mine')
    assert Settings('digits').dataset=='digits' and Settings('shapes3d').dataset=='shapes3d'   # the set, as for get_dls

# Runs that are there

@pytest.mark.parametrize('name', shipped())
def test_shipped_runs_are_read(name):
    settings,data = read_run(model_folder(name))
    assert (settings.dataset,settings.preset,data['name'])==(name,)*3

def test_settings_that_came_later_have_their_defaults(tmp_path):
    early = dict(dataset='digits', preset='digits', epochs=3, bs=512, lr=1e-2, ema=.995, seed=1, sdn=False, size=None)
    assert read_run(saved(tmp_path, **early))[0]==Settings(**early)

@pytest.mark.parametrize('training', [{}, dict(lr=.1), dict(dataset='digits'), dict(dataset='digits', seed=0, size=None, dropout=.1), dict(dataset='digits', seed=0, size=None, lr='much')], ids=str)
def test_what_is_no_run_is_refused(tmp_path, training):
    with pytest.raises(ValueError, match=f'{CONFIG} is not that of a run of sdn_train'): read_run(saved(tmp_path, **training))

def test_begin_writes_nothing(tmp_path):
    saved(tmp_path/'a', **asdict(Settings(bs=8)))
    (tmp_path/'a'/runs.CHECKPOINT).touch()
    before = {p: p.read_bytes() for p in (tmp_path/'a').iterdir()}
    assert begin(tmp_path/'a', True, False, epochs=7)[0]==Settings(bs=8, epochs=7)
    assert begin(tmp_path/'a', False, True, bs=4)==(Settings(bs=4),None)
    assert begin(tmp_path/'b', False, False)==(Settings(),None)
    assert {p: p.read_bytes() for p in (tmp_path/'a').iterdir()}==before and not (tmp_path/'b').exists()

# Names

@pytest.mark.parametrize('name,ours', [*((f,True) for f in FILES), *((f'.{f}.tmp',True) for f in FILES), ('samples_epoch_010.png',True), ('samples_epoch_1000.png',True),
    ('iw_valid_k8_seed0.jsonl',True), ('iw_test_k1024_seed17.jsonl',True), ('.iw_test_k1024_seed17.jsonl.tmp',True), ('samples_epoch_x.png',False), ('iw_train_k8_seed0.jsonl',False),
    ('iw_valid_k8_seed0xjsonl',False), ('checkpoint.pt.txt',False), ('.checkpoint.pt',False), ('samples_n64_t1_seed0.png',False), ('notes.txt',False)])
def test_files_of_a_run(name, ours): assert is_ours(name)==ours
