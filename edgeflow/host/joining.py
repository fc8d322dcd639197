"""A new PoP on this machine: from a token to a running PoP of a cluster that is elsewhere, or here.

What it is: the question to the PoP that made the token, the files that follow from the answer, and the start in a folder of its own.
What it is not: the admission (edgeflow.api.joining), or the catching up, which the links do.
What must stay true: the private key is made here and stays here; nothing is started before the answer has proved the cluster's CA; done again after
an interruption it goes on with the same key.
"""

import time
from pathlib import Path
from typing import Any

import httpx

from edgeflow.cluster.linkproto import VERSION
from edgeflow.errors import BadToken, EdgeflowError, described
from edgeflow.host import certs
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.errors import AlreadyRunning, BadClusterSpec, NoCluster, StartTimeout
from edgeflow.host.files import ensure_dir, read_json, write_file, write_json
from edgeflow.host.invitation import Invitation, fingerprint, parse_invitation, seal, unseal
from edgeflow.host.layout import Home, Identity, check_host, check_pops, draft
from edgeflow.host.lifecycle import Say, silent, up
from edgeflow.host.provision import LOOPBACK, SECRETS_KEY

ASK_S = 20.0
POLL_S = 0.2
COMPLETE_S = 600.0
"""How long a new PoP may take to get what the others have, unless the caller says otherwise."""
WAITING = "join.json"


def join(
    text: str,
    *,
    pop: str | None = None,
    home: Path,
    host: str = LOOPBACK,
    any_ports: bool = False,
    timeout_s: float = COMPLETE_S,
    say: Say = silent,
) -> Cluster:
    """Make a PoP in `home` (or, where a cluster is there already, in a folder below it) that belongs to the token's cluster; it runs when this returns.

    `host`: address of this machine, which other PoPs and clients reach. Raises BadToken and its kinds, PopExists, HostError and its kinds.
    """
    invitation = parse_invitation(text)
    name = invitation.pop or pop
    if name is None:
        raise BadClusterSpec("Which id shall the new PoP have?", hint="Say --pop NAME.")
    if pop is not None and pop != name:
        raise BadToken(f"the token is for a PoP called {name!r}, not {pop!r}")
    check_pops((name,))
    host = check_host(host) or LOOPBACK
    place = _place(Home(home.absolute()), name, invitation)
    if not place.identity_file.exists():
        ensure_dir(place.root)
        answer = _ask(place, invitation, name, host, any_ports)
        _unpack(place, name, host, answer)
        say(f"{name} is admitted to cluster {answer['cluster']}.")
    cluster = up(mode="embedded", home=place.root, pops=[name], say=say)
    wait_complete(cluster.pop(name), say=say, timeout_s=timeout_s)
    return cluster


def wait_complete(access: PopAccess, *, say: Say = silent, timeout_s: float = COMPLETE_S) -> None:
    """Until the new PoP has all that the others have. Raises StartTimeout naming what it waits for."""
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while True:
        state = _state(access)
        if state != shown:
            shown = state
            say(f"{access.id}: {state}")
        if state not in ("joining", "unknown"):
            return
        if time.monotonic() > deadline_s:
            raise StartTimeout(
                f"{access.id} runs, and has not got within {timeout_s:g} s all that the others have.",
                hint="It goes on; `edgeflow pops list --pop` shows the links, `edgeflow kv lag` what is missing.",
            )
        time.sleep(POLL_S)


def _state(access: PopAccess) -> str:
    headers = {"Authorization": f"Bearer {access.token}"}
    try:
        with httpx.Client(base_url=access.api_url, headers=headers, timeout=ASK_S, trust_env=False) as client:
            view = client.get(f"/v1/pops/{access.id}").raise_for_status().json()
    except (httpx.HTTPError, ValueError, OSError):
        return "unknown"
    # Its own record comes from the PoP that admitted it: until then it knows nothing of itself.
    return str(view["member"]["state"]) if view["member"]["added_ms"] else "joining"


