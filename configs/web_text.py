"""From web pages to a small GPT: a general recipe for `zoo prepare`.

zoo prepare web_text --config.prep.input='pages/*.warc.gz' --out=D
zoo train web_text --config.data.source=prepared:D --workdir=W
zoo generate W --prompt="The"

Input is a pattern, a folder, start addresses to crawl, or corpus:NAME; see `zoo prepare --help`.
The rules are those of FineWeb, with deduplication over all of the input.
"""

from configs import gpt_pydoc


def get_config(arg: str = ""):
    """Variants: "" trains for some minutes, "debug" ends within a minute on two cores."""
    config = gpt_pydoc.get_config(arg)
    config.data.source = ""
    config.data.vocabulary_size = 1000 if arg else 8000
    config.data.sequence_length = 64 if arg else 256
    if arg:
        # A handful of short pages is enough for a trial.
        config.prep.gopher_quality.min_words = 20
        config.prep.c4.min_sentences = 2
        config.prep.validation = 0.1
    return config
