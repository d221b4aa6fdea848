"""Both forms on real sessions: the awkward days one by one, restarts, TA-Lib as the outsider."""
from datetime import date
from functools import partial

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import CheckFailed
from spyresearch.features.batch import compute
from spyresearch.features.prepare import certify, context, dividends_of, prepare
from spyresearch.features.registry import REGISTRY, Registry, feature
from spyresearch.features.stream import Stream, certificate, stream_frame
from spyresearch.sessions import prev_session, session
from spyresearch.store import Store


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))


@pytest.fixture(scope='module')
def days(spy): return sorted(set(spy.index.date))


def the_day_and_before(spy, day):
    "Only the sessions that the day's features look at: slices, as the record has three million cells."
    return spy[str(context(day, REGISTRY.depth())[0]):str(day)]


def awkward(days):
    "Every half day, every session after an absent one and the one after that, the holes, and some ordinary days."
    after = [d for a, d in zip(days, days[1:]) if prev_session(d) != a]
    return sorted({*(d for d in days if session(d).half), *after[::4], *(days[days.index(d) + 1] for d in after[::6]),
                   date(2026, 7, 13), date(2025, 11, 4), date(2025, 4, 9), date(2024, 8, 5), days[0], days[-1]})


def test_certificates_of_the_awkward_days(spy, days):
    some = awkward(days)
    assert len(some) >= 15
    for d in some[::2]:
        c = certificate(the_day_and_before(spy, d), d).check()
        assert (c.table['share_equal'] == 1).all() and c.table['restarted'].all(), str(c)


def test_a_certificate_of_a_stored_day_covers_its_file(tmp_path, spy):
    store = Store(tmp_path, 'replay:real')
    for d, o in the_day_and_before(spy, date(2025, 11, 28)).groupby(lambda t: t.date()): store.write_raw(d, o)
    prepare(store)
    c = certify(Store(tmp_path, 'replay:real'), date(2025, 11, 28))
    assert c.ok and c.table['filed'].all() and dividends_of(store) == {} and str(c).startswith('PASS 2025-11-28')


def test_a_form_that_differs_fails_its_certificate(spy):
    mine = Registry()
    feature('mean_3', lambda g: (np.nan_to_num(g.close).cumsum(1) - np.pad(np.nan_to_num(g.close).cumsum(1), ((0, 0), (3, 0)))[:, :-3])/3, registry=mine, group='X', formula='-',
            inputs=('close',), state=lambda: [], step=lambda b, s: (s.append(b.close), sum(s[-3:])/3)[1])
    feature('off', lambda g: g.close, registry=mine, group='X', formula='-', inputs=('close',), step=lambda b, s: np.nextafter(b.close, np.inf))
    c = certificate(spy['2025-11-04':'2025-11-05'], date(2025, 11, 5), registry=mine)
    assert c.table['ok'].to_dict() == dict(mean_3=True, off=False) and 0 < c.table.loc['mean_3', 'max_rel'] < 1e-9 and c.table['sums'].to_dict() == dict(mean_3=True, off=False)
    with pytest.raises(CheckFailed, match='differ in off'): c.check()


# an outside computation

@pytest.mark.parametrize('day', [date(2025, 4, 9), date(2025, 11, 28), date(2024, 8, 5)])
def test_against_talib_in_both_its_forms(spy, day):
    import talib
    from talib import stream as live
    bars = spy.loc[str(day)]
    px = np.r_[bars['open'].iloc[0], bars['close']]
    r = np.diff(np.log(px))
    ours = compute(bars, [f.name for f in REGISTRY if f.group != 'base'])
    outside = dict(rsi_14=talib.RSI(px, 14)[1:], **{f'r{h}': np.log(talib.ROCR(px, h)[1:]) for h in (5, 15, 60)},
                   logrv_30=np.log(talib.SUM(r*r, 30)), jump_30=np.maximum(0, 1 - np.pi/2*30/29*talib.SUM(abs(r*np.r_[0, r[:-1]]), 29)/talib.SUM(r*r, 30)))
    for o, v in outside.items(): np.testing.assert_allclose(ours[o], v, rtol=1e-8, atol=1e-9, err_msg=o)
    s, (rsi, roc) = Stream(['rsi_14', 'r5']), (f(px[:17], n) for f, n in ((live.RSI, 14), (live.ROCR, 5)))
    for m, o in enumerate(bars.reset_index().to_dict('records')):
        now = s.push(o)
        if m > 15: np.testing.assert_allclose([now['rsi_14'], now['r5']], [rsi.update(px[m+1]), np.log(roc.update(px[m+1]))], rtol=1e-8, atol=1e-12)


