"""Webhooks on a real Temporal server, from a real bucket to a real receiver; only the work on sheets is pretended."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.worker import Worker

from activities.bucket.keys import UploadRef, webhook_workflow_id, webhooks_record
from activities.bucket.location import BucketSettings
from activities.bucket.records import (
    Snapshot,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    UploadWebhook,
    WebhookEvent,
    WebhooksRecord,
    timestamp,
    to_json,
)
from activities.bucket.storage import Bucket
from activities.interface import ORGANIZATION, UPLOAD, WORKFLOW_QUEUE, SendWebhook, SentWebhook, Subscription, SweepBucket
from activities.webhooks.delivery import WebhookSender
from activities.webhooks.settings import WebhookSettings
from activities.webhooks.signing import derived_secret, organization_purpose, upload_purpose
from deploy.process import free_port
from deploy.temporal import TemporalServer
from tests.servers.recorder import Answer, Recorder, Request, recording
from tests.waiting import DEADLINE_S, until, until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.impatient_webhook import HopelessDelivery, ImpatientDelivery
from tests.workflow.runs import end_as_failed, handle_of, keep_history
from worker.app import housekeeping_worker, webhook_worker, workflow_worker
from worker.housekeeping import Housekeeping
from workflows.deliveries import webhooks_about
from workflows.processing import announcements
from workflows.starting import start_delivery, start_upload
from workflows.sweep import Sweep
from workflows.webhook import DeliverWebhook

MASTER, OLD_MASTER = "the master secret of these tests: " + "m" * 32, "an older master secret of these: " + "o" * 32
SETTINGS = WebhookSettings((MASTER,), (ip_network("127.0.0.0/8"),))
EVERY = tuple(WebhookEvent)
OK, BROKEN = Answer(204), Answer(500, b"a long story")


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(BucketSettings((tmp_path / "bucket").as_uri()))


@pytest.fixture
def receiver() -> Iterator[Recorder]:
    """A receiver that takes everything."""
    with recording() as recorder:
        recorder.answer = lambda _: OK
        yield recorder


def accept(bucket: Bucket, ref: UploadRef, url: str | None = None) -> None:
    """Writes ``upload.json``, with a receiver of its own."""
    webhook = UploadWebhook(url, EVERY) if url else None
    record = UploadRecord("Grundriß.pdf", 8, "0" * 64, UploadOptions(), timestamp(datetime.now(UTC)), webhook=webhook)
    bucket.put(ref.record, to_json(record))


def subscribe(bucket: Bucket, ref: UploadRef, url: str, events: tuple[WebhookEvent, ...] = EVERY) -> None:
    """Writes ``webhooks.json`` of the upload's organization."""
    now = timestamp(datetime.now(UTC))
    bucket.put(webhooks_record(ref.organization), to_json(WebhooksRecord(url, events, "1", now, now)))


def ended(ref: UploadRef, receiver: str = ORGANIZATION) -> SendWebhook:
    """A webhook about the upload."""
    now = timestamp(datetime.now(UTC))
    snapshot = Snapshot(UploadStatus.COMPLETE, 7, now, completed_at=now)
    wants = (Subscription(receiver, (WebhookEvent.UPLOAD_ENDED,)),)
    (webhook,) = webhooks_about(ref, WebhookEvent.UPLOAD_ENDED, now, snapshot, wants)
    return webhook


def delivery_of(client: Client, webhook: SendWebhook) -> WorkflowHandle[Any, SentWebhook]:
    """The workflow that delivers a webhook."""
    name = webhook_workflow_id(UploadRef.parse(webhook.ref).organization, webhook.id)
    return client.get_workflow_handle_for(DeliverWebhook.run, name)


def verified(request: Request, ref: UploadRef, *, receiver: str = ORGANIZATION, master: str = MASTER) -> dict[str, Any]:
    """The body of a request, which the library verifies."""
    purpose = organization_purpose(ref.organization, "1") if receiver == ORGANIZATION else upload_purpose(ref)
    document: dict[str, Any] = Webhook(derived_secret(master, purpose)).verify(request.body, dict(request.headers.items()))
    return document


@asynccontextmanager
async def delivering(
    client: Client, bucket: Bucket, kind: type[DeliverWebhook] = ImpatientDelivery, *, settings: WebhookSettings = SETTINGS
) -> AsyncIterator[None]:
    """Runs impatient deliveries, and the worker that sends."""
    async with (
        Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[kind]),
        webhook_worker(client, WebhookSender(bucket, settings, timeout_s=2), 8),
    ):
        yield


