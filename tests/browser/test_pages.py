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

def watched(browser, url):
    "A new page that loads nothing but `url`, and the list of errors it will fill: of scripts, and of files that are missing"
    page,errors = browser.new_page(viewport=dict(width=1280, height=900)),[]
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('response', lambda r: r.status>=400 and errors.append(f'{r.status} {r.url}'))
    page.route(re.compile(rf'^(?!{re.escape(url)})'), lambda r: r.abort())
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
    page.wait_for_selector('main .katex math', state='attached')
    table = page.locator('main table:has-text("Details")').first
    assert table.is_visible() and table.locator('tr').count() > 3

def test_errors_are_seen(browser, url):
    page,errors = watched(browser, url)
    page.goto(f'{url}/none.html')
    page.evaluate('setTimeout(() => nonsense())')
    page.wait_for_timeout(100)
    page.close()
    assert f'404 {url}/none.html' in errors and 'nonsense' in ' '.join(errors)
