//! Data directories of every version that was ever written are read as on the day they were written, for ever
//! (`docs/formats/log.md`). `golden/vN` holds one each: the files of the directory, what `inspect` said of it, and its
//! export. `cargo test --test golden -- --ignored` writes those of the present version anew, which is right only while
//! that version has not been released.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roostmq_engine::channel::{ConnectionId, SessionRef, Token};
use roostmq_engine::codec::{AckKind, QoS, Reason};
use roostmq_engine::log::{Directory, Disk, Emptying, Identity, Piece, Storage, Walked, Writer, scan};
use roostmq_engine::message::{Head, Inbound, Message, Origin, Stored};
use roostmq_engine::partition::{
    Ask, BodyCache, Dispatched, Effect, Effects, Ending, Input, Match, Partition, Resumed, Rules, Target, Walk,
};
use roostmq_engine::port::{Engine, export, inspect, verify};
use roostmq_engine::queue::GroupPlace;
use roostmq_engine::record::Replay;
use roostmq_engine::ring::{Ring, siphash};
use roostmq_engine::session::{Attach, NEVER, Subscription, Will};
use serde_json::{Value, json};

include!("golden/writer.rs");

const VERSION: &str = "v1";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every version that there is.
fn versions() -> Vec<PathBuf> {
    let folders = fs::read_dir(golden()).unwrap().map(|f| f.unwrap().path());
    let mut found: Vec<PathBuf> = folders.filter(|p| p.is_dir()).collect();
    found.sort();
    assert!(!found.is_empty(), "there is one of each version");
    found
}

/// A copy that goes with the value: reading locks a directory, and starting writes to it.
struct Copy(PathBuf);

impl Copy {
    fn of(version: &Path, name: &str) -> Self {
        let version_name = version.file_name().unwrap().to_str().unwrap();
        let to = std::env::temp_dir().join(format!("roost-golden-{name}-{version_name}-{}", std::process::id()));
        fs::create_dir_all(to.join("data/log")).unwrap();
        for folder in ["", "log"] {
            for file in fs::read_dir(version.join("data").join(folder)).unwrap().map(|f| f.unwrap()) {
                if file.file_type().unwrap().is_file() {
                    fs::copy(file.path(), to.join("data").join(folder).join(file.file_name())).unwrap();
                }
            }
        }
        Self(to)
    }

    fn data(&self) -> String {
        self.0.join("data").to_str().unwrap().to_owned()
    }

    fn inspected(&self) -> Value {
        serde_json::from_str(&inspect(&self.data()).unwrap()).unwrap()
    }

    fn verified(&self) -> Value {
        serde_json::from_str(&verify(&self.data()).unwrap()).unwrap()
    }

    /// The lines of an export; the first says which program wrote it.
    fn exported(&self) -> BTreeSet<String> {
        let file = self.0.join("export.jsonl");
        export(&self.data(), file.to_str().unwrap(), true).unwrap();
        lines(&fs::read_to_string(file).unwrap())
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| !line.contains("\"roostmq_export\"")).map(str::to_owned).collect()
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What was in it on the day it was written is in it now: numbers, digests of the partitions, every record and body
/// readable, and each session, subscription, message, identifier and will in the export.
#[test]
fn every_version_is_read_as_ever() {
    for version in versions() {
        let copy = Copy::of(&version, "read");
        let expected: Value =
            serde_json::from_str(&fs::read_to_string(version.join("expected.json")).unwrap()).unwrap();
        assert_eq!(copy.inspected(), expected["inspect"], "{}", version.display());
        assert_eq!(copy.verified(), expected["verify"], "{}", version.display());
        assert_eq!(copy.verified()["ok"], true);
        let wanted = lines(&fs::read_to_string(version.join("export.jsonl")).unwrap());
        assert_eq!(copy.exported(), wanted, "{}", version.display());
    }
}

/// A broker of today starts on it, finds what was in it, and leaves a directory that can be read in full.
#[test]
fn a_broker_starts_on_every_version() {
    for version in versions() {
        let copy = Copy::of(&version, "start");
        let before = copy.inspected();
        let data = json!({"dir": copy.data()});
        let settings = json!({"lanes": 2, "partitions": before["partitions"], "data": data, "listeners": []});
        let mut engine = Engine::start(&settings.to_string()).unwrap();
        let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
        engine.stop();
        let found = events.iter().find(|e| e["event"] == "recovered").unwrap();
        assert_eq!((&found["sessions"], &found["retained"]), (&before["sessions"], &before["retained"]));
        assert_eq!((&found["damaged"], &found["torn"]), (&json!(0), &Value::Null));
        drop(engine);
        assert_eq!(copy.verified()["ok"], true);
        assert_eq!(copy.inspected()["incarnation"], before["incarnation"].as_u64().unwrap() + 1);
    }
}

/// Kinds of records, of the whole log and from the checkpoint on.
fn kinds(version: &Path) -> (BTreeSet<u8>, BTreeSet<u8>) {
    let identity = Directory::identity_at(&version.join("data")).unwrap().unwrap();
    let disk = Disk { path: version.join("data/log") };
    let of = |from| {
        let mut found = BTreeSet::new();
        let mut see = |body: &[u8]| found.insert(body[0]);
        let show = &mut |_: &_, body: &[u8], _| {
            see(body);
            Ok(())
        };
        scan(&disk, from, None, show).unwrap();
        found
    };
    (of(None), of(identity.checkpoint))
}

/// It would notice a change of any record: each kind of the table in the document is in it, behind the checkpoint too.
#[test]
fn every_kind_of_record_is_in_it() {
    let document = fs::read_to_string(golden().join("../../../docs/formats/log.md")).unwrap();
    let table = document.split("## Record\n").nth(1).unwrap().split("*message*:").next().unwrap();
    let first = |line: &str| line.split('|').nth(1).and_then(|cell| cell.trim().parse::<u8>().ok());
    let documented: BTreeSet<u8> = table.lines().filter_map(first).collect();
    assert!(documented.len() > 20);
    let (whole, behind) = kinds(&golden().join(VERSION));
    assert_eq!(whole, documented);
    assert_eq!(behind, documented, "from the checkpoint on");
}

/// Small enough to be kept for ever, and nothing in it is of the place where it was written.
#[test]
fn it_is_small() {
    for version in versions() {
        let mut folders = vec![version.clone()];
        let mut bytes = 0;
        while let Some(folder) = folders.pop() {
            for file in fs::read_dir(folder).unwrap().map(|f| f.unwrap()) {
                if file.file_type().unwrap().is_dir() {
                    folders.push(file.path());
                } else {
                    bytes += file.metadata().unwrap().len();
                }
            }
        }
        assert!(bytes < 200_000, "{}: {bytes} bytes", version.display());
    }
}

/// Writes the files of the present version.
#[test]
#[ignore = "writes what the other tests read"]
fn write_the_golden_files() {
    let folder = golden().join(VERSION);
    let _ = fs::remove_dir_all(&folder);
    write_directory(&folder.join("data"));
    fs::remove_file(folder.join("data/lock")).unwrap();
    let copy = Copy::of(&folder, "write");
    let expected = json!({"inspect": copy.inspected(), "verify": copy.verified()});
    let text = serde_json::to_string_pretty(&expected).unwrap();
    fs::write(folder.join("expected.json"), text + "\n").unwrap();
    let file = folder.join("export.jsonl");
    export(&copy.data(), file.to_str().unwrap(), true).unwrap();
}
