"""zoo compress METHOD[+METHOD ...] WORKDIR --out=D [--config.KEY=VALUE ...]: makes a smaller model.
zoo compress compare D ... [--out=PAGE.html] [--json]: compares several compressed models.

METHOD is one of:
  prune   sets the smallest weights to 0: --config.compress.prune.sparsity=0.8 (default) of them
  cluster limits the distinct values per kernel: --config.compress.cluster.number=16 (default)
  qat     trains with kernels and outputs rounded to 8 bits; `zoo export` writes the integers
  distill trains a student with the model of WORKDIR as teacher. --config.model.num_layers=2 or
          --config.model.name describes the student; --config.compress.distill.alpha=0.5,
          .temperature=2, .hidden, .attention and .sentences set the loss of the teacher's outputs.
          The student starts from random weights, or from the teacher's most important units with
          --config.init_from=WORKDIR --config.compress.structured.sparsity=0.8
  low_rank
          replaces kernels by products: --config.compress.low_rank.energy=0.9 (default) is the share
          of each kernel's squared sum to keep; .budget=0.5 is the share of the parameters to keep;
          .sensitivity=0.01 lets each kernel increase the loss by one percent
  structured
          removes whole units (neurons, filters, attention heads) and builds a smaller model:
          --config.compress.structured.sparsity=0.5 (default) is the share of each layer's units
  ptq     quantizes without training, as the last method: --config.compress.ptq.format=
          litert_dynamic (default), litert_int8, litert_float16: D/model.tflite
          keras_int8, keras_int4, keras_gptq, keras_awq: D/model.keras, for transformers
All methods but ptq train the model of WORKDIR with its recipe and the overrides. Methods joined by
+ run in this order and preserve the results of earlier methods, except distill, which starts a new
student. All methods but the last write their work directories to D/stages. D is a work directory
(run the command again to resume); D/compression.json and .html compare it with WORKDIR.
"""

import json
import sys
from pathlib import Path

from trainers.cli.common import LOG, TERMINATED, Flags, run, writes_files
from trainers.compress_jobs.chain import Stage, parse_chain, plan
from trainers.run.workdir import read_config
from trainers.train import preflight
from zoo.errors import UsageError
from zoo.saved.workdir import model_path
from zoo.start import start_tensorflow

_FLAGS = Flags()
_OUT = _FLAGS.string("out", None, "New work directory; with compare, output path of an HTML page.")
_JSON = _FLAGS.boolean("json", False, "Print JSON; only with compare.")


@writes_files
def command(argv) -> int:
    """Runs `zoo compress`; returns the exit status."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=2, overrides=True)
    if words[0] == "compare":
        return _compare(words[1:], overrides)
    if len(words) > 2 or _JSON.value:
        reason = "--json requires zoo compress compare" if _JSON.value else f"Received: {words}"
        raise UsageError(f"Usage: {__doc__.splitlines()[0]} {reason}.")
    methods, workdir = parse_chain(words[0]), words[1]
    if not _OUT.value:
        raise UsageError("zoo compress requires --out=D, a new work directory.")
    out = Path(_OUT.value).absolute()
    if out.resolve() == Path(workdir).resolve():
        raise UsageError(
            f"--out must be another folder than the work directory. Received: {workdir} for both."
        )
    source = read_config(workdir)["source"]
    if any(key == "model.name" for key, _ in overrides):
        start_tensorflow()  # the arguments of the student's builder are needed
    stages = plan(methods, Path(workdir).absolute(), out, overrides)
    model_path(workdir)
    dataset = _check(stages)

    start_tensorflow()
    from trainers.compress_jobs.ptq import quantize
    from trainers.compress_jobs.summary import write_summary
    from trainers.compress_jobs.table import table
    from trainers.train.loop import Terminated
    from trainers.train.trainer import Trainer

    first = stages[0].config
    for stage in stages:
        config = stage.config
        if not stage.method.trains:
            quantize(config, stage.start, stage.workdir, source)
            continue
        has_same_data = config.data == first.data and config.task == first.task
        trainer = Trainer(
            config, stage.workdir, source=source, dataset=dataset if has_same_data else None
        )
        try:
            trainer.train()
        except Terminated as stop:
            LOG.warning(
                f"stopped by {stop} and saved at step {trainer.state.done}; run again to resume"
            )
            return TERMINATED
    print(table(write_summary(workdir, out, words[0])))
    return 0


def _check(stages: list[Stage]):
    """Checks all stages before the first one trains; returns the data if it was loaded."""
    future_workdirs = [stage.workdir for stage in stages[:-1]]
    training = [stage for stage in stages if stage.method.trains]
    for stage in training:
        preflight.check_config(stage.config, future_workdirs)
        preflight.check_start(stage.config, stage.workdir, future_workdirs)
        preflight.check_workdir(stage.config, stage.workdir)
    dataset = preflight.load_data(stages[0].config) if training else None
    for stage in training[1:]:
        preflight.check_length(stage.config, dataset)
    return dataset


def _compare(folders, overrides) -> int:
    from trainers.compress_jobs.compare import compare, comparison_table
    from trainers.compress_jobs.page import write_comparison

    if overrides:
        raise UsageError(
            f"zoo compress compare does not support overrides. Received: {overrides[0][0]}."
        )
    page = Path(_OUT.value) if _OUT.value else None
    if page and page.suffix != ".html":
        raise UsageError(f"--out of zoo compress compare must end in .html. Received: {page}.")
    comparison = compare(folders)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_comparison(comparison, page)
    print(json.dumps(comparison, indent=2) if _JSON.value else comparison_table(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
