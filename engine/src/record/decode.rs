//! Bytes as fields. Reading never panics and never trusts a length.

use super::wire::make_uid;
use crate::codec::QoS;
use crate::inflight::Held;
use crate::message::{Head, Message, Origin};
use crate::queue::{Entry, Extra, GroupPlace, Queue, Stage};
use crate::session::{Session, Subscription, Will};

/// Bytes that are not what the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError(pub &'static str);

type Result<T> = std::result::Result<T, WireError>;

/// A cursor over the bytes of one record.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    #[must_use]
    pub const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(WireError("ends inside a field"))?;
        self.rest = tail;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    /// Nothing is left.
    pub fn u8(&mut self) -> Result<u8> {
        let (&b, tail) = self.rest.split_first().ok_or(WireError("ends before a byte"))?;
        self.rest = tail;
        Ok(b)
    }

    /// LEB128.
    ///
    /// # Errors
    /// It ends too early or is longer than 64 bits.
    pub fn v(&mut self) -> Result<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(WireError("number too long"))
    }

    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        T::try_from(self.v()?).map_err(|_| WireError("number too large"))
    }

    pub(super) fn zigzag(&mut self) -> Result<i64> {
        let n = self.v()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = self.small()?;
        self.take(n)
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError("text is not UTF-8"))
    }

    pub(super) fn uid(&mut self, partition: u16) -> Result<u64> {
        match self.small()? {
            0 => self.foreign(),
            incarnation => Ok(make_uid(partition, incarnation, self.small()?)),
        }
    }

    pub(super) fn foreign(&mut self) -> Result<u64> {
        Ok(make_uid(self.small()?, self.small()?, self.small()?))
    }

    /// The CONNECT that made a session; 0 where nothing follows.
    pub(super) fn maker(&mut self) -> Result<u64> {
        if self.rest.is_empty() {
            return Ok(0);
        }
        Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default()))
    }

    fn qos(flags: u8) -> Result<QoS> {
        QoS::from_bits(flags & 3).ok_or(WireError("QoS 3"))
    }

    pub(super) fn message(&mut self) -> Result<WireMessage<'a>> {
        let flags = self.u8()?;
        let publisher = self.foreign()?;
        let mut origin = Origin::default();
        if flags & 8 != 0 {
            origin = Origin { uid: self.foreign()?, n: self.v()?, answered: self.v()? };
        }
        let deadline_ms = if flags & 16 != 0 { self.v()? } else { 0 };
        let topic = self.text()?;
        let props = if flags & 32 != 0 { self.bytes()? } else { &[] };
        let payload = self.bytes()?;
        let qos = Self::qos(flags)?;
        let head = Head { publisher, deadline_ms, qos, retain: flags & 4 != 0, ..Head::default() };
        Ok(WireMessage { message: Message { head, topic, props, payload }, origin })
    }

    fn extra(&mut self, flags: u8) -> Result<Option<Box<Extra>>> {
        if flags & 24 == 0 {
            return Ok(None);
        }
        let mut extra = Extra::default();
        if flags & 8 != 0 {
            let n: usize = self.small()?;
            for _ in 0..n {
                extra.ids.push(self.small()?);
            }
        }
        if flags & 16 != 0 {
            let partition = self.small()?;
            let uid = self.uid(partition)?;
            extra.group = Some(GroupPlace { partition, uid, index: self.v()?, n: self.v()? });
        }
        Ok(Some(Box::new(extra)))
    }

    pub(super) fn delivery(&mut self, partition: u16) -> Result<WireDelivery> {
        let (uid, index, flags) = (self.uid(partition)?, self.v()?, self.u8()?);
        let (qos, retain, extra) = (Self::qos(flags)?, flags & 4 != 0, self.extra(flags)?);
        Ok(WireDelivery { uid, index, qos, retain, extra })
    }

    pub(super) fn entry(&mut self, before: u64) -> Result<Entry> {
        let flags = self.u8()?;
        let len = self.small()?;
        let at = before.wrapping_add(self.zigzag()? as u64);
        let extra = self.extra(flags)?;
        let stage = match flags >> 5 {
            0 => Stage::Waiting,
            1 => Stage::Again,
            2 => Stage::ReleaseAgain,
            3 => Stage::Done,
            _ => return Err(WireError("unknown stage")),
        };
        let entry = Entry::waiting(None, len, Self::qos(flags)?, flags & 4 != 0, extra);
        Ok(Entry { at, stage, ..entry })
    }

    pub(super) fn will(&mut self) -> Result<Box<Will>> {
        let flags = self.u8()?;
        let expiry_s = if flags & 8 != 0 { Some(self.small()?) } else { None };
        Ok(Box::new(Will {
            delay_s: self.small()?,
            topic: self.text()?.into(),
            props: self.bytes()?.into(),
            payload: self.bytes()?.into(),
            qos: Self::qos(flags)?,
            retain: flags & 4 != 0,
            expiry_s,
            outlives: flags & 16 != 0,
        }))
    }

    pub(super) fn subscription(&mut self) -> Result<(&'a str, Subscription)> {
        let (filter, flags) = (self.text()?, self.u8()?);
        let (no_local, retain_as_published) = (flags & 4 != 0, flags & 8 != 0);
        Ok((filter, Subscription { qos: Self::qos(flags)?, no_local, retain_as_published, id: self.small()? }))
    }
}

