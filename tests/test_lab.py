"""The laboratory as it is started: its first page, its kernels' environment, saved notebooks as git has them; and new research notebooks."""
import ast
import builtins
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from nbdev.clean import clean_nb

from spyresearch import cli
from spyresearch.catalog import start_cells, start_page
from spyresearch.core import SPEED, DataError
from spyresearch.live.pages import clean_notebook, clean_on_save, page_command, page_env
from spyresearch.models.question import new_research
from spyresearch.runs import declared, execute

ROOT = Path(__file__).parents[1]
BOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
RUNS = [p for p in BOOKS if p.parent.name in ('runs', 'research')]


def noisy(nb):
    "A notebook as JupyterLab hands it over after it was opened and run."
    nb = json.loads(json.dumps(nb))
    run = any('parameters' in c['metadata'].get('tags', []) for c in nb['cells'])
    nb['metadata'] |= dict(language_info=dict(name='python', version='3.13.1')) | (dict(widgets=dict(state={})) if run else {})
    nb['metadata']['kernelspec']['display_name'] = 'Python 3 (ipykernel)'
    for i, c in enumerate(nb['cells']):
        c['metadata'] |= dict(trusted=True, execution={'iopub.execute_input': '2026-03-31T20:15:00'}, collapsed=False)
        if c['cell_type'] == 'code':
            c['execution_count'] = i
            for o in c['outputs']:
                if o['output_type'] == 'execute_result': o['execution_count'] = i
                if 'metadata' in o: o['metadata'] = {'needs_background': 'light'}
            if run: c['outputs'] = [dict(output_type='stream', name='stdout', text=['run by hand\n'])]
    return nb


def test_a_saved_notebook_is_the_one_in_git(tmp_path):
    "Every notebook of the project, written by Jupyter's own manager of files, byte for byte."
    import nbformat
    from jupyter_server.services.contents.filemanager import FileContentsManager
    m = FileContentsManager(root_dir=str(tmp_path), pre_save_hook='spyresearch.live.pages.clean_on_save')
    for p in BOOKS:
        nb = nbformat.from_dict(noisy(json.loads(p.read_text(encoding='utf-8'))))
        m.save(dict(type='notebook', format='json', content=nb), 'x.ipynb')
        assert (tmp_path/'x.ipynb').read_bytes() == p.read_bytes(), p.name


def test_it_is_as_clean_as_nbdev_asks():
    for p in BOOKS:
        ours = clean_notebook(noisy(json.loads(p.read_text(encoding='utf-8'))))
        theirs = json.loads(json.dumps(ours))
        clean_nb(theirs, allowed_cell_metadata_keys=['tags'])
        assert ours == theirs, p.name


@pytest.mark.parametrize('model', [dict(type='file', content='x'), dict(type='notebook', content=None), dict(type='notebook', content=dict(nbformat=3, worksheets=[])), dict(type='directory')])
def test_what_is_no_notebook_is_saved_as_it_is(model):
    before = json.dumps(model)
    clean_on_save(model, path='x', contents_manager=None)
    assert json.dumps(model) == before


def test_the_first_page_links_to_what_is_there(tmp_path):
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    run = tmp_path/'reports'/'replay'/'demo'/'run'/'2026-03-31-0a1b2c'
    run.mkdir(parents=True)
    (run/'report.html').write_text('x')
    good = dict(run='run', status='done', started='2026-03-31T20:15:00+00:00', parameters={}, provenance='simulated:demo', verdict='No [edge](x) <b>here</b>.')
    (run/'manifest.json').write_text(json.dumps(good))
    (bad := run.with_name('2026-03-30-0a1b2c')).mkdir()
    (bad/'manifest.json').write_text('{')
    page = tmp_path/start_page(tmp_path)
    text = '\n'.join(''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'])
    links = re.findall(r'\]\(([^)]*)\)', text)
    assert len(links) > 60 and all((page.parent/o).exists() for o in links if not o.startswith('/files/'))
    assert [o for o in links if o.startswith('/files/')] == ['/files/' + (run/'report.html').relative_to(tmp_path).as_posix()]
    assert '**SIMULATED**' in text and 'No edge(x) bhere/b' in text and ('Tour' in text) == bool(list((tmp_path/'nbs').glob('0*_tour.ipynb')))
    before = page.read_bytes()
    start_page(tmp_path)
    assert page.read_bytes() == before
    shutil.rmtree(tmp_path/'reports')
    assert 'spy run` makes the first' in '\n'.join(start_cells(tmp_path))


def left(node):
    "Names that a cell leaves behind: not those of its comprehensions and functions."
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)): return {o.target.id for o in ast.walk(node) if isinstance(o, ast.NamedExpr)}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): return {node.name}
    own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else {(a.asname or a.name).split('.')[0] for a in node.names} if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
    return own.union(*map(left, ast.iter_child_nodes(node)))


