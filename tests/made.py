"""A made-up market whose every field differs from its neighbours, and a way to fetch it."""
import asyncio
from datetime import date, datetime, timezone

import numpy as np
import pandas as pd

from spyresearch.core import ET, SpyError
from spyresearch.sessions import add_sessions, minutes, session, sessions
from spyresearch.trade.valuation import black
from spyresearch.tws.history import fetch_history
from spyresearch.tws.link import Link
from spyresearch.tws.replay import ReplayServer
from spyresearch.tws.tape import Tape

CLOSE = datetime(2025, 12, 5, 21, tzinfo=timezone.utc)
DAYS = sessions(date(2025, 11, 10), date(2025, 12, 5))     # 19 sessions; the 28th of November closes at 13:00

def bars(days, at=500., step=1):
    "Minute (or longer) bars of some days."
    ix = pd.DatetimeIndex(np.concatenate([minutes(d)[::step].asi8 for d in days]), tz='UTC').tz_convert(ET).rename('Datetime')
    k = np.arange(len(ix))
    return pd.DataFrame(dict(open=at + k/100, high=at + 2 + k/100, low=at - 1 + k/100, close=at + 1 + k/100, volume=1000. + 3*k, average=at + .5 + k/100, barCount=10. + k), index=ix)

def quotes_at(now, spot, clock, daily, reach):
    "A chain of today's and the next expiry at the prices of a daily volatility, a cent either way, `reach` USD about the price."
    out = []
    for n in range(2):
        e = add_sessions(now.date(), n); sd = clock.left(now.to_pydatetime(), e)**.5*daily; k = np.arange(round(spot) - reach, round(spot) + reach + 1)
        for right, sign in (('C', 1), ('P', -1)):
            mid = np.maximum(black(spot, k, sd, sign), sign*(spot - k))
            out.append(pd.DataFrame(dict(expiry=e.isoformat(), right=right, strike=k, con_id=(10**4*n + 10*k + (sign > 0)).astype('int64'), bid=np.maximum((mid - .01).round(2), 0), ask=(mid + .01).round(2), spot=spot, age=.5)))
    rows = pd.concat(out); return rows.set_axis(pd.DatetimeIndex([now]*len(rows), name='Datetime'))

def quotes(df, by=.01):
    "BID_ASK bars that belong to `df`: average bid, highest ask, lowest bid, average ask."
    return pd.DataFrame(dict(open=df['close'] - by, high=df['high'] + by, low=df['low'] - by, close=df['close'] + by), index=df.index)

def vols(df): return pd.DataFrame(dict(open=.11, high=.14, low=.10, close=.12), index=df.index) + np.arange(len(df))[:, None]*1e-6

def daily(days, at=400.):
    ix = pd.DatetimeIndex([session(d).open for d in days], name='Datetime')
    k = np.arange(len(ix))
    return pd.DataFrame(dict(open=at + k, high=at + 3 + k, low=at - 2 + k, close=at + 1 + k, volume=5e7 + k), index=ix)

def tape(days=DAYS, name='made', **more):
    df = bars(days)
    return Tape(name, 'simulated', {('TRADES', '1 min'): df} | more)

def rich(days=DAYS):
    df = bars(days)
    return Tape('rich', 'simulated', {('TRADES', '1 min'): df, ('BID_ASK', '1 min'): quotes(df), ('OPTION_IMPLIED_VOLATILITY', '1 min'): vols(df)})

def fetch(tape, store, /, faults=None, link=None, server=None, **kw):
    "One history run over a socket: (report or error, the history requests the server saw)."
    async def go():
        opts = (server or {}) | (dict(faults=faults) if faults else {})
        async with ReplayServer(tape, **opts) as srv:
            try:
                async with Link(port=srv.port, **(link or {})) as l: out = await fetch_history(l, store, **kw)
            except SpyError as e: out = e
            assert srv.unhandled == [] and srv.errors == []
            return out, [o.request for o in srv.requests if type(o.request).__name__ == 'Historical']
    return asyncio.run(go())

def good(result):
    "The report of a run that must not have failed."
    if isinstance(result[0], Exception): raise result[0]
    return result[0]

def trades(requests): return [o for o in requests if (o.what, o.bar_size) == ('TRADES', '1 min')]
def asked_days(requests):
    "The sessions that minute requests were about."
    out = set()
    for o in trades(requests):
        last = datetime.strptime(o.end, '%Y%m%d %H:%M:%S UTC').date()
        out |= set([d for d in sessions(date(2025, 1, 2), last)][-int(o.duration.split()[0]):])
    return out

def files(root):
    "Every data file and its bytes."
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file() and not p.name.startswith('.lock')}
