"""The search over triggers, exits and contracts against slow loops, and on paths that have no edge."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import ndtr

from spyresearch.core import UsageError
from spyresearch.trade import search as s

PX, SD = 600., .0004


def walk(P, L, seed, sd=SD, inner=20):
    z = np.random.default_rng(seed).normal(size=(P//2, L, inner)); z = np.concatenate([z, -z])*sd/np.sqrt(inner)
    c = PX*np.exp(np.cumsum((z - sd*sd/inner/2).reshape(P, -1), 1)).reshape(P, L, inner)
    o = np.concatenate([np.full((P, 1), PX), c[:, :-1, -1]], 1)
    return s.Paths(PX, o, np.maximum(c.max(2), o), np.minimum(c.min(2), o), c[..., -1], np.arange(P) % (P//2))


def board(sd=SD, spread=.02, fee=1.4, minutes=76):
    c = pd.DataFrame([(r, m, k) for r in 'CP' for m in (200, 590) for k in PX + np.arange(-7., 8)], columns=['right', 'left', 'strike'])
    a, k = np.where(c.right == 'C', 1, -1)[:, None, None], c.strike.to_numpy()[:, None, None]; f = s.spot_grid(PX, 6*sd*np.sqrt(minutes))
    v = sd*np.sqrt(c.left.to_numpy()[:, None, None] - np.arange(minutes + 1)[None, :, None]); d = np.log(f/k)/v
    return s.Board(c, f, (a*(f*ndtr(a*(d + v/2)) - k*ndtr(a*(d - v/2)))).astype(np.float32), np.full(len(c), spread/2), np.full(len(c), fee))


def gaps(seed, P=30, L=20):
    "Bars that jump, in whole cents, so that levels are met exactly and openings lie beyond them."
    rng = np.random.default_rng(seed); o = PX + rng.integers(-30, 31, (P, L))/10; c = o + rng.integers(-10, 11, (P, L))/10
    return s.Paths(PX, o, np.maximum(o, c) + rng.integers(0, 5, (P, L))/10, np.minimum(o, c) - rng.integers(0, 5, (P, L))/10, c, np.arange(P))


def by_hand(p, i, trigger, wait, side, target, stop, until):
    "One path, bar by bar."
    at, px = wait, None
    if trigger is None: at, px = 0, p.open[i, 0]
    for k in range(wait if trigger is not None else 0):
        if (p.high[i, k] >= trigger if trigger > p.px else p.low[i, k] <= trigger):
            at, px = k, (max if trigger > p.px else min)(trigger, p.open[i, k]); break
    if px is None: return None
    last = min(until, p.minutes - 1)
    for k in range(at, last):
        if (p.low[i, k] <= stop if side > 0 else p.high[i, k] >= stop):
            return at, px, k, (stop if k == at else min(stop, p.open[i, k]) if side > 0 else max(stop, p.open[i, k])), 1
        if k > at and (p.high[i, k] >= target if side > 0 else p.low[i, k] <= target): return at, px, k, target, 0
    return at, px, last, p.open[i, last], 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, -2., -.5, .5, 2.]), st.integers(1, 20), st.sampled_from([1, -1]), st.integers(1, 30), st.integers(1, 30), st.integers(0, 25))
def test_entry_and_exit_as_by_hand(seed, trigger, wait, side, up, down, more):
    p = gaps(seed); trigger = None if trigger is None else PX + trigger; base = trigger or PX
    t = s.Try(trigger, side, round(base + side*up/10, 2), round(base - side*down/10, 2), wait + more)
    r, (bar, px), (out, sold, how) = s.walked(p, t, wait)
    hand = [by_hand(p, i, trigger, wait, side, t.target, t.stop, wait + more) for i in range(len(p))]
    assert [i for i, o in enumerate(hand) if o] == r.tolist()
    got = list(zip(bar.tolist(), px.tolist(), out.tolist(), sold.tolist(), how.tolist()))
    assert all(a == pytest.approx(b) for a, b in zip(got, (o for o in hand if o)))


@pytest.mark.parametrize('seed', range(3))
def test_without_an_edge_every_way_earns_the_costs(seed):
    "Optional stopping: on a martingale no trigger and no exit makes a gain; four standard errors for each of 720 ways."
    p, b = walk(4000, 76, seed), board(); cost, far = -2 - 1.4, []
    for t in s.tries(PX, SD*60**.5):
        k = np.flatnonzero(np.where(b.contracts.right == 'C', 1, -1) == t.side)[::6]; r, a, z = s.walked(p, t)
        if len(r) < 400 or np.isinf(t.target) and t.trigger: continue
        net = s.earned(b.only(k), np.full(len(k), np.inf), a, z); far += list((net.mean(1) - cost)/(net.std(1)/np.sqrt(len(r)) + .5))
    assert len(far) > 100 and np.abs(far).max() < 4.5 and abs(np.mean(far)) < .6


def test_a_wider_forecast_than_the_options_charge_for_finds_a_gain_and_a_narrower_one_nothing():
    b = board(); wide, narrow = (s.search(walk(3000, 76, 5, SD*k), b, SD*k*60**.5) for k in (1.3, .8))
    assert wide[0].score > 0 and wide[0].ev_usd > 2*wide[0].error
    assert max(o.ev_usd - 3*o.error for o in narrow) < 0


def test_the_judging_half_is_not_seen_by_the_choice():
    p, b, unit = walk(1000, 76, 7), board(), SD*60**.5; half = np.flatnonzero(p.group % 2 == 1)
    other = walk(1000, 76, 8); mixed = s.Paths(PX, *(np.where((p.group % 2 == 1)[:, None], getattr(other, o), getattr(p, o)) for o in ('open', 'high', 'low', 'close')), p.group)
    a, c = s.search(p, b, unit), s.search(mixed, b, unit)
    assert {(o.contract, o.how) for o in a} & {(o.contract, o.how) for o in c} and len(half) == 500
    assert s.ways(p.only(np.flatnonzero(p.group % 2 == 0)), b, unit, s.WAIT, 10_000) == s.ways(mixed.only(np.flatnonzero(mixed.group % 2 == 0)), b, unit, s.WAIT, 10_000)


def test_a_limit_that_is_passed_is_a_missed_trade():
    p = gaps(3); b = board(); t = s.Try(601., 1, 602., 600., 15); r, a, z = s.walked(p, t, 10); k = np.arange(30)
    free, bound = (s.earned(b.only(k), m, a, z) for m in (np.full(30, np.inf), s.limit(b.only(k), 601., 1, .003)))
    assert np.isfinite(free).all() and np.isnan(bound[:, a[1] > 601.3]).all() and np.array_equal(bound[:, a[1] == 601.], free[:, a[1] == 601.])


def test_an_early_time_stop_ends_every_position():
    p = walk(200, 76, 2); t = s.Try(None, 1, np.inf, -np.inf, 60)
    assert s.walked(p, t, last=11)[2][0].max() == 11


def test_senseless_triggers_are_refused():
    p = gaps(1)
    for bad in (np.nan, -1., np.inf):
        with pytest.raises(UsageError, match='trigger'): s.entered(p, bad, 5)
    with pytest.raises(UsageError, match='paths last'): s.entered(p, 601., 21)
