"""Option listings: a real chain is told as it was known, and simulated options hang together as prices must."""
import math
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from spyresearch.core import ET
from spyresearch.sessions import session, sessions
from spyresearch.tws.listing import YEAR, Option, con_id, expires, local_symbol, option_of, read_local, recorded, simulated
from spyresearch.tws.records import read_chain
from spyresearch.tws.wire import Contract

S = 10**9
EMPTY = Contract(0, 'SPY', 'OPT', '', 0., '', '', '', '', '', '', '')


def ns(s): return pd.Timestamp(s, tz=ET).value


@pytest.fixture(scope='module')
def chain(shared): return read_chain(shared('spy_chain_0-7dte.parquet'))


@pytest.fixture(scope='module')
def real(chain): return recorded(chain)


def same(a, b): return a == b or (a != a or a is None) and b != b


days = sessions(date(2006, 1, 3), date(2035, 6, 29))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(days), st.sampled_from('CP'), st.integers(1, 65535))
def test_a_number_names_one_contract(day, right, tenths):
    o = Option(f'{day:%Y%m%d}', right, tenths/10)
    assert option_of(con_id(o)) == o == read_local(local_symbol(o)) and con_id(o) < 2**31


@settings(max_examples=200, deadline=None)
@given(st.integers(-2**70, 2**70))
def test_any_number_from_a_client_is_answered(n):
    o = option_of(n)
    assert o is None or con_id(o) == n
    assert market().quote(n, ns('2025-12-03 11:00')) is None or o is not None


def test_real_quotes_are_the_files_at_their_time(chain, real):
    assert len(chain) > 100_000
    for at, r in list(zip(chain.index.as_unit('ns').asi8.tolist(), chain.itertuples(index=False)))[::7]:
        i = con_id(Option(f'{r.expiry:%Y%m%d}', r.right, r.strike))
        q = real.quote(i, at)
        assert q.at == at and q.greeks.under == r.spot and same(q.greeks.iv, r.iv) and same(q.greeks.delta, r.delta) and same(q.greeks.theta, r.theta)
        assert (q.bid == r.bid and q.bid_size != q.bid_size) if r.bid else (math.isnan(q.bid) and q.bid_size == 0)
        assert (q.ask, q.volume, q.open_interest) == (r.ask, r.volume, r.open_interest) and same(q.last, r.last)
        before = real.quote(i, at - 1)
        assert before is None or before.at < at


def test_real_contracts_are_listed_when_they_were_seen(chain, real):
    times = chain.index.as_unit('ns').asi8
    keys = list(zip(chain['expiry'], chain['right'], chain['strike']))
    for at in np.unique(times)[::16].tolist():
        want = {Option(f'{e:%Y%m%d}', r, k) for t, (e, r, k) in zip(times, keys) if t <= at < session(e).close.value}
        assert real.contracts(at) == sorted(want) and len({con_id(o) for o in want}) == len(want)
    assert real.contracts(int(times[0]) - 1) == real.params(int(times[0]) - 1) == []
    assert len({o for at in np.unique(times).tolist() for o in real.contracts(at)}) == len(set(keys)) == 3128


def test_a_real_contract_is_found_by_any_part_of_it(chain, real):
    at = ns('2026-07-09 12:00')
    every = real.details(EMPTY, at)
    assert [(d.last_trade, d.right, d.strike) for d in every] == real.contracts(at) and len({d.con_id for d in every}) == len(every) > 1000
    assert real.details(EMPTY._replace(last_trade='202607', symbol='SPY', currency='USD', multiplier='100', trading_class='SPY'), at) == every
    today = real.details(EMPTY._replace(last_trade='20260709'), at)
    assert today == [d for d in every if d.last_trade == '20260709'] and {d.contract_month for d in today} == {'202607'}
    one = next(d for d in today if (d.right, d.strike) == ('C', 750))
    for c in (EMPTY._replace(last_trade='20260709', right='CALL', strike=750.), EMPTY._replace(local_symbol='SPY   260709C00750000', symbol=''),
              EMPTY._replace(con_id=one.con_id, symbol='', sec_type='')): assert real.details(c, at) == [one]
    for odd in (dict(last_trade='20260708'), dict(symbol='QQQ'), dict(currency='EUR'), dict(exchange='ARCA'), dict(strike=750.1), dict(sec_type='STK'), dict(symbol='')):
        assert real.details(EMPTY._replace(**odd), at) == [], odd
    assert {p['exchange'] for p in real.params(at)} >= {'SMART', 'CBOE'} and real.params(at)[0]['strikes'] == sorted({d.strike for d in every})


