"""`spy prepare` and `spy check-parity` on folders that somebody has touched: what is said, what is kept, and the exit status."""
import json
import re
from datetime import date
from pathlib import Path

import pytest
from made import bars

from spyresearch.cli import app, outcome
from spyresearch.core import DataError
from spyresearch.features.extension import TAKEN, forget
from spyresearch.features.registry import REGISTRY
from spyresearch.models.windows import Panel
from spyresearch.sessions import sessions
from spyresearch.store import Store

DAYS = sessions(date(2025, 11, 19), date(2025, 12, 5))
LAST, HALF = DAYS[-1], date(2025, 11, 28)
MINE = "from spyresearch.features.registry import feature\nfeature('my_range', lambda g: g.high - g.low, group='mine', formula='H - L', unit='USD', inputs=('high', 'low'))\n"


def fresh():
    for o in [*TAKEN]: forget(o)


@pytest.fixture
def spy(capsys):
    "`spy(...)`: (exit status, everything said), as a process of its own would, and nothing stays in the registry."
    def run(*args):
        fresh(); code = outcome(lambda: app([*map(str, args)], standalone_mode=False)); o = capsys.readouterr()
        assert 'Traceback' not in o.err and 'unexpected' not in o.err, o.err
        return code, '\n'.join(line for line in (o.out + o.err).splitlines() if not line.startswith('prepare: '))
    yield run
    fresh()


@pytest.fixture
def root(tmp_path, spy):
    "A prepared folder."
    store = Store(tmp_path/'data', 'simulated:demo')
    for i, d in enumerate(DAYS): store.write_raw(d, bars([d], 600. + i))
    assert spy('prepare', '--data', store.root)[0] == 0
    return store.root


def edit(root, day, i=5, column='r1', folder='daily_data'):
    "Add a dollar, or what it is, to one cell."
    path = root/folder/f'{day}.csv'; lines = path.read_text().splitlines(); at = lines[0].split(',').index(column); row = lines[i].split(',')
    row[at] = repr(float(row[at] or 0) + 1); lines[i] = ','.join(row); path.write_text('\n'.join(lines) + '\n')
    return path


# --- the certificate and the file

def test_without_a_day_it_is_the_last_one_and_empties_are_counted(spy, root):
    code, said = spy('check-parity', '--data', root, '--json', root/'out.json'); out = json.loads((root/'out.json').read_text())
    assert code == 0 and said.startswith(f'PASS {LAST}') and 'the day file holds the same' in said
    empty, n = sum(o['empty'] for o in out['minute'] if o['values']), sum(390 for o in out['minute'] if o['values'])
    assert f'empty counts as equal: {empty:,} of {n:,} values' in said and f"{sum(not o['values'] for o in out['minute'])} features all day" in said
    assert out['day'] == str(LAST) and out['file'] == dict(same=True, said='the day file holds the same') and all(o['filed'] for o in out['minute'])


@pytest.mark.parametrize('columns', [['r1'], ['close'], ['r1', 'logrv_60', 'volume']])
def test_an_edited_file_fails_and_its_columns_are_named(spy, root, columns):
    for o in columns: path = edit(root, HALF, 100, o)
    code, said = spy('check-parity', '--data', root, '--day', HALF); named = said.split('computed, in ')[1].split(' (')[0].split(', ')
    assert code == 1 and said.startswith(f'FAIL {HALF}: the day file {path} differs') and sorted(named) == sorted(columns) and 'it is the file that differs' in said
    assert spy('check-parity', '--data', root, '--day', LAST)[0] == 0


