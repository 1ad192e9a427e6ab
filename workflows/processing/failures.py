"""Tells a cancellation, a lost host and a deleted upload apart from other failures."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeout

from activities.errors import TilesMissing, UploadNotFound, is_error_name


def is_cancelled() -> bool:
    """Whether somebody has cancelled the workflow."""
    return workflow.cancellation_reason() is not None


def stop_if_cancelled() -> None:
    """Raises a cancellation that an await has hidden: an activity that succeeds after the cancellation returns its result.

    Raises:
        CancelledError: The workflow was cancelled.
    """
    if is_cancelled():
        raise asyncio.CancelledError


def is_due_to_cancel(error: BaseException) -> bool:
    """Whether an error comes from a cancellation. After one, Temporal retries no activity, so any error may come from it."""
    return is_cancelled() or is_cancelled_exception(error)


def fell_silent(error: ActivityError) -> bool:
    """Whether the host stopped sending heartbeats. It may still be writing."""
    return _timed_out(error, TimeoutType.HEARTBEAT)


def is_host_lost(error: ActivityError) -> bool:
    """Whether a sheet's tiles are lost, alone or with their host, so that the page must be tiled again."""
    if _timed_out(error, TimeoutType.HEARTBEAT, TimeoutType.SCHEDULE_TO_START):
        return True
    return isinstance(error.cause, ApplicationError) and error.cause.type == TilesMissing.__name__


def _timed_out(error: ActivityError, *types: TimeoutType) -> bool:
    return isinstance(error.cause, TemporalTimeout) and error.cause.type in types


def reason_and_detail(error: BaseException) -> tuple[str, str]:
    """The name and the sentence of an error, for people to read; an error without a name of ours is an ``InternalError``."""
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type and is_error_name(cause.type):
        return cause.type, cause.message
    return "InternalError", "something is wrong on the server; the worker's log says what"


@contextmanager
def quiet_if_deleted() -> Iterator[None]:
    """Ends a step quietly when it finds the upload deleted, so that the run ends without an error."""
    try:
        yield
    except ActivityError as error:
        if not (isinstance(error.cause, ApplicationError) and error.cause.type == UploadNotFound.__name__):
            raise
        workflow.logger.info("the upload was deleted")
