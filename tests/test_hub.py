"""Models to the hub and from it, against a small server on this machine that speaks the hub's protocol; cards that are ours and cards that are not.
The hub's library reads its endpoint when it is imported, so each story runs in a process of its own; they are forks of one that has torch already."""
import base64, hashlib, json, os, re, subprocess, sys, threading
from importlib.util import find_spec
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest, yaml
from sdn_nb.hub import CARD, CONFIG, EVALUATION, WEIGHTS, is_own_card, may_be_on_hub, model_card
from sdn_nb.saving import model_folder, shipped

if not find_spec('huggingface_hub'): pytest.skip('needs huggingface_hub', allow_module_level=True)
root = Path(__file__).parent.parent

class Hub(ThreadingHTTPServer):
    "Repositories as {name: {branch: commit}}, commits as {id: {path: bytes}}; a log of what was asked for"
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Ask)
        self.repos,self.commits,self.private,self.large,self.log,self.cut = {},{},set(),{},[],False
        threading.Thread(target=self.serve_forever, daemon=True).start()
    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}'
    def handle_error(self, *args): pass                                 # a client that was cut off is no news
    def commit(self, repo, branch, files):
        old = self.commits.get(self.repos.setdefault(repo, {}).get(branch), {})
        new = old|files
        sha = hashlib.sha1(repr((repo, branch, len(self.commits), sorted(new.items()))).encode()).hexdigest()
        self.commits[sha] = new
        self.repos[repo][branch] = sha
        return sha
    def at(self, repo, rev='main'):
        sha = self.repos[repo].get(rev, rev)
        return sha,self.commits[sha]

