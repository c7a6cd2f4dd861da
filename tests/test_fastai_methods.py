"What fastai offers does its work with a learner made by vae_learner."
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, pytest, torch
from fastai.basics import noop, set_seed
from fastai.callback.schedule import valley
from sdn_nb.data import get_dls
from sdn_nb.evaluation import elbo_bpd
from sdn_nb.training import vae_learner
from sdn_nb.vae import SDNVAE, VAEConfig, VAEOutput

cfg = VAEConfig((8,8), channels=1, levels=17, depth=2, downsample=(1,), h=6, z=2, features=4, mix=2)

@pytest.fixture
def learn(tmp_path):
    set_seed(0)
    dls = get_dls('digits', bs=256, device='cpu')
    learn = vae_learner(dls, SDNVAE(cfg), lr=1e-2, ema=.9, path=tmp_path)
    learn.remove_cb(learn.progress)
    learn.logger = noop
    learn.fit(1)
    yield learn
    plt.close('all')

def test_predictions_of_all_images_in_order(learn):
    preds,x = learn.get_preds()
    n = len(learn.dls.valid_ds)
    assert isinstance(preds, VAEOutput) and preds.log_px.shape==(n,) and preds.kl.shape==(n,2) and [z.shape[0] for z in preds.z]==[n,n]
    assert torch.equal(x, torch.cat([b[0] for b in learn.dls.valid]))
    assert preds.elbo.mean().item()==pytest.approx(-elbo_bpd(learn.model, learn.dls.valid, progress=False)*64*.6931, rel=.02)
    given,again,_,loss = learn.get_preds(dl=learn.dls.valid, with_input=True, with_loss=True)
    assert torch.equal(given, x) and torch.equal(loss, -again.elbo)
    assert (again.elbo-preds.elbo).abs().mean()<.1*preds.elbo.abs().mean()

def test_one_image(learn):
    for item in (learn.dls.valid_ds[0], learn.dls.valid.one_batch()[0][0], learn.dls.valid.one_batch()[0][:1][0]):
        image,price,out = learn.predict(item)
        assert image.shape==(1,8,8) and image.abs().max()<=1 and isinstance(out, VAEOutput) and len(out.log_px)==1
        assert 0<price<10

def test_pictures(learn):
    ax = learn.show_results(max_n=5)
    assert ax.images[0].get_array().shape[:2]==(2*8+3, 5*8+6)       # two rows of five, with gaps

def test_summary(learn):
    "Every layer once, and every parameter counted"
    lines = str(learn.summary()).splitlines()
    rows = {l.split()[0]: l.split() for l in lines[1:-1]}
    assert rows['first'][1:-1]==['Conv2d','6','×','8','×','8']
    assert rows['blocks.0.down_b'][1]==rows['last'][1]=='ResSDN' and not any('correction' in name or 'parametrizations' in name for name in rows)
    counted = {name: int(r[-1].replace(',','')) for name,r in rows.items()}
    total = sum(p.numel() for p in learn.model.parameters())
    assert counted.pop('all')==total and sum(counted.values())==total-learn.model.top.numel()
    assert lines[-1].startswith('Callbacks: ') and 'ema' in lines[-1]

@pytest.mark.parametrize('name,folder', [('x.pkl','x'),('export','export')])
def test_export_is_a_folder(learn, tmp_path, name, folder):
    "No pickle; what is read back says the same"
    assert learn.export(name)==tmp_path/folder and not (tmp_path/'x.pkl').exists()
    model,x = SDNVAE.from_pretrained(tmp_path/folder),learn.dls.valid.one_batch()[0][:4]
    torch.manual_seed(1); want = learn.model.eval()(x)
    torch.manual_seed(1); got = model(x)
    assert torch.equal(got.log_px, want.log_px)

def test_validate(learn):
    learn.model.eval()
    prices = learn.validate()
    assert prices[1]==pytest.approx(elbo_bpd(learn.model, learn.dls.valid, progress=False), rel=.02)

def test_learning_rate_finder(learn):
    found = learn.lr_find(num_it=12, show_plot=False, suggest_funcs=valley)
    assert 1e-7<found.valley<10

@pytest.mark.parametrize('precision', ['fp16','bf16'])
def test_half_precision_afterwards(learn, precision):
    "As vae_learner's own argument has it; back again, too"
    getattr(learn, f'to_{precision}')()
    learn.fit(1)
    assert learn.mixed_precision.dtype==dict(fp16=torch.float16, bf16=torch.bfloat16)[precision]
    assert all(p.isfinite().all() for p in learn.model.parameters())
    learn.to_fp32().fit(1)
    assert not hasattr(learn, 'mixed_precision')

def test_before_any_fit(tmp_path):
    "Nothing waits for a first epoch"
    dls = get_dls('digits', bs=256, device='cpu')
    learn = vae_learner(dls, SDNVAE(cfg), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        assert isinstance(learn.get_preds()[0], VAEOutput) and len(learn.validate())>=4
        learn.predict(dls.valid_ds[0]); learn.show_results(); learn.summary(); learn.export()
    plt.close('all')
