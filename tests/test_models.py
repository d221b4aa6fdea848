"""The models on real prices, and against their own future."""
import json
from dataclasses import replace
from datetime import date

import jsonschema
import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import DataError, ModelError, UsageError
from spyresearch.models import experiment
from spyresearch.models.baselines import Har
from spyresearch.models.experiment import SCHEMA, Evaluation, Ledger, evaluate, train
from spyresearch.models.forecaster import Targets, load
from spyresearch.models.targets import HORIZONS, origins
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.tws.market import demo_tape

PINNED = {'5': (39075, 2.060, -5.77, -5.40, -1.08, -.76), '15': (38033, 3.511, -5.82, -5.55, -1.12, -.70), # the project's protocol, 521 days
          '30': (36470, 4.934, -5.55, -5.41, -1.07, -.75), '60': (33344, 6.986, -4.97, -5.04, -1.14, -.84)}

@pytest.fixture(scope='module')
def demo(): return demo_tape(days=110, older=30).bars['TRADES', '1 min']

@pytest.fixture(scope='module')
def real(shared):
    bars = read_bars(shared('spy_1min.parquet')).loc['2023-11-06':'2026-03-31']
    paid = pd.read_csv(shared('spy_dividends.csv'))
    return bars, {date.fromisoformat(d[:10]): float(c) for d, c in paid.iloc[:, :2].to_numpy()}

def same(a:Evaluation, b:Evaluation, ok):
    "The forecasts of the same origins agree number for number."
    for k in a.q:
        np.testing.assert_array_equal(a.q[k][:len(ok)][ok], b.q[k][:len(ok)][ok], err_msg=k)
        np.testing.assert_array_equal(a.sigma[k][:len(ok)][ok], b.sigma[k][:len(ok)][ok], err_msg=k)

def test_the_pinned_table(real):
    "HAR and the baselines on the protocol's days: the same origins, no worse a HAR, gaps near the published ones."
    panel = Panel.from_bars(*real, 'replay:spy_1min')
    full = [d for d, n in zip(panel.days, panel.n) if n == 390]
    assert (len(panel), len(full)) == (601, 594)
    ev = evaluate(panel, 'const,tod,ewma_diurnal,garch_t,har', score_from=full[-521])
    table, body = ev.tables(), ev.to_json()
    jsonschema.validate(json.loads(json.dumps(body)), SCHEMA)
    assert body['n_days'] == 521
    for h, (n, loss, *gaps) in PINNED.items():
        assert (table['origins'].loc[h, 'origins'], table['origins'].loc[h, 'days']) == (n, 521)
        assert .995*loss < table['pinball'].loc[h, 'har'] < 1.003*loss
        ours = [body['horizons'][h]['models'][k]['skill_pct']['har'] for k in ('const', 'tod', 'ewma_diurnal', 'garch_t')]
        assert np.abs(np.subtract(ours, gaps)).max() < .4, (h, ours)
        assert abs(body['horizons'][h]['coverage']['80']['marginal'] - 80) < 1.5
    assert (table['skill'].loc[['1d', '2d', '3d', '5d'], 'ewma_diurnal'] > 1).all()

def test_trees_beat_har_on_real_prices(real):
    "The trees' scale is better than HAR's on 200 sessions that hold the wild April of 2025."
    bars, paid = real
    ev = evaluate(Panel.from_bars(bars.loc['2025-01-02':'2025-10-20'], paid), 'har,boosted')
    for h in ('5', '15', '30', '60'): assert ev.explained('boosted', h) > ev.explained('har', h)
    assert np.nanmean(ev.loss('boosted', '5')) < np.nanmean(ev.loss('har', '5'))

@pytest.mark.parametrize('source', ['demo', 'real'])
def test_no_forecast_knows_later_bars(source, request, demo):
    "All bars after a random moment are changed; every forecast up to it stays as it was, the weights included."
    bars = demo if source == 'demo' else request.getfixturevalue('real')[0].loc['2025-09-02':'2026-02-10']
    panel = Panel.from_bars(bars); whole = evaluate(panel); rng = np.random.default_rng(4)
    day, minute = whole.origins.day_ix.to_numpy(), whole.origins.minute.to_numpy()
    for d in rng.integers(62, len(panel) - 1, 2):
        m = int(rng.integers(20, 200)); late = bars.copy()
        after = late.index > session(panel.days[d]).open + pd.Timedelta(minutes=m)
        late.loc[after, ['open', 'high', 'low', 'close']] *= np.exp(.02*rng.normal(size=(after.sum(), 1)).cumsum(0)); late.loc[after, 'volume'] *= 3
        known = (day < d) | (day == d) & (minute <= m)
        other = evaluate(Panel.from_bars(late))
        same(whole, other, known)
        assert not np.array_equal(whole.q['har'][~known], other.q['har'][~known], equal_nan=True)

