"""A connection and its streams, kept alive through whatever a TWS does; every state has its reason."""
import asyncio
import socket
from collections import Counter
from datetime import timedelta

import pytest

from feeding import GONE, KEPT, LOST, Faults, minding, say, story, until
from live import at, run
from spyresearch.tws.streams import Level1

A, B = '10:00:00', '10:03:00'


def asked(out, name, since=A): return sum(type(o.request).__name__ == name and o.at >= at(since) for o in out.srv.requests)
def heard(out, name, t): return next((w for w in out.words if w[1] == name and w[0] > at(t) and w[2] in ('bid', 'trade', 'depth')), None)
def reasons(out, what, name): return [s.reason for s in out.said if (s.what, s.name) == (what, name)]


def test_a_quiet_morning_asks_once_and_says_little():
    out = run(minding(A, B))
    assert Counter(out.names) == Counter([('link', 'connecting'), ('link', 'up'), ('link', 'closed'), *((o, n) for o in ('level1', 'ticks', 'depth') for n in ('up', 'down'))])
    assert [asked(out, o) for o in ('StartApi', 'ContractDetails', 'MarketData', 'TickByTick', 'Depth', 'CurrentTime')] == [1, 1, 1, 1, 1, 0]
    assert all(s.reason for s in out.said if s.name != 'up') and out.sup.drops == 0


# --- no connection

@pytest.fixture
def nobody():
    "A port at which nothing listens."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        yield s.getsockname()[1]


def test_nobody_listens_at_first_and_then_somebody_does(nobody):
    async def comes(out):
        out.link.port = nobody
        await until(out.clock, '10:02:00')
        assert out.sup.state == 'connecting' and not out.words
        out.link.port = out.srv.port
    out = run(minding(A, '10:04:00', do=comes))
    tries = reasons(out, 'link', 'connecting')
    assert 'nothing listens' in tries[1] and out.names.count(('link', 'connecting')) < 10 and heard(out, 'ticks', '10:02:00')[0] < at('10:03:05')
    assert tries[0].endswith('attempt 1') and [o.rpartition('; ')[2] for o in tries[1:]] == [f'attempt {i} in {s} s' for i, s in ((2, 5), (3, 10), (4, 20), (5, 40), (6, 60))]


@pytest.mark.parametrize('faults,why', [(dict(accept_close=True), 'closed the connection without a word'), (dict(mute=True), 'does not answer the handshake'),
                                        (dict(greeting='HTTP/1.1 400 Bad Request\r\n'), 'it is not TWS'), (dict(busy_ids=tuple(range(17, 22))), 'are in use')])
def test_a_server_that_does_not_let_in_is_tried_ever_more_slowly(faults, why):
    async def at_last(out):
        await until(out.clock, '10:10:00')
        out.n, out.srv.faults = len(out.said), Faults()
    out = run(minding(A, '10:12:00', Faults(**faults), at_last, link=dict(deadline_s=.05)))
    said = reasons(out, 'link', 'connecting')
    assert any(why in o for o in said) and out.n <= 14 and heard(out, 'ticks', '10:10:00')[0] < at('10:11:05')


def test_a_taken_id_is_no_obstacle():
    out = run(minding(A, '10:00:30', Faults(busy_ids=(17, 18))))
    assert out.link.client_id == 19 and out.names[:2] == [('link', 'connecting'), ('link', 'up')] and heard(out, 'ticks', A)


def test_a_server_that_greets_and_then_says_nothing():
    out = run(minding(A, '10:06:00', Faults(silent=True), link=dict(deadline_s=.05)))
    assert not out.words and out.names.count(('link', 'connecting')) < 16


# --- the connection ends

@pytest.mark.parametrize('deed', ['drop', 'torn'])
def test_a_dropped_socket_is_back_within_two_seconds(deed):
    out = run(minding(A, B, story((deed, '10:01:30', {}))))
    assert out.sup.drops == 1 and [heard(out, o, '10:01:30')[0] < at('10:01:33') for o in ('level1', 'ticks', 'depth')] == [True]*3
    assert asked(out, 'StartApi') == 2 and asked(out, 'ContractDetails') == 1


