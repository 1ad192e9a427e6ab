"""Routes that cannot be built without a policy."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from api.access.layer import Access, AccessLayer
from api.access.policies import PUBLIC, Policy


class GuardedRoute(Route):
    """A route whose handler is called only for requests that its policy allows.

    Args:
        path: The path, with its parameters in braces.
        endpoint: The handler.
        methods: The HTTP methods.
        policy: What a request needs.
        access: Decides.
        then: Layers for the allowed requests.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[[Request], Awaitable[Response]],
        *,
        methods: Collection[str],
        policy: Policy,
        access: Access,
        then: Sequence[Middleware] = (),
    ) -> None:
        self.policy = policy
        super().__init__(path, endpoint, methods=methods, middleware=[Middleware(AccessLayer, policy=policy, access=access), *then])


class PublicFiles(Mount):
    """Files that everybody may read.

    Args:
        path: The path of the directory.
        app: Serves the files.
    """

    policy = PUBLIC

    def __init__(self, path: str, app: ASGIApp) -> None:
        super().__init__(path, app)


def check_policies(routes: Iterable[BaseRoute]) -> None:
    """Returns if each route has a policy; raises TypeError for a route that would answer everybody."""
    for route in routes:
        if not isinstance(route, GuardedRoute | PublicFiles):
            msg = f"the route {getattr(route, 'path', route)!r} has no policy"
            raise TypeError(msg)
