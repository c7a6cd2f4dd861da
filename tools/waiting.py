"""Time training steps with OpenMP's threads waiting in different ways, on a quiet and on a busy machine:
`python tools/waiting.py` writes results/waiting_cpu.json, which nbs/engine/threads.ipynb draws."""
import argparse, json, os, shlex, subprocess, sys, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
WAYS = dict(default={}, passive=dict(OMP_WAIT_POLICY='passive')) | {n: dict(GOMP_SPINCOUNT=n) for n in ('30000','10000','3000','1000','300')}
WAYS |= {'one thread': dict(OMP_NUM_THREADS='1')}
MODELS = ('digits',True),('digits',False),('fashion_mnist',True),('fashion_mnist',False) # preset, and whether it has SDN layers

def step_of(preset, sdn):
    "A training step on random images, with the recipe's batch"
    import torch
    from dataclasses import replace
    from sdn_nb.vae import SDNVAE, free_bits_loss, preset_config, preset_recipe
    torch.manual_seed(0)
    cfg = replace(preset_config(preset), sdn=sdn)
    model = SDNVAE(cfg)
    opt = torch.optim.Adamax(model.parameters(), 1e-4)
    x = torch.rand(preset_recipe(preset).bs, cfg.channels, *cfg.image_size)*2-1
    def step():
        opt.zero_grad()
        free_bits_loss(model(x), cfg.free_bits).backward()
        opt.step()
    return step

def mean_time(step, seconds):
    "Mean time of a step, over steps that take so many seconds"
    n,start = 0,time.perf_counter()
    while time.perf_counter()-start<seconds or not n: step(); n += 1
    return (time.perf_counter()-start)/n

def measure(busy, seconds):
    "In a process of its own: seconds of a step of each model, quiet and busy"
    from sdn_nb.threads import spinning
    rows = []
    for preset,sdn in MODELS:
        step = step_of(preset, sdn)
        for _ in range(2): step()
        quiet = mean_time(step, seconds)
        with spinning(busy): rows.append(dict(preset=preset, sdn=sdn, quiet=quiet, busy=mean_time(step, 2*seconds)))
    print(json.dumps(rows))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--busy', type=int, default=4, help='processes that only compute, on the busy machine; 4 if left out')
    p.add_argument('--rounds', type=int, default=3, help='processes for each way of waiting, in turn; 3 if left out')
    p.add_argument('--seconds', type=float, default=2., help='time for each figure, twice that when busy; 2 if left out')
    p.add_argument('--out', default=root/'results/waiting_cpu.json', help='JSON file to write')
    p.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: return measure(a.busy, a.seconds)
    clean = {k: v for k,v in os.environ.items() if k not in ('OMP_WAIT_POLICY','GOMP_SPINCOUNT','KMP_BLOCKTIME','OMP_NUM_THREADS','MKL_NUM_THREADS')}
    rows = []
    for i in range(a.rounds):
        for way in (list(WAYS) if i%2==0 else list(WAYS)[::-1]):
            command = [sys.executable, __file__, '--one', '--busy', str(a.busy), '--seconds', str(a.seconds)]
            out = subprocess.run(command, env=clean|WAYS[way], capture_output=True, text=True, check=True).stdout
            new = [dict(way=way, round=i)|r for r in json.loads(out.splitlines()[-1])]
            rows += new
            told = (f"{r['preset']}{'' if r['sdn'] else ' without SDN'} {1e3*r['quiet']:.0f} {1e3*r['busy']:.0f}" for r in new)
            print(f'{way:12}', *told, sep='  ', flush=True)
            from sdn_nb.commands import about
            argv = shlex.join(['python','tools/waiting.py',*sys.argv[1:]])
            Path(a.out).write_text(json.dumps(about(argv, 'cpu')|dict(busy=a.busy, rows=rows), indent=1)+'\n')

if __name__=='__main__': main()
