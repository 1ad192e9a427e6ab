"""What code could do that has taken over a render child, tried in a real child where it opens its document.

``python -m tests.unit.attacks confined`` (or ``unconfined``) plays a worker with a secret, another tenant's document and a bucket. It
prints the outcome of each attack as JSON: ``done``, or the error that stopped it. Run as the fork server's module, this module puts the
code into the children: a document is a line of JSON with the names of the surroundings, then the code of the attack.
"""

import asyncio
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from activities.bucket.records import UploadOptions
from activities.errors import SiteLinkError, UnreadablePdf
from activities.interface import TilePage
from activities.render import confine, forkserver
from activities.render.child import ChildLimits, ChildPool

SECRET = "the-secret-of-the-bucket"  # noqa: S105 (made up)

PREPARATION = """
import ctypes, fcntl, mmap, os, platform, resource, signal, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
column = ("x86_64", "aarch64").index(platform.machine())
def call(numbers, *arguments):
    check(libc.syscall(ctypes.c_long(numbers[column]), *arguments))
def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
"""

ATTACKS = {
    "read the worker's environment": "assert b'the-secret' in open(f'/proc/{worker}/environ', 'rb').read()",
    "read the fork server's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "read the worker's memory": "f = open(f'/proc/{worker}/mem', 'rb', 0); f.seek(address); assert b'the-secret' in f.read(64)",
    "read the worker's memory by process_vm_readv": """
buffer = ctypes.create_string_buffer(64)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
ours, theirs = Vector(ctypes.addressof(buffer), 24), Vector(address, 24)
call((310, 270), worker, ctypes.byref(ours), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1), ctypes.c_ulong(0))
""",
    "attach to the worker": "check(libc.ptrace(0x4206, worker, None, None))",
    "read another tenant's document": "open(other).read()",
    "list the scratch": "os.listdir(os.path.dirname(other))",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "delete in the bucket directory": "os.unlink(stored)",
    "write into the bucket directory": "open(stored + '-new', 'w').write('x')",
    "overwrite in the bucket directory": "open(stored, 'r+').write('x')",
    "truncate in the bucket directory": "os.truncate(stored, 1)",
    "rename in the bucket directory": "os.rename(stored, stored + '-moved')",
    "write into the program folder": "open(program + '/attack.tmp', 'w').write('x')",
    "fill the disk": "open(folder + '/large', 'wb').write(bytes(1 << 20))",
    "connect by TCP": "socket.create_connection(('127.0.0.1', port), 5)",
    "send by UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
    "listen by TCP": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "open an abstract socket": "socket.socket(socket.AF_UNIX).bind(b'\\0sitelink-attack-' + str(os.getpid()).encode())",
    "make a pair of sockets": "socket.socketpair()",
    "execute a program": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "become a program": "os.execv('/bin/sh', ['sh', '-c', f'echo > {folder}/executed'])",
    "leave a process behind by clone3": """
pid = libc.syscall(ctypes.c_long(435), (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17), ctypes.c_size_t(64))
if pid == 0:
    os._exit(0)
check(pid)
""",
    "outlive the fork server": "check(libc.prctl(1, 0, 0, 0, 0))",
    "become dumpable": "check(libc.prctl(4, 1, 0, 0, 0))",
    "lift the limit of CPU time": "resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    "lift another process's limit": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "change its priority": "os.setpriority(os.PRIO_PROCESS, 0, 19)",
    "anonymous shared memory": "mmap.mmap(-1, 1 << 20)",
    "memfd": "os.memfd_create('x')",
    "System V shared memory": "check(libc.shmget(0, 1 << 20, 0o1600))",
    "POSIX shared memory": """
name = f'/dev/shm/attack-{os.getpid()}'
os.close(os.open(name, os.O_RDWR | os.O_CREAT))
try:
    os.unlink(name)
except OSError:
    pass
""",
    "map a file that it writes": """
import sys
frame = sys._getframe()
while "files" not in frame.f_locals:
    frame = frame.f_back
file, size = frame.f_locals["files"][0], 1 << 19
os.ftruncate(file, size)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_ssize_t, (ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
address = check(libc.mmap(0, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0))
check(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_WRITE))
ctypes.memset(address, 1, size)
""",
    "locked memory": "check(libc.mlockall(2))",
    "a message queue": "call((240, 180), b'sitelink-attack', 0o102, 0o600, None); call((241, 181), b'sitelink-attack')",
    "signal the worker": "os.kill(worker, signal.SIGCONT)",
    "signal the worker by tgkill": "call((234, 131), worker, worker, 18)",
    "signal the worker by a pidfd": "signal.pidfd_send_signal(os.pidfd_open(worker), signal.SIGCONT)",
    "signal the worker by a file": "fcntl.fcntl(1, 8, worker); fcntl.fcntl(1, 10, 18)",
    "leave its control group": "[open(f'/sys/fs/cgroup/{name}/cgroup.procs', 'w').write('0') for name in ('memory', 'pids')]",
    "make a link": "os.symlink('/proc/self/environ', folder + '/link')",
    "make a hard link": "os.link(other, folder + '/hard')",
    "make a FIFO": "os.mkfifo(folder + '/fifo')",
    "make a folder": "os.mkdir(folder + '/folder')",
    "make a device": "os.mknod(folder + '/device', 0o20666, os.makedev(1, 3))",
    "make a socket": "socket.socket(socket.AF_UNIX).bind(folder + '/socket')",
    "change a mode": "os.chmod(other, 0o666)",
    "io_uring": "call((425, 425), 8, ctypes.create_string_buffer(120))",
    "a user namespace": "check(libc.unshare(0x10000000))",
    "join a namespace": "check(libc.setns(os.open('/proc/self/ns/ipc', os.O_RDONLY), 0))",
    "mount": "check(libc.mount(b'none', folder.encode(), b'tmpfs', 0, None)); libc.umount2(folder.encode(), 2)",
    "change the root": "os.chroot(folder)",
    "userfaultfd": "call((323, 282), 1)",
    "bpf": "call((321, 280), 0, (ctypes.c_uint32 * 18)(2, 4, 4, 1), 72)",
    "perf events": "call((298, 241), (ctypes.c_uint32 * 32)(1, 128, 9), 0, -1, -1, ctypes.c_ulong(0))",
    "the kernel's keys": "call((248, 217), b'user', b'sitelink', b'x', ctypes.c_size_t(1), -3)",
    "the kernel's log": "check(libc.klogctl(10, None, 0))",
    "leave a process behind": """
pid = os.fork()
if pid == 0:
    libc.prctl(1, 0, 0, 0, 0)
    os.setsid()
    while True:
        signal.pause()
open(folder + '/left', 'w').write(str(pid))
""",
}
"""The code of each attack; it is done if nothing is raised."""

