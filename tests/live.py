"""Unmodified clients that live in a replay's time, and what they heard."""
import asyncio
from contextlib import asynccontextmanager
from datetime import datetime

from ib_async import IB, Stock

from spyresearch.core import ET
from spyresearch.tws.control import SlaveClock
from spyresearch.tws.replay import ReplayServer, listing_of
from spyresearch.tws.wire import Frames

SPY, ARCA, ISLAND = (Stock('SPY', o, 'USD', conId=756733) for o in ('SMART', 'ARCA', 'ISLAND'))
DAY = '2025-12-01'


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
async def replay(tape, asof, speed='max', n=1, checked=True, **kw):
    "A server, its clock, and `n` clients; nothing may be left unhandled."
    broken = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: broken.append(c.get('exception') or c['message']))
    async with ReplayServer(tape, asof, speed, control=True, **kw) as srv:
        srv.listing = listing_of(srv)
        clock = await SlaveClock(asof).attach(srv.control.port, srv.control.token)
        ibs = [await join(srv, clock, i + 1) for i in range(n)]
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
