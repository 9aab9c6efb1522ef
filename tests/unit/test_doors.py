"""Code of users outside of tasks: whatever it does, who calls it goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.messages import TaskError
from shoal.shell import doors, serialize
from shoal.shell.logs import LogKeeper
from shoal.shell.profiler import Profiler
from tests.integration.hostile import DEEDS, METHODS, Rude, make

OF_ERRORS = (
    "__str__", "__repr__", "args", "__cause__", "__traceback__", "__notes__", "__reduce__", "__reduce_ex__",
    "__class__", "with_traceback",
)  # fmt: skip
RAISING = [name for name in DEEDS if name not in ("huge", "negative", "None", "text", "nan", "index")]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is asked for, not printed."""
    caplog.set_level(logging.CRITICAL + 1, "shoal.doors")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what __del__ raises
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("method", [*METHODS, "nbytes", "__class__"])
def test_every_object_has_a_size(method: str, deed: str) -> None:
    """Also one that cannot say it, within a list or a dictionary too."""
    hostile = make(method, deed)
    for value in (hostile, [hostile], {"a": hostile}, (1, [hostile] * 20)):
        assert 0 <= serialize.sizeof(value) < 1 << 48


def test_what_holds_itself_has_a_size() -> None:
    """As has what holds the same thing very often, within a moment."""
    ring: list[Any] = []
    ring.append(ring)
    wide: Any = []
    for _ in range(40):
        wide = [wide] * 10
    named: Any = {}
    for _ in range(40):
        named = dict.fromkeys(range(8), named)
    assert all(serialize.sizeof(value) > 0 for value in (ring, wide, named))


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize(
    "method",
    [
        "__str__",
        "__repr__",
        "args",
        "__cause__",
        "__traceback__",
        "__notes__",
        "__reduce__",
        "__reduce_ex__",
        "__class__",
    ],
)
def test_every_exception_travels(method: str, deed: str) -> None:
    """At least by the name of its class."""
    body: dict[str, Any] = {method: lambda self, *args: DEEDS[deed]()}
    if not method.startswith("__s") and not method.startswith("__r"):
        body = {method: property(lambda self: DEEDS[deed]())}
    try:
        raise type("Hostile", (Exception,), body)("words")
    except Exception as error:
        sent = serialize.dump_error(error)
        told = doors.described(error)
    assert isinstance(sent, TaskError)
    assert "Hostile" in sent.text
    assert "Hostile" in told
    assert isinstance(serialize.load_error(sent), BaseException)


class Bomb(Exception):
    """It can be pickled, and does its deed when it is read again."""

    def __init__(self, deed: str) -> None:
        super().__init__(deed)
        self.deed = deed

    def __reduce__(self) -> Any:
        return DEEDS[self.deed], ()


