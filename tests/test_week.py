"""The week's drill, compressed: the end of a half day and the beginning of the next session, through `spy live`, with all that goes wrong in them."""
import json
import subprocess
import sys
from dataclasses import replace
from datetime import date

import pytest

from live import at
from spyresearch.core import CheckFailed
from spyresearch.live.drill import table
from spyresearch.live.invariants import check_faults, check_forecasts, check_journals, check_seconds, check_volumes, incidents, inspect, read_week
from spyresearch.live.week import Plan, plan_of, week
from spyresearch.tws.source import Source

HALF, NEXT = date(2025, 11, 28), date(2025, 12, 1)


@pytest.fixture(scope='module')
def lived(tmp_path_factory):
    "The last eighteen minutes of the half day with every fault, a kill and a damaged model; another of the next session with a model past its date."
    root = tmp_path_factory.mktemp('week')/'data'
    week(Plan(Source(sessions=68), (HALF, NEXT), None, at('12:42:00', str(HALF)), at('09:45:40', str(NEXT)), history=62, options=False), root)
    return root


def failed(checks): return [o.name for o in checks if not o.ok]


def test_everything_that_must_hold(lived):
    checks = inspect(read_week(lived))
    assert len(checks) >= 16 and not [o for o in checks if not o.ok and not o.name.startswith('memory')], table(checks)


def test_the_record_tells_what_happened(lived):
    w = read_week(lived)
    assert len(incidents(w)) == 16 and all(o.told for o in incidents(w))
    assert w.models[0] in w.said and {o['model'] for o in w.forecasts[HALF]} == {w.models[0]} and not w.forecasts[NEXT]
    assert len(w.seconds[HALF]) == 210*60 and f'{w.seconds[HALF].index[-1]:%H:%M:%S}' == '12:59:59'


def test_what_is_wrong_is_found(lived):
    "Each list can fail: on the same record with one thing changed."
    w = read_week(lived); s = w.seconds[HALF]; k = s['status'].eq('data').to_numpy().nonzero()[0][-1]
    assert failed(check_seconds(replace(w, seconds=w.seconds | {HALF: s.drop(s.index[k])})))
    assert failed(check_volumes(replace(w, seconds=w.seconds | {HALF: s.assign(volume=s['volume'].where(s.index != s.index[k], s['volume'] + 1e6))})))
    rows = w.forecasts[HALF]
    assert failed(check_forecasts(replace(w, forecasts=w.forecasts | {HALF: rows + rows[-1:]})))
    assert failed(check_forecasts(replace(w, forecasts=w.forecasts | {NEXT: [rows[0] | dict(origin='2025-12-01T15:00:00-05:00')]})))
    assert failed(check_faults(replace(w, feed=[o for o in w.feed if o['state'] != 'reset'])))


def test_the_command_looks_again_at_a_week_that_is_kept(lived, tmp_path):
    "Exit status 1 if anything failed; of so short a week memory may, which has hardly begun."
    done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'drill', 'week', '--keep', str(lived), '--reports', str(tmp_path)], capture_output=True, text=True)
    failed = [o for o in done.stdout.splitlines() if o.startswith('FAIL')]
    assert done.returncode == bool(failed) and all('memory' in o for o in failed), done.stdout + done.stderr
    page = (tmp_path/f'week-{NEXT}.html').read_text()
    assert 'What must hold' in page and page.count('kill -9 of the program') == 1 and 'SIMULATED' in page
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'file').write_text('x')
    done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'drill', 'week', '--keep', str(tmp_path/'other')], capture_output=True, text=True)
    assert done.returncode == 2 and 'is not empty' in done.stderr


def test_a_torn_journal_is_found(lived, tmp_path):
    w = read_week(lived); (tmp_path/'said.jsonl').write_text(json.dumps(dict(a=1)) + '\n{"b": ')
    class Torn: journal = tmp_path
    assert failed(check_journals(replace(w, store=Torn())))


def test_a_program_that_fails_fails_the_week(tmp_path, monkeypatch):
    import spyresearch.live.week as module
    monkeypatch.setattr(module, 'taught', lambda plan, root: _folder_of_another(root))
    with pytest.raises(CheckFailed, match='holds data from tws'): week(Plan(Source(sessions=10), (HALF, NEXT), None, at('12:55:00', str(HALF)), at('10:00:00', str(NEXT))), tmp_path/'data')


def _folder_of_another(root):
    (root/'models'/'m').mkdir(parents=True); (root/'models'/'m'/'params.npz').write_bytes(b'x')
    (root/'original_data.manifest.json').write_text(json.dumps(dict(schema=1, provenance='tws', days={}, absent={}, lacks={}, files={})))
    return ['o', 'm']


def test_a_real_week_has_a_closed_day_and_a_half_day(shared):
    p = plan_of(Source(bars=(str(shared('spy_1min.parquet')),), asof='2024-12-03', intraminute='simulated'))
    assert date(2024, 11, 28) not in p.days and p.half == date(2024, 11, 29) and p.missing == date(2024, 11, 27) and len(p.there) == 5
