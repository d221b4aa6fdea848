"""Learning on a market whose habits change: a challenger that knows the new ones is promoted, a poisoned one dropped, a promotion that goes wrong taken back, and every act is on record."""
import json
import os
import shutil
import signal
import sys
from datetime import timedelta
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import need

from spyresearch.core import FixedClock, FolderError, ModelError, UsageError
from spyresearch.features.prepare import prepare
from spyresearch.journal import Journal
from spyresearch.live.contest import STOP, caution, matured, scored
from spyresearch.live.infer import Growing
from spyresearch.live.learn import LASTS, WHO, Learner, brought, gains, hashes, seated
from spyresearch.live.worker import MOVES, RATE, Learning, Tuner, Worker, lessons_of, origins_of, teachable
from spyresearch.models import networks
from spyresearch.models.bank import bank
from spyresearch.models.champions import POINTER, keep, load_model, pointer, promote, promotions
from spyresearch.models.experiment import MEMBERS, train
from spyresearch.models.forecaster import Targets
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.market import demo_tape

RISES, FALLS, RISE = 51, 120, 6e-5 # from one session on every minute gains so much, from another on it loses it; log return


@cache
def demo(): return demo_tape(days=170, older=100).bars


def market(days=155):
    "The demo's bars, with a drift in every minute."
    bars = demo()['TRADES', '1 min'].iloc[:, :7].copy(); day = bars.index.normalize(); n = day.unique()
    more = (RISE*(1.*(day >= n[RISES]) - 2.*(day >= n[FALLS]))).cumsum()
    for o in ('open', 'high', 'low', 'close', 'average'): bars[o] = (bars[o]*np.exp(more)).round(4)
    return bars[day < n[days]]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    store, bars = None, market()
    for d, rows in bars.groupby(bars.index.date):
        store = store or Store(tmp_path_factory.mktemp('data'), 'simulated:regime')
        store.write_raw(d, rows)
    prepare(store); panel = Panel.from_store(store)
    store.clock = FixedClock(at_close(panel, len(panel) - 1) + timedelta(hours=1))
    return store, panel


def at_close(panel, d): return session(panel.days[d]).close.to_pydatetime()


def kept(store, panel, name, first, stop, poison=1., lasts=LASTS):
    "A member fitted on sessions `first` to `stop`, kept as of the evening before `stop`; poison: its labels multiplied."
    p = panel.days_upto(stop); w = p.windows(); w = w[w.day >= first]; t = Targets.of(w)
    model = MEMBERS[name]().fit(w, Targets(poison*t.y, t.logrv + 2*np.log(poison)))
    return keep(model, p, {}, store, at_close(p, stop - 1), sessions=lasts)


@pytest.fixture(scope='module')
def story(place):
    "What happened: a champion from before the change, a challenger from after it, a poisoned one later, and the old market again."
    store, panel = place; who = {}; learner = Learner(store)
    who['old'] = kept(store, panel, 'ewma_diurnal', 0, 50, lasts=200); promote(store, who['old'], 'the first', 'test', at_close(panel, 49))
    for d in range(50, len(panel)):
        if d == 76: who['new'] = kept(store, panel, 'ewma_diurnal', RISES, d); assert learner.seat(who['new'], panel.days[d - 1], 'learned since the change', at_close(panel, d - 1))
        if d == 99: who['poisoned'] = kept(store, panel, 'ewma_diurnal', RISES, d, poison=3.); assert learner.seat(who['poisoned'], panel.days[d - 1], 'poisoned', at_close(panel, d - 1))
        learner.evening(panel, d, at_close(panel, d))
    return store, panel, who, learner.rows()


def acts(rows, *kinds): return [(r['kind'], r.get('id'), r['day']) for r in rows if r['kind'] in kinds]


