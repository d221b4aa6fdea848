"""Alerts from the command line on: a way that cannot work is refused before anything starts, and the address of a webhook is never printed."""
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from spyresearch.core import UsageError
from spyresearch.live.alerts import Alerts, bell, desktop, together, webhook, ways_of

SECRET = 'http://127.0.0.1:9/hook/T0PS3CRET'


def spy(*args, **env):
    return subprocess.run([sys.executable, '-m', 'spyresearch.cli', *args], capture_output=True, text=True, timeout=120, env={k: v for k, v in os.environ.items() if not k.startswith('SPY_')} | env)


@pytest.mark.parametrize('ways, env, says', [(['pigeon'], {}, 'there is no such way: bell, desktop, webhook'), (['bell', 'webhook'], {}, 'SPY_WEBHOOK holds no address'), (['webhook'], dict(SPY_WEBHOOK='T0PS3CRET'), 'SPY_WEBHOOK holds no address')])
def test_a_way_that_cannot_work_is_refused_before_anything_starts(tmp_path, ways, env, says):
    done = spy('live', '--data', str(tmp_path/'data'), *[x for o in ways for x in ('--alert', o)], **env)
    assert done.returncode == 2 and says in done.stderr and 'T0PS3CRET' not in done.stdout + done.stderr and not (tmp_path/'data').exists()


def test_an_address_that_does_not_answer_is_named_once_and_never_shown():
    said, got = [], []
    a = Alerts(dict(webhook=webhook(SECRET, .01), list=got.append), say=said.append)
    for k in range(3): a.tell(f'line {k}')
    a.close(20.)
    assert got == ['line 0', 'line 1', 'line 2'] and said == ['alerts by webhook fail (OSError); the others go on']
    with pytest.raises(OSError) as e: webhook(SECRET, .01)('x')
    assert 'T0PS3CRET' not in repr(e.value) and e.value.__cause__ is None and e.value.__suppress_context__


def test_the_desktop_is_told_with_a_program_and_no_shell(monkeypatch):
    told = []
    monkeypatch.setattr('spyresearch.live.alerts.shutil.which', lambda name: '/usr/bin/notify-send')
    desktop('a; rm -rf "x"', run=lambda cmd, **kw: told.append((cmd, kw)))
    assert told[0][0] == ['notify-send', 'spyresearch', 'a; rm -rf "x"'] and 'shell' not in told[0][1]
    monkeypatch.setattr('spyresearch.live.alerts.shutil.which', lambda name: None); monkeypatch.setattr('spyresearch.live.alerts.sys.platform', 'linux')
    with pytest.raises(UsageError, match='neither notify-send nor osascript'): ways_of(['desktop'])


def test_several_hear_the_same_and_nobody_is_nobody(capsys):
    assert together(None, None) is None
    got = []; together(lambda *m: got.append(m), None, lambda *m: got.append(m))('quote', {}, 'now')
    assert got == [('quote', {}, 'now')]*2
    bell('hello', SimpleNamespace(write=got.append, flush=lambda: None)); assert '\ahello' in got
