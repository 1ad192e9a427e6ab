"""The settings of a worker process."""

import pytest
from temporalio.common import WorkerDeploymentVersion

from activities.bucket.forecast import Forecaster
from worker.settings import WorkerSettings, deployment_version

S3 = {"SITELINK_BUCKET": "s3://plans", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize(
    ("environ", "threads"), [({}, 2), (S3, 256), ({"SITELINK_BUCKET_THREADS": "5"}, 5), ({**S3, "SITELINK_BUCKET_THREADS": "5"}, 5)]
)
def test_requests_at_once_suit_the_bucket(environ: dict[str, str], threads: int) -> None:
    """A directory is cheapest with few requests at once, an S3 server with many. One setting sets the number for both."""
    assert WorkerSettings.from_env(environ).bucket_threads == threads


def test_no_secret_is_shown() -> None:
    """Settings may be logged."""
    assert "hush" not in repr(WorkerSettings.from_env(S3))


def test_forecasts_rest_on_slots_and_list_prices_unless_told() -> None:
    """R2's list price, and the host's own render slots."""
    settings = WorkerSettings.from_env({"SITELINK_RENDER_SLOTS": "3"})
    assert settings.forecaster == Forecaster(3, price_class_a=4.50, price_class_b=0.36)
    told = {"SITELINK_PRICE_CLASS_A": "5", "SITELINK_PRICE_CLASS_B": "0", "SITELINK_SECONDS_PER_MEGAPIXEL": ".5"}
    assert WorkerSettings.from_env({"SITELINK_RENDER_SLOTS": "3", **told}).forecaster == Forecaster(3, 0.5, 5, 0)


@pytest.mark.parametrize("text", ["free", "-1", "nan", "inf"])
def test_a_price_that_cannot_be_used_is_refused_by_name(text: str) -> None:
    """The setting is refused at the start, before any forecast uses it."""
    with pytest.raises(ValueError, match=f"SITELINK_PRICE_CLASS_A is '{text}'"):
        WorkerSettings.from_env({"SITELINK_PRICE_CLASS_A": text})


def test_a_version_has_a_deployment_and_a_build() -> None:
    """Without both, the workflow worker has no version, as always; with one of them, it does not start."""
    assert deployment_version({}) is None
    assert deployment_version({"TEMPORAL_DEPLOYMENT_NAME": "", "TEMPORAL_WORKER_BUILD_ID": ""}) is None
    both = {"TEMPORAL_DEPLOYMENT_NAME": "plans/sitelink", "TEMPORAL_WORKER_BUILD_ID": "0.2.0+a1b2c3"}
    assert deployment_version(both) == WorkerDeploymentVersion("plans/sitelink", "0.2.0+a1b2c3")
    for name in both:
        with pytest.raises(ValueError, match=f"but {name} is not"):
            deployment_version({**both, name: ""})


@pytest.mark.parametrize("text", ["two words", "it's", "__internal", "a:b", "x" * 101])
@pytest.mark.parametrize("name", ["TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID"])
def test_a_version_that_temporal_would_refuse_is_refused_by_name(name: str, text: str) -> None:
    """Temporal would refuse it only at the first poll, in the log."""
    with pytest.raises(ValueError, match=f"{name} is "):
        deployment_version({"TEMPORAL_DEPLOYMENT_NAME": "a", "TEMPORAL_WORKER_BUILD_ID": "b", name: text})
