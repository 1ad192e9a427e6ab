"""The health check of a container, against real servers."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from activities.telemetry import STANDSTILL_LIMIT_S, Health, MetricsSettings, new_registry, serve
from deploy.health import health
from tests.servers.recorder import Answer, Recorder, Request, recording


def served(registry: CollectorRegistry, standstill_s: float | None = None) -> dict[str, str]:
    """The environment of a process with these metrics, which is told to listen on all addresses."""
    lives = None if standstill_s is None else Health(lambda: standstill_s)
    address = serve(registry, MetricsSettings("127.0.0.1", 0), lives)
    assert address is not None
    return {"SITELINK_METRICS_PORT": address.removesuffix("/metrics").rpartition(":")[2], "SITELINK_METRICS_HOST": "::"}


def test_a_worker_is_healthy_while_its_event_loop_moves() -> None:
    """Its ``/livez`` decides."""
    assert health(served(new_registry("tile"), 0.5)) is None
    assert "503" in str(health(served(new_registry("tile"), STANDSTILL_LIMIT_S + 1)))


@pytest.fixture
def api() -> Iterator[Recorder]:
    """An API that answers ``/livez`` with 200 and all else with 404."""
    with recording() as recorder:

        def answer(request: Request) -> Answer:
            return Answer(200 if request.path == "/livez" else 404)

        recorder.answer = answer
        yield recorder


def test_an_api_is_healthy_while_it_answers(api: Recorder, free_port: int) -> None:
    """It is asked at its own port, and at that port only when the metrics say that the process is an API."""
    environ = served(new_registry("api"))
    assert health({**environ, "SITELINK_PORT": api.url.rpartition(":")[2]}) is None
    assert [request.path for request in api.requests] == ["/livez"]
    assert "refused" in str(health({**environ, "SITELINK_PORT": str(free_port)}))


def test_a_process_that_does_not_answer_is_not_healthy(api: Recorder, free_port: int) -> None:
    """Nobody listens; another program listens; or nobody can know where to ask."""
    assert "refused" in str(health({"SITELINK_METRICS_PORT": str(free_port)}))
    assert "404" in str(health({"SITELINK_METRICS_PORT": api.url.rpartition(":")[2]}))
    assert "another program" in str(health(served(CollectorRegistry())))
    for port in ("", "0"):
        assert "SITELINK_METRICS_PORT" in str(health({"SITELINK_METRICS_PORT": port}))
