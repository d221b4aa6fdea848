"""The program that runs for weeks: its day file at every moment, its sleep, its waking, and every way in which it ends."""
import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from feeding import Faults, day, demo, half, replay, story, until
from live import DAY, at, run
from spyresearch.core import FeedError, FixedClock, FolderError, SteadyClock, UsageError
from spyresearch.daylog import DayLog
from spyresearch.features.prepare import prepare
from spyresearch.features.recorded import write_flow
from spyresearch.features.registry import REGISTRY
from spyresearch.live import runner
from spyresearch.live.invariants import by_minute
from spyresearch.live.runner import Runner, clock_of
from spyresearch.live.runner import go as engine
from spyresearch.live.stream import desk
from spyresearch.live.today import Today
from spyresearch.store import Store
from spyresearch.tws.chain import Chain, read_chain_day
from spyresearch.tws.history import fetch_history
from spyresearch.tws.link import Link
from spyresearch.tws.replay import ReplayServer, listing_of
from spyresearch.tws.seconds import COLUMNS, TEXT

GAPPY = date(2025, 12, 3)   # the demo lacks its minute 257, 13:47


@asynccontextmanager
async def living(root, begin, faults=Faults(), on=DAY, days=4, chain=False, tape=None, clocked=lambda clock: clock, **how):
    "A runner under way: its task is in `task`, what it says in `said`."
    async with replay(begin, faults, tape=tape, on=on, link=dict(deadline_s=.1)) as (srv, clock, link):
        if chain: srv.listing = listing_of(srv)
        r = Runner('127.0.0.1', srv.port, Store(root, 'simulated:demo'), clocked(clock), days=days, chain=chain, every_min=1)
        r.said, r.srv, r.link.deadline_s = [], srv, .1
        r.say = r.said.append
        r.task = asyncio.ensure_future(r.run(**how))
        try: yield r
        finally:
            r.task.cancel()
            await asyncio.gather(r.task, return_exceptions=True)


def upto(rows, hms, on=day):
    "How many of the seconds before a moment there are; none after it."
    assert rows.index[-1] < at(hms, str(on))
    return len(rows)


async def lived(root, begin, *a, do=None, **kw):
    "A runner to its end."
    async with living(root, begin, *a, **kw) as r:
        if do: await do(r)
        await r.task
    return r


def watching(monkeypatch, root):
    "After each write another reader looks at today's file: (rows, provisional) each time, and no reason not to count it."
    seen, write = [], Today.write
    def look(self):
        done = write(self)
        if done:
            s = Store(root)
            assert not s.features.reason(self.day) and not s.original.reason(self.day)
            seen.append((len(s.daily(self.day)), s.features.m['days'][str(self.day)].get('provisional')))
        return done
    monkeypatch.setattr(Today, 'write', look)
    return seen


def from_history(root, days=4, on=GAPPY, tape=None, heard=None):
    "The same days, fetched and prepared afterwards; with what another folder heard, which history has not."
    async def go():
        async with ReplayServer(tape or demo(), at('16:30:00', str(on))) as srv, Link(port=srv.port) as link: await fetch_history(link, store, days)
    store = Store(root, 'simulated:demo')
    run(go())
    if heard:
        for o in ('seconds', 'trades', 'chain'):
            for p in (heard/'original_data').glob(f'{o}*'): (shutil.copytree if p.is_dir() else shutil.copy)(p, root/'original_data'/p.name)
    prepare(store)
    return store


# --- the day file

