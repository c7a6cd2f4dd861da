"What is compiled is loaded only if it is whole and nobody else's; otherwise it is built anew, elsewhere if need be, or the reason is told"
import multiprocessing, os, signal, stat, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import pytest
from sdn_nb.scan import compiled
from sdn_nb.scan.compiled import FLAGS, load_library, missing_compiler

if missing_compiler() is not None: pytest.skip(missing_compiler(), allow_module_level=True)
as_root = pytest.mark.skipif(os.geteuid()!=0, reason='only root can give a file to another user')
OTHER = 12345 # a user without an entry and without a home

ANSWER = 'extern "C" int answer() { return 42; }'
TRAP = '#include <cstdio>\n__attribute__((constructor)) static void trap() { fclose(fopen("RAN", "w")); } extern "C" int answer() { return 13; }'

@pytest.fixture
def places(tmp_path, monkeypatch):
    "The two folders where a library may be: that of the user's cache, that among temporary files"
    (tmp_path/'tmp').mkdir(0o700)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'/'cache'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'tmp'))
    return tmp_path/'home'/'cache'/'sdn_nb', tmp_path/'tmp'/f'sdn_nb-{os.geteuid()}'

def in_cache():
    "Loads the library without a warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_library(ANSWER).answer()==42

def elsewhere(private, why):
    "Loads the library from the private folder, which is closed to others, and says why"
    with pytest.warns(UserWarning, match=why) as said: assert load_library(ANSWER).answer()==42
    assert str(private) in str(said[0].message) and stat.S_IMODE(private.stat().st_mode)==0o700 and list(private.glob('*.so'))

def plant(folder, ran):
    "A library that leaves a trace if it is loaded, under the name and with the digest that ours would have"
    folder.mkdir(parents=True, exist_ok=True)
    so = compiled._compile(TRAP.replace('RAN', str(ran)), FLAGS, folder)
    so.chmod(0o755)
    (folder/'library.o').unlink()
    return so.rename(folder/f'{compiled._fingerprint(ANSWER, FLAGS)}-{compiled._digest(so.read_bytes())}.so')

def test_a_trap_springs(places, tmp_path):
    "In a closed folder what lies there is trusted; so the tests below would see a planted library run"
    places[0].mkdir(0o700, parents=True)
    plant(places[0], tmp_path/'ran')
    assert load_library(ANSWER).answer()==13 and (tmp_path/'ran').exists()

def test_is_kept(places):
    in_cache()
    built, = places[0].iterdir()
    when = built.stat().st_mtime_ns
    in_cache()
    assert list(places[0].iterdir())==[built] and built.stat().st_mtime_ns==when and not places[1].exists()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (built,places[0],places[0].parent)]==[0o700]*3

@pytest.mark.parametrize('mask', [0,0o77], ids=oct)
def test_any_umask(places, mask):
    before = os.umask(mask)
    try: in_cache(); in_cache()
    finally: os.umask(before)
    assert not places[1].exists()

