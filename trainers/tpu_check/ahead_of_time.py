"""The process that compiles for a TPU: `python -m trainers.tpu_check.ahead_of_time TOPOLOGY`.

It reads the path of a serialized HloModuleProto per line and prints one line of JSON for each:
sizes, "flops", "bytes" and "seconds", or "error". It uses neither TensorFlow nor a device.
"""

import json
import re
import sys
import time
from pathlib import Path


def serve(topology: str) -> None:
    """Handles requests until stdin ends."""
    output, sys.stdout = sys.stdout, sys.stderr  # keeps prints of libraries out of the output
    for line in sys.stdin:
        try:
            result = compile_for(line.strip(), topology)
        except Exception as error:
            result = {"error": " ".join(str(error).split())}
        output.write(json.dumps(result) + "\n")
        output.flush()


def compile_for(hlo: str, topology: str) -> dict:
    """Compiles a file for one device of a topology; see `trainers.tpu_check.compiler`."""
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices
    device = devices[0]
    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=1, device_assignment=np.array([[device.id]])
    )
    start = time.perf_counter()
    with mlir.make_ir_context():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(Path(hlo).read_bytes()))
        text = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
        module = ir.Module.parse(convert_for_tpu(text))
        program = device.client.compile(module, _jax.DeviceList((device,)), options)
    memory, cost = program.get_compiled_memory_stats(), costs(program)
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "unknown_loops": cost["unknown"],
        "seconds": time.perf_counter() - start,
    }


def convert_for_tpu(text: str) -> str:
    """Rewrites StableHLO that TensorFlow lowered for a CPU into StableHLO for a TPU.

    Random numbers use the default algorithm of the device (TensorFlow's
    `DefaultRngAlgForDeviceType`); its state has two words on a TPU, while Philox has three. JAX
    does not parse MHLO copies: they become reshapes to the same shape.

    Args:
      text: a module in the generic form.
    """
    text = re.sub(
        r'"mhlo\.copy"\((%[^)]*)\)( <\{[^}]*\}>)?( \{[^}]*\})? : ',
        r'"stablehlo.reshape"(\1) : ',
        text,
    )
    pattern = (
        r'%(\d+):2 = "stablehlo\.rng_bit_generator"\((%[\w#]+)\) '
        r"<\{rng_algorithm = #stablehlo<rng_algorithm PHILOX>\}> : \(tensor<3xui64>\) -> "
        r"\(tensor<3xui64>, (.*)\)(.*)\n"
    )
    generators = {number for number, *_ in re.findall(pattern, text)}

    def use(match):
        number, result = match.groups()
        return f"%{('state', 'bits')[int(result)]}{number}" if number in generators else match[0]

    text = re.sub(r"%(\d+)#([01])\b", use, text)
    return re.sub(pattern, _GENERATOR, text)


# In order: two words of the state, the generator, and a state of three words for later operations.
_GENERATOR = r"""
    %seed\1 = "stablehlo.slice"(\2) <{limit_indices = array<i64: 2>, start_indices = array<i64: 0>,
        strides = array<i64: 1>}> : (tensor<3xui64>) -> tensor<2xui64>
    %word\1 = "stablehlo.slice"(\2) <{limit_indices = array<i64: 3>, start_indices = array<i64: 2>,
        strides = array<i64: 1>}> : (tensor<3xui64>) -> tensor<1xui64>
    %next\1, %bits\1 = "stablehlo.rng_bit_generator"(%seed\1) <{rng_algorithm =
        #stablehlo<rng_algorithm DEFAULT>}> : (tensor<2xui64>) -> (tensor<2xui64>, \3)\4
    %state\1 = "stablehlo.concatenate"(%next\1, %word\1) <{dimension = 0 : i64}> :
        (tensor<2xui64>, tensor<1xui64>) -> tensor<3xui64>
"""


