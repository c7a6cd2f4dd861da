"The built site as a reader sees it: headless Chromium on _docs/, served from this machine. `pytest -m browser` after tools/site.py"
import functools, re, shutil, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.browser
docs = Path(__file__).parent.parent.parent/'_docs'

@pytest.fixture(scope='module')
def url():
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(docs)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert (docs/'index.html').exists(), 'no site: python tools/site.py'
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.fixture(scope='module')
def browser():
    exe = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    assert exe, 'no Chromium: apt-get install chromium'
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, args=['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'])
        yield b
        b.close()

def watched(browser, url, **how):
    "A new page that loads nothing but `url`, and the list of errors it will fill: of scripts, of files that are missing or elsewhere"
    page,errors = browser.new_page(viewport=dict(width=1280, height=900), **how),[]
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('response', lambda r: r.status>=400 and errors.append(f'{r.status} {r.url}'))
    page.route(re.compile(rf'^(?!{re.escape(url)}|data:)'), lambda r: (errors.append(f'asks for {r.request.url}'), r.abort()))
    return page,errors

@pytest.fixture
def visit(browser, url, tmp_path):
    "Open pages of the site and save a screenshot of each; at the end refuse errors"
    page,errors = watched(browser, url)
    def go(name):
        page.goto(f'{url}/{name}.html', wait_until='load')
        page.screenshot(path=tmp_path/f'{name}.png')
        return page
    yield go
    page.close()
    assert errors == []

def test_home(visit):
    page = visit('index')
    assert page.locator('h1').inner_text().strip() == 'sdn_nb'
    assert page.locator('#quarto-sidebar a').count() > 5
    assert 'pip install . && sdn_train' in page.locator('main').inner_text()
    page.locator('#quarto-sidebar').get_by_role('link', name='The scan').click()
    page.wait_for_url('**/scan.html')

def test_notebook(visit):
    page = visit('scan')
    assert page.locator('h1').is_visible() and page.locator('#quarto-sidebar').is_visible()
    assert all(page.locator('main img').evaluate_all('imgs => [imgs.length, ...imgs.map(o => o.naturalWidth)]'))
    assert page.locator('main math').count() > 10 and '$' not in page.locator('main p').first.inner_text()
    api = page.locator('main details.api:has(table)').first
    table = api.locator('table')
    assert not table.is_visible()
    api.locator('summary').click()
    assert table.is_visible() and table.locator('tr').count() > 2
    assert page.locator('.page-navigation a').count() == 2

WIDE = """width => { const main = document.querySelector('main'), seen = o => o.offsetParent!==null
    const scrolls = o => o.scrollWidth > o.clientWidth+1
    const within = o => o!==main && ((getComputedStyle(o).overflowX!=='visible' && o.getBoundingClientRect().right <= width) || within(o.parentElement)) // as in a slider, or the box of a wide figure
    return [document.documentElement.scrollWidth > width ? ['the page'] : [],
        [...main.querySelectorAll('pre, pre > code')].filter(o => seen(o) && scrolls(o) && (width > 600 || !o.closest('.cell-output'))).map(o => 'code: '+o.textContent.slice(0, 60)),
        [...main.querySelectorAll(':scope img, :scope table, :scope .equations, :scope p')].filter(o => seen(o) && o.getBoundingClientRect().right > width && !within(o.parentElement))
            .map(o => o.tagName+': '+o.textContent.slice(0, 60))].flat() }"""

def pages(): return sorted(p.relative_to(docs).as_posix() for p in docs.rglob('*.html'))

def test_nothing_scrolls_sideways(browser, url):
    "On every page, at the width of a laptop and of a telephone, with every fold open; but on a telephone what is printed may, in its box"
    page,errors = watched(browser, url)
    faults = []
    for name in pages():
        page.goto(f'{url}/{name}')
        page.evaluate('document.querySelectorAll("details").forEach(o => o.open = true)')
        for width in (1280, 390):
            page.set_viewport_size(dict(width=width, height=900))
            faults += [f'{name} at {width}: {o}' for o in page.evaluate(WIDE, width)]
    page.close()
    assert len(pages()) > 40 and faults == [] and errors == []

