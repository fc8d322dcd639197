"""`/v1/pops/tokens`, `/v1/pops/join` and the wishes: how PoPs come, pause and go.

What it is: tokens, the admission of who has one, and drain, undrain and leave.
What it is not: the joining PoP's side (edgeflow.host.joining), or the moving of links and data, which follows from the records.
What must stay true: a token admits one PoP, once, at the PoP that made it: used is written before anything is given out, and a repeated question of the
same PoP gets its answer again; the id of a member that has not left is given to nobody else.
"""

import secrets
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.pops import MemberView, member_view
from edgeflow.api.problems import responses
from edgeflow.cluster.linkproto import VERSION
from edgeflow.core.membership import DRAINING, LEFT, UP, Address, Member
from edgeflow.errors import BadRequest, BadToken, CannotAdmit, PopExists, TokenExpired, TokenUsed
from edgeflow.host.layout import POP_ID

log = structlog.get_logger(__name__)
router = APIRouter(tags=["pops"])

TOKENS = "join_token"
RESERVED = ("tokens", "join")
"""What stands where an id stands in the routes."""
TTL_S = 3600
MAX_TTL_S = 7 * 24 * 3600
_lock = threading.Lock()
"""Two questions with one token are answered one after the other. The control process is the only one that answers them."""


class TokenWish(BaseModel):
    """For whom a token shall be."""

    pop: str | None = Field(
        default=None, description="The id that the new PoP must take; any that is free if not given"
    )
    ttl_s: int = Field(default=TTL_S, gt=0, le=MAX_TTL_S, description="How long it holds")
    url: str | None = Field(
        default=None, description="Where the new PoP reaches this one's API; `public.api_url` if not given"
    )


class TokenView(BaseModel):
    """A token, which is shown this once."""

    id: str
    token: str
    pop: str | None
    expires_ms: int


class TokenState(BaseModel):
    """A token, without its secret."""

    id: str
    pop: str | None
    expires_ms: int
    used_by: str | None = Field(description="The PoP that joined with it")


class TokenList(BaseModel):
    """The tokens that this PoP made and has not forgotten."""

    items: list[TokenState]


class Question(BaseModel):
    """What a new PoP asks, sealed with its token's secret."""

    id: Annotated[str, Field(max_length=100)]
    sealed: Annotated[str, Field(max_length=64 * 1024)]


class Answer(BaseModel):
    """The answer, sealed likewise."""

    sealed: str


@router.post("/v1/pops/tokens", status_code=201, responses=responses(400, 409, 501))
def make_token(api: ApiDep, wish: TokenWish) -> TokenView:
    """Make a token with which one PoP may join."""
    from edgeflow.host.invitation import Invitation, fingerprint, new_secret  # brings the cipher along

    if api.settings.link.ca_key is None:
        raise CannotAdmit()
    if wish.pop is not None:
        _check_free(api, wish.pop)
    _forget_old(api)
    expires_ms = now_ms() + wish.ttl_s * 1000
    made = Invitation(
        secrets.token_hex(8), new_secret(), api.settings.cluster, api.settings.pop, wish.url or api.settings.public.api_url,
        fingerprint(api.settings.link.ca.read_bytes()), expires_ms, wish.pop or "",
    )  # fmt: skip
    document = {"secret": made.secret, "pop": made.pop, "expires_ms": expires_ms, "used_by": "", "request": ""}
    api.store.local.put_doc(TOKENS, made.id, document, wake=False)
    return TokenView(id=made.id, token=made.text(), pop=wish.pop, expires_ms=expires_ms)


@router.get("/v1/pops/tokens", responses=responses())
def list_tokens(api: ApiDep) -> TokenList:
    """The tokens that this PoP has made."""
    _forget_old(api)
    found = sorted(api.store.local.docs(TOKENS).items(), key=lambda item: item[1]["expires_ms"])
    return TokenList(
        items=[
            TokenState(id=id, pop=one["pop"] or None, expires_ms=one["expires_ms"], used_by=one["used_by"] or None)
            for id, one in found
        ]
    )


@router.post("/v1/pops/join", responses=responses(400, 403, 409, 410, 501))
def join(api: ApiDep, question: Question) -> Answer:
    """Admit the PoP that has a token: its certificate, the CA, the members. Open to everyone; the seal says who asks."""
    from edgeflow.host.invitation import seal, unseal

    with _lock:
        known = api.store.local.docs(TOKENS).get(question.id)
        if known is None:
            raise BadToken(f"{api.settings.pop} has made no such token, or it has expired")
        if known["expires_ms"] < now_ms():
            raise TokenExpired()
        wish = unseal(known["secret"], question.id, "question", question.sealed)
        return Answer(sealed=seal(known["secret"], question.id, "answer", _admit(api, question.id, known, wish)))


