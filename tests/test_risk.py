"""Risk, the owner's word and the two languages: what must hold for any numbers, and every wrong word with its status."""
import json
import re
from string import Formatter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.core import ET, UsageError
from spyresearch.sessions import session, sessions
from spyresearch.trade import record as record_module, swing
from spyresearch.trade.costs import Costs
from spyresearch.trade.risk import LIMITS, WINDOWS, Account, account_blocks, account_of, counted, desk_blocks, event_near, size_frac, units
from spyresearch.trade.tickets import COLUMNS, Line, Outcome, REASONS, Silence, WORDS, issue, row, sentence, told
from spyresearch.trade.track import book, closed, followed, keep_outcomes, owned, owner_words, scores, took

DAYS = sessions(pd.Timestamp('2026-03-02').date(), pd.Timestamp('2026-03-31').date())
odds = dict(p=st.floats(0, 1), win=st.floats(1e-4, .5), loss=st.floats(1e-4, .5), tail=st.floats(1e-4, .9))


@given(**odds)
@settings(max_examples=200, deadline=None)
def test_size_is_a_share_that_its_tail_can_afford(p, win, loss, tail):
    s = size_frac(p, win, loss, tail)
    assert 0 <= s <= 1 and s*tail <= LIMITS.tail + 1e-12
    assert (s == 0) == (p*win - (1 - p)*loss <= 1e-15) or s < 1e-9
    assert s <= max(p/loss - (1 - p)/win, 0)/4 + 1e-12
    assert size_frac(min(p + .05, 1), win, loss, tail) >= s >= size_frac(p, win, loss, tail*1.5)


@given(st.floats(0, 1), st.floats(1, 1e7), st.floats(1, 2000), st.sampled_from([1, 100]))
@settings(max_examples=100, deadline=None)
def test_units_never_cost_more_than_their_share(frac, equity, px, each):
    n = units(frac, equity, px, each)
    assert n >= 0 and n*px*each <= frac*equity + 1e-5*px*each and (n + 1)*px*each > frac*equity - 1e-6*equity


@pytest.mark.parametrize('equity', [0, -1, float('nan'), float('inf')])
def test_an_equity_that_is_none_is_refused(equity):
    with pytest.raises(UsageError): units(.1, equity, 600.)


def ticket(day=DAYS[5], kind='swing', **other):
    at = session(day).close; open_ = session(next(d for d in DAYS if d > day)).open
    return issue(**dict(kind=kind, side='buy' if kind == 'swing' else 'call', provenance='simulated:test', issued_at=at, valid_from=open_, valid_until=open_ + pd.Timedelta(minutes=60), model='m, direction 1d of 2026-01-02', declared_p=.55, p_calibrated=.6, p_lower=.55,
                        breakeven_p=.5, ev_low_usd=3., n_bucket=80, hit_bucket=.6, size_frac=.2, max_loss_usd=900., entry_from=open_, entry_until=open_ + pd.Timedelta(minutes=60), entry_px_low=590., entry_px_high=610.,
                        exit_from=open_ + pd.Timedelta(days=1), exit_until=open_ + pd.Timedelta(days=1, minutes=30), target_px=620., stop_px=580.) | other)


position = st.tuples(st.integers(0, 12), st.sampled_from(['filled', 'stopped', 'target', 'expired']), st.floats(-.2, .2), st.booleans(), st.sampled_from(['swing', 'option']))

def held(i, status, net, taken, kind):
    "One position: issued on day i, ended on day i + 2."
    t = SimpleNamespace(kind=kind, size_frac=.2, valid_until=session(DAYS[i + 1]).open + pd.Timedelta(minutes=60))
    return t, Outcome(status, exit_at=session(DAYS[i + 2]).open if status in ('stopped', 'target') else None, net_ret=net, taken=taken)


