"""The audit on real sessions: leaks planted through the public registry, whatever the day and the minute; and nothing in the registry grows."""
import gc
from functools import partial

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import CheckFailed, DataError, UsageError
from spyresearch.events import fomc_day, month_end
from spyresearch.features.audit import audit, audit_record, check_causal, check_features, dated, examine, growth, memory
from spyresearch.features.batch import compute
from spyresearch.features.flow import flow_minutes
from spyresearch.features.registry import REGISTRY, Registry, feature
from spyresearch.features.smile import smile_day


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))


def drawn(bars): return bars.assign(**{o: np.random.default_rng(0).random(len(bars)) + .01 for o in REGISTRY.carried}) # what seconds, options and other symbols say


# leaks, planted through the public registry

def later(x, k=1): return np.concatenate([x[:, k:], np.full((len(x), k), np.nan)], 1)
def close_of_day(g): return np.take_along_axis(g.close, g.n - 1, 1)
def level(g): return np.broadcast_to(g['level1.x'], g.seen.shape)
def score(x, *axis): return (x - np.nanmean(x, *axis))/np.nanstd(x, *axis)
def first_axis(g): return np.linalg.svd(score(np.nan_to_num(g.close)), full_matrices=False)[2][0]

LEAKS = dict(
    one_bar_lead=lambda g: np.log(later(g.close)/g.close),
    next_open=lambda g: later(g.open)/g.close,
    next_wick=lambda g: later(g.high) - g.close,
    sign_of_the_next=lambda g: np.sign(later(g.close) - g.close),
    a_trace=lambda g: g.close + 1e-9*later(g.close),
    centred_3=lambda g: (np.roll(g.close, -1, 1) + g.close + np.roll(g.close, 1, 1))/3,
    centred_31=lambda g: sum(np.roll(g.close, k, 1) for k in range(-15, 16))/31,
    kernel=lambda g: np.nan_to_num(g.close)@np.exp(-abs(np.subtract.outer(np.arange(390), np.arange(390)))/2),
    fourier=lambda g: np.fft.irfft(np.fft.rfft(np.nan_to_num(g.close, nan=600.), axis=1)[:, :40], 390, axis=1),
    filled_from_behind=lambda g: pd.DataFrame(np.where(g.minute%7 == 0, g.close, np.nan)).bfill(axis=1).to_numpy(),
    interpolated=lambda g: pd.DataFrame(np.where(g.minute%5 == 0, g.close, np.nan)).interpolate(axis=1, limit_direction='both').to_numpy(),
    zscore=lambda g: score(g.close),
    normaliser_by_minute=lambda g: score(np.nan_to_num(g.volume), 0),
    quantile=lambda g: g.close/np.nanquantile(g.close, .9),
    rank=lambda g: (g.close[..., None] > np.nanquantile(g.close, [.25, .5, .75])).sum(-1),
    component=lambda g: np.nan_to_num(g.close)*first_axis(g),
    day_high=lambda g: np.nanmax(g.close, 1, keepdims=True) - g.close,
    is_the_high=lambda g: 1.*(g.high == np.nanmax(g.high, 1, keepdims=True)),
    high_is_to_come=lambda g: 1.*(np.nan_to_num(g.close).argmax(1)[:, None] > g.minute),
    share_of_the_days_volume=lambda g: g.volume/np.nansum(g.volume, 1, keepdims=True),
    rank_within_the_day=lambda g: np.argsort(np.argsort(np.nan_to_num(g.close), 1), 1),
    bars_to_come=lambda g: g.seen.sum(1, keepdims=True) - g.minute,
    a_hole_comes=lambda g: np.isnan(later(g.seen + 0.)) | (later(g.seen + 0.) == 0),
    close_before_the_close=lambda g: close_of_day(g)/g.close,
    n_as_an_index=lambda g: g.close[:, -1:]/g.close,
    n_counted_down=lambda g: np.take_along_axis(g.close, np.clip(g.n - 1 - g.minute, 0, 389), 1),
    open_of_tomorrow=lambda g: np.roll(g.close[:, :1], -1, 0)/g.close,
    a_month_ahead=lambda g: np.concatenate([g.close[21:], np.full((min(21, len(g)), 390), np.nan)])/g.close,
    rank_of_the_day=lambda g: np.argsort(np.argsort(g.close[:, :1], 0), 0),
    days_in_all=lambda g: len(g) + 0*g.close,
    normalised_by_the_last=lambda g: g.close/g.close[-1, 0],
    carried_shifted=lambda g: later(level(g)))