@pytest.mark.parametrize('damage, word', [
    (lambda p: p.unlink(), 'is not there any more'), (lambda p: p.write_bytes(p.read_bytes()[:900]), 'cannot be read'), (lambda p: p.write_text(''), 'the file is empty'),
    (lambda p: p.write_text(p.read_text().replace('\n', ',1\n').replace(',1\n', ',more\n', 1)), 'in more'), (lambda p: p.write_text(p.read_text().replace('T10:00', 'T09:59')), 'twice'),
    (lambda p: p.write_text('\n'.join(p.read_text().splitlines()[:-1]) + '\n'), 'incomplete'), (lambda p: p.write_text(p.read_text().replace(',1000.0,', ',1000.00,').replace(',1000,', ',1000.0,')), 'in no value')])
def test_other_damage_fails_too(spy, root, damage, word):
    damage(root/'daily_data'/f'{HALF}.csv')
    code, said = spy('check-parity', '--data', root, '--day', HALF)
    assert code == 1 and said.startswith(f'FAIL {HALF}: the day file') and word in said, said


def test_what_is_not_compared_says_why(spy, root, tmp_path):
    raw = Store(tmp_path/'raw', 'simulated:demo'); raw.write_raw(LAST, bars([LAST], 600.))
    assert 'not compared, because none was made yet' in spy('check-parity', '--data', raw.root)[1]
    (root/'original_data'/f'{DAYS[-2]}.csv').unlink()
    code, said = spy('check-parity', '--data', root)
    assert code == 0 and 'not compared, because the raw days behind it have changed' in said and f'no valid raw bars of {DAYS[-2]}' in said
    (tmp_path/'mine.py').write_text(MINE)
    assert 'not compared, because it was made under another registry' in spy('check-parity', '--data', root, '--day', DAYS[0], '--features', tmp_path/'mine.py')[1]
    edit(root, DAYS[0])
    code, said = spy('check-parity', '--data', root, '--day', DAYS[0], '--features', tmp_path/'mine.py')
    assert code == 1 and 'changed since it was written' in said     # another registry is no excuse for a hand
    raw.original.write(LAST, bars([LAST], 600.).iloc[:100], sealed=False)
    assert 'not compared, because the day is open' in spy('check-parity', '--data', raw.root)[1]


@pytest.mark.parametrize('day, word', [('2025-11-27', 'the market was closed on 2025-11-27\nit was a holiday'), ('2025-11-29', 'it was a Saturday'), ('2034-11-27', 'has not come'), ('2025-06-03', 'holds no bars'), ('soon', 'is not a date')])
def test_a_day_that_cannot_be_meant(spy, root, day, word):
    code, said = spy('check-parity', '--data', root, '--day', day)
    assert code == 2 and word in said


# --- raw days that do not count

def test_a_damaged_raw_day_is_refused_by_name(spy, root):
    path = edit(root, DAYS[4], column='close', folder='original_data'); (root/'original_data'/f'{DAYS[6]}.csv').unlink()
    code, said = spy('check-parity', '--data', root, '--day', DAYS[4])
    assert code == 3 and str(path) in said and 'run spy history' in said
    assert spy('check-parity', '--data', root, '--day', DAYS[6])[0] == 3
    for _ in range(2):
        code, said = spy('prepare', '--data', root)
        assert code == 3 and f'{DAYS[4]}: the raw bars do not count: {path}' in said and f'{DAYS[6]}.csv is not there, though the manifest lists it' in said and 'run spy history' in said
        assert f'raw days that do not count: {DAYS[4]}, {DAYS[6]}' in said
    assert len(Store(root).daily_days(sealed=True)) == len(DAYS)     # all that could be made is made, and nothing was taken away


def test_a_session_that_was_never_fetched_is_named_and_no_fault(spy, tmp_path):
    store = Store(tmp_path/'data', 'simulated:demo')
    for d in DAYS[:3] + DAYS[5:]: store.write_raw(d, bars([d], 600.))
    code, said = spy('prepare', '--data', store.root)
    assert code == 0 and f'{DAYS[3]} to {DAYS[4]}: no raw bars: never fetched' in said and 'run spy history' in said
    store.mark_absent(DAYS[3:5], 'simulated:demo')
    code, said = spy('prepare', '--data', store.root)
    assert code == 0 and f'{DAYS[3]} to {DAYS[4]}: no raw bars: simulated:demo had none' in said and 'run spy history' not in said


