"""Each process that opens a stranger's file has a control group, where the kernel and its owner give one.

The tests with real groups run with whichever version of the interface this machine has. The other tests read and write a folder that
looks like version 2, because a machine has its controllers in one version only.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from activities.errors import RenderOutOfMemory, UnreadablePdf
from activities.render import cgroup, confine
from activities.render.child import ChildLimits, ChildPool
from activities.render.decoder import Decoder
from tests.resources import make_pdfs
from tests.unit.test_child import OPTIONS, WORKER, Sheets, fork_servers, none_alive, render_children, silent
from tests.unit.test_confine import NOBODY, ROOT, can_run, for_others, run_as
from tests.waiting import until

MEBIBYTE = 1 << 20
LIMITS = ChildLimits(memory_bytes=200 * MEBIBYTE)
MOST_BYTES = LIMITS.memory_bytes + cgroup.OTHER_BYTES


def real_groups() -> cgroup.Groups | None:
    """The place for groups of this machine; None if there is none."""
    with suppress(OSError):
        groups = cgroup.find()
        groups.make(0, MEBIBYTE, 1).remove()
        return groups
    return None


@pytest.fixture
def groups() -> cgroup.Groups:
    """The place for groups of this machine."""
    if (found := real_groups()) is None:
        pytest.skip("this user may make no control groups here")
    return found


@pytest.fixture
def sheets(tmp_path: Path) -> Sheets:
    """A directory for PDFs and tiles."""
    return Sheets(tmp_path)


def group_of(pid: int, groups: cgroup.Groups) -> cgroup.Group:
    """The group in which a process is."""
    (name,) = {line.rsplit("/", 1)[1] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if "/sitelink-child-" in line}
    return cgroup.Group(groups.memory / name, groups.pids / name)


def number(folder: Path, *files: str) -> int:
    """The number in the first of these files that exists: version 2 has other names."""
    return next(int((folder / name).read_text()) for name in files if (folder / name).exists())


@asynccontextmanager
async def attacked(limits: ChildLimits = LIMITS) -> AsyncIterator[ChildPool]:
    """A pool whose children run the code in their documents."""
    pool = ChildPool(1, limits, fork_server="tests.unit.attacks")
    try:
        yield pool
    finally:
        await pool.close()


async def test_child_has_a_group_and_leaves_none(groups: cgroup.Groups, sheets: Sheets) -> None:
    """The group has the child's limits, the layer is told, and both end together."""
    pool = ChildPool(1, LIMITS)
    try:
        assert cgroup.LAYER in await pool.layers()
        await sheets.tile(pool, sheets.source(make_pdfs.one_page()))
        (pid,) = render_children()
        group = group_of(pid, groups)
        assert number(group.memory, "memory.max", "memory.limit_in_bytes") == MOST_BYTES
        assert number(group.pids, "pids.max") == confine.TASKS
        assert str(pid) in (group.pids / "cgroup.procs").read_text().split()
    finally:
        await pool.close()
    assert not group.memory.exists()
    assert not group.pids.exists()


NOT_WRITABLE = """
libc.mmap.restype = ctypes.c_void_p
while True:
    address = check(libc.mmap(None, ctypes.c_size_t(1 << 25), 3, 0x22, -1, 0))
    ctypes.memset(address, 1, 1 << 25)
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(1 << 25), 1)
"""


async def test_memory_that_the_exact_limit_does_not_count_is_limited(groups: cgroup.Groups, sheets: Sheets) -> None:
    """Memory that was written and is not writable any more. The kernel kills the child, and the fault has the usual name."""
    async with attacked() as pool:
        with pytest.raises(RenderOutOfMemory, match=f"{LIMITS.memory_bytes:,} bytes"):
            await pool.count_pages("a", sheets.source(f"{{}}\n{NOT_WRITABLE}".encode()), OPTIONS, 2000, silent)
        assert not list(groups.memory.glob(f"sitelink-child-{pool.start()._process.pid}-*"))


THREADS = """
import threading
stop, started = threading.Event(), 0
try:
    while started < 1000:
        threading.Thread(target=stop.wait, daemon=True).start()
        started += 1
except RuntimeError:
    raise OSError(11, "") if started < 64 else ValueError
"""


async def test_threads_of_a_child_are_bounded(groups: cgroup.Groups, sheets: Sheets) -> None:
    """The kernel refuses the next one, and the child answers as before."""
    async with attacked(ChildLimits()) as pool:  # 64 stacks need more than ``LIMITS``
        with pytest.raises(UnreadablePdf, match="EAGAIN"):
            await pool.count_pages("a", sheets.source(f"{{}}\n{THREADS}".encode()), OPTIONS, 2000, silent)


