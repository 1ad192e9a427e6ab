"""``python -m deploy.check`` with a real Temporal server and a real S3 server."""

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowHandle

from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from deploy.check.bucket import check_bucket
from deploy.check.table import Finding, Grade
from deploy.check.temporal import check_temporal
from deploy.temporal import TemporalServer
from tests.servers.collector import collecting
from tests.servers.faults import Rule, answers, faulty, lies_about_put
from tests.servers.queue import TOKEN, FakeQueue, serving
from tests.servers.recorder import Answer, Request, recording, s3_error
from tests.servers.s3 import TestServer
from tests.unit.test_public_keys import BODY
from tests.waiting import until_async
from workflows.codec import codec_keys, data_converter
from workflows.messages import SEARCH_ATTRIBUTES

ROOT = Path(__file__).parents[2]
KEY, OTHER_KEY = "ab" * 32, "cd" * 32


def of(findings: Sequence[Finding], check: str) -> Finding:
    """The one finding of a check."""
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def _always(answer: Answer, _: Request) -> Answer:
    return answer


def environment(server: TemporalServer, **changes: str) -> dict[str, str]:
    """The variables of a process that uses the server."""
    return {"TEMPORAL_ADDRESS": server.address, "TEMPORAL_CONFIG_FILE": os.devnull, **changes}


def test_the_command_finds_nothing_wrong(temporal_server: TemporalServer, s3_server: TestServer, tmp_path: Path) -> None:
    """Exit code 0, a line for each check, no secret, and nothing left in the bucket."""
    settings = s3_server.new_bucket("a/b")
    secrets = {"AWS_SECRET_ACCESS_KEY": settings.secret_access_key, "SITELINK_JWT_SECRET": "j" * 40, "SITELINK_EVENTS_TOKEN": TOKEN}
    variables = {**s3_server.environment(settings), "SITELINK_ACCESS": "jwt", "SITELINK_UNCONFINED": "allow"}
    (tmp_path / "jwks.json").write_bytes(BODY)
    keys = {"SITELINK_JWT_JWKS": str(tmp_path / "jwks.json"), "SITELINK_JWT_ISSUER": "backend", "SITELINK_JWT_AUDIENCE": "plans"}
    files = {f"{name}_FILE": str(tmp_path / name) for name in secrets}
    for name, text in secrets.items():
        (tmp_path / name).write_text(f"{text}\n")
    with serving(FakeQueue()) as queue, collecting() as collector:
        variables |= {**keys, **queue.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        ended = subprocess.run(
            [sys.executable, "-m", "deploy.check"],
            env={
                "PATH": os.environ["PATH"],
                "SITELINK_SCRATCH_DIR": str(tmp_path / "scratch"),
                **environment(temporal_server),
                **{name: text for name, text in variables.items() if name not in secrets},
                **files,
            },
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    checks = [line.partition("|")[0].strip() for line in ended.stdout.splitlines()]
    assert {"settings", "Temporal", "Temporal namespace", "Temporal search attributes", "encryption in Temporal", "bucket", "clock"} <= {
        *checks
    }
    assert {"bucket: CORS", "bucket: lifecycle", "open files", "scratch", "render children", "fonts", "cutter", *secrets} <= {*checks}
    assert {"JWKS", "queue of R2's events", "traces"} <= {*checks}
    assert ", 0 wrong" in ended.stdout or ": 0 wrong" in ended.stdout
    assert not any(text in ended.stdout + ended.stderr for text in secrets.values())
    assert list(Bucket(settings).objects("")) == []
    assert BucketSetup(settings).unfinished_uploads() == []


# Temporal


async def test_the_server_is_told_by_its_version(temporal_server: TemporalServer, temporal: Client) -> None:
    """With the namespace and its retention."""
    findings = await check_temporal(environment(temporal_server), ())
    assert of(findings, "Temporal").result.startswith(f"{temporal_server.address} answers, server 1.")
    assert of(findings, "Temporal namespace").result.startswith("default, keeps ended runs ")
    assert of(findings, "Temporal search attributes") == Finding("Temporal search attributes", Grade.OK, "all 5")
    assert of(findings, "encryption in Temporal").result.startswith("off: ")


async def test_a_server_that_is_not_temporal_is_wrong(s3_server: TestServer) -> None:
    """The one finding names its address."""
    address = s3_server.endpoint.removeprefix("http://")
    (found,) = await check_temporal({"TEMPORAL_ADDRESS": address, "TEMPORAL_CONFIG_FILE": os.devnull}, ())
    assert found.grade is Grade.WRONG
    assert found.result.startswith(f"{address} is not reached: ")


async def test_a_namespace_that_is_missing_is_wrong(temporal_server: TemporalServer) -> None:
    """Nothing that lies in it is looked at."""
    findings = await check_temporal(environment(temporal_server, TEMPORAL_NAMESPACE="absent"), ())
    assert [found.check for found in findings] == ["Temporal", "Temporal namespace"]
    assert (findings[1].grade, findings[1].result) == (Grade.WRONG, "there is no namespace absent")
    assert findings[1].advice.startswith("temporal operator namespace create --retention 72h --namespace absent;")


async def test_missing_search_attributes_are_made_by_what_the_table_says(
    temporal_server: TemporalServer, temporal: Client, temporal_binary: Path
) -> None:
    """A new namespace has none of them. The command in the last column makes them."""
    namespace = f"bare-{uuid4().hex[:8]}"
    retention = Duration(seconds=24 * 3600)
    await temporal.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=retention)
    )

    async def found() -> Finding | None:
        findings = await check_temporal(environment(temporal_server, TEMPORAL_NAMESPACE=namespace), ())
        return next((finding for finding in findings if finding.check == "Temporal search attributes"), None)

    await until_async(found)  # the server knows a new namespace after some seconds
    before = await found()
    assert before is not None
    assert before.result == f"missing: {', '.join(SEARCH_ATTRIBUTES)}"
    program, *words = shlex.split(before.advice)
    assert program == "temporal"
    made = await asyncio.create_subprocess_exec(temporal_binary, *words, "--address", temporal_server.address)
    assert await made.wait() == 0

    async def is_good() -> bool:
        after = await found()
        return after is not None and after.grade is Grade.OK

    await until_async(is_good)


