"""Durations, sizes, limits, environments and secrets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dask.config
import pytest

from shoal import Security, config
from shoal.errors import ConfigurationError
from shoal.security import Credentials, read_scheduler_file, secret_of, write_scheduler_file


@pytest.mark.parametrize(
    ("text", "value"), [("5 minutes", 300), ("20ms", 0.02), (3, 3), (None, None), ("2", 2), ("1.5 h", 5400), ("s", 1)]
)
def test_durations(text: object, value: object) -> None:
    """As numbers and as text."""
    assert config.seconds(text, "x") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("4 GiB", 4 * 2**30), ("1kB", 1000), (5, 5), ("1.5 MB", 1_500_000), ("12", 12), ("2M", 2_000_000)],
)
def test_sizes(text: object, value: int) -> None:
    """Decimal and binary units."""
    assert config.nbytes(text, "x") == value


@pytest.mark.parametrize("text", ["5 parsecs", "fast", "1 2 s"])
def test_nonsense_is_named(text: str) -> None:
    """With the name of the option."""
    with pytest.raises(ConfigurationError, match="the-option"):
        config.seconds(text, "the-option")
    with pytest.raises(ConfigurationError, match="the-option"):
        config.nbytes(text, "the-option")


def test_memory_limits() -> None:
    """Fractions, shares, none, and what is more than there is."""
    total = config.system_memory()
    assert config.memory_limit(0.5) == total // 2
    assert config.memory_limit("0.5") == total // 2
    assert config.memory_limit(0) == config.memory_limit(None) == 0
    assert config.memory_limit("auto", config.cpu_count()) == total
    assert config.memory_limit(total * 10) == total
    for bad in (-1, True, "10 B", "lots"):
        with pytest.raises(ConfigurationError, match="memory_limit"):
            config.memory_limit(bad)


def test_the_environment_of_a_worker(monkeypatch) -> None:
    """What is asked for beats what is set here, which beats the configuration; here nothing changes."""
    import dask.config

    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with dask.config.set({"distributed.nanny.environ": {"FROM_CONFIG": 1, "MKL_NUM_THREADS": 9}}):
        merged = config.effective_environment({"MINE": "x"})
    assert merged["MINE"] == "x"
    assert merged["MKL_NUM_THREADS"] == "3"
    assert merged["OMP_NUM_THREADS"] == "1"
    assert merged["FROM_CONFIG"] == "1"
    assert merged["PYTHONHASHSEED"] != "random"


def test_secrets_by_environment_file_and_argument(monkeypatch, tmp_path: Path) -> None:
    """The environment first, then its file, then the user's own, which is made once."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = config.default_secret()
    assert len(own) >= 32
    assert config.default_secret() == own
    file = tmp_path / "given"
    file.write_text("from a file of some length\n")
    file.chmod(0o600)
    monkeypatch.setenv("SHOAL_SECRET_FILE", str(file))
    assert config.default_secret() == b"from a file of some length"
    monkeypatch.setenv("SHOAL_SECRET", "from the environment")
    assert config.default_secret() == b"from the environment"
    assert (
        Security(secret_file=file).secret
        == secret_of({"secret": "from a file of some length"})
        == b"from a file of some length"
    )
    assert "from" not in repr(Security(secret="from here and there")).replace("Security", "")
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Security(secret_file=file)
    with pytest.raises(ConfigurationError, match="both"):
        Security(secret="a", secret_file=file)