def test_a_close_leaves_what_history_gives(tmp_path, monkeypatch):
    seen = watching(monkeypatch, tmp_path/'live')
    tape = replace(demo(), drawn=True)
    r = run(lived(tmp_path/'live', '15:52:00', on=str(GAPPY), once=True, tape=tape, faults=story(('drop', '15:54:10', {}))))
    fresh = from_history(tmp_path/'afterwards', heard=tmp_path/'live')
    assert r.store.daily(GAPPY)[['spread_60', 'sign_60', 'depth_imb_5']].notna().sum().between(6, 8).all()
    for f in ('original', 'features'):
        a, b = (getattr(s, f) for s in (r.store, fresh))
        assert a.file(GAPPY).read_bytes() == b.file(GAPPY).read_bytes() and a.m['days'][str(GAPPY)] == b.m['days'][str(GAPPY)] and a.days(sealed=True) == b.days(sealed=True)
    row = r.store.daily(GAPPY).iloc[257]
    assert row.isna().all() and r.store.known_gaps()[GAPPY] == ['13:47'] and len(r.store.daily(GAPPY)) == 390
    assert [n for n, _ in seen] == sorted(n for n, _ in seen) and seen[0][0] >= 382 and {n for n, _ in seen} >= {*range(383, 391)}
    assert sum(bool(p) for _, p in seen) >= 5 and all(len(p or []) <= 1 for _, p in seen) and seen[-1][1] in ([], None)
    assert r.feed.log.days(sealed=True) == [GAPPY] == r.feed.prices.days(sealed=True) and len(r.feed.log.read(GAPPY)) == 23_400
    assert r.reports[0]['differences']['price_differs'] == 0 and any('minutes compared with history: 0 differ' in o for o in r.said)


def test_what_goes_with_a_minute_is_the_same_live_and_afterwards(tmp_path):
    "Seconds and options of a session with a restart; then the folder is prepared as if it had come from elsewhere."
    for begin, end in (('13:30:00', '13:36'), ('13:36:20', '13:41')): r = run(lived(tmp_path, begin, until=at(f'{end}:00', str(day)), chain=True, tape=replace(demo(), drawn=True)))
    live = r.store.features.file(day).read_bytes(); prepare(r.store)
    n = len(r.store.raw(day)) # the row after those is made of the feed's own seconds
    assert n == 250 and r.store.features.file(day).read_bytes().splitlines()[:n + 1] == live.splitlines()[:n + 1]
    told = r.store.daily(day).loc[:, [f.name for f in REGISTRY if f.kept and f.group in ('G7', 'G8', 'G9')]].notna().sum()
    assert told['spread_60'] >= 8 and told['depth_imb_5'] >= 8 and told['log_iv_rem'] >= 8 and told['skew_25'] >= 8


def test_minutes_of_an_outage_are_filled_in(tmp_path, monkeypatch):
    seen = watching(monkeypatch, tmp_path)
    async def look(r):
        await until(r.clock, '10:04:30')
        r.during = r.store.daily(day)
    r = run(lived(tmp_path, '09:55:00', story(('down', '10:00:10', dict(for_s=270))), do=look, until=at('10:09:30')))
    rows, api = r.store.daily(day), demo().bars['TRADES', '1 min']
    api = api[api.index.date == day].iloc[:39]
    assert len(r.during) == 30 and len(rows) == 39 and [n for n, _ in seen] == sorted(n for n, _ in seen)
    assert np.array_equal(rows.iloc[:38, :5], api.iloc[:38, :5]) and rows['close'].notna().all() and rows['ba_open'].iloc[:38].notna().all()
    fresh = from_history(tmp_path/'afterwards', on=day, heard=tmp_path)
    assert rows.iloc[:36].equals(fresh.daily(day).iloc[:36])
    assert [p for _, p in seen if p]


def test_a_provisional_row_is_replaced(tmp_path, monkeypatch):
    wrong, write = [], Today.write
    def bend(self, m):
        if m.provisional: m = m._replace(close=m.low, volume=1.)
        return take(self, m)
    def keep(self):
        done = write(self)
        if done and (p := self.store.features.m['days'][str(self.day)]['provisional']): wrong.append((p, self.store.daily(self.day)['volume'].iloc[-1]))
        return done
    take = Today.take
    monkeypatch.setattr(Today, 'take', bend)
    monkeypatch.setattr(Today, 'write', keep)
    r = run(lived(tmp_path, '09:55:00', until=at('10:00:30')))
    assert {p[0] for p, _ in wrong} == {'09:55', '09:56', '09:57', '09:58', '09:59'} and {v for _, v in wrong} == {1.}
    assert (r.store.daily(day)['volume'] > 1).all() and r.store.features.m['days'][str(day)]['provisional'] == []


