"""Deterministic test videos with ground truth: real faces that walk through a textured room.

What it is: `render(scene)` makes each frame from a formula, so that for each frame it is known who is where; `write(scene, folder)`
encodes it (H.264) and writes the truth as JSON beside it.
What it is not: a substitute for filmed video: faces are still photographs that move, turn in the plane, change size and light.
What must stay true: the same scene gives the same pixels on each run; `HELD_OUT` is measured, never tuned for.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeflow.demo import faces
from edgeflow.demo.extras import av, cv2, numpy

BITS_S = 800_000
"""Bit rate of the encoded video: 20 s are about 2 MB."""
SCENE_VERSION = 2
"""Part of the file name; raised when rendering changes, so that an old cached video is not used."""


@dataclass(frozen=True, slots=True)
class Walker:
    """One person of a scene."""

    face: int
    """Number of the face in `edgeflow.demo.faces`."""
    skin_bgr: tuple[int, int, int]
    shirt_bgr: tuple[int, int, int]
    size_px: float
    """Mean side of the face."""
    height_px: float
    """Mean height of the face's centre in the picture, from the top."""
    phase: float
    """Where in their up and down, nearer and farther, and nodding this person starts (radians)."""

    @property
    def name(self) -> str:
        return f"lfw-{self.face}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that makes a video. Lengths in pixels, times in seconds, angles in degrees."""

    name: str
    texture: str
    tint_bgr: tuple[float, float, float]
    walkers: tuple[Walker, ...]
    person_of_interest: int
    """Number of the face that is to be found and replaced."""
    walk_px: float
    """How far everybody walks in one direction before they all turn round; negative = first to the left."""
    gap_px: float
    """Distance between two people."""
    roll_deg: float
    """How far heads turn in the plane."""
    light: tuple[float, float, float]
    """Mean brightness (1 = as photographed), how much it changes over time, and how much it falls off to one side."""
    tilted_until_s: float
    """Until then there is only the first person, standing, with the head on one side (33 degrees)."""
    start_s: float = 1.0
    """Until then the room is empty."""
    width: int = 640
    height: int = 360
    fps: int = 25
    seconds: int = 20
    seed: int = field(default=7)

    @property
    def frames(self) -> int:
        return self.fps * self.seconds


@dataclass(frozen=True, slots=True)
class Face:
    """The truth about one face of one frame."""

    person: str
    box: tuple[float, float, float, float]
    """Left, top, width, height in pixels."""
    roll_deg: float
    """Anticlockwise."""
    whole: bool
    """False for a face that is partly outside the picture: it is neither asked for nor forbidden to find it."""


DEFAULT = Scene(
    name="default",
    texture="brick",
    tint_bgr=(0.62, 0.72, 0.80),
    walkers=(
        Walker(69, (140, 165, 215), (60, 110, 60), 78, 130, 1.1),
        Walker(63, (150, 172, 214), (120, 70, 40), 96, 140, 0.0),
        Walker(77, (128, 160, 205), (50, 50, 120), 86, 165, 2.3),
        Walker(66, (155, 175, 220), (110, 100, 90), 104, 150, 3.9),
        Walker(72, (120, 150, 200), (40, 90, 130), 82, 125, 5.0),
    ),
    person_of_interest=63,
    walk_px=640.0,
    gap_px=150.0,
    roll_deg=6.0,
    light=(1.0, 0.10, 0.10),
    tilted_until_s=2.6,
)

HELD_OUT = Scene(
    name="held-out",
    texture="gravel",
    tint_bgr=(0.80, 0.74, 0.60),
    walkers=(
        Walker(86, (150, 175, 220), (70, 90, 60), 88, 130, 0.4),
        Walker(93, (135, 160, 215), (90, 60, 140), 104, 150, 2.0),
        Walker(91, (155, 180, 225), (130, 90, 60), 118, 165, 1.5),
        Walker(85, (115, 150, 205), (60, 60, 100), 72, 120, 3.0),
        Walker(95, (150, 170, 215), (100, 110, 60), 96, 150, 4.4),
    ),
    person_of_interest=93,
    walk_px=-660.0,
    gap_px=168.0,
    roll_deg=8.0,
    light=(0.72, 0.12, 0.30),
    tilted_until_s=2.4,
    start_s=0.6,
    seed=23,
)

