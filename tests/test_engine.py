"""The engine beside the feed: what it says, that history says the same, and that nothing it does touches the record."""
import asyncio
import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from live import at
from spyresearch.core import CheckFailed, DataError, FolderError, RealClock
from spyresearch.features.prepare import prepare
from spyresearch.journal import Journal
from spyresearch.live import infer, runner, worker
from spyresearch.live.certify import certify, explain_forecast, newest, on_file
from spyresearch.live.engine import Engine, of_day
from spyresearch.live.learn import begun, wanting
from spyresearch.live.runner import Runner, clock_of
from spyresearch.live.worker import Learning
from spyresearch.live.words import Caution, Desk
from spyresearch.models.bank import _LATE, bank
from spyresearch.models.champions import keep, load_champion, pointer, promote
from spyresearch.models.experiment import evaluate, train
from spyresearch.models.folds import LEAST
from spyresearch.models.touch import Touch
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.trade.record import latest
from spyresearch.trade.signals import walk
from spyresearch.trade.tickets import Ticket, row
from spyresearch.tws.history import fetch_history
from spyresearch.tws.link import Link
from spyresearch.tws.market import demo_tape
from spyresearch.tws.minutes import Minute
from spyresearch.tws.replay import ReplayServer, listing_of, open_tape

DAY = date(2025, 12, 5)


def test_a_panel_that_was_asked_does_not_change_when_the_day_goes_on():
    "The bank of a morning is gone on from next day, if its prices are still those it was made of."
    bars = demo_tape(days=40).bars['TRADES', '1 min']; panel = Panel.from_bars(bars, provenance='simulated:demo'); d = len(panel) - 2
    g = infer.Growing(panel.days_upto(d), panel.days[d]); row = lambda i: [getattr(panel, o)[d, i] for o in infer.OHLCV]
    for i in range(100): g.put(i, row(i), {})
    early = bank(g.panel)
    for i in range(100, 390): g.put(i, row(i), {})
    assert np.isnan(early.panel.close[d, 100:]).all()
    after = bank(replace(panel)); _LATE.clear(); fresh = bank(replace(panel))
    np.testing.assert_array_equal(after.x, fresh.x)


def run(coro): return asyncio.run(asyncio.wait_for(coro, 400)) # nothing may hang


async def fetch(tape, root, upto, days):
    "Sessions of a tape into a folder, and their day files."
    async with ReplayServer(tape, upto) as srv, Link(port=srv.port) as link:
        store = Store(root, link.provenance)
        await fetch_history(link, store, days)
    prepare(store)
    return store


def champion(store, upto=None, seed=7):
    "A log-HAR of the days before one, with its touches, that serves."
    p = Panel.from_store(store); p = p.days_upto(p.days.index(upto)) if upto else p
    model, w = train(p, 'har'), p.windows()
    id = keep(model, p, {}, store, session(p.days[-1]).close.to_pydatetime(), seed, touch=Touch().fit(w, model.sigma(w)))
    promote(store, id, at=session(p.days[-1]).close.to_pydatetime() + timedelta(hours=12))
    return id


async def lived(tape, root, begin, until, chain=False, day=DAY, speed='max', days=88, heard=None, s=300, learns=False, **how):
    "A runner that thinks, from one time to another."
    async with ReplayServer(tape, at(begin, str(day)), speed, control=True) as srv:
        srv.listing, clock, said = listing_of(srv), await clock_of('127.0.0.1', srv.port), []
        r = Runner('127.0.0.1', srv.port, Store(root), clock, days=days, chain=chain, say=said.append, thinks=True, publish=(lambda kind, body, known_at: heard.append((kind, body))) if heard is not None else None, learns=learns)
        r.said = said
        try: await asyncio.wait_for(r.run(at(until, str(day)), **how), s)
        finally: clock.detach()
    return r


@pytest.fixture(scope='module')
def demo(): return open_tape(days=90)


@pytest.fixture(scope='module')
def taught(demo, tmp_path_factory):
    "A folder with 88 days of the demo and a champion of all but the last three."
    root = tmp_path_factory.mktemp('taught')
    store = run(fetch(demo, root/'data', at('16:30:00', '2025-12-04'), 88))
    champion(store, store.raw_days()[-3])
    return root/'data'


@pytest.fixture
def folder(taught, tmp_path): return shutil.copytree(taught, tmp_path/'data')


