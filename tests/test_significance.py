"""The statistics of a track record against another library's."""
import numpy as np
import pandas as pd
import pytest

from quantstats import stats

from spyresearch.models.metrics import skill_interval
from spyresearch.trade.significance import max_drawdown, psr, sharpe, sharpe_bootstrap


@pytest.mark.parametrize('seed', range(4))
def test_sharpe_psr_and_drawdown_equal_quantstats(seed):
    rng = np.random.default_rng(seed)
    r = pd.Series(rng.standard_t(4, 500)*.006 + .0004, index=pd.bdate_range('2024-01-01', periods=500))
    assert sharpe(r) == pytest.approx(stats.sharpe(r), abs=1e-9)
    assert max_drawdown(r) == pytest.approx(stats.max_drawdown(r), abs=1e-9)
    assert psr(r) == pytest.approx(stats.probabilistic_sharpe_ratio(r), abs=2e-3)


def days_with_memory(n, rho, rng):
    "AR(1) returns of deviation 1 %, around a mean of 5 bp."
    e = rng.normal(size=n + 50); x = e.copy()
    for i in range(1, len(x)): x[i] = rho*x[i - 1] + e[i]
    return .0005 + .01*(1 - rho**2)**.5*x[50:]


@pytest.mark.parametrize('rho, n', [(0., 250), (.3, 250), (0., 100)])
def test_a_ninety_percent_sharpe_interval_holds_the_truth_about_nine_times_in_ten(rho, n):
    rng, true = np.random.default_rng(11), .05*252**.5
    kept = [low <= true <= high for low, high in (sharpe_bootstrap(days_with_memory(n, rho, rng), seed=s) for s in range(200))]
    assert .82 <= np.mean(kept) <= .97


@pytest.mark.parametrize('rho', [0., .3])
def test_a_ninety_percent_skill_interval_holds_the_truth_about_nine_times_in_ten(rho):
    "Losses of mean 1, and 5 % less."
    rng, kept = np.random.default_rng(12), []
    for _ in range(200):
        both, own = days_with_memory(250, rho, rng)*20, days_with_memory(250, rho, rng)*10
        low, high = skill_interval(.95 + both + own - .015, 1 + both - .01, rng, level=.9)
        kept.append(low <= 5. <= high)
    assert .82 <= np.mean(kept) <= .97


@pytest.mark.parametrize('apart', [4, 5, 10, 20])
def test_trades_at_a_regular_spacing_still_have_an_interval(apart):
    r = np.zeros(400); r[::apart] = np.where(np.arange(400//apart) % 2, .004, -.002)
    low, high = sharpe_bootstrap(r)
    assert high - low > 1
    assert np.diff(skill_interval(np.where(r != 0, .5, 1.), np.ones(400), np.random.default_rng(0)))[0] > 1
