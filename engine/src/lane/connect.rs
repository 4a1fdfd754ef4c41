//! From CONNECT to CONNACK: checks, credentials, the way to the session's lane, the session (section 3.1).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Lane, LaneMessage, Timer};
use crate::access::{Grant, Login, Refusal, Verdict};
use crate::channel::{ConnectionId, SessionRef};
use crate::codec::{self, AckKind, Connack, Connect, Frame, Malformed, Packet, Properties, Reason, Version};
use crate::connection::{Away, Connection, Rare, Stage};
use crate::limits::PACKET_BYTES_PROTOCOL;
use crate::partition::Input;
use crate::ring::siphash;
use crate::session::{Attach, NEVER, Will};
use crate::settings::{CertificateIdentity, ClientCertificates};
use crate::stats::{Counter, Gauge};

impl Lane {
    /// A first packet that is anything but CONNECT closes without an answer [MQTT-3.1.0-1]; its first byte says so.
    pub(super) fn not_connect(&mut self, key: usize) {
        self.stats.add(Counter::malformed, 1);
        self.lost(key, "first packet is not CONNECT");
    }

    /// The CONNECT of a connection.
    pub(super) fn on_first_packet(&mut self, key: usize, bytes: &[u8], frame: Frame) {
        let version = announced_version(bytes, frame);
        let Some(c) = self.connections.get_mut(key) else { return };
        c.version = version;
        match codec::decode(bytes, frame, version) {
            Ok(Packet::Connect(connect)) => self.on_connect(key, &connect, bytes),
            Ok(_) => self.not_connect(key),
            Err(Malformed { reason, what }) => {
                self.stats.add(Counter::malformed, 1);
                if version.is_v5() || reason == Reason::UNSUPPORTED_VERSION {
                    self.refuse_connect(key, reason);
                } else {
                    self.lost(key, what);
                }
            }
        }
    }

    fn on_connect(&mut self, key: usize, connect: &Connect<'_>, bytes: &[u8]) {
        if let Err(reason) = self.check_connect(key, connect) {
            return self.refuse_connect(key, reason);
        }
        let settings = &self.config.settings;
        let assigned = connect.client_id.is_empty();
        let Some(c) = self.connections.get_mut(key) else { return };
        let mount_point = settings.listeners.get(usize::from(c.listener)).map_or("", |l| &l.mount_point);
        c.client_id = if assigned {
            format!("{}{}", settings.mqtt.assigned_id_prefix, crate::port::random_uuid()).into()
        } else {
            connect.client_id.into()
        };
        c.version = connect.version;
        let rare = Rare { connect: bytes.to_vec(), assigned, mount_point: mount_point.into(), ..Rare::default() };
        c.rare = Some(Box::new(rare));
        let listener = settings.listeners.get(usize::from(c.listener));
        let access = listener.and_then(|l| self.config.access.get(l.access)).cloned();
        let identity = c.transport.identity();
        let named = listener.and_then(|l| l.tls.as_ref()).is_some_and(|t| {
            t.identity != CertificateIdentity::None && t.client_certificates != ClientCertificates::Optional
        });
        if named && identity.is_none() {
            return self.refuse_connect(key, Reason::BAD_CREDENTIALS);
        }
        let login = Login {
            client_id: &c.client_id,
            username: connect.username,
            password: connect.password,
            certificate_identity: identity.as_deref(),
        };
        let fault = self.faults.iter_mut().find(|f| f.hits_connect(&login));
        if let Some(reason) = fault.map(|f| f.take()) {
            return self.refuse_connect(key, reason);
        }
        match access.map(|a| a.begin(&login)) {
            Some(Verdict::Grant(grant)) => self.granted(key, grant),
            Some(Verdict::Refuse(refusal)) => self.denied(key, &refusal),
            Some(Verdict::Work(job)) => self.check_off_lane(key, job),
            None => self.refuse_connect(key, Reason::SERVER_UNAVAILABLE),
        }
    }

