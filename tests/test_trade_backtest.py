"""The backtest against an outside engine, against a published rule on real bars, and against its own future."""
import json
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spyresearch import report
from spyresearch.bars import Grid, OHLCV, grid, read_bars
from spyresearch.sessions import MINUTES, session, sessions
from spyresearch.trade.costs import Costs
from spyresearch.trade.significance import sharpe
from spyresearch.trade.signals import published
from spyresearch.trade.tickets import Outcome, issue, settle, ticket_frame
from spyresearch.trade.backtest import LATE, backtest, bar_frame, by_backtesting, by_vectorbt, race, swing_tries
from spyresearch.trade.strategies import always_long, benchmark, book, buy_hold, late, legs, noise_area

def wander(days, seed, vol=4e-4):
    "A random walk with half days and, on the third day, a missing quarter of an hour."
    rng = np.random.default_rng(seed); n = np.array([session(d).n_minutes for d in days])
    walk = 600*np.exp(np.cumsum(rng.normal(0, vol, len(days)*MINUTES))).reshape(len(days), MINUTES)
    o = np.r_[600., walk.ravel()[:-1]].reshape(walk.shape)*np.exp(rng.normal(0, 5e-5, walk.shape))
    dead = np.arange(MINUTES) >= n[:, None]
    dead[2, 200:215] = True
    cols = [o, np.maximum(o, walk)*1.0001, np.minimum(o, walk)*.9999, walk, rng.integers(1e4, 1e5, walk.shape).astype(float)]
    return Grid(list(days), *(np.where(dead, np.nan, a) for a in cols), n)

@pytest.fixture(scope='module')
def bars(shared):
    df = read_bars(shared('spy_1min.parquet'))
    return df[(df.index >= '2023-11-06') & (df.index < '2026-04-01')]

@pytest.fixture(scope='module')
def dividends(shared):
    d = pd.read_csv(shared('spy_dividends.csv'))
    return dict(zip(pd.to_datetime(d['Date']).dt.date, d['Dividend']))

def assert_same_trades(g, plan, engine=by_backtesting):
    ours, theirs = legs(plan, g), engine(bar_frame(g, plan))
    when = lambda d, m: (session(g.days[d]).open + pd.Timedelta(minutes=m)).tz_localize(None)
    assert len(ours) == len(theirs) > 0
    assert [when(o.day, o.minute) for o in ours] == theirs['entry_at'].tolist()
    assert [when(o.exit_day, o.exit_minute) for o in ours] == theirs['exit_at'].tolist()
    assert [o.entry_px for o in ours] == theirs['entry_px'].tolist()
    assert [o.exit_px for o in ours] == theirs['exit_px'].tolist()
    assert [o.side for o in ours] == theirs['side'].tolist()

@pytest.mark.parametrize('rule, seed', [(noise_area, 1), (noise_area, 2), (always_long, 3)])
def test_every_trade_equals_an_outside_engines(rule, seed):
    g = wander(sessions(date(2025, 10, 20), date(2025, 12, 5)), seed)
    plan = rule(g)
    plan.target[0, 0] = 0 # the outside engine decides nothing on its very first bar
    assert_same_trades(g, plan)

def test_every_trade_on_real_bars_equals_an_outside_engines(bars):
    g = grid(bars[bars.index < '2024-04-01'])
    assert_same_trades(g, noise_area(g))

@pytest.mark.parametrize('minutes', [1, 7])
def test_late_orders_equal_an_outside_engines(bars, minutes):
    g = grid(bars[bars.index < '2024-01-15'])
    assert_same_trades(g, late(noise_area(g), g, minutes))

def test_every_trade_on_real_bars_equals_vectorbts(bars):
    pytest.importorskip('vectorbt', reason='the section options of requirements.lock is not installed')
    g = grid(bars[bars.index < '2024-04-01'])
    assert_same_trades(g, noise_area(g), by_vectorbt)

