"""The memory limit is exact whatever function asks for memory, and no request is refused silently."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from activities.render.memorylimit import OTHER_BYTES

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
ALLOWANCE = 64 * MEBIBYTE

HARNESS = """
import ctypes, json, mmap, os, resource, select, signal, socket, sys, threading
from activities.render import memorylimit

allowance = int(sys.argv[1])
own_status = os.open("/proc/self/status", os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
for allocate in (libc.malloc, libc.calloc, libc.realloc, libc.aligned_alloc, libc.mmap, libc.mremap):
    allocate.restype = ctypes.c_void_p

def used():
    return memorylimit.read_status(own_status)["VmData"]

def took(size, address):
    # The parent gets it even if the next step ends this process.
    os.write(told, size.to_bytes(8, "little"))
    if address in (None, -1, ctypes.c_void_p(-1).value):
        os._exit(7)

greeting, theirs = socket.socketpair()
tells, told = os.pipe()
start = used()
limit = start + allowance
pid = os.fork()
if pid == 0:
    listener = memorylimit.watch()
    socket.send_fds(theirs, [b"!"], [listener])
    os.close(listener)
    memorylimit.set_limits(own_status, limit, document_bytes=0)
    exec(sys.argv[2])
    os._exit(0)
os.close(told)
theirs.close()
_, listeners, _, _ = socket.recv_fds(greeting, 1, 1)
ready = select.poll()
ready.register(listeners[0], select.POLLIN)
ready.register(tells, select.POLLIN)
judge = memorylimit.Judge(listeners[0], os.open(f"/proc/{pid}/status", os.O_RDONLY), limit)
over, total, alive = False, 0, True
while alive:
    for descriptor, event in ready.poll():
        if descriptor == tells:
            data = os.read(tells, 8 * 512)
            total += sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))
            alive = bool(data)
        elif not event & select.POLLIN:
            ready.unregister(descriptor)
        elif not judge.judge():
            over = True
            os.kill(pid, signal.SIGKILL)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({"over": over, "status": status, "total": total}))
