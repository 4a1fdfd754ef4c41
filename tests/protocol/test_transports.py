"""TLS, WebSocket, PROXY protocol, Unix sockets, IPv6, several listeners, graceful stop."""

import ssl
import struct
import time

import pytest
import trustme
from websockets.sync.client import connect as ws_connect
from wire import DISCONNECT, Client, unique

LISTENERS = """
[listeners.plain]
port = 0
[listeners.secure]
port = 0
[listeners.secure.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
[listeners.mutual]
port = 0
access = "certified"
[listeners.mutual.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
ca_file = "{d}/ca.pem"
client_certificates = "required"
identity = "common_name"
[listeners.ws]
port = 0
websocket = true
websocket_path = "/mqtt"
[listeners.wss]
port = 0
websocket = true
[listeners.wss.tls]
cert_file = "{d}/cert.pem"
key_file = "{d}/key.pem"
[listeners.proxied]
port = 0
proxy_from = ["127.0.0.0/8"]
[listeners.unix]
path = "{d}/mqtt.sock"
[listeners.six]
host = "::1"
port = 0
qos_max = 1
mount_point = "six/"
[access.default]
allow_anonymous = true
[access.certified]
acl_file = "{d}/acl"
allow_anonymous = false
"""


@pytest.fixture
def authority(tmp_path):
    ca = trustme.CA()
    server = ca.issue_cert("localhost")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "cert.pem").open("wb") as file:
        for blob in server.cert_chain_pems:
            file.write(blob.bytes())
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "acl").write_text("user car-7\ntopic readwrite car/#\n")
    return ca


@pytest.fixture
def everywhere(make_broker, tmp_path, authority):
    return make_broker(LISTENERS.format(d=tmp_path))


def tls(authority, version=None, show=None):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if show is not None:
        show.configure_cert(context)
    return context


def exchange(a, b, prefix=""):
    topic = unique()
    a.subscribe(topic)
    b.deliver(prefix + topic, b"x" * 100_000, 1)
    a.message(topic, b"x" * 100_000)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(everywhere, authority, version):
    with Client(everywhere.address("mqtts"), tls=tls(authority, version)) as c:
        exchange(c, everywhere.client())
        exchange(everywhere.client(), c)


def test_client_certificates(everywhere, authority):
    """Identity from the certificate, rights by the ACL; without a certificate the handshake fails."""
    show = authority.issue_cert("car-7.example", common_name="car-7")
    with Client(everywhere.address("mqtts", 1), tls=tls(authority, show=show)) as c:
        assert c.subscribe("car/#", "other").codes == [2, 0x87]
    with pytest.raises((ssl.SSLError, AssertionError, ConnectionError)):
        Client(everywhere.address("mqtts", 1), tls=tls(authority), made=everywhere.clients)
    stranger = trustme.CA().issue_cert("car-7.example", common_name="car-7")
    with pytest.raises((ssl.SSLError, AssertionError, ConnectionError)):
        Client(everywhere.address("mqtts", 1), tls=tls(authority, show=stranger), made=everywhere.clients)


def test_certificates_are_reloaded(everywhere, authority, tmp_path):
    """A new certificate is served after SIGHUP; what is open stays open."""
    with Client(everywhere.address("mqtts"), tls=tls(authority)) as old:
        other = trustme.CA()
        server = other.issue_cert("localhost")
        server.private_key_pem.write_to_path(tmp_path / "key.pem")
        server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        everywhere.process.send_signal(1)
        until = time.monotonic() + 10
        while not any("reloaded" in line for line in everywhere.log) and time.monotonic() < until:
            time.sleep(0.05)
        with Client(everywhere.address("mqtts"), tls=tls(other)) as new:
            exchange(old, new)


@pytest.mark.parametrize("kind", ["ws", "wss"])
def test_websocket(everywhere, authority, kind):
    """Section 6: sub-protocol, packets across frames and several in one, text refused."""
    host, port = everywhere.address(kind)
    context = tls(authority) if kind == "wss" else None
    url = f"{kind}://{'localhost' if context else host}:{port}/mqtt"
    helper, topic = everywhere.client(), unique()
    with ws_connect(url, subprotocols=["mqtt"], ssl=context, proxy=None) as ws:
        assert ws.subprotocol == "mqtt"
        raw = helper.connect_bytes().replace(helper.id.encode(), helper.id[::-1].encode())
        for b in raw:
            ws.send(bytes([b]))
        assert ws.recv(5)[0] == 0x20
        subscribe = b"\x82" + bytes([6 + len(topic)]) + b"\0\x01\0" + struct.pack(">H", len(topic)) + topic.encode()
        ws.send(subscribe + b"\0" + b"\xc0\0")
        got = b""
        while len(got) < 6 + 2:
            got += ws.recv(5)
        assert got[0] == 0x90
        assert got[-2:] == b"\xd0\0"
        helper.publish(topic, b"y" * 70_000)
        got = b""
        while len(got) < 70_000:
            got += ws.recv(5)
        assert got.endswith(b"y" * 70_000)
        ws.send("text")
        with pytest.raises(Exception, match="1003|close"):
            ws.recv(5)


def test_proxy_protocol(everywhere):
    """The log names the client and not the proxy; without a header nobody comes in."""
    at = everywhere.address("mqtt", 1)
    v1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 1883\r\n"
    v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([192, 0, 2, 8, 192, 0, 2, 1]) + struct.pack(">HH", 4712, 1883)
    for header, name in ((v1, "192.0.2.7:4711"), (v2, "192.0.2.8:4712")):
        with Client(at, before=header) as c:
            c.ping()
        until = time.monotonic() + 10
        while not any(name in line for line in everywhere.log):
            assert time.monotonic() < until
            time.sleep(0.02)
    with Client(at, connect=False) as c:
        c.send(c.connect_bytes())
        c.closed()


def test_unix_ipv6_and_listeners_of_their_own(everywhere, tmp_path):
    """A mount point hides behind its listener; QoS is bounded there only."""
    with Client(str(tmp_path / "mqtt.sock")) as local:
        exchange(local, everywhere.client())
    with Client(everywhere.address("mqtt", 2)) as six:
        assert six.connack.properties["maximum_qos"] == 1
        exchange(six, everywhere.client(), "six/")
        watcher = everywhere.client()
        watcher.subscribe("six/#")
        six.deliver("a", "b", 1)
        watcher.message("six/a", "b")
        six.publish("t", "x", 2, number=1)
        six.refused(0x9B)


def test_graceful_stop(everywhere):
    """DISCONNECT 0x8B for version 5, a close for 3.1.1, exit code 0."""
    five, four = everywhere.client(), everywhere.client(4)
    assert everywhere.stop() == 0
    assert five.want(DISCONNECT).code == 0x8B
    four.closed()
