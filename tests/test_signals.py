"""What the signal floor promises, on synthetic records where the truth is known: more seeds than a notebook should run."""
import json
from datetime import date, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.models.confidence import Evidence, Gate, Rule, STAKES, fit_platt, judge, passed
from spyresearch.models.direction import MINUTE_NAMES
from spyresearch.models.windows import Panel
from spyresearch.sessions import MINUTES, session, sessions
from spyresearch.trade import intraday
from spyresearch.trade.record import on_record, record
from spyresearch.trade.shadow import share_outcomes
from spyresearch.trade.track import NOTHING, sized
from spyresearch.trade.tickets import COLUMNS, FIELDS, Outcome, content_id, first_exit, issue, line, row

DAY = date(2024, 1, 2)


def live(seed, p_top, days=160, a_day=1, same=False):
    "A gate fed night by night, `p_top` the hit rate of the upper two fifths; what it said of a top score each night."
    rng, gate, said = np.random.default_rng(seed), Gate(), []
    for d in range(days):
        rank = rng.random(a_day); luck = rng.random(1).repeat(a_day) if same else rng.random(a_day)
        win = (luck < np.where(rank >= .6, p_top, .5)).astype(float)
        at = d*a_day + np.arange(a_day)
        gate.learn(DAY + timedelta(d), rank, at, at + 1, win)
        said.append(judge(gate, .99, .99, .5))
    return said


def test_without_an_edge_the_gate_hardly_ever_speaks():
    "At most alpha of coins are ever published, in any of 160 nightly looks; the margin makes it rarer."
    assert sum(any(v.ok for v in live(s, .5)) for s in range(60)) <= 6


def test_outcomes_of_one_day_count_as_one():
    "Ten forecasts a day that all come true or fail together carry the evidence of one."
    assert sum(any(v.ok for v in live(s, .5, days=100, a_day=10, same=True)) for s in range(30)) <= 3


def test_a_true_edge_is_found_and_its_rate_lies_in_the_interval():
    last = [live(s, .75, days=220)[-1] for s in range(20)]
    assert sum(v.ok for v in last) >= 18
    assert sum(v.p_lower <= .75 <= v.p_upper for v in last if v.ok) >= 17
    assert np.mean([v.hit for v in last if v.ok]) == pytest.approx(.75, abs=.03)


def test_bounds_hold_at_all_times_at_once():
    "The truth leaves the running interval in at most 2 alpha of histories, whatever the rate."
    for p in (.3, .52, .75):
        left = 0
        for seed in range(60):
            rng, e, out = np.random.default_rng(seed), Evidence(), False
            for x in (rng.random(120) < p).astype(float):
                lower, upper = e.add(x).bounds(.05)
                out |= not lower <= p <= upper
            left += out
        assert left <= 9, f'{left} of 60 left at {p}'


