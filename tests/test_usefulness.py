"""Usefulness on problems whose answer is known, and on real bars: what is kept, what is a copy, what is noise; nothing from later days."""
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import DataError
from spyresearch.features.batch import compute
from spyresearch.features.clusters import representative
from spyresearch.features.registry import REGISTRY
from spyresearch.models.experiment import Ledger
from spyresearch.models.folds import Fold, folds
from spyresearch.models.windows import Panel
from spyresearch.models.usefulness import Sample, adjusted_rand, bounds, consensus, decide, fit_heads, har_level, in_units, measured, probe_columns, ring, sample_of, structural, study

def all_features(bars): return Panel.from_bars(bars, features=REGISTRY.names(off=True))


BLOCKS = [Fold(i, 60 + 20*i, 80 + 20*i) for i in range(3)]
NAMES = ['wild', 'copy', 'lean', 'dull', 'never']


def planted(seed, D=120, M=20):
    "`wild` makes the variance and `copy` repeats it, `lean` moves the median, `dull` does nothing, `never` has no value."
    rng = np.random.default_rng(seed)
    wild, lean, dull = np.moveaxis(.7*rng.standard_normal((D, 1, 3)) + .7*rng.standard_normal((D, M, 3)), -1, 0)
    logrv = 2*np.log(1e-3) + wild + .3*rng.standard_normal((D, M))
    y = np.exp(logrv/2)*(rng.standard_normal((D, M)) + .5*lean)
    x = np.stack([wild, wild + .2*rng.standard_normal((D, M)), lean, dull, np.nan*dull], -1).astype(np.float32)
    return Sample(NAMES, ('5',), [date(2024, 10, 1) + timedelta(i) for i in range(D)], np.arange(D), x, y[..., None], logrv[..., None], np.full((D, M, 1), 2*np.log(1e-3)))


def until(s, n): return replace(s, dates=s.dates[:n], **{o: getattr(s, o)[:n] for o in ('day', 'x', 'y', 'logrv', 'level')})


def outcome(s, blocks=BLOCKS, needed=None, first=('wild',), seed=0):
    some, silent = measured(s)
    found = study(some, blocks, seed=seed)
    groups = consensus(found.groups)
    return found, decide(found, groups, representative(groups, some.frame(slice(None)), first), needed or {}, silent)


@pytest.mark.parametrize('seed', range(3))
def test_useful_is_kept_its_copy_a_duplicate_and_noise_dropped(seed):
    found, listed = outcome(planted(seed), seed=seed)
    assert listed['decision'][['wild', 'copy', 'lean', 'never']].tolist() == ['kept', 'duplicate of wild', 'kept', 'not measured']
    assert listed.loc['dull', 'decision'] in ('below noise', 'no value shown')
    t = found.table('5')
    assert t.loc['wild', 'low'] > found.best_probe('5') and t['value'].iloc[-found.probes:].abs().max() < t.loc['lean', 'value']/3


def test_nothing_useful_keeps_nothing():
    s = planted(5); rng = np.random.default_rng(0)
    found, listed = outcome(replace(s, x=rng.standard_normal(s.x.shape).astype(np.float32)))
    assert set(listed['decision']) <= {'below noise', 'no value shown'}


def test_a_needed_feature_stays_and_the_list_says_why():
    _, listed = outcome(planted(0), needed=dict(dull='HAR', never='the calendar'))
    assert listed.loc['dull', 'decision'] == 'structural' and 'needed by HAR' in listed.loc['dull', 'reason'] and 'by the measure' in listed.loc['dull', 'reason']
    assert listed.loc['never', 'decision'] == 'not measured' and 'the calendar' in listed.loc['never', 'reason']


def test_what_knows_the_future_shows_as_the_most_valuable():
    s, _ = measured(planted(1))
    leak = (s.y/np.exp(s.logrv/2)).astype(np.float32)
    found, listed = outcome(replace(s, names=[*s.names, 'leak'], x=np.concatenate([s.x, leak], -1)))
    assert found.table('5')['value'].idxmax() == 'leak' and listed.loc['leak', 'decision'] == 'kept'


def test_later_days_change_nothing():
    s, _ = measured(planted(2)); whole, early = study(s, BLOCKS), study(until(s, 80), BLOCKS[:1])
    features = len(s.names)
    assert whole.groups[0].equals(early.groups[0])
    np.testing.assert_array_equal(whole.worth[:features, :, 60:80], early.worth[:features, :, 60:80])


def test_the_last_day_before_a_block_does_not_teach():
    "The embargo: labels of the day before the first scored one are not learned from."
    s, _ = measured(planted(3)); y = s.y.copy(); y[59] *= 50
    np.testing.assert_array_equal(study(s, BLOCKS[:1]).worth[:4, :, 60:80], study(replace(s, y=y), BLOCKS[:1]).worth[:4, :, 60:80])


