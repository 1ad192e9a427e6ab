"""The shape of the code: imports point one way, packages are empty, importing does nothing, every activity is one."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from activities.interface import HousekeepingActivities, LayoutActivities, UploadActivities, WebhookActivities

ROOT = Path(__file__).parents[2]
PACKAGES = ("activities", "workflows", "api", "worker", "deploy")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)

PURE = {"activities.errors", *(f"activities.bucket.{name}" for name in ("keys", "dzi", "records", "changes", "report", "pmtiles"))}
"""No Temporal is loaded here: the command line and the decoder start in a moment."""
LIGHT = PURE | {"temporalio", "activities.interface", "activities.bucket.forecast", "activities.bucket.weight"}
BUCKET = LIGHT | {"activities.bucket"}
HOST = BUCKET | {f"activities.{name}" for name in ("host", "attempt", "threads", "render.attempt", "render.tilefile", "render.pack")}
CONTRACT = PURE | {
    "api.contract",
    "api.access",
    "api.http",
    "api.passwords",
    "api.paths",
    "api.progress.plan",
    "api.r2.events",
    "api.source_prefix",
    "api.uploads",
}
CLI = PURE | {"api.cli", "api.addresses", "api.paths", "activities.environment"}
SERVER_ROOM = BUCKET | {
    *(f"activities.{name}" for name in ("environment", "logs", "program", "sealing", "telemetry", "tracing.settings")),
    "workflows",
    "api",
}
SERVER_ROOM |= {f"activities.webhooks.{name}" for name in ("settings", "signing", "network")}
SERVER_ROOM |= {"starlette", "sse_starlette", "uvicorn", "python_multipart", "prometheus_client"}

MAY_IMPORT: dict[str, set[str]] = {
    "activities.errors": set(),
    "activities.bucket.dzi": set(),
    "activities.bucket.keys": {"activities.bucket.dzi"},
    "activities.bucket.records": {"activities.errors"},
    "activities.bucket.changes": {"activities.bucket.records"},
    "activities.bucket.report": {"activities.bucket.records"},
    "activities.bucket.pmtiles": {"activities.bucket.dzi", "activities.bucket.records"},
    "activities.bucket.forecast": PURE | {"activities.interface"},
    "activities.interface": PURE | {"temporalio"},
    "activities.bucket.location": {"activities.environment"},
    "activities.bucket.store_errors": PURE | {"obstore"},
    "activities.bucket.limiter": set(),
    "activities.bucket.storage": PURE | {*(f"activities.bucket.{name}" for name in ("limiter", "location", "store_errors")), "obstore"},
    "activities.bucket.setup": PURE
    | {*(f"activities.bucket.{name}" for name in ("location", "parts", "store_errors", "storage")), "boto3", "botocore", "mypy_boto3_s3"},
    "activities.bucket.parts": PURE | {"activities.bucket.storage"},
    "activities.bucket.s3_parts": PURE | {f"activities.bucket.{name}" for name in ("location", "parts", "setup")},
    "activities.bucket.uploads": PURE | {"activities.bucket.storage", "activities.bucket.store_errors"},
    "activities.bucket.listing": PURE | {"activities.bucket.storage"},
    "activities.bucket.packed": PURE | {"activities.bucket.storage"},
    "activities.bucket.verify": PURE
    | {*(f"activities.bucket.{name}" for name in ("storage", "listing", "packed")), "activities.render.decoder"},
    "activities.bucket.weight": PURE | {"activities.interface"},
    "activities.bucket.*": BUCKET,
    "activities.render.process": set(),
    "activities.render.decoder": {"activities.bucket.dzi", "activities.errors", "activities.render.cgroup", "activities.render.process"},
    "activities.render.decode": {
        *(f"activities.render.{name}" for name in ("cgroup", "confine", "decoder", "memorylimit")),
        "activities.bucket.dzi",
        "pyvips",
    },
    "activities.render.tilefile": LIGHT,
    "activities.render.pack": LIGHT | {"activities.render.tilefile"},
    "activities.render.compile": set(),
    "activities.render.cutter": PURE | {"activities.render.compile"},
    "activities.render.passwords": {"pikepdf", "pypdfium2"},
    "activities.render.structure": {"activities.render.passwords", "pikepdf"},
    "activities.render.strings": {"pypdfium2"},
    "activities.render.titles": {"activities.render.strings", "pypdfium2"},
    "activities.render.annotations.handles": {"pypdfium2"},
    "activities.render.annotations.pen": set(),
    "activities.render.annotations.entries": {"activities.render.annotations.pen", "pikepdf"},
    "activities.render.annotations.appearance": {*(f"activities.render.annotations.{name}" for name in ("entries", "pen")), "pikepdf"},
    "activities.render.annotations.*": LIGHT
    | {*(f"activities.render.{name}" for name in ("annotations", "objects", "strings")), "pypdfium2", "pikepdf"},
    "activities.render.objects.reader": {"activities.render.passwords", "pikepdf"},
    "activities.render.objects.*": PURE | {*(f"activities.render.{name}" for name in ("objects", "titles")), "pikepdf"},
    "activities.render.fonts.faces": {"pypdfium2"},
    "activities.render.fonts.mapper": {"activities.render.fonts.faces", "pypdfium2"},
    "activities.render.fonts.*": LIGHT
    | {*(f"activities.render.{name}" for name in ("fonts", "passwords", "strings", "annotations.handles")), "pypdfium2"},
    "activities.render.pdf_file": LIGHT
    | {*(f"activities.render.{name}" for name in ("passwords", "structure", "content", "annotations.page", "objects", "fonts.mapper"))}
    | {"pypdfium2", "pikepdf"},
    "activities.render.content": LIGHT | {"activities.render.objects.reader", "activities.render.passwords", "pikepdf"},
    "activities.render.measure": LIGHT
    | {*(f"activities.render.{name}" for name in ("pdf_file", "structure", "titles", "strings")), "pypdfium2"},
    "activities.render.raster": LIGHT
    | {*(f"activities.render.{name}" for name in ("pdf_file", "annotations.page", "objects", "fonts")), "pypdfium2"},
    "activities.render.pyramid": LIGHT | {"activities.render.tilefile", "activities.render.cutter", "pyvips"},
    "activities.render.renderer": LIGHT
    | {*(f"activities.render.{name}" for name in ("cutter", "measure", "raster", "pdf_file", "pyramid", "heap", "fonts.faces"))},
    "activities.render.attempt": {"activities.attempt", "activities.errors", "temporalio"},
    "activities.render.answers": LIGHT,
    "activities.render.child": LIGHT
    | {"activities.attempt", *(f"activities.render.{name}" for name in ("answers", "process", "tilefile"))},
    "activities.render.forkserver": {f"activities.render.{name}" for name in ("cgroup", "confine", "memorylimit")},
    "activities.render.cgroup": set(),
    "activities.render.memorylimit": {"activities.render.seccomp"},
    "activities.render.confine": {"activities.render.cgroup", "activities.render.seccomp"},
    "activities.render.seccomp": set(),
    "activities.render.confinement": {
        "activities.environment",
        "activities.errors",
        "activities.render.confine",
        "activities.render.decoder",
    },
    "activities.environment": set(),
    "activities.logs": {"temporalio", "activities.environment"},
    "activities.program": set(),
    "activities.attempt": {"activities.errors", "activities.interface", "temporalio"},
    "activities.sealing": {"activities.errors", "cryptography"},
    "activities.scratch": BUCKET | {"activities.attempt"},
    "activities.threads": {"activities.bucket.keys"},
    "activities.webhooks.settings": {"activities.environment"},
    "activities.webhooks.signing": {"activities.bucket.keys", "standardwebhooks"},
    "activities.webhooks.network": {"activities.errors", "httpcore2"},
    "activities.webhooks.delivery": BUCKET | {"activities.attempt", "activities.webhooks", "httpcore2"},
    "activities.limits": LIGHT,
    "activities.tracing.spans": set(),
    "activities.tracing.settings": {"activities.environment", "activities.tracing", "opentelemetry", "temporalio"},
    "activities.tracing.sdk": {"activities.environment", "activities.logs", "activities.tracing", "opentelemetry", "temporalio"},
    "activities.telemetry": {"activities.environment", "activities.logs", "prometheus_client", "temporalio"},
    "activities.metrics": BUCKET
    | {*(f"activities.{name}" for name in ("render.child", "scratch", "telemetry", "tracing.spans")), "prometheus_client"},
    "activities.host": BUCKET
    | {*(f"activities.{name}" for name in ("limits", "metrics", "render.child", "scratch", "sealing", "threads"))},
    "activities.*": HOST | {"activities.document"},
    "workflows.processing.window": {"activities.bucket.records"},
    "workflows.processing.patches": set(),
    "workflows.messages": {
        *(f"activities.bucket.{name}" for name in ("records", "report")),
        "activities.interface",
        "workflows.processing.window",
    },
    "workflows.processing.progress": {
        "activities.interface",
        *(f"activities.bucket.{name}" for name in ("changes", "records", "forecast", "weight")),
    },
    "workflows.connection": {"activities.environment", "temporalio", "workflows.codec"},
    "workflows.codec": {"activities.environment", "activities.errors", "activities.interface", "cryptography", "google", "temporalio"},
    "workflows.*": LIGHT | {"workflows"},
    "api.addresses": set(),
    "api.progress.recent": set(),
    "api.progress.remaining": {"activities.bucket.records", "activities.bucket.forecast"},
    "api.progress.documents": LIGHT | {"api.paths", "api.progress.status"},
    "api.paths": {"activities.bucket.keys"},
    "api.access.principal": set(),
    "api.access.settings": {"activities.environment", "api.addresses"},
    "api.access.tokens": {"activities.bucket.keys", "activities.errors", "api.access.principal", "jwt"},
    "api.access.public_keys": {"activities.errors", "api.access.tokens", "api.addresses", "jwt", "httpx2"},
    "api.cli.client": CLI | {"httpx2"},
    "api.cli.tokens": CLI | {f"api.access.{name}" for name in ("principal", "settings", "tokens")},
    "api.cli.offline": CLI | BUCKET,
    "api.cli.terminal": CLI | {"rich"},
    "api.cli.*": CLI,
    "api.r2.pull": SERVER_ROOM | {"httpx2"},
    "api.r2.settings": {"activities.environment", "api.addresses"},
    "api.source_prefix": PURE,
    "api.settings": {
        "activities.bucket.location",
        "activities.bucket.records",
        "activities.environment",
        "activities.render.confinement",
        "activities.webhooks.settings",
        "api.addresses",
        "api.access.settings",
        "api.r2.settings",
        "api.source_prefix",
        "workflows.codec",
    },
    "api.contract.schemas": PURE | {"api.access.principal", "api.direct", "api.progress.runs", "api.r2.events"},
    "api.contract.page": {"api.contract.schemas"},
    "api.contract.routes": {"api.access.routes", "api.contract.document", "api.contract.page", "api.http.caching", "starlette"},
    "api.contract.*": CONTRACT,
    "api.http.protocol": {"api.http.problems", "h11", "uvicorn"},
    "api.http.counters": SERVER_ROOM | {"limits"},
    "api.http.limits": SERVER_ROOM | {"limits"},
    "api.http.tracing": SERVER_ROOM | {"activities.tracing.sdk", "opentelemetry"},
    "api.app": SERVER_ROOM | {"opentelemetry"},
    "api.http.digests": SERVER_ROOM | {"http_sf"},
    "api.readiness": SERVER_ROOM | {"activities.render.decoder"},
    "api.__main__": SERVER_ROOM | {"activities.render.confinement"},
    "api.*": SERVER_ROOM,
    "worker.*": {"activities", "workflows", "worker", "temporalio", "prometheus_client"},
}
"""What each module may import besides the standard library: modules, or all below a package. ``deploy`` is free."""

CHILDREN = {
    *(f"activities.render.{name}" for name in ("renderer", "raster", "measure", "pdf_file", "titles", "strings", "structure", "content")),
    *(f"activities.render.{name}" for name in ("passwords", "pyramid", "decode")),
    *(
        module
        for module in MODULES
        if module.startswith(tuple(f"activities.render.{room}." for room in ("annotations", "objects", "fonts")))
    ),
}
NATIVE = {"pypdfium2", "pypdfium2_raw", "pikepdf", "pyvips", *CHILDREN}
"""Loaded in render children and in verify's decoder only."""

