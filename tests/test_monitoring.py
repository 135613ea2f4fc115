"""What others import from here is what its own modules define."""

import pytest

from labsupport import monitoring, predictions, tables


@pytest.mark.parametrize("name", monitoring.__all__)
def test_what_watches_the_service_is_found_under_one_name(name):
    found = getattr(monitoring, name)
    assert found is getattr(tables if name == "SCHEMA" else predictions, name)
