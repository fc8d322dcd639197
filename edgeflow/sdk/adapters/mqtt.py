"""Contract `mqtt`: a program with an MQTT session of its own.

What it is: the program's start and end, its way to the broker (relay.py), and what the agent wants to know of both.
What it is not: in the way of a message: the program subscribes and publishes itself, and nothing is claimed, committed or tried again.
What must stay true: `ready` is said when the broker has accepted the program's first session; a program whose revision was replaced is cut off before
the new one's session begins; a restart of the agent does not disturb a session.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from edgeflow.core.wire import Message
from edgeflow.sdk.adapters.adapter import Adapter, Facts
from edgeflow.sdk.adapters.ports import HOST
from edgeflow.sdk.adapters.program import Program, environment, in_words
from edgeflow.sdk.adapters.relay import Relay
from edgeflow.sdk.adapters.setting import Setting
from edgeflow.sdk.connection import Connection, ConnectionLost
from edgeflow.sdk.context import Context
from edgeflow.sdk.ending import EXIT_STOPPED, Stop
from edgeflow.sdk.function import Handle
from edgeflow.sdk.log import Log
from edgeflow.sdk.runtime import Instance

USERNAME = "function"
LOOK_S = 0.2
STATS_EVERY_S = 1.0
LISTENING = "relay_listening"
"""Log line by which the runner knows that the program may be started."""
GRANT_EVERY_S = 5.0
"""Shortest time between two wishes for an account made anew."""


class Mqtt(Adapter):
    """The adapter of one instance."""

    def __init__(self, setting: Setting, stop: Stop, facts: Facts) -> None:
        super().__init__(setting, stop, facts)
        # As a process it shares its loopback interface with others, who do not know this.
        self._token = secrets.token_urlsafe(24) if setting.command else None
        # In a container beside this one the program does not wait for anybody: so this listens before all else.
        self._relay = Relay(setting.broker_port, self._token, lambda: facts()[1])
        self._program: Program | None = None
        self._grant_from_s = 0.0
        Log({"logger": "sdk"}).info(LISTENING, port=self._relay.port)

    def load(self) -> Handle:
        """Start the program. Raises BadHandler."""
        info, _ = self._facts()
        if self._setting.command:
            told = variables(self._relay.port, self._token or "", info.function)
            self._program = Program(self._setting.command, environment(told), self._stop.request)

        def handle(ctx: Context, /, **inputs: Any) -> None:
            raise AssertionError("a program with a session of its own is handed nothing")

        return handle

    def serve(self, grant: Mapping[str, str], connection: Connection) -> int:
        """Until told to stop; returns the exit status. Raises ConnectionLost when the agent is gone: the sessions go on meanwhile."""
        relay = self._relay
        relay.use(grant)
        relay.resume()
        is_ready, stats_from_s = False, 0.0
        while not self._stop.requested:
            # A session that begins or ends while nothing is said is seen at the next look.
            for message in connection.receive(LOOK_S):
                kind = message.get("t")
                if kind == "granted":
                    relay.use(message["mqtt"])
                elif kind == "park":
                    relay.pause()
                    connection.queue({"t": "parked"})
                elif kind == "unpark":
                    relay.resume()
                    is_ready = False
                elif kind == "drain":
                    return self._farewell(connection)
                elif kind == "error":
                    raise ConnectionLost(f"the agent refused a message: {message.get('error')} ({message.get('code')})")
            now_s = time.monotonic()
            if relay.was_accepted and not is_ready:
                is_ready = True
                connection.queue({"t": "ready"})
            if relay.refused and now_s >= self._grant_from_s:
                self._grant_from_s = now_s + GRANT_EVERY_S
                connection.queue({"t": "grant"})
            if now_s >= stats_from_s:
                stats_from_s = now_s + STATS_EVERY_S
                connection.queue(self._stats())
            connection.flush()
        return self._farewell(connection)

    def kill(self) -> None:
        """End the program at once."""
        if self._program is not None:
            self._program.kill()

    def close(self) -> None:
        """End the program, and its sessions."""
        if self._program is not None:
            self._program.stop()
        self._relay.close()

    def exit_status(self, status: int) -> int:
        """What the process ends with, given what the runtime says: the program's own status when that was the reason."""
        program = self._program
        if program is not None and program.ended_by_itself is not None:
            self.failed = f"the program ended {in_words(program.ended_by_itself)}"
            return program.exit_status()
        return status

    def _stats(self) -> Message:
        counts = {"processed": self._relay.heard, "failed": 0, "repeated": 0}
        # How long the program takes for a message is not seen from here.
        return {"t": "stats", **counts, "subscribed": self._relay.sessions > 0, "handler_us": None, "platform_us": None}

    def _farewell(self, connection: Connection) -> int:
        connection.queue(self._stats())
        try:
            connection.flush()
        except ConnectionLost:
            pass
        return EXIT_STOPPED


class MqttInstance(Instance):
    """An instance whose program, and not its handler, has the session at the broker."""

    adapter: Mqtt

    def _serve_direct(self, grant: Mapping[str, str], connection: Connection) -> int:
        return self.adapter.serve(grant, connection)


def variables(port: int, password: str, client_id: str) -> dict[str, str]:
    """What a program is told of its broker. The real account is not among it: the relay puts it into each CONNECT."""
    return {
        "MQTT_HOST": HOST, "MQTT_PORT": str(port), "MQTT_USERNAME": USERNAME, "MQTT_PASSWORD": password, "MQTT_CLIENT_ID": client_id,
        "MQTT_URL": f"mqtt://{USERNAME}:{password}@{HOST}:{port}",
    }  # fmt: skip