def test_the_race_says_whether_every_trade_is_the_same(bars, dividends):
    t = race(grid(bars[bars.index < '2024-01-01']), dividends=dividends).set_index('engine')
    assert t['same'].all() and t['trades'].nunique() == 1 and {'spyresearch', 'backtesting'} <= set(t.index)

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

def test_what_ifs_are_the_backtest_again(bars, dividends):
    "Each line of the doubts is a whole backtest at that cost, or of that delay; the real one stands among them."
    g = grid(bars[bars.index < '2024-06-01'])
    bt = backtest(g, costs=Costs('fixed'), dividends=dividends); d = bt.doubts['noise_area']
    whole = lambda r: (len(r.trades), r.trades['net_bp'].mean(), sharpe(r.daily))
    line = lambda t, k: tuple(t[t.iloc[:, 0] == k].iloc[0, 1:4])
    assert line(d['costs'], 1.) == line(d['delays'], 0) == pytest.approx(whole(bt.results['noise_area']))
    assert line(d['costs'], 2.) == pytest.approx(whole(benchmark('noise_area', g, Costs('fixed', times=2.), dividends=dividends)))
    delayed = book('noise_area', legs(late(noise_area(g, dividends), g, 5), g), g, Costs('fixed'), dividends=dividends)
    assert line(d['delays'], 5) == pytest.approx(whole(delayed))
    assert d['costs']['total_return'].is_monotonic_decreasing and bt.to_json()['costs']['plan'] == 'fixed'

def test_years_and_regimes_are_the_whole_cut_apart(bars, dividends):
    bt = backtest(grid(bars[bars.index < '2025-03-01']), dividends=dividends)
    for name, d in bt.doubts.items():
        r, years, sky = bt.results[name], d['years'], d['regimes']
        assert (1 + years['total_return']).prod() == pytest.approx(r.equity.iloc[-1])
        assert years['n_trades'].sum() == len(r.trades) and list(years.index) == ['2023', '2024', '2025']
        assert years['n_days'].sum() == len(r.daily) and sky['n_days'].sum() == len(r.daily) - 21
        assert set(sky.index) == {'calm', 'middling', 'wild'} and d['order']['worst'] <= (d['order']['median'] or 0) if d['order']['median'] else True

def test_late_orders_are_never_early_and_never_sleep(bars):
    g = grid(bars[bars.index < '2024-06-01'])
    for rule in (noise_area(g, half_days=True), always_long(g)):
        for k in LATE:
            found = legs(late(rule, g, k), g)
            assert all(o.day == o.exit_day and o.exit_minute <= g.n[o.day] - 1 and o.minute >= min(k, 1)*k for o in found)
    first = [legs(late(buy_hold(g), g, k), g)[0] for k in (0, 3)]
    assert [o.minute for o in first] == [1, 4]

def test_the_plan_of_commissions_reaches_every_trade(bars):
    g = grid(bars[bars.index < '2024-01-01'])
    paid = {p: backtest(g, costs=Costs(p)).results['always_long'].trades for p in ('tiered', 'fixed', 'paper')}
    t = paid['paper']
    assert (t['cost_bp'] - 2*.0045/t['entry_px']*1e4).abs().max() < 1e-9
    assert (paid['fixed']['cost_bp'] != paid['tiered']['cost_bp']).all()

def test_a_session_that_broke_off_is_left_at_its_last_price(bars):
    g = grid(bars[bars.index < '2024-01-01']); cut = {o: getattr(g, o).copy() for o in OHLCV}
    for a in cut.values(): a[30, 150:] = np.nan
    h = Grid(g.days, **cut, n=g.n); whole = {o.day: o for o in legs(always_long(g), g)}
    broken = {o.day: o for o in legs(always_long(h), h)}
    assert (broken[30].exit_minute, broken[30].exit_px, broken[30].reason) == (149, g.close[30, 149], 'no bar to leave in')
    assert {k: o for k, o in broken.items() if k < 30} == {k: o for k, o in whole.items() if k < 30} and broken[31].minute == whole[31].minute == 0

