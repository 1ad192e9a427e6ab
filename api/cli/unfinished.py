"""Remembers which uploads were begun and not completed, so that the same command goes on where it was: after Ctrl-C, or another day.

A small file for each of them is in ``$XDG_STATE_HOME/sitelink``, by default ``~/.local/state/sitelink``. It holds only the
``Idempotency-Key`` of the upload. Its name is a digest of the server, the plan, the file and the options: a file that has changed is
another file. https://specifications.freedesktop.org/basedir-spec/latest/
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

FORGOTTEN_AFTER_S = 8 * 86_400.0
"""The server forgets an upload that was begun after 7 days."""


class UnfinishedUpload:
    """The memory of one upload.

    Args:
        path: The file that holds the upload's key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.key = ""
        with suppress(OSError, ValueError):
            self.key = str(uuid.UUID(path.read_text()))
        self.was_begun = bool(self.key)
        """Whether an earlier command began the upload."""
        if not self.was_begun:
            self.renew()

    @classmethod
    def of(cls, environ: Mapping[str, str], url: str, plan: object, file: Path, options: Mapping[str, int | str]) -> Self:
        """The memory of the upload of a file.

        Args:
            environ: Says where the memory is.
            url: The server.
            plan: The plan of the upload.
            file: The file, which exists.
            options: The options of the upload.
        """
        home = environ.get("HOME") or str(Path.home())
        directory = Path(environ.get("XDG_STATE_HOME") or f"{home}/.local/state", "sitelink")
        status = file.stat()
        facts = [url, str(plan), os.fsdecode(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino, dict(options)]
        _forget_old(directory)
        return cls(directory / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.upload")

    def renew(self) -> None:
        """Gives the upload a new key. Where nothing can be written, the key is good for this command only."""
        self.key, self.was_begun = str(uuid.uuid4()), False
        part = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_text(self.key)
            part.rename(self._path)

    def forget(self) -> None:
        """Ends the memory: the upload is accepted or given up."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _forget_old(directory: Path) -> None:
    with suppress(OSError):
        for path in directory.iterdir():
            if time.time() - path.stat().st_mtime > FORGOTTEN_AFTER_S:
                path.unlink()
