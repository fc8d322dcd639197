"""The data process: one thread that drains sockets, makes one Redis round trip for the whole batch, then answers."""
