"Importance-weighted likelihood where the truth is known; portions, memory and randomness; what an interruption leaves."
import itertools, json, math, multiprocessing, os, signal
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.basics import DataLoader
from torch import nn
from torch.distributions import Normal
from sdn_nb.evaluation import elbo_bpd, elbo_estimate, iw_bpd
from sdn_nb.vae import SDNVAE, VAEConfig

def loader(x, bs=64): return DataLoader([(i,i) for i in x], bs=bs, num_workers=0)
def f64(*vs): return [torch.as_tensor(v, dtype=torch.float64) for v in vs]
def iw(model, dl, samples, **kw): return iw_bpd(model, dl, samples, progress=False, **kw)

class Recorded(nn.Module):
    "Keeps the size of every call, and whether gradients and training mode were on"
    def __init__(self): super().__init__(); self.calls,self.grad,self.frozen = [],set(),nn.Dropout().eval()
    def note(self, x, n): self.calls.append((len(x),n)); self.grad.add((torch.is_grad_enabled(), self.training))

class Table(Recorded):
    "Image i, told by its pixel, has the weights of row i of a table, given out in order"
    def __init__(self, table): super().__init__(); self.table,self.at = torch.as_tensor(table),{}
    def log_weights(self, x, n=1, generator=None):
        self.note(x, n)
        rows = []
        for i in x.flatten().long().tolist():
            at = self.at.get(i, 0)
            self.at[i] = at+n
            rows.append(self.table[i,at:at+n])
        return torch.stack(rows)

class Linear(Recorded):
    "z ~ N(0, 1), x|z ~ N(wz, s²), so x ~ N(0, w²+s²); posterior: the exact one, shifted by `off` and widened by `wide` of its standard deviations"
    def __init__(self, w=1.5, s=.5, off=0., wide=1.):
        super().__init__()
        self.w,self.s,self.off,self.wide,self.std = w,s,off,wide,(w*w+s*s)**.5
    def exact(self, x): return Normal(*f64(0, self.std)).log_prob(x.double().flatten())
    def log_weights(self, x, n=1, generator=None):
        self.note(x, n)
        x,sd = x.double().flatten()[:,None],self.s/self.std
        q = Normal(self.w*x/self.std**2 + self.off*sd, torch.tensor(self.wide*sd, dtype=torch.float64))
        z = q.loc + q.scale*torch.randn(len(x), n, generator=generator, dtype=torch.float64)
        return Normal(self.w*z, *f64(self.s)).log_prob(x) + Normal(*f64(0, 1)).log_prob(z) - q.log_prob(z)

def images(n, std=1.6, seed=0): return std*torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
def indices(n): return torch.arange(float(n))[:,None,None,None]
def below(d, k=4): return d.mean() <= k*d.std()/len(d)**.5        # not above zero by more than its error allows
def zero(d, k=4): return abs(d.mean()) < k*d.std()/len(d)**.5

# The number

@pytest.mark.parametrize('bs,dl_bs', [(1,10), (3,4), (7,1), (16,10), (17,3), (40,4), (1000,7)])
def test_is_the_log_of_the_mean_weight(bs, dl_bs):
    table = 30*np.random.RandomState(0).randn(10, 16)
    model = Table(table)
    e = iw(model, loader(indices(10), dl_bs), 16, bs=bs)
    want = -np.log(np.exp(table-table.max(1, keepdims=True)).mean(1)) - table.max(1)
    np.testing.assert_allclose(e.bits.numpy(), want/math.log(2), rtol=1e-13)
    assert e.bpd==pytest.approx(want.mean()/math.log(2), rel=1e-13) and e.stderr==pytest.approx(want.std(ddof=1)/10**.5/math.log(2), rel=1e-12)
    assert (e.n,e.samples)==(10,16) and e.bits.dtype==torch.float64
    assert set(model.at.values())=={16}                                 # each image got all its samples, once

def test_dimensions_divide():
    class Flat(nn.Module):
        def log_weights(self, x, n=1, generator=None): return torch.full((len(x),n), -math.log(256.)*3*4*5)
    assert iw(Flat(), loader(torch.zeros(6,3,4,5)), 10).bpd==pytest.approx(8, rel=1e-6)

