"""Doubts and recorded offers on the page: what was handed in, what is absent with its reason, and no claim from few days."""
import copy
import re
from dataclasses import replace

import numpy as np
import pytest

from test_desk import market, record  # noqa: F401 - fixtures
from spyresearch import report
from spyresearch.trade.backtest import backtest
from spyresearch.trade.signals import walk


def text(markup): return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', markup))


@pytest.fixture(scope='module')
def bt(market):  # noqa: F811
    panel, ev, *_ = market
    return backtest(panel, ev, walk(panel, ev)).to_json()


def test_the_page_doubts_what_traded_and_names_what_did_not(bt):
    said = text(report.doubt(bt)); noise = bt['strategies']['noise_area']['doubt']
    for k in (.5, 1., 3.): assert f"{next(o for o in noise['costs'] if o['times'] == k)['net_bp_per_trade']:+.2f}".replace('-', '−') in said
    for k in (1, 2, 5): assert f"{next(o for o in noise['delays'] if o['minutes'] == k)['net_bp_per_trade']:+.2f}".replace('-', '−') in said
    assert all(o['part'] in said for o in noise['years'] + noise['regimes']) and f"{100*noise['order']['worst']:.1f}".replace('-', '−') in said
    for k in ('swing', 'intraday'): assert bt['strategies'][k]['n_trades'] > 0 or re.search(fr'{k}[^.]*: not measured ; no trade', said)
    assert 'None' not in said and 'nan' not in said and 'buy and hold' not in said


def test_absent_doubts_have_their_reason(bt):
    bare = copy.deepcopy(bt)
    for o in bare['strategies'].values(): o.pop('doubt')
    assert 'kept no what-ifs' in text(report.doubt(bare)) and 'the backtest kept no tries' in text(report.luck(bare | dict(best_rule=None)))
    part = copy.deepcopy(bt); d = part['strategies']['noise_area']['doubt']
    d['costs'], d['regimes'], d['order'] = [], [], dict(realised=-.01, median=None, worst=None, worse=None)
    said = text(report.doubt(part)); assert said.count('not measured') > 5 and 'the order of its trades' not in said and 'calm' not in said
    few = bt['best_rule'] | dict(best=None); assert ('fewer than 60 days' if few['n_rules'] else 'no try has traded') in text(report.luck(bt | dict(best_rule=few)))


def test_recorded_offers_are_counted_and_claim_nothing(record):  # noqa: F811
    said = text(report.offers(record)); m = [o for o in record.moments if o.offer]; done = [o for o in m if np.isfinite(o.outcome.net_usd)]
    assert f'{len(record):,} moments on 1 session, {len(m)} with an offer, {len(done)} followed to the end' in said and 'A what-if: 1 of the 60 recorded sessions' in said and 'too few for a claim' in said
    assert f'{np.mean([o.outcome.net_usd for o in done]):+.1f}'.replace('-', '−') in said and '±' not in said.replace('±: 95', '') and 'too few days' in said
    assert ('highest third' in said) == (len(done) >= report.CUT) and 'nan' not in said
    assert text(report.offers(None)).strip() == 'Options: not measured . No chain was recorded in this folder; spy live records one.'


def test_an_interval_counts_days_and_sixty_sessions_lift_the_word(record):  # noqa: F811
    days = record.days[:report.MANY]; many = replace(record, moments=[replace(o, day=d) for d in range(len(days)) for o in record.moments[:6]], days=days)
    said = text(report.offers(many)); n = sum(o.offer is not None for o in record.moments[:6])
    assert f'{len(days)} sessions, {n*len(days)} with an offer' in said and 'what-if' not in said and 'the last 10 days' in said and '± 0.0' in said # the same day again and again adds no spread
    assert 'what-if' in report.offers(replace(many, moments=many.moments[6:]))


def test_offers_never_bought_are_no_gain(record):  # noqa: F811
    none = replace(record, moments=[replace(o, outcome=replace(o.outcome, status='expired', net_usd=np.nan, net_ret=np.nan)) if o.offer else o for o in record.moments])
    said = text(report.offers(none)); assert ' 0 followed' in said and 'none' in said and 'Not cut in thirds' in said and 'nan' not in said
    unsold = replace(record, moments=[replace(o, outcome=replace(o.outcome, status='stopped', net_usd=np.nan)) if o.offer else o for o in record.moments])
    assert 'no quote to sell at' in report.offers(unsold)
