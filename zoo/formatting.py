"""Numbers and durations as people read them."""

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short_number(value: float) -> str:
    """Returns four digits of a small number, three and a unit of a large one: 28.9k."""
    if not 9999.5 <= abs(value) < 999.5e12:
        return f"{value:.4g}"
    size, unit = next(pair for pair in _UNITS if abs(value) >= 0.9995 * pair[0])
    whole = len(f"{abs(value) / size:.0f}")
    return f"{value / size:.{max(3 - whole, 0)}f}{unit}"


def number(value: float, digits: int = 6) -> str:
    """Returns a result: that many digits, without an exponent where it is large."""
    large = 10**digits <= abs(value) < 1e15
    return f"{value:,.0f}" if large else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds // 60 % 60} min"
    return f"{seconds // 86400} d {seconds // 3600 % 24} h"
