"""Builds the OpenAPI document of the routes that this server has.

Our own builder, because the libraries for Starlette ask for something else: Starlette's ``SchemaGenerator`` for YAML in docstrings, and
others for models of Pydantic or marshmallow. The documents of SiteLink are plain dataclasses with a spelling of their own.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, NamedTuple

from activities import errors
from api.access.credentials import SESSION_COOKIE, TICKET_HEADER, TICKET_PARAMETER
from api.access.policies import Needs, Policy
from api.access.principal import Scope
from api.contract.operations import EXAMPLES, OPERATIONS, PATH_PARAMETERS, Answer, Operation, Parameter, Problem
from api.contract.schemas import TEXT, WEBHOOKS, Schema, components, ref
from api.http.middleware import REQUEST_ID
from api.http.problems import PROBLEM_TYPE, status_name, status_of
from api.paths import LIVE, UNGUARDED, V1

SAFE_METHODS = ("GET", "HEAD")

DESCRIPTION = """\
SiteLink takes a construction-plan PDF, turns every sheet into Deep Zoom tiles, and tells the progress live.

Where the server checks who sends requests (`SITELINK_ACCESS=jwt`), each operation names the credentials and the scope that it takes.

A refusal is a problem document (RFC 9457). Every answer has an `X-Request-ID`: the client's, or one that the server made. Times are
RFC 3339 in UTC. A GET route also answers HEAD. A later release may add properties to documents and values to `type` and `reason`."""

_REQUEST_ID = Parameter("X-Request-ID", "header", "Names the request in the logs. Another spelling is replaced.", TEXT)


SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A token of your backend or identity provider."},
    "ticket": {"type": "apiKey", "in": "query", "name": TICKET_PARAMETER, "description": "A ticket, for programs that send no header."},
    "ticketHeader": {"type": "apiKey", "in": "header", "name": TICKET_HEADER.title(), "description": "A ticket."},
    "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE, "description": "The session of a page of this server."},
}


class DescribedRoute(NamedTuple):
    """A route that the server has.

    Args:
        method: The HTTP method.
        path: The path, as OpenAPI spells it.
        policy: What its requests need.
    """

    method: str
    path: str
    policy: Policy


def build_document(routes: Iterable[DescribedRoute], *, checks_access: bool) -> dict[str, Any]:
    """The document.

    Args:
        routes: Every route that the server has.
        checks_access: Whether requests need a credential.
    """
    known = {(operation.method, operation.path): operation for operation in OPERATIONS}
    paths: dict[str, Any] = {}
    for method, path, policy in routes:
        paths.setdefault(path, {})[method.lower()] = _operation(known[method, path], policy, checks_access=checks_access)
    return {
        "openapi": "3.1.1",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "SiteLink",
            "version": version("sitelink"),
            "description": DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "webhooks": {str(event): {"post": _webhook(name, description)} for event, (name, description) in WEBHOOKS.items()},
        "components": {
            "schemas": components(),
            "headers": {
                "X-Request-ID": {
                    "description": "Names the request in the server's log.",
                    "required": True,
                    "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
                }
            },
            "parameters": {"X-Request-ID": _parameter(_REQUEST_ID)},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def _operation(operation: Operation, policy: Policy, *, checks_access: bool) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", operation.path)
    document: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [
            *({**_parameter(PATH_PARAMETERS[name]), "example": EXAMPLES[name]} for name in names),
            *map(_parameter, operation.parameters),
            {"$ref": "#/components/parameters/X-Request-ID"},
        ],
        "responses": {
            **{str(status): _answer(answer) for status, answer in operation.answers.items()},
            **{str(status): _refusal(types) for status, types in sorted(problem_types(operation, policy).items())},
        },
    }
    document["security"] = _security(operation.method, policy) if checks_access else []
    if description := "\n\n".join(filter(None, (operation.description, _needs(policy) if checks_access else ""))):
        document["description"] = description
    if operation.body:
        document["requestBody"] = {"required": True, "content": {kind: {"schema": schema} for kind, schema in operation.body.items()}}
    return document


WEBHOOK_HEADERS = (
    Parameter("webhook-id", "header", "Names the webhook. It is the same however often the webhook is sent.", TEXT, required=True),
    Parameter(
        "webhook-timestamp",
        "header",
        "The time of this attempt, in seconds since 1970.",
        {"type": "string", "pattern": "^[0-9]+$"},
        required=True,
    ),
    Parameter(
        "webhook-signature",
        "header",
        "Signatures, separated by spaces. One that fits is enough.",
        {"type": "string", "pattern": "^v1,[A-Za-z0-9+/=]+( v1,[A-Za-z0-9+/=]+)*$"},
        required=True,
    ),
)


def _webhook(name: str, description: str) -> dict[str, Any]:
    """A request that this server sends: https://github.com/standard-webhooks/standard-webhooks."""
    return {
        "operationId": f"receive{name}",
        "summary": description,
        "parameters": list(map(_parameter, WEBHOOK_HEADERS)),
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(name)}}},
        "responses": {
            "2XX": {"description": "The receiver has it."},
            "410": {"description": "The receiver does not want it, and it is not sent again."},
            "default": {"description": "It is sent again, with growing pauses, for a day."},
        },
    }


