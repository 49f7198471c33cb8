"""The loop against plain PyTorch and closed forms; every argument of Run; bad input; what is recorded."""

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from batchlab import Run, data, fit, models, optim, schedules
from batchlab.training import step

DIGITS = data.digits()
DIGITS = replace(DIGITS, train=tuple(t[:145] for t in DIGITS.train))  # 145 examples: ragged for most batch sizes
LINE = data.gaussian_regression([1.0, 0.3, 0.1], 0.2, examples=50, val=20, test=20)
SMALL = Run(
    data=DIGITS,
    model=models.mlp((64, 16, 10)),
    optimizer=optim.momentum(0.9),
    lr=0.05,
    batch_size=16,
    steps=50,
    precision="float64",
    device="cpu",
)
REGRESSION = replace(SMALL, data=LINE, model=models.linear(3, 1), optimizer=optim.sgd(), loss="mse")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are small: a second thread only waits, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_loop(run, make_optimizer, steps=50):
    """The loop a PyTorch user would write, on the same order of examples."""
    model = run.model(run.seed).double()
    x, y = run.data.train[0].double(), run.data.train[1]
    y = y.double() if y.is_floating_point() else y
    optimizer = make_optimizer(model.parameters(), run.lr)
    losses, done, epoch = [], 0, 0
    while done < steps:
        order = torch.from_numpy(data.epoch_order(len(x), run.seed, epoch))
        for index in order.split(run.batch_size)[: steps - done]:
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            done += 1
        epoch += 1
    return model, losses


