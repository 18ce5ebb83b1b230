//! `EXPOSE`: ports, port ranges, and what looks like `docker run --publish`.

use super::dispatch::At;
use super::{LowerError, Lowered, Lowering};
use crate::instructions::Expose;
use crate::lint::Rule;
use crate::text::go_quote;

/// A port or range as it was written.
struct PortSpec {
    ip: String,
    host_port: String,
    protocol: String,
    ports: Vec<String>,
}

impl Lowering<'_> {
    pub(super) fn expose(&mut self, at: &At, expose: &Expose) -> Lowered<()> {
        let env = self.stages[at.stage].state.meta().env.clone();
        // What cannot be expanded is told before what is no port.
        let mut texts = Vec::with_capacity(expose.ports.len());
        for word in &expose.ports {
            texts.extend(self.lexer.split(word, &env).map_err(|e| LowerError::Word(e).at(at.lines))?);
        }
        let mut exposed = Vec::new();
        for text in &texts {
            let spec = parse(text).map_err(|problem| LowerError::Port(problem).at(at.lines))?;
            if spec.protocol != spec.protocol.to_lowercase() {
                let message = format!("Defined protocol '{text}' in EXPOSE instruction should be lowercase");
                self.warn(at, Rule::ExposeProtoCasing, message);
            }
            if !spec.ip.is_empty() || !spec.host_port.is_empty() {
                let message = format!(
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'"
                );
                self.warn(at, Rule::ExposeInvalidFormat, message);
            }
            exposed.extend(spec.ports);
        }
        let created_by = match self.is_classic() {
            true => format!("EXPOSE {}", texts.join(" ")),
            false => format!("EXPOSE [{}]", exposed.join(" ")),
        };
        self.stages[at.stage].image.config.exposed_ports.extend(exposed);
        self.commit(at.stage, created_by, false);
        Ok(())
    }
}

fn parse(text: &str) -> Result<PortSpec, String> {
    let (ip, host_port, container) = split_parts(text);
    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(format!("invalid port: {}: no port specified", go_quote(text)));
    }
    let protocol = if protocol.is_empty() { "tcp" } else { protocol };
    if !matches!(protocol.to_lowercase().as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid port: {}: invalid proto: {protocol}", go_quote(text)));
    }
    let bare_ip = match ip.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(|| format!("invalid IP address {ip}"))?,
        None => ip,
    };
    if !bare_ip.is_empty() && bare_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare_ip}"));
    }
    let (start, end) = range(port).ok_or_else(|| format!("invalid containerPort: {port}"))?;
    if !host_port.is_empty() {
        let (host_start, host_end) =
            range(host_port).ok_or_else(|| format!("invalid hostPort: {host_port}"))?;
        if end - start != host_end - host_start && end != start {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {port} and {host_port}"
            ));
        }
    }
    let lower = protocol.to_lowercase();
    Ok(PortSpec {
        ip: ip.to_owned(),
        host_port: host_port.to_owned(),
        protocol: protocol.to_owned(),
        ports: (start..=end).map(|port| format!("{port}/{lower}")).collect(),
    })
}

/// `[[ip:]host-port:]port`; an IPv6 address has colons of its own.
fn split_parts(text: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = text.rsplit_once(':') else { return ("", "", text) };
    match rest.rsplit_once(':') {
        Some((ip, host_port)) => (ip, host_port, container),
        None => ("", rest, container),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.parse::<u16>().ok();
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((start, end)) => {
            let (start, end) = (number(start)?, number(end)?);
            (start <= end).then_some((start, end))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_ranges_and_mappings_are_read() {
        for (text, expected) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("8000-8002/sctp", "8000/sctp 8001/sctp 8002/sctp"),
            ("8080:80", "80/tcp"),
            ("127.0.0.1:8080:80", "80/tcp"),
            ("[::1]:8080:80", "80/tcp"),
            ("8000-9000:80", "80/tcp"),
        ] {
            assert_eq!(parse(text).map(|spec| spec.ports.join(" ")).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("", "invalid port: \"\": no port specified"),
            ("80/icmp", "invalid port: \"80/icmp\": invalid proto: icmp"),
            ("x", "invalid containerPort: x"),
            ("70000", "invalid containerPort: 70000"),
            ("9-8", "invalid containerPort: 9-8"),
            ("x:80", "invalid hostPort: x"),
            ("1-3:80-81", "invalid ranges specified for container and host Ports: 80-81 and 1-3"),
            ("host:1:80", "invalid IP address: host"),
        ] {
            assert_eq!(parse(text).map(|spec| spec.ports).unwrap_err(), expected, "{text}");
        }
    }
}