"""


def run(code: str, allowance: int = ALLOWANCE) -> tuple[bool, int, int]:
    """Runs ``code`` in a watched process that may take ``allowance`` bytes more than it has.

    Returns:
        Whether it was killed for its memory; its exit code or minus the signal; and how many bytes it reported to have taken.
    """
    answer = json.loads(subprocess.check_output([sys.executable, "-c", HARNESS, str(allowance), code], cwd=ROOT))
    return answer["over"], answer["status"], answer["total"]


KINDS = {
    "small malloc": (1000, "while True: took({size}, libc.malloc({size}))"),
    "malloc below the threshold of mmap": (100_000, "while True: took({size}, libc.malloc({size}))"),
    "malloc above it": (300_000, "while True: took({size}, libc.malloc({size}))"),
    "calloc": (5_000_000, "while True: took({size}, libc.calloc(1, {size}))"),
    "aligned_alloc": (300_032, "while True: took({size}, libc.aligned_alloc(64, {size}))"),
    "mmap": (1 << 16, "while True: took({size}, libc.mmap(None, ctypes.c_size_t({size}), 3, 0x22, -1, 0))"),
    "objects of Python": (40_032, "kept = []\nwhile True: kept.append([bytes(367) for _ in range(100)]); took({size}, 1)"),
    "malloc in a thread": (
        100_000,
        "def work():\n while True: took({size}, libc.malloc({size}))\nthreading.Thread(target=work).start()\nwhile True: signal.pause()",
    ),
}


@pytest.mark.parametrize(("size", "code"), KINDS.values(), ids=KINDS)
def test_limit_is_hit_exactly(size: int, code: str) -> None:
    """Every function gets memory up to the limit; the first request beyond it ends the process; none is refused."""
    over, status, total = run(code.format(size=size))
    assert (over, status) == (True, -9)
    # The rest is a thread's stack, and the memory that malloc and Python take in advance and between the blocks.
    assert ALLOWANCE * 5 / 6 - size < total <= ALLOWANCE


def test_one_large_request_beyond_the_limit_ends_the_process() -> None:
    """While the process is far below its limit: two blocks do not fit together, or a block has to grow. The request is not refused."""
    size = ALLOWANCE // 2 + 1
    for second in (f"libc.malloc({size})", f"libc.realloc(ctypes.c_void_p(libc.malloc({size // 4})), ctypes.c_size_t({size}))"):
        over, status, total = run(f"took({size}, libc.malloc({size}))\ntook({size}, {second})")
        assert (over, status, total) == (True, -9, size)


@pytest.mark.parametrize("call", ["libc.malloc({size})", "libc.calloc(1, {size})"])
def test_request_that_is_refused_for_another_reason_ends_the_process(call: str) -> None:
    """The request is below the limit, but there is no address space for it: it is not refused silently either."""
    size = ALLOWANCE // 2
    code = f"""
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, [pages * mmap.PAGESIZE + {size // 2}] * 2)
took({size}, {call.format(size=size)})
"""
    assert run(code) == (True, -9, 0)


GRANTED = {
    "thread, then a block": "threading.Thread(target=lambda: None).start()\ntook({size}, libc.malloc({size}))",
    "a thread's heap that grows": """
address = libc.mmap(None, ctypes.c_size_t(8 * {size}), 0, 0x4022, -1, 0)
for part in range(4):
    took({size}, 1 if libc.mprotect(ctypes.c_void_p(address + part * {size}), ctypes.c_size_t({size}), 3) == 0 else None)
took({size}, libc.malloc({size}))
""",
    "in the place of another mapping": """
address = libc.mmap(None, ctypes.c_size_t({size}), 3, 0x22, -1, 0)
for _ in range(4):
    took({size}, libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t({size}), 3, 0x32, -1, 0))
took({size}, libc.malloc({size}))
""",
}


@pytest.mark.parametrize("code", GRANTED.values(), ids=GRANTED)
def test_request_that_takes_no_address_space_is_not_taken_for_a_refused_one(code: str) -> None:
    """A thread's stack, its heap, and the data of a loaded library do not raise the peak, and the next request passes, too."""
    over, status, _ = run(code.format(size=4 * MEBIBYTE))
    assert (over, status) == (False, 0)


def test_process_just_under_the_limit_goes_on() -> None:
    """A process may take all its memory and give it back, again and again."""
    size = ALLOWANCE - MEBIBYTE
    over, status, total = run(
        f"for _ in range(50):\n block = libc.malloc({size})\n took({size}, block)\n libc.free(ctypes.c_void_p(block))"
    )
    assert (over, status, total) == (False, 0, 50 * size)


@pytest.mark.parametrize("beyond", [0, 1])
def test_limit_counts_pages_as_the_kernel_does(beyond: int) -> None:
    """A block that ends at the limit is granted; a block that is one page longer is not."""
    code = f"""
page = mmap.PAGESIZE
left = limit // page * page - used() + {beyond} * page
took(left, libc.mmap(None, ctypes.c_size_t(left), 3, 0x22, -1, 0))
"""
    over, status, _ = run(code)
    assert (over, status) == ((True, -9) if beyond else (False, 0))


SHARED = {
    "anonymous": "mmap.mmap(-1, 1 << 20)",
    "memfd": "os.memfd_create('x')",
    "file": "mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
    "downwards": "mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)",
}


@pytest.mark.parametrize("code", SHARED.values(), ids=SHARED)
def test_memory_that_the_limit_does_not_count_is_not_to_be_had(code: str) -> None:
    """Shared memory and memory that grows downwards are refused, so they are no way around the limit."""
    assert run(f"try:\n {code}\nexcept PermissionError:\n os._exit(3)") == (False, 3, 0)
    assert run("os._exit(3 if libc.shmget(0, 1 << 20, 0o1600) == -1 and ctypes.get_errno() == 1 else 4)") == (False, 3, 0)


UNCOUNTED = {
    "written, then made read-only": (
        32 * MEBIBYTE,
        """
address = libc.mmap(None, ctypes.c_size_t({size}), 3, 0x22, -1, 0)
took({size}, address)
libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t({size}), 1)
""",
    ),
    "reserved, then made writable in small parts": (1 << 30, "took({size}, libc.mmap(None, ctypes.c_size_t({size}), 0, 0x4022, -1, 0))"),
    "tables of pages that are only read": (1 << 30, "took({size}, libc.mmap(None, ctypes.c_size_t({size}), 1, 0x4022, -1, 0))"),
}


@pytest.mark.parametrize(("size", "code"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_memory_that_is_not_private_is_limited(size: int, code: str) -> None:
    """RLIMIT_DATA does not count what is not writable at the moment, but the limit of the address space does."""
    most = ALLOWANCE + OTHER_BYTES + size  # the last request, which is refused, is told, too
    body = code.format(size=size).replace("\n", "\n ")
    _, status, total = run(f"for _ in range({2 * most // size}):\n {body}")
    assert status != 0
    assert total <= most


def test_stack_does_not_grow_beyond_its_limit() -> None:
    """RLIMIT_DATA does not count the stack: its limit cannot be raised."""
    raised = "try:\n resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, 64 << 20))\nexcept ValueError:\n os._exit(3)"
    assert run(raised) == (False, 3, 0)


@pytest.mark.parametrize(("share", "exceeded"), [(0.9, False), (1.1, True)])
def test_peak_is_remembered(share: float, exceeded: bool) -> None:
    """A process without a judge knows that it was over its limit after it has given the memory back; below the limit it is not blamed."""
    code = f"""
peak = memorylimit.PeakLimit(os.open("/proc/self/status", os.O_RDONLY), start + {ALLOWANCE})
block = libc.malloc({int(share * ALLOWANCE)})
libc.free(ctypes.c_void_p(block))
threads = [threading.Thread(target=libc.malloc, args=(1000,)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os._exit(peak.is_exceeded())
"""
    assert run(code, 2 * ALLOWANCE)[:2] == (False, exceeded)
