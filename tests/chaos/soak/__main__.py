"""``python -m tests.chaos.soak --minutes N --seed S``: a whole site at work while one fault after the other strikes it.

Two API processes, two workflow workers and three tile workers, each tile worker with a scratch of its own, run on Temporal's development
server and on an S3 server behind a proxy that can fail. Every document is sent once while nothing fails. Then customers send documents, and
watch, cancel, delete, repair and retry them, while the faults of the plan happen: the seed decides about their order. At the end every
guarantee is checked, and a report tells all counts. The exit code is 1 if anything was found. With CI set, a fault that cannot be made on
this machine is a finding, too.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.chaos.soak.customers import Book, Customer
from tests.chaos.soak.documents import documents
from tests.chaos.soak.invariants import IDLE_S, Judge, undisturbed, vitals
from tests.chaos.soak.plan import make_plan
from tests.chaos.soak.report import report
from tests.chaos.soak.site import running_site, say
from tests.chaos.soak.trouble import Trouble

CUSTOMERS = 4


def soak(directory: Path, minutes: float, seed: int, corpus: Path | None = None) -> tuple[list[str], str]:
    """Runs a soak.

    Args:
        directory: An empty one, for everything that the site keeps.
        minutes: How long there are faults.
        seed: Decides about faults, documents and customers.
        corpus: A directory of PDFs that are sent, too.

    Returns:
        What was found, and the report.
    """
    begun = time.monotonic()
    plan, sent_documents, book = make_plan(seed, 60 * minutes), documents(seed, corpus), Book()
    with running_site(directory) as site:
        say(f"sends {len(sent_documents)} documents while nothing fails")
        expected = undisturbed(site, sent_documents)
        time.sleep(IDLE_S)
        before = vitals(site)
        trouble, stopped = Trouble(site, plan), threading.Event()
        customers = [Customer(site, book, sent_documents, CUSTOMERS * seed + number) for number in range(CUSTOMERS)]
        threads = [threading.Thread(target=customer.run, args=(stopped,), daemon=True) for customer in customers]
        judge = Judge(site, book, expected, before)
        with trouble.supervision():
            say(f"{len(plan)} faults in {minutes:g} minutes")
            for thread in threads:
                thread.start()
            trouble.run()
            stopped.set()
            say("the faults are over; the customers finish")
            for thread in threads:
                thread.join()
            judge.judge()
        judge.judge_end()
    book.findings += trouble.crashes
    book.findings += [f"a fault could not be made: {error}" for error in trouble.errors]
    book.findings += [f"a fault struck no request: {kind}" for kind, struck in trouble.struck.items() if not struck]
    if os.environ.get("CI"):
        book.findings += [f"a fault cannot be made on this machine: {name}" for name in trouble.left_out]
    return book.findings, report(seed, minutes, time.monotonic() - begun, plan, trouble, book, judge)


def main() -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="how long there are faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="a directory of PDFs that are sent, too")
    parser.add_argument("--keep", type=Path, help="an empty directory for bucket, logs and all else, which stays")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started and mounted is stopped and unmounted
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        findings, text = soak(arguments.keep, arguments.minutes, arguments.seed, arguments.corpus)
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            findings, text = soak(Path(directory), arguments.minutes, arguments.seed, arguments.corpus)
    print(text)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
