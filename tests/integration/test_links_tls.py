"""Links over real TLS with the store in memory: identity, reconnects, cuts in the middle of a blob, several PoPs, strangers at the door."""

import random
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_fakes import MemoryStore, digest_of
from link_pops import Line, LinkPop, MemoryDocs, MemoryMail, free_port, make_settings

from edgeflow.cluster.linkproto import VERSION, Hello, Ping, encode
from edgeflow.settings import Peer

Wait = Callable[..., Any]


class DocumentedStore(MemoryStore):
    def __init__(self, pop: str) -> None:
        super().__init__(pop)
        self.local = MemoryDocs()
        self.mailbox = MemoryMail()


class Cluster:
    """PoPs of one cluster, with a line that can be cut in front of each."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in names}
        self.lines = {name: Line(port) for name, port in self.ports.items()}
        self.stores = {name: DocumentedStore(name) for name in names}
        self.pops: dict[str, LinkPop] = {}

    def start(self, name: str, **changes: Any) -> LinkPop:
        settings = make_settings(self.folder, name, self.ports, **changes)
        peers = {peer: Peer(host="127.0.0.1", port=line.port) for peer, line in self.lines.items() if peer != name}
        settings = settings.model_copy(update={"link": settings.link.model_copy(update={"peers": peers})})
        pop = self.pops[name] = LinkPop(settings, self.stores[name]).start()
        return pop

    def append(self, name: str, ns: str, payload: bytes, *blobs: bytes) -> None:
        def step() -> None:
            self.stores[name].namespace(ns).append(payload, blobs)
            self.pops[name].links.notify({ns})

        self.pops[name].call(step)

    def same(self) -> bool:
        stores = list(self.stores.values())
        for name in {ns for store in stores for ns in store.spaces}:
            first, *others = (store.namespace(name) for store in stores)
            if any(other.entries != first.entries or other.missing for other in (first, *others)):
                return False
        return True

    def stop(self) -> None:
        for pop in self.pops.values():
            pop.stop()
        for line in self.lines.values():
            line.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(*names: str) -> Cluster:
        made.append(Cluster(tmp_path, *names))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_three_pops_mirror_each_other(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("chicago", "la", "ny")
    for name in ("chicago", "la", "ny"):
        pops.start(name)
    for n in range(100):
        for name in pops.pops:
            pops.append(name, "ns", b"%d" % n, *([random.randbytes(400_000)] if n % 25 == 0 else []))
    wait_until(
        lambda: pops.same() and pops.stores["la"].namespace("ns").logs() == pops.stores["ny"].namespace("ns").logs(),
        "all alike",
    )
    wait_until(lambda: pops.stores["ny"].local.docs("link_state")["la"]["state"] == "up", "link_state is written")
    wait_until(lambda: pops.pops["la"].state("ny")["entries_behind"] == 0, "nothing is behind")
    document = pops.pops["la"].state("ny")
    assert document["rtt_ms"] is not None and document["bytes_behind"] == 0 and document["last_error"] == ""
    acknowledged = pops.pops["la"].call(lambda: pops.pops["la"].links.acknowledged("ns"))
    assert list(acknowledged.values()) == [100]


def test_new_entries_do_not_wait_for_a_tick(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    pops.start("a")
    pops.start("b")
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "up", "up")
    for n in range(20):
        pops.append("a", "ns", b"%d" % n)
        wait_until(
            lambda n=n: any(seq == n + 1 for seq in pops.stores["b"].namespace("ns").logs().values()),
            "arrived",
            0.5,
            0.001,
        )


def test_a_cut_in_the_middle_of_a_blob_is_made_good(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    pops.start("a")
    pops.start("b")
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "up", "up")
    pops.lines["b"].cut_after_bytes = 3_000_000
    blob = random.randbytes(10_000_000)
    pops.append("a", "ns", b"1", blob)
    wait_until(lambda: not pops.lines["b"].is_open, "the line is cut")
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "down", "down")
    pops.append("a", "ns", b"2")
    assert digest_of(blob) not in pops.stores["b"].namespace("ns").blobs
    pops.lines["b"].heal()
    wait_until(
        lambda: pops.same() and pops.stores["b"].namespace("ns").blobs.get(digest_of(blob)) == blob, "the blob is whole"
    )
    assert pops.pops["a"].state("b")["last_error"] == ""


def test_while_the_line_is_cut_the_state_says_how_much_is_behind(
    cluster: Callable[..., Cluster], wait_until: Wait
) -> None:
    pops = cluster("a", "b")
    pops.start("a")
    pops.start("b")
    pops.append("a", "ns", b"0")
    links = pops.pops["a"].links
    wait_until(
        lambda: list(pops.pops["a"].call(lambda: links.acknowledged("ns")).values()) == [1], "the first is acknowledged"
    )
    pops.lines["b"].cut()
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "down", "down")
    for n in range(5):
        pops.append("a", "ns", b"%d" % n)
    wait_until(lambda: pops.pops["a"].state("b")["entries_behind"] == 5, "five behind")
    wait_until(lambda: pops.pops["a"].state("b")["staleness_ms"] > 0, "stale")
    pops.lines["b"].heal()
    wait_until(lambda: pops.same() and pops.pops["a"].state("b")["entries_behind"] == 0, "caught up")


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restart_of_either_side_goes_on_from_the_cursors(
    cluster: Callable[..., Cluster], wait_until: Wait, who: str
) -> None:
    pops = cluster("a", "b")
    pops.start("a")
    pops.start("b")
    for n in range(50):
        pops.append("a", "ns", b"a%d" % n)
        pops.append("b", "ns", b"b%d" % n)
        if n == 25:
            pops.pops[who].stop()
            pops.start(who)
    wait_until(lambda: pops.same() and len(pops.stores["a"].namespace("ns").entries) == 2, "alike after the restart")


def test_random_cuts_lose_nothing(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    pops.start("a")
    pops.start("b")
    how = random.Random(7)
    for n in range(120):
        pops.append(
            how.choice("ab"),
            how.choice(["x", "y"]),
            b"%d" % n,
            *[how.randbytes(how.choice([10_000, 300_000]))] * how.choice([0, 0, 1]),
        )
        if how.random() < 0.1:
            pops.lines["b"].cut_after_bytes = how.randrange(1, 500_000)
        pops.lines["b"].heal()
    pops.lines["b"].cut_after_bytes = None
    wait_until(
        lambda: (
            pops.same()
            and sum(len(log) for ns in "xy" for log in pops.stores["a"].namespace(ns).entries.values()) == 120
        ),
        "alike",
        20,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"cluster": "other"}, "cluster"), ({"ca": "another-ca"}, "certificate")],
    ids=["another cluster", "another CA"],
)
def test_a_wrong_peer_is_refused_by_name_and_the_others_go_on(
    cluster: Callable[..., Cluster], wait_until: Wait, changes: dict[str, Any], words: str
) -> None:
    pops = cluster("a", "b", "c")
    pops.start("a")
    pops.start("b", **changes)
    pops.start("c")
    wait_until(lambda: pops.pops["a"].state("c")["state"] == "up", "the good pair")
    wait_until(lambda: words in pops.pops["a"].state("b")["last_error"], "the reason is named")
    pops.append("a", "ns", b"1")
    wait_until(lambda: pops.stores["c"].namespace("ns").logs(), "the good pair works")
    assert not pops.stores["b"].namespace("ns").logs()


def client(pops: Cluster, name: str, target: str) -> ssl.SSLSocket:
    secrets = pops.folder / name / "secrets"
    context = ssl.create_default_context(cafile=str(pops.folder / "ca" / "ca.pem"))
    context.load_cert_chain(secrets / "link.pem", secrets / "link.key")
    sock = socket.create_connection(("127.0.0.1", pops.ports[target]), timeout=10)
    return context.wrap_socket(sock, server_hostname=target)


def read_all(sock: ssl.SSLSocket) -> bytes:
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except OSError:
        pass
    return data


@pytest.mark.parametrize(
    ("who", "said", "words"),
    [
        ("stranger", b"", b"'stranger' is not a peer of b"),
        ("z", b"", b"the smaller id dials"),
        ("a", encode(Hello(VERSION, "c1", "c", {})), b"the hello says 'c'"),
        ("a", encode(Hello(9, "c1", "a", {})), b"link version 9"),
        ("a", encode(Ping(1, [])), b"ping before hello"),
        ("a", b"\xff\xff\xff\xff rubbish", b"announces 4294967295 bytes"),
        ("a", b"\x00\x00\x00\x01\xc1", b"not msgpack"),
    ],
)
def test_strangers_and_rubbish_hear_why_and_disturb_nobody(
    cluster: Callable[..., Cluster], wait_until: Wait, who: str, said: bytes, words: bytes
) -> None:
    pops = cluster("a", "b", "z")
    make_settings(pops.folder, "stranger", {**pops.ports, "stranger": 1})
    for name in ("a", "z"):
        make_settings(pops.folder, name, pops.ports)
    pops.start("b")
    with client(pops, who, "b") as sock:
        sock.sendall(said)
        assert words in read_all(sock)
    with socket.create_connection(("127.0.0.1", pops.ports["b"])) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        plain.settimeout(10)
        try:
            while plain.recv(1000):
                pass
        except OSError:
            pass
    pops.start("a")
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "up", "the right one gets in")


def test_a_name_that_cannot_be_resolved_is_tried_again(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    settings = make_settings(pops.folder, "a", pops.ports)
    peers = {"b": Peer(host="nowhere.invalid", port=1)}
    settings = settings.model_copy(update={"link": settings.link.model_copy(update={"peers": peers})})
    pops.pops["a"] = LinkPop(settings, pops.stores["a"]).start()
    wait_until(lambda: "cannot be resolved" in pops.pops["a"].state("b")["last_error"], "the reason is named")


def test_a_taken_port_is_refused_by_name(cluster: Callable[..., Cluster]) -> None:
    pops = cluster("a", "b")
    with (
        socket.create_server(("127.0.0.1", pops.ports["a"])),
        pytest.raises(Exception, match="cannot listen for links"),
    ):
        pops.start("a")
