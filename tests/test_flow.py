"""Flow features on five real days of SPY seconds and on a real ten-level book: both forms, no look-ahead, restarts, bad rows."""
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyresearch.core import ET, DataError
from spyresearch.features.audit import growth_seconds
from spyresearch.features.flow import FLOW, FlowStream, depth_norm, flow_minutes, flow_parity, flow_seconds, pushes
from spyresearch.features.registry import feature
from spyresearch.features.second import SecondRegistry, Tape, stream_seconds
from spyresearch.sessions import sessions
from spyresearch.tws.book import Book
from spyresearch.tws.records import read_book
from spyresearch.tws.seconds import COLUMNS, LEVELS, TEXT, TRADE_COLUMNS, Seconds, records
from spyresearch.tws.ticks import EMPTY, depth_ops, levels

G7, G8 = ([f.name for f in FLOW if f.kept and f.group == o] for o in ('G7', 'G8'))
FADING = ['qimb_5', 'qimb_60', 'kyle'] # recursions: another compiler may round a step otherwise


def frames(rows):
    "The two frames of a day, as its files give them back."
    ix = lambda s: pd.to_datetime(s, unit='s', utc=True).tz_convert(ET).rename('Datetime')
    seconds = pd.DataFrame([o.cells for o in rows], columns=COLUMNS, index=ix([o.second for o in rows]))
    by = [(o.second, *p) for o in rows for p in o.prices]
    trades = pd.DataFrame([o[1:] for o in by], columns=TRADE_COLUMNS, index=ix([o[0] for o in by]), dtype=float)
    return seconds.astype({o: object if o in TEXT else float for o in COLUMNS}), trades


def opened(day): return int(datetime(day.year, day.month, day.day, 9, 30, tzinfo=ET).timestamp())


def same(p): # parity: to the last bit, but for the recursions
    assert (p['only_one'] == 0).all() and not (p['max_rel'] > 1e-9).any(), p
    assert (p['share_equal'].drop(FADING, errors='ignore') == 1).all(), p


@pytest.fixture(scope='module')
def spy(shared):
    "Day -> (seconds, trades) of 2013, through the recorder's own `Seconds`; a second's trades are one, at its close."
    def read(name):
        df = pd.read_parquet(shared(name)); df.index = df['ts'].dt.tz_convert(ET)
        return df.between_time('09:30', '15:59:59').assign(second=lambda d: d.index.as_unit('s').asi8)
    q, t = read('spy_quotes_1s_2013.parquet'), read('spy_trades_1s_2013.parquet')
    return {d: one_day(d, q[q.index.date == d], t[t.index.date == d]) for d in np.unique(q.index.date)}


def one_day(day, q, t):
    first, out = opened(day), []
    s = Seconds(first)
    s.quote('data_type', 1, first); s.quote('halted', 0, first)
    quotes = dict(zip(q['second'].tolist(), q[['bc', 'bs', 'ac', 'as']].to_numpy().tolist()))
    traded = dict(zip(t['second'].tolist(), t[['close', 'volume']].to_numpy().tolist()))
    for sec in range(first, first + 23400):
        if sec in traded: s.trade(*traded[sec], sec, sec + .4)
        for k, v in zip(('bid', 'bid_size', 'ask', 'ask_size'), quotes.get(sec, ())): s.quote(k, v, sec + .5)
        out.append(s.close(sec))
    return frames(out)


@pytest.fixture(scope='module')
def es(shared):
    "(seconds, per-second sums of the increments of every event) of the real book, moved to an open session."
    books = read_book(shared('es_book10_20231225.parquet'))
    sec = (books.t - books.t[0])//10**9
    first, day = opened(date(2023, 12, 26)), np.zeros(int(sec[-1]) + 1)
    s, book, was, prior = Seconds(first), Book(), EMPTY, None
    s.quote('data_type', 1, first)
    ends, out = set(np.flatnonzero(np.diff(sec, append=sec[-1] + 1)).tolist()), []
    for i in range(len(sec)):
        at = first + float(books.t[i] - books.t[0])/1e9
        now = levels(books, i)
        for op in depth_ops(was, now): book.apply(*op, at=at)
        was, best = now, [x[i, 0] for x in (books.bid_px, books.bid_sz, books.ask_px, books.ask_sz)]
        if i >= 50:
            if prior: day[sec[i]] += pushes(best, prior)
            prior = best
        for k, v in zip(('bid', 'bid_size', 'ask', 'ask_size'), best): s.quote(k, float(v), at)
        if i in ends:
            k = first + int(sec[i])
            while s.oldest < k: out.append(s.close(s.oldest))
            snap = book.last_valid(at) if book.valid(at) else None
            s.book(k, [] if snap is None else [*snap.bid_px, *snap.bid_sz, *snap.ask_px, *snap.ask_sz], at, 'ARCA')
            out.append(s.close(k))
    return frames(out)[0], day