def when(which, leak): return lambda g: np.where(which(g), leak(g), g.close)

SELDOM = dict(
    on_fridays=when(lambda g: g.weekday == 4, lambda g: later(g.close)),
    on_half_days=when(lambda g: g.n < 390, lambda g: later(g.close)),
    late_on_half_days=when(lambda g: (g.n < 390) & (g.minute >= g.n - 10), close_of_day),
    on_fomc_days=when(lambda g: fomc_day(g.day) == 1, lambda g: later(g.close)),
    after_the_statement=when(lambda g: (fomc_day(g.day) == 1) & (g.minute >= 270), lambda g: later(g.close, 5)),
    at_month_ends=when(lambda g: month_end(g.day) == 1, close_of_day),
    on_wild_days=when(lambda g: abs(g.close/g.close[:, :1] - 1) > .02, lambda g: later(g.close)),
    after_wild_minutes=when(lambda g: abs(g.close/g.open - 1) > .002, lambda g: later(g.close)),
    in_the_last_ten_minutes=when(lambda g: g.minute >= g.n - 10, close_of_day),
    in_the_last_minute_but_one=when(lambda g: g.minute == g.n - 2, lambda g: later(g.close)),
    in_one_minute=when(lambda g: g.minute == 200, lambda g: later(g.close)),
    once_an_hour=when(lambda g: g.minute%60 == 59, lambda g: later(g.close, 3)))

HONEST = dict(
    since_open=lambda g: g.close/g.close[:, :1],
    to_close=lambda g: g.n - g.minute,
    yesterday=lambda g: np.where(g.linked, np.roll(g.close[:, 200:201], 1, 0), np.nan),
    before_fomc=lambda g: fomc_day(g.day)*(g.close - g.open))


def planted(**formulas):
    mine = Registry()
    for k, f in formulas.items(): feature(k, f, registry=mine, group='leak', formula='-', inputs=('open', 'high', 'low', 'close', 'volume', 'seen', 'level1.x'))
    return mine


@pytest.mark.filterwarnings('ignore:Mean of empty slice', 'ignore:Degrees of freedom')
@pytest.mark.parametrize('seed', [0, 1])
def test_every_planted_leak_is_caught_and_nothing_else(spy, seed):
    bars = spy['2024-09-03':'2025-04-30']
    f = partial(compute, registry=planted(**LEAKS, **SELDOM, **HONEST))
    report = audit(bars.assign(**{'level1.x': np.arange(len(bars))*1.}), f, cuts=40, seed=seed, back=3)
    assert report.index[report['leaks'] == 0].tolist() == [*HONEST]


def test_one_word_names_them(spy):
    mine = planted(one_bar_lead=LEAKS['one_bar_lead'], sign=LEAKS['sign_of_the_next'], **HONEST)
    with pytest.raises(CheckFailed, match='2 columns knew the future: one_bar_lead, sign'): check_causal(spy['2025-03-03':'2025-04-30'], partial(compute, registry=mine), cuts=8, back=3)


def test_a_leak_beside_the_real_features_is_named(spy):
    mine = Registry()
    for f in REGISTRY: mine.add(f)
    feature('sly', lambda g: np.roll(g.r2, -1, 1), registry=mine, group='leak', formula='-', kept=False, inputs=('r2',))
    feature('plausible', lambda g: np.log(g.rv_today + np.nan_to_num(g.sly)), registry=mine, group='leak', formula='-', inputs=('rv_today', 'sly'))
    with pytest.raises(CheckFailed, match='1 columns knew the future: plausible'): check_causal(spy['2025-09-15':'2025-12-05'], partial(compute, registry=mine), cuts=12)