def test_a_restart_never_shortens_the_day_file(tmp_path, monkeypatch):
    run(lived(tmp_path, '09:55:00', until=at('10:00:30')))
    seen = watching(monkeypatch, tmp_path)
    r = run(lived(tmp_path, '10:03:00', Faults(rights=dict(keepup='none'), silent_history=tuple(range(1, 5))), until=at('10:08:30')))   # the bars come late
    assert [n for n, _ in seen] == sorted(n for n, _ in seen) and seen[0][0] >= 30 and r.store.daily(day)['close'].iloc[:30].notna().all()
    rows = r.feed.log.read(day)
    assert upto(rows, '10:08:30') == 38*60 + 30
    assert set(rows['status'].iloc[1835:1979]) == {'absent'}


# --- asleep

def test_over_a_weekend_and_awake_before_the_open(tmp_path):
    r = run(lived(tmp_path, '12:58:00', on=str(half), days=2, until=at('09:31:01')))
    assert [o for o in r.said if 'asleep' in o] == ['2025-11-28 13:00:15 asleep until Mon 2025-12-01 09:20']
    ups = [o[:19] for o in r.said if 'link up' in o]
    assert ups[-1].startswith('2025-12-01 09:20') and r.feed.log.days(sealed=True) == [half]
    monday = r.feed.log.read(day)
    assert upto(monday, '09:31:01') == 61 and (monday['status'].iloc[1:] == 'data').all() and r.store.is_sealed(half)
    asked = [o for o in r.srv.requests if at('13:01:00', str(half)) < o.at < at('09:20:00')]
    assert asked == []


def test_a_session_of_which_the_source_has_nothing_is_sealed_and_named(tmp_path):
    "No calendar knew of it: the program wakes, hears nothing, and goes on to the next session."
    tape = demo(); cut = lambda b: b[b.index.normalize().tz_localize(None) != str(half)]
    r = run(lived(tmp_path, '12:50:00', on=str(half), tape=replace(tape, bars={k: cut(b) for k, b in tape.bars.items()}, ticks={d: o for d, o in tape.ticks.items() if d != half}), once=True))
    assert r.feed.log.days(sealed=True) == [half] and r.store.raw(half) is None
    assert len(r.feed.log.read(half)) == 210*60 and not r.feed.log.read(half)['volume'].gt(0).any() and any('the day is sealed' in o for o in r.said)


def test_over_a_holiday(tmp_path):
    r = run(lived(tmp_path, '16:30:00', on='2025-11-26', days=2, until=at('09:30:30', str(half))))
    assert 'asleep until Fri 2025-11-28 09:20' in r.said[0] and upto(r.feed.log.read(half), '09:30:30', half) == 30


def test_tws_is_down_when_the_runner_wakes(tmp_path):
    r = run(lived(tmp_path, '09:10:00', story(('down', '09:19:00', dict(for_s=12*60 + 30))), until=at('09:34:01')))
    rows = r.feed.log.read(day)
    assert sum('no history yet' in o for o in r.said) > 5 and (rows['status'].iloc[:90] == 'down').all() and (rows['status'].iloc[155:] == 'data').all() and upto(rows, '09:34:01') == 241
    assert len(r.store.daily(day)) == 4 and r.store.daily(day)['close'].iloc[:3].notna().all()


# --- how it ends

def test_until_a_time_that_has_been_and_once(tmp_path):
    for root, begin, end, why in (('a', '10:00:00', '10:00:00', 'has passed'), ('b', '16:30:00', '17:00:00', 'comes before the session of 2025-12-02'), ('c', '08:00:00', '09:00:00', 'comes before the session of 2025-12-01')):
        r = run(lived(tmp_path/root, begin, until=at(end)))
        assert r.feed is None and [o[20:] for o in r.said] == [f'2025-12-01 {end[:5]} {why}: nothing to record']


def test_until_means_everything_up_to_it(tmp_path):
    r = run(lived(tmp_path, '09:20:00', until=at('09:40:00')))
    rows, own = r.feed.log.read(day), r.store.daily(day)
    assert upto(rows, '09:40:00') == 600 and len(own) == 10 and own['close'].notna().all() and f'{own.index[-1]:%H:%M}' == '09:39'
    assert r.feed.log.is_open(day) and not r.store.is_sealed(day)
    assert '2025-12-01 is recorded up to 09:40:00: ' in r.said[-1] and ' seconds with data' in r.said[-1] and '10 minutes in the day file' in r.said[-1]
    assert all(str(o) in r.said[-1] for o in (r.feed.log.file(day), r.store.features.file(day))) and r.said[-1].endswith('the day is not sealed, and the next run goes on from here')


