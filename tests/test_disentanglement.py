"""Metrics of disentanglement against loops written out, against formulas, and under changes that must not matter"""
import sys, types, warnings
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import numpy as np, pytest, torch
from scipy.stats import entropy, ortho_group
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sdn_nb.disentanglement import DCI, METRICS, Rows, _purity, beta_vae_metric, dci, encoder, evaluate, factor_vae_metric, mig, mutual_information, sap

sizes = (5,3,4,8)
n = np.array(sizes)
def standard(f): return (f-(n-1)/2)/((n**2-1)/12)**.5
rotation = ortho_group.rvs(4, random_state=1)
def mixed(f): return standard(f) @ rotation
entries = np.random.default_rng(0).normal(size=(n.prod(), 4))
def listed(f): return entries[np.ravel_multi_index(f.T, sizes)]
def blurred(f): return mixed(f) + .7*listed(f)                          # between the extremes
def dead(f): return np.zeros((len(f), 3))

trials = dict(n_train=800, n_test=400)
quick = dict(beta_vae=partial(beta_vae_metric, **trials), factor_vae=partial(factor_vae_metric, **trials), mig=mig, sap=partial(sap, **trials), dci=partial(dci, **trials))
each = pytest.mark.parametrize('name', quick)
def value(name, encode, sizes=sizes, **kw): return np.array(quick[name](encode, sizes, **kw))

# what the numbers are

class Recorder:
    "Codes of factors, and all factors that were asked for, in order"
    def __init__(self, encode): self.encode,self.calls = encode,[]
    def __call__(self, f):
        self.calls.append(f.copy())
        return self.encode(f)

def held(groups):
    "The one factor that agrees within every one of the groups (groups, members, k)"
    agree = [j for j in range(groups.shape[-1]) if (groups[:,:,j]==groups[:,:1,j]).all()]
    assert len(agree)==1
    return agree[0]

@pytest.mark.parametrize('encode', [blurred, mixed, lambda f: standard(f)[:,:3]])
def test_beta_vae_metric_is_the_loop(encode):
    "Points and labels by a loop over all pairs, from nothing but the factors that were asked for"
    rec,L = Recorder(encode), 20
    got = beta_vae_metric(rec, sizes, n_train=700, n_test=300, pairs=L, seed=3)
    X,y = [],[]
    for groups in np.concatenate(rec.calls).reshape(1000, L, 2, 4):
        y.append(held(groups))
        X.append(sum(abs(encode(pair[:1])[0]-encode(pair[1:])[0]) for pair in groups)/L)
    assert np.bincount(y).min()>200                                     # each factor about a quarter of the time
    model = LogisticRegression(max_iter=5000, tol=1e-8).fit(X[:700], y[:700])
    right = sum(model.predict([x])[0]==k for x,k in zip(X[700:], y[700:]))
    assert got==pytest.approx(right/300, abs=.005)

def test_pairs_take_all_values_of_the_factor_that_agrees():
    rec = Recorder(standard)
    beta_vae_metric(rec, sizes, n_train=200, n_test=2, pairs=64)
    for groups in np.concatenate(rec.calls).reshape(-1, 64, 2, 4)[:50]: assert len(set(groups[:,0,held(groups)]))>1

@pytest.mark.parametrize('encode, n_train', [(lambda f: blurred(f)*[1,5,1,.2], 700), (listed, 30), (lambda f: np.c_[standard(f)[:,:3], .01*standard(f)[:,3]], 700)])
def test_factor_vae_metric_is_the_loop(encode, n_train):
    "With dimensions of unequal scales; with so few votes that chance decides what a dimension stands for; with one that may not vote"
    rec,L = Recorder(encode), 16
    got = factor_vae_metric(rec, sizes, n_train=n_train, n_test=1000-n_train, batch=L, n_var=500, seed=3)
    assert len(rec.calls[0])==500
    overall = [np.var([encode(f[None])[0,i] for f in rec.calls[0]], ddof=1) for i in range(4)]
    votes = [{k: 0 for k in range(4)} for _ in range(4)]
    right = 0
    for t,batch in enumerate(np.concatenate(rec.calls[1:]).reshape(1000, L, 4)):
        k,z = held(batch[None]),encode(batch)
        ratio = {i: np.var(z[:,i], ddof=1)/overall[i] for i in range(4) if overall[i]**.5>.05}
        vote = min(ratio, key=ratio.get)
        if t<n_train: votes[vote][k] += 1
        else: right += k==max(votes[vote], key=votes[vote].get)
    assert got==pytest.approx(right/(1000-n_train))

