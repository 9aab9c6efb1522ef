"""What a process of shoal's own does before it runs code of users."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from setproctitle import setproctitle


def take_title(title: str) -> None:
    """Show in ``ps`` what this is; the environment, as /proc shows it, is left alone."""
    os.environ["SPT_NOENV"] = "1"
    setproctitle(title)
    del os.environ["SPT_NOENV"]


def expect_imports() -> None:
    """Have what users' functions import by the name of ``distributed`` be shoal."""
    from shoal.compat.importing import where_nothing_else_is

    where_nothing_else_is()


def expect_tasks() -> None:
    """As :func:`expect_imports`; and have collections that tasks compute do so on the cluster."""
    expect_imports()
    if "dask.config" in sys.modules:
        _take_over()
    else:  # dask takes longer to import than the rest of a worker, and most do not need it
        sys.meta_path.insert(0, _WhenImported("dask.config", _take_over))


def _take_over() -> None:
    from shoal import config
    from shoal.client.collections import take_over

    config.hide_secret()  # dask has read its files
    take_over()


class _WhenImported(importlib.abc.MetaPathFinder):
    """Calls a function when a module has been imported, once."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def then(module: ModuleType) -> None:
                execute(module)
                self._then()

            loader.exec_module = then  # type: ignore[method-assign]
        return spec
