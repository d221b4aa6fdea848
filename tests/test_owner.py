"""The commands for tickets as a process: what the owner says, what he is told, and every wrong word with status 2."""
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from spyresearch.sessions import session
from spyresearch.trade.tickets import issue, row, sentence
from spyresearch.trade.track import book, on_record

SPY = [sys.executable, '-m', 'spyresearch.cli']
DAY, NEXT, AFTER = (pd.Timestamp(o).date() for o in ('2026-03-27', '2026-03-30', '2026-03-31'))


def spy(*args, **env): return subprocess.run([*SPY, *map(str, args)], capture_output=True, text=True, timeout=120, env={k: v for k, v in os.environ.items() if k not in ('LC_ALL', 'LANG')} | dict(PYTHONIOENCODING='utf-8') | env)


@pytest.fixture
def folder(tmp_path):
    "A data folder with one ticket on record, said at Friday's close, and Monday's first minutes."
    a, b = session(NEXT).open, session(AFTER).open
    t = issue(kind='swing', side='buy', provenance='simulated:test', issued_at=session(DAY).close, valid_from=a, valid_until=a + pd.Timedelta(minutes=60), model='har, direction 1d of 2026-03-02', declared_p=.55, p_calibrated=.6, p_lower=.55, breakeven_p=.5,
              ev_low_usd=3., n_bucket=80, hit_bucket=.6, size_frac=.1, max_loss_usd=900., entry_from=a, entry_until=a + pd.Timedelta(minutes=60), entry_px_low=640., entry_px_high=650., exit_from=b, exit_until=b + pd.Timedelta(minutes=30), target_px=660., stop_px=630.)
    book(tmp_path/'journal').append(row(t))
    word = row(t) | dict(new=True, more=dict(nights=1, gap_usd=412.5, notes=[]), says='ticket', sentence=sentence(t))
    silence = dict(at=str(session(DAY).close), kind='option', provenance='simulated:test', reasons=['no option quotes', 'below break-even'], notes=[], says='silence', sentence='')
    (tmp_path/'journal'/'said.jsonl').write_text(json.dumps(dict(asof=session(DAY).close.isoformat(), words=[word, silence])) + '\n')
    (tmp_path/'daily_data').mkdir()
    (tmp_path/'daily_data'/f'{NEXT}.csv').write_text(f'Datetime,close\n{NEXT}T09:40:00-04:00,645.25\n')
    return tmp_path


def test_the_screen_says_what_to_do_in_both_languages(folder):
    en, zh, sized = (spy('tickets', '--data', folder, *more) for more in ((), ('--lang', 'zh'), ('--equity', 100_000, '--full')))
    assert en.returncode == zh.returncode == 0, en.stderr + zh.stderr
    assert 'Buy now: SPY is at 645.25' in en.stdout and '现在买入：SPY 现价 645.25' in zh.stdout and '无期权交易建议：无期权报价、未达盈亏平衡' in zh.stdout
    assert spy('tickets', '--data', folder, LANG='zh_CN.UTF-8').stdout == zh.stdout
    assert '15 shares' in sized.stdout and len(sized.stdout) > len(en.stdout) and json.loads(spy('tickets', '--data', folder, '--json', '-').stdout)['words'][0]['more']['gap_usd'] == 412.5


def test_taken_followed_closed(folder):
    id_ = on_record(folder/'journal')[0].id
    done = spy('took', id_[:5], '--px', 645.1, '--qty', 15, '--data', folder)
    assert done.returncode == 0 and done.stdout.startswith('Noted: 15 bought at 645.10 on 2026-03-30 (Mon) 09:41'), done.stderr
    assert 'Hold: SPY is at 645.25' in spy('tickets', '--data', folder).stdout
    done = spy('closed', id_, '--px', 651.1, '--at', f'{NEXT}T15:00', '--data', folder, '--lang', 'zh')
    assert done.returncode == 0 and '卖出 15' in done.stdout and '+89.20' in done.stdout, done.stderr
    assert id_ not in spy('tickets', '--data', folder).stdout
    assert [json.loads(o)['what'] for o in (folder/'journal'/'owner.jsonl').read_text().splitlines()] == ['took', 'closed']


@pytest.mark.parametrize('args, said', [
    (('took', 'ffffffffffff', '--px', 645, '--qty', 1), 'there is no ticket'), (('took', 'ID', '--px', -645, '--qty', 1), 'is not a price'), (('took', 'ID', '--px', 'nan', '--qty', 1), 'is not a price'),
    (('took', 'ID', '--px', 64.5, '--qty', 1), 'cannot be right'), (('took', 'ID', '--px', 720, '--qty', 1), 'cannot be right'), (('took', 'ID', '--px', 645, '--qty', 1, '--at', f'{NEXT}T09:00'), 'cannot have been bought yet'), (('took', 'ID', '--px', 645, '--qty', 0), 'not a quantity'), (('took', 'ID', '--px', 645, '--qty', 1, '--at', f'{NEXT}T11:00'), 'had expired'),
    (('took', 'ID', '--px', 645, '--qty', 1, '--at', f'{DAY}T11:00'), 'did not exist'), (('took', 'ID', '--px', 645, '--qty', 1, '--at', 'noon'), 'is not a date'), (('took', 'ID', '--px', 645), 'Missing option'),
    (('closed', 'ID', '--px', 645), 'was not taken'), (('explain', 'ffff'), 'there is no ticket'), (('tickets', '--lang', 'la'), 'no wording'), (('tickets', '--equity', -5), 'positive amount')])
def test_a_word_that_cannot_be_true_is_wrong_usage(folder, args, said):
    id_ = on_record(folder/'journal')[0].id
    done = spy(*(id_ if o == 'ID' else o for o in args), '--data', folder)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not (folder/'journal'/'owner.jsonl').exists()


def test_a_price_beside_the_ticket_is_noted_and_said_in_both_languages(folder, tmp_path_factory):
    import shutil
    id_ = on_record(folder/'journal')[0].id
    for lang, px, word in (('en', 655, 'outside the range of the ticket, 640.00 to 650.00'), ('zh', 639, '640.00 至 650.00 之内'), ('en', 650, '')):
        own = shutil.copytree(folder, tmp_path_factory.mktemp('own')/'data'); done = spy('took', id_, '--px', px, '--qty', 2, '--data', own, '--lang', lang)
        assert done.returncode == 0 and word in done.stdout and len(done.stdout.splitlines()) == 1 + bool(word), done.stderr


def test_nothing_twice(folder):
    id_ = on_record(folder/'journal')[0].id
    for args, said in ((('took', id_, '--px', 645, '--qty', 1), ''), (('took', id_, '--px', 645, '--qty', 1), 'taken already'), (('closed', id_, '--px', 645, '--at', f'{DAY}T16:30'), 'before it was taken'),
                       (('closed', id_, '--px', 646), ''), (('closed', id_, '--px', 646), 'closed already')):
        done = spy(*args, '--data', folder)
        assert done.returncode == (2 if said else 0) and said in done.stderr
    assert len((folder/'journal'/'owner.jsonl').read_text().splitlines()) == 2


def test_a_ticket_without_grounds_is_shown_as_recorded(folder):
    done = spy('explain', on_record(folder/'journal')[0].id, '--data', folder)
    assert done.returncode == 0 and 'as recorded' in done.stdout and 'hash of all that follows' in done.stdout
