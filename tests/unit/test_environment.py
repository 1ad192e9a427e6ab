"""How a setting is read from the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from activities.environment import SECRETS, SETTINGS, amount, choice, secret, unknown_settings, whole_number
from workflows.connection import connection_settings

ROOT = Path(__file__).parents[2]


def test_an_empty_variable_is_not_set() -> None:
    """An empty variable has its default value."""
    environ = {"NUMBER": "", "AMOUNT": "", "CHOICE": ""}
    assert (whole_number(environ, "NUMBER", 7), whole_number({}, "NUMBER", 7)) == (7, 7)
    assert (amount(environ, "AMOUNT", 0.5), amount({}, "AMOUNT", 0.5)) == (0.5, 0.5)
    assert (choice(environ, "CHOICE", ("text", "json")), choice({}, "CHOICE", ("text", "json"))) == ("text", "text")


def test_a_value_within_its_range_is_taken() -> None:
    """A range includes both its ends."""
    assert [whole_number({"N": text}, "N", 1, low=0, high=9) for text in ("0", "5", "9")] == [0, 5, 9]
    assert whole_number({"N": "8589934592"}, "N", 1) == 8 << 30
    assert [amount({"A": text}, "A", 1) for text in ("0", ".5", "4.50", "1e3")] == [0, 0.5, 4.5, 1000]
    assert choice({"C": "json"}, "C", ("text", "json")) == "json"


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "10", "9" * 5000])
def test_a_number_that_cannot_be_used_is_refused(text: str) -> None:
    """The message has the variable, its value and the range."""
    with pytest.raises(ValueError, match=f"^N is '{text}'; a whole number from 0 to 9 is wanted$"):
        whole_number({"N": text}, "N", 1, low=0, high=9)


@pytest.mark.parametrize("text", [" 8", "8\n", "+8", "-0", "0_8", "\N{ARABIC-INDIC DIGIT EIGHT}"])
def test_a_number_of_digits_only_has_no_other_spelling(text: str) -> None:
    """The settings of the API are written in digits; those of the workers in any way that ``int`` reads."""
    assert whole_number({"N": text}, "N", 1, low=0, high=9) == int(text)
    with pytest.raises(ValueError, match=r"; a whole number from 0 to 9 is wanted$"):
        whole_number({"N": text}, "N", 1, low=0, high=9, digits_only=True)


def test_a_number_without_an_upper_limit_has_a_lower_one() -> None:
    """The lower limit is 1 by default."""
    with pytest.raises(ValueError, match=r"^N is '0'; a whole number of at least 1 is wanted$"):
        whole_number({"N": "0"}, "N", 5)


@pytest.mark.parametrize("text", ["free", "-1", "nan", "inf"])
def test_an_amount_that_cannot_be_used_is_refused(text: str) -> None:
    """Infinity and not-a-number are no amounts."""
    with pytest.raises(ValueError, match=f"^A is '{text}'; a number of at least 0 is wanted$"):
        amount({"A": text}, "A", 1)


def test_a_choice_that_does_not_exist_is_refused() -> None:
    """The message lists the choices."""
    with pytest.raises(ValueError, match=r"^C is 'xml'; text or json is wanted$"):
        choice({"C": "xml"}, "C", ("text", "json"))


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_may_be_in_a_file(name: str, tmp_path: Path) -> None:
    """The newline at its end is not part of it, spaces are."""
    file = tmp_path / "secret"
    for text in ("hush", "hush\n", "hush\r\n"):
        file.write_bytes(text.encode())
        assert secret({f"{name}_FILE": str(file)}, name) == "hush"
    file.write_text(" hush \n")
    assert secret({name: "", f"{name}_FILE": str(file)}, name) == " hush "
    assert secret({name: "hush", f"{name}_FILE": ""}, name) == "hush"
    assert secret({}, name) == ""


def test_a_secret_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file that is missing, empty, no text or a folder, and both at once: the message names the variable, and shows no secret."""
    empty, binary, good = tmp_path / "empty", tmp_path / "binary", tmp_path / "good"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe hush")
    good.write_text("hush")
    wrong = {
        tmp_path / "absent": "No such file or directory",
        empty: "this file is empty",
        binary: "this file is not text",
        tmp_path: "Is a directory",
    }
    for path, words in wrong.items():
        with pytest.raises(ValueError, match=f"^S_FILE is '{path}': {words}$"):
            secret({"S_FILE": str(path)}, "S")
    with pytest.raises(ValueError, match=r"^S and S_FILE are both set; only one of them is wanted$"):
        secret({"S": "hush", "S_FILE": str(good)}, "S")


