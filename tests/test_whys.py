"""tools/whys.py: its sweep is the package's where nothing is changed, and what was trained is not trained again."""
import json, subprocess, sys
from pathlib import Path

import pytest, torch
from torch.testing import assert_close
from sdn_nb.scan import DIRECTIONS, scan

file = Path(__file__).parents[1]/'tools/whys.py'
pytestmark = pytest.mark.skipif(not file.exists(), reason='the tools are part of the repository')

@pytest.mark.parametrize('d', DIRECTIONS)
def test_literal_sweep_is_the_scan(whys, d):
    torch.manual_seed(0)
    sweep,x = whys.Sweep(3, d).double(),torch.randn(2, 3, 4, 5, dtype=torch.double)
    assert_close(sweep(x), scan(x, sweep.weight_ih, sweep.weight_hh, sweep.bias_ih, sweep.bias_hh, d))

@pytest.mark.parametrize('kw', [dict(state='last'), dict(neighbours=1), dict(gates=False)], ids=str)
def test_changed_sweeps_differ_and_learn(whys, kw):
    torch.manual_seed(0)
    sweep,x = whys.Sweep(3, 'right', **kw),torch.randn(2, 3, 4, 5)
    y = sweep(x)
    assert y.shape==x.shape and not torch.equal(y, x)
    y.square().sum().backward()
    assert all(p.grad.abs().sum()>0 for p in sweep.parameters())
    reach = (sweep(x)-sweep(x.index_fill(2, torch.tensor(0), 0.))).abs().sum((0,1,3))>0   # rows that hear of row 0
    assert reach.tolist()==[True, *[kw.get('neighbours')!=1]*3]

def test_command_goes_on(tmp_path):
    def run(seeds):
        args = ['--only', 'residual', '--epochs', '1', '--seeds', str(seeds), '--out', tmp_path/'w.json', '--toy']
        p = subprocess.run([sys.executable, file, *args], capture_output=True, text=True, check=True)
        return p.stdout,json.loads((tmp_path/'w.json').read_text())
    text,first = run(1)
    assert text.count('bits/dim')==2 and [*first['answers']['residual']]==['gate','sum']
    text,second = run(2)
    assert text.count('bits/dim')==2 and 'seed 0' not in text
    for key,runs in second['runs'].items(): assert runs[0]==first['runs'][key][0] and len(runs)==2 and len(runs[0]['kl'])==4
