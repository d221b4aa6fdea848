"""History end to end over real sockets: what is asked, what is written, what is left alone."""
import asyncio, os, sys
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

import made
from made import CLOSE, DAYS
from spyresearch.bars import BA, IV, OHLC, OHLCV
from spyresearch.core import DataError, FixedClock, PermissionMissing, UsageError, file_hash, parse_asof
from spyresearch.sessions import minutes, session, sessions
from spyresearch.store import Store
from spyresearch.tws.faults import Faults
from spyresearch.tws.history import fetch
from spyresearch.tws.link import Dropped, NoData, Pacing, TimedOut
from spyresearch.tws.replay import ReplayServer
from spyresearch.tws.tape import Tape, tape_from_files

TODAY = DAYS[-1]
HALF = date(2025, 11, 28)

@pytest.fixture
def store(tmp_path): return Store(tmp_path/'data')

def same(store, df, cols=OHLC):
    pd.testing.assert_frame_equal(store.raw_frame()[cols], df[cols], check_freq=False, check_index_type=False)

def test_first_run_takes_all_and_the_second_nothing(store):
    tape = made.tape()
    first, asked = made.fetch(tape, store, days=len(DAYS)); before = made.files(store.root)
    assert first.fetched == DAYS and first.kept == [] and len(made.trades(asked)) == 4 and [o.duration for o in made.trades(asked)] == ['5 D', '5 D', '5 D', '4 D']
    assert trades_end(asked) == sorted(trades_end(asked), reverse=True)               # walking back
    assert all(o.format_date == 2 and o.end.endswith(' UTC') and o.rth for o in made.trades(asked))
    same(store, tape.bars['TRADES', '1 min'], OHLCV + ['average', 'barCount'])
    assert len(store.raw(HALF)) == 210 and store.provenance == 'simulated:made'
    second, asked = made.fetch(tape, Store(store.root), days=len(DAYS))
    assert second.fetched == [] and second.kept == DAYS and asked == [] and made.files(store.root) == before

def trades_end(asked): return [o.end for o in made.trades(asked)]

def test_only_from_the_last_day_present(store):
    tape = made.tape()
    made.good(made.fetch(tape, store, days=10, asof=parse_asof('2025-12-01'), daily=False))
    before = made.files(store.root)
    report, asked = made.fetch(tape, store, days=10, daily=False)
    assert report.fetched == sessions(date(2025, 12, 2), date(2025, 12, 5)) and made.asked_days(asked) == set(report.fetched)
    assert all(v == made.files(store.root)[k] for k, v in before.items() if k.endswith('.csv'))

def test_days_count_calendar_sessions(store):
    report, _ = made.fetch(made.tape(), store, days=3)
    assert report.days == DAYS[-3:] and store.raw_days() == DAYS[-3:]

def test_all_walks_to_the_head_timestamp(store):
    assert made.good(made.fetch(made.tape(), store, days='all')).days == DAYS

@pytest.mark.parametrize('days', [0, -3, 'many', 2.5])
def test_wrong_days_are_a_usage_error(store, days):
    e, _ = made.fetch(made.tape(), store, days=days)
    assert isinstance(e, UsageError) and e.exit_code == 2

def test_today_is_refreshed_and_never_taken_for_complete(store):
    tape, noon = made.tape(), datetime(2025, 12, 5, 17, 0, 30, tzinfo=timezone.utc)
    r = made.good(made.fetch(tape, store, days=3, asof=noon))
    assert r.unfinished == [TODAY] and len(store.raw(TODAY)) == 150 and store.raw(TODAY).index[-1] == pd.Timestamp('2025-12-05 11:59', tz=store.raw(TODAY).index.tz)
    assert store.raw_days(sealed=True) == DAYS[-3:-1] and store.raw_hash(TODAY) == ''
    r, asked = made.fetch(tape, store, days=3, asof=noon)
    assert r.fetched == [] and asked == []                                            # nothing new can be known
    r, asked = made.fetch(tape, store, days=3, asof=noon + timedelta(minutes=45))
    assert r.fetched == [TODAY] == r.unfinished and len(store.raw(TODAY)) == 195 and made.asked_days(asked) == {TODAY}
    r = made.good(made.fetch(tape, store, days=3))
    assert r.unfinished == [] and len(store.raw(TODAY)) == 390 and store.raw_hash(TODAY)

def test_today_keeps_the_spread_that_a_later_source_does_not_give(store):
    noon = datetime(2025, 12, 5, 17, 0, 30, tzinfo=timezone.utc)
    made.good(made.fetch(made.rich(), store, days=3, asof=noon)); was = store.raw(TODAY)
    poor = Tape('rich', 'simulated', {('TRADES', '1 min'): made.bars(DAYS)})
    made.good(made.fetch(poor, store, days=3, asof=noon + timedelta(minutes=45))); now = store.raw(TODAY)
    assert len(was) == 150 and was[BA + IV].notna().all(axis=None) and len(now) == 195
    assert now[BA + IV][:150].equals(was[BA + IV]) and now[BA + IV][150:].isna().all(axis=None)