def test_scalers_and_selections_are_audited_too(spy):
    bars = spy['2025-10-01':'2025-11-14']
    def scaled(b): x = compute(b, ['r5', 'logrv_5']); return (x - x.mean())/x.std()
    def selected(b): x = compute(b, ['r1', 'r5', 'r15']); return x[[(-x.shift(-1)).corrwith(x).idxmax()]].set_axis(['best'], axis=1)*len(x)
    def trailing(b): x = compute(b, ['r5']); return (x - x.rolling(390).mean())/x.rolling(390).std()
    assert audit(bars, scaled, cuts=6)['leaks'].gt(0).all() and audit(bars, selected, cuts=6)['leaks'].gt(0).all()
    assert audit(bars, trailing, cuts=6, back=99)['leaks'].sum() == 0


# leaks that no cut of the bars can find

KEPT = {} # what a sly batch form leaves for its step

def _remember(g):
    KEPT.update(zip(g.day, g.close))
    return g.close

def _table(bars): return {d: o.to_numpy() for d, o in bars['close'].groupby(bars.index.date)}


def test_a_step_that_knows_more_than_the_batch_form_is_found_by_comparing(spy):
    bars, mine = spy['2025-07-07':'2025-08-29'], Registry()
    plant = partial(feature, registry=mine, group='leak', formula='-', inputs=('close',))
    ahead = lambda b, s: KEPT[b.day][min(b.minute + 1, 389)] if b.day in KEPT else b.close
    plant('step_leaks', _remember, step=ahead)
    plant('step_looks_up', lambda g: g.close, step=lambda b, s, table=_table(bars): table[b.day][min(b.minute + 1, 389)])
    plant('both_look_up', lambda g, table=_table(bars): np.stack([np.r_[table[d], [np.nan]*390][1:391] for d in g.day]), step=lambda b, s, table=_table(bars): [*table[b.day], np.nan][b.minute + 1])
    plant('memory_and_fomc', lambda g: np.where(fomc_day(g.day) == 1, later(g.close), np.where(g.linked, np.roll(g.close[:, -1:], 1, 0), np.nan)), scope='continuous', state=dict(px=np.nan, now=np.nan),
          step=lambda b, s: (s.__dict__.update(now=s.px) if b.minute == 0 else None, s.__dict__.update(px=b.close), s.now if b.linked else np.nan)[2])
    plant('honest', lambda g: g.close)
    compute(bars, registry=mine)
    t = examine(bars, mine, cuts=6)
    assert t['ok'].to_dict() == {o.name: o.name == 'honest' for o in mine}
    assert t.loc['both_look_up', ['leaks', 'only_one']].sum() == 0 and t['dated'].to_dict() == {o.name: o.name == 'both_look_up' for o in mine}
    with pytest.raises(CheckFailed, match='4 features do not pass: step_leaks, step_looks_up, both_look_up, memory_and_fomc'): check_features(bars, mine, cuts=6)


def test_only_what_follows_the_schedule_knows_the_date(spy):
    assert not dated(drawn(spy['2025-07-07':'2025-08-29'])).any()
    with pytest.raises(DataError, match='sessions in a row have a counterpart'): dated(spy['2025-11-24':'2025-12-01'], names=['r1', 'logrv_d5'])


def test_what_is_recorded_beside_the_bars_is_audited_where_it_is_made(shared):
    import test_flow
    seconds, trades = test_flow.minute(1500)
    f = lambda s: flow_minutes(s, trades[:s.index[-1]])
    ahead = lambda s: f(s).assign(ofi_60=f(s)['ofi_60'].shift(-1))
    assert audit_record(seconds, f, '1min', cuts=8)['leaks'].sum() == 0
    report = audit_record(seconds, ahead, '1min', cuts=8)
    assert report.index[report['leaks'] > 0].tolist() == ['ofi_60']
    c = pd.read_parquet(shared('spy_chain_0-7dte.parquet')).rename(columns=dict(type='right', openInterest='open_interest')).astype(dict(right=str))
    day = pd.Timestamp('2026-07-02').date()
    rows = c.set_index(pd.DatetimeIndex(c.quote_ts).tz_convert('America/New_York').rename('Datetime')).sort_index(kind='stable').loc[str(day)]
    honest = audit_record(rows, lambda o: smile_day(o, day), '1min', cuts=6)
    early = audit_record(rows, lambda o: smile_day(o, day).bfill(), '1min', cuts=6)
    assert honest['leaks'].sum() == 0 and early['leaks'].gt(0).all()


# constant memory, constant work

