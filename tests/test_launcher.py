"""The launcher as a process: what is sent to it reaches the command, whose exit status comes back, and nothing is left behind."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')


def launch(*args, python=sys.executable, **kw):
    "spy.py with this environment's Python, and nothing to install."
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import spy; spy.PYTHON, spy.install = {str(python)!r}, lambda names: None; sys.exit(spy.main({[str(o) for o in args]!r}))"
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)


def under_way(p, word):
    for line in p.stdout:
        if word in line: return psutil.Process(p.pid).children(recursive=True)
    raise AssertionError(p.communicate()[1])


def gone(children): return not psutil.wait_procs(children, 10)[1]


@pytest.mark.parametrize('n', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize('group', [True, False], ids=['group', 'alone'])
def test_a_signal_ends_the_replay_behind_it(n, group):
    p = launch('replay', '--sessions', 10)
    children = under_way(p, 'control')
    (os.killpg if group else os.kill)(p.pid, n)
    _, err = p.communicate(timeout=20)
    assert len(children) == 1 and gone(children) and p.returncode == 128 + n and 'Traceback' not in err, err


@pytest.mark.parametrize('n', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('group', [True, False], ids=['group', 'alone'])
def test_a_signal_ends_a_live_run_in_good_order(n, group, tmp_path):
    p = launch('live', '--no-options', '--days', 3, '--sessions', 10, '--speed', 20, '--asof', '2025-12-05T09:59', '--data', tmp_path)
    children = under_way(p, 'link up')
    (os.killpg if group else os.kill)(p.pid, n)
    out, err = p.communicate(timeout=30)
    assert len(children) == 2 and gone(children) and p.returncode == 128 + n
    assert 'recorded up to' in out.splitlines()[-1] and err == 'interrupted; what was finished is kept: the same command goes on from there\n', out + err


def test_the_exit_status_is_the_commands(tmp_path):
    for args, code in ((['--help'], 0), (['hstory'], 2), (['history', '--bars', 'none.csv', '--data', str(tmp_path)], 3)):
        p = launch(*args)
        p.communicate(timeout=60)
        assert p.returncode == code


@pytest.mark.parametrize('n', [signal.SIGKILL, signal.SIGSEGV])
def test_a_command_that_a_signal_kills(n, tmp_path):
    "Its status is what a shell would say: 128 and the signal's number."
    python = tmp_path/'python'
    python.write_text(f'#!/bin/sh\nkill -{int(n)} $$\n')
    python.chmod(0o755)
    p = launch('run', python=python)
    p.communicate(timeout=20)
    assert p.returncode == 128 + n


def test_what_nohup_ignores_stays_ignored():
    p = launch('replay', '--sessions', 10, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    child, = under_way(p, 'control')
    p.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGHUP)
    assert p.poll() is None and child.is_running()
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=20)
    assert p.returncode == 143 and gone([child])
