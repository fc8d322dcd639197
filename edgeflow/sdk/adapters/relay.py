"""The broker as a program finds it: a TCP port on loopback, whose connections go to the broker's socket for functions.

What it is: bytes passed on, one thread for each direction of a connection, with the account put into each CONNECT.
What it is not: a broker, or anything that keeps: a connection that ends on one side ends on the other.
What must stay true: the account never leaves this process towards the program; each client id at the broker begins with a secret, so programs of other
functions cannot take a session over; what the account may do is the broker's to enforce.
"""

import secrets
import socket
import threading
from collections.abc import Callable, Mapping

from edgeflow.errors import ProtocolError
from edgeflow.sdk.adapters import mqttpackets as mqtt
from edgeflow.sdk.adapters.ports import HOST
from edgeflow.sdk.log import Log

READ_BYTES = 64 * 1024
CONNECT_S = 10.0
"""How long a program may take to say CONNECT, the agent to give an account, and the broker to answer."""
END_S = 2.0


class WrongPassword(ProtocolError):
    """A program that did not show its password; it is told so."""


class Relay:
    """The port, and the connections of one program."""

    def __init__(self, port: int, token: str | None, log: Callable[[], Log]) -> None:
        """Listen. `token`: the password that a program has to show; None: whoever reaches the port is the program. Raises OSError when it is taken."""
        self._listener = socket.create_server((HOST, port), backlog=16)
        self.port = int(self._listener.getsockname()[1])
        self._token = token
        self._log = log
        self._grant: Mapping[str, str] | None = None
        self._granted = threading.Event()
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._is_paused = self._was_accepted = False
        self._closed = False
        self.changed = threading.Event()
        """Set when a session begins or ends, or the account is refused."""
        self.refused = ""
        """Why the broker refused the account; empty while it has not."""
        self.heard = self.said = 0
        """Messages to the program and from it."""
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    @property
    def sessions(self) -> int:
        """Connections that the broker has accepted."""
        with self._lock:
            return sum(one.is_accepted for one in self._open)

    @property
    def was_accepted(self) -> bool:
        """Whether the broker has accepted a session since the last pause; programs may have short ones only."""
        return self._was_accepted

    def use(self, grant: Mapping[str, str]) -> None:
        """Connect with this account from now on: socket, username, password, client_id."""
        if grant != self._grant:
            is_first = self._grant is None
            self._grant, self.refused = dict(grant), ""
            self._granted.set()
            if not is_first:
                self._end_all()

    def pause(self) -> None:
        """Nothing is passed on until `resume`; a program that tries again is turned away."""
        self._is_paused = True
        self._was_accepted = False
        self._end_all()

    def resume(self) -> None:
        """Pass on again."""
        self._is_paused = False

    def close(self) -> None:
        """End everything."""
        self._closed = True
        self._granted.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._listener.close()
        self._end_all()

    # -- for connections -----------------------------------------------------------------------------------------------

    def connect(self, packet: bytes) -> tuple[socket.socket, bytes]:
        """A connection to the broker, and the CONNECT to send there. Raises ProtocolError, OSError."""
        # A program may be quicker than the agent; it is kept waiting and not sent away.
        self._granted.wait(CONNECT_S)
        grant = self._grant
        if grant is None or self._is_paused:
            raise ConnectionRefusedError("the function is not to subscribe now")
        if self._token is not None and mqtt.password_of(packet) != self._token.encode():
            raise WrongPassword("the program did not show MQTT_PASSWORD")
        made = mqtt.rewritten(
            packet, username=grant["username"], password=grant["password"], client_id=grant["client_id"],
            spare_id=secrets.token_hex(8),
        )  # fmt: skip
        broker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            broker.connect(grant["socket"])
        except OSError:
            broker.close()
            raise
        return broker, made

    def accepted(self, code: int) -> None:
        """What the broker said to a CONNECT."""
        if code and mqtt.wants_account(code):
            self.refused = f"the broker refused the account with code {code}"
        if code:
            self._log().warning("broker_refused", code=code)
        else:
            self.refused, self._was_accepted = "", True
        self.changed.set()

    def passed(self, heard: int, said: int) -> None:
        """Messages went through."""
        with self._lock:
            self.heard += heard
            self.said += said

    def ended(self, connection: "_Connection", why: str) -> None:
        """A connection is over."""
        with self._lock:
            self._open.discard(connection)
        if why:
            self._log().warning("session_ended", reason=why)
        self.changed.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                program, _ = self._listener.accept()
            except OSError:
                continue
            program.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, program)
            with self._lock:
                self._open.add(connection)
            connection.start()

    def _end_all(self) -> None:
        with self._lock:
            connections = list(self._open)
        for one in connections:
            one.end()
        for one in connections:
            one.join()


class _Connection:
    """One connection of the program, and its counterpart at the broker."""

    def __init__(self, relay: Relay, program: socket.socket) -> None:
        self._relay = relay
        self._program = program
        self._broker: socket.socket | None = None
        self.is_accepted = False
        self._thread = threading.Thread(target=self._run, name="relay-in", daemon=True)

    def start(self) -> None:
        """Pass on until either side ends."""
        self._thread.start()

    def join(self) -> None:
        """Until both sides have ended; a moment, since `end` has shut them down."""
        self._thread.join(END_S)

    def end(self) -> None:
        """End both sides."""
        for one in (self._program, self._broker):
            if one is not None:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _run(self) -> None:
        why, back = "", None
        try:
            self._program.settimeout(CONNECT_S)
            packet, rest = _first_packet(self._program)
            try:
                self._broker, made = self._relay.connect(packet)
            except WrongPassword:
                self._program.sendall(mqtt.refusal(packet))
                raise
            self._program.settimeout(None)
            self._broker.sendall(made + rest)
            back = threading.Thread(target=self._pass_back, name="relay-out", daemon=True)
            back.start()
            counter = mqtt.Counter()
            data = rest
            while True:
                self._relay.passed(0, counter.feed(data))
                data = self._program.recv(READ_BYTES)
                if not data:
                    break
                self._broker.sendall(data)
        except ProtocolError as error:
            why = error.message
        except OSError as error:
            why = "" if self.is_accepted else f"{error.strerror or error}"
        finally:
            self.end()
            if back is not None:
                back.join()
            for one in (self._program, self._broker):
                if one is not None:
                    one.close()
            self._relay.ended(self, why)

    def _pass_back(self) -> None:
        assert self._broker is not None
        counter = mqtt.Counter()
        try:
            self._broker.settimeout(CONNECT_S)
            packet, data = _first_packet(self._broker)
            self._broker.settimeout(None)
            code = mqtt.connack_code(packet)
            self.is_accepted = code == 0
            self._relay.accepted(code)
            self._program.sendall(packet + data)
            while True:
                self._relay.passed(counter.feed(data), 0)
                data = self._broker.recv(READ_BYTES)
                if not data:
                    break
                self._program.sendall(data)
        except (OSError, ProtocolError):
            pass  # the other direction says why
        finally:
            self.end()


def _first_packet(sock: socket.socket) -> tuple[bytes, bytes]:
    """The first packet of a connection, and what was read behind it. Raises ProtocolError, OSError."""
    data = b""
    while True:
        size = mqtt.packet_size(data)
        if size is not None and size > mqtt.MAX_CONNECT_BYTES:
            raise ProtocolError(f"a first packet of {size} bytes is too large")
        if size is not None and len(data) >= size:
            return data[:size], data[size:]
        more = sock.recv(READ_BYTES)
        if not more:
            raise ConnectionResetError("it was closed before its first packet")
        data += more
