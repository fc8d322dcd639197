"""The application's own code, for the demo: the model maker needs the very features that `classify` uses.

What it is: finds the folder `functions/` and imports a module of it under a name of its own.
What it is not: how functions run (that is `edgeflow.sdk.runtime`, in an environment of its own).
What must stay true: no copy of a function's code lives in the demo.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from edgeflow.errors import NotFound


def application_folder() -> Path:
    """The folder with `edgeflow.yaml` of the demo application: $EDGEFLOW_FUNCTIONS, ./functions, or the one beside the package."""
    named = os.environ.get("EDGEFLOW_FUNCTIONS")
    places = [Path(named)] if named else [Path.cwd() / "functions", Path(__file__).resolve().parents[2] / "functions"]
    for place in places:
        if (place / "edgeflow.yaml").is_file():
            return place
    raise NotFound(
        f"There is no edgeflow.yaml in {' or '.join(str(place) for place in places)}",
        hint="Run the demo inside a clone of the repository, or name the folder in EDGEFLOW_FUNCTIONS.",
    )


def function_module(function: str, module: str = "handler") -> ModuleType:
    """Module `module` of the folder of `function`."""
    folder = application_folder() / function
    name = f"edgeflow_demo_{function}_{module}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / f"{module}.py")
    if spec is None or spec.loader is None:
        raise NotFound(f"{folder / module}.py cannot be loaded as a Python module")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    # A handler may import modules from its own folder.
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(folder))
    return loaded
