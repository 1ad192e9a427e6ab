"""What most tests of the API start with; a test file that needs another one has its own of the name."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from activities.bucket.storage import Bucket
from api.app import create_app
from api.settings import ApiSettings
from tests.unit.api_fakes import FakeTemporal, make_bucket


@pytest.fixture
def open_path() -> Iterator[Path]:
    """An empty directory that an ordinary user can reach, which ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return make_bucket(tmp_path / "bucket")


@pytest.fixture
def temporal() -> FakeTemporal:
    """A Temporal without any run."""
    return FakeTemporal()


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API with every route that it can have."""
    return create_app(
        bucket,
        temporal.connect,
        ApiSettings.from_env(
            {
                "SITELINK_EVENTS_SECRET": "0123456789abcdef",
                "SITELINK_CODEC_KEY": "0" * 64,
                "SITELINK_WEBHOOK_SECRET": "0123456789abcdef" * 2,
            }
        ),
    )