def test_both_forms_agree_on_five_real_days(spy):
    for seconds, trades in spy.values():
        assert set(seconds['status']) == {'data', 'quiet'} and len(seconds) == 23400
        p = flow_parity(seconds, trades)
        same(p)
        assert (p['values'][G7] > 19000).all() and (p['values'][[o for o in G8 if o != 'l2_age']] == 0).all()


def test_both_forms_agree_on_the_real_book(es):
    seconds, _ = es
    p = flow_parity(seconds, norm=np.full(390, 900.), tick=.25)
    same(p)
    assert (p['values'][G8] > 50).all(), p['values'] # a holiday night: three seconds in ten are quiet


def test_second_ends_lose_little_of_every_events_flow(es):
    "Ten seconds of the real book: increments between second ends against those of every event."
    seconds, full = es
    e = Tape(seconds, tick=.25)['push']
    n = len(e)//10*10
    ten = [np.nan_to_num(x[:n]).reshape(-1, 10).sum(1) for x in (e, full)]
    assert np.corrcoef(ten)[0, 1] > .9


def test_flow_moves_the_price_of_the_same_seconds(spy):
    "The published contemporaneous relation holds on the real seconds: ten-second flow and the move of the mid."
    for seconds, trades in spy.values():
        g = Tape(seconds, trades)
        ten = [np.nan_to_num(g[o][:23400]).reshape(-1, 10).sum(1) for o in ('push', 'mid_move')]
        assert np.corrcoef(ten)[0, 1]**2 > .3


def test_against_plain_pandas_on_a_real_day(spy):
    "A second computation: pandas on the columns of the file."
    seconds, trades = spy[date(2013, 10, 9)]
    told = seconds['status'] == 'data'
    f, stand = flow_seconds(seconds, trades), seconds[['bid', 'bid_size', 'ask', 'ask_size']][told]
    was, (pb, qb, pa, qa) = stand.shift(), (stand[o] for o in stand)
    e = qb.where(pb >= was['bid'], 0) - was['bid_size'].where(pb <= was['bid'], 0) - qa.where(pa <= was['ask'], 0) + was['ask_size'].where(pa >= was['ask'], 0)
    e[was['bid'].isna()] = np.nan
    flow = pd.DataFrame(dict(e=e, depth=((qb + qa)/2).where(e.notna()))).reindex(seconds.index)
    side = trades.groupby(level=0).sum()
    flow = flow.assign(signed=(side['buy_volume'] - side['sell_volume']), volume=seconds['volume'], spread=(pa - pb)*100)
    flow['signed'] = flow['signed'].fillna(0).where(told)
    for h in (10, 60, 300):
        w = flow.rolling(h, min_periods=int(.9*h))
        pd.testing.assert_series_equal(f[f'ofi_{h}'].iloc[h:], (w['e'].sum()/w['depth'].mean()).iloc[h:], check_names=False, check_freq=False, rtol=1e-9, atol=1e-9)
    w = flow.rolling(300, min_periods=270)
    pd.testing.assert_series_equal(f['sign_300'].iloc[300:], (w['signed'].sum()/w['volume'].sum()).iloc[300:], check_names=False, check_freq=False, rtol=1e-9, atol=1e-9)
    pd.testing.assert_series_equal(f['spread_60'].iloc[60:], flow['spread'].rolling(60, min_periods=54).mean().iloc[60:], check_names=False, check_freq=False, rtol=1e-9)


