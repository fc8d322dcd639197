"""A user-space TCP proxy on the links between PoPs: gives a pair of PoPs a one-way delay, a narrow line, or cuts it.

What it is: the wide area network of a cluster on one machine. It is always in the path; with delay 0 it only copies bytes. Each direction of a link has a delay, a
width and a cut of its own.
What it is not: a model of loss, or a part of the link protocol. It does not look into the (encrypted) bytes.
What must stay true: bytes of a connection stay in order whatever the delay does; memory is bounded (a slow receiver slows its sender down);
a cut holds bytes back as a dead line does, connections stay open, and nothing is lost or altered when it heals.

It is controlled by a document (linkfile.py), which it looks at every POLL_S, and counts beside it what it carries.
"""

import argparse
import asyncio
import contextlib
import json
import selectors
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from edgeflow.host.errors import HostError
from edgeflow.host.linkfile import Applied, Line, Link, carried_bytes, change_link, described, load_links, save_carried

POLL_S = 0.02
QUEUE_BYTES = 32 * 1024 * 1024
"""Most bytes on their way in one direction of one connection: 100 ms at 320 MB/s."""
SLICE_S = 0.01
"""A narrow line carries so much at a time, at least a packet; connections of the pair take turns."""
LINE_QUEUE_S = 0.25
"""What may wait for a narrow line, at least 64 KiB."""
PACKET_BYTES = 1500
DIAL_RETRY_S = 0.2
DIAL_TRIES = 10
COUNT_S = 0.5
"""How often what was carried is written down."""

log = structlog.get_logger()


