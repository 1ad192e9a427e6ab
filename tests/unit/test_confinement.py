"""The API logs at its start which layers confine its JPEG decoder. Where others can send documents, it refuses an unconfined decoder."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from activities.render import confine
from activities.render.confinement import check_decoder
from api.settings import ApiSettings

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not confine.landlock_version() or platform.machine() not in ("x86_64", "aarch64"),
    reason="this kernel has no Landlock, or another machine",
)

WITHOUT_LANDLOCK = """
import errno, os, sys
from activities.render.seccomp import ALLOW, ANSWER, CALL, EQUAL, LOAD, assemble, install, refuse
landlock_create_ruleset = 444
install(assemble([
    ("", LOAD, CALL, "", ""),
    ("", EQUAL, landlock_create_ruleset, "", "allow"),
    ("", ANSWER, refuse(errno.ENOSYS), "", ""),
    ("allow", ANSWER, ALLOW, "", ""),
]))
os.execv(sys.executable, [sys.executable, "-m", "api"])
"""
"""Starts the API as on a kernel without Landlock."""

UNCONFINED = "WARNING activities.render.confinement: decoders of JPEGs are not confined"
JWT = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": "a" * 64, "SITELINK_PUBLIC_HOSTS": "plans.example.com"}


def api_without_landlock(directory: Path, **environ: str) -> tuple[str, int | None]:
    """The API's log until it listens, and None; or all of its log, and its exit code."""
    environ = {**os.environ, "SITELINK_BUCKET": directory.as_uri(), "SITELINK_PORT": "0", "TEMPORAL_ADDRESS": "127.0.0.1:1", **environ}
    with subprocess.Popen([sys.executable, "-c", WITHOUT_LANDLOCK], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True) as api:
        assert api.stderr is not None
        said = ""
        try:
            for line in api.stderr:
                said += line
                if "listening on" in line:
                    return said, None
            return said, api.wait()
        finally:
            api.kill()


def test_api_for_others_does_not_start_with_an_unconfined_decoder(tmp_path: Path) -> None:
    """It says what is missing and which setting allows it, and ends with the code of a wrong setting."""
    log, exit_code = api_without_landlock(tmp_path, **JWT)
    assert exit_code == 2
    assert "decoders of JPEGs are not confined on this kernel, which lacks Landlock" in log
    assert "SITELINK_UNCONFINED=allow" in log


@pytest.mark.parametrize("environ", [{}, {**JWT, "SITELINK_UNCONFINED": "allow"}], ids=["for itself", "allowed"])
def test_api_that_may_decode_unconfined_warns(tmp_path: Path, environ: dict[str, str]) -> None:
    """Without access control it serves this machine only; with the setting, the operator has decided."""
    log, exit_code = api_without_landlock(tmp_path, **environ)
    assert exit_code is None, "the API ended by itself"
    assert UNCONFINED in log


def test_layers_of_the_decoder_are_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the layers that hold, and the layers that are missing. No decoder has an own user, so this layer is never missing."""
    caplog.set_level("INFO")
    check_decoder(must_confine=True)
    (line,) = caplog.messages
    assert line.startswith("decoders of JPEGs are confined by: ")
    held, missing = line.split("; missing: ")
    assert {confine.LANDLOCK, confine.SECCOMP} <= set(held.partition(": ")[2].split(", "))
    assert confine.OWN_USER not in missing


def test_api_reads_the_settings_of_the_worker() -> None:
    """Access makes confinement a must, unless the setting allows to go without."""
    secret = {"SITELINK_JWT_SECRET": "a" * 64}
    assert not ApiSettings.from_env({}).must_confine
    assert ApiSettings.from_env({"SITELINK_ACCESS": "jwt", **secret}).must_confine
    assert not ApiSettings.from_env({"SITELINK_ACCESS": "jwt", "SITELINK_UNCONFINED": "allow", **secret}).must_confine
