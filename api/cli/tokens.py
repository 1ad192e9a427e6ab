"""``sitelink token``: signs a token with the secret of the server, for trying and for scripts. It asks no server."""

import argparse
import re
import time

from api.access.principal import Scope
from api.access.settings import AccessSettings
from api.cli.errors import WrongUse
from api.cli.words import print_json

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_TTL_S = 366 * 86_400


def lifetime(text: str) -> int:
    """The seconds of ``90s``, ``30m``, ``1h`` or ``7d``.

    Raises:
        ValueError: The text is not a number and a unit, or the time is longer than a year.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text, re.ASCII)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_TTL_S:
        msg = f"{text!r} is not a time like 90s, 30m, 1h or 7d, of at most a year"
        raise ValueError(msg)
    return seconds


def scopes(text: str) -> str:
    """The scopes of ``read write``.

    Raises:
        ValueError: A word is no scope.
    """
    if unknown := [word for word in text.split() if word not in list(Scope)]:
        msg = f"{unknown[0]!r} is not one of {', '.join(Scope)}"
        raise ValueError(msg)
    return " ".join(text.split())


def token_command(arguments: argparse.Namespace) -> int:
    """``sitelink token``.

    Raises:
        WrongUse: There is no secret, or a setting cannot be used, or a plan has no project.
    """
    from api.access.tokens import sign  # imported here, because it loads a library of cryptography that no other command needs

    try:
        settings = AccessSettings.from_env(arguments.environ)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    if not settings.secrets:
        msg = "SITELINK_JWT_SECRET is not set: a token is signed with the secret that the server has"
        raise WrongUse(msg)
    if arguments.plan and not arguments.project:
        msg = "--plan needs --project, too"
        raise WrongUse(msg)
    if not arguments.org and not arguments.system:
        msg = "--org is missing: the organization that the token is for"
        raise WrongUse(msg)
    named = {"org": arguments.org, "project": arguments.project, "plan": arguments.plan, "system": arguments.system or None}
    claims = {"sub": arguments.subject, "scope": arguments.scope, **{name: value for name, value in named.items() if value is not None}}
    expires_at = int(time.time()) + arguments.ttl
    token = sign(settings.secrets[0].encode(), claims, issuer=settings.issuer, audience=settings.audience, expires_at=expires_at)
    if arguments.json:
        print_json("token", {"token": token, "expiresAt": expires_at})
    else:
        print(token)
    return 0
