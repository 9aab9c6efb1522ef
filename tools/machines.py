"""Draw the transition tables of all machines into docs/machines.md.

    python tools/machines.py [--check]

With ``--check`` nothing is written, and the status is 1 if the file is out of date.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoal.core.client.future import FUTURE
from shoal.core.machine import Table
from shoal.core.nanny.child import CHILD
from shoal.core.scheduler.roster import WORKER
from shoal.core.scheduler.task import TASK
from shoal.core.session import SESSION
from shoal.core.worker.attempt import ATTEMPT
from shoal.core.worker.replica import REPLICA

FILE = Path(__file__).parents[1] / "docs" / "machines.md"

#: Each table, where it is, and what it describes.
MACHINES: list[tuple[Table[Any, Any], str, str]] = [
    (TASK, "core/scheduler/task.py", "A task, as the scheduler sees it."),
    (WORKER, "core/scheduler/roster.py", "A worker, as the scheduler sees it."),
    (ATTEMPT, "core/worker/attempt.py", "One execution of a task on a worker."),
    (REPLICA, "core/worker/replica.py", "One copy of a value on a worker."),
    (CHILD, "core/nanny/child.py", "The worker process, as its nanny sees it."),
    (FUTURE, "core/client/future.py", "A key that a client holds."),
    (SESSION, "core/session.py", "A link between two processes."),
]


def render() -> str:
    """All tables, as one page."""
    parts = [
        "# The state machines",
        "Drawn from the tables in the code by `python tools/machines.py`; a test keeps this page in step. Nothing moves "
        "between states in any other way: an event that has no arrow here is an error that carries the story.",
        "A worker keeps two machines for each key, an attempt and a replica, under a goal (what the scheduler wants of "
        "the key there: compute it, hold a copy, drop it). The names that users see are readings of the three: "
        "`cancelled` is a goal to drop while a thread or a transfer is at work, `resumed` is one that has changed to "
        "the opposite kind meanwhile.",
    ]
    for table, path, what in MACHINES:
        parts += [f"## {table.name}", f"{what} `src/shoal/{path}`", f"```mermaid\n{table.render()}\n```"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = render()
    if parser.parse_args().check:
        raise SystemExit(FILE.read_text() != text)
    FILE.write_text(text)


if __name__ == "__main__":
    main()
