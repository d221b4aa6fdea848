"""Today's one-second features: the live file is the batch's, whatever happened during the day."""
import json

import numpy as np
import pandas as pd
import pytest

from feeding import feeding, half, story
from live import run
from spyresearch.core import CheckFailed, UsageError, parse_asof
from spyresearch.features.batch import REGISTRY
from spyresearch.features.flow import FLOW, NORM_DAYS, FlowStream, carried, flow_seconds
from spyresearch.features.recorded import catch_up, current, flow_log, raw_seconds, usual_depth, write_flow
from spyresearch.live.flowday import FlowDay
from spyresearch.sessions import sessions
from spyresearch.store import Store
from spyresearch.tws.seconds import records

A = '09:29:50'


def grown(root, begin, end, *script, **kw):
    "A feed whose seconds go to a file of features."
    async def listen(fed):
        fed.flow = None
        def second(r):
            if fed.flow is None: fed.flow = FlowDay(fed.feed.store, fed.day)
            if fed.flow.stream.second <= r.second: fed.flow.push(r)
        fed.feed.secondEvent.connect(second, keep_ref=True)
    fed = run(feeding(root, begin, end, story(*script), listen, **kw))
    fed.flow.close()
    return fed


def same_as_batch(fed):
    live = fed.flow.log.file(fed.day).read_bytes()
    assert write_flow(fed.feed.store, fed.day, sealed=False)
    assert live == fed.flow.log.file(fed.day).read_bytes() and len(live.splitlines()) == len(fed.feed.log.read(fed.day)) + 1


def test_live_is_batch_through_faults_and_restarts(tmp_path):
    one = grown(tmp_path, A, '09:34:00', ('drop', '09:31:10', {}), ('freeze', '09:32:10', dict(for_s=8)), ('mute', '09:33:00', dict(on='depth', for_s=30)))
    same_as_batch(one)
    two = grown(tmp_path, '09:36:30', '09:38:00')      # two and a half minutes that nobody recorded
    same_as_batch(two)
    df = flow_log(two.feed.store).read(two.day)
    assert df['ofi_60'].iloc[70:120].notna().any() and df[['ofi_10', 'qimb_5', 'depth_imb_5']].iloc[250:380].isna().all().all() and df['ofi_10'].iloc[-20:].notna().all()
    last = {k: v for k, v in two.flow.values.items() if v == v}
    assert len(last) > 10 and np.allclose(df.iloc[-1][list(last)].astype(float), list(last.values()))


