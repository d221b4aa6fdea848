"""The option chain against a market in lockstep: what is recorded is what was quoted, whatever TWS refuses or drops."""
import asyncio
import json
import math
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from datetime import date, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyresearch.core import ET, DataError, FeedError, FixedClock, RealClock, parse_asof, stopwatch
from spyresearch.tws import chain as module
from spyresearch.tws.chain import Chain, chain_frame, read_chain_day, seal_chain_day
from spyresearch.tws.contracts import COLUMNS, Listed, Quote, ends
from spyresearch.tws.control import SlaveClock
from spyresearch.tws.faults import FINE, Faults
from spyresearch.tws.link import Link
from spyresearch.tws.listing import con_id, Option
from spyresearch.tws.records import read_chain
from spyresearch.tws.replay import ReplayServer, listing_of, open_tape

DAY, HALF, DEMO = date(2025, 12, 5), date(2025, 11, 28), open_tape(days=10)
FIELDS = ['bid', 'ask', 'bid_size', 'ask_size', 'last', 'volume', 'open_interest']
MODEL = dict(iv='iv', delta='delta', gamma='gamma', theta='theta', vega='vega', model_px='px', under='under')


@asynccontextmanager
async def market(at='2025-12-05T10:29', faults=FINE, tape=DEMO, speed='max'):
    srv = ReplayServer(tape, parse_asof(at), speed, control=True, faults=faults)
    srv.listing = listing_of(srv)
    async with srv:
        clock = await SlaveClock(srv.now()).attach(srv.control.port, srv.control.token)
        try:
            async with Link(port=srv.port, clock=clock) as link: yield srv, link
        finally: clock.detach()


def on(f, **kw):
    "Run `f(server, link)` against a market."
    async def run():
        async with market(**kw) as (srv, link): return await f(srv, link)
    return asyncio.run(run())


def chain_of(link, tmp_path, spot=lambda: 602.3, day=DAY, **kw):
    chain = Chain(link, tmp_path/'chain', day, spot, **kw)
    chain.heard = []; chain.told.append(lambda *o: chain.heard.append(o))
    return chain


def until(s): return parse_asof(f'2025-12-05T{s}')
def ns(t): return pd.Timestamp(t).value
def same(a, b): return a == b or (a is None or a != a) and (b is None or b != b)
def asked(srv, name='MarketData'): return [o for o in srv.requests if type(o.request).__name__ == name]


def quoted(listing, row, at_ns):
    "Is a row what the listing says at a moment?"
    q = listing.quote(int(row.con_id), at_ns)
    want = {k: getattr(q, k) for k in FIELDS} | {k: getattr(q.greeks, f) for k, f in MODEL.items()}
    if want['bid'] != want['bid']: want['bid_size'] = None
    return all(same(getattr(row, k), v) for k, v in want.items())


# --- what is recorded

def test_rows_are_the_quotes_of_their_second(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path)
        await chain.run(until('10:32'))
        df = chain.log.read(DAY)
        assert list(df.columns) == COLUMNS and len(df) == 90*df.index.nunique() and df.index.nunique() == 35
        later = df[df.index >= df.index[0] + pd.Timedelta(seconds=5)]
        assert all(quoted(srv.listing, r, ns(r.Index) - 10**9) for r in later.itertuples())
        assert later['age'].between(1, 5).all() and (later['status'] == 'quoted').all() and set(df['data_type']) == {1.} and set(df['spot']) == {602.3}
        assert df.groupby('expiry').strike.agg(['min', 'max', 'nunique']).to_numpy().tolist() == [[598., 606., 9.]]*5
        assert srv.errors == srv.unhandled == [] and len(asked(srv)) == 90 and chain.heard == [('live', '')]
    on(f)


