"""What a check found, and the table of it all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from textwrap import wrap

CHECK_WIDTH, RESULT_WIDTH = 26, 76


class Grade(StrEnum):
    """How a check went. Only ``WRONG`` and ``SETTING`` fail the program."""

    OK = "ok"
    NOTE = "note"
    """It works, with less than there could be."""
    WRONG = "WRONG"
    """What the settings name cannot be used."""
    SETTING = "WRONG SETTING"
    """A process that needs the setting does not start."""


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Args:
        check: What was looked at.
        grade: How it went.
        result: The facts.
        advice: What to do.
    """

    check: str
    grade: Grade
    result: str = ""
    advice: str = ""


def table(findings: Sequence[Finding], secrets: Iterable[str]) -> str:
    """The table as text: ``check | result | what to do``, and a last line with the counts.

    Args:
        findings: The lines.
        secrets: Texts that are not shown, whoever has put them into a line.
    """
    rows = [("check", "result", "what to do"), ("-" * CHECK_WIDTH, "-" * RESULT_WIDTH, "-" * len("what to do"))]
    for found in findings:
        result = _shown(f"{found.grade}: {found.result}" if found.result else found.grade, secrets)
        checks, results = wrap(_shown(found.check, secrets), CHECK_WIDTH), wrap(result, RESULT_WIDTH, break_long_words=False)
        rows += zip_longest(checks, results, [_shown(found.advice, secrets)], fillvalue="")  # the advice may be a command: it stays whole
    lines = [f"{check:{CHECK_WIDTH}} | {result:{RESULT_WIDTH}} | {advice}".rstrip(" |") for check, result, advice in rows]
    wrong = sum(found.grade in (Grade.WRONG, Grade.SETTING) for found in findings)
    notes = sum(found.grade is Grade.NOTE for found in findings)
    return "\n".join([*lines, f"{len(findings)} checks: {wrong} wrong, {notes} notes"]) + "\n"


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if a setting is wrong, else 1 if anything is wrong, else 0."""
    grades = {found.grade for found in findings}
    return 2 if Grade.SETTING in grades else 1 if Grade.WRONG in grades else 0


def _shown(text: str, secrets: Iterable[str]) -> str:
    for hidden in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(hidden, "…")
    return " ".join(text.split())
