"""The clients of these tests notice a version that falls, and a counter that falls without a reconcile."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from activities.bucket.keys import UploadRef
from tests.chaos.guarantees import Watch, wait_for
from tests.chaos.soak.customers import VERSION_NEVER_FELL, Book, Customer
from tests.chaos.soak.site import Site
from tests.servers.recorder import Answer, Exchange, serving

REF = UploadRef("acme", "tower", "a1", "u1")
EARLY, LATE = "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z"


def state(version: int, completed: int, reconciled_at: str | None = None, warning: str | None = None) -> dict[str, Any]:
    """A state as the API tells it, as far as these clients read it."""
    return {
        "version": version,
        "completedPages": completed,
        "reconciled": reconciled_at is not None,
        "reconciledAt": reconciled_at,
        "warning": warning,
        "sheets": [],
    }


@contextmanager
def api(*states: dict[str, Any]) -> Iterator[SimpleNamespace]:
    """Something with an API that answers these states one after the other, or streams all of them."""
    left = list(states)

    def rule(exchange: Exchange) -> None:
        exchange.read()
        if exchange.path.endswith("/events"):
            events = [f"event: {'end' if told is states[-1] else 'progress'}\ndata: {json.dumps(told)}\n\n" for told in states]
            exchange.say(Answer(200, "".join(events).encode(), (("Content-Type", "text/event-stream"),)))
        else:
            exchange.say(Answer(200, json.dumps(left.pop(0)).encode(), (("Content-Type", "application/json"),)))

    with serving(rule) as url:
        yield SimpleNamespace(api_url=url)


FALLS = {
    "the version falls": (state(2, 1), state(1, 1)),
    "the counter falls": (state(1, 2), state(2, 1)),
    "the counter falls after a reconcile": (state(1, 2, EARLY), state(2, 1, EARLY)),
}
FINE = (state(1, 2, EARLY), state(2, 1, LATE))
"""A second reconcile has found that a sheet is missing."""


@pytest.mark.parametrize("states", FALLS.values(), ids=FALLS)
def test_fall_is_found(states: tuple[dict[str, Any], ...]) -> None:
    """By a client that watches, and by one that asks."""
    with api(*states) as stack, Watch(stack, REF) as watch, pytest.raises(AssertionError, match="after"):
        watch.end()
    with api(*states) as stack, pytest.raises(AssertionError, match="version"):
        wait_for(stack, "/upload", lambda _: False)


def test_fall_by_a_reconcile_is_right() -> None:
    """A reconcile that finds a sheet missing lowers the counter."""
    with api(*FINE) as stack, Watch(stack, REF) as watch:
        assert watch.end() == FINE[-1]
    assert watch.compared == 1
    with api(*FINE) as stack:
        assert wait_for(stack, "/upload", lambda status: status["version"] == 2) == FINE[-1]


@pytest.mark.parametrize(("warning", "found"), [(None, True), ("Temporal does not answer", False)])
def test_customer_of_a_soak_finds_a_version_that_falls(warning: str | None, found: bool) -> None:
    """Unless the answer warns that it may be old; also from one question to the next."""
    book = Book()
    with api(state(2, 1), state(1, 1, warning=warning), state(2, 1)) as fleet:
        customer = Customer(cast("Site", SimpleNamespace(fleet=fleet)), book, [], 0)
        for _ in range(3):
            customer.until(REF, lambda _: True)
    assert [finding.startswith(VERSION_NEVER_FELL) for finding in book.findings] == [True] * found
    assert book.compared == 1 + found
