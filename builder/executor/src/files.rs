//! The content of `/etc/hosts` and `/etc/resolv.conf` in a container, as BuildKit makes it.

use std::{
    fmt::Write,
    io::Read,
    net::{IpAddr, Ipv4Addr},
};

use crate::{DnsConfig, ExecError, ExtraHost, plan::Network};

const MAX_RESOLV_CONF_BYTES: u64 = 1 << 20;

/// Name servers when the host names none that a container can reach, as Docker has it.
const FALLBACK_NAMESERVERS: [&str; 4] =
    ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

pub(crate) fn hosts(hostname: &str, extra: &[ExtraHost]) -> Result<String, ExecError> {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, ip } in extra {
        if host.is_empty()
            || host.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b == b'#')
        {
            return Err(ExecError::Invalid {
                field: "extra host",
                value: host.clone(),
                reason: "is not a host name",
            });
        }
        writeln!(text, "{ip}\t{host}").expect("writing to a String cannot fail");
    }
    Ok(text)
}

pub(crate) fn resolv_conf(dns: &DnsConfig, network: Network) -> Result<String, ExecError> {
    let host = read_host("/etc/resolv.conf")?;
    // systemd-resolved's stub listens on the host's loopback only; its own list of servers is beside it.
    let host = if network != Network::Host && Resolver::parse(&host).nameservers == ["127.0.0.53"] {
        read_host("/run/systemd/resolve/resolv.conf")?
    } else {
        host
    };
    render(&host, dns, network)
}

/// The name servers that the host's own programs ask.
pub(crate) fn host_nameservers() -> Vec<IpAddr> {
    let text = read_host("/etc/resolv.conf").unwrap_or_default();
    let mut servers: Vec<_> =
        Resolver::parse(&text).nameservers.iter().filter_map(|server| server.parse().ok()).collect();
    if servers.is_empty() {
        // As resolv.conf(5) has it.
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    servers
}

fn read_host(path: &str) -> Result<String, ExecError> {
    let mut bytes = Vec::new();
    match std::fs::File::open(path).and_then(|file| file.take(MAX_RESOLV_CONF_BYTES).read_to_end(&mut bytes))
    {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ExecError::Io { doing: "read the host's resolv.conf", source }),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a `resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
    /// Lines of other kinds (`sortlist`), kept as they are.
    other: Vec<String>,
}

impl Resolver {
    /// As resolv.conf(5): the last `search` or `domain` line counts, `options` add up.
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(String::from);
            match words.next().as_deref() {
                None => {}
                Some(word) if word.starts_with(['#', ';']) => {}
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                Some(_) => resolver.other.push(line.trim().to_owned()),
            }
        }
        resolver
    }
}

fn render(host: &str, dns: &DnsConfig, network: Network) -> Result<String, ExecError> {
    dns.check()?;
    let mut resolver = Resolver::parse(host);
    for (said, own) in [
        (&dns.nameservers, &mut resolver.nameservers),
        (&dns.search, &mut resolver.search),
        (&dns.options, &mut resolver.options),
    ] {
        if !said.is_empty() {
            own.clone_from(said);
        }
    }
    // The host's loopback is out of reach from another network namespace.
    if network != Network::Host {
        resolver.nameservers.retain(|server| !is_loopback(server));
    }
    if let (Network::Sandbox { resolver: own }, true) = (network, resolver.nameservers.is_empty()) {
        resolver.nameservers.push(own.to_string());
    }
    if resolver.nameservers.is_empty() {
        resolver.nameservers = FALLBACK_NAMESERVERS.map(String::from).to_vec();
    }
    let mut text = String::new();
    for server in &resolver.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for (key, words) in [("search", &resolver.search), ("options", &resolver.options)] {
        if !words.is_empty() {
            text.push_str(&format!("{key} {}\n", words.join(" ")));
        }
    }
    for line in &resolver.other {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

impl DnsConfig {
    /// Errors: [`ExecError::Invalid`] names what `resolv.conf` cannot hold.
    pub fn check(&self) -> Result<(), ExecError> {
        if let Some(bad) = self.nameservers.iter().find(|server| !is_address(server)) {
            let (field, reason) = ("dns nameserver", "is not an IP address");
            return Err(ExecError::Invalid { field, value: bad.clone(), reason });
        }
        let is_bad = |word: &&String| {
            word.is_empty() || word.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
        };
        for (field, words) in [("dns search", &self.search), ("dns option", &self.options)] {
            if let Some(bad) = words.iter().find(is_bad) {
                return Err(ExecError::Invalid { field, value: bad.clone(), reason: "is not one word" });
            }
        }
        Ok(())
    }
}

/// The address before the zone, if it is one.
fn address(server: &str) -> Option<IpAddr> {
    server.split_once('%').map_or(server, |(address, _)| address).parse().ok()
}

fn is_address(server: &str) -> bool {
    address(server).is_some() && !server.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control())
}

fn is_loopback(server: &str) -> bool {
    address(server).is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_names_the_container_and_the_extra_hosts() {
        let extra = [ExtraHost { host: "db".into(), ip: "10.0.0.7".parse().unwrap() }];
        assert_eq!(
            hosts("buildkitsandbox", &extra).unwrap(),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.7\tdb\n"
        );
    }

    #[test]
    fn a_host_name_with_a_line_break_is_refused() {
        let extra = [ExtraHost { host: "db\n6.6.6.6 registry".into(), ip: "10.0.0.7".parse().unwrap() }];
        assert!(matches!(hosts("h", &extra), Err(ExecError::Invalid { field: "extra host", .. })));
    }

    #[test]
    fn resolv_conf_drops_loopback_servers_outside_the_host_network() {
        let host = "nameserver 127.0.0.1\nnameserver 10.0.0.2\nsearch a b\noptions ndots:2\n";
        let dns = DnsConfig::default();
        assert_eq!(
            render(host, &dns, Network::Empty).unwrap(),
            "nameserver 10.0.0.2\nsearch a b\noptions ndots:2\n"
        );
        assert_eq!(
            render(host, &dns, Network::Host).unwrap(),
            "nameserver 127.0.0.1\nnameserver 10.0.0.2\nsearch a b\noptions ndots:2\n"
        );
    }

    #[test]
    fn resolv_conf_takes_what_the_build_says_field_by_field() {
        let dns =
            DnsConfig { nameservers: vec!["1.1.1.1".into()], search: vec![], options: vec!["rotate".into()] };
        assert_eq!(
            render("nameserver 10.0.0.2\nsearch a\noptions ndots:2\n", &dns, Network::Host).unwrap(),
            "nameserver 1.1.1.1\nsearch a\noptions rotate\n"
        );
        let network = Network::Sandbox { resolver: "10.9.0.2".parse().unwrap() };
        let of = |host, servers: &[&str]| {
            let nameservers = servers.iter().map(ToString::to_string).collect();
            render(host, &DnsConfig { nameservers, ..DnsConfig::default() }, network).unwrap()
        };
        assert_eq!(of("nameserver 127.0.0.1\nsearch a\n", &[]), "nameserver 10.9.0.2\nsearch a\n");
        assert_eq!(of("", &[]), "nameserver 10.9.0.2\n");
        assert_eq!(of("nameserver 10.0.0.2\n", &["127.0.0.1"]), "nameserver 10.9.0.2\n");
        assert_eq!(of("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", &[]), "nameserver 10.0.0.2\n");
        let dns = DnsConfig { nameservers: vec!["one.one".into()], ..DnsConfig::default() };
        assert!(matches!(render("", &dns, Network::Host), Err(ExecError::Invalid { .. })));
    }
}
