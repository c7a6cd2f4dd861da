"What holds for every notebook: order of imports, documentation, saved outputs, anatomy, exercises. Each check is shown to refuse a bad one."
import ast, importlib, inspect, json, re
from pathlib import Path
import pytest
from fastcore.docments import docments

root = Path(__file__).parent.parent
lib = 'sdn_nb'
paths = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
modules = sorted('.'.join(p.relative_to(root/lib).with_suffix('').parts) for p in (root/lib).rglob('*.py') if not p.stem.startswith('_'))

def load(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])
def directives(cell): return set(re.findall(r'^#\|\s*(\w+)', source(cell), re.M))
def code_cells(nb): return [c for c in nb['cells'] if c['cell_type']=='code']
def outputs(nb): return [o for c in code_cells(nb) for o in c['outputs']]
def tree(cell): return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', source(cell), flags=re.M))
def exported(nb): return [c for c in code_cells(nb) if directives(c) & {'export', 'exporti', 'exports'}]
def default_exp(nb): return next((m[1] for c in code_cells(nb) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M))), None)

def cell(src, *outs, kind='code'): return dict(cell_type=kind, source=src, **({'outputs': list(outs)} if kind=='code' else {}))
def book(*cells): return {'cells': list(cells)}

FOLDED = '#| code-fold: true\n#| code-summary: "Answer"\n'                   # on a site

# order of imports

def imported(nb, modules=()):
    "(module, name) for each name that the exported cells of `nb` import from the library, in functions too; `*` for a star import"
    for node in (n for c in exported(nb) for n in ast.walk(tree(c))):
        if isinstance(node, ast.Import): yield from ((a.name.split('.', 1)[1],'') for a in node.names if a.name.startswith(f'{lib}.'))
        if isinstance(node, ast.ImportFrom):
            if any(a.name=='*' for a in node.names): yield '*','*'
            inside = node.level or (node.module or '').split('.')[0]==lib
            mod = (node.module or '').removeprefix(lib).strip('.')
            for a in node.names if inside else ():
                within = f'{mod}.{a.name}'.strip('.')           # `from sdn_nb import vae`, `from sdn_nb.scan import triton_sweep`
                yield (within,'') if within in modules or not mod else (mod,a.name)

def levels(books):
    """How high each module stands: in the reader's path the number of its notebook; in the engine the highest of what it imports.
    `books`: module -> (number or None, modules that it imports). A circle is an error."""
    found = {}
    def level(m, above=()):
        if m in above: raise AssertionError(f'a circle of imports: {" -> ".join((*above,m))}')
        if m not in found:
            number,imports = books[m]
            below = [level(i, (*above,m)) for i in imports if i in books and i!=m]
            found[m] = max(below, default=-1) if number is None else number
        return found[m]
    for m in books: level(m)
    return found

def import_faults(nb, number, level):
    "What is wrong with the imports of notebook `nb` with this number (None in the engine), where `level` says how high each module stands"
    for m,name in imported(nb, level):
        if m=='*' or m not in level and m!='__init__': yield f'imports {m}'
        elif number is not None and level[m]>=number: yield f'imports {m}, which stands at {level[m]}'
        if name.startswith('_') and not name.startswith('__'): yield f'imports {name}, a private name of {m}'

def number(path): return int(m[0]) if (m := re.match(r'\d\d(?=_)', path.name)) and path.parent.name=='nbs' else None
def module(path): return (m := default_exp(load(path))) and m.removesuffix('.__init__')
sources = {m: p for p in paths if (m := module(p))}
books = {m: (number(p), {i for i,_ in imported(load(p), sources)}) for m,p in sources.items()}

def test_imports_go_down_only():
    level,faults = levels(books),{}
    for m,p in sources.items():
        if found := list(import_faults(load(p), number(p), level)): faults[p.stem] = found
    assert faults=={}

@pytest.mark.parametrize('src, refused', [
    ('from sdn_nb.scan import scan', False), ('from sdn_nb.vae import SDNVAE', True), ('import sdn_nb.layers', True),
    ('from sdn_nb import vae', True), ('from .vae import SDNVAE', True), ('from torch.nn import *', True), ('from sdn_nb.scan import op', False),
    ('from sdn_nb.memory import kept_bytes', True), ('from sdn_nb.saving import atomic', False), ('from sdn_nb.saving import _private', True),
    ('def f():\n    from sdn_nb.vae import SDNVAE', True), ('from sdn_nb.nowhere import f', True), ('import torch', False)])
