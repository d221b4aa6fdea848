"""Three questions by their command, on little data: verdicts that are computed, controls that find what was planted and nothing else, clear words where there is too little."""
import json
import re

import numpy as np
import pytest

from spyresearch import cli
from spyresearch.bars import RAW_COLUMNS
from spyresearch.features.batch import compute
from spyresearch.features.registry import REGISTRY, registry_hash
from spyresearch.models.boosted import BoostedFlow
from spyresearch.models.windows import Panel
from spyresearch.models.targets import log_rv
from spyresearch.sessions import minutes
from spyresearch.store import Store
from spyresearch.tws.market import demo_tape


def research(folder, name, *args):
    "(exit status, manifest, page) of a run by the command."
    code = cli.outcome(lambda: cli.app(['research', name, '--reports', str(folder), *map(str, args)], standalone_mode=False))
    done = sorted(o for o in (folder/name).glob('*') if not o.name.endswith('.failed')) if code == 0 else []
    return code, *((json.loads((done[-1]/'manifest.json').read_text('utf8')), (done[-1]/'report.html').read_text('utf8')) if done else ({}, ''))


def given(words, value): assert f'{value:+.3f}'.replace('-0.000', '+0.000') in words.replace('-0.000', '+0.000'), (value, words)


def test_seventeen_schedules_one_table(tmp_path):
    "Twenty-two scored sessions; the notebook itself asserts that no schedule knows what comes later."
    code, m, page = research(tmp_path, 'learning', '--sessions', 83, '--seed', 3)
    assert code == 0 and m['tries'] == 20 and m['provenance'] == 'simulated:demo-3' and 'What these data cannot answer' in page
    rows = re.findall(r'<tr[^>]*><th scope="row">([^<]*)</th>', page[page.index('Seventeen schedules, one table'):page.index('No schedule knows')])
    assert len(rows) == len(set(rows)) == 17 and {'once a month', 'never again', 'each minute', 'once a month, bands each minute'} <= set(rows)
    points = {o[0]: o[1:] for o in m['glance']['points']}
    best = max(points, key=lambda k: points[k][0])
    assert f'"{best}"' in m['verdict'] and all(low <= v <= high for v, low, high in points.values())
    given(m['verdict'], points['each minute'][0]); given(m['verdict'], points[best][0])
    worse = [points[f'a step of {o} each minute'][0] for o in ('0.0001', '0.001', '0.01')]
    assert worse[0] > worse[1] > worse[2] and points['each minute, half-life 60 sessions'][0] > points['each minute, half-life 1 session'][0]


def test_how_sure_is_sure(tmp_path):
    "Silent on the market as it is; a planted edge gets through, and comes as often as it was declared to or more."
    code, m, page = research(tmp_path, 'sure', '--sessions', 86, '--set', 'control=300', '--set', 'edges=0,1.5')
    said = m['verdict']
    assert code == 0 and 'lets none of' in said and 'without an edge, none' in said and f'At the level that {m["tries"]} tries ask for' in said
    edge, n, came, declared = map(float, re.search(r'edge of ([\d.]+) volatilities it lets (\d+) through, (\d+) % came against (\d+) %', said).groups())
    assert edge == 1.5 and n >= 15 and came >= declared > 50
    assert page.count('class="fig') >= 3 and 'too few days' in page and 'not measured' in page


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Day files of 84 sessions with flow beside all of them: noise, but that one column of level 1 knows of the five minutes to come."
    bars = demo_tape(days=84, older=0).bars['TRADES', '1 min']; rng = np.random.default_rng(0)
    bare = Panel.from_bars(bars, features=[]); at = np.nonzero(~np.isnan(bare.close))
    y = log_rv(bare, *at)[:, 0]; z = np.nan_to_num((y - np.nanmean(y))/np.nanstd(y))
    names = [o for f in REGISTRY.plan(BoostedFlow.reads) for o in f.inputs if o.startswith(('level1.', 'level2.'))]
    x = {o: rng.normal(size=len(bars)) for o in names}; x['level1.ofi_60'] = z + .5*x['level1.ofi_60']
    both = bars.join(compute(bars.assign(**x))).reindex(columns=RAW_COLUMNS + REGISTRY.names()); store = Store(tmp_path_factory.mktemp('flow')/'data', 'simulated:flow')
    for d, df in both.groupby(both.index.date): store.write_daily(d, df.reindex(minutes(d)), registry_hash())
    return store.root


def test_flow_is_compared_as_soon_as_it_is_recorded(folder, tmp_path):
    code, m, page = research(tmp_path, 'flow', '--set', f'data={folder}')
    points = {o[0]: o[1:] for o in m['glance']['points']}
    assert code == 0 and len(points) == 12 and m['tries'] == 48 and m['verdict'].startswith('The best of 12 comparisons') and 'is shown to save something' in m['verdict']
    assert points['level 1, 5 min'][1] > 0 > points['level 2, 5 min'][1] and points['both, 5 min'][0] > points['level 2, 5 min'][0]


def test_until_then_it_says_how_many_sessions_are_missing(tmp_path):
    code, m, page = research(tmp_path, 'flow', '--sessions', 84, '--set', 'worth=0.1')
    have, need, missing, teach, scored = (int(o.replace(',', '')) for o in re.search(r'(\d+) recorded sessions of ([\d,]+): ([\d,]+) are missing .*\((\d+) that teach, ([\d,]+) that', m['verdict']).groups())
    assert code == 0 and m['verdict'].startswith('Not measured.') and have == 0 and missing == need == teach + scored == m['missing'] and scored > 20
    assert 'none is made up in its place' in page and 'Not measured' in page


@pytest.mark.parametrize('name,args,status,words', [
    ('learning', ('--sessions', 70), 3, '70 sessions are too few'), ('sure', ('--sessions', 60), 3, '60 sessions are too few'), ('flow', ('--set', 'data=nowhere'), 3, 'no data folder')], ids=lambda o: str(o)[:12])
def test_too_little_is_said(name, args, status, words, tmp_path, capsys):
    code, m, page = research(tmp_path, name, *args)
    assert code == status and words in capsys.readouterr().err and not m
