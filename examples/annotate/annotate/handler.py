import cv2
import numpy

from edgeflow import function


@function
def handle(ctx, frames, faces):  # both of the same subject: "<chunk>/<frame>"
    picture = cv2.imdecode(numpy.frombuffer(frames.data, numpy.uint8), cv2.IMREAD_COLOR)
    for face in faces.json()["faces"]:
        left, top, width, height = map(round, face["box"])
        cv2.rectangle(picture, (left, top), (left + width, top + height), (0, 255, 0), 2)
    ctx.emit("annotated", cv2.imencode(".jpg", picture)[1].tobytes(), datacontenttype="image/jpeg")
