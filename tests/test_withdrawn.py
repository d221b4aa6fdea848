"""A ticket that waits is withdrawn, with the reason, by one function: on paper, in the journal, on the screen, in alerts, in both languages."""
import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spyresearch.core import ET
from spyresearch.live import engine
from spyresearch.live.alerts import Alerts
from spyresearch.live.view import cards
from spyresearch.sessions import MINUTES, session
from spyresearch.trade.follow import follow, quotes_of
from spyresearch.trade.record import latest, record, screen
from spyresearch.trade.risk import over
from spyresearch.trade.tickets import REASONS, Line, Silence, WORDS, issue, row, settle
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


def test_the_engine_withdraws_when_bars_are_overdue(tmp_path):
    "No bar comes, so nothing is thought about; the ticket that waits is looked after all the same, once."
    t, heard, said = swing(), [], []; book(tmp_path/'journal').append(row(t)); panel = SimpleNamespace(days=[pd.Timestamp('2026-03-30').date(), DAY], dividend=np.zeros(2), n=np.array([MINUTES]*2), provenance='simulated:demo')
    px = np.full((2, MINUTES), 600.); px[1, 3:] = np.nan
    for k in ('open', 'high', 'low', 'close'): setattr(panel, k, px)
    class Store(SimpleNamespace): root, journal, provenance = tmp_path, tmp_path/'journal', 'simulated:demo'
    class Held:
        def __enter__(self): return self
        def __exit__(self, *a): return False
    e = engine.Engine(Store(), DAY, SimpleNamespace(hold=Held, now=lambda: at('09:40').to_pydatetime()), say=said.append, publish=lambda kind, body, known_at: heard.append((kind, body)))
    e.mind, e.asked = SimpleNamespace(growing=SimpleNamespace(panel=panel)), 2

    async def go():
        for m in (3, 4, 5, 6, 7, 8, 9): e.look({}, {}, m); await e.rest()
    asyncio.run(go())
    assert [k for k, _ in heard] == ['words'] and heard[0][1]['words'][0]['withdrawn'] == dict(at=str(at('09:38')), reason='feed stale', held=False) and said == [f'ticket {t.id} is withdrawn'] and e.errors == 0
