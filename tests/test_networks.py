"""Networks on made bars: causal, the same again, resumed from a folder, whole on disk, and asked as NeuralForecast asks them."""
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from conftest import need
from scipy.stats import t as student_t

from spyresearch.core import ModelError, UsageError, unpack
from spyresearch.models import networks as nw
from spyresearch.models.bank import bank
from spyresearch.models.champions import shelf_in
from spyresearch.models.experiment import MEMBERS, evaluate, train
from spyresearch.models.forecaster import Targets, load
from spyresearch.models.parallel import walk_in
from spyresearch.models.targets import HORIZONS, known_at
from spyresearch.models.windows import Panel
from spyresearch.sessions import session
from spyresearch.skill import trained
from spyresearch.tws.market import demo_tape

PATHS = ('spyresearch.models.networks', 'spyresearch.models.experiment')


@pytest.fixture(scope='module')
def panel():
    tape = demo_tape(days=90, older=120)
    return Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), older=tape.bars['TRADES', '5 mins'])


@pytest.fixture(scope='module')
def deep():
    if not find_spec('neuralforecast'): need('deep', 'NeuralForecast')
    return nw.deep()


def unable(*_): raise ModelError('nothing is learned here')


def origins(panel, s, slots): return np.full(len(slots), s), np.asarray(slots)


def test_the_module_is_imported_without_torch():
    code = f"import sys, {', '.join(PATHS)}; sys.exit(any(o in sys.modules for o in ('torch', 'neuralforecast')))"
    assert subprocess.run([sys.executable, '-c', code], timeout=120).returncode == 0


def test_without_the_section_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'neuralforecast', None); monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(ModelError, match='section deep|not installed'), nw.torch_alone(0): pass


def test_lessons_do_not_know_what_came_later(panel):
    b = bank(panel); t, cut = nw.taught(panel, 120), b.first + 40
    later = nw.taught(panel.days_upto(40), 120)
    assert cut > 120 and all(np.array_equal(t[k], later[k]) for k in t)


@pytest.mark.parametrize('kind', nw.CLASSES)
def test_a_window_sees_its_own_session_only_and_up_to_its_origin(panel, kind, deep):
    t = nw.taught(panel, 110); net = nw.measured(t, panel, kind, 110); s, k = origins(panel, 150, [2, 30, 70])
    seen = nw.window(panel, net, s, k, np.zeros((3, nw.STEPS)))
    short = panel.days_upto(150 - bank(panel).first + 1)
    again = nw.window(short, net, s, k, np.zeros((3, nw.STEPS)))
    assert all(np.array_equal(seen[o], again[o]) for o in seen) and (seen['insample_mask'][:, :, 0].sum(1) == [3, 24, 24]).all()
    assert all(np.isfinite(o).all() for o in seen.values()) and len(net['columns'][1]) <= (12 if kind == 'tft' else 200)


def test_the_same_again_in_any_order_and_resumed(panel, deep, tmp_path):
    a, b = (nw.train(panel, 110, 'nhits', 5, passes=1) for _ in range(2))
    assert all(np.array_equal(a[k], b[k]) for k in a if k != 'columns')
    s, k = origins(panel, 120, [20, 21, 40]); fits = nw.fits_of(panel, 110); all_at_once = nw.think(panel, 'nhits', a, fits, s, k)
    one = np.concatenate([nw.think(panel, 'nhits', a, fits, s[i:i + 1], k[i:i + 1]) for i in range(3)])
    np.testing.assert_allclose(one, all_at_once, atol=1e-5)
    with nw.kept_in(tmp_path):
        nw.network.cache_clear(); first = nw.network(panel, 110, 'nhits', 5)
        nw.network.cache_clear(); again = nw.network(panel, 110, 'nhits', 5)
    assert len(list(tmp_path.glob('*.npz'))) == 1 and first['seconds'] == again['seconds'] and np.array_equal(first['curve'], again['curve'])


@pytest.mark.parametrize('kind', nw.CLASSES)
def test_trained_and_asked_by_hand_as_by_neuralforecast(panel, deep, kind):
    net = nw.train(panel, 100, kind, 1, passes=1); s, k = origins(panel, 120, [10, 50]); rel = nw.outlook(panel, nw.fits_of(panel, 100), s, k)
    model = nw._model(kind, nw.packed(net)); seen = nw.window(panel, net, s, k, rel)
    with deep.inference_mode(): theirs = model.loss.domain_map(model({n: deep.from_numpy(o) for n, o in seen.items()})).numpy()[:, :, 0]
    mine = nw.think(panel, kind, net, nw.fits_of(panel, 100), s, k)
    np.testing.assert_array_equal(mine, theirs); assert np.isfinite(mine).all() and np.isfinite(net['curve']).all()


