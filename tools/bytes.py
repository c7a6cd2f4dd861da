"""Lengths of files: images of a data set compressed with a model of the package, beside what image formats need.

    pip install -e ".[dev]" pillow-jxl-plugin
    python tools/bytes.py fashion_mnist test
    python tools/bytes.py digits valid

writes results/bytes_NAME.json. JPEG XL is left out, and named as missing, where its plugin of PIL is not installed."""
import argparse, json, lzma, math, sys, tempfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
import numpy as np, PIL, torch
from PIL import Image, features

sys.path.insert(0, str(Path(__file__).parent.parent))
from sdn_nb.commands import about
from sdn_nb.compression import Stack, compress, next_batch, push_images
from sdn_nb.data import get_dls, to_unit
from sdn_nb.evaluation import at_rest, elbo_estimate
from sdn_nb.vae import SDNVAE

try:
    import pillow_jxl  # noqa: F401, which makes PIL know JPEG XL
    JXL = dict(jpeg_xl=dict(format='JXL', lossless=True, effort=10))
except ImportError: JXL = {}
FORMATS = dict(
    png=dict(format='PNG', optimize=True, compress_level=9),
    webp=dict(format='WEBP', lossless=True, quality=100, method=6), **JXL)

def picture_size(a, **options):
    "Bytes of one picture, which is read again and compared"
    out = BytesIO()
    Image.fromarray(a).save(out, **options)
    with Image.open(out) as im: assert np.array_equal(np.asarray(im.convert('L')), a), options
    return len(out.getvalue())

def raw_size(a): return len(lzma.compress(a.tobytes(), lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))

def mosaic(a):
    "Grey images (N, H, W) side by side, as square as may be; what is left over is black"
    n,h,w = a.shape
    cols = math.isqrt(n-1)+1
    rows = -(-n//cols)
    whole = np.zeros((rows*cols,h,w), np.uint8)
    whole[:n] = a
    return np.ascontiguousarray(whole.reshape(rows,cols,h,w).transpose(0,2,1,3).reshape(rows*h, cols*w))

def format_sizes(a):
    "Bytes by format: all images in one file, and each in its own"
    sizes = {name: dict(one_file=picture_size(mosaic(a), **o), each=sum(picture_size(i, **o) for i in a)) for name,o in FORMATS.items()}
    return sizes | dict(lzma=dict(one_file=raw_size(a), each=sum(map(raw_size, a))))

def precision(model, k, finest=14):
    "Bits/dim on a stack with random bits on it, and what the ELBO says of the same draws, by the fineness of bins"
    words = np.random.default_rng(0).integers(1, 2**32, 10**6, dtype=np.uint32)
    found = []
    with at_rest(model, 0):
        for bits in range(finest+1):
            stack,said = Stack(words),0.
            before = len(stack)
            for part in k.split(64): said += push_images(stack, model, part, bits).sum().item()
            found.append(dict(bits=bits, stack=(len(stack)-before)/k.numel(), elbo=said/k.numel()))
    return found

def start(model, k):
    "What it costs that nothing lies on the stack at first: bits of the first images, chained, and with random bits to borrow"
    latents = sum(z[0].numel() for z in model.encode(to_unit(k[:1], model.config.levels)))
    with at_rest(model, 0):
        chain,done = Stack(),0
        while done<32:
            n,bits = next_batch(len(chain), len(k)-done, latents, 10, 64)
            push_images(chain, model, k[done:done+n], bits)
            done += n
        rich = []
        for seed in range(8):
            stack = Stack(np.random.default_rng(seed).integers(1, 2**32, 20*done*latents//32, dtype=np.uint32))
            before = len(stack)
            push_images(stack, model, k[:done], 10)
            rich.append(len(stack)-before)
    return dict(images=done, chained=len(chain), with_random_bits=rich)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', help='a model of the package and the data set of its name')
    p.add_argument('split', choices=['valid','test'], help='part of the data set')
    args = p.parse_args()
    model = SDNVAE.from_pretrained(args.name)
    dls = get_dls(args.name, bs=64, num_workers=0, device='cpu')
    dl = dls.valid if args.split=='valid' else dls.test
    k = torch.stack([dl.dataset[i] for i in range(len(dl.dataset))])
    with tempfile.TemporaryDirectory() as folder: report = compress(model, k, Path(folder)/'a.sdn', args.name, progress=False)
    elbo = elbo_estimate(model, dl, progress=False)
    versions = dict(pillow=PIL.__version__, webp=features.version('webp'), jpeg_xl=f"pillow-jxl-plugin {version('pillow-jxl-plugin')}" if JXL else None)
    result = about(f'python tools/bytes.py {args.name} {args.split}', 'cpu') | dict(
        constriction=version('constriction'), formats=versions, data=args.name, split=args.split,
        images=report.images, values=report.values, raw=report.values, stack_bits=report.stack, file=report.file, drawn_elbo=report.elbo,
        elbo=dict(bpd=elbo.bpd, stderr=elbo.stderr), images_per_second=[report.images/s for s in report.seconds],
        precision=precision(model, k[:1024]), start=start(model, k), others=format_sizes(k[:,0].numpy()))
    out = Path(__file__).parent.parent/'results'/f'bytes_{args.name}.json'
    out.write_text(json.dumps(result, indent=1)+'\n')
    print(out.read_text())

if __name__=='__main__': main()
