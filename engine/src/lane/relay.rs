//! A connection here, its session elsewhere: what they say to each other.
//!
//! In one lane a connection steps the partition of its session, and effects come back at once. Elsewhere the same inputs and
//! effects travel, owned, in the order in which they were said, through the mailboxes of lanes (nodes will use links). The
//! client never knows. Invariant: a lane carries out what concerns a partition only if it owns it.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::subscribe::Wish;
use super::{Flow, Lane, LaneMessage};
use crate::access::Rules;
use crate::channel::{ConnectionId, SessionRef, Token};
use crate::codec::{AckKind, Packet, Reason, Suback};
use crate::connection::{Away, Stage};
use crate::message::{Inbound, Message, Origin, Stored};
use crate::partition::{Body, Deliver, Ending, Input};
use crate::session::Attach;

/// From a connection to its session.
#[expect(missing_docs, reason = "as `partition::Input`, but owned")]
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSession {
    Attach(Box<Attach>),
    Opened { session: SessionRef },
    Detach { session: Option<SessionRef>, client_id: Box<str>, connection: ConnectionId, ending: Ending },
    Hold { session: SessionRef, id: u16, token: Token },
    Release { session: SessionRef, connection: ConnectionId, id: u16, answer: bool },
    Ack { session: SessionRef, connection: ConnectionId, kind: AckKind, id: u16, reason: Reason },
    TooLarge { session: SessionRef, id: u16 },
    Congested { session: SessionRef, congested: bool },
    Wish(Box<Wish<'static>>),
    Rights { session: SessionRef, rules: Rules },
}

/// From a session to its connection.
#[expect(missing_docs, reason = "the fields are named after what they hold")]
#[derive(Debug, Serialize, Deserialize)]
pub enum ToConnection {
    /// The session is there; identifiers that it holds, and its Session Expiry Interval.
    Attached {
        session: SessionRef,
        present: bool,
        held: Vec<u16>,
        expiry_s: u32,
    },
    Close {
        reason: Reason,
    },
    /// There is no session for it now.
    Refused {
        reason: Reason,
    },
    /// An operator ends the connection.
    Kick {
        reason: Reason,
        silent: bool,
        drop_will: bool,
    },
    Deliver(Deliver),
    /// PUBREL or PUBCOMP.
    Ack {
        kind: AckKind,
        id: u16,
        reason: Reason,
    },
    /// The identifier of the publish with this number is held.
    Held {
        number: u64,
        origin: Origin,
    },
    /// SUBACK, or UNSUBACK if `gone`.
    Answered {
        id: u16,
        codes: SmallVec<[u8; 4]>,
        gone: bool,
    },
}

impl Lane {
    /// Is the partition in this lane?
    pub(super) fn owns(&self, partition: u16) -> bool {
        self.partitions.get(usize::from(partition)).is_some_and(Option::is_some)
    }

    /// A connection's word to its session, wherever that is.
    pub(super) fn tell_session(&mut self, partition: u16, input: Input<'_>) {
        let halted = self.is_halted(partition);
        let input = match input {
            // nobody serves it at this moment
            Input::Attach(attach) if !halted && !self.serves(partition) && self.is_far(partition) => {
                return self.park(partition, attach);
            }
            input => input,
        };
        if self.owns(partition) && !halted {
            return self.step(partition, input, None);
        }
        let what = match input {
            Input::Attach(attach) => ToSession::Attach(attach),
            Input::Opened { session } => ToSession::Opened { session },
            Input::Detach { session, client_id, connection, ending } => {
                ToSession::Detach { session, client_id: client_id.into(), connection, ending }
            }
            Input::Hold { session, id, token } => ToSession::Hold { session, id, token },
            Input::Release { session, connection, id, answer } => {
                ToSession::Release { session, connection, id, answer }
            }
            Input::Ack { session, connection, kind, id, reason } => {
                ToSession::Ack { session, connection, kind, id, reason }
            }
            Input::TooLarge { session, id } => ToSession::TooLarge { session, id },
            Input::Congested { session, congested } => ToSession::Congested { session, congested },
            _ => return, // said by sessions and lanes only
        };
        self.send_to_session(partition, what);
    }

    /// Its home cannot be talked to, or is this lane, which has not taken it yet.
    fn is_far(&self, partition: u16) -> bool {
        let home = self.shared.ring.home(partition);
        home == self.number || !self.reaches(home)
    }

    pub(super) fn send_to_session(&mut self, partition: u16, what: ToSession) {
        self.post_to(partition, LaneMessage::ToSession { partition, what });
    }

    /// The word of a connection that is elsewhere.
    pub(super) fn on_to_session(&mut self, partition: u16, what: ToSession) {
        let input = match &what {
            ToSession::Opened { session } => Input::Opened { session: *session },
            ToSession::Detach { session, client_id, connection, ending } => {
                Input::Detach { session: *session, client_id, connection: *connection, ending: *ending }
            }
            ToSession::Hold { session, id, token } => {
                // the answers of the partition go to the publisher's lane, not to a publish of this one
                self.flow = Flow::default();
                Input::Hold { session: *session, id: *id, token: *token }
            }
            ToSession::Release { session, connection, id, answer } => {
                Input::Release { session: *session, connection: *connection, id: *id, answer: *answer }
            }
            ToSession::Ack { session, connection, kind, id, reason } => {
                Input::Ack { session: *session, connection: *connection, kind: *kind, id: *id, reason: *reason }
            }
            ToSession::TooLarge { session, id } => Input::TooLarge { session: *session, id: *id },
            ToSession::Congested { session, congested } => {
                Input::Congested { session: *session, congested: *congested }
            }
            ToSession::Attach(_) | ToSession::Wish(_) | ToSession::Rights { .. } => return self.on_rare(what),
        };
        let detached = match what {
            ToSession::Detach { connection, .. } => {
                self.unpark(connection);
                true
            }
            _ => false,
        };
        self.step(partition, input, None);
        if detached {
            self.note_partition_timers();
        }
    }

    fn on_rare(&mut self, what: ToSession) {
        match what {
            ToSession::Attach(attach) => {
                let partition = self.shared.ring.partition(&attach.client_id);
                if !self.serves(partition) {
                    return self.park(partition, attach);
                }
                self.step(partition, Input::Attach(attach), None);
            }
            // it has gone meanwhile: whoever asks learns that by the table, and its connection is closed
            ToSession::Wish(mut wish) => {
                wish.session.partition = self.heir_of(wish.session);
                if self.owns(wish.session.partition) {
                    self.grant(*wish);
                }
            }
            ToSession::Rights { session, rules } => {
                self.set_rights(SessionRef { partition: self.heir_of(session), ..session }, rules);
            }
            _ => {}
        }
    }

    pub(super) fn set_rights(&mut self, session: SessionRef, rules: Rules) {
        if !self.owns(session.partition) || self.is_halted(session.partition) {
            return self.send_to_session(session.partition, ToSession::Rights { session, rules });
        }
        if let Some(partition) = self.partition(session.partition) {
            partition.set_rights(session, rules);
        }
    }

    /// A session's word to a connection that is elsewhere. Deliveries of the message being routed carry it along.
    pub(super) fn tell_connection(&mut self, connection: ConnectionId, what: ToConnection) {
        self.send(connection.lane, LaneMessage::ToConnection { connection, what });
    }

    pub(super) fn deliver_elsewhere(&mut self, deliver: Deliver, current: Option<&Inbound<'_>>) {
        let body = match (deliver.body, current) {
            (Body::Current, Some(current)) => Body::Stored(current.store()),
            (body, _) => body,
        };
        self.tell_connection(deliver.connection, ToConnection::Deliver(Deliver { body, ..deliver }));
    }

    /// The word of a session that is elsewhere.
    pub(super) fn on_to_connection(&mut self, connection: ConnectionId, what: ToConnection) {
        match what {
            ToConnection::Deliver(deliver) => self.deliver(&deliver, None),
            ToConnection::Ack { kind, id, reason } => self.ack_to(connection, kind, id, reason),
            ToConnection::Held { number, origin } => self.on_held_late(Token { connection, number, ask: 0 }, origin),
            ToConnection::Answered { id, codes, gone } => drop(self.answer_wish(connection, id, codes, gone)),
            ToConnection::Close { reason } => self.close_for_session(connection, reason),
            ToConnection::Refused { reason } => self.on_refused(connection, reason),
            ToConnection::Kick { reason, silent, drop_will } => {
                if self.connection(connection).is_some_and(|c| c.stage == Stage::Open) {
                    self.kick(connection.key as usize, reason, silent, drop_will);
                }
            }
            ToConnection::Attached { session, present, held, expiry_s } => {
                let away = Away { held: held.into_iter().collect(), expiry_s };
                self.on_attached(connection, session, present, Some(away));
            }
        }
    }

    /// It may have found its session elsewhere meanwhile.
    pub(super) fn on_refused(&mut self, connection: ConnectionId, reason: Reason) {
        if self.connection(connection).is_some_and(|c| c.stage == Stage::Attaching) {
            self.refuse_connect(connection.key as usize, reason);
        }
    }

    /// The session is there: its connection learns what it cannot look up.
    pub(super) fn attached_elsewhere(&mut self, connection: ConnectionId, session: SessionRef, present: bool) {
        let found = self.partition(session.partition).and_then(|p| p.session(session));
        let held = found
            .and_then(|s| s.held.as_ref())
            .map(|h| h.ids().iter().map(|(id, _)| *id).collect())
            .unwrap_or_default();
        let expiry_s = found.map_or(0, |s| s.expiry_s);
        self.tell_connection(connection, ToConnection::Attached { session, present, held, expiry_s });
    }

    /// A QoS 2 publish whose session is elsewhere: it fans out when its identifier is held there.
    pub(super) fn hold_elsewhere(&mut self, key: usize, id: u16, token: Token, message: &Message<'_>) {
        let Some(c) = self.connections.get_mut(key) else { return };
        let session = c.session;
        let away = c.rare.get_or_insert_default().away.get_or_insert_default();
        c.receiving = c.receiving.saturating_add(u16::from(away.held.insert(id)));
        self.hold_until_safe(token, message);
        self.send_to_session(session.partition, ToSession::Hold { session, id, token });
    }

    /// The message fans out when its identifier is surely held.
    pub(super) fn hold_until_safe(&mut self, token: Token, message: &Message<'_>) {
        self.holding.insert((token.connection, token.number), Stored::new(message));
    }

    pub(super) fn on_held_late(&mut self, token: Token, origin: Origin) {
        let Some(stored) = self.holding.remove(&(token.connection, token.number)) else { return };
        if self.connection(token.connection).is_none() {
            return;
        }
        let mut message = stored.view();
        message.head.origin = origin;
        self.flow = Flow { token: Some(token), ..Flow::default() };
        self.route(&Inbound::new(message));
        self.routed_qos2(token, 0);
    }

    /// SUBACK or UNSUBACK; what the client sent after it is read on. False if the connection is not there any more.
    pub(super) fn answer_wish(
        &mut self,
        connection: ConnectionId,
        id: u16,
        codes: SmallVec<[u8; 4]>,
        gone: bool,
    ) -> bool {
        let Some(c) = self.connection(connection).filter(|c| c.stage == Stage::Open) else { return false };
        let answer = Box::new(Suback { id, codes, ..Suback::default() });
        c.send(&if gone { Packet::Unsuback(answer) } else { Packet::Suback(answer) });
        let went_on = std::mem::take(&mut c.subscribing);
        self.mark_dirty(connection.key as usize);
        if went_on {
            self.mark_ready(connection.key as usize);
        }
        true
    }
}
