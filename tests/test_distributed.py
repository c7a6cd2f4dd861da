"""Two processes on a CPU, started by torchrun, against one with the joined batch. As a script, this file is what the processes run."""
import csv, json, os, subprocess, sys
from pathlib import Path

import pytest, torch
from fastai.basics import Callback, DataLoaders, noop, rank_distrib, set_seed
from sklearn.datasets import load_digits
import sdn_nb, sdn_nb.ladder
from sdn_nb.data import ImageDL, TensorImages, ToUnit
from sdn_nb.training import RunFolder, distribute, vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig, bits_per_dim, free_bits_loss

N_TRAIN,N_VALID,BS = 37,7,8                                       # shares of 19, one image twice, and of 4 and 3
levels = torch.from_numpy(load_digits().images[:N_TRAIN+N_VALID].astype('uint8'))[:,None]

def config(free_bits): return VAEConfig((8,8), channels=1, levels=17, depth=3, downsample=(0,1,2), h=6, z=2, features=4, mix=2, free_bits=free_bits) # the top map has one line
def no_noise(dist, generator=None): return dist.loc + .3*dist.scale

def learner(free_bits, *cbs, **kw):
    set_seed(0)
    kw_dl = dict(bs=BS, after_batch=ToUnit(17), num_workers=0)
    dls = DataLoaders(ImageDL(TensorImages(levels[:N_TRAIN]), shuffle=True, drop_last=True, seed=0, **kw_dl), ImageDL(TensorImages(levels[N_TRAIN:]), **kw_dl), device='cpu')
    learn = distribute(vae_learner(dls, SDNVAE(config(free_bits)), lr=1e-2, ema=.5, clip=1e9, cbs=cbs, **kw))
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def bare(model): return getattr(model, 'module', model)

class Log(Callback):
    "Images of each batch, and before each step weights and gradients"
    order = 100
    def before_fit(self): self.x,self.steps,self.noise = [],[],None
    def before_train(self): self.noise = torch.get_rng_state()
    def before_batch(self):
        if self.training: self.x.append(self.learn.x)
    def after_train(self): self.lengths = len(self.dls.train),len(self.dls.valid)
    def before_step(self): self.steps.append(dict(x=torch.cat(self.x), weights={k: v.clone() for k,v in bare(self.model).state_dict().items()},
        grads={k: None if p.grad is None else p.grad.clone() for k,p in bare(self.model).named_parameters()}, loss=self.loss.item())); self.x = []

class Cut(Callback):
    def before_batch(self):
        if self.training and self.epoch==1 and self.iter==1: raise KeyboardInterrupt