def test_mutual_information_is_the_sum_over_all_cells():
    rec = Recorder(blurred)
    got = mutual_information(rec, sizes, n=1000, bins=7)
    f = np.concatenate(rec.calls)
    z = blurred(f)
    for i in range(4):
        edges = np.linspace(z[:,i].min(), z[:,i].max(), 8)
        cell = [min(sum(v>=e for e in edges), 7) for v in z[:,i]]
        for j in range(4):
            total = 0
            for c in set(cell):
                for v in range(sizes[j]):
                    both = np.mean([a==c and b==v for a,b in zip(cell, f[:,j])])
                    if both: total += both*np.log(both/(np.mean([a==c for a in cell])*np.mean(f[:,j]==v)))
            assert got[i,j]==pytest.approx(total, abs=1e-9)

def test_mutual_information_of_a_parity_is_with_no_bit_alone():
    assert mutual_information(lambda f: np.c_[f.sum(1)%2, f[:,0]], (2,2,2), n=100_000)==pytest.approx(np.array([[0,0,0],[np.log(2),0,0]]), abs=1e-4)

def test_fewer_bins_than_values_lose_information():
    m = mutual_information(lambda f: f, (40,2), n=40_000)
    assert m[0,0]==pytest.approx(np.log(20), abs=1e-3)

def test_importances_of_twice_and_half():
    "Two factors in one dimension, one in two: rows and columns of the importances by hand"
    encode = lambda f: np.c_[f[:,0]+10*f[:,1], f[:,2], f[:,2], f[:,3]]
    d,c,i = dci(encode, sizes, **trials)
    assert i==pytest.approx(1, abs=.01)
    row = 1-np.log(2)/np.log(4)                                         # purity of two equal entries of four
    assert d==pytest.approx((2*row+2)/4, abs=.03) and (3+row)/4-.02<c<1  # a forest may prefer one of two equals

# known answers

def test_perfect():
    for name in quick: assert value(name, standard)==pytest.approx(1, abs=.03), name

def test_a_list_is_a_guess():
    "On so many combinations that few are drawn twice, and a forest can remember few answers"
    big = (10,10,10,8)
    table = np.random.default_rng(0).normal(size=(8000, 4))
    encode = lambda f: table[np.ravel_multi_index(f.T, big)]
    for name in ('beta_vae','factor_vae'): assert value(name, encode, big)==pytest.approx(1/4, abs=.07)
    for name in ('mig','sap'): assert value(name, encode, big)==pytest.approx(0, abs=.03)
    *pure,right = value('dci', encode, big)
    guess,again = np.mean(1/np.array(big)),1-(1-1/8000)**800            # a right guess; drawn in training too
    assert pure==pytest.approx([0, 0], abs=.01) and guess-.03<right<guess+again+.03

def test_rotation():
    for name in ('mig','sap'): assert value(name, mixed)<.45, name
    assert max(value('dci', mixed)[:2])<.4 and value('beta_vae', mixed)>.8

@pytest.mark.parametrize('metric', [beta_vae_metric, factor_vae_metric])
def test_pairs_that_cannot_be_told_apart_cost_half_of_their_answers(metric):
    encode = lambda f: np.c_[f[:,0]+f[:,1], f[:,0]-f[:,1], f[:,2:]]
    assert metric(encode, (6,6,6,6), 2000, 2000)==pytest.approx(3/4, abs=.04)

