"""Bars that are wrong: every kind has one named consequence, live and in history alike, and no true bar is taken for one."""
import subprocess
import sys
import warnings
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from made import bars as made
from spyresearch.bars import NIGHT, OHLC, STANDS, Watch, bad_bars, bad_prints, grid, read_bars
from spyresearch.core import ET, DataError, FixedClock
from spyresearch.features.batch import compute
from spyresearch.features.stream import Stream, certificate, stream_frame
from spyresearch.health import exceptions, health_of
from spyresearch.live.today import Today
from spyresearch.models.windows import Panel
from spyresearch.sessions import prev_session, session, sessions
from spyresearch.store import Store
from spyresearch.tws.minutes import Minute

NAMES = ['r1', 'r_day', 'logrv_60', 'vwap_dist', 'r_overnight', 'relvol_day', 'pday_pos']
DAY, LATER = date(2025, 12, 3), FixedClock(datetime(2026, 11, 1, tzinfo=timezone.utc))
FILES = {'spy_1min': 280139, 'spy_5min': 77939, 'spy_1min_ib_2021q1': 24175}


@pytest.fixture(scope='module')
def spy(shared): return read_bars(shared('spy_1min.parquet'))['2025-11-10':'2025-12-10'].drop(columns='src')


def at(df, minute, day=DAY): return int(np.flatnonzero(df.index == session(day).open + timedelta(minutes=minute))[0])
def times(df, where, by):
    "`df` with the prices of some rows multiplied."
    out = df.copy(); out.iloc[where, [out.columns.get_loc(o) for o in OHLC]] *= by
    return out


def quiet(f, *a, **kw):
    "The result, and what was said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always'); return f(*a, **kw), [str(o.message) for o in said]


# -- no true bar is taken for a bad one

@pytest.mark.filterwarnings('ignore:.*outside regular hours')
@pytest.mark.parametrize('name', FILES)
def test_no_true_bar_is_left_out(shared, name):
    bars = read_bars(shared(f'{name}.parquet')); g = grid(bars)
    assert len(bars) == FILES[name] and g.left_out == {} and g.rows.all() and g.seen.sum() == len(bars)


def test_no_true_night_is_refused(shared):
    d = pd.read_parquet(shared('spy_daily.parquet')); before = d['close'].shift()
    assert np.fmax(d['open']/before, before/d['open']).max() < 1.19 < NIGHT


@pytest.mark.filterwarnings('ignore:.*outside regular hours')
def test_the_listed_prints_are_as_many_as_wicks_alone_gave(shared):
    "Whole bars beyond both neighbours: none in the record, so the flag for them raises no false alarm."
    assert [int(bad_prints(read_bars(shared(f'{o}.parquet'))).sum()) for o in FILES] == [64, 113, 0]


# -- one slip inside a session

@pytest.mark.parametrize('minute', [0, 1, 100, 389])
@pytest.mark.parametrize('by', [100., 10., 1.2, .8, .5, .01])
def test_one_slip_costs_its_own_minute_and_is_named(spy, minute, by):
    if minute in (0,) and by in (1.2, .8): return # within what a night may do: see below
    i = at(spy, minute); bad = times(spy, i, by); clean = spy.drop(spy.index[i])
    (x, said), y = quiet(compute, bad, NAMES), compute(clean, NAMES)
    np.testing.assert_array_equal(x.drop(spy.index[i]), y); assert x.iloc[i].isna().all() and x.index.equals(spy.index)
    near = f'{spy.index[i]:%Y-%m-%d %H:%M}: open {bad["open"].iloc[i]:g}'
    assert len(said) == 1 and near in said[0] and f'{spy["close"].iloc[i-1]:g} before it and {spy["open"].iloc[i+1]:g} after it' in said[0]
    np.testing.assert_array_equal(quiet(stream_frame, bad, NAMES)[0], x)


def test_a_wick_that_no_market_makes_is_a_slip_too(spy):
    bad = spy.copy(); i = at(bad, 200); bad.iloc[i, bad.columns.get_loc('high')] *= 10
    assert [*bad_bars(bad)] == [bad.index[i]]


