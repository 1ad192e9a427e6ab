"""The report of a soak, as plain text."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tests.chaos.soak.customers import Book
from tests.chaos.soak.invariants import Judge
from tests.chaos.soak.plan import Step
from tests.chaos.soak.trouble import Trouble


def report(seed: int, minutes: float, seconds: float, plan: list[Step], trouble: Trouble, book: Book, judge: Judge) -> str:
    """Everything that was done, counted."""
    faults: Counter[str] = Counter()
    for name, times in trouble.done.items():
        kind, _, target = name.partition(": ")
        faults[f"{kind}: {target.partition('-')[0]}"] += times
    stories = Counter(each.story for each in book.sent)
    lines = [
        f"Soak of {minutes:g} minutes with seed {seed}: {len(book.sent):,} uploads, {len(plan):,} faults, {seconds:,.0f} s in all.",
        *_table("uploads by kind and outcome", {f"{kind}: {outcome}": times for (kind, outcome), times in judge.outcomes.items()}),
        *_table("refused at once", book.refused),
        *_table("stories of customers", stories),
        *_table("clients", book.clients),
        *_table("faults", faults),
        *_table("requests to the bucket that were struck", trouble.struck),
        *_table("multipart uploads among the faults", judge.multiparts),
        *_table("faults that cannot be made on this machine", trouble.left_out),
        *_table("invariants, and how often each was checked", judge.checked),
        "",
    ]
    if book.findings:
        lines += [f"FOUND {len(book.findings):,}:", *(f"- {finding}" for finding in book.findings)]
    else:
        lines.append("Every invariant holds.")
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, int]) -> Iterable[str]:
    if rows:
        yield from ("", title)
        width = max(map(len, rows))
        for name, times in sorted(rows.items()):
            yield f"  {name:<{width}}  {times:>6,}"
