#!/usr/bin/env python3
"""Turn some minutes with a GPU into figures: `python tools/gpu.py`.

Six stages, each a process with a time limit of its own: what the machine is, the tests that need a GPU, the
speed of a sweep, the training steps of the presets, the comparison with models without sweeps, and a model. What a
stage has is written while it runs, so one that fails or hangs costs nobody else's results. It needs the
repository's tree and Python with torch, no network and no installed package: what a bare machine lacks comes
from .gpu/, which --pack makes elsewhere.
"""
import argparse, hashlib, importlib.metadata, importlib.util, json, os, re, shlex, shutil, signal, subprocess, sys, tempfile
import time, zipfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable

began = time.monotonic()
here = Path(__file__).resolve()
root = here.parent.parent
packed = root/'.gpu'
MIB = 2**20
LARGEST = 16*MIB  # bytes of a file that is brought back
GRACE = 3         # seconds that a process has to end after it was asked to
RESERVE = 2*GRACE + 2  # seconds kept for killing the last stage and for writing

def error(text): sys.exit(f'error: tools/gpu.py: {text}')

def write(path, data):
    "Write bytes, or anything else as JSON, to `path` in one step"
    part = path.with_name(f'.{path.name}.part')
    part.write_bytes(data if isinstance(data, bytes) else json.dumps(data, indent=1).encode())
    os.replace(part, path)

def read(path):
    "The JSON in `path`; none where there is no such file"
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None

def lines_of(path, size=4096):
    "The last lines of a log that are not empty, decoded"
    if not path.exists(): return []
    with open(path, 'rb') as f:
        f.seek(max(0, path.stat().st_size-size))
        return [s for line in f.read().decode(errors='replace').splitlines() if (s := line.strip())]

def last(path): return (lines_of(path) or ['no output'])[-1][:150]
def large(path): return path.exists() and path.stat().st_size>LARGEST

def cut(path):
    "A log's bytes; of a long one the first and the last MiB"
    data = path.read_bytes()
    if len(data)<=2*MIB: return data
    return data[:MIB] + f'\n[... {len(data)-2*MIB} bytes left out ...]\n'.encode() + data[-MIB:]

# The commit

def git(*args):
    "What a git command prints in the repository; none where it fails"
    try: p = subprocess.run(['git', '-C', root, *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired): return None
    return p.stdout.strip() if p.returncode==0 else None

def source():
    "A digest of the code that the stages run"
    files = sorted(f for g in ('sdn_nb/**/*.py', 'tools/*.py', 'tests/gpu/**/*.py') for f in root.glob(g))
    return hashlib.sha256(b''.join(f.relative_to(root).as_posix().encode()+f.read_bytes() for f in files)).hexdigest()

def commit_of():
    "Commit, whether the tree differs from it, and the digest of the code: as --pack noted if it was for this code, or as git has it"
    noted,now = read(packed/'commit.json'),source()
    if noted and noted['source']==now: return noted
    if (root/'.git').exists() and (head := git('rev-parse', 'HEAD')):
        return dict(commit=head, dirty=bool(git('status', '--porcelain')), source=now)
    return dict(commit=noted and noted['commit'], dirty=bool(noted) or None, source=now)

# What runs inside the stages

def version(name):
    "Version of a module, or why it can't be imported"
    try: return str(getattr(importlib.import_module(name), '__version__', 'unknown'))
    except Exception as e: return f'cannot be imported: {type(e).__name__}: {e}'

def smi():
    "What nvidia-smi says of the card's state: {query: value}; none without it"
    what = ('name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,'
            'temperature.gpu,memory.used')
    query = ['nvidia-smi', f'--query-gpu={what}', '--format=csv,noheader']
    try: p = subprocess.run(query, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired): return None
    return dict(zip(what.split(','), map(str.strip, p.stdout.splitlines()[0].split(',')))) if p.returncode==0 else None

def card(torch):
    "What torch says of the CUDA device; none where there is none"
    if not torch.cuda.is_available(): return None
    p = torch.cuda.get_device_properties(0)
    return dict(name=p.name, capability=f'{p.major}.{p.minor}', multiprocessors=p.multi_processor_count,
                memory=p.total_memory, cuda=torch.version.cuda)

def rate(torch, f, n=10):
    "Calls of `f` in a second, the mean of `n` after three that do not count"
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3): f()
    sync(); start = time.perf_counter()
    for _ in range(n): f()
    sync()
    return n/(time.perf_counter()-start)

