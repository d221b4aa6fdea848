"""What a replay refuses, and what goes wrong in it by script."""
import asyncio
import json
from copy import copy
from dataclasses import fields
from datetime import timedelta
from typing import get_args

import ib_async
import numpy as np
import pytest

import live
from live import A, ARCA, ISLAND, SPY, at, book_of, is_book_at, join, kept, kinds, ns, play, replay, run, script, subscribe
from spyresearch.core import FixedClock, UsageError
from spyresearch.tws.faults import FINE, Faults, Mishap
from spyresearch.tws.replay import ReplayServer


@pytest.fixture(scope='module')
def demo(): return live.demo()


@pytest.fixture(scope='module')
def tape(): return live.drawn()


# --- rights and limits

async def refusals(tape, faults, ask):
    "The codes that a client is told while time stands."
    async with replay(tape, at(A), speed=0, faults=faults) as (srv, _, ib):
        r = ask(ib, ib.client)
        if asyncio.iscoroutine(r): await r
        await ib.reqCurrentTimeAsync()
        return ib.ear.codes, ib.ear


def like(contract, **other):
    c = copy(contract)
    vars(c).update(other)
    return c


ASKS = dict(level1=lambda ib, c: ib.reqMktData(SPY), depth=lambda ib, c: ib.reqMktDepth(ARCA), ticks=lambda ib, c: ib.reqTickByTickData(SPY, 'Last'),
            bars=lambda ib, c: ib.reqRealTimeBars(SPY, 5, 'TRADES', True))
SAID = dict(level1=(354, 10168, 10090, 10197), depth=(354, 354, 10090, 10197), ticks=(10189, 10189, 10090, 10197), bars=(420, 420, 10090, 10197))


@pytest.mark.parametrize('kind', ASKS)
@pytest.mark.parametrize('i,right', [*enumerate(('none', 'delayed', 'partial', 'competing'))])
def test_a_right_that_is_lacking_is_named_by_its_code(tape, kind, i, right):
    codes, ear = run(refusals(tape, Faults(rights={kind: right}), ASKS[kind]))
    assert codes == [SAID[kind][i]] and bool(ear.said(1, 12)) == (right == 'partial' and kind in ('level1', 'depth'))


OPTION = ib_async.Option('SPY', '20251201', 615, 'C', 'SMART')


@pytest.mark.parametrize('right,codes,greeks', [('none', [354], 0), ('delayed', [10168], 0), ('partial', [10090], 0), ('competing', [10197], 0), ('live', [], 1)])
def test_options_without_their_right(demo, right, codes, greeks):
    async def ask(ib, c):
        await ib.qualifyContractsAsync(OPTION)
        ib.reqMktData(OPTION)
    said, ear = run(refusals(demo, Faults(rights=dict(options=right)), ask))
    assert said == codes and len(ear.said(21)) == greeks and bool(ear.said(1)) == (right in ('partial', 'live'))


def test_kept_up_bars_without_a_right_come_once(tape):
    async def ask(ib, c): return await ib.reqHistoricalDataAsync(SPY, '', '1 D', '1 min', 'TRADES', True, 2, True)
    codes, ear = run(refusals(tape, Faults(rights=dict(keepup='none')), ask))
    assert codes == [10182] and [f[0] for f in ear.heard] == ['17', '4', '49']


async def late(tape, kinds):
    async with replay(tape, at(A), faults=Faults(rights=dict.fromkeys(('level1', 'options'), 'delayed'))) as (srv, clock, ib):
        await ib.qualifyContractsAsync(OPTION)
        ib.reqMarketDataType(3)
        t, o = ib.reqMktData(SPY, '233'), ib.reqMktData(OPTION)
        ticks = kept(t, 'ticks')['ticks']
        await clock.asleep(60)
        return ib.ear, t, o, ticks, srv.sessions.inside(at(A).date()).ticks.quotes, srv.listing.quote(OPTION.conId, ns('09:45:59'))


