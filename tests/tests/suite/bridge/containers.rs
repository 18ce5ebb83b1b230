//! Containers of frontends: processes that are talked to, and what they may not do.

use lapstrake_api_proto::{
    gateway::{
        ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReadDirRequest, ReadFileRequest,
        ReleaseContainerRequest, ResizeMessage, SignalMessage, StatFileRequest, exec_message::Input,
    },
    llb as pb,
};
use lapstrake_builder_engine::Grants;
use lapstrake_tests::{Client, Workbench};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::bridge::support::{Asked, Stub, ask, begin, busybox, client_input, request, run};

/// A container of a result.
fn container(id: &str, root: &str) -> NewContainerRequest {
    let root = pb::Mount { dest: "/".to_owned(), result_id: root.to_owned(), ..pb::Mount::default() };
    NewContainerRequest { container_id: id.to_owned(), mounts: vec![root], ..NewContainerRequest::default() }
}

fn init(container: &str, command: &str) -> InitMessage {
    InitMessage {
        container_id: container.to_owned(),
        meta: Some(pb::Meta {
            args: ["sh", "-c", command].map(str::to_owned).to_vec(),
            ..pb::Meta::default()
        }),
        fds: vec![0, 1, 2],
        ..InitMessage::default()
    }
}

/// A stream of messages about processes.
struct Talk {
    out: mpsc::Sender<ExecMessage>,
    answers: Streaming<ExecMessage>,
    started: bool,
}

/// What was heard of one process.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    stdout: String,
    stderr: String,
    code: Option<u32>,
    error: String,
}

