"""The order book over the whole real depth record and over random books; the readers of real seconds, depth and chains."""
from datetime import date, time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyresearch.bars import in_session
from spyresearch.core import ET, DataError
from spyresearch.tws.book import ASK, BID, DELETE, INSERT, UPDATE, Book, book_faults
from spyresearch.tws.records import read_book, read_chain, read_quotes, read_trades
from spyresearch.tws.ticks import EMPTY, by_day, depth_ops, levels

ROWS = 18483


@pytest.fixture(scope='module')
def record(shared):
    books = read_book(shared('es_book10_20231225.parquet'))
    return books, [levels(books, i) for i in range(len(books))]


def held(book): return tuple([o[:2] for o in book.sides[s]] for s in (BID, ASK))


@pytest.mark.parametrize('mode', ['shift', 'update'])
def test_the_whole_real_record(record, mode):
    "After each of all rows the book is the true one, and it is valid exactly where the true one is uncrossed."
    books, true = record
    book, was, kinds = Book(), EMPTY, {INSERT: 0, UPDATE: 0, DELETE: 0}
    assert len(books) == ROWS
    valid = np.zeros(ROWS, bool)
    for i, now in enumerate(true):
        at = books.t[i]/1e9
        for op in depth_ops(was, now, mode=mode):
            book.apply(*op, at=at)
            kinds[op[1]] += 1
        assert held(book) == now, f'row {i}'
        valid[i], was = book.valid(at), now
    crossed = books.bid_px[:, 0] >= books.ask_px[:, 0]
    assert crossed.sum() == 50 and (valid == ~crossed).all() and valid[50:].all()
    assert not {'unsorted', 'hole', 'beyond', 'bad value', 'bad operation', 'empty side'} & set(book.counts)
    assert kinds[INSERT] == 20 and not kinds[DELETE] if mode == 'update' else sum(kinds.values()) < 3*ROWS


def test_snapshots_equal_the_record(record):
    "The arrays that a reader gets, and the last valid book through the crossed rows of a record played backwards."
    books, true = record
    book, was = Book(), EMPTY
    for k, i in enumerate(range(80, 30, -1)): # row 49 and those before are crossed
        for op in depth_ops(was, true[i]): book.apply(*op, maker='X', at=float(k))
        was, snap = true[i], book.snapshot()
        for f in ('bid_px', 'bid_sz', 'ask_px', 'ask_sz'): np.testing.assert_array_equal(getattr(snap, f), getattr(books, f)[i])
        last = book.last_valid(k + .5)
        np.testing.assert_array_equal(last.ask_px, books.ask_px[max(i, 50)])
        assert last.at == min(k, 30) and book.valid(k + .5) == (i >= 50) and set(snap.bid_maker) == {'X'}
    assert book.why(50.) == 'crossed for 19.0 s' and book.needs_resubscribe(50.)


def test_a_position_dict_is_not_a_book(record):
    "Why the book exists: ib_async's rule (insert overwrites, delete leaves a gap) is wrong on nearly all of the record."
    books, true = record
    dom, was, right = ({}, {}), EMPTY, 0
    for now in true:
        for position, op, side, *value in depth_ops(was, now):
            if op == DELETE: dom[side].pop(position, None)
            else: dom[side][position] = tuple(value)
        was = now
        right += tuple(list(dom[s].values()) for s in (BID, ASK)) == now
    assert right < ROWS/10


sizes = st.integers(0, 10**6).map(float)
def side(sign, lo, hi): return st.dictionaries(st.integers(lo, hi), sizes, max_size=12).map(lambda d: sorted(((p/100, s) for p, s in d.items()), key=lambda o: -sign*o[0]))
anywhere = st.tuples(side(1, 60000, 60020), side(-1, 60000, 60020))
uncrossed = st.integers(60002, 60018).flatmap(lambda m: st.tuples(side(1, 60000, m - 1), side(-1, m, 60020)))


