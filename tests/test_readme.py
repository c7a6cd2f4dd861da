"README.md is the front door's notebook, and says the two commands that everyone needs"
import runpy
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

root = Path(__file__).parent.parent
readme = runpy.run_path(str(root/'tools/readme.py'))['readme']

def test_readme_is_made_of_index():
    text,figures = readme(nbformat.read(root/'nbs/index.ipynb', 4))
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run `python tools/readme.py`'
    kept = {p.relative_to(root).as_posix(): p.read_bytes() for p in (root/'index_files').glob('*')}
    assert kept == figures, 'run `python tools/readme.py`'

@pytest.mark.parametrize('command', ['pip install . && sdn_train', 'pip install -e ".[dev]" && nbdev_test && pytest -n 2'])
def test_readme_has_command(command): assert command in (root/'README.md').read_text(encoding='utf-8').splitlines()

def test_readme_obeys_directives():
    png = new_output('display_data', {'image/png': 'iVBORw0K', 'text/plain': '<Figure size 640x480>'})
    text,figures = readme(new_notebook(cells=[
        new_markdown_cell('# T\n\n[a](00_scan.ipynb) [b](https://x.org) [c](#t) ![d](images/d.png)'),
        new_code_cell('#| hide\nsecret = 1'), new_code_cell('#| export\ndef f(): pass'),
        new_code_cell('#| echo: false\nquiet()', outputs=[png])]))
    assert '[a](nbs/00_scan.ipynb) [b](https://x.org) [c](#t) ![d](nbs/images/d.png)' in text
    assert not [o for o in ('secret', 'def f', 'quiet', '#|', '<Figure') if o in text]
    assert len(figures)==1 and f'({next(iter(figures))})' in text