@pytest.fixture
async def encrypted_run(temporal_server: TemporalServer, temporal: Client) -> AsyncIterator[WorkflowHandle[object, object]]:
    """The newest upload in Temporal, which is encrypted."""
    converter = data_converter(codec_keys({"SITELINK_CODEC_KEY": KEY}))
    client = await Client.connect(temporal_server.address, data_converter=converter)
    run = await client.start_workflow("ProcessUpload", "a title", id=f"upload/a/b/c/{uuid4()}", task_queue="nobody")

    async def is_listed() -> bool:
        return [found.id async for found in temporal.list_workflows('WorkflowType = "ProcessUpload"', limit=1)] == [run.id]

    await until_async(is_listed)
    yield run
    await run.terminate()


@pytest.mark.usefixtures("encrypted_run")
async def test_a_key_that_cannot_read_what_is_there_is_wrong(temporal_server: TemporalServer) -> None:
    """The right key, also as the second, reads the newest upload; another key, or none, does not."""
    for text, grade in (("", Grade.WRONG), (OTHER_KEY, Grade.WRONG), (KEY, Grade.OK), (f"{OTHER_KEY},{KEY}", Grade.OK)):
        findings = await check_temporal(environment(temporal_server), codec_keys({"SITELINK_CODEC_KEY": text}))
        found = of(findings, "encryption in Temporal")
        assert found.grade is grade, found
        assert ("can be read" in found.result) == (grade is Grade.OK)
        assert text[:64] not in found.result or not text


# The bucket


def test_a_bucket_that_is_missing_is_made_by_what_the_table_says(s3_server: TestServer) -> None:
    """The command in the last column makes it."""
    settings = s3_server.settings(f"made-{uuid4().hex[:8]}")
    found = of(check_bucket(settings, []), "bucket")
    assert (found.grade, found.result) == (Grade.WRONG, f"there is no bucket {settings.url.removeprefix('s3://')}")
    program, *words = shlex.split(found.advice.partition(";")[0])
    assert program == "python"
    environ = {"PATH": os.environ["PATH"], **s3_server.environment(settings)}
    subprocess.run([sys.executable, *words], env=environ, check=True, capture_output=True, cwd=ROOT)
    assert of(check_bucket(settings, []), "bucket").grade is Grade.OK