def test_a_change_of_habits_brings_a_promotion_and_poison_a_refusal(story):
    store, panel, who, rows = story; day = [str(d) for d in panel.days]
    (promoted,) = (r for r in rows if r['kind'] == 'promote'); (dropped,) = (r for r in rows if r['kind'] == 'drop')
    assert promoted['id'] == who['new'] and promoted['from_id'] == who['old'] and promoted['facts']['n_days'] == 20 and promoted['facts']['t'] > 1.65
    assert dropped['id'] == who['poisoned'] and dropped['facts']['t'] < -1.65 and 'worse calibrated' in dropped['why'] and 'worst day' in dropped['why']
    shadowed = [r['day'] for r in rows if r['kind'] == 'day' and who['new'] in r['scores'] and r['day'] <= promoted['day']]
    assert len(shadowed) == 20 and all(set(promoted['hashes'][o]) == {'data', 'code', 'weights', 'git'} for o in (who['old'], who['new']))
    assert promoted['hashes'][who['new']]['weights'] != promoted['hashes'][who['old']]['weights'] and dropped['day'] > promoted['day'] > day[RISES]


def test_a_promotion_that_goes_wrong_is_taken_back_and_signals_stop(story):
    store, panel, who, rows = story; (back,) = (r for r in rows if r['kind'] == 'rollback'); alarm = [r for r in rows if r['kind'] == 'alarm'][-1]
    assert back['id'] == who['old'] and back['from_id'] == who['new'] and pointer(store)['to'] == who['old'] and back['day'] == alarm['day']
    late = [str(d) for d in panel.days].index(alarm['day']) - FALLS; assert 0 < late <= 15
    def upto(n): last = [i for i, r in enumerate(rows) if r['kind'] == 'day' and r['day'] > alarm['day']][n]; return caution(rows[:last])
    assert (upto(0).size, upto(0).reasons, upto(0).learns) == (0., ('not calibrated',), False) and upto(0).widen > 1.1 and (upto(STOP).size, upto(STOP).reasons) == (.5, ()) and caution(rows).size == 1
    assert [(o['act'], o['to']) for o in promotions(store)] == [('promote', who['old']), ('promote', who['new']), ('rollback', who['old'])] and {o['who'] for o in promotions(store)[1:]} == {WHO}


def test_what_learning_brought_is_told_for_each_twenty_sessions(story):
    store, panel, who, rows = story; table, words = brought(store)
    days = [r for r in rows if r['kind'] == 'day']; assert table.days.sum() == len(days) and (table.days[:-1] == 20).all()
    assert table.saved_pct[0] == 0 and table.saved_pct.max() > 5 and table.saved_pct.min() < -2, 'it helped while the habits lasted, and harmed when they turned'
    served = [np.mean(r['scores'][r['roles']['champion']]['loss']) for r in days[40:60]]
    assert np.isclose(table.served_bp[2], np.mean(served)) and '1 promoted, 1 dropped, 1 taken back' in words and f'{len(days)} sessions' in words
    (whole,) = gains(rows, len(days)).saved_pct; assert f"lost {abs(whole):.2f} % {'less' if whole >= 0 else 'more'}" in words, 'the sentence and the table measure alike'


def test_an_evening_twice_is_an_evening_once(story):
    store, panel, who, rows = story; d = len(panel) - 1
    assert Learner(store).evening(panel, d, at_close(panel, d)) == [] and len(promotions(store)) == 3


def test_a_model_is_scored_on_labels_that_had_matured(story):
    store, panel, who, rows = story; d = 100; noon = session(panel.days[d]).open.to_pydatetime() + timedelta(hours=2, minutes=30)
    model = load_model(store, who['old'], at_close(panel, d)).model
    known = scored(model, panel, d, noon); cut = scored(model, panel.after(d, 149), d, noon + timedelta(hours=3))
    assert known == cut and known['n'] == [27, 25, 22, 16]
    assert np.isnan(matured(panel, d, np.array([149]), noon)).all() and np.isfinite(matured(panel, d, np.array([144]), noon)).tolist() == [[True, False, False, False]]


def test_a_crash_between_the_act_and_its_row_is_mended(place, tmp_path, story):
    store, panel, who = copy_of(story, tmp_path); learner = Learner(store); n = len(learner.rows())
    promote(store, who['new'], 'won', WHO, at_close(panel, 125)) # and then the power went
    added = Learner(store).evening(panel, len(panel) - 1, at_close(panel, len(panel) - 1))
    assert [(r['kind'], r['id'], 'after a crash' in r['why']) for r in added] == [('promote', who['new'], True)] and len(learner.rows()) == n + 1


