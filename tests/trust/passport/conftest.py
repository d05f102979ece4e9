"""One passport of the small decoder, for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.trust.passport import record
from tests.trust.passport.small import decoder, ids


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passports") / "decoder"
    record(decoder(), {"ids": ids()}, folder)
    return folder
