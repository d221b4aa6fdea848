"""`spy doctor` against a replay server and its faults: what is granted, what is refused, and that nothing is left behind."""
import asyncio
import socket
from collections import namedtuple
from datetime import timedelta

import pytest

from spyresearch import cli
from spyresearch.core import FixedClock, parse_asof
from spyresearch.tws import doctor, wire
from spyresearch.tws.doctor import Visit, disk
from spyresearch.tws.faults import FINE, Faults, Mishap
from spyresearch.tws.link import READS, Link
from spyresearch.tws.replay import ReplayServer, listing_of, open_tape

DEMO, AT = open_tape(days=10), '2025-12-05T10:30'
ASKED = {'StartApi', 'Positions', 'AccountSummary', 'CurrentTime', 'ContractDetails', 'Historical', 'CancelHistorical', 'MarketData', 'CancelMarketData', 'MarketDataType', 'Depth', 'CancelDepth', 'OptionParams'}


def visit(faults=FINE, at=AT, clock=None, options=True, **kw):
    "The lines of one visit; whatever was asked for, no stream is left and no order was sent."
    async def go():
        srv = ReplayServer(DEMO, parse_asof(at), faults=faults)
        srv.listing = listing_of(srv) if options else None
        assert srv.sessions.now(srv.now_ns()).ticks # drawn before the loop has somebody to keep waiting
        async with srv:
            out = await asyncio.wait_for(Visit(Link(port=srv.port, clock=clock), **(dict(wait_s=5., listen_s=4.) | kw)).look(), 30)
            for _ in range(100): # what was sent last may still be on its way
                if not srv.clients: break
                await asyncio.sleep(.01)
            n, dropped = srv.counts, any(o.do == 'drop' for o in faults.script)
            assert not srv.live() and not srv.unhandled and not srv.errors and (dropped or n['MarketData'] == n['CancelMarketData'] and n['Depth'] == n['CancelDepth'])
            assert {type(o.request).__name__ for o in srv.requests} <= ASKED and {o.request.msg_id for o in srv.requests} <= READS
            return out
    return asyncio.run(go())


def about(lines, word):
    "The one line that speaks of something; whatever is not OK says what to do."
    assert all(o.grade in ('OK', 'WARN', 'FAIL') and o.what and (o.todo or o.grade == 'OK') for o in lines), lines
    one, = [o for o in lines if word in o.what]
    return one


def only(lines, grade, word, todo):
    "One line is not OK, and says why and what to do."
    bad, = [o for o in lines if o.grade != 'OK']
    assert bad == about(lines, word) and bad.grade == grade and todo in bad.todo, bad


def say(code, text, **kw): return Mishap('say', code=code, text=text, **kw)


def test_everything_is_there():
    lines = visit()
    assert {o.grade for o in lines} == {'OK'} and len(lines) == 10
    for word in ('answers: server version 178, client id 17', 'simulated:demo: SIMULATED', 'read-only', 'own time: 2025-12-05 10:30:00 New York, the market is open', '60 minute bars', 'level 1 is live, of a replay: bid 6', 'both sides', 'C 600 with greeks'): about(lines, word)


@pytest.mark.parametrize('rights, word, grade, todo', [
    (dict(options='none'), 'option tickets will stay silent (error 354', 'WARN', 'OPRA'), (dict(options='delayed'), 'no option quotes', 'WARN', 'OPRA'), (dict(options='partial'), 'without greeks', 'WARN', 'OPRA'),
    (dict(options='competing'), 'another session of this login has the data', 'WARN', 'log out there'), (dict(depth='none'), 'no depth of ARCA', 'WARN', 'ArcaBook'), (dict(depth='competing'), 'another session', 'WARN', 'log out there'),
    (dict(level1='none'), 'no level 1: spy live has no price (error 354', 'FAIL', 'Network B'), (dict(level1='delayed'), 'delayed by 15 minutes', 'WARN', 'Network B'),
    (dict(level1='partial'), 'only a part of it is subscribed', 'WARN', 'Network B'), (dict(level1='competing'), 'no level 1, another session', 'FAIL', 'log out there')])
