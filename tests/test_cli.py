"""The commands as processes: exit status, the one line of an error, what is left on disk, and death at the worst moments."""
import csv, json, multiprocessing, os, re, resource, shutil, signal, subprocess, sys
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

import numpy as np, pytest, torch
from PIL import Image
from matplotlib.figure import Figure
import sdn_nb
from sdn_nb import runs
from sdn_nb.analysis import draw_learning_curve
from sdn_nb.vae import SDNVAE
from sdn_nb.saving import model_folder, weights_digest

FILES = {'config.json', 'model.safetensors', 'history.csv', 'checkpoint.pt', 'evaluation.json', 'samples.png', 'reconstructions.png', 'learning_curve.png'}
assert FILES==set(runs.FILES)
FILES |= {'README.md'}                                    # the model's card
OPTIONS = dict(sdn_train='--preset --epochs --bs --lr --path --size --seed --no-sdn --width --fp16 --bf16 --accumulate --warmup --minutes --sample_every --recompute --tensorboard --wandb --threads --out --resume --overwrite', sdn_sample='--n --temperature --seed --out', sdn_eval='--samples --split --seed --bs --device', sdn_explore='--port --no-browser')
os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(sdn_nb.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
server = multiprocessing.get_context('forkserver')           # imports torch and fastai once for all commands
server.set_forkserver_preload(['sdn_nb.cli','torchvision.utils','torch._dynamo']) # the latter two come with the first picture and the first sweep

def command(argv, cwd, log, trip, largest=None):
    "What a child process does; `trip` is (function, n, signal): at call n of that function, counted from 0, the process gets the signal"
    from sdn_nb import cli
    multiprocessing.set_start_method('fork', force=True)     # of data loaders' workers, as in a command that the shell has started
    torch.set_num_threads(1)
    os.chdir(cwd)
    if largest:                                              # as if the disk were full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest,largest))
    for fd,name in (1,'out'),(2,'err'): os.dup2(os.open(f'{log}/{name}', os.O_WRONLY|os.O_CREAT|os.O_TRUNC), fd)
    if trip:
        (owner,name),n,sig = trip[0].rsplit('.', 1),*trip[1:]
        owner,calls = resolve_name(owner),count()
        f = getattr(owner, name)
        def tripped(*args, **kwargs):
            if next(calls)==n: os.kill(os.getpid(), sig)
            return f(*args, **kwargs)
        setattr(owner, name, tripped)
    getattr(cli, argv[0]).main(argv[1:])

def run(work, *argv, trip=None, largest=None):
    "Exit status, stdout and stderr of a command, started in `work`"
    with TemporaryDirectory() as log:
        p = server.Process(target=command, args=([str(a) for a in argv], work, log, trip, largest))
        p.start(); p.join(120)
        if p.is_alive(): p.kill(); raise TimeoutError(argv)
        return p.exitcode, *((Path(log)/name).read_text() for name in ('out','err'))

def trained(work, *argv):
    code,_,err = run(work, 'sdn_train', *argv)
    assert code==0, err

@pytest.fixture
def work(tmp_path): return tmp_path

def pngs(folder, n=12, size=(8,8), mode='L', suffix='png', seed=0):
    folder.mkdir(parents=True)
    for i in range(n): Image.fromarray(np.random.RandomState(seed+i).randint(0, 256, (*size,3), np.uint8)).convert(mode).save(folder/f'{i:02}.{suffix}')
    return folder

def tree(folder): return {p.relative_to(folder).as_posix(): p.is_file() and p.read_bytes() for p in folder.rglob('*')}
def weights(run): return (run/'model.safetensors').read_bytes()
def history(run): return [r[:-1] for r in csv.reader(open(run/'history.csv'))]   # without the time
quick = '--preset', 'digits', '--epochs', '2'                                 # a quick run on a folder

@pytest.mark.parametrize('name', OPTIONS)
def test_help_names_every_option(work, name):
    code,out,_ = run(work, name, '--help')
    assert code==0 and set(OPTIONS[name].split()) <= set(re.findall(r'--[\w-]+', out))

def test_from_a_shell(work):
    script = Path(sys.executable).with_name('sdn_sample')    # the installed command, where there is one
    start = [script] if script.exists() else [sys.executable, '-c', 'from sdn_nb.cli import sdn_sample; sdn_sample.main()']
    p = subprocess.run([*start, 'none'], cwd=work, capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr.count('\n'))==(1, '', 1) and p.stderr.startswith('error: ')

# Bad input

def spoilt(folder, name, data):
    (folder/name).write_bytes(data(folder/name) if callable(data) else data)

def half(file): return file.read_bytes()[:file.stat().st_size//2]
def a_run(work, **sections):
    settings = dict(dataset='digits', preset='digits', epochs=2, bs=512, lr=1e-2, ema=.995, seed=0, sdn=True, size=None)
    SDNVAE.from_preset('digits').save_pretrained(work/'a', **(sections or dict(training=settings, data={})))
    spoilt(work/'a', 'checkpoint.pt', b'PK')

def refused(work, *argv, words):
    "The command ends with one line that has all `words`, and nothing has changed on disk"
    before = tree(work)
    code,_,err = run(work, *argv)
    assert code==1 and re.fullmatch(r'error: [^\n]+\n', err) and all(w in err for w in words) and 'Errno' not in err, err
    assert tree(work)==before

def bad(line, words, make=lambda work: None): return pytest.param(line, words, make, id=line)

@pytest.mark.parametrize('line,words,make', [
    bad('sdn_train odd', ["can't be halved", '--size 48 or 64'], lambda w: pngs(w/'odd', 4, (49,50))),
    bad('sdn_train ok --size 101', ['101×101', '--size 96 or 128'], lambda w: pngs(w/'ok')),
    bad('sdn_train foto', ["'foto'", "Did you mean 'photos'?"]),
    bad('sdn_train digits --preset photo', ["'photo'", "Did you mean 'photos'?"]),
    bad('sdn_train no/such', ["'no/such'", 'nor a folder that exists']),
    bad('sdn_train empty', ['no image file'], lambda w: (w/'empty').mkdir()),
    bad('sdn_train broken', ['broken/03.png', 'cannot be read'], lambda w: spoilt(pngs(w/'broken'), '03.png', b'PNG')),
    bad('sdn_train cut', ['cut/03.jpg', 'cannot be read', '--damaged skip'], lambda w: spoilt(pngs(w/'cut', size=(32,32), mode='RGB', suffix='jpg'), '03.jpg', half)),
    bad('sdn_train mixed', ['mixed/00.png is 8x8', 'mixed/big.png is 16x16', 'size=8'], lambda w: Image.new('L', (16,16)).save(pngs(w/'mixed')/'big.png')),
    bad('sdn_train --out a', ['holds a run already', '--resume', '--overwrite'], a_run),
    bad('sdn_train ok --out ok', ['is not a run'], lambda w: pngs(w/'ok')),
    bad('sdn_train ok --out ok/00.png', ['is not a run'], lambda w: pngs(w/'ok')),
    bad('sdn_train ok --preset digits --out ok/00.png/run', ['ok/00.png'], lambda w: pngs(w/'ok')),
    bad('sdn_train --resume --overwrite', ['exclude each other']),
    bad('sdn_train --resume', ['runs/digits has no checkpoint']),
    bad('sdn_train --resume --out a', ['a/config.json'], lambda w: a_run(w, data={})),
    bad('sdn_train --epochs 0', ['epochs']), bad('sdn_train --threads 0', ['--threads must be at least 1']), bad('sdn_train --epochs -3', ['epochs']),
    bad('sdn_train --fp16 --bf16', ['--fp16 and --bf16 exclude each other']),
    bad('sdn_train --accumulate 0', ['--accumulate must be at least 1']), bad('sdn_train --warmup -1', ['--warmup must be zero or more']),
    bad('sdn_train --minutes nan', ['--minutes must be zero or more']), bad('sdn_train --sample_every -1', ['--sample_every must be zero or more']),
    bad('sdn_train --resume --bf16 --out a', ["precision was 'fp32' and 'bf16' is asked for"], a_run),
    bad('sdn_train --resume --accumulate 2 --out a', ['accumulate was 1 and 2 is asked for'], a_run),
    bad('sdn_train --bs 0', ['bs is 0']), bad('sdn_train --lr nan', ['--lr must be']), bad('sdn_train --lr 0', ['--lr must be']),
    bad('sdn_train --seed -1', ['seed is -1']), bad('sdn_train --size 16', ['only a folder can be resized']),
    bad('sdn_sample none', ["no folder 'none'"]),
    bad('sdn_sample a --n 0', ['--n must be at least 1'], a_run),
    bad('sdn_sample a --temperature -1', ['temperature'], a_run), bad('sdn_sample a --temperature nan', ['temperature'], a_run),
    bad('sdn_sample a --seed 99999999999999999999', ['seed'], a_run),
    bad('sdn_sample a --out no/such/x.png', ['no/such'], a_run),
    bad('sdn_sample a', ['model.safetensors'], lambda w: (a_run(w), spoilt(w/'a', 'model.safetensors', half)))])
def test_bad_input(work, line, words, make):
    make(work)
    refused(work, *line.split(), words=words)

# Runs

def test_folder_of_colour_images(work):
    pngs(work/'pictures', size=(8,16), mode='RGB')
    trained(work, 'pictures', '--epochs', 1)
    folder = work/'runs/pictures'
    model = SDNVAE.from_pretrained(folder)
    assert {p.name for p in folder.iterdir()}==FILES and model.sample(2).shape==(2,3,8,16) and model.config.levels==256
    figures = json.loads((folder/'evaluation.json').read_text())
    assert figures.pop('weights')==weights_digest(folder) and len(figures)==2 and all(np.isfinite(list(figures.values())))
    code,out,_ = run(work, 'sdn_sample', 'runs/pictures', '--n', 3, '--out', 'three.png')
    assert (code,out)==(0,'three.png\n') and Image.open(work/'three.png').width>100

def test_learning_curve_is_the_history():
    folder = model_folder('digits')
    rows,ax = list(csv.DictReader(open(folder/'history.csv'))),Figure().subplots()
    draw_learning_curve(folder, ax)
    assert [t.get_text() for t in ax.get_legend().get_texts()]==['ELBO','rate: latent variables','distortion: pixels'] and ax.get_ylim()[0]==0
    for line,name,colour in zip(ax.lines, ('bpd','rate','distortion'), ('k','tab:orange','tab:blue'), strict=True):
        assert list(line.get_xdata())==[int(r['epoch'])+1 for r in rows] and line.get_color()==colour
        np.testing.assert_allclose(line.get_ydata(), [float(r[name]) for r in rows], rtol=1e-12)

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Uninterrupted runs to compare with: digits, and a folder"
    work = tmp_path_factory.mktemp('whole')
    pngs(work/'grey')
    trained(work, 'digits', '--epochs', 2, '--bs', 512, '--out', 'digits')
    trained(work, 'grey', *quick, '--out', 'a')
    return work

def test_seed_decides(work, whole):
    pngs(work/'grey')
    trained(work, 'grey', *quick, '--seed', 0, '--out', 'b')
    assert weights(whole/'a')==weights(work/'b') and history(whole/'a')==history(work/'b')
    for seed in 2,3: trained(work, 'grey', *quick, '--lr', 1e-9, '--seed', seed, '--out', seed)   # the first weights, as good as untouched
    first = [dict(SDNVAE.from_pretrained(work/seed).named_parameters())['first.parametrizations.weight.original1'] for seed in '23']
    assert (first[0]-first[1]).abs().max()>.01

def test_overwrite_replaces_its_own_files_alone(work, whole):
    pngs(work/'grey'); shutil.copytree(whole/'a', work/'a')
    for f in 'notes.txt','checkpoint.pt.txt','sub/config.json': (work/'a'/f).parent.mkdir(exist_ok=True); (work/'a'/f).write_text('mine')
    trained(work, 'grey', *quick, '--seed', 5, '--no-sdn', '--overwrite', '--out', 'a')
    assert all((work/'a'/f).read_text()=='mine' for f in ('notes.txt','checkpoint.pt.txt','sub/config.json'))
    assert weights(work/'a')!=weights(whole/'a') and len(history(work/'a'))==3 and not SDNVAE.from_pretrained(work/'a').config.sdn

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_stopped_in_the_second_epoch_and_resumed(work, whole, sig):
    code,_,err = run(work, 'sdn_train', '--epochs', 2, '--bs', 512, '--out', 'r', trip=('torch.optim.Adamax.step', 3, sig))
    assert code==(1 if sig==signal.SIGINT else -sig) and len(history(work/'r'))==2
    if sig==signal.SIGINT: assert err=='\nstopped; go on with: sdn_train --resume --out r\n'
    trained(work, '--resume', '--out', 'r')
    assert weights(work/'r')==weights(whole/'digits') and history(work/'r')==history(whole/'digits') and {p.name for p in (work/'r').iterdir()}==FILES

def test_stopped_in_the_first_epoch_leaves_nothing(work):
    code,_,err = run(work, 'sdn_train', '--bs', 512, trip=('torch.optim.Adamax.step', 1, signal.SIGINT))
    assert (code,err)==(1,'\nstopped before anything was saved\n') and not tree(work)

@pytest.mark.parametrize('n', [2, 7], ids=['first epoch','second epoch'])
def test_killed_in_the_middle_of_an_epoch(work, n):
    "Files read by two workers, five batches an epoch, and a checkpoint after each"
    pngs(work/'grey')
    args = 'grey',*quick,'--bs',2,'--accumulate',2,'--warmup',.5,'--minutes',0,'--sample_every',1
    trained(work, *args, '--out', 'whole')
    assert run(work, 'sdn_train', *args, '--out', 'a', trip=('torch.optim.Adamax.step', n//2, signal.SIGKILL))[0]==-signal.SIGKILL
    done = torch.load(work/'a'/'checkpoint.pt', weights_only=True)
    assert done['done']==n%5+1-n//5 and done['epoch']==n//5
    trained(work, '--resume', '--out', 'a')
    assert weights(work/'a')==weights(work/'whole') and history(work/'a')==history(work/'whole')

def test_what_has_no_part_in_the_result_may_change(work, whole):
    shutil.copytree(whole/'a', work/'a')
    trained(work, '--resume', '--epochs', 3, '--minutes', 1, '--sample_every', 1, '--out', 'a')
    assert (work/'a/samples_epoch_003.png').exists()
    assert {k: v for k,v in json.loads((work/'a/config.json').read_text())['training'].items() if k in ('epochs','minutes','sample_every')}==dict(epochs=3, minutes=1, sample_every=1)

def test_half_precision(work):
    pngs(work/'grey')
    trained(work, 'grey', *quick, '--bf16', '--out', 'a')
    assert json.loads((work/'a/config.json').read_text())['training']['precision']=='bf16' and len(history(work/'a'))==3

def test_overwrite_removes_pictures_and_curves_of_the_older_run(work, whole):
    pngs(work/'grey'); shutil.copytree(whole/'a', work/'a'); (work/'a/tensorboard').mkdir()
    for f in 'samples_epoch_900.png','samples_epoch_x.png','tensorboard/events.out.1','tensorboard/mine': (work/'a'/f).write_text('old')
    trained(work, 'grey', *quick, '--overwrite', '--out', 'a')
    assert [(work/'a'/f).exists() for f in ('samples_epoch_900.png','samples_epoch_x.png','tensorboard/events.out.1','tensorboard/mine')]==[False,True,False,True]

def test_curves_for_tensorboard(work):
    pytest.importorskip('tensorboard')
    pngs(work/'grey')
    trained(work, 'grey', *quick, '--tensorboard', '--out', 'a')
    assert list((work/'a/tensorboard').glob('events.out.*'))

def test_broken_training_ends_in_one_line(work):
    pngs(work/'grey')
    code,_,err = run(work, 'sdn_train', 'grey', '--preset', 'digits', '--epochs', 30, '--lr', 1e30, '--out', 'a')
    assert code==1 and re.fullmatch(r'error: Guard: 20 steps in a row [^\n]+ is not finite\. Go on [^\n]+\n', err.splitlines(True)[-1]), err

def killed(work, n, function='os.replace'):
    pngs(work/'grey')
    assert run(work, 'sdn_train', 'grey', *quick, '--out', 'a', trip=(function, n, signal.SIGKILL))[0]==-signal.SIGKILL

@pytest.mark.parametrize('n,go_on', [(0,[]), (1,[]), (2,['--resume']), (3,['--resume']), (4,['--resume']), (3,['--overwrite'])])
def test_killed_while_the_first_epoch_is_written(work, whole, n, go_on):
    "Before there is a checkpoint the run may begin anew, from then on it goes on"
    killed(work, n)
    trained(work, *([] if go_on==['--resume'] else ['grey',*quick]), *go_on, '--out', 'a')
    assert weights(work/'a')==weights(whole/'a') and history(work/'a')==history(whole/'a') and {p.name for p in (work/'a').iterdir()}==FILES

@pytest.mark.parametrize('n', range(5))
def test_killed_while_an_older_run_is_replaced(work, whole, n):
    "The files are those of one run, or it is said that they are not; the new run can begin again"
    pngs(work/'grey'); shutil.copytree(whole/'a', work/'a')
    args = 'sdn_train','grey',*quick,'--seed',7,'--overwrite','--out','a'
    assert run(work, *args, trip=('os.replace', n, signal.SIGKILL))[0]==-signal.SIGKILL
    before = tree(work/'a')
    code,_,err = run(work, 'sdn_train', '--resume', '--epochs', 3, '--out', 'a')
    if n==1: assert code==1 and 'checkpoint.pt is of another run than config.json' in err and {k: v for k,v in tree(work/'a').items() if k[0]!='.'}=={k: v for k,v in before.items() if k[0]!='.'}
    else: assert code==0, err
    seed = json.loads((work/'a/config.json').read_text())['training']['seed']
    assert seed==(7 if n else 0)
    trained(work, *args[1:])
    assert json.loads((work/'a/config.json').read_text())['training']['seed']==7

def test_a_full_disk_leaves_the_older_run_and_says_so(work, whole):
    pngs(work/'grey'); shutil.copytree(whole/'a', work/'a')
    before,largest = tree(work/'a'),(work/'a/model.safetensors').stat().st_size+5000
    for argv in ('--resume','--epochs','3'), ('grey',*quick,'--seed','7','--overwrite'):
        code,_,err = run(work, 'sdn_train', *argv, '--out', 'a', largest=largest)
        assert code==1 and re.fullmatch(r'error: File too large: a/checkpoint\.pt\. What was saved before is whole: make room and go on with: sdn_train --resume --out a\n', err.splitlines(True)[-1]) and 'Traceback' not in err, err
        assert tree(work/'a')==before
    code,_,err = run(work, 'sdn_train', 'grey', *quick, '--out', 'b', largest=20_000)
    assert code==1 and re.fullmatch(r'error: File too large: b/model.safetensors\n', err.splitlines(True)[-1]) and not (work/'b').exists()

# Who writes into a folder

def test_two_at_once_in_one_folder(work):
    "The second is told of the first, and leaves its files alone"
    pngs(work/'grey', 64)
    (work/'a').mkdir()
    with TemporaryDirectory() as log:
        argv = ['sdn_train','grey','--preset','digits','--epochs','60','--minutes','0','--out','a']
        first = server.Process(target=command, args=(argv, work, log, None))
        first.start()
        while not ((work/'a/.lock').exists() and (work/'a/.lock').read_text()): assert first.is_alive()
        owner = json.loads((work/'a/.lock').read_text())
        code,_,err = run(work, *argv, '--seed', '1')
        assert code==1 and f"a: process {owner['process']} on {owner['host']} is writing into it" in err and owner['process']==first.pid
        first.kill(); first.join()
    assert (work/'a/.lock').exists()                                     # it had no time to let go
    trained(work, 'grey', *quick, '--out', 'a', '--overwrite')
    assert {p.name for p in (work/'a').iterdir()}==FILES

def test_a_rank_without_other_processes_is_none(work, monkeypatch):
    pngs(work/'grey')
    with TemporaryDirectory() as log:
        p = server.Process(target=ranked, args=(['sdn_train','grey','--preset','digits','--epochs','1','--out','a'], work, log))
        p.start(); p.join(120)
    assert p.exitcode==0 and {p.name for p in (work/'a').iterdir()}==FILES

def ranked(argv, work, log):
    os.environ['RANK'] = '1'
    command(argv, work, log, None)

def test_a_folder_that_cannot_be_is_known_before_training(work):
    pngs(work/'grey'); (work/'file').touch()
    refused(work, 'sdn_train', 'grey', *quick, '--out', '/proc/none/run', words=['No such file or directory: /proc/none'])
    refused(work, 'sdn_train', 'grey', *quick, '--out', 'file/run', words=['exists and is not a run but a file'])

def test_home(work, whole, monkeypatch):
    "A ~ that the shell has left, in every place where a run is named"
    pngs(work/'grey'); (work/'home').mkdir()
    with TemporaryDirectory() as log:
        for argv in (['sdn_train','~/grey',*quick,'--out=~/x'], ['sdn_train','--resume','--epochs','3','--out=~/x'], ['sdn_eval','~/x'], ['sdn_sample','~/x','--n','1','--out=~/y.png'],
                     ['sdn_train','~/grey',*quick,'--init','~/x','--out=~/z']):
            if argv[1]=='~/grey' and not (work/'home/grey').exists(): pngs(work/'home/grey')
            p = server.Process(target=at_home, args=(argv, work, log))
            p.start(); p.join(120)
            assert p.exitcode==0, (argv, (Path(log)/'err').read_text())
    assert not (work/'~').exists() and {'x','z','y.png'} <= {p.name for p in (work/'home').iterdir()}

def at_home(argv, work, log):
    os.environ['HOME'] = f'{work}/home'
    command([str(a) for a in argv], work, log, None)

@pytest.mark.parametrize('function,n', [('os.replace',5), ('os.replace',7), ('torch.serialization._save',1), ('os.replace',9), ('os.replace',11)])
def test_killed_while_a_later_file_is_written(work, whole, function, n):
    "Epoch 2 renames files 5 to 9, its checkpoint the second; the pictures and the evaluation come after them. _save is where torch.save has opened its file"
    killed(work, n, function)
    trained(work, '--resume', '--out', 'a')
    assert weights(work/'a')==weights(whole/'a') and history(work/'a')==history(whole/'a') and FILES <= {p.name for p in (work/'a').iterdir()}

def test_temporary_files_of_a_killed_run_go(work):
    killed(work, 6)
    trained(work, '--resume', '--out', 'a')
    assert {p.name for p in (work/'a').iterdir()}==FILES

@pytest.mark.parametrize('data', [b'PK', half], ids=['junk','half'])
def test_resume_refuses_a_damaged_checkpoint(work, whole, data):
    shutil.copytree(whole/'digits', work/'a'); spoilt(work/'a', 'checkpoint.pt', data)
    refused(work, 'sdn_train', '--resume', '--epochs', 3, '--out', 'a', words=['a/checkpoint.pt'])

def test_resume_does_not_depend_on_how_the_folder_is_named(work):
    pngs(work/'grey')
    trained(work, 'grey', *quick, '--out', 'a')
    trained(work/'grey', '.', '--resume', '--out', '../a')

def test_resume_refuses_other_images(work):
    pngs(work/'grey')
    trained(work, 'grey', *quick, '--out', 'a')
    (work/'grey/00.png').unlink()
    refused(work, 'sdn_train', '--resume', '--epochs', 3, '--out', 'a', words=['grey'])

def test_a_run_is_not_put_among_its_images(work):
    pngs(work/'grey')
    refused(work/'grey', 'sdn_train', '.', *quick, '--size', 8, '--out', 'runs/grey', words=['lies in the folder of images', '--out'])

def test_names_of_ones_own(work):
    "A file that registers a layer and a data set is run before any command; a run's folder never runs it"
    (work/'mine.py').write_text('''import numpy as np
from sdn_nb.data import image_sets, register_dataset
from sdn_nb.layers import ResSDN, register_layer
def own(*args, **kwargs): return ResSDN(*args, **kwargs)
register_layer('Own', own)
register_dataset('stripes', lambda seed, flip, path: image_sets('stripes', np.arange(60*64, dtype=np.uint8).reshape(60, 1, 8, 8)))
''')
    use = '--use', 'mine.py'
    trained(work, 'stripes', '--set', 'layer=Own', '--epochs', 1, '--sample_every', 0, *use)
    assert json.loads((work/'runs/stripes/config.json').read_text())['model']['layer']=='Own'
    for argv in ('sdn_eval','runs/stripes'), ('sdn_sample','runs/stripes','--n','2'), ('sdn_train','--resume','--out','runs/stripes','--epochs','2'):
        code,_,err = run(work, *argv)
        assert code==1 and re.search("'(Own|stripes)'", err) and len(err.strip().splitlines())==1, err
        code,_,err = run(work, *argv, *use)
        assert code==0, err
    (work/'bad.py').write_text('1/0')
    for file,words in ('none.py','No such file or directory: none.py'), ('runs','must be a Python file'), ('bad.py','ZeroDivisionError'):
        code,_,err = run(work, 'sdn_train', 'digits', '--use', file)
        assert code and words in err
