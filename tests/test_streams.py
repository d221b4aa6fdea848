"""The live side of the replay server over real sockets: what unmodified clients are told is what the tape holds."""
import asyncio
import sys
from collections import Counter
from copy import copy
from types import SimpleNamespace

import ib_async
import ib_insync
import numpy as np
import pandas as pd
import pytest

import live
from live import A, ARCA, SPY, Official, at, kept, ns, official, replay, run
from spyresearch.core import provenance_of
from spyresearch.sessions import minutes
from spyresearch.tws.book import Book
from spyresearch.tws.replay import open_tape
from spyresearch.tws.server import READ_ONLY
from spyresearch.tws.tape import Tape
from spyresearch.tws.wire import REQUESTS

B = '10:03:00'   # streams begin at A and are judged at B


@pytest.fixture(scope='module')
def demo(): return live.demo()


async def issue_everything(tape, lib=ib_async):
    "Every request that such a client can send, in three minutes of a session; what came of it."
    g, (SPY, ARCA, ISLAND) = SimpleNamespace(lib=lib), (lib.Stock('SPY', o, 'USD', conId=756733) for o in ('SMART', 'ARCA', 'ISLAND'))
    async with replay(tape, at(A), n=5, lib=lib) as (srv, clock, ib, tbt, arca, island, smart):
        g.venues = await ib.reqMktDepthExchangesAsync()
        [g.details] = await ib.reqContractDetailsAsync(SPY)
        spy = g.details.contract
        g.heads = [await ib.reqHeadTimeStampAsync(spy, 'TRADES', True, f) for f in (1, 2)]
        g.schedule = await ib.reqHistoricalScheduleAsync(spy, 3)
        g.params = await ib.reqSecDefOptParamsAsync('SPY', '', 'STK', spy.conId)
        g.options = await ib.reqContractDetailsAsync(lib.Option('SPY', '20251201', 0, 'C', 'SMART'))
        ib.reqMarketDataType(1)
        g.level1 = ib.reqMktData(spy, '233,375')
        g.ticks = kept(g.level1, 'ticks')['ticks']
        near = sorted(g.options, key=lambda d: abs(d.contract.strike - 600))[:2]
        g.quoted = [ib.reqMktData(d.contract, '100,101') for d in near]
        g.five = ib.reqRealTimeBars(spy, 5, 'TRADES', True)
        g.minutes = await ib.reqHistoricalDataAsync(spy, '', '1 D', '1 min', 'TRADES', True, 2, True)
        tickers = {k: tbt.reqTickByTickData(spy, k) for k in ('Last', 'AllLast', 'BidAsk', 'MidPoint')}
        g.tbt = kept(tickers['Last'], 'tickByTicks')['tickByTicks']
        g.deep = [kept(o.reqMktDepth(venue, 10, venue is SPY), 'domTicks')['domTicks'] for o, venue in ((arca, ARCA), (island, ISLAND), (smart, SPY))]
        await clock.asleep(180)
        g.ticks, g.level1, g.quoted = list(g.ticks), copy(g.level1), [*map(copy, g.quoted)]   # a snapshot goes into the same objects
        g.now, g.x = srv.now(), srv.sessions.inside(at(A).date())
        g.live = [o.kind for o in srv.live()]
        g.listing, g.near = srv.listing, near
        g.past = [await ib.reqHistoricalTicksAsync(spy, *span, n, what, True) for span, n, what in (
            ((at(A), ''), 1000, 'TRADES'), (('', at(B)), 700, 'BID_ASK'), (('', at(B)), 50, 'MIDPOINT'))]
        ib.cancelMktData(spy)
        [ib.cancelMktData(d.contract) for d in near]
        ib.cancelRealTimeBars(g.five)
        ib.cancelHistoricalData(g.minutes)
        [tbt.cancelTickByTickData(spy, k) for k in tickers]
        [o.cancelMktDepth(v, v is SPY) for o, v in ((arca, ARCA), (island, ISLAND), (smart, SPY))]
        ib.client.cancelHeadTimeStamp(9999)
        g.at = await ib.reqCurrentTimeAsync()
        await asyncio.gather(*(o.reqCurrentTimeAsync() for o in (tbt, arca, island, smart)))
        g.left, g.cancelled = srv.live(), len(ib.ear.heard)
        g.snapshot, g.began = ib.reqTickersAsync(spy, near[0].contract), srv.now()
        g.snapshot = await g.snapshot
        g.ended = srv.now()
        await clock.asleep(30)
        g.after = ib.ear.heard[g.cancelled:]
        await issue_the_rest(ib, spy)
        g.ears = [o.ear for o in (ib, tbt, arca, island, smart)]
        g.requests = {o.request.msg_id for o in srv.requests}
    return g


