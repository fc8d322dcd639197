from edgeflow import function


@function
def handle(ctx, visits):
    ctx.state["visits"] = ctx.state.get("visits", 0) + 1
    return f"{ctx.key} {ctx.state['visits']}"
