"""Real faces to make test videos and person models from.

What it is: the two sources of real faces that scikit-image ships: `astronaut.png` (one sharp portrait in colour) and the
100 faces of `lfw_subset.npy` (Labeled Faces in the Wild, 25x25 pixels, grey).
What it is not: a data set to train a good recogniser with; there is one photograph of each person.
What must stay true: `BACKGROUND`, `DEFAULT_CAST` and `HELD_OUT_CAST` share no face, so that nobody who appears in a video was
used to train the projection, and nobody of the held-out video was looked at while anything was tuned.
"""

from functools import cache
from pathlib import Path
from typing import Any

from edgeflow.demo.extras import cv2, numpy

BACKGROUND = tuple(range(60))
"""Numbers of the faces that a person model is trained against."""
DEFAULT_CAST = tuple(range(60, 80))
"""Numbers of the faces that the default video may use."""
HELD_OUT_CAST = tuple(range(80, 100))
"""Numbers of the faces that the held-out video may use."""

LFW_SIDE_PX = 25
PATCH_SIDE_PX = 200
FACE_BOX_IN_PATCH = (-12.0, -8.0, 200.0)
"""Left, top and side (pixels of the 200x200 patch) of the face: what frontal face detectors call the face in these pictures."""

_ASTRONAUT_PORTRAIT = (slice(20, 220), slice(125, 325))


def _data_folder() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data"


@cache
def _lfw() -> Any:
    faces = numpy().load(_data_folder() / "lfw_subset.npy")[:100]
    return (faces * 255).astype(numpy().uint8)


def texture(name: str) -> Any:
    """One of scikit-image's textures (`brick`, `grass`, `gravel`) as a 512x512 grey picture (uint8)."""
    return cv2().imread(str(_data_folder() / f"{name}.png"), cv2().IMREAD_GRAYSCALE)


def grey_face(number: int) -> Any:
    """Face `number` (0 to 99) of the LFW subset, enlarged to 200x200 pixels, grey (uint8)."""
    small = _lfw()[number]
    large = cv2().resize(small, (PATCH_SIDE_PX, PATCH_SIDE_PX), interpolation=cv2().INTER_LANCZOS4)
    soft = cv2().GaussianBlur(large, (0, 0), 4)
    return cv2().addWeighted(large, 1.5, soft, -0.5, 0)


def tinted_face(number: int, skin_bgr: tuple[int, int, int]) -> Any:
    """Face `number` in the colours of skin (200x200x3, BGR, uint8): black to `skin_bgr` to almost white."""
    np = numpy()
    levels = np.arange(256)
    table = np.stack(
        [np.interp(levels, [0, 150, 255], [12, skin, min(255, skin + 75)]) for skin in skin_bgr], axis=1
    ).astype(np.uint8)
    return table[grey_face(number)]


def portrait(number: int) -> Any:
    """Face `number` with a plain margin (320x320x3, BGR, uint8): a reference picture as a user would give one."""
    face = cv2().cvtColor(grey_face(number), cv2().COLOR_GRAY2BGR)
    return cv2().copyMakeBorder(face, 60, 60, 60, 60, cv2().BORDER_REPLICATE)


def astronaut() -> Any:
    """The astronaut's head (200x200x3, BGR, uint8; a photograph by NASA, in the public domain): the replacement face."""
    picture = cv2().imread(str(_data_folder() / "astronaut.png"))
    return picture[_ASTRONAUT_PORTRAIT].copy()
