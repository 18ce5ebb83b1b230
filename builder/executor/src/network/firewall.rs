//! The one nf_tables table of a daemon (linux/netfilter/nf_tables.h).
//!
//! In nft's words, `IF` being the host's end of the sandboxes' network and `NET` its subnet:
//!
//! ```text
//! table ip IF {
//!   flags owner                                        # goes with the connection that made it, `flush ruleset` spares it
//!   chain prerouting  { type filter hook prerouting priority raw
//!     iifname IF ip saddr != NET drop                  # nobody sends in another's name,
//!     iifname IF ip daddr 127.0.0.0/8 drop }           # or to the host's loopback, even where route_localnet is set
//!   chain forward     { type filter hook forward priority filter
//!     iifname IF oifname IF drop                       # from sandbox to sandbox, by way of the host
//!     oifname IF ct state != established,related drop }# only answers come in
//!   chain postrouting { type nat hook postrouting priority srcnat
//!     ip saddr NET oifname != IF masquerade }
//! }
//! ```

use std::{io, net::Ipv4Addr};

use super::{
    netlink::{Connection, NLM_F_CREATE, NLM_F_EXCL, Requests},
    subnet::Subnet,
};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
const NLM_F_APPEND: u16 = 0x800;

/// Linux 5.12.
const NFT_TABLE_F_OWNER: u32 = 2;
const LIST_ELEMENT: u16 = 1;
const REGISTER: [u8; 4] = 1u32.to_be_bytes();
/// `NF_CT_STATE_BIT` of established and related.
const ESTABLISHED_OR_RELATED: u32 = 0b110;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

const INPUT_NAME: u32 = 6;
const OUTPUT_NAME: u32 = 7;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Hook and priority of a chain (linux/netfilter_ipv4.h).
const PREROUTING: (u32, i32) = (0, -300);
const FORWARD: (u32, i32) = (2, 0);
const POSTROUTING: (u32, i32) = (4, 100);

/// The table; gone when this is dropped, or the process is gone.
#[derive(Debug)]
pub(super) struct Firewall {
    // Its owner.
    _connection: Connection,
}

impl Firewall {
    /// Makes the table for the sandboxes behind the interface `interface`, in the network namespace of this thread.
    pub(super) fn raise(interface: &str, subnet: Subnet) -> io::Result<Self> {
        let connection = Connection::to_netfilter()?;
        let mut batch = Batch::new(interface);
        batch.table();
        batch.chain("prerouting", "filter", PREROUTING);
        batch.chain("forward", "filter", FORWARD);
        batch.chain("postrouting", "nat", POSTROUTING);
        let loopback = Subnet::range(Ipv4Addr::LOCALHOST, 8);
        batch.rule("prerouting", |rule| {
            rule.interface(INPUT_NAME, EQUAL).address(SOURCE, NOT_EQUAL, subnet).drop_packet();
        });
        batch.rule("prerouting", |rule| {
            rule.interface(INPUT_NAME, EQUAL).address(DESTINATION, EQUAL, loopback).drop_packet();
        });
        batch.rule("forward", |rule| {
            rule.interface(INPUT_NAME, EQUAL).interface(OUTPUT_NAME, EQUAL).drop_packet();
        });
        batch.rule("forward", |rule| {
            rule.interface(OUTPUT_NAME, EQUAL).unrelated().drop_packet();
        });
        batch.rule("postrouting", |rule| {
            rule.address(SOURCE, EQUAL, subnet).interface(OUTPUT_NAME, NOT_EQUAL).masquerade();
        });
        connection.ask(&batch.end())?;
        Ok(Self { _connection: connection })
    }
}

/// Changes that are made all at once or not at all.
struct Batch<'a> {
    requests: Requests,
    /// Of the table, and of the interface.
    name: &'a str,
}

/// `struct nfgenmsg`.
fn header(family: i32, subsystem: u16) -> [u8; 4] {
    let [high, low] = subsystem.to_be_bytes();
    [family as u8, 0, high, low]
}

