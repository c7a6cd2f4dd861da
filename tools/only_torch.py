"""Make an environment that has torch, what torch requires, and nothing else: `python tools/only_torch.py FOLDER`.
Torch and what it requires are links to those of the Python that runs this, so that nothing is downloaded."""
import subprocess, sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement

def needed(name, extras, found):
    "Distributions that `name` requires here, itself first, into `found`"
    try: dist = distribution(name)
    except PackageNotFoundError: return
    if (name,*sorted(extras)) in found: return
    found[(name,*sorted(extras))] = dist
    for text in dist.requires or []:
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate(dict(extra=e)) for e in ('',*extras)): needed(r.name, r.extras, found)

folder = Path(sys.argv[1])
subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
python = folder/('Scripts' if sys.platform=='win32' else 'bin')/'python'
site = Path(subprocess.run([python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], check=True, capture_output=True, text=True).stdout.strip())
found = {}
needed('torch', set(), found)
for dist in {d.metadata['Name']: d for d in found.values()}.values():
    for top in {f.parts[0] for f in dist.files} - {'..','__pycache__'}:
        if not (site/top).exists(): (site/top).symlink_to(dist.locate_file(top).resolve())
print(*sorted({d.metadata['Name'] for d in found.values()}))