def distance(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


# --- The loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer, reference",
    [
        (optim.sgd(weight_decay=0.01), lambda p, lr: torch.optim.SGD(p, lr, weight_decay=0.01)),
        (optim.momentum(0.9), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
        (optim.adam(), lambda p, lr: torch.optim.Adam(p, lr)),
        (optim.adamw(weight_decay=0.1), lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1)),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_fit_equals_a_plain_pytorch_loop(optimizer, reference):
    run = replace(SMALL, optimizer=optimizer, lr=0.02, evaluate_every=1)
    history = fit(run)
    model, losses = plain_loop(run, reference)
    assert distance(history.parameters, {k: p.detach() for k, p in model.named_parameters()}) < 1e-10
    assert np.allclose(history.table.batch_loss[1:], losses, atol=1e-10)
    with torch.no_grad():
        for part in ("train", "val", "test"):
            x, y = getattr(run.data, part)
            out = model(x.double())
            last = history.table.iloc[-1]
            assert last[f"{part}_loss"] == pytest.approx(nn.functional.cross_entropy(out, y).item(), abs=1e-10)
            assert last[f"{part}_accuracy"] == pytest.approx((out.argmax(1) == y).double().mean().item())


def test_full_batch_descent_follows_its_closed_form():
    run = replace(REGRESSION, model=models.linear(3, 1, bias=False), lr=0.1, batch_size=50, steps=20)
    x, y = (t.double() for t in LINE.train)
    start = run.model(0)[0].weight.detach().double().T
    best = torch.linalg.lstsq(x, y).solution
    hessian = 2 * x.T @ x / len(x)  # of the mean squared error
    shrink = torch.linalg.matrix_power(torch.eye(3).double() - 0.1 * hessian, 20)
    assert torch.allclose(fit(run).parameters["0.weight"].T, best + shrink @ (start - best), atol=1e-12)


def test_the_same_run_gives_the_same_numbers_whatever_the_global_generators_say():
    run = replace(SMALL, precision="float32", model=models.mlp((64, 16, 10), dropout=0.3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fit(run)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    two = fit(run)
    assert distance(one.parameters, two.parameters) == 0
    assert one.table.drop(columns="seconds").equals(two.table.drop(columns="seconds"))
    assert distance(one.parameters, fit(replace(run, seed=1)).parameters) > 0.01


def test_a_users_own_module_with_torchs_dropout_is_a_function_of_the_seed_too():
    def own(seed):  # ignores its seed: the loop seeds it
        return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))

    run = replace(SMALL, model=own)
    torch.manual_seed(1)
    one = fit(run)
    torch.manual_seed(2)
    assert distance(one.parameters, fit(run).parameters) == 0
    assert distance(one.parameters, fit(replace(run, seed=3)).parameters) > 0.01


def test_the_trained_model_is_handed_back():
    history = fit(replace(SMALL, model=models.mlp((64, 16, 10), norm="batch", dropout=0.1), batch_size=29))
    x, y = DIGITS.test
    accuracy = (history.model()(x.double()).argmax(1) == y).double().mean().item()
    assert accuracy == pytest.approx(history.table.test_accuracy.iloc[-1]) and accuracy > 0.5


def test_language_models_and_convolutions_train():
    text = data.documentation_text(16, tokens=4800, val=320, test=320)
    run = Run(
        data=text,
        model=models.transformer(96, 16, width=32, depth=1),
        optimizer=optim.adam(),
        lr=0.01,
        batch_size=25,
        epochs=6,
        device="cpu",
    )
    table = fit(run).table
    assert table.train_loss.iloc[0] == pytest.approx(math.log(96), abs=0.15)  # knows nothing yet
    assert table.train_loss.iloc[-1] < 2.95  # below the entropy of single characters, 3.16 nats: it reads the context
    model = models.cnn((1, 8, 8), 10, norm="batch")
    run = replace(run, data=data.digits(images=True), model=model, batch_size=50, epochs=3)
    assert fit(run).table.test_accuracy.iloc[-1] > 0.9


# --- Counting ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 50), epochs=st.integers(1, 3), drop_last=st.booleans(), order=st.sampled_from(data.ORDERS)
)
def test_epochs_steps_and_examples_are_counted(batch_size, epochs, drop_last, order):
    run = replace(
        REGRESSION, batch_size=batch_size, steps=None, epochs=epochs, drop_last=drop_last, order=order, lr=0.01
    )
    last = fit(run).table.iloc[-1]
    if order == "replacement":
        assert last.step == -(-50 * epochs // batch_size) and last.examples == last.step * batch_size
    elif drop_last:
        assert last.step == 50 // batch_size * epochs and last.examples == last.step * batch_size
    else:
        assert last.step == -(-50 // batch_size) * epochs and last.examples == 50 * epochs
    assert last.epoch == last.examples / 50


def test_examples_end_with_the_batch_that_reaches_them_and_rows_come_when_due():
    run = replace(REGRESSION, batch_size=20, steps=None, examples=100, evaluate_every=30, lr=0.01)
    table = fit(run).table  # batches of 20, 20, 10, 20, 20, 10
    assert table.examples.tolist() == [0, 40, 70, 90, 100]
    assert table.step.tolist() == [0, 2, 4, 5, 6]
    assert table.batch_size.tolist() == [20] * 5
    assert table.seconds.is_monotonic_increasing and math.isnan(table.batch_loss[0])
    assert fit(replace(run, examples=None, steps=3)).table.step.iloc[-1] == 3


def test_batch_loss_is_the_mean_over_the_examples_since_the_last_row():
    run = replace(REGRESSION, batch_size=20, steps=3, evaluate_every=1, lr=0.01)
    each = fit(run).table
    together = fit(replace(run, evaluate_every=50)).table
    sizes = np.array([20, 20, 10])
    assert together.batch_loss.iloc[-1] == pytest.approx((each.batch_loss[1:] * sizes).sum() / 50, abs=1e-12)


def test_schedules_set_rate_and_size_of_each_step():
    run = replace(
        REGRESSION,
        batch_size=5,
        steps=6,
        evaluate_every=1,
        lr=0.1,
        batch_schedule=schedules.stages(factors=(1, 2), at=(15,)),
        lr_schedule=schedules.product(schedules.follow(0.5, base=5), schedules.step(at=(25,), factor=0.1)),
    )
    table = fit(run).table
    assert table.batch_size.tolist()[1:] == [5, 5, 5, 10, 10, 10]
    assert table.examples.tolist() == [0, 5, 10, 15, 25, 35, 45]
    assert np.allclose(table.lr[1:], [0.1, 0.1, 0.1, 0.1 * 2**0.5, 0.01 * 2**0.5, 0.01 * 2**0.5])


def test_a_target_stops_the_run_when_met():
    run = replace(SMALL, steps=None, epochs=50, evaluate_every=16, target=("val_accuracy", 0.7))
    history = fit(run)
    table = history.table
    assert history.reached and not history.diverged
    assert table.val_accuracy.iloc[-1] >= 0.7 and (table.val_accuracy[:-1] < 0.7).all()
    loss = fit(replace(run, target=("train_loss", 0.5)))
    assert loss.reached and loss.table.train_loss.iloc[-1] <= 0.5 < loss.table.train_loss.iloc[-2]
    assert not fit(replace(run, epochs=1, target=("val_accuracy", 1.0))).reached
    at_once = fit(replace(run, target=("train_loss", 100.0)))
    assert at_once.reached and at_once.table.step.tolist() == [0]


def test_only_the_parts_asked_for_are_evaluated():
    table = fit(replace(SMALL, evaluate=("val",), steps=2)).table
    assert [c for c in table if c.endswith(("loss", "accuracy"))] == ["batch_loss", "val_loss", "val_accuracy"]


# --- Divergence --------------------------------------------------------------------------------------------------


def test_divergence_is_recorded_and_the_bad_batch_makes_no_update():
    run = replace(REGRESSION, lr=3.0, steps=1000, evaluate_every=10**6)
    history = fit(run)
    last = history.table.iloc[-1]
    assert history.diverged and not history.reached
    assert 0 < last.step < 1000 and last.batch_loss > 0
    assert all(torch.isfinite(p).all() for p in history.parameters.values())
    # one update fewer would not have diverged: the run that stops there has the same weights
    assert distance(history.parameters, fit(replace(run, steps=int(last.step))).parameters) == 0
    assert not fit(replace(run, steps=int(last.step))).diverged


def test_a_loss_that_is_not_finite_is_divergence():
    def broken(outputs, targets):
        return nn.functional.mse_loss(outputs, targets) * float("nan")

    history = fit(replace(REGRESSION, loss=broken))
    assert history.diverged and history.table.step.tolist() == [0, 0] and math.isnan(history.table.batch_loss.iloc[-1])


def test_a_run_that_diverged_has_not_reached_its_target_however_good_its_weights():
    trained = []

    def breaks(outputs, targets):  # after 30 batches
        trained.extend([0] * torch.is_grad_enabled())
        return nn.functional.mse_loss(outputs, targets) * (
            math.nan if len(trained) > 30 and torch.is_grad_enabled() else 1
        )

    run = replace(REGRESSION, loss=breaks, evaluate_every=10**6, target=("train_loss", 0.3))
    history = fit(run)
    assert history.table.step.tolist() == [0, 30] and history.table.train_loss.iloc[-1] < 0.3
    assert history.diverged and not history.reached


@pytest.mark.parametrize("loss, bound, diverged", [(1.0, 2.0, False), (2.0, 2.0, False), (2.1, 2.0, True)])
def test_has_diverged_on_numbers_and_tensors(loss, bound, diverged):
    assert step.has_diverged(loss, bound) is diverged
    lanes = step.has_diverged(torch.tensor([loss, math.nan, math.inf]), bound)
    assert lanes.tolist() == [diverged, True, True]


# --- Accumulation, checkpointing, precision ----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.sampled_from([(24, 1), (24, 2), (24, 3), (24, 8), (24, 12), (145, 29), (100, 10)]), seed=st.integers(0, 3)
)
def test_accumulation_is_exact_also_for_the_ragged_batch(pieces, seed):
    batch_size, micro = pieces  # 145 examples: the last batch of 24 is 1, of 100 is 45
    run = replace(SMALL, batch_size=batch_size, steps=8, seed=seed)
    whole, split = fit(run), fit(replace(run, micro_batch=micro))
    assert distance(whole.parameters, split.parameters) < 1e-12
    assert np.allclose(whole.table.batch_loss[1:], split.table.batch_loss[1:], atol=1e-12)


def test_weighting_by_examples_is_what_makes_it_exact():
    run = replace(SMALL, batch_size=12, micro_batch=4)
    model, params, buffers, parts = step.prepare(run)
    x, y = (t[:10] for t in parts["train"])  # pieces of 4, 4 and 2
    grads = step.gradient(run, model, params, buffers, x, y)[1]
    whole = step.gradient(replace(run, micro_batch=None), model, params, buffers, x, y)[1]
    naive = [step.gradient(run, model, params, buffers, x[i : i + 4], y[i : i + 4])[1] for i in (0, 4, 8)]
    naive = {k: sum(g[k] for g in naive) / 3 for k in whole}
    assert distance(grads, whole) < 1e-15 < 1e-3 < distance(naive, whole)


@pytest.mark.parametrize("norm", models.NORMS)
@pytest.mark.parametrize("segments", [2, 3, 5])
def test_checkpointing_changes_no_number(norm, segments):
    model = models.mlp((64, 16, 16, 10), norm=norm, dropout=0.2)
    run = replace(SMALL, model=model, steps=10, batch_size=29)
    plain, recomputed = fit(run), fit(replace(run, checkpoint_segments=segments))
    assert distance(plain.parameters, recomputed.parameters) < 1e-14
    if plain.buffers:
        assert distance(plain.buffers, recomputed.buffers) < 1e-14


def test_each_forward_pass_draws_its_own_dropout_mask():
    run = replace(SMALL, model=models.mlp((64, 16, 10), dropout=0.5), steps=3)
    (name, start), *_ = run.model(0).named_buffers()
    assert (fit(run).buffers[name] - start).item() == 3
    assert (fit(replace(run, micro_batch=4)).buffers[name] - start).item() == 12


def test_checkpointing_keeps_fewer_activations():
    kept = {}
    for segments in (1, 4):
        run = replace(SMALL, model=models.mlp((64, *[64] * 16, 10)), checkpoint_segments=segments, batch_size=145)
        model, params, buffers, parts = step.prepare(run)
        params = {k: p.requires_grad_() for k, p in params.items()}
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            step.mean_loss(run, model, params, buffers, *parts["train"])
        weights = {p.data_ptr() for p in params.values()}
        kept[segments] = sum(n for pointer, n in sizes.items() if pointer not in weights)
    assert kept[4] < 0.5 * kept[1]


# a relative rounding error of 2**-9 and 2**-12 at each of a handful of operations; measured 0.28% and 0.036%
HALF = [("bfloat16", 2**-7), ("float16", 2**-10)]


def gradient_error(run, precision):
    """Relative distance of a half-precision gradient from the float32 one."""
    model, params, buffers, parts = step.prepare(replace(run, precision="float32"))
    full, half = (
        torch.cat([g.flatten() for g in step.gradient(r, model, params, buffers, *parts["train"])[1].values()])
        for r in (replace(run, precision="float32"), replace(run, precision=precision))
    )
    assert half.dtype == torch.float32
    return (torch.linalg.vector_norm(half - full) / torch.linalg.vector_norm(full)).item()


@pytest.mark.parametrize("precision, tolerance", HALF)
def test_half_precision_rounds_the_gradient_and_trains_float32_weights(precision, tolerance):
    assert 1e-6 < gradient_error(SMALL, precision) < tolerance
    history = fit(replace(SMALL, precision=precision))
    assert all(p.dtype == torch.float32 for p in history.parameters.values())
    assert history.table.train_loss.iloc[-1] < 0.5 * history.table.train_loss.iloc[0] and not history.diverged


def test_scaling_saves_gradients_too_small_for_float16():
    run = replace(SMALL, precision="float16", loss=lambda out, y: 1e-7 * nn.functional.cross_entropy(out, y))
    model, params, buffers, parts = step.prepare(run)
    true = step.gradient(replace(run, precision="float32"), model, params, buffers, *parts["train"])[1]["0.weight"]
    lost = step.gradient(run, model, params, buffers, *parts["train"])[1]["0.weight"]
    saved = step.gradient(run, model, params, buffers, *parts["train"], scale=2.0**16)[1]["0.weight"]
    assert (lost == 0).double().mean() > 0.9 > 0.5 > (saved == 0).double().mean()
    assert torch.linalg.vector_norm(saved - true) < 0.01 * torch.linalg.vector_norm(true)


def test_the_scale_halves_on_overflow_and_doubles_after_2000_good_steps():
    run = replace(SMALL, precision="float16")
    good, bad = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.inf])}
    assert step.rescale(run, (8.0, 5), bad) == ((4.0, 0), False)
    assert step.rescale(run, (8.0, 5), good) == ((8.0, 6), True)
    assert step.rescale(run, (8.0, 1999), good) == ((16.0, 0), True)
    assert step.rescale(replace(run, precision="bfloat16"), (8.0, 5), bad) == ((8.0, 5), True)