async def test_upload_announces_what_happens_to_it(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """Each receiver gets each event once, signed for it, and no title or address is lost or shown too much."""
    accept(bucket, ref, f"{receiver.url}/own?token=of-the-receiver")
    subscribe(bucket, ref, f"{receiver.url}/all")
    fake = FakeActivities(pages(3))
    names = tuple(map(str, EVERY))
    fake.webhooks = (Subscription(ORGANIZATION, names), Subscription(UPLOAD, names))
    async with working(client, fake), webhook_worker(client, WebhookSender(bucket, SETTINGS), 8):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        await until_async(lambda: len(receiver.answered) == 6)
        await keep_history(handle_of(client, ref), "webhooks")
        for path, which in (("/all", ORGANIZATION), ("/own", UPLOAD)):
            requests = [request for request in receiver.requests if request.path == path]
            bodies = {body["type"]: body for request in requests for body in [verified(request, ref, receiver=which)]}
            assert sorted(bodies) == sorted(names)
            data = bodies["upload.ended"]["data"]
            assert (data["ref"], data["upload"], data["fileName"], data["sizeBytes"]) == (str(ref), ref.upload, "Grundriß.pdf", 8)
            assert (data["status"], data["completedPages"], data["sheets"]) == ("complete", 3, [])
            assert bodies["upload.accepted"]["data"]["status"] == "queued"
            assert [sheet["number"] for sheet in bodies["sheet.ready"]["data"]["sheets"]] == [1, 2, 3]
            assert {sheet["status"] for sheet in bodies["sheet.ready"]["data"]["sheets"]} == {"ready"}
            history = await client.get_workflow_handle(
                webhook_workflow_id(ref.organization, requests[0].headers["webhook-id"])
            ).fetch_history()
            assert receiver.url not in history.to_json()
            assert "of-the-receiver" not in history.to_json()
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 6


async def test_run_without_receivers_issues_no_command_for_them(client: Client, ref: UploadRef) -> None:
    """Its history has no marker, no timer and no child."""
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        history = await handle_of(client, ref).fetch_history()
    kinds = {EventType.Name(event.event_type) for event in history.events}
    assert not {kind for kind in kinds if "CHILD" in kind or "MARKER" in kind or "TIMER" in kind}


async def test_dead_receiver_delays_no_upload(client: Client, ref: UploadRef, bucket: Bucket) -> None:
    """The upload ends while nobody sends its webhooks; they are sent when somebody does."""
    released = threading.Event()
    with recording() as receiver:

        def answer(_: Request) -> Answer:
            released.wait()
            return OK

        receiver.answer = answer
        accept(bucket, ref)
        subscribe(bucket, ref, receiver.url, (WebhookEvent.UPLOAD_ACCEPTED,))
        fake = FakeActivities(pages(2))
        fake.webhooks = (Subscription(ORGANIZATION, ("upload.accepted",)),)
        async with working(client, fake):
            await start_upload(client, ref)
            assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
            assert receiver.requests == []
            async with webhook_worker(client, WebhookSender(bucket, SETTINGS), 8):
                await until_async(lambda: receiver.requests)
                released.set()
                await until_async(lambda: receiver.answered)


async def test_sheets_are_announced_together_while_the_upload_goes_on(
    client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder
) -> None:
    """The sheets of some seconds are one webhook; the others come at the end, and none comes twice."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url, (WebhookEvent.SHEET_READY,))
    fake = FakeActivities(pages(6), window=3)
    fake.webhooks = (Subscription(ORGANIZATION, ("sheet.ready",)),)
    fake.closes_after = 3
    async with working(client, fake), webhook_worker(client, WebhookSender(bucket, SETTINGS), 8):
        await start_upload(client, ref)
        await until_async(lambda: len(receiver.answered) == 1)
        fake.gate.set()
        await handle_of(client, ref).result()
        await until_async(lambda: len(receiver.answered) == 2)
        await keep_history(handle_of(client, ref), "webhooks-of-sheets")
    told = [[sheet["number"] for sheet in verified(request, ref)["data"]["sheets"]] for request in receiver.requests]
    assert sorted(number for numbers in told for number in numbers) == [1, 2, 3, 4, 5, 6]
    assert announcements.GATHERING_TIME.total_seconds() == 10


async def test_delivery_is_tried_again_with_the_same_id(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """After an answer of 500, a redirect and a silence, until the receiver takes it."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    silence = threading.Event()
    answers = iter([BROKEN, Answer(302, headers=(("Location", f"{receiver.url}/elsewhere"),)), None, Answer(200, b"x" * 1_000_000)])

    def answer(_: Request) -> Answer:
        if (given := next(answers)) is None:
            silence.wait()
            return OK
        return given

    receiver.answer = answer
    async with delivering(client, bucket):
        webhook = ended(ref)
        await start_delivery(client, webhook)
        assert (await delivery_of(client, webhook).result()).status == 200
        silence.set()
    assert len(receiver.requests) == 4
    assert {request.headers["webhook-id"] for request in receiver.requests} == {webhook.id}
    assert len({request.body for request in receiver.requests}) == 1
    assert {request.path for request in receiver.requests} <= {"", "/"}
    assert [verified(request, ref)["type"] for request in receiver.requests] == ["upload.ended"] * 4


async def test_receiver_that_comes_back_gets_the_webhook(client: Client, ref: UploadRef, bucket: Bucket) -> None:
    """While nobody listens, the operator sees why; no error has the address."""
    accept(bucket, ref)
    port = free_port()
    subscribe(bucket, ref, f"http://127.0.0.1:{port}/hook?token=of-the-receiver")
    webhook = ended(ref)
    async with delivering(client, bucket):
        await start_delivery(client, webhook)

        async def failed_twice() -> bool:
            pending = (await delivery_of(client, webhook).describe()).raw_description.pending_activities
            return any(each.attempt > 2 and "ConnectError" in each.last_failure.message for each in pending)

        await until_async(failed_twice)
        with recording() as receiver:
            receiver.answer = lambda _: OK
            subscribe(bucket, ref, receiver.url)  # a change of the address counts for what is not delivered yet
            assert (await delivery_of(client, webhook).result()).status == 204
        history = (await delivery_of(client, webhook).fetch_history()).to_json()
    assert "of-the-receiver" not in history
    assert str(port) not in history


async def test_delivery_is_given_up(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """When the time is over, the delivery ends as failed, and its attributes say why."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    receiver.answer = lambda _: BROKEN
    webhook = ended(ref)
    async with delivering(client, bucket, HopelessDelivery):
        await start_delivery(client, webhook)
        error = await end_as_failed(delivery_of(client, webhook))
        found = await delivery_of(client, webhook).describe()
    assert (error.type, error.message) == ("WebhookRefused", "the receiver answered 500")
    assert len(receiver.requests) > 1
    attributes = {pair.key.name: pair.value for pair in found.typed_search_attributes}
    assert attributes["SiteLinkOrganization"] == ref.organization
    assert (attributes["SiteLinkStatus"], attributes["SiteLinkReason"]) == ("failed", "WebhookRefused")


async def test_receiver_that_is_gone_is_not_asked_again(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """A 410, and a webhook that was removed, end the delivery at once."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    receiver.answer = lambda _: Answer(410)
    async with delivering(client, bucket):
        await start_delivery(client, ended(ref))
        assert (await end_as_failed(delivery_of(client, ended(ref)))).type == "WebhookGone"
        await start_delivery(client, ended(ref, UPLOAD))
        assert (await end_as_failed(delivery_of(client, ended(ref, UPLOAD)))).message == "the webhook was removed"
    assert len(receiver.requests) == 1


async def test_webhook_is_sent_again_when_somebody_asks(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """A delivered one once more with the same id, and a waiting one without waiting any longer."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    webhook = ended(ref)
    async with workflow_worker(client), webhook_worker(client, WebhookSender(bucket, SETTINGS), 8):
        await start_delivery(client, webhook)
        await delivery_of(client, webhook).result()
        await start_delivery(client, webhook)  # a second announcement changes nothing
        receiver.answer = lambda _: Answer(503, headers=(("Retry-After", "3000"),))
        await start_delivery(client, webhook, again=True)
        await until_async(lambda: len(receiver.answered) == 2)

        async def waits() -> bool:
            pending = (await delivery_of(client, webhook).describe()).raw_description.pending_activities
            return any(each.HasField("last_failure") for each in pending)

        await until_async(waits)
        receiver.answer = lambda _: OK
        await start_delivery(client, webhook, again=True)
        assert (await delivery_of(client, webhook).result()).status == 204
        await keep_history(delivery_of(client, webhook), "redelivered")
    assert [request.headers["webhook-id"] for request in receiver.requests] == [webhook.id] * 3


async def test_request_that_comes_with_the_last_failure_is_done(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """The answer to whoever asked said that the webhook is sent again. Here no workflow worker runs when both happen."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    webhook, answering = ended(ref), threading.Event()

    def gone(_: Request) -> Answer:
        answering.wait()
        return Answer(410)

    receiver.answer = gone

    async def has_failed() -> bool:
        events = (await delivery_of(client, webhook).fetch_history()).events
        return any(event.HasField("activity_task_failed_event_attributes") for event in events)

    async with webhook_worker(client, WebhookSender(bucket, SETTINGS, timeout_s=DEADLINE_S), 8):
        async with workflow_worker(client):
            await start_delivery(client, webhook)
            await until_async(lambda: bool(receiver.requests))
        answering.set()
        await until_async(has_failed)
        receiver.answer = lambda _: OK
        await start_delivery(client, webhook, again=True)
        async with workflow_worker(client):
            assert (await delivery_of(client, webhook).result()).status == 204


async def test_secret_can_be_replaced(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """While there are two master secrets, receivers with either secret verify."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    async with delivering(client, bucket, settings=WebhookSettings((MASTER, OLD_MASTER), SETTINGS.networks)):
        await start_delivery(client, ended(ref))
        await delivery_of(client, ended(ref)).result()
    (request,) = receiver.requests
    assert verified(request, ref, master=MASTER) == verified(request, ref, master=OLD_MASTER)


async def test_killed_worker_loses_no_webhook(
    client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder, temporal_server: TemporalServer, tmp_path: Path
) -> None:
    """A worker process is killed while it waits for the answer; the next one sends the webhook with the same id."""
    accept(bucket, ref)
    subscribe(bucket, ref, f"{receiver.url}/?token=of-the-receiver")
    released = threading.Event()

    def answer(_: Request) -> Answer:
        released.wait()
        return OK

    receiver.answer = answer
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))},
        "SITELINK_BUCKET": (tmp_path / "bucket").as_uri(),
        "SITELINK_WEBHOOK_SECRET": MASTER,
        "SITELINK_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "TEMPORAL_ADDRESS": temporal_server.address,
    }
    webhook, log = ended(ref), tmp_path / "worker.log"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("a") as output:
            return subprocess.Popen([sys.executable, "-m", "worker", "webhook"], env=environ, stdout=output, stderr=output)

    async with Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[ImpatientDelivery]):
        await start_delivery(client, webhook)
        worker = start()
        try:
            await until_async(lambda: receiver.requests)
            worker.kill()
            worker.wait()
            released.set()
            worker = start()
            assert (await delivery_of(client, webhook).result()).status == 204
        finally:
            worker.send_signal(signal.SIGTERM)
            until(lambda: worker.poll() is not None)
    assert [request.headers["webhook-id"] for request in receiver.requests] == [webhook.id] * 2
    assert "of-the-receiver" not in log.read_text()
    assert MASTER not in log.read_text()
    assert json.loads(receiver.requests[1].body)["type"] == "upload.ended"


async def test_end_of_a_terminated_run_is_announced(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """By the sweep, which writes the manifest of a run that an operator terminated; once, however often it sweeps."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url, (WebhookEvent.UPLOAD_ENDED,))
    fake = FakeActivities(pages(1))
    fake.gate.clear()
    async with (
        working(client, fake),
        webhook_worker(client, WebhookSender(bucket, SETTINGS), 8),
        housekeeping_worker(client, Housekeeping(client, bucket, None), 8),
    ):
        await start_upload(client, ref)
        await until_async(lambda: fake.in_flight == 1)
        await handle_of(client, ref).terminate()

        async def is_announced() -> bool:  # Temporal's own index comes a little later
            await client.execute_workflow(Sweep.run, SweepBucket(), id=f"sweep/{ref.upload}", task_queue=WORKFLOW_QUEUE)
            return bool(receiver.answered)

        await until_async(is_announced)
        assert await is_announced()
    (body,) = [verified(request, ref) for request in receiver.requests]
    assert (body["type"], body["data"]["status"], body["data"]["reason"]) == ("upload.ended", "failed", "Terminated")


async def test_cancelled_delivery_ends(client: Client, ref: UploadRef, bucket: Bucket, receiver: Recorder) -> None:
    """An operator may cancel a delivery in Temporal's UI."""
    accept(bucket, ref)
    subscribe(bucket, ref, receiver.url)
    receiver.answer = lambda _: BROKEN
    webhook = ended(ref)
    async with delivering(client, bucket):
        await start_delivery(client, webhook)
        await until_async(lambda: receiver.answered)
        await delivery_of(client, webhook).cancel()

        async def is_cancelled() -> bool:
            return (await delivery_of(client, webhook).describe()).status is WorkflowExecutionStatus.CANCELED

        await until_async(is_cancelled)