TUNING = replace(
    DEFAULT,
    name="tuning",
    texture="grass",
    walkers=(
        Walker(78, (140, 165, 215), (80, 80, 80), 80, 130, 0.0),
        Walker(60, (140, 165, 215), (80, 80, 80), 70, 140, 1.0),
        Walker(65, (140, 165, 215), (80, 80, 80), 95, 150, 2.0),
        Walker(79, (140, 165, 215), (80, 80, 80), 115, 160, 3.0),
        Walker(67, (140, 165, 215), (80, 80, 80), 84, 140, 4.0),
    ),
    person_of_interest=65,
    walk_px=-650.0,
    light=(0.6, 0.15, 0.35),
    roll_deg=9.0,
    seed=3,
)
"""A hard one to choose settings with: dark, uneven light. The held-out video is for measuring only."""

SCENES = {scene.name: scene for scene in (DEFAULT, HELD_OUT, TUNING)}


@dataclass(frozen=True, slots=True)
class _Pose:
    walker: Walker
    centre: tuple[float, float]
    size_px: float
    roll_deg: float
    brightness: float


def _poses(scene: Scene, time_s: float) -> list[_Pose]:
    """Who stands where at `time_s`, the smallest (farthest) first."""
    if time_s < scene.start_s:
        return []
    light, light_swing, light_fall = scene.light
    walking = max(0.0, time_s - scene.tilted_until_s) / (scene.seconds - scene.tilted_until_s)
    walked_px = scene.walk_px * (1 - math.cos(2 * math.pi * walking)) / 2
    poses = []
    for number, walker in enumerate(scene.walkers):
        behind_px = 0.0 if number == 0 else scene.width / 2 + 100 + (number - 1) * scene.gap_px
        x = scene.width / 2 + walked_px - math.copysign(behind_px, scene.walk_px)
        y = walker.height_px + 16 * math.sin(0.9 * time_s + walker.phase)
        size_px = walker.size_px * (1 + 0.10 * math.sin(0.5 * time_s + 2 * walker.phase))
        roll_deg = scene.roll_deg * math.sin(1.3 * time_s + walker.phase)
        if number == 0:
            upright = min(1.0, max(0.0, (time_s - scene.tilted_until_s + 0.6) / 0.6))
            roll_deg = roll_deg * upright + 33.0 * (1 - upright)
        swing = 1 + light_swing * math.sin(0.8 * time_s + walker.phase)
        poses.append(_Pose(walker, (x, y), size_px, roll_deg, light * swing * (1 - light_fall * x / scene.width)))
    return sorted(poses, key=lambda pose: pose.size_px)