def test_until_at_or_after_the_close_is_the_whole_session(tmp_path):
    for root, end in (('a', '13:00:00'), ('b', '13:00:05'), ('c', '14:00:00')):
        r = run(lived(tmp_path/root, '12:58:00', on=str(half), until=at(end, str(half))))
        assert len(r.feed.log.read(half)) == 210*60 and not r.feed.log.is_open(half) and r.store.is_sealed(half)
        assert r.said[-1].endswith('the day is sealed') and not any('asleep' in o for o in r.said)


@pytest.fixture(scope='module')
def closed(tmp_path_factory):
    "A half day recorded to its close, once: each test goes on in a copy of its own."
    root = tmp_path_factory.mktemp('closed')
    run(lived(root, '12:58:00', on=str(half), once=True))
    return lambda to: shutil.copytree(root, to, dirs_exist_ok=True)


def sealings(root): return sum('"sealed"' in o for o in (root/'journal'/'feed.jsonl').read_text().splitlines())


@pytest.mark.parametrize('begin,how', [('12:59:00', dict(once=True)), ('09:00:00', dict(once=True)), ('12:58:00', dict(until=at('12:59:00', str(half)))), ('13:30:00', dict(once=True)), ('13:30:00', dict(until=at('14:30:00', str(half))))])
def test_a_sealed_session_is_done(tmp_path, closed, begin, how):
    closed(tmp_path)
    files = {o: o.read_bytes() for o in tmp_path.rglob('*.*') if o.is_file()}
    r = run(lived(tmp_path, begin, on=str(half), **how))
    assert [o[20:] for o in r.said] == ['2025-11-28 is recorded and sealed already: nothing to do; another --data records it again'] and r.feed is None
    assert {o: o.read_bytes() for o in tmp_path.rglob('*.*') if o.is_file()} == files and sealings(tmp_path) == 1


@pytest.mark.parametrize('made', ['daily_data/seconds', 'daily_data'])
def test_what_is_made_of_a_sealed_session_and_missing_is_made_again(tmp_path, closed, made):
    closed(tmp_path)
    file = tmp_path/made/f'{half}.csv'
    was = file.read_bytes()
    file.unlink()
    r = run(lived(tmp_path, '12:58:00', on=str(half), once=True))
    assert 'what is made of it is not all there, and is made again' in r.said[0] and file.read_bytes() == was and r.feed is None and sealings(tmp_path) == 1


@pytest.mark.parametrize('begin', ['12:58:00', '13:30:00'])
def test_sealed_seconds_that_are_gone_are_missed_and_recorded_again_if_there_is_time(tmp_path, closed, begin):
    closed(tmp_path)
    files = [tmp_path/'original_data'/o/f'{half}.csv' for o in ('seconds', 'trades')]
    trades = files[1].read_bytes()
    files[0].unlink()
    r = run(lived(tmp_path, begin, on=str(half), until=at('14:30:00', str(half))))
    assert 'of its record the seconds are not there any more' in r.said[0]
    if begin > '13': assert not files[0].exists() and files[1].read_bytes() == trades; return
    rows = r.feed.log.read(half)
    assert len(rows) == 210*60 and (rows['status'].iloc[:-120] == 'absent').all() and (rows['status'].iloc[-119:] == 'data').all() and r.said[-1].endswith('the day is sealed') and sealings(tmp_path) == 2
    assert (tmp_path/'quarantine'/f'trades-{half}.csv').read_bytes() == trades and len(r.store.daily(half)) == 210 and r.feed.log.days(sealed=True) == r.feed.prices.days(sealed=True) == [half]


def test_sealed_trades_that_are_gone_are_missed(tmp_path, closed):
    closed(tmp_path)
    (tmp_path/'original_data'/'trades'/f'{half}.csv').unlink()
    r = run(lived(tmp_path, '12:58:00', on=str(half), once=True))
    assert 'of its record the trades are not there any more' in r.said[0] and 'nothing to do' in r.said[1] and r.feed is None