def test_a_planted_leak_is_caught(demo, monkeypatch):
    "A member that peeks one bar ahead is found by the same comparison."
    class Peek(Har):
        def raw(self, windows): return super().raw(replace(windows, minute=np.minimum(windows.minute + 1, windows.panel.n[windows.day] - 1)))
    monkeypatch.setitem(experiment.MEMBERS, 'har', Peek)
    late = demo.copy(); at = session(sorted(set(demo.index.date))[90]).open + pd.Timedelta(minutes=100)
    late.loc[late.index >= at, ['open', 'high', 'low', 'close']] *= 1.01
    a, b = (evaluate(Panel.from_bars(o), 'har') for o in (demo, late))
    known = (a.origins.day_ix < 90) | (a.origins.day_ix == 90) & (a.origins.minute < 100)
    with pytest.raises(AssertionError, match='har'): same(a, b, known.to_numpy())

def test_scrambled_labels_change_nothing_earlier(demo, monkeypatch):
    "Labels from a day on are noise: forecasts of folds that began before it are the same."
    panel = Panel.from_bars(demo); whole = evaluate(panel, 'tod,har,boosted'); cut = 80
    true = Targets.of
    def scrambled(w):
        t, late = true(w), (w.day >= cut)[:, None]
        noise = np.random.default_rng(0).normal(size=t.y.shape)
        return replace(t, y=np.where(late, .01*noise, t.y), logrv=np.where(late, noise, t.logrv))
    monkeypatch.setattr(Targets, 'of', scrambled)
    other = evaluate(panel, 'tod,har,boosted'); fold = whole.origins.fold.to_numpy(); day = whole.origins.day_ix.to_numpy()
    for k in whole.members: np.testing.assert_array_equal(whole.q[k][fold == 0], other.q[k][fold == 0], err_msg=k)
    np.testing.assert_array_equal(whole.frozen[day <= cut], other.frozen[day <= cut])
    np.testing.assert_array_equal(whole.q['ensemble'][day < cut], other.q['ensemble'][day < cut]) # on the day itself it learns by the minute
    assert not np.array_equal(whole.q['har'][fold == 1], other.q['har'][fold == 1], equal_nan=True)

def test_nothing_after_the_last_scored_day_is_read(demo):
    panel = Panel.from_bars(demo); last = panel.days[95]
    bad = demo.copy(); late = bad.index.date > last; bad.loc[late, ['open', 'high', 'low', 'close']] = .9*bad['close'][~late].iloc[-1] # as far as no bar is refused for
    a, b = (evaluate(Panel.from_bars(o), 'fast', score_to=last) for o in (demo, bad))
    assert a.days[-1] == last and a.origins.day.max() == last
    same(a, b, np.ones(len(a.origins), bool)); np.testing.assert_array_equal(a.y, b.y)
    first = evaluate(panel, 'fast', score_from=panel.days[70])
    assert first.origins.day.min() == panel.days[70]

def test_same_seed_same_numbers(demo):
    panel = Panel.from_bars(demo.iloc[-390*90:]); a, b = (evaluate(panel, 'har,boosted', seed=5) for _ in range(2))
    same(a, b, np.ones(len(a.origins), bool))
    assert not np.array_equal(a.q['boosted'], evaluate(panel, 'har,boosted', seed=6).q['boosted'], equal_nan=True)

def test_an_absent_session_leaves_a_hole_and_not_a_guess(demo):
    "After a missing session there is no forecast until the features are back, and no label across it."
    days = sorted(set(demo.index.date)); gone = days[70]
    ev = evaluate(Panel.from_bars(demo[demo.index.date != gone]), 'const,ewma_diurnal,har'); o = ev.origins
    after = o.day_ix == 70; j = HORIZONS.index('30')
    assert np.isnan(ev.q['har'][after, j]).all() and np.isfinite(ev.q['har'][(o.day_ix == 69) & (o.minute < 300), j]).all()
    assert np.isnan(ev.y[(o.day_ix == 69), HORIZONS.index('1d')]).all() and not ev.rows('30')[after].any()
    assert np.isfinite(ev.q['har'][o.day_ix == 100, j][:50]).all()