def test_wrong_credentials_are_told(s3_server: TestServer) -> None:
    """A wrong key, and a wrong secret, which is not shown."""
    settings = s3_server.new_bucket()
    for wrong in (replace(settings, access_key_id="nobody"), replace(settings, secret_access_key="hush" * 8)):
        found = of(check_bucket(wrong, []), "bucket")
        assert found.grade is Grade.WRONG
        assert "the bucket refuses" in found.result
        assert "credentials" in found.advice
        assert "hush" not in found.result


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(answers(403, "AccessDenied"), "PUT"), "the bucket refuses check/"),
        (Rule(answers(403, "AccessDenied"), "GET", "delimiter"), "the bucket refuses check/"),
        (Rule(answers(403, "AccessDenied"), "POST", "delete"), "the bucket refuses check/"),
        (Rule(answers(403, "AccessDenied"), "POST", "uploads"), "the bucket refuses check/"),
        (Rule(answers(403, "AccessDenied"), "GET", "uploads"), "the bucket refuses"),
        (Rule(lies_about_put, "PUT"), "said that it has written check/"),
    ],
    ids=["write", "list", "delete", "parts", "list parts", "lying"],
)
def test_a_request_that_the_bucket_refuses_is_told(s3_server: TestServer, rule: Rule, words: str) -> None:
    """Each kind of request that SiteLink makes is tried."""
    settings = s3_server.new_bucket()
    with faulty(settings.endpoint) as proxy:
        proxy.lay(rule)
        found = of(check_bucket(replace(settings, endpoint=proxy.url), []), "bucket")
    assert found.grade is Grade.WRONG
    assert words in found.result


def test_a_clock_that_is_wrong_is_told() -> None:
    """By the time that the server tells, also when it refuses every request for it."""
    with recording() as server:
        settings = TestServer(server.url, "id", "secret", "").settings("plans")
        server.answer = lambda _: replace(
            s3_error(403, "RequestTimeTooSkewed"), headers=(("Date", formatdate(1_000_000_000, usegmt=True)),)
        )
        findings = check_bucket(settings, [])
    clock, bucket = of(findings, "clock"), of(findings, "bucket")
    assert clock.grade is Grade.WRONG
    assert "s ahead of the bucket's server" in clock.result
    assert "the clock of this machine is wrong" in bucket.result
    assert clock.advice == bucket.advice


def test_the_rules_for_pages_are_compared_with_the_origins(s3_server: TestServer) -> None:
    """CORS is a note, with the command that sets it, until every origin may write."""
    settings = s3_server.new_bucket()
    origins = ["https://plans.example.com", "https://app.example.com"]
    found = of(check_bucket(settings, origins), "bucket: CORS")
    assert found.grade is Grade.NOTE
    assert found.advice == "python -m deploy.bucket --origin https://plans.example.com --origin https://app.example.com"
    BucketSetup(settings).allow_origins(origins[:1])
    assert "pages of https://app.example.com cannot" in of(check_bucket(settings, origins), "bucket: CORS").result
    BucketSetup(settings).allow_origins(origins)
    assert of(check_bucket(settings, origins), "bucket: CORS").grade is Grade.OK


def test_the_rule_that_aborts_uploads_is_read() -> None:
    """As S3 documents its answers: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html."""
    rule = "<Rule><ID>x</ID><Status>{}</Status><Filter><Prefix></Prefix></Filter>{}</Rule>"
    abort = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
    expire = "<Expiration><Days>7</Days></Expiration>"
    with recording() as server:
        setup = BucketSetup(TestServer(server.url, "id", "secret", "").settings("plans"))
        for body, expected in (
            (rule.format("Enabled", abort), True),
            (rule.format("Disabled", abort), False),
            (rule.format("Enabled", expire), False),
        ):
            answer = Answer(200, f"<LifecycleConfiguration>{body}</LifecycleConfiguration>".encode())
            server.answer = partial(_always, answer)
            assert setup.aborts_stale_uploads() is expected
        server.answer = lambda _: s3_error(404, "NoSuchLifecycleConfiguration")
        assert setup.aborts_stale_uploads() is False