@pytest.mark.parametrize('stall_s', [0., .3])
def test_at_a_finite_speed(tmp_path, stall_s):
    "A record is late by no more than the loop itself: a busy machine, here a loop that stands still again and again, delays both."
    gaps = []
    async def look():
        while True:
            with stopwatch() as w: await asyncio.sleep(.01); RealClock().sleep(stall_s)
            gaps.append(w.seconds)
    async def f(srv, link):
        chain = chain_of(link, tmp_path, every_s=10.)
        tasks = [asyncio.ensure_future(o) for o in (chain.run(until('11:29')), look())]
        def quoted(): rows = [*chain.snapshots.values()]; return len(rows) > 1 and set(chain_frame(rows[-1])['status']) == {'quoted'}
        while not tasks[0].done() and not quoted(): await asyncio.sleep(.02)   # three minutes of the machine at most
        for o in tasks: o.cancel()
        df = chain.log.read(DAY)
        last, at_ = df[df.index == df.index[-1]], df.index.unique()[1:]
        assert len(last) == 90 and (last['status'] == 'quoted').all() and srv.errors == []
        late = (at_ - at_.floor('10s')).total_seconds()
        assert len(at_) and at_.floor('10s').is_unique and late.max() <= 1 + 4*20*max(gaps)   # of seconds, and of the few turns of the loop that a waking takes
    on(f, speed=20., faults=Faults(limits=dict(rate=1000)))   # a busy machine bunches what was sent in time


def test_the_window_follows_the_price_within_its_lines(tmp_path):
    "The server has no line to spare: a stream too many would be refused."
    path = [602.3]*3 + [602.9, 603.1, 602.4, 602.6, 602.1, 601.99] + [None]*2 + [595.] + [math.nan]*2 + [700., 20.]
    async def f(srv, link):
        px, used, windows = iter(path), [], []
        now = [None]
        chain = chain_of(link, tmp_path, lambda: now[0])
        await chain.prepare()
        for now[0] in px:
            n = len(asked(srv)); await chain.follow(); chain.record(link.clock.now())
            await link.clock.asleep(5)
            used.append(len(asked(srv)) - n); windows.append(sorted({o.strike for o in chain.window})[::8])
        assert chain.faults == Counter(empty_expiry=0) and chain.budget == 90 and srv.errors == []
        assert windows == [[598., 606.]]*4 + [[599., 607.]]*4 + [[598., 606.]]*3 + [[591., 599.]]*3 + [[644.], [553.]]
        assert used == [90, 0, 0, 0, 10, 0, 0, 0, 10, 0, 0, 70, 0, 0, 50, 50]
        assert srv.counts['MarketData'] - srv.counts['CancelMarketData'] == chain.used == 50
        await chain.close(); await link.current_time()
        assert srv.counts['MarketData'] == srv.counts['CancelMarketData'] and srv.live() == [] and not link.listeners
    on(f, faults=Faults(limits=dict(lines=90)))


strikes_ = st.lists(st.integers(1, 400), min_size=1, max_size=60, unique=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(strikes_, min_size=1, max_size=6), st.integers(0, 100), st.floats(.5, 420), st.randoms(use_true_random=False))
def test_any_window_is_within_budget_and_round_the_money(tmp_path_factory, grid, lines, spot, random):
    link = SimpleNamespace(clock=FixedClock(parse_asof('2025-12-01')), provenance='simulated:toy')
    chain = Chain(link, tmp_path_factory.mktemp('c')/'chain', DAY, None, lines=lines)
    days = ['20251205', '20251208', '20251209', '20251210', '20251211', '20251212']
    chain.listed = {d: {float(k): [Listed(d, r, float(k), 1, '') for r in random.choice(['CP', 'CP', 'C', 'P'])] for k in sorted(ks)} for d, ks in zip(days, grid)}
    w = chain.choose(spot)
    assert len(w) <= lines and len(set(w)) == len(w) and [abs(o.strike - spot) for o in w] == sorted(abs(o.strike - spot) for o in w)
    for d in {o.expiry for o in w}:
        s, took = list(chain.listed[d]), sorted({o.strike for o in w if o.expiry == d})
        i = [s.index(k) for k in took]
        centre = chain.centres[d]
        assert i == list(range(i[0], i[-1] + 1)) and abs(s[centre] - spot) == min(abs(k - spot) for k in s) and centre in i
        assert i[-1] - centre == centre - i[0] or i[0] == 0 or i[-1] == len(s) - 1
    again = chain.choose(spot)
    assert again == w


