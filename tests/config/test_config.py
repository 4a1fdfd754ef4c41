"""Configuration: TOML, environment, mosquitto.conf; every error names file, line, option and the nearest name."""

import re
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roostmq.adapters.config_file import Overrides, load, override, place
from roostmq.config import ACK_CLASSES, Access, Config, Durability, Limits, Listener, Mqtt, Tls, wrong_filter
from roostmq.config_toml import json_schema, read_toml, reference, to_toml
from roostmq.errors import ConfigError, UnsupportedOption


def toml(text, env=None):
    return read_toml(text, "roost.toml", env or {})


def test_nothing_configured_is_loopback_and_open():
    s = Config().engine_settings()
    assert [(x["host"], x["port"]) for x in s["listeners"]] == [("127.0.0.1", 1883)]
    assert s["access"][0]["allow_anonymous"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "lanes = 1\n[limits]\nreceive_maximun = 5\n",
            3,
            ["limits.receive_maximun", "did you mean `receive_maximum`?"],
        ),
        ("[limits]\nreceive_maximum = 0\n", 2, ["limits.receive_maximum", "0 is below the least value, 1"]),
        ("[mqtt]\n\nqos_max = 3\n", 3, ["mqtt.qos_max", "3 is above the greatest value, 2"]),
        ('[limits]\nqueue_policy = "drop_new"\n', 2, ["drop_newest", "did you mean"]),
        ('[listeners.a]\nport = "x"\n', 2, ["listeners.a.port", "whole number"]),
        ("[mqtt]\nqueue_qos0 = 1\n", 2, ["mqtt.queue_qos0", "true or false"]),
        ("a = = 1\n", 1, ["not TOML"]),
        ("lanes = 1\nlimits = 3\n", 2, ["limits", "a table is needed"]),
    ],
)
def test_errors_name_the_place(text, line, words):
    with pytest.raises(ConfigError) as error:
        toml(text)
    assert (error.value.file, error.value.line) == ("roost.toml", line)
    for word in words:
        assert word in str(error.value)


def test_environment_overrides_the_file():
    c = toml(
        "[listeners.tcp]\nport = 1\n", {"ROOST_LISTENERS__TCP__PORT": "1884", "ROOST_LIMITS__QUEUE_POLICY": "reject"}
    )
    assert c.listeners["tcp"].port == 1884
    assert c.limits.queue_policy == "reject"
    with pytest.raises(ConfigError, match="environment variable ROOST_LANES"):
        toml("", {"ROOST_LANES": "many"})


def test_safe_or_said():
    with pytest.raises(ConfigError, match="allow_anonymous = true"):
        toml('[listeners.a]\nhost = "0.0.0.0"\n').engine_settings()
    for more in ("allow_anonymous = true", 'password_file = "p"', "allow_anonymous = false"):
        toml(f'[listeners.a]\nhost = "::"\n[access]\n{more}\n').engine_settings()
    with pytest.raises(ConfigError, match=r"did you mean `inner`"):
        toml('[listeners.a]\naccess = "iner"\n[access.inner]\n').engine_settings()


# ---- durability


@pytest.mark.parametrize(
    "page", sorted((Path(__file__).parents[2] / "docs" / "guide").glob("*.md")), ids=lambda p: p.stem
)
def test_the_guides_configurations_can_be_used(page):
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        toml(block).engine_settings()


def test_where_everything_is_kept():
    assert Config().engine_settings()["data"] is None
    d = toml('[durability]\ndata_dir = "/d"\nsync_every_ms = 20\n').engine_settings()["data"]
    assert d == {
        "dir": "/d",
        "sync_every_ms": 20,
        "cache_bytes_max": 67_108_864,
        "deliver_after_safe": False,
        "checkpoint_bytes_min": 67_108_864,
    }
    with pytest.raises(ConfigError, match="leave one of them out"):
        toml('[durability]\ndata_dir = "/d"\nmemory = true\n').engine_settings()
    assert place(toml('[durability]\ndata_dir = "x"\n'), {}).durability.data_dir == str(Path("x").absolute())
    assert place(toml("[durability]\nmemory = true\n"), {"STATE_DIRECTORY": "/s"}).durability.data_dir is None
    assert place(Config(), {"STATE_DIRECTORY": "/var/lib/roostmq:/other"}).durability.data_dir == "/var/lib/roostmq"
    assert place(Config(), {}).durability.data_dir == platformdirs.user_data_dir("roostmq")