def test_one_factor_twice_costs_mig_and_sap_that_factor():
    encode = lambda f: standard(f)[:,[0,1,2,3,3]]
    for name in ('mig','sap'): assert value(name, encode)==pytest.approx(3/4, abs=.03)
    for name in ('beta_vae','factor_vae'): assert value(name, encode)==1

def test_one_factor_missing():
    encode = lambda f: standard(f)[:,:3]
    assert value('beta_vae', encode)==1
    for name in ('factor_vae','mig','sap'): assert value(name, encode)==pytest.approx(3/4, abs=.06), name

def test_one_dimension():
    "It has no rival; a vote is always for it, and right for one factor"
    encode = lambda f: f[:,:1]
    for name in ('mig','sap'): assert value(name, encode)==pytest.approx(1/4, abs=.02), name
    assert value('factor_vae', encode)==pytest.approx(1/4, abs=.07)
    assert value('dci', encode)[1]==1

# what must not matter

@each
def test_order_of_dimensions(name):
    a,b = value(name, blurred),value(name, lambda f: blurred(f)[:,[2,0,3,1]])
    assert a==pytest.approx(b, abs=.02 if name in ('beta_vae','dci') else 1e-12) # optimum to a tolerance; forests break ties at random

@each
def test_signs(name):
    a,b = value(name, mixed),value(name, lambda f: mixed(f)*[1,-1,-1,1])
    assert a==pytest.approx(b, abs=.02 if name in ('dci','sap','mig') else .003) # thresholds and edges of bins fall to the other side

@pytest.mark.parametrize('name', [k for k in quick if k!='beta_vae'])
def test_scales(name):
    a,b = value(name, blurred),value(name, lambda f: blurred(f)*[4,.5,32,1] + [0,3,0,-7])
    assert a==pytest.approx(b, abs=.02 if name=='dci' else 1e-9)