impl Talk {
    async fn with(bridge: &mut Stub) -> Self {
        let (out, messages) = mpsc::channel(8);
        let answers = bridge.exec_process(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Self { out, answers, started: false }
    }

    async fn say(&self, id: &str, input: Input) {
        let message = ExecMessage { process_id: id.to_owned(), input: Some(input) };
        self.out.send(message).await.unwrap();
    }

    async fn input(&self, id: &str, data: &str, eof: bool) {
        self.say(id, Input::File(FdMessage { fd: 0, eof, data: data.as_bytes().to_vec() })).await;
    }

    /// Hears of a process until it is done, or until it has said something.
    async fn hear(&mut self, id: &str, until: Option<&str>) -> Result<Heard, Status> {
        let mut heard = Heard::default();
        while let Some(message) = self.answers.message().await? {
            assert_eq!(message.process_id, id);
            match message.input.unwrap() {
                Input::Started(_) => self.started = true,
                Input::File(file) => {
                    assert!(self.started, "{heard:?}");
                    let data = String::from_utf8(file.data).unwrap();
                    if file.fd == 1 { heard.stdout.push_str(&data) } else { heard.stderr.push_str(&data) }
                }
                Input::Exit(exit) => {
                    heard.code = Some(exit.code);
                    heard.error = exit.error.map(|error| error.message).unwrap_or_default();
                }
                Input::Done(_) => return Ok(heard),
                other => panic!("{other:?}"),
            }
            if until.is_some_and(|text| heard.stdout.contains(text)) {
                return Ok(heard);
            }
        }
        panic!("the stream ended: {heard:?}");
    }
}

async fn run_in(asked: &mut Asked, init: InitMessage) -> Heard {
    let mut talk = Talk::with(&mut asked.bridge).await;
    talk.say("p", Input::Init(init)).await;
    talk.input("p", "", true).await;
    talk.hear("p", None).await.unwrap()
}

async fn finish(mut asked: Asked) {
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_talked_to() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(run("echo of the result > /file")).await;
    asked.bridge.new_container(container("c1", &root)).await.unwrap();
    let heard =
        run_in(&mut asked, init("c1", "cat; cat /file; echo error >&2; echo $PATH $TERM; exit 7")).await;
    assert_eq!((heard.code, heard.error.as_str()), (Some(7), "exit code: 7"));
    assert_eq!(heard.stderr, "error\n");
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(heard.stdout, format!("of the result\n{path}\n"));
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_terminals_sizes_and_signals_arrive() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    asked.bridge.new_container(container("c1", &root)).await.unwrap();
    let mut talk = Talk::with(&mut asked.bridge).await;
    talk.say(
        "in",
        Input::Init(init(
            "c1",
            "wc -c; trap 'echo stopped; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        )),
    )
    .await;
    talk.input("in", "12345", false).await;
    talk.input("in", "678", true).await;
    let heard = talk.hear("in", Some("ready")).await.unwrap();
    assert_eq!(heard.stdout, "8\nready\n");
    talk.say("in", Input::Signal(SignalMessage { name: "TERM".to_owned() })).await;
    let last = talk.hear("in", None).await.unwrap();
    assert_eq!((last.stdout.as_str(), last.code), ("stopped\n", Some(3)));

    asked.bridge.new_container(container("c2", &root)).await.unwrap();
    let mut talk = Talk::with(&mut asked.bridge).await;
    let terminal = InitMessage { tty: true, ..init("c2", "read line; stty size; echo got $line in $TERM") };
    talk.say("tty", Input::Init(terminal)).await;
    talk.say("tty", Input::Resize(ResizeMessage { rows: 30, cols: 100 })).await;
    talk.input("tty", "hello\n", false).await;
    let heard = talk.hear("tty", None).await.unwrap();
    assert!(heard.stdout.contains("30 100\r\ngot hello in xterm\r\n"), "{heard:?}");
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn further_processes_join_the_first_and_end_with_it() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    asked.bridge.new_container(container("c1", &root)).await.unwrap();
    let mut first = Talk::with(&mut asked.bridge).await;
    first.say("first", Input::Init(init("c1", "echo there > /shared; cat"))).await;
    let joined =
        run_in(&mut asked, init("c1", "while ! cat /shared; do sleep 0.05; done 2> /dev/null; exit 2")).await;
    assert_eq!((joined.stdout.as_str(), joined.code), ("there\n", Some(2)));
    let mut lasting = Talk::with(&mut asked.bridge).await;
    lasting.say("lasting", Input::Init(init("c1", "echo on; cat"))).await;
    lasting.hear("lasting", Some("on")).await.unwrap();
    first.input("first", "", true).await;
    assert_eq!(first.hear("first", None).await.unwrap().code, Some(0));
    // Killed: pid 1 of its namespace is gone.
    let mut code = None;
    while let Some(message) = lasting.answers.message().await.unwrap() {
        if let Some(Input::Exit(exit)) = message.input {
            code = Some(exit.code);
        }
        if code.is_some() {
            break;
        }
    }
    assert_eq!(code, Some(137));
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_writes_is_seen_and_thrown_away() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(run("echo base > /base")).await;
    let mut order = container("c1", &root);
    order.mounts.push(pb::Mount { dest: "/scratch".to_owned(), ..pb::Mount::default() });
    let sealed = pb::Mount {
        dest: "/sealed".to_owned(),
        result_id: root.clone(),
        readonly: true,
        ..pb::Mount::default()
    };
    order.mounts.push(sealed);
    order.mounts.push(pb::Mount {
        dest: "/tmpfs".to_owned(),
        mount_type: pb::MountType::Tmpfs.into(),
        ..pb::Mount::default()
    });
    asked.bridge.new_container(order).await.unwrap();
    let command = "echo mine > /new && rm /base && mkdir /scratch/d && echo s > /scratch/f && touch /tmpfs/x; touch /sealed/no || cat /sealed/base";
    let heard = run_in(&mut asked, init("c1", command)).await;
    assert_eq!(heard.stdout, "base\n", "{heard:?}");
    let read = |path: &str, mount: i32| ReadFileRequest {
        r#ref: "c1".to_owned(),
        file_path: path.to_owned(),
        mount_index: mount,
        ..ReadFileRequest::default()
    };
    assert_eq!(asked.bridge.read_file_container(read("/new", 0)).await.unwrap().into_inner().data, b"mine\n");
    assert_eq!(asked.bridge.read_file_container(read("/f", 1)).await.unwrap().into_inner().data, b"s\n");
    asked.bridge.read_file_container(read("/base", 0)).await.unwrap_err();
    for (request, why) in [
        (read("new", 0), "relative to /"),
        (read("/x", 3), "mountable 3 not found"),
        (read("/x", 4), "out of bounds (4 available)"),
        (read("/x", -1), "out of bounds"),
    ] {
        let status = asked.bridge.read_file_container(request).await.unwrap_err();
        assert!(status.message().contains(why), "{status:?}");
    }
    let list = ReadDirRequest {
        r#ref: "c1".to_owned(),
        dir_path: "/".to_owned(),
        mount_index: 1,
        ..ReadDirRequest::default()
    };
    let names = asked.bridge.read_dir_container(list).await.unwrap().into_inner().entries;
    assert_eq!(names.iter().map(|stat| stat.path.as_str()).collect::<Vec<_>>(), ["d", "f"]);
    let stat = StatFileRequest { r#ref: "c1".to_owned(), path: "/d".to_owned(), mount_index: 1 };
    assert_eq!(
        asked.bridge.stat_file_container(stat).await.unwrap().into_inner().stat.unwrap().mode,
        0o755 | 1 << 31
    );
    // The result is as it was.
    let base = ReadFileRequest { r#ref: root, file_path: "/base".to_owned(), ..ReadFileRequest::default() };
    assert_eq!(asked.bridge.read_file(base).await.unwrap().into_inner().data, b"base\n");
    asked.bridge.release_container(ReleaseContainerRequest { container_id: "c1".to_owned() }).await.unwrap();
    asked.bridge.read_file_container(read("/new", 0)).await.unwrap_err();
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_platform_is_where_programs_are_looked_for() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    let windows = pb::Platform { os: "windows".to_owned(), ..pb::Platform::default() };
    let request = NewContainerRequest { platform: Some(windows), ..container("c1", &root) };
    asked.bridge.new_container(request).await.unwrap();
    let args = ["/bin/sh", "-c", "echo $PATH"].map(str::to_owned).to_vec();
    let meta = Some(pb::Meta { args, ..pb::Meta::default() });
    let heard = run_in(&mut asked, InitMessage { meta, ..init("c1", "") }).await;
    assert!(heard.stdout.starts_with(r"c:\Windows\System32;c:\Windows;"), "{heard:?}");
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_container_ends_with_all_that_runs_in_it() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    asked.bridge.new_container(container("c1", &root)).await.unwrap();
    let mut talk = Talk::with(&mut asked.bridge).await;
    talk.say("p", Input::Init(init("c1", "echo on; sleep 1000"))).await;
    talk.hear("p", Some("on")).await.unwrap();
    let release = ReleaseContainerRequest { container_id: "c1".to_owned() };
    let status = asked.bridge.release_container(release).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Cancelled, "context canceled"));
    let heard = talk.hear_rest().await;
    assert_eq!(heard, Some(255));
    // And so does a build's whose client has gone on without a word.
    asked.bridge.new_container(container("c2", &root)).await.unwrap();
    let mut talk = Talk::with(&mut asked.bridge).await;
    talk.say("p", Input::Init(init("c2", "echo on; sleep 1000"))).await;
    talk.hear("p", Some("on")).await.unwrap();
    finish(asked).await;
    assert_eq!(talk.hear_rest().await, Some(255));
}

impl Talk {
    /// The exit code of a process of which nothing else is heard any more.
    async fn hear_rest(&mut self) -> Option<u32> {
        while let Ok(Some(message)) = self.answers.message().await {
            if let Some(Input::Exit(exit)) = message.input {
                return Some(exit.code);
            }
        }
        None
    }
}

/// CVE-2024-23653, GHSA-7236-3392-c5c6: what was not granted to the build is not to be had through a container.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_gains_nothing_that_the_build_was_not_granted() {
    let bench = Workbench::new();
    for (granted, others) in [(None, 0), (Some("security.insecure"), 1), (Some("network.host"), 2)] {
        let mut request = request(&bench, client_input(), "unused").await;
        request.outputs = Vec::new();
        request.grants = Grants::parse(granted).unwrap();
        let mut asked = begin(&bench, request).await;
        let root = asked.solve(busybox()).await;
        let probe = "grep Seccomp: /proc/self/status; grep CapEff /proc/self/status";
        let insecure = InitMessage { security: pb::SecurityMode::Insecure.into(), ..init("insecure", probe) };
        asked.bridge.new_container(container("insecure", &root)).await.unwrap();
        let heard = run_in(&mut asked, insecure).await;
        match others {
            1 => assert!(heard.stdout.starts_with("Seccomp:\t0\n"), "{heard:?}"),
            _ => {
                assert_eq!((heard.stdout.as_str(), heard.code), ("", Some(255)), "{heard:?}");
                assert!(heard.error.contains("security.insecure is not allowed"), "{heard:?}");
            }
        }
        let host = NewContainerRequest { network: pb::NetMode::Host.into(), ..container("host", &root) };
        asked.bridge.new_container(host).await.unwrap();
        let heard = run_in(&mut asked, init("host", "echo in")).await;
        match others {
            2 => assert_eq!(heard.stdout, "in\n"),
            _ => {
                assert_eq!(heard.stdout, "", "{heard:?}");
                assert!(heard.error.contains("network.host is not allowed"), "{heard:?}");
            }
        }
        // A process that joins does not gain what the first did not have.
        asked.bridge.new_container(container("plain", &root)).await.unwrap();
        let mut first = Talk::with(&mut asked.bridge).await;
        first.say("first", Input::Init(init("plain", "echo on; cat"))).await;
        first.hear("first", Some("on")).await.unwrap();
        let joined = InitMessage { security: pb::SecurityMode::Insecure.into(), ..init("plain", probe) };
        let heard = run_in(&mut asked, joined).await;
        assert_eq!((heard.stdout.as_str(), heard.code), ("", Some(255)), "{heard:?}");
        let unknown = InitMessage { security: 17, ..init("insecure", probe) };
        let heard = run_in(&mut asked, unknown).await;
        assert!(heard.error.contains("invalid security mode 17"), "{heard:?}");
        finish(asked).await;
    }
}

/// CVE-2026-33747: names are names, and no paths.
#[tokio::test(flavor = "multi_thread")]
async fn a_containers_name_is_no_path() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    let before: Vec<_> = walk(&bench);
    for name in ["", "../../escape", "/etc/escape", "a/b", "..", "a\0b", "ü", &"x".repeat(1000)] {
        let status = asked.bridge.new_container(container(name, &root)).await.unwrap_err();
        assert!(status.message().contains("container id"), "{name}: {status:?}");
    }
    assert_eq!(walk(&bench), before);
    asked.bridge.new_container(container("twice", &root)).await.unwrap();
    let status = asked.bridge.new_container(container("twice", &root)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::AlreadyExists, "Container twice already exists"));
    finish(asked).await;
}

