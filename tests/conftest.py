"""What every kind of test may ask for: a Temporal server, the whole stack, a free port."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.workermanage import WorkerController

from deploy import process
from deploy.programs import CACHE
from deploy.stack import Stack
from deploy.temporal import TemporalServer, installed_binary
from tests.missing import miss
from tests.servers import docker, s3
from tests.servers.versitygw import installed_s3_server
from tests.unit.api_fakes import STACK_CODEC_KEY

# A machine may be slow: only a wrong answer fails an example.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


UNIT = Path(__file__).parent / "unit"


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    return process.free_port()


@pytest.fixture(scope="session")
def temporal_binary() -> Path:
    """The program of the Temporal server. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    said: list[str] = []
    binary = installed_binary(CACHE, say=said.append)
    if binary is None:
        miss(" ".join([*said, "No Temporal server here; `make test` gets one first."]))
    return binary


@pytest.fixture(scope="session")
def temporal_server(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A Temporal server with its own database, for the whole run."""
    server = TemporalServer(temporal_binary, tmp_path_factory.mktemp("temporal") / "temporal.db")
    server.start()
    yield server
    server.stop()


@contextmanager
def _stacks(directories: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    with ExitStack() as stacks:

        def start(dynamic_config: Mapping[str, str] | None = None, **settings: str) -> Stack:
            stack = _stack(directories.mktemp("stack"), settings, dynamic_config)
            stack.start()
            stacks.callback(stack.stop)
            return stack

        yield start


@pytest.fixture
def new_stack(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Starts whole stacks, each with its own data directory and free ports; the test may kill their processes.

    Settings for the processes may be given by name, as in ``new_stack(SITELINK_RENDER_SLOTS="1")``, and before them those of the Temporal
    server, as ``Stack`` takes them.
    """
    with _stacks(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def new_stack_of_module(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """``new_stack``, for stacks that the tests of a module share."""
    with _stacks(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def new_stack_of_session(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """``new_stack``, for stacks that last for the whole run."""
    with _stacks(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def stack(new_stack_of_session: Callable[..., Stack]) -> Stack:
    """One whole stack, with every route, for the tests that kill nothing."""
    return new_stack_of_session(SITELINK_EVENTS_SECRET="0123456789abcdef", SITELINK_CODEC_KEY=STACK_CODEC_KEY)  # noqa: S106 - of a test


def _stack(data_dir: Path, settings: Mapping[str, str], dynamic_config: Mapping[str, str] | None) -> Stack:
    # The settings of whoever runs the tests are not theirs.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))}
    return Stack(data_dir, environ={**environ, **settings}, port=0, temporal_ports=(0, 0), dynamic_config=dynamic_config)


@pytest.fixture(scope="session")
def s3_server_binary() -> Path:
    """The program of the S3 server. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    binary = installed_s3_server(CACHE)
    if binary is None:
        miss("No S3 server here; `make test` gets one first.")
    return binary


@pytest.fixture(scope="session")
def s3_server(s3_server_binary: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[s3.TestServer]:
    """A real S3 server for the whole run, in a container when a Docker engine answers."""
    with s3.running(s3_server_binary, tmp_path_factory.mktemp("s3")) as server:
        # Under pytest-xdist this process is a worker, and what it puts there reaches the one that prints the summary.
        getattr(request.config, "workeroutput", {})["s3_server"] = server.how
        request.config.stash[S3_SERVER_RUNS_AS] = {server.how}
        yield server


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.Engine]:
    """A Docker engine. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    try:
        with docker.running_engine(say=lambda _: None) as engine:
            yield engine
    except docker.NoEngine as error:
        miss(str(error))


@pytest.fixture(scope="session")
def sitelink_image(engine: docker.Engine) -> str:
    """The id of SiteLink's image, built of this checkout. If Debian or the packages cannot be had, a test run on CI fails."""
    try:
        return engine.sitelink_image()
    except docker.NoEngine as error:
        miss(str(error))


S3_SERVER_RUNS_AS = pytest.StashKey[set[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Keeps what an ended worker of pytest-xdist says about its S3 server."""
    if how := getattr(node, "workeroutput", {}).get("s3_server"):
        node.config.stash.setdefault(S3_SERVER_RUNS_AS, set()).add(how)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says which way the S3 server ran."""
    for how in sorted(config.stash.get(S3_SERVER_RUNS_AS, None) or ()):
        terminalreporter.write_line(f"The S3 server ran as a {how}.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share something costly run in one worker of pytest-xdist (``--dist loadgroup``), so that it is there once.

    Unit tests come last: they are short, so that no core waits for a long test at the end.
    """
    for item in items:
        for shared in SHARED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(shared))
    items.sort(key=lambda item: item.path.is_relative_to(UNIT))


SHARED = frozenset({"stack", "site", "chaos_stack", "guarded", "sealed_stack", "engine"})
"""Fixtures that are a whole stack, or as costly."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many tests run at once with ``-n auto``: more than there are cores, for most of the time a test waits for its servers."""
    return 2 * len(os.sched_getaffinity(0))
