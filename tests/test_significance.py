"""The statistics of a track record against another library's."""
import numpy as np
import pandas as pd
import pytest

from quantstats import stats

from spyresearch.models.metrics import skill_interval
from spyresearch.trade.significance import max_drawdown, order_risk, profit_factor, psr, reality_check, sharpe, sharpe_bootstrap, top_days_share


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


def rules(seed, n, edge, worse):
    "Days of `n` rules that share a market: the first has an edge, the others lose."
    rng = np.random.default_rng(seed); m = rng.normal(0, .01, (500, n)) + .3*rng.normal(0, .01, (500, 1))
    m[:, 0] += edge; m[:, 1:] -= worse
    return m


@pytest.mark.parametrize('case, white, spa', [((8, 20, 0, 0), .8001, .7904), ((1, 5, .0008, 0), .4320, .4320), ((2, 10, .0008, .002), .1070, .0094),
                                              ((3, 10, .0012, .001), .0038, .0031), ((4, 3, 0, .0005), .4494, .4494)])
def test_the_reality_check_equals_the_package_arch(case, white, spa):
    "Numbers of arch 8.0.0: SPA(0, -rules, block_size=8, reps=20000, bootstrap='stationary', seed=1), upper and consistent p-value."
    p = reality_check(rules(*case))
    assert (p['p_white'], p['p_spa']) == pytest.approx((white, spa), abs=.03)


def test_worthless_rules_are_seldom_called_good():
    "Over 150 worlds of eight rules without an edge, about one in ten has a p-value below .1; with an edge, most have."
    none = [reality_check(rules(100 + s, 8, 0, 0)[:250], seed=s) for s in range(150)]
    some = [reality_check(rules(100 + s, 8, .0025, 0)[:250], seed=s)['p_spa'] for s in range(30)]
    for k in ('p_white', 'p_spa'): assert .03 <= np.mean([o[k] < .1 for o in none]) <= .18
    assert np.mean(np.array(some) < .1) > .8


def test_the_same_rule_and_a_rule_that_never_moves_change_nothing():
    m = rules(2, 4, .001, 0)
    one = reality_check(m)
    assert reality_check(np.c_[m, np.zeros(len(m))]) == one
    assert reality_check(np.c_[m, m[:, 0]])['p_white'] == one['p_white']
    assert reality_check(m, m[:, 3])['n_rules'] == 3 and reality_check(m + .001, np.full(len(m), .001))['p_spa'] == pytest.approx(one['p_spa'])


def test_order_risk_is_the_mean_over_all_orders():
    "Six trades have 720 orders; drawing many gives the share that counting them gives."
    from itertools import permutations
    r = [.02, -.03, .01, -.01, .04, -.02]
    every = np.array([max_drawdown(o) for o in permutations(r)])
    got = order_risk(r, draws=20_000)
    assert got['realised'] == max_drawdown(r) and got['worse'] == pytest.approx((every <= max_drawdown(r) + 1e-12).mean(), abs=.01)
    assert (got['median'], got['worst']) == pytest.approx((np.median(every), np.quantile(every, .05)), abs=1e-9)


@pytest.mark.parametrize('seed', range(3))
def test_profit_factor_and_best_days_equal_quantstats(seed):
    rng = np.random.default_rng(seed)
    r = pd.Series(rng.normal(.0020, .01, 300), index=pd.bdate_range('2024-01-01', periods=300))
    trades = pd.DataFrame(dict(qty=100, entry_px=600., net_bp=r*1e4))
    assert profit_factor(trades) == pytest.approx(stats.profit_factor(r), rel=1e-9)
    assert top_days_share(r) == pytest.approx(r.nlargest(5).sum()/r.sum())
