from edgeflow import function


@function
def handle(ctx, drafts, reviews):  # two lists
    return f"{', '.join(one.text() for one in drafts)}: {', '.join(one.text() for one in reviews)}"
