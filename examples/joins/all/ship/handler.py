from edgeflow import function


@function
def handle(ctx, orders, payments):
    return f"{orders.text()}, paid {payments.text()}"
