"""The demo's heavy imports, made when first needed.

What it is: OpenCV, NumPy and PyAV behind functions, with one clear error when the `demo` extra is not installed.
What it is not: used by the agent or by functions; those never import it.
What must stay true: importing `edgeflow.demo` or `edgeflow.cli.demo` alone loads none of them.
"""

import importlib
from functools import cache
from typing import Any

from edgeflow.errors import EdgeflowError


class DemoExtraMissing(EdgeflowError):
    """A package that only the demo needs is not installed."""

    code = "demo-extra-missing"
    status = 501
    hint = "Install it with `pip install 'edgeflow[demo]'`."


@cache
def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DemoExtraMissing(f"The demo needs the Python module {module!r}: {error}") from error


@cache
def cv2() -> Any:
    """OpenCV, with one thread: the demo shares the machine with the cluster that it drives."""
    module = _load("cv2")
    module.setNumThreads(1)
    return module


def numpy() -> Any:
    """NumPy."""
    return _load("numpy")


def av() -> Any:
    """PyAV."""
    return _load("av")
