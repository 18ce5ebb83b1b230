//! What a step may do beyond a sandbox. It takes two to allow it: the daemon's configuration, and the client, for this build.
//!
//! Checked when a graph is loaded, so that nothing of a build runs that may not run to its end. In BuildKit's words.

use std::{collections::BTreeMap, fmt, str::FromStr};

use lapstrake_builder_executor::{DeviceList, DeviceRequest, ExecError};
use lapstrake_builder_llb::pb;

use crate::{Engine, EngineError};

/// Something that a step may do only if it is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entitlement {
    /// Use the machine's network (`RUN --network=host`).
    NetworkHost,
    /// Be as good as root on the machine (`RUN --security=insecure`).
    SecurityInsecure,
    /// Use devices (`RUN --device`).
    Device,
}

impl Entitlement {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::NetworkHost, Self::SecurityInsecure, Self::Device];

    /// What a daemon allows whose configuration does not say: as dockerd.
    pub const DEFAULT: [Self; 2] = [Self::NetworkHost, Self::Device];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Entitlement {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let found = Self::ALL.into_iter().find(|entitlement| entitlement.as_str() == text);
        found.ok_or_else(|| EngineError::UnknownEntitlement { text: text.to_owned() })
    }
}

impl Engine {
    /// The devices of this machine, as their descriptions are now. Blocks.
    pub fn devices(&self) -> DeviceList {
        self.workshop().devices.scan()
    }
}

/// What a client grants its build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    network_host: bool,
    security_insecure: bool,
    devices: Option<DeviceGrant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum DeviceGrant {
    All,
    /// By the name that is granted; with the device that it stands for, where it is an alias.
    Named(BTreeMap<String, Option<String>>),
}

impl Grants {
    /// As clients write it (`--allow`, `SolveRequest.Entitlements`): an entitlement's name; of devices also `device=NAME` for one, and
    /// `device=NAME,alias=OTHER` for one that the Dockerfile calls otherwise.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, EngineError> {
        let mut grants = Self::default();
        for text in texts {
            match text.split_once('=') {
                Some(("device", name)) if !name.is_empty() => grants.add_device(name)?,
                Some(("device", _)) => grants.add(Entitlement::Device),
                _ => grants.add(text.parse()?),
            }
        }
        Ok(grants)
    }

    /// Grants one, of devices all.
    pub fn add(&mut self, entitlement: Entitlement) {
        match entitlement {
            Entitlement::NetworkHost => self.network_host = true,
            Entitlement::SecurityInsecure => self.security_insecure = true,
            Entitlement::Device => self.devices = Some(DeviceGrant::All),
        }
    }

    fn add_device(&mut self, text: &str) -> Result<(), EngineError> {
        let fail = |why: String| EngineError::DeviceGrant { text: text.to_owned(), why };
        let mut fields = text.split(',');
        let name = fields.next().unwrap_or_default();
        let mut alias = None;
        for field in fields {
            match field.split_once('=') {
                Some(("alias", value)) => alias = Some(value),
                Some((key, _)) => return Err(fail(format!("unknown device config key {key:?}"))),
                None => return Err(fail(format!("invalid device config {field:?}"))),
            }
        }
        let (name, stands_for) = match alias.filter(|alias| !alias.is_empty()) {
            Some(alias) => (alias, Some(name.to_owned())),
            None => (name, None),
        };
        match &mut self.devices {
            // All is all.
            Some(DeviceGrant::All) => {}
            Some(DeviceGrant::Named(names)) => _ = names.insert(name.to_owned(), stands_for),
            None => {
                let names = BTreeMap::from([(name.to_owned(), stands_for)]);
                self.devices = Some(DeviceGrant::Named(names));
            }
        }
        Ok(())
    }

    /// Whether anything of this kind is granted.
    pub fn has(&self, entitlement: Entitlement) -> bool {
        match entitlement {
            Entitlement::NetworkHost => self.network_host,
            Entitlement::SecurityInsecure => self.security_insecure,
            Entitlement::Device => self.devices.is_some(),
        }
    }

    /// Errors: what is granted must be what the daemon allows.
    pub(crate) fn check(&self, allowed: &[Entitlement]) -> Result<(), EngineError> {
        let beyond = |one: &Entitlement| self.has(*one) && !allowed.contains(one);
        match Entitlement::ALL.into_iter().find(beyond) {
            Some(entitlement) => Err(EngineError::NotGrantable { entitlement }),
            None => Ok(()),
        }
    }

    /// Whether a process may be run. `devices` are those of this machine, asked for only if it wants some.
    ///
    /// Answers with the devices that it is to get, where they are others than it says: each by its own name, granted ones alone.
    pub(crate) fn admit(
        &self,
        op: &pb::ExecOp,
        devices: impl FnOnce() -> DeviceList,
    ) -> Result<Option<Vec<pb::CdiDevice>>, Refusal> {
        if op.network() == pb::NetMode::Host && !self.network_host {
            return Err(Refusal::Entitlement(Entitlement::NetworkHost));
        }
        if op.security() == pb::SecurityMode::Insecure && !self.security_insecure {
            return Err(Refusal::Entitlement(Entitlement::SecurityInsecure));
        }
        if op.cdi_devices.is_empty() {
            return Ok(None);
        }
        let devices = devices();
        let names = match &self.devices {
            None => &BTreeMap::new(),
            Some(DeviceGrant::Named(names)) => names,
            Some(DeviceGrant::All) => {
                devices.find(requests(&op.cdi_devices))?;
                return Ok(None);
            }
        };
        let mut admitted = Vec::new();
        let mut plain = Vec::new();
        for device in &op.cdi_devices {
            match names.get(&device.name) {
                Some(Some(name)) => {
                    admitted.push(pb::CdiDevice { name: name.clone(), optional: device.optional });
                }
                _ => plain.push(device.clone()),
            }
        }
        devices.find(requests(&admitted))?;
        let granted = names.iter().filter(|(_, stands_for)| stands_for.is_none());
        let granted = devices.find(granted.map(|(name, _)| DeviceRequest { name, optional: true }))?;
        let wanted = devices.find(requests(&plain))?;
        let may = |name: &String| granted.contains(name) || devices.is_auto_allowed(name);
        let (may, must_not): (Vec<String>, Vec<String>) = wanted.into_iter().partition(may);
        if !must_not.is_empty() {
            return Err(Refusal::Devices(must_not));
        }
        admitted.extend(may.into_iter().map(|name| pb::CdiDevice { name, optional: false }));
        Ok(Some(admitted))
    }
}

