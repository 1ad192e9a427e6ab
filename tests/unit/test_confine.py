"""Code that has taken over a render child reaches nothing: no secret, no other document, no network, no process."""

import asyncio
import errno
import json
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import pytest

from activities.errors import RenderTimeout, UnreadablePdf
from activities.render import confine, memorylimit, seccomp
from activities.render.child import RETIRED, ChildLimits, ChildPool
from tests.resources import make_pdfs
from tests.unit.attacks import ATTACKS, FOR_ROOT, OFTEN_REFUSED
from tests.unit.test_child import OPTIONS, Sheets, fork_servers, none_alive, render_children, silent
from tests.waiting import until_async
from worker.app import check_confinement
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
NOBODY = 65534
X86, ARM = "x86_64", "aarch64"

pytestmark = pytest.mark.skipif(
    not confine.landlock_version() or platform.machine() not in (X86, ARM), reason="this kernel has no Landlock, or another machine"
)


@pytest.fixture
def sheets(tmp_path: Path) -> Sheets:
    """A directory for PDFs and tiles."""
    return Sheets(tmp_path)


def attack(mode: str, user: int) -> dict[str, str]:
    """The outcome of each attack on a worker of this user."""
    environment = {**os.environ, "SITELINK_MADE_UP": "the-secret-of-the-bucket"}
    python = sys.executable
    if user != os.geteuid():
        environment |= for_others()
        python = next((path for path in (sys.executable, "/usr/bin/python3") if can_run(path, user, environment)), "")
        if not python:
            pytest.skip("another user cannot run this interpreter")
    result = run_as(user, [python, "-m", "tests.unit.attacks", mode], environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(result.stdout))