def test_a_long_absence_is_passed_over_and_changes_no_value(tmp_path):
    "Half an hour before the start, twenty minutes in the middle, and a restart within them: recorded, or found out when the next second comes."
    grown(tmp_path/'one', '10:00:00', '10:05:00')
    one = grown(tmp_path/'one', '10:25:00', '10:28:00')
    same_as_batch(one)
    seconds, trades = raw_seconds(one.feed.store, one.day)
    rows, full = records(seconds, trades), FlowStream(one.day)
    want = [full.push(r) for r in rows]
    assert [k for k, v in want[-1].items() if v != v] == [k for k, v in one.flow.values.items() if v != v] and all(v == want[-1][k] for k, v in one.flow.values.items() if v == v)
    pushed, push = [], FlowStream.push
    class Counted(FlowDay):
        def _step(self, r): self.stream.push = lambda r: (pushed.append(r.second), push(self.stream, r))[1]; return FlowDay._step(self, r)
    heard = [r for r in rows if r['status'] != 'absent']
    store = Store(tmp_path/'two', one.feed.store.provenance)
    two = Counted(store, one.day)
    for r in heard: two.push(r)
    two.close()
    assert two.log.file(one.day).read_bytes() == one.flow.log.file(one.day).read_bytes() and two.values.keys() == want[-1].keys()
    assert {k: repr(v) for k, v in two.ends.items()} == {i//60: repr({carried(k): v for k, v in o.items()}) for i, o in enumerate(want) if i % 60 == 59}
    assert len(rows) == 58*60 and len(heard) < 500 and len(pushed) <= len(heard) + 2*two.longest


def test_a_file_that_cannot_be_gone_on_from_is_made_anew(tmp_path):
    one = grown(tmp_path, A, '09:31:00')
    p = one.flow.log.file(one.day)
    right = p.read_bytes()
    for wrong in (right[:-40], right + b'torn', right.replace(b',told_60', b',told'), b'', right.replace(b'09:30:07', b'09:30:06')):
        p.write_bytes(wrong)
        FlowDay(one.feed.store, one.day).close()
        assert p.read_bytes() == right
    log = flow_log(one.feed.store)
    log.m['days'][str(one.day)]['registry'] = 'another'
    log.save()
    assert not current(log, one.day, FLOW.hash())
    FlowDay(one.feed.store, one.day).close()
    assert current(flow_log(one.feed.store), one.day, FLOW.hash()) and p.read_bytes() == right


def test_days_recorded_before_are_caught_up_with(tmp_path):
    fed = run(feeding(tmp_path, '12:58:00', '13:05:00', ends=dict, on=str(half)))
    assert catch_up(fed.feed.store, half) == [] and catch_up(fed.feed.store, parse_asof('2025-12-02').date()) == [half] and catch_up(fed.feed.store, parse_asof('2025-12-02').date()) == []
    seconds, trades = raw_seconds(fed.feed.store, half)
    want, got = flow_seconds(seconds, trades), flow_log(fed.feed.store).read(half)
    assert np.array_equal(got[FLOW.names()], want.loc[:seconds.index[-1]], equal_nan=True) and not flow_log(fed.feed.store).is_open(half)


def test_the_usual_depth_is_of_the_twenty_sessions_before(tmp_path):
    one = grown(tmp_path, A, '09:32:00')
    log, days = flow_log(one.feed.store), sessions(parse_asof('2025-10-20').date(), parse_asof('2025-12-01').date())
    df = log.read(one.day)
    past = [d for d in days if d < one.day][-NORM_DAYS:]
    for i, d in enumerate(past):
        log.write(d, pd.DataFrame(df.to_numpy()*0 + 100. + i, columns=df.columns, index=df.index - (df.index[0].normalize() - pd.Timestamp(d, tz=df.index.tz))), registry=FLOW.hash())
        assert np.isnan(usual_depth(log, one.day)).all() == (i + 1 < NORM_DAYS)
    norm = usual_depth(log, one.day)
    known = ~np.isnan(df['depth_60'].iloc[59::60].to_numpy())
    assert np.allclose(norm[:2][known], 100 + (NORM_DAYS - 1)/2) and np.isnan(norm[2:]).all()


def test_a_certificate_of_a_recorded_day(tmp_path, capsys):
    from spyresearch.cli import app
    fed = run(feeding(tmp_path, '12:56:00', '13:05:00', ends=dict, on=str(half)))
    def certify(*args): return app(['check-parity', '--data', str(tmp_path), *args], standalone_mode=False)
    certify('--day', str(half), '--json', str(tmp_path/'out.json'))
    said, out = capsys.readouterr().out.splitlines(), json.loads((tmp_path/'out.json').read_text())
    assert len(said) == 2 and all(o.startswith(f'PASS {half}') for o in said) and f'{len(fed.rows):,} seconds' in said[1]
    assert out['ok'] and len(out['minute']) == len(REGISTRY.names()) and len(out['second']) == len(FLOW.names()) and all(o['share_equal'] == 1 for o in out['minute'])
    for day, word in (('2025-12-01', 'holds no bars'), ('today', 'is not a date')):
        with pytest.raises(UsageError, match=word): certify('--day', day)


def test_a_certificate_fails_when_the_forms_differ(tmp_path, monkeypatch):
    from spyresearch.cli import app
    run(feeding(tmp_path, '12:56:00', '13:05:00', ends=dict, on=str(half)))
    f = FLOW['ofi_10']
    monkeypatch.setattr(f, 'step', lambda b, s, old=f.step: old(b, s)*1.001)
    with pytest.raises(CheckFailed, match='one-second features'): app(['check-parity', '--data', str(tmp_path), '--day', str(half)], standalone_mode=False)
