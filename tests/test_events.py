"The calendar of releases against its source, against days known by hand, and against the exchange's calendar."
import math
import subprocess
import sys
import warnings
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from spyresearch import events
from spyresearch.events import DIGEST, expired, fomc_day, fomc_press, holes, in_hole, month_end, on, opex, opex_of, quad, releases, since_830, since_1000, sources, to_fomc, until_next
from spyresearch.features.registry import Registry, feature
from spyresearch.sessions import is_session, session, sessions

GOOD_FRIDAY = [date(2021, 4, 2), date(2023, 4, 7), date(2024, 3, 29), date(2026, 4, 3)] # a report, and no session


def test_the_verified_rows_and_no_other(shared):
    e = pd.read_csv(shared('us_events.csv')); e = e[e.quality == 'verified']
    assert [(o.day.isoformat(), o.time, o.kind) for o in releases()] == list(zip(e.date, e.time_et, e.event))
    assert all(o.sources and set(o.sources) <= set(sources()) for o in releases())
    assert {k for o in releases() for k in o.sources} == set(sources()), 'a source that no row names'


def test_every_date_is_a_session():
    assert [o.day for o in releases() if not is_session(o.day)] == GOOD_FRIDAY
    assert all(session(o.day).n_minutes == 390 for o in releases() if o.kind.startswith('fomc'))
    assert len({(o.day, o.kind) for o in releases()}) == len(releases())


@pytest.mark.parametrize('kind, day', [('fomc_statement', '2025-03-19'), ('fomc_statement', '2022-07-27'), ('fomc_statement', '2024-11-07'), # a Thursday, after the election
    ('cpi', '2025-10-24'), ('cpi', '2025-12-18'), ('nfp', '2025-11-20'), ('nfp', '2025-12-16'), ('nfp', '2026-02-11'), ('cpi', '2026-02-13'), ('pce', '2025-09-26'), ('ism', '2024-07-01')])
def test_days_known_by_hand(kind, day): assert on(date.fromisoformat(day), kind) == 1


def test_releases_that_the_shutdown_took_away_did_not_happen():
    assert [on(o, 'nfp') for o in (date(2025, 10, 3), date(2025, 11, 7), date(2025, 12, 5))] == [0, 0, 0]
    assert [on(o, 'cpi') for o in (date(2025, 10, 15), date(2025, 11, 13), date(2025, 12, 10))] == [0, 0, 0]


def test_a_hole_is_never_a_day_without_an_event():
    for kind in ('pce', 'ism', 'fomc_press'):
        for a, b in holes(kind):
            days = [d for d in sessions(a, b) if not any(o.day == d and o.kind == kind for o in releases())]
            assert days and all(in_hole(d, kind) and math.isnan(on(d, kind)) for d in days)
    said = {o.day for o in releases('fomc_press')}
    assert [a for a, b in holes('fomc_press')] == [o.day for o in releases('fomc_statement') if o.day not in said]


def test_months_without_a_row_are_explained():
    "CPI and NFP come once a month, PCE once, ISM twice: what is short has a hole, or the shutdown of 2025."
    for kind, n in (('cpi', 1), ('nfp', 1), ('pce', 1), ('ism', 2)):
        count = pd.Series([o.day.strftime('%Y-%m') for o in releases(kind)]).value_counts()
        short = {m for m in pd.period_range('2021-01', '2026-12', freq='M').astype(str) if count.get(m, 0) < n}
        gone = {m for a, b in holes(kind) for m in pd.period_range(a, b, freq='M').astype(str)}
        late = dict(cpi={'2025-11'}, nfp={'2025-10'}, pce={'2021-09', '2022-11', '2025-10', '2025-11'}, ism=set())[kind] # out on the 1st of the next month; or shut
        assert short <= gone | late and (short - gone) == late


def test_after_the_last_day_everything_is_empty_and_said_once():
    code = ('import warnings; warnings.simplefilter("always"); from datetime import date; from spyresearch.events import *\n'
            'd = [date(2027, 1, 4 + i) for i in range(5)]\n'
            'v = [float(f(o, 0)) for o in d for f in (fomc_day, cpi_day, nfp_day, to_fomc, fomc_press, since_830, since_1000)] + [until_next(d[0], 0, "cpi")]\n'
            'assert all(x != x for x in v), v; assert opex(date(2027, 1, 15)) == 1 and month_end(date(2027, 1, 29)) == 1')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('the table of releases ended on 2026-12-31') == 1
    assert expired(date(2027, 1, 1)) and not expired(date(2026, 12, 31))


def test_before_the_first_day_it_is_not_known_and_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert math.isnan(on(date(2020, 12, 16), 'fomc_statement')) and math.isnan(since_830(date(2013, 10, 7), 0))


def test_expiries():
    "Every third Friday is an expiry, or the Thursday before it on Good Friday and Juneteenth."
    for y in range(2010, 2036):
        for m in range(1, 13):
            friday = next(d for d in (date(y, m, 15) + timedelta(i) for i in range(7)) if d.weekday() == 4)
            assert opex_of(y, m) == (friday if is_session(friday) else friday - timedelta(1)) and is_session(opex_of(y, m))
    moved = [opex_of(y, m).isoformat() for y in range(2014, 2027) for m in range(1, 13) if opex_of(y, m).weekday() == 3]
    assert moved == ['2014-04-17', '2019-04-18', '2022-04-14', '2025-04-17', '2026-06-18']
    days = sessions(date(2020, 1, 1), date(2026, 12, 31))
    assert (opex(days).sum(), quad(days).sum(), month_end(days).sum()) == (84, 28, 84)


def test_one_day_and_many_days_agree():
    days, m = sessions(date(2025, 9, 1), date(2025, 12, 31)), np.arange(390)[None]
    for f in (to_fomc, fomc_press, since_830, since_1000):
        whole = np.broadcast_to(f(days, m), (len(days), 390))
        for i, d in enumerate(days): np.testing.assert_array_equal(whole[i], [f(d, j) for j in range(390)])


def test_the_next_release_is_never_behind():
    for kind in ('fomc_statement', 'cpi', 'nfp', 'pce', 'ism'):
        at = {o.at.timestamp() for o in releases(kind)}
        for d in sessions(date(2025, 1, 2), date(2025, 12, 31)):
            left = until_next(d, 100, kind)
            assert left != left or left >= 0 and session(d).open.timestamp() + 60*(101 + left) in at


def test_another_table_is_another_registry(monkeypatch):
    "The hash of the registry covers the table, through what a formula's functions name."
    r = Registry()
    feature('fomc_day', lambda g: fomc_day(g.day), registry=r, group='G5', formula='-', known_at='schedule')
    was = r.hash()
    monkeypatch.setattr(events._table.__wrapped__, '__defaults__', ('another',))
    assert r.hash() != was and len(DIGEST) == 64
