//! What a log on real nats-servers refuses, keeps and gives back (`30-cluster.md`, section 3).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;

use common::{Heard, Servers, api, batch, names, options};
use roostmq_engine::log::{Anchor, ClusterLog, ClusterLogEvent, ClusterLogState, Fence};
use roostmq_engine_nats::connect::{Access, Auth, Tls};
use roostmq_engine_nats::log::{NatsLog, Options};
use roostmq_engine_nats::stream::SyncNeed;
use serde_json::json;

const STREAMS: u16 = 2;

fn start(options: Options) -> NatsLog {
    NatsLog::start(options).unwrap()
}

fn one(name: &str, sync: &str, more: &str) -> Option<(Servers, Arc<Heard>)> {
    let mut servers = Servers::new(name, 1, sync, more)?;
    servers.start_all();
    Some((servers, Heard::new()))
}

/// Writes batches with these ids and waits until they are safe.
fn write(log: &NatsLog, heard: &Heard, p: u16, from: u64, count: u64) -> Vec<u64> {
    let already = heard.safe(p).len();
    let next = heard.fenced(p);
    (from..from + count).for_each(|n| log.append(batch(p, n, next + n, n)));
    heard.wait("safe", |events| {
        let at = events.iter().filter_map(|e| match e {
            ClusterLogEvent::Safe { partition, parts, .. } if *partition == p => Some(parts[0].at),
            ClusterLogEvent::Damaged { why, .. } => panic!("{why}"),
            _ => None,
        });
        let at: Vec<u64> = at.collect();
        (at.len() as u64 == already as u64 + count).then_some(at)
    })
}

fn damage(heard: &Heard, p: u16) -> String {
    match heard.event("damage", |e| matches!(e, ClusterLogEvent::Damaged { partition, .. } if *partition == p)) {
        ClusterLogEvent::Damaged { why, .. } => why,
        _ => unreachable!(),
    }
}

fn unsuitable(heard: &Heard, what: &str) {
    heard.event(
        what,
        |e| matches!(e, ClusterLogEvent::State(ClusterLogState::Unsuitable(w)) if w.iter().any(|w| w.contains(what))),
    );
}

/// A log that was trimmed goes on from its checkpoint: for who knows it up to some address, and for a stranger.
#[test]
fn trimmed_and_taken_over() {
    let Some((servers, heard)) = one("trim", "", "") else { return };
    let log = start(options(servers.access(), STREAMS, heard.notify()));
    for partition in [0, 1, 2] {
        log.fence(Fence { partition, epoch: 1, ..Fence::default() });
        heard.fenced(partition);
    }
    write(&log, &heard, 0, 0, 5);
    write(&log, &heard, 2, 0, 3);
    let at = write(&log, &heard, 0, 5, 5);
    log.trim(0, at[6]); // waits until an append names the checkpoint
    log.checkpoint(0, at[6]);
    assert!(!heard.all().iter().any(|e| matches!(e, ClusterLogEvent::Trimmed { .. })));
    write(&log, &heard, 0, 10, 2);
    heard.event("trimmed", |e| *e == ClusterLogEvent::Trimmed { partition: 0, before: at[6] });
    let (heir_heard, stranger) = (Heard::new(), Heard::new());
    let heir = start(options(servers.access(), STREAMS, heir_heard.notify()));
    let other = start(options(servers.access(), STREAMS, stranger.notify()));
    other.read(0, Anchor::default());
    stranger.event("end", |e| matches!(e, ClusterLogEvent::ReadEnd { partition: 0, end } if end.next == 12));
    let found = stranger.all().into_iter().find_map(|e| match e {
        ClusterLogEvent::ReadEnd { end, .. } => Some(end),
        _ => None,
    });
    let known = found.unwrap();
    heir.fence(Fence { partition: 0, epoch: 2, known, at_least: known.at, served: 0 });
    assert_eq!(heir_heard.fenced(0), 12);
    assert_eq!(heir_heard.read(0), Vec::<u64>::new(), "it knew everything");
    log.append(batch(0, 12, 12, 12));
    heard.event("resigned", |e| *e == ClusterLogEvent::Resigned { partition: 0, epoch: 2 });
    // the append that holds message 6 may hold some before it, too: they were handed over together
    let first = at.iter().position(|a| *a == at[6]).unwrap() as u64;
    assert_eq!(stranger.read(0), (first..12).collect::<Vec<_>>());
    let stream = api(&servers, &format!("STREAM.INFO.{}", names(STREAMS).stream(0)), &json!({}));
    assert_eq!(stream["state"]["consumer_count"], 0, "nothing that NATS has few of");
}