def minutes_of(store, day=DAY): return of_day(store.journal/'ticks.jsonl', day, 'at')


# --- live equals history

def test_a_day_with_a_restart_and_options_is_the_same_from_history(demo, folder):
    heard = []
    first = run(lived(demo, folder, '09:15:00', '09:47:00', heard=heard))
    again = run(lived(demo, folder, '09:53:00', '10:01:00', chain=True))
    assert first.engine.kept.id == again.engine.kept.id and any('after 3 forecasts of today' in o for o in again.said)
    store = run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); c = certify(store, DAY)
    assert c.check().ok and c.n_forecasts == 3 + 9 and c.n_words == 3 and c.most < 1e-9, str(c)
    rows = of_day(store.journal/'forecasts.jsonl', DAY)
    assert [o['origin'][11:16] for o in rows] == [f'09:{m}' for m in (44, 45, 46, *range(52, 60))] + ['10:00']
    assert all(o['provisional'] for o in rows[:3]) and all(o['touch']['up'] and o['q'][3] and o['q'][8] is None for o in rows)
    assert any(o['q'][0] != o['plain'][0] for o in rows) # tracking has moved something
    assert any(w['says'] == 'silence' and 'not calibrated' in w['reasons'] for t in minutes_of(store) for w in t['said']) and latest(store.journal)['words']
    assert {k for k, _ in heard} == {'minute', 'quote', 'book', 'trades', 'state', 'forecast', 'words', 'calibration'}
    body = next(b for k, b in heard if k == 'forecast')
    assert {'id', 'origin', 'px', 'model', 'horizons', 'quantile_levels', 'q', 'touch', 'experience', 'row_hash', 'provisional', 'ms'} == set(body) and len(body['q']) == 9
    lines, odd, _ = explain_forecast(store, rows[-1]['id']); assert not odd and len(lines) > 40
    assert newest(store) == DAY


def test_a_day_that_the_folder_knows_is_told_minute_by_minute_when_its_tape_is_served_again(demo, folder):
    "`spy run`, then `spy live`, on one tape: the day's minutes are news as they come, nothing later is read, and no row of the file is lost."
    store = run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); whole = store.raw(DAY)
    r = run(lived(demo, folder, '09:15:00', '09:47:00')); rows = of_day(store.journal/'forecasts.jsonl', DAY)
    assert [o['origin'][11:16] for o in rows] == ['09:44', '09:45', '09:46'] and max(r.today.bars) == 16 and r.engine.errors == 0
    assert_frame_equal(Store(folder).raw(DAY), whole); c = certify(run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)), DAY); assert c.check().ok and c.n_forecasts == 3, str(c)


def test_a_model_is_wanted_where_none_can_serve_and_there_is_enough_to_learn_from(folder):
    store = Store(folder); at, days = session(DAY).open.to_pydatetime(), store.raw_days(); last = pointer(store)['to']; assert wanting(store, DAY, at) == ''
    shutil.copytree(folder, few := folder.parent/'few'); [o.unlink() for o in (few/'original_data').glob('2025-08*.csv')]
    later = session(date(2026, 1, 5)).open.to_pydatetime(); assert wanting(store, later.date(), later).startswith(f'model {last} is refused: it expired') and wanting(store, days[LEAST - 2], later) == ''
    assert len(Store(few).raw_days()) < LEAST and wanting(Store(few), later.date(), later) == ''
    words = begun(store, later.date(), later, members='har'); new = pointer(store)
    assert words == f"{new['to']} serves: judged and fitted on {len(days)} sessions to {days[-1]}" and new['from'] == last and 'it expired' in new['why'] and wanting(store, later.date(), later) == ''
    (store.models/'champion.json').unlink(); assert wanting(store, DAY, at) == '', 'an older one serves in its place'
    shutil.rmtree(store.models); assert wanting(store, DAY, at) == 'no model serves: champion.json is not there'