def test_an_overflowing_float16_step_is_skipped_not_fatal():
    run = replace(SMALL, precision="float16", steps=3, loss=lambda out, y: 100 * nn.functional.cross_entropy(out, y))
    history = fit(run)  # 2**16 * 100 * gradient overflows float16 until the scale has come down
    assert not history.diverged and history.table.step.iloc[-1] == 3
    start = {k: p.detach() for k, p in run.model(0).named_parameters()}
    assert distance(fit(replace(run, steps=1)).parameters, start) == 0


# --- Penalties and averages --------------------------------------------------------------------------------------


def test_l1_adds_its_subgradient_and_stays_out_of_the_reported_loss():
    model, params, buffers, parts = step.prepare(SMALL)
    params["0.bias"] = torch.zeros_like(params["0.bias"])
    x, y = parts["train"]
    loss, grads, _ = step.gradient(SMALL, model, params, buffers, x, y)
    with_l1, penal, _ = step.gradient(replace(SMALL, l1=0.01), model, params, buffers, x, y)
    assert with_l1 == loss
    assert all(torch.allclose(penal[k] - grads[k], 0.01 * params[k].sign(), atol=1e-14) for k in grads)


def test_averaged_weights_are_the_weighted_sum_of_the_path_and_are_what_is_evaluated():
    run = replace(SMALL, steps=4, ema=0.8)
    path = [{k: p.detach().double() for k, p in run.model(0).named_parameters()}]
    path += [fit(replace(run, steps=n)).parameters for n in (1, 2, 3, 4)]
    weights = [0.8**4, *(0.2 * 0.8 ** (4 - n) for n in (1, 2, 3, 4))]
    expected = {k: sum(w * p[k] for w, p in zip(weights, path, strict=True)) for k in path[0]}
    history = fit(run)
    assert distance(history.averaged, expected) < 1e-12
    x, y = DIGITS.test
    loss = nn.functional.cross_entropy(history.model()(x.double()), y).item()
    assert history.table.test_loss.iloc[-1] == pytest.approx(loss, abs=1e-12)
    assert distance(history.parameters, path[4]) == 0 and fit(replace(run, ema=None)).averaged is None


