"""Compiles the cutter: ``python -m activities.render.compile``. Needs a C compiler and nothing else."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_name("cutter.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")


class NoCompiler(OSError):
    """The cutter cannot be compiled here."""


def library_path(directory: Path = SOURCE.parent) -> Path:
    """Where the compiled cutter is. Its name changes with its source, so that no release takes another's."""
    return directory / f"cutter-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.{sysconfig.get_platform()}.so"


def find_compiler() -> str:
    """The first of ``COMPILERS`` on the ``PATH``. Raises ``NoCompiler`` if the ``PATH`` has no compiler."""
    for name in COMPILERS:
        if shutil.which(name):
            return name
    msg = "there is no C compiler"
    raise NoCompiler(msg)


def compile_cutter(target: Path, *flags: str, compiler: str | None = None) -> None:
    """Compiles the cutter into a shared library.

    Args:
        target: The library. It appears whole or not at all, so that processes may compile at the same time.
        flags: Further flags of the compiler.
        compiler: The compiler's command; default: the first of ``COMPILERS``.

    Raises:
        NoCompiler: There is no compiler, it refuses the source, or the library cannot be written.
    """
    command = shlex.split(compiler or find_compiler())
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, *FLAGS, *flags, "-o", unfinished, SOURCE], check=True, capture_output=True, text=True)  # noqa: S603 - ours
        unfinished.replace(target)
    except subprocess.CalledProcessError as error:
        msg = f"{command[0]}: {(error.stderr or error.stdout).strip()[-500:] or f'exit code {error.returncode}'}"
        raise NoCompiler(msg) from error
    except OSError as error:
        msg = f"{error.filename or command[0]}: {error.strerror}"
        raise NoCompiler(msg) from error
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """Compiles the cutter beside its source, unless it is there. Without a compiler, says what happens instead; that is no failure."""
    target = library_path()
    if target.exists():
        return
    for old in target.parent.glob("cutter-*.so"):
        old.unlink(missing_ok=True)
    try:
        compile_cutter(target)
    except NoCompiler as error:
        sys.stderr.write(f"Tiles are cut by libvips' dzsave, which takes five times the CPU: {error}.\n")


if __name__ == "__main__":
    main()
