"Write README.md, and its figures in index_files/, from nbs/index.ipynb: `python tools/readme.py`"
import re, shutil
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
hidden = re.compile(r'^#\|\s*(hide|export|exporti|default_exp)\b', re.M)
directive = re.compile(r'^#\|.*\n?', re.M)
link = re.compile(r'(\]\(|(?:src|href)=")(?!\w+:|[#/])')

def _for_readme(cell):
    "`cell` with its directives obeyed and its relative links made to start from the root"
    if cell.cell_type=='markdown': cell.source = link.sub(r'\1nbs/', cell.source)
    elif re.search(r'^#\|\s*echo:\s*false', cell.source, re.M): cell.metadata['transient'] = {'remove_source': True}
    cell.source = directive.sub('', cell.source) if cell.cell_type=='code' else cell.source
    return cell

def readme(nb):
    "The text of the README made from notebook `nb`, and its figures: {path: bytes}"
    nb.cells = [_for_readme(c) for c in nb.cells if not (c.cell_type=='code' and hidden.search(c.source))]
    nb.metadata['language_info'] = {'name': 'python'}
    text,res = MarkdownExporter().from_notebook_node(nb, resources={'output_files_dir': 'index_files', 'unique_key': 'figure'})
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', text, flags=re.M))
    return text.strip() + '\n', res['outputs']

if __name__ == '__main__':
    text,figures = readme(nbformat.read(root/'nbs/index.ipynb', 4))
    (root/'README.md').write_text(text, encoding='utf-8')
    shutil.rmtree(root/'index_files', ignore_errors=True)
    for path,data in figures.items():
        (root/path).parent.mkdir(exist_ok=True)
        (root/path).write_bytes(data)