@each
def test_a_dimension_that_is_constant(name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a,b = value(name, blurred),value(name, lambda f: np.insert(blurred(f), 2, 3.14, 1))
    if name=='dci': a,b = a[[0,2]],b[[0,2]]                             # completeness is in units of log d
    assert a==pytest.approx(b, abs=.02 if name in ('beta_vae','dci') else 1e-12)

def test_nothing_but_constants():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert value('factor_vae', dead)==0 and value('mig', dead)==0 and value('sap', dead)==0
        assert factor_vae_metric(lambda f: np.c_[standard(f), 0*f[:,0]], sizes, threshold=0, **trials)==1
        assert value('beta_vae', dead)==pytest.approx(1/4, abs=.05)
        assert value('dci', dead)[:2]==pytest.approx([0,0], abs=0)

def test_threshold_is_a_standard_deviation():
    for s,want in ((.06,1),(.04,0)): assert factor_vae_metric(lambda f: s*standard(f), sizes, **trials)==want
    assert factor_vae_metric(lambda f: .04*standard(f), sizes, threshold=.03, **trials)==1

@each
def test_arrays_and_tensors_and_seeds(name):
    np.random.seed(0); torch.manual_seed(0)
    a = value(name, blurred, seed=5)
    state = np.random.get_state()[1].copy()
    w = torch.ones(1, requires_grad=True)
    b = value(name, lambda f: torch.as_tensor(blurred(f))*w, seed=np.random.default_rng(5))
    assert np.array_equal(a, b) and np.array_equal(state, np.random.get_state()[1])
    assert not np.array_equal(a, value(name, blurred, seed=6))

@pytest.mark.parametrize('k', [2,3])
def test_unequal_sizes(k):
    for s in combinations((2,17,3,9), k):
        encode = lambda f: f - np.array(s)/2
        for name in quick: assert np.min(value(name, encode, s))>.9, (name, s)

# together

def test_evaluate_is_mean_and_interval():
    values = iter([1.,2.,3.,4.,10.])
    out = evaluate(None, None, metrics=dict(a=lambda encode, sizes, seed: next(values), b=lambda encode, sizes, seed: DCI(.1,.2,.3)))
    assert out['a'].mean==4 and out['a'].half==pytest.approx(2.776*12.5**.5/5**.5, rel=1e-3) # table of Student's t, 4 degrees of freedom
    assert set(out)=={'a','disentanglement','completeness','informativeness'}
    assert out['completeness']==pytest.approx((.2,0))

def test_evaluate_draws_anew_each_time_and_repeats_with_its_seed():
    run = lambda seed: evaluate(blurred, sizes, 2, seed, dict(mig=partial(mig, n=500), beta=quick['beta_vae']))
    assert run(0)==run(0)!=run(1) and run(0)['mig'].half>0
    assert set(METRICS)=={'beta_vae','factor_vae','mig','sap','dci'}

# arrays

everything = np.array(list(np.ndindex(*sizes)))
@each
@pytest.mark.parametrize('encode', [standard, blurred, lambda f: standard(f)[:,:3]], ids=['standard','blurred','three'])
def test_all_combinations_as_arrays_get_what_the_function_gets(name, encode):
    a,b = value(name, encode),np.array(quick[name](encode(everything), everything))
    # 480 rows: a forest of two thirds of them must guess the rest, which draws with repeats have mostly seen
    if name=='dci': a,b = a[:2],b[:2]
    assert a==pytest.approx(b, abs=.1 if name in ('dci','sap','beta_vae') else .05)

@each
def test_arrays_of_any_kind(name):
    "Tensors, lists, whole numbers as floats; the values of a factor are names"
    z,f = blurred(everything),everything
    a = np.array(quick[name](z, f))
    assert np.array_equal(a, quick[name](torch.tensor(z).requires_grad_(), torch.tensor(f)))
    assert np.array_equal(a, quick[name](z.tolist(), f.astype(float).tolist()))
    assert np.array_equal(a, quick[name](z, 7*f-100))
    assert not np.array_equal(a, quick[name](z, f, seed=6)) or name=='mig'

def skew(n=3000): return np.stack([np.random.default_rng(2).binomial(s-1, .3, n) for s in sizes], 1)

def test_gap_of_arrays_is_that_of_independent_parts():
    f = skew()
    z = blurred(f)
    bins = [np.digitize(c, np.linspace(c.min(), c.max(), 21)[1:-1]) for c in z.T]
    info = np.array([[mutual_info_classif(b[:,None], v, discrete_features=True)[0] for v in f.T] for b in bins])
    assert mutual_information(z, f)==pytest.approx(info, abs=1e-9)
    best = np.sort(info, 0)[::-1]
    assert mig(z, f)==pytest.approx(np.mean((best[0]-best[1])/[entropy(np.bincount(v)) for v in f.T]), abs=1e-9)

def test_groups_of_rows_agree_and_are_drawn_like_rows():
    f = np.r_[skew(300), [[99,0,0,0]]]                                  # the last row's value of factor 0 is its own
    rows = Rows('test', np.arange(len(f))[:,None], f)
    which = np.repeat(range(4), 200)
    found = rows.held(which, 8, 3, np.random.default_rng(0))[...,0].astype(int)
    assert found.shape==(800,8,3)
    for j in range(4):
        values = f[found[which==j], j]
        assert (values==values[:,:,:1]).all() and len(set(values.flat))==len(set(f[:300,j]))
        share = np.bincount(values.ravel(), minlength=100)/values.size
        assert share==pytest.approx(np.bincount(f[:,j], minlength=100)/len(f), abs=.05)
        free = f[found[which==j], (j+1)%4]
        assert (free!=free[:,:,:1]).any((1,2)).mean()>.9
    assert 300 not in found[which==0] and 300 in found[which==1]

@pytest.mark.parametrize('n, train, test', [(480,320,160), (2,1,1), (3,2,1), (20_000,10_000,5000)])
def test_no_row_is_learnt_from_and_tested_on(n, train, test):
    rows = Rows('test', np.arange(n)[:,None], np.arange(n)[:,None]%2+[0,1])
    (f,z),(f_new,z_new) = rows.two_parts(10_000, 5000, np.random.default_rng(0))
    assert (len(z),len(z_new))==(train,test) and not {*z.flat}&{*z_new.flat}
    assert np.array_equal(f[:,0], z[:,0]%2) and np.array_equal(f_new[:,0], z_new[:,0]%2)

def test_a_list_that_is_looked_up_is_not_learnt():
    "New rows are new, so that what can only be remembered is worth a guess"
    z,f = np.random.default_rng(0).normal(size=(3000, 6)),skew()
    guess = np.mean([(np.bincount(v)/len(v)).max() for v in f.T])
    got = dci(z, f)
    assert got.informativeness < guess and got.disentanglement < .05

ok = blurred(everything),everything
@pytest.mark.parametrize('codes, factors, match', [
    (ok[0][:-1], ok[1], 'codes has 479 rows and factors has 480'), (ok[0][:,0], ok[1], r'codes has shape \(480,\)'), (ok[0], ok[1][:,0], r'factors has shape \(480,\)'),
    (ok[0], sizes, r'factors has shape \(4,\)'), (ok[0][:,:0], ok[1], r'codes has shape \(480, 0\)'), (ok[0], ok[1]+.5, 'column 0 of factors holds numbers that are not whole'),
    (ok[0]*np.nan, ok[1], 'codes holds values that are not finite'), (ok[0], np.where(ok[1]==2, np.inf, ok[1]), 'factors holds values that are not finite'),
    (ok[0], ok[1].astype(str).astype(object)+'x', 'factors must hold numbers .*numbers labels'), (ok[0], ok[1]*[1,0,1,1], 'columns of factors is .5, 1, 4, 8.; a metric needs'),
    (ok[0], ok[1][:,:1], 'columns of factors is .5,.; a metric needs'), (blurred, ok[1], 'codes is a function, so sizes must be'), ([], [], 'codes has shape')],
    ids='fewer-codes one-dimension one-factor-flat sizes no-codes halves nan inf words constant one-factor function empty'.split())
@each
def test_arrays_refused(name, codes, factors, match):
    who = dict(beta_vae='beta_vae_metric', factor_vae='factor_vae_metric').get(name, name)
    with pytest.raises(ValueError, match=f'^{who}: .*{match}'): quick[name](codes, factors)

@pytest.mark.parametrize('metric', [beta_vae_metric, factor_vae_metric])
def test_a_factor_of_which_no_two_rows_agree_cannot_be_held(metric):
    f = np.c_[everything, np.arange(480)]
    with pytest.raises(ValueError, match="no two rows agree in column 4 of factors"): metric(blurred(everything), f, 100, 100)

def test_evaluate_takes_arrays():
    out = evaluate(*ok, 2, metrics=quick)
    assert out['mig'].half==0 and out['mig'].mean==mig(*ok) and set(out)=={'beta_vae','factor_vae','mig','sap','disentanglement','completeness','informativeness'}

# an independent library: pip install --no-deps disentanglement-lib==1.5 (its metrics need no TensorFlow, only the configuration that asks for it)

@pytest.fixture
def library(monkeypatch):
    "Its metrics, with numbers of the usual configurations in the place of gin's"
    pytest.importorskip('disentanglement_lib')
    gin = types.ModuleType('gin')
    gin.tf,gin.REQUIRED,gin.configurable = gin,None,lambda *args, **kw: lambda f: f
    monkeypatch.setitem(sys.modules, 'gin', gin); monkeypatch.setitem(sys.modules, 'gin.tf', gin)
    from disentanglement_lib.evaluation.metrics import beta_vae, dci, factor_vae, mig, utils
    monkeypatch.setattr(utils, 'make_discretizer', lambda z: utils._histogram_discretize(z, 20))
    return SimpleNamespace(beta_vae=beta_vae, dci=dci, factor_vae=factor_vae, mig=mig)

class Pictures:
    "What the library draws from; a picture is its factors"
    num_factors = 4
    def sample_factors(self, n, rng): return rng.randint(sizes, size=(n,4))
    def sample_observations_from_factors(self, f, rng): return f
    def sample_observations(self, n, rng): return self.sample_factors(n, rng)

@pytest.mark.parametrize('encode', [standard, mixed, blurred, listed], ids=lambda f: f.__name__)
def test_library_mig(library, encode):
    for f in (skew(), everything): assert mig(encode(f), f)==pytest.approx(library.mig._compute_mig(encode(f).T, f.T)['discrete_mig'], abs=1e-9)

@pytest.mark.parametrize('encode', [standard, mixed, blurred, listed], ids=lambda f: f.__name__)
def test_library_beta_and_factor_vae(library, encode):
    rng,n = np.random.RandomState(0),dict(num_train=1000, num_eval=1000)
    theirs = [library.beta_vae.compute_beta_vae_sklearn(Pictures(), encode, rng, batch_size=64, **n)['eval_accuracy'],
              library.factor_vae.compute_factor_vae(Pictures(), encode, rng, batch_size=64, num_variance_estimate=5000, **n)['eval_accuracy']]
    for args in ((encode,sizes), (encode(everything),everything)):
        assert [m(*args, 1000, 1000) for m in (beta_vae_metric,factor_vae_metric)]==pytest.approx(theirs, abs=.06)

def test_library_dci_of_importances(library):
    for R in np.random.default_rng(0).random((5,6,4))**3: assert (_purity(R), _purity(R.T))==pytest.approx((library.dci.disentanglement(R), library.dci.completeness(R)), abs=1e-6)

# pictures

class Grid:
    "Pictures of one row, that hold their factors"
    sizes,n_levels = (3,4),8
    def __len__(self): return 12
    def index(self, f): return np.ravel_multi_index(np.asarray(f).T, self.sizes)
    def __getitem__(self, i): return torch.from_numpy(np.stack(np.unravel_index(i, self.sizes), -1)).byte()[:,None,None]

def test_encoder_sees_each_picture_once():
    seen = []
    def f(x):
        assert not torch.is_grad_enabled() and len(x)<=5
        seen.extend(map(tuple, ((x+1)*3.5).round().long().flatten(1).tolist()))
        return x.flatten(1)*w
    w = torch.ones(2, requires_grad=True)
    encode = encoder(f, Grid(), bs=5)
    factors = np.array([[2,3],[0,0],[2,3],[1,2]])
    assert encode(factors)==pytest.approx(factors/3.5-1, abs=1e-6)       # levels 0 to 7 become -1 to 1
    assert sorted(seen)==[(0,0),(1,2),(2,3)]
    everything = np.array(list(np.ndindex(3,4)))[::-1]
    assert encode(everything)==pytest.approx(everything/3.5-1, abs=1e-6) and len(seen)==12
    encode(everything)
    assert len(seen)==12 and mig(encode, (3,4))==pytest.approx(1, abs=.01)
    assert len(seen)==12

@pytest.mark.parametrize('f', [lambda x: x, lambda x: x.flatten(1)[:-1], lambda x: [x]])
def test_encoder_refuses(f):
    with pytest.raises(ValueError, match='encoder: f returned'): encoder(f, Grid())(np.array([[0,0],[1,1]]))

@pytest.mark.parametrize('bad, match', [
    (dict(sizes=(4,)), 'sizes is'), (dict(sizes=(4,1)), 'sizes is'), (dict(encode=lambda f: standard(f)[:-1]), r'encode returned shape \(\d+, 4\)'),
    (dict(encode=lambda f: standard(f)[:,:0]), 'encode returned shape'), (dict(encode=lambda f: np.where(f>3, np.nan, f)), 'not finite')])
@each
def test_refused(name, bad, match):
    with pytest.raises(ValueError, match=match): quick[name](**(dict(encode=standard, sizes=sizes) | bad))

@pytest.mark.parametrize('metric, count', [(beta_vae_metric,'pairs'), (beta_vae_metric,'n_test'), (factor_vae_metric,'batch'), (factor_vae_metric,'n_var'), (mig,'bins'), (mig,'n'), (sap,'n_train'), (dci,'n_test')])
def test_counts_below_two_are_refused(metric, count):
    with pytest.raises(ValueError, match=f'{metric.__name__}: {count} is 1'): metric(standard, sizes, **{count: 1})
