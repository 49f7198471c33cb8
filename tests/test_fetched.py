"""What a network brings, from a stand-in for it: an opener that answers with made-up files of the documented format."""

import hashlib
import io
import json
import urllib.error
import urllib.request
import urllib.response
import zipfile
from email.message import Message
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import batchlab as bl
from batchlab import data
from batchlab.training import fetched as module

from conftest import ROOT

# --- A network of our own ----------------------------------------------------------------------------------------


class Short(io.BytesIO):
    """A body that ends before its Content-Length: what http.client says of it."""

    def read(self, *size):
        raise module.http.client.IncompleteRead(super().read(*size))


class Network(urllib.request.BaseHandler):
    """Answers https from a dict address -> bytes; 404 where it has none; counts what was asked for."""

    def __init__(self, answers, host=None, body=io.BytesIO):
        self.answers, self.host, self.body, self.asked = answers, host, body, []

    def https_open(self, request):
        self.asked.append(request.full_url)
        if self.host not in (None, request.host):
            raise urllib.error.URLError(f"no such host: {request.host}")
        found = self.answers.get(request.full_url)
        if found is None:
            raise urllib.error.HTTPError(request.full_url, 404, "Not Found", Message(), io.BytesIO())
        return urllib.response.addinfourl(self.body(found), Message(), request.full_url, 200)


@pytest.fixture
def network(monkeypatch):
    """``network(answers, ...)`` is all that urllib reaches until the test ends."""

    def build(*arguments, **options):
        handler = Network(*arguments, **options)
        opener = urllib.request.OpenerDirector()
        opener.add_handler(handler)
        monkeypatch.setattr(urllib.request, "_opener", None)  # put back at the end
        urllib.request.install_opener(opener)
        return handler

    return build


# --- MovieLens ---------------------------------------------------------------------------------------------------

USERS, FILMS = 12, 9


def ratings():
    """(72, 4): each of 12 users rates 6 of 9 films; user, film, stars, time, numbered from 1, as u.data has them."""
    rng = np.random.default_rng(0)
    pairs = [(u + 1, (u * (u % 3 + 1) + k) % FILMS + 1) for u in range(USERS) for k in range(4 + u % 5)]
    table = [(u, i, 1 + n % 5, 880_000_000 + n) for n, (u, i) in enumerate(pairs)]
    return rng.permutation(np.array(table))


