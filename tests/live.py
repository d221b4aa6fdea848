"""Unmodified clients that live in a replay's time, and what they heard."""
import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache

import ib_async
import numpy as np
from ibapi.client import EClient
from ibapi.contract import Contract
from ibapi.wrapper import EWrapper
from ib_async import IB, Stock

from spyresearch.core import ET
from spyresearch.tws.book import Book
from spyresearch.tws.control import SlaveClock
from spyresearch.tws.faults import Faults, Mishap
from spyresearch.tws.replay import ReplayServer, listing_of, open_tape
from spyresearch.tws.inside import ticks_of
from spyresearch.tws.wire import Frames

SPY, ARCA, ISLAND = (Stock('SPY', o, 'USD', conId=756733) for o in ('SMART', 'ARCA', 'ISLAND'))
DAY, A = '2025-12-01', '10:00:00' # of most tests


def at(hms, day=DAY): return datetime.fromisoformat(f'{day}T{hms}').replace(tzinfo=ET)
def ns(hms, day=DAY): return int(at(hms, day).timestamp())*10**9


class Ear:
    "A client as a replay's clock wants it, and everything it was sent."
    def __init__(self, ib, client_id):
        self.ib, self.client_id, self.frames, self.heard, self.errors = ib, client_id, Frames(1 << 28), [], []
        ib.client.conn.hasData += self.data
        ib.errorEvent += lambda req_id, code, *_: self.errors.append((req_id, code))

    def data(self, data): self.heard += self.frames.feed(data)
    alive = property(lambda self: self.ib.client.isReady())
    read_bytes = property(lambda self: self.ib.client._numBytesRecv if self.alive else None)
    sent_bytes = property(lambda self: self.ib.client.conn.numBytesSent if self.alive else None)
    codes = property(lambda self: [c for _, c in self.errors if c not in (2104, 2106, 2158)])
    def said(self, *ids): return [f for f in self.heard if int(f[0]) in ids]


async def join(srv, clock=None, client_id=1, ib=None):
    "An unmodified client, connected; its `ear` holds up the clock."
    ib = ib or IB()
    ear = ib.ear = Ear(ib, client_id)
    await ib.connectAsync('127.0.0.1', srv.port, clientId=client_id)
    ear.heard.clear()
    if clock: clock.links.add(ear)
    return ib


@asynccontextmanager
async def replay(tape, asof, speed='max', n=1, checked=True, lib=ib_async, **kw):
    "A server, its clock, and `n` clients of a library; nothing may be left unhandled."
    broken = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: broken.append(c.get('exception') or c['message']))
    async with ReplayServer(tape, asof, speed, control=True, **kw) as srv:
        srv.listing = listing_of(srv)
        clock = await SlaveClock(asof).attach(srv.control.port, srv.control.token)
        ibs = [await join(srv, clock, i + 1, lib.IB()) for i in range(n)]
        try: yield srv, clock, *ibs
        finally:
            for ib in ibs: ib.disconnect()
            clock.detach()
    assert not checked or (srv.unhandled, srv.errors, broken) == ([], [], [])


def run(coro, s=60): return asyncio.run(asyncio.wait_for(coro, s))   # nothing may hang


def kept(ticker, *names):
    "Everything that a ticker's short-lived lists have held, by name."
    out = {n: [] for n in names}
    ticker.updateEvent.connect(lambda t: [out[n].extend(getattr(t, n)) for n in names], keep_ref=True)
    return out


class Official(EWrapper, EClient):
    "The official client, connected; every callback it gets, with its arguments, stands in `heard`."
    def __init__(self, port, client_id=77):
        EClient.__init__(self, self)
        self.heard, self.told = [], threading.Condition()
        for name in dir(EWrapper):
            if not name.startswith('_') and name not in ('logAnswer',): setattr(self, name, self.keep(name))
        self.connect('127.0.0.1', port, client_id)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        self.wait('nextValidId', 1)

    def keep(self, name):
        def put(*a, **k):
            with self.told:
                self.heard.append((name, (*a, *k.values())))
                self.told.notify_all()
        return put

    def wait(self, name, n):
        with self.told: assert self.told.wait_for(lambda: sum(o[0] == name for o in self.heard) >= n, 20), f'waits in vain for {name}'

    def settle(self):
        "Wait until all that was asked is answered: replies keep their order."
        n = sum(o[0] == 'currentTime' for o in self.heard) + 1
        self.reqCurrentTime()
        self.wait('currentTime', n)

    def end(self):
        self.settle()
        self.disconnect()
        self.thread.join(5)


def official(con_id, exchange):
    c = Contract()
    c.conId, c.symbol, c.secType, c.exchange, c.currency = con_id, 'SPY', 'STK', exchange, 'USD'
    return c


@cache
def demo(): return open_tape(days=10)


@cache
def drawn():
    "The demo with its drawn day as a record: what is drawn once need not be drawn for every test."
    day = at(A).date()
    return replace(demo(), ticks={day: ticks_of(demo(), day)}, drawn=False)


def script(*mishaps, **more): return Faults(script=tuple(Mishap(**({'at': '10:00:05'} | m if 'when' not in m else m)) for m in mishaps), **more)


async def play(tape, faults, s=20, then=None, **kw):
    "Level 1, single trades, 5-second bars and a book for `s` seconds with a script; `then(srv, clock, ib)` goes on."
    async with replay(tape, at(A), faults=faults, **kw) as (srv, clock, ib):
        subscribe(ib)
        marks = {}
        for i in range(s):
            marks[i] = len(ib.ear.heard)
            await clock.asleep(1)
        more = await then(srv, clock, ib) if then else None
        return ib.ear, marks, srv.sessions.inside(at(A).date()), more


def subscribe(ib):
    ib.ear.before = ib.client.getReqId()   # their numbers are the next four
    ib.reqMktData(SPY, '233')
    ib.reqTickByTickData(SPY, 'AllLast')
    ib.reqRealTimeBars(SPY, 5, 'TRADES', True)
    ib.reqMktDepth(ARCA, 10)


def kinds(frames): return {f[0] for f in frames if f[0] != '4'}
def book_of(frames):
    "The book that depth messages make; 317 empties it."
    b = Book(10)
    for f in frames:
        if f[0] == '12': b.apply(int(f[3]), int(f[4]), int(f[5]), float(f[6]), float(f[7]))
        elif f[0] == '4' and f[3] == '317': b.reset('317')
    return b


def is_book_at(b, x, hms):
    k, s = int(np.searchsorted(x.ticks.books.t, ns(hms))) - 1, b.snapshot()
    return (s.bid_px == x.ticks.books.bid_px[k]).all() and (s.bid_sz == x.ticks.books.bid_sz[k]).all() and (s.ask_px == x.ticks.books.ask_px[k]).all() and not b.counts['beyond']
