"""How a person is recognised: gradients of the face, projected by Fisher's criterion, compared by angle.

What it is: the features, and the file format of a person model (an .npz without pickles: mean, projection, the person's place in
the projected space, and the similarity from which on a face is taken for that person).
What it is not: the making of a model, which needs other people's faces to tell the person from (`edgeflow.demo.person`).
What must stay true: a model is used with the features it was made with: `FORMAT` is raised when they change, and another format is
refused.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np

FORMAT = 1
SIDE_PX = 32
SHARE_OF_BOX = 0.86
"""How much of the detector's box is looked at: the rest is hair and background."""
SEARCH = (
    (0.0, 0.0, 1.0),
    (0.05, 0.0, 1.0),
    (-0.05, 0.0, 1.0),
    (0.0, 0.05, 1.0),
    (0.0, -0.05, 1.0),
    (0.0, 0.0, 0.92),
    (0.0, 0.0, 1.08),
)
"""Shifts (right, down, in boxes) and sizes that are tried, because a detector's box is never exact."""
_HOG = cv2.HOGDescriptor((SIDE_PX, SIDE_PX), (16, 16), (8, 8), (8, 8), 8)


class BadModel(ValueError):
    """The value is not a person model of this format."""


@dataclass(frozen=True, slots=True)
class PersonModel:
    """Who is looked for."""

    mean: np.ndarray
    """Mean features (n, float32)."""
    projection: np.ndarray
    """Fisher projection (n x m, float32)."""
    person: np.ndarray
    """The person's unit vector in the projected space (m, float32)."""
    threshold: float
    """Similarity (-1 to 1) from which on a face is this person's."""

    def save(self) -> bytes:
        """The model as bytes, for the EKV."""
        output = io.BytesIO()
        np.savez(
            output,
            format=FORMAT,
            mean=self.mean,
            projection=self.projection,
            person=self.person,
            threshold=self.threshold,
        )
        return output.getvalue()

    @classmethod
    def load(cls, data: bytes) -> "PersonModel":
        """The model in `data`. Raises BadModel when it is none."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                found, model = (
                    int(file["format"]),
                    cls(file["mean"], file["projection"], file["person"], float(file["threshold"])),
                )
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise BadModel(
                f"{len(data)} bytes are no person model: {error}; make one with edgeflow.demo.person.make_model"
            ) from error
        if found != FORMAT:
            raise BadModel(f"the person model has format {found}, this function reads {FORMAT}; make it again")
        return model

    def similarity(self, grey: np.ndarray, box: tuple[float, float, float, float], roll_deg: float) -> float:
        """How much the face in `box` of a grey picture (uint8) is like the person, -1 to 1."""
        looks = [features(cut(grey, box, roll_deg, *move)) for move in SEARCH]
        places = (np.stack(looks) - self.mean) @ self.projection
        return float(np.max(places @ self.person / np.linalg.norm(places, axis=1)))


def cut(
    grey: np.ndarray,
    box: tuple[float, float, float, float],
    roll_deg: float = 0.0,
    right: float = 0.0,
    down: float = 0.0,
    size: float = 1.0,
) -> np.ndarray:
    """The face in `box`, turned upright, 32x32 pixels; `right` and `down` move the box (in boxes), `size` enlarges it."""
    left, top, width, height = box
    middle = (left + (0.5 + right) * width, top + (0.5 + down) * height)
    turn = cv2.getRotationMatrix2D(middle, -roll_deg, SIDE_PX / (width * SHARE_OF_BOX * size))
    turn[:, 2] += (SIDE_PX / 2 - middle[0], SIDE_PX / 2 - middle[1])
    return cv2.warpAffine(grey, turn, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def features(face: np.ndarray) -> np.ndarray:
    """Histograms of gradients of a 32x32 face (288, float32). Neither brightness nor contrast changes them much."""
    return np.sqrt(_HOG.compute(cv2.GaussianBlur(face, (0, 0), 0.8)).ravel())