def worker(out, free_bits):
    "Everything that is compared; written for each process"
    sdn_nb.ladder.draw,draw = no_noise,sdn_nb.ladder.draw
    result = {}
    learn = learner(free_bits, Log(), RunFolder(out/f'whole{rank_distrib()}'))
    learn.fit(1)
    result |= dict(steps=learn.log.steps, noise=learn.log.noise, lengths=learn.log.lengths, values=list(learn.recorder.values[-1]), smooth=learn.recorder.losses[0].item(), average=learn.model.state_dict())
    learn = learner(0., Log(), accumulate=2)
    learn.fit(1)
    result |= dict(accumulated=learn.log.steps)
    sdn_nb.ladder.draw = draw
    whole = learner(.1, RunFolder(out/f'noisy{rank_distrib()}'))
    whole.fit(2)
    try: learner(.1, RunFolder(out/'cut', minutes=0), Cut()).fit(2)
    except KeyboardInterrupt: pass
    torch.distributed.barrier()
    result |= dict(done=torch.load(out/'cut'/'checkpoint.pt', weights_only=True)['done'])
    resumed = learner(.1, RunFolder(out/'cut'))
    resumed.fit(2)
    result |= dict(whole=whole.model.state_dict(), resumed=resumed.model.state_dict())
    torch.save(result, out/f'{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()

def command(argv):
    from sdn_nb.cli import sdn_train
    sdn_train.main(argv)

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.argv[1]=='worker': worker(Path(sys.argv[2]), float(sys.argv[3]))
    else: command(sys.argv[2:])
    sys.exit()

pytest.importorskip('accelerate')

def torchrun(*args, cwd):
    path = os.pathsep.join([str(Path(sdn_nb.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    p = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', __file__, *map(str, args)],
        cwd=cwd, env=os.environ|dict(ACCELERATE_USE_CPU='true', PYTHONPATH=path, PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True, timeout=240)
    assert p.returncode==0, p.stderr[-3000:]
    return p

def shares():
    "Images of the two processes in the first epoch: the order of the loader, one image twice, in two halves"
    dl = learner(0.).dls.train
    dl.randomize()
    idxs = list(dl.get_idxs())
    idxs += idxs[:1]
    return [ToUnit(17).encodes(levels[idxs[k:k+19]])[0] for k in (0,19)]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What the two processes found; free bits lie between their mean divergences in the middle block, at the first step"
    out,draw = tmp_path_factory.mktemp('two'),sdn_nb.ladder.draw
    sdn_nb.ladder.draw = no_noise
    try:
        model = learner(0.).model
        with torch.no_grad(): a,b = (model(x[:BS]).kl.mean(0)[1].item() for x in shares())
        assert abs(a-b) > 1e-3*(a+b)
        free_bits = (a+b)/2 + (a+b)*1e-6
        torchrun('worker', out, free_bits, cwd=out)
        yield out,free_bits,[torch.load(out/f'{r}.pt', weights_only=False) for r in (0,1)]
    finally: sdn_nb.ladder.draw = draw

def joined(free_bits, weights, *xs):
    "Loss and gradients of one process, summed over joined batches `xs`"
    model = SDNVAE(config(free_bits))
    model.load_state_dict(weights)
    loss = sum(free_bits_loss(model(x), free_bits) for x in xs)/len(xs)
    loss.backward()
    return loss.item(),{k: p.grad for k,p in model.named_parameters()}

def close(got, want):
    "Layers whose map has one line have no gradient, or zeros"
    for k,w in want.items():
        g = got[k]
        if g is None or w is None: assert (g is None or not g.any()) and (w is None or not w.any()), k
        else: torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5, msg=lambda m: f'{k}: {m}')

def test_images_are_dealt_out(two):
    for r,x in zip(two[2], shares()): 
        assert torch.equal(torch.cat([s['x'] for s in r['steps']]), x[:2*BS]) and len(r['steps'])==2 and r['lengths']==(2,1)

def test_loss_and_gradients_of_the_joined_batch(two):
    _,free_bits,(a,b) = two
    for k in range(2):
        loss,grads = joined(free_bits, a['steps'][k]['weights'], torch.cat([r['steps'][k]['x'] for r in (a,b)]))
        for r in (a,b): close(r['steps'][k]['grads'], grads)
        assert (a['steps'][k]['loss']+b['steps'][k]['loss'])/2 == pytest.approx(loss, rel=1e-5)
        if not k: assert a['smooth']==b['smooth']==pytest.approx(loss, rel=1e-5)

def test_free_bits_of_each_process_alone_would_differ(two):
    _,free_bits,rs = two
    first = [r['steps'][0] for r in rs]
    apart = joined(free_bits, first[0]['weights'], *(s['x'] for s in first))[1]
    with pytest.raises(AssertionError, match='not close'): close(first[0]['grads'], apart)

def test_accumulated_gradients_of_the_joined_batches(two):
    rs = two[2]
    _,grads = joined(0., rs[0]['accumulated'][0]['weights'], torch.cat([r['accumulated'][0]['x'] for r in rs]))
    assert len(rs[0]['accumulated'])==1 and len(rs[0]['accumulated'][0]['x'])==2*BS
    for r in rs: close(r['accumulated'][0]['grads'], grads)

def test_every_validation_image_counts_once(two, monkeypatch):
    out,free_bits,(a,b) = two
    monkeypatch.setattr(sdn_nb.ladder, 'draw', no_noise)
    model = SDNVAE.from_pretrained(out/'whole0')
    x = ToUnit(17).encodes(levels[N_TRAIN:])[0]
    with torch.no_grad(): o = model(x)
    want = [bits_per_dim(v, x).mean().item() for v in (-o.elbo, o.kl.sum(1), -o.log_px)]
    for r in (a,b): assert r['values'][2:5]==pytest.approx(want, rel=1e-5)
    row = next(csv.DictReader(open(out/'whole0'/'history.csv')))
    assert [float(row[f'kl_{k}']) for k in range(3)]==pytest.approx(bits_per_dim(o.kl, x).mean(0).tolist(), rel=1e-5)

def test_one_writer(two):
    out = two[0]
    assert {p.name for p in (out/'whole0').iterdir()}=={'config.json','model.safetensors','history.csv','checkpoint.pt','README.md'} and not (out/'whole1').exists()

def test_processes_agree_and_draw_noise_of_their_own(two):
    a,b = two[2]
    for k,v in a['average'].items(): assert torch.equal(v, b['average'][k]), k
    assert not torch.equal(a['noise'], b['noise'])

def test_resumed_in_the_middle_of_an_epoch(two):
    for r in two[2]:
        assert r['done']==1
        for k,v in r['whole'].items(): assert torch.equal(v, r['resumed'][k]), k

def test_too_few_images_are_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '8')
    with pytest.raises(ValueError, match='with 8 processes each has 5 of the 37 training images, less than a batch of 8'): learner(0.)

def test_command(tmp_path, monkeypatch):
    "Only the first process prints and writes; a run goes on with as many processes as it began with"
    args = 'command','digits','--bs',512,'--out','run','--sample_every',1
    first = torchrun(*args, '--epochs', 1, cwd=tmp_path)
    assert first.stdout.count('validation ELBO')==1
    second = torchrun(*args, '--epochs', 2, '--resume', cwd=tmp_path)
    assert len(list(csv.reader(open(tmp_path/'run/history.csv'))))==3 and second.stdout.count('histogram per pixel')==1
    assert {p.name for p in (tmp_path/'run').iterdir()} == {'config.json','model.safetensors','history.csv','checkpoint.pt','evaluation.json','samples.png','reconstructions.png',
        'learning_curve.png','README.md','samples_epoch_001.png','samples_epoch_002.png'} and json.loads((tmp_path/'run/evaluation.json').read_text())['elbo_bpd']>0
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='has 2 processes, but 1 are there now'): command(['--resume', '--epochs', '3', '--out', 'run'])