@given(st.lists(anywhere, min_size=1, max_size=6), st.sampled_from(['shift', 'update']), st.integers(1, 10))
@settings(deadline=None)
def test_operations_lead_from_any_book_to_any_other(books, mode, rows):
    book, was = Book(rows), EMPTY
    for now in books:
        for op in depth_ops(was, now, rows, mode): book.apply(*op)
        assert held(book) == tuple(o[:rows] for o in now) and not set(book.counts) & {'beyond', 'bad value'}
        was = now


@given(uncrossed, uncrossed, st.integers(1, 10))
@settings(deadline=None)
def test_in_shift_mode_no_book_on_the_way_is_crossed(old, new, rows):
    book = Book(rows)
    for op in depth_ops(EMPTY, old, rows) + depth_ops(old, new, rows):
        book.apply(*op)
        assert not {'crossed', 'unsorted', 'hole'} & set(book_faults(*book.sides))


odd = st.sampled_from([0., -1., float('nan'), float('inf'), 600., 600.01, 600.02])
@given(st.lists(st.tuples(st.integers(-2, 12), st.integers(-1, 3), st.integers(-1, 2), odd, st.sampled_from([0., -1., float('nan'), 100.])), max_size=40))
@settings(deadline=None)
def test_any_operations_leave_a_book_that_is_sound_or_says_not(ops):
    "Whatever comes: no side over its rows, no bad value in a valid book, and the last valid one is sound."
    book = Book(5)
    for k, op in enumerate(ops):
        book.apply(*op, at=k/10)
        assert max(map(len, book.sides)) <= 5
        if book.valid(k/10):
            s = book.snapshot()
            px, sz = np.r_[s.bid_px, s.ask_px], np.r_[s.bid_sz, s.ask_sz]
            assert s.bid_px[0] < s.ask_px[0] and not (px <= 0).any() and not (sz < 0).any() and (np.isnan(px) == np.isnan(sz)).all()
            assert not (np.diff(s.bid_px) >= 0).any() and not (np.diff(s.ask_px) <= 0).any()
    if last := book.last_valid(9.): assert last.bid_px[0] < last.ask_px[0]


def test_real_quotes_and_trades(shared):
    q, x = read_quotes(shared('spy_quotes_1s_2013.parquet')), read_trades(shared('spy_trades_1s_2013.parquet'))
    assert (len(q), len(x)) == (113520, 86869)
    assert (q.bid <= q.ask).all() and (q.bid == q.ask).sum() == 924 and (q.t % 10**9 == 999_999_999).all()
    for o in (q, x):
        ix = pd.DatetimeIndex(o.t, tz='UTC').tz_convert(ET)
        assert in_session(ix).all() and (ix.time >= time(9, 30)).all() and (ix.time < time(16)).all() and (np.diff(o.t) > 0).all()
        days = by_day(o)
        assert list(days) == [date(2013, 10, d) for d in (7, 8, 9, 10, 11)] and sum(map(len, days.values())) == len(o)
        np.testing.assert_array_equal(np.concatenate([d.t for d in days.values()]), o.t)
    assert {d: len(o) for d, o in by_day(x).items()}[date(2013, 10, 8)] == 19516
    raw = pd.read_parquet(shared('spy_quotes_1s_2013.parquet')).set_index('ts')
    at = raw.loc[pd.DatetimeIndex(q.t, tz='UTC').floor('s')]
    np.testing.assert_array_equal(at[['bc', 'ac', 'bs', 'as']].to_numpy(), np.column_stack([q.bid, q.ask, q.bid_size, q.ask_size]))


