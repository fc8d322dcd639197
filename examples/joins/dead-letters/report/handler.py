from edgeflow import function


@function
def handle(ctx, parse):
    letter = parse.json()
    return f"{letter['function']} gave up {letter['inputs'][0]['subject']}"
