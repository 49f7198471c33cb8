"""``import batchlab`` loads nothing heavy, and everything is found under its short name, however it is asked for."""

import ast
import importlib
import os
import pickle
import subprocess
import sys
import types

import pytest

import batchlab as bl

from conftest import ROOT

STUB = ROOT / "src" / "batchlab" / "__init__.pyi"
HEAVY = {"torch", "numpy", "pandas", "scipy", "matplotlib", "sklearn", "joblib", "IPython"}
PROMISED = [  # (short name, what it is)
    *[(name, f"batchlab.instruments.{name}") for name in ("curvature", "memory", "noise", "throughput")],
    *[(name, f"batchlab.training.{name}") for name in ("data", "models", "optim", "parallel", "schedules")],
    *[(name, f"batchlab.theory.{name}") for name in ("least_squares", "noisy_quadratic")],
    ("outcomes", "batchlab.engine.outcomes"),
]


def python(code, **variables):
    """Run code in a fresh interpreter; return the words it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **variables}, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import batchlab", HEAVY),
        ("import batchlab as bl; dir(bl); bl.__all__; bl.__version__", HEAVY),
        ("import batchlab.claims", HEAVY - {"numpy"}),  # what the site's ledger is built with
        ("from batchlab import theory", HEAVY - {"numpy", "scipy"}),
    ],
)
def test_nothing_heavy_is_loaded_unasked(code, light):
    assert light.intersection(python(f"{code}\nimport sys\nprint(*sys.modules)")) == set()


def test_the_stub_names_what_the_face_has():
    """The stub is what editors read; it says of each name where it stands, and there it must be."""
    found = {}
    for line in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(line, ast.ImportFrom):
            for alias in line.names:
                assert alias.asname == alias.name  # what type checkers take for exported
                home = importlib.import_module("." * line.level + (line.module or ""), "batchlab")
                found[alias.name] = getattr(home, alias.name)
    assert dir(bl) == sorted(found) == sorted(bl.__all__)
    assert {name: getattr(bl, name) for name in found} == found
    assert bl.sweep.__name__ == "sweep" and callable(bl.sweep)  # the function, not its module


@pytest.mark.parametrize(("short", "name"), PROMISED)
@pytest.mark.parametrize(
    "code",
    [
        "import batchlab.{0}; got = batchlab.{0}",
        "from batchlab import {0} as got",
        "import importlib; got = importlib.import_module('batchlab.{0}')",
        "import batchlab as bl; got = bl.{0}; import batchlab.{0} as again; assert again is got",
    ],
)
def test_a_short_name_is_the_module_itself(short, name, code):
    there = {}
    exec(code.format(short), there)
    assert there["got"] is importlib.import_module(name)
    assert (there["got"].__name__, there["got"].__spec__.name) == (name, name)


def test_the_first_import_may_be_by_a_short_name():
    assert python("from batchlab.outcomes import best_lr; print(best_lr.__module__)") == ["batchlab.engine.outcomes"]
    assert python("import batchlab.outcomes as m; print(m.__spec__.name)") == ["batchlab.engine.outcomes"]


def test_an_unknown_name_is_an_error_of_the_usual_kind():
    with pytest.raises(AttributeError, match="snoise"):
        bl.snoise  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'snoise' from 'batchlab'"):
        from batchlab import snoise  # noqa: F401
    for name in ("batchlab.snoise", "batchlab.sweep", "batchlab.noise.snoise", "batchlab.__version__"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            importlib.import_module(name)


def test_threads_may_import_at_once():
    """By short names and by the modules' own, in orders of their own: none waits for another for ever."""
    names = [name for short, own in PROMISED for name in (f"batchlab.{short}", own)]
    code = f"""
import batchlab, importlib, os, random, threading
# which do not bear being imported by many at once:
import joblib, pandas, scipy.optimize, scipy.sparse.linalg, scipy.stats, tqdm
import torch.func, torch.nn.attention, torch.utils._python_dispatch, torch.utils.checkpoint
def load(seed):
    mine = random.Random(seed).sample({names}, {len(names)})
    gate.wait()
    got.append({{importlib.import_module(name).__name__ for name in mine}})
gate, got = threading.Barrier(8), []
threads = [threading.Thread(target=load, args=(seed,)) for seed in range(8)]
[thread.start() for thread in threads], [thread.join(60) for thread in threads]
print(len(got), *set.union(*got), flush=True)
os._exit(0)  # not waiting for those that wait
"""
    assert sorted(python(code)) == sorted(["8", *(name for _, name in PROMISED)])


def test_what_was_reached_by_a_short_name_can_be_pickled():
    """And read by a process that has imported nothing yet, as a cluster's workers do."""
    reached = importlib.import_module("batchlab.outcomes").best_lr
    assert pickle.loads(pickle.dumps(reached)) is reached
    code = f"import pickle; print(pickle.loads({pickle.dumps(reached)!r}).__module__)"
    assert python(code) == ["batchlab.engine.outcomes"]


def test_a_module_can_be_reloaded_by_its_short_name():
    code = """
import importlib, batchlab, batchlab.outcomes as module
before = module.best_lr
assert importlib.reload(module) is module is batchlab.outcomes and module.best_lr is not before
importlib.reload(batchlab)
import batchlab.noisy_quadratic
print(module.__spec__.name)"""
    assert python(code) == ["batchlab.engine.outcomes"]


def test_documentation_is_found_by_a_short_name():
    done = subprocess.run([sys.executable, "-m", "pydoc", "batchlab.outcomes"], capture_output=True, text=True)
    assert "batchlab.engine.outcomes" in done.stdout.splitlines()[0] and "best_lr" in done.stdout


def test_everything_can_be_loaded_at_once():
    assert python("import batchlab, sys; print('torch' in sys.modules)", EAGER_IMPORT="1") == ["True"]
    assert isinstance(bl.noise, types.ModuleType)
