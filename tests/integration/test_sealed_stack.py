"""A whole stack with every secret: none of them, and no title, is where it does not belong. Temporal's UI shows its operator everything."""

import os
import re
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import jwt
import pytest
from playwright.async_api import expect
from temporalio.client import Client
from temporalio.common import RawValue

from deploy.stack import SECRETS, Stack
from tests.browser.test_page import chromium_page, plan_pdf
from tests.servers.s3 import TestServer
from tests.unit.api_fakes import BASE
from tests.waiting import until

TITLE, FILE_NAME = "Hidden Vault", "Vault of the Crown.pdf"
IN_FILES = {"SITELINK_JWT_SECRET": "in-a-file-" + "j" * 32, "SITELINK_CODEC_KEY": "5ea1" * 16}
IN_VARIABLES = {
    "SITELINK_TICKET_SECRET": "in-a-variable-" + "t" * 32,
    "SITELINK_EVENTS_SECRET": "in-a-variable-" + "e" * 32,
    "SITELINK_EVENTS_TOKEN": "in-a-variable-" + "q" * 32,
    "SITELINK_TOKEN": "in-a-variable-" + "b" * 32,
}
QUEUE = {"SITELINK_EVENTS_ACCOUNT": "0a" * 16, "SITELINK_EVENTS_QUEUE": "0b" * 16, "SITELINK_EVENTS_API": "http://127.0.0.1:9"}
"""Nobody listens there, so that there is an error to log."""


@dataclass
class Sealed:
    """The stack, after one upload that has ended.

    Args:
        stack: The stack.
        secrets: Each secret by the name of its setting.
        status_url: The address of the upload's status.
        answers: What the API has answered until now.
    """

    stack: Stack
    secrets: dict[str, str]
    status_url: str
    answers: list[httpx2.Response]

    @property
    def workflow_id(self) -> str:
        """The id of the upload's workflow."""
        return f"upload/acme/tower/a1/{self.status_url.rpartition('/')[2]}"


def bearer(secret: str, **claims: object) -> dict[str, str]:
    """The header of a request with a token."""
    usual = {
        "iss": "sitelink",
        "aud": "sitelink",
        "sub": "jo",
        "org": "acme",
        "scope": "read write operate",
        "exp": int(time.time()) + 3600,
    }
    return {"Authorization": f"Bearer {jwt.encode({**usual, **claims}, secret, 'HS256')}"}


