# Copyright 2026 The glip_hf authors. MIT licence.
"""Equal layers in a row, exported to ONNX from a trace of the first: the graph has copies of it with other weights.

To trace the six blocks of GLIP's head, and then to decompose and optimise their graph, takes minutes, most of them for
what had been done for the first. So `traced_once` puts `RepeatedLayers` in the place of a row, which runs the first
layer between two marks (nodes `Enter` and `Leave`), and the optimiser, which is patched while a graph is exported, sees
that layer alone. `_repeat` then writes the others.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ._extras import require
from .modeling_glip import GlipForGrounding
from .swin_glip import GlipSwinBackbone

try:
    from transformers.exporters.utils import register_patch
except ImportError as error:  # as with PyTorch 2.6
    raise ImportError(f"Transformers' exporters need a later PyTorch than {torch.__version__} ({error}).") from error

DOMAIN = "glip_hf"  # of the marks, which no exported file has


class RepeatedLayers(nn.Module):
    """The first of equal groups of layers, which a graph repeats for the others.

    Args:
        layers: all of the row; group: of so many layers, which are traced.
        passed: positional arguments that are handed on from layer to layer: tensors, and the first results of each.
    """

    def __init__(self, name: str, layers: Sequence[nn.Module], group: int = 1, passed: int = 1) -> None:
        super().__init__()
        self.name, self.passed, self.traced = name, passed, nn.ModuleList(layers[:group])
        self.others = [layers[start : start + group] for start in range(group, len(layers), group)]  # not submodules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values, rest, found = self._mark("Enter", args[: self.passed]), args[self.passed :], None
        for layer in self.traced:
            found = layer(*values, *rest, **kwargs)
            values = found[: self.passed] if isinstance(found, tuple) else (found,)
        values = self._mark("Leave", values)
        return (*values, *found[self.passed :]) if isinstance(found, tuple) else values[0]

    def _mark(self, kind: str, values: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.onnx.ops.symbolic(
                f"{DOMAIN}::{kind}", [x], {"row": self.name, "index": i}, dtype=x.dtype, shape=x.shape, version=1
            )
            for i, x in enumerate(values)
        ]


_Row = tuple[list[str], list[list[Tensor]]]
# Of each row the names of the first group's weights in the graph, and the weights of each other group
_rows: ContextVar[dict[str, _Row]] = ContextVar("rows")


def _find_rows(model: GlipForGrounding) -> Iterator[tuple[str, nn.Module, str, int, int]]:
    """Name, owner and attribute of each row, and `group` and `passed` of its `RepeatedLayers`."""
    base = model.model
    yield "tower", base.tower, "blocks", 1, 2
    encoder = getattr(base.text_model, "encoder", None)
    if isinstance(getattr(encoder, "layer", None), nn.ModuleList):
        yield "text", encoder, "layer", 1, 1
    if isinstance(base.backbone, GlipSwinBackbone):
        for stage, layers in enumerate(base.backbone.swin["encoder"]["layers"]):
            yield f"stage{stage}", layers, "blocks", 2, 1  # every second one has shifted windows


def _are_equal(layers: Sequence[nn.Module], group: int) -> bool:
    """Whether all groups are copies of each other but for their weights: no adapter in some alone."""

    def describe(module: nn.Module) -> list[Any]:
        parts = [(name, type(one), getattr(one, "scaling", None)) for name, one in module.named_modules()]
        return [parts, [(name, weight.shape) for name, weight in module.named_parameters()]]

    firsts = list(layers[:group])
    return not len(layers) % group and all(
        describe(one) == describe(first) and all(map(torch.equal, one.buffers(), first.buffers()))
        for start in range(group, len(layers), group)
        for one, first in zip(layers[start : start + group], firsts)
    )


@contextlib.contextmanager
def traced_once(model: GlipForGrounding, graph: nn.Module) -> Iterator[None]:
    """For the export of `graph`, which holds `model`: rows of equal layers are traced once."""
    known: dict[str, _Row] = {}
    replaced, token = [], _rows.set(known)
    try:
        for row, owner, name, group, passed in _find_rows(model):
            layers = owner._modules[name]
            if len(layers) > group and _are_equal(layers, group):
                replaced.append((owner, name, layers))
                owner._modules[name] = nn.ModuleList([RepeatedLayers(row, layers, group, passed)])
        names = {id(weight): name for name, weight in graph.named_parameters()}
        for repeated in (module for module in graph.modules() if isinstance(module, RepeatedLayers)):
            others = [list(nn.ModuleList(group).parameters()) for group in repeated.others]
            known[repeated.name] = [names[id(weight)] for weight in repeated.traced.parameters()], others
        yield
    finally:
        _rows.reset(token)
        for owner, name, layers in replaced:
            owner._modules[name] = layers


@register_patch("onnx", "onnxscript.optimizer.optimize_ir")
def _optimize_first_layers(original: Callable[..., None]) -> Callable[..., None]:
    def optimize(model: Any, *args: Any, **kwargs: Any) -> None:
        graph, rows, hidden = model.graph, _rows.get({}), []
        for name in (name for names, _ in rows.values() for name in names if name in graph.initializers):
            value = graph.initializers.pop(name)  # else it would be merged with what is computed of it, or its equals
            hidden.append((value, value.const_value))
            value.const_value = None
            graph.inputs.append(value)
        original(model, *args, **kwargs)
        for value, tensor in hidden:
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)
        marked = {node.attributes["row"].as_string() for node in graph if node.domain == DOMAIN}
        for row in sorted(marked):
            _repeat(graph, row, *rows[row])
        if marked:
            graph.opset_imports.pop(DOMAIN, None)
            graph.sort()
            require("onnxscript.optimizer", "export").fold_constants(model, onnx_shape_inference=False)

    return optimize


def _repeat(graph: Any, row: str, names: Sequence[str], others: Sequence[Sequence[Tensor]]) -> None:
    """Copy what lies between the marks of a row, one copy with each group of weights, and take the marks away."""
    ir = require("onnx_ir", "export")
    marks = [node for node in graph if node.domain == DOMAIN and node.attributes["row"].as_string() == row]
    marks.sort(key=lambda node: node.attributes["index"].as_int())
    enters, leaves = ([node for node in marks if node.op_type == kind] for kind in ("Enter", "Leave"))
    entering, results = [node.outputs[0] for node in enters], [node.inputs[0] for node in leaves]
    weights = {name: graph.initializers[name] for name in names if name in graph.initializers}
    reached, needed, own = {*entering, *weights.values()}, set(results), []
    for node in graph:
        if node not in marks and not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
            own.append(node)
    for node in reversed(own):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
    own = [node for node in own if not needed.isdisjoint(node.outputs)]
    made = {value for node in own for value in node.outputs}
    outside = list(dict.fromkeys(value for node in own for value in node.inputs if value and value not in made))
    view, current = ir.GraphView(outside, results, nodes=own), results
    for number, group in enumerate(others, start=1):
        given = dict(zip(entering, current))
        for name, weight in zip(names, group, strict=True):
            if name in weights:
                tensor = ir.tensor_adapters.TorchTensor(weight.detach(), name=f"{name}.{number}")
                value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=weights[name].type)
                graph.register_initializer(value)
                given[weights[name]] = value
        copied = view.clone()
        ir.convenience.replace_all_uses_with(list(copied.inputs), [given.get(value, value) for value in outside])
        nodes, current = list(copied), list(copied.outputs)
        copied.outputs.clear()
        copied.remove(nodes)
        for named in (one for node in nodes for one in (node, *node.outputs)):
            named.name = f"{named.name}.{row}{number}"
        graph.insert_before(leaves[-1], nodes)
    last = [node.outputs[0] for node in leaves]
    ir.convenience.replace_all_uses_with(last, current, replace_graph_outputs=True)
    ir.convenience.replace_all_uses_with(entering, [node.inputs[0] for node in enters])
    graph.remove(marks, safe=True)
