"""A small GPT that writes Persian, trained on news and classical verse.

zoo prepare gpt_persian --out=D             (zoo fetch persian_news persian_poems, or ZOO_DATA_DIR)
zoo train gpt_persian --config.data.source=prepared:D --workdir=W
zoo generate W --prompt="رئیس جمهور"

The rules that count sentences are left out, because verse has none. Normalization maps letters to
their Persian forms and keeps ZWNJ.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains for some minutes, "debug" ends within a minute on two cores."""
    config = shipped_recipe("web_text", arg)
    config.data.update(vocabulary_size=1000 if arg else 24_000, normalization="persian")
    config.task.chunk = 512  # without chunks, each position would need 24,000 logits in memory
    config.prep.input = "corpus:persian_news,corpus:persian_poems"
    config.prep.rules = ("language", "gopher_quality", "toxicity")
    config.prep.language.keep = ("fa",)
    config.prep.gopher_quality.min_words = 20  # a verse is shorter than a paragraph of prose
    config.prep.validation = 0.05
    if not arg:
        config.trainer.update(steps=1500, evaluate_every=500, checkpoint_every=500)
    return config
