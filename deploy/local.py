"""``python -m deploy.local``, which ``make run`` runs: starts the stack, and sends it a plan with the command line ``sitelink``.

Oddities, on purpose:

1. Ctrl-C in the terminal reaches only this process and ``sitelink``, not the processes of the stack (``deploy.stack``).
2. After a second Ctrl-C this process exits at once. The guards of the other processes notice it and kill them (``deploy.process``).
3. A second start on the same data directory starts no stack. It shows the addresses of the running stack, and sends it the plan.
"""

# ruff: noqa: S603 - the programs are our own

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from activities.bucket.storage import Bucket
from activities.environment import secret, unknown_settings
from activities.errors import SiteLinkError
from activities.logs import log_format
from api.access.settings import AccessSettings, Mode
from api.access.tokens import sign
from api.addresses import StackAddresses, is_locked
from api.r2.settings import PullSettings
from api.settings import ApiSettings
from deploy.process import Guard, is_free
from deploy.sample import write_sample
from deploy.stack import CHECK_INTERVAL_S, GRACE_S, Stack, StackFailed, StackInUse, secrets_for
from deploy.temporal import NoTemporal
from worker.settings import WorkerSettings

COMPLETE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

ATTACH_LIMIT_S = 90
"""How long to wait until another stack has started or stopped."""

TOKEN_S = 24 * 3600
"""How long the token of ``make run`` lasts."""

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SIGNAL_S = 1.0
"""Signals within this time count as one, because ``timeout`` and ``make`` both pass on the same signal."""