def _security(method: str, policy: Policy) -> list[dict[str, list[str]]]:
    """The credentials of which a request needs one."""
    scopes = [str(policy.scope)] if policy.scope else []
    takes_ticket = method in SAFE_METHODS and policy.scope is Scope.READ
    names = {
        Needs.NOTHING: (),
        Needs.TOKEN: ("token",),
        Needs.CREDENTIAL: ("token", "ticket", "ticketHeader", "session"),
        Needs.SYSTEM: ("token", "session"),
        Needs.SCOPE: ("token", *(("ticket", "ticketHeader") if takes_ticket else ()), "session"),
    }[policy.needs]
    return [{name: scopes} for name in names]


def _needs(policy: Policy) -> str:
    """The same in words."""
    if policy.needs is Needs.SYSTEM:
        return "Needs a token with `system`."
    if policy.scope is None:
        return ""
    return (
        f"Needs the scope `{policy.scope}`"
        + (f", with `deep` `{policy.deep_scope}`." if policy.deep_scope else ".")
        + (f" With `{policy.header_scope[0]}` also `{policy.header_scope[1]}`." if policy.header_scope else "")
    )


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": parameter.schema,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {"schema": schema} for kind, schema in answer.content.items()}
    headers: dict[str, Any] = {name: {"description": text, "schema": TEXT} for name, text in answer.headers.items()}
    headers["X-Request-ID"] = {"$ref": "#/components/headers/X-Request-ID"}
    return {"description": answer.description, "headers": headers, **({"content": content} if content else {})}


def _refusal(types: list[str]) -> dict[str, Any]:
    schema: Schema = {"allOf": [ref("Problem"), {"properties": {"type": {"enum": types}}}]}
    answer = Answer(", ".join(f"`{name}`" for name in types), {PROBLEM_TYPE: schema})
    return _answer(answer)


def problem_types(operation: Operation, policy: Policy) -> dict[int, list[str]]:
    """The types of the refusals that an operation may give, by HTTP status."""
    problems: list[Problem] = [*operation.problems, HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE]
    if "{" in operation.path:
        problems += [errors.MalformedId, HTTPStatus.NOT_FOUND]
    if operation.path != LIVE:
        problems.append(errors.ServerBusy)
    if operation.path not in UNGUARDED:
        problems += [errors.ForeignHost, errors.TooManyRequests]
        if operation.path.startswith(V1):
            problems += [errors.ForeignOrigin, errors.InvalidRequest]
    if policy.needs is not Needs.NOTHING:
        problems += [errors.CredentialRequired, errors.KeysUnavailable]
    if policy.needs in (Needs.SCOPE, Needs.SYSTEM):
        problems.append(errors.NotAllowed)
    if policy.needs is Needs.SCOPE:
        problems.append(errors.UploadNotFound if "{upload}" in operation.path else errors.PlanNotFound)
    found: dict[int, set[str]] = {int(HTTPStatus.INTERNAL_SERVER_ERROR): {"InternalError"}}
    for problem in problems:
        if isinstance(problem, HTTPStatus):
            found.setdefault(int(problem), set()).add(status_name(problem))
        else:
            for kind in _leaves(problem):
                found.setdefault(status_of(kind), set()).add(kind.__name__)
    return {status: sorted(types) for status, types in found.items()}


def _leaves(kind: type[errors.SiteLinkError]) -> list[type[errors.SiteLinkError]]:
    """The errors below an error in the tree, or the error itself."""
    below = [leaf for child in kind.__subclasses__() if child.__module__ == errors.__name__ for leaf in _leaves(child)]
    return below or [kind]
