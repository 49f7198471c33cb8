"""Experiments longer than a chapter: rows are stored, known to be stale, read, and held to a slice trained again."""

import ast
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import batchlab as bl
from batchlab import data, models, optim, results

from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import make

SCRIPTS = make.scripts()
SCRIPT = '''"""What it asks."""
import pandas as pd
import batchlab as bl
from batchlab.optim import sgd as plain

THIRD = 3


def rows(seeds=range(THIRD), cache=None):
    """All of them."""
    bl.optim, bl.sweep, plain()
    return pd.DataFrame({"seed": [*seeds], "loss": [seed / 3 for seed in seeds], "diverged": False})


def mean(rows):
    return rows.loss.mean()
'''


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_rows_are_those_of_today_s_code(script):
    reasons = make.stale(script)
    assert not reasons, f"{'; '.join(reasons)}: run `make experiments EXPERIMENTS=experiments/{script.name}`"
    rows = results.read(script.stem)
    assert rows.attrs["script"] == f"experiments/{script.name}" and "dirty" not in rows.attrs["commit"]
    assert rows.attrs["seeds"] == make._ranges(rows.seed)


def test_every_table_has_its_script():
    assert {path.stem for path in (ROOT / "results").glob("[0-9][0-9]-*")} <= {path.stem for path in SCRIPTS}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository with the package and one experiment, whose rows are made."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("experiments", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "experiments" / "07-thirds.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(results, "folder", lambda kind: tmp_path / kind)
    forget()
    make.main([])
    yield tmp_path
    forget()


def forget():
    for kept in (make._modules, make._definitions, make._seen_from):
        kept.cache_clear()


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    forget()


def test_rows_come_back_as_they_were_returned(house):
    rows, returned = results.read("07-thirds"), results.script("07-thirds").rows()
    pd.testing.assert_frame_equal(rows, returned, rtol=1e-15, atol=0)
    assert rows.attrs["seeds"] == "0-2" and rows.attrs["environment"]["numpy"] == np.__version__
    assert b"\r" not in (house / "results" / "07-thirds.csv").read_bytes()
    assert results.script("07-thirds").rows(seeds=[2]).seed.tolist() == [2]


@pytest.mark.parametrize(
    ("file", "old", "new", "reasons"),
    [
        ("experiments/07-thirds.py", "seed / 3", "seed / 4", ["the script has changed"]),
        ("experiments/07-thirds.py", "What it asks.", "What it does not ask.", []),
        ("experiments/07-thirds.py", "plain()", "(plain(  ))  # why", []),
        ("experiments/07-thirds.py", "loss.mean()", "loss.median()", []),  # of the rows, when they are there
        ("experiments/07-thirds.py", "THIRD = 3", "THIRD = 4", ["the script has changed"]),
        (
            "experiments/07-thirds.py",
            "import sgd",
            "import adam",
            ["the script has changed", "training/optim.py has changed"],
        ),
        ("src/batchlab/training/rules.py", "lr", None, ["training/rules.py has changed"]),
        ("src/batchlab/training/loop.py", "def fit(", "def fitter():\n    return 1\n\n\ndef fit(", []),
        ("src/batchlab/training/synthetic.py", "40)", None, []),  # which no name of the script leads to
        ("src/batchlab/engine/sweep.py", "sweep", None, []),
        ("results/07-thirds.csv", "0.666", "0.667", ["the table was edited by hand"]),
    ],
)
def test_what_makes_rows_stale(house, file, old, new, reasons):
    path = house / file
    if new is None:  # break every function
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body.append(ast.parse("broken()").body[0])
        path.write_text(ast.unparse(tree), encoding="utf-8")
        forget()
    else:
        edit(path, old, new)
    assert make.stale(house / "experiments" / "07-thirds.py") == reasons


def test_a_rate_that_a_lane_takes_makes_rows_stale(house):
    """Through fit, which the script does not name, and what fit imports."""
    edit(house / "src/batchlab/training/step.py", "FIRST_SCALE = ", "FIRST_SCALE = 1 + ")
    edit(house / "src/batchlab/_seeds.py", "np.random.PCG64(", "np.random.MT19937(")
    script = house / "experiments" / "07-thirds.py"
    assert make.stale(script) == ["_seeds.py has changed", "training/step.py has changed"]
    edit(script, "bl.sweep, ", "")
    assert "training/loop.py" not in make.stamp(script)  # nothing is trained


