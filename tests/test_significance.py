"""The statistics of a track record against another library's."""
import numpy as np
import pandas as pd
import pytest

from quantstats import stats

from spyresearch.trade.significance import max_drawdown, psr, sharpe


@pytest.mark.parametrize('seed', range(4))
def test_sharpe_psr_and_drawdown_equal_quantstats(seed):
    rng = np.random.default_rng(seed)
    r = pd.Series(rng.standard_t(4, 500)*.006 + .0004, index=pd.bdate_range('2024-01-01', periods=500))
    assert sharpe(r) == pytest.approx(stats.sharpe(r), abs=1e-9)
    assert max_drawdown(r) == pytest.approx(stats.max_drawdown(r), abs=1e-9)
    assert psr(r) == pytest.approx(stats.probabilistic_sharpe_ratio(r), abs=2e-3)