@pytest.mark.parametrize('cut', [1, 59, 61, 901, 5000, 17321])
def test_no_feature_knows_the_future(spy, cut):
    "A day cut off at a second, or with another future, says the same up to there."
    seconds, trades = spy[date(2013, 10, 10)]
    full, end = flow_seconds(seconds, trades), seconds.index[cut - 1]
    pd.testing.assert_frame_equal(flow_seconds(seconds[:cut], trades[:end]), full[:cut])
    other = seconds.copy(); other.iloc[cut:, :6] *= 1.5; other.iloc[cut:, COLUMNS.index('bid_size')] = 1.
    pd.testing.assert_frame_equal(flow_seconds(other, trades)[:cut], full[:cut])


def test_no_depth_feature_knows_the_future(es):
    seconds, _ = es
    full = flow_seconds(seconds, tick=.25)
    for cut in (61, 500, 1300): pd.testing.assert_frame_equal(flow_seconds(seconds[:cut], tick=.25), full[:cut])


def test_a_restart_goes_on_as_if_nothing_had_been(spy):
    seconds, trades = spy[date(2013, 10, 8)]
    rows = records(seconds[:2600], trades)
    a, b = (FlowStream(date(2013, 10, 8)) for _ in range(2))
    first = [a.push(o) for o in rows]
    b.start(rows[:1500])
    np.testing.assert_array_equal([list(b.push(o).values()) for o in rows[1500:]], [list(o.values()) for o in first[1500:]])


def test_no_feature_of_the_second_holds_or_does_more_as_the_session_goes_on():
    "Every declaration, quotes, trades and ten levels of depth, over three hours."
    df, by = minute(10800)
    g = growth_seconds(df, by)
    assert list(g.index) == [o.name for o in FLOW] and {'base', 'G7', 'G8'} == set(g['group'])
    assert g['grows'].eq('').all() and (g['held'] == g['held_30']).all(), g[g['grows'] != '']
    grown = SecondRegistry()
    for o in list(FLOW)[:5]: grown.add(o)
    feature('hoard', lambda g: g.bid, step=lambda b, s: (s.append(b.bid), b.bid)[1], state=lambda: [], registry=grown, known_at='second end', group='X', formula='-', inputs=('bid',))
    assert growth_seconds(df[:7200], by, grown)['grows'].loc[lambda o: o != ''].to_dict() == dict(hoard='state within a session')


def test_minutes_are_the_last_seconds(spy):
    seconds, trades = spy[date(2013, 10, 7)]
    m, f = flow_minutes(seconds, trades), flow_seconds(seconds, trades)
    assert len(m) == 390 and list(m) == FLOW.names()
    np.testing.assert_array_equal(m.to_numpy(), f[f.index.second == 59].to_numpy())
    assert (m.index == pd.date_range('2013-10-07 09:30', periods=390, freq='min', tz=ET)).all()
    assert len(flow_minutes(seconds[:119], trades)) == 1
    v = seconds['volume'].resample('min').sum(); b = (trades['buy_volume'] - trades['sell_volume']).resample('min').sum()
    known = m['sign_60'].notna()
    np.testing.assert_allclose(m['sign_60'][known], (b/v)[known], atol=1e-12)
    assert known.sum() > 300


def test_usual_depth_needs_twenty_sessions(es):
    day = flow_minutes(es[0], tick=.25)['depth_60']
    days = sessions(date(2023, 11, 24), date(2023, 12, 22)) # 21, the first a half day
    at = lambda d, x: pd.DataFrame(dict(depth_60=day.to_numpy()*x), index=pd.DatetimeIndex([pd.Timestamp(d).tz_localize(ET) + (t - t.normalize()) for t in day.index]))
    past = pd.concat([at(d, i + 1) for i, d in enumerate(days)])
    norm = depth_norm(past, date(2023, 12, 26))
    known = day.notna().to_numpy()
    np.testing.assert_allclose(norm[:len(day)][known], 11.5*day.to_numpy()[known])
    assert np.isnan(norm[len(day):]).all() and np.isnan(depth_norm(past, days[-1])[:5]).sum() == np.isnan(day[:5]).sum() and np.isnan(depth_norm(past, days[-2])).all()


