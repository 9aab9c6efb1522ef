"""Two users on one machine: what one of them can do to the other's files. Needs root, which acts as both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VICTIM, ATTACKER = 12345, 54321
#: This Python may be in root's home, into which others may not look; that of the system has the same version, perhaps.
PYTHON = Path(f"/usr/bin/python3.{sys.version_info.minor}")
if not PYTHON.exists():
    PYTHON = Path(sys.executable)


def _command(uid: int, code: str, where: Path) -> dict[str, Any]:
    return {
        "args": [str(PYTHON), "-c", textwrap.dedent(code)],
        "user": uid,
        "group": uid,
        "extra_groups": [],
        "cwd": where / "home",
        "env": {
            "PATH": os.environ["PATH"],
            "HOME": str(where / "home"),
            "TMPDIR": str(where / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), sysconfig.get_path("purelib")]),
        },
        "text": True,
        "stdout": subprocess.PIPE,
    }


def act(uid: int, code: str, where: Path) -> str:
    """Run code as a user; return what it prints."""
    return subprocess.run(**_command(uid, code, where), timeout=60, check=True).stdout.strip()


@pytest.fixture
def machine() -> Iterator[Path]:
    """A directory for all, as /tmp is, and a home that everybody may look into, as is usual."""
    if os.geteuid():
        pytest.skip("only root can act as two other users")
    where = Path(tempfile.mkdtemp(prefix="shoal-users-", dir="/tmp"))
    where.chmod(0o755)
    (where / "tmp").mkdir()
    (where / "tmp").chmod(0o1777)
    (where / "home").mkdir()
    (where / "home").chmod(0o755)
    os.chown(where / "home", VICTIM, VICTIM)
    try:
        try:
            act(
                VICTIM,
                "import subprocess, sys; subprocess.check_call([sys.executable, '-c', 'import shoal.cli'])",
                where,
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("another user cannot read this Python or shoal")
        yield where
    finally:
        shutil.rmtree(where)


#: What somebody else may put where a victim's directory belongs, and inside of it.
TRAPS = {
    "a directory": "os.mkdir(space, 0o777); open(space + '/...lock', 'w'); open(space + '/..lock', 'w')",
    "a link": "os.symlink(tmp + '/thesis', space)",
    "a link to nothing": "os.symlink(tmp + '/nothing', space)",
    "a file": "open(space, 'w')",
    "a pipe": "os.mkfifo(space)",
    "a second directory": "os.mkdir(space, 0o777); os.mkdir(space + '-aaaaaaaa', 0o777); os.symlink(tmp + '/thesis', space + '-bbbbbbbb')",  # noqa: E501
}


def test_who_is_there_first_gains_nothing(machine: Path) -> None:
    """Another place is used, with a warning; the victim's files stay; later processes use that place, too."""
    tmp = machine / "tmp"
    act(
        VICTIM,
        f"""
        import os
        os.mkdir('{tmp}/thesis')
        open('{tmp}/thesis/chapter', 'w').write('years of work')
        os.mkdir('{tmp}/thesis/worker-0123456789ab')
        """,
        machine,
    )
    for kind, trap in TRAPS.items():
        act(ATTACKER, f"import os; os.umask(0); tmp = '{tmp}'; space = tmp + '/shoal-scratch-space-{VICTIM}'; {trap}", machine)  # fmt: skip  # noqa: E501
        told = json.loads(
            act(
                VICTIM,
                """
                import json, logging, os
                words = []
                class Keep(logging.Handler):
                    def emit(self, record): words.append(record.getMessage())
                logging.getLogger().addHandler(Keep())
                from shoal.shell.scratch import Scratch
                os.umask(0o777)
                first, second = Scratch('worker'), Scratch('nanny')
                places = [str(first.path), str(second.path)]
                modes = [os.stat(path).st_mode & 0o777 for place in places for path in (place, os.path.dirname(place))]
                owners = [os.stat(path).st_uid for place in places for path in (place, os.path.dirname(place))]
                first.close(), second.close()
                print(json.dumps([places, modes, owners, words, os.listdir(os.path.dirname(places[0]))]))
                """,
                machine,
            )
        )
        places, modes, owners, words, left = told
        assert set(modes) == {0o700}, kind
        assert set(owners) == {VICTIM}, kind
        assert len({os.path.dirname(place) for place in places}) == 1, kind
        assert len(words) == 1, (kind, words)
        assert f"shoal-scratch-space-{VICTIM} is not used for scratch files" in words[0], kind
        assert left == [], kind
        assert (tmp / "thesis" / "chapter").read_text() == "years of work", kind
        assert sorted(os.listdir(tmp / "thesis")) == ["chapter", "worker-0123456789ab"], kind
        for path in tmp.glob("shoal-scratch-space-*"):
            (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)


