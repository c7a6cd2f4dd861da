"The link check of tools/site.py, on a small site with every fault"
import runpy
from pathlib import Path

bad_links = runpy.run_path(str(Path(__file__).parent.parent/'tools/site.py'))['bad_links']

def test_bad_links(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'index.html').write_text('<h1 id="top">T</h1><a href="sub/a.html#x">a</a><a href="#top">t</a><a href="https://x.org/#y">x</a><img src="data:,">')
    (tmp_path/'sub/a.html').write_text('<p id="x"><a href="../index.html#nowhere">1</a><a href="b.html">2</a><a href="/index.html">3</a><a href="../">4</a><img src="f.png">')
    assert [o.split(': ', 1)[1] for o in bad_links(tmp_path)] == [
        '../index.html#nowhere: no such anchor', 'b.html: no such file', '/index.html: absolute', 'f.png: no such file']
