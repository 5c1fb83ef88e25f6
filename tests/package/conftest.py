"""The packages of this checkout, built once for all tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from tests.support.package import build


@pytest.fixture(scope="session")
def packages(tmp_path_factory: Any) -> Dict[str, Path]:
    return build(tmp_path_factory.mktemp("rpm"))
