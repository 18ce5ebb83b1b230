//! Processes that are talked to while they run: standard input, terminals, signals, and further processes of a container.

use std::process::Stdio;

use bytes::Bytes;
use lapstrake_builder_executor::{
    BoxFuture, ExecError, ExitStatus, ExtraProcess, InputSource, Order, OutputSink, ProcessIo, ProcessSpec,
    RunId, WindowSize,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Kind, Output, Sandbox, collect, eventually, executor, options, overlay, rootfs, traces,
};

const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Input that is there at once.
fn input(bytes: &'static [u8]) -> InputSource {
    InputSource::Reader(Box::new(bytes))
}

/// A process under way, with all that it can be told.
struct Talk<'a> {
    run: BoxFuture<'a, Result<ExitStatus, ExecError>>,
    output: mpsc::Receiver<Bytes>,
    orders: mpsc::Sender<Order>,
    typing: tokio::io::DuplexStream,
    cancel: CancellationToken,
    said: String,
}

impl<'a> Talk<'a> {
    /// Starts what `run` starts, with a terminal or without.
    fn begin(
        terminal: Option<WindowSize>,
        run: impl FnOnce(ProcessIo, CancellationToken) -> BoxFuture<'a, Result<ExitStatus, ExecError>>,
    ) -> Self {
        let (to, output) = mpsc::channel(16);
        let (orders, from) = mpsc::channel(4);
        let (typing, typed) = tokio::io::duplex(1024);
        let io = ProcessIo {
            stdin: InputSource::Reader(Box::new(typed)),
            stdout: OutputSink::Channel(to),
            terminal,
            orders: Some(from),
            ..ProcessIo::default()
        };
        let cancel = CancellationToken::new();
        let run = run(io, cancel.clone());
        Self { run, output, orders, typing, cancel, said: String::new() }
    }

    /// Waits until all that it has said has `text` in it.
    async fn until(&mut self, text: &str) {
        while !self.said.contains(text) {
            tokio::select! {
                chunk = self.output.recv() => match chunk {
                    Some(chunk) => self.said.push_str(&String::from_utf8_lossy(&chunk)),
                    None => panic!("never said {text:?}: {:?}", self.said),
                },
                end = &mut self.run => panic!("ended before {text:?}: {end:?} {:?}", self.said),
            }
        }
    }

    /// Its end, and the rest of what it says.
    async fn end(self) -> (Result<ExitStatus, ExecError>, String) {
        let (end, rest) = tokio::join!(self.run, collect(self.output));
        (end, self.said + &rest)
    }
}

fn script<'a>(sandbox: &'a Sandbox, terminal: Option<WindowSize>, text: &str) -> Talk<'a> {
    let spec = sandbox.sh(text);
    Talk::begin(terminal, |io, cancel| sandbox.executor.run(spec, io, cancel))
}

/// A container that stays until it is cancelled.
async fn staying(sandbox: &Sandbox) -> (RunId, Talk<'_>) {
    staying_with(sandbox, |_| {}).await
}

async fn staying_with(sandbox: &Sandbox, change: impl FnOnce(&mut ProcessSpec)) -> (RunId, Talk<'_>) {
    let mut spec = sandbox.sh("echo first > /tmp/shared; echo ready; sleep 1000");
    change(&mut spec);
    let id = spec.id.clone();
    let (started, has_started) = oneshot::channel();
    let mut talk = Talk::begin(None, |mut io, cancel| {
        io.started = Some(started);
        sandbox.executor.run(spec, io, cancel)
    });
    talk.until("ready").await;
    has_started.await.expect("it has started");
    (id, talk)
}

/// A shell script beside it, to its end.
async fn join(sandbox: &Sandbox, into: &RunId, text: &str) -> Output {
    join_as(sandbox, into, sh(text), InputSource::Empty).await.unwrap()
}

fn sh(text: &str) -> ExtraProcess {
    ExtraProcess {
        args: ["/bin/sh", "-c", text].map(String::from).to_vec(),
        env: vec!["PATH=/bin".into()],
        ..ExtraProcess::default()
    }
}

async fn join_as(
    sandbox: &Sandbox,
    into: &RunId,
    process: ExtraProcess,
    stdin: InputSource,
) -> Result<Output, ExecError> {
    let (stdout, from_stdout) = mpsc::channel(4);
    let (stderr, from_stderr) = mpsc::channel(4);
    let io = ProcessIo {
        stdin,
        stdout: OutputSink::Channel(stdout),
        stderr: OutputSink::Channel(stderr),
        ..ProcessIo::default()
    };
    let join = sandbox.executor.join(into.clone(), process, io, CancellationToken::new());
    let (status, stdout, stderr) = tokio::join!(join, collect(from_stdout), collect(from_stderr));
    Ok(Output { status: status?, stdout, stderr })
}

