"""The contact sheet: a few moments of the video as original, detected and augmented, side by side.

What it is: one PNG from frames, faces, matches and augmented pictures.
What must stay true: what is drawn comes from the channels: green boxes from `faces`, the red one from `matches`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeflow.demo.extras import cv2, numpy

MOMENTS = 5
WIDTH_PX = 426
_GREEN, _RED, _WHITE = (80, 220, 80), (60, 60, 235), (255, 255, 255)


def moments(matches: Sequence[bytes]) -> list[int]:
    """Numbers of a few frames, spread over the video, that show a match where there are enough of those."""
    matching = [
        number for number, body in enumerate(matches) if any(face["match"] for face in json.loads(body)["faces"])
    ]
    pool = matching if len(matching) >= MOMENTS else list(range(len(matches)))
    count = min(MOMENTS, len(pool))
    return [pool[(2 * place + 1) * len(pool) // (2 * count)] for place in range(count)]


def write(
    path: Path,
    frames: Sequence[bytes],
    faces: Sequence[bytes],
    matches: Sequence[bytes],
    augmented: Sequence[bytes],
    fps: float,
) -> None:
    """Write the sheet; all four lists are by frame."""
    rows = []
    for number in moments(matches):
        original = _picture(frames[number])
        detected = original.copy()
        for face in json.loads(faces[number])["faces"]:
            _box(detected, face["box"], _GREEN, 2)
        for face in json.loads(matches[number])["faces"]:
            if face["match"]:
                _box(detected, face["box"], _RED, 3)
        shown = [_small(one) for one in (original, detected, _picture(augmented[number]))]
        for picture, label in zip(shown, (f"original  {number / fps:.1f} s", "detected", "augmented"), strict=True):
            cv2().putText(picture, label, (8, 20), cv2().FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2().LINE_AA)
            cv2().putText(picture, label, (8, 20), cv2().FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1, cv2().LINE_AA)
        rows.append(numpy().hstack(shown))
    path.write_bytes(cv2().imencode(".png", numpy().vstack(rows))[1].tobytes())


def _picture(jpeg: bytes) -> Any:
    return cv2().imdecode(numpy().frombuffer(jpeg, numpy().uint8), cv2().IMREAD_COLOR)


def _small(picture: Any) -> Any:
    height = round(picture.shape[0] * WIDTH_PX / picture.shape[1])
    return cv2().resize(picture, (WIDTH_PX, height), interpolation=cv2().INTER_AREA)


def _box(picture: Any, box: Sequence[float], colour: tuple[int, int, int], thickness_px: int) -> None:
    left, top, width, height = (round(length) for length in box)
    cv2().rectangle(picture, (left, top), (left + width, top + height), colour, thickness_px)