# --- contracts

def test_a_restart_asks_for_no_contract(tmp_path):
    async def f(srv, link):
        first = chain_of(link, tmp_path); await first.run(until('10:30'))
        assert srv.counts['ContractDetails'] == 6 and srv.counts['OptionParams'] == 1
        await first.close(); first.log.close()
        second = chain_of(link, tmp_path); await second.run(until('10:31'))
        assert srv.counts['ContractDetails'] == 6 and srv.counts['OptionParams'] == 1 and second.listed == first.listed
        assert second.log.read(DAY).index.is_monotonic_increasing and second.torn == ''
        second.cache.write_text(json.dumps(dict(provenance='simulated:other', listed={})))
        third = chain_of(link, tmp_path); await third.prepare()
        assert srv.counts['ContractDetails'] == 11 and third.listed == first.listed
    on(f)


def test_an_expiry_without_contracts_is_passed_over_and_not_remembered(tmp_path):
    async def f(srv, link):
        details = srv.listing.details
        srv.listing = SimpleNamespace(params=srv.listing.params, quote=srv.listing.quote, details=lambda c, at: [] if c.last_trade == '20251208' else details(c, at))
        chain = chain_of(link, tmp_path); await chain.prepare()
        assert list(chain.listed) == ['20251205', '20251209', '20251210', '20251211', '20251212'] and not chain.cache.exists() and chain.faults['empty_expiry'] == 1
    on(f)


def test_a_tape_without_options(tmp_path):
    async def f(srv, link):
        srv.listing = None
        chain = chain_of(link, tmp_path); await chain.run(until('10:50'))
        assert chain.unavailable and len(chain.heard) == 1 and srv.counts['OptionParams'] == 2 and chain.log.on_disk() == []
    on(f)


