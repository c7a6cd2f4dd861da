"Properties of sdn_nb.compare: the table holds what files say and nothing else, damaged runs are refused by name, the page is one file."
import json, re
from dataclasses import replace
import pytest, torch
from sdn_nb.compare import as_text, comparison, comparison_page, differing_settings, measured, read_compared, remarks, sample_picture, sdn_compare
from sdn_nb.layers import n_params
from sdn_nb.runs import write_evaluation
from sdn_nb.saving import shipped
from sdn_nb.vae import SDNVAE, VAEConfig

small = VAEConfig((8,12), channels=1, levels=17, depth=2, downsample=(1,), h=6, z=2, features=5, mix=2)
HISTORY = 'epoch,train_loss,valid_loss,bpd,rate,distortion,time\n0,90.5,80.5,2.5,0.1,2.4,00:02\n1,70.5,60.5,2.25,0.25,2.0,1:00:03\n'

def make(folder, cfg=small, evaluation=None, history=HISTORY, **sections):
    torch.manual_seed(0)
    SDNVAE(cfg).save_pretrained(folder, **sections)
    if history: (folder/'history.csv').write_text(history)
    if evaluation is not None: (folder/'evaluation.json').write_text(json.dumps(evaluation))
    return folder

def training(**more): return dict(dataset='digits', seed=0, size=None, lr=.01) | more
def images(name='digits', sha='a'): return dict(name=name, image_size=[8,12], n_train=10, n_valid=5, sha256=sha)

@pytest.fixture
def two(tmp_path):
    a = make(tmp_path/'a', training=training(), data=images(), evaluation=dict(elbo_bpd=2.25), versions=dict(device='cpu'))
    b = make(tmp_path/'b', replace(small, sdn=False), training=training(lr=.02, new=[1,2]), data=images(), evaluation=dict(elbo_bpd=3.5, test=dict(iw_64=dict(bpd=3., stderr=.1, n=9))))
    return a,b

def row(table, label): return next(rows[label] for rows in table.values() if label in rows)

# Files of different runs

def test_figures_of_other_weights(tmp_path):
    "Of a model that was trained on, or saved again, since it was judged"
    old = make(tmp_path/'a')
    write_evaluation(old, dict(elbo_bpd=2.25))
    assert read_compared(old).figures['elbo_bpd']==2.25
    torch.manual_seed(1)
    SDNVAE(small).save_pretrained(old)
    assert read_compared(old).figures=={} and remarks([read_compared(old)])[-1]==f'{old} has no figures of these weights: sdn_eval writes some.'
    SDNVAE.write_card(old)
    assert '2.25' not in (old/'README.md').read_text()

def test_history_of_another_run(tmp_path):
    mixed = make(tmp_path/'a', history='epoch,bpd,run\n0,2.5,12e4\n', run='12e4')
    assert read_compared(mixed).history.bpd.tolist()==[2.5]
    (mixed/'history.csv').write_text('epoch,bpd,run\n0,2.5,12e5\n')
    with pytest.raises(ValueError, match='a can.t be compared: .*history.csv and config.json are of different runs'): read_compared(mixed)

# The table

def test_what_differs_and_what_is_measured(two):
    a,b = runs = [read_compared(f) for f in two]
    assert differing_settings(runs)==dict(sdn=['True','False'], lr=['0.01','0.02'])
    table = comparison(runs)
    assert row(table, 'ELBO, when training ended')==['2.250','3.500']
    assert row(table, 'test: 64 samples, importance-weighted')==['','3.000 ± 0.100']
    assert row(table, 'parameters')==[f'{n_params(SDNVAE(c)):,}' for c in (small, replace(small, sdn=False))]
    assert row(table, 'epochs done')==['2','2'] and row(table, 'time of training')==['1 h 0 min']*2 and row(table, 'device')==['cpu','']
    assert remarks(runs)==[]

def test_nothing_is_invented(tmp_path):
    bare = read_compared(make(tmp_path/'bare', history=None))
    assert bare.history is None and measured(bare)=={}
    table = comparison([bare, bare])
    assert [label for rows in table.values() for label in rows]==['parameters']
    assert remarks([bare])==[f'{bare.name} does not say which images it was trained on.', f'{bare.name} has no figures of these weights: sdn_eval writes some.']

def test_a_setting_that_was_not_written_stays_blank(tmp_path):
    runs = [read_compared(make(tmp_path/n, training=training(**t))) for n,t in dict(a={}, b=dict(warmup=.1), c=dict(warmup=.2)).items()]
    assert differing_settings(runs)==dict(warmup=['','0.1','0.2'])
    assert differing_settings(runs[:2])=={} # one alone has written it: whether they differ is not known

def test_of_another_version(two):
    a,b = two
    config = json.loads((a/'config.json').read_text())
    config['model']['gates'] = 7
    (a/'config.json').write_text(json.dumps(config))
    (a/'evaluation.json').write_text(json.dumps(dict(elbo_bpd='2.25', score=3, valid=[1], test=dict(elbo=dict(nats=3)))))
    run = read_compared(a)
    assert run.parameters is None and measured(run)=={} and row(comparison([run, read_compared(b)]), 'parameters')[0]==''
    assert any('of another version' in note for note in remarks([run]))
    assert sample_picture(run)==(None,'')
    (a/'samples.png').write_bytes(b'png')
    assert sample_picture(run)==(b'png',"the run's samples.png")
    assert comparison_page([run, read_compared(b)]).count('<img')==2

