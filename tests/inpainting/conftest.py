"""Pictures and the settings of a tiny training, for tests that make no others."""

import pytest
from support.trainings import ON_PIXELS, SMALL, make_pictures


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def settings(pictures):
    return SMALL | {"data": str(pictures), "weights": ON_PIXELS}
