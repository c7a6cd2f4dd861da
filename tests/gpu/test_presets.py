"The models of the paper in full size: training steps of each, and the memory that they take"
import pytest, torch
from sdn_nb.vae import RECIPES
from sdn_nb.vae import PRESETS
from sdn_nb.memory import training_memory
from .common import cuda, device, rehearse

ROOM = 24<<30   # bytes for each of the three, which may be tested at once

def batch(name):
    "The recipe's batch, or what fits"
    memory = training_memory(PRESETS[name])
    return min(RECIPES[name].bs, (ROOM-memory.weights)//memory.per_image)

@pytest.mark.parametrize('name', ['cifar10','imagenet32','celebahq256'])
def test_training_steps(name):
    "Losses and gradients are finite, and memory is about what was foretold"
    from sdn_nb.bench import measure_step
    bs = batch(name)
    assert bs>=1
    got = measure_step(*(('digits', 4, 'bf16') if rehearse else (name, bs, 'fp16')), device, rounds=1)
    print(f"\n{name}, {bs} images: {got['seconds'][0]:.3f} s, {got['steps']} steps, gradient {got['grad_norm']:.4g}")
    print('losses', got['losses'])
    assert torch.tensor([*got['losses'],got['grad_norm']]).isfinite().all() and got['steps'] and not got['skipped']
    if not cuda: return
    print(f"peak {got['peak_bytes']/2**30:.2f} GiB, foretold {got['foretold_bytes']/2**30:.2f} GiB")
    assert 0 < got['peak_bytes'] <= 1.5*got['foretold_bytes']