class Ask(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def answer(self, status, body=b'', **headers):
        if not isinstance(body, bytes): body = json.dumps(body).encode(); headers['Content-Type'] = 'application/json'
        self.send_response(status)
        for k,v in (dict(Content_Length=len(body))|headers).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)
    def refuse(self, status, code): self.answer(status, dict(error=code), X_Error_Code=code, X_Error_Message=code)

    def go(self):
        hub,path = self.server,unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        hub.log.append((self.command, path))
        for pattern,f in ROUTES:
            if m := re.fullmatch(pattern, f'{self.command} {path}'): return f(self, hub, body, *m.groups())
        self.refuse(404, 'no such page')
    do_GET = do_HEAD = do_POST = do_PUT = go

    def token(self): return (self.headers.get('Authorization') or '').removeprefix('Bearer ')
    def seen(self, hub, repo, rev):
        "Commit and files, or None and an answer"
        if repo not in hub.repos or repo in hub.private and self.token()!='hf_owner': return self.refuse(401, 'RepoNotFound')
        try: return hub.at(repo, rev or 'main')
        except KeyError: return self.refuse(404, 'RevisionNotFound')
    def may_write(self, owner): return self.token()=='hf_owner' and owner=='owner' or self.refuse(403 if self.token()=='hf_owner' else 401, 'Forbidden')

    def info(self, hub, body, repo, rev):
        if found := self.seen(hub, repo, rev): self.answer(200, dict(id=repo, sha=found[0], private=repo in hub.private, siblings=[dict(rfilename=f) for f in found[1]]))
    def tree(self, hub, body, repo, rev):
        if found := self.seen(hub, repo, rev): self.answer(200, [dict(type='file', path=f, size=len(v), oid=hashlib.sha1(v).hexdigest()) for f,v in found[1].items()])
    def resolve(self, hub, body, repo, rev, file):
        if not (found := self.seen(hub, repo, rev)): return
        if file not in found[1]: return self.refuse(404, 'EntryNotFound')
        v = found[1][file]
        if hub.cut and self.command=='GET' and file==WEIGHTS:
            self.send_response(200); self.send_header('Content-Length', str(len(v))); self.send_header('ETag', '"x"'); self.end_headers()
            self.wfile.write(v[:10]); self.wfile.flush(); self.close_connection = True; return
        self.answer(200, v, ETag=f'"{hashlib.sha1(v).hexdigest()}"', X_Repo_Commit=found[0])
    def create(self, hub, body):
        ask = json.loads(body)
        name = f"{ask.get('organization') or 'owner'}/{ask['name']}"
        if not self.may_write(name.split('/')[0]): return
        if name in hub.repos: return self.answer(409, dict(url=f'{hub.url}/{name}'))
        hub.commit(name, 'main', {'.gitattributes': b''})
        if ask.get('private') or ask.get('visibility')=='private': hub.private.add(name)
        self.answer(200, dict(url=f'{hub.url}/{name}', name=name, id=name))
    def branch(self, hub, body, repo, branch):
        if not self.may_write(repo.split('/')[0]): return
        if branch in hub.repos[repo]: return self.answer(409, {})
        hub.repos[repo][branch] = hub.repos[repo]['main']
        self.answer(201, {})
    def validate(self, hub, body):
        head = yaml.safe_load(json.loads(body)['content'].split('---')[1])
        ok = isinstance(head, dict) and re.fullmatch(r'[\w.-]+', head.get('license', ''))
        self.answer(200 if ok else 400, dict(errors=[] if ok else [dict(message='bad head')], warnings=[]))
    def preupload(self, hub, body, repo, rev):
        if self.may_write(repo.split('/')[0]): self.answer(200, dict(files=[
            dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular', shouldIgnore=False) for f in json.loads(body)['files']]))
    def batch(self, hub, body, repo):
        self.answer(200, dict(transfer='basic', objects=[dict(oid=o['oid'], size=o['size'], authenticated=True, actions=dict(upload=dict(href=f"{hub.url}/lfs/{o['oid']}"))) for o in json.loads(body)['objects']]))
    def put(self, hub, body, oid):
        assert hashlib.sha256(body).hexdigest()==oid
        hub.large[oid] = body
        self.answer(200)
    def do_commit(self, hub, body, repo, rev):
        if not self.may_write(repo.split('/')[0]): return
        lines = [json.loads(l) for l in body.splitlines()]
        files = {l['value']['path']: base64.b64decode(l['value']['content']) for l in lines if l['key']=='file'}
        files |= {l['value']['path']: hub.large[l['value']['oid']] for l in lines if l['key']=='lfsFile'}
        sha = hub.commit(repo, rev, files)
        self.answer(200, dict(success=True, commitOid=sha, commitUrl=f'{hub.url}/{repo}/commit/{sha}', hookOutput=''))

REPO = r'([\w.-]+/[\w.-]+)'
ROUTES = [(rf'GET /api/models/{REPO}/revision/(.+)', Ask.info), (rf'GET /api/models/{REPO}()', Ask.info), (rf'GET /api/models/{REPO}/tree/([^/]+)/?', Ask.tree),
    (rf'(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)', Ask.resolve), ('POST /api/repos/create', Ask.create), (rf'POST /api/models/{REPO}/branch/(.+)', Ask.branch),
    ('POST /api/validate-yaml', Ask.validate), (rf'POST /api/models/{REPO}/preupload/(.+)', Ask.preupload), (rf'POST /{REPO}\.git/info/lfs/objects/batch', Ask.batch),
    (r'PUT /lfs/(\w+)', Ask.put), (rf'POST /api/models/{REPO}/commit/(.+)', Ask.do_commit)]

LINE = '''
import json, sys, warnings
from dataclasses import dataclass
from pathlib import Path
import torch
from sdn_nb.saving import Pretrained, as_tuples
@dataclass(frozen=True)
class LineConfig:
    sizes:tuple=(2,1)
    def __post_init__(self): as_tuples(self, 'sizes')
class Line(Pretrained):
    Config = LineConfig
    def __init__(self, config): super().__init__(config); self.linear = torch.nn.Linear(*config.sizes)
def line(v):
    m = Line(LineConfig())
    torch.nn.init.constant_(m.linear.weight, v); torch.nn.init.zeros_(m.linear.bias)
    return m
def read(*args, **kw): return Line.from_pretrained(*args, **kw).linear.weight[0,0].item()
def told(f, *args, **kw):
    try: return f(*args, **kw)
    except Exception as e: return f'{type(e).__name__}: {e}'
out = lambda **kw: print(json.dumps(kw))
'''

@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown(); server.server_close()

TELLER = '''
import json, os, sys, traceback
import torch, sdn_nb.saving
def tell(story, env, here, out):
    file = os.open(out, os.O_WRONLY|os.O_CREAT)
    os.dup2(file, 1); os.dup2(file, 2)
    os.environ.update(env); os.chdir(here)
    try: exec(story, dict(__name__='__main__'))
    except BaseException: traceback.print_exc(); return 1
    finally: sys.stdout.flush(); sys.stderr.flush()
    return 0
for line in sys.stdin:
    if not (child := os.fork()): os._exit(tell(**json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''

@pytest.fixture(scope='module')
def teller():
    if not hasattr(os, 'fork'): pytest.skip('processes are not forked here')
    with subprocess.Popen([sys.executable, '-c', TELLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ|dict(OMP_NUM_THREADS='1')) as p:
        yield p
        p.stdin.close()

@pytest.fixture
def tell(hub, teller, tmp_path):
    "Run a story in a process of its own, in a folder of its own; what it printed last, from JSON"
    here = tmp_path/'here'
    here.mkdir()
    def run(story, begin=LINE, **env):
        env = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path/'cache'), HF_TOKEN='hf_owner', HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1',
                   HF_HUB_ETAG_TIMEOUT='5', HF_HUB_DOWNLOAD_TIMEOUT='5') | env
        out = tmp_path/'out'
        out.unlink(missing_ok=True)
        teller.stdin.write(json.dumps(dict(story=begin+story, env=env, here=str(here), out=str(out)))+'\n'); teller.stdin.flush()
        assert teller.stdout.readline()=='0\n', out.read_text()
        return json.loads(out.read_text().splitlines()[-1])
    run.here = here
    return run

# There and back

def test_a_model_goes_there_and_comes_back(hub, tell):
    a = tell("out(url=line(3.).push_to_hub('owner/line', license='mit', data=dict(name='noise')), there=read('owner/line'))")
    sha,files = hub.at('owner/line')
    assert a['there']==3 and a['url'].endswith(sha) and set(files)=={CONFIG, WEIGHTS, CARD, '.gitattributes'}
    assert json.loads(files[CONFIG])==dict(model=dict(sizes=[2,1]), data=dict(name='noise'))
    head = yaml.safe_load(files[CARD].decode().split('---')[1])
    assert head=={**head, 'license': 'mit', 'library_name': 'sdn_nb', 'datasets': ['noise']} and "Line.from_pretrained('owner/line')" in files[CARD].decode()
    assert not os.listdir(tell.here)                                    # nothing is left in the folder
    wrote = [path for method,path in hub.log if method in ('POST','PUT')]
    assert any(p.startswith('/lfs/') for p in wrote)                    # the weights went as a large file

def test_only_the_three_files_are_fetched(hub, tell):
    tell("out(a=line(1.).push_to_hub('owner/line'))")
    hub.commit('owner/line', 'main', {'pytorch_model.bin': b'a pickle', 'modeling.py': b'print("run")', 'sub/config.json': b'{}', 'README.md': b'mine'})
    hub.log.clear()
    a = tell("from sdn_nb.saving import model_folder; out(w=read('owner/line'), files=sorted(p.relative_to(f).as_posix() for f in [model_folder('owner/line')] for p in f.rglob('*')))")
    assert a==dict(w=1, files=sorted([CONFIG, WEIGHTS, CARD]))
    assert {path.rpartition('/')[2] for method,path in hub.log if '/resolve/' in path}=={CONFIG, WEIGHTS, CARD}

def test_revisions(hub, tell):
    a = tell('''
urls = [line(1.).push_to_hub('owner/line'), line(2.).push_to_hub('owner/line'), line(3.).push_to_hub('owner/line', revision='try')]
first = urls[0].rpartition('/')[2]
out(main=read('owner/line'), branch=read('owner/line', revision='try'), commit=read('owner/line', revision=first), none=told(read, 'owner/line', revision='moon'),
    here=told(read, line(5.).save_pretrained('own'), revision='try'), package=told(read, 'digits', revision='try'))''')
    assert (a['main'],a['branch'],a['commit'])==(2,3,1)
    assert a['none'].startswith("FileNotFoundError: owner/line on the hub has no revision 'moon'")
    for k in ('here','package'): assert a[k].startswith("ValueError: `revision` is 'try', but ")

def test_a_folder_wins_over_the_hub(hub, tell):
    a = tell('''
line(1.).push_to_hub('owner/line'); line(1.).push_to_hub('owner/other')
Path('empty').mkdir(); line(7.).save_pretrained('owner/line')
out(folder=read('owner/line'), other=told(read, 'owner/other'), path=told(read, Path('nowhere')/'x'), typo=told(read, 'empty/typo'))''')
    assert a['folder']==7
    for k in ('other','path','typo'): assert a[k].startswith('FileNotFoundError: no folder ') and 'comes with the package' in a[k]
    assert not [p for m,p in hub.log if 'typo' in p or 'nowhere' in p]  # what can only be a path is not sent anywhere

# What goes wrong is said in a sentence

def test_names_and_rights(hub, tell):
    a = tell('''
line(1.).push_to_hub('owner/secret', private=True)
out(mine=read('owner/secret'), unknown=told(read, 'owner/moon'), theirs=told(line(1.).push_to_hub, 'other/line'), bad=told(line(1.).push_to_hub, 'line'), worse=told(line(1.).push_to_hub, 'owner/a--b'),
    damaged=told(Line.push_folder, 'empty', 'owner/empty'))''')
    assert a['mine']==1 and hub.private=={'owner/secret'} and set(hub.repos)=={'owner/secret'}
    assert a['unknown'].startswith("FileNotFoundError: no folder 'owner/moon' is here, and the hub has no model of that name")
    assert a['theirs'].startswith('PermissionError: the hub does not let you write to other/line') and 'hf auth login' in a['theirs']
    assert a['bad']=="ValueError: a model on the hub is called owner/name, got 'line'." and a['worse'].startswith('ValueError: the hub has no names like')
    assert a['damaged'].startswith('FileNotFoundError')
    b = tell("out(read=told(read, 'owner/secret'), write=told(line(1.).push_to_hub, 'owner/secret'))", HF_TOKEN='hf_stranger', HF_HOME=str(tell.here/'other_cache'))
    assert b['read'].startswith('FileNotFoundError') and 'If it is private' in b['read'] and b['write'].startswith('PermissionError')

def test_without_the_network(hub, tell):
    a = tell("line(4.).push_to_hub('owner/line'); out(w=read('owner/line'))")
    server = hub.url
    hub.shutdown(); hub.server_close()
    b = tell("out(cached=read('owner/line'), other=told(read, 'owner/other'), push=told(line(1.).push_to_hub, 'owner/line'))", HF_ENDPOINT=server)
    assert a['w']==b['cached']==4
    for k in ('other','push'): assert b[k].startswith('ConnectionError: owner/') and server in b[k] and 'Traceback' not in b[k] and '\n' not in b[k]
    c = tell("out(cached=read('owner/line'), other=told(read, 'owner/other'))", HF_HUB_OFFLINE='1')
    assert c['cached']==4 and c['other'].startswith('ConnectionError: owner/other could not be had')

def test_a_connection_that_is_cut_leaves_no_model(hub, tell):
    tell("out(a=line(1.).push_to_hub('owner/line'))")
    hub.cut = True
    a = tell("out(w=told(read, 'owner/line'))", HF_HOME=str(tell.here/'new_cache'))
    assert re.match('(ConnectionError|ValueError): ', a['w'])
    hub.cut = False
    assert tell("out(w=read('owner/line'))", HF_HOME=str(tell.here/'new_cache'))['w']==1

def test_without_the_library(tell):
    a = tell("out(named=told(read, 'owner/line'), word=told(read, 'moon'), push=told(line(1.).push_to_hub, 'owner/line'), folder=read(line(2.).save_pretrained('f')))",
             begin="import sys; sys.modules['huggingface_hub'] = None\n"+LINE)
    assert a['named'].startswith("FileNotFoundError: no folder 'owner/line'") and a['named'].endswith('pip install "sdn_nb[hub]"')
    assert 'hub' not in a['word'] and a['push']=='ImportError: models on the Hugging Face hub need huggingface_hub: pip install "sdn_nb[hub]"' and a['folder']==2

# Cards

def test_a_card_that_somebody_changed_is_left_alone(hub, tell):
    a = tell('''
card = Path('m/README.md')
line(1.).save_pretrained('m', license='mit'); first = card.read_text()
line(2.).save_pretrained('m', data=dict(name='noise')); second = card.read_text()
card.write_bytes(second.replace('\\n', '\\r\\n').encode()); line(2.).save_pretrained('m', data=dict(name='snow')); third = card.read_text()
card.write_text(third.replace('snow', 'rain')); mine = card.read_text(); line(3.).save_pretrained('m')
out(first=first, second=second, third=third, kept=card.read_text()==mine, sent=Line.push_folder('m', 'owner/line'))''')
    assert '"mit"' in a['first'] and '"mit"' in a['second'] and 'noise' in a['second'] and 'noise' not in a['first'] and 'snow' in a['third'] and a['kept']
    assert 'rain' in hub.at('owner/line')[1][CARD].decode()             # theirs is sent as it is
    hub.commit('owner/line', 'main', {CARD: b'# Written on the page'})
    tell("line(4.).push_to_hub('owner/line'); out(w=1)")
    assert hub.at('owner/line')[1][CARD]==b'# Written on the page' and len(hub.at('owner/line')[1])==4
    tell("Path('m/README.md').write_text('---\\nlicense: mit\\n---\\n# New words'); Line.push_folder('m', 'owner/line'); out(w=1)")
    assert hub.at('owner/line')[1][CARD].decode().endswith('# New words')

def test_what_was_measured_stands_on_the_card_that_is_sent(hub, tell):
    tell('''
line(1.).save_pretrained('m', data=dict(name='noise'))
Path('m/evaluation.json').write_text(json.dumps(dict(elbo_bpd=3., valid=dict(elbo=dict(bpd=3.14159, n=5)), test=dict(iw_10=dict(bpd=2.71828, n=5)))))
before = Path('m/README.md').read_bytes()
Line.push_folder('m', 'owner/line'); assert Path('m/README.md').read_bytes()==before
line(2.).save_pretrained('m'); out(a=1)''')
    head = yaml.safe_load(hub.at('owner/line')[1][CARD].decode().split('---')[1])
    assert head['metrics']==['bits_per_dim'] and [(r['dataset'], r['metrics'][0]) for r in head['model-index'][0]['results']]==[
        (dict(type='noise', name='noise', split='validation'), dict(type='bits_per_dim', name='elbo', value=3.1416)), (dict(type='noise', name='noise', split='test'), dict(type='bits_per_dim', name='iw_10', value=2.7183))]
    assert EVALUATION not in hub.at('owner/line')[1]
    assert 'metrics' not in yaml.safe_load((tell.here/'m'/CARD).read_text().split('---')[1])    # these were other weights'

def test_the_hubs_library_reads_our_cards():
    from huggingface_hub import ModelCard
    class Kind: pass
    evaluation = dict(valid=dict(elbo=dict(bpd=3.14159)))
    card = ModelCard(model_card('owner/name', Kind, dict(model=dict(a='|', b=[1,2]), data=dict(name="it's: \"new\"\n# x")), evaluation, 'cc-by-4.0'))
    assert card.data.license=='cc-by-4.0' and card.data.library_name=='sdn_nb' and card.data.datasets is None
    result, = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split, result.task_type)==('bits_per_dim', 3.1416, 'validation', 'unconditional-image-generation')

@pytest.mark.parametrize('name', ['digits','fashion_mnist'])
def test_cards_of_the_shipped_models(name):
    from huggingface_hub import ModelCard
    card,evaluation = ModelCard.load(shipped()[name]/CARD),json.loads((shipped()[name]/EVALUATION).read_text())
    assert card.data.license=='apache-2.0' and card.data.library_name=='sdn_nb' and card.data.datasets and not is_own_card(shipped()[name]/CARD)
    told = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    parts = dict(validation='valid', test='test')
    assert told=={(s, how): round(e['bpd'], 4) for s,part in parts.items() for how,e in evaluation.get(part, {}).items()}

def test_the_words_on_a_card_work(hub, tell):
    "A shipped model is sent, and the lines of its card are run where it is not shipped"
    tell("from sdn_nb.vae import SDNVAE; SDNVAE.from_pretrained('digits').push_to_hub('owner/digits'); out(a=1)", begin='import json\nout = lambda **kw: print(json.dumps(kw))\n')
    lines = re.search(r'```python\n(.*?)```', hub.at('owner/digits')[1][CARD].decode(), re.S)[1]
    assert "from sdn_nb.vae import SDNVAE" in lines
    assert tell('\nimport json; print(json.dumps(list(model.sample(2).shape)))', begin=lines)==[2,1,8,8]

@pytest.mark.parametrize('name, may', [('owner/name',True), ('a-b.c/d_e',True), ('name',False), ('a/b/c',False), ('/tmp/x',False), ('./x',False), ('~/x',False), ('a/',False), ('',False), ('a\\b',False), (Path('owner/name'),False), ('tests/x',False)], ids=str)
def test_what_may_be_a_name_on_the_hub(name, may, monkeypatch):
    monkeypatch.chdir(root)
    assert may_be_on_hub(name)==may

def test_shipped_names_still_work():
    assert {n: model_folder(n) for n in shipped()}==shipped()
    with pytest.raises(FileNotFoundError, match='those that do are digits, fashion_mnist'): model_folder('moon')