def measure(device, path):
    "The stage environment: write what the machine is, then what it reaches"
    import torch
    path,state = Path(path),smi() if device=='cuda' else None
    names = 'torch triton torchvision numpy fastai fastcore sdn_nb'.split()
    info = dict(card=card(torch) if device=='cuda' else None, driver=(state or {}).get('driver_version'),
                state_before=state, cores=os.cpu_count(),
                versions=dict(python=sys.version.split()[0]) | {n: version(n) for n in names})
    write(path, info)
    if device=='cuda' and not info['card']:
        error('--device is cuda, and torch finds no CUDA device; --device cpu rehearses.')
    size,n = (2**31,8192) if device=='cuda' else (2**25,512)
    a = torch.zeros(size, dtype=torch.uint8, device=device); b = torch.empty_like(a)
    info['copy_bytes_per_second'] = 2*size*rate(torch, lambda: b.copy_(a))  # read and written
    write(path, info)
    a,b = (torch.randn(n, n, device=device).bfloat16() for _ in 'ab')
    write(path, info | dict(product=f'{n}^3 in bf16', product_flops_per_second=2*n**3*rate(torch, lambda: a@b),
                            state_after=smi() if device=='cuda' else None))

class Lines:
    "pytest plugin: a line of JSON for each test that starts and each report of one, written at once"
    def __init__(self, path): self.path = path
    def note(self, test, phase, outcome=None, seconds=0, message=''):
        d = dict(test=test, phase=phase, outcome=outcome, seconds=seconds, message=message[:3000], at=time.time())
        with open(self.path, 'a', encoding='utf-8') as f: f.write(json.dumps(d)+'\n')
    def message(self, report):
        "Why a test failed or was skipped"
        long = report.longrepr
        if isinstance(long, tuple): return str(long[2])
        return str(getattr(getattr(long, 'reprcrash', None), 'message', long) or '')
    def pytest_runtest_logstart(self, nodeid): self.note(nodeid, 'start')
    def pytest_runtest_logreport(self, report):
        outcome = 'xfailed' if report.skipped and hasattr(report, 'wasxfail') else report.outcome
        self.note(report.nodeid, report.when, outcome, report.duration, self.message(report))
    def pytest_collectreport(self, report):
        if not report.passed: self.note(report.nodeid, 'collect', report.outcome, message=self.message(report))

def pytest(path, *args):
    "The stage tests: pytest, with `Lines` written to `path`; its exit status"
    import pytest
    sys.path[0] = str(root)
    os.chdir(root)
    return pytest.main(list(args), plugins=[Lines(path)])

# The results of the tests

def worst(a, b):
    "Merge two nested mappings of errors: of each number the larger, and what is not a number is the largest"
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: worst(a[k], b[k]) if k in a and k in b else (a|b)[k] for k in a|b}
    return max(a, b, key=lambda v: (v!=v, v)) if all(isinstance(v, (int,float)) for v in (a,b)) else b

def results_of(notes):
    "The notes of `Lines` as {test: outcome, seconds, message, whether it is done}"
    rank,tests = [None,'passed','xfailed','skipped','failed'],{}
    for n in notes:
        t = tests.setdefault(n['test'], dict(outcome=None, seconds=0, message='', done=False))
        if rank.index(n['outcome'])>rank.index(t['outcome']): t |= dict(outcome=n['outcome'], message=n['message'])
        t['seconds'] += n['seconds']
        t['done'] |= n['phase'] not in ('start','setup','call')  # teardown, collect, or what a lost worker leaves
    return tests

def gather_tests(work):
    "tests.json from what the tests have left until now"
    if not (work/'lines').exists(): return
    whole = (work/'lines').read_text(encoding='utf-8').rpartition('\n')[0]
    if not whole: return
    notes = [json.loads(line) for line in whole.split('\n')]
    tests,errors = results_of(notes),{}
    for f in sorted((work/'report').glob('errors_*.json')):
        with suppress(ValueError): errors = worst(errors, read(f))
    are = lambda outcome: {k: t for k,t in tests.items() if t['outcome']==outcome and (t['done'] or outcome=='failed')}
    slowest = sorted(tests.items(), key=lambda kt: -kt[1]['seconds'])[:20]
    write(work/'tests.json', dict(
        counts={o: len(are(o)) for o in ('passed','failed','skipped','xfailed')},
        seconds=notes[-1]['at']-notes[0]['at'],
        failed=[dict(name=k, message=t['message']) for k,t in are('failed').items()],
        skipped=[dict(name=k, reason=t['message']) for k,t in are('skipped').items()],
        unfinished=[k for k,t in tests.items() if not t['done']],
        slowest=[dict(name=k, seconds=round(t['seconds'], 3)) for k,t in slowest], errors=errors))

# The stages

