"""A ticket that waits is withdrawn, with the reason, by one function: on paper, in the journal, on the screen, in alerts, in both languages."""
import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spyresearch import report, verdict
from spyresearch.bars import RAW_COLUMNS
from spyresearch.core import ET
from spyresearch.live import engine
from spyresearch.live.alerts import Alerts
from spyresearch.live.today import Today
from spyresearch.live.view import cards
from spyresearch.live.words import hushed
from spyresearch.sessions import MINUTES, session
from spyresearch.store import Store
from spyresearch.trade import desk
from spyresearch.trade.backtest import _settled, ticket_legs
from spyresearch.trade.follow import follow, mute_of, note_unheard, quotes_of
from spyresearch.trade.record import latest, record, screen
from spyresearch.trade.risk import over
from spyresearch.trade.tickets import REASONS, Line, Silence, WORDS, issue, row, settle, ticket_frame
from spyresearch.trade.costs import Costs
from spyresearch.trade.track import book, followed

DAY, HALF = pd.Timestamp('2026-03-31').date(), pd.Timestamp('2025-11-28').date()


def at(hm, day=DAY): return pd.Timestamp(f'{day} {hm}', tz=ET)


def ticket(day=DAY, begin='10:00', until='10:15', **other):
    a = at(begin, day)
    return issue(**dict(kind='option', side='call', provenance='simulated:demo', issued_at=a, valid_from=a, valid_until=at(until, day), model='har, direction option of x', declared_p=.6, p_calibrated=.6, p_lower=.6, breakeven_p=.5, ev_low_usd=3., ev_usd=3., size_frac=.01, max_loss_usd=130.,
        right='C', expiry=str(day), strike=600., con_id=7, trigger_px=609., trigger_until=at(until, day), entry_limit_usd=1.3, exit_spy_px=612., stop_spy_px=605., time_stop=at('15:45' if day == DAY else '12:45', day), quote_bid=1.2, quote_ask=1.22, delta=.5, take_profit_usd=2., stop_loss_usd=.8) | other)


def bars(day=DAY, begin='09:30', end='10:40', silent=None):
    m = pd.date_range(at(begin, day), at(end, day), freq='min', inclusive='left')
    if silent: m = m[(m < at(silent[0], day)) | (m >= at(silent[1], day))]
    px = np.full(len(m), 600.); return Line(m.tz_convert('UTC').as_unit('ns').asi8, px, px, px, px)


def chain(day=DAY, begin='09:59', end='10:40', bad=None, since='10:05', **cells):
    "Quotes every five seconds; what is wrong with them from a moment on."
    ix = pd.date_range(at(begin, day), at(end, day), freq='5s', inclusive='left', name='Datetime'); q = pd.DataFrame(dict(con_id=7, bid=1.2, ask=1.22, age=.3, data_type=1.), index=ix)
    for k, v in (bad or {}).items(): q.loc[q.index >= at(since, day), k] = v
    return q


GONE = {'crossed': (dict(bad=dict(bid=1.3)), {}, 'no option quotes'), 'no bid': (dict(bad=dict(bid=0.)), {}, 'no option quotes'), 'no ask': (dict(bad=dict(ask=np.nan)), {}, 'no option quotes'), 'stale': (dict(bad=dict(age=30.)), {}, 'feed stale'),
        'delayed': (dict(bad=dict(data_type=3.)), {}, 'delayed data'), 'wide': (dict(bad=dict(bid=1.1, ask=1.32)), {}, 'spread too wide'), 'dearer than the bound': (dict(bad=dict(bid=1.19, ask=1.225)), dict(ev_low_usd=1.), 'below break-even'),
        'another contract only': (dict(bad=dict(con_id=8)), {}, 'no option quotes'), 'record ends': (dict(end='10:05'), {}, 'no option quotes')}


@pytest.mark.parametrize('name', list(GONE))
def test_a_quote_that_goes_bad_withdraws_what_waits_for_it(name, tmp_path):
    "A whole minute without a good quote; the same moment and reason when the record goes on, and nothing else is ever said of it."
    how, more, why = GONE[name]; t, q = ticket(**more), chain(**how)
    for end in ('10:06', '10:07', '10:40'):
        o = follow(t, bars(end=end), quotes_of(q[q.index < at(end)], 7)); assert (o.status, o.why, o.since) == ('withdrawn', why, at('10:06')) and why in REASONS
    assert follow(t, bars(end='10:05'), quotes_of(q[q.index < at('10:05')], 7)).status == 'armed' and over(t, o) == at('10:06')
    assert follow(t, bars(), quotes_of(chain(), 7)).status == 'expired'
    told(tmp_path, t, why, bars(end='10:06'), lambda day: q, '10:06')


