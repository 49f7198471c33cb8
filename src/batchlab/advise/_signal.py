"""What the gradients say: the noise scale along a short run, of the layers too, and how far the rate may go."""

import math

import numpy as np
import torch

from batchlab._seeds import generator
from batchlab.advise._measured import Look, RateRange
from batchlab.advise._steps import batch_norms, take
from batchlab.instruments._probe import check_loss, trained
from batchlab.instruments.memory import out_of_memory
from batchlab.instruments.noise import noise_scale, two_batch
from batchlab.problem import rowwise

PIECES = 4  # micro-batches of a step in the short run
LOOKS = 8  # at single examples, as far as half of the time lasts for them
WINDOWS = 4  # of the short run, a look of micro-batches each
SAMPLE, PROBES = 1024, 32  # examples of one look; random combinations of their gradients
HELD = 2**27  # bytes that the combinations may take: they decide whether a look at single examples is to be had
RATES = 60  # steps of a rate range, through four powers of ten
PER_EXAMPLE = "bl.noise.noise_scale(*problem.arguments(...))"
PER_PIECE = "bl.noise.two_batch, on the micro-batches of the short run"


def order(pool, seed, *key):
    """An endless stream of places in the pool, reshuffled each time round."""
    epoch = 0
    while True:
        yield from generator(seed, "order", *key, epoch).permutation(pool.size)
        epoch += 1


def draw(stream, size):
    return np.fromiter((next(stream) for _ in range(size)), dtype=np.int64, count=size)


def single_examples(problem, pool, seed):
    """B_simple now from the gradients of single examples, or the reason why there are none, a sentence."""
    weights = sum(p.numel() for p in trained(problem.model))
    if weights * (PROBES + 1) * 8 > HELD:
        return f"{weights:,} weights: gradients of single examples would take too much memory"
    if batch_norms(problem.model):
        return "batch normalisation ties the examples of a batch together"
    flags = [(m, m.training) for m in problem.model.modules()]
    problem.model.eval()
    try:
        size = min(SAMPLE, pool.size)
        population = None if pool.population is None else max(pool.population, size)
        arguments = rowwise(problem, problem.sent(pool.batch(size)))
        return noise_scale(*arguments, population=population, probes=PROBES, seed=seed, memory=HELD).b_simple
    except Exception as error:  # whatever a model does that torch.func cannot follow
        if isinstance(error, torch.OutOfMemoryError) or out_of_memory(error):
            return "gradients of single examples do not fit in memory"
        return f"no gradients of single examples ({str(error).strip().splitlines()[0][:120]})"
    finally:
        for module, training in flags:
            module.training = training