@given(st.lists(st.sampled_from([0., .25, .5, 1.]), min_size=1, max_size=60), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_more_doubt_and_more_losses_lower_the_bound(xs, more):
    e, worse = Evidence(), Evidence()
    for x in xs: e.add(x); worse.add(x)
    for _ in range(more): worse.add(0.)
    assert e.bounds(.01)[0] <= e.bounds(.1)[0] <= np.mean(xs) + 1e-9
    assert worse.bounds(.1)[0] <= e.bounds(.1)[0]


def test_the_ladders_agree_with_mapie():
    "Wealth read as a p-value: MAPIE's fixed-sequence testing accepts the same thresholds."
    from mapie.risk_control.fwer_control import FWERFixedSequenceTesting
    differ = 0
    for seed in range(12):
        rng, gate = np.random.default_rng(seed), Gate(Rule(ladders=((.2, .3, .4, .5, .6),), least=1, recent=10**6))
        for d in range(150):
            rank = rng.random(1); gate.learn(DAY + timedelta(d), rank, [d], [d + 1], (rng.random(1) < np.where(rank > .6, .72, .5))*1.)
        need = .53
        wealth = [np.exp(b.evidence._won[:, int(1000*need) - 1]).mean() for b in gate.buckets]
        theirs = FWERFixedSequenceTesting(n_starts=1).run(np.minimum(1, 1/np.array(wealth)), .1)
        ours = [i for i, b in enumerate(gate.buckets) if b in passed(gate, need)]
        differ += list(theirs) != ours
    assert differ == 0 and len(STAKES) <= 10


def test_calibration_never_outruns_the_record():
    "On coin tosses, whatever the model shouts, 300 outcomes leave the calibrated probability near one half."
    worst = []
    for seed in range(40):
        rng = np.random.default_rng(seed); p = rng.uniform(.05, .95, 300)
        worst.append(abs(fit_platt(p, rng.random(300) < .5)(.95) - .5))
    assert np.mean(worst) < .06 and max(worst) < .2


def market(D, seed, gaps=0):
    rng = np.random.default_rng(seed); days = sessions(date(2025, 11, 20), date(2026, 3, 31))[:D]
    n = np.array([session(d).n_minutes for d in days])
    close = np.round(600*np.exp(np.cumsum(.0008*rng.standard_t(4, (D, MINUTES)), 1)), 2)
    opened = np.round(np.c_[np.full(D, 600.), close[:, :-1]] + .01*rng.integers(-2, 3, (D, MINUTES)), 2)
    high, low = np.maximum(opened, close) + np.round(.3*rng.random((D, MINUTES)), 2), np.minimum(opened, close) - np.round(.3*rng.random((D, MINUTES)), 2)
    blank = (np.arange(MINUTES) >= n[:, None]); blank |= (rng.random((D, MINUTES)) < gaps) & (np.arange(MINUTES) % 7 == 3)
    names = [*MINUTE_NAMES, 'logrv_60', 'logrv_d22']
    x = rng.normal(size=(D, MINUTES, len(names))).astype(np.float32)*.1
    return Panel(days, names, x, *(np.where(blank, np.nan, o) for o in (opened, high, low, close, close)), n=n, dividend=np.zeros(D), provenance='simulated:test')


@pytest.mark.parametrize('seed', range(3))
def test_all_intraday_outcomes_at_once_equal_one_by_one(seed):
    "The vectorised share trades against `first_exit`, half day included, where no bar is missing."
    g = market(8, seed); l = line(g); rng = np.random.default_rng(seed)
    day, minute = rng.integers(0, 8, 150), rng.integers(14, 370, 150)
    minute = np.minimum(minute, g.n[day] - 18)
    up, down = .0002 + .004*rng.random(150), -.0002 - .004*rng.random(150)
    for hold in (30, 60):
        for side in (1, -1):
            fast, how = share_outcomes(g, day, minute, hold, up, down, side)
            for i in range(150):
                at = session(g.days[day[i]]).open + pd.Timedelta(minutes=int(minute[i]) + 1)
                slow, status = intraday.share_outcome(l, l.place(at) - 1, intraday.time_stop(at, hold), up[i], down[i], side)
                assert (how[i], round(fast[i], 12)) == (status, round(slow, 12))


@given(st.integers(0, 10**6), st.floats(.0005, .02), st.floats(.0005, .02))
@settings(max_examples=30, deadline=None)
def test_an_exit_is_never_better_than_its_bar(seed, up, down):
    l = line(market(2, seed % 7, gaps=.3)); rng = np.random.default_rng(seed)
    entry = int(rng.integers(0, len(l.at) - 50)); last = entry + 40; px = l.open[entry]
    k, out, how = first_exit(l, entry, last, px*(1 + up), px*(1 - down))
    assert entry <= k <= last and out <= max(l.high[k], l.open[k]) + 1e-9
    assert {'target': out == px*(1 + up), 'stopped': out <= px*(1 - down), 'timed_out': out == l.open[last]}[how]
    before = slice(entry, k)
    assert (l.low[before] > px*(1 - down)).all() and (l.high[before] < px*(1 + up)).all()


def test_a_ticket_survives_json_and_keeps_its_id():
    at = pd.Timestamp('2026-03-31 16:00', tz='America/New_York')
    t = issue(kind='swing', side='buy', provenance='replay:test', issued_at=at, valid_from=at, valid_until=at, model='m', declared_p=.55, p_calibrated=.6, p_lower=.55,
              breakeven_p=.5, ev_low_usd=np.float64(3.1), n_bucket=np.int64(80), target_px=float('nan'))
    back = json.loads(json.dumps(row(t), allow_nan=False))
    assert list(back) == COLUMNS and back['target_px'] is None and back['id'] == content_id(t) and len(back['id']) == 12
    assert [len(o) for o in FIELDS.values()] == [22, 8, 22, 1]


def test_two_runs_a_session_apart_leave_one_ticket_a_decision(tmp_path):
    "The second run's window has slid, so its walk draws yesterday's ticket otherwise, and adds one of the day before: neither is put on record."
    g = market(12, 3)
    def walked(d, target, *older): # as a walk gives it: everything re-simulated, the newest word in `current`
        px, at, mins = float(np.round(g.close[d, g.n[d] - 1], 2)), lambda k: session(g.days[d + k]).open, lambda m: pd.Timedelta(minutes=m)
        t = issue(kind='swing', side='buy', provenance='simulated:test', issued_at=session(g.days[d]).close, valid_from=at(1), valid_until=at(1) + mins(60), model='m', declared_p=.55, p_calibrated=.6, p_lower=.55,
                  breakeven_p=.5, ev_low_usd=3., n_bucket=80, hit_bucket=.6, size_frac=.1, max_loss_usd=900., entry_from=at(1), entry_until=at(1) + mins(60), entry_px_low=px*.9, entry_px_high=px*1.1,
                  exit_from=at(2), exit_until=at(2) + mins(30), target_px=px*target, stop_px=px*.5)
        return SimpleNamespace(tickets=[(o, Outcome('armed')) for o in (*older, t)], current=[t])
    def run(d, signals): return record(tmp_path, signals, session(g.days[d]).close, g.days_upto(d + 1))
    first, again, other = (sized(walked(5, o).current[0], NOTHING) for o in (2., 2.1, 2.2)) # nothing proven yet: size zero
    assert [o.id for o in run(5, walked(5, 2.))] == [first.id]
    assert [o.id for o in run(5, walked(5, 2.1))] == [first.id] != [again.id]
    stands, = run(6, walked(6, 2., walked(4, 2.).current[0], other))
    assert (stands.id, stands.status) == (first.id, 'filled') and len(on_record(tmp_path)) == 1
    second, = run(7, walked(7, 2., other)) # sold on the seventh's morning: the next decision is free
    assert [o.id for o in on_record(tmp_path)] == [first.id, second.id] and second.issued_at == session(g.days[7]).close
    assert len({(o.kind, o.issued_at) for o in on_record(tmp_path)}) == 2
