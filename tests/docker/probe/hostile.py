"""What a hostile function would try, from inside its container. Prints one JSON line: {"rows": [{"area", "tried", "refused", "said"}], ...}.

Standard library and msgpack (which the base image has). Environment: TARGETS (host:port, space separated), FOREIGN_DIGEST (a body of another
namespace), FOREIGN_INVOCATION (an invocation of another function), EDGEFLOW_SOCKET.
"""

import ctypes
import errno
import hashlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack

LIBC = ctypes.CDLL(None, use_errno=True)
ROWS: list[dict[str, Any]] = []
OWN = os.environ["EDGEFLOW_SOCKET"]


def row(area: str, tried: str, refused: bool, said: str) -> None:
    ROWS.append({"area": area, "tried": tried, "refused": refused, "said": said[:160]})


# -- the machine -------------------------------------------------------------------------------------------------------


def attempt(area: str, tried: str, act: Callable[[], object]) -> None:
    """Refused when the call raises OSError."""
    try:
        found = act()
    except OSError as error:
        row(area, tried, True, errno.errorcode.get(error.errno or 0, str(error)))
    else:
        row(area, tried, False, str(found))


def syscall(name: str, *arguments: Any) -> Callable[[], object]:
    def call() -> object:
        result = getattr(LIBC, name)(*arguments)
        if result == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    return call


def connect(family: int, address: Any) -> Callable[[], object]:
    def call() -> object:
        with socket.socket(family) as client:
            client.settimeout(3)
            client.connect(address)
            return "connected"

    return call


def opened(path: str, mode: str) -> Callable[[], object]:
    def call() -> object:
        with open(path, mode) as file:
            return file.write(b"x") if "w" in mode or "a" in mode else file.read(16)

    return call


def other_sockets() -> list[str]:
    found = []
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys")]
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.stat(path).st_mode & 0o170000 == 0o140000 and path != OWN:
                    found.append(path)
            except OSError:
                pass
    return found


