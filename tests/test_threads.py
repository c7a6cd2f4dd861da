"How threads wait is said before torch is loaded, by the commands alone; their number is chosen by timing and stays with the run; what spins ends"
import configparser, json, os, re, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest, torch
import sdn_nb
from sdn_nb import bench, cli, threads
from sdn_nb.bench import fill_in_turn
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.runs import Settings
from sdn_nb.threads import COMMANDS, SPINS, WAITING, choose_threads, computing_with, spinning

root = Path(__file__).parent.parent
path = os.pathsep.join([str(Path(sdn_nb.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
clean = {k: v for k,v in os.environ.items() if k not in (*WAITING,'OMP_NUM_THREADS','MKL_NUM_THREADS')} | dict(PYTHONPATH=path)

def python(code, *args, **env):
    "stdout of a fresh interpreter"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], env=clean|env, capture_output=True, text=True, timeout=120)
    assert p.returncode==0, p.stderr
    return p.stdout

# How threads wait

def targets():
    "Command -> what its console script calls, 'module:attributes'"
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return dict(line.split('=') for line in ini['DEFAULT']['console_scripts'].split())

SCRIPT = """
import builtins,importlib,os,sys
from operator import attrgetter
module,name = sys.argv.pop(1).split(':')
real,seen = builtins.__import__,{}
def watched(name, *args, **kwargs):
    if name.split('.')[0]=='torch' and not seen: seen.update(os.environ)
    return real(name, *args, **kwargs)
builtins.__import__ = watched                      # the environment when torch is first asked for
f = attrgetter(name)(importlib.import_module(module))
assert not seen and 'torch' not in sys.modules
try: f()
except SystemExit as e: assert not e.code
print({k: seen.get(k) for k in ('OMP_WAIT_POLICY','GOMP_SPINCOUNT','KMP_BLOCKTIME')})
"""

def test_every_command_begins_here():
    assert targets()=={command: f'sdn_nb.threads:entry.{command}' for command in COMMANDS}

@pytest.mark.parametrize('command', ['sdn_train','sdn_bench'])  # one from each of the modules that begin differently
def test_environment_is_set_before_torch_and_help_works(command):
    *helps,seen = python(SCRIPT, targets()[command], '--help').splitlines()
    assert helps[0].startswith(f'usage: {command}')
    assert seen==str(dict(OMP_WAIT_POLICY=None, GOMP_SPINCOUNT=SPINS, KMP_BLOCKTIME=None))

@pytest.mark.parametrize('name,value', [('OMP_WAIT_POLICY','active'), ('GOMP_SPINCOUNT','7')])
def test_a_users_own_setting_wins(name, value):
    seen = python(SCRIPT, targets()['sdn_sample'], '--help', **{name: value}).splitlines()[-1]
    assert seen==str(dict.fromkeys(WAITING)|{name: value})

def test_importing_the_library_changes_nothing():
    "Nor does it load what only pictures need, and with it PyTorch's compiler: a third of the time in which a command starts"
    out = python("import importlib,os,sys\nfor m in ('threads','cli','bench','grid','commands','runs'): importlib.import_module('sdn_nb.'+m)\nprint([k for k in os.environ if k in %r], [m for m in ('torchvision','torch._dynamo') if m in sys.modules])" % (WAITING,))
    assert out=='[] []\n'

def test_too_late_is_not_pretended(monkeypatch):
    for name in WAITING: monkeypatch.delenv(name, raising=False)
    threads.wait_briefly()                                    # torch is there
    assert not os.environ.keys() & set(WAITING)

# A busy machine

@pytest.mark.parametrize('error', [None, ValueError, KeyboardInterrupt, SystemExit], ids=str)
def test_spinning_processes_end(error):
    try:
        with spinning(2) as processes:
            assert len(processes)==2 and all(p.poll() is None for p in processes)
            if error: raise error
    except (ValueError,KeyboardInterrupt,SystemExit) as e: assert type(e) is error
    assert all(p.poll() is not None for p in processes)

def test_spinning_processes_compute():
    def used(p): return sum(map(int, Path(f'/proc/{p.pid}/stat').read_text().rpartition(')')[2].split()[11:13]))
    if not Path('/proc/self/stat').exists(): pytest.skip('no /proc')
    with spinning(1) as (p,):
        before = used(p)
        deadline = time.monotonic()+20
        while used(p)<before+5: assert time.monotonic()<deadline

def test_they_end_with_a_killed_parent():
    code = "import os,signal; from sdn_nb.threads import spinning\nwith spinning(1) as (p,): print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    p = subprocess.run([sys.executable, '-c', code], env=clean, stdout=subprocess.PIPE, text=True)
    pid,deadline = int(p.stdout),time.monotonic()+20
    def runs():
        try: return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
        except OSError: return False
    if not Path('/proc/self/stat').exists(): pytest.skip('no /proc')
    while runs(): assert time.monotonic()<deadline; time.sleep(.05)

# How many threads

@contextmanager
def having(n):
    "torch has `n` threads"
    was = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(was)

def timed(milliseconds, n):
    "What is chosen with `n` threads for a step that takes so long by their number, and the numbers that were tried"
    with having(n):
        got = choose_threads(lambda: time.sleep(milliseconds[torch.get_num_threads()]/1e3), .03)
        assert torch.get_num_threads()==n
        return got

@pytest.mark.parametrize('milliseconds,n,want', [
    ({2: 9, 1: 3}, 2, (1,[2,1])), ({2: 3, 1: 9}, 2, (2,[2,1])), ({8: 20, 4: 10, 2: 5, 1: 9}, 8, (2,[8,4,2,1])), ({6: 9, 3: 3, 1: 9}, 6, (3,[6,3,1])),
    ({4: 5, 2: 9, 1: 1}, 4, (4,[4,2])), ({2: 10, 1: 9.9}, 2, (2,[2,1])), ({1: 1}, 1, (1,[]))], ids=str)
def test_fewer_while_that_is_faster(milliseconds, n, want):
    chosen,times = timed(milliseconds, n)
    assert (chosen,list(times))==want

def test_the_sum_counts_and_not_the_luckiest_step():
    calls = {2: 0, 1: 0}
    def step():
        k = torch.get_num_threads()
        calls[k] += 1
        time.sleep(.001 if k==1 else .001 if calls[2]%4 else .03)       # with two threads one step in four waits
    with having(2): assert choose_threads(step, .1)[0]==1

def test_threads_come_back_after_an_error():
    def step():
        if torch.get_num_threads()==1: raise ValueError
    with having(2):
        with pytest.raises(ValueError): choose_threads(step, .01)
        assert torch.get_num_threads()==2
        with pytest.raises(ValueError), computing_with(1): step()
        assert torch.get_num_threads()==2

quick = dict(dataset='digits', epochs=1, bs=512)
def weights(run): return (run/'model.safetensors').read_bytes()
def recorded(run): return json.loads((run/'config.json').read_text())['training'].get('threads')

@pytest.fixture
def unsaid(monkeypatch):
    "The user has said nothing, and the machine has two threads"
    for name in threads.COUNTED: monkeypatch.delenv(name, raising=False)
    with having(2): yield monkeypatch

def trial_finds(monkeypatch, n):
    "The trial is made, and is said to have found `n`; the list of trials"
    trials = []
    def choose(step, *args):
        trials.append(choose_threads(step, .05))
        return n,{2: .2, 1: .1}
    monkeypatch.setattr(cli, 'choose_threads', choose)
    return trials

@pytest.mark.parametrize('n', [1, 2])
def test_a_trial_does_not_change_the_run(tmp_path, unsaid, n, capsys):
    "The same bits as with the number given, and as with that number from the environment, which makes no trial"
    trials = trial_finds(unsaid, n)
    cli.sdn_train(**quick, out=str(tmp_path/'tried'))
    assert list(trials[0][1])==[2,1] and f'threads: {n} of 2 (a step takes' in capsys.readouterr().out and torch.get_num_threads()==2
    cli.sdn_train(**quick, out=str(tmp_path/'given'), threads=n)
    assert len(trials)==1 and 'threads:' not in capsys.readouterr().out
    assert recorded(tmp_path/'tried')==recorded(tmp_path/'given')==n
    assert weights(tmp_path/'tried')==weights(tmp_path/'given')
    if n==2:
        unsaid.setenv('OMP_NUM_THREADS', '2')
        cli.sdn_train(**quick, out=str(tmp_path/'said'))
        assert len(trials)==1 and recorded(tmp_path/'said') is None and weights(tmp_path/'said')==weights(tmp_path/'tried')

def test_a_resumed_run_keeps_the_number(tmp_path, unsaid):
    used = []
    unsaid.setattr(cli, 'elbo_bpd', lambda *args: used.append(torch.get_num_threads()) or elbo_bpd(*args))
    trials = trial_finds(unsaid, 1)
    run = tmp_path/'a'
    cli.sdn_train(**quick, out=str(run))
    cli.sdn_train(resume=True, epochs=2, out=str(run))
    assert used==[1,1] and len(trials)==1 and recorded(run)==1
    cli.sdn_train(resume=True, epochs=3, out=str(run), threads=2)
    assert used==[1,1,2] and recorded(run)==2

def test_an_older_run_goes_on_as_it_did(tmp_path, unsaid):
    used,run = [],tmp_path/'a'
    unsaid.setattr(cli, 'elbo_bpd', lambda *args: used.append(torch.get_num_threads()) or elbo_bpd(*args))
    cli.sdn_train(**quick, out=str(run), threads=1)
    config = json.loads((run/'config.json').read_text())
    del config['training']['threads']                         # as before there was such a setting
    (run/'config.json').write_text(json.dumps(config))
    trials = trial_finds(unsaid, 1)
    cli.sdn_train(resume=True, epochs=2, out=str(run))
    assert used==[1,2] and not trials and recorded(run) is None

@pytest.mark.parametrize('device,processes', [('cuda',1), ('cpu',2)])
def test_no_trial_on_a_gpu_or_in_several_processes(unsaid, device, processes):
    unsaid.setenv('WORLD_SIZE', str(processes))
    trials = trial_finds(unsaid, 1)
    learn = SimpleNamespace(dls=SimpleNamespace(device=torch.device(device)))
    assert cli._chosen_threads(Settings(), learn) is None and not trials

def test_no_thread_is_refused():
    with pytest.raises(SystemExit, match='--threads must be at least 1, got 0'): cli.sdn_train(threads=0, out='nowhere')

# The benchmark of a busy machine

def test_calls_get_their_time_in_turn():
    order,took = [],dict(a=1, b=2, c=9)
    times = fill_in_turn({k: lambda k=k: order.append(k) or took[k] for k in took}, 6, 3)
    assert times==dict(a=[1]*6, b=[2]*3, c=[9]) and ''.join(order)=='aabcaabaab'

@pytest.fixture
def started(monkeypatch):
    "Processes that were started to spin"
    found,real = [],bench.spinning
    @contextmanager
    def spinning(n):
        with real(n) as processes:
            found.extend(processes)
            yield processes
    monkeypatch.setattr(bench, 'spinning', spinning)
    return found

def test_a_busy_machine(tmp_path, started, monkeypatch, capsys):
    "What is in the JSON: each contestant, quiet and busy, with all threads and with one, and the ratios of their means"
    busy_training = dict(busy=2, quiet=dict(seconds=2., epoch=1., threads=None), among=dict(seconds=4., epoch=3., threads='1 of 2'))
    monkeypatch.setattr(bench, 'measure_busy_training', lambda n: busy_training)
    monkeypatch.setattr(bench, 'fill_in_turn', lambda fs, seconds, *more: fill_in_turn(fs, seconds/50, *more))
    with having(2): bench.sdn_bench('2,4,4 1,4,3', busy=2, rounds=1, backends='torch', recompute=False, device='cpu', out=str(tmp_path/'speed.json'))
    saved = json.loads((tmp_path/'speed.json').read_text())
    assert list(saved)==['command','device','sdn_nb','torch','python','rows','layers','steps','busy','busy_training']
    assert [r['shape'] for r in saved['busy']]==[r['shape'] for r in saved['rows']]==[[2,4,4],[1,4,3]] and saved['busy_training']==[busy_training]
    for r in saved['busy']:
        assert (r['busy'],r['threads'])==(2,2) and r['chosen'] in bench.BACKENDS
        for mode in 'training','inference':
            assert list(r[mode])==['torch','SDN layer','two convolutions']
            for f in r[mode].values():
                assert all(t>0 for n in (1,2) for k in ('quiet','busy') for t in f[f'threads_{n}'][k])
                assert f['all_over_one']=={k: f['threads_2'][k][0]/f['threads_1'][k][0] for k in ('quiet','busy')}
            sdn,convolutions = (r[mode][k]['threads_2'] for k in ('SDN layer','two convolutions'))
            assert r['sdn_over_convolutions'][mode]=={k: sdn[k][0]/convolutions[k][0] for k in ('quiet','busy')}
    assert len(started)==4 and all(p.poll() is not None for p in started)
    assert 'sdn_train digits --epochs 1, busy: 4.0 s, its epoch 3.0 s; threads: 1 of 2' in capsys.readouterr().out

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError], ids=lambda e: e.__name__)
def test_nothing_spins_after_a_stop(started, monkeypatch, error):
    "Stopped when the first busy call comes"
    def seconds(*args):
        if started: raise error
        return 1.
    monkeypatch.setattr(bench, 'seconds', seconds)
    with pytest.raises(error): bench.measure_busy(2, 4, 4, busy=2, rounds=1, backends=['torch'], least=.01)
    assert len(started)==2 and all(p.poll() is not None for p in started)

