"""Bars as they really come: a volume that changes its scale, a split, holes, halts, bad prints; each has one named consequence."""
from datetime import date

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import grid, read_bars
from spyresearch.core import DataError, UsageError
from spyresearch.features import batch, stream
from spyresearch.features.registry import REGISTRY, Registry, feature
from spyresearch.features.stream import Stream, parity
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.tape import load_tape, tape_from_files

VOLUME = [f.name for f in REGISTRY if 'volume_level' in f.inputs]
NAMES = [f.name for f in REGISTRY]
ALL = [o for o in NAMES[:NAMES.index('uup_5')] if REGISTRY[o].group not in ('base', 'G10')] # off or not; after those come the candidates, of which some read wicks

def compute(bars, features=ALL, **kw): return batch.compute(bars, features, **kw)
def stream_frame(bars, features=ALL, **kw): return stream.stream_frame(bars, features, **kw)

WICKS = {'vwap_dist', 'pday_pos'}   # what reads highs and lows
PX = ['open', 'high', 'low', 'close']


@pytest.fixture(scope='module')
def record(shared): return pd.read_parquet(shared('spy_1min.parquet')).tz_convert('America/New_York')


@pytest.fixture(scope='module')
def real(shared): return read_bars(shared('spy_1min.parquet'))


@pytest.fixture(scope='module')
def spy(real): return real.drop(columns='src') # prices and volumes alone, as TWS and most files give them


@pytest.fixture(scope='module')
def autumn(spy): return spy['2025-09-02':'2025-12-05']


def days_with(x, name): return x[name].notna().groupby(x.index.date).any()
def same(a, b, but=()): np.testing.assert_array_equal(a.drop(columns=list(but)), b.drop(columns=list(but)))


def test_bars_of_a_file_keep_the_names_of_their_sources(record, real):
    assert real['src'].equals(record['src'].astype(str).reindex(real.index)) and real['src'].nunique() == 5
    np.testing.assert_array_equal(grid(real).volume, grid(real.drop(columns='src')).volume)


def test_a_named_source_change_empties_volume_for_14_sessions(real, autumn):
    named = real['2025-09-02':'2025-12-05']
    x, plain = compute(named), compute(autumn)
    for o in VOLUME:
        known = days_with(x, o)
        empty = known.index[~known & (known.index > date(2025, 10, 1))]
        assert [str(empty[0]), len(empty)] == ['2025-11-04', 14], o
        assert days_with(plain, o)[date(2025, 11, 4)]
    same(x, plain, VOLUME)
    assert parity(named['2025-10-01':], VOLUME)['share_equal'].eq(1).all()


def test_no_kept_feature_and_no_evaluation_depends_on_the_name(real, spy):
    a, b = (Panel.from_bars(o['2025-10-01':'2025-11-21']) for o in (real, spy))
    for k in ('x', 'close', 'volume'): np.testing.assert_array_equal(getattr(a, k), getattr(b, k))


def test_a_tape_and_a_raw_day_leave_the_name_behind(shared, real, spy, tmp_path):
    files = [shared('spy_1min.parquet')]
    tape, (day, bars) = tape_from_files(files), next(iter(real['2025-11-04':'2025-11-04'].groupby(lambda t: t.date())))
    assert 'src' not in tape.bars['TRADES', '1 min'] and tape.bars['TRADES', '1 min'].equals(spy)
    assert load_tape(tape.save(tmp_path/'real.tape')).hash == tape.hash
    path = Store(tmp_path, 'replay:a').write_raw(day, bars)
    assert path.read_bytes() == Store(tmp_path/'b', 'replay:a').write_raw(day, spy.loc[bars.index]).read_bytes() and b'shuye' not in path.read_bytes()


def test_an_unnamed_change_by_a_fifth_stays_inside_a_days_own_scatter(spy):
    "What the real change of 2025-11-04 does when nobody says so: the median ratio moves by less than the spread of a day."
    daily = compute(spy['2025-01-02':'2026-02-27'], ['relvol_day'])['relvol_day'].groupby(lambda t: t.date()).last()
    after = daily[(daily.index >= date(2025, 11, 4)) & (daily.index < date(2025, 11, 24))].median()
    assert abs(after - daily.median()) < daily.std()


