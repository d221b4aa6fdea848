"""Three unmodified clients against the replay server: ib_async, ib_insync and the official ibapi must read the same values.

Server and ib_async share an author's reading of the protocol; the official decoder does not. In the data below every field
differs from its neighbours, so that two swapped fields show in any of them."""
import asyncio
import threading
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest
from ib_async import IB, Stock

from spyresearch.core import ET, UTC
from spyresearch.sessions import minutes
from spyresearch.tws.replay import ReplayServer
from spyresearch.tws.tape import Tape, with_adjusted
from spyresearch.tws.wire import Details

from ibapi.client import EClient
from ibapi.contract import Contract as OfficialContract
from ibapi.wrapper import EWrapper

HALF, DAY = date(2025, 11, 28), date(2025, 12, 1)
NOW = datetime(2025, 12, 1, 12, 0, 30, tzinfo=ET)

# A contract of which every field is another text or number.
ODD = Details(
    'SPY', 'STK', '20301220', 1.5, 'C', 'SMART', 'USD', 'LOCAL', 'MARKET', 'CLASS', 4711, .25, 33, '7', 'ORDERTYPES', 'SMART,ARCA', 17, 19, 'Société Générale', 'PRIMARY',
    '203012', 'INDUSTRY', 'CATEGORY', 'SUBCATEGORY', 'US/Eastern', '20251201:0400-20251201:2000', '20251201:0930-20251201:1600', 'RULE', 23,
    (('ISIN', 'US1'), ('CUSIP', 'C2')), 29, 'UNDER', 'UNDERTYPE', '31,37', '20301219', 'ETF', 41, 43, 47, 53)


def bars(day, base, extras=True):
    "A session of bars in which all numbers differ, extremes included."
    ix = minutes(day)
    k = np.arange(len(ix))
    low = base + k*.01
    px = dict(open=low + 1.25, high=low + 3.5, low=low, close=low + 2.75)
    return pd.DataFrame({c: v.round(2) for c, v in px.items()} | (dict(volume=1000. + k, average=(low + 1.875).round(4), barCount=40. + k) if extras else {}), index=ix)


def odd_tape():
    both = {what: pd.concat([bars(HALF, base, what == 'TRADES'), bars(DAY, base + 10, what == 'TRADES')])
            for what, base in dict(TRADES=300, BID_ASK=400, MIDPOINT=500, OPTION_IMPLIED_VOLATILITY=.1).items()}
    daily = pd.DataFrame(dict(open=310., high=325., low=305., close=[320., 321., 322.], volume=[7e7, np.nan, 9e7]),
                         index=pd.DatetimeIndex(['2025-11-26', '2025-11-28', '2025-12-01'], tz=ET, name='Datetime'))
    tape = Tape('odd', 'simulated', {(w, '1 min'): b for w, b in both.items()} | {('TRADES', '1 day'): daily}, pd.Series({HALF: 1., DAY: 2.}))
    return with_adjusted(tape)


REQUESTS = [  # end, duration, bar size, what, formatDate
    ('', '2 D', '1 min', 'TRADES', 2), ('', '1 D', '1 min', 'TRADES', 1), ('20251128 11:00:00', '600 S', '1 min', 'TRADES', 2),
    ('20251128 16:00:00 US/Eastern', '1 D', '1 min', 'BID_ASK', 2), ('20251128 16:00:00 UTC', '1 D', '1 min', 'MIDPOINT', 1),
    ('20251201-16:00:00', '1 W', '1 min', 'OPTION_IMPLIED_VOLATILITY', 2), ('', '1 Y', '1 day', 'TRADES', 2), ('', '1 M', '1 day', 'ADJUSTED_LAST', 1)]


class Official(EWrapper, EClient):
    "The official client, its answers kept by request."
    def __init__(self):
        EClient.__init__(self, self)
        self.got, self.done, self.told, self.ready = {}, {}, [], threading.Event()

    def keep(self, req_id, value): self.got.setdefault(req_id, []).append(value)
    def finish(self, req_id): self.done.setdefault(req_id, threading.Event()).set()
    def nextValidId(self, orderId): self.ready.set()
    def managedAccounts(self, accountsList): self.accounts = accountsList
    def error(self, reqId, errorCode, errorString):
        self.told.append((reqId, errorCode))
        self.finish(reqId)
    def contractDetails(self, reqId, contractDetails): self.keep(reqId, contractDetails)
    def contractDetailsEnd(self, reqId): self.finish(reqId)
    def historicalData(self, reqId, bar): self.keep(reqId, bar)
    def historicalDataEnd(self, reqId, start, end):
        self.span = start, end
        self.finish(reqId)
    def headTimestamp(self, reqId, headTimestamp):
        self.keep(reqId, headTimestamp)
        self.finish(reqId)
    def currentTime(self, time):
        self.keep('time', time)
        self.finish('time')

    def ask(self, req_id, call):
        "Send a request and wait for its end."
        self.done[req_id] = threading.Event()
        call()
        assert self.done[req_id].wait(10), f'the official client waits in vain for {req_id}'
        return self.got.get(req_id, [])


