"""Option tickets followed at recorded quotes: fills that were there, exits that are never early, no score without a quote."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.core import ET
from spyresearch.trade import follow as f
from spyresearch.trade.costs import Costs
from spyresearch.trade.tickets import Line

OPEN = pd.Timestamp('2026-03-31 10:00', tz=ET)


def at(s): return OPEN + pd.Timedelta(seconds=s)


def market(seed, minutes=40, every=5, holes=.2):
    "Bars of a walk in ten-cent steps, and quotes every few seconds, some of them unsound."
    rng = np.random.default_rng(seed); s = 600 + rng.integers(-1, 2, minutes*12).cumsum()/10
    bar = s.reshape(minutes, 12); l = Line(np.array([at(60*i).value for i in range(minutes)]), bar[:, 0], bar.max(1), bar.min(1), bar[:, -1])
    when = np.arange(0, minutes*60, every); n = len(when); mid = 2 + (s - 600)/2 + rng.normal(0, .01, n)
    bid, ask = np.round(mid - .01, 2), np.round(mid + .02, 2); bad = rng.random(n)
    bid = np.where(bad < holes/3, 0, bid); ask = np.where((bad >= holes/3) & (bad < 2*holes/3), bid - .01, ask); age = np.where(bad > 1 - holes/3, 60., .5)
    return l, pd.DataFrame(dict(con_id=1, bid=bid, ask=ask, age=age), index=pd.DatetimeIndex([at(int(o)) for o in when], name='Datetime'))


def ticket(right='C', trigger=.3, target=.6, stop=.5, limit=9., wait=15, hold=30):
    s = 1 if right == 'C' else -1; base = 600 + s*trigger
    return SimpleNamespace(kind='option', right=right, issued_at=OPEN, valid_from=OPEN, trigger_px=round(base, 2), trigger_until=at(60*wait), entry_limit_usd=limit,
                           exit_spy_px=round(base + s*target, 2), stop_spy_px=round(base - s*stop, 2), time_stop=at(60*hold))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from('CP'), st.floats(.1, 1.5), st.floats(.1, 1.5), st.floats(.1, 1.5), st.floats(1.8, 3))
def test_every_fill_was_a_quote_and_comes_after_its_reason(seed, right, trigger, target, stop, limit):
    l, chain = market(seed); t = ticket(right, trigger, target, stop, limit); q = f.quotes_of(chain, 1); o = f.follow(t, l, q)
    assert ((f.sound(q).bid > 0) & (f.sound(q).ask >= f.sound(q).bid)).all() and len(f.sound(q)) < len(q)
    times = [w for _, w, _ in o.changes]; assert times == sorted(times)
    if np.isnan(o.entry_px): assert o.status in ('expired', 'withdrawn') and np.isnan(o.net_usd); return
    if o.status == 'filled': return # nobody bid for it after its end, so far
    row = chain.loc[o.entry_at]; assert row.ask == o.entry_px <= limit + 1e-9 and o.entry_at < t.trigger_until
    s = 1 if right == 'C' else -1; met = dict(zip(l.at, s*l.high if s > 0 else -l.low))
    assert any(v >= s*t.trigger_px for k, v in met.items() if k + f.MINUTE <= o.entry_at.value)
    row = chain.loc[o.exit_at]; assert row.bid == o.exit_px > 0 and o.exit_at > o.entry_at
    held = [(h, lo) for k, h, lo in zip(l.at, l.high, l.low) if k >= o.entry_at.value and k + f.MINUTE <= o.exit_at.value and k < t.time_stop.value]
    best, worst = (max(a if s > 0 else -b for a, b in held), max(-b if s > 0 else a for a, b in held)) if held else (-9e9, -9e9)
    if o.status == 'target': assert best >= s*t.exit_spy_px
    if o.status == 'timed_out': assert o.exit_at >= t.time_stop and (not held or best < s*t.exit_spy_px and worst < -s*t.stop_spy_px)
    day = o.entry_at.date(); cost = Costs().options_usd(1, o.entry_px, 'buy', day) + Costs().options_usd(1, o.exit_px, 'sell', day)
    assert o.net_usd == pytest.approx(100*(o.exit_px - o.entry_px) - cost)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 39))
def test_what_is_known_is_never_taken_back(seed, cut):
    "Cut the record at any minute: what had happened by then is what the whole record says of that time."
    l, chain = market(seed); t = ticket(); whole = f.follow(t, l, f.quotes_of(chain, 1))
    part = f.follow(t, Line(*(getattr(l, o)[:cut] for o in ('at', 'open', 'high', 'low', 'close'))), f.quotes_of(chain[chain.index < at(60*cut)], 1))
    n = len(part.changes); said = [(s, w) for s, w, _ in part.changes]
    assert said == [(s, w) for s, w, _ in whole.changes][:n] or np.isnan(part.net_usd) and part.closed


@pytest.mark.parametrize('right', 'CP')
def test_both_prices_in_one_bar_is_the_stop(right):
    l = Line(np.array([at(60*i).value for i in range(4)]), *(np.array(o, float) for o in ([600, 600, 600, 600], [600.5, 600.2, 602, 600], [599.5, 599.9, 598, 600], [600, 600, 600, 600])))
    chain = pd.DataFrame(dict(con_id=1, bid=2., ask=2.02, age=.1), index=pd.DatetimeIndex([at(o) for o in range(0, 240, 5)], name='Datetime'))
    assert f.follow(ticket(right, .3, 1., 1.), l, f.quotes_of(chain, 1)).status == 'stopped'


def test_without_a_quote_to_sell_on_there_is_no_score_and_with_a_late_one_there_is():
    l, chain = market(5, holes=0.); t = ticket(trigger=0.); t.trigger_px = None; t.exit_spy_px = t.stop_spy_px = None; q = f.quotes_of(chain, 1)
    whole = f.follow(t, l, q); early = f.follow(t, l, q[q['at'] < t.time_stop.value]); late = f.follow(t, l, q[(q['at'] < at(100).value) | (q['at'] >= at(2100).value)])
    assert whole.status == late.status == 'timed_out' and early.status == 'filled' and np.isnan(early.net_usd) # nobody bids for it, so far
    assert (whole.exit_at, late.exit_at) == (at(1800), at(2100)) and np.isfinite(late.net_usd)
