"""The only reader of configuration, environment and the files that hold secrets.

Configuration is dask's (``dask.config``): keys that mean the same keep their ``distributed.*`` name, shoal's own are
under ``shoal.*``; the defaults are in ``shoal.yaml`` beside this file. A worker process gets the effective values
from whoever started it, so that it need not import dask to start.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
import resource
import secrets
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from shoal import checks, hiding, private
from shoal.errors import ConfigurationError

SECRET_BYTES = 32
#: A secret of fewer bytes can be guessed by whoever sees one handshake.
SHORTEST_SECRET = 16
_MISSING: Any = object()
_inherited: dict[str, Any] | None = None
#: A secret that was taken out of the environment or the configuration, and where it was.
_hidden: tuple[bytes, str] | None = None
#: The content of ``shoal.yaml``. dask's own tree may lose it: what is first set there in a ``with`` block takes all
#: that came into its section meanwhile away with it.
_defaults: dict[str, Any] = {}


def get(key: str, default: Any = None) -> Any:
    """Return the configured value of ``key``, as ``"distributed.scheduler.allowed-failures"``."""
    if _inherited is not None:
        return _find(_inherited, key, default)
    import dask.config

    known = _find(_load_defaults(), key, default)
    found = dask.config.get(key, _MISSING)
    if found is _MISSING:
        return known
    return dask.config.merge(known, found) if isinstance(known, dict) and isinstance(found, dict) else found


def _find(tree: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return tree


def inherit(values: dict[str, Any]) -> None:
    """Use ``values`` (what :func:`export` gave in the parent) instead of reading any configuration here."""
    global _inherited
    _inherited = values


def export(overlay: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that a worker needs, as plain values; ``overlay`` counts for more than what is set here."""
    if _inherited is not None and not overlay:
        return _inherited
    import dask.config

    if _inherited is None:
        tree = {name: get(name, {}) for name in ("distributed", "shoal")}
        tree["temporary-directory"] = dask.config.get("temporary-directory", None)
    else:
        tree = _inherited
    exported: dict[str, Any] = json.loads(json.dumps(hiding.without(_merged(tree, overlay)), default=str))
    return exported


def _merged(tree: dict[str, Any], overlay: dict[str, Any] | None) -> dict[str, Any]:
    """``tree`` under ``overlay``, whose keys may be written with dots."""
    if not overlay:
        return tree
    import dask.config

    nested: dict[str, Any] = {}
    for key, value in overlay.items():
        *path, last = str(key).split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        known = node.get(last)
        node[last] = dask.config.merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    merged: dict[str, Any] = dask.config.merge(tree, nested)
    return merged


def import_path() -> list[str]:
    """Where this process finds modules, for the processes that it starts: they must find the user's own as well."""
    found = []
    for entry in sys.path:
        try:
            found.append(os.path.abspath(entry))
        except OSError:
            pass  # it is the working directory, which was removed
    return found


def extend_import_path(entries: list[str]) -> None:
    """Look for modules in ``entries`` too: first in the first one, then in the places that are known here."""
    known = set(sys.path)
    sys.path[:0] = [entry for entry in entries[:1] if entry not in known]
    sys.path.extend(entry for entry in entries[1:] if entry not in known)


def _load_defaults() -> dict[str, Any]:
    if _defaults:
        return _defaults
    import dask.config
    import yaml

    with open(Path(__file__).with_name("shoal.yaml")) as file:
        _defaults.update(yaml.safe_load(file))
    dask.config.update_defaults(_defaults)
    known = set(_flatten(_defaults["shoal"], "shoal"))
    for key in _flatten(dask.config.get("shoal", {}), "shoal"):
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            warnings.warn(f"unknown configuration key {key!r}{advice}", stacklevel=4)
    return _defaults


def _flatten(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict) or not tree:
        return [prefix]
    return [leaf for name, node in tree.items() for leaf in _flatten(node, f"{prefix}.{str(name).replace('_', '-')}")]


#: Seconds from which on a duration is for ever.
LONGEST = 1e9