def test_a_real_contract_has_no_quote_once_it_ended(chain, real):
    end = expires('20260702')
    i = con_id(Option('20260702', 'C', 750.))
    assert real.quote(i, end - 1) and real.quote(i, end) is None and '20260702' not in real.expiries(end)


def wave(at): return 600 + 4*math.sin(at/7.3e12) + math.sin(at/5e10)
def market(spot=wave, vol=lambda at: .13, **kw): return simulated(spot, vol, **kw)


MOMENTS = ['2025-12-01 09:30:00', '2025-12-03 15:59:00', '2025-12-05 15:59:59', '2025-11-28 12:59:00', '2025-11-28 11:00:00']


@pytest.mark.parametrize('when', MOMENTS)
@pytest.mark.parametrize('vol', [.08, .13, .4])
def test_simulated_prices_leave_nothing_to_take(when, vol):
    sim, at, earlier = market(vol=lambda at: vol), ns(when), None
    spot, strikes = wave(at), sim.strikes(at)
    for e in sim.expiries(at):
        q = {r: [sim.quote(con_id(Option(e, r, k)), at) for k in strikes] for r in 'CP'}
        bid, ask, px = ({r: np.array([f(o) for o in q[r]]) for r in q} for f in (lambda o: o.bid if o.bid == o.bid else 0., lambda o: o.ask, lambda o: o.greeks.px))
        forward = spot - np.array(strikes)
        assert np.allclose(px['C'] - px['P'], forward, atol=1e-9)
        assert (bid['C'] - ask['P'] <= forward + 1e-9).all() and (ask['C'] - bid['P'] >= forward - 1e-9).all()
        for r, sign in (('C', -1), ('P', 1)):
            assert (ask[r] - bid[r] > .0099).all() and (bid[r] <= px[r] + 1e-9).all() and (px[r] <= ask[r] + 1e-9).all()
            assert all((sign*np.diff(v[r]) >= -1e-9).all() for v in (bid, ask, px)), 'the order of the strikes'
            assert (np.abs(np.diff(px[r])) <= 1 + 1e-9).all() and (np.diff(px[r], 2) >= -1e-9).all(), 'a spread or butterfly for less than nothing'
            assert earlier is None or (px[r] >= earlier[r] - 1e-9).all(), 'a later expiry for less'
            for o in q[r]:
                assert o.bid_size == 0 if o.bid != o.bid else o.bid_size % 10 == 0 < o.bid_size
                assert all(round(100*v, 6) % 1 == 0 for v in (o.bid, o.ask) if v == v)
                assert type(o.ask) is type(o.greeks.px) is type(o.greeks.theta) is type(o.volume) is float
        earlier = px


def value(s, k, v, t, sign):
    d = np.log(s/k)/(v*t**.5) + v*t**.5/2
    return sign*(s*norm.cdf(sign*d) - k*norm.cdf(sign*(d - v*t**.5)))


