"""The schedules against their closed forms, as numbers, arrays and tensors."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchlab import schedules as sc

ALL = [
    sc.constant(),
    sc.step(at=(100, 300), factor=0.5),
    sc.cosine(total=400, final=0.1),
    sc.warmup(total=200, start=0.25),
    sc.warmup(total=200, every=50),
    sc.inverse_sqrt(after=64),
    sc.inverse_time(half=100),
    sc.follow(0.5, base=16),
    sc.stages(factors=(1, 0.5, 0.1), at=(100, 200)),
    sc.product(sc.warmup(total=50, start=0.1), sc.cosine(total=400)),
    sc.inverse(sc.cosine(total=400), most=2),
]
# the same curves, written as one formula a number
EXPECTED = [
    lambda e: 1.0,
    lambda e: 1.0 if e < 100 else 0.5 if e < 300 else 0.25,
    lambda e: 0.1 + 0.9 * (1 + math.cos(math.pi * min(e, 400) / 400)) / 2,
    lambda e: 0.25 + 0.75 * min(e / 200, 1),
    lambda e: min((e // 50) * 50 / 200, 1),
    lambda e: 1.0 if e <= 64 else math.sqrt(64 / e),
    lambda e: 100 / (100 + e),
    lambda e: 2.0,
    lambda e: 1.0 if e < 100 else 0.5 if e < 200 else 0.1,
    lambda e: (0.1 + 0.9 * min(e / 50, 1)) * (1 + math.cos(math.pi * min(e, 400) / 400)) / 2,
    lambda e: min(2, 1 / max(1e-9, (1 + math.cos(math.pi * min(e, 400) / 400)) / 2)),
]
CASES = list(zip(ALL, EXPECTED, strict=True))


@pytest.mark.parametrize("schedule, expected", CASES, ids=[repr(s) for s in ALL])
@given(examples=st.integers(0, 1000))
def test_values_alike_for_numbers_arrays_and_tensors(schedule, expected, examples):
    number = schedule(examples, 64)
    assert type(number) is float and number == pytest.approx(expected(examples), abs=1e-12)
    array = schedule(np.array([examples, 0]), 64)
    assert isinstance(array, np.ndarray) and array[0] == pytest.approx(number, abs=1e-12)
    for dtype, rounding in ((torch.int64, 1e-6), (torch.float64, 1e-12)):  # int64 gives a float32 multiplier
        tensor = schedule(torch.tensor([examples, 0], dtype=dtype), 64)
        assert isinstance(tensor, torch.Tensor) and tensor[0].item() == pytest.approx(number, abs=rounding)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_repr_hash_and_pickle_are_stable(schedule):
    again = eval(repr(schedule), vars(sc))
    assert again == schedule and hash(again) == hash(schedule) and repr(again) == repr(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_follow_needs_the_batch_size_and_obeys_the_exponent():
    assert [sc.follow(x, base=32)(0, 8) for x in (0, 0.5, 1)] == [1.0, 0.5, 0.25]
    with pytest.raises(TypeError):
        sc.follow(1, base=32)(0)


def test_inverse_and_follow_leave_the_rate_per_example_to_the_schedule():
    falling, seen = sc.cosine(total=400), np.arange(0, 400)
    size = 16 * sc.inverse(falling, most=8)(seen)
    rate = sc.product(falling, sc.follow(1, base=16))(seen, size)
    np.testing.assert_allclose(rate / size, falling(seen) / 16, rtol=1e-12)
    assert size.max() == 128 and rate.max() == pytest.approx(1) and rate.min() < 0.01


def test_inverse_time_is_the_robbins_monro_schedule():
    # the sum of c/(c + t) grows like c ln(T), the sum of its squares stays below c^2 / (c - 1)
    t = np.arange(1_000_000)
    rate = sc.inverse_time(half=10)(t)
    assert rate.sum() == pytest.approx(10 * math.log((10 + len(t)) / 10), rel=0.01)
    assert (rate**2).sum() < 100 / 9


@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.step(at=(), factor=0.1),
        lambda: sc.step(at=(200, 100), factor=0.1),
        lambda: sc.step(at=(100, 100), factor=0.1),
        lambda: sc.step(at=[100], factor=0.1),
        lambda: sc.step(at=(100,), factor=0),
        lambda: sc.cosine(total=0),
        lambda: sc.cosine(total=100, final=-1),
        lambda: sc.cosine(total=10.5),
        lambda: sc.warmup(total=100, start=2),
        lambda: sc.warmup(total=100, every=0),
        lambda: sc.inverse_sqrt(after=0),
        lambda: sc.inverse_time(half=-1),
        lambda: sc.follow(float("nan"), base=1),
        lambda: sc.follow(1, base=0),
        lambda: sc.stages(factors=(1, 2), at=(10, 20)),
        lambda: sc.stages(factors=(1, 0), at=(10,)),
        lambda: sc.inverse(3, most=8),
        lambda: sc.inverse(sc.cosine(10), most=0),
        lambda: sc.product(sc.constant(), 3),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
