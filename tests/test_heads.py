"""From raw odds to a published probability, where the truth is known: a forecaster with an edge is found and matched, one with none gives silence. And Venn-Abers against MAPIE."""
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from spyresearch.core import ModelError
from spyresearch.models.boosted import predict
from spyresearch.models.classical import AutoArima, AutoEts, HarIv, HarIv30
from spyresearch.models.confidence import Gate, base_days, fit_platt, fit_venn_abers, judge, past_rank, platt_days, rolling, venn_abers_days
from spyresearch.models.experiment import carried, evaluate, unfed
from spyresearch.models.forecaster import Targets
from spyresearch.models.heads import grow_class
from spyresearch.models.metrics import brier_skill
from spyresearch.models.windows import Panel
from spyresearch.tws.market import demo_tape

DAYS, A_DAY = 320, 6 # sessions; forecasts of each that do not overlap
CALIBRATIONS = dict(platt=platt_days, venn_abers=venn_abers_days)


def market(edge, seed, boast=4.):
    "True odds of each forecast, those that a boaster declares (log odds `boast` times as far out), and outcomes."
    rng = np.random.default_rng(seed); n = DAYS*A_DAY; lean = rng.normal(size=n)
    truth = .5 + edge*np.tanh(lean); said = 1/(1 + np.exp(-boast*.4*lean))
    return truth, said, (rng.random(n) < truth)*1., np.repeat(np.arange(DAYS), A_DAY)


def lived(edge, seed, calibration, breakeven=.51):
    "What would have been published: (declared, lower, upper, outcome, true odds) of each forecast that passed."
    truth, said, won, day = market(edge, seed); cal = rolling(said, won, day, day, calibration); gate, out = Gate(), []
    for d in range(21, DAYS):
        now = day == d; rank = past_rank(said[day < d], said[now])
        for r, p, o, q in zip(rank, cal[now], won[now], truth[now]):
            v = judge(gate, r, p, breakeven)
            if v.ok: out.append((min(p, v.p_lower), v.p_lower, v.p_upper, o, q))
        at = d*A_DAY + np.arange(A_DAY); gate.learn(date(2025, 1, 1) + timedelta(d), rank, at, at + 1, won[now])
    return np.array(out).reshape(-1, 5)


@pytest.mark.parametrize('calibration', CALIBRATIONS.values(), ids=CALIBRATIONS)
@pytest.mark.parametrize('seed', range(3))
def test_a_known_edge_is_found_and_its_odds_are_matched(seed, calibration):
    declared, lower, upper, won, truth = lived(.22, seed, calibration).T
    assert len(won) > 150 and won.mean() > .56
    assert lower.mean() <= truth.mean() <= upper.mean() and lower.mean() <= won.mean() <= upper.mean()
    assert declared.mean() <= truth.mean()                                     # never more than there is


