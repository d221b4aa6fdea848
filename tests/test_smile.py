"Option features against QuantLib, against the volatilities quoted in the real chains, and against themselves a minute at a time."
import math
from collections import Counter
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.core import ET
from spyresearch.features.batch import compute
from spyresearch.features.registry import REGISTRY
from spyresearch.features.stream import stream_frame
from spyresearch.features.smile import (CARRIED, FAULTS, NOTHING, YEAR, Smile, arrays, at_the_money, delta, fault_of, forward, implied_sd,
                                        ladder, minutes_left, moment, smile_day)
from spyresearch.sessions import session
from spyresearch.tws.chain import chain_frame
from spyresearch.tws.contracts import COLUMNS
from spyresearch.tws.pricing import black_scholes

EXTRA_MIN = 30 # the quoted volatilities of the real chains reckon with half an hour more than is left until 16:00


@pytest.fixture(scope='module')
def chains(shared):
    "The real snapshots, by when their quotes were true, in the recorder's words."
    c = pd.read_parquet(shared('spy_chain_0-7dte.parquet')).rename(columns=dict(type='right')).astype(dict(right=str))
    return c.set_index(pd.DatetimeIndex(c.quote_ts).tz_convert(ET).rename('Datetime')).drop(columns=['quote_ts', 'fetched_ts']).sort_index(kind='stable')


def rungs(rows):
    "Every expiry of a snapshot: day, ladder, forward, minutes on the calendar, quoted volatility and delta by strike and right."
    now, q = rows.index[0].to_pydatetime(), arrays(rows)
    ok = fault_of(q, now.date()) == 0
    for e in np.unique(q['expiry']):
        o = ladder(q, ok, e); f = forward(o, rows.spot.iloc[0])
        if f == f: yield e.item(), o, f, minutes_left(now, e.item(), 'calendar'), rows[rows.expiry == e].set_index(['strike', 'right'])


@pytest.fixture(scope='module')
def quoted(chains):
    "Each quoted volatility out of the money beside ours."
    out = []
    for _, rows in chains.groupby(level=0):
        for e, o, f, left, said in rungs(rows):
            atm = at_the_money(o, f)
            for i, k in enumerate(o.strike):
                side = int(k < f); right = 'CP'[side]
                sd, iv = implied_sd(o.mid[side, i], f, k, 1 - 2*side), said.at[(k, right), 'iv']
                if sd == sd and iv > 0: out.append(((e - rows.index[0].date()).days, math.log(k/f)/atm, sd, left, iv, said.at[(k, right), 'delta'] - delta(f, k, sd, 1 - 2*side)))
    return pd.DataFrame(out, columns=['days', 'z', 'sd', 'left', 'iv', 'd_delta'])


def test_volatilities_are_those_of_quantlib(chains):
    import QuantLib as ql
    n = 0
    for _, rows in list(chains.groupby(level=0))[::10]:
        for _, o, f, left, _ in rungs(rows):
            for side, right in ((0, ql.Option.Call), (1, ql.Option.Put)):
                for k, px in zip(o.strike, o.mid[side]):
                    if (sd := implied_sd(px, f, k, 1 - 2*side)) != sd or px - max((1 - 2*side)*(f - k), 0) < .005: continue
                    other = ql.blackFormulaImpliedStdDev(right, float(k), f, float(px), 1., 0., sd*1.1, 1e-13, 1000)
                    assert abs(sd - other)/math.sqrt(left/YEAR['calendar']) < 1e-6
                    n += 1
    assert n > 3000


def test_delta_is_that_of_quantlib():
    import QuantLib as ql
    for k in (590., 599., 600., 601., 612.):
        for sign, right in ((1, ql.Option.Call), (-1, ql.Option.Put)):
            calc = ql.BlackCalculator(ql.PlainVanillaPayoff(right, k), 600.3, .008, 1.)
            assert abs(calc.deltaForward() - delta(600.3, k, .008, sign)) < 1e-12


def test_gamma_is_that_of_quantlib_and_net_gamma_its_sum(chains):
    "The sign and the strike from QuantLib's gamma of every contract, one by one, on real open interest."
    import QuantLib as ql
    chains, n = chains.rename(columns=dict(openInterest='open_interest')), Counter()
    for _, rows in list(chains.groupby(level=0))[::6]:
        m, by, net = moment(arrays(rows), rows.index[0].to_pydatetime(), Counter()), Counter(), 0.
        for e, o, f, _, said in list(rungs(rows))[:5]:
            if (sd := at_the_money(o, f)) != sd: continue
            if e == rows.index[0].date(): today = f, sd
            for (k, right), held in said.open_interest.items():
                g = held*ql.BlackCalculator(ql.PlainVanillaPayoff(ql.Option.Call, float(k)), float(f), float(sd), 1.).gammaForward()
                by[k] += g; net += g if right == 'C' else -g
        k = max(by, key=by.get)
        assert m.gamma == pytest.approx(math.copysign(abs(math.log(today[0]/k)), net)/today[1], rel=1e-9)
        n[m.gamma > 0] += 1
    assert sum(n.values()) > 15 and min(n.values()) > 1, n


