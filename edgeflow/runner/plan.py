"""What to do next for the instances of one function: a pure function of what is wanted, what is there, and the time.

What it is not: memory. Failures and requests to stop are passed in, so a restarted control process decides the same way.
What must stay true: a revision that is coming never costs the one that serves an instance; an old one is stopped only when enough of those that serve are
ready and its inbox is empty; an old
inbox that is not empty keeps an instance; one that has been asked to stop is killed after its grace, whatever it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

READY = frozenset({"ready", "parking", "parked", "waking"})

EXIT_TOO_LONG = "exited with status 75"
"""How the SDK ends when an attempt ran past its timeout: the function's own deadline, so the next instance starts at once."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Deadlines of the reconciler, in milliseconds."""

    start_deadline_ms: int = 120_000
    """From start to ready."""
    stop_grace_ms: int = 35_000
    """From the request to stop to the kill."""
    lost_ms: int = 15_000
    """How long an instance may be without its socket before it is replaced."""


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance: what the driver and the data process say about it."""

    instance: str
    revision: str
    running: bool
    started_ms: int
    ended: str | None = None
    state: str | None = None
    """State by the data process; None when it has not said anything."""
    since_ms: int = 0
    stopping_since_ms: int | None = None
    content: str = ""
    """Names the versions of the secrets that it was started with."""
    is_to_park: bool = False
    """What this process wants of it, by its document."""
    paused: bool = False
    woken: bool = False
    """Work has woken it although it was to be parked."""


@dataclass(frozen=True, slots=True)
class Coming:
    """A revision that is to take over when it is ready."""

    revision: str
    wanted: int
    prepared: bool
    start_from_ms: int
    content: str = ""


@dataclass(frozen=True, slots=True)
class FunctionView:
    """One function at this PoP. `revision` is the one that serves; None = it is not wanted here any more."""

    revision: str | None
    wanted: int
    prepared: bool
    """Whether instances of `revision` can be started."""
    start_from_ms: int
    """Not before this time (backoff after failures)."""
    instances: Sequence[InstanceView]
    old_work: frozenset[str] = frozenset()
    """Old revisions with something left in their inboxes."""
    coming: Coming | None = None
    active: int | None = None
    """How many of those that serve are to be awake; None: all."""
    content: str = ""
    """Names the versions of the secrets as they are now: an instance with others is replaced as one of an older revision is."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start one instance of the revision that serves, or of the coming one."""

    is_coming: bool = False