def test_the_ledger_counts_every_feature_and_every_setting_once():
    s, _ = measured(planted(0)); book, n = Ledger(), len(s.names)
    def look(**kw): return study(s, **(dict(blocks=BLOCKS[:1], repeats=1, ledger=book) | kw)).tried
    def sharp(block): return s.level
    tried = [look(), look(), look(seed=1), look(cut=.9), look(repeats=2), look(level=sharp), look(blocks=BLOCKS[:2])]
    assert tried == [n, n, 2*n, 3*n, 4*n, 5*n, 6*n]
    config = book.tried[0]['config']
    assert config['way']['scale']['rounds'] and config['way']['shape']['trees'] and config['level'] == 'crude' and config['share'] == 1/3


def test_too_few_labels_are_refused():
    with pytest.raises(DataError, match='too few'): fit_heads(np.zeros((9, 2), np.float32), np.zeros(9), np.zeros(9))


def test_a_ring_has_no_fixed_point():
    for n in (2, 3, 50):
        o = ring(n, np.random.default_rng(n))
        assert sorted(o) == list(range(n)) and (o != np.arange(n)).all()


def test_no_probe_is_a_rare_flag():
    s = planted(0); flag = np.zeros_like(s.x[..., :1]); flag[::20] = 1
    s = replace(s, names=[*s.names, 'flag'], x=np.concatenate([s.x, flag], -1))
    assert {s.names[c] for k in range(5) for c in probe_columns(s, np.random.default_rng(k))} == {'wild', 'copy', 'lean', 'dull'}


def test_one_value_is_not_credited_twice():
    "Two columns that shared a cluster in most folds share one in the list."
    votes = pd.DataFrame([[1, 1, 1], [1, 1, 2], [2, 2, 3], [3, 2, 3]], index=list('abcd'))
    c = consensus(votes)
    assert c['a'] == c['b'] != c['c'] == c['d']


def test_intervals_cover():
    rng = np.random.default_rng(0)
    inside = [(lambda b: b[0] <= 0 <= b[1])(bounds(rng.standard_normal(80), rng)) for _ in range(200)]
    assert .87 <= np.mean(inside) <= .99


def test_rand_index_is_sklearns():
    from sklearn.metrics import adjusted_rand_score
    rng = np.random.default_rng(4)
    for k in (1, 2, 5, 40): assert adjusted_rand(a := rng.integers(0, k, 40), b := rng.integers(0, 3, 40)) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


# on real bars

@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))['2025-01-02':'2025-05-30']


@pytest.fixture(scope='module')
def panel(spy): return all_features(spy)


def test_a_panel_holds_what_is_computed(spy, panel):
    x = compute(spy, ['rsi_14', 'adx_14', 'logrv_60'])
    day = spy.index.tz_localize(None).to_numpy().astype('datetime64[D]')
    at = np.searchsorted(np.array(panel.days, 'datetime64[D]'), day), (spy.index.hour*60 + spy.index.minute - 570).to_numpy()
    for o in x: np.testing.assert_array_equal(panel.x[*at, panel.names.index(o)], x[o].to_numpy(np.float32))


def test_levels_and_units_rest_on_the_past(spy, panel):
    s, early = sample_of(panel), sample_of(all_features(spy[:'2025-04-15']))
    n = len(early.day)
    np.testing.assert_array_equal(early.level, s.level[:n])
    block = folds(panel.days[:early.day[-1] + 1], refit=10, least=60)[-1]
    old = early.day <= block.stop
    np.testing.assert_allclose(har_level(all_features(spy[:'2025-04-15']), early)(block)[old], har_level(panel, s)(block)[:n][old], rtol=1e-9)


def test_units_are_those_declared(panel):
    s, _ = measured(sample_of(panel))
    u = in_units(s.x, s.names, s.level[..., 0])
    col = lambda a, o: a[40:, :, s.names.index(o)]
    np.testing.assert_allclose(col(u, 'logrv_30'), col(s.x, 'logrv_30') - s.level[40:, :, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(col(u, 'r15'), col(s.x, 'r15')/np.exp(s.level[40:, :, 0]/2), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(col(u, 'rsi_14'), col(s.x, 'rsi_14'))


def test_volatility_is_worth_most_and_the_clock_exactly_nothing(panel):
    s, silent = measured(sample_of(panel, ('30',)))
    found = study(s, folds(panel.days, refit=41, least=60)[:1], repeats=1)
    t = found.table('30')
    assert t['value'].idxmax().startswith(('logrv', 'parkinson', 'garman', 'atr')) and t.loc['logrv_30', 'low'] > 10*max(found.best_probe('30'), 0)
    assert t.loc['minute_cos', 'value'] == 0 and 'half_day' in silent and 'log_spread' in silent


def test_every_reader_is_named():
    who = structural()
    assert 'HAR' in who['logrv_d22'] and 'boosted' in who['vwap_dist'] and 'calendar' in who['opex'] and 'r10' not in who
