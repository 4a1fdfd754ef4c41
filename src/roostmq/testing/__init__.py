"""Tools for users' own tests: the in-process `Broker` and the pytest fixture `mqtt_broker`."""
