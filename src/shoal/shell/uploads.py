"""Files that users send: stored in a process's own directory, found by its imports."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import zipfile
from pathlib import Path

from shoal import private
from shoal.errors import UsageError


def store_file(directory: Path, filename: str, data: bytes, load: bool = True) -> Path:
    """Write a file into ``directory``, and import it anew if it is a module or an archive of such.

    Raises
    ------
    UsageError
        If the name is a path.
    Exception
        What the import raised, with a note that names the file.
    """
    if filename != os.path.basename(filename) or filename in ("", ".", ".."):
        raise UsageError(f"the name of an uploaded file must be no path, got {filename!r}")
    path = directory / filename
    private.write(path, data)
    if load and path.suffix in (".py", ".egg", ".zip"):
        try:
            _import(path)
        except Exception as error:
            error.add_note(f"(while importing the uploaded file {filename!r})")
            raise
    return path


def _import(path: Path) -> None:
    if path.suffix == ".py":
        _find_in(str(path.parent))
        names = [path.stem]
        cached = path.parent / "__pycache__"
        for stale in cached.glob(f"{path.stem}.*.pyc") if cached.exists() else ():
            private.remove(stale)
    else:
        _find_in(str(path))
        with zipfile.ZipFile(path) as archive:
            parts = [name.split("/") for name in archive.namelist()]
        names = [first[0].removesuffix(".py") for first in parts if len(first) == 1 and first[0].endswith(".py")]
        names += [first[0] for first in parts if len(first) == 2 and first[1] == "__init__.py"]
    importlib.invalidate_caches()
    for name in names:
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
        importlib.import_module(name)


def _find_in(entry: str) -> None:
    if entry not in sys.path:
        sys.path.insert(0, entry)
    sys.path_importer_cache.pop(entry, None)


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    private.make_directories(path if entry.is_dir() else path.parent)
    if not entry.is_dir():
        with archive.open(entry) as source, private.replacing(path) as target:
            shutil.copyfileobj(source, target)


def unpack(directory: Path, data: bytes, update_path: bool) -> None:
    """Unpack an archive into ``directory``; what is at its top is put where modules are found, if that is wanted.

    Raises
    ------
    UsageError
        If a name in it leads out of the directory.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = directory.resolve()
        for name in archive.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise UsageError(f"{name!r} in the archive leads out of the directory")
        for entry in archive.infolist():
            _extract(archive, entry, root / entry.filename)
        if update_path:
            for top in {name.split("/")[0] for name in archive.namelist()}:
                _find_in(str(root / top))
    importlib.invalidate_caches()
