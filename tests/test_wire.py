"""Properties of the wire format that examples cannot exhaust: any cut of the stream, any values, every request of every version."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ib_async import LimitOrder, Stock
from ib_async.client import Client

from spyresearch.core import FeedError
from spyresearch.tws import wire

words = st.text(st.characters(min_codepoint=1, max_codepoint=0xffff, exclude_categories=['Cs']), max_size=20)
fields = st.lists(st.one_of(words, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(fields, min_size=1, max_size=5), st.data())
def test_frames_do_not_depend_on_how_the_stream_is_cut(messages, data):
    stream = b''.join(wire.frame(*m) for m in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = wire.Frames(), []
    for a, b in zip([0, *cuts], [*cuts, len(stream)]): got += reader.feed(stream[a:b])
    want = [[wire.text(v).encode('ascii', 'backslashreplace').decode() for v in m] for m in messages]
    assert got == want and not reader.buf


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(.01, 1e5)]*4, st.integers(0, 10**9)), min_size=1, max_size=20))
def test_bars_survive_the_wire_to_the_last_bit(rows):
    import pandas as pd
    bars = pd.DataFrame(rows, columns=['open', 'high', 'low', 'close', 'volume'])
    said = wire.Frames().feed(wire.bars_msg(1, 'a', 'b', wire.bar_cells([str(i) for i in range(len(rows))], bars)))[0]
    assert said[:5] == ['17', '1', 'a', 'b', str(len(rows))] and len(said) == 5 + 8*len(rows)
    back = [tuple(map(float, said[5 + 8*i + 1:5 + 8*i + 6])) for i in range(len(rows))]
    assert back == [tuple(map(float, r)) for r in rows]


SPY = Stock('SPY', 'SMART', 'USD', conId=756733)
CALLS = {  # every request the server knows, as ib_async sends it
    3: lambda c: c.placeOrder(1, SPY, LimitOrder('BUY', 1, 600.)), 4: lambda c: c.cancelOrder(1), 21: lambda c: c.exerciseOptions(1, SPY, 1, 1, '', 0), 58: lambda c: c.reqGlobalCancel(),
    1: lambda c: c.reqMktData(1, SPY, '233', True, False, None), 2: lambda c: c.cancelMktData(1), 5: lambda c: c.reqOpenOrders(),
    6: lambda c: c.reqAccountUpdates(True, 'A'), 8: lambda c: c.reqIds(1), 9: lambda c: c.reqContractDetails(1, SPY),
    10: lambda c: c.reqMktDepth(1, SPY, 10, True, None), 11: lambda c: c.cancelMktDepth(1, True), 14: lambda c: c.setServerLogLevel(2),
    15: lambda c: c.reqAutoOpenOrders(True), 16: lambda c: c.reqAllOpenOrders(), 17: lambda c: c.reqManagedAccts(),
    20: lambda c: c.reqHistoricalData(1, SPY, '', '5 D', '1 min', 'TRADES', True, 2, False, None), 25: lambda c: c.cancelHistoricalData(1),
    49: lambda c: c.reqCurrentTime(), 50: lambda c: c.reqRealTimeBars(1, SPY, 5, 'TRADES', True, None), 51: lambda c: c.cancelRealTimeBars(1),
    59: lambda c: c.reqMarketDataType(3), 61: lambda c: c.reqPositions(), 62: lambda c: c.reqAccountSummary(1, 'All', 'Cushion'),
    63: lambda c: c.cancelAccountSummary(1), 64: lambda c: c.cancelPositions(), 71: lambda c: c.startApi(),
    76: lambda c: c.reqAccountUpdatesMulti(1, 'A', '', False), 77: lambda c: c.cancelAccountUpdatesMulti(1),
    78: lambda c: c.reqSecDefOptParams(1, 'SPY', '', 'STK', 756733), 82: lambda c: c.reqMktDepthExchanges(),
    87: lambda c: c.reqHeadTimeStamp(1, SPY, 'TRADES', True, 2), 90: lambda c: c.cancelHeadTimeStamp(1),
    96: lambda c: c.reqHistoricalTicks(1, SPY, '', '20260331 16:00:00 UTC', 10, 'TRADES', True, False, []),
    97: lambda c: c.reqTickByTickData(1, SPY, 'BidAsk', 0, False), 98: lambda c: c.cancelTickByTickData(1), 99: lambda c: c.reqCompletedOrders(False)}


def spoken(call, version):
    "The fields that ib_async puts on the socket."
    sent, c = [], Client(object())
    c.connState, c._serverVersion, c.sendMsg = Client.CONNECTED, version, lambda m: sent.append(m.encode())
    call(c)
    return wire.Frames().feed(wire.pack(sent[0]))[0]


@pytest.mark.parametrize('version', [157, 163, 164, 176, 178])
def test_every_request_of_the_client_is_read_whole(version):
    for msg_id, call in CALLS.items():
        said = spoken(call, version)
        r = wire.parse(said, version)
        assert r.msg_id == msg_id and getattr(r, 'req_id', 1) == 1
        if hasattr(r, 'order') or hasattr(r, 'exercise'): continue   # kept as they came, to be refused
        if len(said) > 1:
            with pytest.raises(FeedError): wire.parse(said[:-1], version)
        with pytest.raises(FeedError): wire.parse([*said, 'x'], version)
    assert set(wire.REQUESTS) - set(CALLS) == {7}, 'executions carry a filter object, which the clients send while connecting'
