"""An option ticket rebuilt from a data folder: quotes, forecast, paths, odds and money come out as they were said, and what was changed since is named."""
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from made import quotes_at as priced
from spyresearch.models.confidence import Rule
from spyresearch.models.experiment import evaluate
from spyresearch.models.targets import known_close
from spyresearch.models.windows import Panel
from spyresearch.sessions import minutes, session
from spyresearch.trade import desk
from spyresearch.trade.clock import learn_clock
from spyresearch.trade.explain import chain as chain_of, explained
from spyresearch.trade.record import record
from spyresearch.trade.shadow import dividends_of
from spyresearch.trade.signals import walk
from spyresearch.trade.tickets import Ticket
from spyresearch.tws.chain import COLUMNS, _log, seal_chain_day
from spyresearch.tws.market import demo_tape

ANY = Rule(margin=-1., floor=0., least=1, ladders=((.99,),)) # a gate that lets everything through: what is shown here is where numbers come from


def quotes_at(now, spot, clock, daily=.0035): return priced(now, spot, clock, daily, 6.).assign(status='ok').reindex(columns=COLUMNS) # prices that charge for less than is forecast, in the recorder's columns


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with ninety days of bars and eight chains, and the ticket that was put on record at noon of the last."
    root, tape = tmp_path_factory.mktemp('folder'), demo_tape(days=90); bars = tape.bars['TRADES', '1 min']; paid = tape.dividends.to_dict()
    noon = session(bars.index[-1].date()).open + pd.Timedelta(minutes=150); bars = bars[bars.index < noon]
    panel = Panel.from_bars(bars, paid, 'simulated:demo'); ev, px = evaluate(panel, 'har,const'), known_close(panel); chains = {}
    for d in range(len(panel) - 8, len(panel)):
        s, last = session(panel.days[d]), d == len(panel) - 1; clock = learn_clock(panel, s.open.to_pydatetime(), dividends_of(panel))
        chains[s.day] = pd.concat([quotes_at(s.open + pd.Timedelta(minutes=m + 1), px[d, m], clock) for m in range(149 if last else 29, 150 if last else s.n_minutes - 1)])
    options = desk.on_record(panel, ev, chains.get); signals = walk(panel, ev, rule=ANY, options=options, desk=[])
    for i, d in enumerate(panel.days):
        ix = minutes(d); df = pd.DataFrame({o: getattr(panel, o)[i][:len(ix)] for o in ('open', 'high', 'low', 'close', 'volume')}, index=ix).dropna()
        (root/'daily_data').mkdir(exist_ok=True); df.to_csv(root/'daily_data'/f'{d}.csv', index_label='Datetime')
    log = _log(root/'original_data'/'chain'); log.append(panel.days[-1], [(t.isoformat(), *r) for t, *r in chains[panel.days[-1]].itertuples()]); log.close()
    t, = [o for o in record(root/'journal', signals, noon, panel) if isinstance(o, Ticket)]
    return root, t, noon


@pytest.fixture
def folder(made, tmp_path): return shutil.copytree(made[0], tmp_path/'data')


def test_every_number_of_an_option_ticket_comes_out_again(made):
    root, t, noon = made; _, g, steps = chain_of(root/'journal', t.id)
    assert t.kind == 'option' and t.issued_at == noon and [s.name for s in steps if s.differs] == []
    again = {s.name for s in steps if s.again is not None}
    assert again >= {'px', 'chain', 'right', 'strike', 'con_id', 'trigger_px', 'entry_limit_usd', 'exit_spy_px', 'stop_spy_px', 'time_stop', 'quote_bid', 'quote_ask', 'quote_age_s', 'iv', 'iv_ratio', 'delta', 'premium_now_usd', 'premium_15m_usd', 'premium_30m_usd', 'share_equivalent',
                     'breakeven_p', 'p_trigger', 'p_target', 'p_stop', 'p_timeout', 'p_raw', 'rank', 'p_calibrated', 'p_lower', 'n_bucket', 'hit_bucket', 'declared_p', 'ev_usd', 'ev_low_usd', 'size_frac', 'max_loss_usd'} - {k for k in vars(t) if getattr(t, k) is None}
    assert list(dict.fromkeys(s.part for s in steps)) == ['ticket', 'data', 'quotes', 'forecast', 'offer', 'head', 'calibration', 'bucket', 'costs', 'money']