def test_what_options_imply_is_read_live_as_from_history_and_missed_with_a_reason(demo, folder):
    "A few minutes with it; then a restart, after which the feed has none: what was heard before serves for five minutes more, and by the evening history knows it all."
    store = Store(folder); p = Panel.from_store(store).days_upto(85); model = train(p, 'har_iv30'); assert infer.IV30 in model.columns and not model.notes['alone']
    promote(store, keep(model, p, {}, store, session(p.days[-1]).close.to_pydatetime(), 8), at=session(p.days[-1]).close.to_pydatetime() + timedelta(hours=13))
    first = run(lived(demo, folder, '09:15:00', '09:47:00')); silent = replace(demo, bars={k: v for k, v in demo.bars.items() if k[0] != 'OPTION_IMPLIED_VOLATILITY'})
    again = run(lived(silent, folder, '09:47:00', '09:55:00')); store = run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); rows = of_day(store.journal/'forecasts.jsonl', DAY)
    assert first.engine.kept.id == again.engine.kept.id and first.engine.kept.model.name == 'har_iv30' and first.engine.errors == again.engine.errors == 0
    why = 'implied volatility bars missing: har answers'; told = [o['instead'] for o in rows]; first_of = told.index(why)
    assert [(o['lacks'], o['instead']) for o in rows[:3]] == [(['log_iv_30'], None)]*3 and 3 < first_of <= 8 and set(told[:first_of]) == {None} and set(told[first_of:]) == {why}
    assert rows[-1]['lacks'][0] == 'log_iv_30' and rows[-1]['lacks'][1].startswith('log_iv_30@16-')
    assert any(why in o for o in again.said) and not any('answers' in o for o in first.said)
    c = certify(store, DAY, parity=False); assert c.check().ok and c.n_forecasts == len(rows) and c.most < 1e-9, str(c)
    d = on_file(store, DAY); har = d.kept.model.other.sigma(d.panel.windows(np.full(len(rows), len(d.panel) - 1), d.minute)); own = np.array([o['sigma'][:4] for o in rows], float)
    assert (abs(own[:3]/har[:3, :4] - 1) > 1e-6).all(); np.testing.assert_allclose(own[-1], har[-1, :4], rtol=1e-9) # what was implied has moved it, and then has not


def test_a_day_that_is_the_first_to_be_quoted_again_has_a_place_for_it(demo):
    bars = demo.bars['TRADES', '1 min']; panel = Panel.from_bars(bars[bars.index.date >= date(2025, 11, 20)]); d = len(panel) - 1; past = panel.days_upto(d); g = infer.Growing(past, panel.days[d], reads=(infer.IV30,))
    g.put(3, [getattr(panel, o)[d, 3] for o in infer.OHLCV], {}, dict(iv_close=.16)); assert infer.IV30 not in past.names == infer.Growing(past, panel.days[d]).base.names
    got = g.panel.at([infer.IV30], np.full(2, d), np.array([3, 8]))[:, 0]; assert got[0] == np.float32(2*np.log(.16)) and infer.unquoted(g.panel, d, 5) == ['log_iv_30@0-2', 'log_iv_30@4-4']
    g.put(3, None, {}, dict(iv_close=.16)); assert np.isnan(g.panel.x[d, 3]).all()


def test_a_real_day_is_the_same_from_history(shared, tmp_path):
    tape, day = open_tape(bars=(shared('spy_1min.parquet'),), intraminute='simulated'), date(2026, 3, 31)
    store = run(fetch(tape, tmp_path, at('16:30:00', '2026-03-30'), 90)); champion(store, store.raw_days()[-6])
    r = run(lived(tape, tmp_path, '09:15:00', '10:11:00', day=day, days=90))
    assert (r.engine.errors, r.engine.overruns) == (0, 0)
    store = run(fetch(tape, tmp_path, at('16:30:00', str(day)), 2)); c = certify(store, day)
    assert c.check().ok and c.n_forecasts == 27 and c.n_words == 2*6, str(c)


def test_what_was_changed_afterwards_is_found(demo, folder):
    run(lived(demo, folder, '09:15:00', '09:51:00')); store = run(fetch(demo, folder, at('16:30:00', str(DAY)), 2))
    path = store.journal/'forecasts.jsonl'; rows = [json.loads(o) for o in path.read_text().splitlines()]
    assert certify(store, DAY).ok
    for k, change in ((2, dict(px=601.)), (3, dict(row_hash='0'*16))): rows[k] |= change
    path.write_text(''.join(json.dumps(o) + '\n' for o in rows)); c = certify(store, DAY)
    assert [(d.at[11:16], d.what) for d in c.diffs] == [('09:46', 'px'), ('09:47', 'row_hash')]
    with pytest.raises(CheckFailed, match='2 differences'): c.check()
    with pytest.raises(DataError, match='no engine has put'): certify(store, date(2025, 12, 4))


