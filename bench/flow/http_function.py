"""One step of a chain of HTTP functions: a FastAPI app under uvicorn that answers with what it got and the same attributes.

What it is: `python -m bench.flow.http_function`; its parameters are one line of JSON on stdin, it prints a line once it listens. With `bare` it is not FastAPI but a
few lines that answer at once: what is left is the load generator's own ceiling.
What it is not: durable. Nothing is kept; the client holds each message and takes it from step to step.
"""

import asyncio
import json
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from bench.packets import NUMBER_BYTES
from bench.processes import python_process

app = FastAPI()


@app.post("/")
async def handle(request: Request) -> Response:
    """The function: an event comes in, an event with an id of its own goes out."""
    data = await request.body()
    attributes = {name: value for name, value in request.headers.items() if name.startswith("ce-")}
    attributes["ce-id"] = uuid.uuid4().hex
    return Response(data, media_type=request.headers["content-type"], headers=attributes)


class Bare(asyncio.Protocol):
    """Answers each request, which must come in one piece, with the number at its end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        assert isinstance(self._transport, asyncio.WriteTransport)
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n" + data[-NUMBER_BYTES:])


async def serve_bare(listener: socket.socket) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Bare, sock=listener)
    print("ready", flush=True)
    await server.serve_forever()


@dataclass
class HttpStage:
    """Running functions, one process each, and the bare server."""

    ports: list[int]
    bare_port: int
    pids: Mapping[str, int]


@contextmanager
def running(length: int) -> Iterator[HttpStage]:
    """As many functions, ended at the end."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(length + 1)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        pids = {}
        for index, port in enumerate(ports):
            bare = index == length
            asked = {"port": port, "bare": bare}
            name = "bare server" if bare else f"function {index}"
            pids[name] = stack.enter_context(python_process("bench.flow.http_function", asked))
        yield HttpStage(ports[:length], ports[length], pids)


def main() -> None:
    """The process."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", asked["port"]))
    listener.listen(1024)
    if asked["bare"]:
        asyncio.run(serve_bare(listener))
        return
    print("ready", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
