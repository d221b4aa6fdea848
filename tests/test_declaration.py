"""What a declaration may say, and what a stranger's formula leads to: an error that names the feature, never a traceback of NumPy's."""
import io
import keyword
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyresearch.bars import read_bars
from spyresearch.core import UsageError
from spyresearch.features.audit import check_features
from spyresearch.features.batch import compute
from spyresearch.features.declaration import checked, checked_name
from spyresearch.features.flow import FLOW
from spyresearch.features.registry import REGISTRY, Days, Registry, feature
from spyresearch.features.stream import Stream, stream_frame


@pytest.fixture(scope='module')
def bars(shared): return read_bars(shared('spy_1min.parquet'))['2025-07-07':'2025-08-29']


def declare(name='mine', batch=lambda g: g.close, **kw): return feature(name, batch, **dict(registry=Registry(), group='X', formula='C', inputs=('close',)) | kw)


def test_all_that_is_declared_here_passes():
    for f in (*REGISTRY, *FLOW): assert checked(f) is f


@given(st.text(max_size=8) | st.from_regex(r'[A-Za-z_ ][A-Za-z0-9_ ,.]{0,6}', fullmatch=True))
def test_a_name_that_passes_is_a_column_and_a_word(name):
    try: checked_name(name)
    except UsageError as e:
        assert repr(name) in e.what and e.why and e.todo
        return
    assert name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and name not in ('Datetime', 'src')
    assert list(pd.read_csv(io.StringIO(pd.DataFrame({name: [1.]}).to_csv(index=False)))) == [name]
    assert f'#f-{name}'[3:] == name


@pytest.mark.parametrize('name', ['', 'a,b', 'x\ny', 'r1\n', ' r1', 'with space', 'Datetime', 'src', 'day', 'seen', 'close', 'volume', 'src', 5, None, True, ('a',), 'class', '_f'])
def test_names_that_no_file_can_hold_are_refused(name):
    with pytest.raises(UsageError) as e: declare(name)
    assert e.value.what.startswith(f'feature {name!r}') and e.value.why and e.value.todo


@pytest.mark.parametrize('field, said', [
    (dict(inputs='close'), "write inputs=('close',)"), (dict(inputs=('close')), "write inputs=('close',)"), (dict(inputs=None), 'names in a tuple'), (dict(inputs=(5,)), 'names in a tuple'),
    (dict(input=('close',)), "write 'inputs'"), (dict(windows=5), "write 'window'"), (dict(colour='red'), 'leave it out'),
    (dict(window=0), '1 or more'), (dict(window=-5), '1 or more'), (dict(window=2.5), '1 or more'), (dict(warmup=0), '1 or more'), (dict(warmup=-1), '1 or more'), (dict(sessions=-3), '0 or more'), (dict(sessions='1'), '0 or more'),
    (dict(group=''), 'has no group'), (dict(formula=' '), 'has no formula'), (dict(unit=3), 'as text'), (dict(kept='no'), 'True or False'), (dict(state=[]), 'dict of first values'), (dict(step=5), 'function of a minute'),
    (dict(scope='weekly'), 'session, continuous'), (dict(known_at='noon'), 'bar end, session open, schedule')])
def test_fields_that_mean_nothing_are_refused(field, said):
    with pytest.raises(UsageError) as e: declare(**field)
    assert 'mine' in e.value.what and said in str(e.value)


def test_what_is_left_out_is_asked_for():
    for kw in (dict(group='X'), dict(formula='C')):
        with pytest.raises(UsageError, match='feature mine: it has no'): feature('mine', lambda g: g.close, registry=Registry(), inputs=('close',), **kw)
    with pytest.raises(UsageError, match='batch'): feature('mine', registry=Registry(), group='X', formula='C')(None)


def test_a_refused_declaration_leaves_no_trace():
    r = Registry(); declare('good', registry=r); h = r.hash()
    for kw in (dict(name='a,b'), dict(window=0), dict(inputs='close'), dict(input=1)):
        with pytest.raises(UsageError): declare(**dict(registry=r) | kw)
    assert [f.name for f in r] == ['good'] and r.hash() == h


ARRAYS = dict( # no step form, and formulas of days
    moves=lambda g: np.pad(np.log(g.close[:, 1:]/g.close[:, :-1]), ((0, 0), (1, 0)), constant_values=np.nan),
    along=lambda g: np.apply_along_axis(lambda v: np.convolve(v, np.ones(3)/3, 'same'), 1, g.close),
    running=lambda g: g.close.cumsum(1),
    since=lambda g: g.close/g.close[:, :1],
    copied=lambda g: np.full(g.close.shape, np.nan).__setitem__((slice(None), 0), 1.) or g.close)

@pytest.mark.parametrize('name', ARRAYS)
def test_a_formula_of_days_without_a_step_form_is_told_so(bars, name):
    r = Registry(); declare(name, ARRAYS[name], registry=r)
    assert compute(bars, registry=r)[name].notna().any()
    for use in (partial(stream_frame, bars[:5], registry=r), partial(check_features, bars, r, cuts=2)):
        with pytest.raises(UsageError, match=f'feature {name}: its batch form fails on a single minute, line [0-9]+ of test_declaration.py') as e: use()
        assert f'@{name}.by_minute' in e.value.todo and e.value.__cause__ is not None


BROKEN = dict(
    by_zero=(lambda g: 1/0, {}, 'its batch form fails, line .*ZeroDivisionError'), misspelt=(lambda g: g.colse, {}, "reads 'colse'"), nothing=(lambda g: None, {}, 'gives object of the shape'), words=(lambda g: 'abc', {}, 'gives <U3'),
    short=(lambda g: g.close[:, :10], {}, r'gives float64 of the shape \(40, 10\)'), deep=(lambda g: np.stack([g.close, g.close]), {}, r'of the shape \(2, 40, 390\)'), argument=(lambda: 1., {}, 'its batch form fails: TypeError'),
    no_state=(lambda g: g.close, dict(step=lambda b, s: s.nope), 'its step form fails, line .*AttributeError'), no_input=(lambda g: g.close, dict(step=lambda b, s: b.colse), 'its step form fails, line .*AttributeError'),
    no_number=(lambda g: g.close, dict(step=lambda b, s: None), 'its step form fails: TypeError'), several=(lambda g: g.close, dict(step=lambda b, s: np.ones(3)), 'its step form fails: TypeError'))

@pytest.mark.parametrize('name', BROKEN)
def test_whatever_a_formula_raises_names_the_feature(bars, name):
    f, kw, said = BROKEN[name]; r = Registry(); declare(name, f, registry=r, **kw)
    with pytest.raises(UsageError, match=said) as e: check_features(bars, r, cuts=2)
    assert e.value.what.startswith(f'feature {name}') and e.value.todo


def test_an_error_of_one_minute_is_told_in_that_minute(bars):
    r = Registry(); declare('moody', registry=r, step=lambda b, s: 1/0 if b.minute == 2 else b.close)
    s, rows = Stream(registry=r), bars[:4].reset_index(names='Datetime').to_dict('records')
    assert [s.push(o)['moody'] for o in rows[:2]] == bars['close'][:2].tolist()
    with pytest.raises(UsageError, match='feature moody: its step form fails.*ZeroDivisionError: division by zero'): s.push(rows[2])
    assert Days(bars, registry=r).column('moody').shape == (40, 390)
