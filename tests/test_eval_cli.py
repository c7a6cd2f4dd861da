"sdn_eval as a process: its figures, what it writes, what it refuses, and death in the middle."
import json, re, shutil, signal
from pathlib import Path
import pytest, torch
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd, iw_bpd
from sdn_nb.vae import SDNVAE
from test_cli import pngs, quick, refused, run, spoilt, trained, tree

results = Path(__file__).parent.parent/'sdn_nb'/'models'/'digits'
def figures(folder): return json.loads((folder/'evaluation.json').read_text())

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run on a folder without parts, and one on a folder with three"
    work = tmp_path_factory.mktemp('made')
    pngs(work/'grey', 40)
    for part,n in dict(train=12, valid=3, test=5).items(): pngs(work/'parted'/part, n, seed=100*n)
    trained(work, 'grey', *quick, '--out', 'a')
    trained(work, 'parted', *quick, '--out', 'b')
    return work

@pytest.fixture
def work(made, tmp_path):
    "A copy of the runs, whose images stay where they are"
    for name in 'ab': shutil.copytree(made/name, tmp_path/name)
    return tmp_path

def evaluated(work, *argv):
    code,out,err = run(work, 'sdn_eval', *argv)
    assert code==0, err
    return out

def test_figures_are_those_of_the_library(work, made):
    before = figures(work/'a')
    out = evaluated(work, 'a', '--samples', 12, '--seed', 3, '--bs', 8, '--device', 'cpu')
    now = figures(work/'a')
    model,dl = SDNVAE.from_pretrained(work/'a'),get_dls(str(made/'grey'), bs=32, device='cpu').valid
    iw = iw_bpd(model, dl, 12, 3, bs=8, progress=False)
    assert now['valid']['elbo']['bpd']==pytest.approx(elbo_bpd(model, dl, 3, progress=False), rel=1e-6)
    assert now['valid']['iw_12']==dict(bpd=pytest.approx(iw.bpd, rel=1e-6), stderr=pytest.approx(iw.stderr, rel=1e-4), n=4, samples=12, seed=3)
    assert {k: now[k] for k in before}==before and now.keys()==before.keys()|{'valid'}
    rows = re.findall(r'^(validation images|ELBO|importance-weighted) +(.*)$', out.replace('\r','\n'), re.M)
    assert rows==[('validation images','4'), ('ELBO', f"{now['valid']['elbo']['bpd']:.3f} ± {now['valid']['elbo']['stderr']:.3f} bits/dim"), ('importance-weighted', f'{iw}, 12 samples')]

def test_elbo_is_what_training_said(work):
    for name in 'ab':
        assert 'importance' not in evaluated(work, name)
        f = figures(work/name)
        assert f['valid']['elbo']['bpd']==pytest.approx(f['elbo_bpd'], rel=1e-6)

def test_parts_of_a_set(work):
    evaluated(work, 'b', '--samples', 2)
    assert 'test images             5\n' in evaluated(work, 'b', '--split', 'test', '--samples', 2)
    f = figures(work/'b')
    assert (f['valid']['iw_2']['n'], f['test']['iw_2']['n'])==(3,5) and f['valid']['elbo']['bpd']!=f['test']['elbo']['bpd']
    assert {p.name for p in (work/'b').glob('iw*')}=={'iw_valid_k2_seed0.jsonl','iw_test_k2_seed0.jsonl'}

def test_same_command_same_figures(work):
    shutil.copytree(work/'a', work/'c')
    for name in 'aac': evaluated(work, name, '--samples', 5)
    assert figures(work/'a')==figures(work/'c')
    evaluated(work, 'a', '--samples', 5, '--seed', 1)
    assert figures(work/'a')['valid']['iw_5']['bpd']!=figures(work/'c')['valid']['iw_5']['bpd']