def seconds(value: Any, name: str) -> float | None:
    """Return a duration given as seconds or as text (``"5 minutes"``), in seconds; None and infinity are None.

    Raises
    ------
    ConfigurationError
        If it is no duration, naming ``name``.
    """
    if value is None:
        return None
    if isinstance(value, int | float) or (not isinstance(value, str | bytes) and hasattr(type(value), "__float__")):
        return _finite(value, name)
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "m": 60.0, "min": 60.0,
             "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0,
             "day": 86400.0, "days": 86400.0}  # fmt: skip
    number, unit = _split_unit(str(value))
    try:
        return _finite(float(number or 1) * units[unit.lower() or "s"], name)
    except (ValueError, KeyError):
        raise ConfigurationError(f"{name} is no duration: {value!r:.200}; write seconds, or as '5 minutes'") from None


def _finite(value: Any, name: str) -> float | None:
    """Seconds that timers can count; what is longer than a life is for ever."""
    try:
        found = value if isinstance(value, int) else float(value)
        if math.isnan(found):
            raise ValueError
    except Exception:
        raise ConfigurationError(f"{name} is no duration: {value!r:.200}") from None
    return None if found > LONGEST else found


def executors(value: Any) -> dict[str, int]:
    """Return pools of threads, by name, as ``{"io": 4}``; None is none.

    Raises
    ------
    ConfigurationError
        If a name or a number makes no sense.
    """
    found: dict[str, int] = {}
    try:
        for name, size in (value or {}).items():
            if name == "default":
                raise ValueError
            found[checks.name(name, "a name in executors")] = checks.whole(size, f"executors[{name!r}]", 1, 10_000)
    except (AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"executors must map names to numbers of threads, as {{'io': 4}}, got {value!r:.500}"
            + (f": {error}" if str(error) else "")
        ) from None
    return found


def fraction(value: Any, name: str) -> float:
    """Return a share of a limit, between 0 and 1; false and null are 0: no limit.

    Raises
    ------
    ConfigurationError
        If it is none, naming ``name``.
    """
    if value is None or value is False:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name} is no fraction between 0 and 1, nor false: {value!r}")
    return float(value)


def log_length() -> int:
    """Lines of the log that each program keeps."""
    return int(get("distributed.admin.log-length", 10_000))


def resume_timeout() -> float:
    """Seconds for which a link may be cut before it counts as lost."""
    return seconds(get("shoal.comm.resume-timeout", 60.0), "shoal.comm.resume-timeout") or 0.0


#: The least of ``shoal.comm.link-bytes``: what may be unacknowledged on a link on which nothing is wrong, four times.
_LEAST_LINK_BYTES = 4 << 20


def link_bytes() -> int:
    """Bytes that may be owed to a peer before its link counts as full.

    Raises
    ------
    ConfigurationError
        If it is too little for a link on which nothing is wrong.
    """
    name = "shoal.comm.link-bytes"
    found = nbytes(get(name, "8 MiB"), name)
    if found < _LEAST_LINK_BYTES:
        raise ConfigurationError(f"{name} must be {_LEAST_LINK_BYTES} (4 MiB) or more, got {found}")
    return found


def silence_timeout() -> float:
    """Seconds of silence after which a link over the network is dead.

    Raises
    ------
    ConfigurationError
        If it is not more than nothing.
    """
    name = "distributed.comm.timeouts.tcp"
    given = get(name, 30.0)
    found = seconds(given, name)
    if not found or found <= 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds, and not for ever, got {given!r}")
    return found


def owed_bytes() -> int:
    """Bytes that a client may owe to the scheduler before its submissions wait.

    Raises
    ------
    ConfigurationError
        If it is nothing.
    """
    name = "shoal.client.owed-bytes"
    found = nbytes(get(name, "128 MiB"), name)
    if found < 1:
        raise ConfigurationError(f"{name} must be more than 0, got {found}")
    return found


def half_open() -> int:
    """Connections to one listener that may be under way without having proven anything."""
    found = get("shoal.comm.half-open", 256)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ConfigurationError(f"shoal.comm.half-open must be a number from 1 on, got {found!r}")
    return found


def plain() -> bool:
    """Whether machines may talk to each other without encryption."""
    return bool(get("shoal.security.plain", False))


def nbytes(value: Any, name: str) -> int:
    """Return a size given as a number or as text (``"4 GiB"``), in bytes.

    Raises
    ------
    ConfigurationError
        If it is no size, naming ``name``.
    """
    if isinstance(value, int | float):
        if not value >= 0:
            raise ConfigurationError(f"{name} cannot be {value!r}")
        return int(value)
    number, unit = _split_unit(str(value))
    powers = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
    text = unit.lower()
    base = 1024 if text.endswith("ib") else 1000
    try:
        size = float(number or 1) * base ** powers[text.removesuffix("b").removesuffix("i")]
    except (ValueError, KeyError):
        raise ConfigurationError(f"{name} is no size: {value!r}; write bytes, or as '4 GiB'") from None
    if size < 0:
        raise ConfigurationError(f"{name} cannot be negative: {value!r}")
    return int(size)


