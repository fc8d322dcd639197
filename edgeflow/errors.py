"""The one error tree.

What it is: every failure that a user, an operator or a peer can see has a class here, with a stable `code`, an HTTP `status` and a `hint` that says how to fix it.
What it is not: a place for control flow inside one module.
What must stay true: a class docstring is the default message; codes are never reused for another meaning; `docs/errors.md` lists each of them.
"""

from collections.abc import Mapping


class EdgeflowError(Exception):
    """Something went wrong in edgeflow."""

    code = "internal"
    status = 500
    hint = "Look at the agent's log (`edgeflow logs`), and report it if the log does not explain it."
    retryable = False
    retry_after_s: float | None = None
    """When it makes sense to try again (s from now); None: nobody said."""

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, details: Mapping[str, object] | None = None
    ) -> None:
        """`details`: what a program may want to know beside the text; members of the problem document."""
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        if hint is not None:
            self.hint = hint
        self.details = dict(details or {})
        super().__init__(self.message)


class BadRequest(EdgeflowError):
    """The request is not valid."""

    code = "bad-request"
    status = 400
    hint = "The message names the part that is wrong."


class BadName(BadRequest):
    """A namespace, channel, key or function name is not valid."""

    code = "bad-name"
    hint = "Namespaces are [a-z0-9-]+; a channel is <namespace>/<path> without +, #, $ or empty levels."


class GatedChannel(BadRequest):
    """The channel takes no plain MQTT publishes, so that nobody is told of data before it can be read."""

    code = "gated-channel"
    hint = "Publish over HTTP (`POST /v1/channels/...`, `edgeflow publish`) or with the SDK, or take `gated: true` out of the manifest."


class BadEvent(BadRequest):
    """The event is not a valid CloudEvents 1.0 event."""

    code = "bad-event"
    hint = "Attribute names are [a-z0-9]{1,20}; id, source and type must not be empty."


class BadManifest(BadRequest):
    """The manifest is not valid."""

    code = "bad-manifest"
    hint = "See docs/manifest.md for each field and its default."


class Unauthorized(EdgeflowError):
    """A bearer token is missing or wrong."""

    code = "unauthorized"
    status = 401
    hint = "Send `Authorization: Bearer <token>`; `edgeflow env` prints it."


class NotFound(EdgeflowError):
    """There is no such thing."""

    code = "not-found"
    status = 404
    hint = "List what is there with `edgeflow get` or `edgeflow kv list`."


class AtAnotherPop(EdgeflowError):
    """What was asked for is kept at another PoP."""

    code = "at-another-pop"
    status = 421
    hint = "Ask the PoP that the message names; the edgeflow command finds it by itself unless --pop is given."


class NotInvocable(EdgeflowError):
    """The function cannot be called with one event."""

    code = "not-invocable"
    status = 422
    hint = "Publish on the channels that it subscribes to; `edgeflow get functions` shows it."


class InvocationDead(EdgeflowError):
    """The invocation was given up."""

    code = "invocation-dead"
    status = 502
    hint = "`edgeflow dlq show <invocation>` has the traceback and the inputs; `edgeflow dlq redrive <invocation>` tries again."


class InvocationDropped(EdgeflowError):
    """The invocation ended without being carried out."""

    code = "invocation-dropped"
    status = 502
    hint = "Its deadline passed, or a newer event took its place, as the manifest's `channels:` says; call again if it still matters."


class InvocationPending(EdgeflowError):
    """The invocation has not ended in that time; it goes on."""

    code = "invocation-pending"
    status = 504
    hint = "`edgeflow get invocation <invocation>` says how it is, also later; `edgeflow get functions` whether the function runs."


class WrongType(EdgeflowError):
    """The key is of another type."""

    code = "wrong-type"
    status = 409
    hint = "A key is a plain value, a counter, a set or a map; delete it first, or use another key."


class VersionMismatch(EdgeflowError):
    """The value has another version than the one asked for."""

    code = "version-mismatch"
    status = 412
    hint = "Read the value again and retry with its ETag in If-Match."


class TooLarge(EdgeflowError):
    """The body is larger than the limit."""

    code = "too-large"
    status = 413
    hint = "Limits are listed in docs/limits.md; put large data into the EKV and publish its dataref."


class OutputLimit(TooLarge):
    """An invocation published more than the manifest of its function allows."""

    code = "output-limit"
    hint = "Publish less, or raise `limits: {outputs: ..., output_bytes: ...}`."


class SecretMissing(EdgeflowError):
    """A function names a secret that is not set."""

    code = "secret-missing"
    status = 409
    hint = "Set it with `edgeflow secret set <namespace>/<name>`; the function starts by itself then."


class NoSecretsHere(EdgeflowError):
    """This PoP cannot read or keep secrets: the cluster's key for them is not here, or is another one."""

    code = "no-secrets-here"
    status = 501
    hint = "`runner.secrets_key_file` names the key, the same at every PoP; `edgeflow up` makes it. Secrets that were set with another key have to be set again."