# --- learning beside

def alarmed(folder): "An alarm of an earlier evening in the journal."; Journal(folder/'journal'/'learning.jsonl').append(dict(kind='alarm', day='2025-12-03', why='planted', widen=1.5))


def test_a_session_is_learned_from_and_the_day_stays_the_same_from_history(demo, folder):
    heard = []; r = run(lived(demo, folder, '15:30:00', '16:30:00', heard=heard, learns=True, once=True)); store, id = r.store, r.engine.kept.id
    rows = Journal(store.journal/'learning.jsonl').read(); assert [(o['kind'], o['day']) for o in rows] == [('frozen', str(DAY)), ('day', str(DAY))]
    assert set(rows[1]['scores']) == {id, 'served'} and rows[1]['scores'][id]['n'] == [75, 73, 70, 64] and rows[1]['scores']['served']['n'][0] == 5 and rows[1]['roles']['champion'] == id
    told = [b for k, b in heard if k == 'learning']; assert len(told) > 20 and told[0]['champion'] == id and told[-1]['n_days'] == 1 and told[0]['alarm'] is None and r.engine.errors == 0
    assert certify(store, DAY).check().n_forecasts > 20


def test_an_alarm_widens_and_silences_and_the_day_stays_the_same_from_history(demo, folder):
    alarmed(folder); r = run(lived(demo, folder, '09:15:00', '09:51:00', learns=True)); rows = of_day(r.store.journal/'forecasts.jsonl', DAY)
    assert {o['widen'] for o in rows} == {1.5} and (r.engine.desk.stage.size, r.engine.desk.stage.blocks) == (0., ('not calibrated',)) and any('alarm of 2025-12-03: planted; bands 1.50 times' in o for o in r.said)
    store = run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); c = certify(store, DAY); assert c.check().n_forecasts == len(rows) == 7 and any('1.50 times as wide' in o for o in c.notes)
    d = on_file(store, DAY); calm = infer.at_once(d.kept, d.panel, d.minute, infer.state_at_open(d.kept, d.panel.days_upto(len(d.panel) - 1)))[2]
    for o, q in zip(rows, calm): np.testing.assert_allclose(np.array(o['q'][:4], float) - q[:4, 10:11], 1.5*(q[:4] - q[:4, 10:11]), atol=1e-9)
    for o, m, s in zip(rows, d.minute, d.said[0]): # at the same prices, touched no less
        far, near = o['touch'], infer.touch_grid(d.kept.touch, s, int(m), o['px']); np.testing.assert_allclose(far['distances'], near['distances']); gain = np.add(far['up'], far['down']) - near['up'] - near['down']
        assert (gain > -1e-9).all() and gain.max() > .05
    path = store.journal/'learning.jsonl'; path.write_text(path.read_text().replace('"widen": 1.5', '"widen": 1.6')); assert {o.what for o in certify(store, DAY).diffs} >= {'widen', 'q'}


FAULTY = """import json, os, sys, time
def say(**o): print(json.dumps(o), flush=True)
sys.stdin.readline(); life = len(os.listdir({lives!r})); open({lives!r} + f'/{{life}}', 'w').close(); say(ready='x')
for n, line in enumerate(sys.stdin, 1):
    o = json.loads(line)
    if life == 0 and n == 2: os.kill(os.getpid(), 9)
    if life == 1 and n == 2: time.sleep(3600)
    say(update=n, undone='a weight is no number'*(life == 2 and n == 1), outliers=0, seconds=.1, moved=0., loss=1., morning=1.) if 'now' in o else say(kept=None)
"""


