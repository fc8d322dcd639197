"""The demo: a video through the application, over three PoPs, and the proof that every frame came out once.

What it is: prepares video, person model and replacement face; applies the functions; publishes the chunks at one PoP; collects what
comes out at another; measures. Everything goes through the public API, as a user's own program would.
What it is not: how it looks (edgeflow.cli.demo), or the starting of a cluster.
What must stay true: `Outcome.failures` is empty only if every frame came out exactly once, by id and by chunk and number, on every
channel, every film came, and every threshold that could be measured was kept.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeflow.demo import chunks, evaluate, faces, person, sheet, video
from edgeflow.demo.watch import STAGES, Watch
from edgeflow.errors import EdgeflowError
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.sdk.client import Client

NAMESPACE = "vision"
ENTRY_POP, MIDDLE_POP, EXIT_POP = "chicago", "la", "ny"
FUNCTIONS = {
    "extract": ENTRY_POP,
    "detect": MIDDLE_POP,
    "classify": MIDDLE_POP,
    "augment": EXIT_POP,
    "assemble": EXIT_POP,
}
MODEL_KEY, REPLACEMENT_KEY = f"{NAMESPACE}/models/person-of-interest", f"{NAMESPACE}/models/replacement-face"
KEPT_FRAMES = 1500
"""How many frames are kept in memory to be measured; a longer video is measured on its first ones."""
QUIET_S = 5.0
"""How long nothing may come out before dead letters are looked for."""
STALL_S = 90.0
"""How long nothing may come out before the demo gives up."""
REPLICATION_S = 30.0
STATS_S = 5.0


class DemoStalled(EdgeflowError):
    """Nothing came out any more before the video was complete."""

    code = "demo-stalled"
    hint = "`edgeflow get functions`, `edgeflow get joins` and `edgeflow dlq list vision` show where it is."


@dataclass(frozen=True, slots=True)
class Request:
    """What to run."""

    input: Path | None = None
    """A user's own video; None = the default one."""
    reference: Path | None = None
    """A picture of the person to replace; None = the person of interest of the default video."""
    replacement: Path | None = None
    """A picture of the face to show instead; None = the astronaut."""
    output_dir: Path = Path("demo-output")


@dataclass(frozen=True, slots=True)
class Now:
    """How the run stands, for whoever shows it."""

    sent: int
    chunks: int
    """Chunks sent, and how many were cut so far."""
    wanted: int
    """Frames that are known to come."""
    done: Mapping[str, int]
    """Frames out per stage, at the exit PoP."""
    films: int
    age_ms: float | None
    """Age of the newest augmented frame."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run came to; JSON-able through dataclasses.asdict."""

    frames: int
    length_s: float
    """Of the video."""
    total_s: float
    """From the first chunk's publish to the last film's arrival."""
    first_frame_s: float | None
    """Until the first augmented frame was out."""
    stages: dict[str, dict[str, Any]]
    """Per function: pop, invocations and failed of this run, earlier = invocations before it that the times include too, and p50 and p99
    of platform, waiting and handler time (ms)."""
    quality: evaluate.Quality | None
    measured_frames: int
    dead_letters: int
    film: str
    sheet: str | None
    failures: list[str]


class Show(Protocol):
    """Where progress goes."""

    def say(self, line: str) -> None:
        """A step."""

    def update(self, now: Now) -> None:
        """How the run stands."""


@dataclass(frozen=True, slots=True)
class Material:
    """What the run needs besides a cluster."""

    pieces: list[chunks.Chunk]
    clip: video.Clip | None
    """With the truth; None for a user's own video."""
    model: bytes
    replacement: bytes


def prepare(request: Request, show: Show) -> Material:
    """Video, person model and replacement face. Raises BadRequest and NoFace for input that is none; needs no cluster."""
    request.output_dir.mkdir(parents=True, exist_ok=True)
    clip = None
    if request.input is None:
        show.say(
            f"making the default video ({video.DEFAULT.seconds} s, {video.DEFAULT.frames} frames, {video.DEFAULT.width}x{video.DEFAULT.height})"
        )
        clip = video.write(video.DEFAULT, request.output_dir)
    pieces = list(chunks.cut(clip.path if clip else Path(request.input or "")))
    show.say("making the person model" + (f" from {request.reference}" if request.reference else ""))
    picture = (
        person.read_reference(request.reference)
        if request.reference
        else faces.portrait(video.DEFAULT.person_of_interest)
    )
    if request.reference is not None:
        clip = None  # the truth names another person
    replacement = person.check_replacement(request.replacement) if request.replacement else person.replacement_face()
    return Material(pieces, clip, person.make_model(picture), replacement)


