"""The metrics of a process: those of Temporal's library in Prometheus's form, and the address that answers."""

import asyncio
import time
from datetime import timedelta

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from activities.telemetry import STANDSTILL_LIMIT_S, Health, MetricsSettings, TemporalMetrics, new_registry, serve, watch_event_loop
from tests.waiting import until_async


def test_temporal_metrics_are_summed_up() -> None:
    """Counters add up, of gauges the last value counts, histograms have cumulative buckets; each set of labels for itself."""
    registry = CollectorRegistry()
    meter = TemporalMetrics(registry).runtime.metric_meter
    counter, gauge = meter.create_counter("made", "Things made"), meter.create_gauge("size", "A size")
    seconds = meter.create_histogram_timedelta("took", "Time taken")
    for amount in (2, 3):
        counter.add(amount, {"kind": "a"})
        gauge.set(amount)
        seconds.record(timedelta(seconds=amount))
    assert registry.get_sample_value("made_total", {"kind": "a"}) == 5
    counter.add(1, {"kind": "b"})
    assert registry.get_sample_value("made_total", {"kind": "a"}) == 5
    assert registry.get_sample_value("made_total", {"kind": "b"}) == 1
    assert registry.get_sample_value("size") == 3
    assert registry.get_sample_value("took_seconds_sum") == 5
    counts = {bound: registry.get_sample_value("took_seconds_bucket", {"le": bound}) for bound in ("1.0", "2.5", "5.0", "+Inf")}
    assert counts == {"1.0": 0, "2.5": 1, "5.0": 2, "+Inf": 2}


def test_a_process_answers_prometheus_at_its_port() -> None:
    """A free port is taken and told. The answer parses, and has the process's role and memory."""
    registry = new_registry("tile")
    TemporalMetrics(registry).runtime.metric_meter.create_counter("made", "Things made").add(1)
    address = serve(registry, MetricsSettings(port=0))
    assert address is not None
    answer = httpx2.get(address, timeout=60, trust_env=False)
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["sitelink_process"].samples[0].labels == {"role": "tile"}
    assert families["process_resident_memory_bytes"].samples[0].value > 1 << 20
    assert families["made"].samples[0].value == 1


def test_a_process_without_a_port_answers_nobody() -> None:
    """No port is open unless it is set."""
    assert MetricsSettings.from_env({}) == MetricsSettings("127.0.0.1", None)
    assert serve(new_registry("tile"), MetricsSettings.from_env({"SITELINK_METRICS_PORT": ""})) is None


def test_a_taken_port_is_refused_by_the_name_of_its_setting() -> None:
    """The message says which variables to change."""
    address = serve(CollectorRegistry(), MetricsSettings(port=0))
    assert address is not None
    port = address.removesuffix("/metrics").rpartition(":")[2]
    with pytest.raises(ValueError, match=f"SITELINK_METRICS_PORT {port}"):
        serve(CollectorRegistry(), MetricsSettings.from_env({"SITELINK_METRICS_PORT": port}))


@pytest.mark.parametrize("text", ["70000", "-1", "x"])
def test_a_port_that_cannot_be_used_is_refused(text: str) -> None:
    """Before the process starts its work."""
    with pytest.raises(ValueError, match="SITELINK_METRICS_PORT"):
        MetricsSettings.from_env({"SITELINK_METRICS_PORT": text})


async def test_a_worker_says_whether_it_lives_and_works() -> None:
    """``/livez`` unless the event loop stands still; ``/readyz`` from the start of the work until the request to stop; else metrics."""
    standstill_s = 0.0
    health, stop = Health(lambda: standstill_s), asyncio.Event()
    address = serve(new_registry("tile"), MetricsSettings(port=0), health)
    assert address is not None
    base = address.removesuffix("/metrics")

    def answers() -> tuple[int, int]:
        livez, readyz = (httpx2.get(base + path, timeout=60, trust_env=False).status_code for path in ("/livez", "/readyz"))
        return livez, readyz

    assert answers() == (200, 503)
    work = asyncio.create_task(health.ready_until(stop))
    await asyncio.sleep(0)
    assert answers() == (200, 200)
    standstill_s = STANDSTILL_LIMIT_S + 1
    assert answers() == (503, 503)
    standstill_s = 1
    assert "sitelink_process" in httpx2.get(address, timeout=60, trust_env=False).text
    stop.set()
    await work
    assert answers() == (200, 503)


async def test_an_event_loop_that_stands_still_is_told() -> None:
    """The metric grows while the loop is blocked, and falls when the loop moves again."""

    def standstill_s() -> float:
        return registry.get_sample_value("sitelink_event_loop_standstill_seconds") or 0.0

    registry = CollectorRegistry()
    watch_event_loop(registry)
    block = time.sleep
    block(1.5)
    blocked_s = standstill_s()
    assert blocked_s >= 1.5
    await until_async(lambda: standstill_s() < blocked_s)