def test_what_a_market_might_do_stays_and_is_listed(spy):
    "1 % for a minute, a wick of 4 %: no rule of the exchange excludes it, so it is computed with and shown."
    for by in (dict.fromkeys(OHLC, 1.01), dict(high=1.04)):
        bad = spy.copy(); i = at(bad, 100)
        for o, k in by.items(): bad.iloc[i, bad.columns.get_loc(o)] *= k
        assert bad_bars(bad) == {} and [*bad.index[bad_prints(bad)]] == [bad.index[i]]


def test_a_slip_just_before_the_close_does_not_make_a_split_of_the_next_day(spy):
    i, j = at(spy, 389), at(spy, 0, date(2025, 12, 4))
    x, _ = quiet(compute, times(spy, i, 10.), NAMES); y = compute(spy.drop(spy.index[i]), NAMES)
    assert x['r_overnight'].iloc[j] == y['r_overnight'].iloc[j - 1]


@pytest.mark.parametrize('n', [2, 4, 12])
def test_a_stretch_of_slips_is_left_out_whole(spy, n):
    for minute in (0, 50, 390 - n):
        i = at(spy, minute); left = bad_bars(times(spy, slice(i, i + n), 100.))
        assert [*left] == [*spy.index[i:i + n]]


def test_half_a_session_in_cents_is_left_out_and_the_next_day_goes_on(spy):
    i, j = at(spy, 200), at(spy, 389)
    x, _ = quiet(compute, times(spy, slice(i, j + 1), 100.), NAMES)
    assert len(x.attrs['left_out']) == 190 and x.loc['2025-12-05', 'r1'].notna().sum() > 380


def test_a_very_first_bar_is_held_against_its_neighbours(spy):
    bad = times(spy, 0, 10.)
    assert [*bad_bars(bad)] == [spy.index[0]]
    s = Stream(NAMES); quiet(s.start, bad[bad.index.date < date(2025, 11, 18)]); assert [t for t, _ in s.left_out] == [spy.index[0]]


# -- a level that stands

@pytest.mark.parametrize('by,words,todo', [(.5, r'not adjusted for a split \(2-for-1\)', 'multiply the prices before 2025-12-03 by 1/2'),
    (.1, r'\(10-for-1\)', 'before 2025-12-03'), (10., r'\(1-for-10\)', 'before 2025-12-03'),
    (100., r'in another unit \(about 100 times\)', 'divide the prices from 2025-12-03 on by 100'), (.001, r'another unit \(about 1000 times\)', 'multiply the prices from 2025-12-03 on by 1000'),
    (55., r'wrong \(5\d(\.\d)? times too high\)', 'another source')])
def test_a_night_that_no_market_makes_is_refused_in_its_own_words(spy, by, words, todo):
    with pytest.raises(DataError, match=rf'2025-12-03 opened at .*{words}') as e: compute(times(spy, slice(at(spy, 0), None), by), NAMES)
    assert todo in e.value.todo and e.value.exit_code == 3


@pytest.mark.parametrize('by,words', [(100., 'another unit'), (.5, 'are wrong'), (2., 'are wrong')])
def test_a_session_alone_is_no_reason_to_change_the_others(spy, by, words):
    with pytest.raises(DataError, match=words) as e: compute(times(spy, slice(at(spy, 0), at(spy, 389) + 1), by), NAMES)
    assert '2025-12-04 is back' in e.value.why and 'before' not in e.value.todo


def test_the_live_day_refuses_a_split_at_its_fifth_bar_and_forgives_a_slip_at_its_first(spy):
    past, rows = spy[spy.index.date < DAY], [o for o in spy.loc[str(DAY)].reset_index().to_dict('records')]
    def halved(o): return o | {k: o[k]/2 for k in OHLC}
    s = Stream(NAMES); s.start(past)
    said = quiet(lambda: [s.push(halved(o)) for o in rows[:STANDS - 1]])[1]
    with pytest.raises(DataError, match='2-for-1'): s.push(halved(rows[STANDS - 1]))
    assert len(said) == len(s.left_out) == STANDS - 1 and 'SPY bar 2025-12-03 09:30 left out' in said[0]
    good = s.push(rows[STANDS - 1]); assert np.isfinite(good['r_overnight'])
    t = Stream(NAMES); t.start(past); out, _ = quiet(t.push, halved(rows[0])); assert np.isnan(list(out.values())).all()
    want = compute(spy[spy.index != spy.index[at(spy, 0)]], NAMES).loc[str(DAY)]
    np.testing.assert_array_equal(pd.DataFrame([t.push(o) for o in rows[1:60]]), want.iloc[:59])


