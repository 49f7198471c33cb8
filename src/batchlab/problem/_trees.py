"""Batches in any nesting of tuples, lists and mappings: what is done to all their tensors at once."""

import copy
from collections.abc import Mapping

import torch

from batchlab._check import fail

MASKED = -100  # the target that torch's cross_entropy leaves out


def mapped(function, tree):
    """``tree`` with ``function`` applied to its tensors; anything else in it stays, and so do the types around them.

    >>> mapped(len, {"x": torch.zeros(3, 2), "names": ("a", torch.ones(4))})
    {'x': 3, 'names': ('a', 4)}
    """
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        new = copy.copy(tree)  # a BatchEncoding of transformers stays one
        for key in tree:
            new[key] = mapped(function, tree[key])
        return new
    if isinstance(tree, (tuple, list)):
        items = [mapped(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def leaves(tree, path=""):
    """Yield (path, tensor) for the tensors of ``tree``.

    >>> [path for path, _ in leaves(({"ids": torch.zeros(2)}, torch.zeros(2)))]
    ['[0].ids', '[1]']
    """
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key in tree:
            yield from leaves(tree[key], f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (tuple, list)):
        for place, item in enumerate(tree):
            yield from leaves(item, f"{path}[{place}]")


def rows(tree, name="data"):
    """The number of examples of a batch: the first axis that all its tensors share; at least one.

    >>> rows({"x": torch.zeros(3, 2), "y": torch.zeros(3)})
    3
    """
    sizes = {}
    for path, tensor in leaves(tree):
        where = f"{name}{'' if path.startswith('[') or not path else '.'}{path}"
        if tensor.ndim == 0:
            fail(where, "a tensor of shape ()", "a first axis that counts examples")
        sizes[where] = len(tensor)
    if not sizes:
        fail(name, type(tree).__name__, "tensors, or tuples, lists and mappings of them")
    if min(sizes.values()) == 0:
        fail(name, "no examples", "at least one")
    if len(set(sizes.values())) > 1:
        fail(name, ", ".join(f"{size} in {where}" for where, size in sizes.items()), "as many examples in each tensor")
    return next(iter(sizes.values()))


def row(tree, place):
    """Example ``place`` of a batch, each tensor without its first axis."""
    return mapped(lambda tensor: tensor[place], tree)


def joined(examples):
    """Examples as one batch, shorter tensors padded at their end where a mask among them says what is padding.

    A mask is a tensor of whole numbers or booleans whose name holds "mask". It is padded with 0, targets (names that
    begin with "label" or "target") with -100, which torch's cross_entropy leaves out, everything else with 0.

    >>> a, b = ({"ids": torch.ones(n), "mask": torch.ones(n, dtype=torch.int64)} for n in (2, 3))
    >>> joined([a, b])["mask"]
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    shapes = [[tensor.shape for _, tensor in leaves(example)] for example in examples]
    if all(shape == shapes[0] for shape in shapes):
        return _stacked(examples, None)
    names = [path for path, _ in leaves(examples[0])]
    if not any("mask" in name.lower() for name in names):
        odd = next(shape for shape in shapes if shape != shapes[0])
        fail(
            "data",
            f"examples of unlike shapes {[tuple(s) for s in shapes[0]]} and {[tuple(s) for s in odd]}, without a mask",
            "one shape, a mapping with an attention_mask, or a DataLoader whose collate_fn pads",
        )
    return _stacked(examples, names)


def _stacked(examples, names):
    flat = [[tensor for _, tensor in leaves(example)] for example in examples]
    made = []
    for place, tensors in enumerate(zip(*flat, strict=True)):
        name = names[place].split(".")[-1].lower() if names else ""
        made.append(_padded(tensors, MASKED if name.startswith(("label", "target")) else 0))
    found = iter(made)
    return mapped(lambda _: next(found), examples[0])


def _padded(tensors, value):
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    if all(list(t.shape) == shape for t in tensors):
        return torch.stack(tensors)
    out = tensors[0].new_full((len(tensors), *shape), value)
    for place, tensor in enumerate(tensors):
        out[(place, *(slice(0, n) for n in tensor.shape))] = tensor
    return out
