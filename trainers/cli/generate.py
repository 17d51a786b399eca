"""zoo generate WORKDIR [--prompt=TEXT | --prompts=FILE] [--max_tokens=200] [--json]: text.

Continues a prompt with a language model. One prompt's text is shown as it comes; --prompts=FILE
takes one prompt a line, and --prompts=- reads them from standard input. Without a prompt a text
is begun. --temperature=0 takes the likeliest token each time; --beams=4 searches the likeliest
text and draws nothing. The same seed gives the same text; prompt number n of a file draws with
seed + n. --json prints [{"prompt", "text", "tokens", "tokens_per_second"}], where tokens are the
new ones and their rate includes compiling.
"""

import importlib
import json
import sys
import time
from pathlib import Path

from absl import flags

from trainers.cli.common import modules_flag, parse, run
from zoo import registry
from zoo.errors import RunError, UsageError

_FLAGS = flags.FlagValues()
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.", flag_values=_FLAGS)
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "A file of prompts, one a line; - for standard input.", flag_values=_FLAGS
)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "Longest text.", flag_values=_FLAGS)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.8, "Below 1 sharpens what is drawn from.", flag_values=_FLAGS
)
_TOP_K = flags.DEFINE_integer(
    "top_k", 0, "Draw from so many of the likeliest tokens; 0 for all.", flag_values=_FLAGS
)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw from the likeliest tokens of this probability.", flag_values=_FLAGS
)
_BEAMS = flags.DEFINE_integer("beams", 1, "Of a beam search; 1 for none.", flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "final", ["final", "best"], "Which weights.", flag_values=_FLAGS
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.", flag_values=_FLAGS)
_IMPORT = modules_flag(_FLAGS)

_BATCH = 16  # prompts that are continued at once


def command(argv) -> int:
    """Prints the prompts with their continuations."""
    words, _ = parse(_FLAGS, argv, __doc__, at_least=1, at_most=1, modules=_IMPORT)
    options = _options()
    prompts = _prompts()
    generator = _load(words[0], _CHECKPOINT.value)
    if len(prompts) == 1 and not _JSON.value:
        pieces = generator.stream(prompts[0], _MAX_TOKENS.value, **options)
        print(prompts[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0
    rows = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        rows += _continued(generator, batch, {**options, "seed": options["seed"] + start})
        if not _JSON.value:
            for number, row in enumerate(rows[start:], start + 1):
                print(f"--- {number} ---\n{row['prompt']}{row['text']}\n", flush=True)
    if _JSON.value:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    return 0


def _options() -> dict:
    """Returns how tokens are chosen; raises `UsageError` for what contradicts itself."""
    if _BEAMS.value > 1:
        for flag in (_TEMPERATURE, _TOP_K, _TOP_P, _SEED):
            if _FLAGS[flag.name].present:
                raise UsageError(
                    f"A beam search draws nothing: give --beams or --{flag.name}, not both."
                )
    return {
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "beams": _BEAMS.value,
        "seed": _SEED.value,
    }


def _prompts() -> list[str]:
    if _PROMPTS.value is None:
        return [_PROMPT.value or ""]
    if _PROMPT.value is not None:
        raise UsageError("Give --prompt or --prompts, not both.")
    try:
        if _PROMPTS.value == "-":
            text = sys.stdin.read()
        else:
            text = Path(_PROMPTS.value).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{_PROMPTS.value} is no UTF-8 text.") from None
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"There is no prompt in {_PROMPTS.value}.")
    return prompts


def _load(workdir: str, checkpoint: str):
    """Returns the `Generator` of a work directory.

    Raises:
      UsageError: where it holds no model that generates text, or not that model's tokenizer.
      RunError: where a file is damaged.
    """
    from trainers.start import start_tensorflow
    from trainers.workdir import load_model, model_path, read_config

    # What can be wrong is looked at before TensorFlow is loaded: it is answered at once.
    config = read_config(workdir)
    model_path(workdir, checkpoint)
    file = Path(workdir) / "tokenizer.json"
    task = config["config"]["task"]["name"]
    if not config.get("tokenizer"):
        raise UsageError(
            f"zoo generate continues text; {workdir} holds a model of the task {task!r}."
        )
    from zoo.data import tokenizers

    tokenizer = tokenizers.load(file)
    if tokenizer.fingerprint != config["tokenizer"]:
        raise UsageError(
            f"{file} is not the tokenizer that the model learned with: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}…, that in config.json {config['tokenizer'][:12]}…."
        )
    start_tensorflow()
    from trainers.generate import Generator

    arguments = config["config"]["model"]
    builder = registry.entry(arguments["name"]).builder
    if isinstance(builder, str):  # its module knows the layers that the file names
        importlib.import_module(builder.partition(":")[0])
    model = load_model(workdir, checkpoint)
    length = arguments.get("sequence_length")  # an LSTM has none
    return Generator(model, tokenizer, sequence_length=length)


def _continued(generator, prompts: list[str], options: dict) -> list[dict]:
    start = time.perf_counter()
    found = generator.tokens([generator.encode(p) for p in prompts], _MAX_TOKENS.value, **options)
    seconds = time.perf_counter() - start
    return [
        {
            "prompt": prompt,
            "text": generator.decode(ids),
            "tokens": len(ids),
            "tokens_per_second": round(len(ids) / seconds, 1),
        }
        for prompt, ids in zip(prompts, found, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run(command))
