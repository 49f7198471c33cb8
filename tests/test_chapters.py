"""The notebooks keep their form. Their outputs are validated by nbval, which re-runs every cell of every notebook."""

import copy
import re
import subprocess
import sys
import tomllib

import measure
import nbformat
import pytest
from nbformat import v4

import chapters
from conftest import ROOT

FILES = chapters.notebooks(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_notebook_keeps_the_form(path):
    assert path.parent.name != "chapters" or re.fullmatch(r"\d\d(-[a-z0-9]+)+", path.stem)
    assert chapters.faults(path) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "chapters"], ids=lambda p: p.stem)
def test_a_chapter_has_its_parts_and_keeps_its_budget(path):
    """A chapter that is better over budget is named here, with what it exceeds: none is."""
    notebook = nbformat.read(path, as_version=4)
    assert measure.absent(notebook) == [] and measure.measured(notebook).over() == []


def test_no_notebook_is_left_out():
    """Those that are executed, stamped and held to the form are all there are, and nbval is sent to each of them."""
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert sorted(listed.stdout.split()) == sorted(path.relative_to(ROOT).as_posix() for path in FILES)
    places = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    sent = {path for place in places["tool"]["pytest"]["ini_options"]["testpaths"] for path in ROOT.glob(place)}
    assert [path for path in FILES if not sent & {path, *path.parents}] == []


def test_the_front_picture_is_what_its_chapter_drew():
    chapter, name, path = chapters.FRONT
    assert path.read_bytes() == chapters.picture(ROOT / "chapters" / f"{chapter}.ipynb", name)


def output(text="1.50 s", name="stdout"):
    return v4.new_output("stream", text=text, name=name)


IMAGE = v4.new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
ALT = {"image": {"alt": "The error falls sixteenfold while the batch grows sixteenfold."}}
TIMED = ["timing", "nbval-ignore-output"]


def code(source="1 + 1", count=2, outputs=(), tags=(), mystnb=None):
    cell = v4.new_code_cell(source, execution_count=count, outputs=list(outputs))
    cell.metadata = {"tags": list(tags), "mystnb": mystnb or {}}
    return cell


def written(tmp_path, *cells, setup=chapters.SETUP, normalise=chapters.normalised):
    notebook = normalise(v4.new_notebook(cells=[v4.new_markdown_cell("# T"), code(setup, 1), *cells]))
    path = tmp_path / "01-test.ipynb"
    path.write_text(chapters.dumped(notebook), encoding="utf-8")
    return path


PLAYGROUND = ["playground", "nbval-ignore-output"]
PIECE = v4.new_output(
    "execute_result",
    data={"image/png": "iVBORw0KGgo=", "text/plain": "descent()", chapters.STORED: {"piece": "descent"}},
    execution_count=2,
)

GOOD = [
    [],
    [code(outputs=[output("≈ 3")])],
    [code(outputs=[output()], tags=TIMED)],
    [code(outputs=[output("12,345 examples/s")], tags=TIMED)],
    [code(outputs=[IMAGE], mystnb=ALT)],
    [code("bl.playground.descent(lr=0.1)", outputs=[PIECE], tags=PLAYGROUND, mystnb=ALT)],
]


@pytest.mark.parametrize("cells", GOOD)
def test_a_good_chapter_has_no_faults(tmp_path, cells):
    assert chapters.faults(written(tmp_path, *cells)) == []


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (code(count=3), "execution counts"),
        (code(count=None), "execution counts"),
        (code(outputs=[output("careful", "stderr")]), "stderr"),
        (code(outputs=[v4.new_output("error", ename="E", evalue="v", traceback=[])]), "shows an error"),
        (code(outputs=[output()], tags=["nbval-ignore-output"]), "only together"),
        (code(outputs=[output()], tags=["timing"]), "only together"),
        (code(outputs=[output("loss 0.3")], tags=TIMED), "not a timing"),
        (code(outputs=[], tags=TIMED), "not a timing"),
        (code(outputs=[output(), IMAGE], tags=TIMED, mystnb=ALT), "not a timing"),
        (code(tags=PLAYGROUND), "nothing but show one piece"),
        (code("loss()", outputs=[PIECE], tags=PLAYGROUND, mystnb=ALT), "nothing but show one piece"),
        (code("bl.playground.descent(lr=loss())", outputs=[PIECE], tags=PLAYGROUND, mystnb=ALT), "nothing but show"),
        (code("bl.playground.descent()", outputs=[PIECE], tags=PLAYGROUND), "alt text"),
        (code("bl.playground.descent()", outputs=[PIECE], mystnb=ALT), "nothing but show one piece"),
        (code("bl.playground.descent()", outputs=[PIECE], tags=["playground"], mystnb=ALT), "only together"),
        (code(tags=["nbval-skip"]), "unknown tags"),
        (code(tags=["raises-exception"]), "unknown tags"),
        (code("# NBVAL_IGNORE_OUTPUT\n1"), "from being compared"),
        (code("# PYTEST_VALIDATE_IGNORE_OUTPUT\n1"), "from being compared"),
        (code(outputs=[IMAGE]), "alt text"),
        (code(outputs=[IMAGE], mystnb={"image": {"alt": "A plot."}}), "alt text"),
        (code(outputs=[IMAGE, IMAGE], mystnb=ALT), "2 images"),
        (code("#" * chapters.MOST_BYTES), "bytes"),
    ],
)
def test_a_fault_is_found(tmp_path, cell, fault):
    found = chapters.faults(written(tmp_path, cell))
    assert len(found) == 1 and fault in found[0]