/// Cancels the first process, and waits for its end, while the joined ones' futures are looked after elsewhere.
async fn finish(talk: Talk<'_>) {
    talk.cancel.cancel();
    assert!(matches!(talk.run.await, Err(ExecError::Cancelled(_))));
}

pub(crate) async fn standard_input_reaches_the_process_and_ends(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    static MANY: [u8; 1 << 20] = [b'x'; 1 << 20];
    for (bytes, expected) in [(&b""[..], 0), (b"a word\n", 7), (&MANY, MANY.len())] {
        let (to, from) = mpsc::channel(4);
        let io = ProcessIo { stdin: input(bytes), stdout: OutputSink::Channel(to), ..ProcessIo::default() };
        let mut spec = sandbox.sh("cat");
        spec.user = "app".into();
        let run = sandbox.executor.run(spec, io, CancellationToken::new());
        let (status, output) = tokio::join!(run, collect(from));
        assert!(status.unwrap().success());
        assert_eq!(output.len(), expected);
        assert_eq!(output.as_bytes(), bytes);
    }
}

pub(crate) async fn a_process_may_leave_its_input_unread(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    // An input without end, which nobody reads beyond its first line.
    let endless = InputSource::Reader(Box::new(tokio::io::repeat(b'\n')));
    let (to, from) = mpsc::channel(4);
    let io = ProcessIo { stdin: endless, stdout: OutputSink::Channel(to), ..ProcessIo::default() };
    let run = sandbox.executor.run(sandbox.sh("read line; echo got; exit 5"), io, CancellationToken::new());
    let (status, output) = tokio::join!(run, collect(from));
    assert_eq!((status.unwrap().code, output.as_str()), (5, "got\n"));
}

pub(crate) async fn a_terminal_is_one(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh(
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; stat -c %u $(tty); echo typed > /dev/tty; \
         head -c 100000 /dev/zero | tr '\\0' y; echo end >&2; exit 6",
    );
    spec.user = "app".into();
    let talk = Talk::begin(Some(SIZE), |io, cancel| sandbox.executor.run(spec, io, cancel));
    let (status, said) = talk.end().await;
    assert_eq!(status.unwrap().code, 6);
    let rest = said.strip_prefix("/dev/pts/0\r\n24 80\r\nall\r\n1000\r\ntyped\r\n");
    let rest = rest.unwrap_or_else(|| panic!("{:?}", &said[..said.len().min(200)]));
    assert_eq!(rest.len(), 100_000 + "end\r\n".len());
    assert!(rest.ends_with("yend\r\n"));
}

pub(crate) async fn a_terminal_is_resized(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let waits = "trap 'stty size; exit 3' WINCH; stty size; echo ready; while :; do sleep 0.02; done";
    let mut talk = script(&sandbox, Some(SIZE), waits);
    talk.until("ready").await;
    assert!(talk.said.contains("24 80"), "{}", talk.said);
    talk.orders.send(Order::Resize(WindowSize { rows: 50, columns: 132 })).await.unwrap();
    let (status, said) = talk.end().await;
    assert!(said.contains("50 132"), "{said}");
    assert_eq!(status.unwrap().code, 3);
    // Without a terminal there is nothing to resize, and nothing happens.
    let mut talk = script(&sandbox, None, "echo ready; read word; echo $word");
    talk.until("ready").await;
    talk.orders.send(Order::Resize(SIZE)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut talk.typing, b"still here\n").await.unwrap();
    let (status, said) = talk.end().await;
    assert!(status.unwrap().success());
    assert_eq!(said, "ready\nstill here\n");
}

pub(crate) async fn what_is_typed_reaches_the_terminals_process(kind: Kind) {
    use tokio::io::AsyncWriteExt as _;
    let sandbox = Sandbox::new(kind);
    let mut talk = script(
        &sandbox,
        Some(SIZE),
        "read name; echo hello $name; trap 'echo stopped; exit 9' INT; echo ready; while :; do sleep 0.02; done",
    );
    talk.typing.write_all(b"reader\n").await.unwrap();
    talk.until("ready").await;
    assert!(talk.said.contains("hello reader"), "{}", talk.said);
    // Control-C: the kernel makes the signal of it, for the terminal's foreground.
    talk.typing.write_all(b"\x03").await.unwrap();
    let (status, said) = talk.end().await;
    assert!(said.contains("stopped"), "{said}");
    assert_eq!(status.unwrap().code, 9);
}

