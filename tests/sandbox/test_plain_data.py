"""What a worker may send, and that nothing else is read from one."""

from __future__ import annotations

import datetime
import enum
import json
import math
import os
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlmrl_kit.sandbox.inside.plain_data import from_bytes, to_bytes
from dlmrl_kit.scoring.process import Failed, read_reply

atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20)
keys = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
data = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=12,
)


def types_of(value: Any) -> Any:
    if isinstance(value, dict):
        return [dict, [(types_of(key), types_of(element)) for key, element in value.items()]]
    if isinstance(value, (list, tuple)):
        return [type(value), [types_of(element) for element in value]]
    return type(value)


@settings(max_examples=200, deadline=None)
@given(data)
def test_data_arrives_as_it_was(value: Any) -> None:
    found = from_bytes(to_bytes(value))
    assert found == value
    assert types_of(found) == types_of(value)


UTC = datetime.timezone.utc


@pytest.mark.parametrize(
    "value",
    [
        Fraction(-1, 3),
        Decimal("1.50"),
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3, 4),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
        datetime.datetime(2024, 2, 29, tzinfo=UTC),
        datetime.timedelta(-1, 2, 3),
    ],
)
def test_numbers_and_dates_arrive_as_they_were(value: Any) -> None:
    found = from_bytes(to_bytes([value, {value: value}]))
    assert found == [value, {value: value}]
    assert repr(found[0]) == repr(value)


@pytest.mark.parametrize("value", ["\ud800", math.inf, -math.inf, 1 + 2j, 10**400, {"dict": {"tuple": [1]}}, {}, ()])
def test_odd_data_arrives_as_it_was(value: Any) -> None:
    assert from_bytes(to_bytes(value)) == value
    assert math.isnan(from_bytes(to_bytes(math.nan)))


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float64(0.5), 0.5), (np.int32(3), 3), (np.str_("a"), "a"), (Level.HIGH, 3), (os.stat_result(range(10)), None)],
)
def test_kinds_of_numbers_and_texts_become_plain_ones(value: Any, plain: Any) -> None:
    found = from_bytes(to_bytes(value))
    assert type(found) is (type(plain) if plain is not None else tuple)
    assert found == (plain if plain is not None else tuple(range(10)))


@pytest.mark.parametrize("value", [object(), len, Level, iter(()), [np.zeros(2)], {1: print}])
def test_what_is_no_data_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^[\w.]+ is no data that can be sent$"):
        to_bytes(value)


def test_depth_is_bounded() -> None:
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deep"):
        to_bytes(deep)
    with pytest.raises(ValueError, match="nested too deep"):
        from_bytes(b"[" * 10**5 + b"]" * 10**5)


class Harmful:
    def __reduce__(self) -> Any:
        return os.abort, ()


@pytest.mark.parametrize(
    "message",
    [
        pickle.dumps(Harmful()),
        pickle.dumps([1.0]),
        b"",
        b"\xff",
        b"1",
        b"[]",
        b"[1, 2]",
        b'{"x": 1}',
        b'{"a": 1, "b": 2}',
        b'{"bytes": "?"}',
        b'{"bytes": 3}',
        b'{"dict": [[1]]}',
        b'{"dict": 1}',
        b'{"dict": [[[1], 1]]}',
        b'{"set": [[1]]}',
        b'{"complex": ["a", 1]}',
        b'{"fraction": [1, 0]}',
        b'{"decimal": "x"}',
        b'{"date": "yesterday"}',
        b'{"date": 3}',
        b'{"timedelta": [1e400]}',
        b'{"open": "/etc/passwd"}',
        b'[{"tuple": 3}]',
        b'{"tuple": ["timeout", 1, ""]}',
    ],
)
def test_what_is_no_reply_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says: the parent takes it as a crash)
        read_reply(message)


def test_a_failure_arrives_as_it_was() -> None:
    assert read_reply(to_bytes(("error", "a", "b"))) == Failed("error", "a", "b")
    assert read_reply(to_bytes([("error", "a", "b")])) == ("error", "a", "b")  # a result of this form stays one


def test_json_is_what_travels() -> None:
    assert json.loads(to_bytes([{"reward": 0.5}])) == [{"dict": [["reward", 0.5]]}]
