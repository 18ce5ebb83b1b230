"""How a daemon is spoken to: the docker CLI, curl, and plain HTTP for what is not timed."""

import http.client
import json
import os
import select
import socket
import subprocess
import time
from urllib.parse import quote, urlencode, urlparse


class BenchError(Exception):
    """Work that did not succeed; its text says what, and what the daemon or client printed."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """A daemon behind `host` (unix:///path or tcp://address:port), with a time limit for each command in seconds."""

    def __init__(self, host, docker, directory, timeout):
        self.host, self.docker, self.timeout = host, docker, timeout
        self.directory = directory
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

    def image_size(self, image):
        """Bytes of an image; an error when it is not there."""
        return json.loads(self.succeed("GET", f"/images/{quote(image)}/json"))["Size"]

    def remove(self, image):
        """Removes an image, if it is there."""
        self.request("DELETE", f"/images/{quote(image)}?force=1")

    def prune(self):
        """Empties the build cache."""
        self.succeed("POST", "/build/prune?all=1")

    def import_image(self, rootfs, name):
        """Makes an image of a tar file."""
        repository, _, tag = name.partition(":")
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": 'CMD ["/bin/sh"]'})
        self.succeed("POST", f"/images/create?{query}", rootfs, {"Content-Type": "application/x-tar"})

    def load(self, archive):
        """Loads the images of an archive."""
        with open(archive, "rb") as body:
            headers = {"Content-Type": "application/x-tar", "Content-Length": str(os.path.getsize(archive))}
            self.succeed("POST", "/images/load?quiet=1", body, headers)

    def build_command(self, directory, tag, *, buildkit=True, options=()):
        """The CLI's command line and environment; RUN has the host's network at every daemon, as dockerd runs without bridges."""
        command = [self.docker, "build", "--network=host", "-t", tag, *options, str(directory)]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._config),
            "DOCKER_CONFIG": str(self._config),
            "DOCKER_HOST": self.host,
            "DOCKER_BUILDKIT": "1" if buildkit else "0",
            "BUILDKIT_PROGRESS": "plain",
        }
        return command, environment

    def build(self, directory, tag, *, buildkit=True, options=()):
        """Builds with the docker CLI; returns seconds."""
        command, environment = self.build_command(directory, tag, buildkit=buildkit, options=options)
        return self._timed(command, environment)

    def build_many(self, directories, tag):
        """Builds all directories at once; returns the seconds until the last has ended."""
        processes, logs = [], []
        try:
            begin = time.monotonic()
            for number, directory in enumerate(directories):
                command, environment = self.build_command(directory, f"{tag}-{number}")
                logs.append(open(self.directory / f"build-{number}.log", "wb+"))
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=logs[-1], stderr=logs[-1])
                )
            self._wait(processes)
            seconds = time.monotonic() - begin
            for process, log in zip(processes, logs):
                if process.returncode != 0:
                    raise BenchError(f"a build of several failed:\n{_tail(log)}")
            return seconds
        finally:
            _end(processes)
            for log in logs:
                log.close()

    def post_build(self, tar, query):
        """Posts a tar file's bytes from the command `tar` to /build with curl; returns seconds."""
        where = ["--unix-socket", self._url.path] if self._url.scheme == "unix" else []
        authority = "localhost" if where else self._url.netloc
        command = ["curl", "-sS", "--fail-with-body", *where, "-X", "POST", "-H", "Content-Type: application/x-tar", "-H", "Expect:"]
        command += ["-T", "-", f"http://{authority}/build?{urlencode(query)}"]
        with open(self.directory / "build.log", "wb+") as log:
            begin = time.monotonic()
            packer = subprocess.Popen(tar, stdout=subprocess.PIPE)
            curl = None
            try:
                curl = subprocess.Popen(command, stdin=packer.stdout, stdout=log, stderr=log)
                packer.stdout.close()
                self._wait([curl])
                seconds = time.monotonic() - begin
            except BenchError as error:
                raise BenchError(f"POST /build {error}\n{_tail(log)}") from None
            finally:
                _end(filter(None, [curl, packer]))
            if curl.returncode != 0 or "errorDetail" in _tail(log):
                raise BenchError(f"POST /build: {_tail(log)}")
        return seconds

    def post_archive(self, archive, query):
        """Posts a tar file's bytes to /build without any program between; returns seconds from the request to the answer's end."""
        begin = time.monotonic()
        self.succeed("POST", f"/build?{urlencode(query)}", archive, {"Content-Type": "application/x-tar"})
        return time.monotonic() - begin

    def run_version(self):
        """Runs `docker version`: what the CLI takes to start and to ask the daemon one thing; returns seconds."""
        _, environment = self.build_command(".", "")
        return self._timed([self.docker, "version"], environment)

    def _timed(self, command, environment):
        with open(self.directory / "build.log", "wb+") as log:
            begin = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                self._wait([process])
                seconds = time.monotonic() - begin
            except BenchError as error:
                raise BenchError(f"{' '.join(command)}: {error}\n{_tail(log)}") from None
            finally:
                _end([process])
            if process.returncode != 0:
                raise BenchError(f"{' '.join(command)}: exit code {process.returncode}\n{_tail(log)}")
        return seconds

    def _wait(self, processes):
        """Waits for the end of all. Popen.wait with a time limit looks only every 50 ms, which is no way to measure."""
        limit = time.monotonic() + self.timeout
        for process in processes:
            handle = os.pidfd_open(process.pid)
            try:
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(max(0, limit - time.monotonic()) * 1000):
                    raise BenchError(f"took more than {self.timeout} s")
            finally:
                os.close(handle)
            process.wait()


def _end(processes):
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _tail(log):
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 2000))
    return log.read().decode(errors="replace").strip()
