"""Who may do what, through the front door: passwords, ACL, tokens, certificates, reload."""

import json
import subprocess
import time

import pytest
from wire import CONNACK, DISCONNECT, unique

from roostmq.engine import hash_password

ACL = """
topic read public/#
topic readwrite open/#
user ann
topic readwrite ann/#
topic deny ann/secret
topic read $SYS/#
pattern readwrite dev/%c/#
"""


@pytest.fixture
def guarded(make_broker, tmp_path):
    (tmp_path / "passwords").write_text(f"ann:{hash_password('sesame')}\n")
    (tmp_path / "acl").write_text(ACL)
    return make_broker(
        f'[listeners.tcp]\nport = 0\n[access]\nallow_anonymous = true\npassword_file = "{tmp_path}/passwords"\n'
        f'acl_file = "{tmp_path}/acl"\n'
    )


def test_passwords(guarded):
    guarded.client(username="ann", password="sesame").ping()
    guarded.client(4, username="ann", password="sesame").ping()
    for user, password in (("ann", "wrong"), ("bob", "sesame"), ("ann", None)):
        assert guarded.client(username=user, password=password, expect=None).want(CONNACK).code in (0x86, 0x87)
        assert guarded.client(4, username=user, password=password, expect=None).want(CONNACK).code in (4, 5)


def test_acl(guarded):
    """CONNECT is open here; PUBLISH, SUBSCRIBE and delivery are checked, 0x87 for each filter."""
    ann, nobody = guarded.client(client_id="a1", username="ann", password="sesame"), guarded.client(client_id="n1")
    assert ann.subscribe("ann/#", "ann/secret", "elsewhere", "dev/a1/x", "#").codes == [2, 0x87, 0x87, 2, 2]
    assert nobody.subscribe("public/x", "ann/#", "dev/a1/x", "dev/n1/x").codes == [2, 0x87, 0x87, 2]
    assert ann.deliver("ann/x", "1", 1).code == 0
    ann.message("ann/x", "1")
    assert ann.deliver("ann/secret", "1", 1).code == 0x87
    assert ann.deliver("public/x", "1", 2).code == 0x87
    assert nobody.deliver("ann/x", "1", 1).code == 0x87
    nobody.deliver("open/x", "for all", 1)
    ann.quiet()
    assert nobody.deliver("dev/n1/x", "own", 1).code == 0
    nobody.message("dev/n1/x", "own")


def test_acl_of_wills(guarded):
    ann = guarded.client(client_id="a1", username="ann", password="sesame")
    ann.subscribe("ann/#")
    guarded.client(will={"topic": "ann/x"}).drop()
    ann.quiet()
    guarded.client(username="ann", password="sesame", will={"topic": "ann/x"}).drop()
    ann.message("ann/x", "gone")


def test_denied_in_3_1_1_is_silent(guarded):
    """There is no code for it: acknowledged, and not delivered."""
    ann, old = guarded.client(username="ann", password="sesame"), guarded.client(4)
    ann.subscribe("ann/#")
    old.deliver("ann/x", "1", 1)
    ann.quiet()
    assert old.subscribe("ann/x").codes == [0x80]


def test_reload_by_sighup(guarded, tmp_path):
    """SIGHUP reads passwords and ACL anew; nobody is disconnected."""
    here = guarded.client(username="ann", password="sesame")
    guarded.client(username="bob", password="late", expect=0x87)
    with (tmp_path / "passwords").open("a") as file:
        file.write(f"bob:{hash_password('late')}\n")
    guarded.process.send_signal(1)
    until = time.monotonic() + 10
    while not any("reloaded" in line for line in guarded.log) and time.monotonic() < until:
        time.sleep(0.05)
    guarded.client(username="bob", password="late").ping()
    here.ping()
    assert here.subscribe("later/#").codes == [0x87]
    (tmp_path / "acl").write_text(ACL + "user ann\ntopic read later/#\n")
    guarded.process.send_signal(1)
    while sum("reloaded" in line for line in guarded.log) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert here.subscribe("later/#").codes == [2]
    (tmp_path / "passwords").write_text("broken")
    guarded.process.send_signal(1)
    while not any("reload failed" in line for line in guarded.log) and time.monotonic() < until:
        time.sleep(0.05)
    assert any("line 1" in line for line in guarded.log)
    guarded.client(username="bob", password="late").ping()


