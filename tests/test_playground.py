"""The playground: its numbers against other programs, and every control by keyboard, mouse and touch."""

import json
import re
import shutil
from urllib.parse import parse_qs, quote

import nbformat
import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from scipy import optimize, stats

import batchlab as bl
from batchlab.playground import _piece, twin

from conftest import ROOT

NAMES = tuple(_piece.pieces())
MOST_BYTES = 60_000  # the playground's files in all

# --- The numbers, in Python ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),  # published with Random123, kat_vectors
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_generator_gives_its_authors_answers(counter, key, words):
    assert " ".join(f"{word:08x}" for word in twin.philox(counter, key)) == words


def test_normal_numbers_are_normal_and_independent():
    z = twin.normals(3, 0, np.arange(200)[:, None], np.arange(250)).reshape(4, -1)  # (4, 50,000)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(z) - np.eye(4)).max() < 4 / np.sqrt(z.shape[1])
    assert abs(np.corrcoef(z[0, 1:], z[0, :-1])[0, 1]) < 4 / np.sqrt(z.shape[1])


def test_particles_follow_the_exact_risk_of_the_noisy_quadratic():
    settings = {"surface": "valley", "batch_size": 4, "lr": 0.3, "particles": 200}
    seen = np.mean([twin.mean_loss(twin.walk(120, seed=seed, **settings), "valley") for seed in range(20)], axis=0)
    exact = bl.noisy_quadratic.risk([1 / 20, 1], [1, 1], 0.3, 4, 120, [-2.4, 1.6])
    assert seen[:3] == pytest.approx(exact[:3], rel=0.02)
    assert seen[40:].mean() == pytest.approx(exact[40:].mean(), rel=0.02)


@pytest.mark.parametrize(("momentum", "lr"), [(0, 0.3), (0.9, 0.05)])
def test_the_floor_is_where_the_particles_settle(momentum, lr):
    settings = {"surface": "bowl", "batch_size": 2, "lr": lr, "momentum": momentum, "particles": 200}
    path = twin.walk(600, **settings)
    assert twin.mean_loss(path[300:], "bowl").mean() == pytest.approx(twin.floor(**settings), rel=0.03)
    if not momentum:
        assert twin.floor(**settings) == pytest.approx(bl.noisy_quadratic.floor([1, 1], [1, 1], lr, 2))


def test_there_is_no_floor_past_the_largest_rate():
    assert twin.floor(surface="bowl", lr=2.0) == np.inf
    assert np.isfinite(twin.floor(surface="bowl", lr=1.9))
    assert twin.mean_loss(twin.walk(300, surface="bowl", lr=2.2), "bowl")[-1] > 1e6


