"""The list of runs: whatever lies in a folder of reports, several runs that end at once, and the page in a browser."""
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyresearch import catalog
from spyresearch.core import FolderError

GOOD = dict(run='evaluate', status='done', started='2026-03-31T20:15:00+00:00', parameters={}, provenance='simulated:demo', verdict='Nothing found. Too few days.', span=['2025-10-24', '2025-12-05'], seconds=14.2)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda o: st.lists(o, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, 'pid', 'error', 'glance', 'what', 'points', 'x']), o, max_size=6), max_leaves=12)


def made(top, name, body, report=True):
    (d := top/name).mkdir(parents=True)
    (d/'manifest.json').write_text(body if isinstance(body, str) else json.dumps(body))
    if report: (d/'report.html').write_text('a report')
    return d


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from([*GOOD, 'pid', 'error', 'glance']), JSON, max_size=4), JSON)
def test_no_manifest_and_no_result_ends_the_list(tmp_path_factory, odd, result):
    top = tmp_path_factory.mktemp('reports')
    folder = made(top, 'evaluate/2026-03-31-0a1b2c', GOOD | odd)
    (folder/'evaluation.json').write_text(json.dumps(dict(horizons=result)))
    made(top, 'evaluate/2026-03-30-0a1b2c', GOOD)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    text = catalog.rebuild(top).read_text(encoding='utf-8')
    assert '2 runs' in text and '2026-03-30-0a1b2c' in text and before == {p: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize('body, why', [('', 'is not JSON'), ('[' * 100000, 'is not JSON'), ('[]', 'is no object'), ('{"schema": 3, "rows": 390}', 'is of something else'), (GOOD | dict(started='2026-03-31'), 'a start without a time zone'),
                                       (GOOD | dict(started='soon'), 'no time'), (GOOD | dict(verdict=3), 'no verdict that can be read'), (GOOD | dict(span=['2026-03-31']), 'a span without two ends')])
def test_a_foreign_manifest_is_listed_with_its_reason(tmp_path, body, why):
    folder = made(tmp_path, 'run/2026-03-31-aaaaaa', body)
    text = catalog.rebuild(tmp_path).read_text(encoding='utf-8')
    assert why in text and 'NOT READABLE' in text and sorted(p.name for p in folder.iterdir()) == ['manifest.json', 'report.html']


def test_what_is_no_text_and_what_is_not_there(tmp_path):
    (made(tmp_path, 'run/2026-03-31-aaaaaa', '')/'manifest.json').write_bytes(b'\xff\xfe\x00')
    (tmp_path/'run'/'2026-03-30-bbbbbb').mkdir()
    (tmp_path/'run'/'2026-03-29-cccccc'/'manifest.json').mkdir(parents=True)
    (tmp_path/'docs'/'modules').mkdir(parents=True)
    (tmp_path/'run'/'notes.txt').write_text('mine')
    found = catalog.entries(tmp_path)
    assert [e.folder.name for e in found] == ['2026-03-31-aaaaaa', '2026-03-30-bbbbbb', '2026-03-29-cccccc'] and all(e.status == 'unreadable' for e in found)
    assert 'no manifest.json' in found[1].why and catalog.rebuild(tmp_path).exists()


def test_newest_first_over_all_sources(tmp_path):
    for i, (where, at) in enumerate([('run', '2026-03-31T20:00:00+00:00'), ('replay/demo/run', '2026-03-31T17:00:00-04:00'), ('replay/es/evaluate', '2026-04-01T01:00:00+00:00'), ('evaluate', '2026-03-30T20:00:00+00:00')]):
        made(tmp_path, f'{where}/2026-03-31-00000{i}', GOOD | dict(started=at))
    assert [e.folder.name[-1] for e in catalog.entries(tmp_path)] == ['2', '1', '0', '3']


def test_several_runs_end_at_once(tmp_path):
    code = 'import sys, json; from pathlib import Path; from spyresearch import catalog\nd = Path(sys.argv[1])/"run"/sys.argv[2]; d.mkdir(parents=True); (d/"manifest.json").write_text(sys.argv[3]); catalog.rebuild(sys.argv[1])'
    ps = [subprocess.Popen([sys.executable, '-c', code, tmp_path, f'2026-03-31-00000{i}', json.dumps(GOOD)], env=os.environ | dict(OMP_NUM_THREADS='1')) for i in range(3)]
    assert [p.wait(180) for p in ps] == [0]*3
    text = (tmp_path/'index.html').read_text(encoding='utf-8')
    assert all(f'2026-03-31-00000{i}' in text for i in range(3)) and text.endswith('</html>') and not [p for p in tmp_path.iterdir() if p.name.startswith('.index.html')]


def test_a_page_of_somebody_else_stays(tmp_path):
    (tmp_path/'index.html').write_text('mine')
    with pytest.raises(FolderError, match='was not made by spy'): catalog.rebuild(tmp_path)
    assert (tmp_path/'index.html').read_text() == 'mine'


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path/'reports').write_text('')
    with pytest.raises(FolderError, match='cannot write'): catalog.rebuild(tmp_path/'reports')


def test_who_writes_too_long_is_not_waited_for(tmp_path):
    with catalog.FileLock(tmp_path/'.index.lock'), pytest.raises(FolderError, match='another process'): catalog.rebuild(tmp_path, wait_s=.1)


def test_the_page_is_one_file_and_fits_a_phone(tmp_path, browser):
    ev = {h: dict(skill_pct=dict(har=.1*i), skill_ci=dict(har=[.1*i - .3, .1*i + .2])) for i, h in enumerate(('5', '15', '30', '60', 'rest_of_day'))}
    for i in range(12):
        d = made(tmp_path, f'replay/demo/run/2026-03-31-0000{i:02}', GOOD | dict(run='run', verdict='An unbroken' + 'verylong'*20 + '. More words.'))
        (d/'evaluation.json').write_text(json.dumps(dict(horizons=ev)))
    out = catalog.rebuild(tmp_path)
    text = out.read_text(encoding='utf-8')
    assert not re.search(r'<script|<link|<iframe|<img|@import|url\((?!#)', text) and text.count('<svg') == text.count('>SIMULATED<') == 12
    for scheme in ('light', 'dark'):
        p = browser.new_page(viewport=dict(width=390, height=800), color_scheme=scheme)
        p.goto(f'file://{out}')
        assert p.evaluate('document.documentElement.scrollWidth') <= 390
        ink, paper = p.evaluate("[getComputedStyle(document.querySelector('h3')).color, getComputedStyle(document.body).backgroundColor].map((o) => o.match(/\\d+/g).map(Number).reduce((a, b) => a + b))")
        assert abs(ink - paper) > 400
        p.click('h3 a')
        assert p.inner_text('body') == 'a report'
        p.close()