def test_without_weights_the_runs_own_picture_serves(two):
    (two[0]/'model.safetensors').unlink()
    run = read_compared(two[0])
    assert run.parameters==n_params(SDNVAE(small)) and sample_picture(run)==(None,'')

def test_a_model_that_diverged_has_no_samples(two):
    model = SDNVAE.from_pretrained(two[0])
    model.top.data[:] = torch.nan
    model.save_pretrained(two[0])
    assert sample_picture(read_compared(two[0]))==(None,'')

@pytest.mark.parametrize('change,differ', [({}, False), (dict(sha='b'), True), (dict(name='photos'), True)], ids=str)
def test_other_images_are_told(tmp_path, change, differ):
    runs = [read_compared(make(tmp_path/n, data=images(**c), evaluation={'elbo_bpd':1.})) for n,c in dict(a={}, b=change).items()]
    assert any("can't be compared" in note for note in remarks(runs))==differ

def test_history_with_fewer_columns(two):
    (two[0]/'history.csv').write_text('epoch,valid_loss\n0,1\n1,2\n')
    table = comparison(runs := [read_compared(f) for f in two])
    assert row(table, 'epochs done')==['2','2'] and row(table, 'time of training')==['','1 h 0 min']
    assert '<svg' in comparison_page(runs)

def test_text_is_aligned(two):
    table = comparison([read_compared(f) for f in two])
    lines = as_text(table, ['a','b']).splitlines()
    assert len({line.index(text) for line,text in zip(lines[2:4], ('True','0.01'))})==1 and 'SETTINGS THAT DIFFER' in lines

# The page

def test_page_is_one_file_and_escapes(two):
    a,b = (read_compared(f) for f in two)
    page = comparison_page([a._replace(name='<script>x'), b])
    assert page==comparison_page([a._replace(name='<script>x'), b])
    assert '<script' not in page and '&lt;script&gt;x' in page and not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count('data:image/png')==2 and page.count('<svg')==1

def test_same_model_same_samples(two, tmp_path):
    again = make(tmp_path/'again')
    assert sample_picture(read_compared(two[0]))==sample_picture(read_compared(again))
    assert sample_picture(read_compared(again))!=sample_picture(read_compared(again), seed=1)

# The command

def test_command(two, tmp_path, capsys):
    sdn_compare.main([*map(str, two), 'digits', '--out', str(tmp_path/'page')])
    said = capsys.readouterr().out
    assert said.rstrip().endswith('index.html') and "can't be compared with one another" in said and '2.250' in said
    page = (tmp_path/'page'/'index.html').read_text()
    assert 'sdn_compare' in page and all(str(f) in page for f in two)
    sdn_compare.main([*map(str, two), '--out', str(tmp_path/'page')]) # its own page is replaced
    assert (tmp_path/'page'/'index.html').read_text()!=page

def test_a_page_of_somebody_else_stays(two, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'index.html').write_text('mine')
    with pytest.raises(SystemExit, match='no page of this command'): sdn_compare.main([*map(str, two), '--out', str(tmp_path/'mine')])
    assert (tmp_path/'mine'/'index.html').read_text()=='mine'

@pytest.mark.parametrize('file,text,words', [
    ('config.json', '{', 'JSONDecodeError|Expecting'), ('config.json', '[]', 'must hold a JSON object'), ('config.json', '{"model": 3}', 'does not define a model'),
    ('config.json', None, 'has no config.json'), ('history.csv', 'epoch,bpd\n0,good\n', 'not a table of numbers'), ('history.csv', 'a,b\n1,2\n', 'column epoch'),
    ('history.csv', 'epoch,time\n0,soon\n', 'not a table of numbers'), ('evaluation.json', '{"elbo_bpd": 1', 'is damaged'), ('evaluation.json', '3', 'is damaged'),
    ('model.safetensors', 'x', 'is damaged')])
def test_damaged_runs_are_refused_by_name(two, tmp_path, file, text, words):
    if text is None: (two[1]/file).unlink()
    else: (two[1]/file).write_text(text)
    with pytest.raises(SystemExit, match=f'^error: .*({words})') as e: sdn_compare.main([*map(str, two), '--out', str(tmp_path/'page')])
    assert str(two[1]) in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'page').exists()

@pytest.mark.parametrize('names,words', [(['digits'], 'at least two runs'), (['digits','digits'], 'named twice'), (['digits','no-such'], "no folder 'no-such'")])
def test_refused(names, words, tmp_path):
    with pytest.raises(SystemExit, match=words): sdn_compare.main([*names, '--out', str(tmp_path)])

def test_models_of_the_package():
    runs = [read_compared(name) for name in shipped()]
    assert len(runs)>1 and all(r.parameters and r.history is not None and measured(r) for r in runs)
