"""The peers that are compared: how each daemon is started on a private socket and directory, and ended by its process id; buildah;
and daemons that somebody else started."""

import os
import shutil
import signal
import subprocess
import time

from .client import BenchError, BuildahClient, CannotRun, DockerClient
from .memory import processor_seconds, resident

# Seconds that a daemon gets to answer, and to stop when told to.
PATIENCE = 120


class Peer:
    """One that takes part."""

    # Whether this program starts and ends it as a daemon; why not, where it does not.
    starts = False
    no_start = ""
    # Whether it is a daemon at all.
    is_daemon = True
    # Whether its rows are compared with the first peer's. Another form of the first itself is only shown.
    compared = True
    # Whether it takes part only where there is a RUN.
    only_run = False

    def __init__(self, name, directory):
        self.name, self.directory = name, directory
        directory.mkdir(parents=True)
        self.client = None
        # Highest sum of resident memory until now, in bytes.
        self.peak = 0

    def start(self):
        """Makes it ready; of daemons, returns the seconds until the first answer to GET /_ping."""

    def stop(self):
        """Ends what this program started."""

    def remove(self):
        """Ends it, and removes its directory."""
        self.stop()
        _unmount(self.directory)
        # Once more for what went while it was listed.
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def roots(self):
        """Process ids of the trees whose memory is its own."""
        return []

    def resident(self):
        """Bytes that it and its helpers have resident."""
        return sum(resident(pid) for pid in self.roots())

    def processor_seconds(self):
        """Processor time that it and its helpers have used."""
        return sum(processor_seconds(pid) for pid in self.roots())

    def save_oci(self, directory, tag, file):
        """Builds into a compressed OCI layout; returns seconds."""
        raise CannotRun("Debian's docker CLI has no output `type=oci`")


class Daemon(Peer):
    """A daemon that this program starts. `launch` says how; everything else is the same for all."""

    starts = True
    # Whether RUN can have another network than the host's.
    has_networks = True

    def __init__(self, name, program, directory, docker, timeout):
        super().__init__(name, directory)
        self.program, self._limits = program, (docker, timeout)
        self.socket = directory / "s"
        if len(str(self.socket)) > 106:
            raise BenchError(f"{self.socket}: too long for a unix socket; choose a shorter --work-dir")
        self.client = DockerClient(f"unix://{self.socket}", docker, directory, timeout)
        self.process = None

    def launch(self):
        """The command line."""
        raise NotImplementedError

    def sibling(self, name):
        """One more daemon of this kind, over a store of its own beneath this one's directory."""
        return type(self)(self.name, self.program, self.directory / name, *self._limits)

    def start(self):
        log = open(self.directory / "log", "ab")
        begin = time.monotonic()
        self.process = subprocess.Popen(self.launch(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        while not self.client.answers():
            if self.process.poll() is not None:
                raise BenchError(f"{self.name} ended before it answered; see {self.directory / 'log'}:\n{self.log_tail()}")
            if time.monotonic() - begin > PATIENCE:
                raise BenchError(f"{self.name} does not answer on {self.socket}")
            time.sleep(0.001)
        return time.monotonic() - begin

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def roots(self):
        return [self.process.pid] if self.process is not None else []

    def log_tail(self):
        """The end of its log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-2000:]
        except OSError:
            return ""


class Lapstrake(Daemon):
    """`lapstrake daemon`."""

    # Further options, of the daemon and of `lapstrake build`.
    options = ()

    def launch(self):
        return [self.program, "daemon", "--host", f"unix://{self.socket}", "--root", str(self.directory / "root"), *self.options]

    def roots(self):
        # The second is `lapstrake build`, below.
        return super().roots() + [process.pid for process in list(self.client.running) if process.args[0] == self.program]

    def save_oci(self, directory, tag, file):
        # Debian's CLI cannot receive it, so this is `lapstrake build`: its start is part of the time.
        command = [self.program, "build", "--progress", "quiet", "--root", str(self.directory / "alone"), "--network", "host"]
        command += self.options
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory)}
        try:
            return self.client.timed([*command, "-o", f"type=oci,dest={file}", str(directory)], environment)
        finally:
            shutil.rmtree(self.directory / "alone", ignore_errors=True)


class LapstrakeWithRuntime(Lapstrake):
    """The same, whose RUN are made by an OCI runtime: shown beside it, and no peer to be compared with."""

    compared = False
    only_run = True

    def __init__(self, name, program, directory, docker, timeout):
        super().__init__(name, program, directory, docker, timeout)
        self.options = ("--oci-runtime", shutil.which(name.removeprefix("lapstrake-")))


class Dockerd(Daemon):
    """Debian's `dockerd`, without networks."""

    has_networks = False

    def launch(self):
        # The configuration of this machine's own dockerd is none of ours, and its key is no file of ours.
        config = self.directory / "daemon.json"
        config.write_text('{"deprecated-key-path": "%s"}' % (self.directory / "key.json"))
        return [
            self.program, "--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "exec"),
            "-p", str(self.directory / "pid"), "-H", f"unix://{self.socket}", "--bridge=none", "--iptables=false",
            "--config-file", str(config),
        ]

    def stop(self):
        super().stop()
        # After an end by force its containerd is still there.
        try:
            pid = int((self.directory / "exec/containerd/containerd.pid").read_text())
            if str(self.directory) in (open(f"/proc/{pid}/cmdline", encoding="utf-8").read()):
                os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            pass

    def save_oci(self, directory, tag, file):
        raise CannotRun("dockerd 20.10 has no output `type=oci`")


class Buildah(Peer):
    """The buildah program over a private store, with the first of crun and runc that works for it on this machine."""

    is_daemon = False
    no_start = "buildah is no daemon"

    def __init__(self, name, program, directory, timeout):
        super().__init__(name, directory)
        runtimes = [path for path in map(shutil.which, ("crun", "runc")) if path]
        if not runtimes:
            raise BenchError("buildah needs crun or runc; on Debian: apt-get install crun")
        self.client = BuildahClient(program, runtimes[0], directory, timeout)
        self._others = runtimes[1:]

    def try_next(self):
        """Takes the next runtime; whether there was one."""
        if self._others:
            self.client.runtime = self._others.pop(0)
            return True
        return False

    def roots(self):
        return [process.pid for process in list(self.client.running)]

    def save_oci(self, directory, tag, file):
        return self.client.build(directory, tag) + self.client.save_oci(tag, file)


class Remote(Peer):
    """A daemon that somebody else started: `--host`. Its memory is known when its process id is given."""

    no_start = "somebody else started it"
    has_networks = True

    def __init__(self, host, pid, directory, docker, timeout):
        super().__init__(host, directory)
        self._pid = pid
        self.client = DockerClient(host, docker, directory, timeout)

    def start(self):
        if not self.client.answers():
            raise BenchError(f"{self.name} does not answer GET /_ping")

    def roots(self):
        return [self._pid] if self._pid is not None else []


def _unmount(directory):
    """dockerd and buildah leave mounts behind."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        points = [line.split(" ")[4] for line in table]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