def test_boxes_scroll(browser, url):
    "On a telephone a wide figure and a printed table keep their size, and scroll; badge and code are in their places"
    page,errors = watched(browser, url)
    page.set_viewport_size(dict(width=390, height=900))
    box = """o => [o.scrollWidth > o.clientWidth+100, o.firstElementChild.getBoundingClientRect().width]"""
    page.goto(f'{url}/layers.html')
    scrolls,width = page.locator('.wide-figure .cell-output-display').first.evaluate(box)
    assert scrolls and 600<width<=720
    assert page.locator('main .colab').evaluate('o => o.nextElementSibling.getBoundingClientRect().top >= o.getBoundingClientRect().bottom')
    table = page.locator('.cell-output pre').filter(has_text='sweep brings')
    scrolls,_ = table.evaluate(box)
    assert scrolls and table.evaluate('o => getComputedStyle(o).overflowX')=='auto'
    page.close()
    assert errors == []

def test_dark(browser, url, tmp_path):
    page,errors = watched(browser, url, color_scheme='dark')
    page.goto(f'{url}/evaluation.html')
    page.screenshot(path=tmp_path/'dark.png')
    grey = """([where, what]) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = getComputedStyle(document.querySelector(where))[what]
        c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a+b)/3 }"""
    for where in ('body', '#quarto-sidebar', '.navbar', '.form-control'): assert page.evaluate(grey, [where, 'backgroundColor']) < 70, where
    for where in ('main p', 'main h2', '#quarto-sidebar a', '.navbar-title', '#TOC a', 'main pre code'): assert page.evaluate(grey, [where, 'color']) > 140, where
    page.close()
    assert errors == []

def test_heads_and_links():
    "Every page has the card and the icon, links to its own notebook, and leaks no name of a kind of parameter; the reader's path opens in Colab"
    badges = 0
    for name in pages():
        text = (docs/name).read_text(encoding='utf-8')
        icon = re.search(r'<link rel="icon" href="([^"]*)"', text)[1]
        assert (docs/name).parent.joinpath(icon).is_file() and 'og:image' in text, name
        for address in re.findall(r'content="https://sdn-nb.github.io/sdn_nb/([^"]*\.png)"', text): assert (docs/address).is_file(), name
        for kind in ('edit','blob'):
            notebook = re.search(rf'sdn_nb/{kind}/main/(nbs/[^"]*\.ipynb)" class="toc-action"', text)[1]
            assert (docs.parent/notebook).is_file(), f'{name}: {notebook}'
        if colab := re.search(r'colab\.research\.google\.com/github/sdn-nb/sdn_nb/blob/main/([^"]*)"', text):
            badges += 1
            assert (docs.parent/colab[1]).is_file(), name
        assert 'args:VAR_' not in text and ':VAR_KEYWORD' not in text, name
    assert badges == len([*(docs.parent/'nbs').glob('[0-9][0-9]_*.ipynb')])+1

def test_errors_are_seen(browser, url):
    page,errors = watched(browser, url)
    page.goto(f'{url}/none.html')
    page.evaluate('setTimeout(() => nonsense())')
    page.wait_for_timeout(100)
    page.close()
    assert f'404 {url}/none.html' in errors and 'nonsense' in ' '.join(errors)

def test_slider(visit):
    "The sweep step by step: one picture, moved by a slider"
    page = visit('scan')
    box = page.locator('.steps')
    for _ in range(3): box.locator('input').press('ArrowRight')
    assert box.locator('label').inner_text().strip()=='column 3'
    assert box.locator('img').evaluate('o => [o.style.left, o.style.top]')==['-100%', '-100%']
