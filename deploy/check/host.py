"""Looks at this machine: scratch, confinement of render children, fonts, cutter, and open files."""

import asyncio
import fcntl
import os
import resource
import secrets
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from activities.errors import RenderFault
from activities.render import cgroup, confine
from activities.render.child import ChildLimits, ChildPool
from activities.render.compile import library_path
from activities.render.confinement import check_decoder
from deploy.check.bucket import missing_directory
from deploy.check.table import Finding, Grade
from worker.app import check_confinement
from worker.settings import WorkerSettings

LAYER_ADVICE = {
    confine.OWN_USER: "run the worker as root, or leave it: all render children then have the worker's user",
    confine.NAMESPACES: "allow user namespaces: sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns",
    confine.LANDLOCK: "use a kernel since 5.13 that is booted with lsm=landlock,…",
    confine.SECCOMP: "let the container's profile allow seccomp, and use x86-64 or arm64",
    cgroup.LAYER: "let the worker make groups below its own: under systemd, Delegate=memory pids; in a container, writable cgroups",
}


def check_host(settings: WorkerSettings) -> list[Finding]:
    """What a tile worker finds on this machine."""
    return [_scratch(settings), *asyncio.run(_confinement(settings)), _fonts(), _cutter(settings)]


def check_open_files(max_connections: int) -> list[Finding]:
    """Whether the API may have as many connections open as its setting says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    check = "open files"
    if hard != resource.RLIM_INFINITY and hard < max_connections:
        advice = "raise the hard limit (ulimit -Hn, LimitNOFILE), or lower SITELINK_MAX_CONNECTIONS"
        return [Finding(check, Grade.NOTE, f"limit {hard:,}, SITELINK_MAX_CONNECTIONS is {max_connections:,}", advice)]
    return [Finding(check, Grade.OK, f"{max_connections:,} connections are possible")]


def _scratch(settings: WorkerSettings) -> Finding:
    directory, check = settings.scratch_directory, "scratch"
    if not_there := missing_directory(check, directory, "SITELINK_SCRATCH_DIR"):
        return not_there
    probe = directory / f"check-{secrets.token_hex(8)}"
    try:
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
        free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        return Finding(check, Grade.WRONG, f"{directory}: {error.strerror}", "let this user write it, or correct SITELINK_SCRATCH_DIR")
    state = "a tile worker uses it" if _is_used(directory / "lock") else "no tile worker uses it now"
    facts = f"{directory}: {free_bytes:,} bytes free, limit {settings.scratch_limit_bytes:,}; {state}"
    if free_bytes < settings.scratch_limit_bytes:
        return Finding(check, Grade.NOTE, facts, "a larger disk, or a lower SITELINK_SCRATCH_LIMIT_BYTES: tiles must fit beside the PDFs")
    return Finding(check, Grade.OK, facts)


def _is_used(lock: Path) -> bool:
    with suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def _confinement(settings: WorkerSettings) -> list[Finding]:
    """As the tile worker tries it at its start, with one child."""
    check = "render children"
    limits = ChildLimits(memory_bytes=settings.render_memory_bytes, cpu_s=settings.render_cpu_s, wall_s=settings.render_wall_s)
    children = ChildPool(1, limits, first_user=settings.first_user)
    try:
        held = await check_confinement(children, must_confine=settings.must_confine)
        await asyncio.to_thread(check_decoder, must_confine=settings.must_confine)
    except RenderFault as fault:
        advice = "let render children read the program's folders and libraries: no folder above them may be closed to other users"
        return [Finding(check, Grade.WRONG, f"a child cannot work: {fault}", advice)]
    except ValueError as error:
        return [Finding(check, Grade.SETTING, str(error), f"{LAYER_ADVICE[confine.LANDLOCK]}; {LAYER_ADVICE[confine.SECCOMP]}")]
    finally:
        await children.close()
    findings = [Finding(check, Grade.OK, f"confined by {', '.join(held) or 'nothing'}")]
    missing = [name for name in confine.LAYERS if name not in held]
    return findings + [Finding(check, Grade.NOTE, f"not confined by {name}", LAYER_ADVICE[name]) for name in missing]


def _fonts() -> Finding:
    check, advice = "fonts", "install what uv.lock names: deploy/setup.sh"
    try:
        from activities.render.fonts.faces import FACES, VERSIONS
    except metadata.PackageNotFoundError as error:
        return Finding(check, Grade.WRONG, f"the package {error.name} is missing", advice)
    if missing := [face.family for face in FACES if not os.access(face.path, os.R_OK)]:
        return Finding(check, Grade.WRONG, f"not readable: {', '.join(missing)}", advice)
    return Finding(check, Grade.OK, f"{len(FACES)} files of {len(VERSIONS)} packages")


def _cutter(settings: WorkerSettings) -> Finding:
    if settings.dzsave:
        return Finding("cutter", Grade.OK, "libvips, as SITELINK_CUTTER says")
    if not library_path().exists():
        facts = "not compiled: libvips cuts the tiles, which takes five times the CPU"
        return Finding(
            "cutter", Grade.NOTE, facts, "install a C compiler (Debian: gcc libc6-dev), then python -m activities.render.compile"
        )
    return Finding("cutter", Grade.OK, "compiled")
