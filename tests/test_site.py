"What tools/site.py refuses, and what it changes, on small sites with every fault"
import builtins, importlib, re, runpy
from pathlib import Path
import nbformat
import nbformat.v4 as nbf
import pytest
from execnb.nbio import dict2nb, write_nb
from smalldocs.cli import main as smalldocs
from sdn_nb import _modidx as modidx
from sdn_nb.showdoc import FoldAnswers, TblRenderer, foreign_init, names_of

root = Path(__file__).parent.parent
site = runpy.run_path(str(root/'tools/site.py'))
bad_links,title_faults,localize,hang = (site[o] for o in ('bad_links','title_faults','localize','hang'))

def test_bad_links(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top">T</h1><a href="sub/a.html#x">a</a><a href="#top">t</a><a href="https://x.org/#y">x</a><img src="data:,">')
    (tmp_path/'sub/a.html').write_text('<p id="x"><a href="../index.html#nowhere">1</a><a href="b.html">2</a><a href="/index.html">3</a><a href="../">4</a><img src="f.png">')
    assert [o.split(': ', 1)[1] for o in bad_links(tmp_path)] == [
        '../index.html#nowhere: no such anchor', 'b.html: no such file', '/index.html: absolute', 'f.png: no such file']

@pytest.mark.parametrize('text,words', [
    ('# Title\n\n> A claim', ''), ('# Title', ''), ('# Title\n\n> A claim\n\nWhat a bit is.', "'What a bit is.'"), ('# Title\nMore', "'More'"),
    ('# Title\n> A claim\n> and more', "'> and more'"), ('Words', 'no title')])
def test_title_cell(tmp_path, text, words):
    path = tmp_path/'a.ipynb'
    path.write_text(nbf.writes(nbf.new_notebook(cells=[nbf.new_code_cell('#| default_exp a'), nbf.new_markdown_cell(text), nbf.new_markdown_cell('Free')])))
    faults = title_faults(path)
    assert len(faults)==bool(words) and words in ''.join(faults)

def test_no_title_cell_loses_a_line():
    paths = site['sources'](root/'nbs')
    assert len(paths)>40 and [o for p in paths for o in title_faults(p)]==[]

def test_localize(tmp_path):
    (tmp_path/'engine').mkdir()
    (tmp_path/'site_libs/themes').mkdir(parents=True)
    (tmp_path/'site_libs/themes/dark.css').write_text('@import url(https://fonts.org/a?b;c);p{color:red}')
    (tmp_path/'scan.html').write_text('<p id="f">')
    (tmp_path/'engine/a.html').write_text('<a href="https://x.org/s/scan.html#f">f</a><a href="https://x.org/s/scan.html#g">g</a>'
        '<a href="https://hub.org/edit/main/nbs/engine/a.ipynb">e</a><meta content="https://x.org/s/engine/images/card.png">')
    localize(tmp_path, 'https://x.org/s', {'scan': '00_scan', 'engine/a': 'engine/01_a'})
    assert (tmp_path/'site_libs/themes/dark.css').read_text()=='p{color:red}'
    assert (tmp_path/'engine/a.html').read_text()==('<a href="../scan.html#f">f</a><a href="../scan.html">g</a>'
        '<a href="https://hub.org/edit/main/nbs/engine/01_a.ipynb">e</a><meta content="https://x.org/s/images/card.png">')

def test_hang():
    "Lines keep their text and their colours, also where a string runs over several"
    made = hang('if <span class="cf">x</span>:\n    <span class="st">"""a\n  b"""</span>\n')
    assert made==('<span class="hang" style="--indent:0">if <span class="cf">x</span>:\n</span>'
        '<span class="hang" style="--indent:4">    <span class="st">"""a\n</span></span>'
        '<span class="hang" style="--indent:2"><span class="st">  b"""</span>\n</span><span class="hang" style="--indent:0">\n</span>')

def test_every_name_has_a_source():
    "What a visible cell uses, some cell of its notebook binds: the site can show it"
    faults = []
    for path in site['sources'](root/'nbs'):
        used,bound = {},{*dir(builtins), 'display'}
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type!='code': continue
            needs,binds = names_of(re.sub(r'^\s*[%!].*$', '', cell.source, flags=re.M))
            bound |= binds
            if not re.search(r'^#\| *(hide|echo: *false)', cell.source, re.M): used |= dict.fromkeys(needs, cell.id)
        faults += [f'{path.name}, cell {id}: {name}' for name,id in used.items() if name not in bound]
    assert faults==[]

def test_folds_show_no_parameters_of_other_packages():
    "A callback's fold does not list the events of fastai's"
    found = 0
    for module,names in modidx.d['syms'].items():
        for name in names:
            *path,last = name.split('.')
            sym = getattr(importlib.import_module(module), last, None)
            if name.rsplit('.', 1)[0]!=module or not isinstance(sym, type) or not foreign_init(sym): continue
            found += 1
            shown = TblRenderer(sym)._repr_markdown_()
            assert f'<code>{last}()</code>' in shown and '| **Type** |' not in shown, name
    assert found>5

def test_answers_fold_with_their_output(tmp_path):
    "On a page, an answer's code and what it printed stand inside one closed fold"
    printed = nbf.new_output('stream', text='forty-two\n')
    cells = ['# Page', '**1.** How many?', '#| code-fold: true\n#| code-summary: "Answer"\nprint(the_number)', 'After it']
    made = [nbf.new_code_cell(o, outputs=[printed]) if 'print(' in o else nbf.new_markdown_cell(o) for o in cells]
    nb = dict2nb(nbf.new_notebook(cells=made))
    FoldAnswers(nb).begin()
    (tmp_path/'_quarto.yml').write_text('project:\n  type: website\n  output-dir: _docs\nwebsite:\n  title: T\n')
    write_nb(nb, tmp_path/'index.ipynb')
    assert not smalldocs(['render', '--strict', '--quiet', str(tmp_path)])
    page = (tmp_path/'_docs/index.html').read_text(encoding='utf-8')
    before,rest = page.split('<details class="answer">')
    fold,after = rest.split('</details>', 1)
    assert '<summary>Answer</summary>' in fold and 'the_number' in fold and 'forty-two' in fold and 'code-fold' not in fold
    assert 'How many?' in before and not any(o in before+after for o in ('the_number','forty-two'))
