"""``POST …/decode`` and ``POST …/encode``: the codec server of Temporal's UI and command line.

Both take and give ``{"payloads": [...]}``: https://docs.temporal.io/codec-server.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from temporalio.api.common.v1 import Payload

from api.http.bodies import announced_bytes, read_body
from api.http.turns import Turns
from workflows.codec import Codec, read_payloads, write_payloads

MAX_BODY_BYTES = 16 << 20
"""The UI sends the payloads of one event, or of one page of a history, which Temporal itself limits to 4 MB."""
BODIES_WAITING = 64


class CodecEndpoint:
    """The handlers.

    Args:
        keys: As from ``workflows.codec.codec_keys``.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._codec = Codec(keys)
        self._turns = Turns(4 * MAX_BODY_BYTES, share=4 * MAX_BODY_BYTES, line=BODIES_WAITING, what="payloads of Temporal")

    async def decode(self, request: Request) -> Response:
        """Decrypts the payloads of the body. Those in clear come back as they are.

        Raises:
            InvalidRequest: The body has no payloads.
            PayloadUnreadable: One of them cannot be decrypted.
            ServerBusy: Too many other bodies are being read.
            HTTPException: The body is too large (413), or did not come in time (408).
        """
        return await self._respond(request, self._codec.decode)

    async def encode(self, request: Request) -> Response:
        """Encrypts the payloads of the body; raises the same errors as ``decode``."""
        return await self._respond(request, self._codec.encode)

    async def _respond(self, request: Request, convert: Callable[[Sequence[Payload]], Awaitable[list[Payload]]]) -> Response:
        async with self._turns.turn("", announced_bytes(request, MAX_BODY_BYTES)):
            converted = await convert(read_payloads(await read_body(request, MAX_BODY_BYTES)))
            return Response(write_payloads(converted), media_type="application/json", headers={"Cache-Control": "no-store"})