@pytest.mark.parametrize('when', MOMENTS)
def test_greeks_are_the_slopes_of_the_price(when):
    sim, at = market(), ns(when)
    for e in sim.expiries(at)[::4]:
        for o in (Option(e, r, k) for r in 'CP' for k in sim.strikes(at)[::6]):
            q = sim.quote(con_id(o), at)
            iv, delta, px, _, gamma, vega, theta, s = q.greeks
            t, sign = (expires(e) - at)/YEAR, 1 if o.right == 'C' else -1
            h, dt = s*iv*t**.5/1000, t/1000
            def f(s=s, v=iv, t=t, k=o.strike, sign=sign): return value(s, k, v, t, sign)
            assert px == pytest.approx(f(), abs=1e-9)
            assert delta == pytest.approx((f(s + h) - f(s - h))/2/h, abs=1e-5)
            assert gamma == pytest.approx((f(s + 10*h) - 2*px + f(s - 10*h))/100/h/h, abs=1e-3*gamma + 1e-6)
            assert vega == pytest.approx((f(v=1.001*iv) - f(v=.999*iv))/.002/iv/100, abs=1e-5)
            assert theta == pytest.approx((f(t=t - dt) - f(t=t + dt))/2/dt/365, abs=1e-4*abs(theta) + 1e-6)
            for p, v in ((q.bid, q.bid_iv), (q.ask, q.ask_iv)):
                if v == v: assert f(v=v) == pytest.approx(p, abs=1.1e-4)
                else: assert not f(v=20) > p > max(sign*(s - o.strike), 0), 'a price above exercise implies a volatility'


def test_options_end_with_the_session():
    sim = market()
    for day, close in (('20251203', '2025-12-03 16:00'), ('20251128', '2025-11-28 13:00')):
        i, end = con_id(Option(day, 'C', round(wave(ns(close))) - 1.)), ns(close)
        q, inside = sim.quote(i, end - 60*S), wave(end - 60*S) - option_of(i).strike
        assert 0 <= q.greeks.px - max(inside, 0) < .25 and q.greeks.theta < 0
        assert sim.quote(i, end - 1).at == end - S and sim.quote(i, end) is None and day in sim.expiries(end - 1) and day not in sim.expiries(end)
        assert sim.details(EMPTY._replace(con_id=i), end) == []


def test_answers_do_not_depend_on_the_questions_before():
    rng, a = np.random.default_rng(1), market()
    ids = [con_id(Option(e, r, k)) for e in ('20251203', '20251219') for r in 'CP' for k in (560., 598., 600., 630.)]
    asked = [(int(rng.choice(ids)), ns('2025-12-01 09:30') + int(rng.integers(0, 3*86400*S))) for _ in range(300)]
    first = [repr(a.quote(*o)) for o in asked]
    assert first == [repr(a.quote(*o)) for o in reversed(asked)][::-1] == [repr(market().quote(*o)) for o in asked]
    assert first != [repr(market(seed=8).quote(*o)) for o in asked]


def test_nothing_after_the_question_is_looked_at():
    latest = []
    def spy(at): latest.append(at); return wave(at)
    sim = market(spot=spy, vol=lambda at: .1 + 0*len(latest.append(at) or ''))
    for at in (ns('2025-12-03 08:00'), ns('2025-12-03 09:30:00'), ns('2025-12-03 12:34:56') + S//2, ns('2025-12-06 12:00')):
        for o in sim.contracts(at)[::50]: sim.quote(con_id(o), at)
        sim.params(at), sim.details(EMPTY._replace(last_trade='202512', strike=600.), at)
        assert max(latest) <= at


def test_the_list_stands_still_within_a_day_and_volume_only_grows():
    sim, opened = market(), ns('2025-12-02 09:30')
    lists = [sim.contracts(opened + h*3600*S) for h in range(7)]
    assert all(o == lists[0] for o in lists) and sim.contracts(opened) == sorted(sim.contracts(opened))
    assert sim.strikes(opened)[0] >= .92*wave(opened) and sim.strikes(opened)[-1] <= 1.08*wave(opened) and set(np.diff(sim.strikes(opened))) == {1.}
    i = con_id(Option('20251202', 'P', 600.))
    day = [sim.quote(i, opened + m*60*S) for m in range(390)]
    assert all(b.volume >= a.volume for a, b in zip(day, day[1:])) and day[0].volume == 0 < day[-1].volume and len({q.open_interest for q in day}) == 1
    assert math.isnan(day[0].last) and all(q.last > 0 for q in day[10:]) and day[-1].volume > 100*sim.quote(con_id(Option('20251219', 'P', 560.)), opened + 389*60*S).volume
