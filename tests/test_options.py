"Options against QuantLib, vollib and the recorded chains: time, variance, prices, early exercise, quotes and repricing."
import math
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.bars import grid, read_bars
from spyresearch.core import ET, ModelError, UsageError
from spyresearch.features.smile import YEAR, arrays, fault_of, minutes_left
from spyresearch.sessions import session, sessions
from spyresearch.trade.clock import VarianceClock, last_trade, learn_clock, time_left
from spyresearch.trade.options import Curve, DELTAS, RULES, curves, error_table, moves, repriced, repricing_error, snapshots, stickiness
from spyresearch.trade.quotes import REASONS, chain_carry, check_quotes
from spyresearch.trade.valuation import black, carry, delta, early_exercise, greeks, implied, interest_days

FLAT = VarianceClock(datetime(2026, 2, 27, 16, tzinfo=ET), np.arange(391)/390, .5, .7, .25)


def at(text): return datetime.fromisoformat(text).replace(tzinfo=ET)


@pytest.fixture(scope='module')
def chain(shared):
    "The real snapshots, by when their quotes were true, in the recorder's words."
    c = pd.read_parquet(shared('spy_chain_0-7dte.parquet')).rename(columns=dict(type='right')).astype(dict(right=str))
    return c.set_index(pd.DatetimeIndex(c.quote_ts).tz_convert(ET).rename('Datetime')).drop(columns=['quote_ts', 'fetched_ts']).sort_index(kind='stable')


@pytest.fixture(scope='module')
def dividends(shared): return {date.fromisoformat(d): v for d, v in pd.read_csv(shared('spy_dividends.csv')).to_numpy()}


@pytest.fixture(scope='module')
def minutes(shared): return grid(read_bars(shared('spy_1min.parquet')))


@pytest.fixture(scope='module')
def snaps(chain, minutes, dividends): return snapshots(chain, lambda day: learn_clock(minutes, session(day).open, dividends), dividends)


@pytest.fixture(scope='module')
def errors(snaps): return repriced(snaps)


# Time

BY_HAND = [ # moment, expiry, calendar minutes, trading minutes
    ('2026-03-31T09:30', '2026-03-31', 390, 390), ('2026-03-31T15:59', '2026-03-31', 1, 1), ('2026-03-31T15:59:30', '2026-03-31', .5, .5),
    ('2026-03-31T08:00', '2026-03-31', 480, 390), ('2026-03-30T20:00', '2026-03-31', 1200, 390), ('2026-03-31T16:10', '2026-04-01', 1430, 390),
    ('2026-03-31T12:00', '2026-04-02', 3120, 1020), ('2026-04-02T15:00', '2026-04-06', 5820, 450),                       # over Good Friday
    ('2026-04-04T12:00', '2026-04-06', 3120, 390), ('2026-03-27T16:00', '2026-03-30', 4320, 390),                         # on a Saturday; a weekend
    ('2025-11-28T12:59', '2025-11-28', 1, 1), ('2025-11-28T09:30', '2025-11-28', 210, 210), ('2025-11-26T15:30', '2025-11-28', 2730, 240), # half day after Thanksgiving
    ('2025-12-24T12:00', '2025-12-26', 3120, 450), ('2025-07-03T12:30', '2025-07-07', 5970, 420),                         # half days before holidays
    ('2026-03-06T15:00', '2026-03-09', 4320 + 60 - 60, 450), ('2025-10-31T15:00', '2025-11-03', 4320 + 60 + 60, 450),     # the clocks change over the weekend
    ('2026-07-02T10:00', '2026-07-06', 6120, 750)]                                                                        # 3 July 2026 is a holiday


@pytest.mark.parametrize('moment, expiry, calendar, trading', BY_HAND)
def test_time_left_by_hand(moment, expiry, calendar, trading):
    assert time_left(at(moment), date.fromisoformat(expiry)) == (calendar, trading)


@pytest.mark.parametrize('moment, expiry', [('2026-03-31T16:00', '2026-03-31'), ('2026-03-31T16:14', '2026-03-31'), ('2025-11-28T13:00', '2025-11-28'), ('2025-11-28T13:10', '2025-11-28'),
                                            ('2026-04-01T09:30', '2026-03-31'), ('2026-03-31T12:00', '2026-04-03'), ('2026-03-31T12:00', '2026-04-04')])
