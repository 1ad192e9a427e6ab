"""The connection of a process to Temporal."""

from collections.abc import Sequence

from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from workflows.codec import data_converter

DEFAULT_ADDRESS = "127.0.0.1:7233"


async def connect(keys: Sequence[bytes], *, lazy: bool) -> Client:
    """The client that the environment describes, by the variables that all of Temporal's programs read.

    https://docs.temporal.io/develop/environment-configuration

    Args:
        keys: The keys of payloads, as from ``codec_keys``.
        lazy: Reaches for the server at the first call instead of now, so that a process can start before Temporal does.

    Raises:
        RuntimeError: The server is not reached, unless ``lazy``.
    """
    config = ClientConfig.load_client_connect_config()
    config["target_host"] = config.get("target_host") or DEFAULT_ADDRESS
    return await Client.connect(**config, lazy=lazy, data_converter=data_converter(keys))