@pytest.mark.parametrize('factor', [100., 10., 4., .25, .01])
def test_an_unnamed_change_of_scale_is_never_a_ratio(autumn, factor):
    day = date(2025, 10, 15)
    bars = autumn.assign(volume=autumn['volume']*np.where(autumn.index.date >= day, factor, 1.))
    x, plain = compute(bars), compute(autumn)
    known = days_with(x, 'relvol_day')
    empty = known.index[~known & (known.index >= day)]
    assert empty[0] == day and 14 <= len(empty) <= 18
    same(x, plain, [*VOLUME, 'vwap_dist'])
    np.testing.assert_allclose(x['vwap_dist'], plain['vwap_dist'], rtol=1e-6, atol=1e-9)
    late = x.index.date > empty[-1]
    np.testing.assert_allclose(x[VOLUME][late].to_numpy()[:, :2], plain[VOLUME][late].to_numpy()[:, :2], rtol=1e-9, atol=1e-12)


def test_no_true_session_looks_like_a_change_of_scale(spy):
    "2023-11 to 2026-03 holds August 2024 and April 2025: no volume feature is lost to a false alarm."
    known = days_with(compute(spy['2023-11-06':'2026-03-31'], ['relvol_day']), 'relvol_day')
    assert known[known.index >= date(2023, 12, 4)].all()


@pytest.mark.parametrize('ratio,words', [(2., '2-for-1'), (1.5, '3-for-2'), (.1, '1-for-10')])
def test_a_split_is_refused_and_explained(autumn, ratio, words):
    day, bars = date(2025, 11, 12), autumn.copy()
    bars.loc[bars.index.date >= day, PX] /= ratio
    with pytest.raises(DataError, match=rf'2025-11-12 opened at .* not adjusted for a split \({words}\)') as e: compute(bars)
    assert 'multiply the prices before 2025-11-12' in e.value.todo and e.value.exit_code == 3
    s, rows = Stream(), bars.loc[str(day)].reset_index().to_dict('records')
    s.start(bars[bars.index.date < day])
    with pytest.warns(UserWarning, match='left out'): assert all(v != v for o in rows[:4] for v in s.push(o).values())
    with pytest.raises(DataError, match='split'): s.push(rows[4])
    true = autumn[(autumn.index.date != day) | (autumn.index >= rows[4]['Datetime'])]
    assert s.push(true.loc[str(day)].reset_index().iloc[0].to_dict())['r_overnight'] == compute(true)['r_overnight'].loc[str(day)].iloc[0]


def test_no_true_night_is_taken_for_a_split(shared):
    "The whole daily record since 1998, and the minutes."
    daily = pd.read_parquet(shared('spy_daily.parquet'))
    ratio = daily['open']/daily['close'].shift()
    assert ratio.max() < 1.2 and ratio.min() > .8


def test_bad_prints_move_only_what_reads_wicks(record, spy):
    flagged = record.index[record['suspect_wick'].to_numpy() & record.index.isin(spy.index)]
    days = sorted({t.date() for t in flagged if date(2025, 1, 2) < t.date() < date(2025, 6, 1)})
    bars = spy['2024-11-25':'2025-06-03']
    hit = bars.index.isin(flagged)
    clean = bars.copy()
    clean.loc[hit, 'high'], clean.loc[hit, 'low'] = bars.loc[hit, ['open', 'close']].max(axis=1), bars.loc[hit, ['open', 'close']].min(axis=1)
    a, b = compute(bars), compute(clean)
    moved = {o for o in a if not np.array_equal(a[o], b[o], equal_nan=True)}
    assert len(days) >= 5 and moved <= WICKS and a.notna().equals(b.notna())


def test_a_halt_is_a_hole_and_not_a_calm(autumn):
    day = '2025-11-18'
    whole, at = autumn.loc[day], (autumn.index.date == date(2025, 11, 18)) & (autumn.index.hour == 13)
    halted = autumn[~at]
    x, y = compute(halted).loc[day], compute(autumn).loc[day]
    assert len(x) == len(whole) - 60
    same(x[x.index.hour < 13], y[y.index.hour < 13])
    assert x['r_day'].iloc[-1] == y['r_day'].iloc[-1] and x.loc[x.index.hour > 13, ['relvol_day', 'logrv_today', 'vwap_dist']].isna().all(None) # an hour is more than a tenth of the day
    assert [int(x.loc[x.index.hour > 13, f'logrv_{h}'].isna().sum()) for h in (5, 15, 60)] == [5, 15, 60] == [int(x.loc[x.index.hour > 13, o].isna().sum()) for o in ('r5', 'r15', 'r60')]
    np.testing.assert_array_equal(stream_frame(halted).loc[day], x)
    few, tomorrow = compute(autumn[~(at & (autumn.index.minute < 35))]), '2025-11-19' # 35 minutes are less than a tenth
    assert abs(few.loc[day, 'relvol_day'].iloc[-1] - y['relvol_day'].iloc[-1]) < .1 and few.loc[tomorrow, ['logrv_d22', 'pday_pos', 'high_20']].notna().all(None)
    assert compute(halted).loc[tomorrow, ['logrv_d1', 'logrv_d22', 'pday_pos', 'high_20']].isna().all(None) and compute(halted).loc[tomorrow, ['r_day', 'r_d5']].notna().all(None)


