"""Numbers and curves in one line of text."""

from __future__ import annotations

import math

from guidehall.cli._spark import COLUMNS, Course, rows_of, sparkline


def test_extremes_are_lowest_and_highest_blocks() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 3]) == "▁▁▁"
    assert sparkline([-1e308, 1e308]) == "▁█"
    assert sparkline([]) == ""


def test_a_loss_that_falls_by_decades_falls_evenly() -> None:
    assert sparkline([1e7 / 10**step for step in range(8)]) == "█▇▆▅▄▃▂▁"


def test_a_long_row_is_thinned_and_keeps_its_end() -> None:
    drawn = sparkline([0.0] * 999 + [1.0])

    assert len(drawn) == COLUMNS
    assert drawn[-1] == "█"


def test_a_terminal_without_blocks_gets_letters() -> None:
    assert sparkline([0, 1], "ascii") == "_#"


def test_a_course_is_bounded_and_ends_with_the_newest() -> None:
    course = Course()
    for step in range(10_000):
        course.add(float(step))
    course.add(math.nan)

    assert COLUMNS <= len(course.values) < 2 * COLUMNS
    assert (course.values[0], course.values[-1]) == (0, 9999)
    assert course.values == sorted(course.values)


def test_curves_of_a_preview_share_a_scale_and_axes_are_told() -> None:
    rows = rows_of(
        {
            "z": [0, 10, 20],
            "q": [0.01, 0.1, 1.0],
            "true": [0, 3, 8],
            "predicted": [0, 1, 4],
            "\x1b[2Jloss": 0.5,
            "names": ["a", "b"],
            "broken": [1, None],
        }
    )

    assert rows == [
        "q          0.01 to 1",
        "z          0 to 20",
        "predicted  ▁▂▅ 0 to 4",
        "true       ▁▄█ 0 to 8",
    ]
