from edgeflow import function


@function
def handle(ctx, frames):
    ctx.log.info("measuring", camera=frames.captures["id"])
    return len(frames.data)
