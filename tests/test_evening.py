"""The evening's report: the end of a half day over a socket, the page that `spy live` has made of it, tickets, torn journals, reports that fail."""
import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest

from live import at
from spyresearch import evening
from spyresearch.core import DataError, FixedClock, RealClock, parse_asof
from spyresearch.live.engine import of_day
from spyresearch.live.review import evening_of, issued, touches
from spyresearch.live.runner import Runner, go
from spyresearch.store import Store
from spyresearch.trade.tickets import Outcome, Ticket, content_id, row
from spyresearch.trade.track import book
from spyresearch.tws.replay import ReplayServer, listing_of, open_tape
from test_engine import champion, fetch, run

DAY, BEFORE = date(2025, 11, 28), '2025-11-26' # the demo's half day
SPY = [sys.executable, '-m', 'spyresearch.cli']


def spy(*args): return subprocess.run([*SPY, *map(str, args)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def told(tmp_path_factory):
    "The last twenty minutes of a half day, to its seal and its report, which a program of its own makes."
    top, tape, said = tmp_path_factory.mktemp('evening'), open_tape(days=95), []
    root, reports = top/'data', top/'reports'
    async def live():
        store = await fetch(tape, root, at('16:30:00', BEFORE), 88); champion(store)
        async with ReplayServer(tape, at('12:40:00', str(DAY)), 'max', control=True) as srv:
            srv.listing = listing_of(srv)
            return await go('127.0.0.1', srv.port, root, days=88, options=False, once=True, say=said.append, report=lambda day: [*SPY, 'evening', '--data', root, '--reports', reports, '--day', day])
    run(live())
    page = re.search(r'report: (\S+)', '\n'.join(said))
    return SimpleNamespace(root=root, reports=reports, said=said, page=page and open(page[1], encoding='utf8').read(), folder=page and page[1].rpartition('/')[0])


def rows_of(told, name, key): return of_day(told.root/'journal'/f'{name}.jsonl', DAY, key)


def test_the_report_is_made_when_the_day_is_sealed(told):
    assert told.page, '\n'.join(told.said)
    sealed = next(i for i, o in enumerate(told.said) if 'the day is sealed' in o)
    assert any('report: ' in o for o in told.said[sealed + 1:]) and not any('no report' in o for o in told.said)
    assert json.loads(open(f'{told.folder}/manifest.json').read())['status'] == 'done'


def test_its_numbers_are_those_of_the_records(told):
    n = json.loads(open(f'{told.folder}/evening.json').read())
    said = [w for t in rows_of(told, 'ticks', 'at') for w in t.get('said', ())]
    assert (n['day'], n['provenance'], n['tickets']) == (str(DAY), 'simulated:demo', 0)
    assert n['forecasts'] == len(rows_of(told, 'forecasts', 'origin')) > 10 and n['minutes'] == len(rows_of(told, 'ticks', 'at')) and n['of'] == 210
    assert n['decisions'] == len(said) > 3 and n['silences'] == Counter(r for w in said for r in w['reasons'])
    assert sum(n['seconds'].values()) == 210*60 and n['seconds']['absent'] >= 180*60 and n['differences']['price_differs'] == 0
    assert n['certificate'] == dict(ok=True, differences=0, forecasts=n['forecasts'], words=n['certificate']['words'])
    assert n['horizons']['5']['n'] > 5 and n['horizons']['60']['n'] == 0


def test_a_page_of_a_day_without_a_ticket_is_whole(told):
    page = told.page
    for o in ('<h1>No ticket</h1>', '没有交易建议', 'Market known up to Fri 28 Nov 2025 13:00', 'reason for silence', 'Certificate passed', 'minutes compared with history', 'seconds not heard in full', 'What was declared, and what came', 'Bar to ticket'): assert o in page, o
    assert page.count('SIMULATED') >= 2 and page.count('<svg') == 2 and not re.search(r'<script|<link|<img|(src|href)="(?!#)', page)
    assert str(told.root.parent) not in page and '>nan<' not in page.lower() and 'None</t' not in page


def test_what_a_crash_left_half_written_counts_for_nothing(told, tmp_path):
    shutil.copytree(told.root, tmp_path/'data'); store = Store(tmp_path/'data'); e = evening_of(store, DAY)
    for name, text in dict(ticks='{"at": "2025-11-28T13:01', forecasts='{"id": "F0", "origin": "2025-11-28T12:59:00-05:00", "touch": {}', feed='{"at": "2025-11-28T18', learning='{"at"').items():
        with open(store.journal/f'{name}.jsonl', 'a') as f: f.write(text)
    again = evening_of(store, DAY)
    assert (len(again.ticks), len(again.rows), len(again.states)) == (len(e.ticks), len(e.rows), len(e.states))
    assert evening.numbers(again) == evening.numbers(e)


def test_touches_are_counted_as_they_came(told):
    "Every answer by a slow second way: look at each bar after the forecast."
    e = evening_of(Store(told.root), DAY); want = {}
    p = e.panel; last = p.n[-1] - 1
    for k in e.today:
        o, m = e.rows[k], int(e.minute[k])
        for c, limit in enumerate((o['touch'] or {}).get('minutes', ())): # the last bar has nothing left to touch
            for r, far in enumerate(o['touch']['distances']):
                end = min(m + limit, last); first = next(('down' if p.low[-1, i] <= o['px'] - far else 'up' for i in range(m + 1, end + 1) if p.high[-1, i] >= o['px'] + far or p.low[-1, i] <= o['px'] - far), '')
                want.setdefault(limit if limit in (5, 15, 30, 60) else 0, []).append((o['touch']['up'][r][c], first == 'up', o['touch']['down'][r][c], first == 'down'))
    got = touches(e)
    assert {k: len(v) for k, v in want.items()} == got['n'].to_dict()
    for k, v in want.items(): np.testing.assert_allclose(got.loc[k, ['up', 'up_came', 'down', 'down_came']].to_numpy(float), np.mean(v, 0))


def test_a_ticket_is_followed_to_its_end(told, tmp_path):
    "A ticket of the evening before, which the half day fills and its time stop ends."
    shutil.copytree(told.root, tmp_path/'data'); store = Store(tmp_path/'data')
    t = Ticket(kind='swing', side='buy', provenance='simulated:demo', model='m', status='armed', declared_p=.9, issued_at=at('16:00:00', BEFORE), valid_from=at('09:31:00', str(DAY)), valid_until=at('10:00:00', str(DAY)), entry_from=at('09:31:00', str(DAY)), entry_until=at('10:00:00', str(DAY)),
        entry_px_low=1., entry_px_high=10_000., exit_from=at('12:50:00', str(DAY)), exit_until=at('12:59:00', str(DAY)), target_px=9_999., stop_px=1.)
    t = Ticket(**{**vars(t), 'id': content_id(t)}); book(store.journal).append(row(t))
    e = evening_of(store, DAY); [(_, o)] = e.pairs; page = evening.tickets(e)
    assert (o.status, f'{o.entry_at:%H:%M}', f'{o.exit_at:%H:%M}') == ('timed_out', '09:31', '12:50') and not issued(e)
    assert t.id in page and 'at the time stop' in page and f'{o.net_usd:+.2f}'.replace('-', '−') in page and '1 of earlier days ended today or are open' in page
    assert evening.numbers(e)['net_usd'] == pytest.approx(o.net_usd) and f'{t.id[:4]} bought' in evening.chart(e)
    mine = evening_of(store, DAY); mine.pairs[:] = [(Ticket(**{**vars(t), 'issued_at': at('10:00:00', str(DAY))}), Outcome('armed'))]
    assert evening.headline(evening.numbers(mine)) == '1 ticket' and evening.headline(evening.numbers(e)) == f'No ticket; exits {o.net_usd:+,.2f} USD' and '1 ticket issued.' in evening.tickets(mine)


# --- nothing to report

def test_a_day_that_no_engine_saw_is_refused(told, tmp_path):
    for args, words in ((['--data', told.root, '--day', BEFORE], f'no engine has put {BEFORE} on record'), (['--data', tmp_path], 'no engine has put a day on record')):
        done = spy('evening', *args)
        assert done.returncode == 3 and words in done.stderr and len(done.stderr.strip().splitlines()) == 3, done.stderr
    done = spy('evening', '--data', told.root, '--day', 'today')
    assert done.returncode == 2 and 'is not a date' in done.stderr


def test_a_day_whose_bars_are_gone_is_refused(told, tmp_path):
    shutil.copytree(told.root, tmp_path/'data')
    for name in ('original_data', 'daily_data'): (tmp_path/'data'/name/f'{DAY}.csv').unlink()
    with pytest.raises(DataError, match=f'no bar of {DAY}'): evening_of(Store(tmp_path/'data'), DAY)


def runner(folder, *command):
    said = []; r = Runner('127.0.0.1', 1, Store(folder, 'simulated:demo'), FixedClock(parse_asof('2025-11-28T13:01')), say=said.append, report=lambda day: [*command, day])
    r.said = said; return r


def test_a_report_that_fails_stops_nothing(tmp_path):
    for command, words in (((sys.executable, '-c', 'raise SystemExit("the disk is full")'), 'the disk is full'), (('no such program',), 'No such file'), ((sys.executable, '-c', 'raise SystemExit(7)'), 'it ended with 7')):
        r = runner(tmp_path, *command); run(r.reported(DAY))
        assert len(r.said) == 1 and f'no report of {DAY}' in r.said[0] and words in r.said[0] and f'spy evening --day {DAY}' in r.said[0]


def test_a_run_that_is_ended_ends_its_report(tmp_path):
    r = runner(tmp_path, sys.executable, '-c', f'import pathlib, time; pathlib.Path({str(tmp_path/"up")!r}).touch(); time.sleep(600)')
    async def ended():
        task = asyncio.ensure_future(r.reported(DAY))
        while not (tmp_path/'up').exists(): await RealClock().asleep(.05)
        task.cancel(); await asyncio.wait([task])
        return task.cancelled()
    assert run(ended()) and not r.said