def told(folder, t, why, panel, chain_of, hm):
    "The journal, the screen, the cards, the alerts."
    book(folder).append(row(t)); heard = []; alerts = [Alerts(dict(list=heard.append), lang) for lang in ('en', 'zh')]
    new = dict(row(t), says='ticket', more={}, new=True)
    record(folder, SimpleNamespace(current=[Silence(at(hm), t.kind, t.provenance, (why,))], grounds={}), at(hm), panel, Costs(), chain_of, at(hm))
    (kept,), said = [json.loads(o) for o in (folder/'outcomes.jsonl').read_text().splitlines()], latest(folder); word = said['words'][0]
    assert kept['changes'][-1][::2] == ['withdrawn', why] and word['status'] == 'withdrawn' and word['withdrawn']['reason'] == why and [o['says'] for o in said['words']] == ['ticket', 'silence']
    for lang, a in zip(('en', 'zh'), alerts):
        begins = WORDS[lang]['gone'].format(why=WORDS[lang]['reasons'][why])
        shown = screen(folder, at(hm), 600., at(hm), lang); assert shown[1].startswith(begins) and len(shown) == 3
        card, quiet = cards(said, at(hm), 600., at(hm), lang); assert (card.badge, card.now, card.levels, quiet.says) == ('withdrawn', begins, {}, 'silence')
        for words in ([new], said['words'], said['words'], []): a('words', dict(words=words), at(hm))
        a.close()
    assert [any(o.startswith(WORDS[lang]['gone'].format(why=WORDS[lang]['reasons'][why])) for o in heard) for lang in ('en', 'zh')] == [True]*2 and len(heard) == 4
    (_, again), = followed(folder, at(hm) + pd.Timedelta(days=3)); assert again.status == 'withdrawn' and again.why == why


def test_one_bad_quote_ends_nothing(): assert follow(ticket(), bars(), quotes_of(pd.concat([chain(bad=dict(bid=0.)).between_time('10:05:00', '10:05:30'), chain().between_time('09:59', '10:05'), chain().between_time('10:05:35', '10:40')]).sort_index(), 7)).status == 'expired'


def test_a_chain_that_is_gone(tmp_path): told(tmp_path, ticket(), 'no option quotes', bars(end='10:01'), lambda day: None, '10:01')


@pytest.mark.parametrize('day, close', [(DAY, '15:45'), (HALF, '12:45')])
def test_near_the_close_nothing_is_begun(day, close):
    "A trigger that would stand for longer than there is time ends a quarter of an hour before the close, on half days three hours earlier."
    begin = at(close, day) - pd.Timedelta(minutes=20); t = ticket(day, f'{begin:%H:%M}', f'{begin + pd.Timedelta(minutes=30):%H:%M}', time_stop=session(day).close - pd.Timedelta(minutes=1)); end = f'{session(day).close:%H:%M}'
    o = follow(t, bars(day, end=end), quotes_of(chain(day, f'{begin:%H:%M}', end), 7)); assert (o.status, o.why, o.since) == ('withdrawn', 'exercise window', at(close, day))


def test_a_feed_that_is_lost_is_known_from_the_clock(tmp_path):
    "With bars that have not come, and afterwards from the hole that they left; a bar that is missing alone ends nothing."
    t, q = ticket(), quotes_of(chain(), 7)
    for l, now in ((bars(end='10:05'), at('10:07')), (bars(silent=('10:05', '10:20')), None)): o = follow(t, l, q, now=now); assert (o.status, o.why, o.since) == ('withdrawn', 'feed stale', at('10:07'))
    assert follow(t, bars(end='10:05'), q, now=at('10:06')).status == 'armed' and follow(t, bars(silent=('10:05', '10:06')), q).status == 'expired'
    told(tmp_path, t, 'feed stale', bars(end='10:05'), lambda day: chain(), '10:07')