def spy_contract():
    c = OfficialContract()
    c.symbol, c.secType, c.exchange, c.currency = 'SPY', 'STK', 'SMART', 'USD'
    return c


def official_answers(port):
    "Everything the official client is told: details, bars by request, heads, time; run in a thread."
    app, c = Official(), spy_contract()
    app.connect('127.0.0.1', port, 77)
    thread = threading.Thread(target=app.run, daemon=True)
    thread.start()
    try:
        assert app.ready.wait(10)
        out = dict(version=app.serverVersion(), accounts=app.accounts, details=app.ask(1, lambda: app.reqContractDetails(1, c)))
        out['bars'] = [app.ask(10 + i, lambda i=i, r=r: app.reqHistoricalData(10 + i, c, r[0], r[1], r[2], r[3], 1, r[4], False, [])) for i, r in enumerate(REQUESTS)]
        out['heads'] = [app.ask(30 + f, lambda f=f: app.reqHeadTimeStamp(30 + f, c, 'TRADES', 1, f))[0] for f in (1, 2)]
        out['time'] = app.ask('time', app.reqCurrentTime)
        c.symbol = 'QQQ'
        app.ask(50, lambda: app.reqContractDetails(50, c))
        app.ask(51, lambda: app.reqMktData(51, spy_contract(), '', False, False, []))
        out['told'] = [o for o in app.told if o[0] > 0]
        return out
    finally:
        app.disconnect()
        thread.join(5)


async def ib_answers(port, ib, version=None):
    "The same through ib_async or ib_insync, plus the schedule."
    if version: ib.client.MaxClientVersion = version
    await ib.connectAsync('127.0.0.1', port, clientId=8)
    c, raw = stock(ib), []
    decode = ib.wrapper.historicalData
    ib.wrapper.historicalData = lambda req_id, bar: (raw.append((req_id, dict(vars(bar)))), decode(req_id, bar))
    out = dict(version=ib.client.serverVersion(), accounts=ib.managedAccounts(), details=await ib.reqContractDetailsAsync(c))
    for r in REQUESTS: await ib.reqHistoricalDataAsync(c, r[0], r[1], r[2], r[3], True, r[4])
    ids = sorted({i for i, _ in raw})
    out['bars'] = [[b for j, b in raw if j == i] for i in ids]
    out['heads'] = [await ib.reqHeadTimeStampAsync(c, 'TRADES', True, f) for f in (1, 2)]
    out['schedule'] = await ib.reqHistoricalScheduleAsync(c, 3)
    out['time'] = await ib.reqCurrentTimeAsync()
    ib.disconnect()
    return out


def stock(ib):
    import ib_insync
    return (Stock if isinstance(ib, IB) else ib_insync.Stock)('SPY', 'SMART', 'USD')


def serve(coro_of_server, **kw):
    "Run a coroutine against a server of the odd tape; nothing may stay unhandled."
    async def run():
        async with ReplayServer(odd_tape(), NOW, details=ODD, **kw) as srv:
            out = await coro_of_server(srv)
            assert srv.unhandled == [] and srv.errors == []
            return out
    return asyncio.run(run())


@pytest.fixture(scope='module')
def official(): return serve(lambda srv: asyncio.to_thread(official_answers, srv.port))


@pytest.fixture(scope='module', params=[157, 163, 164, 176, 178])
def ours(request): return serve(lambda srv: ib_answers(srv.port, IB(), request.param)) | dict(asked=request.param)


def plain(details):
    "A client's contract details as a flat dict; the official and ib_async records share their names."
    d = dict(vars(details))
    d |= {f'contract.{k}': v for k, v in vars(d.pop('contract')).items()}
    d['secIdList'] = [(o.tag, o.value) for o in d.get('secIdList') or []]
    return d


def test_versions_and_account(ours, official):
    assert ours['version'] == ours['asked'] and official['version'] == 157
    assert ours['accounts'] == ['SIMULATED-odd'] and official['accounts'] == 'SIMULATED-odd'


def test_contract_details_agree_field_by_field(ours, official):
    a, b = plain(ours['details'][0]), plain(official['details'][0])
    same = {k for k in a.keys() & b.keys() if a[k] == b[k]}
    differ = {k: (a[k], b[k]) for k in (a.keys() & b.keys()) - same if a[k] or b[k]}
    # ib_async drops the obsolete size multiplier; the official client of version 157 knows nothing of the three sizes
    assert not differ.keys() - {'mdSizeMultiplier'}, differ
    values = [a[k] for k in same if a[k] not in ('', 0, None, [], False)]
    assert len(values) >= 30 and len({str(v) for v in values}) == len(values), 'each field of the test contract differs from every other'


