"""A user-space TCP proxy on the links between PoPs: gives a pair of PoPs a one-way delay, or cuts it.

What it is: the wide area network of a cluster on one machine. It is always in the path; with delay 0 it only copies bytes.
What it is not: a model of loss or bandwidth, or a part of the link protocol. It does not look into the (encrypted) bytes.
What must stay true: bytes of a connection stay in order whatever the delay does; memory is bounded (a slow receiver slows its sender down);
a cut holds bytes back as a dead line does, connections stay open, and nothing is lost or altered when it heals.

The document it is controlled by (read again every 100 ms when it changed):
`{"links": [{"a": "chicago", "b": "la", "listen_host": "127.0.0.1", "listen_port": 7201, "target_host": "127.0.0.1", "target_port": 7102,
"delay_ms": 0, "cut": false}]}`. `a` dials, `b` answers; `delay_ms` applies in each direction.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from edgeflow.host.errors import BadClusterSpec
from edgeflow.host.files import write_json

POLL_S = 0.1
CHUNK_BYTES = 256 * 1024
QUEUE_BYTES = 32 * 1024 * 1024
"""Most bytes on their way in one direction of one connection: 100 ms at 320 MB/s."""
DIAL_RETRY_S = 0.2
DIAL_TRIES = 10

log = structlog.get_logger()


@dataclass(frozen=True)
class Link:
    """One pair of PoPs."""

    a: str
    b: str
    listen_host: str
    listen_port: int
    target_host: str
    target_port: int
    delay_ms: float = 0.0
    cut: bool = False


def load_links(path: Path) -> list[Link]:
    """The links in the control document."""
    return [Link(**item) for item in json.loads(path.read_text())["links"]]


def save_links(path: Path, links: Iterable[Link]) -> None:
    status = path.stat() if path.exists() else None
    owner = (status.st_uid, status.st_gid) if status else None
    write_json(path, {"links": [asdict(link) for link in links]}, owner=owner)


def change_link(path: Path, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None) -> Link:
    """Change delay (ms, one way) or cut of the pair `a`,`b` (in either order). Raises BadClusterSpec if there is no such pair."""
    if delay_ms is not None and not 0 <= delay_ms <= 60_000:
        raise BadClusterSpec(f"A delay of {delay_ms} ms is not possible.", hint="Give 0 to 60000 ms.")
    links = load_links(path)
    for position, link in enumerate(links):
        if {link.a, link.b} == {a, b}:
            changed = replace(
                link,
                delay_ms=link.delay_ms if delay_ms is None else float(delay_ms),
                cut=link.cut if cut is None else cut,
            )
            links[position] = changed
            save_links(path, links)
            return changed
    known = ", ".join(f"{link.a},{link.b}" for link in links) or "none"
    raise BadClusterSpec(f"There is no link between {a!r} and {b!r}.", hint=f"Links of this cluster: {known}.")


class LinkState:
    """A link's current settings, shared by its connections, with a way to wait for the end of a cut."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._open = asyncio.Event()
        self._changed = asyncio.Event()
        self.update(link)

    def update(self, link: Link) -> None:
        self.link = link
        self._changed.set()  # those who wait hold this event; later ones get the next
        self._changed = asyncio.Event()
        if link.cut:
            self._open.clear()
        else:
            self._open.set()

    async def wait_open(self) -> None:
        """Until the link is not cut."""
        await self._open.wait()

    async def wait_changed(self, timeout_s: float) -> None:
        """Until the settings change, at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    @property
    def delay_s(self) -> float:
        return self.link.delay_ms / 1000.0


class Pipe:
    """One direction of one connection: read, hold back, write in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: LinkState) -> None:
        self._reader = reader
        self._writer = writer
        self._state = state
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._arrived = asyncio.Event()
        self._left = asyncio.Event()

    async def run(self) -> None:
        """Until the end of the stream was passed on. Raises OSError when either side breaks."""
        feeder = asyncio.create_task(self._feed())
        try:
            await self._drain()
        finally:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await feeder

    async def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await self._reader.read(CHUNK_BYTES):
                self._held.append((loop.time(), data))
                self._held_bytes += len(data)
                self._arrived.set()
                while self._held_bytes > QUEUE_BYTES:
                    self._left.clear()
                    await self._left.wait()
        except OSError:
            pass  # a reset travels as the end of the stream, after what was sent before it
        self._held.append((loop.time(), b""))
        self._arrived.set()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._held:
                self._arrived.clear()
                await self._arrived.wait()
            arrived_s, data = self._held[0]
            # The delay is looked up when the head is sent, so a change also applies to what is under way; order is the queue's.
            while (wait_s := arrived_s + self._state.delay_s - loop.time()) > 0:
                await self._state.wait_changed(wait_s)
            await self._state.wait_open()
            self._held.popleft()
            self._held_bytes -= len(data)
            self._left.set()
            if not data:
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                return
            self._writer.write(data)
            await self._writer.drain()