@pytest.fixture
def real(monkeypatch):
    "The replay server names a customer's account, so its data pass for TWS's own."
    monkeypatch.setattr(Tape, 'account', 'U1234567')

def at(minutes_after): return dict(server=dict(asof=CLOSE + timedelta(minutes=minutes_after)), days=3)

def test_day_is_not_sealed_before_its_record_stands(store, real):
    "TWS's history servers lag by minutes, and the last bar may still be amended."
    whole = made.bars(DAYS); early = whole.iloc[:-3].copy(); amended = whole.copy(); early.iloc[-1, 4] = amended.iloc[-2, 4] = 77.
    r = made.good(made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): early}), store, **at(2)))
    assert r.provenance == 'tws' and r.unfinished == [TODAY] and r.known_gaps == {} and len(store.raw(TODAY)) == 387 and store.raw_hash(TODAY) == ''
    r, asked = made.fetch(made.tape(), store, **at(10))
    assert r.unfinished == [TODAY] and len(store.raw(TODAY)) == 390 and not store.is_sealed(TODAY)
    r, asked = made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): amended}), Store(store.root), **at(31))      # tidying has not sealed it
    assert r.fetched == [TODAY] and r.unfinished == [] and made.asked_days(asked) == {TODAY} and Store(store.root).is_sealed(TODAY)
    assert Store(store.root).raw(TODAY)['volume'].iloc[-2] == 77.
    assert made.fetch(made.tape(), Store(store.root), **at(60))[1] == []

def test_day_of_a_tape_is_sealed_at_the_close_and_a_named_date_means_its_end(store, monkeypatch):
    r = made.good(made.fetch(made.tape(), store, days=3))
    assert r.unfinished == [] and store.raw_days(sealed=True) == DAYS[-3:]
    monkeypatch.setattr(Tape, 'account', 'U1234567'); real = Store(store.root.parent/'real')
    r = made.good(made.fetch(made.tape(), real, days=3, asof=parse_asof('2025-12-04'), server=dict(asof=CLOSE + timedelta(hours=5))))
    assert r.unfinished == [] and real.raw_days(sealed=True) == DAYS[-4:-1]

def test_known_gaps_are_asked_for_again_on_purpose_and_days_only_grow(store):
    df = made.bars(DAYS); gone = minutes(DAYS[-2])[[10, 389]]
    made.good(made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): df.drop(gone)}), store, days=5)); before = made.files(store.root)
    part = (df*2).drop(gone[1:])                                   # the same source, one minute more, and other prices for all the rest
    assert made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): part}), store, days=5)[1] == []
    r, asked = made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): part}), store, days=5, again=True)
    assert r.fetched == [DAYS[-2]] and r.known_gaps == {DAYS[-2]: ['15:59']} and [o.duration for o in made.trades(asked)] == ['1 D', '2 D']
    got = store.raw(DAYS[-2])['open']; assert got[gone[0]] == df['open'][gone[0]]*2 and (got.drop(gone[0]) == df['open'].loc[got.index].drop(gone[0])).all()
    assert {k for k, v in made.files(store.root).items() if before[k] != v} == {f'original_data/{DAYS[-2]}.csv', 'original_data.manifest.json'}
    r = made.good(made.fetch(Tape('made', 'simulated', {('TRADES', '1 min'): df.drop(gone)}), Store(store.root), days=5, again=True))
    assert r.fetched == [] and r.known_gaps == {DAYS[-2]: ['15:59']} and r.quarantined == {}      # the source has less now: nothing is lost

def test_asof_hides_what_came_later_even_if_it_is_on_disk(store):
    tape = made.tape(); made.good(made.fetch(tape, store, days=5)); before = made.files(store.root)
    asof = datetime(2025, 12, 3, 16, tzinfo=timezone.utc)
    r, asked = made.fetch(tape, store, days=3, asof=asof)
    assert r.days[-1] == date(2025, 12, 3) and asked == [] and made.files(store.root) == before
    assert store.raw_frame(upto=asof).index[-1] + pd.Timedelta(minutes=1) == pd.Timestamp(asof)