def test_contract_details_are_what_was_served(ours):
    a = plain(ours['details'][0])
    wanted = dict(minTick=.25, orderTypes='ORDERTYPES', priceMagnifier=17, underConId=19, longName='Société Générale', contractMonth='203012',
                  evRule='RULE', evMultiplier=23, aggGroup=29, underSymbol='UNDER', underSecType='UNDERTYPE', marketRuleIds='31,37',
                  realExpirationDate='20301219', stockType='ETF', secIdList=[('ISIN', 'US1'), ('CUSIP', 'C2')])
    assert {k: a[k] for k in wanted} == wanted
    sizes = (a['minSize'], a['sizeIncrement'], a['suggestedSizeIncrement'])
    assert sizes == {157: (0, 0, 0), 163: (0, 0, 41)}.get(ours['asked'], (43, 47, 53))


def test_bars_agree_field_by_field(ours, official):
    assert [len(o) for o in ours['bars']] == [360, 150, 10, 210, 90, 300, 2, 2]
    for mine, theirs in zip(ours['bars'], official['bars']):
        mine = [m | dict(date=str(m['date'])) for m in mine]
        assert mine == [{k: getattr(t, k) for k in m} for m, t in zip(mine, theirs)] and len(mine) == len(theirs)


def test_bars_are_the_tapes(ours):
    rows = bars(DAY, 310)[:150]
    got = pd.DataFrame(ours['bars'][1])
    assert got['date'][0] == '20251201 09:30:00 US/Eastern'
    assert (got[rows.columns.tolist()].to_numpy() == rows.to_numpy()).all()
    assert all((b['volume'], b['average'], b['barCount']) == (-1, -1, -1) for b in ours['bars'][4])
    first = rows.iloc[0]
    assert len(set(first)) == len(first), 'each field of a test bar differs from every other'


def test_daily_bars_end_with_yesterday(ours):
    "At noon the day's own bar does not exist, nor does its dividend in the adjusted closes; dates are dates in both formats."
    assert [b['date'] for b in ours['bars'][6]] == [b['date'] for b in ours['bars'][7]] == ['20251126', '20251128']
    assert [b['volume'] for b in ours['bars'][6]] == [7e7, -1] and [b['close'] for b in ours['bars'][7]] == [319, 321]


def test_head_timestamp_and_time(ours, official):
    first = pd.Timestamp('2025-11-28 09:30', tz=ET)
    assert ours['heads'][0].replace(tzinfo=UTC) == ours['heads'][1] == first
    assert official['heads'] == ['20251128-14:30:00', str(int(first.timestamp()))]
    assert ours['time'] == NOW and official['time'] == [int(NOW.timestamp())]


def test_official_client_is_refused_like_ours(official):
    assert official['told'] == [(50, 200), (51, 354)]


def test_schedule(ours):
    "The official client of version 157 cannot read schedules; ib_insync does so with its own decoder, below."
    s = ours['schedule']
    assert (s.startDateTime, s.endDateTime, s.timeZone) == ('20251126-09:30:00', '20251201-16:00:00', 'US/Eastern')
    assert [(o.startDateTime, o.endDateTime, o.refDate) for o in s.sessions][1] == ('20251128-09:30:00', '20251128-13:00:00', '20251128')


def test_ib_insync_agrees(official):
    import ib_insync
    theirs = serve(lambda srv: ib_answers(srv.port, ib_insync.IB()))
    mine = serve(lambda srv: ib_answers(srv.port, IB(), 176))
    assert theirs['version'] == 176
    a, b = plain(theirs['details'][0]), plain(mine['details'][0])
    assert {k: (a[k], b[k]) for k in a.keys() & b.keys() if a[k] != b[k]} == {}
    assert theirs['bars'] == mine['bars'] and theirs['heads'] == mine['heads'] and theirs['time'] == mine['time']
    assert [vars(o) for o in theirs['schedule'].sessions] == [vars(o) for o in mine['schedule'].sessions]


@pytest.mark.parametrize('size', [1, 3, 1000])
def test_fragments_of_any_size_are_read_alike(size):
    from spyresearch.tws.faults import Faults
    whole = serve(lambda srv: ib_answers(srv.port, IB()))
    parts = serve(lambda srv: one_day(srv.port), faults=Faults(fragment=size))
    assert parts == whole['bars'][2]


async def one_day(port):
    "Ten minutes of bars as dicts."
    ib = IB()
    await ib.connectAsync('127.0.0.1', port, clientId=8)
    got = await ib.reqHistoricalDataAsync(stock(ib), REQUESTS[2][0], '600 S', '1 min', 'TRADES', True, 2)
    ib.disconnect()
    return [vars(b) | dict(date=str(int(b.date.timestamp()))) for b in got]


def test_only_one_holder_of_a_client_id():
    async def two(srv):
        a, b, told = IB(), IB(), []
        await a.connectAsync('127.0.0.1', srv.port, clientId=5)
        b.errorEvent += lambda req_id, code, *_: told.append(code)
        with pytest.raises((TimeoutError, asyncio.TimeoutError, ConnectionError)):
            await b.connectAsync('127.0.0.1', srv.port, clientId=5, timeout=1)
        still = a.isConnected()
        a.disconnect()
        return told, still
    assert serve(two) == ([326], True)
