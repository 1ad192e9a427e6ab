"""``sitelink verify`` and ``GET …/verify`` over a real upload: by the server, and from the bucket alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.dzi import Pyramid
from activities.bucket.keys import PlanRef, UploadRef
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.waiting import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
PLAN = PlanRef("acme", "tower", "verify")
UPLOADS = "/v1/organizations/acme/projects/tower/plans/verify/uploads"


@pytest.fixture
def ref(stack: Stack) -> UploadRef:
    """A complete upload of two sheets."""
    response = httpx2.post(
        f"{stack.api_url}{UPLOADS}", content=plan_set(2), headers={"Content-Type": "application/pdf"}, timeout=DEADLINE_S
    )
    assert response.status_code == 202
    ref = UploadRef.parse(response.json()["ref"])
    until((stack.data_dir / "bucket" / ref.manifest).exists)
    return ref


def verify(ref: UploadRef | str, *arguments: str, **environ: str) -> tuple[int, list[str], str]:
    """Runs ``sitelink verify``: exit code, lines of stdout, stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "api.cli", "verify", str(ref), *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout.splitlines(), result.stderr


def ways(stack: Stack) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment: by the server, and without it."""
    return [([], {"SITELINK_URL": stack.api_url}), (["--bucket"], {"SITELINK_DATA_DIR": str(stack.data_dir), "SITELINK_URL": "no address"})]


def tile_counts(stack: Stack, ref: UploadRef) -> list[int]:
    """The tiles that the sheets must have, by the sizes that the progress tells."""
    sheets = httpx2.get(f"{stack.api_url}{UPLOADS}/{ref.upload}", timeout=DEADLINE_S).json()["sheets"]
    return [Pyramid(sheet["width"], sheet["height"]).tile_count for sheet in sheets]


def test_a_complete_upload_verifies(stack: Stack, ref: UploadRef) -> None:
    """Exit code 0 and every tile counted, both ways, also when every tile is read back."""
    counts = tile_counts(stack, ref)
    for arguments, environ in ways(stack):
        code, lines, errors = verify(ref, *arguments, **environ)
        assert (code, errors) == (0, "")
        assert lines[:2] == [f"sheet-{number}  {count}/{count} tiles  ok" for number, count in enumerate(counts, 1)]
        assert lines[2] == f"verified: 2 of 2 sheets, {sum(counts)}/{sum(counts)} tiles, names and sizes"
        assert "--deep" in lines[3]
        code, lines, errors = verify(ref, "--deep", *arguments, **environ)
        assert (code, errors) == (0, "")
        assert lines[2:] == [f"verified: 2 of 2 sheets, {sum(counts)}/{sum(counts)} tiles, every tile read back"]


def test_what_is_wrong_is_named_and_exits_1(stack: Stack, ref: UploadRef) -> None:
    """One tile gone, one empty, one object too many: by their names, both ways and in the API's answer; nothing is repaired."""
    sheet = stack.data_dir / "bucket" / ref.tiles_prefix(2)
    (sheet / "0/0_0.jpeg").unlink()
    (sheet / "1/0_0.jpeg").write_bytes(b"")
    (sheet / "0/7_7.jpeg").write_bytes(b"junk")
    first, second = tile_counts(stack, ref)
    for arguments, environ in ways(stack):
        code, lines, errors = verify(ref, *arguments, **environ)
        assert (code, errors) == (1, "")
        assert lines[:6] == [
            f"sheet-1  {first}/{first} tiles  ok",
            f"sheet-2  {second - 2}/{second} tiles  wrong",
            "  missing: 0/0_0.jpeg",
            "  foreign: sheet-2/tiles/sheet-2_files/0/7_7.jpeg",
            "  empty: 1/0_0.jpeg",
            f"wrong: 1 of 2 sheets. Verified: 1 of 2 sheets, {first + second - 2}/{first + second} tiles found",
        ]
        code, lines, errors = verify(ref, "--json", *arguments, **environ)
        assert (code, errors) == (1, "")
        told: list[dict[str, Any]] = [json.loads(line) for line in lines]
        assert [line["event"] for line in told] == ["sheet", "sheet", "upload"]
        assert told[1]["data"]["missing"] == ["0/0_0.jpeg"]
        assert told[2]["data"]["verified"] is False
        document = httpx2.get(f"{stack.api_url}{UPLOADS}/{ref.upload}/verify", timeout=DEADLINE_S).json()
        assert document["sheets"] == [line["data"] for line in told[:2]]
    assert not (sheet / "0/0_0.jpeg").exists()


def test_altered_bytes_are_found_by_deep(stack: Stack, ref: UploadRef) -> None:
    """A directory does not prove bytes, and says so; reading back finds one that differs."""
    tile = stack.data_dir / "bucket" / ref.tiles_prefix(1) / "0/0_0.jpeg"
    body = bytearray(tile.read_bytes())
    body[20] ^= 1
    tile.write_bytes(body)
    for arguments, environ in ways(stack):
        assert verify(ref, *arguments, **environ)[0] == 0
        code, lines, _ = verify(ref, "--deep", *arguments, **environ)
        assert code == 1
        assert any("digest" in line for line in lines)


def test_exit_codes_of_what_cannot_be_verified(stack: Stack, tmp_path: Path) -> None:
    """1 for an upload that does not exist, 2 for wrong use, 3 for a server or a bucket that is not there; no directory is made."""
    nobody = f"{PLAN}/0198c0de-0000-7000-8000-000000000009"
    for arguments, environ in ways(stack):
        code, lines, errors = verify(nobody, *arguments, **environ)
        assert (code, lines) == (1, [])
        assert errors.startswith("UploadNotFound: ")
    assert verify("acme/tower", "--bucket")[0] == 2
    code, _, errors = verify(nobody, "--bucket", SITELINK_BUCKET="ftp://host/bucket")
    assert (code, "SITELINK_BUCKET" in errors) == (2, True)
    assert verify(nobody, SITELINK_URL="http://127.0.0.1:9")[0] == 3
    code, _, errors = verify(nobody, "--bucket", SITELINK_DATA_DIR=str(tmp_path / "nothing"))
    assert (code, "there is no bucket file://" in errors) == (3, True)
    assert list(tmp_path.iterdir()) == []
