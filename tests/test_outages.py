"""What happens to the machine and not to the market: it sleeps, its server is killed, its disk is full; after each, the record is whole and says what happened.

Elsewhere: the program killed (test_drill, test_week), the publisher (test_stream), the learner (test_learn); two programs on one folder, a full disk under the
record (test_runner, test_feed); a model that cannot be read or is too old (test_engine, test_week); options gone in mid-session (test_chain, test_runner); the
browser closed (test_screen)."""
import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import datetime

import pandas as pd

from spyresearch.core import SPEED, FolderError, RealClock
from spyresearch.daylog import DayLog
from spyresearch.journal import Journal
from spyresearch.live.engine import Engine
from spyresearch.live.invariants import by_minute
from spyresearch.models.targets import EVERY, FIRST
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.control import announced_control
from spyresearch.tws.minutes import Minute
from spyresearch.tws.replay import open_tape
from spyresearch.tws.seconds import COLUMNS, TEXT
from spyresearch.tws.source import Source, open_source

LAST = datetime(2025, 12, 5).date()


def rows_of(root, on): return DayLog(root/'original_data'/'seconds', COLUMNS, TEXT).read(on)


def is_true(rows, tape, on):
    "Each second has one row, a minute heard in full has history's volume, any other no more than it."
    assert rows.index.equals(pd.date_range(session(on).open, periods=len(rows), freq='s', name=rows.index.name))
    b = tape.bars['TRADES', '1 min']; m = by_minute(rows); due = b['volume'].reindex(m.index)
    assert (m['volume'] <= due + .5).all() and (abs(m['volume'] - due)[m['whole']] < .5).all(), m.assign(due=due)[(m['volume'] > due + .5) | m['whole']].to_string()


async def until_file(path, n, p, heard):
    "Wait until a file has so many lines and the last ones say something; the program must not end meanwhile."
    for _ in range(3000):
        if path.exists() and len(lines := path.read_bytes().splitlines()) >= n and any(heard in o for o in lines[-20:]): return
        assert p.poll() is None, p.communicate()
        await RealClock().asleep(.1)
    raise AssertionError(f'{path} has no {n} lines')


def wait(path, n, p, heard=b''): asyncio.run(until_file(path, n, p, heard))


def alive(root, port, *more): return subprocess.Popen([sys.executable, '-m', 'spyresearch.cli', 'live', '--tws', f'127.0.0.1:{port}', '--data', str(root), '--no-options', '--days', '3', '--once', *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **SPEED})


def test_a_full_disk_costs_a_minute_its_words_and_not_the_next_one(tmp_path, monkeypatch):
    e, opens = Engine(Store(tmp_path, 'simulated:demo'), LAST, RealClock()), int(session(LAST).open.timestamp()); e.left = ()
    def tick(i): return e.tick(i, {}, Minute(opens + 60*i, 600., 600.5, 599.5, 600.2, 1e5, None, None, True), [], 0.)
    def full(self, record): raise FolderError('cannot append', 'No space left on device', 'free some space')
    with monkeypatch.context() as m: m.setattr(Journal, 'append', full); lost = tick(FIRST)
    kept = tick(FIRST + EVERY)
    assert 'cannot append' in lost['error'] and 'error' not in kept and e.errors == 1
    assert [json.loads(o)['at'] for o in (tmp_path/'journal'/'ticks.jsonl').read_text().splitlines()] == [kept['at']]


def test_a_machine_that_sleeps_and_wakes(tmp_path):
    "Stopped for three seconds, a minute of the market's time, and sent on: what came meanwhile is late or lost, and said to be; the run goes on to its end."
    source = Source(sessions=10, asof='2025-12-05T09:29')
    with open_source(source, speed='20', from_open=True) as (host, port):
        p = alive(tmp_path, port, '--until', '09:35'); wait(tmp_path/'original_data'/'seconds'/'2025-12-05.csv', 60, p)
        p.send_signal(signal.SIGSTOP); asyncio.run(RealClock().asleep(3)); p.send_signal(signal.SIGCONT)
        out, err = p.communicate(timeout=240)
    assert p.returncode == 0, out + err
    rows = rows_of(tmp_path, LAST); is_true(rows, open_tape(days=10), LAST)
    said = [json.loads(o) for o in (tmp_path/'journal'/'feed.jsonl').read_text().splitlines()]
    assert len(rows) >= 299 and any(o['state'] == 'stale' or o['state'] == 'behind' and 'the machine slept' in o['reason'] for o in said), said # which of the two is noticed first depends on how busy the machine is


def test_a_server_that_is_killed_ends_the_run_and_the_next_one_goes_on(tmp_path):
    "The program says that its market is gone, with the exit status for that; a new one takes up the record."
    source = Source(sessions=10, asof='2025-12-05T09:29')
    def market(): return open_source(source, speed='20', from_open=True)
    with market() as (host, port):
        p = alive(tmp_path, port, '--until', '09:40'); wait(tmp_path/'original_data'/'seconds'/'2025-12-05.csv', 60, p)
        os.kill(announced_control(port)['pid'], signal.SIGKILL)
        out, err = p.communicate(timeout=120)
    n = len(rows_of(tmp_path, LAST))
    assert p.returncode == 4 and 'is gone' in err and 'Traceback' not in err and n >= 59, out + err
    with open_source(Source(sessions=10, asof='2025-12-05T09:34'), speed='20', from_open=True) as (host, port):
        p = alive(tmp_path, port); wait(tmp_path/'original_data'/'seconds'/'2025-12-05.csv', 300, p, heard=b',data,'); p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=120)
    rows = rows_of(tmp_path, LAST); is_true(rows, open_tape(days=10), LAST)
    assert p.returncode == 130 and (rows['status'].iloc[n + 1:235] == 'absent').all() and rows['status'].iloc[-20:].isin(('data', 'quiet')).any(), out + err
    said = [json.loads(o) for o in (tmp_path/'journal'/'feed.jsonl').read_text().splitlines()]
    assert any((o['what'], o['state']) == ('feed', 'absent') and 'before this start' in o['reason'] for o in said)