def test_nothing_is_left_after_the_end(moment, expiry):
    with pytest.raises(UsageError): time_left(at(moment), date.fromisoformat(expiry))
    with pytest.raises(UsageError): FLAT.left(at(moment), date.fromisoformat(expiry))


def test_trading_stops_a_quarter_past_the_close():
    assert {(last_trade(d) - session(d).close).total_seconds() for d in sessions(date(2025, 1, 2), date(2026, 12, 31))} == {900}


moment = st.datetimes(datetime(2026, 3, 2), datetime(2026, 12, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=ET))


@settings(max_examples=150, deadline=None)
@given(moment, st.integers(0, 8), st.floats(0, 3000))
def test_variance_only_runs_out_and_adds_up(now, k, later_min):
    "Less is left later, a longer option has more, and what lies between two expiries does not depend on when it is asked."
    ends = [d for d in sessions(now.date(), now.date() + timedelta(20)) if session(d).close > now]
    e, then = ends[k], now + timedelta(minutes=later_min)
    a = FLAT.left(now, e)
    assert 0 < a < FLAT.left(now, ends[k + 1])
    if then < session(e).close:
        b = FLAT.left(then, e)
        assert b <= a + 1e-12
        assert FLAT.left(now, ends[k + 1]) - a == pytest.approx(FLAT.left(then, ends[k + 1]) - b, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['2026-11-27', '2026-03-31', '2026-07-02']), st.integers(0, 200), st.integers(0, 4))
def test_the_minutes_ahead_are_those_one_by_one(day, start, k):
    s = session(date.fromisoformat(day)); now = (s.open + pd.Timedelta(minutes=start)).to_pydatetime()
    e, m = sessions(s.day, s.day + timedelta(12))[k], np.arange(0, s.n_minutes - start - 1, 7)
    assert FLAT.ahead(now, e, m) == pytest.approx([FLAT.left(now + timedelta(minutes=int(o)), e) for o in m], abs=1e-12)


def test_the_clock_of_real_sessions(minutes, dividends):
    "Twice its share in the first half hour, under three quarters at lunch, half a session a night; nothing of it from later days."
    for moment in ('2024-06-28T17:00', '2025-06-30T17:00', '2026-03-31T17:00'):
        c = learn_clock(minutes, at(moment), dividends)
        assert 1.8 < c.shape[30]*13 < 2.6 and (c.shape[240] - c.shape[150])*390/90 < .85 and c.shape[390] - c.shape[360] > c.shape[330] - c.shape[300]
        assert .35 < c.night < .65 and c.night < c.gap < 1 and .1 < c.half < .8 and c.known_at <= at(moment)
    cut = grid(read_bars_until(minutes, date(2025, 6, 30)))
    a, b = learn_clock(minutes, at('2025-06-30T17:00'), dividends), learn_clock(cut, at('2026-06-30T17:00'), dividends)
    assert np.array_equal(a.shape, b.shape) and (a.night, a.gap, a.half, a.known_at) == (b.night, b.gap, b.half, b.known_at)
    with pytest.raises(ModelError): learn_clock(minutes, at('2021-01-20T17:00'), dividends)


def read_bars_until(g, last):
    "The bars of a grid up to a day, as a frame."
    keep = [i for i, d in enumerate(g.days) if d <= last]
    rows = [(session(g.days[i]).open + pd.Timedelta(minutes=int(m)), *(getattr(g, o)[i, m] for o in ('open', 'high', 'low', 'close', 'volume'))) for i in keep for m in np.flatnonzero(g.seen[i])]
    return pd.DataFrame(rows, columns=['Datetime', 'open', 'high', 'low', 'close', 'volume']).set_index('Datetime')


# Prices

@settings(max_examples=200, deadline=None)
@given(st.floats(400, 900), st.floats(-.1, .1), st.floats(1e-4, .2), st.sampled_from([1, -1]))
def test_the_array_formula_is_vollib_and_quantlib(forward, away, sd, sign):
    import QuantLib as ql
    from vollib.black import undiscounted_black
    k = forward*math.exp(away)
    px = float(black(forward, k, sd, sign)); other = ql.blackFormula(ql.Option.Call if sign > 0 else ql.Option.Put, k, forward, sd)
    assert abs(px - undiscounted_black(forward, k, sd, 1., 'c' if sign > 0 else 'p')) < 1e-10 and abs(px - other) < 1e-10
    calc = ql.BlackCalculator(ql.PlainVanillaPayoff(ql.Option.Call if sign > 0 else ql.Option.Put, k), forward, sd, 1.)
    assert abs(float(delta(forward, k, sd, sign)) - calc.deltaForward()) < 1e-10
    if px - max(sign*(forward - k), 0) > 1e-4: assert abs(float(implied(px, forward, k, sign)) - sd) < 1e-6


