from edgeflow import function


@function
def handle(ctx, steps):
    step = steps.json()
    if ctx.attempt <= step.get("fails", 0):
        raise RuntimeError("stuck")  # tried again; r2's later steps wait
    return f"{step['robot']} {step['step']}"
