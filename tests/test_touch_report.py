"""Touch probabilities as a run tells them: walked forward, blind to what comes later, in order, and on the page."""
import json
import re

import numpy as np
import pytest

from spyresearch import report
from spyresearch.bars import read_bars
from spyresearch.models.barriers import NEITHER, UNKNOWN
from spyresearch.models.experiment import evaluate
from spyresearch.models.metrics import ece_pp, skill_pct
from spyresearch.models.races import KEYS, NAMES, base_rate, bends, disorder, walk, with_touch
from spyresearch.models.touch import DISTANCES, STRAIGHT, half
from spyresearch.models.windows import Panel
from spyresearch.tws.market import demo_tape


@pytest.fixture(scope='module')
def bars(): return demo_tape(days=130, older=0).bars['TRADES', '1 min']


@pytest.fixture(scope='module')
def walked(bars):
    panel = Panel.from_bars(bars, provenance='simulated:demo'); evaluation = evaluate(panel, 'har')
    return panel, evaluation, walk(panel, evaluation)


def test_nothing_later_changes_an_answer(walked):
    panel, evaluation, races = walked; few = panel.days_upto(112); early = walk(few, evaluate(few, 'har')); n = len(early.day)
    assert n and (races.day[:n] == early.day).all() and len(races.day) > n
    for k in NAMES: np.testing.assert_array_equal(races.p[k][:n], early.p[k], err_msg=k)
    np.testing.assert_array_equal(races.first[:n], early.first)


def test_every_model_answers_alike_in_order_and_in_whole(walked):
    _, _, races = walked
    for k in NAMES:
        assert np.isfinite(races.p[k]).all() and abs(races.p[k].sum(-1) - 1).max() < 1e-5, k
        assert k == 'base' or disorder(races.p[k]) == 0, k
    assert (races.p['paths'][races.day >= 102] != races.p['unbent'][races.day >= 102]).any() and (races.model.params['bend'] != 1).any()


def test_a_bias_by_the_clock_is_bent_away_on_other_days(walked):
    "Paths made too calm in the afternoon and too wild before, levels in dollars as ever: a month of matured days takes a part of the bias away on days not seen."
    _, _, races = walked; model = type(races.model)(); model.params = {k: v for k, v in races.model.params.items() if k != 'bend'}; late = half(races.minute) >= 6
    def say(o):
        out = np.empty(races.p['base'].shape)
        for at, k in ((late, .85), (~late, 1/.85)): out[at] = o.probabilities(k*races.sigma[at], races.minute[at], DISTANCES/k, DISTANCES/k)
        return out
    old = races.day < np.median(races.day); p, known = say(model), races.first != UNKNOWN
    factor = bends(races.sigma[old], races.minute[old], p[old], races.first[old])
    def off(o, at): return ((races.first == NEITHER) - o[..., NEITHER])[known & at[:, None, None, None]].mean()
    before, after = (off(o, late & ~old) - off(o, ~late & ~old) for o in (p, say(model.bend(factor))))
    assert factor[7:12, :3].mean() > 1.05 > .95 > factor[:5, :3].mean() and abs(after) < .85*abs(before)


def test_no_answers_bend_nothing_and_no_outcomes_are_even_odds():
    none = np.zeros((0, 6, 6, 5), np.int8)
    assert (bends(np.zeros((0, 9)), np.zeros(0, int), np.zeros((*none.shape, 3)), none) == STRAIGHT).all()
    np.testing.assert_allclose(base_rate(none, half(np.zeros(0, int))), 1/3)


def test_the_page_and_the_json_say_the_same(walked):
    panel, evaluation, races = walked; ev, again = with_touch(evaluation.to_json(), panel, evaluation); t = ev['touch']; json.dumps(ev, allow_nan=False)
    assert list(t['limits']) == list(KEYS) and t['n_origins'] == len(races.day) == len(again.day) and t['scale'] == 'ensemble'
    page = report.touch(ev)
    for h in KEYS: assert f"{t['limits'][h]['brier']['paths']:.4f}" in page and f"{t['limits'][h]['n_origins']:,} origins" in page
    assert 'no answer contradicts itself' in page and 'nan' not in re.sub(r'<svg.*?</svg>', '', page, flags=re.S)
    assert 'is over' in report.reach(evaluation, panel, races) # the last session known is whole


def test_an_open_session_is_answered_in_dollars(bars):
    cut = Panel.from_bars(bars.iloc[:-250], provenance='simulated:demo'); evaluation = evaluate(cut, 'har'); _, races = with_touch({}, cut, evaluation)
    card = report.reach(evaluation, cut, races); px = float(re.search(r'From ([\d.]+) USD', card)[1])
    assert 'SIMULATED: not to be traded' in card and card.count('within') == 3
    rows = re.findall(r'>([\d.]+) or ([\d.]+)</th>(.*?)</tr>', card); assert len(rows) == 3
    for up, down, cells in rows:
        assert abs(float(up) + float(down) - 2*px) < .011
        shares = [[int(o) for o in c] for c in re.findall(r'>(\d+) / (\d+) / (\d+)<', cells)]
        assert len(shares) == 3 and all(98 <= sum(o) <= 102 for o in shares)
        assert shares[0][2] >= shares[1][2] >= shares[2][2] # more time leaves less undecided


def test_a_poor_scale_on_real_prices(shared):
    "Ten months with a log-HAR of few days as the scale: answers in order, declared chances true to a point or so, and the correction does no harm."
    panel = Panel.from_bars(read_bars(shared('spy_1min.parquet')).loc['2024-05-01':'2025-02-28']); races = walk(panel, evaluate(panel, 'har'))
    assert disorder(races.p['paths']) == 0
    for j, k in enumerate(KEYS):
        assert ece_pp(races.declared('paths', j)) < 2, k
        assert skill_pct(races.daily('paths', j)[0], races.daily('unbent', j)[0]) > -.1, k
