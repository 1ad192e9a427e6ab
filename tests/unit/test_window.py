"""The bookkeeping of a run holds its guarantees in any order of steps."""

from dataclasses import replace
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter

from activities.bucket.records import Snapshot, UploadOptions, UploadStatus
from workflows.messages import Continued, UploadInput
from workflows.processing.window import Requests, Retry, Window

SHEETS = st.integers(1, 8)
REQUESTS = st.builds(
    Requests,
    reconcile=st.booleans(),
    deep=st.booleans(),
    stored=st.sets(SHEETS).map(lambda numbers: tuple(sorted(numbers))),
    retries=st.lists(st.builds(Retry, st.lists(SHEETS, max_size=3).map(tuple)), max_size=3).map(tuple),
)


def begin_sheets(window: Window) -> list[int]:
    """Begins as many sheets as the window allows; returns their numbers in the order in which they began."""
    numbers = []
    while (number := window.next()) is not None:
        numbers.append(number)
    return numbers


def test_sheets_begin_in_order_until_the_window_is_full() -> None:
    """A landed sheet makes room for the next one."""
    window = Window(2)
    window.plan([1, 2, 3])
    assert begin_sheets(window) == [1, 2]
    assert not window.has_next()
    window.land(1)
    assert begin_sheets(window) == [3]
    assert (set(window.in_flight), list(window.to_do), window.landed) == ({2, 3}, [], 1)


@given(st.integers(1, 20), st.integers(1, 60), st.randoms(use_true_random=False))
def test_sheets_end_at_most_a_window_out_of_order(size: int, sheets: int, random: Random) -> None:
    """In whatever order sheets land, only sheets in flight have a number below the highest one that has landed."""
    window = Window(size)
    window.plan(range(1, sheets + 1))
    landed = {0}
    while begin_sheets(window) or window.in_flight:
        overtaken = set(range(1, max(landed))) - landed
        assert overtaken <= window.in_flight
        assert len(overtaken) < size + 1
        number = random.choice(sorted(window.in_flight))
        window.land(number)
        landed.add(number)
    assert landed == set(range(sheets + 1))


def test_prioritized_sheets_come_next_in_the_order_of_the_request() -> None:
    """A later request goes before an earlier one. A repeated number, a sheet in flight or an unknown sheet changes nothing else."""
    window = Window(1)
    window.plan(range(1, 8))
    assert begin_sheets(window) == [1]
    window.prioritize((6, 4, 6, 1, 99))
    assert list(window.to_do) == [6, 4, 2, 3, 5, 7]
    window.prioritize((7,))
    assert list(window.to_do) == [7, 6, 4, 2, 3, 5]
    assert window.prioritized_to_do == (4, 6, 7)


def test_priority_outlives_plans_and_runs() -> None:
    """A sheet that is prioritized before the pages are counted, or before continue-as-new, still comes first."""
    window = Window(1)
    window.prioritize((3,))
    window.plan([1, 2, 3])
    assert (list(window.to_do), window.is_prioritized(3), window.is_prioritized(1)) == ([3, 1, 2], True, False)
    next_run = Window(1, window.prioritized_to_do)
    next_run.plan([1, 2, 3])
    assert list(next_run.to_do) == [3, 1, 2]


def test_sheet_that_is_judged_waits_and_keeps_its_place() -> None:
    """Other sheets go on while it is judged."""
    window = Window(1)
    window.plan([1, 2, 3])
    assert window.begin_judging([1], 32) == [1]
    assert begin_sheets(window) == [2]
    window.end_judging([1])
    window.land(2)
    assert begin_sheets(window) == [1]


def test_judgement_takes_the_lowest_sheets_that_are_not_in_flight() -> None:
    """At most as many as are asked for; the sheets in flight are left for later."""
    window = Window(2)
    window.plan([1, 2, 3])
    begin_sheets(window)
    assert window.begin_judging([6, 1, 2, 3, 5, 4], 3) == [3, 4, 5]
    assert window.begin_judging([1, 2], 3) == []


def test_landing_a_sheet_that_is_not_in_flight_is_a_bug() -> None:
    """Otherwise the window could exceed its size."""
    with pytest.raises(KeyError):
        Window(1).land(1)


