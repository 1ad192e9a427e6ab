"""The contract against the real server: schemathesis tries what the OpenAPI document promises, and finds nothing."""

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, to_json
from api.contract.operations import EXAMPLES
from deploy.stack import Stack
from tests.integration.test_api import running
from tests.unit.api_fakes import PDF, STACK_CODEC_KEY, accept, make_bucket, snapshot
from tests.unit.sheets import put_sheet
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("temporal_binary")

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - for tests
MOST_EXAMPLES = 4
"""Of each operation, beside those that cover its parameters one by one."""


def test_server_keeps_its_contract(stack: Stack, tmp_path: Path) -> None:
    """Real requests, valid and invalid, to every route: each answer has a documented status, headers, media type and schema; events, too.

    Invalid requests are refused, valid requests are not, a method that is not there is a 405 with ``Allow``, what was deleted is gone, and
    no operation that names a credential answers without one.
    """
    ref = UploadRef(*(str(EXAMPLES[part]) for part in ("organization", "project", "plan", "upload")))
    bucket = make_bucket(stack.data_dir / "bucket")
    asyncio.run(accept(bucket, ref))
    put_sheet(bucket, 1, ref)
    bucket.put("incoming/acme/plan.pdf", PDF)
    bucket.put(ref.manifest, to_json(snapshot(SheetStatus.READY)))
    settings = {
        "SITELINK_BUCKET": (stack.data_dir / "bucket").as_uri(),
        "SITELINK_ACCESS": "jwt",
        "SITELINK_JWT_SECRET": SECRET,
        "SITELINK_EVENTS_SECRET": "0123456789abcdef",
        "SITELINK_CODEC_KEY": STACK_CODEC_KEY,
        "SITELINK_SOURCE_PREFIX": "incoming/{org}/",
        "SITELINK_WEBHOOK_SECRET": SECRET,  # no worker of the stack sends any, because the receivers are made up
    }
    with running(tmp_path / "api", stack.temporal_address, **settings) as api:
        tried = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "--config-file", ROOT / "tests" / "resources" / "schemathesis.toml"),
                *("run", f"{api.url}/openapi.json", "--max-examples", str(MOST_EXAMPLES), "--no-color"),
                *("--header", f"Authorization: Bearer {token(org=ref.organization, system=True)}"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    (generated, passed) = re.findall(r"(\d+) generated, (\d+) passed", tried.stdout)[0]
    assert generated == passed
    assert int(generated) > 500


def token(**claims: object) -> str:
    """A token with every scope."""
    usual = {"iss": "sitelink", "aud": "sitelink", "sub": "jo", "scope": "read write operate", "exp": int(time.time()) + 3600}
    return jwt.encode({**usual, **claims}, SECRET, "HS256")