@pytest.mark.parametrize('table', [True, False])
def test_a_day_that_is_recorded_again_leaves_a_sealed_table_of_options_alone(tmp_path, table):
    options = tmp_path/'original_data'/'chain'/f'{half}.parquet'
    def again(begin): return run(lived(tmp_path, begin, on=str(half), once=True, chain=True, tape=replace(demo(), drawn=True)))
    again('12:58:30')
    was = options.read_bytes()
    (tmp_path/'original_data'/'seconds'/f'{half}.csv').unlink()
    if not table: options.unlink()
    r = again('12:59:00')
    assert any('sealed already, and are not recorded again' in o for o in r.said) == table and r.said[-1].endswith('the day is sealed')
    assert (options.read_bytes() == was) == table and len(read_chain_day(options.parent, half)) > 500


def test_an_end_before_what_is_recorded_changes_nothing_and_says_so(tmp_path):
    "A replay begins again at its open; the day is recorded further than the end."
    run(lived(tmp_path, '09:29:00', until=at('09:33:00')))
    files = {o: o.read_bytes() for o in tmp_path.rglob('*.csv')}
    for end in ('09:31:00', '09:33:00'):
        r = run(lived(tmp_path, '09:29:00', until=at(end)))
        assert {o: o.read_bytes() for o in tmp_path.rglob('*.csv')} == files and not any('link up' in o for o in r.said)
        assert any(o.endswith(f'feed recorded: up to 09:33:00 already: an end at {end} adds nothing, and nothing is taken away') for o in r.said)
    assert len(r.store.daily(day)) == 3 and '2025-12-01 is recorded up to 09:33:00' in r.said[-1]


@pytest.mark.parametrize('spoilt,when', [(None, [(False, 120)]), ((b',data,', b',date,'), [(False, 120), (True, 181)]), ((b'data_type', b'date_type'), [(True, 181)])])
def test_what_is_on_record_is_taken_in_before_anything_is_connected(tmp_path, monkeypatch, spoilt, when):
    r = run(lived(tmp_path, '09:29:00', until=at('09:32:00')))
    if spoilt: (p := r.feed.log.file(day)).write_bytes(p.read_bytes().replace(*spoilt, 1))
    made = []
    class Seen(runner.FlowDay):
        def __init__(self, *a):
            super().__init__(*a)
            made.append((went[0].link.connected, self.stream.second - self.open_s))
    monkeypatch.setattr(runner, 'FlowDay', Seen)
    went = []
    async def note(r): went.append(r)
    r = run(lived(tmp_path, '09:33:00', until=at('09:34:00'), do=note))
    assert made == when   # what the feed set aside meanwhile was taken in again, without it
    live = r.flow.log.file(day).read_bytes()
    assert write_flow(r.store, day, sealed=False) and r.flow.log.file(day).read_bytes() == live and len(live.splitlines()) == 241


def test_after_a_sealed_session_comes_the_next(tmp_path, closed):
    closed(tmp_path)
    r = run(lived(tmp_path, '12:30:00', on=str(half), until=at('09:31:00')))
    assert 'sealed already: on to the next session' in r.said[0] and 'asleep until Mon 2025-12-01 09:20' in r.said[1]
    assert upto(r.feed.log.read(day), '09:31:00') == 60 and sealings(tmp_path) == 1


@pytest.mark.parametrize('faults', [Faults(), Faults(rights=dict(keepup='none')), Faults(rights=dict(level1='none', ticks='none', keepup='none')), story(('mute', '09:31:30', dict(for_s=400)), ('drop', '09:35:10', {})), story(('drop', '09:35:59', {}))])
def test_how_it_goes_is_said_once_a_minute_whatever_comes(tmp_path, faults):
    r = run(lived(tmp_path, '09:29:00', faults, until=at('09:40:00')))
    lines = [o for o in r.said if o[20:].startswith(('SPY ', 'no price of SPY'))]
    assert [o[11:16] for o in lines] == [f'09:{m}' for m in range(31, 41)] and all('seconds with data' in o and 'minutes in the day file' in o for o in lines)
    told = [o for o in r.said if 'until history is read after the close' in o]
    assert len(told) <= 1 and len(told) == (faults != Faults())


