"""`roost pub` and `roost sub`, with the flags of mosquitto_pub and mosquitto_sub; paho-mqtt carries them."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

from roostmq.errors import ConfigError, TimedOut

WAIT_S = 30.0


def common(prog: str, text: str) -> argparse.ArgumentParser:
    """Flags that both commands have."""
    p = argparse.ArgumentParser(prog=prog, description=text, add_help=False)
    p.add_argument("--help", action="help", help="show this help")
    p.add_argument("-h", "--host", default="127.0.0.1", metavar="H")
    p.add_argument("-p", "--port", type=int, metavar="N", help="default 1883, with TLS 8883")
    p.add_argument("-t", "--topic", required=True, metavar="T", **({"action": "append"} if "sub" in prog else {}))
    p.add_argument("-q", "--qos", type=int, default=0, choices=(0, 1, 2))
    p.add_argument("-i", "--id", default="", metavar="ID", help="client id")
    p.add_argument("-u", "--username", metavar="NAME")
    p.add_argument("-P", "--pw", metavar="PASSWORD")
    p.add_argument("-V", "--protocol-version", default="5", choices=("31", "311", "5", "mqttv31", "mqttv311", "mqttv5"))
    p.add_argument("-k", "--keepalive", type=int, default=60, metavar="S")
    p.add_argument("--cafile", metavar="FILE", help="authorities of the server's certificate; turns TLS on")
    p.add_argument("--cert", metavar="FILE", help="client certificate")
    p.add_argument("--key", metavar="FILE", help="key of the client certificate")
    p.add_argument("--insecure", action="store_true", help="do not check the server's name")
    p.add_argument("--ws", action="store_true", help="over WebSocket, path /mqtt")
    p.add_argument("-d", "--debug", action="store_true", help="say what happens")
    return p


class Connection:
    """A connected client; `failed` holds why it could not connect."""

    def __init__(self, options: argparse.Namespace, expiry_s: int = 0, clean: bool = True) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        version = {"31": 3, "311": 4, "5": 5}[options.protocol_version.removeprefix("mqttv")]
        self.v5 = version == 5
        self.failed: str | None = None
        self.open = threading.Event()
        extra: dict[str, Any] = {} if self.v5 else {"clean_session": clean or not options.id}
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            options.id,
            protocol=MQTTProtocolVersion(version),
            transport="websockets" if options.ws else "tcp",
            **extra,
        )
        if options.username is not None:
            self.client.username_pw_set(options.username, options.pw)
        if options.cafile or options.cert:
            self.client.tls_set(options.cafile, options.cert, options.key)
            self.client.tls_insecure_set(options.insecure)
        if options.ws:
            self.client.ws_set_options(path="/mqtt")
        if options.debug:
            self.client.on_log = lambda c, u, level, text: print(text, file=sys.stderr)
        self.client.on_connect = self._connected
        begin: dict[str, Any] = {}
        if self.v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = expiry_s
            begin = {"clean_start": clean, "properties": properties}
        port = options.port or (8883 if options.cafile else 1883)
        try:
            self.client.connect(options.host, port, options.keepalive, **begin)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{options.host}:{port}: {error}") from None

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.failed = str(reason)
            client.disconnect()
        self.open.set()

    def wait(self) -> None:
        """Wait until the server has let us in."""
        if not self.open.wait(WAIT_S):
            raise TimedOut("the server does not answer")
        if self.failed:
            raise ConfigError(f"the server refuses: {self.failed}")


def publish(words: list[str]) -> int:
    """`roost pub`."""
    p = common("roost pub", "Publish a message, as mosquitto_pub does.")
    p.add_argument("-r", "--retain", action="store_true")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("-m", "--message", metavar="TEXT")
    what.add_argument("-n", "--null-message", action="store_true", help="an empty message")
    what.add_argument("-f", "--file", type=Path, metavar="FILE", help="the content of a file")
    what.add_argument("-l", "--stdin-line", action="store_true", help="a message for each line of standard input")
    what.add_argument("-s", "--stdin-file", action="store_true", help="standard input as one message")
    options = p.parse_args(words)
    if "+" in options.topic or "#" in options.topic:
        raise ConfigError(f"`{options.topic}` is a filter; messages are published to a topic without + and #")
    connection = Connection(options)
    connection.client.loop_start()
    connection.wait()
    try:
        for payload in _payloads(options):
            sent = connection.client.publish(options.topic, payload, options.qos, options.retain)
            sent.wait_for_publish(WAIT_S)
            if not sent.is_published():
                raise TimedOut("the server did not acknowledge the message")
    finally:
        connection.client.disconnect()
        connection.client.loop_stop()
    return 0


def _payloads(options: argparse.Namespace) -> Any:
    if options.stdin_line:
        for line in sys.stdin:
            yield line.rstrip("\n")
    elif options.null_message:
        yield b""
    elif options.file is not None:
        try:
            yield options.file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(options.file)) from None
    else:
        yield sys.stdin.buffer.read() if options.stdin_file else options.message


def subscribe(words: list[str]) -> int:
    """`roost sub`."""
    p = common("roost sub", "Subscribe and print messages, as mosquitto_sub does.")
    p.add_argument("-v", "--verbose", action="store_true", help="print the topic before each message")
    p.add_argument("-C", "--count", type=int, metavar="N", help="end after N messages")
    p.add_argument("-W", "--timeout", type=float, metavar="S", help="end after S seconds")
    p.add_argument("-N", "--no-newline", action="store_true", help="no line end after each message")
    p.add_argument("-R", "--no-retained", action="store_true", help="do not print retained messages")
    p.add_argument("-c", "--disable-clean-session", action="store_true", help="keep the session; needs an id")
    p.add_argument("-x", "--session-expiry", type=int, default=0, metavar="S", help="keep the session so long")
    options = p.parse_args(words)
    if options.disable_clean_session and not options.id:
        raise ConfigError("-c needs a client id: add -i ID")
    keep = 2**32 - 1 if options.disable_clean_session and not options.session_expiry else options.session_expiry
    connection = Connection(options, expiry_s=keep, clean=not options.disable_clean_session)
    done, left = threading.Event(), options.count

    def on_message(client: Any, userdata: Any, message: Any) -> None:
        nonlocal left
        if done.is_set() or (options.no_retained and message.retain):
            return
        head = f"{message.topic} ".encode() if options.verbose else b""
        sys.stdout.buffer.write(head + message.payload + (b"" if options.no_newline else b"\n"))
        sys.stdout.flush()
        if left is not None:
            left -= 1
            if left <= 0:
                done.set()

    def on_subscribe(client: Any, userdata: Any, mid: int, codes: list[Any], properties: Any) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            print(f"roost: the server refuses the subscription: {', '.join(refused)}", file=sys.stderr)
            if len(refused) == len(codes):
                done.set()

    connection.client.on_message, connection.client.on_subscribe = on_message, on_subscribe
    connection.client.loop_start()
    connection.wait()
    connection.client.subscribe([(topic, options.qos) for topic in options.topic])
    timed_out = not done.wait(options.timeout)
    connection.client.disconnect()
    connection.client.loop_stop()
    return 27 if timed_out else 0
