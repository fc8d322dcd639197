"""How a process ended, in words.

What it is: texts for an exit status as Python has it: negative where a signal ended the process.
What it is not: the status of a container, which is 128 + the signal (runner/docker.py).
What must stay true: a signal that has no name here is told by its number.
"""

import signal

SIGNALS = {int(one): one.name for one in signal.Signals}


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 40`."""
    return SIGNALS.get(number, f"signal {number}")


def how_ended(status: int) -> str:
    """`exited with status 3`, or `was ended by SIGKILL`."""
    return f"exited with status {status}" if status >= 0 else f"was ended by {signal_name(-status)}"
