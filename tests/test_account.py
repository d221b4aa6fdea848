"""The account's own flags: read from TWS, kept with their day, heeded by what is put on record; what was not said stays unknown, and is said to be."""
import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from spyresearch.journal import Journal
from spyresearch.runs import gather
from spyresearch.sessions import session
from spyresearch.trade import record as r
from spyresearch.trade.risk import read_account
from spyresearch.trade.tickets import Outcome, Silence, Ticket, UNKNOWN_ACCOUNT
from spyresearch.tws import wire
from spyresearch.tws.connection import ANSWERS
from spyresearch.tws.link import Link
from spyresearch.tws.replay import ReplayServer, open_tape
from spyresearch.tws.source import Source
from test_risk import DAYS, ticket

DAY = DAYS[6]
NOON = session(DAY).open + pd.Timedelta(minutes=150)


def saying(monkeypatch, **values):
    "A server whose login has these account values; None: it never answers."
    def answer(srv, conn, q): conn.send(b''.join(wire.frame(63, 1, q.req_id, srv.tape.account, k, v, 'USD') for k, v in values.items()) + wire.account_summary_end(q.req_id))
    monkeypatch.setitem(ANSWERS, 'AccountSummary', answer if values else lambda srv, conn, q: None)


def asked(f, days=10):
    async def go():
        async with ReplayServer(open_tape(days=days)) as srv: return await f(srv)
    return asyncio.run(asyncio.wait_for(go(), 120))


@pytest.mark.parametrize('values, left, kind', [(dict(AccountType='INDIVIDUAL', DayTradesRemaining='0'), 0, 'INDIVIDUAL'), (dict(DayTradesRemaining='-1'), -1, None), (dict(AccountType='IRA-ROLLOVER', DayTradesRemaining='Unlimited'), None, 'IRA-ROLLOVER'), (dict(Cushion='0.9'), None, None)])
def test_what_tws_says_is_kept_without_the_account(tmp_path, monkeypatch, values, left, kind):
    saying(monkeypatch, **values)
    async def f(srv):
        async with Link(port=srv.port) as link: return await r.note_account(link, tmp_path), link.account
    a, name = asked(f); kept = (tmp_path/r.ACCOUNT).read_text()
    assert (a.day_trades_left, a.type) == (left, kind) == (json.loads(kept)['day_trades_left'], json.loads(kept)['type']) and name and name not in kept


def test_a_login_that_says_nothing_is_unknown_and_the_connection_goes_on(monkeypatch):
    saying(monkeypatch)
    async def f(srv):
        async with Link(port=srv.port) as link: a = await read_account(link, wait_s=.3); await link.current_time(); return a, link.connected
    a, alive = asked(f); assert alive and a.unknown == ('type', 'day_trades_left', 'live_quotes', 'option_quotes')


def option(**other):
    "An option ticket of noon, and what a walk gives with it."
    t = ticket(kind='option', issued_at=NOON, valid_from=NOON, valid_until=NOON + pd.Timedelta(minutes=15), entry_from=None, entry_until=None, model='m, direction option of x', entry_limit_usd=1.2, trigger_until=NOON + pd.Timedelta(minutes=15), **other)
    return SimpleNamespace(tickets=[(t, Outcome('armed'))], current=[t], grounds={})


def said(folder, **other): return r.record(folder, option(**other), NOON)[0]


@pytest.mark.parametrize('left, at, ok', [(0, NOON, False), (3, NOON, True), (-1, NOON, True), (None, NOON, True), (0, NOON - pd.Timedelta(days=1), True)])
def test_an_option_needs_a_day_trade_that_is_left_today(tmp_path, left, at, ok):
    "Yesterday's number says nothing of today."
    Journal(tmp_path/r.ACCOUNT).append(dict(at=at.isoformat(), type='INDIVIDUAL', day_trades_left=left)); o = said(tmp_path)
    assert isinstance(o, Ticket) == ok and (ok or o.reasons == ('no option permission',))


def test_a_swing_needs_none(tmp_path):
    Journal(tmp_path/r.ACCOUNT).append(dict(at=session(DAYS[5]).close.isoformat(), type='CASH', day_trades_left=0)); t = ticket()
    assert isinstance(r.record(tmp_path, SimpleNamespace(tickets=[(t, Outcome('armed'))], current=[t], grounds={}), t.issued_at)[0], Ticket)


@pytest.mark.parametrize('states, why', [([('options', 'unavailable')], 'no option permission'), ([('level1', 'delayed')], 'delayed data'), ([('level1', 'denied')], 'delayed data'), ([('options', 'unavailable'), ('options', 'live'), ('options', 'down')], ''), ([], '')])
def test_what_the_feed_was_granted_is_heeded(tmp_path, states, why):
    for what, state in states: Journal(tmp_path/'feed.jsonl').append(dict(what=what, state=state))
    o = said(tmp_path); assert isinstance(o, Silence) == bool(why) and (not why or o.reasons == (why,))


def test_on_a_real_account_what_is_not_known_is_said(tmp_path):
    said(tmp_path, provenance='tws'); word = r.latest(tmp_path)['words'][0]; assert UNKNOWN_ACCOUNT in word['more']['notes'] and UNKNOWN_ACCOUNT in word['sentence']
    known = tmp_path/'known'; Journal(known/r.ACCOUNT).append(dict(at=NOON.isoformat(), type='INDIVIDUAL', day_trades_left=-1))
    for what, state in (('level1', 'up'), ('options', 'live')): Journal(known/'feed.jsonl').append(dict(what=what, state=state))
    said(known, provenance='tws'); assert UNKNOWN_ACCOUNT not in r.latest(known)['words'][0]['more']['notes']


def test_a_run_on_a_tws_asks_first(tmp_path, monkeypatch):
    "The history of ten days through a socket, and what the login may do beside it."
    saying(monkeypatch, DayTradesRemaining='0')
    async def f(srv): return await asyncio.to_thread(gather, Source(tws=f'127.0.0.1:{srv.port}'), tmp_path, 3)
    got = asked(f); assert r.account(got.store.journal).day_trades_left == 0 and replace(r.account(got.store.journal), day_trades_left=None).unknown[1] == 'day_trades_left'
