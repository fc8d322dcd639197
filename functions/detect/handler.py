"""detect: a frame -> the faces in it, as JSON on `faces` (an empty list when there is none).

Haar cascades on a reduced grey picture, over several scales; only when an upright face is not found, on the picture turned to
either side. Stateless: each frame stands alone.
Output: {"width", "height" of the frame, "faces": [{"box": [left, top, width, height], "roll_deg", "support"}]}, boxes in pixels of
the frame, `roll_deg` anticlockwise, `support` = how many overlapping hits the cascade had.
"""

import os
from typing import Any

import cv2
import numpy as np

from edgeflow import function
from edgeflow.sdk import Reject

cv2.setNumThreads(1)

WORKING_WIDTH_PX = int(os.environ.get("WORKING_WIDTH_PX", "320"))
"""Width of the picture that is searched."""
SMALLEST_FACE_PX = int(os.environ.get("SMALLEST_FACE_PX", "28"))
"""Smallest face, in pixels of the picture that is searched."""
SCALE_STEP = 1.2
SUPPORT = 3
"""Overlapping hits that make a face; more when the picture was turned, for there were more chances for a false one."""
TURNED_SUPPORT = 6
TURNS_DEG = (-30.0, 30.0)

CASCADE = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


@function
def handle(ctx: Any, frames: Any) -> None:
    ctx.emit("faces", detect(frames.data), attributes=frames.attributes)


def detect(jpeg: bytes) -> dict[str, Any]:
    """The faces of a JPEG. Raises Reject when it is none."""
    # The decoder itself halves the picture at next to no cost.
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    if grey is None:
        raise Reject(f"a frame of {len(jpeg)} bytes is not a picture that OpenCV can read")
    height, width = 2 * grey.shape[0], 2 * grey.shape[1]
    if grey.shape[1] > WORKING_WIDTH_PX:
        size = (WORKING_WIDTH_PX, round(grey.shape[0] * WORKING_WIDTH_PX / grey.shape[1]))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return {"width": width, "height": height, "faces": find_faces(grey, width / grey.shape[1])}


def find_faces(grey: np.ndarray, enlarge: float = 1.0) -> list[dict[str, Any]]:
    """Faces of a grey picture (uint8), the best supported first; boxes are multiplied by `enlarge`."""
    found = [(box, 0.0, support) for box, support in search(grey, SUPPORT)]
    if not found:
        for turn_deg in TURNS_DEG:
            found += turned(grey, turn_deg)
    found.sort(key=lambda face: -face[2])
    kept: list[tuple[Any, float, int]] = []
    for face in found:
        if all(overlap(face[0], other[0]) < 0.3 for other in kept):
            kept.append(face)
    return [
        {"box": [round(float(length) * enlarge, 1) for length in box], "roll_deg": roll_deg, "support": support}
        for box, roll_deg, support in kept
    ]


def search(grey: np.ndarray, support: int) -> list[tuple[Any, int]]:
    """(box, support) of each upright face."""
    smallest = (SMALLEST_FACE_PX, SMALLEST_FACE_PX)
    boxes, supports = CASCADE.detectMultiScale2(grey, SCALE_STEP, support, minSize=smallest)
    return [(box, int(count)) for box, count in zip(boxes, supports, strict=True)]


def turned(grey: np.ndarray, turn_deg: float) -> list[tuple[Any, float, int]]:
    """(box in the upright picture, roll, support) of each face that stands upright after a turn by `turn_deg` (anticlockwise)."""
    height, width = grey.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), turn_deg, 1.0)
    back = cv2.invertAffineTransform(turn)
    picture = cv2.warpAffine(grey, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    faces = []
    for (left, top, side, _), support in search(picture, TURNED_SUPPORT):
        x, y = back @ (left + side / 2, top + side / 2, 1.0)
        if 0 <= x < width and 0 <= y < height:
            faces.append(((x - side / 2, y - side / 2, side, side), -turn_deg, support))
    return faces


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = float(width * height)
    return common / (one[2] * one[3] + other[2] * other[3] - common)