@router.post("/v1/pops/{pop}/drain", responses=responses(400, 404))
def drain(api: ApiDep, pop: str) -> MemberView:
    """Wish that a PoP takes no new clients and hands over its functions, until `undrain`."""
    return _wish(api, pop, DRAINING)


@router.post("/v1/pops/{pop}/undrain", responses=responses(400, 404))
def undrain(api: ApiDep, pop: str) -> MemberView:
    """End a drain."""
    return _wish(api, pop, UP)


@router.post("/v1/pops/{pop}/leave", responses=responses(400, 404))
def leave(api: ApiDep, pop: str) -> MemberView:
    """Record that a PoP has left for good: nothing waits for it any more, and its links end. What only it had is lost (`edgeflow pops leave` waits)."""
    if pop == api.settings.pop:
        raise BadRequest(
            f"{pop} cannot say of itself that it left", hint="Ask another PoP: that one stays and tells the rest."
        )
    return _wish(api, pop, LEFT)


def _wish(api: Api, pop: str, state: str) -> MemberView:
    api.members.wish(pop, state)
    log.info("member_wished", member=pop, state=state)
    return member_view(api, pop)


def _admit(api: Api, id: str, known: dict[str, Any], wish: dict[str, Any]) -> dict[str, Any]:
    from edgeflow.host.certs import sign_request

    settings = api.settings
    if settings.link.ca_key is None:
        raise CannotAdmit()
    pop, request = str(wish.get("pop") or known["pop"]), str(wish.get("request") or "")
    if known["used_by"] and (known["used_by"], known["request"]) != (pop, request):
        raise TokenUsed(f"the token was used already, by {known['used_by']}")
    if known["pop"] and pop != known["pop"]:
        raise BadToken(f"the token is for a PoP called {known['pop']!r}, not {pop[:40]!r}")
    if wish.get("version") != VERSION:
        raise BadRequest(
            f"{pop[:40]} speaks link version {wish.get('version')!r}, this cluster {VERSION}",
            hint="Install the version of edgeflow that the cluster has, or a neighbouring one.",
        )
    if not known["used_by"]:
        _check_free(api, pop)
        api.store.local.put_doc(TOKENS, id, {**known, "used_by": pop, "request": request}, wake=False)
    try:
        at = Address(str(wish["link"]["host"]), int(wish["link"]["port"]))
    except (KeyError, TypeError, ValueError):
        raise BadRequest("the new PoP does not say where its links are dialled") from None
    ca = settings.link.ca.read_bytes()
    certificate, valid_ms = sign_request(ca, settings.link.ca_key.read_bytes(), pop, request.encode())
    before = api.members.of(pop)
    if before is None or before.is_left:
        before = Member(pop, url=str(wish.get("url") or ""), added_ms=now_ms(), admitted=settings.pop)
    api.members.admit(replace(before, link=at, certificate_ms=valid_ms))
    log.info("member_admitted", member=pop, token=id, link=f"{at.host}:{at.port}")
    own = settings.link.advertise or settings.link
    members = {settings.pop: {"host": own.host, "port": own.port}}
    for name in api.members.fresh().pops()[1:]:
        record = api.members.of(name)
        # The record of a PoP that has just started may not be here yet; without its address the new PoP would never hear of it.
        at_peer = record.link if record is not None and record.link is not None else settings.link.peers.get(name)
        if name != pop and at_peer is not None:
            members[name] = {"host": at_peer.host, "port": at_peer.port}
    return {
        "cluster": settings.cluster,
        "pop": pop,
        "ca": ca.decode(),
        "certificate": certificate.decode(),
        "secrets_key": _read(settings.runner.secrets_key_file),
        "members": members,
    }


def _check_free(api: Api, pop: str) -> None:
    """Raises BadRequest for an id that cannot be one, PopExists when a member has it."""
    if not POP_ID.fullmatch(pop) or pop in RESERVED:
        raise BadRequest(f"{pop[:40]!r} is not a PoP id", hint="[a-z0-9-], at most 32 characters.")
    if pop in api.members.fresh().pops():
        raise PopExists(f"there is a PoP {pop!r} in this cluster")


def _read(path: Path | None) -> str:
    return path.read_text().strip() if path is not None and path.exists() else ""


def _forget_old(api: Api) -> None:
    """Tokens that expired a day ago."""
    for id, one in api.store.local.docs(TOKENS).items():
        if one["expires_ms"] < time.time() * 1000 - 24 * 3_600_000:
            api.store.local.delete_doc(TOKENS, id)