/// What an idle owner wrote is not there any more: said, and nothing more is written. Nor does the next owner begin again.
#[test]
fn a_log_that_lost_its_end_stops() {
    let Some((servers, heard)) = one("lost", "", "") else { return };
    let log = start(options(servers.access(), STREAMS, heard.notify()));
    log.fence(Fence { partition: 1, epoch: 1, ..Fence::default() });
    heard.fenced(1);
    let at = write(&log, &heard, 1, 0, 3);
    let purge = format!("STREAM.PURGE.{}", names(STREAMS).stream(1));
    api(&servers, &purge, &json!({"filter": names(STREAMS).subject(1)}));
    assert!(damage(&heard, 1).contains("lost data"));
    let next_heard = Heard::new();
    let next = start(options(servers.access(), STREAMS, next_heard.notify()));
    next.fence(Fence { partition: 1, epoch: 2, known: Anchor::default(), at_least: at[2] + 1000, served: 0 });
    assert!(damage(&next_heard, 1).contains("reached to"));
}

/// A stream that is missing is not made again; a setting that loses is named.
#[test]
fn streams_are_made_once() {
    let Some((servers, heard)) = one("once", "", "") else { return };
    drop(start(options(servers.access(), STREAMS, heard.notify())));
    let log = start(options(servers.access(), STREAMS, heard.notify()));
    heard.ready();
    drop(log);
    api(&servers, &format!("STREAM.DELETE.{}", names(STREAMS).stream(1)), &json!({}));
    let mut later = options(servers.access(), STREAMS, Heard::new().notify());
    later.needs.create = false;
    let heard = Heard::new();
    later.notify = heard.notify();
    let log = start(later.clone());
    unsuitable(&heard, "is missing; a log is never begun again");
    drop(log);
    let wrong = json!({"name": names(STREAMS).stream(1), "subjects": [names(STREAMS).subjects(1)], "max_age": 1_000_000_000_u64,
        "discard": "old", "retention": "limits", "storage": "file", "num_replicas": 1});
    api(&servers, &format!("STREAM.CREATE.{}", names(STREAMS).stream(1)), &wrong);
    let heard = Heard::new();
    later.notify = heard.notify();
    let _log = start(later);
    unsuitable(&heard, "max_age");
    unsuitable(&heard, "discard");
    unsuitable(&heard, "max_bytes");
}

/// A full stream takes nothing, loses nothing, says so, and goes on when there is room.
#[test]
fn a_full_stream_is_said() {
    let Some((servers, heard)) = one("full", "", "") else { return };
    let mut small = options(servers.access(), 1, heard.notify());
    small.needs.max_bytes = 200_000;
    let log = start(small);
    log.fence(Fence { partition: 0, epoch: 1, ..Fence::default() });
    heard.fenced(0);
    let large = |n: u64| {
        let mut batch = batch(0, n, n, n);
        batch.records = vec![n as u8; 60_000];
        batch
    };
    (0..5).for_each(|n| log.append(large(n)));
    heard.event("full", |e| *e == ClusterLogEvent::Full { partition: 0, full: true });
    let name = names(1).stream(0);
    let mut config = api(&servers, &format!("STREAM.INFO.{name}"), &json!({}))["config"].clone();
    config["max_bytes"] = json!(2_000_000);
    api(&servers, &format!("STREAM.UPDATE.{name}"), &config);
    heard.event("room again", |e| *e == ClusterLogEvent::Full { partition: 0, full: false });
    heard.event("all safe", |e| matches!(e, ClusterLogEvent::Safe { number: 4, .. }));
    assert_eq!(heard.safe(0), (0..5).collect::<Vec<_>>());
}

