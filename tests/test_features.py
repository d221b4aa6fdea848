"""Features on real sessions: blind to the future, equal in both forms, equal to a plain second computation; day files under faults."""
import os
import pickle
import signal
import subprocess
import sys
from datetime import date
from functools import partial

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import grid, read_bars
from spyresearch.core import FolderError
from spyresearch.features.audit import audit, memory
from spyresearch.features.batch import compute
from spyresearch.features.prepare import context, prepare
from spyresearch.features.registry import REGISTRY, Registry, feature
from spyresearch.features.stream import Stream, parity
from spyresearch.sessions import prev_session, session
from spyresearch.store import Store

HALF = date(2025, 11, 28)


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))


@pytest.fixture(scope='module')
def day_of(spy): return spy.index.tz_localize(None).to_numpy().astype('datetime64[D]')


@pytest.fixture(scope='module')
def days(day_of): return np.unique(day_of).tolist()


def between(bars, first, last): return bars[str(first):str(last)]


def odd_days(days):
    "Half days, and days that follow an absent session."
    return [d for d in days if session(d).half], [d for a, d in zip(days, days[1:]) if prev_session(d) != a]


def test_real_record_has_the_awkward_days(days):
    half, after_gap = odd_days(days)
    assert len(half) >= 8 and len(after_gap) >= 6 and len(days) >= 720


def test_no_feature_knows_the_future_on_50_cuts(spy, days, day_of):
    rng, half, after_gap = np.random.default_rng(11), *odd_days(days)
    some = [int(rng.choice(np.flatnonzero(day_of == np.datetime64(d)))) for d in half + after_gap]
    cuts = some + [int(o) for o in rng.choice(len(spy), 50 - len(some), replace=False)]
    every = [f.name for f in REGISTRY if f.group != 'base'] # off or not
    report = audit(spy, partial(compute, features=every), cuts=cuts, back=26)
    assert list(report.index) == every
    assert report['cuts'].eq(50).all() and report['leaks'].sum() == 0, report[report['leaks'] > 0]


@pytest.mark.parametrize('first,last', [('2023-01-03', '2023-12-20'), ('2025-05-01', '2026-07-17')])
def test_stream_equals_batch(spy, first, last):
    bars = between(spy, first, last)
    rng = np.random.default_rng(5)
    beside = {o: np.where(rng.random(len(bars)) < .1, np.nan, rng.random(len(bars)) + .01) for o in REGISTRY.carried} # what seconds and options say, drawn
    every = [f.name for f in REGISTRY if f.group != 'base']
    p = parity(bars.assign(ba_open=bars['close'] - .01, ba_close=bars['close'] + .01, iv_close=.1 + .1*rng.random(len(bars)), **beside), every, dividends={date(2025, 12, 19): 1.993})
    assert p['only_one'].sum() == 0
    assert p['max_rel'].max() <= 1e-9, p[p['max_rel'] > 0]
    assert (p['values'] > 0).all()


def test_a_restart_in_mid_session_goes_on(spy):
    bars = between(spy, '2025-10-20', '2025-12-01')
    whole, restarted = Stream(), Stream()
    cut = len(bars) - 200
    whole.start(bars.iloc[:cut - 100])
    rows = bars.reset_index().to_dict('records')
    for o in rows[cut - 100:cut]: whole.push(o)
    restarted.start(bars.iloc[:cut])
    thawed = pickle.loads(pickle.dumps(whole.states))
    whole.states = thawed
    for o in rows[cut:]: np.testing.assert_equal(whole.push(o), restarted.push(o))


def test_a_missing_minute_empties_windows_of_which_it_is_more_than_a_tenth(spy):
    x, c = compute(between(spy, '2026-07-10', '2026-07-14')).loc['2026-07-13'], spy.loc['2026-07-13', 'close']
    at = lambda o: pd.Timestamp(f'2026-07-13 {o}', tz=x.index.tz)
    assert at('15:27') not in x.index
    empty = x.loc[at('15:20'):].isna()
    assert [empty[o].sum() for o in ('r1', 'r5', 'logrv_5', 'r15', 'logrv_15')] == [1, 5, 5, 0, 0] and empty.loc[at('15:28'):at('15:32'), 'r5'].all()
    assert x.loc[at('15:35'), 'r15'] == pytest.approx(np.log(c[at('15:35')]/c[at('15:20')]), rel=1e-12)


