"""A model that reads what a day may lack has a twin that does not; and what a forecaster does with bad input."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from spyresearch.core import DataError, ModelError, UsageError
from spyresearch.features.batch import compute
from spyresearch.features.registry import REGISTRY, registry_hash
from spyresearch.bars import RAW_COLUMNS
from spyresearch.models import experiment
from spyresearch.models.baselines import BASELINES, Har
from spyresearch.models.boosted import FLOWS, Boosted, BoostedFlow, BoostedImplied
from spyresearch.models.forecaster import KINDS, SOURCES, Scaled, Seen, Targets, blocks, load
from spyresearch.models.metrics import pinball_bp, r2
from spyresearch.models.windows import Panel
from spyresearch.sessions import minutes
from spyresearch.store import Store
from spyresearch.tws.market import demo_tape

DAYS, CUT = 110, 85 # sessions, of which the first teach
day = np.arange(DAYS)

@pytest.fixture(scope='module')
def bars(): return demo_tape(days=DAYS, older=30).bars['TRADES', '1 min']

@pytest.fixture(scope='module')
def plain(bars): return Panel.from_bars(bars)

@pytest.fixture(scope='module')
def boosted(plain):
    w = plain.windows(); old = w.day < CUT
    return Boosted().fit(w[old], Targets.of(w)[old])

def beside(bars, names, seed, memory=0.):
    "Bars with what features of these names carry: noise, each minute remembering a part of the one before."
    from scipy.signal import lfilter
    carried = [o for f in REGISTRY.plan(names) for o in f.inputs if o.partition('.')[0] in SOURCES]
    z = lfilter([np.sqrt(1 - memory**2)], [1, -memory], np.random.default_rng(seed).normal(size=(len(bars), len(carried))), axis=0)
    return bars.assign(**dict(zip(carried, z.T)))

def moved(t, e): return replace(t, y=t.y*np.exp(e/2)[:, None], logrv=t.logrv + e[:, None])

def without(panel, days, names, minutes=slice(None)):
    "The panel without these columns on these days (bool) and minutes."
    x = panel.x.copy()
    for o in names: x[np.flatnonzero(days)[:, None], np.arange(390)[minutes], panel.names.index(o)] = np.nan
    return replace(panel, x=x)

def trial(panel, size, seed):
    "Fit before CUT on labels moved by `size` where depth leans, judge after it: (model, skill in pinball, r2 of twin, model and truth by horizon)."
    w = panel.windows(); e = size*(abs(panel.at(['mlofi_60'], w.day, w.minute)[:, 0]) > 1); t = moved(Targets.of(w), e)
    m = BoostedFlow().fit(w[w.day < CUT], t[w.day < CUT], seed); new = w.day > CUT; out = []
    for j in range(4):
        y, v, truth = t.y[new][:, j], t.logrv[new][:, j], 2*np.log(m.other.sigma(w[new])[:, j]) + e[new] - e[new].mean()
        loss = [np.nanmean(pinball_bp(y, o.quantiles(w[new])[:, j])) for o in (m.other, m)]
        out.append((100*(1 - loss[1]/loss[0]), r2(v, 2*np.log(m.other.sigma(w[new])[:, j])), r2(v, 2*np.log(m.sigma(w[new])[:, j])), r2(v, truth)))
    return m, np.array(out)

@pytest.mark.parametrize('seed', range(3))
def test_a_known_effect_is_found(bars, seed):
    "Variance that is half as large again after a lean of the book: most of what can be known of it is."
    m, out = trial(Panel.from_bars(beside(bars, FLOWS, seed)), .4, seed)
    skill, twin, own, truth = out.T
    assert (m.params['share'][:5] > .3).all() and (skill > 0).all()
    assert ((own - twin).sum() > .6*(truth - twin).sum()) and (own > twin).all()

@pytest.mark.parametrize('memory', [0, .995])
@pytest.mark.parametrize('seed', range(3))
def test_no_effect_does_no_harm(bars, seed, memory):
    "Noise, quick or slow over hours, costs less than a thousandth of the pinball loss on any horizon."
    m, out = trial(Panel.from_bars(beside(bars, FLOWS, seed, memory)), 0, seed)
    assert (out[:, 0] > -.1).all() and (out[:, 2] - out[:, 1] > -.005).all(), (m.params['share'][:5], out)

@pytest.mark.parametrize('seed', range(2))
def test_few_sessions_of_noise_do_no_harm(bars, seed):
    "Thirty sessions of flow are enough to try, and not to believe."
    m, out = trial(without(Panel.from_bars(beside(bars, FLOWS, seed)), day < CUT - 30, FLOWS), 0, seed)
    assert not m.notes['alone'] and (out[:, 0] > -.1).all(), (m.params['share'][:5], out)

def test_the_same_seed_gives_the_same_model(bars):
    w = Panel.from_bars(beside(bars, FLOWS, 0)).windows(); t = Targets.of(w); old = w.day < 60
    a, b = (BoostedFlow().fit(w[old], t[old], 4) for _ in range(2))
    assert a.params.keys() == b.params.keys() and all(np.array_equal(a.params[k], b.params[k], equal_nan=True) for k in a.params)

def test_from_day_files_the_twin_answers_where_the_block_is_not_whole(bars, tmp_path, plain, boosted):
    "Day files with a day without depth, an hour without it, and a minute that lacks one column: row by row, bit by bit, kept and read."
    all_ = beside(bars, FLOWS, 1); days = plain.days; n = all_.index.date
    two = [o for o in all_ if o.startswith('level2.')]; minute = all_.groupby(n).cumcount().to_numpy()
    all_.loc[n == days[90], two] = np.nan; all_.loc[(n == days[91]) & (minute >= 100) & (minute < 160), two] = np.nan
    all_.loc[(n == days[92]) & (minute == 104), 'level2.mlofi_300'] = np.nan; all_.loc[n == days[93], [o for o in all_ if '.' in o]] = np.nan
    both = bars.join(compute(all_)).reindex(columns=RAW_COLUMNS + REGISTRY.names()); store = Store(tmp_path/'data', 'simulated:demo')
    for d, df in both.groupby(both.index.date): store.write_daily(d, df.reindex(minutes(d)), registry_hash())
    panel = Panel.from_store(store); w = panel.windows(); assert len(panel) == DAYS; t = Targets.of(w); old, new = w.day < CUT, w.day > CUT
    m = BoostedFlow().fit(w[old], t[old]); back = load(m.save(tmp_path/'model'))
    told = back.answered(w[new]).set_index([w.day[new], w.minute[new]])
    assert (told.loc[90].why == 'level 2 missing: boosted answers').all() and (told.loc[93].why == 'level 1 missing, level 2 missing: boosted answers').all()
    assert told.loc[91].by.tolist() == ['boosted' if 100 <= k < 160 else 'boosted_flow' for k in told.loc[91].index]
    assert told.loc[92].index[told.loc[92].why != ''].tolist() == [104] and told.loc[92, 104].why == 'level 2 incomplete: boosted answers'
    silent = told.index[told.by == '']; assert silent.tolist() == [(107, 259)] # five minutes after one that the demo lacks nobody answers
    assert (told.drop([90, 91, 92, 93]).drop(silent).by == 'boosted_flow').all() and m.params['share'].shape == (9,)
    theirs, q = (told.by == 'boosted').to_numpy(), back.quantiles(w[new])
    np.testing.assert_array_equal(q[theirs], boosted.quantiles(plain.windows(w.day[new], w.minute[new]))[theirs])
    np.testing.assert_array_equal(q, m.quantiles(w[new])); np.testing.assert_array_equal(back.sigma(w[new])[theirs], boosted.sigma(w[new])[theirs])
    one = [back.quantiles(w[i]) for i in np.flatnonzero(new)[::97]] # a row at a time, as it is live
    np.testing.assert_allclose(np.concatenate(one), q[::97], rtol=1e-12)

def test_without_any_flow_the_twin_answers_alone_and_it_is_said(plain, boosted, tmp_path):
    w = plain.windows(); t = Targets.of(w); old = w.day < CUT
    for cls in (BoostedFlow, BoostedImplied):
        m = load(cls().fit(w[old], t[old]).save(tmp_path/cls.name)); told = m.answered(w[w.day > CUT])
        told = told[told.by != '']; assert set(told.by) == {'boosted'} and all(o.startswith('there is nothing to learn from (0 of ') and o.endswith('boosted answers') for o in told.why)
        np.testing.assert_array_equal(m.quantiles(w[w.day > CUT]), boosted.quantiles(w[w.day > CUT]))

def test_fewer_labels_than_it_needs(bars):
    "Twelve sessions with flow: refused, and the twin answers all rows, those with flow too."
    panel = without(Panel.from_bars(beside(bars, FLOWS, 0)), day < CUT - 12, FLOWS); w = panel.windows(); t = Targets.of(w); old = w.day < CUT
    told = BoostedFlow().fit(w[old], t[old]).answered(w[w.day > CUT])
    told = told[told.by != '']; assert set(told.by) == {'boosted'} and told.why.str.contains('boosted_flow needs 1,500 labels at 5 with all it reads, and has 9').all()

def test_what_a_day_may_lack_is_known_from_the_declarations():
    "Every feature of quotes, depth, options and other symbols rests on a source that may be absent, and no other feature does."
    for f in REGISTRY:
        if f.group != 'base': assert bool(blocks([f.name])) == (f.group in ('G7', 'G8', 'G9', 'G10')), f
    for cls in [*BASELINES.values(), Boosted]: assert not blocks(cls.reads)
    for cls in KINDS.values(): assert not blocks(cls.reads) or not blocks(cls.twin.reads)

@pytest.mark.parametrize('name', ['ofi_60', 'mlofi_60', 'iv_har', 'qqq_rel_5', 'log_spread'])
def test_a_class_without_a_twin_is_refused(name):
    before = set(KINDS)
    with pytest.raises(UsageError, match='names no twin'): type('Lone', (Har,), dict(name='lone', reads=(name,)))
    with pytest.raises(UsageError, match='no registered forecaster'): type('Lone', (Har,), dict(name='lone', reads=(name,), twin=object))
    with pytest.raises(UsageError, match='reads level 1 and level 2 too'): type('Lone', (Har,), dict(name='lone', reads=(name,), twin=BoostedFlow))
    with pytest.raises(UsageError, match='no such feature: moon'): type('Lone', (Har,), dict(name='lone', reads=('moon',)))
    assert set(KINDS) == before

def test_a_column_that_was_not_declared_cannot_be_read(bars, monkeypatch):
    "By name, nor by taking the array as it is; in fitting, nor in answering."
    class Sly(Har):
        name, late = 'sly', False
        def raw(self, windows):
            if self.late or 'beta' not in self.params: windows.panel.at(['mlofi_60'], windows.day, windows.minute)
            return super().raw(windows)
    monkeypatch.delitem(KINDS, 'Sly')
    w = Panel.from_bars(beside(bars, FLOWS, 0)).windows(); t = Targets.of(w); old = w.day < 50
    sly = Sly().fit(w[old], t[old]); sly.late = True
    with pytest.raises(UsageError, match='sly reads mlofi_60 undeclared'): sly.quantiles(w[:3])
    with pytest.raises(UsageError, match='sly reads mlofi_60 undeclared'): sly.fit(w[old], t[old])
    seen = Seen(w.panel, sly); at = [w.panel.names.index(o) for o in seen.names]
    assert not set(FLOWS) & set(seen.names); np.testing.assert_array_equal(seen.x, w.panel.x[..., at])
    assert replace(w[:3], panel=seen).past.shape[2] == len(seen.names)

# bad input

def test_an_empty_feature_is_named(plain):
    w = plain.windows(); t = Targets.of(w); old = w.day < CUT
    for cls, name in ((Har, 'logrv_d5'), (Boosted, 'rsi_14'), (BoostedFlow, 'rsi_14'), (BASELINES['ewma_diurnal'], 'logdiur_30')):
        bad = without(plain, day >= 0, [name]).windows(w.day[old], w.minute[old])
        with pytest.raises(ModelError, match=f'{name} is empty in all'): cls().fit(bad, t[old])

def test_a_constant_target_is_not_learned(plain):
    "One horizon: that one is silent, trees refuse; all of them, or prices that stand still: nothing to learn from."
    w = plain.windows(); t = Targets.of(w); old = w.day < CUT; at15 = np.arange(9) == 1
    for t15 in (replace(t, y=np.where(at15, 1e-4, t.y)), replace(t, logrv=np.where(at15, -12., t.logrv))):
        m = Har().fit(w[old], t15[old]); q = m.quantiles(w[-60:-20])
        assert m.notes['silent'].keys() == {'15'} and np.isnan(q[:, 1]).all() and np.isfinite(q[:, [0, 2]]).all()
        with pytest.raises(ModelError, match='need 500 labels at 15') as e: Boosted().fit(w[old], t15[old])
        assert 'labels are equal' in e.value.why
    for cls in (*BASELINES.values(), Boosted, BoostedFlow):
        with pytest.raises(ModelError, match='nothing to learn from'): cls().fit(w[old], replace(t, y=0*t.y)[old])
    calm = replace(plain, **{o: np.where(np.isnan(plain.close), np.nan, 500.) for o in ('open', 'high', 'low', 'close')}).windows(w.day[old], w.minute[old])
    with pytest.raises(ModelError, match='nothing to learn from'): Har().fit(calm, Targets.of(calm))

@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_row_with_an_unknown_column_gets_no_answer(plain, boosted, value):
    "What was always known in training: that row is empty and says why, and no other row changes. What is unknown every morning is no news."
    rows = plain.windows([100]*3, [99, 104, 109]); q = boosted.quantiles(rows)
    for name in ('logrv_5', 'vwap_dist', 'rsi_14', 'dow'):
        x = plain.x.copy(); x[100, 104, plain.names.index(name)] = value; bad = replace(plain, x=x).windows(rows.day, rows.minute)
        got, told = boosted.quantiles(bad), boosted.answered(bad)
        assert np.isnan(got[1]).all() and name in told.why[1] and told.by.tolist() == ['boosted', '', 'boosted']
        np.testing.assert_array_equal(got[[0, 2]], q[[0, 2]])
    assert np.isfinite(boosted.quantiles(plain.windows([100], [14]))[0, :5]).all() and np.isnan(plain.at(['eff_120'], [100], [14])).all()

def test_a_model_of_other_features_is_refused(plain, boosted, bars, tmp_path, monkeypatch):
    "A feature that is computed otherwise, or gone; another list to read; day files that lack a column."
    boosted.save(tmp_path); load(tmp_path)
    monkeypatch.setitem(REGISTRY.features, 'rsi_14', replace(REGISTRY['rsi_14'], window=15))
    with pytest.raises(ModelError, match='boosted does not fit this version') as e: load(tmp_path)
    assert e.value.why.startswith('rsi_14: computed otherwise')
    monkeypatch.undo(); monkeypatch.setattr(REGISTRY, 'features', {k: v for k, v in REGISTRY.features.items() if k != 'rsi_14'}) # put back by `setitem` it would stand last
    with pytest.raises(ModelError, match='does not fit'): load(tmp_path)
    monkeypatch.undo(); monkeypatch.setattr(Boosted, 'reads', ('r5',))
    with pytest.raises(ModelError) as e: load(tmp_path)
    assert 'another list of features' in e.value.why
    monkeypatch.undo(); load(tmp_path)
    with pytest.raises(DataError, match='lack rsi_14'): boosted.quantiles(replace(plain, names=[o.replace('rsi_14', 'x') for o in plain.names]).windows([100], [100]))
    about = json.loads((tmp_path/'model.json').read_text()); assert {'rsi_14', 'logrv_5', 'vwap_dist'} <= about['features'].keys()

def test_a_model_is_read_by_another_process(boosted, tmp_path):
    "The fingerprints of features are the same there, whatever the order of its hashes."
    boosted.save(tmp_path); code = f'import spyresearch.models.boosted; from spyresearch.models.forecaster import load; print(load({str(tmp_path)!r}))'
    for seed in ('1', '2'):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={'PYTHONHASHSEED': seed, 'PATH': ''})
        assert done.stdout.strip() == 'Boosted(boosted, fitted)', done.stderr

@pytest.mark.parametrize('cls', [*BASELINES.values(), Boosted, BoostedFlow, BoostedImplied])
def test_too_little_history(plain, cls):
    "No rows, a morning, ten days, thirty: an error that says so, or quantiles where there are labels and nothing elsewhere."
    w = plain.windows(); t = Targets.of(w)
    for ok in (w.day < 0, (w.day == 0) & (w.minute < 50), w.day < 10, w.day < 30):
        try: q = cls().fit(w[ok], t[ok].only(np.repeat((w.day[ok] < 29)[:, None], 9, 1))).quantiles(w[-300:])
        except ModelError as e: assert e.what and (e.why or e.todo)
        else: assert (np.isfinite(q).all(2) | np.isnan(q).all(2)).all() and (np.diff(q[np.isfinite(q).all(2)], axis=1) >= 0).all()
    with pytest.raises(ModelError, match='nothing to learn from'): cls().fit(w[:0], t[:0])

def test_not_fitted_and_no_rows(plain, boosted):
    with pytest.raises(ModelError, match='not been fitted'): BoostedFlow().quantiles(plain.windows([100], [100]))
    assert issubclass(BoostedFlow, Scaled) and BoostedFlow.config()['reads'] == list(FLOWS)

def test_in_an_experiment_it_is_its_twin_where_nothing_was_recorded(plain, monkeypatch):
    monkeypatch.setitem(experiment.MEMBERS, 'boosted_flow', BoostedFlow)
    ev = experiment.evaluate(plain, 'har,boosted,boosted_flow', score_from=plain.days[100])
    np.testing.assert_array_equal(ev.q['boosted_flow'], ev.q['boosted']); np.testing.assert_array_equal(ev.sigma['boosted_flow'], ev.sigma['boosted'])
    assert ev.rows('5').any() and ev.trials == 3