def turned(data, at): return data[:at] + bytes([data[at]^1]) + data[at+1:]
DAMAGES = {f'cut off at {share}': lambda d, s=share: d[:int(s*len(d))] for share in (0,.01,.3,.5,.9,.999)} | {
    'one byte short': lambda d: d[:-1], 'one byte more': lambda d: d+b'\0', 'zeros': lambda d: bytes(len(d)),
    'half zeros': lambda d: d[:len(d)//2].ljust(len(d), b'\0')} | {
    f'a bit turned at {share}': lambda d, s=share: turned(d, int(s*(len(d)-1))) for share in (0,.2,.5,1)}

@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_damaged(places, damage):
    "Seen before anything is loaded, and built anew in the same place"
    in_cache()
    path, = places[0].iterdir()
    good = path.read_bytes()
    path.unlink()               # the file that is loaded already is left alone
    path.write_bytes(damage(good))
    path.chmod(0o700)
    in_cache()
    assert list(places[0].iterdir())==[path] and path.read_bytes()==good

@pytest.mark.parametrize('kind', ['link','fifo','open to the group','open to all'])
def test_not_a_file_of_ours(places, tmp_path, kind):
    in_cache()
    path, = places[0].iterdir()
    trap = plant(tmp_path/'other', tmp_path/'ran')
    path = path.rename(path.with_name(trap.name))
    path.unlink()
    if kind=='link': path.symlink_to(trap)
    elif kind=='fifo': os.mkfifo(path)
    else:
        path.write_bytes(trap.read_bytes())
        path.chmod(0o770 if 'group' in kind else 0o707)
    in_cache()
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('mode', [0o777,0o1777,0o775,0o770,0o703], ids=oct)
@pytest.mark.parametrize('level', ['folder','above','far above'])
def test_planted_where_others_may_write(places, tmp_path, level, mode):
    plant(places[0], tmp_path/'ran')
    shared = dict(zip(('folder','above','far above'), (places[0],*places[0].parents)))[level]
    shared.chmod(mode)
    if mode==0o1777 and level!='folder':    # as in /tmp: others can't move what is ours
        load_library(ANSWER)
        assert (tmp_path/'ran').exists()
    else:
        elsewhere(places[1], f'others may write to {shared}')
        assert not (tmp_path/'ran').exists()

def test_planted_behind_a_link(places, tmp_path):
    "What counts is where a link leads"
    plant(tmp_path/'shared'/'sdn_nb', tmp_path/'ran')
    (tmp_path/'shared').chmod(0o777)
    places[0].parent.parent.mkdir(0o700)
    places[0].parent.symlink_to(tmp_path/'shared')
    elsewhere(places[1], 'others may write')
    assert not (tmp_path/'ran').exists()

def test_a_link_to_a_closed_folder(places, tmp_path):
    (tmp_path/'disk').mkdir(0o700)
    places[0].parent.parent.mkdir(0o700)
    places[0].parent.symlink_to(tmp_path/'disk')
    in_cache()
    assert list((tmp_path/'disk').rglob('*.so')) and not places[1].exists()

@as_root
@pytest.mark.parametrize('level', [0,1])
def test_a_folder_of_another_user(places, tmp_path, level):
    plant(places[0], tmp_path/'ran')
    os.chown(places[0] if level==0 else places[0].parent, OTHER, OTHER)
    elsewhere(places[1], 'belongs to another user')
    assert not (tmp_path/'ran').exists()

@as_root
def test_a_file_of_another_user(places, tmp_path):
    os.chown(plant(places[0], tmp_path/'ran'), OTHER, OTHER)
    places[0].chmod(0o700)
    in_cache()
    assert not (tmp_path/'ran').exists()

@as_root
def test_someone_was_there_before(places):
    "Neither folder will do: the reason for each"
    places[0].mkdir(parents=True)
    places[0].chmod(0o777)
    places[1].mkdir()
    os.chown(places[1], OTHER, OTHER)
    with pytest.raises(OSError, match='others may write.*belongs to another user'): load_library(ANSWER)

def test_exchanged_after_the_look(places, tmp_path, monkeypatch):
    "What was read is what is loaded, whatever has its name by then"
    os.close(compiled._open_library(ANSWER, FLAGS))     # built, not loaded: the loader would know its path
    path, = places[0].iterdir()
    trap,look = plant(tmp_path/'other', tmp_path/'ran'),compiled._open_whole
    def exchange(p):
        fd = look(p)
        os.replace(trap, path)
        return fd
    monkeypatch.setattr(compiled, '_open_whole', exchange)
    assert load_library(ANSWER).answer()==42 and not (tmp_path/'ran').exists()

def test_libraries_are_told_apart(places):
    "Though each is loaded by the number of an open file, and numbers are used again"
    answer = lambda n: load_library(ANSWER.replace('42', str(n))).answer()
    assert [answer(n) for n in (1,2,3,1,2,3)]==[1,2,3]*2

# where nothing can be kept

@pytest.mark.parametrize('home', ['/dev/null','/proc'])
def test_a_cache_that_can_not_be_made(places, monkeypatch, home):
    monkeypatch.setenv('XDG_CACHE_HOME', home)
    elsewhere(places[1], f'{home}/sdn_nb is of no use')

def test_no_home(places, monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    elsewhere(places[1], 'no home folder')

def other_user(f):
    "Does `f` raise nothing, for another user, in a child?"
    child = os.fork()
    if child==0:
        try:
            if os.geteuid()==0: os.setgroups([]); os.setgid(OTHER); os.setuid(OTHER)
            f()
            os._exit(0)
        except BaseException as e:
            os.write(2, repr(e).encode())
            os._exit(1)
    return os.waitpid(child, 0)[1]==0

def test_a_cache_that_can_only_be_read(places, tmp_path, monkeypatch):
    "One that holds the library serves; where it has to be built, that is done elsewhere"
    private = Path(tempfile.mkdtemp(dir='/tmp'))
    cache,tmp = private/'cache',private/'tmp'
    monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp))
    for folder in (private,cache,tmp): folder.mkdir(exist_ok=True)
    in_cache()
    path, = cache.glob('sdn_nb/*.so')
    path.chmod(0o755)
    tmp.chmod(0o1777)
    for folder in (path.parent,cache,private): folder.chmod(0o555)
    def serves(): in_cache(); assert not list(tmp.iterdir())
    def is_built(): elsewhere(tmp/f'sdn_nb-{os.geteuid()}', 'Permission denied')
    try:
        assert other_user(serves)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:5000])
        path.chmod(0o555)
        assert other_user(is_built) and path.stat().st_size==5000
    finally:
        for folder in (private,cache,path.parent): folder.chmod(0o700)
        subprocess.run(['rm','-r',private], check=True)

