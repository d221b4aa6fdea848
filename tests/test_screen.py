"""The live screen in a real browser, in JupyterLab and as a page; and its widgets and notebook without one."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spyresearch.live.pages import page_command, page_env

ROOT = Path(__file__).parents[1]
SPEAKER, SCREEN = Path(__file__).with_name('speaking.py'), ROOT/'nbs'/'runs'/'live.ipynb'
ALLOWED = ('ERR_NAME_NOT_RESOLVED', 'ERR_INTERNET_DISCONNECTED', 'ERR_CONNECTION', 'font-awesome')   # Voila's template asks the network for a font of its toolbar


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('engine')


@pytest.fixture(scope='module')
def engine(folder):
    "A process that speaks as an engine would, four virtual seconds a second; `engine()` starts it again."
    running = []
    def start(at='11:20'):
        for p in running: p.kill(), p.wait()
        p = subprocess.Popen([sys.executable, str(SPEAKER), str(folder), at, '4', '5'], stdout=subprocess.PIPE, text=True)
        running[:] = [p]
        assert p.stdout.readline().strip() == 'speaking'
        return p
    start()
    start.running = running
    yield start
    for p in running: p.kill(), p.wait()


def free():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def served(folder, tmp_path_factory):
    "`served(kind)`: the address of a page, started as the command does it, with settings of its own."
    made = []
    def start(kind, seconds=0, cull=None):
        tmp, port = tmp_path_factory.mktemp(kind), free()
        env = page_env(dict(os.environ), folder, seconds, 'en') | {f'JUPYTER_{k}_DIR': str(tmp/k) for k in ('CONFIG', 'DATA', 'RUNTIME')} | {f'JUPYTERLAB_{k}_DIR': str(tmp/k) for k in ('SETTINGS', 'WORKSPACES')}
        notes = tmp/'SETTINGS'/'@jupyterlab'/'apputils-extension'
        notes.mkdir(parents=True)
        (notes/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
        top = tmp/'top'
        (top/'nbs'/'runs').mkdir(parents=True)
        shutil.copy(SCREEN, top/'nbs'/'runs')
        cmd = page_command(kind, top, port, token=False, browser=False) + (['--LabApp.expose_app_in_browser=True'] if kind == 'lab' else [])
        if cull: cmd = [o.replace('timeout=60', f'timeout={cull}').replace('interval=15', 'interval=1') for o in cmd]   # the same rule, sooner
        log = open(tmp/'log.txt', 'w')
        p = subprocess.Popen(cmd, env=env, stdout=log, stderr=log, start_new_session=True)
        made.append(p)
        end = time.monotonic() + 40
        while True:
            try:
                socket.create_connection(('127.0.0.1', port), 1).close()
                return f'http://127.0.0.1:{port}/', p
            except OSError:
                assert p.poll() is None and time.monotonic() < end, (tmp/'log.txt').read_text()
                time.sleep(.1)
    yield start
    for p in made:
        if p.poll() is None: os.killpg(p.pid, signal.SIGTERM)
        try: p.wait(10)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)


@pytest.fixture(scope='module')
def web(served):
    "One page server for what a page lives through."
    return served('web', cull=12)


# A page that can be hidden (a browser run by a program never is) and whose time can be moved on: animation frames wait while it is hidden, as in a background tab
HANDS = '''(() => { let away = false, skipped = 0; const raf = window.requestAnimationFrame.bind(window), now = performance.now.bind(performance), held = [];
  Object.defineProperty(document, 'hidden', { get: () => away }); performance.now = () => now() + skipped;
  window.requestAnimationFrame = (f) => away ? held.push(f) : raf(f);
  window.skip = (s) => { skipped += 1000 * s; };
  window.hide = (on) => { away = on; document.dispatchEvent(new Event('visibilitychange')); if (!on) for (const f of held.splice(0)) raf(f); return document.querySelector('.sv').classList.contains('isfrozen'); }; })()'''
WAITING = "[...document.querySelectorAll('.sv .bqplot *')].reduce((n, o) => n + Object.keys(o.__transition || {}).length, 0)"   # transitions of d3 that have not begun
# every text against what lies behind it: those with less contrast than WCAG asks of small text
CONTRAST = '''() => { const ctx = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (c) => { ctx.clearRect(0, 0, 1, 1); ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); const d = ctx.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const lum = (c) => [0.2126, 0.7152, 0.0722].reduce((s, k, i) => s + k * ((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)(c[i] / 255), 0);
  const behind = (e) => { const all = []; for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 0) all.push(c); if (c[3] === 1) break; } return all.reverse().reduce((b, c) => [0, 1, 2].map((i) => c[i] * c[3] + b[i] * (1 - c[3])), [255, 255, 255]); };
  const faint = [];
  for (const e of document.querySelectorAll('.sv header *, .sv .box *, .sv .bar *, .sv .banner, .sv .tag')) {
    if (![...e.childNodes].some((o) => o.nodeType === 3 && o.textContent.trim()) || !e.getClientRects().length || e.closest('.old, .stylebox')) continue;
    const a = lum(rgba(getComputedStyle(e).color)), b = lum(behind(e)), c = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (c < 4.5) faint.push([c.toFixed(2), e.className, e.textContent.slice(0, 40)]); }
  return faint; }'''
CUT = "[...document.querySelectorAll('.sv .box, .sv .top, .sv .chart, .sv .pill, .sv .bar button')].filter(o => o.getClientRects().length && (o.getBoundingClientRect().right > innerWidth + 1 || o.scrollWidth > o.clientWidth + 2)).map(o => o.className)"
ORDER = "['.top', '.chart', '.tickets', '.hzbox', '.depthbox', '.foot'].map(s => document.querySelector('.sv ' + s).getBoundingClientRect().top)"


SEEN = '''() => { const t = (s) => (document.querySelector(s) || {}).textContent || '', d = (s) => [...document.querySelectorAll(s)].map((o) => o.getAttribute('d') || o.getAttribute('transform') || '').join('|');
  return { price: t('.sv .px'), ladder: t('.sv .depth'), live: d('.sv .chart .bqplot g.stick:nth-last-of-type(-n+2), .sv .chart .bqplot g.stick path'), fan: d('.sv .chart .bqplot path.area, .sv .chart .bqplot .curve path'),
    sticks: document.querySelectorAll('.sv .chart .bqplot g.stick').length, nodes: document.querySelectorAll('.sv *').length, heap: performance.memory ? performance.memory.usedJSHeapSize : 0, tags: document.querySelectorAll('.sv .tag').length,
    frames: +((t('.sv .foot').match(/frames (\\d+)/) || [0, 0])[1]), pixels: +((t('.sv .pills').match(/pixels (\\d+) ms/) || [0, -1])[1]) }; }'''


class Watcher:
    "A page, what it said on its console, and where its pictures go."
    def __init__(self, browser, url, out, size=(1600, 1000), script=''):
        self.page, self.said, self.out = browser.new_page(viewport=dict(width=size[0], height=size[1])), [], out
        if script: self.page.add_init_script(script)
        self.page.on('console', lambda m: self.said.append(m.text) if m.type == 'error' else None)
        self.page.on('pageerror', lambda e: self.said.append(f'page error: {e}'))
        self.page.goto(url, timeout=90000)
    errors = property(lambda self: [o for o in self.said if not any(a in o for a in ALLOWED)])
    def look(self): return self.page.evaluate(SEEN)
    def shot(self, name): self.page.screenshot(path=self.out/f'{name}.png')
    def until(self, js, s=30): self.page.wait_for_function(js, timeout=1000*s)
    def lives(self, s=90): self.until("document.querySelectorAll('.sv .tag').length > 2 && document.querySelectorAll('.sv .chart .bqplot g.stick').length > 100 && !document.querySelector('.sv .banner') && !document.querySelector('.sv.isfrozen')", s)
    def built(self):
        "Wait until the page is whole, so that what grows after it is growth."
        for _ in range(20):
            before = self.look()['nodes']
            self.page.wait_for_timeout(1000)
            if self.look()['nodes'] < 1.02*before: return


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Where the screenshots are kept: SPY_SCREENSHOTS, or a folder of this run."
    out = Path(os.environ.get('SPY_SCREENSHOTS') or tmp_path_factory.mktemp('screenshots'))
    out.mkdir(parents=True, exist_ok=True)
    return out


def check_lives(w, changes=('price', 'live', 'ladder')):
    "What should change does, nothing grows, nobody complains."
    w.until("document.querySelectorAll('.sv .tag').length > 2 && document.querySelectorAll('.sv .chart .bqplot g.stick').length > 100")
    w.built()
    first = w.look()
    for k in changes: w.page.wait_for_function(f"(old) => ({SEEN})()['{k}'] !== old", arg=first[k], timeout=30000)
    w.page.wait_for_function(f"(old) => ({SEEN})().frames >= old + 25", arg=first['frames'], timeout=30000)
    last = w.look()
    assert last['nodes'] < 1.1*first['nodes'] + 60 and 0 <= last['pixels'] < 2000
    assert w.errors == []
    return first, last


def kernels(server):
    "The kernels of a page server that live."
    def is_kernel(o):
        try: return 'ipykernel' in ' '.join(o.cmdline())
        except psutil.NoSuchProcess: return False   # it has ended since it was listed
    return [o for o in psutil.Process(server.pid).children(recursive=True) if is_kernel(o)]


def test_a_page_that_was_hidden_stopped_or_left_without_its_kernel(browser, engine, web, pictures):
    url, server = web
    w = Watcher(browser, url, pictures, script=HANDS)
    w.lives()
    # in the background: nothing is sent, nothing piles up, and on the way back nothing old is shown as current
    w.page.evaluate('void hide(true)')
    w.page.wait_for_timeout(800)
    price, waiting = w.look()['price'], w.page.evaluate(WAITING)
    w.page.wait_for_timeout(2000)   # eight seconds of market
    assert w.look()['price'] == price and w.page.evaluate(WAITING) <= waiting < 500
    w.page.evaluate('skip(7)')
    assert w.page.evaluate('hide(false)'), 'grey from the first moment, before anything new has come'
    w.page.wait_for_function(f"(old) => ({SEEN})().price !== old && !document.querySelector('.sv.isfrozen')", arg=price, timeout=20000)
    assert w.page.evaluate(WAITING) <= waiting + 60
    # a kernel that stands still for a while: the page says so, and goes on by itself
    kernel, = kernels(server)
    kernel.suspend()
    w.page.evaluate('skip(7)')
    w.until("/no longer hears its kernel/.test(document.querySelector('.sv.isfrozen .frozen')?.textContent || '')", 20)
    kernel.resume()
    w.lives(30)
    # a kernel that is gone: the page opens itself again
    w.page.evaluate("window.before = true")
    kernel.kill()
    w.page.wait_for_timeout(300)
    w.page.evaluate('skip(20)')
    w.until("window.before === undefined", 40)
    w.lives()
    assert w.page.evaluate('document.querySelector(".sv").lang') == 'en' and not [o for o in w.said if o.startswith('page error') and 'Cannot send' not in o]   # the page's own widgets speak to a dead kernel
    w.page.close()


def test_the_page_lives_goes_stale_and_comes_back(browser, engine, web, pictures):
    url, server = web
    w = Watcher(browser, url, pictures)
    first, _ = check_lives(w)
    end = time.monotonic() + 40   # a page that was closed gives its kernel back
    while len(kernels(server)) > 1 and time.monotonic() < end: w.page.wait_for_timeout(500)
    assert len(kernels(server)) == 1
    assert w.page.evaluate(CONTRAST) == []
    w.shot('web-dark')
    assert 'SIMULATED' in w.page.inner_text('.sv .watermark') and w.page.query_selector('.sv .banner') is None
    # the forecast changes with the minute, which comes within a quarter of a minute
    w.page.wait_for_function(f"(old) => ({SEEN})().fan !== old", arg=first['fan'], timeout=45000)
    w.page.focus('.sv')
    assert w.page.query_selector('.sv .touchbox.shut')
    w.page.keyboard.press('t')
    w.until("document.querySelectorAll('.sv .touchbox:not(.shut) td').length >= 6", 10)
    for key, name in (('l', 'web-light'), ('3', 'web-day')):
        w.page.keyboard.press(key)
        w.page.wait_for_timeout(700)
        w.shot(name)
    assert w.page.query_selector('.sv.light')
    assert w.page.evaluate(CONTRAST) == []
    w.page.keyboard.press('l')
    w.page.set_viewport_size(dict(width=420, height=900))
    w.page.wait_for_timeout(700)
    w.shot('web-narrow')
    assert w.page.evaluate("document.querySelector('.sv').scrollWidth <= document.querySelector('.sv').clientWidth + 1")
    assert w.page.evaluate(CUT) == [] and (order := w.page.evaluate(ORDER)) == sorted(order)
    w.page.keyboard.press('t')
    w.page.set_viewport_size(dict(width=1366, height=768))
    engine.running[0].kill()
    w.until("/NOT CURRENT/.test((document.querySelector('.sv .banner') || {}).textContent || '') && document.querySelector('.sv .px.old')", 20)
    w.until("/No price is known/.test(document.querySelector('.sv .side').textContent)", 20)   # the cards come with the next frame
    assert 'last known' in w.page.inner_text('.sv .pxbox').lower() and 'No price is known' in w.page.inner_text('.sv .side')
    w.shot('web-stale')
    engine('11:25')
    w.until("!document.querySelector('.sv .banner') && !document.querySelector('.sv .px.old')", 20)
    os.killpg(server.pid, signal.SIGKILL)
    w.until("document.querySelector('.sv.isfrozen .frozen')?.textContent.length > 10", 20)
    w.shot('web-frozen')
    w.page.close()


def test_the_notebook_in_jupyterlab(browser, engine, served, pictures):
    url, _ = served('lab')
    w = Watcher(browser, url + 'lab/tree/nbs/runs/live.ipynb', pictures)
    w.until("window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell')", 40)
    w.until("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", 30)   # earlier it would ask which kernel
    w.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    check_lives(w)
    w.shot('lab')
    w.page.close()


def test_the_widgets_are_made_once(tmp_path):
    "Many frames of a changing market: no new widget, and every mark keeps points that bqplot can draw."
    import ipywidgets as widgets
    import numpy as np
    from speaking import told
    from spyresearch.core import FixedClock
    from spyresearch.live import view as v
    from spyresearch.live.dash import Dash
    from spyresearch.live.stream import plain
    day, s = told(), v.State()
    fold = lambda kind, body, at: s.fold(dict(v=1, kind=kind, seq=1, known_at=plain(at), provenance=day.provenance, run='r', body=plain(body)))
    dash = Dash(clock=FixedClock(day.session.open))
    n = len(widgets.widget._instances)
    for i in range(0, 130, 3):
        for m in day.at_minute(i) + day.at(60*(i + 1) + 20.): fold(*m)
        now = v.market_now(s, None)
        dash.show(s, now, v.freshness(s, now))
        for mark in (dash.m.past, dash.m.live, dash.m.volume):
            assert len(mark.x) >= 2 and (np.diff(mark.x) > 0).all()
        y = np.asarray(dash.m.live.y)
        assert (y[:, 1] >= y[:, [0, 3]].max(1)).all() and (y[:, 2] <= y[:, [0, 3]].min(1)).all()
    assert len(widgets.widget._instances) == n and dash.aid.seq == 44
    for m in (dict(t='key', key='+'), dict(t='key', key='ArrowLeft'), dict(t='zoom', factor=.5, at=100.), dict(t='pan', bars=-20.), dict(t='key', key='1'), dict(t='key', key='l'), dict(t='key', key='nonsense')): dash.act(m)
    assert dash.window == '1h' and dash.span is None and dash.light


def test_the_notebook_without_anybody(tmp_path, engine, folder):
    "As a batch run: against an engine, and without one, which it says."
    import papermill
    done = {}
    for name, data in (('with', folder), ('without', tmp_path)):
        papermill.execute_notebook(str(SCREEN), str(tmp_path/f'{name}.ipynb'), dict(data=str(data), seconds=1, require_client=False, lang='en'), progress_bar=False, store_widget_state=False)
        done[name] = json.dumps([c.get('outputs') for c in json.loads((tmp_path/f'{name}.ipynb').read_text())['cells']])
    assert 'no engine speaks in' in done['without'] and 'no engine speaks in' not in done['with']


def test_a_page_beyond_this_machine_needs_a_token():
    from spyresearch.core import UsageError
    with pytest.raises(UsageError, match='without a token'): page_command('web', ROOT, host='192.168.0.2', token=False)
    assert '--token' in page_command('web', ROOT, host='192.168.0.2')