FOR_ROOT = {
    "write into the program folder",
    "make a device",
    "join a namespace",
    "mount",
    "change the root",
    "lift another process's limit",
    "locked memory",
}
"""Attacks of which only root is capable."""

OFTEN_REFUSED = {
    "read the worker's memory",
    "read the worker's memory by process_vm_readv",
    "attach to the worker",
    "leave its control group",
    "make a hard link",
    "io_uring",
    "a user namespace",
    "userfaultfd",
    "bpf",
    "perf events",
    "the kernel's keys",
    "the kernel's log",
    "a message queue",
    "POSIX shared memory",
    "anonymous shared memory",
    "memfd",
    "map a file that it writes",
    "System V shared memory",
}
"""Attacks that some kernels, containers or the memory limit refuse without any confinement."""


def open_document(source: Path, *_: object) -> NoReturn:
    """Stands in for ``PdfFile``: runs the code in the document, and tells its outcome as the refusal's message."""
    names, code = source.read_text().split("\n", 1)
    outcome = "done"
    try:
        exec(PREPARATION + code, json.loads(names))  # noqa: S102 (that is the attack)
    except OSError as error:
        outcome = errno.errorcode.get(error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 (told)
        outcome = type(error).__name__
    raise UnreadablePdf(outcome)


def serve() -> None:
    """The fork server, with the attacks; without the confinement if the worker asks for this."""
    renderer = import_module("activities.render.renderer")
    renderer.PdfFile = open_document  # type: ignore[attr-defined]
    if os.environ.get("LANG") == "unconfined":  # one of the few variables that it inherits
        for name in ("hide_memory", "landlock", "bound_open_files", "seal"):
            setattr(confine, name, lambda *_: None)
        confine.restrict = lambda *_: []
    forkserver.main()


async def attack(mode: str) -> dict[str, str]:
    """The outcome of each attack."""
    os.umask(0o077)
    if mode == "confined":
        confine.hide_memory()
    else:
        os.environ["LANG"] = "unconfined"
    outcomes = {}
    folder = Path(tempfile.mkdtemp())
    other, stored, source = folder / "scratch" / "other.pdf", folder / "bucket" / "object", folder / "scratch" / "source.pdf"
    secret = ctypes.create_string_buffer(SECRET.encode())
    program = Path(confine.__file__).parent
    pool = ChildPool(1, ChildLimits(wall_s=60), fork_server="tests.unit.attacks")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        surroundings = {
            "worker": os.getpid(),
            "address": ctypes.addressof(secret),
            "other": str(other),
            "stored": str(stored),
            "program": str(program),
            "folder": str(folder / "work"),
            "port": listener.getsockname()[1],
        }
        for name, code in ATTACKS.items():
            shutil.rmtree(folder)
            for each in ("scratch", "bucket", "work"):
                (folder / each).mkdir(parents=True)
            other.write_text("the plan of another tenant")
            stored.write_text("an object")
            source.write_text(json.dumps(surroundings) + "\n" + code)
            try:
                await pool.tile_page(name, source, TilePage(name, 1, 300, 200, UploadOptions()), folder / "work", lambda: None)
            except SiteLinkError as error:
                outcomes[name] = str(error)
            if (folder / "work" / "executed").exists():
                outcomes[name] = "done"
            (program / "attack.tmp").unlink(missing_ok=True)
    await pool.close()
    left = folder / "work" / "left"  # of the last attack
    if left.exists():
        try:
            os.kill(int(left.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            outcomes[name] = "the process is gone"
    shutil.rmtree(folder)
    return outcomes


def main() -> None:
    """Plays the worker, or the fork server."""
    if sys.argv[1] in ("confined", "unconfined"):
        json.dump(asyncio.run(attack(sys.argv[1])), sys.stdout)
    else:
        serve()


if __name__ == "__main__":
    main()