def test_holes_anywhere_leave_empty_or_exact_in_both_forms(autumn):
    rng = np.random.default_rng(0)
    bars = autumn['2025-10-20':'2025-11-20']
    gone = np.zeros(len(bars), bool)
    for start, n in zip(rng.integers(0, len(bars), 60), rng.integers(1, 12, 60)): gone[start:start + n] = True
    x, whole = compute(bars[~gone]), compute(bars)
    np.testing.assert_array_equal(x, stream_frame(bars[~gone]))
    c, minute = bars['close'].where(~gone), np.array([(t.hour - 9)*60 + t.minute - 30 for t in bars.index])
    for h in (5, 15, 60): # a return over h minutes: nine tenths of them known, and of what the returns span no more than a tenth before the window
        known = pd.Series(~gone, bars.index).groupby(bars.index.date)
        n, back = known.transform(lambda s, h=h: s.rolling(h).sum()), c.groupby(bars.index.date).transform(lambda s, h=h: s.ffill().shift(h))
        seen = known.transform(lambda s: np.where(s, np.arange(len(s)), np.nan)).groupby(bars.index.date).transform(lambda s, h=h: s.ffill().shift(h))
        spill = (minute - h) - seen.fillna(-1) # minutes that the first return reaches back beyond the window
        ok = (n >= .9*h) & (minute >= h) & ~gone & (spill <= .1*h); ours = x[f'r{h}'].reindex(bars.index)
        assert (ours.notna() == ok)[minute >= h].all(), h
        ok &= back.notna(); np.testing.assert_allclose(ours[ok], np.log(c/back)[ok], rtol=0, atol=1e-12)
    for o in ('logrv_15', 'logrv_60', 'logrv_today'): assert (x[o] - whole[o].reindex(x.index)).abs().quantile(.9) < .1 and x[o].isna().mean() < .3, o


def test_a_late_open_and_a_day_of_few_bars_break_nothing(autumn):
    d, e = date(2025, 11, 18), date(2025, 11, 19)
    when, minute = autumn.index.date, autumn.index.hour*60 + autumn.index.minute - 570
    bars = autumn[~((when == d) & (minute < 95) | (when == e) & (minute%40 > 0))]
    a, b = compute(bars), stream_frame(bars)
    np.testing.assert_array_equal(a, b)
    known = a.loc['2025-11-18'].notna().any()
    assert set(known.index[~known]) - {f.name for f in REGISTRY if f.group in ('G7', 'G8', 'G9')} == {*VOLUME, 'open_range', 'r_overnight', 'log_on2', 'noise_pos', 'band_out', 'band_crossings', 'logrv_today', 'logrv_surprise', 'vwap_dist', 'to_fomc', 'since_830', 'since_1000'}  # they need the open, the day so far, quotes, or a release that day


def test_zero_volume_is_empty_and_leaves_prices_alone(autumn):
    mute = autumn.copy()
    at = (mute.index.date == date(2025, 11, 18)) & (mute.index.hour == 13)
    mute.loc[at, 'volume'] = 0.
    x, y = compute(mute), compute(autumn)
    assert x.loc[at, 'relvol_15'].isna().sum() == 46 and x.loc[at, 'relvol_day'].notna().all() and np.isfinite(x.loc[at, 'amihud_30'].dropna()).all()
    same(x, y, [*VOLUME, 'vwap_dist'])
    whole = autumn.assign(volume=np.where(autumn.index.date == date(2025, 11, 18), 0., autumn['volume']))
    known = days_with(compute(whole, VOLUME), 'relvol_day')
    assert not known[date(2025, 11, 18)] and not known[date(2025, 11, 19)] and parity(whole, [*VOLUME, 'vwap_dist'])['share_equal'].eq(1).all()


