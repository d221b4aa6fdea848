"""Runs as processes: what a kernel's end, however it comes, leaves behind."""
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat as nbf
import pytest

from spyresearch import runs
from spyresearch.core import FolderError, UsageError
from spyresearch.runs import RunFailed, execute


def book(folder, *code, name='little', tags=('parameters',)):
    "A run notebook with headings, so that messages can name the part."
    cells = [nbf.v4.new_code_cell(code[0], metadata=dict(tags=list(tags)))]
    for i, c in enumerate(code[1:], 1): cells += [nbf.v4.new_markdown_cell(f'## Part {i}'), nbf.v4.new_code_cell(c)]
    nb = nbf.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbf.write(nb, path := Path(folder)/f'{name}.ipynb')
    return path


def left(reports): return sorted(p.name for p in Path(reports).rglob('*') if p.is_file())


def test_kernel_gets_its_environment_and_streams_while_it_runs(tmp_path):
    class Log(io.StringIO):
        seen_at = None
        def write(self, s):
            if 'first' in s: self.seen_at = (tmp_path/'marker').exists()
            return super().write(s)
    log = Log()
    code = f'''import os, sys, time, pathlib
print('first', os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'], sys.flags.hash_randomization)
sys.stdout.flush(); time.sleep(1); pathlib.Path({str(tmp_path/'marker')!r}).touch()'''
    before = dict(os.environ)
    execute(book(tmp_path, 'days = 1', code), {}, tmp_path/'reports', log)
    assert log.getvalue() == 'first PASSIVE 1 0 0\n'
    assert log.seen_at is False, 'the line came only after the cell had ended'
    assert dict(os.environ) == before


def test_a_missing_widget_is_no_news(tmp_path):
    log, code = io.StringIO(), "import warnings\nwarnings.warn('IProgress not found. Please update jupyter')\nwarnings.warn('something else')"
    execute(book(tmp_path, 'days = 1', code), {}, tmp_path/'reports', log)
    assert 'IProgress' not in log.getvalue() and 'something else' in log.getvalue()


def test_a_page_names_no_folder(tmp_path):
    path = book(tmp_path, 'data = ""', f'print("kept in", {str(tmp_path/"data"/"kept.csv")!r})\nprint("features:", "3/7 2026-03-31")')
    run = execute(path, dict(data=str(tmp_path/'data')), tmp_path/'reports', io.StringIO())
    page = run.report.read_text(encoding='utf-8')
    assert str(tmp_path) not in page and 'kept in kept.csv' in page and 'features: 3/7' not in page
    assert run.manifest['parameters']['data'] == str(tmp_path/'data')


def test_a_parameter_of_several_kinds_is_no_unknown_one(tmp_path, caplog):
    path = book(tmp_path, "members:str|list = 'fast' # names", 'print(members)')
    with caplog.at_level('WARNING'): ended = execute(path, dict(members=['a', 'b']), tmp_path/'reports', io.StringIO())
    assert ended.manifest['parameters']['members'] == ['a', 'b'] and not [o for o in caplog.messages if 'unknown parameter' in o]


def test_a_misspelt_parameter_stops_before_anything_is_done(tmp_path):
    with pytest.raises(UsageError) as e: execute(book(tmp_path, 'days = 1'), dict(dyas=3), tmp_path/'reports')
    assert e.value.exit_code == 2 and 'did you mean days?' in str(e.value)
    assert not (tmp_path/'reports').exists()


def test_a_defect_names_notebook_part_and_exception(tmp_path):
    path = book(tmp_path, 'days = 1', 'x = 1', 'raise ValueError("forty-two")')
    with pytest.raises(RunFailed) as e: execute(path, {}, tmp_path/'reports', io.StringIO())
    assert 'little.ipynb, Part 2' in e.value.what and e.value.why == 'ValueError: forty-two' and e.value.exit_code == 1
    assert left(tmp_path/'reports') == ['FAILED.txt', 'manifest.json', 'run.ipynb']
    manifest = json.loads(next((tmp_path/'reports').rglob('manifest.json')).read_text())
    assert manifest['status'] == 'failed' and manifest['error']['kind'] == 'ValueError' and manifest['parameters'] == {'days': 1}


