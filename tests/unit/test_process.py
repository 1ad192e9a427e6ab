"""Child processes end with their group, and with us."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.process import Guard, Process, free_port, is_free, take_port
from tests.waiting import until

FAMILY = ["/bin/sh", "-c", "sleep 300 & echo $!; wait"]
"""A leader that starts a child and prints the child's pid."""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_for_word(process: Process) -> str:
    """The first line that the process prints."""
    until(process.tail)
    return process.tail()


def wait_for_end(pid: int) -> None:
    """Returns when the process is gone."""
    until(lambda: not alive(pid))


@pytest.fixture
def family(tmp_path: Path) -> Process:
    """A leader with a child, not yet started."""
    return Process(FAMILY, log=tmp_path / "family.log", environ=os.environ)


def test_kill_ends_the_whole_group(family: Process) -> None:
    """A killed leader takes its children along, and can be started again."""
    for _ in range(2):
        family.start()
        child = int(wait_for_word(family))
        assert family.is_running
        assert family.kill() == -signal.SIGKILL
        wait_for_end(child)
        assert not family.is_running
        assert family.kill() is None


def test_kill_ends_what_a_dead_leader_left(family: Process) -> None:
    """When the leader alone died, its children are still found by its group."""
    family.start()
    child = int(wait_for_word(family))
    assert family.pid is not None
    os.kill(family.pid, signal.SIGTERM)
    until(lambda: not family.is_running)
    assert alive(child)
    assert family.kill() == -signal.SIGTERM
    wait_for_end(child)


def test_process_that_has_ended_may_be_asked_to_stop(family: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between the look and the signal: its number still names its group, and nothing fails."""
    family.start()
    child = int(wait_for_word(family))
    assert family.pid is not None
    os.kill(family.pid, signal.SIGKILL)
    until(lambda: not family.is_running)
    with monkeypatch.context() as moment:
        moment.setattr(Process, "is_running", True)
        family.terminate()
    assert not family.is_running
    family.kill()
    wait_for_end(child)


def test_group_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """The group ends even when its starter is killed by SIGKILL."""
    script = (
        "import os, sys, pathlib, signal\n"
        "from deploy.process import Process\n"
        f"process = Process({FAMILY!r}, log=pathlib.Path(sys.argv[1]), environ=os.environ)\n"
        "process.start()\n"
        "while not process.tail(): pass\n"
        "print(process.pid, process.tail(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    for pid in run.stdout.split():
        wait_for_end(int(pid))


def test_released_guard_kills_nothing(family: Process) -> None:
    """A released guard does not kill its process."""
    family.start()
    assert family.pid is not None
    Guard(family.pid).release()
    wait_for_word(family)
    assert family.is_running
    family.kill()


def test_log_tail_is_that_of_the_last_start(tmp_path: Path) -> None:
    """The output of an earlier start is not shown."""
    process = Process(["/bin/sh", "-c", "echo $$"], log=tmp_path / "log", environ=os.environ)
    for _ in range(2):
        process.start()
        pid = process.pid
        assert wait_for_word(process) == str(pid)
        process.kill()
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_guard_has_no_secret(tmp_path: Path) -> None:
    """It gets none of the variables of the process that starts it."""
    process = Process(["sleep", "60"], log=tmp_path / "log", environ={})
    process.start()

    def guards() -> list[Path]:
        return [command for command in Path("/proc").glob("[0-9]*/cmdline") if f"\0guard\0-{process.pid}\0" in read(command)]

    try:
        until(guards)  # it starts beside the process
        assert {variable.split("=")[0] for variable in read(guards()[0].with_name("environ")).split("\0")} <= {
            "",
            "PWD",
            "SITELINK_DATA_DIR",
        }
    finally:
        process.kill()


def read(file: Path) -> str:
    """The text of a file of ``/proc``; empty when its process has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])  # noqa: S104 - nothing is served
def test_free_port_can_be_taken(host: str) -> None:
    """A port that is reported free can be taken."""
    assert is_free(free_port(host), host)


def test_free_port_is_given_once() -> None:
    """Callers that ask before their servers listen get different ports."""
    first = free_port()
    ports = [port for port in range(first, first + 40) if is_free(port)]
    script = f"from deploy.process import free_port; print(*(free_port(ports={ports[1::2]}) for _ in range(3)))"
    theirs = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    others = [port for port in ports if port != first]
    ours = [free_port(ports=others) for _ in range(len(others) - 5)]
    given = [first, *map(int, theirs), *ours]
    assert len(set(given)) == len(given)


def test_wanted_port_is_taken_once() -> None:
    """If two stacks want a port before either listens, one gets it until it ends in any way. The other one gets a free port."""
    wanted = free_port()
    script = (
        f"import sys; from deploy.process import take_port; port, claim = take_port({wanted}); print(port, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == wanted
        port, claim = take_port(wanted)
        assert port != wanted
        assert claim is None
        other.kill()
        other.communicate()
    port, claim = take_port(wanted)
    assert port == wanted
    assert claim is not None
    claim.close()
    assert take_port(0)[1] is None
