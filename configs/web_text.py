"""From web pages to a small GPT: a general recipe for `zoo prepare`.

zoo prepare web_text --config.prep.input='pages/*.warc.gz' --out=D
zoo train web_text --config.data.source=prepared:D --workdir=W
zoo generate W --prompt="The"

Input is a pattern, a folder, start addresses to crawl, or corpus:NAME; see `zoo prepare --help`.
The rules are those of FineWeb, with deduplication over all of the input.

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, TensorFlow 2.21, Keras 3.15.1, in
float32, seed 0: of 431 pages (three WARC files of FastWARC's, and the pages of trafilatura's and
CleanEval's tests) 234 are kept in 51 s, 459,195 tokens to train on; 300 updates on them, 1.8 M
parameters, come to 2.048 bits a byte on the three documents held out (8 bits is knowing nothing,
2.263 after 100 updates). It is too little text to write well. The 4,282 s beside other work are
no measure of speed: 33 minutes of processor time.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains for some minutes, "debug" ends within a minute on two cores."""
    config = shipped_recipe("gpt_pydoc", arg)
    config.data.source = ""
    config.data.vocabulary_size = 1000 if arg else 8000
    config.data.sequence_length = 64 if arg else 256
    if arg:
        # A handful of short pages is enough for a trial.
        config.prep.gopher_quality.min_words = 20
        config.prep.c4.min_sentences = 2
        config.prep.validation = 0.1
    return config
