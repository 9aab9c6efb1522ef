"""The house rules that no linter checks."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal.shell.interpreter import command

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


def test_every_page_is_found_from_the_map_or_the_readme() -> None:
    """Nobody reads a page that no other one names."""
    text = (ROOT / "ARCHITECTURE.md").read_text() + (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text] == []


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Tests, tools, examples and modules, by their paths from the top or from the package."""
    places = (ROOT, ROOT / "src", ROOT / "src" / "shoal")
    named = re.findall(
        r"`((?:tests|tools|benchmarks|examples|docs|src|shoal|core|shell|sim)/[\w/.-]+)[`:]", page.read_text()
    )
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


#: Calls that create, change or remove files; ``private.py`` has them all, with the checks that they need.
_ON_DISK = {
    *("os." + name for name in ("open", "mkdir", "makedirs", "unlink", "remove", "rmdir", "removedirs", "rename")),
    *("os." + name for name in ("renames", "replace", "link", "symlink", "mkfifo", "mknod", "chmod", "truncate")),
    *("shutil." + name for name in ("rmtree", "move", "copy", "copy2", "copyfile", "copytree", "unpack_archive")),
    *("tempfile." + name for name in ("mkdtemp", "mkstemp", "mktemp", "TemporaryDirectory", "NamedTemporaryFile")),
    "tempfile.TemporaryFile",
}
_METHODS = {"write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "symlink_to", "hardlink_to", "extractall"}
#: Where one is needed all the same, and why it does no harm.
_ALLOWED = {
    ("compat/utils.py", "tempfile.TemporaryDirectory"): "mode 0700, and a name that nobody can foresee",
    ("shell/usage.py", "open"): "a file of the kernel's",
    ("shell/standard.py", "os.open"): "/dev/null",
    ("programs/processes.py", "open"): "a descriptor of memory, not a name",
}


def _touches_the_disk(call: ast.Call) -> str:
    """The name of what is called, if it may create, change or remove a file."""
    name = ast.unparse(call.func)
    method = name.rpartition(".")[2]
    if name in _ON_DISK or (method in _METHODS and not name.startswith("private.")):
        return name
    if method == "open" and not name.startswith(("os.", "webbrowser.", "private.")):
        at = 1 if name in ("open", "io.open", "gzip.open", "bz2.open", "lzma.open") else 0
        given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[at : at + 1]
        modes = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if given and not modes and name in ("open", "io.open"):
            return name  # a mode that cannot be known here
        if modes and set(modes[0]) & set("wax+"):
            return name
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_files_are_made_and_removed_by_one_module(path: Path) -> None:
    """``private.py``: so that no other user of the machine can be there first, read, or replace what shoal writes."""
    if path.name == "private.py":
        return
    where = str(path.relative_to(ROOT / "src" / "shoal"))
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = {(name, call.lineno) for call in calls if (name := _touches_the_disk(call))}
    assert not [one for one in found if (where, one[0]) not in _ALLOWED], where


@pytest.mark.parametrize(
    "code",
    ["open(p, 'w')", "open(p, mode='ab')", "open(p, m)", "Path(p).open('wb')", "p.write_text('')", "gzip.open(p, 'wb')",
     "os.makedirs(p)", "shutil.rmtree(p)", "p.unlink()", "tempfile.mkdtemp()", "archive.extractall(p)"],
)  # fmt: skip
def test_the_rule_on_files_sees_each_way(code: str) -> None:
    """To write or remove one."""
    (call, *_) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert _touches_the_disk(call)


def test_shoals_own_processes_load_no_process_pools() -> None:
    """Loading them takes 20 ms of each start; a user's program needs them, since dask does."""
    code = "import sys, shoal.programs.head, shoal.programs.fork_server, shoal.programs.worker_main; " + (
        "print({'multiprocessing', 'dask', 'concurrent.futures.process'} & set(sys.modules))"
    )
    ours = [sys.executable, "-X", "shoal-process", "-c", code]
    assert subprocess.run(ours, capture_output=True, text=True, check=True).stdout == "set()\n"
    assert "-X shoal-process" in " ".join(command("shoal.programs.head"))
