"""An instance with a `qos: 0` input: it hears its channel from the broker by itself, and publishes what its handler returns there.

What it is: the order of work without the agent in the way: one hop in, one hop out, lowest latency.
What it is not: durable. Nothing is kept, committed or tried again; a handler that raises is logged and counted, and its event is gone.
What must stay true: nothing of an invocation is published unless its handler returned; the EKV is never written; an event id that came twice lately
is handled once; the work goes on while the agent is away, which is needed for reads of the EKV and large bodies only.

The way in and out is a `BrokerSession` (broker.py); the instance protocol (docs/protocol.md) carries the account, reads, states and counts.
"""

import json
import random
import select
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from edgeflow.core.channels import captures_of, check_channel, delivers
from edgeflow.core.events import (
    ATTRIBUTE_NAME,
    CORE_ATTRIBUTES,
    DEFAULT_TYPE,
    LOG_ATTRIBUTES,
    dataref_of,
    from_cloudevent,
    parse_ekv_ref,
    parse_time,
    time_text,
)
from edgeflow.core.ids import direct_invocation_id, output_id
from edgeflow.core.mqttprops import PublishProperties, encode_properties
from edgeflow.core.wire import Message
from edgeflow.errors import BadEvent, BadOutput, EdgeflowError, NotFound, ProtocolError, Unavailable
from edgeflow.sdk.broker import BrokerSession
from edgeflow.sdk.connection import Abandoned, AgentPort, Connection, ConnectionLost, drain_fd
from edgeflow.sdk.context import Context
from edgeflow.sdk.inputs import BodyCache, Input
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import Frame, Outcome
from edgeflow.sdk.raised import describe
from edgeflow.sdk.stored import ContextCache, Value

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

if TYPE_CHECKING:
    from edgeflow.sdk.runtime import Instance

STRUCTURED = "application/cloudevents+json"
STATS_EVERY_S = 1.0
SAMPLES = 1000
SEEN_EVENTS = 4096
"""How many event ids are remembered: after a restart of the broker the agent shows it the latest events again."""
MIN_KEEPALIVE_S = 60
WRITE_OUT_S = 2.0
FIRST_GRANT_WAIT_S, LONGEST_GRANT_WAIT_S = 0.5, 10.0
_T = TypeVar("_T")


