"""The day horizons on real prices: better than EWMA and log-HAR, nothing from later days, and what too little history does."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.core import DataError
from spyresearch.models.baselines import EwmaDiurnal, Har
from spyresearch.models.daily import LEAST, Daily, ahead, history, lessons, measures
from spyresearch.models.folds import folds
from spyresearch.models.forecaster import Targets, load
from spyresearch.models.metrics import pinball_bp, skill_pct
from spyresearch.models.targets import day_returns
from spyresearch.models.windows import Panel, day_table

COLUMNS = ['logrv_5', 'logrv_15', 'logrv_30', 'logrv_60', 'logrv_today', 'logrv_d1', 'logrv_d5', 'logrv_d22', 'log_on2', 'logdiur_5', 'logdiur_15', 'logdiur_30', 'logdiur_60', 'logdiur_rest']


@pytest.fixture(scope='module')
def paid(shared):
    d = pd.read_csv(shared('spy_dividends.csv'))
    return {pd.Timestamp(a).date(): float(b) for a, b in zip(d.Date, d.Dividend)}


@pytest.fixture(scope='module')
def panel(shared, paid):
    bars = read_bars(shared('spy_1min.parquet'))['2023-11-06':'2025-12-31']
    return Panel.from_bars(bars, paid, 'file', COLUMNS, daily=pd.read_parquet(shared('spy_daily.parquet')))


@pytest.fixture(scope='module')
def closes(panel):
    "One origin at 11:30 and one at the close of every session; log-HAR wants to learn within the day too."
    return of_days(panel, np.arange(len(panel)))
def of_days(panel, day): return panel.windows(np.repeat(day, 2), np.stack([np.full(len(day), 119), panel.n[day] - 1], 1).ravel())


def walked(make, w, blocks):
    t, out = Targets.of(w), []
    for b in blocks:
        old = w.day < b.start
        out.append(make().fit(w[old], t[old].only(b.teaches(w.day[old]))).quantiles(w[b.scores(w.day)]))
    return np.concatenate(out)[1::2, 5:]


def test_it_beats_ewma_and_har_at_every_horizon(panel, closes):
    "What the closes of 2024-02 to 2025-12 say; log-HAR and EWMA learn from two origins a day here; their day horizons rest on the closes alone."
    blocks = folds(panel.days, refit=84); y = Targets.of(closes).y[2*blocks[0].start + 1::2, 5:]
    q = {o.name: walked(o, closes, blocks) for o in (Daily, Har, EwmaDiurnal)}
    for j in range(4):
        loss = {k: pinball_bp(y[:, j], v[:, j]) for k, v in q.items()}
        assert skill_pct(loss['daily'], loss['ewma_diurnal']) > 2.5 and skill_pct(loss['daily'], loss['har']) > .5, j


def test_the_panels_days_and_the_files_are_the_same_market(panel, shared, paid):
    bars, place = history(panel); table = day_table(pd.read_parquet(shared('spy_daily.parquet')), paid)
    assert len(bars) == (table.index <= panel.days[-1]).sum() and list(bars.index[place]) == panel.days
    gap = abs(np.log(bars.close/table.close.reindex(bars.index))); assert gap.quantile(.95) < 1e-4
    np.testing.assert_allclose(measures(bars)[2].to_numpy()[place[1:]], day_returns(panel)[1:], atol=1e-12)


def test_later_daily_bars_change_nothing(panel, closes):
    early = panel.days_upto(200); wild = panel.daily.copy(); late = np.array([d > early.days[-1] for d in wild.index]); wild.loc[late, ['open', 'high', 'low', 'close']] *= 2
    a, b, c = (lessons(p)[0] for p in (early, replace(early, daily=wild), panel))
    np.testing.assert_array_equal(a, b); np.testing.assert_array_equal(a, c[:len(a)])


def test_labels_that_have_not_ripened_do_not_teach(panel, closes):
    block = folds(panel.days)[3]; t = Targets.of(closes); old = closes.day < block.start
    told = t[old].only(block.teaches(closes.day[old])); cut = panel.days_upto(block.start)
    moved = replace(cut, **{o: getattr(cut, o).copy() for o in ('open', 'high', 'low', 'close')})
    for o in ('open', 'high', 'low', 'close'): getattr(moved, o)[block.start - 4:] *= 1.1
    a, b = (Daily().fit(p.windows(closes.day[old], closes.minute[old]), told) for p in (cut, moved))
    for k in a.params: np.testing.assert_array_equal(a.params[k], b.params[k], err_msg=k) if k.startswith(('days_scale', 'days_shapes')) else None


def test_too_little_history_leaves_har_and_says_so(panel, closes, tmp_path):
    few = replace(panel, daily=panel.daily[-(LEAST - 100):]); w = of_days(few, np.arange(len(few))); t = Targets.of(w)
    m, har = Daily().fit(w, t), Har().fit(w, t)
    np.testing.assert_array_equal(m.quantiles(w), har.quantiles(w)); np.testing.assert_array_equal(m.sigma(w), har.sigma(w))
    assert f'{LEAST} are needed' in m.notes['days'] and m.answered(w).why[1::2].str.contains('har answers').all()
    assert load(m.save(tmp_path)).notes['days'] == m.notes['days']


def test_a_close_after_a_hole_is_hars_and_the_next_its_own(panel, closes):
    at = 300; m, hole = Daily().fit(closes, Targets.of(closes)), panel.days[at]
    keep = np.arange(len(panel)) != at; gone = replace(panel, days=[d for d in panel.days if d != hole], daily=panel.daily[[d != hole for d in panel.daily.index]],
        **{o: getattr(panel, o)[keep] for o in ('x', 'open', 'high', 'low', 'close', 'volume', 'n', 'dividend')})
    w = gone.windows(np.arange(at - 1, at + 3), gone.n[at - 1:at + 3] - 1)
    np.testing.assert_array_equal((m.answered(w).why != ''), [False, True, False, False])
    filled = replace(gone, daily=panel.daily); assert (m.answered(filled.windows(w.day, w.minute)).why == '').all()


def test_the_calendar_is_the_same_whenever_it_is_asked(panel):
    np.testing.assert_array_equal(ahead(panel.days)[:200], ahead(panel.days[:200]))


def test_daily_bars_out_of_order_are_refused(panel, shared):
    with pytest.raises(DataError, match='not in order'): day_table(pd.read_parquet(shared('spy_daily.parquet'))[::-1])
