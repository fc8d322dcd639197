"""assemble: all frames of one chunk -> an mp4 on `video`.

What must stay true: the join hands over the group only when it is whole (attribute `count`); frames are put in order by their
number, whatever order they came in; a frame that is missing or twice is an error, never a shorter or longer video.
"""

import io
from fractions import Fraction
from typing import Any

import av

from edgeflow import function
from edgeflow.sdk import Reject


@function
def handle(ctx: Any, augmented: list[Any]) -> None:
    first = augmented[0].attributes
    chunk, count = first["chunk"], int(first["count"])
    by_number = {int(event.attributes["frame"]): event for event in augmented}
    if len(augmented) != count or sorted(by_number) != list(range(count)):
        missing = sorted(set(range(count)) - set(by_number))[:10]
        raise Reject(f"chunk {chunk!r} has {len(augmented)} frames of {count}; missing: {missing or 'none'}")
    attributes = {"chunk": chunk, "count": str(count), "fps": first["fps"]}
    film = encode([by_number[number] for number in range(count)], Fraction(first["fps"]))
    ctx.emit("video", film, subject=chunk, datacontenttype="video/mp4", attributes=attributes)


def encode(pictures: list[Any], fps: Fraction) -> bytes:
    """The JPEG `data` of each event as one H.264 video in mp4."""
    output = io.BytesIO()
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    with av.open(output, "w", format="mp4") as container:
        stream = None
        for number, picture in enumerate(pictures):
            (frame,) = decoder.decode(av.Packet(picture.data))
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                # H.264 in 4:2:0 has even sides only.
                stream.width, stream.height = frame.width - frame.width % 2, frame.height - frame.height % 2
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
                stream.options = {"preset": "superfast", "crf": "23", "threads": "1"}
            flat = frame.reformat(
                stream.width, stream.height, format="yuv420p", src_color_range="JPEG", dst_color_range="MPEG"
            )
            flat.pts, flat.time_base = number, 1 / fps
            container.mux(stream.encode(flat))
        if stream is not None:
            container.mux(stream.encode(None))
    return output.getvalue()
