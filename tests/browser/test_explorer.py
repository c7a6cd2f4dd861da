"""The explorer's page as a user sees it: Voilà on a free port of this machine, driven by headless Chromium. `pytest -m browser`
With SDN_REQUIRE_BROWSER=1, as in .ci/run, nothing may be missing; without it the tests are skipped where there is no Chromium or no Voilà."""
import base64, io, os, re, shutil, signal, socket, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest
from PIL import Image
from sdn_nb.data import get_dls
from sdn_nb.explore import PAGES, Settings, picture
from sdn_nb.saving import model_folder
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
    shutil.copytree(model_folder('digits'), home/'runs'/'mine')
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]))
    with open(home/'server.log', 'w') as log: p = subprocess.Popen([sys.executable, '-c', code], cwd=home, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    first = p.stdout.readline()
    assert first.startswith('explorer: http://127.0.0.1:'), first+(home/'server.log').read_text()
    yield first.split()[1]
    p.send_signal(signal.SIGINT)
    try: assert p.wait(60)==0, (home/'server.log').read_text()
    finally: p.kill()
    assert 'Traceback' not in (home/'server.log').read_text()

def watched(browser, **how):
    "A page of its own context that reaches nothing but this machine, and a list of what goes wrong on it, tries to reach more included"
    page,faults = browser.new_context(**how).new_page(),[]
    page.route(re.compile(r'^https?://(?!127\.0\.0\.1)'), lambda r: (faults.append(f'asks for {r.request.url}'), r.abort()))
    page.on('pageerror', lambda e: faults.append(f'error {e}'))
    page.on('console', lambda m: m.type=='error' and faults.append(f'console {m.text}'))
    page.on('response', lambda r: r.status>=400 and faults.append(f'{r.status} {r.url}'))
    return page,faults

def shown(page, url):
    page.goto(url)
    page.wait_for_selector('.widget-image', timeout=180_000)

@pytest.fixture(scope='module')
def page(url):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'])
        page,faults = watched(browser, viewport=dict(width=1000, height=740))
        shown(page, url)
        yield page
        browser.close()
        assert faults==[]

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
    assert near(bytes_of(page, 1), expected(Settings((1.,)*4, 1, 0, 1)))
    assert 'explore_models' not in page.content() # no code on the page
    assert page.locator('.widget-slider').count()==9
    assert all(page.locator('.widget-slider .widget-label').evaluate_all('labels => labels.map(o => o.title.length>10)'))

def test_temperature_by_keyboard(page):
    press(page, 'blocks kept', 'ArrowRight')
    settled(page, 'Blocks 0 to 1 from')
    before = bytes_of(page, 1)
    press(page, '3: fine detail, 4×4', 'ArrowLeft', 4)
    settled(page, 'drawn at temperature 1, 0.8; seed 0.')
    assert bytes_of(page, 1)!=before and near(bytes_of(page, 1), expected(Settings((1.,1.,1.,.8), 2, 0, 1)))
    press(page, '3: fine detail, 4×4', 'ArrowRight', 4)
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
    assert [locked(f'{i}: {s}') for i,s in enumerate(['coarse shape, 2×2']*2+['fine detail, 4×4']*2)]==[True]*3+[False]
    press(page, 'blocks kept', 'ArrowLeft')
    settled(page, 'Blocks 0 to 1 from')

def test_resample_and_save(page, home):
    before = bytes_of(page, 1)
    page.get_by_role('button', name='draw again').click()
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

def test_starting_points(page):
    for name,words in {'New pictures':'Blocks 0 to 3 drawn', 'Between two images':'50% of validation image 20 and 50%', 'Around an image':'Block 0 from validation image 20; blocks 1'}.items():
        page.get_by_role('button', name=name).click()
        settled(page, words)
    assert page.get_by_role('button', name='draw again').get_attribute('title')=='the next seed'

def choose(page, name): page.locator('select').first.select_option(name)

def test_another_model(page):
    assert page.locator('select').first.locator('option').all_inner_texts()==['digits','fashion_mnist','runs/mine']
    choose(page, 'fashion_mnist')
    settled(page, '28×28')
    assert page.get_by_text('0: coarse shape, 7×7', exact=True).count()==1
    choose(page, 'runs/mine')
    settled(page, '8×8')
    choose(page, 'digits')
    settled(page, 'validation image 20') # as it was left

@pytest.mark.parametrize('width,height', [(390,844), (800,600), (1280,800)])
def test_pictures_stay_in_view(page, home, width, height):
    page.set_viewport_size(dict(width=width, height=height))
    assert page.evaluate('() => document.documentElement.scrollWidth')<=width
    page.screenshot(path=home/f'{width}.png')
    save = page.get_by_role('button', name='save PNG')
    save.scroll_into_view_if_needed()
    page.mouse.wheel(0, 3000)
    page.wait_for_timeout(300)
    picture,button = page.locator('img.sdn-made').bounding_box(),save.bounding_box()
    page.screenshot(path=home/f'{width}_below.png')
    page.evaluate('scrollTo(0, 0)')
    page.set_viewport_size(dict(width=1000, height=740))
    for box in (picture,button): assert 0<=box['y'] and box['y']+box['height']<=height and 0<=box['x'] and box['x']+box['width']<=width
    assert picture['width']>=200 and (picture['x']+picture['width']<=button['x'] or picture['y']+picture['height']<=button['y'])

def test_dark(page, url, home):
    dark,faults = watched(page.context.browser, color_scheme='dark', viewport=dict(width=800, height=600))
    shown(dark, url)
    settled(dark, 'seed 0.')
    dark.screenshot(path=home/'dark.png')
    light = """name => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = getComputedStyle(document.querySelector(SELECTOR))[name]
        c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a+b)/3 }"""
    ground = dark.evaluate(light.replace('SELECTOR', "'body'"), 'backgroundColor')
    for text in ('.widget-label','.sdn-said','.sdn-head b'): assert dark.evaluate(light.replace('SELECTOR', f"'{text}'"), 'color')-ground>110
    assert ground<60 and faults==[]
    dark.context.close()

def test_notebook_in_jupyter(page, home):
    "The explorer in its own notebook, all of whose cells are run: its controls reach the kernel"
    root = Path(__file__).parents[2]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    port = free_port()
    code = [sys.executable, '-m', 'voila', str(root/'nbs'/'11_explore.ipynb'), f'--port={port}', '--no-browser', '--VoilaExecutor.skip_cells_with_tag=none']
    with open(home/'notebook.log', 'w') as log: p = subprocess.Popen(code, cwd=home, env=env, stdout=log, stderr=log)
    try:
        visitor,_ = watched(page.context.browser, viewport=dict(width=1000, height=740))
        for _ in range(100):
            try: visitor.goto(f'http://127.0.0.1:{port}', wait_until='commit'); break
            except Exception: visitor.wait_for_timeout(200)
        visitor.wait_for_selector('.widget-image', timeout=240_000)
        assert 'not found' not in visitor.inner_text('body').lower()
        visitor.get_by_role('button', name='New pictures').click()
        settled(visitor, 'Blocks 0 to 3 drawn at temperature 1; seed 0.')
        assert near(bytes_of(visitor, 1), expected(Settings((1.,)*4)))
    finally: p.kill()

def test_token_is_asked(page, url):
    other = page.context.browser.new_context()
    visitor = other.new_page()
    visitor.goto(url.split('?')[0])
    assert '/login' in visitor.url and visitor.locator('.widget-image').count()==0
    other.close()

def test_too_many_pages(page, url, home):
    "One is refused in words, and shown when another was left"
    browser,open_pages = page.context.browser,[]
    refused = browser.new_context(viewport=dict(width=390, height=844), color_scheme='dark').new_page()
    while refused.goto(url).status!=503:
        open_pages.append(refused)
        refused.wait_for_selector('.widget-image', timeout=180_000)
        assert len(open_pages)<PAGES                                       # `page` is one of them
        refused = browser.new_context(viewport=dict(width=390, height=844), color_scheme='dark').new_page()
    text = refused.inner_text('body')
    assert f'The explorer is open on {PAGES} pages' in text and 'Close one' in text and 'Traceback' not in text
    assert refused.evaluate('document.documentElement.scrollWidth')<=390
    refused.screenshot(path=home/'refused.png')
    picture = Image.open(home/'refused.png').convert('L')
    assert picture.getpixel((5,5))<64 and picture.getextrema()[1]>190      # bright letters on a dark ground
    assert open_pages, 'no page could be opened beside the first'
    open_pages.pop().goto('about:blank')
    for _ in range(20):
        if refused.reload().status==200: break
        refused.wait_for_timeout(500)
    refused.wait_for_selector('.widget-image', timeout=180_000)
    for o in (*open_pages, refused): o.goto('about:blank'); o.context.close()