def zipped(table, name="ml-100k/u.data"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as folder:
        folder.writestr("ml-100k/README", "made up for a test")
        folder.writestr(name, "".join("\t".join(map(str, row)) + "\n" for row in table))
    return out.getvalue()


@pytest.fixture
def promised(monkeypatch):
    """``promised(bytes)``: this is now the file that MovieLens 100K is held to."""

    def promise(file):
        monkeypatch.setattr(module, "MOVIELENS_MD5", hashlib.md5(file).hexdigest())
        monkeypatch.setattr(module, "MOVIELENS_SIZE", (len(ratings()), USERS, FILMS))
        return file

    return promise


def triples(made):
    return [
        (int(u), int(i), float(s))
        for x, y in (made.train, made.val, made.test)
        for (u, i), (s,) in zip(x, y, strict=True)
    ]


def test_movielens_is_downloaded_once_and_holds_every_rating(network, promised, tmp_path):
    net = network({module.MOVIELENS: promised(zipped(ratings()))}, host="files.grouplens.org")
    made = data.movielens(USERS, FILMS, cache=tmp_path / "new")
    assert made.real and made.classes is None and made.train[0].dtype == torch.int64
    assert made.train[1].dtype == torch.float32 and made.train[1].shape[1:] == (1,)
    table = pd.DataFrame(ratings()[:, :3], columns=["user", "film", "stars"])
    for column in ("user", "film"):  # numbered anew, the most frequent first; of equals the lowest number
        often = table[column].value_counts()
        order = sorted(often.index, key=lambda value: (-often[value], value))
        table[column] = table[column].map({value: k for k, value in enumerate(order)})
    assert sorted(triples(made)) == sorted(table.itertuples(index=False, name=None))
    assert len(made.val[0]) == round(0.1 * len(table)) and len(made.test[0]) == round(0.2 * len(table))
    again = data.movielens(USERS, FILMS, cache=tmp_path / "new")
    assert triples(again) == triples(made) and net.asked == [module.MOVIELENS]
    other = data.movielens(USERS, FILMS, seed=1, cache=tmp_path / "new")
    assert triples(other) != triples(made) and sorted(triples(other)) == sorted(triples(made))


def test_movielens_keeps_the_busiest(network, promised, tmp_path):
    network({module.MOVIELENS: promised(zipped(ratings()))})
    made = data.movielens(5, 4, val=0.2, test=0.2, cache=tmp_path)
    table = pd.DataFrame(ratings()[:, :3], columns=["user", "film", "stars"])
    busiest = sorted(set(table.user), key=lambda u: (-(table.user == u).sum(), u))[:5]
    table = table[table.user.isin(busiest)]
    seen = sorted(set(table.film), key=lambda i: (-(table.film == i).sum(), i))[:4]
    table = table[table.film.isin(seen)]
    expected = [(busiest.index(u), seen.index(i), s) for u, i, s in table.itertuples(index=False, name=None)]
    assert sorted(triples(made)) == sorted(expected)


@pytest.mark.parametrize(
    "answers, options, error, words",
    [
        ({}, {}, ConnectionError, "404"),
        ({module.MOVIELENS: zipped(ratings())}, {"host": "mirror.example"}, ConnectionError, "no such host"),
        ({module.MOVIELENS: zipped(ratings())}, {"body": Short}, ConnectionError, "IncompleteRead"),
        ({module.MOVIELENS: zipped(ratings())[:-40]}, {}, ValueError, "MD5"),
        ({module.MOVIELENS: b"<!DOCTYPE html> log in first"}, {}, ValueError, "28 bytes.*<!DOCTYPE html>"),
        ({module.MOVIELENS: b""}, {}, ValueError, "0 bytes"),
    ],
)
def test_movielens_says_what_it_tried_and_what_to_do(network, promised, tmp_path, answers, options, error, words):
    promised(zipped(ratings()))
    network(answers, **options)
    with pytest.raises(error, match=words) as caught:
        data.movielens(USERS, FILMS, cache=tmp_path)
    assert module.MOVIELENS in str(caught.value) and str(tmp_path / "ml-100k.zip") in str(caught.value)
    assert "by hand" in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing wrong is kept


def test_movielens_refuses_a_damaged_file_and_names_it(network, promised, tmp_path):
    network({module.MOVIELENS: promised(zipped(ratings()))})
    (tmp_path / "ml-100k.zip").write_bytes(zipped(ratings())[:500])
    with pytest.raises(ValueError, match="ml-100k.zip is not MovieLens 100K.*delete it"):
        data.movielens(USERS, FILMS, cache=tmp_path)
    (tmp_path / "ml-100k.zip").unlink()
    data.movielens(USERS, FILMS, cache=tmp_path)


def changed(place, value):
    table = ratings()
    table[place] = value
    return table


@pytest.mark.parametrize(
    "file, words",
    [
        (b"no zip at all", "expected a zip.*BadZipFile"),
        (zipped(ratings(), "ml-100k/ratings.csv"), "expected a zip.*KeyError"),
        (zipped([[]]), "expected a zip.*No columns"),
        (zipped(ratings()[:, :3]), r"four columns.*got a table \(\d+, 3\)"),
        (zipped(ratings()[:-1]), "four columns"),
        (zipped([*ratings()[:-1].tolist(), [1, 1, 5]]), "four columns.*float64"),
        (zipped([*ratings()[:-1].tolist(), [1, 1, "five", 0]]), "four columns"),
        (zipped(changed((0, 2), 0)), "column 3"),
        (zipped(changed((ratings()[:, 0] == 7, 0), 99)), "from 1 to 99 in column 1"),
        (zipped(changed((ratings()[:, 1] == 2, 1), 3)), "8 values.*column 2"),
    ],
)
def test_movielens_holds_the_file_to_its_readme(network, promised, tmp_path, file, words):
    network({module.MOVIELENS: promised(file)})
    with pytest.raises(ValueError, match=words):
        data.movielens(USERS, FILMS, cache=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        dict(users=0),
        dict(users=944),
        dict(films=1683),
        dict(films=2.5),
        dict(val=0),
        dict(test=1),
        dict(val=0.6, test=0.4),
    ],
)
def test_movielens_refuses_nonsense_before_it_asks_the_network(network, options):
    net = network({})
    with pytest.raises(ValueError, match="expected"):
        data.movielens(**options)
    assert net.asked == []


