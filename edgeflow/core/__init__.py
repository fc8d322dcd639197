"""Pure decisions: events, channels, versions, routing, retries. No I/O, no clock, no randomness: time is an argument."""