@pytest.mark.filterwarnings('error::UserWarning')
def test_a_bar_that_no_market_makes_is_named_in_every_run(spy, tmp_path):
    store = Store(tmp_path/'data', 'simulated:demo'); df = bars(DAYS, 600.); df.iloc[1000, :4] *= 1.3
    for d, o in df.groupby(df.index.date): store.write_raw(d, o)
    at = f'{df.index[1000]:%Y-%m-%d %H:%M}'; code, said = spy('prepare', '--data', store.root)
    assert code == 0 and said.count(at) == 1 and f'left out, no market makes it: {at}' in said
    code, said = spy('prepare', '--data', store.root)
    assert code == 0 and '0 written' in said and said.count(at) == 1
    code, said = spy('check-parity', '--data', store.root, '--day', at[:10])
    assert code == 0 and said.count(at) == 1 and 'left out, because no market makes them' in said and 'the day file holds the same' in said


# --- day files that somebody has changed

def test_an_edited_day_file_is_moved_aside_and_said(spy, root):
    path = edit(root, HALF); theirs = path.read_bytes()
    code, said = spy('prepare', '--data', root)
    assert code == 0 and f'{HALF}: the day file did not count and was computed again: changed since it was written' in said and 'quarantine' in said
    assert (root/'quarantine'/f'{HALF}.csv').read_bytes() == theirs != path.read_bytes() and 'changed since' in (root/'quarantine'/f'{HALF}.csv.reason.txt').read_text()
    assert spy('check-parity', '--data', root, '--day', HALF)[0] == 0 and 'did not count' not in spy('prepare', '--data', root)[1]


def test_a_spoilt_manifest_says_what_follows(spy, root):
    manifest = root/'daily_data.manifest.json'; manifest.write_text('{'); edit(root, HALF)
    before = {p.name: p.read_bytes() for p in (root/'daily_data').glob('*.csv')}
    for command in ('prepare', 'check-parity'):
        code, said = spy(command, '--data', root)
        assert code == 3 and 'computed again from the raw days' in said and 'fetched again' not in said
    manifest.unlink()
    assert spy('prepare', '--data', root)[0] == 0
    assert [p.name for p in (root/'quarantine').glob('*.csv')] == [f'{HALF}.csv']     # the others are what is computed
    assert {p.name for p in (root/'daily_data').glob('*.csv') if p.read_bytes() != before[p.name]} == {f'{HALF}.csv'}


# --- a source beside --data

@pytest.mark.parametrize('command', ['prepare', 'check-parity', 'tickets', 'models', 'rollback'])
@pytest.mark.parametrize('args, why', [(['--bars', 'x.parquet'], 'it holds simulated:demo, not x'), (['--tws', '127.0.0.1:7497'], 'asks nobody at that address'), (['--seed', '8'], 'not demo-8')])
def test_a_source_beside_a_folder_of_another_is_wrong_usage(spy, root, command, args, why):
    code, said = spy(command, '--data', root, *args)
    assert code == 2 and f'{args[0]} cannot be used with --data' in said and why in said


def test_the_folders_own_source_is_no_fault(spy, root, tmp_path, monkeypatch):
    assert spy('prepare', '--data', root, '--seed', 7)[0] == 0
    monkeypatch.setenv('SPY_TWS', '127.0.0.1:7497')     # set for other commands
    assert spy('prepare', '--data', root)[0] == 0
    monkeypatch.delenv('SPY_TWS')
    file = tmp_path/'real.parquet'; bars(DAYS[:2], 600.).to_parquet(file)
    from spyresearch.tws.source import Source
    store = Store(tmp_path/'real', 'replay:real'); store.write_raw(DAYS[0], bars(DAYS[:1], 600.)); store.keep_to(Source(bars=(str(file),)).fingerprint)
    assert spy('prepare', '--data', store.root, '--bars', file)[0] == 0
    file.write_bytes(file.read_bytes() + b' ')
    code, said = spy('prepare', '--data', store.root, '--bars', file)
    assert code == 2 and 'other content' in said
    file.unlink()
    assert spy('prepare', '--data', store.root, '--bars', file)[0] == 2