def read(node):
    "Names that a cell needs from elsewhere while it runs: not what its functions will look up when they are called."
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): return set().union(*map(read, [*node.args.defaults, *getattr(node, 'decorator_list', [])]))
    inner = {o.id for g in [*getattr(node, 'generators', []), *([node] if isinstance(node, ast.For) else [])] for o in ast.walk(g.target) if isinstance(o, ast.Name)}
    own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
    return own.union(*map(read, ast.iter_child_nodes(node))) - inner


def needed(body):
    "Names that statements need from before them."
    needs, made = set(), set()
    for o in body:
        parts = [getattr(o, k, None) or [] for k in ('body', 'orelse', 'finalbody')] if isinstance(o, (ast.For, ast.If, ast.While, ast.With, ast.Try)) else []
        inner = {x.id for x in ast.walk(o.target) if isinstance(x, ast.Name)} if isinstance(o, ast.For) else set()
        head = set().union(*(read(x) for k, x in ast.iter_fields(o) if isinstance(x, ast.AST)), *(read(x) for x in getattr(o, 'items', []))) if parts else read(o)
        if isinstance(o, ast.With): inner |= set().union(*(left(x) for x in o.items))
        inner |= {x.target.id for x in ast.walk(o) if isinstance(x, ast.NamedExpr)}
        needs |= (head.union(*map(needed, parts)) - inner) - made
        made |= left(o)
    return needs


def restored(tree):
    "Names that a cell keeps at first and puts back in the end: `keep = (a, b)`, `a, b = keep`."
    pairs = [(t, v) for o in tree.body if isinstance(o, ast.Assign) for t, v in (zip(o.targets[0].elts, o.value.elts) if isinstance(o.targets[0], ast.Tuple) and isinstance(o.value, ast.Tuple) else [(o.targets[0], o.value)])]
    kept = {t.id: [e.id for e in v.elts if isinstance(e, ast.Name)] for t, v in pairs if isinstance(t, ast.Name) and isinstance(v, ast.Tuple)}
    return {e for t, v in pairs if isinstance(v, ast.Name) and v.id in kept and isinstance(t, ast.Tuple) and [x.id for x in t.elts] == kept[v.id] for e in kept[v.id]}


@pytest.mark.parametrize('path', RUNS, ids=lambda p: p.stem)
def test_a_run_notebook_can_be_run_by_hand(path):
    "Parameters first and plain, each cell needs only what stands above it, and none is spoilt for a second time by what stands below."
    cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']; trees = [ast.parse(''.join(c['source'])) for c in cells]
    assert cells[0]['metadata'].get('tags') == ['parameters'] and all(isinstance(o, ast.Assign) and ast.literal_eval(o.value) is not None for o in trees[0].body)
    assert all("# " in o for o in ''.join(cells[0]['source']).splitlines() if o and not o.startswith("days")), 'a parameter without a word about it'
    settings, there = left(trees[0]), {*dir(builtins), 'display'}
    for i, t in enumerate(trees):
        needs, makes = needed(t.body), left(t)
        assert needs <= there, (i, needs - there)
        assert not (spoilt := needs & makes - settings - restored(t)), (i, spoilt)                                                  # x = f(x), of a cell above
        assert not (later := (needs - settings - set(dir(builtins))) & set().union(*(left(o) - restored(o) for o in trees[i + 1:]))), (i, later) # what was read here is something else in the end
        there |= makes


