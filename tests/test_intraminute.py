"""Days drawn inside real minute bars: exact bars, sound quotes and books, nothing from later minutes, the same in every process."""
import hashlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.bars import OHLC, OHLCV, read_bars
from spyresearch.core import DataError, UsageError
from spyresearch.tws.intraminute import draw_day, fits, n_trades, touches
from spyresearch.tws.ticks import Ticks

# 2021 Q1 (its last session ends early in IB's record), sub-cent prices, half days, a wild day, volume of another scale, a missing minute
DAYS = ['2021-01-04', '2021-03-31', '2022-01-03', '2023-11-24', '2025-04-09', '2025-11-28', '2026-03-31', '2026-07-13']
SERIES = ('trades', 'quotes', 'books')


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))


@pytest.fixture(scope='module')
def drawn(spy): return {d: (spy.loc[d], draw_day(spy.loc[d])) for d in DAYS}


def columns(x): return [getattr(x, o.name) for o in fields(x)]


def same(a, b, until=None):
    "Are all events of `a` (before `until`, ns) and of `b` equal, bit for bit?"
    def cut(x): return [o if until is None else o[x.t < until] for o in columns(x)]
    return all(np.array_equal(p, q) for s in SERIES for p, q in zip(cut(getattr(a, s)), columns(getattr(b, s))))


def plain_faults(ticks, bars):
    "A plain second check of OHLCV, one minute at a time."
    t, out = ticks.trades.t, []
    for at, o in bars.iterrows():
        mine = (t >= at.value) & (t < at.value + 60*10**9)
        px, size = ticks.trades.px[mine], ticks.trades.size[mine].tolist()
        got = (px[0], px.max(), px.min(), px[-1], sum(size)) if size else None
        if got != (tuple(o[OHLCV]) if o['volume'] > 0 else None): out.append((at, got))
    return out


def assert_sound(ticks):
    "Times in order; quotes uncrossed; each trade inside its quote; books sorted and led by the quote."
    tr, q, b = ticks.trades, ticks.quotes, ticks.books
    assert (np.diff(tr.t) > 0).all() and (np.diff(q.t) >= 0).all() and (np.diff(b.t) >= 0).all()
    assert (q.bid < q.ask).all() and all((o > 0).all() and (o%100 == 0).all() for o in (q.bid_size, q.ask_size, b.bid_sz, b.ask_sz))
    assert (tr.size > 0).all()
    at = np.searchsorted(q.t, tr.t, 'right') - 1
    assert (at >= 0).all() and (q.bid[at] <= tr.px).all() and (tr.px <= q.ask[at]).all()
    assert (np.diff(b.bid_px, axis=1) < 0).all() and (np.diff(b.ask_px, axis=1) > 0).all() and (b.bid_px[:, 9] > 0).all()
    at = np.searchsorted(q.t, b.t, 'right') - 1
    alone = np.r_[True, np.diff(b.t) > 0] & np.r_[np.diff(b.t) > 0, True] # where two events share a nanosecond, the first quote's book is not the last's
    for level, best in ((b.bid_px, q.bid), (b.ask_px, q.ask), (b.bid_sz, q.bid_size), (b.ask_sz, q.ask_size)):
        assert (level[:, 0] == best[at])[alone].all()


@pytest.mark.parametrize('day', DAYS)
def test_a_real_session_is_met_exactly(drawn, day):
    bars, ticks = drawn[day]
    assert fits(ticks, bars) == [] and plain_faults(ticks, bars) == []
    assert ticks.simulated == SERIES and len(ticks.seconds) == 0
    assert_sound(ticks)


def test_the_days_are_awkward(drawn):
    minutes = {d: len(bars) for d, (bars, _) in drawn.items()}
    assert minutes['2023-11-24'] == minutes['2025-11-28'] == 210 and minutes['2026-07-13'] == 389
    assert sum((np.round(bars[OHLC], 2) != bars[OHLC]).to_numpy().sum() for bars, _ in drawn.values()) > 500
    missing = pd.Timestamp('2026-07-13 15:27', tz='America/New_York').value
    for s in SERIES: # nothing is drawn for a minute that the tape lacks
        t = getattr(drawn['2026-07-13'][1], s).t
        assert not ((t >= missing) & (t < missing + 60*10**9)).any()


