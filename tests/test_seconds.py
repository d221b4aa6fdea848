"""One record a second against pandas, by property and on five real days of SPY."""
from datetime import datetime

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.core import ET
from spyresearch.tws.seconds import BUY, COLUMNS, FAULTS, LEVELS, SELL, TEXT, TRADE_COLUMNS, UNKNOWN, Seconds, absent, minute_bar, trade_side

T = 1_774_963_800       # 2026-03-31 09:30:00 New York
N = 8                   # seconds a made-up spell lasts

px = st.integers(59_990, 60_010).map(lambda c: c/100)
bad = st.sampled_from([0, -1, float('nan'), float('inf'), -float('inf')])
trade = st.tuples(st.just('trade'), st.floats(0, N - .01), px | bad, st.integers(1, 500) | bad, st.integers(-3, 6), st.booleans(), st.sampled_from(['', '', ' I', 'Q', 'F']))
quote = st.tuples(st.just('quote'), st.floats(0, N - .01), st.sampled_from(['bid', 'ask', 'bid_size', 'ask_size', 'last', 'last_size', 'volume', 'halted', 'data_type']), px | bad | st.integers(0, 4))

def closed(events, grace=2):
    "The records of a spell, each second closed `grace` seconds after its end; (records, trades accepted in time, Seconds)."
    s, out, accepted = Seconds(T), [], []
    for e in sorted(events, key=lambda e: e[1]):
        while s.oldest + 1 + grace <= T + e[1]: out.append(s.close(s.oldest))
        if e[0] == 'quote': s.quote(e[2], e[3], T + e[1]); continue
        _, at, price, size, lag, odd, conditions = e
        second = T + int(at) - lag; n = {k: s.faults[k] for k in ('bad_price', 'bad_size', 'repeated', 'before_start', 'trade_ahead')}
        late = len(s.late)
        s.trade(price, size, second, T + at, conditions, unreported=odd)
        if len(s.late) > late: assert s.late[-1] == (second, price, size) and second < s.oldest
        elif all(s.faults[k] == n[k] for k in n if k != 'trade_ahead'):
            accepted.append((second, price, size, not odd and 'I' not in conditions))
    while s.oldest < T + N + 3: out.append(s.close(s.oldest))
    return out, pd.DataFrame(accepted, columns=['second', 'px', 'size', 'reported']), s

