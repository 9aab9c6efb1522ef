"""Settings of Hypothesis: the same examples in each run, or (``--hypothesis-profile=explore``) new ones, and more."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=2000, stateful_step_count=80, deadline=None)
settings.load_profile("steady")
