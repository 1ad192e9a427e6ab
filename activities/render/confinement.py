"""The layers that confine the processes which open documents or JPEGs: told in the log, and demanded. Loads no native library."""

import logging
from collections.abc import Mapping, Sequence

from activities.environment import choice
from activities.errors import RenderCrashed
from activities.render import confine
from activities.render.decoder import Decoder

logger = logging.getLogger(__name__)


def must_confine(environ: Mapping[str, str]) -> bool:
    """Whether a process may only run where those that open documents or JPEGs are confined: others can send documents to the API.

    Raises:
        ValueError: A value cannot be used. The message names its variable.
    """
    allows_unconfined = choice(environ, "SITELINK_UNCONFINED", ("", "allow")) == "allow"
    return bool(environ.get("SITELINK_ACCESS")) and not allows_unconfined


def check_layers(processes: str, held: Sequence[str], *, must_confine: bool, known: Sequence[str] = confine.LAYERS) -> None:
    """Says in the log which layers hold, and which are missing.

    Args:
        processes: Names the confined processes, in the plural.
        held: Their layers, as ``confine`` names them.
        must_confine: Whether they must be confined.
        known: The layers that they can have.

    Raises:
        ValueError: They are not confined, but must be.
    """
    missing = [name for name in known if name not in held]
    logger.info("%s are confined by: %s; missing: %s", processes, ", ".join(held) or "nothing", ", ".join(missing) or "nothing")
    if confine.SECCOMP in held and (confine.LANDLOCK in held or confine.OWN_USER in held):
        return
    if must_confine:
        msg = (
            f"{processes} are not confined on this kernel, which lacks {' and '.join(missing)}, and SITELINK_ACCESS says that others "
            "can send documents: a document that takes over such a process could read all others. SITELINK_UNCONFINED=allow starts all the "
            "same"
        )
        raise ValueError(msg)
    logger.warning("%s are not confined: a document that takes one over can do what this process can", processes)


def check_decoder(*, must_confine: bool) -> None:
    """As ``check_layers``, of the process that decodes JPEGs for ``verify``, by starting one. Blocks for a tenth of a second.

    Raises:
        ValueError: It is not confined, but must be.
    """
    known = [name for name in confine.LAYERS if name != confine.OWN_USER]
    try:
        with Decoder() as decoder:
            check_layers("decoders of JPEGs", decoder.layers, must_confine=must_confine, known=known)
    except RenderCrashed as error:
        logger.warning("no JPEG can be decoded here: %s", error)
