"""What the data folder does with damaged files, crashes, full disks and company."""
import errno, json, os, re, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import made
from spyresearch import core, folder
from spyresearch.core import DataError, FolderError
from spyresearch.folder import csv_bytes, csv_columns
from spyresearch.journal import Journal
from spyresearch.sessions import minutes
from spyresearch.store import Store

A, B, HALF = made.DAYS[0], made.DAYS[1], next(d for d in made.DAYS if d.day == 28)

@pytest.fixture
def store(tmp_path):
    s = Store(tmp_path/'data', 'simulated:made')
    for d in (A, B, HALF): s.write_raw(d, made.bars([d], 500. + d.day))
    return s

@given(st.lists(st.floats(allow_infinity=False, width=64), min_size=1, max_size=390))
@settings(max_examples=150, deadline=None)
def test_every_number_survives_the_file(xs):
    df = pd.DataFrame({'x': xs, 'y': np.float64(1)}, index=minutes(A)[:len(xs)])
    data = csv_bytes(df)
    assert np.array_equal(csv_columns(data)[2], df.to_numpy(), equal_nan=True)
    assert csv_bytes(df) == data

def test_half_day_has_210_rows(store):
    assert len(store.raw(HALF)) == 210 and store.raw_days() == [A, B, HALF]

def _spreadsheet(data):
    "As a spreadsheet with a continental locale saves it."
    lines = data.decode().splitlines()
    rows = [f"{o[8:10]}/{o[5:7]}/{o[:4]} {o[11:16]}{o[25:]}" for o in lines[1:]]
    return b'\xef\xbb\xbf' + '\r\n'.join([lines[0], *rows]).encode() + b'\r\n'

def _swap(data):
    lines = data.splitlines(keepends=True)
    return b''.join([*lines[:7], lines[8], lines[7], *lines[9:]])

