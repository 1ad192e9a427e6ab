"""The sender of a request, with the plans that the sender may see and the scopes that the sender has."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """A permission of a token. No scope includes another: a token that reads and writes has both scopes."""

    READ = "read"
    WRITE = "write"
    OPERATE = "operate"


@dataclass(frozen=True)
class Principal:
    """The sender of a request, as a verified token, ticket or session describes it.

    Args:
        subject: The sender's name in the log.
        organization: The only organization that the sender may see; None for a sender without an organization.
        project: The only project that the sender may see; None for every project of the organization.
        plan: The only plan; None for every plan.
        upload: The only upload; None for every upload.
        scopes: What the sender may do there.
        is_system: Whether the sender may see what belongs to no organization.
        expires_at: From then on the credential is refused. Seconds since 1970, with the allowed skew of clocks.
    """

    subject: str
    organization: str | None
    expires_at: float
    project: str | None = None
    plan: str | None = None
    upload: str | None = None
    scopes: frozenset[Scope] = frozenset()
    is_system: bool = False

    def may_see(self, path: Mapping[str, str]) -> bool:
        """Whether the sender may know what a path names.

        Args:
            path: The parameters of the matched route, such as ``organization`` and ``project``.
        """
        if self.organization is None or path.get("organization") != self.organization:
            return False
        return all(
            own is None or path.get(name) == own for name, own in (("project", self.project), ("plan", self.plan), ("upload", self.upload))
        )
