"""The site as a reader has it: every link and anchor leads somewhere, every word is explained, every message is one that the code says; on a phone, light and dark."""
import ast
import json
import re
import socket
from collections import Counter
from functools import cache
from html import unescape
from pathlib import Path

import pytest

from spyresearch.core import DataError, FeedError, FolderError, UsageError, parse_asof
from spyresearch import docs
from spyresearch.atlas import sheet
from spyresearch.docs import body, books, module_page, offers, place, questions, _home
from spyresearch.glossary import TERMS, anchor
from spyresearch.symptoms import SYMPTOMS, found, messages, of_symptom

ROOT = Path(__file__).parents[1]
BOOKS = books(ROOT/'nbs')
SOURCES = {('' if f in ('ground', 'top') else f'{f}.') + p.stem.split('_', 1)[1]: '\n'.join(''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells']) for f, ps in BOOKS.items() for p in ps}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, with a blank page for the atlas, which needs data and has tests of its own."
    said, out = [], tmp_path_factory.mktemp('site')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(docs, 'feature_page', lambda store, day: sheet('Features'))
        made = docs.write_docs(out, None, progress=lambda *a: said.append(a))
    n = sum(map(len, BOOKS.values()))
    assert said[-1][:2] == (n, n) and n == sum('default_exp' in p.read_text(encoding='utf-8') for p in (ROOT/'nbs').rglob('[0-9]*.ipynb'))
    assert {str(p.relative_to(out)) for p in made} == set(docs.site_files()) == {p.relative_to(out).as_posix() for p in out.rglob('*.*')} and len(made) == len(set(made))
    docs.check_free(out)    # so it can be made again
    return out


def test_every_link_and_anchor_leads_somewhere(site):
    pages = {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}
    ids, n = {k: set(re.findall(r'\sid="([^"]+)"', t)) for k, t in pages.items()}, 0
    for name, text in pages.items():
        assert str(ROOT) not in text and '<script src' not in text and '<link' not in re.sub(r'<pre.*?</pre>', '', text, flags=re.S), name
        for link in re.findall(r'href="((?!https?://|data:)[^"]+)"', re.sub(r'<pre.*?</pre>|<code.*?</code>', '', text, flags=re.S)):
            file, _, mark = unescape(link).partition('#'); n += 1
            at = name if not file else (site/name).parent.joinpath(file).resolve().relative_to(site.resolve()).as_posix()
            assert at in pages, (name, link)
            assert not mark or mark in ids[at], (name, link)
    assert n > 1000 and 'glossary.html' in pages['modules/ground-core.html']


def test_ids_are_one_a_page(site):
    for p in site.rglob('*.html'):
        twice = [o for o, n in Counter(re.findall(r'<(?:h\d|dt|details|p|section|article|div)[^>]*? id="([^"]+)"', re.sub(r'<svg.*?</svg>|<div class="out">.*?</div>', '', p.read_text(encoding='utf-8'), flags=re.S))).items() if n > 1]
        assert not twice, (p.name, twice[:3])


def test_the_floors_stand_one_above_the_other(site):
    text = (site/'index.html').read_text(encoding='utf-8')
    floors = re.findall(r'href="#floor-(\w+)"', text)
    assert floors == ['top', 'live', 'trade', 'models', 'features', 'tws', 'ground'] and all(f'id="floor-{o}"' in text for o in floors)
    assert all(f'href="research/{p.stem}.html"' in text for p in questions(ROOT/'nbs')['research'])


def test_what_a_module_offers_is_what_it_exports():
    "Names, arguments and their comments are those of the exported file."
    for module in ('core', 'tws.link', 'models.metrics', 'trade.costs'):
        p = next(p for f, ps in BOOKS.items() for p in ps if _home({f: [p]}).get(module)); text = module_page(p)
        tree = ast.parse((ROOT/'spyresearch'/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8'))
        names = [o.name for o in tree.body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not o.name.startswith('_')]
        assert names and all(re.search(rf'id="def-(\w+\.)?{o}"', text) for o in names), module
    one, = offers('def f(\n    a:int, # USD\n    *, b=2, # shares\n    **kw, # more\n) -> str: # a word\n    "Says."\n')
    assert one.parts == (('a', 'int', 'USD'), ('b', '2', 'shares'), ('kw', '', 'more'), ('returns', 'str', 'a word')) and one.says == 'Says.'


def test_headings_that_are_equal_have_places_of_their_own():
    import nbformat
    text = body(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('## A & b\n\n## A & b')]))
    assert re.findall('id="([^"]+)"', text) == ['a--b', 'a--b-1'] and place('`x`, y!') == 'x-y'


# words ------------------------------------------------------------------

def fits(t, text):
    "Does a text use a term?"
    return re.search('|'.join(rf'(?<![A-Za-z]){re.escape(o)}' + (r'(?![A-Za-z])' if o.isupper() else '') for o in (t.name, *t.also)), text, 0 if t.name.isupper() else re.I)


@pytest.mark.parametrize('t', TERMS.values(), ids=lambda t: anchor(t.name))
def test_a_term_is_used_where_it_says(t):
    assert t.says.endswith('.') and t.source and t.used
    for o in t.used: assert o in SOURCES and fits(t, SOURCES[o]), (t.name, o)


# abbreviations that are no words of the field
PLAIN = set('''API CLI CSS CSV CPU DD DNS GPU HTML ID ISO JSON JupyterLab MB MIT MM NaN PATH PNG PYTHON README SVG URL UTC USD YYYY HH CHANGELOG CONTRIBUTING COMMAND NAME FILE FILES DAY OUT DIR PORT HOST ADDRESS TAPE MINUTES UI
SIGHUP SIGTERM SIGINT WSL OMP_NUM_THREADS PASSIVE PYTHONHASHSEED SPY_WEBHOOK TODO TRADES DELAYED PAPER OK WARN FAIL NOT KILLED RUNNING FAILED READABLE DOCS GitHub PyPI macOS DataError UsageError NeuralForecast
YYYY-MM-DD SSRN WHATIF COMPARABLE PDF SSH SSL TCP II III ANSI CI'''.split())


def heard(text): return set(re.findall(r'(?<![\w./#-])(?:[A-Z][A-Z0-9]{1,}|[0-9]DTE|N-[A-Z][A-Za-z]+|[A-Z][a-z]?[A-Z]+[A-Za-z]*)(?![\w/-])', text))


def test_every_abbreviation_that_a_reader_meets_is_explained():
    "README, the prose of what is run, and the headings and labels of reports."
    known = {w for t in TERMS.values() for o in (t.name, t.name.upper(), *t.also) for w in (o, *o.split())}
    prose = re.sub(r'```.*?```|`[^`]*`', '', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    for p in (*questions(ROOT/'nbs')['runs'], *questions(ROOT/'nbs')['research'], ROOT/'nbs/000_tour.ipynb'):
        prose += re.sub(r'`[^`]*`', '', '\n'.join(''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown'))
    for o in ('report', 'verdict', 'evening', 'postmortem', 'health', 'compare', 'skill'):
        for c in ast.walk(ast.parse((ROOT/f'spyresearch/{o}.py').read_text(encoding='utf-8'))):
            if isinstance(c, ast.Constant) and isinstance(c.value, str) and ' ' in c.value and '<' not in c.value and '{' not in c.value: prose += '\n' + c.value
    unknown = {o for o in heard(prose) if o not in known | PLAIN}
    assert not unknown, f'explain them in nbs/50_glossary.ipynb, or list them here as no words of the field: {sorted(unknown)}'


def test_what_the_tour_shows_in_chinese_says_that_it_is_chinese():
    "A screen reader pronounces a page by its language; the source of a cell is code, and no sentence."
    shown = [''.join(d) for c in json.loads((ROOT/'nbs/000_tour.ipynb').read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', ()) for d in [o.get('data', {}).get('text/html') or o.get('data', {}).get('text/plain') or o.get('text', '')]]
    chinese = [o for o in shown if re.search('[\u4e00-\u9fff]', o)]
    assert chinese and not [o for o in chinese if re.search('[\u4e00-\u9fff]', re.sub('<(\\w+) lang="zh">.*?</\\1>', '', o, flags=re.S))]


# messages ------------------------------------------------------------------

def test_every_message_stands_once_and_comes_from_the_code():
    "Letter by letter: what is quoted stands in the file that it is said to come from."
    of = of_symptom(); listed = [m for ms in of.values() for m in ms]
    assert len(listed) == len(set(listed)) == len(messages()) and set(of) == set(SYMPTOMS)
    @cache
    def texts(where):
        path = ROOT/'spy.py' if where == 'spy.py' else ROOT/'spyresearch'/(where.replace('.', '/') + '.py')
        return [c.value for c in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
    for m in listed:
        said = texts(m.where)
        for o in (m.what, m.why, m.todo):
            for piece in re.split('\u27e8.*?\u27e9', o): assert all(any(q in v or v in q for v in said) for q in piece.split(' / ') if q.strip()), (m.where, piece)


def test_every_error_that_is_raised_is_listed():
    "A count by other means: the calls of the classes of the tree, in the text of the modules."
    for module in ('bars', 'tws.link', 'compare', 'models.champions', 'core'):
        text = (ROOT/'spyresearch'/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8')
        n = len(set(re.findall(r'\b(?:UsageError|DataError|FolderError|ModelError|FeedError|CheckFailed|NoData|TimedOut|Dropped|NoOrders|NothingToDo)\((f?[\'"][^,]{12,40})', text)))
        assert n and len([m for m in messages() if m.where == module]) >= n, module


def closed_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]


def test_a_real_message_is_found_in_the_table(tmp_path):
    from spyresearch import catalog
    from spyresearch.bars import read_bars
    from spyresearch.checks import run_checks
    from spyresearch.live.pages import check_port
    from spyresearch.store import Store
    from spyresearch.atlas import look
    from spyresearch.tws.link import announced
    (tmp_path/'index.html').write_text('mine')
    def busy():
        with socket.create_server(('127.0.0.1', 0)) as s: check_port(s.getsockname()[1])
    cases = ((lambda: announced('127.0.0.1', closed_port()), FeedError, 'tws.link', 2), (lambda: read_bars(tmp_path/'no.parquet'), DataError, 'bars', 4), (lambda: parse_asof('soon'), UsageError, 'core', 9), (busy, UsageError, 'live.pages', 8),
             (lambda: catalog.rebuild(tmp_path), FolderError, 'catalog', 5), (lambda: look(Store(tmp_path/'data')), DataError, 'atlas', 8), (lambda: run_checks(['nothing']), UsageError, 'checks', 9))
    for call, kind, where, symptom in cases:
        with pytest.raises(kind) as e: call()
        m = found(str(e.value))[0]
        assert (m.where, m.kind, m.code) == (where, kind.__name__, e.value.exit_code), str(e.value)
        assert m in of_symptom()[SYMPTOMS[symptom]], (where, m.what)
    assert found('something that nobody says') == []


# the look ------------------------------------------------------------------

def test_pages_fit_a_phone_and_can_be_read_by_day_and_night(site, browser):
    for scheme in ('light', 'dark'):
        tab = browser.new_page(viewport=dict(width=380, height=800), color_scheme=scheme)
        for name in ('index.html', 'glossary.html', 'trouble.html', 'modules/tws-link.html', 'modules/models-metrics.html', 'research/useful.html'):
            tab.goto((site/name).as_uri())
            assert tab.evaluate('document.documentElement.scrollWidth') <= 380, (name, scheme)
            ink, paper = tab.evaluate("[getComputedStyle(document.querySelector('h1')).color, getComputedStyle(document.body).backgroundColor].map((o) => o.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))")
            assert abs(ink - paper) > 400, (name, scheme)
        tab.goto((site/'modules/tws-link.html').as_uri() + '#def-Link')
        assert tab.evaluate("document.getElementById('def-Link').tagName") == 'DETAILS'
        tab.click('#def-Link > summary')
        assert 'the first id to try' in tab.inner_text('#def-Link')
        tab.close()