def swing(**other): return issue(**dict(kind='swing', side='buy', provenance='simulated:demo', issued_at=at('16:00', '2026-03-30'), valid_from=at('09:30'), valid_until=at('10:30'), model='har, direction 1d of x', declared_p=.6, p_calibrated=.6, p_lower=.6, breakeven_p=.5, ev_low_usd=3., size_frac=.1, max_loss_usd=900.,
    entry_from=at('09:30'), entry_until=at('10:30'), entry_px_low=590., entry_px_high=595., exit_from=at('09:30', '2026-04-01'), exit_until=at('10:00', '2026-04-01'), target_px=620., stop_px=580.) | other)


def test_a_swing_waits_five_minutes_for_its_feed(tmp_path):
    a = swing(); lost = bars(end='15:59', silent=('09:40', '09:50')); o = settle(a, lost, Costs()); assert (o.status, o.why, o.since) == ('withdrawn', 'feed stale', at('09:45'))
    assert settle(a, bars(end='15:59', silent=('09:40', '09:44')), Costs()).status == 'expired' and settle(swing(entry_px_high=605.), lost, Costs()).status == 'filled'
    yesterday = bars(day=pd.Timestamp('2026-03-30').date(), end='15:59'); late = bars(day=pd.Timestamp('2026-04-01').date()); both = Line(*(np.r_[getattr(yesterday, k), getattr(late, k)] for k in ('at', 'open', 'high', 'low', 'close')))
    assert settle(a, both, Costs()).since == at('09:35') # a session that did not take place
    told(tmp_path, a, 'feed stale', Line(*(np.r_[getattr(yesterday, k), getattr(bars(end='09:40'), k)] for k in ('at', 'open', 'high', 'low', 'close'))), None, '09:45')


def silent_engine(tmp_path, halted=lambda: False):
    "An engine after which no bar came: it, what it published, what it said."
    heard, said = [], []; panel = SimpleNamespace(days=[pd.Timestamp('2026-03-30').date(), DAY], dividend=np.zeros(2), n=np.array([MINUTES]*2), provenance='simulated:demo')
    px = np.full((2, MINUTES), 600.); px[1, 3:] = np.nan
    for k in ('open', 'high', 'low', 'close'): setattr(panel, k, px)
    class Kept(SimpleNamespace): root, journal, provenance = tmp_path, tmp_path/'journal', 'simulated:demo'
    class Held:
        def __enter__(self): return self
        def __exit__(self, *a): return False
    e = engine.Engine(Kept(), DAY, SimpleNamespace(hold=Held, now=lambda: at('09:40').to_pydatetime()), say=said.append, publish=lambda kind, body, known_at: heard.append((kind, body)), halted=halted)
    e.mind, e.asked = SimpleNamespace(growing=SimpleNamespace(panel=panel)), 2
    return e, heard, said


def test_the_engine_withdraws_when_bars_are_overdue(tmp_path):
    "No bar comes, so nothing is thought about; the ticket that waits is looked after all the same, once."
    e, heard, said = silent_engine(tmp_path); t = swing(); book(tmp_path/'journal').append(row(t))

    async def go():
        for m in (3, 4, 5, 6, 7, 8, 9): e.look({}, {}, m); await e.rest()
    asyncio.run(go())
    assert [k for k, _ in heard] == ['words'] and heard[0][1]['words'][0]['withdrawn'] == dict(at=str(at('09:38')), reason='feed stale', held=False) and said == [f'ticket {t.id} is withdrawn'] and e.errors == 0


def noted(folder, *rows):
    for hm, newest, why in rows: note_unheard(folder, at(hm), at(newest), why)
    return mute_of(folder)


LOST = [('10:07', '10:05', 'feed stale'), ('10:08', '10:05', 'feed stale'), ('10:09', '10:05', 'feed stale')]


