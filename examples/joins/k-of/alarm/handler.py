from edgeflow import function


@function
def handle(ctx, smoke, heat, sound):  # those that have not come are None
    seen = {"smoke": smoke, "heat": heat, "sound": sound}
    return f"{ctx.key}: {', '.join(name for name, event in seen.items() if event is not None)}"