def test_names_can_be_followed():
    """A definition imported under another name would be lost."""
    for body in make._modules().values():
        for node in (leaf for statement in body for leaf in ast.walk(statement)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("batchlab"):
                assert not any(alias.asname for alias in node.names)


def test_only_stale_rows_are_made_or_those_named(house, capsys):
    capsys.readouterr()
    make.main([])
    assert capsys.readouterr().out == "07-thirds.py: up to date\n"
    make.main([str(house / "experiments" / "07-thirds.py")])
    assert "07-thirds.py: asked for ...\n07-thirds.py: made in 0 s\n" == capsys.readouterr().out
    edit(house / "experiments" / "07-thirds.py", "seed / 3", "seed / 4")
    make.main([])
    assert capsys.readouterr().out.startswith("07-thirds.py: the script has changed ...")
    assert make.stale(house / "experiments" / "07-thirds.py") == []
    with pytest.raises(SystemExit, match="expected one of experiments/07-thirds.py"):
        make.main(["experiments/08-more.py"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": [', '"lane": ['),
        ("seed / 3", "float('nan')"),
        ("range(THIRD)", "range(99_999)"),
        ("range(THIRD)", "()"),
    ],
)
def test_rows_that_cannot_be_held_are_not_stored(house, old, new):
    before = (house / "results" / "07-thirds.csv").read_bytes()
    edit(house / "experiments" / "07-thirds.py", old, new)
    with pytest.raises(ValueError, match="07-thirds.py"):
        make.main([])
    assert (house / "results" / "07-thirds.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["thirds", "07-thirds.csv", "../results/07-thirds", "sweep"])
@pytest.mark.parametrize("find", [results.read, results.script])
def test_an_unknown_name_is_refused(house, find, name):
    with pytest.raises(ValueError, match="expected one of .'07-thirds'."):
        find(name)


def test_rows_and_scripts_are_found_in_an_installed_package(tmp_path):
    """Where the wheel puts them is beside the module."""
    shutil.copytree(ROOT / "src" / "batchlab", tmp_path / "batchlab")
    for kind in ("results", "experiments"):
        (tmp_path / "batchlab" / f"_{kind}").mkdir()
    code = "from batchlab import results; print(results.folder('results'), results.folder('experiments'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "batchlab" / f"_{kind}") for kind in ("results", "experiments")]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for kind in ("results", "experiments"):
        assert f'\n"{kind}" = "batchlab/_{kind}"\n' in project


# --- The slice trained again -------------------------------------------------------------------------------------

ON = ["batch_size", "seed"]


def table(conditions=4, seeds=40, seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[2**i for i in range(conditions)], range(seeds)], names=ON)
    return pd.DataFrame({"loss": rng.normal(1, 0.1, len(index))}, index).reset_index()


def slice_of(rows, seeds=5):
    return rows[rows.seed < seeds].reset_index(drop=True)


def test_the_same_rows_agree():
    stored = table()
    found = results.rederive(stored, slice_of(stored), on=ON, value="loss")
    assert (found.rows, found.stored, found.equal, found.largest, found.used) == (20, 160, 20, 0.0, 0.0)
    assert "20 of 160 rows" in str(found)


def test_chaos_seldom_gives_an_alarm_and_a_shift_does():
    """Noise drawn anew, which is the worst that rounding does: at most one alarm in a thousand, by simulation."""
    stored, alarms, seen = table(seeds=200), 0, 0
    for seed in range(300):
        again = slice_of(stored).assign(loss=np.random.default_rng((1, seed)).normal(1, 0.1, 20))
        alarms += raises(stored, again)
        seen += raises(stored, again.assign(loss=again.loss + 0.2))  # two standard deviations
    assert alarms <= 2 and seen >= 290


def raises(stored, again, **how):
    try:
        results.rederive(stored, again, on=ON, value="loss", **how)
    except results.Disagrees:
        return True
    return False


def test_a_shift_of_one_condition_names_it_and_the_furthest_row():
    stored = table()
    again = slice_of(stored)
    again.loc[again.batch_size == 4, "loss"] += 0.4
    again.loc[(again.batch_size == 4) & (again.seed == 3), "loss"] += 0.01
    with pytest.raises(results.Disagrees, match="loss at batch_size = 4, mean of 5 seeds: .*furthest is seed = 3: "):
        results.rederive(stored, again, on=ON, value="loss")


def test_a_small_shift_of_all_conditions_is_seen():
    stored = table(conditions=16)
    again = slice_of(stored)
    assert not raises(stored, again.assign(loss=again.loss + 0.02))
    with pytest.raises(results.Disagrees, match="mean of 80 rows of all conditions"):
        results.rederive(stored, again.assign(loss=again.loss + 0.12), on=ON, value="loss")


def test_with_rtol_every_row_is_held():
    stored = table()
    again = slice_of(stored)
    off = again.copy()
    off.loc[7, "loss"] *= 1 + 2e-4
    assert not raises(stored, off, rtol=3e-4) and raises(stored, off, rtol=1e-4)
    assert not raises(stored, off, rtol=0, atol=1e-3) and raises(stored, off, rtol=0)
    with pytest.raises(results.Disagrees, match=r"loss at batch_size = 2, seed = 2: .*rounding explains at most"):
        results.rederive(stored, off, on=ON, value="loss", rtol=1e-4)
    assert not raises(stored, off)  # which the means do not see: that is what rtol is for
    assert results.rederive(stored, off, on=ON, value="loss", rtol=4e-4).used == pytest.approx(0.5)


def test_a_lane_that_diverges_in_one_table_only_is_seen():
    stored = table()
    stored.loc[2, "loss"] = np.inf
    again = slice_of(stored)
    assert not raises(stored, again) and not raises(stored, again, rtol=0)
    for moved in (again.assign(loss=again.loss.where(again.index != 2, 1.0)), again.assign(loss=np.inf)):
        with pytest.raises(results.Disagrees, match="seed = "):
            results.rederive(stored, moved, on=ON, value="loss")


def test_rows_without_spread_must_be_the_same_or_within_atol():
    stored = table().assign(loss=0.0)
    again = slice_of(stored)
    assert not raises(stored, again) and raises(stored, again.assign(loss=1e-3))
    assert not raises(stored, again.assign(loss=1e-3), atol=2e-3)


BAD = {
    "no seed": (lambda s, a: (s, a, {"on": ["batch_size"]}), "on = "),
    "no column": (lambda s, a: (s, a.drop(columns="loss"), {}), "again.columns"),
    "nothing": (lambda s, a: (s, a[:0], {}), "again.columns"),
    "no table": (lambda s, a: (3, a, {}), "stored.columns"),
    "NaN": (lambda s, a: (s, a.assign(loss=np.nan), {}), "again = 'NaN'"),
    "twice": (lambda s, a: (pd.concat([s, s]), a, {}), "stored = 'batch_size = 1, seed = 0'"),
    "a stranger": (lambda s, a: (s, a.assign(seed=a.seed + 38), {}), "again = 'batch_size = 1, seed = 40'"),
    "few seeds": (lambda s, a: (s[s.seed < 9], a, {}), "stored = '9 finite rows at batch_size = 1'"),
    "rtol": (lambda s, a: (s, a, {"rtol": -1}), "rtol = -1"),
    "atol": (lambda s, a: (s, a, {"atol": np.inf}), "atol = inf"),
    "alarm": (lambda s, a: (s, a, {"alarm": 0}), "alarm = 0"),
}


@pytest.mark.parametrize("why", BAD)
def test_bad_tables_are_refused(why):
    stored = table()
    spoil, message = BAD[why]
    stored, again, more = spoil(stored, slice_of(stored))
    with pytest.raises(ValueError, match=message):
        results.rederive(stored, again, **{"on": ON, "value": "loss", **more})


@pytest.fixture(scope="module")
def trained():
    run = bl.Run(
        data=data.mnist1d(512, val=256, test=64), model=models.mlp((40, 32, 10)), optimizer=optim.momentum(0.9),
        lr=0.05, batch_size=32, epochs=5, evaluate_every=512, evaluate=("val",), device="cpu",
    )  # fmt: skip
    return run, bl.sweep(run, batch_size=[16, 32], seed=range(20), engine="native", n_jobs=1)


def compare(stored, again, epoch, **how):
    stored, again = (rows[rows.epoch == epoch] for rows in (stored, again))
    return results.rederive(stored, again, on=ON, value="val_loss", **how)


def test_another_engine_agrees_and_planted_bugs_are_seen(trained):
    """Engines round differently, as processors do: early rows agree in five digits, the last ones in the mean."""
    run, stored = trained
    lanes = dict(batch_size=[16, 32], seed=range(5), n_jobs=1)
    again = bl.sweep(run, engine="stacked", **lanes)
    assert compare(stored, again, 1, rtol=1e-5).equal < 10
    compare(stored, again, 5)
    for bug in ({"lr": 0.0501}, {"order": "replacement"}, {"ema": 0.5}, {"l1": 1e-5}):
        with pytest.raises(results.Disagrees):
            compare(stored, bl.sweep(replace(run, **bug), engine="native", **lanes), 1, rtol=1e-5)
    for bug in ({"lr": 0.2}, {"data": data.with_label_noise(run.data, 0.3)}):
        with pytest.raises(results.Disagrees):
            compare(stored, bl.sweep(replace(run, **bug), engine="native", **lanes), 5)


def test_rows_go_stale_with_a_script_whose_functions_they_use(house):
    user = house / "experiments" / "08-fifths.py"
    user.write_text(SCRIPT.replace("plain()", 'bl.results.script("07-thirds")'), encoding="utf-8")
    before = make.stamp(user)
    assert "07-thirds" in before
    used = house / "experiments" / "07-thirds.py"
    used.write_text(SCRIPT.replace("seed / 3", "seed / 4"), encoding="utf-8")
    after = make.stamp(user)
    assert [file for file in before if before[file] != after[file]] == ["07-thirds"]