def test_greeks_are_those_of_quantlib():
    import QuantLib as ql
    years, k = 180/YEAR['calendar'], np.array([592., 598., 600., 602., 610.])
    for sign, right in ((1, ql.Option.Call), (-1, ql.Option.Put)):
        g = greeks(black(600.3, k, .008, sign), 600.3, k, sign, years)
        for i, o in enumerate(k):
            c = ql.BlackCalculator(ql.PlainVanillaPayoff(right, float(o)), 600.3, .008, 1.)
            want = [.008/years**.5, c.deltaForward(), c.gammaForward(), c.vega(years)/100, c.thetaPerDay(600.3, years)]
            assert np.allclose(g.iloc[i], want, rtol=1e-6, atol=1e-8)


def test_quoted_volatilities_are_ours_with_half_an_hour_more(chain, snaps):
    "The vendor reckons with 30 minutes more than are left until 16:00: with them the median difference is under .1 points."
    off = []
    for s in snaps[::8]:
        for e, c in s.curves.items():
            g = s.rows[(s.rows['expiry'] == pd.Timestamp(e)) & (s.rows['iv'] > 0) & s.rows['delta'].abs().between(.25, .75)]
            sd = implied((g.bid + g.ask).to_numpy(float)/2, c.forward, g.strike.to_numpy(), np.where(g.right == 'C', 1, -1))
            off.append(100*(sd/math.sqrt((time_left(s.at, e).calendar + 30)/YEAR['calendar']) - g['iv'].to_numpy(float)))
    off = np.concatenate(off)
    assert len(off) > 1500 and abs(np.nanmedian(off)) < .1 and np.nanquantile(abs(off), .9) < .6


# Interest and early exercise

def test_interest_runs_from_settlement_to_settlement(chain):
    "The rate of the nearest later expiry: within 2 % to 7 % by settlement on every day, from 1 % to 11 % by the calendar."
    by_settlement, by_calendar, off = {}, {}, []
    for t, rows in chain.groupby(level=0):
        day = t.date(); q = arrays(rows)
        f, c = chain_carry(q, fault_of(q, day) == 0, day)
        e = sorted(f)[1]; grown = math.log(f[e]/f[day])*365
        by_settlement.setdefault(day, []).append(grown/interest_days(day, e)); by_calendar.setdefault(day, []).append(grown/(e - day).days)
        off.append((abs(c.spot - rows.spot.iloc[0]), c.rate))
    s, k = ([np.median(o) for o in d.values()] for d in (by_settlement, by_calendar))
    assert .02 < min(s) and max(s) < .07 and min(k) < .015 and max(k) > .1
    off = np.array(off)
    assert off[:, 0].max() < .1 and .03 < off[:, 1].min() and off[:, 1].max() < .047 and .034 < np.median(off[:, 1]) < .039


def bermudan(spot, k, sign, vol, rate, days, dividend=None):
    "QuantLib's finite differences: European, exercise on each day, exercise at any time; the dividend goes ex after the exercise of a day."
    import QuantLib as ql
    today = ql.Date(13, 7, 2026); ql.Settings.instance().evaluationDate = today; dc = ql.Actual365Fixed()
    flat = [ql.YieldTermStructureHandle(ql.FlatForward(today, r, dc)) for r in (0., rate)]
    vols = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), vol, dc))
    process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(spot)), *flat, vols)
    engine = ql.FdBlackScholesVanillaEngine(process, ql.DividendVector(*(([today + dividend[0]], [dividend[1]]) if dividend else ([], []))), 400, 400)
    ends, out = [today + i for i in range(1, days + 1)], []
    for x in (ql.EuropeanExercise(ends[-1]), ql.BermudanExercise(ends), ql.AmericanExercise(today, ends[-1])):
        o = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call if sign > 0 else ql.Option.Put, k), x); o.setPricingEngine(engine); out.append(o.NPV())
    return out


