"""ROUGE of the first words of a text as its title: the baseline of the recipe `summarize`.

    python -m benchmarks.summary_baseline [wikipedia_titles persian_titles] [--write]

The number of words is the one with the best ROUGE-L on the validation split. Rows go to
results/summary_baseline.csv.
"""

import argparse

from zoo.data.text.corpora import load_corpus
from zoo.generation.scores.summaries import scores


def first_words(pairs, count: int) -> dict[str, float]:
    """Returns the scores of the first `count` words of each source."""
    sources, titles = zip(*pairs, strict=True)
    return scores([" ".join(source.split()[:count]) for source in sources], titles)


def main():
    """Measures each corpus."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpora", nargs="*", default=["wikipedia_titles", "persian_titles"])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.corpora:
        splits = load_corpus(name).splits
        best = max(range(1, 16), key=lambda n: first_words(splits["validation"](), n)["rougeL"])
        values = first_words(splits["test"](), best)
        row = {"corpus": name, "words": best, **{k: round(v, 2) for k, v in values.items()}}
        print(row)
        if arguments.write:
            from benchmarks.results_file import append

            append("summary_baseline", [row])


if __name__ == "__main__":
    main()
