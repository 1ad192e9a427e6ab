"""Looks at the public keys that sign tokens, and at the queue of R2's events."""

from api.access.public_keys import parse_keys, read_source
from api.access.settings import AccessSettings
from api.r2.settings import PullSettings
from deploy.check.table import Finding, Grade

TIMEOUT_S = 10.0


def check_public_keys(settings: AccessSettings) -> list[Finding]:
    """Fetches the JWKS, and looks at its keys; nothing where there is none."""
    if not settings.public_keys:
        return []
    try:
        keys = parse_keys(read_source(settings.public_keys))
    except OSError as error:
        words = f"{settings.public_keys} is not reached: {error.strerror or error}"
        return [
            Finding("JWKS", Grade.WRONG, words, "correct SITELINK_JWT_JWKS, or let this machine reach it; its certificate must be valid")
        ]
    except ValueError as error:
        return [
            Finding("JWKS", Grade.WRONG, f"{settings.public_keys}: {error}", "correct SITELINK_JWT_JWKS: it names the keys of the issuer")
        ]
    weaknesses = {key_id: key.Algorithm.check_key_length(key.key) for key_id, key in keys.items()}
    short = {key_id: words for key_id, words in weaknesses.items() if words}
    usable = sorted(key.algorithm_name for key_id, key in keys.items() if key_id not in short)
    if not usable:
        return [Finding("JWKS", Grade.WRONG, "; ".join(short.values()), "let the issuer make longer keys")]
    findings = [Finding("JWKS", Grade.OK, f"{len(usable)} keys for {', '.join(dict.fromkeys(usable))}")]
    return findings + [
        Finding("JWKS", Grade.NOTE, f"key {key_id}: {words}", "tokens of this key are refused") for key_id, words in short.items()
    ]


def check_queue(settings: PullSettings | None) -> list[Finding]:
    """Asks for the queue, and takes no message from it; nothing where there is none.

    https://developers.cloudflare.com/api/resources/queues/methods/get/
    """
    import httpx2  # imported here, because only this check needs it

    if settings is None:
        return []
    address, check = f"{settings.url}/accounts/{settings.account}/queues/{settings.queue}", "queue of R2's events"
    try:
        answer = httpx2.get(address, headers={"Authorization": f"Bearer {settings.token}"}, timeout=TIMEOUT_S)
        document = answer.json() if answer.is_success else {}
    except (httpx2.HTTPError, ValueError) as error:
        words = f"{settings.url} is not reached: {type(error).__name__}"
        return [Finding(check, Grade.WRONG, words, "let this machine reach it, or correct SITELINK_EVENTS_API")]
    if answer.status_code in (401, 403):
        return [
            Finding(check, Grade.WRONG, "the token is refused", "SITELINK_EVENTS_TOKEN needs the permission Queues: Edit of this account")
        ]
    if not answer.is_success:
        advice = "correct SITELINK_EVENTS_ACCOUNT and SITELINK_EVENTS_QUEUE: both are ids, no names"
        return [Finding(check, Grade.WRONG, f"HTTP {answer.status_code}", advice)]
    result = document.get("result") if isinstance(document, dict) else None
    consumers = result.get("consumers") or [] if isinstance(result, dict) else []
    if not any(isinstance(consumer, dict) and consumer.get("type") == "http_pull" for consumer in consumers):
        return [
            Finding(
                check, Grade.WRONG, "it has no HTTP pull consumer", "npx wrangler queues consumer http add NAME: deploy/r2-events/README.md"
            )
        ]
    return [Finding(check, Grade.OK, "it has an HTTP pull consumer")]
