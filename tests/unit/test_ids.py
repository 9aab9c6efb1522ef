"""Keys survive the wire; prefixes are what users expect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.ids import key_from_wire, key_prefix, key_to_wire

atoms = st.text(min_size=1) | st.binary(min_size=1) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
keys = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@given(keys)
def test_keys_come_back(key: object) -> None:
    """Text, bytes, numbers and tuples of them."""
    assert key_from_wire(key_to_wire(key)) == key


def test_what_is_no_key() -> None:
    """The error names the type."""
    with pytest.raises(TypeError, match="list"):
        key_to_wire(("x", []))


@pytest.mark.parametrize(
    "key",
    [
        "",
        b"",
        "caf\udce9",
        "(\udce9",
        ("x", "\udce9"),
        "x" * 100_000,
        ("x" * 70_000,),
        float("nan"),
        ("x", float("inf")),
    ],
    ids=lambda key: ascii(key)[:30],
)
def test_keys_that_cannot_travel_are_refused(key: object) -> None:
    """As the caller's fault, naming the argument."""
    with pytest.raises(UsageError, match="key must"):
        key_to_wire(key)


def test_tuples_within_tuples_have_a_depth_that_can_be_read_again() -> None:
    """Python's parser gives up at some."""
    key: object = "x"
    for _ in range(40):
        key = (key,)
    assert key_from_wire(key_to_wire(key)) == key
    for _ in range(40):
        key = (key,)
    with pytest.raises(UsageError, match="deep"):
        key_to_wire(key)


@pytest.mark.parametrize(
    "text", ["(", "\x00(", "(" * 5000, "\x00[1]", "([],)", "('x', " + "9" * 5000 + ")", "\x00import os"]
)
def test_what_was_never_a_key_stands_for_itself(text: str) -> None:
    """A peer may say anything."""
    assert key_from_wire(text) == text


def test_numbers_of_numpy_are_keys() -> None:
    """As those of Python that are equal to them."""
    numpy = pytest.importorskip("numpy")
    assert key_to_wire(("x", numpy.int64(3))) == key_to_wire(("x", 3))


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("inc-0a1b2c3d4e", "inc"), ("x-1-2", "x"), ("('sum-0a1b2c3d', 0)", "sum"), ("read-csv-0a1b2c3d", "read-csv")],
)
def test_prefix(key: str, prefix: str) -> None:
    """What similar tasks share."""
    assert key_prefix(key) == prefix


@pytest.mark.parametrize(
    "key",
    [("x",), ("x", 1), ("sum-0a1b", 0, 10, 2), ("a'b", 1), ('a"b', 2), ("a\\b", 0), ("x", -1), ("x", 1.5), ("x", True),
     ("x", ("y", 1)), ("", 0), ("a, 1", 0), ("a', 1", 0), ("x", "y"), ("x", 10**30)],
)  # fmt: skip
def test_tuples_come_back_of_the_same_types(key: tuple[object, ...]) -> None:
    """Those that are read the quick way, and those that look nearly like them."""
    found = key_from_wire(key_to_wire(key))
    assert found == key
    assert [type(part) for part in found] == [type(part) for part in key]
