"""What `Link` says about every way in which a TWS can fail to be there, or to answer."""
import asyncio, socket
from datetime import datetime, timezone

import pytest

import made
from spyresearch.core import FeedError, FixedClock, PermissionMissing
from spyresearch.tws import wire
from spyresearch.tws.faults import Faults
from spyresearch.tws.link import Dropped, Link, NoData, Pacing, TimedOut, announced
from spyresearch.tws.replay import ReplayServer

TAPE = made.tape(made.DAYS[-3:])
NEVER = 10**6   # a deadline that no test reaches: the case must be known before it

def refused(e, what, why=''):
    "The error is the contract's: exit status 4, and three things said."
    assert isinstance(e, FeedError) and e.exit_code == 4 and e.what and e.why and e.todo, repr(e)
    assert what in e.what and why in str(e), str(e)

def connecting(faults=Faults(), **kw):
    "(error or client id and provenance, requests) of one connection."
    async def go():
        async with ReplayServer(TAPE, faults=faults) as srv:
            try:
                async with Link(port=srv.port, **(dict(deadline_s=20) | kw)) as link: out = link.client_id, link.provenance
            except FeedError as e: out = e
            return out, [type(o.request).__name__ for o in srv.requests]
    return asyncio.run(go())

def asking(faults=Faults(), clock=None, ask=lambda link, i: link.bars('TRADES', '1 min', made.CLOSE, f'{i} D', timeout_s=2), n=1, **kw):
    "What `n` requests came to: an answer or an error each."
    async def go():
        out = []
        async with ReplayServer(TAPE, faults=faults, **kw) as srv, Link(port=srv.port, clock=clock, request_s=20) as link:
            for i in range(1, n + 1):
                try: out.append(await ask(link, i))
                except FeedError as e: out.append(e)
            return out, srv
    return asyncio.run(go())

async def _said_by(answer, **kw):
    "What `Link` says about a server of our own."
    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    async with server:
        try: await Link(port=server.sockets[0].getsockname()[1], **(dict(deadline_s=2) | kw)).connect()
        except FeedError as e: return e

def test_tws_not_running():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    with pytest.raises(FeedError) as e: asyncio.run(Link(port=port).connect())
    refused(e.value, f'nothing listens at 127.0.0.1:{port}', '7497')

def test_unknown_host():
    with pytest.raises(FeedError) as e: asyncio.run(Link('no-such-host.invalid').connect())
    refused(e.value, 'no such host')

@pytest.mark.parametrize('greeting', ['SSH-2.0-OpenSSH_9.2\r\n', 'HTTP/1.1 400 Bad Request\r\n\r\n', '* OK IMAP4rev1 ready\r\n'])
def test_wrong_port_that_answers_something_else(greeting):
    refused(connecting(Faults(greeting=greeting), deadline_s=NEVER)[0], 'it is not TWS', greeting[:8])

def test_port_that_talks_of_something_else_only_when_asked():
    async def web(reader, writer): await reader.read(4); writer.write(b'HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n'); writer.close()
    refused(asyncio.run(_said_by(web, deadline_s=NEVER)), 'it is not TWS', 'HTTP/1.1 400')

def test_api_disabled_no_handshake(): refused(connecting(Faults(mute=True), deadline_s=.5)[0], 'does not answer the handshake', 'API is switched off')
def test_api_disabled_closed_at_once():
    refused(connecting(Faults(accept_close=True), deadline_s=NEVER)[0], 'without a word', 'API is switched off')

def test_silent_after_the_handshake(): refused(connecting(Faults(silent=True), deadline_s=2)[0], 'began to answer and stopped', 'no account')

def test_too_old_a_tws():
    async def old(reader, writer): await reader.read(4); writer.write(wire.server_hello(150, '20251205 16:00:00 US/Eastern')); await reader.read()
    refused(asyncio.run(_said_by(old)), 'protocol version 150', '157')

def test_client_id_in_use_takes_the_next(): assert connecting(Faults(busy_ids=(17, 18)))[0] == (19, 'simulated:made')
def test_all_client_ids_in_use():
    refused(connecting(Faults(busy_ids=tuple(range(17, 22))), deadline_s=NEVER)[0], 'client ids 17 to 21 are in use', '--client-id')

def test_read_only_api_is_enough_and_nothing_of_the_account_is_asked():
    out, requests = connecting(Faults(read_only=True), deadline_s=NEVER)
    assert out == (17, 'simulated:made')
    assert set(requests) <= {'StartApi', 'Positions'}

@pytest.mark.parametrize('accounts, is_', [(['DF1000', 'DU1001'], 'tws-paper'), (['U1', 'U2'], 'tws'), (['U1', 'DU1'], None), (['REPLAY-spy', 'U1'], None)])
def test_every_account_of_the_login_decides_where_the_data_come_from(monkeypatch, accounts, is_):
    real = wire.managed_accounts
    monkeypatch.setattr(wire, 'managed_accounts', lambda names: real(accounts))
    async def go():
        async with ReplayServer(TAPE) as srv:
            try: return await asyncio.to_thread(announced, '127.0.0.1', srv.port)
            except FeedError as e: return e
    out = asyncio.run(go())
    refused(out, 'accounts of different kinds') if is_ is None else None
    assert is_ is None or out == is_

def test_connection_in_small_pieces(): assert connecting(Faults(fragment=1))[0] == (17, 'simulated:made')

def test_no_data():
    (e,), _ = asking(ask=lambda link, i: link.bars('TRADES', '1 min', datetime(2020, 1, 3, tzinfo=timezone.utc), '1 D'))
    assert isinstance(e, NoData); refused(e, 'no data', 'HMDS query returned no data')

