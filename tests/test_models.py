"""Model factories: functions of a seed, alone and stacked; norms and dropout against their definitions."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from batchlab import Run, data, fit, models, optim
from batchlab.training import layers

FACTORIES = {
    "linear": (models.linear(5, 3), (6, 5)),
    **{f"mlp {n}": (models.mlp((5, 8, 3), norm=n, dropout=0.2, ghost=4), (6, 5)) for n in models.NORMS},
    **{f"signal {n}": (models.cnn((2, 9), 3, channels=(4, 8), norm=n, dropout=0.2), (6, 2, 9)) for n in models.NORMS},
    **{f"image {n}": (models.cnn((1, 8, 8), 3, channels=(4, 8), norm=n, ghost=4), (6, 1, 8, 8)) for n in models.NORMS},
    **{f"resnet {n}": (models.resnet((1, 8, 8), 3, width=4, norm=n, ghost=4), (6, 1, 8, 8)) for n in models.NORMS},
    "resnet signal": (models.resnet((2, 9), 3, width=4, depth=2, norm="batch"), (6, 2, 9)),
    "transformer": (models.transformer(3, 7, width=8, dropout=0.3), (6, 7)),
    "transformer none": (models.transformer(3, 7, width=8, norm="none"), (6, 7)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are small: a second thread only waits, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(name, shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    if name.startswith("transformer"):
        return torch.randint(3, shape, generator=rng), torch.randint(3, shape, generator=rng)
    return torch.randn(shape, generator=rng), torch.randint(3, shape[:1], generator=rng)


@pytest.mark.parametrize("name", FACTORIES)
def test_weights_depend_on_the_seed_only_and_the_global_generator_is_left_alone(name):
    factory, _ = FACTORIES[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = factory(0).state_dict()
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    again, other = factory(0).state_dict(), factory(1).state_dict()
    assert all(first[k].equal(again[k]) for k in first)
    assert any(not first[k].equal(other[k]) for k in first)


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_hash_pickle_and_print_stably(name):
    factory, _ = FACTORIES[name]
    again = eval(repr(factory), {k: getattr(models, k) for k in ("linear", "mlp", "cnn", "resnet", "transformer")})
    assert again == factory and hash(again) == hash(factory)
    assert pickle.loads(pickle.dumps(factory)) == factory
    assert isinstance(factory(0), nn.Sequential)


@pytest.mark.parametrize("name", FACTORIES)
def test_stacked_lanes_have_the_gradients_and_buffers_of_single_models(name):
    factory, shape = FACTORIES[name]
    lanes = [factory(seed).double().train() for seed in range(3)]
    params, buffers = stack_module_state(lanes)
    params = {k: v.detach() for k, v in params.items()}
    x, y = (torch.stack(t) for t in zip(*(batch(name, shape, s) for s in range(3)), strict=True))
    x = x.double() if x.is_floating_point() else x

    def loss(p, b, x, y):
        out = functional_call(lanes[0], (p, b), (x,))
        return nn.functional.cross_entropy(out.flatten(0, -2), y.flatten())

    alone = []
    for i in range(3):
        own = {k: v[i].clone() for k, v in buffers.items()}
        grads, value = grad_and_value(loss)({k: v[i] for k, v in params.items()}, own, x[i], y[i])
        alone.append((grads, value, own))
    grads, values = vmap(grad_and_value(loss))(params, buffers, x, y)
    for i, (grad, value, own) in enumerate(alone):
        assert values[i].item() == pytest.approx(value.item(), abs=1e-12)
        assert all((grads[k][i] - grad[k]).abs().max() < 1e-12 for k in grad)
        assert all(torch.allclose(buffers[k][i].double(), own[k].double(), atol=1e-12) for k in own)


def test_norms_do_what_they_are_called():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    F = nn.functional
    expected = {
        "layer": F.layer_norm(x, (8,)),
        "group": F.group_norm(x, 4),
        "batch": F.batch_norm(x, None, None, training=True),
    }
    for norm, wanted in expected.items():
        layer = models.mlp((8, 8, 2), norm=norm, groups=4)(0).train()[1]
        assert torch.allclose(layer(x), wanted, atol=1e-6)
    image = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    layer = models.cnn((1, 5, 5), 2, channels=(4,), norm="layer")(0)[1]
    assert torch.allclose(layer(image), F.layer_norm(image, (4, 5, 5)), atol=1e-6)


@pytest.mark.parametrize("examples, sizes", [(8, [4, 4]), (9, [3, 3, 3]), (7, [4, 3]), (3, [3]), (13, [4, 3, 3, 3])])
@pytest.mark.parametrize("positions", [(), (5,), (2, 3)])
def test_ghost_batch_norm_is_batch_norm_on_one_slice_after_another(examples, sizes, positions):
    oracle = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(positions)](6).double()
    ghost = models.GhostBatchNorm(6, size=4).double()
    rng = torch.Generator().manual_seed(examples)
    for layer in (oracle, ghost):
        nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # the second time, the running statistics have moved
        x = torch.randn(examples, 6, *positions, generator=rng, dtype=torch.float64) * 3 + 1
        found, wanted = ghost(x), torch.cat([oracle(part) for part in x.split(sizes)])
        assert (found - wanted).abs().max() < 1e-12
        for name, buffer in oracle.named_buffers():
            assert torch.allclose(ghost.get_buffer(name), buffer, atol=1e-12), name
    push = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    (found * push).sum().backward()
    (wanted * push).sum().backward()
    assert (ghost.weight.grad - oracle.weight.grad).abs().max() < 1e-10
    assert (ghost.eval()(x) - oracle.eval()(x)).abs().max() < 1e-12


def test_running_means_are_those_of_hoffer_hubara_and_soudry():
    """Algorithm 1 there: after k virtual batches, (1 - eta)^k mu + sum of (1 - eta)^i eta mu_i, the last with i = 0."""
    layer, x = models.GhostBatchNorm(1, size=2), torch.tensor([[1.0], [3.0], [10.0], [30.0], [5.0], [6.0]])
    layer.running_mean += 7
    layer(x)
    assert layer.running_mean.item() == pytest.approx(0.9**3 * 7 + 0.9**2 * 0.1 * 2 + 0.9 * 0.1 * 20 + 0.1 * 5.5)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("pieces", [dict(batch_size=3), dict(batch_size=8), dict(batch_size=9, micro_batch=3)])
def test_a_virtual_batch_of_one_is_refused_at_the_door(model, pieces):
    dataset = data.mnist1d(11, val=10, test=10, signals=model != "mlp")  # 11 = 8 + 3
    make = {"mlp": (40, 8, 10), "cnn": ((1, 40), 10), "resnet": ((1, 40), 10)}[model]
    make = (
        models.mlp(make, norm="ghost", ghost=2)
        if model == "mlp"
        else getattr(models, model)(*make, norm="ghost", ghost=2)
    )
    run = dict(data=dataset, optimizer=optim.sgd(), lr=0.1, epochs=1, device="cpu")
    with pytest.raises(ValueError, match="batch_size.*BatchNorm cannot normalise"):
        fit(Run(model=make, **run, **pieces))
    fit(Run(model=make, batch_size=4, drop_last=True, **run))


def test_a_residual_block_is_what_it_says():
    F = nn.functional
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same, other = list(models.resnet((1, 12, 12), 3, width=4, depth=2, norm="batch")(0).double())[2:4]
    for block, stride in ((same, 1), (other, 2)):
        p = {
            k: nn.init.normal_(t.detach(), generator=torch.Generator().manual_seed(1))
            for k, t in block.named_parameters()
        }
        inner = F.relu(F.batch_norm(x, None, None, p["norm1.0.weight"], p["norm1.0.bias"], training=True))
        h = F.conv2d(inner, p["conv1.weight"], p["conv1.bias"], stride=stride, padding=1)
        h = F.relu(F.batch_norm(h, None, None, p["norm2.0.weight"], p["norm2.0.bias"], training=True))
        h = F.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=1)
        h = h + (x if stride == 1 else F.conv2d(inner, p["around.weight"], p["around.bias"], stride=2))
        assert (block(x) - h).abs().max() < 1e-10
    shapes = [tuple(layer(torch.zeros(1, 4, 6, 6, dtype=torch.float64)).shape) for layer in (same, other)]
    assert shapes == [(1, 4, 6, 6), (1, 8, 3, 3)]


def test_a_residual_network_starts_as_he_has_it_and_deep_ones_do_not_explode():
    model = models.resnet((3, 8, 8), 10, width=64, depth=8)(0)
    for name, w in model.named_parameters():
        if w.ndim == 4:
            wanted = (2 / w[0].numel()) ** 0.5 / (4.0 if "conv2" in name else 1.0)  # 16 blocks
            assert w.std().item() == pytest.approx(wanted, rel=0.05), name
        elif name.endswith("bias") and w.ndim == 1 and len(w) != 10:
            assert w.abs().max() == 0
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start = model[0](x)
        end = model[1:17](start)
    assert 0.5 < end.square().mean() / start.square().mean() < 6  # 2^16 without the smaller last convolutions


def test_shapes_of_images_and_signals():
    assert models.cnn((1, 28, 28), 10)(0)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models.cnn((1, 40), 10, channels=(8, 8, 8), kernel=5)(0)(torch.zeros(2, 1, 40)).shape == (2, 10)
    assert models.mlp((4, 3))(0)(torch.zeros(2, 4)).shape == (2, 3)


def test_attention_is_the_librarys():
    attention = layers.Attention(12, heads=3).double()
    x = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = attention.joint(x).chunk(3, -1)
    q, k, v = (t.reshape(4, 7, 3, 4).transpose(1, 2) for t in (q, k, v))
    heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (attention(x) - attention.out(heads.transpose(1, 2).reshape(4, 7, 12))).abs().max() < 1e-12
    # curvature needs second derivatives, and the library's fused kernel for a CPU has none
    assert torch.autograd.gradgradcheck(attention, x[:1, :3].requires_grad_())


@pytest.mark.parametrize("context", [32, 128])
def test_the_byte_level_transformer_starts_near_chance_and_stands_bfloat16(context):
    model = models.transformer(256, context, width=64, depth=2, heads=4)(0)
    x, y = torch.randint(256, (2, 8, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x).float()
    loss, rough = (nn.functional.cross_entropy(s.flatten(0, 1), y.flatten()).item() for s in (scores, half))
    assert np.log(256) - 0.05 < loss < np.log(256) + 0.5  # uniform guesses lose log 256
    assert rough == pytest.approx(loss, abs=0.01)
    assert (half - scores).abs().max() < 0.05 * scores.abs().max()  # 8 bits of mantissa, a dozen products deep


def test_the_transformer_does_not_look_ahead_and_does_look_back():
    model = models.transformer(11, 8, width=16, depth=2)(0).eval()
    tokens = torch.randint(11, (1, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert before[0, :5].equal(after[0, :5])
    assert ((before[0, 5:] - after[0, 5:]).abs().amax(-1) > 1e-4).all()


# --- Dropout -----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_dropout_drops_its_rate_and_keeps_the_mean(rate, seed):
    x = torch.ones(200, 100)
    out = models.Dropout(rate, seed, layer=0).train()(x)
    kept = (out != 0).double().mean().item()
    assert abs(kept - (1 - rate)) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert out[out != 0].unique().numel() == 1
    assert out.max().item() == pytest.approx(1 / (1 - rate), rel=1e-6)


def masks(seed, layer=0, draws=1, shape=(100, 100)):
    layer = models.Dropout(0.5, seed, layer).train()
    found = []
    for _ in range(draws):
        found.append((layer(torch.ones(shape)) != 0).double())
        layer.dropout_draw += 1
    return found


def test_masks_of_steps_layers_seeds_and_positions_are_uncorrelated():
    one, two = masks(0, draws=2)
    limit = 4.5 / 100  # 4.5 standard errors of a correlation of 10,000 pairs
    for other in (two, masks(1)[0], masks(0, layer=1)[0]):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < limit
    for lag in (1, 2, 100):
        flat = one.flatten()
        assert abs(torch.corrcoef(torch.stack([flat[lag:], flat[:-lag]]))[0, 1]) < limit
    assert (one.mean(0) - 0.5).abs().max() < 5 * 0.05 and (one.mean(1) - 0.5).abs().max() < 5 * 0.05


def test_dropout_is_a_function_of_its_counter_and_moves_no_generator():
    layer = models.Dropout(0.5, 0, 0).train()
    before = torch.get_rng_state()
    x = torch.ones(50, 50)
    first, second = layer(x), layer(x)
    assert first.equal(second) and torch.get_rng_state().equal(before)
    buffers = models.next_draw(dict(layer.named_buffers()))
    assert not functional_call(layer, buffers, (x,)).equal(first)
    assert layer.eval()(x).equal(x)


def test_the_hash_is_splitmix64():
    # the first outputs of SplitMix64 from state 0, as its authors' generator gives them in unsigned arithmetic
    def reference(z):
        mask = 2**64 - 1
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert reference(0) == 0xE220A8397B1DCDAF
    for state in (0, 1, -1, 2**62, -(2**63), 123456789):
        assert layers._mix(torch.tensor(state)).item() % 2**64 == reference(state % 2**64)


# --- Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.linear(0, 1),
        lambda: models.linear(2, 1, bias=1),
        lambda: models.mlp((3,)),
        lambda: models.mlp(64),
        lambda: models.mlp((3, 0, 2)),
        lambda: models.mlp((3, 2.5, 2)),
        lambda: models.mlp((3, 4, 2), norm="instance"),
        lambda: models.mlp((3, 6, 2), norm="group", groups=4),
        lambda: models.mlp((3, 4, 2), dropout=1.0),
        lambda: models.mlp((3, 4, 2), dropout=-0.1),
        lambda: models.mlp((3, 4, 2), dropout="0.5"),
        lambda: models.cnn((8,), 10),
        lambda: models.cnn((1, 8, 8), 1),
        lambda: models.cnn((1, 8, 8), 10, kernel=2),
        lambda: models.cnn((1, 8, 8), 10, channels=()),
        lambda: models.cnn((1, 8, 8), 10, channels=(4, -4)),
        lambda: models.mlp((3, 4, 2), norm="ghost", ghost=1),
        lambda: models.cnn((1, 8, 8), 10, norm="ghost", ghost=4.0),
        lambda: models.resnet((8,), 10),
        lambda: models.resnet((1, 8, 8), 1),
        lambda: models.resnet((1, 8, 8), 10, width=0),
        lambda: models.resnet((1, 8, 8), 10, depth=0),
        lambda: models.resnet((1, 8, 8), 10, norm="weight"),
        lambda: models.resnet((1, 8, 8), 10, width=6, norm="group"),
        lambda: models.resnet((1, 8, 8), 10, norm="ghost", ghost=0),
        lambda: models.transformer(1, 8),
        lambda: models.transformer(11, 8, width=10, heads=4),
        lambda: models.transformer(11, 8, norm="batch"),
        lambda: models.transformer(11, 8, heads=0),
        lambda: models.mlp((2, 2))(seed=-1),
        lambda: models.mlp((2, 2))(seed=1.5),
        lambda: models.build(lambda seed: "model", 0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