SESSION = """
import os, sys
os.umask(0)
from shoal import Client, LocalCluster, performance_report
if __name__ == '__main__':
    home = os.environ['HOME']
    os.mkdir(home + '/closed', 0o700)
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit='500 MB') as cluster, Client(cluster) as client:
        kept = [client.submit(bytes, 2_000_000 + n) for n in range(3)]
        client.gather(kept)
        open(home + '/closed/module.py', 'w').write('x = 1')
        client.upload_file(home + '/closed/module.py')
        with performance_report(home + '/report.html'):
            client.submit(abs, -1).result()
        client.dump_cluster_state(home + '/dump')
        client.dump_cluster_state(home + '/dump', format='yaml')
        client.get_task_stream(filename=home + '/stream.html', plot='save')
        client.profile(filename=home + '/profile.html')
        from shoal.shell import hardware
        def spill(dask_worker):
            store = dask_worker.program.store
            while store.evict() is not None: pass
            hardware.disk([], dask_worker)
            return store.disk.written
        assert min(client.run(spill).values()) >= 3
        import subprocess
        files = ['--scheduler-file', home + '/scheduler.json', '--pid-file', home + '/pid']
        command = [sys.executable, '-m', 'shoal', 'scheduler', '--host', '127.0.0.1', '--port', '0', *files]
        scheduler = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        import time
        while not os.path.exists(home + '/scheduler.json'): time.sleep(0.01)
        print('ready', flush=True)
        sys.stdin.readline()
        client.gather(kept)
        scheduler.terminate()
        assert scheduler.wait(20) == 0
"""

WALK = """
import json, os, sys
found, seen = [], []
def look(path):
    try:
        info = os.lstat(path)
    except OSError:
        return
    seen.append(path)
    if info.st_uid == {victim}:
        for what, flag in (('read', os.R_OK), ('write', os.W_OK)):
            if os.access(path, flag, follow_symlinks=False):
                found.append([what, path])
    if os.path.isdir(path) and not os.path.islink(path):
        try:
            names = os.listdir(path)
        except OSError:
            names = ['worker-0', 'spilled', '0', 'secret']
        for name in names:
            look(os.path.join(path, name))
look(sys.argv[1] if len(sys.argv) > 1 else {where!r})
print(json.dumps([found, seen]))
"""


def test_nothing_that_a_session_leaves_or_makes_is_open_to_others(machine: Path) -> None:
    """A cluster that spills, uploads, reports and dumps, and a scheduler with its files, run with umask 0."""
    (machine / "home" / "session.py").write_text(SESSION)
    command = _command(VICTIM, "", machine)
    command["args"] = [str(PYTHON), "session.py"]
    with subprocess.Popen(**command, stdin=subprocess.PIPE) as session:
        try:
            assert session.stdout is not None
            assert session.stdin is not None
            assert session.stdout.readline() == "ready\n"
            found, seen = json.loads(act(ATTACKER, WALK.format(victim=VICTIM, where=str(machine)), machine))
            mine, all_files = json.loads(act(VICTIM, WALK.format(victim=VICTIM, where=str(machine)), machine))
            session.stdin.write("\n")
            session.stdin.close()
            assert session.wait(30) == 0
        finally:
            session.kill()
    # The home itself was made by the administrator, for all to look into.
    assert [one for one in found if one[1] != str(machine / "home")] == []
    assert len(mine) > len(found)
    made = {Path(path).name for path in all_files}
    assert {"report.html", "dump.msgpack.gz", "dump.yaml", "scheduler.json", "pid", "module.py", "spilled"} <= made
    assert {"secret", "stream.html", "profile.html", "0", "1", "2"} <= made
    assert not any("spilled" in Path(path).name for path in seen)
    left = [path for path in (machine / "tmp").rglob("*") if not path.is_dir()]
    assert left == []


