"""What requests of clients may be asked with: each argument means the same everywhere, and is checked by its name."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from shoal.errors import UsageError
from shoal.fields import MOST, Count, Finite, Key, Name

_Number = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]


class Arguments(msgspec.Struct, kw_only=True, gc=False):
    """Arguments of :class:`Meet` and :class:`Query`; what is not named here is for the case that takes it."""

    timeout: Finite | None = None
    most: Count = 0
    count: Count | None = None
    number: _Number = 0
    lease: Name = ""
    leases: list[Name] = []
    names: list[Name | float | int] = []
    first: bool = False
    override: bool = False
    complete: bool = False
    by: Name = ""
    key: Key | None = None
    keys: list[Key] | None = None
    workers: list[Name] | None = None
    n_workers: _Number = -1
    summary: bool = True
    topic: Name | None = None
    start: Finite | None = None
    stop: Finite | None = None
    target_duration: Finite = 0.0
    attribute: Name = ""
    n: _Number | None = None
    minimum: _Number | None = None
    target: _Number | None = None
    memory_ratio: Finite | None = None


def check(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a request, if they are what their names say.

    Raises
    ------
    UsageError
        Naming the one that is not.
    """
    try:
        msgspec.convert(args, Arguments)
    except msgspec.ValidationError as error:
        raise UsageError(f"a request has a bad argument: {error}") from error
    return args
