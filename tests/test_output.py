"A command whose output nobody reads, which has no place, or whose signs a terminal does not know, ends without a traceback"
import os, shutil, subprocess, sys
import pytest, torch

pytestmark = pytest.mark.skipif(not shutil.which('bash'), reason='no bash')

# a command that prints much, started as the console scripts start theirs
TOLD = r'''
import sys
from types import SimpleNamespace
from sdn_nb import threads
def main():
    print('4\xd74\n'*100_000)
    if 'fails' in sys.argv: sys.exit('error: it fails')
    if 'breaks' in sys.argv: raise ZeroDivisionError
sys.modules['sdn_nb.told'] = SimpleNamespace(told=SimpleNamespace(main=main))
threads.COMMANDS['told'] = 'told'
threads.start('told')
'''
def said(shell, **env): return subprocess.run(['bash', '-o', 'pipefail', '-c', shell, sys.executable, TOLD], capture_output=True, text=True, encoding='utf-8', env=os.environ|env)

def test_a_reader_that_has_seen_enough():
    p = said('"$0" -c "$1" | head -1')
    assert (p.stdout,p.stderr)==('4×4\n','') and p.returncode

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_no_place(): assert said('"$0" -c "$1" > /dev/full').stderr=='error: No space left on device: standard output\n'

def test_no_output_at_all(): assert said('"$0" -c "$1" >&-').stderr==''

@pytest.mark.parametrize('env', [dict(PYTHONIOENCODING='ascii'), dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')], ids=lambda env: next(iter(env)))
def test_signs_that_a_terminal_does_not_know(env):
    p = said('"$0" -c "$1"', **env)
    assert p.returncode==0 and p.stderr=='' and p.stdout.startswith(('4\\xd74\n','4×4\n'))

def test_other_ends_stay_what_they_were():
    assert said('"$0" -c "$1" fails').stderr=='error: it fails\n' and 'ZeroDivisionError' in said('"$0" -c "$1" breaks').stderr

def test_a_real_command():
    p = subprocess.run(['bash', '-c', '"$0" -c "from sdn_nb.threads import entry; entry.sdn_train()" --list | head -1', sys.executable], capture_output=True, text=True, env=os.environ|dict(PYTHONIOENCODING='ascii'))
    assert (p.stdout,p.stderr)==('presets\n','')

def test_without_a_bar_nothing_is_printed(tmp_path, capsys):
    from sdn_nb.compression import compress, decompress
    from sdn_nb.data import get_dls
    from sdn_nb.evaluation import elbo_bpd, iw_bpd
    from sdn_nb.vae import SDNVAE
    model,dl = SDNVAE.from_pretrained('digits').eval(),get_dls('digits', bs=180, device='cpu').valid
    capsys.readouterr()
    elbo_bpd(model, dl, progress=False)
    iw_bpd(model, dl, 1, progress=False)
    k = dl.dataset.levels[:2]
    compress(model, k, tmp_path/'k', progress=False)
    assert torch.equal(decompress(tmp_path/'k', model, progress=False), k)
    assert capsys.readouterr().out==''
