//! Addresses: which subnet a daemon's sandboxes have, and who has which address in it.
//!
//! ```text
//! base+0   the subnet        base+3 …        sandboxes
//! base+1   the host          last /30        the two ends of the probe
//! base+2   the bridge, and the resolver on it
//! ```

use std::{
    collections::BTreeSet,
    fmt,
    net::Ipv4Addr,
    str::FromStr,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

/// An IPv4 subnet for sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// A larger one would take every private address, a smaller one has no room for a handful of sandboxes.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=25;

/// Where subnets are taken from when none is configured: blocks that neither Docker's nor BuildKit's defaults begin in, of all
/// three private ranges, since a company's routes may cover any one of them.
const BLOCKS: [Subnet; 3] = [
    Subnet { base: u32::from_be_bytes([10, 201, 0, 0]), prefix: 16 },
    Subnet { base: u32::from_be_bytes([172, 29, 0, 0]), prefix: 16 },
    Subnet { base: u32::from_be_bytes([192, 168, 192, 0]), prefix: 18 },
];
/// 1,017 sandboxes at once.
const DEFAULT_PREFIX: u8 = 22;

impl Subnet {
    /// The subnets to try when none is configured, in order. A daemon that finds the first one free has the same address after every
    /// start, so that what names it (`host-gateway`) finds its cache.
    pub(super) fn candidates() -> impl Iterator<Item = Self> {
        let step = 1u32 << (32 - DEFAULT_PREFIX);
        BLOCKS.into_iter().flat_map(move |block| {
            let count = 1u32 << (DEFAULT_PREFIX - block.prefix);
            (0..count).map(move |number| Self { base: block.base + number * step, prefix: DEFAULT_PREFIX })
        })
    }

    /// Any range of addresses, which need not be a subnet for sandboxes.
    pub(super) fn range(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { base: u32::from(address) & mask(prefix), prefix }
    }

    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    pub(super) fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    pub(super) fn mask(self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    /// The host's address: gateway of the sandboxes, and what `host-gateway` means.
    pub(super) fn gateway(self) -> Ipv4Addr {
        self.nth(1)
    }

    /// The bridge's address.
    pub(super) fn bridge(self) -> Ipv4Addr {
        self.nth(2)
    }

    /// The range of the probe, and its ends: the host's, and the far one.
    pub(super) fn probe(self) -> (Self, Ipv4Addr, Ipv4Addr) {
        let first = self.size() - 4;
        (Self::range(self.nth(first), 30), self.nth(first + 1), self.nth(first + 2))
    }

    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.base & mask(prefix) == other.base & mask(prefix)
    }

    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    fn nth(self, number: u32) -> Ipv4Addr {
        (self.base + number).into()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Some((address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?))
        };
        let Some((address, prefix)) = parse() else {
            return Err(format!("subnet {text:?} is not such as 10.10.0.0/16"));
        };
        if !PREFIXES.contains(&prefix) {
            let (from, to) = (PREFIXES.start(), PREFIXES.end());
            return Err(format!("subnet {text:?} is not between /{from} and /{to}"));
        }
        Ok(Self::range(address, prefix))
    }
}

/// Who has which address. Addresses are given out in turn, so that one is not used again soon after.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    subnet: Subnet,
    shared: Arc<(Mutex<Given>, Condvar)>,
}

#[derive(Debug)]
struct Given {
    held: BTreeSet<u32>,
    next: u32,
    closed: bool,
}

/// First number that a sandbox may have.
const FIRST: u32 = 3;

impl Addresses {
    pub(super) fn new(subnet: Subnet) -> Self {
        let given = Given { held: BTreeSet::new(), next: FIRST, closed: false };
        Self { subnet, shared: Arc::new((Mutex::new(given), Condvar::new())) }
    }

    /// The next free address; blocks while there is none. `None` once [`Self::close`] was called.
    pub(super) fn take(&self) -> Option<Address> {
        let (lock, freed) = &*self.shared;
        let mut given = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.subnet.size() - 4 - FIRST;
        loop {
            if given.closed {
                return None;
            }
            let start = given.next - FIRST;
            let free =
                (0..count).map(|turn| FIRST + (start + turn) % count).find(|n| !given.held.contains(n));
            if let Some(number) = free {
                given.held.insert(number);
                given.next = number + 1;
                return Some(Address { ip: self.subnet.nth(number), number, of: self.clone() });
            }
            given = freed.wait(given).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends waiting, now and later.
    pub(super) fn close(&self) {
        let (lock, freed) = &*self.shared;
        lock.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        freed.notify_all();
    }
}

/// An address that nobody else has while this is held.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) ip: Ipv4Addr,
    number: u32,
    of: Addresses,
}

impl Drop for Address {
    fn drop(&mut self) {
        let (lock, freed) = &*self.of.shared;
        lock.lock().unwrap_or_else(PoisonError::into_inner).held.remove(&self.number);
        freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_read_and_what_is_none_is_named() {
        assert_eq!(subnet("10.10.3.7/16").to_string(), "10.10.0.0/16");
        assert_eq!(subnet("10.1.2.0/24").gateway().to_string(), "10.1.2.1");
        assert_eq!(subnet("10.1.2.0/24").bridge().to_string(), "10.1.2.2");
        let (range, host, far) = subnet("10.1.2.0/24").probe();
        assert_eq!(format!("{range} {host} {far}"), "10.1.2.252/30 10.1.2.253 10.1.2.254");
        for bad in
            ["", "10.0.0.0", "10.0.0.0/x", "10.0.0/8", "fd00::/64", "10.0.0.0/26", "0.0.0.0/0", "1.2.3.4/33"]
        {
            let error = bad.parse::<Subnet>().unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn overlapping_ranges_are_found_whichever_is_larger() {
        assert!(subnet("10.1.2.0/24").overlaps(Subnet::range([10, 0, 0, 0].into(), 8)));
        assert!(Subnet::range([10, 0, 0, 0].into(), 8).overlaps(subnet("10.1.2.0/24")));
        assert!(subnet("10.1.2.0/24").overlaps(Subnet::range([10, 1, 2, 9].into(), 32)));
        assert!(!subnet("10.1.2.0/24").overlaps(subnet("10.1.3.0/24")));
    }

    #[test]
    fn candidates_are_many_apart_and_private() {
        let all: Vec<_> = Subnet::candidates().collect();
        assert_eq!((all.len(), all[0].to_string().as_str()), (64 + 64 + 16, "10.201.0.0/22"));
        for (n, one) in all.iter().enumerate() {
            assert!(one.base().is_private());
            assert!(all[n + 1..].iter().all(|other| !one.overlaps(*other)), "{one}");
        }
    }

    #[test]
    fn addresses_go_round_and_are_never_given_twice() {
        let addresses = Addresses::new(subnet("10.1.2.0/25"));
        let first = addresses.take().unwrap();
        assert_eq!(first.ip.to_string(), "10.1.2.3");
        drop(first);
        let all: Vec<_> = (0..121).map(|_| addresses.take().unwrap()).collect();
        assert_eq!(all[0].ip.to_string(), "10.1.2.4", "one that was just used comes last");
        assert_eq!(all.iter().map(|address| address.ip).collect::<BTreeSet<_>>().len(), 121);
        assert!(all.iter().all(|address| u32::from(address.ip) & 127 < 124));
        let waiting = std::thread::spawn({
            let addresses = addresses.clone();
            move || addresses.take().map(|address| address.ip)
        });
        drop(all);
        assert!(waiting.join().unwrap().is_some());
        addresses.close();
        assert!(addresses.take().is_none());
    }
}
