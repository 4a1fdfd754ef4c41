//! Transports against real clients on loopback: TLS, WebSocket, PROXY protocol, and their bad manners.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::settings::{ClientCertificates, ListenerSettings, TlsSettings};

fn settings() -> ListenerSettings {
    ListenerSettings { name: "test".into(), host: "127.0.0.1".into(), ..ListenerSettings::default() }
}

fn pair(settings: &ListenerSettings) -> (TcpStream, Transport) {
    let listener = Listener::bind(settings).unwrap();
    let client = TcpStream::connect(listener.local_address()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (stream, address) = loop {
        if let Some(accepted) = listener.accept().unwrap() {
            break accepted;
        }
    };
    let layers = Arc::new(Layers::load(settings).unwrap());
    (client, Transport::new(stream, address, layers, true))
}

/// Reads until something comes, as the lane's events would let it.
fn read(t: &mut Transport) -> Result<Vec<u8>, NetError> {
    let (mut buf, until) = (vec![0; 4096], Instant::now() + Duration::from_secs(5));
    while Instant::now() < until {
        match t.read(&mut buf)? {
            Read::Bytes(n) => return Ok(buf[..n].to_vec()),
            Read::Closed => return Ok(Vec::new()),
            Read::Again => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("nothing came");
}

fn write_all(t: &mut Transport, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match t.write_vectored(&[IoSlice::new(bytes)]).unwrap() {
            Write::Bytes(n) => bytes = &bytes[n..],
            Write::Again => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    while !t.flush().unwrap() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn plain_connections_are_small_and_work() {
    assert!(size_of::<Transport>() <= 64, "{}", size_of::<Transport>());
    let (mut client, mut t) = pair(&settings());
    client.write_all(b"hello").unwrap();
    assert_eq!(read(&mut t).unwrap(), b"hello");
    write_all(&mut t, b"world");
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"world");
    drop(client);
    assert!(read(&mut t).unwrap().is_empty());
}

/// PROXY protocol v1 and v2, split at every byte; what follows the header is not lost.
#[test]
fn proxy_headers_tell_the_client() {
    let v1 = b"PROXY TCP4 10.1.2.3 127.0.0.1 5555 1883\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([10, 1, 2, 3, 127, 0, 0, 1, 0x15, 0xb3, 0x07, 0x5b]);
    for header in [v1, v2] {
        for cut in [1, 5, 12, 15, header.len() - 1, header.len()] {
            let (mut client, mut t) = pair(&ListenerSettings { proxy_from: vec!["127.0.0.0/8".into()], ..settings() });
            client.write_all(&header[..cut]).unwrap();
            let mut buf = [0; 64];
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(t.read(&mut buf).unwrap(), Read::Again);
            client.write_all(&header[cut..]).unwrap();
            client.write_all(b"mqtt").unwrap();
            assert_eq!(read(&mut t).unwrap(), b"mqtt");
            assert_eq!(t.address().to_string(), "10.1.2.3:5555");
        }
    }
}

#[test]
fn proxy_headers_are_believed_only_from_trusted_places() {
    let (mut client, mut t) = pair(&ListenerSettings { proxy_from: vec!["10.0.0.0/8".into()], ..settings() });
    client.write_all(b"PROXY TCP4 10.1.2.3 127.0.0.1 5555 1883\r\n").unwrap();
    assert!(read(&mut t).is_err());
    let (mut client, mut t) = pair(&ListenerSettings { proxy_from: vec!["127.0.0.1".into()], ..settings() });
    client.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0 not a header at all").unwrap();
    assert!(read(&mut t).is_err());
    assert!(Layers::load(&ListenerSettings { proxy_from: vec!["10.0.0.0/99".into()], ..settings() }).is_err());
}

/// Certificates for one test, written to files.
struct Pki {
    folder: std::path::PathBuf,
    ca: String,
    client: (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>),
}

impl Pki {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let folder = std::env::temp_dir().join(format!("roost-net-{}", crate::port::random_name()));
        std::fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let leaf = |name: &str| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf("server");
        let (client, client_key) = leaf("car-7");
        for (name, text) in [("ca", ca.pem()), ("cert", server.pem()), ("key", server_key.serialize_pem())] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(client_key.serialize_der()).into();
        Self { ca: ca.pem(), client: (vec![client.der().clone()], key), folder }
    }

    fn tls(&self, client_certificates: ClientCertificates) -> TlsSettings {
        let path = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        TlsSettings {
            cert_file: path("cert"),
            key_file: path("key"),
            ca_file: Some(path("ca")),
            client_certificates,
            identity: crate::settings::CertificateIdentity::CommonName,
            ..TlsSettings::default()
        }
    }

    fn connect(&self, stream: TcpStream, show: bool) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = if show {
            builder.with_client_auth_cert(self.client.0.clone(), self.client.1.clone_key()).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(config), name).unwrap(), stream)
    }
}

impl std::ops::Drop for Pki {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// TLS with and without a client certificate, large messages through a slow reader, and the name of the client.
#[test]
fn tls_and_client_certificates() {
    let pki = Pki::new();
    for (wanted, show, good) in [
        (ClientCertificates::None, false, true),
        (ClientCertificates::Optional, false, true),
        (ClientCertificates::Optional, true, true),
        (ClientCertificates::Required, true, true),
        (ClientCertificates::Required, false, false),
    ] {
        let settings = ListenerSettings { tls: Some(pki.tls(wanted)), ..settings() };
        let (client, mut t) = pair(&settings);
        let mut client = pki.connect(client, show);
        let thread = std::thread::spawn(move || {
            let mut got = vec![0; 300_000];
            client.write_all(b"hello")?;
            std::thread::sleep(Duration::from_millis(30));
            client.read_exact(&mut got).map(|()| got)
        });
        let first = read(&mut t);
        if !good {
            assert!(first.is_err() && thread.join().unwrap().is_err());
            continue;
        }
        assert_eq!(first.unwrap(), b"hello");
        assert_eq!(t.identity().as_deref(), show.then_some("car-7"));
        write_all(&mut t, &vec![7; 300_000]);
        assert_eq!(thread.join().unwrap().unwrap(), vec![7; 300_000]);
    }
}

#[test]
fn wrong_certificates_name_the_file() {
    let pki = Pki::new();
    let mut tls = pki.tls(ClientCertificates::None);
    tls.cert_file = "/nowhere/cert.pem".into();
    let error = Layers::load(&ListenerSettings { tls: Some(tls), ..settings() }).unwrap_err();
    assert!(error.to_string().contains("/nowhere/cert.pem"), "{error}");
}

/// MQTT over WebSocket: sub-protocol, packets across frames, text refused, wrong path refused.
#[test]
#[allow(clippy::result_large_err, reason = "the error type of the client library")]
fn websocket() {
    use tungstenite::client::IntoClientRequest;
    let ws = ListenerSettings { websocket: true, websocket_path: "/mqtt".into(), ..settings() };
    let open = |path: &str, protocol: &str| {
        let (client, mut t) = pair(&ws);
        let mut request = format!("ws://localhost{path}").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let thread = std::thread::spawn(move || {
            tungstenite::client(request, client).map(|(mut socket, response)| {
                for part in [&b"\x10"[..], b"\x0c\0\x04MQ", b"TT"] {
                    socket.send(tungstenite::Message::Binary(part.to_vec().into())).unwrap();
                }
                (socket, response)
            })
        });
        let mut got = Vec::new();
        while got.len() < 8 {
            match read(&mut t) {
                Ok(bytes) if !bytes.is_empty() => got.extend(bytes),
                _ => return (Err(()), t, thread.join().unwrap().map_err(|_| ())),
            }
        }
        (Ok(got), t, thread.join().unwrap().map_err(|_| ()))
    };
    let (got, mut t, client) = open("/mqtt", "mqtt");
    assert_eq!(got.unwrap(), b"\x10\x0c\0\x04MQTT");
    let (mut socket, response) = client.unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    write_all(&mut t, b"answer");
    assert_eq!(socket.read().unwrap().into_data().as_ref(), b"answer");
    socket.send(tungstenite::Message::Text("no".into())).unwrap();
    assert!(read(&mut t).is_err());
    assert!(open("/other", "mqtt").0.is_err());
    assert!(open("/mqtt", "chat").0.is_err());
    assert!(open("/mqtt", "mqttv3.1").0.is_ok());
}

#[test]
fn unix_and_ipv6_listeners() {
    let path = std::env::temp_dir().join(format!("roost-{}.sock", crate::port::random_name()));
    let name = path.to_str().unwrap().to_owned();
    for _ in 0..2 {
        // a stale file from a crash is in nobody's way
        std::fs::write(&path, "").unwrap();
        let listener = Listener::bind(&ListenerSettings { path: Some(name.clone()), ..settings() }).unwrap();
        assert_eq!((listener.kind(), listener.local_address()), ("unix", name.clone()));
        assert!(Listener::bind(&ListenerSettings { path: Some(name.clone()), ..settings() }).is_err());
    }
    assert!(!path.exists());
    let six = Listener::bind(&ListenerSettings { host: "::1".into(), ..settings() }).unwrap();
    assert!(six.local_address().starts_with("[::1]:"));
    let taken = ListenerSettings {
        host: "::1".into(),
        port: six.local_address().rsplit(':').next().unwrap().parse().unwrap(),
        ..settings()
    };
    assert!(Listener::bind(&taken).unwrap_err().to_string().contains("in use"));
}
