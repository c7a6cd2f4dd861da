"What is said in several files is said alike"
import configparser, importlib, re, subprocess, sys
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

# Installs

def workflow(name): return yaml.load(text(f'.github/workflows/{name}.yaml'), yaml.BaseLoader)  # `on` stays a word

def test_matrix_has_the_oldest_and_every_python():
    matrix = workflow('test')['jobs']['elsewhere']['strategy']['matrix']
    oldest = re.search(r'torch>=([\d.]+)', cfg['requirements'])[1]
    assert matrix['python']==['3.11','3.12','3.13','3.14'] and matrix['python'][0]==cfg['min_python']
    assert matrix['os']==['ubuntu-latest','macos-latest','windows-latest'] and matrix['torch']==['newest']
    assert {r['os'] for r in matrix['include']}==set(matrix['os']) and {r['torch'] for r in matrix['include']}=={f'{oldest}.0'}

def test_release_is_tested_named_by_its_version_and_has_no_token():
    release = workflow('release')
    assert release['on']==dict(push=dict(tags=['v*'])) and 'workflow_call' in workflow('test')['on']
    jobs = release['jobs']
    assert jobs['test']['uses'].endswith('/test.yaml') and set(jobs['publish']['needs'])=={'test','build'}
    assert jobs['publish']['permissions']=={'id-token': 'write'} and any('gh-action-pypi-publish' in s['uses'] for s in jobs['publish']['steps'])
    assert 'secrets.' not in text('.github/workflows/release.yaml')

@pytest.mark.parametrize('tag, change, fails', [('v{}', lambda s: s, ''), ('v9.9.9', lambda s: s, 'the tag is v9.9.9, and settings.ini says'), ('{}', lambda s: s, 'the tag is'),
    ('v{}', lambda s: s.replace('2027-01-01', 'unreleased'), 'CHANGELOG.md has no date')], ids=['right','other','no v','undated'])
def test_release_refuses_a_tag_that_is_not_the_version(tmp_path, tag, change, fails):
    step = next(s['run'] for s in workflow('release')['jobs']['build']['steps'] if s.get('name')=='the tag is the version')
    version = cfg['version']
    (tmp_path/'settings.ini').write_text(text('settings.ini'))
    (tmp_path/'CHANGELOG.md').write_text(change(f'# Changelog\n\n## [{version}] - 2027-01-01\n'))
    p = subprocess.run(['bash', '-e', '-c', step], cwd=tmp_path, env=dict(GITHUB_REF_NAME=tag.format(version), PATH='/usr/bin:/bin'), capture_output=True, text=True)
    assert bool(p.returncode)==bool(fails) and fails in p.stdout

REFUSE = """
import sys, runpy
sys.modules.update(dict.fromkeys({refused}))                            # None: not to be found
sys.argv = ['torch_alone', '--alone']
runpy.run_path({program!r}, run_name='__main__')
"""
def test_scan_and_layers_need_torch_alone():
    "As if nothing were installed but torch and what it requires (.ci/run does it in an environment of its own)"
    refused = {'fastai','fastcore','fastprogress','numpy','scipy','sklearn','matplotlib','pandas','PIL','torchvision','safetensors','huggingface_hub','nbdev'}
    p = subprocess.run([sys.executable, '-c', REFUSE.format(refused=refused, program=str(root/'tests/torch_alone.py'))], capture_output=True, text=True)
    assert not p.returncode and 'scan and layers work with torch' in p.stdout, p.stderr

def test_extras_are_offered_and_said():
    "Each extra that a text tells to install exists; all of settings.ini are offered by setup.py"
    extras = {k.removesuffix('_requirements') for k in cfg if k.endswith('_requirements')}
    assert extras <= set(re.findall(r"'(\w+)'", re.search(r'for k in \(([^)]*)\)', text('setup.py'))[1]))
    told = {e for f in [root/'README.md', *(root/'sdn_nb').glob('*.py')] for m in re.findall(r'pip install "(?:sdn_nb|\.)\[([\w,]+)\]"', f.read_text(encoding='utf-8')) for e in m.split(',')}
    assert 'hub' in told and told <= extras|{'h5'}