def test_asof_in_the_future_and_before_the_open(store):
    r = made.good(made.fetch(made.tape(), store, days=2, asof=CLOSE + timedelta(days=30)))
    assert r.days == DAYS[-2:] and r.absent == []
    r = made.good(made.fetch(made.tape(), store, days=3, asof=datetime(2025, 12, 4, 14, 30, 20, tzinfo=timezone.utc)))   # 20 s after the open
    assert r.days[-1] == date(2025, 12, 4) and r.absent == []
    e, _ = made.fetch(made.tape(), store, days=2, asof=datetime(2025, 12, 4))
    assert isinstance(e, UsageError) and 'time zone' in e.what

def test_missing_minute_is_asked_for_twice_then_known(store):
    df = made.bars(DAYS); gone = minutes(DAYS[-4])[[10, 389]]
    tape = Tape('gap', 'simulated', {('TRADES', '1 min'): df.drop(gone)})
    r, asked = made.fetch(tape, store, days=5)
    assert r.known_gaps == {DAYS[-4]: ['09:40', '15:59']} and len(made.trades(asked)) == 2 and store.raw_days(sealed=True) == DAYS[-5:]
    same(store, df.drop(gone).loc[str(DAYS[-5]):])
    r, asked = made.fetch(tape, store, days=5)
    assert r.known_gaps == {DAYS[-4]: ['09:40', '15:59']} and asked == []

def test_gap_in_a_single_day_is_not_asked_with_the_same_words(store):
    tape = Tape('gap', 'simulated', {('TRADES', '1 min'): made.bars(DAYS).drop(minutes(TODAY)[7])})
    _, asked = made.fetch(tape, store, days=1)
    assert [o.duration for o in made.trades(asked)] == ['1 D', '2 D']

def test_bars_no_market_can_have_are_not_kept(store):
    df = made.bars(DAYS[-2:]); df.iloc[3, df.columns.get_loc('high')] = 1.; df.iloc[5, df.columns.get_loc('low')] = -1.
    r = made.good(made.fetch(Tape('odd', 'simulated', {('TRADES', '1 min'): df}), store, days=2))
    assert r.known_gaps == {DAYS[-2]: ['09:33', '09:35']} and store.raw_days() == DAYS[-2:]

def test_absent_session_is_listed_and_asked_again_only_of_another_source(store):
    away = DAYS[-3]; df = made.bars([d for d in DAYS if d != away])
    tape = Tape('made', 'simulated', {('TRADES', '1 min'): df})
    r, asked = made.fetch(tape, store, days=5)
    assert r.absent == [away] and r.fetched == [d for d in DAYS[-5:] if d != away] and r.days == DAYS[-5:]    # not replaced by an older one
    r, asked = made.fetch(tape, store, days=5)
    assert r.absent == [away] and asked == []
    longer = Tape('made', 'simulated', {('TRADES', '1 min'): made.bars(sessions(date(2025, 11, 3), CLOSE.date()))})  # begins earlier: another source
    r, asked = made.fetch(longer, store, days=5)
    assert r.absent == [] and made.asked_days(asked) == {away}
    assert made.fetch(tape, store, days=5, again=True)[0].absent == []

NOTHING = [162, 'Historical Market Data Service error message:HMDS query returned no data: SPY@SMART Trades']

def test_empty_span_of_a_real_tws_is_asked_for_again_day_by_day(store, real):
    "The second span (the fifth request: after the schedule, the first span and the two kinds beside it) comes back empty once."
    opts = dict(days=10, daily=False, server=dict(asof=CLOSE + timedelta(hours=1)))
    r, asked = made.fetch(made.tape(), store, Faults(history_errors={'5': NOTHING}), **opts)
    assert sorted(o.duration for o in made.trades(asked)) == ['1 D']*5 + ['5 D']*2 and r.absent == [] and r.fetched == DAYS[-10:]

def test_recent_sessions_of_a_real_tws_are_not_remembered_as_absent(store, real):
    away = [DAYS[-8], DAYS[-3]]; late = dict(days=10, server=dict(asof=CLOSE + timedelta(hours=1)))
    tape = Tape('made', 'simulated', {('TRADES', '1 min'): made.bars([d for d in DAYS if d not in away])})
    r = made.good(made.fetch(tape, store, **late))
    assert r.absent == away and list(store.absent) == away[:1]
    _, asked = made.fetch(tape, store, **late)
    assert away[1] in made.asked_days(asked) and away[0] not in made.asked_days(asked)
    r = made.good(made.fetch(made.tape(), store, again=True, **late))
    assert r.absent == [] and store.absent == {} and store.original.m['absent'] == {} and len(Store(store.root).raw_days()) == 10

def test_newest_session_without_bars_is_asked_for_again(store):
    tape = Tape('made', 'simulated', {('TRADES', '1 min'): made.bars(DAYS[:-1])})
    late = dict(server=dict(asof=CLOSE), days=3)
    assert made.good(made.fetch(tape, store, **late)).absent == [TODAY] and store.absent == {}
    r, asked = made.fetch(made.tape(), store, **late)
    assert r.absent == [] and made.asked_days(asked) == {TODAY}