    fn check_connect(&mut self, key: usize, p: &Connect<'_>) -> Result<(), Reason> {
        if self.stopping_at_ms.is_some() || self.is_lonely() {
            return Err(Reason::SERVER_UNAVAILABLE);
        }
        let (config, shared) = (&self.config, &self.shared);
        let listener = self.connections.get(key).map_or(0, |c| c.listener);
        if p.properties.auth_method.is_some() {
            return Err(Reason::BAD_AUTH_METHOD);
        }
        if p.client_id.is_empty() {
            if p.version.is_v5() && !config.settings.mqtt.allow_empty_client_id {
                return Err(Reason::UNSPECIFIED); // as mosquitto answers
            }
            let may = config.settings.mqtt.allow_empty_client_id && p.version >= Version::V311;
            if !may || (!p.version.is_v5() && !p.clean) {
                return Err(Reason::CLIENT_ID_INVALID);
            }
        }
        let keep_alive_max = config.limits.keep_alive_max_s;
        let too_long = p.keep_alive_s > keep_alive_max;
        if keep_alive_max > 0 && too_long && !p.version.is_v5() {
            return Err(Reason::CLIENT_ID_INVALID); // 3.1.1 cannot be told a shorter one
        }
        if let Some(will) = &p.will {
            if will.qos as u8 > config.qos_max(listener) {
                return Err(Reason::QOS_NOT_SUPPORTED);
            }
            if will.retain && !config.settings.mqtt.retain_available {
                return Err(Reason::RETAIN_NOT_SUPPORTED);
            }
            let payload_max = config.limits.payload_bytes_max;
            if payload_max > 0 && will.payload.len() > payload_max {
                return Err(Reason::PACKET_TOO_LARGE);
            }
            let topic_max = &config.limits;
            let levels = crate::topic::levels(will.topic);
            if levels > topic_max.topic_levels_max || will.topic.len() > topic_max.topic_bytes_max {
                return Err(Reason::TOPIC_INVALID);
            }
        }
        let full = shared.connections.load(Ordering::Relaxed) >= config.limits.connections_max;
        if full || shared.listener_full(usize::from(listener), config) {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        Ok(())
    }

    /// Passwords are hashed elsewhere; a full queue refuses rather than waits.
    fn check_off_lane(&mut self, key: usize, job: crate::access::Job) {
        let connection = self.id_of(key);
        let shared = Arc::clone(&self.shared);
        let answer = Box::new(move |result| {
            shared.post(
                connection.lane,
                connection.lane,
                LaneMessage::Checked { connection, result: Box::new(result) },
            );
        });
        if self.shared.workers.submit(job, answer).is_err() {
            return self.refuse_connect(key, Reason::SERVER_BUSY);
        }
        if let Some(c) = self.connections.get_mut(key) {
            c.stage = Stage::Checking;
        }
    }

    pub(super) fn on_checked(&mut self, connection: ConnectionId, result: Result<Grant, Refusal>) {
        let Some(c) = self.connection(connection) else { return };
        if c.stage != Stage::Checking {
            return;
        }
        match result {
            Ok(grant) => self.granted(connection.key as usize, grant),
            Err(refusal) => self.denied(connection.key as usize, &refusal),
        }
    }

    /// Refused by its credentials; an address that fails again and again waits for the answer.
    fn denied(&mut self, key: usize, refusal: &Refusal) {
        self.stats.add(Counter::auth_failures, 1);
        let reason = Reason(refusal.reason_code());
        let ip = self.connections.get(key).and_then(|c| c.transport.address().ip());
        let delay_ms = ip.map_or(0, |ip| self.shared.login_failed(ip, self.now_ms));
        let Some(c) = self.connections.get_mut(key) else { return };
        if delay_ms == 0 {
            return self.refuse_connect(key, reason);
        }
        c.stage = Stage::Delayed;
        c.rare.get_or_insert_default().refusal = Some(reason);
        let (key, generation) = (u32::try_from(key).unwrap_or(u32::MAX), c.generation);
        self.timers.set(self.now_ms + delay_ms, Timer::Connection { key, generation });
    }

    /// CONNACK with a refusal, then close.
    pub(super) fn refuse_connect(&mut self, key: usize, reason: Reason) {
        self.stats.add(Counter::connects_refused, 1);
        let Some(c) = self.connections.get_mut(key) else { return };
        let code = if c.version.is_v5() { reason.0 } else { reason.connack_v3() };
        c.send(&Packet::Connack(Box::new(Connack { present: false, code, properties: Properties::default() })));
        if !self.config.settings.quiet_connections {
            self.shared.events.refused(&c.client_id, &c.transport.address().to_string(), reason);
        }
        self.end(key, reason.name(), Some(reason), "broker");
    }

    /// Allowed in: on to the lane of the session.
    fn granted(&mut self, key: usize, grant: Grant) {
        let Some(c) = self.connections.get_mut(key) else { return };
        c.rules = grant.rules;
        c.username = grant.username;
        let rare = c.rare.get_or_insert_default();
        rare.expires_at_s = grant.expires_at_s;
        c.stage = Stage::Attaching;
        self.shared.count_connection(c.listener, true);
        let partition = self.shared.ring.partition(&c.client_id);
        let lane = self.shared.ring.home(partition);
        // a socket cannot go to another node: there its connection stays, apart from the session
        if lane == self.number || self.config.settings.apart || self.shared.ring.here(lane).is_none() {
            return self.ask_for_session(key);
        }
        let Some(mut connection) = self.connections.try_remove(key) else { return };
        self.stats.shift(Gauge::handshakes, -1);
        let _ = connection.transport.deregister(self.poll.registry());
        self.send(lane, LaneMessage::Connection(connection));
    }

    /// A connection comes from the lane that accepted it, with the bytes that were read already.
    pub(super) fn on_handed_over(&mut self, mut connection: Box<Connection>) {
        self.generation = self.generation.wrapping_add(1);
        connection.generation = self.generation;
        self.stats.shift(Gauge::handshakes, 1);
        if let Some(key) = self.install(connection) {
            self.ask_for_session(key);
        }
    }

    pub(super) fn ask_for_session(&mut self, key: usize) {
        let connection = self.id_of(key);
        let maker = self.name_of(connection);
        let Some(c) = self.connections.get_mut(key) else { return };
        let bytes = std::mem::take(&mut c.rare.get_or_insert_default().connect);
        let (client_id, rules) = (c.client_id.clone(), c.rules.clone());
        let limits = &self.config.limits;
        let bounded = limits.queue_user_messages_max > 0 || limits.queue_user_bytes_max > 0;
        let username = c.username.clone().filter(|_| bounded);
        let mount_point = c.rare.as_ref().map_or("", |r| &*r.mount_point);
        let Some(connect) = read_connect(&bytes, c.version) else {
            return self.lost(key, "CONNECT unreadable");
        };
        let attach = Attach {
            connection,
            client_id: (*client_id).into(),
            clean: connect.clean,
            expiry_s: self.config.expiry_s(&connect),
            receive_maximum: connect.properties.receive_maximum.unwrap_or(u16::MAX),
            will: connect.will.as_ref().map(|w| owned_will(w, &connect, mount_point)),
            rules,
            username,
            maker,
        };
        let partition = self.shared.ring.partition(&client_id);
        c.rare.get_or_insert_default().connect = bytes;
        self.tell_session(partition, Input::Attach(Box::new(attach)));
    }

    /// A name for the CONNECT of this connection that no other one in the cluster has, not even one of another start.
    fn name_of(&self, connection: ConnectionId) -> u64 {
        if self.fleet.is_none() {
            return 0;
        }
        let ConnectionId { lane, key, generation } = connection;
        siphash((self.shared.start, u64::from(lane)), &[key.to_le_bytes(), generation.to_le_bytes()].concat())
    }

    /// The session is there: the connection opens. `away` if it is elsewhere.
    pub(super) fn on_attached(
        &mut self,
        connection: ConnectionId,
        session: SessionRef,
        present: bool,
        away: Option<Away>,
    ) {
        let Some(c) = self.connection(connection).filter(|c| c.stage == Stage::Attaching) else {
            // it was closed while its session was being asked for
            return;
        };
        c.stage = Stage::Open;
        c.session = session;
        let rare = c.rare.get_or_insert_default();
        rare.away = away;
        let bytes = std::mem::take(&mut rare.connect);
        let version = c.version;
        let key = connection.key as usize;
        if let Some(connect) = read_connect(&bytes, version) {
            self.open(key, &connect, present);
        }
        self.mark_ready(key);
        self.mark_dirty(key);
        self.todo.push_back(super::Todo::Opened { session });
    }

    fn open(&mut self, key: usize, connect: &Connect<'_>, present: bool) {
        let (now_ms, config) = (self.now_ms, Arc::clone(&self.config));
        self.stats.shift(Gauge::handshakes, -1);
        self.stats.shift(Gauge::connections, 1);
        self.stats.add(Counter::connects, 1);
        let Some(c) = self.connections.get_mut(key) else { return };
        let v5 = c.version.is_v5();
        let max = config.limits.keep_alive_max_s;
        let asked = connect.keep_alive_s;
        let cut = max > 0 && (asked == 0 || asked > max);
        let keep_alive_s = if cut { max } else { asked };
        c.heard_ms = now_ms;
        c.silence_max_ms = u32::from(keep_alive_s) * 1500;
        c.packet_out_max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        c.wants_problems = connect.properties.request_problem.unwrap_or(true);
        let aliases = connect.properties.topic_alias_maximum.unwrap_or(0);
        c.allow_aliases(aliases.min(config.settings.mqtt.outbound_alias_max));
        let listener = c.listener;
        let rare = c.rare.get_or_insert_default();
        let assigned = rare.assigned;
        let timed = rare.expires_at_s.is_some();
        let keep_rare = timed || !rare.mount_point.is_empty() || rare.away.is_some();
        let (id, username) = (c.client_id.clone(), c.username.clone());
        let information = connect.properties.request_response == Some(true);
        let information = information.then(|| config.settings.mqtt.response_information.replace("%c", &id));
        let mut properties = Properties::default();
        if v5 {
            config.fill_connack(&mut properties, listener, connect);
            properties.assigned_client_id = assigned.then_some(&*id);
            properties.server_keep_alive_s = cut.then_some(keep_alive_s);
            properties.response_information = information.as_deref().filter(|i| !i.is_empty());
        }
        let present = present && c.version != Version::V31; // 3.1 has no such flag
        c.send(&Packet::Connack(Box::new(Connack { present, code: 0, properties })));
        let too_small = c.out.len() > c.packet_out_max as usize;
        if !keep_rare {
            c.rare = None;
        }
        let address = (!config.settings.quiet_connections).then(|| c.transport.address().to_string());
        if too_small {
            if let Some(c) = self.connections.get_mut(key) {
                c.out.clear();
            }
            return self.lost(key, "the client cannot take a CONNACK");
        }
        if c.silence_max_ms > 0 || timed {
            let generation = c.generation;
            let wait_ms = if timed { 100 } else { u64::from(c.silence_max_ms) };
            let key = u32::try_from(key).unwrap_or(u32::MAX);
            self.timers.set(now_ms + wait_ms, Timer::Connection { key, generation });
        }
        if let Some(hold_ms) = self.faults.iter().find_map(|f| f.delays(&id)) {
            self.hold_output(key, hold_ms);
        }
        if let Some(address) = address {
            self.shared.events.connected(&id, &address, connect, username.as_deref(), present, keep_alive_s, listener);
        }
    }

    /// Output of this connection waits, for tests of slow networks.
    pub(super) fn hold_output(&mut self, key: usize, hold_ms: u64) {
        let at_ms = self.now_ms + hold_ms;
        let Some(c) = self.connections.get_mut(key) else { return };
        c.rare.get_or_insert_default().hold_ms = at_ms;
        let (key, generation) = (u32::try_from(key).unwrap_or(u32::MAX), c.generation);
        self.timers.set(at_ms, Timer::Connection { key, generation });
    }

    /// PUBREL and friends are small; this one is here because it needs the connection only.
    pub(super) fn acknowledge(&mut self, key: usize, kind: AckKind, id: u16, reason: Reason) {
        if let Some(c) = self.connections.get_mut(key) {
            c.send_ack(kind, id, reason);
        }
        self.mark_dirty(key);
    }
}

/// The version that a CONNECT names, even if the rest of it cannot be read.
fn announced_version(bytes: &[u8], frame: Frame) -> Version {
    let body = bytes.get(frame.head..frame.total).unwrap_or(&[]);
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Version::V5,
        _ => Version::V311,
    }
}