def test_multi_day_features_are_empty_after_an_absent_session(spy, days, day_of):
    after = odd_days(days)[1]
    near = [o for d in after for o in days[max(days.index(d) - 2, 0):days.index(d) + 2]]
    x = compute(spy[np.isin(day_of, np.array(near, 'datetime64[D]'))])
    night = [f.name for f in REGISTRY if f.kept and f.sessions]
    first = x[np.isin(x.index.date, after)]
    assert len(night) >= 12 and first[night].isna().all(axis=None)
    assert first.groupby(first.index.date)['logrv_60'].apply(lambda o: o.head(59).isna().all() and o.iloc[59:].notna().all()).all()


def test_bad_prints_change_nothing_else(shared, spy):
    "A wick is left as it is: values stay finite, and what rests on closes does not move."
    wick = pd.read_parquet(shared('spy_1min.parquet'))['suspect_wick']
    hit = spy.index[wick.reindex(spy.index).fillna(False).astype(bool)]
    assert len(hit) > 0
    bars = spy.loc[str(hit[0].date())]
    clean = bars.assign(high=bars[['open', 'close']].max(axis=1), low=bars[['open', 'close']].min(axis=1))
    a, b = compute(bars), compute(clean)
    np.testing.assert_array_equal(a[['r1', 'logrv_60', 'rsi_14']], b[['r1', 'logrv_60', 'rsi_14']])
    assert a.notna().equals(b.notna())


def ending(a, w):
    "Sum of the `w` values that end at each one, added up one window at a time."
    return np.r_[np.full(w - 1, np.nan), np.lib.stride_tricks.sliding_window_view(a, w).sum(1)]


def plain(bars):
    "A second computation of the volatility features, by pandas, day tables and loops."
    g = grid(bars)
    ix = pd.Index(g.days)
    c = pd.DataFrame(g.close, ix).ffill(axis=1).where(np.arange(390) < g.n[:, None])
    r2 = np.log(c/c.shift(axis=1).fillna(pd.DataFrame(g.open, ix)))**2
    full = r2[g.n == 390]
    profile = pd.DataFrame({d: full.iloc[i-22:i].mean().rolling(15, center=True, min_periods=1).apply(np.mean, raw=True) for i, d in enumerate(full.index) if i >= 22}).T
    flat = r2.stack()
    move = (c.div(pd.Series(g.open[:, 0], ix), axis=0) - 1).abs()[g.n == 390]
    return dict(logrv_60=np.log(pd.Series(ending(flat.to_numpy(), 60), flat.index)).unstack(),
                logdiur_30=pd.DataFrame({m: np.log(profile.iloc[:, m+1:m+31].sum(axis=1)) for m in range(360)}),
                logrv_d22=np.log((r2.sum(axis=1)*390/g.n).rolling(22).apply(np.mean, raw=True).shift(1)),
                noise_pos=pd.DataFrame({d: (c.loc[d]/g.open[g.days.index(d), 0] - 1)/move.iloc[i-14:i].mean() for i, d in enumerate(move.index) if i >= 14}).T)


def test_volatility_features_against_a_plain_computation(spy):
    bars = between(spy, '2024-09-03', '2024-12-20')
    x, p = compute(bars), plain(bars)
    day, minute = bars.index.date, bars.index.hour*60 + bars.index.minute - 570
    def table(o): return pd.DataFrame(dict(v=x[o].to_numpy(), d=day, m=minute)).pivot(index='d', columns='m', values='v')
    def near(a, b):
        b = b.reindex(index=a.index, columns=a.columns)
        both = a.notna() & b.notna()
        assert both.sum().sum() > 390*40
        np.testing.assert_allclose(a.to_numpy()[both], b.to_numpy()[both], rtol=1e-9)
    for o in ('logrv_60', 'logdiur_30', 'noise_pos'): near(table(o), p[o])
    d22 = x['logrv_d22'].groupby(bars.index.date).first().dropna()
    np.testing.assert_allclose(d22, p['logrv_d22'].reindex(d22.index), rtol=1e-12)


def test_indicators_against_talib(spy):
    import talib
    for d in (date(2025, 4, 9), HALF):
        bars = spy.loc[str(d)]
        np.testing.assert_allclose(compute(bars)['rsi_14'], talib.RSI(np.r_[bars['open'].iloc[0], bars['close']], 14)[1:], rtol=1e-9)


def test_each_day_needs_only_its_declared_context(spy, day_of):
    assert memory(between(spy, '2024-09-03', '2024-10-15'))[['enough', 'fewer_is_empty']].all(axis=None)
    x = compute(spy)
    for d in (HALF, date(2025, 12, 1), date(2025, 12, 26), date(2024, 8, 5)):
        near = compute(spy[np.isin(day_of, np.array(context(d, REGISTRY.depth()), 'datetime64[D]'))])
        np.testing.assert_array_equal(near.loc[str(d)], x.loc[str(d)])