MAY_LOAD_NATIVE = {*CHILDREN, *(module for module in MODULES if module.startswith("deploy."))}
"""The children's modules, and what makes the sample plan: it opens no document of anybody."""


def imports(module: str) -> set[str]:
    """What a module imports anywhere, also within functions; ``from a import b`` counts as a.b where that is a module of ours."""
    tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def allowed(module: str) -> set[str] | None:
    """The row of the table for a module: its own, or that of the innermost package that has one; None where everything goes."""
    if module.split(".")[0] == "deploy":
        return None
    packages = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    row = next((MAY_IMPORT[name] for name in (module, *(f"{package}.*" for package in packages)) if name in MAY_IMPORT), None)
    assert row is not None, f"{module} is new: say in this table what it may import"
    return row


def is_within(name: str, row: set[str]) -> bool:
    """Whether a row allows a module: by its name, or by that of a package around it."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in row for depth in range(1, len(parts) + 1))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """Only as the table allows; and nobody imports worker, deploy, tests or the command line from outside."""
    row = allowed(module)
    for name in imports(module):
        package = name.split(".")[0]
        assert package != "tests"
        assert package not in ("worker", "deploy") or module.split(".")[0] in ("worker", "deploy"), name
        assert not is_within(name, {"api.cli"}) or is_within(module, {"api.cli"}), name
        assert row is None or is_within(name, row), f"{module} may not import {name}"


def test_native_libraries_stay_in_render_children() -> None:
    """PDFium, libvips and pikepdf are not imported by what runs in a server or a worker, nor are the modules that load them."""
    offenders = {module: imports(module) & NATIVE for module in MODULES if module not in MAY_LOAD_NATIVE}
    assert {module: names for module, names in offenders.items() if names} == {}


@pytest.mark.parametrize("package", sorted({module.rsplit(".", 1)[0] for module in MODULES}))
def test_packages_are_empty(package: str) -> None:
    """``__init__.py`` exists and says nothing."""
    assert (ROOT / Path(*package.split(".")) / "__init__.py").read_bytes() == b""


SILENT = """
import importlib, os, sys, threading

