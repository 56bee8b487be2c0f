"""What a document of parameters may mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidehall.cli._schema_command import read_document
from guidehall.client.errors import InvalidArgument

# Nine lines that mean 9^9 words.
_BILLIONS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (_BILLIONS, "more than 100000 values"),
        ("a: &a [*a]", "more than 100000 values"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
    ],
)
def test_a_document_means_no_more_than_was_written(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "film.yml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=rf"film\.yml: {problem}"):
        read_document(file)


def test_layers_may_be_written_once_and_named_again(tmp_path: Path) -> None:
    file = tmp_path / "film.yml"
    file.write_text("layers: [&film {sld: 1e-6}, *film]")
    assert read_document(file) == {"layers": [{"sld": 1e-6}, {"sld": 1e-6}]}
