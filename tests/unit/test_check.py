"""``python -m deploy.check`` without servers: settings, names, secrets, keys, queue, directories, this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from activities.bucket.location import BucketSettings
from activities.render import confine
from activities.scratch import Scratch
from api.access.settings import AccessSettings
from api.r2.settings import PullSettings
from deploy.check.access import check_public_keys, check_queue
from deploy.check.bucket import check_bucket
from deploy.check.host import LAYER_ADVICE, check_host
from deploy.check.settings import check_names, check_secrets, check_settings, secret_texts
from deploy.check.table import Finding, Grade, exit_code, table
from tests.servers.queue import FakeQueue, serving
from tests.servers.recorder import Answer, recording
from tests.unit.test_public_keys import BODY, jwk, jwks
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
HUSH = "hush" * 8


def the_one(findings: Sequence[Finding], grade: Grade) -> Finding:
    """The one finding of a grade."""
    (found,) = [finding for finding in findings if finding.grade is grade]
    return found


def as_nobody(code: str) -> str:
    """What a program prints that gives up root, if it has it, after its imports: ``give_up()``."""
    give_up = "import os\ndef give_up():\n    if os.geteuid() == 0:\n        os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    return subprocess.run([sys.executable, "-c", give_up + code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_exit_code_tells_the_worst() -> None:
    """2 before 1, and a note is no failure."""
    ok, note, wrong, setting = (Finding("x", grade) for grade in Grade)
    assert [exit_code(found) for found in ([], [ok, note], [ok, wrong], [wrong, setting, note])] == [0, 0, 1, 2]


def test_the_table_has_a_line_for_each_finding_and_no_secret() -> None:
    """A long result goes on in the next line; what to do may be a command, and stays whole."""
    command = "temporal operator search-attribute create " + "--name x " * 20
    text = table([Finding("first", Grade.OK), Finding("second", Grade.WRONG, f"the word {HUSH} " + "more " * 40, command)], [HUSH, "hush"])
    lines = text.splitlines()
    assert [word.strip() for word in lines[0].split("|")] == ["check", "result", "what to do"]
    assert lines[2].split("|")[1].strip() == "ok"
    assert lines[3].endswith(command.strip())
    assert "WRONG: the word … more" in lines[3]
    assert lines[4].strip().startswith("| more")
    assert lines[-1] == "2 checks: 1 wrong, 0 notes"
    assert "hush" not in text


def test_settings_that_can_be_used_are_one_finding() -> None:
    """Of the processes that the settings ask for."""
    assert check_settings({}) == [Finding("settings", Grade.OK, "api, worker workflow, worker tile")]
    environ = {"SITELINK_WEBHOOK_SECRET": HUSH, **FakeQueue().environment, "SITELINK_EVENTS_API": ""}
    assert check_settings(environ) == [Finding("settings", Grade.OK, "api, api events, worker workflow, worker tile, worker webhook")]


EVERY_PROCESS = "api, worker workflow, worker tile"


@pytest.mark.parametrize(
    ("environ", "words", "processes"),
    [
        ({"SITELINK_PORT": "x"}, "SITELINK_PORT is 'x'", "api"),
        ({"SITELINK_LIMIT_ADDRESS": "many"}, "SITELINK_LIMIT_ADDRESS", "api"),
        ({"SITELINK_JWT_SECRET": "hush-short", "SITELINK_ACCESS": "jwt"}, "SITELINK_JWT_SECRET has less than 32 bytes", "api"),
        ({"SITELINK_RENDER_SLOTS": "0"}, "SITELINK_RENDER_SLOTS is '0'", "worker workflow, worker tile"),
        ({"SITELINK_BUCKET": "http://x"}, "SITELINK_BUCKET is 'http://x'", "api, worker tile"),
        ({"SITELINK_BUCKET": "s3://plans", "AWS_ACCESS_KEY_ID": "x"}, "AWS_SECRET_ACCESS_KEY is not set", "api, worker tile"),
        ({"SITELINK_CODEC_KEY": "hush"}, "SITELINK_CODEC_KEY is not 64 hexadecimal digits", EVERY_PROCESS),
        ({"SITELINK_LOG_FORMAT": "xml"}, "SITELINK_LOG_FORMAT is 'xml'", EVERY_PROCESS),
        ({"SITELINK_METRICS_PORT": "x"}, "SITELINK_METRICS_PORT is 'x'", EVERY_PROCESS),
        ({"TEMPORAL_PROFILE": "absent"}, "the settings of Temporal cannot be used", EVERY_PROCESS),
        ({"SITELINK_EVENTS_QUEUE": "b" * 32}, "SITELINK_EVENTS_ACCOUNT and SITELINK_EVENTS_TOKEN must be set, too", "api events"),
        ({"SITELINK_WEBHOOK_SECRET": "hush-short"}, "SITELINK_WEBHOOK_SECRET", "api, worker webhook"),
    ],
)
def test_a_wrong_setting_is_told_with_the_processes_that_would_not_start(environ: dict[str, str], words: str, processes: str) -> None:
    """In one finding, without the value of a secret."""
    found = the_one(check_settings(environ), Grade.SETTING)
    assert words in found.result
    assert found.result.endswith(f"({processes})")
    assert "hush" not in found.result


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file or directory"), ("", "this file is empty"), ("\n", "this file is empty"), (HUSH, "are both set")],
)
def test_a_file_of_a_secret_that_cannot_be_used_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    """A file that is missing or empty, or a secret that is also in a variable."""
    file = tmp_path / "secret"
    if text is not None:
        file.write_text(text)
    environ = {"AWS_SECRET_ACCESS_KEY_FILE": str(file), **({"AWS_SECRET_ACCESS_KEY": HUSH} if text == HUSH else {})}
    found = the_one(check_settings(environ), Grade.SETTING)
    assert "AWS_SECRET_ACCESS_KEY_FILE" in found.result
    assert words in found.result
    assert check_secrets(environ) == []
    assert HUSH not in found.result


def test_secrets_are_told_by_their_lengths(tmp_path: Path) -> None:
    """Also whether others may read their file; and no value."""
    file = tmp_path / "secret"
    file.write_text(HUSH)
    file.chmod(0o600)
    environ = {"SITELINK_JWT_SECRET": f"{HUSH},{HUSH}hush", "SITELINK_WEBHOOK_SECRET_FILE": str(file)}
    assert check_secrets(environ) == [
        Finding("SITELINK_JWT_SECRET", Grade.OK, "2 of at least 32 bytes"),
        Finding("SITELINK_WEBHOOK_SECRET", Grade.OK, "1 of 32 bytes, from a file"),
    ]
    file.chmod(0o644)
    assert "every user of this machine may read its file" in the_one(check_secrets(environ), Grade.NOTE).result
    assert secret_texts(environ) == {HUSH, HUSH + "hush", f"{HUSH},{HUSH}hush"}


def test_an_unknown_setting_is_a_note() -> None:
    """With the nearest name."""
    (found,) = check_names({"SITELINK_BUKET": "hush", "SITELINK_BUCKET": "hush"})
    assert (found.grade, found.result) == (Grade.NOTE, "there is no setting SITELINK_BUKET (is SITELINK_BUCKET meant?)")


def test_public_keys_are_fetched(tmp_path: Path, free_port: int) -> None:
    """From a file or a server. A file without usable keys, a server that is down, and one that answers something else are wrong."""
    file = tmp_path / "jwks.json"
    file.write_bytes(BODY)
    assert check_public_keys(AccessSettings()) == []
    found = the_one(check_public_keys(AccessSettings(public_keys=str(file))), Grade.OK)
    assert found.result == "3 keys for ES256, EdDSA, RS256"
    with recording() as server:
        server.answer = lambda _: Answer(200, BODY)
        assert the_one(check_public_keys(AccessSettings(public_keys=server.url)), Grade.OK) == found
        server.answer = lambda _: Answer(404)
        assert "the server answers 404" in the_one(check_public_keys(AccessSettings(public_keys=server.url)), Grade.WRONG).result
    down = check_public_keys(AccessSettings(public_keys=f"http://127.0.0.1:{free_port}/jwks.json"))
    assert "is not reached" in the_one(down, Grade.WRONG).result
    for body in (b"{}", b"<html>", jwks({"kty": "oct", "k": "aHVzaA", "kid": "secret"})):
        file.write_bytes(body)
        assert "JWKS" in the_one(check_public_keys(AccessSettings(public_keys=str(file))), Grade.WRONG).result


def test_a_short_public_key_is_told(tmp_path: Path) -> None:
    """The API refuses its tokens. Without another key it refuses every token."""
    short = jwk(RSAAlgorithm, rsa.generate_private_key(65_537, 1024), "short")  # noqa: S505 - this is the point
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(short))
    assert "1024 bits" in the_one(check_public_keys(AccessSettings(public_keys=str(file))), Grade.WRONG).result
    file.write_bytes(jwks(short, *json.loads(BODY)["keys"]))
    findings = check_public_keys(AccessSettings(public_keys=str(file)))
    assert [found.grade for found in findings] == [Grade.OK, Grade.NOTE]
    assert findings[1].result.startswith("key short: The RSA key is 1024 bits long")


def test_the_queue_is_asked_for_and_keeps_its_messages(free_port: int) -> None:
    """A wrong token, a queue that is not there, one without a pull consumer, and a server that is down are wrong."""
    assert check_queue(None) == []
    with serving(FakeQueue()) as queue:
        queue.send({})

        def found(**changes: str) -> Finding:
            (finding,) = check_queue(PullSettings.from_env({**queue.environment, **changes}))
            return finding

        assert found().grade is Grade.OK
        assert "token is refused" in found(SITELINK_EVENTS_TOKEN="hush-of-another").result  # noqa: S106 - of a test
        assert found(SITELINK_EVENTS_QUEUE="c" * 32).result == "HTTP 404"
        assert "is not reached" in found(SITELINK_EVENTS_API=f"http://127.0.0.1:{free_port}").result
        queue.consumers = [{"type": "worker"}]
        assert "no HTTP pull consumer" in found().result
        assert [action for action, _ in queue.requests if action in ("pull", "ack")] == []


def test_a_bucket_in_a_directory_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    """A directory that is not there yet is made by the first process; a file is no directory."""
    directory = tmp_path / "bucket"
    settings = BucketSettings(directory.as_uri())
    assert the_one(check_bucket(settings, []), Grade.NOTE).result == f"{directory} is not there"
    assert not directory.exists()
    directory.mkdir()
    (directory / "kept").write_text("x")
    assert "can be listed, written and read" in the_one(check_bucket(settings, []), Grade.OK).result
    assert list(directory.rglob("*")) == [directory / "kept"]
    file = BucketSettings((directory / "kept").as_uri())
    assert "is not a directory" in the_one(check_bucket(file, []), Grade.WRONG).result


def test_there_is_advice_for_each_missing_layer() -> None:
    """Whatever does not confine render children here, the table says what to do."""
    assert LAYER_ADVICE.keys() == set(confine.LAYERS)


def test_directories_that_this_user_may_not_use_are_wrong() -> None:
    """Of bucket and scratch: one that may not be written, one that may not be made, one that may not be seen."""
    with TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        for name, mode in (("written", 0o555), ("empty", 0o555), ("unseen", 0)):
            Path(root, name).mkdir(mode=mode)
        said = as_nobody(f"""
