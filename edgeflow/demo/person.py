"""Makes the person model (whom to look for) and the replacement face (whom to show instead).

What it is: one reference picture in, the bytes of a model for `models/person-of-interest` out. The person is told from
60 other people (`faces.BACKGROUND`), each seen in many sizes, lights and positions, by a Fisher projection.
What it is not: a recogniser for many people, or for faces seen from the side.
What must stay true: the same picture gives the same model; nobody who walks through a test video is among the 60.
"""

from pathlib import Path
from typing import Any

from edgeflow.demo import faces
from edgeflow.demo.extras import cv2, numpy
from edgeflow.demo.functions import function_module
from edgeflow.errors import BadRequest

THRESHOLD = 0.53
"""Similarity that makes a match. Measured with each of the ten people of the default and tuning videos as the person of interest: the least
similar true face has 0.56, the most similar other one 0.52."""
VIEWS = 40
"""How often each person is seen while the projection is made."""
_COMPONENTS = 150
_DIMENSIONS = 50
_SHRINK = 0.1
_MARGIN_PX = 60
_SEED = 0


class NoFace(BadRequest):
    """The reference picture shows no face that looks at the camera."""

    code = "no-face"
    hint = "Use a sharp, evenly lit picture of one face seen from the front, at least 60 pixels wide."


def read_reference(path: Path) -> Any:
    """The picture at `path` (BGR, uint8). Raises BadRequest when it is none."""
    picture = cv2().imread(str(path), cv2().IMREAD_COLOR) if path.is_file() else None
    if picture is None:
        raise BadRequest(f"{path} is not a picture that can be read", hint="Give a JPEG or PNG file.")
    return picture


def find_face(picture: Any) -> tuple[Any, tuple[float, float, float, float], float]:
    """(grey picture, box, roll in degrees) of the largest face. Raises NoFace."""
    grey = cv2().cvtColor(picture, cv2().COLOR_BGR2GRAY)
    if max(grey.shape) > 640:
        shrink = 640 / max(grey.shape)
        grey = cv2().resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2().INTER_AREA)
    found = function_module("detect").find_faces(grey)
    if not found:
        raise NoFace()
    best = max(found, key=lambda face: face["box"][2])
    return grey, tuple(best["box"]), best["roll_deg"]


def make_model(picture: Any) -> bytes:
    """The model of the person whose face is the largest in `picture` (BGR, uint8). Takes about two seconds. Raises NoFace."""
    np, model = numpy(), function_module("classify", "person_model")
    chance = np.random.default_rng(_SEED)
    margin = float(_MARGIN_PX)
    left, top, side = faces.FACE_BOX_IN_PATCH
    others = [
        (
            cv2().copyMakeBorder(faces.grey_face(number), *[_MARGIN_PX] * 4, cv2().BORDER_REPLICATE),
            (left + margin, top + margin, side, side),
            0.0,
        )
        for number in faces.BACKGROUND
    ]
    looks = [_views(*one, chance) for one in [*others, find_face(picture)]]

    samples = np.concatenate(looks)
    mean = samples.mean(0)
    _, _, components = np.linalg.svd(samples - mean, full_matrices=False)
    components = components[:_COMPONENTS].T
    reduced = [(look - mean) @ components for look in looks]
    within = sum(np.cov(one.T, bias=True) for one in reduced) / len(reduced)
    within += _SHRINK * np.trace(within) / _COMPONENTS * np.eye(_COMPONENTS)
    between = np.cov(np.stack([one.mean(0) for one in reduced]).T)
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    _, directions = np.linalg.eigh(whiten @ between @ whiten.T)
    projection = components @ (whiten.T @ directions[:, ::-1][:, :_DIMENSIONS])

    person = ((looks[-1] - mean) @ projection).mean(0)
    person /= np.linalg.norm(person)
    narrow = np.float32
    return bytes(
        model.PersonModel(mean.astype(narrow), projection.astype(narrow), person.astype(narrow), THRESHOLD).save()
    )


def _views(grey: Any, box: tuple[float, float, float, float], roll_deg: float, chance: Any) -> Any:
    """Features of one face in many sizes, lights and positions (VIEWS x n)."""
    np, model = numpy(), function_module("classify", "person_model")
    looks = []
    for _ in range(VIEWS):
        shrink = chance.uniform(30, 70) / box[2]
        seen = grey.astype(np.float32) * chance.uniform(0.6, 1.15)
        seen *= 1 + chance.uniform(-0.35, 0.35) * np.linspace(-1, 1, seen.shape[1], dtype=np.float32)
        seen = 255 * (np.clip(seen, 0, 255) / 255) ** chance.uniform(0.75, 1.35)
        method = cv2().INTER_AREA if shrink < 1 else cv2().INTER_CUBIC
        seen = cv2().resize(seen.astype(np.float32), None, fx=shrink, fy=shrink, interpolation=method)
        seen += chance.normal(0, chance.uniform(0, 4), seen.shape)
        roll, right, down, size = (
            chance.normal(roll_deg, 6),
            chance.normal(0, 0.035),
            chance.normal(0, 0.035),
            chance.normal(1, 0.05),
        )
        small = tuple(length * shrink for length in box)
        looks.append(model.features(model.cut(np.clip(seen, 0, 255).astype(np.uint8), small, roll, right, down, size)))
    return np.stack(looks)


def replacement_face() -> bytes:
    """The default replacement (JPEG): the astronaut."""
    encoded = cv2().imencode(".jpg", faces.astronaut(), (cv2().IMWRITE_JPEG_QUALITY, 95))[1]
    return bytes(encoded.tobytes())


def check_replacement(path: Path) -> bytes:
    """The bytes of a user's own replacement face. Raises BadRequest when it is no picture, NoFace when `augment` would find no face in it."""
    read_reference(path)
    data = path.read_bytes()
    try:
        function_module("augment").replacement(data)
    except ValueError as error:
        raise NoFace(f"{path}: {error}") from error
    return data