@pytest.mark.parametrize('column, value', [('bid', 0.), ('ask', 9.), ('age', 40.), ('spot', 1.), ('strike', 1.), ('right', 'X'), ('iv', .5)])
def test_an_edited_cell_of_the_chain_is_named(made, folder, column, value):
    "In the lines of the day and in its sealed table alike, and for any column, used or not."
    t = made[1]; day = t.issued_at.date(); path = folder/'original_data'/'chain'/f'{day}.csv'
    df = pd.read_csv(path, dtype=str); df.loc[df.con_id == str(t.con_id), column] = str(value); df.to_csv(path, index=False)
    said = f'quotes {column} of {t.con_id}'; assert said in explained(folder/'journal', t.id)[1]
    sealed = seal_chain_day(folder/'original_data'/'chain', day); o = pd.read_parquet(sealed); o.loc[o.con_id == t.con_id, 'volume'] = 7.; o.to_parquet(sealed)
    odd = explained(folder/'journal', t.id)[1]; assert {said, f'quotes volume of {t.con_id}', 'quotes chain'} <= set(odd)


def test_what_an_edited_quote_changes_is_marked_below_it(made, folder):
    t = made[1]; path = folder/'original_data'/'chain'/f'{t.issued_at.date()}.csv'; df = pd.read_csv(path, dtype=str)
    df.loc[df.con_id == str(t.con_id), 'ask'] = str(round(t.quote_ask + .01, 2)); df.to_csv(path, index=False)
    odd = explained(folder/'journal', t.id)[1]; assert odd[0] == f'quotes ask of {t.con_id}' and any(o.startswith('offer ') for o in odd)
    done = subprocess.run([sys.executable, '-m', 'spyresearch.cli', 'explain', t.id, '--data', str(folder)], capture_output=True, text=True, timeout=120, env=os.environ | dict(PYTHONIOENCODING='utf-8', LANG='C'))
    assert done.returncode == 1 and f'ask of {t.con_id}' in done.stderr and '!! again' in done.stdout and 'Traceback' not in done.stderr, done.stderr


def test_lost_rows_lost_files_and_other_bars_are_named(made, folder):
    t = made[1]; day = t.issued_at.date(); path = folder/'original_data'/'chain'/f'{day}.csv'; lines = path.read_text().splitlines(True)
    path.write_text(''.join(lines[:-1])); assert 'quotes chain' in explained(folder/'journal', t.id)[1]
    path.write_text('not a chain\n'); assert 'quotes chain' in explained(folder/'journal', t.id)[1]
    path.unlink(); odd = explained(folder/'journal', t.id)[1]; assert odd == ['quotes chain', 'offer contract']
    path.write_text(''.join(lines)); bars = folder/'daily_data'/f'{day}.csv'; text = bars.read_text().splitlines(True)
    bars.write_text(''.join(text + [text[-1].replace('11:59', '12:00')])); assert explained(folder/'journal', t.id)[1] == [] # the day goes on: nothing of it was known
    cut = text[-1].split(','); cut[4] = f'{float(cut[4]) + .5:.2f}'; bars.write_text(''.join([*text[:-1], ','.join(cut)])); assert 'data px' in explained(folder/'journal', t.id)[1]
    bars.write_text(''.join(text)); old = sorted((folder/'daily_data').glob('*.csv'))[-2]; old.write_text(''.join(old.read_text().splitlines(True)[:300]))
    assert f'data daily_data/{old.name}' in explained(folder/'journal', t.id)[1]


def test_a_ticket_that_was_not_said_is_not_explained(made, folder):
    t = made[1]; path = folder/'journal'/'tickets.csv'; path.write_text(path.read_text().replace(f'{t.declared_p}', '0.99', 1))
    assert {'ticket id', 'bucket declared_p'} <= set(explained(folder/'journal', t.id)[1]) and replace(t, declared_p=.99) != t
