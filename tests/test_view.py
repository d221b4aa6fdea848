"""The view of the live screen: whatever an engine says, what is shown is sound, and an old price is never called current."""
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speaking import told
from spyresearch.core import ET
from spyresearch.live import axes, fan
from spyresearch.live import panels as p
from spyresearch.live import view as v
from spyresearch.live.phrases import TEXT
from spyresearch.live.stream import KINDS, Board, plain

NOON = pd.Timestamp('2025-12-05 12:00', tz=ET)
TAPE = 'simulated:demo'
quick = settings(max_examples=120, deadline=None)


def said(kind, body, at, provenance=TAPE): return dict(v=1, kind=kind, seq=1, known_at=plain(at), provenance=provenance, run='r', body=plain(body))
def snapshot(board, provenance=TAPE): return dict(v=1, kind='snapshot', seq=9, known_at=None, provenance=provenance, run='r', body=board.body())


@pytest.fixture(scope='module')
def hours():
    "Two hours of the demo as an engine would tell them."
    d = told()
    return [said(*m) for m in d.past(120)] + [said(*m) for s in (7260., 7265., 7270.) for m in d.at(s)]


@pytest.fixture(scope='module')
def state(hours):
    s = v.State()
    for m in hours: s.fold(m)
    return s


def test_a_late_screen_sees_what_an_early_one_sees(hours):
    for cut in (0, 1, 100, len(hours)):
        board, late, early = Board(), v.State(), v.State()
        for m in hours[:cut]: board.put(m['kind'], m['body'], m['known_at'])
        late.fold(snapshot(board))
        for m in hours: early.fold(m)
        for m in hours[cut:]: late.fold(m)
        assert np.array_equal(v.candles(late, False), v.candles(early, False)) and v.candles(late)[-1, 4] == v.candles(early)[-1, 4]
        now = v.market_now(early, NOON)
        assert v.freshness(late, now) == v.freshness(early, now) and v.head(late, v.candles(late, False), now) == v.head(early, v.candles(early, False), now)
        a, b = v.chart(late), v.chart(early)
        assert np.array_equal(a.fan.median, b.fan.median) and np.array_equal(a.ribbon.low, b.ribbon.low) and a.lines[0][1] == b.lines[0][1]


def test_what_is_shown_of_a_real_session(state):
    now = v.market_now(state, NOON)
    c = v.chart(state, tickets=[o for o in v.cards(state.newest('words'), now, 600., now) if o.says == 'ticket'])
    assert len(c.bars) == 122 and c.forming and c.bars[-1, 0] == 121
    assert c.fan.x[0] == 120 and len(c.fan.knot_x) == 4
    for (lo, hi), (lo2, hi2) in zip(c.fan.bands, c.fan.bands[1:]): assert (lo <= lo2).all() and (hi >= hi2).all()
    covered = state.newest('calibration')['horizons']['15']
    assert len(c.ribbon.x) == covered['n'] and math.isclose(c.ribbon.inside.mean(), covered['cover80'], abs_tol=1e-6)
    assert v.freshness(state, now).live and c.lines[0][0] == 'last'
    assert [o.horizon for o in fan.aheads(state.newest('forecast'))][:5] == [5, 15, 30, 60, 'rest_of_day']


price = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(590, 610), st.text(max_size=2))
bodies = st.fixed_dictionaries({k: price for k in ('open', 'high', 'low', 'close')} | {'volume': st.one_of(st.none(), st.integers(0, 10**6))})


@quick
@given(st.lists(st.tuples(st.integers(0, 389), bodies), max_size=12))
def test_no_bar_can_blank_the_chart(rows):
    s, open_ = v.State(), pd.Timestamp('2025-12-05 09:30', tz=ET)
    for i, b in rows: s.fold(said('minute', dict(start=open_ + pd.Timedelta(minutes=i), **b), NOON))
    x = v.candles(s)
    assert np.isfinite(x).all() and (np.diff(x[:, 0]) > 0).all()
    assert (x[:, 2] >= x[:, [1, 3, 4]].max(1)).all() and (x[:, 3] <= x[:, [1, 2, 4]].min(1)).all() if len(x) else True
    c = v.chart(s)
    assert c is None or c.y[0] < c.y[1] and c.x[0] < c.x[1] and math.isfinite(sum(c.y))


@quick
@given(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(['no engine', 'waiting', 'live', 'silent']), st.sampled_from(['tws', TAPE]))
def test_an_old_price_is_never_current(quote_age, silent_s, heard, provenance):
    s, now = v.State(), NOON
    s.fold(said('quote', dict(at=now - pd.Timedelta(seconds=quote_age), bid=600., ask=600.01, last=600.), now - pd.Timedelta(seconds=quote_age), provenance))
    at = v.market_now(s, now, silent_s)
    f = v.freshness(s, at, heard, silent_s)
    true_age = quote_age if provenance == 'tws' else silent_s
    if f.live: assert heard == 'live' and true_age <= v.QUIET_S + 1e-3
    card = v.cards(dict(words=told().words), at, None, None)
    assert all(o.badge not in ('buy', 'limit') or o.kind == 'option' for o in card)
    html = p.topbar(v.head(s, v.candles(s), at), v.ladder(None), f, s) + p.banner(f)
    if f.level == 'stale': assert 'NOT CURRENT' in html and 'last known' in html and 'px old' in html