def test_the_walks_tries_are_its_plans_day_by_day(bars):
    "Each try is the sum of the plans that it took, on the days of their ends; the strictest took no more than the laxest."
    days = [d for d in grid(bars[bars.index < '2024-03-01']).days]; rng = np.random.default_rng(4)
    rows = [(hold, days[i], days[i + 1 + k], rng.uniform(), rng.normal(0, 50)) for i in range(len(days) - 7) for hold, k in (('1d', 1), ('5d', 5))]
    shadow = pd.DataFrame(rows, columns=['hold', 'day', 'matured_at', 'rank', 'net_bp']).assign(kind='swing')
    tries = swing_tries(shadow, days[20:60])
    inside = shadow[shadow['matured_at'].isin(days[20:60])]
    for top in (0., .5, .8, .9):
        took = inside[(inside['hold'] == '5d') & (inside['rank'] >= top)]
        assert tries[f'5d top {1 - top:.0%}'].sum() == pytest.approx(took['net_bp'].sum()/5e4)
    later = shadow.assign(net_bp=np.where(shadow['matured_at'] > days[59], 1e4, shadow['net_bp']))
    pd.testing.assert_frame_equal(swing_tries(later, days[20:60]), tries)

def test_tries_give_the_swing_rule_its_overfitting_and_its_reality_check(bars, dividends):
    g = grid(bars[bars.index < '2024-06-01']); rng = np.random.default_rng(5)
    tries = {'swing': rng.normal(0, .01, (len(g.days), 12))}
    body = backtest(g, dividends=dividends, configurations=tries).to_json()
    assert .1 < body['strategies']['swing']['pbo'] < .95 and body['best_rule']['n_rules'] == 12 and body['best_rule']['p_white'] > .05
    assert body['strategies']['noise_area']['pbo'] is None and body['strategies']['swing']['doubt'] is None

def brackets(g, every, hold, up, down):
    "Swing tickets of every so many closes: bought at the next open, target and stop, sold `hold` sessions later."
    out = []
    for i in range(0, len(g.days) - hold - 1, every):
        px, at, end = float(g.close[i][g.n[i] - 1]), session(g.days[i + 1]).open, session(g.days[i + 1 + hold]).open
        out.append(issue(kind='swing', side='buy', provenance='replay:test', issued_at=session(g.days[i]).close, valid_from=at, valid_until=at + pd.Timedelta(hours=1), model='none',
            declared_p=.5, p_calibrated=.5, p_lower=.5, breakeven_p=.5, ev_low_usd=0., size_frac=.5, entry_from=at, entry_until=at + pd.Timedelta(hours=1),
            entry_px_low=px*.9, entry_px_high=px*1.1, exit_from=end, exit_until=end + pd.Timedelta(minutes=30), target_px=px*(1 + up), stop_px=px*(1 - down)))
    return out

def brackets_outside(g, tickets):
    "The same tickets in backtesting.py: a market order with stop loss and take profit, closed for time."
    import backtesting
    df = bar_frame(g, always_long(g)); naive = lambda at: at.tz_localize(None)
    first = {df.index.searchsorted(naive(t.entry_from)) - 1: t for t in tickets}; last = {df.index.searchsorted(naive(t.exit_from)) - 1 for t in tickets}
    class Follow(backtesting.Strategy):
        def init(self): pass
        def next(self):
            i = len(self.data) - 1
            if i in last and self.position: self.position.close()
            if i in first: self.buy(size=1, sl=first[i].stop_px, tp=first[i].target_px)
    return backtesting.Backtest(df, Follow, cash=1e6, commission=0, trade_on_close=False).run()['_trades'].sort_values('EntryTime', ignore_index=True)

