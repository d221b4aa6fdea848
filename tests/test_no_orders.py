"""No order can leave the process: not by name in the source, not through the library's objects, not in anything that is run."""
import ast
import asyncio
import inspect
import re
from pathlib import Path

import ib_async
import pytest
from ib_async import IB, LimitOrder, MarketOrder, Option, Stock
from ib_async.client import Client

from feeding import GONE, KEPT, LOST, feeding, say, story
from test_chain import chain_of, on, until
from spyresearch.store import Store
from spyresearch.trade.risk import read_account
from spyresearch.tws import wire
from spyresearch.tws.history import fetch
from spyresearch.tws.link import READS, Link, NoOrders
from spyresearch.tws.replay import ReplayServer, open_tape

ROOT = Path(__file__).parents[1]
TRADES = {'PlaceOrder', 'CancelOrder', 'ExerciseOptions', 'GlobalCancel'} # by the name that the server gives them
CALLS = {'placeOrder', 'placeOrderAsync', 'cancelOrder', 'exerciseOptions', 'reqGlobalCancel', 'whatIfOrder', 'whatIfOrderAsync', 'bracketOrder', 'oneCancelsAll', 'replaceFA'}


def ids_of(cls):
    "Method -> the number of the message that it sends."
    text = {n: inspect.getsource(f) for n, f in vars(cls).items() if inspect.isfunction(f)}
    return {n: int(m[1]) for n, s in text.items() if (m := re.search(r'(?:self\.send\(|fields(?:: \w+)? = \[)\s*(\d+)', s))}


def test_the_list_of_what_may_leave_holds_no_order():
    "By the protocol's numbers, as the library and the server know them; whatever the library could send beside is refused."
    sends = ids_of(Client)
    assert {sends[o] for o in ('placeOrder', 'cancelOrder', 'exerciseOptions', 'reqGlobalCancel')} == {3, 4, 21, 58} and len(sends) > 60
    assert not READS & {k for k, (name, _) in wire.REQUESTS.items() if name in TRADES}
    assert all(re.match('req|cancel|startApi', o) and not re.search('Order(?!Book)|GlobalCancel|exercise', o) for o, i in sends.items() if i in READS), sends


@pytest.mark.parametrize('path', sorted([*(ROOT/'spyresearch').rglob('*.py'), ROOT/'spy.py']), ids=lambda p: p.stem)
def test_no_source_names_an_order(path):
    "Nor does any module but the link make a client or touch its socket."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = {o.attr for o in ast.walk(tree) if isinstance(o, ast.Attribute)} | {o.id for o in ast.walk(tree) if isinstance(o, ast.Name)} | {a.name for o in ast.walk(tree) if isinstance(o, ast.ImportFrom) for a in o.names}
    assert not names & CALLS
    assert not names & {'EClient', 'EWrapper'} and (path.stem == 'link' or not names & {'sendMsg', 'connectAsync'} - ({'connectAsync'} if path.stem == 'bench' else set())) # the benchmark speaks to a replay of its own


async def tried(srv, call, link):
    "Refused before a byte is written, and the connection goes on."
    sent = link.sent_bytes
    with pytest.raises(NoOrders):
        got = call()
        if inspect.isawaitable(got): await asyncio.wait_for(got, 5)
    assert link.sent_bytes == sent and link.connected


def test_through_the_library_nothing_but_questions_leave():
    "Every way that IB offers, and every number below a thousand that is not on the list."
    spy, option, order = Stock('SPY', 'SMART', 'USD'), Option('SPY', '20261218', 600, 'C', 'SMART'), LimitOrder('BUY', 1, 600.)
    async def go():
        async with ReplayServer(open_tape(days=10)) as srv, Link(port=srv.port) as link:
            ib = link.ib
            assert isinstance(ib, IB) and set(CALLS) & set(dir(ib_async.IB)) >= {'placeOrder', 'cancelOrder', 'exerciseOptions', 'reqGlobalCancel', 'whatIfOrderAsync'}
            ways = [lambda: ib.placeOrder(spy, order), lambda: ib.placeOrder(spy, MarketOrder('SELL', 1)), lambda: ib.cancelOrder(LimitOrder('BUY', 1, 600., orderId=1, clientId=link.client_id)),
                    lambda: ib.exerciseOptions(option, 1, 1, '', 0), ib.reqGlobalCancel, lambda: ib.whatIfOrderAsync(spy, order), lambda: ib.client.placeOrder(1, spy, order), lambda: ib.client.exerciseOptions(1, option, 1, 1, '', 0),
                    lambda: ib.client.reqGlobalCancel(), lambda: ib.client.sendMsg('3\0001\0'), lambda: ib.client.conn.sendMsg(b'\0\0\0\2' + b'3\0')]
            for way in ways: await tried(srv, way, link)
            for n in set(range(1000)) - READS: await tried(srv, lambda n=n: ib.client.send(n, 1), link)
            await link.current_time()
            assert (await read_account(link)).day_trades_left is None
            return {type(o.request).__name__ for o in srv.requests}, srv.unhandled
    heard, unhandled = asyncio.run(asyncio.wait_for(go(), 120))
    assert not heard & TRADES and 'CurrentTime' in heard and not unhandled


def only_questions(srv):
    "What a server has heard, number by number."
    heard = {o.request.msg_id for o in srv.requests}
    assert heard <= READS and len(srv.requests) > 3
    return {type(o.request).__name__ for o in srv.requests}


def test_a_feed_sends_questions_only(tmp_path):
    "Level 1, ticks, depth and minutes, through two outages of the two kinds."
    fed = asyncio.run(feeding(tmp_path, '10:00:00', '10:06:00', story(say('10:02:00', *LOST), say('10:02:20', *KEPT), say('10:04:00', *LOST), say('10:04:20', *GONE))))
    assert {'MarketData', 'Depth', 'TickByTick'} <= only_questions(fed.srv)


def test_a_chain_sends_questions_only(tmp_path):
    async def f(srv, link):
        await chain_of(link, tmp_path).run(until('10:30:20'))
        return only_questions(srv)
    assert {'OptionParams', 'MarketData', 'ContractDetails'} <= on(f)


def test_fetching_history_sends_questions_only(tmp_path):
    async def go():
        async with ReplayServer(open_tape(days=10)) as srv:
            await asyncio.to_thread(fetch, '127.0.0.1', srv.port, lambda p: Store(tmp_path, p), days=3)
            return only_questions(srv)
    assert {'Historical', 'HeadTimestamp'} & asyncio.run(go())
