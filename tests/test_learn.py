"""Learning on a market whose habits change: a challenger that knows the new ones is promoted, a poisoned one dropped, a promotion that goes wrong taken back, and every act is on record."""
import shutil
from datetime import timedelta

import numpy as np
import pytest

from spyresearch.core import FixedClock, FolderError
from spyresearch.features.prepare import prepare
from spyresearch.live.contest import STOP, caution, matured, scored
from spyresearch.live.learn import LASTS, WHO, Learner, brought, seated
from spyresearch.models.champions import keep, load_model, pointer, promote, promotions
from spyresearch.models.experiment import MEMBERS
from spyresearch.models.forecaster import Targets
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.market import demo_tape

RISES, FALLS, RISE = 51, 120, 6e-5 # from one session on every minute gains so much, from another on it loses it; log return


def market(days=155):
    "The demo's bars, with a drift in every minute."
    bars = demo_tape(days=170, older=0).bars['TRADES', '1 min'].iloc[:, :7].copy(); day = bars.index.normalize(); n = day.unique()
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
