"""The application on the video that no setting was tuned on: other people, sizes and lighting."""

from pathlib import Path

import pytest

from edgeflow.demo import faces, person, video
from edgeflow.demo.offline import measure, run


@pytest.mark.timeout(600)
def test_the_held_out_video_meets_the_thresholds(tmp_path: Path) -> None:
    scene = video.HELD_OUT
    clip = video.write(scene, tmp_path)
    model = person.make_model(faces.portrait(scene.person_of_interest))
    ran = run(clip.path.read_bytes(), model, person.replacement_face())
    quality = measure(clip, ran)
    print(quality)
    assert len(ran.frames) == 500 and quality.faces > 500
    assert quality.failures() == []
    assert quality.recall is not None and quality.accuracy is not None and quality.replaced is not None