@pytest.mark.parametrize('calibration', CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_none_is_silence(calibration):
    "Eight boasters without an edge: the gate may speak for one in ten, over all time."
    assert sum(len(lived(0, seed, calibration)) > 0 for seed in range(8)) <= 1


@pytest.mark.parametrize('calibration', CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_calibration_finds_the_truth_under_a_boast(calibration):
    truth, said, won, day = market(.22, 5); cal = rolling(said, won, day, day, calibration); ok = day >= 120
    assert abs(cal - truth)[ok].mean() < .06 < abs(said - truth)[ok].mean()
    base = rolling(said, won, day, day, base_days)
    assert brier_skill(cal[ok], won[ok], base[ok]) > .02 > 0 > brier_skill(said[ok], won[ok], base[ok])
    _, said, won, day = market(0, 5); cal, base = (rolling(said, won, day, day, f) for f in (calibration, base_days))
    assert -.03 < brier_skill(cal[ok], won[ok], base[ok]) < .01


def test_no_outcome_counts_before_it_is_known():
    "Outcomes that ripen two days later and are turned round from day 200 on: the same odds through day 202."
    _, said, won, day = market(.2, 1)
    for f in CALIBRATIONS.values():
        a, b = (rolling(said, o, day, day + 2, f) for o in (won, np.where(day >= 200, 1 - won, won)))
        np.testing.assert_array_equal(a[day <= 202], b[day <= 202]); assert (a[day == 203] != b[day == 203]).any()


@pytest.mark.parametrize('seed', range(3))
def test_trees_find_odds_that_depend_and_leave_those_that_do_not(seed):
    rng = np.random.default_rng(seed); x = rng.normal(size=(9000, 12)).astype(np.float32); coin = (rng.random(9000) < .5)*1.; true = .5 + .15*np.sign(x[:, 3])
    tied = (rng.random(9000) < true)*1.; old, new = slice(0, 6000), slice(6000, 9000)
    p, q = (predict(grow_class(x[old], o[old], seed), x[new]) for o in (tied, coin))
    first, last = slice(0, 2000), slice(2000, 3000); p, q = (fit_platt(r[first], o[new][first])(r[last]) for r, o in ((p, tied), (q, coin))) # slow trees are timid
    assert abs(p - true[new][last]).mean() < .04 and brier_skill(p, tied[new][last], np.full(1000, .5)) > .05
    assert abs(q - .5).mean() < .03 and brier_skill(q, coin[new][last], np.full(1000, .5)) > -.01


@pytest.mark.parametrize('seed', range(3))
def test_venn_abers_is_mapies(seed):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from mapie.calibration import VennAbersCalibrator
    class Said(ClassifierMixin, BaseEstimator): # declares what it is given
        def fit(self, x, y): self.classes_ = np.array([0, 1]); self.is_fitted_ = True; return self
        def predict_proba(self, x): return np.c_[1 - x[:, 0], x[:, 0]]
        def predict(self, x): return (x[:, 0] > .5).astype(int)
    rng = np.random.default_rng(seed); p = rng.integers(1, 40, 400)/40; won = (rng.random(400) < p).astype(int)
    said = Said().fit(p[:, None], won); theirs = VennAbersCalibrator(estimator=said, cv='prefit').fit(p[:, None], won)
    ask = np.unique(p)
    np.testing.assert_allclose(fit_venn_abers(p, won)(ask), theirs.predict_proba(ask[:, None])[:, 1], atol=2e-3)


def test_venn_abers_keeps_order_and_holds_its_middle():
    rng = np.random.default_rng(0); p = rng.random(5000); v = fit_venn_abers(p, (rng.random(5000) < p**2)*1.)
    (low, high), mid = v.interval(ask := np.linspace(0, 1, 200)), v(ask)
    assert (low <= mid).all() and (mid <= high).all() and (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all() and np.isnan(v(np.nan))


@pytest.fixture(scope='module')
def panel(): return Panel.from_bars(demo_tape(days=90, older=30).bars['TRADES', '1 min'])


@pytest.mark.parametrize('kind', [AutoArima, AutoEts, HarIv, HarIv30])
def test_a_label_after_the_span_teaches_nothing(panel, kind):
    w = panel.windows(); t = Targets.of(w); old, may = w.day < 70, (w.day < 68)[:, None]
    spoilt = Targets(np.where(may, t.y, 9.), np.where(may, t.logrv, 9.))
    a, b = (kind().fit(w[old], o.only(may)[old]) for o in (t, spoilt))
    for k in a.params: np.testing.assert_array_equal(a.params[k], b.params[k])
    assert np.isfinite(a.quantiles(w[w.day > 70])[:, 0]).any()


def test_what_options_expect_is_named_where_it_is_measured_and_where_it_is_not(panel):
    tape = demo_tape(days=110, older=30); bars = tape.bars['TRADES', '1 min'].join(tape.bars['OPTION_IMPLIED_VOLATILITY', '1 min'].add_prefix('iv_'))
    fed = Panel.from_bars(bars, features=[*panel.names, 'log_iv_30']); ev = evaluate(fed, 'har,har_iv30', score_from=fed.days[95])
    assert 'har_iv30' not in unfed(fed) and unfed(panel)['har_iv30'] == 'implied volatility bars' and carried(fed) == ('har_iv30',)
    assert ev.answered['har_iv30'].by.eq('har_iv30').mean() > .9 and not np.array_equal(ev.q['har'], ev.q['har_iv30'])
    lost = fed.x.copy(); lost[100, :, fed.names.index('log_iv_30')] = np.nan; one = evaluate(replace(fed, x=lost), 'har,har_iv30', score_from=fed.days[95]); day = one.origins.day_ix == 100
    assert set(one.answered['har_iv30'].by[day]) <= {'har', ''} and 'implied volatility bars missing' in one.answered['har_iv30'].why[day].iloc[10] and np.array_equal(one.q['har_iv30'][day], one.q['har'][day], equal_nan=True)


@pytest.mark.parametrize('kind', [AutoArima, AutoEts])
def test_too_short_a_history_is_refused(panel, kind):
    short = panel.days_upto(23).windows()
    with pytest.raises(ModelError, match='needs 30 values'): kind().fit(short, Targets.of(short))
