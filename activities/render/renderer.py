"""Answers the requests in a render child. The fork server loads this module before it forks."""

import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from activities.bucket.records import UploadOptions, bounded_layers, from_wire, to_wire
from activities.errors import SiteLinkError
from activities.render.cutter import Cutter
from activities.render.fonts import faces
from activities.render.heap import return_free_memory, used_bytes
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.pyramid import turn_off_cache, write_sheet
from activities.render.raster import PDFIUM_VERSION, REVISION, PixelBuffer, draw

_CUTTER = Cutter.find()

KEPT_BYTES = 32 << 20
"""An open document is closed when it holds so much more than after its first page: PDFium keeps what it has read of a document."""


class Renderer:
    """Counts and draws pages. Keeps its document open and one buffer mapped from request to request.

    Args:
        source: The document.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        turn_off_cache()
        self._buffer = PixelBuffer()
        self._pdf: PdfFile | None = None
        self._used_after_first_page: int | None = None

    def check(self) -> None:
        """Reads what a page may need at any later time: a module of the interpreter, and each font.

        Raises:
            OSError: A file cannot be read, so that pages could not be drawn right.
        """
        for path in (os.__file__, *(face.path for face in faces.FACES)):
            Path(path).open("rb").close()

    def answer(self, request: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Returns ``{"result": ...}``, or ``{"error": name of the class, "message": ...}``; for an OSError also ``"errno"``.

        Args:
            request: As ``ChildPool`` makes it.
            files: Descriptors of the files to write, as from ``tilefile.new_files``.
        """
        operations: dict[str, Callable[[dict[str, Any], list[int]], Any]] = {"count": self._count, "tile": self._tile}
        _limit_cpu(request["cpuS"])
        try:
            return {"result": operations[request["operation"]](request, files)}
        except SiteLinkError as error:
            return {"error": error.type, "message": str(error)}
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return {"error": MemoryError.__name__, "message": str(error)}
            return {"error": "OSError", "message": str(error), "errno": error.errno}
        except Exception as error:  # noqa: BLE001 (the worker gets its name, and replaces this child)
            return {"error": type(error).__name__, "message": str(error)}

    def _open(self, request: dict[str, Any], options: UploadOptions) -> PdfFile:
        """The document, opened unless it is open already. A password opens it only for requests that have this password."""
        pdf, password = self._pdf, request["password"]
        if pdf is not None and (pdf.password, pdf.options.layers, pdf.options.markups) != (password, options.layers, options.markups):
            self._close(pdf)
        if self._pdf is None:
            self._pdf = PdfFile(self._source, password, options)
        return self._pdf

    def _close(self, pdf: PdfFile) -> None:
        pdf.close()
        self._pdf = self._used_after_first_page = None

    def _count(self, request: dict[str, Any], _files: list[int]) -> Any:
        options = from_wire(UploadOptions, request["options"])
        return to_wire(measure(self._open(request, options), options, request["maxPages"]))

    def _tile(self, request: dict[str, Any], files: list[int]) -> Any:
        options = from_wire(UploadOptions, request["options"])
        width, height = request["width"], request["height"]
        cutter = None if request["dzsave"] or not Cutter.suits(options) else _CUTTER
        pdf = self._open(request, options)
        began = time.monotonic()
        drawn = draw(pdf, request["number"], width, height, self._buffer, blue_first=cutter is not None)
        notes = (*pdf.contents.notes(request["number"] - 1), *drawn.notes)
        drawn_at = time.monotonic()
        encoding = write_sheet(drawn.pixels, width, height, options, files[0], files[1], cutter)
        took = {"drawS": drawn_at - began, "tileS": time.monotonic() - drawn_at}
        self._bound_kept_memory(pdf)
        engines = {"pdfium": PDFIUM_VERSION, "sitelink-raster": REVISION, **encoding.engine, **faces.VERSIONS}
        told = {"notes": to_wire(notes), "transform": drawn.transform, "layers": to_wire(bounded_layers(drawn.layers))}
        return {"engines": engines, "chroma": encoding.chroma, **told, **took}

    def _bound_kept_memory(self, pdf: PdfFile) -> None:
        """Closes the document if it holds too much; the next page opens it again.

        A document that was written anew stays open: to write it once more for each page would take longer than to draw it.
        """
        used = used_bytes()
        if self._used_after_first_page is None:
            self._used_after_first_page = used
        elif used > self._used_after_first_page + KEPT_BYTES and not pdf.is_written_anew:
            self._close(pdf)
            return_free_memory()


def _limit_cpu(seconds: int) -> None:
    """Makes the kernel end this process by SIGXCPU after ``seconds`` more of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    # Rounded up, because the kernel counts whole seconds.
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
