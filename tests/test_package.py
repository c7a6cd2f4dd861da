"What is said in several files is said alike"
import configparser, importlib, re
from operator import attrgetter
from pathlib import Path
import pytest, yaml
import sdn_nb

root = Path(__file__).parent.parent
ini = configparser.ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
def text(name): return (root/name).read_text(encoding='utf-8')

def test_version():
    found = dict(package=sdn_nb.__version__, citation=str(yaml.safe_load(text('CITATION.cff'))['version']),
                 changelog=re.search(r'^## \[(\d\S*)\]', text('CHANGELOG.md'), re.M)[1])
    assert found == dict.fromkeys(found, cfg['version'])

def test_site_matches_settings():
    site = yaml.safe_load(text('_quarto.yml'))['website']
    assert [site[o] for o in ('title', 'description', 'site-url', 'repo-url', 'repo-branch')] == [
        cfg['title'], cfg['description'], cfg['doc_host']+cfg['doc_baseurl'], cfg['git_url'], cfg['branch']]

def test_sidebar_lists_every_notebook():
    listed = set(re.findall(r'href: (\S+\.ipynb)', text('_quarto.yml')))
    assert listed == {p.relative_to(root/'nbs').as_posix() for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}

@pytest.mark.parametrize('script', cfg['console_scripts'].split())
def test_command_exists(script):
    mod,_,func = script.partition('=')[2].partition(':')
    assert callable(attrgetter(func)(importlib.import_module(mod)))
