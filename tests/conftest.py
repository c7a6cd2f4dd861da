"What the tests start inherits from here: one thread, since tensors are small; and Ctrl-C, which a shell takes from what it starts in the background"
import os, signal
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
