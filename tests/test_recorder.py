"""The recording proxy between unmodified clients and a server, and the tape that follows from its log.

Streams come from a little server that writes frames, and the book from a real record, so that what is read back
can be compared with what was sent."""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ib_async import IB

from spyresearch.core import ET, UTC, DataError, FixedClock, FolderError, UsageError
from spyresearch.sessions import minutes
from spyresearch.tws import wire
from spyresearch.tws.intraminute import draw_day
from spyresearch.tws.recorder import Frame, Masks, Recorder, head, read_frames, record
from spyresearch.tws.recording import Playback, recording, tape_of
from spyresearch.tws.replay import Faults, ReplayServer
from spyresearch.tws.tape import DAY, Tape
from spyresearch.tws.ticks import depth_ops
from test_clients import NOW, ODD, bars, ib_answers, odd_tape, official_answers, stock

DAY1 = date(2025, 12, 1)
IDS = ['U1234567', 'DU7654321', 'F2345678', 'DF8765432', 'DUM246802', 'Family.3']


def odd_server(**kw): return ReplayServer(odd_tape(), NOW, details=ODD, **kw)


@pytest.mark.parametrize('client', ['ib_async', 'official'])
def test_unmodified_clients_see_no_difference(client, tmp_path):
    async def ask(port): return await (ib_answers(port, IB()) if client == 'ib_async' else asyncio.to_thread(official_answers, port))
    async def run():
        async with odd_server() as srv: direct = await ask(srv.port)
        async with odd_server() as srv, Recorder('127.0.0.1', srv.port, tmp_path/'a.frames', clock=FixedClock(NOW)) as r: through = await ask(r.port)
        assert not r.errors and not srv.unhandled
        return direct, through
    direct, through = asyncio.run(run())
    plain = [o | dict(details=[str(vars(d)) for d in o['details']], bars=[[b if isinstance(b, dict) else vars(b) for b in s] for s in o['bars']]) for o in (direct, through)]
    if client == 'official': plain = [o | dict(details=len(o['details'])) for o in plain]
    assert plain[0] == plain[1] and sum(map(len, through['bars'])) > 1000


@pytest.mark.parametrize('version', [157, 178])
def test_a_recorded_session_of_history_is_served_again(version, tmp_path):
    "Both date formats, overlapping requests, bar sizes and daily bars, through a log and back."
    async def run():
        async with odd_server() as srv, Recorder('127.0.0.1', srv.port, tmp_path/'a.frames', clock=FixedClock(NOW)) as r:
            first = await ib_answers(r.port, IB(), version)
        rec = recording(r.out)
        async with ReplayServer(rec.tape('again'), NOW, details=ODD) as srv: return first, await ib_answers(srv.port, IB(), version), rec
    first, again, rec = asyncio.run(run())
    assert first['bars'][:-1] == again['bars'] and again['accounts'] == ['SIMULATED-again'] # adjusted closes do not go on a tape
    assert set(rec.bars) == {(o, '1 min') for o in ('TRADES', 'BID_ASK', 'MIDPOINT', 'OPTION_IMPLIED_VOLATILITY')} | {('TRADES', DAY), ('ADJUSTED_LAST', DAY)}
    pd.testing.assert_frame_equal(rec.bars['TRADES', '1 min'].loc['2025-12-01'], bars(DAY1, 310)[:150], check_freq=False, check_index_type=False)
    assert rec.unknown == [] and rec.counts['<17'] == 8 and rec.left_out == {}


# -- what is written

def talk(names):
    "A client's and a server's words that are full of ids."
    up = b'API\0' + wire.pack(b'v157..178') + b''.join([wire.frame(71, 2, 1, '')] + [wire.frame(6, 2, True, o) + wire.frame(76, 1, 9, o, '', False) for o in names])
    down = wire.server_hello(178, '20251201 12:00:30 US/Eastern') + wire.managed_accounts(names)
    for o in names:
        down += wire.error_msg(-1, 321, f'no order for {o}, {o.lower()} or ({o})') + wire.frame(6, 2, 'NetLiquidation', '1', 'USD', o) + wire.frame(61, 3, o + 'A', 756733, 'SPY')
    return up, down


def chopped(data, cuts): return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]


