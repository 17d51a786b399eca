"""Lowers a train step to HLO and checks for operations that no TPU supports. Needs no libtpu."""

import contextlib
import re

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.compiler.xla.xla_data_pb2 import PrimitiveType
from tensorflow.python.framework import op_def_registry
from tensorflow.python.ops import random_ops_util

from trainers.tpu_check.abstract import AbstractStep, Share
from zoo.errors import RunError

# Instructions that communicate with the host.
_HOST_INSTRUCTIONS = {"custom-call", "infeed", "outfeed", "send", "recv"}
# TensorFlow's message for an operation without an XLA kernel: `Name (No registered ...)`.
_UNSUPPORTED = re.compile(r"(\w+) \(No registered .*?\{\{node ([^}]*)\}\}", re.DOTALL)
# XLA removes these operations and their text.
_REMOVED_OPERATIONS = {"Assert", "Print", "PrintV2"}


def lower(abstract: AbstractStep, share: Share) -> bytes:
    """Returns the whole update of one core as a serialized HloModuleProto.

    Raises:
      RunError: if a TPU does not support the step; the message names each failed check and the
        operations.
    """
    step, batch = abstract.step, abstract.batch(share)
    text = [f"input {name}" for name, spec in batch.items() if spec.dtype == tf.string]
    if text:
        raise RunError(f"A TPU does not support strings ({', '.join(text)}).")
    step.micro_batch_size = share.rows if share.micro_batches > 1 else 0
    update = tf.function(step.update, jit_compile=True, autograph=False)
    # Uninitialized tensors: their memory is never touched, so they take none.
    tensors = {
        name: tf.raw_ops.Empty(shape=spec.shape, dtype=spec.dtype, init=False)
        for name, spec in batch.items()
    }
    with tpu_seeds():
        graph = update.get_concrete_function(tensors).graph.as_graph_def()
    try:
        hlo = update.experimental_get_compiler_ir(tensors)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError) as error:
        operations = strings(graph)
        if operations:
            raise RunError(f"A TPU does not support strings ({_shorten(operations)}).") from None
        raise RunError(f"XLA cannot compile the step: {reason(error)}") from None
    violations = lint(hlo)
    if violations:
        raise RunError(f"A TPU does not support {'; '.join(violations)}.")
    return hlo


@contextlib.contextmanager
def tpu_seeds():
    """Returns a context in which seeds are used unchanged, as TensorFlow's TPU kernels do.

    The kernels for a CPU, on which the step is traced, scramble each seed by hundreds of scalar
    operations.
    """
    kernels = random_ops_util.gen_stateless_random_ops_v2
    original = kernels.stateless_random_get_key_counter

    def key_and_counter(seed):
        key = tf.bitcast(tf.cast(seed, tf.int32), tf.uint64)
        return tf.reshape(key, (1,)), tf.zeros((2,), tf.uint64)

    kernels.stateless_random_get_key_counter = key_and_counter
    try:
        yield
    finally:
        kernels.stateless_random_get_key_counter = original


def reason(error: Exception) -> str:
    """Returns the operations that XLA cannot compile, or the first line of the error."""
    names = [f"{kind} ({node})" for kind, node in _UNSUPPORTED.findall(str(error))]
    return (
        f"TPUs do not support {', '.join(names)}." if names else str(error).strip().splitlines()[0]
    )


def strings(graph) -> list[str]:
    """Returns the operations of a GraphDef and its functions that have string tensors."""
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    removed_inputs = {
        name.split(":")[0] for n in nodes if n.op in _REMOVED_OPERATIONS for name in n.input
    }
    return sorted(
        f"{node.op} ({node.name})"
        for node in nodes
        if node.op not in _REMOVED_OPERATIONS
        and node.name not in removed_inputs
        and _has_strings(node)
    )


def _has_strings(node) -> bool:
    text = tf.string.as_datatype_enum
    definition = op_def_registry.get(node.op)
    arguments = [*definition.input_arg, *definition.output_arg] if definition else []
    return any(
        text in (a.type, node.attr[a.type_attr].type if a.type_attr else None) for a in arguments
    )


def lint(hlo: bytes) -> list[str]:
    """Returns the checks that a program fails, each with the operations that violate it.

    Args:
      hlo: a serialized HloModuleProto.
    """
    module = hlo_pb2.HloModuleProto.FromString(hlo)
    float64_locations, host, dynamic = {}, {}, {}
    for computation in module.computations:
        for instruction in computation.instructions:
            where = instruction.metadata.op_name or instruction.name
            shapes = list(_leaves(instruction.shape))
            # TensorFlow's kernels emit some constants as float64 and convert them immediately.
            number = instruction.opcode == "constant" and not shapes[0].dimensions
            if not number and any(_is_float64(s) for s in shapes):
                float64_locations[where] = None
            if any(any(s.is_dynamic_dimension) for s in shapes):
                dynamic[where] = None
            if instruction.opcode in _HOST_INSTRUCTIONS:
                target = instruction.custom_call_target
                host[f"{instruction.opcode} {target}".strip() + f" at {where}"] = None
    checks = (
        ("float64", float64_locations),
        ("communication with the host", host),
        ("dynamic shapes", dynamic),
    )
    return [f"{check} ({_shorten(list(locations))})" for check, locations in checks if locations]


def _is_float64(shape) -> bool:
    return PrimitiveType.Name(shape.element_type) in ("F64", "C128")


def _leaves(shape):
    if shape.tuple_shapes:
        for part in shape.tuple_shapes:
            yield from _leaves(part)
    else:
        yield shape


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
