"""What storage's settings refuse."""

from __future__ import annotations

import pytest

from guidehall.core.settings import SettingsError
from services.storage.settings import StorageSettings
from tests.fixtures.storage import variables

_NEEDED = {
    "POSTGRES__HOST": "127.0.0.1",
    "POSTGRES__DATABASE": "guidehall",
    "POSTGRES__USER": "storage",
    "POSTGRES__PASSWORD": "secret",
    "S3__ENDPOINT": "127.0.0.1:9000",
    "S3__ACCESS_KEY": "storage",
    "S3__SECRET_KEY": "secret",
    "S3__BUCKET": "guidehall",
}


def test_an_upload_may_not_be_swept_while_it_may_run() -> None:
    StorageSettings.load(variables(_NEEDED))
    with pytest.raises(SettingsError, match="writing_max_age_seconds"):
        StorageSettings.load(variables({**_NEEDED, "TRANSFER__UPLOAD_SECONDS": 7200}))