/// A message as it stands in a record.
#[derive(Debug, Clone, Copy)]
pub struct WireMessage<'a> {
    /// The message; its head has no origin.
    pub message: Message<'a>,
    /// The origin to be taken.
    pub origin: Origin,
}

/// A delivery as it stands in a record.
#[derive(Debug)]
#[allow(missing_docs, reason = "as `Delivery`")]
pub struct WireDelivery {
    pub uid: u64,
    pub index: u64,
    pub qos: QoS,
    pub retain: bool,
    pub extra: Option<Box<Extra>>,
}

impl<'a> Reader<'a> {
    /// A session without its queue; the queue begins where the record says, `sent` is set apart.
    pub(super) fn session(&mut self, partition: u16) -> Result<(Session, u64)> {
        let uid = self.uid(partition)?;
        let (client_id, expiry_s, flags) = (self.text()?, self.small()?, self.u8()?);
        let mut s = Session::new(uid, client_id, expiry_s, true);
        (s.ends_at_ms, s.will_at_ms) = (self.v()?, self.v()?);
        s.away = flags & 1 != 0;
        s.queue = Queue::starting_at(self.v()?);
        let sent = self.v()?;
        if flags & 2 != 0 {
            s.will = Some(self.will()?);
        }
        let last = self.v()?;
        let n: usize = self.small()?;
        let mut ids = Vec::new();
        for _ in 0..n {
            ids.push((self.small()?, self.v()?));
        }
        s.held = (last > 0).then(|| Box::new(Held::restore(ids, last)));
        let n: usize = self.small()?;
        for _ in 0..n {
            let (filter, subscription) = self.subscription()?;
            s.subscriptions.insert(filter.into(), subscription);
        }
        s.maker = self.maker()?;
        Ok((s, sent))
    }
}

/// Splits the first framed record off; `None` at the end.
///
/// # Errors
/// The frame is not whole; what follows cannot be found.
pub fn next_record<'a>(bytes: &mut &'a [u8]) -> Result<Option<(&'a [u8], bool)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(bytes);
    let len: usize = r.small()?;
    let crc = u32::from_le_bytes(r.take(4)?.try_into().unwrap_or_default());
    let body = r.take(len)?;
    *bytes = r.rest;
    Ok(Some((body, crc32c::crc32c(body) == crc)))
}

/// Length of the framed record at the beginning of these bytes, if they reach far enough to tell.
#[must_use]
pub fn record_len(bytes: &[u8]) -> Option<usize> {
    let mut r = Reader::new(bytes);
    let len: usize = r.small().ok()?;
    (bytes.len() - r.rest.len()).checked_add(4)?.checked_add(len)
}

/// The message of the framed record at the beginning of these bytes.
///
/// # Errors
/// It is not whole, its CRC is wrong, or it has no message.
pub fn read_record(mut bytes: &[u8]) -> Result<Message<'_>> {
    match next_record(&mut bytes)? {
        Some((body, true)) => read_message(body).map(|m| m.message),
        _ => Err(WireError("CRC is wrong")),
    }
}

/// The message of an `Enqueued`, `Moved`, `GroupEnqueued` or `RetainedSet` record.
///
/// # Errors
/// It is another record, or not a whole one.
pub fn read_message(body: &[u8]) -> Result<WireMessage<'_>> {
    use super::wire::kind;
    let mut r = Reader::new(body);
    match r.u8()? {
        kind::ENQUEUED | kind::MOVED | kind::RETAINED_SET => r.message(),
        kind::GROUP_ENQUEUED => {
            r.uid(0)?;
            r.v()?;
            r.message()
        }
        _ => Err(WireError("a record without a message")),
    }
}
