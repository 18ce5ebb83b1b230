"""The daemons that are compared: how each is started on a private socket and directory, and ended by its process id."""

import os
import shutil
import signal
import subprocess
import time

from .client import BenchError, Client
from .memory import processor_seconds, resident

# Seconds that a daemon gets to answer, and to stop when told to.
PATIENCE = 120


class Daemon:
    """A daemon that this program starts. `launch` says how; everything else is the same for all."""

    starts = True
    # Whether RUN can have another network than the host's.
    has_networks = True

    def __init__(self, name, program, directory, docker, timeout):
        self.name, self.program = name, program
        self.directory = directory
        self._limits = (docker, timeout)
        self.directory.mkdir(parents=True)
        self.socket = directory / "s"
        if len(str(self.socket)) > 106:
            raise BenchError(f"{self.socket}: too long for a unix socket; choose a shorter --work-dir")
        self.client = Client(f"unix://{self.socket}", docker, directory, timeout)
        self.process = None

    def launch(self):
        """The command line."""
        raise NotImplementedError

    def sibling(self, name):
        """One more daemon of this kind, over a store of its own; removed with this one."""
        return type(self)(self.name, self.program, self.directory / name, *self._limits, **self.options())

    def options(self):
        """What else the constructor takes."""
        return {}

    def start(self):
        """Starts it; returns the seconds until the first answer to GET /_ping."""
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
        """Ends it, politely first."""
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
        self._unmount()

    def remove(self):
        """Ends it and removes its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self):
        """Its process id, if it runs."""
        return self.process.pid if self.process is not None else None

    def resident(self):
        """Bytes that it and its helpers have resident."""
        return resident(self.pid)

    def processor_seconds(self):
        """Processor time that it and its helpers have used."""
        return processor_seconds(self.pid)

    def log_tail(self):
        """The end of its log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-2000:]
        except OSError:
            return ""

    def _unmount(self):
        """dockerd leaves mounts behind."""
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            points = [line.split(" ")[4] for line in table]
        for point in reversed(points):
            if point.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)


class Lapstrake(Daemon):
    """`lapstrake daemon`, perhaps with an OCI runtime."""

    def __init__(self, *arguments, runtime=None):
        super().__init__(*arguments)
        self.runtime = runtime

    def options(self):
        return {"runtime": self.runtime}

    def launch(self):
        command = [self.program, "daemon", "--host", f"unix://{self.socket}", "--root", str(self.directory / "root")]
        return command + (["--oci-runtime", self.runtime] if self.runtime else [])


class Dockerd(Daemon):
    """Debian's `dockerd`, without networks."""

    has_networks = False

    def launch(self):
        # The configuration of this machine's own dockerd is none of ours.
        config = self.directory / "daemon.json"
        config.write_text("{}")
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


class Remote:
    """A daemon that somebody else started: `--host`. Its memory is known when its process id is given."""

    starts = False
    has_networks = True

    def __init__(self, host, pid, directory, docker, timeout):
        self.name, self.pid = host, pid
        self.directory = directory
        directory.mkdir(parents=True)
        self.client = Client(host, docker, directory, timeout)

    def start(self):
        """It runs; an error when it does not answer."""
        if not self.client.answers():
            raise BenchError(f"{self.name} does not answer GET /_ping")

    def stop(self):
        """It is not ours to stop."""

    def remove(self):
        """It keeps what it has, but for our base image, which main removes."""
        shutil.rmtree(self.directory, ignore_errors=True)
