"""How the cluster's secret is kept out of the environment and the configuration that code of users sees."""

from __future__ import annotations

import ast
import base64
import json
import os
from collections.abc import MutableMapping
from typing import Any, Final

#: Where the configuration has it, in its own form and in that of dask's environment variables.
_PATH: Final = ("shoal", "security", "secret")
_VARIABLE: Final = "DASK_" + "__".join(_PATH).upper()
#: Variables that have a whole section of the configuration, the secret perhaps in it, and where that section is.
_SECTIONS: Final = {"DASK_" + "__".join(_PATH[:depth]).upper(): _PATH[:depth] for depth in range(1, len(_PATH))}
#: All of the configuration, as dask hands it to the processes that it starts.
_WHOLE: Final = "DASK_INTERNAL_INHERIT_CONFIG"


def is_secret(variable: str) -> bool:
    """Whether an environment variable holds it (and not the name of a file)."""
    return variable == "SHOAL_SECRET" or variable.upper() == _VARIABLE


def strip_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Take it out of ``environment``, this process's own by default."""
    found = os.environ if environment is None else environment
    for name in [name for name in found if is_secret(name)]:
        del found[name]
    for name in [name for name in found if name.upper() in _SECTIONS]:
        _strip_section(found, name, _SECTIONS[name.upper()])
    if _WHOLE in found:
        _strip_whole(found)


def _strip_section(environment: MutableMapping[str, str], name: str, path: tuple[str, ...]) -> None:
    """Take the secret out of a variable that holds a mapping, written as Python writes it."""
    try:
        value = ast.literal_eval(environment[name])
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return  # to dask it is mere text, in which no secret is looked for
    tree = value
    for part in reversed(path):
        tree = {part: tree}
    kept = without(tree)
    if kept is not tree:
        for part in path:
            kept = kept[part]
        environment[name] = repr(kept)


def _strip_whole(environment: MutableMapping[str, str]) -> None:
    try:
        tree = json.loads(base64.urlsafe_b64decode(environment[_WHOLE]))
    except (ValueError, RecursionError):
        return  # dask does not understand it either
    kept = without(tree) if isinstance(tree, dict) else tree
    if kept is not tree:
        environment[_WHOLE] = base64.urlsafe_b64encode(json.dumps(kept).encode()).decode()


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
    if not isinstance(shoal, dict) or not isinstance(shoal.get("security"), dict) or "secret" not in shoal["security"]:
        return tree
    security = {name: value for name, value in shoal["security"].items() if name != "secret"}
    return {**tree, "shoal": {**shoal, "security": security}}
