"""`make bench-ekv`: the edge key-value store beside raw Redis and NATS."""
