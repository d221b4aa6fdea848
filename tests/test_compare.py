"""Two real runs side by side through the command: the page, its exit statuses, and runs that cannot be compared."""
import io
import json
import re
import shutil
from types import SimpleNamespace

import pytest

from spyresearch import cli, compare
from spyresearch.catalog import read
from spyresearch.runs import execute


@pytest.fixture
def spy(capsys):
    "`spy(*args)`: exit status, standard output and standard error of a command, in this process."
    def call(*args):
        capsys.readouterr()
        code = cli.outcome(lambda: cli.app(list(map(str, args)), prog_name='spy', standalone_mode=False))
        return SimpleNamespace(returncode=code, **dict(zip(('stdout', 'stderr'), capsys.readouterr())))
    return call


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    "A real evaluation, the same again under another name and code, one on a tape, and one that failed."
    top = tmp_path_factory.mktemp('place')/'reports'
    first = execute('evaluate', dict(members='const,har', days='85', seed=7), top, io.StringIO()).folder
    def copy(to, change):
        shutil.copytree(first, top/to)
        m = json.loads((first/'manifest.json').read_text())
        change(m)
        (top/to/'manifest.json').write_text(json.dumps(m))
        return to
    copy('evaluate/2026-03-31-aaaaaa', lambda m: m.update(git='1'*12))
    copy('replay/es/evaluate/2026-03-31-bbbbbb', lambda m: m.update(provenance='replay:es'))
    copy('evaluate/2026-03-30-cccccc.failed', lambda m: m.update(status='failed', error=dict(kind='FeedError', where='evaluate.ipynb, Data', message='no TWS\nrefused')))
    copy('evaluate/2026-03-29-dddddd', lambda m: m.pop('run'))
    return top, first


def test_the_same_numbers_under_other_code(reports, spy):
    top, first = reports
    done = spy('compare', first.name[-6:], 'aaaaaa', '--reports', top, '--json', '-')
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body['comparable'] and list(body['changed']) == ['code'] and len(body['numbers']) > 50
    assert all(o['a'] == o['b'] and o['change'] == 'the same' for o in body['numbers'])
    page = next((top/'compare').glob('*.html')).read_text(encoding='utf-8')
    assert 'SIMULATED' in page and 'Same bars and same scored days' in page and f'../evaluate/{first.name}/report.html' in page
    assert not re.search(r'<script|<link|<iframe|<img|@import', page) and str(top) not in page
    assert 'page: ' in done.stderr


def test_every_number_is_one_that_the_run_left(reports):
    top, first = reports
    ev = json.loads((first/'evaluation.json').read_text())
    found = compare.numbers(read(first))
    for h, name in (('5', '5 min'), ('rest_of_day', 'to close'), ('1d', '1 day')):
        o = ev['horizons'][h]
        assert found['Loss, bp', name].value == o['pinball_bp'] and found['80 % band, % inside', name].value == o['coverage']['80']['marginal']
        n, s = found['Skill against constant, %', name], o['skill_ci']['const']
        assert (n.value, n.low, n.high) == (o['skill_pct']['const'], *s)
    assert found['Touch: Brier loss', '30 min'].value == ev['touch']['limits']['30']['brier']['paths']


@pytest.mark.parametrize('a, b, code, said', [
    ('aaaaaa', 'bbbbbb', 3, 'different provenance: simulated:demo and replay:es'), ('aaaaaa', 'aaaaab', 2, 'nearest: evaluate/2026-03-31-aaaaaa'), ('aaaaaa', 'aaaaaa', 2, 'with itself'),
    ('aaaaaa', 'cccccc', 2, 'FeedError in evaluate.ipynb, Data: no TWS'), ('aaaaaa', 'dddddd', 3, 'something else: it has no run'), ('2026-03-31-aaaaaa', '', 2, "no run ''")])
def test_what_cannot_be_compared(reports, spy, a, b, code, said):
    done = spy('compare', a, b, '--reports', reports[0])
    assert done.returncode == code and said in done.stderr and not done.stdout and 'Traceback' not in done.stderr


def test_across_provenance_only_when_told_so_and_stamped(reports, spy, tmp_path):
    top, _ = reports
    out = tmp_path/'two.html'
    done = spy('compare', 'aaaaaa', top/'replay'/'es'/'evaluate'/'2026-03-31-bbbbbb', '--across', '--reports', top, '--out', out)
    page = out.read_text(encoding='utf-8')
    assert done.returncode == 0 and 'NOT COMPARABLE' in done.stdout and page.count('NOT COMPARABLE') == 1 and 'SIMULATED beside REPLAY' in page and 'better' not in page and '>not comparable<' in page
    out.write_text('mine')
    again = spy('compare', 'aaaaaa', 'bbbbbb', '--across', '--reports', top, '--out', out)
    assert again.returncode == 2 and 'not made by spy compare' in again.stderr and out.read_text() == 'mine'


def test_nothing_but_its_page_is_written(reports):
    top, first = reports
    before = {p: p.read_bytes() for p in top.rglob('*') if p.is_file() and p.parent.name != 'compare'}
    compare.write_comparison(read(first), compare.find_run('aaaaaa', top), top/'compare'/'z.html')
    assert before == {p: p.read_bytes() for p in top.rglob('*') if p.is_file() and p.parent.name != 'compare'}


def test_an_empty_folder_of_reports(spy, tmp_path):
    done = spy('compare', 'aaaaaa', 'bbbbbb', '--reports', tmp_path/'none')
    assert done.returncode == 2 and 'holds no run at all' in done.stderr and not (tmp_path/'none').exists()


def test_a_page_fits_a_phone(reports, browser, tmp_path):
    top, first = reports
    out = compare.write_comparison(read(first), compare.find_run('bbbbbb', top), tmp_path/'two.html')
    for scheme in ('light', 'dark'):
        p = browser.new_page(viewport=dict(width=390, height=800), color_scheme=scheme)
        p.goto(f'file://{out}')
        assert p.evaluate('document.documentElement.scrollWidth') <= 390
        assert p.evaluate("[...document.querySelectorAll('main > .pairs .scroll')].every((o) => o.scrollWidth <= o.clientWidth + 1)")
        p.close()
