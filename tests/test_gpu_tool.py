"The GPU command keeps its time, and a stage that fails or hangs costs nobody else's results"
import importlib.util, json, os, signal, subprocess, sys, time, zipfile
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location('gpu_tool', root/'tools/gpu.py')
gpu = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = gpu
spec.loader.exec_module(gpu)

def stage(name, code, **kw):
    "A stage that runs `code`"
    return gpu.Stage(name, lambda run,work,seconds: [([sys.executable, '-S', '-c', code], 1)],
                     f'{name}.json', (f'{name}.json',), lambda d: f"found {d['n']}", **kw)
def leaves(name, n=1): return f"open('{name}.json','w').write('{{\"n\": {n}}}'); "
hang = 'import time; time.sleep(100)'

@pytest.fixture
def go(tmp_path, monkeypatch):
    "Run stages: whether all went well, what environment.json says of each, the seconds that it took"
    monkeypatch.setattr(gpu, 'commit_of', lambda: dict(commit='c', dirty=False, source='s'))
    monkeypatch.setattr(gpu, 'GRACE', .3)
    monkeypatch.setattr(gpu, 'RESERVE', .5)
    def go(*stages, **kw):
        start = time.monotonic()
        good = gpu.Run(stages, tmp_path/'out', 'cpu', **kw).go()
        records = gpu.read(tmp_path/'out/environment.json')['stages']
        return good,{r['stage']: r for r in records},time.monotonic()-start
    return go

def n(out, name): return json.loads((out/f'{name}.json').read_text())['n']

# Stages

def test_crash_and_hang_cost_nobody_else(go, tmp_path, capsys):
    stages = stage('a', "raise ValueError('no luck')"),stage('b', leaves('b')+hang, most=.05),stage('c', leaves('c', 3))
    good,records,seconds = go(*stages, minutes=.3)
    assert not good and [records[k]['outcome'] for k in 'abc']==['failed', 'killed at its limit', 'ok']
    assert seconds<6 and n(tmp_path/'out', 'b')==1 and n(tmp_path/'out', 'c')==3
    assert [records[k]['summary'] for k in 'abc'] == ['ValueError: no luck', 'cut short; found 1', 'found 3']
    log,printed = (tmp_path/'out/log.txt').read_text(),capsys.readouterr().out
    assert log.index('==== a')<log.index('no luck')<log.index('==== b')<log.index('==== c')
    assert 'ValueError: no luck' in printed and 'killed at its limit' in printed

def test_all_well(go): assert go(stage('a', leaves('a')))[0]

def test_a_stage_that_cannot_be_made_fails_alone(go):
    good,records,_ = go(gpu.Stage('a', lambda *_: 1/0), stage('b', leaves('b')))
    assert not good and (records['a']['outcome'], records['b']['outcome']) == ('failed','ok')

def test_time_limit_holds_for_all(go):
    good,records,seconds = go(*[stage(k, hang) for k in 'ab'], stage('c', leaves('c'), least=1), minutes=.04)
    assert not good and seconds<2.6
    assert records['a']['outcome']=='killed at its limit'
    assert records['c']['outcome']=='skipped' and 's were left' in records['c']['summary']

def test_files_are_there_while_a_stage_runs(tmp_path, monkeypatch):
    seen,tick = [],gpu.Run.tick
    def look(run, stage, work):
        run.heard = -5  # long ago
        tick(run, stage, work)
        seen.append({p.name for p in (tmp_path/'out').iterdir()})
    monkeypatch.setattr(gpu.Run, 'tick', look)
    gpu.Run([stage('a', leaves('a')+'import time; time.sleep(1.5)')], tmp_path/'out', 'cpu').go()
    assert seen and seen[0]=={'a.json','environment.json','log.txt'}