class Proxy:
    """Listens for every link of the control document and follows its changes."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._states: dict[tuple[str, str], LinkState] = {}
        self._servers: dict[tuple[str, str], asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises OSError when a port cannot be bound at the start."""
        seen: tuple[int, int] | None = None
        first = True
        while not stop.is_set():
            try:
                status = self._config.stat()
                if (status.st_mtime_ns, status.st_ino) != seen:
                    await self._apply(load_links(self._config))
                    seen = (status.st_mtime_ns, status.st_ino)
            except (ValueError, TypeError, KeyError, OSError) as error:
                if first:
                    raise
                log.warning("wan_config_unusable", config=str(self._config), error=str(error))
                seen = None
            first = False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)
        await self._close()

    async def _apply(self, links: list[Link]) -> None:
        for link in links:
            name = (link.a, link.b)
            state = self._states.get(name)
            if state is None:
                state = self._states[name] = LinkState(link)
                self._servers[name] = await self._listen(state)
            elif state.link != link:
                moved = (state.link.listen_host, state.link.listen_port) != (link.listen_host, link.listen_port)
                state.update(link)
                if moved:
                    self._servers.pop(name).close()
                    self._servers[name] = await self._listen(state)
            else:
                continue
            log.info("link_set", a=link.a, b=link.b, delay_ms=link.delay_ms, cut=link.cut, port=link.listen_port)
        for name in set(self._states) - {(link.a, link.b) for link in links}:
            self._servers.pop(name).close()
            del self._states[name]

    async def _listen(self, state: LinkState) -> asyncio.Server:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
            await self._carry(state, reader, writer)

        return await asyncio.start_server(
            accept, state.link.listen_host, state.link.listen_port, limit=2 * CHUNK_BYTES
        )

    async def _carry(self, state: LinkState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        try:
            await state.wait_open()
            far_reader, far = await self._dial(state)
            sides.append(far)
            for side in sides:
                side.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(Pipe(reader, far, state).run())
                group.create_task(Pipe(far_reader, writer, state).run())
        except* OSError as errors:
            log.debug("link_connection_ended", a=state.link.a, b=state.link.b, error=str(errors.exceptions[0]))
        except* asyncio.CancelledError:
            pass  # the proxy is closing
        finally:
            for side in sides:
                side.close()

    async def _dial(self, state: LinkState) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for attempt in range(DIAL_TRIES):
            try:
                return await asyncio.open_connection(
                    state.link.target_host, state.link.target_port, limit=2 * CHUNK_BYTES
                )
            except OSError:
                if attempt == DIAL_TRIES - 1:
                    raise
                await asyncio.sleep(DIAL_RETRY_S)  # the other PoP is restarting; the dialer's own retry is coarser
        raise ConnectionError("not reached")

    async def _close(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def serve(config: Path) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Proxy(config).run(stop)


def main(argv: list[str] | None = None) -> int:
    """Serve, or with --between change one link of the document and leave."""
    parser = argparse.ArgumentParser(prog="python -m edgeflow.host.wan", description="Delay proxy on PoP links.")
    parser.add_argument("--config", type=Path, required=True, help="the control document")
    parser.add_argument("--between", help="two PoPs, comma-separated: change this link and leave")
    parser.add_argument("--delay-ms", type=float, help="one-way delay (ms) in each direction")
    parser.add_argument("--cut", action=argparse.BooleanOptionalAction, default=None, help="cut or heal the link")
    args = parser.parse_args(argv)
    if args.between:
        a, _, b = args.between.partition(",")
        try:
            change_link(args.config, a, b, delay_ms=args.delay_ms, cut=args.cut)
        except BadClusterSpec as error:
            print(f"{error.message} {error.hint}", file=sys.stderr)
            return 1
        return 0
    try:
        asyncio.run(serve(args.config))
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("wan_failed", config=str(args.config), error=repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