def _place(home: Home, pop: str, invitation: Invitation) -> Home:
    """The folder of the new PoP: `home` where nothing is yet, else one below it."""
    known = Identity.load(home)
    if known is None or (
        known.cluster == invitation.cluster and known.pops == (pop,) and not (home.ca_dir / "ca.key").exists()
    ):
        return home
    below = home.joined(pop)
    known = Identity.load(below)
    if known is not None and known.cluster != invitation.cluster:
        raise AlreadyRunning(
            f"{below.root} belongs to another cluster, {known.cluster}.", hint="Take another folder: EDGEFLOW_HOME=..."
        )
    return below


def _ask(place: Home, invitation: Invitation, pop: str, host: str, any_ports: bool) -> dict[str, Any]:
    """The answer of the PoP that made the token. Key, request and ports are kept, so that a second try is the same question."""
    kept = read_json(place.root / WAITING)
    if kept is None or kept["pop"] != pop:
        key, request = certs.new_request(pop)
        drawn = draft(pop, any_ports=any_ports)
        ports = {f"{kind}:{owner}": port for (kind, owner), port in drawn.ports.items()}
        kept = {
            "pop": pop,
            "key": key.decode(),
            "request": request.decode(),
            "ports": ports,
            "run_root": str(drawn.run_root),
        }
        write_json(place.root / WAITING, kept)
    port_of = {kind: kept["ports"][f"{kind}:{pop}"] for kind in ("api", "link")}
    question = {
        "pop": pop,
        "request": kept["request"],
        "link": {"host": host, "port": port_of["link"]},
        "url": f"http://{host}:{port_of['api']}",
        "version": VERSION,
    }
    sealed = seal(invitation.secret, invitation.id, "question", question)
    url = invitation.url.rstrip("/") + "/v1/pops/join"
    try:
        answer = httpx.post(url, json={"id": invitation.id, "sealed": sealed}, timeout=ASK_S, trust_env=False)
        document = answer.json()
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise NoCluster(
            f"{invitation.issuer}, which made the token, does not answer at {invitation.url}: {error}",
            hint="Its API must be reachable from here; a token with another address: `edgeflow pops token --url`.",
        ) from None
    if answer.status_code != 200:
        raise _problem(document)
    found = unseal(invitation.secret, invitation.id, "answer", str(document.get("sealed")))
    if fingerprint(found["ca"].encode()) != invitation.ca or found["cluster"] != invitation.cluster:
        raise BadToken("the answer is of another cluster than the token")
    return found


def _problem(document: dict[str, Any]) -> EdgeflowError:
    return described({"code": document.get("code"), "message": document.get("detail"), "hint": document.get("hint")})


def _unpack(place: Home, pop: str, host: str, answer: dict[str, Any]) -> None:
    kept = read_json(place.root / WAITING)
    assert kept is not None
    ensure_dir(place.ca_dir)
    secrets_dir = ensure_dir(place.secrets_dir(pop))
    write_file(place.ca_dir / "ca.pem", answer["ca"], mode=0o644)
    if answer["secrets_key"]:
        write_file(place.ca_dir / SECRETS_KEY, answer["secrets_key"])
    write_file(secrets_dir / "link.key", kept["key"])
    write_file(secrets_dir / "link.pem", answer["certificate"])
    settings = read_json(place.settings_file) or {}
    link = settings.setdefault("link", {})
    link.setdefault("peers", {}).update(answer["members"])
    settings.setdefault("membership", {})["admitted"] = True
    write_json(place.settings_file, settings)
    ports = {}
    for name, port in kept["ports"].items():
        kind, _, owner = name.partition(":")
        ports[kind, owner] = port
    reached_at = "" if host == LOOPBACK else host
    Identity(answer["cluster"], Path(kept["run_root"]), (pop,), ports, reached_at).save(place)
    (place.root / WAITING).unlink()
