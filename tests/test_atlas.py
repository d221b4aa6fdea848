"""The page of all features and the site around it: all of it there, drawn from the files alone, and asking nobody."""
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import need
from spyresearch import cli, docs
from spyresearch.atlas import MARKS, _short, bins, day_plot, feature_page, look, market_inputs, reaches, stretches, ticks
from spyresearch.core import DataError, UsageError, quiet
from spyresearch.docs import write_docs
from spyresearch.features.batch import compute
from spyresearch.features.flow import FLOW
from spyresearch.features.prepare import dividends_of
from spyresearch.features.registry import REGISTRY, Registry, feature
from spyresearch.runs import gather
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.source import Source

ROOT = Path(__file__).parents[1]
OWN = [f for f in REGISTRY if f.group != 'base']


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "45 sessions of the demo, prepared."
    return gather(Source(sessions=50), tmp_path_factory.mktemp('demo'), days=45, progress=lambda label: quiet).store


@pytest.fixture(scope='module')
def page(store): return feature_page(store)


def articles(page): return {m[1]: m[0] for m in re.finditer(r'<article id="f-(\w+)".*?</article>', page, re.S)}
def lines(article): return re.findall(r'class="d" d="([^"]+)"', article)


def test_every_declaration_is_there_and_nothing_else(page):
    assert list(sorted(articles(page))) == sorted(f.name for f in OWN)
    for f in REGISTRY: assert page.count(f' id="{"i" if f.group == "base" else "f"}-{f.name}"') == 1
    for f in FLOW: assert not f.kept or f.name in page
    ids = set(re.findall(r' id="([\w-]+)"', page))
    assert set(re.findall(r'href="#([\w-]+)"', page)) <= ids
    for g in range(1, 11): assert f'<b>G{g} ' in page


def test_an_entry_tells_what_is_declared(page):
    a = articles(page)['logrv_d22']
    for o in ('22 sessions', 'session open', 'within 1e-9', 'Corsi 2009', 'ln variance a day', 'href="#i-rv_past"', '<code>close</code>', 'Cluster', 'day file'): assert o in a
    assert 'equal to the last bit' in articles(page)['dow'] and 'the calendar alone' in articles(page)['dow']


def test_pictures_are_of_their_own_feature(page, store):
    s, drawn = look(store), articles(page)
    moving = [f.name for f in OWN if f.name in s.shown and s.shown[f.name].nunique() > 2]
    plots = {re.sub(' aria-label="[^"]*"', '', re.search('<svg.*?</svg>', drawn[o])[0]) for o in moving} # r_day, high_20 and low_20 differ in scale only
    assert len(plots) == len(moving) > 20
    for name in moving[::7]:
        n = sum(p.count(' ') for p in lines(drawn[name]))
        assert n == s.shown[name].notna().sum(), name


def test_the_numbers_are_those_of_the_files(page, store):
    x = store.read_daily()['rsi_14']
    low, mid, high = (f'{v:.3g}' for v in x.quantile([.05, .5, .95]))
    assert f'5 % {low}, median {mid}, 95 % {high}; empty {100*x.isna().mean():.3g} %' in articles(page)['rsi_14']


def test_what_is_off_is_drawn_from_the_bars_and_says_why_it_is_off(page, store):
    off = [f for f in OWN if not f.kept]
    x, drawn = compute(store.raw_frame(), [f.name for f in off], dividends_of(store)), articles(page)
    for f in off:
        a, v = drawn[f.name], x[f.name].dropna()
        assert '>off<' in a and 'in no file' in a and (not f.why or f.why.replace('>', '&gt;') in a) and a.count('<svg') == (2 if len(v) else 0), f.name
        if len(v): assert '5 % {}, median {}, 95 % {}; empty'.format(*(_short(q) for q in v.quantile(MARKS))) in a, f.name
        else: assert re.search(dict(G10=r'No open data: it needs other\.\w+\.<', G9=r'Not recorded in these data: it needs option\.\w+\.<')[f.group], a), f.name
    assert len(off) > 20 and 'href="#f-rsi_14"' in drawn['r10'].split('Cluster')[1] # the duplicate that it is said to be


def test_axes_say_what_is_counted(page):
    drawn = articles(page)
    for f in OWN:
        if n := drawn[f.name].count('<svg'):
            said = re.findall(r'<text class="u"[^>]*>([^<]+)<', drawn[f.name])
            assert said == [f.unit or 'pure number', 'New York time', 'share of the minutes', f.unit or 'pure number'][-2*n:], f.name # one picture: of all days


