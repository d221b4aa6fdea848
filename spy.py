#!/usr/bin/env python3
"""The launcher: `python spy.py run` on a machine that has Python and nothing else.

Makes `.venv` beside this file, installs the locked dependencies and the package into it (only when the lock has
changed), and hands over to the `spy` command there: signals go on to it, and its exit status comes back. Standard library
only; Linux, macOS and Windows.
"""
import signal
import sys

if __name__ == '__main__':  # Ctrl-C right at the start, while Python still reads its library
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV, LOCK = HERE/'.venv', HERE/'requirements.lock'
BIN = VENV/('Scripts' if os.name == 'nt' else 'bin')
PYTHON = BIN/('python.exe' if os.name == 'nt' else 'python')
# A second core that spins for work costs 10 to 75 times the speed; a random hash seed costs reproducibility.
ENV = dict(OMP_WAIT_POLICY='PASSIVE', OMP_NUM_THREADS='1', PYTHONHASHSEED='0')
NEEDS = {'test': ('core', 'test', 'bare', 'live', 'browser', 'torch', 'deep'), 'bench': ('core', 'test', 'live', 'options'), 'lab': ('core', 'live'), 'web': ('core', 'live')}  # groups of the lock that a command rests on; else core
DEEP = {'deep', 'nhits', 'nbeatsx', 'tft', '--ray'}  # words that ask for networks or for Ray, half of all that could be installed


def needs(args):
    "The groups of the lock that a command line rests on."
    command = next((o for o in args if not o.startswith('-')), '')
    groups = NEEDS.get(command, ('core',))
    return groups if 'deep' in groups or not DEEP & set(re.split('[ ,=]', ' '.join(args))) else (*groups, 'torch', 'deep')


def stop(what, why='', todo='', code=3):
    "Say what is wrong and end."
    print('\n'.join(o for o in (what, why, todo) if o), file=sys.stderr)
    raise SystemExit(code)


def say(text, end='\n'):
    "Progress, on standard error: standard output belongs to the command."
    print(text, end=end, file=sys.stderr, flush=True)


def groups():
    "The lock's sections: name -> requirement lines, in the order in which they are to be installed."
    out, name = {}, None
    for line in LOCK.read_text(encoding='utf-8').splitlines():
        if m := re.match(r'# \[(\w+)\]', line):
            name = m[1]
            out[name] = []
        elif name and line.strip() and not line.startswith('#'):
            out[name].append(line.strip())
    return out


def pip(lines, log, label):
    "Install `lines`, bound to the versions of the lock, and say how far it is."
    with tempfile.TemporaryDirectory() as d:
        want, bound = Path(d)/'want.txt', Path(d)/'bound.txt'
        want.write_text('\n'.join(lines), encoding='utf-8')
        bound.write_text('\n'.join(o for g in groups().values() for o in g), encoding='utf-8')
        cmd = [PYTHON, '-m', 'pip', 'install', '--progress-bar', 'off', '--disable-pip-version-check', '-r', want, '-c', bound]
        cmd += ['--no-deps'] if label == 'bare' else []
        run_logged(cmd, log, label, len(lines))


def run_logged(cmd, log, label, total):
    "Run `cmd` with its output in the log file and one moving line on the terminal."
    n, tty = 0, sys.stderr.isatty()
    with subprocess.Popen([str(o) for o in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace') as p:
        try:
            for line in p.stdout:
                log.write(line)
                if line.startswith(('Collecting', 'Processing', 'Requirement already')):
                    n = min(n + 1, total)
                    if tty and total > 1:
                        say(f'\r  {label}: {n} of {total} packages', end='')
                elif line.startswith('Installing collected'):
                    say(f'{chr(13) if tty else ""}  {label}: {line.count(",") + 1} packages fetched, unpacking ...')
        except BaseException:  # whoever ends this program ends the installation too; the next one goes on from there
            p.terminate()
            raise
    log.flush()
    if p.returncode:
        tail = [o for o in Path(log.name).read_text(encoding='utf-8', errors='replace').splitlines() if o.strip()][-3:]
        stop(f'installing {label} failed (pip ended with {p.returncode})', '\n'.join(tail),
             f'see {log.name}; check the connection to your package index and run the same command again: what was downloaded is kept')


def install(names):
    "Bring the environment up to the lock for the groups `names`; a group that stands is not touched."
    if sys.version_info[:2] < (3, 11):
        stop(f'Python {sys.version.split()[0]} is too old', 'spyresearch is written for 3.11, 3.12 and 3.13', 'run it with a newer Python')
    locked = groups()
    stamps = {n: VENV/f'.installed-{n}' for n in names}
    package = '\n'.join((HERE/o).read_text(encoding='utf-8') for o in ('settings.ini', 'setup.py'))
    digest = {n: hashlib.sha256('\n'.join([*locked[n], package]).encode()).hexdigest() for n in names}
    todo = [n for n in names if not (stamps[n].exists() and stamps[n].read_text() == digest[n])]
    if not todo and PYTHON.exists():
        return
    if not PYTHON.exists():
        say(f'making {VENV.name} (first use) ...')
        shutil.rmtree(VENV, ignore_errors=True)
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            stop('a virtual environment cannot be made', 'this Python comes without ensurepip, as Debian ships it',
                 'install it (Debian and Ubuntu: apt-get install python3-venv), then run the same command again')
        except BaseException:  # half an environment would be taken for a whole one
            shutil.rmtree(VENV, ignore_errors=True)
            raise
    with open(VENV/'install.log', 'a', encoding='utf-8') as log:
        for n in todo:
            pip(locked[n], log, n)
        run_logged([PYTHON, '-m', 'pip', 'install', '--no-deps', '--disable-pip-version-check', '-e', HERE], log, 'spyresearch', 1)
    for n in todo:
        stamps[n].write_text(digest[n])
    say('  installed.')


def at_terminal():
    "Does Ctrl-C reach the child without our help? A terminal sends it to everybody in its foreground."
    if os.name == 'nt':
        return True
    try:
        with open('/dev/tty') as tty:
            return os.tcgetpgrp(tty.fileno()) == os.getpgrp()
    except OSError:
        return False


def hand_over(cmd, env=None):
    "Run `cmd` to its end and give back its exit status. A signal to this program is one to that: nothing is left behind."
    child, came = None, []

    def pass_on(n, _):
        came.append(n)
        if child and not (n == signal.SIGINT and at_terminal()):
            child.send_signal(n)
    for n in (getattr(signal, o) for o in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, o)):
        if signal.getsignal(n) != signal.SIG_IGN:  # as nohup leaves it; the child inherits that
            signal.signal(n, pass_on)
    child = subprocess.Popen([str(o) for o in cmd], env=env)
    for n in came:  # before there was a child
        child.send_signal(n if os.name != 'nt' else signal.SIGTERM)
    code = child.wait()
    return 128 - code if code < 0 else code


def main(args):
    "Install what the command needs, then become the `spy` command."
    for n in (getattr(signal, o) for o in ('SIGTERM', 'SIGHUP') if hasattr(signal, o)):
        if signal.getsignal(n) != signal.SIG_IGN:
            signal.signal(n, lambda n, _: sys.exit(128 + n))
    try:
        install(needs(args))
        return hand_over([PYTHON, '-m', 'spyresearch.cli', *args], {**os.environ, **ENV, **{k: os.environ[k] for k in ENV if k in os.environ}})
    except KeyboardInterrupt:
        return 130
    except OSError as e:
        stop('the environment cannot be set up', str(e), 'make this folder writable and free some space, then run the same command again')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