def test_the_requests_of_a_history_line_are_its_own(tmp_path):
    r = run(lived(tmp_path, '12:50:00', on=str(half), once=True))
    first, last = (int(o.split(' fetched in ')[1].split()[0]) for o in r.said if ' fetched in ' in o)
    assert last < 8 < r.link.requests and first + last < r.link.requests


def test_stopped_from_outside_it_ends_at_once_and_lets_go(tmp_path):
    async def go():
        async with living(tmp_path, '09:55:00') as r:
            await until(r.clock, '09:57:30')
            before = r.clock.monotonic()
            r.task.cancel()
            await asyncio.gather(r.task, return_exceptions=True)
            assert r.task.cancelled() and r.clock.monotonic() - before <= 1 and not r.link.connected
            with r.store.lock(): pass
            return r
    r = run(go())
    assert len(r.feed.log.read(day)) == r.feed.seconds.oldest - r.feed.open and not r.store.features.reason(day) and not r.store.original.reason(day)


def test_an_interrupt_from_the_keyboard(tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen([sys.executable, '-m', 'spyresearch.cli', 'live', '--no-options', '--days', '3', '--sessions', '10', '--speed', '20', '--asof', '2025-12-05T09:29', '--data', str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    for line in p.stdout:
        if 'link up' in line: break
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=20)
    assert p.returncode == 130 and 'Traceback' not in err, err
    with Store(tmp_path).lock(): pass


def test_a_second_runner_is_refused(tmp_path):
    async def go():
        async with living(tmp_path, '09:55:00') as r:
            await until(r.clock, '09:55:30')
            with pytest.raises(FolderError, match='in use by another run'): await Runner('127.0.0.1', r.srv.port, Store(tmp_path, 'simulated:demo'), r.clock).run()
            desk(tmp_path).write_text('where the first one speaks')
            with pytest.raises(FolderError, match='in use by another run'): await engine('127.0.0.1', r.srv.port, tmp_path, shows=True, say=lambda text: None)
            assert desk(tmp_path).read_text() == 'where the first one speaks'
    run(go())


def test_days_that_a_kill_left_open_are_sealed(tmp_path):
    async def go():
        async with living(tmp_path, '15:55:00', chain=True, tape=replace(demo(), drawn=True)) as r: await until(r.clock, '15:57:00')
    run(go())
    options = tmp_path/'original_data'/'chain'
    n = len((options/f'{day}.csv').read_text().splitlines()) - 1
    (options/'2025-11-28.csv').write_text('Datetime,nonsense\n')
    r = run(lived(tmp_path, '16:10:00', until=at('16:20:00')))
    assert any('was left open' in o for o in r.said) and len(read_chain_day(options, day)) == n > 100 and not (options/f'{day}.csv').exists()
    assert any('stay open' in o for o in r.said) and (options/'2025-11-28.csv').exists()
    seconds = DayLog(tmp_path/'original_data'/'seconds', COLUMNS, TEXT)
    assert seconds.days(sealed=True) == [day] and len(seconds.read(day)) == 23_400 and (seconds.read(day)['status'].iloc[-170:] == 'absent').all()


@pytest.mark.parametrize('error', [FolderError('cannot write', 'No space left on device', 'free some space'), ValueError('a bug in a feature')])
def test_a_day_file_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, error):
    async def break_(r):
        await until(r.clock, '09:57:30')
        def full(self): raise error
        monkeypatch.setattr(Today, 'write', full)
    with pytest.raises(type(error), match=str(error).split('\n')[0]): run(lived(tmp_path, '09:55:00', do=break_, until=at('10:30:00')))
    s = Store(tmp_path)
    assert not s.features.reason(day) and len(s.daily(day)) == 27


def test_a_full_disk_leaves_valid_files(tmp_path):
    async def fill(r):
        await until(r.clock, '09:57:30')
        size = r.feed.log.file(day).stat().st_size + 500
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        with pytest.raises(FolderError) as e: run(lived(tmp_path, '09:55:00', do=fill, until=at('10:30:00')))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert e.value.exit_code == 3
    r = run(lived(tmp_path, '09:59:00', until=at('10:00:00')))
    rows = r.feed.log.read(day)
    assert upto(rows, '10:00:00') == 1800 and rows.index.is_monotonic_increasing and len(r.store.daily(day)) >= 29


def test_a_replay_that_dies_is_an_error_and_not_a_silence(tmp_path):
    async def die(r):
        await until(r.clock, '09:57:00')
        r.srv.beat.cancel()
        for o in [*r.srv.connections]: o.send(None)
        await r.srv.control.stop()
    with pytest.raises(FeedError, match='is gone'): run(lived(tmp_path, '09:55:00', do=die))


# --- options beside it

@pytest.mark.parametrize('error,ends', [(ValueError('a bug'), False), (FolderError('cannot append', 'No space left', 'free some'), True)])
def test_options_that_fail_do_not_take_the_rest_with_them(tmp_path, monkeypatch, error, ends):
    n = []
    async def fail(self, until):
        n.append(self.link.clock.now())
        raise error
    monkeypatch.setattr(Chain, 'run', fail)
    go = lived(tmp_path, '09:55:00', chain=True, tape=replace(demo(), drawn=True), until=at('09:58:30'))
    if ends:
        with pytest.raises(FolderError): run(go)
        return
    r = run(go)
    assert len(n) == 4 and sum('options failed' in o for o in r.said) == 4 and (r.feed.log.read(day)['status'].iloc[1501:] == 'data').all()


# --- whose time

def test_a_replay_that_stands_still_is_refused():
    async def go():
        async with ReplayServer(demo(), at('10:00:00'), control=True) as srv: await clock_of('127.0.0.1', srv.port)
    with pytest.raises(UsageError, match='stands still'): run(go())


# --- a clock that is set

class Set:
    "A replay's clock as a machine would tell it that is set by some seconds, and set back."
    def __init__(self, clock, begin, end, by): self.clock, self.begin, self.end, self.by = clock, begin, end, timedelta(seconds=by)
    def __getattr__(self, name): return getattr(self.clock, name)
    def passed(self): return self.clock.monotonic()
    def now(self): return t + self.by if self.begin <= (t := self.clock.now()) < self.end else t


@pytest.mark.parametrize('by', [90, -90])
def test_a_clock_that_is_set_costs_no_second_and_no_trade(tmp_path, by):
    r = run(lived(tmp_path, '09:58:00', clocked=lambda c: SteadyClock(Set(c, at('10:02:20'), at('10:04:40'), by)), until=at('10:07:30')))
    rows, api = by_minute(r.feed.log.read(day)), demo().bars['TRADES', '1 min']
    heard = rows[rows['whole']]; assert len(heard) >= 8 and heard.index.strftime('%H:%M').tolist()[-8:] == [f'{o:%H:%M}' for o in pd.date_range('2025-12-05 09:59', periods=8, freq='min')]
    np.testing.assert_array_equal(heard['volume'], api['volume'].reindex(heard.index))
    told = [o for o in r.said if 'clock set' in o]
    assert len(told) == 1 and f"was set by {by:+.1f} s; TWS's time does not agree, and it does not count" in told[0]
    assert [o['state'] for o in r.feed.journal.read() if o['what'] == 'clock'] == ['set']


def test_a_clock_that_is_set_right_counts():
    "The machine was 90 s late, and TWS agrees with the correction."
    true = FixedClock(at('10:00:00')); late = SteadyClock(Set(true, at('09:00:00'), at('10:01:00'), -90)); said = []
    async def current_time(): return true.now()
    r = SimpleNamespace(clock=late, off=0., link=SimpleNamespace(current_time=current_time), feed=SimpleNamespace(told=lambda *o: said.append(o)))
    assert (true.now() - late.now()).total_seconds() == 90
    true.sleep(60); assert (true.now() - late.now()).total_seconds() == 90 and late.off == 90
    run(Runner.keep_time(r))
    assert true.now() == late.now() and said[0][:2] == ('clock', 'set') and 'agrees, and it counts' in said[0][2]
