"""A session on which SPY goes ex-dividend, live and from history: what it pays is told after its close, until then it is unknown, and the certificate holds, words included."""
import asyncio
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from spyresearch.core import FixedClock
from spyresearch.features.prepare import dividends_of, prepare
from spyresearch.live.certify import certify
from spyresearch.live.engine import Engine, of_day
from spyresearch.live.today import Today
from spyresearch.models.champions import keep, promote
from spyresearch.models.experiment import train
from spyresearch.models.windows import Panel
from spyresearch.sessions import minutes, session
from spyresearch.store import DAILY_COLUMNS, Store
from spyresearch.tws.market import demo_tape
from spyresearch.tws.minutes import Minute

EX, ASKED = date(2025, 9, 19), (14, 44, 150, 389) # the day; minutes that are thought about


def told(tape, upto):
    "Daily bars up to a day, with the dividends that are told by its evening."
    d = tape.bars['TRADES', '1 day']; d = d[d.index.date <= upto].reindex(columns=DAILY_COLUMNS)
    return d.assign(dividend=[float(tape.dividends.get(o, 0.)) for o in d.index.date]).set_axis(pd.DatetimeIndex([session(o).open for o in d.index.date]).rename('Datetime'))


def write(store, bars, day): b = bars[bars.index.date == day]; store.write_raw(day, b, minutes(day).difference(b.index).strftime('%H:%M').tolist()); return b


@pytest.fixture(scope='module')
def lived(tmp_path_factory):
    "The day through the engine, from a folder of the evening before; then its own evening, and what the source tells by then: (store, engine, what the morning knew)."
    tape = demo_tape(days=145); bars = tape.bars['TRADES', '1 min']; *days, _ = [d for d in sorted(set(bars.index.date)) if d <= EX][-89:]; opens = session(EX).open.to_pydatetime()
    store = Store(tmp_path_factory.mktemp('ex')/'data', 'simulated:demo', FixedClock(opens - timedelta(hours=1)))
    for d in days: write(store, bars, d)
    store.write_daily_bars(told(tape, days[-1])); prepare(store); cut = Panel.from_store(store).days_upto(len(days) - 3)
    promote(store, keep(train(cut, 'har'), cut, {}, store, session(cut.days[-1]).close.to_pydatetime()), at=opens); store.clock = FixedClock(opens)
    morning, today, e = dividends_of(store, EX), Today(store, EX), Engine(store, EX, store.clock); e.prepare(); e.lay_out()
    async def go():
        for i, o in enumerate(bars[bars.index.date == EX].itertuples()):
            today.take(Minute(today.open + 60*i, o.open, o.high, o.low, o.close, o.volume, o.average, o.barCount, False, {})); store.clock.sleep(60)
            if i in ASKED: today.compute(); e.look(today.bars, today.values, i); await e.rest()
    asyncio.run(go()); write(store, bars, EX); store.write_daily_bars(told(tape, EX)); prepare(store)
    return Store(store.root, store.provenance, store.clock), e, morning


def test_the_day_is_the_same_from_history_which_knows_more_by_then(lived):
    store, e, morning = lived; paid = dividends_of(store)[EX]
    assert np.isnan(morning[EX]) and np.isnan(e.mind.growing.base.dividend[-1]) and paid > 1 and e.errors == 0
    c = certify(store, EX); assert c.check().n_forecasts == len(ASKED) and c.n_words >= 6 and any('was not told before its close' in o for o in c.notes), str(c)
    assert {o['lacks'][0] for o in of_day(store.journal/'forecasts.jsonl', EX)} == {'log_on2'} and np.isfinite(Panel.from_store(store).dividend[-1])
