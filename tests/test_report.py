"""The page in a browser, and the run notebooks as the newcomer runs them: on the demo, with their defaults."""
import io
import json
import re
from pathlib import Path

import pytest

from spyresearch.core import file_hash
from spyresearch.runs import execute

ROOT = Path(__file__).parents[1]
RUNS = sorted(p for p in (ROOT/'nbs'/'runs').glob('*.ipynb') if p.stem != 'live')   # a screen, not a report


@pytest.fixture(scope='session', params=RUNS, ids=lambda p: p.stem)
def finished(request, tmp_path_factory):
    "A run notebook, executed on its defaults."
    log = io.StringIO()
    return execute(request.param, {}, tmp_path_factory.mktemp('reports'), log), log.getvalue()


def test_a_run_leaves_one_complete_folder(finished):
    run, log = finished
    names = {p.name for p in run.folder.iterdir()}
    assert {'run.ipynb', 'report.html', 'manifest.json'} <= names and not run.folder.suffix
    m = json.loads((run.folder/'manifest.json').read_text())
    assert m['status'] == 'done' and m['provenance'] == 'simulated:demo' and m['verdict'] and len(m['data_hash']) == 64
    assert {'git', 'parameters', 'versions', 'seed', 'seconds', 'span'} <= m.keys() and m['seconds'] > 0
    assert m['files'] == {n: file_hash(run.folder/n) for n in names - {'manifest.json'}}
    assert log.strip(), 'a run that says nothing looks dead'


def test_the_first_screen_says_what_is_forecast_and_how_old_it_is(finished):
    page, name = finished[0].report.read_text(encoding='utf-8'), finished[0].manifest['run']
    assert re.search(r'Market known up to \w{3} \d\d \w{3} \d{4} \d\d:\d\d \(New York\)', page) and 'LIVE TWS DATA' not in page
    if name in ('backtest', 'evening'): return # these forecast nothing
    first = page[page.index('What is forecast now'):page.index(dict(run='Data health', evaluate='Loss, and skill', train='Fitted on all of them')[name])]
    assert 'SIMULATED: not to be traded' in first and len(re.findall(r'\d+\.\d\d – \d+\.\d\d', first)) == 12
    assert '2025' in first


def test_a_page_names_no_folder_and_no_widget(finished):
    page, params = finished[0].report.read_text(encoding='utf-8'), finished[0].manifest['parameters']
    assert str(finished[0].folder.parent) not in page and 'IProgress' not in page and not re.search(r'features: \d+/', page)
    assert params['data'] == ''


def test_results_are_strict_json(finished):
    for p in finished[0].folder.glob('*.json'):
        def refuse(o, name=p.name): raise AssertionError(f'{name} holds {o}')
        json.loads(p.read_text(), parse_constant=refuse)


def test_a_page_is_self_contained_and_stamped(finished):
    page = finished[0].report.read_text(encoding='utf-8')
    assert len(page.encode()) < 1_500_000
    assert not re.search(r'<script|<link|<iframe|<img|@import|url\((?!#)|(src|href)="(?!#)', page)
    assert page.count('SIMULATED') >= 2 and 'made-up market' in page
    assert '>nan<' not in page.lower() and 'None</t' not in page


@pytest.mark.parametrize('width, dark', [(1280, False), (390, False), (390, True)])
def test_a_page_opens_offline_and_fits(finished, browser, width, dark):
    tab = browser.new_page(viewport=dict(width=width, height=800), color_scheme='dark' if dark else 'light')
    asked, said = [], []
    tab.on('request', lambda r: asked.append(r.url))
    tab.on('console', lambda m: said.append(m.text))
    tab.goto(finished[0].report.as_uri())
    assert asked == [finished[0].report.as_uri()] and not said
    assert tab.evaluate('document.documentElement.scrollWidth') <= width, 'the page scrolls sideways'
    sizes = tab.evaluate('''() => [...document.querySelectorAll('svg.fig text')].filter(t => t.getClientRects().length)
        .map(t => { const m = t.getScreenCTM(); return Math.hypot(m.a, m.b)*parseFloat(getComputedStyle(t).fontSize) })''')
    assert not sizes or min(sizes) >= 8, 'text in a picture is too small to read'
    assert tab.locator('h1').count() == 1 and tab.locator('h1').bounding_box()['y'] < 300
    ink, paper = tab.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light = [sum(map(int, re.findall(r'\d+', c)[:3])) for c in (ink, paper)]
    assert (light[0] > light[1]) == dark
    tab.evaluate('window.scrollTo(0, document.body.scrollHeight/2)')
    assert tab.locator('.strip').bounding_box()['y'] == 0, 'the stamp left the screen'
    tab.close()


def test_a_page_prints(finished, browser):
    tab = browser.new_page()
    tab.goto(finished[0].report.as_uri())
    sheet = tab.pdf(format='A4')
    assert sheet[:4] == b'%PDF' and 3 <= len(re.findall(rb'/Type\s*/Page\b', sheet)) <= 16
    tab.close()


def test_a_page_tells_how_the_models_were_judged(finished):
    "The bar, the members, the weights and who was left out, each once, from the JSON beside the page."
    page, name = finished[0].report.read_text(encoding='utf-8'), finished[0].manifest['run']
    if name in ('backtest', 'train', 'evening'): return
    ev = finished[0].load('evaluation.json')
    assert page.count('1, 2, 3, 5 days ahead: better than EWMA') == page.count('Whose forecast it is') == page.count('Each member against every baseline') == 1
    assert page.count('name="members"') == sum(o['pinball_bp'] is not None for o in ev['horizons'].values())
    for member, why in ev['models']['left_out'].items(): assert f'<b>{member}</b> took no part: {why}. What to do: ' in page
    for h, path in ev['models']['weight_path'].items():
        assert all(abs(sum(w) - 1) < 1e-3 for w in zip(*(v for k, v in path.items() if k != 'dates'))), h


def test_money_is_doubted_unasked(finished):
    "Costs, delay, parts of the time, order and tries stand after what was earned; options say why they were not measured."
    page, name = finished[0].report.read_text(encoding='utf-8'), finished[0].manifest['run']
    if name not in ('run', 'backtest'): assert 'How far to doubt it' not in page; return
    money, place = page[page.index(dict(run='What the rules would have earned', backtest='Equity and drawdown')[name]):], 0
    for o in ('How far to doubt it', 'breaks even at costs', '5 min</th>', 'wild days', 'orders that fall as deep', 'Best of ', 'Options: the best offer', 'No chain was recorded in this folder'): place = money.index(o, place)
    assert page.count('How far to doubt it') == 1


def test_a_table_of_members_is_read_on_a_phone(finished, browser):
    tab = browser.new_page(viewport=dict(width=390, height=800))
    tab.goto(finished[0].report.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(o => o.open = true)")
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390, 'the page scrolls sideways when its folds are open'
    assert tab.locator('details[name=members][open]').count() <= 1
    tab.close()
