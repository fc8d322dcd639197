"""How well the application did, measured against the truth of a test video.

What it is: three numbers with a threshold each, and two more that catch what those would miss (a face that was recognised but not
replaced; a match that is never the person). Pure functions of what came out of the channels.
What it is not: a judgement of how good the replaced faces look.
What must stay true: boxes for "outside" come from the truth, not from what the functions claim, wherever there is a truth.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeflow.demo.extras import cv2, numpy
from edgeflow.demo.video import Face

Box = Sequence[float]

RECALL_LEAST = 0.95
ACCURACY_LEAST = 0.95
CHANGE_MOST = 2.0
REPLACED_LEAST = 0.95
FOUND_OVERLAP = 0.5
REPLACED_CHANGE = 3.0
"""Mean change (grey levels, in the middle of the face) from which on a face counts as replaced; recompression alone makes less than 1."""
_BLOCK_PX = 16
_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured; shares are None when there was nothing to measure them on."""

    faces: int
    """Whole faces in the truth."""
    recall: float | None
    """Share of them that were found (overlap of 0.5 or more)."""
    accuracy: float | None
    """Share of right answers to "is this the person?", over found faces and over matches where there is no face at all."""
    person_recall: float | None
    """Share of the person's found faces that matched."""
    person_precision: float | None
    """Share of matches that are the person."""
    replaced: float | None
    """Share of the person's found faces that look different afterwards."""
    change: float
    """Mean absolute change outside the person's face, over frames that were changed (grey levels; recompression apart)."""
    frames_changed: int

    def failures(self) -> list[str]:
        """A line per threshold that was missed."""
        missed = []
        for what, share, least in (
            ("detection recall", self.recall, RECALL_LEAST),
            ("identification accuracy", self.accuracy, ACCURACY_LEAST),
            ("share of the person's faces that were replaced", self.replaced, REPLACED_LEAST),
        ):
            if share is not None and share < least:
                missed.append(f"{what} is {share:.3f}, at least {least} is asked for")
        if self.change > CHANGE_MOST:
            missed.append(
                f"change outside the replaced face is {self.change:.2f} grey levels, at most {CHANGE_MOST} is asked for"
            )
        return missed


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def evaluate(
    frames: Sequence[bytes],
    faces: Sequence[dict[str, Any]],
    matches: Sequence[dict[str, Any]],
    augmented: Sequence[bytes],
    truth: Sequence[Sequence[Face]] | None,
    person: str | None,
) -> Quality:
    """Measure one video: what came out on each channel, frame by frame, against the truth (None: only the change is measured)."""
    count = _Count()
    changes = []
    for number, (before, after) in enumerate(zip(frames, augmented, strict=True)):
        marked = matches[number]["faces"]
        matching = [face["box"] for face in marked if face["match"]]
        if truth is None:
            own = matching
        else:
            own = [face.box for face in truth[number] if face.person == person]
            count.frame(truth[number], person, [face["box"] for face in faces[number]["faces"]], matching)
        if before != after:
            change = _Change(before, after)
            changes.append(change.outside(own))
            if truth is not None:
                count.replaced += sum(
                    change.inside(box) >= REPLACED_CHANGE for box in count.shown(truth[number], person, matching)
                )
    return count.quality(sum(changes) / len(changes) if changes else 0.0, len(changes), truth is not None)


class _Count:
    """Running totals over frames."""

    def __init__(self) -> None:
        self.wanted = self.found = self.right = self.answers = 0
        self.person_found = self.person_matched = self.matched = self.matched_right = 0
        self.replaced = 0

    def frame(self, truth: Sequence[Face], person: str | None, found: Sequence[Box], matching: Sequence[Box]) -> None:
        for face in truth:
            if not face.whole:
                continue
            self.wanted += 1
            if not any(overlap(face.box, box) >= FOUND_OVERLAP for box in found):
                continue
            self.found += 1
            self.answers += 1
            matched = any(overlap(face.box, box) >= FOUND_OVERLAP for box in matching)
            self.right += matched == (face.person == person)
            if face.person == person:
                self.person_found += 1
                self.person_matched += matched
        for box in matching:
            nearest = max(truth, key=lambda face: overlap(face.box, box), default=None)
            if nearest is None or overlap(nearest.box, box) < 0.2:
                self.answers += 1
            self.matched += 1
            self.matched_right += nearest is not None and overlap(nearest.box, box) >= 0.2 and nearest.person == person

    @staticmethod
    def shown(truth: Sequence[Face], person: str | None, matching: Sequence[Box]) -> list[Box]:
        """The person's whole faces that matched."""
        return [
            face.box
            for face in truth
            if face.whole and face.person == person and any(overlap(face.box, box) >= FOUND_OVERLAP for box in matching)
        ]

    def quality(self, change: float, frames_changed: int, known: bool) -> Quality:
        return Quality(
            faces=self.wanted,
            recall=_share(self.found, self.wanted),
            accuracy=_share(self.right, self.answers),
            person_recall=_share(self.person_matched, self.person_found),
            person_precision=_share(self.matched_right, self.matched),
            replaced=_share(self.replaced, self.person_found) if known else None,
            change=change,
            frames_changed=frames_changed,
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class _Change:
    """Absolute change of each pixel of a frame, against the same frame compressed once more without any other change."""

    def __init__(self, before: bytes, after: bytes) -> None:
        np = numpy()
        first = _decode(before)
        again = _decode(cv2().imencode(".jpg", first, (cv2().IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes())
        self._levels = np.abs(_decode(after).astype(np.int16) - again).mean(axis=2)

    def outside(self, boxes: Iterable[Box]) -> float:
        """Mean change outside `boxes`, each taken with the whole JPEG blocks that it touches (grey levels)."""
        np = numpy()
        counted = np.ones(self._levels.shape, bool)
        for left, top, width, height in boxes:
            first_y, first_x = (int(max(0, edge) // _BLOCK_PX) * _BLOCK_PX for edge in (top, left))
            last_y, last_x = (-int(-edge // _BLOCK_PX) * _BLOCK_PX for edge in (top + height, left + width))
            counted[first_y : max(0, last_y), first_x : max(0, last_x)] = False
        return float(self._levels[counted].mean()) if counted.any() else 0.0

    def inside(self, box: Box) -> float:
        """Mean change in the middle half of `box` (grey levels)."""
        left, top, width, height = box
        part = self._levels[
            int(top + height / 4) : int(top + 3 * height / 4), int(left + width / 4) : int(left + 3 * width / 4)
        ]
        return float(part.mean()) if part.size else 0.0


def _decode(jpeg: bytes) -> Any:
    return cv2().imdecode(numpy().frombuffer(jpeg, numpy().uint8), cv2().IMREAD_COLOR)
