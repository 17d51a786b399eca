"""The process that compiles for a TPU: `python -m trainers.tpu_check.ahead_of_time TOPOLOGY`.

Reads a file name a line, a serialised HloModuleProto, and answers each with a line of JSON: sizes,
"flops", "bytes" and "seconds", or "error". No TensorFlow and no device is in this process.
"""

import json
import re
import sys
import time
from pathlib import Path


def serve(topology: str) -> None:
    """Answers requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print is no answer
    for line in sys.stdin:
        try:
            answer = compile_for(line.strip(), topology)
        except Exception as error:
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), file=answers, flush=True)


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
    started = time.perf_counter()
    with mlir.make_ir_context():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(Path(hlo).read_bytes()))
        text = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
        module = ir.Module.parse(for_tpu(text))
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
        "seconds": time.perf_counter() - started,
    }


def for_tpu(text: str) -> str:
    """Rewrites StableHLO that TensorFlow made for a CPU into what it would make for a TPU.

    Random numbers come from the algorithm that the device chooses (TensorFlow's
    `DefaultRngAlgForDeviceType`), whose state on a TPU has two words where Philox has three. JAX
    does not read MHLO's copies: they become reshapes to the same shape.

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
    drawn = {number for number, *_ in re.findall(pattern, text)}

    def use(found):
        number, result = found.groups()
        return f"%{('state', 'bits')[int(result)]}{number}" if number in drawn else found[0]

    text = re.sub(r"%(\d+)#([01])\b", use, text)
    return re.sub(pattern, _GENERATOR, text)


# In order: two words of the state, the generator, and a state of three words for whoever reads it.
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
    """Returns a program's "flops" and "bytes accessed", with each loop as often as it runs.

    Of those that do not say how often, "unknown" in number, once.

    XLA's own analysis counts a loop's body once, so it is asked about each body apart.
    """
    from jax import devices
    from jaxlib import _hlo, _jax

    client = devices("cpu")[0].client  # a TPU's without a TPU has no analysis

    def once(text):
        return _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(text))

    own = program.cost_analysis()
    parts = ProgramText(program.hlo_modules()[0].to_string())
    keys = ("flops", "bytes accessed")
    whole, looped = once(parts.program(parts.entry)), parts.weighted(once, keys)
    # Its bytes are those of a CPU's layouts; the share of the loops is what they tell.
    costs = {key: own.get(key, 0.0) * looped[key] / max(whole.get(key, 0.0), 1.0) for key in keys}
    return {**costs, "unknown": len(parts.unknown)}


class ProgramText:
    """A compiled program's text, taken apart into its computations.

    Args:
      text: as XLA prints a module.

    Attributes:
      entry: name of the computation that is the program.
      unknown: conditions of loops that were asked about and do not say how often they run.
    """

    def __init__(self, text: str):
        self.blocks, self.unknown = {}, set()
        for block in text.split("\n\n"):
            found = re.match(r"\s*(ENTRY )?%(\S+) \(", block)
            if found:
                self.blocks[found[2]] = block.strip().removeprefix("ENTRY ")
                self.entry = found[2] if found[1] else getattr(self, "entry", "")

    def program(self, name: str) -> str:
        """Returns a computation, with those it calls, as a program of its own."""
        needed, waiting = set(), [name]
        while waiting:
            one = waiting.pop()
            if one not in needed:
                needed.add(one)
                waiting += self._called(self.blocks[one])
        parts = [
            ("ENTRY " if other == name else "") + block
            for other, block in self.blocks.items()
            if other in needed
        ]
        return "\n\n".join(["HloModule part", *parts])

    def loops(self, name: str) -> list[tuple[int, str]]:
        """Returns the loops of a computation, not those inside them: `(runs, body)`."""
        found, seen, waiting = [], set(), [name]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            for line in self.blocks[one].splitlines():
                loop = re.search(r" while\(.*condition=%([^,\s]+), body=%([^,\s]+)", line)
                if loop:
                    found.append((self._runs(loop[1]), loop[2]))
                else:
                    waiting += self._called(line)
        return found

    def weighted(self, once, keys, name: str = "") -> dict[str, float]:
        """Returns a computation's costs with each loop's as often as it runs.

        Args:
          once: from a program's text to its costs, with each loop's counted once.
          keys: which costs.
          name: of the computation; the entry by default.
        """
        name = name or self.entry
        cost = once(self.program(name))
        total = {key: cost.get(key, 0.0) for key in keys}
        for runs, body in self.loops(name):
            inside, counted = self.weighted(once, keys, body), once(self.program(body))
            for key in keys:
                total[key] += runs * inside[key] - counted.get(key, 0.0)
        return total

    def _called(self, text: str) -> list[str]:
        return [name for name in re.findall(r"%([^\s,(){}]+)", text) if name in self.blocks]

    def _runs(self, condition: str) -> int:
        """TensorFlow's loops count up from 0 to a constant, which stands in their condition.

        The loop of a gradient runs as often as the one it belongs to, of the same name, did.
        """
        limit = self._limit(condition)
        if limit is None:
            place = _place(self.blocks[condition])
            limits = {_place(block): self._limit(name) for name, block in self.blocks.items()}
            limit = limits.get(place.replace("gradient_tape/", "")) if place else None
        if limit is None:
            self.unknown.add(condition)
        return limit or 1

    def _limit(self, condition: str) -> int | None:
        block = self.blocks[condition]
        if "ROOT" not in block or "pred[]" not in block.splitlines()[0]:
            return None
        limits = re.findall(r"= s(?:32|64)\[\]\S* constant\((\d+)\)", block)
        return max(map(int, limits), default=None)


def _place(condition: str) -> str:
    """Returns where in the model a loop stands, by its condition: `lstm/while`."""
    found = re.findall(r'op_name="(?:call\.\d+/)*([^"]*while[^/"]*)/', condition)
    return found[-1] if found else ""