import json
from pathlib import Path
from activities.bucket.location import BucketSettings
from deploy.check.bucket import check_bucket
from deploy.check import host
from worker.settings import WorkerSettings
directories = [Path({root!r}, name) for name in ("written", "empty/made", "unseen/made")]
workers = [WorkerSettings.from_env({{"SITELINK_SCRATCH_DIR": str(directory)}}) for directory in directories]
give_up()
found = [finding for directory in directories for finding in check_bucket(BucketSettings(directory.as_uri()), [])]
found += map(host._scratch, workers)
print(json.dumps([[finding.check, finding.grade, finding.result, finding.advice] for finding in found]))
""")
    found = json.loads(said)
    assert [finding[:2] for finding in found] == [["bucket", Grade.WRONG]] * 3 + [["scratch", Grade.WRONG]] * 3
    assert "refuses" in found[0][2]
    assert "Permission denied" in found[3][2]
    for bucket, scratch in ((found[1], found[4]), (found[2], found[5])):
        assert bucket[2] == scratch[2]
        assert bucket[3].replace("SITELINK_BUCKET", "SITELINK_SCRATCH_DIR") == scratch[3]
    assert found[1][3] == f"make it, or correct SITELINK_BUCKET: {root}/empty may not be written by this user"
    assert found[2][2:] == [f"{root}/unseen/made: Permission denied", "let this user reach it, or correct SITELINK_BUCKET"]


def host_findings(**environ: str) -> dict[str, list[Finding]]:
    """What was found on this machine, by check."""
    findings: dict[str, list[Finding]] = {}
    for found in check_host(WorkerSettings.from_env(environ)):
        findings.setdefault(found.check, []).append(found)
    return findings


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    """Scratch with its free bytes beside the limit, the layers that confine a real child, each missing one with what to do, and fonts."""
    found = host_findings(SITELINK_SCRATCH_DIR=str(tmp_path), SITELINK_SCRATCH_LIMIT_BYTES="1")
    (scratch,) = found["scratch"]
    assert (scratch.grade, list(tmp_path.iterdir())) == (Grade.OK, [])
    assert "bytes free, limit 1; no tile worker uses it now" in scratch.result
    confined, *missing = found["render children"]
    assert confined.result.startswith("confined by ")
    for name in LAYER_ADVICE:
        assert (name in confined.result) != (
            Finding("render children", Grade.NOTE, f"not confined by {name}", LAYER_ADVICE[name]) in missing
        )
    assert [(fonts.grade, fonts.result) for fonts in found["fonts"]] == [(Grade.OK, "12 files of 8 packages")]
    with closing(Scratch(tmp_path, 1)):
        (scratch,) = host_findings(SITELINK_SCRATCH_DIR=str(tmp_path), SITELINK_SCRATCH_LIMIT_BYTES=str(1 << 62))["scratch"]
    assert scratch.grade is Grade.NOTE
    assert scratch.result.endswith("; a tile worker uses it")


def command(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command with these variables only."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.check"],
        env={"PATH": os.environ["PATH"], "SITELINK_DATA_DIR": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize("in_files", [False, True])
def test_no_output_has_a_secret(tmp_path: Path, free_port: int, in_files: bool) -> None:
    """With everything wrong: no server is reached, and settings are wrong. The exit code is that of a wrong setting."""
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "hush-aws-secret",
        "SITELINK_CODEC_KEY": "hush-codec-key",
        "SITELINK_EVENTS_SECRET": "hush",
        "SITELINK_EVENTS_TOKEN": "hush-events-token",
        "SITELINK_JWT_SECRET": f"{HUSH},hush-short",
        "SITELINK_TICKET_SECRET": f"{HUSH}-ticket",
        "SITELINK_LIMITS_STORAGE": f"redis://:hush@127.0.0.1:{free_port}",
        "SITELINK_TOKEN": "hush-token",
        "SITELINK_WEBHOOK_SECRET": "hush-webhook",
        "TEMPORAL_API_KEY": "hush-api-key",
    }
    for name in list(secrets) if in_files else []:
        (tmp_path / name).write_text(secrets.pop(name))
        secrets[f"{name}_FILE"] = str(tmp_path / name)
    ended = command(
        tmp_path,
        **secrets,
        TEMPORAL_ADDRESS=f"127.0.0.1:{free_port}",
        SITELINK_BUCKET="s3://plans",
        SITELINK_S3_ENDPOINT=f"http://127.0.0.1:{free_port}",
        AWS_ACCESS_KEY_ID="id",
        SITELINK_ACCESS="jwt",
        SITELINK_BUKET="hush-in-a-typo",
    )
    assert ended.returncode == 2, ended.stderr
    assert "WRONG SETTING" in ended.stdout
    assert "is SITELINK_BUCKET meant?" in ended.stdout
    assert "hush" not in ended.stdout + ended.stderr


def test_what_is_not_reached_is_wrong_and_no_wrong_setting(tmp_path: Path, free_port: int) -> None:
    """The exit code is 1. The table names the server and what to do."""
    ended = command(tmp_path, TEMPORAL_ADDRESS=f"127.0.0.1:{free_port}")
    assert ended.returncode == 1, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("Temporal")]
    assert f"WRONG: 127.0.0.1:{free_port} is not reached: Connection refused" in line
    assert line.endswith("start the server, or correct TEMPORAL_ADDRESS and the TEMPORAL_TLS_ settings")
