"""Shows the reports of verify and reconcile as lines for a person."""

from collections.abc import Iterator, Mapping
from typing import Any

from api.cli.errors import join_by_colon
from api.cli.words import sheet_count


def sheet_report(report: Mapping[str, Any]) -> Iterator[str]:
    """The findings about a sheet: one line, and a further line for each kind of fault."""
    name, status = f"sheet-{report['number']}", report["status"]
    wrong = list(_findings(report))
    if status == "ready":
        yield f"{name}  {report['found']}/{report['expected']} tiles  {'ok' if report['verified'] else 'wrong'}"
    else:
        left = f"; {report['found']} tiles are there" if report["found"] else ""
        yield f"{name}  {join_by_colon(status, report['reason'])}{left}"
    yield from wrong


REPAIRS = {"tile": "to be tiled again", "count": "whole, to be counted", "prune": "to be cleared of objects that belong to no sheet"}


def repair_report(report: Mapping[str, Any]) -> Iterator[str]:
    """The repair of a sheet that a reconcile would make, and the reasons; no line for a sheet that needs no repair."""
    if repair := REPAIRS.get(report["repair"] or ""):
        yield f"sheet-{report['number']}  {repair}"
        yield from _findings(report)


def upload_report(report: Mapping[str, Any]) -> Iterator[str]:
    """The findings about an upload."""
    yield from _findings({**report, "foreignCount": len(report["foreign"])})
    verified, wrong, sheets = report["verifiedSheets"], report["wrongSheets"], sheet_count(report["totalSheets"])
    tiles = f"{report['found']}/{report['expected']} tiles"
    if not report["verified"]:
        whole = "the upload as a whole" if report["problems"] or report["foreign"] else ""
        blamed = " and ".join(part for part in (f"{wrong:,} of {sheets}" if wrong else "", whole) if part)
        yield f"wrong: {blamed}. Verified: {verified:,} of {sheets}, {tiles} found"
    elif verified:
        proof = "every tile read back" if report["deep"] else "every digest" if report["proof"] == "digest" else "names and sizes"
        others = "" if verified == report["totalSheets"] else "; the others are not ready"
        yield f"verified: {verified:,} of {sheets}, {tiles}, {proof}{others}"
    else:
        yield f"nothing to verify: none of {sheets} is ready" if report["totalSheets"] else "nothing to verify: there is no sheet yet"
    if report["proof"] == "names":
        yield "The bucket's ETags are not MD5s, so the bytes of the tiles are not proved; --deep reads and decodes every tile."


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("missing", "foreign", "empty"):
        names, count = report.get(kind, ()), report[f"{kind}Count"]
        if names:
            more = f" and {count - len(names):,} more" if count > len(names) else ""
            yield f"  {kind}: {', '.join(names)}{more}"
    for problem in report["problems"]:
        yield f"  {problem}"
