"""The fault drill over a process and a socket: a compressed session, on the demo with options and on real bars."""
import json
import subprocess
import sys
from datetime import date, datetime

import pandas as pd
import pytest

from spyresearch.core import ET, CheckFailed
from spyresearch.live.drill import compare_trades, drill, script
from spyresearch.tws.seconds import TRADE_COLUMNS
from spyresearch.tws.source import Source


def at(day, hour, minute): return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ET)


def passed(checks):
    assert len(checks) >= 9
    assert not [o for o in checks if not o.ok], '\n'.join(f'{o.name}: {o.detail}' for o in checks if not o.ok)


def test_a_morning_of_the_demo_with_everything_going_wrong(tmp_path):
    passed(drill(Source(), date(2025, 12, 5), at(date(2025, 12, 5), 9, 55), tmp_path, days=25))
    said = [json.loads(o) for o in (tmp_path/'hurt'/'journal'/'feed.jsonl').read_text().splitlines()]
    states = {(o['what'], o['state']) for o in said}
    assert {('link', 'lost'), ('link', 'down'), ('ticks', 'stale'), ('depth', 'stale'), ('depth', 'reset'), ('feed', 'absent')} <= states
    assert all(o['reason'] for o in said if o['state'] in ('lost', 'down', 'stale', 'reset', 'absent'))


def test_a_real_morning(tmp_path, shared):
    day = date(2026, 3, 31)
    passed(drill(Source(bars=(str(shared('spy_1min.parquet')),), asof=str(day), intraminute='simulated'), day, at(day, 10, 0), tmp_path, days=25))


def test_a_doubled_trade_is_found():
    "The comparison can fail: a trade more than the clean run's, in a second told in part."
    ix = pd.DatetimeIndex(['2025-12-05T09:30:00-05:00'], name='Datetime').tz_convert(ET)
    clean = pd.DataFrame([[600., 1, 100, 0, 0, 0, 0]], columns=TRADE_COLUMNS, index=ix)
    hurt = clean.assign(buy_volume=200)
    assert [o.ok for o in compare_trades(clean, hurt, ix[:0])] == [True, False] and [o.ok for o in compare_trades(clean, hurt, ix)] == [False, True]


def test_a_program_that_fails_fails_the_drill(tmp_path):
    with pytest.raises(CheckFailed, match='ended with 3'):
        (tmp_path/'clean').mkdir()
        (tmp_path/'clean'/'original_data.manifest.json').write_text(json.dumps(dict(schema=1, provenance='tws', days={}, absent={}, lacks={}, files={})))
        drill(Source(), date(2025, 12, 5), at(date(2025, 12, 5), 9, 50), tmp_path, days=25)


@pytest.mark.parametrize('args,words', [(['month'], 'no drill'), (['week', '--until', '10:30'], 'not for a week'), (['week', '--asof', '2025-11-27'], 'not a trading day'), (['day', '--until', '09:31'], 'quarter of an hour'), (['day', '--asof', '2025-11-27'], 'not a trading day')])
def test_wrong_words_on_the_command_line(args, words):
    done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'drill', *args], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr


def test_the_script_keeps_its_order_in_any_span():
    for hours in (0, 5):
        s = script(at(date(2025, 12, 5), 9, 30), at(date(2025, 12, 5), 10 + hours, 0)).script
        times = [o.moment(at(date(2025, 12, 5), 9, 30)) for o in s]
        assert times == sorted(times) and {o.do for o in s} == {'drop', 'say', 'mute', 'dead', 'reset', 'freeze', 'torn'}