def test_quoted_volatilities_with_their_time(quoted):
    "With half an hour more, as the vendor reckons, ours are his: to 0.1 volatility points at the money in the median, and without a bias."
    q = quoted.assign(e=100*(quoted.sd/np.sqrt((quoted.left + EXTRA_MIN)/YEAR['calendar']) - quoted.iv))
    assert len(q) > 45_000
    near = q[q.z.abs() < .5]
    assert near.groupby('days').e.median().abs().max() < .06 and near[near.days == 0].e.abs().quantile(.9) < .35 and near[near.days > 0].e.abs().quantile(.9) < .11
    assert q[(q.z.abs() < 3) & (q.days > 0)].e.abs().quantile(.95) < .15


def test_quoted_volatilities_without_it(quoted):
    "On the time until 16:00 ours are higher today, by more as the close comes nearer, and no different a few days out."
    q = quoted.assign(e=100*(quoted.sd/np.sqrt(quoted.left/YEAR['calendar']) - quoted.iv)); q = q[q.z.abs() < .5]
    today = q[q.days == 0]
    assert .8 < today.e.median() < 1.3 and today[today.left < 60].e.median() > 2.5 and q[q.days >= 4].e.median() < .08


def test_quoted_deltas(quoted): assert quoted[quoted.days > 0].d_delta.abs().quantile(.99) < .03


def test_the_forward_is_the_price_of_spy_today(chains):
    off = [f - rows.spot.iloc[0] for _, rows in chains.groupby(level=0) for e, _, f, _, _ in rungs(rows) if e == rows.index[0].date()]
    assert len(off) == chains.index.nunique() and np.abs(off).max() < .08 and abs(np.median(off)) < .01


def by_minute(rows, day, **kw):
    live, minute = Smile(**kw), (rows.index - session(day).open)//pd.Timedelta('1min')
    return [live.step(rows[minute == i]) for i in range(390)], live


def test_a_minute_at_a_time_is_the_day_at_once(chains):
    n = 0
    for day, rows in chains.groupby(chains.index.date):
        faults = Counter(); whole = smile_day(rows, day, faults=faults)
        steps, live = by_minute(rows, day)
        np.testing.assert_array_equal(whole, pd.DataFrame(steps)[list(CARRIED)][:len(whole)])
        assert faults == live.faults
        n += np.isfinite(whole['option.sd']).sum()
    assert n == chains.index.nunique() == 113


def test_nothing_looks_ahead(chains):
    day = date(2026, 7, 2); rows = chains[chains.index.date == day]; whole = smile_day(rows, day)
    for m in (31, 100, 250):
        part = smile_day(rows[rows.index < session(day).open + pd.Timedelta(minutes=m + 1)], day)
        np.testing.assert_array_equal(part[:m+1], whole[:m+1])


def features(rows, day):
    "Option features of a day on a market that stands still."
    told = smile_day(rows, day)
    return pd.DataFrame(dict.fromkeys(('open', 'high', 'low', 'close', 'volume'), 600.), index=told.index).join(told)


OPTIONS = [f.name for f in REGISTRY if f.group == 'G9']

def test_a_change_is_over_fifteen_minutes_in_both_forms(chains):
    for day, rows in list(chains.groupby(chains.index.date))[:3]:
        bars = features(rows, day).assign(**{'option.iv': np.linspace(.1, .2, 390)})
        a, b = compute(bars, OPTIONS), stream_frame(bars, OPTIONS)
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        assert a.d_iv_15[:15].isna().all() and np.allclose(a.d_iv_15[15:], .1*15/389)


def test_history_expects_what_the_usual_day_was():
    "Sessions of equal variance: options that price that variance are neither dear nor cheap."
    from spyresearch.sessions import minutes, sessions
    days = sessions(date(2025, 8, 1), date(2025, 9, 30)); step = 5e-4
    ix = pd.DatetimeIndex(pd.concat([minutes(d).to_series() for d in days]), name='Datetime')
    c = 600*np.exp(step*(np.arange(len(ix)) % 2)); left = np.r_[[390 - 1 - np.arange(390)]*len(days)].ravel()
    bars = pd.DataFrame(dict(open=c, high=c, low=c, close=c, volume=1e5, **{'option.sd': step*np.sqrt(np.maximum(left, 1))}), index=ix)
    v = compute(bars, ['iv_har', 'log_iv_rem']).loc[str(days[-1])]
    assert abs(v.iv_har[60:380]).max() < .03 and np.allclose(v.log_iv_rem.iloc[100], np.log(step**2*289))
    assert np.allclose(compute(bars.assign(**{'option.sd': 1.1*bars['option.sd']}), ['iv_har']).loc[str(days[-1])].iv_har[1:389] - v.iv_har[1:389], np.log(1.1))


