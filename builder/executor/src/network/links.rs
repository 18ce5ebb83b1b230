//! Interfaces, addresses, routes and neighbours (linux/rtnetlink.h, if_link.h, neighbour.h), in the namespace of a connection.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{
    netlink::{Connection, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Requests, attribute},
    subnet::Subnet,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IF_OPER_UP: u8 = 6;
/// Of a bridge's port.
const BR_STATE_FORWARDING: u8 = 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_MASTER: u8 = 0x04;

/// Number of an interface in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Index(pub(super) i32);

/// The loopback interface is the first of every namespace.
pub(super) const LOOPBACK: Index = Index(1);

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// One end of a pair, as it is to be made.
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    /// Zero: any. The kernel takes the far end's only where the near one has one.
    pub(super) index: Index,
    pub(super) mac: Mac,
}

fn link_header(family: i32, index: Index, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&index.0.to_ne_bytes());
    if up {
        let flag = (libc::IFF_UP as u32).to_ne_bytes();
        header[8..12].copy_from_slice(&flag);
        header[12..16].copy_from_slice(&flag);
    }
    header
}

impl Requests {
    /// Sets an interface up.
    pub(super) fn set_up(&mut self, index: Index) -> &mut Self {
        self.begin(RTM_NEWLINK, 0, &link_header(0, index, true))
    }

    /// Makes a bridge that is up.
    pub(super) fn add_bridge(&mut self, name: &str, index: Index, mtu: u32) -> &mut Self {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.begin(RTM_NEWLINK, flags, &link_header(0, index, true))
            .put_text(IFLA_IFNAME, name)
            .put(IFLA_MTU, &mtu.to_ne_bytes())
            .nest(IFLA_LINKINFO, |info| {
                // Snooping makes the bridge itself send packets, to every port.
                info.put_text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |data| {
                    data.put(IFLA_BR_MCAST_SNOOPING, &[0]);
                });
            })
    }

    /// Makes two connected interfaces, both down: `near` in this namespace, `far` in the one that `namespace` is open on.
    pub(super) fn add_pair(
        &mut self,
        near: &End<'_>,
        far: &End<'_>,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> &mut Self {
        self.begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, near.index, false))
            .put_text(IFLA_IFNAME, near.name)
            .put(IFLA_ADDRESS, &near.mac)
            .put(IFLA_MTU, &mtu.to_ne_bytes())
            .nest(IFLA_LINKINFO, |info| {
                info.put_text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| {
                        peer.raw(&link_header(0, far.index, false));
                        peer.put_text(IFLA_IFNAME, far.name)
                            .put(IFLA_ADDRESS, &far.mac)
                            .put(IFLA_MTU, &mtu.to_ne_bytes())
                            .put(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                    });
                });
            })
    }

    /// Makes an interface a port of a bridge.
    pub(super) fn set_master(&mut self, port: Index, bridge: Index) -> &mut Self {
        self.begin(RTM_NEWLINK, 0, &link_header(0, port, false)).put(IFLA_MASTER, &bridge.0.to_ne_bytes())
    }

    /// A port that talks to ports that are not like it only, gets just what is for its own address, and cannot say that it has another's.
    pub(super) fn isolate_port(&mut self, port: Index, mac: Mac) -> &mut Self {
        self.begin(RTM_NEWLINK, 0, &link_header(0, port, false)).nest(IFLA_LINKINFO, |info| {
            info.put_text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.put(IFLA_BRPORT_ISOLATED, &[1]);
                for off in [
                    IFLA_BRPORT_LEARNING,
                    IFLA_BRPORT_UNICAST_FLOOD,
                    IFLA_BRPORT_MCAST_FLOOD,
                    IFLA_BRPORT_BCAST_FLOOD,
                ] {
                    data.put(off, &[0]);
                }
            });
        });
        let header = neighbour_header(libc::AF_BRIDGE, port, NUD_NOARP, NTF_MASTER);
        self.begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &header).put(NDA_LLADDR, &mac)
    }

    /// Says for good who has an address, so that nobody is asked.
    pub(super) fn add_neighbour(&mut self, link: Index, address: Ipv4Addr, mac: Mac) -> &mut Self {
        let header = neighbour_header(libc::AF_INET, link, NUD_PERMANENT, 0);
        self.begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &header)
            .put(NDA_DST, &address.octets())
            .put(NDA_LLADDR, &mac)
    }

    /// Gives an interface an address.
    pub(super) fn add_address(&mut self, link: Index, address: Ipv4Addr, prefix: u8) -> &mut Self {
        let mut header = [libc::AF_INET as u8, prefix, 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&link.0.to_ne_bytes());
        self.begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &header)
            .put(IFA_LOCAL, &address.octets())
            .put(IFA_ADDRESS, &address.octets())
    }

    /// Sends what is for `to` (`None`: for everywhere else) to a gateway.
    pub(super) fn add_route(&mut self, to: Option<Subnet>, gateway: Ipv4Addr, link: Index) -> &mut Self {
        let prefix = to.map_or(0, Subnet::prefix);
        let header =
            [libc::AF_INET as u8, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        self.begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header);
        if let Some(to) = to {
            self.put(RTA_DST, &to.base().octets());
        }
        self.put(RTA_GATEWAY, &gateway.octets()).put(RTA_OIF, &link.0.to_ne_bytes())
    }

    /// Removes an interface, and with it the other end of a pair.
    pub(super) fn remove_link(&mut self, link: Index) -> &mut Self {
        self.begin(RTM_DELLINK, 0, &link_header(0, link, false))
    }
}

