//! Bytes of MQTT 3.1.1 and 5, as far as carrying needs them. Every reader returns `None` for bytes that no client may
//! send; the connection ends there. What is only passed on (names, properties, payloads) is not checked.

/// A larger packet ends its connection: a partial packet is all that the broker keeps of a publisher's input.
const PACKET_BYTES_MAX: usize = 16 << 20;

/// Lengths of the fixed header and of the whole packet at the start of `data`. The latter is above `data.len()` while
/// bytes are missing.
pub fn cut(data: &[u8]) -> Option<(usize, usize)> {
    let Some((digits, length)) = varint(data.get(1..).unwrap_or_default()) else {
        return (data.len() < 5).then_some((0, usize::MAX));
    };
    let total = 1 + digits + length;
    (total <= PACKET_BYTES_MAX).then_some((1 + digits, total))
}

/// How many bytes it takes, and its value; `None` also when it is not complete.
fn varint(data: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (n, byte) in data.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Some((n + 1, value));
        }
    }
    None
}

fn write_varint(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The bytes of a packet that are not read yet.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(n)?;
        self.0 = left;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// A text or binary with its length before it; the length is not part of what is returned.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(length.into())
    }

    /// The properties with their length, as they came; nothing in 3.1.1.
    pub fn properties(&mut self, v5: bool) -> Option<&'a [u8]> {
        if !v5 {
            return Some(&[]);
        }
        let (digits, length) = varint(self.0)?;
        self.take(digits + length)
    }
}

/// A PUBLISH as it came.
pub struct Publish<'a> {
    pub topic: &'a [u8],
    pub qos: u8,
    pub id: u16,
    v5: bool,
    whole: &'a [u8],
    id_at: usize,
    properties: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// Of a whole packet whose fixed header has `head` bytes.
    pub fn read(whole: &'a [u8], head: usize, v5: bool) -> Option<Self> {
        let mut body = Reader(whole.get(head..)?);
        let topic = body.text()?;
        let qos = whole.first()? >> 1 & 3;
        let id = if qos > 0 { body.short()? } else { 0 };
        let known = !topic.is_empty() && qos < 3 && (qos == 0) == (id == 0);
        let properties = body.properties(v5)?;
        known.then_some(Self { topic, qos, id, v5, whole, id_at: head + 2 + topic.len(), properties, payload: body.0 })
    }

    /// Appends it as it goes to one receiver: DUP and RETAIN cleared, with the receiver's packet id, in its version. The
    /// received bytes are copied as they are when version and QoS agree.
    pub fn write(&self, out: &mut Vec<u8>, v5: bool, qos: u8, id: u16) {
        let first = 0x30 | qos << 1;
        if v5 == self.v5 && qos == self.qos {
            let start = out.len();
            out.extend_from_slice(self.whole);
            if let Some(byte) = out.get_mut(start) {
                *byte = first;
            }
            let at = start + self.id_at;
            if let Some(bytes) = out.get_mut(at..at + 2).filter(|_| qos > 0) {
                bytes.copy_from_slice(&id.to_be_bytes());
            }
            return;
        }
        let properties = match (v5, self.v5) {
            (false, _) => &[],
            (true, true) => self.properties,
            (true, false) => &[0][..],
        };
        let id_bytes = if qos > 0 { 2 } else { 0 };
        out.push(first);
        write_varint(out, 2 + self.topic.len() + id_bytes + properties.len() + self.payload.len());
        out.extend_from_slice(&(self.topic.len() as u16).to_be_bytes());
        out.extend_from_slice(self.topic);
        if qos > 0 {
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(properties);
        out.extend_from_slice(self.payload);
    }
}

/// A SUBACK (`first` 0x90) or UNSUBACK (0xb0); the latter has no codes in 3.1.1.
pub fn granted(first: u8, id: u16, v5: bool, codes: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    write_varint(&mut out, 2 + usize::from(v5) + codes.len());
    out.extend_from_slice(&id.to_be_bytes());
    if v5 {
        out.push(0);
    }
    out.extend_from_slice(codes);
    out
}