def test_long_cells_show_how_far_they_are():
    "Whatever walks over days and can say how far it is, is asked to."
    for path in RUNS:
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            calls = [o for o in ast.walk(ast.parse(''.join(c['source']))) if isinstance(o, ast.Call)] if c['cell_type'] == 'code' else []
            for o in calls:
                if getattr(o.func, 'id', '') in ('evaluate', 'walk', 'backtest', 'on_record', 'with_touch'): assert 'bar_progress' in ast.unparse(o) or 'progress' in ast.unparse(o), (path.name, ast.unparse(o)[:60])


def test_by_hand_it_shows_its_progress_and_leaves_nothing(tmp_path):
    "Cell by cell in a kernel of its own, as the laboratory does it, with two parameters changed in their cell."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(ROOT/'nbs/runs/evaluate.ipynb', 4)
    first = next(c for c in nb.cells if c.cell_type == 'code')
    first.source = first.source.replace("members = 'all' ", "members = 'har' ")
    (tmp_path/'nbs').mkdir()
    NotebookClient(nb, timeout=300, resources=dict(metadata=dict(path=str(tmp_path/'nbs')))).execute()
    out = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    assert not list((tmp_path/'nbs').iterdir()) and not [o for o in out if o.output_type == 'error']
    said = ''.join(o.text for o in out if o.output_type == 'stream')
    assert re.search(r'forecasts: \d+/\d+', said) and re.search(r'history: \d+/\d+', said), said[-500:]
    assert any('text/html' in o.get('data', {}) and 'SIMULATED' in o.data['text/html'] for o in out)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on a small checkout, as the command starts it; `lab(path, body, method)` asks its server."
    top, own = tmp_path_factory.mktemp('top'), tmp_path_factory.mktemp('own')
    (top/'nbs'/'runs').mkdir(parents=True)
    for o in ('nbs/02_bars.ipynb', 'nbs/runs/live.ipynb'): shutil.copy(ROOT/o, top/o)
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    env = page_env(dict(os.environ), top/'data') | {f'JUPYTER_{k}_DIR': str(own/k) for k in ('CONFIG', 'DATA', 'RUNTIME')} | {f'JUPYTERLAB_{k}_DIR': str(own/k) for k in ('SETTINGS', 'WORKSPACES')}
    log = open(own/'log.txt', 'w')
    p = subprocess.Popen(page_command('lab', top, port, token=False, browser=False, first=start_page(top)) + ['--ServerApp.disable_check_xsrf=True'], env=env, stdout=log, stderr=log)
    def ask(path, body=None, method=None):
        r = urllib.request.Request(f'http://127.0.0.1:{port}/{path}', None if body is None else json.dumps(body).encode(), {'Content-Type': 'application/json'}, method=method)
        with urllib.request.urlopen(r, timeout=60) as f: return f.read().decode()
    end = time.monotonic() + 90
    while True:
        try: ask('api'); break
        except OSError:
            assert p.poll() is None and time.monotonic() < end, (own/'log.txt').read_text()
            time.sleep(.2)
    ask.top, ask.p, ask.log = top, p, own/'log.txt'
    yield ask
    p.terminate()
    try: p.wait(20)
    except subprocess.TimeoutExpired: p.kill()
    log.close()


def test_a_notebook_saved_in_the_laboratory_changes_nothing_in_git(lab):
    at = 'api/contents/nbs/02_bars.ipynb'
    model = json.loads(lab(at))
    body = dict(type='notebook', format='json', content=noisy(model['content']))
    lab(at, body, 'PUT')
    assert (lab.top/'nbs'/'02_bars.ipynb').read_bytes() == (ROOT/'nbs'/'02_bars.ipynb').read_bytes()