@pytest.mark.parametrize('base', [-1e5, 0, 1e5])
def test_extreme_weights(base):
    table = np.array([[0,-1e4,-math.inf,-math.inf],[-math.inf]*4,[-700,-700,-700,-700]]) + base
    bits = iw(Table(table), loader(indices(3)), 4, bs=2).bits*math.log(2)
    assert bits[0]==pytest.approx(math.log(4)-base, rel=1e-12) and bits[1]==math.inf and bits[2]==pytest.approx(700-base, rel=1e-12)

def test_single_precision_weights_are_summed_in_double():
    table = (np.random.RandomState(1).rand(1, 4096)*8-3000).astype(np.float32)   # neighbours in single precision are 2e-4 apart here
    want = 3000-math.log(np.exp(table.astype(np.float64)+3000).mean())
    for bs in 1,512,4096: assert iw(Table(table), loader(indices(1)), 4096, bs=bs).bpd==pytest.approx(want/math.log(2), rel=1e-12)

@pytest.mark.parametrize('off,wide,tol', [(.5,1.,.01), (0.,1.5,.01), (.3,1.3,.01)])
def test_exact_likelihood_of_a_linear_gaussian(off, wide, tol):
    model,x = Linear(off=off, wide=wide),images(300)
    d = iw(model, loader(x), 4096, bs=2**14).bits*math.log(2) + model.exact(x)
    assert zero(d) and d.std()/len(d)**.5 < tol

def test_exact_posterior_leaves_nothing_to_chance():
    x = images(20)
    for K in 1,5: np.testing.assert_allclose(iw(Linear(), loader(x), K).bits*math.log(2), -Linear().exact(x), rtol=1e-11)

def test_tightens_with_samples():
    model,x = Linear(off=1.),images(4000)
    gap = {K: iw(model, loader(x, 500), K, seed=K, bs=2**14).bits*math.log(2)+model.exact(x) for K in (1,4,16,64)}
    assert zero(gap[1]-.5)                                              # ELBO: its divergence is off²/2
    assert zero(gap[64]-(math.e-1)/128, 5)                              # Var(w/p)/2K
    for a,b in (1,4),(4,16),(16,64):
        assert below(gap[b]-gap[a]) and gap[a].mean()-gap[b].mean() > 4*((gap[a].var()+gap[b].var())/4000)**.5 * (b<64)
    for g in gap.values(): assert below(-g)                             # never above the truth in the mean

@pytest.mark.parametrize('context', [0, 3])
def test_one_sample_is_the_elbo(context):
    torch.manual_seed(0)
    model = SDNVAE(VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(1,), h=6, z=2, features=5, mix=2, context=context))
    dl = loader(torch.randint(0, 17, (6,1,8,8)).float()/8-1)
    elbos = torch.stack([elbo_estimate(model, dl, s, progress=False).bits for s in range(60)])
    ones = torch.stack([iw(model, dl, 1, seed=s).bits for s in range(60)])
    se = ((elbos.var(0)+ones.var(0))/60)**.5
    assert ((elbos.mean(0)-ones.mean(0)).abs() < 4.5*se).all() and (se>0).all()
    more = torch.stack([iw(model, dl, 16, seed=s).bits for s in range(15)])
    assert (more.mean(0) < ones.mean(0)).all()

def test_standard_error_covers():
    "Of 400 sets about 95 % have the entropy of x within two errors"
    model = Linear(off=.5)
    truth = (.5*math.log(2*math.pi*math.e*model.std**2))/math.log(2)
    es = [iw(model, loader(images(200, model.std, s), 200), 64, seed=s, bs=2**14) for s in range(400)]
    share = sum(abs(e.bpd-truth) < 2*e.stderr for e in es)/400
    spread = np.std([e.bpd for e in es])/np.mean([e.stderr for e in es])
    assert .92 < share < .98 and .9 < spread < 1.1

def test_one_image_has_no_error():
    e = iw(Linear(), loader(images(1)), 4)
    assert e.n==1 and math.isnan(e.stderr) and math.isfinite(e.bpd)

def test_elbo_bpd_is_the_mean_of_its_estimate():
    torch.manual_seed(0)
    model = SDNVAE.from_preset('digits')
    dl = loader(torch.randint(0, 17, (20,1,8,8)).float()/8-1, 8)
    e = elbo_estimate(model, dl, 3, progress=False)
    assert elbo_bpd(model, dl, 3, progress=False)==e.bpd==pytest.approx(e.bits.mean().item()) and (e.n,e.samples)==(20,1)
    assert '±' in str(e) and str(e).startswith(f'{e.bpd:.3f}')

