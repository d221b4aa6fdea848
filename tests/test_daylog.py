"""What a growing day file survives: kills, full disks, other programs' files, and steps back in time."""
import os, signal, subprocess, sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.core import DataError, FolderError
from spyresearch.daylog import DayLog, second_stamp
from spyresearch.sessions import session

DAY, HALF, WINTER = date(2026, 3, 31), date(2025, 11, 28), date(2026, 1, 5)
posix = pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL and resource limits')

def log(path, **kw): return DayLog(path/'seconds', ['px', 'size', 'status'], ['status'], **kw)
def row(s, px=600.01, size=100, status='data'): return [second_stamp(DAY, s), px, size, status]
def times(df, day=DAY): return ((df.index - session(day).open)//pd.Timedelta(seconds=1)).tolist()

@pytest.mark.parametrize('day', [DAY, HALF, WINTER])
def test_stamps_are_the_calendars(day):
    n = session(day).n_minutes*60
    want = pd.date_range(session(day).open, periods=n + 60, freq='s')
    assert [second_stamp(day, s) for s in range(0, n + 60, 7)] == [o.isoformat() for o in want[::7]]

@given(st.lists(st.tuples(st.floats(allow_infinity=False) | st.none(), st.integers(0, 2**53), st.text('abcXYZ 0123-', max_size=8)), max_size=30))
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_what_is_read(tmp_path_factory, rows):
    o = log(tmp_path_factory.mktemp('log'))
    for i, r in enumerate(rows): o.append(DAY, [row(i, *r)])
    if not rows: return
    df = o.read(DAY)
    assert np.array_equal(df['px'].to_numpy(), np.array([r[0] for r in rows], float), equal_nan=True)
    assert df['size'].tolist() == [float(r[1]) for r in rows] and df['status'].tolist() == [r[2] for r in rows]
    assert times(df) == list(range(len(rows))) and str(df.index.tz) == 'America/New_York' and df.index.name == 'Datetime'

def test_a_file_cut_anywhere_goes_on(tmp_path):
    "Every length that a crash may leave: whole rows stay, the fragment is handed over, the next row follows."
    o = log(tmp_path)
    o.append(DAY, [row(0), row(1, None)]); o.append(DAY, [row(2)]); o.close()
    good = o.file(DAY).read_bytes()
    for n in range(len(good) + 1):
        o.file(DAY).write_bytes(good[:n])
        new = log(tmp_path)
        seen = len(new.read(DAY)); assert o.file(DAY).read_bytes() == good[:n], 'reading changes nothing'
        r = new.resume(DAY)
        assert r.rows == seen == max(good[:n].count(b'\n') - 1, 0) and r.torn == good[good.rfind(b'\n', 0, n) + 1:n].decode()
        assert r.last == (None if not seen else session(DAY).open + pd.Timedelta(seconds=seen - 1))
        new.append(DAY, [row(9)]); new.close()
        assert times(new.read(DAY)) == [*range(seen), 9]

WRITER = '''
import sys
from datetime import date
from pathlib import Path
from spyresearch.daylog import DayLog, second_stamp
day = date(2026, 3, 31)
log = DayLog(Path(sys.argv[1])/'seconds', ['px', 'size', 'status'], ['status'], unique=False)
for s in range(23400):
    log.append(day, [[second_stamp(day, s), 600 + s/100, k, 'data'*40] for k in range(100)])
    if s == 0: print('ready', flush=True)
'''

@posix
@pytest.mark.parametrize('moment', [.05, .2, .5])
def test_kill_9_leaves_a_readable_file(tmp_path, moment):
    p = subprocess.Popen([sys.executable, '-c', WRITER, tmp_path], stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'ready\n'
    reader = log(tmp_path, unique=False)
    with pytest.raises(subprocess.TimeoutExpired): p.wait(moment)
    before = len(reader.read(DAY))      # while it is being written
    os.kill(p.pid, signal.SIGKILL); p.wait(); p.stdout.close()
    r = reader.resume(DAY); df = reader.read(DAY)
    assert r.rows == len(df) >= before >= 100 and (df['px'] == 600 + np.repeat(np.arange(len(df)//100 + 1), 100)[:len(df)]/100).all()
    whole = len(df)//100 - (len(df) % 100 == 0)          # the last second may be short of rows: it is done again
    r = reader.resume(DAY, upto=session(DAY).open + pd.Timedelta(seconds=whole - 1))
    assert r.rows == whole*100 and set(np.bincount(times(reader.read(DAY)), minlength=whole).tolist()) <= {100}
    reader.append(DAY, [row(whole)]); assert len(reader.read(DAY)) == whole*100 + 1

FULL = '''
import resource, sys
from pathlib import Path
from datetime import date
from spyresearch.core import FolderError
from spyresearch.daylog import DayLog, second_stamp
day, n = date(2026, 3, 31), 0
log = DayLog(Path(sys.argv[1])/'seconds', ['px', 'size', 'status'], ['status'])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for s in range(40):
    try: log.append(day, [[second_stamp(day, s), 600.01, 100, 'data']]); n += 1
    except FolderError as e: why = str(e)
    assert len(log.read(day)) == n
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append(day, [[second_stamp(day, 40), 600.02, 100, 'data']])
print(n, len(log.read(day)), why.splitlines()[0])
'''

@posix
def test_a_full_disk_costs_only_the_rows_that_do_not_fit(tmp_path):
    "The file may not grow past 1,000 bytes: the row that would is refused and taken back; with room again it goes on."
    p = subprocess.run([sys.executable, '-c', FULL, tmp_path], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    n, rows, why = p.stdout.split(maxsplit=2)
    assert 15 < int(n) < 40 and int(rows) == int(n) + 1 and why.startswith('cannot append to')

def test_half_a_write_is_taken_back_even_when_the_disk_refuses_that_too(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(0)])
    class Half:
        def __init__(self, f): self.f = f
        def write(self, data): return self.f.write(data[:7])
        def truncate(self, n): raise OSError(5, 'Input/output error')
        def close(self): self.f.close()
    o._out = Half(o._out)
    with pytest.raises(FolderError, match='cannot append'): o.append(DAY, [row(1)])
    assert o.file(DAY).read_bytes().endswith(b'data\n2026-03') and len(o.read(DAY)) == 1
    o.append(DAY, [row(1)])
    assert times(o.read(DAY)) == [0, 1] and b'\n2026-032026' not in o.file(DAY).read_bytes()

@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='the owner of everything may write everywhere')
def test_a_read_only_folder_is_said(tmp_path):
    (tmp_path/'seconds').mkdir(); (tmp_path/'seconds').chmod(0o500)
    with pytest.raises(FolderError, match='cannot append'): log(tmp_path).append(DAY, [row(0)])

FOREIGN = dict(
    columns=(lambda b: b.replace(b'size', b'sizes'), 'wrong header'),
    spreadsheet=(lambda b: b.replace(b'\n', b'\r\n'), 'spreadsheet'),
    backwards=(lambda b: b.replace(b'09:30:02', b'09:30:00'), 'out of order'),
    other_day=(lambda b: b.replace(b'2026-03-31', b'2026-03-30'), 'another day'),
    no_zone=(lambda b: b.replace(b'-04:00', b''), 'cannot be read|spreadsheet'),
    lacks_a_cell=(lambda b: b.replace(b',100,', b','), 'cannot be read'),
    words=(lambda b: b.replace(b'600.01', b'much'), 'cannot be read'),
    zeros=(lambda b: b[:60] + bytes(20) + b[80:], 'cannot be read|no time'))

@pytest.mark.parametrize('damage', FOREIGN)
def test_a_file_that_is_not_ours_is_neither_read_nor_written(tmp_path, damage):
    change, why = FOREIGN[damage]
    o = log(tmp_path); o.append(DAY, [row(0), row(1), row(2)]); o.close()
    bad = change(o.file(DAY).read_bytes()); o.file(DAY).write_bytes(bad)
    for act in (lambda: o.append(DAY, [row(3)]), lambda: o.read(DAY), lambda: o.resume(DAY), lambda: o.seal(DAY)):
        with pytest.raises(DataError, match=why): act()
    assert o.file(DAY).read_bytes() == bad and o.days() == []
    o.file(DAY).rename(tmp_path/'aside.csv')                  # what the caller does with it
    o.append(DAY, [row(3)]); assert times(o.read(DAY)) == [3]

def test_rows_never_go_back(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(5)])
    before = o.file(DAY).read_bytes()
    for rows in ([row(5)], [row(4)], [row(6), row(6)], [row(7), row(6)]):
        with pytest.raises(DataError, match='too late'): o.append(DAY, rows)
    assert o.file(DAY).read_bytes() == before
    o.append(DAY, [row(6), row(7)]); assert times(o.read(DAY)) == [5, 6, 7]
    again = log(tmp_path)
    with pytest.raises(DataError, match='too late'): again.append(DAY, [row(7)])

def test_a_sealed_day_is_closed_and_known_by_its_hash(tmp_path):
    o = log(tmp_path); o.m['provenance'] = 'simulated:made'
    o.append(DAY, [row(0), row(1)]); o.append(HALF, [[second_stamp(HALF, 0), 1, 2, '']])
    assert o.m['days'][str(DAY)] == dict(sealed=False)
    o.seal(DAY)
    new = log(tmp_path)
    assert new.m['provenance'] == 'simulated:made' and set(new.m['days'][str(DAY)]) == {'rows', 'sha256', 'sealed'}
    assert (new.days(sealed=True), new.days(sealed=False)) == ([DAY], [HALF]) and len(new.frame()) == 3
    with pytest.raises(DataError, match='sealed'): new.append(DAY, [row(9)])
    with pytest.raises(DataError, match='sealed'): new.resume(DAY, upto=None)
    with open(o.file(DAY), 'ab') as f: f.write(b'2026-')
    with pytest.raises(DataError, match='cut off'): new.resume(DAY)
    assert new.days(sealed=True) == []

def test_a_seal_goes_only_with_its_file(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(0), row(1)])
    assert not o.renew(DAY) and not o.renew(HALF)
    o.seal(DAY); was = o.file(DAY).read_bytes()
    assert not o.renew(DAY) and not o.is_open(DAY)
    o.file(DAY).rename(tmp_path/'aside.csv')
    with pytest.raises(DataError, match='sealed') as e: log(tmp_path).append(DAY, [row(2)])
    assert 'move the file away and start again' in e.value.todo
    assert o.renew(DAY) and log(tmp_path).is_open(DAY) and not o.renew(DAY)
    o.append(DAY, [row(2)]); assert times(log(tmp_path).read(DAY)) == [2] and was != o.file(DAY).read_bytes()

@pytest.mark.parametrize('text', ['', '{', '[]', '{"schema": 99, "days": {}}'])
def test_what_is_said_of_a_broken_manifest_is_true_of_rows_that_cannot_be_fetched(tmp_path, text):
    o = log(tmp_path); o.append(DAY, [row(0)]); o.close(); o.manifest.write_text(text)
    with pytest.raises(DataError, match='not a manifest') as e: log(tmp_path)
    assert e.value.todo.startswith('restore it from a copy') and 'set aside and nothing can fetch them again' in e.value.todo and not isinstance(e.value, FolderError)
    o.manifest.rename(tmp_path/'moved')   # as it says: the row counts no more, and is still there
    new = log(tmp_path)
    assert new.days() == [] and new.reason(DAY) == 'no manifest says where it came from' and len(o.file(DAY).read_bytes().splitlines()) == 2

cells = st.lists(st.tuples(st.sampled_from([0, 1, 1.0, 0.0, -0.0, True, None, float('nan'), 600.01, 1e-5]), st.sampled_from([1, 1.0, None]), st.sampled_from(['', 'data'])), min_size=1, max_size=8)

@given(cells, st.sampled_from([list, tuple]))
@settings(max_examples=80, deadline=None)
def test_rows_that_say_the_same_are_written_the_same_at_once_or_singly(tmp_path_factory, rows, kind):
    one, many = (log(tmp_path_factory.mktemp('log')) for _ in range(2))
    rows = [kind([second_stamp(DAY, i), *r]) for i, r in enumerate(rows)]
    many.append(DAY, rows)
    for r in rows: one.append(DAY, [r])
    assert one.file(DAY).read_bytes() == many.file(DAY).read_bytes()

def test_a_file_without_a_manifest_has_no_origin(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(0)]); o.close(); o.manifest.unlink()
    with pytest.raises(DataError, match='no manifest'): log(tmp_path).append(DAY, [row(1)])

def test_a_file_moved_away_is_noticed(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(0)]); o.flush(sync=True)
    o.file(DAY).rename(tmp_path/'aside.csv')
    with pytest.raises(FolderError, match='no longer safe'): o.flush()
    o.append(DAY, [row(1)]); assert times(o.read(DAY)) == [1]

def test_rows_known_at_a_moment(tmp_path):
    o = log(tmp_path); o.append(DAY, [row(0), row(1), row(2)])
    assert times(o.frame(upto=session(DAY).open + pd.Timedelta(seconds=2))) == [0, 1]
    assert list(log(tmp_path/'none').frame().columns) == ['px', 'size', 'status']
