from edgeflow import function


@function
def handle(ctx, orders, payments):
    return f"{orders.text()}, {'unpaid' if payments is None else 'paid'}"
