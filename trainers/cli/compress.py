"""zoo compress METHOD WORKDIR --out=D [--config.KEY=VALUE ...]: a smaller model.

METHOD is prune. The model of WORKDIR learns on by its own recipe, changed by the overrides, while
its smallest weights become 0: --config.compress.sparsity=0.8, if nothing else is said. D is a work
directory like any other (run again to go on); D/compression.json compares the two.
"""

import sys
from pathlib import Path

from absl import flags

from trainers.cli.common import TERMINATED, modules_flag, parse, run
from trainers.recipe import change, of_workdir
from trainers.start import start_tensorflow
from trainers.workdir import model_path, read_config
from zoo.errors import UsageError, near_names

METHODS = ("prune",)

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", None, "The new work directory.", flag_values=_FLAGS)
_IMPORT = modules_flag(_FLAGS)


def command(argv) -> int:
    """Compresses and compares."""
    words, overrides = parse(
        _FLAGS, argv, __doc__, at_least=2, at_most=2, overrides=True, modules=_IMPORT
    )
    method, workdir = words
    if method not in METHODS:
        raise UsageError(
            f"There is no method {method!r}.{near_names(method, METHODS)} "
            f"Known: {', '.join(METHODS)}."
        )
    if not _OUT.value:
        raise UsageError("zoo compress needs --out=D, a new work directory.")
    if Path(_OUT.value).resolve() == Path(workdir).resolve():
        raise UsageError("--out is another folder than the one that is compressed.")
    saved = read_config(workdir)
    model_path(workdir)
    config = change(of_workdir(saved["config"]), _with_defaults(saved, workdir, overrides))
    if not (config.compress.sparsity or config.compress.m_by_n):
        raise UsageError("Nothing is pruned with compress.sparsity=0 and compress.m_by_n=().")

    start_tensorflow()
    from trainers.compress.summary import table, write_summary
    from trainers.trainer import Terminated, Trainer

    trainer = Trainer(config, _OUT.value, source=saved["source"])
    try:
        trainer.train()
    except Terminated:
        print(f"stopped by SIGTERM and saved at step {trainer.done}; run again to go on")
        return TERMINATED
    print(table(write_summary(workdir, _OUT.value, method)))
    return 0


def _with_defaults(saved, workdir: str, overrides):
    defaults = [("init_from", workdir)]
    if saved["tokenizer"]:
        defaults.append(("data.tokenizer", workdir))
    if not {"compress.sparsity", "compress.m_by_n"} & {key for key, _ in overrides}:
        defaults.append(("compress.sparsity", "0.8"))
    return [*defaults, *overrides]


if __name__ == "__main__":
    sys.exit(run(command))