def test_grandchildren_are_killed_too(go, tmp_path):
    child = 'import subprocess,sys; p = subprocess.Popen([sys.executable,"-c","import time; time.sleep(100)"]); '
    note = lambda name: child + f'open({str(tmp_path/name)!r}, "w").write(str(p.pid)); '
    go(stage('a', note('left')), stage('b', note('hung')+hang, most=.05), minutes=.3)
    time.sleep(.2)
    assert not any(alive(int((tmp_path/name).read_text())) for name in ('left','hung'))

def alive(pid):
    "Whether a process runs; one that nobody has waited for yet does not"
    stat = Path(f'/proc/{pid}/stat')
    try: return stat.read_text().rpartition(')')[2].split()[0]!='Z'
    except (FileNotFoundError, ProcessLookupError): return False

def test_asked_to_end_a_stage_writes_what_it_has(go, tmp_path):
    go(stage('a', f'try: {hang}\nexcept KeyboardInterrupt: {leaves("a", 7)}'), minutes=.05)
    assert n(tmp_path/'out', 'a')==7

def test_too_large_a_file_is_left_out(go, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, 'LARGEST', 5)
    _,records,_ = go(stage('a', leaves('a')))
    assert not (tmp_path/'out/a.json').exists() and 'a.json is left out' in records['a']['summary']

def test_long_log_is_cut(tmp_path):
    (tmp_path/'log').write_bytes(b'a'*gpu.MIB + b'b'*gpu.MIB + b'c'*gpu.MIB)
    data = gpu.cut(tmp_path/'log')
    assert data.startswith(b'a'*gpu.MIB) and data.endswith(b'c'*gpu.MIB) and b'b' not in data.replace(b'bytes', b'')

def test_eight_files_at_most(): assert len(gpu.NAMES)==len(set(gpu.NAMES))<=8

def test_earlier_results_are_moved(go, tmp_path):
    go(stage('a', leaves('a'))); go(stage('a', leaves('a')))
    assert (tmp_path/'out.1/environment.json').exists() and (tmp_path/'out/environment.json').exists()

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_stage_and_keeps_what_is_there(tmp_path, sig):
    args = ['--device', 'cpu', '--out', tmp_path, '--only', 'speed', 'steps', '--break', 'speed=hang']
    p = subprocess.Popen([sys.executable, root/'tools/gpu.py', *args], stdout=subprocess.PIPE, text=True)
    while 'speed: at most' not in p.stdout.readline(): pass
    time.sleep(.3)
    p.send_signal(sig)
    text = p.communicate(timeout=10)[0]
    records = json.loads((tmp_path/'environment.json').read_text())['stages']
    assert p.returncode==1 and [r['outcome'] for r in records]==['ok','stopped','skipped'] and 'steps' in text

@pytest.mark.parametrize('args,says', [
    (('--break','speed=burn'), 'must be one of environment, tests, speed, steps, arms, training'),
    (('--minutes','0'), 'above 0'), (('--only','fast'), 'invalid choice')])
def test_arguments_are_checked(args, says, capsys):
    with pytest.raises(SystemExit): gpu.main(list(args))
    assert says in capsys.readouterr().err

def test_without_a_card_nothing_more_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, 'commit_of', dict)
    code = """open('measured.json','w').write('{"card": null}'); 1/0"""
    env = gpu.Stage('environment', lambda *_: [([sys.executable, '-S', '-c', code], 1)])
    run = gpu.Run([env, stage('b', leaves('b'))], tmp_path, 'cuda')
    assert not run.go() and run.records[1]['outcome']=='skipped' and '--device cpu' in run.records[1]['summary']

# Tests

TESTS = '''
import os, pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
def test_bad(): assert 1==2, 'they differ'
def test_absent(): pytest.skip('no such thing')
@pytest.mark.xfail
def test_known(): assert 0
@pytest.fixture
def broken(): yield; raise OSError('after')
def test_teardown(broken): pass
def test_last(): os.%s
'''
def run_tests(tmp_path, last):
    (tmp_path/'test_fake.py').write_text(TESTS % last)
    options = ['-q', '-p', 'no:cacheprovider', '-m', 'gpu', '-c', os.devnull, '--rootdir', tmp_path]
    subprocess.run([sys.executable, root/'tools/gpu.py', '--inside', 'tests', tmp_path/'lines', *options, tmp_path],
                   capture_output=True)
    gpu.gather_tests(tmp_path)
    return json.loads((tmp_path/'tests.json').read_text())

