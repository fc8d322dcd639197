"""The decorator, and loading a handler from its folder.

What it is: how a plain Python function becomes the handler of an edgeflow function, and every check that can be made before the first event.
What it is not: running it (runtime.py).
What must stay true: the decorator returns the very function it was given, so that a user's unit test may call it; each refusal names the file,
the function and the line to write instead.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgeflow.errors import BadHandler

Handle = Callable[..., Any]
_H = TypeVar("_H", bound=Handle)

_MARK = "__edgeflow_function__"
HANDLER_FILE = "handler.py"


def function(handle: _H) -> _H:
    """Marks `handle(ctx, <one parameter per input>)` as the handler of this folder's function; returns it unchanged.

    Raises BadHandler for what cannot be a handler: async functions, generators, and anything that is not a function.
    """
    name = getattr(handle, "__name__", repr(handle))
    if inspect.iscoroutinefunction(handle) or inspect.isasyncgenfunction(handle):
        raise BadHandler(
            f"handler {name!r} is async; handlers are plain functions",
            hint="Write `def` without `async`: an instance runs one invocation at a time; raise `scale: {instances: n}` for more.",
        )
    if inspect.isgeneratorfunction(handle):
        raise BadHandler(
            f"handler {name!r} yields; handlers return", hint="Call ctx.emit(channel, data) once per output."
        )
    if not inspect.isfunction(handle):
        raise BadHandler(
            f"@function was put on a {type(handle).__name__}, not on a function",
            hint="Put @function above a plain `def`.",
        )
    setattr(handle, _MARK, True)
    return handle


def load_handler(folder: Path) -> Handle:
    """The one function marked with @function in `folder`/handler.py, whose own imports may come from the same folder.

    Raises BadHandler when the file is missing, marks no or several functions, or was refused by the decorator. Whatever else the
    module raises while it is imported is chained to the BadHandler as its cause.
    """
    path = folder / HANDLER_FILE
    if not path.is_file():
        raise BadHandler(f"there is no {HANDLER_FILE} in {folder}")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None:
        raise BadHandler(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    try:
        spec.loader.exec_module(module)
    except BadHandler:
        raise
    except (Exception, SystemExit) as error:
        hint = (
            "Add the package to requirements.txt."
            if isinstance(error, ModuleNotFoundError)
            else "The traceback names the line."
        )
        raise BadHandler(f"{path} cannot be imported: {type(error).__name__}: {error}", hint=hint) from error
    marked = list(
        {id(value): value for value in vars(module).values() if getattr(value, _MARK, False) is True}.values()
    )
    if not marked:
        raise BadHandler(f"{path} marks no function with @function")
    if len(marked) > 1:
        names = ", ".join(f"{handle.__name__} (line {handle.__code__.co_firstlineno})" for handle in marked)
        raise BadHandler(
            f"{path} marks {len(marked)} functions with @function: {names}",
            hint="One folder is one function: make a folder for each.",
        )
    handle: Handle = marked[0]
    return handle


def check_signature(handle: Handle, inputs: Sequence[str]) -> None:
    """Raises BadHandler unless `handle` can be called as handle(ctx, **{name: ... for name in inputs})."""
    wanted = list(dict.fromkeys(inputs))
    parameters = list(inspect.signature(handle).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    correct = f"def {handle.__name__}({', '.join(['ctx', *wanted])}):"
    problem = ""
    if not parameters or parameters[0].kind not in (*positional, inspect.Parameter.VAR_POSITIONAL):
        problem = "takes no ctx as its first parameter"
    elif parameters[0].name in wanted:
        problem = f"takes {parameters[0].name!r} where ctx belongs"
    else:
        named = {
            p.name: p
            for p in parameters[1:]
            if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        missing = [name for name in wanted if name not in named and not takes_any]
        unknown = [name for name, p in named.items() if name not in wanted and p.default is inspect.Parameter.empty]
        unknown += [p.name for p in parameters[1:] if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        if missing:
            problem = f"has no parameter for {_names('input', missing)}"
        if unknown:
            problem += f"{' and ' if problem else ''}takes {', '.join(map(repr, unknown))}, which is no input"
    if problem:
        code = handle.__code__
        raise BadHandler(
            f"{handle.__name__} in {code.co_filename}, line {code.co_firstlineno}, {problem}; the function's inputs are {', '.join(wanted) or 'none'}",
            hint=f"Write `{correct}`, or change `subscribe:` in the manifest.",
        )


def _names(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
