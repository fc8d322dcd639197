"""The control process of a PoP: `python -m edgeflow.api --config pop.json`.

What it is: the composition root of the API and the runner: settings, store, reconciler thread, uvicorn.
What it is not: needed for events to flow; the data process goes on while this one restarts.
What must stay true: SIGTERM ends event streams, waits and relays first, so that leaving takes a moment and not a timeout; the exit status is 0 then; instances
are left alone.
"""

import edgeflow.lean  # noqa: F401  (before whatever imports structlog)

# isort: split
import argparse
import asyncio
import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from edgeflow.api.app import create_app
from edgeflow.api.auth import read_token
from edgeflow.api.context import Api
from edgeflow.api.streams import FrameEncoder
from edgeflow.api.tails import TailHub
from edgeflow.errors import EdgeflowError
from edgeflow.runner.service import Runner
from edgeflow.settings import PopSettings
from edgeflow.store.client import Store

log = structlog.get_logger(__name__)

STORE_RETRY_S = 1.0
"""Longest time a request holds a worker thread while Redis is away, before it answers 503."""
STORE_POLL_S = 0.5
LEAVE_S = 5
LATE_S = 0.05
FRAME_OVERHEAD_BYTES = 1024 * 1024
"""Room for the topic and properties of an MQTT packet beside the largest body."""
DEAD_CLIENT_MS = 60_000
BACKLOG = 512


class Server(uvicorn.Server):
    """Ends what would never end by itself before it waits for the rest."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._api.hub.stop()
        self._api.waits.stop()
        latecomers = asyncio.create_task(self._end_latecomers(set(self.server_state.connections)))
        try:
            await super().shutdown(sockets)
        finally:
            latecomers.cancel()

    async def _end_latecomers(self, told: set[Any]) -> None:
        """uvicorn tells each connection once to end; one that was being accepted just then would be kept alive until the time is up."""
        while True:
            await asyncio.sleep(LATE_S)
            for connection in self.server_state.connections - told:
                told.add(connection)
                connection.shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="edgeflow.api", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="the PoP's pop.json")
    settings = PopSettings.load(parser.parse_args(arguments).config)
    configure_logging(settings)
    # uvicorn raises the signal again when it is done; after a clean end that must not be an error.
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    store = open_store(settings, stopping)
    if store is None:
        return 0
    runner = Runner(settings, store)
    hub = make_hub(settings, store)
    api = Api(
        settings,
        store,
        read_token(settings.api.token_file),
        hub,
        runner_alive=lambda: bool(runner.status()["running"]),
        runner_error=lambda: str(runner.status()["last_error"]),
        usage=runner.usage,
        images=runner.images,
    )
    listener = listen(settings.api.host, settings.api.port)
    runner.start()
    api.pressure.start()
    log.info("control_started", url=f"http://{settings.api.host}:{settings.api.port}", mode=settings.mode)
    try:
        if not stopping.is_set():
            asyncio.run(Server(serve_options(api), api).serve([listener]))
    finally:
        hub.stop()
        api.pressure.stop()
        runner.stop()
        store.close()
        listener.close()
    log.info("control_stopped")
    return 0


def serve_options(api: Api) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        create_app(api), log_config=None, access_log=False, lifespan="off", server_header=False, proxy_headers=False, ws="websockets-sansio",
        ws_max_size=api.settings.limits.event_bytes + FRAME_OVERHEAD_BYTES, ws_per_message_deflate=False, ws_ping_interval=20, ws_ping_timeout=60,
        timeout_graceful_shutdown=LEAVE_S, timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip


def open_store(settings: PopSettings, stopping: threading.Event) -> Store | None:
    """The store, as soon as its Redis answers; None when told to stop before that."""
    quick = settings.model_copy(update={"store": settings.store.model_copy(update={"retry_s": STORE_RETRY_S})})
    while not stopping.is_set():
        try:
            return Store.open(quick)
        except EdgeflowError as error:
            if not error.retryable:
                raise
            log.warning("store_not_there", error=error.message)
            stopping.wait(STORE_POLL_S)
    return None


def make_hub(settings: PopSettings, store: Store) -> TailHub:
    """The hub of the event streams."""
    encoder = FrameEncoder(settings.public.api_url)
    return TailHub(store, encoder.event, encoder.gap)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections end when their client has taken nothing for a minute, even in mid-write.

    Raises OSError naming the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it an answer can wait 40 ms for a delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_CLIENT_MS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: the API cannot listen on {host}:{port}") from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def configure_logging(settings: PopSettings) -> None:
    """JSON lines on stderr with the PoP in each; the libraries' warnings among them."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_pop(settings.pop),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )


def _name_pop(pop: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["pop"] = pop
        event["process"] = "control"
        return event

    return add


if __name__ == "__main__":
    sys.exit(main())