fn walk(bench: &Workbench) -> Vec<std::ffi::OsString> {
    let outside = std::fs::read_dir(bench.root().parent().unwrap()).unwrap();
    let mut names: Vec<_> = outside.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_are_errors() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let root = asked.solve(busybox()).await;
    asked.bridge.new_container(container("c", &root)).await.unwrap();
    let file = |fd: u32| Some(Input::File(FdMessage { fd, eof: false, data: vec![0] }));
    let no_meta = InitMessage { meta: None, ..init("c", "true") };
    let no_args = InitMessage { meta: Some(pb::Meta::default()), ..init("c", "true") };
    let many = InitMessage { fds: vec![0, 9], ..init("c", "true") };
    for (id, input, code) in [
        ("", Some(Input::Init(init("c", "true"))), Code::InvalidArgument),
        ("p", None, Code::InvalidArgument),
        ("p", file(0), Code::NotFound),
        ("p", Some(Input::Init(init("none", "true"))), Code::NotFound),
        ("p", Some(Input::Init(no_meta)), Code::InvalidArgument),
        ("p", Some(Input::Init(no_args)), Code::Unknown),
        ("p", Some(Input::Init(many)), Code::InvalidArgument),
        ("p", Some(Input::Resize(ResizeMessage { rows: 1, cols: 1 })), Code::NotFound),
        ("p", Some(Input::Signal(SignalMessage { name: "NONE".to_owned() })), Code::InvalidArgument),
    ] {
        let mut talk = Talk::with(&mut asked.bridge).await;
        talk.out.send(ExecMessage { process_id: id.to_owned(), input: input.clone() }).await.unwrap();
        let status = talk.answers.message().await.unwrap_err();
        assert_eq!(status.code(), code, "{input:?}: {status:?}");
    }
    for (order, why) in [
        (NewContainerRequest { network: 99, ..container("d", &root) }, "unknown network mode 99"),
        (container("d", "nothing"), "failed to find ref nothing"),
        (NewContainerRequest { container_id: "d".to_owned(), ..Default::default() }, "root mount"),
    ] {
        let status = asked.bridge.new_container(order).await.unwrap_err();
        assert!(status.message().contains(why), "{status:?}");
    }
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_the_client_are_variables_of_its_processes() {
    let bench = Workbench::new();
    let mut request = request(&bench, client_input(), "unused").await;
    request.outputs = Vec::new();
    request.session = Some(Client::default().secret("token", b"s3cret").connect(&bench.sessions));
    let mut asked = begin(&bench, request).await;
    let root = asked.solve(busybox()).await;
    asked.bridge.new_container(container("c", &root)).await.unwrap();
    let secret = |id: &str, optional| pb::SecretEnv { id: id.to_owned(), name: "TOKEN".to_owned(), optional };
    let with = InitMessage { secretenv: vec![secret("token", false)], ..init("c", "echo $TOKEN") };
    assert_eq!(run_in(&mut asked, with).await.stdout, "s3cret\n");
    asked.bridge.new_container(container("d", &root)).await.unwrap();
    let without = InitMessage { secretenv: vec![secret("none", false)], ..init("d", "echo $TOKEN") };
    let mut talk = Talk::with(&mut asked.bridge).await;
    talk.say("p", Input::Init(without)).await;
    let status = talk.answers.message().await.unwrap_err();
    assert!(status.message().contains("secret none: not found"), "{status:?}");
    finish(asked).await;
}
