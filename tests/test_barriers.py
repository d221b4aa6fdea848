"""Triple barriers against a second implementation, and against their own future."""
from datetime import date
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.bars import read_bars
from spyresearch.models.barriers import DOWN, LONG, NEITHER, NEVER, SHORT, UNKNOWN, UP, bar_from, fits, race_grid, triple_barrier
from spyresearch.models.targets import origins
from spyresearch.models.windows import Panel
from spyresearch.sessions import MINUTES, session
from spyresearch.trade.tickets import first_exit, line

DAYS = [date(2025, 3, 3), date(2025, 3, 4)]

def market(seed, gaps=.1, n=(MINUTES, 210)):
    "Two made-up sessions, one of them a half day, in coarse ticks with missing minutes."
    rng = np.random.default_rng(seed); shape = len(n), MINUTES
    close = 100*np.exp(np.cumsum(rng.normal(0, 1e-3, shape), 1)).round(4); opened = np.c_[close[:, :1], close[:, :-1]]*np.exp(rng.normal(0, 3e-4, shape))
    wick = abs(rng.normal(0, 5e-4, (2, *shape)))
    px = dict(open=opened, high=np.maximum(opened, close)*(1 + wick[0]), low=np.minimum(opened, close)*(1 - wick[1]), close=close)
    gone = (rng.random(shape) < gaps) | (np.arange(MINUTES) >= np.array(n)[:, None])
    return SimpleNamespace(days=DAYS, n=np.array(n), **{k: np.where(gone, np.nan, np.round(v, 2)) for k, v in px.items()})

def by_hand(p, d, m, up, down, minutes, side):
    "One label, bar by bar: (outcome, bar of decision, exit price)."
    limit = min(m + minutes, p.n[d] - 1) if minutes else p.n[d] - 1
    entry = next((k for k in range(m + 1, MINUTES) if not np.isnan(p.close[d, k])), NEVER)
    if entry > limit: return np.nan, NEVER, np.nan
    high, low = p.open[d, entry]*np.exp(up), p.open[d, entry]*np.exp(-down); last = np.nan
    win, lose = (high, low) if side > 0 else (low, high)
    for k in range(entry, MINUTES):
        if np.isnan(p.close[d, k]): continue
        if k > limit: return 0., k, last
        best, worst = (p.high[d, k], p.low[d, k]) if side > 0 else (p.low[d, k], p.high[d, k])
        if side*worst <= side*lose: return -1., k, side*min(side*p.open[d, k], side*lose)
        if side*best >= side*win: return 1., k, win
        last = p.close[d, k]
        if k == limit: return 0., k, last
    return np.nan, NEVER, np.nan

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([.5, 1., 2., 4.]), st.sampled_from([.5, 1., 3.]), st.sampled_from([1, 7, 60, 500, None]), st.sampled_from([LONG, SHORT]), st.sampled_from([0., .1, .6]))
def test_labels_equal_a_plain_loop(seed, up, down, minutes, side, gaps):
    p = market(seed, gaps); day, minute = origins(p.n); sigma = np.full(len(day), 1.5e-3)
    got = triple_barrier(p, day, minute, sigma, up, down, minutes, side)
    for i in range(0, len(day), 9):
        outcome, known, px = by_hand(p, day[i], minute[i], up*sigma[i], down*sigma[i], minutes, side)
        np.testing.assert_equal((got.outcome[i], got.known[i]), (outcome, known)); np.testing.assert_allclose(got.exit_px[i], px, rtol=1e-12)
    grid, _ = race_grid(p, day, minute, sigma, [up, 9.], [down], [minutes, 3], side)
    np.testing.assert_array_equal(grid[:, 0, 0, 0], got.first)

def test_tickets_tell_the_same_story():
    "The rule by which tickets are settled, which knows nothing of this one, finds the same bars and prices."
    p = market(5, gaps=0.); day, minute = origins(p.n); sigma = np.full(len(day), 2e-3); flat = line(p); place = np.r_[0, p.n.cumsum()]
    for side in (LONG, SHORT):
        got = triple_barrier(p, day, minute, sigma, 1.5, 1., 45, side)
        for i in np.flatnonzero(got.first != UNKNOWN)[::3]:
            at, base = place[day[i]], got.entry_px[i]
            win, lose = (np.exp(1.5*sigma[i]), np.exp(-sigma[i])) if side > 0 else (np.exp(-sigma[i]), np.exp(1.5*sigma[i]))
            k, px, how = first_exit(flat, at + got.entry[i], at + got.limit[i] + 1, base*win, base*lose, side)
            assert how == {1: 'target', -1: 'stopped', 0: 'timed_out'}[got.outcome[i]]
            if how != 'timed_out': assert (k - at, px) == (got.known[i], pytest.approx(got.exit_px[i], rel=1e-12))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, MINUTES), st.sampled_from([5, 60, None]), st.sampled_from([0., .3]))
