"""The record of offers: nothing later than its moment is seen, outcomes ripen a session later, and no chain means no record."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from made import quotes_at as priced
from spyresearch.models.experiment import evaluate
from spyresearch.models.targets import known_close
from spyresearch.models.races import forecast_at
from spyresearch.models.touch import Touch
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.trade import desk
from spyresearch.trade.clock import learn_clock
from spyresearch.trade.costs import Costs
from spyresearch.trade.shadow import dividends_of
from spyresearch.trade.signals import unoffered
from spyresearch.tws.market import demo_tape


def quotes_at(now, spot, clock, daily=.006): return priced(now, spot, clock, daily, 7.)


@pytest.fixture(scope='module')
def market():
    tape = demo_tape(days=85); panel = Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), 'simulated:demo'); ev = evaluate(panel, 'har,const')
    d = len(panel) - 2; s, px = session(panel.days[d]), known_close(panel)[d]; clock = learn_clock(panel, s.open.to_pydatetime(), dividends_of(panel))
    chain = pd.concat([quotes_at(s.open + pd.Timedelta(minutes=m + 1), px[m], clock) for m in range(120, s.n_minutes - 1)])
    return panel, ev, d, chain, clock


@pytest.fixture(scope='module')
def record(market):
    panel, ev, d, chain, _ = market
    return desk.on_record(panel, ev, lambda day: chain if day == panel.days[d] else None)


def test_every_moment_with_a_chain_is_on_record_and_none_without(market, record):
    panel, ev, d, chain, _ = market
    assert len(record) > 10 and {o.day for o in record.moments} == {d} and all((o.minute + 1) % desk.EVERY == 0 and o.minute >= 120 for o in record.moments)
    assert desk.on_record(panel, ev, lambda day: None) is None and desk.on_record(panel, ev, lambda day: chain.iloc[:0]) is None
    holes = chain[abs(chain.index.minute % 30 - 15) < 5]; some = desk.on_record(panel, ev, lambda day: holes if day == panel.days[d] else None)
    assert 0 < len(some) < len(record) and {o.minute for o in some.moments} < {o.minute for o in record.moments}


def test_a_moment_is_the_same_when_the_day_ends_there(market, record):
    "Bars and quotes after the moment are gone, and the forecasts with them: the offer does not change."
    panel, ev, d, chain, clock = market; w = panel.windows(); sigma = forecast_at(ev, w); old = w.day < d; touch = Touch().fit(w[old], sigma[old])
    for o in record.moments[::4]:
        at = o.look.at; rows = np.flatnonzero((w.day == d) & (w.minute == o.minute))
        gone = {k: np.where((np.arange(len(panel))[:, None] > d) | (np.arange(len(panel))[:, None] == d) & (np.arange(390)[None] > o.minute), np.nan, getattr(panel, k)) for k in ('open', 'high', 'low', 'close')}
        cut = replace(panel, **gone); blind = np.where((w.day > d)[:, None] | (w.day == d)[:, None] & (w.minute > o.minute)[:, None], np.nan, sigma)
        again, = desk.day_moments(cut, d, rows, w.minute, blind, chain[chain.index <= at], touch, clock, Costs())
        assert again.offer == o.offer and again.look.iv_ratio == o.look.iv_ratio and [f for f, _ in again.look.finds] == [f for f, _ in o.look.finds]


def test_the_shadow_is_what_was_followed(record):
    s = record.shadow; m = [o for o in record.moments if o.offer]
    assert len(s) == len(m) and (s.ripe == s.day + 1).all() and (s.start < s.end).all() and (np.diff(s.start) > 0).all()
    assert np.array_equal(s.net, [o.outcome.net_ret for o in m], equal_nan=True) and np.allclose(s.score, [o.offer.p_win for o in m])
    assert all(np.isnan(o.outcome.net_usd) or o.outcome.entry_px <= o.offer.limit_usd + 1e-9 for o in m)
    assert np.isfinite(s.net).sum() >= 3 and set(s.status[np.isfinite(s.net)]) <= {'target', 'stopped', 'timed_out'}


def test_what_is_issued_on_an_offer_is_followed_like_it_and_withdrawn_for_more(market, record):
    "As in a live run: a ticket whose lower bound no longer pays at the spread of now is gone before it is bought."
    panel, *_ = market; o = next(o for o in record.moments if o.offer and o.offer.trigger_px and o.outcome.status != 'withdrawn'); t = desk.plan_of(o.offer, o.look.at, panel.provenance)
    assert repr(record.follow(t, o)) == repr(o.outcome)
    gone = record.follow(replace(t, ev_low_usd=.5, quote_bid=1., quote_ask=1.005), o); assert (gone.status, gone.why, gone.entry_at) == ('withdrawn', 'below break-even', None)


def test_what_a_live_run_did_not_hear_withdraws_what_was_issued_and_a_halt_offers_nothing(market, record):
    "The walk over a recorded day reads the notes of that day: an offer is still followed on the bars, the ticket on what was known then."
    panel, ev, d, chain, _ = market; m = pd.Timedelta(minutes=1)
    o = next(o for o in record.moments if o.offer and o.offer.trigger_px and o.outcome.status != 'withdrawn' and (o.outcome.entry_at is None or o.outcome.entry_at > o.look.at + 2*m)); t = desk.plan_of(o.offer, o.look.at, panel.provenance)
    n = next(x for x in record.moments if x.offer and x.look.at != o.look.at); few = chain[(chain.index >= o.look.at - m) & (chain.index <= o.offer.trigger_until + m) | (abs(chain.index - n.look.at) <= m)]
    def heard(day): return few if day == panel.days[d] else None
    heard.mute = tuple(sorted([((o.look.at + k*m).value, o.look.at.value, 'feed stale') for k in (2, 3, 4)] + [(n.look.at.value, n.look.at.value, 'halted')]))
    again = desk.on_record(panel, ev, heard); gone = again.follow(t, o); assert (gone.status, gone.why, gone.since) == ('withdrawn', 'feed stale', o.look.at + 2*m) and record.follow(t, o).why != 'feed stale'
    mine = {x.look.at: x for x in again.moments}; halted = mine[n.look.at]; assert halted.offer is None and halted.look.faults['halted'] > 50 and unoffered(halted) == ('halted',) and mine[o.look.at].offer == o.offer


def test_the_record_is_the_same_again(market, record):
    panel, ev, d, chain, _ = market
    again = desk.on_record(panel, ev, lambda day: chain if day == panel.days[d] else None)
    assert [o.offer for o in again.moments] == [o.offer for o in record.moments]


def told(r): return [(o.day, o.minute, o.offer, repr(o.outcome), o.look.at, o.look.px, o.look.iv_ratio, o.look.faults) for o in r.moments]


@pytest.fixture
def folder(market, tmp_path):
    "The chain of the market's day in a data folder, as the recorder writes it."
    from spyresearch.tws.chain import COLUMNS, _log
    panel, _, d, chain, _ = market; log = _log(tmp_path/'original_data'/'chain')
    log.append(panel.days[d], [(t.isoformat(), *r) for t, *r in chain.assign(status='ok').reindex(columns=COLUMNS).itertuples()]); log.close()
    return desk.Chains(tmp_path)


def test_what_was_found_is_kept_and_counts_while_nothing_under_it_has_changed(market, record, folder, monkeypatch):
    panel, ev, d, *_ = market; first = desk.on_record(panel, ev, folder); looks, real = [], desk.look
    monkeypatch.setattr(desk, 'look', lambda *a, **k: looks.append(1) or real(*a, **k))
    def run(p=panel, e=ev, costs=Costs()): looks.clear(); return told(desk.on_record(p, e, folder, costs)), len(looks)
    n = len(first); assert told(first) == told(record) and run() == (told(first), 0)
    assert run(costs=Costs('fixed'))[1] == n and run() == (told(first), n) and run() == (told(first), 0)
    high = panel.high.copy(); high[d, 300] += 5; assert run(replace(panel, high=high))[1] == n
    paid = panel.dividend.copy(); paid[d + 1] = .5; assert run(replace(panel, dividend=paid))[1] == n
    later = panel.close.copy(); later[d + 1, 100:] += .01; run(); assert run(replace(panel, close=later))[1] == 0 # what came after a session changes nothing of it
    monkeypatch.setattr(desk, 'code_hash', lambda: 'another'); assert run()[1] == n
    kept = folder.file(panel.days[d]); kept.write_text(kept.read_text()[:500]); assert run() == (told(first), n)
    path = folder.root/'original_data'/'chain'/f'{panel.days[d]}.csv'; path.write_text('\n'.join(path.read_text().split('\n')[:-3]) + '\n'); assert run()[1] == n
    path.unlink(); assert desk.on_record(panel, ev, folder) is None


def test_kept_offers_are_grounds_enough(market, folder):
    "A ticket on a kept offer has its grounds, cell by cell."
    panel, ev, d, *_ = market; desk.on_record(panel, ev, folder); r = desk.on_record(panel, ev, folder); o = next(o for o in r.moments if o.offer)
    b = r.why(o); assert b['day'] == str(panel.days[d]) and b['minute'] == o.minute and o.offer.con_id in b['rows']['con_id'] and b['px'] == o.look.px and not o.look.finds


def test_from_quotes_that_are_served_again_no_head_learns(market):
    "What was offered on a replayed chain is listed with its outcome, and is no evidence."
    panel, ev, d, chain, _ = market; r = desk.on_record(replace(panel, provenance='replay:chains'), ev, lambda day: chain if day == panel.days[d] else None)
    assert any(o.outcome and np.isfinite(o.outcome.net_usd) for o in r.moments) and np.isnan(r.shadow.net).all() and np.isnan(r.shadow.up).all()
