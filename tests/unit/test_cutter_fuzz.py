"""The cutter with pages of all kinds: under the compiler's sanitizers, and on other processors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from activities.render.compile import NoCompiler, find_compiler

SOURCE = Path(__file__).parents[1] / "resources" / "cutter_fuzz.c"
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FIRST_SEED = 1
CASES = 250
SLOW_PATHS = ("-DCUTTER_PORTABLE",)
ARM_COMPILER = "aarch64-linux-gnu-gcc"
ARM_EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def compiler() -> str:
    """The compiler of this machine. Without one a test run on CI fails; elsewhere its tests are skipped."""
    try:
        return find_compiler()
    except NoCompiler as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def compile_fuzz(target: Path, *flags: str, by: str | None = None) -> Path:
    """Compiles the fuzz program."""
    subprocess.run([by or compiler(), "-std=gnu11", *flags, "-o", target, SOURCE], check=True)
    return target


def checksum(*command: str | Path) -> str:
    """Runs the cases; returns the checksum of all files."""
    done = subprocess.run([*command, str(FIRST_SEED), str(CASES)], capture_output=True, text=True)
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    return done.stdout


def has_sanitizers(directory: Path) -> bool:
    """Whether an empty program runs with the sanitizers."""
    empty = directory / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    built = subprocess.run([compiler(), *SANITIZERS, "-o", directory / "empty", empty], capture_output=True)
    return built.returncode == 0 and subprocess.run([directory / "empty"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of this processor's fastest path."""
    return checksum(compile_fuzz(tmp_path_factory.mktemp("fuzz") / "fuzz", "-O3"))


@pytest.mark.parametrize("flags", [(), SLOW_PATHS], ids=["fastest", "portable"])
def test_hostile_pages_break_nothing(tmp_path: Path, flags: tuple[str, ...], expected: str) -> None:
    """No size, stride, content or failure makes the cutter touch foreign memory, leak memory or do what C does not define."""
    if not has_sanitizers(tmp_path):
        pytest.skip("the compiler has no sanitizers")
    assert checksum(compile_fuzz(tmp_path / "fuzz", *SANITIZERS, *flags)) == expected


def test_portable_path_writes_the_same_files(tmp_path: Path, expected: str) -> None:
    """A processor without AVX2 writes the same bytes."""
    assert checksum(compile_fuzz(tmp_path / "fuzz", "-O3", *SLOW_PATHS)) == expected


def test_arm64_writes_the_same_files(tmp_path: Path, expected: str) -> None:
    """An arm64 processor writes the same bytes, as far as the emulator is one."""
    emulator = next(filter(shutil.which, ARM_EMULATORS), None)
    if not emulator or not shutil.which(ARM_COMPILER):
        pytest.skip("no cross compiler for arm64 or no emulator: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user")
    assert checksum(emulator, compile_fuzz(tmp_path / "fuzz", "-O3", "-static", by=ARM_COMPILER)) == expected