def costs(program) -> dict[str, float]:
    """Returns a program's "flops" and "bytes accessed", with loops multiplied by their iterations.

    XLA's analysis counts the body of a loop once, so each body is analyzed separately. Loops whose
    number of iterations is unknown count once; "unknown" is the number of such loops.
    """
    from jax import devices
    from jaxlib import _hlo, _jax

    client = devices("cpu")[0].client  # without a TPU, the TPU client has no cost analysis

    def analyze(text):
        return _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(text))

    total_cost = program.cost_analysis()
    parts = ProgramText(program.hlo_modules()[0].to_string())
    keys = ("flops", "bytes accessed")
    counted_once, with_iterations = (
        analyze(parts.program(parts.entry)),
        parts.weighted(analyze, keys),
    )
    # Parsed text has the layouts of a CPU, so only the ratio of the two costs is used.
    costs = {
        key: total_cost.get(key, 0.0) * with_iterations[key] / max(counted_once.get(key, 0.0), 1.0)
        for key in keys
    }
    return {**costs, "unknown": len(parts.unknown)}


class ProgramText:
    """A compiled program's text, split into its computations.

    Args:
      text: XLA's text of a module.

    Attributes:
      entry: name of the entry computation.
      unknown: conditions of loops with an unknown number of iterations.
    """

    def __init__(self, text: str):
        self.blocks, self.unknown = {}, set()
        for block in text.split("\n\n"):
            match = re.match(r"\s*(ENTRY )?%(\S+) \(", block)
            if match:
                self.blocks[match[2]] = block.strip().removeprefix("ENTRY ")
                self.entry = match[2] if match[1] else getattr(self, "entry", "")

    def program(self, name: str) -> str:
        """Returns a computation and the computations that it calls, as a program."""
        reachable, queue = set(), [name]
        while queue:
            block_name = queue.pop()
            if block_name not in reachable:
                reachable.add(block_name)
                queue += self._called(self.blocks[block_name])
        parts = [
            ("ENTRY " if other == name else "") + block
            for other, block in self.blocks.items()
            if other in reachable
        ]
        return "\n\n".join(["HloModule part", *parts])

    def loops(self, name: str) -> list[tuple[int, str]]:
        """Returns `(iterations, body)` of the outermost loops of a computation."""
        loops, visited, queue = [], set(), [name]
        while queue:
            block_name = queue.pop()
            if block_name in visited:
                continue
            visited.add(block_name)
            for line in self.blocks[block_name].splitlines():
                loop = re.search(r" while\(.*condition=%([^,\s]+), body=%([^,\s]+)", line)
                if loop:
                    loops.append((self._num_iterations(loop[1]), loop[2]))
                else:
                    queue += self._called(line)
        return loops

    def weighted(self, analyze, keys, name: str = "") -> dict[str, float]:
        """Returns a computation's costs, with loops multiplied by their iterations.

        Args:
          analyze: function from a program's text to its costs, with loops counted once.
          keys: names of the costs.
          name: name of the computation; the entry by default.
        """
        name = name or self.entry
        cost = analyze(self.program(name))
        total = {key: cost.get(key, 0.0) for key in keys}
        for num_iterations, body in self.loops(name):
            inside, body_once = self.weighted(analyze, keys, body), analyze(self.program(body))
            for key in keys:
                total[key] += num_iterations * inside[key] - body_once.get(key, 0.0)
        return total

    def _called(self, text: str) -> list[str]:
        return [name for name in re.findall(r"%([^\s,(){}]+)", text) if name in self.blocks]

    def _num_iterations(self, condition: str) -> int:
        """Returns the number of iterations of a loop; 1 if it is unknown.

        TensorFlow's loops count from 0 to a constant in their condition. The loop of a gradient has
        as many iterations as the loop of the same name in the forward pass.
        """
        limit = self._limit(condition)
        if limit is None:
            loop_name = _loop_name(self.blocks[condition])
            limits = {_loop_name(block): self._limit(name) for name, block in self.blocks.items()}
            limit = limits.get(loop_name.replace("gradient_tape/", "")) if loop_name else None
        if limit is None:
            self.unknown.add(condition)
        return limit or 1

    def _limit(self, condition: str) -> int | None:
        block = self.blocks[condition]
        if "ROOT" not in block or "pred[]" not in block.splitlines()[0]:
            return None
        limits = re.findall(r"= s(?:32|64)\[\]\S* constant\((\d+)\)", block)
        return max(map(int, limits), default=None)


def _loop_name(condition: str) -> str:
    """Returns the name of a loop in the model, such as `lstm/while`, from its condition."""
    names = re.findall(r'op_name="(?:call\.\d+/)*([^"]*while[^/"]*)/', condition)
    return names[-1] if names else ""