def test_the_values_are_of_their_kind(chains):
    for day, rows in chains.groupby(chains.index.date):
        v = compute(features(rows, day), OPTIONS).dropna(how='all')
        assert v[['log_iv_rem', 'skew_25', 'iv_slope', 'pc_volume']].notna().all().all()
        assert v.log_iv_rem.between(-15, -9).all() and v.pc_volume.between(-1, 1).all() and v.skew_25.between(-.1, .5).all()


def made(now, iv=.15, spot=600.1):
    "A snapshot as the recorder gives it, priced with one volatility."
    rows = []
    for e in (now.date(), now.date() + timedelta(1)):
        for k in range(590, 611):
            for right in 'CP':
                px = black_scholes(spot, float(k), iv, minutes_left(now, e, 'calendar')/YEAR['calendar'], 1 if right == 'C' else -1)[0]
                said = dict(expiry=e.isoformat(), right=right, strike=float(k), con_id=1, bid=round(px - .005, 2) if px > .015 else None, ask=round(px + .005, 2), volume=10., spot=spot, age=.5, data_type=1, status='quoted')
                rows.append([now.isoformat(), *(said.get(c) for c in COLUMNS)])
    return rows


NOON = datetime(2026, 3, 31, 12, tzinfo=ET)


def test_the_frames_of_the_recorder_are_read():
    m = moment(arrays(chain_frame(made(NOON))), NOON, Counter())
    assert abs(m.sd/math.sqrt(240/YEAR['calendar']) - .15) < 2e-3 and m.imbalance == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 83), st.sampled_from(['bid', 'ask', 'strike', 'age', 'volume', 'spot', 'data_type']),
                          st.sampled_from([math.nan, math.inf, -math.inf, 0., -1., 1e-9, 1e9, 3.])), max_size=40))
def test_no_quote_breaks_it(bad):
    "Whatever stands in a row, values are finite or empty and nothing is raised."
    rows = chain_frame(made(NOON))
    for i, column, value in bad: rows.iloc[i, rows.columns.get_loc(column)] = value
    faults = Counter()
    assert all(o != o or math.isfinite(o) for o in moment(arrays(rows), NOON, faults))
    assert set(faults) <= set(FAULTS[1:])


@pytest.mark.parametrize('change, fault', [(dict(bid=0.), 'no bid'), (dict(bid=-1.), 'no bid'), (dict(ask=math.nan), 'no ask'), (dict(age=61.), 'stale'), (dict(age=math.nan), 'stale'),
    (dict(data_type=3.), 'not live'), (dict(strike=0.), 'no option'), (dict(right='X'), 'no option'), (dict(expiry='2026-03-30'), 'expired'), (dict(bid=1e3), 'crossed')])
def test_bad_quotes_are_empty_and_named(change, fault):
    faults, rows = Counter(), chain_frame(made(NOON)).assign(**change)
    assert np.isnan(moment(arrays(rows), NOON, faults)).all() and faults.most_common(1)[0][0] == fault


def test_half_of_the_chain_is_bad_and_the_rest_holds():
    "A stale call side at one strike, a crossed put at another: the median of five strikes bears it."
    rows = chain_frame(made(NOON)).reset_index(drop=True)
    was = moment(arrays(rows), NOON, Counter())
    rows.loc[(rows.strike == 600) & (rows.right == 'C'), 'age'] = 500.
    rows.loc[(rows.strike == 602) & (rows.right == 'P'), 'ask'] = .01
    now = moment(arrays(rows), NOON, Counter())
    assert math.isnan(now.sd) # one of the two strikes around the money is gone
    rows.loc[(rows.strike == 600) & (rows.right == 'C'), 'age'] = 1.
    assert abs(moment(arrays(rows), NOON, Counter()).sd/was.sd - 1) < .01


def test_without_options_it_is_empty_and_said_once():
    said = []; live = Smile(said.append)
    for _ in range(390): assert all(v != v for v in live.step(None).values())
    assert len(said) == 1 and 'OPRA' in said[0]
    whole = smile_day(None, date(2026, 3, 31))
    assert tuple(whole) == CARRIED and whole.isna().all().all() and len(whole) == 390


def test_a_day_that_begins_late_is_not_told():
    said = []; live = Smile(said.append)
    for i in range(390): live.step(chain_frame(made(NOON)) if i == 3 else None)
    assert not said and moment(arrays(chain_frame([])), NOON, Counter()) is NOTHING


def test_state_does_not_grow():
    live, rows = Smile(), chain_frame(made(NOON))
    for _ in range(50): live.step(rows)
    assert len(live.faults) <= len(FAULTS)
