"""Checkpoints of the published code. The format is written down here a second time, as a writer and as a forward pass on a checkpoint's own tensors, in plain
functional calls and double precision; nothing of the library takes part but the reader under test and the model that it returns."""
import argparse, math, re, subprocess, sys, types, warnings
from collections import OrderedDict
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from torch.testing import assert_close
from sdn_nb.published import Published as Checkpoint, our_name, our_outputs, published_config
from sdn_nb.vae import PRESETS, SDNVAE, VAEConfig

# The format, written

NEW = dict(pin='project_in_stage', cell='sdn_correction_stage', pout='project_out_stage')
OLD = dict(pin='pre_cnn', cell='sdn_update_network', pout='post_cnn')

def settings(**changes):
    "Hyper-parameters of a small model"
    return dict(z_size=2, h_size=6, depth=3, ds_list=[1], sdn_max_scale=64, sdn_min_scale=0, sdn_nfeat_0=53, sdn_nfeat_diff=9, sdn_num_dirs=2, post_model='IAF', prior_model='IsoGaussian',
                obs_model='DML', mix_components=2, nbits=8, free_bits=.01, downsample_first=False, ema_coef=.99, dataset='toy', lrate=.002) | changes

def layers(hp, size):
    "What each ladder layer is, bottom first: (halves?, features, sweeps a, sweeps b), sweeps none where the layer has plain convolutions; then the sweeps of the last layer"
    scale,features,turn,plan = size,hp['sdn_nfeat_0'],0,[]
    for i in range(hp['depth']):
        halve = i in hp['ds_list'] and scale>1
        sweeps = hp['sdn_min_scale'] <= scale <= hp['sdn_max_scale']
        a = b = None
        if sweeps:
            n = hp['sdn_num_dirs']
            a,b,turn = [(turn+k)%4 for k in range(n)],[(turn+n+k)%4 for k in range(n)],(turn+2*n)%4
        plan.append((halve, features, a, b))
        if halve:
            scale //= 2
            if sweeps: features = max(50, features-hp['sdn_nfeat_diff'])
    return plan,[(turn+k)%4 for k in range(4)] if hp['sdn_max_scale']>=size else None

def weights(hp, size, channels, context, names=NEW, seed=0, device='cpu'):
    "Random weights of a published model, by name; on the meta device only their shapes"
    gen,s = torch.Generator().manual_seed(seed),OrderedDict()
    def rand(*shape): return torch.randn(*shape, generator=None if device=='meta' else gen, dtype=torch.float64, device=device)
    def conv(name, a, b, k, transposed=False):
        s[f'{name}.bias'] = .3*rand(b)
        s[f'{name}.weight_g'] = 1+.3*rand(*((1,b,1,1) if transposed else (b,1,1,1)))
        s[f'{name}.weight_v'] = rand(*((a,b) if transposed else (b,a)), k, k)
    def res_sdn(name, a, b, features, sweeps, k=3, transposed=False):
        if sweeps is None: return conv(name, a, b, k, transposed)
        conv(f'{name}.sdn.{names["pin"]}', a, features, k, transposed)
        for i,_ in enumerate(sweeps):
            for n,shape in dict(weight_ih=(3*features,3*features), weight_hh=(3*features,features), bias_ih=(3*features,), bias_hh=(3*features,)).items():
                s[f'{name}.sdn.{names["cell"]}.{i}.cell.gru.{n}'] = rand(*shape)/math.sqrt(features)
        conv(f'{name}.sdn.{names["pout"]}', features, 2*b, 1)
        conv(f'{name}.cnn', a, b, k, transposed)
    h,z,M = hp['h_size'],hp['z_size'],hp['mix_components']
    q,(plan,last) = 2*z+context,layers(hp, size)
    s['h'] = rand(h)
    conv('first_layer.0', channels, h, 3)
    for i,(halve,features,a,b) in enumerate(plan):
        name,k = f'ladder_layers.{i}',4 if halve else 3
        if context:
            for n,(c,d) in dict(conv_a=(z,context), **{'conv_b.1': (context,context), 'conv_b.3': (context,2*z)}).items():
                conv(f'{name}.post_model.arnn.{n}', c, d, 3)
                mask = torch.zeros(d, c, 3, 3, dtype=torch.float64)
                mask[:,:,0] = 1; mask[:,:,1,0] = 1; mask[:,:,1,1] = n!='conv_a'
                s[f'{name}.post_model.arnn.{n}.mask'] = mask
        conv(f'{name}.up_a', h, h+q, k)
        conv(f'{name}.up_b', h, 2*h, 3)
        res_sdn(f'{name}.down_a', h, h+q+2*z, features, a)
        res_sdn(f'{name}.down_b', h+z, 2*h, features, b, k, halve)
    res_sdn('last_layer.2', h, M+3*channels*M, hp['sdn_nfeat_0'], last)
    return s