@pytest.mark.parametrize('days, dividend', [(1, None), (2, None), (5, None), (2, (1, 1.9)), (5, (2, 1.9))])
def test_early_exercise_is_that_of_quantlib(days, dividend):
    paid = np.zeros(days)
    if dividend: paid[dividend[0]] = dividend[1]
    sd = np.full(days, .14/365**.5)
    for deviations in (-1.5, -.7, 0., .7, 1.5):
        k = float(round(750*math.exp(deviations*math.sqrt((sd**2).sum()))))
        for sign in (1, -1):
            ours = early_exercise(750., [k], [sign], sd, .036/365, paid)[0]
            european, daily, _ = bermudan(750., k, sign, .14, .036, days, dividend)
            assert abs(ours - (daily - european)) < 1.5e-3


def test_early_exercise_bounds():
    "Puts of |delta| up to .75 without an ex-date: under six cents and .6 % five days out, nothing on the last day; even at any time QuantLib finds under nine cents."
    sd = np.full(5, .14/365**.5); k = 750*math.exp(.7*math.sqrt(5)*.14/365**.5)
    worth = early_exercise(750., [k], [-1], sd, .036/365)[0]; european, _, american = bermudan(750., k, -1, .14, .036, 5)
    assert .03 < worth < .06 and worth/european < .006 and american - european < .09
    assert early_exercise(750., [760., 740.], [-1, 1], [.005], 0.) == pytest.approx([0, 0], abs=1e-12)


def test_early_exercise_is_in_the_recorded_prices(snaps):
    "Puts in the money are quoted above parity by what the function says, to two cents in the median: 4 and 7 cents a week out, nothing on the day of expiry."
    out = []
    for s in snaps[::3]:
        day = s.at.date(); rate = carry({e: c.forward for e, c in s.curves.items()}, day).rate
        for e, c in s.curves.items():
            g = s.rows[s.rows['expiry'] == pd.Timestamp(e)].assign(mid=lambda o: (o.bid + o.ask)/2); sides = {r: g[g.right == r].set_index('strike') for r in 'CP'}
            k = sides['P'].index.intersection(sides['C'].index); d = sides['P'].delta.abs().loc[k].to_numpy(float)
            k, d = k[(d > .65) & (d < .85)].to_numpy(), d[(d > .65) & (d < .85)]
            ends = sessions(day, e); left = np.diff([0., *(c.left - FLAT.left(s.at, e) + FLAT.left(s.at, o) for o in ends)])
            sd = c.sd*np.sqrt(np.maximum(left, 1e-4)/np.maximum(left, 1e-4).sum())
            days = np.diff([0, *(interest_days(day, o) for o in ends)])
            above = sides['P'].mid.loc[k].to_numpy() - sides['C'].mid.loc[k].to_numpy() - (k - c.forward)*(1 - rate*days.sum()/365)
            out.append(pd.DataFrame(dict(days=days.sum(), d=d, above=100*above, said=100*early_exercise(s.spot, k, -np.ones(len(k)), sd, rate*days/365))))
    o = pd.concat(out); o = o.groupby([pd.cut(o.days, [-1, 0, 2, 4, 7]), pd.cut(o.d, [.65, .75, .85])], observed=True).agg(n=('d', 'size'), above=('above', 'median'), said=('said', 'median'))
    assert len(o) == 8 and abs(o.above - o.said).max() < 2 and abs(o.above.iloc[:2]).max() < .6 and (o.said.iloc[:2] == 0).all() and o.above.iloc[-1] > 6


# Quotes

def test_what_the_recorded_chains_have(chain):
    "All 117,856 rows: no bid far out, no time value deep inside, and two dozen that are wrong."
    n = pd.concat([check_quotes(rows, t.to_pydatetime()).assign(near=rows['delta'].abs().between(.25, .75)) for t, rows in chain.groupby(level=0)])
    counts = n.reason.value_counts().to_dict()
    assert counts == {'': 100120, 'no bid': 9556, 'no volatility': 8136, 'strikes jump': 22, 'parity': 12, 'negative time value': 10}
    assert n[n.near].reason.value_counts().to_dict() == {'': 14263, 'parity': 4}


