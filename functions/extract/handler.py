"""extract: a chunk of mp4 -> one JPEG per frame on `frames`.

What must stay true: all frames of a chunk leave in one commit, in order, with subject `<chunk>/<frame>` and the attributes that
`assemble` needs to put them together again: chunk, frame (from 0), count (of the whole chunk) and fps. The chunk's id is the
event's subject, or its id when it has none, so two clips never mix.
"""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.video.frame import VideoFrame

from edgeflow import function
from edgeflow.sdk import Reject

JPEG_QUALITY_SCALE = 3
"""FFmpeg's scale: 1 is best, 31 worst; 3 is hard to tell from the source."""


@function
def handle(ctx: Any, chunks: Any) -> None:
    chunk = (chunks.subject or chunks.id).replace("/", "-")
    pictures, fps = read_chunk(chunks.data, chunk)
    for number, picture in enumerate(pictures):
        attributes = {"chunk": chunk, "frame": str(number), "count": str(len(pictures)), "fps": fps}
        ctx.emit("frames", picture, subject=f"{chunk}/{number}", datacontenttype="image/jpeg", attributes=attributes)


def read_chunk(data: bytes, chunk: str) -> tuple[list[bytes], str]:
    """(each frame as JPEG, frames per second as "25" or "30000/1001"). Raises Reject when `data` is no video that can be read."""
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise Reject(f"chunk {chunk!r} ({len(data)} bytes) has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
            pictures = list(jpegs(container.decode(stream), fps))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise Reject(f"chunk {chunk!r} ({len(data)} bytes) is not a video that FFmpeg can read: {error}") from error
    if not pictures:
        raise Reject(f"chunk {chunk!r} ({len(data)} bytes) has a video stream without a frame")
    return pictures, str(fps)


def jpegs(frames: Iterator[VideoFrame], fps: Fraction) -> Iterator[bytes]:
    """Each frame as JPEG. The planes go from one codec to the other without a detour over RGB."""
    encoder = None
    for number, frame in enumerate(frames):
        if encoder is None or (encoder.width, encoder.height) != (frame.width, frame.height):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
            encoder.time_base = 1 / fps
            encoder.thread_count = 1
            encoder.qmin = encoder.qmax = JPEG_QUALITY_SCALE
        full_range = frame.reformat(format="yuvj420p", dst_color_range="JPEG")
        full_range.pts, full_range.time_base = number, encoder.time_base
        for packet in encoder.encode(full_range):
            yield bytes(packet)
