"""The step of a stack on a GPU, recorded as a CUDA graph and replayed.

A step of small networks is hundreds of small kernels, and to launch them one by one takes the CPU longer than they take
the GPU. A graph launches them all at once. It reads and writes the same memory every time: what comes in is copied
there, and a step's last act is to copy what it made over what it read.
"""

import warnings
from contextlib import contextmanager
from functools import cache

import torch


class Graphs:
    """``advance(carry, batch, lr) -> carry``, replayed: one graph for each shape of the batch.

    ``carry`` is a tree (tuples, lists, dicts) of tensors. What a call returns is overwritten by the next one.
    """

    def __init__(self, advance):
        self.advance, self.graphs = advance, {}

    def __call__(self, carry, batch, lr):
        lanes, shape = len(batch), tuple(batch.shape)
        if shape not in self.graphs:
            self.graphs = {
                s: graph for s, graph in self.graphs.items() if s[0] == lanes
            }  # lanes that left do not return
            self.graphs[shape] = self._recorded(carry, batch, lr)
        return self.graphs[shape](carry, batch, lr)

    def _recorded(self, carry, batch, lr):
        held, graph, stream = _copied((carry, batch, lr)), torch.cuda.CUDAGraph(), _stream(batch.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces on the first calls
            self.advance(*held)
            try:
                with _refusing_to_wait():
                    self.advance(*held)
            except RuntimeError as error:  # a loss or model of the reader's that asks the GPU for a number, say
                warnings.warn(f"the step cannot be replayed as a CUDA graph, and is slower: {error}", stacklevel=5)
                return self.advance
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            _copy(held[0], self.advance(*held))

        def replay(*given):
            _copy(held, given)
            graph.replay()
            return held[0]

        return replay


@cache
def _stream(device):
    """One stream for all recordings: each new one would keep a workspace of 32 MB for good."""
    return torch.cuda.Stream(device)


@contextmanager
def _refusing_to_wait():
    """Inside, what waits for the GPU raises a RuntimeError: in a recording it would break the generators for good."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _leaves(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(branch)


def _copied(tree):
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {name: _copied(branch) for name, branch in tree.items()}
    return type(tree)(_copied(branch) for branch in tree)


def _copy(to, source):
    for old, new in zip(_leaves(to), _leaves(source), strict=True):
        if old is not new:
            old.copy_(new)
