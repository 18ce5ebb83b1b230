//! What the daemon is to be: command line over configuration file over defaults. Decided once, before anything is opened.

use std::path::{Path, PathBuf};

use lapstrake_api_types::HostGateway;
use lapstrake_builder_engine::{CdiDevices, Entitlement, Frontends};
use lapstrake_builder_executor::{DnsConfig, NetworkOptions};
use lapstrake_graphdriver_adapter::DriverKind;
use lapstrake_layerstore_registry::RegistryConfig;

use crate::{
    cli::{DaemonArgs, StoreArgs},
    config::{ConfigFile, Gc, Snapshotter},
    error::ProgramError,
    host::Host,
    logging::{LogFormat, LogLevel},
    rootless,
};

/// Where BuildKit's and our configuration is looked for when none is named. It need not be there.
const CONFIG_FILE: &str = "/etc/lapstrake/buildkitd.toml";

/// What the store and the engine are made with; common to the daemon and to builds without one.
#[derive(Debug, PartialEq)]
pub(crate) struct StoreSettings {
    /// The store's directory.
    pub(crate) root: PathBuf,
    /// The graph driver; what works there when not said.
    pub(crate) driver: Option<DriverKind>,
    /// An OCI runtime in place of the native executor.
    pub(crate) oci_runtime: Option<PathBuf>,
    /// A seccomp profile in place of Docker's default.
    pub(crate) seccomp_profile: Option<PathBuf>,
    /// Steps that may use the machine at once.
    pub(crate) parallelism: usize,
    /// Which frontends are served by the built-in one.
    pub(crate) frontends: Frontends,
    /// What clients may grant their builds, if that is said.
    pub(crate) entitlements: Option<Vec<Entitlement>>,
    /// Where devices for steps are described.
    pub(crate) devices: CdiDevices,
    /// What steps get for a network.
    pub(crate) network: NetworkOptions,
    /// Registries by host.
    pub(crate) registry: RegistryConfig,
    /// What `host-gateway` means in builds, if that is said.
    pub(crate) host_gateway: Option<HostGateway>,
    /// How the cache is pruned without being asked.
    pub(crate) gc: Gc,
    /// How lines of the log are written.
    pub(crate) log_format: LogFormat,
    /// How much is logged.
    pub(crate) log_level: LogLevel,
    /// How much of the build history is kept.
    pub(crate) history: lapstrake_builder_history::Limits,
    /// What the configuration says that has no effect.
    pub(crate) doubts: Vec<String>,
}

/// How TCP listeners are secured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TcpSecurity {
    /// Clients show a certificate.
    Mutual {
        /// PEM file of the server's certificate.
        cert: PathBuf,
        /// PEM file of its key.
        key: PathBuf,
        /// PEM file of the authority that clients' certificates come from.
        ca: PathBuf,
    },
    /// Encrypted, open to everybody who can connect.
    ServerOnly {
        /// PEM file of the server's certificate.
        cert: PathBuf,
        /// PEM file of its key.
        key: PathBuf,
    },
    /// Neither encrypted nor closed.
    Plain,
}

/// What the daemon is to be.
#[derive(Debug, PartialEq)]
pub(crate) struct DaemonSettings {
    /// The store and the engine.
    pub(crate) store: StoreSettings,
    /// Where to listen; at least one.
    pub(crate) hosts: Vec<Host>,
    /// For those that are TCP.
    pub(crate) tcp: TcpSecurity,
    /// Whether TCP may be open to everybody who can connect.
    pub(crate) insecure_tcp: bool,
    /// The group of unix sockets: a name or a number.
    pub(crate) group: Option<String>,
    /// Whether failed steps are kept of builds that do not say it.
    pub(crate) keep_failed: bool,
    /// Where to write the process id.
    pub(crate) pid_file: Option<PathBuf>,
}

impl StoreSettings {
    /// Reads the configuration and puts the command line over it.
    pub(crate) fn new(args: &StoreArgs) -> Result<(Self, ConfigFile), ProgramError> {
        let file = match &args.config {
            Some(path) => ConfigFile::read(path)?,
            None if Path::new(CONFIG_FILE).exists() => ConfigFile::read(Path::new(CONFIG_FILE))?,
            None => ConfigFile::default(),
        };
        Self::merge(args, file)
    }

