//! Platforms: parsing, normal form and text, with containerd's rules.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{OciError, descriptor::null_default};

/// What an image runs on. Fields are in the order the OCI specification's Go type has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture in Go's names, such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Operating system in Go's names, such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Windows build, such as `10.0.17763.1879`.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Required features of the operating system.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// CPU variant, such as `v7`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// A platform without a variant.
    pub fn new(os: impl Into<String>, architecture: impl Into<String>) -> Platform {
        Platform { os: os.into(), architecture: architecture.into(), ..Platform::default() }
    }

    /// The same with a variant.
    pub fn with_variant(mut self, variant: impl Into<String>) -> Platform {
        self.variant = variant.into();
        self
    }

    /// The platform this program was compiled for, in normal form (`linux/amd64`, `linux/arm64`, `linux/arm/v7`).
    pub fn host() -> Platform {
        Platform::new(host_os(), host_architecture()).normalized()
    }

    /// Parses `os[(version[+feature…])][/arch[/variant]]` or `arch`, as containerd's `platforms.Parse`.
    pub fn parse(specifier: &str) -> Result<Platform, OciError> {
        let fail = |reason| OciError::Platform { specifier: specifier.to_owned(), reason };
        if specifier.contains('*') {
            return Err(fail("wildcards not yet supported"));
        }
        let parts: Vec<&str> = specifier.splitn(4, '/').collect();
        let mut p = parse_os(parts[0]).map_err(fail)?;
        if !parts[1..].iter().all(|c| is_component(c)) {
            return Err(fail("a component must match [A-Za-z0-9_.-]+"));
        }
        match parts[..] {
            [_] if is_known_os(&p.os) => {
                p.architecture = host_architecture().to_owned();
                Ok(p)
            }
            [arch] => {
                (p.architecture, p.variant) = normalize_arch(arch, "");
                drop_default_arm(&mut p);
                if !is_known_arch(&p.architecture) {
                    return Err(fail("unknown operating system or architecture"));
                }
                p.os = host_os().to_owned();
                Ok(p)
            }
            [_, arch] => {
                (p.architecture, p.variant) = normalize_arch(arch, "");
                drop_default_arm(&mut p);
                Ok(p)
            }
            [_, arch, variant] => {
                (p.architecture, p.variant) = normalize_arch(arch, variant);
                if p.architecture == "arm64" && p.variant.is_empty() {
                    p.variant = "v8".to_owned();
                }
                Ok(p)
            }
            _ => Err(fail("cannot parse platform specifier")),
        }
    }

    /// The form in which platforms are compared: Go's names, default variants made uniform (`arm` → `arm/v7`,
    /// `arm64/v8` → `arm64`, `amd64/v1` → `amd64`), features sorted.
    pub fn normalized(&self) -> Platform {
        let (architecture, variant) = normalize_arch(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Platform {
            architecture,
            os: normalize_os(&self.os),
            os_version: self.os_version.clone(),
            os_features,
            variant,
        }
    }

    /// The text with version and features, `windows(10.0.17763)/amd64`, as `platforms.FormatAll`.
    pub fn to_full_string(&self) -> String {
        if self.os.is_empty() || (self.os_version.is_empty() && self.os_features.is_empty()) {
            return self.to_string();
        }
        let mut features: Vec<&String> = self.os_features.iter().filter(|f| !f.is_empty()).collect();
        features.sort();
        features.dedup();
        let mut os = format!("{}({}", self.os, encode_option(&self.os_version));
        for f in features {
            os.push('+');
            os.push_str(&encode_option(f));
        }
        os.push(')');
        join(&[&os, &self.architecture, &self.variant])
    }
}

/// Parses `arm` and `linux/arm` without a variant, as containerd does: the default `v7` is left unsaid.
fn drop_default_arm(p: &mut Platform) {
    if p.architecture == "arm" && p.variant == "v7" {
        p.variant.clear();
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&join(&[&self.os, &self.architecture, &self.variant]))
    }
}

impl FromStr for Platform {
    type Err = OciError;
    fn from_str(s: &str) -> Result<Platform, OciError> {
        Platform::parse(s)
    }
}

fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    parts.join("/")
}

fn parse_os(part: &str) -> Result<Platform, &'static str> {
    const BAD: &str = "the OS component must be a name, or name(version+feature…)";
    let (name, options) = match part.split_once('(') {
        None => (part, ""),
        Some((name, rest)) => (name, rest.strip_suffix(')').ok_or(BAD)?),
    };
    let name_ok =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let mut options = options.split('+');
    let version = options.next().unwrap_or_default();
    let features: Vec<&str> = options.collect();
    let option_ok =
        |o: &str| o.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'%' | b'-'));
    if !name_ok || !option_ok(version) || !features.iter().all(|f| !f.is_empty() && option_ok(f)) {
        return Err(BAD);
    }
    Ok(Platform {
        os: normalize_os(name),
        os_version: decode_option(version)?,
        os_features: features.into_iter().map(decode_option).collect::<Result<_, _>>()?,
        ..Platform::default()
    })
}

/// Whatever the grammar does not have is escaped, so that it can be read again.
fn encode_option(v: &str) -> String {
    let mut out = String::with_capacity(v.len());
    for byte in v.bytes() {
        match byte {
            b'_' | b'.' | b'-' => out.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decode_option(v: &str) -> Result<String, &'static str> {
    const BAD: &str = "bad percent-encoding in the OS version or feature";
    let mut out = Vec::with_capacity(v.len());
    let mut bytes = v.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let pair = [bytes.next().ok_or(BAD)?, bytes.next().ok_or(BAD)?];
        let mut decoded = [0u8];
        hex::decode_to_slice(pair, &mut decoded).map_err(|_| BAD)?;
        out.push(decoded[0]);
    }
    String::from_utf8(out).map_err(|_| BAD)
}

fn is_component(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn host_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    }
}

fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86" => "386",
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        arch => arch,
    }
}

fn normalize_os(os: &str) -> String {
    if os.is_empty() {
        return host_os().to_owned();
    }
    let os = os.to_lowercase();
    if os == "macos" { "darwin".to_owned() } else { os }
}

fn normalize_arch(arch: &str, variant: &str) -> (String, String) {
    let (arch, variant) = (arch.to_lowercase(), variant.to_lowercase());
    let (arch, variant): (&str, &str) = match (arch.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (a, v) => (a, v),
    };
    (arch.to_owned(), variant.to_owned())
}

fn is_known_os(os: &str) -> bool {
    const KNOWN: &[&str] = &[
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "hurd",
        "illumos",
        "ios",
        "js",
        "linux",
        "nacl",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "windows",
        "zos",
    ];
    KNOWN.contains(&os)
}

fn is_known_arch(arch: &str) -> bool {
    const KNOWN: &[&str] = &[
        "386",
        "amd64",
        "amd64p32",
        "arm",
        "armbe",
        "arm64",
        "arm64be",
        "ppc64",
        "ppc64le",
        "loong64",
        "mips",
        "mipsle",
        "mips64",
        "mips64le",
        "mips64p32",
        "mips64p32le",
        "ppc",
        "riscv",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
        "sparc64",
        "wasm",
    ];
    KNOWN.contains(&arch)
}
