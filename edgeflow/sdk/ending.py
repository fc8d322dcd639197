"""How an instance ends: the wish that it does, and what its exit status says.

What it is: `Stop`, which a signal or another thread sets, and the exit statuses that the runner knows.
What it is not: what is done until then (runtime.py, session.py).
What must stay true: the wish wakes a main thread that waits on `read_fd`; a child that a handler forks obeys signals like any other process.
"""

import os
import select
import signal

EXIT_STOPPED, EXIT_NO_AGENT, EXIT_KILLED, EXIT_BAD_HANDLER = 0, 1, 75, 78
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """The wish to end, from a signal or another thread, that also wakes a waiting main thread."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.requested = False

    def request(self) -> None:
        """Asks the instance to finish its current invocation and leave."""
        self.requested = True
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            pass

    def on_signals(self) -> None:
        """SIGTERM and SIGINT mean `request`, in this process only.

        A child that a handler forks shares the wake-up descriptor, and Python forgets a signal that reaches the child before its first
        bytecode: so signals wait while it forks, and then do what they do in any process.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: self.request())

        def hold() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)

        def let_go() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

        def let_go_in_child() -> None:
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            let_go()

        os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=let_go_in_child)

    def wait(self, timeout_s: float) -> None:
        """Returns after `timeout_s` seconds, or earlier when a stop is requested."""
        if not self.requested:
            select.select([self.read_fd], [], [], timeout_s)
