//! What the daemon is to be: command line over configuration file over defaults. Decided once, before anything is opened.

use std::path::{Path, PathBuf};

use lapstrake_api_types::HostGateway;
use lapstrake_builder_engine::{CdiDevices, Entitlement, Frontends};
use lapstrake_builder_executor::{DnsConfig, NetworkOptions};
use lapstrake_graphdriver_adapter::DriverKind;
use lapstrake_layerstore_registry::RegistryConfig;

use crate::{
    cli::{DaemonArgs, StoreArgs},
    config::{ConfigFile, Gc, KeyFlag, Snapshotter},
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
    /// Where the files are that say what provenance tells of this machine.
    pub(crate) provenance_env_dir: Option<PathBuf>,
    /// What steps get for a network.
    pub(crate) network: NetworkOptions,
    /// Registries by host.
    pub(crate) registry: RegistryConfig,
    /// What `host-gateway` means in builds, if that is said.
    pub(crate) host_gateway: Option<HostGateway>,
    /// Whether images that BuildKit's clients export stay, where they do not say it.
    pub(crate) keeps_images: bool,
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
    /// The owner of unix sockets; who runs the daemon when not said.
    pub(crate) uid: Option<u32>,
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
        Self::with_flags(args, &[])
    }

    fn with_flags(args: &StoreArgs, flags: &[KeyFlag]) -> Result<(Self, ConfigFile), ProgramError> {
        let file = match &args.config {
            Some(path) => ConfigFile::read(path, flags)?,
            None if Path::new(CONFIG_FILE).exists() => ConfigFile::read(Path::new(CONFIG_FILE), flags)?,
            None => ConfigFile::with_flags(toml::Table::new(), flags)?,
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
        let first = |trace: bool, debug: bool| match (trace, debug) {
            (true, _) => Some(LogLevel::Trace),
            (_, true) => Some(LogLevel::Debug),
            _ => None,
        };
        // As BuildKit: the level, where one is said, goes before the older switches, in the file and on the command line.
        let log_level = args
            .log_level
            .or(first(args.trace, args.debug))
            .or(file.log.level)
            .or(first(file.trace, file.debug))
            .unwrap_or_default();
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
            provenance_env_dir: file.provenance_env_dir.take(),
            network,
            registry: std::mem::take(&mut file.registry),
            host_gateway: HostGateway::new(args.host_gateway_ip.clone())
                .map_err(|why| ProgramError::setting("--host-gateway-ip", why))?,
            keeps_images: !file.worker.oci.enabled,
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
        let (store, file) = StoreSettings::with_flags(&args.store, &args.buildkitd.0)?;
        Self::merge(args, store, file)
    }

    fn merge(args: &DaemonArgs, mut store: StoreSettings, file: ConfigFile) -> Result<Self, ProgramError> {
        store.doubts.extend(args.buildkitd.doubts());
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
            uid: file.grpc.uid,
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
        let file = ConfigFile::with_flags(toml::from_str(config).unwrap(), &args.buildkitd.0);
        let (store, file) = StoreSettings::merge(&args.store, file.map_err(|e| e.to_string())?).unwrap();
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
        assert!(default.store.keeps_images);
    }

    #[test]
    fn buildkitds_own_tests_start_the_daemon_so() {
        let line = [
            "--oci-worker=true",
            "--containerd-worker=false",
            "--oci-worker-gc=false",
            "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
            "--oci-worker-snapshotter=native",
            "--config=/x/buildkitd.toml",
            "--root",
            "/x/root",
            "--addr",
            "unix:///x/buildkitd.sock",
            "--debug",
        ];
        let config = "[registry.\"docker.io\"]\nmirrors=[\"localhost:1\"]\n[otel]\nsocketPath = \"/x/otel.sock\"\n[cdi]\nspecDirs = [\"/x/cdi\"]\n";
        let settings = settings(&line, config).unwrap();
        assert_eq!(settings.hosts, [Host::Unix("/x/buildkitd.sock".into())]);
        assert_eq!(settings.store.root, Path::new("/x/root"));
        assert_eq!(settings.store.driver, Some(DriverKind::Vfs));
        assert_eq!(settings.store.log_level, LogLevel::Debug);
        assert_eq!(settings.store.gc.rules(1 << 40).unwrap(), []);
        assert!(!settings.store.keeps_images);
        assert_eq!(settings.store.registry.hosts["docker.io"].mirrors, ["localhost:1"]);
        assert_eq!(settings.store.devices.directories, [Path::new("/x/cdi")]);
    }

    #[test]
    fn flags_of_buildkitd_go_before_keys_of_the_file() {
        let store = |args: &[&str], config: &str| settings(args, config).unwrap().store;
        let file = "[worker.oci]\nmax-parallelism = 3\nbinary = \"/file\"\nnetworkMode = \"host\"\n";
        let from_file = store(&[], file);
        assert_eq!((from_file.parallelism, from_file.oci_runtime.as_deref()), (3, Some(Path::new("/file"))));
        let line = ["--oci-max-parallelism", "5", "--oci-worker-binary=/line", "--oci-worker-net", "none"];
        let from_line = store(&line, file);
        assert_eq!((from_line.parallelism, from_line.oci_runtime.as_deref()), (5, Some(Path::new("/line"))));
        assert_eq!(from_line.network.default, lapstrake_builder_executor::DefaultNetwork::None);
        assert_eq!(
            store(&["--oci-worker-gc-keepstorage", "9"], "").gc,
            store(&[], "[worker.oci]\nreservedSpace = 9000000\nminFreeSpace = 0\nmaxUsedSpace = 0\n").gc
        );
    }

    #[test]
    fn what_would_be_without_effect_is_told_or_refused_by_name() {
        let refused = |args: &[&str]| settings(args, "").unwrap_err();
        for (flag, part) in [
            ("--oci-worker=false", "worker.oci.enabled = false is refused: this daemon has one worker"),
            (
                "--containerd-worker=true",
                "worker.containerd.enabled = true is refused: containerd is not used",
            ),
            ("--oci-worker-apparmor-profile=x", "worker.oci.apparmor-profile is refused: no AppArmor"),
            ("--oci-worker-selinux", "worker.oci.selinux is refused"),
            ("--proxy-network", "proxyNetwork is refused"),
            ("--oci-worker-snapshotter=stargz", "--oci-worker-snapshotter: unknown variant `stargz`"),
            ("--oci-worker-net=cni", "--oci-worker-net: unknown variant `cni`"),
            ("--oci-max-parallelism=x", "--oci-max-parallelism: \"x\" is no number"),
            ("--oci-worker-gc=maybe", "--oci-worker-gc: \"maybe\" is neither true nor false"),
            ("--oci-worker-labels=x", "--oci-worker-labels: \"x\" is not NAME=VALUE"),
            ("--log-level=loud", "\"loud\" is no log level"),
        ] {
            let error = refused(&[flag]);
            assert!(error.contains(part), "{flag}: {error}");
        }
        // What this daemon does anyway.
        for flag in [
            "--oci-worker=auto",
            "--containerd-worker=false",
            "--proxy-network=false",
            "--oci-worker-selinux=false",
        ] {
            assert_eq!(settings(&[flag], "").unwrap().store.doubts, [""; 0], "{flag}");
        }
        for (flag, doubt) in [
            ("--debugaddr=x", "grpc.debugAddress is not honoured: there is no debug server"),
            (
                "--save-cache-debug",
                "--save-cache-debug is not honoured: lapstrake history inspect tells why steps ran",
            ),
            (
                "--containerd-worker-addr=/x",
                "worker.containerd.address is not honoured: containerd is not used: images and layers are in this daemon's own store",
            ),
        ] {
            assert_eq!(settings(&[flag], "").unwrap().store.doubts, [doubt], "{flag}");
        }
    }

    #[test]
    fn how_much_is_logged_is_said_in_buildkitds_ways() {
        use LogLevel::{Debug, Error, Info, Trace, Warn};
        let level = |args: &[&str], config: &str| settings(args, config).unwrap().store.log_level;
        assert_eq!(level(&[], ""), Info);
        assert_eq!(level(&[], "debug = true"), Debug);
        assert_eq!(level(&[], "debug = true\n[log]\nlevel = \"warning\""), Warn);
        assert_eq!(level(&["--debug"], "[log]\nlevel = \"error\""), Debug);
        assert_eq!(level(&["--debug=false"], "[log]\nlevel = \"fatal\""), Error);
        assert_eq!(level(&["--trace", "-D"], ""), Trace);
        assert_eq!(level(&["--trace", "--log-level", "warn"], ""), Warn);
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
