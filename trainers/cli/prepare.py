"""zoo prepare RECIPE[:VARIANT] --out=D [--workers=N] [--config.KEY=VALUE ...]: pages to records.

  zoo prepare web_text --config.prep.input='crawl/*.warc.gz' --out=D
  zoo train web_text --config.data.source=prepared:D --workdir=W

prep.input is a pattern, a folder (.warc, .wet, .html, .txt, .jsonl, also .gz and .zst; .parquet),
seed URLs to crawl (http://...), or corpus:NAME of `zoo fetch`; separate several by commas.
Run the same command again to resume. D/data_card.html lists the dropped documents and the reasons.
"""

import shlex
import sys

from trainers.cli.common import Flags, require_extra, run, writes_files
from trainers.config.base import section
from trainers.config.recipe import resolve
from zoo.errors import UsageError

# Packages of the extra `prep` in setup.cfg.
_PACKAGES = (
    "brotli", "datasketch", "ftfy", "lxml_html_clean", "protego", "py3langid", "pyarrow",
    "trafilatura", "webencodings", "zstandard",
)  # fmt: skip

_FLAGS = Flags()
_OUT = _FLAGS.string("out", None, "New output folder.")
_WORKERS = _FLAGS.integer("workers", 0, "Number of processes; 0 for one per core.", lower_bound=0)
_BEAM = _FLAGS.strings(
    "beam", [], "Flag of Apache Beam, which then runs the steps: --beam=--runner=FlinkRunner "
    "--beam=--flink_master=HOST:8081. All workers must see input and D under the same paths.",
)  # fmt: skip
_PRIVATE = _FLAGS.boolean("allow_private", False, "Also crawl private and loopback addresses.")


@writes_files
def command(argv) -> int:
    """Runs `zoo prepare`; returns the exit status."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    if not _OUT.value:
        raise UsageError("zoo prepare requires --out=D, the folder to write.")
    if _BEAM.value and _WORKERS.value:
        raise UsageError(
            "--workers and --beam are mutually exclusive: set the number of workers by flags of "
            "Beam."
        )
    config = resolve(words[0], overrides)
    require_extra("zoo prepare", "prep", _PACKAGES)
    from zoo.prep.engine import BeamEngine, LocalEngine
    from zoo.prep.pipeline import prepare

    engine = (
        BeamEngine(_BEAM.value)
        if _BEAM.value
        else LocalEngine(_WORKERS.value, _FLAGS["import"].value)
    )
    with engine:
        prep, data = section(config, "prep").to_dict(), config.data.to_dict()
        result = prepare(prep, data, _OUT.value, engine, _PRIVATE.value)
    for split, count in result["documents"].items():
        print(f"{split:12}{count:12,} documents {result['tokens'][split]:14,} tokens")
    print(f"dropped documents and reasons: {_OUT.value}/data_card.html")
    data_flags = "".join(
        f" --config.{k}={shlex.quote(v)}" for k, v in overrides if k[:5] == "data."
    )
    print(
        f"zoo train {words[0]} --config.data.source=prepared:{_OUT.value}{data_flags} --workdir=W"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