def test_another_source_is_refused(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:29:10'))
        with pytest.raises(DataError, match='not tws'): chain_of(link, tmp_path, provenance='tws')
    on(f)


# --- what the account may see

def test_denied_is_said_once_and_tried_every_quarter_of_an_hour(tmp_path):
    rights = dict(options='none')
    async def f(srv, link):
        px = 600.
        def spot(): nonlocal px; px += .02; return px   # a price that moves on must not bring more requests
        chain = chain_of(link, tmp_path, spot); await chain.run(until('11:00'))
        assert len(asked(srv)) == 3 and [(o.at - asked(srv)[0].at).total_seconds() for o in asked(srv)] == [0, 900, 1800]
        df = chain.log.read(DAY)
        assert set(df['status']) == {'denied'} and df.index.is_unique and df[FIELDS].isna().all().all() and chain.unavailable
        assert len(chain.heard) == 1 and 'OPRA' in chain.heard[0][1] and '354' in chain.heard[0][1]
        rights['options'] = 'live'
        await chain.run(until('11:20'))
        assert [o[0] for o in chain.heard] == ['unavailable', 'live'] and chain.log.read(DAY).iloc[-90:]['status'].isin(['quoted', 'no bid']).all()
    on(f, faults=Faults(rights=rights))


@pytest.mark.parametrize('code', [354, 10091, 10089])
def test_a_right_lost_in_the_day(tmp_path, code):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:50'))
        df = chain.log.read(DAY)
        assert [o[0] for o in chain.heard] == ['live', 'unavailable', 'live'] and str(code) in chain.heard[1][1]
        assert set(df.loc['2025-12-05T10:35':'2025-12-05T10:40', 'status']) == {'denied'} and (df.iloc[-90:]['status'] == 'quoted').all()
        assert len(asked(srv)) == 180 and len(srv.live('options')) == chain.used == 90
    on(f, faults=Faults(script=(dict(do='say', on='options', at='10:31:00', code=code, text='Part of requested market data is not subscribed.'),)))


def test_delayed_quotes_say_so(tmp_path):
    async def f(srv, link):
        link.ib.reqMarketDataType(3)
        chain = chain_of(link, tmp_path); await chain.run(until('10:31'))
        df = chain.log.read(DAY)
        assert set(df['data_type']) == {3.} and chain.state == 'live' and chain.faults['told 10167'] == 90
        assert all(quoted(srv.listing, r, ns(r.Index) - 901*10**9) for r in df[df.index >= '2025-12-05T10:30-05:00'].itertuples())
    on(f, faults=Faults(rights=dict(options='delayed')))


def test_delayed_without_having_asked_for_it_is_denied(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:31'))
        assert chain.unavailable and '10168' in chain.reason
    on(f, faults=Faults(rights=dict(options='delayed')))


def test_quotes_without_the_underlying_have_no_greeks(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:31'))
        last = chain.log.read(DAY).iloc[-90:]
        assert (last['status'] == 'quoted').all() and last[[*MODEL, 'greeks_age']].isna().all().all() and last['bid'].notna().all() and chain.faults['told 10090'] == 90
    on(f, faults=Faults(rights=dict(options='partial')))


def test_a_competing_session_is_waited_for(tmp_path):
    rights = dict(options='competing')
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:32:30'))
        assert len(asked(srv)) == 4 and len(chain.heard) == 1 and 'another session' in chain.reason
        rights['options'] = 'live'; await chain.run(until('10:34'))
        assert chain.state == 'live' and chain.used == 90
    on(f, faults=Faults(rights=rights))


# --- lines

@pytest.mark.parametrize('lines,strikes', [(21, [3, 3, 1, 1, 1]), (50, [5]*5), (9, [1]*4)])
def test_fewer_lines_than_thought(tmp_path, lines, strikes):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:40'))
        last = chain_frame(chain.rows(link.clock.now()))
        assert chain.budget == lines and chain.used == len(last) == len(srv.live('options')) == 2*sum(strikes)
        assert last.groupby('expiry').strike.nunique().tolist() == strikes and (last['status'] == 'quoted').all()
        assert last.loc[last['expiry'] == '2025-12-05', 'strike'].median() == 602 and len(asked(srv)) < 90 + lines
    on(f, faults=Faults(limits=dict(lines=lines)))


def test_no_line_at_all(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('11:00'))
        assert len(asked(srv)) == 3 and len(chain.heard) == 1 and 'no market data line' in chain.reason and not chain.quotes
    on(f, faults=Faults(limits=dict(lines=0)))


# --- drops

def test_a_dropped_link(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path)
        link.told.append(lambda code, text: chain.down(text) if code == 0 else None)
        async def keeper():
            while True:
                await link.clock.asleep(5)
                if link.connected: continue
                try: await link.connect()
                except FeedError: continue
                chain.up()
        task = asyncio.ensure_future(keeper())
        await chain.run(until('10:33')); task.cancel()
        df = chain.log.read(DAY)
        gone = df.loc['2025-12-05T10:30:10':'2025-12-05T10:30:35']
        assert [o[0] for o in chain.heard] == ['live', 'down', 'waiting', 'live'] and set(gone['status']) == {'down'} and gone[[*FIELDS, 'age', 'greeks_age']].isna().all().all()
        assert len(df) == 90*df.index.nunique() and df.index.nunique() == 47
        assert all(quoted(srv.listing, r, ns(r.Index) - 10**9) for r in df.loc['2025-12-05T10:31':].itertuples()) and len(srv.live('options')) == 90
    on(f, faults=Faults(script=(dict(do='down', at='10:30:02', for_s=35),)))


def test_a_link_that_nobody_keeps_is_found_gone(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:31'))
        assert chain.state == 'down' and 'not connected' in chain.reason and (chain.log.read(DAY).iloc[-90:]['status'] == 'down').all()
    on(f, faults=Faults(script=(dict(do='drop', at='10:30:02'),)))


def test_a_dead_feed_is_noticed_by_its_silence(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('10:34'))
        df = chain.log.read(DAY)
        assert chain.faults['silent'] == 1 and df.loc['2025-12-05T10:31':'2025-12-05T10:32', 'age'].max() > 55 and df.iloc[-90:]['age'].max() <= 5
        assert len(srv.live('options')) == 90 and chain.budget == 90 and srv.counts['CancelMarketData'] == 90
    on(f, faults=Faults(script=(dict(do='dead', on='options', at='10:31:00'),), limits=dict(lines=90)))


def test_a_feed_that_stays_mute_is_asked_ever_more_rarely(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('11:31'))
        assert 4 <= chain.faults['silent'] <= 6 and chain.patience_s == 900
    on(f, faults=Faults(script=(dict(do='mute', on='options', at='10:31:00', for_s=7200),)))


# --- ages

def age_of(q, at): return tuple(q.row(at, None)[COLUMNS.index(o)] for o in ('age', 'greeks_age'))


def test_what_is_repeated_has_no_age_and_what_was_known_keeps_it():
    q, model = Quote(Listed('20251205', 'C', 602., 7, ''), Counter()), [SimpleNamespace(iv=iv, delta=.5, gamma=.1, theta=-.1, vega=.1, px=1., under=602.) for iv in (.1, .2, .3)]
    def hear(at, g, **said):
        for word, v in said.items(): q.hear(at, word, v)
        q.hear(at, 'greeks', model[g])
        return age_of(q, at + 1)
    standing = dict(bid=1., bid_size=5., ask=1.1, ask_size=6.)
    q.ask()
    assert hear(10., 0, **standing) == (None, None) and hear(20., 1, ask_size=7.) == (1, 1)
    standing['ask_size'] = 7.
    q.ask()   # asked again while the old values stand
    assert age_of(q, 30.) == (10, 10) and hear(40., 1, **standing) == (21, 21)
    q.forget()   # the line was down
    assert age_of(q, 50.) == (None, None)
    q.ask()
    assert hear(60., 1, bid=1., bid_size=5.) == (41, 41) and hear(60., 2, ask=1.1, ask_size=7.) == (41, 1)   # the same quote as before; a model that has moved since
    q.forget()
    q.ask()
    assert hear(70., 0, **standing | dict(bid=1.05)) == (None, None) and age_of(q, 500.) == (None, None)   # changed while nobody listened: nobody knows when
    assert hear(80., 0, bid=1.06) == (1, None)
    q.ask()
    assert hear(90., 0, bid=-1.) == (None, None) and q.status() == 'no bid' and hear(91., 0, bid=-1.)[0] is None and hear(95., 0, bid=1.) == (1, None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(['ask', 'forget']) | st.tuples(st.sampled_from(['bid', 'ask', 'bid_size', 'ask_size']), st.integers(1, 3)), max_size=30))
def test_no_quote_is_younger_than_its_last_change(said):
    "Against the truth: each word's value at TWS changes when a word says so, and a request repeats all."
    q, truth, changed, at = Quote(Listed('20251205', 'C', 602., 7, ''), Counter()), {}, None, 0.
    q.ask()
    for o in said:
        at += 1.
        if o == 'forget': q.forget()
        if o in ('ask', 'forget'):
            q.ask()
            for word, v in truth.items(): q.hear(at, word, v)
        else:
            word, v = o[0], float(o[1])
            if truth.get(word) != v: changed = at
            truth[word] = v
            q.hear(at, word, v)
        age = age_of(q, at)[0]
        assert age is None or age >= at - changed


def test_a_recorded_chain_keeps_its_age_when_it_is_asked_for_again(tmp_path, shared):
    "Snapshots are half an hour apart, so a silent minute makes the chain ask again, and again."
    tape, day = open_tape(bars=[shared('spy_1min.parquet')], chain=shared('spy_chain_0-7dte.parquet')), date(2026, 7, 10)
    async def f(srv, link):
        chain = chain_of(link, tmp_path, lambda: 750., day)
        await chain.run(parse_asof('2026-07-10T11:34'))
        return chain.faults['silent'], chain.log.read(day)
    silent, df = on(f, at='2026-07-10T10:35', tape=tape)
    snapshot = [t for t in tape.chain.index.unique() if pd.Timestamp('2026-07-10 10:36', tz=ET) < t < pd.Timestamp('2026-07-10 11:34', tz=ET)]
    before, after = df[df.index < snapshot[0]], df[df.index > snapshot[0] + pd.Timedelta('5s')]
    since = (after.index - snapshot[0]).total_seconds()
    known = after['age'].notna()
    assert silent >= 3 and before['age'].isna().all() and (before['status'] != 'no quote').any() and known.mean() > .9
    last = max(t for t in snapshot)
    assert (after['age'][known] >= np.where(after.index > last + pd.Timedelta('5s'), (after.index - last).total_seconds(), 0)[known] - 5).all() and after['age'].max() <= since.max()
    late = df[df.index > last + pd.Timedelta('4min')]
    assert len(late) and (late['age'].dropna() > 230).all()


def test_a_contract_that_leaves_the_window_and_comes_back_keeps_its_age(tmp_path):
    async def f(srv, link):
        px = [602.3]
        chain = chain_of(link, tmp_path, lambda: px[0])
        await chain.prepare()
        await chain.follow()
        await link.clock.asleep(5)
        first = chain.quotes[con_id(Option('20251205', 'C', 598.))]
        px[0] = 612.
        await chain.follow()
        await link.clock.asleep(30)
        gone = con_id(Option('20251205', 'C', 598.)) not in chain.quotes
        px[0] = 602.3
        await chain.follow()
        back = chain.quotes[con_id(Option('20251205', 'C', 598.))]
        await link.clock.asleep(.5)
        return first is not back, back.quote is first.quote, gone, age_of(back, link.clock.monotonic())[0]
    other, same_memory, gone, age = on(f)
    assert other and same_memory and gone and (age is None or age >= 30)


# --- the calendar

def test_a_half_day_ends_at_one(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path, lambda: px, HALF)
        px = srv.listing.quote(con_id(Option('20251128', 'C', srv.listing.strikes(srv.now_ns())[50])), srv.now_ns()).greeks.under
        await chain.run(parse_asof('2025-11-28T13:01'))
        df = chain.log.read(HALF)
        assert df.index[-1] == pd.Timestamp('2025-11-28 12:59:55', tz=ET) and df['expiry'].nunique() == 5 and len(df) == 90*df.index.nunique()
        assert chain.quotes and all(q.listed.expiry != '20251128' for q in chain.quotes.values()) and chain.used == len(srv.live('options'))
        fresh = chain_of(link, tmp_path/'other', lambda: px, HALF); await fresh.prepare()
        assert '20251128' in chain.listed and '20251128' not in fresh.listed and len(fresh.listed) == 5
    on(f, at='2025-11-28T12:58')


def test_it_follows_before_the_open_and_records_from_it(tmp_path):
    async def f(srv, link):
        chain = chain_of(link, tmp_path); await chain.run(until('09:31'))
        df = chain.log.read(DAY)
        assert df.index[0] == pd.Timestamp('2025-12-05 09:30', tz=ET) and len(df) == 12*90 and len(asked(srv)) == 90
    on(f, at='2025-12-05T09:27')


# --- the file

def filled(tmp_path, n=40):
    "A chain with a day's beginning on record, without a market."
    link = SimpleNamespace(clock=FixedClock(parse_asof('2025-12-05T10:00')), provenance='simulated:toy', listeners={}, connected=False)
    chain = Chain(link, tmp_path/'chain', DAY, lambda: 602.)
    rng = np.random.default_rng(7)
    for i, (k, r) in enumerate([(600. + k, r) for k in range(4) for r in 'CP']):
        q = chain.quotes[i] = Quote(Listed('20251205', r, k, i + 1, ''), chain.faults)
    for j in range(n):
        for q in chain.quotes.values():
            for word in ('bid', 'ask', 'bid_size', 'volume'): q.hear(j, word, round(float(rng.normal(1, 1)), 2))
        chain.record(link.clock.now() + timedelta(seconds=5*j))
    return chain


def test_sealing_keeps_every_value(tmp_path):
    chain = filled(tmp_path); rows = read_chain_day(tmp_path/'chain', DAY)
    path = chain.seal()
    assert not chain.log.file(DAY).exists() and read_chain_day(tmp_path/'chain', DAY).equals(rows) and len(rows) == 320
    assert seal_chain_day(tmp_path/'chain', DAY) == path and rows['con_id'].dtype == 'int64' and str(rows.index.tz) == 'America/New_York'
    with pytest.raises(DataError, match='sealed'): chain.record(parse_asof('2025-12-05T15:00'))
    again = Chain(chain.link, tmp_path/'chain', DAY, lambda: 602.); again.quotes = chain.quotes
    with pytest.raises(DataError, match='sealed'): again.record(parse_asof('2025-12-05T15:00'))
    assert not chain.log.file(DAY).exists()


@pytest.mark.parametrize('step', ['atomic_write', 'file_hash', 'unlink'])
def test_a_kill_while_sealing_loses_nothing(tmp_path, monkeypatch, step):
    chain = filled(tmp_path); rows = read_chain_day(tmp_path/'chain', DAY)
    def die(*a, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(*((type(tmp_path), 'unlink') if step == 'unlink' else (module, step)), die)
        with pytest.raises(KeyboardInterrupt): chain.seal()
    assert read_chain_day(tmp_path/'chain', DAY).equals(rows) and chain.log.file(DAY).exists()
    seal_chain_day(tmp_path/'chain', DAY)
    assert read_chain_day(tmp_path/'chain', DAY).equals(rows) and not chain.log.file(DAY).exists()


def test_a_table_that_differs_from_the_lines_is_not_trusted(tmp_path):
    chain = filled(tmp_path); rows = read_chain_day(tmp_path/'chain', DAY)
    path, lines = tmp_path/'chain'/f'{DAY}.parquet', chain.log.file(DAY).read_bytes()
    for other in (lines[:lines[:-1].rfind(b'\n') + 1], lines.replace(b'603', b'604', 1)):
        chain.log.file(DAY).write_bytes(other); path.write_bytes(module._parquet(chain.log.file(DAY))); chain.log.file(DAY).write_bytes(lines)
        with pytest.raises(DataError, match='is not what'): chain.seal()
        assert read_chain_day(tmp_path/'chain', DAY).equals(rows)


@pytest.mark.parametrize('change', [(b'strike', b'strokes'), (b',602,', b',many,'), (b',602,', b',602,602,')])
def test_lines_that_cannot_be_read_are_not_sealed(tmp_path, change):
    chain = filled(tmp_path); file = chain.log.file(DAY); chain.log.close()
    file.write_bytes(spoiled := file.read_bytes().replace(*change, 1))
    with pytest.raises(DataError, match='cannot be sealed'): chain.seal()
    assert file.read_bytes() == spoiled and not (tmp_path/'chain'/f'{DAY}.parquet').exists()


def test_sealing_takes_little_memory_and_keeps_order_over_blocks(tmp_path):
    chain = filled(tmp_path); log, rows = chain.log, read_chain_day(tmp_path/'chain', DAY)
    head, _, body = log.file(DAY).read_bytes().partition(b'\n'); log.close()
    log.file(DAY).write_bytes(head + b'\n' + body*250)
    before = pa.total_allocated_bytes(); path = chain.seal()
    assert pa.total_allocated_bytes() <= before + 1_000_000 and pq.read_metadata(path).num_row_groups > 1
    back = read_chain_day(tmp_path/'chain', DAY)
    assert len(back) == 250*len(rows) and back.iloc[-320:].equals(rows) and back.iloc[320*100:320*101].equals(rows)


def test_a_torn_line_is_cut_off_and_handed_over(tmp_path):
    chain = filled(tmp_path, 3); chain.log.close()
    with chain.log.file(DAY).open('ab') as o: o.write(b'2025-12-05T10:0')
    again = Chain(chain.link, tmp_path/'chain', DAY, lambda: 602.); again.quotes = chain.quotes
    assert again.record(parse_asof('2025-12-05T09:59')) == 0   # the clock was set back while the program was away: that time is on record
    assert again.torn == '2025-12-05T10:0' and len(read_chain_day(tmp_path/'chain', DAY)) == 24
    again.log.close(); again.log.file(DAY).write_bytes(again.log.file(DAY).read_bytes()[:-3])
    seal_chain_day(tmp_path/'chain', DAY)
    assert len(read_chain_day(tmp_path/'chain', DAY)) == 23


def test_nothing_on_record(tmp_path):
    assert filled(tmp_path, 0).seal() is None
    for f in (read_chain_day, seal_chain_day):
        with pytest.raises(DataError, match='no chain of'): f(tmp_path/'chain', DAY)


def test_memory_does_not_grow_with_rows(tmp_path):
    chain = filled(tmp_path, 10); t = parse_asof('2025-12-05T11:00')
    tracemalloc.start()
    try:
        for j in range(500): chain.record(t + timedelta(seconds=j))
        before = tracemalloc.get_traced_memory()[0]
        for j in range(500, 3000): chain.record(t + timedelta(seconds=j))
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally: tracemalloc.stop()


words = st.sampled_from(['bid', 'ask', 'bid_size', 'ask_size', 'last', 'volume', 'open_interest'])
odd = st.floats() | st.sampled_from([-1., 0., math.inf, -math.inf, math.nan, 1.7976931348623157e308])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(words, odd), max_size=12))
def test_no_word_makes_a_false_cell(said):
    q = Quote(Listed('20251205', 'C', 602., 7, ''), Counter())
    for word, v in said: q.hear(1., word, v)
    r = dict(zip(COLUMNS, q.row(2., None)))
    for k in FIELDS: assert r[k] is None or 0 <= r[k] < math.inf and (r[k] > 0 or k not in ('bid', 'ask', 'last'))
    assert r['status'] == ('no quote' if r['ask'] is None else 'no bid' if r['bid'] is None else 'crossed' if r['bid'] > r['ask'] else 'quoted')
    assert chain_frame([['2025-12-05T10:00:00-05:00', *q.row(2., None)]]).shape == (1, len(COLUMNS))


# --- a real chain

def test_real_quotes_are_recorded_as_they_stand_in_the_file(tmp_path, shared):
    tape, real = open_tape(bars=[shared('spy_1min.parquet')], chain=shared('spy_chain_0-7dte.parquet')), read_chain(shared('spy_chain_0-7dte.parquet'))
    day, two = date(2026, 7, 10), [pd.Timestamp(o, tz=ET) for o in ('2026-07-10 10:40:41', '2026-07-10 11:35:00')]
    spots = [float(real.loc[o, 'spot'].iloc[0]) for o in two]

    async def f(srv, link):
        chain = chain_of(link, tmp_path, lambda: spots[link.clock.now() >= two[1]], day)
        await chain.run(parse_asof('2026-07-10T11:37'))
        assert chain.provenance.startswith('replay:') and srv.errors == []
        return chain.log.read(day)
    df = on(f, at='2026-07-10T11:00', tape=tape)
    fields = ['bid', 'ask', 'last', 'volume', 'open_interest', 'iv', 'delta', 'gamma', 'theta', 'vega']
    for moment, truth, spot in (('2026-07-10 11:10', two[0], spots[0]), ('2026-07-10 11:36', two[1], spots[1])):
        got = df.loc[pd.Timestamp(moment, tz=ET)].reset_index().set_index(['expiry', 'right', 'strike'])
        want = real.loc[truth].reset_index(); want['expiry'] = want['expiry'].astype(str)
        want = want.set_index(['expiry', 'right', 'strike']).loc[got.index]
        assert len(got) == 90 and (got['under'] == spot).all() and (got['model_px'].isna()).all()
        want[['bid', 'ask']] = want[['bid', 'ask']].where(want[['bid', 'ask']] > 0)
        assert np.array_equal(got[fields].to_numpy(float), want[fields].to_numpy(float), equal_nan=True)
        assert sorted(got.reset_index()['expiry'].unique()) == [f'2026-07-{d}' for d in (10, 13, 14, 15, 16)]


def test_expiries_end_with_their_session():
    assert [f'{ends(o):%H:%M}' for o in ('20251205', '20251128', '20251225')] == ['16:00', '13:00', '00:00']
