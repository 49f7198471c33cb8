"""The cache: a lane is found again exactly where training it would give the same numbers, and no file stops a sweep."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import batchlab
from batchlab import Run, data, models, optim, schedules, sweep
from batchlab.engine import choice, files, identity, kernel, keys, native, stacked

SRC = Path(batchlab.__file__).parents[1]


def a_run(**changes):
    given = dict(
        data=data.two_spirals(60, val=20, test=20), model=models.mlp((2, 8, 2)), optimizer=optim.momentum(), lr=0.1,
        batch_size=10, steps=20, evaluate_every=170, device="cpu",
    )  # fmt: skip
    return Run(**given | changes)


def quick(cache, run=None, **changes):
    return sweep(run or a_run(), **{"lr": [0.01, 0.1], "seed": [0, 1], "cache": cache} | changes)


def same(got, want):
    pandas.testing.assert_frame_equal(got.drop(columns="seconds"), want.drop(columns="seconds"))


@pytest.fixture
def trained(monkeypatch):
    """The runs that the kernel trains from here on."""
    runs, real = [], native.train
    monkeypatch.setattr(native, "train", lambda plan, some, threads: runs.extend(some) or real(plan, some, threads))
    return runs


def made(source, scope=None):
    """What ``f`` is after running this source, as in a notebook of its own."""
    scope = {"__name__": "notebook"} if scope is None else scope
    exec(textwrap.dedent(source), scope)
    return scope["f"]


# ---------------------------------------------------------------- what decides a lane's numbers is in its name

IMPORTS = """
import enum, functools, math, types
from collections import namedtuple
from dataclasses import dataclass, field
import numpy as np, torch
from torch import nn
from batchlab import schedules, optim, models
"""
CODE = {  # source in which ONE decides the numbers
    "a lambda": "f = lambda examples, batch_size: ONE",
    "a nested function": "def f(examples):\n  def inner():\n    return ONE\n  return inner()",
    "a set among constants": "f = lambda e: e in {ONE, 'a', 'b'}",
    "a closure": "def outer(k):\n  return lambda e: k\nf = outer(ONE)",
    "a default": "def f(e, k=ONE): return k",
    "a default of a keyword": "def f(e, *, k=ONE): return k",
    "an attribute of a function": "def f(e): return f.k\nf.k = ONE",
    "a global": "K = ONE\nf = lambda e: K",
    "a global's attribute": "K = types.SimpleNamespace(a=[{'b': ONE}])\nf = lambda e: K.a",
    "a function called": "def g(e): return ONE\ndef f(e): return g(e)",
    "a function called in a circle": "def g(e): return f(e) if e else ONE\ndef f(e): return g(e - 1)",
    "a function in a comprehension": "def g(e): return ONE\nf = lambda e: [g(i) for i in range(3)]",
    "a method": "class C:\n  def __call__(self, e): return ONE\nf = C()",
    "a field": "@dataclass(frozen=True)\nclass C:\n  k: float\n  def __call__(self, e): return self.k\nf = C(ONE)",
    "a frozen dataclass's body": "@dataclass(frozen=True)\nclass C:\n  def __call__(self, e): return ONE\nf = C()",
    "a field's default": "@dataclass\nclass C:\n  k: list = field(default_factory=lambda: [ONE])\nf = C",
    "a class attribute": "class C:\n  k = ONE\n  def __call__(self, e): return self.k\nf = C()",
    "a slot": "class C:\n  __slots__ = ('k',)\nf = C()\nf.k = ONE",
    "a base class": "class B:\n  def g(self): return ONE\nclass C(B):\n  def h(self): return self.g()\nf = C()",
    "a metaclass": "class M(type):\n  def g(cls): return ONE\nclass f(metaclass=M): pass",
    "a subclass of ours": "class C(schedules.constant):\n  def __call__(self, e, b=None): return ONE\nf = C()",
    "an optimizer of the reader's": "class C(optim.Optimizer):\n  def update(self, *a): return ONE\nf = C('sgd')",
    "a property": "class C:\n  @property\n  def k(self): return ONE\nf = C()",
    "a cached property": "class C:\n  @functools.cached_property\n  def k(self): return ONE\nf = C()",
    "a static method": "class C:\n  @staticmethod\n  def k(): return ONE\nf = C()",
    "a bound method": "class C:\n  def __init__(self, k): self.k = k\n  def m(self, e): return self.k\nf = C(ONE).m",
    "what a class does not pickle": "class C:\n  def __reduce__(self): return C, ()\nf = C()\nf.k = ONE",
    "a partial": "f = functools.partial(lambda k, e: k, ONE)",
    "a partial's function": "f = functools.partial(lambda e, k: ONE, k=1)",
    "a cached function": "@functools.lru_cache\ndef f(e): return ONE",
    "a decorated function": "def d(g):\n  @functools.wraps(g)\n  def h(e): return g(e)\n  return h\n"
                            "@d\ndef f(e): return ONE",
    "an enum": "class E(enum.Enum):\n  A = ONE\nf = lambda e: E.A.value",
    "a named tuple": "f = namedtuple('C', 'k')(ONE)",
    "a long array": "K = np.zeros(10_000)\nK[5_000] = ONE\nf = lambda e: K",
    "a long array in a field": "@dataclass(frozen=True)\nclass C:\n  k: np.ndarray\n"
                               "f = C(np.where(np.arange(9_999) == 5_000, ONE, 0))",
    "an array of objects": "f = np.array([None, ONE])",
    "an array's mask": "f = np.ma.masked_array([1, 2], [ONE == 0.5, False])",
    "a tensor": "K = torch.zeros(10_000)\nK[5_000] = ONE\nf = lambda e: K",
    "a tensor of bfloat16": "f = torch.full((3,), ONE, dtype=torch.bfloat16)",
    "a network's weights": "f = nn.Linear(2, 1)\nwith torch.no_grad(): f.weight.fill_(ONE), f.bias.fill_(0)",
    "a network's setting": "f = nn.Dropout(ONE)",
    "a factory of ours in a lambda": "f = lambda seed: models.mlp((2, 8, 2), dropout=ONE)(seed)",
    "make_dataclass": "from dataclasses import make_dataclass\n"
                      "f = make_dataclass('C', [], namespace={'__call__': lambda self, e: ONE})()",
    "a ufunc's place": "f = np.sin if ONE == 0.5 else np.cos",
    "a built-in's place": "f = math.sin if ONE == 0.5 else math.cos",
}  # fmt: skip


@pytest.mark.parametrize("source", CODE.values(), ids=CODE)
def test_what_code_computes_decides_its_identity(source):
    half, again, other = (made(IMPORTS + source.replace("ONE", value)) for value in ("0.5", "0.5", "0.75"))
    assert identity.identity(f=half) == identity.identity(f=again) != identity.identity(f=other)
    assert identity.identity(f=half) == identity.identity(f=half)  # looking left no trace


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lambda a, b: a + b", "lambda a, b: a - b"), ("lambda a: a.x", "lambda a: a.y"),
        ("lambda a, b: a", "lambda b, a: a"), ("lambda a, b: a", "lambda a, *, b: a"),
        ("lambda *a: a", "lambda **a: a"), ("lambda a: (yield)", "lambda a: None"),
    ],
)  # fmt: skip
def test_every_part_of_a_body_decides_its_identity(one, other):
    assert identity.identity(f=made(f"f = {one}")) != identity.identity(f=made(f"f = {other}"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0), (1, True), (0.0, -0.0), ("1", 1), ("a", b"a"), ([1], (1,)), ([1, [2]], [1, 2]), (("a", "b"), ("ab",)),
        ({"a": 1}, [("a", 1)]), (np.float32(1), np.float64(1)), (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(2, "f4"), np.zeros(1, "f8")), (np.zeros(2, "<i4"), np.zeros(2, "<f4")), (torch.zeros(2), np.zeros(2)),
        (torch.zeros(2), torch.zeros(2, requires_grad=True)), (torch.zeros(2), nn.Parameter(torch.zeros(2))),
        (np.zeros(1, [("a", "f4")]), np.zeros(1, [("b", "f4")])), (partial(max, 1), partial(min, 1)),
    ],
)  # fmt: skip
def test_values_that_are_alike_have_identities_of_their_own(one, other):
    assert identity.identity(x=one) != identity.identity(x=other)


def test_a_deep_or_endless_value_is_refused_and_not_followed():
    circle, deep = [], []
    circle.append(circle)
    for _ in range(10_000):
        deep = [deep]
    assert identity.identity(x=circle) == identity.identity(x=circle)
    with pytest.raises(identity.Unkeyable, match="x > .*|x: RecursionError"):
        identity.identity(x=deep)
    with pytest.raises(identity.Unkeyable, match="values"):
        identity.identity(x=tuple(range(identity.MOST + 1)))


def test_identities_are_the_same_in_every_process():
    code = "import sys\nsys.path.insert(0, {tests!r})\nfrom test_store import *\n" + (
        "print([identity.identity(f=made(IMPORTS + source.replace('ONE', '0.5'))) for source in CODE.values()])"
    )
    code = code.format(tests=str(Path(__file__).parent))
    here = [identity.identity(f=made(IMPORTS + source.replace("ONE", "0.5"))) for source in CODE.values()]
    environment = os.environ | {"PYTHONPATH": str(SRC), "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "use", ["import own\nf = lambda e: own.rate(e)", "from own import rate as f", "from own import Rate\nf = Rate()",
            "def f(e):\n  from own import rate\n  return rate(e)", "def f(e):\n  import own\n  return own.rate(e)"]
)  # fmt: skip
def test_the_readers_own_modules_are_followed(tmp_path, monkeypatch, use):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for half in ("0.5", "0.75"):
        sys.modules.pop("own", None)
        (tmp_path / "own.py").write_text(
            f"HALF = {half}\ndef rate(e):\n  return HALF\nclass Rate:\n  def __call__(self, e):\n    return rate(e)\n"
        )
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        found.append(identity.identity(f=made(use)))
    sys.modules["own"].HALF = 0.25  # as a notebook may
    found.append(identity.identity(f=made(use)))
    monkeypatch.delitem(sys.modules, "own")
    assert len(set(found)) == 3


UNKEYABLE = {
    "a lock": ("import threading\nL = threading.Lock()\nf = lambda e: L", "f > L"),
    "a generator of numbers": ("import numpy as np\nR = np.random.default_rng(0)\nf = lambda e: R.random()", "f > R"),
    "another one": ("import random\nR = random.Random(0)\nf = lambda e: R.random()", "f > R: a generator's state"),
    "a file that is read": ("f = lambda e: open('rates.txt').read()", "open"),
    "eval": ("f = lambda e: eval('0.5')", "eval"),
    "a ufunc of the reader's": ("import numpy as np\nf = np.frompyfunc(lambda e: 0.5, 1, 1)", "name only"),
    "a tensor without numbers": ("import torch\nf = torch.empty(3, device='meta')", "cannot be read"),
    "a module as a value": ("import own_module\nf = [own_module]", "module"),
    "an iterator of the reader's": ("f = (i for i in [1])", "generator"),
    "one that raises": ("class C:\n  def __reduce__(self):\n    raise KeyError('x')\nf = C()", "C"),
}


@pytest.mark.parametrize(("source", "why"), UNKEYABLE.values(), ids=UNKEYABLE)
def test_what_cannot_be_followed_is_refused_and_the_way_to_it_named(source, why, monkeypatch, tmp_path):
    (tmp_path / "own_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(identity.Unkeyable, match=why):
        identity.identity(f=made(source))
    sys.modules.pop("own_module", None)


def test_compiled_code_needs_a_version_to_stand_for_it(monkeypatch):
    assert identity.identity(f=torch.relu) != identity.identity(f=torch.tanh)
    monkeypatch.setattr(identity, "_version", lambda module: None)
    with pytest.raises(identity.Unkeyable, match="compiled code"):
        identity.identity(f=torch.relu)


def test_code_is_what_was_imported_not_what_the_file_says_now(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited.py").write_text("def f(e):\n    return 0.5\n")
    before = identity.identity(f=made("from edited import f"))
    (tmp_path / "edited.py").write_text("def f(e):\n    return 0.6\n")
    assert identity.identity(f=made("from edited import f")) == before
    monkeypatch.delitem(sys.modules, "edited")


@pytest.mark.parametrize(
    ("place", "value"), [("numpy.__version__", "1"), ("torch.__version__", "1"), ("sys.version_info", (3, 9, 1))]
)
def test_versions_are_in_the_key(monkeypatch, place, value):
    before = keys.common(a_run())
    monkeypatch.setattr(f"batchlab.engine.keys.{place.replace('numpy', 'np')}", value)
    assert keys.common(a_run()) != before


def test_torchs_settings_are_in_the_key():
    before = keys.common(a_run())
    try:
        torch.set_default_dtype(torch.float64)
        assert keys.common(a_run()) != before
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "change",
    [dict(loss_bound=10.0), dict(order="fixed"), dict(optimizer=optim.sgd()), dict(data=data.two_spirals(61)),
     dict(l1=0.1), dict(precision="float64"), dict(model=models.mlp((2, 9, 2))),
     dict(lr_schedule=schedules.cosine(99))],
)  # fmt: skip
def test_every_argument_is_in_the_key(change):
    assert keys.common(a_run(**change)) != keys.common(a_run())


@pytest.mark.parametrize(
    ("file", "counts"),
    [("training/loop.py", True), ("training/data.py", True), ("engine/native.py", True), ("_seeds.py", True),
     ("engine/deeper/new.c", True), ("engine/new.h", True), ("plot.py", False), ("claims.py", False),
     ("stats.py", False), ("theory/laws.py", False), ("instruments/noise.py", False), ("_check.py", True),
     ("engine/__pycache__/x.pyc", False)],
)  # fmt: skip
def test_editing_what_trains_makes_new_lanes_and_editing_a_figure_keeps_them(tmp_path, monkeypatch, file, counts):
    tree = shutil.copytree(Path(batchlab.__file__).parent, tmp_path / "batchlab")
    monkeypatch.setattr(keys, "__file__", str(tree / "engine" / "keys.py"))
    before = keys._code.__wrapped__()
    (tree / file).parent.mkdir(exist_ok=True)
    with open(tree / file, "a") as changed:
        changed.write("\n")
    assert (keys._code.__wrapped__() != before) == counts


def test_every_file_of_c_is_in_the_code(tmp_path, monkeypatch):
    """Each one in the tree, wherever it stands."""
    tree = shutil.copytree(Path(batchlab.__file__).parent, tmp_path / "batchlab")
    monkeypatch.setattr(keys, "__file__", str(tree / "engine" / "keys.py"))
    sources = [path for path in tree.rglob("*") if path.suffix in (".c", ".h")]
    assert sources
    for path in sources:
        before = keys._code.__wrapped__()
        path.write_text(path.read_text() + "\n")
        assert keys._code.__wrapped__() != before


# ---------------------------------------------------------------- so the table is the one that training gives


SCHEDULE = """
from dataclasses import dataclass
import numpy as np
@dataclass(frozen=True, eq=False)
class Mine:
    rates: np.ndarray
    def __call__(self, examples, batch_size):
        return self.rates[5_000] * ONE
