"""Installing and removing, as somebody does it on a bare machine: cut off in the middle, gone on with, explained, taken away."""
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')
BACKEND = '''
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = 'spyresearch-0.1.0-py3-none-any.whl'
    with zipfile.ZipFile(folder + '/' + name, 'w') as z:
        z.writestr('spyresearch/__init__.py', ''); z.writestr('spyresearch/cli.py', 'import sys; print("spy", *sys.argv[1:])')
        z.writestr('spyresearch-0.1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: spyresearch\\nVersion: 0.1.0\\n')
        z.writestr('spyresearch-0.1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: here\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'); z.writestr('spyresearch-0.1.0.dist-info/RECORD', '')
    return name
'''


def wheel(folder, name, files=0):
    "A package with many files and a script, as an index would serve it."
    with zipfile.ZipFile(folder/f'{name}-1.0-py3-none-any.whl', 'w') as z:
        for i in range(files): z.writestr(f'{name}/part{i:05}.py', f'n = {i}\n')
        z.writestr(f'{name}/__init__.py', 'def go(): print("goes")\n')
        info = dict(METADATA=f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n', WHEEL='Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n', RECORD='', **{'entry_points.txt': f'[console_scripts]\n{name}={name}:go\n'})
        for k, v in info.items(): z.writestr(f'{name}-1.0.dist-info/{k}', v)


@pytest.fixture
def checkout(tmp_path):
    "A checkout of two packages, and the folder that stands for the package index."
    top, index = tmp_path/'top', tmp_path/'index'
    top.mkdir(); index.mkdir()
    wheel(index, 'small'); wheel(index, 'large', 4000)
    (top/'spy.py').write_text((ROOT/'spy.py').read_text(encoding='utf-8'), encoding='utf-8')
    (top/'requirements.lock').write_text('# [core]\nsmall==1.0\nlarge==1.0\n')
    (top/'settings.ini').write_text(''); (top/'setup.py').write_text('')
    (top/'backend.py').write_text(BACKEND); (top/'pyproject.toml').write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    return top


def spy(top, *args, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PIP_', 'PYTHON'))} | dict(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(top.parent/'index'), PIP_NO_CACHE_DIR='1')
    return subprocess.Popen([sys.executable, top/'spy.py', *args], cwd=top.parent, env=env | kw.pop('env', {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)


def done(top, *args, **kw):
    p = spy(top, *args, **kw)
    out, err = p.communicate(timeout=120)
    return p.returncode, out, err


def test_an_installation_that_was_killed_goes_on(checkout):
    "Cut off while the environment is made, then while a package is unpacked, then without an index: each is seen, told and made whole."
    code, out, _ = done(checkout, 'doctor')
    assert code == 0 and 'WARN  nothing is installed yet' in out and not (checkout/'.venv').exists()    # asking installs nothing
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', checkout/'.venv'], check=True)
    code, out, _ = done(checkout, 'doctor')
    assert code == 1 and 'FAIL  .venv was cut off while it was made' in out
    p, end = spy(checkout, 'run'), time.monotonic() + 90
    while not list(checkout.glob('.venv/lib/python*/site-packages/large/part0[1-3]*.py')):
        assert p.poll() is None and time.monotonic() < end, p.communicate()[1]
        time.sleep(.002)
    os.killpg(p.pid, signal.SIGKILL)
    assert 'making .venv' in p.communicate()[1]
    site, = checkout.glob('.venv/lib/python*/site-packages')
    n = len(list((site/'large').glob('part*.py')))
    assert n < 4000 and not (checkout/'.venv'/'.installed-core').exists()
    (site/'large-1.0.dist-info').mkdir(exist_ok=True)   # as one that is cut off a moment later has it: named, without a record
    (site/'large-1.0.dist-info'/'METADATA').write_text('Metadata-Version: 2.1\nName: large\nVersion: 1.0\n')
    code, out, err = done(checkout, 'doctor')
    assert code == 1 and 'FAIL  the unpacking of large-1.0 was cut off' in out and 'FAIL  packages of [core]: not complete' in out and 'OK    the package index answers' in out and not err
    shutil.move(checkout.parent/'index', checkout.parent/'gone')
    code, _, err = done(checkout, 'run')
    assert code == 3 and 'installing core failed' in err and 'see ' in err and 'same command again' in err
    code, out, _ = done(checkout, 'doctor')
    assert code == 1 and re.search(r'FAIL  the package index does not answer: .*\n +check the connection, a proxy', out) and 'WARN  the last installation said: ERROR: ' in out and 'install.log' in out
    shutil.move(checkout.parent/'gone', checkout.parent/'index')
    code, out, err = done(checkout, 'run', '--seed', '7')
    assert (code, out) == (0, 'spy run --seed 7\n') and 'installed' in err and 'making .venv' not in err
    assert len(list((site/'large').glob('part*.py'))) == 4000 and subprocess.run([checkout/'.venv'/'bin'/'large'], capture_output=True, text=True).stdout == 'goes\n'
    assert done(checkout, 'run') == (0, 'spy run\n', '')     # nothing is left to do


@pytest.fixture
def used(checkout):
    "A checkout that has been worked with."
    for o in ('.venv/bin/python', '.venv/.installed-core', 'spyresearch/__pycache__/a.pyc', '.ruff_cache/x', 'nbs/.ipynb_checkpoints/y.ipynb', 'spyresearch.egg-info/z', 'data/README.md', 'data/original_data/2026-03-31.csv',
              'data/replay/demo/__pycache__/kept', 'reports/run/2026-03-31-0a1b2c/report.html', 'nbs/00_core.ipynb'):
        (checkout/o).parent.mkdir(parents=True, exist_ok=True); (checkout/o).write_text('x')
    return checkout


def below(top): return {p.relative_to(top).as_posix() for p in top.rglob('*') if p.is_file() and p.name not in ('spy.py', 'requirements.lock', 'settings.ini', 'setup.py', 'backend.py', 'pyproject.toml')}


def test_removing_keeps_what_is_the_owners(used):
    mine = {'data/README.md', 'data/original_data/2026-03-31.csv', 'data/replay/demo/__pycache__/kept', 'reports/run/2026-03-31-0a1b2c/report.html', 'nbs/00_core.ipynb'}
    before = below(used)
    for args, code, said in (([], 2, 'say it with --yes'), (['everything', '--yes'], 2, "remove knows no 'everything'"), (['--force'], 2, 'nothing was removed')):
        got, _, err = done(used, 'remove', *args)
        assert got == code and said in err and below(used) == before
    assert done(used, 'remove', '--help')[0] == 0 and below(used) == before
    code, out, _ = done(used, 'remove', '--yes')
    assert code == 0 and below(used) == mine and 'stays  data/' in out and 'stays  reports/' in out and 'removed 5' in out and not (used/'.venv').exists()
    assert done(used, 'remove', '--yes')[1].startswith('nothing to remove')
    code, out, _ = done(used, 'remove', 'reports', '--yes')
    assert code == 0 and below(used) == {o for o in mine if not o.startswith('reports')} and 'python spy.py remove data' in out
    assert done(used, 'remove', 'data', '--yes')[0] == 0 and below(used) == {'data/README.md', 'nbs/00_core.ipynb'}


def test_a_link_is_removed_and_not_what_it_points_to(used, tmp_path):
    elsewhere = tmp_path/'disk'; shutil.move(used/'data', elsewhere); (used/'data').symlink_to(elsewhere)
    assert done(used, 'remove', 'data', '--yes')[0] == 0
    assert not (used/'data').is_symlink() and (elsewhere/'original_data/2026-03-31.csv').exists()


def test_it_asks_at_a_terminal(used, monkeypatch, capsys):
    "Data go only for their own name, not for a yes."
    monkeypatch.syspath_prepend(str(used)); monkeypatch.delitem(sys.modules, 'spy', raising=False)
    import spy
    monkeypatch.delitem(sys.modules, 'spy')
    class Terminal(io.StringIO):
        def isatty(self): return True
    before = below(used)
    for args, answers, code in ((['data'], 'yes\n', 1), ([], '\n', 1), ([], 'yes\n', 0), (['data'], 'data\n', 0)):
        monkeypatch.setattr(sys, 'stdin', Terminal(answers))
        try: got = spy.remove(args)
        except SystemExit as e: got = e.code
        assert got == code and (code or below(used) != before) and (not code or below(used) == before), args
        before = below(used)
    assert 'Type data' in capsys.readouterr().out and 'data/original_data/2026-03-31.csv' not in before


def test_what_runs_is_not_pulled_away(used):
    shutil.copy(shutil.which('sleep'), used/'.venv'/'bin'/'python')
    p = subprocess.Popen([used/'.venv'/'bin'/'python', '60'])
    try: code, _, err = done(used, 'remove', '--yes')
    finally: p.kill(); p.wait()
    assert code == 3 and f'{p.pid}: bin/python 60' in err and (used/'.venv'/'bin'/'python').exists()


def test_the_command_inside_hands_on_to_the_launcher(monkeypatch, capsys):
    "`spy remove` and `spy doctor` are the launcher's; the doctor also looks at the disk and at what answers, and fails with exit status 1."
    from spyresearch import cli
    from spyresearch.tws.doctor import Finding
    its, given = cli._launcher(), []
    assert {'remove', 'examine', 'show'} <= its.keys()
    def spy(*args): return cli.outcome(lambda: cli.app([*args], standalone_mode=False))
    monkeypatch.setattr(cli, '_launcher', lambda: its | dict(remove=lambda args: given.append(args), examine=lambda: [('OK', 'Python', ''), ('WARN', 'old', 'renew it')]))
    spy('remove', 'data', '--yes')
    assert given == [['data', '--yes']]
    monkeypatch.delenv('SPY_TWS', raising=False)
    assert spy('doctor') == 0 and 'WARN  old\n      renew it' in (out := capsys.readouterr().out) and 'commands run on the demo' in out and 'the data folder data/replay/demo can' in out
    monkeypatch.setattr('spyresearch.tws.doctor.visit', lambda *a: [Finding('WARN', 'no depth')])
    assert spy('doctor', '--tws', '127.0.0.1:7497', '--data', 'kept') == 0 and 'the data folder kept can' in capsys.readouterr().out
    monkeypatch.undo(); monkeypatch.setattr(cli, '_launcher', lambda: its | dict(examine=lambda: []))
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    assert spy('doctor', '--tws', f'127.0.0.1:{port}') == 1
    said = capsys.readouterr()
    assert f'FAIL  nothing listens at 127.0.0.1:{port}' in said.out and '1 of these fail' in said.err
