//! Bytes on a link, drawn in `docs/formats/link.md`. Little endian throughout; every length is bounded before it is believed.

use super::flow::Hello;

/// Version of these bytes.
pub const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"ROOSTLNK";
/// Bytes of a [`Greeting`].
pub const GREETING: usize = 8 + 2 + 2 + 8 + 8 + 8 + 8 + 8;
/// Bytes of a frame before its body.
pub const HEAD: usize = 4 + 8 + 8 + 8 + 2 + 2;
/// Most bytes of a body: a batch of one tick.
pub const BODY_MAX: usize = 256 << 20;

/// What both ends say first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Slot of the sender.
    pub slot: u16,
    /// Which start of it.
    pub incarnation: u64,
    /// Fingerprint of cluster and its layout: ends that differ in it are strangers.
    pub cluster: u64,
    /// Where the sender stands.
    pub hello: Hello,
}

impl Greeting {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(GREETING);
        b.extend_from_slice(MAGIC);
        b.extend_from_slice(&VERSION.to_le_bytes());
        b.extend_from_slice(&self.slot.to_le_bytes());
        for n in [self.incarnation, self.cluster, self.hello.name, self.hello.peer, self.hello.received] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(b: &[u8]) -> Result<Self, &'static str> {
        if b.get(..8) != Some(MAGIC.as_slice()) {
            return Err("not a link of this broker");
        }
        let (Some(version), Some(slot)) = (u16_at(b, 8), u16_at(b, 10)) else { return Err("short greeting") };
        if version != VERSION {
            return Err("another version of links");
        }
        let word = |i: usize| u64_at(b, 12 + 8 * i).ok_or("short greeting");
        let hello = Hello { name: word(2)?, peer: word(3)?, received: word(4)? };
        Ok(Self { slot, incarnation: word(0)?, cluster: word(1)?, hello })
    }
}

/// The front of a frame. Number 0: nothing but a confirmation, or the beginning (`from` and `to` are then [`BEGIN`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Bytes that follow.
    pub len: u32,
    /// Its number; with `BEGIN` that of the first frame that follows.
    pub n: u64,
    /// Everything up to here has come.
    pub received: u64,
    /// The sender's engine time, milliseconds.
    pub now_ms: u64,
    /// The sending lane, by its place in the cluster.
    pub from: u16,
    /// The receiving one.
    pub to: u16,
}

/// Marks the beginning of a connection.
pub const BEGIN: u16 = u16::MAX;
/// Marks a beat: the sender's time is in the head.
pub const BEAT: u16 = u16::MAX - 1;
/// Marks bytes for the node whose slot is `to`, to be passed on: `now_ms` names their stream, `received` is where in it they belong.
pub const CARRY: u16 = u16::MAX - 2;
/// Marks such bytes, passed on: they come from the node whose slot is `to`.
pub const CARRIED: u16 = u16::MAX - 3;

/// What a beat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BeatBody {
    /// The receiver's time, given back.
    pub yours_ms: u64,
    /// The version of the members that the sender has read.
    pub version: u64,
    /// So long the sender has had that time; `u64::MAX` if it does not say.
    pub held_ms: u64,
}

impl BeatBody {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.yours_ms, self.version, self.held_ms].map(u64::to_le_bytes).concat()
    }

    /// Reads them.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        Some(Self { yours_ms: u64_at(body, 0)?, version: u64_at(body, 8)?, held_ms: u64_at(body, 16)? })
    }
}

impl Head {
    /// Appends it.
    pub fn encode(&self, b: &mut Vec<u8>) {
        b.extend_from_slice(&self.len.to_le_bytes());
        for n in [self.n, self.received, self.now_ms] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b.extend_from_slice(&self.from.to_le_bytes());
        b.extend_from_slice(&self.to.to_le_bytes());
    }

    /// Reads one; `None` while bytes are missing.
    ///
    /// # Errors
    /// It announces more than may come.
    pub fn decode(b: &[u8]) -> Result<Option<Self>, &'static str> {
        let Some(len) = b.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else { return Ok(None) };
        if len as usize > BODY_MAX {
            return Err("a frame too large");
        }
        let words = (u64_at(b, 4), u64_at(b, 12), u64_at(b, 20), u16_at(b, 28), u16_at(b, 30));
        let (Some(n), Some(received), Some(now_ms), Some(from), Some(to)) = words else { return Ok(None) };
        Ok(Some(Self { len, n, received, now_ms, from, to }))
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is written is read; what is cut is waited for; anything else is refused, never believed.
        #[test]
        fn bytes(node: u16, words: [u64; 4], n: u64, len in 0..BODY_MAX as u32, rubbish: Vec<u8>) {
            let hello = Hello { name: words[1], peer: words[2], received: words[3] };
            let greeting = Greeting { slot: node, incarnation: n, cluster: words[0], hello };
            prop_assert_eq!(greeting.encode().len(), GREETING);
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            let head = Head { len, n, received: words[0], now_ms: words[1], from: node, to: node ^ 1 };
            let mut bytes = Vec::new();
            head.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), HEAD);
            prop_assert_eq!(Head::decode(&bytes), Ok(Some(head)));
            prop_assert_eq!(Head::decode(&bytes[..HEAD - 1]), Ok(None));
            let beat = BeatBody { yours_ms: n, version: words[0], held_ms: words[1] };
            prop_assert_eq!(BeatBody::decode(&beat.encode()), Some(beat));
            let _ = (Greeting::decode(&rubbish), Head::decode(&rubbish), BeatBody::decode(&rubbish));
        }
    }
}
