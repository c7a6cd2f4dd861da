"The comparison of networks with and without sweeps, at toy size: equal parameters, resumed runs, what the notebook reads"
import importlib.util, json, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from sdn_nb.layers import n_params

root = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location('use_tool', root/'tools/use.py')
use = importlib.util.module_from_spec(spec)
spec.loader.exec_module(use)

@pytest.fixture
def run(tmp_path, monkeypatch):
    "Run the command with so few steps that it takes a second or two"
    threads = torch.get_num_threads()
    monkeypatch.setitem(use.TASKS, 'digits', lambda: use.Fill('digits', 17, (6,8,10), 8, 20, 3e-3))
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['use.py','--steps','4','--bs','4','--rounds','2','--out',str(tmp_path),*args])
        use.main()
        return tmp_path
    yield run
    torch.set_num_threads(threads)

def read(out, name): return json.loads((out/f'use_{name}.json').read_text())

def test_runs_are_resumed(run):
    few = read(run('--only', 'digits', '--seeds', '1'), 'digits')
    out = run('--only', 'digits', '--seeds', '2')
    more = read(out, 'digits')
    (out/'use_digits.json').unlink()
    again = read(run('--only', 'digits', '--seeds', '1'), 'digits')
    assert again['runs']['ResSDN'][0]['curve']==few['runs']['ResSDN'][0]['curve'] # a seed gives the same run
    assert more['times']==few['times']                                       # measured once
    for kind,runs in more['runs'].items():
        assert runs[0]==few['runs'][kind][0] and [r['seed'] for r in runs]==[0,1]
        steps = [n for n,_ in runs[0]['curve']]
        assert steps[:4]==[1,2,3,4] and steps==sorted(set(steps))            # convolutions may have gone on
    with np.load(out/'use_digits.npz') as kept:
        assert set(kept)=={'whole','given',*more['runs']}
        assert all(a.dtype==np.uint8 and a.shape==(16,1,8,8) for a in kept.values())
        seen = np.tile(use.TASKS['digits']().seen.numpy(), (4,1,1,1)).astype(bool)
        assert (kept['ResSDN'][seen]==kept['whole'][seen]).all()              # what is seen stays

@pytest.mark.parametrize('name', ['digits','photos'])
def test_networks_have_equal_parameters(name):
    sizes = [n_params(make()) for make in use.TASKS[name]().networks().values()]
    assert len(sizes)>1 and max(sizes)/min(sizes)<1.01

def test_what_is_missing_is_not_seen():
    task = use.TASKS['digits']()
    k = task.valid[:4].clone()
    hidden = (1-task.seen).bool().expand_as(k)
    changed = torch.where(hidden, 16-k, k)
    net = task.networks()['ResSDN']()
    with torch.no_grad(): a,b = (task.logits(net, x, task.seen) for x in (k,changed))
    assert torch.equal(a, b) and not torch.equal(k, changed)

def test_bits_of_a_guess_are_those_of_all_levels():
    task = use.TASKS['digits']()
    guess = lambda x: torch.zeros(len(x), 17, 8, 8)
    assert abs(task.judge(guess)-np.log2(17))<1e-5

def test_a_photo_returned_unchanged_is_bicubic():
    task = use.TASKS['photos']()
    net = task.networks()['convolutions']()
    for p in net.net.parameters(): torch.nn.init.zeros_(p)
    with torch.no_grad(): assert abs(task.judge(net)-task.plain())<1e-4

def test_costs(tmp_path):
    use.costs(tmp_path/'use_costs.json', 2, features=(8,), sizes=(4,))
    rows = read(tmp_path, 'costs')['rows']
    assert [r['directions'] for r in rows]==[1,2,4] and rows[0]['parameters']<rows[2]['parameters']
    assert all(r['of_convolutions'][0]>0 and r['memory_of_convolutions']>1 for r in rows)