def test_a_session_that_is_over_is_closed_and_not_stale():
    s = v.State()
    s.fold(said('state', dict(session=dict(open='2025-12-05T09:30:00-05:00', close='2025-12-05T16:00:00-05:00')), NOON)).fold(said('quote', dict(at=NOON, last=600.), NOON))
    assert v.freshness(s, NOON).live and v.freshness(s, NOON + pd.Timedelta(hours=4)).level == 'closed'
    assert v.freshness(s, NOON + pd.Timedelta(hours=5), 'silent', 99.).level == 'stale'
    s.fold(said('state', dict(link='down', session={}), NOON))
    assert v.freshness(s, NOON).why == 'feed down'


@quick
@given(st.lists(st.floats(590, 610), max_size=9), st.floats(.01, 2))
def test_tags_never_lie_on_each_other(at, gap):
    out = axes.apart(at, gap)
    assert all(b - a >= gap - 1e-6 for a, b in zip(sorted(out), sorted(out)[1:]))
    assert [sorted(out)[i] for i in range(len(out))] == [out[i] for i in sorted(range(len(at)), key=lambda i: at[i])]


@quick
@given(st.lists(st.tuples(st.floats(590, 610), st.floats(.01, 5)), min_size=1, max_size=30))
def test_the_price_axis_holds_what_must_be_seen_and_mostly_stands(steps):
    y = None
    for low, size in steps:
        new = axes.y_range(low, low + size, y)
        assert new[0] <= low and new[1] >= low + size
        if y and y[0] <= low and low + size <= y[1] and y[1] - y[0] < 2*size: assert new == y
        y = new


@quick
@given(st.lists(st.tuples(st.one_of(st.none(), st.floats(590, 610)), st.one_of(st.none(), st.integers(0, 9999))), max_size=12), st.lists(st.tuples(st.floats(590, 610), st.integers(0, 9999)), max_size=12))
def test_any_book_can_be_drawn(bids, asks):
    l = v.ladder(plain(dict(at=NOON, venue='ARCA', bids=bids, asks=asks)))
    assert all(0 <= o[2] <= 1 for o in l.asks + l.bids) and (l.imbalance is None or -1 <= l.imbalance <= 1)
    assert '<section' in p.depth(l, v.Fresh('live', 0.))


@quick
@given(st.sampled_from(KINDS), st.recursive(st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=8)), lambda o: st.dictionaries(st.text(max_size=5), o, max_size=3), max_leaves=6))
def test_text_from_outside_never_becomes_markup(kind, leaf):
    evil = '<img src=x onerror=alert(1)>'
    s = v.State()
    s.fold(said('state', dict(link=evil, feed={evil: [evil, evil]}, latency_ms={evil: dict(p50=1., p99=2.)}, overruns=evil), NOON)).fold(said('learning', dict(champion=evil, alarm=evil, last_event=str(leaf)), NOON))
    html = p.feeds(s.newest('state'), NOON, s) + p.learning(s.newest('learning')) + p.latency(s.newest('state'), (1., 2.), 3, 0) + p.depth(v.ladder(dict(absent=evil)), v.Fresh('live'))
    assert '<img' not in html


def test_prices_and_distances_move_each_second_and_the_forecast_each_minute(hours):
    "Between two bars: every second another book or price, the distance to the trigger with it, and the same forecast."
    s, d, seen = v.State(), told(), []
    for m in hours[:-9]: s.fold(m)
    for sec in range(7261, 7320):
        for m in d.at(float(sec)): s.fold(said(*m))
        now, px = v.market_now(s, None), s.newest('quote')['last']
        words = [c.now for c in v.cards(s.newest('words'), now, px, now)]
        assert v.freshness(s, now).live and v.head(s, v.candles(s), now).px == px == v.candles(s)[-1, 4] and f'{px:.2f}' in words[0] + words[1]
        seen.append((px, str(v.ladder(s.newest('book'))), tuple(words), now, v.chart(s).fan.median.tobytes()))
    def moved(k): return sum(a[k] != b[k] for a, b in zip(seen, seen[1:]))
    assert moved(1) > 40 and moved(0) > 20 and moved(2) >= moved(0) and moved(3) == 58 and moved(4) == 0, [moved(k) for k in range(5)]   # in some seconds nobody trades
    for m in d.at_minute(121): s.fold(said(*m))
    assert v.chart(s).fan.median.tobytes() != seen[-1][4]


