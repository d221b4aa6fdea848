"""The replay server at the level of its socket and its process: refusals, faults, time, and real prices served unchanged."""
import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from ib_async import IB, Contract, LimitOrder, Option, Stock
from ib_async.wrapper import RequestError

from spyresearch.core import ET, UTC, DataError, FixedClock, UsageError, parse_asof
from spyresearch.sessions import last_sessions, minutes, session
from spyresearch.tws import wire
from spyresearch.tws.faults import Faults
from spyresearch.tws.replay import ReplayServer, about, before_open, open_tape, spawn, start_of
from spyresearch.tws.server import DEEP, READ_ONLY
from spyresearch.tws.source import Source, open_source
from spyresearch.tws.tape import Tape, tape_from_files

SPY = Stock('SPY', 'SMART', 'USD')
NOON = datetime(2025, 12, 1, 12, 0, 30, tzinfo=ET)


def flat(day, px): return pd.DataFrame(dict(open=px, high=px + .5, low=px - .25, close=px + .1, volume=100.), index=minutes(day))
TOY = Tape('toy', 'simulated', {('TRADES', '1 min'): pd.concat([flat(date(2025, 11, 28), 100.), flat(date(2025, 12, 1), 101.)])})


class Raw:
    "A client made of a bare socket: it says what it likes and keeps what it hears."
    def __init__(self, reader, writer): self.reader, self.writer, self.frames, self.rest = reader, writer, wire.Frames(1 << 28), []

    @classmethod
    async def open(cls, srv, version=178, client_id=1, start=True):
        raw = cls(*await asyncio.open_connection('127.0.0.1', srv.port))
        raw.writer.write(b'API\0' + wire.pack(b'v100..%d' % version))
        if start:
            await raw.hear()
            await raw.say(71, 2, client_id, '')
            while (await raw.hear())[:4] != ['4', '2', '-1', '2158']: pass
        return raw

    async def say(self, *fields):
        self.writer.write(wire.frame(*fields))
        await self.writer.drain()

    async def hear(self):
        "The next message, or None at the end of the stream."
        while not self.rest:
            data = await asyncio.wait_for(self.reader.read(1 << 16), 10)
            if not data: return None
            self.rest = self.frames.feed(data)
        return self.rest.pop(0)


def history(req_id=1, end='', duration='1 D', size='1 min', what='TRADES', form=2, symbol='SPY'):
    "The fields of a history request."
    return [20, req_id, 0, symbol, 'STK', '', 0., '', '', 'SMART', '', 'USD', '', '', False, end, size, duration, True, what, form, False, '']


def on(f, tape=TOY, **kw):
    "Run `f(server)` against a server of `tape`."
    async def run():
        async with ReplayServer(tape, **kw) as srv: return await f(srv)
    return asyncio.run(run())


async def client(srv, id_=1):
    ib = IB()
    ib.RaiseRequestErrors = True
    await ib.connectAsync('127.0.0.1', srv.port, clientId=id_)
    return ib


# --- who may talk, and how

