"""A session of the demo as an engine would tell it: its bars, quotes, book and trades, and forecasts of a fitted baseline.

As a program (`python tests/speaking.py FOLDER HH:MM VIRTUAL_SECONDS_A_SECOND MESSAGES_A_SECOND`) it publishes them until it is ended."""
import sys
import time
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from spyresearch.core import ET, RealClock, stopwatch
from spyresearch.live.infer import touch_grid
from spyresearch.live.stream import Publisher
from spyresearch.models.baselines import EwmaDiurnal
from spyresearch.models.forecaster import Targets
from spyresearch.models.targets import HORIZONS, QUANTILES
from spyresearch.models.touch import Direct
from spyresearch.models.windows import Panel
from spyresearch.sessions import next_session, session
from spyresearch.trade.record import _word
from spyresearch.trade.tickets import Silence, issue
from spyresearch.tws.inside import ticks_of
from spyresearch.tws.replay import open_tape

NS, USUAL = 10**9, [*(f'logdiur_{h}' for h in (5, 15, 30, 60)), 'logdiur_rest']


class Told:
    "The last session of the demo, by the moment."
    provenance = 'simulated:demo'

    def __init__(self, days=34):
        tape = open_tape(days=days)
        bars = tape.bars[('TRADES', '1 min')]
        self.day = bars.index[-1].date()
        self.session, self.bars, self.ticks = session(self.day), bars[bars.index.date == self.day], ticks_of(tape, self.day)
        self.before = bars[bars.index.date < self.day]
        self.panel = Panel.from_bars(bars, provenance=self.provenance, features=USUAL)
        learn = self.panel.windows()
        learn = learn[np.flatnonzero(learn.day < len(self.panel) - 1)]
        self.model = EwmaDiurnal().fit(learn, Targets.of(learn))
        self.touch = Direct().fit(learn, self.model.sigma(learn))
        t, q = self.ticks.trades, self.ticks.quotes
        at = np.maximum(np.searchsorted(q.t, t.t, 'right') - 1, 0)
        self.side = np.where(t.px >= q.ask[at], 1, np.where(t.px <= q.bid[at], -1, 0))
        self.volume = np.cumsum(t.size)

    @cached_property
    def words(self):
        "A ticket of each kind and a silence, with the levels of this day: what a screen has to be able to show."
        o, mins, base = self.session.open, lambda m: pd.Timedelta(minutes=m), dict(provenance=self.provenance, model='ewma_diurnal, direction 1d of 2025-12-01', declared_p=.55, p_calibrated=.6,
            p_lower=.55, breakeven_p=.5, size_frac=.02, n_bucket=140, hit_bucket=.58)
        px, day2 = float(self.bars.close.iloc[90]), session(next_session(self.day)).open
        swing = issue(**base, kind='swing', side='buy', issued_at=o + mins(90), valid_from=o + mins(91), valid_until=o + mins(240), entry_from=o + mins(91), entry_until=o + mins(240), entry_px_low=round(px - .6, 2),
            entry_px_high=round(px + .6, 2), exit_from=day2, exit_until=day2 + mins(30), target_px=round(px + 1.8, 2), stop_px=round(px - 1.7, 2), ev_usd=21., ev_low_usd=14., max_loss_usd=181., p_target=.41, p_stop=.33)
        option = issue(**base, kind='option', side='call', issued_at=o + mins(90), valid_from=o + mins(91), valid_until=o + mins(240), right='C', expiry='2025-12-05', strike=round(px) + 1, con_id=1, trigger_px=round(px + .9, 2),
            trigger_until=o + mins(240), entry_limit_usd=1.42, exit_spy_px=round(px + 2, 2), take_profit_usd=1.95, stop_loss_usd=1.07, stop_spy_px=round(px - .4, 2), time_stop=o + mins(330), ev_usd=14., ev_low_usd=9., max_loss_usd=142.,
            p_trigger=.46, p_target=.5)
        more = {t.id: dict(record=dict(proven=True, n=140, hits=81, low=.5, high=.66, days=60)) for t in (swing, option)}
        return [_word(swing, [swing], more), _word(option, [], more)]

    def quiet(self, i): return [_word(Silence(self.end(i), k, self.provenance, why), [], {}) for k, why in (('swing', ('not calibrated',)), ('option', ('warm-up', 'no option quotes')))]
    def start(self, i): return self.bars.index[i]
    def end(self, i): return self.start(i) + pd.Timedelta(minutes=1)

    def minute(self, i):
        r = self.bars.iloc[i]
        return dict(start=self.start(i), **{k: float(r[k]) for k in ('open', 'high', 'low', 'close', 'volume')}, provisional=False)

    def forecast(self, i, newest=True):
        d = len(self.panel) - 1
        with stopwatch() as w: q = self.model.quantiles(self.panel.windows([d], [i]))[0]
        grid = touch_grid(self.touch, self.model.sigma(self.panel.windows([d], [i]))[0], i, float(self.bars.close.iloc[i])) if newest else None # a screen shows the newest only
        rows = [list(map(float, r)) if np.isfinite(r).all() else None for r in q]
        return dict(id=f'{self.day}-{i}', origin=self.start(i), px=float(self.bars.close.iloc[i]), model=self.model.name, horizons=[int(h) if h.isdigit() else h for h in HORIZONS], quantile_levels=list(QUANTILES), q=rows,
                    touch=grid, experience=None, row_hash='', provisional=False, ms=1000*w.seconds)

    def calibration(self, i):
        "Of the day's forecasts whose time has come."
        d, out = len(self.panel) - 1, {}
        for j, h in enumerate((5, 15, 30, 60)):
            at = np.arange(max(i - h + 1, 0))
            if not len(at): continue
            q, y = self.model.quantiles(self.panel.windows(np.full(len(at), d), at))[:, j], np.log(self.bars.close.to_numpy()[at + h]/self.bars.close.to_numpy()[at])
            ok = np.isfinite(q).all(1)
            if ok.any(): out[str(h)] = dict(cover80=float(np.mean((y >= q[:, 2])[ok] & (y <= q[:, 18])[ok])), n=int(ok.sum()), want=80)
        return dict(horizons=out)

    def at_minute(self, i, newest=True):
        "What is said when bar `i` has ended."
        body = [('minute', self.minute(i)), ('forecast', self.forecast(i, newest))]
        if not newest: return [(k, b, self.end(i)) for k, b in body]
        body += [('calibration', self.calibration(i)), ('words', dict(at=self.end(i), words=self.words if i >= 90 else self.quiet(i)))]
        ms = body[1][1]['ms']
        state = dict(link='connected', feed=dict(level1=['live', ''], depth=['live', ''], trades=['live', ''], chain=['absent', 'no option permission']), day=str(self.day), session=dict(open=self.session.open, close=self.session.close),
                     counts=dict(minutes=i + 1, forecasts=i + 1), overruns=0, latency_ms=dict(bar_to_ticket=dict(p50=ms, p99=ms, n=1), forecast=dict(p50=ms, p99=ms, n=1)))
        learning = dict(champion='ewma_diurnal', challenger=None, stage='frozen', updates=0, last_update_s=None, loss_champion=None, loss_challenger=None, n_days=0, alarm=None, last_event='')
        return [(k, b, self.end(i)) for k, b in (*body, ('state', state), ('learning', learning))]

    def past(self, i): return [m for j in range(i) for m in self.at_minute(j, False)] + self.at_minute(i)

    def at(self, s):
        "What is said at a moment, in seconds after the open: quote, book and trades by price."
        now = self.session.open.value + int(s*NS)
        t, q, b = self.ticks.trades, self.ticks.quotes, self.ticks.books
        k, i, j = (int(np.searchsorted(o.t, now, 'right')) - 1 for o in (t, q, b))
        when = pd.Timestamp(now, tz='UTC').tz_convert(ET)
        moment = lambda ns: pd.Timestamp(int(ns), tz='UTC').tz_convert(ET)
        if min(i, j, k) < 0: return []
        quote = dict(at=moment(q.t[i]), bid=q.bid[i], ask=q.ask[i], bid_size=q.bid_size[i], ask_size=q.ask_size[i], last=t.px[k], last_size=t.size[k], day_volume=self.volume[k])
        book = dict(at=moment(b.t[j]), venue='ARCA', bids=np.c_[b.bid_px[j], b.bid_sz[j]], asks=np.c_[b.ask_px[j], b.ask_sz[j]])
        return [('quote', quote, when), ('book', book, when), *([('trades', dict(at=when, rows=self.prices(k)), when)] if int(5*s) % 5 == 0 else [])]

    def write_before(self, folder):
        "The session before, as a data folder holds it."
        path = Path(folder)/'original_data'/f'{self.before.index[-1].date()}.csv'
        path.parent.mkdir(exist_ok=True)
        last = self.before[self.before.index.date == self.before.index[-1].date()]
        path.write_text('Datetime,open,high,low,close,volume\n' + ''.join(f'{t.isoformat()},{r.open},{r.high},{r.low},{r.close},{r.volume}\n' for t, r in last.iterrows()))

    def prices(self, k, near=12):
        "Trades by price so far, near the last one."
        px, side, size = np.round(100*self.ticks.trades.px[:k + 1]).astype(int), self.side[:k + 1], self.ticks.trades.size[:k + 1]
        ok = abs(px - px[-1]) <= near
        rows = []
        for p in np.unique(px[ok]):
            at = px == p
            rows.append([p/100, *(v for o in (1, -1, 0) for v in (int((side[at] == o).sum()), float(size[at][side[at] == o].sum())))])
        return rows


@cache
def told(): return Told()


def speak(folder, start='10:45', speed=1., hz=5., clock=None):
    "Publish the session from a moment on, for ever: at its end the last second is repeated."
    day, clock = told(), clock or RealClock()
    h, m = map(int, start.split(':'))
    s0 = ((h*60 + m) - 570)*60.
    day.write_before(folder)
    with Publisher(folder, day.provenance) as pub:
        for kind, body, at in day.past(int(s0//60) - 1): pub.publish(kind, body, at)
        for m in day.at(s0): pub.publish(*m)
        print('speaking', flush=True)
        begun, done = clock.monotonic(), int(s0//60)
        for n in range(10**9):
            if (wait := begun + n/hz - clock.monotonic()) > 0: time.sleep(wait)
            s = min(s0 + speed*(clock.monotonic() - begun), 390*60 - 1)
            while done < int(s//60):
                for m in day.at_minute(done): pub.publish(*m)
                done += 1
            for m in day.at(s): pub.publish(*m)


if __name__ == '__main__': speak(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
