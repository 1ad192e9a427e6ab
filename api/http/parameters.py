"""Reads and checks the parameters in a request's path and query."""

from starlette.requests import Request

from activities.bucket.keys import ID_PATTERN, PlanRef, UploadRef, check_id
from activities.errors import InvalidRequest, MalformedId, SheetNotFound

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
"""How many uploads a page of a plan's list has, by default and at most."""
LONGEST_WAIT_S = 50
"""Proxies commonly cut off an answer that has not begun after 60 s."""


def path_id(request: Request, name: str) -> str:
    """One id in the path, such as that of the organization.

    Raises:
        MalformedId: This part of the path cannot be an id.
    """
    try:
        return check_id(name, request.path_params[name])
    except ValueError as error:
        raise MalformedId(str(error)) from error


def plan_ref(request: Request) -> PlanRef:
    """The plan that the path names.

    Raises:
        MalformedId: A part of the path cannot be an id.
    """
    parts = request.path_params
    try:
        return PlanRef(parts["organization"], parts["project"], parts["plan"])
    except ValueError as error:
        raise MalformedId(str(error)) from error


def upload_ref(request: Request) -> UploadRef:
    """The upload that the path names.

    Raises:
        MalformedId: A part of the path cannot be an id.
    """
    parts = request.path_params
    try:
        return UploadRef(parts["organization"], parts["project"], parts["plan"], parts["upload"])
    except ValueError as error:
        raise MalformedId(str(error)) from error


def sheet_number(request: Request) -> int:
    """The sheet that the path names.

    Raises:
        SheetNotFound: The path has no positive whole number.
    """
    text = request.path_params["sheet"]
    if not _is_positive_number(text):
        msg = f"{text[:80]!r} is not the number of a sheet, they count from 1"
        raise SheetNotFound(msg)
    return int(text)


def page_limit(request: Request) -> int:
    """How many uploads a page of a list may have: ``?limit=``, but at most ``MAX_LIMIT``.

    Raises:
        InvalidRequest: The limit is not a whole number of at least 1.
    """
    text = request.query_params.get("limit", str(DEFAULT_LIMIT))
    if not _is_positive_number(text):
        msg = f"limit is {text[:80]!r}, it must be a whole number from 1 to {MAX_LIMIT}"
        raise InvalidRequest(msg)
    return min(int(text), MAX_LIMIT)


def page_cursor(request: Request) -> str | None:
    """The upload after which a page of a list begins: ``?cursor=``.

    Raises:
        InvalidRequest: The cursor cannot be an upload's id.
    """
    text = request.query_params.get("cursor")
    if text is not None and not ID_PATTERN.fullmatch(text):
        msg = f"cursor is {text[:80]!r}, it must be the nextCursor of an answer"
        raise InvalidRequest(msg)
    return text


def flag(request: Request, name: str) -> bool:
    """Whether the query sets the flag ``name``. A name without a value counts as true.

    Raises:
        InvalidRequest: The value is neither true nor false.
    """
    text = request.query_params.get(name, "false")
    if text not in ("", "1", "true", "0", "false"):
        msg = f"{name} is {text[:80]!r}, it must be true or false"
        raise InvalidRequest(msg)
    return text not in ("0", "false")


def known_version(request: Request) -> int | None:
    """The version that the client has: ``?after=``.

    Raises:
        InvalidRequest: It is not a version.
    """
    text = request.query_params.get("after")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        msg = f"after is {text[:80]!r}, it must be the version of an answer"
        raise InvalidRequest(msg)
    return int(text)


def wait_s(request: Request) -> int:
    """How many seconds the answer may wait for a change: ``?wait=``.

    Raises:
        InvalidRequest: It is not a whole number from 0 to ``LONGEST_WAIT_S``.
    """
    text = request.query_params.get("wait", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= LONGEST_WAIT_S):
        msg = f"wait is {text[:80]!r}, it must be a whole number of seconds from 0 to {LONGEST_WAIT_S}"
        raise InvalidRequest(msg)
    return int(text)


def _is_positive_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1
