"""zoo generate WORKDIR [--prompt=TEXT | --prompts=FILE] [--json]: text, or a grid of images.

Continues a prompt with a language model. The text of a single prompt is streamed. --prompts=FILE
reads one prompt per line, --prompts=- reads standard input. Without a prompt the model starts a
new text. --temperature=0 selects the most probable token; --beams=4 runs a beam search without
sampling. The same seed gives the same text; the n-th prompt of a file, not counting empty lines,
samples with seed + n - 1. --json prints [{"prompt", "text", "tokens", "tokens_per_second"}] with
the number of new tokens and their rate, which includes the compilation.

--attention_sinks=4 continues a text beyond the trained length: the model attends to the first 4
positions and to the latest ones, as many in sum as in training. Requires rotary positions.

--index=D interpolates a language model with the neighbors of an index, with share and temperature
of `zoo evaluate WORKDIR --index=D`, and prints the passages used, the largest share first.

An encoder-decoder translates each prompt, by default with the beam width of its recipe. An encoder
replaces each [MASK]; --json also prints the five most probable words per [MASK].

A model with looped blocks (looped_*) runs --loops=N loops instead of those of its recipe. With
--halt=EPS the state of a position stays once it changes by less than EPS, relative to its size.

A GAN draws --count images and writes them as one PNG file, --out; the same seed gives the same
images. So does a language model of pixels (data.tokenizer=pixels), value by value.
"""

import json
import math
import sys
import time
from pathlib import Path

from trainers.cli.common import (
    LOG,
    RETRIEVAL,
    Flags,
    loop_flags,
    loop_options,
    require_extra,
    run,
)
from zoo.data.pixels import PIXELS
from zoo.data.text.tokenizers import normalize
from zoo.errors import RunError, UsageError
from zoo.generation.generate_options import Options

_FLAGS = Flags()
_PROMPT = _FLAGS.string("prompt", None, "Text to continue.")
_PROMPTS = _FLAGS.string("prompts", None, "File with one prompt per line; - for standard input.")
_MAX_TOKENS = _FLAGS.integer("max_tokens", 200, "Maximum number of new tokens.")
_TEMPERATURE = _FLAGS.floating("temperature", 0.8, "Sampling temperature; 0 for greedy decoding.")
_TOP_K = _FLAGS.integer("top_k", 0, "Sample from the K most probable tokens; 0 for all.")
_TOP_P = _FLAGS.floating("top_p", 1.0, "Sample from the nucleus with this probability.")
_BEAMS = _FLAGS.integer("beams", 1, "Number of beams; 1 disables beam search.")
_SINKS = _FLAGS.integer(
    "attention_sinks", 0,
    "First positions to keep in a text longer than those of training, such as 4; 0 disables this.",
)  # fmt: skip
_INDEX = _FLAGS.string("index", None, "Index of the model's states, written by `zoo index`.")
_SEED = _FLAGS.integer("seed", 0, "Random seed for sampling.")
_LOOPS, _HALT = loop_flags(_FLAGS)
_COUNT = _FLAGS.integer("count", 64, "Number of images in the grid.")
_OUT = _FLAGS.string("out", None, "PNG file to write; default: WORKDIR/generated.png.")
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")

_BATCH = 16  # prompts that are continued at once


