"""Webhooks of the whole stack: set by the API, sent by the worker of their own, listed and sent again by the command line."""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from activities.bucket.keys import UploadRef
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.servers.recorder import Answer, Recorder, Request, recording
from tests.waiting import ASK_S, until

ROOT = Path(__file__).parents[2]


def verify_as_the_readme_says(secret: str, request: Request) -> dict[str, Any]:
    """Runs the receiver's lines of the README."""
    (_, text) = (ROOT / "api" / "README.md").read_text().split("## Webhooks\n")
    (code,) = re.findall(r"```py\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
    names: dict[str, Any] = {"secret": secret, "body": request.body, "headers": dict(request.headers.items())}
    exec(code, names)  # noqa: S102 - our own README
    event: dict[str, Any] = names["event"]
    return event


def sitelink(stack: Stack, *arguments: str) -> list[str]:
    """The lines that the command line prints."""
    environ = {"SITELINK_URL": stack.api_url, "PATH": ""}
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()


def sent_by(receiver: Recorder, path: str) -> list[Request]:
    """The requests to one path of the receiver that are answered."""
    return [request for request in receiver.answered if request.path == path]


def test_stack_sends_webhooks(new_stack: Callable[..., Stack]) -> None:
    """Each receiver verifies what it gets by the README's lines; a delivery that ended is sent again; no secret is logged."""
    master = secrets.token_hex(32)
    with recording() as receiver:
        is_broken = True
        receiver.answer = lambda request: Answer(410 if is_broken and request.path == "/own" else 200)
        stack = new_stack(SITELINK_WEBHOOK_SECRET=master, SITELINK_WEBHOOK_NETWORKS="127.0.0.1/32")
        base = f"{stack.api_url}/v1/organizations/acme"
        every = ["upload.accepted", "sheet.ready", "upload.ended"]
        answer = httpx2.put(f"{base}/webhooks", json={"url": f"{receiver.url}/all?token=of-the-receiver", "events": every})
        secret = answer.json()["secret"]
        headers = {"Content-Type": "application/pdf", "SiteLink-Webhook": f"{receiver.url}/own?token=of-the-receiver"}
        sent = httpx2.post(f"{base}/projects/tower/plans/a1/uploads", content=plan_set(2), headers=headers, timeout=120).json()
        ref = UploadRef.parse(sent["ref"])

        def deliveries(*options: str) -> list[dict[str, Any]]:
            return [json.loads(line)["data"] for line in sitelink(stack, "deliveries", "acme", "--json", *options)]

        until(lambda: len(sent_by(receiver, "/all")) == 3, ASK_S)
        events = [verify_as_the_readme_says(secret, request) for request in sent_by(receiver, "/all")]
        by_type = {event["type"]: event["data"] for event in events}
        assert sorted(by_type) == sorted(every)
        assert {data["ref"] for data in by_type.values()} == {str(ref)}
        assert by_type["upload.ended"]["status"] == "complete"
        assert [sheet["number"] for sheet in by_type["sheet.ready"]["sheets"]] == [1, 2]

        until(lambda: len(deliveries("--failed")) == 2, ASK_S)
        failed = deliveries("--failed")
        assert {delivery["reason"] for delivery in failed} == {"WebhookGone"}
        assert {delivery["receiver"] for delivery in failed} == {"upload"}
        until(lambda: len([each for each in deliveries() if each["status"] == "delivered"]) == 3, ASK_S)
        is_broken = False
        for delivery in failed:
            assert sitelink(stack, "redeliver", "acme", delivery["id"]) == [f"asked to send again: {delivery['id']}"]
        until(lambda: len(sent_by(receiver, "/own")) == 4, ASK_S)
        own = sent_by(receiver, "/own")
        assert {verify_as_the_readme_says(sent["webhookSecret"], request)["type"] for request in own} == {"upload.accepted", "upload.ended"}
        assert sorted(request.headers["webhook-id"] for request in own) == sorted(2 * [delivery["id"] for delivery in failed])
        until(lambda: not deliveries("--failed"), ASK_S)

        assert httpx2.post(f"{base}/webhooks/msg_unknown/redeliver").json()["type"] == "WebhookNotFound"
        assert httpx2.post(f"{stack.api_url}/v1/organizations/rival/webhooks/{failed[0]['id']}/redeliver").status_code == 404
        stack.stop()
        for log in stack.logs.glob("*.log"):
            text = log.read_text()
            assert "of-the-receiver" not in text, log
            assert master not in text, log
        database = b"".join(path.read_bytes() for path in stack.data_dir.glob("temporal.db*"))
        assert b"webhook/acme/msg_" in database
        assert b"of-the-receiver" not in database
