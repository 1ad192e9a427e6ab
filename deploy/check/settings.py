"""Reads the settings as every process does, and says which cannot be used."""

import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from activities.bucket.location import BucketSettings, S3Location
from activities.environment import SECRETS, secret, unknown_settings
from activities.logs import log_format
from activities.sealing import PasswordSeal
from activities.telemetry import MetricsSettings
from api.http.limits import RateLimits
from api.r2.settings import PullSettings
from api.settings import ApiSettings
from deploy.check.table import Finding, Grade
from worker.settings import WebhookRoleSettings, WorkerSettings, deployment_version
from workflows.codec import codec_keys
from workflows.connection import connection_settings

ADVICE = "correct it: deploy/README.md, Settings"


def check_settings(environ: Mapping[str, str]) -> list[Finding]:
    """One finding for each thing that keeps processes from starting, with their names; else one for all that would start."""
    names = [name for name in READERS if _is_on(name, environ)]
    failures: dict[str, list[str]] = {}
    for name in names:
        try:
            log_format(environ)
            connection_settings(environ)
            MetricsSettings.from_env(environ)
            READERS[name](environ)
        except (ValueError, OSError) as error:
            failures.setdefault(str(error), []).append(name)
    failed = {name for concerned in failures.values() for name in concerned}
    good = [name for name in names if name not in failed]
    wrong = [Finding("settings", Grade.SETTING, f"{words} ({', '.join(concerned)})", ADVICE) for words, concerned in failures.items()]
    return [*([Finding("settings", Grade.OK, ", ".join(good))] if good else []), *wrong]


def check_names(environ: Mapping[str, str]) -> list[Finding]:
    """A finding for each variable that begins like a setting and is none."""
    return [
        Finding("setting", Grade.NOTE, f"there is no setting {name}", "correct its name, or remove it: it is ignored")
        for name in unknown_settings(environ)
    ]


def check_secrets(environ: Mapping[str, str]) -> list[Finding]:
    """How many values each secret has, and how long the shortest is; and the files that others may read, too."""
    findings = []
    for name in sorted(SECRETS):
        path = environ.get(f"{name}_FILE") or ""
        with suppress(ValueError):  # a process that needs it says so
            if text := secret(environ, name):
                lengths = [len(part.strip().encode()) for part in text.split(",") if part.strip()]
                facts = f"{len(lengths)} of {'at least ' if len(lengths) > 1 else ''}{min(lengths, default=0)} bytes"
                readable = bool(path) and bool(Path(path).stat().st_mode & stat.S_IROTH)
                if readable:
                    findings.append(
                        Finding(name, Grade.NOTE, f"{facts}; every user of this machine may read its file", "chmod o-r the file")
                    )
                else:
                    findings.append(Finding(name, Grade.OK, f"{facts}{', from a file' if path else ''}"))
    return findings


def secret_texts(environ: Mapping[str, str]) -> set[str]:
    """Every secret, and each of its parts: texts that nobody may see."""
    texts = set()
    for name in SECRETS:
        with suppress(ValueError):
            text = secret(environ, name)
            texts |= {text, *map(str.strip, text.split(","))}
        texts.add(environ.get(name) or "")
    return {text for text in texts if len(text) >= SHORTEST_HIDDEN}


SHORTEST_HIDDEN = 4
"""A shorter text hides nothing, and is part of many words."""


def _is_on(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the settings ask for this process. A part of the settings of R2's queue is a mistake, which its reader names."""
    askers = {
        "worker webhook": ("SITELINK_WEBHOOK_SECRET",),
        "api events": ("SITELINK_EVENTS_ACCOUNT", "SITELINK_EVENTS_QUEUE", "SITELINK_EVENTS_TOKEN"),
    }
    return name not in askers or any(environ.get(setting) or environ.get(f"{setting}_FILE") for setting in askers[name])


def _read_bucket(settings: BucketSettings) -> None:
    if settings.is_s3:
        S3Location.from_settings(settings)
    else:
        settings.directory  # noqa: B018 - raises


def _read_api(environ: Mapping[str, str]) -> None:
    settings = ApiSettings.from_env(environ)
    _read_bucket(settings.bucket)
    RateLimits(settings.limit_address, settings.limit_organization, settings.limits_storage)


def _read_events(environ: Mapping[str, str]) -> None:
    PullSettings.from_env(environ)
    _read_bucket(BucketSettings.from_env(environ))
    codec_keys(environ)


def _read_workflow(environ: Mapping[str, str]) -> None:
    WorkerSettings.from_env(environ)
    deployment_version(environ)
    codec_keys(environ)


def _read_tile(environ: Mapping[str, str]) -> None:
    _read_bucket(WorkerSettings.from_env(environ).bucket)
    PasswordSeal(codec_keys(environ))


def _read_webhook(environ: Mapping[str, str]) -> None:
    _read_bucket(WebhookRoleSettings.from_env(environ).bucket)
    codec_keys(environ)


READERS: dict[str, Callable[[Mapping[str, str]], None]] = {
    "api": _read_api,
    "api events": _read_events,
    "worker workflow": _read_workflow,
    "worker tile": _read_tile,
    "worker webhook": _read_webhook,
}
"""What each process reads when it starts."""
