from edgeflow import function


@function
def handle(ctx, prices, rate):  # rate is None until there is one
    if rate is None:
        return f"no rate of {prices.captures['currency']}"
    return prices.json() * rate.json()