def test_real_chain(shared):
    c, raw = read_chain(shared('spy_chain_0-7dte.parquet')), pd.read_parquet(shared('spy_chain_0-7dte.parquet'))
    assert len(c) == len(raw) == 117856 and str(c.index.tz) == 'America/New_York'
    assert (c.index == raw.quote_ts).all() and (c.index.time >= time(9, 31)).all() and (c.index.time < time(16)).all()
    assert c.iv.isna().sum() == (raw.iv == 0).sum() and not (c.iv == 0).any() and (c.bid == 0).sum() == (raw.bid == 0).sum() > 0
    assert not (c.bid > c.ask).any() and set(c.right) == {'C', 'P'} and c.expiry.map(type).eq(date).all()
    np.testing.assert_allclose(c.bid, raw.bid, rtol=0, atol=1e-5)
    assert c.bid.iloc[0] == 43.58 and 'fetched_ts' not in c


def test_a_csv_reads_as_its_parquet(shared, tmp_path):
    for name, read, n in (('spy_quotes_1s_2013', read_quotes, 2000), ('es_book10_20231225', read_book, 200), ('spy_chain_0-7dte', read_chain, 500)):
        d = pd.read_parquet(shared(f'{name}.parquet')).iloc[:n]
        d.to_csv(tmp_path/'a.csv', index=False)
        d.to_parquet(tmp_path/'a.parquet')
        a, b = read(tmp_path/'a.csv'), read(tmp_path/'a.parquet')
        if read is read_chain: pd.testing.assert_frame_equal(a, b)
        else:
            for f in vars(a): np.testing.assert_array_equal(getattr(a, f), getattr(b, f))


def broken(d, column, value, rows=(3, 5)):
    d = d.copy()
    d[column] = d[column].astype(object if isinstance(value, str) else float)
    d.loc[d.index[list(rows)], column] = value
    return d


FILES = dict(quotes=('spy_quotes_1s_2013', read_quotes, 'bc'), trades=('spy_trades_1s_2013', read_trades, 'low'),
             book=('es_book10_20231225', read_book, 'bid_px_4'), chain=('spy_chain_0-7dte', read_chain, 'strike'))

@pytest.mark.parametrize('kind', FILES)
def test_bad_files_are_refused(shared, tmp_path, kind):
    "Each fault of a real file is named with its count and its first place."
    name, read, column = FILES[kind]
    d = pd.read_parquet(shared(f'{name}.parquet')).iloc[2000:2100].reset_index(drop=True)
    ts = 'quote_ts' if kind == 'chain' else 'ts'
    place = str(d[ts].dt.tz_convert(ET)[3].as_unit('ns'))
    for bad, *texts in ((d.drop(columns=column), f'columns missing: {column}'), (d.assign(**{ts: d[ts].dt.tz_localize(None)}), 'times are naive'),
                        (d.assign(**{ts: d[ts] - pd.to_timedelta(d.index*86400, unit='s')}), 'times go backwards: 99 rows'), (d.iloc[:0], 'no rows'),
                        (broken(d, column, 0.), 'not above zero: 2 rows', place), (broken(d, column, -1.), 'not above zero: 2 rows', place),
                        (d.assign(**{column: 'x'}), 'not a number')):
        bad.to_parquet(tmp_path/'bad.parquet')
        with pytest.raises(DataError) as e: read(tmp_path/'bad.parquet')
        assert all(t in str(e.value) for t in texts), str(e.value)
    (tmp_path/'junk.parquet').write_bytes(b'PAR1 junk')
    for p in ('none.csv', 'junk.parquet'):
        with pytest.raises(DataError, match='no such file|cannot be read'): read(tmp_path/p)


def test_crossed_quotes(shared, tmp_path):
    "A stray crossed second is left out; a file full of them is refused."
    d = pd.read_parquet(shared('spy_quotes_1s_2013.parquet')).iloc[2000:3000].reset_index(drop=True)
    broken(d, 'bc', 999.).to_parquet(tmp_path/'few.parquet')
    q = read_quotes(tmp_path/'few.parquet')
    assert len(q) == 998 and (q.bid <= q.ask).all()
    d.rename(columns=dict(bc='ac', ac='bc')).to_parquet(tmp_path/'all.parquet')
    with pytest.raises(DataError, match='bid above ask in more than 1%'): read_quotes(tmp_path/'all.parquet')
