"""augment: a frame, its faces and its matches -> the frame with the matching face replaced, on `augmented`.

The replacement (any picture with a face) is a value in the EKV (`context:` in the manifest); without one, and for frames without a
match, the frame goes on as it came, byte for byte.
What must stay true: only pixels of the replaced face change (the JPEG's recompression apart), and every frame that came in goes out.
"""

import math
from typing import Any

import cv2
import numpy as np

from edgeflow import function
from edgeflow.sdk import Reject

cv2.setNumThreads(1)

JPEG_QUALITY = 92
MIDDLE = (0.5, 0.53)
HALF_AXES = (0.34, 0.43)
"""The ellipse of a face inside a detector's box, in boxes: brows to chin, ear to ear."""
SMALLEST_PART_PX = 8


@function
def handle(ctx: Any, frames: Any, faces: Any, matches: Any) -> None:
    matching = [face for face in matches.json()["faces"] if face["match"]]
    picture = frames.data
    value = ctx.context.replacement
    if matching and value is None:
        ctx.log.warning("no_replacement_face", hint="put a picture at models/replacement-face")
    elif matching:
        picture = replace_faces(picture, matching, *value.parsed(replacement))
    ctx.emit("augmented", picture, datacontenttype="image/jpeg", attributes=frames.attributes)


def replacement(data: bytes) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """(picture in BGR, box of the face in it). Raises ValueError when `data` is no picture or shows no face."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"models/replacement-face holds {len(data)} bytes that are no picture")
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    boxes = cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 1.1, 5)
    if len(boxes) == 0:
        raise ValueError("models/replacement-face shows no face that looks at the camera")
    left, top, width, height = (float(length) for length in max(boxes, key=lambda box: box[2]))
    return picture, (left, top, width, height)


def replace_faces(
    jpeg: bytes, faces: list[dict[str, Any]], source: np.ndarray, source_box: tuple[float, float, float, float]
) -> bytes:
    """The JPEG with the face of `source` in place of each of `faces`. Raises Reject when `jpeg` is no picture."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise Reject(f"a frame of {len(jpeg)} bytes is not a picture that OpenCV can read")
    for face in faces:
        blend(picture, tuple(face["box"]), face["roll_deg"], source, source_box)
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()


def blend(
    picture: np.ndarray,
    box: tuple[float, float, float, float],
    roll_deg: float,
    source: np.ndarray,
    source_box: tuple[float, float, float, float],
) -> None:
    """Put the face of `source` over the one in `box` of `picture` (BGR, changed in place), by Poisson blending inside an ellipse."""
    middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    # The largest distance of a point of the ellipse from the box's middle, whatever the roll, and a rim for the blending.
    reach = math.ceil((HALF_AXES[1] + MIDDLE[1] - 0.5) * box[2]) + 3
    left, top = max(0, round(middle[0]) - reach), max(0, round(middle[1]) - reach)
    right, bottom = min(picture.shape[1], round(middle[0]) + reach), min(picture.shape[0], round(middle[1]) + reach)
    if right - left < SMALLEST_PART_PX or bottom - top < SMALLEST_PART_PX:
        return
    part = picture[top:bottom, left:right]
    size = (right - left, bottom - top)

    # From the source's box to this one: same middle, same size, turned by the roll.
    source_middle = (source_box[0] + source_box[2] / 2, source_box[1] + source_box[3] / 2)
    align = cv2.getRotationMatrix2D(source_middle, roll_deg, box[2] / source_box[2])
    align[:, 2] += (middle[0] - left - source_middle[0], middle[1] - top - source_middle[1])
    shrinking = box[2] < source_box[2]
    face = cv2.warpAffine(
        source, align, size, flags=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )

    mask = np.zeros(size[::-1], np.uint8)
    axes = (HALF_AXES[0] * source_box[2], HALF_AXES[1] * source_box[3])
    ellipse = (source_box[0] + MIDDLE[0] * source_box[2], source_box[1] + MIDDLE[1] * source_box[3])
    outline = cv2.ellipse2Poly((0, 0), (1000, 1000), 0, 0, 360, 6) / 1000 * axes + ellipse
    cv2.fillPoly(mask, [np.rint(outline @ align[:, :2].T + align[:, 2]).astype(np.int32)], 255)
    # The solver needs a rim of known pixels, also where the face leaves the picture.
    mask[:2], mask[-2:], mask[:, :2], mask[:, -2:] = 0, 0, 0, 0
    first_x, first_y, width, height = cv2.boundingRect(mask)
    if width < SMALLEST_PART_PX or height < SMALLEST_PART_PX:
        return
    centre = (first_x + width // 2, first_y + height // 2)
    inside = mask > 0  # kept, because seamlessClone changes the mask it is given
    part[inside] = cv2.seamlessClone(face, part, mask, centre, cv2.NORMAL_CLONE)[inside]
