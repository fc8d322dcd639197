"""`/v1/secrets/{namespace}`: what functions are given as files and nobody can read back.

What it is: set, list by name, remove; a change reaches every PoP, and instances that use it are replaced.
What it is not: a way to read one. There is no such route, for anybody.
What must stay true: a value is in no answer, no error and no log line.
"""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from pydantic_core import PydanticCustomError

from edgeflow.api.bodies import SmallBody
from edgeflow.api.context import Api, ApiDep
from edgeflow.api.places import load_manifest
from edgeflow.api.problems import Reserved, responses
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.core.manifest_scalars import check_secret_name
from edgeflow.errors import BadName, BadRequest, NotFound

router = APIRouter(tags=["secrets"])

Name = Annotated[str, Path(description="1 to 63 letters, digits, `.`, `_` and `-`")]
VALUE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class SecretView(BaseModel):
    """A secret, without its value."""

    namespace: str
    name: str
    version: str = Field(description="Of the value; another one with each change")
    used_by: list[str] = Field(description="Functions of the namespace's manifest that name it")


class SecretList(BaseModel):
    """The secrets of a namespace."""

    items: list[SecretView]


@router.put(
    "/v1/secrets/{namespace}/{name}", openapi_extra=VALUE_BODY, response_model=SecretView,
    responses={201: {"model": SecretView}, **responses(400, 403, 413, 501)},
)  # fmt: skip
def set_secret(api: ApiDep, namespace: str, name: Name, body: SmallBody) -> Response:
    """Set a secret: the body, as it is, up to 64 KiB. Functions that name it get it; those that run with an older one are replaced."""
    _check(namespace, name)
    if not body:
        raise BadRequest("the value is empty", hint="Send it as the body; to remove a secret use DELETE.")
    is_new = all(one.name != name for one in api.secrets.list(namespace))
    version = api.secrets.set(namespace, name, body)
    view = SecretView(namespace=namespace, name=name, version=version, used_by=_used_by(api, namespace).get(name, []))
    return JSONResponse(view.model_dump(), 201 if is_new else 200)


@router.get("/v1/secrets/{namespace}", responses=responses(400))
def list_secrets(api: ApiDep, namespace: str) -> SecretList:
    """The secrets of a namespace by name; values do not come back."""
    check_namespace(namespace)
    used_by = _used_by(api, namespace)
    return SecretList(
        items=[
            SecretView(namespace=namespace, name=one.name, version=one.version, used_by=used_by.get(one.name, []))
            for one in api.secrets.list(namespace)
        ]
    )


@router.delete(
    "/v1/secrets/{namespace}/{name}", status_code=204, response_class=Response, responses=responses(400, 403, 404)
)
def remove_secret(api: ApiDep, namespace: str, name: Name) -> Response:
    """Forget a secret. Instances that have it keep it until they end; new ones of functions that name it do not start."""
    _check(namespace, name)
    if not api.secrets.remove(namespace, name):
        raise NotFound(
            f"there is no secret {name!r} in namespace {namespace!r}",
            hint="`edgeflow secret list` shows those there are.",
        )
    return Response(status_code=204)


def _check(namespace: str, name: str) -> None:
    check_namespace(namespace)
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("the namespace 'system' has no secrets")
    try:
        check_secret_name(name)
    except PydanticCustomError as error:
        message, _, hint = error.message().partition("; ")
        raise BadName(message, hint=f"{hint[:1].upper()}{hint[1:]}.") from None


def _used_by(api: Api, namespace: str) -> dict[str, list[str]]:
    manifest = load_manifest(api, namespace)
    found: dict[str, list[str]] = {}
    for function, content in sorted((manifest or {}).get("functions", {}).items()):
        for name in content.get("secrets") or []:
            found.setdefault(name, []).append(function)
    return found
