"""The library that moves the clock of one process, with which the soak sets clocks wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from activities.render.compile import NoCompiler
from tests.chaos.soak.site import clock_settings, compile_clock, set_clock
from tests.missing import miss

HOUR_S = 3600
READ_AND_SET = """
import datetime, json, struct, sys, time

def read():
    return time.time(), datetime.datetime.now().timestamp(), time.monotonic()

before = read()
with open(sys.argv[1], "r+b") as clock:
    clock.write(struct.pack("l", int(sys.argv[2])))
print(json.dumps([before, read()]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library. Without a compiler a test run on CI fails; elsewhere its tests are skipped."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    try:
        compile_clock(library)
    except NoCompiler as error:
        miss(str(error))
    return library


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
def test_wall_clock_moves_at_once_and_the_monotonic_clock_does_not(library: Path, tmp_path: Path, offset_s: int) -> None:
    """A running process sees the new time of day as soon as the file says so."""
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    command = [sys.executable, "-c", READ_AND_SET, str(clock), str(offset_s)]
    done = subprocess.run(command, env={**os.environ, **clock_settings(library, clock)}, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert before[0] == pytest.approx(time.time(), abs=HOUR_S / 2)
    wall_s, date_s, monotonic_s = (now - then for then, now in zip(before, after, strict=True))
    assert (wall_s, date_s) == pytest.approx((offset_s, offset_s), abs=HOUR_S / 2)
    assert monotonic_s == pytest.approx(0, abs=HOUR_S / 2)
