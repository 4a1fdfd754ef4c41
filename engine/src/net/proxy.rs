//! PROXY protocol, versions 1 and 2: the client's address as a trusted proxy tells it.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use ppp::{HeaderResult, PartialResult, v1, v2};

use super::{NetError, PeerAddress, Stream, waits};

/// Longest header that is read: version 2 with a 16 bit length would allow more, nobody sends it.
const HEADER_MAX: usize = 4096;

/// A range of addresses in CIDR notation.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// `10.0.0.0/8`, `::1/128`, or a single address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |b| b.parse().ok()).filter(|b| *b <= most)?;
        Some(Self { address, bits })
    }

    /// Is the address inside?
    pub fn contains(&self, ip: IpAddr) -> bool {
        let cut = |a: u128, width: u32| a.checked_shr(width - self.bits).unwrap_or(0);
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => cut(u32::from(a).into(), 32) == cut(u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => cut(a.into(), 128) == cut(b.into(), 128),
            _ => false,
        }
    }
}

pub(super) enum Progress {
    More { stream: Stream, seen: Vec<u8> },
    Done { stream: Stream, rest: Vec<u8> },
}

/// Reads the header until it is complete; the bytes after it belong to the next layer.
pub(super) fn read(
    mut stream: Stream,
    mut seen: Vec<u8>,
    trusted: &[Network],
    address: &mut PeerAddress,
) -> Result<Progress, NetError> {
    let direct = address.ip();
    if !direct.is_none_or(|ip| trusted.iter().any(|n| n.contains(ip))) {
        return Err(NetError::Peer("PROXY protocol: the address is not trusted"));
    }
    let mut buf = [0u8; 512];
    loop {
        if !seen.is_empty() {
            let header = HeaderResult::parse(&seen);
            if !header.is_incomplete() {
                let used = apply(&header, address)?;
                let rest = seen.split_off(used.min(seen.len()));
                return Ok(Progress::Done { stream, rest });
            }
        }
        if seen.len() > HEADER_MAX {
            return Err(NetError::Peer("PROXY protocol: header too long"));
        }
        match stream.read(&mut buf) {
            Ok(0) => return Err(NetError::Peer("closed before the PROXY header was complete")),
            Ok(n) => seen.extend_from_slice(buf.get(..n).unwrap_or(&[])),
            Err(error) if waits(&error) => return Ok(Progress::More { stream, seen }),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Length of the header; the address is that of the client if the header tells one.
fn apply(header: &HeaderResult<'_>, address: &mut PeerAddress) -> Result<usize, NetError> {
    let told = match header {
        HeaderResult::V1(Ok(h)) => {
            let client = match h.addresses {
                v1::Addresses::Tcp4(a) => Some(SocketAddr::new(a.source_address.into(), a.source_port)),
                v1::Addresses::Tcp6(a) => Some(SocketAddr::new(a.source_address.into(), a.source_port)),
                v1::Addresses::Unknown => None,
            };
            (client, h.header.len())
        }
        HeaderResult::V2(Ok(h)) => {
            let client = match h.addresses {
                _ if h.command == v2::Command::Local => None,
                v2::Addresses::IPv4(a) => Some(SocketAddr::new(a.source_address.into(), a.source_port)),
                v2::Addresses::IPv6(a) => Some(SocketAddr::new(a.source_address.into(), a.source_port)),
                _ => None,
            };
            (client, h.len())
        }
        _ => return Err(NetError::Peer("PROXY protocol: no valid header")),
    };
    if let Some(client) = told.0 {
        *address = PeerAddress::Ip(client);
    }
    Ok(told.1)
}