/// A step's devices, as they are looked up.
pub(crate) fn requests(devices: &[pb::CdiDevice]) -> impl Iterator<Item = DeviceRequest<'_>> {
    devices.iter().map(|device| DeviceRequest { name: &device.name, optional: device.optional })
}

/// Why a process may not be run.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not granted.
    #[error("{0} is not allowed")]
    Entitlement(Entitlement),
    /// Devices are not granted.
    #[error(
        "device{} {} {} requested by the build but not allowed",
        if .0.len() == 1 { "" } else { "s" },
        .0.join(", "),
        if .0.len() == 1 { "is" } else { "are" }
    )]
    Devices(Vec<String>),
    /// A device is not there.
    #[error(transparent)]
    Device(#[from] ExecError),
}

#[cfg(test)]
mod tests {
    use lapstrake_builder_executor::CdiDevices;

    use super::*;

    fn grants(texts: &[&str]) -> Grants {
        Grants::parse(texts.iter().copied()).unwrap()
    }

    fn exec(network: pb::NetMode, security: pb::SecurityMode, devices: &[&str]) -> pb::ExecOp {
        pb::ExecOp {
            network: network.into(),
            security: security.into(),
            cdi_devices: devices
                .iter()
                .map(|name| match name.strip_prefix('?') {
                    Some(name) => pb::CdiDevice { name: name.to_owned(), optional: true },
                    None => pb::CdiDevice { name: (*name).to_owned(), optional: false },
                })
                .collect(),
            ..pb::ExecOp::default()
        }
    }