def test_results_of_tests(tmp_path):
    (tmp_path/'report').mkdir()
    for i,e in enumerate((dict(y=1e-3, x=1e-5), dict(y=1e-4, w=float('nan')))):
        (tmp_path/f'report/errors_{i}.json').write_text(json.dumps(dict(fp16=e)))
    d = run_tests(tmp_path, 'getpid()')
    assert d['counts']==dict(passed=2, failed=2, skipped=1, xfailed=1) and d['unfinished']==[]
    failed = {t['name'].split('::')[1]: t['message'].split('\n')[0] for t in d['failed']}
    assert failed==dict(test_bad='AssertionError: they differ', test_teardown='OSError: after')
    assert d['skipped'][0]['reason']=='Skipped: no such thing' and len(d['slowest'])==6
    errors = d['errors']['fp16']
    assert (errors['y'], errors['x'])==(1e-3, 1e-5) and errors['w']!=errors['w']
    assert gpu.about_tests(d)=='2 passed, 2 failed, 1 skipped, 1 xfailed'

def test_a_dying_pytest_leaves_what_it_did_and_the_culprit(tmp_path):
    d = run_tests(tmp_path, '_exit(1)')
    assert d['counts']['passed']==1 and d['unfinished']==['test_fake.py::test_last']

def test_failures_of_one_kind_are_told_together():
    failed = [dict(name=f'tests/gpu/test_a.py::t[{i}]', message='E: no\nmore') for i in range(3)]
    failed.append(dict(name='b', message=''))
    assert gpu.blame(dict(failed=failed, unfinished=['tests/gpu/c'])) == [
        'UNFINISHED c', 'FAILED 3 x E: no: test_a.py::t[0], test_a.py::t[1], test_a.py::t[2]', 'FAILED 1 x : b']
    many = [dict(name='n'*999, message=f'{i}'+'m'*999) for i in range(99)]
    lines = gpu.blame(dict(failed=many, unfinished=['u'*999]*9))
    assert len(lines)==21 and sum(map(len, lines))<11000

# Packing

def test_pack_copies_fashion_mnist(tmp_path, capsys):
    (tmp_path/'given').mkdir()
    for f in gpu.FASHION: (tmp_path/'given'/f).write_text(f)
    gpu.pack_fashion(tmp_path/'packed', str(tmp_path/'given'))
    assert sorted(p.name for p in (tmp_path/'packed').iterdir())==sorted(gpu.FASHION)
    with pytest.raises(SystemExit, match='--fashion-mnist must be a folder with'):
        gpu.pack_fashion(tmp_path/'packed', str(tmp_path/'none'))

def test_pack_goes_on_without_fashion_mnist(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, 'fashion_folder', lambda given: None)
    gpu.pack_fashion(tmp_path/'packed')
    assert 'not packed' in capsys.readouterr().out and not (tmp_path/'packed').exists()

def test_what_is_missing_is_unpacked(tmp_path):
    (tmp_path/'wheels').mkdir()
    for name in ('pytest','missing_thing'):
        with zipfile.ZipFile(tmp_path/f'wheels/{name}-1-py3-none-any.whl', 'w') as z: z.writestr(f'{name}.py', '')
    assert gpu.unpack(tmp_path/'wheels', tmp_path/'site')=='unpacked missing_thing'
    assert [p.name for p in (tmp_path/'site').iterdir()]==['missing_thing.py']