def test_a_fork_judges_by_itself(spy):
    s = Stream(['r1']); s.start(spy[spy.index.date < DAY]); rows = spy.loc[str(DAY)].reset_index().to_dict('records')
    f = s.fork(); quiet(f.push, rows[0] | {k: rows[0][k]*10 for k in OHLC})
    assert len(f.left_out) == 1 and s.left_out == () and s.watch.n == 0
    assert np.isfinite(s.push(rows[0])['r1']) and s.left_out == ()


def test_a_restart_in_mid_session_judges_the_same(spy):
    bad = times(times(spy, at(spy, 30), 10.), at(spy, 250), .5)
    c, _ = quiet(certificate, bad[bad.index.date <= DAY], DAY, NAMES)
    assert c.ok and (c.table['only_one'] == 0).all()


@pytest.mark.parametrize('k', [1.11, 1.15, 1.29, .9, .8])
@pytest.mark.parametrize('n', [1, 2, 4])
def test_wrong_first_bars_cost_themselves_alone(spy, k, n):
    "An open that is far from the evening before is believed when it stands, and here it does not."
    bad = times(spy, slice(at(spy, 0), at(spy, n)), k)
    assert set(bad_bars(bad)) == set(spy.index[at(spy, 0):at(spy, n)])


@pytest.mark.parametrize('k', [1.07, 1.2, .93])
def test_a_level_that_was_believed_and_left_again_costs_no_good_bar(spy, k):
    bad = times(spy, slice(at(spy, 120), at(spy, 130)), k)
    assert set(bad_bars(bad)) == set(spy.index[at(spy, 120):at(spy, 124)]) # ten wrong bars that agree: from the fifth on they are a level


def test_a_day_that_ended_on_a_wrong_level_costs_no_bar_of_the_next(spy):
    bad = times(spy, slice(at(spy, 380), at(spy, 389) + 1), 1.15); assert set(bad_bars(bad)) == set(spy.index[at(spy, 380):at(spy, 384)])
    whole = times(spy, slice(at(spy, 0), at(spy, 389) + 1), 1.15); assert set(bad_bars(whole)) == set(spy.index[at(spy, 0):at(spy, 4)])


def test_the_first_bar_of_all_is_held_against_the_next_ones(spy):
    assert set(bad_bars(times(spy, 0, 1.15))) == {spy.index[0]}


def test_one_minute_six_percent_off_is_no_market(spy):
    for m, k in ((100, 1.06), (200, .94), (364, 1.08)): assert set(bad_bars(times(spy, at(spy, m), k))) == {spy.index[at(spy, m)]}
    assert not bad_bars(times(spy, at(spy, 5), 1.08)) # where the bands are wide it might be one


def test_a_split_is_dated_though_its_first_bar_was_not_adjusted(spy):
    bad = times(spy, slice(at(spy, 1), None), .5)
    with pytest.raises(DataError, match=f'{DAY} opened.*2-for-1') as e: grid(bad)
    assert f'before {DAY} by 1/2' in str(e.value)


def test_all_sessions_in_cents_are_named(spy):
    days = sorted(set(spy.index.date)); k = days.index(DAY); end = days[k + 1]
    with pytest.raises(DataError, match='another unit') as e: grid(times(spy, slice(at(spy, 0), at(spy, 0, end) + 390), 100.))
    assert f'divide the prices of {DAY} to {end} by 100' in str(e.value)