def test_a_hole_that_history_fills_stays_a_hole_for_what_waited(tmp_path):
    "What a live run noted of the silence decides later too: the bars that came afterwards neither buy nor keep the ticket, and everything that was known before counts."
    t, q, full = ticket(), quotes_of(chain(), 7), bars(); mute = noted(tmp_path, *LOST)
    live = follow(t, bars(end='10:05'), q, now=at('10:07')); again = follow(t, replace(full, mute=mute), q)
    assert (again.status, again.why, again.since) == (live.status, live.why, live.since) == ('withdrawn', 'feed stale', at('10:07')) and follow(t, full, q).status == 'expired'
    px = np.where(full.at >= at('10:06').value, 609.5, 600.); through = Line(full.at, px, px, px, px, mute) # the trigger is met while nobody hears
    assert follow(t, replace(through, mute=()), q).entry_at == at('10:07') and follow(t, through, q).since == at('10:07')
    before = replace(through, open=(p := np.where(full.at >= at('10:03').value, 609.5, 600.)), high=p, low=p, close=p)
    assert follow(t, before, q).entry_at == at('10:04') == follow(t, replace(before, mute=()), q).entry_at # bought before the silence began
    late = replace(full, mute=noted(tmp_path/'b', ('10:06', '10:05', 'feed stale'))); assert follow(t, late, q).status == 'expired' # a single minute is nothing


def test_a_swing_is_not_bought_on_bars_that_nobody_had(tmp_path):
    a, full = swing(entry_px_low=590., entry_px_high=605., entry_from=at('09:31')), bars(end='15:59'); mute = noted(tmp_path, *((f'09:{m}', '09:31', 'feed stale') for m in range(33, 45)))
    assert settle(a, full, Costs()).entry_at == at('09:31')
    o = settle(a, replace(full, mute=mute), Costs()); assert (o.status, o.why, o.since) == ('withdrawn', 'feed stale', at('09:36'))
    held = replace(full, mute=noted(tmp_path/'b', *((f'09:{m}', '09:32', 'feed stale') for m in range(34, 45)))); assert settle(a, held, Costs()).entry_at == at('09:31') # known and bought before
    book(tmp_path).append(row(a)); (_, again), = followed(tmp_path, at('15:59'), full); assert again.why == 'feed stale' # the journal's own silence counts without being handed on


@pytest.mark.parametrize('t, panel, chain_of', [(ticket(), bars(end='10:05'), lambda day: chain()), (swing(valid_from=at('10:00'), entry_from=at('10:00')), bars(end='10:05'), None)], ids=['option', 'swing'])
def test_a_halt_has_its_own_name(t, panel, chain_of, tmp_path):
    "At once, and in the journal, on the screen, the cards and in alerts."
    noted(tmp_path, ('10:05', '10:05', 'halted')); told(tmp_path, t, 'halted', panel, chain_of, '10:05')


def test_the_backtest_and_the_desk_read_what_was_not_heard(tmp_path):
    "The walk's own tickets, the booked ones, and the moments of a recorded chain."
    t, full = swing(entry_px_low=590., entry_px_high=605., entry_from=at('09:31')), bars(begin='09:31', end='15:59'); gone = settle(t, replace(full, mute=noted(tmp_path/'journal', *((f'09:{m}', '09:31', 'feed stale') for m in range(33, 45)))), Costs())
    g = SimpleNamespace(days=[DAY], close=np.full((1, MINUTES), 600.), open=np.full((1, MINUTES), 600.), high=np.full((1, MINUTES), 600.), low=np.full((1, MINUTES), 600.))
    assert [o.status for _, o in _settled([t], g, np.array([True]), Costs(), {})] == ['filled'] and [o.status for _, o in _settled([t], g, np.array([True]), Costs(), {}, {t.id: gone})] == ['withdrawn']
    assert not ticket_legs([(t, gone)], g, 5, Costs()) and desk.Chains(tmp_path).mute == mute_of(tmp_path/'journal') and len(desk.Chains(tmp_path).mute) == 12
    quiet = hushed(Silence(at('10:05'), 'option', 'simulated:demo', ('below break-even',)), True); assert quiet.reasons == ('halted', 'below break-even') and hushed(t, True) is t and hushed(quiet, False) is quiet


