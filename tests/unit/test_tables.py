"""The transition tables: closed, reachable, without dead ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.core.client.future import FUTURE
from shoal.core.machine import Table
from shoal.core.nanny.child import CHILD
from shoal.core.scheduler.roster import WORKER
from shoal.core.scheduler.task import TASK
from shoal.core.session import SESSION
from shoal.core.worker.attempt import ATTEMPT
from shoal.core.worker.replica import REPLICA
from shoal.errors import IllegalTransition

TABLES: list[Table[Any, Any]] = [TASK, WORKER, ATTEMPT, REPLICA, CHILD, SESSION, FUTURE]


@pytest.fixture(params=TABLES, ids=[table.name for table in TABLES])
def table(request: Any) -> Table[Any, Any]:
    found: Table[Any, Any] = request.param
    return found


def test_every_state_can_be_reached(table: Table[Any, Any]) -> None:
    """From the initial one; a session has two, by who dials."""
    starts = {table.initial} | ({table.states.GREETING} if table is SESSION else set())
    reached = set(starts)
    while more := {after for (state, _), after in table.rows.items() if state in reached} - reached:
        reached |= more
    assert reached == set(table.states)


def test_every_state_but_the_terminal_ones_is_left(table: Table[Any, Any]) -> None:
    """No dead end that is not meant as one."""
    left = {state for state, _ in table.rows}
    assert set(table.states) - left == set(table.terminal)


def test_every_event_is_used(table: Table[Any, Any]) -> None:
    """None is declared in vain."""
    assert {event for _, event in table.rows} == set(table.events)


def test_each_pair_does_what_the_table_says_and_no_other_is_allowed(table: Table[Any, Any]) -> None:
    """The look-up agrees with the rows; all else is an error that carries the story."""
    for state in table.states:
        for event in table.events:
            if (state, event) in table.rows:
                assert table.advance(state, event) == table.rows[(state, event)]
                assert table.allows(state, event)
            else:
                with pytest.raises(IllegalTransition, match="told before") as info:
                    table.advance(state, event, "x", [("told before",)])
                assert (info.value.machine, info.value.subject) == (table.name, "x")


def test_a_table_with_a_way_out_of_a_terminal_state_is_refused() -> None:
    """The declaration is checked."""
    state, _ = next(iter(FUTURE.rows))
    with pytest.raises(ValueError, match="terminal"):
        Table("bad", FUTURE.states, FUTURE.events, FUTURE.initial, FUTURE.rows, [state])


def test_the_drawings_in_the_documentation_are_those_of_the_tables() -> None:
    """``python tools/machines.py`` was run after the last change of a table."""
    tool = Path(__file__).parents[2] / "tools" / "machines.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], check=False)
    assert done.returncode == 0, "run python tools/machines.py"