def run(request: Request, material: Material, cluster: Cluster, show: Show) -> Outcome:
    """The video of `material` through the functions, which are ready. Raises DemoStalled, Unavailable."""
    with (
        _client(cluster.pop(ENTRY_POP)) as entry,
        _client(cluster.pop(MIDDLE_POP)) as middle,
        _client(cluster.pop(EXIT_POP)) as out,
    ):
        show.say(f"putting the person model and the replacement face into the EKV at {ENTRY_POP}")
        for key, data in ((MODEL_KEY, material.model), (REPLACEMENT_KEY, material.replacement)):
            version = entry.put(key, data, content_type="application/octet-stream").version
            _wait_for_value(key, version, (middle, out))
        before = {name: _state(cluster, name) for name in FUNCTIONS}
        letters_before = _dead_letters((entry, middle, out))
        films_key = f"demo-{uuid.uuid4().hex[:8]}"
        watch = Watch(out, NAMESPACE, lambda chunk: chunk.startswith(films_key), KEPT_FRAMES)
        watch.start(REPLICATION_S)
        sent, length_s, began_s, first_frame_s = _stream(
            (entry, middle, out), material.pieces, films_key, watch, show, letters_before
        )
        total_s = time.monotonic() - began_s
        watch.close()
        stages = _stages(cluster, before, len(sent))
        letters = _dead_letters((entry, middle, out)) - letters_before
        return _judge(request, material, watch, sent, length_s, total_s, first_frame_s, stages, letters)


def _client(access: PopAccess) -> Client:
    return Client(access.api_url, access.token)


def _wait_for_value(key: str, version: str | None, clients: tuple[Client, ...]) -> None:
    """Until each PoP has the value."""
    deadline_s = time.monotonic() + REPLICATION_S
    for client in clients:
        while (info := client.head(key)) is None or info.version != version:
            if time.monotonic() > deadline_s:
                raise DemoStalled(
                    f"{client.url} does not have {key} after {REPLICATION_S:.0f} s",
                    hint="`edgeflow status` shows whether the links are up.",
                )
            time.sleep(0.05)


def _stream(
    clients: tuple[Client, ...], pieces: list[chunks.Chunk], name: str, watch: Watch, show: Show, letters_before: int
) -> tuple[list[str], float, float, float | None]:
    """Publish the chunks, at most two ahead of what is out, and wait for the films: (chunk names, length, start, first frame)."""
    sent: list[str] = []
    length_s = 0.0
    began_s = time.monotonic()
    first_frame_s: float | None = None
    watch.progress_s = began_s
    while True:
        waiting = [chunk for chunk in sent if chunk not in watch.films]
        if len(sent) < len(pieces) and len(waiting) < 2:
            piece = pieces[len(sent)]
            chunk = f"{name}-{len(sent):04d}"
            clients[0].publish(f"{NAMESPACE}/chunks", piece.data, subject=chunk, datacontenttype="video/mp4")
            sent.append(chunk)
            length_s += piece.length_s
        done = watch.numbers()
        now_s = time.monotonic()
        if first_frame_s is None and done[STAGES[-1]]:
            first_frame_s = now_s - began_s
        newest_ms = watch.channels[STAGES[-1]].newest_ms
        age_ms = time.time() * 1000 - newest_ms if newest_ms else None
        wanted = sum(watch.counts.get(f"{name}-{number:04d}", piece.frames) for number, piece in enumerate(pieces))
        show.update(Now(len(sent), len(pieces), wanted, done, len(watch.films), age_ms, now_s - began_s))
        if len(sent) == len(pieces) and watch.complete(sent):
            return sent, length_s, began_s, first_frame_s
        if watch.error is not None:
            raise watch.error
        if now_s - watch.progress_s > QUIET_S:
            # What was given up will not come any more, so there is nothing to wait for.
            given_up = _dead_letters(clients) - letters_before
            if given_up:
                raise DemoStalled(
                    f"{given_up} invocations became dead letters.",
                    hint=f"`edgeflow dlq list {NAMESPACE}` shows each with its reason.",
                )
        if now_s - watch.progress_s > STALL_S:
            out = ", ".join(f"{count} {stage}" for stage, count in done.items())
            raise DemoStalled(
                f"Nothing came out for {STALL_S:.0f} s; so far {out} of {wanted} frames and {len(watch.films)} of {len(pieces)} films."
            )
        time.sleep(0.1)


def _state(cluster: Cluster, function: str) -> dict[str, Any]:
    """Counts and times of a function, asked where it runs; empty when that PoP cannot say."""
    with _client(cluster.pop(FUNCTIONS[function])) as client:
        try:
            return dict(client.function(NAMESPACE, function).get("stats") or {})
        except EdgeflowError:
            return {}


