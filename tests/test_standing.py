"""What is said of a ticket that stands: a trigger that was met by one rule on paper, in the list, on the screen and in alerts; and as of the newest thing that is told."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spyresearch.live.alerts import Alerts
from spyresearch.live.view import cards, place
from spyresearch.trade.costs import Costs
from spyresearch.trade.follow import follow, quotes_of
from spyresearch.trade.record import latest, option_state, record, screen
from spyresearch.trade.tickets import Silence, WORDS, row
from spyresearch.trade.track import book
from test_withdrawn import at, bars, chain, silent_engine, ticket

SIDES = {'from below': (609., dict()), 'from above': (591., dict(side='put', right='P', exit_spy_px=588., stop_spy_px=595.))}


def spike(level, end='10:40'):
    "SPY at 600, and for one minute, 10:05, at the trigger."
    b = bars(end=end); hit = b.at == at('10:05').value
    return replace(b, high=np.where(hit, np.maximum(level, b.high), b.high), low=np.where(hit, np.minimum(level, b.low), b.low))


def kept(root, b):
    "The day's file of a data folder, as far as it matters here."
    (root/'daily_data').mkdir(); df = pd.DataFrame({k: getattr(b, k) for k in ('open', 'high', 'low', 'close')}, index=pd.to_datetime(b.at, utc=True).tz_convert('America/New_York').map(lambda o: o.isoformat())).rename_axis('Datetime')
    df.loc[at('10:39').isoformat()] = np.nan; df.to_csv(root/'daily_data'/f'{at("10:00"):%Y-%m-%d}.csv')


def heard(t, b, lang, first='10:01'):
    "What alerts say of a ticket while its bars come; each minute's text."
    got, out, word = [], {}, dict(row(t), says='ticket', more={}, new=True); a = Alerts(dict(list=got.append), lang); a.tell = got.append
    for k, m in enumerate(pd.to_datetime(b.at, utc=True).tz_convert('America/New_York')):
        end = m + pd.Timedelta(minutes=1); a('minute', dict(start=m.isoformat(), open=b.open[k], high=b.high[k], low=b.low[k], close=b.close[k]), end)
        if end == at('10:00'): a('words', dict(words=[word]), end)
        out[f'{end:%H:%M}'] = list(got); got.clear()
    return out


@pytest.mark.parametrize('side', SIDES)
def test_a_trigger_that_was_met_is_met_everywhere(side, tmp_path):
    level, more = SIDES[side]; t, b, q = ticket(trigger_px=level, entry_limit_usd=1., **more), spike(level), chain(); said = tmp_path/'journal'; said.mkdir()
    kept(tmp_path, b); book(said).append(row(t)); record(said, SimpleNamespace(current=[], grounds={}), at('10:02'), bars(end='10:02'), Costs(), lambda day: q[q.index < at('10:02')])
    x = np.array([[place(str(pd.Timestamp(o, tz='UTC'))), *(float(getattr(b, k)[i]) for k in ('open', 'high', 'low', 'close'))] for i, o in enumerate(b.at)])
    alarms = {lang: heard(t, b, lang) for lang in ('en', 'zh')}
    for hm, state in (('10:05', 'armed'), ('10:06', 'limit'), ('10:09', 'limit')):
        on_paper = follow(t, spike(level, hm), quotes_of(q[q.index < at(hm)], 7)).status
        assert on_paper == dict(armed='armed', limit='triggered')[state]
        for lang in ('en', 'zh'):
            says = WORDS[lang][state].format(entry_limit_usd=1., trigger_px=level, px=600.)
            assert says in screen(said, at(hm), 600., at(hm), lang)[2] and cards(latest(said), at(hm), 600., at(hm), lang, x[:np.searchsorted(b.at, at(hm).value)])[0].now == says
            assert sum(o.startswith(says) for m, texts in alarms[lang].items() if m <= hm for o in texts) == (state == 'limit'), 'told once'
    assert option_state(t, at('10:09'), 600., at('10:09')) == 'armed' and option_state(replace(t, status='triggered'), at('10:09'), 600., at('10:09')) == 'limit'
    assert WORDS['en']['missed'].format(until='2026-03-31 (Tue) 10:15') in screen(said, at('10:15'), 600., at('10:15'))[2]


def test_a_quote_meets_a_trigger_before_the_bar_does():
    t, got = ticket(), []; a = Alerts(dict(list=got.append)); a.tell = got.append
    for when, px in (('10:00', 600.), ('10:01', 609.), ('10:02', 600.)):
        a('quote', dict(at=at(when).isoformat(), last=px), at(when))
        if when == '10:00': a('words', dict(words=[dict(row(t), says='ticket', more={}, new=True)]), at(when))
    assert [o.partition(':')[0].partition(' at ')[0] for o in got] == ['New', 'Buy now']


def test_a_list_is_as_of_the_newest_thing_on_it(tmp_path):
    "A run over an earlier moment of a day that the folder already knows: what stands from later is told as of later."
    t = ticket(begin='15:30', until='15:40'); book(tmp_path).append(row(t)); nothing = SimpleNamespace(current=[], grounds={})
    record(tmp_path, nothing, at('15:31'), bars(end='15:31'), Costs(), lambda day: chain(end='15:31', begin='15:29'))
    record(tmp_path, SimpleNamespace(current=[Silence(at('09:35'), 'swing', t.provenance, ('warm-up',))], grounds={}), at('09:35'), bars(end='09:35'), Costs(), lambda day: None)
    lines = screen(tmp_path, at('15:32'), 600., at('15:32')); assert t.id in ' '.join(lines) and lines[0] == 'As of 2026-03-31 (Tue) 15:30 (New York).', lines
    assert pd.Timestamp(latest(tmp_path)['asof']) == t.issued_at


def test_a_ticket_that_is_triggered_or_bought_between_two_words_is_told_in_that_minute(tmp_path):
    "So the one who is not looking hears of its exit; what is on record stays as it was said."
    e, heard, _ = silent_engine(tmp_path); said, t, got = tmp_path/'journal', ticket(), []; book(said).append(row(t)); a = Alerts({}); a.tell = got.append
    record(said, SimpleNamespace(current=[], grounds={}), at('10:01'), bars(end='10:01'), Costs(), lambda day: chain(end='10:01')); before = (said/'said.jsonl').read_text()
    for hm, status, told in (('10:01', 'armed', True), ('10:02', 'armed', False), ('10:05', 'triggered', True), ('10:06', 'filled', True), ('10:07', 'filled', False), ('10:08', 'target', False)):
        e.done = [(t, SimpleNamespace(status=status, closed=status == 'target'))]; n = len(heard); out = e._record(at(hm), {}, {})
        e._out(dict(at=at(hm).isoformat(), ms=dict(all=1.)) | out, 0.)
        assert out == {} and (len(heard) > n) == told and (not told or heard[-1][1]['words'][0]['status'] == status), hm
        for kind, body in heard[n:]: a(kind, body, at(hm))
    e._out(dict(at=at('10:09').isoformat(), ms=dict(all=1.), on_record=[t.id]), 0.); assert heard[-1][1]['words'][0]['status'] == 'filled', 'it does not wait again'
    a('quote', dict(at=at('10:10').isoformat(), last=612.), at('10:10'))
    assert [o.partition(':')[0] for o in got] == ['New', 'Sell now'] and (said/'said.jsonl').read_text() == before
