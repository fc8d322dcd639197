from edgeflow import function


@function
def handle(ctx, drafts, reviews):
    return f"{drafts.text()}: {reviews.text()}"
