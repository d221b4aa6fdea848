"""Three questions of nbs/research by their command: what can be forecast, the noise area, what a long option must overcome."""
import json
import re
from pathlib import Path

import pytest

from spyresearch import cli

BOOKS = Path(__file__).parents[1]/'nbs'/'research'
ANSWERED = {} # name -> manifest
SMALL = dict(forecastable=['--sessions', '90'], noise_area=['--sessions', '80', '--set', 'older=40'], hurdles=['--sessions', '66', '--set', 'drawn=6'])


@pytest.fixture(scope='module')
def ask(tmp_path_factory):
    "`ask(name, option, ...)`: exit status and, where there is one, the run's folder."
    def run(name, *options):
        top = tmp_path_factory.mktemp(name)
        code = cli.outcome(lambda: cli.app(['research', name, '--reports', str(top), *options], standalone_mode=False))
        return code, next((p for p in top.glob(f'{name}/*') if p.is_dir()), top)
    return run


def numbers(text): return [float(o.replace('\u2212', '-')) for o in re.findall(r'[-\u2212+]?\d+\.\d+', text)]


@pytest.mark.parametrize('name', SMALL)
def test_a_question_is_answered_on_the_demo(ask, name, capsys):
    code, folder = ask(name, *SMALL[name])
    m, page, said = json.loads((folder/'manifest.json').read_text()), (folder/'report.html').read_text(encoding='utf-8'), capsys.readouterr().out
    ANSWERED[name] = m
    assert code == 0 and m['status'] == 'done' and m['provenance'].startswith('simulated:') and m['verdict'] in said
    assert 'SIMULATED' in page and page.count('class="fig') >= 10 and 'What these data cannot answer' in page and 'Surprise' in page
    assert m['tries'] >= 15 and f"{m['tries']} tries" in m['verdict'] and m['verdict'][:60] in page.replace('&#x27;', "'")
    assert len(m['glance']['points']) >= 4 and all(low <= v <= high for _, v, low, high in m['glance']['points'] if v is not None and low == low and low is not None)
    code = ''.join(''.join(c['source']) for c in json.loads((BOOKS/f'{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code')
    assert not set(numbers(m['verdict'])) & set(numbers(code)) - {1.33}, 'a number of the verdict stands in the notebook'


def test_another_market_gets_another_verdict(ask):
    run = lambda *more: json.loads((ask('noise_area', *SMALL['noise_area'], *more)[1]/'manifest.json').read_text())
    said = ANSWERED.get('noise_area') or run(), run('--seed', '8')
    assert said[0]['verdict'] != said[1]['verdict'] and said[0]['data_hash'] != said[1]['data_hash'] and said[1]['seed'] == 8


@pytest.mark.parametrize('name, few', dict(forecastable='20', noise_area='40', hurdles='30').items())
def test_too_few_sessions_are_refused(ask, name, few, capsys):
    code, folder = ask(name, '--sessions', few)
    assert code == 3 and folder.name.endswith('.failed') and 'full sessions are too few' in capsys.readouterr().err


def test_what_was_typed_is_checked(ask, capsys):
    for options, what in ((['--set', 'sesions=90'], 'did you mean sessions?'), (['--set', 'sessions'], 'NAME=VALUE'), (['--set', 'sessions=many'], 'wrong kind')):
        assert ask('noise_area', *options)[0] == 2 and what in capsys.readouterr().err
    assert ask('noise_aria')[0] == 2 and 'did you mean noise_area?' in capsys.readouterr().err
