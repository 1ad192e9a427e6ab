"""Looks at the Temporal server: whether it answers, knows the namespace and the search attributes, and whether its payloads can be read."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import PayloadUnreadable
from deploy.check.table import Finding, Grade
from deploy.check.versions import check_versions
from deploy.temporal import OLDEST_SERVER
from worker.settings import deployment_version
from workflows.codec import Codec, data_converter
from workflows.connection import connection_settings
from workflows.messages import SEARCH_ATTRIBUTES

TIMEOUT_S = 15.0
CREATE_ATTRIBUTES = "temporal operator search-attribute create"
REFUSED = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED)


async def check_temporal(environ: Mapping[str, str], keys: Sequence[bytes]) -> list[Finding]:
    """The findings about the server that the environment names.

    Args:
        environ: The variables; they can be used.
        keys: As from ``codec_keys``.
    """
    settings = connection_settings(environ)
    address, namespace = settings["target_host"], settings.get("namespace") or "default"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            client = await Client.connect(**settings, data_converter=data_converter(keys))
    except (RuntimeError, ValueError, TimeoutError) as error:
        return [_not_reached(address, str(error) or f"no answer within {TIMEOUT_S:g} s")]
    findings: list[Finding] = []
    for check in (
        _server(client, address),
        _namespace(client, namespace),
        _attributes(client, namespace),
        check_versions(client, deployment_version(environ)),
        _codec(client, keys),
    ):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                findings += [found async for found in check]
        except (RPCError, TimeoutError) as error:
            findings.append(_failure("Temporal", error))
        if findings[-1].grade is Grade.WRONG and findings[-1].check == NAMESPACE:
            break  # everything below lies in the namespace
    return findings


NAMESPACE = "Temporal namespace"


def _not_reached(address: str, words: str) -> Finding:
    check = "Temporal"
    if re.search(r"code: (Unauthenticated|PermissionDenied)", words):
        advice = "correct TEMPORAL_API_KEY, or the certificate that the TEMPORAL_TLS_ settings name"
        return Finding(check, Grade.WRONG, f"{address} refuses these credentials", advice)
    reasons = re.findall(r'(?:message|error): "([^"]+)"', words)
    facts = f"{address} is not reached: {reasons[-1] if reasons else words[:160]}"
    return Finding(check, Grade.WRONG, facts, "start the server, or correct TEMPORAL_ADDRESS and the TEMPORAL_TLS_ settings")


def _failure(check: str, error: RPCError | TimeoutError) -> Finding:
    if isinstance(error, RPCError) and error.status in REFUSED:
        return Finding(
            check, Grade.WRONG, f"refused: {error.message[:200]}", "give these credentials the role of a writer in the namespace"
        )
    words = error.message[:200] if isinstance(error, RPCError) else f"no answer within {TIMEOUT_S:g} s"
    return Finding(check, Grade.WRONG, words, "look at the log of the Temporal server")


async def _server(client: Client, address: str) -> AsyncIterator[Finding]:
    version = (await client.workflow_service.get_system_info(GetSystemInfoRequest())).server_version
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    oldest = ".".join(map(str, OLDEST_SERVER))
    if numbers and numbers < OLDEST_SERVER:
        facts = f"{address} answers, server {version}"
        yield Finding("Temporal", Grade.NOTE, facts, f"update it to {oldest}: older ones do not share workers fairly between organizations")
    else:
        yield Finding("Temporal", Grade.OK, f"{address} answers, server {version or 'of an unknown version'}")


async def _namespace(client: Client, namespace: str) -> AsyncIterator[Finding]:
    try:
        answer = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            yield _failure(NAMESPACE, error)
            return
        advice = f"temporal operator namespace create --retention 72h --namespace {namespace}; or correct TEMPORAL_NAMESPACE"
        yield Finding(NAMESPACE, Grade.WRONG, f"there is no namespace {namespace}", advice)
        return
    hours = answer.config.workflow_execution_retention_ttl.seconds / 3600
    yield Finding(NAMESPACE, Grade.OK, f"{namespace}, keeps ended runs {hours:,.0f} hours")


async def _attributes(client: Client, namespace: str) -> AsyncIterator[Finding]:
    check = "Temporal search attributes"
    try:
        answer = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    except RPCError as error:
        if error.status not in (*REFUSED, RPCStatusCode.UNIMPLEMENTED):
            raise
        yield Finding(check, Grade.NOTE, "these credentials may not list them", f"see that these are there: {', '.join(SEARCH_ATTRIBUTES)}")
        return
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    types = {name: answer.custom_attributes.get(name) for name in SEARCH_ATTRIBUTES}
    if missing := [name for name, kind in types.items() if kind is None]:
        names = " ".join(f"--name {name} --type Keyword" for name in missing)  # with one type, only the first name is made
        yield Finding(check, Grade.WRONG, f"missing: {', '.join(missing)}", f"{CREATE_ATTRIBUTES} --namespace {namespace} {names}")
    if other := [name for name, kind in types.items() if kind not in (None, keyword)]:
        yield Finding(check, Grade.WRONG, f"no Keyword: {', '.join(other)}", "remove them, and make them anew as Keyword")
    if not missing and not other:
        yield Finding(check, Grade.OK, f"all {len(types)}")


async def _codec(client: Client, keys: Sequence[bytes]) -> AsyncIterator[Finding]:
    """Whether the keys decrypt what they encrypt, and what the newest upload has in Temporal."""
    check, codec = "encryption in Temporal", Codec(keys)
    sample = Payload(metadata={"encoding": b"json/plain"}, data=b'"sample"')
    encrypted = await codec.encode([sample])
    works = await codec.decode(encrypted) == [sample] and (not keys or encrypted != [sample])
    try:
        read = await _read_newest(client, codec)
    except PayloadUnreadable as error:
        advice = "set SITELINK_CODEC_KEY as in the other processes; while you replace a key, each process needs new,old"
        yield Finding(check, Grade.WRONG, str(error), advice)
        return
    state = f"{len(keys)} keys, the first encrypts" if keys else "off: titles, file names and errors are in clear in Temporal"
    yield Finding(check, Grade.OK if works else Grade.WRONG, f"{state}; {read}")


async def _read_newest(client: Client, codec: Codec) -> str:
    async for run in client.list_workflows('WorkflowType = "ProcessUpload"', limit=1):
        async for event in client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history_events(page_size=1):
            await codec.decode(event.workflow_execution_started_event_attributes.input.payloads)
            return "the newest upload can be read"
    return "no upload is there yet"
