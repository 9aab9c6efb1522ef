"""Spans: names for the parts of a program, under which its tasks are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from shoal import checks
from shoal.errors import UsageError


@contextmanager
def span(*tags: str) -> Iterator[str]:
    """Submit tasks under a name; inside of others, under all of them.

    Parameters
    ----------
    *tags
        Names, each inside of the one before. Other spans of the same names are apart from this one.

    Yields
    ------
    str
        The id of the (innermost) span.

    Raises
    ------
    UsageError
        If there is no name, or one is no text.

    Examples
    --------
    >>> with span("load"):  # doctest: +SKIP
    ...     frame = client.persist(frame)
    >>> client.spans()  # doctest: +SKIP
    [{'name': ['load'], 'tasks': 120, 'seconds': 31.4, ...}]
    """
    import dask

    if not tags:
        raise UsageError("a span needs at least one name")
    tags = tuple(checks.name(tag, "a name of a span") for tag in tags)
    around: dict[str, Any] = dask.get_annotations().get("span") or {"name": (), "ids": ()}
    ids = tuple(uuid4().hex for _ in tags)
    with dask.annotate(span={"name": (*around["name"], *tags), "ids": (*around["ids"], *ids)}):
        yield ids[-1]
