"""Pieces of a walk forward: what survives crashes, damage, other processes, and the death of a machine."""
import os, shutil, signal, subprocess, sys, time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import need
from threadpoolctl import threadpool_limits

from spyresearch.core import SPEED, ModelError
from spyresearch.models import networks as nw, parallel
from spyresearch.models.experiment import MEMBERS, Ledger, evaluate, step
from spyresearch.models.folds import folds
from spyresearch.models.forecaster import Targets
from spyresearch.models.parallel import Job, OnRay, Pieces, Walk, keys, walk_in
from spyresearch.models.windows import Panel
from spyresearch.tws.market import demo_tape

NAMES = 'const,ewma_diurnal,garch_t,har'

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "As the launcher has it: GARCH's last bits depend on it."
    import statsforecast.models, xgboost # noqa: F401 (what is loaded later would not be held)
    with threadpool_limits(1): yield

@pytest.fixture(scope='module')
def panel():
    tape = demo_tape(days=150, older=160)
    return Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), provenance='simulated:demo', older=tape.bars['TRADES', '5 mins'])

@pytest.fixture(scope='module')
def plain(panel): return evaluate(panel, NAMES)

def same(a, b): return list(a.q) == list(b.q) and all(np.array_equal(x[o], y[o], equal_nan=True) for x, y in ((a.q, b.q), (a.sigma, b.sigma)) for o in x)

@pytest.mark.parametrize('name', ['const', 'garch_t', 'har', 'boosted', 'scale', 'refined'])
def test_a_piece_rests_on_nothing_after_its_fold(panel, name):
    block = folds(panel.days)[1]; cut = panel.days_upto(block.stop)
    (w, t), (v, u) = ((o.windows(), Targets.of(o.windows())) for o in (panel, cut))
    a, b = step(MEMBERS[name], w, t, block, 0), step(MEMBERS[name], v, u, block, 0)
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a[:2], b[:2]))
    job = Job(name, MEMBERS[name], block); assert keys([job], w, t, 0) == keys([job], v, u, 0)

def test_what_a_key_hangs_on(panel):
    block = folds(panel.days)[0]; job = Job('har', MEMBERS['har'], block)
    def key(p=panel, seed=0, job=job): w = p.windows(); return keys([job], w, Targets.of(w), seed)[job]
    def moved(name, d): x = getattr(panel, name).copy(); x[d] = x[d]*1.001 + 1; return replace(panel, **{name: x})
    first, last = key(), panel.days[-1]
    assert all(key(moved(o, 3)) != first for o in ('x', 'open', 'high', 'low', 'close', 'volume', 'dividend'))
    assert key(moved('close', block.stop)) == first and key(seed=1) != first and last
    old = panel.older; c = old.close.copy(); c[0] += .01
    assert key(replace(panel, older=replace(old, close=c))) != first and key(replace(panel, older=None)) != first
    table = pd.DataFrame(dict(open=1., high=1., low=1., close=[1., 2., 3.], dividend=0.), [old.days[0], panel.days[5], last]); one = key(replace(panel, daily=table))
    assert one != first and one == key(replace(panel, daily=table[:2])) != key(replace(panel, daily=table[:1]))

def test_a_killed_run_goes_on_where_it_was(tmp_path, plain):
    code = f'''
import os, signal
from spyresearch.models.experiment import Ledger, evaluate
from spyresearch.models.parallel import Walk
from spyresearch.models.windows import Panel
from spyresearch.tws.market import demo_tape
tape = demo_tape(days=150, older=160)
panel = Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), provenance='simulated:demo', older=tape.bars['TRADES', '5 mins'])
def show(done, total, what=''):
    if done == 7: os.kill(os.getpid(), signal.SIGKILL)
evaluate(panel, '{NAMES}', run=Walk(r'{tmp_path}/kept'), ledger=Ledger(r'{tmp_path}/ledger.jsonl'), progress=show)
'''
    assert subprocess.run([sys.executable, '-c', code], env=os.environ | SPEED).returncode == -signal.SIGKILL
    tape = demo_tape(days=150, older=160); ledger, walk = Ledger(tmp_path/'ledger.jsonl'), Walk(tmp_path/'kept')
    again = evaluate(Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), provenance='simulated:demo', older=tape.bars['TRADES', '5 mins']), NAMES, run=walk, ledger=ledger)
    assert (walk.reused, walk.made, len(ledger), len(ledger.keys())) == (7, 5, 4, 4) and same(again, plain) # keys agree between processes

def test_no_damage_passes_for_a_piece(tmp_path, panel):
    pieces = Pieces(tmp_path); w = panel.windows(); made = step(MEMBERS['const'], w[:8000], Targets.of(w)[:8000], folds(panel.days)[0], 0)
    pieces.put('k', made); data = pieces.path('k').read_bytes(); rng = np.random.default_rng(0)
    for at in [*range(0, 60), *rng.integers(0, len(data), 150).tolist(), *range(len(data) - 60, len(data))]:
        pieces.path('k').write_bytes(data[:at] + bytes([data[at] ^ 0xff]) + data[at + 1:]); got = pieces.get('k')
        assert got is None or all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got[:2], made[:2])), at
    for cut in (0, 1, 50, len(data) - 1): pieces.path('k').write_bytes(data[:cut]); assert pieces.get('k') is None
    assert pieces.words and not pieces.path('k').exists() and len(list((tmp_path/'damaged').glob('*.reason.txt'))) == len(pieces.words)

