"""tools/arms.py: the models that are compared have the same size, and what was trained is not trained again."""
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest, torch
from types import SimpleNamespace
from sdn_nb.vae import SDNVAE

file = Path(__file__).parents[1]/'tools/arms.py'
pytestmark = pytest.mark.skipif(not file.exists(), reason='the tools are part of the repository')

@pytest.fixture
def tool(arms): return arms

@pytest.mark.parametrize('scale', ['14_cpu', '28_cuda', 'photos_cpu'])
def test_arms_have_the_same_size(tool, scale):
    arms = tool.arms(tool.SCALES[scale].config)
    sizes = {name: tool.size(cfg) for name,cfg in arms.items()}
    equal = [n for name,n in sizes.items() if name!='convolution, equal width']
    assert len(arms)==5 and max(equal)/min(equal)<1.05 and sizes['convolution, equal width']<.75*sizes['SDN']
    assert {*tool.SCALES[scale].arms}<={*arms}

def test_only_two_arms_see_the_whole_map(tool):
    "One changed place of a state's map changes what comes out far away, or it does not"
    torch.manual_seed(0)
    far = {}
    for name,cfg in tool.arms(tool.SMALL).items():
        model = SDNVAE(replace(cfg, h=8, features=8)).double().eval()
        x = torch.randn(1, 8, 14, 14, dtype=torch.double)
        with torch.no_grad(): a,b = (model.last(x.index_put(tuple(torch.tensor([i]) for i in (0,0,2,2)), torch.tensor([v]).double())) for v in (0.,1.))
        far[name] = (a-b)[0,:,12,12].abs().max().item()
    assert {name for name,d in far.items() if d>0}=={'SDN','non-local'}

def test_halved(tool):
    k = torch.tensor([[[[0,1,10,10],[1,1,10,11]]]], dtype=torch.uint8)
    assert tool.halved(SimpleNamespace(dataset=SimpleNamespace(levels=k))).tolist()==[[[[1,10]]]]

def test_ablations_change_what_they_say(tool):
    cfgs = [replace(tool.SMALL, **c) for c in tool.ABLATIONS.values()]
    assert len({tool.size(c) for c in cfgs})==len(cfgs) and tool.SMALL not in cfgs

def test_the_best_rate_is_taken(tool):
    tried = dict(SDN={f'{lr:g}': dict(time=dict(valid=dict(bpd=b))) for lr,b in zip(tool.RATES, (3.,2.,4.))})
    assert tool.rate_of(dict(rates=tried), 'SDN')==.004 and tool.rate_of(dict(rates={}), 'SDN')==.004
    plan = tool.plan('photos_cpu', dict(rates={}, arms={}, ablations={}), dict(rates=tried), 'cpu', 2, False, ['arms'])
    assert [(where[1],where[2]) for where,_ in plan]==[(n, s) for s in (0,1) for n in ('SDN','convolution','gated block')]
    assert all(j['lr']==.004 and j['seconds']==240 and j['steps']==600 for _,j in plan)

def test_command_trains_and_knows_what_is_done(tool, tmp_path):
    args = ['photos_cpu', '--only', 'arms', '--seeds', '1', '--workers', '1', '--toy', '--out', tmp_path/'a.json']
    p = subprocess.run([sys.executable, file, *args], capture_output=True, text=True, check=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    result = json.loads((tmp_path/'a.json').read_text())
    assert p.stdout.count('bits/dim')==3
    left = [where for where,_ in tool.plan('photos_cpu', result, result, 'cpu', 2, True, ['arms'])]
    assert left==[('arms',name,1) for name in ('SDN','convolution','gated block')]
    for name,(run,) in result['arms'].items():
        assert run['seed']==0 and run['steps']['steps']==3 and run['time']['seconds']>=2.4 and len(run['kl'])==3
        assert run['iw']['bpd']<run['time']['test']['bpd'] and [c['steps'] for c in run['curve']]==sorted(c['steps'] for c in run['curve'])
    with np.load(tmp_path/'a.npz') as samples: assert {k: v.shape for k,v in samples.items()}==dict.fromkeys(result['arms'], (36,3,32,32))