def test_location_and_volume_against_a_plain_computation(spy):
    "Tables and loops, on sessions with a half day among them."
    bars = spy['2025-10-06':'2025-12-03']
    x = compute(bars, [f.name for f in REGISTRY if f.group != 'base'])
    by = {d: o for d, o in bars.groupby(bars.index.date)}
    days, day = list(by), date(2025, 12, 3)
    full = [d for d in days[:-1] if len(by[d]) == 390][-14:]
    now, at = by[day], x.loc[str(day)]
    close = {d: o['close'].iloc[-1] for d, o in by.items()}
    rv = {d: (np.diff(np.log(np.r_[o['open'].iloc[0], o['close']]))**2).sum()*390/len(o) for d, o in by.items()}
    sigma = np.sqrt(np.mean([rv[d] for d in days[-23:-1]]))
    past20 = days[-21:-1]
    near = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
    near(at['high_20'], np.log(now['close']/max(by[d]['close'].max() for d in past20))/sigma)
    near(at['low_20'], np.log(now['close']/min(by[d]['close'].min() for d in past20))/sigma)
    near(at['r_d5'], np.log(close[days[-2]]/close[days[-7]]))
    near(at['r_d20'], np.log(close[days[-2]]/close[days[-22]]))
    near(at['r_body_d1'], np.log(close[days[-2]]/by[days[-2]]['open'].iloc[0]))
    near(at['r_night_d1'], np.log(by[days[-2]]['open'].iloc[0]/close[days[-3]]))
    def wide(d): px = np.r_[by[d]['open'].iloc[0], by[d]['close'].iloc[:30]]; return np.log(px.max()/px.min())
    near(at['open_range'].iloc[29:], np.log(wide(day)/np.mean([wide(d) for d in days[-15:-1]])))
    usual = np.mean([by[d]['volume'] for d in full], axis=0)
    near(at['relvol_day'].iloc[29:], np.log(now['volume'].cumsum()/usual.cumsum()).iloc[29:])
    near(at['relvol_15'].iloc[29:], np.log(now['volume'].rolling(15).sum()/pd.Series(usual, now.index).rolling(15).sum()).iloc[29:])
    def cost(d): o = by[d]; return pd.Series(abs(np.diff(np.log(np.r_[o['open'].iloc[0], o['close']])))/(o['close']*o['volume']).to_numpy()).rolling(30).sum()
    near(at['amihud_30'].iloc[29:], np.log(cost(day)/np.mean([cost(d) for d in full], axis=0)).iloc[29:])
    s14 = np.mean([abs(by[d]['close']/by[d]['open'].iloc[0] - 1) for d in full], axis=0)
    o, p = now['open'].iloc[0], close[days[-2]]
    out = np.where(now['close'] > max(o, p)*(1 + s14), now['close']/(max(o, p)*(1 + s14)) - 1, np.where(now['close'] < min(o, p)*(1 - s14), now['close']/(min(o, p)*(1 - s14)) - 1, 0.))/s14
    near(at['band_out'], out)
    near(at['band_crossings'], np.r_[0, (np.sign(out[1:]) != np.sign(out[:-1])).cumsum()])


def test_streams_without_history_agree_from_any_first_day(spy):
    for first in ('2025-11-03', '2025-11-26', '2026-07-09'):
        bars = spy[first:][:1400]
        every = [f.name for f in REGISTRY if f.group != 'base']
        np.testing.assert_array_equal(stream_frame(bars, every), compute(bars, every))
