"""From web pages to a small GPT: a general recipe for `zoo prepare`.

zoo prepare web_text --config.prep.input='pages/*.warc.gz' --out=D
zoo train web_text --config.data.source=prepared:D --workdir=W
zoo generate W --prompt="The"

The input is a pattern, a folder, seed URLs to crawl, or corpus:NAME; see `zoo prepare --help`. The
rules are those of FineWeb, with deduplication over the whole input.

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, TensorFlow 2.21, Keras 3.15.1, in
float32, seed 0: of 431 pages (three WARC files of FastWARC, and the test pages of trafilatura and
CleanEval) 234 are kept in 51 s, 459,195 tokens for training. 300 updates with 1.8 M parameters
reach 2.048 bits per byte on the three held-out documents (2.263 after 100 updates; uniform guessing
has 8). This is too little text to generate good text. The 4,282 s and 33 minutes of CPU time do not
measure speed, because other jobs shared the machine.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains for some minutes, "debug" ends within a minute on two cores."""
    config = shipped_recipe("gpt_pydoc", arg)
    config.data.update(source="", vocabulary_size=8000, sequence_length=256)
    if arg:  # accepts a few short pages
        config.data.update(vocabulary_size=1000, sequence_length=64)
        config.prep.gopher_quality.min_words = 20
        config.prep.c4.min_sentences = 2
        config.prep.validation = 0.1
    return config
