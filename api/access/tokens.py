"""Makes and reads signed tokens: the JWTs of users, and SiteLink's own tickets and sessions.

https://www.rfc-editor.org/rfc/rfc7519, with the advice of https://www.rfc-editor.org/rfc/rfc8725

Oddities, all on purpose:

1. The algorithm is never the token's choice: HS256 goes with the secrets, and the algorithm of a public key is the one of its JWK.
   A token's ``jku``, ``jwk`` and ``x5u`` are not read.
2. Tickets and sessions are signed with keys that are derived from a secret, one for each purpose. So a ticket is no token, a token is no
   ticket, and the secret itself signs tokens only.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jwt
from jwt.types import Options

from activities.bucket.keys import ID_PATTERN
from activities.errors import CredentialRequired
from api.access.principal import Principal, Scope

SKEW_S = 30
"""How far the clocks of two machines may be apart."""
LONGEST_TOKEN = 8192
LATEST_EXPIRY = 253_402_300_799
"""The end of the year 9999. A token that expires later counts as one that expires then."""
SECRET_ALGORITHM = "HS256"  # noqa: S105 - a name
PUBLIC_KEY_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

_OPTIONS: Options = {"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True}


class PublicKeys(Protocol):
    """Finds the public key of a token."""

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id; None when there is none."""


class TokenReader:
    """Verifies the tokens of users.

    Args:
        secrets: A token may be signed with any of them, by HS256.
        public_keys: A token may be signed with any of them; None when there are none.
        issuer: Who must have issued the token.
        audience: For whom the token must have been issued.
    """

    def __init__(self, secrets: Sequence[str], public_keys: PublicKeys | None, *, issuer: str, audience: str) -> None:
        self._secrets = [secret.encode() for secret in secrets]
        self._public_keys = public_keys
        self._issuer, self._audience = issuer, audience

    async def read(self, token: str) -> Principal:
        """The sender that a token describes.

        Raises:
            CredentialRequired: The token is not valid, has expired, or is for another server.
            KeysUnavailable: There are no public keys yet, because they could not be fetched.
        """
        _check_length(token)
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise _refusal("token", error) from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        keys: list[bytes | jwt.PyJWK] = []
        if algorithm == SECRET_ALGORITHM:
            keys += self._secrets
        elif algorithm in PUBLIC_KEY_ALGORITHMS and self._public_keys is not None:
            key = await self._public_keys.find(key_id)
            keys += [] if key is None else [key]
        return _principal("token", _decode("token", token, keys, str(algorithm), self._issuer, self._audience))


class OwnTokens:
    """Makes and reads the tokens of one purpose that this server, or another process with the same secret, has made.

    Args:
        purpose: ``ticket`` or ``session``.
        secrets: The first signs; each of them is accepted.
    """

    ISSUER = "sitelink"

    def __init__(self, purpose: str, secrets: Sequence[str]) -> None:
        self._purpose = purpose
        self._keys = [hmac.digest(secret.encode(), f"sitelink {purpose}".encode(), hashlib.sha256) for secret in secrets]

    def make(self, principal: Principal, expires_at: int) -> str:
        """A token for this sender.

        Args:
            principal: What the token allows.
            expires_at: Seconds since 1970. The expiry of ``principal`` does not count.
        """
        claims = {
            "sub": principal.subject,
            "org": principal.organization,
            "project": principal.project,
            "plan": principal.plan,
            "upload": principal.upload,
            "scope": " ".join(sorted(principal.scopes)),
            "system": principal.is_system,
        }
        known = {name: value for name, value in claims.items() if value not in (None, False)}
        return sign(self._keys[0], known, issuer=self.ISSUER, audience=self._purpose, expires_at=expires_at)

    def read(self, token: str) -> Principal:
        """The sender that the token describes.

        Raises:
            CredentialRequired: The token is not valid, or has expired.
        """
        _check_length(token)
        claims = _decode(self._purpose, token, self._keys, SECRET_ALGORITHM, self.ISSUER, self._purpose)
        return _principal(self._purpose, claims, upload=claims.get("upload"))


def sign(key: bytes, claims: Mapping[str, object], *, issuer: str, audience: str, expires_at: int) -> str:
    """A JWT with these claims, signed by HS256.

    Args:
        key: The secret, of at least 32 bytes.
        claims: ``sub``, ``org``, ``scope`` and the like.
        issuer: The claim ``iss``.
        audience: The claim ``aud``.
        expires_at: The claim ``exp``: seconds since 1970.
    """
    whole = {**claims, "iss": issuer, "aud": audience, "iat": int(time.time()), "exp": expires_at}
    return jwt.encode(whole, key, SECRET_ALGORITHM)


def _check_length(token: str) -> None:
    if len(token) > LONGEST_TOKEN:
        msg = f"the credential has {len(token):,} characters, limit {LONGEST_TOKEN:,}"
        raise CredentialRequired(msg)


def _decode(kind: str, token: str, keys: Sequence[bytes | jwt.PyJWK], algorithm: str, issuer: str, audience: str) -> dict[str, Any]:
    for key in keys:
        try:
            return jwt.decode(token, key, [algorithm], options=_OPTIONS, issuer=issuer, audience=audience, leeway=SKEW_S)
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError as error:
            raise _refusal(kind, error) from error
    msg = f"the {kind} is not signed with a key of this server"
    raise CredentialRequired(msg)


def _refusal(kind: str, error: jwt.PyJWTError) -> CredentialRequired:
    match error:
        case jwt.ExpiredSignatureError():
            return CredentialRequired(f"the {kind} has expired")
        case jwt.ImmatureSignatureError():
            return CredentialRequired(f"the {kind} is not valid yet")
        case jwt.InvalidIssuerError() | jwt.InvalidAudienceError():
            return CredentialRequired(f"the {kind} was not issued for this server")
        case jwt.MissingRequiredClaimError(claim=claim):
            return CredentialRequired(f"the {kind} has no {claim!r}")
    return CredentialRequired(f"the {kind} is not valid")


def _principal(kind: str, claims: Mapping[str, Any], *, upload: object = None) -> Principal:
    path = {name: claims.get(claim) for name, claim in (("organization", "org"), ("project", "project"), ("plan", "plan"))}
    path["upload"] = upload
    for name, value in path.items():
        if value is not None and not (isinstance(value, str) and ID_PATTERN.fullmatch(value)):
            msg = f"the {name} of the {kind} is not an id"
            raise CredentialRequired(msg)
    is_system, scopes = claims.get("system", False), claims.get("scope", "")
    if not isinstance(is_system, bool) or not isinstance(scopes, str):
        msg = f"the {kind} has a claim of the wrong type: scope is a string, system is true or false"
        raise CredentialRequired(msg)
    if path["organization"] is None and not is_system:
        msg = f"the {kind} has no 'org'"
        raise CredentialRequired(msg)
    if path["plan"] is not None and path["project"] is None:
        msg = f"the {kind} has a plan, but not the plan's project"
        raise CredentialRequired(msg)
    granted = frozenset(Scope(word) for word in scopes.split() if word in list(Scope))
    expires_at = min(int(claims["exp"]), LATEST_EXPIRY) + SKEW_S
    return Principal(subject=claims["sub"], expires_at=expires_at, scopes=granted, is_system=is_system, **path)
