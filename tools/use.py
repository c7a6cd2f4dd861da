"""ResSDN in networks that are no VAE, beside convolutions with as many parameters: a U-Net that fills in the missing half of
an image, and the head of a network that doubles an image's size.

    python tools/use.py                   # about 25 minutes on one core; goes on where it was interrupted
    python tools/use.py --only digits     # one of the tasks: each has files of its own

writes results/use_TASK.json and pictures in results/use_TASK.npz, which nbs/use.ipynb draws. Fashion-MNIST must be there
(SDN_FASHION_MNIST names its folder); the other images come with scikit-learn. `costs` measures single layers instead.

The time of a training step is measured first, all networks of a task in turn, as time of the processor, which others on the
machine change little. Networks of convolutions train for more steps, as many as take the time that ResSDN's take, so that the
curves can be read at equal steps and at equal time. The rate of learning stays; what is judged is an average of the weights."""
import argparse, json, os, time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from sdn_nb.commands import about
from sdn_nb.data import get_dls
from sdn_nb.layers import ResSDN, matching_width, n_params
from sdn_nb.memory import kept_bytes
from sdn_nb.saving import atomic
from sdn_nb.scan import DIRECTIONS

root = Path(__file__).resolve().parent.parent

# the networks, as nbs/use.ipynb writes them

def sdn(i, o, features, directions=DIRECTIONS): return ResSDN(i, o, n_features=features, directions=directions)

def convolutions(i, o, features, directions=DIRECTIONS):
    "Two 3×3 convolutions with as many parameters as `sdn(i, o, features, directions)`"
    def make(width): return nn.Sequential(nn.Conv2d(i, width, 3, padding=1), nn.ELU(), nn.Conv2d(width, o, 3, padding=1))
    return make(matching_width(n_params(sdn(i, o, features, directions)), make))

class UNet(nn.Module):
    "Convolutions on the way down; on the way up a block at each size, the smallest first"
    def __init__(self, blocks, i, o, widths, features):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 1 if a==i else 2, 1) for a,b in zip((i,*widths), widths))
        above = [0,*widths[:0:-1]]
        self.up = nn.ModuleList(block(a+w, w, features) for block,a,w in zip(blocks, above, widths[::-1]))
        self.head = nn.Conv2d(widths[0], o, 1)

    def forward(self, x):
        maps = []
        for conv in self.down: maps.append(x := F.elu(conv(x)))
        y = maps[-1][:,:0]
        for block,skip in zip(self.up, reversed(maps)):
            y = F.interpolate(y, skip.shape[2:]) if y.shape[1] else y
            y = F.elu(block(torch.cat([y,skip], 1)))
        return self.head(y)

class Doubler(nn.Module):
    "A correction of the enlarged image: three convolutions, then a block as the head, whose channels become 2×2 pixels"
    def __init__(self, block, width, features):
        super().__init__()
        convs = [m for i in (3,width,width) for m in (nn.Conv2d(i, width, 3, padding=1), nn.ELU())]
        self.net = nn.Sequential(*convs, block(width, 12, features), nn.PixelShuffle(2))

    def forward(self, x): return F.interpolate(x, scale_factor=2, mode='bicubic') + self.net(x)

# the tasks