@dataclass
class Stage:
    "What a stage runs, what it may take, and what it leaves"
    name: str
    commands: Callable  # (run, work folder, seconds) -> [(arguments, share of the seconds)]; text: why nothing can run
    results: str = ''   # JSON that it leaves in its work folder, for the headline
    files: tuple = ()   # what it leaves there to be brought back
    summary: Callable = lambda d: ''  # that JSON -> its headline
    most: float = 1.    # share of the whole time
    least: float = 0.   # seconds without which it is not begun
    gather: Callable = lambda work: None  # makes the files from what is there already
    partial: bool = True  # the results of a stage that was cut short can be used

python = [sys.executable]
bench = [*python, '-c', 'from sdn_nb.bench import sdn_bench; sdn_bench.main()']
shapes = '32,360,32 32,200,32 128,64,32 8,200,64 16,360,32 8,200,32 8,64,32 32,64,32 4,64,64 2,32,128 1,200,32'

def environment(run, work, seconds):
    return [([*python, str(here), '--inside', 'environment', run.device, 'measured.json'], 1)]

def tests(run, work, seconds):
    "pytest, in several processes where pytest-xdist is there"
    folder = 'tests/gpu'
    if not (root/folder).is_dir(): return 'there is no folder tests/gpu'
    (work/'report').mkdir()
    call = [*python, str(here), '--inside', 'tests', str(work/'lines'), '-v', '-m', 'gpu', '-p', 'no:cacheprovider']
    limit = importlib.util.find_spec('pytest_timeout') and ['--timeout', '120', '--timeout-method']
    many = importlib.util.find_spec('xdist') and ['-n', str(min(12, os.cpu_count()))]
    how = [*(many or []), *([*limit, 'thread' if many else 'signal'] if limit else [])]
    return [([*call, *how, folder], 1)]

def speed(run, work, seconds):
    what = (shapes, 'fp16 fp32 bf16', '2') if run.device=='cuda' else ('1,4,6', 'fp32', '1')
    options = [w for kv in zip(('--shapes','--precisions','--rounds'), what) for w in kv]
    ours = ['--backends', 'triton triton_lines', '--no-recompute'] if run.device=='cuda' else []
    return [([*bench, *options, *ours, '--device', run.device, '--out', 'speed.json'], 1)]

def steps(run, work, seconds):
    what = ('cifar10 imagenet32 celebahq256', 'fp16', '3') if run.device=='cuda' else ('digits', 'bf16', '1')
    options = [w for kv in zip(('--steps','--precisions','--rounds'), what) for w in kv]
    return [([*bench, '--shapes', '', *options, '--device', run.device, '--out', 'steps.json'], 1)]

def arms(run, work, seconds):
    "Goes on with what is in results/: a seed that is there is not trained again. A batch of trainings takes four minutes, so fewer are not begun"
    call = [*python, str(root/'tools/arms.py')]
    if run.device!='cuda': return [([*call, '14_cuda', '--toy', '--seeds', '1', '--out', 'arms_14_cuda.json'], 1)]
    for f in root.glob('results/arms_*_cuda.*'): shutil.copy(f, work)
    return [([*call, '14_cuda', '--only', 'arms', '--out', 'arms_14_cuda.json'], .6),
            ([*call, '14_cuda', '--only', 'ablations', '--workers', '22', '--out', 'arms_14_cuda.json'], 1),
            *[([*call, '28_cuda', '--only', 'arms', '--out', 'arms_28_cuda.json'], 1)]*(seconds>600)]

def gather_arms(work):
    "arms.zip of what the arms have left until now"
    bundle(work/'arms.zip', [f for f in sorted(work.glob('arms_*')) if f.suffix in ('.json','.npz')])

# the model of Fashion-MNIST that comes with the package; an epoch takes about eleven seconds
MODEL = 'depth=6 downsample=2,4 h=80 features=96 free_bits=0.05'
def training(run, work, seconds):
    "As many epochs as fit; what it costs to judge the model by importance is left"
    sdn = lambda name: [*python, '-c', f'from sdn_nb.cli import sdn_{name}; sdn_{name}.main()']
    if run.device!='cuda':
        return [([*sdn('train'), 'digits', '--epochs', '1', '--out', 'run'], .8), ([*sdn('eval'), 'run', '--samples', '2'], 1)]
    changes = [w for c in run.changes or MODEL.split() for w in ('--set',c)]
    epochs = run.epochs or max(1, int((seconds-60)/11.5))
    where = ['--path', run.env['SDN_FASHION_MNIST']] if 'SDN_FASHION_MNIST' in run.env else []
    train = [*sdn('train'), 'fashion_mnist', '--fp16', '--bs', '128', '--epochs', str(epochs), *changes, *where, '--out', 'run']
    judge = [*sdn('eval'), 'run', '--split', 'test', '--bs', '8192']
    return [(train, max(.5, 1-35/seconds)), (judge, .5), ([*judge, '--samples', '64'], 1)]