@given(st.lists(position, max_size=6), st.integers(2, 15), st.sampled_from(['swing', 'option']))
@settings(max_examples=200, deadline=None)
def test_what_the_desk_forbids_depends_on_the_past_alone(ps, d, kind):
    "In the closed list's words; the same in any order; what ends later changes nothing but that it stands."
    now, done = session(DAYS[d]).close, [held(*p) for p in ps]
    said = desk_blocks(done, now, kind)
    assert set(said) <= {'position already open', 'cooldown', 'loss limit reached'} and said == desk_blocks(done[::-1], now, kind)
    unsold = [(t, o if o.exit_at is None or o.exit_at <= now else Outcome('filled', taken=o.taken)) for t, o in done]
    assert said == desk_blocks(unsold, now, kind)
    mine = [(t, o) for t, o in done if t.kind == kind]
    assert ('position already open' in said) == any(o.exit_at is None and o.status != 'expired' or o.status == 'expired' and t.valid_until > now or o.exit_at is not None and o.exit_at > now for t, o in counted(done, kind, now))
    assert all(o.taken or t.valid_until > now for t, o in counted(done, kind, now)) or not any(o.taken for _, o in mine)


@given(st.floats(0, .3))
@settings(max_examples=50, deadline=None)
def test_the_loss_limit_is_the_limit(loss):
    now = session(DAYS[6]).close
    o = Outcome('timed_out', exit_at=session(DAYS[6]).open, net_ret=-loss)
    said = desk_blocks([(SimpleNamespace(kind='option', size_frac=.2, valid_until=now), o)], now, 'swing')
    assert ('loss limit reached' in said) == (.2*loss >= LIMITS.loss)


@pytest.mark.parametrize('day', DAYS)
def test_every_minute_of_a_day_against_the_calendar(day):
    "An FOMC statement, CPI or NFP inside its window, and nothing else."
    from spyresearch import events
    ats = [(o.at, *WINDOWS[o.kind]) for o in events.releases() if o.day == day and o.kind in WINDOWS]
    for m in range(0, 390, 15):
        a = session(day).open + pd.Timedelta(minutes=m); b = a + pd.Timedelta(minutes=30)
        assert event_near(a, b) is any(a < pd.Timestamp(at) + pd.Timedelta(minutes=after) and b >= pd.Timestamp(at) - pd.Timedelta(minutes=before) for at, before, after in ats)


@pytest.mark.filterwarnings('ignore')
def test_beyond_the_table_nothing_is_known():
    at = pd.Timestamp('2027-03-16 10:00', tz=ET)
    assert event_near(at, at + pd.Timedelta(minutes=60)) is None


@pytest.mark.parametrize('left, kind, said', [('0', 'option', ('no option permission',)), ('0', 'swing', ()), ('-1', 'option', ()), ('', 'option', ()), ('3', 'option', ())])
def test_the_account_says_what_it_may(left, kind, said):
    assert account_blocks(account_of([SimpleNamespace(tag='DayTradesRemaining', value=left)]), kind) == said
    assert account_blocks(Account(), kind) == ()


def test_live_quotes_are_read_from_the_journal_of_the_feed():
    "What a stream was granted stays granted through an outage, and a refusal stays one."
    line = lambda what, state: dict(what=what, state=state)
    a = account_of(states=[line('level1', 'up'), line('level1', 'lost'), line('options', 'unavailable'), line('options', 'live'), line('options', 'down')])
    assert (a.live_quotes, a.option_quotes) == (True, True)
    assert account_blocks(account_of(states=[line('level1', 'up'), line('level1', 'delayed')]), 'swing') == ('delayed data',)


# --- the owner's word

words = st.lists(st.tuples(st.sampled_from(['took', 'closed']), st.floats(allow_nan=True, allow_infinity=True), st.integers(-3, 50), st.integers(-600, 4000)), max_size=6)