def test_spread_and_volatility_ride_along_field_by_field(store):
    tape = made.rich(); r = made.good(made.fetch(tape, store, days=7))
    got = store.raw_frame()
    for what, cols in (('BID_ASK', BA), ('OPTION_IMPLIED_VOLATILITY', IV)):
        sent = tape.bars[what, '1 min'].loc[got.index]
        assert np.array_equal(got[cols].to_numpy(), sent[OHLC].to_numpy())
    assert 'BID_ASK' not in r.lacking and made.fetch(tape, store, days=7)[1] == []

@pytest.mark.parametrize('faults', [Faults(), Faults(denied=('BID_ASK', 'OPTION_IMPLIED_VOLATILITY'))], ids=['not on the tape', 'no permission'])
def test_what_the_source_does_not_give_stays_empty_said_once_remembered(store, faults):
    tape = made.rich() if faults.denied else made.tape()
    r, asked = made.fetch(tape, store, faults, days=12, asof=parse_asof('2025-12-04'))
    assert set(r.lacking) >= {'BID_ASK', 'OPTION_IMPLIED_VOLATILITY'} and str(r).count('BID_ASK') == 1
    assert len(r.fetched) == 12 and store.raw_frame()[BA + IV].isna().all().all()
    assert [o.what for o in asked].count('BID_ASK') == 1 == [o.what for o in asked].count('OPTION_IMPLIED_VOLATILITY')
    r, asked = made.fetch(tape, store, faults, days=12)
    assert r.fetched == [TODAY] and {o.what for o in asked} == {'TRADES', 'SCHEDULE'} and 'BID_ASK' in r.lacking
    _, asked = made.fetch(tape, store, faults, days=15, again=True)
    assert 'BID_ASK' in [o.what for o in asked]

PACING = [162, 'Historical Market Data Service error message:Historical data request pacing violation']

@pytest.mark.parametrize('says', [PACING, [366, 'x'], [321, 'Error validating request.-xx : cause - ill today'], [162, 'Historical Market Data Service error message:Trading TWS session is connected from a different IP address']], ids=['pacing', 'silent', 'refused', 'elsewhere'])
def test_passing_trouble_with_a_kind_is_not_remembered_and_made_good_later(store, says):
    "SCHEDULE and TRADES are answered, BID_ASK is in trouble from the first request on."
    tape, clock = made.rich(), FixedClock(CLOSE)
    bad = Faults(silent_history=tuple(range(3, 40))) if says[0] == 366 else Faults(history_errors={str(i): says for i in ((3, 4, 5) if says is PACING else (3,))})
    r, asked = made.fetch(tape, store, bad, link=dict(clock=clock), days=1 if says[0] == 366 else 5, timeout_s=.3 if says[0] == 366 else 20, daily=False)
    days = r.fetched
    assert days and 'BID_ASK' not in store.lacks and 'BID_ASK' not in r.lacking and any(o.startswith('BID_ASK is left to the next run') for o in r.notes)
    assert store.raw_frame()[BA].isna().all().all() and store.raw_days(sealed=True) == days
    r, asked = made.fetch(tape, Store(store.root), days=len(days), daily=False)
    assert r.fetched == [] and r.filled['BID_ASK'] == days and 'TRADES' not in {o.what for o in asked}
    got = Store(store.root).raw_frame(); assert np.array_equal(got[BA].to_numpy(), tape.bars['BID_ASK', '1 min'].loc[got.index, OHLC].to_numpy())
    same(Store(store.root), tape.bars['TRADES', '1 min'].loc[str(days[0]):], OHLCV + ['average', 'barCount'])
    assert made.fetch(tape, Store(store.root), days=len(days), daily=False)[1] == [] and Store(store.root).tidy() == {}

def test_permission_that_comes_later_fills_the_sealed_days(store):
    tape, no = made.rich(), Faults(denied=('BID_ASK', 'OPTION_IMPLIED_VOLATILITY'))
    made.good(made.fetch(tape, store, no, days=12, daily=False)); assert set(store.lacks) == {'BID_ASK', 'OPTION_IMPLIED_VOLATILITY'}
    assert made.fetch(tape, store, days=12, daily=False)[1] == []                       # remembered
    r, asked = made.fetch(tape, store, days=12, again=True, daily=False)
    assert r.filled == dict.fromkeys(('BID_ASK', 'OPTION_IMPLIED_VOLATILITY'), DAYS[-12:]) or {k: sorted(v) for k, v in r.filled.items()} == dict.fromkeys(('BID_ASK', 'OPTION_IMPLIED_VOLATILITY'), DAYS[-12:])
    assert store.lacks == {} and store.raw_frame()[BA + IV].notna().all().all() and {o.what for o in asked} == {'BID_ASK', 'OPTION_IMPLIED_VOLATILITY'}
    r, asked = made.fetch(tape, store, days=15, daily=False)                            # forgotten for good: older days get the columns at once
    assert len(r.fetched) == 3 and store.raw_frame()[BA + IV].notna().all().all()

