"""The house rules that no linter checks."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import shoal

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    """At most 600 lines, and a docstring at the top."""
    text = path.read_text()
    # The protocol is in one file, whatever its length: that is what makes it readable as a whole.
    assert text.count("\n") <= (1000 if path.name == "messages.py" else 600)
    assert text.startswith(('"""', "#!/"))


def test_every_export_exists_and_is_documented() -> None:
    """``from shoal import *`` works, lazily."""
    assert set(shoal.__all__) == set(shoal._EXPORTS)
    for name in shoal.__all__:
        thing = getattr(shoal, name)
        assert inspect.getdoc(thing), name
        assert hasattr(importlib.import_module(shoal._EXPORTS[name]), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shoal.nothing  # type: ignore[attr-defined]


def test_public_methods_are_documented() -> None:
    """Of every exported class."""
    for name in shoal.__all__:
        thing = getattr(shoal, name)
        if inspect.isclass(thing):
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{method}"


def test_every_file_is_on_the_map() -> None:
    """ARCHITECTURE.md names every module, or the package that it is in."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in SOURCES:
        if path.name not in ("__init__.py", "__main__.py"):
            assert path.name in text or f"`{path.parent.name}/`" in text, path.name