async def issue_the_rest(ib, spy):
    "The requests of a start-up that is not read-only, and of client 0."
    await ib.reqAllOpenOrdersAsync()
    await ib.reqCompletedOrdersAsync(False)
    await ib.reqAccountUpdatesMultiAsync(ib.managedAccounts()[0])
    await ib.reqAccountSummaryAsync()
    ib.client.cancelAccountSummary(78)
    ib.reqAutoOpenOrders(True)
    ib.client.reqIds(1)
    ib.client.reqManagedAccts()
    ib.client.setServerLogLevel(3)
    ib.client.cancelPositions()
    ib.client.cancelAccountUpdatesMulti(77)
    await issue_orders(ib, spy)


async def issue_orders(ib, spy):
    "Everything that trades; an order, its cancel, an exercise and a what-if keep their own numbers."
    lib, ib.ear.refused = sys.modules[type(ib).__module__.split('.')[0]], []
    ib.errorEvent += lambda req_id, code, what, *_: ib.ear.refused.append((req_id, code, what))
    trade = ib.placeOrder(spy, lib.LimitOrder('BUY', 1, 600.))
    ib.client.cancelOrder(trade.order.orderId, '')
    ib.client.exerciseOptions(901, spy, 1, 1, '', 0)
    ib.client.placeOrder(902, spy, lib.LimitOrder('SELL', 1, 600., whatIf=True))
    ib.reqGlobalCancel()
    await ib.reqCurrentTimeAsync()
    ib.ear.trade = trade


@pytest.fixture(scope='module', params=[ib_async, ib_insync], ids=lambda lib: lib.__name__)
def every(demo, request): return run(issue_everything(demo, request.param))


def test_every_request_was_issued_and_none_refused(every):
    assert every.requests == set(REQUESTS), set(REQUESTS) - every.requests
    assert [o.codes for o in every.ears] == [[162] + [321]*5, [], [], [], []]   # the cancelled history request says so, and no order is taken


def test_every_order_is_refused_with_its_own_number(every):
    ear = every.ears[0]
    n = ear.trade.order.orderId
    assert [o[:2] for o in ear.refused] == [(n, 321), (n, 321), (901, 321), (902, 321), (-1, 321)] and {o[2] for o in ear.refused} == {READ_ONLY[1]}
    assert ear.trade.log[-1].errorCode == 321 and 'Read-Only' in ear.trade.log[-1].message and not ear.trade.fills


def test_time_stood_where_it_was_said_and_nothing_lives_on(every):
    assert every.now == every.at == at(B) and not every.left


def test_nothing_is_said_after_a_cancel_but_the_snapshots(every):
    assert {f[0] for f in every.after} <= {'81', '58', '1', '2', '45', '46', '21', '57'}
    ids = {f[2] for f in every.after if f[0] == '57'}
    assert len(ids) == 2 and {f[2 if f[0] in ('1', '2', '45', '46', '58') else 1] for f in every.after if f[0] != '57'} == ids


# --- level 1