# Time

def ticking(monkeypatch):
    "A clock that goes on by a second whenever it is looked at"
    clock = itertools.count()
    monkeypatch.setattr('sdn_nb.evaluation.time', SimpleNamespace(monotonic=lambda: next(clock)))

def test_stops_when_time_is_up(monkeypatch, tmp_path):
    x,kw = images(10),dict(seed=2, bs=16)
    whole = iw(Linear(off=1.), loader(x), 8, **kw)                      # two images at a time
    ticking(monkeypatch)
    part = iw(Linear(off=1.), loader(x), 8, seconds=2.5, file=tmp_path/'iw.jsonl', **kw)
    assert part.n==6 and torch.equal(part.bits, whole.bits[:6]) and part.bpd==pytest.approx(whole.bits[:6].mean().item())
    rest = Linear(off=1.)
    assert torch.equal(iw(rest, loader(x), 8, file=tmp_path/'iw.jsonl', **kw).bits, whole.bits) and len(rest.calls)==2
    assert iw(Linear(off=1.), loader(x), 8, seconds=0, **kw).n==2       # never none

# Memory and randomness

@pytest.mark.parametrize('samples,bs', [(1,8), (3,8), (8,8), (9,8), (1000,8), (1000,64), (100000,4096)])
def test_memory_does_not_grow_with_samples(samples, bs):
    model = Linear()
    iw(model, loader(images(3), 2), samples, bs=bs)
    assert max(b*n for b,n in model.calls) <= bs and sum(b*n for b,n in model.calls)==3*samples

def test_neither_gradients_nor_traces():
    model = Linear()
    torch.manual_seed(4); want = torch.rand(2); torch.manual_seed(4)
    iw(model, loader(images(5)), 3)
    assert torch.equal(torch.rand(2), want) and model.grad=={(False,False)} and model.training and not model.frozen.training
    class Bad(Linear):
        def log_weights(self, *a): raise RuntimeError('no')
    bad = Bad()
    with pytest.raises(RuntimeError, match='^no$'): iw(bad, loader(images(5)), 3)
    assert bad.training                                                 # and the mode is set back after an error

def test_depends_on_seed_and_image_alone():
    model,x = Linear(off=1.),images(12)
    a = iw(model, loader(x, 5), 32, bs=16).bits                         # one image at a time
    torch.manual_seed(9)
    assert torch.equal(iw(model, loader(x, 12), 32, bs=16).bits, a)
    y = x.clone(); y[[0,3]] += 1
    b = iw(model, loader(y, 12), 32, bs=16).bits
    assert (a!=b).nonzero().flatten().tolist()==[0,3]
    assert (iw(model, loader(x, 5), 32, seed=1, bs=16).bits!=a).all()
    twins = torch.cat([iw(model, loader(x[:1].expand(12,1,1,1), 5), 32, seed=s, bs=16).bits for s in range(3)])
    assert len(twins.unique())==36                                      # equal images, each with samples of its own, at every seed

@pytest.mark.parametrize('kw', [dict(samples=0), dict(samples=2.5), dict(samples=4, bs=0), dict(samples=4, seed=-1)])
def test_refuses_impossible_numbers(kw):
    with pytest.raises(ValueError, match='iw_bpd: `(samples|bs|seed)` must be a whole number'): iw(Linear(), loader(images(2)), **kw)

def test_refuses_no_images():
    for f in (lambda: iw(Linear(), loader([]), 2), lambda: elbo_bpd(Linear(), loader([]), progress=False)):
        with pytest.raises(ValueError, match='has no images'): f()

# Interruption

class Stopped(BaseException): "As good as Ctrl-C, which would stop pytest too"

class Weak(Linear):
    "Breaks down, or kills its own process, at call `n`"
    def __init__(self, n, sig=None): super().__init__(off=1.); self.n,self.sig = n,sig
    def log_weights(self, x, n=1, generator=None):
        if len(self.calls)==self.n:
            if self.sig: os.kill(os.getpid(), self.sig)
            raise Stopped
        return super().log_weights(x, n, generator)

sizes = pytest.mark.parametrize('samples,bs', [(6,4), (4,4), (3,8), (1,5)], ids=lambda v: str(v))