def test_no_feature_holds_or_does_more_after_forty_sessions(spy):
    "Every declaration, kept, off or an ingredient, in all groups: 40 real sessions."
    bars = drawn(spy['2025-03-03':'2025-04-28'])
    g = growth(bars.assign(ba_open=bars['close'] - .01, ba_close=bars['close'] + .01))
    assert len(set(bars.index.date)) == 40 and list(g.index) == [f.name for f in REGISTRY] and {'base', *(f'G{i}' for i in range(1, 11))} == set(g['group'])
    assert g['grows'].eq('').all(), g[g['grows'] != '']
    assert set(' '.join(g['at']).split()) == {'0', '29', '389'}, g[g['at'] != '']  # a norm turns in the first minute; volume's level is judged in the 30th and the last
    fills = g.index[g['held'] != g['held_session']].tolist()
    assert set(fills) == {'diurnal', 'sigma14', 'volume_level', 'norm_volume', 'norm_illiq'}, fills


def test_work_is_the_features_own(spy):
    "A collector that calls back, as test tools make it, is not counted as work of whichever feature it interrupts."
    def count(*a): return [None for _ in range(300)]
    mine, was = Registry(), gc.get_threshold()
    feature('boxes', lambda g: g.close, step=lambda b, s: s.update(last=[[b.close] for _ in range(20)]) or b.close, state=lambda: {}, registry=mine, group='X', formula='-', inputs=('close',))
    gc.callbacks.append(count); gc.set_threshold(15)
    try: g = growth(spy['2025-03-03':'2025-03-14'], mine).loc['boxes']
    finally: gc.callbacks.remove(count); gc.set_threshold(*was)
    assert g['peak'] < 300 and g['at'] == '' and gc.isenabled()


def test_growth_is_caught_on_real_sessions(spy):
    mine = Registry()
    def plant(name, step, **kw): feature(name, lambda g: g.close, step=step, registry=mine, group='X', formula='-', inputs=('close',), **kw)
    plant('ok', lambda b, s: b.close)
    plant('hoard', lambda b, s: (s.append(b.close), b.close)[1], state=lambda: [], scope='continuous')
    plant('once_a_week', lambda b, s: (s.append(b.day) if b.minute == 0 and b.weekday < 3 else None, b.close)[1], state=lambda: [], scope='continuous')
    plant('array', lambda b, s: setattr(s, 'x', np.append(s.x, b.close)) or b.close, state=lambda: type('S', (), dict(x=np.zeros(0)))(), scope='continuous')
    plant('text', lambda b, s: setattr(s, 'x', s.x + f'{b.close} ') or b.close, state=dict(x=''), scope='continuous')
    plant('loop', lambda b, s: [b.close for _ in range(b.minute + 1)][-1])
    g = growth(spy['2025-03-03':'2025-04-28'], mine)['grows']
    assert g['ok'] == '' and g['loop'] == 'work' and all('state over sessions' in g[o] for o in ('hoard', 'once_a_week', 'array', 'text')), g
    with pytest.raises(DataError, match='5 sessions are too few'): growth(spy['2025-03-03':'2025-03-07'], mine)


# memory, emptiness, warm-up

def test_a_feature_that_remembers_more_than_it_declares_is_named(spy):
    "An average that runs on has seen every bar: no number of sessions is the right one, if it is slow and has values from the first bar."
    bars, mine = spy['2025-07-07':'2025-08-29'], Registry()
    def mean(g, w, out=np.nan): return np.array([[out := x if out != out else out if x != x else (1 - w)*out + w*x for x in day] for day in g.close.tolist()])
    def step(b, s, w): s.x = b.close if s.x != s.x else s.x if b.close != b.close else (1 - w)*s.x + w*b.close; return s.x
    def plant(name, w, n): feature(name, partial(mean, w=w), registry=mine, group='mine', formula='-', scope='continuous', sessions=n, inputs=('close',), state=dict(x=np.nan), step=partial(step, w=w))
    for n in (0, 1, 5): plant(f'slow_{n}', .001, n)
    plant('quick', .1, 1)
    feature('days', lambda g: np.arange(len(g))[:, None] + 0*g.close, registry=mine, group='mine', formula='sessions so far', scope='continuous', inputs=('close',), state=dict(n=-1),
            step=lambda b, s: setattr(s, 'n', s.n + (b.minute == 0)) or s.n + 0*b.close)
    feature('yesterday', lambda g: np.where(g.linked, np.roll(g.close[:, -1:], 1, 0), np.nan) + 0*g.close, registry=mine, group='mine', formula="yesterday's close", scope='continuous', sessions=1, inputs=('close',),
            state=dict(was=np.nan, now=np.nan), step=lambda b, s: (s.__dict__.update(was=s.now if b.linked else np.nan) if b.minute == 0 else None, s.__dict__.update(now=b.close), s.was + 0*b.close)[2])
    v = examine(bars, mine, cuts=6)['verdict']
    for o in ('slow_0', 'slow_1', 'slow_5', 'days'): assert 'remembers more than' in v[o], v
    assert v['quick'].startswith('has another value on') and v['yesterday'] == 'ok', v
    with pytest.raises(CheckFailed, match='5 features do not pass') as e: check_features(bars, mine, cuts=6)
    assert 'slow_1: remembers more than the 1 session declared' in e.value.why


