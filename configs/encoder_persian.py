"""Pretraining of a small encoder on Persian news and poems: masked words.

zoo train encoder_persian --workdir=D
(zoo fetch persian_news persian_poems, or ZOO_DATA_DIR, first)

As `encoder_wiki`. Not measured.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("encoder_wiki", arg)
    if not arg:
        config.data.update(source="persian_news+persian_poems", normalization="persian")
    return config