def test_it_opens_on_the_first_page(lab):
    page = json.loads(lab('api/contents/reports/start.ipynb'))
    assert page['type'] == 'notebook' and '# spyresearch' in page['content']['cells'][0]['source']
    assert 'lab/tree/reports/start.ipynb' in lab.log.read_text()


def test_kernels_carry_the_environment(lab):
    kernel = json.loads(lab('api/kernels', dict(name='python3'), 'POST'))
    end = time.monotonic() + 60
    while not (kids := [o for o in psutil.Process(lab.p.pid).children(recursive=True) if 'ipykernel' in ' '.join(o.cmdline())]) and time.monotonic() < end: time.sleep(.1)
    env = kids[0].environ()
    assert {k: env.get(k) for k in SPEED} == SPEED and env['SPY_DATA'] == str((lab.top/'data').resolve())
    lab(f"api/kernels/{kernel['id']}", method='DELETE')


def test_a_port_in_use_is_said(capsys):
    with socket.create_server(('127.0.0.1', 0)) as s:
        for kind in ('lab', 'web'):
            code = cli.outcome(lambda kind=kind: cli.app([kind, '--port', str(s.getsockname()[1]), '--no-browser'], standalone_mode=False))
            said = capsys.readouterr()
            assert code == 2 and f'port {s.getsockname()[1]} of 127.0.0.1 cannot be used' in said.err and '--port' in said.err and not said.out


def test_a_new_question_runs_as_laid_out(tmp_path):
    path, log = new_research('first_minutes', tmp_path), io.StringIO()
    assert {'bars', 'seed', 'out', 'sessions', 'asof'} <= declared(path).keys()
    cells = json.loads(path.read_text())['cells']
    assert clean_notebook(json.loads(path.read_text())) == json.loads(path.read_text()) and all(not c.get('outputs') for c in cells)
    run = execute(path, dict(sessions=60), tmp_path/'reports', log)
    m, page = run.manifest, run.report.read_text(encoding='utf-8')
    low, high = map(float, re.search(r'\(([+-][\d.]+) to ([+-][\d.]+)', run.verdict).groups())
    best = dict((o[0], o) for o in m['glance']['points'])[re.search(r'6 tries, (.*), (is shown|cannot)', run.verdict)[1]]
    assert m['tries'] == len(m['glance']['points']) == 6 and 'best of 6 tries' in run.verdict and low < best[1] < high and low <= best[2] + .01 and high >= best[3] - .01
    assert 'SIMULATED' in page and page.count('class="fig') == 2 and run.verdict in page.replace('&#x27;', "'") and 'What these data cannot answer' in page
    with pytest.raises(DataError, match='too few'): execute(path, dict(sessions=30), tmp_path/'reports', log)


def test_its_numbers_come_from_the_bars(tmp_path):
    "Another seed, another market, other numbers: none is written down in the layout."
    code = ''.join(''.join(c['source']) for c in json.loads(new_research('a', tmp_path).read_text())['cells'])
    assert not re.search(r'\d\.\d\d', code)


def test_the_command_lays_out_once(tmp_path, monkeypatch, capsys):
    from spyresearch import checks
    (tmp_path/'nbs'/'research').mkdir(parents=True)
    monkeypatch.setattr(checks, 'checkout', lambda: tmp_path)
    def spy(*args): return cli.outcome(lambda: cli.app(['new-research', *args], standalone_mode=False)), capsys.readouterr()
    assert spy('opening_drive')[0] == 0
    before = (tmp_path/'nbs'/'research'/'opening_drive.ipynb').read_bytes()
    for name, said in (('opening_drive', 'exists'), ('../x', 'no name for a notebook'), ('Opening', 'lower-case'), ('lambda', 'no word of Python')):
        code, out = spy(name)
        assert code == 2 and said in out.err
    assert (tmp_path/'nbs'/'research'/'opening_drive.ipynb').read_bytes() == before and len(list(tmp_path.rglob('*.ipynb'))) == 1
