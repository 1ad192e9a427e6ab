"""The settings of webhooks, for the API and for the worker that sends them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self

from activities.environment import secret

SHORTEST_SECRET_BYTES = 32


@dataclass(frozen=True)
class WebhookSettings:
    """The master secrets that sign webhooks, and the private networks to which webhooks may be sent.

    Args:
        secrets: The master secrets, from which the secrets of receivers are derived. The first is for new receivers; a webhook is signed
            with each. Without one there are no webhooks.
        networks: Private networks to which webhooks may be sent, also by http.

    Raises:
        ValueError: A value cannot be used; the message names its variable and shows no secret.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        if any(len(text.encode()) < SHORTEST_SECRET_BYTES for text in self.secrets):
            msg = (
                f"a secret in SITELINK_WEBHOOK_SECRET has less than {SHORTEST_SECRET_BYTES} bytes; `openssl rand -hex 32` makes a good one"
            )
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment."""
        names = _list(environ.get("SITELINK_WEBHOOK_NETWORKS") or "")
        try:
            networks = tuple(map(ip_network, names))
        except ValueError as error:
            msg = f"SITELINK_WEBHOOK_NETWORKS: {error}; networks like 10.0.0.0/8 are wanted, separated by commas"
            raise ValueError(msg) from error
        return cls(_list(secret(environ, "SITELINK_WEBHOOK_SECRET")), networks)


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))
