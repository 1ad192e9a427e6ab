"""Renders the OpenAPI document as one HTML page, without a script: it can be read, searched and printed anywhere."""

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from api.contract.schemas import Schema

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"https://[^\s<>\"]+[^\s<>\".,:;)]")
_REFERENCE = re.compile(r"#/components/(\w+)/(.+)")


def build_page(document: Mapping[str, Any]) -> str:
    """The page."""
    operations = [(method.upper(), path, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]
    schemas = document["components"]["schemas"]
    info = document["info"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">',
            f"<title>{_text(info['title'])} API</title>",
            '<link rel="icon" href="/static/icon.svg" type="image/svg+xml">',
            '<link rel="stylesheet" href="/static/style.css"><link rel="stylesheet" href="/static/docs.css"></head>',
            '<body class="docs"><main>',
            f"<h1>{_text(info['title'])} API <small>{_text(info['version'])}</small></h1>",
            _paragraphs(info["description"]),
            '<p>For programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>',
            '<nav aria-label="Operations"><ul>',
            *(
                f'<li><a href="#{operation["operationId"]}">{_title(method, path)}</a> {_prose(operation["summary"])}</li>'
                for method, path, operation in operations
            ),
            "</ul></nav>",
            *(_operation(method, path, operation, document) for method, path, operation in operations),
            "<h2>Webhooks: requests that the server sends</h2>",
            *(_operation("POST", event, methods["post"], document) for event, methods in document["webhooks"].items()),
            "<h2>Schemas</h2>",
            *(_component(name, schemas[name]) for name in sorted(schemas)),
            "</main></body></html>\n",
        ]
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    parameters = [_resolved(parameter, document) for parameter in operation["parameters"]]
    parts = [
        f'<section id="{operation["operationId"]}"><h2>{_title(method, path)}</h2><p>{_prose(operation["summary"])}</p>',
        _paragraphs(operation.get("description", "")),
        _table(
            ("Parameter", "Where", "Values", "Meaning"),
            (
                (
                    f"<code>{_text(parameter['name'])}</code>{' (required)' if parameter['required'] else ''}",
                    parameter["in"],
                    _type(parameter["schema"]),
                    _prose(parameter["description"]),
                )
                for parameter in parameters
            ),
        ),
    ]
    if body := operation.get("requestBody"):
        parts.append(
            _table(("Body", "Content"), ((f"<code>{kind}</code>", _type(media["schema"])) for kind, media in body["content"].items()))
        )
    parts.append(_table(("Answer", "Meaning", "Content"), (_answer(status, answer) for status, answer in operation["responses"].items())))
    return "\n".join([*parts, "</section>"])


def _answer(status: str, answer: Mapping[str, Any]) -> tuple[str, str, str]:
    contents = [f"<code>{kind}</code> {_type(media['schema'])}" for kind, media in answer.get("content", {}).items()]
    headers = [
        f"<br><code>{name}</code>: {_prose(header['description'])}"
        for name, header in answer.get("headers", {}).items()
        if "$ref" not in header
    ]
    return status, _prose(answer["description"]) + "".join(headers), "<br>".join(contents)


def _component(name: str, schema: Schema) -> str:
    parts = [f'<section id="schema-{name}"><h3>{name}</h3><p>{_prose(schema.get("description", ""))}</p>']
    for part in schema.get("allOf", [schema]):
        if "properties" in part:
            rows = [
                (f"<code>{key}</code>", _type(value), _prose(value.get("description", ""))) for key, value in part["properties"].items()
            ]
            parts.append(_table(("Property", "Values", "Meaning"), rows))
        else:
            parts.append(f"<p>{_type(part)}</p>")
    return "\n".join([*parts, "</section>"])


def _type(schema: Schema) -> str:
    """The values of a schema, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return f"<code>{_text(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " ".join(f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"])
    for keyword, word in (("anyOf", " or "), ("oneOf", ", "), ("allOf", " with ")):
        if keyword in schema:
            return word.join(filter(None, map(_type, schema[keyword])))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "properties" in schema:
        return "; ".join(f"<code>{_text(name)}</code>: {_type(value)}" for name, value in schema["properties"].items())
    kinds = schema.get("type", [])
    words = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    words = {"date-time": words.replace("string", "time"), "binary": "bytes"}.get(schema.get("format", ""), words)
    if "minimum" in schema:
        words += f", {schema['minimum']:,} to {schema['maximum']:,}" if "maximum" in schema else f", at least {schema['minimum']:,}"
    if "maxLength" in schema:
        words += f", {schema['minLength']} to {schema['maxLength']} characters"
    if "pattern" in schema:
        words += f" <code>{_text(schema['pattern'])}</code>"
    if "contentSchema" in schema:
        words += f" with JSON of {_type(schema['contentSchema'])}"
    return words + (f", default {schema['default']:,}" if "default" in schema else "")


def _resolved(value: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    if found := _REFERENCE.fullmatch(value.get("$ref", "")):
        resolved: Mapping[str, Any] = document["components"][found[1]][found[2]]
        return resolved
    return value


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_prose(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph)


def _prose(text: str) -> str:
    """A sentence as HTML: words in backquotes as code, addresses as links."""
    linked = _LINK.sub(lambda found: f'<a href="{found[0]}">{found[0]}</a>', _text(text))
    return _CODE.sub(r"<code>\1</code>", linked)


def _title(method: str, path: str) -> str:
    """The name of an operation; its path may be broken before each of its parts."""
    return f"<b>{method}</b> <code>{_text(path).replace('/', '<wbr>/')}</code>"


def _text(text: str) -> str:
    return html.escape(text)