async def spoken(out, up, down, cuts_up=(), cuts_down=(), **kw):
    "A client and a server that say just this, cut there: (what the server heard, what the client heard, the recorder)."
    heard = []
    async def server(reader, writer):
        for o in chopped(down, cuts_down):
            writer.write(o)
            await writer.drain()
        heard.append(await reader.read())
        writer.close()
    async with await asyncio.start_server(server, '127.0.0.1', 0) as s, Recorder('127.0.0.1', s.sockets[0].getsockname()[1], out, **kw) as r:
        reader, writer = await asyncio.open_connection('127.0.0.1', r.port)
        told = await reader.readexactly(len(down))
        for o in chopped(up, cuts_up):
            writer.write(o)
            await writer.drain()
        writer.write_eof()
        told += await reader.read()
        writer.close()
    return heard[0], told, r


def no_id_in(text): return not [o for o in IDS if re.search(re.escape(o), text, re.I)] and not re.search('1234567|7654321|2345678|8765432|246802', text)


@pytest.mark.parametrize('size', [1, 7, 1 << 20])
def test_ids_are_masked_in_the_file_and_not_on_the_wire(size, tmp_path):
    up, down = talk(IDS)
    heard, told, r = asyncio.run(spoken(tmp_path/'a.frames', up, down, range(size, len(up), size), range(size, len(down), size)))
    text = r.out.read_text()
    assert (heard, told) == (up, down) and no_id_in(text) and not r.errors
    by_name = {o.fields[-1] for o in read_frames(r.out) if o.way == '<' and o.fields[0] == '6'}
    assert by_name == {'U0000001', 'DU0000002', 'F0000003', 'DF0000004', 'DU0000005', 'U0000006'}
    assert text.count('U0000006') == 3 + 3 + 1 + 1 and '"61", "3", "U0000001A"' in text
    if os.name == 'posix': assert r.out.stat().st_mode & 0o077 == 0


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_cut_gives_the_same_log(tmp_path_factory, data):
    "Bytes on the wire and lines in the file do not depend on how the network cuts them."
    up, down = talk(IDS)
    cuts = [sorted(data.draw(st.sets(st.integers(1, len(o) - 1), max_size=12))) for o in (up, down)]
    tmp = tmp_path_factory.mktemp('cut')
    heard, told, r = asyncio.run(spoken(tmp/'a.frames', up, down, *cuts, clock=FixedClock(NOW)))
    whole = asyncio.run(spoken(tmp/'b.frames', up, down, clock=FixedClock(NOW)))[2]
    def lines(p): return sorted((o.way, *o.fields) for o in read_frames(p) if o.way != '*')
    assert (heard, told) == (up, down) and lines(r.out) == lines(whole.out)


def test_what_only_looks_like_an_id_stays():
    mask = Masks()
    for o in ('US78462F1030', '9c0001', 'SPY   251205C00600000', '0000e0d5.65f12345.01', 'U1', 'ESU5', '1764608431', 'v157..178', 'SIMULATED-demo', 'REPLAY-spy_1min'):
        mask.learn([o] if '-' in o else [])
        assert mask([o]) == [o]
    assert mask(['DU123456', 'I12345', 'xU1234567', '(U12345)']) == ['DU0000001', 'I0000002', 'xU1234567', '(U0000003)'] and mask([]) == []


def test_binary_and_foreign_protocols_pass_but_are_not_written(tmp_path):
    "From server version 201 on an id could not be found, so nothing is kept; nor of what is no TWS at all."
    up, down = talk(IDS)
    binary = wire.server_hello(213, '20251201 12:00:30 US/Eastern') + down
    for name, a, b in (('binary', up, binary), ('http', b'GET / U1234567 HTTP/1.1\r\n\r\n', b'HTTP/1.1 400 U1234567\r\n\r\n'), ('mixed', up, b'\0\0\0\x08hello\0\0\0' + down)):
        heard, told, r = asyncio.run(spoken(tmp_path/name, a, b))
        assert (heard, told) == (a, b) and no_id_in(r.out.read_text()) and len(r.errors) == 1
        assert [o.fields[0] for o in read_frames(r.out)][:2] == ['opened', 'unreadable']


# -- the relay