@pytest.fixture(scope="module")
def sealed_stack(new_stack_of_module: Callable[..., Stack], s3_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """The stack with every secret that it can have."""
    settings, directory = s3_server.new_bucket(), tmp_path_factory.mktemp("secrets")
    files = {}
    for name, text in IN_FILES.items():
        (directory / name).write_text(f"{text}\n")
        files[f"{name}_FILE"] = str(directory / name)
    stack = new_stack_of_module(**s3_server.environment(settings), **files, **IN_VARIABLES, **QUEUE, SITELINK_ACCESS="jwt")
    headers = bearer(IN_FILES["SITELINK_JWT_SECRET"])
    with httpx2.Client(base_url=stack.api_url, trust_env=False, timeout=60, headers=headers) as http:
        body = plan_pdf(2, title="A-10{number} - " + TITLE)
        accepted = http.post(BASE, params={"filename": FILE_NAME}, content=body, headers={"Content-Type": "application/pdf"})
        status = accepted.headers["location"]
        until(lambda: http.get(status).json()["status"] == "complete")
        answers = [
            accepted,
            http.get(status),
            http.get("/readyz"),
            http.get("/openapi.json"),
            http.get(f"{status}x"),
            http.get(status, headers={"Authorization": "Bearer x.y.z"}),
            http.post(f"{status}/tickets"),
            http.post("/v1/session"),
            http.post("/v1/events/r2", content=b"{}"),
            http.post("/v1/codec/decode", content=b"{}", headers=headers),
            http.get("/v1/events/unreadable"),
        ]
    assert answers[1].json()["sheets"][0]["title"] == f"A-101 - {TITLE}"
    assert answers[1].json()["fileName"] == FILE_NAME
    assert [answer.status_code for answer in answers[-3:]] == [401, 403, 403]
    return Sealed(stack, {**IN_FILES, **IN_VARIABLES, "AWS_SECRET_ACCESS_KEY": settings.secret_access_key}, stack.api_url + status, answers)


def processes_of(stack: Stack) -> dict[int, str]:
    """Every process of a stack, with the name of the process that has started it: the fork server and the render children, too."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = {process.pid: name for name, process in stack.processes.items() if process.pid is not None}
    while grown := {pid: f"child of {found[parent]}" for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= grown
    return found


def texts_of(pid: int, name: str) -> bytes:
    """``cmdline`` or ``environ`` of a process. Without root, the environment of a process that is not dumpable counts as empty."""
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except PermissionError:
        if os.geteuid() == 0:
            raise
        return b""


def test_secrets_are_in_no_log_no_database_and_no_answer(sealed_stack: Sealed) -> None:
    """Nor do tokens appear in them. All processes have written to their logs, an error about the queue of events too."""
    stack = sealed_stack.stack
    places = [*stack.logs.glob("*.log"), *stack.data_dir.glob("temporal.db*"), stack.data_dir / "stack.json"]
    assert len(places) >= 8
    assert "queue" in stack.processes["r2-events"].tail()
    for name, text in sealed_stack.secrets.items():
        for place in places:
            assert text.encode() not in place.read_bytes(), f"{name} is in {place.name}"
        for answer in sealed_stack.answers:
            assert text not in answer.text + str(answer.headers), f"{name} is in the answer of {answer.url}"
    tickets = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+")
    assert [place.name for place in places if tickets.search(place.read_bytes())] == []


def test_each_process_has_only_its_secrets(sealed_stack: Sealed) -> None:
    """In no command line; in the environment only of the processes that need one; render children and Temporal have none."""
    processes = processes_of(sealed_stack.stack)
    assert set(sealed_stack.stack.processes) == {"temporal", "temporal-ui", "worker-workflow", "worker-tile", "r2-events", "api"}
    assert list(processes.values()).count("child of worker-tile") >= 1
    for pid, process in processes.items():
        try:
            environ, command = texts_of(pid, "environ"), texts_of(pid, "cmdline")
        except OSError:
            assert process == "child of child of worker-tile", f"{process} has ended"
            continue  # a render child ends when it has drawn its sheets
        for name, text in sealed_stack.secrets.items():
            assert text.encode() not in command, f"{name} is in the command line of {process}"
            may_have = process in SECRETS[name] and name not in IN_FILES
            assert may_have or text.encode() not in environ, f"{name} is in the environment of {process}"
            assert process in SECRETS[name] or f"{name}_FILE=".encode() not in environ, f"{process} knows the file of {name}"


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ("api", ("decoders of JPEGs are confined by: ",)),
        ("worker-tile", ("render children are confined by: ", "decoders of JPEGs are confined by: ")),
        ("worker-workflow", ("workflow worker runs, and opens no document",)),
        ("r2-events", ("takes R2 events from a queue, and opens no document",)),
    ],
)
def test_each_process_says_at_its_start_what_confines_the_documents(sealed_stack: Sealed, process: str, words: tuple[str, ...]) -> None:
    """Also the API with access control, where ``/readyz`` tells strangers nothing."""
    log = (sealed_stack.stack.logs / f"{process}.log").read_text()
    assert [each for each in words if each not in log] == []


async def test_temporal_knows_no_title_and_no_file_name(sealed_stack: Sealed) -> None:
    """Neither its database nor a history, in any of the forms that JSON and protobuf have for it."""
    client = await Client.connect(sealed_stack.stack.temporal_address)
    history = await client.get_workflow_handle(sealed_stack.workflow_id).fetch_history()
    stored = b"".join(path.read_bytes() for path in sealed_stack.stack.data_dir.glob("temporal.db*")) + history.to_json().encode()
    assert sealed_stack.workflow_id.encode() in stored
    assert b"Vault" not in stored
    for word in (TITLE, FILE_NAME):
        assert all(b64encode(b"x" * shift + word.encode())[4:-4] not in stored for shift in range(3))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
    ],
)
async def test_ui_answers_only_its_own_pages(sealed_stack: Sealed, http: httpx2.AsyncClient, headers: dict[str, str], status: int) -> None:
    """No page of another site reads or ends a workflow, or has a payload decrypted; a link to the UI works."""
    url = sealed_stack.stack.temporal_ui_url
    assert (await http.get(f"{url}/api/v1/namespaces/default/workflows", headers=headers)).status_code == status
    if "Sec-Fetch-Mode" not in headers or status != 200:
        assert (await http.post(f"{url}/codec/decode", json={"payloads": []}, headers=headers)).status_code == status


async def test_ui_itself_is_not_at_an_address_that_a_page_can_guess(sealed_stack: Sealed, http: httpx2.AsyncClient) -> None:
    """Its own server listens on none of the usual addresses."""
    command = texts_of(sealed_stack.stack.processes["temporal"].pid or 0, "cmdline").decode().split("\0")
    port, host = command[command.index("--ui-port") + 1], command[command.index("--ui-ip") + 1]
    assert host.startswith("127.")
    assert (await http.get(f"http://{host}:{port}/healthz")).status_code == 200
    for usual in ("127.0.0.1", "localhost", "[::1]"):
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"http://{usual}:{port}/healthz")


async def test_operator_decrypts_by_the_api(sealed_stack: Sealed, http: httpx2.AsyncClient) -> None:
    """With a token that has ``system``, a result as Temporal stores it; without it, nobody does."""
    client = await Client.connect(sealed_stack.stack.temporal_address)
    result = (await client.get_workflow_handle(sealed_stack.workflow_id, result_type=RawValue).result()).payload
    payload = {
        "metadata": {name: b64encode(value).decode() for name, value in result.metadata.items()},
        "data": b64encode(result.data).decode(),
    }
    url, secret = f"{sealed_stack.stack.api_url}/v1/codec/decode", IN_FILES["SITELINK_JWT_SECRET"]
    answer = await http.post(url, json={"payloads": [payload]}, headers=bearer(secret, system=True))
    assert answer.status_code == 200
    assert b64encode(TITLE.encode()).decode()[:8] not in payload["data"]
    assert answer.json()["payloads"][0]["metadata"] == {"encoding": b64encode(b"json/plain").decode()}
    assert (await http.post(url, json={"payloads": [payload]}, headers=bearer(secret))).status_code == 403
    assert (await http.post(url, json={"payloads": [payload]})).status_code == 401


async def test_ui_shows_titles_in_a_history(sealed_stack: Sealed) -> None:
    """An operator finds the workflow in the list, and reads in its history what Temporal stores encrypted."""
    url = sealed_stack.stack.temporal_ui_url
    async with chromium_page(url) as watched:
        await watched.page.goto(f"{url}/")
        await watched.page.locator(f"a[href*='{sealed_stack.workflow_id.rpartition('/')[2]}']").first.click()
        await expect(watched.page.get_by_text(TITLE).first).to_be_attached()
    watched.check_quiet()
