"""The step of a stack on a GPU, recorded as a CUDA graph and replayed.

A step of small networks is hundreds of small kernels, and to launch them one by one takes the CPU longer than they take
the GPU. A graph launches them all at once. It reads and writes the same memory every time: what comes in is copied
there, and a step's last act is to copy what it made over what it read.
"""

import warnings

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
        held = _copied((carry, batch, lr))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces on the first calls
            for _ in range(3):
                self.advance(*held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                _copy(held[0], self.advance(*held))
        except RuntimeError as error:  # a loss or model of the reader's that waits for the GPU, say
            warnings.warn(f"the step cannot be recorded as a CUDA graph, and is slower: {error}", stacklevel=4)
            return self.advance

        def replay(*given):
            _copy(held, given)
            graph.replay()
            return held[0]

        return replay


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