def test_an_end_of_one_connection_is_its_own(tmp_path):
    "Two clients at once: one leaves and comes back, the other goes on; then the server drops a third in mid-reply."
    async def run():
        async with odd_server(faults=Faults(drop_after=2)) as srv, Recorder('127.0.0.1', srv.port, tmp_path/'a.frames', clock=FixedClock(NOW)) as r:
            a, b = IB(), IB()
            await a.connectAsync('127.0.0.1', r.port, clientId=1)
            await b.connectAsync('127.0.0.1', r.port, clientId=2)
            a.disconnect()
            assert (await b.reqCurrentTimeAsync()) == NOW
            await a.connectAsync('127.0.0.1', r.port, clientId=1)
            async def ask(ib): return list(await ib.reqHistoricalDataAsync(stock(ib), '', '600 S', '1 min', 'TRADES', True, 2, timeout=5))
            one, two = await ask(a), await ask(a)
            gone = asyncio.Event()
            a.disconnectedEvent += gone.set
            with pytest.raises(ConnectionError): await ask(a)
            await asyncio.wait_for(gone.wait(), 5)
            await a.connectAsync('127.0.0.1', r.port, clientId=1)
            three, four = await ask(a), await ask(b)
            a.disconnect()
            b.disconnect()
        return one, two, three, four, r, srv
    *got, r, srv = asyncio.run(run())
    assert len(got[0]) == 9 and all(o == got[0] for o in got) and not r.errors
    frames = list(read_frames(r.out))
    assert {o.conn for o in frames} == {1, 2, 3, 4} and sum(o.fields[0] == '17' for o in frames if o.way == '<') == 4 # the broken reply is no message
    assert [o.fields for o in frames if o.way == '*' and o.conn == 3] == [['opened'], ['ended', '<']]


def test_a_tws_that_is_away_costs_the_connection_only(tmp_path, capsys):
    async def run():
        async with odd_server() as srv: port = srv.port
        async with Recorder('127.0.0.1', port, tmp_path/'a.frames') as r:
            for _ in range(2):
                reader, writer = await asyncio.open_connection('127.0.0.1', r.port)
                assert await reader.read() == b''
                writer.close()
            async with odd_server(port=port) as srv:
                ib = IB()
                await ib.connectAsync('127.0.0.1', r.port, clientId=1)
                ib.disconnect()
        return r
    r = asyncio.run(run())
    assert len(r.errors) == 2 and 'cannot be reached' in capsys.readouterr().err
    assert [o.fields[0] for o in read_frames(r.out) if o.way == '*'][:4] == ['opened', 'unreachable']*2


def test_a_full_disk_ends_the_log_and_not_the_relay(tmp_path, capsys):
    class Full:
        def __init__(self, file): self.file = file
        def write(self, data): return self.file.write(data[:3])
        def close(self): self.file.close()
    async def run():
        async with odd_server() as srv, Recorder('127.0.0.1', srv.port, tmp_path/'a.frames') as r:
            ib = IB()
            await ib.connectAsync('127.0.0.1', r.port, clientId=1)
            r.file = Full(r.file)
            at = await ib.reqCurrentTimeAsync()
            ib.disconnect()
            return at, r
    at, r = asyncio.run(run())
    assert at == NOW and isinstance(r.failed, FolderError) and capsys.readouterr().err.count('cannot add to') == 1
    assert recording(r.out).accounts == ['SIMULATED-odd']


def test_stopping_leaves_no_port_and_no_task(tmp_path):
    async def run():
        async with odd_server() as srv:
            async with Recorder('127.0.0.1', srv.port, tmp_path/'a.frames') as r:
                reader, writer = await asyncio.open_connection('127.0.0.1', r.port)
                writer.write(b'API\0' + wire.pack(b'v157..178'))
                await reader.readexactly(8)
            await reader.read()
            writer.close()
            with pytest.raises(OSError): await asyncio.open_connection('127.0.0.1', r.port)
        return {o for o in asyncio.all_tasks() if o is not asyncio.current_task()}
    assert asyncio.run(run()) == set()


def test_a_recording_is_never_replaced_and_a_bad_place_is_said(tmp_path, capsys):
    (tmp_path/'a.frames').write_text('mine')
    with pytest.raises(UsageError, match='exists'): record('127.0.0.1', 1, tmp_path/'a.frames')
    assert (tmp_path/'a.frames').read_text() == 'mine'


