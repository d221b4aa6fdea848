"""The `spy` command as a process: exit statuses of the contract, three lines instead of a traceback, clean standard output."""
import json
import os
import socket
import subprocess
import sys

import pytest

SPY = [sys.executable, '-m', 'spyresearch.cli']


def spy(*args, **kw): return subprocess.run([*SPY, *map(str, args)], capture_output=True, text=True, timeout=300, **kw)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.mark.parametrize('args, said', [
    (['hstory'], 'No such command'), (['history', '--dys', 3], 'No such option'), (['history', '--days', 'many'], 'neither a number of sessions'),
    (['history', '--days', 0], 'neither a number of sessions'), (['history', '--asof', 'yesterday'], 'is not a date'), (['run', '--tws', '7497'], 'not HOST:PORT'),
    (['history', '--tws', '127.0.0.1:7497', '--bars', 'a.csv'], 'exclude each other'), (['history', '--daily', 'd.csv'], 'accompany --bars'),
    (['bench', '--only', 'speed'], 'no such benchmark'), (['test', '--only', 'everything'], 'no such check')])
def test_wrong_usage_is_2(args, said):
    done = spy(*args)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr


def test_no_tws_is_4_in_three_lines(tmp_path):
    done = spy('history', '--tws', f'127.0.0.1:{free_port()}', '--data', tmp_path)
    assert done.returncode == 4 and len(done.stderr.strip().splitlines()) == 3 and 'nothing listens' in done.stderr
    assert 'Traceback' in spy('history', '--tws', f'127.0.0.1:{free_port()}', '--data', tmp_path, '--debug').stderr


def test_unusable_bars_are_3(tmp_path):
    bad = tmp_path/'bars.csv'
    bad.write_text('Datetime,open,high,low,close,volume\n2026-03-31T09:30:00-04:00,1,0.5,1,1,10\n')
    done = spy('history', '--bars', bad, '--data', tmp_path/'data')
    assert done.returncode == 3 and 'not usable' in done.stderr and 'Traceback' not in done.stderr
    assert spy('history', '--bars', tmp_path/'none.csv', '--data', tmp_path/'data').returncode == 3


def test_commands_that_need_an_earlier_one_say_so(tmp_path):
    for command, first in (('prepare', 'spy history'), ('tickets', 'spy run')):
        done = spy(command, '--data', tmp_path)
        assert done.returncode == 2 and first in done.stderr


def test_history_prepare_and_strict(tmp_path):
    first, again = spy('history', '--days', 5, '--data', tmp_path), spy('history', '--days', 5, '--data', tmp_path, '--strict')
    assert first.returncode == 0 and '5 fetched' in first.stdout and 'simulated:demo' in first.stdout
    assert again.returncode == 5 and '5 kept, 0 fetched' in again.stdout
    assert '5 written' in spy('prepare', '--data', tmp_path).stdout
    assert spy('prepare', '--data', tmp_path, '--strict').returncode == 5
    other = spy('history', '--days', 5, '--seed', 8, '--data', tmp_path)
    assert other.returncode == 3 and 'simulated:demo' in other.stderr and 'demo-8' in other.stderr


def test_run_leaves_json_report_and_words(tmp_path):
    "Standard output is pure JSON with `--json -`; the words of the run are what `spy tickets` repeats."
    done = spy('run', '--days', 90, '--members', 'har', '--data', tmp_path/'data', '--reports', tmp_path/'reports', '--json', '-', cwd=tmp_path, env={**os.environ, 'COLUMNS': '80'})
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body['provenance'] == 'simulated:demo' and list(body['horizons']) == ['5', '15', '30', '60', 'rest_of_day', '1d', '2d', '3d', '5d']
    assert 'report: ' in done.stderr and len(list((tmp_path/'reports').rglob('report.html'))) == 1
    said = spy('tickets', '--data', tmp_path/'data')
    assert said.returncode == 0 and 'SIMULATED, not to be traded' in said.stdout and said.stdout.splitlines()[1] in done.stderr