@pytest.mark.parametrize('up, down', [(.004, .004), (.01, .006), (.0015, .0012)])
@pytest.mark.filterwarnings('ignore')
def test_tickets_end_where_an_outside_engine_ends_them(bars, up, down):
    "Entry, stop, target and time agree bar by bar; where a bar opens beyond the target, ours is paid the target and not the better open."
    g = grid(bars[bars.index < '2024-08-01'])
    tickets = [t for t in brackets(g, 3, 2, up, down) if t.stop_px < g.open[g.days.index(t.entry_from.date()), 0] < t.target_px]
    ours, theirs = [settle(t, g, Costs('paper')) for t in tickets], brackets_outside(g, tickets)
    assert len(ours) == len(theirs) > 20 and len({o.status for o in ours}) >= 2
    assert [o.entry_at.tz_localize(None) for o in ours] == theirs['EntryTime'].tolist() and [o.entry_px for o in ours] == theirs['EntryPrice'].tolist()
    assert [o.exit_at.tz_convert('America/New_York').tz_localize(None) for o in ours] == theirs['ExitTime'].tolist()
    for o, px in zip(ours, theirs['ExitPrice']): assert o.exit_px == pytest.approx(px, abs=1e-9) or o.status == 'target' and o.exit_px < px


def option_at(g, d, provenance, net=62.):
    "An option ticket of the d-th day at noon, bought and sold; 0.1 % of equity at 1.25 is one contract of 100,000 USD."
    at = session(g.days[d]).open + pd.Timedelta(minutes=150); out = at + pd.Timedelta(minutes=20)
    t = issue(kind='option', side='call', provenance=provenance, issued_at=at, valid_from=at, valid_until=at + pd.Timedelta(minutes=15), model='har, direction option of 2025-01-02', declared_p=.55, p_calibrated=.6, p_lower=.55, breakeven_p=.5, ev_low_usd=3., size_frac=.00126, entry_limit_usd=1.25)
    return t, Outcome('target' if net > 0 else 'stopped', (), at, 1.2, out, 1.2 + (net + 3)/100, 1, net + 3, 3., net, net/120)


@pytest.mark.parametrize('provenance, counts', [('simulated:test', True), ('tws', True), ('replay:spy_chain', False), ('tws-delayed', False)])
def test_options_join_the_equity_where_their_quotes_are_their_sources_own(bars, provenance, counts):
    g = grid(bars[bars.index < '2024-01-10']); pairs = [option_at(g, 5, provenance), option_at(g, 9, provenance, -40.), (option_at(g, 11, provenance)[0], Outcome('armed'))]
    s = SimpleNamespace(tickets=pairs, silences=[], upper={}, frame=lambda: ticket_frame(pairs)); bt = backtest(g, signals=s); out = json.loads(json.dumps(bt.to_json(), allow_nan=False)); r = bt.results['intraday']
    assert len(bt.tickets) == 3 and len(r.trades) == 2*counts and out['strategies']['intraday']['n_trades'] == 2*counts
    assert any(o.startswith('WHATIF') for o in out['notes']) != counts and int(bt.tickets['win'].notna().sum()) == published(s)['ended'] == 2*counts
    if not counts: assert (r.daily == 0).all(); return
    fees = [Costs().options_usd(1, px, side, g.days[d]) for d, o in ((5, pairs[0][1]), (9, pairs[1][1])) for px, side in ((o.entry_px, 'buy'), (o.exit_px, 'sell'))]
    assert (r.equity.iloc[-1] - 1)*1e5 == pytest.approx(65 - 37 - sum(fees)) and (r.daily != 0).sum() == 2
    d = out['strategies']['intraday']['doubt']; assert [o['minutes'] for o in d['delays']] == [0] and len(d['costs']) == 6 and '2 of 3 option tickets' in out['notes'][0]
    assert 'intraday' in report.strategies(out) and len(report.doubt(out)) > 100


def test_unproven_options_have_no_size_and_no_equity(bars):
    g = grid(bars[bars.index < '2024-01-10']); t, o = option_at(g, 5, 'simulated:test'); pairs = [(replace(t, size_frac=0.), o)]
    bt = backtest(g, signals=SimpleNamespace(tickets=pairs, silences=[], upper={})); assert not len(bt.results['intraday'].trades) and '0 of 1 option tickets' in bt.notes[0]
