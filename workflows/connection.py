"""The connection of a process to Temporal."""

from temporalio.client import Client
from temporalio.envconfig import ClientConfig

DEFAULT_ADDRESS = "127.0.0.1:7233"


async def connect(*, lazy: bool) -> Client:
    """The client that the environment describes, by the variables that all of Temporal's programs read.

    https://docs.temporal.io/develop/environment-configuration

    Args:
        lazy: Reaches for the server at the first call instead of now, so that a process can start before Temporal does.

    Raises:
        RuntimeError: The server is not reached, unless ``lazy``.
    """
    config = ClientConfig.load_client_connect_config()
    config["target_host"] = config.get("target_host") or DEFAULT_ADDRESS
    return await Client.connect(**config, lazy=lazy)