@pytest.mark.skipif(os.name == 'nt', reason='signals of a console are another matter')
def test_the_program_listens_records_and_ends_when_interrupted(tmp_path):
    async def talk_to(port):
        ib = IB()
        await ib.connectAsync('127.0.0.1', port, clientId=1)
        ib.disconnect()
    async def run():
        async with odd_server() as srv:
            p = subprocess.Popen([sys.executable, '-m', 'spyresearch.cli', 'record', '--tws', f'127.0.0.1:{srv.port}', '--out', str(tmp_path/'a.frames')], stdout=subprocess.PIPE)
            try:
                line = (await asyncio.to_thread(p.stdout.readline)).decode()
                await talk_to(int(line.removeprefix('listening 127.0.0.1:')))
                p.send_signal(signal.SIGINT)
                return await asyncio.to_thread(p.wait, 20)
            finally:
                p.kill()
                p.stdout.close()
    assert asyncio.run(run()) == 130 and recording(tmp_path/'a.frames').accounts == ['SIMULATED-odd']


# -- what is read back

def spy(exchange='SMART', symbol='SPY', sec_type='STK'): return ['0', symbol, sec_type, '', '0', '', '', exchange, '', 'USD', '', '']
def hello(conn=1, at=0., version='178', when='20251201 12:00:30 US/Eastern'): return [[conn, at, '<', version, when], [conn, at, '<', '15', '1', 'U0000001']]
def all_last(req=1, kind='AllLast', **c): return ['>', '97', str(req), *spy(**c), kind, '0', '0']
def trade(px, second=1764608431, req=1, kind='2', size='100'): return ['<', '99', str(req), kind, str(second), str(px), size, '0', 'ARCA', '']
def history(req=1, size='1 min', what='TRADES', rth='1', form='2', **c): return ['>', '20', str(req), *spy(**c), '0', '', size, '1 D', rth, what, form, '0', '']
def reply(*cells, req=1): return ['<', '17', str(req), 'a', 'b', str(len(cells)), *(o for c in cells for o in c)]
def bar(when, px=100., volume='10'): return [str(when), *(str(px + o) for o in (0, 2, -1, 1)), volume, '-1', '-1']
T0 = int(datetime(2025, 12, 1, 9, 30, tzinfo=ET).timestamp())


def log(path, *lines, began=NOW):
    "A log written by hand; returns its path."
    path.write_text(''.join(json.dumps(o) + '\n' for o in (head(began), *lines)))
    return path


def test_torn_tail_growing_file_and_changed_middle(tmp_path):
    p = log(tmp_path/'a', *hello(), [1, 1., *all_last()], [1, 2., *trade(100.)])
    whole, want = p.read_bytes(), list(read_frames(p))
    ends = [i + 1 for i, b in enumerate(whole) if b == 10]
    for n in range(ends[0], len(whole) + 1):
        p.write_bytes(whole[:n])
        assert list(read_frames(p)) == want[:sum(e <= n for e in ends) - 1]
    for bad in (whole.replace(b'"97"', b'97"'), whole.replace(b'[1, 1.0', b'5\n[1, 1.0'), whole.replace(b'[1, 1.0', b'[1]\n[1, 1.0')):
        p.write_bytes(bad)
        with pytest.raises(DataError, match='line 4 cannot be read'): list(read_frames(p))
    for bad in (b'', b'{}\n', b'[]\n', b'\xff\xfe', b'{"format": "other"}\n', whole[:20]):
        p.write_bytes(bad)
        with pytest.raises(DataError, match='not a recording'): recording(p)


def test_bars_merge_later_wins_and_only_ended_ones_count(tmp_path):
    p = log(tmp_path/'a', *hello(when='20251201 09:32:30 US/Eastern'), [1, 1., *history()], [1, 1.5, *reply(bar(T0), bar(T0 + 60), bar(T0 + 120, 200.))],
            [1, 2., *history(2, form='1')], [1, 31., *reply(bar('20251201 14:31:00 UTC', 150.), bar('20251201 14:32:00 UTC', 160.), bar('20251201 03:00:00 UTC'), req=2)],
            [1, 32., *history(3, rth='0')], [1, 33., *reply(bar(T0 - 60), bar(T0 + 120, 170.), req=3)])
    df = recording(p).bars['TRADES', '1 min']
    assert df['open'].tolist() == [100., 150., 170.] and df.index.tolist() == minutes(DAY1)[:3].tolist() and list(df) == ['open', 'high', 'low', 'close', 'volume']


