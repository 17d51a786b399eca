"""zoo compress METHOD[+METHOD ...] WORKDIR --out=D [--config.KEY=VALUE ...]: a smaller model.
zoo compress compare D ... [--out=PAGE.html] [--json]: which of several are worth having.

METHOD is one of:
  prune   the smallest weights become 0: --config.compress.prune.sparsity=0.8 is the default
  cluster each kernel has a few values: --config.compress.cluster.number=16
  qat     kernels and outputs are rounded to 8 bits while it trains; `zoo export` then writes these
  distill a student learns from WORKDIR's model, the teacher: --config.model.num_layers=2 (or .name
          of another model) says what it is, --config.compress.distill.alpha=0.5, .temperature=2,
          .hidden, .attention, .sentences what of the teacher it learns; it starts from nothing,
          or with --config.init_from=WORKDIR --config.compress.structured.sparsity=0.8 from the
          units of the teacher that matter most
  low_rank
          kernels become products: --config.compress.low_rank.energy=0.9 keeps that share of each
          kernel's squared sum; .budget=0.5 that share of the parameters; .sensitivity=0.01 lets the
          loss grow by one percent a kernel
  structured
          whole units are taken out (neurons, filters, heads of attention), and the model is built
          smaller: --config.compress.structured.sparsity=0.5 is the share that goes of each layer
  ptq     rounding without training, last in a chain: --config.compress.ptq.format=
          litert_int8, litert_dynamic (if nothing is said), litert_float16: D/model.tflite
          keras_int8, keras_int4, keras_gptq, keras_awq: D/model.keras, for transformers
The model of WORKDIR learns on by its own recipe, changed by the overrides. Methods that are joined
by + follow each other, each keeping what the ones before it did, but for distill, which makes a new
student of them; all but the last leave their work directories in D/stages. D is a work directory
like any other (run again to go on); D/compression.json and .html compare it to WORKDIR.
"""

import json
import sys
from pathlib import Path

from absl import flags

from trainers.cli.common import TERMINATED, json_flag, leaves_files, modules_flag, parse, run
from trainers.compress_jobs.methods import METHODS, plan
from trainers.run.workdir import read_config
from trainers.train import preflight
from zoo.errors import UsageError, near_names
from zoo.saved.workdir import model_path
from zoo.start import start_tensorflow

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", None, "The new work directory; of compare, a page.", flag_values=_FLAGS
)
_JSON = json_flag(_FLAGS, "compare prints JSON.")
_IMPORT = modules_flag(_FLAGS)


@leaves_files
def command(argv) -> int:
    """Compresses and compares."""
    words, overrides = parse(_FLAGS, argv, __doc__, at_least=2, overrides=True, modules=_IMPORT)
    if words[0] == "compare":
        return _compare(words[1:], overrides)
    if len(words) > 2 or _JSON.value:
        said = "--json is of `zoo compress compare`" if _JSON.value else f"Received: {words}"
        raise UsageError(f"Usage: {__doc__.splitlines()[0]} {said}.")
    methods, workdir = words[0].split("+"), words[1]
    for method in methods:
        if method not in METHODS:
            raise UsageError(
                f"There is no method {method!r}.{near_names(method, METHODS)} "
                f"Known: {', '.join(METHODS)}, and compare."
            )
    if not _OUT.value:
        raise UsageError("zoo compress needs --out=D, a new work directory.")
    out = Path(_OUT.value).absolute()
    if out.resolve() == Path(workdir).resolve():
        raise UsageError("--out is another folder than the one that is compressed.")
    source = read_config(workdir)["source"]
    stages = [out / "stages" / f"{i}-{method}" for i, method in enumerate(methods[:-1], 1)]
    folders = [Path(workdir).absolute(), *stages]
    if any(key == "model.name" for key, _ in overrides):
        start_tensorflow()  # the student's builder is asked for its arguments
    plans = plan(methods, [str(folder) for folder in folders], overrides)
    model_path(workdir)
    for name, config, folder in zip(methods, plans, [*stages, out], strict=True):
        if METHODS[name].trains:
            # Another run's folder is refused before the stages ahead of it are trained.
            preflight.check_config(config, stages)
            preflight.check_start(config, folder, stages)
            preflight.check_workdir(config, folder)
    dataset = preflight.load_data(plans[0]) if METHODS[methods[0]].trains else None
    for name, config in zip(methods[1:], plans[1:], strict=True):
        if METHODS[name].trains:
            preflight.check_length(config, dataset)

    start_tensorflow()
    from trainers.compress_jobs.summary import write_summary
    from trainers.compress_jobs.table import table
    from trainers.train.loop import Terminated
    from trainers.train.trainer import Trainer

    for name, config, start, folder in zip(methods, plans, folders, [*stages, out], strict=True):
        if not METHODS[name].trains:
            from trainers.compress_jobs.ptq import quantize

            quantize(config, start, folder, source)
            continue
        same = config.data == plans[0].data and config.task == plans[0].task
        trainer = Trainer(config, folder, source=source, dataset=dataset if same else None)
        try:
            trainer.train()
        except Terminated as stop:
            print(
                f"stopped by {stop} and saved at step {trainer.state.done}; run again to go on",
                file=sys.stderr,
            )
            return TERMINATED
    print(table(write_summary(workdir, out, words[0])))
    return 0


def _compare(folders, overrides) -> int:
    from trainers.compress_jobs.compare import compare, comparison_table
    from trainers.compress_jobs.page import write_comparison

    if overrides:
        raise UsageError(f"zoo compress compare trains nothing. Received: {overrides[0][0]}.")
    page = Path(_OUT.value) if _OUT.value else None
    if page and page.suffix != ".html":
        raise UsageError(f"The page of zoo compress compare ends in .html. Received: {page}.")
    found = compare(folders)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(found, page)
    print(json.dumps(found, indent=2) if _JSON.value else comparison_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