# --- What is refused ---------------------------------------------------------------------------------------------

BAD = [
    ("batch_size", 0),
    ("batch_size", -4),
    ("batch_size", 0.128),
    ("batch_size", 16.0),
    ("batch_size", 146),
    ("batch_size", True),
    ("batch_size", "16"),
    ("lr", 0.0),
    ("lr", -0.1),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", "0.1"),
    ("lr", True),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", True),
    ("steps", 0),
    ("steps", 2.5),
    ("epochs", 1),  # beside steps
    ("steps", None),  # none of the three
    ("micro_batch", 0),
    ("micro_batch", 3),  # does not divide 16
    ("micro_batch", 32),
    ("micro_batch", 2.0),
    ("optimizer", "sgd"),
    ("optimizer", torch.optim.SGD),
    ("model", models.mlp((64, 10))(0)),  # a module, not a factory
    ("model", "mlp"),
    ("data", "digits"),
    ("loss", "nll"),
    ("loss", "mse"),  # on labels
    ("order", "shuffle"),
    ("drop_last", 1),
    ("lr_schedule", 0.5),
    ("batch_schedule", [16, 32]),
    ("checkpoint_segments", 0),
    ("precision", "half"),
    ("precision", torch.float16),
    ("l1", -1),
    ("ema", 1.0),
    ("ema", 0),
    ("device", "gpu"),
    ("evaluate_every", 0),
    ("evaluate_every", 0.5),
    ("evaluate", ("validation",)),
    ("evaluate", "val"),
    ("target", ("f1", 0.9)),
    ("target", ("val_accuracy", math.nan)),
    ("target", 0.9),
    ("loss_bound", 0),
    ("progress", "yes"),
]


