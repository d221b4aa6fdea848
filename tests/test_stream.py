"""The stream between processes: killed and restarted publishers, several readers, slow ones, strangers."""
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyresearch.core import ET, DataError, FolderError
from spyresearch.live.stream import Board, Publisher, Subscriber, desk, plain, read_desk

WHEN = datetime(2025, 12, 1, 10, 0, tzinfo=ET)
ENGINE = '''
import sys, time
from datetime import datetime
from spyresearch.core import ET
from spyresearch.live.stream import Publisher
pub = Publisher(sys.argv[1], 'simulated:demo')
for i in range(100000):
    pub.publish('quote', dict(i=i, run=pub.run), datetime.now(ET))
    time.sleep(float(sys.argv[2]))
'''


def engine(root, every=.002):
    before = read_desk(root)
    p = subprocess.Popen([sys.executable, '-c', ENGINE, str(root), str(every)])
    wait(lambda: (read_desk(root) or {}).get('run') not in (None, (before or {}).get('run')))
    return p


def wait(done, most=20):
    end = time.monotonic() + most
    while not done():
        assert time.monotonic() < end, 'waits in vain'
        time.sleep(.005)


def hear(sub, done, most=20):
    "Poll until `done(messages)`."
    out = []
    def enough():
        out.extend(sub.poll())
        return done(out)
    wait(enough, most)
    return out


def check_whole(messages):
    "A snapshot first, and after each snapshot every number."
    assert messages[0]['kind'] == 'snapshot'
    for a, b in zip(messages, messages[1:]):
        if b['kind'] != 'snapshot': assert (b['seq'], b['run']) == (a['seq'] + 1, a['run'])


def test_a_killed_publisher_is_noticed_and_its_successor_found(tmp_path):
    first = engine(tmp_path)
    with Subscriber(tmp_path) as sub:
        out = hear(sub, lambda o: len(o) > 50)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        out += hear(sub, lambda _: sub.heard == 'silent')
        assert sub.silent_s > 5 and read_desk(tmp_path), 'a killed process leaves its file'
        second = engine(tmp_path)
        new = hear(sub, lambda o: len(o) > 50)
        assert sub.heard == 'live' and {o['run'] for o in new} == {read_desk(tmp_path)['run']}
        check_whole(out + new)
        second.kill()
        second.wait()


def test_several_readers_hear_the_same(tmp_path):
    p = engine(tmp_path)
    subs = [Subscriber(tmp_path) for _ in range(3)]
    outs = [[] for _ in subs]
    def all_heard():
        for s, o in zip(subs, outs): o += s.poll()
        return min(map(len, outs)) > 100
    wait(all_heard)
    for o in outs: check_whole(o)
    bodies = [{m['seq']: m['body'] for m in o if m['kind'] == 'quote'} for o in outs]
    both = bodies[0].keys() & bodies[1].keys() & bodies[2].keys()
    assert len(both) > 50 and all(bodies[0][k] == bodies[1][k] == bodies[2][k] for k in both)
    for s in subs: s.close()
    p.kill()
    p.wait()


def test_a_reader_that_sleeps_never_holds_up_the_publisher_and_gets_the_present(tmp_path):
    with Publisher(tmp_path, 'simulated:demo') as pub, Subscriber(tmp_path, kept=10) as slow:
        hear(slow, lambda o: len(o) == 1)
        for i in range(20000): pub.publish('quote', dict(i=i, pad='x'*2000), WHEN)
        out = hear(slow, lambda o: o and o[-1]['seq'] == 20000)
        assert slow.snapshots >= 2 and slow.lost > 0
        check_whole([dict(kind='snapshot', seq=0, run=pub.run), *out])
        last = out[-1]['body']
        assert (last['quote'][0]['body'] if out[-1]['kind'] == 'snapshot' else last)['i'] == 19999


def test_the_last_message_of_a_burst_is_missed_at_the_next_beat(tmp_path):
    with Publisher(tmp_path, 'simulated:demo') as pub, Subscriber(tmp_path) as sub:
        hear(sub, lambda o: len(o) == 1)
        with pub.lock:
            pub.seq += 1   # as if it had been dropped
            pub.board.put('quote', dict(i=7), 'now')
        out = hear(sub, lambda o: len(o) == 1)
        assert out[0]['kind'] == 'snapshot' and out[0]['body']['quote'][0]['body'] == {'i': 7}


def test_another_version_and_an_open_file_are_refused(tmp_path):
    with Publisher(tmp_path, 'simulated:demo') as pub, Subscriber(tmp_path) as sub:
        hear(sub, lambda o: len(o) == 1)
        with pub.lock: pub.out.send(json.dumps(dict(v=2, kind='quote', run=pub.run)).encode())
        with pytest.raises(DataError, match='version 2'): hear(sub, lambda _: False, 3)
        assert desk(tmp_path).stat().st_mode & 0o777 == 0o600
        desk(tmp_path).chmod(0o640)
        with pytest.raises(FolderError, match='read by others'): Subscriber(tmp_path)
        desk(tmp_path).chmod(0o600)


number = st.one_of(st.floats(), st.integers(-9, 9), st.none(), st.text(max_size=5))
tree = st.recursive(number, lambda o: st.one_of(st.lists(o, max_size=4), st.dictionaries(st.text(max_size=4), o, max_size=4)), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(tree)
def test_a_body_survives_the_wire(body):
    once = plain(body)
    assert json.loads(json.dumps(once, allow_nan=False)) == once == plain(once)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=30))
def test_a_snapshot_is_the_newest_of_each_minute_of_the_newest_day(said):
    b, want, day = Board(), {}, None
    for d, m, v in said:
        if d != day: want, day = {}, d
        want[m] = v
        b.put('minute', dict(start=f'2025-12-0{d}T09:3{m}', v=v), '')
    assert [o['body']['v'] for o in b.body()['minute']] == list(want.values())
