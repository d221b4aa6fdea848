"""The model store under everything that should not happen to it: each refusal is a `ModelError` (exit status 3), and nothing that was kept is lost."""
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spyresearch.core import DataError, FixedClock, FolderError, ModelError, UsageError
from spyresearch.features.registry import REGISTRY
from spyresearch.live.infer import serving
from spyresearch.models import champions
from spyresearch.models.baselines import Const, Har
from spyresearch.models.champions import DAYS, FORMAT, MANIFEST, POINTER, SERVES, NotYet, alone, code_word, keep, listing, load_champion, load_model, moment, pointer, promote, promotions, renew, rollback
from spyresearch.models.experiment import MEMBERS, train
from spyresearch.models.forecaster import KINDS, Scaled, Targets
from spyresearch.models.touch import Touch
from spyresearch.models.windows import Panel
from spyresearch.runs import gather
from spyresearch.sessions import add_sessions, session
from spyresearch.store import Store
from spyresearch.tws.source import Source

SPY = [sys.executable, '-m', 'spyresearch.cli']

def spy(*args, **kw): return subprocess.run([*SPY, *map(str, args)], capture_output=True, text=True, timeout=300, **kw)

@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "A data folder of the demo's last 45 sessions, with one champion: log-HAR."
    got = gather(Source(), tmp_path_factory.mktemp('data')/'data', 45)
    id = keep(train(got.panel, 'har', 7), got.panel, {'30': dict(pinball_bp=2., skill_pct=dict(har=0.))}, got.store, got.history.asof, 7)
    promote(got.store, id, 'the first one', 'somebody', got.history.asof)
    return got.store, got.panel, id

@pytest.fixture
def place(first, tmp_path):
    "A copy of it that may be spoiled: (store, panel, id)."
    shutil.copytree(first[0].root, tmp_path/'data', ignore=shutil.ignore_patterns('*.csv'))
    return Store(tmp_path/'data', clock=FixedClock(moment(first[0]))), first[1], first[2]

def flip(p, at=.5): b = bytearray(p.read_bytes()); b[int(at*(len(b) - 1))] ^= 1; p.write_bytes(b)

def forged(store, id, act):
    "What `act` makes of a model's folder and manifest, with all hashes put right and the champion's pointer led to it."
    folder, sha = store.models/id, lambda b: hashlib.sha256(b).hexdigest()
    m = json.loads((folder/MANIFEST).read_text()); m = act(folder, m) or m
    about = json.loads((folder/'model.json').read_text()); about['params'] = sha((folder/'params.npz').read_bytes())
    (folder/'model.json').write_text(json.dumps(about))
    if isinstance(m, dict) and isinstance(m.get('files'), dict): m['files'] = {k: sha((folder/k).read_bytes()) if (folder/k).exists() else v for k, v in m['files'].items()}
    text = m if isinstance(m, str) else json.dumps(m); (folder/MANIFEST).write_text(text)
    new = id[:-12] + sha(text.encode())[:12]; folder.rename(store.models/new)
    shutil.rmtree(store.journal); (store.models/POINTER).write_text(json.dumps(json.loads((store.models/POINTER).read_text()) | dict(to=new)))
    return new

def refused(store, why, at=None, kind=ModelError):
    with pytest.raises(kind, match=why) as e: load_champion(store, at)
    assert e.value.exit_code == 3 and e.value.todo and isinstance(e.value, ModelError)
    return e.value

# --- what was kept

