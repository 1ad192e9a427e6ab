"""PDFs with a password in a whole stack: it opens the PDF while the upload runs, and is nowhere to be found."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from temporalio.client import Client

from api.app import CLIENT
from deploy.stack import Stack
from tests.browser.test_page import plan_pdf
from tests.integration.test_client_module import node_path
from tests.integration.test_sealed_stack import processes_of, texts_of
from tests.resources.make_pdfs import encrypted
from tests.unit.api_fakes import BASE
from tests.waiting import until
from workflows.codec import data_converter

KEY = "5ea1" * 16
PASSWORD, WRONG = "Türschloß 7 of the vault", "a wrong Schlüssel"
PDF = {"Content-Type": "application/pdf"}


def given(password: str) -> dict[str, str]:
    """The header with a password."""
    return {"Document-Password": quote(password)}


@pytest.fixture(scope="module")
def stack(new_stack_of_module: Callable[..., Stack]) -> Stack:
    """A stack with a key."""
    return new_stack_of_module(SITELINK_CODEC_KEY=KEY)


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[httpx2.Client]:
    """A client of its API."""
    with httpx2.Client(base_url=stack.api_url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def locked() -> bytes:
    """Two pages that open with the password."""
    return encrypted(PASSWORD, data=plan_pdf(2))


def sent(api: httpx2.Client, body: bytes, **headers: str) -> str:
    """Sends a PDF; returns the path of its upload."""
    answer = api.post(BASE, content=body, headers={**PDF, **headers})
    assert answer.status_code == 202, answer.text
    path: str = answer.headers["location"]
    return path


def ended(api: httpx2.Client, path: str, status: str, after: int = 0) -> dict[str, Any]:
    """The final progress of an upload, once it has this status and is newer than a version."""
    found: list[dict[str, Any]] = []

    def has_ended() -> bool:
        found[:] = [api.get(path).json()]
        return found[0]["status"] not in ("queued", "processing") and found[0]["version"] > after

    until(has_ended)
    assert found[0]["status"] == status, found[0]
    return found[0]


def forms(password: str) -> list[bytes]:
    """The password as text, in a header, in JSON, and in the base64 of anything that has it."""
    text = password.encode()
    encodings = [text, password.encode("latin-1"), quote(password).encode(), json.dumps(password)[1:-1].encode()]
    return encodings + [b64encode(b"x" * shift + text)[4:-4] for shift in range(3)]


def test_password_opens_the_pdf_and_is_nowhere(stack: Stack, api: httpx2.Client, locked: bytes) -> None:
    """Not in the bucket, the scratch, Temporal's database, a log, a command line or an environment; nor is a wrong one."""
    path = sent(api, locked, **given(PASSWORD))
    wrong = sent(api, locked, **given(WRONG))
    assert ended(api, path, "complete")["completedPages"] == 2
    ended(api, wrong, "failed")
    files = [file for file in stack.data_dir.rglob("*") if file.is_file()] + list(stack.logs.rglob("*.log"))
    assert {"source.pdf", "upload.json", "sheet.json", "manifest.json", "temporal.db", "api.log", "worker-tile.log"} <= {
        f.name for f in files
    }
    contents = {str(file): file.read_bytes() for file in files if file.exists()}
    for pid, name in processes_of(stack).items():
        for what in ("cmdline", "environ"):
            try:
                contents[f"{what} of {name}"] = texts_of(pid, what)
            except OSError:
                continue  # a render child that has ended
    for password in (PASSWORD, WRONG):
        for form in forms(password):
            assert [where for where, content in contents.items() if form in content] == []


