"""Objects to bytes and back; functions pickled once; errors that travel."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import pytest

from shoal import checks
from shoal.client.packing import FunctionCache, name_of
from shoal.errors import LostDataError, SerializationError, UsageError
from shoal.errors import TaskError as RemoteError
from shoal.messages import Blob, DropFunctions, TaskError
from shoal.shell import serialize


def test_small_values_are_plain_bytes_and_large_buffers_stay_where_they_are() -> None:
    """No copy of a large array is made to send it."""
    np = pytest.importorskip("numpy")
    assert type(serialize.dumps({"x": 1})) is bytes
    array = np.arange(100_000)
    blob = serialize.dumps([array, "x"])
    assert isinstance(blob, Blob)
    assert blob.frames[1].obj is array or memoryview(blob.frames[1]).nbytes == array.nbytes
    array[0] = 99
    assert serialize.loads(blob)[0][0] == 99
    assert serialize.payload_nbytes(blob) >= array.nbytes


def test_what_cannot_be_pickled_is_named_with_its_cause() -> None:
    """At once, not on the other side."""
    with pytest.raises(SerializationError, match=r"the thing of type lock.*cannot be pickled"):
        serialize.dumps(threading.Lock(), "the thing")


def test_errors_keep_their_type_where_pickles_of_exceptions_have_their_tracebacks_inside() -> None:
    """``dask.multiprocessing`` installs that; a deep stack or errors that led to each other are too much for it."""
    script = """
import tblib.pickling_support
from shoal.shell import serialize

def deep(n):
    if n:
        return deep(n - 1)
    raise ValueError("deep")

def circle():
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    raise one

def chain():
    try:
        raise KeyError("first")
    except KeyError:
        raise ValueError("second") from None

for function, args in ((deep, (900,)), (circle, ()), (chain, ())):
    tblib.pickling_support.install()
    try:
        function(*args)
    except ValueError as error:
        before = error.__traceback__, error.__cause__, error.__context__, error.__suppress_context__
        found = serialize.load_error(serialize.dump_error(error))
        assert type(found) is ValueError and found.args == error.args, found
        assert (error.__traceback__, error.__cause__, error.__context__, error.__suppress_context__) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_functions_that_are_too_large_with_what_is_bound_into_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As arguments are: the scheduler and each worker would have it in memory for as long as the client lives."""
    monkeypatch.setattr(checks, "MOST_PAYLOAD", 100_000)
    bound = b"x" * 200_000
    for function in (lambda: bound, partial(len, bound)):
        with pytest.raises(UsageError, match=r"the function (lambda|len) takes .*: scatter what is bound into it"):
            FunctionCache().pickle(function)


def test_references_become_values() -> None:
    """Wherever they stand in the arguments."""
    payload = serialize.dumps(([serialize.KeyRef("a"), {"x": serialize.KeyRef("b")}], {}))
    assert serialize.loads_with_inputs(payload, {"a": 1, "b": 2}) == ([1, {"x": 2}], {})


def raising() -> None:
    raise KeyError("inner")


class Unpicklable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)
        self.lock = threading.Lock()


def test_errors_travel_with_their_traceback() -> None:
    """And as text where they cannot be pickled."""
    try:
        raising()
    except KeyError as error:
        sent = serialize.dump_error(error)
    back = serialize.load_error(sent)
    assert isinstance(back, KeyError)
    frames = back.__traceback__
    while frames is not None and frames.tb_next:
        frames = frames.tb_next
    assert frames is not None
    assert frames.tb_frame.f_code.co_name == "raising"
    odd = serialize.load_error(serialize.dump_error(Unpicklable(1, 2)))
    assert isinstance(odd, RemoteError)
    assert "Unpicklable: 1" in str(odd)
    assert isinstance(serialize.load_error(TaskError(None, None, "LostDataError: gone")), LostDataError)


LIMIT = 10


def importable(x: int) -> int:
    return x + LIMIT


def test_a_function_is_pickled_once_while_what_it_means_is_the_same() -> None:
    """Plain functions once; closures over changing things each time."""
    cache = FunctionCache()
    assert cache.pickle(importable) is not None
    assert cache.pickle(importable)[1] is cache.pickle(importable)[1]
    box = [1]
    assert cache.pickle(lambda: box)[0] != ""
    first = cache.pickle(reader := (lambda: box[0]))[0]
    box[0] = 2
    assert cache.pickle(reader)[0] != first
    step = 1
    adder = lambda x: x + step  # noqa: E731
    first = cache.pickle(adder)[0]
    assert cache.pickle(adder)[0] == first
    step = 2
    assert cache.pickle(adder)[0] != first


def test_functions_that_were_not_used_for_long_are_let_go_of() -> None:
    """Here and at the scheduler, so that neither grows for ever."""
    cache = FunctionCache(most=3)
    assert [cache.sending(fn) for fn in "abc"] == [(True, None)] * 3
    assert cache.sending("a") == (False, None)
    assert cache.sending("d") == (True, DropFunctions(["b"]))
    assert cache.sending("b") == (True, DropFunctions(["c"]))
    for n in range(10):
        cache.pickle(eval(f"lambda x: {n}"))
    assert len(cache._pickled) <= 3


def test_names_of_functions() -> None:
    """What the keys of their calls begin with."""
    assert name_of(importable) == "importable"
    assert name_of(lambda: 1) == "lambda"
    assert name_of(partial(importable, 1)) == "importable"
    assert name_of(max) == "max"


@pytest.mark.parametrize("value", [1, "x" * 100, [1, 2], {"a": 1}, None, b"bytes", (1, (2, 3)), {1, 2}])
def test_sizes_are_positive(value: Any) -> None:
    """For the common types, near to what Python says."""
    assert 0 < serialize.sizeof(value) < 10_000


def test_an_object_that_lies_about_its_size_is_no_reason_to_fail() -> None:
    """Its plain size is taken."""

    class Liar:
        def __sizeof__(self) -> int:
            raise RuntimeError("guess")

        def __reduce__(self) -> Any:
            return int, ()

    assert pickle.loads(pickle.dumps(Liar())) == 0
    assert 0 < serialize.sizeof(Liar()) < 10_000


@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
def test_bytes_travel_beside_their_pickle_once_they_are_large(size: int) -> None:
    """Without a copy on the way out; what comes is bytes again, also out of memory that is lent."""
    value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    payload = serialize.dumps(value)
    if size >= 100_000:
        assert [len(frame) for frame in payload.frames][1:] == [size]
        assert payload.frames[1].obj is value
        payload = Blob([payload.frames[0], memoryview(bytearray(payload.frames[1]))])
    found = serialize.loads(payload)
    assert type(found) is bytes
    assert found == value
