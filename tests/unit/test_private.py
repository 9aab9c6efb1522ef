"""Files that no other user can put first, read or replace; what needs a second user is in the integration tests."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal import private
from shoal.errors import ConfigurationError
from shoal.shell.network import listen
from shoal.shell.scratch import Scratch, remove_orphans, space


@pytest.fixture(params=[0, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """0700 of directories, 0600 of files, however they are made."""
    directory = private.Directory(tmp_path / "d")
    os.close(directory.create("a"))
    os.close(directory.open_or_create("b"))
    private.write(tmp_path / "c", b"text")
    private.create_once(tmp_path / "e", b"text")
    assert mode(tmp_path / "d") == 0o700
    assert {mode(path) for path in (directory.path / "a", directory.path / "b", tmp_path / "c", tmp_path / "e")} == {
        0o600
    }


def test_a_directory_is_looked_at_after_it_was_opened(tmp_path: Path) -> None:
    """One that others may write to, a link and a file are refused; one that others may only read is closed to them."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to it"):
        private.Directory(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            private.Directory(tmp_path / name)
    (tmp_path / "readable").mkdir(mode=0o755)
    private.Directory(tmp_path / "readable")
    assert mode(tmp_path / "readable") == 0o700


def test_a_directory_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    """Whatever is put in its place; links in it are not followed."""
    directory = private.Directory(tmp_path / "d")
    os.rename(tmp_path / "d", tmp_path / "was")
    (tmp_path / "d").mkdir()
    os.close(directory.create("mine"))
    assert os.listdir(tmp_path / "d") == []
    (tmp_path / "was" / "link").symlink_to(tmp_path / "was" / "mine")
    with pytest.raises(OSError, match="symbolic"):
        directory.open("link")
    os.mkfifo(tmp_path / "was" / "pipe")
    with pytest.raises(PermissionError, match="no file"):
        directory.open("pipe")


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    """Neither in it nor as its name, and tells of what stays."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    directory = private.Directory(tmp_path / "d")
    (directory.path / "inner").mkdir()
    (directory.path / "inner" / "link").symlink_to(tmp_path / "thesis")
    (directory.path / "link").symlink_to(tmp_path / "thesis")
    told: list[str] = []
    directory.remove_tree("inner", lambda name, error: told.append(name))
    assert told == []
    directory.remove_tree("link", lambda name, error: told.append(name))
    assert told
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Its mode stays, a link of this user's is followed, and an error leaves what was there."""
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "link").symlink_to("report.html")
    private.write(tmp_path / "link", b"new")
    assert (path.read_text(), mode(path), (tmp_path / "link").is_symlink()) == ("new", 0o644, True)
    with pytest.raises(ZeroDivisionError), private.replacing(path) as file:
        file.write(b"half")
        1 / 0
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "report.html"]
    private.write("/dev/null", b"nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        private.write(tmp_path, b"")
    with pytest.raises(FileNotFoundError, match=r"nowhere/report"):
        private.write(tmp_path / "nowhere" / "report", b"")


def test_a_pipe_of_this_user_may_stand_for_a_file(tmp_path: Path) -> None:
    """As a shell makes one for ``<(command)``."""
    ends = os.pipe()
    try:
        os.write(ends[1], b"text")
        os.close(ends[1])
        assert private.read(Path(f"/dev/fd/{ends[0]}"))[0] == b"text"
    finally:
        os.close(ends[0])
    (tmp_path / "held").write_text("secret")
    (tmp_path / "link").symlink_to("held")
    assert private.read(tmp_path / "link")[0] == b"secret"


def test_only_names_of_scratch_directories_are_removed(tmp_path: Path) -> None:
    """A lock of any other name, and what it would mean, is left alone."""
    within = space(str(tmp_path))
    (tmp_path / "thesis").write_text("years of work")
    names = ["...lock", "..lock", ".lock", "worker.lock", "../thesis.lock", "worker-0123456789ab\n.lock", "x.lock"]
    for name in names:
        if "/" not in name:
            (within / name).write_text("")
    (within / "x").mkdir()
    (within / "worker-0123456789ab").mkdir()
    (within / "worker-0123456789ab.lock").write_text("")
    assert remove_orphans(within) == 1
    assert not (within / "worker-0123456789ab").exists()
    assert (within / "x").exists()
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_base_where_everybody_may_rename_is_refused(tmp_path: Path) -> None:
    """Since what is made there can be replaced; the error says how to mend it. With the sticky bit it is used."""
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"everybody may rename .* set the bit"):
        space(str(base / "deeper"))
    base.chmod(0o1777)
    scratch = Scratch("worker", str(base))
    assert scratch.path.is_dir()
    scratch.close()
    assert os.listdir(space(str(base))) == []


@pytest.mark.parametrize("where", ["a\0b", "~nobody-of-that-name/x", "/proc/nothing"])
def test_an_impossible_place_is_told(where: str) -> None:
    """With its name and what to do."""
    with pytest.raises(ConfigurationError, match=r"cannot make scratch files in .*; set local_directory"):
        space(where)


def test_a_socket_with_a_file_is_for_this_user_alone(tmp_path: Path) -> None:
    """Whatever the umask is; one that nobody listens at any more is replaced, and none is left."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def serve() -> None:
        before = os.umask(0)
        try:
            server, _ = await listen(f"unix://{path}", lambda: None, b"secret")  # type: ignore[arg-type, return-value]
        finally:
            os.umask(before)
        assert mode(path) == 0o600
        with pytest.raises(ConfigurationError, match="in use"):
            await listen(f"unix://{path}", lambda: None, b"secret")  # type: ignore[arg-type, return-value]
        server.close()

    asyncio.run(serve())
    assert not path.exists()
    with pytest.raises(ConfigurationError, match="too long"):
        asyncio.run(listen(f"unix:///tmp/{'x' * 200}", lambda: None, b"secret"))  # type: ignore[arg-type, return-value]


def test_what_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    """As where the disk is full."""
    data: bytes = None  # type: ignore[assignment]
    for write in (private.create_once, private.write):
        with pytest.raises(TypeError):
            write(tmp_path / "a", data)
    assert not list(tmp_path.iterdir())
