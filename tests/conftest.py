"""Settings of Hypothesis: the same examples in each run, or (``--hypothesis-profile=explore``) new ones, and more."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("steady", max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=2000, stateful_step_count=80, deadline=None)
settings.load_profile("steady")

# A shell ignores SIGINT in what it starts in the background, and so would the programs that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)
