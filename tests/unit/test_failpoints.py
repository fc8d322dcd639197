"""Fail points: the list is the code's, an armed one strikes once, an absent one costs nothing."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import edgeflow
from edgeflow.core import failpoints

PACKAGE = Path(edgeflow.__file__).parent


def _names_in_code() -> Counter[str]:
    names: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hit":
                assert isinstance(node.args[0], ast.Constant), f"{path}: a fail point's name is written out"
                names[node.args[0].value] += 1
    return names


def _passes(folder: Path, *, times: int, folder_is_set: bool = True) -> subprocess.Popen[str]:
    code = f"from edgeflow.core.failpoints import hit\nfor n in range({times}):\n  hit('tick-before', lambda: print('before', flush=True))\n  print(n, flush=True)"
    environment = {key: value for key, value in os.environ.items() if key != failpoints.VARIABLE}
    if folder_is_set:
        environment[failpoints.VARIABLE] = str(folder)
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_the_points_are_those_in_the_code_each_once() -> None:
    assert _names_in_code() == Counter(failpoints.POINTS.keys())


def _list_in(file: str, name: str) -> tuple[str, ...]:
    tree = ast.parse((Path(__file__).parents[1] / "faults" / file).read_text())
    (found,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    return tuple(ast.literal_eval(found))


def test_the_sweeps_have_each_of_them() -> None:
    assert (*_list_in("test_sweep.py", "SWEPT"), *_list_in("test_rollouts.py", "STEPS")) == tuple(failpoints.POINTS)


def test_an_armed_point_kills_one_process_at_that_pass(tmp_path: Path) -> None:
    (tmp_path / "tick-before").write_text("kill skip 2")
    process = _passes(tmp_path, times=5)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output.split()) == (-signal.SIGKILL, ["0", "1", "before"])
    assert (tmp_path / "tick-before.fired").read_text() == str(process.pid)
    second = _passes(tmp_path, times=5)
    second.communicate(timeout=20)
    assert second.returncode == 0, "a point strikes once"


def test_a_stopped_process_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tick-before").write_text("stop")
    process = _passes(tmp_path, times=1)
    assert process.stdout is not None
    assert process.stdout.readline() == "before\n"
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGCONT)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("0\n", 0)


def test_only_the_named_process_strikes(tmp_path: Path) -> None:
    (tmp_path / "tick-before").write_text("kill pid 1")
    process = _passes(tmp_path, times=2)
    process.communicate(timeout=20)
    assert process.returncode == 0 and (tmp_path / "tick-before").exists()


def test_without_the_variable_nothing_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "tick-before").write_text("kill")
    process = _passes(tmp_path, times=1, folder_is_set=False)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("0\n", 0)
