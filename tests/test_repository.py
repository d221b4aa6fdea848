"""The house rules that no single notebook can show: clean, in sync, imports going down, one clock, one README."""
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'


def source(cell): return ''.join(cell['source'])
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def module_of(path):
    "The module that a notebook exports, or None."
    names = [m[1] for c in cells(path) if (m := re.search(r'^#\s*\|\s*default_exp\s+(\S+)', source(c), re.M))]
    assert len(names) <= 1, f'{path.name} exports to {names}'
    return names[0] if names else None


NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
LIBRARY = {module_of(p): p for p in NOTEBOOKS if module_of(p)}
RUNS = sorted(p for o in ('runs', 'research') for p in (NBS/o).glob('*.ipynb'))
FLOORS = ['ground', 'tws', 'features', 'models', 'trade', 'live', 'top']


def place(path):
    "(floor, number): what stands before a notebook may be imported by it. The top folder holds the ground and the top floor."
    n = int(re.match(r'\d+', path.name)[0])
    return FLOORS.index(path.parent.name if path.parent != NBS else 'ground' if n < 10 else 'top'), n


number = {m: place(p) for m, p in LIBRARY.items()}


def test_each_module_has_the_name_of_its_notebook():
    assert len(LIBRARY) >= 20
    for module, path in LIBRARY.items():
        folder = '' if path.parent == NBS else f'{path.parent.name}.'
        assert module == folder + re.sub(r'^\d+_', '', path.stem)
        assert path.stem.split('_', 1)[1] not in sys.stdlib_module_names or path.stem.endswith('_statistics')
    assert len(set(number.values())) == len(number), 'two notebooks of a floor share a number'


def test_generated_modules_have_a_notebook():
    modules = {'.'.join(p.relative_to(ROOT/'spyresearch').with_suffix('').parts) for p in (ROOT/'spyresearch').rglob('*.py')
               if not p.name.startswith('_')}
    assert modules == set(LIBRARY)