def as_it_was(store, rows, changes):
    "Put back what happened, and who served, to an earlier time."
    for path, kept_ in ((store.journal/'learning.jsonl', rows), (store.journal/'promotions.jsonl', changes)): path.unlink(); [Journal(path).append(r) for r in kept_]
    (store.models/POINTER).write_text(json.dumps(changes[-1]))


@pytest.mark.parametrize('lost', ['promote', 'drop', 'alarm', 'rollback'])
def test_a_crash_between_the_scores_and_their_decision_costs_no_look(story, tmp_path, lost):
    "The journal ends after a session's scores, or after its alarm; the next evening decides as that one would have."
    rows = story[3]; store, panel, who = copy_of(story, tmp_path); i = [i for i, r in enumerate(rows) if r['kind'] == lost][-1]
    day, end = rows[i]['day'], i if lost == 'rollback' else max(j for j, r in enumerate(rows[:i]) if r['kind'] == 'day') + 1
    gone = next((r['n'] for r in rows[end:] if 'n' in r), 99); as_it_was(store, rows[:end], [o for o in promotions(store) if o['n'] < gone])
    d = [str(o) for o in panel.days].index(day) + 1; added = Learner(store).evening(panel, d, at_close(panel, d))
    owed = [(r['kind'], r['id']) for r in rows[end:] if r['day'] == day]; n = len(owed)
    assert owed and [(r['kind'], r.get('id'), r['day']) for r in added[:n + 1]] == [(*o, day) for o in owed] + [('day', None, str(panel.days[d]))]
    assert pointer(store)['to'] == {'promote': who['new'], 'rollback': who['old']}.get(owed[-1][0], added[-1]['roles']['champion'])


def copy_of(story, tmp_path):
    store, panel, who, _ = story; shutil.copytree(store.root, tmp_path/'data')
    return Store(tmp_path/'data', clock=store.clock), panel, who


def test_a_full_disk_stops_learning_and_loses_nothing(story, tmp_path, monkeypatch):
    store, panel, who = copy_of(story, tmp_path); (store.journal/'learning.jsonl').unlink(); learner, d = Learner(store), 100
    def full(record): raise FolderError('no space left on device')
    monkeypatch.setattr(learner.journal, 'append', full)
    added = learner.evening(panel, d, at_close(panel, d))
    kinds = [r['kind'] for r in added]; assert 'day' in kinds and len(learner.waiting) == len(added) and not (store.journal/'learning.jsonl').exists()
    monkeypatch.undo(); learner.evening(panel, d + 1, at_close(panel, d + 1))
    assert not learner.waiting and Learner(store).rows()[:len(added)] == added


def test_a_model_that_does_not_answer_is_dropped_at_once(story, tmp_path):
    store, panel, who = copy_of(story, tmp_path); learner = Learner(store); d = 140
    rows = [r for r in learner.rows() if r['day'] < str(panel.days[d])]
    mute = dict(who); (store.journal/'learning.jsonl').unlink()
    for r in rows: learner.journal.append(r)
    learner.add('seat', panel.days[d - 1], 'mute', (), id='mute'); day = learner.add('day', panel.days[d], '', (), scores={pointer(store)['to']: scored(load_model(store, mute['old'], at_close(panel, d)).model, panel, d, at_close(panel, d)), 'mute': dict(loss=[None]*4, expected=[None]*4, cover80=[None]*4, n=[0]*4)}, roles={})
    learner.choose(day['day'], at_close(panel, d))
    assert learner.rows()[-1]['kind'] == 'drop' and 'did not answer' in learner.rows()[-1]['why'] and 'mute' not in seated(learner.rows())


@pytest.fixture(scope='module')
def deep():
    if not find_spec('neuralforecast'): need('deep', 'NeuralForecast')
    return networks.deep()


