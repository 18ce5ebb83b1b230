//! Processes as clients talk to them: one stream of messages each way, for any number of processes.
//!
//! ```text
//!   client                            here
//!   Init ─────────────────────────►   a process of a container
//!                                     ◄── Started
//!   File (0: input), Resize, Signal ► ◄── File (1, 2: output), at last each with EOF
//!                                     ◄── Exit, then Done
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use lapstrake_api_proto::gateway::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, StartedMessage, exec_message::Input,
};
use lapstrake_builder_executor::{Order, Signal, WindowSize};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Bridge,
    container::{Process, StartOrder},
    status::{exit_status, rpc_status},
    status_of,
};
use crate::EngineError;

/// Messages that may wait for the client.
const MESSAGES: usize = 16;
/// Pieces of input that may wait for a process.
const PIECES: usize = 16;
/// Most processes of one stream.
const MAX_PROCESSES: usize = 256;
/// The exit code of a process of which none is known.
const UNKNOWN_EXIT: u32 = 255;

type Outgoing = mpsc::Sender<Result<ExecMessage, Status>>;

/// Talks with a client about processes, until it has said all and they have ended, or it is gone, or their build.
pub(super) fn talk(
    bridge: &Arc<Bridge>,
    incoming: Streaming<ExecMessage>,
) -> mpsc::Receiver<Result<ExecMessage, Status>> {
    let (outgoing, messages) = mpsc::channel(MESSAGES);
    // A client that goes on listening does not keep a build.
    let (bridge, closed) = (Arc::downgrade(bridge), bridge.cancel.clone());
    tokio::spawn(async move {
        let mut talk =
            Talk { bridge, outgoing: outgoing.clone(), processes: HashMap::new(), tasks: JoinSet::new() };
        tokio::select! {
            // Nobody hears the rest.
            () = outgoing.closed() => {}
            result = talk.listen(incoming, &closed) => if let Err(status) = result {
                let _ = outgoing.send(Err(status)).await;
            }
        }
    });
    messages
}

struct Talk {
    bridge: Weak<Bridge>,
    outgoing: Outgoing,
    processes: HashMap<String, Talked>,
    /// Tell of the processes. They end with this; the processes do not: those are the container's.
    tasks: JoinSet<()>,
}

/// A process that is talked to.
struct Talked {
    input: Option<mpsc::Sender<Bytes>>,
    orders: mpsc::Sender<Order>,
}

impl Talk {
    async fn listen(
        &mut self,
        mut incoming: Streaming<ExecMessage>,
        closed: &CancellationToken,
    ) -> Result<(), Status> {
        while let Some(message) = closed.run_until_cancelled(incoming.message()).await.transpose()?.flatten()
        {
            let ExecMessage { process_id: id, input } = message;
            if id.is_empty() {
                return Err(Status::invalid_argument("ProcessID required"));
            }
            match input {
                Some(Input::Init(init)) => self.init(id, init).await?,
                Some(Input::File(file)) => self.input(&id, file).await?,
                Some(Input::Resize(size)) => {
                    let number = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                    let size = WindowSize { rows: number(size.rows), columns: number(size.cols) };
                    self.order(&id, Order::Resize(size)).await?;
                }
                Some(Input::Signal(signal)) => {
                    let parsed = signal.name.parse::<Signal>();
                    let parsed = parsed
                        .map_err(|_| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                    self.order(&id, Order::Signal(parsed)).await?;
                }
                Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                    let what = format!("a message for process {id:?} that clients do not send");
                    return Err(Status::invalid_argument(what));
                }
            }
        }
        // The client has said all that it has to say, or the build has ended, and all processes with it.
        while self.tasks.join_next().await.is_some() {}
        Ok(())
    }

