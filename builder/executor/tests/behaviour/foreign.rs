//! Programs for other processors.

use std::{fs, path::Path};

use lapstrake_builder_executor::{Architectures, ExecError, ProcessSpec};

use crate::harness::{Kind, Sandbox, options, set_mode};

/// An executable's first bytes, for a processor that nobody made. What it is told apart by is the second half of `number`.
fn strange(number: u16) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes());
    file.extend(number.to_le_bytes());
    file.resize(64, 0);
    file
}

fn put(sandbox: &Sandbox, number: u16) {
    let path = sandbox.lower().join("bin/strange");
    fs::write(&path, strange(number)).unwrap();
    set_mode(&path, 0o755);
}

/// A registration with binfmt_misc, and a mount of it in a place of its own. Both go with the value.
struct Registration {
    mount: tempfile::TempDir,
    name: String,
}

impl Registration {
    fn new(number: u16, interpreter: &Path, flags: &str) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let none: Option<&std::ffi::CStr> = None;
        rustix::mount::mount("none", mount.path(), "binfmt_misc", rustix::mount::MountFlags::empty(), none)
            .expect("the kernel has binfmt_misc, and this is root");
        let name = format!("lapstrake-test-{number}");
        let magic: String = strange(number)[..20].iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let line = format!(":{name}:M::{magic}::{}:{flags}", interpreter.display());
        fs::write(mount.path().join("register"), line).unwrap();
        Self { mount, name }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = fs::write(self.mount.path().join(&self.name), "-1");
        let unmounted = rustix::mount::unmount(self.mount.path(), rustix::mount::UnmountFlags::DETACH);
        if !std::thread::panicking() {
            gone.and(unmounted.map_err(Into::into)).expect("the registration goes");
        }
    }
}

pub(crate) async fn a_program_for_another_processor_is_an_error_that_says_so(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    put(&sandbox, 0x7a01);
    let error = sandbox.try_run(ProcessSpec::new(sandbox.root(), ["/bin/strange"])).await;
    let mut spec = ProcessSpec::new(sandbox.root(), ["strange"]);
    spec.env = vec!["PATH=/none:/bin".into()];
    let by_path = sandbox.try_run(spec).await;
    for ended in [error, by_path] {
        match ended {
            Ok(ended) => {
                // A runtime may find out too late to tell it apart from the program's end.
                assert!(kind != Kind::Native && ended.status.code != 0, "{ended:?}");
                assert!(ended.stderr.to_lowercase().contains("exec format error"), "{ended:?}");
            }
            Err(error) => {
                assert!(error.to_string().to_lowercase().contains("exec format error"), "{error}");
                if kind == Kind::Native {
                    let ExecError::Foreign { architecture, has_emulator: false, .. } = &error else {
                        panic!("{error:?}")
                    };
                    assert_eq!(architecture, "machine 31233");
                }
            }
        }
    }
}

pub(crate) async fn a_registered_emulator_runs_it_also_where_the_image_has_none(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let number = 0x7a02 + kind as u16;
    put(&sandbox, number);
    // Any static program can be the emulator: busybox is told to be `echo` by its link's name.
    let host = tempfile::tempdir().unwrap();
    let emulator = host.path().join("echo");
    fs::copy("/bin/busybox", &emulator).unwrap();
    let registration = Registration::new(number, &emulator, "F");
    let output = sandbox.run(ProcessSpec::new(sandbox.root(), ["/bin/strange", "x"])).await;
    assert_eq!(output.ok(), "/bin/strange x\n");
    drop(registration);

    // Without the flag, the kernel looks for the emulator in the container.
    let _registration = Registration::new(number, &emulator, "");
    let ended = sandbox.try_run(ProcessSpec::new(sandbox.root(), ["/bin/strange", "x"])).await;
    if kind == Kind::Native {
        let error = ended.unwrap_err();
        assert!(matches!(error, ExecError::Foreign { has_emulator: true, .. }), "{error:?}");
        assert!(error.to_string().contains("without the flag F"), "{error}");
    } else {
        assert!(ended.is_err() || !ended.unwrap().status.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_found_out_which_programs_run_here() {
    let directory = tempfile::tempdir().unwrap();
    let helper = lapstrake_builder_executor::Helper::start(options()).unwrap();
    let executor = lapstrake_builder_executor::NativeExecutor::new(helper).unwrap();
    let architectures = Architectures::new(std::sync::Arc::new(executor), directory.path().to_owned());
    let all = architectures.all().await;
    assert_eq!(all[0], if cfg!(target_arch = "x86_64") { "amd64" } else { all[0] });
    assert!(!architectures.runs("pdp11").await);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    // 32-bit programs run on their 64-bit processors, if the kernel was made so.
    if cfg!(target_arch = "x86_64") {
        let config = std::process::Command::new("zcat").arg("/proc/config.gz").output().unwrap();
        let config = String::from_utf8_lossy(&config.stdout);
        if !config.is_empty() {
            assert_eq!(all.contains(&"386"), config.contains("CONFIG_IA32_EMULATION=y"), "{all:?}");
        }
    }
}