def test_a_secret_of_another_user_is_refused(machine: Path) -> None:
    """A secret file, or a scheduler file with a secret, which somebody else wrote, would make this user join him."""
    tmp = machine / "tmp"
    act(ATTACKER, f"""
        import json, os
        for name, text in (('secret', 'ab' * 32), ('scheduler.json', json.dumps(
                {{'type': 'Scheduler', 'address': 'tcp://127.0.0.1:1', 'secret': 'ab' * 32}}))):
            open('{tmp}/' + name, 'w').write(text)
            os.chmod('{tmp}/' + name, 0o644)
        """, machine)  # fmt: skip
    told = act(VICTIM, f"""
        from pathlib import Path
        from shoal import config, security
        for read, name in ((config.read_secret, 'secret'), (security.read_scheduler_file, 'scheduler.json')):
            try:
                print(read(Path('{tmp}') / name))
            except Exception as error:
                print(type(error).__name__, 'belongs to another user' in str(error))
        """, machine)  # fmt: skip
    assert told.split("\n") == ["ConfigurationError True"] * 2


def test_a_pipe_of_another_user_is_neither_written_to_nor_waited_for(machine: Path) -> None:
    """Who reads from a pipe that has the name of a scheduler file would get the secret."""
    tmp = machine / "tmp"
    with subprocess.Popen(
        **_command(
            ATTACKER,
            f"""
            import os
            os.umask(0)
            os.mkfifo('{tmp}/scheduler.json', 0o666)
            pipe = os.open('{tmp}/scheduler.json', os.O_RDWR | os.O_NONBLOCK)
            print('ready', flush=True)
            input()
            try:
                print(os.read(pipe, 4096))
            except BlockingIOError:
                print('nothing')
            """,
            machine,
        ),
        stdin=subprocess.PIPE,
    ) as attacker:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "ready\n"
        told = act(VICTIM, f"""
            from pathlib import Path
            from shoal import config, private, security
            path = Path('{tmp}/scheduler.json')
            for use in (lambda: security.write_scheduler_file(path, 'Scheduler', ['tcp://127.0.0.1:1'], b'S' * 32),
                        lambda: private.write(path, b'a report'), lambda: security.read_scheduler_file(path),
                        lambda: config.read_secret(path)):
                try:
                    use()
                    print('done')
                except Exception as error:
                    print('belongs to another user' in str(error))
            """, machine)  # fmt: skip
        assert told.split("\n") == ["True"] * 4
        out, _ = attacker.communicate("\n", timeout=30)
        assert out == "nothing\n"


def test_links_of_other_users_are_not_followed_when_files_are_written(machine: Path) -> None:
    """Reports, dumps, pid files and scheduler files whose names somebody else made first, as links to this user's."""
    tmp, home = machine / "tmp", machine / "home"
    act(VICTIM, f"open('{home}/precious', 'w').write('work')", machine)
    act(ATTACKER, f"import os; os.symlink('{home}/precious', '{tmp}/report'); open('{tmp}/taken', 'w')", machine)
    told = act(VICTIM, f"""
        from shoal import private
        for name in ('report', 'taken'):
            try:
                private.write('{tmp}/' + name, b'text')
                print('written')
            except PermissionError as error:
                print('refused')
        """, machine)  # fmt: skip
    assert told.split("\n") == ["refused", "refused"]
    assert (home / "precious").read_text() == "work"
    assert sorted(os.listdir(tmp)) == ["report", "taken"]


def test_spilled_values_cannot_be_replaced(machine: Path) -> None:
    """Not even by who may rename the worker's directory: files are found by the directory that was opened."""
    told = act(VICTIM, """
        import os
        from pathlib import Path
        from shoal.shell import serialize
        from shoal.shell.scratch import Scratch
        from shoal.shell.spill import Disk
        scratch = Scratch('worker')
        disk = Disk(scratch.path / 'spilled')
        values = [disk.write(serialize.dumps(list(range(n, n + 5000)), 'value')) for n in range(3)]
        os.rename(scratch.path, str(scratch.path) + '.was')
        os.makedirs(scratch.path / 'spilled')
        for n in range(3):
            (scratch.path / 'spilled' / str(n)).write_bytes(b'evil' * 10_000)
        print(serialize.loads(values[0].read())[0])
        was = Path(str(scratch.path) + '.was') / 'spilled'
        (was / '1').unlink(); (was / '1').symlink_to(scratch.path / 'spilled' / '1')
        (was / '2').write_bytes(b'short')
        for value in values[1:]:
            try:
                value.read()
            except OSError as error:
                print('refused', error.filename is not None)
        """, machine)  # fmt: skip
    assert told.split("\n") == ["0", "refused True", "refused True"]