def test_day_without_a_kind_that_the_source_gives_is_asked_for_once(store):
    tape = made.rich(); away = DAYS[-3]; key = 'OPTION_IMPLIED_VOLATILITY', '1 min'
    iv = tape.bars[key]; tape.bars[key] = iv[iv.index.date != away]
    r = made.good(made.fetch(tape, store, days=5)); assert store.raw(away)[IV].isna().all().all() and r.lacking.keys() <= {'daily', 'dividends'}
    assert made.fetch(tape, Store(store.root), days=5)[1] == []
    _, asked = made.fetch(tape, Store(store.root), days=5, again=True)
    assert [o.what for o in asked if o.bar_size == '1 min'] == ['OPTION_IMPLIED_VOLATILITY']

def test_no_permission_for_trades_ends_the_run(store):
    e, _ = made.fetch(made.tape(), store, Faults(denied=('TRADES',)), days=5)
    assert isinstance(e, PermissionMissing) and e.exit_code == 4 and e.todo and store.raw_days() == []

def test_no_data_at_all(store):
    tape = Tape('old', 'simulated', {('TRADES', '1 min'): made.bars(DAYS[:2])})
    e, _ = made.fetch(tape, store, days=5, server=dict(asof=CLOSE))
    assert isinstance(e, DataError) and e.exit_code == 3 and '--bars' in e.todo and store.absent == {}

def test_no_data_at_all_from_a_real_tws(store, real):
    e, _ = made.fetch(Tape('old', 'simulated', {('TRADES', '1 min'): made.bars(DAYS[:2])}), store, days=5, server=dict(asof=CLOSE))
    assert isinstance(e, NoData) and e.exit_code == 4 and e.todo and store.absent == {}

def test_daily_bars_with_dividends(store):
    days = sessions(date(2010, 1, 4), TODAY); df = made.daily(days)
    paid = pd.Series({days[1000]: .77, days[2000]: 1.5, DAYS[-2]: 1.91})
    from spyresearch.tws.tape import with_adjusted
    tape = with_adjusted(Tape('years', 'simulated', {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '1 day'): df}, paid))
    r = made.good(made.fetch(tape, store, days=3, asof=parse_asof('2025-12-03')))
    got = store.daily_bars()
    assert r.daily_rows == len(got) == len(days) - 2 and np.array_equal(got[OHLCV].to_numpy(), df[OHLCV].to_numpy()[:-2])
    assert {d.date(): v for d, v in got['dividend'].items() if v > 0} == {days[1000]: .77, days[2000]: 1.5}     # the last is not known yet
    r, asked = made.fetch(tape, store, days=3)
    new = store.daily_bars(); pd.testing.assert_frame_equal(new.iloc[:-2], got)
    assert new['dividend'].iloc[-2:].tolist() == [1.91, 0.] and {o.duration for o in asked if o.bar_size == '1 day' and o.what != 'SCHEDULE'} == {'13 D'}
    assert [o.end for o in asked if o.what == 'ADJUSTED_LAST'] == ['']
    assert made.fetch(tape, store, days=3)[1] == []
    assert len(store.daily_bars(upto=parse_asof('2024-12-31'))) == len([d for d in days if d.year < 2025])

def test_daily_without_dividends_leaves_them_empty(store):
    tape = Tape('years', 'simulated', {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '1 day'): made.daily(DAYS)})
    r = made.good(made.fetch(tape, store, days=3))
    assert store.daily_bars()['dividend'].isna().all() and 'dividends' in r.lacking

def test_daily_bars_corrected_at_the_source_are_read_with_again(store):
    good = made.daily(DAYS); bad = good.copy(); bad.iloc[-5, :4] *= 1.05
    def tape(daily): return Tape('years', 'simulated', {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '1 day'): daily})
    for df, more, has in ((bad, {}, bad), (good, {}, bad), (good, dict(again=True), good)):
        r = made.good(made.fetch(tape(df), store, days=3, **more))
        np.testing.assert_array_equal(store.daily_bars()[OHLCV], has[OHLCV])
    assert f'daily bars: 1 changed at the source ({DAYS[-5]})' in str(r) and r.daily_rows == len(DAYS)

