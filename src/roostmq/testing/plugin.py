"""pytest plugin: the fixture `mqtt_broker`, a fresh broker for each test, safe under xdist.

def test_reports(mqtt_broker):
    my_device.connect(mqtt_broker.host, mqtt_broker.port)
    my_device.report(21.5)
    assert mqtt_broker.wait_for("devices/+/temperature").text == "21.5"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from roostmq.testing.broker import Broker


@pytest.fixture
def mqtt_broker() -> Iterator[Broker]:
    """A running `roostmq.Broker` that watches every message from the start."""
    from roostmq.testing.broker import Broker

    with Broker() as broker:
        broker.observe()
        yield broker
