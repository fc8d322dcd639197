"""Cuts a user's video into chunks that one event can carry, and puts the result together again.

What it is: `cut(path)` gives each chunk as mp4 bytes with its length; `concatenate(films)` writes one mp4 from the films of all chunks.
What it is not: a converter that keeps everything: what does not fit one event as it is is encoded anew, at most 1280 pixels wide
and at a constant frame rate; sound is left out.
What must stay true: the chunks of one video hold each of its frames once and in order.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from edgeflow.demo.extras import av
from edgeflow.errors import BadRequest

CHUNK_S = 20
"""Longest chunk (s): assemble starts when a chunk is complete, and a chunk is what one commit of extract carries."""
CHUNK_BYTES = 15 * 1024 * 1024
"""Largest chunk (bytes), a little below what one event may carry."""
CHUNK_FRAMES = 1500
"""Most frames of a chunk, below the outputs that one commit may carry."""
WIDEST_PX = 1280


@dataclass(frozen=True, slots=True)
class Chunk:
    """One mp4, its length in seconds and its number of frames as far as the container says (0 = it does not)."""

    data: bytes
    length_s: float
    frames: int


def cut(path: Path) -> Iterator[Chunk]:
    """The chunks of the video at `path`. Raises BadRequest when it is none."""
    if not path.is_file():
        raise BadRequest(f"there is no file {path}", hint="Name a video: edgeflow demo --input clip.mp4")
    try:
        with av().open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise BadRequest(f"{path} has no video stream", hint="Give a video file, for example an mp4.")
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            length_s = container.duration / av().time_base if container.duration else 0.0
            small = path.stat().st_size <= CHUNK_BYTES and 0 < length_s <= CHUNK_S + 0.5
            if (
                small
                and "mp4" in container.format.name
                and length_s * rate <= CHUNK_FRAMES
                and stream.width <= WIDEST_PX
            ):
                yield Chunk(path.read_bytes(), length_s, stream.frames)
            else:
                yield from _encoded(container, stream, rate)
    except av().error.FFmpegError as error:
        raise BadRequest(
            f"{path} is not a video that FFmpeg can read: {error}", hint="Give a video file, for example an mp4."
        ) from error


def _encoded(container: Any, stream: Any, rate: Fraction) -> Iterator[Chunk]:
    shrink = min(1.0, WIDEST_PX / stream.width)
    width, height = (int(side * shrink) // 2 * 2 for side in (stream.width, stream.height))
    at_most = max(1, min(CHUNK_FRAMES, int(CHUNK_S * rate)))
    encoder: _Encoder | None = None
    for frame in container.decode(stream):
        if encoder is None:
            encoder = _Encoder(width, height, rate)
        encoder.add(frame)
        if encoder.frames == at_most:
            yield encoder.finish()
            encoder = None
    if encoder is not None:
        yield encoder.finish()


class _Encoder:
    """One chunk in the making. The bit rate is bounded so that 20 s fit one event."""

    def __init__(self, width: int, height: int, rate: Fraction) -> None:
        self._output = io.BytesIO()
        self._container = av().open(self._output, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"preset": "veryfast", "crf": "20", "maxrate": "4M", "bufsize": "8M"}
        self._rate = rate
        self.frames = 0

    def add(self, frame: Any) -> None:
        flat = frame.reformat(self._stream.width, self._stream.height, format="yuv420p")
        flat.pts, flat.time_base = self.frames, 1 / self._rate
        self._container.mux(self._stream.encode(flat))
        self.frames += 1

    def finish(self) -> Chunk:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return Chunk(self._output.getvalue(), float(self.frames / self._rate), self.frames)


def concatenate(films: Sequence[bytes], path: Path) -> None:
    """Write the films (mp4, all encoded alike) one after the other as one mp4, without encoding them again."""
    if len(films) == 1:
        path.write_bytes(films[0])
        return
    with av().open(str(path), "w", format="mp4") as output:
        target, shift = None, 0
        for film in films:
            with av().open(io.BytesIO(film)) as container:
                source = container.streams.video[0]
                target = target or output.add_stream_from_template(source)
                end = shift
                for packet in container.demux(source):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                    end = max(end, packet.pts + (packet.duration or 0))
                    output.mux(packet)
                shift = end