def test_a_member_is_whole_on_disk_and_a_foreign_byte_is_refused(panel, deep, tmp_path):
    class Short(nw.Nhits): seeds = 1
    w = panel.windows(); t = Targets.of(w); old, new = w.day < 70, w.day >= 71
    m = Short().fit(w[old], t[old]); q = m.quantiles(w[new]); folder = m.save(tmp_path/'m')
    np.testing.assert_array_equal(load(folder).quantiles(w[new]), q)
    known = np.isfinite(q[:, 0, 0]); assert known.any() and (np.diff(q[known, :4], axis=-1) >= -1e-12)[np.isfinite(q[known, :4, 1:])].all()
    weights = folder/'params.npz'; data = bytearray(weights.read_bytes()); data[len(data)//2] ^= 1; weights.write_bytes(data)
    with pytest.raises(ModelError): load(folder)


def test_how_it_was_trained_reaches_the_page_from_what_was_kept(panel, deep, tmp_path, monkeypatch):
    class Short(nw.Nhits): seeds = 1
    monkeypatch.setitem(MEMBERS, 'nhits', Short)
    def told(): return json.loads(json.dumps(evaluate(panel, 'const,har,nhits', run=walk_in(tmp_path)).to_json()))['models']
    first = told(); made, again = sorted((tmp_path/'cache'/'networks').glob('*.npz')), told()
    assert made and again['training'] == first['training'] and again['tries'] == first['tries'] == dict(const=1, har=1, nhits=1) # the second walk had nothing to train
    run = first['training']['nhits'][-1]; looks = [o['step'] for o in run['curve']]
    assert looks[0] == 0 and looks[-1] == run['steps'] and run['kept'] in looks[1:] and run['serves'] and min(o['judges'] for o in run['curve'][1:]) == run['curve'][looks.index(run['kept'])]['judges']
    page = trained(dict(models=first, built=dict(networks=17), horizons={})); assert page.count('<svg') == 1 and '17 of the three' in page and ('trained: 1 network' in page or 'not trained to any use' in page)


def test_a_later_run_finds_the_networks_and_learns_a_damaged_one_again(panel, deep, tmp_path, monkeypatch):
    class Short(nw.Nhits): seeds = 1
    monkeypatch.setitem(MEMBERS, 'nhits', Short); folder = tmp_path/'cache'/'networks'
    def run():
        nw.network.cache_clear(); nw.said.cache_clear(); shutil.rmtree(tmp_path/'cache'/'experiments', ignore_errors=True); walk = walk_in(tmp_path); return evaluate(panel, 'nhits', run=walk).q['nhits'], walk
    first, _ = run(); files = sorted(folder.glob('*.npz')); assert files
    with monkeypatch.context() as m:
        m.setattr(nw, 'train', unable); again, walk = run() # nothing is left to learn, but what too short a history never taught
        np.testing.assert_array_equal(again, first); assert not walk.shelf.made and not walk.words
        nw.network.cache_clear()
        with nw.kept_in(shelf_in(tmp_path)): train(panel, 'nhits') # what serves tomorrow finds them too
    data = files[0].read_bytes(); files[0].write_bytes(data[:len(data)//2]); again, walk = run()
    np.testing.assert_array_equal(again, first); assert files[0].read_bytes()[:100] == data[:100] and len(walk.words) == 1 and 'learned again' in walk.words[0]
    assert shelf_in(tmp_path).word != nw.Shelf(tmp_path).word # other code, other names


@pytest.fixture(scope='module')
def implied(panel):
    "The same market with what its options imply."
    tape = demo_tape(days=90, older=120); bars = tape.bars['TRADES', '1 min'].join(tape.bars['OPTION_IMPLIED_VOLATILITY', '1 min'].add_prefix('iv_'))
    return Panel.from_bars(bars, tape.dividends.to_dict(), older=tape.bars['TRADES', '5 mins'], features=[*panel.names, nw.IV30] if nw.IV30 not in panel.names else None)


def test_students_quantiles_are_those_of_the_distribution(panel, deep):
    net = nw.train(panel, 100, 'nhits+student', 1, passes=1); s, k = origins(panel, 120, [10, 50]); fits = nw.fits_of(panel, 100); mine = nw.think(panel, 'nhits+student', net, fits, s, k)
    model = nw._model('nhits+student', nw.packed(net)); seen = {n: deep.from_numpy(o) for n, o in nw.window(panel, net, s, k, nw.outlook(panel, fits, s, k)).items()}
    with deep.inference_mode(): df, loc, scale = (o.numpy() for o in model.loss.scale_decouple(model.loss.domain_map(model(seen))))
    theirs = loc + scale*student_t.ppf(nw.QUANTILES, df); assert (df >= 3).all() and (scale > 0).all()
    np.testing.assert_allclose(net['base'] + mine, theirs, atol=5e-3); assert (np.diff(net['base'] + mine, axis=-1) > 0).all() and not np.allclose(df, df[0, 0])


def test_a_window_in_its_own_units_forgets_its_scale(panel, deep):
    rng = np.random.default_rng(0); x, seen = rng.standard_normal((4, 24, 3)), rng.random((4, 24)) > .2; a, b = nw.even(x, seen), nw.even(5*x + 3, seen)
    np.testing.assert_allclose(a, b, atol=.05); assert (a[~seen] == 0).all() and not nw.even(x, np.zeros((4, 24), bool)).any()
    for i in range(4): np.testing.assert_allclose(a[i, seen[i]].std(0), 1, atol=.02); np.testing.assert_allclose(a[i, seen[i]].mean(0), 0, atol=1e-12)


def test_what_options_imply_is_known_up_to_the_origin_only_and_missed_by_name(panel, implied, deep):
    t = nw.taught(implied, 150); net = nw.measured(t, implied, 'nhits+iv', 150); s, k = origins(implied, 150, [30]); d, j = 150 - bank(implied).first, implied.names.index(nw.IV30); x = implied.x.copy(); x[d, 155:, j] += 1
    seen, later, other = (nw.window(p, net, s, k, np.zeros((1, nw.STEPS)))['futr_exog'] for p in (implied, replace(implied, x=x), panel))
    assert seen.shape[-1] == 6 and np.array_equal(seen, later) and len(set(seen[0, nw.PAST:, 5])) == 1 and np.ptp(seen[0, :nw.PAST, 5]) > 0 and not other[..., 5].any() # unknown: the mean
    with pytest.raises(ModelError, match='30-day implied volatility'): nw.train(panel, 110, 'nhits+iv', 0, passes=1)
    assert nw.key_of(implied, 150, 'nhits+iv', 0) != nw.key_of(replace(implied, x=x), 152, 'nhits+iv', 0) and nw.key_of(implied, 150, 'nhits', 0) == nw.key_of(replace(implied, x=x), 150, 'nhits', 0)


@pytest.mark.parametrize('name', ['nhits_student', 'nhits_window', 'nhits_iv'])
def test_a_member_with_an_option_is_whole_on_disk_and_asked_alone_as_among_others(implied, deep, tmp_path, name, monkeypatch):
    monkeypatch.setattr(nw.Network, 'seeds', 1); cls = nw.VARIANTS[name]; monkeypatch.setattr(nw.Nhits, 'seeds', 1)
    w = implied.windows(); t = Targets.of(w); old, new = w.day < 70, w.day == 80; m = cls().fit(w[old], t[old]); q, again = m.quantiles(w[new]), load(m.save(tmp_path/'m'))
    np.testing.assert_array_equal(again.quantiles(w[new]), q); known = np.isfinite(q[:, 0, 0]); assert known.any() and (np.diff(q[known, 0]) >= 0).all() and cls.config()['kind'] == m.kind
    one = np.concatenate([m.outputs(w[new][i:i + 1])[0] for i in np.flatnonzero(known)[:5]]); np.testing.assert_allclose(one, m.outputs(w[new][known])[0][:5], atol=1e-5)
    assert (nw.IV30 in m.columns) == (name == 'nhits_iv')
    if name == 'nhits_iv': # nobody quotes it any more: silent, with its reason
        x = implied.x.copy(); x[80, :, implied.names.index(nw.IV30)] = np.nan; mute = replace(implied, x=x).windows(w.day[new], w.minute[new]); open_ = w.minute[new] < 389
        assert np.isnan(m.quantiles(mute)[open_]).all() and set(m.answered(mute)[open_].by) == {''} and all('log_iv_30' in o for o in m.answered(mute)[open_].why)
    moved = m.update(w[new], t[new].only(np.arange(9) < 4), session(implied.days[80]).close); assert moved is not m and np.isfinite(moved.quantiles(w[new])[known, 0]).all()


@pytest.fixture(scope='module')
def fitted(panel, deep):
    class Brief(nw.Nhits): seeds = 1
    w = panel.windows(); t = Targets.of(w).only(np.arange(9) < 4)
    return Brief().fit(w[w.day < 70], Targets.of(w)[w.day < 70]), w, t, lambda d: (w[w.day == d], t[w.day == d], session(panel.days[d]).close)


def test_what_the_optimiser_knows_survives_the_disk(fitted, tmp_path):
    m, w, t, of = fitted; one = m.update(*of(80)); two, again = one.update(*of(81)), load(one.save(tmp_path/'m')).update(*of(81))
    assert all(np.array_equal(two.params[k], again.params[k]) for k in two.params) and two.notes == json.loads(json.dumps(two.notes))
    bare = type(one)(); bare.params, bare.notes = {k: v for k, v in one.params.items() if k != 'adam0'}, one.notes
    assert not np.array_equal(bare.update(*of(81)).params['net0'], two.params['net0']) # without it the same labels move it elsewhere
    taken = [{float(v) for k, v in unpack(o.params['adam0'].tobytes()).items() if k.startswith('step')} for o in (one, two)]; assert taken == [{nw.MOVES}, {2*nw.MOVES}]


def test_labels_that_nobody_knows_yet_are_refused_and_absent_ones_freeze(fitted, panel):
    m, w, t, of = fitted; rows, labels, close = of(80); before = {k: v.copy() for k, v in m.params.items()}
    with pytest.raises(UsageError, match='before its time'): m.update(rows, labels, close - pd.Timedelta(minutes=1))
    with pytest.raises(UsageError, match='time zone'): m.update(rows, labels, close.tz_localize(None))
    noon = session(panel.days[80]).open + pd.Timedelta(hours=3); due = labels.only(np.stack([known_at(panel, rows.day, rows.minute, h) <= noon for h in HORIZONS], 1))
    one = m.update(rows, due, noon); later = panel.close.copy(); later[80, 180:] *= 1.01; wild = replace(panel, close=later)
    assert one is not m and m.update(rows, labels.only(np.zeros(9, bool)), close) is m and one.update(rows, due, noon) is one # nothing known; taught already
    again = m.update(replace(rows, panel=wild), due, noon); assert np.array_equal(again.params['net0'], one.params['net0']) # what comes after noon taught nothing
    assert all(np.array_equal(m.params[k], v) for k, v in before.items()) and 'updated' not in m.notes


def test_what_cannot_be_gone_over_again_is_not_learned_over(fitted):
    m, w, t, of = fitted; alone = type(m)(); net = nw.unpacked(m.params['net0'].tobytes()); net['pages'] = net['pages'] - [[40000, 0]]
    alone.params, alone.notes = m.params | dict(net0=np.frombuffer(nw.packed(net), np.uint8)), m.notes
    with pytest.raises(ModelError, match='go over again'): alone.update(*of(80))


@pytest.mark.parametrize('name', [o for o in MEMBERS if o not in nw.NETWORKS | nw.VARIANTS])
def test_what_is_fitted_in_one_go_gives_itself_back(name, panel):
    m = MEMBERS[name](); w = panel.windows(); rows = w[w.day == 80]; labels = Targets.of(rows).only(np.arange(9) < 4)
    assert m.update(rows, labels, session(panel.days[80]).close) is m
    with pytest.raises(UsageError, match='before its time'): m.update(rows, labels, session(panel.days[80]).open)


def test_no_object_is_unpickled(tmp_path):
    data = io.BytesIO(); np.savez(data, w=np.array([object()], object), columns=np.array('[]'))
    with pytest.raises(ValueError, match='pickle'): nw.unpacked(data.getvalue())


def test_too_little_history_is_said(panel, deep):
    with pytest.raises(ModelError, match='deepen|labels'): nw.train(panel, 30, 'nhits', 0)
    with pytest.raises(ModelError, match='needs 256 lessons'): nw.train(panel, 56, 'nhits', 0)