def test_dividends_that_could_not_be_had_come_with_a_later_run(store):
    from spyresearch.tws.tape import with_adjusted
    days = sessions(date(2024, 1, 2), TODAY); paid = pd.Series({days[100]: 1.5, DAYS[-2]: 1.91})
    plain = {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '1 day'): made.daily(days)}
    tape = with_adjusted(Tape('made', 'simulated', plain, paid))
    ill = {str(i): [321, 'Error validating request.-xx : cause - ill today'] for i in range(1, 60)}
    made.good(made.fetch(tape, store, days=3))
    _, asked = made.fetch(tape, other := Store(store.root.parent/'b'), days=3)
    n = [o.what for o in asked].index('ADJUSTED_LAST') + 1
    r = made.good(made.fetch(tape, other := Store(store.root.parent/'c'), Faults(history_errors={str(n): ill['1']}), days=3))
    assert other.daily_bars()['dividend'].isna().all() and 'dividends' not in other.lacks and any('dividends is left' in o for o in r.notes)
    r, asked = made.fetch(tape, other, days=3)
    assert 'ADJUSTED_LAST' in [o.what for o in asked]
    pd.testing.assert_frame_equal(other.daily_bars(), store.daily_bars()); assert made.fetch(tape, other, days=3)[1] == []
    none = Store(store.root.parent/'d'); r = made.good(made.fetch(Tape('made', 'simulated', plain), none, days=3))
    assert 'dividends' in none.lacks and made.fetch(tape, none, days=3)[1] == []          # said once, remembered
    made.good(made.fetch(tape, none, days=3, again=True))
    pd.testing.assert_frame_equal(none.daily_bars(), store.daily_bars()); assert 'dividends' not in none.lacks

def test_deepen_fills_older_five_minute_days(store):
    old = sessions(date(2025, 9, 2), TODAY)
    tape = Tape('deep', 'simulated', {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '5 mins'): made.bars(old, step=5).drop(minutes(date(2025, 10, 1))[::5])})
    r, asked = made.fetch(tape, store, days=len(DAYS), deepen=30)
    want = [d for d in old if d < DAYS[0]][-30:]
    assert r.deepened == [d for d in want if d != date(2025, 10, 1)] == store.five_days()
    assert {o.duration for o in asked if o.bar_size == '5 mins'} <= {'20 D', '10 D', '1 D'}
    pd.testing.assert_frame_equal(store.five_frame()[OHLCV], tape.bars['TRADES', '5 mins'].loc[str(want[0]):str(want[-1]), OHLCV], check_freq=False)
    r, asked = made.fetch(tape, store, days=len(DAYS), deepen=30)
    assert asked == [] and r.deepened == []
    assert made.good(made.fetch(tape, store, days=len(DAYS), deepen=35)).deepened == [d for d in old if d < DAYS[0]][-35:-30]

def test_timeout_halves_the_request(store):
    "The first TRADES request (after SCHEDULE) is never answered."
    r, asked = made.fetch(made.tape(), store, Faults(silent_history=(2,)), days=5, timeout_s=1.5, daily=False)
    assert [o.duration for o in made.trades(asked)] == ['5 D', '2 D', '3 D'] and r.fetched == DAYS[-5:]

def test_single_day_gets_one_more_chance_then_the_server_is_silent(store):
    r, asked = made.fetch(made.tape(), store, Faults(silent_history=(2,)), days=1, timeout_s=1.5, daily=False)
    assert r.fetched == [TODAY] and [o.duration for o in made.trades(asked)] == ['1 D', '2 D']
    e, _ = made.fetch(made.tape(), Store(store.root.parent/'b'), Faults(silent_history=tuple(range(2, 20))), days=1, timeout_s=.2)
    assert isinstance(e, TimedOut) and e.exit_code == 4 and e.todo

def test_pacing_violation_is_waited_out(store):
    says, clock = PACING, FixedClock(CLOSE)
    r, _ = made.fetch(made.tape(), store, Faults(history_errors={'3': says, '6': says}), link=dict(clock=clock), days=len(DAYS), daily=False)
    assert r.fetched == DAYS and clock.monotonic() >= 30
    e, _ = made.fetch(made.tape(), Store(store.root.parent/'b'), Faults(history_errors={str(i): says for i in range(5, 99)}), link=dict(clock=FixedClock(CLOSE)), days=len(DAYS))
    assert isinstance(e, Pacing) and Store(store.root.parent/'b').raw_days() == DAYS[-5:]