def test_what_the_account_may_not_have(rights, word, grade, todo): only(visit(Faults(rights=rights), listen_s=1.5 if 'partial' in rights.values() else 4.), grade, word, todo)


def test_the_kind_of_data_asked_for_is_live_again_after_delayed_level_1():
    "Else the options would be asked for as delayed ones, and a right to live ones overlooked."
    assert about(visit(Faults(rights=dict(level1='delayed'))), 'options are live').grade == 'OK'


def test_limits_of_tws(): only(visit(Faults(limits=dict(depth=0))), 'WARN', 'a limit of TWS is reached', 'three are all')


@pytest.mark.parametrize('faults, grade, word, todo', [
    (Faults(history_errors={'1': (162, 'Historical Market Data Service error message:Historical data request pacing violation')}), 'WARN', 'history waits', 'ten minutes'),
    (Faults(denied=('TRADES',)), 'FAIL', 'may not see this', 'subscribe'), (Faults(silent_history=(1,)), 'FAIL', 'does not answer: TRADES', 'connection of TWS')])
def test_history(faults, grade, word, todo):
    "Pacing is told at once instead of being waited out. Without a last price no option can be chosen, and the line says so."
    lines = visit(faults, wait_s=.5)
    assert (o := about(lines, word)).grade == grade and todo in o.todo
    assert about(lines, 'options were not asked for').grade == 'WARN' and about(lines, 'level 1 is live') and sum(o.grade != 'OK' for o in lines) == 2


def test_a_client_id_that_is_held():
    only(visit(Faults(busy_ids=(17,))), 'WARN', 'client id 17 is in use; 18 was free', '--client-id')
    only(visit(Faults(busy_ids=tuple(range(17, 22)))), 'FAIL', 'client ids 17 to 21 are in use', '--client-id')


@pytest.mark.parametrize('faults, word', [(Faults(silent=True), 'no account was named'), (Faults(mute=True), 'does not answer the handshake'), (Faults(accept_close=True), 'without a word'), (Faults(greeting='SSH-2.0'), 'it is not TWS')])
def test_nobody_who_speaks_tws(faults, word): only(visit(faults, wait_s=.5), 'FAIL', word, 'TWS')


@pytest.mark.parametrize('at, grade, word', [(AT, 'FAIL', 'though the market is open'), ('2025-12-05T17:00', 'WARN', 'the market is closed')])
def test_a_silent_stream_means_something_while_the_market_is_open(at, grade, word):
    o = about(visit(Faults(script=(Mishap('mute', when='StartApi:1', on='level1'),)), at, listen_s=.5), 'no level 1 came')
    assert o.grade == grade and word in o.what and o.todo


def test_a_book_and_an_option_that_say_nothing():
    lines = visit(Faults(script=(Mishap('mute', when='StartApi:1'),)), listen_s=.5)
    assert [o.grade for o in lines if 'though the market is open' in o.what] == ['FAIL', 'WARN', 'WARN']


def test_no_options_listed(): only(visit(options=False), 'WARN', 'option tickets will stay silent: 127.0.0.1', 'permissions for US options')


def test_the_daily_reset_and_the_daily_restart():
    only(visit(Faults(script=(say(1100, 'Connectivity between IB and TWS has been lost.', when='StartApi:1'),))), 'FAIL', 'TWS has lost its servers (1100', 'midnight')
    lost_and_back = (say(1100, 'lost', when='StartApi:1'), say(1102, 'back', when='CurrentTime:1'))
    assert {o.grade for o in visit(Faults(script=lost_and_back))} == {'OK'}
    only(visit(Faults(script=(say(2103, 'Market data farm connection is broken:usfarm', when='StartApi:1'),))), 'WARN', 'a data farm is broken (2103', 'restart TWS')
    lines = visit(Faults(script=(Mishap('drop', when='ContractDetails:1'),), delay_s=1.))
    assert lines[-1] == doctor.ENDED and sum(o.grade == 'FAIL' for o in lines) == 1 and 'log in' in lines[-1].todo


