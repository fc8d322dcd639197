"""Where a client finds the PoPs of a cluster, and the token for each.

What it is: (url, token) pairs from a cluster file, from URLs that the caller knows, or from one PoP that tells of the others.
What must stay true: a token from a cluster file is for its own PoP; one that the caller gives goes to those PoPs only that the caller, or the PoP that
the caller named, counts among the cluster's.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from edgeflow.errors import BadRequest, NotFound, Unauthorized, Unavailable
from edgeflow.sdk.trust import trusted

CLUSTER_FILES = ("cluster.json", "docker/cluster.json")
"""Below the home folder: of local processes, of containers. Paths in them are relative to the home folder."""
ASK_S = 5.0
ROUTE_PATH = "/v1/route"

Member = tuple[str, str]
"""(url, token)."""


def of_home(pop: str | None, home: Path | None) -> list[Member]:
    """The PoPs of the cluster that runs from a home folder, `pop` (else the first) in front. Raises NotFound."""
    folder = home or Path(os.environ.get("EDGEFLOW_HOME") or ".edgeflow")
    pops = next((found for place in CLUSTER_FILES if (found := _read_pops(folder / place))), None)
    if pops is None:
        raise NotFound(f"no cluster runs from {folder}", hint="Start one with `edgeflow up`, or set EDGEFLOW_HOME.")
    name = pop if pop is not None else next(iter(pops), None)
    if name not in pops:
        raise NotFound(f"there is no PoP {name!r}; there are {', '.join(pops) or 'none'}")
    names = list(pops)
    at = names.index(name)
    others = [_access(folder, pops[other]) for other in (*names[at + 1 :], *names[:at])]
    access = pops[name]["api"]
    token = (folder / access["token_file"]).read_text().strip()
    return [(access["url"], token), *(other for other in others if other is not None)]


def of(
    cluster: str | Path | Sequence[str | tuple[str, str]] | None, token: str | None, tokens: Mapping[str, str]
) -> list[Member]:
    """The PoPs that `Client.connect` was given. Raises BadRequest, NotFound, Unauthorized, Unavailable."""
    if cluster is None:
        return of_home(None, None)
    if isinstance(cluster, Path) or (isinstance(cluster, str) and "://" not in cluster):
        return _of_path(Path(cluster))
    if isinstance(cluster, str):
        return _of_url(check_url(cluster), token, tokens)
    members = [
        (check_url(one), _token(one, token, tokens)) if isinstance(one, str) else (check_url(one[0]), one[1])
        for one in cluster
    ]
    if not members:
        raise BadRequest("a cluster needs at least one URL")
    return list({url.rstrip("/"): (url, secret) for url, secret in members}.values())


def check_url(text: str) -> str:
    """A base URL. Raises BadRequest."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise BadRequest(f"{text[:200]!r} is not the URL of a PoP", hint="As in http://la.example:8081, or https://.")
    return text


def _of_path(path: Path) -> list[Member]:
    if path.is_dir():
        return of_home(None, path)
    pops = _read_pops(path)
    if pops is None:
        raise NotFound(f"{path} is not the cluster.json of a running cluster", hint="Start it with `edgeflow up`.")
    home = path.parent.parent if path.parent.name == "docker" else path.parent
    members = [member for pop in pops.values() if (member := _access(home, pop)) is not None]
    if not members:
        raise NotFound(f"of no PoP of {path} the token can be read")
    return members


def _of_url(url: str, token: str | None, tokens: Mapping[str, str]) -> list[Member]:
    """The PoP at `url`, and those that it names."""
    first = _token(url, token, tokens)
    try:
        answer = httpx.get(
            url.rstrip("/") + ROUTE_PATH, headers={"Authorization": f"Bearer {first}"}, timeout=ASK_S, trust_env=False,
            verify=trusted(url),
        )  # fmt: skip
    except httpx.TransportError as error:
        raise Unavailable(f"{url} cannot be reached: {error!r}", hint="Give the URLs of several PoPs.") from None
    if answer.status_code == 401:
        raise Unauthorized(f"{url} does not take the token")
    try:
        items = answer.json()["items"] if answer.is_success else []
        found = [(str(item["url"]), str(item["pop"]), bool(item["self"])) for item in items if item.get("url")]
    except (ValueError, KeyError, TypeError):
        found = []
    # The PoP itself is known by the URL that works for the caller.
    others = [(other, pop) for other, pop, is_self in found if not is_self and other.rstrip("/") != url.rstrip("/")]
    if url.lower().startswith("https:"):  # a token that is sent encrypted is sent nowhere in the clear
        others = [(other, pop) for other, pop in others if other.lower().startswith("https:")]
    known = [(other, tokens.get(other) or tokens.get(pop) or token) for other, pop in others]
    return [(url, first), *((other, secret) for other, secret in known if secret is not None)]


def _token(url: str, token: str | None, tokens: Mapping[str, str]) -> str:
    given = tokens.get(url) or token
    if given is None:
        raise BadRequest(f"there is no token for {url}", hint="Give token=, or tokens= by URL.")
    return given


def _access(folder: Path, pop: Mapping[str, Any]) -> Member | None:
    """Of a PoP of a cluster file; None when its token cannot be read."""
    try:
        return pop["api"]["url"], (folder / pop["api"]["token_file"]).read_text().strip()
    except (OSError, KeyError):
        return None


def _read_pops(path: Path) -> dict[str, Any] | None:
    """The PoPs of a cluster file; None when there is none, or when it says that its cluster was stopped."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    pops: dict[str, Any] | None = document.get("pops")
    return None if document.get("state") == "stopped" else pops
