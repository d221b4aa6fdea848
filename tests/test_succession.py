"""Evenings on a market whose habits change: one that does not come and is made up for; then two of `spy live`, one that promotes and rejects, one that takes it back."""
import asyncio
import os
import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from spyresearch.core import SPEED, FixedClock
from spyresearch.features.prepare import prepare
from spyresearch.live.certify import certify
from spyresearch.live.engine import Engine, of_day
from spyresearch.live.infer import serving
from spyresearch.live.learn import WHO, Learner, heeded, summary
from spyresearch.models.champions import keep, pointer, promote, promotions
from spyresearch.models.experiment import MEMBERS
from spyresearch.models.forecaster import Targets
from spyresearch.models.windows import Panel
from spyresearch.sessions import minutes, next_session, session, sessions
from spyresearch.store import Store
from spyresearch.tws.minutes import Minute
from spyresearch.tws.replay import spawn
from spyresearch.tws.tape import Tape

RISES, SITS, LOOK, WILD, FALLS = 8, 18, 38, 52, 58 # sessions: from when every minute gains, the contest begins, its first look and the poisoned one, jumps, the crash
DAYS = sessions(date(2025, 8, 18), date(2025, 11, 7))[:FALLS + 1]; KILLED, ONE, TWO = DAYS[-3:]
CALM, RISE = 3.5e-4, 2.5e-5 # log return: scatter and drift of a minute


def drift(i): return RISE*(0 if i < RISES else 1 if i < SITS else .5 if i < LOOK else 1 if i < WILD else .62 if i < FALLS else -10)


def market(seed=2):
    "Sessions of independent minutes; the scatter of a day sums to nothing, so that its drift is what was planted."
    rng, px, out = np.random.default_rng(seed), 600., []
    for i, d in enumerate(DAYS):
        z = rng.standard_normal((390, 4))/2; z -= z.mean()
        path = px*np.exp(np.cumsum((CALM*(3 if i >= WILD else 1)*z + drift(i)/4).ravel()).reshape(390, 4)); first = np.r_[px, path[:-1, -1]]; px = path[-1, -1]
        out.append(pd.DataFrame(dict(open=first, high=np.maximum(first, path.max(1)), low=np.minimum(first, path.min(1)), close=path[:, -1], volume=1e5, average=path.mean(1), barCount=100.), index=minutes(d)))
    return pd.concat(out).round(2).rename_axis('Datetime')


def at_close(d): return session(d).close.to_pydatetime()


def kept(store, panel, first, stop, poison=1.):
    "A constant forecast of the sessions from `first` to `stop`; poison: its labels multiplied."
    p = panel.days_upto(stop); w = p.windows(); w = w[w.day >= first]; t = Targets.of(w)
    return keep(MEMBERS['const']().fit(w, Targets(poison*t.y, t.logrv + 2*np.log(poison))), p, {}, store, at_close(p.days[-1]), sessions=200)


def broken_off(store, bars, day):
    "The forecasts of a session's first quarter of an hour and a bit; then nothing more is heard of that program."
    e, got, opens = Engine(Store(store.root, store.provenance), day, FixedClock(session(day).open.to_pydatetime())), {}, int(session(day).open.timestamp()); e.prepare()
    async def go():
        for i, o in enumerate(bars[bars.index.date == day].itertuples()):
            if i == 21: return
            got[i] = Minute(opens + 60*i, o.open, o.high, o.low, o.close, o.volume, None, None, False); e.clock.sleep(60); e.look(got, {k: {} for k in got}, i); await e.rest()
    asyncio.run(go())


def live(root, tape, day, begin):
    "`spy live` from a time to the end of the session, and its evening: what it printed."
    with spawn(tape=tape, speed='max', asof=f'{day}T{begin}') as (host, port):
        done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'live', '--tws', f'{host}:{port}', '--data', str(root), '--days', '25', '--once', '--no-options', '--no-report'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **SPEED}, timeout=600)
    assert not done.returncode, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def story(tmp_path_factory):
    "A contest of thirty-eight evenings, and the three days after it: (store, ids, what was printed on the last two, rows before and after each)."
    root = tmp_path_factory.mktemp('story'); bars = market(); tape = Tape('regime', 'simulated', {('TRADES', '1 min'): bars}, drawn=True).save(root/'tape.zip')
    store = Store(root/'data', 'simulated:regime', FixedClock(at_close(DAYS[-4]) + timedelta(hours=1)))
    for d in DAYS[:-3]: store.write_raw(d, bars[bars.index.date == d])
    prepare(store); panel, learner = Panel.from_store(store), Learner(store)
    who = dict(old=kept(store, panel, 0, RISES), new=kept(store, panel, RISES, SITS), poisoned=kept(store, panel, RISES, SITS + 1, 10.)); promote(store, who['old'], 'the first', 'test', at_close(DAYS[SITS - 1]))
    for d in range(SITS, len(panel)):
        for name, when in dict(new=SITS, poisoned=LOOK).items():
            if d == when: assert learner.seat(who[name], DAYS[d - 1], 'a test', at_close(DAYS[d - 1]))
        learner.evening(panel, d, at_close(DAYS[d]))
    broken_off(store, bars, KILLED); said, rows = [], [learner.rows()]
    for day in (ONE, TWO): said.append(live(store.root, tape, day, '15:55')); rows.append(Learner(store).rows())
    return Store(store.root, clock=store.clock), who, said, rows


