"""A fork server whose children are taken over: each runs the Python code that it finds in the place of its document.

The code finds the names in ``Hostile.answer``. It sets ``answer``, or writes into the child's socket itself. The child is confined as
any other.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from activities.bucket.dzi import Pyramid
from activities.render import confine, forkserver
from activities.render.tilefile import write_tile_file
from tests.resources.jpeg import outline

CHANNEL = 3
PAGE = {
    "number": 1,
    "title": "A-101",
    "width": 300,
    "height": 200,
    "dpi": 300,
    "scaled": False,
    "reason": None,
    "detail": None,
    "notes": [],
}
TILED = {
    "engines": {"pdfium": "1"},
    "chroma": "4:4:4",
    "notes": [],
    "transform": [1.0, 0, 0, -1.0, 0, 200.0],
    "layers": [],
    "drawS": 0.1,
    "tileS": 0,
}


class Hostile:
    """In the place of a ``Renderer``."""

    def __init__(self, source: Path) -> None:
        self._code = source.read_text()
        self._state: dict[str, Any] = {}

    def answer(self, request: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Does what the document says; by default it answers well."""
        if request["operation"] == "tile" and files:
            leave_sheet(request, files)
        scope: dict[str, Any] = {
            "answer": {"result": TILED if request["operation"] == "tile" else {"pages": [PAGE], "forecast": None}},
            "request": request,
            "files": files,
            "page": lambda **fields: {"result": {"pages": [PAGE | fields], "forecast": None}},
            "tiled": lambda **fields: {"result": TILED | fields},
            "say": lambda text: os.write(CHANNEL, text.encode()),
            "state": self._state,
            "sleep": time.sleep,
            "json": json,
            "os": os,
        }
        exec(self._code, scope)  # noqa: S102 (the test's own code)
        answer: dict[str, Any] = scope["answer"]
        return answer


def leave_sheet(request: dict[str, Any], files: list[int]) -> None:
    """Leaves the files of a whole sheet."""
    pyramid = Pyramid(request["width"], request["height"])
    with open(files[0], "wb", closefd=False) as file:
        write_tile_file(file, ((tile, outline(*pyramid.tile_rectangle(*tile)[2:])) for tile in pyramid.tiles()), ())
    os.write(files[1], outline(300, 200))


if __name__ == "__main__":
    confine.die_with_parent(int(sys.argv[2]))
    forkserver._Server(socket.socket(fileno=int(sys.argv[1])), Hostile).serve()
