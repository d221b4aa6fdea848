"""Sessions that break off, and minutes that their daily bar or the session before contradicts: on real prices, through the data folder and without it."""
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import DataError
from spyresearch.crosscheck import crosschecked
from spyresearch.features.batch import compute
from spyresearch.features.prepare import certify, dividends_of, prepare
from spyresearch.features.stream import parity
from spyresearch.live.today import Today
from spyresearch.models.daily import history, measures
from spyresearch.models.targets import day_rv, log_rv, returns
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.store import DAILY_COLUMNS, Store

PX = ['open', 'high', 'low', 'close']
AT, NEXT = date(2025, 11, 18), date(2025, 11, 19)


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet')).drop(columns='src')['2025-10-01':'2025-11-28']


@pytest.fixture(scope='module')
def daily(shared): return pd.read_parquet(shared('spy_daily.parquet'))


def short(bars, k):
    "The bars without the last `k` minutes of one session."
    return bars[(bars.index.date != AT) | (bars.index < session(AT).close - pd.Timedelta(minutes=k))]


@pytest.mark.parametrize('k, empty', [(4, False), (5, True), (30, True), (240, True)])
def test_a_session_without_its_end_has_no_close(spy, k, empty):
    x, whole = compute(short(spy, k)), compute(spy)
    day = lambda d, name, of=x: of.loc[str(d), name]
    for name in ('r_overnight', 'r_day', 'log_on2', 'pday_pos', 'logrv_d1', 'logrv_d5', 'logrv_d22', 'r_body_d1', 'r_d5'): assert day(NEXT, name).isna().all() == empty, name
    assert day(NEXT, ['logrv_5', 'logrv_15']).iloc[:4].isna().all(None) and day(NEXT, 'logrv_60').iloc[:4].isna().all() == empty # four minutes are more than a tenth of 15
    for name in ('logrv_5', 'logrv_60', 'logdiur_30', 'vwap_dist', 'logrv_today'): # what rests on the day itself, or on means that bear a hole, is known
        assert day(NEXT, name).iloc[60:300].notna().all() and np.allclose(day(NEXT, name).iloc[60:300], day(NEXT, name, whole).iloc[60:300], rtol=.05), name
    assert day(date(2025, 11, 20), 'r_overnight').equals(day(date(2025, 11, 20), 'r_overnight', whole))
    pd.testing.assert_frame_equal(x.loc[:str(AT)], whole.loc[:str(AT)].reindex(x.loc[:str(AT)].index))
    p = parity(short(spy, k)); assert (p['only_one'] == 0).all() and p['max_rel'].max() < 1e-9


def test_no_label_spans_what_is_missing(spy):
    p = Panel.from_bars(short(spy, 30)); d, origins = p.days.index(NEXT), (np.array([p.days.index(NEXT)]), np.array([389]))
    assert np.isnan(day_rv(p)[[d - 1, d]]).all() and np.isfinite(day_rv(p)[d + 1])
    before = np.array([d - 2]), np.array([389])
    assert np.isnan(returns(p, *before)[0, 5:]).all() and np.isnan(log_rv(p, *before)[0, 5:]).all() and np.isfinite(returns(p, *origins)[0, 5])


def test_its_daily_bar_stands_in_for_the_days_ahead(spy, daily):
    whole, cut, bare = (Panel.from_bars(o, daily=f) for o, f in ((spy, daily), (short(spy, 30), daily), (short(spy, 30), None)))
    (a, place), (b, there) = history(whole), history(cut); i = place[whole.days.index(AT)]
    assert list(a.index) == list(b.index) and list(place) == list(there) and abs(b.close.iloc[i]/a.close.iloc[i] - 1) < 1e-3
    np.testing.assert_allclose(measures(a)[0].iloc[-5:], measures(b)[0].iloc[-5:], rtol=.05, atol=.05)
    _, var, move = measures(history(bare)[0]); d = bare.days.index(AT)
    assert np.isnan(var.iloc[[d, d + 1]]).all() and np.isnan(move.iloc[[d, d + 1]]).all() and np.isfinite(move.iloc[d + 2])


def test_the_session_under_way_keeps_the_price_it_has(spy):
    noon = spy[:'2025-11-18 12:00']; p = Panel.from_bars(noon)
    assert history(p)[0].close.iloc[-1] == noon['close'].iloc[-1]


# --- minutes that something contradicts

def test_no_real_minute_is_contradicted(shared, daily):
    bars = read_bars(shared('spy_1min.parquet'))
    left, said = crosschecked(bars, daily)
    assert len(left) == len(bars) > 280_000 and said == []


