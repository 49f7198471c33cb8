"""The notebooks as files: run them in place, measure them, hold them to their form, stamp the copy that is published.

    python book/_ext/chapters.py execute [chapters/NN-slug.ipynb ...]
    python book/_ext/chapters.py measure [chapters/NN-slug.ipynb ...]
    python book/_ext/chapters.py stamp OWNER/NAME@REF

The notebooks are the chapters and the clinic, which keeps their form. A notebook's file is a function of its cells: ids
come from the cells' sources, metadata holds what a reader's Jupyter needs and nothing of the machine it ran on. So
`normalised` applied twice changes nothing, and a test holds every committed notebook to that.
"""

import argparse
import base64
import hashlib
import re
import sys
from pathlib import Path

import nbformat

import measure

CHAPTERS = Path(__file__).resolve().parents[2] / "chapters"
MOST_BYTES = 1_000_000
SHORTEST_ALT = 40  # characters: less cannot state what a figure shows

# The first code cell of every chapter, word for word. `stamp` fills in REPOSITORY in the copies that are published.
SETUP = """\
# Setup: imports batchlab where it is installed; on Colab, installs it first.
REPOSITORY = ""
try:
    import batchlab as bl
except ModuleNotFoundError as missing:
    if missing.name != "batchlab":
        raise
    if not REPOSITORY:
        how = "batchlab is not installed: run `make lab` in a copy of the book"
        raise ModuleNotFoundError(how) from None
    import subprocess
    import sys

    package = f"batchlab @ git+https://github.com/{REPOSITORY}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", package]
    subprocess.run(pip, check=True)
    import batchlab as bl"""

# The front page and the README show this figure, in this file: a copy of what the chapter drew.
FRONT = ("04-throughput", "fig-steps-law", CHAPTERS.parent / "book" / "_static" / "question.png")

KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TAGS = {"hide-input", "hide-output", "remove-input", "timing", "playground", "nbval-ignore-output"}
KEPT = ("tags", "mystnb")  # metadata of a cell that means something to this book
IGNORING = re.compile(r"(NBVAL_|PYTEST_VALIDATE_)")
WIDGET = "application/vnd.jupyter.widget-view+json"  # means nothing without the kernel that made it
PIECE, STORED = re.compile(r"bl\.playground\.\w+\([^()]*\)"), "application/vnd.batchlab.playground+json"
TIMING = re.compile(r"\d\s*(ns|µs|ms|s|min|seconds|examples/s|steps/s|%)(?!\w)")


def notebooks(root=CHAPTERS.parent):
    """Return the paths of the notebooks in the tree at ``root``: the chapters, then what else of the book is run."""
    return [path for folder in ("chapters", "book") for path in sorted((Path(root) / folder).glob("*.ipynb"))]


def normalised(notebook):
    """Return a copy of a notebook node without anything that depends on the machine or the moment it ran."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = {key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)}
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {k: v for k, v in output.metadata.items() if k == "batchlab"}  # the claims' evidence
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def _joined(outputs):
    """Join what one stream printed in a row: a slow machine delivers it in several pieces."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def dumped(notebook):
    """Return the text a notebook is stored as."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def faults(path):
    """Return what is wrong with a chapter's file, one sentence each; an empty list when it keeps the form."""
    text = Path(path).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    found = []
    if len(text.encode()) >= MOST_BYTES:
        found.append(f"the file has {len(text.encode())} bytes: expected below {MOST_BYTES}")
    if text != dumped(normalised(notebook)):
        found.append("its metadata, ids or layout are not normalised: run `make execute`")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or code[0].source != SETUP:
        found.append("its first code cell is not the setup cell of book/_ext/chapters.py")
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are {counts}: expected 1 to {len(code)} in order")
    for number, cell in enumerate(notebook.cells):
        found += [f"cell {number}: {fault}" for fault in _cell_faults(cell)]
    return found


