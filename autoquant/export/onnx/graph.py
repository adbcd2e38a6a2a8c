"""An ONNX graph under construction: constants, nodes, and the finished model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

OPSET, IR_VERSION = 18, 10  # old enough for every runtime of the last years
MICROSOFT = "com.microsoft"  # ONNX Runtime's fused operators
FLOAT, INT8, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64


class Graph:
    """Nodes in the order in which they are added; names are made up, equal constants are stored once."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[TensorProto] = []
        self._count = 0

    def constant(self, array: np.ndarray) -> str:
        """The name of an initializer that holds `array`, in its own type."""
        array = np.asarray(array, order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self._name()
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """A constant vector of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def floats(self, array: np.ndarray) -> str:
        """A float32 tensor; stored in half precision, and cast when the session loads, where that is exact."""
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            return self.op("Cast", self.constant(half), to=FLOAT)
        return self.constant(array.astype(np.float32))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; returns the output's name. An input "" is one left out."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node of several outputs; returns their names."""
        names = [self._name() for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def rename(self, name: str, wanted: str) -> None:
        """Give a tensor the name by which callers know it."""
        self._nodes.append(helper.make_node("Identity", [name], [wanted]))

    def finish(
        self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], name: str, metadata: dict[str, str]
    ) -> ModelProto:
        """The checked model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="autoquant")
        helper.set_model_props(model, metadata)
        checker.check_model(model)
        return model

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"
