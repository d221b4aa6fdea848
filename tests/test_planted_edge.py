"""Silence must not be the only answer: a market with a known, learnable edge gets tickets, the same market without it gets none."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from spyresearch.bars import read_bars
from spyresearch.models.confidence import Evidence
from spyresearch.models.experiment import evaluate
from spyresearch.models.windows import Panel
from spyresearch.sessions import minutes, session
from spyresearch.trade.explain import explained
from spyresearch.trade.record import record
from spyresearch.trade.risk import desk_blocks
from spyresearch.trade.signals import honesty, judged, published, walk
from spyresearch.trade.tickets import Outcome, REASONS, Ticket
from spyresearch.tws.market import demo_tape
from spyresearch.tws.replay import spawn


def signals_of(edge, seed, days):
    tape = demo_tape(seed, days=days, edge=edge)
    panel = Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), f'simulated:{tape.name}')
    return walk(panel, evaluate(panel, members='har')), panel


@pytest.fixture(scope='module')
def found(): return signals_of(1., 7, 400)


def test_a_planted_edge_is_published(found):
    "After a fall the next session drifts by one volatility: swing tickets, made late enough to have been earned."
    signals, panel = found
    said, t = published(signals), signals.frame()
    assert said['ended'] >= 30 and set(t['kind']) == {'swing'} and set(t['side']) == {'buy'}
    assert t['issued_at'].iloc[0].date() > panel.days[150]


def test_its_realised_rate_lies_in_the_declared_interval(found):
    said, t = published(found[0]), found[0].frame()
    assert said['lower'] <= said['realised'] <= said['upper'] and said['net_bp'] > 0
    assert (t['declared_p'] <= np.minimum(t['p_calibrated'], t['p_lower'])).all()
    assert (t['p_lower'] >= t['breakeven_p'] + found[0].rule.margin).all() and (t['ev_low_usd'] > 0).all()


def test_tickets_of_a_simulated_market_say_so(found):
    t = found[0].frame()
    assert t['provenance'].str.startswith('simulated:').all() and t['id'].is_unique
    assert t['size_frac'].between(0, 1).all() and (t['stop_px'] < t['entry_px_low']).all() and (t['entry_px_high'] < t['target_px']).all()


def test_one_swing_at_a_time(found):
    ended = [o.exit_at or t.entry_until for t, o in found[0].tickets]
    issued = [t.issued_at for t, _ in found[0].tickets]
    assert all(end <= at for end, at in zip(ended, issued[1:]))


def test_what_was_said_does_not_depend_on_what_came_later(found):
    signals, panel = found
    early = panel.days_upto(370)
    short = walk(early, evaluate(early, members='har'))
    until = short.silences['at'].max()
    pd.testing.assert_frame_equal(short.silences, signals.silences[signals.silences['at'] <= until].reset_index(drop=True))
    assert [t for t, _ in short.tickets] == [t for t, _ in signals.tickets if t.issued_at <= until] and len(short.tickets) > 20


@pytest.mark.parametrize('seed', [7, 1, 2])
def test_without_the_edge_there_is_silence(seed):
    signals, _ = signals_of(0., seed, 290)
    assert not signals.tickets
    reasons = signals.silences['reasons'].str.split('; ').explode()
    assert set(reasons) <= set(REASONS) and {'below break-even', 'not calibrated'} <= set(reasons)


def test_intraday_is_silent_on_bars_and_says_how_far_it_was(found):
    "Every intraday silence names the missing quotes, and carries the odds in shares once there is a model."
    s = found[0].silences.query('kind == "option"')
    assert s['reasons'].str.contains('no option quotes').all()
    full = s[~s['reasons'].str.contains('no model|not calibrated')]
    assert len(full) > 1000 and full[['p_calibrated', 'breakeven_p', 'p_lower', 'n_bucket']].notna().all(axis=None)


def test_real_prices_give_silence_with_true_reasons(shared):
    "200 sessions of SPY: no swing edge is certified in so short a time, and none is claimed."
    bars = read_bars(shared('spy_1min.parquet'))
    day = pd.Index(bars.index.date)
    last = sorted({d for d in day if str(d) < '2026-01-01'})[-200:]
    panel = Panel.from_bars(bars[day.isin(last)], provenance='replay:spy_1min')
    signals = walk(panel, evaluate(panel, members='har'))
    assert not signals.tickets and len(signals.current) == 6
    table = honesty(signals.shadow)
    assert 45 < table.loc['30', 'hit'] < 55 and abs(table.loc['30', 'auc'] - .5) < .05   # SPY's own bars do not tell direction
    assert judged(signals)['30']['signals']['n'] == 0


def whole_run(folder, edge, days):
    "`spy run` against a replay server, with the forecasters whose tickets the tests above look at (all of them: `spy first-hour --whole`): the tickets in its report folder, and what it printed."
    with spawn(seed=7, edge=edge, days=days) as (host, port):
        done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'run', '--tws', f'{host}:{port}', '--days', str(days), '--members', 'har', '--data', str(folder/'data'), '--reports', str(folder/'reports')],
                              capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (folder/'reports').rglob('tickets.csv')
    return pd.read_csv(path), done.stdout, (path.parent/'report.html').read_text(encoding='utf-8')


def test_the_whole_run_finds_the_planted_edge(tmp_path):
    "Socket, day files, models, gate, report: tickets come out, and their realised rate lies in their interval."
    t, said, page = whole_run(tmp_path, 1., 400)
    ended = t[t['win'].notna()]
    def upper(o): # hits and misses weigh the same in any order, so the interval can be told from the ticket
        e = Evidence(); hits = round(o.n_bucket*o.hit_bucket)
        for won in [1]*hits + [0]*(int(o.n_bucket) - hits): e.add(won)
        return e.bounds(.02)[1]
    assert len(ended) >= 20 and t['provenance'].str.startswith('simulated:').all()
    assert 10 <= page.count('aria-label="ticket ') <= 12 and page.count(': at its ') >= 10 and len(page) < 6_000_000 # the newest, each with its picture
    assert ended['p_lower'].mean() <= ended['win'].mean() <= ended.apply(upper, axis=1).mean()


def test_the_whole_run_is_silent_without_it(tmp_path):
    t, said, page = whole_run(tmp_path, 0., 160)
    assert t.empty and 'No edge' in said and 'nothing to look back on' in page and 'aria-label="ticket ' not in page


def test_a_ticket_is_explained_by_what_was_kept_with_it(found, tmp_path):
    "From the demo's own bars to every number of a ticket on record: nothing comes out otherwise, and a changed file is seen."
    signals, panel = found
    d = max(panel.days.index(t.issued_at.date()) for t, _ in signals.tickets)
    early = panel.days_upto(d + 1); now = walk(early, evaluate(early, members='har'), desk=[])
    (tmp_path/'daily_data').mkdir()
    for i in range(d - 40, d + 1):
        ix = minutes(early.days[i]); df = pd.DataFrame({o: getattr(early, o)[i][:len(ix)] for o in ('open', 'high', 'low', 'close', 'volume')}, index=ix)
        df.to_csv(tmp_path/'daily_data'/f'{early.days[i]}.csv', index_label='Datetime')
    t, = [o for o in record(tmp_path/'journal', now, session(early.days[d]).close, early) if isinstance(o, Ticket)]
    text, differs = explained(tmp_path/'journal', t.id[:6])
    assert differs == [] and t.size_frac == 0. and 'Unproven' in text[0] and sum('= again' in o for o in text) > 30
    path = tmp_path/'daily_data'/f'{early.days[d]}.csv'; path.write_text(path.read_text()[:-30])
    assert any('data' in o for o in explained(tmp_path/'journal', t.id)[1])


def test_the_newest_close_is_decided_with_the_positions_on_record(found):
    "A position that the walk would have had forbids nothing to an owner who has none, and one that he has forbids a ticket."
    signals, panel = found
    t, o = max(signals.tickets, key=lambda p: p[0].issued_at)
    blocks = [desk_blocks(desk, t.issued_at) for desk in ([], [(t, Outcome('filled', taken=True))])]
    assert blocks == [(), ('position already open',)]