@pytest.mark.parametrize("name, value", BAD, ids=[f"{n}={v!r}"[:40] for n, v in BAD])
def test_run_refuses_at_once_and_names_the_argument(name, value):
    with pytest.raises(ValueError, match=name):
        replace(SMALL, **{name: value})


def test_equal_runs_print_alike():
    plain = replace(REGRESSION, data=LINE, lr=0.1, l1=1.0)
    numpy = replace(REGRESSION, lr=np.float64(0.1), batch_size=np.int64(16), seed=np.int32(0), l1=1, steps=np.int64(50))
    assert repr(plain) == repr(numpy)


def test_unknown_arguments_are_refused_and_a_run_cannot_be_changed():
    with pytest.raises(TypeError, match="batchsize"):
        Run(**{**vars(SMALL), "batchsize": 8})
    with pytest.raises(FrozenInstanceError):
        SMALL.lr = 1.0


@pytest.mark.parametrize(
    "run, message",
    [
        (replace(REGRESSION, model=models.linear(3, 2)), r"output shape = \('N', 2\)"),
        (replace(SMALL, model=models.mlp((64, 9))), r"output shape = \('N', 9\)"),
        (replace(SMALL, model=lambda seed: nn.Sequential(nn.Linear(64, 10), nn.Flatten(0))), "output shape"),
        (replace(SMALL, model=lambda seed: nn.LSTM(64, 10)), "model output = 'tuple'"),
        (replace(SMALL, model=lambda seed: None), "nn.Module"),
        (replace(SMALL, model=lambda seed: nn.Flatten()), "with parameters"),
        (replace(SMALL, loss=lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")), "loss = .*0-dim"),
        (replace(SMALL, loss=lambda out, y: 0.5), "0-dim"),
        (replace(SMALL, model=lambda seed: nn.Linear(64, 10), checkpoint_segments=2), "nn.Sequential"),
        (replace(SMALL, checkpoint_segments=4), "at most the 3 layers"),
        (replace(SMALL, batch_schedule=schedules.stages(factors=(1, 100), at=(32,))), "batch_size = 1600"),
        (replace(SMALL, batch_schedule=lambda seen: 0), "batch_size = 0"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_fit(run, message):
    with pytest.raises(ValueError, match=message):
        fit(run)


def test_targets_n_against_outputs_n1_are_refused_whatever_the_loss():
    # the silent broadcast of article 003: (N, 1) - (N,) is (N, N), and the loss is a number all the same
    labels = replace(DIGITS, train=(DIGITS.train[0], DIGITS.train[1] % 2), val=DIGITS.val, test=DIGITS.test)
    for loss in (lambda out, y: ((out - y) ** 2).mean(), "cross_entropy"):
        with pytest.raises(ValueError, match=r"output shape = \('N', 1\).*targets \('N',\)"):
            fit(replace(SMALL, data=labels, model=models.mlp((64, 1)), loss=loss))


@pytest.mark.parametrize("outputs", ["(N,)", "(N, 1)", "(N, 2)"])
def test_a_loss_of_ones_own_never_broadcasts_silently(outputs):
    def model(seed):
        return nn.Sequential(nn.Linear(3, 2 if outputs == "(N, 2)" else 1), *[nn.Flatten(0)] * (outputs == "(N,)"))

    def spread(out, y):  # mean and log variance
        return (out[:, 1:] + (out[:, :1] - y) ** 2 * (-out[:, 1:]).exp()).mean()

    loss = spread if outputs == "(N, 2)" else lambda out, y: ((out - y) ** 2).mean()
    run = replace(REGRESSION, model=model, loss=loss, lr=0.01)
    if outputs == "(N,)":
        with pytest.raises(ValueError, match=r"output shape = \('N',\).*targets \('N', 1\)"):
            fit(run)
    else:
        table = fit(run).table
        assert table.train_loss.iloc[-1] < table.train_loss.iloc[0]


BATCHNORM = replace(SMALL, model=models.mlp((64, 8, 10), norm="batch"))


@pytest.mark.parametrize(
    "changes, refused",
    [
        ({"batch_size": 1}, True),
        ({"batch_size": 16}, True),  # 145 = 9 * 16 + 1
        ({"batch_size": 16, "drop_last": True}, False),
        ({"batch_size": 16, "order": "replacement"}, False),
        ({"batch_size": 16, "steps": 5}, False),  # never gets to the ragged batch
        ({"batch_size": 29}, False),
        ({"batch_size": 18, "micro_batch": 1}, True),
        ({"batch_size": 18, "micro_batch": 9}, True),  # 145 = 8 * 18 + 1
        ({"batch_size": 20, "micro_batch": 4}, True),  # the last batch of 5 makes pieces of 4 and 1
        ({"batch_size": 20}, False),
    ],
)
def test_batchnorm_with_one_example_is_refused(changes, refused):
    run = replace(BATCHNORM, **{"steps": 10} | changes)
    if refused:
        with pytest.raises(ValueError, match="batch_size.*BatchNorm"):
            fit(run)
    else:
        assert not fit(run).diverged


def test_a_device_this_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device = 'cuda'.*'cpu'"):
        fit(replace(SMALL, device="cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert step.device_of(replace(SMALL, device="auto", precision="float32")).type == "mps"
    with pytest.raises(ValueError, match="precision = 'float64'"):
        step.device_of(replace(SMALL, device="auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert step.device_of(replace(SMALL, device="auto")).type == "cuda"


# --- Around it ---------------------------------------------------------------------------------------------------


def test_progress_is_shown_only_when_asked_for(capsys):
    fit(replace(SMALL, steps=3))
    assert capsys.readouterr() == ("", "")
    fit(replace(SMALL, steps=3, progress=True))
    assert "examples" in capsys.readouterr().err


def test_importing_the_package_is_light():
    heavy = ["matplotlib", "sklearn", "tqdm.auto", "torch._dynamo"]
    code = f"import sys, batchlab; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- On an accelerator -------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("norm", models.NORMS)
def test_cpu_and_gpu_agree(norm):
    run = replace(SMALL, model=models.mlp((64, 16, 10), norm=norm, dropout=0.2), batch_size=29)
    cpu, gpu = fit(run), fit(replace(run, device="cuda"))
    assert distance(cpu.parameters, gpu.parameters) < 1e-9
    assert np.allclose(cpu.table.test_loss, gpu.table.test_loss, atol=1e-9)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision, tolerance", HALF)
def test_mixed_precision_on_the_gpu(precision, tolerance):
    run = replace(SMALL, device="cuda")
    assert 1e-6 < gradient_error(run, precision) < tolerance
    assert fit(replace(run, precision=precision)).table.train_loss.iloc[-1] < 1.2