async def test_decrypted_history_shows_no_password(stack: Stack, api: httpx2.Client, locked: bytes) -> None:
    """Temporal's UI decrypts payloads for its operators. The password is sealed in them once more."""
    path = sent(api, locked, **given(PASSWORD))
    ended(api, path, "complete")
    client = await Client.connect(stack.temporal_address)
    handle = client.get_workflow_handle(f"upload/acme/tower/a1/{path.rpartition('/')[2]}")
    codec = data_converter([bytes.fromhex(KEY)]).payload_codec
    assert codec is not None
    inputs = []
    for event in (await handle.fetch_history()).events:
        for kind in ("workflow_execution_started", "activity_task_scheduled"):
            payloads = getattr(event, f"{kind}_event_attributes").input.payloads
            inputs += [payload.data for payload in await codec.decode(payloads)]
    described = (await handle.describe()).raw_description.SerializeToString()
    with_password = [data for data in inputs if json.loads(data).get("sealed_password")]
    assert len(with_password) == 4  # the start, the count of the pages, and two pages
    for form in forms(PASSWORD):
        assert not any(form in data for data in [*inputs, described])


def test_password_missing_or_wrong_fails_until_a_reconcile_gives_it(api: httpx2.Client, locked: bytes) -> None:
    """The detail says which. It shows no password."""
    for headers, words in (({}, "has none"), (given(WRONG), "is wrong")):
        path = sent(api, locked, **headers)
        failed = ended(api, path, "failed")
        assert failed["reason"] == "PasswordRequired"
        assert words in failed["detail"]
        assert WRONG not in failed["detail"]
        assert api.post(f"{path}/reconcile").status_code == 202
        failed = ended(api, path, "failed", failed["version"])
        assert "has none" in failed["detail"]  # the wrong one is forgotten, too
        assert api.post(f"{path}/reconcile", headers=given(PASSWORD)).status_code == 202
        ended(api, path, "complete", failed["version"])


def test_password_is_forgotten_when_the_upload_ends(stack: Stack, api: httpx2.Client, locked: bytes) -> None:
    """A sheet that is broken later fails, in a reconcile and in a retry, until the password is given again."""
    path = sent(api, locked, **given(PASSWORD))
    version = ended(api, path, "complete")["version"]
    (tile,) = (stack.data_dir / "bucket").rglob(f"{path.rpartition('/')[2]}/sheets/sheet-2/tiles/sheet-2_files/0/0_0.jpeg")
    tile.unlink()
    assert api.post(f"{path}/reconcile").status_code == 202
    partial = ended(api, path, "partial", version)
    assert [sheet["reason"] for sheet in partial["sheets"]] == [None, "PasswordRequired"]
    assert api.post(f"{path}/sheets/2/retry").status_code == 202
    partial = ended(api, path, "partial", partial["version"])
    assert api.post(f"{path}/sheets/2/retry", headers=given(PASSWORD)).status_code == 202
    ended(api, path, "complete", partial["version"])
    assert tile.exists()


def test_password_comes_with_complete_of_an_upload_in_parts(stack: Stack, api: httpx2.Client, locked: bytes) -> None:
    """``begin`` keeps none: between the two there is no workflow that could have it."""
    begun = api.post(f"{BASE}:begin", json={"sizeBytes": len(locked)}, headers=given(PASSWORD)).json()
    (part,) = api.post(begun["links"]["sign"], json={"numbers": [1]}).json()["parts"]
    etag = api.put(part["url"], content=locked).headers["etag"]
    answer = api.post(begun["links"]["complete"], json={"parts": [{"number": 1, "etag": etag}]}, headers=given(PASSWORD))
    assert answer.status_code == 202, answer.text
    ended(api, answer.headers["location"], "complete")


def test_owner_only_encryption_opens_without_a_password(api: httpx2.Client) -> None:
    """And with a password that it does not need."""
    body = encrypted("", data=plan_pdf(1))
    for headers in ({}, given(WRONG)):
        ended(api, sent(api, body, **headers), "complete")


