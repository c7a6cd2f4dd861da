"""The explorer's page as a user sees it: Voilà on a free port of this machine, driven by headless Chromium. `pytest -m browser`
With SDN_REQUIRE_BROWSER=1, as in .ci/run, nothing may be missing; without it the tests are skipped where there is no Chromium or no Voilà."""
import base64, io, os, re, shutil, signal, socket, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest
from PIL import Image
from sdn_nb.data import get_dls
from sdn_nb.explore import Settings, picture
from sdn_nb.vae import SDNVAE

pytestmark = pytest.mark.browser
exe = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
missing = [text for there,text in ((exe, 'no Chromium: apt-get install chromium'), (find_spec('playwright'), 'no playwright: pip install playwright'),
    (find_spec('voila'), 'no Voilà: pip install "sdn_nb[explore]"')) if not there]

def need():
    if missing: (pytest.fail if os.environ.get('SDN_REQUIRE_BROWSER') else pytest.skip)('; '.join(missing))

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('explorer')

@pytest.fixture(scope='module')
def url(home):
    need()
    code = f'from sdn_nb.explore import serve; serve("digits", {free_port()}, False)'
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]))
    with open(home/'server.log', 'w') as log: p = subprocess.Popen([sys.executable, '-c', code], cwd=home, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    first = p.stdout.readline()
    assert first.startswith('explorer: http://127.0.0.1:'), first+(home/'server.log').read_text()
    yield first.split()[1]
    p.send_signal(signal.SIGINT)
    try: assert p.wait(60)==0, (home/'server.log').read_text()
    finally: p.kill()

@pytest.fixture(scope='module')
def page(url):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'])
        page = browser.new_page(viewport=dict(width=1000, height=740))
        page.route(re.compile(r'^https?://(?!127\.0\.0\.1)'), lambda r: r.abort()) # nothing from elsewhere
        page.goto(url)
        page.wait_for_selector('.widget-image', timeout=180_000)
        yield page
        browser.close()

def bytes_of(page, nth):
    "The bytes of an image on the page"
    return base64.b64decode(page.evaluate('''async nth => { const src = document.querySelectorAll('img.widget-image')[nth].src
        const a = new Uint8Array(await (await fetch(src)).arrayBuffer()); return btoa(Array.from(a, c => String.fromCharCode(c)).join('')) }''', nth))

def slider(page, text): return page.locator('.widget-slider', has=page.get_by_text(text, exact=True)).locator('.noUi-handle')
def press(page, text, key, n=1):
    slider(page, text).scroll_into_view_if_needed()
    slider(page, text).focus()
    for _ in range(n): page.keyboard.press(key)
def settled(page, text):
    "Wait until the sentence under the picture holds `text` and nothing works any more"
    page.wait_for_function('''text => document.body.innerText.includes(text) && document.body.innerText.includes('● ready')''', arg=text, timeout=60_000)

def expected(s): return picture(SDNVAE.from_pretrained('digits'), s, get_dls('digits', device='cpu')).made
def near(a, b):
    "Alike up to a grey value, since two processes may add in another order"
    a,b = (Image.open(io.BytesIO(o)).convert('L') for o in (a,b))
    return a.size==b.size and max(abs(x-y) for x,y in zip(a.tobytes(), b.tobytes()))<=1

def test_first_picture(page):
    settled(page, 'drawn at temperature 1; seed 0.')
    assert near(bytes_of(page, 1), expected(Settings((1.,)*4, 2, 0, 1)))
    assert 'explore_run' not in page.content() # no code on the page
    assert page.locator('.widget-slider').count()==9

def test_temperature_by_keyboard(page):
    before = bytes_of(page, 1)
    press(page, 'block 3, 4×4', 'ArrowLeft', 4)
    settled(page, 'drawn at temperature 1, 0.8; seed 0.')
    assert bytes_of(page, 1)!=before and near(bytes_of(page, 1), expected(Settings((1.,1.,1.,.8), 2, 0, 1)))
    press(page, 'block 3, 4×4', 'ArrowRight', 4)
    settled(page, 'drawn at temperature 1; seed 0.')
    assert bytes_of(page, 1)==before

def test_fast_moves_end_on_the_last(page, home):
    press(page, 'first to second', 'ArrowRight', 12)
    press(page, 'all blocks', 'ArrowLeft', 10)
    press(page, 'first image', 'ArrowRight', 20)
    settled(page, 'from 40% of validation image 20 and 60% of validation image 1; blocks 2 to 3 drawn at temperature 0.5; seed 0.')
    page.wait_for_timeout(300) # whatever may still be under way
    page.screenshot(path=home/'explorer.png') # nbs/images/explorer.png is a copy
    assert near(bytes_of(page, 1), expected(Settings((.5,)*4, 2, 20, 1, .6)))

def test_locked_sliders(page):
    press(page, 'blocks kept', 'ArrowRight')
    settled(page, 'Blocks 0 to 2 from')
    locked = lambda text: page.locator('.widget-slider', has=page.get_by_text(text, exact=True)).locator('[disabled]').count()>0
    assert [locked(f'block {i}, {s}') for i,s in enumerate(('2×2','2×2','4×4','4×4'))]==[True]*3+[False]
    press(page, 'blocks kept', 'ArrowLeft')
    settled(page, 'Blocks 0 to 1 from')

def test_resample_and_save(page, home):
    before = bytes_of(page, 1)
    page.get_by_role('button', name='resample').click()
    settled(page, 'seed 1.')
    assert bytes_of(page, 1)!=before
    page.get_by_role('button', name='save PNG').click()
    link = page.locator('a[download]')
    link.wait_for()
    file = home/'explore_image20_to1_mix0.6_keep2_T0.5_seed1.png'
    assert str(file) in page.inner_text('body') and file.read_bytes()==bytes_of(page, 1) and Image.open(file).size==(416,416)
    with page.expect_download() as download: link.click()
    assert download.value.suggested_filename==file.name and Path(download.value.path()).read_bytes()==file.read_bytes()

def test_error_is_seen_and_goes(page, home):
    seed = page.locator('input[type=number]')
    seed.fill('-1'); seed.press('Enter')
    alert = page.get_by_text('Settings: `seed` must be from 0 to 2**32-1, got -1.', exact=True)
    alert.first.wait_for()
    page.wait_for_function('() => [...document.querySelectorAll("img.widget-image")].every(o => o.offsetParent===null)')
    page.get_by_text('● error').wait_for()
    page.screenshot(path=home/'error.png')
    seed.fill('0'); seed.press('Enter')
    settled(page, 'seed 0.')
    assert page.locator('img.widget-image').nth(1).is_visible() and not alert.first.is_visible()

def test_token_is_asked(page, url):
    other = page.context.browser.new_context()
    visitor = other.new_page()
    visitor.goto(url.split('?')[0])
    assert '/login' in visitor.url and visitor.locator('.widget-image').count()==0
    other.close()