    /// Pure but for the defaults, which depend on who runs this.
    fn merge(args: &StoreArgs, mut file: ConfigFile) -> Result<(Self, ConfigFile), ProgramError> {
        let driver = args.storage_driver.or(match file.worker.oci.snapshotter {
            None | Some(Snapshotter::Auto) => None,
            Some(Snapshotter::Overlayfs) => Some(DriverKind::Overlay2),
            Some(Snapshotter::Native) => Some(DriverKind::Vfs),
        });
        let log_level = match (file.trace, args.debug || file.debug) {
            (true, _) => LogLevel::Trace,
            (_, true) => LogLevel::Debug,
            _ => LogLevel::Info,
        };
        let root = args.root.clone().or(file.root.take()).unwrap_or_else(default_root);
        let gc = file.worker.take_gc();
        // Whatever the disk's size: a rule that means nothing is told before anything is opened.
        gc.rules(0)?;
        let root = std::path::absolute(&root).map_err(ProgramError::file("find", root))?;
        let network = network(args, &mut file, &root)?;
        let settings = Self {
            root,
            driver,
            oci_runtime: args.oci_runtime.clone().or(file.worker.oci.binary.take()),
            seccomp_profile: args.seccomp_profile.clone(),
            parallelism: file
                .worker
                .oci
                .max_parallelism
                .filter(|most| *most > 0)
                .unwrap_or_else(default_parallelism),
            frontends: file.frontend.dockerfile.frontends(),
            entitlements: file.entitlements.take(),
            devices: std::mem::take(&mut file.cdi).devices(),
            network,
            registry: std::mem::take(&mut file.registry),
            host_gateway: HostGateway::new(args.host_gateway_ip.clone())
                .map_err(|why| ProgramError::setting("--host-gateway-ip", why))?,
            gc,
            log_format: args.log_format.or(file.log.format).unwrap_or_default(),
            log_level,
            history: file.history.limits(),
            doubts: std::mem::take(&mut file.doubts),
        };
        Ok((settings, file))
    }
}

impl StoreSettings {
    /// What clients may grant their builds: what is said, else `default`; as with BuildKit devices exactly if there may be some.
    pub(crate) fn allowed(&self, default: &[Entitlement]) -> Vec<Entitlement> {
        let said = self.entitlements.as_deref().unwrap_or(default).iter().copied();
        let device = (!self.devices.directories.is_empty()).then_some(Entitlement::Device);
        said.filter(|one| *one != Entitlement::Device).chain(device).collect()
    }
}

impl DaemonSettings {
    /// Reads the configuration and puts the command line over it.
    pub(crate) fn new(args: &DaemonArgs) -> Result<Self, ProgramError> {
        let (store, file) = StoreSettings::new(&args.store)?;
        Self::merge(args, store, file)
    }

    fn merge(args: &DaemonArgs, mut store: StoreSettings, file: ConfigFile) -> Result<Self, ProgramError> {
        if !args.allow_insecure_entitlement.is_empty() {
            store.entitlements = Some(args.allow_insecure_entitlement.clone());
        }
        if args.cdi_disabled {
            store.devices = CdiDevices::disabled();
        } else if !args.cdi_spec_dir.is_empty() {
            store.devices.directories = args.cdi_spec_dir.clone();
        }
        let mut hosts = args.host.clone();
        if hosts.is_empty() {
            for text in &file.grpc.address {
                let host = text.parse().map_err(|why| {
                    ProgramError::setting(format!("configuration: grpc.address {text:?}"), why)
                })?;
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            let has_no_place = std::env::var_os("XDG_RUNTIME_DIR").is_none_or(|dir| dir.is_empty());
            if rootless::is_ordinary_user() && has_no_place {
                let why =
                    "XDG_RUNTIME_DIR is not set: say where to listen, such as unix:///path/lapstrake.sock";
                return Err(ProgramError::setting("--host", why));
            }
            hosts.push(Host::default_socket());
        }
        let tcp = tcp_security(args, file.grpc.tls)?;
        let is_open = !matches!(tcp, TcpSecurity::Mutual { .. });
        if let Some(host) = hosts.iter().find(|host| matches!(host, Host::Tcp(_)))
            && is_open
            && !args.insecure_tcp
        {
            return Err(ProgramError::setting(
                host.to_string(),
                "whoever can connect is as good as root on this machine: give --tlscacert, --tlscert and --tlskey, so that \
                 clients must show a certificate; or, if everybody may, --insecure-tcp",
            ));
        }
        let group = args.group.clone().or_else(|| file.grpc.gid.map(|gid| gid.to_string()));
        Ok(Self {
            store,
            hosts,
            tcp,
            insecure_tcp: args.insecure_tcp,
            group,
            keep_failed: args.keep_failed || file.keep_failed,
            pid_file: args.pidfile.clone(),
        })
    }
}

fn tcp_security(args: &DaemonArgs, file: crate::config::Tls) -> Result<TcpSecurity, ProgramError> {
    let cert = args.tlscert.clone().or(file.cert);
    let key = args.tlskey.clone().or(file.key);
    let ca = args.tlscacert.clone().or(file.ca);
    let wanted = args.tls || args.tlsverify;
    match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Ok(TcpSecurity::Mutual { cert, key, ca }),
        (_, _, None) if args.tlsverify => {
            Err(ProgramError::setting("--tlsverify", "needs --tlscacert: whose certificates to accept"))
        }
        (Some(cert), Some(key), None) => Ok(TcpSecurity::ServerOnly { cert, key }),
        (None, None, None) if !wanted => Ok(TcpSecurity::Plain),
        (None, _, _) => Err(ProgramError::setting("TLS", "needs --tlscert: the daemon's certificate")),
        (Some(_), None, _) => {
            Err(ProgramError::setting("TLS", "needs --tlskey: the key of the daemon's certificate"))
        }
    }
}