def test_whatever_happens_to_the_process_beside_is_on_record_and_the_forecasts_go_on(demo, folder, tmp_path, monkeypatch):
    "It is killed, its successor hangs, the third finds a weight that is no number, and the disk is full for the journal of learning in between."
    (lives := tmp_path/'lives').mkdir(); full, append = [0], Journal.append
    class Beside(Learning):
        def __init__(self, store, refits): super().__init__(store, refits=refits, command=[sys.executable, '-c', FAULTY.format(lives=str(lives))], deadline_s=5.)
        def minute(self, now, bars):
            with self.learner.store.clock.hold(): out = super().minute(now, bars); self.worker.wait() # the tape is faster than any process
            return out
    def short(self, record):
        if self.path.name == 'learning.jsonl' and full[0] < 2: full[0] += 1; raise FolderError('no space left on device')
        return append(self, record)
    monkeypatch.setattr(Journal, 'append', short); monkeypatch.setattr(worker, 'teachable', lambda learner, at: learner.roles([])['champion']); monkeypatch.setattr(runner, 'Learning', Beside)
    heard = []; r = run(lived(demo, folder, '09:15:00', '09:56:00', learns=True, heard=heard)); rows = [o for o in Journal(folder/'journal'/'learning.jsonl').read() if o['kind'] == 'fault']
    assert ['status -9' in rows[0]['why'], 'said nothing' in rows[1]['why'], rows[2]['why'], len(rows), full[0]] == [True, True, 'a weight is no number', 3, 2], rows
    assert len(of_day(r.store.journal/'forecasts.jsonl', DAY)) == 12 and r.feed.counts['data'] + r.feed.counts['quiet'] == 26*60 and (r.engine.errors, r.engine.overruns) == (0, 0)
    assert max(b['updates'] for k, b in heard if k == 'learning') > 5 and r.learning.worker is None and len(os.listdir(lives)) == 3


def test_a_restart_within_a_minute_does_not_think_about_it_twice(demo, folder):
    run(lived(demo, folder, '09:15:00', '09:46:20')); r = run(lived(demo, folder, '09:46:30', '09:49:00')); store = r.store
    ats = [t['at'][11:16] for t in minutes_of(store)]
    assert ats == sorted(set(ats)) and not r.engine.errors and not any('error' in t for t in minutes_of(store))
    assert [o['origin'][11:16] for o in of_day(store.journal/'forecasts.jsonl', DAY)] == ['09:44', '09:45', '09:46', '09:47', '09:48']


# --- without a model, or with another

def test_without_a_model_the_day_is_recorded_and_the_reason_said(demo, folder):
    shutil.rmtree(folder/'models')
    r = run(lived(demo, folder, '09:15:00', '09:56:00')); store = r.store
    assert r.feed.counts['data'] + r.feed.counts['quiet'] == 26*60 and any('no model serves' in o for o in r.said)
    assert not (store.journal/'forecasts.jsonl').exists() and len(minutes_of(store)) == 26
    assert {tuple(w['reasons']) for t in minutes_of(store) for w in t['said']} == {('no model',)} and latest(store.journal)['words'][0]['reasons'] == ['no model']
    run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); c = certify(Store(folder), DAY)
    assert c.ok and not c.n_forecasts and 'no model' in str(c)


def test_an_expired_champion_is_silent_and_a_damaged_one_is_replaced_aloud(taught, folder):
    store = Store(folder); old = load_champion(store, session(DAY).open.to_pydatetime()).id; new = champion(store, seed=9)
    said = []; e = Engine(store, DAY, RealClock(), say=said.append); e.prepare()
    assert e.kept.id == new and not said
    (folder/'models'/new/'params.npz').write_bytes(b'x')
    e = Engine(store, DAY, RealClock(), say=said.append); e.prepare()
    assert e.kept.id == old and 'params.npz has been changed' in said[0] and f'{old} serves in its place' in said[0]
    assert infer.serving(store, session(DAY).open.to_pydatetime() + timedelta(days=90))[0] is None
    shutil.copytree(taught/'models', folder/'m2'); shutil.rmtree(folder/'models'); (folder/'m2').rename(folder/'models')
    late = infer.serving(Store(taught), session(DAY).open.to_pydatetime() + timedelta(days=90))
    assert late[2] == 'model expired' and 'expired at the close' in late[1]


# --- nothing touches the record

def test_an_error_of_a_minute_is_on_record_and_the_next_is_tried(demo, folder, monkeypatch):
    say = infer.Inference.say
    def broken(self, i):
        if i in (16, 17): raise ValueError('a planted fault')
        return say(self, i)
    monkeypatch.setattr(infer.Inference, 'say', broken)
    r = run(lived(demo, folder, '09:15:00', '09:52:00'))
    t = {o['at'][11:16]: o for o in minutes_of(r.store)}
    assert t['09:47']['error'] == 'ValueError: a planted fault' and 'forecast' not in t['09:48'] and 'forecast' in t['09:49'] and r.engine.errors == 2
    assert r.feed.counts['data'] + r.feed.counts['quiet'] == 22*60 and any('no forecast at 09:47: ValueError' in o for o in r.said)
    run(fetch(demo, folder, at('16:30:00', str(DAY)), 2)); assert certify(Store(folder), DAY).check().ok


