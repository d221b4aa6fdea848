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
    def start(kind, seconds=0):
        tmp, port = tmp_path_factory.mktemp(kind), free()
        env = page_env(dict(os.environ), folder, seconds, 'en') | {f'JUPYTER_{k}_DIR': str(tmp/k) for k in ('CONFIG', 'DATA', 'RUNTIME')} | {f'JUPYTERLAB_{k}_DIR': str(tmp/k) for k in ('SETTINGS', 'WORKSPACES')}
        notes = tmp/'SETTINGS'/'@jupyterlab'/'apputils-extension'
        notes.mkdir(parents=True)
        (notes/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
        top = tmp/'top'
        (top/'nbs'/'runs').mkdir(parents=True)
        shutil.copy(SCREEN, top/'nbs'/'runs')
        cmd = page_command(kind, top, port, token=False, browser=False) + (['--LabApp.expose_app_in_browser=True'] if kind == 'lab' else [])
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


SEEN = '''() => { const t = (s) => (document.querySelector(s) || {}).textContent || '', d = (s) => [...document.querySelectorAll(s)].map((o) => o.getAttribute('d') || o.getAttribute('transform') || '').join('|');
  return { price: t('.sv .px'), ladder: t('.sv .depth'), live: d('.sv .chart .bqplot g.stick:nth-last-of-type(-n+2), .sv .chart .bqplot g.stick path'), fan: d('.sv .chart .bqplot path.area, .sv .chart .bqplot .curve path'),
    sticks: document.querySelectorAll('.sv .chart .bqplot g.stick').length, nodes: document.querySelectorAll('.sv *').length, heap: performance.memory ? performance.memory.usedJSHeapSize : 0, tags: document.querySelectorAll('.sv .tag').length,
    frames: +((t('.sv .foot').match(/frames (\\d+)/) || [0, 0])[1]), pixels: +((t('.sv .pills').match(/pixels (\\d+) ms/) || [0, -1])[1]) }; }'''


class Watcher:
    "A page, what it said on its console, and where its pictures go."
    def __init__(self, browser, url, out, size=(1600, 1000)):
        self.page, self.said, self.out = browser.new_page(viewport=dict(width=size[0], height=size[1])), [], out
        self.page.on('console', lambda m: self.said.append(m.text) if m.type == 'error' else None)
        self.page.on('pageerror', lambda e: self.said.append(f'page error: {e}'))
        self.page.goto(url)
    errors = property(lambda self: [o for o in self.said if not any(a in o for a in ALLOWED)])
    def look(self): return self.page.evaluate(SEEN)
    def shot(self, name): self.page.screenshot(path=self.out/f'{name}.png')
    def until(self, js, s=30): self.page.wait_for_function(js, timeout=1000*s)
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


def test_the_page_lives_goes_stale_and_comes_back(browser, engine, served, pictures):
    url, server = served('web')
    w = Watcher(browser, url, pictures)
    first, _ = check_lives(w)
    w.shot('web-dark')
    assert 'SIMULATED' in w.page.inner_text('.sv .watermark') and w.page.query_selector('.sv .banner') is None
    # the forecast changes with the minute, which comes within a quarter of a minute
    w.page.wait_for_function(f"(old) => ({SEEN})().fan !== old", arg=first['fan'], timeout=45000)
    w.page.focus('.sv')
    for key, name in (('l', 'web-light'), ('3', 'web-day')):
        w.page.keyboard.press(key)
        w.page.wait_for_timeout(700)
        w.shot(name)
    assert w.page.query_selector('.sv.light')
    w.page.keyboard.press('l')
    w.page.set_viewport_size(dict(width=420, height=900))
    w.page.wait_for_timeout(700)
    w.shot('web-narrow')
    assert w.page.evaluate("document.querySelector('.sv').scrollWidth <= document.querySelector('.sv').clientWidth + 1")
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
