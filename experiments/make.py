"""Store the rows of experiments: python experiments/make.py [experiments/NN-name.py ...] (`make experiments`).

Without names: of all whose rows are stale, in order. An experiment is a script whose function ``rows(cache=None)``
returns a pandas.DataFrame, one row a lane or condition, with a column "seed". Its lanes are kept in ``CACHE``: a
run that was killed goes on. CONTRIBUTING.md says more, also about what makes rows stale.
"""

import ast
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from batchlab import results  # noqa: E402

CACHE = ROOT / ".batchlab-cache"  # git ignores it, and `make clean` leaves it
LARGEST = 1_000_000  # bytes of one table
DECIDES = ("training", "theory", "instruments", "stats", "engine/outcomes.py", "rescale.py", "_seeds.py")
RECORDED = ("numpy", "torch", "pandas", "scipy", "scikit-learn", "mnist1d")


def scripts():
    return sorted((ROOT / "experiments").glob("[0-9][0-9]-*.py"))


def stored(script):
    return ROOT / "results" / f"{script.stem}.csv"


# --- What makes rows stale ---------------------------------------------------------------------------------------


def stamp(script):
    """Hashes of the code that decides the rows of a script: of what ``rows`` reaches in the script and in the package.

    A definition is reached if one that is reached says its name; of the package's, those see only what their own files
    import, at however many removes. Who says ``sweep`` says ``fit``: by contract they train alike. Comments,
    docstrings, formatting and what nobody names do not count, so that drawing or testing rows costs none of them.
    A script that is named, as "07-critical-batch" is by the scripts that use its functions, counts with all it reaches.
    """
    body = _bound(ast.parse(script.read_text(encoding="utf-8")).body, "the script")
    reached, todo, others = {}, [("rows", "the script")], set()
    while todo:
        name, speaker = todo.pop()
        if speaker == "the script":
            found = [*body.get(name, ()), *_definitions().get(name, ())]
        else:
            found = [unit for unit in _definitions().get(name, ()) if unit[0] in _seen_from(speaker)]
        for file, node in found:
            if node not in reached:
                reached[node] = file
                said = _names(node)
                others |= {
                    other for other in scripts() if other.stem in said and other != script and file == "the script"
                }
                todo += [
                    (word, file) for word in said | ({"fit"} if "sweep" in said and file == "the script" else set())
                ]
    plain = {}
    for node, file in reached.items():
        plain.setdefault(file, []).append(_plain(node))
    own = {file: sha256(repr(sorted(plain[file])).encode()).hexdigest()[:16] for file in sorted(plain)}
    named = {other.stem: sha256(repr(sorted(stamp(other).items())).encode()).hexdigest()[:16] for other in others}
    return own | named


@cache
def _modules():
    """File in the package -> the statements at its top level, of all that may decide rows."""
    home = ROOT / "src" / "batchlab"
    paths = [path for part in DECIDES for path in [home / part, *(home / part).rglob("*.py")] if path.is_file()]
    return {p.relative_to(home).as_posix(): ast.parse(p.read_text(encoding="utf-8")).body for p in sorted(paths)}


@cache
def _definitions():
    """Name -> [(file, statement)] of what stands at the top level of the package's modules."""
    units = {}
    for file, body in _modules().items():
        for name, there in _bound(body, file).items():
            units.setdefault(name, []).extend(there)
    return units


def _bound(body, file):
    """Name -> [(file, statement)] of the statements that bind it."""
    units = {}
    for node in body:
        if _says_nothing(node) or isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = {alias.asname for alias in getattr(node, "names", ()) if alias.asname and file == "the script"}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound = {node.name}
        else:  # of an assignment, what it assigns to; of anything else, every name in it
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            bound = {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        for name in bound:
            units.setdefault(name, []).append((file, node))
    return units


@cache
def _seen_from(file):
    """The files that a file of the package imports from, at however many removes, and itself."""
    seen, todo = set(), [file]
    while todo:
        seen.add(this := todo.pop())
        said = set()
        for node in (leaf for statement in _modules()[this] for leaf in ast.walk(statement)):
            if isinstance(node, ast.ImportFrom):
                said |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        dotted = {
            f: "batchlab." + f.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for f in _modules()
        }
        todo += [f for f, name in dotted.items() if name in said and f not in seen]
    return seen


def _names(tree):
    """Every name, attribute, imported name and string in a syntax tree: a string may name an optimiser, say."""
    said = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word) | ast.Constant(value=str(word)):
                said.add(word)
    return said


