"""Search spaces of `zoo tune sweep`."""

import pytest

from trainers.tuning.search import parse
from zoo.errors import UsageError


def test_ranges_are_parsed():
    rate, smoothing, layers, name = parse(
        [("a.rate", "log:1e-4:1e-2"), ("b.s", "float:0:0.3"), ("c.n", "int:1:3"),
         ("d.x", "choice:adamw, lion")]
    )  # fmt: skip
    assert (rate.kind, rate.low, rate.high) == ("log", 1e-4, 1e-2)
    assert rate.ends() == ("0.0001", "0.01")
    assert smoothing.ends() == ("0.0", "0.3")
    assert layers.ends() == ("1", "3")
    assert layers.grid() == [1, 2, 3]
    assert name.ends() == ("adamw", "lion")
    assert name.grid() == ["adamw", "lion"]
    with pytest.raises(UsageError, match="grid requires choice or int"):
        rate.grid()


@pytest.mark.parametrize(
    "text",
    ["", "log", "log:1", "log:0:1", "log:-1:1", "float:2:1", "float:1:1", "float:a:b", "int:1.5:3",
     "float:0:inf", "float:nan:1", "choice:a", "choice:a,a", "uniform:1:2"],
)  # fmt: skip
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UsageError, match=r"--search.a must be log:LOW:HIGH"):
        parse([("a", text)])


def test_keys_are_given_once():
    with pytest.raises(UsageError, match="must be given once"):
        parse([("a", "int:1:2"), ("a", "int:1:3")])
    with pytest.raises(UsageError, match="requires --search.KEY"):
        parse([])
