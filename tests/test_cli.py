"""The `spy` command as a process: exit statuses of the contract, three lines instead of a traceback, clean standard output."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
import typer

from spyresearch import cli
from spyresearch.journal import Journal
from spyresearch.models.champions import load_model, promotions
from spyresearch.sessions import session
from spyresearch.store import Store
from spyresearch.tws.control import token_file

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
    (['bench', '--only', 'speed'], 'no such benchmark'), (['bench', '--only', 'live', '--bars', 'one', '--bars', 'five'], '--bars is for walk, nhits, tft'), (['bench', '--bars', 'one', '--bars', 'five'], '2 files for all'), (['test', '--only', 'everything'], 'no such check')])
def test_wrong_usage_is_2(args, said):
    done = spy(*args)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr


LANG = dict(tickets=(), took=('abcd', '--px', '600', '--qty', '1'), closed=('abcd', '--px', '600'), explain=('abcd',), live=('--alert', 'bell'), lab=(), web=())


def test_every_command_with_a_language_is_known_here(): assert {k for k, c in typer.main.get_command(cli.app).commands.items() if any(p.name == 'lang' for p in c.params)} == set(LANG)


@pytest.mark.parametrize('command', LANG)
def test_an_unknown_language_is_refused_before_anything_is_done(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(cli, 'heed', list)
    with pytest.raises(SystemExit) as e: cli.main([command, *LANG[command], '--lang', 'xx', '--data', 'd'])
    said = capsys.readouterr(); assert e.value.code == 2 and said.out == '' and said.err == "no wording in 'xx'\nchoose one of en, zh\n" and not list(tmp_path.iterdir())


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
    assert 'report: ' in done.stderr and len(list((tmp_path/'reports').rglob('report.html'))) == 1 and 'report.html' in (tmp_path/'reports'/'index.html').read_text()
    said = spy('tickets', '--data', tmp_path/'data')
    assert said.returncode == 0 and 'SIMULATED, not to be traded' in said.stdout and said.stdout.splitlines()[1] in done.stderr


TWS = ['--tws', '127.0.0.1:7497']


@pytest.mark.parametrize('args, flags', [
    (['live', '--speed', 'max'], '--speed'), (['live', '--faults', '{}'], '--faults'), (['live', '--seed', '7'], '--seed'), (['live', '--edge', '0'], '--edge'), (['live', '--sessions', '130'], '--sessions'),
    (['live', '--intraminute', 'simulated'], '--intraminute'), (['live', '--speed', '60', '--seed', '8'], '--speed and --seed'), (['live', '--daily', 'd.csv'], '--daily'), (['live', '--chain', 'c.parquet'], '--chain'), (['live', '--quotes', 'q.parquet', '--book', 'b.parquet'], '--quotes and --book'),
    (['history', '--seed', '8'], '--seed'), (['history', '--edge', '1'], '--edge'), (['prepare', '--seed', '8'], '--seed'), (['tickets', '--edge', '1'], '--edge'), (['run', '--sessions', '100'], '--sessions'),
    (['evaluate', '--edge', '1'], '--edge'), (['backtest', '--dividends', 'd.csv'], '--dividends')])
def test_options_of_a_replay_are_not_for_a_tws(args, flags, tmp_path):
    for named in (dict(args=TWS), dict(env=TWS[1])):
        done = spy(*args, *named.get('args', ()), env={**os.environ, **({'SPY_TWS': named['env']} if 'env' in named else {})}, cwd=tmp_path)
        assert done.returncode == 2 and f'{flags} cannot be used with --tws' in done.stderr and len(done.stderr.strip().splitlines()) == 3
    assert not list(tmp_path.iterdir())


def test_a_seed_of_models_is_for_a_tws_too(tmp_path):
    done = spy('evaluate', '--seed', 8, '--tws', f'127.0.0.1:{free_port()}', cwd=tmp_path)
    assert done.returncode == 4 and 'nothing listens' in done.stderr


@pytest.mark.parametrize('until, said', [('', 'is not a time'), ('noon', 'is not a time'), ('08:00', 'before anything happens')])
def test_an_end_that_no_session_reaches_is_wrong_usage(tmp_path, until, said):
    done = spy('live', '--sessions', 10, '--days', 3, '--no-options', '--until', until, '--data', tmp_path)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr


def test_a_folder_that_is_not_there_gets_its_model_before_the_session(tmp_path):
    "A new owner's first command forecasts; the next one goes on with the same model."
    go = ['live', '--sessions', 95, '--days', 90, '--no-options', '--no-report', '--no-learn', '--data', tmp_path/'data', '--until']
    done = spy(*go, '09:46'); store = Store(tmp_path/'data'); assert done.returncode == 0, done.stderr
    (made,), said = promotions(store), Journal(store.journal/'forecasts.jsonl').read()
    assert made['who'] == 'spy live' and made['why'] == 'no model serves: champion.json is not there' and f"{made['to']} serves: judged and fitted on 90 sessions to 2025-12-04" in done.stderr + done.stdout
    assert [o['origin'][11:16] for o in said] == ['09:44', '09:45'] and {o['model'] for o in said} == {made['to']} and all(o['touch']['up'] for o in said)
    m = load_model(store, made['to'], session(date(2025, 12, 5)).close.to_pydatetime()); assert m.manifest['metrics']['60']['n_days'] == 29 and not (tmp_path/'data'/'.stream.json').exists()
    again = spy(*go, '09:48'); assert 'is trained now' not in again.stderr + again.stdout and len(promotions(store)) == 1 and len(Journal(store.journal/'forecasts.jsonl').read()) == 4


def test_until_a_time_and_again_on_the_day_that_is_sealed(tmp_path):
    "An end in the session says what is kept; the next run seals the day and makes its report, though nothing was forecast; a third has nothing to do."
    go = ['live', '--sessions', 10, '--days', 3, '--no-options', '--data', tmp_path, '--asof']
    first, then = spy(*go, '2025-12-05T15:56', '--until', '15:58'), spy(*go, '2025-12-05T15:58', '--reports', tmp_path/'reports')
    assert first.returncode == then.returncode == 0, first.stderr + then.stderr
    assert 'recorded up to 15:58:00' in first.stdout.splitlines()[-1] and 'not sealed' in first.stdout.splitlines()[-1] and 'the day is sealed' in then.stdout
    page = Path(then.stdout.splitlines()[-1].partition('report: ')[2]); assert page.is_relative_to(tmp_path/'reports'/'evening') and 'No ticket; no forecast' in page.read_text(encoding='utf-8'), then.stdout
    again = spy(*go, '2025-12-05T15:57', '--until', '15:59')
    assert again.returncode == 0 and 'sealed already: nothing to do' in again.stdout.splitlines()[-1] and len(again.stdout.splitlines()) == 2


# --- signals

@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')
class TestSignals:
    def start(self, *args, word, **kw):
        "A command under way: it has said `word`."
        p = subprocess.Popen([*SPY, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)
        for line in p.stdout:
            if word in line: return p, line
        raise AssertionError(p.communicate()[1])

    @pytest.mark.parametrize('speed', ['0', 'max'])
    @pytest.mark.parametrize('n', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_replay_ends_and_takes_its_announcement_away(self, n, speed):
        p, line = self.start('replay', '--sessions', 10, '--from-open', '--speed', speed, word='control')
        path = next(o for o in token_file(0).parent.glob('replay-*.json') if json.loads(o.read_text())['pid'] == p.pid)
        p.send_signal(n)
        _, err = p.communicate(timeout=20)
        assert p.returncode == 128 + n and not path.exists() and 'Traceback' not in err, err

    @pytest.mark.parametrize('n, sent', [(signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGTERM, 3), (signal.SIGINT, 1), (signal.SIGINT, 3)])
    def test_a_live_run_ends_in_good_order(self, n, sent, tmp_path):
        p, _ = self.start('live', '--no-options', '--days', 3, '--sessions', 10, '--speed', 20, '--asof', '2025-12-05T09:29:30', '--data', tmp_path, word='link up')
        while not list((tmp_path/'original_data'/'seconds').glob('*.csv')) and p.poll() is None: time.sleep(.05)
        for _ in range(sent): p.send_signal(n)
        out, err = p.communicate(timeout=30)
        assert p.returncode == 128 + n and err == 'interrupted; what was finished is kept: the same command goes on from there\n', err
        assert '2025-12-05 is recorded up to ' in out.splitlines()[-1] and out.strip().endswith('the day is not sealed, and the next run goes on from here')
        with Store(tmp_path).lock(): pass
        assert not (tmp_path/'.lock.json').exists()

    @pytest.mark.parametrize('n', [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize('group', [True, False])
    def test_right_at_the_start_there_is_nothing_to_say(self, n, group, tmp_path):
        for word in ('SIMULATED', 'asleep'):
            p, _ = self.start('live', '--no-options', '--days', 3, '--sessions', 10, '--speed', 60, '--data', tmp_path, word=word)
            (os.killpg if group else os.kill)(p.pid, n)
            out, err = p.communicate(timeout=30)
            assert p.returncode == 128 + n and 'history' not in out and err == 'interrupted; what was finished is kept: the same command goes on from there\n', out + err
            with Store(tmp_path).lock(): pass

    def test_one_in_the_background_of_a_script(self, tmp_path):
        "A shell without job control starts those with SIGINT ignored: Ctrl-C is not for them, SIGTERM is."
        command = ' '.join([*SPY, 'live', '--no-options', '--days', '3', '--sessions', '10', '--speed', '20', '--data', str(tmp_path)])
        p = subprocess.Popen(['sh', '-c', f'{command} & pid=$!; sleep 3; kill -INT $pid; sleep 1; kill -TERM $pid; wait $pid; echo ended $?'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = p.communicate(timeout=60)
        assert out.endswith('ended 143\n') and 'Traceback' not in err, out + err
        with Store(tmp_path).lock(): pass

    def test_one_that_python_drops_is_not_the_last(self):
        "An exception in a clean-up is printed and forgotten, also that of an interruption."
        code = '''import signal
from datetime import UTC, datetime
from spyresearch.cli import HURRY_S, heed, outcome
from spyresearch.core import FixedClock
class Old:
    def __del__(self): signal.raise_signal(signal.SIGTERM)
clock = FixedClock(datetime(2026, 1, 2, tzinfo=UTC))
came, old = heed(clock), Old()
del old
print(outcome(lambda: signal.raise_signal(signal.SIGTERM)), end=' ')
clock.sleep(HURRY_S)
print(outcome(lambda: signal.raise_signal(signal.SIGTERM)), len(came))'''
        p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert p.stdout == '0 130 3\n' and 'KeyboardInterrupt' in p.stderr, p

    def test_nobody_reads_any_longer(self, tmp_path):
        "A recording outlives the pipe that it told its progress to."
        p, _ = self.start('live', '--no-options', '--days', 3, '--sessions', 10, '--asof', '2025-12-05T15:58', '--data', tmp_path, '--no-report', word='SIMULATED')
        p.stdout.close()
        assert p.wait(60) == 0 and p.stderr.read() == '' and Store(tmp_path).raw_days(sealed=True)[-1].isoformat() == '2025-12-05'
        p.stderr.close()

    def test_none_is_lost_while_a_file_is_read(self):
        "Arrow's own handlers would swallow some, and break off the reading at others."
        code = '''import asyncio, os, signal, threading
from spyresearch.folder import csv_bytes, csv_columns
import pandas as pd
data = csv_bytes(pd.DataFrame(dict(a=range(20_000)), index=pd.date_range('2025-12-05 09:30', periods=20_000, freq='s', tz='America/New_York')))
async def main():
    came = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: came.append(1))
    for _ in range(40):
        t = threading.Timer(.0005, os.kill, (os.getpid(), signal.SIGINT)); t.start()
        for _ in range(4): csv_columns(data)
        t.join(); await asyncio.sleep(.002)
    print(len(came))
asyncio.run(main())'''
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
        assert done.stdout == '40\n', done.stdout + done.stderr
