"""The command that runs one of shoal's own modules in a Python of the same kind as this one."""

from __future__ import annotations

import subprocess
import sys

from shoal import config

_CODE = """import sys
first, rest = {first!r}, {rest!r}
known = set(sys.path)
sys.path[:0] = [entry for entry in first if entry not in known]
sys.path += [entry for entry in rest if entry not in known]
from {module} import main
main()
"""


def command(module: str, *arguments: str) -> list[str]:
    """Run ``main`` of ``module``, which finds ``arguments`` in ``sys.argv``.

    It has the options of this interpreter (``-O``, ``-I``, ``-W``, ``-X``), and finds modules where this process does.
    ``-X shoal-process`` tells ``shoal/__init__.py`` that it is no program of a user's.
    The working directory is not a place for modules unless it is one here: it may be one to which others write, as
    ``/tmp``.
    """
    path = config.import_path()
    given: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    options = given if sys.flags.isolated or "-P" in given else ["-P", *given]
    options = [*options, "-X", "shoal-process"]
    return [sys.executable, *options, "-c", _CODE.format(first=path[:1], rest=path[1:], module=module), *arguments]
