from edgeflow import function


@function
def handle(ctx, pages):
    found = sorted((page.json() for page in pages), key=lambda page: page["page"])
    return " ".join(page["text"] for page in found)