def _split_unit(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"\s*([0-9.]*(?:[eE][+-]?[0-9]+)?|inf)\s*([a-zA-Z]*)\s*", text)
    return (found[1], found[2]) if found else ("none", "")


def memory_limit(value: Any, nthreads: int = 1, name: str = "memory_limit") -> int:
    """Return the bytes that a worker may use; 0 means no limit.

    Parameters
    ----------
    value
        Bytes, text as ``"4 GiB"``, a fraction of the machine's memory (a float up to 1.0), ``"auto"`` (the machine's
        share by threads), or 0/None for none.
    nthreads
        Threads of the worker, for ``"auto"``.

    Raises
    ------
    ConfigurationError
        If the value makes no sense or is smaller than a Python process.
    """
    if value in (None, 0, "0"):
        return 0
    total = system_memory()
    if value == "auto":
        return int(total * min(1.0, nthreads / cpu_count()))
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else value
        except ValueError:
            pass
    if isinstance(value, bool):
        raise ConfigurationError(f"{name} cannot be {value!r}; give bytes, '4 GiB', a fraction, 'auto' or 0")
    if isinstance(value, float) and 0 < value <= 1:
        return int(total * value)
    size = nbytes(value, name)
    if size < 30_000_000:
        raise ConfigurationError(
            f"{name}={value!r} is {size} bytes, less than an idle worker process needs (30 MB); "
            "give bytes, '4 GiB', a fraction of the machine as 0.5, 'auto', or 0 for no limit"
        )
    return min(size, total) if total else size


def host_name() -> str:
    """The name of this machine."""
    return os.uname().nodename


def cpu_count() -> int:
    """Processors that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _read_cgroups("cpu.max", "cpu", ""):
        limit, _, period = quota.partition(" ")
        if limit.isdigit() and period.isdigit():
            count = min(count, max(1, -(-int(limit) // int(period))))
    return count


def system_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or what its control groups or its limits allow."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for text in _read_cgroups("memory.max", "memory", "memory.limit_in_bytes") if text.isdigit()]
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        limits.append(allowed)
    return min([total, *(limit for limit in limits if limit > 0)])


def _read_cgroups(
    name: str,
    controller: str,
    old_name: str,
    proc: Path = Path("/proc/self/cgroup"),
    top: Path = Path("/sys/fs/cgroup"),
) -> list[str]:
    """What a file of this process's control group says, and of all groups above it (of version 2, or of version 1)."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, file = top, name
        elif controller in controllers.split(","):
            root, file = top / controller, old_name
        else:
            continue
        path = root / group.lstrip("/")
        for place in [path, *path.parents]:
            if place == root or root in place.parents:
                try:
                    found.append((place / file).read_text().strip())
                except OSError:
                    pass  # it is not limited there, or (in a container) lies outside of what can be seen
    return found


def user_directory() -> Path:
    """Where this user's own files of shoal are, the secret among them.

    Raises
    ------
    FileNotFoundError
        If the user has no home.
    """
    if base := os.environ.get("XDG_CONFIG_HOME"):
        return Path(base) / "shoal"
    home = os.path.expanduser("~")
    if not os.path.isdir(home):
        raise FileNotFoundError(errno.ENOENT, "there is no home directory", home)
    return Path(home) / ".config" / "shoal"


def read_secret(path: Path) -> bytes:
    """Return the secret that a file holds.

    Raises
    ------
    ConfigurationError
        If others can read the file, it belongs to another user, or it holds none.
    """
    try:
        text, mode = private.read(path)
    except OSError as error:
        raise ConfigurationError(f"cannot read the secret file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigurationError(
            f"{path} can be read by others (mode {mode & 0o777:04o}), so what it holds is no secret; "
            f"chmod 600 {path}, or delete it to have a new one made"
        )
    return check_secret(text.strip(), f"the secret file {path}")