def filled(root, bars, daily=None, open_day=None):
    store = Store(root, 'simulated:made')
    for d, o in bars.groupby(bars.index.date): store.write_raw(d, o, (), d != open_day)
    if daily is not None: store.write_daily_bars(day_rows(daily, bars))
    return store


def day_rows(daily, bars):
    "Daily bars as the folder holds them, of the sessions of some bars."
    days = sorted(set(bars.index.date)); at = pd.DatetimeIndex([session(d).open for d in days], name='Datetime')
    return daily.reindex(pd.DatetimeIndex(days)).set_index(at).reindex(columns=DAILY_COLUMNS)


def slip(bars, span, by):
    out = bars.copy(); out.loc[span, PX] *= by
    return out


CASES = {'ten bars that agree': (slice('2025-11-18 11:00', '2025-11-18 11:09'), .94, 10), 'a session 6 % off': (slice('2025-11-18 09:30', '2025-11-18 15:59'), 1.06, 390),
         'a session 30 % off': (slice('2025-11-18 09:30', '2025-11-18 15:59'), .75, 390), 'one bar 4 % off': (slice('2025-11-18 11:00', '2025-11-18 11:00'), 1.04, 1)}

@pytest.mark.parametrize('name', CASES)
def test_what_the_daily_bar_contradicts_is_left_out_and_named(spy, daily, tmp_path, name):
    span, by, n = CASES[name]
    report = prepare(filled(tmp_path, slip(spy, span, by), daily)); rows = Store(tmp_path).read_daily()
    gone = rows.loc[span]; assert len(gone) == n and gone.isna().all().all() and rows.drop(gone.index)['close'].notna().all()
    assert len(report.left_out) == 1 and report.left_out[0].startswith(f'{gone.index[0]:%Y-%m-%d %H:%M}') and 'its daily bar goes from' in report.left_out[0]
    c = certify(Store(tmp_path), NEXT); assert c.ok and 'its daily bar goes from' in str(c)
    raw = Store(tmp_path).raw(AT); np.testing.assert_allclose(raw.loc[span, 'close'], spy.loc[span, 'close']*by) # what TWS gave is kept
    p = Panel.from_store(Store(tmp_path)); assert (AT in p.days) == (n < 390)


def test_a_daily_bar_that_is_corrected_brings_the_minutes_back(spy, daily, tmp_path):
    wide = daily.copy(); wide.loc[str(AT), 'low'] *= .93
    fall = slip(spy, slice('2025-11-18 11:00', '2025-11-18 11:09'), .96); store = filled(tmp_path, fall, daily) # a fall that the first daily bar did not know of
    assert prepare(store).left_out and store.read_daily().loc['2025-11-18 11:00':'2025-11-18 11:09', 'close'].isna().all()
    store.write_daily_bars(day_rows(wide, spy)); again = prepare(store)
    assert again.left_out == [] and AT in again.written and date(2025, 11, 17) in again.kept and store.read_daily().loc[str(AT), 'close'].notna().all()
    assert prepare(store).written == []


@pytest.mark.parametrize('how, said', [('copied', 'the session repeats 2025-11-17'), ('frozen', 'the session stands on one price')])
def test_sessions_that_no_market_makes(spy, tmp_path, how, said):
    odd = spy.copy(); odd.loc[str(AT), PX] = spy.loc['2025-11-17', PX].to_numpy() if how == 'copied' else float(spy.loc['2025-11-17', 'close'].iloc[-1])
    report = prepare(filled(tmp_path, odd)); rows = Store(tmp_path).read_daily()
    assert rows.loc[str(AT)].isna().all().all() and rows.loc[str(NEXT), 'r_overnight'].isna().all() and said in report.left_out[0] and '390 bars' in report.left_out[0]
    open_store = filled(tmp_path/'open', odd[:str(AT)], open_day=AT) # while it is under way nothing is known of its end
    with pytest.raises(DataError, match=f'{AT}: no bar is left'): certify(Store(tmp_path), AT)
    assert prepare(open_store).left_out == [] and open_store.read_daily().loc[str(AT), 'close'].notna().all()


@pytest.mark.filterwarnings('ignore:.*is not believed')
def test_a_daily_bar_that_is_wrong_costs_no_minute(spy, daily, tmp_path):
    wrong = daily.copy(); wrong.loc[str(AT), PX] *= 1.03
    with pytest.warns(UserWarning, match=f'{AT}: the daily bar .* is not believed: the minutes go from'): report = prepare(filled(tmp_path, spy, wrong))
    rows = Store(tmp_path).read_daily()
    assert report.left_out == [] and rows['close'].notna().all() and rows.loc[str(NEXT), 'r_overnight'].notna().all()


