"""Packages of npm that tests need, as a lock file names them."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from deploy.programs import CACHE

INSTALL_LIMIT_S = 600


class NoPackages(Exception):
    """The packages cannot be had; the message says why."""


def installed_packages(source: Path, name: str) -> Path:
    """The directory of the locked packages, which npm installs once into the cache.

    Args:
        source: Has ``package.json`` and ``package-lock.json``.
        name: What the packages are for, as a part of the directory's name.

    Raises:
        NoPackages: There is no Node.js or npm, or npm failed.
    """
    lock = (source / "package-lock.json").read_bytes()
    directory = CACHE.parent / f"{name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if directory.is_dir():
        return directory
    if not shutil.which("node") or not shutil.which("npm"):
        msg = f"the packages of {name} need Node.js and npm, and they are not here"
        raise NoPackages(msg)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        draft = Path(temporary) / "packages"
        draft.mkdir()
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, draft)
        # The packages contain their programs, so no install script has to run.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        npm = subprocess.run(command, cwd=draft, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        if npm.returncode != 0:
            msg = f"npm could not install the packages of {name}:\n{npm.stderr[-2000:]}"
            raise NoPackages(msg)
        if not directory.is_dir():
            draft.rename(directory)
    return directory