def averaged(plain, ema):
    "A state with `ema` as running averages of `plain`; masks are no parameters and have none"
    return plain | {'ema.shadow_params.'+k.replace('.','^'): v for k,v in ema.items() if not k.endswith('.mask')}

# The format, read: the forward pass from its description

class Published:
    "A published model: weights by name, and what they mean"
    def __init__(self, s, hp, size, channels): self.s,self.hp,self.size,self.channels = s,hp,size,channels

    def weight(self, name, transposed=False):
        g,v = self.s[f'{name}.weight_g'],self.s[f'{name}.weight_v']
        return g*v/v.square().sum((0,2,3) if transposed else (1,2,3), keepdim=True).sqrt()

    def conv(self, name, x, halve=False, transposed=False):
        w,b = self.weight(name, transposed),self.s[f'{name}.bias']
        if transposed: return F.conv_transpose2d(x, w, b, stride=2, padding=1)
        return F.conv2d(x, w, b, stride=2 if halve else 1, padding=1 if w.shape[2]>1 else 0)

    def sweep(self, name, x, direction):
        "Codes: 0 right, 1 left, 2 down, 3 up"
        if direction in (2,3): x = x.transpose(2,3)
        if direction in (1,3): x = x.flip(3)
        w_i,w_h,b_i,b_h = (self.s[f'{name}.{n}'] for n in ('weight_ih','weight_hh','bias_ih','bias_hh'))
        lines = [x[...,0]]                                                       # (B, C, positions)
        for j in range(1, x.shape[3]):
            p = F.pad(lines[-1], (1,1))
            u = torch.cat([p[...,:-2], p[...,1:-1], p[...,2:]], 1)
            i,h = torch.einsum('oc,bcp->bop', w_i, u)+b_i[:,None],torch.einsum('oc,bcp->bop', w_h, x[...,j])+b_h[:,None]
            (ir,iz,i_n),(hr,hz,hn) = i.chunk(3,1),h.chunk(3,1)
            z = torch.sigmoid(iz+hz)
            lines.append((1-z)*torch.tanh(i_n+torch.sigmoid(ir+hr)*hn) + z*x[...,j])
        y = torch.stack(lines, 3)
        if direction in (1,3): y = y.flip(3)
        return y.transpose(2,3) if direction in (2,3) else y

    def res_sdn(self, name, x, sweeps, transposed=False):
        if sweeps is None: return self.conv(name, x, transposed=transposed)
        pin,cell,pout = (NEW if f'{name}.sdn.{NEW["pin"]}.bias' in self.s else OLD).values()
        y = torch.tanh(self.conv(f'{name}.sdn.{pin}', x, transposed=transposed))
        for k,d in enumerate(sweeps): y = self.sweep(f'{name}.sdn.{cell}.{k}.cell.gru', y, d)
        s,gate = self.conv(f'{name}.sdn.{pout}', y).chunk(2, 1)
        gate = torch.sigmoid(gate)
        return gate*self.conv(f'{name}.cnn', x, transposed=transposed) + (1-gate)*s

    def mixed(self, x, vg):
        value,gate = vg.chunk(2, 1)
        gate = torch.sigmoid(gate-1)
        return (1-gate)*x + gate*value

    def flow(self, name, z0, context):
        def masked(n, x): return F.conv2d(x, self.weight(f'{name}.{n}')*self.s[f'{name}.{n}.mask'], self.s[f'{name}.{n}.bias'], padding=1)
        h = masked('conv_a', z0)+context
        for n in ('conv_b.1','conv_b.3'): h = masked(n, F.elu(h))
        m,s = h.chunk(2, 1)
        return (z0-.1*m)/torch.exp(.1*s),.1*s

    def up(self, x):
        "Posterior parameters of each layer, bottom first"
        x,qs = self.conv('first_layer.0', x),[]
        for i,(halve,*_) in enumerate(layers(self.hp, self.size)[0]):
            h,q = self.conv(f'ladder_layers.{i}.up_a', F.elu(x), halve).split([self.hp['h_size'], len(self.s[f'ladder_layers.{i}.up_a.bias'])-self.hp['h_size']], 1)
            if halve: x = x[:,:,::2,::2]                                         # nearest neighbour
            x = self.mixed(x, self.conv(f'ladder_layers.{i}.up_b', F.elu(h)))
            qs.append(q)
        return qs

    def latent(self, i, q, p):
        "A sample of the posterior `q`, and its divergence from the prior `p`: in closed form where it has one"
        Z,sums = self.hp['z_size'],lambda t: t.sum((1,2,3))
        mean,log_var,context = q[:,:Z],q[:,Z:2*Z],q[:,2*Z:]
        eps = torch.randn(mean.shape, dtype=torch.float64)
        z,(pm,plv) = mean+torch.exp(log_var/2)*eps,p.chunk(2, 1)
        if self.hp['post_model']=='IsoGaussian': return z,sums((plv-log_var)/2 + (log_var.exp()+(mean-pm)**2)/(2*plv.exp()) - .5)
        z,stretch = self.flow(f'ladder_layers.{i}.post_model.arnn', z, context)
        return z,sums(-eps**2/2-log_var/2+stretch) - sums(-(z-pm)**2/(2*plv.exp())-plv/2) # both without log √2π

    def down(self, n, qs=None, temperature=1., size=None):
        "Parameters of the likelihood; posterior parameters, latent variables and divergences, top first"
        plan,last = layers(self.hp, self.size)
        size = size or self.size//2**sum(halve for halve,*_ in plan)
        x,h,Z,told = self.s['h'][None,:,None,None].expand(n,-1,size,size),self.hp['h_size'],self.hp['z_size'],[]
        for i,(halve,_,a,b) in reversed(list(enumerate(plan))):
            name = f'ladder_layers.{i}'
            out = self.res_sdn(f'{name}.down_a', F.elu(x), a)
            det,q,p = out[:,:h],out[:,h:out.shape[1]-2*Z],out[:,out.shape[1]-2*Z:]
            if qs is None: z,kl = p[:,:Z]+temperature*torch.exp(p[:,Z:]/2)*torch.randn(p[:,:Z].shape, dtype=torch.float64),None
            else:
                q = q+qs[i]
                z,kl = self.latent(i, q, p)
            told.append((q,z,kl))
            vg = self.res_sdn(f'{name}.down_b', F.elu(torch.cat([z,det], 1)), b, halve)
            if halve: x = x.repeat_interleave(2,2).repeat_interleave(2,3)
            x = self.mixed(x, vg)
        return self.res_sdn('last_layer.2', F.elu(x), last),told

    def mixture(self, params):
        "Channels last: logits (B, H, W, M), then means, log scales and coefficients (B, H, W, C, M)"
        M,C = self.hp['mix_components'],self.channels
        t = params.permute(0,2,3,1)
        rest = t[...,M:].reshape(*t.shape[:3], C, 3*M)
        return t[...,:M],rest[...,:M],rest[...,M:2*M].clamp(min=-7),rest[...,2*M:].tanh()

    def log_prob(self, params, x):
        logits,means,scales,c = self.mixture(params)
        x = x.permute(0,2,3,1)[...,None]
        means = list(means.unbind(3))
        if self.channels==3:
            means[1] = means[1]+c[...,0,:]*x[...,0,:]
            means[2] = means[2]+c[...,1,:]*x[...,0,:]+c[...,2,:]*x[...,1,:]
        half,total = 1/(2**self.hp['nbits']-1),torch.log_softmax(logits, -1)
        for k,mean in enumerate(means):
            d,inv = x[...,k,:]-mean,torch.exp(-scales[...,k,:])
            a,b = (d+half)*inv,(d-half)*inv
            inside = torch.log(torch.where(a+b>0, torch.sigmoid(-b)-torch.sigmoid(-a), torch.sigmoid(a)-torch.sigmoid(b)))
            total = total + torch.where(x[...,k,:]<-.999, F.logsigmoid(a), torch.where(x[...,k,:]>.999, F.logsigmoid(-b), inside))
        return torch.logsumexp(total, -1).sum((1,2))

    def picture(self, params):
        "Means of the most probable component, each channel leaning on the clamped ones before it"
        logits,means,_,c = self.mixture(params)
        pick = F.one_hot(logits.argmax(-1), logits.shape[-1])[...,None,:]
        means,c = (means*pick).sum(-1),(c*pick).sum(-1)
        out = [means[...,0].clamp(-1,1)]
        if self.channels==3:
            out.append((means[...,1]+c[...,0]*out[0]).clamp(-1,1))
            out.append((means[...,2]+c[...,1]*out[0]+c[...,2]*out[1]).clamp(-1,1))
        return torch.stack(out, 1)

    def score(self, x, seed):
        torch.manual_seed(seed)
        params,told = self.down(len(x), self.up(x))
        q,z,kl = zip(*told)
        return dict(q=q, z=z, kl=torch.stack(kl, 1), log_px=self.log_prob(params, x))

    def sample(self, n, temperature, seed):
        torch.manual_seed(seed)
        return self.picture(self.down(n, temperature=temperature)[0])

