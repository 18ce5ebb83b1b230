"""How a peer is told to build: the docker CLI, curl and plain HTTP for daemons; the buildah program."""

import http.client
import json
import os
import select
import shutil
import socket
import subprocess
import time
from urllib.parse import quote, urlencode, urlparse


class BenchError(Exception):
    """Work that did not succeed; its text says what, and what the daemon or client printed."""


class CannotRun(Exception):
    """A peer has no such thing; its text says why. It is told beneath the table, and is no failure."""


class Client:
    """What all clients share: programs that are timed to their end, with a time limit for each in seconds."""

    def __init__(self, directory, timeout):
        self.directory, self.timeout = directory, timeout
        # Programs that run now.
        self.running = []

    def build_command(self, directory, tag, options=()):
        """The command line and environment of a build."""
        raise NotImplementedError

    def build(self, directory, tag, *, options=()):
        """Builds; returns seconds."""
        return self.timed(*self.build_command(directory, tag, options))

    def build_many(self, directories, tag):
        """Builds all directories at once, as `tag`-0, `tag`-1 …; returns the seconds until the last has ended."""
        commands = [self.build_command(directory, f"{tag}-{number}") for number, directory in enumerate(directories)]
        return self._run(commands)

    def timed(self, command, environment):
        """Runs a program; returns seconds. One that fails is an error with what it printed."""
        return self._run([(command, environment)])

    def _run(self, commands):
        logs = [open(self.directory / f"client-{number}.log", "wb+") for number in range(len(commands))]
        try:
            begin = time.monotonic()
            for (command, environment), log in zip(commands, logs):
                self.running.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            try:
                wait(self.running, self.timeout)
            except BenchError as error:
                raise BenchError(f"{' '.join(commands[0][0])}: {error}\n{tail(logs[0])}") from None
            seconds = time.monotonic() - begin
            for (command, _), process, log in zip(commands, self.running, logs):
                if process.returncode != 0:
                    raise BenchError(f"{' '.join(command)}: exit code {process.returncode}\n{tail(log)}")
            return seconds
        finally:
            end(self.running)
            self.running = []
            for log in logs:
                log.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerClient(Client):
    """A daemon behind `host` (unix:///path or tcp://address:port)."""

    def __init__(self, host, docker, directory, timeout):
        super().__init__(directory, timeout)
        self.host, self.docker = host, docker
        self._config = directory / "docker-config"
        self._config.mkdir(parents=True, exist_ok=True)
        self._url = urlparse(host)
        if self._url.scheme not in ("unix", "tcp"):
            raise BenchError(f"{host}: a host is unix:///path or tcp://address:port")

    def request(self, method, path, body=None, headers=None):
        """One request to its end; returns status and body."""
        if self._url.scheme == "unix":
            connection = _UnixConnection(self._url.path, self.timeout)
        else:
            connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=self.timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def succeed(self, method, path, body=None, headers=None):
        """The same; a status of 400 or more is an error."""
        status, answer = self.request(method, path, body, headers)
        if status >= 400 or b'"errorDetail"' in answer:
            raise BenchError(f"{method} {path}: {status} {answer[-2000:].decode(errors='replace').strip()}")
        return answer

    def answers(self):
        """Whether GET /_ping is answered now."""
        try:
            return self.request("GET", "/_ping")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def version(self):
        """The daemon's own version."""
        return json.loads(self.succeed("GET", "/version")).get("Version", "?")

    def at_least(self, image, size):
        """An image that lacks its content is not fast, but wrong."""
        found = json.loads(self.succeed("GET", f"/images/{quote(image)}/json"))["Size"]
        if found < size:
            raise BenchError(f"{image} has {found} bytes; its content alone has {size}")

    def remove(self, image):
        """Removes an image, if it is there."""
        self.request("DELETE", f"/images/{quote(image, safe='')}?force=1")

    def prune(self):
        """Empties the build cache."""
        self.succeed("POST", "/build/prune?all=1")

    def import_image(self, rootfs, name):
        """Makes an image of a tar file."""
        repository, _, tag = name.partition(":")
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": 'CMD ["/bin/sh"]'})
        self._upload(f"/images/create?{query}", rootfs)

    def load(self, archive):
        """Loads the images of an archive."""
        self._upload("/images/load?quiet=1", archive)

    def _upload(self, path, file):
        with open(file, "rb") as body:
            headers = {"Content-Type": "application/x-tar", "Content-Length": str(os.path.getsize(file))}
            self.succeed("POST", path, body, headers)

    def _docker(self, *arguments, buildkit=True):
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._config),
            "DOCKER_CONFIG": str(self._config),
            "DOCKER_HOST": self.host,
            "DOCKER_BUILDKIT": "1" if buildkit else "0",
            "BUILDKIT_PROGRESS": "plain",
        }
        return [self.docker, *arguments], environment

    def build_command(self, directory, tag, options=()):
        # The host's network at every daemon, as dockerd runs without bridges.
        return self._docker("build", "--network=host", "-t", tag, *options, str(directory))

    def build_classic(self, directory, tag):
        """Builds with the docker CLI without BuildKit; returns seconds."""
        return self.timed(*self._docker("build", "--network=host", "-t", tag, str(directory), buildkit=False))

    def push(self, tag, reference):
        """Names an image `reference` and pushes it; returns the seconds of the push."""
        repository, _, version = reference.rpartition(":")
        self.succeed("POST", f"/images/{quote(tag)}/tag?{urlencode({'repo': repository, 'tag': version})}")
        try:
            return self.timed(*self._docker("push", "--quiet", reference))
        finally:
            self.remove(reference)

    def show_version(self):
        """Runs `docker version`: what the CLI takes to start and to ask the daemon one thing; returns seconds."""
        return self.timed(*self._docker("version"))

    def post_build(self, tar, query):
        """Posts a tar file's bytes from the command `tar` to /build with curl; returns seconds."""
        where = ["--unix-socket", self._url.path] if self._url.scheme == "unix" else []
        authority = "localhost" if where else self._url.netloc
        command = ["curl", "-sS", "--fail-with-body", *where, "-X", "POST", "-H", "Content-Type: application/x-tar", "-H", "Expect:"]
        command += ["-T", "-", f"http://{authority}/build?{urlencode(query)}"]
        with open(self.directory / "client-0.log", "wb+") as log:
            begin = time.monotonic()
            packer = subprocess.Popen(tar, stdout=subprocess.PIPE)
            curl = None
            try:
                curl = subprocess.Popen(command, stdin=packer.stdout, stdout=log, stderr=log)
                packer.stdout.close()
                wait([curl], self.timeout)
                seconds = time.monotonic() - begin
            except BenchError as error:
                raise BenchError(f"POST /build {error}\n{tail(log)}") from None
            finally:
                end(filter(None, [curl, packer]))
            if curl.returncode != 0 or "errorDetail" in tail(log):
                raise BenchError(f"POST /build: {tail(log)}")
        return seconds

    def post_archive(self, archive, query):
        """Posts a tar file's bytes to /build without any program between; returns seconds from the request to the answer's end."""
        begin = time.monotonic()
        self.succeed("POST", f"/build?{urlencode(query)}", archive, {"Content-Type": "application/x-tar"})
        return time.monotonic() - begin


