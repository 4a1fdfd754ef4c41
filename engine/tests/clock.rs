//! A broker that starts with a wall clock that is right, far ahead of its log, or behind it: what the time means for
//! sessions. The wall clock of the log is set by a last group that says so; the engine reads the machine's.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roostmq_engine::log::{Directory, Disk, Piece, Storage, Writer};
use roostmq_engine::port::Engine;
use roostmq_engine::ring::{Ring, siphash};
use serde_json::{Value, json};

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const HOUR_MS: i64 = 3_600_000;

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(folder: &Path) -> (Engine, u16, Value) {
    let settings = json!({
        "lanes": 1, "key": KEY, "listeners": [{"name": "tcp", "host": "127.0.0.1"}],
        "access": [{"allow_anonymous": true}], "data": {"dir": folder},
    });
    let engine = Engine::start(&settings.to_string()).unwrap();
    let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
    let address = events.iter().find_map(|e| e["address"].as_str()).unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let recovered = events.iter().find(|e| e["event"] == "recovered").cloned().unwrap_or_default();
    (engine, port, recovered)
}

/// A client with a session of two hours; whether there was one.
fn connect(port: u16) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut packet = b"\x10\x13\0\x04MQTT\x05\0\0\0\x05\x11".to_vec();
    packet.extend(7_200u32.to_be_bytes());
    packet.extend(b"\0\x01c");
    stream.write_all(&packet).unwrap();
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    assert_eq!((head[0], head[3]), (0x20, 0), "CONNACK");
    stream.write_all(b"\xe0\0").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    head[2] == 1
}

fn unix_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// The log ends with a group that was written so long ago, by the wall clock.
fn age(folder: &Path, ago_ms: i64) {
    let directory = Directory::open(folder).unwrap();
    let identity = directory.identity().unwrap().unwrap();
    let key = u128::from_str_radix(KEY, 16).unwrap();
    let ring = Ring::new(((key >> 64) as u64, key as u64), 64, 1);
    let check = (identity.partitions, siphash(ring.key(), b"roostmq"));
    let storage: Arc<dyn Storage> = Arc::new(Disk { path: directory.log() });
    let mut writer = Writer::settled(&storage, check, 32 << 20, identity.newest).unwrap();
    let wall = u64::try_from(unix_ms() - ago_ms).unwrap();
    writer.write(&[Piece::default()], wall, true).unwrap();
}

/// The time that the broker was down counts, at most seven days of it; none while the clock is behind the log.
#[test]
fn the_time_that_it_was_down() {
    let cases = [(0, true), (HOUR_MS, true), (3 * HOUR_MS, false), (-48 * HOUR_MS, true), (24_000 * HOUR_MS, false)];
    for (ago_ms, is_there) in cases {
        let folder = Folder(std::env::temp_dir().join(format!("roost-clock-{ago_ms}-{}", std::process::id())));
        let (engine, port, _) = start(&folder.0);
        assert!(!connect(port));
        assert!(connect(port), "a session that was just left");
        drop(engine);
        age(&folder.0, ago_ms);
        let (engine, port, recovered) = start(&folder.0);
        let down_ms = recovered["down_ms"].as_i64().unwrap();
        let counts = ago_ms.clamp(0, 7 * 24 * HOUR_MS);
        assert!((counts..=counts + HOUR_MS / 2).contains(&down_ms), "{ago_ms}: {recovered}");
        assert_eq!(recovered["damaged"], 0);
        assert_eq!(connect(port), is_there, "{ago_ms} ms ago");
        drop(engine);
    }
}