def test_a_nightly_restart_of_some_minutes():
    out = run(minding(A, '10:12:00', story(('down', '10:01:00', dict(for_s=480)))))
    assert asked(out, 'StartApi') == 2 and heard(out, 'ticks', '10:01:02')[0] < at('10:10:05')
    tries = [s.at for s in out.said if (s.what, s.name) == ('link', 'connecting') and at('10:01:00') < s.at < at('10:09:00')]
    gaps = [(b - a).total_seconds() for a, b in zip(tries, tries[1:])]
    assert len(tries) < 30 and max(gaps) <= 60


def test_a_socket_that_is_dropped_again_and_again_is_not_hammered():
    out = run(minding(A, '10:20:00', story(*(('drop', f'10:{m:02}:{s:02}', {}) for m in range(1, 15) for s in (0, 10, 20, 30, 40, 50)))))
    assert 10 < out.sup.drops < 40 and heard(out, 'ticks', '10:15:00')[0] < at('10:16:05')
    tries = [o for o in reasons(out, 'link', 'connecting') if 'held for' in o]
    assert tries[0].endswith(' s; attempt 2 in 5 s') and tries[1].endswith('; attempt 3 in 10 s') and len(tries) >= 10


def test_a_freeze_is_noticed_and_what_was_held_back_arrives():
    out = run(minding(A, B, story(('freeze', '10:01:00', dict(for_s=12)))))
    trades = [w for w in out.words if w[2] == 'trade']
    burst = [t for t, *_ in trades if at('10:01:10') <= t <= at('10:01:14')]
    assert out.sup.drops == 0 and not [t for t, *_ in trades if at('10:01:01') < t < at('10:01:11')] and len(burst) > 12
    assert ('level1', 'stale') not in out.names


def test_a_freeze_for_minutes_ends_in_a_new_connection():
    out = run(minding(A, '10:12:00', story(('freeze', '10:01:00', dict(for_s=300))), link=dict(deadline_s=.05)))
    assert out.sup.drops >= 1 and ('link', 'stale') in out.names and heard(out, 'ticks', '10:06:00')[0] < at('10:07:15')


# --- notices

LOST_AND = dict(mute=('mute', '10:01:00', dict(for_s=20)), dead=('dead', '10:01:20', {}))


@pytest.mark.parametrize('script,back', [
    ([say('10:01:00', *LOST), LOST_AND['mute'], LOST_AND['dead'], say('10:01:20', *GONE)], '10:01:20'),
    ([say('10:01:00', *LOST), LOST_AND['mute'], say('10:01:20', *KEPT)], '10:01:20'),
    ([say('10:01:00', *LOST), LOST_AND['mute'], LOST_AND['dead'], say('10:01:20', *KEPT)], '10:01:20'),
    ([say('10:01:00', 2110, 'Connectivity between TWS and server is broken.'), say('10:01:20', *KEPT)], '10:01:20'),
    ([LOST_AND['dead'], say('10:01:20', *KEPT)], '10:01:20'),   # the notice of the loss was lost
    ([LOST_AND['dead'], say('10:01:20', *GONE)], '10:01:20'),
    ([('dead', '10:01:17', {}), say('10:01:17', 2103, 'broken:usfarm'), say('10:01:20', 2104, 'OK:usfarm')], '10:01:20'),
    ([say('10:01:00', *LOST), LOST_AND['mute']], '10:02:00'),   # nobody ever says that it is back
])
def test_after_a_notice_the_streams_prove_themselves(script, back):
    out = run(minding(A, '10:04:00', story(*script)))
    late = (at(back) + (at('10:00:08') - at(A))).strftime('%H:%M:%S')
    assert all(heard(out, o, back)[0] <= at(late) for o in ('level1', 'ticks', 'depth')) and out.sup.drops == 0
    assert out.sup.state == 'closed' and sum(asked(out, o, '10:00:30') for o in ('MarketData', 'TickByTick', 'Depth')) <= 6


def test_while_tws_is_cut_off_nothing_counts_and_nothing_is_asked():
    out = run(minding(A, B, story(say('10:01:00', *LOST), say('10:01:40', *KEPT))))
    lost = [s for s in out.said if s.name == 'lost']
    assert {s.what for s in lost} == {'link', 'level1', 'ticks', 'depth'} and all('1100' in s.reason for s in lost)
    assert not [w for w in out.words if at('10:01:01') < w[0] < at('10:01:40')]
    assert sum(at('10:01:01') < o.at < at('10:01:40') and not type(o.request).__name__.startswith('Cancel') for o in out.srv.requests) == 0