def short_run(problem, pool, steps, left, seed, single=True):
    """(looks, {layer: B_simple}, notes) along ``steps`` steps at the problem's batch size, in micro-batches.

    ``single``: whether to try gradients of single examples. The model trains: call
    it where that is undone.
    """
    size = max(problem.batch_size, 2)
    least = 8 if batch_norms(problem.model) else 1
    pieces = max(2, min(PIECES, size // least))
    micro = max(size // pieces, 1)
    notes, looks, norms = [], [], []
    if batch_norms(problem.model) and micro < least:
        return (), {}, [("batch normalisation", f"a batch of {size} is too small to be cut into pieces of {least}: no "
                         "noise scale")]  # fmt: skip
    stream, parameters = order(pool, seed), trained(problem.model)
    groups = _layers(problem.model)
    begin = left()
    now = single_examples(problem, pool, seed) if single else "the loss is not a plain mean over examples"
    cost, count = begin - left(), WINDOWS
    if isinstance(now, str):
        single = False
        notes.append(("single examples", f"{now}; the noise scale comes from micro-batches of {micro}"))
    else:
        looks.append(Look(0, now, PER_EXAMPLE))
        count = max(1, min(LOOKS, int(left() / 2 / cost))) if cost > 0 else LOOKS
    done, marks = 0, {round(steps * k / count) for k in range(1, count + 1)}
    for step in range(1, steps + 1):
        pair = _pieces_step(problem, pool, draw(stream, micro * pieces), pieces, parameters, groups)
        if pair is None:
            notes.append(("the short run", f"the loss left the finite numbers at step {step}, at the optimizer's rate"))
            break
        norms.append(pair)
        done = step
        late = left() <= 0
        if step in marks or late:
            examples = step * micro * pieces
            if single:
                found = single_examples(problem, pool, seed)
                if not isinstance(found, str):
                    looks.append(Look(examples, found, PER_EXAMPLE))
            else:
                window = norms[sum(look_steps for look_steps in _used(looks, micro * pieces)) :]
                if len(window) >= 2:
                    looks.append(Look(examples, _two(window, micro, pieces, pool.size).b_simple, PER_PIECE))
        if late:
            break
    if done < steps:
        notes.append(("the short run", f"it ended after {done} of {steps} steps"))
    layers = {}
    if len(norms) >= 8:
        later = norms[len(norms) // 4 :]
        for place, name in enumerate(groups):
            own = [(small[place : place + 1], big[place : place + 1]) for small, big in later]
            layers[name] = _two(own, micro, pieces, pool.size).b_simple
    return tuple(looks), layers, notes


def _used(looks, batch):
    """How many steps each earlier look of micro-batches has taken in."""
    ends = [0] + [look.examples // batch for look in looks]
    return [b - a for a, b in zip(ends, ends[1:], strict=False)]


def _two(pairs, micro, pieces, population):
    """``two_batch`` of the steps' pairs; the batches were drawn without replacement from so many examples."""
    small = [float(s.sum()) for s, _ in pairs]
    big = [float(b.sum()) for _, b in pairs]
    return two_batch(small, big, micro, micro * pieces, population=population if population > micro * pieces else None)


def _layers(model):
    """{layer: places of its parameters among the trained ones}."""
    place = {id(p): i for i, p in enumerate(trained(model))}
    found, seen = {}, set()
    for name, module in model.named_modules():
        own = [place[id(p)] for p in module.parameters(recurse=False) if id(p) in place and id(p) not in seen]
        seen |= {id(p) for p in module.parameters(recurse=False)}
        if own:
            found[name.removeprefix("_orig_mod.") or type(model).__name__] = own
    return found


def _pieces_step(problem, pool, places, pieces, parameters, groups):
    """A step in micro-batches; (mean |g_small|^2, |g_big|^2) of each layer, or None where they are not finite."""
    problem.optimizer.zero_grad(set_to_none=True)
    total, small = [torch.zeros_like(p) for p in parameters], 0.0
    for part in np.array_split(places, pieces):
        value = problem.value(problem.sent(pool.fetch(part)))
        check_loss(value)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        small = small + _squares(found) / pieces
        torch._foreach_add_(total, found, alpha=1 / pieces)
    big = _squares(total)
    if not (np.isfinite(small).all() and np.isfinite(big).all()):
        return None
    for p, g in zip(parameters, total, strict=True):
        p.grad = g
    problem.optimizer.step()
    places = groups.values()
    return np.array([small[own].sum() for own in places]), np.array([big[own].sum() for own in places])


def _squares(tensors):
    return torch.stack([t.detach().float().square().sum() for t in tensors]).cpu().double().numpy()


def rate_range(problem, pool, size, left, seed):
    """A ``RateRange`` at batch ``size``: the rate rises from a hundredth of the optimizer's to a hundred times it.

    Smith's (2017) test, with his smoothing; it ends where ``_climb`` says that the loss left. None if the time is over
    before a tenth of it. The model trains: call it where that is undone.
    """
    own = float(problem.optimizer.param_groups[0]["lr"])
    lrs, losses, diverges = _climb(problem, pool, size, np.geomspace(own / 100, 100 * own, RATES), left, seed)
    if losses and not math.isfinite(losses[-1]):
        lrs, losses = lrs[:-1], losses[:-1]
    if len(lrs) < RATES // 10:
        return None
    return RateRange(size, tuple(lrs), tuple(losses), lrs[int(np.argmin(losses))], diverges)


def leaves(problem, pool, size, lr, left, seed):
    """Whether the loss leaves within so many steps at the rate ``lr`` as a rate range has; the model trains."""
    return _climb(problem, pool, size, np.full(RATES, lr), left, seed)[2] is not None


def _climb(problem, pool, size, rates, left, seed):
    """(rates, smoothed losses, the rate at which the loss left or None) of a step at each of ``rates``, as far as the
    time lasts; other groups' rates keep their ratio to the first's.

    The loss has left where it is not finite, or the smoothed loss as far above the mean of the first steps as the best
    is below, and further than those scatter.
    """
    stream, own = order(pool, seed, 1), [float(group["lr"]) for group in problem.optimizer.param_groups]
    lrs, losses, first, smooth = [], [], [], 0.0
    for step, rate in enumerate(rates):
        for group, lr in zip(problem.optimizer.param_groups, own, strict=True):
            group["lr"] = lr * rate / own[0]
        loss = float(take(problem, problem.sent(pool.fetch(draw(stream, size)))))
        smooth = 0.8 * smooth + 0.2 * loss
        lrs.append(float(rate))
        losses.append(smooth / (1 - 0.8 ** (step + 1)))
        if step < RATES // 10:
            first.append(loss)
        start = float(np.mean(first))
        far = max(start - min(losses), 2 * float(np.std(first)), 0.05 * abs(start))
        if not math.isfinite(loss) or (step >= RATES // 10 and losses[-1] > start + far):
            return lrs, losses, float(rate)
        if left() <= 0:
            break
    return lrs, losses, None
