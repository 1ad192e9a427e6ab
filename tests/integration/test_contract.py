"""The contract against the real server: schemathesis tries what the OpenAPI document promises, and finds nothing."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, to_json
from api.contract.operations import EXAMPLES
from deploy.stack import Stack
from tests.unit.api_fakes import accept, make_bucket, snapshot
from tests.unit.sheets import put_sheet
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("temporal_binary")

ROOT = Path(__file__).parents[2]
MOST_EXAMPLES = 4
"""Of each operation, beside those that cover its parameters one by one."""


def test_server_keeps_its_contract(stack: Stack) -> None:
    """Real requests, valid and invalid, to every route: each answer has a documented status, headers, media type and schema; events, too.

    Invalid requests are refused, valid requests are not, a method that is not there is a 405 with ``Allow``, and what was deleted is gone.
    """
    ref = UploadRef(*(str(EXAMPLES[part]) for part in ("organization", "project", "plan", "upload")))
    bucket = make_bucket(stack.data_dir / "bucket")
    asyncio.run(accept(bucket, ref))
    put_sheet(bucket, 1, ref)
    bucket.put(ref.manifest, to_json(snapshot(SheetStatus.READY)))
    tried = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", ROOT / "tests" / "resources" / "schemathesis.toml"),
            *("run", f"{stack.api_url}/openapi.json", "--max-examples", str(MOST_EXAMPLES), "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        cwd=stack.data_dir,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    (generated, passed) = re.findall(r"(\d+) generated, (\d+) passed", tried.stdout)[0]
    assert generated == passed
    assert int(generated) > 500
