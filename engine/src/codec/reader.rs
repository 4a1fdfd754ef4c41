//! A cursor over the bytes of one packet: integers, strings, binary data (section 1.5).

use super::Malformed;

/// Reads fields in order; each error names the field's kind.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub const fn len(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(Malformed::packet("packet ends inside a field"))?;
        self.rest = tail;
        Ok(head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let (&b, tail) = self.rest.split_first().ok_or(Malformed::packet("packet ends before a byte"))?;
        self.rest = tail;
        Ok(b)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(Malformed::packet("packet ends inside an integer"))?;
        self.rest = tail;
        Ok(u16::from_be_bytes(*head))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(Malformed::packet("packet ends inside an integer"))?;
        self.rest = tail;
        Ok(u32::from_be_bytes(*head))
    }

    /// Variable byte integer, one to four bytes and no more of them than are needed [MQTT-1.5.5-1].
    pub fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let b = self.u8()?;
            value |= u32::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                let padded = b == 0 && shift > 0;
                return if padded { Err(Malformed::packet("variable byte integer too long")) } else { Ok(value) };
            }
        }
        Err(Malformed::packet("variable byte integer of more than four bytes"))
    }

    /// Binary data with a two byte length.
    pub fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }

    /// UTF-8 string; ill-formed text and U+0000 are refused [MQTT-1.5.4-1, MQTT-1.5.4-2].
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        text(self.binary()?)
    }
}

/// Bytes as MQTT text.
pub fn text(raw: &[u8]) -> Result<&str, Malformed> {
    let s = std::str::from_utf8(raw).map_err(|_| Malformed::packet("text is not well-formed UTF-8"))?;
    if memchr::memchr(0, raw).is_some() {
        return Err(Malformed::packet("text contains U+0000"));
    }
    Ok(s)
}