def _plain(node):
    """A syntax tree as text, the same in every Python: without docstrings, positions and fields that are empty."""
    if isinstance(node, list):
        return [_plain(part) for part in node if not _says_nothing(part)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
    return repr([type(node).__name__, *((name, _plain(value)) for name, value in fields if value not in (None, []))])


def _says_nothing(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring


def stale(script):
    """Why the rows of a script are to be made anew, as a list of reasons; empty if they are not."""
    table = stored(script)
    if not table.exists() or not table.with_suffix(".json").exists():
        return ["there are none"]
    made, now = json.loads(table.with_suffix(".json").read_text(encoding="utf-8")), stamp(script)
    changed = [file for file in sorted({*made["code"], *now}) if made["code"].get(file) != now.get(file)]
    edited = made["sha256"] != sha256(table.read_bytes()).hexdigest()
    return [f"{file} has changed" for file in changed] + ["the table was edited by hand"] * edited


# --- Making them -------------------------------------------------------------------------------------------------


def make(script):
    """Run one experiment and store its rows, and beside them how they came about; return the seconds it took."""
    commit, code, began = _commit(), stamp(script), time.perf_counter()
    rows = results.script(script.stem).rows(cache=CACHE)
    seconds = time.perf_counter() - began
    if "seed" not in rows.columns or not len(rows) or rows.isna().any(axis=None):
        raise ValueError(f"{script.name}: rows() must return rows with a column 'seed' and without NaN")
    table = stored(script)
    text = rows.to_csv(index=False, lineterminator="\n").encode()  # floats as repr writes them: read back, the same
    if len(text) > LARGEST:
        raise ValueError(f"{script.name}: {len(text):,} bytes of rows: expected at most {LARGEST:,}")
    made = {
        "script": f"experiments/{script.name}",
        "seeds": _ranges(rows.seed),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "seconds": round(seconds, 1),
        "environment": environment(),
        "code": code,
        "sha256": sha256(text).hexdigest(),
    }
    table.write_bytes(text)
    table.with_suffix(".json").write_bytes(json.dumps(made, indent=1).encode() + b"\n")
    return seconds


def environment():
    """What the numbers of a long run may depend on beside the code."""
    processor, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = named[0].split(":")[1].strip() if named else processor
    packages = {name: version(name) for name in RECORDED}
    where = {"system": platform.system(), "processor": processor, "cores": os.cpu_count()}
    return {"python": platform.python_version(), **packages, **where, "threads": torch.get_num_threads()}


def _commit():
    """The commit that is checked out; "-dirty" after it says that the package or an experiment differs from it."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "HEAD") or "unknown"
    return commit + "-dirty" * bool(git("status", "--porcelain", "src/batchlab", "experiments"))


def _ranges(seeds):
    """Seeds in words: "0-19, 1000-1099"."""
    ordered, runs = sorted({int(seed) for seed in seeds}), []
    for seed in ordered:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def main(named):
    known = {script.resolve(): script for script in scripts()}
    unknown = [name for name in named if Path(name).resolve() not in known]
    if unknown:
        sys.exit(f"{unknown[0]}: expected one of " + ", ".join(f"experiments/{s.name}" for s in known.values()))
    for script in [known[Path(name).resolve()] for name in named] or known.values():
        reasons = stale(script)
        if named or reasons:
            print(f"{script.name}: {'; '.join(reasons) or 'asked for'} ...", flush=True)
            print(f"{script.name}: made in {make(script):.0f} s", flush=True)
        else:
            print(f"{script.name}: up to date")


if __name__ == "__main__":
    main(sys.argv[1:])
