"""Debian's docker-registry on loopback, for scenarios that have one."""

import shutil
import socket
import subprocess
import time

from .client import BenchError

PATIENCE = 60


class Registry:
    """A registry over a directory, for as long as a `with` lasts."""

    def __init__(self, directory):
        self.directory = directory
        self.program = shutil.which("docker-registry")
        if self.program is None:
            raise BenchError("docker-registry is not here; on Debian: apt-get install docker-registry")
        self.host, self._process = None, None

    def __enter__(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.host = f"localhost:{port}"
        config = self.directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.directory / 'data'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        )
        with open(self.directory / "log", "ab") as log:
            command = [self.program, "serve", str(config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        begin = time.monotonic()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() - begin > PATIENCE:
                    self.__exit__()
                    raise BenchError(f"docker-registry does not answer; see {self.directory / 'log'}") from None
                time.sleep(0.01)

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
