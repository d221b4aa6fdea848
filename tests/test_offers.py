"""Offers on the recorded chains: on paths as wide as the options say, nothing is earned but the costs; nothing is offered without sound quotes, time or a chain."""
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import grid, read_bars
from spyresearch.core import ET
from spyresearch.sessions import session
from spyresearch.trade import offers as o
from spyresearch.trade.clock import learn_clock
from spyresearch.trade.quotes import check_quotes
from spyresearch.trade.search import Paths, Try, earned, walked


def walk(px, sd, L, P, seed, inner=12): # bars of a driftless motion; sd of the log return a minute
    z = np.random.default_rng(seed).normal(size=(P//2, L, inner)); z = np.concatenate([z, -z])*sd/np.sqrt(inner)
    c = px*np.exp(np.cumsum((z - sd*sd/inner/2).reshape(P, -1), 1)).reshape(P, L, inner); first = np.concatenate([np.full((P, 1), px), c[:, :-1, -1]], 1)
    return Paths(px, first, np.maximum(c.max(2), first), np.minimum(c.min(2), first), c[..., -1], np.arange(P) % (P//2))


@pytest.fixture(scope='module')
def market(shared):
    "Snapshots between 10:00 and 14:30 of the recorded chains, with the clock of their day."
    c = pd.read_parquet(shared('spy_chain_0-7dte.parquet')).rename(columns=dict(type='right')).astype(dict(right=str))
    c = c.set_index(pd.DatetimeIndex(c.quote_ts).tz_convert(ET).rename('Datetime')).drop(columns=['quote_ts', 'fetched_ts']).sort_index(kind='stable').assign(age=.5)
    c['con_id'] = pd.factorize(c.expiry.astype(str) + c.right + c.strike.astype(str))[0]
    paid = {date.fromisoformat(d): v for d, v in pd.read_csv(shared('spy_dividends.csv')).to_numpy()}; g = grid(read_bars(shared('spy_1min.parquet')))
    clocks = {d: learn_clock(g, session(d).open, paid) for d in sorted(set(c.index.date))}
    rows = [(t.to_pydatetime(), r, clocks[t.date()]) for t, r in c.groupby(level=0) if 10 <= t.hour < 14.5]
    return rows, paid


def test_paths_as_wide_as_the_options_say_earn_the_costs(market):
    "Bought at once, held for half an hour, on every fifth snapshot: what is left after the costs is half a cent a share on the average (this is what `look` takes off), and under five for every expiry of every snapshot."
    rows, paid = market; off = []
    for now, r, clock in rows[::5]:
        px = float(r.spot.iloc[0]); ok = (check_quotes(r, now, px, False, paid).reason == '').to_numpy(); smiles = o.curves(r, ok, now, px, clock, paid); c = o.shortlist(r, ok, smiles, now)
        c = c[c.reason == '']
        for e, part in c.groupby('expiry'):
            sd = o.charged(smiles[e], clock, now, 30)/30**.5; board = o.board_of(part, smiles, clock, now, px, 31, sd*60**.5)
            _, a, z = walked(walk(px, sd, 31, 3000, 1), Try(None, 1, np.inf, -np.inf, 30)); net = earned(board, np.full(len(part), np.inf), a, z)
            off.append(((net.mean(1) + board.fee)/100 + 2*board.half).mean())
    off = np.array(off); assert len(off) > 60 and abs(np.mean(off)) < .01 and np.abs(off).max() < .05


def test_an_offer_on_real_quotes_has_every_field_and_keeps_to_its_limits(market):
    rows, paid = market; n = 0
    for now, r, clock in rows[::12]:
        px = float(r.spot.iloc[0]); first = min(o.curves(r, (check_quotes(r, now, px, False, paid).reason == '').to_numpy(), now, px, clock, paid).values(), key=lambda x: x.expiry)
        unit = 1.4*o.charged(first, clock, now); x = o.look(now, px, r, clock, walk(px, unit/60**.5, 76, 1600, 2), unit, dividends=paid)
        assert x.finds and x.faults.get('far from the money', 0) > 0 and abs(min(x.iv_ratio.items())[1] - 1.4) < .01
        best = o.offer(x); n += 1
        assert best.bid <= best.ask and .25 <= abs(best.delta) <= .75 and best.ask - best.bid <= .03*(best.ask + best.bid)/2 + 1e-6
        assert best.limit_usd >= best.bid and best.time_stop <= session(now.date()).close - pd.Timedelta(minutes=15) and best.trigger_until == x.at + pd.Timedelta(minutes=15)
        assert best.premium_30m_usd <= best.premium_15m_usd and 0 < best.p_win < 1 and best.breakeven > 0 and date.fromisoformat(best.expiry) >= now.date()
    assert n >= 3


def test_no_offer_without_sound_quotes_or_time(market):
    (now, r, clock), paid = market[0][3], market[1]; px = float(r.spot.iloc[0]); p = walk(px, .0003, 76, 400, 3)
    for bad in (r.assign(age=90.), r.assign(bid=0.), r.assign(ask=r.bid - .01), r.assign(spot=r.spot*1.01), r.iloc[:0]):
        x = o.look(now, px*1.01 if bad is not r and len(bad) and bad.spot.iloc[0] > px*1.005 else px, bad if len(bad) else r.iloc[:0], clock, p, .0023, dividends=paid)
        assert not x.finds and (x.faults or not len(bad))
    assert o.look(now, px, r, clock, p, .0023, dividends=paid, halted=True).faults['halted'] > 700
    late = now.replace(hour=15, minute=35, second=0); assert o.room(late) == 10 and not o.look(late, px, r, clock, walk(px, .0003, 25, 400, 3), .0023, dividends=paid).finds
    wide = r.assign(bid=(r.bid - .2).clip(lower=.01), ask=r.ask + .2); assert not any(e == now.date() for e in o.look(now, px, wide, clock, p, .0023, dividends=paid).contracts.get('expiry', []))


def test_a_wider_forecast_is_worth_more(market):
    (now, r, clock), paid = market[0][3], market[1]; px = float(r.spot.iloc[0]); e = min(pd.to_datetime(r.expiry)).date()
    ok = (check_quotes(r, now, px, False, paid).reason == '').to_numpy(); sd = o.charged(o.curves(r, ok, now, px, clock, paid)[e], clock, now)
    best = [max(f.p_fill*(f.ev_usd - off) for f, off in o.look(now, px, r, clock, walk(px, k*sd/60**.5, 76, 2000, 4), k*sd, dividends=paid).finds) for k in (.8, 1.2, 1.6)]
    assert best == sorted(best) and best[0] < 0 < best[2]


def test_moves_are_scaled_about_the_price():
    p = walk(600., .0004, 30, 200, 5); q = o.scaled(p, .5)
    assert np.allclose(np.log(q.close/600), .5*np.log(p.close/600)) and np.array_equal(q.group, p.group) and np.allclose(o.scaled(p, 1.).high, p.high)
    assert (q.high >= q.close - 1e-9).all() and timedelta(minutes=1)
