"""The data card: what became of the input, as JSON and as a page that needs no network."""

from collections.abc import Iterable, Mapping
from html import escape

from zoo.data.text.tokenizers import report
from zoo.prep.document import Tally

# In the order of the work; the rules come between.
FIRST, LAST = (
    ("extract", "clean"),
    ("repeated lines", "exact duplicates", "near duplicates", "kept"),
)


def describe(
    tally: Tally, about: Mapping, plan: Mapping, tokenizer, validation: Iterable[str]
) -> dict:
    """Returns the card as JSON values; a function of the input and the recipe alone."""
    steps = [*FIRST, *plan["prep"]["rules"], *LAST]
    funnel = [
        {"step": step, "documents": tally.reached[step], "bytes": tally.bytes[step]}
        for step in steps
        if tally.reached[step]
    ]
    values = tally.to_json()
    return {
        **about,
        "funnel": funnel,
        "dropped": dict(sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0]))),
        "unreadable": values["unreadable"],
        "languages": dict(sorted(tally.languages.items(), key=lambda item: (-item[1], item[0]))),
        "characters": {
            f"{2 ** int(power) // 2 + 1 if int(power) else 0:,} to {2 ** int(power):,}": count
            for power, count in sorted(tally.lengths.items(), key=lambda item: int(item[0]))
        },
        "licences": dict(
            sorted(tally.licences.items(), key=lambda item: (-item[1], item[0]))[:100]
        ),
        "sites": dict(sorted(tally.sites.items(), key=lambda item: (-item[1], item[0]))[:100]),
        "tokenizer_report": report(tokenizer, validation),
        "samples": values["samples"],
        "settings": plan["prep"],
        "versions": plan["versions"],
    }


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff}
h1{font-size:1.5rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.2rem .6rem;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.bar{width:40%}td.bar div{background:#3b7dd8;height:.8rem;border-radius:2px}
tr:nth-child(even){background:#f6f6f6}blockquote{margin:.3rem 0 .8rem;padding:.3rem .8rem;
border-left:3px solid #ccc;overflow-wrap:anywhere}small{color:#666;overflow-wrap:anywhere}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}tr:nth-child(even),pre{
background:#242424}h2{border-color:#444}small{color:#999}}
"""


def page(card: Mapping) -> str:
    """Returns the card as one HTML page. All that comes from the input is escaped."""
    kept, first = card["funnel"][-1], card["funnel"][0]
    parts = [
        f"<h1>Data card: {escape(card['input'])}</h1>",
        f"<p><b>{kept['documents']:,}</b> of {first['documents']:,} documents were kept "
        f"({kept['documents'] / max(1, first['documents']):.1%}): "
        f"{card['tokens']['train']:,} tokens in {card['documents']['train']:,} documents to train "
        f"on, {card['tokens']['validation']:,} in {card['documents']['validation']:,} for "
        "validation.</p>",
        "<h2>What reached each step</h2>",
        _funnel(card["funnel"]),
        "<h2>Why documents were dropped</h2>",
        _bars(card["dropped"], "reason"),
    ]
    for title, key, name in (
        ("What could not be read", "unreadable", "what"),
        ("Languages of what was kept", "languages", "language"),
        ("Lengths of what was kept", "characters", "characters"),
        ("Licences", "licences", "licence"),
        ("Sites", "sites", "site"),
    ):
        if card[key]:
            parts += [f"<h2>{title}</h2>", _bars(card[key], name)]
    parts += ["<h2>Tokenizer</h2>", _rows(card["tokenizer_report"]), "<h2>Samples</h2>"]
    names = sorted(card["samples"], key=lambda name: (name != "kept", name))
    for name in names:
        parts.append(f"<h3>{escape(name)}</h3>")
        for sample in card["samples"][name]:
            parts.append(f"<small>{escape(sample['url'])}</small>")
            text = escape(sample["text"])
            parts.append(f'<blockquote dir="auto">{text}</blockquote>' if text else "<br>")
    parts += ["<h2>Settings</h2>", _settings(card["settings"]), "<h2>Versions</h2>"]
    parts.append(_rows(card["versions"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data card</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _funnel(funnel: list[Mapping]) -> str:
    most = max(1, funnel[0]["documents"])
    rows = "".join(
        f"<tr><td>{escape(row['step'])}</td><td class=n>{row['documents']:,}</td>"
        f"<td class=n>{row['bytes']:,}</td>{_bar(row['documents'] / most)}</tr>"
        for row in funnel
    )
    head = "<th>step</th><th class=n>documents</th><th class=n>bytes</th><th></th>"
    return f"<table><tr>{head}</tr>{rows}</table>"


def _bars(counts: Mapping[str, int], name: str) -> str:
    if not counts:
        return "<p>None.</p>"
    most = max(counts.values())
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td class=n>{value:,}</td>{_bar(value / most)}</tr>"
        for key, value in counts.items()
    )
    return f"<table><tr><th>{name}</th><th class=n>count</th><th></th></tr>{rows}</table>"


def _bar(share: float) -> str:
    return f'<td class=bar><div style="width:{100 * share:.1f}%"></div></td>'


def _rows(values: Mapping) -> str:
    def shown(value):
        if isinstance(value, Mapping):
            return ", ".join(f"{shown(count)} {escape(name)}" for name, count in value.items())
        if isinstance(value, (int, float)):
            return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        return escape(str(value))

    rows = "".join(f"<tr><td>{escape(k)}</td><td>{shown(v)}</td></tr>" for k, v in values.items())
    return f"<table>{rows}</table>"


def _settings(settings: Mapping) -> str:
    lines = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines += [f"{key}.{name} = {inner!r}" for name, inner in value.items()]
        else:
            lines.append(f"{key} = {value!r}")
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
