"""A feed or a supervisor on a replay at its highest speed, in a few lines."""
import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

from live import DAY, at
from spyresearch.core import provenance_of
from spyresearch.store import Store
from spyresearch.tws.control import SlaveClock
from spyresearch.tws.faults import FINE, Faults, Mishap
from spyresearch.tws.feed import Feed
from spyresearch.tws.link import Link
from spyresearch.tws.replay import ReplayServer, open_tape
from spyresearch.tws.inside import ticks_of
from spyresearch.tws.supervisor import Supervisor, Want

day, half = at('10:00:00').date(), at('10:00:00', '2025-11-28').date() # a session of the demo, and one that ends at 13:00
LOST, KEPT, GONE = ((code, text) for code, text in ((1100, 'Connectivity between IB and TWS has been lost.'), (1102, 'Connectivity restored - data maintained.'), (1101, 'Connectivity restored - data lost.')))


@cache
def demo():
    "The demo, two of its days drawn once and for all."
    tape = open_tape(days=10)
    return replace(tape, ticks={o: ticks_of(tape, o) for o in (half, day)}, drawn=False)


def story(*script, **more):
    "Faults with a script: each a deed, a time, and the rest."
    return Faults(script=tuple(Mishap(do, at=t, **rest) for do, t, rest in script), **more)


def say(t, code, text=''): return 'say', t, dict(code=code, text=text)


@asynccontextmanager
async def replay(begin, faults=FINE, tape=None, link=None, on=DAY, **kw):
    "A server, a clock that keeps its time, and a link that is not yet connected; nothing may be left unhandled."
    async with ReplayServer(tape or demo(), at(begin, on), 'max', faults=faults, control=True, **kw) as srv:
        clock = await SlaveClock(srv.now()).attach(srv.control.port, srv.control.token)
        try: yield srv, clock, Link(port=srv.port, clock=clock, **(link or {}))
        finally: clock.detach()
    assert (srv.unhandled, srv.errors) == ([], [])


async def until(clock, t, *tasks, on=DAY):
    "Let the replay go on to a moment, or until one of some tasks ends."
    while clock.now() < at(t, on) and not any(o.done() for o in tasks): await clock.asleep(1)


class Fed:
    "A feed that runs, and what it has said."
    def __init__(self, srv, clock, link, root, on=DAY):
        self.srv, self.clock, self.link, self.on, self.day = srv, clock, link, on, at('10:00:00', on).date()
        self.feed = Feed(link, Store(root, provenance_of(srv.tape.account)))
        self.heard = {o: [] for o in Feed.events}
        for o, kept in self.heard.items(): getattr(self.feed, o).connect(kept.append, keep_ref=True)

    def start(self, upto=None):
        self.task = asyncio.ensure_future(self.feed.run(self.day, upto))
        return self
    async def until(self, t): await until(self.clock, t, self.task, on=self.on)
    async def stop(self):
        "End it: its report, or the exception that ended it."
        self.task.cancel()
        return (await asyncio.gather(self.task, return_exceptions=True))[0]

    upto = None # what was recorded while a test waited for the last second is not looked at
    rows = property(lambda self: self.until_end(self.feed.log.read(self.day)))
    trades = property(lambda self: self.until_end(self.feed.prices.read(self.day)))
    def until_end(self, df): return df if self.upto is None else df[df.index < self.upto]
    states = property(lambda self: [(s.what, s.name) for s in self.heard['stateEvent']])
    minutes = property(lambda self: {(m.start - self.feed.open)//60: m for m in self.heard['minuteEvent']})
    def said(self, what, name): return [s.reason for s in self.heard['stateEvent'] if (s.what, s.name) == (what, name)]
    def send(self, kind, *messages):
        "Put messages, made from the request's number, on the wire of a stream."
        [s] = self.srv.live(kind)
        s.conn.send(b''.join(m(s.id) for m in messages))


async def clock_on(fed, end):
    "A moment more, in which the last second is closed."
    fed.upto = at(end, fed.on)
    for _ in range(30):
        if fed.task.done() or fed.feed.seconds.oldest >= fed.upto.timestamp(): return
        await fed.clock.asleep(.25)


async def feeding(root, begin, end, faults=FINE, do=None, ends=asyncio.CancelledError, on=DAY, upto=None, **kw):
    "A feed from one moment to another; `do(fed)` may do something meanwhile."
    async with replay(begin, faults, on=on, **kw) as parts:
        fed = Fed(*parts, root, on).start(upto)
        if do: await do(fed)
        await fed.until(end)
        await clock_on(fed, end)
        fed.end = await fed.stop()
    assert isinstance(fed.end, ends), fed.end
    return fed


def whole(fed, begin, end):
    "The rows; every second of the span has one, in order."
    rows = fed.rows
    assert rows.index.as_unit('s').asi8.tolist() == list(range(*(int(at(o, fed.on).timestamp()) for o in (begin, end))))
    return rows


def part(rows, a, b, on=DAY): "Rows of [a, b)."; return rows[(rows.index >= at(a, on)) & (rows.index < at(b, on))]


async def minding(begin, end, faults=FINE, do=None, deadlines=None, link=None, watched=lambda: True, **kw):
    "A supervisor of level 1, trades and depth: what it said, and what was asked of the server."
    async with replay(begin, faults, link=link, **kw) as (srv, clock, link):
        words, deadlines = [], deadlines or dict(level1=15, ticks=30, depth=20)
        def want(name): return Want(name, getattr(link, name), lambda word, *v: words.append((clock.now(), name, word)), deadlines[name])
        sup = Supervisor(link, [want(o) for o in deadlines], watched)
        out = SimpleNamespace(srv=srv, clock=clock, link=link, sup=sup, words=words, said=[])
        sup.stateEvent.connect(out.said.append, keep_ref=True)
        out.task = asyncio.ensure_future(sup.run())
        if do: await do(out)
        await until(clock, end, out.task)
        out.before = clock.monotonic()
        sup.stop()
        await out.task
        out.took = clock.monotonic() - out.before
    out.names = [(s.what, s.name) for s in out.said]
    return out
