"""Pretraining of a small encoder on Persian news and poems: masked words.

zoo train encoder_persian --workdir=D
(zoo fetch persian_news persian_poems, or ZOO_DATA_DIR, first)

As `encoder_wiki`. The full run is not measured. A trial of 130 updates, with the whole schedule in
them, predicted 13.3 % of the masked words of the validation split correctly (2026-11-30, 2 cores of
an Intel Xeon at 2.8 GHz with AVX512, float32, seed 0, 78 processor seconds):

    python -m benchmarks.pretraining_trials Persian --recipe=encoder_persian --seconds=90
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("encoder_wiki", arg)
    if not arg:
        config.data.update(source="persian_news+persian_poems", normalization="persian")
    return config