def test_schedule_that_disagrees_is_noted_and_an_unscheduled_closing_is_not_asked_for(store, monkeypatch):
    away = DAYS[-2]; tape = Tape('made', 'simulated', {('TRADES', '1 min'): made.bars([d for d in DAYS if d != away])})
    from spyresearch.tws.link import Link
    real = Link.schedule
    async def theirs(self, n, end):
        s = await real(self, n, end); o, c = s[DAYS[-4]]
        return {d: v for d, v in s.items() if d != away} | {DAYS[-4]: (o, c - pd.Timedelta(hours=3))}
    monkeypatch.setattr(Link, 'schedule', theirs)
    r, asked = made.fetch(tape, store, days=5)
    assert r.absent == [away] and away not in made.asked_days(asked) and any(str(away) in o and 'none in the schedule' in o for o in r.notes)
    assert any('TWS says 09:30 to 13:00, the exchange calendar 09:30 to 16:00' in o for o in r.notes)

def test_schedule_that_is_refused_is_noted_and_the_bars_decide(store):
    r, _ = made.fetch(made.tape(), store, Faults(history_errors={'1': [162, 'no schedule today']}), days=5)
    assert r.fetched == DAYS[-5:] and any('schedule could not be checked' in o for o in r.notes)

def test_schedule_in_a_zone_that_nobody_knows_is_noted_and_the_bars_decide(store, monkeypatch):
    from spyresearch.tws import archive
    monkeypatch.setattr(archive, 'ZONE', 'Mars Standard Time')
    r = made.good(made.fetch(made.tape(), store, days=5))
    assert r.fetched == DAYS[-5:] and any('schedule could not be checked' in o and 'Mars' in o for o in r.notes)

DAMAGE = dict(empty=lambda o: b'', truncated=lambda o: o[:9000], reordered=lambda o: b''.join(o.splitlines(True)[:2] + o.splitlines(True)[:1:-1]), doubled=lambda o: o*2,
              tampered=lambda o: o.replace(b'1003,', b'1009,', 1), spreadsheet=lambda o: b'\xef\xbb\xbf' + o.replace(b'\n', b'\r\n'))

@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_day_is_set_aside_and_only_it_is_fetched_again(store, kind):
    tape = made.tape(); made.good(made.fetch(tape, store, days=len(DAYS))); before = made.files(store.root)
    hurt = DAYS[0] if kind == 'tampered' else DAYS[7]; path = store.original.file(hurt); path.write_bytes(spoiled := DAMAGE[kind](path.read_bytes()))
    assert spoiled != before[f'original_data/{hurt}.csv']
    r, asked = made.fetch(tape, Store(store.root), days=len(DAYS))
    assert list(r.quarantined) == [f'original_data/{hurt}.csv'] and r.fetched == [hurt] and made.asked_days(asked) == {hurt}
    after = made.files(store.root)
    assert {k: v for k, v in after.items() if 'quarantine' not in k} == before and after[f'quarantine/{hurt}.csv'] == spoiled
    assert f'original_data/{hurt}.csv' in str(r) and r.quarantined[f'original_data/{hurt}.csv'] in str(r)

def test_damaged_daily_bars_are_set_aside_and_fetched_again(store):
    tape = Tape('years', 'simulated', {('TRADES', '1 min'): made.bars(DAYS), ('TRADES', '1 day'): made.daily(DAYS)})
    made.good(made.fetch(tape, store, days=3)); path = store.root/'original_data'/'daily.csv'; before = path.read_bytes()
    path.write_bytes(before.replace(b'\n', b'\r\n'))
    r = made.good(made.fetch(tape, store, days=3))
    assert list(r.quarantined) == ['original_data/daily.csv'] and path.read_bytes() == before

def test_another_source_is_refused_and_nothing_changes(store):
    made.good(made.fetch(made.tape(), store, days=3)); before = made.files(store.root)
    e, asked = made.fetch(made.tape(name='other'), Store(store.root), days=5)
    assert isinstance(e, DataError) and e.exit_code == 3 and 'simulated:made' in e.what and 'simulated:other' in e.what and asked == [] and made.files(store.root) == before

def test_second_run_on_one_folder_is_refused_before_it_asks(store):
    with Store(store.root, 'simulated:made').lock('spy history'):
        e, asked = made.fetch(made.tape(), store, days=3)
    assert f'process {os.getpid()} (spy history)' in str(e) and e.exit_code == 3 and asked == []

def test_socket_dropped_in_the_middle_keeps_what_was_complete(store):
    e, asked = made.fetch(made.tape(), store, Faults(drop_after=3), days=len(DAYS), daily=False)
    assert isinstance(e, Dropped) and e.exit_code == 4 and e.what and e.why and e.todo
    kept = Store(store.root).raw_days(); assert 0 < len(kept) < len(DAYS)
    before = made.files(store.root)
    r, asked = made.fetch(made.tape(), Store(store.root), days=len(DAYS), daily=False)
    assert r.kept == kept and made.asked_days(asked) == set(DAYS) - set(kept) and r.quarantined == {}
    assert all(made.files(store.root)[f'original_data/{d}.csv'] == before[f'original_data/{d}.csv'] for d in kept)