@pytest.mark.parametrize('off', [-60, -30, 60, 59, 6])
def test_times_of_another_zone_are_refused(tmp_path, off):
    df = made(sessions(date(2025, 12, 1), date(2025, 12, 5))); df.index = df.index + pd.Timedelta(minutes=off); df.to_parquet(tmp_path/'x.parquet')
    with pytest.raises(DataError, match=f'every time is {abs(off)} minutes too {"early" if off < 0 else "late"}'): read_bars(tmp_path/'x.parquet')


# -- halts, gaps, holes

def walk(w, *rows): return [w.sees(d, m, linked, *[float(px)]*4) for d, m, linked, px in rows]

def test_what_a_market_may_do_is_believed():
    d, e = date(2020, 3, 16), date(2020, 3, 17)
    assert walk(Watch(), (d, 0, True, 270), (d, 1, True, 251), (d, 16, True, 230), (d, 17, True, 239)) == [True]*4 # a level-1 halt, and a reopening 8 % lower
    fell = [(e, m, True, 216) for m in range(6)]
    assert walk(Watch(), (d, 389, True, 270), *fell) == [True] + [False]*4 + [True]*2 # 20 % overnight, once it stands
    assert walk(Watch(), (d, 0, True, 270), *((d, 30 + m, True, 216) for m in range(6))) == [True] + [False]*4 + [True]*2 # and over a hole
    assert walk(Watch(), (d, 389, True, 270), (e, 0, True, 248)) == [True]*2 # 8 % overnight, at once
    assert walk(Watch(), (d, 389, True, 270), (e, 0, False, 500)) == [True]*2 # over a longer gap
    assert walk(Watch(), *((d, m, True, 270 if m == 0 else 235) for m in range(8))) == [True] + [False]*4 + [True]*3 # believed when it stands


def test_sessions_that_were_not_asked_for_are_no_measure(spy):
    bad = times(spy, slice(at(spy, 0), at(spy, 389) + 1), 100.); days = [prev_session(DAY), date(2025, 12, 4)]
    assert grid(bad, days).left_out == {} and grid(bad, days).seen.sum() == 780 == grid(bad, days).rows.sum()
    halved = times(spy, slice(at(spy, 0, date(2025, 12, 4)), None), .6) # across the session that is left out nothing follows on: a fall of 40 % is believed
    assert grid(halved, days).left_out == {}


def test_a_price_that_is_none_is_never_the_measure():
    d = date(2026, 3, 31)
    for px in (0., -1., np.nan, np.inf):
        w = Watch(); assert walk(w, (d, 0, True, px), (d, 1, True, 650), (d, 2, True, px), (d, 3, True, 651)) == [False, True, False, True]


@settings(max_examples=60, deadline=None)
@given(slips=st.dictionaries(st.integers(0, 389*3), st.sampled_from([100., 10., 3., 1.15, .85, .3, .1, .01]), max_size=6))
def test_stream_and_history_leave_out_the_same(slips):
    "Single slips anywhere in three sessions, neighbours among them."
    days = sessions(date(2026, 3, 25), date(2026, 3, 27)); df = made(days)[OHLC + ['volume']]; i = sorted(slips)
    if len(i) and i[0] < 3: return # the first bars of all have no measure yet
    bad = df.copy(); bad.iloc[i, :4] *= np.array([slips[k] for k in i])[:, None]
    try: left = set(bad_bars(bad))
    except DataError: return # five of them in a row at an open
    w, last, day, off = Watch(float(bad['close'].iloc[:STANDS].median())), None, None, set()
    for t, o in zip(bad.index, bad[OHLC].to_numpy().tolist()):
        if t.date() != day: last, day = day, t.date()
        if not w.sees(day, t.hour*60 + t.minute - 570, last is not None and prev_session(day) == last, *o): off.add(t)
    assert left == off == {bad.index[k] for k in i}


# -- where bars go from there

