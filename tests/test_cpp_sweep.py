"The compiled sweep beyond what every backend is tested for: threads, bits, other instruction sets, extremes; and what happens where it can't be built"
import os, platform, random, subprocess, sys
from pathlib import Path
import pytest, torch
from sdn_nb.scan import choose_backend, cpp_sweep, scan, scan_reference, DIRECTIONS
from sdn_nb.scan.compiled import FLAGS, compiler
from test_scan import NAMES, cell, run

if compiler() is None: pytest.skip('there is no C++ compiler', allow_module_level=True)

pytestmark = pytest.mark.usefixtures('poisoned')

def agree(x, params, direction='right', recompute=False, tol=2e-5):
    "Output and gradients as those of the reference in float64: same shapes and types, error relative to the largest entry; NaN fails"
    got = run(lambda *a: scan(*a, direction, recompute, 'cpp'), x, params)
    want = run(lambda *a: scan_reference(*a, direction), x.double(), [p.detach().double().requires_grad_() for p in params])
    for name,g,w in zip(NAMES, got, want, strict=True):
        assert g.shape==w.shape and g.dtype==x.dtype, name
        if not g.numel(): continue
        err = ((g.double()-w).abs().max()/w.abs().max().clamp(min=1e-3)).item()
        if not err<=tol: raise AssertionError(f'{name}: relative error {err:.1e} > {tol:.0e}')

@pytest.mark.parametrize('C', [*range(1,19),31,32,33,48,64,65,80,96,112,128,144,160,176,192,208,224,240,256,272], ids=str)
def test_every_number_of_vectors(C): agree(torch.randn(2,C,3,4), cell(C), 'up')

@pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])
@pytest.mark.parametrize('shape', [(0,3,5,4),(1,1,1,2),(1,1,2,2),(7,2,1,5),(1,5,300,3),(1,5,3,300)], ids=str)
def test_odd_shapes(shape, recompute):
    torch.set_num_threads(3)
    for direction in DIRECTIONS: agree(torch.randn(shape), cell(shape[1]), direction, recompute)

@pytest.fixture(params=[False,True], ids=['by size','every cut'])
def cuts(request, monkeypatch):
    "Work is shared among threads where it pays; or however small it is, positions too"
    if request.param: monkeypatch.setattr(cpp_sweep, '_ENOUGH', 1), monkeypatch.setattr(cpp_sweep, '_ENOUGH_LINE', 1)

@pytest.mark.parametrize('recompute', [False,True], ids=['keep','recompute'])
@pytest.mark.parametrize('threads', [1,2,3,5,8,16])
@pytest.mark.parametrize('shape', [(1,3,9,20),(2,20,11,7),(3,17,6,18),(7,5,4,5),(40,3,5,4)], ids=str)
def test_threads_share_samples_and_positions(shape, threads, recompute, cuts):
    torch.set_num_threads(threads)
    for direction in DIRECTIONS: agree(torch.randn(shape), cell(shape[1]), direction, recompute)

def test_cuts_share_all_the_work_there_is():
    cut = cpp_sweep._cut
    assert cut(32,32,8,64,2)==(2,1)                # samples
    assert cut(32,32,1,200,2)==(1,2)               # positions of long lines
    assert cut(16,16,1,64,2)==(1,1)                # not of short ones
    assert cut(8,8,2,4,16)==(1,1)                  # a small map is one thread's
    assert cut(32,32,3,200,2)==(1,2)               # three samples for two threads: 1.5 each instead of 2
    assert cut(32,32,8,360,64)==(8,8)              # both

@pytest.mark.parametrize('layout', [lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.transpose(2,3).contiguous().transpose(2,3),
    lambda x: x.permute(3,2,0,1).contiguous().permute(2,3,1,0), lambda x: torch.cat([x,x],1)[:,:x.shape[1]], lambda x: x[:1,:1,:1,:1].expand_as(x), lambda x: torch.cat([x,x],3)[...,::2]],
    ids=['planes','channels_last','turned','lines','part','expanded','every other'])
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_any_layout(layout, direction):
    params = cell(6)
    for shape in ((2,6,5,19),(1,6,17,4)): agree(layout(torch.randn(shape)), params, direction)

def test_without_memory_there_is_an_exception():
    code = '''
import resource, torch
from sdn_nb.scan import scan
x,p = torch.randn(4,64,64,64,requires_grad=True),list(torch.nn.GRUCell(192,64).parameters())
torch.set_num_threads(2)
scan(x,*p,backend='cpp').sum().backward()
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages*resource.getpagesize()+2**22,)*2)
try: scan(torch.cat([x]*1), *p, backend='cpp').sum().backward()
except RuntimeError as e: print("can't allocate memory" in str(e))
'''
    assert elsewhere(code)=='True'

@pytest.mark.parametrize('direction', DIRECTIONS)
def test_rows_are_computed_alike_wherever_they_lie(direction, cuts):
    "Bit for bit: threads, other samples in the batch and keeping the gates make no difference"
    x,params = torch.randn(5,20,9,11),[p.detach() for p in cell(20)]
    y = scan(x,*params,direction,backend='cpp')
    for threads in (2,3,4,16):
        torch.set_num_threads(threads)
        assert scan(x,*params,direction,backend='cpp').equal(y)
    assert torch.cat([scan(s,*params,direction,backend='cpp') for s in x.split(1)]).equal(y)
    assert scan(x.clone().requires_grad_(),*params,direction,backend='cpp').equal(y)

def test_threads_change_gradients_by_rounding_alone(cuts):
    x,params,grads = torch.randn(4,20,16,9),cell(20),[]
    for threads in (1,2,5):
        torch.set_num_threads(threads)
        grads.append(run(lambda *a: scan(*a,backend='cpp'), x, params))
    for other in grads[1:]:
        for a,b in zip(grads[0],other): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