def _difference(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The stats after the run, with counts of this run only: a data process counts from 0 when it starts, which `since_ms` shows."""
    same_process = after.get("since_ms") == before.get("since_ms")
    counts = {
        name: int(after.get(name) or 0) - (int(before.get(name) or 0) if same_process else 0)
        for name in ("invocations", "failed")
    }
    earlier = int(after.get("invocations") or 0) - counts["invocations"]
    return {
        **counts,
        "earlier": earlier,
        **{name: after.get(name) for name in ("platform_ms", "waiting_ms", "handler_ms")},
    }


def _stages(cluster: Cluster, before: Mapping[str, Mapping[str, Any]], films: int) -> dict[str, dict[str, Any]]:
    """Per function its PoP and stats. They are written about once a second, so the last invocations are waited for a moment."""
    deadline_s = time.monotonic() + STATS_S
    while True:
        stages = {
            name: {"pop": pop, **_difference(_state(cluster, name), before[name])} for name, pop in FUNCTIONS.items()
        }
        if stages["assemble"]["invocations"] >= films or time.monotonic() > deadline_s:
            return stages
        time.sleep(0.2)


def _dead_letters(clients: tuple[Client, ...]) -> int:
    return sum(sum(1 for _ in client.dead_letters(NAMESPACE)) for client in clients)


def _judge(
    request: Request,
    material: Material,
    watch: Watch,
    sent: list[str],
    length_s: float,
    total_s: float,
    first_frame_s: float | None,
    stages: dict[str, dict[str, Any]],
    letters: int,
) -> Outcome:
    """Check, measure, and write film and sheet."""
    wanted = {(chunk, number) for chunk in sent for number in range(watch.counts[chunk])}
    failures = once(watch, wanted, sent)
    if letters:
        failures.append(f"{letters} invocations became dead letters; `edgeflow dlq list {NAMESPACE}` names them")
    quality, sheet_path, measured = None, None, 0
    order = [key for key in sorted(wanted) if all(watch.channels[name].bodies.get(key) is not None for name in STAGES)]
    if order:
        frames, found, matches, augmented = (
            [watch.channels[name].bodies[key] or b"" for key in order] for name in STAGES
        )
        truth = material.clip.truth if material.clip and len(order) == len(wanted) else None
        person_name = material.clip.person_of_interest if material.clip else None
        quality = evaluate.evaluate(
            frames,
            [json.loads(one) for one in found],
            [json.loads(one) for one in matches],
            augmented,
            truth,
            person_name,
        )
        failures += quality.failures()
        measured = len(order)
        sheet_path = request.output_dir / "contact-sheet.png"
        sheet.write(sheet_path, frames, found, matches, augmented, fps=len(wanted) / length_s if length_s else 25.0)
    film_path = request.output_dir / "augmented.mp4"
    chunks.concatenate([watch.films[chunk] for chunk in sent], film_path)
    return Outcome(
        frames=len(wanted),
        length_s=length_s,
        total_s=total_s,
        first_frame_s=first_frame_s,
        stages=stages,
        quality=quality,
        measured_frames=measured,
        dead_letters=letters,
        film=str(film_path),
        sheet=str(sheet_path) if sheet_path else None,
        failures=failures,
    )


def once(watch: Watch, wanted: set[tuple[str, int]], sent: list[str]) -> list[str]:
    """A line for everything that did not come out exactly once."""
    failures = []
    for name in STAGES:
        channel = watch.channels[name]
        missing, foreign = wanted - set(channel.bodies), set(channel.bodies) - wanted
        if missing:
            failures.append(
                f"{name}: {len(missing)} frames are missing, the first is {'/'.join(map(str, min(missing)))}"
            )
        if foreign:
            failures.append(f"{name}: {len(foreign)} frames are not of this video")
        if channel.twice:
            failures.append(
                f"{name}: {len(channel.twice)} frames came twice, the first is {'/'.join(map(str, channel.twice[0]))}"
            )
        if not channel.twice and len(channel.ids) != len(channel.bodies):
            failures.append(f"{name}: {len(channel.ids)} ids for {len(channel.bodies)} frames")
    if watch.films_twice:
        failures.append(f"video: {', '.join(watch.films_twice)} came twice")
    if set(watch.films) != set(sent):
        failures.append(f"video: {len(watch.films)} films for {len(sent)} chunks")
    failures += [f"the event stream reported a gap: {gap.reason}" for gap in watch.gaps]
    return failures


def live_address(access: PopAccess) -> str:
    """The page that shows the newest augmented picture. The token is in the fragment, which browsers keep to themselves."""
    return f"{access.api_url}/live/{NAMESPACE}/augmented#token={access.token}"