def for_others() -> dict[str, str]:
    """The environment in which another user, or another interpreter, runs our program."""
    return {**os.environ, "HOME": "/", "PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}


def can_run(python: str, user: int, environment: dict[str, str]) -> bool:
    """Whether a user can run this program with the interpreter."""
    code = f"import sys, activities.render.renderer; assert sys.version_info[:2] == {sys.version_info[:2]!r}"
    with suppress(OSError):
        return run_as(user, [python, "-c", code], environment).returncode == 0
    return False


def run_as(user: int, command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs a program as a user; only root may name another one."""
    if user == os.geteuid():
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, user=user, group=user, extra_groups=[]
    )


@pytest.mark.parametrize("user", sorted({os.geteuid(), os.geteuid() or NOBODY}))
def test_no_attack_succeeds(user: int) -> None:
    """Each is refused by a confined child. Without the confinement the same code succeeds, so it does try what it says."""
    after, before = attack("confined", user), attack("unconfined", user)
    rows = [f"{name} | {before.get(name)} | {after.get(name)}" for name in ATTACKS]
    assert after.keys() == before.keys() == ATTACKS.keys(), rows
    assert {name: outcome for name, outcome in after.items() if outcome not in ("EPERM", "EACCES", "ENOSYS", "ValueError")} == {}, rows
    may_fail = OFTEN_REFUSED | (FOR_ROOT if user else set())
    assert {name for name, outcome in before.items() if outcome != "done"} <= may_fail, rows
    print("attack | before | after", *rows, sep="\n")  # noqa: T201 (the table, for whoever asks pytest for it)


IGNORES_ITS_LIMIT = "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"


async def test_child_that_ignores_its_limit_of_cpu_time_is_killed(sheets: Sheets) -> None:
    """The worker itself looks at the CPU time, long before the limit of wall time."""
    pool = ChildPool(1, ChildLimits(cpu_s=1, wall_s=10_000), fork_server="tests.unit.attacks")
    source = sheets.source(f"{{}}\n{IGNORES_ITS_LIMIT}".encode())
    try:
        with pytest.raises(RenderTimeout, match="not done after 1 s of CPU time"):
            await pool.count_pages("a", source, OPTIONS, 2000, silent)
    finally:
        await pool.close()


async def test_child_starts_while_its_user_has_many_descriptors_on_their_way(sheets: Sheets) -> None:
    """Other processes of its user may have sent them, such as frozen workers. They are more than a child may have open."""
    pool = ChildPool(1, fork_server="tests.unit.attacks")
    code = f"assert resource.getrlimit(resource.RLIMIT_NOFILE) == ({confine.OPEN_FILES},) * 2"
    sender, receiver = socket.socketpair()
    with sender, receiver:
        socket.send_fds(sender, [b"!"], [sender.fileno()] * 4 * confine.OPEN_FILES)
        try:
            with pytest.raises(UnreadablePdf, match="done"):
                await pool.count_pages("a", sheets.source(f"{{}}\n{code}".encode()), OPTIONS, 2000, silent)
        finally:
            await pool.close()


async def test_files_of_a_child_are_bounded(sheets: Sheets) -> None:
    """It may write only the files that the worker has opened, and they cannot become larger than a page's pixels may be."""
    limits = ChildLimits(memory_bytes=150 << 20)
    pool = ChildPool(1, limits, fork_server="tests.unit.attacks")
    code = "assert resource.getrlimit(resource.RLIMIT_FSIZE) == (100 << 20,) * 2"
    try:
        with pytest.raises(UnreadablePdf, match="done"):
            await pool.count_pages("a", sheets.source(f"{{}}\n{code}".encode()), OPTIONS, 2000, silent)
    finally:
        await pool.close()


async def test_layers_are_told_by_trying() -> None:
    """This kernel has all of them but the user of its own, which only root can give."""
    pool = ChildPool(1)
    try:
        layers = await pool.layers()
    finally:
        await pool.close()
    assert {confine.LANDLOCK, confine.SECCOMP} <= set(layers)
    assert confine.OWN_USER not in layers


async def test_child_that_could_not_read_its_libraries_keeps_the_user_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as where root has a Python of its own below /root. One line names the directory, and no child fails first."""
    (tmp_path / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "closed" / "python"))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    ends: list[str] = []
    pool = ChildPool(1, first_user=65100, on_end=ends.append)
    try:
        assert confine.OWN_USER not in await pool.layers()
    finally:
        await pool.close()
    (line,) = caplog.messages
    assert re.fullmatch(r"render children keep the user of the worker: another user may not enter /\S+", line)
    assert set(ends) <= {RETIRED}


class Layers(ChildPool):
    """A pool whose children have only the given layers."""

    def __init__(self, *held: str) -> None:
        super().__init__(1)
        self._held = list(held)

    async def layers(self) -> list[str]:
        """See ``ChildPool.layers``."""
        return self._held


@pytest.mark.parametrize("held", [(), (confine.LANDLOCK,), (confine.SECCOMP, confine.NAMESPACES)])
async def test_workerfor_others_refuses_to_render_unconfined(held: tuple[str, ...]) -> None:
    """It says what is missing and which setting allows it. Without access control, or with the setting, it only warns."""
    with pytest.raises(ValueError, match="SITELINK_UNCONFINED=allow"):
        await check_confinement(Layers(*held), must_confine=True)
    await check_confinement(Layers(*held), must_confine=False)


@pytest.mark.parametrize("held", [(confine.LANDLOCK, confine.SECCOMP), (confine.OWN_USER, confine.SECCOMP)])
async def test_worker_says_in_one_line_which_layers_hold(held: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """The line names the layers that hold, and the layers that are missing."""
    caplog.set_level("INFO")
    await check_confinement(Layers(*held), must_confine=True)
    (line,) = caplog.messages
    assert line.startswith(f"render children are confined by: {', '.join(held)}; missing: ")


def test_access_makes_confinement_a_must() -> None:
    """A tile worker learns from the API's own setting that others can send documents."""
    for environ, must in (
        ({}, False),
        ({"SITELINK_ACCESS": "jwt"}, True),
        ({"SITELINK_ACCESS": "jwt", "SITELINK_UNCONFINED": "allow"}, False),
    ):
        assert WorkerSettings.from_env(environ).must_confine is must
    with pytest.raises(ValueError, match="SITELINK_UNCONFINED"):
        WorkerSettings.from_env({"SITELINK_ACCESS": "jwt", "SITELINK_UNCONFINED": "yes"})


OWN_USERS = """
import asyncio, json, os, sys
from pathlib import Path
from activities.render.child import ChildPool
from activities.bucket.records import UploadOptions

async def main():
    pool = ChildPool(2, first_user=65100)
    print(json.dumps(await pool.layers()))
    source = Path(sys.argv[1])
    os.chmod(source, 0o600)
    count = lambda upload: pool.count_pages(upload, source, UploadOptions(), 2000, lambda: None)
    pages = [len(document.pages) for document in await asyncio.gather(count("a"), count("b"))]
    users = [int(Path(f"/proc/{child.pid}/status").read_text().split("Uid:")[1].split()[0]) for child in pool._idle]
    print(json.dumps([pages, sorted(users)]))
    await pool.close()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another user")
def test_children_of_root_have_a_user_for_each_slot(tmp_path: Path) -> None:
    """They read their document, which belongs to root and which no other user may read. The folders above it are closed to them."""
    python = next((path for path in (sys.executable, "/usr/bin/python3") if can_run(path, NOBODY, for_others())), "")
    if not python:
        pytest.skip("another user cannot run this interpreter")
    (tmp_path / "closed").mkdir(mode=0o700)
    source = tmp_path / "closed" / "source.pdf"
    source.write_bytes(make_pdfs.plan_set(2))
    result = run_as(0, [python, "-c", OWN_USERS, str(source)], for_others())
    assert result.returncode == 0, result.stderr[-3000:]
    layers, told = map(json.loads, result.stdout.splitlines())
    assert confine.OWN_USER in layers
    assert told == [[2, 2], [65100, 65101]]


async def test_idle_child_ends(sheets: Sheets) -> None:
    """It holds a stranger's document; the next page gets a fresh child."""
    pool = ChildPool(1, idle_s=0.05)
    source = sheets.source(make_pdfs.one_page())
    try:
        await sheets.tile(pool, source)
        await until_async(lambda: not render_children())
        await sheets.tile(pool, source)
    finally:
        await pool.close()


async def test_fork_server_is_renewed_while_its_last_child_works(sheets: Sheets) -> None:
    """The worn server forks no more, ends with its last child, and no call waits for this."""
    pool = ChildPool(2, renew_forks=2)
    source = sheets.source(make_pdfs.one_page())
    try:
        await sheets.tile(pool, source)
        (first,) = fork_servers()
        busy = asyncio.Event()
        task = asyncio.create_task(sheets.tile(pool, sheets.source(make_pdfs.nested_forms(), "hangs.pdf"), upload="b", beat=busy.set))
        await busy.wait()
        await sheets.tile(pool, source, upload="c")
        servers = fork_servers()
        assert len(servers) == 2
        assert first in servers
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await until_async(lambda: none_alive({first}))
        assert fork_servers() == servers - {first}
    finally:
        await pool.close()
    assert fork_servers() == set()


def run_program(program: bytes, number: int, machine: str, *arguments: int) -> int:
    """The answer of a filter to a system call."""
    data = struct.pack("=IIQ6Q", number, seccomp.AUDIT_ARCH.get(machine, 0), 0, *arguments, *[0] * (6 - len(arguments)))
    lines = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = lines[at]
        at += 1
        if operation == seccomp.LOAD:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif operation == seccomp.ANSWER:
            return int(operand)
        else:
            tests = {
                seccomp.EQUAL: accumulator == operand,
                seccomp.AT_LEAST: accumulator >= operand,
                seccomp.ANY_BIT: bool(accumulator & operand),
            }
            at += if_true if tests[operation] else if_false


PID = 4711
REFUSED = seccomp.refuse(errno.EPERM)
CALLS = [
    # Number on x86-64, number on aarch64, arguments, answer.
    ("read", 0, 63, (), seccomp.ALLOW),
    ("execve", 59, 221, (), REFUSED),
    ("execveat", 322, 281, (), REFUSED),
    ("fork", 57, None, (), REFUSED),
    ("vfork", 58, None, (), REFUSED),
    ("clone of a thread", 56, 220, (0x3D0F00,), seccomp.ALLOW),
    ("clone of a process", 56, 220, (17,), REFUSED),
    ("clone3", 435, 435, (), seccomp.refuse(errno.ENOSYS)),
    ("private memory", 9, 222, (0, 4096, 3, 0x22), seccomp.ALLOW),
    ("library", 9, 222, (0, 4096, 5, 0x802), seccomp.ALLOW),
    ("shared memory", 9, 222, (0, 4096, 3, 0x21), REFUSED),
    ("file mapped shared to be read", 9, 222, (0, 4096, 1, 0x01, 3), REFUSED),
    ("file mapped shared by the newer flag", 9, 222, (0, 4096, 3, 0x03, 3), REFUSED),
    ("socket", 41, 198, (1,), REFUSED),
    ("connect", 42, 203, (3,), REFUSED),
    ("answer", 44, 206, (3, 1, 1, 0, 0, 0), seccomp.ALLOW),
    ("answer to another socket", 44, 206, (3, 1, 1, 0, 1 << 32, 0), REFUSED),
    ("sendmsg", 46, 211, (3,), REFUSED),
    ("open to read", 257, 56, (0, 1, 0x80000), seccomp.ALLOW),
    ("open to write", 257, 56, (0, 1, 0x80001), REFUSED),
    ("open to make", 257, 56, (0, 1, 0x80040), REFUSED),
    ("open without a name", 257, 56, (0, 1, 0x400000), REFUSED),
    ("old open to read", 2, None, (1, 0), seccomp.ALLOW),
    ("old open to write", 2, None, (1, 2), REFUSED),
    ("openat2", 437, 437, (), REFUSED),
    ("abort", 234, 131, (PID, PID, 6), seccomp.ALLOW),
    ("signal", 234, 131, (PID + 1, PID + 1, 9), REFUSED),
    ("kill", 62, 129, (PID, 9), REFUSED),
    ("own limit", 302, 261, (0,), seccomp.ALLOW),
    ("another's limit", 302, 261, (PID,), REFUSED),
    ("F_DUPFD", 72, 25, (3, 0), seccomp.ALLOW),
    ("F_SETOWN", 72, 25, (3, 8), REFUSED),
    ("F_SETFL", 72, 25, (3, 4), REFUSED),
    ("TIOCSTI", 16, 29, (0, 0x5412), REFUSED),
    ("PR_SET_NAME", 157, 167, (15,), seccomp.ALLOW),
    ("PR_SET_DUMPABLE", 157, 167, (4,), REFUSED),
    ("PR_SET_PDEATHSIG", 157, 167, (1,), REFUSED),
    ("ptrace", 101, 117, (), REFUSED),
    ("io_uring_setup", 425, 425, (), REFUSED),
    ("unshare", 272, 97, (), REFUSED),
    ("setns", 308, 268, (), REFUSED),
    ("process_vm_readv", 310, 270, (), REFUSED),
    ("pidfd_getfd", 438, 438, (), REFUSED),
    ("seccomp", 317, 277, (), REFUSED),
    ("call of the future", 999, 999, (), REFUSED),
]


@pytest.mark.parametrize(("x86", "arm", "arguments", "answer"), [each[1:] for each in CALLS], ids=[each[0] for each in CALLS])
def test_filter_knows_both_machines(x86: int, arm: int | None, arguments: tuple[int, ...], answer: int) -> None:
    """The program answers right for the numbers of x86-64 and of aarch64."""
    assert run_program(confine.program(X86, PID), x86, X86, *arguments) == answer
    if arm is not None:
        assert run_program(confine.program(ARM, PID), arm, ARM, *arguments) == answer


@pytest.mark.parametrize(("machine", "clone"), [(X86, 56), (ARM, 220)])
def test_process_that_needs_no_threads_may_start_none(machine: str, clone: int) -> None:
    """On both machines. All other calls are as in a process that may."""
    program = confine.program(machine, PID, threads=False)
    assert run_program(program, clone, machine, 0x3D0F00) == REFUSED
    assert run_program(program, clone, machine, 17) == REFUSED
    assert run_program(program, 435, machine) == seccomp.refuse(errno.ENOSYS)
    assert run_program(program, 0 if machine == X86 else 63, machine) == seccomp.ALLOW


@pytest.mark.parametrize("machine", [X86, ARM])
def test_calls_of_other_machines_end_the_process(machine: str) -> None:
    """Their numbers mean other calls: 32-bit calls of any kernel, and x32's."""
    program = confine.program(machine, PID)
    assert run_program(program, 11, "i386") == seccomp.KILL
    assert run_program(program, seccomp.X32 + 1, machine) == seccomp.KILL


@pytest.mark.parametrize(("machine", "mmap"), [(X86, 9), (ARM, 222)])
def test_memory_is_judged_on_both_machines(machine: str, mmap: int) -> None:
    """Private writable memory waits for the judge; shared memory is refused, also to be read, for it could become writable."""
    program = memorylimit.program(machine)
    assert run_program(program, mmap, machine, 0, 4096, 3, 0x22) == seccomp.NOTIFY
    assert run_program(program, mmap, machine, 0, 4096, 3, 0x21) == REFUSED
    assert run_program(program, mmap, machine, 0, 4096, 1, 0x01) == REFUSED
    assert run_program(program, mmap, machine, 0, 4096, 1, 0x02) == seccomp.ALLOW