class LinkState:
    """A link's current settings and its open connections, which are told when the settings change."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sides: set[Side] = set()
        self.free_s = {True: 0.0, False: 0.0}
        """When the line has carried what was put on it, by whether it comes from the answering PoP (loop time)."""
        self.carried = {True: 0, False: 0}
        """Bytes, the same way."""

    def update(self, link: Link) -> None:
        self.link = link
        for side in list(self.sides):
            side.forward()

    def line(self, *, dialled: bool) -> Line:
        """The direction that begins at the answering PoP (`dialled`), or at the other."""
        return self.link.line(self.link.b if dialled else self.link.a)

    @property
    def is_cut(self) -> bool:
        """Nothing passes in either direction."""
        return self.line(dialled=False).cut and self.line(dialled=True).cut


class Side(asyncio.Protocol):
    """One end of a carried connection: what arrives here is held as long as the link says, then written to the other end."""

    def __init__(self, state: LinkState, *, dialled: bool = False) -> None:
        self.state = state
        self._dialled = dialled
        self.other: Side | None = None
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes]] = deque()
        """(time of arrival, bytes); no bytes = the end of the stream."""
        self._held_bytes = 0
        self._is_writable = True
        self._is_reading = True
        self._is_lost = False
        self._has_ended = False
        """Its end of stream was passed on."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def line(self) -> Line:
        """The direction that begins here."""
        return self.state.line(dialled=self._dialled)

    @property
    def delay_s(self) -> float:
        return self.line.delay_ms / 1000.0

    @property
    def bytes_per_s(self) -> float:
        return self.line.kbit_s * 125.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state.sides.add(self)

    def data_received(self, data: bytes) -> None:
        self._held.append((self._loop.time(), bytes(data)))
        self._held_bytes += len(data)
        self.forward()

    def eof_received(self) -> bool:
        self._held.append((self._loop.time(), b""))
        self.forward()
        return True  # the other direction may still have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self.other is not None:
            self.other.forward()  # what it holds has nowhere to go now
        self._held.append((self._loop.time(), b""))
        self.forward()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self.other is not None:
            self.other.forward()

    def close(self) -> None:
        """Give the connection up at once."""
        self._is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        self.state.sides.discard(self)
        if self.transport is not None:
            self.transport.abort()

    def forward(self) -> None:
        """Write on what is due, in order; ask to be called again when more will be. The delay is looked up now, so a change also applies to
        what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        while self._held and self._may_write():
            due_s = self._held[0][0] + self.delay_s
            if self.bytes_per_s:
                due_s = max(due_s, self.state.free_s[self._dialled])
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self.forward)
                break
            data = self._take(now_s)
            self._held_bytes -= len(data)
            self._write(data)
        self._throttle()

    def _take(self, now_s: float) -> bytes:
        """What goes on the line now: all of the next piece, or as much of it as a narrow line carries in one turn."""
        came_s, data = self._held.popleft()
        rate = self.bytes_per_s
        if rate:
            most = max(PACKET_BYTES, int(rate * SLICE_S))
            if len(data) > most:
                self._held.appendleft((came_s, data[most:]))
                data = data[:most]
            self.state.free_s[self._dialled] = max(now_s, self.state.free_s[self._dialled]) + len(data) / rate
        return data

    def _may_write(self) -> bool:
        other = self.other
        return other is not None and not self.line.cut and (other._is_writable or other._is_lost)

    def _write(self, data: bytes) -> None:
        other = self.other
        if other is None or other.transport is None or other._is_lost:
            if self._is_lost or not data:
                self.state.sides.discard(self)
            elif self.transport is not None:
                self.transport.close()
        elif data:
            other.transport.write(data)
            self.state.carried[self._dialled] += len(data)
        elif self._is_lost or other._has_ended:
            # Nothing more will come from here, nor from there: what is still to be written is, then both are closed.
            other.transport.close()
            if self.transport is not None:
                self.transport.close()
            self.state.sides.discard(self)
        else:
            self._has_ended = True
            other.transport.write_eof()

    def _throttle(self) -> None:
        """Stop reading when too much is held, go on when it is not."""
        rate = self.bytes_per_s
        most = min(QUEUE_BYTES, max(65536, int(rate * (LINE_QUEUE_S + self.delay_s)))) if rate else QUEUE_BYTES
        should_read = self._held_bytes <= most and (self.other is None or self.other._is_writable or self.delay_s > 0)
        if self.transport is None or self._is_lost or self.transport.is_closing() or should_read == self._is_reading:
            return
        self._is_reading = should_read
        if should_read:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()


class Proxy:
    """Listens for every link of the control document and follows its changes."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._states: dict[tuple[str, str], LinkState] = {}
        self._servers: dict[tuple[str, str], asyncio.Server] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._before: dict[tuple[str, str], int] = {}
        """What was carried before this start, or over links that are no more."""
        self._counted: dict[tuple[str, str], int] = {}
        self._count_at_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises OSError when a port cannot be bound at the start, or another proxy serves this document."""
        with contextlib.closing(Applied(self._config)) as applied:
            self._before = carried_bytes(self._config)
            await self._follow(stop, applied)
            await self._close()
            self._count()

    async def _follow(self, stop: asyncio.Event, applied: Applied) -> None:
        seen: tuple[int, int] | None = None
        first = True
        while not stop.is_set():
            try:
                status = self._config.stat()
                if (status.st_mtime_ns, status.st_ino) != seen:
                    document = load_links(self._config)
                    await self._apply(document.links)
                    applied.tell(document.version)
                    seen = (status.st_mtime_ns, status.st_ino)
            except (ValueError, TypeError, KeyError, OSError) as error:
                if first:
                    raise
                log.warning("wan_config_unusable", config=str(self._config), error=str(error))
                seen = None
            first = False
            self._count_now_and_then()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await stop.wait()

    def open_sides(self) -> int:
        """Ends of connections that are carried now; two for each connection."""
        return sum(len(state.sides) for state in self._states.values())

    async def _apply(self, links: Sequence[Link]) -> None:
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
            log.info(
                "link_set",
                a=link.a,
                b=link.b,
                delay_ms=link.delay_ms,
                cut=link.cut,
                kbit_s=link.kbit_s,
                back=None if link.back is None else asdict(link.back),
                port=link.listen_port,
            )
        for name in set(self._states) - {(link.a, link.b) for link in links}:
            self._servers.pop(name).close()
            for pair, count in _carried(self._states.pop(name)).items():
                self._before[pair] = self._before.get(pair, 0) + count

    def _count_now_and_then(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._count_at_s:
            self._count_at_s = now_s + COUNT_S
            self._count()

    def _count(self) -> None:
        """Write down what was carried, if that is more than before."""
        total = dict(self._before)
        for state in self._states.values():
            for pair, count in _carried(state).items():
                total[pair] = total.get(pair, 0) + count
        if total != self._counted:
            try:
                save_carried(self._config, total)
            except OSError as error:
                log.warning("wan_count_not_written", error=str(error))
                return
            self._counted = total

    async def _listen(self, state: LinkState) -> asyncio.Server:
        def accept() -> Side:
            side = Side(state)
            task = asyncio.ensure_future(self._dial(side))
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)
            return side

        loop = asyncio.get_running_loop()
        return await loop.create_server(accept, state.link.listen_host, state.link.listen_port)

    async def _dial(self, near: Side) -> None:
        """Find the other end for a connection that was accepted. Until then what it says is held."""
        state = near.state
        loop = asyncio.get_running_loop()
        for attempt in range(DIAL_TRIES):
            while state.is_cut:  # noqa: ASYNC110 - polled like the control document that ends it
                await asyncio.sleep(POLL_S)
            try:
                _, far = await loop.create_connection(
                    lambda: Side(state, dialled=True), state.link.target_host, state.link.target_port
                )
            except OSError as error:
                log.debug("dial_failed", a=state.link.a, b=state.link.b, attempt=attempt, error=str(error))
                await asyncio.sleep(DIAL_RETRY_S)  # the other PoP is restarting; the dialer's own retry is coarser
                continue
            near.other, far.other = far, near
            near.forward()
            far.forward()
            return
        near.close()

    async def _close(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._dials):
            task.cancel()
        for state in self._states.values():
            for side in list(state.sides):
                side.close()
        await asyncio.gather(*self._dials, return_exceptions=True)


def _carried(state: LinkState) -> dict[tuple[str, str], int]:
    link = state.link
    return {(link.a, link.b): state.carried[False], (link.b, link.a): state.carried[True]}


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
    parser.add_argument("--kbit-s", type=float, help="width (kbit/s) of each direction; 0 = no bound")
    parser.add_argument("--cut", action=argparse.BooleanOptionalAction, default=None, help="cut or heal the link")
    parser.add_argument("--one-way", action="store_true", help="only what goes from the first to the second")
    parser.add_argument("--show", action="store_true", help="print the links and what they carried, and leave")
    args = parser.parse_args(argv)
    if args.show:
        print(json.dumps(described(args.config)))
        return 0
    if args.between:
        a, _, b = args.between.partition(",")
        try:
            change_link(
                args.config, a, b, delay_ms=args.delay_ms, cut=args.cut, kbit_s=args.kbit_s, one_way=args.one_way
            )
        except HostError as error:
            print(f"{error.message} {error.hint}", file=sys.stderr)
            return 1
        return 0
    try:
        # epoll counts in whole milliseconds, which would be seen in every delay; select does not.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            runner.run(serve(args.config))
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("wan_failed", config=str(args.config), error=repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
