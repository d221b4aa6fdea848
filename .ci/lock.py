"""Write requirements.lock from what is installed: `python .ci/lock.py`, in an environment that holds every extra.

A section a floor of requirements, in the order of settings.ini; each package stands in the first section that needs it.
"""
import configparser
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

TOP = Path(__file__).resolve().parents[1]
HEAD = """\
# The whole set, resolved together on Linux with Python 3.11; the launcher installs a section when a command first needs it.
# torch is listed first in its section because it must be installed first and alone. [bare] is installed without its
# dependencies: ib-insync would bring eventkit, which overwrites the files of aeventkit, on which ib_async rests.
"""


def name_of(text):
    "A distribution's name as package indexes compare it."
    return re.sub(r'[-_.]+', '-', text).lower()


def closure(lines):
    "Installed distributions that the requirement `lines` need on this machine, themselves included: name -> distribution."
    out, seen, todo = {}, set(), [Requirement(o) for o in lines]
    while todo:
        r = todo.pop()
        if (key := (name_of(r.name), frozenset(r.extras))) in seen or r.marker and not r.marker.evaluate({'extra': ''}):
            continue
        seen.add(key)
        d = out[name_of(r.name)] = metadata.distribution(r.name)
        for q in map(Requirement, d.requires or ()):
            if q.marker is None or any(q.marker.evaluate({'extra': e}) for e in (r.extras or {''})):
                q.marker = None
                todo.append(q)
    return out


def pins(d):
    "The lock's lines for a distribution."
    version = d.version.split('+')[0]
    if d.metadata['Name'] == 'xgboost-cpu':  # no wheel for macOS, where the full package is small
        return [f"xgboost-cpu=={version}; sys_platform != 'darwin'", f"xgboost=={version}; sys_platform == 'darwin'"]
    return [f"{d.metadata['Name']}=={version}"]


def main():
    "Write the lock."
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(TOP/'settings.ini', encoding='utf-8')
    c, done, out = cfg['DEFAULT'], set(), [HEAD]
    for key in ['requirements', *(o for o in c if o.endswith('_requirements'))]:
        lines = [o.strip() for o in c[key].splitlines() if o.strip()]
        need = {name_of(Requirement(o).name): metadata.distribution(Requirement(o).name) for o in lines} if key == 'bare_requirements' else closure(lines)
        new = sorted(set(need) - done - {'pip', 'setuptools'}, key=lambda n: (n != 'torch', n))
        done |= set(new)
        out += [f"# [{'core' if key == 'requirements' else key.removesuffix('_requirements')}]", *(line for n in new for line in pins(need[n])), '']
    (TOP/'requirements.lock').write_text('\n'.join(out), encoding='utf-8')


if __name__ == '__main__':
    main()
