"""Names of what is kept for a model of the old app."""

from __future__ import annotations

from services.gateway.legacy.models import dataset_of


def test_datasets_of_models_are_told_apart_however_long_their_ids_are() -> None:
    assert dataset_of("m" * 57) == f"model-{'m' * 57}"
    first, second = dataset_of("m" * 62 + "a"), dataset_of("m" * 62 + "b")
    assert first != second
    assert len(first) == len(second) == 63