class Fill:
    "Bits for each pixel of the half that is missing: left, right, upper or lower"
    better = 'less'
    unit = 'bits/pixel'
    def __init__(self, name, levels, widths, features, n_valid, lr):
        dls = get_dls(name, device='cpu', path=os.environ.get('SDN_FASHION_MNIST') if name=='fashion_mnist' else None)
        fewer = dls.info.levels//levels                                    # 17 levels stay, of 256 are made 16
        self.train,self.valid = ((d.dataset.levels//fewer)[:n] for d,n in ((dls.train,None),(dls.valid,n_valid)))
        self.levels,self.widths,self.features,self.lr = levels,widths,features,lr
        H,W = self.valid.shape[2:]
        side = torch.ones(2, H, W)
        side[0,:H//2] = 0
        side[1,:,:W//2] = 0
        self.seen = torch.stack([side[0],1-side[0],side[1],1-side[1]])[:,None] # (4, 1, H, W), 1 where the image is seen
        few = self.valid[:4].repeat_interleave(4, 0)
        self.shown = few,self.seen.repeat(4, 1, 1, 1)

    def networks(self):
        n = len(self.widths)
        kinds = {'ResSDN': [sdn]*n, 'convolutions': [convolutions]*n}
        if n>2: kinds['ResSDN, smallest map only'] = [sdn]+[convolutions]*(n-1)
        return {k: (lambda b=b: UNet(b, 2, self.levels, self.widths, self.features)) for k,b in kinds.items()}

    def logits(self, net, k, seen):
        x = (2*k.float()/(self.levels-1)-1)*seen
        return net(torch.cat([x,seen], 1))

    def bits(self, net, k, seen):
        each = F.cross_entropy(self.logits(net, k, seen), k[:,0].long(), reduction='none')[:,None]/np.log(2)
        return (each*(1-seen)).sum()/(1-seen).sum()

    def loss(self, net, k, draw): return self.bits(net, k, self.seen[torch.randint(4, (len(k),), generator=draw)])

    def judge(self, net):
        parts = [self.bits(net, k, s.expand(len(k), -1, -1, -1)) for s in self.seen for k in self.valid.split(250)]
        weights = [len(k) for _ in self.seen for k in self.valid.split(250)]
        return float(np.average([p.item() for p in parts], weights=weights))

    def plain(self):
        "The price by a histogram of each pixel over the training images: what needs no network"
        counts = torch.stack([(self.train==v).sum(0) for v in range(self.levels)]).double() + 1
        log_p = (counts/counts.sum(0)).log2()
        return -log_p.gather(0, self.valid.long()).mean().item()

    def pictures(self, net):
        k,seen = self.shown
        p = self.logits(net, k, seen).softmax(1)
        mean = (p*torch.arange(self.levels)[:,None,None]).sum(1, keepdim=True)
        return torch.where(seen.bool(), k, mean)/(self.levels-1)

    def given(self):
        k,seen = self.shown
        return k/(self.levels-1),torch.where(seen.bool(), k/(self.levels-1), .5)

class Double:
    "Ratio of signal to noise of an image of half the size that is doubled"
    better = 'more'
    unit = 'dB'
    def __init__(self, name, width, features, lr):
        dls = get_dls(name, device='cpu')
        self.train,self.valid = dls.train.dataset.levels,dls.valid.dataset.levels
        self.width,self.features,self.lr = width,features,lr
        self.shown = self.valid[[3,40,77,150,300,350,400,470]].float()/255

    def networks(self):
        kinds = {'ResSDN': sdn, 'convolutions': convolutions}
        return {k: (lambda b=b: Doubler(b, self.width, self.features)) for k,b in kinds.items()}

    def doubled(self, net, y): return net(F.avg_pool2d(y, 2)-.5)+.5
    def loss(self, net, k, draw):
        y = k.float()/255
        return (self.doubled(net, y)-y).abs().mean()

    def judge(self, net):
        "Mean over images of the peak signal-to-noise ratio"
        errors = [(self.doubled(net, y).clamp(0, 1)-y).square().mean((1,2,3)) for y in (self.valid.float()/255).split(128)]
        return -10*torch.cat(errors).log10().mean().item()

    def plain(self):
        "Bicubic interpolation"
        return self.judge(lambda x: F.interpolate(x, scale_factor=2, mode='bicubic'))

    def pictures(self, net): return self.doubled(net, self.shown).clamp(0, 1)
    def given(self): return self.shown,F.interpolate(F.avg_pool2d(self.shown, 2), scale_factor=2, mode='nearest')

TASKS = dict(
    digits=lambda: Fill('digits', 17, (12,16,24), 12, None, 3e-3),
    fashion_shallow=lambda: Fill('fashion_mnist', 16, (12,16), 12, 200, 3e-3),
    fashion_deep=lambda: Fill('fashion_mnist', 16, (12,16,24), 12, 200, 3e-3),
    photos=lambda: Double('photos', 24, 24, 2e-3))
STEPS = dict(digits=1200, fashion_shallow=400, fashion_deep=400, photos=600) # of ResSDN; convolutions take as much time

# training

def start(make, lr, seed):
    "A network, its optimizer and the average of its weights"
    torch.manual_seed(seed)
    net = make()
    return net,torch.optim.Adam(net.parameters(), lr),AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(.98))

def step(task, net, opt, average, k, draw):
    task.loss(net, k, draw).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.)
    opt.step()
    opt.zero_grad()
    average.update_parameters(net)

def batches(images, bs, seed):
    "Batches without end, each image once in an epoch, and the generator that draws them"
    draw = torch.Generator().manual_seed(seed)
    while True:
        for at in torch.randperm(len(images), generator=draw).split(bs):
            if len(at)==min(bs, len(images)): yield images[at],draw

def told(values):
    "Median and quartiles"
    return [median(values), *np.quantile(values, [.25,.75]).tolist()]

def in_turn(calls, rounds):
    "Milliseconds of the processor that each call took in each round, after two rounds that do not count"
    took = {k: [] for k in calls}
    for i in range(rounds+2):
        for k,call in calls.items():
            began = time.process_time()
            call()
            if i>1: took[k].append(1e3*(time.process_time()-began))
    return took

def step_times(task, bs, rounds):
    """Milliseconds of a training step, all networks in turn; the ratio to ResSDN's in the same round; and the memory that waits
    for the backward pass"""
    arms = {k: start(make, task.lr, 0) for k,make in task.networks().items()}
    k,draw = next(batches(task.train, bs, 0))
    took = in_turn({name: (lambda arm=arm: step(task, *arm, k, draw)) for name,arm in arms.items()}, rounds)
    kept = {name: kept_bytes(lambda net=net: task.loss(net, k, draw), list(net.parameters())) for name,(net,*_) in arms.items()}
    of_sdn = {n: [a/b for a,b in zip(v, took['ResSDN'])] for n,v in took.items()}
    return {n: dict(ms=told(v), of_sdn=told(of_sdn[n]), kept_bytes=kept[n]) for n,v in took.items()}

def layer_costs(features, size, rounds, bs=8):
    """What forward and backward pass of a ResSDN layer cost with one, two and four directions, over those of two convolutions
    with as many parameters, and of a single convolution, timed in turn"""
    x,rows = torch.randn(bs, features, size, size, requires_grad=True),[]
    calls,layers = {},{}
    for n in (1,2,4):
        for kind in (sdn,convolutions):
            layers[n,kind] = layer = kind(features, features, features, DIRECTIONS[:n])
            calls[n,kind] = lambda layer=layer: layer(x).sum().backward()
    one = nn.Conv2d(features, features, 3, padding=1)
    calls['one'] = lambda: one(x).sum().backward()
    took = in_turn(calls, rounds)
    for n in (1,2,4):
        pair = layers[n,sdn],layers[n,convolutions]
        kept = [kept_bytes(lambda layer=layer: layer(x), list(layer.parameters())) for layer in pair]
        of_two,of_one = ([a/b for a,b in zip(took[n,sdn], took[k])] for k in ((n,convolutions),'one'))
        rows.append(dict(features=features, size=size, directions=n, bs=bs, parameters=n_params(layers[n,sdn]),
            ms=told(took[n,sdn]), of_convolutions=told(of_two), of_one_convolution=told(of_one),
            memory_of_convolutions=kept[0]/kept[1]))
    return rows

def costs(path, rounds, features=(8,16,32,64), sizes=(8,16,32)):
    "Measure layers of every number of features at every size"
    rows = []
    for size in sizes:
        for f in features:
            rows += layer_costs(f, size, rounds)
            for r in rows[-3:]:
                m,(t,*_) = r['memory_of_convolutions'],r['of_convolutions']
                print(f"{size}×{size}, {f} features, {r['directions']} directions: {r['ms'][0]:.1f} ms,"
                      f" {t:.2f} times, memory {m:.2f} times", flush=True)
    result = about(f'python tools/use.py --only costs --rounds {rounds}', 'cpu')|dict(rows=rows)
    with atomic(path) as tmp: tmp.write_text(json.dumps(result, indent=1)+'\n')

def train(task, make, seed, steps, every, bs):
    "Judge a network every few steps until `steps` are done: what to tell of it, and the network"
    net,opt,average = start(make, task.lr, seed)
    data,curve,began = batches(task.train, bs, seed),[],time.process_time()
    for i in range(1, steps+1):
        step(task, net, opt, average, *next(data))
        if i%every and i!=steps: continue
        with torch.no_grad(): curve.append([i, task.judge(average.module)])
    return dict(seed=seed, parameters=n_params(net), curve=curve, cpu_seconds=time.process_time()-began),average.module

@torch.no_grad()
def keep_pictures(path, kind, task, net):
    "Add what a network makes of a few images to the file of pictures"
    kept = dict(np.load(path)) if path.exists() else {}
    whole,given = task.given()
    for k,x in {'whole': whole, 'given': given, kind: task.pictures(net)}.items():
        kept[k] = (255*x).round().byte().numpy()
    with atomic(path) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, **kept)

def compare(name, path, seeds, steps, bs, rounds):
    """Train each network of a task with each seed, unless the file has that run already. A file that is there keeps the
    number of steps and the batch that it was begun with"""
    task = TASKS[name]()
    result = json.loads(path.read_text()) if path.exists() else about(f'python tools/use.py --only {name}', 'cpu') | dict(
        unit=task.unit, better=task.better, steps=steps, bs=bs, lr=task.lr, features=task.features, n_train=len(task.train),
        n_valid=len(task.valid), plain=task.plain(), times=step_times(task, bs, rounds), runs={})
    for kind,make in task.networks().items():
        t,done = result['times'][kind],result['runs'].setdefault(kind, [])
        print(f"{name}, {kind}: {t['ms'][0]:.0f} ms a step, {t['of_sdn'][0]:.2f} times that of ResSDN", flush=True)
        longer = max(result['steps'], round(result['steps']/t['of_sdn'][0]))   # the same time
        for seed in range(len(done), seeds):
            told,net = train(task, make, seed, longer, max(1, result['steps']//10), result['bs'])
            if seed==0: keep_pictures(path.with_suffix('.npz'), kind, task, net)
            done.append(told)
            with atomic(path) as tmp: tmp.write_text(json.dumps(result, indent=1)+'\n')
            print(f"  seed {seed}: {told['curve'][-1][1]:.3f} {task.unit} after {longer} steps,"
                  f" {told['cpu_seconds']:.0f} s", flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=[*TASKS,'costs'], default=[*TASKS,'costs'], help='what to do (default: all)')
    p.add_argument('--seeds', type=int, default=3, help='runs of each network (default 3)')
    p.add_argument('--steps', type=int, help='steps of ResSDN (default: what each task says)')
    p.add_argument('--bs', type=int, default=32, help='images in a batch (default 32)')
    p.add_argument('--rounds', type=int, default=40, help='rounds in which steps are timed (default 40)')
    p.add_argument('--out', type=Path, default=root/'results', help='folder to write into (default results)')
    a = p.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    for name in a.only:
        if name=='costs': costs(a.out/'use_costs.json', a.rounds)
        else: compare(name, a.out/f'use_{name}.json', a.seeds, a.steps or STEPS[name], a.bs, a.rounds)

if __name__=='__main__': main()