def test_touch_probabilities_lie_beside_the_model_and_are_checked_with_it(place, monkeypatch):
    store, panel, id = place; w = panel.windows(); model = load_model(store, id).model; sigma = model.sigma(w); touch = Touch().fit(w, sigma)
    both = load_model(store, keep(model, panel, {}, store, seed=9, touch=touch)); at = np.flatnonzero((w.minute == 199) & np.isfinite(sigma[:, 3]))[-3:]
    assert len(at) and np.array_equal(both.touch.probabilities(both.model.sigma(w[at]), w.minute[at]), touch.probabilities(model.sigma(w[at]), w.minute[at]))
    assert load_model(store, id).touch is None
    monkeypatch.setattr('spyresearch.models.champions.code_word', lambda o: 'another' if o is Touch else code_word(o))
    with pytest.raises(ModelError, match='touch probabilities'): load_model(store, both.id)
    monkeypatch.undo(); flip(store.models/both.id/'touch.npz')
    with pytest.raises(ModelError, match='touch.npz has been changed'): load_model(store, both.id)


def test_it_comes_back_number_for_number_and_says_what_it_is(place):
    store, panel, id = place
    back = load_champion(store); w, model = panel.windows(), train(panel, 'har', 7)
    np.testing.assert_array_equal(back.model.quantiles(w), model.quantiles(w)); np.testing.assert_array_equal(back.model.sigma(w), model.sigma(w))
    m, last = back.manifest, panel.days[-1]
    assert (back.id, m['first'], m['last'], m['n_days'], m['seed'], m['provenance']) == (id, str(panel.days[0]), str(last), len(panel), 7, 'simulated:demo')
    assert m['expires'] == str(add_sessions(last, SERVES)) and m['metrics']['30']['pinball_bp'] == 2. and m['made'] == '2025-12-05T21:00:00+00:00'
    assert m['code'] == code_word(Har) and {'logrv_5', 'logdiur_60'} <= set(m['features']) and m['versions']['numpy'] == np.__version__
    data = json.loads((store.models/id/DAYS).read_text())
    assert data == {str(d): store.raw_hash(d) for d in panel.days} and all(data.values()) and m['data'] == m['files'][DAYS]
    assert set(m['files']) == {'params.npz', 'model.json', DAYS} == {p.name for p in (store.models/id).iterdir()} - {MANIFEST}
    assert not (store.models/id/MANIFEST).read_text().count(str(store.root))

def test_trees_are_kept_too(place):
    store, panel, _ = place; model = train(panel, 'boosted', 3); promote(store, keep(model, panel, {}, store, seed=3))
    w = panel.windows(); w = w[w.day > 40]
    np.testing.assert_array_equal(load_champion(store).model.quantiles(w), model.quantiles(w)); assert np.isfinite(model.quantiles(w)[:, 0]).any()

def test_what_cannot_be_kept(place):
    store, panel, id = place
    with pytest.raises(ModelError, match='has not been fitted'): keep(Har(), panel, {}, store)
    with pytest.raises(DataError, match='provenance is mixed'): keep(train(panel, 'har'), replace(panel, provenance='tws'), {}, store)
    with pytest.raises(DataError, match='does not hold'): keep(train(panel, 'har'), replace(panel, days=[d - timedelta(days=3640) for d in panel.days]), {}, store)
    class Odd(Const): name = '../odd'
    w = panel.windows()
    try:
        with pytest.raises(UsageError, match='cannot be kept'): keep(Odd().fit(w, Targets.of(w)), panel, {}, store)
    finally: KINDS.pop('Odd')
    assert {p.name for p in store.models.glob('[!.]*')} == {id, POINTER}
    assert not list(store.models.glob('.new-*')) and not list(store.root.parent.glob('odd*'))

# --- damage

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(place, data):
    store, _, id = place
    path = data.draw(st.sampled_from(sorted((store.models/id).iterdir()))); good = path.read_bytes()
    bad = bytearray(good); bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bad)
    try: refused(store, 'has been changed|is not JSON|not of format')
    finally: path.write_bytes(good)
    assert load_champion(store).id == id

FILES = ('params.npz', 'model.json', DAYS, MANIFEST)