    async fn init(&mut self, id: String, init: InitMessage) -> Result<(), Status> {
        if self.processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_PROCESSES} processes in one stream"
            )));
        }
        let name = &init.container_id;
        let container = self.bridge.upgrade().and_then(|bridge| bridge.container(name)).ok_or_else(|| {
            Status::not_found(format!("container {name:?} previously released or not created"))
        })?;
        let Some(meta) = init.meta else {
            return Err(Status::invalid_argument(format!("process {id:?} without meta")));
        };
        if let Some(fd) = init.fds.iter().find(|fd| **fd > 2) {
            return Err(Status::invalid_argument(format!("process {id:?} with descriptor {fd}")));
        }
        let order = StartOrder {
            meta,
            security: init.security,
            secret_env: init.secretenv,
            terminal: init.tty,
            streams: [0, 1, 2].map(|fd| init.fds.contains(&fd)),
        };
        let process = container.start(order).await.map_err(|error| status_of(&error))?;
        let Process { stdin, stdout, stderr, orders, started, ended } = process;
        let input = stdin.map(|stdin| {
            let (input, pieces) = mpsc::channel(PIECES);
            self.tasks.spawn(feed(stdin, pieces));
            input
        });
        self.processes.insert(id.clone(), Talked { input, orders });
        let out = self.outgoing.clone();
        self.tasks.spawn(async move {
            // Dropped, it was not started; what became of it follows.
            let _ = started.await;
            let told = Told { id, out };
            told.send(Input::Started(StartedMessage {})).await;
            tokio::join!(told.forward(1, stdout), told.forward(2, stderr));
            let ended = match ended.await {
                Ok(ended) => ended,
                Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
                Err(_) => Err(EngineError::Canceled),
            };
            let exit = match ended {
                Ok(status) if status.success() => ExitMessage::default(),
                Ok(status) => {
                    ExitMessage { code: status.code.unsigned_abs(), error: Some(exit_status(status.code)) }
                }
                Err(error) => ExitMessage { code: UNKNOWN_EXIT, error: Some(rpc_status(&error)) },
            };
            told.send(Input::Exit(exit)).await;
            told.send(Input::Done(DoneMessage {})).await;
        });
        Ok(())
    }

    fn find(&mut self, id: &str) -> Result<&mut Talked, Status> {
        let found = self.processes.get_mut(id);
        found.ok_or_else(|| Status::not_found(format!("IO for process {id:?} not found")))
    }

    async fn input(&mut self, id: &str, file: FdMessage) -> Result<(), Status> {
        let FdMessage { fd, eof, data } = file;
        let process = self.find(id)?;
        let input = process.input.as_ref().filter(|_| fd == 0);
        let input = input.ok_or_else(|| Status::out_of_range(format!("fd {fd} unavailable to write")))?;
        if !data.is_empty() {
            // A process that has ended reads no more.
            let _ = input.send(data.into()).await;
        }
        if eof {
            process.input = None;
        }
        Ok(())
    }

    async fn order(&mut self, id: &str, order: Order) -> Result<(), Status> {
        // A process that has ended takes none.
        let _ = self.find(id)?.orders.send(order).await;
        Ok(())
    }
}

/// Gives a process its input, until there is no more or it takes no more.
async fn feed(mut stdin: DuplexStream, mut pieces: mpsc::Receiver<Bytes>) {
    while let Some(piece) = pieces.recv().await {
        if stdin.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// What a client is told of one process.
struct Told {
    id: String,
    out: Outgoing,
}

impl Told {
    async fn send(&self, input: Input) {
        // Who is gone misses nothing.
        let _ = self.out.send(Ok(ExecMessage { process_id: self.id.clone(), input: Some(input) })).await;
    }

    async fn forward(&self, fd: u32, output: Option<mpsc::Receiver<Bytes>>) {
        let Some(mut output) = output else { return };
        while let Some(data) = output.recv().await {
            self.send(Input::File(FdMessage { fd, eof: false, data: data.into() })).await;
        }
        self.send(Input::File(FdMessage { fd, eof: true, data: Vec::new() })).await;
    }
}