# --- features of one's own

def header(root, day=LAST): return (root/'daily_data'/f'{day}.csv').read_text().splitlines()[0].split(',')


def test_own_features_reach_the_day_files_and_are_remembered(spy, root, tmp_path):
    mine = tmp_path/'mine.py'; mine.write_text(MINE)
    code, said = spy('prepare', '--data', root, '--features', mine)
    assert code == 0 and f'{len(DAYS)} written' in said and header(root)[-1] == 'my_range'
    code, said = spy('prepare', '--data', root)
    assert code == 0 and '0 written' in said and header(root)[-1] == 'my_range'
    code, said = spy('check-parity', '--data', root, '--json', root/'out.json')
    assert code == 0 and 'holds the same' in said and json.loads((root/'out.json').read_text())['minute'][-1]['feature'] == 'my_range'
    fresh(); assert 'my_range' not in REGISTRY


def test_a_file_that_changed_or_is_gone_is_named_and_no_column_is_lost(spy, root, tmp_path):
    mine = tmp_path/'mine.py'; mine.write_text(MINE); spy('prepare', '--data', root, '--features', mine)
    mine.write_text(MINE.replace('g.high - g.low', '2*(g.high - g.low)'))
    for command in ('prepare', 'check-parity'):
        code, said = spy(command, '--data', root)
        assert code == 3 and f'{mine} has changed' in said and 'my_range' in said and header(root)[-1] == 'my_range'
    assert spy('prepare', '--data', root, '--features', mine)[0] == 0
    mine.rename(tmp_path/'elsewhere.py')
    code, said = spy('prepare', '--data', root)
    assert code == 3 and f'{mine} is not there' in said and header(root)[-1] == 'my_range'
    code, said = spy('prepare', '--data', root, '--features', 'none')
    assert code == 0 and 'written without them: my_range' in said and header(root)[-1] != 'my_range' and 'my_range' not in spy('prepare', '--data', root)[1]


def test_columns_of_a_stranger_are_not_dropped_without_a_word(spy, root):
    "A program of somebody's own wrote the files; the command knows nothing of its features."
    from spyresearch.features.prepare import prepare
    from spyresearch.features.registry import feature
    try:
        feature('theirs', lambda g: g.high - g.low, group='mine', formula='H - L', inputs=('high', 'low')); prepare(Store(root))
    finally: REGISTRY.features.pop('theirs', None)
    code, said = spy('prepare', '--data', root)
    assert code == 0 and f'{len(DAYS)} day files hold columns that no declared feature has, and are written without them: theirs' in said and '--features FILE.py' in said


def test_day_files_of_another_list_teach_nothing_and_are_counted(spy, root, monkeypatch):
    spy('prepare', '--data', root); monkeypatch.setattr(REGISTRY, 'features', {k: v for k, v in REGISTRY.features.items() if k != 'rsi_14'})
    with pytest.raises(DataError) as e: Panel.from_store(Store(root))
    assert e.value.why == f'there is none of the present list of features; {len(DAYS)} are of another list'


@pytest.mark.parametrize('name, text, word', [('none.py', None, 'is not there'), ('mine.ipynb', '{}', 'no Python file'), ('mine.py', 'x = 1\n', 'declares no feature'), ('mine.py', 'x = 1\nx.y\n', 'line 2: AttributeError'), ('mine.py', 'import sys\nsys.exit(0)\n', 'line 2: SystemExit'),
                                              ('mine.py', MINE + 'def f(:\n', 'line 3: SyntaxError'), ('mine.py', MINE.replace('my_range', 'r1'), "'r1' is declared already"), ('mine.py', MINE + MINE.replace('my_range', 'b').replace("'low')", "'lwo')"), "unknown input 'lwo'")])
