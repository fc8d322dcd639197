"""A plain Flask server: any data in, JSON out; several events come as a list."""

import os

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/healthz")
def healthz():
    return "ready"


@app.post("/")
def handle():
    if request.content_type == "application/cloudevents-batch+json":
        return jsonify({event["input"]: event["data"] for event in request.get_json(force=True)})
    return jsonify({"letters": len(request.get_data()), "subject": request.headers["ce-subject"]})


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