@pytest.mark.parametrize("secret", ["", "short", "fifteen bytes !"])
def test_secrets_that_can_be_guessed_are_refused(monkeypatch, tmp_path: Path, secret: str) -> None:
    """Wherever they are given, saying where that is."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "given"
    file.write_text(secret)
    file.chmod(0o600)
    for make in (
        lambda: Security(secret=secret),
        lambda: Security(secret=secret.encode()),
        lambda: secret_of(secret.encode()),
        lambda: secret_of(Credentials(secret.encode())),
        lambda: secret_of({"secret": secret}),
    ):
        with pytest.raises(ConfigurationError, match="the argument"):
            make()
    with pytest.raises(ConfigurationError, match=str(file)):
        Security(secret_file=file)
    write_scheduler_file(tmp_path / "s.json", "Scheduler", ["tcp://h:1"], secret.encode())
    with pytest.raises(ConfigurationError, match=r"s\.json"):
        read_scheduler_file(tmp_path / "s.json")
    with (
        dask.config.set({"shoal.security.secret": secret}),
        pytest.raises(ConfigurationError, match=r"shoal\.security"),
    ):
        config.default_secret()
    monkeypatch.setenv("SHOAL_SECRET_FILE", str(file))
    with pytest.raises(ConfigurationError, match=str(file)):
        config.default_secret()
    monkeypatch.setenv("SHOAL_SECRET", secret)
    with pytest.raises(ConfigurationError, match="SHOAL_SECRET"):
        config.default_secret()


def test_two_processes_make_one_secret(monkeypatch, tmp_path: Path) -> None:
    """At the same moment, on first use."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code = "from shoal import config; print(config.default_secret().decode())"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [path.name for path in (tmp_path / "shoal").iterdir()] == ["secret"]


def test_scheduler_files(tmp_path: Path) -> None:
    """Written for the owner alone, read back, refused where they make no sense."""
    path = tmp_path / "s.json"
    write_scheduler_file(path, "Scheduler", ["tcp://h:1", "unix://@x"], b"a secret of bytes")
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_scheduler_file(path) == (["tcp://h:1", "unix://@x"], b"a secret of bytes")
    path.write_text('{"address": "tcp://h:1"}')
    assert read_scheduler_file(path) == (["tcp://h:1"], None)
    for text in ("", "[]", '{"id": 1}', "{"):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="scheduler_file"):
            read_scheduler_file(path)


def test_importing_shoal_is_light() -> None:
    """Nothing heavy comes with it: no numpy, no dask, no event loop."""
    code = "import shoal, sys; print([m for m in ('numpy', 'dask', 'asyncio', 'uvloop', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_defaults_outlive_a_with_block_that_was_entered_before_they_were_read() -> None:
    """dask takes what came into its tree meanwhile away again."""
    program = (
        "import dask.config; from shoal import config\n"
        "with dask.config.set({'distributed.worker.memory.pause': 0.5}): assert config.get('shoal.comm') is not None\n"
        "assert config.get('distributed.worker.memory.pause') == 0.8\n"
        "assert config.export()['distributed']['nanny']['pre-spawn-environ']['OMP_NUM_THREADS'] == 1\n"
        "with dask.config.set({'distributed.nanny.pre-spawn-environ': {'OMP_NUM_THREADS': 7}}):\n"
        "    env = config.effective_environment({})\n"
        "assert env['MALLOC_TRIM_THRESHOLD_'] == '65536'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_limits_of_control_groups_and_of_those_above_count(tmp_path: Path) -> None:
    """Of version 2 and of version 1; a group that cannot be seen (in a container) is passed over."""
    proc, top = tmp_path / "cgroup", tmp_path / "sys"
    inner = top / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (top / "outer" / "memory.max").write_text("1000\n")
    old = top / "memory" / "docker"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("2000\n")
    proc.write_text("0::/outer/inner\n5:cpu,memory:/docker\n3:cpuset:/x\n")
    found = config._read_cgroups("memory.max", "memory", "memory.limit_in_bytes", proc, top)
    assert sorted(found) == ["1000", "2000", "max"]
    proc.write_text("0::/../../elsewhere\n")
    assert config._read_cgroups("memory.max", "memory", "memory.limit_in_bytes", proc, top) == []
    assert config._read_cgroups("memory.max", "memory", "x", tmp_path / "none", top) == []