pub(crate) async fn signals_by_name_reach_the_process(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for (name, number) in [("SIGINT", 2), ("usr1", 10), ("1", 1)] {
        let mut talk = script(
            &sandbox,
            None,
            &format!("trap 'exit {number}' {number}; echo ready; while :; do sleep 0.02; done"),
        );
        talk.until("ready").await;
        talk.orders.send(Order::Signal(name.parse().unwrap())).await.unwrap();
        assert_eq!(talk.end().await.0.unwrap().code, number, "{name}");
    }
    let mut talk = script(&sandbox, None, "trap '' INT TERM; echo ready; sleep 1000");
    talk.until("ready").await;
    talk.orders.send(Order::Signal("SIGINT".parse().unwrap())).await.unwrap();
    talk.orders.send(Order::Signal("KILL".parse().unwrap())).await.unwrap();
    let status = talk.end().await.0.unwrap();
    assert_eq!((status.code, status.signal), (137, Some(9)));
}

pub(crate) async fn the_start_is_told_where_there_is_one(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (started, has_started) = oneshot::channel();
    let io = ProcessIo { started: Some(started), ..ProcessIo::default() };
    let absent = ProcessSpec::new(sandbox.root(), ["/bin/absent"]);
    assert!(sandbox.executor.run(absent, io, CancellationToken::new()).await.is_err());
    assert!(has_started.await.is_err(), "nothing was started");
    let (started, has_started) = oneshot::channel();
    let io = ProcessIo { started: Some(started), ..ProcessIo::default() };
    assert!(sandbox.executor.run(sandbox.sh("true"), io, CancellationToken::new()).await.unwrap().success());
    has_started.await.unwrap();
}

pub(crate) async fn a_joined_process_is_in_the_container(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying(&sandbox).await;
    let all = "cat /tmp/shared; hostname; for n in mnt pid ipc uts net cgroup; do \
        test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) || echo $n differs; done; \
        cat /proc/1/cmdline | tr '\\0' ' ' | grep -c 'sleep 1000'; echo second > /tmp/new; pwd; env | sort; ls /proc/self/fd";
    let joined = tokio::select! {
        joined = join(&sandbox, &id, all) => joined.ok(),
        end = &mut talk.run => panic!("{end:?}"),
    };
    let expected = "first\nbuildkitsandbox\n1\n/\nHOME=/root\nPATH=/bin\nPWD=/\nSHLVL=1\n0\n1\n2\n3\n";
    assert_eq!(joined, expected);
    assert_eq!(std::fs::read_to_string(sandbox.upper().join("tmp/new")).unwrap(), "second\n");
    finish(talk).await;
}