@pytest.mark.parametrize("deed", RAISING)
def test_an_exception_that_does_something_when_it_is_read(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was raised that is found out; a reader that meets one all the same gets its text."""
    monkeypatch.setattr(doors.signal, "getsignal", lambda number: None)  # as in a program that handles Ctrl-C
    sent = serialize.dump_error(Bomb(deed))
    assert sent.exception is None
    sent.exception = serialize._cloudpickle_whole(Bomb(deed))
    assert "Bomb" in str(serialize.load_error(sent))


@pytest.mark.parametrize("deed", RAISING)
@pytest.mark.parametrize("method", ["__reduce__", "__reduce_ex__", "__getstate__"])
def test_what_cannot_be_pickled_is_one_kind_of_error(method: str, deed: str) -> None:
    """Whatever it raises, and whatever that says of itself."""
    with pytest.raises(serialize.SerializationError, match="Hostile cannot be pickled"):
        serialize.dumps_safely(make(method, deed))


@pytest.mark.parametrize("deed", RAISING)
def test_the_door_gives_what_stands_for_a_failure(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For plain functions and for coroutine functions, and counts it."""
    monkeypatch.setattr(doors.signal, "getsignal", lambda number: None)  # as in a program that handles it
    before = doors.COUNTS["callback"]

    async def later() -> Any:
        await asyncio.sleep(0)
        return DEEDS[deed]()

    async def both() -> None:
        assert await doors.wait("callback", later, otherwise=5) == 5
        assert await doors.wait("callback", DEEDS[deed], otherwise=6) == 6

    assert doors.call("callback", DEEDS[deed], otherwise=7) == 7
    asyncio.run(both())
    assert doors.COUNTS["callback"] == before + 3


def test_who_is_cancelled_or_interrupted_is() -> None:
    """The door keeps what is meant for its caller no more than any other function does."""

    async def cancelled() -> None:
        task = asyncio.ensure_future(doors.wait("callback", asyncio.sleep, 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    with pytest.raises(KeyboardInterrupt):
        doors.call("callback", DEEDS["KeyboardInterrupt"])


def test_a_failure_is_reported_though_logging_fails(capfd: pytest.CaptureFixture[str]) -> None:
    """A filter that a user has installed may raise, too: the line goes to stderr."""

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise Rude("no lines")

    spoiler = Filter()
    doors.logger.setLevel(logging.ERROR)
    doors.logger.addFilter(spoiler)
    doors._logged.clear()
    try:
        doors.report("callback", ValueError("of the callback"), "the callback that fails")
    finally:
        doors.logger.removeFilter(spoiler)
    written = capfd.readouterr().err
    assert "the callback that fails" in written
    assert "of the callback" in written


def test_failures_without_end_are_logged_one_by_one_at_first_and_once_a_second_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that fails at every task does not fill a disk."""
    caplog.set_level(logging.ERROR, "shoal.doors")
    now = 1000.0
    monkeypatch.setattr(doors, "monotonic", lambda: now)
    monkeypatch.setattr(doors, "COUNTS", type(doors.COUNTS)())
    doors._logged.clear()
    for _ in range(100):
        doors.report("hook", ValueError("x"))
    assert len(caplog.records) == doors._EACH
    now += 2
    doors.report("hook", ValueError("x"))
    assert "80 more" in caplog.records[-1].getMessage()


def test_a_policy_may_do_and_suggest_anything() -> None:
    """Of the memory manager: the scheduler goes on, and the other policies are run."""
    for deed in DEEDS:
        for policy in (_Policy(deed), _Suggests(deed)):
            core = SchedulerCore("s", Settings())
            ran: list[str] = []
            core.amm.policies = {policy: None, _Notes(ran): None}
            core.amm.run_once()
            while core.amm.step(core.state.now):
                pass
            assert ran or deed == "GeneratorExit", deed


class _Policy:
    def __init__(self, deed: str) -> None:
        self.deed = deed

    def run(self) -> Any:
        return DEEDS[self.deed]()


class _Suggests(_Policy):
    def run(self) -> Any:
        yield "replicate", DEEDS["index"](), None
        yield DEEDS[self.deed]()


class _Notes:
    def __init__(self, ran: list[str]) -> None:
        self._ran = ran

    def run(self) -> Any:
        self._ran.append("")
        return []


def test_the_profiler_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's loader raises when it is asked for its source."""
    looked = threading.Event()
    count = [0]

    def running() -> dict[int, str]:
        count[0] += 1
        if count[0] == 1:
            raise SystemExit(1)
        looked.set()
        return {}

    profiler = Profiler(running, True, 0.001, 1.0)
    profiler.begin(threading.get_ident())
    assert looked.wait(10)
    profiler.end(threading.get_ident())
    profiler.close()


def test_what_is_logged_may_misbehave() -> None:
    """A program that keeps the last lines keeps one that says so; who logs goes on."""
    keeper = LogKeeper(10)
    other = logging.getLogger("test.of.doors")
    other.propagate = False
    other.addHandler(keeper)
    for deed in RAISING:
        other.error("%s", make("__str__", deed))
    assert len(keeper.last()) == min(10, len(RAISING))
    assert "cannot be shown" in keeper.last(1)[0][1]
    other.removeHandler(keeper)
    keeper.close()
