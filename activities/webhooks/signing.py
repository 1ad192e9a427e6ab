"""The signatures of webhooks, by Standard Webhooks. The secret of each receiver is derived from a master secret and stored nowhere.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook

from activities.bucket.keys import UploadRef


def organization_purpose(organization: str, secret_id: str) -> str:
    """Names an organization's receiver. The receiver's secret is derived from the master secret and this name."""
    return f"organization {organization} {secret_id}"


def upload_purpose(ref: UploadRef) -> str:
    """Names an upload's own receiver; used in the same way."""
    return f"upload {ref}"


def derived_secret(master: str, purpose: str) -> str:
    """The secret of one receiver, as Standard Webhooks spells it: ``whsec_`` and 32 bytes in base64."""
    key = hmac.new(master.encode(), f"sitelink webhook: {purpose}".encode(), hashlib.sha256).digest()
    return f"whsec_{base64.b64encode(key).decode()}"


def signed_headers(masters: Sequence[str], purpose: str, message: str, now: datetime, body: str) -> dict[str, str]:
    """The headers that prove to the receiver who sends the body.

    Args:
        masters: The master secrets. There is a signature for each, so that a receiver can take its new secret at any time.
        purpose: Names the receiver: ``organization_purpose`` or ``upload_purpose``.
        message: The ``webhook-id``.
        now: The time of this attempt, in UTC.
        body: The body.
    """
    signatures = [Webhook(derived_secret(master, purpose)).sign(message, now, body) for master in masters]
    return {"webhook-id": message, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": " ".join(signatures)}