JOIN = """
import mmap, os, sys, threading
from pathlib import Path
from activities.render.cgroup import Group
Group(Path(sys.argv[1]), Path(sys.argv[2])).join()
file = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 256 << 20)
exec(sys.argv[4])
"""


@pytest.fixture
def group(groups: cgroup.Groups) -> Iterator[cgroup.Group]:
    """A group of 64 MiB and 8 tasks."""
    made = groups.make(1, 64 * MEBIBYTE - cgroup.OTHER_BYTES, 8)
    yield made
    made.remove()
    assert not made.memory.exists()
    assert not made.pids.exists()


def run_in(group: cgroup.Group, file: Path, code: str) -> int:
    """Runs code in the group, with a file of 256 MiB; returns the exit code or minus the signal."""
    return subprocess.run([sys.executable, "-c", JOIN, group.memory, group.pids, file, code], cwd=ROOT, check=False).returncode


CACHE = {
    "read": "while os.read(file, 1 << 20): pass",
    "mapped": "mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ); [mapped[at] for at in range(0, len(mapped), 4096)]",
}


@pytest.mark.parametrize("code", CACHE.values(), ids=CACHE)
def test_cache_of_files_is_bounded(group: cgroup.Group, tmp_path: Path, code: str) -> None:
    """A process that reads more than its group may hold goes on: the kernel drops the oldest pages."""
    assert run_in(group, tmp_path / "file", code) == 0
    assert number(group.memory, "memory.current", "memory.usage_in_bytes") <= 64 * MEBIBYTE
    assert not group.was_over_limit()


def test_files_in_memory_are_bounded(group: cgroup.Group) -> None:
    """Their pages cannot be dropped, so the kernel kills the process."""
    file = Path(f"/dev/shm/sitelink-test-{os.getpid()}")  # noqa: S108 (a tmpfs)
    try:
        status = run_in(group, file, "while True: os.write(file, bytes(1 << 20))")
    finally:
        file.unlink(missing_ok=True)
    assert (status, group.was_over_limit()) == (-signal.SIGKILL, True)