def gather_training(work):
    "training.zip of what the run's folder has until now, without the checkpoint"
    names = 'config.json','model.safetensors','history.csv','evaluation.json','README.md'
    bundle(work/'training.zip', [f for n in names if (f := work/'run'/n).exists()])
    if (f := work/'run/evaluation.json').exists(): shutil.copy(f, work)

def bundle(path, files):
    "Put files into one archive, if there are any"
    if not files: return
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for f in files: z.write(f, f.name)

def about_environment(d):
    name = d['card']['name'] if d.get('card') else 'CPU'
    copy,product = d['copy_bytes_per_second']/1e12,d['product_flops_per_second']/1e12
    return f"{name}, copy {copy:.2f} TB/s, product {product:.1f} TFLOP/s, torch {d['versions']['torch']}"
def about_tests(d):
    counts = ', '.join(f'{n} {k}' for k,n in d['counts'].items() if n) or 'no test ran'
    return counts + (f", {len(d['unfinished'])} unfinished" if d['unfinished'] else '')
def blame(d):
    "Lines with the tests that did not end or failed, those with the same message together"
    groups = {}
    for t in d.get('failed', ()): groups.setdefault((t['message'].splitlines() or [''])[0][:160], []).append(t['name'])
    short = lambda names: ', '.join(n.removeprefix('tests/gpu/') for n in names)
    lines = [f'UNFINISHED {short([n])[:200]}' for n in d.get('unfinished', ())]
    lines += [f"FAILED {len(names)} x {message}: {short(names)[:300]}" for message,names in groups.items()]
    return lines[:20] + [f'and {len(lines)-20} lines more, see tests.json']*(len(lines)>20)
def about_speed(d):
    row = d['rows'][0]
    times = {k: t['times_published'][0] for k,t in row['training'].items() if k not in ('published','loop')}
    best,at = max(times, key=times.get),','.join(map(str, row['shape']))
    return f"training x published at {at} {row['precision']}: {times[best]:.1f} ({best}); {len(d['rows'])} rows"
def about_steps(d): return ', '.join(f"{r['preset']} {r['form']} {1e3*r['seconds'][0]:.0f} ms" for r in d['steps'])
def about_training(d):
    told = [f"{part} {name} {e['bpd']:.4f} ± {e['stderr']:.4f} ({e['n']} images)"
            for part in ('valid','test') for name,e in d.get(part, {}).items()]
    return ', '.join(told or ['not judged']) + ' bits/dim'

STAGES = [
    Stage('environment', environment, 'measured.json', (), about_environment, .1, 20),
    Stage('tests', tests, 'tests.json', ('tests.json',), about_tests, .45, 20, gather_tests, partial=False),
    Stage('speed', speed, 'speed.json', ('speed.json',), about_speed, .18, 15),
    Stage('steps', steps, 'steps.json', ('steps.json',), about_steps, .17, 15),
    Stage('arms', arms, '', ('arms.zip',), most=.8, least=230, gather=gather_arms),
    Stage('training', training, 'evaluation.json', ('training.zip',), about_training, 1, 30, gather_training),
]

# Running them

def end(process):
    "Ask a process to end, so that it writes what it has; after `GRACE` seconds, kill its whole group"
    try:
        if process.poll() is None: process.send_signal(signal.SIGINT); process.wait(GRACE)
    except subprocess.TimeoutExpired: pass
    finally:
        with suppress(ProcessLookupError, PermissionError): os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired): process.wait(GRACE)

def execute(args, seconds, log, cwd, env, tick):
    "Run `args` as a process group for at most `seconds`, calling `tick` meanwhile: exit status, none if killed"
    limit,nothing = time.monotonic()+seconds,subprocess.DEVNULL
    with open(log, 'ab') as f:
        process = subprocess.Popen(args, stdin=nothing, stdout=f, stderr=f, cwd=cwd, env=env, process_group=0)
    try:
        while (left := limit-time.monotonic())>0:
            with suppress(subprocess.TimeoutExpired): return process.wait(min(1, left))
            tick()
    finally: end(process)