def test_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, 'root', tmp_path); monkeypatch.setattr(gpu, 'packed', tmp_path)
    assert gpu.commit_of()['commit'] is None
    gpu.write(tmp_path/'commit.json', dict(commit='abc', dirty=False, source=gpu.source()))
    assert (gpu.commit_of()['commit'], gpu.commit_of()['dirty'])==('abc', False)
    (tmp_path/'tools').mkdir(); (tmp_path/'tools/new.py').write_text('')
    assert gpu.commit_of()['dirty']

# Collecting

machine = dict(card=dict(name='a card'), driver='1', versions={}, commit='c', dirty=False, date='d')

@pytest.fixture
def back(tmp_path):
    "A folder that came back from a GPU"
    put = lambda name,**d: gpu.write(tmp_path/'back'/name, d)
    (tmp_path/'back').mkdir()
    outcomes = dict(environment='ok', tests='failed', speed='killed at its limit', steps='ok', training='ok')
    put('environment.json', **machine, device='cuda', copy_bytes_per_second=1,
        stages=[dict(stage=k, outcome=o, summary=f'{k} line') for k,o in outcomes.items()])
    put('tests.json', counts={}, failed=[], slowest=[])
    put('speed.json', device='a card', rows=[1])
    put('steps.json', device='a card', steps=[1])
    with zipfile.ZipFile(tmp_path/'back/arms.zip', 'w') as z:
        z.writestr('arms_14_cuda.json', '{"arms": {}}')
        z.writestr('arms_14_cuda.npz', b'x')
    (tmp_path/'back/training.zip').write_bytes(b'x')
    return tmp_path/'back'

def test_collect(back, tmp_path, capsys):
    results = tmp_path/'results'
    (results/'gpu').mkdir(parents=True); (results/'gpu/tests.json').write_text('old')
    assert gpu.collect(back, results)==0
    names = {f'{k}.json' for k in ('environment','tests','steps')}
    assert {p.name for p in (results/'gpu').iterdir()}==names
    d = gpu.read(results/'speed_cuda.json')
    assert d['rows']==[1] and d['machine']==machine | dict(outcome='killed at its limit')
    assert (results/'gpu/tests.json').read_text()=='old'
    out = capsys.readouterr().out
    assert 'failed (tests line), the older result stays' in out and 'stay in' in out
    assert gpu.read(results/'arms_14_cuda.json')==dict(arms={}, machine=machine) and (results/'arms_14_cuda.npz').read_bytes()==b'x'

def test_collect_takes_no_other_files(back, tmp_path):
    with zipfile.ZipFile(back/'arms.zip', 'w') as z: z.writestr('../arms_14_cuda.json', '{}')
    with pytest.raises(SystemExit, match='which is no result'): gpu.collect(back, tmp_path/'results')
    assert not (tmp_path/'arms_14_cuda.json').exists()

def test_collect_refuses_what_is_damaged(back, tmp_path, capsys):
    (back/'speed.json').write_text('{"rows": [')
    (back/'steps.json').write_text('{}')
    assert gpu.collect(back, tmp_path/'results')==1
    out = capsys.readouterr().out
    assert 'speed.json is damaged' in out and 'steps.json lacks device, steps' in out
    assert not (tmp_path/'results/speed_cuda.json').exists() and (tmp_path/'results/gpu/environment.json').exists()

def test_collect_refuses_a_rehearsal(back, tmp_path):
    env = gpu.read(back/'environment.json')
    gpu.write(back/'environment.json', env | dict(device='cpu', card=None))
    with pytest.raises(SystemExit, match="device 'cpu'"): gpu.collect(back, tmp_path/'results')
    with pytest.raises(SystemExit, match='name another folder'): gpu.collect(back, root/'results', force_cpu=True)
    assert gpu.collect(back, tmp_path/'results', force_cpu=True)==0

def test_collect_refuses_another_folder(tmp_path):
    with pytest.raises(SystemExit, match='there is no environment.json'): gpu.collect(tmp_path, tmp_path/'results')
