"""Every kind of bad input of the options' floor, one by one: refused by name, and said in a word of the closed list; or, where a position is held, told to leave."""
import math
from datetime import date
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spyresearch.core import ET, UsageError
from spyresearch.models.confidence import Gate
from spyresearch.sessions import session
from spyresearch.trade import intraday, offers
from spyresearch.trade.follow import follow, quotes_of
from spyresearch.trade.quotes import check_quotes
from spyresearch.trade.record import option_state
from spyresearch.trade.signals import unoffered
from spyresearch.trade.swing import Odds, View
from spyresearch.trade.tickets import Line, REASONS, Silence
from test_offers import walk
from test_options import CHAIN, FLAT, NOON, at, made

UNIT = 1.6*.15*math.sqrt(60/(60*24*365)*4) # wider than what the chain charges for


def looked(rows, now=NOON, px=600.1, halted=False, minutes=76):
    return offers.look(now, px, rows.assign(con_id=np.arange(len(rows))), FLAT, walk(px, UNIT/60**.5, minutes, 800, 1), UNIT, halted=halted)


def why(x): return unoffered(SimpleNamespace(look=x)) # as the walk says it


def deep(rows, below): "Quotes as they are, but asks of calls deep inside under what exercise would bring."; return rows.assign(ask=np.where((rows.right == 'C') & (rows.strike < 597), 600.1 - rows.strike - below, rows.ask), bid=np.where((rows.right == 'C') & (rows.strike < 597), 600.1 - rows.strike - below - .02, rows.bid))


BAD = {'crossed': (lambda r: r.assign(bid=r.ask + .05), 'crossed', 'no option quotes'), 'zero ask': (lambda r: r.assign(ask=0.), 'no ask', 'no option quotes'), 'no quote': (lambda r: r.assign(bid=np.nan, ask=np.nan), 'no bid', 'no option quotes'),
       'no bid': (lambda r: r.assign(bid=0.), 'no bid', 'no option quotes'), 'stale': (lambda r: r.assign(age=90.), 'stale', 'feed stale'), 'delayed': (lambda r: r.assign(data_type=3.), 'not live', 'delayed data'),
       'strikes jump': (lambda r: r[r.strike.isin([590., 591, 592, 593, 600, 607, 608, 609, 610])], 'strikes jump', 'no option quotes'), 'one strike': (lambda r: r[r.strike == 600.], 'no forward', 'no option quotes'),
       'too wide': (lambda r: r.assign(bid=np.maximum(r.bid - .4, .01), ask=r.ask + .4), 'spread too wide', 'spread too wide')}


@pytest.mark.parametrize('name', list(BAD))
def test_what_is_wrong_with_every_quote_is_named_and_nothing_is_offered(name):
    spoil, fault, word = BAD[name]; x = looked(spoil(CHAIN.reset_index(drop=True)))
    assert not x.finds and x.faults.get(fault, 0) > 0 and why(x) == (word,) and word in REASONS, x.faults


def test_the_same_chain_without_a_fault_is_offered(): assert looked(CHAIN).finds


def test_negative_time_value_is_named_and_the_rest_stands():
    r = check_quotes(deep(CHAIN, .3), NOON); assert set(r.reason[(CHAIN.right == 'C').to_numpy() & (CHAIN.strike < 597).to_numpy()]) <= {'negative time value', 'parity', 'no volatility', 'no bid'} and r['negative time value'].any() and (r.reason == '').any()
    x = looked(deep(CHAIN, .3)); assert x.faults['negative time value'] > 0 and not any(c.right == 'C' and c.strike < 597 for c in x.contracts.itertuples())


def test_a_volatility_that_cannot_be_solved_is_named():
    "A premium at what exercise brings, to the cent: no volatility gives it."
    rows = CHAIN.reset_index(drop=True); i = rows.index[(rows.right == 'P') & (rows.strike == 603.) & (rows.expiry == '2026-03-31')][0]; inside = 603 - 600.1
    rows.loc[i, ['bid', 'ask']] = inside - .015, inside - .005
    r = check_quotes(rows, NOON); assert r['no volatility'][i] and r.reason[i] != '' and (r.reason == '').sum() > 50


@pytest.mark.parametrize('by', [-.005, .005])
def test_spot_and_chain_out_of_step(by):
    x = looked(CHAIN, px=600.1*math.exp(by)); assert not x.finds and x.faults['out of step'] > 50 and why(x) == ('no option quotes',)


def test_a_halt(): x = looked(CHAIN, halted=True); assert not x.finds and x.faults['halted'] > 50 and why(x) == ('halted',)


def test_an_expiry_of_today_after_the_close():
    late = at('2026-03-31T16:05'); r = check_quotes(CHAIN, late); assert set(r.reason[CHAIN.expiry.eq('2026-03-31').to_numpy()]) <= {'after the close', 'no bid'} and r['after the close'].any()
    with pytest.raises(UsageError): offers.time_left(late, date(2026, 3, 31))
    assert not offers.look(late, 600.1, CHAIN.assign(con_id=1), FLAT, walk(600.1, .0002, 20, 200, 1), UNIT).finds


HALF = session(date(2025, 11, 28)) # ends at 13:00


