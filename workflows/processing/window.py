"""The bookkeeping of a run: which sheets are to do, in flight or being judged, and which requests of signals wait.

Plain Python, no Temporal, no clock of its own.
"""

from collections import deque
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, replace
from typing import Self

from activities.bucket.records import ReopenedRecord


class Window:
    """The sheets that are to do, in flight, or being judged.

    A sheet in flight is neither to do nor being judged. A sheet that is being judged may also be to do: it begins after the judgement.

    Args:
        size: How many sheets may be in flight at once.
        prioritized: Sheets that someone asked to have tiled first.
    """

    def __init__(self, size: int, prioritized: Iterable[int] = ()) -> None:
        self.size = size
        self.landed = 0
        """How many sheets have left the window."""
        self._to_do: deque[int] = deque()
        self._in_flight: set[int] = set()
        self._being_judged: set[int] = set()
        self._prioritized = set(prioritized)

    @property
    def to_do(self) -> Collection[int]:
        """The sheets that have not begun, the next one first."""
        return self._to_do

    @property
    def in_flight(self) -> Set[int]:
        """The sheets that have begun and not landed."""
        return self._in_flight

    @property
    def prioritized_to_do(self) -> tuple[int, ...]:
        """The prioritized sheets that have not begun, ascending."""
        return tuple(sorted(self._prioritized.intersection(self._to_do)))

    def is_prioritized(self, number: int) -> bool:
        """Whether someone asked to have this sheet tiled first."""
        return number in self._prioritized

    def plan(self, numbers: Iterable[int]) -> None:
        """Replaces the sheets to do by these sheets, without the sheets in flight. Prioritized sheets come first."""
        waiting = [number for number in numbers if number not in self._in_flight]
        self._to_do = deque(sorted(waiting, key=lambda number: not self.is_prioritized(number)))

    def prioritize(self, numbers: Collection[int]) -> None:
        """Puts these sheets first, in the given order, if they are to do. Later plans put all of them first, too."""
        self._prioritized.update(numbers)
        waiting = list(dict.fromkeys(number for number in numbers if number in self._to_do))
        self._to_do = deque([*waiting, *(number for number in self._to_do if number not in waiting)])

    def has_next(self) -> bool:
        """Whether ``next`` would begin a sheet."""
        return self._next() is not None

    def next(self) -> int | None:
        """Puts the next sheet in flight; None when the window is full, or when every sheet to do is being judged."""
        number = self._next()
        if number is not None:
            self._to_do.remove(number)
            self._in_flight.add(number)
        return number

    def _next(self) -> int | None:
        if len(self._in_flight) >= self.size:
            return None
        return next((number for number in self._to_do if number not in self._being_judged), None)

    def land(self, number: int) -> None:
        """Takes a sheet out of the window: its work has ended, well or not."""
        self._in_flight.remove(number)
        self.landed += 1

    def begin_judging(self, numbers: Iterable[int], at_most: int) -> list[int]:
        """Sets sheets aside to be judged: the lowest of these numbers that are not in flight. They do not begin until ``end_judging``."""
        taken = sorted(set(numbers) - self._in_flight)[:at_most]
        self._being_judged.update(taken)
        return taken

    def end_judging(self, numbers: Iterable[int]) -> None:
        """Lets these sheets begin again: their judgement has ended."""
        self._being_judged.difference_update(numbers)


@dataclass(frozen=True)
class Retry:
    """One request to try failed sheets again.

    Args:
        sheets: 1-based; no number means every failed sheet.
    """

    sheets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Requests:
    """The requests of signals that the run has not begun to do; false when no request waits.

    Args:
        reconcile: Whether to compare every sheet with the bucket.
        deep: Whether the comparison reads every tile.
        stored: Sheets whose commit marker the bucket has reported, ascending.
        retries: The requests to try sheets again, the oldest first.
        sealed_password: The newest password that came with a request; empty without one.
    """

    reconcile: bool = False
    deep: bool = False
    stored: tuple[int, ...] = ()
    retries: tuple[Retry, ...] = ()
    sealed_password: str = ""

    def __bool__(self) -> bool:
        return self != Requests()

    def __add__(self, later: "Requests") -> "Requests":
        return Requests(
            self.reconcile or later.reconcile,
            self.deep or later.deep,
            tuple(sorted({*self.stored, *later.stored})),
            self.retries + later.retries,
            later.sealed_password or self.sealed_password,
        )

    @classmethod
    def of_record(cls, record: ReopenedRecord) -> Self:
        """The requests of a lost run, from its record."""
        return cls(record.reconcile, record.deep, record.stored, tuple(map(Retry, record.retries)))

    def record(self, manifest_version: int) -> ReopenedRecord:
        """The requests as the bucket keeps them: without the password, and each retry once."""
        retries = tuple(dict.fromkeys(retry.sheets for retry in self.retries))
        return ReopenedRecord(manifest_version, self.reconcile, self.deep, self.stored, retries)

    @property
    def needs_check(self) -> bool:
        """Whether sheets must be compared with the bucket."""
        return self.reconcile or bool(self.stored)

    def without_reconcile(self) -> "Requests":
        """All requests but the reconcile."""
        return replace(self, reconcile=False)

    def without_password(self) -> "Requests":
        """The same requests, whose password somebody has taken."""
        return replace(self, sealed_password="")

    def take_check(self) -> tuple["Requests", "Requests"]:
        """Splits the requests into the ones that a comparison with the bucket serves, and the retries."""
        return replace(self, retries=()), Requests(retries=self.retries)

    def take_retries(self) -> tuple[tuple[Retry, ...], "Requests"]:
        """Splits the requests into the retries, and the ones that a comparison with the bucket serves."""
        return self.retries, replace(self, retries=())
