"""Time the programs of the sweep on both sides of the sizes at which one takes over from another: `python tools/thresholds.py`

Four questions: from how many features on PyTorch's products beat the compiled sweep (`widest`, and `half` under autocast to
bf16), up to how many lines a plain loop is quickest (`lines`), and how many rows a thread should work on at a time (`rows`).
Writes results/thresholds_cpu.json, which nbs/experiments/whys.ipynb draws; some minutes on an idle processor."""
import argparse, json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from sdn_nb.bench import gru_weights, in_turn, seconds
from sdn_nb.commands import about
from sdn_nb.saving import atomic
from sdn_nb.scan import cpp_sweep, scan
from sdn_nb.scan.torch_sweep import plain_loop

root = Path(__file__).resolve().parent.parent

def programs(direction='right', half=False):
    "The plain loop, PyTorch's sweep and the compiled one, as functions of x and weights"
    def under(f):
        def call(*args):
            with torch.autocast('cpu', torch.bfloat16) if half else nullcontext(): return f(*args)
        return call
    loop = under(lambda x, *w: plain_loop(x, *w, direction))
    return dict(loop=loop) | {name: under(partial(scan, direction=direction, backend=name)) for name in ('torch','cpp')}

def with_rows(n):
    "The compiled sweep, a thread of which works on `n` rows at a time"
    def call(*args):
        with patch.object(cpp_sweep, '_ROWS', n): return scan(*args, 'right', backend='cpp')
    return call

def time_all(fs, shape, training, rounds, least=.03):
    "Seconds of a call of each function on a map (B, C, H, W), one for each round"
    torch.manual_seed(0)
    x,weights,calls = torch.randn(*shape),gru_weights(shape[1]),{}
    for name,f in fs.items():
        seconds(f, x, weights, training)
        calls[name] = partial(seconds, f, x, weights, training, max(1, int(least/seconds(f, x, weights, training))))
    return in_turn(calls, rounds)

def cases(toy):
    "question -> list of (where on the axis, functions, shape, training)"
    few = lambda values: values[:2] if toy else values
    return dict(
        widest=[(C, programs(), (4,C,16,16), True) for C in few([32,64,128,200,256,320,400,480,560,640])],
        half=[(C, programs(half=True), (4,C,16,16), True) for C in few([32,64,96,128,160,192,256])],
        lines=[(T, programs(), (2,16,8,T), True) for T in few([1,2,3,4,5,6,7,8,10,12,16])],
        lines_forward=[(T, programs(), (2,16,8,T), False) for T in few([1,2,3,4,6,8,10,12,14,16,20])],
        rows=[(n, {'cpp': with_rows(n), 'as it is': partial(scan, direction='right', backend='cpp')}, (4,200,64,64) if not toy else (1,8,8,8), True)
              for n in few([16,32,64,128,256,512,1024,4096])])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=7, help='of timing, after one that does not count (default 7)')
    p.add_argument('--out', type=Path, default=root/'results/thresholds_cpu.json', help='file to write')
    p.add_argument('--toy', action='store_true', help='few sizes, to try the command')
    a = p.parse_args()
    result = about('python tools/thresholds.py', 'cpu')
    for question,points in cases(a.toy).items():
        result[question] = []
        for at,fs,shape,training in points:
            times = time_all(fs, shape, training, a.rounds)
            result[question].append(dict(at=at, shape=shape, training=training, seconds=times))
            print(f'{question} {at}: ' + ', '.join(f'{name} {1e3*min(t):.3f} ms' for name,t in times.items()), flush=True)
            with atomic(a.out) as tmp: tmp.write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
