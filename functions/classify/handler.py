"""classify: a frame and its faces -> which of them is the person of interest, as JSON on `matches`.

The person model is a value in the EKV (`context:` in the manifest); putting another one, at any PoP, changes whom the next frames
are searched for. Without a model nobody matches.
Output: {"model": version or null, "faces": [{"box", "roll_deg", "similarity" (-1 to 1, null without a model), "match"}]}. At most one
face matches: a person is in one place at a time.
"""

from typing import Any

import cv2
import numpy as np
from person_model import PersonModel

from edgeflow import function
from edgeflow.sdk import Reject

cv2.setNumThreads(1)


@function
def handle(ctx: Any, frames: Any, faces: Any) -> None:
    found = faces.json()["faces"]
    value = ctx.context.model
    if value is None:
        ctx.log.warning("no_person_model", hint="put one at models/person-of-interest")
        matches = [unknown(face) for face in found]
    else:
        matches = compare(frames.data, found, value.parsed(PersonModel.load)) if found else []
    result = {"model": None if value is None else value.version, "faces": matches}
    ctx.emit("matches", result, attributes=frames.attributes)


def unknown(face: dict[str, Any]) -> dict[str, Any]:
    return {"box": face["box"], "roll_deg": face["roll_deg"], "similarity": None, "match": False}


def compare(jpeg: bytes, found: list[dict[str, Any]], model: PersonModel) -> list[dict[str, Any]]:
    """Each face with its similarity to the person of `model`; the most similar one matches if it is similar enough."""
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    if grey is None:
        raise Reject(f"a frame of {len(jpeg)} bytes is not a picture that OpenCV can read")
    matches = []
    for face in found:
        box = tuple(length / 2 for length in face["box"])
        matches.append({**unknown(face), "similarity": round(model.similarity(grey, box, face["roll_deg"]), 4)})
    best = max(matches, key=lambda match: match["similarity"])
    best["match"] = best["similarity"] >= model.threshold
    return matches
