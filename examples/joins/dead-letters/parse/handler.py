from edgeflow import function


@function
def handle(ctx, lines):
    return int(lines.text())
