"""Errors of the HTTP surface, and how every error becomes an RFC 9457 problem document.

What it is: the problem schema, the few error classes that only HTTP has, and the exception handlers.
What it is not: the error tree (edgeflow.errors); this module only dresses it.
What must stay true: every answer >= 400, whoever causes it (routing, validation, a handler, a bug), is `application/problem+json`
with `code` and `hint`, and never shows a traceback.
"""

import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from edgeflow.api.ranges import BadRange
from edgeflow.errors import BadRequest, EdgeflowError, Unavailable

log = structlog.get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error, as RFC 9457 describes it, with a stable `code` and a `hint` that says how to fix it.

    Some have further members: `invocation` and `reason` of an invocation that gave no result, `pops` that have what was asked for.
    """

    type: str = Field(description="URN of the kind of problem", examples=["urn:edgeflow:problem:not-found"])
    title: str = Field(description="What this kind of problem is, the same each time")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="What happened this time, naming the thing")
    code: str = Field(description="Stable, for programs", examples=["not-found"])
    hint: str = Field(description="How to fix it")


class MethodNotAllowed(EdgeflowError):
    """This resource does not know that method."""

    code = "method-not-allowed"
    status = 405
    hint = "The Allow header and docs/api.md list what it knows."


class BadParameter(EdgeflowError):
    """A parameter of the request is not valid."""

    code = "bad-parameter"
    status = 422
    hint = "The message names the parameter; /openapi.json has its type."


class Reserved(EdgeflowError):
    """This name belongs to edgeflow itself."""

    code = "reserved"
    status = 403
    hint = (
        "Names below `system/`, channels and keys that start with `_` are written by edgeflow only; read them freely."
    )


class AckNotSupported(BadRequest):
    """That acknowledgement class is not offered here."""

    code = "ack-not-supported"
    hint = "Leave `ack` out or ask for `durable`; plain MQTT at QoS 1 gives `fast`."


class UnsupportedMediaType(EdgeflowError):
    """The body's content type is not understood here."""

    code = "unsupported-media-type"
    status = 415
    hint = "docs/api.md lists the content types that each route takes."


class SlowRequest(EdgeflowError):
    """The request's body stopped arriving."""

    code = "slow-request"
    status = 408
    hint = "Send it again; a body may pause for 30 s at most."
    retryable = True


class Busy(Unavailable):
    """Too many large bodies are under way at this PoP right now."""

    code = "busy"
    hint = "Try again after the seconds in Retry-After."


class BrokerUnavailable(Unavailable):
    """The PoP's MQTT broker is not reachable right now."""

    code = "broker-unavailable"
    hint = "The supervisor restarts it; try again. `edgeflow status` shows it."


class Internal(EdgeflowError):
    """Something went wrong in edgeflow."""


def problem_document(error: EdgeflowError) -> dict[str, Any]:
    """The problem document of an error."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    return {
        **error.details, "type": f"urn:edgeflow:problem:{error.code}", "title": title, "status": error.status, "detail": error.message,
        "code": error.code, "hint": error.hint,
    }  # fmt: skip


def problem_response(error: EdgeflowError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for an error: the code also as a header, for HEAD; 401 says how to authenticate, 429 and 503 when to come back (whole seconds)."""
    extra = {"Edgeflow-Code": error.code, **(headers or {})}
    if error.status == HTTPStatus.UNAUTHORIZED:
        extra["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra.setdefault("Retry-After", "1")
    if isinstance(error, BadRange):
        extra["Content-Range"] = f"bytes */{error.size}"
    if error.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        extra["Connection"] = "close"
    return JSONResponse(problem_document(error), error.status, extra, PROBLEM_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries that say which statuses come with a problem document. 401, 500 and 503 can come from every route."""
    entries: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 500, 503, *statuses}):
        entries[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return entries


def from_http_exception(error: HTTPException) -> EdgeflowError:
    """The routing layer's own errors (404, 405, ...) as members of the tree."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed()
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _NoRoute()
    other = EdgeflowError(str(error.detail)) if error.status_code >= 500 else BadRequest(str(error.detail))
    other.status = error.status_code
    return other


class _NoRoute(EdgeflowError):
    """There is no such resource."""

    code = "not-found"
    status = 404
    hint = "docs/api.md and /openapi.json list each route."


def _first_fault(errors: Any) -> str:
    fault = errors[0]
    place = " ".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}"


def install(app: FastAPI) -> None:
    """Register the handlers that turn every exception into a problem document."""

    @app.exception_handler(EdgeflowError)
    async def _edgeflow(_request: Request, error: EdgeflowError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(from_http_exception(error), error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(BadParameter(_first_fault(error.errors())))

    @app.exception_handler(ValidationError)
    async def _model(_request: Request, error: ValidationError) -> JSONResponse:
        return problem_response(BadRequest(_first_fault(error.errors())))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        log.error(
            "request_failed",
            method=request.method,
            path=request.url.path,
            traceback="".join(traceback.format_exception(error)),
        )
        return problem_response(Internal())