def test_the_command_line_says_where():
    written = toml('[durability]\ndata_dir = "/d"\nsync_every_ms = 5\n')
    for o, memory, data_dir in (
        (Overrides(), False, "/d"),
        (Overrides(data="/e"), False, "/e"),
        (Overrides(memory=True), True, None),
    ):
        found = override(written, o).durability
        assert (found.memory, found.data_dir, found.sync_every_ms) == (memory, data_dir, 5)
    assert (
        override(toml("[durability]\nmemory = true\n"), Overrides(data="/e")).engine_settings()["data"]["dir"] == "/e"
    )


def test_ack_classes():
    """By listener and by topic filter; the default is `durable` everywhere."""
    s = toml(
        '[durability]\nack = "memory"\n[durability.ack_filters]\n"meters/+/#" = "durable"\n'
        '[listeners.a]\n[listeners.b]\nack = "replicated"\nack_lower = true\n'
    ).engine_settings()
    assert [(x["ack"], x["ack_lower"]) for x in s["listeners"]] == [("memory", False), ("replicated", True)]
    assert s["ack_filters"] == [{"filter": "meters/+/#", "ack": "durable"}]
    assert Config().durability.ack == "durable"
    assert toml("", {"ROOST_DURABILITY__ACK_FILTERS": '{"a/#" = "memory"}'}).durability.ack_filters == {"a/#": "memory"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            '[durability]\nack = "durabel"\n',
            2,
            ["durability.ack", "`durabel` is not one of", "did you mean `durable`?"],
        ),
        ('[listeners.a]\nport = 1\nack = "disk"\n', 3, ["listeners.a.ack", "memory, replicated, durable"]),
        ("[durability]\nsync_every_ms = -1\n", 2, ["durability.sync_every_ms", "-1 is below the least value, 0"]),
        ('[durability]\ndatadir = "/d"\n', 2, ["durability.datadir", "did you mean `data_dir`?"]),
        (
            '[durability.ack_filters]\n"a.b/#" = "durable"\n"a/b+" = "memory"\n',
            3,
            ["ack_filters.a/b+", "`+` stands alone"],
        ),
        ('[durability.ack_filters]\n"a/#/b" = "memory"\n', 2, ["`#` stands alone on the last level"]),
        ('[durability.ack_filters]\n"$share/g/a" = "memory"\n', 2, ["leave `$share/GROUP/` out"]),
        ('[durability.ack_filters]\na = "memry"\n', 2, ["ack_filters.a", "did you mean `memory`?"]),
        ("[durability]\nack_filters = 3\n", 2, ["durability.ack_filters", "a table is needed"]),
    ],
)
def test_errors_of_durability_name_the_place(text, line, words):
    test_errors_name_the_place(text, line, words)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
configs = st.builds(
    Config,
    lanes=st.integers(0, 64),
    listeners=st.dictionaries(
        names,
        st.builds(
            Listener,
            port=st.integers(0, 65_535),
            websocket=st.booleans(),
            mount_point=texts,
            proxy_from=st.lists(texts.filter(bool), max_size=2).map(tuple),
            tls=st.none() | st.builds(Tls, cert_file=texts, ca_file=st.none() | texts),
        ),
        max_size=3,
    ),
    access=st.dictionaries(
        names, st.builds(Access, allow_anonymous=st.none() | st.booleans(), acl_file=st.none() | texts)
    ),
    limits=st.builds(
        Limits, receive_maximum=st.integers(1, 65_535), queue_policy=st.sampled_from(["reject", "drop_oldest"])
    ),
    durability=st.builds(
        Durability,
        data_dir=st.none() | texts,
        memory=st.booleans(),
        ack=st.sampled_from(ACK_CLASSES),
        ack_filters=st.dictionaries(
            texts.filter(lambda t: wrong_filter(t) is None), st.sampled_from(ACK_CLASSES), max_size=3
        ),
        sync_every_ms=st.integers(0, 60_000),
    ),
    mqtt=st.builds(Mqtt, qos_max=st.integers(0, 2), assigned_id_prefix=texts, queue_qos0=st.booleans()),
)


@settings(max_examples=40)
@given(configs)
def test_toml_round_trip(config):
    assert toml(to_toml(config)) == config


def test_schema_and_reference_know_every_option():
    schema = json_schema()["properties"]
    assert schema["limits"]["properties"]["receive_maximum"]["maximum"] == 65_535
    assert "| `receive_maximum` | 1024 | 1 to 65535 |" in reference()
    written = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
    assert written.read_text() == reference(), "roost config reference > docs/reference/configuration.md"


