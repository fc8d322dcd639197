"""The CloudEvents SDK on Flask, as its documentation shows it: an event in, an event out."""

import os

from cloudevents.conversion import to_structured
from cloudevents.http import CloudEvent, from_http
from flask import Flask, request

app = Flask(__name__)


@app.post("/")
def handle():
    event = from_http(request.headers, request.get_data())
    answer = CloudEvent(
        {
            "source": "https://example.com/length",
            "type": "com.example.length",
            "subject": event["subject"],
            "mood": "good",
        },
        {"length": len(event.data)},
    )
    headers, body = to_structured(answer)
    return body, 200, headers


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
