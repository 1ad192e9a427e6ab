"""What most tests of the API start with; a test file that needs another one has its own of the name."""

from pathlib import Path

import pytest

from activities.bucket.storage import Bucket
from tests.unit.api_fakes import FakeTemporal, make_bucket


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return make_bucket(tmp_path / "bucket")


@pytest.fixture
def temporal() -> FakeTemporal:
    """A Temporal without any run."""
    return FakeTemporal()