def of(rows, day): return [(r['kind'], r.get('id')) for r in rows if r['day'] == str(day)]


def test_a_session_that_was_killed_is_scored_before_the_next_one_once(story):
    store, who, said, rows = story; forecasts = of_day(store.journal/'forecasts.jsonl', KILLED)
    assert len(forecasts) == 7 and {o['model'] for o in forecasts} == {who['old']} and of(rows[0], KILLED) == [] and of(rows[1], KILLED) == of(rows[2], KILLED) == [('late', None), ('day', None)]
    late, scored = [r for r in rows[2] if r['day'] == str(KILLED)]; assert f'{KILLED} had no evening' in late['why'] and f'scored at {ONE}' in late['why'] and said[0].count('learning: late') == 1 and 'learning: late' not in said[1]
    assert set(scored['scores']) == {*who.values(), 'served'} and scored['scores']['served']['n'] == [2]*4 and scored['scores'][who['old']]['n'] == [75, 73, 70, 64]
    assert [r['day'] for r in rows[2] if r['kind'] == 'day'] == [str(d) for d in DAYS[SITS:]]


def test_the_challenger_is_promoted_and_the_poisoned_one_rejected_in_one_evening(story):
    store, who, said, rows = story; assert of(rows[1], ONE) == [('day', None), ('drop', who['poisoned']), ('promote', who['new'])] == of(rows[2], ONE)
    _, dropped, promoted = (r for r in rows[1] if r['day'] == str(ONE)); assert {o['model'] for o in of_day(store.journal/'forecasts.jsonl', ONE)} == {who['old']}, 'never within a session'
    assert promoted['facts']['n_days'] == 40 and promoted['facts']['t'] > 1.65 and promoted['from_id'] == who['old'] and dropped['facts']['n_days'] == 20 and dropped['facts']['t'] < -1.65 and 'worse calibrated' in dropped['why']
    assert all(set(promoted['hashes'][who[o]]) == {'data', 'code', 'weights', 'git'} for o in ('old', 'new')) and promoted['hashes'][who['new']]['weights'] != promoted['hashes'][who['old']]['weights']
    assert f"learning: promote of {who['new']}: better by" in said[0] and f"learning: drop of {who['poisoned']}" in said[0]


def test_it_serves_the_next_day_and_an_alarm_takes_it_back(story):
    store, who, said, rows = story; forecasts = of_day(store.journal/'forecasts.jsonl', TWO)
    assert len(forecasts) > 2 and {o['model'] for o in forecasts} == {who['new']} and of(rows[2], TWO) == [('day', None), ('alarm', who['new']), ('rollback', who['old'])]
    _, alarm, back = (r for r in rows[2] if r['day'] == str(TWO)); assert back['from_id'] == who['new'] and alarm['widen'] > 1.5 and set(back['hashes']) == {who['old'], who['new']}
    assert [(o['act'], o['to']) for o in promotions(store)] == [('promote', who['old']), ('promote', who['new']), ('rollback', who['old'])] and {o['who'] for o in promotions(store)[1:]} == {WHO} and pointer(store)['to'] == who['old']
    assert 'learning: alarm of' in said[1] and 'learning: rollback of' in said[1] and '1 promoted, 1 dropped, 1 taken back, 1 alarms' in summary(store)
    morning = next_session(TWO); careful = heeded(store, morning); assert (careful.size, careful.reasons, careful.learns) == (0., ('not calibrated',), False) and heeded(store, TWO).size == 1
    assert serving(store, session(morning).open.to_pydatetime())[0].id == who['old']


def test_the_days_are_the_same_from_history(story):
    store = story[0]
    for day in (KILLED, ONE, TWO): c = certify(store, day, parity=False); assert c.check().n_forecasts > 1, str(c)