def made(now=at('2026-03-31T13:00'), spot=600.1, half=.01):
    out = []
    for e in (date(2026, 3, 31), date(2026, 4, 1), date(2026, 4, 2)):
        sd = .15*math.sqrt(minutes_left(now, e, 'calendar')/YEAR['calendar'])
        for k in range(590, 611):
            for right, sign in (('C', 1), ('P', -1)):
                px = max(float(black(spot*math.exp(.036*interest_days(now.date(), e)/365), float(k), sd, sign)), sign*(spot - k))
                out.append(dict(expiry=e.isoformat(), right=right, strike=float(k), bid=max(round(px - half, 2), 0), ask=round(px + half, 2), spot=spot, age=1., data_type=1.))
    return pd.DataFrame(out, index=pd.DatetimeIndex([now]*len(out), name='Datetime'))


CHAIN, NOON = made(), at('2026-03-31T13:00')
SOUND = check_quotes(CHAIN, NOON).reason.to_numpy() == ''


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(np.flatnonzero(SOUND).tolist()), st.sampled_from(['crossed', 'no bid', 'no ask', 'stale', 'not live', 'no option', 'expired']))
def test_a_planted_quote_is_named(i, fault):
    change = {'crossed': dict(bid=50., ask=49.), 'no bid': dict(bid=0.), 'no ask': dict(ask=np.nan), 'stale': dict(age=61.), 'not live': dict(data_type=3.), 'no option': dict(strike=-1.), 'expired': dict(expiry='2026-03-30')}[fault]
    rows = CHAIN.reset_index(drop=True)
    for c, v in change.items(): rows.loc[i, c] = v
    r = check_quotes(rows, NOON)
    assert r.reason[i] == fault
    others = np.flatnonzero(SOUND); others = others[others != i]
    assert set(r.reason.iloc[others]) <= {'', 'strikes jump'} # a contract less may leave a hole beside the others


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(np.flatnonzero(SOUND).tolist()), st.floats(.3, 5), st.sampled_from([1, -1]))
def test_a_price_out_of_line_is_an_arbitrage(i, by, way):
    "A quote moved by thirty cents or more, in either direction, is refused with every other that it would trade against."
    rows = CHAIN.reset_index(drop=True)
    bid, ask = rows.loc[i, ['bid', 'ask']] + way*round(by, 2)
    if bid < .02: return
    rows.loc[i, ['bid', 'ask']] = bid, ask
    r = check_quotes(rows, NOON)
    assert r.reason[i] in ('negative time value', 'parity', 'vertical', 'butterfly', 'calendar')
    same = rows.strike.eq(rows.strike[i]) | rows.expiry.eq(rows.expiry[i])
    assert set(r.reason[SOUND & ~same]) == {''}


@settings(max_examples=60, deadline=None)
@given(st.floats(.0003, .02), st.sampled_from([1, -1]))
def test_a_late_chain_is_out_of_step(by, way): assert set(check_quotes(CHAIN, NOON, spot=600.1*math.exp(way*by)).reason[SOUND]) == {'out of step'}


def test_the_whole_market_stands_or_is_over():
    assert set(check_quotes(CHAIN, NOON, halted=True).reason[SOUND]) == {'halted'}
    r = check_quotes(CHAIN, at('2026-03-31T16:05'))
    assert set(r.reason[CHAIN.expiry.eq('2026-03-31').to_numpy() & SOUND]) == {'after the close'} and '' in set(r.reason)
    few = CHAIN[CHAIN.strike.isin([600., 601.])]
    assert set(check_quotes(few, NOON).reason) == {'no forward'}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 125), st.sampled_from(['bid', 'ask', 'strike', 'age', 'spot', 'data_type']), st.sampled_from([math.nan, math.inf, -math.inf, 0., -1., 1e-9, 1e9, 3.])), max_size=40))
def test_no_chain_breaks_the_checks(bad):
    rows = CHAIN.reset_index(drop=True)
    for i, c, v in bad: rows.loc[i, c] = v
    r = check_quotes(rows, NOON)
    assert len(r) == len(rows) and set(r.reason) <= set(REASONS)
    ok = (r.reason == '').to_numpy()
    for c in curves(rows, ok, NOON, 600.1, FLAT).values(): assert np.isfinite([c.forward, c.sd, *c.ratio]).all() and (np.diff(c.z) > 0).all()


# Later prices

