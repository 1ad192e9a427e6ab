"""The errors that end a command, each with one sentence on stderr."""


class CommandError(Exception):
    """Ends the command with one sentence on stderr."""


class WrongUse(CommandError):
    """The arguments, the environment or the file cannot be used."""


class Refused(CommandError):
    """The server answered and refused."""


class Unavailable(Refused):
    """The server answered that it cannot serve the request now."""


class NotReached(CommandError):
    """The server did not answer; ``connected`` says whether a connection was made before it broke."""

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


def join_by_colon(*parts: str | None) -> str:
    """The parts that exist, with colons between them: ``NotAPdf: sentence``."""
    return ": ".join(part for part in parts if part)