@given(st.lists(trade | quote, max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_share_is_lost_or_counted_twice(events):
    "Volume by price equals the accepted trades, second by second; open, high, low and close are pandas' own."
    out, df, s = closed(events)
    assert [o.second for o in out] == list(range(T, T + N + 3)) and set(s.faults) <= set(FAULTS)
    assert sum(p[i] for o in out for p in o.prices for i in (2, 4, 6)) == df['size'].sum() and not (s._slots or s._past or s._books)
    for o in out:
        d = df[df['second'] == o.second]; r = d[d['reported']]
        assert len(o.cells) == len(COLUMNS) and (o['volume'] or 0) == d['size'].sum() and (o['trades'] or 0) == len(d)
        want = [None]*4 if r.empty else [r['px'].iloc[0], r['px'].max(), r['px'].min(), r['px'].iloc[-1]]
        assert [o[k] for k in ('open', 'high', 'low', 'close')] == want
        assert [p[0] for p in o.prices] == sorted(set(d['px'])) and sum(p[1] + p[3] + p[5] for p in o.prices) == len(d)
        if o['status'] == 'quiet': assert d.empty and all(o[k] is None for k in ('volume', 'bid', 'ask', *LEVELS))
        assert all(a is None or a >= 0 for a in (o['bid_age'], o['ask_age'], o['last_age']))

told = st.tuples(st.floats(0, N - .01), st.sampled_from(['last', 'volume']), px, st.integers(0, 3))

@given(st.lists(told, max_size=40))
@settings(max_examples=200, deadline=None)
def test_level_1_never_tells_of_a_price_at_which_nothing_traded(events):
    "Price and volume are two messages: whatever their order, a row with a price has a volume, or says that it is not known, and no growth is lost."
    s, total = Seconds(T, 'l1'), 1000
    s.quote('last', 600., T - .5); s.quote('volume', total, T - .5)
    for at, word, p, more in sorted(events):
        total += more*(word == 'volume')
        s.quote(word, p if word == 'last' else total, T + at)
    out = [s.close(T + i) for i in range(N)]
    assert all(o['open'] is None or o['volume'] is None or o['volume'] > 0 for o in out) and all((o['volume'] is None) == (o['trades'] is None) for o in out)
    assert sum(o['volume'] or 0 for o in out) == total - 1000

@given(st.lists(trade | quote, max_size=60), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_a_longer_grace_moves_no_quote(events, grace):
    "What stood at the end of a second does not depend on when the second is closed."
    keys = ('bid', 'ask', 'bid_size', 'ask_size', 'bid_age', 'ask_age', 'last_age', 'data_type')
    quotes = [e for e in events if e[0] == 'quote']
    rows = lambda out: [[o['status'], *(o[k] for k in keys)] for o in out]
    assert rows(closed(quotes, grace)[0]) == rows(closed(quotes, 0)[0])

@given(st.lists(trade | quote, max_size=80))
@settings(max_examples=100, deadline=None)
def test_minute_bar_is_the_seconds_in_one(events):
    out, df, _ = closed(events)
    b, r = minute_bar(out), df[df['reported']]
    if r.empty: assert b is None; return
    r = r.sort_values('second', kind='stable')
    assert b[:4] == (r['px'].iloc[0], r['px'].max(), r['px'].min(), r['px'].iloc[-1])
    assert (b.volume, b.barCount) == (df['size'].sum(), len(df)) and b.average == pytest.approx((df['px']*df['size']).sum()/df['size'].sum())

HAND = [ # what comes, and the side of the last trade
    ('buy at the ask', [('bid', 600.00), ('ask', 600.02), 600.02], BUY),
    ('sell at the bid', [('bid', 600.00), ('ask', 600.02), 600.00], SELL),
    ('through the ask', [('bid', 600.00), ('ask', 600.02), 600.05], BUY),
    ('inside, no earlier price', [('bid', 600.00), ('ask', 600.02), 600.01], UNKNOWN),
    ('inside, after a rise', [('bid', 600.00), ('ask', 600.02), 600.00, 600.01], BUY),
    ('inside, after a fall', [('bid', 600.00), ('ask', 600.02), 600.02, 600.01], SELL),
    ('inside, unchanged since a fall', [('bid', 600.00), ('ask', 600.02), 600.02, 600.01, 600.01, 600.01], SELL),
    ('the quote that stood, not the one after', [('bid', 600.00), ('ask', 600.02), 600.02, ('bid', 600.02), ('ask', 600.04)], BUY),
    ('the quote that moved before', [('bid', 600.00), ('ask', 600.02), ('ask', 600.03), ('bid', 600.02), 600.02], SELL),
    ('no quote, no price', [600.02], UNKNOWN),
    ('no quote, a rise', [600.01, 600.02], BUY),
    ('one side only', [('bid', 600.00), 600.00], UNKNOWN),
    ('a side taken away', [('bid', 600.00), ('ask', 600.02), ('ask', -1), 600.02], UNKNOWN),
    ('crossed, a fall', [('bid', 600.02), ('ask', 600.00), 600.03, 600.02], SELL),
    ('locked, no earlier price', [('bid', 600.02), ('ask', 600.02), 600.02], UNKNOWN),
    ('halted', [('bid', 600.00), ('ask', 600.02), ('halted', 1), 600.02], UNKNOWN),
    ('trading again', [('bid', 600.00), ('ask', 600.02), ('halted', 1), ('halted', 0), 600.02], BUY)]

@pytest.mark.parametrize('what,events,side', HAND, ids=[o[0] for o in HAND])
def test_sides_by_hand(what, events, side):
    s = Seconds(T)
    trades = [i for i, e in enumerate(events) if not isinstance(e, tuple)]
    for i, e in enumerate(events):
        if isinstance(e, tuple): s.quote(*e, T + i/100)
        else: s.trade(e, 1000 if i == trades[-1] else 1, T, T + i/100)
    assert sum(p[{BUY: 2, SELL: 4, UNKNOWN: 6}[side]] for p in s.close(T).prices) >= 1000

def test_a_stale_quote_decides_nothing():
    s = Seconds(T)
    for field, x in (('bid', 600.00), ('ask', 600.02)): s.quote(field, x, T)
    s.trade(600.02, 1, T + 10, T + 10.); s.trade(600.02, 1, T + 10, T + 10.1)
    for _ in range(10): s.close(s.oldest)
    assert s.close(T + 10).prices == ((600.02, 1, 1, 0, 0, 1, 1),)

def test_trade_side_is_symmetric():
    "What is a buy in one market is a sell in its mirror image."
    for p in range(-3, 4):
        for tick in (-1, 0, 1): assert trade_side(100 + p, 99, 101, tick) == -trade_side(100 - p, 99, 101, -tick)

def test_a_silent_hour_costs_nothing_and_says_so():
    s = Seconds(T)
    s.quote('bid', 600.00, T + .5)
    s.quote('bid', 600.01, T + 3600.5)      # nobody closed a second meanwhile
    assert len(s._past) == 1
    out = [s.close(T + i) for i in range(3601)]
    assert [o['status'] for o in out] == ['data', *['quiet']*3599, 'data'] and (out[-1]['bid'], out[-2]['bid_age']) == (600.01, 3599.5)
    assert not (s._slots or s._past)

def test_closing_without_grace_loses_no_quote():
    "A quote that arrives for a second just closed is in the next one, and nothing piles up."
    s = Seconds(T)
    for i in range(50):
        s.quote('bid', 600 + i/100, T + i + .5); o = s.close(T + i); assert o['bid'] == 600 + i/100
        s.quote('bid_size', i, T + i + .9)
    assert len(s._slots) == 1 and len(s._past) <= 1 and s.close(T + 50)['bid_size'] == 49

def test_absent_and_down_rows_hold_no_value():
    s = Seconds(T, 'l1')
    s.quote('bid', 600.00, T + .1); s.quote('data_type', 1, T + .1); s.down(T + .5)
    s.close(T)
    for o in (s.close(T + 1), absent(T + 1)):
        assert all(o[k] in (None, '') for k in COLUMNS if not k.endswith('_age') and k != 'status')
    assert set(TEXT) < set(COLUMNS) and len(TRADE_COLUMNS) == 7

@pytest.fixture(scope='module')
def trades_2013(shared):
    df = pd.read_parquet(shared('spy_trades_1s_2013.parquet'))
    df.index = df['ts'].dt.tz_convert(ET)
    return df.between_time('09:30', '15:59:59').assign(second=lambda d: d.index.as_unit('s').asi8)

def test_level_1_alone_gives_the_real_seconds_back(trades_2013):
    "Five days: last prices and the day's volume in, the file's open, high, low, close and volume out, and quiet seconds between."
    for day, d in trades_2013.groupby(trades_2013.index.date):
        start = int(datetime(day.year, day.month, day.day, 9, 30, tzinfo=ET).timestamp())
        s, total, out = Seconds(start, 'l1'), 1000, {}
        s.quote('last', float(d['open'].iloc[0]), start - 5.); s.quote('volume', total, start - 5.)
        for sec, *ohlc, v in d[['second', 'open', 'high', 'low', 'close', 'volume']].itertuples(index=False):
            while s.oldest < sec - 2: o = s.close(s.oldest); out[o.second] = o
            for i, p in enumerate(ohlc): s.quote('last', p, sec + i/10)
            total += v; s.quote('volume', total, sec + .9)
        while s.oldest < start + 23400: o = s.close(s.oldest); out[o.second] = o
        got = pd.DataFrame([[o.second, *o.cells[:5]] for o in out.values() if o['status'] == 'data'], columns=['second', 'open', 'high', 'low', 'close', 'volume'])
        want = d[['second', 'open', 'high', 'low', 'close', 'volume']].reset_index(drop=True)
        pd.testing.assert_frame_equal(got.astype(float), want.astype(float))
        assert len(out) == 23400 and not s.faults and not s.late
        assert sum(o['status'] == 'quiet' for o in out.values()) == 23400 - len(d)
        assert sum(p[2] + p[4] + p[6] for o in out.values() for p in o.prices) == d['volume'].sum()
