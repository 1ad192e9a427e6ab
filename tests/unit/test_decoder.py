"""A JPEG that breaks the decoder breaks nothing else, and only such a JPEG is blamed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest

from activities.render import confine
from activities.render.decoder import REQUEST, Decoder
from tests.unit.sheets import jpeg

ROOT = Path(__file__).parents[2]


class Struck(Decoder):
    """A decoder whose processes each get a signal once they are ready, until ``spared`` is set."""

    signal = signal.SIGKILL
    spared = False

    def start(self) -> None:
        """Starts a process and sends it the signal."""
        super().start()
        if not self.spared:
            os.kill(self.pid, self.signal)


class Stopped(Struck):
    """A decoder whose processes are stopped, so that they hang."""

    signal = signal.SIGSTOP


def test_a_tile_that_breaks_the_decoder_breaks_nothing_else() -> None:
    """The process is replaced, and the next tile gets a fresh process."""
    with Struck() as decoder:
        pid = decoder.pid
        assert decoder.problem(jpeg(10, 20), 10, 20) == "broke the decoder, which ended with exit code -9"
        decoder.spared = True
        assert decoder.problem(jpeg(10, 20), 10, 20) == ""
        assert decoder.pid != pid
    assert not (Path("/proc") / str(decoder.pid)).exists()


def test_a_tile_is_not_blamed_for_a_decoder_that_died_before() -> None:
    """The machine, or the deadline of the image before, may have killed it. A fresh process is asked, and its answer counts."""
    with Decoder() as decoder:
        for body, told in ((jpeg(10, 20), ""), (b"no JPEG", "cannot be decoded: it is damaged or cut off")):
            os.kill(decoder.pid, signal.SIGKILL)
            assert decoder.problem(body, 10, 20) == told


def test_a_decoder_that_hangs_is_killed_and_named() -> None:
    """The caller does not wait for ever, and the next tile gets a fresh process."""
    with Stopped(answer_s=0.5) as decoder:
        pid = decoder.pid
        assert decoder.problem(jpeg(10, 20), 10, 20) == "broke the decoder, which gave no answer within 0.5 s and was killed"
        assert decoder.pid != pid  # what hangs at the end is not waited for either
    assert not (Path("/proc") / str(pid)).exists()
    assert not (Path("/proc") / str(decoder.pid)).exists()


class Lying(Decoder):
    """A decoder whose processes were taken over: each runs a program that sends anything."""

    code = ""

    def start(self) -> None:
        """Starts the program in place of the decoder."""
        self._process = subprocess.Popen([sys.executable, "-c", self.code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._requests, self._answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)


@pytest.mark.parametrize(
    "said",
    [
        "b'see /etc/passwd\\n'",
        "b'\\x1b[2J\\n'",
        "b'size 1 ' + b'9' * 80 + b'\\n'",
        "b'x' * (1 << 24)",
        "b'\\xff\\n'",
        "b'damageddamaged\\n'",
    ],
)
def test_a_decoder_that_says_anything_is_ended_and_its_words_are_not_shown(said: str) -> None:
    """However much it says."""

    class Saying(Lying):
        code = f"import os, sys, time\nsys.stdin.buffer.read(12)\nos.write(1, {said})\ntime.sleep(600)"

    with Saying(answer_s=1) as decoder:
        assert decoder.problem(jpeg(10, 20), 10, 20) == "broke the decoder, which gave no answer within 1 s and was killed"


@pytest.mark.skipif(not confine.landlock_version(), reason="this kernel has no Landlock")
def test_decoder_is_confined() -> None:
    """It says which layers hold before its first image, and has no descriptor but those of its parent."""
    with Decoder() as decoder:
        assert {confine.LANDLOCK, confine.SECCOMP} <= set(decoder.layers)
        assert decoder.problem(jpeg(10, 20), 10, 20) == ""
        if os.geteuid() == 0:
            assert {each.name for each in Path(f"/proc/{decoder.pid}/fd").iterdir()} == {"0", "1", "2"}


def hard_limits(decoder: Decoder) -> dict[str, str]:
    """The hard limits of the process, as the kernel names them."""
    lines = (Path("/proc") / str(decoder.pid) / "limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[1] for line in lines[1:]}


def test_no_kind_of_memory_is_without_a_limit() -> None:
    """RLIMIT_DATA does not count memory that is shared, or not writable at the moment."""
    with Decoder() as decoder:
        hard = hard_limits(decoder)
    assert "unlimited" not in {hard[name] for name in ("Max data size", "Max stack size", "Max address space")}


def test_cpu_time_has_a_hard_limit() -> None:
    """Before the first image and after it: an image that takes the process over cannot lift it."""
    with Decoder() as decoder:
        assert hard_limits(decoder)["Max cpu time"] == "3600"
        assert decoder.problem(jpeg(10, 20), 10, 20) == ""
        assert hard_limits(decoder)["Max cpu time"] == "3600"


LIMITED = """
import resource, sys
from activities.render.decoder import Decoder
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
with Decoder() as decoder:
    print([decoder.problem(sys.stdin.buffer.read(), 10, 20), decoder.problem(b"no JPEG", 10, 20)])
"""


def test_limit_of_cpu_time_around_the_decoder_blames_no_image() -> None:
    """Such as ``LimitCPU=`` of systemd, which the decoder has given up the privilege to raise."""
    result = subprocess.run([sys.executable, "-c", LIMITED], input=jpeg(10, 20), cwd=ROOT, capture_output=True, check=True)
    assert result.stdout.decode() == "['', 'cannot be decoded: it is damaged or cut off']\n"


TAKEN_OVER = """
import ctypes, errno, mmap, os, resource, threading
from activities.render import decode

def attack(body, width, height):
    try:
        exec(body)
    except OSError as error:
        return errno.errorcode[error.errno]
    except Exception as error:
        return type(error).__name__
    return "done"

decode.decode = attack
decode.main()
"""


@pytest.mark.skipif(not confine.landlock_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    ("attack", "outcome"),
    [
        ("mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)", "done"),
        ("mmap.mmap(-1, 4096, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)", "EPERM"),
        ("mmap.mmap(os.open(os.__file__, os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)", "EPERM"),
        ("os.memfd_create('x')", "EPERM"),
        ("threading.Thread(target=int).start()", "RuntimeError"),
        ("os.fork()", "EPERM"),
        ("resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))", "ValueError"),
    ],
)
def test_image_that_takes_over_the_decoder_gets_no_more(attack: str, outcome: str) -> None:
    """No shared memory, no thread, no process and no more CPU time. Private memory is there for all, so the attacks do run."""
    result = subprocess.run(
        [sys.executable, "-c", TAKEN_OVER, str(os.getpid())],
        input=REQUEST.pack(0, 0, len(attack)) + attack.encode(),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert result.stdout.decode().splitlines()[1:] == [outcome]
