"""The attempts of one activity, each begun as Temporal begins it."""

from dataclasses import replace

from temporalio.testing import ActivityEnvironment


class Attempts:
    """Gives each attempt the details of the last heartbeat of the attempt before, as Temporal does."""

    def __init__(self) -> None:
        self._details: tuple[object, ...] = ()

    def next(self) -> ActivityEnvironment:
        """The environment of the next attempt."""
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, heartbeat_details=self._details)
        environment.on_heartbeat = self._keep
        return environment

    def _keep(self, *details: object) -> None:
        self._details = details