BAD = [ # what goes wrong from second 30 to 39 of a made-up minute, and the G7 features that are empty at second 59 for it
    ('crossed', dict(bid=600.02), {'ofi_60', 'spread_60', 'wide_60', 'arca_share'}),
    ('no bid', dict(bid=np.nan, bid_size=np.nan, spread=np.nan), {'ofi_60', 'spread_60', 'wide_60', 'arca_share'}),
    ('no shares', dict(ask_size=0), {'ofi_60', 'arca_share'}),
    ('stale quote', dict(bid_age=11, ask_age=12), {'ofi_60', 'spread_60', 'wide_60', 'arca_share'}),
    ('no book', dict.fromkeys(LEVELS), {'depth_imb_5', 'depth_imb_10', 'mlofi_60', 'book_slope', 'depth_60', 'depth_rel', 'arca_share'}),
    ('one-sided book', {o: None for o in LEVELS if o.startswith('ask')}, {'depth_imb_5', 'depth_imb_10', 'mlofi_60', 'book_slope', 'depth_60', 'depth_rel', 'arca_share'}),
    ('crossed book', dict(bid_px_0=600.05), {'depth_imb_5', 'depth_imb_10', 'mlofi_60', 'book_slope', 'depth_60', 'depth_rel', 'arca_share'}),
    ('stale book', dict(book_age=10.5), {'depth_imb_5', 'depth_imb_10', 'mlofi_60', 'book_slope', 'depth_60', 'depth_rel', 'arca_share'}),
    ('trades not by price', dict(volume=1000), {'sign_60'}),
    ('nobody tells of trades', dict(volume=np.nan, trades=np.nan, trades_from='px'), {'sign_60'}),
] + [(o, dict(status=o), None) for o in ('partial', 'down', 'absent')] + [('delayed', dict(data_type=3), None), ('frozen', dict(data_type=2), None), ('halted', dict(halted=1), None)]
HOUR = ['ofi_60', 'spread_60', 'wide_60', 'sign_60', *[o for o in G8 if o not in ('mlofi_10', 'mlofi_300', 'l2_age')]]


def minute(n=62, seed=5):
    "A made-up market that moves, with trades: (seconds, trades)."
    rng = np.random.default_rng(seed)
    bid, shares = 600 + rng.integers(-2, 3, n).cumsum()/100, lambda: rng.integers(1, 9, n)*100.
    df = pd.DataFrame({k: np.resize(np.array(v, object), n) for k, v in dict.fromkeys(COLUMNS, np.nan).items()}, index=pd.date_range('2026-03-31 09:30', periods=n, freq='s', tz=ET, name='Datetime'))
    df = df.assign(volume=100*rng.integers(1, 4, n), trades=1, bid=bid.round(2), ask=(bid + .01).round(2), bid_size=shares(), ask_size=shares(), bid_age=.1, ask_age=.2, book_age=.3,
                   halted=0, data_type=1, trades_from='tbt', status='data', venue='ARCA', spread=.01)
    for i in range(10): df = df.assign(**{f'bid_px_{i}': (bid - i/100).round(2), f'bid_sz_{i}': shares(), f'ask_px_{i}': (bid + .01 + i/100).round(2), f'ask_sz_{i}': shares()})
    by = pd.DataFrame(0., columns=TRADE_COLUMNS, index=df.index).assign(price=df['ask'], buys=1., buy_volume=df['volume'].astype(float))
    return df[COLUMNS].astype({o: object if o in TEXT else float for o in COLUMNS}), by


def spoil(df, rows, what):
    out = df.copy()
    for k, v in what.items(): out.iloc[rows, COLUMNS.index(k)] = v
    return out


@pytest.mark.parametrize('name,what,empty', BAD, ids=[o[0] for o in BAD])
def test_bad_rows_empty_what_they_do_not_support(name, what, empty):
    "Ten bad seconds in sixty are too many for what rests on them and nothing to the rest; four are few enough."
    df, by = minute()
    kw = dict(norm=np.full(390, 5000.), names=[*HOUR, 'told_60'])
    good, bad = flow_seconds(df, by, **kw).iloc[59], spoil(df, slice(30, 40), what)
    got, few = (flow_seconds(o, by, **kw).iloc[59] for o in (bad, spoil(df, slice(30, 34), what)))
    assert good.notna().all() and few.notna().all()
    assert set(got.index[got.isna()]) == (set(HOUR) if empty is None else empty)
    if empty is None: assert got['told_60'] == 50/60
    else: pd.testing.assert_series_equal(got.drop([*empty]), good.drop([*empty]))
    now = flow_seconds(spoil(df, slice(59, 60), what), by, **kw).iloc[59]  # the last second itself
    assert now[HOUR].isna().all() if empty is None else now[HOUR].notna().all()
    same(flow_parity(bad, by, **kw))