# The two compared

def read(path, state, hp, **kw):
    "What from_published makes of a state, in double precision"
    torch.save(dict(state_dict=state, hyper_parameters=hp, epoch=7, optimizer_states=[{'state': {}, 'param_groups': [dict(lr=.1)]}]), path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return SDNVAE.from_published(path, **kw)

def images(hp, size, channels, n=2):
    top = 2**hp['nbits']-1
    return torch.randint(0, top+1, (n,channels,size,size), generator=torch.Generator().manual_seed(4)).double()/top*2-1

def ours(model, x, seed):
    "The same numbers from the model; the posterior parameters as they come out of the way up and the way down"
    model,q = model.double(),[]
    for block in reversed(model.blocks):
        def note(params, *args, _f=block.draw_from_posterior): q.append(params); return _f(params, *args)
        block.draw_from_posterior = note
    torch.manual_seed(seed)
    out = model(x)
    for block in model.blocks: del block.draw_from_posterior
    return dict(q=tuple(q), z=tuple(out.z), kl=out.kl, log_px=out.log_px)

@torch.no_grad()
def compare(model, published, seed=1):
    x,close = images(published.hp, published.size, published.channels),dict(rtol=1e-8, atol=1e-8)
    assert_close(ours(model, x, seed), published.score(x, seed), **close)
    for t in (.7,1.):
        torch.manual_seed(seed)
        assert_close(model.sample(2, temperature=t), published.sample(2, t, seed), **close)

KINDS = {'as-published': {}, 'gaussian': dict(post_model='IsoGaussian'), 'three-turns': dict(sdn_num_dirs=3), 'four-turns-5-bits': dict(sdn_num_dirs=4, nbits=5),
         'top-only': dict(sdn_max_scale=4), 'bottom-only': dict(sdn_min_scale=8, sdn_num_dirs=1), 'conv': dict(sdn_max_scale=0, sdn_nfeat_0=0, sdn_num_dirs=0),
         'no-halving': dict(ds_list=[], depth=2), 'halved-twice': dict(ds_list=[0,2]), 'halved-to-one': dict(ds_list=[0,1,2,3], depth=4)}

def single(state): return {k: v.float() for k,v in state.items()} # as such files are
def double(state): return {k: v.float().double() for k,v in state.items()}

@pytest.mark.parametrize('channels', [3, 1], ids=['rgb','grey'])
@pytest.mark.parametrize('kind,names', [*((k,NEW) for k in KINDS), ('as-published',OLD), ('top-only',OLD)], ids=[*KINDS, 'as-published-old-names', 'top-only-old-names'])
def test_same_numbers(kind, channels, names, tmp_path):
    hp = settings(**KINDS[kind])
    plain = weights(hp, 8, channels, 4 if hp['post_model']=='IAF' else 0, names)
    model = read(tmp_path/'a.ckpt', single(plain), hp, image_size=8)
    assert not model.training and model.config.channels==channels and model.config.levels==2**hp['nbits']
    compare(model, Published(double(plain), hp, 8, channels))

def case(**changes):
    "The state of an RGB model and its settings"
    hp = settings(**changes)
    return weights(hp, 8, 3, 4),hp

def swap_halves(v): return torch.cat(v.chunk(2)[::-1])
def swap_cells(s, prefix):
    "Exchange the first two cells, as if the directions were in another order"
    def other(k): return re.sub(re.escape(prefix)+r'\.([01])\.', lambda m: f'{prefix}.{1-int(m[1])}.', k)
    return {k: s[other(k)] for k in s}
def channels_first(v): return torch.cat([v[:2], v[2:].view(3,3,2,*v.shape[1:]).transpose(0,1).flatten(0,2)])

WRONG = {'gate-of-last': lambda s: {k: swap_halves(v) if k.startswith('last_layer.2.sdn.project_out_stage') else v for k,v in s.items()},
         'gate-of-down': lambda s: {k: swap_halves(v) if k.startswith('ladder_layers.0.down_a.sdn.project_out_stage') else v for k,v in s.items()},
         'value-and-gate': lambda s: {k: swap_halves(v) if k.startswith('ladder_layers.1.up_b') else v for k,v in s.items()},
         'directions': lambda s: swap_cells(s, 'ladder_layers.2.down_b.sdn.sdn_correction_stage'),
         'outputs': lambda s: {k: channels_first(v) if k.startswith('last_layer.2.cnn') else v for k,v in s.items()},
         'a-length': lambda s: s | {'ladder_layers.1.down_b.cnn.weight_g': s['ladder_layers.1.down_b.cnn.weight_g'].flip(1)},
         'hidden-weights': lambda s: s | {(k := 'ladder_layers.0.post_model.arnn.conv_a.weight_v'): s[k]*s[k.replace('weight_v','mask')]}, # the norm is over them too
         'constant': lambda s: s | {'h': s['h'].flip(0)}}

@pytest.mark.parametrize('wrong', WRONG)
def test_the_comparison_sees(wrong, tmp_path):
    plain,hp = case()
    model = read(tmp_path/'a.ckpt', single(WRONG[wrong](plain)), hp, image_size=8)
    with pytest.raises(AssertionError, match='not close'): compare(model, Published(double(plain), hp, 8, 3))

# Which weights

@pytest.mark.parametrize('coefficient,taken', [(.99,'ema'), ('0.999','ema'), (None,'ema'), (1.,'plain'), (0,'plain')], ids=str)
def test_averages_are_taken_where_they_moved(coefficient, taken, tmp_path):
    plain,hp = case(ema_coef=coefficient)
    if coefficient is None: del hp['ema_coef']
    s = dict(plain=plain, ema=weights(hp, 8, 3, 4, seed=1) | {k: v for k,v in plain.items() if k.endswith('.mask')})
    torch.save(dict(state_dict=single(averaged(plain, s['ema'])), hyper_parameters=hp), tmp_path/'a.ckpt')
    with pytest.warns(UserWarning) as told: model = SDNVAE.from_published(tmp_path/'a.ckpt', image_size=8)
    compare(model, Published(double(s[taken]), hp, 8, 3))
    message = str(told[0].message)
    assert len(told)==1 and 'blocks.2.up_b.* of the uppermost block, which nothing reads' in message and ('last step' in message)==(taken=='plain') and 'no place' not in message

def test_unknown_weights_are_named(tmp_path):
    plain,hp = case()
    torch.save(dict(state_dict=single(averaged(plain, plain)) | {'wings.left': torch.zeros(2), 'ladder_layers.0.up_a.scale': torch.zeros(1)}, hyper_parameters=hp), tmp_path/'a.ckpt')
    with pytest.warns(UserWarning, match=r'no place was found for blocks\.0\.up_a\.scale, wings\.left\.'): SDNVAE.from_published(tmp_path/'a.ckpt', image_size=8)

@pytest.mark.parametrize('lost', ['first_layer.0.weight_v', 'h', 'ladder_layers.0.post_model.arnn.conv_b.3.bias', 'ladder_layers.1.down_a.sdn.sdn_correction_stage.1.cell.gru.bias_hh', 'last_layer.2.cnn.weight_g'])
def test_missing_weights(lost, tmp_path):
    plain,hp = case()
    for ema in (False,True):                                                     # an average must not be replaced by the weight of the last step
        state = averaged(plain, {k: v for k,v in plain.items() if k!=lost}) if ema else {k: v for k,v in plain.items() if k!=lost}
        with pytest.raises(ValueError, match='from_published: .*has no (value for 1 of|weights `first_layer)'): read(tmp_path/'a.ckpt', state, hp, image_size=8)

# Hyper-parameters

@pytest.mark.parametrize('changes', [dict(ds_list='[1]'), dict(ds_list='1,'), dict(ds_list='(1,)'), dict(ds_list=('1',)), dict(ds_list=[1,9]),
    {k: str(v) for k,v in settings().items() if isinstance(v, (int,float))}, dict(downsample_first='False')], ids=str)
@pytest.mark.parametrize('kind', [dict, lambda d: argparse.Namespace(**d)], ids=['dict','namespace'])
def test_spellings_of_settings(changes, kind, tmp_path):
    plain,hp = case()
    config = read(tmp_path/'a.ckpt', plain, hp, image_size=8).config
    assert config.downsample==(1,) and read(tmp_path/'a.ckpt', plain, kind(hp|changes), image_size=8).config==config

def test_halvings_as_text(tmp_path):
    plain,hp = case(ds_list=[], depth=2)
    for none in (None, '', '[]'): assert read(tmp_path/'a.ckpt', plain, hp|dict(ds_list=none), image_size=8).config.downsample==()
    plain,hp = case(ds_list=[0,2])
    for text in ('[0,2]', '0,2', '0 2'): assert read(tmp_path/'a.ckpt', plain, hp|dict(ds_list=text), image_size=8).config.downsample==(0,2)

@pytest.mark.parametrize('dataset,size', [('CIFAR10',32), ('ImageNet32',32), ('CelebAHQ256',256), ('3DShapes',64), ('cifar-10',32), ('imagenet_32',32)])
def test_data_set_tells_the_size(dataset, size, tmp_path):
    plain,hp = case(sdn_max_scale=0, dataset=dataset)
    assert read(tmp_path/'a.ckpt', plain, hp).config.image_size==(size,size)
    assert read(tmp_path/'a.ckpt', plain, hp, image_size=(16,16), channels=3).config.image_size==(16,16)

@pytest.mark.parametrize('changes,words', [(dict(dataset='faces'), "data set 'faces'.*Give `image_size`"), (dict(downsample_first=True), '`downsample_first` is True, which has no counterpart here'),
    (dict(downsample_first='True'), '`downsample_first`'), (dict(obs_model='DL'), '`obs_model` is DL.*it must be DML'), (dict(obs_model='Bernoulli'), '`obs_model`'), (dict(post_model='Flow'), 'it must be IAF or IsoGaussian'),
    (dict(prior_model='IAF'), '`prior_model` is IAF'), (dict(nbits=0), '`nbits` must be from 1 to 8'), (dict(nbits=10**9), '`nbits`'), (dict(depth=10**9), 'has 3 ladder layers, but `depth`'), (dict(depth='deep'), "`depth` must be a number"),
    (dict(ds_list='a,b'), '`ds_list` must be a list'), (dict(ds_list=[.5]), '`ds_list`'), (dict(ds_list=3), '`ds_list`'), (dict(h_size=7), 'the hyper-parameters call for'), (dict(sdn_nfeat_0=60), 'the hyper-parameters call for'),
    (dict(sdn_num_dirs=5), '`n_directions` must be'), (dict(sdn_num_dirs=3), 'has no value for'), (dict(mix_components=3), r'last\..* must have .* output channels for 3 components'), (dict(ds_list=[2]), 'the hyper-parameters call for')], ids=str)
def test_what_does_not_fit_is_refused(changes, words, tmp_path):
    plain,hp = case()
    with pytest.raises(ValueError, match=f'from_published: .*a.ckpt .*{words}'): read(tmp_path/'a.ckpt', plain, hp|changes, **({} if 'dataset' in changes else dict(image_size=8)))

@pytest.mark.parametrize('name', ['z_size','h_size','depth','sdn_max_scale','sdn_min_scale','sdn_nfeat_0','sdn_nfeat_diff','sdn_num_dirs','post_model','obs_model','mix_components','nbits','free_bits'])
def test_missing_settings(name, tmp_path):
    plain,hp = case()
    del hp[name]
    with pytest.raises(ValueError, match=f'from_published: .*no hyper-parameter `{name}`'): read(tmp_path/'a.ckpt', plain, hp, image_size=8)

@pytest.mark.parametrize('kw,words', [(dict(image_size=28), 'pads'), (dict(image_size=(8,12)), 'square'), (dict(image_size=7), 'next size that fits'), (dict(image_size=8, channels=1), 'images of 3 channels, but `channels` is 1')], ids=str)
def test_arguments(kw, words, tmp_path):
    plain,hp = case()
    with pytest.raises(ValueError, match=words): read(tmp_path/'a.ckpt', plain, hp, **kw)

PAPER = dict(cifar10=dict(depth=15, ds_list=[5,10], sdn_nfeat_0=360, sdn_nfeat_diff=128, sdn_num_dirs=2, mix_components=5),
             imagenet32=dict(depth=16, ds_list=[3,7,11], sdn_nfeat_0=424, sdn_nfeat_diff=0, sdn_num_dirs=3, mix_components=10),
             celebahq256=dict(depth=17, ds_list=[4,7,9,11,13,15], sdn_nfeat_0=360, sdn_nfeat_diff=0, sdn_num_dirs=2, mix_components=30, nbits=5))

@pytest.mark.parametrize('name', PAPER)
def test_the_paper_s_arguments_give_the_presets(name):
    "In full size, as shapes"
    hp,size = settings(**PAPER[name], z_size=4, h_size=200, dataset=name),256 if name=='celebahq256' else 32
    ours = {our_name(k): v for k,v in weights(hp, size, 3, 100, device='meta').items()}
    fields = published_config(hp, ours)
    config = VAEConfig(**fields)
    assert config==replace(PRESETS[name], min_scale=0)
    ours = {k: our_outputs(k, v, config.channels, config.mix) for k,v in ours.items()}
    with torch.device('meta'): model = SDNVAE(config).state_dict()
    state = Checkpoint(fields, ours, False, set(ours)).state_for(model)
    assert len(state)==len([k for k in ours if not k.endswith('.mask') and f'blocks.{config.depth-1}.up_b' not in k])

def test_the_reader_knows_no_model_of_ours():
    "`published` stands below `vae`: importing it brings no model, and importing the model brings the reader"
    code = "import sys, sdn_nb.published; assert not {'sdn_nb.vae','sdn_nb.layers','sdn_nb.ladder'} & set(sys.modules); from sdn_nb.vae import SDNVAE; SDNVAE.from_published"
    subprocess.run([sys.executable, '-c', code], check=True)

# Strangers' files

class Bad:
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return (open, (str(self.marker),'w'))

@pytest.mark.parametrize('where', ['hyper_parameters','state_dict','callbacks'])
def test_programs_are_not_run(where, tmp_path):
    plain,hp = case()
    ckpt = dict(state_dict=dict(plain), hyper_parameters=hp)
    ckpt.setdefault(where, {})['x'] = Bad(tmp_path/'ran')
    torch.save(ckpt, tmp_path/'a.ckpt')
    with pytest.raises(ValueError, match=r"from_published: .*a.ckpt holds an object '\S*open', and is refused.*weights_only=False"): SDNVAE.from_published(tmp_path/'a.ckpt', image_size=8)
    assert not (tmp_path/'ran').exists()

class Config(dict): pass # as omegaconf's

def test_other_classes_are_named_with_the_way_out(tmp_path):
    plain,hp = case()
    with pytest.raises(ValueError, match=rf"'{__name__}.Config', and is refused.*hyper_parameters=dict"): read(tmp_path/'a.ckpt', plain, Config(hp), image_size=8)

def test_lightning_s_dictionary_without_lightning(tmp_path, monkeypatch):
    plain,hp = case()
    name = 'pytorch_lightning.utilities.parsing'
    module = types.ModuleType(name)
    module.AttributeDict = type('AttributeDict', (dict,), dict(__module__=name))
    with monkeypatch.context() as m:
        for k in ('pytorch_lightning','pytorch_lightning.utilities',name): m.setitem(sys.modules, k, module)
        torch.save(dict(state_dict=plain, hyper_parameters=module.AttributeDict(hp)), tmp_path/'a.ckpt')
    assert name not in sys.modules
    assert name.encode() in (tmp_path/'a.ckpt').read_bytes()
    with pytest.warns(UserWarning): assert SDNVAE.from_published(tmp_path/'a.ckpt', image_size=8).config.h==6

@pytest.mark.parametrize('cut', [0, 100, -1000])
def test_damaged(cut, tmp_path):
    f = tmp_path/'a.ckpt'
    read(f, *case(), image_size=8)
    f.write_bytes(f.read_bytes()[:cut])
    with pytest.raises(ValueError, match='from_published: .*a.ckpt is damaged or no checkpoint'): SDNVAE.from_published(f)

def test_words_that_are_no_checkpoint(tmp_path):
    f = tmp_path/'a.ckpt'
    f.write_text('a story')
    with pytest.raises(ValueError, match='from_published: .*is damaged or no checkpoint'): SDNVAE.from_published(f)
    for ckpt in ([1,2], {}, dict(state_dict={}), dict(hyper_parameters={}, state_dict=[1]), dict(hyper_parameters=[], state_dict={}), dict(hyper_parameters={}, state_dict={'h': 3})):
        torch.save(ckpt, f)
        with pytest.raises(ValueError, match="from_published: .*must (be a dictionary with|hold tensors)"): SDNVAE.from_published(f)
    with pytest.raises(FileNotFoundError): SDNVAE.from_published(tmp_path/'none.ckpt')
