use super::*;
use crate::error::chain;

/// What a file with this text says.
fn parse(text: &str) -> Result<ConfigFile, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    ConfigFile::read(file.path(), &[]).map_err(|error| chain(&error))
}

#[test]
fn buildkits_file_is_read_and_what_has_no_effect_is_named() {
    let file = parse(
        r#"
        debug = true
        root = "/data"
        insecure-entitlements = ["network.host"]
        rooot = "/x"
        [log]
          format = "json"
        [grpc]
          address = ["tcp://0.0.0.0:1234"]
          [grpc.tls]
            cert = "/c.pem"
        [worker.oci]
          max-parallelism = 4
          snapshotter = "overlayfs"
          gc = true
          [[worker.oci.gcpolicy]]
            keepDuration = "48h"
        [frontend."dockerfile.v0"]
          enabled = true
          servesOfficialImages = false
        [registry."docker.io"]
          mirrors = ["mirror.local:5000"]
        "#,
    )
    .unwrap();
    assert!(file.debug && !file.trace);
    assert_eq!(file.entitlements, Some(vec![Entitlement::NetworkHost]));
    assert_eq!(file.root.as_deref(), Some(Path::new("/data")));
    assert_eq!(file.log.format, Some(LogFormat::Json));
    assert_eq!(file.grpc.address, ["tcp://0.0.0.0:1234"]);
    assert_eq!(file.grpc.tls.cert.as_deref(), Some(Path::new("/c.pem")));
    assert_eq!(file.worker.oci.max_parallelism, Some(4));
    assert_eq!(file.worker.oci.snapshotter, Some(Snapshotter::Overlayfs));
    assert_eq!(file.frontend.dockerfile.frontends(), Frontends { official_built_in: false });
    assert_eq!(FrontendFile::default().dockerfile.frontends(), Frontends { official_built_in: true });
    assert_eq!(file.registry.hosts["docker.io"].mirrors, ["mirror.local:5000"]);
    let mut doubts = file.doubts;
    doubts.sort();
    assert_eq!(doubts, ["rooot is no key that BuildKit or Lapstrake knows",]);
}

#[test]
fn networks_are_as_the_file_says() {
    let file = parse(
        r#"
        [dns]
          nameservers = ["1.1.1.1", "fd00::53"]
          options = ["edns0"]
          searchDomains = ["example.com"]
        [worker.oci]
          networkMode = "bridge"
          bridgeSubnet = "10.10.0.0/16"
          cniPoolSize = 16
          bridgeName = "br7"
        "#,
    )
    .unwrap();
    assert_eq!(file.dns.servers(), ["1.1.1.1", "fd00::53"]);
    assert_eq!(
        (file.dns.options, file.dns.search_domains),
        (vec!["edns0".to_owned()], vec!["example.com".to_owned()])
    );
    let worker = file.worker.oci;
    assert_eq!(worker.network_mode.map(DefaultNetwork::from), Some(DefaultNetwork::Sandbox));
    assert_eq!(worker.bridge_subnet.unwrap().0.to_string(), "10.10.0.0/16");
    assert_eq!(worker.pool_size, Some(16));
    assert_eq!(
        file.doubts,
        ["worker.oci.bridgeName is not honoured: the bridge is in a namespace of its own"]
    );
}

#[test]
fn devices_are_where_the_file_says() {
    let devices = |text: &str| parse(text).unwrap().cdi.devices();
    assert_eq!(devices(""), CdiDevices::default());
    assert_eq!(devices("[cdi]\ndisabled = true\nspecDirs = [\"/x\"]"), CdiDevices::disabled());
    let own = devices("[cdi]\nspecDirs = [\"/x\", \"/y\"]\nautoAllowed = [\"v.com/a\"]");
    assert_eq!(own.directories, [Path::new("/x"), Path::new("/y")]);
    assert_eq!(own.auto_allowed, ["v.com/a"]);
}