def main(argv: list[str]) -> int:
    """Runs the stack and processes one plan.

    Args:
        argv: Arguments after the program's name.

    Returns:
        0 when the upload is complete, 1 when it is not or the stack failed, 2 for wrong use, 130 when interrupted before the end;
        if a stack runs already and gets the plan, the exit code of ``sitelink upload``.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Runs SiteLink on this machine and processes a plan.")
    parser.add_argument("--pdf", type=Path, help="the plan; default: a small sample")
    parser.add_argument("--once", action="store_true", help="stop when the upload ends")
    parser.add_argument("--data-dir", type=Path, help="default: SITELINK_DATA_DIR, else var")
    arguments = parser.parse_args(argv)
    environ = dict(os.environ)
    for name in unknown_settings(environ):
        _complain(f"unknown setting: {name}")
    data_dir = Path(arguments.data_dir or environ.get("SITELINK_DATA_DIR") or "var").absolute()
    environ["SITELINK_DATA_DIR"] = str(data_dir)
    try:
        port = _check_settings(environ, data_dir)
        if arguments.pdf is not None:
            with arguments.pdf.open("rb"):
                pass
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}")
        return WRONG_USE
    except (ValueError, SiteLinkError) as error:
        _complain(str(error))
        return WRONG_USE
    stack = Stack(data_dir, environ=environ, port=port, say=_say)
    return _Session(stack, environ, arguments.pdf, once=arguments.once).run()


def _check_settings(environ: Mapping[str, str], data_dir: Path) -> int:
    """Reads all settings as the processes will read them. Returns the API's port.

    Raises:
        ValueError: A setting cannot be used.
        SiteLinkError: The bucket cannot be used.
    """
    settings = ApiSettings.from_env(environ)
    WorkerSettings.from_env(environ)
    PullSettings.from_env(environ)
    log_format(environ)
    Bucket(settings.bucket)
    has_stack = is_locked(data_dir)  # then this stack may be the program that listens on the port
    if environ.get("SITELINK_PORT") and settings.port and not has_stack and not is_free(settings.port, settings.host):
        msg = f"SITELINK_PORT is {settings.port}, and another program listens there. SITELINK_PORT=0 picks a free one"
        raise ValueError(msg)
    return settings.port


class _Session:
    """One ``make run``.

    Args:
        stack: The stack, not started yet.
        environ: The environment of the command line ``sitelink``.
        pdf: The plan; None for the sample.
        once: Whether to stop when the upload ends.
    """

    def __init__(self, stack: Stack, environ: Mapping[str, str], pdf: Path | None, *, once: bool) -> None:
        self._stack, self._environ, self._pdf, self._once = stack, environ, pdf, once
        self._signalled_at: float | None = None

    def run(self) -> int:
        """Runs the stack, or hands the plan to the one that runs; returns the exit code."""
        for number in TERMINAL_SIGNALS:
            signal.signal(number, self._on_signal)
        try:
            while True:
                try:
                    return self._run_stack()
                except StackInUse as error:
                    other = self._wait_for_other(error)
                if other is not None:
                    return self._attach(other)
        except KeyboardInterrupt:
            return INTERRUPTED
        except StackInUse as error:
            _complain(str(error))
            return FAILED

    def _run_stack(self) -> int:
        outcome = INTERRUPTED
        try:
            started_at = time.monotonic()
            self._stack.start()
            _say(f"Ready after {time.monotonic() - started_at:.1f} s.\n")
            self._print_addresses(self._stack.addresses)
            code = self._upload(self._stack.addresses)
            if self._once:
                outcome = code
            else:
                outcome = COMPLETE
                _say("\nSiteLink keeps running; Ctrl-C stops it.")
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            _say(f"\nStopping: the pages in progress are finished first, which takes at most {GRACE_S} s. Ctrl-C again stops at once.")
            if outcome == INTERRUPTED:
                _say("Unfinished uploads go on after the next start on the same data directory.")
        except (StackFailed, NoTemporal, OSError) as error:
            _complain(str(error))
            return FAILED
        finally:
            self._stack.stop()
        _say("Stopped.")
        return outcome

    def _wait_for_other(self, error: StackInUse) -> StackAddresses | None:
        """Waits for the other stack: returns its addresses when it has started, or None when it has stopped.

        Raises:
            StackInUse: The other stack has neither started nor stopped in time.
        """
        deadline = time.monotonic() + ATTACH_LIMIT_S
        has_said = False
        while is_locked(self._stack.data_dir):
            if addresses := StackAddresses.read(self._stack.data_dir):
                return addresses
            if time.monotonic() > deadline:
                raise error
            if not has_said:
                _say(f"Another stack starts or stops on {self._stack.data_dir}; waiting for it ...")
                has_said = True
            time.sleep(CHECK_INTERVAL_S)
        return None

    def _attach(self, other: StackAddresses) -> int:
        """Hands the plan to a stack that runs already; returns the exit code."""
        _say(f"SiteLink already runs on {self._stack.data_dir}, with the settings it was started with.\n")
        self._print_addresses(other)
        if self._pdf is None and not self._once:
            _say("To give it a plan: make run PDF=plan.pdf")
            return COMPLETE
        return self._upload(other)

    def _print_addresses(self, addresses: StackAddresses) -> None:
        _say(f"  Page         {addresses.api}/")
        _say(f"  Temporal UI  {addresses.temporal_ui}/")
        _say(f"  Logs         {self._stack.logs}\n")

    def _upload(self, addresses: StackAddresses) -> int:
        """Sends the plan by ``sitelink upload`` in this terminal; returns its exit code."""
        pdf = self._pdf
        if pdf is None:
            pdf = self._stack.data_dir / "sample-plan.pdf"
            draft = pdf.with_suffix(".new")
            write_sample(draft)
            draft.replace(pdf)  # another start may be sending it
        environ = {**secrets_for("sitelink", self._environ), "SITELINK_URL": addresses.api}
        access = AccessSettings.from_env(self._environ)
        if access.mode is Mode.JWT and access.secrets and not secret(environ, "SITELINK_TOKEN"):
            environ["SITELINK_TOKEN"] = self._token(access)
        command = subprocess.Popen([sys.executable, "-m", "api.cli", "upload", str(pdf)], env=environ)
        guard = Guard(command.pid)
        try:
            return command.wait()
        finally:
            if command.poll() is None:
                # In a terminal it has got the same Ctrl-C, and now says how to watch the upload again.
                with suppress(subprocess.TimeoutExpired):
                    command.wait(0.5)
                command.terminate()
                with suppress(subprocess.TimeoutExpired):
                    command.wait(5)
                command.kill()
                command.wait()
            guard.release()

    def _token(self, access: AccessSettings) -> str:
        """A token for the organization to which ``sitelink upload`` sends by default; it lasts long, as the upload may."""
        claims = {"sub": "make run", "org": "local", "scope": "read write"}
        expires_at = int(time.time()) + TOKEN_S
        return sign(access.secrets[0].encode(), claims, issuer=access.issuer, audience=access.audience, expires_at=expires_at)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            raise KeyboardInterrupt
        if number == signal.SIGINT and now - self._signalled_at > SAME_SIGNAL_S:
            self._leave()

    def _leave(self) -> NoReturn:
        with suppress(OSError):
            self._stack.forget_addresses()
        os._exit(INTERRUPTED)


def _say(text: str) -> None:
    # The terminal may be closed. The stack must then still be stopped in order.
    with suppress(OSError, ValueError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    os.umask(0o077)  # no other user of this machine may read the plans; the processes of the stack inherit this
    sys.exit(main(sys.argv[1:]))