EVENTS = {"socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.mkdir", "os.remove", "os.rename"}
threads = threading.enumerate()
reads = []

def watch(event, arguments):
    if event in EVENTS or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        raise AssertionError(f"{event} {arguments}")

class WatchedEnvironment(type(os.environ)):
    def __getitem__(self, name):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc"):
            frame = frame.f_back
        if frame.f_globals["__name__"].split(".")[0] in {packages}:
            reads.append((frame.f_globals["__name__"], name))
        return super().__getitem__(name)

os.environ.__class__ = WatchedEnvironment
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for module in {modules}:
    importlib.import_module(module)
    loaded = {native} & set(sys.modules)
    assert not loaded or module.startswith("deploy."), f"{module} loads {loaded}"
assert not reads, reads
assert threading.enumerate() == threads, threading.enumerate()
"""


def test_importing_does_nothing() -> None:
    """No environment read, no file written, no socket, no process, no thread, no output, no native library; none of it needs a variable."""
    modules = [module for module in MODULES if not module.startswith("deploy.") and module not in MAY_LOAD_NATIVE]
    modules += [module for module in MODULES if module.startswith("deploy.")]  # last, for what it loads stays loaded
    code = SILENT.replace("{packages}", repr(PACKAGES)).replace("{modules}", repr(modules)).replace("{native}", repr(NATIVE))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True, cwd=ROOT, env={})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("workflows.")])
def test_workflows_load_no_server_and_no_bucket(module: str) -> None:
    """What the sandbox loads is light."""
    heavy = {"obstore", "boto3", "starlette", "httpx2", "rich", "activities.bucket.storage", *NATIVE}
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("module", ["api.cli.commands", "activities.render.decode"])
def test_what_starts_often_loads_no_temporal(module: str) -> None:
    """Temporal's library takes longer to load than a command or a decoder takes to answer."""
    code = f"import sys, {module}; print('temporalio' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert result.stdout == "False\n"