@pytest.fixture(scope='module')
def kit(place, deep, tmp_path_factory):
    "A data folder whose champion is an N-HiTS of few passes, fitted up to the evening before session 150: (store, panel, id, model, day)."
    store, panel = place; shutil.copytree(store.root, tmp_path_factory.mktemp('tuned')/'data', dirs_exist_ok=True, ignore=shutil.ignore_patterns('models', 'journal'))
    root = next(tmp_path_factory.getbasetemp().glob('tuned*/data')); store = Store(root, clock=store.clock); older = demo()['TRADES', '5 mins']
    for day, rows in older[older.index.date < panel.days[0]].groupby(lambda t: t.date()): store.write_raw(day, rows, five=True)
    panel = Panel.from_store(store); past = panel.days_upto(150)
    with pytest.MonkeyPatch.context() as m: m.setattr(networks, 'PASSES', 1); m.setattr(networks, 'AGAIN', 1); model = train(past, 'nhits')
    id = keep(model, past, {}, store, at_close(panel, 149), sessions=LASTS); promote(store, id, 'the first', 'test', at_close(panel, 149))
    return store, panel, id, model, 150


def bars_of(panel, d, upto, start=0): return [(i, *(float(getattr(panel, o)[d, i]) for o in ('open', 'high', 'low', 'close', 'volume'))) for i in range(start, upto)]
def minute_of(panel, d, n): return session(panel.days[d]).open.to_pydatetime() + timedelta(minutes=n)


def growing(panel, d, upto):
    g = Growing(panel.days_upto(d), panel.days[d])
    for i, *bar in bars_of(panel, d, upto): g.put(i, bar, {})
    return g


def weights(tuner): return [networks.weights_of(o['module']) for o in tuner.nets]
def alike(a, b): return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b) for k in x)


def test_updates_are_small_the_same_again_and_read_nothing_of_later(kit):
    store, panel, id, model, d = kit; now, g = minute_of(panel, d, 200), growing(panel, d, 200)
    a, b = (Tuner(model, panel.days_upto(d)) for _ in range(2))
    for t in (a, b): out = [t.update(g.panel, now) for _ in range(3)]
    assert alike(weights(a), weights(b)) and not any(o['undone'] for o in out) and [o['update'] for o in out] == [1, 2, 3] and all(o['replayed'] >= o['fresh'] == 32 for o in out)
    assert 0 < out[-1]['moved'] < 3*MOVES*RATE*1.2 and all({int(v['step']) for v in o['optimiser'].state_dict()['state'].values()} == {3*MOVES} for o in a.nets), 'the optimiser stays'
    t, _ = lessons_of(g.panel, a.fits, *origins_of(g.panel, [len(bank(g.panel).days) - 1]), 200); u, _ = lessons_of(panel.days_upto(d + 1), a.fits, t['s'], t['k'], 200)
    assert all(np.array_equal(t[k], u[k]) for k in ('ok', 'error', 'z')) and t['ok'].any(), 'what came after the moment is not in the lessons'
    q, q0 = (m.quantiles(panel.windows(np.full(60, d), np.arange(14, 314, 5))) for m in (a.handed(), model)); ok = np.isfinite(q0[:, 0, 0]); wide, wide0 = (np.ptp(o[ok, 0], axis=1) for o in (q, q0))
    assert 0 < abs(wide/wide0 - 1).max() < .2


@pytest.mark.parametrize('rate', [.3, 30.])
def test_a_diverging_rate_is_undone_and_ends_the_day(kit, rate):
    store, panel, id, model, d = kit; now, g = minute_of(panel, d, 200), growing(panel, d, 200); t = Tuner(model, panel.days_upto(d)); at = weights(t)
    for o in t.nets: t.rate = o['optimiser'].param_groups[0]['lr'] = rate
    out = [t.update(g.panel, now) for _ in range(4)]
    assert all(o['undone'] for o in out[:3]) and 'in a row' in out[3]['skipped'] and alike(weights(t), at) and t.updates == 0
    with pytest.raises(UsageError, match='rate'): Tuner(model, panel.days_upto(d), rate=rate)