def test_the_servers_clock_decides_and_the_recorders_where_it_is_unknown(tmp_path):
    asked = [[1, 1., *history()], [1, 2., *reply(bar(T0), bar(T0 + 60), bar(T0 + 120))]]
    def n(*lines, began=NOW): return len(recording(log(tmp_path/'a', *lines, *asked, began=began)).bars['TRADES', '1 min'])
    early = datetime(2025, 12, 1, 9, 31, 30, tzinfo=ET)
    assert n(*hello(when='20251201 09:32:00 US/Eastern')) == 2                                   # though the recorder says noon
    assert n(*hello(when='20251201 09:32:00 US/Eastern'), [1, .5, '<', '49', '1', str(T0 + 200)]) == 3  # asked again
    for when in ('20251201 09:32:00', '20251201 09:32:00 Central European Standard Time', 'soon'): assert n(*hello(when=when), began=early) == 1


@pytest.mark.parametrize('lines, why', [
    ([history(exchange='ARCA'), reply(bar(T0))], 'bars of another contract or venue'), ([history(symbol='QQQ'), reply(bar(T0))], 'bars of another contract or venue'),
    ([history(sec_type='OPT'), reply(bar(T0))], 'bars of another contract or venue'), ([reply(bar(T0))], 'bars of another contract or venue'),
    ([history(size='30 secs'), reply(bar(T0))], 'bars of 30 secs'), ([history(size='1 day', rth='0'), reply(bar('20251128'))], 'bars of 1 day outside regular hours'),
    ([history(form='1'), reply(bar('20251201  09:30:00'))], '<17 not readable: ValueError'), ([history(form='1'), reply(bar('20251201 09:30:00 Nowhere/At_All'))], '<17 not readable: ZoneInfoNotFoundError'),
    ([history(), reply(bar(T0)) + ['7']], '<17 not readable: ValueError'), ([history(), reply(bar(T0, volume=''))], '<17 not readable: ValueError'),
    ([['>', '20', '1']], '>20 not readable: FeedError'), ([all_last(symbol='QQQ'), trade(1.)], 'single ticks of another contract, venue or kind'),
    ([all_last(), trade(0.)], 'a trade without a price'), ([['<', '1', '6', '4', '1', '9.', '1', '0']], 'level 1 of another contract or venue'),
    ([['<', '12', '1', '4', '0', '0', '1', '9.', '1']], 'depth of another contract or of several venues'),
    ([['>', '10', '5', '4', *spy('SMART'), '10', '1', ''], ['<', '13', '1', '4', '0', 'ARCA', '0', '1', '9.', '1', '1']], 'depth of another contract or of several venues')])
def test_what_no_tape_can_hold_is_counted(lines, why, tmp_path):
    rec = recording(log(tmp_path/'a', *hello(), *([1, 1., *o] for o in lines)))
    assert rec.left_out == {why: 1} and not rec.bars and not rec.ticks


def test_unknown_messages_and_versions_are_listed(tmp_path):
    rec = recording(log(tmp_path/'a', *hello(), [1, 1., '<', '777', 'x'], [1, 1., '>', '66', 'news'], [1, 1., '<', 'odd'], [1, 1., '<'], *hello(2, version='190'), [2, 1., '<', '17', '1']))
    assert rec.unknown == ['<777', '<odd', '>66'] and rec.left_out == {'server version 190': 2} and rec.counts['<15'] == 2


