"""The connection of a process to Temporal."""

import os
from collections.abc import Mapping, Sequence

from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime

from activities.environment import secret
from workflows.codec import data_converter

DEFAULT_ADDRESS = "127.0.0.1:7233"


def connection_settings(environ: Mapping[str, str]) -> ClientConnectConfig:
    """What the variables say that all of Temporal's programs read. As a secret, ``TEMPORAL_API_KEY`` may be in a file.

    https://docs.temporal.io/develop/environment-configuration

    Raises:
        ValueError: They cannot be used.
    """
    variables = dict(environ)
    if key := secret(environ, "TEMPORAL_API_KEY"):
        variables["TEMPORAL_API_KEY"] = key
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=variables)
    except (OSError, RuntimeError) as error:
        # The other lines of the text show a line of the file, which may hold a key.
        msg = f"the settings of Temporal cannot be used: {str(error).splitlines()[0]}"
        raise ValueError(msg) from None
    config["target_host"] = config.get("target_host") or DEFAULT_ADDRESS
    return config


async def connect(keys: Sequence[bytes], *, lazy: bool, runtime: Runtime | None = None, interceptors: Sequence[Interceptor] = ()) -> Client:
    """The client that this process' environment describes.

    Args:
        keys: The keys of payloads, as from ``codec_keys``.
        runtime: Takes the metrics of Temporal's library.
        interceptors: Go around the client's calls; those for workers, around what the client's workers do.
        lazy: Reaches for the server at the first call instead of now, so that a process can start before Temporal does.

    Raises:
        RuntimeError: The server is not reached, unless ``lazy``.
        ValueError: The settings cannot be used.
    """
    config = connection_settings(os.environ)
    return await Client.connect(**config, lazy=lazy, data_converter=data_converter(keys), runtime=runtime, interceptors=interceptors)