def test_imports_refused(src, refused):
    nb,level = book(cell(f'#| export\n{src}')),{'scan': 0, 'scan.op': 0, 'layers': 2, 'vae': 5, 'memory': 5, 'saving': -1}
    assert bool(list(import_faults(nb, 2, level))) == refused
    assert not list(import_faults(book(cell(src)), 2, {})) # not exported

def test_levels():
    assert levels({'scan': (0,set()), 'vae': (4,{'scan','saving'}), 'saving': (None,set()), 'memory': (None,{'vae'}), 'cli': (12,{'memory'})}) == dict(
        scan=0, vae=4, saving=-1, memory=4, cli=12)
    with pytest.raises(AssertionError, match='saving -> memory -> saving'): levels({'saving': (None,{'memory'}), 'memory': (None,{'saving'})})

# rhythm

WIDEST = 120
def wide_lines(nb): return [l for c in exported(nb) for l in source(c).splitlines() if len(l)>WIDEST]

@pytest.mark.parametrize('path', sources.values(), ids=lambda p: p.stem)
def test_no_line_of_code_is_too_wide(path): assert wide_lines(load(path)) == []

def test_wide_lines_refused():
    nb = book(cell('#| export\nx = 1'), cell(f'#| export\nx = "{"a"*WIDEST}"'), cell('y = 1 #' + 'a'*WIDEST))
    assert [l[:3] for l in wide_lines(nb)] == ['x =']

# saved outputs

def shows(cell):
    "Must executing `cell` leave an output? So it must where it prints, or ends in a value."
    if directives(cell) & {'export', 'exporti', 'hide', 'eval'}: return False
    body = tree(cell).body
    if any(isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and getattr(o.value.func, 'id', '')=='print' for o in body): return True
    value = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.BinOp, ast.Compare, ast.JoinedStr)
    return bool(body) and not source(cell).rstrip().endswith(';') and isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, value)

def output_faults(nb):
    "What is wrong with the saved outputs of notebook `nb`"
    faults = [f'not executed: {source(c)[:60]!r}' for c in code_cells(nb) if shows(c) and not c['outputs']]
    faults += [f"error {o.get('ename')}" for o in outputs(nb) if o['output_type']=='error']
    text = json.dumps([{k:v for k,v in o.get('data', o).items() if not k.startswith('image/')} for o in outputs(nb)])
    text = re.sub(r'base64,[A-Za-z0-9+/=\\n]+', '', text)
    faults += [f'path {m}' for m in re.findall(r'(?<![\w.])/(?:tmp|root|home|work|Users)/[^\s"\\]*', text)]
    if len(json.dumps(nb)) > 1_500_000: faults.append('more than 1.5 MB')
    return faults

@pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)
def test_saved_outputs(path): assert output_faults(load(path)) == []

stream = dict(output_type='stream', name='stdout', text=['3\n'])
@pytest.mark.parametrize('nb, fault', [
    (book(cell('print(1+2)', stream)), None),
    (book(cell('x = 1'), cell('test_eq(x, 1)'), cell('#| hide\nx'), cell('x;')), None),
    (book(cell('print(1+2)')), 'not executed'),
    (book(cell('y.shape')), 'not executed'),
    (book(cell('1/0', dict(output_type='error', ename='ZeroDivisionError', evalue='', traceback=[]))), 'ZeroDivisionError'),
    (book(cell('print(p)', dict(stream, text=['saved to /tmp/run/model\n']))), 'path /tmp/run/model'),
    (book(cell('p', dict(output_type='execute_result', data={'text/plain': "Path('/home/ann/sdn')"}))), 'path /home/ann'),
    (book(cell('fig()', dict(output_type='display_data', data={'image/png': 'A/tmp/B', 'text/plain': '<Figure>'}))), None),
    (book(cell('fig()', dict(output_type='display_data', data={'image/png': 'A'*1_500_001}))), '1.5 MB')])
