"All tests here are marked `gpu`; without a CUDA device they are skipped, or fail where one is required"
import json, os
from pathlib import Path
import pytest, torch
from .common import cuda, current_stream, device, kernels, rehearse, required, synchronize, worst

def _spread(items):
    "The presets of the paper first, which take longest; slow files among the others, so that no process gets all of one"
    files = [i.path for i in items]
    place = [(f.name!='test_presets.py', files[:k].count(f)/files.count(f), k) for k,f in enumerate(files)]
    return [items[k] for *_,k in sorted(place)]

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    ours = [i for i in items if here in i.path.parents]
    for i in ours: i.add_marker('gpu')
    if hasattr(config, 'workerinput'): items[:] = [i for i in items if i not in ours] + _spread(ours)

def pytest_runtest_setup(item):
    if cuda: return
    if required: pytest.fail('SDN_REQUIRE_GPU=1, but torch sees no CUDA device', pytrace=False)
    if not rehearse: pytest.skip('needs a CUDA device: none here')

def pytest_sessionfinish():
    folder = os.environ.get('SDN_GPU_REPORT')
    if not folder or not worst: return
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder)/f'errors_{os.getpid()}.json').write_text(json.dumps(worst, indent=1))

@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    "The same random numbers every time, exact products, no sweep remembered; a rehearsal has a GPU of two processors"
    torch.manual_seed(0)
    if rehearse: monkeypatch.setattr(kernels, '_processors', lambda x: 2)
    torch.set_float32_matmul_precision('highest')
    yield
    synchronize()
    kernels._sweeps.clear()
    torch.set_float32_matmul_precision('highest')
    if cuda: torch.cuda.empty_cache()

@pytest.fixture
def deterministic():
    "Deterministic mode, in which new tensors come filled with NaN"
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=device).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

@pytest.fixture
def recorded(monkeypatch):
    "The loops of the sweeps that are recorded; in a rehearsal a recording runs the loop again"
    log,real = [],kernels._record
    monkeypatch.setattr(kernels, '_record', lambda s: log.append(s.loop) or (real(s) if cuda else lambda: s.loop(s)))
    if not cuda:
        monkeypatch.setattr(kernels, '_may_record', lambda given,new: 0<kernels._bytes_of(given,new)<=kernels.GRAPH_BYTES)
        monkeypatch.setattr(torch.cuda, 'current_stream', current_stream)
        monkeypatch.setattr(torch.cuda, 'synchronize', lambda *a: None)
    return log