def test_the_live_day_goes_on_after_a_slip(spy, tmp_path):
    "The row keeps the bar as it came and has no features; those after it are what they would be without it."
    s, i = Store(tmp_path, 'replay:live'), at(spy, 20)
    for d in sessions(date(2025, 11, 10), prev_session(DAY)): s.write_raw(d, spy.loc[str(d)])
    today, bad = Today(s, DAY), times(spy, i, 10.).iloc[at(spy, 0):at(spy, 60)]
    for t, *v in bad.itertuples(): today.take(Minute(int(t.timestamp()), *v, None, None, False, {}))
    quiet(today.write); rows = s.features.frame([DAY]).loc[bad.index]; want = compute(spy.drop(spy.index[i]).loc[:bad.index[-1]]).loc[str(DAY)]
    assert [t for t, _ in today.stream.left_out] == [spy.index[i]] and today.done == 60
    np.testing.assert_array_equal(rows[want.columns].drop(spy.index[i]), want)
    assert rows.loc[spy.index[i], want.columns].isna().all() and rows.loc[spy.index[i], 'open'] == bad.loc[spy.index[i], 'open']


def test_models_and_labels_do_not_see_it(spy):
    bad = times(spy, at(spy, 100), 10.)
    a, b = quiet(Panel.from_bars, bad, features=NAMES)[0], Panel.from_bars(spy.drop(spy.index[at(spy, 100)]), features=NAMES)
    for o in ('x', 'close', 'high', 'volume'): np.testing.assert_array_equal(getattr(a, o), getattr(b, o))


def test_the_report_lists_it_with_its_neighbours(spy, tmp_path):
    s, days = Store(tmp_path, 'replay:bad'), sessions(date(2025, 12, 1), date(2025, 12, 4)); bad = times(times(spy, at(spy, 100), 10.), at(spy, 300), 1.01)
    for d in days: s.write_raw(d, bad.loc[str(d)])
    h = health_of(s, days, session(days[-1]).close); said = dict(exceptions(h))
    assert 'before it and' in said['2025-12-03 11:10: left out, no market makes this bar'] and said['2025-12-03 14:30: bad print'] == 'kept as it came'
    t = Store(tmp_path/'split', 'replay:bad')
    for d in days: t.write_raw(d, times(spy, slice(None), .5 if d >= DAY else 1.).loc[str(d)])
    assert any('2-for-1' in what for what, _ in exceptions(health_of(t, days, session(days[-1]).close)))


# -- files

def read(df, path, clock=LATER):
    (df.to_csv if path.suffix == '.csv' else df.to_parquet)(path); return quiet(read_bars, path, clock)


@pytest.mark.parametrize('step', [1, 5])
def test_bars_stamped_with_their_end_are_refused(spy, tmp_path, step):
    df = spy[(spy.index.minute % step) == 0]
    with pytest.raises(DataError, match='stamped with their end') as e: read(df.set_axis(df.index + pd.Timedelta(minutes=step)), tmp_path/'a.parquet')
    assert 'have no bar at the open and one at the very close' in e.value.why and 'subtract' in e.value.todo
    late = df[(df.index.hour*60 + df.index.minute) != 570] # a source that begins late every day is no such file
    assert len(read(late, tmp_path/'b.parquet')[0]) == len(late)


def test_a_file_with_extended_hours_is_read_and_the_rest_counted(spy, tmp_path):
    around = pd.concat([spy.iloc[:60].set_axis(spy.index[:60] - pd.Timedelta(hours=1)), spy, spy.iloc[330:390].set_axis(spy.index[330:390] + pd.Timedelta(hours=1))]).sort_index()
    back, said = read(around, tmp_path/'a.parquet')
    assert len(back) == len(spy) and back.attrs['left_out'] in said[0] and '120 rows of' in said[0] and '60 before the open, 60 after the close' in said[0]


def test_a_holiday_and_the_afternoon_of_a_half_day_are_counted(spy, tmp_path):
    thanksgiving = spy.loc['2025-11-26'].set_axis(spy.loc['2025-11-26'].index + pd.Timedelta(days=1)); half = spy.loc['2025-11-26'].iloc[210:].set_axis(spy.loc['2025-11-26'].index[210:] + pd.Timedelta(days=2))
    back, said = read(pd.concat([spy, thanksgiving, half]).sort_index(), tmp_path/'a.parquet')
    np.testing.assert_array_equal(back, spy); assert (back.index == spy.index).all() and '180 after the close, 390 on 1 day without a session (2025-11-27)' in said[0]
    assert read(spy, tmp_path/'b.parquet')[1] == []


