"""Candidates on real sessions: as TA-Lib has them, at once and streaming; equal in both forms; blind to the future. And clusters as they should be."""
from datetime import date
from functools import partial

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.features.audit import audit
from spyresearch.features.batch import compute
from spyresearch.features.clusters import clusters, correlation, representative
from spyresearch.features.registry import REGISTRY
from spyresearch.features.stream import Stream, parity
from spyresearch.featurebench import demo_bars

MINE = ['r10', 'r30', 'eff_30', 'rs_asym_30', 'open_move', 'parkinson_30', 'garman_klass_30', 'hl_pos', 'or_pos', 'stoch_14', 'boll_20', 'atr_14', 'macd', 'adx_14', 'flow_5'] # whatever of it is kept
HALF = date(2025, 11, 28)


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))


def with_start(bars):
    "High, low and close with a bar before the first that stands at the open, as the first return and range are counted from there."
    return (np.r_[bars['open'].iloc[0], bars[o]] for o in ('high', 'low', 'close'))


@pytest.mark.parametrize('d', [date(2025, 4, 9), HALF, date(2024, 8, 5)])
def test_indicators_against_talib(spy, d):
    import talib
    bars = spy.loc[str(d)]
    x, c = compute(bars, MINE), bars['close'].to_numpy()
    high, low = bars['high'].to_numpy(), bars['low'].to_numpy()
    near = partial(np.testing.assert_allclose, rtol=1e-8)
    near(np.exp(x['atr_14'])*c, talib.ATR(*with_start(bars), 14)[1:])
    near(x['adx_14'], talib.ADX(high, low, c, 14))
    near(x['macd']*c, talib.MACD(c)[2], atol=1e-9)
    near(100*x['stoch_14'], talib.STOCHF(high, low, c, fastk_period=14, fastd_period=1)[0], atol=1e-7)
    upper, mid, _ = talib.BBANDS(c, 20)
    np.testing.assert_allclose(x['boll_20'], 2*(c - mid)/(upper - mid), rtol=1e-5, atol=1e-7)


def test_the_step_is_talibs_stream(spy):
    "Bar by bar against TA-Lib's own streams, opened on the first 40 bars."
    import talib.stream as ts
    bars = spy.loc['2025-04-09']
    first, rest = bars.iloc[:40], bars.iloc[40:200]
    h, l, c = (first[o].to_numpy().copy() for o in ('high', 'low', 'close'))
    adx, macd, stoch, atr = ts.ADX(h, l, c, 14), ts.MACD(c), ts.STOCHF(h, l, c, fastk_period=14, fastd_period=1), ts.ATR(*with_start(first), 14)
    s = Stream(MINE); s.start(first)
    for o in rest.reset_index().to_dict('records'):
        v, bar = s.push(o), (o['high'], o['low'], o['close'])
        theirs = adx.update(*bar), macd.update(o['close'])[2], stoch.update(*bar)[0], atr.update(*bar)
        assert (v['adx_14'], v['macd']*o['close'], 100*v['stoch_14'], np.exp(v['atr_14'])*o['close']) == pytest.approx(theirs, rel=1e-8, abs=1e-8)


def test_both_forms_agree(spy):
    p = parity(spy['2025-11-20':'2025-12-04'], MINE)
    assert p['only_one'].sum() == 0 and p['max_rel'].max() == 0, p[p['max_rel'] > 0]
    assert (p['values'] > 0).all()


def test_both_forms_agree_with_a_minute_missing(spy):
    p = parity(spy['2026-07-13':'2026-07-14'], MINE)
    assert p['only_one'].sum() == 0 and p['max_rel'].max() == 0, p[p['max_rel'] > 0]


def test_none_knows_the_future(spy):
    report = audit(spy['2025-10-01':'2025-12-31'], partial(compute, features=MINE), cuts=40, back=2)
    assert list(report.index) == MINE and report['leaks'].sum() == 0, report[report['leaks'] > 0]
    assert (report['values'] > 0).all()


def test_a_drawn_market_with_a_hole_and_a_half_day():
    bars = demo_bars(10)
    assert HALF in set(bars.index.date)
    holed, off = bars.drop(bars.index[500:520]), [o for o in MINE if not REGISTRY[o].kept]
    p = parity(holed, off)
    assert p['only_one'].sum() == 0 and p['max_rel'].max() == 0 and (p['values'] > 0).all()
    assert audit(holed, partial(compute, features=off), cuts=20)['leaks'].sum() == 0


def test_they_are_declared_and_off_means_no_column():
    off = [o for o in MINE if not REGISTRY[o].kept]
    assert len(off) >= 12 and not set(off) & set(REGISTRY.names()) and set(MINE) <= set(REGISTRY.names(off=True))
    assert {REGISTRY[o].group for o in MINE} <= {'G1', 'G2', 'G3', 'G4', 'G5', 'G6'}


def test_measured_duplicates_are_duplicates(spy):
    "What was measured before on these bars, within a few hundredths."
    names = [*MINE, 'logrv_30', 'noise_pos', 'rsi_14', 'r15']
    x = compute(spy['2024-09-03':'2024-12-31'], names).iloc[14::5]
    rho = correlation(x)
    for a, b, least in (('logrv_30', 'parkinson_30', .9), ('parkinson_30', 'garman_klass_30', .95), ('open_move', 'noise_pos', .9), ('eff_30', 'r30', .9), ('rs_asym_30', 'r30', .8),
                        ('rsi_14', 'boll_20', .8)): assert rho.loc[a, b] >= least, (a, b, rho.loc[a, b])
    c = clusters(x)
    assert c['logrv_30'] == c['parkinson_30'] == c['garman_klass_30'] and c['noise_pos'] == c['open_move'] and c['adx_14'] != c['r30']
    assert representative(c, x, first=['noise_pos'])[c['noise_pos']] == 'noise_pos'


def test_correlation_is_pairwise_complete_spearman():
    rng = np.random.default_rng(3)
    x = pd.DataFrame(rng.standard_normal((500, 6))@rng.standard_normal((6, 6))).round(1)
    for k in range(5): x.iloc[40*k:40*k + 60, k] = np.nan
    np.testing.assert_allclose(correlation(x), x.corr('spearman').abs(), atol=1e-12)
