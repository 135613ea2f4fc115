"""What others import from here is what its own modules define."""

import pytest

from labsupport import dashboard, monitoring, predictions, tables

OWNERS = {"SCHEMA": tables, "dashboard": dashboard}


@pytest.mark.parametrize("name", monitoring.__all__)
def test_what_watches_the_service_is_found_under_one_name(name):
    assert getattr(monitoring, name) is getattr(OWNERS.get(name, predictions), name)
