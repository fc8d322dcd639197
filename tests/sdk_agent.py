"""An agent's end of the instance protocol that does only what a test tells it, and an instance in a thread or a process of its own."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeflow.core.events import BlobRef, Event
from edgeflow.core.wire import FrameReader, encode_frame
from edgeflow.sdk.ending import Stop
from edgeflow.sdk.runtime import Instance

TIMEOUT_S = 10.0
Message = dict[str, Any]


def stored_event(
    data: bytes = b"x",
    *,
    channel: str = "vision/frames",
    subject: str | None = "clip/1",
    ref: BlobRef | None = None,
    **more: Any,
) -> Message:
    body = None if ref else data
    return Event(
        channel=channel,
        id="e1",
        source="test",
        type="edgeflow.message",
        time_ms=1_700_000_000_000,
        data=body,
        ref=ref,
        subject=subject,
        **more,
    ).encode_positioned()


def item(
    invocation: str,
    *events: Message,
    attempt: int = 1,
    name: str = "frames",
    context: Message | None = None,
    inputs: list[Message] | None = None,
    **more: Any,
) -> Message:
    """A work item with these events as the input `name`, or with these inputs; `more` are its optional fields."""
    if inputs is None:
        inputs = [{"name": name, "event": one} for one in events or (stored_event(),)]
    deadline_ms = int(time.time() * 1000) + 30_000
    return {
        "invocation": invocation,
        "attempt": attempt,
        "deadline_ms": deadline_ms,
        "inputs": inputs,
        "context": context or {},
        **more,
    }


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_S)
        self.sock = sock
        self._reader = FrameReader()
        self._inbox: deque[Message] = deque()

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(encode_frame(message) for message in messages))

    def batch(self) -> list[Message]:
        """The messages that one read brings (together with what was read and not looked at before)."""
        while not self._inbox:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            self._inbox.extend(self._reader.feed(data))
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def next(self) -> Message:
        messages = self.batch()
        self._inbox.extend(messages[1:])
        return messages[0]

    def expect(self, kind: str) -> Message:
        message = self.next()
        assert message["t"] == kind, message
        return message

    def silent(self, timeout_s: float = 0.2) -> bool:
        """Whether nothing arrives for a while."""
        if self._inbox:
            return False
        self.sock.settimeout(timeout_s)
        try:
            self._inbox.extend(self._reader.feed(self.sock.recv(1 << 20)))
            return False
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT_S)

    def ended(self) -> bool:
        """Whether the instance closes the socket without another message."""
        try:
            self.next()
        except (EOFError, ConnectionResetError):
            return True
        return False

    def welcome(self, **overrides: Any) -> Message:
        hello = self.expect("hello")
        self.send(welcome(**overrides))
        self.expect("ready")
        return hello

    def committed(self, message: Message, status: str = "committed", error: str | None = None) -> Message:
        return {
            "t": "committed",
            "invocation": message["invocation"],
            "attempt": message["attempt"],
            "status": status,
            "error": error,
        }

    def close(self) -> None:
        self.sock.close()


def welcome(**overrides: Any) -> Message:
    message = {
        "t": "welcome",
        "protocol": 1,
        "namespace": "vision",
        "function": "detect",
        "revision": "abc",
        "instance": "i1",
        "pop": "la",
        "inputs": [{"name": "frames", "channel": "vision/frames"}],
        "join": None,
        "publish": ["vision/faces"],
        "context": {},
        "timeout_ms": 30_000,
    }
    return {**message, **overrides}


class FakeAgent:
    """Listens where an instance connects."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "s")
        self._listener: socket.socket | None = None
        self._peers: list[Peer] = []
        self.listen()

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(TIMEOUT_S)
        self._listener.bind(self.path)
        self._listener.listen(4)

    def accept(self) -> Peer:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        self._peers.append(Peer(sock))
        return self._peers[-1]

    def nobody_comes(self, timeout_s: float = 0.5) -> bool:
        """Whether no instance connects for a while."""
        assert self._listener is not None
        self._listener.settimeout(timeout_s)
        try:
            self._peers.append(Peer(self._listener.accept()[0]))
            return False
        except TimeoutError:
            return True
        finally:
            self._listener.settimeout(TIMEOUT_S)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        Path(self.path).unlink(missing_ok=True)


class InstanceThread:
    """An Instance whose "main thread" is a thread of the test."""

    def __init__(self, path: str, handle: Callable[..., Any]) -> None:
        self.stop = Stop()
        self.exits: list[int] = []
        self.status: int | None = None
        self.error: BaseException | None = None
        self.instance = Instance(path, lambda: handle, stop=self.stop, exit_now=self._exit)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> int | None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the instance did not end"
        return self.status

    def end(self) -> None:
        self.stop.request()
        self.join()

    def _run(self) -> None:
        try:
            self.status = self.instance.run()
        except BaseException as error:
            self.error = error

    def _exit(self, status: int) -> None:
        self.exits.append(status)


Start = Callable[..., tuple[Peer, InstanceThread]]


def start_process(path: str, folder: Path, source: str) -> subprocess.Popen[str]:
    """An instance as the runner starts one."""
    (folder / "handler.py").write_text(source)
    environment = {**os.environ, "EDGEFLOW_SOCKET": path, "EDGEFLOW_HANDLER": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "edgeflow.sdk.runtime"], env=environment, stderr=subprocess.PIPE, text=True
    )


def echo(ctx: Any, frames: Any) -> bytes:
    return bytes(frames.data)


def give(peer: Peer, *items: dict[str, Any]) -> None:
    peer.expect("claim")
    peer.send({"t": "work", "items": list(items)})


def quicken(peer: Peer, thread: InstanceThread) -> None:
    """Runs one invocation, so that the instance claims many at once."""
    give(peer, item("first"))
    peer.send(peer.committed(peer.expect("commit")))
    thread.instance.prefetch = lambda: 64  # type: ignore[method-assign]


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def referring(body: bytes) -> dict[str, Any]:
    return stored_event(ref=BlobRef(digest_of(body), len(body)))