def test_a_user_error_keeps_its_kind_and_exit_status(tmp_path):
    path = book(tmp_path, 'days = 1', 'from spyresearch.core import FolderError\nraise FolderError("the folder is in use", "by process 1", "wait")')
    with pytest.raises(FolderError) as e: execute(path, {}, tmp_path/'reports', io.StringIO())
    assert (e.value.exit_code, e.value.what, e.value.why, e.value.todo) == (3, 'the folder is in use', 'by process 1', 'wait')


def test_a_kernel_that_dies_is_reported(tmp_path):
    with pytest.raises(RunFailed) as e: execute(book(tmp_path, 'days = 1', 'import os\nos._exit(9)'), {}, tmp_path/'reports', io.StringIO())
    assert 'DeadKernelError' in e.value.why
    assert 'report.html' not in left(tmp_path/'reports') and 'FAILED.txt' in left(tmp_path/'reports')


def test_a_page_that_cannot_be_made_is_a_failed_run(tmp_path, monkeypatch):
    def broken(*a, **k): raise ZeroDivisionError('in the template')
    monkeypatch.setattr(runs.page, 'html', broken)
    with pytest.raises(RunFailed) as e: execute(book(tmp_path, 'days = 1'), {}, tmp_path/'reports', io.StringIO())
    assert 'ZeroDivisionError' in str(e.value) and left(tmp_path/'reports') == ['FAILED.txt', 'manifest.json', 'run.ipynb']


def child(tmp_path, code):
    "A run in a process of its own, once its kernel is inside the cell."
    path = book(tmp_path, 'days = 1', f'import time, pathlib\npathlib.Path({str(tmp_path/"inside")!r}).touch()\ntime.sleep(60)')
    program = f'from spyresearch.runs import execute\n{code.format(path=str(path), reports=str(tmp_path/"reports"))}'
    p = subprocess.Popen([sys.executable, '-c', program], stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path/'inside').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.05)
    assert (tmp_path/'inside').exists()
    return p


def test_kill_leaves_a_folder_that_is_not_taken_for_a_report(tmp_path):
    p = child(tmp_path, 'execute({path!r}, {{}}, {reports!r})')
    os.killpg(p.pid, signal.SIGKILL); p.wait(); p.stderr.close()
    folder, = (tmp_path/'reports'/'little').iterdir()
    assert folder.suffix == '.running' and 'report.html' not in left(folder)
    assert json.loads((folder/'manifest.json').read_text())['status'] == 'running'


def test_the_next_run_buries_a_killed_one(tmp_path):
    p = child(tmp_path, 'execute({path!r}, {{}}, {reports!r})')
    os.killpg(p.pid, signal.SIGKILL); p.wait(); p.stderr.close()
    execute(book(tmp_path, 'days = 2'), {}, tmp_path/'reports', io.StringIO())
    killed, = (tmp_path/'reports'/'little').glob('*.failed')
    assert 'This run was killed' in (killed/'FAILED.txt').read_text()
    assert json.loads((killed/'manifest.json').read_text())['status'] == 'failed'
    assert not list((tmp_path/'reports'/'little').glob('*.running')) and len(list((tmp_path/'reports'/'little').iterdir())) == 2


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    p = child(tmp_path, 'execute({path!r}, {{}}, {reports!r})')
    execute(book(tmp_path, 'days = 2'), {}, tmp_path/'reports', io.StringIO())
    assert len(list((tmp_path/'reports'/'little').glob('*.running'))) == 1
    os.killpg(p.pid, signal.SIGKILL); p.wait(); p.stderr.close()


@pytest.mark.parametrize('send', [os.killpg, os.kill], ids=['group', 'alone'])
def test_interrupt_is_an_interrupt(tmp_path, send):
    p = child(tmp_path, 'try: execute({path!r}, {{}}, {reports!r})\nexcept KeyboardInterrupt: raise SystemExit(130)')
    send(p.pid, signal.SIGINT)
    _, said = p.communicate(timeout=60)
    assert p.returncode == 130, said
    assert not any(o in said for o in ('Traceback', 'ERROR', 'never retrieved')), said
    folder, = (tmp_path/'reports'/'little').iterdir()
    assert folder.suffix == '.failed' and 'KeyboardInterrupt' in (folder/'FAILED.txt').read_text()


def test_reports_in_a_file(tmp_path):
    (tmp_path/'reports').write_text('not a folder')
    with pytest.raises(FolderError) as e: execute(book(tmp_path, 'days = 1'), {}, tmp_path/'reports')
    assert 'cannot make' in str(e.value) and '--reports' in e.value.todo