@pytest.mark.parametrize('module', LIBRARY)
def test_imports_go_down(module):
    package = 'spyresearch.' + module
    tree = ast.parse((ROOT/'spyresearch'/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8'))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package.split('.')[:-node.level] if node.level else []
            name = '.'.join(base + (node.module or '').split('.')).strip('.')
            used |= {name} | {f'{name}.{a.name}' for a in node.names}
        elif isinstance(node, ast.Import): used |= {a.name for a in node.names}
    own = {u.removeprefix('spyresearch.') for u in used} & set(LIBRARY)
    assert all(number[o] < number[module] for o in own - {module}), f'{module} imports upward: {own}'


def test_export_and_clean_change_nothing(tmp_path):
    "Exporting and cleaning a copy of the tree gives back the tree."
    for o in ('nbs', 'spyresearch', 'settings.ini', 'pyproject.toml', 'setup.py', 'README.md'):
        (shutil.copytree if (ROOT/o).is_dir() else shutil.copy)(ROOT/o, tmp_path/o)
    for o in ('nbdev-clean', 'nbdev-export'):
        done = subprocess.run([Path(sys.executable).parent/o], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for p in [*NOTEBOOKS, *(ROOT/'spyresearch').rglob('*.py')]:
        if '.ipynb_checkpoints' in p.parts: continue
        assert (tmp_path/p.relative_to(ROOT)).read_text(encoding='utf-8') == p.read_text(encoding='utf-8'), \
            f'{p.relative_to(ROOT)} is not clean or not in sync: run nbdev-clean and nbdev-export'


def test_only_core_reads_or_waits_for_time():
    clock = re.compile(r'datetime\.now|time\.time\(|time\.sleep|asyncio\.sleep|Timestamp\.now|utcnow|date\.today|perf_counter|time\.monotonic')
    for p in (ROOT/'spyresearch').rglob('*.py'):
        if p.name == 'core.py': continue
        hits = [line for line in p.read_text(encoding='utf-8').splitlines() if clock.search(line)]
        assert not hits, f'{p.name} reads the clock itself: {hits}'


@pytest.mark.parametrize('path', RUNS, ids=lambda p: p.stem)
def test_run_notebooks_are_linear_and_bare(path):
    tags = [t for c in cells(path) for t in c['metadata'].get('tags', [])]
    assert tags.count('parameters') == 1
    for c in cells(path):
        if c['cell_type'] != 'code': continue
        assert not c['outputs'], 'a run notebook carries no outputs'
        assert not re.search(r'^class ', source(c), re.M)


def test_run_notebooks_are_not_copies():
    code = {p: [source(c) for c in cells(p) if c['cell_type'] == 'code'] for p in RUNS}
    for a in RUNS:
        for b in RUNS:
            if a < b: assert len(set(code[a]) & set(code[b])) <= min(len(code[a]), len(code[b]))/2, f'{a.name} and {b.name} share most cells'


def test_notebooks_are_small():
    big = [p.name for p in NOTEBOOKS if p.stat().st_size > 300_000]
    assert not big


def test_readme_is_made_from_the_index(tmp_path):
    from spyresearch.checks import readme
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert readme(NBS/'index.ipynb') == text
    assert len(text.splitlines()) <= 120
    assert text.index('python spy.py run') < text.index('--tws')


def test_both_readmes_say_the_same_commands():
    "What a reader types or sees, in the same order: code, names of commands, exit statuses, options, links."
    import re
    one, two = ((ROOT/o).read_text(encoding='utf-8') for o in ('README.md', 'README.zh.md'))
    parts = {'code': r'```\w*\n[\s\S]*?```', 'rows': r'(?m)^\| (?!---)([^|]*(?:`|\d)[^|]*) \|', 'options': r'`(--[a-z-]+)', 'headings': r'(?m)^#+', 'points': r'(?m)^(?:\d\.|-) '}
    for name, o in parts.items(): assert re.findall(o, one) == re.findall(o, two), name
    assert set(re.findall(r'\]\(([^)]+)\)', one)) - {'README.zh.md'} == set(re.findall(r'\]\(([^)]+)\)', two)) - {'README.md'}
    assert set(re.findall(r'`([^`]+)`', re.sub(parts['code'], '', one))) == set(re.findall(r'`([^`]+)`', re.sub(parts['code'], '', two)))


def test_no_prices_and_nothing_big_in_the_repository():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert tracked
    assert not [o for o in tracked if o.endswith(('.parquet', '.csv', '.zip')) or o.startswith(('reports/', 'data/')) and o != 'data/README.md']
    assert not [o for o in tracked if (ROOT/o).exists() and (ROOT/o).stat().st_size > 1_000_000]


def test_metadata_is_one():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    scope = {}
    exec((ROOT/'spyresearch/__init__.py').read_text(encoding='utf-8'), scope)
    assert cfg['DEFAULT']['version'] == scope['__version__']
    locked = {re.split('[=;]', o)[0].lower().replace('_', '-') for o in (ROOT/'requirements.lock').read_text().splitlines() if '==' in o}
    for key in cfg['DEFAULT']:
        if not key.endswith('requirements'): continue
        for line in cfg['DEFAULT'][key].split('\n'):
            if line.strip(): assert re.split(r'[=<>;\[ ]', line.strip())[0].lower().replace('_', '-') in locked, line


def test_import_is_light():
    "The package and the command line load none of the heavy libraries; they come when a floor needs them."
    code = 'import sys, spyresearch, spyresearch.cli; print(" ".join(o for o in ("pandas", "numpy", "xgboost", "statsforecast", "torch", "matplotlib") if o in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''


def test_nothing_overwrites_the_event_library_of_ib_async():
    "The old eventkit installs into the same folder as aeventkit and would replace its files."
    from importlib import metadata
    assert metadata.version('aeventkit')
    with pytest.raises(metadata.PackageNotFoundError): metadata.version('eventkit')


def test_the_data_page_names_every_column():
    from spyresearch.bars import RAW_COLUMNS
    from spyresearch.features.batch import REGISTRY
    from spyresearch.trade.tickets import COLUMNS
    text = (ROOT/'data/README.md').read_text(encoding='utf-8')
    named = set(re.findall(r'[A-Za-z]\w*', ' '.join(re.findall(r'`([^`]+)`', text))))
    assert {*RAW_COLUMNS, *COLUMNS} <= named
    assert not [o for o in REGISTRY.names() if o not in named and not o.startswith(('logrv_', 'logdiur_'))]