def test_a_day_in_progress_is_forecast_to_its_last_bar(demo):
    panel = Panel.from_bars(demo[demo.index <= session(demo.index[-1].date()).open + pd.Timedelta(minutes=119)])
    ev = evaluate(panel, 'har,const'); today = ev.origins.day_ix == len(panel) - 1
    assert ev.origins.minute[today].max() == 119 and np.isfinite(ev.q['ensemble'][today, :4]).all()
    assert np.isnan(ev.y[today, 4:]).all() and np.isnan(ev.y[np.flatnonzero(today)[-1]]).all()

def test_half_days_are_forecast_and_not_counted(demo):
    ev = evaluate(Panel.from_bars(demo), 'har,const'); half = ~ev.origins.counted
    assert half.any() and np.isfinite(ev.q['har'][half & (ev.origins.minute < 100), 0]).all()
    assert not ev.rows('5')[half].any() and np.isnan(ev.loss('har', '5')[ev.origins.day_ix[half].iloc[0]])

def test_what_is_refused(demo, tmp_path):
    panel = Panel.from_bars(demo)
    with pytest.raises(ModelError, match='85 are needed'): evaluate(panel.days_upto(84))
    with pytest.raises(ModelError, match='no session is left'): evaluate(panel, score_from=date(2031, 1, 1))
    with pytest.raises(UsageError, match='no such member: moon'): evaluate(panel, 'har,moon')
    with pytest.raises(UsageError, match='nothing left to average'): evaluate(panel, 'const')
    with pytest.raises(DataError, match='lack logrv_5'): evaluate(replace(panel, names=[o.replace('logrv_5', 'x') for o in panel.names]), 'har')
    (tmp_path/'params.npz').write_bytes(b'no archive'); (tmp_path/'model.json').write_text('{}')
    with pytest.raises(ModelError, match='no model can be read'): load(tmp_path)
    (tmp_path/'params.npz').write_bytes(b'PK\x03\x04' + bytes(40)) # an archive that was cut off
    with pytest.raises(ModelError, match='no model can be read'): load(tmp_path)

def test_a_trained_model_goes_on_where_it_was_saved(demo, tmp_path):
    "A model trained on all matured labels is kept, read, and answers at any minute."
    panel = Panel.from_bars(demo); ledger = Ledger(tmp_path/'ledger.jsonl'); day = len(panel) - 1
    model = train(panel, 'boosted'); back = load(model.save(tmp_path/'champion'))
    w = panel.windows(np.full(40, day), np.arange(100, 140))
    q = back.quantiles(w)[:, :5]
    np.testing.assert_array_equal(q, model.quantiles(w)[:, :5])
    assert np.isfinite(q).all() and (np.diff(q, axis=2) >= 0).all()
    evaluate(panel, 'fast', ledger=ledger); evaluate(panel, 'fast', ledger=Ledger(tmp_path/'ledger.jsonl'))
    assert len(ledger) == 4 == len(experiment.SETS['fast'])
    assert len(origins(panel.n)[0]) > 8000

@pytest.mark.filterwarnings('error')
def test_a_fold_in_which_nothing_happens_is_not_scored_and_does_no_harm(demo):
    "The market stands still for a month: nothing is known of it, nobody is judged by it, and what comes after is as good as before."
    days = sorted(set(demo.index.date)); still, after = (np.isin(demo.index.date, o) for o in (days[64:85], days[85:])); bars = demo.copy(); px = ['open', 'high', 'low', 'close']
    bars.loc[still, px] = last = bars['close'][demo.index.date == days[63]].iloc[-1]; bars.loc[after, px] *= last/demo['close'][demo.index.date == days[84]].iloc[-1]
    ev, j = evaluate(Panel.from_bars(bars), 'const,tod,ewma_diurnal,har'), HORIZONS.index('30'); o, q = ev.origins.day_ix.to_numpy(), ev.q[ev.system][:, HORIZONS.index('30')]
    quiet = (o >= 66) & (o < 84); assert np.isnan(ev.sigma['har'][quiet, j]).all() and np.isnan(ev.loss('har', '30')[66:84]).all()
    assert np.isfinite(q[o > 88]).any() and all(not np.isinf(ev.loss(k, h)).any() for k in (ev.system, *ev.members) for h in HORIZONS)
    assert np.nanmean(ev.loss(ev.system, '30')) < np.nanmean(ev.loss('const', '30')) and (ev.weights['30'].sum(axis=1) - 1).abs().max() < 1e-9
    with pytest.raises(ModelError, match='residuals'): evaluate(Panel.from_bars(bars), 'har,scale')