def _cell_faults(cell):
    tags = set(cell.metadata.get("tags", []))
    if tags - TAGS:
        yield f"unknown tags {sorted(tags - TAGS)}: expected some of {sorted(TAGS)}"
    if cell.cell_type != "code":
        return
    if IGNORING.search(cell.source):
        yield "a comment would keep its output from being compared"
    text, images = "", 0
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"it shows an error: {output.ename}: {output.evalue}"
        elif output.output_type == "stream":
            text += output.text
            if output.name == "stderr":
                yield f"it writes to stderr: {output.text[:80]!r}"
        else:
            text += output.data.get("text/plain", "")
            images += any(kind.startswith("image/") for kind in output.data)
    if ("nbval-ignore-output" in tags) != bool(tags & {"timing", "playground"}):
        yield "the tag `nbval-ignore-output` stands with `timing` or `playground`, they with it, and only together"
    if "timing" in tags and (images or not TIMING.search(text)):
        yield "tagged `timing`, but its output is not a timing"
    pieces = [output for output in cell.outputs if STORED in output.get("data", {})]
    alone = len(pieces) == len(cell.outputs) == 1 and PIECE.fullmatch(cell.source)
    if ("playground" in tags) != bool(pieces) or (pieces and not alone):
        yield "the tag `playground` is for a cell that does nothing but show one piece, and such a cell has it"
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    if images > 1:
        yield f"it shows {images} images: expected one, since alt text belongs to the cell"
    if images and len(alt) < SHORTEST_ALT:
        yield f"its image has the alt text {alt!r}: expected a sentence saying what the figure shows (mystnb.image.alt)"


def execute(paths):
    """Run each notebook from the top in a fresh kernel and store it normalised, unless a cell fails.

    Returns:
        What went wrong, one sentence each with the notebook's path: a failed cell, or a fault of what was stored.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    wrong = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,  # a slow machine flushes a table in pieces: one cell, one text
            resources={"metadata": {"path": str(Path(path).resolve().parent)}},
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            wrong.append(f"{path}: not stored: {error}")
            continue
        Path(path).write_text(dumped(normalised(notebook)), encoding="utf-8", newline="\n")
        if Path(path).stem == FRONT[0]:
            FRONT[2].write_bytes(picture(path, FRONT[1]))
        print(f"{path}: stored")
        wrong += [f"{path}: {fault}" for fault in faults(path)]
    return wrong


def picture(path, name):
    """Return the PNG of the figure called ``name`` in a chapter's stored outputs."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            images = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
            return base64.b64decode(images[0])
    raise ValueError(f"{path} has no figure called {name!r}")


def stamped(notebook, repository):
    """Return a copy of a notebook whose setup cell knows what it can be installed from.

    Raises:
        ValueError: ``repository`` is not OWNER/NAME@REF, or the notebook has no setup cell to stamp.
    """
    _owner_and_name(repository)
    notebook = nbformat.from_dict(notebook)
    setup = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source == SETUP]
    if len(setup) != 1:
        raise ValueError(f"the notebook has {len(setup)} setup cells: expected 1")
    setup[0].source = SETUP.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
    return notebook


def _owner_and_name(repository):
    if not re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", repository):
        raise ValueError(f"repository = {repository!r}: expected OWNER/NAME@REF")
    return repository.split("@")[0]


def stamp(repository, root=CHAPTERS.parent):
    """Write a repository's address into the tree at ``root``: the notebooks' setup cells and the site's configuration.

    From there the site has its own address on GitHub Pages, for the sitemap and what a link to it shows elsewhere, and
    its Colab buttons, which open the notebooks of the branch ``notebooks``, where publish.yml puts the stamped ones.
    """
    owner, name = _owner_and_name(repository).split("/")
    pages = f"https://{owner.lower()}.github.io/" + ("" if name.lower() == f"{owner.lower()}.github.io" else f"{name}/")
    config = Path(root) / "_config.yml"
    text = config.read_text(encoding="utf-8")
    for empty, filled in (
        ('baseurl: ""', f'baseurl: "{pages}"'),
        ('repository: ""', f'repository: "{owner}/{name}"'),
    ):
        if text.count(empty) != 1:
            raise ValueError(f"{config}: expected {empty!r} once")
        text = text.replace(empty, filled)
    config.write_text(text, encoding="utf-8", newline="\n")
    for path in notebooks(root):
        notebook = stamped(nbformat.read(path, as_version=4), repository)
        path.write_text(dumped(notebook), encoding="utf-8", newline="\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("execute", help="run notebooks in place and store their outputs")
    runs.add_argument("paths", nargs="*", type=Path)
    lengths = commands.add_parser("measure", help="print how long each chapter is, and what is over its budget (!)")
    lengths.add_argument("paths", nargs="*", type=Path)
    stamps = commands.add_parser("stamp", help="write a repository's address into this tree, to publish it")
    stamps.add_argument("repository", help="OWNER/NAME@REF")
    given = parser.parse_args(arguments)
    if given.command == "execute":
        return "\n".join(execute(given.paths or notebooks())) or None
    if given.command == "measure":
        return print(measure.table(given.paths or sorted(CHAPTERS.glob("*.ipynb"))))
    stamp(given.repository)


if __name__ == "__main__":
    sys.exit(main())  # a text goes to stderr, and the exit code is 1