@pytest.fixture
def two_nodes(monkeypatch):
    "A cluster of two machines of one processor each, on loopback (not on 127.0.0.1, which Ray takes for the machine's outer address)."
    try: parallel.ray_module(); from ray.cluster_utils import Cluster
    except parallel.UsageError: need('deep', 'Ray')
    for k, v in SPEED.items(): monkeypatch.setenv(k, v)
    one = dict(num_cpus=1, include_dashboard=False, object_store_memory=2**28)
    cluster = Cluster(initialize_head=True, head_node_args=one | dict(node_ip_address='127.0.0.2', _system_config=dict(health_check_initial_delay_ms=500, health_check_period_ms=500, health_check_failure_threshold=3)))
    try: yield cluster, cluster.add_node(**one, node_ip_address='127.0.0.3')
    finally: cluster.shutdown()

def noting(folder):
    "`teach` that leaves a mark where a bundle begins and ends, and does not come to an end with GARCH on the second machine."
    def teach(shared, id, bundle, *rest):
        import ray
        from spyresearch.models.parallel import teach
        mark = folder/f'{ray.util.get_node_ip_address()} {bundle[0].name} {bundle[0].block.number}'; mark.touch()
        if mark.name.startswith('127.0.0.3 garch'): time.sleep(100)
        yield from teach(shared, id, bundle, *rest)
        mark.with_name(mark.name + ' done').touch()
    return teach

def test_a_machine_dies_in_the_middle(two_nodes, tmp_path, panel, plain, monkeypatch):
    cluster, second = two_nodes; seen, lost, marks = [], [], tmp_path/'marks'; marks.mkdir(); monkeypatch.setattr(parallel, 'teach', noting(marks))
    def show(done, total, what=''):
        seen.append(done)
        if not lost and (busy := [p.name[10:] for p in marks.glob('127.0.0.3 garch*')]): lost.extend(busy); cluster.remove_node(second, allow_graceful=False)
    ledger, walk = Ledger(), Walk(tmp_path, OnRay(cluster.address))
    ev = evaluate(panel, NAMES, run=walk, ledger=ledger, progress=show)
    assert lost and all((marks/f'127.0.0.2 {o} done').exists() for o in lost) and list(marks.glob('127.0.0.3 *done'))
    assert same(ev, plain) and seen == list(range(1, 13)) and (walk.made, len(ledger)) == (12, 4) and len(list(tmp_path.glob('*.npz'))) == 12
    again = Walk(tmp_path); assert same(evaluate(panel, NAMES, run=again), plain) and (again.reused, again.made) == (12, 0)

def dying(folder):
    "`teach` whose process dies after the first piece of a bundle, once."
    def teach(shared, id, bundle, *rest):
        import os
        from spyresearch.models.parallel import teach
        for i, piece in enumerate(teach(shared, id, bundle, *rest)):
            if i and not (folder/'died').exists(): (folder/'died').touch(); os._exit(1)
            yield piece
    return teach

def test_bundles_and_failures_on_a_local_ray(panel, tmp_path, monkeypatch):
    try: parallel.ray_module()
    except parallel.UsageError: need('deep', 'Ray')
    names, seen, walk = 'har,boosted,scale', [], Walk(work=OnRay('local', 2))
    with monkeypatch.context() as m:
        m.setattr(parallel, 'teach', dying(tmp_path)); ev = evaluate(panel, names, run=walk, progress=lambda done, total, what='': seen.append(done))
    assert same(ev, evaluate(panel, names)) and walk.made == 9 and seen == list(range(1, 10)) and (tmp_path/'died').exists()
    short = panel.days_upto(90); short = replace(short, older=None)
    a, b = (evaluate(short, 'light', run=o) for o in (Walk(work=OnRay('local', 2)), Walk()))
    assert a.left_out == b.left_out and 'scale' in a.left_out and same(a, b)


def test_networks_learned_on_a_cluster_are_kept_here_and_go_along(tmp_path, monkeypatch):
    try: parallel.ray_module(); nw.deep()
    except (parallel.UsageError, ModelError): need('deep', 'Ray and NeuralForecast')
    tape = demo_tape(days=90, older=120); panel = Panel.from_bars(tape.bars['TRADES', '1 min'], tape.dividends.to_dict(), older=tape.bars['TRADES', '5 mins'])
    networks = tmp_path/'cache'/'networks'
    def run(work): nw.network.cache_clear(); nw.said.cache_clear(); shutil.rmtree(tmp_path/'cache'/'experiments', ignore_errors=True); walk = walk_in(tmp_path, work); return evaluate(panel, 'nhits', run=walk), walk.shelf
    ev, shelf = run(OnRay('local', 1)); files = {p.name: p.stat().st_ino for p in networks.glob('*.npz')}
    assert files and len(shelf.made) == len(files)
    there, shelf = run(OnRay('local', 1)); assert not shelf.made and {p.name: p.stat().st_ino for p in networks.glob('*.npz')} == files and same(there, ev)
    def unable(*_): raise ModelError('nothing is learned here')
    with monkeypatch.context() as m: m.setattr(nw, 'train', unable); here, _ = run(parallel.here)
    for a, b in zip((*ev.q.values(), *ev.sigma.values()), (*here.q.values(), *here.sigma.values())): np.testing.assert_allclose(a, b, atol=1e-6)