class Run:
    "Stages one after another, within `minutes` from `start`, into the folder `out`"
    def __init__(self, stages, out, device='cuda', minutes=8., broken=None, start=None, changes=(), epochs=0):
        self.stages,self.out,self.device,self.broken = stages,Path(out).resolve(),device,broken or {}
        self.start,self.total = time.monotonic() if start is None else start,60*minutes
        self.changes,self.epochs = changes,epochs                        # of the model that is trained
        self.records,self.heard,self.env = [],0,dict(os.environ)
        self.base = dict(date=datetime.now(timezone.utc).isoformat(timespec='seconds'), device=device)

    def elapsed(self): return time.monotonic()-self.start
    def say(self, text): print(f'[{self.elapsed():5.0f} s] {text}', flush=True)
    def plain(self, args):
        "A command as one would type it in the repository"
        short = lambda a: 'python' if a==sys.executable else a.replace(f'{root}/', '').replace(f'{self.tmp}/', '')
        return shlex.join(map(short, args))

    def go(self):
        "Run all; whether all went well"
        aside(self.out)
        with tempfile.TemporaryDirectory(prefix='sdn_gpu_', ignore_cleanup_errors=True) as tmp:
            self.tmp,why = Path(tmp),None
            for prepare in (self.commit, self.environ):
                try: prepare()
                except KeyboardInterrupt: why = 'stopped'
                except Exception as e: self.say(f'{prepare.__name__}: {e!r}')
            for stage in self.stages:
                try: self.stage(stage, why or self.no_card())
                except KeyboardInterrupt: why = 'stopped'
                except Exception as e: self.fail(e)
                self.save()
            self.report()
        return all(r['outcome']=='ok' for r in self.records)

    def commit(self): self.base |= commit_of()
    def fail(self, e):
        "A stage that could not be run as it should"
        self.records[-1] |= dict(outcome='failed', summary=repr(e))
        self.say(f"{self.records[-1]['stage']}: failed, {e!r}")

    def environ(self):
        "The stages' environment: the repository, what was packed if the machine lacks it, and what the tests look at"
        site,data = self.tmp/'site',packed/'fashion-mnist'
        path = [str(p) for p in (site, root, os.environ.get('PYTHONPATH')) if p]
        self.env |= dict(PYTHONUNBUFFERED='1', PYTHONPATH=os.pathsep.join(path), MPLBACKEND='Agg')
        self.env['SDN_GPU_REPORT'] = str(self.tmp/'tests/report')
        self.env['SDN_REQUIRE_GPU' if self.device=='cuda' else 'SDN_GPU_REHEARSE'] = '1'
        if data.is_dir(): self.env['SDN_FASHION_MNIST'] = str(data)
        if not importlib.util.find_spec('fastai'): self.say(unpack(packed/'wheels', site))

    def no_card(self):
        "Why nothing more can run, where the machine turns out to have no GPU"
        found = self.records and read(self.tmp/'environment/measured.json')
        if self.device=='cuda' and found and not found['card']: return 'no CUDA device here; --device cpu rehearses'

    def stage(self, stage, why):
        "Run one, or say why not"
        left,work = self.total-self.elapsed()-RESERVE,self.tmp/stage.name
        share = stage.most/min(1, sum(s.most for s in self.stages))      # of a part of the stages, larger ones
        limit,done = min(left, max(share*self.total, stage.least)),time.monotonic()
        record = dict(stage=stage.name, outcome='skipped', seconds=0., limit=max(0, round(limit, 1)), commands=[],
                      summary='')
        self.records.append(record)
        if not why and left<=stage.least: why = f'{max(left, 0):.0f} s were left, it takes {stage.least:g} s or more'
        if not why:
            work.mkdir()
            todo = self.commands(stage, work, limit)
            why = todo if isinstance(todo, str) else None
        if why: record['summary'] = why; return self.say(f'{stage.name}: skipped, {why}')
        self.say(f'{stage.name}: at most {limit:.0f} s')
        record['outcome'] = 'stopped'
        try: record['outcome'] = self.all_of(stage, record, todo, work, done+limit)
        finally:
            record['seconds'] = round(time.monotonic()-done, 1)
            self.bring(stage, work)
            record['summary'] = self.summary(stage, record, work)
            self.say(f"{stage.name}: {record['outcome']} after {record['seconds']:.0f} s; {record['summary']}")
            for line in lines_of(work/'log')[-8:] if record['outcome']=='failed' else (): print(f'    {line[:200]}')

    def commands(self, stage, work, limit):
        "What the stage runs, or what a rehearsal of its failure puts in the place"
        how = dict(crash='import sys; sys.exit(1)', hang='import time; time.sleep(86400)', none=None)
        text = how[self.broken.get(stage.name, 'none')]
        return [([*python, '-c', text], 1)] if text else stage.commands(self, work, limit)

    def all_of(self, stage, record, todo, work, until):
        "Run a stage's commands one after another; the outcome of all"
        outcomes = []
        for args,share in todo:
            record['commands'].append(self.plain(args))
            seconds,tick = share*(until-time.monotonic()),lambda: self.tick(stage, work)
            rc = execute(args, seconds, work/'log', work, self.env, tick)
            outcomes.append('killed at its limit' if rc is None else 'ok' if rc==0 else 'failed')
        return next((o for o in ('killed at its limit','failed') if o in outcomes), 'ok')

    def tick(self, stage, work):
        "Keep what a stage has so far, every five seconds, and tell that it is alive, every thirty"
        now,before = int(self.elapsed()),self.heard
        if now//5==before//5: return
        self.heard = now
        self.bring(stage, work); self.save()
        if now//30!=before//30: self.say(f'{stage.name}: {last(work/"log")}')

    def bring(self, stage, work):
        "Copy a stage's files to the output folder, those that are not too large"
        try: stage.gather(work)
        except Exception as e: self.say(f'{stage.name}: its results could not be gathered: {e!r}')
        for f in stage.files:
            if (work/f).exists() and not large(work/f): write(self.out/f, (work/f).read_bytes())

    def summary(self, stage, record, work):
        "One line of what a stage found"
        over = [f'{f} is left out, it has more than {LARGEST//MIB} MiB' for f in stage.files if large(work/f)]
        try: found = stage.summary(d) if stage.results and (d := read(work/stage.results)) else last(work/'log')
        except Exception as e: found = f'no headline: {e!r}'
        return '; '.join(['cut short']*(record['outcome'] in ('killed at its limit','stopped')) + [found] + over)

    def save(self):
        "Write environment.json and log.txt"
        found = read(self.tmp/'environment/measured.json') or {}
        done = dict(seconds=round(self.elapsed(), 1), stages=self.records)
        write(self.out/'environment.json', self.base | found | done)
        logs = [(s.name, self.tmp/s.name/'log') for s in self.stages]
        write(self.out/'log.txt', b'\n'.join(f'==== {n}\n'.encode()+cut(f) for n,f in logs if f.exists()))

    def report(self):
        "Print the outcome of each stage, and of the tests that failed"
        print(f'\n{"stage":12} {"outcome":20} {"seconds":>7}  what was found')
        for r in self.records: print(f"{r['stage']:12} {r['outcome']:20} {r['seconds']:7.1f}  {r['summary'][:200]}")
        for line in blame(read(self.out/'tests.json') or {}): print(line)
        print(f'{self.elapsed():.0f} s; results in {self.out}', flush=True)

