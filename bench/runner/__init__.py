"""`make bench-runner`: how fast functions start, follow a burst, and what their contracts, images and agent cost."""