def check_secret(secret: bytes, where: str) -> bytes:
    """``secret``, if it is one.

    Raises
    ------
    ConfigurationError
        If it can be guessed, saying where it is from.
    """
    if len(secret) < SHORTEST_SECRET:
        size = "empty" if not secret else f"only {len(secret)} bytes long"
        raise ConfigurationError(
            f"the secret in {where} is {size}; {SHORTEST_SECRET} are needed, as from "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return secret


def default_secret() -> bytes:
    """The secret of this user: from the environment, the configuration, or the user's own file, made on first use.

    Where there is no place for that file, it is one for this process and those that it starts, with a warning.
    """
    if (given := _given_secret()) is not None:
        return check_secret(*given)
    if name := (os.environ.get("SHOAL_SECRET_FILE") or get("shoal.security.secret-file")):
        return read_secret(Path(str(name)).expanduser())
    try:
        path = user_directory() / "secret"
        if not path.exists():
            _make_secret(path)
    except OSError as error:
        return _passing_secret(error)
    return read_secret(path)


def _given_secret() -> tuple[bytes, str] | None:
    """What the environment or the configuration says it is, and where."""
    if (text := os.environ.get("SHOAL_SECRET")) is not None:
        return text.encode(), "the environment variable SHOAL_SECRET"
    if _hidden is not None:
        return _hidden
    if (text := get("shoal.security.secret")) is not None:
        return str(text).encode(), "the configuration key shoal.security.secret"
    return None


def hide_secret(secret: bytes | None = None) -> None:
    """Keep the secret from code of users that runs in this process, and from all that it starts.

    It is remembered here: ``secret``, or what the environment or the configuration says.
    """
    global _hidden
    _hidden = (secret, "this process") if secret is not None else _given_secret()
    hiding.strip_environment()
    if "dask.config" in sys.modules:  # it may be about to be imported
        hiding.strip_tree(sys.modules["dask.config"].config)


@lru_cache(maxsize=1)
def _new_secret() -> bytes:
    return secrets.token_hex(SECRET_BYTES).encode()


def _passing_secret(error: OSError) -> bytes:
    warnings.warn(
        f"the secret cannot be kept in {error.filename}: {error.strerror}; clients outside of this program cannot join "
        "its cluster. To let them, set SHOAL_SECRET_FILE to a file that holds a secret, or XDG_CONFIG_HOME to a "
        "directory that can be written to",
        stacklevel=4,
    )
    return _new_secret()


def _make_secret(path: Path) -> None:
    private.make_directories(path.parent.parent, private.DIRECTORY_MODE)
    private.Directory(path.parent)
    private.create_once(path, secrets.token_hex(SECRET_BYTES).encode())  # if another was faster, its secret counts


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once or not at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    private.make_directories(path.parent)
    private.write(path, text.encode(), keep_mode=False)


def stand_for_distributed() -> None:
    """Have the processes that this one starts take shoal for dask.distributed, too."""
    os.environ["SHOAL_AS_DISTRIBUTED"] = "1"


def stands_for_distributed() -> bool:
    """Whether this process is to take shoal for dask.distributed."""
    return bool(os.environ.get("SHOAL_AS_DISTRIBUTED"))


def effective_environment(extra: dict[str, Any], overlay: dict[str, Any] | None = None) -> dict[str, str]:
    """The environment of a worker process: ``extra``, then what is set here, then the configured defaults.

    Raises
    ------
    TypeError
        If what is configured is no mapping, naming the key.
    """
    merged: dict[str, str] = {}
    known = export(overlay).get("distributed", {}).get("nanny", {})
    for section in ("pre-spawn-environ", "environ"):
        values = known.get(section) or {}
        if not isinstance(values, dict):
            raise TypeError(f"distributed.nanny.{section} must be a mapping, got {values!r}")
        merged.update({name: str(value) for name, value in values.items() if value is not None})
    merged.update(os.environ)
    merged.update({str(name): str(value) for name, value in extra.items() if value is not None})
    if merged.get("PYTHONHASHSEED", "0") in ("", "0", "random"):
        merged["PYTHONHASHSEED"] = "6640"
    hiding.strip_environment(merged)
    if overlay or "dask.config" in sys.modules or "DASK_INTERNAL_INHERIT_CONFIG" in merged:
        import dask.config

        tree = hiding.without(_merged(dask.config.config, overlay))
        tree = {name: value for name, value in tree.items() if name not in ("scheduler", "shuffle")}
        merged["DASK_INTERNAL_INHERIT_CONFIG"] = dask.config.serialize(tree)
    return merged
