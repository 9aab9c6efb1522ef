"""The turn of a driver."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

from shoal.core.events import Received
from shoal.shell.driver import Driver


class Core:
    """Does nothing, or fails."""

    def __init__(self, fails: bool) -> None:
        self._fails = fails

    def handle(self, events: list[Any], now: float) -> list[Any]:
        if self._fails:
            raise RuntimeError("a bug")
        return []

    def deadline(self) -> float | None:
        return None


class Message:
    """What arguments of many bytes hang on."""


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_core_was_told_is_let_go_of_after_the_turn(fails: bool) -> None:
    """Whoever hears that the core failed can still see it."""

    async def main() -> tuple[list[int], bool]:
        seen: list[int] = []
        driver = Driver(
            Core(fails), lambda effect: None, asyncio.get_running_loop(), lambda e: seen.append(len(driver.turn))
        )
        message = Message()
        gone = weakref.ref(message)
        driver.push(Received("peer", [message]))
        del message
        return seen, gone() is None or fails  # an error refers to the frames that it came through

    assert asyncio.run(main()) == ([1] if fails else [], True)