def test_the_hash_is_the_same_in_every_process():
    code = 'from spyresearch.features.batch import compute\nfrom spyresearch.features.registry import registry_hash\nprint(registry_hash())'
    seen = {subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONHASHSEED=o), capture_output=True, text=True, check=True).stdout for o in '17'}
    assert len(seen) == 1 and len(seen.pop().strip()) == 16


# day files

PREPARE = '''
import sys
from spyresearch.store import Store
from spyresearch.features.prepare import prepare
print(prepare(Store(sys.argv[1], 'replay:real'), lambda done, total, what: print(done, flush=True)))
'''


def raw_folder(root, bars):
    store = Store(root, 'replay:real')
    with store.original.batch():
        for d, o in bars.groupby(bars.index.date): store.write_raw(d, o)
    return Store(root, 'replay:real')


@pytest.fixture(scope='module')
def real(spy): return between(spy, '2025-10-20', '2025-12-05')


def content(store): return {p.name: p.read_bytes() for p in sorted(store.features.path.glob('*.csv'))}


def test_day_files_hold_what_was_computed(tmp_path, real):
    store = raw_folder(tmp_path, real)
    report = prepare(store)
    assert len(report.written) == len(set(real.index.date)) and not report.orphans
    x, y = compute(real), Store(tmp_path).read_daily()
    np.testing.assert_array_equal(y[REGISTRY.names()], x)
    assert len(store.features.file(HALF).read_text().splitlines()) == 211
    text = store.features.file(HALF).read_text().splitlines()
    assert text[0].split(',')[:6] == ['Datetime', 'open', 'high', 'low', 'close', 'volume'] and text[0].split(',')[16:] == REGISTRY.names()
    assert text[1].startswith('2025-11-28T09:30:00-05:00,')


def test_a_killed_run_goes_on_and_changes_no_byte(tmp_path, real):
    whole, killed = raw_folder(tmp_path/'whole', real), raw_folder(tmp_path/'killed', real)
    prepare(whole)
    p = subprocess.Popen([sys.executable, '-c', PREPARE, str(tmp_path/'killed')], stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if int(line) >= 7: break
    p.send_signal(signal.SIGKILL)
    p.wait()
    half_way = content(killed)
    assert 7 <= len(half_way) < len(content(whole))
    report = prepare(Store(tmp_path/'killed', 'replay:real'))
    assert content(killed) == content(whole) and report.days == sorted(set(real.index.date))
    assert not (tmp_path/'killed'/'quarantine').exists()
    assert not prepare(Store(tmp_path/'killed', 'replay:real')).written


@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b.replace(b',', b';'), lambda b: b'\xef\xbb\xbf' + b.replace(b'\n', b'\r\n'),
                                    lambda b: b.replace(b'T09:31', b'T09:30'), lambda b: b[:-3] + b'7\n'],
                         ids=['empty', 'truncated', 'semicolons', 'spreadsheet', 'doubled', 'tampered'])
def test_a_damaged_day_file_is_made_again_and_never_fetched(tmp_path, real, damage):
    store = raw_folder(tmp_path, real['2025-11-24':])
    prepare(store)
    before, f = content(store), store.features.file(HALF)
    f.write_bytes(damage(f.read_bytes()))
    report = prepare(Store(tmp_path, 'replay:real'))
    assert report.written == [HALF] and content(store) == before
    assert [d for d, _, _ in report.aside] == [HALF] and [p.name for p in (tmp_path/'quarantine').glob('*.csv')] == [f'{HALF}.csv']


def test_another_registry_rebuilds_and_one_more_feature_is_one_more_column(tmp_path, real):
    bars, mine = real['2025-11-24':], Registry()
    store = raw_folder(tmp_path, bars)
    prepare(store)
    for f in REGISTRY: mine.add(f)
    feature('body', lambda g: (g.close - g.open)/(g.high - g.low), registry=mine, group='X', formula='(C - O)/(H - L)', inputs=('open', 'high', 'low', 'close'))
    report = prepare(Store(tmp_path, 'replay:real'), registry=mine)
    assert len(report.written) == len(set(bars.index.date)) and not report.kept
    assert list(Store(tmp_path).read_daily())[-1] == 'body'


def test_a_folder_that_cannot_be_written_is_named(tmp_path, real):
    store = raw_folder(tmp_path, real['2025-12-01':])
    (tmp_path/'daily_data').write_text('in the way')
    with pytest.raises(FolderError) as e: prepare(store)
    assert 'daily_data' in str(e.value) and e.value.exit_code == 3
    assert len(Store(tmp_path).raw_days()) == len(set(real['2025-12-01':].index.date))