def test_saved_outputs_refused(nb, fault):
    faults = output_faults(nb)
    assert (fault in ' '.join(faults)) if fault else faults == []

# outputs that are shown

WIDEST_PRINT = 110 # columns; what is wider wraps on a page, which a text may and columns may not

def shown_faults(nb):
    "What is wrong with how outputs look: printed columns that a page must break, and tables that say NaN"
    texts = [''.join(o['text']) for o in outputs(nb) if o['output_type']=='stream']
    def in_columns(line): return len(re.findall(r'\S(?= {2,}\S)', line))>2
    faults = [f'{len(l)} columns: {l[:40]}' for t in texts for l in t.splitlines() if len(l)>WIDEST_PRINT and in_columns(l)]
    tables = [''.join(o['data']['text/html']) for o in outputs(nb) if 'text/html' in o.get('data', {})]
    faults += [f'{m} in a table' for t in tables for m in re.findall(r'(?i)<td>(nan)</td>', t)]
    return faults + ['a header row for the name of an index' for t in tables if re.search(r'<tr>\s*<th>[^<]+</th>\s*(?:<th>[^<]*</th>\s*)*<th></th>\s*</tr>\s*</thead>', t)]

@pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)
def test_shown(path): assert shown_faults(load(path)) == []

def test_shown_refused():
    def printed(line): return book(cell('print(t)', dict(output_type='stream', name='stdout', text=[line+'\n'])))
    def table(html): return book(cell('t', dict(output_type='execute_result', data={'text/html': [f'<table>{html}</table>']})))
    assert shown_faults(printed('a  b  c'.ljust(100)+'d')) == shown_faults(printed('word '*50)) == []
    assert shown_faults(printed('a  b  c'.ljust(120)+'d')) == ['121 columns: a  b  c'.ljust(53)]
    assert shown_faults(table('<thead><tr><th>B</th><th>ms</th></tr></thead><td>nanometre</td>')) == []
    assert shown_faults(table('<td>NaN</td><td>nan</td>')) == ['NaN in a table', 'nan in a table']
    assert shown_faults(table('<thead><tr><th></th><th>ms</th></tr><tr><th>B</th><th></th></tr></thead>')) == ['a header row for the name of an index']

def caption_faults(nb):
    "Figures without a caption next to them: a text, of the author's or of a cell, that begins in italics. Several figures may share one."
    def begins(c): return source(c) if c['cell_type']=='markdown' else next((''.join(o['data']['text/markdown']) for o in c['outputs'] if 'text/markdown' in o.get('data', {})), '')
    def figure(c): return c['cell_type']=='code' and any(k.startswith('image/') for o in c['outputs'] for k in o.get('data', {}))
    cells = [c for c in nb['cells'] if c['cell_type']=='markdown' or not directives(c) & {'hide'}]
    after = zip(cells, cells[1:])
    return [source(c)[:60] for c,n in after if figure(c) and FOLDED not in source(c) and not figure(n) and not re.match(r'\*[^*\s]', begins(n)) and not begins(c)]

FIGURES = [p for p in paths if number(p) is not None or p.stem in ('one_page','use')]
@pytest.mark.parametrize('path', FIGURES, ids=lambda p: p.stem)
def test_captions(path): assert caption_faults(load(path)) == []

def test_captions_refused():
    fig,said = (cell(src, dict(output_type='display_data', data=data)) for src,data in (('plot()', {'image/png': 'AA'}), ('say()', {'text/markdown': ['*So*']})))
    text,caption = cell('So it is', kind='markdown'),cell('*So it is.* More', kind='markdown')
    assert caption_faults(book(fig, caption, fig, said, fig, fig, caption, text)) == []
    assert caption_faults(book(fig, text)) == caption_faults(book(fig, cell('x = 1'), caption)) == ['plot()']
    assert caption_faults(book(cell(FOLDED+'plot()', *fig['outputs']), text)) == []

# anatomy

