"""zoo compress METHOD[+METHOD ...] WORKDIR --out=D [--config.KEY=VALUE ...]: a smaller model.

METHOD is one of:
  prune   the smallest weights become 0: --config.compress.sparsity=0.8, if nothing else is said
  cluster each kernel has a few values: --config.compress.cluster.number=16
  qat     kernels and outputs are rounded to 8 bits while it trains; `zoo export` then writes these
  distill a student learns from WORKDIR's model, the teacher: --config.model.num_layers=2 (or .name
          of another model) says what it is, --config.compress.distill.alpha=0.5, .temperature=2,
          .hidden, .attention, .sentences what of the teacher it learns
  low_rank
          kernels become products: --config.compress.low_rank.energy=0.9 keeps that share of each
          kernel's squared sum; .budget=0.5 that share of the parameters; .sensitivity=0.01 lets the
          loss grow by one percent a kernel
The model of WORKDIR learns on by its own recipe, changed by the overrides. Methods that are joined
by + follow each other, each keeping what the ones before it did; all but the last leave their work
directories in D/stages. D is a work directory like any other (run again to go on);
D/compression.json compares it to WORKDIR.
"""

import sys
from pathlib import Path

from absl import flags

from trainers.cli.common import TERMINATED, modules_flag, parse, run
from trainers.compress.methods import METHODS, plan
from trainers.start import start_tensorflow
from trainers.workdir import model_path, read_config
from zoo.errors import UsageError, near_names

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", None, "The new work directory.", flag_values=_FLAGS)
_IMPORT = modules_flag(_FLAGS)


def command(argv) -> int:
    """Compresses and compares."""
    words, overrides = parse(
        _FLAGS, argv, __doc__, at_least=2, at_most=2, overrides=True, modules=_IMPORT
    )
    methods, workdir = words[0].split("+"), words[1]
    for method in methods:
        if method not in METHODS:
            raise UsageError(
                f"There is no method {method!r}.{near_names(method, METHODS)} "
                f"Known: {', '.join(METHODS)}."
            )
    if not _OUT.value:
        raise UsageError("zoo compress needs --out=D, a new work directory.")
    out = Path(_OUT.value).absolute()
    if out.resolve() == Path(workdir).resolve():
        raise UsageError("--out is another folder than the one that is compressed.")
    model_path(workdir)
    source = read_config(workdir)["source"]
    stages = [out / "stages" / f"{i}-{method}" for i, method in enumerate(methods[:-1], 1)]
    folders = [Path(workdir).absolute(), *stages]
    plans = plan(methods, [str(folder) for folder in folders], overrides)

    start_tensorflow()
    from trainers.compress.summary import table, write_summary
    from trainers.trainer import Terminated, Trainer

    for config, folder in zip(plans, [*stages, out], strict=True):
        trainer = Trainer(config, folder, source=source)
        try:
            trainer.train()
        except Terminated:
            print(f"stopped by SIGTERM and saved at step {trainer.done}; run again to go on")
            return TERMINATED
    print(table(write_summary(workdir, out, words[0])))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