RUN = '''
import sys
from spyresearch.core import bar_progress
from spyresearch.store import Store
from spyresearch.tws.history import fetch
print(fetch('127.0.0.1', int(sys.argv[1]), Store(sys.argv[2]), days=19, progress=lambda done, total, what: print('at', done, flush=True)), flush=True)
'''

@pytest.mark.parametrize('moment', [0, 1, 2, 3])
def test_kill_9_in_the_middle_and_the_rerun_asks_only_for_the_rest(store, moment):
    "The child is killed as soon as it has reported so many spans, while others are on their way."
    tape = made.rich()
    async def go():
        async with ReplayServer(tape, faults=Faults(delay_s=.03)) as srv:
            async def child(): return await asyncio.create_subprocess_exec(sys.executable, '-c', RUN, str(srv.port), str(store.root), stdout=asyncio.subprocess.PIPE)
            p = await child()
            if moment:
                for _ in range(moment): await p.stdout.readline()
            else:
                while srv.asked < 3: await asyncio.sleep(.01)
            p.kill(); await p.communicate()
            left, seen = Store(store.root).raw_days(sealed=True), len(srv.requests)
            before = made.files(store.root)
            p = await child(); out, _ = await p.communicate()
            return p.returncode, out.decode(), left, before, [o.request for o in list(srv.requests)[seen:] if type(o.request).__name__ == 'Historical']
    code, out, left, before, asked = asyncio.run(go())
    assert code == 0 and len(left) >= (0, 5, 10, 15)[moment] and len(left) < 19
    assert made.asked_days(asked) == set(DAYS) - set(left)
    assert f'{len(left)} kept' in out and 'set aside' not in out
    assert all(made.files(store.root)[k] == v for k, v in before.items() if k.endswith('.csv'))
    same(Store(store.root), tape.bars['TRADES', '1 min'])

def test_blocking_twin_inside_a_running_loop(store):
    async def go():
        async with ReplayServer(made.tape()) as srv:
            inner = asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(_in_loop(srv.port, store)))
            return await inner
    async def _in_loop(port, store): return fetch('127.0.0.1', port, lambda provenance: store.claim(provenance), days=2)
    assert asyncio.run(go()).fetched == DAYS[-2:]

def test_progress_counts_sessions(store):
    seen = []
    made.good(made.fetch(made.tape(), store, days=12, progress=lambda *a: seen.append(a)))
    assert seen[-1][:2] == (12, 12) and [o[0] for o in seen] == sorted(o[0] for o in seen) and all(o[1] == 12 for o in seen)

def test_120_real_days_are_the_files_own_bars(shared, store):
    tape = tape_from_files([shared('spy_1min.parquet')], daily=shared('spy_daily.parquet'), dividends=shared('spy_dividends.csv'))
    opts = dict(days=120, server=dict(asof=parse_asof('2026-03-31')))
    r = made.good(made.fetch(tape, store, **opts)); before = made.files(store.root)
    assert len(r.fetched) == 120 and r.absent == [] and r.provenance == 'replay:spy_1min'
    df = store.raw_frame(); same(store, tape.bars['TRADES', '1 min'].loc[df.index[0]:df.index[-1]], OHLCV)
    assert {len(g) for _, g in df.groupby(df.index.date)} == {390, 210}
    paid = store.daily_bars()['dividend'].iloc[-80:]
    assert paid[paid > 0].round(3).to_dict() == {session(date(2025, 12, 19)).open: 1.993, session(date(2026, 3, 20)).open: 1.797}
    again, asked = made.fetch(tape, store, **opts)
    assert again.fetched == [] and asked == [] and made.files(store.root) == before

def test_other_files_of_the_same_name_are_refused_and_nothing_is_mixed(tmp_path, store):
    "Two files called spy.parquet with other prices make two tapes of one name."
    tapes = []
    for at in (500., 600.):
        folder = tmp_path/f'{at:.0f}'; folder.mkdir(); made.bars(DAYS, at).to_parquet(folder/'spy.parquet')
        tapes.append((tape_from_files([folder/'spy.parquet']), file_hash(folder/'spy.parquet')))
    (one, first), (two, second) = tapes; assert one.account == two.account and first != second
    made.good(made.fetch(one, store, days=3, tape=first)); before = made.files(store.root)
    e, asked = made.fetch(two, Store(store.root), days=6, tape=second)
    assert isinstance(e, DataError) and e.exit_code == 3 and 'another version' in e.what and '--data' in e.todo and asked == [] and made.files(store.root) == before
    made.good(made.fetch(one, Store(store.root), days=6, tape=first)); same(Store(store.root), made.bars(DAYS).loc[str(DAYS[-6]):])
