"""Touch probabilities: in order whatever is asked, blind to what comes later, and no worse than the closed form on real prices."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.bars import read_bars
from spyresearch.core import ModelError
from spyresearch.models.barriers import DOWN, LONG, NEITHER, SHORT, UNKNOWN, UP, fits, race_grid
from spyresearch.models.baselines import Har
from spyresearch.models.forecaster import Targets
from spyresearch.models.metrics import dm_t, ece_pp, per_day, reliability
from spyresearch.models.races import race_losses
from spyresearch.models.touch import DISTANCES, LIMITS, Direct, Touch, brownian, closed_form, left_of, load_touch, unit
from spyresearch.models.windows import Panel
from spyresearch.sessions import MINUTES
from spyresearch.tws.market import demo_tape

@pytest.fixture(scope='module')
def demo():
    panel = Panel.from_bars(demo_tape(days=90, older=30).bars['TRADES', '1 min']); w = panel.windows(); old = w[w.day < 60]
    har = Har().fit(old, Targets.of(old)); s = har.sigma(old)
    return panel, w, har, (Touch().fit(old, s), Direct().fit(old, s))

def in_order(p):
    u, v, n = p[..., UP], p[..., DOWN], p[..., NEITHER]; ok = np.allclose(p.sum(-1), 1, atol=1e-9, rtol=0)
    rising = [-np.diff(u, axis=-3), np.diff(u, axis=-2), np.diff(u), np.diff(v, axis=-3), -np.diff(v, axis=-2), np.diff(v), np.diff(n, axis=-3), np.diff(n, axis=-2), -np.diff(n), p]
    return ok and min(o.min(initial=0) for o in rising) > -1e-9

grids = st.lists(st.floats(.02, 12), min_size=1, max_size=5, unique=True).map(lambda o: np.array(sorted(o)))
vols = st.lists(st.floats(1e-5, .05), min_size=5, max_size=5) # the forecaster may contradict itself

@settings(max_examples=60, deadline=None)
@given(vols, st.integers(14, MINUTES - 2), grids, grids, st.lists(st.integers(1, 400), min_size=1, max_size=4, unique=True).map(sorted), st.sampled_from([LONG, SHORT]), st.sampled_from([MINUTES, 210]))
def test_any_grid_is_in_order(demo, vol, minute, up, down, limits, side, n):
    "Any distances, limits, side, moment, half day or not, and volatilities that fit no market."
    if minute > n - 2: minute = minute % (n - 20) + 14
    sigma = np.r_[vol, [np.nan]*4][None]; at = np.array([minute]); limits = (*limits, None)
    for model in demo[3]: assert in_order(model.probabilities(sigma, at, up, down, limits, n, side)), model
    assert in_order(closed_form(sigma, at, up, down, limits, n))

@settings(max_examples=100, deadline=None)
@given(st.floats(.01, 20), st.floats(.01, 20), st.floats(1e-4, 1e3))
def test_brownian_is_one_whole(up, down, var):
    p = brownian(up, down, var); assert (p >= -1e-12).all() and abs(p.sum() - 1) < 1e-9
    np.testing.assert_allclose(brownian(down, up, var), p[[1, 0, 2]], atol=1e-12)

def test_brownian_against_walks():
    "A second implementation: fine random walks."
    rng = np.random.default_rng(0); x = rng.choice([-1, 1], (4000, 1600)).cumsum(1)/20. # steps of .05, variance 4
    a, b = ((s*x >= d - 1e-9).argmax(1) + 10**6*~(s*x >= d - 1e-9).any(1) for s, d in ((1, 1.), (-1, 1.5)))
    np.testing.assert_allclose([(a < b).mean(), (b < a).mean(), (a == b).mean()], brownian(1., 1.5, 4.), atol=.025)

def test_sides_split_the_doubtful_bars(demo):
    "A bar that holds both is nobody's win: the long's gain and the short's gain leave room for it, and neither is the same."
    _, w, har, (t, _) = demo; new = w[w.day == 70][::9]; s = har.sigma(new); tight = [.02, .1]
    a, b = (t.probabilities(s, new.minute, tight, tight, side=o) for o in (LONG, SHORT)); ok = np.isfinite(a[:, 0, 0, 0, 0])
    np.testing.assert_allclose(a[ok][..., NEITHER], b[ok][..., NEITHER], atol=1e-12)
    assert (a[ok][..., UP] <= b[ok][..., UP] + 1e-12).all() and (a[ok][:, 0, 0, 0, UP] < b[ok][:, 0, 0, 0, UP]).any()

def test_half_days_and_the_close(demo):
    _, w, har, models = demo; s = har.sigma(w[w.day == 70])[:1]
    for m in models:
        whole, half = m.probabilities(s, np.array([100]), minutes=(5, None)), m.probabilities(s, np.array([100]), minutes=(5, None), n=210)
        assert whole.shape == half.shape and np.isfinite(half).all()
        assert np.isnan(m.probabilities(s, np.array([209]), n=210)).all() and np.isnan(m.probabilities(s, np.array([389]))).all()
        assert np.isfinite(m.probabilities(s, np.array([388]))).all()

def test_nothing_after_the_fit_is_known(demo):
    "Later bars are made nonsense: the models are the same to the last bit."
    panel, w, har, models = demo; bad = {k: np.where((np.arange(len(panel)) >= 60)[:, None], 7., getattr(panel, k)) for k in ('open', 'high', 'low', 'close')}
    other = replace(panel, **bad).windows(w.day, w.minute); old = other[other.day < 60]; s = har.sigma(w[w.day < 60])
    for m in models:
        again = type(m)().fit(old, s)
        for k, v in m.params.items(): np.testing.assert_array_equal(again.params[k], v, err_msg=k)

def test_a_day_that_breaks_off_is_no_path(demo):
    panel, w, har, _ = demo; old = w[w.day < 60]; s = har.sigma(old); cut = {k: getattr(panel, k).copy() for k in ('open', 'high', 'low', 'close')}
    for v in cut.values(): v[59, 300:] = np.nan
    torn = replace(panel, **cut).windows(old.day, old.minute)
    assert Touch().fit(torn, s).params['moves'].shape[1] == Touch().fit(old, s).params['moves'].shape[1] - 1

def test_faults_of_a_saved_model(demo, tmp_path):
    t = demo[3][0]; t.save(tmp_path); (tmp_path/'touch.npz').write_bytes((tmp_path/'touch.npz').read_bytes()[:2000])
    with pytest.raises(ModelError, match='no touch model'): load_touch(tmp_path)
    t.save(tmp_path); demo[3][1].save(tmp_path/'other'); (tmp_path/'touch.json').write_bytes((tmp_path/'other'/'touch.json').read_bytes())
    with pytest.raises(ModelError, match='does not fit'): load_touch(tmp_path)

def test_better_than_the_closed_form_on_real_prices(shared):
    "A fit on 150 real sessions, judged on the 80 after them, limits within the day: both models lose less, and declare what comes true."
    panel = Panel.from_bars(read_bars(shared('spy_1min.parquet')).loc['2024-05-01':'2025-03-31']); w = panel.windows()
    old = w[w.day < 149]; new = w[(w.day >= 150) & (w.minute % 20 == 14) & (left_of(w) >= 5)]; har = Har().fit(old, Targets.of(old)); s = har.sigma(new)
    first, _ = race_grid(panel, new.day, new.minute, unit(s, left_of(new)), DISTANCES, DISTANCES, LIMITS)
    ok = (first != UNKNOWN) & fits(panel, new.day, new.minute, LIMITS)[:, None, None]
    def daily(p, k): return per_day(np.nanmean(np.where(ok, race_losses(first, p)[k], np.nan)[..., :4], (1, 2, 3)), new.day)
    base = closed_form(s, new.minute, n=panel.n[new.day]); cells = ok.all((1, 2, 3))
    for model in (Touch, Direct):
        p = model().fit(old, har.sigma(old)).probabilities(s, new.minute, n=panel.n[new.day])
        assert dm_t(daily(p, 1), daily(base, 1)) > 2, model
        q, won, day = p[cells][:, 3, 3, 3, UP], (first[cells][:, 3, 3, 3] == UP)*1., new.day[cells]
        assert ece_pp(reliability(q, won, day, 5)) < 10
