"""What a document of parameters may mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidehall.cli._schema_command import read_document
from guidehall.client.errors import InvalidArgument
from guidehall.core.plain_yaml import load

# Nine lines that mean 9^9 words.
_BILLIONS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

# Seven lines that merge 9^7 names, which end as a mapping of nine.
_MERGED = "a: &m0 {a: 1, b: 2, c: 3, d: 4, e: 5, f: 6, g: 7, h: 8, i: 9}\n" + "".join(
    f"m{number}: &m{number} {{<<: [{', '.join([f'*m{number - 1}'] * 9)}]}}\n" for number in range(1, 7)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (_BILLIONS, "more than 100000 values"),
        (_MERGED, "more than 100000 values"),
        ("a: &a {<<: *a}", "more than 100000 values"),
        ("!!bool x", "a value that is not what its tag says"),
        ("1" + ":1" * 999 + ".5", "a value that is not what its tag says"),
        ("a: &a [*a]", "more than 100000 values"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ("epochs: 0x" + "f" * 9000, "a whole number of 9002 characters; at most 40 are allowed"),
    ],
)
def test_a_document_means_no_more_than_was_written(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "film.yml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=rf"film\.yml( line 1)?: {problem}"):
        read_document(file)


def test_layers_may_be_written_once_and_named_again(tmp_path: Path) -> None:
    file = tmp_path / "film.yml"
    file.write_text("layers: [&film {sld: 1e-6}, *film]")
    assert read_document(file) == {"layers": [{"sld": 1e-6}, {"sld": 1e-6}]}


def test_a_layer_may_be_another_but_for_what_it_says_itself(tmp_path: Path) -> None:
    file = tmp_path / "film.yml"
    file.write_text("layers: [&film {sld: 1e-6, thickness: 5}, {<<: *film, thickness: 7}]")
    assert read_document(file) == {"layers": [{"sld": 1e-6, "thickness": 5}, {"sld": 1e-6, "thickness": 7}]}


def test_an_empty_text_is_no_document() -> None:
    assert load(b"# nothing\n") is None