DAMAGE = dict(
    empty=(lambda o: b'', 'the file is empty'),
    truncated_in_a_line=(lambda o: o[:len(o)//2].rstrip(b'\n') , 'cut off|cannot be read|incomplete'),
    truncated_at_a_line=(lambda o: b''.join(o.splitlines(keepends=True)[:200]), 'incomplete: 199 rows of 390'),
    reordered=(_swap, 'out of order'),
    doubled=(lambda o: o + o.splitlines(keepends=True)[-1], '1 minutes twice'),
    doubled_whole=(lambda o: o + o.split(b'\n', 1)[1], '390 minutes twice'),
    tampered=(lambda o: o.replace(b',1003,', b',1004,'), 'its hash is not the one'),
    broken_ohlc=(lambda o: o.replace(o.splitlines()[1].split(b',')[2], b'1.5', 1), 'high or low does not enclose'),
    negative=(lambda o: o.replace(o.splitlines()[1].split(b',')[1], b'-5', 1), 'price not above zero'),
    header=(lambda o: o.replace(b'close', b'last', 1), 'wrong header: last'),
    other_day=(lambda o: o.replace(str(A).encode(), str(B).encode()), f'outside the session of {A}'),
    words=(lambda o: o.replace(b',1003,', b',many,'), 'cannot be read'),
    spreadsheet=(_spreadsheet, "spreadsheet.*byte-order mark.*CRLF.*times rewritten as '10/11/2025 09:30'"),
    byte_order_mark=(lambda o: b'\xef\xbb\xbf' + o, 'spreadsheet.*byte-order mark'),
    crlf=(lambda o: o.replace(b'\n', b'\r\n'), 'spreadsheet.*CRLF'),
    semicolons=(lambda o: o.replace(b',', b';'), 'spreadsheet.*another separator'),
    binary=(lambda o: bytes(range(256))*40, ''),
)

@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_file_is_set_aside_with_its_reason(store, kind):
    spoil, reason = DAMAGE[kind]
    path = store.original.file(A); others = {d: store.original.file(d).read_bytes() for d in (B, HALF)}
    spoiled = spoil(path.read_bytes()); path.write_bytes(spoiled)
    fresh = Store(store.root)
    assert fresh.raw_days() == [B, HALF]
    with pytest.raises(DataError, match='does not count'): fresh.raw(A)
    told = fresh.tidy()
    assert list(told) == [f'original_data/{A}.csv']
    assert re.search(reason, told[f'original_data/{A}.csv'])
    assert (fresh.quarantined/f'{A}.csv').read_bytes() == spoiled          # nothing is deleted
    assert told[f'original_data/{A}.csv'] in (fresh.quarantined/f'{A}.csv.reason.txt').read_text()
    assert {d: fresh.original.file(d).read_bytes() for d in (B, HALF)} == others
    fresh.write_raw(A, made.bars([A], 500. + A.day)); path.write_bytes(spoiled)
    assert Store(store.root).tidy() and (fresh.quarantined/f'{A}.1.csv').exists()   # a second one does not overwrite the first

def test_daily_file_of_another_registry_or_damaged_is_rebuilt_not_set_aside(store):
    store.write_daily(A, made.bars([A]), 'r1')
    assert store.daily_days('r1') == [A] and store.daily_days('r2') == [] and store.daily(A, 'r2') is None
    store.features.file(A).write_bytes(b'rubbish')
    fresh = Store(store.root)
    assert fresh.daily_days() == [] and fresh.daily(A, 'r1') is None and fresh.tidy() == {} and not fresh.quarantined.exists()

def test_file_without_manifest_is_of_unknown_origin(store):
    store.original.manifest.unlink()
    fresh = Store(store.root, 'simulated:made')
    assert fresh.raw_days() == [] and set(fresh.tidy().values()) == {'no manifest says where it came from'}
    assert len(list(fresh.quarantined.glob('*.csv'))) == 3

@pytest.mark.parametrize('text', ['', '{', '[]', '{"schema": 99, "days": {}}'])
def test_broken_manifest_is_refused_and_changed_by_nobody(store, text):
    store.original.manifest.write_text(text)
    with pytest.raises(DataError, match='not a manifest') as e: Store(store.root)
    assert e.value.todo and store.original.manifest.read_text() == text and e.value.exit_code == 3

def test_provenance_is_fixed_by_the_manifest(store):
    with pytest.raises(DataError, match='simulated:made, not tws') as e: Store(store.root, 'tws')
    assert e.value.exit_code == 3 and e.value.todo
    with pytest.raises(DataError, match='simulated:made, not replay:x'): Store(store.root).claim('replay:x')
    with pytest.raises(DataError, match='nobody said'): Store(store.root.parent/'new').write_raw(A, made.bars([A]))

def test_writing_the_same_again_changes_no_byte(store):
    before = made.files(store.root); stamps = {p: p.stat().st_mtime_ns for p in store.root.rglob('*.csv')}
    for d in (A, B, HALF): store.write_raw(d, made.bars([d], 500. + d.day))
    assert made.files(store.root) == before and {p: p.stat().st_mtime_ns for p in store.root.rglob('*.csv')} == stamps

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_killed_between_any_two_writes_nothing_valid_is_lost(tmp_path):
    "A child process is ended, as by kill -9, before its n-th write, for every n."
    gap = made.bars([B]).drop(minutes(B)[5])
    def work(s):
        s.write_raw(A, made.bars([A])[:100], sealed=False)
        with s.original.batch():
            s.write_raw(A, made.bars([A])); s.write_raw(B, gap, known_gaps=['09:35']); s.write_raw(HALF, made.bars([HALF]))
        s.write_daily_bars(made.daily(made.DAYS))
    def crash_at(n, root):
        real, left = core.atomic_write, [n]
        def write(path, data):
            left[0] -= 1
            if not left[0]: os._exit(9)
            return real(path, data)
        if (pid := os.fork()) == 0:
            try: folder.atomic_write = write; sys.modules['spyresearch.store'].atomic_write = write; work(Store(root, 'simulated:made'))
            finally: os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    clean = tmp_path/'clean'; work(Store(clean, 'simulated:made')); ends = set()
    for n in range(1, 15):
        root = tmp_path/str(n); ends.add(crash_at(n, root))
        s = Store(root, 'simulated:made')
        set_aside = s.tidy()
        assert set_aside == {} or list(set_aside) == ['original_data/daily.csv']
        for d in s.raw_days(sealed=True): assert s.original.file(d).read_bytes() == Store(clean).original.file(d).read_bytes()
        missing = [d for d in (A, B, HALF) if d not in s.raw_days(sealed=True)]
        for d in missing: s.write_raw(d, {A: made.bars([A]), B: gap, HALF: made.bars([HALF])}[d], known_gaps=['09:35'] if d == B else ())
        s.write_daily_bars(made.daily(made.DAYS))
        assert {k: v for k, v in made.files(root).items() if 'quarantine' not in k} == made.files(clean)
    assert ends == {0, 9}

@contextmanager
def full_disk(monkeypatch):
    "A folder on a disk without room: a real one where this user may mount it, else a write that fails as on one."
    root = Path(tempfile.mkdtemp())
    mounted = sys.platform == 'linux' and os.geteuid() == 0 and not subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=96k', 'none', root], capture_output=True).returncode
    try:
        yield root, lambda: None if mounted else monkeypatch.setattr(os, 'fsync', _no_room)
    finally:
        if mounted: subprocess.run(['umount', root], check=True)

def _no_room(fd): raise OSError(errno.ENOSPC, 'No space left on device')

def test_full_disk_says_so_and_loses_nothing(monkeypatch):
    with full_disk(monkeypatch) as (root, fill):
        s = Store(root/'data', 'simulated:made'); s.write_raw(A, made.bars([A]))
        before = made.files(s.root); fill()
        with pytest.raises(FolderError, match='[Nn]o space left') as e:
            for d in made.DAYS[1:]: s.write_raw(d, made.bars([d])); before = made.files(s.root)
        assert e.value.exit_code == 3 and e.value.todo
        monkeypatch.undo()
        assert Store(s.root).tidy() == {} and set(before) <= set(made.files(s.root))
        assert all(v == before[k] for k, v in made.files(s.root).items() if k in before and k.endswith('.csv'))

def test_full_disk_journal_keeps_earlier_records(monkeypatch, tmp_path):
    j = Journal(tmp_path/'t.csv', ['id']); j.append(dict(id=1))
    monkeypatch.setattr(os, 'fsync', _no_room)
    with pytest.raises(FolderError, match='No space'): j.append(dict(id=2))
    monkeypatch.undo()
    assert j.read() == [dict(id='1')] and Journal(tmp_path/'t.csv', ['id']).torn == ''

@pytest.mark.parametrize('name, whole, torn', [('t.csv', b'id\n1\n', b'2,"h'), ('t.csv', b'', b'i'), ('t.jsonl', b'{"id": "1"}\n', b'{"id": "\xc3')])
def test_reading_a_torn_journal_changes_no_byte_and_the_next_record_repairs_it(tmp_path, name, whole, torn):
    path = tmp_path/name; path.write_bytes(whole + torn); stamp = path.stat().st_mtime_ns
    j = Journal(path, ['id'])
    assert j.read() == [dict(id='1')]*bool(whole) and j.torn == torn.decode('utf8', 'replace') and len(j) == bool(whole)
    assert path.read_bytes() == whole + torn and path.stat().st_mtime_ns == stamp
    j.append(dict(id='2'))
    assert [o['id'] for o in j.read()] == ['1']*bool(whole) + ['2'] and j.torn == '' and path.read_bytes().startswith(whole) and path.read_bytes().endswith(b'\n')

@contextmanager
def as_nobody():
    "Root may write everywhere, so a read-only folder needs another user."
    if os.geteuid(): yield; return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

@pytest.mark.skipif(sys.platform == 'win32', reason='folders have no mode there')
def test_read_only_folder_says_so():
    root = Path(tempfile.mkdtemp()); root.chmod(0o755)
    s = Store(root/'data', 'simulated:made'); s.write_raw(A, made.bars([A]))
    before = made.files(s.root); (root/'data').chmod(0o555); (root/'data'/'original_data').chmod(0o555)
    with as_nobody():
        for act in (lambda: s.lock().__enter__(), lambda: s.write_raw(B, made.bars([B])), lambda: Journal(root/'data'/'j.csv', ['id']).append(dict(id=1))):
            with pytest.raises(FolderError, match='[Pp]ermission|Read-only') as e: act()
            assert e.value.exit_code == 3 and e.value.what and e.value.todo
        assert s.raw_days() == [A]              # reading goes on
    assert made.files(s.root) == before

HOLD = "import sys; from spyresearch.store import Store\nwith Store(sys.argv[1]).lock('spy run --days 3'): print('held', flush=True); sys.stdin.read()"

def test_second_run_is_refused_naming_the_first(store):
    first = subprocess.Popen([sys.executable, '-c', HOLD, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == 'held\n'
        with pytest.raises(FolderError) as e: store.lock().__enter__()
        since = json.loads((store.root/'.lock.json').read_text())['since']
        assert f'process {first.pid} (spy run --days 3)' in str(e.value) and since in str(e.value) and e.value.exit_code == 3
    finally: first.kill(); first.wait()
    with store.lock(): pass                     # a killed process holds nothing

def test_what_the_first_run_wrote_is_seen_by_the_next(store):
    late = Store(store.root)                    # opened before the other writes
    with store.lock(): store.write_raw(made.DAYS[2], made.bars([made.DAYS[2]]))
    with late.lock(): late.mark_absent([made.DAYS[3]], 'x')
    assert Store(store.root).original.m['days'].keys() == {str(d) for d in (A, B, HALF, made.DAYS[2])}
