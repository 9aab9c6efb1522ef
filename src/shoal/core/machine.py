"""Transition tables as data.

Rules: one table per lifecycle; it is closed, and tells the destination. A pair that is not in it is an
:class:`~shoal.errors.IllegalTransition` that carries the story; there is no implied route. Where the outcome depends
on data, that is two events, not a branch that lands somewhere else.

States and events are ``IntEnum`` members, so that a step is two list look-ups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from shoal.errors import IllegalTransition

S = TypeVar("S", bound=IntEnum)
E = TypeVar("E", bound=IntEnum)


class Table(Generic[S, E]):
    """A closed transition table.

    Parameters
    ----------
    name
        What the machine describes, for errors and diagrams.
    states, events
        The two enums; their values count from 0.
    initial
        The state of a new record.
    rows
        ``{(state, event): next state}``; nothing else is allowed.
    terminal
        States that nothing leaves.
    """

    __slots__ = ("_next", "events", "initial", "name", "rows", "states", "terminal")

    def __init__(
        self,
        name: str,
        states: type[S],
        events: type[E],
        initial: S,
        rows: Mapping[tuple[S, E], S],
        terminal: Iterable[S] = (),
    ) -> None:
        self.name: Final = name
        self.states: Final = states
        self.events: Final = events
        self.initial: Final = initial
        self.rows: Final = dict(rows)
        self.terminal: Final = frozenset(terminal)
        for enum in (states, events):
            if [int(member) for member in enum] != list(range(len(enum))):
                raise ValueError(f"{name}: the members of {enum.__name__} must count from 0")
        for state, event in self.rows:
            if state in self.terminal:
                raise ValueError(f"{name}: {state.name} is terminal but leaves on {event.name}")
        self._next: list[list[S | None]] = [[self.rows.get((s, e)) for e in events] for s in states]

    def advance(self, state: S, event: E, subject: str = "?", story: Iterable[Any] = ()) -> S:
        """Return the state after ``event``.

        Raises
        ------
        IllegalTransition
            If the table has no row for the pair.
        """
        after = self._next[state][event]
        if after is None:
            raise IllegalTransition(self.name, subject, state.name, event.name, list(story))
        return after

    def allows(self, state: S, event: E) -> bool:
        """Whether the table holds a row for the pair."""
        return self._next[state][event] is not None

    def reachable(self) -> set[S]:
        """The states that some sequence of events leads to from the initial one."""
        seen: set[S] = {self.initial}
        todo = [self.initial]
        while todo:
            here = todo.pop()
            for after in self._next[here]:
                if after is not None and after not in seen:
                    seen.add(after)
                    todo.append(after)
        return seen

    def render(self) -> str:
        """The table as a Mermaid state diagram; ``tools/machines.py`` puts it into the documentation."""
        edges: dict[tuple[S, S], list[str]] = {}
        for (state, event), after in self.rows.items():
            edges.setdefault((state, after), []).append(event.name.lower().replace("_", " "))
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial.name.lower()}"]
        for (state, after), names in sorted(edges.items()):
            lines.append(f"    {state.name.lower()} --> {after.name.lower()}: {', '.join(names)}")
        lines += [f"    {state.name.lower()} --> [*]" for state in sorted(self.terminal)]
        return "\n".join(lines)