def test_duplicates_are_refused_by_both_forms(autumn):
    twice = pd.concat([autumn.head(50), autumn.iloc[[20]]]).sort_index()
    with pytest.raises(DataError, match='the same minute twice'): compute(twice)
    s = Stream(['r1'])
    s.start(autumn.head(50))
    with pytest.raises(DataError, match='minute 50 of 390'): s.push(autumn.iloc[[20]].reset_index().iloc[0].to_dict())


def test_a_half_day_is_compared_minute_by_minute(spy):
    half = date(2025, 11, 28)
    x = compute(spy['2025-10-01':'2025-12-05'])
    assert session(half).n_minutes == 210
    assert x.loc[str(half), VOLUME].notna().sum().tolist() == [181]*len(VOLUME)
    assert x.loc['2025-12-01', 'relvol_day'].notna().sum() == 361


def test_a_first_session_knows_only_itself(spy):
    x = compute(spy['2025-10-01':'2025-10-01'])
    remembering = [f.name for f in REGISTRY if f.kept and f.sessions]
    assert x[remembering].isna().all(axis=None) and x[['r1', 'logrv_60', 'vwap_dist', 'rsi_14', 'jump_30']].notna().any().all()


def test_a_session_of_which_no_bar_counts_is_absent_in_both_forms(autumn):
    day = autumn.index.date == date(2025, 11, 18)
    bars = autumn[~day | (np.arange(len(autumn)) % 390 < 3)].copy(); hit = bars.index.date == date(2025, 11, 18)
    assert hit.sum() == 3; bars.loc[hit, PX] *= 1.5
    with pytest.warns(UserWarning, match='left out'): a, b = compute(bars), stream_frame(bars)
    np.testing.assert_array_equal(a, b)
    assert a.loc['2025-11-19', ['r_overnight', 'logdiur_30', 'noise_pos']].isna().all(None)


def test_a_bar_without_a_close_or_from_another_day_costs_itself_alone(autumn):
    rows = autumn.loc['2025-11-18'].reset_index().to_dict('records'); s = Stream(['r1', 'r5']); s.start(autumn.loc[:'2025-11-17'].tail(400))
    for o in rows[:10]: s.push(o)
    with pytest.warns(UserWarning, match='left out'): assert all(v != v for v in s.push(rows[10] | dict(close=np.nan)).values())
    for at in ('2025-11-19 08:00', '2025-11-22 10:00'):
        with pytest.raises((DataError, UsageError)): s.push(rows[11] | dict(Datetime=pd.Timestamp(at, tz='America/New_York')))
    out = [s.push(o) for o in rows[11:]]
    assert [i for i, o in enumerate(out) if o['r1'] != o['r1']] == [0] and out[-1]['r5'] == pytest.approx(np.log(rows[-1]['close']/rows[-6]['close']), rel=1e-9)
    with pytest.raises(DataError, match='by its start'): s.push(autumn.loc['2025-11-19'].reset_index().iloc[0].to_dict() | dict(Datetime=pd.Timestamp('2025-11-19 09:30:30', tz='America/New_York')))


def test_what_would_be_misread_is_refused(autumn):
    day = autumn.loc['2025-11-18']
    with pytest.raises(DataError, match='the times of the bars are in UTC'): compute(day.between_time('09:30', '10:29').tz_convert('UTC').tz_convert('UTC'))
    with pytest.raises(DataError, match='there are no bars'): compute(day.iloc[:0])
    with pytest.raises(UsageError, match='has no date'): compute(autumn, ['r_overnight'], dividends={'2025-11-18': 5.})
    paid = compute(autumn, ['r_overnight'], dividends={pd.Timestamp('2025-11-18'): 5.})
    assert paid.loc['2025-11-18', 'r_overnight'].iloc[0] > compute(autumn, ['r_overnight']).loc['2025-11-18', 'r_overnight'].iloc[0] + .007
    assert compute(day, 'r5').columns.tolist() == ['r5']
    mine = Registry(); feature('counted', lambda g: 0.*g.close, step=lambda b, s: next(s), state=lambda: iter([]), registry=mine, group='mine', formula='-', inputs=('close',), scope='continuous')
    mine['counted'].state = lambda: (i for i in range(10**6))
    with pytest.raises(UsageError, match='feature counted: its state cannot be copied'): Stream(registry=mine).push(day.reset_index().iloc[0].to_dict())
