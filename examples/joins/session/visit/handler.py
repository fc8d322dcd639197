from edgeflow import function


@function
def handle(ctx, clicks):
    start_ms, end_ms = ctx.window
    return f"{', '.join(click.text() for click in clicks)} ({end_ms - start_ms} ms)"
