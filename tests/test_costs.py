"""Commissions against the broker's own worked examples, and the table against itself."""
from datetime import date

import pytest
from hypothesis import given, settings, strategies as st

from spyresearch.trade.costs import Costs, RATES, fees_usd, option_fees_usd, rates

SPRING = date(2025, 3, 20)

# interactivebrokers.com, Commissions: Options, "Tiered Examples": (contracts of the month before, contracts, premium, USD)
EXAMPLES = [(0, 1, 2., 1.), (0, 2, 5., 1.3), (0, 3, .075, 1.5), (0, 5, .03, 1.25),
            (10_001, 1, 2., 1.), (10_001, 2, 5., 1.), (10_001, 3, .075, 1.5), (10_001, 5, .03, 1.25),
            (50_001, 1, 2., 1.), (50_001, 2, 5., 1.), (50_001, 5, 2., 1.25),
            (100_001, 1, 2., 1.), (100_001, 5, 5., 1.), (100_001, 7, 2., 1.05)]

@pytest.mark.parametrize('volume, contracts, premium, usd', EXAMPLES)
@pytest.mark.parametrize('plan', ['tiered', 'fixed'])
def test_option_commissions_are_the_brokers_own_examples(plan, volume, contracts, premium, usd):
    assert option_fees_usd(plan, contracts, premium, 'buy', SPRING, volume)['commission'] == pytest.approx(usd)

@pytest.mark.parametrize('day, regulatory, clearing', [(date(2025, 3, 3), .02815, .025), (date(2025, 3, 20), .02815, .025)])
def test_what_the_exchanges_and_the_clearing_corporation_take(day, regulatory, clearing):
    paid = option_fees_usd('tiered', 4, 1., 'buy', day)
    assert (paid['regulatory'], paid['clearing']) == pytest.approx((4*regulatory, 4*clearing))

def test_the_regulatory_fee_is_the_sum_of_the_exchanges_on_the_day_it_was_published():
    each = dict(AMEX=.0038, ARCA=.0038, BATS=.0001, BOX=.00295, CBOE=.0017, C2=.0002, EDGX=.0001, EMERALD=.0006, ISE=.0013, GEMINI=.0012,
                MERCURY=.0004, MIAX=.0019, MEMX=.0015, NOM=.0016, NASDAQBX=.0005, PEARL=.0018, PHLX=.0034, SAPPHIRE=.0013)
    assert option_fees_usd('tiered', 1, 1., 'buy', date(2025, 3, 3))['regulatory'] == pytest.approx(sum(each.values()))

def test_every_row_says_where_it_comes_from():
    assert all(r.source and r.kind in ('rate', 'bound') and r.since <= r.until and set(r.on.split()) <= {'shares', 'options'} for r in RATES)

@pytest.mark.parametrize('on, first', [('shares', date(2021, 1, 4)), ('options', date(2023, 1, 3))])
def test_no_day_is_charged_twice_by_one_name(on, first):
    for plan in ('tiered', 'fixed'):
        for n in range(first.toordinal(), date(2028, 6, 30).toordinal(), 7):
            rows = [(r.name, r.volume, r.px_from) for r in rates(plan, date.fromordinal(n), on)]
            assert len(rows) == len(set(rows))

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(.01, 60.), st.sampled_from(['buy', 'sell']), st.integers(0, 200_000), st.sampled_from(['tiered', 'fixed']))
def test_an_option_order_pays_a_dollar_at_least_and_never_less_for_more(contracts, premium, side, volume, plan):
    c = Costs(plan)
    usd = [c.options_usd(n, premium, side, SPRING, volume=volume) for n in (contracts, contracts + 1)]
    assert 1. < usd[0] < usd[1] + 1e-9
    assert usd[0] <= c.options_usd(contracts, premium, side) + 1e-9 if volume == 0 else usd[0] <= c.options_usd(contracts, premium, side, SPRING) + 1e-9

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500_000), st.floats(1., 900.), st.sampled_from(['buy', 'sell']), st.sampled_from(['tiered', 'fixed', 'paper']))
def test_a_share_order_keeps_its_minimum_and_its_cap(qty, px, side, plan):
    paid = fees_usd(plan, qty, px, side, SPRING)
    low = {'tiered': .35, 'fixed': 1., 'paper': 0.}[plan]
    assert min(low, .01*qty*px) - 1e-9 <= paid['commission'] <= max(.01*qty*px, .0035*qty) + 1e-9

def test_dearer_by_a_factor_is_dearer_by_that_factor():
    one, three = Costs(), Costs(times=3.)
    assert three.shares_usd(10, 600., 'sell', SPRING) == pytest.approx(3*one.shares_usd(10, 600., 'sell', SPRING))
    assert three.option_roundtrip_usd(1.19, 1.20, 2, SPRING) == pytest.approx(3*one.option_roundtrip_usd(1.19, 1.20, 2, SPRING))