def test_process_that_was_killed_for_another_reason_was_not_over_the_limit(group: cgroup.Group, tmp_path: Path) -> None:
    """A signal alone says nothing about memory."""
    assert run_in(group, tmp_path / "file", "os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert not group.was_over_limit()


def test_tasks_are_bounded(group: cgroup.Group, tmp_path: Path) -> None:
    """Also those of root, whom no other limit binds."""
    code = """
stop = threading.Event()
for started in range(100):
    try:
        threading.Thread(target=stop.wait, daemon=True).start()
    except RuntimeError:
        os._exit(started)
"""
    assert run_in(group, tmp_path / "file", code) == 7


def test_groups_of_a_killed_worker_are_removed_by_the_next(groups: cgroup.Groups, sheets: Sheets) -> None:
    """SIGKILL leaves the groups of both busy children. The groups of a fork server that is alive stay, also if they are empty."""
    kept = groups.make(2, MEBIBYTE, 1)
    source = sheets.source(make_pdfs.nested_forms())
    try:
        with subprocess.Popen([sys.executable, "-c", WORKER, source, sheets.target()], cwd=ROOT) as process:
            until(lambda: len(render_children(process.pid)) == 2)
            children = render_children(process.pid)
            (server,) = fork_servers(process.pid)
            left = [path for folder in {groups.memory, groups.pids} for path in folder.glob(f"sitelink-child-{server}-*")]
            process.kill()
        until(lambda: none_alive(children))
        assert len({path.name for path in left}) == 2
        # The groups of a server's last children may be in use a moment longer than the processes are seen.
        until(lambda: cgroup.find() and not any(path.exists() for path in left))
        assert kept.memory.exists()
        assert kept.pids.exists()
    finally:
        kept.remove()


def test_decoder_has_a_group_and_leaves_none(groups: cgroup.Groups) -> None:
    """``verify`` has the layer, too; ``/readyz`` shows it."""
    with Decoder() as decoder:
        assert cgroup.LAYER in decoder.layers
        group = group_of(decoder.pid, groups)
        assert number(group.pids, "pids.max") == confine.TASKS
    assert not group.memory.exists()
    assert not group.pids.exists()


TOLD = """
import asyncio, logging, sys
from activities.render.child import ChildPool
from worker.app import check_confinement

async def main():
    pool = ChildPool(1)
    await check_confinement(pool, must_confine=False)
    await pool.close()

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
asyncio.run(main())
"""


def test_ordinary_user_is_told_that_the_layer_is_missing() -> None:
    """A user to whom no group was given renders all the same."""
    environment = for_others()
    user = os.geteuid() or NOBODY
    python = next((path for path in (sys.executable, "/usr/bin/python3") if can_run(path, user, environment)), "")
    if not python:
        pytest.skip("another user cannot run this interpreter")
    result = run_as(user, [python, "-c", TOLD], environment)
    assert result.returncode == 0, result.stderr[-3000:]
    held, missing = result.stdout.splitlines()[-1].split("; missing: ")
    assert held.startswith("render children are confined by: ")
    assert (cgroup.LAYER in held.split(", "), cgroup.LAYER in missing.split(", ")) == (
        (False, True) if os.geteuid() == 0 else (real_groups() is not None, real_groups() is None)
    )


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A folder that looks like the group of a systemd service with ``Delegate=yes``, in which this process and its parent are."""
    folder = tmp_path / "cgroup" / "system.slice" / "sitelink.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    (folder / "cgroup.subtree_control").write_text("")
    (folder / "cgroup.procs").write_text(f"{os.getppid()}\n{os.getpid()}\n")
    return folder


def process(service: Path, path: str = "/system.slice/sitelink.service") -> Path:
    """A folder that looks like that of a process of the service in ``/proc``."""
    folder = service.parents[2] / "process"
    folder.mkdir()
    (folder / "cgroup").write_text(f"1:name=systemd:/elsewhere\n0::{path}\n")
    (folder / "mountinfo").write_text(
        f"24 1 8:1 / / rw - ext4 /dev/root rw\n41 31 0:38 / {service.parents[1]} rw,nosuid - cgroup2 cgroup2 rw\n"
    )
    return folder


def test_version_2_gets_limits_below_the_delegated_group(service: Path) -> None:
    """The worker moves into a group of its own first, because a group with processes cannot limit groups below it."""
    groups = cgroup.find(process(service))
    assert groups == cgroup.Groups(service, service)
    assert (service / "worker" / "cgroup.procs").read_text() == str(os.getppid())  # the last of two writes
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids"
    group = groups.make(3, 1 << 30, 64)
    group.join()
    assert group.memory == group.pids == service / f"sitelink-child-{os.getpid()}-3"
    assert {file.name: file.read_text() for file in group.memory.iterdir()} == {
        "memory.max": str((1 << 30) + cgroup.OTHER_BYTES),
        "memory.swap.max": "0",
        "pids.max": "64",
        "cgroup.procs": "0",
    }


@pytest.mark.parametrize(("events", "over"), [("oom 1\noom_kill 1", True), ("oom 0\noom_kill 1", False), ("oom 0\noom_kill 0", False)])
def test_version_2_tells_its_own_limit_from_that_of_the_worker(service: Path, events: str, over: bool) -> None:
    """A child that was killed because the whole worker had no memory left is a crash, and no fault of the page."""
    (service / "memory.events").write_text(f"low 0\nhigh 0\nmax 5\n{events}\noom_group_kill 0\n")
    assert cgroup.Group(service, service).was_over_limit() is over


def test_version_2_uses_a_group_that_systemd_has_prepared(service: Path) -> None:
    """With ``DelegateSubgroup=worker`` nothing is moved, so other processes may be beside the worker."""
    (service / "worker").mkdir()
    (service / "worker" / "cgroup.procs").write_text("1\n2\n3\n")
    assert cgroup.find(process(service, "/system.slice/sitelink.service/worker")) == cgroup.Groups(service, service)
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids"


@pytest.mark.parametrize(("file", "text"), [("cgroup.procs", "1\n"), ("cgroup.controllers", "cpu pids\n")])
def test_version_2_leaves_alone_what_it_may_not_use(service: Path, file: str, text: str) -> None:
    """Another process in the group, or a controller that was not delegated: nothing is made or moved."""
    (service / file).write_text(text)
    with pytest.raises(OSError, match=r"group|delegated"):
        cgroup.find(process(service))
    assert not (service / "worker").exists()
    assert (service / "cgroup.subtree_control").read_text() == ""


def test_group_outside_of_what_is_mounted_is_not_used(service: Path) -> None:
    """As in a container that sees another part of the tree."""
    with pytest.raises(FileNotFoundError):
        cgroup.find(process(service, "/../other.service"))
