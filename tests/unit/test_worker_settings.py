"""What a worker process is told."""

import pytest

from worker.settings import WorkerSettings

S3 = {"SITELINK_BUCKET": "s3://plans", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize(
    ("environ", "threads"), [({}, 2), (S3, 16), ({"SITELINK_BUCKET_THREADS": "5"}, 5), ({**S3, "SITELINK_BUCKET_THREADS": "5"}, 5)]
)
def test_requests_at_once_suit_the_bucket(environ: dict[str, str], threads: int) -> None:
    """A directory is cheapest with few, an S3 server with many; one setting bounds both."""
    assert WorkerSettings.from_env(environ).bucket_threads == threads


def test_no_secret_is_shown() -> None:
    """Settings may be logged."""
    assert "hush" not in repr(WorkerSettings.from_env(S3))