def test_how_far_back_a_feature_looks_is_what_it_does(page, store):
    "A window of one bar, built on what the session has been so far, is not one bar."
    looks = {o: re.search(r'<dt>looks at</dt><dd>([^<]+)', a)[1] for o, a in articles(page).items()}
    for o in ('logrv_today', 'vwap_dist', 'open_move', 'hl_pos', 'or_pos'): assert looks[o] == 'the session so far'
    assert looks['r1'] == '1 min' and looks['pday_pos'] == '1 session before, and this one' and looks['to_close'] == 'the calendar' and looks['ofi_300'] == '300 s' and looks['logrv_d22'] == '22 sessions'
    day = look(store).shown; bars = day[['open', 'high', 'low', 'close', 'volume']].dropna()
    r = Registry()
    feature('now', lambda g: g.close/g.open, r, group='X', formula='C/O', inputs=('open', 'close'))
    feature('top', lambda g: np.fmax.accumulate(g.high, 1)/g.close, r, group='X', formula='H/C', inputs=('high', 'close'))
    feature('shares', lambda g: np.nancumsum(g.volume, 1), r, group='X', formula='V', inputs=('volume',), warmup=1)
    assert reaches(bars, r) == {'top', 'shares'} and reaches(bars[:1], r) == set()


def test_reasons_and_clusters_say_which_data_they_rest_on(page, store):
    s, drawn, off = look(store), articles(page), [f for f in OWN if f.why.startswith('duplicate of')]
    for a in drawn.values(): assert 'in the data shown' in a or 'No open data' in a or 'Not recorded' in a
    for f in off:
        assert f'{s.alike.loc[f.name, f.why.split()[2]]:.2f}</span> alike in the data shown' in drawn[f.name] and 'on the sessions from 2024' in drawn[f.name]
    tail = page.split('<h2>Clusters</h2>')[1]
    for c, rho in s.rho.items():
        pairs = rho.to_numpy()[np.triu_indices(len(rho), 1)]
        assert re.search(rf'scope="row">{c}</th>.*?<td>{pairs.mean():.2f}</td><td>{pairs.min():.2f}</td></tr>', tail)
    assert 'a pair within a cluster may be less alike' in page


def test_members_of_a_cluster_name_each_other(page, store):
    s = look(store)
    for c, rho in s.rho.items():
        for name in rho:
            said = articles(page)[name].split(f'Cluster {c}')[1]
            for other in rho.columns.drop(name): assert f'#f-{other}' in said and f'{rho.loc[name, other]:.2f}' in said


def test_the_page_stands_alone_and_says_what_it_shows(page, store):
    assert len(page.encode()) < 1_000_000
    assert not re.search(r'<link|<iframe|<img|@import|url\(|(src|href)="(?!#)|https?:', page)
    script, = re.findall(r'<script>(.*?)</script>', page, re.S)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page
    assert page.count('SIMULATED') and 'made-up market' in page and REGISTRY.hash() in page and 'simulated:demo' in page
    assert f'<dd>{len(store.daily_days())}</dd>' in page and str(store.daily_days()[0]) in page and f'{store.daily_days()[-1]:%d %b %Y}' in page
    assert '>nan' not in page.lower() and 'None<' not in page


def test_gaps_are_gaps():
    x = np.arange(390.); x[100:110] = x[200] = x[202] = np.nan
    drawn = day_plot(x, 'x')
    assert lines(drawn)[0].count('M') == 4 and drawn.count('class="e"') == 3
    assert lines(drawn)[0].count('h.01') == 1 and 'nan' not in drawn


def test_a_half_day_is_as_long_as_it_was(store):
    half = next(d for d in store.daily_days() if session(d).n_minutes < 390)
    text = feature_page(store, half)
    assert f'{half:%a %d %b %Y}' in text and 'of 210 minutes empty' in text and '>13:00<' in text and '>14:00<' not in text


def test_what_the_files_lack_is_said_and_not_drawn(store):
    r = Registry()
    feature('dow', lambda g: g.weekday, r, group='G5', formula='day of the week', known_at='schedule')
    feature('new_one', lambda g: g.close, r, group='G1', formula='<b>C</b> & co', inputs=('close',))
    feature('left_out', lambda g: g.close, r, group='G1', formula='C', inputs=('close',), kept=False)
    got = articles(text := feature_page(store, registry=r))
    assert 'these day files have no such column' in got['new_one'] and 'svg' not in got['new_one']
    assert '&lt;b&gt;C&lt;/b&gt; &amp; co' in got['new_one']
    assert '>off<' in got['left_out'] and 'in no file' in got['left_out'] and got['left_out'].count('<svg') == 2 # from the bars
    assert got['dow'].count('<svg') == 2 and 'run spy prepare' in text # the files are of another registry
    assert feature_page(store, registry=Registry()).count('<article') == 0


def test_no_files_and_no_such_day_are_refused(store, tmp_path):
    with pytest.raises(DataError, match='no day files') as e: feature_page(Store(tmp_path))
    assert 'spy prepare' in e.value.todo
    with pytest.raises(DataError, match='no day file of 1999-01-04') as e: feature_page(store, date(1999, 1, 4))
    assert str(store.daily_days()[0]) in e.value.why


