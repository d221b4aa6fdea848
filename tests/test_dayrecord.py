"""What a day's record says of itself when it ends, and of what was taken from it."""
from datetime import date

import pandas as pd
import pytest

from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.dayrecord import DayRecord, ended, taken_away
from spyresearch.tws.seconds import Seconds

DAY = date(2025, 12, 5)
T = int(session(DAY).open.timestamp())


def begun(root):
    "A record, the first second it lacks, and what it said."
    said = []
    r = DayRecord(Store(root, 'simulated:made'), lambda *o: said.append(o[1:]))
    return r, r.begin(DAY) - T, said


def recorded(root, trades, n=10):
    "Seconds of a market with a quote each second; trades: (second, price, size, seconds late)."
    r, _, _ = begun(root)
    s = Seconds(T)
    for i in range(n):
        s.quote('bid', 600., T + i + .1)
        for t in [o for o in trades if o[0] + o[3] == i]: s.trade(t[1], t[2], T + t[0], T + i + .5)
        r.keep(s.close(T + i)); r.too_late(T + i, s.late); s.late = []
    r.close()
    return r


def test_a_seal_says_what_came_too_late_and_how_many_seconds_know_nothing_of_it(tmp_path):
    r = recorded(tmp_path, [(1, 600.01, 100, 0), (2, 600.02, 50, 3), (2, 600.03, 5, 4), (1, 600.01, 7, 4), (4, 600.01, 20, 0)])
    rows = r.log.read(DAY)
    assert rows['volume'].tolist() == [0, 100, 0, 0, 20, 0, 0, 0, 0, 0] and set(rows['status']) == {'data'}
    lines = r.log.file(DAY).read_bytes()
    assert r.seal() and not r.seal() and r.log.file(DAY).read_bytes() == lines
    assert begun(tmp_path)[0].log.m['days'][str(DAY)]['late'] == dict(seconds=2, said_none=1, trades=3, shares=62.)


def test_a_day_without_late_trades_says_nothing_of_them(tmp_path):
    r = recorded(tmp_path, [(1, 600.01, 100, 0)])
    assert r.seal() and set(r.log.m['days'][str(DAY)]) == {'rows', 'sealed', 'sha256'}


@pytest.mark.parametrize('gone,over,missed,first', [((), True, [], 10), (('trades',), True, ['trades'], 10), (('late',), True, ['late'], 10), (('seconds',), False, ['seconds'], 0),
                                                    (('seconds', 'trades', 'late'), False, ['seconds', 'trades', 'late'], 0)])
def test_a_day_is_over_when_it_is_sealed_and_there(tmp_path, gone, over, missed, first):
    r = recorded(tmp_path, [(1, 600.01, 100, 0), (2, 600.02, 50, 3)])
    assert not ended(r.store, DAY) and taken_away(r.store, DAY) == []
    r.seal()
    kept = {o.path.name: o.file(DAY).read_bytes() for o in r.logs}
    for o in r.logs: o.path.name in gone and o.file(DAY).unlink()
    assert ended(r.store, DAY) == over and taken_away(r.store, DAY) == missed
    again, at, said = begun(tmp_path)
    assert at == first and ([o[0] for o in said][:1] == ['anew']) == (not over)
    if over: return
    aside = {o for o in kept if o not in gone}
    assert {o for o in kept if (p := tmp_path/'quarantine'/f'{o}-{DAY}.csv').exists() and p.read_bytes() == kept[o]} == aside and [o[0] for o in said][1:] == ['set aside']*len(aside)
    again.missing(T, T + 3); again.too_late(T + 4, [(T + 1, 600., 5.)]); again.close()
    assert again.seal() and ended(again.store, DAY) and taken_away(again.store, DAY) == [] and again.log.m['days'][str(DAY)]['late']['trades'] == 1 and isinstance(again.log.read(DAY), pd.DataFrame)