class WindowMachine(RuleBasedStateMachine):
    """Any order of plans, priorities, landings and judgements."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(1)
        self.judged: list[list[int]] = []
        self.begun: list[int] = []
        self.wanted: set[int] = set()
        """Sheets that were planned and have not begun since."""

    @initialize(size=st.integers(1, 3), prioritized=st.sets(SHEETS))
    def start(self, size: int, prioritized: set[int]) -> None:
        """A first run, or a run that continues another one."""
        self.window = Window(size, prioritized)

    @rule(numbers=st.sets(SHEETS))
    def plan(self, numbers: set[int]) -> None:
        """The pending sheets are planned anew."""
        self.window.plan(sorted(numbers))
        self.wanted = numbers - self.window.in_flight
        order = [(not self.window.is_prioritized(number), number) for number in self.window.to_do]
        assert order == sorted(order)

    @rule(numbers=st.lists(SHEETS, max_size=3))
    def prioritize(self, numbers: list[int]) -> None:
        """The sheets that someone waits for come first, in the given order; the other sheets keep their order."""
        before = list(self.window.to_do)
        self.window.prioritize(tuple(numbers))
        first = [number for number in dict.fromkeys(numbers) if number in before]
        assert list(self.window.to_do) == first + [number for number in before if number not in first]

    @rule()
    def begin(self) -> None:
        """The next sheet begins: the first sheet to do that is not being judged."""
        free = [number for number in self.window.to_do if not any(number in judged for judged in self.judged)]
        has_next, in_flight = self.window.has_next(), set(self.window.in_flight)
        number = self.window.next()
        assert has_next == (number is not None)
        if number is None:
            assert not free or len(in_flight) == self.window.size
        else:
            assert number == free[0]
            assert number not in in_flight
            self.wanted.discard(number)

    @precondition(lambda self: self.window.in_flight)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        """A sheet's work ends."""
        number = data.draw(st.sampled_from(sorted(self.window.in_flight)))
        landed = self.window.landed
        self.window.land(number)
        assert self.window.landed == landed + 1

    @rule(numbers=st.sets(SHEETS), at_most=st.integers(1, 4))
    def judge(self, numbers: set[int], at_most: int) -> None:
        """Sheets are taken to be judged. As in a run, no sheet is judged twice at once."""
        free = numbers - {number for judged in self.judged for number in judged}
        taken = self.window.begin_judging(free, at_most)
        assert taken == sorted(free - self.window.in_flight)[:at_most]
        self.judged.append(taken)

    @precondition(lambda self: self.judged)
    @rule()
    def end_judgement(self) -> None:
        """The oldest judgement ends."""
        self.window.end_judging(self.judged.pop(0))

    @invariant()
    def bound_holds(self) -> None:
        """Never more sheets in flight than the window allows."""
        assert len(self.window.in_flight) <= self.window.size

    @invariant()
    def sheet_is_in_one_place(self) -> None:
        """A sheet in flight is neither to do, nor being judged, and no sheet is to do twice."""
        to_do = list(self.window.to_do)
        assert len(to_do) == len(set(to_do))
        assert not self.window.in_flight & set(to_do)
        assert not self.window.in_flight & {number for judged in self.judged for number in judged}

    @invariant()
    def no_planned_sheet_is_lost(self) -> None:
        """A planned sheet is to do until it begins."""
        assert set(self.window.to_do) == self.wanted

    def teardown(self) -> None:
        """When every judgement has ended and every sheet lands, all that was planned begins, each sheet once."""
        for judged in self.judged:
            self.window.end_judging(judged)
        wanted = set(self.window.to_do)
        done = []
        while self.window.in_flight or self.window.to_do:
            done += begin_sheets(self.window)
            self.window.land(min(self.window.in_flight))
        assert sorted(done) == sorted(wanted)


TestWindowMachine = WindowMachine.TestCase


def test_no_request_is_false() -> None:
    """Without a request it is false; any single request makes it true."""
    assert not Requests()
    assert all((Requests(reconcile=True), Requests(stored=(1,)), Requests(retries=(Retry(),))))


