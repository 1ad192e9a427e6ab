"""Which objects of the bucket an upload may be made of."""

import re
from dataclasses import dataclass

from activities.bucket.keys import ROOT, UNREADABLE_EVENTS_PREFIX, PlanRef
from activities.errors import InvalidRequest, SourceForbidden

MAX_KEY_BYTES = 1024
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html"""

_PLACEHOLDER = re.compile(r"{(org|project|plan)}")


@dataclass(frozen=True)
class SourcePrefix:
    """Below which keys the sources of an organization are: ``SITELINK_SOURCE_PREFIX``.

    Args:
        template: A prefix that ends with ``/`` and holds ``{org}``, and may hold ``{project}`` and ``{plan}``; empty: no sources.

    Raises:
        ValueError: It cannot be used; the message names the variable.
    """

    template: str = ""

    def __post_init__(self) -> None:
        if not self.template:
            return
        plain = _PLACEHOLDER.sub("x", self.template)
        name, wanted = "SITELINK_SOURCE_PREFIX", "a prefix like incoming/{org}/ is wanted"
        if "{org}" not in self.template:
            msg = f"{name} is {self.template!r}, without {{org}}: every organization could read the files of all others; {wanted}"
            raise ValueError(msg)
        if not plain.endswith("/") or "{" in plain or not _is_plain(plain.removesuffix("/")):
            msg = f"{name} is {self.template!r}; {wanted}"
            raise ValueError(msg)
        if self.template.partition("/")[0] in (ROOT.rstrip("/"), UNREADABLE_EVENTS_PREFIX.partition("/")[0]):
            msg = f"{name} is {self.template!r}, which is among SiteLink's own objects; {wanted}"
            raise ValueError(msg)

    def of(self, plan: PlanRef) -> str:
        """The prefix of the sources of a plan; empty if there are none."""
        ids = {"org": plan.organization, "project": plan.project, "plan": plan.plan}
        return _PLACEHOLDER.sub(lambda found: ids[found[1]], self.template)

    def check(self, plan: PlanRef, key: str) -> None:
        """Returns if an upload of the plan may be made of the object at ``key``.

        Raises:
            InvalidRequest: ``key`` is no plain key.
            SourceForbidden: It is not below the plan's prefix, or there are no sources.
        """
        prefix = self.of(plan)
        if not prefix:
            msg = "this server makes no upload of an object in the bucket: SITELINK_SOURCE_PREFIX is not set"
            raise SourceForbidden(msg)
        if not _is_plain(key):
            msg = (
                f"source is {key[:80]!r}; wanted is a key of at most {MAX_KEY_BYTES:,} bytes, without control characters, a backslash, "
                "or a part that is empty, '.' or '..'"
            )
            raise InvalidRequest(msg)
        if not key.startswith(prefix):
            msg = f"the source of an upload of this plan must be below {prefix}"
            raise SourceForbidden(msg)


def _is_plain(key: str) -> bool:
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        return False
    is_whole = not any(part in ("", ".", "..") for part in key.split("/"))
    return is_whole and size_bytes <= MAX_KEY_BYTES and key.isprintable() and "\\" not in key