def test_the_future_is_no_record(spy, tmp_path):
    now = FixedClock(session(DAY).open.astimezone(timezone.utc) + timedelta(hours=1))
    with pytest.raises(DataError, match='bars of the future') as e: read(spy, tmp_path/'a.parquet', now)
    assert 'the first at 2025-12-03 10:31' in e.value.why and 'now is 2025-12-03 10:30 in New York' in e.value.why
    assert len(read(spy[spy.index <= now.now().astimezone(ET)], tmp_path/'b.parquet', now)[0])


@pytest.mark.parametrize('column,text,says', [('high', 'abc', "row 3, column high: 'abc'"), ('open', '"683,10"', "row 3, column open: '683,10'"), ('Datetime', 'yesterday', "row 3, column datetime: 'yesterday'")])
def test_a_cell_that_cannot_be_read_is_named(spy, tmp_path, column, text, says):
    p = tmp_path/'a.csv'; spy.head(9).to_csv(p); lines = p.read_text().splitlines(); cells = lines[3].split(',')
    cells[lines[0].split(',').index(column)] = text; lines[3] = ','.join(cells); p.write_text('\n'.join(lines))
    with pytest.raises(DataError) as e: read_bars(p, LATER)
    assert e.value.why == says


@pytest.mark.parametrize('column,value,says', [('close', np.nan, r'empty price or volume \(NaN\), in close: 1 row, the first at 2025-11-10 09:33'), ('volume', np.nan, 'in volume: 1 row'),
    ('high', np.inf, 'infinite price or volume, in high: 1 row'), ('low', 0., 'price not above zero, in low: 1 row'), ('low', -5., 'above zero, in low'), ('volume', -5., 'volume below zero: 1 row'), ('volume', 1e15, 'volume above 2e[+]09: 1 row, the first at 2025-11-10 09:33'),
    ('high', 1., 'does not enclose open and close: 1 row')])
def test_a_cell_that_no_record_has_is_named(spy, tmp_path, column, value, says):
    df = spy.head(9).copy(); df.iloc[3, df.columns.get_loc(column)] = value
    with pytest.raises(DataError, match=says): read(df, tmp_path/'a.parquet')
    with pytest.raises(DataError, match=says): compute(df, NAMES)


def test_times_between_minutes_and_a_line_cut_off_are_named(spy, tmp_path):
    df = spy.head(9)
    with pytest.raises(DataError, match='a bar does not begin on a whole minute: 9 rows, the first at 2025-11-10 09:30:30'): read(df.set_axis(df.index + pd.Timedelta('30s')), tmp_path/'a.parquet')
    p = tmp_path/'a.csv'; df.to_csv(p); text = p.read_text(); last = text.splitlines()[-1]
    p.write_text(text[:-len(last) - 1 + 7])
    with pytest.raises(DataError, match='row 9, column datetime: .* has no offset, and is the last: was the file cut off[?]'): read_bars(p)


def test_what_a_file_loses_is_said_by_every_command_that_reads_it(tmp_path):
    "The file is read by the replay server, a process of its own: its notice reaches the person, and no error is taken for it."
    df = made([date(2025, 12, 1), date(2025, 12, 2)]); early = df.iloc[:5].set_axis(df.index[:5] - pd.Timedelta(hours=2)); path = tmp_path/'early.parquet'; pd.concat([early, df]).to_parquet(path)
    spy = lambda *a: subprocess.run([sys.executable, '-m', 'spyresearch.cli', *a], capture_output=True, text=True, timeout=120)
    done = spy('history', '--bars', str(path), '--data', str(tmp_path/'data'), '--days', '2')
    assert done.returncode == 0 and '5 rows' in done.stderr and 'outside regular hours left out' in done.stderr and 'UserWarning' not in done.stderr and 'notice:' not in done.stderr
    (tmp_path/'bad.parquet').write_bytes(b'no'); both = spy('history', '--bars', str(path), '--bars', str(tmp_path/'bad.parquet'), '--data', str(tmp_path/'other'), '--days', '2')
    assert both.returncode == 3 and both.stderr.splitlines()[-3].endswith('bad.parquet: cannot be read')
