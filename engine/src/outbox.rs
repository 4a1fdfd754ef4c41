//! Pending output of one connection: small packets copied into one buffer, large payloads shared by reference, all
//! of it leaving in one `writev` per tick.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::message::Stored;
use crate::net::{NetError, Transport, Write};

/// Payloads from this size on are shared rather than copied.
const SHARE_FROM: usize = 4 * 1024;
/// Most slices of one `writev`.
const SLICES: usize = 64;

/// Bytes that wait for a socket. An idle connection owns no buffer.
#[derive(Debug, Default)]
pub struct Outbox {
    buf: Vec<u8>,
    /// Bytes of `buf` already written.
    done: usize,
    /// Payloads with the place in `buf` before which they go.
    shared: VecDeque<(usize, Stored)>,
    /// Bytes of the first shared payload already written.
    shared_done: usize,
    shared_len: usize,
}

impl Outbox {
    /// Bytes waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len() - self.done + self.shared_len - self.shared_done
    }

    /// True if nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where packets are appended.
    pub const fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// True if there is a buffer at all.
    #[must_use]
    pub fn has_buffer(&self) -> bool {
        self.buf.capacity() > 0
    }

    /// Lends a buffer that an earlier connection gave back.
    pub fn lend(&mut self, buf: Vec<u8>) {
        self.buf = buf;
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Appends a payload, by reference if it is large and stored anyway.
    pub fn payload(&mut self, payload: &[u8], shared: Option<&Stored>) {
        match shared {
            Some(stored) if payload.len() >= SHARE_FROM => {
                self.shared.push_back((self.buf.len(), stored.clone()));
                self.shared_len += payload.len();
            }
            _ => self.buf.extend_from_slice(payload),
        }
    }

    /// Writes as much as the socket takes. True when nothing is left.
    ///
    /// # Errors
    /// The connection cannot be written any more.
    pub fn flush(&mut self, transport: &mut Transport, written: &mut u64) -> Result<bool, NetError> {
        while !self.is_empty() {
            let wrote = if self.shared.is_empty() {
                transport.write_vectored(&[IoSlice::new(self.buf.get(self.done..).unwrap_or(&[]))])?
            } else {
                let mut slices = Vec::with_capacity(SLICES);
                self.slices(&mut slices);
                transport.write_vectored(&slices)?
            };
            match wrote {
                Write::Again => return Ok(false),
                Write::Bytes(n) => {
                    *written += n as u64;
                    self.advance(n);
                }
            }
        }
        transport.flush()
    }

    /// The buffer, if nothing waits: an idle connection keeps none.
    pub fn give_back(&mut self) -> Option<Vec<u8>> {
        if !self.is_empty() || self.buf.capacity() == 0 {
            return None;
        }
        self.done = 0;
        let mut buf = std::mem::take(&mut self.buf);
        buf.clear();
        Some(buf)
    }

    fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        let mut at = self.done;
        let mut skip = self.shared_done;
        for (before, stored) in &self.shared {
            if out.len() + 2 > SLICES {
                return;
            }
            if let Some(part) = self.buf.get(at..*before).filter(|p| !p.is_empty()) {
                out.push(IoSlice::new(part));
            }
            at = *before;
            let payload = stored.view().payload;
            out.push(IoSlice::new(payload.get(skip..).unwrap_or(&[])));
            skip = 0;
        }
        if let Some(part) = self.buf.get(at..).filter(|p| !p.is_empty()) {
            out.push(IoSlice::new(part));
        }
    }

    fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some((before, stored)) = self.shared.front() else {
                self.done += n;
                break;
            };
            let plain = before - self.done;
            if n < plain {
                self.done += n;
                return;
            }
            self.done += plain;
            n -= plain;
            let payload = stored.view().payload.len();
            let left = payload - self.shared_done;
            if n < left {
                self.shared_done += n;
                return;
            }
            n -= left;
            self.shared_len -= payload;
            self.shared_done = 0;
            self.shared.pop_front();
        }
        if self.is_empty() {
            self.buf.clear();
            self.done = 0;
        } else if self.done > 256 * 1024 && self.shared.is_empty() {
            self.buf.drain(..self.done);
            self.done = 0;
        }
    }
}