def test_repeated_failures_are_slowed(make_broker, tmp_path):
    """The answer is delayed. A good login from the same address is not, and does not buy more guesses."""
    (tmp_path / "passwords").write_text(f"ann:{hash_password('sesame')}\n")
    broker = make_broker(
        f'[listeners.tcp]\nport = 0\n[access]\npassword_file = "{tmp_path}/passwords"\n[limits]\n'
        "auth_failures_max = 2\n"
    )
    for _ in range(3):
        broker.client(username="ann", password="wrong", expect=0x87)
    broker.client(username="ann", password="sesame").ping()
    c = broker.client(username="ann", password="wrong", expect=None)
    assert c.read(0.2) is None
    assert c.want(CONNACK).code == 0x87


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True)


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_tokens(make_broker, tmp_path, algorithm):
    """JWT in the password field; its end ends the connection; its rights bind."""
    import base64
    import hashlib
    import hmac

    def b64(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    key, public = tmp_path / "key", tmp_path / "public"
    if algorithm == "HS256":
        public.write_bytes(b"0123456789abcdef0123456789abcdef")
    elif algorithm == "RS256":
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(key))
        openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))
    else:
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
        openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))

    def sign(claims):
        head = b64(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()) + b"." + b64(json.dumps(claims).encode())
        if algorithm == "HS256":
            return head + b"." + b64(hmac.new(public.read_bytes(), head, hashlib.sha256).digest())
        (tmp_path / "text").write_bytes(head)
        openssl("dgst", "-sha256", "-sign", str(key), "-out", str(tmp_path / "sig"), str(tmp_path / "text"))
        raw = (tmp_path / "sig").read_bytes()
        if algorithm == "ES256":  # DER to r and s
            n = raw[3]
            r, s = raw[4 : 4 + n], raw[6 + n :]
            raw = r.lstrip(b"\0").rjust(32, b"\0") + s.lstrip(b"\0").rjust(32, b"\0")
        return head + b"." + b64(raw)

    broker = make_broker(
        f'[listeners.tcp]\nport = 0\n[access.default.jwt]\nalgorithm = "{algorithm}"\nkey_file = "{public}"\n'
        'acl_claim = "acl"\n'
    )
    now = int(time.time())
    rights = {"publish": ["car/%c/#"], "subscribe": ["car/%c/#"]}
    c = broker.client(client_id="id7", username="x", password=sign({"sub": "car7", "exp": now + 4, "acl": rights}))
    assert c.subscribe("car/id7/a", "car/id8/a").codes == [2, 0x87]
    assert c.deliver("car/id7/a", "1", 1).code == 0
    c.message("car/id7/a")
    assert c.deliver("car/id8/a", "1", 1).code == 0x87
    broker.client(username="x", password=sign({"sub": "car7", "exp": now - 60}), expect=0x87)
    broken = bytearray(sign({"sub": "car7"}))
    broken[len(broken) // 2] ^= 1
    broker.client(username="x", password=bytes(broken), expect=0x87)
    assert c.want(DISCONNECT, 15).code == 0x87


def test_client_id_prefixes(make_broker):
    broker = make_broker('[listeners.tcp]\nport = 0\n[access]\nallow_anonymous = true\nclient_id_prefixes = ["dev-"]\n')
    broker.client(client_id=unique("dev-x")).ping()
    broker.client(client_id=unique("other"), expect=0x87)


def test_open_to_the_network_needs_a_word(make_broker):
    """With another address than loopback the broker refuses to start, and says what to write."""
    with pytest.raises(AssertionError, match="allow_anonymous = true"):
        make_broker('[listeners.tcp]\nhost = "0.0.0.0"\nport = 0\n')
