"""The customers of a soak: they send documents and watch them, cancel, delete, repair and retry, and come and go as people do."""

import random
import socket
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout
from tests.chaos.guarantees import PLAN, Watch, address, path_of
from tests.chaos.soak.documents import Document, choose
from tests.chaos.soak.site import EVENTS_SECRET, Site
from tests.servers.queue import push_events

PATIENCE_S = 900.0
"""How long a customer waits for anything: a hang is a finding, and slowness is not."""
REQUEST_LIMIT_S = 90.0
MOST_REPAIRS = 20
"""So often a document may lose its password or its hosts again. One that needs more repairs can never be mended, which is a finding."""
ASK_AGAIN_S = 60.0
"""A request that was accepted, but had no effect for so long, may have been lost with Temporal's file: it is sent again."""

VERSION_NEVER_FELL = "the version never fell"

COME_BACK = (429, 503)
"""Answers that ask a client to come back."""


@dataclass
class Sent:
    """One upload of a customer.

    Args:
        ref: The upload.
        document: What was sent.
        story: What the customer did with it.
        may_be_cancelled: Whether the customer has cancelled it, and left it so.
        is_deleted: Whether the customer has deleted it.
    """

    ref: UploadRef
    document: Document
    story: str
    may_be_cancelled: bool = False
    is_deleted: bool = False


@dataclass
class Book:
    """What all customers have done and seen. Every method may be called from any thread."""

    sent: list[Sent] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Documents that were refused before they became uploads, by document and error."""
    findings: list[str] = field(default_factory=list)
    """What must not happen, each a sentence."""
    clients: Counter[str] = field(default_factory=Counter)
    """What clients have done, by kind."""
    versions: dict[UploadRef, int] = field(default_factory=dict)
    """The last version of each upload that a client has seen."""
    compared: int = 0
    """How many versions were compared with an earlier one."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, finding: str) -> None:
        """Notes a finding."""
        with self.lock:
            self.findings.append(finding)

    def count(self, what: str, times: int = 1) -> None:
        """Counts what a client has done."""
        with self.lock:
            self.clients[what] += times

    def see(self, ref: UploadRef, state: dict[str, Any]) -> None:
        """Compares the version of an upload with the last one that was seen: it never falls, whichever API process answers.

        While Temporal is away, each API process answers the last state that it knows, with a warning: such answers are not compared.
        """
        if state["warning"] is not None:
            return
        with self.lock:
            if (last := self.versions.get(ref)) is not None:
                self.compared += 1
                if state["version"] < last:
                    self.findings.append(f"{VERSION_NEVER_FELL}: {ref}: {state['version']} after {last}: {state}")
            self.versions[ref] = state["version"]

    def watched(self, watch: Watch) -> None:
        """Counts the comparisons that a stream has made."""
        with self.lock:
            self.compared += watch.compared