# several at once, and interrupted

def test_many_start_together(places):
    with multiprocessing.get_context('fork').Pool(4) as pool: assert pool.map(answers, range(8), chunksize=1)==[42]*8
    assert len(list(places[0].iterdir()))==1
def answers(_): return load_library(ANSWER).answer()

def script(path, text):
    path.write_text('#!/bin/sh\n'+text)
    path.chmod(0o755)
    return str(path)

def test_killed_while_it_compiles(places, tmp_path, monkeypatch):
    "What is left does no harm, and is removed when no compiler can be at work there any more"
    slow = script(tmp_path/'slow', f'case "$*" in *-dM*) exec {compiled.compiler()} "$@";; esac\nsleep 100\n')
    monkeypatch.setenv('CXX', slow)
    child = os.fork()
    if child==0:
        os.setsid()
        try: load_library(ANSWER)
        finally: os._exit(1)
    until = time.time()+60
    while not (left := list(places[0].glob('.build-*'))) and time.time()<until: time.sleep(.05)
    time.sleep(.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    monkeypatch.delenv('CXX')
    in_cache()
    assert left[0].exists()
    os.utime(left[0], (0,0))
    in_cache()
    assert [p.suffix for p in places[0].iterdir()]==['.so']

# compilers

@pytest.mark.parametrize('does,reason', [
    ('exit 1', "can't compile it: it says nothing"), ('echo no room >&2; exit 1', "can't compile it: no room"),
    ('printf "\\377\\n" >&2; exit 1', "can't compile it: "), ('kill -9 $$', "can't compile it: it says nothing"),
    ('exit 0', 'No such file'), ('for to; do :; done; echo nonsense > "$to"', "can't be loaded after it was compiled by .*invalid ELF|file too short")])
def test_broken_compilers(places, tmp_path, monkeypatch, does, reason):
    monkeypatch.setenv('CXX', script(tmp_path/'cxx', does))
    with pytest.raises(OSError, match=reason): load_library(ANSWER)
    assert not [p for place in places for p in place.glob('.build-*')]

def test_a_compiler_of_no_known_format(places, tmp_path, monkeypatch):
    cxx = tmp_path/'cxx'
    cxx.write_bytes(b'\0\1\2')
    cxx.chmod(0o755)
    monkeypatch.setenv('CXX', str(cxx))
    with pytest.raises(OSError, match='Exec format error'): load_library(ANSWER)

def test_no_compiler(places, monkeypatch):
    "Also when it has gone since the first look"
    monkeypatch.setenv('CXX', '')
    monkeypatch.setenv('PATH', '')
    with pytest.raises(OSError, match=r"No such file.*c\+\+"): load_library(ANSWER)
    monkeypatch.setattr(compiled, '_find_once', compiled.compiler)
    with pytest.raises(OSError, match='there is no C.. compiler: install GCC'): load_library(ANSWER)

def test_what_the_compiler_says(places):
    with pytest.raises(OSError, match='can.t compile it: .*error'): load_library('int main( {')
    with pytest.raises(OSError, match='can.t be loaded after.*nowhere.*CXX'): load_library('extern "C" void nowhere(); extern "C" void answer() { nowhere(); }')

# after a fork

FORKED = """
import os, sys, warnings, torch
from sdn_nb.scan import scan, BACKENDS
from sdn_nb.scan.compiled import n_threads
torch.set_num_threads(2)
x,params = torch.randn(8,16,32,32,requires_grad=True),list(torch.nn.GRUCell(48,16).parameters())
conv = torch.nn.Conv2d(16,16,3)
def sweep(backend=None):
    y = scan(x,*params,backend=backend)
    return y.detach(),torch.autograd.grad(y.sum(),x)[0]
def convolve(): conv(x).sum().backward()
def operation(backend):
    d,p = x.detach(),[p.detach() for p in params]
    return torch.ops.sdn_nb.scan(d,*p,'right',False,backend)[0],None
warnings.simplefilter('ignore')
want = {b: sweep(b) for b in (None,'torch','cpp') if 'sweep' in sys.argv[1]}
if sys.argv[1]=='convolutions': convolve()
def child():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        exec(sys.argv[2])
    print(torch.get_num_threads(), len([w for w in said if 'this process was forked' in str(w.message)]))
pid = os.fork()
if pid==0:
    try: child()
    except BaseException as e: print(repr(e))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
assert torch.get_num_threads()==2
"""

def in_child(before, does):
    "What a child says that was forked after the parent did something: how many threads PyTorch has at the end, and how often it was warned"
    try: run = subprocess.run([sys.executable,'-W','ignore','-c',FORKED,before,does], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired: raise AssertionError('it hangs') from None
    assert run.returncode==0, run.stderr
    return run.stdout.strip()

ALIKE = 'for b,w in want.items():\n    for g,h in zip(sweep(b), w): assert torch.allclose(g, h, atol=1e-5)\n'

@pytest.mark.parametrize('does', [ALIKE, 'convolve(); sweep()', 'operation("cpp"); operation("torch")', 'BACKENDS["cpp"].forward(x.detach(), *[p.detach() for p in params], "right", True)'],
                         ids=['sweeps','convolutions','operation','backend'])
def test_a_child_of_one_that_swept(does):
    "Has one thread from its first moment; everything works, and nobody is warned"
    assert in_child('sweeps', does)=='1 0'

@pytest.mark.parametrize('does', ['sweep("cpp"); convolve()','sweep("torch")','operation("cpp")'])
def test_a_child_of_one_that_did_something_else(does):
    "Learns at its first sweep that it has one thread, and is told once"
    assert in_child('convolutions', f'{does}; {does}')=='1 1'

def test_a_child_of_one_that_did_nothing():
    "Says how many threads it wants, and has them; or is told that it has one"
    assert in_child('nothing', 'torch.set_num_threads(3); sweep(); convolve()')=='3 0'
    assert in_child('nothing', 'sweep()')=='1 1'
    assert in_child('nothing', 'sweep(); torch.set_num_threads(2); sweep("cpp")')=='2 1'

def test_a_child_of_a_child():
    again = 'pid = os.fork()\nif pid==0:\n    sweep()\n    os._exit(7)\nassert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==7'
    assert in_child('sweeps', again)=='1 0'

def test_workers_of_a_pool():
    "As multiprocessing starts them where it forks"
    pool = 'import multiprocessing\nwith multiprocessing.get_context("fork").Pool(2) as pool: pool.map(worker, range(4))'
    assert in_child('sweeps', 'global worker\ndef worker(i): sweep("cpp"); convolve(); return i\n' + pool)=='1 0'
