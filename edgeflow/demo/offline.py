"""The application without the platform: the five handlers, one after the other, in this process.

What it is: how unit tests and `python -m edgeflow.demo.offline` measure quality and the CPU time of the handlers themselves.
What it is not: the demo; nothing is published, stored, joined or retried here.
What must stay true: the handlers are called as an instance calls them, through `edgeflow.sdk.testing`.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeflow.demo import faces, person, video
from edgeflow.demo.evaluate import Quality, evaluate
from edgeflow.demo.functions import function_module
from edgeflow.sdk.testing import Output, Result, call, event

STAGES = ("extract", "detect", "classify", "augment", "assemble")


@dataclass(frozen=True, slots=True)
class Run:
    """What came out on each channel, and what each stage took."""

    frames: list[Output]
    faces: list[Output]
    matches: list[Output]
    augmented: list[Output]
    video: Output
    cpu_ms: dict[str, float]
    """CPU time of each stage, milliseconds for all its invocations together."""


def run(chunk: bytes, model: bytes | None, replacement: bytes | None, name: str = "clip") -> Run:
    """All stages over one chunk of mp4."""
    spent = dict.fromkeys(STAGES, 0.0)
    augment: Any = function_module("augment")
    if not hasattr(augment.replacement, "cache_info"):
        # An instance keeps what it made of a context value for as long as the value stays the same; `call` starts afresh each time.
        augment.replacement = cache(augment.replacement)

    def stage(function: str, **given: Any) -> Result:
        handle: Callable[..., Any] = function_module(function).handle
        began = time.process_time()
        result = call(handle, **given)
        spent[function] += (time.process_time() - began) * 1000
        return result

    frames = stage("extract", chunks=event(chunk, subject=name)).outputs
    found, matches, augmented = [], [], []
    for frame in frames:
        one = _event(frame)
        found.append(stage("detect", frames=one).output)
        matches.append(stage("classify", frames=one, faces=_event(found[-1]), context={"model": model}).output)
        joined = {"frames": one, "faces": _event(found[-1]), "matches": _event(matches[-1])}
        augmented.append(stage("augment", **joined, context={"replacement": replacement}).output)
    film = stage("assemble", augmented=[_event(one) for one in augmented]).output
    return Run(frames, found, matches, augmented, film, spent)


def measure(clip: video.Clip, ran: Run) -> Quality:
    """The quality of a run over a clip with a truth."""
    return evaluate(
        [one.data for one in ran.frames],
        [one.json() for one in ran.faces],
        [one.json() for one in ran.matches],
        [one.data for one in ran.augmented],
        clip.truth,
        clip.person_of_interest,
    )


def _event(output: Output) -> Any:
    return event(
        output.data, subject=output.subject, attributes=output.attributes, datacontenttype=output.datacontenttype
    )


def main() -> int:
    """Measures the test videos named on the command line (default and held-out if none); writes a JSON line for each."""
    passed = True
    for name in sys.argv[1:] or [video.DEFAULT.name, video.HELD_OUT.name]:
        scene = video.SCENES[name]
        clip = video.write(scene, Path("demo-output"))
        ran = run(
            clip.path.read_bytes(),
            person.make_model(faces.portrait(scene.person_of_interest)),
            person.replacement_face(),
        )
        quality = measure(clip, ran)
        per_frame = {stage: round(spent / len(ran.frames), 2) for stage, spent in ran.cpu_ms.items()}
        passed = passed and not quality.failures()
        report = {"video": name, **asdict(quality), "failures": quality.failures(), "cpu_ms_per_frame": per_frame}
        print(json.dumps({**report, "cpu_ms_per_frame_in_all": round(sum(per_frame.values()), 2)}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