def anatomy_faults(nb, figure=True):
    "What notebook `nb` lacks: a title with a subtitle in a blockquote, and a figure"
    head = next((source(c) for c in nb['cells'] if c['cell_type']=='markdown'), '')
    faults = [] if re.match(r'# \S', head) else ['title']
    if not re.search(r'^> \S', head, re.M): faults.append('subtitle')
    elif re.search(r'^[^>\s]', head.partition('\n')[2], re.M): faults.append('text in the title cell, which the site drops')
    if re.search(r'^>.*\$', head, re.M): faults.append('a formula in the subtitle, which the site does not set')
    if figure and not any(k.startswith('image/') for o in outputs(nb) for k in o.get('data', {})): faults.append('figure')
    return faults

plain = 'saving','hub','compiled','runs','command_line','showdoc','results','index','extend','notation' # nothing to draw

@pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)
def test_anatomy(path): assert anatomy_faults(load(path), path.stem not in plain) == []

def test_anatomy_refused():
    fig = cell('plot()', dict(output_type='display_data', data={'image/png': 'AA'}))
    assert anatomy_faults(book(cell('# Scan\n\n> A claim', kind='markdown'), fig)) == []
    assert anatomy_faults(book(cell('## Scan', kind='markdown'), cell('plot()'))) == ['title', 'subtitle', 'figure']
    more = cell('# Scan\n\n> A claim\n\nWhy it is made', kind='markdown')
    assert anatomy_faults(book(more, fig)) == ['text in the title cell, which the site drops']
    formula = cell('# Scan\n\n> It is $x$', kind='markdown')
    assert anatomy_faults(book(formula, fig)) == ['a formula in the subtitle, which the site does not set']

# exercises

HIDDEN = {'jupyter': {'outputs_hidden': True, 'source_hidden': True}}       # in JupyterLab

def checks(cell):
    "Does a code cell test something, so that an answer can be wrong?"
    nodes = list(ast.walk(tree(cell)))
    called = [getattr(o.func, 'id', getattr(o.func, 'attr', '')) for o in nodes if isinstance(o, ast.Call)]
    return any(isinstance(o, ast.Assert) for o in nodes) or any(name.startswith(('test_','assert_')) for name in called)

def exercise_faults(nb):
    "What is wrong with the exercises of notebook `nb`: three questions, each with a folded answer, before the last section"
    cells = nb['cells']
    def begins(words): return [i for i,c in enumerate(cells) if c['cell_type']=='markdown' and source(c).startswith(words)]
    start,end = begins('## Exercises'),begins('## What we checked')
    if len(start)!=1 or not end: return ['section']
    own = cells[start[0]+1:end[0]]
    faults = [f'{c["id"]}: hidden in JupyterLab, but no answer' for c in cells if 'jupyter' in c['metadata'] and c not in own]
    if len(source(cells[start[0]]).splitlines())>3: faults.append('more than a line above the first exercise')
    if len(own)!=6: return faults + [f'{len(own)} cells for three exercises']
    for n,(question,answer) in enumerate(zip(own[::2], own[1::2]), 1):
        if question['cell_type']!='markdown' or not source(question).startswith(f'**{n}.** '): faults.append(f'question {n}')
        if answer['cell_type']!='code':
            faults.append(f'answer {n} is no code')
            continue
        if not source(answer).startswith(FOLDED): faults.append(f'answer {n} is not folded on a site')
        if answer['metadata']!=HIDDEN: faults.append(f'answer {n} is not folded in JupyterLab')
        if not checks(answer): faults.append(f'answer {n} checks nothing')
    return faults

@pytest.mark.parametrize('path', [p for p in paths if number(p) is not None], ids=lambda p: p.stem)
def test_exercises(path): assert exercise_faults(load(path)) == []

