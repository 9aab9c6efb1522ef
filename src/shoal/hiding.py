"""How the cluster's secret is kept out of the environment and the configuration that code of users sees."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any, Final

#: Where the configuration has it, in its own form and in that of dask's environment variables.
_PATH: Final = ("shoal", "security", "secret")
_VARIABLE: Final = "DASK_" + "__".join(_PATH).upper()


def is_secret(variable: str) -> bool:
    """Whether an environment variable holds it (and not the name of a file)."""
    return variable == "SHOAL_SECRET" or variable.upper() == _VARIABLE


def strip_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Take it out of ``environment``, this process's own by default."""
    found = os.environ if environment is None else environment
    for name in [name for name in found if is_secret(name)]:
        del found[name]


def strip_tree(tree: dict[str, Any]) -> str | None:
    """Take it out of a configuration; return it."""
    found: Any = tree
    for part in _PATH[:-1]:
        found = found.get(part)
        if not isinstance(found, dict):
            return None
    secret: str | None = found.pop(_PATH[-1], None)
    return secret


def without(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration that does not have it; ``tree`` stays as it is."""
    shoal = tree.get("shoal")
    if not isinstance(shoal, dict) or not isinstance(shoal.get("security"), dict):
        return tree
    security = {name: value for name, value in shoal["security"].items() if name != "secret"}
    return {**tree, "shoal": {**shoal, "security": security}}