def test_a_session_without_its_end_and_a_folder_without_daily_bars_are_named(spy, daily, tmp_path):
    store = Store(tmp_path/'short', 'simulated:made')
    for d, o in short(spy, 5).groupby(short(spy, 5).index.date): store.write_raw(d, o, [f'15:{m}' for m in range(55, 60)] if d == AT else ())
    said = str(prepare(store)); assert f'no close, because the last 5 minutes are missing: {AT};' in said and 'there are no daily bars' in said
    store.write_daily_bars(day_rows(daily, spy)); again = str(prepare(store)); assert str(AT) in again and 'there are no daily bars' not in again


def test_a_dividend_that_cannot_be_known_leaves_the_night_empty(spy, daily, tmp_path):
    told = day_rows(daily, spy).assign(dividend=0.); hole = told[told.index.date != AT]
    a, b = filled(tmp_path/'a', spy), filled(tmp_path/'b', spy)
    for store, df in ((a, told), (b, hole)): store.write_daily_bars(df); prepare(store)
    x, y = a.read_daily(), b.read_daily()
    assert y.loc[str(AT), 'r_overnight'].isna().all() and x.loc[str(AT), 'r_overnight'].notna().all() and y.loc['2025-11-20':, 'r_overnight'].equals(x.loc['2025-11-20':, 'r_overnight'])
    none = filled(tmp_path/'c', spy, daily); prepare(none) # where the source tells no dividend at all, none is assumed
    assert none.read_daily().loc[str(AT), 'r_overnight'].notna().all()


def test_daily_bars_of_another_kind_are_refused_and_nothing_is_lost(spy, daily, tmp_path):
    store = filled(tmp_path, spy, daily); prepare(store); before = {o: o.read_bytes() for o in (tmp_path/'daily_data').rglob('*.csv')}
    store.write_daily_bars(day_rows(daily, spy)*.9)
    with pytest.raises(DataError, match='minutes and daily bars contradict each other on 42 sessions') as e: prepare(store)
    assert e.value.exit_code == 3 and 'adjusted for splits only' in str(e.value)
    assert before == {o: o.read_bytes() for o in (tmp_path/'daily_data').rglob('*.csv')}


def test_replaced_panels_share_no_history(spy, daily):
    "`history` is remembered by panel; another close is another panel."
    p = Panel.from_bars(spy, daily=daily); q = replace(p, close=np.where(np.arange(390) < 300, p.close, np.nan))
    assert history(p)[0].close.iloc[-3] != history(q)[0].close.iloc[-3] or history(q)[0].close.iloc[-3] == daily.loc[str(q.days[-3]), 'close']


def test_the_live_day_looks_back_on_what_its_file_will_look_back_on(spy, tmp_path):
    odd = spy[:'2025-11-20'].copy(); odd.loc[str(AT), PX] = spy.loc['2025-11-17', PX].to_numpy() # a session that repeats the one before, and is left out
    store = filled(tmp_path, odd); prepare(store); day = date(2025, 11, 20)
    live = Today(store, day); live.compute(); rows = Store(tmp_path).read_daily().loc[str(day)]
    assert rows['r_d5'].isna().all() and rows['r_day'].notna().all()
    pd.testing.assert_frame_equal(live.frame().reindex(columns=rows.columns), rows, check_freq=False, check_names=False, check_index_type=False)


def test_a_dividend_that_may_be_due_today_is_unknown_until_the_daily_bar(shared, daily, tmp_path):
    ex, bars = date(2025, 9, 19), read_bars(shared('spy_1min.parquet')).drop(columns='src')['2025-08-25':'2025-09-19']
    paid = day_rows(daily, bars).assign(dividend=0.); store = filled(tmp_path, bars[:f'{ex} 11:00'], open_day=ex); store.write_daily_bars(paid.iloc[:-1])
    assert dividends_of(store)[ex] != dividends_of(store)[ex] and dividends_of(store, date(2025, 9, 22)).keys() == {ex} # an ordinary day has none
    prepare(store); night = ['r_overnight', 'r_day', 'log_on2', 'pday_pos']
    assert Store(tmp_path).read_daily().loc[str(ex), night].isna().all(None) and Store(tmp_path).read_daily().loc[str(ex), 'r5'].notna().sum() > 80
    store = filled(tmp_path, bars); store.write_daily_bars(paid.assign(dividend=[0.]*(len(paid) - 1) + [1.831])); prepare(store); rows = Store(tmp_path).read_daily()
    close = bars.loc['2025-09-18', 'close'].iloc[-1]; assert rows.loc[str(ex), 'r_overnight'].iloc[0] == pytest.approx(np.log(bars.loc[str(ex), 'open'].iloc[0]/(close - 1.831)), rel=1e-12)