def test_missing_permission():
    (e,), _ = asking(Faults(denied=('TRADES',)))
    assert isinstance(e, PermissionMissing); refused(e, 'may not see this', 'No market data permissions')

def test_silent_server_is_given_up_at_the_deadline_and_the_request_cancelled():
    (e, df), srv = asking(Faults(silent_history=(1,)), n=2)
    assert isinstance(e, TimedOut); refused(e, 'does not answer', '2 s')
    assert len(df) == 2*390 and [type(o.request).__name__ for o in srv.requests].count('CancelHistorical') == 1

def test_request_called_invalid_ends_at_once():
    "Error 321 never resolves in ib_async."
    (e,), _ = asking(ask=lambda link, i: link.bars('TRADES', '7 mins', made.CLOSE, '1 D', timeout_s=NEVER))
    refused(e, 'TWS refused the request', 'error 321')

def test_connection_lost_in_the_middle_of_a_reply():
    (df, e, later), _ = asking(Faults(drop_after=1), n=3)
    assert len(df) == 390
    for o in (e, later): assert isinstance(o, Dropped); refused(o, 'ended the connection', 'what was complete is kept')

def test_pacing_violation_waits_30_seconds_then_600_then_gives_up():
    says = [162, 'Historical Market Data Service error message:Historical data request pacing violation']
    clock = FixedClock(made.CLOSE)
    (df,), srv = asking(Faults(history_errors={'1': says, '2': says}), clock)
    assert len(df) == 390 and clock.monotonic() == 630. and srv.asked == 3
    clock = FixedClock(made.CLOSE)
    (e,), srv = asking(Faults(history_errors={str(i): says for i in range(1, 99)}), clock)
    assert isinstance(e, Pacing); refused(e, 'slower pace', 'pacing violation'); assert clock.monotonic() == 630. and srv.asked == 3

def test_neighbours_that_succeed_do_not_restart_the_back_off():
    "One worker's requests always come too fast, another's are always answered."
    says, clock = [162, 'Historical Market Data Service error message:Historical data request pacing violation'], FixedClock(made.CLOSE)
    async def go():
        async with ReplayServer(TAPE) as srv, Link(port=srv.port, clock=clock) as link:
            real = link._ask
            async def ask(send, asked, *a, **k):
                if 'BID_ASK' in asked: await asyncio.sleep(0); raise Pacing(*says[::-1])
                return await real(send, asked, *a, **k)
            link._ask = ask
            async def well():
                while True: await link.bars('TRADES', '1 min', made.CLOSE, '1 D')
            other = asyncio.ensure_future(well())
            try: await link.bars('BID_ASK', '1 min', made.CLOSE, '1 D')
            except Pacing as e: return e
            finally: other.cancel()
    assert isinstance(asyncio.run(asyncio.wait_for(go(), 60)), Pacing)

@pytest.mark.parametrize('name, ok', [('Eastern Standard Time', True), ('EST (Eastern Standard Time)', True), ('Mars Standard Time', False)])
def test_schedule_in_a_zone_as_windows_calls_it(monkeypatch, name, ok):
    from spyresearch.tws import archive
    monkeypatch.setattr(archive, 'ZONE', name)
    (out,), _ = asking(ask=lambda link, i: link.schedule(2, made.CLOSE))
    if ok: assert {(f'{o:%H:%M}', f'{c:%H:%M}') for o, c in out.values()} == {('09:30', '16:00')} and len(out) == 2
    else: refused(out, 'Mars Standard Time', 'login')

def test_the_same_question_waits_15_seconds():
    clock = FixedClock(made.CLOSE)
    out, srv = asking(Faults(), clock, ask=lambda link, i: link.bars('TRADES', '1 min', made.CLOSE, '1 D'), n=3, pacing='off')
    assert [len(o) for o in out] == [390]*3 and clock.monotonic() == 30.

def test_no_more_than_two_requests_in_flight():
    async def go():
        high = now = 0
        async with ReplayServer(TAPE, faults=Faults(delay_s=.03)) as srv, Link(port=srv.port) as link:
            ask = link._ask
            async def counted(*a, **k):
                nonlocal high, now
                now += 1; high = max(high, now)
                try: return await ask(*a, **k)
                finally: now -= 1
            await link.qualify(); link._ask = counted
            await asyncio.gather(*(link.bars('TRADES', '1 min', made.CLOSE, f'{i} D') for i in range(1, 8)))
        return high
    assert asyncio.run(go()) == 2

def test_naive_end_is_refused():
    with pytest.raises(Exception, match='aware end'): asking(ask=lambda link, i: link.bars('TRADES', '1 min', datetime(2025, 12, 5, 16), '1 D'))

def test_connects_again_after_a_drop():
    async def go():
        async with ReplayServer(TAPE, faults=Faults(drop_after=1)) as srv:
            async with Link(port=srv.port) as a:
                await a.bars('TRADES', '1 min', made.CLOSE, '1 D')
                with pytest.raises(Dropped): await a.bars('TRADES', '1 min', made.CLOSE, '2 D')
            async with Link(port=srv.port) as b: return len(await b.bars('TRADES', '1 min', made.CLOSE, '2 D'))
    assert asyncio.run(go()) == 780

def test_every_field_arrives_in_its_place():
    "Neighbouring fields differ everywhere, so a swap would show."
    (df,), _ = asking()
    sent = TAPE.bars['TRADES', '1 min'].loc[df.index]
    assert (df == sent[df.columns]).all().all() and list(df) == list(sent)

def test_unhandled_requests_are_none_in_all_of_this():
    _, srv = asking(n=3)
    assert srv.unhandled == [] and srv.errors == []