class BuildahClient(Client):
    """The buildah program over a store of its own."""

    def __init__(self, program, runtime, directory, timeout):
        super().__init__(directory, timeout)
        self.program, self.runtime = program, runtime
        (directory / "tmp").mkdir(parents=True, exist_ok=True)

    def _buildah(self, *arguments):
        store = ["--root", str(self.directory / "root"), "--runroot", str(self.directory / "run"), "--storage-driver", "overlay"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory), "TMPDIR": str(self.directory / "tmp")}
        return [self.program, *store, *arguments], environment

    def build_command(self, directory, tag, options=()):
        # --layers: a cache of each step, as daemons have it. --jobs 0: stages at the same time.
        command = ["build", "--layers", "--jobs", "0", "--network", "host", "--runtime", self.runtime, "--tls-verify=false"]
        return self._buildah(*command, "-t", tag, *options, str(directory))

    def version(self):
        """What the program calls itself."""
        words = subprocess.run([self.program, "--version"], check=True, capture_output=True, text=True).stdout.split()
        return f"{words[2]} with {os.path.basename(self.runtime)}"

    def at_least(self, image, size):
        """buildah tells sizes for people only: what it built is not looked at."""

    def remove(self, image):
        """Removes an image, if it is there."""
        command, environment = self._buildah("rmi", "--force", image)
        subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def prune(self):
        """Removes what no name leads to: the images of single steps."""
        self.timed(*self._buildah("rmi", "--prune", "--force"))

    def import_image(self, rootfs, name):
        """Makes an image of a tar file."""
        context = self.directory / "import"
        context.mkdir()
        shutil.copy(rootfs, context / "rootfs.tar")
        (context / "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nCMD ["/bin/sh"]\n')
        try:
            self.build(context, name)
        finally:
            shutil.rmtree(context)

    def push(self, tag, reference):
        """Pushes an image; returns seconds."""
        return self.timed(*self._buildah("push", "--quiet", "--tls-verify=false", tag, f"docker://{reference}"))

    def save_oci(self, tag, file):
        """Writes an image as a compressed OCI layout in a tar file; returns seconds."""
        return self.timed(*self._buildah("push", "--quiet", tag, f"oci-archive:{file}"))


def wait(processes, timeout):
    """Waits for the end of all. Popen.wait with a time limit looks only every 50 ms, which is no way to measure."""
    limit = time.monotonic() + timeout
    for process in processes:
        handle = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(max(0, limit - time.monotonic()) * 1000):
                raise BenchError(f"took more than {timeout} s")
        finally:
            os.close(handle)
        process.wait()


def end(processes):
    """Ends those that still run."""
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def tail(log):
    """The end of a log."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 2000))
    return log.read().decode(errors="replace").strip()