def test_a_half_day_ends_everything_three_hours_earlier():
    assert HALF.half and not intraday.too_late(HALF.close - pd.Timedelta(minutes=46)) and intraday.too_late(HALF.close - pd.Timedelta(minutes=45))
    assert f'{intraday.time_stop(HALF.open + pd.Timedelta(hours=3), 120):%H:%M}' == '12:45' and offers.room((HALF.close - pd.Timedelta(minutes=30)).to_pydatetime()) == 15
    x = SimpleNamespace(at=pd.Timestamp(HALF.close - pd.Timedelta(minutes=40)), faults={}); assert unoffered(SimpleNamespace(look=x)) == ('exercise window',)


def idea(when): return intraday.Idea(pd.Timestamp(when).tz_convert(ET), 'option', 'call', View(.7, .9, .7), Odds(1., 1., 2., 1., .4, .4, .2, 100), 1.)


@pytest.mark.parametrize('change, word', [(dict(bid=0.), 'no option quotes'), (dict(bid=1.6), 'no option quotes'), (dict(age_s=2.), 'feed stale'), (dict(age_s=math.nan), 'feed stale'), (dict(bid=1.3), 'spread too wide'), (dict(ev_usd=-1.), 'below break-even'), (dict(ev_usd=math.nan), 'below break-even')])
def test_an_offer_that_went_bad_before_it_was_said_is_refused(change, word):
    good = dict(bid=1.5, ask=1.52, age_s=.4, ev_usd=6., error_usd=2., win_usd=60., loss_usd=50.); o = SimpleNamespace(**good | change, breakeven=.45); s = intraday.decide(idea(NOON), Gate(), o, 'simulated:test', 'm', True)
    assert isinstance(s, Silence) and word in s.reasons and word not in intraday.decide(idea(NOON), Gate(), SimpleNamespace(**good, breakeven=.45), 'simulated:test', 'm', True).reasons


def test_without_permission_there_is_no_ticket(): assert 'no option permission' in intraday.decide(idea(NOON), Gate(), None, 'tws', 'm', False).reasons


def held(day=date(2026, 3, 31), stop='15:45'):
    s = session(day); end = pd.Timestamp(f'{day} {stop}', tz=ET)
    return SimpleNamespace(kind='option', right='C', expiry=str(day), issued_at=s.close - pd.Timedelta(minutes=90), valid_from=s.close - pd.Timedelta(minutes=90), trigger_px=None, trigger_until=s.close - pd.Timedelta(minutes=75), entry_limit_usd=2., exit_spy_px=700., stop_spy_px=500., time_stop=end, con_id=1)


@pytest.mark.parametrize('day, stop', [(date(2026, 3, 31), '15:45'), (date(2025, 11, 28), '12:45')])
def test_a_position_with_exercise_risk_is_told_to_leave_before_the_close(day, stop):
    "From the time stop on, at any price or at none, also after the close; and on paper it is sold at the first quote after it."
    t, s = held(day, stop), session(day); now = lambda m: s.close - pd.Timedelta(minutes=m)
    assert option_state(t, now(16), 600., now(16), True) == 'hold' and t.time_stop == now(15)
    for m in (15, 5, 0, -10, -600):
        for px in ((600., now(m)), (None, None), (600., now(m) - pd.Timedelta(hours=1))): assert option_state(t, now(m), *px, True) == 'sell: timed_out'
    k = np.array([(t.valid_from + pd.Timedelta(minutes=i)).value for i in range(90)]); l = Line(k, *(np.full(90, 600.),)*4)
    q = pd.DataFrame(dict(con_id=1, bid=1.4, ask=1.42, age=.2), index=pd.DatetimeIndex([t.valid_from + pd.Timedelta(seconds=30*i) for i in range(180)], name='Datetime')); o = follow(t, l, quotes_of(q, 1))
    assert o.status == 'timed_out' and o.exit_at == t.time_stop < s.close and math.isfinite(o.net_usd)
    gone = follow(t, l, quotes_of(q[q.index < t.time_stop], 1)); assert gone.status == 'withdrawn' and gone.why.startswith('exercise window') and gone.since == s.close and math.isnan(gone.net_usd) # no quote to sell on: no gain is claimed
    later = follow(SimpleNamespace(**vars(t) | dict(time_stop=s.close - pd.Timedelta(minutes=2))), l, quotes_of(q, 1)); assert later.status == 'timed_out' and later.exit_at == t.time_stop # a time stop too near the close is brought forward


def test_old_and_crossed_quotes_fill_nothing():
    t = held(); k = np.array([(t.valid_from + pd.Timedelta(minutes=i)).value for i in range(90)]); l = Line(k, *(np.full(90, 600.),)*4)
    ix = pd.DatetimeIndex([t.valid_from + pd.Timedelta(seconds=30*i) for i in range(180)], name='Datetime')
    for bad, word in ((dict(bid=1.5, ask=1.4), 'no option quotes'), (dict(bid=0., ask=1.4), 'no option quotes'), (dict(bid=1.4, ask=math.inf), 'no option quotes'), (dict(bid=1.4, ask=1.42, age=6.), 'feed stale')):
        o = follow(t, l, quotes_of(pd.DataFrame(dict(con_id=1, age=.2) | bad, index=ix), 1)); assert o.status == 'withdrawn' and o.why == word and o.entry_at is None


def test_made_is_what_the_options_tests_made(): assert len(made()) == len(CHAIN)
