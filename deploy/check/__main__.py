"""``python -m deploy.check``: reads the environment as every process does, tries what it names, and prints one table.

It changes nothing: it writes one small object into the bucket, below ``check/``, and removes it. Exit code: 0 if nothing is wrong; 1 if
something that the settings name cannot be used; 2 if a setting is wrong, so that a process would not start.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

from activities.bucket.location import BucketSettings
from activities.logs import TextFormatter
from activities.program import run
from api.access.settings import AccessSettings
from api.r2.settings import PullSettings
from api.settings import ApiSettings
from deploy.check.access import check_public_keys, check_queue
from deploy.check.bucket import check_bucket
from deploy.check.host import check_host, check_open_files
from deploy.check.settings import check_names, check_secrets, check_settings, secret_texts
from deploy.check.table import Finding, exit_code, table
from deploy.check.temporal import check_temporal
from deploy.check.traces import check_traces
from worker.settings import WorkerSettings
from workflows.codec import codec_keys


def check(environ: Mapping[str, str]) -> list[Finding]:
    """All findings. What needs a setting that is wrong is left out; the setting has its own finding."""
    findings = [*check_settings(environ), *check_names(environ), *check_secrets(environ)]
    with suppress(ValueError, OSError):
        findings += asyncio.run(check_temporal(environ, codec_keys(environ)))
    with suppress(ValueError):
        findings += check_bucket(BucketSettings.from_env(environ), _origins(environ))
    with suppress(ValueError):
        findings += check_public_keys(AccessSettings.from_env(environ))
    with suppress(ValueError):
        findings += check_queue(PullSettings.from_env(environ))
    findings += check_traces(environ)
    with suppress(ValueError):
        findings += check_open_files(ApiSettings.from_env(environ).max_connections)
    with suppress(ValueError):
        findings += check_host(WorkerSettings.from_env(environ))
    return findings


def _origins(environ: Mapping[str, str]) -> list[str]:
    with suppress(ValueError):
        access = AccessSettings.from_env(environ)
        return [*(f"https://{host}" for host in access.public_hosts), *access.cors_origins]
    return []


def main() -> int:
    """Prints the table; returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m deploy.check", description="Tries all that the environment names; prints one table."
    ).parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    findings = check(os.environ)
    sys.stdout.write(table(findings, secret_texts(os.environ)))
    return exit_code(findings)


if __name__ == "__main__":
    run(main)
