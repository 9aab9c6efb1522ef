"""Environments in which a small program has to work, or to fail with an error that is known: a table.

Each row runs the program under a line of shell, in directories of its own, and sees that it ends soon, says what it
should, prints no traceback that is not wanted, and leaves no process and no file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
#: Seconds that a row may take.
LONGEST = 60

#: Adds 1 and 2 on a cluster, and writes what it got, or the error, where ``$ANSWER`` says.
PROGRAM = """
import os, sys

def answer(text):
    with open(os.environ['ANSWER'], 'w') as file:
        file.write(text)

def run():
    try:
        import shoal
        with shoal.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
            with shoal.Client(cluster) as client:
                answer(str(client.submit(sum, [1, 2]).result(timeout=20)))
    except Exception as error:
        answer(f'{type(error).__name__}: {error}')

if __name__ == '__main__':
    run()
"""


@dataclass
class Row:
    """One environment.

    ``shell`` runs the program as ``"$@"``; ``$HERE`` is a directory of the row's own, ``$PROGRAM`` and ``$PYTHON`` are
    the program's file and the interpreter.
    """

    name: str
    shell: str
    #: What the answer must match.
    answer: str = "3"
    program: str = PROGRAM
    #: What stderr may hold beside nothing.
    stderr: str = ""
    #: Whether it needs to be root.
    root: bool = False
    #: Whether it is one of the few that run with the tests.
    short: bool = True


def _closed(descriptors: str) -> str:
    return '"$@" ' + " ".join({"0": "<&-", "1": ">&-", "2": "2>&-"}[one] for one in descriptors)


#: Python of the system, which other users can reach as well.
_OTHER = 'P=/usr/bin/python3.$($PYTHON -c "import sys; print(sys.version_info.minor)"); [ -x $P ] || P=$PYTHON'
_AS_OTHER = f"{_OTHER}; chown -R 12345 $HERE; chmod 755 $HERE; cd /; setpriv --reuid 12345 --regid 12345 --clear-groups"

ROWS = [
    Row("as it is", '"$@"'),
    *(Row(f"closed {each}", _closed(each), short=each in ("012", "02")) for each in ("0", "1", "2", "01", "02", "12", "012")),
    Row("standard files that cannot be written", '"$@" >/dev/full 2>/dev/full'),
    Row("no HOME", 'unset HOME XDG_CONFIG_HOME; "$@"'),
    Row("HOME that does not exist", 'unset XDG_CONFIG_HOME; HOME=/nonexistent "$@"', stderr="the secret cannot be kept"),
    Row("a user without a name or a home",
        f'unset HOME XDG_CONFIG_HOME; {_AS_OTHER} $P $PROGRAM', stderr="the secret cannot be kept", root=True),
    Row("a home that cannot be written to",
        f'mkdir $HERE/home; unset XDG_CONFIG_HOME; {_AS_OTHER} true; chmod 555 $HERE/home; export HOME=$HERE/home; '
        'setpriv --reuid 12345 --regid 12345 --clear-groups $P $PROGRAM', stderr="the secret cannot be kept", root=True),
    Row("an empty environment",
        'exec env -i ANSWER=$ANSWER ROW=$ROW TMPDIR=$TMPDIR XDG_CONFIG_HOME=$XDG_CONFIG_HOME PYTHONPATH=$PYTHONPATH "$@"'),
    Row("cron", 'exec env -i ANSWER=$ANSWER ROW=$ROW TMPDIR=$TMPDIR HOME=$HERE PATH=/usr/bin:/bin SHELL=/bin/sh '
        'PYTHONPATH=$PYTHONPATH "$@" </dev/null', short=False),
    Row("a working directory that was removed", 'mkdir $HERE/d; cd $HERE/d; rmdir $HERE/d; "$@"'),
    Row("a working directory that cannot be written to", f"mkdir $HERE/d; chmod 555 $HERE/d; {_AS_OTHER} true; "
        "cd $HERE/d; chmod 555 .; setpriv --reuid 12345 --regid 12345 --clear-groups $P $PROGRAM", root=True),
    Row("PYTHONOPTIMIZE=2", 'PYTHONOPTIMIZE=2 "$@"'),
    Row("-O", "$PYTHON -O $PROGRAM", short=False),
    Row("-I", "cd $HERE; $PYTHON -I -c \"import sys; sys.path[:0] = '$PYTHONPATH'.split(':'); exec(open('$PROGRAM').read())\""),
    Row("-P", "$PYTHON -P $PROGRAM", short=False),
    Row("-S", "$PYTHON -S -c \"import sys; sys.path += '$SITE'.split(':'); exec(open('$PROGRAM').read())\""),
    Row("-W error", "$PYTHON -W error $PROGRAM"),
    Row("PYTHONWARNINGS=error", 'PYTHONWARNINGS=error "$@"', short=False),
    Row("-X dev", "$PYTHON -X dev $PROGRAM", stderr="Warning", short=False),
    Row("a temporary directory that does not exist", 'TMPDIR=/nonexistent "$@"', short=False),
    Row("a temporary directory with a long name", 'export TMPDIR=$TMPDIR/$(printf %0200d 0); mkdir $TMPDIR; "$@"'),
    Row("a temporary directory with blanks and no UTF-8",
        "export TMPDIR=$TMPDIR/$'a b \\xff'; mkdir \"$TMPDIR\"; \"$@\""),
    Row("a program whose name has blanks and no UTF-8",
        "mkdir $HERE/$'a b \\xff'; cp $PROGRAM $HERE/$'a b \\xff'/$'p \\xfe.py'; cd $HERE/$'a b \\xff'; $PYTHON $'p \\xfe.py'"),
    Row("locale C", 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"'),
    Row("locale POSIX, ASCII", 'LC_ALL=POSIX PYTHONIOENCODING=ascii PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"', short=False),
    Row("another time zone", 'TZ=Pacific/Kiritimati "$@"', short=False),
    Row("a full temporary directory",
        'mount -t tmpfs -o size=4k,mode=1777 none $TMPDIR; mount -t tmpfs -o size=4k,mode=1777 none /var/tmp; '
        'dd if=/dev/zero of=$TMPDIR/full bs=4k 2>/dev/null; mkdir $HERE/d; cd $HERE/d; "$@"',
        answer="3|ConfigurationError: .*No space left", root=True),
    Row("a temporary directory without inodes",
        'mount -t tmpfs -o size=1m,nr_inodes=1,mode=1777 none $TMPDIR; export TMPDIR; cd /; '
        'DASK_TEMPORARY_DIRECTORY=$TMPDIR "$@"', answer="StartError: .*No space left on device.*local_directory",
        root=True),
    Row("a read-only file system", 'mount -t tmpfs none $TMPDIR; mount -o remount,ro $TMPDIR; '
        'DASK_TEMPORARY_DIRECTORY=$TMPDIR "$@"', answer="StartError: .*Read-only file system.*local_directory",
        root=True),
    Row("no /dev/shm", 'mount -t tmpfs -o ro,size=4k none /dev/shm; "$@"', root=True),
    Row("no /proc/sys, /sys", 'mount -t tmpfs none /sys; mount -t tmpfs none /proc/sys; "$@"', root=True, short=False),
    Row("20 open files", 'ulimit -n 20; "$@"', answer="StartError: .*20 .RLIMIT_NOFILE"),
    Row("36 open files", 'ulimit -n 36; "$@"', answer="StartError: .*cluster of 1 workers takes up to 40 .*have 36"),
    Row("40 open files", 'ulimit -n 40; "$@"'),
    Row("few open files that may become more", 'ulimit -Sn 30; "$@"', short=False),
    Row("4 GB of addresses", 'ulimit -v 4000000; "$@"'),
    Row("2 GB of addresses", 'ulimit -v 2000000; "$@"', short=False),
    Row("a small stack", 'ulimit -s 256; "$@"', short=False),
    Row("an unlimited stack", 'ulimit -s unlimited; "$@"', short=False),
    Row("no core files and no locked memory", 'ulimit -c 0; ulimit -l 0; "$@"', short=False),
    Row("files of at most 1 MB", 'ulimit -f 1024; "$@"', short=False),
    Row("nohup", 'nohup "$@" 2>/dev/null', short=False),
    Row("a session of its own", 'setsid -w "$@"', short=False),
    Row("a service", 'NOTIFY_SOCKET=/nonexistent INVOCATION_ID=1 exec "$@" </dev/null >/dev/null', short=False),
    Row("signals that are ignored or blocked", "trap '' HUP INT PIPE TERM CHLD; \"$@\"", short=False),
    Row("python -c", '$PYTHON -c "$(cat $PROGRAM)"'),
    Row("python -", "$PYTHON - <$PROGRAM"),
    Row("python <", "$PYTHON <$PROGRAM", short=False),
    Row("python -m", "cp $PROGRAM $HERE/program_as_module.py; cd $HERE; $PYTHON -m program_as_module", short=False),
    Row("a zip", "cd $HERE; cp $PROGRAM __main__.py; $PYTHON -m zipfile -c app.zip __main__.py; $PYTHON app.zip", short=False),
    Row("no __main__ guard", '$PYTHON -c "$(cat $PROGRAM; echo; echo run)"', short=False),
    Row("a module of the standard library's name in the working directory",
        "mkdir $HERE/d; cd $HERE/d; for m in random queue selectors msgspec uvloop; do echo 'print(1/0)' > $m.py; done; $PYTHON $PROGRAM"),
    *(Row(f"start method {each}", f'DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD={each} "$@"', short=each == "spawn")
      for each in ("spawn", "fork", "forkserver")),
    *(Row(f"closed 012, {each}", f'DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD={each} "$@" <&- >&- 2>&-', short=False)
      for each in ("spawn", "fork")),
    Row("asyncio's own loop", 'DASK_DISTRIBUTED__ADMIN__EVENT_LOOP=asyncio "$@"', short=False),
    Row("few open files, asyncio's own loop", 'ulimit -n 40; DASK_DISTRIBUTED__ADMIN__EVENT_LOOP=asyncio "$@"', short=False),
    Row("a module loaded without a file", "$PYTHON -c \"import types, sys; m = types.ModuleType('__main__'); "
        "sys.modules['__main__'] = m; exec(open('$PROGRAM').read(), m.__dict__)\"", short=False),
]  # fmt: skip


@cache
def others_can_run_this() -> bool:
    """Whether another user can run this Python, and shoal, which may be where nobody else may look."""
    line = f'{_OTHER}; setpriv --reuid 12345 --regid 12345 --clear-groups $P -c "import shoal.cli"'
    site = [path for path in sys.path if path.endswith("-packages")]
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *site])}
    return subprocess.run(["bash", "-c", line], env=env, cwd="/", capture_output=True, check=False).returncode == 0


def run(row: Row) -> list[str]:
    """Run one row; return what was wrong."""
    here = Path(tempfile.mkdtemp(prefix="row-", dir="/tmp"))
    mark = uuid.uuid4().hex
    site = [path for path in sys.path if path.endswith("-packages")]
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(here),
        "HERE": str(here),
        "TMPDIR": str(here / "tmp"),
        "XDG_CONFIG_HOME": str(here / "config"),
        "ANSWER": str(here / "answer"),
        "PROGRAM": str(here / "program.py"),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *site]),
        "SITE": os.pathsep.join([str(ROOT / "src"), *site]),
        "ROW": mark,
    }
    for name in ("tmp", "config"):
        (here / name).mkdir()
    (here / "program.py").write_text(row.program)
    line = ["bash", "-c", row.shell, "row", sys.executable, str(here / "program.py")]
    if row.root:
        line = ["unshare", "--mount", *line]
    wrong = []
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here) as process:
        try:
            _, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            wrong.append(f"it did not end within {LONGEST} s")
            process.send_signal(signal.SIGABRT)
            for one in marked(mark):
                one.kill()
            _, errors = process.communicate()
    try:
        wrong += _judge(row, here, mark, errors.decode(errors="replace"))
    finally:
        shutil.rmtree(here, ignore_errors=True)
    return wrong


def _judge(row: Row, here: Path, mark: str, errors: str) -> list[str]:
    wrong = []
    answer = (here / "answer").read_text(errors="replace") if (here / "answer").exists() else "nothing"
    if not re.fullmatch(f"(?s)({row.answer}).*", answer):
        wrong.append(f"it answered {answer!r}, not {row.answer!r}")
    if errors.strip() and not (row.stderr and re.search(row.stderr, errors)):
        wrong.append(f"it printed {errors[-3000:]}")
    if any(words in errors for words in ("Traceback", "Exception ignored", "was destroyed", "never retrieved")):
        wrong.append("it printed a traceback")
    left = marked(mark)
    if left:
        wrong.append(f"processes are left: {[' '.join(one.cmdline())[:80] for one in left]}")
        for one in left:
            one.kill()
    files = [str(path) for path in (here / "tmp").rglob("*") if not path.is_dir() and path.name != "full"]
    if files:
        wrong.append(f"files are left: {files}")
    return wrong


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started by a row, directly or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ROW") == mark:
                found.append(process)
        except psutil.Error:
            pass  # it has ended
    return found