def test_a_secret_that_others_alone_may_read_is_refused(tmp_path: Path) -> None:
    """The system's words say why; the test reads as a user who is not root."""
    file = tmp_path / "secret"
    file.write_text("hush")
    file.chmod(0)
    code = f"""
import os
from activities.environment import secret
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print(secret({{"S_FILE": {str(file)!r}}}, "S"))
except ValueError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said == f"S_FILE is {str(file)!r}: Permission denied\n"


def test_the_api_key_of_temporal_may_be_in_a_file(tmp_path: Path) -> None:
    """As every other secret. With a key, Temporal's library uses TLS."""
    file = tmp_path / "key"
    file.write_text("hush\n")
    settings = connection_settings({"TEMPORAL_API_KEY_FILE": str(file), "TEMPORAL_ADDRESS": "temporal.example.com:7233"})
    assert (settings["api_key"], settings["target_host"], settings["tls"]) == ("hush", "temporal.example.com:7233", True)
    with pytest.raises(ValueError, match=r"^TEMPORAL_API_KEY and TEMPORAL_API_KEY_FILE are both set"):
        connection_settings({"TEMPORAL_API_KEY_FILE": str(file), "TEMPORAL_API_KEY": "x"})


def test_a_wrong_file_of_temporal_shows_no_line_of_it(tmp_path: Path) -> None:
    """The library's words show the line that it cannot read, which may be the one with the key."""
    file = tmp_path / "temporal.toml"
    file.write_text('[profile.default]\napi_key "hush"\n')
    with pytest.raises(ValueError, match=r"^the settings of Temporal cannot be used: .* line 2") as refused:
        connection_settings({"TEMPORAL_CONFIG_FILE": str(file)})
    assert "hush" not in str(refused.value)


def test_an_unknown_setting_is_told_with_the_nearest_name() -> None:
    """A typo is told, also one in lower case, and no value is shown; settings of all processes, and of other programs, are known."""
    environ = dict.fromkeys([*SETTINGS, *(f"{name}_FILE" for name in SECRETS), "AWS_REGION", "TEMPORAL_ADDRES", "SITE", "PATH"], "hush")
    assert unknown_settings(environ) == []
    typos = {
        "SITELINK_BUKET": "hush",
        "SITELINK_SCRATCH_LIMIT": "1",
        "sitelink_port": "1",
        "SITELINK_BUCKET_FILE": "",
        "SITELINK_XYZZY": "1",
    }
    assert unknown_settings({**environ, **typos}) == [
        "SITELINK_BUCKET_FILE (is SITELINK_BUCKET meant?)",
        "SITELINK_BUKET (is SITELINK_BUCKET meant?)",
        "SITELINK_SCRATCH_LIMIT (is SITELINK_SCRATCH_LIMIT_BYTES meant?)",
        "SITELINK_XYZZY",
        "sitelink_port (is SITELINK_PORT meant?)",
    ]


ROLES = [("api",), ("api", "events"), ("worker", "workflow"), ("worker", "tile"), ("worker", "webhook")]


@pytest.mark.parametrize("role", ROLES, ids=" ".join)
def test_every_role_tells_unknown_settings_at_its_start(role: tuple[str, ...], tmp_path: Path) -> None:
    """In one line. A wrong setting ends the process then."""
    environ = {"SITELINK_BUKET": "hush", "SITELINK_PROT": "hush", "SITELINK_BUCKET": "nowhere", "SITELINK_DATA_DIR": str(tmp_path)}
    events = {"SITELINK_EVENTS_ACCOUNT": "a" * 32, "SITELINK_EVENTS_QUEUE": "b" * 32, "SITELINK_EVENTS_TOKEN": "t", "SITELINK_PORT": "x"}
    wrong = {"SITELINK_RENDER_SLOTS": "x", "SITELINK_CODEC_KEY": "x"}
    ended = subprocess.run(
        [sys.executable, "-m", *role],
        env={**environ, **events, **wrong},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    told = [line for line in ended.stderr.splitlines() if "unknown settings" in line]
    assert ended.returncode == 2, ended.stderr
    assert len(told) == 1
    assert told[0].endswith(
        ' WARNING sitelink: unknown settings are ignored unknown="SITELINK_BUKET (is SITELINK_BUCKET meant?), '
        'SITELINK_PROT (is SITELINK_PORT meant?)"'
    )
    assert "hush" not in ended.stderr


def test_the_embedded_stack_tells_unknown_settings(tmp_path: Path) -> None:
    """``make run`` says it on the terminal, because the log lines of its processes are in files."""
    environ = {"SITELINK_BUKET": "hush", "SITELINK_PORT": "x", "SITELINK_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "deploy.local"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert ended.returncode == 2
    assert "unknown setting: SITELINK_BUKET (is SITELINK_BUCKET meant?)" in ended.stderr
    assert "hush" not in ended.stdout + ended.stderr
