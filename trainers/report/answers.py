"""The questions of a report: contexts with the reference and the predicted answer highlighted."""

from trainers.report.read import Evaluation, to_float

_MAX_ROWS = 200
_AROUND = 120  # characters of the context before and after an answer


def question_table(evaluation: Evaluation) -> dict | None:
    """Returns the questions of a split, the lowest F1 first; None for other samples.

    Returns:
      Dict with `rows`: dicts with the texts "question", "reference", "prediction" and "f1", and
      "context", the result of `highlighted`.
    """
    samples = [sample for sample in evaluation.samples if "context" in sample]
    if not samples:
        return None
    samples.sort(key=lambda sample: to_float(sample["f1"]))
    rows = [
        {
            "question": str(sample["source"]),
            "reference": str(sample["reference"]),
            "prediction": str(sample["prediction"]),
            "f1": f"{to_float(sample['f1']):.0f}",
            "context": highlighted(
                str(sample["context"]), sample["reference_span"], sample["predicted_span"]
            ),
        }
        for sample in samples[:_MAX_ROWS]
    ]
    return {"rows": rows}


def highlighted(context: str, reference, predicted) -> list[tuple[str, str]]:
    """Splits a context at the ends of two spans, and cuts it around them.

    Args:
      context: the text.
      reference: [start, end] of the reference answer, or None for no answer.
      predicted: [start, end] of the predicted answer, or None.

    Returns:
      (piece, kind) in order; the kind is "reference", "predicted", "both", or "" for other text and
      for "…" in place of text that is cut out.
    """
    spans = {"reference": reference, "predicted": predicted}
    spans = {kind: (int(span[0]), int(span[1])) for kind, span in spans.items() if span}
    windows = [(start - _AROUND, end + _AROUND) for start, end in spans.values()]
    windows = windows or [(0, 2 * _AROUND)]
    size = len(context)
    ends = {0, size, *(min(max(x, 0), size) for pair in [*windows, *spans.values()] for x in pair)}
    pieces, ends = [], sorted(ends)
    for start, end in zip(ends, ends[1:], strict=False):
        kinds = [kind for kind, span in spans.items() if span[0] <= start and end <= span[1]]
        if any(low <= start and end <= high for low, high in windows):
            pieces.append((context[start:end], "both" if len(kinds) == 2 else "".join(kinds)))
        else:
            pieces.append(("…", ""))
    return pieces