@given(words)
@settings(max_examples=60, deadline=None)
def test_no_word_can_leave_a_record_that_contradicts_itself(tmp_path_factory, ws):
    "Whatever is said in whatever order: at most one purchase, then at most one sale, at real prices, in time."
    t, folder = ticket(), tmp_path_factory.mktemp('w')
    book(folder).append(row(t))
    for what, px, qty, m in ws:
        at = t.valid_from + pd.Timedelta(minutes=m)
        try: took(folder, t.id, px, qty, at) if what == 'took' else closed(folder, t.id, px, at)
        except UsageError as e: assert e.exit_code == 2 and e.what
    said = owner_words(folder).get(t.id, {})
    lines = (folder/'owner.jsonl').read_text().splitlines() if said else []
    assert len(lines) == len(said) and ('closed' not in said or said['took']['at'] <= said['closed']['at'])
    assert all(300 < o['px'] < 1220 and o['qty'] >= 1 for o in map(json.loads, lines)) and ('took' not in said or t.issued_at <= said['took']['at'] <= t.valid_until)


@given(st.floats(400, 900), st.floats(400, 900), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_a_taken_ticket_earns_what_the_owner_paid_and_got(px, out, qty):
    t, c = ticket(), Costs()
    at = t.valid_from; said = {'took': dict(at=at, px=px, qty=qty), 'closed': dict(at=at + pd.Timedelta(days=1), px=out, qty=qty)}
    o = owned(t, said, c, {})
    fees = sum(Costs(slippage_px=0.).shares_usd(qty, p, s, w['at'].date()) for p, s, w in ((px, 'buy', said['took']), (out, 'sell', said['closed'])))
    assert o.net_usd == pytest.approx(qty*(out - px) - fees) and o.net_ret == pytest.approx(o.net_usd/(qty*px)) and o.taken
    assert o.status == ('target' if out >= 620 else 'stopped' if out <= 580 else 'timed_out')
    assert owned(t, said, c, {said['closed']['at'].date(): 1.5}).gross_usd == pytest.approx(o.gross_usd + 1.5*qty)


def test_the_taken_are_followed_at_his_prices_the_others_on_paper(tmp_path):
    a, b = ticket(DAYS[3]), ticket(DAYS[8])
    for t in (a, b): book(tmp_path).append(row(t))
    took(tmp_path, a.id, 600., 7, a.valid_from); closed(tmp_path, a.id, 612., a.exit_from)
    (_, x), (_, y) = followed(tmp_path, b.exit_until)
    assert (x.taken, x.qty, x.status) == (True, 7, 'timed_out') and (y.taken, y.status) == (False, 'timed_out') and np.isnan(y.net_usd)
    s = scores([(a, x), (b, y)])
    assert s['swing', '1d']['n'] == 1 and not s['swing', '1d']['proven']


# --- two languages

def slots(o): return {f for _, f, *_ in Formatter().parse(o) if f}
def specs(o): return sorted((f, s) for _, f, s, _ in Formatter().parse(o) if f)
def numbers(s): return sorted(re.findall(r'\d+(?:[.,:]\d+)*', s))


@pytest.mark.parametrize('key', list(WORDS['en']))
def test_every_wording_is_there_in_both_languages_with_the_same_fields(key):
    en, zh = WORDS['en'][key], WORDS['zh'][key]
    assert type(en) is type(zh)
    if isinstance(en, dict): assert en.keys() == zh.keys() and all(zh.values()) and (key == 'stamps' or all(re.search('[\u4e00-\u9fff]', o) for o in zh.values()))
    elif isinstance(en, tuple): assert len(en) == len(zh) == 7
    else:
        assert specs(en) == specs(zh), f'{key}: {slots(en) ^ slots(zh)}'
        assert key in ('join', 'comma', 'when', 'meant') or re.search('[\u4e00-\u9fff]', zh) and not re.search('[\u4e00-\u9fff]', en)
        assert numbers(re.sub(r'\{[^}]*\}', '', en)) == numbers(re.sub(r'\{[^}]*\}', '', zh))
    assert set(WORDS['zh']['reasons']) == set(REASONS) == set(WORDS['en']['reasons'])


@given(st.sets(st.sampled_from(REASONS), min_size=1), st.sampled_from(['swing', 'option']))
@settings(max_examples=40, deadline=None)
def test_a_silence_says_the_same_in_both(reasons, kind):
    s = Silence(session(DAYS[3]).close, kind, 'tws', tuple(reasons))
    assert numbers(sentence(s)) == numbers(sentence(s, 'zh')) and sentence(s, 'zh').count('、') == len(reasons) - 1


def test_a_ticket_says_the_same_numbers_times_and_contracts_in_both():
    option = ticket(kind='option', right='C', expiry='2026-03-10', strike=605., trigger_px=603.5, trigger_until=session(DAYS[6]).open + pd.Timedelta(minutes=50), entry_limit_usd=1.51, exit_spy_px=606., take_profit_usd=2.4, stop_spy_px=602., stop_loss_usd=1.,
                    time_stop=session(DAYS[6]).open + pd.Timedelta(minutes=80))
    for t in (ticket(), option):
        for more in ({}, dict(record=dict(n=9, hits=4, days=7, low=.1, high=.8, proven=False)), dict(record=dict(n=90, hits=60, days=70, low=.55, high=.8, proven=True), nights=2, gap_usd=512.3, last_ex='2026-03-20', notes=('event calendar not known',), equity=50_000., qty=16)):
            en, zh = sentence(t, 'en', more), sentence(t, 'zh', more)
            assert numbers(en) == numbers(zh) and len(numbers(en)) > 8
    assert 'SPY 2026-03-10 605 C' in en and 'SPY 2026-03-10 605 C' in zh and '看涨期权' in zh


@pytest.mark.parametrize('state', ['armed', 'limit', 'waiting', 'buy', 'above', 'below', 'missed', 'hold', 'shut', 'sell: target', 'sell: stopped', 'sell: timed_out', 'unknown'])
def test_every_state_has_words(state):
    now = session(DAYS[6]).open; en, zh = (swing.state_words(ticket(trigger_px=600., entry_limit_usd=1.5), state, now, 601.25, o) for o in ('en', 'zh'))
    assert en and zh and numbers(en) == numbers(zh)


@given(st.floats(500, 700), st.integers(-120, 3000), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_state_never_says_buy_outside_window_and_range(px, m, filled):
    t = ticket(); now = t.entry_from + pd.Timedelta(minutes=m)
    s = swing.state_of(t, now, px, now, filled)
    assert (s == 'buy') == (not filled and t.entry_from <= now < t.entry_until and t.entry_px_low <= px <= t.entry_px_high)
    assert swing.state_of(t, now, px, now - pd.Timedelta(minutes=3), filled) in ('unknown', 'waiting', 'missed', 'shut', 'sell: timed_out')


def test_notes_that_are_said_have_words():
    "Every note that the modules of this floor can give."
    from spyresearch.trade import intraday, signals, tickets
    given_ = {v for m in (swing, signals, intraday, tickets, record_module) for k, v in vars(m).items() if k in ('UNKNOWN_EVENTS', 'LATE', 'UNKNOWN_ACCOUNT')}
    assert given_ and given_ <= set(WORDS['zh']['notes']) == set(WORDS['en']['notes'])
    assert told(WORDS['zh'], 'note', note=None) == '' and set(COLUMNS) >= {'id', 'kind'}


def test_an_option_on_record_is_followed_at_recorded_quotes_and_scored_once(tmp_path):
    "Bought at the ask after the trigger, sold at the bid after the exit price; without a chain there is no score; later runs need neither."
    day = DAYS[5]; at = lambda m, s=0: session(day).open + pd.Timedelta(minutes=m, seconds=s)
    t = ticket(kind='option', issued_at=at(1), valid_from=at(1), valid_until=at(6), right='C', expiry=str(day), strike=600., con_id=7, trigger_px=601., trigger_until=at(6), entry_limit_usd=1.3, exit_spy_px=602., stop_spy_px=598., take_profit_usd=2., stop_loss_usd=.6, time_stop=at(30))
    book(tmp_path).append(row(t))
    px = np.array([600., 600., 600., 601.2, 601.5, 602.4, 602.4, *[602.]*30]); m = np.array([at(i).tz_convert('UTC').as_unit('ns').value for i in range(len(px))])
    bars = Line(m, px, px, px, px)
    quotes = pd.DataFrame(dict(con_id=7, bid=[1.18]*4 + [1.85], ask=[1.2]*4 + [1.88], age=.1), index=pd.DatetimeIndex([*(at(i, 30) for i in (1, 2, 3)), at(4, 3), at(6, 3)], name='Datetime'))
    (_, o), = pairs = followed(tmp_path, at(36), bars, chain=lambda d: quotes if d == day else None)
    fees = Costs().options_usd(1, 1.2, 'buy', day) + Costs().options_usd(1, 1.85, 'sell', day)
    assert (o.status, o.entry_px, o.exit_px) == ('target', 1.2, 1.85) and o.net_usd == pytest.approx(65 - fees)
    (_, blind), = followed(tmp_path, at(36), bars)
    assert blind.status == 'timed_out' and np.isnan(blind.net_usd)
    keep_outcomes(tmp_path, followed(tmp_path, at(36), bars)); assert not (tmp_path/'outcomes.jsonl').exists() # no score, nothing kept
    keep_outcomes(tmp_path, pairs); keep_outcomes(tmp_path, pairs)
    (_, later), = followed(tmp_path, at(36) + pd.Timedelta(days=90))
    assert later.net_usd == o.net_usd and later.changes[-1][0] == 'target' and scores([(t, later)])['option', '1d']['hits'] == 1


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_rate_of_a_bucket_counts_days(wins, a_day):
    "Copies of a day's outcome add nothing; the bounds hold the rate; nothing is proven with fewer days than the gate asks for."
    days = sessions(pd.Timestamp('2025-01-02').date(), pd.Timestamp('2025-12-31').date())
    pairs = lambda n: [(SimpleNamespace(kind='swing', provenance='tws', model='m, direction 1d of x', issued_at=session(days[i]).close, declared_p=.6, breakeven_p=.5), Outcome('target', net_usd=1. if w else -1., net_ret=.01 if w else -.01)) for i, w in enumerate(wins) for _ in range(n)]
    one, many = (scores(pairs(n))['swing', '1d'] for n in (1, a_day))
    assert {k: one[k] for k in ('days', 'rate', 'low', 'high', 'proven')} == {k: many[k] for k in ('days', 'rate', 'low', 'high', 'proven')} and many['n'] == a_day*len(wins)
    assert one['low'] <= one['rate'] <= one['high'] and not (one['proven'] and (one['days'] < 30 or one['low'] < .51))


@pytest.mark.parametrize('back, net, reached', [(0, -.08, True), (0, -.07, False), (4, -.08, True), (5, -.08, False)])
def test_the_words_for_the_loss_limit_are_what_it_does(back, net, reached):
    "A loss counts on its day and for the four sessions after it; a gain within them is set against it, but not against a day's own loss."
    from spyresearch.verdict import PLAIN
    now = session(DAYS[9]).close; gone = lambda k, x: (SimpleNamespace(kind='swing', size_frac=.2, valid_until=now), Outcome('timed_out', exit_at=session(DAYS[9 - k]).open, net_ret=x))
    assert ('loss limit reached' in desk_blocks([gone(back, net)], now, 'option')) == reached
    if reached: assert ('loss limit reached' in desk_blocks([gone(back, net), gone(2, .3)], now, 'option')) == (back == 0)
    assert f'last {LIMITS.span} sessions together' in PLAIN['loss limit reached'] and f'{LIMITS.loss:.1%}' in PLAIN['loss limit reached'] and 'today' in PLAIN['loss limit reached']
    assert (WORDS['en']['reasons']['loss limit reached'], WORDS['zh']['reasons']['loss limit reached']) == ('loss limit reached', '已达亏损上限')