NAMES = ['environment.json', 'log.txt', *[f for s in STAGES[1:] for f in s.files]]

def aside(out):
    "Make the folder `out`, and move an earlier run's folder out of the way, to the first free of out.1, out.2 ..."
    if any((out/n).exists() for n in NAMES):
        old = next(p for i in range(1, 10**6) if not (p := out.with_name(f'{out.name}.{i}')).exists())
        old.mkdir()
        for n in NAMES:
            if (out/n).exists(): os.replace(out/n, old/n)
        print(f'the results of an earlier run are now in {old}')
    out.mkdir(parents=True, exist_ok=True)

def installed(name):
    "Whether a distribution is installed"
    try: return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError: return False

def unpack(wheels, site):
    "Unzip the wheels of what is not installed into the folder `site`; what was done, in words"
    site.mkdir(parents=True)
    names = {w.name.split('-')[0]: w for w in sorted(wheels.glob('*.whl')) if not installed(w.name.split('-')[0])}
    for w in names.values(): zipfile.ZipFile(w).extractall(site)
    if not names: return 'fastai is not installed and .gpu/wheels is empty: --pack fills it where there is a network'
    return f'unpacked {", ".join(names)}'

# Packing

# fastai, and what it needs beside torch, torchvision and their like; all of it Python alone, so unzipping installs it
WHEELS = ['fastai==2.8.7', 'fastcore<1.13', 'fasttransform==0.0.2', 'fastdownload<2', 'fastprogress<1.1',
          'plum-dispatch<2.6', 'beartype<0.24', 'rich<16', 'markdown-it-py<5', 'mdurl<1']
FASHION = [f'{p}-{what}-ubyte.gz' for p in ('train','t10k') for what in ('images-idx3','labels-idx1')]

def size(files): return sum(f.stat().st_size for f in files if f.is_file())

