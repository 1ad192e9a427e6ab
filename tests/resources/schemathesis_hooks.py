"""Tells schemathesis how a PDF begins, and whose token it has: otherwise, the API would see only requests to be refused."""

from typing import Any

import schemathesis
from hypothesis import strategies

from activities.bucket.keys import ID_PATTERN
from api.contract.operations import EXAMPLES

schemathesis.openapi.media_type("application/pdf", strategies.binary(max_size=2000).map(b"%PDF-1.7\n".__add__))


@schemathesis.hook
def map_path_parameters(_: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Asks for the organization of the token, unless the name is a malformed one."""
    if path_parameters and ID_PATTERN.fullmatch(str(path_parameters.get("organization", "-"))):
        return {**path_parameters, "organization": EXAMPLES["organization"]}
    return path_parameters