class Direct:
    """The life of an instance from its first welcome to its end."""

    def __init__(self, instance: "Instance", grant: Mapping[str, str], channel: str, *, reconnect_s: float) -> None:
        """`channel`: the input's channel or filter. Raises ProtocolError when the grant lacks something."""
        self._instance = instance
        self._info = instance.info
        self._name = self._info.inputs[0]
        self._channel = channel
        self._reconnect_s = reconnect_s
        # A handler keeps the session from answering the broker, so the broker must be more patient than the handler may be slow.
        keepalive_s = min(65_535, max(MIN_KEEPALIVE_S, 2 * self._info.timeout_ms // 1000))
        try:
            self._broker = BrokerSession(grant, channel, keepalive_s, instance.log)
        except KeyError as missing:
            raise ProtocolError(f"the agent's grant for the broker has no {missing}") from None
        self._port = DirectPort(BodyCache())
        self._context_cache = ContextCache()
        self._connection: Connection | None = None
        self._welcomed = False
        self._is_ready = False
        self._parked = False
        self._draining = False
        self._asked_grant = False
        self._agent_due_s = self._agent_good_s = 0.0
        self._agent_wait_s = 0.05
        self._grant_due_s = 0.0
        self._grant_wait_s = FIRST_GRANT_WAIT_S
        self._poll = select.poll()
        self._polled: tuple[int, ...] = ()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._counts = {"processed": 0, "failed": 0, "repeated": 0}
        self._handler_us: deque[float] = deque(maxlen=SAMPLES)
        self._platform_us: deque[float] = deque(maxlen=SAMPLES)
        self._log_fields = self._info.log_fields

    def serve(self, connection: Connection) -> int:
        """Work until told to stop; returns the exit status: 0 stopped or drained, 1 no agent for too long."""
        stop, broker = self._instance.stop, self._broker
        self._attach(connection)
        self._welcomed = True
        self._agent_good_s = time.monotonic()
        next_second_s = 0.0
        while True:
            while broker.received and not stop.requested:
                self._run(*broker.received.popleft())
            if stop.requested or self._draining:
                return self._farewell()
            now_s = time.monotonic()
            if now_s >= next_second_s:
                next_second_s = now_s + STATS_EVERY_S
                broker.maintain()
                self._send_stats()
            elif broker.due_s is not None and now_s >= broker.due_s:
                broker.maintain()
            self._care_for_agent(now_s)
            if self._connection is None and now_s - self._agent_good_s > self._reconnect_s:
                self._instance.log.error("no_agent", waited_s=self._reconnect_s)
                broker.pause()
                return 1
            dues = [next_second_s] + [
                due for due in (broker.due_s, None if self._connection else self._agent_due_s) if due is not None
            ]
            self._wait(max(0.0, min(dues) - now_s))

    def _wait(self, timeout_s: float) -> None:
        """Until something is there to read, a write is possible, or it is time."""
        broker, connection, stop_fd = self._broker, self._connection, self._instance.stop.read_fd
        broker_fd, agent_fd = broker.fileno(), connection.fileno() if connection is not None else -1
        # While an answer cannot be written nothing new is read: what is heard must not pile up here.
        writing = broker_fd >= 0 and broker.want_write
        polled = (broker_fd, writing, agent_fd)
        if polled != self._polled:
            self._polled = polled
            self._poll = select.poll()
            self._poll.register(stop_fd, select.POLLIN)
            if broker_fd >= 0:
                self._poll.register(broker_fd, select.POLLOUT if writing else select.POLLIN)
            if agent_fd >= 0:
                self._poll.register(agent_fd, select.POLLIN)
        for fd, _ in self._poll.poll(timeout_s * 1000):
            if fd == broker_fd:
                if writing:
                    broker.write()
                else:
                    broker.read()
                    if broker.want_write:
                        broker.write()
            elif fd == stop_fd:
                drain_fd(stop_fd)
            # The agent's frames are read by _care_for_agent, which looks at every round.

    # -- one event -----------------------------------------------------------------------------------------------------

    def _run(self, channel: str, payload: bytes, properties: PublishProperties) -> None:
        if channel != self._channel and not delivers(self._channel, channel):
            return  # `vision/#` does not ask for what belongs to edgeflow
        began_s = time.perf_counter()
        instance, port = self._instance, self._port
        event_id, took_s, context = "", 0.0, None
        log: Log = instance.log
        try:
            stored, has_own_id = self._event(channel, payload, properties)
            event_id = stored["i"]
            if has_own_id and self._is_repeated(stored):
                self._counts["repeated"] += 1
                return
            invocation = direct_invocation_id(self._info.function, stored["s"], event_id)
            log = Log({**self._log_fields, "invocation": invocation, "event_id": event_id})
            first = Input(self._name, stored, port, captures_of(self._info.captures, channel))
            outcome = DirectOutcome(port, self._info.function)
            context = Context(
                self._info, port, outcome, invocation_id=invocation, attempt=1, deadline_ms=int(time.time() * 1000) + self._info.timeout_ms,
                inputs=(first,), context=LatestValues(self._context_values), log=log,
            )  # fmt: skip
            started_s = time.perf_counter()
            try:
                returned = instance.call(instance.handler(), context, {self._name: first})
            finally:
                took_s = time.perf_counter() - started_s
            context.end(returned)
            if not self._publish(invocation, outcome.outputs):
                raise Unavailable("the broker was lost meanwhile, so the outputs are gone")
        except (
            BaseException
        ) as error:  # SystemExit too: a handler's sys.exit() is a failed event, not the end of the instance
            self._counts["failed"] += 1
            text, trace = describe(error)
            log.error("handler_failed", event_id=event_id, error=text, retry=False, traceback=trace)
        else:
            self._counts["processed"] += 1
        finally:
            if context is not None:
                context.close()
        self._handler_us.append(took_s * 1e6)
        self._platform_us.append((time.perf_counter() - began_s - took_s) * 1e6)

    def _event(self, channel: str, payload: bytes, properties: PublishProperties) -> tuple[Frame, bool]:
        """(stored form of the event, whether it came with an id), its body inline or as a digest that can be fetched. Raises EdgeflowError."""
        if channel != self._channel:
            check_channel(channel)
        now_ms = int(time.time() * 1000)
        source = f"/pops/{self._info.pop}/mqtt"
        if (
            properties.content_type is not None
            and properties.content_type.partition(";")[0].strip().lower() == STRUCTURED
        ):
            return self._structured(channel, payload, source, now_ms)
        attributes = dict(properties.user)
        own_id = attributes.get("id")
        stored: Frame = {
            "c": channel, "i": own_id or uuid.uuid4().hex, "s": attributes.get("source") or source, "y": attributes.get("type") or DEFAULT_TYPE,
            "t": _time_ms(attributes.get("time"), now_ms), "d": payload,
        }  # fmt: skip
        if subject := attributes.get("subject"):
            stored["u"] = subject
        if properties.content_type is not None:
            stored["m"] = properties.content_type
        extensions = {name: value for name, value in attributes.items() if _is_extension(name)}
        if extensions:
            stored["a"] = extensions
        dataref = attributes.get("dataref") or dataref_of(payload)
        if dataref is not None:
            stored["d"] = self._value_of(dataref)
        return stored, own_id is not None

    def _structured(self, channel: str, payload: bytes, source: str, now_ms: int) -> tuple[Frame, bool]:
        try:
            document = json.loads(payload)
        except ValueError:
            raise BadEvent("the payload is not JSON, but its content type says CloudEvents JSON") from None
        event, dataref = from_cloudevent(document, channel, id=uuid.uuid4().hex, source=source, now_ms=now_ms)
        stored = event.encode()
        if dataref is not None:
            digest = dataref.rpartition("/")[2]
            if digest.startswith("sha256:"):
                # A body that is too large for the broker: the agent has it.
                del stored["d"]
                stored["r"] = [digest, int(document.get("size") or 0)]
            else:
                stored["d"] = self._value_of(dataref)
        return stored, "id" in document

    def _value_of(self, dataref: str) -> bytes:
        """The body of an `ekv:` reference. Raises NotFound when it cannot be read here yet: nothing waits with `qos: 0`."""
        key, version = parse_ekv_ref(dataref, self._info.namespace)
        found = self._port.read({"t": "get", "key": key, **({} if version is None else {"version": version})})["value"]
        if found is None:
            raise NotFound(
                f"the event refers to {dataref}, which cannot be read at this PoP yet",
                hint="Subscribe with qos 1 to wait for it.",
            )
        if (digest := found.get("digest")) is not None:
            return self._port.fetch(digest)
        return found.get("data") or b""

    def _is_repeated(self, stored: Frame) -> bool:
        key = (stored["s"], stored["i"])
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > SEEN_EVENTS:
            self._seen.popitem(last=False)
        return False

    def _publish(self, invocation: str, outputs: Sequence[Frame]) -> bool:
        """Publish what an invocation put out; False when the broker was not there for all of it."""
        if not outputs:
            return True
        time_now = time_text(int(time.time() * 1000))
        source = f"/{self._info.namespace}/{self._info.function}"
        # All are written down before the first one leaves: one that MQTT cannot carry fails the event as a whole.
        packed = []
        for index, output in enumerate(outputs):
            user = [
                ("specversion", "1.0"), ("id", output_id(invocation, index)), ("source", source), ("type", output["type"] or DEFAULT_TYPE),
                ("time", time_now),
            ]  # fmt: skip
            if output["subject"] is not None:
                user.append(("subject", output["subject"]))
            user += output["attributes"].items()
            properties = encode_properties(user, content_type=output["datacontenttype"])
            packed.append((output["channel"], output["data"], properties))
        sent = True
        for one in packed:
            sent &= self._broker.publish(*one)
        return sent

    def _context_values(self) -> Mapping[str, Value | None]:
        return self._context_cache.values(self._port.context(), self._info.context, self._port)

    # -- the agent -----------------------------------------------------------------------------------------------------

    def _attach(self, connection: Connection) -> None:
        self._connection = connection
        self._instance.attach(connection)
        self._is_ready = self._asked_grant = False

    def _detach(self, reason: str) -> None:
        assert self._connection is not None
        self._instance.log.warning("agent_lost", reason=reason)
        now_s = time.monotonic()
        if self._welcomed:
            self._agent_good_s, self._agent_wait_s = now_s, 0.05
        self._connection.close()
        self._connection = None
        self._welcomed = False
        self._port.use(None)
        self._instance.attach(None)
        self._agent_due_s = now_s + self._agent_wait_s * _chance.uniform(0.8, 1.2)
        self._agent_wait_s = min(2.0, self._agent_wait_s * 2)

    def _care_for_agent(self, now_s: float) -> None:
        """Connect to the agent when it is away, read what it says, tell it what it should know."""
        if self._connection is None:
            if now_s < self._agent_due_s:
                return
            try:
                # The welcome comes as a message, so that events are handled meanwhile.
                self._attach(self._instance.connect())
            except OSError:
                self._agent_due_s = now_s + self._agent_wait_s * _chance.uniform(0.8, 1.2)
                self._agent_wait_s = min(2.0, self._agent_wait_s * 2)
                return
        connection = self._connection
        assert connection is not None
        try:
            for message in connection.receive(0.0):
                self._heard(message)
            if self._welcomed:
                if self._port.connection is not connection:
                    self._port.use(connection)
                if self._broker.subscribed and not self._is_ready and not self._parked:
                    self._is_ready = True
                    self._grant_wait_s = FIRST_GRANT_WAIT_S
                    connection.queue({"t": "ready"})
                if self._broker.refused and not self._asked_grant and now_s >= self._grant_due_s:
                    # A grant that does not help is not asked for at once again: each makes an account anew.
                    self._asked_grant = True
                    self._grant_due_s = now_s + self._grant_wait_s
                    self._grant_wait_s = min(LONGEST_GRANT_WAIT_S, self._grant_wait_s * 2)
                    connection.queue({"t": "grant"})
            connection.flush()
        except (ConnectionLost, ProtocolError) as lost:
            self._detach(str(lost))

    def _heard(self, message: Message) -> None:
        kind = message.get("t")
        if not self._welcomed:
            if kind != "welcome" or not isinstance(message.get("mqtt"), dict):
                raise ConnectionLost(f"the agent answered hello with {kind!r}: {message.get('error', '')}")
            self._welcomed = True
            self._renew(message)
            if self._parked:
                self._parked = False
                self._broker.resume()
        elif kind == "granted":
            self._asked_grant = False
            self._renew(message)
        elif kind == "park":
            self._parked = True
            self._write_out()
            self._broker.pause()
            if self._connection is not None:
                self._connection.queue({"t": "parked"})
        elif kind == "unpark":
            self._parked, self._is_ready = False, False
            self._broker.resume()
        elif kind == "drain":
            self._draining = True
        elif kind == "error":
            raise ConnectionLost(f"the agent refused a message: {message.get('error')} ({message.get('code')})")
        # A message of a kind not known here comes from a newer agent and is for newer SDKs.

    def _renew(self, message: Message) -> None:
        try:
            self._broker.renew(message["mqtt"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConnectionLost(f"the agent's grant for the broker is incomplete: {error!r}") from None

    def _send_stats(self) -> None:
        if self._connection is None or not self._welcomed:
            return
        message: Message = {"t": "stats", **self._counts, "subscribed": self._broker.subscribed}
        message |= {"handler_us": _quantiles(self._handler_us), "platform_us": _quantiles(self._platform_us)}
        try:
            self._connection.queue(message)
        except ConnectionLost as lost:
            self._detach(str(lost))

    def _write_out(self) -> None:
        """Lets the answers that are on their way leave before the session ends, for as long as the broker takes some."""
        poll, until_s = select.poll(), time.monotonic() + WRITE_OUT_S
        while (fd := self._broker.fileno()) >= 0 and self._broker.want_write:
            left_s = until_s - time.monotonic()
            poll.register(fd, select.POLLOUT)
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return
            self._broker.write()

    def _farewell(self) -> int:
        self._write_out()
        self._broker.pause()
        self._send_stats()
        if self._connection is not None:
            try:
                self._connection.flush()
            except ConnectionLost:
                pass
        return 0


class DirectPort:
    """The Port of a `qos: 0` instance: asks the agent while it is there."""

    def __init__(self, cache: BodyCache) -> None:
        self._cache = cache
        self._agent: AgentPort | None = None
        self.connection: Connection | None = None

    def use(self, connection: Connection | None) -> None:
        """Ask through this connection from now on; None = the agent is away."""
        self.connection = connection
        self._agent = None if connection is None else AgentPort(connection, self._cache)

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        """The body with that digest. Raises Unavailable while the agent is away."""
        return self._ask(lambda agent: agent.fetch(digest, ahead))

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        """Some bytes of that body. Raises Unavailable while the agent is away."""
        return self._ask(lambda agent: agent.fetch_piece(digest, offset))

    def read(self, request: Frame) -> Frame:
        """Values of the namespace. Raises Unavailable while the agent is away."""
        return self._ask(lambda agent: agent.read(request))

    def session(self, token: str) -> str:
        """Waits until this PoP has what the token names. Raises Unavailable while the agent is away."""
        return self._ask(lambda agent: agent.session(token))

    def context(self) -> Mapping[str, Any]:
        """The heads of the context values, as in a work item. Raises Unavailable while the agent is away."""
        return self._ask(lambda agent: agent.context())

    def store_blob(self, digest: str, data: bytes) -> None:
        """Not used: bodies travel in the message itself."""
        raise BadOutput("a function with a qos 0 input stores no blobs")

    def _ask(self, question: Callable[[AgentPort], _T]) -> _T:
        if self._agent is None:
            raise Unavailable(
                "the agent of this PoP is away, so the EKV cannot be read",
                hint="The event is gone; subscribe with qos 1 to keep events.",
            )
        try:
            return question(self._agent)
        except Abandoned as lost:
            raise Unavailable(f"the agent of this PoP went away while it was asked: {lost}") from None


class DirectOutcome(Outcome):
    """Outputs with their bodies inside; nothing is written."""

    def __init__(self, port: DirectPort, function: str) -> None:
        super().__init__(port)
        self._function = function

    def body(self, data: bytes) -> Frame:
        """The body inline, whatever its size: it travels in the message."""
        return {"data": data}

    def check_write(self, key: str) -> None:
        """Refuses every write. Raises BadOutput."""
        raise BadOutput(
            f"function {self._function!r} wrote key {key!r}, but its input has qos 0: there is no commit that could carry the write",
            hint="Subscribe with qos 1 (leave `qos` out), or publish to a durable function that writes.",
        )


class LatestValues(Mapping[str, Value | None]):
    """Context values that are asked for when the handler first touches one."""

    def __init__(self, ask: Callable[[], Mapping[str, Value | None]]) -> None:
        self._ask = ask
        self._values: Mapping[str, Value | None] | None = None

    def _known(self) -> Mapping[str, Value | None]:
        if self._values is None:
            self._values = self._ask()
        return self._values

    def __getitem__(self, name: str) -> Value | None:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


def _is_extension(name: str) -> bool:
    return name not in CORE_ATTRIBUTES and name not in LOG_ATTRIBUTES and ATTRIBUTE_NAME.fullmatch(name) is not None


def _time_ms(text: str | None, now_ms: int) -> int:
    if text is None:
        return now_ms
    try:
        return parse_time(text)
    except EdgeflowError:
        return now_ms


def _quantiles(samples: deque[float]) -> list[float] | None:
    """[p50, p99], or None without samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    last = len(ordered) - 1
    return [round(ordered[last // 2], 1), round(ordered[int(last * 0.99)], 1)]