@pytest.mark.parametrize('halted', [False, True])
def test_the_engine_notes_what_it_does_not_hear(halted, tmp_path):
    "Overdue bars are on record while they are overdue, with level 1's word for a halt; so is a minute of a halt that has a bar."
    e, heard, said = silent_engine(tmp_path, lambda: halted); t = swing(); book(tmp_path/'journal').append(row(t)); why = 'halted' if halted else 'feed stale'

    async def go():
        for m in (3, 4, 5, 6, 7, 8, 9): e.look({}, {}, m); await e.rest()
    asyncio.run(go())
    mute = mute_of(tmp_path/'journal'); assert {o[1:] for o in mute} == {(at('09:33').value, why)} and mute[0][0] == at('09:35').value
    kept = [json.loads(o) for o in (tmp_path/'journal'/'outcomes.jsonl').read_text().splitlines()]; assert kept[0]['changes'][-1][2] == why and heard[0][1]['words'][0]['withdrawn']['reason'] == why and said == [f'ticket {t.id} is withdrawn']
    assert [o['reasons'] for o in latest(tmp_path/'journal')['words'][1:]] == [[why]] and e.errors == 0
    e.desk = e.mind = None; out = e.tick(20, {}, SimpleNamespace(provisional=False), [], 0.); assert out.get('halted', False) is halted and (mute_of(tmp_path/'journal')[-1] == (at('09:51').value,)*2 + ('halted',)) is halted


def test_a_tape_that_is_served_again_tells_nothing_of_what_comes(tmp_path):
    "Today's file begins with the minutes that are over, though the folder knows the whole day from an earlier run."
    m = pd.date_range(at('09:30'), periods=MINUTES, freq='min'); raw = pd.DataFrame(dict(dict.fromkeys(RAW_COLUMNS, np.nan), open=600., high=600.1, low=599.9, close=600., volume=1e5, average=600., barCount=100.), index=m.rename('Datetime'))
    s = Store(tmp_path, 'simulated:demo'); s.write_raw(DAY, raw[RAW_COLUMNS], [])
    got = {hm: sorted(Today(s, DAY, upto=at(hm).to_pydatetime()).bars) for hm in ('09:20', '09:30', '10:00', '16:00')}
    assert got == {'09:20': [], '09:30': [], '10:00': [*range(30)], '16:00': [*range(MINUTES)]} and len(Today(s, DAY).bars) == MINUTES


def test_every_reason_is_explained_in_every_language(tmp_path):
    "The one table of messages is complete, and --full says the words."
    for lang, w in WORDS.items():
        assert list(w['plain']) == list(w['reasons']) == list(REASONS) and all(w['plain'].values()) and len(set(w['plain'].values())) == len(REASONS)
        assert lang != 'zh' or all(any('\u4e00' <= c <= '\u9fff' for c in o) for o in w['plain'].values())
        record(tmp_path/lang, SimpleNamespace(current=[Silence(at('10:00'), 'option', 'simulated:demo', REASONS)], grounds={}), at('10:00'))
        lines = screen(tmp_path/lang, at('10:00'), lang=lang, full=True); assert [o.strip() for o in lines[2:]] == [w['meant'].format(reason=w['reasons'][r], plain=w['plain'][r]) for r in REASONS] and len(screen(tmp_path/lang, at('10:00'), lang=lang)) == 2
        assert all(w['plain'][r].replace('’', '') in str(verdict.in_words(REASONS, lang)).replace('’', '') for r in REASONS)


def test_a_page_says_what_became_of_each_ticket_and_of_size_nought():
    "What was never bought has no price that could be measured; amounts say of how much; a card of size 0 says so, and what a night can take."
    full = bars(end='15:59'); pairs = [(t := swing(), settle(t, full, Costs())), (b := swing(entry_px_high=605.), settle(b, replace(full, mute=((at('09:36').value, at('09:36').value, 'halted'),)), Costs()))]
    assert [o.status for _, o in pairs] == ['expired', 'filled']
    page = str(report.tickets(ticket_frame(pairs), pd.DataFrame(columns=['kind', 'reason', 'times', 'share'])))
    assert page.count('never bought') == 5 and 'amounts per 100 shares' in page and '>held<' in page and 'timed_out' not in page and '2 tickets to be bought on a scored day; none is closed yet' in page.replace('<b>', '').replace('</b>', '')
    card = str(verdict.today([swing(size_frac=0.)], more={})); assert 'on paper only' in card and 'a gap takes' not in card and 'on paper only' not in str(verdict.ticket(t))
    assert 'a gap takes 340 USD' in str(verdict.today([t], more={t.id: dict(nights=1, gap_usd=340.)}))
