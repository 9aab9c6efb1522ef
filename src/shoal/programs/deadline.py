"""The end of a local cluster's process comes, whatever its scheduler, its nannies and its event loop are at."""

from __future__ import annotations

import os
import select
import threading
import time

from shoal.programs.processes import end_descendants
from shoal.shell import standard


class Deadline:
    """Ends this process, and all that it started, where it does not end by itself once its owner is gone.

    It is a thread that waits for the other end of stdin to close, so that it works whatever the event loop is at.

    Parameters
    ----------
    limit
        Seconds that the end may take.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._begun = threading.Event()
        threading.Thread(target=self._watch_owner, name="shoal-owner", daemon=True).start()
        threading.Thread(target=self._wait, name="shoal-deadline", daemon=True).start()

    def begin(self) -> None:
        """From now on the time counts."""
        self._begun.set()

    def _watch_owner(self) -> None:
        poll = select.poll()
        poll.register(0, 0)  # no more than that the other end has gone
        while not any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poll.poll()):
            pass
        self.begin()

    def _wait(self) -> None:
        self._begun.wait()
        time.sleep(self._limit)
        text = f"shoal cluster: it did not end within {self._limit:g} s, and is killed with all that it started\n"
        standard.pass_on(text.encode())
        end_descendants(os.getpid())
        os._exit(os.EX_SOFTWARE)
