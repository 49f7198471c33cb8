"""Settings found at one batch size, at another: the learning rate, and everything else that is counted in steps.

A batch ``r`` times as large sees in one step what ``r`` steps saw before. What a run remembers, forgets and waits for
should stay the same counted in *examples*: so a decay is raised to the power r, a length in steps divided by r. How far
a step may go is another matter, which depends on the optimiser, and on how much of a gradient is noise.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

from batchlab._check import count, fail, number, one_of

RULES = ("auto", "none", "sqrt", "linear", "gain")
DECAYS = {
    "ema": "power r (Busbridge 2023)",
    "momentum": "power r (Busbridge 2023)",
    "beta1": "power r (Malladi 2022, to first order)",
    "beta2": "power r: half-life in examples (Marek 2025)",
}
NAMES = {
    "sgd": ("lr", "momentum", "weight_decay", "ema"),
    "adam": ("lr", "beta1", "beta2", "eps", "weight_decay", "ema"),
    "adamw": ("lr", "beta1", "beta2", "eps", "weight_decay", "ema"),
}
SOURCES = {
    ("linear", "sgd"): "linear (Goyal 2017)",
    ("sqrt", "adam"): "square root (Malladi 2022, Hilton 2022)",
    ("gain", "sgd"): "gain (AdaScale, Johnson 2020)",
    ("gain", "adam"): "square root of the gain (McCandlish 2018)",
}
PAST = "past the critical batch size a larger batch saves hardly any steps, and no rule was shown to hold"


@dataclass(frozen=True)
class Rescaled:
    """What ``rescale`` returns: the new ``settings``, of the kind given, and for each of them the ``rules`` applied.

    ``before`` are the settings given; printing shows all three side by side.
    """

    settings: Mapping
    rules: dict
    before: Mapping
    batch_size: int
    new_batch_size: int

    def __str__(self):
        old, new = _given(self.before), _given(self.settings)
        rows = [("", f"B = {self.batch_size}", f"B = {self.new_batch_size}", "rule")]
        rows += [(name, f"{old[name]:.6g}", f"{new[name]:.6g}", rule) for name, rule in self.rules.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:3]
        return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)


def rescale(
    settings,
    batch_size,
    new_batch_size,
    *,
    optimizer,
    rule="auto",
    noise_scale=None,
    critical_batch=None,
    past_critical="refuse",
    keep=None,
):
    """Return the settings for ``new_batch_size`` that correspond to ``settings`` at ``batch_size``: a ``Rescaled``.

    With r = new_batch_size / batch_size and equal numbers of examples before and after:

    - ``lr``: x r for SGD ("linear": Goyal et al. 2017), x sqrt(r) for Adam ("sqrt": Malladi et al. 2022, Hilton et al.
      2022). With a ``noise_scale``, one rule for small and large batches ("gain"): x g for SGD, g = (1 + noise_scale /
      batch_size) / (1 + noise_scale / new_batch_size), which is r far below the noise scale and 1 far above it. It is
      AdaScale's gain (Johnson et al. 2020), whose ratio of variance to squared mean is that of a batch of
      ``batch_size``: noise_scale = that ratio x batch_size. For Adam x sqrt(g): McCandlish et al. (2018) have powers
      from 1/2 to 1 for it.
    - ``beta1``, ``beta2``, ``ema``: to the power r, so that what is remembered is as many examples (Busbridge et al.
      2023; Marek et al. 2025 for beta2).
    - ``momentum`` of SGD: unchanged, since chapter 6 measured that moving it along costs half a point to two on the
      way down, and most runs on the way up. With ``keep=()`` it goes to the power r too; then ``lr`` / (1 -
      ``momentum``), the distance a constant gradient moves the weights, goes by the rule of lr (Smith et al. 2018).
    - ``eps`` of Adam: / sqrt(r) (Malladi et al. 2022).
    - ``weight_decay``: unchanged for "sgd" and "adam", where it is part of the loss. For "adamw" the weights shrink by
      lr x weight_decay a step, and by as much an example as before: x r / (change of lr), which keeps the timescale
      batch_size / (lr x weight_decay x N) (Wang & Aitchison 2025, Bergsma et al. 2025).
    - names that end in ``_steps`` (``warmup_steps``, ``evaluate_every_steps``): / r, a real number, round it as you
      need; in ``_examples``: unchanged.

    Args:
        settings: a mapping or a dataclass of finite numbers with ``lr`` and any of these names. A field that is None
            is left out.
        batch_size, new_batch_size: examples an update, all devices and accumulated micro-batches together.
        optimizer: "sgd" (also with momentum, as torch has it, without dampening), "adam" (weight decay joins the
            gradient; RMSProp is Adam without beta1) or "adamw" (torch's, where lr multiplies weight decay).
        rule: of lr: "auto" as above, or "none", "sqrt", "linear" or "gain" for any optimizer.
        noise_scale: in examples, for "gain": B_simple = tr(Sigma) / |g|^2 or, better where curvatures differ, B_noise
            (``noise.noise_scale`` measures both). On least squares with curvatures 1, 1/2, ... the gain with B_noise
            stays within 13% of the exact best rate; with B_simple it ends 78% too high, past what is stable.
        critical_batch: in examples. If the larger of two different sizes lies above it: ValueError, or with
            ``past_critical="warn"`` a UserWarning.
        keep: names of settings to leave as they are; None for SGD's ``momentum``, ``()`` for none of them.

    Equal sizes change nothing, and there and back is where one began, but for rounding. The powers are a start for
    tuning, not the best that chapter 6 measured on a small network. There the rules for lr cost next to nothing between
    4 and 64 examples, and moving beta1, beta2, eps and weight decay along helped AdamW. On the way to 1,024 no rule was
    safe: AdamW lost least with rule="none" or the gain, more by its square root, more still (on average) with the
    powers. So ``keep`` beta1 and beta2 where the batch grows more than fourfold.

    Raises ValueError on a bad value, on a name that ``optimizer`` doesn't have, and past the critical batch size.

    >>> print(rescale({"lr": 0.1, "momentum": 0.9, "warmup_steps": 500}, 256, 64, optimizer="sgd"))
                  B = 256  B = 64  rule
    lr            0.1      0.025   linear (Goyal 2017)
    momentum      0.9      0.9     kept: lost accuracy where it moved
    warmup_steps  500      2000    / r: as many examples
    >>> print(rescale({"lr": 3e-4, "beta1": 0.9, "beta2": 0.95}, 32, 256, optimizer="adam", keep=("beta1", "beta2")))
           B = 32  B = 256      rule
    lr     0.0003  0.000848528  square root (Malladi 2022, Hilton 2022)
    beta1  0.9     0.9          kept: asked for
    beta2  0.95    0.95         kept: asked for
    """
    old = _settings(settings, one_of("optimizer", optimizer, tuple(NAMES)))
    batch_size, new_batch_size = count("batch_size", batch_size), count("new_batch_size", new_batch_size)
    r = new_batch_size / batch_size
    why = "kept: asked for" if keep is not None else "kept: lost accuracy where it moved"
    keep = tuple({"momentum"} & set(old)) if keep is None else keep
    if not isinstance(keep, tuple) or not set(keep) <= set(old):
        fail("keep", keep, "a tuple of names from the settings: " + ", ".join(old))
    family = "sgd" if optimizer == "sgd" else "adam"
    rule = _rule(rule, family, noise_scale)
    _look_past(batch_size, new_batch_size, critical_batch, past_critical)

    new, said = dict(old), {}
    for name in old:
        if name in keep:
            said[name] = why
        elif name in DECAYS:
            new[name], said[name] = old[name] ** r, DECAYS[name]
        elif name == "eps":
            new[name], said[name] = old[name] / math.sqrt(r), "/ sqrt(r) (Malladi 2022)"
        elif name.endswith("_steps"):
            new[name], said[name] = old[name] / r, "/ r: as many examples"
        else:
            said[name] = "kept: counted in examples" if name.endswith("_examples") else "kept: part of the loss"
    if "lr" not in keep:
        factor = {"none": 1.0, "sqrt": math.sqrt(r), "linear": r}.get(rule)
        if factor is None:
            gain = (1 + noise_scale / batch_size) / (1 + noise_scale / new_batch_size)
            factor = gain if family == "sgd" else math.sqrt(gain)
        new["lr"] = old["lr"] * factor
        said["lr"] = "kept: rule 'none'" if rule == "none" else SOURCES.get((rule, family), rule)
        if new.get("momentum") != old.get("momentum"):
            new["lr"] *= (1 - new["momentum"]) / (1 - old["momentum"])
            said["lr"] += ", of lr / (1 - momentum)"
    if optimizer == "adamw" and "weight_decay" in old and "weight_decay" not in keep:
        new["weight_decay"] = old["weight_decay"] * r * old["lr"] / new["lr"]
        said["weight_decay"] = "timescale in examples (Wang & Aitchison 2025, Bergsma 2025)"
    made = replace(settings, **new) if is_dataclass(settings) else {**settings, **new}
    return Rescaled(made, said, settings, batch_size, new_batch_size)


def _given(settings):
    """The settings as a dict, without fields that are None."""
    pairs = {f.name: getattr(settings, f.name) for f in fields(settings)} if is_dataclass(settings) else settings
    return {name: value for name, value in pairs.items() if value is not None}


def _settings(settings, optimizer):
    if not isinstance(settings, Mapping) and (not is_dataclass(settings) or isinstance(settings, type)):
        fail("settings", settings, "a mapping or a dataclass of names and numbers")
    old = _given(settings)
    if "lr" not in old:
        fail("settings", settings, "an lr among them")
    for name, value in old.items():
        if not isinstance(name, str) or not (name in NAMES[optimizer] or name.endswith(("_steps", "_examples"))):
            fail("settings", name, f"of {optimizer!r} " + ", ".join(NAMES[optimizer]) + ", *_steps or *_examples")
        if name in DECAYS:
            old[name] = number(name, value, at_least=0, below=1)
        elif name == "weight_decay" or name.endswith(("_steps", "_examples")):
            number(name, value, at_least=0)
        else:
            number(name, value, above=0)
    return old


def _rule(rule, family, noise_scale):
    one_of("rule", rule, RULES)
    if noise_scale is not None:
        number("noise_scale", noise_scale, above=0)
    if rule == "gain" and noise_scale is None:
        fail("noise_scale", noise_scale, "a number of examples, which rule='gain' needs")
    if rule not in ("auto", "gain") and noise_scale is not None:
        fail("noise_scale", noise_scale, f"None with rule={rule!r}, which doesn't use it")
    if rule == "auto":
        return "gain" if noise_scale is not None else {"sgd": "linear", "adam": "sqrt"}[family]
    return rule


def _look_past(batch_size, new_batch_size, critical_batch, past_critical):
    one_of("past_critical", past_critical, ("refuse", "warn"))
    if critical_batch is None:
        return
    critical = number("critical_batch", critical_batch, above=0)
    if batch_size == new_batch_size or max(batch_size, new_batch_size) <= critical:
        return
    name, size = max(("batch_size", batch_size), ("new_batch_size", new_batch_size), key=lambda pair: pair[1])
    if past_critical == "refuse":
        fail(name, size, f"at most critical_batch = {critical:g} ({PAST}); past_critical='warn' goes on")
    warnings.warn(f"{name} = {size} is above critical_batch = {critical:g}: {PAST}", stacklevel=3)