def test_a_trigger_counts_when_the_price_is_there_and_not_with_the_next_bar():
    s, d = v.State(), told()
    for m in d.past(90): s.fold(said(*m))
    option = next(o for o in d.words if o['kind'] == 'option')
    state = lambda now, px: [c.badge for c in v.cards(s.newest('words'), now, px, now, bars=v.candles(s)) if c.kind == 'option'][0]
    at, level = d.end(90) + pd.Timedelta(minutes=1), option['trigger_px']
    s.fold(said('quote', dict(at=at, last=level - .3, bid=level - .31, ask=level - .29), at))
    assert state(at, level - .3) == 'armed' and state(at, None) == 'unknown' and state(at, level) == 'limit'
    s.fold(said('quote', dict(at=at + pd.Timedelta(seconds=1), last=level + .01, bid=level, ask=level + .02), at))
    s.fold(said('quote', dict(at=at + pd.Timedelta(seconds=2), last=level - .2, bid=level, ask=level + .02), at))
    assert state(at + pd.Timedelta(seconds=2), level - .2) == 'limit', 'it has been there'
    assert state(at + pd.Timedelta(hours=4), level) == 'missed'


def test_touches_are_counted_from_their_bar_and_a_settled_pair_says_so(state):
    now, f = v.market_now(state, NOON), state.newest('forecast')
    t = v.touches(state)
    assert t.px == f['px'] and [m for m, _ in t.times] == f['touch']['minutes'] and t.times[-1][1] == '16:00' and t.at == '11:31'
    for up, down, chances, _ in t.rows:
        assert up > t.px > down and all(0 <= a + b <= 1 + 1e-9 for a, b in chances) and [a + b for a, b in chances] == sorted(a + b for a, b in chances)
    low, high = state.forming['low'], state.forming['high']
    assert all((done in (1, 2)) == (high >= up) and (done in (-1, 2)) == (low <= down) for up, down, _, done in t.rows)
    s = v.State()
    for m in told().past(60): s.fold(said(*m))
    s.fold(said('quote', dict(at=told().end(60) + pd.Timedelta(seconds=5), last=v.touches(s).rows[0][0] + .001), now))
    first = v.touches(s).rows[0]
    html = p.touching(v.touches(s))
    assert first[3] == 1 and f'{first[0]:.2f} reached since' in html and html.count('<td') == 5*5 + 1
    s.fold(said('forecast', f | dict(touch=None), now))
    assert v.touches(s) is None and TEXT['en']['no_touch'] in p.touching(v.touches(s))


def test_without_a_model_there_is_a_reason_and_no_number():
    from spyresearch.core import FixedClock
    from spyresearch.live.dash import Dash
    for lang, word in (('en', 'model expired'), ('zh', '模型已过期')):
        s, dash = v.State(), Dash(lang, clock=FixedClock(NOON))
        s.fold(said('minute', told().minute(3), told().end(3))).fold(said('calibration', dict(horizons={'5': dict(cover80=.2, n=300)}), NOON)).fold(said('state', dict(reason='model expired', fault='it ended'), NOON))
        dash.act(dict(t='key', key='t'))
        dash.show(s, NOON, v.freshness(s, NOON))
        for k in ('horizons', 'touch', 'calibration'):
            assert word in dash.html[k].value and 'it ended' in dash.html[k].value and '20 %' not in dash.html[k].value, k
        s.fold(said('state', dict(alarm='2025-12-01: lost more'), NOON)).fold(said('learning', dict(champion='a', n_days=0), NOON))
        dash.show(s, NOON, v.freshness(s, NOON))
        assert '20 %' in dash.html['calibration'].value and '2025-12-01: lost more' in dash.html['calibration'].value and TEXT[lang]['narrow'] in dash.html['top'].value and TEXT[lang]['alarm'] in dash.html['top'].value


@quick
@given(st.floats(0, 1), st.integers(0, 400), st.sampled_from([5, 15, 30, 60]))
def test_no_verdict_on_bands_without_outcomes_that_count(share, n, h):
    got = fan.held(share, n, h)
    assert (got == 'few') == (n/h < fan.APART)
    if got == 'narrow': assert share < .8 and fan.held(0., n, h) == 'narrow'


def test_both_languages_say_everything(state):
    assert TEXT['en'].keys() == TEXT['zh'].keys()
    now = v.market_now(state, NOON)
    for lang in TEXT:
        html = ''.join((p.topbar(v.head(state, v.candles(state), now), v.ladder(state.newest('book')), v.freshness(state, now), state, 30., lang), p.banner(v.Fresh('stale', 60., 'engine silent'), lang),
            p.tickets(v.cards(state.newest('words'), now, 600., now, lang), lang), p.horizons(fan.aheads(state.newest('forecast')), state.newest('forecast'), lang), p.feeds(state.newest('state'), now, state, lang)))
        assert 'SIMULATED' in html
        assert ('非实时' in html) == (lang == 'zh') and ('模拟行情' in html) == (lang == 'zh')
        html += p.calibration(v.health(state), v.chart(state).ribbon, lang) + p.learning(state.newest('learning'), lang) + p.touching(v.touches(state), lang=lang) + p.latency(state.newest('state'), (1., 2.), 3, 0, lang) + p.depth(v.ladder(None), v.Fresh('live'), lang)
        names = re.sub('SPY|SIMULATED|ewma_diurnal|USD|ms|[0-9a-f]{12}|<[^>]*>|p50|p99', ' ', html)
        assert lang == 'en' or set(re.findall('[A-Za-z]{2,}', names)) <= {'K'}, 'English words on a Chinese screen'