def test_open_and_shut_gates():
    "Far out, where the exponential is clamped: no infinity, no NaN, and what the reference has"
    for scale in (1e2,1e4):
        *weights,b_ih,b_hh = cell(5)
        agree(torch.randn(2,5,6,7), [*weights,*((scale*b.detach()).requires_grad_() for b in (b_ih,b_hh))])

def test_nan_goes_where_the_reference_sends_it():
    x,params = torch.randn(1,3,7,6),[p.detach() for p in cell(3)]
    x[0,1,3,2] = torch.nan
    got,want = (f(x,*params) for f in (lambda *a: scan(*a,backend='cpp'), scan_reference))
    assert 0<want.isnan().sum()<want.numel() and got.isnan().equal(want.isnan())
    torch.testing.assert_close(got, want, equal_nan=True)

def test_infinity_is_not_hidden():
    "Where the reference has NaN, from 0 times infinity, a gate that is nearly shut leaves infinity"
    x,params = torch.randn(1,3,7,6),[p.detach() for p in cell(3)]
    x[0,1,3,2] = torch.inf
    assert not scan(x,*params,backend='cpp')[0,1,3,2].isfinite()

# other processors

@pytest.fixture(params=['x86-64-v3','x86-64'])
def older(request, monkeypatch):
    "The library for a processor without AVX-512, and for one without AVX"
    if platform.machine()!='x86_64' or 'avx2' not in Path('/proc/cpuinfo').read_text(): pytest.skip('needs a processor with AVX2')
    lib = cpp_sweep._load([f.replace('native',request.param) for f in FLAGS])
    monkeypatch.setattr(cpp_sweep, '_library', lambda: lib)

@pytest.mark.parametrize('seed', range(6))
def test_older_processors(older, seed):
    r = random.Random(seed)
    torch.set_num_threads(r.randint(1,3))
    C = r.randint(1,70)
    agree(torch.randn(r.randint(1,5),C,r.randint(2,13),r.randint(2,13)), cell(C), r.choice(DIRECTIONS), r.random()<.5)

# building

def elsewhere(code, **env):
    "What `code` prints in a process of its own"
    run = subprocess.run([sys.executable,'-W','ignore','-c',code], capture_output=True, text=True, env=os.environ|env)
    assert run.returncode==0, run.stderr
    return run.stdout.strip()

CHOICE = '''
import torch
from sdn_nb.scan import scan, choose_backend
x,p = torch.randn(1,3,20,20),list(torch.nn.GRUCell(9,3).parameters())
y = scan(x,*p)
print(choose_backend(x))
try: scan(x,*p,backend='cpp')
except RuntimeError as e: print(e)
'''

@pytest.mark.parametrize('env,reason', [(dict(CXX='/bin/false',PATH=''),"/bin/false can't compile"), (dict(CXX='',PATH=''),'there is no C++ compiler: install GCC')],
                         ids=['broken compiler','no compiler'])
def test_cannot_be_built(env, reason):
    chosen,message = elsewhere(CHOICE, **env).split('\n',1)
    assert chosen=='torch' and "backend 'cpp' can't run on this `x`" in message and reason in message

def test_no_room(tmp_path):
    "Neither in the cache folder nor among temporary files"
    (tmp_path/f'sdn_nb-{os.geteuid()}').touch()
    chosen,message = elsewhere(CHOICE, XDG_CACHE_HOME='/dev/null', TMPDIR=str(tmp_path)).split('\n',1)
    assert chosen=='torch' and "backend 'cpp' can't run on this `x`" in message and message.count('Not a directory')==2

def test_no_cache_folder(tmp_path):
    assert elsewhere(CHOICE, XDG_CACHE_HOME='/dev/null', TMPDIR=str(tmp_path))=='cpp'

def test_compiler_message(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(cpp_sweep, '_SOURCE', 'int main( {')
    assert 'error' in cpp_sweep._library.__wrapped__()
    assert not list((tmp_path/'sdn_nb').iterdir())

def test_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(cpp_sweep, '_SOURCE', 'extern "C" void nowhere(); extern "C" void sweep_forward() { nowhere(); }')
    why = cpp_sweep._library.__wrapped__()
    assert "can't be loaded" in why and 'nowhere' in why and 'CXX' in why

def test_is_built_once_by_processes_that_start_together(tmp_path):
    both = [subprocess.Popen([sys.executable,'-W','ignore','-c',CHOICE], stdout=subprocess.PIPE, text=True, env=os.environ|dict(XDG_CACHE_HOME=str(tmp_path))) for _ in range(2)]
    assert [p.communicate()[0].split() for p in both]==[['cpp']]*2
    built, = (tmp_path/'sdn_nb').iterdir()
    when = built.stat().st_mtime_ns
    assert elsewhere(CHOICE, XDG_CACHE_HOME=str(tmp_path))=='cpp' and built.stat().st_mtime_ns==when

def test_chosen_where_it_suits():
    chosen = lambda C,dtype: choose_backend(torch.empty(1,C,4,4,dtype=dtype))
    assert [chosen(C,torch.float32) for C in (1,200,400,401)]==['cpp']*3+['torch']
    assert [chosen(C,torch.bfloat16) for C in (8,127,128)]==['cpp']*2+['torch']
    assert chosen(8,torch.float64)=='torch' and choose_backend(torch.empty(1,8,4,4,device='meta'))=='torch'

def test_few_lines_are_swept_too():
    "Where this backend serves, no plain loop is put in its place"
    x,params = torch.randn(2,3,5,4,requires_grad=True),cell(3)
    assert 'sdn_nb_scan' in scan(x,*params).grad_fn.name()