def _room(scene: Scene) -> Any:
    """The empty room: the tinted texture, repeated over the picture, darker to one side (float32 BGR)."""
    np = numpy()
    side = faces.texture(scene.texture)
    tiled = np.tile(side, (1 + scene.height // 512, 1 + scene.width // 512))[: scene.height, : scene.width]
    calm = 118 + 0.55 * (tiled.astype(np.float32) - tiled.mean())
    light, _, light_fall = scene.light
    fall = 1 - light_fall * np.linspace(0, 1, scene.width, dtype=np.float32)
    return calm[:, :, None] * np.array(scene.tint_bgr, np.float32) * (light * fall)[None, :, None]


def _head_mask() -> Any:
    """How much of the 200x200 patch is head: a soft ellipse (float32, 0 to 1)."""
    np = numpy()
    mask = np.zeros((faces.PATCH_SIDE_PX, faces.PATCH_SIDE_PX), np.float32)
    cv2().ellipse(mask, (98, 100), (82, 100), 0, 0, 360, 1.0, -1)
    return cv2().GaussianBlur(mask, (0, 0), 7)


def _draw(picture: Any, pose: _Pose, patch: Any, mask: Any) -> None:
    """Put one person (shoulders, then head) into the float picture."""
    np = numpy()
    (x, y), size = pose.centre, pose.size_px
    if not -size < x < picture.shape[1] + size:
        return
    shirt = tuple(channel * pose.brightness for channel in pose.walker.shirt_bgr)
    neck = tuple(0.75 * channel * pose.brightness for channel in pose.walker.skin_bgr)
    shoulders_y, half_width = round(y + 1.45 * size), round(0.92 * size)
    cv2().rectangle(picture, (round(x - 0.2 * size), round(y)), (round(x + 0.2 * size), shoulders_y), neck, -1)
    cv2().ellipse(
        picture, (round(x), shoulders_y), (half_width, round(0.85 * size)), 0, 180, 360, shirt, -1, cv2().LINE_AA
    )
    cv2().rectangle(picture, (round(x) - half_width, shoulders_y), (round(x) + half_width, picture.shape[0]), shirt, -1)
    left, top = int(x - size), int(y - size)
    right, bottom = min(picture.shape[1], left + int(2 * size)), min(picture.shape[0], top + int(2 * size))
    first_x, first_y = max(0, left), max(0, top)
    if right <= first_x or bottom <= first_y:
        return
    middle = faces.PATCH_SIDE_PX / 2
    turn = cv2().getRotationMatrix2D((middle, middle), pose.roll_deg, size / faces.PATCH_SIDE_PX)
    turn[:, 2] += (x - first_x - middle, y - first_y - middle)
    room = (right - first_x, bottom - first_y)
    head = cv2().warpAffine(patch, turn, room, flags=cv2().INTER_AREA).astype(np.float32) * pose.brightness
    share = cv2().warpAffine(mask, turn, room, flags=cv2().INTER_LINEAR)[:, :, None]
    part = picture[first_y:bottom, first_x:right]
    part += share * (head - part)


def _truth(scene: Scene, poses: list[_Pose]) -> list[Face]:
    """All faces of which at least a strip is inside the picture."""
    found = []
    offset_x, offset_y, side = (length / faces.PATCH_SIDE_PX for length in faces.FACE_BOX_IN_PATCH)
    for pose in poses:
        (x, y), size = pose.centre, pose.size_px
        half = side * size / 2
        turn = math.radians(-pose.roll_deg)
        from_middle = ((offset_x + side / 2 - 0.5) * size, (offset_y + side / 2 - 0.5) * size)
        middle_x = x + from_middle[0] * math.cos(turn) - from_middle[1] * math.sin(turn)
        middle_y = y + from_middle[0] * math.sin(turn) + from_middle[1] * math.cos(turn)
        left, top, right, bottom = middle_x - half, middle_y - half, middle_x + half, middle_y + half
        if left < scene.width and top < scene.height and right > 0 and bottom > 0:
            whole = left >= 0 and top >= 0 and right < scene.width and bottom < scene.height
            box = (round(left, 1), round(top, 1), round(2 * half, 1), round(2 * half, 1))
            found.append(Face(pose.walker.name, box, round(pose.roll_deg, 1), whole))
    return found


def render(scene: Scene) -> Iterator[tuple[Any, list[Face]]]:
    """Each frame in turn: the picture (height x width x 3, BGR, uint8) and the truth about it."""
    np = numpy()
    grain = np.random.default_rng(scene.seed)
    room, mask = _room(scene), _head_mask()
    patches = {walker.face: faces.tinted_face(walker.face, walker.skin_bgr) for walker in scene.walkers}
    noises = [grain.normal(0, 2.2, room.shape).astype(np.float32) for _ in range(4)]
    for number in range(scene.frames):
        poses = _poses(scene, number / scene.fps)
        picture = room.copy()
        for pose in poses:
            _draw(picture, pose, patches[pose.walker.face], mask)
        picture += noises[number % len(noises)]
        yield np.clip(picture, 0, 255).astype(np.uint8), _truth(scene, poses)


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file and the truth about it (None for a user's own video)."""

    path: Path
    truth: list[list[Face]] | None
    person_of_interest: str | None


def write(scene: Scene, folder: Path) -> Clip:
    """Render and encode `scene` into `folder`, unless an earlier call did; about 2 MB and some seconds of work."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scene.name}-v{SCENE_VERSION}.mp4"
    truth_path = path.with_suffix(".json")
    if not (path.exists() and truth_path.exists()):
        unfinished = path.with_suffix(".part")
        truth = _encode(scene, unfinished)
        truth_path.write_text(json.dumps(_as_json(scene, truth)))
        unfinished.rename(path)
    return read(path, truth_path)


def _encode(scene: Scene, path: Path) -> list[list[Face]]:
    truth = []
    with av().open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=scene.fps)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.bit_rate = BITS_S
        stream.options = {"preset": "veryfast", "threads": "1"}
        for picture, people in render(scene):
            truth.append(people)
            container.mux(stream.encode(av().VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return truth


def _as_json(scene: Scene, truth: list[list[Face]]) -> dict[str, Any]:
    return {
        "scene": scene.name,
        "width": scene.width,
        "height": scene.height,
        "fps": scene.fps,
        "person_of_interest": f"lfw-{scene.person_of_interest}",
        "frames": [[asdict(face) for face in people] for people in truth],
    }


def read(path: Path, truth_path: Path) -> Clip:
    """A clip that `write` made, with its truth."""
    document = json.loads(truth_path.read_text())
    frames = [[Face(**{**face, "box": tuple(face["box"])}) for face in people] for people in document["frames"]]
    return Clip(path, frames, document["person_of_interest"])
