"""The backtest against an outside engine, against a published rule on real bars, and against its own future."""
import warnings
from datetime import date

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import Grid, OHLCV, grid, read_bars
from spyresearch.sessions import MINUTES, session, sessions
from spyresearch.trade.costs import Costs
from spyresearch.trade.significance import sharpe
from spyresearch.trade.strategies import always_long, benchmark, book, legs, noise_area

def wander(days, seed, vol=4e-4):
    "A random walk with half days and, on the third day, a missing quarter of an hour."
    rng = np.random.default_rng(seed); n = np.array([session(d).n_minutes for d in days])
    walk = 600*np.exp(np.cumsum(rng.normal(0, vol, len(days)*MINUTES))).reshape(len(days), MINUTES)
    o = np.r_[600., walk.ravel()[:-1]].reshape(walk.shape)*np.exp(rng.normal(0, 5e-5, walk.shape))
    dead = np.arange(MINUTES) >= n[:, None]
    dead[2, 200:215] = True
    cols = [o, np.maximum(o, walk)*1.0001, np.minimum(o, walk)*.9999, walk, rng.integers(1e4, 1e5, walk.shape).astype(float)]
    return Grid(list(days), *(np.where(dead, np.nan, a) for a in cols), n)

def frame(g):
    "The grid's bars, one after another, as an outside engine wants them."
    at = np.flatnonzero(g.seen.ravel())
    ix = pd.DatetimeIndex([session(g.days[i//MINUTES]).open + pd.Timedelta(minutes=int(i % MINUTES)) for i in at]).tz_localize(None)
    return pd.DataFrame({c.capitalize(): getattr(g, c).ravel()[at] for c in OHLCV}, index=ix), at

@pytest.fixture(scope='module')
def bars(shared):
    df = read_bars(shared('spy_1min.parquet'))
    return df[(df.index >= '2023-11-06') & (df.index < '2026-04-01')]

@pytest.fixture(scope='module')
def dividends(shared):
    d = pd.read_csv(shared('spy_dividends.csv'))
    return dict(zip(pd.to_datetime(d['Date']).dt.date, d['Dividend']))

def outside(g, plan):
    "Trades that backtesting.py makes of the same targets, one share each."
    import backtesting
    df, at = frame(g); df['Target'] = plan.target.ravel()[at]
    class Follow(backtesting.Strategy):
        def init(self): pass
        def next(self):
            want, have = int(self.data.Target[-1]), int(np.sign(self.position.size))
            if want == have: return
            if have: self.position.close()
            if want: (self.buy if want > 0 else self.sell)(size=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        stats = backtesting.Backtest(df, Follow, cash=1e6, commission=0, trade_on_close=False, finalize_trades=False).run()
    return stats['_trades'].sort_values('EntryTime').reset_index(drop=True)

def assert_same_trades(g, plan):
    ours, theirs = legs(plan, g), outside(g, plan)
    when = lambda d, m: (session(g.days[d]).open + pd.Timedelta(minutes=m)).tz_localize(None)
    assert len(ours) == len(theirs) > 0
    assert [when(o.day, o.minute) for o in ours] == theirs['EntryTime'].tolist()
    assert [when(o.exit_day, o.exit_minute) for o in ours] == theirs['ExitTime'].tolist()
    assert [o.entry_px for o in ours] == theirs['EntryPrice'].tolist()
    assert [o.exit_px for o in ours] == theirs['ExitPrice'].tolist()
    assert [o.side for o in ours] == theirs['Size'].tolist()
    np.testing.assert_allclose([o.side*(o.exit_px - o.entry_px) for o in ours], theirs['PnL'], atol=1e-9)

@pytest.mark.parametrize('rule, seed', [(noise_area, 1), (noise_area, 2), (always_long, 3)])
def test_every_trade_equals_an_outside_engines(rule, seed):
    g = wander(sessions(date(2025, 10, 20), date(2025, 12, 5)), seed)
    plan = rule(g)
    plan.target[0, 0] = 0 # the outside engine decides nothing on its very first bar
    assert_same_trades(g, plan)

def test_every_trade_on_real_bars_equals_an_outside_engines(bars):
    g = grid(bars[bars.index < '2024-04-01'])
    assert_same_trades(g, noise_area(g))

def by_the_paper(g, d, dividends):
    "The noise area's wishes on one day at the half hours, read from the paper with plain loops."
    move = lambda i, m: abs(g.close[i, m]/g.open[i, 0] - 1)
    ret = lambda i: g.close[i, g.n[i] - 1]/(g.close[i-1, g.n[i-1] - 1] - dividends.get(g.days[i], 0)) - 1
    prior, paid, volume, out = g.close[d-1, g.n[d-1] - 1] - dividends.get(g.days[d], 0), 0., 0., {}
    for m in range(360):
        paid += (g.high[d, m] + g.low[d, m] + g.close[d, m])/3*g.volume[d, m]; volume += g.volume[d, m]
        if (m + 1) % 30: continue
        wide, px = np.mean([move(i, m) for i in [i for i in range(d) if m < g.n[i]][-14:]]), g.close[d, m]
        long = px > max(g.open[d, 0], prior)*(1 + wide) and px > paid/volume
        short = px < min(g.open[d, 0], prior)*(1 - wide) and px < paid/volume
        out[m] = int(long) - int(short)
    return out, min(4, .02/np.std([ret(i) for i in range(d - 14, d)], ddof=1))

def test_the_noise_area_is_what_the_paper_says(bars, dividends):
    g = grid(bars[bars.index < '2024-02-01'])
    plan, wishes = noise_area(g, dividends), []
    for d in (i for i in range(15, len(g.days)) if g.n[i] == MINUTES):
        wish, leverage = by_the_paper(g, d, dividends)
        assert plan.leverage[d] == pytest.approx(leverage, rel=1e-9)
        for m, side in wish.items(): assert set(plan.target[d, m:min(m + 30, 388)]) == {side}
        wishes += wish.values()
    assert {-1, 0, 1} == set(wishes)

def test_noise_area_is_reproduced(bars, dividends):
    "SSRN 4824172 on November 2023 to November 2025: 430 trades within 3 %, a Sharpe ratio of 1.08 within 0.1."
    g = grid(bars[bars.index < '2025-11-04'])
    r = benchmark('noise_area', g, Costs('paper'), dividends=dividends)
    full = r.daily[g.n == MINUTES]
    assert len(g.days) == 500 and len(full) == 495
    assert len(r.trades) == pytest.approx(430, rel=.03)
    assert sharpe(full) == pytest.approx(1.08, abs=.1)
    assert r.trades['net_bp'].mean() == pytest.approx(2.0, abs=.3)

def test_a_spoiled_future_changes_no_earlier_trade_on_real_bars(bars, dividends):
    g, costs = grid(bars[bars.index < '2024-12-15']), Costs()
    whole = {n: benchmark(n, g, costs, dividends=dividends).trades for n in ('noise_area', 'always_long')}
    rng = np.random.default_rng(0)
    for d, m in zip(rng.integers(20, len(g.days), 12), rng.integers(0, 209, 12)):
        cols = {o: getattr(g, o).copy() for o in OHLCV}
        for a in cols.values(): a.reshape(-1)[d*MINUTES + m + 1:] *= rng.uniform(.9, 1.1)
        at, spoiled = session(g.days[d]).open + pd.Timedelta(minutes=int(m)), Grid(g.days, **cols, n=g.n)
        for name, before in whole.items():
            after = benchmark(name, spoiled, costs, dividends=dividends).trades
            pd.testing.assert_frame_equal(before[before['exit_at'] <= at], after[after['exit_at'] <= at])

def test_the_future_cut_off_leaves_every_finished_day_as_it_was(bars, dividends):
    g = grid(bars[bars.index < '2024-06-01'])
    whole = benchmark('noise_area', g, dividends=dividends).daily
    for end in (40, 80, 120):
        part = Grid(g.days[:end], *(getattr(g, o)[:end] for o in OHLCV), g.n[:end])
        np.testing.assert_array_equal(benchmark('noise_area', part, dividends=dividends).daily, whole[:end])

def test_no_intraday_position_survives_its_session(bars):
    g = grid(bars[bars.index < '2025-01-01'])
    for rule in (noise_area(g, half_days=True), always_long(g)):
        assert all(o.day == o.exit_day and o.exit_minute <= g.n[o.day] - 1 for o in legs(rule, g))

def test_gross_gain_of_the_book_is_the_sum_of_its_trades(bars):
    g = grid(bars[bars.index < '2024-06-01'])
    free = Costs('paper', slippage_px=0.)
    r = book('noise_area', legs(noise_area(g), g), g, free)
    t = r.trades
    usd = (t['net_bp']*t['qty']*t['entry_px']/1e4).sum()
    assert 100_000*(r.equity.iloc[-1] - 1) == pytest.approx(usd, abs=1e-6)