/// What steps get for a network: command line over file over defaults, field by field.
fn network(args: &StoreArgs, file: &mut ConfigFile, root: &Path) -> Result<NetworkOptions, ProgramError> {
    let default = NetworkOptions::default();
    let worker = &file.worker.oci;
    let dns = std::mem::take(&mut file.dns);
    let first = |line: Vec<String>, file: Vec<String>| if line.is_empty() { file } else { line };
    let dns = DnsConfig {
        nameservers: first(args.dns.iter().map(ToString::to_string).collect(), dns.servers()),
        search: first(args.dns_search.clone(), dns.search_domains),
        options: first(args.dns_opt.clone(), dns.options),
    };
    dns.check()?;
    Ok(NetworkOptions {
        default: worker.network_mode.map_or(default.default, Into::into),
        owner: root.to_string_lossy().into_owned(),
        subnet: worker.bridge_subnet.map(|subnet| subnet.0),
        pool: worker.pool_size.filter(|size| *size > 0).unwrap_or(default.pool),
        dns,
    })
}

fn default_root() -> PathBuf {
    if !rootless::is_ordinary_user() {
        return PathBuf::from("/var/lib/lapstrake");
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share");
    data.unwrap_or_else(home).join("lapstrake")
}

/// Steps wait for disks and networks as much as for processors.
fn default_parallelism() -> usize {
    std::thread::available_parallelism().map_or(4, |count| count.get() * 2)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn settings(args: &[&str], config: &str) -> Result<DaemonSettings, String> {
        let cli =
            Cli::try_parse_from(["lapstrake", "daemon"].iter().chain(args)).map_err(|e| e.to_string())?;
        let Command::Daemon(args) = cli.command else { panic!("daemon was asked for") };
        let file = ConfigFile::parse(config).unwrap();
        let (store, file) = StoreSettings::merge(&args.store, file).unwrap();
        DaemonSettings::merge(&args, store, file).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_that_before_defaults() {
        let config = "root = \"/file\"\n[grpc]\naddress = [\"unix:///file.sock\"]\n[worker.oci]\nsnapshotter = \"native\"";
        let from_file = settings(&[], config).unwrap();
        assert_eq!(from_file.hosts, [Host::Unix("/file.sock".into())]);
        assert_eq!(from_file.store.root, Path::new("/file"));
        assert_eq!(from_file.store.driver, Some(DriverKind::Vfs));
        let args = ["-H", "unix:///a.sock", "-H", "fd://", "--root", "/line", "--storage-driver", "overlay2"];
        let from_line = settings(&args, config).unwrap();
        assert_eq!(from_line.hosts, [Host::Unix("/a.sock".into()), Host::Inherited(None)]);
        assert_eq!(from_line.store.root, Path::new("/line"));
        assert_eq!(from_line.store.driver, Some(DriverKind::Overlay2));
        let default = settings(&[], "").unwrap();
        assert_eq!(default.hosts, [Host::default_socket()]);
        assert_eq!(default.store.driver, None);
        assert!(default.store.parallelism >= 1);
    }

    #[test]
    fn failed_steps_are_kept_when_somebody_says_so() {
        let keeps = |args: &[&str], config: &str| settings(args, config).unwrap().keep_failed;
        assert!(!keeps(&[], "") && !keeps(&[], "keepFailed = false"));
        assert!(keeps(&["--keep-failed"], "") && keeps(&[], "keepFailed = true"));
    }

    #[test]
    fn name_servers_of_the_command_line_go_before_the_files() {
        let config = "root = \"/r\"\n[dns]\nnameservers = [\"10.0.0.1\"]\noptions = [\"ndots:1\"]\nsearchDomains = [\"a.example\"]";
        let network =
            settings(&["--dns", "10.0.0.2", "--dns", "fd00::1", "--dns-search", "b.example"], config);
        let network = network.unwrap().store.network;
        assert_eq!(network.owner, "/r");
        assert_eq!(network.dns.nameservers, ["10.0.0.2", "fd00::1"]);
        assert_eq!(network.dns.search, ["b.example"]);
        assert_eq!(network.dns.options, ["ndots:1"]);
        assert!(settings(&["--dns", "dns.example"], "").unwrap_err().contains("dns.example"));
        assert_eq!(settings(&[], "").unwrap().store.network.dns, DnsConfig::default());
    }

    #[test]
    fn a_resolver_option_of_two_words_is_refused() {
        let cli = Cli::try_parse_from(["lapstrake", "daemon", "--dns-opt", "a b"]).unwrap();
        let Command::Daemon(args) = cli.command else { panic!("daemon was asked for") };
        let error = StoreSettings::merge(&args.store, ConfigFile::default()).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("\"a b\""), "{error}: {why}");
    }

    #[test]
    fn tcp_without_client_certificates_is_refused_unless_asked_for_by_name() {
        let refused = |args: &[&str]| settings(args, "").unwrap_err();
        let open = "whoever can connect is as good as root";
        assert!(refused(&["-H", "tcp://127.0.0.1:1"]).contains(open));
        assert!(refused(&["-H", "tcp://0.0.0.0:1", "--tlscert", "c", "--tlskey", "k"]).contains(open));
        assert!(
            refused(&["-H", "tcp://:1", "--tlsverify", "--tlscert", "c", "--tlskey", "k"])
                .contains("--tlscacert")
        );
        assert!(refused(&["-H", "tcp://:1", "--tls"]).contains("--tlscert"));
        assert!(refused(&["-H", "tcp://:1", "--tlscert", "c"]).contains("--tlskey"));
        let plain = settings(&["-H", "tcp://127.0.0.1:1", "--insecure-tcp"], "").unwrap();
        assert_eq!(plain.tcp, TcpSecurity::Plain);
        let args = ["-H", "tcp://:1", "--tlscacert", "a", "--tlscert", "c", "--tlskey", "k"];
        let mutual = settings(&args, "").unwrap();
        let (cert, key, ca) = ("c".into(), "k".into(), "a".into());
        assert_eq!(mutual.tcp, TcpSecurity::Mutual { cert, key, ca });
    }

    #[test]
    fn what_may_be_granted_is_dockerds_unless_said() {
        use Entitlement::{Device, NetworkHost, SecurityInsecure};
        let allowed = |args: &[&str], config: &str| {
            settings(args, config).map(|settings| settings.store.allowed(&Entitlement::DEFAULT))
        };
        let file = "insecure-entitlements = [\"security.insecure\"]";
        assert_eq!(allowed(&[], ""), Ok(vec![NetworkHost, Device]));
        assert_eq!(allowed(&[], file), Ok(vec![SecurityInsecure, Device]));
        assert_eq!(allowed(&[], "insecure-entitlements = []"), Ok(vec![Device]));
        let line = ["--allow-insecure-entitlement", "network.host"];
        assert_eq!(allowed(&line, file), Ok(vec![NetworkHost, Device]));
        assert_eq!(allowed(&["--cdi-disabled"], file), Ok(vec![SecurityInsecure]));
        assert_eq!(allowed(&[], "[cdi]\ndisabled = true"), Ok(vec![NetworkHost]));
        let dirs = settings(&["--cdi-spec-dir", "/x"], "[cdi]\nspecDirs = [\"/y\"]").unwrap();
        assert_eq!(dirs.store.devices.directories, [Path::new("/x")]);
        let error = allowed(&["--allow-insecure-entitlement", "everything"], "").unwrap_err();
        assert!(error.contains("unknown entitlement everything"), "{error}");
    }

    #[test]
    fn addresses_in_the_file_are_checked() {
        let error = settings(&[], "[grpc]\naddress = [\"npipe:////./pipe/x\"]").unwrap_err();
        assert!(error.contains("grpc.address") && error.contains("npipe://"), "{error}");
    }
}
