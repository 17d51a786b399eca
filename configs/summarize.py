"""Titles of Wikipedia articles, or of Persian news, from the beginnings of their texts.

    zoo train summarize --workdir=D              (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
    zoo train summarize:persian --workdir=D      (zoo fetch persian_news, or ZOO_DATA_DIR, first)

The source is the first 400 characters, so that most English articles name their title in it. ROUGE
of the test split; compare it with the first words of the source:
python -m benchmarks.summary_baseline
"""

from trainers.config.recipe import check_variant, shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" for English, "persian", and "debug", which ends within a minute on two cores."""
    check_variant(arg, ["persian", "debug"])
    config = shipped_recipe("seq2seq_multi30k", "debug" if arg == "debug" else "")
    config.task.scores = "summary"
    config.data.languages = ()
    config.data.update(source="wikipedia_titles", sequence_length=160)
    if arg == "debug":
        return config
    config.trainer.update(
        epochs=30, global_batch_size=32, precision="float32", log_every=50, evaluate_every=250,
        checkpoint_every=250,
    )  # fmt: skip
    config.schedule.warmup_steps = 100
    if arg == "persian":
        config.data.update(source="persian_titles", normalization="persian")
    return config