def pack_wheels(folder):
    "Download the wheels for Python 3.12 on Linux"
    shutil.rmtree(folder, ignore_errors=True)
    call = [*python, *'-m pip download -q --no-deps --only-binary=:all: -d'.split(), str(folder), *WHEELS]
    call += '--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64'.split()
    p = subprocess.run(call, capture_output=True, text=True)
    if p.returncode:
        why = (p.stderr.strip().splitlines() or ['no message'])[-1]
        error(f'--pack could not download the wheels ({why}). It needs pip and a network.')
    odd = [w.name for w in folder.glob('*.whl') if not w.stem.endswith('-none-any')]
    if odd: error(f'--pack downloaded {", ".join(odd)}, compiled code, which cannot just be unzipped; change WHEELS.')

def fashion_folder(given):
    "Where the four files of Fashion-MNIST are: the folder given, Debian's, or fastai's; none where nowhere"
    has = lambda p: all((p/f).exists() for f in FASHION)
    found = next(filter(has, [Path(given).expanduser() if given else Path('/usr/share/datasets/fashion-mnist')]), None)
    if not given and not found and importlib.util.find_spec('fastai'):
        from fastai.data.external import fastai_path
        found = next(filter(has, [fastai_path('data')/'FashionMNIST/raw']), None)
    if given and not found: error(f'--fashion-mnist must be a folder with {", ".join(FASHION)}; got {given!r}.')
    return found

def pack_fashion(folder, given=None):
    "Copy Fashion-MNIST"
    shutil.rmtree(folder, ignore_errors=True)
    found = fashion_folder(given)
    if not found: return print("Fashion-MNIST is not packed: neither Debian's dataset-fashion-mnist nor fastai's data "
                               "folder has it. --fashion-mnist FOLDER names another.")
    folder.mkdir(parents=True)
    for f in FASHION: shutil.copy(found/f, folder)

def pack(given=None):
    "Gather in .gpu/ what a bare machine lacks; the exit status"
    pack_wheels(packed/'wheels')
    pack_fashion(packed/'fashion-mnist', given)
    write(packed/'commit.json', noted := commit_of())
    tree = (git('ls-files', '-co', '--exclude-standard') or '').splitlines()
    parts = dict(tree=size(root/f for f in tree)) | {k: size((packed/k).glob('*')) for k in ('wheels','fashion-mnist')}
    for k,v in (parts | dict(together=sum(parts.values()))).items(): print(f'{k:14}{v/MIB:6.1f} MiB')
    print(f"commit {noted['commit']}{', with changes' if noted['dirty'] else ''}")
    if sum(parts.values())<=60*MIB: return 0
    print('More than 60 MiB together: remove large files that git does not ignore, or .gpu/fashion-mnist.')
    return 1

# Collecting

# stage, file, where it goes in results/, and keys that it must have
TAKEN = [('environment', 'environment.json', 'gpu/environment.json', ('versions','stages','copy_bytes_per_second')),
         ('tests', 'tests.json', 'gpu/tests.json', ('counts','failed','slowest')),
         ('speed', 'speed.json', 'speed_cuda.json', ('device','rows')),
         ('steps', 'steps.json', 'gpu/steps.json', ('device','steps'))]

def checked(path, keys=()):
    "The JSON object in `path`; raises ValueError, with the reason, where it is damaged or lacks something"
    try: d = read(path)
    except ValueError as e: raise ValueError(f'{path.name} is damaged ({e})') from e
    if d is None: raise ValueError(f'there is no {path.name}')
    lacks = [k for k in keys if k not in d] if isinstance(d, dict) else list(keys) or ['an object']
    if lacks: raise ValueError(f"{path.name} lacks {', '.join(lacks)}")
    return d

def take(stage, file, target, keys, folder, results, records, machine):
    "Put a stage's file into the results: (whether it is taken, what to say); raises ValueError if it is refused"
    r,s = records.get(stage),next(s for s in STAGES if s.name==stage)
    if not r: return False,'not run, the older result stays'
    good = r['outcome']=='ok' or r['outcome']=='killed at its limit' and s.partial and (folder/file).exists()
    if not good: return False,f"{r['outcome']} ({r['summary']}), the older result stays"
    d = checked(folder/file, keys)
    (results/target).parent.mkdir(parents=True, exist_ok=True)
    write(results/target, d | dict(machine=machine | dict(outcome=r['outcome'])))
    return True,r['summary']

