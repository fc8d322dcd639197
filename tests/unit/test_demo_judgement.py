"""The demo's own checks: that they fail when they should."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

cv2 = pytest.importorskip("cv2")
numpy = pytest.importorskip("numpy")
pytest.importorskip("av")
pytest.importorskip("skimage")

from edgeflow.demo import chunks, sheet, video  # noqa: E402
from edgeflow.demo.evaluate import evaluate  # noqa: E402
from edgeflow.demo.run import once  # noqa: E402
from edgeflow.demo.video import Face  # noqa: E402
from edgeflow.demo.watch import STAGES, Watch  # noqa: E402
from edgeflow.errors import BadRequest  # noqa: E402
from edgeflow.sdk.client import Gap, ReceivedEvent  # noqa: E402

WANTED = {("run-0", 0), ("run-0", 1)}


def received(channel: str, id: str, frame: int | None, chunk: str = "run-0", data: bytes = b"x") -> ReceivedEvent:
    attributes = {"chunk": chunk, "count": "2"} | ({} if frame is None else {"frame": str(frame)})
    return ReceivedEvent(
        channel=f"vision/{channel}", id=id, source="s", type="t", time_ms=1000, subject=None, datacontenttype=None, attributes=attributes,
        origin="ny", epoch=1, seq=1, cursor="ny:1", _load=lambda: data,
    )  # fmt: skip


class FakeClient:
    """A client whose stream is a list."""

    url = "http://test"

    def __init__(self, events: list[ReceivedEvent | Gap]) -> None:
        self.events = events

    def subscribe(self, pattern: str, *, from_: str) -> Any:
        return iter(self.events)


def watched(*extra: ReceivedEvent | Gap, without: str = "") -> Watch:
    events: list[ReceivedEvent | Gap] = [received("demo", "probe", None, chunk="")]
    events += [
        received(name, f"{name}-{frame}", frame) for name in STAGES for frame in (0, 1) if f"{name}-{frame}" != without
    ]
    events += [received("video", "film", None), received("frames", "other", 0, chunk="somebody-else"), *extra]
    watch = Watch(FakeClient(events), "vision", lambda chunk: chunk.startswith("run-"), 10)  # type: ignore[arg-type]
    watch.start(5)
    watch._thread.join()
    return watch


def test_each_frame_once_is_a_pass() -> None:
    watch = watched()
    assert watch.complete(["run-0"])
    assert once(watch, WANTED, ["run-0"]) == []


def test_a_missing_frame_fails() -> None:
    watch = watched(without="augmented-1")
    assert not watch.complete(["run-0"])
    assert once(watch, WANTED, ["run-0"]) == ["augmented: 1 frames are missing, the first is run-0/1"]


def test_the_same_frame_under_a_new_id_fails() -> None:
    assert once(watched(received("augmented", "new", 1)), WANTED, ["run-0"]) == [
        "augmented: 1 frames came twice, the first is run-0/1"
    ]


def test_a_second_film_and_a_gap_fail() -> None:
    failures = once(watched(received("video", "film2", None), Gap("retention", "ny:2", {})), WANTED, ["run-0"])
    assert failures == ["video: run-0 came twice", "the event stream reported a gap: retention"]


def jpeg(picture: Any) -> bytes:
    return bytes(cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 92))[1].tobytes())


BOX = (100.0, 80.0, 80.0, 80.0)
OTHER = (300.0, 80.0, 80.0, 80.0)
TRUTH = [[Face("ann", BOX, 0.0, True), Face("bob", OTHER, 0.0, True)]]


def scene() -> Any:
    return numpy.random.default_rng(5).integers(60, 180, (240, 480, 1)).repeat(3, axis=2).astype(numpy.uint8)


def judge(*, found: list[Any], matching: list[Any], painted: list[Any]) -> list[str]:
    before = jpeg(scene())
    picture = cv2.imdecode(numpy.frombuffer(before, numpy.uint8), cv2.IMREAD_COLOR)
    for left, top, width, height in painted:
        picture[int(top) : int(top + height), int(left) : int(left + width)] = (0, 200, 0)
    after = jpeg(picture) if painted else before
    faces = {"faces": [{"box": box} for box in found]}
    matches = {"faces": [{"box": box, "match": box in matching} for box in found]}
    return evaluate([before], [faces], [matches], [after], TRUTH, "ann").failures()


def test_a_right_answer_passes() -> None:
    assert judge(found=[BOX, OTHER], matching=[BOX], painted=[BOX]) == []


def test_a_face_that_was_not_found_fails_recall() -> None:
    assert any("recall is 0.500" in line for line in judge(found=[BOX], matching=[BOX], painted=[BOX]))


def test_the_wrong_person_fails_accuracy_and_change() -> None:
    failures = judge(found=[BOX, OTHER], matching=[OTHER], painted=[OTHER])
    assert any("accuracy is 0.000" in line for line in failures)
    assert any("grey levels" in line for line in failures)


def test_a_match_without_a_changed_face_fails() -> None:
    assert any("replaced is 0.000" in line for line in judge(found=[BOX, OTHER], matching=[BOX], painted=[]))


def test_a_match_where_nobody_is_counts_as_a_wrong_answer() -> None:
    nowhere = (400.0, 170.0, 60.0, 60.0)
    assert any(
        "accuracy" in line for line in judge(found=[BOX, OTHER, nowhere], matching=[BOX, nowhere], painted=[BOX])
    )


def test_a_short_mp4_is_one_chunk_as_it_is(tmp_path: Path) -> None:
    clip = video.write(replace(video.DEFAULT, name="one", fps=2, seconds=5), tmp_path)
    (chunk,) = chunks.cut(clip.path)
    assert chunk.data == clip.path.read_bytes()
    assert (chunk.length_s, chunk.frames) == (5.0, 10)


def test_a_long_video_is_cut_without_loss_and_put_together_again(tmp_path: Path) -> None:
    clip = video.write(replace(video.DEFAULT, name="long", fps=2, seconds=45), tmp_path)
    pieces = list(chunks.cut(clip.path))
    assert [piece.frames for piece in pieces] == [40, 40, 10]
    whole = tmp_path / "whole.mp4"
    chunks.concatenate([piece.data for piece in pieces], whole)
    (frames, length_s) = count(whole.read_bytes())
    assert frames == 90
    assert length_s == pytest.approx(45, abs=0.6)


def count(film: bytes) -> tuple[int, float]:
    import av

    with av.open(io.BytesIO(film)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == sorted(set(times))
    return len(times), times[-1] - times[0] + 0.5


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    path = tmp_path / "letter.mp4"
    path.write_bytes(b"dear all")
    with pytest.raises(BadRequest, match=r"letter.mp4 is not a video"):
        list(chunks.cut(path))


def test_the_sheet_shows_moments_with_a_match(tmp_path: Path) -> None:
    frames = [jpeg(scene())] * 20
    faces = [json.dumps({"faces": [{"box": BOX}]}).encode()] * 20
    matches = [json.dumps({"faces": [{"box": BOX, "match": number >= 10}]}).encode() for number in range(20)]
    assert sheet.moments(matches) == [11, 13, 15, 17, 19]
    sheet.write(tmp_path / "sheet.png", frames, faces, matches, frames, 25.0)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (5 * 213, 3 * 426, 3)