def test_volume_in_round_lots(shared):
    bars = read_bars(shared('spy_1min_ib_2021q1.parquet'))
    for d in ('2021-01-04', '2021-04-01'): assert fits(draw_day(bars.loc[d]), bars.loc[d]) == []


@pytest.mark.parametrize('day', DAYS)
def test_the_market_is_plausible(drawn, day):
    "Volume of events, spreads, sides that the quote rule can tell, clustering."
    bars, ticks = drawn[day]
    tr, q, b, minutes = ticks.trades, ticks.quotes, ticks.books, len(bars)
    assert 60*minutes <= len(tr) <= 200*minutes and 100*minutes < len(b) < 240*minutes and 80*minutes < len(q) < len(b)
    width = np.round((q.ask - q.bid)*100)
    assert set(width) == {1, 2, 3} and .8 < (width == 1).mean() < .9
    at = np.searchsorted(q.t, tr.t, 'right') - 1
    side = np.sign(np.round(2*tr.px - q.bid[at] - q.ask[at], 9))
    assert (side == 0).mean() < .04 and .4 < (side > 0).mean() < .6
    assert .4 < len(np.unique(tr.t//10**9))/(60*minutes) < .8 and np.bincount((tr.t - tr.t[0])//10**9).max() >= 10
    gaps = np.diff(q.t)[np.diff(q.t//(60*10**9)) == 0]
    assert gaps.max() < 8e9
    row = np.searchsorted(bars.index.as_unit('ns').asi8, q.t, 'right') - 1
    assert (q.bid > bars['low'].to_numpy()[row] - .0101).all() and (q.ask < bars['high'].to_numpy()[row] + .0101).all()


def test_trades_on_cents_but_for_the_bars_own_prices(drawn):
    bars, ticks = drawn['2022-01-03']
    px = ticks.trades.px
    assert set(px[np.round(px, 2) != px]) <= set(bars[OHLC].to_numpy().ravel())


def test_a_moved_quote_keeps_the_queues_below(drawn):
    "When the bid moves up a cent, a queue appears and the others keep price and size: an insert, not ten rows."
    b = drawn['2026-03-31'][1].books
    up = np.flatnonzero(np.isclose(np.diff(b.bid_px[:, 0]), .01) & (b.t[1:] - b.t[:-1] > 0))
    kept = [len(set(zip(b.bid_px[i], b.bid_sz[i])) & set(zip(b.bid_px[i + 1], b.bid_sz[i + 1]))) for i in up[:300]]
    assert len(kept) > 100 and min(kept) >= 8


@pytest.mark.parametrize('n', [1, 90, 389])
def test_a_cut_day_is_the_beginning_of_the_whole(drawn, n):
    bars, whole = drawn['2026-03-31']
    assert same(whole, draw_day(bars[:n]), bars.index[n].value)


def test_a_later_bar_changes_nothing_before_it(drawn):
    bars, whole = drawn['2026-03-31']
    other = bars.copy(); other.iloc[200:, :4] += 1; other.iloc[200:, 4] *= 3
    until = bars.index[200].value
    a, b = draw_day(bars[:200]), draw_day(other)
    assert same(b, a, until) and same(whole, a, until) and not same(whole, b)


def test_trades_of_a_minute_need_no_earlier_minute(drawn):
    bars, whole = drawn['2026-03-31']
    late, tr = draw_day(bars[300:]).trades, whole.trades
    assert all(np.array_equal(a[tr.t >= bars.index[300].value], b) for a, b in zip(columns(tr), columns(late)))


def test_other_seed_other_day(drawn):
    bars, whole = drawn['2023-11-24']
    other = draw_day(bars, seed=8)
    assert fits(other, bars) == [] and not same(whole, other)


def digest(ticks): return hashlib.sha256(b''.join(o.tobytes() for s in SERIES for o in columns(getattr(ticks, s)))).hexdigest()


def test_the_same_in_another_process(drawn, shared, tmp_path):
    bars, whole = drawn['2023-11-24']
    bars.to_parquet(tmp_path/'day.parquet')
    code = f"""
import sys, pandas as pd; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_intraminute import digest, draw_day
print(digest(draw_day(pd.read_parquet(sys.argv[1]))))"""
    said = subprocess.run([sys.executable, '-c', code, str(tmp_path/'day.parquet')], capture_output=True, text=True, check=True).stdout
    assert said.strip() == digest(whole)


def frame(rows): return pd.DataFrame(rows, pd.date_range('2026-03-31 09:30', periods=len(rows), freq='min', tz='America/New_York'), OHLCV, float)


@st.composite
def odd_bars(draw):
    "Bars of any shape: flat, of one share, between cents, as wide as the price, with fractions of a share."
    grain = draw(st.sampled_from([1, 100, 10_000]))
    low = draw(st.integers(grain, 900*grain))
    reach = draw(st.sampled_from([0, 1, 3, 40, 100*grain])) if draw(st.booleans()) else draw(st.integers(0, 5*grain))
    o, c = (low + draw(st.integers(0, reach)) for _ in range(2))
    h = draw(st.sampled_from([max(o, c), low + reach])); lo = draw(st.sampled_from([min(o, c), low]))
    volume = draw(st.one_of(st.integers(0, 8), st.integers(1, 10**8), st.floats(.01, 1e6), st.just(np.nan)))
    return [p/grain for p in (o, h, lo, c)] + [volume]


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_bars(), min_size=1, max_size=4), st.integers(0, 2**40), st.sampled_from([None, None, .01, .02, .05, .5]))
def test_odd_bars_are_met_exactly(rows, seed, spread):
    bars = frame(rows)
    ticks = draw_day(bars, seed=seed, spread=spread)
    assert fits(ticks, bars) == [] and plain_faults(ticks, bars) == []
    assert_sound(ticks)
    if spread: assert np.allclose(ticks.quotes.ask - ticks.quotes.bid, spread)


@pytest.mark.parametrize('volume,sizes', [(1, [.25]*4), (2, [.5]*4), (3, [.5]*3 + [1.5]), (4, [1]*4), (.5, [.125]*4)])
def test_less_volume_than_prices_to_show(volume, sizes):
    bars = frame([[600, 602, 599, 601, volume]])
    ticks = draw_day(bars)
    assert sorted(ticks.trades.size) == sizes and fits(ticks, bars) == []


def test_whole_shares_wherever_the_volume_allows(drawn):
    for bars, ticks in drawn.values():
        assert (ticks.trades.size%1 == 0).all()
        n = np.bincount((ticks.trades.t - bars.index[0].value)//(60*10**9))
        want = [n_trades(v, touches(o, h, lo, c)) for o, h, lo, c, v in bars[OHLCV].to_numpy()]
        assert n[n > 0].tolist() == want


def test_no_volume_no_trade_but_quotes():
    bars = frame([[600, 602, 599, 601, 0], [600, 602, 599, 601, np.nan]])
    ticks = draw_day(bars)
    assert len(ticks.trades) == 0 and len(ticks.quotes) > 50 and fits(ticks, bars) == []
    assert len(fits(ticks, bars.fillna(5.))) == 5


def test_fits_names_what_is_wrong(drawn):
    bars, ticks = drawn['2023-11-24']
    wrong = bars.copy(); wrong.iloc[7, 1] += .01; wrong.iloc[9, 4] += 1
    assert [o.split(':')[0] for o in fits(ticks, wrong)] == ['high', 'volume'] and '09:37' in fits(ticks, wrong)[0]
    assert fits(ticks, bars[1:])[0].endswith('trades lie in no bar') and len(fits(ticks, bars[:0])) == 1
    assert len(fits(Ticks(), bars)) == 5 and fits(Ticks(), bars[:0]) == []


def test_bars_that_cannot_be_drawn_from(drawn):
    bars, _ = drawn['2023-11-24']
    broken = bars.copy(); broken.iloc[3, 1] = broken.iloc[3, 2] - 1
    for bad, why in ((broken, 'enclose'), (bars.tz_localize(None), 'naive'), (bars.assign(**bars[OHLCV]/1000), 'below 1 USD'), (pd.concat([bars, drawn['2025-11-28'][0]]), 'several days'),
                     (bars[['open']], 'columns missing'), (bars[:2].set_axis(bars.index[0] + pd.to_timedelta([0, 5], 's')), 'shorter than a minute')):
        with pytest.raises(DataError, match=why): draw_day(bad)
    for o in (dict(spread=0), dict(spread=.015), dict(spread=np.nan), dict(spread=2), dict(seed=-1)):
        with pytest.raises(UsageError): draw_day(bars, **o)
    assert len(draw_day(bars[:0]).books) == 0
