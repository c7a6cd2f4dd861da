"What the tests start inherits from here: one thread, since tensors are small; and Ctrl-C, which a shell takes from what it starts in the background"
import os, signal, sys
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')   # read when torch is first imported
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

@pytest.fixture
def poisoned():
    "New tensors come filled with NaN; the same random numbers every time; the number of threads is as it was afterwards"
    import torch
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.randn(2).new_empty(3).isnan().all()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)

@contextmanager
def tool_module(name):
    "A command of tools/ as a module; the layers that it makes known are forgotten afterwards"
    from sdn_nb.layers import LAYERS
    spec,before = spec_from_file_location(name, Path(__file__).parents[1]/f'tools/{name}.py'),dict(LAYERS)
    sys.modules[name] = m = module_from_spec(spec)
    spec.loader.exec_module(m)
    yield m
    for layer in LAYERS.keys()-before.keys(): del LAYERS[layer]

@pytest.fixture(scope='module')
def arms():
    with tool_module('arms') as m: yield m

@pytest.fixture(scope='module')
def whys():
    with tool_module('whys') as m: yield m
