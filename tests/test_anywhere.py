"""The book runs where its repository is not: in an environment that has only what Colab brings."""

import json
import os
import re
import subprocess
import sys

import nbformat
import paper
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient

import chapters
from conftest import ROOT, built, working_tree

pytestmark = pytest.mark.site
REPOSITORY = "example/book"  # nobody's: git is told below where it really is
CHAPTER = ROOT / "chapters" / "03-mini-batch.ipynb"  # the one that is soonest done
BROUGHT = ["torch", "numpy==2.0.*", "ipykernel"]  # Colab's numpy is older than the newest, and must be left alone
VERSIONS = "import importlib.metadata as m; print(*(m.version(n) for n in ['torch', 'numpy']))"


def git(*arguments, cwd):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository that holds the working tree as its one commit; returns its address and that commit."""
    tree = working_tree(tmp_path_factory.mktemp("repository"))
    git("init", "--quiet", cwd=tree)
    git("add", "--all", cwd=tree)
    git("commit", "--quiet", "--message", "the book", cwd=tree)
    return tree.as_uri(), git("rev-parse", "HEAD", cwd=tree)


@pytest.fixture(scope="module")
def stamped(tmp_path_factory, repository):
    """A copy of the working tree, stamped as publish.yml does it."""
    tree = working_tree(tmp_path_factory.mktemp("stamped"))
    chapters.stamp(f"{REPOSITORY}@{repository[1]}", tree)
    return tree


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, repository):
    """An environment that has only torch, numpy and the Jupyter kernel; returns its Python and its variables."""
    home = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    python = home / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pins = [p for p in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "numpy==" not in p]
    (home / "pins.txt").write_text("\n".join(pins), encoding="utf-8")
    variables = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PIP_CONSTRAINT": str(home / "pins.txt"),
        "PIP_NO_COMPILE": "1",  # most of it is never imported
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository[0]}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{REPOSITORY}",
    }
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *BROUGHT]
    subprocess.run(install, check=True, env=variables)
    return python, variables


def run(path, python, variables, directory):
    """Run a notebook with the kernel of another environment, in an empty directory; return it as run."""
    kernel = directory / "kernels" / "elsewhere"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    (directory / "empty").mkdir()
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=1800,
        kernel_name="elsewhere",
        resources={"metadata": {"path": str(directory / "empty")}},
    )
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs.insert(0, str(directory / "kernels"))
    return client.execute(env=variables)


def test_a_chapter_runs_where_only_torch_and_numpy_are(stamped, elsewhere, tmp_path):
    python, variables = elsewhere
    ask = [python, "-c", VERSIONS]
    before = subprocess.run(ask, check=True, env=variables, capture_output=True, text=True).stdout
    missing = subprocess.run([python, "-c", "import batchlab"], env=variables, capture_output=True, text=True)
    assert "No module named 'batchlab'" in missing.stderr

    done = run(stamped / "chapters" / CHAPTER.name, python, variables, tmp_path)

    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert f'REPOSITORY = "{REPOSITORY}@' in code[0].source
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert subprocess.run(ask, check=True, env=variables, capture_output=True, text=True).stdout == before
    where = [python, "-c", "import batchlab; print(batchlab.__file__)"]
    found = subprocess.run(where, check=True, env=variables, capture_output=True, text=True).stdout
    assert str(python.parents[1]) in found


def test_without_an_address_the_setup_cell_says_what_to_do():
    done = subprocess.run([sys.executable, "-I", "-S", "-c", chapters.SETUP], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: batchlab is not installed: run `make lab`")
    assert "During handling" not in done.stderr and "direct cause" not in done.stderr


def test_with_the_package_the_setup_cell_does_nothing():
    code = f"import subprocess; subprocess.run = None\n{chapters.SETUP}\nprint(bl.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "batchlab\n" and done.stderr == ""


def test_a_package_missing_inside_batchlab_is_not_taken_for_batchlab(tmp_path):
    (tmp_path / "batchlab.py").write_text("import no_such_package")
    done = subprocess.run([sys.executable, "-S", "-c", chapters.SETUP], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.strip().endswith("No module named 'no_such_package'")


@pytest.fixture(scope="module")
def published(stamped):
    return built(stamped)


def test_the_published_site_opens_its_notebooks_in_colab(stamped, published):
    for path in chapters.notebooks(stamped):
        place = path.relative_to(stamped)
        page = BeautifulSoup((published / place).with_suffix(".html").read_text(encoding="utf-8"), "html.parser")
        links = [a["href"] for a in page.find_all("a", href=True)]
        assert f"https://colab.research.google.com/github/{REPOSITORY}/blob/notebooks/{place.as_posix()}" in links
        assert f"{REPOSITORY}@" in page.get_text()


def test_every_published_page_links_to_the_book_as_a_pdf(published):
    """publish.yml prints it after the pages; a copy without an address has no such link."""
    for path in published.rglob("*.html"):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        link = page.find("a", string="The whole book as a PDF")
        assert (path.parent / link["href"]).resolve() == (published / paper.NAME).resolve()


def test_the_published_site_knows_its_address(published):
    owner, name = REPOSITORY.split("/")
    address = f"https://{owner}.github.io/{name}/"
    listed = re.findall("<loc>(.*)</loc>", (published / "sitemap.xml").read_text(encoding="utf-8"))
    pages = {p.relative_to(published).as_posix() for p in published.rglob("*.html") if "_static" not in p.parts}
    assert {place.removeprefix(address) or "index.html" for place in listed} == pages - {"404.html"}
    for place in listed:
        path = published / (place.removeprefix(address) or "index.html")
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        card = {tag["property"]: tag["content"] for tag in page.select("meta[property]")}
        assert page.select_one("link[rel=canonical]")["href"] == card["og:url"] == place
        assert card["og:description"] == page.select_one("meta[name=description]")["content"]
        assert (published / card["og:image"].removeprefix(address)).is_file()
    lost = BeautifulSoup((published / "404.html").read_text(encoding="utf-8"), "html.parser")
    assert lost.base["href"] == address  # it is shown at any depth


@pytest.mark.parametrize(
    ("repository", "address"),
    [("Owner/name", "https://owner.github.io/name/"), ("Owner/owner.github.io", "https://owner.github.io/")],
)
def test_stamp_knows_where_pages_puts_a_site(tmp_path, repository, address):
    (tmp_path / "_config.yml").write_text('baseurl: ""\nrepository: ""\n', encoding="utf-8")
    chapters.stamp(f"{repository}@1", tmp_path)
    assert (tmp_path / "_config.yml").read_text(
        encoding="utf-8"
    ) == f'baseurl: "{address}"\nrepository: "{repository}"\n'


def test_no_address_of_a_repository_is_written_in_the_book():
    """A stamped tree must not be committed: until somebody publishes, the book has no address."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert 'baseurl: ""' in config and 'repository: ""' in config
    assert 'REPOSITORY = ""' in chapters.SETUP
