"""A small GPT that writes Persian, from news and classical verse.

zoo prepare gpt_persian --out=D             (zoo fetch persian_news persian_poems, or ZOO_DATA_DIR)
zoo train gpt_persian --config.data.source=prepared:D --workdir=W
zoo generate W --prompt="رئیس جمهور"

The rules that ask for sentences are left out: verse has none. Letters are normalised to Persian
ones, ZWNJ is kept.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains for some minutes, "debug" ends within a minute on two cores."""
    config = shipped_recipe("web_text", arg)
    config.data.vocabulary_size = 1000 if arg else 24_000
    config.data.normalization = "persian"
    config.task.chunk = 512  # the logits of all positions at once would be 24,000 numbers each
    config.prep.input = "corpus:persian_news,corpus:persian_poems"
    config.prep.rules = ("language", "gopher_quality", "toxicity")
    config.prep.language.keep = ("fa",)
    # A beyt is shorter than a paragraph of prose.
    config.prep.gopher_quality.min_words = 20
    config.prep.validation = 0.05
    if not arg:
        config.trainer.steps = 1500
        config.trainer.evaluate_every = config.trainer.checkpoint_every = 500
    return config
