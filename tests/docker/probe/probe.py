"""Runs inside a container and prints as one JSON line what it can reach. Standard library only.

Arguments: host:port targets to try besides those it finds by itself.
"""

import json
import os
import socket
import sys
import time


def sockets() -> list[str]:
    """Every unix socket in the file system that this process can see."""
    found = []
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.stat(path).st_mode & 0o170000 == 0o140000:
                    found.append(path)
            except OSError:
                pass
    return found


def connects(family: int, address: object) -> bool:
    with socket.socket(family) as client:
        client.settimeout(3)
        try:
            client.connect(address)
        except OSError:
            return False
        return True


def writes(path: str) -> bool:
    try:
        with open(path, "w") as file:
            file.write("x")
        os.unlink(path)
    except OSError:
        return False
    return True


def resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        return False
    return True


def status(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith(name + ":"))


def forks(limit: int) -> int:
    """How many children it can have at once, at most `limit`."""
    children: list[int] = []
    try:
        while len(children) < limit:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return len(children)


def main() -> None:
    own = os.environ.get("EDGEFLOW_SOCKET", "")
    targets = [target.rpartition(":") for target in sys.argv[1:]]
    seen = sockets()
    report = {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "capabilities": int(status("CapEff"), 16) | int(status("CapBnd"), 16) | int(status("CapPrm"), 16),
        "no_new_privileges": status("NoNewPrivs") == "1",
        "seccomp": status("Seccomp"),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "own_socket": connects(socket.AF_UNIX, own) if own else False,
        "sockets_seen": seen,
        "sockets_reached": [path for path in seen if path != own and connects(socket.AF_UNIX, path)],
        "targets_reached": [
            f"{host}:{port}" for host, _, port in targets if connects(socket.AF_INET, (host, int(port)))
        ],
        "names_resolved": [
            name for name in ("deb.debian.org", "store", "broker", "host.docker.internal") if resolves(name)
        ],
        "writable": [
            path
            for path in ("/x", "/etc/x", "/function/x", os.path.join(os.path.dirname(own) or "/", "x"), "/tmp/x")
            if writes(path)
        ],
        "children": forks(600),
    }
    print(json.dumps(report), flush=True)


main()
