"""What a process of shoal's own does before it runs code of users."""

from __future__ import annotations

import os

from setproctitle import setproctitle


def take_title(title: str) -> None:
    """Show in ``ps`` what this is; the environment, as /proc shows it, is left alone."""
    os.environ["SPT_NOENV"] = "1"
    setproctitle(title)
    del os.environ["SPT_NOENV"]


def expect_imports() -> None:
    """Have what users' functions import by the name of ``distributed`` be shoal."""
    from shoal.compat.importing import where_nothing_else_is

    where_nothing_else_is()


def expect_tasks() -> None:
    """As :func:`expect_imports`; and have collections that tasks compute do so on the cluster."""
    from shoal.client.collections import take_over

    expect_imports()
    take_over()
