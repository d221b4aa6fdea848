"""The scale models on real prices: nothing later is known, labels from a day on change nothing earlier, and volatility is explained better than by HAR."""
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import DataError, ModelError
from spyresearch.models.bank import AHEAD_SUMS, WARM, bank
from spyresearch.models.experiment import evaluate
from spyresearch.models.folds import Fold
from spyresearch.models.forecaster import Targets
from spyresearch.models.past import five_minutes
from spyresearch.models.refined import Refined
from spyresearch.models.scale import Scale
from spyresearch.models.windows import Panel
from spyresearch.tws.market import demo_tape

PRICES = 'open', 'high', 'low', 'close', 'volume'

@pytest.fixture(scope='module')
def panel(shared):
    bars, five = read_bars(shared('spy_1min.parquet')), read_bars(shared('spy_5min.parquet'))
    paid = {pd.Timestamp(d).date(): float(v) for d, v in pd.read_csv(shared('spy_dividends.csv')).itertuples(index=False)}
    return Panel.from_bars(bars['2025-02-03':'2025-09-30'], paid, 'replay:spy', older=five['2023-09-01':'2025-01-31'])

def test_five_minutes_are_those_of_the_tape(panel, shared):
    "The slots of a panel's minutes are the recorded five-minute bars of the same days, to the cent."
    mine = bank(panel).slots; first = bank(panel).first; theirs = five_minutes(read_bars(shared('spy_5min.parquet'))['2025-02-03':'2025-07-31'])
    assert theirs.days == mine.days[first:first + len(theirs)]
    for o in PRICES[:4]:
        gap = np.abs(getattr(mine, o)[first:first + len(theirs)] - getattr(theirs, o)) # the record of five minutes has bad prints of its own
        assert np.nanquantile(gap, .99) <= .011 and np.nanmean(gap > .011) < .01, o

def test_the_bank_knows_nothing_later(panel):
    "At random minutes of random days, a half day too: whatever comes after, what stood before stands to the last bit."
    whole, rng = bank(panel), np.random.default_rng(3); half = int(np.flatnonzero(panel.n < 390)[0])
    for d, m in [(half, 150), *zip(rng.integers(1, len(panel), 3), rng.integers(1, 380, 3))]:
        early = bank(panel.after(int(d), int(m))); s, k = early.first + int(d), (int(m) + 1)//5
        np.testing.assert_array_equal(early.x[:s], whole.x[:s]); np.testing.assert_array_equal(early.x[s, :k], whole.x[s, :k])
        assert np.isnan(early.x[s, k:]).all()
        for o in AHEAD_SUMS: np.testing.assert_array_equal(early.sums[o], whole.sums[o][:s + 1])

@pytest.mark.parametrize('kind', [Scale, Refined])
def test_a_forecast_is_made_of_the_past(panel, kind):
    "Bars after a minute, and labels from a day on, are replaced by nonsense: the fitted model and its answer are the same."
    d, m = 100, 200; may = Fold(0, d, d + 1).teaches; w = panel.windows(); old = w.day < d; w, t = w[old], Targets.of(w)[old].only(may(w.day[old]))
    spoilt = {o: getattr(panel, o).copy() for o in PRICES}
    for v in spoilt.values(): v[d, m + 1:] *= 1.7; v[d + 1:] *= .6
    other = replace(panel, **spoilt); wo = other.windows(); wo, to = wo[old], Targets.of(wo)[old].only(may(w.day))
    a, b = kind().fit(w, t), kind().fit(wo, to)
    for k in a.params: np.testing.assert_array_equal(a.params[k], b.params[k], err_msg=k)
    at = np.array([d]), np.array([m]); q = a.quantiles(panel.windows(*at)); np.testing.assert_array_equal(q, b.quantiles(other.windows(*at)))
    assert np.isfinite(q[0, :4]).all() and (np.diff(q[0, :4]) >= 0).all()

def test_years_explain_more_than_months(panel):
    "On 2025 with its April: the log variance, and the return's distribution, are better known than by HAR."
    ev = evaluate(panel, 'har,scale', score_from=date(2025, 5, 1))
    for h in ('5', '15', '30', '60'): assert ev.explained('scale', h) > ev.explained('har', h), h
    assert np.nanmean(ev.loss('scale', '5')) < np.nanmean(ev.loss('har', '5'))

def test_every_minute_has_an_answer(panel):
    "Between slots the last one that has ended speaks; before 09:45 of the first minutes nobody does."
    w = panel.windows(); old = w.day < 90; model = Scale().fit(w[old], Targets.of(w)[old])
    minute = np.arange(0, 390); q = model.quantiles(panel.windows(np.full(390, 95), minute))[:, 0]
    known = np.isfinite(q).all(1); assert not known[:4].any() and known[4:384].all() and not known[385:].any()

def test_too_little_history_says_what_to_do():
    bars = demo_tape(days=90).bars['TRADES', '1 min']; panel = Panel.from_bars(bars); w = panel.windows()
    with pytest.raises(ModelError, match='scale model needs 2000') as e: Scale().fit(w[w.day < 60], Targets.of(w)[w.day < 60])
    assert 'deepen' in e.value.todo
    ev = evaluate(panel, 'all'); assert set(ev.left_out) == {'scale', 'refined'} and '2000 residuals' in ev.left_out['scale']
    with pytest.raises(ModelError): evaluate(panel, 'har,scale')
    assert np.isnan(bank(panel).x[:WARM]).all()

def test_bars_off_the_grid_are_refused():
    with pytest.raises(DataError, match='whole five minutes'): five_minutes(demo_tape(days=12).bars['TRADES', '1 min'])
