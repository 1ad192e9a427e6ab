"""The settings of the API's server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Self

from activities.bucket.location import BucketSettings
from activities.bucket.records import MOST_BUDGET_BYTES
from activities.environment import secret, whole_number
from activities.render.confinement import must_confine
from activities.webhooks.settings import WebhookSettings
from api.access.settings import AccessSettings, Mode
from api.addresses import is_loopback
from api.r2.settings import PushSettings
from api.source_prefix import SourcePrefix
from workflows.codec import codec_keys

DEFAULT_MAX_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class ApiSettings:
    """The settings that the server reads once, when it starts.

    Args:
        bucket: Where the objects are.
        host: Address to listen on. Without access control it must be loopback.
        port: The port to listen on; 0 picks a free port.
        max_file_bytes: The largest PDF that is accepted.
        most_budget_bytes: The limit of the option ``budgetBytes``: two thirds of the memory of a process that draws a sheet.
        max_connections: How many connections may be open at once.
        upload_memory_bytes: How much memory the uploads that are being received may take together.
        max_streams: How many event streams may be open at once; of one organization at most three quarters of them.
        max_open_uploads: How many uploads of one organization may be unfinished.
        source_prefix: Which objects of the bucket an upload may be made of.
        proxies: Addresses and networks of the proxies before the API; they say from which address a request came.
        limit_address: How many requests an address may send.
        limit_organization: How many requests may be sent about an organization.
        limits_storage: Where these requests are counted; it may hold a password.
        push: Who may send R2 events.
        access: Who may send all other requests.
        codec_keys: Encrypt what Temporal stores, as from ``workflows.codec.codec_keys``.
        webhooks: How webhooks are signed, and where they may be sent.
        must_confine: As ``confinement.must_confine`` says.

    Raises:
        ValueError: A value cannot be used; the message names its variable.
    """

    bucket: BucketSettings
    host: str = "127.0.0.1"
    port: int = 8000
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    most_budget_bytes: int = MOST_BUDGET_BYTES
    max_connections: int = 8192
    upload_memory_bytes: int = 512 << 20
    max_streams: int = 6000
    max_open_uploads: int = 1000
    source_prefix: SourcePrefix = field(default_factory=SourcePrefix)
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    limit_address: str = "12000/minute"
    limit_organization: str = "60000/minute"
    limits_storage: str = field(default="memory://", repr=False)
    push: PushSettings = field(default_factory=PushSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    codec_keys: tuple[bytes, ...] = field(default=(), repr=False)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    must_confine: bool = False

    def __post_init__(self) -> None:
        for proxy in self.proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                msg = f"SITELINK_PROXIES has {proxy[:80]!r}; addresses or networks like 10.0.0.0/8 are wanted, separated by commas"
                raise ValueError(msg) from error
        if self.access.mode is Mode.LOOPBACK and not is_loopback(self.host):
            msg = (
                f"SITELINK_HOST is {self.host!r}: without SITELINK_ACCESS the API listens on this machine only, "
                "127.0.0.1, ::1 or localhost. To reach it from elsewhere, set SITELINK_ACCESS=jwt, or tunnel to it, for example by ssh -L"
            )
            raise ValueError(msg)
        if self.access.mode is Mode.LOOPBACK and (self.access.ticket_secrets or self.access.public_keys):
            msg = (
                "a secret or a JWKS for tokens is set, but SITELINK_ACCESS is not, so that nobody would be asked for a token: "
                "set SITELINK_ACCESS=jwt, or remove SITELINK_JWT_SECRET, SITELINK_JWT_JWKS and SITELINK_TICKET_SECRET"
            )
            raise ValueError(msg)
        if self.host in ("0.0.0.0", "::") and not self.access.public_hosts:  # noqa: S104 - compared, not bound
            msg = f"SITELINK_HOST is {self.host!r}: SITELINK_PUBLIC_HOSTS must say under which host names clients reach the server"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the API's variables, the bucket's, the push endpoint's and those of access."""
        return cls(
            bucket=BucketSettings.from_env(environ),
            host=environ.get("SITELINK_HOST") or cls.host,
            port=whole_number(environ, "SITELINK_PORT", cls.port, low=0, high=65_535, digits_only=True),
            max_file_bytes=whole_number(environ, "SITELINK_MAX_FILE_BYTES", cls.max_file_bytes, high=1 << 42, digits_only=True),
            most_budget_bytes=2 * whole_number(environ, "SITELINK_RENDER_MEMORY_BYTES", 3 << 30, low=3 << 20) // 3,
            max_connections=whole_number(environ, "SITELINK_MAX_CONNECTIONS", cls.max_connections, low=32, high=1 << 20, digits_only=True),
            upload_memory_bytes=whole_number(
                environ, "SITELINK_UPLOAD_MEMORY_BYTES", cls.upload_memory_bytes, low=1 << 26, digits_only=True
            ),
            max_streams=whole_number(environ, "SITELINK_MAX_STREAMS", cls.max_streams, digits_only=True),
            max_open_uploads=whole_number(environ, "SITELINK_MAX_OPEN_UPLOADS", cls.max_open_uploads, digits_only=True),
            source_prefix=SourcePrefix(environ.get("SITELINK_SOURCE_PREFIX") or ""),
            proxies=tuple(map(str.strip, (environ.get("SITELINK_PROXIES") or ",".join(cls.proxies)).split(","))),
            limit_address=environ.get("SITELINK_LIMIT_ADDRESS") or cls.limit_address,
            limit_organization=environ.get("SITELINK_LIMIT_ORGANIZATION") or cls.limit_organization,
            limits_storage=secret(environ, "SITELINK_LIMITS_STORAGE") or "memory://",
            push=PushSettings.from_env(environ),
            access=AccessSettings.from_env(environ),
            codec_keys=codec_keys(environ),
            webhooks=WebhookSettings.from_env(environ),
            must_confine=must_confine(environ),
        )