# ---- mosquitto.conf


def conf(tmp_path, text, name="mosquitto.conf", **more):
    path = tmp_path / name
    path.write_text(text)
    return load(path, {}, Overrides(**more))


def settings(tmp_path, text):
    return conf(tmp_path, text)[0].engine_settings()


def test_debian_stock_file(tmp_path):
    """The stock file with what users put into conf.d."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "local.conf").write_text("listener 1884\nallow_anonymous false\npassword_file /p\n")
    (tmp_path / "conf.d" / "ignored.txt").write_text("nonsense\n")
    config, warnings = conf(
        tmp_path,
        "# Place your local configuration in /etc/mosquitto/conf.d/\n\npid_file /run/mosquitto/mosquitto.pid\n\n"
        "persistence true\npersistence_location /var/lib/mosquitto/\n\nlog_dest file /var/log/mosquitto/mosquitto.log\n\n"
        f"include_dir {tmp_path}/conf.d\n",
    )
    s = config.engine_settings()
    assert [(x["host"], x["port"]) for x in s["listeners"]] == [("0.0.0.0", 1884)]
    assert s["access"][0] == s["access"][0] | {"allow_anonymous": False, "password_file": "/p"}
    assert config.log.file == "/var/log/mosquitto/mosquitto.log"
    assert config.pid_file == "/run/mosquitto/mosquitto.pid"
    assert s["data"]["dir"] == "/var/lib/mosquitto/mosquitto.db.d"
    assert not warnings


def test_anonymous_as_in_mosquitto(tmp_path):
    assert settings(tmp_path, "")["access"][0]["allow_anonymous"]
    assert not settings(tmp_path, "listener 1883\n")["access"][0]["allow_anonymous"]
    assert settings(tmp_path, "listener 1883\nallow_anonymous true\n")["access"][0]["allow_anonymous"]


@pytest.mark.parametrize(
    ("line", "section", "option", "value"),
    [
        ("max_keepalive 100", "limits", "keep_alive_max_s", 100),
        ("max_packet_size 1000", "limits", "packet_bytes_max", 1000),
        ("message_size_limit 1000", "limits", "payload_bytes_max", 1000),
        ("max_inflight_messages 20", "limits", "inflight_max", 20),
        ("max_inflight_messages 0", "limits", "inflight_max", 65_535),
        ("max_inflight_bytes 500", "limits", "inflight_bytes_max", 500),
        ("max_queued_messages 9", "limits", "queue_messages_max", 9),
        ("max_queued_messages 0", "limits", "queue_messages_max", 1_000_000_000),
        ("max_queued_bytes 900", "limits", "queue_bytes_max", 900),
        ("retain_available false", "mqtt", "retain_available", False),
        ("retain_expiry_interval 1d", "mqtt", "retain_expiry_s", 86_400),
        ("upgrade_outgoing_qos true", "mqtt", "upgrade_qos", True),
        ("queue_qos0_messages true", "mqtt", "queue_qos0", True),
        ("persistent_client_expiration 2h", "mqtt", "persistent_client_expiration_s", 7_200),
        ("allow_zero_length_clientid false", "mqtt", "allow_empty_client_id", False),
        ("auto_id_prefix x-", "mqtt", "assigned_id_prefix", "x-"),
        ("set_tcp_nodelay false", "mqtt", "tcp_nodelay", False),
    ],
)
def test_global_options(tmp_path, line, section, option, value):
    assert settings(tmp_path, f"{line}\n")[section][option] == value


def test_listener_options(tmp_path):
    s = settings(
        tmp_path,
        "per_listener_settings true\nlistener 1 127.0.0.1\nallow_anonymous true\nmax_connections 5\nmaximum_qos 1\n"
        "max_topic_alias 3\nmount_point a/\nlistener 2\nprotocol websockets\ncertfile /c\nkeyfile /k\ncafile /a\n"
        "capath /d\ncrlfile /r\nrequire_certificate true\nuse_identity_as_username true\ntls_version tlsv1.3\n"
        "ciphers A:B\npassword_file /p\nacl_file /l\nclientid_prefixes dev-\nlistener 0 /sock\n",
    )
    one, two, three = s["listeners"]
    assert (one["connections_max"], one["qos_max"], one["topic_alias_max"], one["mount_point"]) == (5, 1, 3, "a/")
    assert two["websocket"]
    assert two["tls"]["ciphers"] == ("A", "B")
    assert (two["tls"]["client_certificates"], two["tls"]["identity"]) == ("required", "common_name")
    assert (two["tls"]["cert_file"], two["tls"]["crl_file"], two["tls"]["version_min"]) == ("/c", "/r", "1.3")
    assert three["path"] == "/sock"
    access = [s["access"][x["access"]] for x in s["listeners"]]
    assert [a["allow_anonymous"] for a in access] == [True, False, False]
    assert (access[1]["password_file"], access[1]["acl_file"]) == ("/p", "/l")
    assert access[1]["client_id_prefixes"] == ("dev-",)


def test_port_and_bind_address(tmp_path):
    s = settings(tmp_path, "port 1999\nbind_address ::1\nlistener 2000 127.0.0.1\n")
    assert [(x["host"], x["port"]) for x in s["listeners"]] == [("::1", 1999), ("127.0.0.1", 2000)]


@pytest.mark.parametrize(
    "name", ["plugin /x.so", "psk_file /x", "connection bridge", "auth_plugin /x", "topic # both", "global_plugin /x"]
)
def test_what_grants_or_routes_stops_the_start(tmp_path, name):
    with pytest.raises(UnsupportedOption) as error:
        conf(tmp_path, f"listener 1883\n{name}\n")
    option = name.split()[0]
    assert error.value.line == 2
    assert f"--ignore-unsupported {option}" in str(error.value)
    _, warnings = conf(tmp_path, f"{name}\n", ignore_unsupported=(option,))
    assert len(warnings) == 1


def test_unknown_and_wrong_values(tmp_path):
    for text, words in (
        ("max_queued_mesages 1\n", "did you mean `max_queued_messages`?"),
        ("max_keepalive much\n", "whole number"),
        ("allow_anonymous perhaps\n", "true or false"),
        ("protocol http\n", "mqtt or websockets"),
        ("persistent_client_expiration soon\n", "14d"),
        (f"include_dir {tmp_path}/nowhere\n", "not a folder"),
    ):
        with pytest.raises(ConfigError) as error:
            conf(tmp_path, text)
        assert words in str(error.value)
        assert error.value.line == 1


def test_only_cosmetic_options_warn(tmp_path):
    _, warnings = conf(tmp_path, "log_timestamp true\nlog_facility 5\nmemory_limit 0\n")
    assert len(warnings) == 3
    _, warnings = conf(tmp_path, "autosave_interval 5\nautosave_on_changes true\n")
    assert len(warnings) == 1, "said once"


@pytest.mark.parametrize(
    ("text", "memory", "data_dir"),
    [
        ("", True, None),
        ("persistence false\npersistence_location /var/lib/mosquitto/\n", True, None),
        ("persistence_location /d\n", True, None),
        ("persistence true\npersistence_location /d/e/\n", False, "/d/e/mosquitto.db.d"),
        ("persistence true\npersistence_location /d/e\npersistence_file a.db\n", False, "/d/e/a.db.d"),
        ("persistence true\n", False, "mosquitto.db.d"),
        ("persistence true\npersistence false\n", True, None),
    ],
)
def test_persistence_as_in_mosquitto(tmp_path, text, memory, data_dir):
    durability = conf(tmp_path, text)[0].durability
    assert (durability.memory, durability.data_dir) == (memory, data_dir)


def test_a_database_of_mosquitto_is_named_and_left_alone(tmp_path):
    """Sessions that stay behind are said once, before the first start here."""
    (tmp_path / "m.db").write_bytes(b"\0mosquitto db")
    text = f"persistence true\npersistence_location {tmp_path}\npersistence_file m.db\n"
    _, warnings = conf(tmp_path, text)
    assert len(warnings) == 1
    assert str(tmp_path / "m.db") in warnings[0]
    (tmp_path / "m.db.d").mkdir()
    assert not conf(tmp_path, text)[1]


def test_convert_keeps_everything(tmp_path):
    config, _ = conf(tmp_path, "listener 1883 127.0.0.1\nallow_anonymous true\nmax_queued_messages 7\nsys_interval 3\n")
    assert toml(to_toml(config)) == config


def test_the_command_line_wins(tmp_path):
    path = Path(tmp_path / "r.toml")
    path.write_text("[listeners.a]\nport = 1\n[listeners.b]\nport = 2\n")
    config, _ = load(path, {}, Overrides(port=9, lanes=2, no_admin=True))
    assert [x.port for x in config.listeners.values()] == [9, 2]
    assert config.lanes == 2
    assert not config.admin.enabled