@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT])
def test_goes_on_where_it_was_stopped(work, sig):
    shutil.copytree(work/'a', work/'c')
    line = '--samples', 12, '--bs', 4                                   # four images, three calls each
    evaluated(work, 'c', *line)
    code,out,err = run(work, 'sdn_eval', 'a', *line, trip=('sdn_nb.vae.SDNVAE.log_weights', 7, sig))
    assert (code,err)==((-sig,'') if sig==signal.SIGKILL else (1,'\nstopped; the same command goes on where it stopped\n'))
    kept = (work/'a'/'iw_valid_k12_seed0.jsonl').read_bytes()
    assert len(kept.splitlines())==1+2 and 'iw_12' not in figures(work/'a')['valid']
    code,_,_ = run(work, 'sdn_eval', 'a', *line, trip=('sdn_nb.vae.SDNVAE.log_weights', 6, signal.SIGKILL))
    assert code==0                                                      # it had two images left: six calls
    a,c = tree(work/'a'),tree(work/'c')
    cards = [str(t.pop(next(k for k in t if str(k).endswith('README.md')))).replace('# c', '# a') for t in (a,c)]
    assert figures(work/'a')==figures(work/'c') and a==c and len(cards[0])==len(cards[1])

def test_run_of_an_older_version(work):
    "Its config.json lacks settings and fields that came later"
    shutil.copytree(results, work/'digits')
    before = figures(work/'digits')
    config = json.loads((work/'digits'/'config.json').read_text())
    for k in 'n_test','version': config['data'].pop(k, None)
    (work/'digits'/'config.json').write_text(json.dumps(config))
    evaluated(work, 'digits')
    assert figures(work/'digits')['valid']['elbo']['bpd']==pytest.approx(before['elbo_bpd'], rel=1e-4)

def damaged(work, file, old, new): (work/'a'/file).write_text((work/'a'/file).read_text().replace(old, new))

@pytest.mark.parametrize('line,words,make', [
    ('none', ["no folder 'none'"], None), ('a --split train', ['--split must be valid or test, got train'], None),
    ('a --samples 0', ['--samples must be at least 1, got 0'], None), ('a --bs -1', ['--bs must be at least 1, got -1'], None), ('a --seed -1', ['--seed must be'], None),
    ('a --split test', ['no test part', '--split valid'], None), ('a --device abacus', ['--device abacus'], None), ('a --device cuda:99', ['--device cuda:99'], None),
    ('a', ['config.json', "KeyError: 'training'"], lambda w: SDNVAE.from_pretrained(w/'a').save_pretrained(w/'a')),
    ('a', ['images of grey have changed', '(sha256)'], lambda w: damaged(w, 'config.json', '"sha256": "', '"sha256": "0')),
    ('a', ['does not say which images', 'n_valid'], lambda w: damaged(w, 'config.json', '"n_valid": 4,', '')),
    ('a', ['neither a data set', 'nor a folder'], lambda w: damaged(w, 'config.json', '/grey"', '/gone"')),
    ('a', ['evaluation.json is damaged'], lambda w: damaged(w, 'evaluation.json', '{', '')),
    ('a', ['model.safetensors'], lambda w: spoilt(w/'a', 'model.safetensors', lambda f: f.read_bytes()[:999]))], ids=lambda v: 'damage' if callable(v) else str(v))
def test_refuses(work, line, words, make):
    if make: make(work)
    refused(work, 'sdn_eval', *line.split(), words=words)

def test_refuses_to_go_on_with_another_model(work):
    evaluated(work, 'a', '--samples', 3)
    model = SDNVAE.from_pretrained(work/'a')
    with torch.no_grad(): model.top += 1
    config = json.loads((work/'a'/'config.json').read_text())
    model.save_pretrained(work/'a', **{k:v for k,v in config.items() if k!='model'})
    kept = (work/'a'/'iw_valid_k3_seed0.jsonl').read_bytes()
    code,_,err = run(work, 'sdn_eval', 'a', '--samples', 3)
    assert code==1 and re.search(r'error: iw_bpd: a/iw_valid_k3_seed0.jsonl is of another evaluation: model was \w{12} and is \w{12} now. .*remove it', err)
    assert (work/'a'/'iw_valid_k3_seed0.jsonl').read_bytes()==kept
    (work/'a'/'iw_valid_k3_seed0.jsonl').unlink()
    evaluated(work, 'a', '--samples', 3)

def test_overwritten_with_its_run(work, made):
    evaluated(work, 'a', '--samples', 3)
    trained(work, made/'grey', *quick, '--out', 'a', '--overwrite')
    assert not list((work/'a').glob('iw*')) and 'valid' not in figures(work/'a')
