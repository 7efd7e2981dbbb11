"""How fast is the processor at best? A large matrix product of one kind of number.

Run: python benchmarks/roof.py float32|bfloat16|int8

`contender` joins the rounds of a comparison, so that the roof is of the same minutes.
"""

import sys
from collections.abc import Callable

import harness
import numpy as np
from harness import THREADS, Contender

SIDE = 2048


def contender(kind: str) -> Contender:
    """Return the contender that measures the roof.

    Args:
        kind: "float32", "bfloat16", or "int8": uint8 times int8, as the
            convolutions of int8 files.
    """
    command = (sys.executable, __file__, kind)
    unit = "GOP/s" if kind == "int8" else "GFLOP/s"
    return Contender(f"roof {kind}", command, unit)


def main() -> None:
    """Measure one kind."""
    kind = sys.argv[1]
    product, library = _integers() if kind == "int8" else _floats(kind)
    run = harness.sampled(product, items=1, warm_up=3, samples=15)
    run["samples"] = [2 * SIDE**3 * rate / 1e9 for rate in run["samples"]]
    harness.emit(run, versions=harness.versions(library))


def _floats(kind: str) -> tuple[Callable[[], object], str]:
    import tensorflow as tf

    one = tf.cast(tf.random.stateless_uniform((SIDE, SIDE), (0, 0)), kind)
    product = tf.function(lambda x: tf.reduce_sum(tf.matmul(x, x)))
    return lambda: float(product(one)), "tensorflow"


def _integers() -> tuple[Callable[[], object], str]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape = (SIDE, SIDE)
    draw = np.random.default_rng(0)
    weights = numpy_helper.from_array(draw.integers(-127, 128, shape, np.int8), "b")
    node = helper.make_node("MatMulInteger", ["a", "b"], ["product"])
    given = helper.make_tensor_value_info("a", TensorProto.UINT8, shape)
    made = helper.make_tensor_value_info("product", TensorProto.INT32, shape)
    graph = helper.make_graph([node], "roof", [given], [made], [weights])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seen = {"a": draw.integers(0, 256, shape, np.uint8)}
    return lambda: session.run(None, seen), "onnxruntime"


if __name__ == "__main__":
    main()
