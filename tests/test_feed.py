"""A session as it happens, through whatever TWS says or leaves unsaid: every second accounted for, nothing made up."""
import asyncio
import gc
import resource
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest

from feeding import Fed, Faults, KEPT, LOST, demo, feeding, half, part, say, story, whole
from feeding import replay as serve
from live import at, run
from spyresearch.core import ET, DataError, FolderError
from spyresearch.daylog import second_stamp
from spyresearch.tws import messages as msg
from spyresearch.tws import streams, wire
from spyresearch.tws.replay import open_tape
from spyresearch.tws.seconds import LEVELS, records

A, B = '09:29:50', '09:34:00'
BOOK = LEVELS + ['venue']
TRADED = ['open', 'high', 'low', 'close', 'volume', 'trades']


def truth(a, b, tape=None):
    "Trades of [a, b) as the tape has them: time, price, size."
    t = (tape or demo()).ticks[at(a).date()].trades
    lo, hi = np.searchsorted(t.t, [int(at(o).timestamp())*10**9 for o in (a, b)])
    return pd.DataFrame(dict(second=t.t[lo:hi]//10**9, px=t.px[lo:hi], size=t.size[lo:hi]))


def check_trades(rows, prices):
    "Seconds with data hold the tape's trades; by price, they add up to the seconds."
    sums = prices.groupby(level=0)[['buy_volume', 'sell_volume', 'unknown_volume']].sum().sum(axis=1)
    assert np.allclose(sums, rows['volume'][rows['volume'] > 0]) and (sums.index == rows.index[rows['volume'] > 0]).all()


# --- every second

def test_a_morning_equals_the_tape(tmp_path):
    fed = run(feeding(tmp_path, A, B))
    rows = whole(fed, '09:30:00', B)
    t = truth('09:30:00', B).groupby('second')
    want = t['px'].agg(['first', 'max', 'min', 'last']).assign(volume=t['size'].sum(), n=t.size())
    got = rows[rows['trades'] > 0]
    assert (got.index.as_unit('s').asi8 == want.index).all() and np.array_equal(got[TRADED], want)
    assert set(rows['status']) == {'data'} and set(rows['trades_from']) == {'tbt'} and rows[LEVELS].notna().all().all() and set(rows['venue']) == {'ARCA'} and set(rows['data_type']) == {1}
    check_trades(rows, fed.trades)
    assert [o.second for o in fed.heard['secondEvent']] == rows.index.as_unit('s').asi8.tolist() and sum(o.second < at(B).timestamp() for o in fed.heard['tradeEvent']) == len(truth('09:30:00', B))
    assert records(rows, fed.trades) == fed.heard['secondEvent'] and len(fed.heard['bookEvent']) in (240, 241) and fed.heard['quoteEvent']


def test_what_happened_is_in_the_rows_and_in_the_journal(tmp_path):
    fed = run(feeding(tmp_path, A, '09:38:00', story(('drop', '09:31:10', {}), ('down', '09:32:00', dict(for_s=70)), say('09:35:00', *LOST), ('mute', '09:35:00', dict(for_s=15)), say('09:35:15', *KEPT),
                                                      ('mute', '09:36:00', dict(on='depth', for_s=30)), ('torn', '09:37:30', {}))))
    rows = whole(fed, '09:30:00', '09:38:00')
    n = Counter(rows['status'])
    assert 80 < n['down'] < 140 and not n['absent'] and (part(rows, '09:32:01', '09:33:00')['status'] == 'down').all() and (part(rows, '09:35:02', '09:35:14')['status'] == 'down').all()
    assert rows[rows['status'] == 'down'][TRADED + ['bid', 'ask'] + LEVELS].isna().all().all()
    check_trades(rows, fed.trades)
    sound = rows[(rows['status'] == 'data') & (rows['trades'] > 0)]
    t = truth('09:30:00', '09:38:00').groupby('second')
    want = t['px'].agg(['first', 'max', 'min', 'last']).assign(volume=t['size'].sum(), n=t.size()).loc[sound.index.as_unit('s').asi8]
    assert np.array_equal(sound[TRADED], want) and len(sound) > 250
    said = fed.feed.journal.read()
    assert {('link', 'down'), ('link', 'lost'), ('depth', 'stale'), ('level1', 'lost')} <= {(o['what'], o['state']) for o in said} and all(o['reason'] for o in said if o['state'] != 'up')
    assert fed.feed.report()['drops'] == 3 and len(part(rows, '09:36:25', '09:36:30')[LEVELS].dropna()) == 0


def test_minutes_that_a_drop_left_out_come_from_history(tmp_path):
    fed = run(feeding(tmp_path, A, '09:40:00', story(('down', '09:32:10', dict(for_s=200)))))
    api = demo().bars['TRADES', '1 min']
    raw = fed.feed.store.raw(fed.day)
    assert len(raw) == 9 and np.array_equal(raw.iloc[:, :7], api[api.index.date == fed.day].iloc[:9])
    assert {i: m.provisional for i, m in fed.minutes.items()} == {i: i == 9 for i in range(10)}
    first = {i: next(m for m in fed.heard['minuteEvent'] if (m.start - fed.feed.open)//60 == i).provisional for i in range(10)}
    assert [i for i, p in first.items() if not p] == [2, 3, 4, 5, 6]      # the minutes that were not told in full
    assert raw.iloc[:, 7:].notna().all().all()      # spread and volatility too


def test_a_feed_goes_on_after_a_stop(tmp_path):
    one = run(feeding(tmp_path, A, '09:32:00'))
    n = len(one.rows)
    before = one.feed.log.file(one.day).read_bytes(), one.feed.prices.file(one.day).read_bytes(), one.feed.store.raw(one.day)
    two = run(feeding(tmp_path, '09:33:30.5', '09:36:00'))
    rows = whole(two, '09:30:00', '09:36:00')
    assert set(rows['status'].iloc[n:211]) == {'absent'} and (rows['status'].iloc[211:] == 'data').all() and two.said('feed', 'absent') == [f'{211 - n} seconds before this start are not known']
    assert two.feed.log.file(two.day).read_bytes().startswith(before[0]) and two.feed.prices.file(two.day).read_bytes().startswith(before[1])
    check_trades(rows, two.trades)
    assert len(two.feed.store.raw(two.day)) == 5
    starts = sorted((k - two.feed.open)//60 for k in two.feed.own)
    assert starts == [0, 1, 4, 5] and all(two.feed.own[k] == m for k, m in one.feed.own.items())   # those of the first start count at the close too


def test_a_start_in_the_middle(tmp_path):
    fed = run(feeding(tmp_path, '10:00:00.25', '10:02:00'))
    rows = whole(fed, '09:30:00', '10:02:00')
    assert (rows['status'].iloc[:1801] == 'absent').all() and (rows['status'].iloc[1801:] == 'data').all() and fed.feed.units['level1'].unit == 100
    assert sorted(fed.minutes) == [*range(32)] and len(fed.feed.store.raw(fed.day)) == 31


def test_a_start_after_the_close_leaves_a_whole_file_at_once(tmp_path):
    fed = run(feeding(tmp_path, '16:20:00', '16:30:00', ends=dict))
    assert set(whole(fed, '09:30:00', '16:00:00')['status']) == {'absent'} and fed.end['minutes_api'] in (0, 390)
    fed.feed.seal()
    assert fed.feed.log.days(sealed=True) == [fed.day]


def test_a_half_day_ends_at_one(tmp_path):
    fed = run(feeding(tmp_path, '12:57:30', '13:05:00', ends=dict, on=str(half)))
    rows = whole(fed, '09:30:00', '13:00:00')
    assert Counter(rows['status']) == dict(absent=207*60 + 30, data=150) and len(fed.feed.minutes.final) == 210 and fed.end['minutes_own'] == 2
    assert fed.feed.seal()['price_differs'] == 0 and fed.feed.log.days(sealed=True) == [half] == fed.feed.prices.days(sealed=True)
    assert fed.feed.journal.read()[-1]['differences']['minutes'] == 2


def test_a_torn_line_is_cut_and_told(tmp_path):
    one = run(feeding(tmp_path, A, '09:31:00'))
    for log, text in ((one.feed.log, b'2025-12-01T09:31:01-05:00,600.1,60'), (one.feed.prices, b'2025-12-01T09:31:01-05:00,600.01,1,100,0,0,0,0\n2025-12')):
        with open(log.file(one.day), 'ab') as f: f.write(text)
    two = run(feeding(tmp_path, '09:32:00', '09:33:00'))
    rows = whole(two, '09:30:00', '09:33:00')
    check_trades(rows, two.trades)
    assert [o[:8] for o in two.said('feed', 'torn')] == ['seconds:', 'trades: '] and (part(rows, '09:31:02', '09:32:00')['status'] == 'absent').all()
    assert sum(o['state'] == 'torn' for o in two.feed.journal.read()) == 2


def test_a_file_that_is_not_ours_is_set_aside_and_told(tmp_path):
    one = run(feeding(tmp_path, A, '09:31:00'))
    path, trades = one.feed.log.file(one.day), one.feed.prices.file(one.day).read_bytes()
    path.write_bytes(foreign := path.read_bytes().replace(b'Datetime,open', b'Datetime,first'))
    two = run(feeding(tmp_path, '09:32:00', '09:33:00'))
    rows = whole(two, '09:30:00', '09:33:00')
    kept = {o.read_bytes() for o in two.feed.store.quarantined.iterdir()}
    assert {foreign, trades} <= kept and (part(rows, '09:30:00', '09:32:00')['status'] == 'absent').all() and len(two.said('feed', 'set aside')) == 2 and 'first' in two.said('feed', 'set aside')[0]
    check_trades(rows, two.trades)


def test_seconds_of_another_source_are_refused_and_stay(tmp_path):
    one = run(feeding(tmp_path, A, '09:30:30'))
    kept = one.feed.log.file(one.day).read_bytes()

    async def other():
        async with serve('09:32:00') as (srv, clock, link):
            fed = Fed(srv, clock, link, tmp_path/'other')
            fed.feed.log.path.parent.mkdir(parents=True)
            for name in ('seconds', 'seconds.manifest.json'):
                if (p := one.feed.log.path.parent/name).exists(): p.rename(fed.feed.log.path.parent/name)
            fed = Fed(srv, clock, link, tmp_path/'other')
            fed.feed.store.provenance = 'tws'
            with pytest.raises(DataError, match='holds data from simulated:demo'): await fed.feed.run(fed.day)
            return fed
    fed = run(other())
    assert fed.feed.log.file(fed.day).read_bytes() == kept


def edited(one, old, new):
    path = one.feed.log.file(one.day)
    path.write_text(text := '\n'.join(new(o.split(',')) if o.startswith(old) else o for o in path.read_text().splitlines() if new or not o.startswith(old)) + '\n')
    return text.encode()


@pytest.mark.parametrize('new,why', [(None, 'is not there'), (lambda c: ','.join([c[0], '900', *c[2:]]), 'contradicts itself'), (lambda c: ','.join(c[:19] + ['fine'] + c[20:]), 'contradicts itself')])
def test_seconds_that_somebody_edited_are_set_aside(tmp_path, new, why):
    one = run(feeding(tmp_path, A, '09:31:00'))
    changed = edited(one, '2025-12-01T09:30:20', new)
    two = run(feeding(tmp_path, '09:32:00', '09:33:00'))
    assert changed in {o.read_bytes() for o in two.feed.store.quarantined.iterdir()} and any(why in o for o in two.said('feed', 'set aside'))
    rows = whole(two, '09:30:00', '09:33:00')
    check_trades(rows, two.trades)


def test_trades_by_price_that_are_gone_or_edited_are_told_and_the_seconds_stay(tmp_path):
    one = run(feeding(tmp_path, A, '09:31:00'))
    path, seconds = one.feed.prices.file(one.day), one.feed.log.file(one.day).read_bytes()
    lines = path.read_text().splitlines()
    path.write_text(text := '\n'.join(lines[:20] + lines[21:]) + '\n')
    two = run(feeding(tmp_path, '09:32:00', '09:33:00'))
    assert any('other trades than their rows say' in o for o in two.said('feed', 'set aside')) and text.encode() in {o.read_bytes() for o in two.feed.store.quarantined.iterdir()}
    assert two.feed.log.file(two.day).read_bytes().startswith(seconds) and two.trades.index.min() >= at('09:32:00')
    path.unlink()
    three = run(feeding(tmp_path, '09:34:00', '09:35:00'))
    assert len(three.said('feed', 'lost')) == 1 and not three.said('feed', 'set aside') and three.trades.index.min() >= at('09:34:00')


def test_a_sealed_day_is_sealed_once_and_counts_all_its_starts(tmp_path):
    run(feeding(tmp_path, A, '09:31:00'))
    two = run(feeding(tmp_path, '15:58:00', '16:00:20', ends=dict))
    two.feed.seal()
    n = len(two.feed.journal.read())
    assert two.feed.journal.read()[-1]['seconds'] == dict(Counter(two.rows['status'])) and two.rows['status'].value_counts()['data'] > 170
    two.feed.seal()
    assert len(two.feed.journal.read()) == n


# --- held up on the way

@pytest.mark.parametrize('s', [3, 12])
def test_a_line_that_is_held_up_makes_no_false_claim(tmp_path, s):
    fed = run(feeding(tmp_path, A, '09:33:00', story(('freeze', '09:31:10.4', dict(for_s=s)))))
    rows = whole(fed, '09:30:00', '09:33:00')
    t = truth('09:30:00', '09:33:00').groupby('second')['size'].sum().reindex(rows.index.as_unit('s').asi8).fillna(0)
    sure = (rows['status'] == 'data').to_numpy()
    assert np.array_equal(rows['volume'][sure], t[sure]) and sure.sum() > 150
    late = fed.feed.late.read(fed.day) if fed.feed.late.file(fed.day).exists() else pd.DataFrame(dict(size=[]))
    assert rows['volume'].sum() + late['size'].sum() == t.sum() or s > 5   # what is buffered beyond a socket's size is dropped with its connection


@pytest.mark.parametrize('name,partial', [('level1', 0), ('silent', 2)]) # one that speaks at once, one that does not
def test_the_first_seconds_of_a_stream_are_told_in_part(tmp_path, name, partial):
    async def asked_again(fed):
        await fed.until('10:00:05')
        fed.feed.warming[name] = fed.clock.now().timestamp()
    fed = run(feeding(tmp_path, '10:00:00.2', '10:00:20', do=asked_again))
    status = part(fed.rows, '10:00:01', '10:00:20')['status'].tolist()
    assert [i + 1 for i, o in enumerate(status) if o == 'partial'] == [5, 6][:partial] and set(status) <= {'data', 'partial'}


def test_another_login_ends_the_feed_and_keeps_the_record(tmp_path):
    async def other(fed):
        await fed.until('09:30:20')
        fed.feed.store.provenance = 'tws'
        await fed.until('09:31:00')
    fed = run(feeding(tmp_path, A, '09:33:00', story(('drop', '09:30:30', {})), other, ends=DataError))
    assert 'gives data of' in fed.end.what and 'not tws' in fed.end.what and len(fed.rows) >= 30


def test_trades_and_quotes_reach_queues_as_they_reach_events(tmp_path):
    async def listen(fed):
        fed.ear = None
        await fed.until('09:29:55')
        fed.ear = fed.feed.audience.listen('trade', 'quote', size=100_000, past=False)
    fed = run(feeding(tmp_path, A, '09:30:30', do=listen))
    fed.ear.end()
    got = list(fed.ear.queue)
    assert [b for k, b in got if k == 'trade'] == fed.heard['tradeEvent'] and [b for k, b in got if k == 'quote'] == fed.heard['quoteEvent'][-sum(k == 'quote' for k, _ in got):] and len(got) > 100


# --- who tells of trades

@pytest.mark.parametrize('unit', [100, 1])
def test_without_single_trades_level_1_tells_of_them(tmp_path, unit):
    fed = run(feeding(tmp_path, A, '09:38:00', Faults(rights=dict(ticks='none')), unit=unit))
    rows = whole(fed, '09:30:00', '09:38:00')
    assert set(rows['trades_from']) == {'px', 'l1'} and fed.feed.units['level1'].unit == unit == fed.feed.record.unit and rows['trades_from'].iloc[0] == 'px'
    first = rows[rows['trades_from'] == 'px']
    assert first['volume'].isna().all() and first['trades'].isna().all() and first['open'].notna().sum() > 60 and rows['volume'][rows['trades_from'] == 'l1'].notna().sum() > 200
    per_minute = part(rows, '09:35:00', '09:38:00')['volume'].resample('1min').sum()
    assert per_minute.sum() == pytest.approx(truth('09:35:00', '09:38:00')['size'].sum(), abs=2*unit)
    assert fed.states.count(('ticks', 'denied')) == 1 and len(fed.feed.own) == 4 and len(fed.said('ticks', 'by level 1')) == 2


def test_a_unit_is_known_the_next_morning_and_measured_again(tmp_path):
    run(feeding(tmp_path, A, '09:34:00', Faults(rights=dict(ticks='none')), on=str(half)))
    fed = run(feeding(tmp_path, A, '09:34:00', Faults(rights=dict(ticks='none'))))
    rows = whole(fed, '09:30:00', '09:34:00')
    assert set(rows['trades_from']) == {'l1'} and rows['volume'].notna().sum() > 200 and fed.feed.units['level1'].sure


def test_a_unit_that_has_changed_stops_and_its_volumes_are_set_aside(tmp_path):
    run(feeding(tmp_path, A, '09:34:00', Faults(rights=dict(ticks='none')), on=str(half)))
    one = run(feeding(tmp_path, A, '09:36:00', Faults(rights=dict(ticks='none')), unit=1, ends=DataError))
    assert 'units of 1 now' in one.end.what and one.feed.record.unit is None
    wrong = one.feed.log.file(one.day).read_bytes()
    two = run(feeding(tmp_path, '09:37:00', '09:38:00', Faults(rights=dict(ticks='none')), unit=1))
    assert wrong in {o.read_bytes() for o in two.feed.store.quarantined.iterdir()} and any('units of 1' in o for o in two.said('feed', 'set aside'))
    assert (part(whole(two, '09:30:00', '09:38:00'), '09:30:00', '09:37:00')['status'] == 'absent').all()


def test_granted_later_single_trades_take_over_at_their_first(tmp_path):
    async def granted(fed):
        await fed.until('09:40:00')
        fed.srv.faults = Faults()
    fed = run(feeding(tmp_path, A, '09:46:00', Faults(rights=dict(ticks='none')), granted))
    rows = whole(fed, '09:30:00', '09:46:00')
    assert set(part(rows, '09:34:00', '09:44:40')['trades_from']) == {'l1'} and set(part(rows, '09:45:00', '09:46:00')['trades_from']) == {'tbt'}
    assert (part(rows, '09:45:00', '09:46:00')['status'] == 'data').all()


@pytest.mark.parametrize('faults', [{}, dict(rights=dict(ticks='none'))])
def test_a_unit_that_cannot_be_explained_stops_with_its_ratios(tmp_path, faults):
    fed = run(feeding(tmp_path, A, '09:45:00', Faults(**faults), unit=7, ends=DataError))
    assert 'unknown unit' in fed.end.what and '7' in fed.end.why and 'lots' in fed.end.todo and fed.clock.now() < at('09:40:00')
    assert set(fed.rows['trades_from']) <= {'tbt', 'px'} and (not faults or fed.rows['volume'].isna().all())


def test_trades_in_lots_stop_with_the_remedy(tmp_path, monkeypatch):
    real = msg.tbt_last
    monkeypatch.setattr(streams.say, 'tbt_last', lambda i, k, t, px, size, *a: real(i, k, t, px, size/100, *a))
    fed = run(feeding(tmp_path, A, '09:45:00', ends=DataError))
    assert 'in lots' in fed.end.what and 'Send market data in lots' in fed.end.todo and fed.clock.now() < at('09:33:30')


def test_delayed_data_say_so_in_every_row_and_make_no_bar(tmp_path):
    fed = run(feeding(tmp_path, '09:50:00', '09:55:00', Faults(rights=dict(level1='delayed', ticks='none', depth='none'))))
    rows = part(whole(fed, '09:30:00', '09:55:00'), '09:50:05', '09:55:00')
    assert set(rows['data_type']) == {3} and fed.states.count(('level1', 'denied')) == fed.states.count(('level1', 'delayed')) == 1 and '3' in fed.said('level1', 'delayed')[0]
    assert fed.srv.counts['MarketData'] == 2 and fed.feed.units['level1'].unit is None
    assert all(not m.provisional for m in fed.heard['minuteEvent']) and fed.feed.own == {}


def test_level_1_alone_knows_of_trades_that_nobody_told(tmp_path):
    fed = run(feeding(tmp_path, A, B, story(('mute', '09:31:00', dict(on='ticks', for_s=60)))))
    rows = whole(fed, '09:30:00', B)
    muted = part(rows, '09:31:01', '09:31:29')
    seen = set(truth('09:31:01', '09:31:29')['second'])
    traded = muted.index.as_unit('s').asi8
    assert (muted['status'][[o in seen for o in traded]] == 'partial').all() and muted['volume'][muted['status'] == 'partial'].isna().all() and (muted['status'] == 'partial').sum() > 10
    assert ('ticks', 'stale') in fed.states and fed.feed.seconds.faults['missed_trade'] > 10 and 1 not in {i for i, m in fed.minutes.items() if m.provisional}
    check_trades(rows, fed.trades)


def test_single_trades_are_asked_for_once_in_fifteen_seconds(tmp_path):
    fed = run(feeding(tmp_path, A, '09:34:30', story(('mute', '09:31:00', dict(on='ticks', for_s=90)), *(('drop', f'09:33:{s:02}', {}) for s in (0, 5, 11, 20)))))
    times = [o.at for o in fed.srv.requests if type(o.request).__name__ == 'TickByTick']
    assert len(times) > 4 and min((b - a).total_seconds() for a, b in zip(times, times[1:])) >= 14 and (part(fed.rows, '09:34:20', '09:34:30')['status'] == 'data').all()
    muted = part(fed.rows, '09:31:35', '09:32:29')
    assert set(muted['trades_from']) == {''} and muted['volume'].isna().all()


def test_all_is_silent_first_quiet_then_down(tmp_path):
    fed = run(feeding(tmp_path, A, '09:34:30', story(('mute', '09:31:00', dict(for_s=120)))))
    rows = whole(fed, '09:30:00', '09:34:30')
    assert list(dict.fromkeys(part(rows, '09:31:01', '09:31:17')['status'])) == ['quiet', 'down'] and (part(rows, '09:31:01', '09:31:15')['status'] == 'quiet').all()
    silent = part(rows, '09:31:01', '09:32:59')
    assert (silent['status'].iloc[17:] == 'down').all() and silent[TRADED + ['bid', 'ask', 'spread'] + LEVELS].isna().all().all() and (part(rows, '09:34:05', '09:34:30')['status'] == 'data').all()


# --- the book

def flood(*ops): return lambda i: b''.join(msg.depth(i, *o) for o in ops)


def test_a_book_that_stays_crossed_is_not_written_and_asked_for_again(tmp_path, monkeypatch):
    real, lift = msg.depth, [0.]
    monkeypatch.setattr(streams.say, 'depth', lambda i, position, op, side, px, size: real(i, position, op, side, px + side*lift[0], size))
    async def turn(fed):
        await fed.until('09:31:00')
        lift[0] = 5.
        await fed.until('09:31:40')
        lift[0] = 0.
    fed = run(feeding(tmp_path, A, B, do=turn))
    rows = whole(fed, '09:30:00', B)
    assert part(rows, '09:31:03', '09:31:40')[LEVELS].isna().all().all() and part(rows, '09:32:00', B)[LEVELS].notna().all().all() and (rows['status'] == 'data').all()
    assert any('crossed for 10' in o for o in fed.said('depth', 'stale')) and 2 <= fed.srv.counts['Depth'] <= 6 and fed.feed.book.counts['crossed'] > 1
    assert [o.why for o in fed.heard['bookEvent'] if not o.valid]


def test_a_book_never_stands_in_the_rows_while_it_cannot_be_true(tmp_path):
    bad = (flood((0, 0, 1, 9999., 100)), flood((3, 7, 1, 600., 100), (99, 2, 0, 0., 0), (-1, 0, 0, 600., 1), (25, 1, 0, 600., 100), (0, 0, 5, 1., 1)),
           flood((0, 1, 0, -1., 100), (0, 1, 1, float('nan'), 100), (1, 1, 1, 0., -1)))

    async def spoil(fed):
        for m, what in enumerate(bad):
            await fed.until(f'09:3{m + 1}:00')
            for _ in range(14):
                if fed.srv.live('depth'): fed.send('depth', what)
                await fed.clock.asleep(1)
    fed = run(feeding(tmp_path, A, '09:35:00', story(('reset', '09:34:10', {})), do=spoil))
    rows = whole(fed, '09:30:00', '09:35:00')
    there = rows.dropna(subset=['bid_px_0', 'ask_px_0'])
    assert (there['bid_px_0'] < there['ask_px_0']).all() and all((there[f'bid_px_{i}'] > there[f'bid_px_{i + 1}']).all() and (there[f'ask_px_{i}'] < there[f'ask_px_{i + 1}']).all() for i in range(9))
    assert 20 < len(rows) - len(there) < 60 and part(rows, '09:34:20', '09:35:00')[LEVELS].notna().all().all() and (rows['status'] == 'data').all()
    c = fed.feed.book.counts
    assert c['bad operation'] >= 20 and c['bad value'] > 0 and c['beyond'] > 0 and c['reset'] > 1 and ('depth', 'reset') in fed.states, c


# --- a halt

def test_a_halt_is_in_the_rows_and_silence_in_it_is_no_death(tmp_path):
    fed = run(feeding(tmp_path, A, '09:38:00', story(('halt', '09:31:00', dict(for_s=200)))))
    rows = whole(fed, '09:30:00', '09:38:00')
    halted = part(rows, '09:31:02', '09:34:18')
    assert (halted['halted'] == 1).all() and (part(rows, '09:34:25', '09:38:00')['halted'] == 0).all() and fed.feed.seconds.faults['halt'] == 1
    assert (fed.trades.loc[at('09:31:02'):at('09:34:18'), ['buys', 'sells']] == 0).all().all() and any('316' in o for o in fed.said('depth', 'down'))


def test_a_halt_whose_end_was_lost_is_not_believed_for_ever(tmp_path):
    fed = run(feeding(tmp_path, A, '09:40:00', story(('halt', '09:31:00', dict(for_s=30)), ('mute', '09:31:10', dict(for_s=60)), ('dead', '09:32:05', {}))))
    rows = whole(fed, '09:30:00', '09:40:00')
    assert (part(rows, '09:35:00', '09:40:00')['status'] == 'data').all() and (part(rows, '09:35:00', '09:40:00')['halted'] == 0).all()


# --- what cannot be true

def l1(price=None, size=None, kind=1): return (lambda i: msg.tick_price(i, kind, price, size)) if price is not None else (lambda i: msg.tick_size(i, kind, size))


def test_impossible_values_are_counted_and_never_written(tmp_path):
    nan, inf = float('nan'), float('inf')
    odd = [l1(-1., -1, 1), l1(0., 0, 2), l1(nan, nan, 2), l1(-5., 1, 1), l1(inf, 1, 2), l1(size=-1, kind=0), l1(size=nan, kind=3), l1(0., 1, 4), l1(-1., -1, 4), l1(size=-1, kind=5), l1(size=-1, kind=8), l1(size=nan, kind=8),
           lambda i: msg.tick_generic(i, 49, -1.), lambda i: msg.data_type(i, 9), lambda i: msg.tick_string(i, 48, ';;;;;'), lambda i: msg.tick_price(i, 99, 1., 1)]
    trades = [lambda i, px=px, n=n: msg.tbt_last(i, 2, int(at('09:31:00').timestamp()), px, n) for px, n in ((0., 100), (-1., 100), (nan, 100), (600., -1), (600., 0), (600., nan), (inf, 5))]

    async def inject(fed):
        for t in ('09:30:30', '09:31:00', '09:31:30'):
            await fed.until(t)
            fed.send('level1', *odd)
            fed.send('ticks', *trades)
    fed = run(feeding(tmp_path, A, B, do=inject))
    rows = whole(fed, '09:30:00', B)
    f = fed.feed.seconds.faults
    assert f['no_quote'] >= 9 and f['bad_price'] >= 15 and f['bad_size'] >= 12 and f['bad_data_type'] == 3, f
    px = rows[['open', 'high', 'low', 'close', 'bid', 'ask']].to_numpy()
    assert ((px > 500) | np.isnan(px)).all() and (rows[['volume', 'bid_size', 'ask_size']].fillna(0) >= 0).all().all() and fed.feed.units['level1'].unit == 100
    check_trades(rows, fed.trades)
    got = rows['volume'].sum()
    assert got == truth('09:30:00', B)['size'].sum() and len(fed.rows) == 240


def test_a_crossed_quote_has_no_spread(tmp_path):
    async def cross(fed):
        await fed.until('09:31:03')
        fed.send('level1', l1(700., 100, 1))
    fed = run(feeding(tmp_path, A, '09:32:00', story(('mute', '09:31:00', dict(on='level1', for_s=6))), do=cross))
    crossed = fed.rows[fed.rows['bid'] == 700]
    assert len(crossed) == fed.feed.seconds.faults['crossed_quote'] >= 1 and crossed['spread'].isna().all() and (fed.rows['spread'].dropna() >= 0).all()


def test_a_volume_that_falls_takes_nothing_back(tmp_path):
    async def fall(fed):
        await fed.until('09:35:30')
        fed.send('level1', l1(size=5, kind=8), lambda i: msg.tick_string(i, 48, msg.rt_volume(600., 100., int(at('09:35:30').timestamp())*1000, 5., 600., True)))
    fed = run(feeding(tmp_path, A, '09:38:00', Faults(rights=dict(ticks='none')), fall))
    rows = whole(fed, '09:30:00', '09:38:00')
    assert fed.feed.seconds.faults['volume_fell'] == 1 and (rows['volume'].fillna(0) >= 0).all() and fed.feed.units['level1'].unit == 100


def test_times_that_go_back_or_ahead(tmp_path):
    t = lambda hms: int(at(hms).timestamp())
    async def lag(fed):
        await fed.until('09:31:00')
        fed.send('ticks', *[lambda i, s=s, n=n: msg.tbt_last(i, 2, s, 600., n) for s, n in ((t('09:30:10'), 11), (t('09:29:00'), 13), (t('09:45:00'), 17), (0, 19))])
    fed = run(feeding(tmp_path, A, '09:32:00', do=lag))
    rows, f = whole(fed, '09:30:00', '09:32:00'), fed.feed.seconds.faults
    assert f['before_start'] == 2 and f['trade_ahead'] == 1 and rows['volume'].sum() == truth('09:30:00', '09:32:00')['size'].sum() + 17
    late = fed.feed.late.read(fed.day)
    assert late['second'].tolist() == [second_stamp(fed.day, 10)] and late['size'].tolist() == [11]


def test_bars_out_of_order_and_bars_that_cannot_be(tmp_path):
    api = demo().bars['TRADES', '1 min']
    api = api[api.index.date == at(A).date()]
    def bar(i, k, **other):
        cell = wire.bar_cells([str(int(api.index[k].timestamp()))], pd.DataFrame([api.iloc[k].to_dict() | other], index=[api.index[k]]))[0]
        return wire.bar_update(i, cell)

    async def mix(fed):
        await fed.until('09:33:20')
        fed.send('keepup', lambda i: bar(i, 1), lambda i: bar(i, 0), lambda i: bar(i, 2, high=1.), lambda i: bar(i, 2, low=float('nan')), lambda i: bar(i, 1, volume=-1.), lambda i: bar(i, 3, open=-1.))
    fed = run(feeding(tmp_path, A, '09:36:01', do=mix))
    raw = fed.feed.store.raw(fed.day)
    assert np.array_equal(raw.iloc[:, :7], api.iloc[:len(raw)]) and len(raw) == 5 and fed.feed.minutes.odd >= 2 and len(whole(fed, '09:30:00', '09:36:01')) == 361


def test_a_frame_that_cannot_be_read_is_counted_and_the_stream_goes_on(tmp_path):
    garbled = dict(level1=(lambda i: wire.frame(1, 6, i, 1, 'six hundred', 5, 0), lambda i: wire.frame(46, 6, i, 45, 'noon'), lambda i: wire.frame(2, 6, i)), ticks=(lambda i: wire.frame(99, i, 2, 'then', 600, 1, 0, '', ''),),
                   depth=(lambda i: wire.frame(12, 1, i, 0, 1), lambda i: wire.frame(12, 1, i, 'top', 0, 0, 600, 1)), keepup=(lambda i: wire.frame(90, i, 1, 'x', 1, 1, 1, 1, 1, 1), lambda i: wire.frame(90, i, 1)))

    async def inject(fed):
        await fed.until('09:31:00')
        for kind, ms in garbled.items(): fed.send(kind, *ms)
        fed.send('level1', lambda i: wire.frame(1, 6, 'who', 1, 600, 5, 0), lambda i: wire.frame(4711, 1, 2, 3))
    fed = run(feeding(tmp_path, A, '09:32:00', do=inject))
    assert fed.feed.report()['garbled'] == dict(level1=3, ticks=1, depth=2, minutes=2) and (whole(fed, '09:30:00', '09:32:00')['status'] == 'data').all() and fed.feed.report()['drops'] == 0


# --- listeners

@pytest.mark.parametrize('event', ['secondEvent', 'tradeEvent', 'bookEvent', 'quoteEvent', 'stateEvent', 'minuteEvent'])
def test_a_listener_that_fails_ends_the_feed_with_its_error(tmp_path, event):
    async def fails(fed):
        def broken(o): raise ZeroDivisionError('a bug of a screen')
        await fed.until('09:30:10')
        getattr(fed.feed, event).connect(broken, keep_ref=True)
        if event == 'stateEvent': fed.feed.told('test', 'told')
    fed = run(feeding(tmp_path, A, '09:35:00', do=fails, ends=ZeroDivisionError))
    assert fed.clock.now() < at('09:31:05') and len(fed.rows) == (fed.rows.index[-1] - fed.rows.index[0]).total_seconds() + 1 and not fed.link.connected


def test_slow_late_and_early_listeners(tmp_path):
    async def listen(fed):
        early = fed.feed.audience.listen('second', 'minute', size=100_000)
        await fed.until('09:31:00')
        slow = fed.feed.audience.listen('second', size=10, past=False)
        await fed.until('09:33:30')
        load, late = fed.feed.past, fed.feed.audience.listen('second', 'minute', size=100_000)
        await fed.until('09:36:02')      # many records come before he begins to read, and while he does
        got = []
        async def read():
            async for o in late: got.append(o)
        task = asyncio.ensure_future(read())
        await fed.until('09:37:00')
        newest = fed.feed.audience.listen('minute', size=100_000)
        fed.out = early, slow, late, got, task, newest, load
    async def go():
        async with serve(A) as parts:
            fed = Fed(*parts, tmp_path).start()
            await listen(fed)
            await fed.until('09:38:00')
            await fed.clock.asleep(.5)
            await fed.stop()
            early, slow, late, got, task, newest, _ = fed.out
            for o in (early, slow, late, newest): fed.feed.audience.leave(o)
            await task
            return fed, [o async for o in early], [o async for o in slow], got, [o async for o in newest]
    fed, early, slow, late, newest = run(go())
    rows = whole(fed, '09:30:00', '09:38:00')
    seconds = lambda heard: [o.second for k, o in heard if k == 'second']
    assert seconds(early) == seconds(late) == rows.index.as_unit('s').asi8.tolist() and [o for k, o in late if k == 'second'] == fed.heard['secondEvent']
    assert len(slow) == 10 and seconds(slow) == rows.index.as_unit('s').asi8.tolist()[-10:] and fed.out[1].dropped > 400
    last = lambda heard: {o.start: o for k, o in heard if k == 'minute'}
    assert last(early) == last(late) == last(newest) == {m.start: m for m in fed.heard['minuteEvent']}
    told = [(o.start, o.provisional, o.beside is None) for k, o in late if k == 'minute']
    assert len(told) == len(set(told)) and [o for k, o in late if k == 'minute'][-5:] == fed.heard['minuteEvent'][-5:]


def test_a_long_session_keeps_little_in_memory(tmp_path):
    sizes = []
    async def measure(fed):
        for o in fed.feed.events:
            if o != 'stateEvent': getattr(fed.feed, o).clear()
        for t in ('10:05:00', '10:17:00'):
            await fed.until(t)
            gc.collect()
            sizes.append((psutil.Process().memory_info().rss, len(gc.get_objects())))
    fed = run(feeding(tmp_path, '10:00:00', '10:17:05', do=measure))
    (rss, n), (rss_after, n_after) = sizes
    assert rss_after - rss < 30e6 and n_after - n < 5000, sizes
    assert len(fed.feed.l1_seconds) < 10 and len(fed.feed.seconds._past) < 10 and len(fed.feed.measured) < 5


# --- a full disk

def test_a_full_disk_ends_the_feed_and_every_file_is_whole(tmp_path, monkeypatch):
    from spyresearch.daylog import DayLog
    write = DayLog._write
    async def fill(fed):
        await fed.until('09:31:30')
        size = fed.feed.log.file(fed.day).stat().st_size + 700
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try: fed = run(feeding(tmp_path, A, '09:35:00', do=fill, ends=FolderError))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert fed.end.exit_code == 3 and 'free some space' in fed.end.todo and write is DayLog._write
    n = len(fed.rows)
    assert 90 <= n < 100 and fed.feed.log.file(fed.day).read_bytes().endswith(b'\n')
    two = run(feeding(tmp_path, '09:36:00', '09:37:00'))
    whole(two, '09:30:00', '09:37:00')
    assert not two.said('feed', 'torn') or two.said('feed', 'torn')[0].startswith('trades')


def test_a_full_disk_stops_a_journal_too(tmp_path, monkeypatch):
    async def fill(fed):
        await fed.until('09:31:00')
        def full(record): raise FolderError('cannot append', 'no space left on device', 'free some space')
        monkeypatch.setattr(fed.feed.journal, 'append', full)
        fed.feed.told('test', 'told')
    fed = run(feeding(tmp_path, A, '09:35:00', do=fill, ends=FolderError))
    assert fed.clock.now() < at('09:31:05')


# --- real records

def real_tape(shared, on):
    "Quotes and trades by the second of 2013, and the minute bars that these trades make."
    tape = open_tape(quotes=shared('spy_quotes_1s_2013.parquet'), trades=shared('spy_trades_1s_2013.parquet'))
    s = tape.ticks[on].seconds
    df = pd.DataFrame(dict(open=s.open, high=s.high, low=s.low, close=s.close, volume=s.volume), index=pd.DatetimeIndex(s.t, tz='UTC').tz_convert(ET).rename('Datetime'))
    bars = df.resample('1min').agg(dict(open='first', high='max', low='min', close='last', volume='sum')).dropna()
    return replace(tape, bars={('TRADES', '1 min'): bars}), df


@pytest.mark.parametrize('unit', [100, 1])
def test_real_seconds_come_through_level_1(tmp_path, shared, unit):
    on = '2013-10-09'
    tape, truth = real_tape(shared, at('10:00:00', on).date())
    fed = run(feeding(tmp_path, '10:29:55', '10:36:00', tape=tape, unit=unit, on=on))
    rows = part(whole(fed, '09:30:00', '10:36:00'), '10:31:00', '10:35:55', on)
    want = truth.reindex(rows.index)
    assert set(rows['trades_from']) == {'l1'} and set(rows['status']) == {'data'} and fed.feed.units['level1'].unit == unit
    got = rows[['open', 'high', 'low', 'close']]
    same = np.isclose(got, want[['open', 'high', 'low', 'close']], equal_nan=True).all(axis=1)
    assert same.mean() == 1, rows[~same][['open', 'high', 'low', 'close']].join(want, rsuffix='_want').head()
    gap = (rows['volume'] - want['volume'].fillna(0)).abs()
    assert gap.max() <= (0 if unit == 1 else 100) and abs(rows['volume'].sum() - want['volume'].sum()) <= (0 if unit == 1 else 100)
    quotes = tape.ticks[fed.day].quotes
    assert rows['bid'].isin(quotes.bid).all() and (rows['ask'] >= rows['bid']).all()
    assert all(m.close == truth[:pd.Timestamp(m.start + 59, unit='s', tz='UTC')]['close'].iloc[-1] for m in fed.heard['minuteEvent'] if m.provisional)


def test_a_feed_that_is_to_end_earlier_ends_with_its_last_whole_second(tmp_path):
    fed = run(feeding(tmp_path, A, '09:40:00', ends=dict, upto=at('09:31:00').timestamp()))
    assert len(fed.feed.log.read(fed.day)) == 60 and fed.clock.now() < at('09:31:05') and [m.provisional for m in fed.minutes.values()] == [True] and fed.feed.log.is_open(fed.day)