#[test]
fn rules_of_pruning_are_buildkits() {
    let rules = |text: &str| parse(text).unwrap().worker.take_gc().rules(1 << 40).unwrap();
    let documented = r#"
        [worker.oci]
          gc = true
          reservedSpace = "30%"
          maxUsedSpace = "60%"
          minFreeSpace = "20GB"
        [[worker.oci.gcpolicy]]
          reservedSpace = "512MB"
          maxUsedSpace = "1GB"
          minFreeSpace = "10GB"
          keepDuration = "48h"
          filters = [ "type==source.local", "type==exec.cachemount", "type==source.git.checkout"]
        [[worker.oci.gcpolicy]]
          all = true
          reservedSpace = 1024000000
    "#;
    let [first, second] = rules(documented).try_into().unwrap();
    let caps = |reserved, max_used, min_free| GcCaps { reserved, max_used, min_free };
    let (mb, gb) = (|n: u64| DiskSpace::Bytes(n << 20), |n: u64| DiskSpace::Bytes(n << 30));
    assert_eq!(first.caps, caps(mb(512), gb(1), gb(10)));
    assert_eq!((first.all, first.keep_duration), (false, Duration::from_secs(48 * 3600)));
    let types = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
    assert_eq!(first.filter, EntryFilter::parse(&types).unwrap());
    let none = DiskSpace::default();
    assert_eq!((second.all, second.caps), (true, caps(DiskSpace::Bytes(1_024_000_000), none, none)));

    // As older files have it, and of a daemon on containerd.
    let old = "[worker.containerd]\ngckeepstorage = 9000\n[[worker.containerd.gcpolicy]]\nkeepBytes = 512\nkeepDuration = 172800\n";
    let [rule] = rules(old).try_into().unwrap();
    assert_eq!(rule.caps.reserved, DiskSpace::Bytes(512));
    assert_eq!(rule.keep_duration, Duration::from_secs(172_800));
    let capped = rules("[worker.oci]\ngckeepstorage = \"9GB\"\n");
    assert_eq!(capped[3].caps, caps(gb(9), none, none));
    assert_eq!(
        rules("[worker.oci]\ngckeepstorage = 1\nminFreeSpace = \"5%\"\n")[3].caps,
        caps(none, none, DiskSpace::Percent(5))
    );

    assert_eq!(rules("[worker.oci]\ngc = false\n[[worker.oci.gcpolicy]]\nall = true\n"), []);
    assert_eq!(rules(""), default_rules(GcCaps::default(), 1 << 40).unwrap());
}

#[test]
fn rules_that_mean_nothing_are_errors_that_say_what() {
    for (rule, part) in [
        ("keepDuration = \"soon\"", "invalid duration \"soon\""),
        ("keepDuration = \"-1h\"", "invalid duration \"-1h\""),
        ("keepDuration = -1", "not negative"),
        ("maxUsedSpace = \"many\"", "invalid disk space \"many\""),
        ("maxUsedSpace = -5", "not negative"),
        ("maxUsdSpace = 5", "maxUsdSpace"),
    ] {
        let error = parse(&format!("[[worker.oci.gcpolicy]]\n{rule}\n")).unwrap_err();
        assert!(error.contains(part), "{rule}: {error}");
    }
    let mut file = parse("[[worker.oci.gcpolicy]]\nfilters = [\"tpye==x\"]\n").unwrap();
    assert!(file.worker.take_gc().rules(1).unwrap_err().to_string().contains("tpye==x"));
}