@pytest.mark.parametrize('opening', [b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', *(b'API\0' + wire.pack(o) for o in (b'v38..100', b'v201..225', b'hello'))])
def test_others_are_shown_the_door(opening):
    async def f(srv):
        reader, writer = await asyncio.open_connection('127.0.0.1', srv.port)
        writer.write(opening)
        answer = await asyncio.wait_for(reader.read(), 10)
        ib = await client(srv)
        served = ib.isConnected()
        ib.disconnect()
        return answer, len(srv.errors), served
    assert on(f) == (b'', 1, True)


def test_unknown_and_garbled_requests_are_listed_and_the_next_is_served():
    async def f(srv):
        raw = await Raw.open(srv)
        await raw.say(9999, 'x')
        await raw.say(49)
        await raw.say(20, 'many', 'fields', 'missing')
        await raw.say(49, 1)
        return [await raw.hear() for _ in range(3)], srv.unhandled
    heard, unhandled = on(f)
    assert [h[:4] for h in heard[:2]] == [['4', '2', '-1', '320']]*2 and heard[2][0] == '49'
    assert unhandled == [wire.Unknown(9999, ['x']), ['49'], ['20', 'many', 'fields', 'missing']]


def test_requests_are_logged_with_virtual_time():
    async def f(srv):
        raw = await Raw.open(srv, client_id=42)
        await raw.say(49, 1)
        await raw.hear()
        return [(o.at, o.client_id, type(o.request).__name__) for o in srv.requests]
    assert on(f, asof=NOON) == [(NOON, None, 'StartApi'), (NOON, 42, 'CurrentTime')]


# --- refusals

@pytest.mark.parametrize('ask,code,words', [
    (history(symbol='QQQ'), 200, 'No security definition'), (history(size='7 mins'), 321, 'bar size'), (history(what='LAST'), 321, 'data type'),
    (history(what='ADJUSTED_LAST', end='20251201 12:00:00', size='1 day'), 321, 'End Date not supported'), (history(end='today'), 321, "'today'"),
    (history(duration='5 days'), 321, 'duration'), (history(duration='366 D'), 321, 'made in years'), (history(form=3), 321, 'date format'),
    (history(what='BID_ASK'), 162, 'no data'), (history(size='5 mins'), 162, 'no data'), (history(end='20200102 16:00:00'), 162, 'no data'),
    (history(what='SCHEDULE'), 321, 'Schedule')])
def test_history_is_refused_in_tws_words(ask, code, words):
    async def f(srv):
        raw = await Raw.open(srv)
        await raw.say(*ask)
        return await raw.hear()
    said = on(f)
    assert said[:4] == ['4', '2', '1', str(code)] and words in said[4]


def test_small_bars_are_paced_over_all_connections():
    async def f(srv):
        a, b = await Raw.open(srv, client_id=1), await Raw.open(srv, client_id=2)
        out = []
        for raw, req_id in ((a, 1), (b, 2)):
            await raw.say(*history(req_id, size='5 secs'))
            out.append((await raw.hear())[4])
        await a.say(*history(3))
        await a.say(*history(4))
        return out, [(await a.hear())[0] for _ in range(2)]
    (first, second), minute_bars = on(f)
    assert 'no data' in first and 'pacing violation' in second and minute_bars == ['17', '17']


def test_pacing_is_lifted_by_the_clock_and_by_a_switch():
    clock = FixedClock(datetime(2025, 12, 1, tzinfo=UTC))

    async def f(srv):
        raw, out = await Raw.open(srv), []
        for wait in (0, 14, 16):
            clock.sleep(wait)
            await raw.say(*history())
            out.append((await raw.hear())[0])
        return out
    assert on(f, pacing='all', clock=clock) == ['17', '4', '17'] and on(f, pacing='off', clock=clock) == ['17']*3


def test_read_only_api():
    async def f(srv):
        raw, out = await Raw.open(srv), []
        for ask in ((5, 1), (99, False), (16, 1), (61, 1)):
            await raw.say(*ask)
            out.append((await raw.hear())[:4])
        return out
    assert on(f, faults=Faults(read_only=True)) == [['4', '2', '-1', '321']]*3 + [['62', '1']]


# --- the scheduler

def test_a_late_reply_does_not_hold_up_others_and_can_be_cancelled():
    async def f(srv):
        raw = await Raw.open(srv)
        await raw.say(*history(1))
        await raw.say(*history(2))
        await raw.say(49, 1)
        heard = [(await raw.hear())[0]]
        await raw.say(25, 1, 2)
        await raw.say(25, 1, 2)
        heard += [(await raw.hear())[2:4] for _ in range(2)]
        return heard, (await raw.hear())[:2]
    heard, late = on(f, faults=Faults(delay_s=.3))
    assert heard == ['49', ['2', '162'], ['2', '366']] and late == ['17', '1']


def test_two_clients_of_a_big_reply_get_whole_frames():
    async def f(srv):
        raws = [await Raw.open(srv, client_id=i) for i in (1, 2)]
        for raw in raws:
            for i in range(5): await raw.say(*history(i, duration=f'{i + 1} D'))
        return [[(m[1], len(m)) for m in [await raw.hear() for _ in range(5)]] for raw in raws]
    a, b = on(f, faults=Faults(fragment=777))
    assert a == b == [('0', 5 + 8*390)] + [(str(i), 5 + 8*600) for i in range(1, 5)]


# --- scripted faults

@pytest.mark.parametrize('faults,answer', [(Faults(accept_close=True), b''), (Faults(greeting='HTTP/1.1 400 Bad Request\r\n\r\n'), b'HTTP/1.1 400 Bad Request\r\n\r\n')])
def test_closed_at_once_or_another_protocol(faults, answer):
    async def f(srv):
        reader, _ = await asyncio.open_connection('127.0.0.1', srv.port)
        return await asyncio.wait_for(reader.read(), 10)
    assert on(f, faults=faults) == answer


@pytest.mark.parametrize('faults,hello', [(Faults(mute=True), None), (Faults(silent=True), '178')])
def test_silence(faults, hello):
    async def f(srv):
        raw = await Raw.open(srv, start=False)
        try: said = await asyncio.wait_for(raw.hear(), .3)
        except asyncio.TimeoutError: said = [None]
        await raw.say(71, 2, 1, '')
        with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(raw.hear(), .3)
        return said[0]
    assert on(f, faults=faults) == hello


def test_history_faults_hit_the_request_they_name():
    async def f(srv):
        raw, out = await Raw.open(srv), []
        for i in range(1, 5):
            await raw.say(*history(i, duration=f'{i} D'))
            if i != 2: out.append((await raw.hear())[:4])
        await raw.say(25, 1, 2)
        return out + [(await raw.hear())[2:4]]
    a, b, c, cancelled = on(f, faults=Faults(silent_history=(2,), history_errors={'3': [165, 'HMDS connection lost']}, denied=('BID_ASK',)))
    assert (a[0], b, c[0], cancelled) == ('17', ['4', '2', '3', '165'], '17', ['2', '162'])


def test_socket_breaks_off_in_the_middle_of_a_reply_once():
    async def f(srv):
        raw = await Raw.open(srv)
        for i in (1, 2): await raw.say(*history(i, duration=f'{i} D'))
        first, then = await raw.hear(), await raw.hear()
        torn = len(raw.frames.buf)
        again = await Raw.open(srv)
        await again.say(*history(3))
        return first[:2], then, torn, (await again.hear())[0]
    first, then, torn, again = on(f, faults=Faults(drop_after=1))
    assert first == ['17', '1'] and then is None and torn > 1000 and again == '17'


# --- time

def test_virtual_time_is_in_every_field():
    async def f(srv):
        raw = await Raw.open(srv, start=False)
        hello = await raw.hear()
        ib = await client(srv)
        [d] = await ib.reqContractDetailsAsync(SPY)
        bars = await ib.reqHistoricalDataAsync(SPY, '', '1 D', '1 min', 'TRADES', True, 2)
        plan = await ib.reqHistoricalScheduleAsync(SPY, 1)
        at = await ib.reqCurrentTimeAsync()
        ib.disconnect()
        return hello[1], d.liquidHours.split(';')[0], bars[-1].date, plan.sessions[-1].refDate, at
    hello, hours, last, day, at = on(f, asof=NOON)
    assert hello == '20251201 12:00:30 US/Eastern' and hours == '20251201:0930-20251201:1600' and day == '20251201'
    assert last == datetime(2025, 12, 1, 11, 59, tzinfo=ET) and at == NOON


def test_running_time_brings_bars_as_they_end():
    clock = FixedClock(datetime(2025, 1, 1, tzinfo=UTC))

    async def f(srv):
        raw, out = await Raw.open(srv), []
        for wait in (0, 2, 1, 60):  # seconds of ten virtual seconds each
            clock.sleep(wait)
            await raw.say(*history())
            out.append(int((await raw.hear())[4]))
            await raw.say(49, 1)
            out.append(int((await raw.hear())[2]) - int(NOON.timestamp()))
        return out
    assert on(f, asof=NOON, speed=10, clock=clock, pacing='off') == [150, 0, 150, 20, 151, 30, 161, 630]


def test_a_cut_tape_holds_nothing_later():
    assert on(lambda srv: _later(srv), asof=NOON) == []


async def _later(srv): return [k for k, b in srv.tape.bars.items() if (b.index >= pd.Timestamp(NOON)).any()]


# --- a process of its own

def test_process_serves_and_ends_with_its_parent():
    code = ('import sys; from spyresearch.tws.replay import spawn\n'
            'with spawn(days=10, asof="2025-12-01T12:00") as (host, port): print(port, flush=True); sys.stdin.read()')
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    port = int(p.stdout.readline())
    with socket.create_connection(('127.0.0.1', port), 5) as s:
        s.sendall(b'API\0' + wire.pack(b'v157..178'))
        n = struct.unpack('>I', s.recv(4))[0]
        assert s.recv(n) == b'178\x0020251201 12:00:00 US/Eastern\0'
        os.kill(p.pid, signal.SIGKILL if hasattr(signal, 'SIGKILL') else signal.SIGTERM)
        p.wait(10)
        s.settimeout(10)
        assert s.recv(1) == b'', 'the server outlived its parent'
    p.stdin.close()
    p.stdout.close()


@pytest.mark.parametrize('args,error,words', [
    (dict(bars=['nowhere.parquet']), DataError, 'nowhere.parquet'), (dict(asof='soon'), UsageError, '--asof'), (dict(faults='{"drop": 1}'), UsageError, 'drop_after'),
    (dict(days=10, asof='1990-01-02'), DataError, 'knows nothing'), (dict(days=10, pacing='often'), UsageError, 'pacing')])
def test_errors_of_the_process_are_ours(args, error, words):
    with pytest.raises(error) as e:
        with spawn(**args): pass
    assert words in str(e.value)


def test_taken_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        with pytest.raises(UsageError, match='cannot listen'):
            with spawn(days=10, port=s.getsockname()[1]): pass


# --- contracts and orders

async def asking(srv, f):
    "What `f(ib)` gives, and every error the client is told."
    ib, told = await client(srv), []
    ib.RaiseRequestErrors = False
    ib.errorEvent += lambda req_id, code, what, *_: told.append((req_id, code, what))
    try: return await f(ib), [o for o in told if o[1] not in (2104, 2106, 2158)]
    finally: ib.disconnect()


def test_a_contract_comes_back_from_the_venue_where_it_was_asked_for():
    async def f(ib):
        asks = [Stock('SPY', v, 'USD') for v in ('', 'SMART', *DEEP)] + [Contract(conId=756733, exchange='ARCA'), Contract(conId=756733)]
        found = [await ib.reqContractDetailsAsync(c) for c in asks]
        again = [await ib.reqContractDetailsAsync(d.contract) for [d] in found]
        lost = [await ib.reqContractDetailsAsync(c) for c in (Stock('SPY', 'LSE', 'USD'), Contract(conId=756733, exchange='LSE'), Stock('SPY', 'SMART', 'EUR'))]
        return [d for [d] in found], [d for [d] in again], lost, await ib.qualifyContractsAsync(Stock('SPY', 'NASDAQ', 'USD'))
    (found, again, lost, qualified), told = on(lambda srv: asking(srv, f))
    assert [d.contract.exchange for d in found] == [d.contract.exchange for d in again] == ['SMART', 'SMART', *DEEP, 'ARCA', 'SMART']
    assert {d.contract.primaryExchange for d in found} == {'ARCA'} and {'SMART', *DEEP} <= set(found[0].validExchanges.split(',')) and len({d.validExchanges for d in found}) == 1
    assert lost == [[]]*3 and [o[1] for o in told] == [200]*3 and qualified[0].conId == 756733 and qualified[0].exchange == 'NASDAQ'
    assert len(found[0].marketRuleIds.split(',')) == len(found[0].validExchanges.split(','))


def test_a_venue_without_spy_is_unknown_to_every_request():
    async def f(srv):
        raw = await Raw.open(srv)
        far = ['756733', 'SPY', 'STK', '', 0., '', '', 'LSE', '', 'USD', '', '']
        for ask in ([1, 11, 1, *far, False, '', False, False, ''], [10, 5, 2, *far, 5, False, ''], [20, 3, *far, False, '', '1 min', '1 D', True, 'TRADES', 2, False, ''],
                    [97, 4, *far, 'Last', 0, False], [87, 5, *far, False, True, 'TRADES', 2]): await raw.say(*ask)
        return [await raw.hear() for _ in range(5)]
    assert [o[2:4] for o in on(f)] == [[str(i), '200'] for i in range(1, 6)]


def test_no_order_is_taken_and_none_is_left_waiting():
    async def f(ib):
        trade = ib.placeOrder(Stock('SPY', 'SMART', 'USD', conId=756733), LimitOrder('BUY', 100, 600.))
        await ib.reqCurrentTimeAsync()
        ib.cancelOrder(trade.order)
        ib.exerciseOptions(Option('SPY', '20251205', 600, 'C', 'SMART'), 1, 1, 'TOY', 0)
        ib.reqGlobalCancel()
        what_if = asyncio.ensure_future(ib.whatIfOrderAsync(Stock('SPY', 'SMART', 'USD', conId=756733), LimitOrder('BUY', 1, 600.)))
        await ib.reqCurrentTimeAsync()
        what_if.cancel()
        return trade
    trade, told = on(lambda srv: asking(srv, f))
    assert [o[1:] for o in told] == [READ_ONLY]*5 and [o[0] for o in told[:2]] == [trade.order.orderId]*2 and told[3][0] == -1 and len({o[0] for o in told}) == 4
    assert trade.log[-1].errorCode == 321 and trade.orderStatus.filled == 0 and not trade.fills


# --- where a replay begins, and what it says of itself

def seconds_of(day, n=3): return ['ts,open,high,low,close,volume', *(f'{day}T09:3{i}:0{i}-05:00,{600 + i},{601 + i},{599 + i},{600.5 + i},{100 + i}' for i in range(n))]


@pytest.fixture
def recorded(tmp_path):
    "Two sessions of trades by the second, as a file."
    path = tmp_path/'seconds.csv'
    path.write_text('\n'.join(seconds_of('2025-12-01') + seconds_of('2025-12-02')[1:]) + '\n')
    return path


@pytest.mark.parametrize('live', [False, True])
def test_a_day_the_tape_lacks_is_refused(recorded, live):
    tape = open_tape(trades=recorded)
    for day in ('2025-12-03', '2025-11-28', '2030-01-02'):
        with pytest.raises(DataError, match=f'has nothing of {day}'): before_open(tape, day, live)
    with pytest.raises(UsageError, match='not a trading day'): before_open(tape, '2025-11-27', live)
    assert before_open(tape, '', live) == parse_asof('2025-12-02T09:15') and before_open(tape, '2025-12-01', live) == parse_asof('2025-12-01T09:15') and start_of(tape) == tape.end


def test_a_day_that_the_tape_lacks_is_refused_by_the_process(recorded):
    for day in ('2025-12-03', '2030-01-02'):
        with pytest.raises(DataError, match=f'has nothing of {day}'):
            with open_source(Source(trades=str(recorded), asof=day), from_open=True): pass


def started(*args, n_err):
    "The first two lines that `spy replay` prints, and `n_err` lines for its user; one that does not end says where it hangs."
    p = subprocess.Popen([sys.executable, '-X', 'faulthandler', '-m', 'spyresearch.cli', 'replay', *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try: return [p.stdout.readline().split()[0] for _ in 'ab'], [p.stderr.readline().rstrip() for _ in range(n_err)]
    finally:
        p.terminate()
        try: p.wait(60)
        except subprocess.TimeoutExpired: p.send_signal(signal.SIGABRT); pytest.fail(f'still there a minute after SIGTERM: {p.communicate(timeout=10)}')
        for o in (p.stdout, p.stderr): o.close()


def test_a_server_says_what_it_holds_where_it_comes_from_and_when_it_begins(recorded):
    first, told = started('--trades', recorded, '--speed', '60', '--from-open', n_err=9)
    assert first == ['listening', 'control'] and told == [
        'tape seconds: REPLAY (replay:seconds)', 'days: 2, 2025-12-01 to 2025-12-02', 'history: TRADES (1 min); minutes of TRADES are sums of the record', 'level 1: recorded',
        'single trades: NOT HELD', 'single quotes: NOT HELD', '5-second bars: NOT HELD', 'depth: NOT HELD', 'options: NOT HELD']
    first, told = started('--sessions', 10, n_err=10)
    assert first == ['listening', 'control'] and told[0] == 'tape demo: SIMULATED (simulated:demo)' and 'depth: drawn inside the minutes' in told and 'stands still at 2025-12-05 16:00:00' in told[-1]
    assert about(ReplayServer(open_tape(trades=recorded), speed='max'))[-1].endswith('no stream moves: begin earlier with --from-open or --asof')


# --- real prices

@pytest.fixture(scope='module')
def real(shared): return tape_from_files([shared('spy_1min.parquet'), shared('spy_5min.parquet')], shared('spy_daily.parquet'), shared('spy_dividends.csv'))


@pytest.fixture(scope='module')
def source(shared): return pd.read_parquet(shared('spy_1min.parquet')).tz_convert(ET)


async def walk(srv, requests):
    ib = await client(srv)
    out = [await ib.reqHistoricalDataAsync(SPY, *r, True, 2) for r in requests]
    ib.disconnect()
    assert srv.unhandled == []
    return out


def frame_of(bars, cols=('open', 'high', 'low', 'close', 'volume')): return np.array([[getattr(b, c) for c in cols] for b in bars])


def test_real_session_is_served_as_it_stands_in_the_file(real, source):
    (bars,) = on(lambda srv: walk(srv, [('', '1 D', '1 min', 'TRADES')]), real, asof=parse_asof('2026-03-31'))
    day = source.loc['2026-03-31']
    assert len(bars) == len(day) == 390 and [b.date for b in bars] == list(day.index)
    assert (frame_of(bars) == day[['open', 'high', 'low', 'close', 'volume']].to_numpy(float)).all()
    assert {(b.average, b.barCount) for b in bars} == {(-1, -1)}


def test_real_120_sessions_in_requests_of_five(real, source):
    asof = parse_asof('2026-03-31')
    days = last_sessions(120, asof)
    ends = [session(d).close.tz_convert('UTC').to_pydatetime() for d in days[4::5]]
    got = on(lambda srv: walk(srv, [(e, '5 D', '1 min', 'TRADES') for e in ends]), real, asof=asof)
    want = source.loc[str(days[0]):'2026-03-31']
    assert sum(map(len, got)) == len(want) and (np.vstack([frame_of(b) for b in got]) == want[['open', 'high', 'low', 'close', 'volume']].to_numpy(float)).all()


def test_real_morning_knows_no_afternoon(real):
    bars, daily, adjusted = on(lambda srv: walk(srv, [('', '1 D', '1 min', 'TRADES'), ('', '1 M', '1 day', 'TRADES'), ('', '1 Y', '1 day', 'ADJUSTED_LAST')]),
                               real, asof=parse_asof('2026-03-31T11:30'))
    assert len(bars) == 120 and bars[-1].date == datetime(2026, 3, 31, 11, 29, tzinfo=ET)
    assert daily[-1].date == adjusted[-1].date == date(2026, 3, 30) and daily[-1].close == adjusted[-1].close
    assert adjusted[0].close < daily[0].close or adjusted[0].date != daily[0].date


def test_real_gaps_are_not_filled(real, source):
    "A missing minute stays missing, and a span without data gives 162."
    (bars,) = on(lambda srv: walk(srv, [('20260713 16:00:00 US/Eastern', '1 D', '1 min', 'TRADES')]), real)
    assert len(bars) == len(source.loc['2026-07-13']) == 389
    with pytest.raises(RequestError) as e: on(lambda srv: walk(srv, [('20220601 16:00:00 US/Eastern', '5 D', '1 min', 'TRADES')]), real)
    assert e.value.code == 162 and 'no data' in e.value.message


def test_real_long_history(real):
    five, daily = on(lambda srv: walk(srv, [('20250731 16:00:00 US/Eastern', '1 M', '5 mins', 'TRADES'), ('', '20 Y', '1 day', 'ADJUSTED_LAST')]), real)
    assert five[-1].date == datetime(2025, 7, 31, 15, 55, tzinfo=ET) and five[-1].date - five[0].date < timedelta(days=32)
    assert len(daily) > 4900 and daily[0].volume > 0 and daily[0].open < daily[-1].open


def test_recorded_trade_counts_come_through(shared):
    tape = tape_from_files([shared('spy_1min_ib_2021q1.parquet')])
    (bars,) = on(lambda srv: walk(srv, [('20210104 16:00:00 US/Eastern', '1 D', '1 min', 'TRADES')]), tape)
    file = pd.read_parquet(shared('spy_1min_ib_2021q1.parquet'))
    assert [b.barCount for b in bars] == file['trades'].iloc[:390].astype(int).tolist()


# --- records without bars

@pytest.fixture(scope='module')
def by_second(shared): return open_tape(quotes=shared('spy_quotes_1s_2013.parquet'), trades=shared('spy_trades_1s_2013.parquet'))


def test_real_seconds_add_up_to_minutes(by_second, shared):
    t = pd.read_parquet(shared('spy_trades_1s_2013.parquet')).set_index('ts').tz_convert(ET).between_time('09:30', '16:00', inclusive='left')
    want = t.resample('1min').agg(dict(open='first', high='max', low='min', close='last', volume='sum')).dropna()
    got = by_second.bars['TRADES', '1 min']
    assert list(got) == list(want) and (got.index == want.index).all() and (got.to_numpy() == want.to_numpy(float)).all() and len(got) == 5*390
    assert by_second.account == 'REPLAY-spy_quotes_1s_2013' and not by_second.drawn


def test_real_quotes_add_up_to_bid_and_ask(by_second, shared):
    "Each second weighs one second; the quote of a second stands at its end."
    q = pd.read_parquet(shared('spy_quotes_1s_2013.parquet')).set_index('ts').tz_convert(ET).between_time('09:30', '16:00', inclusive='left')[['bc', 'ac']].astype(float).round(4)
    got = by_second.bars['BID_ASK', '1 min']
    for minute in got.index[[1, 200, 389, 391, -1]]:
        stands = q[minute - pd.Timedelta('1min'):minute + pd.Timedelta('59s')].resample('1s').last().ffill().shift(1)[minute:]   # what stands through a second is the quote at the end of the one before
        inside = q[minute:minute + pd.Timedelta('59s')]
        b = got.loc[minute]
        if minute.hour != 9 or minute.minute != 30:
            assert b['open'] == pytest.approx(stands['bc'].mean(), abs=1e-6) and b['close'] == pytest.approx(stands['ac'].mean(), abs=1e-6)
        assert (b['high'], b['low']) == (max(inside['ac'].max(), stands['ac'].max()), min(inside['bc'].min(), stands['bc'].min()))
    assert len(got) == 5*390 and (got['open'] < got['close']).all() and ((got['low'] <= got['open']) & (got['close'] <= got['high'])).all()


def test_bars_that_were_given_are_not_touched(shared):
    tape = open_tape([shared('spy_1min.parquet')], trades=shared('spy_trades_1s_2013.parquet'))
    alone, bars = tape_from_files([shared('spy_1min.parquet')]).bars['TRADES', '1 min'], tape.bars['TRADES', '1 min']
    after = bars['2021':]
    assert (after.index == alone.index).all() and (after.to_numpy() == alone.to_numpy()).all() and len(bars[:'2013']) == 5*390 and bars.index.is_monotonic_increasing


async def live_minutes(srv):
    ib = await client(srv)
    [d] = await ib.reqContractDetailsAsync(SPY)
    out = [await ib.reqHistoricalDataAsync(d.contract, '', '2 D', '1 min', what, True, 2) for what in ('TRADES', 'BID_ASK')]
    ib.disconnect()
    return out


def test_summed_minutes_are_history_and_unknown_counts_say_so(by_second):
    trades, quotes = on(live_minutes, by_second, asof=parse_asof('2013-10-09T10:00'))
    want = by_second.bars['TRADES', '1 min']['2013-10-08':'2013-10-09 09:59']
    assert (frame_of(trades) == want.to_numpy()).all() and {(b.average, b.barCount) for b in trades} == {(-1, -1)} and len(quotes) == len(trades) == 420


def test_a_book_of_a_closed_day_begins_with_its_record_and_is_no_live_run(shared):
    path = shared('es_book10_20231225.parquet')
    tape = open_tape(book=path)
    begin = before_open(tape)
    first = datetime.fromtimestamp(int(tape.ticks[date(2023, 12, 25)].books.t[0])//10**9, UTC)
    assert begin == first == start_of(tape) == before_open(tape, '2023-12-25') and tape.bars == {}
    with pytest.raises(DataError, match='no session of SPY'): before_open(tape, live=True)
    with pytest.raises(DataError, match='any client can listen'):
        with open_source(Source(book=str(path)), from_open=True): pass
    told = started('--book', path, '--speed', '60', n_err=10)[1]
    assert told[0] == 'tape es_book10_20231225: REPLAY (replay:es_book10_20231225)' and told[7] == 'depth: recorded' and told[9] == 'time begins at 2023-12-25 17:55:00 New York, 60 times as fast as real time'


async def listen(host, port):
    ib = IB()
    await ib.connectAsync(host, port, clientId=1)
    deep = []
    t = ib.reqMktDepth(Stock('SPY', 'ARCA', 'USD', conId=756733), 10)
    t.updateEvent.connect(lambda o: deep.extend(o.domTicks), keep_ref=True)
    for _ in range(200):
        await asyncio.sleep(.05)
        if len(deep) > 500: break
    ib.disconnect()
    return deep


def test_a_book_alone_is_heard_from_its_beginning(shared):
    path = shared('es_book10_20231225.parquet')
    with spawn(book=path, speed='120') as (host, port): deep = asyncio.run(listen(host, port))
    assert len(deep) > 500 and {o.side for o in deep} == {0, 1}
