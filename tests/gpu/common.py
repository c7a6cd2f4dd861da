"Where the GPU tests run, and what several of them need. In a rehearsal kernels are interpreted and sizes small"
import os
from contextlib import contextmanager
from types import SimpleNamespace
import pytest, torch

cuda = torch.cuda.is_available()
rehearse = not cuda and os.environ.get('SDN_GPU_REHEARSE')=='1'
required = os.environ.get('SDN_REQUIRE_GPU')=='1'
device = 'cuda' if cuda else 'cpu'
if cuda:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')      # deterministic mode wants it
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')      # graphs are tiny
if rehearse: os.environ['TRITON_INTERPRET'] = '1'                    # read when kernels are defined

from torch import nn
from sdn_nb import scan
from sdn_nb.scan import triton_sweep as kernels
from sdn_nb.layers import SubLayer

if rehearse and not kernels._interpreted():
    raise pytest.UsageError('Kernels were imported before rehearsing: run SDN_GPU_REHEARSE=1 pytest -m gpu tests/gpu')

BACKENDS = sorted(n for n in scan.BACKENDS if n.startswith('triton'))
LINES = BACKENDS[-1]                     # one launch a line, recorded from the second call on
PRECISIONS = dict(fp32=(torch.float32,'highest'), tf32=(torch.float32,'high'),
                  fp16=(torch.float16,'highest'), bf16=(torch.bfloat16,'highest'))
DTYPES = dict(fp16=torch.float16, bf16=torch.bfloat16)
NAMES = ('y','x','weight_ih','weight_hh','bias_ih','bias_hh')        # the output, then what gradients belong to
worst = {}                                                           # largest error seen, by precision and name

def either(on_gpu, in_rehearsal): return in_rehearsal if rehearse else on_gpu

def only_cuda(why):
    "Leave the rest of a test out of a rehearsal"
    if not cuda: pytest.skip(f'not rehearsed: {why}')

def arguments(size, dtype=torch.float32):
    "A map and the parameters of a cell, the same numbers on any device"
    cell = nn.GRUCell(3*size[1], size[1]).parameters()
    return [torch.randn(size).to(device, dtype), *(p.detach().to(device, dtype) for p in cell)]

def gradients(f, args, dy):
    "Output of `f`, and gradients of all its arguments; zeros where there is none"
    args = [a.detach().requires_grad_() for a in args]
    y = f(*args)
    return [y.detach(), *torch.autograd.grad(y, args, dy, allow_unused=True, materialize_grads=True)]

def reference(args, dy, direction):
    "The same of the literal loop in double precision, on the same numbers"
    return gradients(lambda *a: scan.scan_reference(*a, direction), [a.double() for a in args], dy.double())

def difference(got, want):
    "Norm of the difference relative to that of `want`; where that is zero, the norm of `got`"
    want = want.double()
    size = want.norm()
    return ((got.double()-want).norm()/torch.where(size>0, size, 1)).item() if want.numel() else 0.

def agree(got, want, tolerance, precision=None):
    "Shapes are alike, and no tensor differs by more than `tolerance`, a number or one for each name; NaN fails"
    bad = []
    for name,g,w in zip(NAMES, got, want, strict=True):
        assert g.shape==w.shape, name
        err,most = difference(g, w),tolerance[name] if isinstance(tolerance, dict) else tolerance
        if precision:
            seen = worst.setdefault(precision, {})
            if not err<=seen.get(name, 0.): seen[name] = err
        if not err<=most: bad.append(f'{name}: {err:.1e} > {most:.0e}')
    assert not bad, '; '.join(bad)

class ByLines(SubLayer):
    "A sweep that is recorded"
    def forward(self, x):
        params = self.weight_ih,self.weight_hh,self.bias_ih,self.bias_hh
        return scan.scan(x, *params, self.direction, backend=LINES)

def pair(C): return nn.Sequential(ByLines(C, 'right'), ByLines(C, 'left')).to(device)

_stream = [0]
def current_stream(*args): return SimpleNamespace(cuda_stream=_stream[0])

def streams(n):
    "`n` streams; numbers in a rehearsal"
    return [torch.cuda.Stream() for _ in range(n)] if cuda else list(range(1, n+1))

@contextmanager
def on(stream):
    "Work on a stream of `streams`, after what was begun so far"
    if cuda:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream): yield
        return
    before,_stream[0] = _stream[0],stream
    try: yield
    finally: _stream[0] = before

def synchronize():
    if cuda: torch.cuda.synchronize()