def test_other_notices_change_nothing():
    out = run(minding(A, '10:02:00', story(*(say('10:01:00', c, 'told') for c in (2104, 2106, 2107, 2108, 2119, 2158, 2152, 399)))))
    assert asked(out, 'MarketData') == 1 and len(out.said) == 9


def test_a_new_port_or_an_end_of_the_program_is_a_new_connection():
    out = run(minding(A, '10:02:00', story(say('10:01:00', 1300, 'TWS socket port has been reset'))))
    assert out.sup.drops == 1 and any('1300' in o for o in reasons(out, 'link', 'down')) and asked(out, 'StartApi') == 2


# --- single streams

def test_a_muted_stream_is_found_by_its_age_alone():
    out = run(minding(A, '10:05:00', story(('mute', '10:01:00', dict(on='depth', for_s=120)))))
    stale = [s for s in out.said if (s.what, s.name) == ('depth', 'stale')]
    assert at('10:01:19') < stale[0].at < at('10:01:25') and 'silent for' in stale[0].reason and heard(out, 'depth', '10:03:00')[0] <= at('10:04:01')
    assert asked(out, 'MarketData') == asked(out, 'TickByTick') == 1 and 3 <= asked(out, 'Depth') <= 8 and out.sup.drops == 0


def test_an_answer_without_data_is_no_proof():
    "Level 1 tells its parameters whenever it is asked, and nothing more."
    first = Level1.first
    async def only_params(out):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(Level1, 'first', lambda self: first(self)[:2])
            m.setattr(Level1, 'events', lambda self, x, a, b: [])
            await until(out.clock, '10:05:00')
    out = run(minding(A, '10:07:00', do=only_params))
    assert reasons(out, 'level1', 'stale') and asked(out, 'MarketData') < 12
    ups = [s.at for s in out.said if (s.what, s.name) == ('level1', 'up')]
    assert len(ups) == 1 and ups[0] >= at('10:05:00') and out.sup.drops == 0


@pytest.mark.parametrize('kind,code,name,again_s', [
    ('level1', 354, 'denied', 900), ('level1', 10089, 'denied', 900), ('level1', 10168, 'denied', 900), ('level1', 10186, 'denied', 900), ('ticks', 10189, 'denied', 900),
    ('depth', 10092, 'denied', 900), ('level1', 101, 'full', 300), ('depth', 309, 'full', 300), ('ticks', 10190, 'full', 300), ('level1', 10197, 'competing', 60),
    ('depth', 316, 'down', 1), ('level1', 200, 'down', 1), ('level1', 321, 'down', 1)])
def test_a_refusal_belongs_to_its_stream(kind, code, name, again_s):
    out = run(minding(A, '10:01:30', story(('say', '10:01:00', dict(code=code, on=kind, text='no')))))
    assert reasons(out, kind, name)[0] == f'{code}: no' and [s for s in out.said if s.name == name and at('10:00:30') < s.at < at('10:01:30') and s.what not in (kind, 'link')] == []
    [w] = [o for o in out.sup.wants if o.name == kind]
    if again_s > 30: assert w.again_at == pytest.approx(60 + again_s, abs=2) and not heard(out, kind, '10:01:03')
    else: assert heard(out, kind, '10:01:00')[0] <= at('10:01:05')


@pytest.mark.parametrize('code', [10090, 10167, 2152, 10225])
def test_what_is_told_and_not_refused_ends_nothing(code):
    out = run(minding(A, '10:02:00', story(('say', '10:01:00', dict(code=code, on='level1', text='so it is')))))
    assert asked(out, 'MarketData') == 1 and heard(out, 'level1', '10:01:01') and (code == 10167) == (('level1', 'data_type') in {w[1:] for w in out.words if w[0] > at('10:00:30')})


def test_a_reset_is_handed_on_before_the_new_rows():
    out = run(minding(A, '10:02:00', story(('reset', '10:01:00', {}))))
    i = next(i for i, w in enumerate(out.words) if w[2] == 'reset')
    assert [w[2] for w in out.words[i:] if w[1] == 'depth'][:21] == ['reset'] + ['depth']*20 and any('317' in o for o in reasons(out, 'depth', 'reset')) and asked(out, 'Depth') == 1