def test_movielens_refuses_too_few_for_three_parts(network, promised, tmp_path):
    network({module.MOVIELENS: promised(zipped(ratings()))})
    with pytest.raises(ValueError, match="they share 1 ratings"):
        data.movielens(1, 1, cache=tmp_path)


# --- OpenML ------------------------------------------------------------------------------------------------------


def credit(loans=90):
    """Like credit-g: numbers and categories, of which every third is bad."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"duration": rng.integers(4, 72, loans), "purpose": rng.choice(["car", "radio", "other"], loans)}
    )
    return table, pd.Series(np.where(np.arange(loans) % 3, "good", "bad"))


def openml_answers(table, y):
    """OpenML's five answers about a set, as scikit-learn reads them."""
    api, kinds = "https://www.openml.org/api/v1/json/data", {"duration": "numeric"}
    columns = {"duration": "numeric", "purpose": "{car,radio,other}", "class": "{good,bad}"}
    arff = "@relation made-up\n" + "".join(f"@attribute {name} {kind}\n" for name, kind in columns.items()) + "@data\n"
    arff += "".join(f"{a},{b},{c}\n" for (a, b), c in zip(table.itertuples(index=False, name=None), y, strict=True))
    address = "https://www.openml.org/data/v1/download/31"
    features = [
        dict(index=str(k), name=name, data_type=kinds.get(name, "nominal"), is_target=str(name == "class").lower(),
             is_ignore="false", is_row_identifier="false", number_of_missing_values="0")
        for k, name in enumerate(columns)
    ]  # fmt: skip
    description = dict(id="31", name="credit-g", version="1", format="ARFF", file_id="31", url=address, status="active",
                       description="made up", md5_checksum=hashlib.md5(arff.encode()).hexdigest())  # fmt: skip
    answers = {
        f"{api}/list/data_name/credit-g/limit/2/data_version/1": dict(data=dict(dataset=[dict(did=31)])),
        f"{api}/31": dict(data_set_description=description),
        f"{api}/features/31": dict(data_features=dict(feature=features)),
        f"{api}/qualities/31": dict(data_qualities=dict(quality=[dict(name="NumberOfInstances", value=str(len(y)))])),
    }
    return {key: json.dumps(value).encode() for key, value in answers.items()} | {address: arff.encode()}


def test_openml_reads_what_openml_sends(network, tmp_path):
    table, y = credit()
    net = network(openml_answers(table, y), host="www.openml.org")
    made = data.openml("credit-g", cache=tmp_path)
    assert made.classes == 2 and [len(part[1]) for part in (made.train, made.val, made.test)] == [63, 9, 18]
    x = torch.cat([part[0] for part in (made.train, made.val, made.test)])
    labels = torch.cat([part[1] for part in (made.train, made.val, made.test)])
    assert x.shape[1] == 4 and int((labels == 0).sum()) == 30  # "bad" comes before "good"
    duration = x[:, 0].sort().values.double()  # standardised: a straight line of what was sent
    sent = torch.tensor(np.sort(table.duration.to_numpy()).astype(float))
    assert np.corrcoef(duration, sent)[0, 1] == pytest.approx(1, abs=1e-9)
    asked = len(net.asked)
    data.openml("credit-g", cache=tmp_path)
    assert len(net.asked) == asked == 5  # the second time it lay in the folder


def test_openml_refuses_a_file_that_was_cut(network, tmp_path):
    answers = openml_answers(*credit())
    answers["https://www.openml.org/data/v1/download/31"] = answers["https://www.openml.org/data/v1/download/31"][:-50]
    network(answers)
    with pytest.raises(ValueError, match="md5 checksum"):
        data.openml("credit-g", cache=tmp_path)


def test_openml_says_clearly_that_a_download_broke_off(network, tmp_path):
    network(openml_answers(*credit()), body=Short)
    with pytest.raises(ConnectionError, match="credit-g.*IncompleteRead"):
        data.openml("credit-g", cache=tmp_path)


def served(x, y):
    return lambda *args, **kwargs: (x, y)