def test_trades_keep_second_order_and_distance(tmp_path):
    "Two clients ask for the same stream: only one of them counts, until its connection ends."
    lines = [*hello(), *hello(2), [1, 1., *all_last()], [2, 1., *all_last()],
             [1, 2.0, *trade(100.)], [2, 2.0, *trade(100.)], [1, 2.25, *trade(101.)], [2, 2.25, *trade(101.)], [1, 4., *trade(102.)], [1, 4.1, *trade(103., 1764608432)],
             [1, 5., '*', 'ended', '<'], [2, 6., *trade(104., 1764608434)], [2, 7., '>', '98', '1'], [2, 8., *trade(105., 1764608436)]]
    rec = recording(log(tmp_path/'a', *lines))
    t, s = rec.ticks[DAY1].trades, 1764608431*10**9
    assert t.px.tolist() == [100., 101., 102., 103., 104.] and t.size.tolist() == [100.]*5
    assert (t.t - s).tolist() == [0, 250_000_000, 10**9 - 1, 10**9, 3*10**9]
    assert rec.left_out == {'a second stream of AllLast': 2, 'single ticks of another contract, venue or kind': 1}


def test_all_venues_before_last_sales_and_single_quotes_before_level_1(tmp_path):
    l1 = ['>', '1', '11', '7', *spy(), '0', '', '0', '0', '']
    lines = [*hello(), [1, 1., *all_last(1, 'Last')], [1, 1., *all_last(2)], [1, 1., *all_last(3, 'BidAsk')], [1, 1., *l1], [1, 2., *trade(1., kind='1')],
             [1, 2., '<', '1', '6', '7', '1', '100.', '5', '0'], [1, 2., '<', '1', '6', '7', '2', '100.02', '6', '0'], [1, 2.5, '<', '2', '6', '7', '0', '8'], [1, 3., '<', '1', '6', '7', '2', '-1', '0', '0']]
    rec = recording(log(tmp_path/'a', *lines))
    t = rec.ticks[DAY1]
    assert t.trades.px.tolist() == [1.] and rec.left_out == {'MarketData: a quote without a side': 2}
    assert [o.tolist() for o in (t.quotes.bid, t.quotes.ask, t.quotes.bid_size, t.quotes.ask_size)] == [[100., 100.], [100.02, 100.02], [5., 8.], [6., 6.]]
    assert pd.Timestamp(t.quotes.t[1], tz='UTC') == pd.Timestamp(NOW) + timedelta(seconds=2.5)
    t = recording(log(tmp_path/'b', *lines, [1, 4., *trade(2., req=2)], [1, 4., '<', '99', '3', '3', '1764608432', '99.', '99.01', '1', '2', '0'])).ticks[DAY1]
    assert t.trades.px.tolist() == [2.] and t.quotes.bid.tolist() == [99.] and len(t.books) == 0


@pytest.mark.parametrize('form', [12, 13])
def test_a_real_book_comes_back_exactly(shared, form, tmp_path):
    "Two thousand rows of a real ten-level book: sent as operations, one packet a row, read back as books."
    df = pd.read_parquet(shared('es_book10_20231225.parquet'))
    sides = [[df[[f'{s}_{k}_{i}' for i in range(10)]].to_numpy(float) for k in ('px', 'sz')] for s in ('bid', 'ask')]
    sound = np.flatnonzero((sides[0][0][:, 0] < sides[1][0][:, 0]))[-2000:]
    rows = [tuple([(p, z) for p, z in zip(px[i], sz[i]) if p == p] for px, sz in sides) for i in sound]
    p, old, at = Playback(pd.Timestamp(NOW)), ([], []), 1.
    def send(way, *fields):
        p.take(Frame(1, at, way, [str(o) for o in fields]))
    for o in (['<', '178', '20251201 12:00:30 US/Eastern'], ['<', '15', '1', 'U0000001'], ['>', '10', '5', '3', *spy('ARCA'), '10', '0', '']): send(*o)
    for new in rows:
        at = round(at + .01, 6)
        for pos, op, side, px, size in depth_ops(old, new): send('<', form, 1, 3, pos, *(['MM'] if form == 13 else []), op, side, px, size, *([0] if form == 13 else []))
        old = new
    b = p.done().ticks[DAY1].books
    changed = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i-1]]
    assert len(b) == len(changed) > 1000
    for got, (k, j) in ((b.bid_px, (0, 0)), (b.bid_sz, (0, 1)), (b.ask_px, (1, 0)), (b.ask_sz, (1, 1))):
        assert np.array_equal(got, sides[k][j][sound[changed]], equal_nan=True)


