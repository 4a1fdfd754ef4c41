//! Writes everything that a broker must keep to one file (`docs/formats/export.md`).

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::clock::unix_ms;
use super::data::{Bodies, Kept, damaged, identity, place};
use super::data_format::{
    Bytes, EndLine, GivenLine, GroupLine, Header, HeldLine, Line, MessageLine, Num, OfLine, OriginLine, PlaceLine,
    RetainedLine, SessionLine, StageText, SubscriptionLine, Uid, VERSION, WillLine,
};
use crate::codec::QoS;
use crate::limits::Limits;
use crate::log::Damage;
use crate::message::{Message, Origin};
use crate::queue::{Entry, Stage};
use crate::record::{Replay, WireMessage};
use crate::session::{NEVER, Session, Will};

/// A running broker may finish a checkpoint meanwhile, and segments go with it: then it is read again.
const ATTEMPTS: usize = 5;

/// Writes a data directory to a new file: JSON object with the numbers of `sessions`, `subscriptions`, `messages` and
/// `retained`, and with `damaged` (`where`, `what`) if something was left out. `locked` takes the directory meanwhile;
/// without it a running broker's own directory is read.
///
/// # Errors
/// As [`super::inspect`]; the file is there already or cannot be written.
pub fn export(dir: &str, file: &str, locked: bool) -> Result<String, String> {
    let (dir, file) = (Path::new(dir), Path::new(file));
    if file.symlink_metadata().is_ok() {
        return Err(is_there(file));
    }
    let mut attempt = 1;
    loop {
        let again = !locked && attempt < ATTEMPTS;
        attempt += 1;
        let kept = match Kept::open(dir, locked) {
            Err(_) if again => continue,
            kept => kept?,
        };
        let before = kept.identity.checkpoint;
        let fail = |e: io::Error| format!("{}: cannot be written: {e}", file.display());
        let temporary = Temporary::new(file).map_err(fail)?;
        let (end, damage) = temporary.write(kept).map_err(fail)?;
        if !locked && identity(dir)?.checkpoint != before {
            if again {
                continue;
            }
            return Err(format!("{}: the log was cleared while it was read; try again", dir.display()));
        }
        temporary.publish(file)?;
        let mut told = json!({
            "sessions": end.sessions, "subscriptions": end.subscriptions, "messages": end.messages,
            "retained": end.retained,
        });
        if let Some(told) = told.as_object_mut().filter(|_| !damage.is_empty()) {
            told.insert("damaged".to_owned(), damaged(&damage).into());
        }
        return Ok(told.to_string());
    }
}

fn is_there(file: &Path) -> String {
    format!("{}: is there already; an export does not replace a file: name another", file.display())
}

/// A file beside the one that is wanted; it goes if it does not get its name.
struct Temporary {
    path: PathBuf,
    file: fs::File,
}

impl Temporary {
    fn new(beside: &Path) -> io::Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(beside.file_name().ok_or_else(|| io::Error::other("that is not the name of a file"))?);
        name.push(format!(".{}.new", super::random_name()));
        let path = beside.with_file_name(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    fn write(&self, kept: Kept) -> io::Result<(EndLine, Vec<Damage>)> {
        let mut out = BufWriter::with_capacity(1 << 20, &self.file);
        let found = Export::all(kept, &mut out)?;
        out.flush()?;
        self.file.sync_all()?;
        Ok(found)
    }

    /// Gives it its name, which nobody else may have got meanwhile.
    fn publish(self, file: &Path) -> Result<(), String> {
        let fail = |e: io::Error| format!("{}: cannot be written: {e}", file.display());
        match fs::hard_link(&self.path, file) {
            Ok(()) => {}
            Err(_) if file.symlink_metadata().is_ok() => return Err(is_there(file)),
            // not every file system has links
            Err(_) => fs::rename(&self.path, file).map_err(fail)?,
        }
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|f| f.sync_all()).map_err(fail)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Export<'a> {
    out: &'a mut dyn Write,
    now_ms: u64,
    /// Sessions and groups that have a line.
    named: HashSet<u64>,
    end: EndLine,
    damage: Vec<Damage>,
}

impl Export<'_> {
    fn all(mut kept: Kept, out: &mut dyn Write) -> io::Result<(EndLine, Vec<Damage>)> {
        let mut export = Export {
            out,
            now_ms: kept.scan.now_ms,
            named: HashSet::new(),
            end: EndLine::default(),
            damage: std::mem::take(&mut kept.scan.damaged),
        };
        let header = Header {
            roostmq_export: VERSION,
            roostmq: env!("CARGO_PKG_VERSION").to_owned(),
            partitions: kept.identity.partitions,
            key: kept.identity.key.clone(),
            incarnation: kept.identity.incarnation,
            at_ms: Num(if kept.scan.unix_ms == 0 { unix_ms() } else { kept.scan.unix_ms }),
        };
        export.json(&header)?;
        kept.partitions.iter_mut().for_each(|(replay, _)| resume(replay));
        for (replay, _) in &kept.partitions {
            export.owners(replay)?;
        }
        let mut bodies = Bodies::new(&kept.disk);
        for ((replay, _), number) in kept.partitions.iter().zip(0u16..) {
            export.partition(number, replay, &mut bodies)?;
        }
        let end = EndLine { lines: export.end.lines + 1, ..export.end };
        export.line(&Line::End(end))?;
        Ok((end, export.damage))
    }

    fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        self.end.lines += 1;
        serde_json::to_writer(&mut *self.out, value)?;
        self.out.write_all(b"\n")
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        self.json(line)
    }

    fn left(&self, at_ms: u64) -> Option<Num> {
        (at_ms != 0).then(|| Num(at_ms.saturating_sub(self.now_ms)))
    }

    fn owners(&mut self, replay: &Replay) -> io::Result<()> {
        for (_, s) in replay.state.each().filter(|(_, s)| s.durable() || s.will.is_some()) {
            self.named.insert(s.uid);
            self.end.sessions += 1;
            let line = self.session(s);
            self.line(&Line::Session(Box::new(line)))?;
        }
        for g in replay.state.groups() {
            self.named.insert(g.uid);
            let (uid, name) = (Uid(g.uid), g.name.to_string());
            self.line(&Line::Group(GroupLine { uid, name, next_index: Num(g.next_index()), last_n: Num(g.last_n()) }))?;
        }
        Ok(())
    }

    fn session(&self, s: &Session) -> SessionLine {
        let waits = !s.away || s.will_at_ms != 0;
        let will = s.will.as_deref().filter(|_| waits).map(will_line);
        let ends_left_ms = match s.expiry_s {
            NEVER | 0 => self.left(s.ends_at_ms),
            _ if s.away && s.ends_at_ms != 0 => self.left(s.ends_at_ms),
            seconds => Some(Num(u64::from(seconds) * 1000)),
        };
        SessionLine {
            uid: Uid(s.uid),
            client_id: s.client_id.to_string(),
            expiry_s: s.expiry_s,
            ends_left_ms,
            next_index: Num(s.queue.next_index()),
            last_n: Num(s.held.as_ref().map_or(0, |h| h.last())),
            will_left_ms: self.left(s.will_at_ms).filter(|_| will.is_some()),
            will,
        }
    }

    fn partition(&mut self, number: u16, replay: &Replay, bodies: &mut Bodies<'_>) -> io::Result<()> {
        for (_, s) in replay.state.each() {
            if self.named.contains(&s.uid) {
                self.of_session(s, bodies)?;
            }
        }
        for g in replay.state.groups() {
            for (index, message, with) in g.unfinished() {
                let given = with.filter(|(_, to)| self.named.contains(&to.uid));
                // what was sent to a session that is gone goes to nobody else [MQTT-4.8.2-5]
                if with.is_some() && given.is_none() && message.head().qos == QoS::ExactlyOnce {
                    continue;
                }
                let mut line = self.message(&message.view(), Origin::default());
                (line.uid, line.index) = (Uid(g.uid), Num(index));
                line.given = given.map(|(n, to)| GivenLine { uid: Uid(to.uid), n: Num(n) });
                self.put(line)?;
            }
        }
        for message in replay.state.retained.each() {
            let m = self.message(&message.view(), Origin::default());
            self.end.retained += 1;
            self.line(&Line::Retained(Box::new(retained(m))))?;
        }
        for (uid, window) in replay.state.origins() {
            let (floor, above) = window.parts();
            let mut taken: Vec<Num> = above.iter().map(|&n| Num(n)).collect();
            taken.sort_unstable();
            let (uid, floor) = (Uid(uid), Num(floor));
            self.line(&Line::Origin(OriginLine { partition: number, uid, floor, taken }))?;
        }
        Ok(())
    }

    fn of_session(&mut self, s: &Session, bodies: &mut Bodies<'_>) -> io::Result<()> {
        let uid = Uid(s.uid);
        for (filter, sub) in s.subscriptions.iter().filter(|_| s.durable()) {
            self.end.subscriptions += 1;
            self.line(&Line::Subscription(SubscriptionLine {
                uid,
                filter: filter.to_string(),
                qos: sub.qos as u8,
                no_local: sub.no_local,
                retain_as_published: sub.retain_as_published,
                identifier: sub.id,
            }))?;
        }
        for &(packet_identifier, n) in s.held.iter().flat_map(|h| h.ids()) {
            self.line(&Line::Held(HeldLine { uid, packet_identifier, n: Num(n) }))?;
        }
        for (index, e) in s.queue.iter().filter(|(_, e)| s.durable() && e.stage != Stage::Done) {
            let show = |m: WireMessage<'_>| self.message(&m.message, m.origin);
            let line = match e.needs_body() {
                true => bodies.read(e.at, e.len, show),
                false => Ok(self.message(&nothing(), Origin::default())),
            };
            match line {
                Ok(line) => self.put(self.delivery(line, uid, index, e))?,
                Err(what) => {
                    let what = format!("message {index} of session {uid} of `{}` is left out: {what}", s.client_id);
                    self.damage.push(Damage { place: place(e.at), what });
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, line: MessageLine) -> io::Result<()> {
        self.end.messages += 1;
        self.line(&Line::Message(Box::new(line)))
    }

    fn delivery(&self, mut line: MessageLine, uid: Uid, index: u64, e: &Entry) -> MessageLine {
        (line.uid, line.index, line.qos, line.retain) = (uid, Num(index), e.qos as u8, e.retain);
        line.stage = match e.stage {
            Stage::Waiting => StageText::Waiting,
            Stage::Received | Stage::ReleaseAgain => StageText::Received,
            Stage::Sent | Stage::Again | Stage::Done => StageText::Sent,
        };
        line.identifiers = e.ids().to_vec();
        let group = e.group().filter(|g| self.named.contains(&g.uid));
        line.group = group.map(|g| PlaceLine { uid: Uid(g.uid), index: Num(g.index), n: Num(g.n) });
        line
    }

    /// A message without its place.
    fn message(&self, m: &Message<'_>, origin: Origin) -> MessageLine {
        let of = |o: Origin| OfLine { uid: Uid(o.uid), n: Num(o.n), answered: Num(o.answered) };
        MessageLine {
            uid: Uid(0),
            index: Num(0),
            stage: StageText::Waiting,
            qos: m.head.qos as u8,
            retain: m.head.retain,
            identifiers: Vec::new(),
            group: None,
            given: None,
            topic: m.topic.to_owned(),
            payload: Bytes(m.payload.to_vec()),
            properties: Bytes(m.props.to_vec()),
            published_qos: m.head.qos as u8,
            published_retain: m.head.retain,
            publisher: Uid::of(m.head.publisher),
            origin: (origin.n != 0).then(|| of(origin)),
            expiry_left_ms: self.left(m.head.deadline_ms),
        }
    }
}

fn nothing() -> Message<'static> {
    Message { head: crate::message::Head::default(), topic: "", props: &[], payload: &[] }
}

fn retained(m: MessageLine) -> RetainedLine {
    RetainedLine {
        topic: m.topic,
        payload: m.payload,
        properties: m.properties,
        published_qos: m.published_qos,
        published_retain: m.published_retain,
        publisher: m.publisher,
        origin: m.origin,
        expiry_left_ms: m.expiry_left_ms,
    }
}

fn will_line(w: &Will) -> WillLine {
    WillLine {
        topic: w.topic.to_string(),
        payload: Bytes(w.payload.to_vec()),
        properties: Bytes(w.props.to_vec()),
        qos: w.qos as u8,
        retain: w.retain,
        expiry_s: w.expiry_s,
        delay_s: w.delay_s,
        outlives: w.outlives,
    }
}

/// What a start would make of the queues: which messages may have been sent.
fn resume(replay: &mut Replay) {
    let window = u64::from(Limits::default().inflight_max);
    let sent: Vec<(u32, u64)> = replay.state.each().map(|(slot, _)| (slot, replay.sent(slot))).collect();
    for (slot, sent) in sent {
        let Some(s) = replay.state.session_mut(slot) else { continue };
        let (sent, all_given) = if s.away { (sent, false) } else { (s.queue.base() + window, true) };
        s.queue.resume(sent, all_given);
    }
}
