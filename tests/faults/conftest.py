"""The slow trials are no part of ``make test``; ``make faults`` runs them beside the quick ones."""

import pytest


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.slow)


@pytest.fixture
def seed(request):
    """Where random points come from: ``--seed`` of ``make faults``."""
    return request.config.getoption("seed", 0)


@pytest.fixture
def kills(request):
    """How often trial 1 kills: ``--kills`` of ``make faults``."""
    return request.config.getoption("kills", 50)
