"""The settings of a worker process."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from temporalio.common import WorkerDeploymentVersion

from activities.bucket.dzi import LARGEST_SIDE_PX, MOST_TILES
from activities.bucket.forecast import PRICE_CLASS_A, PRICE_CLASS_B, SECONDS_PER_MEGAPIXEL, Forecaster
from activities.bucket.location import BucketSettings
from activities.bucket.weight import MOST_PAGES
from activities.environment import amount, choice, whole_number
from activities.limits import DocumentLimits
from activities.render.confinement import must_confine
from activities.webhooks.settings import WebhookSettings

FIRST_USER = 65_100
"""No user of a usual system: https://www.debian.org/doc/debian-policy/ch-opersys.html#uid-and-gid-classes reserves it."""


def deployment_version(environ: Mapping[str, str]) -> WorkerDeploymentVersion | None:
    """The version that the workflow worker has in Temporal's Worker Versioning; None if it is not versioned.

    Temporal's Worker Controller for Kubernetes sets the same two variables: https://github.com/temporalio/temporal-worker-controller

    Raises:
        ValueError: Only one of the two is set, or Temporal would refuse one.
    """
    name = environ.get("TEMPORAL_DEPLOYMENT_NAME") or ""
    build = environ.get("TEMPORAL_WORKER_BUILD_ID") or ""
    if not name and not build:
        return None
    if not name or not build:
        given, missing = ("DEPLOYMENT_NAME", "WORKER_BUILD_ID") if name else ("WORKER_BUILD_ID", "DEPLOYMENT_NAME")
        msg = f"TEMPORAL_{given} is set, but TEMPORAL_{missing} is not; a versioned worker needs both"
        raise ValueError(msg)
    if not re.fullmatch(r"(?!__)[A-Za-z0-9_/-]{1,100}", name):
        msg = f"TEMPORAL_DEPLOYMENT_NAME is {name!r}; at most 100 letters, digits, and _ - / are wanted"
        raise ValueError(msg)
    if not re.fullmatch(r"(?!__)[A-Za-z0-9_./+-]{1,100}", build):
        msg = f"TEMPORAL_WORKER_BUILD_ID is {build!r}; at most 100 letters, digits, and _ - / . + are wanted"
        raise ValueError(msg)
    return WorkerDeploymentVersion(name, build)


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of one worker process.

    Args:
        bucket: The bucket.
        scratch_directory: The scratch. Only this worker process may use it.
        scratch_limit_bytes: No further page is tiled while the tiles on the scratch take more.
        render_slots: Render children at once.
        render_memory_bytes: Memory limit of a render child.
        render_cpu_s: CPU seconds that one page may take.
        render_wall_s: Seconds that one page may take.
        upload_slots: Sheets that may be uploaded at once.
        bucket_threads: Requests to the bucket at once, at most.
        limits: The most that a document may have.
        dzsave: Whether libvips cuts the tiles, also where the cutter could.
        first_user: The uid and gid of the first render slot's children, as ``ChildPool`` takes it.
        must_confine: As ``confinement.must_confine`` says.
        forecaster: Makes forecasts by the render slots, the speed and the prices.
    """

    bucket: BucketSettings
    scratch_directory: Path
    scratch_limit_bytes: int
    render_slots: int
    render_memory_bytes: int
    render_cpu_s: int
    render_wall_s: int
    upload_slots: int
    bucket_threads: int
    limits: DocumentLimits
    dzsave: bool
    first_user: int | None
    must_confine: bool
    forecaster: Forecaster

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the settings from the environment.

        Raises:
            ValueError: A value cannot be used. The message names its variable.
        """
        data_directory = Path(environ.get("SITELINK_DATA_DIR") or "var")
        bucket = BucketSettings.from_env(environ)
        render_slots = whole_number(environ, "SITELINK_RENDER_SLOTS", len(os.sched_getaffinity(0)))
        return cls(
            bucket=bucket,
            scratch_directory=Path(environ.get("SITELINK_SCRATCH_DIR") or data_directory / "scratch").absolute(),
            scratch_limit_bytes=whole_number(environ, "SITELINK_SCRATCH_LIMIT_BYTES", 8 << 30),
            render_slots=render_slots,
            render_memory_bytes=whole_number(environ, "SITELINK_RENDER_MEMORY_BYTES", 3 << 30),
            render_cpu_s=whole_number(environ, "SITELINK_RENDER_CPU_S", 120),
            render_wall_s=whole_number(environ, "SITELINK_RENDER_WALL_S", 180),
            upload_slots=whole_number(environ, "SITELINK_UPLOAD_SLOTS", 64),
            bucket_threads=whole_number(environ, "SITELINK_BUCKET_THREADS", 256 if bucket.is_s3 else 2),
            limits=DocumentLimits(
                pages=whole_number(environ, "SITELINK_MAX_PAGES", DocumentLimits.pages, high=MOST_PAGES),
                side_px=whole_number(environ, "SITELINK_MAX_SIDE_PX", DocumentLimits.side_px, high=LARGEST_SIDE_PX),
                sheet_tiles=whole_number(environ, "SITELINK_MAX_SHEET_TILES", DocumentLimits.sheet_tiles, high=MOST_TILES),
                upload_tiles=whole_number(environ, "SITELINK_MAX_UPLOAD_TILES", DocumentLimits.upload_tiles),
            ),
            dzsave=choice(environ, "SITELINK_CUTTER", ("auto", "dzsave")) == "dzsave",
            first_user=whole_number(environ, "SITELINK_RENDER_USER", FIRST_USER, low=0) or None if os.geteuid() == 0 else None,
            must_confine=must_confine(environ),
            forecaster=Forecaster(
                render_slots,
                seconds_per_megapixel=amount(environ, "SITELINK_SECONDS_PER_MEGAPIXEL", SECONDS_PER_MEGAPIXEL),
                price_class_a=amount(environ, "SITELINK_PRICE_CLASS_A", PRICE_CLASS_A),
                price_class_b=amount(environ, "SITELINK_PRICE_CLASS_B", PRICE_CLASS_B),
            ),
        )


@dataclass(frozen=True)
class WebhookRoleSettings:
    """The settings of a worker process that sends webhooks.

    Args:
        bucket: The bucket.
        webhooks: How webhooks are signed, and where they may be sent.
    """

    bucket: BucketSettings
    webhooks: WebhookSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the settings from the environment.

        Raises:
            ValueError: There is no secret, or a value cannot be used. The message names the variable.
        """
        webhooks = WebhookSettings.from_env(environ)
        if not webhooks.secrets:
            msg = "SITELINK_WEBHOOK_SECRET is not set: webhooks cannot be signed"
            raise ValueError(msg)
        return cls(BucketSettings.from_env(environ), webhooks)
