"""The bar: a row says where it is missed, and a rounded number never looks like one that is met."""
import numpy as np
import pandas as pd

from spyresearch.bar import MINUTE_HORIZONS, forecast_rules, forecast_words, row
from spyresearch.skill import by_year, years


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


def test_a_gain_of_one_year_is_seen_to_be_one():
    "Ten percent in the first year, nothing in the second, and no row for a year of a few days."
    class Two:
        system, days = 'ensemble', [o.date() for o in pd.bdate_range('2024-12-27', '2026-02-10')]
        def loss(self, name, h): return np.array([np.nan if d.day == 13 else (.9 if name == 'ensemble' and d.year < 2026 else 1.)*(1 + .1*(d.day % 3)) for d in self.days])
    got = by_year(Two(), '5'); assert list(got) == ['2025', '2026'] and [o['skill_pct'] for o in got.values()] == [10., 0.] and got['2025']['dm_t'] > 5 and got['2026'] == dict(n_days=28, skill_pct=0., dm_t=None)
    shown = years(dict(horizons={'5': dict(by_year=got)})); assert '+10.00' in shown and '2026' in shown and years(dict(horizons={'5': dict(by_year={'2025': got['2025']})})) == ''
