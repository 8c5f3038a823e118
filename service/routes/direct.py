"""Routes without FastAPI's dependency resolution where an endpoint asks for nothing but the request."""

from __future__ import annotations

from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import request_response


class DirectRoute(APIRoute):
    """For `APIRouter(route_class=DirectRoute)`: documented as any other route, called as Starlette calls one.

    That is for endpoints that take a Request and return a Response. A route that has parameters or dependencies is left
    as it is.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        needs = self.dependant
        resolved = [needs.dependencies, needs.path_params, needs.query_params, needs.header_params, needs.cookie_params]
        if needs.request_param_name and not any([*resolved, needs.body_params]):
            self.app = request_response(endpoint)