def test_maturity_on_any_cut(seed, cut, minutes, gaps):
    "Made-up days with holes, cut after any minute of the first: what is known by then stays, all else is unknown."
    p = market(seed, gaps, (MINUTES,)); p.days = DAYS[:1]; day, minute = origins(p.n); sigma = np.full(len(day), 1e-3)
    part = SimpleNamespace(**vars(p) | {k: np.where(np.arange(MINUTES) < cut, getattr(p, k), np.nan) for k in ('open', 'high', 'low', 'close')})
    whole, cut_off = (triple_barrier(x, day, minute, sigma, 1, 1, minutes) for x in (p, part)); check_cut(whole, cut_off, whole.known < cut)
    a, b = (race_grid(x, day, minute, sigma, [.5, 2], [1, 3], [5, minutes])[0] for x in (p, part))
    assert ((b == UNKNOWN) | (a == b)).all()

def check_cut(whole, part, old):
    np.testing.assert_array_equal(part.first, np.where(old, whole.first, UNKNOWN)); np.testing.assert_array_equal(part.known, np.where(old, whole.known, NEVER))
    for k in ('outcome', 'ret', 'both'): np.testing.assert_array_equal(getattr(part, k)[old], getattr(whole, k)[old])
    assert np.isnan(part.ret[~old]).all() and np.isnan(part.outcome[~old]).all() and not part.both[~old].any()

@pytest.fixture(scope='module')
def real(shared): return read_bars(shared('spy_1min.parquet'))

@pytest.mark.parametrize('upto', ['2024-12-24', '2025-04-09', '2026-07-13']) # a half day, a wild day, a day with a hole
def test_maturity_on_real_days(real, upto):
    bars = real.loc[:upto].iloc[-390*4:]; whole = Panel.from_bars(bars, features=['r1']); day, minute = whole.origins(); rng = np.random.default_rng(1)
    sigma = rng.uniform(1e-3, 5e-3, len(day)); first = session(whole.days[-1]).open
    for m in [1, 15, *rng.integers(16, whole.n[-1], 12), whole.n[-1] - 1]:
        cut = first + pd.Timedelta(minutes=int(m)); part = Panel.from_bars(bars[bars.index < cut], features=['r1']); assert len(part) == len(whole)
        for minutes, side in ((30, LONG), (None, SHORT)):
            a, b = (triple_barrier(p, day, minute, sigma, 1., .7, minutes, side) for p in (whole, part)); when = a.known_at(whole)
            check_cut(a, b, np.asarray(when <= cut))
            assert (when[a.first != UNKNOWN] > pd.DatetimeIndex([session(whole.days[d]).open + pd.Timedelta(minutes=int(k) + 1) for d, k in zip(day, minute)])[a.first != UNKNOWN]).all()

def test_grid_on_real_days_is_in_order(real):
    p = Panel.from_bars(real.loc['2025-03-03':'2025-04-30'], features=['r1']); day, minute = p.origins()
    first, both = race_grid(p, day, minute, np.full(len(day), 3e-3), [.2, .6, 1.5], [.2, .6, 1.5], [5, 30, 60, None])
    known = (first != UNKNOWN).all((1, 2, 3)); f = first[known]; assert known.mean() > .98
    up, down, n = f == UP, f == DOWN, f == NEITHER
    assert (up[:, 1:] <= up[:, :-1]).all() and (up[:, :, 1:] >= up[:, :, :-1]).all() and (up[..., 1:] >= up[..., :-1]).all()
    assert (down[:, 1:] >= down[:, :-1]).all() and (down[:, :, 1:] <= down[:, :, :-1]).all() and (n[..., 1:] <= n[..., :-1]).all()
    assert 0 < both.mean() < .03 and (first[both] == DOWN).all()
    assert not fits(p, day, minute, [60])[minute > 329].any() and (bar_from(p) <= NEVER).all()
