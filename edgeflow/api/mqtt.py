"""`/mqtt`: MQTT over WebSockets, relayed to the broker.

What it is: a pipe between one WebSocket (subprotocol mqtt or mqttv3.1) and one connection to the broker's own socket, so that browsers need one
address only and the broker's own WebSocket listener (which is unusable before 2.0.21) is never needed.
What it is not: an MQTT implementation. Packets are not looked at; the broker authenticates.
What must stay true: neither side is read while the other one cannot take more; when one side ends, the other one ends too; an ungraceful end stays
ungraceful, so that the broker publishes the client's will.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

import structlog
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from edgeflow.api.context import get_api
from edgeflow.api.problems import BrokerUnavailable, problem_response
from edgeflow.errors import BadRequest, EdgeflowError
from edgeflow.settings import MqttSettings

log = structlog.get_logger(__name__)
router = APIRouter()

SUBPROTOCOLS = ("mqtt", "mqttv3.1")
READ_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
LAST_WORDS_S = 2.0
GOING_AWAY, UNSUPPORTED_DATA = 1001, 1003


class NoSubprotocol(BadRequest):
    """The WebSocket does not speak MQTT."""

    code = "no-subprotocol"
    hint = "Offer the WebSocket subprotocol `mqtt` (MQTT.js and paho do so by themselves)."


@router.websocket("/mqtt")
async def relay_mqtt(websocket: WebSocket) -> None:
    """Relay binary frames to the broker and its bytes back until one side ends."""
    offered = websocket.scope.get("subprotocols", [])
    chosen = next((name for name in SUBPROTOCOLS if name in offered), None)
    if chosen is None:
        await _refuse(websocket, NoSubprotocol())
        return
    try:
        reader, writer = await _connect(get_api(websocket).settings.mqtt)
    except (OSError, TimeoutError):
        await _refuse(websocket, BrokerUnavailable())
        return
    await websocket.accept(subprotocol=chosen)
    up = asyncio.create_task(_up(websocket, writer))
    down = asyncio.create_task(_down(reader, websocket))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not up.cancelled() and up.exception() is None and (code := up.result()):
            await _close(websocket, code)
        elif down.done():
            await _close(websocket, GOING_AWAY)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        await _leave(writer)


async def _connect(settings: MqttSettings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if settings.socket is not None:
            return await asyncio.open_unix_connection(Path(settings.socket), limit=READ_BYTES)
        return await asyncio.open_connection(settings.host, settings.port, limit=READ_BYTES)


async def _up(websocket: WebSocket, writer: asyncio.StreamWriter) -> int | None:
    """Client to broker. Returns the close code to send, or None when the client is gone."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        if data is None:
            return UNSUPPORTED_DATA
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            return GOING_AWAY


async def _down(reader: asyncio.StreamReader, websocket: WebSocket) -> None:
    """Broker to client, until either is gone. `send_bytes` waits while the client does not read."""
    with suppress(OSError, WebSocketDisconnect):
        while data := await reader.read(READ_BYTES):
            await websocket.send_bytes(data)


async def _leave(writer: asyncio.StreamWriter) -> None:
    """Hand the broker what the client said last, unless it does not take it."""
    writer.close()
    try:
        async with asyncio.timeout(LAST_WORDS_S):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except OSError:
        pass


async def _close(websocket: WebSocket, code: int) -> None:
    if websocket.application_state is WebSocketState.CONNECTED:
        with suppress(RuntimeError, OSError, WebSocketDisconnect):
            await websocket.close(code)


async def _refuse(websocket: WebSocket, error: EdgeflowError) -> None:
    """An HTTP problem instead of the upgrade."""
    await websocket.send_denial_response(problem_response(error))