@sizes
def test_goes_on_after_an_interruption(tmp_path, samples, bs):
    x = images(11)
    whole = iw(m := Linear(off=1.), loader(x), samples, bs=bs)
    for n in range(len(m.calls)):
        file = tmp_path/f'{n}.jsonl'
        with pytest.raises(Stopped): iw(Weak(n), loader(x, 3), samples, bs=bs, file=file)
        second = Weak(-1)
        again = iw(second, loader(x, 7), samples, bs=bs, file=file)
        per_group = -(-samples//bs)
        assert torch.equal(again.bits, whole.bits) and again[:4]==whole[:4]
        assert len(second.calls)==len(m.calls)-n//per_group*per_group   # nothing that was finished is done again
        third = Weak(0)
        assert torch.equal(iw(third, loader(x), samples, bs=bs, file=file).bits, whole.bits)   # all was finished: no call
    assert not list(tmp_path.glob('.*'))

def test_goes_on_from_a_line_cut_anywhere(tmp_path):
    x,file = images(5),tmp_path/'iw.jsonl'
    whole = iw(Linear(off=1.), loader(x), 3, bs=6, file=file).bits
    data = file.read_bytes()
    for cut in range(data.index(b'\n')+1, len(data)):
        file.write_bytes(data[:cut])
        assert torch.equal(iw(Linear(off=1.), loader(x), 3, bs=6, file=file).bits, whole)
        assert file.read_bytes()==data

def child(file, n): iw(Weak(n, signal.SIGKILL), loader(images(9), 4), 5, bs=2, file=file)

@pytest.mark.parametrize('n', [0, 4, 13, 26])
def test_goes_on_after_a_sudden_death(tmp_path, n):
    file = tmp_path/'iw.jsonl'
    p = multiprocessing.get_context('fork').Process(target=child, args=(file, n))
    p.start(); p.join(60)
    assert p.exitcode==-signal.SIGKILL and len(file.read_text().splitlines())==1+n//3
    second = Weak(-1)
    again = iw(second, loader(images(9), 4), 5, bs=2, file=file)
    assert torch.equal(again.bits, iw(Linear(off=1.), loader(images(9)), 5, bs=2).bits) and len(second.calls)==27-n//3*3

@pytest.mark.parametrize('now,word', [(dict(x=images(5)), 'images was 3 and is 5 now'), (dict(samples=5), 'samples was 4 and is 5 now'), (dict(seed=2), 'seed was 1 and is 2 now'), (dict(bs=3), 'bs was 2 and is 3 now'),
    (dict(identity=dict(model='b', data='x')), 'model was a and is b now'), (dict(identity=dict(model='a', data='x', more=1)), 'more was None and is 1 now'), (dict(identity={}), 'data was x and is None now')])
def test_refuses_another_evaluation(tmp_path, now, word):
    file,x = tmp_path/'iw.jsonl',images(3)
    kw = dict(samples=4, seed=1, bs=2, identity=dict(model='a', data='x'))
    iw(Linear(), loader(x), file=file, **kw)
    before = file.read_bytes()
    with pytest.raises(ValueError) as e: iw(Linear(), loader(now.pop('x', x)), file=file, **kw|now)
    assert word in str(e.value) and str(file) in str(e.value) and file.read_bytes()==before

@pytest.mark.parametrize('data', [b'', b'notes', b'notes\nof mine\n', b'[1]\n[2]\n', b'3\n', b'{"samples": 4}\n5\n', b'{"a": 1}\n[["b"]]\n', b'\xff\xfe\n'])
def test_refuses_a_file_of_another_kind(tmp_path, data):
    file = tmp_path/'iw.jsonl'
    file.write_bytes(data)
    with pytest.raises(ValueError, match='is not a file that iw_bpd has written'): iw(Linear(), loader(images(3)), 4, file=file)
    assert file.read_bytes()==data

def test_file_is_one_json_a_line(tmp_path):
    file = tmp_path/'iw.jsonl'
    e = iw(Linear(), loader(images(5)), 2, seed=7, bs=4, file=file, identity=dict(size=(8,8)))
    head,*groups = map(json.loads, file.read_text().splitlines())
    assert head==dict(size=[8,8], images=5, samples=2, seed=7, bs=4) and [(g['first'],len(g['bits'])) for g in groups]==[(0,2),(2,2),(4,1)] and sum((g['bits'] for g in groups), [])==e.bits.tolist()
    assert all(g.keys()=={'first','bits','check'} for g in groups)
    assert iw(Weak(0), loader(images(5)), 2, seed=7, bs=4, file=file, identity=dict(size=(8,8))).bpd==e.bpd   # a tuple is the list that JSON made of it

# Files that somebody has changed

def tampered(tmp_path, change, **kw):
    "Lines of a finished file before and after `change`, the estimate that goes on from them, and how many groups it computed"
    file,x = tmp_path/'iw.jsonl',images(11)
    whole = iw(Linear(off=1.), loader(x), 4, bs=8, file=file)
    written = file.read_text()
    head,*lines = written.splitlines(True)
    file.write_text(head+''.join(change(lines)))
    second = Linear(off=1.)
    again = iw(second, loader(x), 4, bs=8, file=file)
    assert torch.equal(again.bits, whole.bits) and again[:4]==whole[:4]
    assert sorted(file.read_text().splitlines()[1:], key=lambda l: json.loads(l)['first'])==[l.strip() for l in lines]
    third = Weak(0)
    assert torch.equal(iw(third, loader(x), 4, bs=8, file=file).bits, whole.bits)   # all is there again
    return len(second.calls)

def without(*at): return lambda lines: [l for i,l in enumerate(lines) if i not in at]

@pytest.mark.parametrize('at', [(0,), (2,), (5,), (1,2), (0,5), range(6)], ids=str)
def test_a_removed_line_moves_nothing(tmp_path, at): assert tampered(tmp_path, without(*at))==len(at)

@pytest.mark.parametrize('change', [lambda l: l[::-1], lambda l: l[3:]+l[:3]])
def test_the_order_of_lines_does_not_matter(tmp_path, change): assert tampered(tmp_path, change)==0

def edit(i, **changes): return lambda lines: [json.dumps(json.loads(l)|changes)+'\n' if j==i else l for j,l in enumerate(lines)]

@pytest.mark.parametrize('i,changes', [(1,dict(bits=[1.,2.])), (1,dict(bits=[])), (1,dict(first=4)), (2,dict(check=0)), (5,dict(bits=[0.,0.,0.])), (0,dict(first=10))], ids=str)
def test_a_changed_line_is_computed_again(tmp_path, i, changes):
    with pytest.warns(UserWarning, match='1 lines were changed or are there twice. What is missing is computed again'): assert tampered(tmp_path, edit(i, **changes))==1

def test_a_line_that_is_there_twice(tmp_path):
    with pytest.warns(UserWarning, match='1 lines'): assert tampered(tmp_path, lambda l: [*l, l[2]])==0

def test_a_line_of_another_evaluation(tmp_path):
    other = tmp_path/'other.jsonl'
    iw(Linear(off=2.), loader(images(11, seed=3)), 4, seed=5, bs=8, file=other)
    foreign = other.read_text().splitlines(True)[3]
    with pytest.warns(UserWarning, match='1 lines'): assert tampered(tmp_path, lambda l: [*l[:2], foreign, *l[3:]])==1

@pytest.mark.parametrize('line', ['{"first": 2}', '{"bits": [1.0], "check": 3}', '[1.0, 2.0]', '{}', 'null'])
def test_a_line_of_another_kind_is_refused(tmp_path, line):
    with pytest.raises(ValueError, match='is not a file that iw_bpd has written'): tampered(tmp_path, lambda l: [*l[:2], line+'\n', *l[2:]])

def test_a_file_of_an_earlier_version_goes_on(tmp_path):
    "Lines were lists without positions; they are written anew with them"
    assert tampered(tmp_path, lambda lines: [json.dumps(json.loads(l)['bits'])+'\n' for l in lines[:4]])==2

def test_images_that_are_not_finite_have_no_price():
    model = SDNVAE.from_preset('digits')
    x = torch.zeros(3,1,8,8); x[1,0,2,2] = math.nan
    for f in (lambda: elbo_estimate(model, loader(x), progress=False), lambda: iw(model, loader(x), 2)):
        with pytest.raises(ValueError, match=r'images \[1\] of a batch, counted from 0, are not finite'): f()

def test_a_short_line_of_an_earlier_version_moves_nothing(tmp_path):
    def older(lines): return [json.dumps(json.loads(l)['bits'][:1 if i==2 else None])+'\n' for i,l in enumerate(lines)]
    with pytest.warns(UserWarning, match='1 lines'): assert tampered(tmp_path, older)==1
