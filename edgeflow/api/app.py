"""The FastAPI application: which modules it is made of.

What must stay true: `create_app` has no side effects; authentication sits in front of everything that is routed.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeflow.api import (
    blobs,
    channels,
    consumers,
    dead_letters,
    drift,
    ekv,
    functions,
    health,
    images,
    instances,
    invocations,
    joining,
    joins,
    live,
    metrics,
    mqtt,
    policies,
    pops,
    problems,
    quotas,
    replays,
    revisions,
    route,
    secrets,
    sets,
    standing,
)
from edgeflow.api.auth import BearerAuth
from edgeflow.api.context import Api

MODULES = (
    health, functions, instances, revisions, invocations, channels, consumers, blobs, ekv, policies, standing, joins, dead_letters, replays, joining, pops, route, quotas, secrets, sets, drift, images, metrics, mqtt, live,
)  # fmt: skip
VERSION = "1"


def create_app(api: Api) -> FastAPI:
    """The application over `api`."""
    app = FastAPI(
        title="edgeflow", version=VERSION, summary="The HTTP API of one PoP", docs_url=None, redoc_url=None, redirect_slashes=False,
        generate_unique_id_function=_operation_id, middleware=[Middleware(SafeHeaders), Middleware(BearerAuth, token=api.token), Middleware(route.LoadHeaders, pressure=api.pressure)],
    )  # fmt: skip
    app.state.api = api
    for module in MODULES:
        app.include_router(module.router)
    problems.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


class SafeHeaders:
    """Raw values and events are never a page: browsers must not guess types or run what was stored."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/live/"):
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"content-security-policy", b"default-src 'none'; sandbox"),
                ]
            await send(message)

        await self._app(scope, receive, send_safely)


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (problems.Problem, channels.EventMessage):
            schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        for path in ("/healthz", "/readyz"):
            for operation in document["paths"][path].values():
                operation["security"] = []
        for operations in document["paths"].values():
            for operation in operations.values():
                if "422" in operation["responses"]:  # FastAPI's own validation schema is not what is sent
                    operation["responses"]["422"] = problems.responses(422)[422]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