def test_a_file_that_cannot_be_taken_in(spy, root, tmp_path, name, text, word):
    path, n = tmp_path/name, len(REGISTRY)
    if text is not None: path.write_text(text)
    before = header(root); code, said = spy('prepare', '--data', root, '--features', path)
    assert code == 2 and word in said and str(path) in said and header(root) == before and len(REGISTRY) == n
    assert spy('prepare', '--data', root)[0] == 0     # nothing was kept of it


def own(formula, name='peek', more=''): return 'import numpy as np, sys\n' + MINE.replace('g.high - g.low', formula).replace('my_range', name).replace("'low')", f"'low', 'close'){more}")

MEAN = "step=lambda b, s: setattr(s, 'x', b.close if s.x != s.x else s.x if b.close != b.close else .999*s.x + .001*b.close) or s.x, state=dict(x=np.nan), scope='continuous', sessions=1"
MEAN_BATCH = 'np.array([[s.append(x if not s else s[-1] if x != x else .999*s[-1] + .001*x) or s[-1] for x in d] for s in [[]] for d in g.close.tolist()])'
TURNED_DOWN = {'next': ('np.roll(g.close, -1, axis=1)', '', ('knew the future', 'it needs a step form')), 'top': ('np.nanmax(g.high, axis=1, keepdims=True)', '', ('knew the future',)),
               'sample mean': ('g.close - np.nanmean(g.close)', '', ('knew the future',)), 'drawn': ('np.random.default_rng().random(np.shape(g.close))', '', ('is random',)),
               'whole days': ('np.cumsum(np.nan_to_num(g.close), axis=1)', '', ('peek: its formula is written for whole days',)), 'runs on': (MEAN_BATCH, ', ' + MEAN, ('remembers more than the 1 session declared',)),
               'fails': ('1/0', '', ('ZeroDivisionError', 'peek.py')), 'ends': ('sys.exit(0)', '', ('ends the program', 'peek.py'))}

