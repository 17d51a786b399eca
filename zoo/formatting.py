"""Formats numbers and durations for people."""

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short_number(value: float) -> str:
    """Formats a number with four digits, or from 10,000 on with three digits and a unit: 28.9k."""
    if not 9999.5 <= abs(value) < 999.5e12:
        return f"{value:.4g}"
    size, unit = next(pair for pair in _UNITS if abs(value) >= 0.9995 * pair[0])
    integer_digits = len(f"{abs(value) / size:.0f}")
    return f"{value / size:.{max(3 - integer_digits, 0)}f}{unit}"


def number(value: float, digits: int = 6) -> str:
    """Formats a number with `digits` significant digits; large numbers without an exponent."""
    large = 10**digits <= abs(value) < 1e15
    return f"{value:,.0f}" if large else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units: 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds // 60 % 60} min"
    return f"{seconds // 86400} d {seconds // 3600 % 24} h"
