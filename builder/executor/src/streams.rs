//! What goes into a process and comes out of it, on the daemon's side: pipes, or a terminal.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    InputSource, Order, OutputSink, ProcessIo, Signal, helper, sys,
    talk::{Talk, WindowSize},
};

/// Chunk of output and input.
const CHUNK: usize = 64 << 10;

/// A terminal that is there, or is to come.
type Terminal = watch::Receiver<Option<Arc<End>>>;

/// Our side of all streams of one process.
pub(crate) struct Conversation {
    pub(crate) outputs: Outputs,
    pub(crate) words: Words,
}

/// What comes out.
pub(crate) enum Outputs {
    Pipes { stdout: (End, OutputSink), stderr: (End, OutputSink) },
    Terminal { arrives: oneshot::Receiver<OwnedFd>, sink: OutputSink, show: watch::Sender<Option<Arc<End>>> },
}

/// What goes in, and what is asked of the process otherwise.
pub(crate) struct Words {
    input: Option<(Box<dyn AsyncRead + Send + Unpin>, Target)>,
    orders: Option<mpsc::Receiver<Order>>,
    terminal: Option<Terminal>,
}

enum Target {
    Pipe(End),
    Terminal(Terminal),
}

/// Whom to tell what the helper says of the process.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) started: Option<oneshot::Sender<()>>,
    pub(crate) terminal: Option<oneshot::Sender<OwnedFd>>,
}

impl Conversation {
    /// Makes what `io` asks for. Gives what the helper has to know, and the process's descriptors in the order of
    /// [`crate::wire::Request::Run`].
    pub(crate) fn open(io: ProcessIo) -> io::Result<(Self, Talk, Vec<OwnedFd>, Heard)> {
        let (stdout, to_stdout) = pipe()?;
        let (stderr, to_stderr) = pipe()?;
        let mut fds = vec![to_stdout, to_stderr];
        let mut talk = Talk { started: io.started.is_some(), ..Talk::default() };
        let mut heard = Heard { started: io.started, terminal: None };
        let reader = match io.stdin {
            InputSource::Empty => None,
            InputSource::Reader(reader) => Some(reader),
        };
        let Some(size) = io.terminal else {
            let input = match reader {
                None => None,
                Some(reader) => {
                    let (read, write) = pipe()?;
                    fds.push(read);
                    talk.stdin = true;
                    Some((reader, Target::Pipe(End::new(write)?)))
                }
            };
            let (stdout, stderr) = (End::new(stdout)?, End::new(stderr)?);
            let outputs = Outputs::Pipes { stdout: (stdout, io.stdout), stderr: (stderr, io.stderr) };
            let words = Words { input, orders: io.orders, terminal: None };
            return Ok((Self { outputs, words }, talk, fds, heard));
        };
        // The pipes stay unused.
        talk.terminal = Some(size);
        let (show, terminal) = watch::channel(None);
        let (arrived, arrives) = oneshot::channel();
        heard.terminal = Some(arrived);
        let input = reader.map(|reader| (reader, Target::Terminal(terminal.clone())));
        let words = Words { input, orders: io.orders, terminal: Some(terminal) };
        let outputs = Outputs::Terminal { arrives, sink: io.stdout, show };
        Ok((Self { outputs, words }, talk, fds, heard))
    }
}

impl Outputs {
    /// Moves all output to its sinks, to its end; once `quit` fires, only what is there already.
    pub(crate) async fn pump(self, quit: &CancellationToken) {
        match self {
            Self::Pipes { stdout, stderr } => {
                tokio::join!(pump(&stdout.0, stdout.1, quit), pump(&stderr.0, stderr.1, quit));
            }
            Self::Terminal { arrives, sink, show } => {
                // None comes where the process could not be made.
                if let Ok(end) = arrives.await
                    && let Ok(end) = End::new(end)
                {
                    let end = Arc::new(end);
                    show.send_replace(Some(Arc::clone(&end)));
                    pump(&end, sink, quit).await;
                }
            }
        }
    }
}

impl Words {
    /// Passes all of it on. `signal` gives the process a signal. Ends when there is nothing more to come.
    pub(crate) async fn pass<F: Future<Output = ()>>(self, signal: impl Fn(Signal) -> F) {
        let Self { input, orders, terminal } = self;
        let feed = async {
            // A process that is gone, or reads no more, needs none.
            let _ = match input {
                None => Ok(()),
                Some((reader, Target::Pipe(end))) => feed(reader, &end).await,
                Some((reader, Target::Terminal(terminal))) => match there(terminal).await {
                    Some(end) => feed(reader, &end).await,
                    None => Ok(()),
                },
            };
        };
        let obey = async {
            let Some(mut orders) = orders else { return };
            while let Some(order) = orders.recv().await {
                match order {
                    Order::Signal(given) => signal(given).await,
                    Order::Resize(size) => resize(terminal.clone(), size).await,
                }
            }
        };
        tokio::join!(feed, obey);
    }
}

async fn resize(terminal: Option<Terminal>, size: WindowSize) {
    let Some(terminal) = terminal else { return };
    if let Some(end) = there(terminal).await {
        // It may have been hung up.
        let _ = helper::resize(end.0.as_fd(), size);
    }
}

async fn there(mut terminal: Terminal) -> Option<Arc<End>> {
    terminal.wait_for(Option::is_some).await.ok()?.clone()
}

async fn feed(mut from: Box<dyn AsyncRead + Send + Unpin>, to: &End) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// One end of a pipe or a terminal.
pub(crate) struct End(AsyncFd<OwnedFd>);

impl End {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(sys::watched(fd)?))
    }

    async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(read) = ready.try_io(|_| self.read_now(chunk)) {
                return read;
            }
        }
    }

    /// Reads what is there, `WouldBlock` if nothing is. Asks the kernel, not the event loop, which may hear of it late.
    fn read_now(&self, chunk: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(self.0.as_fd(), &mut *chunk))?)
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let write = || Ok(rustix::io::retry_on_intr(|| rustix::io::write(self.0.as_fd(), bytes))?);
            if let Ok(written) = ready.try_io(|_| write()) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}

/// The reading and the writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Moves output to its sink. A terminal that everybody has closed tells its end as an error.
async fn pump(end: &End, mut sink: OutputSink, quit: &CancellationToken) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = end.read(&mut chunk) => read,
            () = quit.cancelled() => Err(io::ErrorKind::WouldBlock.into()),
        };
        let read = match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.read_now(&mut chunk),
            read => read,
        };
        let Ok(length @ 1..) = read else { break };
        if deliver(&mut sink, Bytes::copy_from_slice(&chunk[..length])).await.is_err() {
            sink = OutputSink::Discard;
        }
    }
    if let OutputSink::Writer(writer) = &mut sink {
        // Its reader may be gone.
        let _ = writer.flush().await;
    }
}

/// The sink is gone.
struct SinkGone;

async fn deliver(sink: &mut OutputSink, chunk: Bytes) -> Result<(), SinkGone> {
    match sink {
        OutputSink::Discard => Ok(()),
        OutputSink::Channel(channel) => channel.send(chunk).await.map_err(|_| SinkGone),
        OutputSink::Writer(writer) => writer.write_all(&chunk).await.map_err(|_| SinkGone),
    }
}