def test_a_poisoned_minute_teaches_nothing(kit):
    store, panel, id, model, d = kit; now, g = minute_of(panel, d, 200), growing(panel, d, 200); a, b = (Tuner(model, panel.days_upto(d)) for _ in range(2))
    fine = a.update(g.panel, now); g.put(104, [2*o for o in bars_of(panel, d, 105, 104)[0][1:]], {}); poisoned = b.update(g.panel, now)
    assert fine['outliers'] == 0 < poisoned['outliers'] and not poisoned['undone'] and poisoned['moved'] <= MOVES*RATE*1.2 and poisoned['loss'] <= 1.02*poisoned['morning']


def test_a_weight_that_is_no_number_is_found_and_put_back(kit):
    store, panel, id, model, d = kit; now, g = minute_of(panel, d, 200), growing(panel, d, 200); t = Tuner(model, panel.days_upto(d)); at = weights(t)
    next(t.nets[1]['module'].parameters()).data[0] = float('nan')
    assert t.update(g.panel, now)['undone'] == 'a weight is no number' and alike(weights(t), at) and not t.update(g.panel, now)['undone']


def test_a_label_from_the_future_is_refused(kit):
    store, panel, id, model, d = kit; t = Tuner(model, panel.days_upto(d)); at = weights(t)
    with pytest.raises(ModelError, match='label leakage'): t.update(growing(panel, d, 200).panel, minute_of(panel, d, 199))
    with pytest.raises(ModelError, match='label leakage'): t.update(panel.days_upto(d + 1), minute_of(panel, d, 200))
    with pytest.raises(UsageError, match='time zone'): t.update(growing(panel, d, 200).panel, minute_of(panel, d, 200).replace(tzinfo=None))
    assert alike(weights(t), at) and t.updates == 0


def test_a_process_that_cannot_begin_says_why_and_is_not_begun_again(place, tmp_path):
    panel = place[1]; store = Store(tmp_path, 'simulated:regime', clock=place[0].clock); w = Worker(Learner(store), 'nhits-2025-01-02-0123456789ab', panel.days[60], minute_of(panel, 60, -5)); w.wait()
    assert w.stage == 'stopped' and w.restarts == 0 and 'is refused' in faults(store, panel.days[60])[0]; w.end()


PLAY = """import sys, json, time
print(json.dumps(dict(ready='x')), flush=True); sys.stdin.readline()
for n, line in enumerate(sys.stdin, 1):
    if {when}: {what}
    print(json.dumps(dict(update=n, undone='', outliers=0, seconds=.1, moved=0., loss=1., morning=1.)), flush=True)"""


def minded(store, panel, d, when, what, **more): return Worker(Learner(store), 'nhits', panel.days[d], minute_of(panel, d, -5), command=[sys.executable, '-c', PLAY.format(when=when, what=what)], **more)


def faults(store, day): return [r['why'] for r in Learner(store).rows() if r['kind'] == 'fault' and r['day'] == str(day)]


def test_a_process_that_dies_or_hangs_is_replaced_and_after_five_times_left_alone(place, tmp_path):
    panel = place[1]; store = Store(tmp_path, 'simulated:regime', clock=place[0].clock); w = minded(store, panel, 60, 'n == 2', 'time.sleep(3600)', deadline_s=.6); w.wait()
    first = w.process.pid
    for i in range(2): w.tick(minute_of(panel, 60, i + 1), bars_of(panel, 60, i + 1, i)); w.wait()
    assert w.restarts == 1 and w.process.pid != first and 'said nothing' in faults(store, panel.days[60])[0] and 'anew' in faults(store, panel.days[60])[0]
    with pytest.raises(ProcessLookupError): os.kill(first, 0)
    w.end(); w = minded(store, panel, 61, 'True', 'sys.exit(3)'); w.wait()
    for i in range(8): w.tick(minute_of(panel, 61, i + 1), []); w.wait()
    assert w.stage == 'stopped' and w.restarts == 6 and len(faults(store, panel.days[61])) == 6 and 'left alone' in faults(store, panel.days[61])[-1]
    w.end()


