"""Uploads of PDFs that are in the bucket already: who may name what, and what becomes of it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.keys import ROOT, PlanRef, UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadRecord
from activities.bucket.storage import Bucket
from activities.errors import InvalidRequest, SourceForbidden
from api.app import create_app
from api.settings import ApiSettings
from api.source_prefix import SourcePrefix
from tests.unit.api_fakes import BASE, PDF, FakeTemporal, client_of, make_app

PREFIX = "incoming/{org}/"
KEY = {"Idempotency-Key": "one"}
MAX_BYTES = 20 << 20


@pytest.fixture(params=["directory", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> BucketSettings:
    """An empty bucket of either kind."""
    made: BucketSettings = (
        BucketSettings((tmp_path / "bucket").as_uri())
        if request.param == "directory"
        else request.getfixturevalue("s3_server").new_bucket()
    )
    return made


@pytest.fixture
def bucket(settings: BucketSettings) -> Bucket:
    """The bucket; it holds a plan of ``acme``, and one of ``other``."""
    bucket = Bucket(settings)
    bucket.put("incoming/acme/plan.pdf", PDF)
    bucket.put("incoming/other/plan.pdf", PDF)
    return bucket


@pytest.fixture
async def client(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    settings = ApiSettings(BucketSettings("file:///unused"), max_file_bytes=MAX_BYTES, source_prefix=SourcePrefix(PREFIX))
    async with client_of(create_app(bucket, temporal.connect, settings)) as client:
        yield client


def uploaded(bucket: Bucket) -> list[str]:
    """All objects of all organizations."""
    return sorted(info.key for info in bucket.objects(ROOT))


async def test_object_becomes_an_upload(
    client: httpx2.AsyncClient, settings: BucketSettings, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """The upload has a copy of its own, the options of the body and the query, and the object's name. A directory's SHA-256 is known."""
    answer = await client.post(
        f"{BASE}?quality=70", json={"source": "incoming/acme/plan.pdf", "dpi": 150, "layers": {"A, B": False}, "markups": False}
    )
    assert answer.status_code == 202, answer.text
    ref = UploadRef.parse(answer.json()["ref"])
    bucket.put("incoming/acme/plan.pdf", b"another")
    assert bucket.get(ref.source).body == PDF
    record = bucket.get_record(UploadRecord, ref.record)
    assert (record.file_name, record.size_bytes) == ("plan.pdf", len(PDF))
    assert record.sha256 == (None if settings.is_s3 else hashlib.sha256(PDF).hexdigest())
    assert (record.options.dpi, record.options.quality) == (150, 70)
    assert (record.options.layers, record.options.markups) == ({"A, B": False}, False)
    assert [start["id"] for start in temporal.starts] == [ref.workflow_id]


@pytest.mark.parametrize("name", ["Grundriß 1. OG.pdf", "a%20b+c&d=e.pdf", "[x] #2;~'$.pdf", "deep/er/plan", "图纸.pdf"])
async def test_any_plain_name_is_found(client: httpx2.AsyncClient, bucket: Bucket, name: str) -> None:
    """Letters of all languages, spaces and signs mean themselves. The file may have another name for people."""
    bucket.put(f"incoming/acme/{name}", PDF)
    for more, shown in (({}, name.rsplit("/", 1)[-1]), ({"filename": "A-101.pdf"}, "A-101.pdf")):
        answer = await client.post(BASE, json={"source": f"incoming/acme/{name}", **more})
        assert answer.status_code == 202, answer.text
        assert bucket.get_record(UploadRecord, UploadRef.parse(answer.json()["ref"]).record).file_name == shown


async def test_large_object_is_copied_whole(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """Also one that is sent in parts."""
    body = PDF + bytes(range(256)) * 70_000
    bucket.put("incoming/acme/large.pdf", body)
    answer = await client.post(BASE, json={"source": "incoming/acme/large.pdf"})
    assert bucket.get(UploadRef.parse(answer.json()["ref"]).source).body == body


REFUSED: list[tuple[Any, int, str, str]] = [
    ({"source": "incoming/other/plan.pdf"}, 403, "SourceForbidden", "below incoming/acme/"),
    ({"source": "incoming/acmeplan.pdf"}, 403, "SourceForbidden", "below incoming/acme/"),
    ({"source": "organizations/acme/webhooks.json"}, 403, "SourceForbidden", "below incoming/acme/"),
    ({"source": "incoming/acme/../other/plan.pdf"}, 400, "InvalidRequest", "'..'"),
    ({"source": "incoming/acme/./plan.pdf"}, 400, "InvalidRequest", "'.'"),
    ({"source": "incoming/acme//plan.pdf"}, 400, "InvalidRequest", "empty"),
    ({"source": "/incoming/acme/plan.pdf"}, 400, "InvalidRequest", "empty"),
    ({"source": "incoming/acme/"}, 400, "InvalidRequest", "empty"),
    ({"source": "incoming/acme/..\\other\\plan.pdf"}, 400, "InvalidRequest", "backslash"),
    ({"source": "incoming/acme/plan\n.pdf"}, 400, "InvalidRequest", "control"),
    ({"source": "incoming/acme/\ud800"}, 400, "InvalidRequest", "source"),
    ({"source": "incoming/acme/" + "x" * 1020}, 400, "InvalidRequest", "1,024"),
    ({"source": ""}, 400, "InvalidRequest", "empty"),
    ({"source": 1}, 400, "InvalidRequest", "JSON object"),
    ({}, 400, "InvalidRequest", "JSON object"),
    ([], 400, "InvalidRequest", "JSON object"),
    ({"source": "incoming/acme/plan.pdf", "dpi": True}, 400, "InvalidRequest", "dpi"),
    ({"source": "incoming/acme/plan.pdf", "dpi": 1}, 400, "InvalidRequest", "dpi is 1"),
    ({"source": "incoming/acme/plan.pdf", "layers": {"A": 1}}, 400, "InvalidRequest", "true or false"),
    ({"source": "incoming/acme/plan.pdf", "layers": True}, 400, "InvalidRequest", "layers"),
    ({"source": "incoming/acme/plan.pdf", "markups": 1}, 400, "InvalidRequest", "markups"),
    ({"source": "incoming/acme/plan.pdf", "sauce": 1}, 400, "InvalidRequest", "no option 'sauce'"),
    ({"source": "incoming/acme/plan.pdf", "quality": 85}, 400, "InvalidRequest", "quality is in the body and in the query"),
    ({"source": "incoming/acme/missing.pdf"}, 404, "ObjectMissing", "incoming/acme/missing.pdf"),
    ({"source": "incoming/acme/plan.pdf/more"}, 404, "ObjectMissing", "plan.pdf/more"),
    ({"source": "incoming/acme/empty.pdf"}, 422, "NotAPdf", "empty"),
    ({"source": "incoming/acme/page.html"}, 422, "NotAPdf", "%PDF-"),
    ({"source": "incoming/acme/huge.pdf"}, 413, "FileTooLarge", "limit 20,971,520"),
]


@pytest.mark.parametrize(("body", "status", "name", "sentence"), REFUSED)
async def test_refusal_is_named_and_leaves_nothing(
    client: httpx2.AsyncClient, bucket: Bucket, body: Any, status: int, name: str, sentence: str
) -> None:
    """What is not a PDF below the organization's prefix becomes no upload, and the answer says why."""
    bucket.put("incoming/acme/empty.pdf", b"")
    bucket.put("incoming/acme/page.html", b"<html>" * 1000)
    if name == "FileTooLarge":
        bucket.put("incoming/acme/huge.pdf", PDF + bytes(MAX_BYTES))
    headers = {"Content-Type": "application/json", **KEY}
    answer = await client.post(f"{BASE}?quality=85", content=json.dumps(body), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (status, name), answer.text
    assert sentence in answer.json()["detail"]
    assert uploaded(bucket) == []


async def test_body_that_is_no_json_or_not_the_announced_one(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """Both are refused by name. JSON is measured like any other body that is read whole."""
    json_type = {"Content-Type": "application/json; charset=utf-8"}
    body = b'{"source": "incoming/acme/plan.pdf"}'
    wrong = "sha-256=:" + "A" * 43 + "=:"
    for content, headers, status, name in (
        (b"{", {}, 400, "InvalidRequest"),
        (b"[" * 100_000, {}, 413, "ContentTooLarge"),
        (b'{"source": "x", "dpi": ' + b"1" * 5000 + b"}", {}, 400, "InvalidRequest"),
        (body, {"Content-Digest": wrong}, 400, "DigestMismatch"),
        (body, {"Content-Encoding": "gzip"}, 415, "EncodedContent"),
    ):
        answer = await client.post(BASE, content=content, headers={**json_type, **headers})
        assert (answer.status_code, answer.json()["type"]) == (status, name), answer.text
    assert uploaded(bucket) == []


async def test_without_the_setting_there_are_no_sources(bucket: Bucket, temporal: FakeTemporal) -> None:
    """The refusal names the variable."""
    async with client_of(make_app(bucket, temporal)) as client:
        answer = await client.post(BASE, json={"source": "incoming/acme/plan.pdf"})
    assert (answer.status_code, answer.json()["type"]) == (403, "SourceForbidden")
    assert "SITELINK_SOURCE_PREFIX" in answer.json()["detail"]


async def test_key_stands_for_the_name_of_the_object(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """A repeated request is the same upload, also when the object has changed or is gone. Another name, option or file is refused."""
    first = await client.post(BASE, json={"source": "incoming/acme/plan.pdf"}, headers=KEY)
    before = uploaded(bucket)
    bucket.delete(["incoming/acme/plan.pdf"])
    again = await client.post(BASE, json={"source": "incoming/acme/plan.pdf"}, headers=KEY)
    assert (again.status_code, again.json()["ref"]) == (202, first.json()["ref"])
    for more in ({"json": {"source": "incoming/acme/b.pdf"}}, {"json": {"source": "incoming/acme/plan.pdf", "dpi": 72}}, {"content": PDF}):
        answer = await client.post(BASE, headers=KEY, **more)
        assert (answer.status_code, answer.json()["type"]) == (422, "IdempotencyConflict"), more
    assert uploaded(bucket) == before


@pytest.mark.parametrize("settings", ["directory"], indirect=True)
async def test_racing_requests_with_one_key_make_one_upload(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """One copy stays. S3 and R2 promise the same of a key's object. versitygw looks first and then writes, so it is not tested."""
    requests = (client.post(BASE, json={"source": "incoming/acme/plan.pdf"}, headers=KEY) for _ in range(4))
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["ref"] for answer in answers}) == 1
    assert len([key for key in uploaded(bucket) if "/uploads/" in key]) == 2


async def test_upload_is_completed_after_a_crash(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """The first request died before ``upload.json``; the repeated request completes its upload."""
    first = UploadRef.parse((await client.post(BASE, json={"source": "incoming/acme/plan.pdf"}, headers=KEY)).json()["ref"])
    bucket.delete([first.record])
    again = await client.post(BASE, json={"source": "incoming/acme/plan.pdf"}, headers=KEY)
    assert (again.status_code, again.json()["ref"]) == (202, str(first))
    assert bucket.get_record(UploadRecord, first.record).size_bytes == len(PDF)


def test_links_of_a_directory_are_not_followed(tmp_path: Path) -> None:
    """Neither a link to a file nor one to a directory; and no directory, no pipe and no half-written file is an object."""
    root = tmp_path / "bucket"
    bucket = Bucket(BucketSettings(root.as_uri()))
    bucket.put("incoming/other/plan.pdf", PDF)
    (root / "incoming/acme/directory").mkdir(parents=True)
    (root / "incoming/acme/file").symlink_to(root / "incoming/other/plan.pdf")
    (root / "incoming/acme/tree").symlink_to(root / "incoming/other")
    (root / "incoming/acme/plan.pdf#1").write_bytes(PDF)
    for name in ("file", "tree/plan.pdf", "directory", "plan.pdf#1", "x" * 300, "missing"):
        with pytest.raises(Exception, match="no object") as missing:
            bucket.open_file(f"incoming/acme/{name}")
        assert type(missing.value).__name__ == "ObjectMissing"


@pytest.mark.parametrize(
    "template",
    ["incoming/", "incoming/{org}", "/{org}/", "{org}/../x/", "a//{org}/", "{org}/{name}/", "organizations/{org}/", "events/{org}/"],
)
def test_prefix_that_does_not_part_the_organizations_is_refused(template: str) -> None:
    """By its variable, when the server starts."""
    with pytest.raises(ValueError, match="SITELINK_SOURCE_PREFIX"):
        ApiSettings.from_env({"SITELINK_SOURCE_PREFIX": template})


def test_prefix_may_be_of_a_project_or_plan() -> None:
    """Then a token of one project reads no files of another."""
    prefix = ApiSettings.from_env({"SITELINK_SOURCE_PREFIX": "in/{org}/{project}/{plan}/"}).source_prefix
    prefix.check(PlanRef("acme", "tower", "a1"), "in/acme/tower/a1/x.pdf")
    with pytest.raises(SourceForbidden):
        prefix.check(PlanRef("acme", "tower", "a1"), "in/acme/bridge/a1/x.pdf")
    with pytest.raises(InvalidRequest):
        prefix.check(PlanRef("acme", "tower", "a1"), "in/acme/tower/a1/../x.pdf")