def test_openml_says_clearly_that_it_needs_a_network(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(ConnectionError, match="needs a network the first time"):
        data.openml("credit-g")


def test_openml_turns_categories_into_columns_and_standardises_each(monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"age": rng.normal(40, 10, 200), "one": np.ones(200), "job": pd.Categorical(rng.choice(list("abc"), 200))}
    )
    y = pd.Series(rng.choice(["good", "bad"], 200), dtype="category")
    monkeypatch.setattr("sklearn.datasets.fetch_openml", served(table, y))
    made = data.openml("credit-g", val=0.1, test=0.2)
    assert [len(p[0]) for p in (made.train, made.val, made.test)] == [140, 20, 40] and made.real
    x = made.train[0].double()
    assert x.shape[1] == 5 and made.classes == 2
    assert torch.allclose(x.mean(0), torch.zeros(5).double(), atol=1e-6)
    deviation = x.std(0, correction=0)
    assert deviation[1] == 0 and torch.allclose(deviation[[0, 2, 3, 4]], torch.ones(4).double(), atol=1e-5)


def test_openml_treats_pixels_together_and_refuses_missing_values(monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 256, (100, 4)))
    table.iloc[0, 0], table[3] = 255, 0
    y = pd.Series(rng.integers(0, 3, 100))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", served(table, y))
    x = data.openml("pixels").train[0].double()
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert x[:, 3].std() == 0 and x[:, 3].mean() < -0.5  # a black pixel stays darker than the mean
    monkeypatch.setattr("sklearn.datasets.fetch_openml", served(table.astype(float).replace(255, np.nan), y))
    with pytest.raises(ValueError, match="missing values"):
        data.openml("pixels")


# --- Chapter 13's way to both ------------------------------------------------------------------------------------


def code_cell(words):
    """The source of the chapter's one code cell that holds these words."""
    chapter = json.loads((ROOT / "chapters" / "13-applications.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in chapter["cells"] if cell["cell_type"] == "code"]
    (source,) = [source for source in cells if words in source]
    return source


@pytest.fixture(scope="module")
def chapter():
    """What the chapter's first cell leaves behind."""
    names = {"bl": bl}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.pyplot.show", lambda: None)
        exec(code_cell("def critical(task):"), names)
    return names


def test_chapter_13_asks_no_network_unless_it_is_told_to(network, chapter, capsys):
    net = network({})
    exec(code_cell("NETWORK = False"), dict(chapter))
    assert net.asked == [] and "neither MovieLens nor credit-g was read" in capsys.readouterr().out


def test_chapter_13_takes_real_sets_through_its_protocol(network, promised, chapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    script = chapter["script"]
    who, what, liking = script.tastes(np.random.default_rng(0), 9000, users=110, items=90)
    table = np.unique(np.stack([who + 1, what + 1], 1), axis=0, return_index=True)
    stars = np.clip(np.round(3 + liking), 1, 5).astype(int)[table[1]]
    table = np.column_stack([table[0], stars, 880_000_000 + np.arange(len(stars))])
    answers = {module.MOVIELENS: promised(zipped(table))}
    monkeypatch.setattr(module, "MOVIELENS_SIZE", (len(table), 110, 90))
    loans, _ = credit(600)
    odds = (loans.duration - 38) / 8 + 2 * (loans.purpose == "car") - 1
    bad = np.random.default_rng(1).random(600) < 1 / (1 + np.exp(-odds))
    net = network(answers | openml_answers(loans, pd.Series(np.where(bad, "bad", "good"))))
    sizes = (16, 64, 256)
    monkeypatch.setitem(chapter, "SIZES", np.array(sizes, float))
    fewer = dict(count=range(1304, 1307), watch=range(1320, 1322), quality=range(1340, 1343), sizes=sizes)
    monkeypatch.setattr(script, "rows", partial(script.rows, **fewer))
    monkeypatch.setattr(script, "CHOOSE", range(1300, 1302))
    monkeypatch.setattr(script, "TASKS", dict(script.TASKS))
    exec(code_cell("NETWORK = False").replace("NETWORK = False", "NETWORK = True", 1), chapter)
    said = capsys.readouterr().out
    assert len(net.asked) == 6 and said.count("B_crit") == 2 and said.count("equal steps") == 2
    made = chapter["rows"][chapter["rows"].task.isin(["film", "loan"])]
    assert made.groupby("task").size().to_dict() == {"film": 9 + 10 + 18, "loan": 9 + 10 + 18}
    assert np.isfinite(made.value).all()
    for task, constant in (("film", np.var(stars)), ("loan", 0.7)):
        assert 0 < script.TASKS[task][2] < constant