def test_streams_of_the_replay_server_come_back(tmp_path):
    "Two minutes of single trades, single quotes and depth, through the recorder on the server's own clock: in content, order and second what the server had."
    k = np.arange(390.)
    day = pd.DataFrame(dict(open=600 + k/100, high=600.06 + k/100, low=599.95 + k/100, close=600.01 + k/100, volume=20000.), index=minutes(DAY1))
    start = datetime(2025, 12, 1, 10, tzinfo=ET)
    async def run():
        async with ReplayServer(Tape('made', 'simulated', {('TRADES', '1 min'): day}, drawn=True), start, speed='max') as srv, Recorder('127.0.0.1', srv.port, tmp_path/'a.frames', clock=srv.clock) as r:
            reader, writer = await asyncio.open_connection('127.0.0.1', r.port)
            writer.write(b'API\0' + wire.pack(b'v157..178'))
            await reader.readexactly(4)
            writer.write(b''.join(wire.frame(*o) for o in ([71, 2, 1, ''], all_last(1)[1:], all_last(2, 'BidAsk')[1:], [10, 5, 3, *spy('ARCA'), 10, 0, ''])))
            while srv.now() < start + timedelta(minutes=2): await asyncio.wait_for(reader.read(1 << 16), 10)
            writer.close()
            assert not srv.unhandled and not srv.errors
            return recording(r.out)
    rec, true = asyncio.run(run()), draw_day(day, 7)
    assert rec.left_out == {} and rec.unknown == []
    for got, had in ((rec.ticks[DAY1].trades, true.trades), (rec.ticks[DAY1].quotes, true.quotes)):
        i = np.searchsorted(had.t, pd.Timestamp(start).value)
        rows = slice(i, i + len(got))
        assert len(got) > 50 and (got.t//10**9 == had.t[rows]//10**9).all()
        assert all(np.array_equal(getattr(got, o), getattr(had, o)[rows]) for o in list(vars(got))[1:])
    got, had = rec.ticks[DAY1].books, true.books
    rows = np.searchsorted(had.t, got.t) - 1
    assert len(got) > 50 and all(np.array_equal(getattr(got, o), getattr(had, o)[rows], equal_nan=True) for o in ('bid_px', 'bid_sz', 'ask_px', 'ask_sz'))


def test_a_reset_book_is_void_until_it_is_full_again(tmp_path):
    def op(pos, kind, side, px): return ['<', '12', '1', '3', str(pos), str(kind), str(side), str(px), '1']
    lines = [*hello(), [1, 1., '>', '10', '5', '3', *spy('ARCA'), '1', '0', ''], [1, 2., *op(0, 0, 1, 10.)], [1, 2., *op(0, 0, 0, 11.)], [1, 3., '<', '4', '2', '3', '317', 'reset', ''],
             [1, 4., *op(0, 0, 1, 12.)], [1, 5., *op(0, 0, 0, 13.)], [1, 6., '>', '11', '1', '3', '0'], [1, 7., *op(0, 1, 0, 14.)]]
    rec = recording(log(tmp_path/'a', *lines))
    b = rec.ticks[DAY1].books
    assert b.bid_px[:, 0].tolist() == [10., 12.] and np.isnan(b.ask_px[:, 1:]).all() and rec.left_out['books that were not valid'] == 1


def test_simulated_stays_simulated_and_no_account_is_no_origin(tmp_path):
    trades = [[1, 1., *history()], [1, 2., *reply(bar(T0))]]
    for account, kind in (('U0000001', 'replay'), ('DU0000001', 'replay'), ('REPLAY-x', 'replay'), ('REPLAY-x+sim', 'simulated'), ('SIMULATED-x', 'simulated')):
        p = log(tmp_path/'a', hello()[0], [1, 0., '<', '15', '1', account], *trades)
        assert tape_of(p, 'x').kind == kind
        if kind == 'simulated':
            with pytest.raises(DataError, match='cannot become a replay'): tape_of(p, 'x', 'replay')
    with pytest.raises(DataError, match='names no account'): tape_of(log(tmp_path/'a', hello()[0], *trades), 'x')
    assert recording(p).began.tzinfo is not None and recording(p).began == pd.Timestamp(NOW).tz_convert(UTC)
