"""What a render child that was taken over may leave where its files should be."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path


def as_ordinary_user(work: Callable[[], None], *paths: Path) -> None:
    """Runs ``work`` in a process without any privilege; root first gives it these paths.

    Raises:
        AssertionError: ``work`` has failed.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.getuid() == 0:
                for path in paths:
                    os.chown(path, 65534, 65534, follow_symlinks=False)
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def leave_everything(page: Path, elsewhere: Path) -> None:
    """Leaves files of all kinds: links to ``elsewhere``, odd names, deep directories, and some without permission."""
    (page / "link").symlink_to(elsewhere)
    (page / "hard").hardlink_to(next(elsewhere.iterdir()))
    os.mkfifo(page / "fifo")
    Path(os.fsdecode(bytes(page) + b"/new\nline \xff")).touch()
    directory = os.open(page, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep directory", dir_fd=directory)
        inner = os.open("deep directory", os.O_RDONLY, dir_fd=directory)
        os.symlink(elsewhere, "link", dir_fd=inner)
        os.close(directory)
        directory = inner
    os.close(directory)
    for closed in (page / "closed", page / "closed" / "closed"):
        closed.mkdir()
    (page / "closed" / "file").touch(0)
    (page / "closed" / "closed").chmod(0)
    (page / "closed").chmod(0)
    page.chmod(0)
