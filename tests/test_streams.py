"""The live side of the replay server over real sockets: what unmodified clients are told is what the tape holds."""
import asyncio
from collections import Counter
from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
from ib_async import Option

from live import ARCA, ISLAND, SPY, at, kept, ns, replay, run
from spyresearch.tws.book import Book
from spyresearch.tws.replay import open_tape
from spyresearch.tws.ticks import levels
from spyresearch.tws.wire import REQUESTS

A, B = '10:00:00', '10:03:00'   # streams begin and are judged at


@pytest.fixture(scope='module')
def demo(): return open_tape(days=10)


async def issue_everything(tape):
    "Every request that ib_async can send, in three minutes of a session; what came of it."
    g = SimpleNamespace()
    async with replay(tape, at(A), n=5) as (srv, clock, ib, tbt, arca, island, smart):
        g.venues = await ib.reqMktDepthExchangesAsync()
        [g.details] = await ib.reqContractDetailsAsync(SPY)
        spy = g.details.contract
        g.heads = [await ib.reqHeadTimeStampAsync(spy, 'TRADES', True, f) for f in (1, 2)]
        g.schedule = await ib.reqHistoricalScheduleAsync(spy, 3)
        g.params = await ib.reqSecDefOptParamsAsync('SPY', '', 'STK', spy.conId)
        g.options = await ib.reqContractDetailsAsync(Option('SPY', '20251201', 0, 'C', 'SMART'))
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
    ib.reqAutoOpenOrders(True)
    ib.client.reqIds(1)
    ib.client.reqManagedAccts()
    ib.client.setServerLogLevel(3)
    ib.client.cancelPositions()
    ib.client.cancelAccountUpdatesMulti(77)
    await ib.reqCurrentTimeAsync()


@pytest.fixture(scope='module')
def every(demo): return run(issue_everything(demo))


def test_every_request_was_issued_and_none_refused(every):
    assert every.requests == set(REQUESTS), set(REQUESTS) - every.requests
    assert [o.codes for o in every.ears] == [[162], [], [], [], []]   # the cancelled history request says so
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
    assert (int(t.rtTime.timestamp()*1000), int(t.lastTimestamp.timestamp())) == (tr.t[n-1]//10**6, tr.t[n-1]//10**9)


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
