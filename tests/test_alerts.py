"""Alerts from the command line on: a way that cannot work is refused before anything starts, and the address of a webhook is never printed."""
import logging
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import sys
from types import SimpleNamespace

import pytest

from spyresearch.core import UsageError
from spyresearch.live.alerts import Alerts, OVER, bell, desktop, together, webhook, ways_of
from spyresearch.trade.tickets import row
from test_withdrawn import at, ticket

SECRET = 'http://127.0.0.1:9/hook/T0PS3CRET'


def spy(*args, **env):
    return subprocess.run([sys.executable, '-m', 'spyresearch.cli', *args], capture_output=True, text=True, timeout=120, env={k: v for k, v in os.environ.items() if not k.startswith('SPY_')} | env)


@pytest.mark.parametrize('ways, env, says', [(['pigeon'], {}, 'there is no such way: bell, desktop, webhook'), (['bell', 'webhook'], {}, 'SPY_WEBHOOK holds no address'), (['webhook'], dict(SPY_WEBHOOK='T0PS3CRET'), 'SPY_WEBHOOK holds no address')])
def test_a_way_that_cannot_work_is_refused_before_anything_starts(tmp_path, ways, env, says):
    done = spy('live', '--data', str(tmp_path/'data'), *[x for o in ways for x in ('--alert', o)], **env)
    assert done.returncode == 2 and says in done.stderr and 'T0PS3CRET' not in done.stdout + done.stderr and not (tmp_path/'data').exists()


def test_an_address_that_does_not_answer_is_named_once_and_never_shown():
    said, got = [], []
    a = Alerts(dict(webhook=webhook(SECRET, .01), list=got.append), say=said.append)
    for k in range(3): a.tell(f'line {k}')
    a.close(20.)
    assert got == ['line 0', 'line 1', 'line 2'] and said == ['alerts by webhook fail (OSError); the others go on']
    with pytest.raises(OSError) as e: webhook(SECRET, .01)('x')
    assert 'T0PS3CRET' not in repr(e.value) and e.value.__cause__ is None and e.value.__suppress_context__


def test_a_log_of_everything_holds_no_address(caplog):
    got = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self): got.append((self.path, self.headers['Content-Type'], self.rfile.read(int(self.headers['Content-Length'])))); self.send_response(200 if len(got) > 1 else 500); self.end_headers()
        def log_message(self, *args): pass

    with HTTPServer(('127.0.0.1', 0), Chat) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start(); a = Alerts(dict(webhook=webhook(f'http://127.0.0.1:{server.server_port}/T0PS3CRET', .01)))
        with caplog.at_level(logging.DEBUG): a.tell('a\nb'); a.close(20.)
        server.shutdown()
    assert got == [('/T0PS3CRET', 'application/json', b'{"text": "a\\nb"}')]*2 and 'T0PS3CRET' not in caplog.text


def standing(lang='en'):
    "Alerts that have heard of one ticket; what they tell from then on."
    got = []; a = Alerts({}, lang); a.tell = got.append; word = dict(row(ticket()), says='ticket', more={}, new=True)
    a('quote', dict(at=at('10:00').isoformat(), last=600.), at('10:00')); a('words', dict(words=[word]), at('10:00')); got.clear()
    return a, got, word


@pytest.mark.parametrize('state', ['stale', 'lost', 'down', 'denied', 'frozen', 'delayed'])
def test_a_feed_that_is_lost_while_a_ticket_is_armed_is_told_once_and_back_when_it_is_back(state):
    a, got, word = standing(); tell = lambda link, level1, hm: a('state', dict(link=link, feed=dict(level1=[level1, ''], depth=['lost', ''])), at(hm))
    for o in (('up', 'up', '10:01'), ('up', state, '10:02'), ('down', state, '10:03')): tell(*o)
    assert got == [f'SPY feed lost (level1 {state}) while a ticket stands: prices shown are old.']
    a('words', dict(words=[]), at('10:04')); got.clear(); tell('up', state, '10:05'); assert got == [], 'the ticket is gone, and the feed not yet back'
    tell('up', 'up', '10:06'); tell('up', 'up', '10:07'); assert got == ['SPY feed is back.']
    tell('up', state, '10:08'); assert len(got) == 1, 'nothing stands'
    a('words', dict(words=[word]), at('10:09')); tell('up', state, '10:10'); assert len(got) == 2 and got[1].startswith('SPY feed lost'), 'it came while the feed was away'


@pytest.mark.parametrize('status', [o for o in OVER if o != 'withdrawn'])
def test_an_end_is_told_in_the_language_of_its_reader(status):
    for lang in ('en', 'zh'):
        a, got, word = standing(lang); over = dict(word, status=status)
        for hm in ('10:04', '10:05'): a('words', dict(words=[over]), at(hm))
        assert len(got) == 1 and got[0].startswith('Ended, ' if lang == 'en' else '已结束，') and (lang == 'en' or not re.search('[a-z]', got[0].partition('：')[0]))


def test_what_is_held_is_told_to_be_sold_once():
    a, got, word = standing(); a('words', dict(words=[dict(word, status='filled')]), at('10:04'))
    for hm, px in (('10:05', 611.), ('10:06', 612.), ('10:07', 611.), ('10:08', 612.5)): a('quote', dict(at=at(hm).isoformat(), last=px), at(hm))
    assert [o.partition('. ')[0] for o in got] == ['Sell now: target reached']


def test_the_desktop_is_told_with_a_program_and_no_shell(monkeypatch):
    told = []
    monkeypatch.setattr('spyresearch.live.alerts.shutil.which', lambda name: '/usr/bin/notify-send')
    desktop('a; rm -rf "x"', run=lambda cmd, **kw: told.append((cmd, kw)))
    assert told[0][0] == ['notify-send', 'spyresearch', 'a; rm -rf "x"'] and 'shell' not in told[0][1]
    monkeypatch.setattr('spyresearch.live.alerts.shutil.which', lambda name: None); monkeypatch.setattr('spyresearch.live.alerts.sys.platform', 'linux')
    with pytest.raises(UsageError, match='neither notify-send nor osascript'): ways_of(['desktop'])


def test_several_hear_the_same_and_nobody_is_nobody(capsys):
    assert together(None, None) is None
    got = []; together(lambda *m: got.append(m), None, lambda *m: got.append(m))('quote', {}, 'now')
    assert got == [('quote', {}, 'now')]*2
    bell('hello', SimpleNamespace(write=got.append, flush=lambda: None)); assert '\ahello' in got
