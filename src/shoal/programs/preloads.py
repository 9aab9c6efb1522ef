"""Modules that a user has run in a scheduler, a worker or a nanny when it starts, and torn down when it closes.

Each is a module's name, a path to a ``.py`` file, or source text. ``dask_setup(server)`` and ``dask_teardown(server)``
(or ``setup`` and ``teardown``) are called, plain or async; a click command in place of the first takes the arguments.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.errors import ConfigurationError, StartError
from shoal.shell import doors


class Preloads:
    """The modules of one server, in the order in which they were named.

    Parameters
    ----------
    names
        Names, paths or source text.
    arguments
        For each of them.
    """

    def __init__(self, names: Sequence[str], arguments: Sequence[Sequence[str]]) -> None:
        self._named = list(zip(names, arguments, strict=True))
        self._running: list[ModuleType] = []

    async def start(self, server: Any) -> None:
        """Import them and set them up.

        Raises
        ------
        Exception
            What the module raised, with a note that names it.
        """
        for name, arguments in self._named:
            try:
                module = _load(name)
                await _set_up(module, server, list(arguments))
            except BaseException as error:
                if isinstance(error, Exception):
                    error.add_note(f"(in the preload {_short(name)!r})")
                    raise
                if doors.is_for_us(error, awaiting=True):
                    raise
                raise StartError(f"the preload {_short(name)!r} raised {doors.text_of(error)}") from error
            self._running.append(module)

    async def stop(self, server: Any) -> None:
        """Tear them down, the last first; one that fails is logged."""
        running, self._running = self._running, []
        for module in reversed(running):
            function = getattr(module, "dask_teardown", None) or getattr(module, "teardown", None)
            if function is None:
                continue
            await doors.wait("preload", function, server)


def preloads(names: Any, arguments: Any, section: str) -> Preloads:
    """What the arguments ``preload`` and ``preload_argv`` mean, or the configuration where they are None.

    Raises
    ------
    ConfigurationError
        If they make no sense.
    """
    if names is None:
        names = config.get(f"{section}.preload") or []
    if arguments is None:
        arguments = config.get(f"{section}.preload-argv") or []
    names = [names] if isinstance(names, str) else list(names)
    arguments = [arguments] if isinstance(arguments, str) else list(arguments)
    if not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"preload must be names of modules, paths or source text, got {names!r}")
    if not arguments or isinstance(arguments[0], str):
        arguments = [arguments] * len(names)  # the same for each
    if len(arguments) != len(names):
        raise ConfigurationError(f"preload_argv has {len(arguments)} lists of arguments for {len(names)} preloads")
    return Preloads(names, arguments)


def _short(name: str) -> str:
    first = name.strip().splitlines()[0] if name.strip() else name
    return first if first == name else f"{first} …"


def _load(name: str) -> ModuleType:
    if name.endswith(".py"):
        path = os.path.abspath(os.path.expanduser(name))
        return _from_spec(importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path), path)
    if "\n" in name or not all(part.isidentifier() for part in name.split(".")):
        module = ModuleType(f"shoal_preload_{uuid4().hex}")
        exec(compile(name, "<preload>", "exec"), module.__dict__)
        return module
    return importlib.import_module(name)


def _from_spec(spec: Any, path: str) -> ModuleType:
    if spec is None or not os.path.exists(path):
        raise ConfigurationError(f"there is no preload {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def _set_up(module: ModuleType, server: Any, arguments: list[str]) -> None:
    import click

    function = getattr(module, "dask_setup", None) or getattr(module, "setup", None)
    if function is None:
        return
    if isinstance(function, click.Command):
        with function.make_context(module.__name__, list(arguments), allow_extra_args=False) as context:
            value = function.callback(server, *context.args, **context.params) if function.callback else None
    else:
        value = function(server)
    await doors.settled(value)