pub(crate) async fn a_joined_process_has_the_containers_rights(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying(&sandbox).await;
    let all = "grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; umask; \
        mount -t tmpfs none /tmp; unshare -U true; (echo x > /proc/sys/kernel/core_pattern); mknod /tmp/m c 1 1 && head -c 1 /tmp/m";
    let output = tokio::select! {
        output = join(&sandbox, &id, all) => output,
        end = &mut talk.run => panic!("{end:?}"),
    };
    for (name, value) in [
        ("CapBnd", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapPrm", "00000000a80425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Seccomp", "2"),
        ("NoNewPrivs", "0"),
        ("SigIgn", "0000000000000000"),
        ("SigBlk", "0000000000000000"),
    ] {
        assert_eq!(output.field(name), value, "{name}");
    }
    assert!(output.stdout.ends_with("0022\n"), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 4, "{output:?}");
    finish(talk).await;
}

pub(crate) async fn a_joined_process_has_a_user_and_an_exit_code_of_its_own(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying(&sandbox).await;
    let mut process = sh("id -u; id -G; echo $HOME; pwd; echo err >&2; exit 42");
    process.user = "app".into();
    process.cwd = "/etc".into();
    let output = tokio::select! {
        output = join_as(&sandbox, &id, process, InputSource::Empty) => output.unwrap(),
        end = &mut talk.run => panic!("{end:?}"),
    };
    assert_eq!((output.status.code, output.status.signal), (42, None));
    assert_eq!(output.stdout, "1000\n1001 50 63\n/home/app\n/etc\n");
    assert_eq!(output.stderr, "err\n");
    let output = tokio::select! {
        output = join(&sandbox, &id, "kill -KILL $$") => output,
        end = &mut talk.run => panic!("{end:?}"),
    };
    assert_eq!((output.status.code, output.status.signal), (137, Some(9)));
    finish(talk).await;
}

pub(crate) async fn a_joined_process_has_streams_and_a_terminal(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying(&sandbox).await;
    let work = async {
        let cat = join_as(&sandbox, &id, sh("cat; echo end"), input(b"some words\n")).await.unwrap();
        assert_eq!(cat.stdout, "some words\nend\n");
        let size = "trap 'stty size; exit 3' WINCH; tty; stty size; echo ready; while :; do sleep 0.02; done";
        let mut terminal =
            Talk::begin(Some(SIZE), |io, cancel| sandbox.executor.join(id.clone(), sh(size), io, cancel));
        terminal.until("ready").await;
        assert!(terminal.said.starts_with("/dev/pts/0\r\n24 80\r\n"), "{:?}", terminal.said);
        terminal.orders.send(Order::Resize(WindowSize { rows: 30, columns: 90 })).await.unwrap();
        let (status, said) = terminal.end().await;
        assert!(said.ends_with("30 90\r\n"), "{said:?}");
        assert_eq!(status.unwrap().code, 3);
        let many =
            join(&sandbox, &id, "yes out | head -c 2000000 & yes err | head -c 1000000 >&2; wait").await;
        assert_eq!((many.stdout.len(), many.stderr.len()), (2_000_000, 1_000_000));
    };
    tokio::select! {
        () = work => {}
        end = &mut talk.run => panic!("{end:?}"),
    }
    finish(talk).await;
}

pub(crate) async fn a_joined_process_is_in_the_containers_cgroups(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying_with(&sandbox, |spec| {
        spec.resources.memory = Some(48 << 20);
        spec.resources.memory_swap = Some(48 << 20);
        spec.resources.pids = Some(64);
    })
    .await;
    let work = async {
        let same = "cat /proc/1/cgroup > /tmp/first; cat /proc/self/cgroup | cmp - /tmp/first && echo same";
        assert_eq!(join(&sandbox, &id, same).await.ok(), "same\n");
        let hog = join(&sandbox, &id, "head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null").await;
        assert_ne!(hog.status.code, 0, "{hog:?}");
    };
    tokio::select! {
        () = work => {}
        end = &mut talk.run => panic!("{end:?}"),
    }
    finish(talk).await;
    assert_eq!(traces(id.as_str()), [""; 0]);
}

pub(crate) async fn a_joined_process_ends_with_the_first(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mark = format!("81{:07}", std::process::id());
    for ending in ["cancel", "end"] {
        let mut spec = sandbox.sh("echo ready; read line; exit 0");
        spec.id = RunId::random();
        let id = spec.id.clone();
        let (started, has_started) = oneshot::channel();
        let mut first = Talk::begin(None, |mut io, cancel| {
            io.started = Some(started);
            sandbox.executor.run(spec, io, cancel)
        });
        first.until("ready").await;
        has_started.await.unwrap();
        let stays = sh(&format!("trap '' TERM INT HUP; echo joined; (sleep {mark}) & sleep {mark}"));
        let mut second = Talk::begin(None, |io, cancel| sandbox.executor.join(id.clone(), stays, io, cancel));
        tokio::select! {
            () = second.until("joined") => {}
            end = &mut first.run => panic!("{end:?}"),
        }
        if ending == "cancel" {
            first.cancel.cancel();
        } else {
            tokio::io::AsyncWriteExt::write_all(&mut first.typing, b"go\n").await.unwrap();
        }
        let ((first, _), (second, _)) = tokio::join!(first.end(), second.end());
        assert_eq!(first.is_ok(), ending == "end", "{first:?}");
        let status = second.unwrap();
        assert_eq!((status.code, status.signal), (137, Some(9)), "{ending}");
        assert_eq!(traces(&mark), [""; 0]);
        assert_eq!(traces(id.as_str()), [""; 0]);
    }
}

pub(crate) async fn a_joined_process_is_cancelled_alone(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (id, mut talk) = staying(&sandbox).await;
    let work = async {
        for script in [
            "echo ready; sleep 1000",
            "trap '' TERM; echo ready; sleep 1000",
            "trap 'echo no' TERM; echo ready; while :; do sleep 0.02; done",
        ] {
            let mut joined =
                Talk::begin(None, |io, cancel| sandbox.executor.join(id.clone(), sh(script), io, cancel));
            joined.until("ready").await;
            joined.cancel.cancel();
            assert!(matches!(joined.end().await.0, Err(ExecError::Cancelled(_))), "{script}");
        }
        // Dropped without a word.
        let mut joined = Talk::begin(None, |io, cancel| {
            sandbox.executor.join(id.clone(), sh("echo ready; exec sleep 7654321"), io, cancel)
        });
        joined.until("ready").await;
        drop(joined);
        assert_eq!(
            join(
                &sandbox,
                &id,
                "while pgrep -f 'sleep 7654321' > /dev/null; do sleep 0.02; done; cat /tmp/shared"
            )
            .await
            .ok(),
            "first\n"
        );
    };
    tokio::select! {
        () = work => {}
        end = &mut talk.run => panic!("{end:?}"),
    }
    finish(talk).await;
}

pub(crate) async fn what_cannot_join_is_told_why(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let nobody = RunId::random();
    let error = join_as(&sandbox, &nobody, sh("true"), InputSource::Empty).await.unwrap_err();
    assert!(matches!(&error, ExecError::NotRunning(id) if *id == nobody), "{error:?}");
    let (id, mut talk) = staying(&sandbox).await;
    let work = async {
        let attempt = |change: fn(&mut ExtraProcess)| {
            let mut process = sh("true");
            change(&mut process);
            join_as(&sandbox, &id, process, InputSource::Empty)
        };
        let error = attempt(|process| process.args = vec!["absent".into()]).await.unwrap_err();
        assert!(
            matches!(&error, ExecError::Program { program, code: 127, .. } if program == "absent"),
            "{error:?}"
        );
        let error = attempt(|process| process.user = "ghost".into()).await.unwrap_err();
        assert!(matches!(&error, ExecError::NoSuchUser { name, .. } if name == "ghost"), "{error:?}");
        let error = attempt(|process| process.cwd = "/no/where".into()).await.unwrap_err();
        assert!(matches!(&error, ExecError::Setup { step, .. } if step.contains("/no/where")), "{error:?}");
        let error = attempt(|process| process.args.clear()).await.unwrap_err();
        assert!(matches!(&error, ExecError::Invalid { field: "args", .. }), "{error:?}");
        let error = attempt(|process| process.env = vec!["nothing".into()]).await.unwrap_err();
        assert!(matches!(&error, ExecError::Invalid { field: "env", .. }), "{error:?}");
    };
    tokio::select! {
        () = work => {}
        end = &mut talk.run => panic!("{end:?}"),
    }
    finish(talk).await;
    let error = join_as(&sandbox, &id, sh("true"), InputSource::Empty).await.unwrap_err();
    assert!(matches!(error, ExecError::NotRunning(_)), "{error:?}");
}

/// Environment variables by which a test runs itself as a daemon to be killed.
const OWNER_DIR: &str = "LAPSTRAKE_TEST_TALKING_OWNER";

pub(crate) async fn a_killed_owner_leaves_no_joined_process(kind: Kind) {
    let mark = |dir: &str| dir.rsplit('/').next().unwrap().replace("lapstrake-exec", "talk-");
    if let Ok(dir) = std::env::var(OWNER_DIR) {
        let executor = executor(kind, options());
        let mark = mark(&dir);
        let sleeps = format!("# {mark}\nsleep 1000 & sleep 1000; true");
        let mut spec = ProcessSpec::new(overlay(dir.as_ref()), ["/bin/sh", "-c", &sleeps]);
        spec.env = vec!["PATH=/bin".into()];
        let id = spec.id.clone();
        let (started, has_started) = oneshot::channel();
        let io = ProcessIo { started: Some(started), ..ProcessIo::default() };
        let first = executor.run(spec, io, CancellationToken::new());
        let second = async {
            has_started.await.unwrap();
            let (started, has_started) = oneshot::channel();
            let io = ProcessIo { started: Some(started), terminal: Some(SIZE), ..ProcessIo::default() };
            let joined = executor.join(id, sh(&sleeps), io, CancellationToken::new());
            let ready = async {
                has_started.await.unwrap();
                std::fs::write(format!("{dir}/ready"), "").unwrap();
                std::future::pending::<()>().await;
            };
            let (end, ()) = tokio::join!(joined, ready);
            end.unwrap();
        };
        let (end, ()) = tokio::join!(first, second);
        end.unwrap();
        panic!("ended");
    }
    let dir = rootfs();
    let case = format!("{}::a_killed_owner_leaves_no_joined_process", format!("{kind:?}").to_lowercase());
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &case, "--nocapture"])
        .env(OWNER_DIR, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the processes have started", || dir.path().join("ready").exists()).await;
    let path = dir.path().to_str().unwrap();
    let mark = mark(path);
    assert!(traces(&mark).len() >= 2, "{:?}", traces(&mark));
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("all are gone", || traces(&mark).is_empty() && traces(path).is_empty()).await;
}