    #[test]
    fn a_daemon_must_allow_what_a_client_grants() {
        let refused = |texts: &[&str], allowed: &[Entitlement]| {
            grants(texts).check(allowed).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&["network.host", "device=x"], &Entitlement::DEFAULT), Ok(()));
        assert_eq!(
            refused(&["security.insecure"], &Entitlement::DEFAULT).unwrap_err(),
            "granting entitlement security.insecure is not allowed by build daemon configuration"
        );
        assert!(refused(&["device=x"], &[Entitlement::NetworkHost]).unwrap_err().contains("device"));
        assert_eq!(refused(&[], &[]), Ok(()));
        for (text, error) in [
            ("network.hosts", "unknown entitlement network.hosts"),
            ("", "unknown entitlement "),
            ("network.host=1", "unknown entitlement network.host=1"),
            ("device=a,b", "device \"a,b\": invalid device config \"b\""),
            ("device=a,b=c", "device \"a,b=c\": unknown device config key \"b\""),
        ] {
            assert_eq!(Grants::parse([text]).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_client_must_grant_what_a_step_does() {
        use pb::{NetMode, SecurityMode};
        let refused = |texts: &[&str], op: &pb::ExecOp| {
            grants(texts).admit(op, || panic!("no device was asked for")).map_err(|error| error.to_string())
        };
        let plain = exec(NetMode::None, SecurityMode::Sandbox, &[]);
        let host = exec(NetMode::Host, SecurityMode::Sandbox, &[]);
        let insecure = exec(NetMode::Unset, SecurityMode::Insecure, &[]);
        assert_eq!(refused(&[], &plain), Ok(None));
        assert_eq!(refused(&[], &host).unwrap_err(), "network.host is not allowed");
        assert_eq!(refused(&["network.host"], &host), Ok(None));
        assert_eq!(refused(&["network.host"], &insecure).unwrap_err(), "security.insecure is not allowed");
        assert_eq!(refused(&["security.insecure"], &insecure), Ok(None));
    }

    #[test]
    fn devices_are_granted_all_by_name_or_by_alias() {
        let dir = tempfile::tempdir().unwrap();
        let spec = r#"{"cdiVersion":"0.6.0","kind":"v.com/a","devices":[
            {"name":"x","containerEdits":{"env":["X=1"]}},
            {"name":"y","containerEdits":{"env":["Y=1"]}},
            {"name":"free","containerEdits":{"env":["Z=1"]}}]}"#;
        std::fs::write(dir.path().join("a.json"), spec).unwrap();
        let devices = CdiDevices {
            directories: vec![dir.path().to_owned()],
            auto_allowed: vec!["v.com/a=free".to_owned()],
        };
        let admit = |texts: &[&str], asked: &[&str]| {
            let op = exec(pb::NetMode::Unset, pb::SecurityMode::Sandbox, asked);
            let admitted = grants(texts).admit(&op, || devices.scan()).map_err(|error| error.to_string())?;
            Ok::<_, String>(admitted.map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>()))
        };
        let only = |name: &str| Ok(Some(vec![name.to_owned()]));
        assert_eq!(admit(&["device"], &["v.com/a=x"]), Ok(None));
        assert_eq!(admit(&["device=v.com/a=x"], &["v.com/a=x"]), only("v.com/a=x"));
        assert_eq!(admit(&["device=v.com/a=*"], &["v.com/a=y"]), only("v.com/a=y"));
        assert_eq!(admit(&["device=v.com/a=x,alias=gpu"], &["gpu"]), only("v.com/a=x"));
        assert_eq!(admit(&[], &["v.com/a=free"]), only("v.com/a=free"));
        assert_eq!(admit(&[], &["?v.com/b"]), Ok(Some(vec![])));
        assert_eq!(
            admit(&["device=v.com/a=x"], &["v.com/a=y"]).unwrap_err(),
            "device v.com/a=y is requested by the build but not allowed"
        );
        assert_eq!(
            admit(&[], &["v.com/a=*"]).unwrap_err(),
            "devices v.com/a=x, v.com/a=y are requested by the build but not allowed"
        );
        for texts in [&["device"][..], &[]] {
            assert_eq!(
                admit(texts, &["v.com/b"]).unwrap_err(),
                "required device \"v.com/b\" is not registered"
            );
        }
        // An alias grants what it stands for by that name alone.
        assert!(admit(&["device=v.com/a=x,alias=gpu"], &["v.com/a=x"]).is_err());
    }
}