def test_a_file_that_was_changed_does_not_count(store, tmp_path):
    shutil.copytree(store.root, tmp_path/'copy')
    last = store.daily_days()[-1]; p = tmp_path/'copy'/'daily_data'/f'{last}.csv'
    p.write_text(p.read_text()[:-40])
    assert look(Store(tmp_path/'copy')).day == store.daily_days()[-2]
    with pytest.raises(DataError, match=f'no day file of {last}'): look(Store(tmp_path/'copy'), last)


@given(st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 3)), min_size=1, max_size=60))
def test_every_value_is_in_one_bar(xs):
    left, right, count, _ = bins(np.array(xs))
    assert count.sum() == len(xs) and (right > left).all() and (left[1:] >= right[:-1]).all()


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8))
def test_ticks_are_few_and_within(lo, width, n):
    if width < 1e-6*abs(lo): return # finer than floats can tell apart to the tolerance below
    t = ticks(lo, lo + width, n)
    assert 1 <= len(t) <= n + 1 and t[0] >= lo - 1e-6*width and t[-1] <= lo + width*(1 + 1e-6)


@given(st.lists(st.booleans(), max_size=50))
def test_stretches_cover_what_is_true(ok):
    out = np.zeros(len(ok), bool)
    for i, j in stretches(ok): out[i:j] = True
    assert out.tolist() == ok


def test_inputs_go_down_to_the_market():
    for f in REGISTRY: assert not set(market_inputs(f.name)) & set(REGISTRY.features)


def test_a_site_replaces_nothing_that_is_not_its_own(store, tmp_path):
    site = tmp_path/'site'; site.mkdir(); (site/'index.html').write_text('<html><body>My garden</body></html>'); (site/'notes.txt').write_text('mine')
    with pytest.raises(UsageError, match='index.html was not made by spy docs') as e: write_docs(site, store)
    assert '--out' in e.value.todo and sorted(p.name for p in site.iterdir()) == ['index.html', 'notes.txt'] and 'garden' in (site/'index.html').read_text()
    (site/'index.html').unlink(); (site/'modules').mkdir(); (site/'modules'/'ground-core.html').write_bytes(b'\xff\xfe')
    with pytest.raises(UsageError, match='ground-core.html was not made'): write_docs(site, store)
    with pytest.raises(UsageError, match='is not a folder'): write_docs(site/'notes.txt', store)


def test_the_filter_finds_and_forgets(page, tmp_path):
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    try: from playwright.sync_api import sync_playwright
    except ImportError: path = None
    if path is None: need('browser', 'a Chromium browser with playwright')
    (tmp_path/'features.html').write_text(page, encoding='utf-8')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking'])
        tab = b.new_page(viewport=dict(width=390, height=844)); errors = []
        tab.on('console', lambda m: errors.append(m.text))
        tab.goto((tmp_path/'features.html').as_uri())
        seen = lambda: tab.evaluate('[...document.querySelectorAll("article")].filter(a => a.offsetHeight).map(a => a.id)')
        assert len(seen()) == len(OWN) and tab.evaluate('document.documentElement.scrollWidth') <= 390
        tab.fill('#find', 'corsi logrv')
        assert seen() and all('logrv' in o for o in seen()) and tab.evaluate('document.getElementById("G5").offsetHeight') == 0
        tab.fill('#find', '')
        assert len(seen()) == len(OWN) and not errors
        b.close()


def test_spy_docs_makes_the_site_and_leaves_no_data(tmp_path, store, monkeypatch, capsys):
    spy = [sys.executable, '-m', 'spyresearch.cli', 'docs']
    run = lambda *a: subprocess.run([*spy, *map(str, a)], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    for args, code, said in ((['--day', 'tomorrow'], 2, 'is not a date'), (['--data', ''], 2, 'without a name'), (['--data', tmp_path/'none'], 3, 'no day files')):
        done = run(*args)
        assert done.returncode == code and said in done.stderr and 'Traceback' not in done.stderr and not any(tmp_path.iterdir())
    done = run('--sessions', 30, '--days', 26)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith('reports/docs/index.html') and 'docs:' in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['reports'] and 'SIMULATED' in (tmp_path/'reports/docs/features.html').read_text(encoding='utf-8')
    (tmp_path/'site').mkdir(); (tmp_path/'site/index.html').write_text('mine')
    done = run('--out', 'site')
    assert done.returncode == 2 and 'was not made by spy docs' in done.stderr and 'history' not in done.stderr and os.listdir(tmp_path/'site') == ['index.html']
    (tmp_path/'site/index.html').unlink(); shutil.copytree(store.root, tmp_path/'data/replay/demo') # what spy history and spy prepare leave
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(docs, 'module_page', lambda *a: docs.sheet('a module')) # the other pages were made above
    assert cli.outcome(lambda: cli.app(['docs', '--out', 'site'], standalone_mode=False)) == 0
    said = capsys.readouterr()
    assert 'the features of data/replay/demo' in said.out and 'history' not in said.err, said.err
    assert f'<dd>{len(store.daily_days())}</dd>' in (tmp_path/'site/features.html').read_text(encoding='utf-8') # all of them
