"""The time that a replay keeps with those who listen, and the port through which it is told and moved."""
import asyncio
import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

import live
from live import A, SPY, at, join, kinds, ns, replay, run, script, subscribe
from spyresearch.core import FeedError
from spyresearch.tws.control import SlaveClock, announced_control, token_file
from spyresearch.tws.faults import Faults


@pytest.fixture(scope='module')
def demo(): return live.demo()


@pytest.fixture(scope='module')
def tape(): return live.drawn()


async def trades_at(tape, speed, virtual_s):
    "Level 1 and single trades at a finite speed, for some virtual seconds."
    async with replay(tape, at(A), speed) as (srv, clock, ib):
        ib.reqMktData(SPY, '233')
        ib.reqTickByTickData(SPY, 'AllLast')
        began = await ib.reqCurrentTimeAsync()
        await clock.asleep(virtual_s)
        slept = clock.now()
        now = await ib.reqCurrentTimeAsync()
        return ib.ear, began, now, slept, srv.sessions.inside(at(A).date())


@pytest.mark.parametrize('speed', [60, 600])
def test_at_a_speed_every_time_is_virtual_and_nothing_comes_twice_or_early(tape, speed):
    ear, began, now, slept, x = run(trades_at(tape, speed, 40))
    said = [(int(f[3]), float(f[4]), float(f[5])) for f in ear.said(99)]
    tr = x.ticks.trades
    true = list(zip((tr.t//10**9).tolist(), tr.px.tolist(), tr.size.tolist()))
    i = next(k for k in range(int(np.searchsorted(tr.t, ns(A))), len(true)) if true[k:k + 3] == said[:3])
    assert said == true[i:i + len(said)] and len(said) > 30 and said[-1][0] <= now.timestamp() + 1
    assert at(A) <= began < now and now - began >= timedelta(seconds=39) and slept - at(A) >= timedelta(seconds=40)
    volume = [int(f[4]) for f in ear.said(2) if f[3] == '8']
    assert volume == sorted(volume) and len(volume) > 10
    times = [int(f[4].split(';')[2]) for f in ear.said(46) if f[3] == '48']
    assert times == sorted(set(times)) and times[-1] <= 1000*now.timestamp() + 1000


def test_standing_still_says_only_what_stands(tape):
    async def go():
        async with replay(tape, at('10:00:30'), 0) as (srv, clock, ib):
            subscribe(ib)
            first = await ib.reqCurrentTimeAsync()
            n = len(ib.ear.heard)
            await asyncio.sleep(.1)
            with pytest.raises(FeedError): await clock.asleep(1)
            return first, await ib.reqCurrentTimeAsync(), kinds(ib.ear.heard[:n]), kinds(ib.ear.heard[n:]), clock.now()
    assert run(go()) == (at('10:00:30'),)*2 + ({'81', '58', '1', '2', '45', '46', '12', '49'}, {'49'}, at('10:00:30'))


async def lived(tape, pause_s):
    "A stretch of lockstep life with requests, a drop and a return; `pause_s` real seconds are dawdled away on the way."
    faults = script(dict(do='drop', at='10:00:20'), dict(do='mute', on='level1', for_s=5), dict(do='reset', at='10:00:12'))
    async with replay(tape, at(A), faults=faults, checked=False) as (srv, clock, ib):
        ib.client.MaxRequests, raw = 0, hashlib.sha256()
        ib.client.conn.hasData += raw.update
        subscribe(ib)
        await clock.asleep(7.25)
        bars = await ib.reqHistoricalDataAsync(SPY, '', '1 D', '1 min', 'TRADES', True, 2, True)
        with clock.hold(): await asyncio.sleep(pause_s)
        while ib.isConnected(): await clock.asleep(1)
        dropped = clock.now()
        await clock.asleep(3)
        with clock.hold(): await join(srv, clock, 1, ib)
        subscribe(ib)
        await clock.asleep(20)
        return raw.hexdigest(), len(ib.ear.heard), dropped, clock.now(), len(bars), [(o.at, type(o.request).__name__) for o in srv.requests]


def test_two_lives_in_lockstep_are_the_same_to_the_last_byte(tape):
    a, b = run(lived(tape, 0)), run(lived(tape, .2))
    assert a == b and a[2] == at('10:00:21') and a[1] > 300


def test_closed_hours_are_skipped(demo):
    async def go():
        async with replay(demo, at('12:59:50', '2025-11-28')) as (srv, clock, ib):
            ib.reqMktData(SPY, '233')
            steps, pump = [], srv.pump
            srv.pump = lambda to: (steps.append(to), pump(to))
            await clock.asleep((at('09:30:05') - at('12:59:50', '2025-11-28')).total_seconds())
            return [o.astimezone(at(A).tzinfo) for o in steps], [int(f[4]) for f in ib.ear.said(46) if f[3] == '45']
    steps, last = run(go())
    assert [f'{o:%d %H:%M:%S}' for o in steps if not '12:59' <= f'{o:%H:%M}' < '13:00' and o.day == 28] == ['28 13:00:00', '28 13:00:01', '28 13:00:02']
    assert [f'{o:%d %H:%M:%S}' for o in steps if o.day != 28] == [f'01 09:30:0{i}' for i in range(6)]
    assert all(ns('12:59:00', '2025-11-28') <= t*10**9 < ns('13:00:00', '2025-11-28') or ns('09:30:00') <= t*10**9 < ns('09:30:05') for t in last)


def test_what_goes_wrong_at_night_goes_wrong_at_its_hour(tape):
    async def go():
        faults = script(dict(do='down', at='2025-12-01T20:00:00.5', for_s=600))
        async with replay(tape, at('15:59:50'), faults=faults) as (srv, clock, ib):
            subscribe(ib)
            gone = asyncio.ensure_future(asyncio.wait_for(ib.disconnectedEvent, 30))
            morning = asyncio.ensure_future(clock.asleep((at('09:25:00', '2025-12-02') - at('15:59:50')).total_seconds()))
            await gone
            left = clock.now()
            await clock.asleep(601)
            with clock.hold(): late = await join(srv, clock, 2)
            back = await late.reqCurrentTimeAsync()
            await morning
            late.disconnect()
            return left, back, clock.now()
    assert run(go()) == (at('20:00:00') + timedelta(seconds=.5), at('20:10:01'), at('09:25:00', '2025-12-02'))


def test_time_ends_with_the_tape(tape):
    async def go():
        async with replay(tape, at('15:59:58', '2025-12-05')) as (srv, clock, ib):
            ib.reqCurrentTime = None
            await asyncio.wait_for(clock.over.wait(), 10) if srv.now() >= srv.whole.end else await clock.asleep(3)
            await asyncio.wait_for(clock.over.wait(), 10)
            return clock.ended, clock.now()
    assert run(go()) == (True, at('16:00:01', '2025-12-05'))


class Line:
    "A raw line to the control port."
    def __init__(self, srv): self.port, self.token = srv.control.port, srv.control.token

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection('127.0.0.1', self.port)
        return self

    async def __aexit__(self, *_): self.writer.close()

    async def say(self, token=True, **m): return await self.raw(json.dumps((dict(token=self.token) if token else {}) | m).encode())

    async def raw(self, line):
        self.writer.write(line + b'\n')
        return await self.hear()

    async def hear(self):
        line = await asyncio.wait_for(self.reader.readline(), 10)
        return json.loads(line) if line else None


def test_a_member_that_says_nothing_is_waited_for_and_one_that_leaves_is_not(tape):
    async def go():
        async with replay(tape, at(A)) as (srv, clock, ib):
            subscribe(ib)
            async with Line(srv) as line:
                await line.say(do='join')
                while 'tick' not in (m := await line.hear()): pass
                stands = [srv.now()]
                for _ in range(5): await asyncio.sleep(.01); stands.append(srv.now())
            await clock.asleep(30)
            return len(set(stands)), m['speed'], len(srv.control.members)
    assert run(go()) == (1, 'max', 1)


def test_a_member_may_garble_its_answer_and_is_told(tape):
    async def go():
        async with replay(tape, at(A)) as (srv, clock, ib), Line(srv) as line:
            await line.say(do='join')
            out = [await line.say(ack=1, sent=[1]), await line.say(ack=1, next='soon'), await line.say(next=None)]
            return [o for o in out if 'tick' not in o]
    said = run(go())
    assert [list(o) for o in said][-1] == ['ok'] and all(o.get('error') or 'ok' in o for o in said)


def test_the_control_port_needs_the_token_and_knows_its_words(tape):
    async def go():
        out = {}
        async with replay(tape, at(A), 60) as (srv, clock, ib):
            for name, line in dict(none=b'{"do": "clock"}', wrong=b'{"do": "clock", "token": "0"}', odd='{"do": "clock", "token": "\u00e9"}'.encode(), list=b'[1]').items():
                async with Line(srv) as o: out[name] = await o.raw(line), await o.hear()
            async with Line(srv) as o: out['json'] = await o.raw(b'{"do"')
            async with Line(srv) as o:
                o.writer.write(b'x'*200_000)
                with contextlib.suppress(ConnectionError): assert await o.hear() is None
            async with Line(srv) as o:
                for m in (dict(do='sing'), dict(do='speed'), dict(do='speed', value='fast'), dict(do='speed', value=0), dict(do='speed', value=float('inf')), dict(do='step', seconds=-1), dict(do='step', seconds=[1]),
                          dict(do='fault'), dict(do='fault', event=[]), dict(do='fault', event=dict(do='explode')), dict(do='fault', event=dict(doo='drop')), dict(do='fault', event=dict(do='drop', when='Depth:1')), {}):
                    assert list(await o.say(**m)) == ['error'], m
                assert 'error' in await o.say(ack=1), 'it has not joined'
                t = await o.say(do='clock')
            async with Line(srv) as o: assert (await o.say(do='join'))['speed'] == 60 and (await o.say(do='clock', token=False))['speed'] == 60
        return out, t
    out, t = run(go())
    assert {k: out[k] for k in ('none', 'wrong', 'odd', 'list')} == dict.fromkeys(('none', 'wrong', 'odd', 'list'), (dict(error='token'), None))
    assert out['json'] == dict(error='not JSON') and t['speed'] == 60 and at(A).timestamp() <= t['now'] < at('10:30:00').timestamp()


def test_speed_step_skip_and_fault_move_clocks_and_wake_sleepers(demo):
    async def go():
        async with replay(demo, at('14:00:00', '2025-11-28'), 1, faults=Faults()) as (srv, clock, ib), Line(srv) as line:
            woken = asyncio.ensure_future(clock.asleep((at('09:30:00') - at('14:00:00', '2025-11-28')).total_seconds()))
            skipped = await line.say(do='skip')
            await line.say(do='speed', value=600)
            await asyncio.wait_for(woken, 10)
            early, speed = clock.now(), clock.speed
            step = [srv.now(), (await line.say(do='step', seconds=1800))['now']]
            await line.say(do='fault', event=dict(do='say', code=2110, text='now'))
            await ib.reqCurrentTimeAsync()
            return skipped, early, speed, step, ib.ear.codes
    skipped, early, speed, (before, after), codes = run(go())
    assert at('09:29:00').timestamp() <= skipped['now'] < at('09:29:05').timestamp() and at('09:30:00') <= early < at('09:40:00') and speed == 600
    assert after - before.timestamp() >= 1800 and codes == [2110]


def test_at_rest_a_step_moves_the_tape_and_every_clock(tape):
    async def go():
        async with replay(tape, at('10:00:00'), 0) as (srv, clock, ib), Line(srv) as line:
            n = [len(await ib.reqHistoricalDataAsync(SPY, '', '1 D', '1 min', 'TRADES', True, 2))]
            said = await line.say(do='step', seconds=125)
            n.append(len(await ib.reqHistoricalDataAsync(SPY, '', '1 D', '1 min', 'TRADES', True, 2)))
            at_ = await ib.reqCurrentTimeAsync()
            return n, said, at_, clock.now(), await line.say(do='speed', value=60)
    n, said, at_, mine, speed = run(go())
    assert n == [30, 32] and said == dict(now=at('10:02:05').timestamp(), speed=0) and at_ == mine == at('10:02:05') and 'error' in speed


def test_at_the_highest_speed_the_clock_is_nobodys_to_move(tape):
    async def go():
        async with replay(tape, at(A)) as (srv, clock, ib), Line(srv) as line:
            return [list(await line.say(**m)) for m in (dict(do='speed', value=5), dict(do='step', seconds=5), dict(do='skip'))], srv.now()
    assert run(go()) == ([['error']]*3, at(A))


def test_the_process_names_its_ports_and_leaves_no_token_behind():
    args = [sys.executable, '-c', 'import sys; from spyresearch.tws.replay import main; sys.exit(main())', '--days=10', '--asof=2025-12-01T10:00', '--speed=max', '--with-parent']
    p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        port, control = (int(p.stdout.readline().split(b'127.0.0.1:')[1]) for _ in range(2))
        known, path = announced_control(port), token_file(port)
        assert known['control'] == control and known['pid'] == p.pid and len(known['token']) == 32
        if os.name == 'posix': assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert run(one_minute(port, known)) == (at('10:01:00'), True)
    finally:
        p.stdin.close()
        assert p.wait(10) == 0
        p.stdout.close()
    assert not path.exists() and announced_control(port) is None


async def one_minute(port, known):
    "A clock and a client of another process live through a minute."
    clock = await SlaveClock(at(A)).attach(known['control'], known['token'])
    with clock.hold(): ib = await join(SimpleNamespace(port=port), clock)
    ib.reqTickByTickData(SPY, 'Last')
    await clock.asleep(60)
    now, told = clock.now(), bool(ib.ear.said(99))
    clock.detach()
    ib.disconnect()
    return now, told


def test_a_wrong_token_is_refused_to_a_clock(tape):
    async def go():
        async with replay(tape, at(A)) as (srv, clock, ib):
            with pytest.raises(FeedError, match='refuses'): await SlaveClock(at(A)).attach(srv.control.port, 'x')
    run(go())