class Unavailable(EdgeflowError):
    """A part that is needed is not reachable right now."""

    code = "unavailable"
    status = 503
    hint = "Try again; `edgeflow status` shows what is down."
    retryable = True


class StoreUnavailable(Unavailable):
    """The PoP's Redis is not reachable right now."""

    code = "store-unavailable"
    hint = "The supervisor restarts it; try again. `edgeflow status` shows it."


class Shedding(Unavailable):
    """This PoP has too much to do for new event streams, and another one has room."""

    code = "shedding"
    hint = "Follow the channel at the PoP that the answer names (`url`)."


class StoreFull(Unavailable):
    """The PoP has no room left for new data; nothing of this was taken."""

    code = "store-full"
    status = 507
    hint = "Free disk or memory at that PoP, or publish at another one; it takes data again by itself."


class Throttled(EdgeflowError):
    """Too much at once; nothing of this was taken."""

    code = "throttled"
    status = 429
    hint = "Try again after the seconds in Retry-After."
    retryable = True
    retry_after_s: float

    def __init__(self, message: str | None = None, *, hint: str | None = None, retry_after_s: float = 1.0) -> None:
        """`retry_after_s`: how long to wait before it makes sense to try again."""
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class QueueFull(Throttled):
    """A queue has as many events as its channel's policy or the manifest allows; nothing of this was taken."""

    code = "queue-full"
    hint = "Slow down and try again after the seconds in Retry-After; `edgeflow get functions` and `edgeflow get joins` show what waits."


class QuotaExceeded(Throttled):
    """The namespace sends more than its quota allows; nothing of this was taken."""

    code = "quota-exceeded"
    hint = "Try again after the seconds in Retry-After; `edgeflow quota show` says what is allowed."


class StaleRoutes(EdgeflowError):
    """The routing table changed since this call was prepared."""

    code = "stale-routes"
    status = 409
    hint = "Load the table and prepare the call again."
    retryable = True


class StaleAttempt(EdgeflowError):
    """The attempt is no longer the current one of its invocation; nothing was written."""

    code = "stale-attempt"
    status = 409
    hint = "The lease ended or the instance was given up; another attempt owns the invocation."


class CorruptEntry(EdgeflowError):
    """A log entry does not match its checksum."""

    code = "corrupt-entry"
    status = 502
    hint = "The peer sends it again; if it repeats, that peer's store is damaged."
    retryable = True


class CorruptBlob(EdgeflowError):
    """A blob does not match its digest."""

    code = "corrupt-blob"
    status = 503
    hint = "It is fetched again from a peer that has it; try again after the seconds in Retry-After."
    retryable = True


class BodyMissing(Unavailable):
    """The body of this value is not at this PoP yet."""

    code = "body-missing"
    hint = "It is fetched from a peer that has it; try again after the seconds in Retry-After. `edgeflow status` shows the links."


class LogGap(EdgeflowError):
    """Log entries are missing between what is mirrored and what was sent."""

    code = "log-gap"
    status = 409
    hint = "The sender starts again at the receiver's cursor."
    retryable = True


class ProtocolError(EdgeflowError):
    """A message does not follow the protocol."""

    code = "protocol-error"
    status = 400
    hint = "See docs/protocol.md."


class StoreTooOld(EdgeflowError):
    """This Redis has no Functions; version 7.0 or newer is needed."""

    code = "store-too-old"
    hint = "Install Redis >= 7.0 (Debian 12 has it), or use Docker mode."


class BadHandler(EdgeflowError):
    """A function's handler.py cannot be used."""

    code = "bad-handler"
    status = 422
    hint = "handler.py holds exactly one `@function def handle(ctx, <one parameter per input>)`."


class BadOutput(EdgeflowError):
    """What a function returned or emitted cannot be published."""

    code = "bad-output"
    status = 422
    hint = "Publish bytes, str or JSON-able data on a channel of the function's `publish:` list."


class Reject(EdgeflowError):
    """The function rejected this input."""

    code = "rejected"
    status = 422
    hint = "The handler raised Reject: the invocation became a dead letter at once, without further attempts."


class LinkRefused(EdgeflowError):
    """A link between two PoPs cannot be used as it is."""

    code = "link-refused"
    status = 403
    hint = "Both PoPs need the same cluster id and CA, each other in `link.peers`, and the same version; `edgeflow status` shows the reason."
    retryable = True


class HasLeft(LinkRefused):
    """The PoP has left the cluster."""

    code = "has-left"
    hint = "`edgeflow pops join` with a new token brings it back, as a new PoP."
    retryable = False


class Replaced(LinkRefused):
    """There is a newer PoP of this id."""

    code = "replaced"
    hint = "Two PoPs cannot have one id. The one with the older certificate, or that came second, ends or joins under another id."


class BadSession(BadRequest):
    """The session token is not one of this namespace."""

    code = "bad-session"
    hint = "Send the `Edgeflow-Session` of the last answer as it came; without one a session begins."


class BadToken(BadRequest):
    """The token is not one with which a PoP may join here."""

    code = "bad-token"
    status = 403
    hint = "`edgeflow pops token` makes one; it holds once, until it expires, at the PoP that made it."