def collect(folder, results, force_cpu=False):
    "Check what came back and put it into `results`; the exit status"
    if force_cpu and results.resolve()==root/'results':
        error('--force-cpu is for trying --collect; it does not write to results/: name another folder with --results.')
    try: env = checked(folder/'environment.json', ('device','stages','date'))
    except ValueError as e:
        error(f'--collect must be a folder that tools/gpu.py wrote; got {str(folder)!r}: {e}. Nothing is taken.')
    if not force_cpu and not (env['device']=='cuda' and env.get('card')):
        error(f"--collect must be a folder with a CUDA device's results; got {str(folder)!r}, whose environment.json "
              f"has device {env['device']!r}, card {env.get('card')!r}. Nothing is taken.")
    machine = {k: env.get(k) for k in ('card','driver','versions','commit','dirty','date')}
    records,refused,took = {r['stage']: r for r in env['stages']},False,{}
    for t in TAKEN:
        try: took[t[0]],text = take(*t, folder, results, records, machine)
        except ValueError as e: refused,text = True,f'REFUSED: {e}; the older result stays'
        print(f"{t[0]:12} {'-> '+t[2] if took.get(t[0]) else '':28} {text}")
    if (file := folder/'arms.zip').exists():
        with zipfile.ZipFile(file) as z:
            for name in z.namelist():
                if not re.fullmatch(r'arms_\d+_cuda\.(json|npz)', name): error(f'--collect: {file} holds {name!r}, which is no result.')
                data = z.read(name)
                write(results/name, json.loads(data) | dict(machine=machine) if name.endswith('json') else data)
                print(f"{'arms':12} -> {name}")
    if (file := folder/'training.zip').exists(): print(f'{"training":12} a model, its figures and its curve stay in {file}')
    return int(refused)

# The command line

def broken(text):
    "STAGE=crash or STAGE=hang as a pair"
    name,_,how = text.partition('=')
    if name in [s.name for s in STAGES] and how in ('crash','hang'): return name,how
    names = ', '.join(s.name for s in STAGES)
    raise argparse.ArgumentTypeError(f'must be one of {names}, and crash or hang, as in tests=hang; got {text!r}.')

def positive(text):
    "A number above zero"
    with suppress(ValueError):
        if 0<float(text)<float('inf'): return float(text)
    raise argparse.ArgumentTypeError(f'must be a number of minutes above 0, as in 8 or .5; got {text!r}.')

def parser():
    raw = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser('tools/gpu.py', description=__doc__, formatter_class=raw, allow_abbrev=False)
    names,add = [s.name for s in STAGES],p.add_argument
    add('--out', type=Path, default=root/'gpu_results', metavar='FOLDER', help='where the results go, at most 8 files '
        'of at most 16 MiB (default: gpu_results); those of an earlier run are moved to FOLDER.1, FOLDER.2 ...')
    add('--minutes', type=positive, default=8., metavar='M', help='all has ended then, killing included (default: 8)')
    add('--device', choices=['cuda','cpu'], default='cuda', help='cpu rehearses all at toy size (default: cuda)')
    add('--only', nargs='+', choices=names, metavar='STAGE',
        help=f"run some stages only, of {', '.join(names)}, and first what the machine is")
    add('--set', action='append', default=[], dest='changes', metavar='FIELD=VALUE', help=f'fields of the model that is trained, as for sdn_train (default: {MODEL})')
    add('--epochs', type=int, default=0, help='epochs of its training (default: as many as fit)')
    add('--break', type=broken, action='append', default=[], dest='broken', metavar='STAGE=crash|hang',
        help='let a stage fail or hang, to rehearse this command; can be repeated')
    add('--pack', action='store_true', help='run nothing; gather in .gpu/ what a machine without network '
        'lacks: wheels, Fashion-MNIST, the commit')
    add('--fashion-mnist', metavar='FOLDER', help="for --pack: where the four gzip files are (default: where Debian's "
        'package or fastai has them)')
    add('--collect', type=Path, metavar='FOLDER', help='run nothing; check the results that came back in FOLDER '
        'and put them into results/')
    add('--results', type=Path, default=root/'results', metavar='FOLDER', help='for --collect: instead of results/')
    add('--force-cpu', action='store_true', help='for --collect: take a rehearsal too, but not into results/')
    return p

def stop(*_):
    "A signal ends the stage that runs, and the command once it has written what there is"
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
    raise KeyboardInterrupt

def main(argv=None):
    "The command; its exit status"
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1]==['--inside']: return dict(environment=measure, tests=pytest)[argv[1]](*argv[2:])
    a = parser().parse_args(argv)
    if a.pack: return pack(a.fashion_mnist)
    if a.collect: return collect(a.collect, a.results, a.force_cpu)
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, stop)
    stages = [s for s in STAGES if not a.only or s.name in ('environment',*a.only)]
    return int(not Run(stages, a.out, a.device, a.minutes, dict(a.broken), began, a.changes, a.epochs).go())

if __name__ == '__main__': sys.exit(main())