class Customer:
    """Does one story after the other.

    Args:
        site: Its API is used.
        book: Gets everything.
        documents: What may be sent.
        seed: Decides which stories come in which order.
    """

    def __init__(self, site: Site, book: Book, documents: list[Document], seed: int) -> None:
        self._site, self._book, self._documents = site, book, documents
        self._fleet = site.fleet
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._stories: list[tuple[str, Callable[[str], None]]] = [
            ("watched to the end", self._watch),
            ("left alone", self._leave),
            ("watched by clients that come and go", self._come_and_go),
            ("beside a client that reads nothing", self._beside_slow_reader),
            ("hostile", self._hostile),
            ("huge", self._huge),
            ("locked", self._locked),
            ("locked, password comes later", self._unlock_later),
            ("cancelled", self._cancel),
            ("cancelled, then resumed", self._resume),
            ("deleted while it runs", self._delete),
            ("deleted after its end", self._delete_at_end),
            ("damaged, then reconciled", self._reconcile),
            ("retried", self._retry),
            ("told by duplicate and early events", self._events),
            ("sender hangs up", self._hang_up),
        ]

    def run(self, stopped: threading.Event) -> None:
        """Does stories until the event is set: every story once, in any order, before any comes again."""
        order: list[tuple[str, Callable[[str], None]]] = []
        while not stopped.is_set():
            order = order or self._rng.sample(self._stories, len(self._stories))
            name, tell = order.pop()
            try:
                tell(name)
            except Exception as error:  # noqa: BLE001 - reported
                where = traceback.extract_tb(error.__traceback__)
                lines = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(where[-4:]))
                self._book.find(f"{name}: {type(error).__name__}: {str(error)[:600]} ({lines})")

    # ------------------------------------------------------------------ what a client can do

    def _ask(self, method: str, target: Callable[[], str], good: tuple[int, ...], **more: Any) -> httpx2.Response:
        """Sends a request until the answer is no invitation to come back.

        Raises:
            AssertionError: The answer is another one, or there is none.
        """
        deadline, said = time.monotonic() + PATIENCE_S, "no answer"
        while time.monotonic() < deadline:
            url = target()
            try:
                answer = httpx2.request(method, url, timeout=REQUEST_LIMIT_S, trust_env=False, **more)
            except httpx2.TransportError as error:
                said = repr(error)
            else:
                if answer.status_code not in COME_BACK:
                    assert answer.status_code in good, f"{method} {url}: {answer.status_code} {answer.text[:300]}"
                    return answer
                said = f"{answer.status_code} {answer.text[:300]}"
            time.sleep(0.5)
        raise AssertionError(f"{method} {target()}: nothing but {said} for {PATIENCE_S:g} s")

    def send(self, document: Document, story: str, password: str | None = None) -> Sent | None:
        """Sends a document until it is accepted or refused, always with the same Idempotency-Key; None if it is refused."""
        password = document.password if password is None else password
        headers = {"Content-Type": "application/pdf", "Idempotency-Key": str(uuid.uuid4())}
        if password:
            headers["Document-Password"] = quote(password)
        answer = self._ask(
            "POST",
            lambda: self._fleet.api_url + uploads_path(document),
            (202, *range(400, 428)),
            params={"filename": f"{document.name}.pdf", **document.options},
            content=document.body,
            headers=headers,
        )
        if answer.status_code != 202:
            with self._book.lock:
                self._book.refused[f"{document.name}: {answer.status_code} {answer.json()['type']}"] += 1
            return None
        sent = Sent(UploadRef.parse(answer.json()["ref"]), document, story)
        with self._book.lock:
            self._book.sent.append(sent)
        return sent

    def _accepted(self, document: Document, story: str, password: str | None = None) -> Sent:
        sent = self.send(document, story, password)
        assert sent is not None, f"{document.name} was refused"
        return sent

    def _status(self, ref: UploadRef) -> dict[str, Any]:
        return dict(self._ask("GET", lambda: address(self._fleet, ref), (200,)).json())

    def until(
        self, ref: UploadRef, condition: Callable[[dict[str, Any]], bool], again: Callable[[], object] | None = None
    ) -> dict[str, Any]:
        """Asks for the status until the condition holds; does ``again`` once a minute meanwhile."""
        deadline, next_again = time.monotonic() + PATIENCE_S, time.monotonic() + ASK_AGAIN_S
        while True:
            status = self._status(ref)
            self._book.see(ref, status)
            if condition(status):
                return status
            if again is not None and time.monotonic() > next_again:
                again()
                next_again = time.monotonic() + ASK_AGAIN_S
            assert time.monotonic() < deadline, f"{ref} does not get on: {status}"
            time.sleep(0.3)

    def _watched(self, ref: UploadRef, **known: Any) -> dict[str, Any]:
        with Watch(self._fleet, ref, **known) as watch:
            end = watch.until(lambda watch: watch.has_ended, PATIENCE_S)
        self._book.watched(watch)
        self._book.see(ref, end)
        self._book.count("streams watched to their end")
        return end

    def _post(self, ref: UploadRef, action: str, good: tuple[int, ...] = (202,), **more: Any) -> int:
        return self._ask("POST", lambda: f"{address(self._fleet, ref)}/{action}", good, **more).status_code

    # ------------------------------------------------------------------ stories

    def _any(self, kind: str = "") -> Document:
        kinds = ["good", "good", "hostile", *(["corpus"] if any(document.kind == "corpus" for document in self._documents) else [])]
        return choose(self._rng, self._documents, kind or self._rng.choice(kinds))

    def _watch(self, story: str) -> None:
        if sent := self.send(self._any(), story):
            self._watched(sent.ref)

    def _leave(self, story: str) -> None:
        self.send(self._any(), story)

    def _come_and_go(self, story: str) -> None:
        sent = self._accepted(self._any("good"), story)
        last, completed, reconciled_at = None, 0, None
        for _ in range(self._rng.randint(2, 5)):
            with Watch(self._fleet, sent.ref, last, completed, reconciled_at) as watch:
                with suppress(AssertionError):  # nothing has happened meanwhile
                    watch.until(lambda watch: len(watch.states) > 1 or watch.has_ended, self._rng.uniform(0.5, 4))
                assert not watch.wrong, watch.wrong
                last, completed, reconciled_at = watch.last_event_id or None, watch.completed, watch.reconciled_at
                self._book.watched(watch)
                self._book.count("clients that left and came back")
                if watch.has_ended:
                    return
        self._watched(sent.ref, last_event_id=last, completed=completed, reconciled_at=reconciled_at)

    def _beside_slow_reader(self, story: str) -> None:
        sent = self._accepted(self._any("good"), story)
        sockets = []
        for url in self._fleet.api_urls:
            where = urlsplit(url)
            with suppress(OSError):
                connection = socket.create_connection((where.hostname, where.port), timeout=5)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                connection.sendall(f"GET {path_of(sent.ref)}/events HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
                sockets.append(connection)
        try:
            self._watched(sent.ref)
        finally:
            for connection in sockets:
                connection.close()
        self._book.count("clients that read nothing", len(sockets))

    def _hostile(self, story: str) -> None:
        if sent := self.send(self._any("hostile"), story):
            self._watched(sent.ref)

    def _huge(self, story: str) -> None:
        sent = self._accepted(self._any("huge"), story)
        if self._rng.random() < 0.5:
            status = self.until(sent.ref, lambda status: status["totalPages"] > 0)
            number = self._rng.randint(1, status["totalPages"])
            self._post(sent.ref, f"sheets/{number}/prioritize", (202, 409))
        self._watched(sent.ref)

    def _locked(self, story: str) -> None:
        sent = self._accepted(self._any("locked"), story)
        self._open(sent, self._watched(sent.ref))

    def _unlock_later(self, story: str) -> None:
        sent = self._accepted(self._any("locked"), story, self._rng.choice(("", "a wrong one")))
        end = self._watched(sent.ref)
        assert (end["status"], end["reason"]) == ("failed", "PasswordRequired"), end
        self._open(sent, end)

    def _open(self, sent: Sent, end: dict[str, Any]) -> None:
        if end["status"] != "complete":
            self.repair(sent, end)

    def repair(self, sent: Sent, end: dict[str, Any]) -> dict[str, Any]:
        """Asks for a reconcile and for retries until nothing is wrong that a person can mend; returns the final state.

        These are the password, which is lost with Temporal's file, and a sheet that has lost its host too often.
        """
        headers = {"Document-Password": quote(sent.document.password)} if sent.document.password else {}
        repairs = 0
        while failed := _mendable(end):
            repairs += 1
            assert repairs <= MOST_REPAIRS, f"{sent.ref} fails again after {MOST_REPAIRS} repairs: {end}"
            self._book.count("repairs of a lost password or host")
            version = end["version"]

            def ask(numbers: list[int] = failed) -> None:
                for number in numbers:
                    self._post(sent.ref, f"sheets/{number}/retry" if number else "reconcile", (202, 409), headers=headers)

            ask()
            end = self.until(
                sent.ref,
                lambda status, version=version: status["completedAt"] is not None and status["version"] > version,  # type: ignore[misc]
                ask,
            )
        return end

    def _begun(self, story: str) -> Sent:
        """A document of which some sheets may be ready."""
        sent = self._accepted(self._any(self._rng.choice(("good", "good", "huge"))), story)
        share = self._rng.choice((0, 0, 0.2, 0.5))
        self.until(sent.ref, lambda status: status["completedPages"] >= share * max(1, status["totalPages"]) or bool(status["completedAt"]))
        return sent

    def _cancel(self, story: str) -> None:
        sent = self._begun(story)
        sent.may_be_cancelled = True
        self._stop(sent)

    def _stop(self, sent: Sent) -> dict[str, Any]:
        def cancel() -> int:
            return self._post(sent.ref, "cancel", (202, 409))

        cancel()
        return self.until(sent.ref, lambda status: status["completedAt"] is not None, cancel)

    def _resume(self, story: str) -> None:
        sent = self._begun(story)
        end = self._stop(sent)
        if end["status"] == "cancelled":
            todo = [sheet["number"] for sheet in end["sheets"] if sheet["status"] != "ready"] or [1]

            def resume() -> None:
                self._post(sent.ref, f"sheets/{todo[0]}/retry", (202, 409))

            resume()
            self.until(sent.ref, lambda status: status["completedAt"] is not None and status["status"] != "cancelled", resume)

    def _delete(self, story: str) -> None:
        self._remove(self._begun(story))

    def _delete_at_end(self, story: str) -> None:
        if sent := self.send(self._any(), story):
            self._watched(sent.ref)
            self._remove(sent)

    def _remove(self, sent: Sent) -> None:
        sent.is_deleted = True
        self._ask("DELETE", lambda: address(self._fleet, sent.ref), (202, 404))
        # Another API process may take two seconds to notice.
        gone, deadline = 0, time.monotonic() + PATIENCE_S
        while gone < len(self._fleet.api_urls):
            gone = gone + 1 if self._ask("GET", lambda: address(self._fleet, sent.ref), (200, 404)).status_code == 404 else 0
            assert time.monotonic() < deadline, f"{sent.ref} is deleted, and does not go away"
            time.sleep(0.3)

    def _reconcile(self, story: str) -> None:
        sent = self._accepted(self._any("good"), story)
        end = self._watched(sent.ref)
        if end["status"] == "complete":
            number = self._rng.randint(1, end["totalPages"])
            victims = [info.key for info in self._site.bucket.objects(sent.ref.sheet_prefix(number))]
            marker = sent.document.options.get("layout", Layout.EXPLODED) == Layout.PACKED
            lost = [key for key in victims if key.endswith(".pmtiles")] if marker else self._rng.sample(victims, 2)
            self._site.bucket.delete(lost)
            self._post(sent.ref, "reconcile")
            version = end["version"]
            self.until(
                sent.ref,
                lambda status: status["completedAt"] is not None and status["reconciled"] and status["version"] > version,
                lambda: self._post(sent.ref, "reconcile"),
            )

    def _retry(self, story: str) -> None:
        document = next(document for document in self._documents if document.name == "bad_pages_among_good")
        sent = self._accepted(document, story)
        end = self._watched(sent.ref)
        failed = [sheet["number"] for sheet in end["sheets"] if sheet["status"] == "failed"]
        number, version = self._rng.choice(failed), end["version"]

        def retry() -> int:
            return self._post(sent.ref, f"sheets/{number}/retry", (202, 409))

        retry()
        self.until(sent.ref, lambda status: status["completedAt"] is not None and status["version"] > version, retry)

    def _events(self, story: str) -> None:
        sent = self._accepted(self._any("good"), story)
        for _ in range(4):
            number = self._rng.randint(1, 4)
            self._push([sent.ref.descriptor(number), sent.ref.descriptor(number), sent.ref.archive(number)])
            time.sleep(0.3)
        self._watched(sent.ref)
        self._push([sent.ref.descriptor(1)])

    def _push(self, keys: list[str]) -> None:
        # An event may be lost, as any message that nobody repeats. A clock that is wrong makes its signature too old.
        with suppress(httpx2.TransportError):
            answer = push_events(self._fleet.api_url, EVENTS_SECRET, keys, REQUEST_LIMIT_S)
            assert answer.status_code in (200, 401, 403, *COME_BACK), f"{answer.status_code} {answer.text[:300]}"
            self._book.count("batches of events")

    def _hang_up(self, story: str) -> None:
        document = choose(self._rng, self._documents, "huge")
        where = urlsplit(self._fleet.api_url)
        with suppress(OSError), socket.create_connection((where.hostname, where.port), timeout=5) as connection:
            head = f"POST {uploads_path(document)} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/pdf\r\n"
            connection.sendall(f"{head}Content-Length: {len(document.body)}\r\n\r\n".encode() + document.body[: len(document.body) // 2])
            self._book.count("senders that hung up")


def _mendable(end: dict[str, Any]) -> list[int]:
    """The failed sheets that a retry can make; 0 is the whole document."""
    failed = [*((sheet["number"], sheet["reason"]) for sheet in end["sheets"]), (0, end["reason"] if end["status"] == "failed" else None)]
    return [number for number, reason in failed if reason in ("PasswordRequired", "WorkerLost")]


def uploads_path(document: Document) -> str:
    """Where a document is sent."""
    return PLAN.format(plan=document.plan)
