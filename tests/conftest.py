"""What all tests share. Hypothesis draws the same examples in each run; ``--hypothesis-profile=explore`` draws more."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("steady", max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=2000, stateful_step_count=80, deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> None:
    """SIGINT raises KeyboardInterrupt here, whatever the shell set (it ignores it for jobs) or an earlier test left."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