#[test]
fn wrong_types_and_misspelt_registry_keys_are_errors_that_say_where() {
    for (text, part) in [
        ("debug = 1", "expected a boolean"),
        ("[registry.\"x\"]\nmirors = []", "mirors"),
        ("[worker.oci]\nsnapshotter = \"btrfs\"", "btrfs"),
        ("[worker.oci]\nnetworkMode = \"cni\"", "cni"),
        ("[worker.oci]\nbridgeSubnet = \"10.0.0.0/30\"", "10.0.0.0/30"),
        ("[dns]\nnameservers = [\"dns.example\"]", "dns.example"),
        ("root = ", "line 1"),
        ("insecure-entitlements = [\"network.hots\"]", "unknown entitlement network.hots"),
        ("insecure-entitlements = true", "sequence"),
        ("[cdi]\nspecDirs = \"/etc/cdi\"", "sequence"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert_eq!(parse("").unwrap(), ConfigFile::default());
}

/// The complete example of BuildKit's documentation, with values that nobody is harmed by.
#[test]
fn no_key_of_buildkits_is_unknown_and_what_protects_is_refused() {
    let text = r#"
        root = "/var/lib/buildkit"
        insecure-entitlements = [ "network.host", "security.insecure", "device" ]
        proxyNetwork = false
        provenanceEnvDir = "/etc/buildkit/provenance.d"
        [log]
          format = "text"
          level = "info"
        [dns]
          nameservers=["1.1.1.1","8.8.8.8"]
          options=["edns0"]
          searchDomains=["example.com"]
        [grpc]
          address = [ "tcp://0.0.0.0:1234" ]
          debugAddress = "0.0.0.0:6060"
          uid = 0
          gid = 0
          securityDescriptor = ""
          [grpc.tls]
            cert = "/etc/buildkit/tls.crt"
            key = "/etc/buildkit/tls.key"
            ca = "/etc/buildkit/tlsca.crt"
        [otel]
          socketPath = "/run/buildkit/otel-grpc.sock"
        [cdi]
          disabled = true
          specDirs = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"]
          autoAllowed = ["vendor.example/gpu"]
        [history]
          maxAge = 172800
          maxEntries = 50
        [worker.oci]
          enabled = true
          platforms = [ "linux/amd64", "linux/arm64" ]
          snapshotter = "auto"
          rootless = false
          noProcessSandbox = false
          gc = true
          reservedSpace = "30%"
          maxUsedSpace = "60%"
          minFreeSpace = "20GB"
          gckeepstorage = 9000
          binary = ""
          apparmor-profile = ""
          selinux = false
          max-parallelism = 4
          networkMode = "auto"
          cniConfigPath = "/etc/buildkit/cni.json"
          cniBinaryPath = "/opt/cni/bin"
          cniPoolSize = 16
          bridgeName = "buildkit0"
          bridgeSubnet = "10.10.0.0/16"
          proxySnapshotterPath = ""
          userRemapUnsupported = ""
          defaultCgroupParent = "buildkit"
          [worker.oci.labels]
            "foo" = "bar"
          [worker.oci.stargzSnapshotter]
            noprometheus = true
          [[worker.oci.gcpolicy]]
            reservedSpace = "512MB"
            maxUsedSpace = "1GB"
            minFreeSpace = "10GB"
            keepDuration = "48h"
            filters = [ "type==source.local", "type==exec.cachemount", "type==source.git.checkout"]
          [[worker.oci.gcpolicy]]
            all = true
            keepBytes = 1024000000
        [worker.containerd]
          address = "/run/containerd/containerd.sock"
          enabled = true
          platforms = [ "linux/amd64", "linux/arm64" ]
          namespace = "buildkit"
          gc = true
          [worker.containerd.labels]
            "foo" = "bar"
          [worker.containerd.runtime]
            name = "io.containerd.runc.v2"
            options = { BinaryName = "runc" }
        [registry."docker.io"]
          mirrors = ["yourmirror.local:5000", "core.harbor.domain/proxy.docker.io"]
          http = true
          insecure = true
          ca=["/etc/config/myca.pem"]
          [[registry."docker.io".keypair]]
            key="/etc/config/key.pem"
            cert="/etc/config/cert.pem"
        [registry."yourmirror.local:5000"]
          http = true
        [frontend."dockerfile.v0"]
          enabled = true
        [frontend."gateway.v0"]
          enabled = true
          allowedRepositories = []
        [system]
          platformsCacheMaxAge = "1h"
          maxRegistryConcurrency = 4
        [cache.gha.verify]
          required = false
        [ghacache.sign]
          cmd = ""
        [ghacache.verify]
          required = false
          [ghacache.verify.policy]
            timestampThreshold = 1
    "#;
    let file = parse(text).unwrap();
    assert!(!file.doubts.iter().any(|doubt| doubt.contains("is no key")), "{:#?}", file.doubts);
    assert_eq!(file.grpc.uid, Some(0));
    for (was, is, refusal) in [
        ("proxyNetwork = false", "proxyNetwork = true", "proxyNetwork is refused: no proxy"),
        ("apparmor-profile = \"\"", "apparmor-profile = \"x\"", "worker.oci.apparmor-profile is refused"),
        (
            "[frontend.\"gateway.v0\"]\n          enabled = true",
            "[frontend.\"gateway.v0\"]\n          enabled = false",
            "frontend.gateway.v0.enabled = false is refused",
        ),
        (
            "allowedRepositories = []",
            "allowedRepositories = [\"a/b\"]",
            "frontend.gateway.v0.allowedRepositories is refused",
        ),
        ("selinux = false", "selinux = true", "worker.oci.selinux is refused"),
        (
            "proxySnapshotterPath = \"\"",
            "proxySnapshotterPath = \"/x\"",
            "worker.oci.proxySnapshotterPath is refused",
        ),
        (
            "userRemapUnsupported = \"\"",
            "userRemapUnsupported = \"1:1\"",
            "worker.oci.userRemapUnsupported is refused",
        ),
        (
            "[worker.oci]\n          enabled = true",
            "[worker.oci]\n          enabled = false",
            "worker.oci.enabled = false is refused",
        ),
        (
            "[worker.oci]\n          enabled = true",
            "[worker.oci]\n",
            "worker.containerd.enabled = true is refused",
        ),
    ] {
        let text = text.replacen(was, is, 1);
        let error = parse(&text).unwrap_err();
        assert!(error.contains(refusal), "{is}: {error}");
    }
}

/// What is documented is what is done, key by key.
#[test]
fn the_documentation_names_every_key_and_its_fate() {
    let page = include_str!("../../../../docs/buildkitd.md");
    for (key, fate) in keys::KEYS {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")))
            .unwrap_or_else(|| panic!("{key} has no row"));
        let word = match fate {
            keys::Fate::Honoured => "| honoured |",
            keys::Fate::Vain(_) => "| without effect |",
            keys::Fate::Refused(_) => "| refused |",
        };
        assert!(row.contains(word), "{key}: {row}");
    }
}