def test_a_chapter_without_the_setup_cell_is_found(tmp_path):
    found = chapters.faults(written(tmp_path, setup="import batchlab as bl"))
    assert len(found) == 1 and "setup cell" in found[0]


def test_metadata_of_a_machine_is_found_and_normalised(tmp_path):
    def with_a_machine(notebook):
        notebook = chapters.normalised(notebook)
        notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
        notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00"}
        return notebook

    path = written(tmp_path, normalise=with_a_machine)
    assert len(chapters.faults(path)) == 1 and "not normalised" in chapters.faults(path)[0]
    notebook = chapters.normalised(nbformat.read(path, as_version=4))
    path.write_text(chapters.dumped(notebook), encoding="utf-8")
    assert chapters.faults(path) == []


def test_what_only_a_kernel_can_show_is_not_stored():
    moving = copy.deepcopy(PIECE)
    moving.data[chapters.WIDGET] = {"model_id": "0"}
    cell = chapters.normalised(v4.new_notebook(cells=[code(outputs=[moving])])).cells[0]
    assert cell.outputs == [PIECE]


def test_what_a_stream_printed_in_pieces_is_joined():
    pieces = [output("a\n"), output("b\n"), output("c\n", "stderr"), output("d\n"), IMAGE, output("e\n")]
    cell = chapters.normalised(v4.new_notebook(cells=[code(outputs=pieces)])).cells[0]
    assert [o.get("text") for o in cell.outputs] == ["a\nb\n", "c\n", "d\n", None, "e\n"]


def test_ids_follow_the_cell_not_its_place():
    cells = [code("a = 1"), code("b = 2"), code("a = 1")]
    ids = [c.id for c in chapters.normalised(v4.new_notebook(cells=copy.deepcopy(cells))).cells]
    moved = [c.id for c in chapters.normalised(v4.new_notebook(cells=copy.deepcopy(cells[1:]))).cells]
    assert len(set(ids)) == 3 and moved == [ids[1], ids[0]]


COMPARED = [  # (what a cell prints, what it has stored, whether nbval, as this project runs it, accepts that)
    ("B  loss\n1  ≈ 3.74\n16 ≈ 0.232", "B  loss\n1    ≈ 3.741\n16 ≈ -1.2e-05", True),
    ("≈ 3.74 %, from ≈ 1,437 to ≈ −0.5", "≈ 3.75 %, from ≈ 1,436 to ≈ 0.5", True),
    ("≈ 3.74 %", "≈ 3.74 s", False),
    ("≈ 3 of 12", "≈ 3 of 13", False),
    ("3.74", "3.75", False),
    ("≈ nan", "≈ 1", False),
    ("≈ 1 2", "≈ 1 3", False),
]


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    """What nbval says of one notebook with a cell for each of COMPARED."""
    folder = tmp_path_factory.mktemp("compared")
    cells = [code(f"print({printed!r})", i, [output(f"{old}\n")]) for i, (printed, old, _) in enumerate(COMPARED, 1)]
    notebook = chapters.normalised(v4.new_notebook(cells=cells))
    (folder / "n.ipynb").write_text(chapters.dumped(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += [f"--nbval-sanitize-with={ROOT / 'tests' / 'sanitize.cfg'}", "--rootdir", str(folder), "n.ipynb"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    said = {int(n): word for word, n in re.findall(r"^(PASSED|FAILED) n\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE)}
    assert len(said) == len(COMPARED), done.stdout + done.stderr
    return [said[number] == "PASSED" for number in sorted(said)]


@pytest.mark.parametrize("case", range(len(COMPARED)), ids=[f"{new}-{old}" for new, old, _ in COMPARED])
def test_nbval_compares_all_but_the_digits_after_the_sign(accepted, case):
    assert accepted[case] is COMPARED[case][2]


def executed(*paths):
    command = [sys.executable, chapters.__file__, "execute", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stderr


def test_what_runs_well_is_stored(tmp_path):
    path = written(tmp_path, code("print(6 * 7)"))
    status, said = executed(path)
    assert status == 0 and str(path) not in said
    assert nbformat.read(path, as_version=4).cells[2].outputs[0].text == "42\n"


def test_a_notebook_that_fails_or_keeps_a_fault_fails_the_command(tmp_path):
    sources = {"fails": "1 / 0", "faulty": "import sys\nprint('careful', file=sys.stderr)"}
    paths = {}
    for name, source in sources.items():
        (tmp_path / name).mkdir()
        paths[name] = written(tmp_path / name, code(source))
    before = paths["fails"].read_text(encoding="utf-8")
    status, said = executed(*paths.values())
    assert status == 1
    assert f"{paths['fails']}: not stored: " in said and "ZeroDivisionError" in said
    assert f"{paths['faulty']}: cell 2: it writes to stderr: 'careful" in said
    assert paths["fails"].read_text(encoding="utf-8") == before


@pytest.mark.parametrize("repository", ["", "owner@1", "a/b", "a/b/c@1", "https://github.com/a/b@1", "a/b@1; rm"])
def test_stamp_refuses_what_is_not_a_repository(repository):
    notebook = v4.new_notebook(cells=[code(chapters.SETUP, 1)])
    with pytest.raises(ValueError, match="repository = .*OWNER/NAME"):
        chapters.stamped(notebook, repository)


def test_stamp_refuses_a_notebook_without_the_setup_cell():
    with pytest.raises(ValueError, match="0 setup cells"):
        chapters.stamped(v4.new_notebook(cells=[code()]), "owner/name@1")