ABSTRACT = sorted(UploadActivities.__abstractmethods__)
HOUSEKEEPING = sorted(HousekeepingActivities.__abstractmethods__)


def definition(function: object) -> object:
    """What ``@activity.defn`` has left on a function, if it was there."""
    return getattr(function, "__temporal_activity_definition", None)


@pytest.mark.parametrize(
    ("interface", "modules", "name"),
    [
        *((UploadActivities, ("activities.document", "activities.sheets", "activities.reconcile"), name) for name in ABSTRACT),
        *((HousekeepingActivities, ("worker.housekeeping",), name) for name in HOUSEKEEPING),
        *((LayoutActivities, ("worker.layouts",), name) for name in sorted(LayoutActivities.__abstractmethods__)),
        (WebhookActivities, ("activities.webhooks.delivery",), "send_webhook"),
    ],
)
def test_every_activity_is_implemented_as_one(interface: type, modules: tuple[str, ...], name: str) -> None:
    """The override repeats ``@activity.defn``, in one place, under the name that the workflow calls."""
    overrides = [
        vars(kind)[name]
        for module in map(importlib.import_module, modules)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, interface) and kind.__module__ == module.__name__ and name in vars(kind)
    ]
    assert len(overrides) == 1, f"{name} is implemented {len(overrides)} times"
    assert definition(overrides[0]) is not None, f"the override of {name} lacks @activity.defn"
    assert definition(overrides[0]).name == definition(getattr(interface, name)).name == name  # type: ignore[attr-defined]
