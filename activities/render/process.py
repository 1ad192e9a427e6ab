"""Starts the processes that load native libraries, each by the name of its module. Loads no native library."""

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""The only variables that such a process inherits. The other ones include the bucket's credentials."""


def start_process(
    module: str, *arguments: str, stdin: int, stderr: int, stdout: int = subprocess.PIPE, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts ``python -m module`` with a small environment.

    Args:
        module: A module of this package, by its full name.
        arguments: The arguments of its command line.
        stdin: As for ``subprocess.Popen``.
        stderr: As for ``subprocess.Popen``.
        stdout: As for ``subprocess.Popen``.
        pass_fds: File descriptors that the process inherits.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT_ENVIRONMENT}
    return subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        [sys.executable, "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        cwd=Path(__file__).parents[2],
        env=kept | {"VIPS_CONCURRENCY": "1"},
    )


def closed_directory() -> Path | None:
    """The first directory on the way to the interpreter, its libraries or this program that other users may not enter.

    Returns:
        None if other users may enter all these directories.
    """
    needed = {Path(path).resolve() for path in (sys.executable, sys.base_prefix, sys.prefix, __file__)}
    above = {directory for path in needed for directory in (path, *path.parents) if directory.is_dir()}
    return next((directory for directory in sorted(above) if not directory.stat().st_mode & stat.S_IXOTH), None)