f = Mine(np.where(np.arange(10_000) == 5_000, TWO, 1.0))
"""


@pytest.mark.parametrize("other", [("0.1", "1.0"), ("1.0", "0.1")], ids=["another body", "another array"])
def test_a_schedule_that_computes_something_else_is_trained_anew(tmp_path, other):
    first, second = (
        a_run(lr_schedule=made(SCHEDULE.replace("ONE", one).replace("TWO", two)))
        for one, two in (("1.0", "1.0"), other)
    )
    quick(tmp_path, first)
    same(quick(tmp_path, second), sweep(second, lr=[0.01, 0.1], seed=[0, 1]))


def test_a_model_that_reads_its_weights_from_a_file_is_trained_anew_when_the_file_changes(tmp_path):
    @dataclass(frozen=True)
    class Loaded:
        path: str

        def __call__(self, seed):
            model = models.mlp((2, 8, 2))(seed)
            model.load_state_dict(torch.load(self.path))
            return model

    run = a_run(model=Loaded(str(tmp_path / "weights.pt")))
    for seed in (5, 6):
        torch.save(models.mlp((2, 8, 2))(seed).state_dict(), tmp_path / "weights.pt")
        same(quick(tmp_path / "cache", run), sweep(run, lr=[0.01, 0.1], seed=[0, 1]))


@pytest.fixture
def asked(monkeypatch):
    """What the stacked engine was asked for: it never compiles here, where only the names of the lanes matter."""
    real, seen = stacked.train, []

    def plainly(plan, runs, compiled=False):
        seen.append(compiled)
        return real(plan, runs)

    monkeypatch.setattr(stacked, "train", plainly)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # each thread would have a stack of its own
    yield seen
    torch.set_num_threads(before)


def test_lanes_of_another_engine_are_other_lanes(tmp_path, asked):
    run = a_run()
    for engine in ("compiled", "stacked", "loop", "compiled"):
        quick(tmp_path, run, engine=engine)
    assert asked == [True, False]
    assert len(list(tmp_path.glob("*.json"))) == 3 * 4


def test_a_sweep_that_goes_on_takes_the_engine_that_it_began_with(tmp_path, asked, monkeypatch):
    run = a_run(precision="float64")  # which the kernel leaves to others
    monkeypatch.setattr(choice, "COMPILING_PAYS", 0.0)
    quick(tmp_path, run)  # "auto", which compiles
    monkeypatch.undo()
    quick(tmp_path, run)
    quick(tmp_path, run, engine="compiled")
    assert asked == [True] and len(list(tmp_path.glob("*.json"))) == 4


@pytest.mark.parametrize("written", [b"", b"{}", b"[]", b'{"engine": "auto"}', b'{"engine": 3}', b"\xff", None])
def test_an_odd_choice_is_chosen_again(tmp_path, written):
    want = quick(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
        if path.suffix == ".engine":
            path.mkdir() if written is None else path.write_bytes(written)
    same(quick(tmp_path), want)


def test_a_worker_without_a_compiler_keeps_its_lanes_under_what_trained_them(tmp_path, monkeypatch):
    answers = iter([kernel.library()])  # here there is one, where the lanes are trained there is none
    monkeypatch.setattr(native, "library", lambda: next(answers, None))
    quick(tmp_path)
    monkeypatch.setattr(stacked, "train", None)
    monkeypatch.setattr(native, "library", lambda: None)
    quick(tmp_path, engine="stacked")


def test_a_larger_grid_trains_the_new_lanes_only(tmp_path, trained):
    first = quick(tmp_path)
    trained.clear()
    more = quick(tmp_path, lr=[0.01, 0.03, 0.1], seed=[1, 0])
    assert {(run.lr, run.seed) for run in trained} == {(0.03, 0), (0.03, 1)}
    kept = more[more.lr != 0.03].sort_values(["lr", "seed", "step"]).reset_index(drop=True)
    pandas.testing.assert_frame_equal(kept, first)  # "seconds" too: nothing was trained again


def test_functions_of_the_readers_are_found_again(tmp_path, trained):
    def halved(factor):
        return a_run(lr_schedule=lambda examples, batch_size: factor)

    for _ in range(2):
        quick(tmp_path, halved(0.5))
        quick(tmp_path, replace(halved(0.5), loss=lambda y, t: nn.functional.cross_entropy(y, t)))
    assert len(trained) == 4 and len(list(tmp_path.glob("*.json"))) == 8


def test_what_cannot_be_keyed_is_trained_and_not_kept_and_one_warning_says_why(tmp_path):
    run = a_run(lr_schedule=made("import threading\nL = threading.Lock()\ndef f(e, b):\n  with L: return 0.5"))
    want = sweep(run, lr=[0.01, 0.1], seed=[0, 1])
    with pytest.warns(RuntimeWarning, match=r"lr_schedule > L.*Give a function, or a frozen dataclass") as caught:
        got = quick(tmp_path, run)
    assert len(caught) == 1 and caught[0].filename == __file__ and not list(tmp_path.iterdir())
    same(got, want)


# ---------------------------------------------------------------- files


def test_only_parts_of_its_own_are_removed(tmp_path):
    yours = ["notes.part", "tmpabc123.part", ".batchlab-notes.part", ".batchlab-1-0123456789abcdef.part.txt"]
    left = ".batchlab-1-0123456789abcdef.part"  # of a process that was killed
    young = ".batchlab-1-fedcba9876543210.part"
    for name in [*yours, left, young]:
        (tmp_path / name).write_text("x")
        if name != young:
            os.utime(tmp_path / name, (1, 1))
    quick(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix not in (".json", ".engine")} == {*yours, young}


def test_what_is_being_written_bears_a_name_that_is_removed_later(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda part, path: names.append(Path(part).name))
    names = []
    files.write(tmp_path / "x", b"")
    assert files.PARTS.fullmatch(names[0])


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_shared_folder_is_shared_as_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        quick(tmp_path)
    finally:
        os.umask(before)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("damage", [b"", b"x", b"half", b"flip", b"\xff\xfe"])
def test_a_damaged_file_is_trained_again(tmp_path, trained, damage):
    want = quick(tmp_path)
    victim = sorted(tmp_path.glob("*.json"))[0]
    whole = victim.read_bytes()
    changed = {b"half": whole[: len(whole) // 2], b"flip": whole.replace(b"0.", b"1.", 1)}.get(damage, damage)
    assert changed != whole
    victim.write_bytes(changed)
    costs_one_lane(tmp_path, want, trained, "damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(tmp_path)  # the file is whole again


def costs_one_lane(folder, want, trained, warning):
    trained.clear()
    with pytest.warns(RuntimeWarning, match=warning) as caught:
        got = quick(folder)
    assert len(caught) == 1 and len(trained) == 1
    same(got, want)


ODD = {
    "not JSON": "{",
    "no object": "[]",
    "a number": "1",
    "null": "null",
    "no fields": "{}",
    "a field too many": '{"rows": ROWS, "diverged": false, "reached": false, "more": 1}',
    "a field too few": '{"rows": ROWS, "diverged": false}',
    "no rows": '{"rows": [], "diverged": false, "reached": false}',
    "rows that are none": '{"rows": 1, "diverged": false, "reached": false}',
    "a row that is a list": '{"rows": [["step"]], "diverged": false, "reached": false}',
    "a row of another table": '{"rows": [{"step": 1}], "diverged": false, "reached": false}',
    "a word for a number": '{"rows": WORDS, "diverged": false, "reached": false}',
    "a number for a truth": '{"rows": ROWS, "diverged": 0, "reached": false}',
    "a word for a truth": '{"rows": ROWS, "diverged": false, "reached": "no"}',
    "nested without end": "[" * 100_000,
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_odd_json_with_a_good_checksum_is_trained_again(tmp_path, trained, body):
    want = quick(tmp_path)
    victim = sorted(tmp_path.glob("*.json"))[0]
    rows = json.loads(victim.read_text().split("\n", 1)[1])["rows"]
    words = [row | {"val_loss": "low"} for row in rows]
    body = body.replace("ROWS", json.dumps(rows)).replace("WORDS", json.dumps(words))
    victim.write_text(f"{sha256(body.encode()).hexdigest()}\n{body}")
    costs_one_lane(tmp_path, want, trained, "damaged")


def test_what_is_no_file_costs_its_lane_and_no_other(tmp_path, trained):
    want = quick(tmp_path)
    first, second = sorted(tmp_path.glob("*.json"))[:2]
    first.unlink()
    first.mkdir()
    (first / "inside").touch()
    second.unlink()
    for _ in range(2):  # the second lane is kept again, the first cannot be
        trained.clear()
        with pytest.warns(RuntimeWarning, match="is not a file") as caught:
            same(quick(tmp_path), want)
        assert len(caught) == 1
    assert len(trained) == 1 and second.is_file()


def test_files_of_others_that_may_not_be_read_are_said_to_be_so_once(tmp_path, monkeypatch):
    want = quick(tmp_path)
    victims = sorted(tmp_path.glob("*.json"))[:3]
    real = Path.read_bytes

    def guarded(path):
        if path in victims:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    with pytest.warns(RuntimeWarning, match=r"cannot be read \(Permission denied\).*2 more such files") as caught:
        same(quick(tmp_path), want)
    assert len(caught) == 1


def test_a_read_only_folder_is_read_and_one_warning_says_that_nothing_is_kept(tmp_path, monkeypatch, trained):
    want = quick(tmp_path, lr=[0.01])
    real = os.open

    def read_only(path, flags, *more, **options):
        if str(path).startswith(str(tmp_path)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    trained.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pandas.testing.assert_frame_equal(quick(tmp_path, lr=[0.01]), want)
    with pytest.warns(RuntimeWarning, match="Read-only") as caught:
        quick(tmp_path)
    assert len(caught) == 1 and {run.lr for run in trained} == {0.1}


def test_a_full_disk_costs_the_files_but_not_the_table(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    want = quick(None)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        got = quick(tmp_path)
    assert len(caught) == 1 and not list(tmp_path.iterdir())
    same(got, want)


def test_a_folder_deleted_midway_is_made_again(tmp_path, monkeypatch):
    real, folder = native.train, tmp_path / "cache"
    want = quick(None, batch_size=[10, 20])
    monkeypatch.setattr(native, "train", lambda *task: shutil.rmtree(folder) or real(*task))
    same(quick(folder, batch_size=[10, 20]), want)
    assert len(list(folder.glob("*.json"))) == 4  # those trained after it was deleted last


def test_a_directory_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(native, "train", None)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cache"):
            quick(place)