@pytest.mark.parametrize("value", ["100%", "%zz", "%FF", "%00", "a%0Ab", "x" * 382, "T\u00fcr"])
def test_header_that_is_no_password_is_refused(api: httpx2.Client, locked: bytes, value: str) -> None:
    """Before the file is read, and without a word of it."""
    answer = api.post(BASE, content=locked, headers=httpx2.Headers({**PDF, "Document-Password": value}, encoding="latin-1"))
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert value not in answer.text


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_command_line_reads_the_password_from_a_file(stack: Stack, locked: bytes, tmp_path: Path, way: str) -> None:
    """No argument and no variable has it. A reconcile takes it, too."""
    (tmp_path / "plan.pdf").write_bytes(locked)
    (tmp_path / "password").write_text(f"{PASSWORD}\nanother line\n")
    environ = {**os.environ, "SITELINK_URL": stack.api_url}

    def sitelink(*words: str) -> subprocess.CompletedProcess[str]:
        typed = f"{PASSWORD}\n" if "-" in words else ""
        command = [sys.executable, "-m", "api.cli", *words]
        return subprocess.run(command, env=environ, input=typed, capture_output=True, text=True, check=False)

    option = ["--password-file", "-" if way == "stdin" else str(tmp_path / "password")]
    upload = ["upload", str(tmp_path / "plan.pdf"), "--to", "acme/tower/a1", "--json"]
    opened = sitelink(*upload, *option)
    assert (opened.returncode, opened.stderr) == (0, "")
    refused = sitelink(*upload)
    assert refused.returncode == 1
    ref = json.loads(refused.stdout.splitlines()[0])["data"]["ref"]
    assert sitelink("reconcile", ref, *option).returncode == 0
    until(lambda: sitelink("status", ref).returncode == 0)
    missing = sitelink(*upload, "--password-file", str(tmp_path / "nothing"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert all(PASSWORD not in each.stdout + each.stderr for each in (opened, refused, missing))


def test_client_module_sends_the_password(stack: Stack, api: httpx2.Client, locked: bytes, tmp_path: Path) -> None:
    """With a whole file, and with the last request of a file in parts."""
    (tmp_path / "plan.pdf").write_bytes(locked)
    script = """
        const { upload } = await import(process.argv[1]);
        const file = new Blob([(await import("node:fs")).readFileSync(process.argv[2])]);
        for (const inParts of [false, true]) {
          const options = { server: process.argv[3], to: "acme/tower/a1", name: "plan.pdf", password: process.env.TYPED, inParts };
          console.log((await upload(file, options)).links.self);
        }
    """
    words = [(CLIENT / "sitelink.js").as_uri(), str(tmp_path / "plan.pdf"), stack.api_url]
    command = [node_path(), "--input-type=module", "-e", script, *words]
    result = subprocess.run(command, env={**os.environ, "TYPED": PASSWORD}, capture_output=True, text=True, check=True)
    paths = result.stdout.split()
    assert len(paths) == 2
    for path in paths:
        ended(api, path, "complete")


def test_without_a_key_a_password_is_refused(new_stack: Callable[..., Stack], locked: bytes) -> None:
    """In every route, because Temporal would store it in clear. Without the header the same requests are accepted."""
    stack = new_stack()
    with httpx2.Client(base_url=stack.api_url, trust_env=False, timeout=60) as api:
        path = sent(api, locked)
        ended(api, path, "failed")
        requests: list[tuple[str, dict[str, Any]]] = [
            (BASE, {"content": locked, "headers": PDF}),
            (f"{BASE}:begin", {"json": {"sizeBytes": len(locked)}}),
            (f"{path}/complete", {"json": {"parts": []}}),
            (f"{path}/reconcile", {}),
            (f"{path}/sheets/1/retry", {}),
        ]
        for url, request in requests:
            headers = {**request.pop("headers", {}), **given(PASSWORD)}
            answer = api.post(url, headers=headers, **request)
            assert (answer.status_code, answer.json()["type"]) == (409, "PasswordRefused"), url
        assert len(list((stack.data_dir / "bucket").rglob("source.pdf"))) == 1