def test_exercises_refused():
    def marked(src, kind, metadata=None): return dict(cell(src, kind=kind), id=src[:9], metadata=metadata or {})
    answers = [marked(FOLDED+check, 'code', HIDDEN) for check in ('test_eq(1, 1)', 'torch.testing.assert_close(x, y)', 'assert x')]
    questions = [marked(f'**{n}.** Why?', 'markdown') for n in (1,2,3)]
    head,end = marked('## Exercises\n\nAnswer first.', 'markdown'),marked('## What we checked, what we did not', 'markdown')
    def faults(*changes):
        cells = [head, *[c for both in zip(questions, answers) for c in both], end]
        for at,new in changes: cells[at:at+1] = new
        return exercise_faults(book(*cells))
    assert faults() == []
    assert faults((0, [])) == faults((7, [])) == ['section']
    assert faults((6, [])) == ['5 cells for three exercises']
    assert faults((3, [questions[2]])) == ['question 2']
    assert faults((2, [marked('*Answer:* so', 'markdown')])) == ['answer 1 is no code']
    assert faults((2, [marked('test_eq(1, 1)', 'code', HIDDEN)])) == ['answer 1 is not folded on a site']
    assert faults((2, [marked(FOLDED+'test_eq(1, 1)', 'code')])) == ['answer 1 is not folded in JupyterLab']
    assert faults((2, [marked(FOLDED+'print(1)', 'code', HIDDEN)])) == ['answer 1 checks nothing']
    assert faults((0, [marked('x = 1', 'code', HIDDEN), head])) == ['x = 1: hidden in JupyterLab, but no answer']
    assert faults((0, [marked('## Exercises\n\nOne.\n\nTwo.', 'markdown')])) == ['more than a line above the first exercise']

# links

def link_faults(nb, names):
    "Links of notebook `nb` whose text is a name alone that nbdev makes a link of itself, which breaks both"
    text = '\n'.join(source(c) for c in nb['cells'] if c['cell_type']=='markdown')
    return [m[0] for m in re.finditer(r'\[`([\w.]+)`\]\([^)]*\)', text) if m[1].rsplit('.', 1)[-1] in names]

exported_names = {name.rsplit('.', 1)[-1] for syms in importlib.import_module(f'{lib}._modidx').d['syms'].values() for name in syms}

@pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)
def test_links(path): assert link_faults(load(path), exported_names) == []

def test_links_refused():
    text = 'A [`scan`](00_scan.ipynb), a [`vae`](04_vae.ipynb), [a `scan`](00_scan.ipynb), `scan`'
    assert link_faults(book(cell(text, kind='markdown')), {'scan'}) == ['[`scan`](00_scan.ipynb)']

# documentation of what is exported

def doc_faults(sym):
    "What is not documented of function or class `sym`: its docstring, or a parameter's comment"
    own_init = inspect.isclass(sym) and '__init__' in vars(sym)
    if own_init and sym.__doc__ is None: return ['docstring']
    faults = [] if (sym.__doc__ or '').strip() else ['docstring']
    if inspect.isclass(sym) and not own_init: return faults # its parameters are documented where they are defined
    kinds = {k: p.kind for k,p in inspect.signature(sym).parameters.items()}
    docs = docments(sym, returns=False)
    return faults + [k for k,v in docs.items() if not v and kinds.get(k) not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) and k!='self']

@pytest.mark.parametrize('name', modules)
def test_documented(name):
    mod = importlib.import_module(f'{lib}.{name}')
    syms = {k: getattr(mod, k) for k in getattr(mod, '__all__', [])}
    faults = {k: f for k,v in syms.items() if (inspect.isclass(v) or inspect.isroutine(v)) and (f := doc_faults(v))}
    assert faults == {}

def test_documented_refused():
    def good(
        x, # a number
        **kwargs
    ): "Says it"
    def bad(x, y=1): pass
    class Bad:
        "Has a docstring, and a parameter without comment"
        def __init__(self, x): pass
    assert doc_faults(good) == []
    assert doc_faults(bad) == ['docstring', 'x', 'y']
    assert doc_faults(Bad) == ['x']

# the page that has everything

def test_one_page():
    "At most 120 lines of visible code beside the comparison with the package, and nothing of the package but its images"
    cells = [source(c) for c in code_cells(load(root/'nbs/one_page.ipynb')) if not directives(c) & {'hide','echo'}]
    own = [c for c in cells if 'shipped()' not in c and 'trained' not in c.replace('average.module, trained', '') and 'assert' not in c]
    lines = [l for c in own for l in c.splitlines() if l.strip()]
    assert 80<len(lines)<=120 and max(map(len, lines))<=120
    assert [l for l in lines if 'sdn_nb' in l]==['from sdn_nb.data import get_dls']
    defined = {m for l in lines for m in re.findall(r'^(?:def|class) (\w+)', l)}
    assert {'SubLayer','SDN','ResSDN','Block','SDNVAE','log_likelihood','loss','draw'}<=defined
