"""What an operator and a stranger learn: the audit log, the host names, the health check."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from activities.bucket.storage import Bucket
from activities.logs import JsonFormatter, TextFormatter
from api.access.settings import Mode
from api.app import OPEN_WARNING
from api.paths import SESSION, upload_path, uploads_path
from api.settings import ApiSettings
from tests.unit.api_fakes import PDF, UNAVAILABLE, FakeTemporal, accept, client_of
from tests.unit.test_access import ACCESS, MINE, SECRET, THEIRS, bearer, make_api, token

PATH = upload_path(MINE)


@pytest.fixture
async def client(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API with access control, with an upload of each tenant."""
    for ref in (MINE, THEIRS):
        await accept(bucket, ref)
    async with client_of(make_api(bucket, temporal)) as client:
        yield client


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the audit log, without the time."""
    formatter = TextFormatter()
    records = [record for record in caplog.records if record.name == "api.access.audit"]
    return [formatter.format(record).split(" ", 1)[1] for record in records]


async def test_every_change_is_one_line(client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """Who, what, and the answer's status; reads are not logged."""
    caplog.set_level(logging.INFO)
    headers = bearer(token(sub="jo from\nacme"))
    answer = await client.post(uploads_path(MINE.plan_ref), content=PDF, headers=headers | {"Content-Type": "application/pdf"})
    await client.get(PATH, headers=headers)
    for method, path in (("POST", "/cancel"), ("POST", "/reconcile"), ("POST", "/sheets/1/retry"), ("POST", "/tickets"), ("DELETE", "")):
        await client.request(method, PATH + path, headers=headers)
    await client.post(SESSION, headers=headers)
    begun = (await client.post(f"{uploads_path(MINE.plan_ref)}:begin", json={"sizeBytes": 9}, headers=headers)).json()
    await client.get(begun["links"]["parts"], headers=headers)
    signed = await client.post(begun["links"]["sign"], json={"numbers": [1]}, headers=headers)
    await client.put(signed.json()["parts"][0]["url"], content=b"%PDF-1.7\n")
    await client.post(begun["links"]["complete"], json={"parts": []}, headers=headers)
    await client.delete(begun["links"]["parts"], headers=headers)
    said = lines(caplog)
    actions = ["upload", "cancel", "reconcile", "retry", "ticket", "delete", '"begin session"']
    actions += [f'"{action}"' for action in ("begin upload", "sign parts", "complete upload", "abort upload")]
    assert [line.split("action=")[1].split(" status=")[0] for line in said] == actions
    assert all(line.startswith("INFO api.access.audit: request ") and 'sub="jo from\\nacme"' in line for line in said)
    assert f" ref={answer.json()['ref']} " in said[0]
    assert " action=upload status=202 " in said[0]
    assert f" ref={begun['ref']} " in said[7]
    assert ' action="complete upload" status=409 ' in said[9]
    assert "signature=" not in "".join(said)


async def test_every_refusal_is_one_line_without_the_credential(client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """Also when nobody knows who it was."""
    caplog.set_level(logging.INFO)
    await client.post(f"{PATH}/cancel")
    foreign = token("somebody else's secret of 32 bytes")
    await client.get(f"{PATH}?ticket={foreign}")
    await client.get(upload_path(THEIRS), headers=bearer(token()))
    await client.delete(PATH, headers=bearer(token(scope="read")))
    said = lines(caplog)
    assert [line.split("problem=")[1].split(":")[0].strip('"') for line in said] == [
        "CredentialRequired",
        "CredentialRequired",
        "UploadNotFound",
        "NotAllowed",
    ]
    assert ["sub=jo" in line for line in said] == [False, False, True, True]
    assert "action=cancel method=POST" in said[0]
    assert all(line.startswith("WARNING api.access.audit: refused access ") for line in said)
    assert not any(secret in "".join(said) for secret in (SECRET, foreign, foreign.split(".")[2]))


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_credentials_in_a_library_s_line_are_cut_out(formatter: logging.Formatter) -> None:
    """SiteLink logs none itself."""
    text = token()
    for said in (f"GET /v1?ticket={text}&after=1", f"Cookie: __Host-sitelink={text}; a=b", f"Authorization: Bearer {text}"):
        assert text.split(".")[2] not in formatter.format(logging.makeLogRecord({"name": "library", "msg": said}))


async def test_listed_hosts_are_answered(bucket: Bucket, temporal: FakeTemporal) -> None:
    """And no other, so that another site cannot lead a browser here under its own name."""
    app = make_api(bucket, temporal, replace(ACCESS, public_hosts=("plans.example.com",)))
    async with client_of(app) as client:
        for host, status in (
            ("plans.example.com", 200),
            ("Plans.Example.Com:8443", 200),
            ("127.0.0.1:8000", 200),
            ("evil.example.com", 421),
            ("plans.example.com.evil.example.com", 421),
        ):
            answer = await client.get(uploads_path(MINE.plan_ref), headers=bearer(token()) | {"Host": host})
            assert answer.status_code == status, host


async def test_health_says_no_details_to_strangers(bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture) -> None:
    """Only the log says what is wrong; where access is open, the answer warns."""
    async with client_of(make_api(bucket, temporal)) as client:
        assert (await client.get("/readyz")).text == "ok\n"
        temporal.healthy = UNAVAILABLE
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "the server's log says what is wrong")
        assert any("TemporalUnavailable" in str(vars(record)) for record in caplog.records)
    temporal.healthy = True
    app = make_api(bucket, temporal, replace(ACCESS, mode=Mode.OPEN))
    caplog.clear()
    async with app.router.lifespan_context(app), client_of(app) as client:
        lines = (await client.get("/readyz")).text.splitlines()
        assert lines[:2] == ["ok", f"warning: {OPEN_WARNING}"]
        assert lines[2].startswith("images are decoded behind: ")
    assert OPEN_WARNING in caplog.text


def test_settings_show_no_secret() -> None:
    """Not even in a traceback that shows the settings."""
    settings = ApiSettings.from_env({"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": SECRET.replace(",", "")})
    assert SECRET.replace(",", "") not in repr(settings)