@dataclass(frozen=True, slots=True)
class StartOld:
    """Start one instance of an old revision."""

    revision: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask an instance to leave."""

    instance: str
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End an instance now. `failed`: it counts as a failure of its revision."""

    instance: str
    why: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget an instance that has ended."""

    instance: str
    why: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """Have an instance finish what it has and wait without work; `wanted` False: have it work."""

    instance: str
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """Let an instance that has parked stand still, or go on."""

    instance: str
    wanted: bool = True


Action = Start | StartOld | Stop | Kill | Remove | Park | Pause


def plan(view: FunctionView, policy: Policy, now_ms: int) -> list[Action]:
    """The actions that bring `view` nearer to what is wanted. Times in ms since 1970."""
    actions: list[Action] = []
    current: list[InstanceView] = []
    coming: list[InstanceView] = []
    old: list[InstanceView] = []
    for instance in view.instances:
        action = _care(instance, policy, now_ms)
        if action is not None:
            actions.append(action)
        elif instance.stopping_since_ms is None:
            is_coming = view.coming is not None and (instance.revision, instance.content) == (
                view.coming.revision,
                view.coming.content,
            )
            is_current = (instance.revision, instance.content) == (view.revision, view.content)
            (current if is_current else coming if is_coming else old).append(instance)
    if view.revision is None:
        return actions + [Stop(instance.instance, "is not wanted here any more") for instance in old]

    missing = view.wanted - len(current)
    if missing > 0 and view.prepared and now_ms >= view.start_from_ms:
        actions += [Start()] * missing
    if view.coming is not None and view.coming.prepared and now_ms >= view.coming.start_from_ms:
        actions += [Start(is_coming=True)] * (view.coming.wanted - len(coming))
    # Those that are not ready go first, then those that sleep, then the youngest.
    order = sorted(current, key=lambda one: (one.state in READY, one.state != "parked", -one.started_ms))
    spare = order[: max(0, -missing)]
    actions += [Stop(instance.instance, "is one more than wanted") for instance in spare]

    actions += _sleep(current, spare, view.active)
    actions += [action for one in [*current, *coming, *old] if (action := _freeze(one)) is not None]
    ready = sum(1 for instance in current if instance.state in READY)
    if ready >= view.wanted:
        actions += [
            Stop(instance.instance, _why_old(instance, view))
            for instance in old
            if instance.revision not in view.old_work
        ]
    # What is left for an old revision is for it alone: if none of its instances lived on, one is started again.
    served = {instance.revision for instance in old}
    actions += [StartOld(revision) for revision in sorted(view.old_work - served)]
    return actions


def _why_old(instance: InstanceView, view: FunctionView) -> str:
    if instance.revision == view.revision:
        return "was started with other secrets than there are now"
    return f"belongs to revision {instance.revision}, which was replaced"


def _sleep(current: Sequence[InstanceView], spare: Sequence[InstanceView], active: int | None) -> list[Action]:
    """Who of those that stay sleeps and who does not."""
    stay = [one for one in current if one not in spare]
    awake = [one for one in stay if not one.is_to_park or one.woken]
    asleep = [one for one in stay if one.is_to_park and not one.woken]
    wanted = len(stay) if active is None else active
    actions: list[Action] = [Park(one.instance, wanted=False) for one in awake if one.is_to_park]
    # One that is not paused yet is back soonest.
    back = sorted(asleep, key=lambda one: one.paused)[: max(0, wanted - len(awake))]
    actions += [Park(one.instance, wanted=False) for one in back]
    rested = sorted((one for one in awake if one.state == "ready" and not one.woken), key=lambda one: -one.started_ms)
    return actions + [Park(one.instance) for one in rested[: max(0, len(awake) - wanted)]]


def _freeze(one: InstanceView) -> Action | None:
    """Only one that has parked, and that nobody wants back, stands still."""
    is_asleep = one.is_to_park and not one.woken and one.state == "parked"
    if one.paused == is_asleep:
        return None
    return Pause(one.instance, wanted=is_asleep)


def _care(instance: InstanceView, policy: Policy, now_ms: int) -> Action | None:
    """What one instance needs by itself; None when it is fine (or on its way out)."""
    if not instance.running:
        ended = instance.ended or "ended"
        failed = instance.stopping_since_ms is None and ended != EXIT_TOO_LONG
        return Remove(instance.instance, ended, failed)
    if instance.stopping_since_ms is not None:
        if now_ms - instance.stopping_since_ms > policy.stop_grace_ms:
            return Kill(instance.instance, f"did not leave within {policy.stop_grace_ms // 1000} s")
        return None
    if instance.state == "hung":
        return Kill(instance.instance, "its handler does not return")
    if instance.state == "waking" and now_ms - instance.since_ms > policy.lost_ms:
        return Kill(instance.instance, f"did not wake within {policy.lost_ms // 1000} s", failed=True)
    if instance.state in READY:
        return None
    # A restarted data process starts the clock anew: its instances need a moment to come back to it.
    waiting_ms = now_ms - max(instance.started_ms, instance.since_ms)
    if instance.state == "lost" and waiting_ms > policy.lost_ms:
        return Kill(instance.instance, f"was without its socket for {policy.lost_ms // 1000} s", failed=True)
    if waiting_ms > policy.start_deadline_ms:
        return Kill(instance.instance, f"did not become ready within {policy.start_deadline_ms // 1000} s", failed=True)
    return None


def backoff_ms(failures: int) -> int:
    """Wait before the next start after `failures` failures in a row: none after the first, then 0.5 s, doubled up to 60 s."""
    return 0 if failures < 2 else min(60_000, 500 * 2 ** min(failures - 2, 10))
