"""A proxy in front of the Docker engine's socket that can be slow, or gone."""

import contextlib
import socket
import threading
import time
from pathlib import Path

ENGINE = "/var/run/docker.sock"
PIECE = 1 << 16


class EngineProxy:
    """Listens on a unix socket and passes bytes on. `delay_s` holds each piece of a request back; `cut` ends all connections and takes none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delay_s = 0.0
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.path}"

    def cut(self) -> None:
        """The engine is gone."""
        self._is_cut = True
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """The engine is back."""
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as engine:
            engine.connect(ENGINE)
            self._open |= {client, engine}
            back = threading.Thread(target=self._pump, args=(engine, client, False), daemon=True)
            back.start()
            self._pump(client, engine, True)
            back.join()
            self._open -= {client, engine}

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(PIECE):
                if slow and self.delay_s:
                    time.sleep(self.delay_s)
                target.sendall(data)
        except OSError:
            pass
        # Whoever ends first ends the other direction too: HTTP with the engine has no half-closed connections, but for attached ones.
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
