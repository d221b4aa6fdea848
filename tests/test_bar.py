"""The bar: a row says where it is missed, and a rounded number never looks like one that is met."""
from spyresearch.bar import MINUTE_HORIZONS, forecast_rules, forecast_words, row


def test_a_near_miss_shows_its_digits_and_its_place():
    "As on the real bars to 2026-03: .4487 against .45 is missed, and reads so."
    found = (.4013, .4487, .5229, .5921)
    ev = dict(n_days=535, horizons={h: dict(skill_pct=dict(har=v), dm_t=dict(har=4.), coverage={'80': dict(marginal=80.1, half_width=.4), '90': dict(marginal=90.1, half_width=.3)}) for h, v in zip(MINUTE_HORIZONS, found)})
    rules = forecast_rules(ev); r = next(o for o in rules if o.what == 'By how much it beats HAR')
    assert r.met is False and 'missed at 15 min, 60 min' in r.found and '+0.449' in r.found and '+0.52' in r.found
    assert 'its bands there hold' in forecast_words(rules) and '60 min' in rules[1].what # of the day horizons nothing is said


def test_a_row_that_is_met_or_not_judged_names_no_place():
    places = ('5 min', '15 min')
    assert 'missed' not in row('x', [.5, .6], (.4, .8), places=places).found
    assert 'missed' not in row('x', [.1, None], (.4, .8), places=places).found and 'missed' not in row('x', [.1, .2], (.4, .8), few='20 days', places=places).found
    worse = row('x', [.96, 1.04], (1., .5), 'points', '.1f', most=True, places=places); assert worse.found.startswith('0.96, 1.04') and worse.found.endswith('missed at 15 min')