def cut(f, name): b = (f/name).read_bytes(); (f/name).write_bytes(b[:len(b)//2])
def link(f, name): (f/name).rename(f.parent/'.elsewhere'); (f/name).symlink_to(f.parent/'.elsewhere')
def moved(f): f.rename(f.parent/'.elsewhere'); f.symlink_to(f.parent/'.elsewhere')
def folder_for(f, name): (f/name).unlink(); (f/name).mkdir()

@pytest.mark.parametrize('act, why', [
    *((lambda f, n=n: (f/n).unlink(), f'{n} is missing' if n != MANIFEST else 'cannot be read') for n in FILES),
    *((lambda f, n=n: cut(f, n), f'{n} has been changed' if n != MANIFEST else 'is not JSON') for n in FILES),
    *((lambda f, n=n: link(f, n), f'{n} is no plain file') for n in FILES),
    (lambda f: folder_for(f, 'params.npz'), 'is no plain file'), (lambda f: (f/'params.npz').write_bytes(b''), 'has been changed'),
    (lambda f: (f/'model.pkl').write_bytes(pickle.dumps(1)), 'model.pkl does not belong'), (lambda f: (f/'.hidden').touch(), '.hidden does not belong'), (lambda f: (f/'more').mkdir(), 'more does not belong'),
    (lambda f: (f/MANIFEST).write_text('{'), 'is not JSON'), (lambda f: (f/MANIFEST).write_bytes(b'\xff\xfe'), 'is not JSON'), (lambda f: (f/MANIFEST).write_text('['*200_000), 'is not JSON'),
    (lambda f: (f/MANIFEST).write_text('[1]'), 'not of format'), (lambda f: (f/MANIFEST).write_text((f/MANIFEST).read_text().replace('"expires": "20', '"expires": "21')), 'manifest has been changed'),
    (lambda f: shutil.rmtree(f), 'is not there'), (lambda f: moved(f), 'is not there, or no folder'), (lambda f: (shutil.rmtree(f), f.touch()), 'no folder')])
def test_a_damaged_folder(place, act, why):
    store, _, id = place; act(store.models/id)
    e = refused(store, why)
    assert id in e.what and [o['state'] for o in listing(store) if o['id'] == id and o['state'] != 'serves'] == ([e.why] if (store.models/id).exists() else [])

def test_a_damaged_one_is_set_aside_when_it_is_trained_anew(place):
    store, panel, id = place; flip(store.models/id/'params.npz')
    again = keep(train(panel, 'har', 7), panel, {'30': dict(pinball_bp=2., skill_pct=dict(har=0.))}, store, load_at(store), 7)
    assert again == id and load_champion(store).id == id
    assert 'params.npz has been changed' in (store.quarantined/f'models-{id}.reason.txt').read_text() and (store.quarantined/f'models-{id}'/MANIFEST).exists()

def load_at(store): return session(date.fromisoformat(max(store.original.m['days']))).close.to_pydatetime()

@pytest.mark.parametrize('id', ['../models/{}', './{}', '{}/', '/{}', '{}\n', '..', '.', '', 'C:\\{}', 'a\0b', '../../etc/passwd', None, 3])
def test_a_path_is_no_name(place, id):
    store, _, real = place; id = id.format(real) if isinstance(id, str) else id
    with pytest.raises(ModelError, match='no name of a model'): load_model(store, id)
    with pytest.raises(ModelError, match='no name of a model'): promote(store, id)
    assert pointer(store)['to'] == real

# --- the pointer

@pytest.mark.parametrize('text, why', [(None, 'is not there'), ('', 'cannot be read'), ('{', 'cannot be read'), ('['*200_000, 'cannot be read'), ('[]', 'is not a record'), ('{"to": "x"}', 'is not a record'),
    (dict(to='har-2025-12-05-0123456789ab'), 'differently'), (dict(to='har-2025-12-05-0123456789ab', n=2), 'is not there'), (dict(to='../../models', n=2), 'no name of a model'), (dict(to=['x']), 'is not a record'), (dict(n='1'), 'is not a record')])
def test_a_pointer_that_leads_nowhere(place, text, why):
    store, _, id = place; path = store.models/POINTER; o = json.loads(path.read_text())
    path.unlink() if text is None else path.write_text(text if isinstance(text, str) else json.dumps(o | text))
    refused(store, why)
    if text is None or isinstance(text, str) or text.get('n') != 2: # put right by naming one
        promote(store, id, 'put right'); assert load_champion(store).id == id and promotions(store)[-1]['n'] == 2

def test_a_journal_of_others(place):
    store, panel, id = place; path = store.journal/'promotions.jsonl'
    path.write_text(path.read_text() + '[1]\n')
    for call in (lambda: load_champion(store), lambda: promote(store, id), lambda: rollback(store)):
        with pytest.raises(DataError, match='line 2 is not a record'): call()
    path.unlink(); assert load_champion(store).id == id # without a journal the pointer stands for itself
    rolled = keep(train(panel, 'har', 8), panel, {}, store, seed=8); promote(store, rolled)
    assert [o['n'] for o in promotions(store)] == [1, 2] and rollback(store)['to'] == id

# --- here and now

def test_its_time(place):
    store, _, id = place; at, end = load_at(store), session(add_sessions(date(2025, 12, 5), SERVES)).close.to_pydatetime()
    assert load_champion(store, at).id == load_champion(store, end).id == id
    refused(store, f'it expired at the close of {end.date()}', end + timedelta(seconds=1))
    early = refused(store, 'it was made at 2025-12-05 16:00, and it is 2025-12-05 15:59 now', at - timedelta(minutes=1), NotYet)
    assert early.todo.startswith('spy train --asof 2025-12-04 makes one') and serving(store, at - timedelta(minutes=1)) == (None, f'{early.what}: {early.why}; {early.todo}', 'no model')

@pytest.mark.parametrize('spoil, why', [
    (lambda m: m.setattr(Scaled, 'cell', lambda self, windows: np.ones(len(windows), int)), 'the code of har is not what it was trained with'),
    (lambda m: m.setattr('spyresearch.models.baselines.COMMON', np.array([.3, .35, .26])), 'the code of har'),
    (lambda m: m.setattr(Panel, 'at', lambda self, names, day, minute: 0), 'the code of har'),
    (lambda m: m.setitem(REGISTRY.features, 'logrv_15', replace(REGISTRY['logrv_15'], batch=lambda g: g['close'])), 'logrv_15 computed otherwise'),
    (lambda m: m.delitem(KINDS, 'Har'), 'this version has no Har')])
def test_other_code(place, monkeypatch, spoil, why):
    store, *_ = place; spoil(monkeypatch)
    refused(store, why)

def test_other_data(place):
    store, panel, _ = place
    store.original.m['days'][str(panel.days[3])]['sha256'] = 64*'0'
    refused(store, f'the bars of {panel.days[3]} are no longer those it learned from')

def test_models_of_another_source(place, tmp_path):
    store, *_ = place
    for provenance in ('tws', 'tws-paper', 'replay:x', None):
        other = Store(tmp_path/f'other-{provenance}', provenance, FixedClock(moment(store))); shutil.copytree(store.models, other.models)
        refused(other, f"it learned from simulated:demo, and this folder holds {provenance or 'no data'}")

class Bomb:
    def __reduce__(self): return Path.touch, (Path('exploded'),)

def npz(**arrays): out = io.BytesIO(); np.savez(out, **arrays); return out.getvalue()

@pytest.mark.parametrize('data', [npz(beta=np.array([Bomb()], object)), pickle.dumps(Bomb()), b'PK\x03\x04 no archive', b'', b'\x93NUMPY'], ids=['objects', 'pickle', 'zip', 'empty', 'npy'])
def test_nothing_that_is_read_can_run(place, data, tmp_path, monkeypatch):
    "A folder forged as a whole, hashes and all, is refused by what reads its numbers."
    monkeypatch.chdir(tmp_path); store, _, id = place
    forged(store, id, lambda f, m: (f/'params.npz').write_bytes(data) and None)
    refused(store, 'no model can be read|its numbers')
    assert not (tmp_path/'exploded').exists()

@pytest.mark.parametrize('more', [dict(made=5), dict(made='yesterday'), dict(made='2025-12-05T21:00:00'), dict(expires='2025-12-06'), dict(expires=None), dict(kind=['Har']), dict(features=3), dict(features=['logrv_5']), dict(versions=None, code=''), dict(name='const'), dict(kind='Const', code=None)])
def test_a_manifest_of_nonsense(place, more):
    store, _, id = place
    forged(store, id, lambda f, m: m | more)
    refused(store, 'is refused\n.')

@pytest.mark.parametrize('act', [lambda f, m: m | dict(format=FORMAT + 1), lambda f, m: {k: v for k, v in m.items() if k != 'made'}, lambda f, m: m | dict(files={'../champion.json': 64*'0'}), lambda f, m: m | dict(files=[]), lambda f, m: '[]', lambda f, m: (f/DAYS).write_text('[]') and None])
def test_a_forged_manifest(place, act):
    store, _, id = place
    forged(store, id, act)
    refused(store, 'is refused\n.')

# --- crashes, full disks, two at a time

def run_python(code, *args, **kw): return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=120, **kw)

DIES = '''import os, sys
from spyresearch import core
from spyresearch.models import champions, forecaster
from spyresearch.models.experiment import MEMBERS, train
from spyresearch.models.windows import Panel
from spyresearch.store import Store
left, where = int(sys.argv[2]), sys.argv[3]
def dying(f):
    def write(*a, **kw):
        global left
        left -= 1
        if left < 0: os._exit(9)
        return f(*a, **kw)
    return write
store = Store(sys.argv[1]); panel = Panel.from_store(store)
if where == 'keep':
    model = train(panel, 'const', 1)
    forecaster.atomic_write = champions.atomic_write = dying(core.atomic_write); champions.os.rename = dying(os.rename)
    champions.keep(model, panel, {}, store)
else:
    champions.Journal.append = dying(champions.Journal.append)
    champions.promote(store, where)
'''

@pytest.fixture
def copy(first, tmp_path):
    "A whole copy, bars and features too."
    shutil.copytree(first[0].root, tmp_path/'data')
    return Store(tmp_path/'data'), first[1], first[2]

def test_a_crash_leaves_no_half_model(copy):
    store, panel, id = copy
    for n in (0, 3, 4): # of: two files of the model, its days, its manifest, its name
        died = run_python(DIES, store.root, n, 'keep')
        assert died.returncode == 9, died.stderr
        assert [o['id'] for o in listing(store)] == [id] and load_champion(store).id == id and len(list(store.models.glob('.new-*'))) == 1
    new = keep(train(panel, 'const', 1), panel, {}, store)
    assert load_model(store, new) and not list(store.models.glob('.new-*')) and run_python(DIES, store.root, 5, 'keep').returncode == 0

def test_a_crash_between_pointer_and_journal(copy):
    store, panel, id = copy; b, c = (keep(train(panel, 'const', 1), panel, {}, store, seed=s) for s in (1, 2))
    assert run_python(DIES, store.root, 0, b).returncode == 9
    assert load_champion(store).id == b and [o['to'] for o in promotions(store)] == [id]
    promote(store, c)
    assert [(o['n'], o['from'], o['to']) for o in promotions(store)] == [(1, None, id), (2, id, b), (3, b, c)] and rollback(store)['to'] == b

def test_a_torn_line_in_the_journal(copy):
    store, panel, id = copy; path = store.journal/'promotions.jsonl'
    path.write_bytes(path.read_bytes()[:-20])
    assert load_champion(store).id == id and promote(store, id)['n'] == 1 and [o['to'] for o in promotions(store)] == [id]

def test_a_full_disk(place, monkeypatch):
    store, panel, id = place; model = train(panel, 'har', 9)
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(FolderError, match='No space') as e: keep(model, panel, {}, store)
    with pytest.raises(FolderError, match='No space'): champions._point(store, 'promote', id, '', '', promotions(store))
    monkeypatch.undo()
    assert e.value.exit_code == 3 and not list(store.models.glob('.new-*')) and load_champion(store).id == id and len(promotions(store)) == 1

TURNS = '''import sys
from spyresearch.models.champions import promote, rollback
from spyresearch.store import Store
store, ids = Store(sys.argv[1]), sys.argv[2:]
for i in range(15): promote(store, ids[i % 2], f'turn {i}')
'''

def test_two_processes_promote_at_once(copy):
    store, panel, id = copy; a, b = (keep(train(panel, 'const', 1), panel, {}, store, seed=s) for s in (1, 2))
    both = [subprocess.Popen([sys.executable, '-c', TURNS, str(store.root), *o], stderr=subprocess.PIPE, text=True) for o in ((a, b), (b, a))]
    assert [p.wait(120) for p in both] == [0, 0], [p.stderr.read() for p in both]
    past = promotions(store)
    assert [o['n'] for o in past] == list(range(1, len(past) + 1)) and len(past) >= 15
    assert [o['from'] for o in past[1:]] == [o['to'] for o in past[:-1]] and pointer(store) == past[-1] and all(o['from'] != o['to'] for o in past)

def test_whoever_waits_too_long_is_told(place, monkeypatch):
    store, _, id = place; monkeypatch.setattr(champions, 'PATIENCE_S', .05)
    with alone(store), pytest.raises(FolderError, match='is in use'): promote(store, id)

# --- code

def test_the_word_of_code_is_the_same_in_every_process():
    code = 'from spyresearch.models.champions import code_word; from spyresearch.models.experiment import MEMBERS; print([code_word(o) for o in MEMBERS.values()])'
    words = {run_python(code, env={**os.environ, 'PYTHONHASHSEED': s}).stdout for s in '012'}
    assert len(words) == 1 and len(set(eval(words.pop()))) == len(MEMBERS)

# --- renewal and commands

def evaluation(): return dict(seed=7, models=dict(candidates=['har']), horizons={'30': dict(models=dict(har={k: None for k in champions.MEASURES}))})

def test_a_run_leaves_a_champion_alone_while_it_serves(place):
    store, panel, id = place; at = load_at(store)
    before = {p: p.read_bytes() for p in store.root.rglob('*') if p.is_file()}
    assert renew(panel, evaluation(), store, at) == (id, f'{id} serves') and before == {p: p.read_bytes() for p in store.root.rglob('*') if p.is_file()}
    assert renew(panel, evaluation(), store, at - timedelta(days=30)) == (id, f'{id} serves') # an earlier moment replaces nothing
    new, said = renew(panel, evaluation(), store, at, 'spy train', always=True)
    assert new != id and f'{id} goes on serving' in said and load_champion(store).id == id
    up, said = renew(panel, evaluation(), store, at, 'spy train', always=True, up=True)
    assert renew(panel, evaluation(), store, at, always=True) == (new, f'{new} serves; the same was trained again')
    assert up == new and f'in the place of {id}' in said and load_champion(store).id == new
    flip(store.models/new/DAYS); again, said = renew(panel, evaluation(), store, at, 'spy run')
    assert again == new and f'{DAYS} has been changed' in said and load_champion(store).id == new

def test_an_expired_champion_is_renewed_and_the_reason_kept(place):
    store, panel, id = place; late = load_at(store) + timedelta(days=90)
    store.clock = FixedClock(late)
    new, said = renew(panel, evaluation(), store, load_at(store), 'spy run'); assert new == id
    m = json.loads((store.models/id/MANIFEST).read_text())
    forged(store, id, lambda f, m: m | dict(expires='2025-12-03'))
    new, said = renew(panel, evaluation(), store, load_at(store), 'spy run')
    assert new != id and 'because' in said and promotions(store)[-1]['who'] == 'spy run' and 'it expired at the close of 2025-12-03' in promotions(store)[-1]['why'] and m['expires'] > '2026'

def test_the_commands(copy):
    store, panel, id = copy; b = keep(train(panel, 'const', 1), panel, {}, store, seed=1)
    said = spy('models', '--data', store.root)
    assert said.returncode == 0 and len(said.stdout.splitlines()) == 3 and any(o.split()[:2] == ['*', id] for o in said.stdout.splitlines()), said.stderr
    assert (done := spy('models', 'promote', b, '--why', 'a try', '--data', store.root)).returncode == 0 and f'{b} serves' in done.stdout, done.stderr
    body = json.loads(spy('models', '--data', store.root, '--json', '-').stdout)
    assert {o['id']: (o['champion'], o['state']) for o in body['models']} == {id: (False, 'could serve'), b: (True, 'serves')} and body['promotions'][-1]['why'] == 'a try'
    assert (done := spy('models', 'rollback', '--data', store.root)).returncode == 0 and f'{id} serves' in done.stdout and load_champion(store).id == id
    assert (done := spy('rollback', '--data', store.root)).returncode == 3 and 'no champion to go back to' in done.stderr and len(done.stderr.strip().splitlines()) == 3
    assert f'{id} was the first that served, and serves again: {b} came after it' in done.stderr and f'spy models promote {b}' in done.stderr

@pytest.mark.parametrize('args, code, said', [
    (['models', 'promote', 'har-2025-12-05-0123456789ab'], 3, 'is not there'), (['models', 'promote', '../x'], 3, 'no name of a model'), (['models', 'promote'], 2, 'Missing argument'),
    (['models', 'demote', 'x'], 2, 'No such command'), (['models', '--asof', '2025-11-28'], 0, 'it was made at'), (['rollback', '--asof', 'then'], 2, 'is not a date')])
def test_commands_that_are_refused(place, args, code, said):
    store, _, id = place; done = spy(*args, '--data', store.root)
    assert done.returncode == code and said in done.stderr + done.stdout and 'Traceback' not in done.stderr, done.stderr
    assert pointer(store)['to'] == id

def test_options_before_a_subcommand_are_not_ignored_in_silence(place):
    store, *_ = place; done = spy('models', '--data', store.root, 'rollback')
    assert done.returncode == 2 and 'after rollback' in done.stderr

def test_no_model_yet(tmp_path):
    done = spy('models', '--data', tmp_path)
    assert done.returncode == 2 and 'spy train' in done.stderr
    assert spy('rollback', '--data', tmp_path).returncode == 3

def test_damage_is_exit_3_for_every_command(place):
    store, _, id = place; flip(store.models/id/'params.npz')
    done = spy('models', 'promote', id, '--data', store.root)
    assert done.returncode == 3 and 'params.npz has been changed' in done.stderr and len(done.stderr.strip().splitlines()) == 3
    assert (done := spy('models', '--data', store.root)).returncode == 0 and 'params.npz has been changed' in done.stdout

def test_train_and_run_keep_a_champion(tmp_path):
    "A run trains a champion where there is none; `spy train` keeps another, and promotes when told to."
    common = ['--days', 90, '--members', 'har', '--data', tmp_path/'data', '--reports', tmp_path/'reports']; store = lambda: Store(tmp_path/'data')
    first = spy('run', *common)
    assert first.returncode == 0, first.stderr
    id = load_champion(store()).id; past = promotions(store())
    assert id.startswith('har-2025-12-05-') and [o['who'] for o in past] == ['spy run'] and load_champion(store()).manifest['metrics']['30']['pinball_bp'] > 0
    new = spy('train', *common, '--seed', 7, '--to', '2025-12-01', '--promote', '--json', tmp_path/'model.json')
    assert new.returncode == 0, new.stderr
    body = json.loads((tmp_path/'model.json').read_text())
    assert body['last'] == '2025-12-01' and body['id'].startswith('har-2025-12-01-') and f"{body['id']} serves" in new.stdout and load_champion(store()).id == body['id']
    assert spy('rollback', '--data', tmp_path/'data').returncode == 0 and load_champion(store()).id == id
