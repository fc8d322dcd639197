"""The application's handlers, called as an instance calls them, over a short video with a known truth."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

cv2 = pytest.importorskip("cv2")
numpy = pytest.importorskip("numpy")
pytest.importorskip("av")
pytest.importorskip("skimage")

from edgeflow.core import manifest as manifests  # noqa: E402
from edgeflow.demo import evaluate, faces, offline, person, video  # noqa: E402
from edgeflow.demo.functions import application_folder, function_module  # noqa: E402
from edgeflow.sdk import Reject  # noqa: E402
from edgeflow.sdk.testing import call, event  # noqa: E402

SHORT = replace(video.DEFAULT, name="short", fps=2)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> video.Clip:
    return video.write(SHORT, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model() -> bytes:
    return person.make_model(faces.portrait(SHORT.person_of_interest))


@pytest.fixture(scope="module")
def ran(clip: video.Clip, model: bytes) -> offline.Run:
    return offline.run(clip.path.read_bytes(), model, person.replacement_face())


def test_thresholds_are_kept(clip: video.Clip, ran: offline.Run) -> None:
    quality = offline.measure(clip, ran)
    assert quality.failures() == []
    assert quality.faces > 50
    assert quality.frames_changed > 10


def test_frames_carry_what_assemble_needs(ran: offline.Run) -> None:
    assert len(ran.frames) == SHORT.frames
    for number, frame in enumerate(ran.frames):
        assert frame.subject == f"clip/{number}"
        assert frame.attributes == {"chunk": "clip", "frame": str(number), "count": str(SHORT.frames), "fps": "2"}
    for outputs in (ran.faces, ran.matches, ran.augmented):
        assert [one.subject for one in outputs] == [one.subject for one in ran.frames]
        assert [one.attributes for one in outputs] == [one.attributes for one in ran.frames]


def test_colours_survive_the_whole_way(clip: video.Clip, ran: offline.Run) -> None:
    """From mp4 over JPEG to mp4: no frame is lost, and where nothing was replaced the picture is the same to the eye."""
    first, last = pictures(clip.path.read_bytes()), pictures(ran.video.data)
    assert len(first) == len(last) == SHORT.frames
    for number in (0, 4):
        assert cv2.PSNR(first[number], last[number]) > 32


def pictures(film: bytes) -> list[numpy.ndarray]:
    import io

    import av

    with av.open(io.BytesIO(film)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


def test_an_empty_room_gives_an_empty_list(ran: offline.Run) -> None:
    assert ran.faces[0].json()["faces"] == []
    assert ran.augmented[0].data == ran.frames[0].data


def test_a_turned_head_is_found(clip: video.Clip, ran: offline.Run) -> None:
    assert clip.truth is not None
    number = int(1.5 * SHORT.fps)
    (truth,) = clip.truth[number]
    (found,) = ran.faces[number].json()["faces"]
    assert truth.roll_deg == 33.0
    assert evaluate.overlap(truth.box, found["box"]) > 0.5
    assert found["roll_deg"] == 30.0


def test_without_a_model_nobody_matches_and_frames_pass(ran: offline.Run) -> None:
    number = SHORT.frames // 2
    frame, found = (
        event(one.data, subject=one.subject, attributes=one.attributes)
        for one in (ran.frames[number], ran.faces[number])
    )
    result = call(function_module("classify").handle, frames=frame, faces=found, context={"model": None})
    assert result.output.json()["faces"]
    assert not any(face["match"] for face in result.output.json()["faces"])
    assert result.logs[0]["event"] == "no_person_model"

    matches = event(ran.matches[number].data)
    result = call(
        function_module("augment").handle, frames=frame, faces=found, matches=matches, context={"replacement": None}
    )
    assert result.output.data == frame.data


@pytest.mark.parametrize("data", [b"", b"this is no video", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 64])
def test_a_chunk_that_is_no_video_is_rejected_by_name(data: bytes) -> None:
    with pytest.raises(Reject, match=f"'holiday' \\({len(data)} bytes\\)"):
        call(function_module("extract").handle, chunks=event(data, subject="holiday"))


def test_a_chunk_without_a_subject_goes_by_its_id(clip: video.Clip) -> None:
    result = call(function_module("extract").handle, chunks=event(clip.path.read_bytes(), id="abc/1"))
    assert result.outputs[0].subject == "abc-1/0"


def test_a_frame_that_is_no_picture_is_rejected() -> None:
    with pytest.raises(Reject, match="5 bytes is not a picture"):
        call(function_module("detect").handle, frames=b"12345")


def test_a_value_that_is_no_model_is_named(ran: offline.Run) -> None:
    number = SHORT.frames // 2
    frame, found = event(ran.frames[number].data), event(ran.faces[number].data)
    with pytest.raises(ValueError, match="no person model"):
        call(function_module("classify").handle, frames=frame, faces=found, context={"model": b"nonsense"})


def test_assemble_refuses_an_incomplete_chunk(ran: offline.Run) -> None:
    collected = [event(one.data, subject=one.subject, attributes=one.attributes) for one in ran.augmented[:-1]]
    with pytest.raises(Reject, match=f"{SHORT.frames - 1} frames of {SHORT.frames}; missing: \\[{SHORT.frames - 1}\\]"):
        call(function_module("assemble").handle, augmented=collected)


def test_assemble_orders_by_number(ran: offline.Run) -> None:
    collected = [event(one.data, subject=one.subject, attributes=one.attributes) for one in reversed(ran.augmented)]
    result = call(function_module("assemble").handle, augmented=collected)
    assert result.output.subject == "clip"
    assert result.output.data == ran.video.data


def test_pictures_with_odd_sides_become_a_video() -> None:
    picture = cv2.imencode(".jpg", numpy.full((101, 77, 3), 90, numpy.uint8))[1].tobytes()
    film = function_module("assemble").encode([event(picture)] * 3, Fraction(25))
    assert [one.shape for one in pictures(film)] == [(100, 76, 3)] * 3


@pytest.mark.parametrize("left", [-40.0, 0.0, 600.0, 630.0, 700.0])
def test_a_face_at_the_edge_changes_nothing_else(left: float) -> None:
    augment = function_module("augment")
    source, box = augment.replacement(person.replacement_face())
    before = numpy.random.default_rng(1).integers(0, 255, (360, 640, 3)).astype(numpy.uint8)
    after = before.copy()
    augment.blend(after, (left, 150.0, 80.0, 80.0), 20.0, source, box)
    changed = numpy.argwhere((before != after).any(axis=2))
    if len(changed):
        assert changed[:, 0].min() > 140 and changed[:, 0].max() < 240
        assert changed[:, 1].min() >= max(0, left - 10) and changed[:, 1].max() <= left + 90


def test_casts_share_no_face() -> None:
    assert not set(faces.BACKGROUND) & (set(faces.DEFAULT_CAST) | set(faces.HELD_OUT_CAST))
    assert not set(faces.DEFAULT_CAST) & set(faces.HELD_OUT_CAST)
    for scene, cast in (
        (video.DEFAULT, faces.DEFAULT_CAST),
        (video.TUNING, faces.DEFAULT_CAST),
        (video.HELD_OUT, faces.HELD_OUT_CAST),
    ):
        assert {walker.face for walker in scene.walkers} <= set(cast)
        assert scene.person_of_interest in {walker.face for walker in scene.walkers}


def test_rendering_is_deterministic() -> None:
    scene = replace(video.HELD_OUT, fps=1, seconds=4)
    for (one, truth), (other, again) in zip(video.render(scene), video.render(scene), strict=True):
        assert numpy.array_equal(one, other)
        assert truth == again


def test_a_model_is_the_same_each_time_and_survives_saving(model: bytes) -> None:
    loaded = function_module("classify", "person_model").PersonModel.load(model)
    again = function_module("classify", "person_model").PersonModel.load(
        person.make_model(faces.portrait(SHORT.person_of_interest))
    )
    assert numpy.allclose(loaded.person, again.person, atol=1e-4)
    assert len(model) < 256 * 1024


def test_a_reference_without_a_face_is_refused() -> None:
    with pytest.raises(person.NoFace):
        person.make_model(numpy.zeros((200, 200, 3), numpy.uint8))


def test_the_example_is_the_application_and_one_function_more() -> None:
    application = manifests.parse((application_folder() / "edgeflow.yaml").read_text())
    example_folder = REPOSITORY / "examples" / "annotate"
    example = manifests.parse((example_folder / "edgeflow.yaml").read_text())
    assert set(example.functions) - set(application.functions) == {"annotate"}
    for name, function in application.functions.items():
        other = example.functions[name]
        assert (example_folder / str(other.build)).resolve() == (application_folder() / str(function.build)).resolve()
        assert other.model_copy(update={"build": function.build}) == function


def test_the_example_draws_boxes(ran: offline.Run) -> None:
    from edgeflow.sdk.function import load_handler

    handle = load_handler(REPOSITORY / "examples" / "annotate" / "annotate")
    number = SHORT.frames // 2
    result = call(
        handle, frames=event(ran.frames[number].data, subject="clip/1"), faces=json.loads(ran.faces[number].data)
    )
    drawn = cv2.imdecode(numpy.frombuffer(result.output.data, numpy.uint8), cv2.IMREAD_COLOR)
    green = (drawn[:, :, 1] > 200) & (drawn[:, :, 0] < 90) & (drawn[:, :, 2] < 90)
    assert green.sum() > 100


def test_at_most_two_environments() -> None:
    files = {
        path.read_bytes()
        for folder in (application_folder(), REPOSITORY / "examples")
        for path in folder.rglob("requirements.txt")
    }
    assert len(files) == 2