/// `durable` needs servers that sync always: read by a user of the system account, or asserted, else refused.
#[test]
fn sync_is_read_or_asserted() {
    let accounts = "accounts { SYS { users: [{user: sys, password: s}] }\nA { jetstream: enabled, users: [{user: u, password: p}] } }\nsystem_account: SYS";
    for (sync, suits) in [("sync_interval: always", true), ("sync_interval: \"1s\"", false)] {
        let Some((servers, heard)) = one("sync", sync, accounts) else { return };
        let user = |user: &str, password: &str| Access {
            auth: Auth::Password(user.to_owned(), password.to_owned()),
            ..servers.access()
        };
        let mut options = options(user("u", "p"), STREAMS, heard.notify());
        options.needs.sync = SyncNeed::Always;
        let log = start(options.clone());
        unsuitable(&heard, "cannot be read");
        drop(log);
        let heard = Heard::new();
        options.notify = heard.notify();
        options.system = Some(user("sys", "s"));
        let _log = start(options);
        if suits { heard.ready() } else { unsuitable(&heard, "syncs every 1 s") }
    }
}

/// Credentials: a password, a token, an NKey; who has none of them is away.
#[test]
fn credentials() {
    let key = nkeys::KeyPair::new_user();
    let seed = key.seed().unwrap();
    let ways = [
        ("authorization { user: u, password: p }".to_owned(), Auth::Password("u".to_owned(), "p".to_owned())),
        ("authorization { token: t }".to_owned(), Auth::Token("t".to_owned())),
        (format!("authorization {{ users: [{{nkey: {}}}] }}", key.public_key()), Auth::NKey(seed)),
    ];
    for (more, auth) in ways {
        let Some((servers, heard)) = one("credentials", "", &more) else { return };
        let _log = start(options(Access { auth, ..servers.access() }, 1, heard.notify()));
        heard.ready();
        let stranger = Heard::new();
        let _other = start(options(servers.access(), 1, stranger.notify()));
        stranger.event("away", |e| matches!(e, ClusterLogEvent::State(ClusterLogState::Away(_))));
    }
}

/// A right that is missing is named.
#[test]
fn a_missing_right_is_named() {
    let rights =
        "authorization { users: [{user: u, password: p, permissions: { publish: { deny: [\"$JS.API.INFO\"] } }}] }";
    let Some((servers, heard)) = one("rights", "", rights) else { return };
    let auth = Auth::Password("u".to_owned(), "p".to_owned());
    let _log = start(options(Access { auth, ..servers.access() }, 1, heard.notify()));
    heard.event(
        "the right",
        |e| matches!(e, ClusterLogEvent::State(ClusterLogState::Away(why)) if why.contains("$JS.API.INFO")),
    );
}

/// TLS with certificates of both sides.
#[test]
fn tls_of_both_sides() {
    let dir = std::env::temp_dir().join(format!("roost-nats-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(vec![]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let file = |name: &str| dir.join(name);
    std::fs::write(file("ca.pem"), certificate.pem()).unwrap();
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        std::fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let show = |name: &str| file(name).display().to_string();
    let more = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
        show("server.pem"),
        show("server.key"),
        show("ca.pem")
    );
    let Some((servers, heard)) = one("tls", "", &more) else { return };
    let tls = Tls { authority: Some(file("ca.pem")), identity: Some((file("client.pem"), file("client.key"))) };
    let _log = start(options(Access { tls: Some(tls), ..servers.access() }, 1, heard.notify()));
    heard.ready();
    let _ = std::fs::remove_dir_all(&dir);
}