def test_delayed_data_are_told_apart_and_lie_fifteen_minutes_behind(demo):
    ear, t, o, ticks, q, quote = run(late(demo, ()))
    assert ear.codes == [10167, 10167] and (t.marketDataType, o.marketDataType) == (3, 3)
    looks = np.searchsorted(q.t, np.arange(ns('09:45:00'), ns('09:46:00'), 10**9//4), 'right') - 1
    want = q.bid[looks].tolist()
    assert [x.price for x in ticks if x.tickType == 66] == [v for i, v in enumerate(want) if not i or v != want[i-1]]
    assert {int(f[3]) for f in ear.said(1, 2)} <= {*range(66, 77)} and {f[3] for f in ear.said(46)} == {'88'} and {f[2] for f in ear.said(21)} == {'83'}
    assert (o.bid, o.ask) == (quote.bid, quote.ask)


@pytest.mark.parametrize('limits,ask,codes', [
    (dict(lines=2), lambda ib, c: [c.reqMktData(i, SPY, '', False, False, []) for i in (1, 2, 3)], [101]),
    (dict(lines=1), lambda ib, c: [c.reqMktData(1, SPY, '', False, False, []), c.reqRealTimeBars(2, SPY, 5, 'TRADES', True, []), c.cancelMktData(1), c.reqMktData(3, SPY, '', False, False, [])], [101]),
    ({}, lambda ib, c: [c.reqMktDepth(i, ARCA, 5, False, []) for i in range(1, 5)], [309]),
    (dict(depth=1), lambda ib, c: [c.reqMktDepth(1, ARCA, 5, False, []), c.cancelMktDepth(1, False), c.reqMktDepth(2, ISLAND, 5, False, [])], []),
    ({}, lambda ib, c: [c.reqTickByTickData(i, SPY, 'Last', 0, False) for i in range(1, 7)], [10190]),
    ({}, lambda ib, c: [c.reqMktData(1, SPY, '', False, False, []) for _ in range(2)], [102]),
    ({}, lambda ib, c: [c.reqMktDepth(1, ARCA, 5, False, []) for _ in range(2)], [322]),
    ({}, lambda ib, c: [c.reqTickByTickData(1, SPY, 'Last', 0, False) for _ in range(2)], [322]),
    ({}, lambda ib, c: [c.reqHistoricalData(1, SPY, '', '1 D', '1 min', 'TRADES', True, 2, True, []) for _ in range(2)], [322]),
    ({}, lambda ib, c: [c.cancelMktData(9), c.cancelMktDepth(9, False), c.cancelHistoricalData(9), c.cancelRealTimeBars(9), c.cancelTickByTickData(9)], [300, 310, 366, 300, 300]),
    ({}, lambda ib, c: [c.reqMktDepth(1, like(ARCA, exchange='CBOE'), 5, False, [])], [10092]),
    ({}, lambda ib, c: [f(1, like(SPY, conId=0, symbol='QQQ'), *a) for f, *a in ((c.reqMktData, '', False, False, []), (c.reqMktDepth, 5, False, []), (c.reqTickByTickData, 'Last', 0, False),
                                                                                (c.reqRealTimeBars, 5, 'TRADES', True, []), (c.reqHistoricalTicks, '', '20251201 10:00:00', 9, 'TRADES', True, False, []))], [200]*5),
    ({}, lambda ib, c: [c.reqHistoricalTicks(1, SPY, *span, n, what, True, False, []) for span, n, what in ((('', ''), 9, 'TRADES'), (('', 'now'), 9, 'TRADES'), (('', '20251201 10:00:00'), 1001, 'TRADES'), (('', '20251201 10:00:00'), 9, 'ASK'))], [321]*4),
    ({}, lambda ib, c: [c.reqRealTimeBars(1, SPY, 5, 'MIDPOINT', True, []), c.reqTickByTickData(2, SPY, 'First', 0, False)], [321, 321]),
])
def test_limits_and_mistakes_have_their_codes(tape, limits, ask, codes):
    assert run(refusals(tape, Faults(limits=limits), ask))[0] == codes


def test_too_many_messages_a_second_are_refused_one_by_one(tape):
    async def go():
        clock = FixedClock(at(A))
        async with replay(tape, at(A), speed=0, clock=clock, faults=Faults(limits=dict(rate=10))) as (srv, _, ib):
            clock.sleep(1)
            for _ in range(13): ib.client.cancelPositions()
            while srv.counts['CancelPositions'] < 13: await asyncio.sleep(.001)
            clock.sleep(1)
            await ib.reqCurrentTimeAsync()
            return ib.ear.codes
    assert run(go()) == [100]*3


def test_options_have_level_1_only(demo):
    async def ask(ib, c):
        await ib.qualifyContractsAsync(OPTION)
        c.reqTickByTickData(1, OPTION, 'Last', 0, False)
        c.reqMktDepth(2, OPTION, 5, True, [])
        c.reqMktData(3, ib_async.Option('SPY', '20251201', 0, 'C', 'SMART'), '', False, False, [])   # many contracts
        c.reqMktData(4, ib_async.Option('SPY', '20251201', 1.5, 'C', 'SMART'), '', False, False, [])
    assert run(refusals(demo, Faults(), ask))[0] == [10189, 354, 200, 200]


def test_ticks_of_the_past_are_found_over_closed_days(demo):
    async def ask(srv, ib):
        first = await ib.reqHistoricalTicksAsync(SPY, at('12:59:50', '2025-11-28'), '', 500, 'TRADES', True)
        last = await ib.reqHistoricalTicksAsync(SPY, '', at('06:00:00', '2025-12-01'), 20, 'BID_ASK', True)
        return first, last, srv.sessions.inside(at(A, '2025-11-28').date()), srv.sessions.inside(at(A).date())

    async def go():
        async with replay(demo, at(A), speed=0) as (srv, _, ib): return await ask(srv, ib)
    first, last, friday, monday = run(go())
    i = int(np.searchsorted(friday.t, ns('12:59:50', '2025-11-28')))
    n = len(friday.t) - i
    assert 0 < n < 500 and [o.price for o in first] == friday.px[i:].tolist() + monday.px[:500 - n].tolist()
    assert [o.priceBid for o in last] == friday.ticks.quotes.bid[-20:].tolist()


# --- mishaps

@pytest.fixture(scope='module')
def calm(tape): return run(play(tape, Faults()))


def test_any_code_can_be_said_to_all_or_to_one_kind_of_stream(tape):
    codes = (1100, 1101, 1102, 1300, 2103, 2104, 2105, 2106, 2107, 2108, 2110, 2119, 2157, 2158)
    faults = script(*({'do': 'say', 'code': c, 'text': f'text {c}', 'at': f'10:00:{3 + i:02}'} for i, c in enumerate(codes)), dict(do='say', code=10197, on='level1'), dict(do='say', code=10182, on='depth'))
    ear, marks, x, _ = run(play(tape, faults))
    assert [c for r, c in ear.errors if r == -1][-len(codes):] == list(codes) and [(i - ear.before, c) for i, c in ear.errors if i > 0] == [(1, 10197), (4, 10182)]
    assert [f[4] for f in ear.said(4) if f[3] == '1102'] == ['text 1102'] and is_book_at(book_of(ear.heard), x, '10:00:20')


def test_a_bust_makes_ib_async_ask_again_and_it_is_served(tape):
    async def go():
        async with replay(tape, at(A), faults=script(dict(do='say', code=10225, text='Bust event occurred', on='bars'))) as (srv, clock, ib):
            bars = ib.reqRealTimeBars(SPY, 5, 'TRADES', True)
            await clock.asleep(31)
            return [b.time for b in bars], ib.ear.codes, srv.counts
    times, codes, counts = run(go())
    assert codes == [10225] and counts['CancelRealTimeBars'] == 1 and counts['RealTimeBars'] == 2
    assert sorted(set(times)) == [at('09:59:55') + timedelta(seconds=5*i) for i in range(7)]


def test_a_muted_stream_loses_what_happens_and_comes_back_right(tape, calm):
    ear, marks, x, _ = run(play(tape, script(dict(do='mute', on='depth', for_s=6), dict(do='mute', on='ticks', for_s=1e9, at='10:00:10'))))
    quiet = ear.heard[marks[6]:marks[11]]
    assert '12' not in kinds(quiet) and {'1', '2', '99'} <= kinds(quiet) and not ear.codes
    assert '99' not in kinds(ear.heard[marks[11]:]) and is_book_at(book_of(ear.heard), x, '10:00:20')
    assert [f for f in ear.heard if f[0] in ('1', '2', '46', '50')] == [f for f in calm[0].heard if f[0] in ('1', '2', '46', '50')]


def test_dead_streams_stay_dead_and_new_ones_live(tape):
    async def again(srv, clock, ib):
        n = len(ib.ear.heard)
        ib.cancelMktDepth(ARCA)
        ib.reqMktDepth(ARCA, 10)
        await clock.asleep(3)
        return ib.ear.heard[n:]
    ear, marks, x, more = run(play(tape, script(dict(do='say', code=1102, text='data maintained'), dict(do='dead')), then=again))
    assert not kinds(ear.heard[marks[6]:marks[19]]) and ear.codes == [1102] and is_book_at(book_of(more), x, '10:00:23')


def test_a_frozen_server_says_everything_afterwards(tape, calm):
    ear, marks, _, _ = run(play(tape, script(dict(do='freeze', for_s=7))))
    assert marks[6] == marks[11] < marks[14] and ear.heard == calm[0].heard


def test_a_mishap_within_a_second_repeats_nothing(tape, calm):
    ear, *_ = run(play(tape, script(dict(do='say', code=2110, text='x', at='10:00:05.4'), dict(do='reset', at='10:00:07.6'))))
    for m in ('1', '2', '46', '50', '99'): assert ear.said(int(m)) == calm[0].said(int(m))
    assert ear.codes == [2110, 317] and is_book_at(book_of(ear.heard), calm[2], '10:00:20')


def test_depth_is_reset_and_filled_again(tape):
    ear, marks, x, _ = run(play(tape, script(dict(do='reset'))))
    assert ear.codes == [317] and is_book_at(book_of(ear.heard), x, '10:00:20')
    at_reset = next(i for i, f in enumerate(ear.heard) if f[0] == '4' and f[3] == '317')
    refill = [f for f in ear.heard[at_reset + 1:] if f[0] == '12'][:20]
    assert {f[4] for f in refill} == {'0'} and is_book_at(book_of(refill), x, '10:00:05')


def test_a_halt_is_told_on_level_1_and_ends_depth(tape):
    ear, marks, x, _ = run(play(tape, script(dict(do='halt', for_s=8))))
    assert ear.codes == [316] and [f[4] for f in ear.said(45) if f[3] == '49'] == ['0.0', '1.0', '0.0']
    assert '12' not in kinds(ear.heard[marks[7]:]) and '99' in kinds(ear.heard[marks[7]:])


@pytest.mark.parametrize('do', ['drop', 'torn'])
def test_a_dropped_client_comes_back_and_is_served(tape, do):
    async def again(srv, clock, ib):
        over, left = ib.isConnected(), bytes(ib.ear.frames.buf)
        await join(srv, clock, 1, ib)
        subscribe(ib)
        await clock.asleep(5)
        return over, left, ib.ear.heard
    ear, marks, x, (over, left, heard) = run(play(tape, script(dict(do=do)), then=again, checked=False))
    assert marks[7] == marks[19] and not over and bool(left) == (do == 'torn') and {'1', '12', '50', '99'} <= kinds(heard)


def test_a_nightly_restart_turns_everybody_away_for_minutes(tape):
    async def go():
        async with replay(tape, at(A), faults=script(dict(do='down', for_s=300))) as (srv, clock, ib):
            subscribe(ib)
            await clock.asleep(10)
            tries = []
            for _ in range(7):
                with clock.hold():
                    reader, writer = await asyncio.open_connection('127.0.0.1', srv.port)
                    writer.write(b'API\0\0\0\0\tv157..178')
                    tries.append(bool(await asyncio.wait_for(reader.read(4), 10)))
                    writer.close()
                await clock.asleep(50)
            late = await join(srv, clock, 2)
            at_, codes = await late.reqCurrentTimeAsync(), ib.ear.codes
            late.disconnect()
            return ib.isConnected(), tries, at_, codes
    assert run(go()) == (False, [False]*6 + [True], at('10:06:00'), [])


def test_down_ends_by_itself_where_nobody_keeps_the_time(tape):
    async def go():
        async with ReplayServer(tape, at(A), 'max', faults=script(dict(do='down', for_s=300))) as srv:
            ib = await join(srv)
            subscribe(ib)
            while ib.isConnected(): await asyncio.sleep(.005)
            while srv.now() < at('10:05:05'): await asyncio.sleep(.005)
            again = await join(srv)
            ok = again.isConnected()
            again.disconnect()
            return ok
    assert run(go())


@pytest.mark.parametrize('speed', ['max', 0])
def test_an_occasion_can_be_waited_for(tape, speed):
    async def go():
        async with replay(tape, at(A), speed, faults=script(dict(do='say', code=2110, text='x', when='Depth:2'), dict(do='drop', when='CurrentTime:2'))) as (srv, clock, ib):
            ib.client.reqMktDepth(1, ARCA, 10, False, [])
            await ib.reqCurrentTimeAsync()
            before = ib.ear.codes
            ib.client.reqMktDepth(2, ARCA, 10, False, [])
            ib.client.reqCurrentTime()
            await ib.disconnectedEvent
            return before, ib.ear.codes
    assert run(go()) == ([], [2110])


@pytest.mark.parametrize('n', [1, 7])
def test_fragments_change_nothing(tape, calm, n):
    ear, *_ = run(play(tape, Faults(fragment=n), 6 if n == 1 else 20))
    assert ear.heard == calm[0].heard[:len(ear.heard)] and len(ear.heard) > 100


def test_frames_run_together_change_nothing(tape, calm):
    "Twenty seconds in one piece: the server stands, then is moved."
    async def go():
        async with replay(tape, at(A), 0) as (srv, _, ib):
            subscribe(ib)
            await ib.reqCurrentTimeAsync()
            srv.command('step', dict(seconds=60))
            await ib.reqCurrentTimeAsync()
            return [f for f in ib.ear.heard if f[0] != '49']
    assert run(go())[:len(calm[0].heard)] == calm[0].heard


@pytest.mark.parametrize('text', [
    '{"script": [{"do": "explode", "at": "10:00:00"}]}', '{"script": [{"do": "drop"}]}', '{"script": [{"do": "drop", "at": "10:00:00", "when": "Depth:1"}]}',
    '{"script": [{"do": "drop", "at": "soon"}]}', '{"script": [{"do": "drop", "at": 5}]}', '{"script": [{"do": "drop", "when": "Depth"}]}', '{"script": [{"do": "drop", "when": ":1"}]}',
    '{"script": [{"do": "mute", "at": "10:00:00", "on": "news"}]}', '{"script": [{"do": "say", "at": "10:00:00"}]}', '{"script": [{"do": "mute", "at": "10:00:00", "for_s": "long"}]}',
    '{"script": [{"do": "mute", "at": "10:00:00", "for_s": -1}]}', '{"script": [{"doo": "drop"}]}', '{"script": ["drop"]}', '{"script": 5}', '{"script": {"do": "drop"}}',
    '{"script": [{"do": "drop", "at": "2025-12-01"}]}', '{"script": [{"do": "drop", "at": "10:15-05:00"}]}', '{"script": [{"do": "drop", "at": "9999-12-31T23:00", "after_s": 90000}]}', '[{"do": "explode", "at": "10:00:00"}]', '[[]]', '[', '5',
    '{"rights": {"depth": "some"}}', '{"rights": {"news": "none"}}', '{"rights": "none"}', '{"limits": {"line": 5}}', '{"limits": {"lines": "5"}}', '{"limits": {"lines": -1}}', '{"limits": [5]}', '[1]', 'nowhere.json', '{'])
def test_bad_scripts_are_usage_errors(text):
    with pytest.raises(UsageError): Faults.from_json(text)


@pytest.mark.parametrize('text,want', [('[]', FINE), (' [ ]', FINE), ('{}', FINE), ('', FINE), ('[{"do": "drop", "at": "10:00:00"}]', script(dict(do='drop', at='10:00:00')))])
def test_a_list_is_a_story_of_mishaps_and_an_empty_one_is_none(tmp_path, text, want):
    (tmp_path/'story.json').write_text(text)
    assert Faults.from_json(text) == Faults.from_json(str(tmp_path/'story.json')) == want


ODD = [('accept_close', (1, 'yes', None)), ('greeting', (5, ['x'])), ('mute', ('true',)), ('busy_ids', (5, '5', [1.5], [True], [-1], {'1': 2})), ('silent_history', (1, ['1'])),
       ('history_errors', ([162, 'no'], {'3': 162}, {'3': ['162', 'no']}, {'3': [162]}, {'three': [162, 'no']}, {'0': [162, 'no']})), ('denied', (5, 'TRADES', ['TRADE'], [5])),
       ('drop_after', ('x', 1.5, -1, True, 1e99)), ('delay_s', ('x', -.1, float('nan'), float('inf'), None, 1e99)), ('fragment', (-1, '3', 2.)), ('rights', ('none', {'depth': 'some'}, {'news': 'none'}, {'depth': True})),
       ('limits', ([5], {'line': 5}, {'lines': '5'}, {'lines': -1}, {'lines': True}, {'lines': 1.5})), ('script', (5, 'drop', {'do': 'drop'}))]
ODD_MISHAP = [('do', (5, 'explode')), ('at', (10, None)), ('when', (2,)), ('after_s', ('x', -1, float('nan'), True)), ('on', ('news', 5, ['depth'])), ('for_s', ('x', -1, float('inf'))), ('code', ('1100', 1.5, -1)), ('text', (5,))]


@pytest.mark.parametrize('name,value', [(k, v) for k, vs in ODD for v in vs])
def test_a_fault_of_the_wrong_type_is_named_with_what_is_expected(name, value):
    with pytest.raises(UsageError) as e: Faults.from_json(json.dumps({name: value}))
    assert f': {name} cannot be ' in e.value.what and e.value.why.startswith('expected ') and e.value.exit_code == 2


@pytest.mark.parametrize('name,value', [(k, v) for k, vs in ODD_MISHAP for v in vs])
def test_a_mishap_of_the_wrong_type_is_named_with_what_is_expected(name, value):
    script = [{'do': 'say', 'at': '10:00:00', 'code': 1100, 'text': 'lost'} | {name: value}]
    with pytest.raises(UsageError) as e: Faults.from_json(json.dumps(dict(script=script)))
    assert f'a mishap: {name} cannot be ' in e.value.what and e.value.why.startswith('expected ')


def test_every_field_of_a_script_is_checked():
    assert [k for k, _ in ODD if k != 'mute'] == [k for k in Faults.__dataclass_fields__ if k not in ('mute', 'silent', 'read_only')] and [k for k, _ in ODD_MISHAP] == [*Mishap.__dataclass_fields__]
    for kind in (Faults, Mishap):
        assert all(f.type in (bool, str, int, float) or get_args(f.type) for f in fields(kind)), 'an annotation that says nothing of what is inside'


def test_a_script_of_no_request_a_bad_depth_mode_and_a_bad_unit_are_usage_errors(tape):
    for bad in (dict(faults=script(dict(do='drop', when='Dpeth:1'))), dict(depth_mode='push'), dict(unit=0)):
        with pytest.raises(UsageError): ReplayServer(tape, at(A), **bad)


@pytest.mark.parametrize('asof,when,first', [('10:00:00', '10:00:00', '2025-12-01T10:00'), ('10:00:01', '10:00:00', '2025-12-02T10:00'), ('10:00:01', '2025-12-01T10:00:00', None),
                                             ('10:00:00', '2025-12-01T15:30:00Z', '2025-12-01T10:30'), ('10:00:00', '10:00:00.500', '2025-12-01T10:00'), ('10:00:01', '10:00:00.500000', '2025-12-02T10:00')])
def test_when_a_script_strikes_first(tape, asof, when, first):
    srv = ReplayServer(tape, at(asof), faults=Faults(script=(Mishap('drop', at=when),)))
    assert [f'{t.astimezone(at(A).tzinfo):%Y-%m-%dT%H:%M}' for t, _ in srv.pending] == ([first] if first else [])
    saturday = ReplayServer(tape, at('09:00:00', '2025-11-29'), faults=Faults(script=(Mishap('drop', at='10:00:00'),)))
    assert saturday.pending[0][0] == at('10:00:00')