def machine() -> None:
    interfaces = sorted(name for _, name in socket.if_nameindex())
    row("network", "a network interface besides loopback", interfaces == ["lo"], ", ".join(interfaces))
    for target in os.environ.get("TARGETS", "").split():
        host, _, port = target.rpartition(":")
        attempt("network", f"a port of the machine ({port})", connect(socket.AF_INET, (host, int(port))))
    attempt("network", "an address on the internet", connect(socket.AF_INET, ("198.51.100.1", 443)))
    attempt("network", "the metadata service of a cloud", connect(socket.AF_INET, ("169.254.169.254", 80)))
    attempt("network", "names (DNS)", lambda: socket.getaddrinfo("deb.debian.org", 80))
    attempt(
        "network", "a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    )
    attempt("network", "a packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())

    sockets = other_sockets()
    row("sockets", "a unix socket besides its own", not sockets, ", ".join(sockets))
    for path in ("/var/run/docker.sock", "/run/containerd/containerd.sock"):
        attempt("sockets", path, connect(socket.AF_UNIX, path))
    with open("/proc/net/unix") as file:
        names = [line.split()[-1] for line in file if line.split()[-1].startswith("@")]
    row("sockets", "abstract sockets of the machine", not names, ", ".join(names[:5]))

    for path in (
        "/x",
        "/etc/x",
        "/usr/bin/x",
        "/function/x",
        os.path.join(os.path.dirname(OWN), "x"),
        "/run/secrets/x",
    ):
        attempt("files", f"writing {os.path.dirname(path) or '/'}", opened(path, "wb"))
    attempt("files", "mounting a file system", syscall("mount", b"none", b"/tmp", b"tmpfs", 0, None))
    attempt("files", "making / writable again", syscall("mount", b"none", b"/", None, 32, None))
    attempt("files", "unmounting its socket's folder", syscall("umount2", os.path.dirname(OWN).encode(), 2))
    attempt("files", "chroot", syscall("chroot", b"/tmp"))
    attempt("files", "a file of another account (/etc/shadow)", opened("/etc/shadow", "rb"))

    attempt("rights", "becoming root", lambda: os.setuid(0))
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    held = int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16) | int(status["CapInh"], 16)
    row("rights", "a capability", held == 0, hex(held))
    row("rights", "gaining rights by a set-uid program", status["NoNewPrivs"].strip() == "1", "no_new_privs")
    row(
        "rights",
        "system calls without a filter",
        status["Seccomp"].strip() == "2",
        f"seccomp {status['Seccomp'].strip()}",
    )
    for name, flag in (("user", 0x10000000), ("mount", 0x00020000), ("network", 0x40000000), ("process", 0x20000000)):
        attempt("rights", f"a {name} namespace of its own", syscall("unshare", flag))
    attempt(
        "rights",
        "joining the namespaces of process 1",
        lambda: LIBC.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0) and _raise(),
    )
    attempt("rights", "naming the machine", syscall("sethostname", b"x", 1))
    attempt("rights", "setting the clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
    attempt("rights", "loading a kernel module", syscall("init_module", b"x", 1, b""))
    attempt("rights", "restarting the machine", syscall("reboot", 0x01234567))
    attempt("rights", "more priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))

    attempt("devices", "a device node of its own", lambda: os.mknod("/tmp/sda", 0o60600, os.makedev(8, 0)))
    for path in ("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse", "/dev/kvm"):
        attempt("devices", path, opened(path, "rb"))

    mine = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    row("processes", "seeing processes of the machine", len(mine) < 10, f"{len(mine)} seen")
    attempt("processes", "the memory of process 1", opened("/proc/1/mem", "rb"))
    for path in ("/proc/kcore", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper"):
        attempt("processes", path, opened(path, "rb" if path == "/proc/kcore" else "ab"))


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


# -- its socket --------------------------------------------------------------------------------------------------------


class Line:
    """A connection to the agent."""

    def __init__(self, *, greet: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(OWN)
        self.buffer = b""
        self.welcome: dict[str, Any] = {}
        if greet:
            self.send({"t": "hello", "protocol": 1, "sdk": "hostile/1"})
            self.welcome = self.expect("welcome")
            self.send({"t": "ready"})

    def raw(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            pass

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            body = msgpack.packb(message)
            self.raw(struct.pack(">I", len(body)) + body)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the agent has closed."""
        while True:
            if len(self.buffer) >= 4 and len(self.buffer) >= 4 + int.from_bytes(self.buffer[:4], "big"):
                size = int.from_bytes(self.buffer[:4], "big")
                message, self.buffer = msgpack.unpackb(self.buffer[4 : 4 + size]), self.buffer[4 + size :]
                return message
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionError:
                return None
            except TimeoutError:
                return {"t": "silence"}
            if not data:
                return None
            self.buffer += data

    def expect(self, *kinds: str) -> dict[str, Any]:
        while True:
            message = self.receive()
            if message is None:
                return {"t": "closed"}
            if message["t"] in (*kinds, "silence"):
                return message

    def close(self) -> None:
        self.sock.close()


def line(greet: bool = True) -> Line:
    """A connection; the agent may still be busy with the end of the one before."""
    for _ in range(50):
        try:
            one = Line(greet=greet)
        except OSError:
            time.sleep(0.1)
            continue
        if not greet or one.welcome.get("t") == "welcome":
            return one
        one.close()
        time.sleep(0.1)
    raise SystemExit("the agent does not take connections")


def breaks(tried: str, send: Callable[[Line], None], *, greet: bool = True) -> None:
    """Refused when the agent names the mistake, or closes."""
    one = line(greet)
    send(one)
    answer = one.expect("error")
    row("protocol", tried, answer["t"] in ("error", "closed"), answer.get("code", answer["t"]))
    one.close()


def asks(area: str, tried: str, request: dict[str, Any], is_refused: Callable[[dict[str, Any]], bool]) -> None:
    one = line()
    one.send({**request, "r": 1})
    answer = one.expect("reply", "error")
    said = answer.get("code") or str(answer.get("value", answer.get("items", answer["t"])))
    row(area, tried, is_refused(answer), said)
    one.close()


def claims() -> tuple[Line, dict[str, Any]]:
    one = line()
    one.send({"t": "claim", "max": 1})
    work = one.expect("work")
    if work["t"] != "work":
        raise SystemExit(f"no work came: {work}")
    return one, work["items"][0]


def commits(area: str, tried: str, wanted: str, **parts: Any) -> None:
    """A commit of an own attempt with something in it that is not its own. Refused: the answer is `wanted` and not committed."""
    one, item = claims()
    message = {
        "t": "commit",
        "invocation": item["invocation"],
        "attempt": item["attempt"],
        "outputs": [],
        "values": [],
        **parts,
    }
    one.send(message)
    answer = one.expect("committed", "error")
    said = answer.get("error") or answer.get("status") or answer["t"]
    row(area, tried, answer.get("status") == wanted or answer["t"] in ("error", "closed"), str(said))
    one.close()


def own_socket() -> None:
    breaks("a frame of 2 GiB", lambda one: one.raw(struct.pack(">I", 1 << 31)), greet=False)
    breaks("rubbish in place of a frame", lambda one: one.raw(struct.pack(">I", 64) + os.urandom(64)), greet=False)
    breaks("a frame that is no map", lambda one: one.raw(struct.pack(">I", 1) + b"\x01"))
    breaks("lists a million deep", lambda one: one.raw(struct.pack(">I", 1_000_000) + b"\x91" * 1_000_000))
    breaks("working without a hello", lambda one: one.send({"t": "claim", "max": 1}), greet=False)
    breaks("another protocol", lambda one: one.send({"t": "hello", "protocol": 99}), greet=False)
    breaks("a message that does not exist", lambda one: one.send({"t": "admin", "command": "stop"}))
    breaks("a claim of nothing", lambda one: one.send({"t": "claim", "max": -1}))
    breaks("a claim of text", lambda one: one.send({"t": "claim", "max": "all"}))
    breaks("a commit without an invocation", lambda one: one.send({"t": "commit", "outputs": []}))
    breaks(
        "a body that is not what its digest says",
        lambda one: one.send({"t": "blob", "digest": "sha256:" + "0" * 64, "data": b"x"}),
    )
    breaks(
        "a body larger than any may be",
        lambda one: one.send({"t": "blob", "digest": "sha256:" + "0" * 64, "data": b"x", "off": 0, "size": 1 << 50}),
    )
    breaks(
        "a piece that follows nothing",
        lambda one: one.send({"t": "blob", "digest": "sha256:" + "0" * 64, "data": b"x", "off": 7, "size": 9}),
    )
    breaks("an account at the broker", lambda one: one.send({"t": "grant"}))

    one = line(greet=False)
    one.send(
        {"t": "hello", "protocol": 1, "namespace": "victim", "function": "steady", "instance": "other", "sdk": "x"}
    )
    welcome = one.expect("welcome", "error")
    row(
        "identity",
        "being another function of another namespace",
        welcome.get("namespace") != "victim",
        str(welcome.get("namespace")),
    )
    one.close()

    foreign = os.environ.get("FOREIGN_INVOCATION", "0" * 40)
    one = line()
    one.send(
        {"t": "commit", "invocation": foreign, "attempt": 1, "outputs": [], "values": [{"key": "stolen", "data": b"x"}]}
    )
    row(
        "attempts",
        "committing another function's invocation",
        one.expect("committed").get("status") == "stale",
        "stale",
    )
    one.send({"t": "fail", "invocation": foreign, "attempt": 1, "error": "x", "retry": False})
    one.send({"t": "release", "invocations": [[foreign, 1]]})
    one.send({"t": "get", "r": 1, "key": "x"})
    row(
        "attempts",
        "failing or giving back another's invocation",
        one.expect("reply", "error")["t"] == "reply",
        "ignored",
    )
    one.close()
    one, item = claims()
    one.send(
        {"t": "commit", "invocation": item["invocation"], "attempt": item["attempt"] + 1, "outputs": [], "values": []}
    )
    row(
        "attempts",
        "committing an attempt that it was not given",
        one.expect("committed").get("status") == "stale",
        "stale",
    )
    done = {"t": "commit", "invocation": item["invocation"], "attempt": item["attempt"], "outputs": [], "values": []}
    one.send(done)
    one.expect("committed")
    one.send(done)
    row("attempts", "committing twice", one.expect("committed").get("status") == "stale", "stale")
    one.close()

    absent = lambda answer: answer.get("ok") is True and answer.get("value") is None  # noqa: E731
    refused = lambda answer: answer["t"] == "error" or answer.get("ok") is False  # noqa: E731
    either = lambda answer: absent(answer) or refused(answer)  # noqa: E731
    for key in ("victim/secret", "../victim/secret", "/victim/secret", "ef:victim:secret"):
        asks("data", f"reading the key {key}", {"t": "get", "key": key}, either)
    asks("data", "reading a secret's sealed value", {"t": "get", "key": "secrets/victim/token"}, either)
    asks("data", "listing keys of another namespace", {"t": "list", "prefix": "victim/", "after": "", "limit": 1000},
         lambda answer: refused(answer) or answer.get("items") == [])  # fmt: skip
    digest = os.environ.get("FOREIGN_DIGEST", "sha256:" + "0" * 64)
    asks("data", "fetching a body of another namespace by its digest", {"t": "fetch", "digest": digest}, refused)
    asks("data", "a session token of its own making", {"t": "session", "token": "x" * 50}, refused)

    out = {"subject": None, "type": None, "datacontenttype": None, "attributes": {}}
    commits(
        "data",
        "a body of another namespace as its own output",
        "refused",
        outputs=[{**out, "channel": "out", "digest": digest, "size": 9}],
    )
    commits("data", "writing into edgeflow's own keys", "refused", values=[{"key": "_state/steady/a", "data": b"x"}])
    commits("data", "a key outside of its namespace", "refused", values=[{"key": "/victim/secret", "data": b"x"}])
    commits(
        "channels", "a channel of another namespace", "refused", outputs=[{**out, "channel": "victim/in", "data": b"x"}]
    )
    commits(
        "channels",
        "a channel that its manifest does not list",
        "refused",
        outputs=[{**out, "channel": "hostile/in", "data": b"x"}],
    )
    commits(
        "channels", "edgeflow's own channels", "refused", outputs=[{**out, "channel": "_dead/steady", "data": b"x"}]
    )
    commits(
        "limits", "more events than `limits.outputs`", "refused", outputs=[{**out, "channel": "out", "data": b"x"}] * 6
    )
    big = b"y" * 300_000
    known = "sha256:" + hashlib.sha256(big).hexdigest()
    one, item = claims()
    one.send({"t": "blob", "digest": known, "data": big})
    one.send({"t": "commit", "invocation": item["invocation"], "attempt": item["attempt"], "values": [],
              "outputs": [{**out, "channel": "out", "digest": known, "size": len(big)}]})  # fmt: skip
    answer = one.expect("committed")
    row("limits", "more bytes than `limits.output_bytes`", answer.get("status") == "refused", str(answer.get("error")))
    one.close()
    one, item = claims()
    one.send({"t": "blob", "digest": known, "data": big})
    one.send({"t": "commit", "invocation": item["invocation"], "attempt": item["attempt"], "values": [],
              "outputs": [{**out, "channel": "out", "digest": known, "size": 1}]})  # fmt: skip
    answer = one.expect("committed")
    row(
        "limits",
        "the same with a size that is a lie",
        answer.get("status") == "refused",
        str(answer.get("error") or answer.get("status")),
    )
    one.close()


def main() -> None:
    machine()
    own_socket()
    print(json.dumps({"rows": ROWS}), flush=True)
    # It stays as a function that behaves would, so that it is not started again.
    one = line()
    while one.receive() is not None:
        pass


if __name__ == "__main__":
    sys.exit(main())
