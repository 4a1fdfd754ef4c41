//! Where one packet ends: fixed header and Remaining Length (section 2.1.4).

use super::{Malformed, Reason};

/// The extent of one packet at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Packet type and flags.
    pub first: u8,
    /// Length of the fixed header, 2 to 5 bytes.
    pub head: usize,
    /// Length of the whole packet.
    pub total: usize,
}

/// Looks for a complete fixed header. `Ok(None)` means that more bytes are needed.
///
/// # Errors
/// 0x81 for a Remaining Length of five bytes, 0x95 for a packet above `max` bytes.
pub fn frame(buf: &[u8], max: u32) -> Result<Option<Frame>, Malformed> {
    let Some((&first, rest)) = buf.split_first() else { return Ok(None) };
    let mut length = 0usize;
    for (i, &b) in rest.iter().take(4).enumerate() {
        length |= usize::from(b & 0x7f) << (7 * i);
        if b & 0x80 == 0 {
            let total = i + 2 + length;
            if total > max as usize {
                return Err(Malformed { reason: Reason::PACKET_TOO_LARGE, what: "packet larger than the limit" });
            }
            return Ok(Some(Frame { first, head: i + 2, total }));
        }
        if i == 3 {
            return Err(Malformed::packet("remaining length of more than four bytes"));
        }
    }
    Ok(None)
}
