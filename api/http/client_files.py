"""Serves the client module, which pages of any origin may load."""

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # The names carry no version: a browser asks each time and, by the ETag, loads only what is new. So no page mixes two releases.
    "Cache-Control": "public, no-cache",
}


class ClientFiles(StaticFiles):
    """Files that hold nothing of anybody, so every page may load them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file with headers that let pages of other origins load it."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