def test_a_minute_that_takes_too_long_is_counted_and_keeps_nobody_waiting(folder, monkeypatch):
    "While one minute is thought about, two more come: one overrun, the newest is next, and the loop goes round all the time."
    think, go_on = Engine._think, threading.Event()
    def late(self, i, *a):
        if i == 3: go_on.wait(20)
        return think(self, i, *a)
    monkeypatch.setattr(Engine, '_think', late)
    opens = int(session(DAY).open.timestamp()); bars = {i: Minute(opens + 60*i, 600., 600.5, 599.5, 600.2, 1e5, None, None, True) for i in range(8)}
    async def live():
        e, turns = Engine(Store(folder), DAY, RealClock()), 0
        for i in (3, 4, 5): e.look({k: bars[k] for k in range(i + 1)}, {k: {} for k in range(i + 1)}, i); await RealClock().asleep(.01)
        for _ in range(20): await RealClock().asleep(.01); turns += 1
        waiting = not e.busy.done(); go_on.set(); await e.rest()
        return e, turns, waiting
    e, turns, waiting = run(live())
    assert (e.overruns, turns, waiting) == (1, 20, True) and [t['at'][11:16] for t in minutes_of(e.store)] == ['09:34', '09:36']
    assert len(e.took['late']) == 2 and e.state()['overruns'] == 1


def test_a_listener_that_fails_stops_nothing(demo, folder):
    class Broken(list):
        def append(self, o):
            if o[0] == 'forecast': raise OSError('gone')
    r = run(lived(demo, folder, '09:15:00', '09:49:00', heard=Broken()))
    assert len(of_day(r.store.journal/'forecasts.jsonl', DAY)) == 5 and any('could not be shown: OSError: gone' in o for o in r.said)


def test_words_stand_until_something_changes(demo, folder):
    r = run(lived(demo, folder, '09:15:00', '10:05:00')); said = [json.loads(o) for o in (r.store.journal/'said.jsonl').read_text().splitlines()]
    spoken = [t for t in minutes_of(r.store) if t['said']]
    assert len(spoken) == 5 and len(said) <= 5 and all(o['words'] for o in said)
    for a, b in zip(said, said[1:]): assert [w['reasons'] for w in a['words']] != [w['reasons'] for w in b['words']] or datetime.fromisoformat(b['asof']) - datetime.fromisoformat(a['asof']) >= timedelta(minutes=30)


def test_a_ticket_at_the_close_is_the_one_of_the_walk():
    "A market with a planted edge: on a day on which the walk buys, the desk of that day says the same ticket, and what it rests on."
    tape = demo_tape(7, days=400, edge=1.); panel = Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), f'simulated:{tape.name}')
    ev = evaluate(panel, 'har'); signals = walk(panel, ev)
    t, _ = signals.tickets[0]; d = panel.days.index(t.issued_at.date()); now = panel.days_upto(d + 1); mine = (ev.origins['day_ix'] == d).to_numpy()
    past = panel.days_upto(d); desk = Desk(infer.Growing(past, panel.days[d], float(panel.dividend[d])).panel, evaluate(past, 'har'))
    said = ev.origins['minute'].to_numpy()[mine], ev.sigma['har'][mine], ev.q[ev.system][mine]
    words, why = desk.closing(now, *said, [o for o in signals.tickets if o[0].issued_at < t.issued_at])
    [ours] = [o for o in words if isinstance(o, Ticket)]
    assert row(ours) == row(t) and why[ours.id]['id'] == t.id and why[ours.id]['bucket']['votes']
    assert [o for o in desk.at_once(now, *said, [o for o in signals.tickets if o[0].issued_at < t.issued_at])['swing'] if isinstance(o, Ticket)] == [ours]
    desk.careful = Caution(.5, 1.2); words, why = desk.closing(now, *said, []); [half] = [o for o in words if isinstance(o, Ticket)]
    assert half.size_frac == round(t.size_frac/2, 4) > 0 and half.id != t.id and why[half.id]['caution'] == .5
    desk.careful = Caution(0., 1.2, ('not calibrated',)); assert all('not calibrated' in o.reasons for o in desk.closing(now, *said, [])[0])