def slice_of(series, a=A, b=B): return slice(*np.searchsorted(series.t, [ns(a), ns(b)]))
def changes(values): return [v for i, v in enumerate(values) if not i or v != values[i-1]]
LOOKS = np.arange(ns(A), ns(B), 10**9//4)   # what level 1 has said by the end


def test_quotes_of_level_1_are_the_tapes_at_each_look(every):
    q = every.x.ticks.quotes
    rows = [int(np.searchsorted(q.t, t, 'right')) - 1 for t in LOOKS]
    for kind, px in ((1, q.bid), (2, q.ask)):
        assert [t.price for t in every.ticks if t.tickType == kind] == changes(px[rows].tolist())
    last = rows[-1]
    t = every.level1
    assert (t.bid, t.ask, t.bidSize, t.askSize) == (q.bid[last], q.ask[last], q.bid_size[last], q.ask_size[last])


def test_trades_of_level_1_are_the_newest_at_each_look(every):
    tr, x = every.x.ticks.trades, every.x
    seen = changes([x.seen(int(t)) for t in LOOKS])
    said = [(t.price, t.size) for t in every.ticks if t.tickType == 48]
    assert said == [(tr.px[n-1], tr.size[n-1]) for n in seen] and len(said) > 200
    n, t, day = seen[-1], every.level1, slice(0, seen[-1])
    assert (t.last, t.lastSize, t.rtVolume, t.volume) == (tr.px[n-1], tr.size[n-1], tr.size[day].sum()//100, tr.size[day].sum()//100)
    assert (t.open, t.high, t.low) == (tr.px[0], tr.px[day].max(), tr.px[day].min())
    assert t.vwap == pytest.approx((tr.px*tr.size)[day].sum()/tr.size[day].sum(), abs=1e-7)
    assert (round(t.rtTime.timestamp()*1000), int(getattr(t, 'lastTimestamp', t.rtTime).timestamp())) == (tr.t[n-1]//10**6, tr.t[n-1]//10**9)


def test_what_else_level_1_says(every, demo):
    t = every.level1
    assert (t.marketDataType, t.halted, t.minTick, t.bboExchange, t.snapshotPermissions) == (1, 0, .01, '9c0001', 3)
    assert t.close == demo.bars['TRADES', '1 day']['close'][:'2025-11-30'].iloc[-1]
    firsts = [(f[0], f[3]) for f in every.ears[0].said(81, 58, 1, 2, 45, 46)][:16]
    assert firsts == [('81', '9c0001'), ('58', '1'), ('1', '9'), ('45', '49'), ('1', '1'), ('2', '0'), ('1', '2'), ('2', '3'), ('1', '4'), ('2', '5'),
                      ('1', '6'), ('1', '7'), ('1', '14'), ('2', '8'), ('46', '45'), ('46', '48')]
    assert {f[3] for f in every.ears[0].said(46)} == {'45', '48', '77'}


def test_snapshots_hold_what_stands_and_end_after_eleven_seconds(every):
    stock, option = every.snapshot
    assert (every.ended - every.began).total_seconds() == 11
    q, k = every.x.ticks.quotes, int(np.searchsorted(every.x.ticks.quotes.t, ns(B), 'right')) - 1
    assert (stock.bid, stock.ask, stock.last) == (q.bid[k], q.ask[k], every.x.px[every.x.seen(ns(B)) - 1])
    assert option.bid > 0 and option.modelGreeks and [f[0] for f in every.after[-2:]] == ['57', '57']


# --- single ticks, bars, depth

def test_tick_by_tick_is_every_event_with_the_servers_second(every):
    tr, q = every.x.ticks.trades, every.x.ticks.quotes
    i, j = slice_of(tr), slice_of(q)
    by = {type(o).__name__: [] for o in every.tbt}
    for o in every.tbt: by[type(o).__name__].append(o)
    trades = list(zip(tr.px[i].tolist(), tr.size[i].tolist()))
    for kind in (1, 2): assert [(o.price, o.size) for o in by['TickByTickAllLast'] if o.tickType == kind] == trades
    assert [(o.bidPrice, o.askPrice, o.bidSize, o.askSize) for o in by['TickByTickBidAsk']] == list(zip(*(v[j].tolist() for v in (q.bid, q.ask, q.bid_size, q.ask_size))))
    mids = ((q.bid + q.ask)/2).tolist()
    assert [o.midPoint for o in by['TickByTickMidPoint']] == [mids[k] for k in range(j.start, j.stop) if mids[k] != mids[k-1]]
    said = every.ears[1].said(99)
    assert [int(f[3]) for f in said if f[2] == '2'] == (tr.t[i]//10**9).tolist() and len(trades) > 300
    order = [int(f[3]) for f in said]
    assert order == sorted(order)


def test_minutes_of_single_trades_and_of_five_seconds_are_the_bars(every):
    bars = every.x.bars.loc['2025-12-01 10:00':'2025-12-01 10:02']
    t, i = every.x.ticks.trades, slice_of(every.x.ticks.trades)
    trades = [(o.price, o.size) for o in every.tbt if getattr(o, 'tickType', 0) == 2]
    minute = ((t.t[i] - ns(A))//(60*10**9)).tolist()
    five = [b for b in every.five]
    assert [int(b.time.timestamp()) for b in five] == list(range(ns(A)//10**9 - 5, ns(B)//10**9 - 5, 5))   # the last is due with the next second
    for m, (_, bar) in enumerate(bars.iterrows()):
        px, size = zip(*[o for o, k in zip(trades, minute) if k == m])
        want = (bar.open, bar.high, bar.low, bar.close, bar.volume)
        assert (px[0], max(px), min(px), px[-1], sum(size)) == want
        if m < 2:
            b = five[12*m + 1:12*m + 13]
            assert (b[0].open_, max(o.high for o in b), min(o.low for o in b), b[-1].close, sum(o.volume for o in b)) == want


def test_a_kept_up_request_ends_each_minute_with_the_bar_of_the_tape(every):
    bars = every.x.bars.loc[:'2025-12-01 10:01']
    got = {b.date: [b.open, b.high, b.low, b.close, b.volume, b.average, b.barCount] for b in every.minutes}
    assert len(every.minutes) == 33
    for when, row in bars.iterrows(): assert got[when] == row.tolist()
    updates = every.ears[0].said(90)
    assert Counter(f[3] for f in updates) == {str(ns(f'{hm}:00')//10**9): n for hm, n in (('09:59', 1), ('10:00', 12), ('10:01', 12), ('10:02', 11))}


@pytest.mark.parametrize('i,form,maker', [(0, '12', None), (1, '13', 'ISLAND'), (2, '13', 'ARCA')])
def test_depth_makes_the_books_of_the_record(every, i, form, maker):
    "The project's own book, fed by what the client decoded, at the end and at each whole second of the server's stream."
    books, book = every.x.ticks.books, Book(10)
    for o in every.deep[i]: book.apply(o.position, o.operation, o.side, o.price, o.size, o.marketMaker)
    s = book.snapshot()
    k = int(np.searchsorted(books.t, ns(B))) - 1
    for mine, true in ((s.bid_px, books.bid_px), (s.bid_sz, books.bid_sz), (s.ask_px, books.ask_px), (s.ask_sz, books.ask_sz)): assert np.array_equal(mine, true[k], equal_nan=True)
    assert book.faults(1e9) == () and not book.counts['beyond'] and len(every.deep[i]) > 1000
    said = every.ears[2 + i].said(12, 13)
    assert {f[0] for f in said} == {form} and {o.marketMaker for o in every.deep[i]} == {maker or ''}
    assert {f[9] for f in said if f[0] == '13'} <= {'1' if i == 2 else '0'}


# --- the past

def test_historical_ticks(every):
    tr, q = every.x.ticks.trades, every.x.ticks.quotes
    last, both, mid = every.past
    i, j = slice_of(tr).start, slice_of(q).stop
    assert [(int(o.time.timestamp()), o.price, o.size) for o in last] == [(t//10**9, p, s) for t, p, s in zip(*(v[i:i+1000].tolist() for v in (tr.t, tr.px, tr.size)) )][:len(last)]
    assert len(last) == min(1000, slice_of(tr).stop - i) and (len(both), len(mid)) == (700, 50)
    assert [(o.priceBid, o.priceAsk, o.sizeBid, o.sizeAsk) for o in both] == list(zip(*(v[j-700:j].tolist() for v in (q.bid, q.ask, q.bid_size, q.ask_size))))
    assert [o.price for o in mid] == ((q.bid + q.ask)/2)[j-50:j].tolist()


def test_head_schedule_and_venues(every, demo):
    first = demo.bars['TRADES', '1 min'].index[0]
    assert every.heads[1] == first and every.heads[0].isoformat() == first.tz_convert('UTC').tz_localize(None).isoformat()
    assert [s.refDate for s in every.schedule.sessions] == ['20251126', '20251128', '20251201']
    assert {(v.exchange, v.serviceDataType) for v in every.venues} >= {('ARCA', 'Deep'), ('ISLAND', 'Deep2')}


# --- options

def test_chain_parameters_and_contracts(every):
    smart = next(o for o in every.params if o.exchange == 'SMART')
    assert (smart.tradingClass, smart.multiplier, smart.underlyingConId) == ('SPY', '100', '756733') and '20251201' in smart.expirations
    assert {d.contract.strike for d in every.options} == set(smart.strikes) and {d.contract.right for d in every.options} == {'C'}
    assert len({d.contract.conId for d in every.options}) == len(every.options) and {d.underConId for d in every.options} == {756733}


def test_option_quotes_are_the_listings(every):
    for t, d in zip(every.quoted, every.near):
        q = every.listing.quote(d.contract.conId, ns(B) - 10**9)
        assert (t.bid, t.ask, t.bidSize, t.askSize, t.volume, t.callOpenInterest) == (q.bid, q.ask, q.bid_size, q.ask_size, q.volume, q.open_interest)
        g = t.modelGreeks
        assert (g.impliedVol, g.delta, g.optPrice, g.gamma, g.vega, g.theta, g.undPrice) == (q.greeks.iv, q.greeks.delta, q.greeks.px, q.greeks.gamma, q.greeks.vega, q.greeks.theta, q.greeks.under)


# --- the official client: sizes are integers at its version, and its own decoder reads every message

@pytest.fixture(scope='module')
def thin():
    "Two minutes of so little volume that the trades drawn are parts of a share."
    ix = minutes(at(A).date())[29:32]
    return Tape('thin', 'replay', {('TRADES', '1 min'): pd.DataFrame(dict(open=[600.1, 600.2, 600.], high=600.5, low=599.9, close=[600.2, 600.1, 600.3], volume=[2., 3., 2.]), index=ix)}, drawn=True)


def watch_officially(srv, step):
    "All streams through the official client while two minutes pass; what its callbacks were told."
    app = Official(srv.port)
    spy = [official(srv.details.con_id, o) for o in ('SMART', 'ARCA', 'ISLAND')]
    app.reqMktDepthExchanges()
    app.reqMktData(1, spy[0], '233', False, False, [])
    app.reqRealTimeBars(2, spy[0], 5, 'TRADES', True, [])
    app.reqHistoricalData(3, spy[0], '', '1 D', '1 min', 'TRADES', 1, 2, True, [])
    for i, kind in enumerate(('Last', 'AllLast', 'BidAsk', 'MidPoint')): app.reqTickByTickData(10 + i, spy[0], kind, 0, False)
    for i, c in enumerate(spy): app.reqMktDepth(20 + i, c, 10, i == 0, [])
    app.reqSecDefOptParams(30, 'SPY', '', 'STK', srv.details.con_id)
    app.settle()
    step(120)
    app.settle()
    for i, what in enumerate(('TRADES', 'BID_ASK', 'MIDPOINT')): app.reqHistoricalTicks(40 + i, spy[0], '', '20251201 10:02:00 US/Eastern', 1000, what, 1, False, [])
    app.settle()
    app.reqMktData(50, spy[0], '', True, False, [])
    app.end()
    return app


async def officially(tape):
    async with replay(tape, at(A), speed=0, n=0) as (srv, _):
        loop = asyncio.get_running_loop()
        step = lambda s: loop.call_soon_threadsafe(srv.command, 'step', dict(seconds=s))
        app = await asyncio.to_thread(watch_officially, srv, step)
        return app, srv.sessions.inside(at(A).date()), {type(o.request).__name__ for o in srv.requests}


@pytest.fixture(scope='module')
def official_demo(demo): return run(officially(demo))


@pytest.fixture(scope='module')
def official_thin(thin): return run(officially(thin))


def told(app, name, req_id=None): return [a for n, a in app.heard if n == name and (req_id is None or a[0] == req_id)]


@pytest.mark.parametrize('which', ['official_demo', 'official_thin'])
def test_the_official_client_reads_single_ticks_and_depth(which, request):
    app, x, _ = request.getfixturevalue(which)
    tr, q, b = x.ticks.trades, x.ticks.quotes, x.ticks.books
    i, j = slice_of(tr, b='10:02:00'), slice_of(q, b='10:02:00')
    up = np.ceil
    trades = list(zip((tr.t[i]//10**9).tolist(), tr.px[i].tolist(), up(tr.size[i]).tolist()))
    for req_id in (10, 11): assert [(a[2], a[3], a[4]) for a in told(app, 'tickByTickAllLast', req_id)] == trades
    assert [(a[2], a[3], a[4], a[5]) for a in told(app, 'tickByTickBidAsk', 12)] == list(zip(*(v[j].tolist() for v in (q.bid, q.ask, up(q.bid_size), up(q.ask_size)))))
    assert {type(a[4]) for a in told(app, 'tickByTickAllLast')} == {int} and len(trades) > 3
    k = int(np.searchsorted(b.t, ns('10:02:00'))) - 1
    for req_id in (20, 21, 22):
        book = Book(10)
        for a in told(app, 'updateMktDepthL2' if req_id != 21 else 'updateMktDepth', req_id): book.apply(a[1], *(a[3:7] if req_id != 21 else a[2:6]))
        s = book.snapshot()
        assert (s.bid_px == b.bid_px[k]).all() and (s.ask_sz == up(b.ask_sz[k])).all() and not book.counts


@pytest.mark.parametrize('which', ['official_demo', 'official_thin'])
def test_the_official_client_reads_level_1_bars_and_the_past(which, request):
    app, x, _ = request.getfixturevalue(which)
    tr, q = x.ticks.trades, x.ticks.quotes
    n, j = x.seen(ns('10:02:00') - 10**9//4), int(np.searchsorted(q.t, ns('10:02:00') - 10**9//4, 'right')) - 1
    last = {a[1]: a[2] for a in told(app, 'tickPrice', 1)}
    size = {a[1]: a[2] for a in told(app, 'tickSize', 1)}
    assert [last[k] for k in (1, 2, 4)] == [q.bid[j], q.ask[j], tr.px[n-1]] and size[5] == np.ceil(tr.size[n-1]) and size[8] == tr.size[:n].sum()//100
    assert {type(a[2]) for a in told(app, 'tickSize')} == {int} and ('tickGeneric', (1, 49, 0.)) in app.heard and told(app, 'marketDataType', 1) == [(1, 1)]
    assert told(app, 'tickString', 1)[-1][2].split(';')[0] == str(tr.px[n-1]) and told(app, 'tickReqParams', 1) == [(1, .01, '9c0001', 3)]
    final = {a[1].date: a[1] for a in told(app, 'historicalDataUpdate', 3)}
    bar = final[str(ns('10:00:00')//10**9)]
    row = x.bars.loc['2025-12-01 10:00']
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (row.open, row.high, row.low, row.close, row.volume)
    assert sum(a[6] for a in told(app, 'realtimeBar', 2)[-23:]) > 0
    assert [o.price for o in told(app, 'historicalTicksLast', 40)[0][1]] == tr.px[:np.searchsorted(tr.t, ns('10:02:00'))][-1000:].tolist()
    assert len(told(app, 'historicalTicksBidAsk', 41)[0][1]) > 3 < len(told(app, 'historicalTicks', 42)[0][1])


def test_the_official_client_leaves_no_message_unread(official_demo, official_thin):
    for (app, _, asked), refused in ((official_demo, []), (official_thin, [(30, 200)])):
        assert [(a[0], a[1]) for a in told(app, 'error') if a[0] > 0 or a[1] not in (2104, 2106, 2158)] == refused
        assert asked >= {'TickByTick', 'Depth', 'HistoricalTicks', 'DepthExchanges', 'OptionParams'} and told(app, 'mktDepthExchanges')
    params = told(official_demo[0], 'securityDefinitionOptionParameter', 30)
    assert {a[1] for a in params} == {'AMEX', 'CBOE', 'PHLX', 'SMART'} and '20251201' in params[0][5] and told(official_demo[0], 'securityDefinitionOptionParameterEnd', 30)


# --- real records

async def walk_the_book(tape, asof, moments, mode):
    "The client's book and the record's row at some moments, as the whole record goes by."
    out, book = [], Book(10)
    async with replay(tape, asof, depth_mode=mode) as (srv, clock, ib):
        books, dom = srv.sessions.inside(asof.date()).ticks.books, kept(ib.reqMktDepth(ARCA, 10), 'domTicks')['domTicks']
        for t in moments:
            await clock.asleep(t - clock.monotonic())
            for o in dom: book.apply(o.position, o.operation, o.side, o.price, o.size)
            dom.clear()
            k, s = int(np.searchsorted(books.t, int(asof.timestamp() + t)*10**9)) - 1, book.snapshot()
            out += [(mine, true[k]) for mine, true in ((s.bid_px, books.bid_px), (s.bid_sz, books.bid_sz), (s.ask_px, books.ask_px), (s.ask_sz, books.ask_sz))]
        return out, ib.ear.codes, book.counts, len(books), k


@pytest.mark.parametrize('mode', ['shift', 'update'])
def test_the_real_book_arrives_whole_in_both_modes(shared, mode):
    tape = open_tape(book=shared('es_book10_20231225.parquet'))
    assert tape.account == 'REPLAY-es_book10_20231225'
    moments = np.cumsum(np.random.default_rng(3).integers(60, 300, 9)).tolist() + [1965]
    pairs, codes, counts, n, last = run(walk_the_book(tape, at('17:55:00', '2023-12-25'), moments, mode))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in pairs) and codes == [] and not counts['beyond'] and (n, last) == (18483, n - 1)


@pytest.fixture(scope='module')
def seconds(shared): return open_tape(quotes=shared('spy_quotes_1s_2013.parquet'), trades=shared('spy_trades_1s_2013.parquet'))


async def watch_seconds(tape):
    async with replay(tape, at('10:00:00', '2013-10-08')) as (srv, clock, ib):
        ticks = kept(ib.reqMktData(SPY, '233'), 'ticks')['ticks']
        ib.reqTickByTickData(SPY, 'AllLast')
        ib.reqMktDepth(ARCA)
        ib.reqRealTimeBars(SPY, 5, 'TRADES', True)
        await clock.asleep(181)
        return ib.ear, ticks, srv.sessions.inside(at('10:00:00', '2013-10-08').date()).ticks, await ib.reqMktDepthExchangesAsync()


def test_real_seconds_of_2013_come_through_level_1(seconds):
    ear, ticks, t, venues = run(watch_seconds(seconds))
    trades = {}
    for f in ear.said(46):
        if f[3] == '48':
            px, size, ms, *_ = f[4].split(';')
            trades.setdefault(int(ms)//1000, []).append((float(px), float(size)))
    s, first = t.seconds, ns('10:00:00', '2013-10-08')
    i, j = np.searchsorted(s.t, [first, first + 179*10**9])
    for k in range(i, j):
        px, size = zip(*trades[s.t[k]//10**9])
        assert (px[0], max(px), min(px), px[-1], sum(size)) == (s.open[k], s.high[k], s.low[k], s.close[k], s.volume[k])
    assert j - i > 150 and set(trades) <= set((s.t//10**9).tolist())
    q = t.quotes
    a, b = np.searchsorted(q.t, [first, first + 180*10**9])
    for kind, px in ((1, q.bid), (2, q.ask)): assert [o.price for o in ticks if o.tickType == kind] == changes(px[a-1:b].tolist())
    assert sorted(ear.codes) == [354, 420, 10189] and venues == []   # there are no single trades, no book, and no bars from trades


async def walk_the_chain(tape):
    async with replay(tape, at('11:00:00', '2026-07-09')) as (srv, clock, ib):
        g = SimpleNamespace(params=await ib.reqSecDefOptParamsAsync('SPY', '', 'STK', 756733), details=await ib.reqContractDetailsAsync(ib_async.Option('SPY', '20260709', 750, 'C', 'SMART')))
        t = ib.reqMktData(g.details[0].contract, '101')
        await clock.asleep(1)
        g.before, g.t0 = copy(t), srv.now()
        times = tape.chain.index.unique()
        g.next = times[times > g.t0][0]
        await clock.asleep((g.next - g.t0).total_seconds() + 2)
        g.after, g.codes, g.account = copy(t), ib.ear.codes, ib.managedAccounts()
        return g


def test_a_real_chain_is_quoted_as_it_was_known(shared):
    tape = open_tape([shared('spy_1min.parquet')], chain=shared('spy_chain_0-7dte.parquet'))
    g = run(walk_the_chain(tape))
    c = tape.chain[(tape.chain['right'] == 'C') & (tape.chain['strike'] == 750) & (tape.chain['expiry'] == at('11:00:00', '2026-07-09').date())]
    for t, row in ((g.before, c[:g.t0].iloc[-1]), (g.after, c[:g.next].iloc[-1])):
        assert (t.bid, t.ask, t.last, t.volume, t.callOpenInterest) == (row.bid, row.ask, row['last'], row.volume, row.open_interest)
        m = t.modelGreeks
        assert (m.impliedVol, m.delta, m.gamma, m.theta, m.vega, m.undPrice) == (row.iv, row.delta, row.gamma, row.theta, row.vega, row.spot)
    assert g.before.bid != g.after.bid and {o.exchange for o in g.params} >= {'SMART'} and '20260709' in g.params[0].expirations
    assert len(g.details) == 1 and g.codes == [] and g.account == ['REPLAY-spy_1min']


async def one_session(tape, day, all_kinds):
    async with replay(tape, at('09:30:00', day), speed=0) as (srv, _, ib):
        ib.reqTickByTickData(SPY, 'AllLast')
        if all_kinds:
            ib.reqMktData(SPY)
            ib.reqMktDepth(ARCA)
            ib.reqRealTimeBars(SPY, 5, 'TRADES', True)
        await ib.reqCurrentTimeAsync()
        srv.command('step', dict(seconds=23_401))
        await ib.reqCurrentTimeAsync()
        past = await ib.reqHistoricalTicksAsync(SPY, at('10:00:00', day), '', 10, 'TRADES', True)
        return ib.ear, ib.managedAccounts(), past


def test_real_minutes_give_drawn_trades_that_make_up_each_bar(shared):
    tape = open_tape([shared('spy_1min.parquet')], intraminute='simulated')
    ear, accounts, past = run(one_session(tape, '2026-03-31', False))
    assert accounts == ['REPLAY-spy_1min+sim'] and provenance_of(accounts[0]) == 'replay:spy_1min+sim' and ear.codes == [] and len(past) == 10
    t = pd.DataFrame([(int(f[3])//60*60, float(f[4]), float(f[5])) for f in ear.said(99)], columns=['minute', 'px', 'size']).groupby('minute')
    got = t.agg(open=('px', 'first'), high=('px', 'max'), low=('px', 'min'), close=('px', 'last'), volume=('size', 'sum'))
    day = tape.bars['TRADES', '1 min'].loc['2026-03-31']
    assert (got.index == day.index.as_unit('s').asi8).all() and (got.to_numpy() == day[list(got)].to_numpy(float)).all() and len(got) == 390


def test_real_minutes_alone_hold_no_stream_and_say_so(shared):
    tape = open_tape([shared('spy_1min.parquet')])
    ear, accounts, past = run(one_session(tape, '2026-03-31', True))
    assert accounts == ['REPLAY-spy_1min'] and past == [] and sorted(ear.codes) == [162, 354, 354, 420, 10189] and not ear.said(1, 2, 12, 13, 99, 50)
