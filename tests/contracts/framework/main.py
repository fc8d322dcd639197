"""The two signatures of functions-framework, as its documentation shows them."""

import functions_framework


@functions_framework.http
def hello(request):
    return request.get_data(as_text=True).upper(), 200, {"Content-Type": "text/plain"}


@functions_framework.cloud_event
def heard(cloud_event):
    print(f"heard {cloud_event['subject']}: {cloud_event.data!r}", flush=True)