def test_what_the_account_may_not_have_is_asked_for_four_times_an_hour_and_said_once():
    out = run(minding('10:00:00', '10:35:00', Faults(rights=dict(ticks='none', depth='none'))))
    assert asked(out, 'TickByTick') == 3 == asked(out, 'Depth') and asked(out, 'MarketData') == 1 and asked(out, 'CurrentTime') == 0
    assert out.names.count(('ticks', 'denied')) == out.names.count(('depth', 'denied')) == 1


def test_nothing_is_granted_at_all():
    out = run(minding('10:00:00', '10:20:00', Faults(rights=dict(level1='none', ticks='none', depth='none'))))
    assert len(out.srv.requests) < 25 and asked(out, 'CurrentTime') == 0 and out.sup.drops == 0


def test_another_session_uses_the_data_for_a_while():
    async def ends(out):
        await until(out.clock, '10:04:30')
        out.srv.faults = Faults()
    out = run(minding(A, '10:06:00', Faults(rights=dict(level1='competing')), ends))
    times = [o.at for o in out.srv.requests if type(o.request).__name__ == 'MarketData']
    gaps = [(b - a).total_seconds() for a, b in zip(times, times[1:])]
    assert set(map(round, gaps)) <= {60, 61} and heard(out, 'level1', '10:04:30')[0] < at('10:05:35') and out.names.count(('level1', 'competing')) == 1


def test_a_burst_of_one_refusal_is_one_refusal():
    out = run(minding(A, '10:01:30', story(*[('say', '10:01:00', dict(code=10197, on='level1', text='No market data during competing live session'))]*15)))
    assert out.names.count(('level1', 'competing')) == 1 and asked(out, 'MarketData') == 1


# --- a long time without anything

@pytest.mark.parametrize('minutes,script', [(40, [('mute', '10:05:00', dict(for_s=2400))]), (15, [say('10:05:00', *LOST), ('mute', '10:05:00', dict(for_s=900))]), (15, [('down', '10:05:00', dict(for_s=900))])])
def test_a_long_outage_costs_few_requests_and_ends_at_once(minutes, script):
    back = (at('10:05:00') + timedelta(minutes=minutes)).strftime('%H:%M:%S')
    out = run(minding(A, (at(back) + timedelta(minutes=2)).strftime('%H:%M:%S'), story(*script)))
    n = Counter(type(o.request).__name__ for o in out.srv.requests if at('10:05:00') <= o.at <= at(back) - timedelta(seconds=2))
    assert sum(n.values()) < 12*minutes and n['CurrentTime'] <= 2*minutes + 1 and len(out.said) < 5*minutes, n
    assert all(heard(out, o, back)[0] <= at(back) + timedelta(seconds=62) for o in ('level1', 'ticks', 'depth'))


def test_while_the_market_is_closed_silence_means_nothing():
    out = run(minding('16:10:00', '16:30:00', watched=lambda: False))
    assert len(out.srv.requests) < 15 and not reasons(out, 'ticks', 'stale')


# --- the end

@pytest.mark.parametrize('state,faults,t', [
    ('connecting', dict(mute=True), A), ('connecting', dict(silent=True), A), ('connecting', dict(accept_close=True), '10:00:30'), ('up', {}, '10:00:30'),
    ('lost', dict(script=[dict(do='say', at='10:00:20', code=1100, text='lost')]), '10:00:30'), ('connecting', dict(script=[dict(do='down', at='10:00:20')]), '10:00:50'),
    ('up', dict(script=[dict(do='freeze', at='10:00:10')]), '10:01:12')])   # 10:01:12: it asks for the time
def test_a_stop_ends_every_state_at_once(state, faults, t):
    async def a_moment(out): await asyncio.sleep(.05)   # a handshake goes on while a replay's time is held
    out = run(minding(A, t, Faults(**faults), a_moment if t == A else None), 5)
    assert out.took == 0 and out.sup.state == 'closed' and not out.link.connected
    assert [s.name for s in out.said if s.what == 'link'][-2] == state


def test_a_stop_before_the_start_is_the_end():
    async def before(out): out.sup.stop()
    out = run(minding(A, '10:00:10', do=before))
    assert out.said == [] and asked(out, 'StartApi') == 0


def test_a_listener_of_states_that_fails_is_noticed():
    async def fails(out):
        def broken(s): raise ValueError('a bug of a screen')
        out.sup.stateEvent.connect(broken, keep_ref=True)
    out = run(minding(A, '10:00:10', do=fails))
    assert str(out.link.failure) == 'a bug of a screen'
