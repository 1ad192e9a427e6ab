"""What the README tells a person to type can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from api.cli.__main__ import build_parser

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("uv run sitelink")])
def test_command_of_the_readme_is_understood(command: str) -> None:
    """The command line takes its arguments."""
    words = [word.replace("UPLOAD", "0198c0de-0000-7000-8000-000000000001") for word in shlex.split(command)]
    assert build_parser().parse_args(words[3:]).command == words[3]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_target_of_the_readme_exists(command: str) -> None:
    """Make knows it."""
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_names_every_command() -> None:
    """No command is left for a person to find."""
    (commands,) = [action.choices for action in build_parser()._actions if action.dest == "command"]
    assert commands is not None
    assert {command.split()[3] for command in COMMANDS if command.startswith("uv run sitelink")} == set(commands)
