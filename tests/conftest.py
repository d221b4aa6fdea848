"""What the tests share: where the real records are, and a line at the end that says what was not checked."""
import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).parents[2]/'shared'/'data'
required = set(filter(None, os.environ.get('SPY_REQUIRE', '').split(',')))
LACK = dict(shared='the real price records', browser='a Chromium browser', deep='the section deep of requirements.lock')

if required: settings.register_profile('checks', derandomize=True); settings.load_profile('checks') # what lands must not hang on a draw; elsewhere each run draws anew
LONG = ('planted_edge', 'parallel', 'runner', 'screen', 'engine', 'learn', 'week', 'networks', 'research_books', 'lab') # modules of a minute and more
PLACE = {f'test_{name}.py': i for i, name in enumerate(LONG)}

for name, usual in dict(SIGHUP=signal.SIG_DFL, SIGINT=signal.default_int_handler).items(): # under nohup and in the background these are ignored, which programs rightly keep
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN: signal.signal(getattr(signal, name), usual)

def need(kind, what):
    "Fail when this run was told to require `kind`, else skip."
    if kind in required: pytest.fail(f'{what} is missing, and SPY_REQUIRE asks for {kind}')
    pytest.skip(f'needs {LACK[kind]}: {what} is not here')

@pytest.fixture(scope='session')
def shared():
    "`shared(name)`: the path of a real record, or a skip."
    def path(name):
        p = SHARED/name
        return p if p.exists() else need('shared', f'the real record {name}')
    return path

@pytest.fixture(scope='module')
def browser():
    "A headless Chromium that the machine has. Its loop runs in this thread, so it must be gone before another module begins."
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    if path is None or importlib.util.find_spec('playwright') is None: need('browser', 'a Chromium browser with playwright')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-dev-shm-usage', '--enable-precise-memory-info', '--js-flags=--expose-gc'])
        yield b
        b.close()

@pytest.fixture(scope='module', autouse=True)
def features_stand():
    "The list of features is one for the whole process: a module that leaves it otherwise than it found it would fail another one later."
    from spyresearch.features.batch import REGISTRY # declares them all
    before = REGISTRY.hash()
    yield
    assert REGISTRY.hash() == before, 'the list of features was left otherwise than it was found'

def pytest_collection_modifyitems(items):
    "The longest modules first: of two processes none is left with one of them at the end."
    items.sort(key=lambda o: PLACE.get(o.path.name, len(PLACE)))

def pytest_terminal_summary(terminalreporter):
    skipped = [str(o.longrepr) for o in terminalreporter.stats.get('skipped', [])]
    for what in LACK.values():
        if n := sum(f'needs {what}' in o for o in skipped): terminalreporter.write_line(f'NOT CHECKED: {n} tests need {what}, which this machine lacks.')
