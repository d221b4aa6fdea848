#!/usr/bin/env python3
"""The launcher: `python spy.py run` on a machine that has Python and nothing else.

Makes `.venv` beside this file, installs the locked dependencies and the package into it (only when the lock has
changed), and hands over to the `spy` command there: signals go on to it, and its exit status comes back. What must work
where nothing is installed, or half of it, is here: `doctor` says what stands and what fails, `remove` takes all of it away.
SPY_VENV names the environment of another checkout to use as it is, if it holds what the lock here asks for.
Standard library only; Linux, macOS and Windows.
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
OWN, LOCK = HERE/'.venv', HERE/'requirements.lock'
VENV = Path(os.environ.get('SPY_VENV') or OWN)
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


def torn():
    "Packages whose unpacking was cut off: pip writes RECORD last, and would take one without it for whole."
    return [d for d in VENV.glob('[Ll]ib/**/site-packages/*.dist-info') if not (d/'RECORD').exists()]


def whole():
    "Is the environment more than a folder? One that was cut off while it was made has no pip."
    return PYTHON.exists() and subprocess.run([PYTHON, '-c', 'import pip'], capture_output=True, check=False).returncode == 0


def digests():
    "What the stamp of each group of the lock must hold."
    package = '\n'.join((HERE/o).read_text(encoding='utf-8') for o in ('settings.ini', 'setup.py'))
    return {n: hashlib.sha256('\n'.join([*lines, package]).encode()).hexdigest() for n, lines in groups().items()}


def stamp(name):
    "The file that says that a group of the lock stands."
    return VENV/f'.installed-{name}'


def stands(name, digest):
    "Is a group installed as the lock has it?"
    return PYTHON.exists() and stamp(name).exists() and stamp(name).read_text() == digest


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
    locked, digest = groups(), digests()
    todo = [n for n in names if not stands(n, digest[n])]
    if not todo:
        return
    if VENV != OWN:
        stop(f'{VENV} lacks [{todo[0]}] as it is locked here', 'SPY_VENV names an environment that belongs to another checkout', 'leave SPY_VENV out, and one is made here')
    if not whole():
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
    for d in torn():  # of an installation that was killed
        say(f'  {d.name.removesuffix(".dist-info")} was cut off while it was unpacked: once more')
        shutil.rmtree(d)
    with open(VENV/'install.log', 'a', encoding='utf-8') as log:
        for n in todo:
            pip(locked[n], log, n)
        run_logged([PYTHON, '-m', 'pip', 'install', '--no-deps', '--disable-pip-version-check', '-e', HERE], log, 'spyresearch', 1)
    for n in todo:
        stamp(n).write_text(digest[n])
    say('  installed.')


def size(path):
    "Bytes below a path; what a link points to is not counted."
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(d, o)).st_size for d, _, files in os.walk(path) for o in files)


def megabytes(n):
    return f'{n/1e6:,.1f} MB'


def caches():
    "What programs leave in the checkout and make again by themselves."
    top = [p for o in ('.pytest_cache', '.ruff_cache', '.hypothesis', 'build', '_proc', '_site', '*.egg-info') for p in HERE.glob(o)]
    inner = [p for o in ('spyresearch', 'tests', 'nbs') for name in ('__pycache__', '.ipynb_checkpoints') for p in (HERE/o).rglob(name)]
    return [p for p in (*top, *inner, HERE/'__pycache__') if p.exists()]


def contents(name):
    "What the user has in data or reports; the page that explains the folder belongs to the checkout."
    top = HERE/name
    return [top] if top.is_symlink() else sorted(p for p in top.iterdir() if p.name != 'README.md') if top.is_dir() else []


def running():
    "Programs that run on this environment, besides this one: pid -> its command line."
    own, found = {os.getpid(), os.getppid()}, {}
    if Path('/proc/self/cmdline').exists():
        for p in Path('/proc').glob('[0-9]*'):
            try:
                found[int(p.name)] = (p/'cmdline').read_bytes().decode(errors='replace').replace('\0', ' ')
            except OSError:  # it has ended meanwhile
                continue
    elif os.name != 'nt':
        said = subprocess.run(['ps', '-axo', 'pid=,command='], capture_output=True, text=True, check=False).stdout
        found = {int(n): cmd for n, cmd in (o.split(None, 1) for o in said.splitlines() if len(o.split()) > 1)}
    return {n: cmd.strip() for n, cmd in found.items() if cmd.startswith(f'{OWN}{os.sep}') and n not in own}


def erase(path):
    "Take a path away; of a link, the link. A reason if that fails."
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as e:
        return f'{e.filename or path}: {e.strerror or e}'


USAGE = 'usage: python spy.py remove [data] [reports] [--yes]'


def remove(args):
    "Take away what this launcher and the programs behind it have made; records and reports only where they are named."
    words, yes = [o for o in args if o != '--yes'], '--yes' in args
    if {'-h', '--help'} & set(args):
        print(USAGE, "Removes .venv and the caches of this checkout. data and reports stay unless they are named; --yes does not ask.", sep='\n')
        return 0
    if odd := [o for o in words if o not in ('data', 'reports')]:
        stop(f'remove knows no {odd[0]!r}', USAGE, 'nothing was removed', 2)
    if busy := running():
        stop('something runs on this environment: ' + '; '.join(f'{n}: {cmd[len(str(OWN)) + 1:][:80]}' for n, cmd in busy.items()), 'what it is writing would be torn', 'end it first; nothing was removed')
    going = [*([OWN] if OWN.exists() or OWN.is_symlink() else []), *caches(), *(p for o in ('data', 'reports') if o in words for p in contents(o))]
    staying = {o: sum(map(size, contents(o))) for o in ('data', 'reports') if o not in words and contents(o)}
    print('\n'.join(f'goes   {p.relative_to(HERE)} ({megabytes(size(p))})' for p in going) or 'nothing to remove')
    for o, n in staying.items():
        print(f'stays  {o}/ ({megabytes(n)}): name it to remove it too, as python spy.py remove {o}')
    print(f"stays  the checkout itself ({HERE}), which deleting the folder removes, and what is outside of it: pip's cache of downloads (python -m pip cache purge), Jupyter's settings", flush=True)
    if going and not yes:
        if not sys.stdin or not sys.stdin.isatty():
            stop('nothing was removed', 'there is nobody at a terminal to ask', 'say it with --yes', 2)
        word = ' and '.join(o for o in ('data', 'reports') if o in words and contents(o)) or 'yes'
        if input(f'remove what goes? Type {word}: ').strip() != word:
            stop('nothing was removed', code=1)
    for p in OWN.glob('.installed-*') if going else ():  # first, so that what is left half removed is never taken for whole
        p.unlink()
    failed = [why for p in going if (why := erase(p))]
    if failed:
        stop('not everything could be removed', '\n'.join(failed[:3]), 'close what uses these files, or change their rights, and run the same command again: what is gone stays gone')
    print(f'removed {len(going)}' if going else 'done')
    return 0


def examine():
    "What the installation needs and has: (OK, WARN or FAIL; what; what to do)."
    def line(ok, what, todo='', grade='FAIL'):
        return ('OK', what, '') if ok else (grade, what, todo)
    out = [line(sys.version_info[:2] >= (3, 11), f'Python {sys.version.split()[0]}', 'run it with Python 3.11, 3.12 or 3.13')]
    try:
        with tempfile.TemporaryFile(dir=HERE):
            out.append(line(True, 'this folder can be written'))
    except OSError as e:
        out.append(line(False, f'this folder cannot be written: {e.strerror}', 'change its rights, or clone into a folder of yours'))
    digest = digests()
    missing = [n for n in digest if not stands(n, digest[n])]
    free, need = shutil.disk_usage(HERE).free, 1.6e9*('core' in missing) + 3e8
    out.append(line(free > need, f'{megabytes(free)} free where this folder is', f'free {megabytes(need - free)}: the packages of a first run take about 1.5 GB, networks as much again'))
    if not PYTHON.exists():
        from importlib.util import find_spec
        out += [line(find_spec('ensurepip'), 'Python can make environments' if find_spec('ensurepip') else 'this Python comes without ensurepip, as Debian ships it', 'install it (Debian and Ubuntu: apt-get install python3-venv)'),
                ('WARN', 'nothing is installed yet', 'python spy.py run installs what it needs, a few minutes, once')]
        return out
    if not whole():
        return [*out, ('FAIL', '.venv was cut off while it was made', 'run the command again: it is made anew')]
    if cut := torn():
        out.append(('FAIL', f'the unpacking of {", ".join(d.name.removesuffix(".dist-info") for d in cut[:3])} was cut off', 'run the command again: these are unpacked once more, what was downloaded is kept'))
    for n in digest:
        made = stamp(n).exists()
        if n == 'core' or made:
            out.append(line(n not in missing, f'packages of [{n}]' + (' as locked' if n not in missing else ': the lock has changed since' if made else ': not complete'), 'the next command that needs them brings them up to the lock', 'WARN' if made else 'FAIL'))
    if 'core' in missing:
        with tempfile.TemporaryDirectory() as d:
            said = subprocess.run([PYTHON, '-m', 'pip', 'download', '--no-deps', '--retries', '1', '--timeout', '15', '--disable-pip-version-check', '-q', '-d', d, groups()['core'][0]], capture_output=True, text=True, check=False)
        why = (said.stderr.strip().splitlines() or ['pip gave no reason'])[-1]
        out.append(line(not said.returncode, 'the package index answers' if not said.returncode else f'the package index does not answer: {why}', 'check the connection, a proxy (HTTPS_PROXY) and the index that pip uses (python -m pip config list)'))
    log = VENV/'install.log'
    if missing and log.exists() and (errors := [o for o in log.read_text(encoding='utf-8', errors='replace').splitlines() if o.startswith('ERROR')]):
        out.append(('WARN', f'the last installation said: {errors[-1]}', f'its whole log is {log.relative_to(HERE)}'))
    return out


def show(lines):
    "The lines of an examination; the number of failures."
    for grade, what, todo in lines:
        print(f'{grade:4}  {what}' + f'\n      {todo}'*bool(todo), flush=True)
    return sum(o[0] == 'FAIL' for o in lines)


def doctor():
    "Where the environment cannot say it itself: what is wrong with it."
    failed = show(examine())
    print('the rest is looked at once the packages stand')
    return int(failed > 0)


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
        if args[:1] == ['remove']:
            return remove(args[1:])
        if args[:1] == ['doctor'] and not stands('core', digests()['core']):
            return doctor()
        install(needs(args))
        env = {**os.environ, **ENV, **{k: os.environ[k] for k in ENV if k in os.environ}}
        if VENV != OWN:  # there the package of the other checkout is installed
            env['PYTHONPATH'] = os.pathsep.join(filter(None, (str(HERE), os.environ.get('PYTHONPATH'))))
        return hand_over([PYTHON, '-m', 'spyresearch.cli', *args], env)
    except KeyboardInterrupt:
        return 130
    except OSError as e:
        stop('the environment cannot be set up', str(e), 'make this folder writable and free some space, then run the same command again')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
