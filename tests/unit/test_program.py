"""How a program begins."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_confine import NOBODY, can_run, for_others

ROOT = Path(__file__).parents[2]

AUTOGROUP = Path("/proc/self/autogroup")
GROUPED = AUTOGROUP.exists() and AUTOGROUP.read_text() != ""
"""Whether this kernel groups processes by session. On some kernels the file is empty."""
GIVE_WAY = """
import os
from pathlib import Path
from activities.program import give_way
give_way(3, 5)
print(os.nice(0), Path("/proc/self/autogroup").read_text())
"""


@pytest.mark.skipif(not GROUPED, reason="this kernel does not group processes by session")
@pytest.mark.parametrize("own_session", [True, False], ids=["own session", "session of others"])
def test_a_program_that_gives_way_makes_only_its_own_session_nicer(own_session: bool) -> None:
    """Otherwise the niceness would not count against programs of other sessions, or other programs would give way, too."""
    before = AUTOGROUP.read_text().split()[-1]
    nice = os.nice(0)
    output = subprocess.run(
        [sys.executable, "-c", GIVE_WAY], start_new_session=own_session, capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[0] == str(nice + 3)
    assert output.split()[-1] == ("5" if own_session else before)


@pytest.fixture
def user() -> int:
    """An ordinary user: files of root's processes belong to root in any case."""
    return os.geteuid() or NOBODY


@pytest.fixture
def python(user: int) -> str:
    """An interpreter that the user can run."""
    if user == os.geteuid():
        return sys.executable
    for path in (sys.executable, "/usr/bin/python3"):
        if can_run(path, user, for_others()):
            return path
    pytest.skip("another user cannot run this interpreter")


@pytest.fixture
def directory(user: int) -> Iterator[Path]:
    """An empty directory of the user. Other users may not enter pytest's own ones."""
    path = Path(tempfile.mkdtemp())
    os.chown(path, user, -1)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(("role", "is_up"), [(("api",), "listening on"), (("worker", "tile"), "metrics are at")])
def test_memory_and_environment_of_a_program_are_hidden(role: tuple[str, ...], is_up: str, user: int, python: str, directory: Path) -> None:
    """They hold secrets. In ``/proc``, the files of a process that is not dumpable belong to root, and other processes may not read them.

    https://man7.org/linux/man-pages/man5/proc_pid.5.html
    """
    with socket.create_server(("127.0.0.1", 0)) as silent_temporal:
        environ = {
            **(os.environ if user == os.geteuid() else for_others()),
            "SITELINK_BUCKET": (directory / "bucket").as_uri(),
            "SITELINK_DATA_DIR": str(directory),
            "SITELINK_PORT": "0",
            "SITELINK_METRICS_PORT": "0",
            "TEMPORAL_ADDRESS": f"127.0.0.1:{silent_temporal.getsockname()[1]}",
        }
        other = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
        command = [python, "-m", *role]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, **other) as process:  # type: ignore[call-overload] # keywords of one type each
            assert process.stderr is not None
            try:
                said = next((line for line in process.stderr if is_up in line), None)
                assert said is not None, "it ended before it was up"
                files = Path("/proc") / str(process.pid)
                assert (files / "environ").stat().st_uid == 0
                assert (files / "mem").stat().st_uid == 0
            finally:
                process.kill()