def test_a_quiet_second_keeps_what_stood():
    df, by = minute()
    quiet = dict(dict.fromkeys(LEVELS, np.nan), status='quiet', bid=np.nan, ask=np.nan, bid_size=np.nan, ask_size=np.nan, volume=np.nan, trades=np.nan, spread=np.nan)
    e = Tape(spoil(df, slice(30, 33), quiet), by)['push']
    assert np.isnan(e[30:33]).all()
    at = lambda i: [df[o].iloc[i] for o in ('bid', 'bid_size', 'ask', 'ask_size')]
    assert e[33] == pushes(at(33), at(29))
    assert np.isnan(Tape(spoil(df, slice(30, 33), dict(quiet, halted=1)), by)['push'][33])


status = st.sampled_from(['data']*8 + ['quiet', 'quiet', 'partial', 'down', 'absent'])
cell = st.sampled_from(['bid', 'ask', 'bid_size', 'ask_size', 'volume', 'spread', 'halted', 'data_type', 'book_age', 'bid_age', 'trades_from', 'venue', 'bid_px_0', 'bid_px_4', 'ask_px_0', 'ask_sz_9'])
value = st.sampled_from([np.nan, 0., 1., 3., 599., 600., 601., 1e6])


@given(st.integers(0, 999), st.lists(status, min_size=80, max_size=80), st.lists(st.tuples(st.integers(0, 79), cell, value), max_size=12), st.integers(1, 79))
@settings(max_examples=60, deadline=None)
def test_any_rows_give_the_same_in_both_forms_and_no_future(seed, states, cells, cut):
    df, by = minute(80, seed)
    df['status'] = states
    for i, k, v in cells: df.iloc[i, COLUMNS.index(k)] = str(v) if k in TEXT else v
    kw = dict(norm=np.full(390, 5000.))
    same(flow_parity(df, by, **kw))
    f = flow_seconds(df, by, **kw)
    pd.testing.assert_frame_equal(flow_seconds(df[:cut], by[:cut], **kw), f[:cut])
    assert np.isfinite(f.to_numpy()[~f.isna().to_numpy()]).all()
    assert not f.drop(columns='told_60')[~df['status'].isin(['data', 'quiet'])].notna().any().any()


def test_seconds_that_are_no_feeds_are_refused():
    df, by = minute()
    for bad in (pd.concat([df, df[-1:]]), df[::-1], df.drop(columns='bid'), df.tz_localize(None), df.shift(freq='-1h')):
        with pytest.raises(DataError): flow_seconds(bad, by)
    s = FlowStream(date(2026, 3, 31))
    s.push(records(df, by)[5])
    with pytest.raises(DataError): s.push(records(df, by)[5])


def test_missing_rows_are_absent_in_both_forms():
    df, by = minute(80)
    gone = df.drop(df.index[[20, 21, 45]])
    a = flow_seconds(gone, by)
    assert len(a) == 80
    b = spoil(df, [20, 21, 45], {**{o: '' if o in TEXT else np.nan for o in COLUMNS}, 'status': 'absent'})
    pd.testing.assert_frame_equal(a, flow_seconds(b, by), check_freq=False)
    s = FlowStream(date(2026, 3, 31)); out = pd.DataFrame([s.push(r) for r in records(gone, by)], index=gone.index)
    pd.testing.assert_frame_equal(out, a.loc[gone.index], check_freq=False, rtol=1e-9)
    pd.testing.assert_frame_equal(stream_seconds(gone, by), a, check_freq=False, rtol=1e-9)


def test_every_declaration_is_complete_and_its_warmup_true():
    "Nothing is published before the warm-up, and what can be is published at it."
    df, by = minute(1000)
    f = flow_seconds(df, by, norm=np.full(390, 5000.))
    for name in FLOW.names():
        o = FLOW[name]
        assert o.group in ('G7', 'G8') and o.formula and o.known_at == 'second end' and o.inputs
        first = int(f[name].notna().to_numpy().argmax()) + 1
        assert f[name].notna().any() and o.warmup*.85 <= first <= o.warmup + 1, (name, o.warmup, first)