impl<'a> Batch<'a> {
    fn new(name: &'a str) -> Self {
        let mut requests = Requests::default();
        requests.begin_silent(NFNL_MSG_BATCH_BEGIN, 0, &header(libc::AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
        Self { requests, name }
    }

    fn end(mut self) -> Requests {
        let header = header(libc::AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
        self.requests.begin_silent(NFNL_MSG_BATCH_END, 0, &header);
        self.requests
    }

    fn table(&mut self) {
        const NAME: u16 = 1;
        const FLAGS: u16 = 2;
        self.requests
            .begin(NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, &header(libc::AF_INET, 0))
            .put_text(NAME, self.name)
            .put(FLAGS, &NFT_TABLE_F_OWNER.to_be_bytes());
    }

    fn chain(&mut self, name: &str, kind: &str, (hook, priority): (u32, i32)) {
        self.requests
            .begin(NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, &header(libc::AF_INET, 0))
            .put_text(1, self.name)
            .put_text(3, name)
            .nest(4, |nested| {
                nested.put(1, &hook.to_be_bytes()).put(2, &priority.to_be_bytes());
            })
            .put_text(7, kind);
    }

    fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Rule<'_>)) {
        let interface = self.name;
        self.requests
            .begin(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &header(libc::AF_INET, 0))
            .put_text(1, self.name)
            .put_text(2, chain)
            .nest(4, |list| expressions(&mut Rule { list, interface }));
    }
}

/// The expressions of a rule: each goes on only where it holds.
struct Rule<'a> {
    list: &'a mut Requests,
    interface: &'a str,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, attributes: impl FnOnce(&mut Requests)) -> &mut Self {
        self.list.nest(LIST_ELEMENT, |element| {
            element.put_text(1, name).nest(2, attributes);
        });
        self
    }

    /// Compares what the register holds.
    fn compare(&mut self, operator: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |cmp| {
            cmp.put(1, &REGISTER).put(2, &operator.to_be_bytes()).nest(3, |data| {
                data.put(1, value);
            });
        })
    }

    fn masked(&mut self, mask: [u8; 4]) -> &mut Self {
        self.expression("bitwise", |bitwise| {
            bitwise
                .put(1, &REGISTER)
                .put(2, &REGISTER)
                .put(3, &4u32.to_be_bytes())
                .nest(4, |data| {
                    data.put(1, &mask);
                })
                .nest(5, |data| {
                    data.put(1, &[0; 4]);
                });
        })
    }

    /// `iifname` or `oifname` (`key`) is, or is not, the interface.
    fn interface(&mut self, key: u32, operator: u32) -> &mut Self {
        let mut name = [0; libc::IFNAMSIZ];
        name[..self.interface.len()].copy_from_slice(self.interface.as_bytes());
        self.expression("meta", |meta| {
            meta.put(1, &REGISTER).put(2, &key.to_be_bytes());
        })
        .compare(operator, &name)
    }

    /// An address of the IPv4 header is, or is not, in `range`.
    fn address(&mut self, offset: u32, operator: u32, range: Subnet) -> &mut Self {
        const NETWORK_HEADER: u32 = 1;
        self.expression("payload", |payload| {
            payload
                .put(1, &REGISTER)
                .put(2, &NETWORK_HEADER.to_be_bytes())
                .put(3, &offset.to_be_bytes())
                .put(4, &4u32.to_be_bytes());
        })
        .masked(range.mask().octets())
        .compare(operator, &range.base().octets())
    }

    /// Belongs to no connection that was let out.
    fn unrelated(&mut self) -> &mut Self {
        const CT_STATE: u32 = 0;
        self.expression("ct", |ct| {
            ct.put(1, &REGISTER).put(2, &CT_STATE.to_be_bytes());
        })
        .masked(ESTABLISHED_OR_RELATED.to_ne_bytes())
        .compare(EQUAL, &[0; 4])
    }

    fn drop_packet(&mut self) {
        const VERDICT_REGISTER: [u8; 4] = [0; 4];
        const NF_DROP: [u8; 4] = [0; 4];
        self.expression("immediate", |immediate| {
            immediate.put(1, &VERDICT_REGISTER).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.put(1, &NF_DROP);
                });
            });
        });
    }

    fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }
}