class TokenUsed(BadToken):
    """The token was used already."""

    code = "token-used"
    status = 409


class TokenExpired(BadToken):
    """The token has expired."""

    code = "token-expired"
    status = 410


class CannotAdmit(EdgeflowError):
    """This PoP has no key of the cluster's CA, so it can admit nobody."""

    code = "cannot-admit"
    status = 501
    hint = "PoPs that were there from the beginning have it: make the token at one of those (`--pop`)."


class PopExists(EdgeflowError):
    """The cluster has a PoP of that id."""

    code = "pop-exists"
    status = 409
    hint = "Take another id (`--pop`). A PoP that is lost for good leaves first: `edgeflow pops leave --force`; then its id is free."


class BadMember(BadRequest):
    """The record of a PoP is not valid."""

    code = "bad-member"
    hint = "docs/members.md, says what a record has; `edgeflow pops list` shows those that can be read."


class BadPolicy(BadRequest):
    """The policies of a namespace are not valid."""

    code = "bad-policy"
    hint = "docs/ekv.md, Policies, says what a rule is."


class BadQuota(BadRequest):
    """A quota is not valid."""

    code = "bad-quota"
    hint = "docs/limits.md, Quotas, says what a quota bounds."


class BadSet(BadRequest):
    """What is applied from a folder, or the record of it, is not valid."""

    code = "bad-set"
    hint = "docs/operations.md, A folder as one set, says what a folder holds."


class Behind(Unavailable):
    """This PoP has not got yet what the session has seen, or the version that was asked for."""

    code = "behind"
    hint = "Try again after the seconds in Retry-After, or ask with a longer `wait`; `edgeflow kv lag` shows what is missing."


class Stale(Unavailable):
    """What this PoP has may be older than `max_staleness` allows."""

    code = "stale"
    hint = "Ask another PoP, or allow more; `edgeflow kv lag` shows how old it is."


class NotReplicated(EdgeflowError):
    """Not as many other PoPs as were asked for have confirmed the write in that time; it is durable here, and goes on its way."""

    code = "not-replicated"
    status = 504
    hint = "Do not send it again: `receipt` is the write's, and `edgeflow kv has` says later which PoP has it."


class NoHome(BadRequest):
    """No policy gives this key a home, so there is no PoP that could decide."""

    code = "no-home"
    status = 422
    hint = "Give its prefix a home with `edgeflow kv policy set`, or read and write without `strong`."


class HomeElsewhere(EdgeflowError):
    """The key's writes are decided at its home, which is another PoP; nothing was written."""

    code = "home-elsewhere"
    status = 421
    hint = "Write through `/v1/ekv` or `Client.ekv`, which go to the home, or place the function there."


class HomeUnreachable(Unavailable):
    """The key's home cannot be reached from this PoP; whether a write has reached it is not known."""

    code = "home-unreachable"
    hint = "Try again, a write with the same id; `edgeflow kv policy move` gives the prefix another home, with `--force` also while this one is away."


class StaleHome(EdgeflowError):
    """The home of the key changed since this call was prepared; nothing was written."""

    code = "stale-home"
    status = 409
    hint = "Try again: the new home answers as soon as it has everything that the old one had."
    retryable = True


class BadExpression(BadRequest):
    """The expression is not JMESPath."""

    code = "bad-expression"
    hint = "Text stands in 'quotes', numbers, true, false and null in backquotes: type == 'alarm' && data.size > `10`. See docs/manifest.md, Expressions."


class ExpressionFailed(EdgeflowError):
    """An expression could not be evaluated for this event."""

    code = "expression-failed"
    status = 422
    hint = "Look at the dead letter's event, and correct the expression in the manifest."


def describe(error: Exception) -> dict[str, object]:
    """An error as it travels from process to process, or from PoP to PoP."""
    if isinstance(error, EdgeflowError):
        known: dict[str, object] = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "details": dict(error.details),
        }
        if isinstance(error, Throttled):
            known["retry_after_s"] = error.retry_after_s
        return known
    return {"code": EdgeflowError.code, "message": (EdgeflowError.__doc__ or "").strip()}


def described(known: object) -> EdgeflowError:
    """Inverse of `describe`, also of what came from a stranger: one whose code is not known here is an EdgeflowError with that code."""
    found = known if isinstance(known, dict) else {}
    code, message, hint = (str(found.get(name) or "")[:4000] for name in ("code", "message", "hint"))
    kind = _by_code().get(code, EdgeflowError)
    error = kind(message or None, hint=hint or None)
    if code:
        error.code = code
    details = found.get("details")
    error.details = dict(details) if isinstance(details, dict) else {}
    after_s = found.get("retry_after_s")
    if isinstance(error, Throttled) and isinstance(after_s, int | float):
        error.retry_after_s = float(after_s)
    return error


def _by_code() -> dict[str, type[EdgeflowError]]:
    known: dict[str, type[EdgeflowError]] = {}
    pending: list[type[EdgeflowError]] = [EdgeflowError]
    while pending:
        kind = pending.pop(0)
        known.setdefault(kind.code, kind)
        pending += kind.__subclasses__()
    return known