Z = np.linspace(-6, 6, 49)
def curve(now=at('2026-03-31T13:00'), e=date(2026, 3, 31), skew=-.15, bend=.03):
    left = FLAT.left(now, e)
    return Curve(now, e, 600., 600., .008*left**.5, left, Z, 1 + skew*Z + bend*Z*Z)


@settings(max_examples=80, deadline=None)
@given(st.floats(-.004, .004), st.floats(.05, 1), st.sampled_from([0., 1., 1.6]))
def test_later_prices_are_prices(move, share, s):
    "Parity holds, and within two and a half deviations calls fall with the strike, by no more than it, and are worth at least their inside (farther out this smile itself is too steep)."
    c = curve(); spot, left = 600*math.exp(move), c.left*share
    k = spot*np.exp(np.linspace(-2.5, 2.5, 21)*c.later(spot, left, s)[1])
    call, put = (c.price(k, sign, spot, left, 1., s) for sign in (1, -1))
    assert np.allclose(call - put, spot - k, atol=1e-9)
    slope = np.diff(call)/np.diff(k)
    assert (slope < 0).all() and (slope > -1).all() and (call >= np.maximum(spot - k, 0) - 1e-9).all()


def test_stickiness_on_the_recorded_chains(snaps):
    "The skew overshoots: 1.6, the same for every expiry, and clear of both sticky delta (0) and sticky strike (1)."
    m = moves(snaps); all_, n = stickiness(m), (pd.to_datetime(m.expiry) - pd.to_datetime(m.day)).dt.days
    assert all_.days == 11 and all_.low > 1.3 and 1.5 < all_.value < 1.7 and all_.high < 1.9
    assert all(1.4 < stickiness(m[n == d]).value < 1.8 for d in range(8))


def test_repricing_on_the_recorded_chains(errors):
    """From each snapshot to the next of its day (37 minutes in the median), mean absolute error in cents, |delta| .25 to .75:
    the curve is ahead of every other rule, on the day of expiry and beyond, and its stickiness comes from earlier days alone."""
    r = errors[errors.abs_delta.between(.25, .75)]
    for part, most in ((r[r.left_min <= 390], 5.), (r[r.left_min > 390], 5.7)):
        cents = 100*part[list(RULES)].sub(part.px, axis=0).abs().mean()
        assert cents.idxmin() == 'curve' and cents['curve'] < most and cents['sticky strike'] < cents['sticky delta'] < cents['no change']
        assert cents['sticky strike'] < cents['sticky strike, calendar'] # the variance clock alone is worth something
    gain = 100*(r['sticky strike'] - r.px).abs().sub((r['curve'] - r.px).abs()).groupby(pd.to_datetime(r['at'], utc=True).dt.date).mean().iloc[2:]
    assert gain.mean()/(gain.std()/len(gain)**.5) > 2 # by day, without the first two, on which the two rules are one
    t = error_table(r, by=['left_min'])
    assert (t['percent', 'curve'] < 5.5).all() and t['', 'n'].sum() == len(r) > 13_000
    assert (t['cents', 'curve'] <= t['cents'][['no change', 'greeks', 'sticky delta']].min(axis=1)).all()


def test_a_chain_at_once(chain, minutes, dividends):
    part = chain[chain.index.date == date(2026, 7, 8)]
    t = repricing_error(part, lambda day: learn_clock(minutes, session(day).open, dividends), dividends, by=['abs_delta'])
    assert len(t) == len(DELTAS) - 1 and set(t['cents']) == set(RULES) and (t['cents', 'curve'] < t['cents', 'no change']).all()


def test_nine_strikes_are_enough(chain, errors, minutes, dividends):
    "What 90 streams for five expiries allow: the contracts of the day and the next are repriced as well as from the whole chain."
    near = (chain.strike - chain.spot).abs().groupby([chain.index, chain.expiry, chain.right]).rank(method='first') <= 9
    part = repriced(snapshots(chain[near & (chain.dte <= 1)], lambda day: learn_clock(minutes, session(day).open, dividends), dividends))
    j = part.merge(errors, on=['at', 'expiry', 'right', 'strike'], suffixes=('', '_all')); j = j[j.abs_delta.between(.25, .75)]
    off = [100*(j[o] - j.px).abs().mean() for o in ('curve', 'curve_all')]
    assert len(j) > 1000 and off[0] < off[1] + .3