def command(argv) -> int:
    """Runs `zoo generate`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    if _INDEX.value is not None:
        require_extra("--index", "retrieval", RETRIEVAL)
        _refuse((_BEAMS, _SINKS), "A search for each token is greedy or samples")
    options = _options()
    prompts = _prompts()
    model, tokenizer, config = _load(words[0], _CHECKPOINT.value, options, prompts)
    kind = _kind(model, tokenizer)
    _check_flags(kind, prompts, Path(words[0]))
    if kind in ("gan", PIXELS):
        return _generate_images(model, config, _image_path(Path(words[0])))
    _warn_of_unknown_tokens(tokenizer, prompts)
    if kind == "seq2seq":
        return _print_rows(_translate(model, tokenizer, config, prompts))
    if _PROMPTS.value is not None:
        prompts = [prompt for prompt in prompts if prompt.strip()]
    # An LSTM has no limit of positions, and the model of init_from may have trained all positions.
    length = config["model"].get("sequence_length")
    trained_length = (
        config["data"]["sequence_length"] if length and not config["init_from"] else None
    )
    if kind == "mlm":
        return _print_rows(_fill_masks(model, tokenizer, prompts, trained_length))
    generator = _generator(
        words[0], model, tokenizer, sequence_length=length, trained_length=trained_length,
        start=config["data"]["packing"] == "best_fit",
    )  # fmt: skip
    if len(prompts) == 1 and not _JSON.value:
        pieces = generator.stream(prompts[0], _MAX_TOKENS.value, **options)
        print(prompts[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        _print_passages(generator.passages()[0] if _INDEX.value is not None else ())
        return 0
    rows = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        rows += _continue_prompts(generator, batch, {**options, "seed": options["seed"] + start})
        if not _JSON.value:
            for number, row in enumerate(rows[start:], start + 1):
                print(f"--- {number} ---\n{row['prompt']}{row['text']}\n", flush=True)
                _print_passages(row.get("passages", ()))
    if _JSON.value:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    return 0


def _options() -> dict:
    """Returns the sampling options; raises `UsageError` for mutually exclusive flags."""
    if _BEAMS.value > 1:
        for flag in (_TEMPERATURE, _TOP_K, _TOP_P, _SEED):
            if flag.present:
                raise UsageError(
                    f"A beam search does not sample: set --beams or --{flag.name}, not both."
                )
        if _SINKS.value:
            raise UsageError("A beam search does not support --attention_sinks.")
    return {
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "beams": _BEAMS.value,
        "seed": _SEED.value,
    }


def _prompts() -> list[str]:
    if _PROMPTS.value is None:
        # Invalid UTF-8 in a command becomes U+FFFD.
        return [normalize(_PROMPT.value or "", "none")]
    if _PROMPT.value is not None:
        raise UsageError("Set --prompt or --prompts, not both.")
    try:
        if _PROMPTS.value == "-":
            text = sys.stdin.read()
        else:
            text = Path(_PROMPTS.value).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{_PROMPTS.value} must be UTF-8 text.") from None
    prompts = normalize(text, "none").rstrip("\n").split("\n")
    if not text.strip():
        raise UsageError(f"--prompts must contain a prompt. Received: {_PROMPTS.value}.")
    return prompts


def _load(workdir: str, checkpoint: str, options: dict, prompts: list[str]):
    """Returns model, tokenizer and config of a work directory; the tokenizer of a GAN is None.

    Raises:
      UsageError: if the model does not generate anything, the tokenizer is missing, or an option
        is out of its bounds.
      RunError: if a file is damaged.
    """
    from trainers.run.workdir import read_config
    from zoo.saved.workdir import model_path, read_tokenizer
    from zoo.start import start_tensorflow

    # Checks without TensorFlow come first, so that a wrong request fails at once.
    loops = loop_options(_LOOPS, _HALT)
    config = read_config(workdir)
    model_path(workdir, checkpoint)
    task = config["config"]["task"]["name"]
    tokenizer = read_tokenizer(workdir, config) if config.get("tokenizer") else None
    unsupported_task = UsageError(
        "zoo generate writes text or draws images; "
        f"{workdir} contains a model of the task {task!r}."
    )
    if task == "image_classification":
        raise unsupported_task
    is_of_pixels = config["config"]["data"]["tokenizer"] == PIXELS
    _check_flags(PIXELS if is_of_pixels else task, prompts, Path(workdir))
    if tokenizer is not None:
        Options(_MAX_TOKENS.value, **options)
    start_tensorflow()
    from zoo.models.looped import set_loops
    from zoo.saved.model import load_model

    model = load_model(workdir, checkpoint)
    if loops:
        set_loops(model, **loops)
    if tokenizer is None and not hasattr(model, "generator") and not is_of_pixels:
        raise unsupported_task
    return model, tokenizer, config["config"]


def _print_rows(rows: list[dict]) -> int:
    if _JSON.value:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            print(row["text"])
    return 0


def _refuse(flags_, reason: str) -> None:
    for flag in flags_:
        if flag.present:
            raise UsageError(f"{reason}: --{flag.name} is not supported.")


def _kind(model, tokenizer) -> str:
    """Returns how a model generates: "gan", "pixels", "seq2seq", "mlm" or "clm"."""
    from zoo.models.adapter import Adapter

    if tokenizer is None:
        return "gan" if hasattr(model, "generator") else PIXELS
    if Adapter(model).family == "encoder_decoder":
        return "seq2seq"
    outputs = getattr(model, "output", None)
    return "mlm" if isinstance(outputs, dict) and "mlm" in outputs else "clm"


def _check_flags(kind: str, prompts: list[str], workdir: Path) -> None:
    """Checks the flags against a kind of `_kind`, or the name of a task; raises `UsageError`."""
    if kind in ("gan", PIXELS):
        text = _PROMPT, _PROMPTS, _MAX_TOKENS, _TEMPERATURE, _TOP_K, _TOP_P, _BEAMS, _JSON
        _refuse(text, "A GAN draws images" if kind == "gan" else "The model draws images")
        if not 1 <= _COUNT.value <= 10_000:
            raise UsageError(f"--count must be from 1 to 10,000. Received: {_COUNT.value}.")
        if _SEED.value < 0:
            raise UsageError(f"--seed must be at least 0. Received: {_SEED.value}.")
        if (path := _image_path(workdir)).suffix != ".png" or path.is_dir():
            raise UsageError(f"--out must be a .png file. Received: {path}.")
    if kind in ("clm", "seq2seq", "mlm", "nsp"):
        _refuse((_COUNT, _OUT), "The model generates text")
    if kind in ("gan", PIXELS, "seq2seq", "mlm", "nsp"):
        _refuse((_INDEX,), "Neighbors require a decoder of text")
    if kind in ("gan", "seq2seq", "mlm", "nsp"):
        _refuse((_SINKS,), "Attention sinks require a decoder with rotary positions")
    if kind == "seq2seq":
        _refuse((_TEMPERATURE, _TOP_K, _TOP_P, _SEED), "Translation does not sample")
        if prompts == [""]:
            raise UsageError(
                "An encoder-decoder requires --prompt or --prompts. Received: neither."
            )
    if kind in ("mlm", "nsp"):
        flags_ = _TEMPERATURE, _TOP_K, _TOP_P, _SEED, _BEAMS, _MAX_TOKENS
        _refuse(flags_, "An encoder selects the most probable words")


def _image_path(workdir: Path) -> Path:
    """Returns the path of the PNG file with the generated images."""
    return Path(_OUT.value or workdir / "generated.png")


def _generate_images(model, config: dict, path: Path) -> int:
    from zoo.data.pixels import image_shape
    from zoo.generation.image_grids import arrange_grid, make_images, save_png
    from zoo.generation.pixels import sample_images

    data = config["data"]
    if data["tokenizer"] == PIXELS:
        count = data["sequence_length"] or config["model"]["sequence_length"]
        shape = image_shape(count, data["image_size"])
        images = sample_images(model, shape, _COUNT.value, _SEED.value)
    else:
        images = make_images(model, _COUNT.value, _SEED.value)
    save_png(path, arrange_grid(images, math.ceil(math.sqrt(_COUNT.value))))
    print(path)
    return 0


def _translate(model, tokenizer, config, prompts: list[str]) -> list[dict]:
    from zoo.generation.translate import Translator

    options = {"length_penalty": config["task"].get("length_penalty", 0.6)}
    options["beams"] = config["task"].get("beams", 0) or 1
    if _BEAMS.present:
        options["beams"] = _BEAMS.value
    if _MAX_TOKENS.present:
        options["max_tokens"] = _MAX_TOKENS.value
    texts = Translator(model, tokenizer)(prompts, **options)
    return [{"prompt": a, "text": b} for a, b in zip(prompts, texts, strict=True)]


def _warn_of_unknown_tokens(tokenizer, prompts: list[str]) -> None:
    """Warns of tokens in the prompts that are unknown to the tokenizer."""
    if tokenizer.unknown_id is None:
        return
    ids = (tokenizer.encode(prompt) for prompt in prompts)
    if count := sum(int((prompt_ids == tokenizer.unknown_id).sum()) for prompt_ids in ids):
        LOG.warning(
            f"{count} of the prompt's tokens {'is' if count == 1 else 'are'} unknown to the "
            "tokenizer and become <unk>"
        )


def _fill_masks(model, tokenizer, prompts: list[str], trained_length: int | None) -> list[dict]:
    from zoo.generation.fill_mask import fill_mask, replace_masks

    rows = []
    for prompt in prompts:
        candidates = fill_mask(model, tokenizer, prompt, trained_length=trained_length)
        words = [[{"word": w, "probability": round(p, 4)} for w, p in best] for best in candidates]
        rows.append({"prompt": prompt, "text": replace_masks(prompt, candidates), "words": words})
    return rows


def _generator(workdir: str, model, tokenizer, **options):
    """Returns the generator of a language model, with --index that of a kNN language model."""
    from zoo.generation.generate import Generator

    if _INDEX.value is None:
        return Generator(model, tokenizer, attention_sinks=_SINKS.value, **options)
    from trainers.evaluation.with_index import open_with_index, tuned_settings
    from trainers.run.workdir import read_config
    from zoo.retrieval.generate import NeighborGenerator
    from zoo.retrieval.index import Index

    index = Index(_INDEX.value)
    language_model = open_with_index(read_config(workdir), index, lambda: model)
    settings = tuned_settings(workdir, index)
    return NeighborGenerator(language_model, *settings, model, tokenizer, **options)


def _print_passages(passages) -> None:
    for passage in passages:
        first, last = passage["bytes"]
        print(
            f"\n[{passage['share']:.0%}] document {passage['document']} of {passage['source']}, "
            f"bytes {first:,} to {last:,}:\n{passage['text']}"
        )


def _continue_prompts(generator, prompts: list[str], options: dict) -> list[dict]:
    start = time.perf_counter()
    token_ids = generator.tokens(
        [generator.encode(p) for p in prompts], _MAX_TOKENS.value, **options
    )
    seconds = time.perf_counter() - start
    passages = [{} for _ in prompts]
    if _INDEX.value is not None:
        passages = [{"passages": rows} for rows in generator.passages()]
    return [
        {
            "prompt": prompt,
            "text": generator.decode(ids, prompt),
            "tokens": len(ids),
            "tokens_per_second": round(len(ids) / seconds, 1),
            **used,
        }
        for prompt, ids, used in zip(prompts, token_ids, passages, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run(command))