@given(st.lists(REQUESTS))
def test_many_requests_make_one_and_nothing_is_lost(requests: list[Requests]) -> None:
    """One comparison serves every reconcile and every report of the bucket; each retry is kept, in order."""
    total = sum(requests, Requests())
    assert total.reconcile == any(asked.reconcile for asked in requests)
    assert total.deep == any(asked.deep for asked in requests)
    assert total.stored == tuple(sorted({number for asked in requests for number in asked.stored}))
    assert total.retries == tuple(retry for asked in requests for retry in asked.retries)
    assert total + total == Requests(total.reconcile, total.deep, total.stored, total.retries * 2)


@given(REQUESTS)
def test_taking_requests_splits_them_without_loss(asked: Requests) -> None:
    """The taken requests and the rest make the whole; no request is in both."""
    check, rest = asked.take_check()
    assert check + rest == asked
    assert (rest.needs_check, check.retries, rest.retries) == (False, (), asked.retries)
    assert check.needs_check == asked.needs_check
    retries, rest = asked.take_retries()
    assert rest + Requests(retries=retries) == asked
    assert (retries, rest.retries) == (asked.retries, ())
    assert asked.without_reconcile() + Requests(reconcile=asked.reconcile) == asked


async def encode_and_decode(value: object) -> UploadInput:
    """The argument of a run, decoded from its JSON in a history."""
    payload: Payload = (await DataConverter.default.encode([value]))[0]
    (result,) = await DataConverter.default.decode([payload], [UploadInput])
    assert isinstance(result, UploadInput)
    return result


@given(REQUESTS, st.booleans())
async def test_handover_crosses_the_wire_as_it_is(asked: Requests, with_snapshot: bool) -> None:
    """Progress, options, priorities, hosts and requests are the same after encoding and decoding."""
    snapshot = Snapshot(UploadStatus.PROCESSING, 7, "2026-01-31T09:30:00.000Z") if with_snapshot else None
    handover = UploadInput("a/b/c/d", reopened=True, continued=Continued(snapshot, UploadOptions(dpi=150), (3,), ("host-1",)), asked=asked)
    assert await encode_and_decode(handover) == handover


@given(REQUESTS)
def test_lost_requests_come_back_from_the_bucket(requests: Requests) -> None:
    """All but the password; a retry that was asked for twice comes once."""
    again = Requests.of_record(replace(requests, sealed_password="sealed").record(7))  # noqa: S106 - of a test
    assert again == replace(requests, retries=tuple(dict.fromkeys(requests.retries)))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"ref": "a/b/c/d"}, UploadInput("a/b/c/d")),
        (
            {
                "ref": "a/b/c/d",
                "reopened": True,
                "continued": None,
                "asked": {"reconcile": True, "deep": False, "stored": [3], "retries": [{"sheets": [2], "after_cancel_of": "run"}]},
            },
            UploadInput("a/b/c/d", reopened=True, asked=Requests(reconcile=True, stored=(3,), retries=(Retry((2,)),))),
        ),
        (
            {
                "ref": "a/b/c/d",
                "reopened": False,
                "continued": {
                    "snapshot": {"status": "processing", "version": 7, "updated_at": "2026-01-31T09:30:00.000Z"},
                    "options": {"dpi": 150, "window": 4},
                    "prioritized": [3],
                    "hosts": ["host-1"],
                },
                "asked": {"reconcile": False, "deep": False, "stored": [], "retries": []},
            },
            UploadInput(
                "a/b/c/d",
                continued=Continued(
                    Snapshot(UploadStatus.PROCESSING, 7, "2026-01-31T09:30:00.000Z"), UploadOptions(dpi=150, window=4), (3,), ("host-1",)
                ),
            ),
        ),
    ],
    ids=["first run", "requests beside the handover", "handover without requests"],
)
async def test_payloads_of_running_workflows_stay_readable(stored: dict[str, Any], expected: UploadInput) -> None:
    """Payloads without the newer fields, or with fields that are no longer written, can be read."""
    assert await encode_and_decode(stored) == expected
