"""The floors of the house (CONTRIBUTING.md): a module imports only from floors below its own."""

import ast

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "batchlab"
FLOORS = {
    "_check": -2,
    **dict.fromkeys(["_seeds", "_probe", "_steps", "_ratio"], -1),
    "_gradients": -0.5,
    **dict.fromkeys(["theory", "least_squares", "noisy_quadratic", "stats", "dataset"], 0),
    **dict.fromkeys(["data", "models", "optim", "schedules"], 1),
    "step": 1.5,
    "train": 2,
    "lanes": 2.3,
    **dict.fromkeys(["native", "cache"], 2.6),
    **dict.fromkeys(["sweep", "outcomes", "noise", "curvature", "throughput", "memory", "parallel", "advise"], 3),
    **dict.fromkeys(["claims", "plot", "playground", "__main__"], 4),
    "__init__": 5,
}
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))


def faults(module, source, known=FLOORS):
    """Return what a module imports that its floor does not allow, as sentences."""
    if module not in known:
        return [f"{module} has no floor: give it one here and on the map in CONTRIBUTING.md"]
    found = []
    for name in imported(ast.parse(source)):
        top, *rest = name.split(".")
        if top == "matplotlib" and known[module] < 4:
            found.append(f"{module} (floor {known[module]}) imports matplotlib")
        if top == "batchlab":
            other = rest[0] if rest and rest[0] in known else "__init__"
            if other != module and known[other] >= known[module]:
                found.append(f"{module} (floor {known[module]}) imports {other} (floor {known[other]})")
    return found


def imported(tree):
    """Yield the full dotted name of everything a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["batchlab" if node.level else "", node.module or ""]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("parts", MODULES, ids=".".join)
def test_a_module_imports_only_from_below(parts):
    source = PACKAGE.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
    assert faults(parts[0], source) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("theory", "import numpy as np\nfrom batchlab import _check", None),
        ("theory", "from batchlab.claims import check", "imports claims"),
        ("theory", "def f():\n    from .train import fit", "imports train"),
        ("stats", "from batchlab import theory", "imports theory"),
        ("data", "from . import train", "imports train"),
        ("train", "import batchlab as bl", "imports __init__"),
        ("train", "from batchlab import fit", "imports __init__"),
        ("noise", "from matplotlib import pyplot as plt", "imports matplotlib"),
        ("plot", "import matplotlib.pyplot as plt\nfrom batchlab import stats", None),
        ("attic", "", "has no floor"),
    ],
)
def test_the_floors_hold(module, source, fault):
    found = faults(module, source)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]