fn read_connect(bytes: &[u8], version: Version) -> Option<Box<Connect<'_>>> {
    let frame = codec::frame(bytes, u32::MAX).ok()??;
    match codec::decode(bytes, frame, version).ok()? {
        Packet::Connect(connect) => Some(connect),
        _ => None,
    }
}

fn owned_will(w: &codec::Will<'_>, connect: &Connect<'_>, mount_point: &str) -> Box<Will> {
    Box::new(Will {
        topic: format!("{mount_point}{}", w.topic).into(),
        payload: w.payload.into(),
        props: (*w.properties.forward).into(),
        qos: w.qos,
        retain: w.retain,
        expiry_s: w.properties.expiry_s,
        delay_s: w.delay_s,
        outlives: connect.properties.session_expiry_s.is_none(),
    })
}

impl crate::port::Config {
    /// Session Expiry Interval of a CONNECT: in 3.1.1 a session without Clean Session is kept [MQTT 5.0, 3.1.2.4].
    fn expiry_s(&self, connect: &Connect<'_>) -> u32 {
        let asked = match (connect.version.is_v5(), connect.clean) {
            (true, _) => connect.properties.session_expiry_s.unwrap_or(0),
            (false, true) => 0,
            (false, false) => match self.settings.mqtt.persistent_client_expiration_s {
                0 => NEVER,
                s => u32::try_from(s).unwrap_or(NEVER),
            },
        };
        asked.min(self.limits.session_expiry_max_s)
    }

    fn fill_connack(&self, p: &mut Properties<'_>, listener: u16, connect: &Connect<'_>) {
        let qos_max = self.qos_max(listener);
        p.maximum_qos = (qos_max < 2).then_some(qos_max);
        p.retain_available = (!self.settings.mqtt.retain_available).then_some(false);
        p.receive_maximum = Some(self.limits.receive_maximum);
        let bound = self.limits.packet_bytes_max;
        p.maximum_packet_size = (bound < PACKET_BYTES_PROTOCOL).then_some(bound); // absent: the protocol's own
        let aliases = self.topic_alias_max(listener);
        p.topic_alias_maximum = (aliases > 0).then_some(aliases);
        let asked = connect.properties.session_expiry_s.unwrap_or(0);
        let got = self.expiry_s(connect);
        p.session_expiry_s = (got != asked).then_some(got);
    }
}
