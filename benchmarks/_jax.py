"""The rival in JAX: the same networks, losses and rules, read from the same models.

``jax_scan`` trains a network for each rate and seed, stacked by ``vmap``, in one compiled ``scan`` over the steps;
``jax_one`` one network at a time by a compiled step, which is faster where there are convolutions: stacked they become
grouped ones, and inside a ``scan`` they run on one thread. Batch norm's running statistics are left out.
"""

import numpy as np

from batchlab.engine import tape


def prepared(run):
    """The step (x, y, index, state, lr) -> state of one network, and the state that it begins with."""
    import jax
    import jax.numpy as jnp

    x, y = run.data.train
    reading = tape.Reading(run.model(0), x.shape[1:], not x.is_floating_point(), vector=1)
    x, y = jnp.asarray((x.movedim(1, -1) if x.ndim > 2 else x).numpy()), jnp.asarray(y.numpy())
    if x.ndim == 3:
        x = x[:, None]  # a signal is an image of one line
    rule = rules(dict(run.optimizer.settings))[run.optimizer.name]

    def loss(params, xs, ys):
        logits = outputs(reading, params, xs)
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, ys[..., None], -1)[..., 0]).mean()

    def step(index, state, lr):
        params, m, v, t = state
        grads = jax.grad(loss)(params, x[index], y[index])
        new = [rule(*each, lr, t + 1) for each in zip(params, grads, m, v, strict=True)]
        return (*map(list, zip(*new, strict=True)), t + 1)

    params = [jnp.asarray(w) for w in weights_of(reading)]
    zeros = [0 * p for p in params]
    return step, (params, zeros, zeros, jnp.zeros(()))


def orders_of(run, seeds, steps):
    """The examples of each step, (seeds, steps, batch size): each seed's own shuffled order, epoch by epoch."""
    examples, rng = len(run.data.train[0]), np.random.default_rng(0)
    an_epoch = examples // run.batch_size
    epochs = [rng.permuted(np.tile(np.arange(examples), (seeds, 1)), axis=1) for _ in range(-(-steps // an_epoch))]
    order = np.concatenate([epoch[:, : an_epoch * run.batch_size] for epoch in epochs], axis=1)
    return order.reshape(seeds, -1, run.batch_size)[:, :steps]


def jax_scan(run, rates, seeds):
    """jit(vmap(scan)); a call makes a fixed number of steps."""
    import jax
    import jax.numpy as jnp

    step, start = prepared(run)
    lanes, lr = len(rates) * len(seeds), jnp.asarray(np.repeat(rates, len(seeds)), jnp.float32)
    state = [jax.tree.map(lambda t: jnp.stack([t] * lanes), start)]
    train = jax.jit(
        jax.vmap(lambda order, state, lr: jax.lax.scan(lambda now, i: (step(i, now, lr), None), state, order)[0])
    )

    def advance(steps):
        order = np.tile(orders_of(run, len(seeds), steps), (len(rates), 1, 1))
        state[0] = jax.block_until_ready(train(jnp.asarray(order), state[0], lr))

    return advance, lanes


def jax_one(run, rates, seeds):
    """jit(step), one network."""
    import jax

    step, start = prepared(run)
    state, train = [start], jax.jit(step)

    def advance(steps):
        for index in orders_of(run, 1, steps)[0]:
            state[0] = train(index, state[0], run.lr)
        jax.block_until_ready(state[0])

    return advance, 1


def weights_of(reading):
    """Two arrays for each of the kernel's matrices: weights and bias, gains and shifts, or a table and nothing."""
    kernels = {op["weight"]: op["kernel"] for op in reading.ops if op["kind"] == tape.CONVOLVE}
    for i, (matrix, bias, _) in enumerate(reading.weights):
        w, b = (matrix[:bias], matrix[bias]) if bias >= 0 else (matrix, np.zeros(0, np.float32))
        if kernels.get(i, (1, 1)) != (1, 1):
            w = w.reshape(*kernels[i], -1, w.shape[1])
        elif i in kernels:
            w = np.ascontiguousarray(w.T)  # as PyTorch has it, which is a little faster here
        yield from (w[0] if len(matrix) == 2 and bias == 1 and i not in kernels else w, b)


def rules(settings):
    import jax.numpy as jnp

    def momentum(w, g, m, v, lr, t):
        m = settings["momentum"] * m + g
        return w - lr * m, m, v

    def adam(w, g, m, v, lr, t):
        b1, b2 = settings["betas"]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return w - lr * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + settings["eps"]), m, v

    def adamw(w, g, m, v, lr, t):
        return adam(w * (1 - lr * settings["weight_decay"]), g, m, v, lr, t)

    return {"momentum": momentum, "adam": adam, "adamw": adamw}


def outputs(reading, params, x):
    """The network's outputs: x is (N, C), tokens (N, T), or (N, H, W, C)."""
    import jax
    import jax.numpy as jnp

    def affine(x, op):
        w, b = params[2 * op["weight"]], params[2 * op["weight"] + 1]
        if op["kernel"] == (1, 1) and op["stride"] == (1, 1):
            return x @ w.T + b
        w = w.T[None, None] if w.ndim == 2 else w  # one that looks at every second position
        return b + jax.lax.conv_general_dilated(
            x, w, op["stride"], [(p, p) for p in op["padding"]], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def norm(x, op, axes):
        gain, shift = params[2 * op["weight"]], params[2 * op["weight"] + 1]
        off = x - x.mean(axes, keepdims=True)
        return gain * off / jnp.sqrt((off * off).mean(axes, keepdims=True) + op["eps"]) + shift

    def attend(x, op):
        n, places, _ = x.shape
        q, k, v = (t.reshape(n, places, op["choice"], -1) for t in jnp.split(x, 3, -1))
        scores = jnp.einsum("nihd,njhd->nhij", q, k) / np.sqrt(q.shape[-1])
        scores = jnp.where(np.tri(places, dtype=bool), scores, -jnp.inf)
        return jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(scores), v).reshape(n, places, -1)

    activations = (jax.nn.relu, jnp.tanh, lambda x: jax.nn.gelu(x, approximate=False))
    made = {0: x}
    for op in reading.ops:
        kind, x = op["kind"], made[op["source"]]
        if kind == tape.CONVOLVE:
            y = affine(x, op)
        elif kind in (tape.BATCH_NORM, tape.LAYER_NORM) or (
            kind == tape.GROUP_NORM and op["choice"] == x.ndim - 1 == 1
        ):
            y = norm(x, op, tuple(range(x.ndim - 1)) if kind == tape.BATCH_NORM else -1)
        elif kind == tape.ACTIVATE:
            y = activations[op["choice"]](x)
        elif kind == tape.ADD:
            y = x + made[op["other"]]
        elif kind == tape.MEAN:
            y = x.mean((1, 2))
        elif kind == tape.EMBED:
            y = params[2 * op["weight"]][x] + params[2 * op["weight"] + 2][: x.shape[-1]]
        elif kind == tape.ATTEND:
            y = attend(x, op)
        else:
            raise NotImplementedError(kind)
        made[op["to"]] = jax.nn.relu(y) if op.get("relu") else y
    return made[len(reading.shapes) - 1]
