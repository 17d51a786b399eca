"""The data card of `zoo prepare`: how many documents passed each step, as JSON and as a page."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from zoo.data.text.tokenizers import report
from zoo.pages.render import write_page
from zoo.prep.document import Tally, largest

# Steps before and after the rules.
FIRST, LAST = (
    ("extract", "clean"),
    ("repeated lines", "exact duplicates", "near duplicates", "kept"),
)


def describe(
    tally: Tally, result: Mapping, plan: Mapping, tokenizer, validation: Iterable[str]
) -> dict:
    """Returns the card as JSON values.

    Args:
      tally: counts of all steps.
      result: content of prepared.json.
      plan: settings and versions of the run.
      tokenizer: tokenizer of the records.
      validation: texts of the validation split, for the statistics of the tokenizer.
    """
    steps = [*FIRST, *plan["prep"]["rules"], *LAST]
    funnel = [
        {"step": step, "documents": tally.reached[step], "bytes": tally.bytes[step]}
        for step in steps
        if tally.reached[step]
    ]
    values = tally.to_json()
    return {
        **result,
        "funnel": funnel,
        "dropped": largest(tally.dropped),
        "unreadable": values["unreadable"],
        "languages": largest(tally.languages),
        "characters": {
            f"{2 ** int(power) // 2 + 1 if int(power) else 0:,} to {2 ** int(power):,}": count
            for power, count in sorted(tally.lengths.items(), key=lambda item: int(item[0]))
        },
        "licences": largest(tally.licences, 100),
        "sites": largest(tally.sites, 100),
        "tokenizer_report": report(tokenizer, validation),
        "samples": values["samples"],
        "settings": plan["prep"],
        "versions": plan["versions"],
    }


def write_card(card: Mapping, path: Path) -> None:
    """Writes the card of `describe` as an HTML page."""
    samples = sorted(card["samples"].items(), key=lambda item: (item[0] != "kept", item[0]))
    write_page(path, "zoo.prep", "data_card.html", card=card, samples=samples)
