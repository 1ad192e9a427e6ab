"""The stack that chaos tests share: its start costs more than most of these tests."""

from collections.abc import Callable, Iterator

import pytest

from deploy.stack import Stack
from tests.chaos.guarantees import wait_until_scratch_is_empty


@pytest.fixture(scope="session")
def chaos_stack(new_stack_of_session: Callable[..., Stack]) -> Stack:
    """One whole stack on a directory, whose processes are killed."""
    return new_stack_of_session()


@pytest.fixture
def stack_to_kill(chaos_stack: Stack) -> Iterator[Stack]:
    """The shared stack, for one test. Afterwards every process runs again, and the scratch becomes empty."""
    yield chaos_stack
    for name, process in chaos_stack.processes.items():
        if not process.is_running:
            chaos_stack.start_process(name)
    wait_until_scratch_is_empty(chaos_stack)