@pytest.mark.parametrize('what', TURNED_DOWN)
def test_a_column_that_cannot_be_had_is_refused_and_not_remembered(spy, root, tmp_path, what):
    formula, more, words = TURNED_DOWN[what]; good, bad = tmp_path/'mine.py', tmp_path/'peek.py'; good.write_text(MINE); bad.write_text(own(formula, more=more))
    assert spy('prepare', '--data', root, '--features', good)[0] == 0
    before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    code, said = spy('prepare', '--data', root, '--features', bad)
    assert code == (2 if what in ('fails', 'ends') else 1) and all(o in said for o in words) and 'AxisError' not in said and 'written without them' not in said, said
    assert before == {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    code, said = spy('prepare', '--data', root)
    assert code == 0 and '0 written' in said and header(root)[-1] == 'my_range' and 'peek' not in REGISTRY     # the good one is remembered still


REMEMBERS = """
WHOLE = {}
def lead(g):
    for d, row in zip(g.day, g.close):
        if d not in WHOLE or np.isfinite(row).sum() > np.isfinite(WHOLE[d]).sum(): WHOLE[d] = row.copy()
    return np.array([np.append(WHOLE[d][1:], np.nan)/row for d, row in zip(g.day, g.close)])
def step(b, s): return np.float64(np.append(WHOLE[b.day][1:], np.nan)[b.minute]/b.close) if b.day in WHOLE else np.nan
feature('lead', lead, step=step, state=dict(), group='mine', formula='the next close over this one', unit='', inputs=('close',))
"""

def test_a_column_that_remembers_what_it_saw_of_the_future_is_refused(spy, root, tmp_path):
    "Cuts that are made after all bars were seen cannot show it."
    path = tmp_path/'lead.py'; path.write_text('import numpy as np\nfrom spyresearch.features.registry import feature\n' + REMEMBERS)
    code, said = spy('prepare', '--data', root, '--features', path)
    assert code == 1 and 'says something else of' in said and 'once later bars were seen' in said and 'lead' not in REGISTRY, said


def test_a_young_folder_is_examined_when_it_is_old_enough(spy, tmp_path):
    store, bad = Store(tmp_path/'data', 'simulated:demo'), tmp_path/'peek.py'; bad.write_text(own('np.nanmax(g.high) - g.close'))
    for i, d in enumerate(DAYS[:3]): store.write_raw(d, bars([d], 600. + i))
    code, said = spy('prepare', '--data', store.root, '--features', bad)
    assert code == 0 and 'not examined for look-ahead: 3 sessions are too few, 5 are wanted: peek' in said
    assert 'not examined for look-ahead' in spy('prepare', '--data', store.root)[1]
    store = Store(store.root)
    for i, d in enumerate(DAYS[3:]): store.write_raw(d, bars([d], 610. + i))
    code, said = spy('prepare', '--data', store.root)
    assert code == 1 and 'peek: knew the future' in said
    assert spy('prepare', '--data', store.root)[0] == 0 and header(store.root)[-1] != 'peek'


def test_an_own_column_without_a_value_is_named(spy, root, tmp_path):
    path = tmp_path/'void.py'; path.write_text(own('g.close/0', 'void'))
    code, said = spy('prepare', '--data', root, '--features', path)
    assert code == 0 and 'void: no value on any of the days computed' in said


def test_the_page_on_the_data_folder_names_the_columns_that_there_are():
    text, names = (Path(__file__).parents[1]/'data/README.md').read_text(encoding='utf-8').split('## Day files')[1], REGISTRY.names()
    files, seconds = (re.findall(r'^\| `([^`]+)` \| (G\d+) ', o, re.M) for o in text.split('## Journal')[0].split('## One-second features'))
    listed = {}
    for cell, group in files + seconds:
        for o in cell.split(', '):
            a, _, b = o.partition(' ... '); listed |= {n: group for n in names[names.index(a):names.index(b or a) + 1]}
    assert listed == {o: REGISTRY[o].group for o in names}


def test_a_data_folder_brings_no_code(spy, root):
    (root/'mine.py').write_text(MINE)
    code, said = spy('prepare', '--data', root, '--features', root/'mine.py')
    assert code == 2 and 'must not bring code along' in said
    manifest = root/'daily_data.manifest.json'; m = json.loads(manifest.read_text())
    import hashlib
    manifest.write_text(json.dumps(m | dict(own=[dict(file=str(root/'mine.py'), columns=['my_range'], sha256=hashlib.sha256(MINE.encode()).hexdigest())])))
    code, said = spy('prepare', '--data', root)
    assert code == 3 and 'lies in the data folder' in said and 'my_range' not in REGISTRY


def test_a_live_day_has_own_columns_too(spy, tmp_path):
    "Given once, to the live run itself; the next one finds them, or says which file is gone."
    (tmp_path/'mine.py').write_text(MINE); root = tmp_path/'data'
    go = ['live', '--sessions', 10, '--days', 3, '--no-options', '--data', root, '--asof']
    assert spy(*go, '2025-12-05T15:55', '--until', '15:57', '--features', tmp_path/'mine.py')[0] == 0
    assert header(root)[-1] == header(root, DAYS[-2])[-1] == 'my_range' and (root/'daily_data'/f'{LAST}.csv').read_text().splitlines()[-1].split(',')[-1]
    (tmp_path/'mine.py').unlink(); code, said = spy(*go, '2025-12-05T15:57', '--until', '15:58')
    assert code == 3 and f"{tmp_path/'mine.py'} is not there" in said and header(root)[-1] == 'my_range'