fn neighbour_header(family: i32, link: Index, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&link.0.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// An interface that is there.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: Index,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// `veth`, `bridge` …; empty for hardware.
    pub(super) kind: String,
}

/// What is there: interfaces, and the ranges that addresses and routes take.
impl Connection {
    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        let links = self.dump(RTM_GETLINK, &link_header(0, Index(0), false))?;
        let text = |value: Option<&[u8]>| {
            String::from_utf8_lossy(value.unwrap_or_default()).trim_end_matches('\0').to_owned()
        };
        Ok(links
            .iter()
            .map(|link| {
                let info = link.attribute(IFLA_LINKINFO).unwrap_or_default();
                Link {
                    index: Index(i32::from_ne_bytes(link.fixed(4))),
                    name: text(link.attribute(IFLA_IFNAME)),
                    mtu: number(link.attribute(IFLA_MTU)).unwrap_or(0),
                    kind: text(attribute(info, IFLA_INFO_KIND)),
                }
            })
            .collect())
    }

    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// The number of an interface that was just made.
    pub(super) fn index(&self, name: &str) -> io::Result<Index> {
        let link = self.link(name)?;
        link.map(|link| link.index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Whether an interface is a port of a bridge that carries what it gets.
    pub(super) fn forwards(&self, port: Index) -> io::Result<bool> {
        let link = self.get(RTM_GETLINK, &link_header(0, port, false))?;
        let info = link.attribute(IFLA_LINKINFO).unwrap_or_default();
        let port = attribute(info, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
        Ok(attribute(port, IFLA_BRPORT_STATE) == Some(&[BR_STATE_FORWARDING]))
    }

    /// Whether an interface sends what it is to send.
    pub(super) fn is_up(&self, link: Index) -> io::Result<bool> {
        let link = self.get(RTM_GETLINK, &link_header(0, link, false))?;
        Ok(link.attribute(IFLA_OPERSTATE) == Some(&[IF_OPER_UP]))
    }

    /// IPv4 ranges that are somebody's: of routes but default ones, and of addresses.
    pub(super) fn taken(&self) -> io::Result<Vec<Subnet>> {
        let octets = |value: Option<&[u8]>| value.and_then(|value| <[u8; 4]>::try_from(value).ok());
        let mut header = [0; 12];
        header[0] = libc::AF_INET as u8;
        let mut taken = Vec::new();
        for route in self.dump(RTM_GETROUTE, &header)? {
            let [family, prefix, _, _, table, ..] = route.fixed::<8>(0);
            if i32::from(family) == libc::AF_INET
                && prefix > 0
                && table != RT_TABLE_LOCAL
                && let Some(to) = octets(route.attribute(RTA_DST))
            {
                taken.push(Subnet::range(to.into(), prefix));
            }
        }
        for address in self.dump(RTM_GETADDR, &header[..8])? {
            let [family, prefix] = address.fixed(0);
            if i32::from(family) == libc::AF_INET
                && let Some(address) = octets(address.attribute(IFA_LOCAL))
            {
                taken.push(Subnet::range(address.into(), prefix));
            }
        }
        Ok(taken)
    }

    /// The largest packet that every default route takes.
    pub(super) fn mtu_outward(&self) -> io::Result<Option<u32>> {
        let mut header = [0; 12];
        header[0] = libc::AF_INET as u8;
        let links = self.links()?;
        let outward = self.dump(RTM_GETROUTE, &header)?;
        Ok(outward
            .iter()
            .filter(|route| route.fixed::<2>(0) == [libc::AF_INET as u8, 0])
            .filter_map(|route| number(route.attribute(RTA_OIF)))
            .filter_map(|index| links.iter().find(|link| u32::try_from(link.index.0) == Ok(index)))
            .map(|link| link.mtu)
            .min())
    }
}

fn number(value: Option<&[u8]>) -> Option<u32> {
    value.and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes)
}
