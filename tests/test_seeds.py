"""Every random choice has an explicit seed and a stream of its own."""

import re

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from batchlab import _seeds, curvature, noise, throughput

from conftest import ROOT


def test_purposes_have_streams_of_their_own():
    assert len(set(_seeds.PURPOSES.values())) == len(_seeds.PURPOSES)
    drawn = {purpose: _seeds.generator(0, purpose).standard_normal(5000) for purpose in _seeds.PURPOSES}
    together = np.corrcoef(list(drawn.values())) - np.eye(len(drawn))
    assert np.abs(together).max() < 5 / np.sqrt(5000)


def test_no_two_instruments_draw_from_one_stream(monkeypatch):
    """With one seed, everything that draws asks for a stream that nothing else asks for."""
    asked, sequence = [], _seeds.sequence
    monkeypatch.setattr(_seeds, "sequence", lambda *key: asked.append(key) or sequence(*key))
    model, start = nn.Linear(70, 1), torch.get_rng_state()
    x, y = torch.linspace(1, 2, 9)[:, None] * torch.linspace(-1, 1, 70), torch.zeros(9, 1)
    given = (model, mse_loss, x, y)
    noise.batch_gradients(*given, batch_size=2, draws=3)
    noise.noise_scale(*given, curvature=True)
    noise.two_batch([3.0, 2.0, 4.0], [1.0, 1.5, 1.2], 1, 8, interval="bootstrap")
    curvature.top_eigenvalues(*given)
    curvature.trace(*given, probes=2)
    curvature.sharpness(*given)
    throughput.fit_step_law([1, 2], [[1.0], [2.0]])
    assert len(asked) == len(set(asked)) == 8 and all(seed == 0 for seed, *_ in asked)
    assert torch.equal(start, torch.get_rng_state())


def test_nothing_draws_past_the_seeds():
    for path in (ROOT / "src" / "batchlab").rglob("*.py"):
        code = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.strip().startswith(">>>")]
        draws = r"default_rng|SeedSequence\(|RandomState\(|torch\.Generator\("
        found = [line for line in code if re.search(draws, line)]
        assert path.name == "_seeds.py" or not found, (path, found)