def test_no_update_is_ordered_during_an_alarm_or_on_a_full_disk(place, tmp_path, monkeypatch):
    panel = place[1]; w = minded(Store(tmp_path, 'simulated:regime', clock=place[0].clock), panel, 62, 'False', 'pass'); w.wait()
    w.tick(minute_of(panel, 62, 1), [], learns=False); assert w.stage == 'idle'
    def full(record): raise FolderError('no space left on device')
    monkeypatch.setattr(w.learner.journal, 'append', full); w.learner.add('note', panel.days[62], 'lost?')
    w.tick(minute_of(panel, 62, 2), []); assert w.stage == 'idle' and len(w.learner.waiting) == 1
    monkeypatch.undo(); w.tick(minute_of(panel, 62, 3), []); w.wait(); w.end()
    assert w.updates == 1 and [r['why'] for r in w.learner.rows()] == ['lost?']


def test_a_day_of_the_real_process_killed_on_the_way_ends_in_a_challenger(kit):
    store, panel, id, model, d = kit; day, live = panel.days[d], Learning(store, refits=False); learner = live.learner; assert teachable(learner, minute_of(panel, d, -5)) == id
    assert live.morning(day, minute_of(panel, d, -5)).size == 1; w, at = live.worker, 0; w.wait()
    for n in (120, 121, 122, 123):
        if n == 122: os.kill(w.process.pid, signal.SIGKILL); w.process.wait()
        body = live.minute(minute_of(panel, d, n), bars_of(panel, d, n, at)); at = n; w.wait()
    if os.path.exists(f'/proc/{w.process.pid}/stat'): assert int(open(f'/proc/{w.process.pid}/stat').read().rsplit(')', 1)[1].split()[16]) >= 10, 'a low priority'
    assert w.restarts == 1 and w.updates == 3 and body['updates'] == 2 and body['champion'] == id and body['challenger'] is None, faults(store, day)
    w = panel.windows(*(o[panel.origins()[0] == d] for o in panel.origins())); q = model.quantiles(w)
    for m, o in zip(w.minute, q): Journal(store.journal/'forecasts.jsonl').append(dict(origin=minute_of(panel, d, int(m)).isoformat(), q=[*o[:4].tolist(), *[None]*5]))
    rows = live.evening(day, at_close(panel, d)); new = next(r['id'] for r in rows if r['kind'] == 'handed'); assert live.worker is None and pointer(store)['to'] == id != new and seated(learner.rows()) == [new]
    assert [r['kind'] for r in learner.rows()] == ['fault', 'update', 'handed', 'seat', 'frozen', 'day'] and len(rows) == 5 and teachable(learner, at_close(panel, d)) == new
    handed, scores = rows[1], rows[-1]['scores']; assert handed['from_id'] == id and handed['hashes'][new]['weights'] != hashes(store, id)['weights']
    assert set(scores) == {id, new, 'served'} and scores[id]['n'] == scores[new]['n'] == scores['served']['n'] == [75, 73, 70, 64] and np.allclose(scores['served']['loss'], scores[id]['loss'], atol=1e-5) and scores[new]['loss'] != scores[id]['loss']
    again = Tuner(load_model(store, new, at_close(panel, d)).model, panel.days_upto(d + 1))
    assert 0 < again.moved() < .01 and all({int(v['step']) for v in o['optimiser'].state_dict()['state'].values()} == {MOVES} for o in again.nets), 'the next day goes on from there, tied to what was fitted'


def test_a_network_whose_mask_holds_infinities_learns_too(kit):
    store, panel, id, model, d = kit; past = panel.days_upto(d)
    with pytest.MonkeyPatch.context() as m: m.setattr(networks, 'PASSES', 1); m.setattr(networks, 'AGAIN', 1); tft = train(past, 'tft')
    t = Tuner(tft, past); at = weights(t); assert not all(np.isfinite(v).all() for v in at[0].values())
    assert not t.update(growing(panel, d, 200).panel, minute_of(panel, d, 200))['undone'] and not alike(weights(t), at)
    next(t.nets[0]['module'].parameters()).data[0] = float('inf'); assert t.update(growing(panel, d, 201).panel, minute_of(panel, d, 201))['undone'] == 'a weight is no number'