def test_a_command_is_timed_as_a_user_starts_it(monkeypatch):
    "In a process of its own, whose epoch is part of the whole, and which says what it has chosen"
    for name in (*WAITING,*threads.COUNTED): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PYTHONPATH', path)
    r = bench._time_training()
    assert 0<r['epoch']<r['seconds'] and (r['threads'] is None or re.match(r'\d+ of \d+ ', r['threads']))
    busy = []
    @contextmanager
    def spinning(n): busy.append(n); yield; busy.clear()
    monkeypatch.setattr(bench, 'spinning', spinning); monkeypatch.setattr(bench, '_time_training', lambda: list(busy))
    assert bench.measure_busy_training(3)==dict(busy=3, quiet=[], among=[3])

@pytest.mark.parametrize('busy,device', [(-1,'cpu'), (2,'meta')])
def test_busy_is_for_a_processor(busy, device):
    with pytest.raises(SystemExit, match='--busy must be a number of processes'): bench.sdn_bench('', busy=busy, device=device)

# Parts of a step

@pytest.mark.parametrize('preset', ['digits', 'fashion_mnist'])
def test_parts_of_a_step(preset):
    "Each takes time, and with Python's they are the whole"
    *parts,profiled = (r := bench.measure_step(preset, 2, 'fp32', 'cpu', 1))['parts'].values()
    assert list(r['parts'])==['sweeps','convolutions','other_operators','python','profiled']
    assert min(parts)>0 and sum(parts)==pytest.approx(profiled) and sum(parts[:3])>.5*profiled
    assert r['profile'] is None and len(r['seconds'])==3

def test_what_a_part_is():
    def event(name, parent=None): return SimpleNamespace(name=name, cpu_parent=parent)
    backward = event('autograd::engine::evaluate_function: ConvolutionBackward0')
    assert bench._part_of_step(event('aten::copy_', backward))=='convolutions'
    assert bench._part_of_step(event('aten::addmm', event('sdn_nb::scan_backward')))=='sweeps'
    assert bench._part_of_step(event('aten::conv2d', event('ProfilerStep')))=='convolutions' and bench._part_of_step(event('aten::mul', event('Optimizer.step')))=='other_operators'
