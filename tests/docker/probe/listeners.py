"""Stands for a PoP in the probe test: listens on every unix socket given, and on TCP when the argument is a number."""

import os
import select
import socket
import sys

listening = []
for argument in sys.argv[1:]:
    if argument.isdigit():
        server = socket.create_server(("0.0.0.0", int(argument)))
    else:
        os.makedirs(os.path.dirname(argument), exist_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(argument)
        server.listen(64)
        os.chmod(argument, 0o666)
        os.chmod(os.path.dirname(argument), 0o755)
    listening.append(server)
print("listening", flush=True)
while True:
    for server in select.select(listening, [], [])[0]:
        server.accept()[0].close()