@pytest.mark.parametrize(("directions", "drawn"), [(2, "with"), (100, "with"), (100, "without")])
def test_batches_scatter_as_the_laws_say(directions, drawn):
    settings = {"batch_size": 512, "noise_scale": 1000.0, "directions": directions, "drawn": drawn}
    points = np.concatenate([twin.scatter(seed=seed, **settings) for seed in range(40)])
    laws = twin.laws(**settings)
    assert ((points - [1, 0]) ** 2).sum(1).mean() == pytest.approx(laws["miss"], rel=0.04)
    assert (points**2).sum(1).mean() == pytest.approx(laws["length"], rel=0.04)
    if directions == 100:
        assert (points[:, 0] / np.hypot(*points.T)).mean() == pytest.approx(laws["cosine"], rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"preset": name} for name in _piece.pieces()["target"]["presets"]]
    + [{"devices": 8, "communication_ms": 5.0}, {"devices": 1024, "critical_batch": 3.0, "knee": 2.0}],
)
def test_the_best_batch_is_where_the_time_is_least(settings):
    star, devices = twin.best_batch(**settings), settings.get("devices", 1)
    found = optimize.minimize_scalar(
        lambda log: np.log(twin.plan(np.exp(log), **settings)["seconds"]),
        bounds=(np.log(devices), np.log(1e6)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert star == pytest.approx(np.exp(found.x), rel=1e-4)


def test_time_is_steps_times_a_step_and_cost_counts_every_device():
    plan = twin.plan(s_min=100, critical_batch=64, fixed_ms=10, knee=32, devices=2, communication_ms=5, batch_size=64,
                     price=3)  # fmt: skip
    assert plan == pytest.approx({"steps": 200, "step": 0.025, "seconds": 5, "examples": 12800, "cost": 5 * 6 / 3600})


def three_digits(value):
    return float(f"{value:.3g}")


@pytest.mark.parametrize(
    ("preset", "network", "place"),
    [
        ("small-one-core", "small", "one core"),
        ("small-all-cores", "small", "all cores"),
        ("large-one-core", "large", "one core"),
        ("large-all-cores", "large", "all cores"),
        ("large-gpu", "large", "GPU"),
    ],
)
def test_a_preset_of_time_to_target_is_what_was_measured(preset, network, place):
    stored = json.loads((bl.results.folder("results") / "two-machines.json").read_text(encoding="utf-8"))["rows"]
    rows = [row for row in stored if row["network"] == network]
    sizes = [row["batch_size"] for row in rows]
    steps = bl.stats.fit_steps_to_target(sizes, np.array([row["steps"] for row in rows]).T, resamples=100)
    law = bl.throughput.fit_step_law(sizes, [row[place][:1] for row in rows], resamples=10)
    told = _piece.pieces()["target"]["presets"][preset]
    assert told["s_min"] == three_digits(steps.s_min.estimate)
    assert told["critical_batch"] == three_digits(steps.b_c.estimate)
    assert told["fixed_ms"] == three_digits(1000 * law.fixed.estimate)
    assert told["knee"] == three_digits(law.knee.estimate)


@pytest.mark.parametrize(
    ("preset", "printed"),
    [
        ("digits", r"B_simple ≈ ([\d.]+) examples"),
        ("digits-late", r"after 200 steps: B_simple ≈ (\d+)"),
        ("text", r"B_simple ≈ ([\d.]+) \["),
    ],
)
def test_a_preset_of_noise_is_what_chapter_3_printed(preset, printed):
    cells = nbformat.read(ROOT / "chapters" / "03-mini-batch.ipynb", as_version=4).cells
    text = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    (found,) = re.findall(printed, text)
    assert _piece.pieces()["noise"]["presets"][preset]["noise_scale"] == pytest.approx(float(found), rel=0.005)


# --- Pieces as Python has them ---------------------------------------------------------------------------------------

MAKERS = {"descent": bl.playground.descent, "noise": bl.playground.noise,
          "target": bl.playground.time_to_target, "change": bl.playground.change_batch}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("descent", {"batch_size": 0}, "batch_size = 0: expected a whole number, at least 1 and at most 1024"),
        ("descent", {"batch_size": 2.0}, "batch_size = 2.0: expected a whole number"),
        ("descent", {"lr": True}, "lr = True: expected a finite number"),
        ("descent", {"momentum": 1}, "momentum = 1: expected a finite number, at least 0 and at most 0.99"),
        ("descent", {"surface": "hill"}, "surface = 'hill': expected one of 'bowl', 'valley', 'saddle'"),
        ("descent", {"seed": 2**32}, "seed = 4294967296: expected a whole number"),
        ("descent", {"speed": 3}, "settings = 'speed': expected one of surface, batch_size"),
        ("noise", {"preset": "mnist"}, "preset = 'mnist': expected one of 'own', 'digits'"),
        ("noise", {"preset": "digits", "noise_scale": 3}, "preset = 'digits': expected 'own' with numbers"),
        ("target", {"s_min": 0}, "s_min = 0: expected a finite number, above 0"),
        ("target", {"price": float("nan")}, "price = nan: expected a finite number, at least 0"),
        ("change", {"lr": None}, "lr = None: expected a finite number"),
        ("change", {"beta2": 1.0}, "beta2 = 1.0: expected a finite number, at least 0 and below 1"),
    ],
)
def test_a_bad_setting_is_refused(name, settings, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        MAKERS[name](**settings)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_good_settings(name):
    assert _piece.settled(name, {}) == _piece.settled(name, _piece.settled(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_is_a_plain_figure_where_nothing_can_move(name, monkeypatch):
    monkeypatch.setattr(_piece, "find_spec", lambda _: None)
    bundle = MAKERS[name]()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", _piece.MIME}
    assert bundle["image/png"].startswith("iVBORw0KGgo")
    assert bundle[_piece.MIME] == {"piece": name, "settings": _piece.settled(name, {})}
    assert MAKERS[name]()._repr_mimebundle_() == bundle


def test_a_piece_moves_where_anywidget_is_and_its_settings_follow_the_reader():
    pytest.importorskip("anywidget")
    piece = bl.playground.descent(lr=0.1)
    bundle = piece._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", _piece.MIME} <= set(bundle)
    piece._widget.settings = {**piece.settings, "lr": 0.3}
    assert piece.settings["lr"] == 0.3 and "lr=0.3" in repr(piece)


def test_the_playground_is_small_and_asks_nobody():
    files = [path for path in _piece.PAGE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for name in NAMES:
        text = _piece.source(name)
        assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|</script", text, re.MULTILINE)
        assert set(re.findall(r"https?://[^\"'`]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xhtml",
        }


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    import test_browser
    from playwright.sync_api import sync_playwright

    path = test_browser.os.environ.get("BATCHLAB_CHROMIUM") or next(
        filter(None, map(shutil.which, test_browser.NAMES)), None
    )
    if path is None:
        pytest.skip("no Chromium: put one on PATH, or its path into BATCHLAB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=test_browser.FLAGS)
        yield browser
        browser.close()


def page_of(name, settings):
    """A page of the book's form that holds one piece and what it needs."""
    import pages

    head = '<meta charset="utf-8"><title>t</title><link rel="icon" href="data:,">'
    style = re.sub(r"@font-face {.*?}", "", pages.style(), flags=re.DOTALL)
    head += f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
    body = f"<main><h1>t</h1>{_piece.embedded(name, settings)}</main>{_piece.script(name)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body style="display: block">{body}</body></html>'


@pytest.fixture
def show(browser):
    """Return a function that opens a piece in a page of its own and returns that page."""
    contexts, troubles = [], []

    def show(name, query="", width=900, settings=None, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        text = page_of(name, settings or {})
        page.route("**/*", lambda route: route.fulfill(body=text, content_type="text/html; charset=utf-8"))
        page.goto(f"http://piece.example/{name}.html{query}", wait_until="load")
        return page

    yield show
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def javascript(browser):
    """Return a function that evaluates an expression of a piece's module, called m, with an argument a."""
    page = browser.new_page()

    def evaluate(name, expression, argument):
        address = "data:text/javascript;charset=utf-8," + quote(_piece.source(name))
        code = f"async ([address, a]) => {{ const m = await import(address); return {expression}; }}"
        return page.evaluate(code, [address, argument])

    yield evaluate
    page.close()


DESCENTS = [
    {"surface": "bowl", "batch_size": 1, "lr": 0.1},
    {"surface": "valley", "batch_size": 32, "lr": 0.5, "momentum": 0.9, "seed": 4294967295},
    {"surface": "saddle", "batch_size": 64, "lr": 0.2, "momentum": 0.5, "seed": 12, "particles": 200},
]


@pytest.mark.site
@pytest.mark.parametrize("settings", DESCENTS, ids=lambda s: s["surface"])
def test_the_page_walks_as_python_does(javascript, settings):
    told = _piece.settled("descent", settings)
    run = "(() => { const c = m.begin(a); for (let i = 0; i < 300; i++) m.advance(c, a); return c.at; })()"
    at = np.array(javascript("descent", run, told))[:, :2]
    assert at == pytest.approx(twin.walk(300, **settings)[-1], abs=1e-6)
    assert javascript("descent", "m.floor(a)", told) == pytest.approx(twin.floor(**settings), rel=1e-9)


@pytest.mark.site
@pytest.mark.parametrize("momentum", [0, 0.7])
def test_the_page_knows_the_expected_loss(javascript, momentum):
    told = _piece.settled("descent", {"lr": 0.4, "momentum": momentum, "batch_size": 3})
    run = "[...Array(200)].map(() => m.expectedLoss(m.advance(c, a), a))"
    seen = javascript("descent", f"(() => {{ const c = m.begin(a); return {run}; }})()", told)
    if momentum == 0:
        exact = bl.noisy_quadratic.risk([1 / 20, 1], [1, 1], 0.4, 3, 200, [-2.4, 1.6])
        assert seen == pytest.approx(exact[1:], rel=1e-9)
    else:  # as two linear maps of (w, v), one a curvature, whose covariance goes through the Kronecker square
        for_each = []
        for h, w in ((1 / 20, -2.4), (1, 1.6)):
            step = np.array([[1 - 0.4 * h, -0.4 * momentum], [h, momentum]])
            kick, square = np.array([-0.4, 1.0]), np.kron(step, step)
            moments, path = np.array([w * w, 0, 0, 0]), []
            for _ in range(200):
                moments = square @ moments + np.kron(kick, kick) / 3
                path.append(h / 2 * moments[0])
            for_each.append(path)
        assert seen == pytest.approx(np.sum(for_each, axis=0), rel=1e-9)


@pytest.mark.site
@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "text", "directions": 100, "seed": 5}, {"drawn": "without", "batch_size": 1024, "directions": 5}],
)
def test_the_page_scatters_as_python_does(javascript, settings):
    told = _piece.settled("noise", settings)
    assert np.array(javascript("noise", "m.scatter(a)", told)) == pytest.approx(twin.scatter(**settings), abs=1e-6)
    assert javascript("noise", "m.laws(a)", told) == pytest.approx(twin.laws(**settings), rel=1e-9)
    points = twin.scatter(**settings)
    means = {"miss": ((points - [1, 0]) ** 2).sum(1).mean(), "length": (points**2).sum(1).mean()}
    means["cosine"] = (points[:, 0] / np.linalg.norm(points, axis=1)).mean()
    assert javascript("noise", "m.found(a)", points.tolist()) == pytest.approx(means, rel=1e-9)


@pytest.mark.site
@pytest.mark.parametrize(
    "settings", [{}, {"preset": "large-gpu", "devices": 64, "communication_ms": 0.7}, {"knee": 1e-3, "price": 0}]
)
def test_the_page_plans_as_python_does(javascript, settings):
    told = _piece.settled("target", settings)
    assert javascript("target", "m.plan(a, a.batch_size)", told) == pytest.approx(twin.plan(**settings), rel=1e-9)
    assert javascript("target", "m.best(a)", told) == pytest.approx(twin.best_batch(**settings), rel=1e-9)


CHANGES = [
    {"optimizer": optimizer, "batch_size": before, "new_batch_size": after, "keep": keep, "ema": 0.999, **rule}
    for optimizer in ("sgd", "adam", "adamw")
    for before, after in ((256, 64), (32, 4096))
    for keep in ("advised", "none", "decays")
    for rule in ({}, {"rule": "sqrt"}, {"rule": "linear"}, {"rule": "none"}, {"rule": "gain", "noise_scale": 300.5},
                 {"noise_scale": 7.0, "critical_batch": 50, "momentum": None, "weight_decay": None})
]  # fmt: skip


@pytest.mark.site
def test_the_page_rescales_as_rescale_does(javascript):
    told = [_piece.settled("change", settings) for settings in CHANGES]
    specs = _piece.pieces()["change"]["settings"]
    one = """(s) => {
        const { old, keep } = m.asked(s, a[1]);
        return m.rescale(old, s.batch_size, s.new_batch_size, { ...s, keep });
    }"""
    for settings, seen in zip(CHANGES, javascript("change", f"a[0].map({one})", [told, specs]), strict=True):
        after, rules, _ = twin.rescaled(**settings)
        assert seen["settings"] == pytest.approx(dict(after), rel=1e-9), settings
        assert seen["rules"] == rules, settings


# Every control, by every way there is to move it.

SHOWN = [  # what a piece begins with, so that every control changes what is seen
    ("descent", {"lr": 0.1}),
    ("noise", {}),
    ("target", {"devices": 8, "communication_ms": 1.0}),
    ("change", {}),
    ("change", {"optimizer": "adamw", "lr": 0.01}),
]
WAYS = {"keyboard": {}, "mouse": {}, "touch": {"has_touch": True, "is_mobile": True, "width": 390}}


def seen(page):
    """What a piece shows: its view, drawings and all."""
    return page.evaluate(
        """() => [document.querySelector(".pg-view").innerHTML,
                  document.querySelector("canvas")?.toDataURL()].join()"""
    )


def address(page):
    return parse_qs(page.evaluate("location.search.slice(1)"), keep_blank_values=True)


def values(page):
    """What every control of a piece holds, those that are hidden too."""
    return page.locator(".pg-control :is(input, select)").evaluate_all("fields => fields.map(field => field.value)")


def move(page, box, way):
    """Change one control as a reader would."""
    field = box.locator("input, select")
    kind = field.evaluate("field => field.type")
    if kind == "range":
        if way == "keyboard":
            field.focus()
            page.keyboard.press("ArrowRight")
        else:
            room, far = field.bounding_box(), field.evaluate("field => field.value / field.max > 0.5 ? 0.2 : 0.8")
            at = room["x"] + room["width"] * far, room["y"] + room["height"] / 2
            page.touchscreen.tap(*at) if way == "touch" else page.mouse.click(*at)
    elif kind == "number":
        {"keyboard": field.focus, "mouse": field.click, "touch": field.tap}[way]()
        page.keyboard.press("Control+a")
        page.keyboard.type("7" if "seed" in field.get_attribute("id") else "0.5")
    elif way == "keyboard":
        before = field.input_value()
        field.press("ArrowDown")
        if field.input_value() == before:
            field.press("ArrowUp")
    else:  # the list that opens is the system's own: a press opens it, and a choice comes from it
        field.evaluate("field => field.addEventListener('mousedown', () => (field.pressed = true), { once: true })")
        field.tap() if way == "touch" else field.click()
        assert field.evaluate("field => field.pressed && field === document.activeElement")
        others = field.evaluate("field => [...field.options].map(o => o.value).filter(v => v !== field.value)")
        field.select_option(others[-1])


def controls(page):
    """The names of the settings that a piece shows a control for, in order."""
    return page.locator(".pg-control:visible").evaluate_all("boxes => boxes.map(box => box.dataset.name)")


@pytest.mark.site
def test_every_setting_has_a_control_among_those_that_are_moved(show):
    found = {name: set() for name in NAMES}
    for name, settings in SHOWN:
        found[name] |= set(controls(show(name, settings=settings)))
    assert found == {name: set(piece["settings"]) for name, piece in _piece.pieces().items()}


@pytest.mark.site
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "settings"), SHOWN, ids=lambda x: x if isinstance(x, str) else "")
def test_every_control_moves(show, name, settings, way):
    page = show(name, settings=settings, **WAYS[way])
    if name == "descent":
        page.get_by_role("button", name="Step").click()
    late = {"optimizer": 1, "rule": 2}  # other controls come and go with the one, and the other may refuse to answer
    names = sorted(controls(page), key=lambda control: late.get(control, 0))
    for control in names:
        box = page.locator(f".pg-control[data-name={control}]")
        if control == "seed" and name == "descent":
            page.get_by_role("button", name="Step").click()  # at the start all seeds look alike
        box.scroll_into_view_if_needed()
        before = seen(page)
        move(page, box, way)
        assert f"{name}.{control}" in address(page), control
        assert seen(page) != before, control
    again = show(name, page.evaluate("location.search"), settings=settings, **WAYS[way])
    assert values(again) == values(page)
    if name != "descent":  # whose runs begin anew
        assert seen(again) == seen(page)


@pytest.mark.site
@pytest.mark.parametrize(("name", "settings"), SHOWN, ids=lambda x: x if isinstance(x, str) else "")
def test_the_tab_key_reaches_every_control_in_order_and_shows_where_it_is(show, name, settings):
    page, reached = show(name, settings=settings), []
    buttons = page.locator(".pg button").all_inner_texts()
    focused = """() => {
        const at = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(at);
        const name = at.closest(".pg-control")?.dataset.name ?? at.textContent;
        return [name, outlineStyle !== "none" && parseFloat(outlineWidth) >= 1];
    }"""
    expected = [*controls(page), *buttons]
    for _ in expected:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached == [[control, True] for control in expected]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused)[0] == expected[-2]


def drag(page, box, shares, way):
    """Drag the thumb of a slider from one share of its width to another, with the mouse or a finger."""
    box.scroll_into_view_if_needed()
    room = box.locator("input").bounding_box()
    (x0, x1), y = (room["x"] + room["width"] * share for share in shares), room["y"] + room["height"] / 2
    path = [x0 + (x1 - x0) * k / 5 for k in range(6)]
    if way == "mouse":
        page.mouse.move(x0, y)
        page.mouse.down()
        for x in path:
            page.mouse.move(x, y)
        page.mouse.up()
        return
    finger = page.context.new_cdp_session(page)
    for kind, x in [("touchStart", x0), *(("touchMove", x) for x in path[1:])]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def sliders(name):
    return [control for control, spec in _piece.pieces()[name]["settings"].items() if "slider" in spec]


@pytest.mark.site
@pytest.mark.parametrize("way", ["mouse", "touch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_slider_follows_the_mouse_and_the_finger_to_both_ends(show, name, way):
    page = show(name, **WAYS[way])
    for control in sliders(name):
        box, field = page.locator(f"[data-name={control}]"), page.locator(f"[data-name={control}] input")
        last = field.get_attribute("max")
        here = int(field.input_value()) / int(last)
        at = here + (0.5 - here) * 0.03  # on the thumb, which stays within the track
        drag(page, box, (at, 1.0), way)
        assert field.input_value() == last, control
        drag(page, box, (0.985, 0.0), way)
        assert field.input_value() == "0", control


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_home_and_end_lead_to_the_ends_of_a_slider_and_its_words_follow(show, name):
    page = show(name)
    for control in sliders(name):
        field, spec = page.locator(f"[data-name={control}] input"), _piece.pieces()[name]["settings"][control]
        for key, end in (("Home", spec["at_least"]), ("End", spec["at_most"])):
            field.press(key)
            said = page.locator(f"[data-name={control}] output").inner_text()
            assert float(said.replace(",", "")) == three_digits(end), control
            assert field.get_attribute("aria-valuetext") == f"{said} {spec.get('unit', '')}".strip(), control


@pytest.mark.site
@pytest.mark.parametrize(("name", "settings"), SHOWN, ids=lambda x: x if isinstance(x, str) else "")
def test_a_screen_reader_hears_what_a_control_is_called_and_what_came_of_it(show, name, settings):
    page = show(name, settings=settings)
    said = "before => !['', before].includes(document.querySelector('[role=status]').textContent)"
    before = page.wait_for_function(said, arg="") and page.locator("[role=status]").text_content()
    for control in controls(page)[name == "change" :][:3]:  # enough: the frame is the same for all
        spec = _piece.pieces()[name]["settings"][control]
        role = "combobox" if "choices" in spec else "slider" if "slider" in spec else "spinbutton"
        field = page.get_by_role(role, name=spec["label"], exact=True)
        box = page.locator(f".pg-control[data-name={control}]")
        assert box.locator("input, select").evaluate("(own, found) => own === found", field.element_handle())
        move(page, box, "keyboard")
        page.wait_for_function(said, arg=before)
        before = page.locator("[role=status]").text_content()
    drawn = page.locator("canvas, .pg-chart").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert [label for label in drawn if not re.search(r"\d", label or "")] == []
    assert name == "change" or any(before.startswith(label[:40]) or label.startswith(before[:40]) for label in drawn)


CHAPTER_9 = {"preset": "large-gpu", "devices": 8, "communication_ms": 1.0, "batch_size": 512}


@pytest.mark.site
@pytest.mark.parametrize(
    ("name", "settings"), [*SHOWN, ("target", CHAPTER_9)],  # its axis ends at a tick
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_no_word_of_a_chart_is_cut_at_its_edge(show, name, settings):
    page = show(name, settings=settings)
    cut = """svg => { const box = svg.getBoundingClientRect(); return [...svg.querySelectorAll("text")].filter(text => {
        const r = text.getBoundingClientRect(); return r.left < box.left - 1 || r.right > box.right + 1;
    }).map(text => text.textContent); }"""
    charts = page.locator(".pg-chart").all()
    assert [chart.evaluate(cut) for chart in charts] == [[]] * len(charts)


@pytest.mark.site
@pytest.mark.parametrize("width", [390, 360])
def test_no_name_of_a_setting_is_torn_on_a_telephone(show, width):
    most = {"batch_size": 2**20, "new_batch_size": 2**19, "keep": "none", "ema": 0.9999}
    for optimizer in ("sgd", "adamw"):
        page = show("change", settings={"optimizer": optimizer, **most}, width=width)
        torn = """cells => cells.filter(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return new Set([...range.getClientRects()].map(line => line.top)).size > 1;
        }).map(cell => cell.textContent)"""
        assert page.locator("tbody th, thead th, tbody td:not(:last-child)").evaluate_all(torn) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_is_put_back_leaves_the_address(show, name):
    page = show(name, "?other=2")
    field = page.locator(f"[data-name={sliders(name)[0]}] input")
    field.press("ArrowRight")
    assert address(page) != {"other": ["2"]}
    field.press("ArrowLeft")
    assert address(page) == {"other": ["2"]}


def press(page, name, way):
    button = page.get_by_role("button", name=name, exact=True)
    if way == "keyboard":
        button.press("Enter")
    else:
        button.tap() if way == "touch" else button.click()


@pytest.mark.site
@pytest.mark.parametrize("way", WAYS)
def test_descent_plays_pauses_steps_and_starts_again(show, way):
    page = show("descent", **WAYS[way])
    count = page.locator(".pg-count")
    press(page, "Step", way)
    assert count.inner_text() == "step 1"
    press(page, "Play", way)
    page.wait_for_function("document.querySelector('.pg-count').textContent > 'step 2'")
    press(page, "Pause", way)
    stopped = count.inner_text()
    page.wait_for_timeout(100)
    assert count.inner_text() == stopped
    page.wait_for_function("text => document.querySelector('[role=status]').textContent.startsWith(text)",
                           arg=stopped.replace("step", "Step"))  # fmt: skip
    press(page, "Start again", way)
    assert count.inner_text() == "step 0"


@pytest.mark.site
def test_a_control_keeps_its_keys_to_itself_and_leaves_the_others(show):
    """JupyterLab takes the arrow keys, where they reach it; the book's search is opened by a sign."""
    page = show("descent")
    page.evaluate("heard = []; document.addEventListener('keydown', (event) => heard.push(event.key))")
    page.locator("[data-name=lr] input").focus()
    for key in ("ArrowRight", "Home", "/"):
        page.keyboard.press(key)
    assert page.evaluate("heard") == ["/"]


@pytest.mark.site
@pytest.mark.parametrize("way", WAYS)
def test_who_asked_for_less_motion_sees_none(show, way):
    page, count = show("descent", reduced_motion="reduce", **WAYS[way]), ".pg-count"
    page.evaluate("frames = 0; const ask = requestAnimationFrame; requestAnimationFrame = (f) => (frames++, ask(f)); 0")
    for steps in (100, 200):
        press(page, "Run 100 steps", way)
        assert page.locator(count).inner_text() == f"step {steps}"
    page.wait_for_timeout(100)
    assert page.locator(count).inner_text() == "step 200"
    assert page.evaluate("frames") == 0 and page.evaluate("document.getAnimations().length") == 0
    press(page, "Step", way)
    assert page.locator(count).inner_text() == "step 201"
    press(page, "Start again", way)
    assert page.locator(count).inner_text() == "step 0"


@pytest.mark.site
def test_descent_ends_after_a_thousand_steps_and_then_begins_anew(show):
    page = show("descent", reduced_motion="reduce")
    for _ in range(10):
        page.get_by_role("button", name="Run 100 steps").click()
    assert page.locator(".pg-count").inner_text() == "step 1000"
    assert page.locator("[role=status]").inner_text().endswith("Here it ends.")
    page.get_by_role("button", name="Run 100 steps").click()
    assert page.locator(".pg-count").inner_text() == "step 100"


@pytest.mark.site
def test_an_address_holds_the_settings_and_a_bad_one_is_told(show):
    page = show("descent", "?descent.lr=0.05&descent.batch_size=48&descent.momentum=3&descent.speed=1&other=2")
    assert page.locator("[data-name=lr] output").inner_text() == "0.05"
    assert page.locator("[data-name=batch_size] output").inner_text() == "48"
    assert page.locator("[data-name=momentum] output").inner_text() == "0"
    status = page.locator("[role=status]")
    page.wait_for_function("document.querySelector('[role=status]').textContent")
    said = status.inner_text()
    assert "momentum = 3 in the address was not used: expected a number at least 0 and at most 0.99." in said
    assert "speed = 1 in the address was not used: expected one of surface, batch_size" in said
    page.locator("[data-name=lr] input").press("ArrowRight")
    assert address(page)["other"] == ["2"]
    again = show("descent", page.evaluate("location.search"))
    shown = again.locator("[data-name=lr] output").inner_text()
    assert shown == page.locator("[data-name=lr] output").inner_text() != "0.05"


@pytest.mark.site
def test_an_address_may_name_a_preset_and_a_number_of_ones_own_leaves_it(show):
    page = show("target", "?target.preset=large-gpu")
    assert page.locator("[data-name=knee] input").input_value() == "3780"
    assert page.locator("td", has_text="532").count()
    page.locator("[data-name=knee] input").fill("100")
    assert page.locator("[data-name=preset] select").input_value() == "own"
    for query, knee in (("target.knee=100", "100"), ("target.preset=large-gpu&target.s_min=5", "3780")):
        page = show("target", f"?{query}")
        assert page.locator("[data-name=preset] select").input_value() == "own"
        assert page.locator("[data-name=knee] input").input_value() == knee
    page = show("target", "?target.preset=toString&target.toString=1")
    assert page.locator("[data-name=preset] select").input_value() == "large-one-core"


@pytest.mark.site
@pytest.mark.parametrize("typed", ["0", "-3", "", "e"])
def test_a_bad_number_is_refused_beside_its_field(show, typed):
    page = show("target")
    field, before = page.locator("[data-name=knee] input"), seen(page)
    field.focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type(typed)
    assert field.get_attribute("aria-invalid") == "true"
    assert page.locator("[data-name=knee] output").inner_text() == "expected a number above 0"
    assert seen(page) == before
    field.fill("30.5")
    assert field.get_attribute("aria-invalid") is None


JUPYTER = """(() => {  // as anywidget has it: who sets a value hears of it as well
    const hears = [], model = {
        settings: a, saved: 0,
        get: () => model.settings,
        set: (_, settings) => { model.settings = settings; hears.forEach((tell) => tell()); },
        save_changes: () => { model.saved += 1; },
        on: (_, tell) => hears.push(tell),
    };
    const el = document.body.appendChild(document.createElement("div")), one = (query) => el.querySelector(query);
    m.default.render({ model, el });
    el.querySelectorAll("button")[1].click();
    one("[data-name=batch_size] input").value = 5;
    one("[data-name=batch_size] input").dispatchEvent(new Event("input"));
    const moved = [model.settings.batch_size, model.saved, one(".pg-count").textContent];
    model.set("settings", { ...model.settings, lr: 0.05 });
    return [...moved, one("[data-name=lr] output").textContent, one(".pg-count").textContent];
})()"""


@pytest.mark.site
def test_in_jupyter_settings_go_to_python_and_come_from_it(javascript):
    told = _piece.settled("descent", {})
    assert javascript("descent", JUPYTER, told) == [32, 1, "step 1", "0.05", "step 0"]


@pytest.mark.site
def test_what_cannot_be_had_is_said(show):
    page = show("target", settings={"devices": 256, "batch_size": 128})
    page.get_by_text("256 devices need a batch of 256 at least").wait_for()
    page = show("descent", settings={"lr": 4.0})
    page.get_by_text("No floor: the rate is above 2 (1 + μ) / h = 2").wait_for()
    page = show("change", settings={"rule": "gain"})
    page.locator(".pg-warning", has_text="The gain needs a noise scale").wait_for()
    page = show("change", settings={"critical_batch": 100})
    page.locator(".pg-warning", has_text="Past the critical batch size").wait_for()
    assert 'past_critical="warn"' in page.locator("pre").inner_text()


@pytest.mark.site
def test_the_line_of_python_gives_what_the_page_shows(show):
    page = show("change", settings={"optimizer": "adamw", "keep": "none", "noise_scale": 90.0, "critical_batch": 9.0})
    with pytest.warns(UserWarning, match="above critical_batch"):
        after = eval(page.locator("pre").inner_text(), {"bl": bl}).settings
    cells = "rows => rows.map(row => [row.cells[0].textContent, Number(row.cells[2].textContent)])"
    assert dict(page.locator("tbody tr").evaluate_all(cells)) == pytest.approx(dict(after), rel=1e-5)


LOOKED_AT = [*SHOWN, ("target", {"devices": 256, "batch_size": 128}), ("change", {"rule": "gain"}),
             ("change", {"critical_batch": 100.0}), ("descent", {"surface": "saddle", "lr": 4.0})]  # fmt: skip


@pytest.mark.site
@pytest.mark.parametrize(("name", "settings"), LOOKED_AT, ids=lambda x: x if isinstance(x, str) else "")
def test_axe_finds_nothing_and_nothing_sticks_out(show, name, settings):
    import test_browser

    page = show(name, settings=settings)
    field = page.locator("input[type=number]").first
    field.fill("-1")
    found = test_browser.violations(page)
    page.emulate_media(color_scheme="dark")
    found += test_browser.violations(page, runOnly=["color-contrast"])
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        found += test_browser.overflow(page)
    found += test_browser.violations(page, rules={"target-size": {"enabled": True}})
    assert found == []


@pytest.mark.site
def test_descent_is_drawn_anew_for_the_dark(show):
    page = show("descent")
    shade = """(() => {
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(document.querySelector("canvas"), 0, 0);
        return copy.getImageData(3, 3, 1, 1).data[0];  // of ink, thinned
    })()"""
    assert page.evaluate(shade) < 90
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{shade} > 150")
    page.evaluate("document.documentElement.dataset.theme = 'light'")  # as the button in the bar does
    page.wait_for_function(f"{shade} < 90")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"{shade} > 150")


PLACES = [
    ("index.html", "target"),
    ("chapters/02-stochastic-gradient-descent.html", "descent"),
    ("chapters/03-mini-batch.html", "noise"),
    ("chapters/06-learning-rate-and-batch-size.html", "change"),
    ("chapters/07-noise-scale-and-critical-batch-size.html", "target"),
    ("chapters/09-growing-the-batch.html", "target"),
]


@pytest.mark.site
@pytest.mark.parametrize(("page", "name"), PLACES)
def test_a_page_of_the_book_carries_its_piece_from_a_disk_and_without_scripts_its_figure(browser, site, page, name):
    for scripts in (True, False):
        context = browser.new_context(java_script_enabled=scripts)
        opened = context.new_page()
        asked = []
        opened.on("request", lambda request, asked=asked: asked.append(request.url))
        opened.goto((site / page).as_uri())
        place = f".playground[data-piece={name}]"
        live = opened.locator(f"{place} .pg-view")
        plain = opened.locator(f":is(figure:has({place}) img, .playground-place)")
        assert live.count() == scripts
        assert plain.is_visible() == (not scripts)
        assert not [url for url in asked if not url.startswith("file:")]
        context.close()


@pytest.mark.site
@pytest.mark.parametrize(("page", "name"), PLACES)
def test_on_paper_a_page_of_the_book_shows_the_plain_figure(browser, site, page, name):
    opened = browser.new_page(color_scheme="dark")
    opened.goto((site / page).as_uri())
    place = f".playground[data-piece={name}]"
    opened.locator(f"{place} .pg-view").wait_for()
    with pypdfium2.PdfDocument(opened.pdf()) as printed:
        told = " ".join(" ".join(sheet.get_textpage().get_text_range().split()) for sheet in printed)
        images = [image for sheet in printed for image in sheet.get_objects([pdfium.FPDF_PAGEOBJ_IMAGE])]
        pictures = [image.get_px_size() for image in images]
    assert _piece.pieces()[name]["title"] not in told
    picture = opened.locator(f"figure:has({place}) img")
    if picture.count():
        size = picture.evaluate("picture => [picture.naturalWidth, picture.naturalHeight]")
        assert tuple(size) in pictures  # though no screen had asked for it
    else:
        assert "Their product is least at" in told
    opened.emulate_media(media="print")
    assert opened.locator(f":is(figure:has({place}) img, .playground-place)").is_visible()
    assert opened.locator(f"{place} .pg-view").is_visible() is False
    opened.close()