@pytest.mark.parametrize('off, grade, word', [(.4, 'OK', 'the clocks agree'), (4, 'WARN', '3.0 s ahead of'), (-4, 'WARN', '4.0 s behind'), (90, 'FAIL', '89.0 s ahead of')])
def test_clocks(monkeypatch, off, grade, word):
    "Of an account; a replay has a time of its own."
    real = wire.managed_accounts
    monkeypatch.setattr(wire, 'managed_accounts', lambda names: real(['DU1001']))
    lines = visit(clock=FixedClock(parse_asof(AT) + timedelta(seconds=off)))
    assert (o := about(lines, word)).grade == grade and (not o.todo or 'set it by the network' in o.todo)
    assert about(lines, 'its data are tws-paper: PAPER') and about(lines, 'level 1 is live: bid')


def test_a_paper_account_shares_what_the_live_one_has(monkeypatch):
    real = wire.managed_accounts
    monkeypatch.setattr(wire, 'managed_accounts', lambda names: real(['DU1001']))
    lines = visit(Faults(rights=dict(level1='delayed', depth='none', options='none')), clock=FixedClock(parse_asof(AT)))
    assert len(bad := [o for o in lines if o.grade != 'OK']) == 3 and all('share them with the paper account' in o.todo for o in bad)


def test_an_old_tws(monkeypatch):
    real = wire.negotiate
    monkeypatch.setattr('spyresearch.tws.connection.wire.negotiate', lambda a, b: min(real(a, b), 170))
    only(visit(), 'WARN', 'may tell past volumes in lots', 'update TWS')


def test_disk(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    def grade(mb): monkeypatch.setattr('shutil.disk_usage', lambda o: usage(0, 0, mb*10**6)); return disk(tmp_path/'data'/'replay').grade
    assert [grade(o) for o in (5000, 2000, 1999, 200, 199)] == ['OK', 'OK', 'WARN', 'WARN', 'FAIL'] and not list(tmp_path.iterdir())
    (tmp_path/'file').touch()
    assert disk(tmp_path/'file'/'data').grade == 'FAIL' and 'is a file' in disk(tmp_path/'file'/'data').what
    monkeypatch.setattr('os.access', lambda *a: False)
    assert 'cannot be written' in (o := disk(tmp_path/'data')).what and o.grade == 'FAIL' and '--data' in o.todo


def test_the_command(tmp_path, monkeypatch, capsys):
    "Exit status 0 with warnings alone, 1 with a failure; the data folder is as it was."
    its = cli._launcher(); (tmp_path/'data').mkdir()
    monkeypatch.setattr(cli, '_launcher', lambda: its | dict(examine=lambda: [('OK', 'Python', '')]))
    def spy(*args): return cli.outcome(lambda: cli.app(['doctor', '--data', str(tmp_path/'data'), *args], standalone_mode=False))
    async def served():
        srv = ReplayServer(DEMO, parse_asof(AT), faults=Faults(rights=dict(options='none'))); srv.listing = listing_of(srv)
        async with srv: return await asyncio.to_thread(spy, '--tws', f'127.0.0.1:{srv.port}')
    assert asyncio.run(served()) == 0
    said = capsys.readouterr().out
    assert 'OK    level 1 is live' in said and 'WARN  no option quotes' in said and '      subscribe to OPRA' in said and 'MB free' in said
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    assert spy('--tws', f'127.0.0.1:{port}') == 1 and '1 of these fail' in capsys.readouterr().err
    assert spy('--tws', 'nowhere') == 2 and not list((tmp_path/'data').iterdir())