def test_an_empty_column_is_a_fault_unless_the_bars_lack_what_it_reads(spy):
    bars, mine = spy['2025-07-07':'2025-08-29'], Registry()
    plant = partial(feature, registry=mine, group='mine', formula='-')
    plant('infinite', lambda g: g.close/0., inputs=('close',))
    plant('nowhere', lambda g: g['level1.nonsense'], inputs=('level1.nonsense',))
    plant('quotes', lambda g: g.ba_close - g.ba_open, inputs=('ba_open', 'ba_close'))
    plant('through', lambda g: 2*g.nowhere, inputs=('nowhere',))
    plant('soon', lambda g: g.close - g.open, inputs=('open', 'close'), warmup=10)
    t = examine(bars, mine, cuts=2)
    assert t['verdict'].to_dict() == dict(infinite='no value in 40 sessions: the bars have all that it reads, and its formula is never finite', nowhere='not checked: the bars do not carry level1.nonsense',
        quotes='not checked: the bars do not carry ba_open, ba_close', through='not checked: the bars do not carry level1.nonsense', soon='has a value on 360 rows before its bar 10') and not t['ok'].any()
    with pytest.raises(CheckFailed, match='2 features do not pass: infinite, soon'): check_features(bars, mine, cuts=2)
    assert check_features(bars, mine, ['nowhere'], cuts=2)['verdict'].str.startswith('not checked').all()


def test_everything_declared_remembers_what_it_says(spy):
    "Kept or off, on real sessions."
    bars = drawn(spy['2025-03-03':'2025-04-28'])
    found = memory(bars.assign(ba_open=bars['close'] - .01, ba_close=bars['close'] + .01, iv_close=.2 + bars['close']/1e5))
    assert list(found.index) == REGISTRY.names(off=True) and found[['enough', 'fewer_is_empty']].all(axis=None), found[found['beyond'] + found['early'] > 0]


@pytest.mark.parametrize('given, names, error, word', [(lambda b: b, [], UsageError, 'no feature is named'), (lambda b: b.reset_index(drop=True), ['r1'], DataError, 'the bars have no times'),
                                                       (lambda b: b.tz_localize(None), ['r1'], DataError, 'time zone'), (lambda b: b[:0], ['r1'], DataError, 'no bars'), (lambda b: b[:100], ['r1'], DataError, '1 session is too few')])
def test_what_cannot_be_examined_is_refused_in_words(spy, given, names, error, word):
    with pytest.raises(error) as e: check_features(given(spy['2025-07-07':'2025-08-29']), names=names)
    assert word in str(e.value)


def test_a_short_record_still_shows_a_leak_and_what_is_drawn(spy):
    rng, bars = np.random.default_rng(0), spy['2025-07-07':'2025-07-11']
    mine = planted(mean=lambda g: g.close - np.nanmean(g.close), drawn=lambda g: rng.random(np.shape(g.close)), honest=lambda g: g.close - g.open)
    v = examine(bars, mine, cuts=6, short=True)['verdict']
    assert 'knew the future' in v['mean'] and v['drawn'].startswith('is random') and 'future' not in v['drawn'] and v['honest'] == 'ok'
    with pytest.raises(DataError, match='too few'): examine(bars, mine, cuts=6)
