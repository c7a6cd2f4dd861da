"Importing a module warns of nothing, prints nothing and changes nothing for others"
import json, subprocess, sys
import pytest

# What the modules import from elsewhere comes first, once for all; each module is then imported by a process of its own, in which no other of ours is loaded
EACH_ALONE = """
import contextlib,importlib,json,os,pkgutil,warnings
warnings.simplefilter('ignore')
import torch,pandas,sklearn.datasets,sklearn.model_selection,sklearn.linear_model,sklearn.ensemble,matplotlib.pyplot,torchvision,scipy.stats,IPython.display,PIL.Image,requests,fastprogress,fastcore.all
with contextlib.suppress(ImportError): import accelerate # 1.x adds a filter of its own
warnings.resetwarnings()
warnings.simplefilter('error')
import sdn_nb
def state(): return [str(warnings.filters), torch.get_num_threads(), torch.initial_seed(), torch.get_default_dtype(), matplotlib.get_backend(), os.environ.copy()]
for name in [i.name for i in pkgutil.walk_packages(sdn_nb.__path__, 'sdn_nb.') if i.name!='sdn_nb._modidx']:
    pid = os.fork()
    if not pid:
        said,before = '',state()
        try: importlib.import_module(name)
        except BaseException as e: said = f'{type(e).__name__}: {e}'
        changed = [str(b) for a,b in zip(before, state()) if a!=b]
        if said or changed: print(json.dumps([name, said, changed]), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
print('all')
"""

@pytest.mark.skipif(sys.platform=='win32', reason='a process of this system has no copies')
def test_no_module_warns():
    p = subprocess.run([sys.executable, '-c', EACH_ALONE], capture_output=True, text=True)
    assert (p.stdout,p.stderr,p.returncode)==('all\n','',0), p.stdout+p.stderr
