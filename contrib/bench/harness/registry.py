"""Debian's docker-registry on loopback, for scenarios that have one."""

import hashlib
import http.client
import json
import os
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

    def put_image(self, name, layer, diff_id):
        """Stores an image `name`:latest of one gzip file, without any program between."""
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        config = {"architecture": machine, "os": "linux", "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        config = json.dumps(config).encode()
        with open(layer, "rb") as file:
            layer_digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        image = "application/vnd.docker.container.image.v1+json"
        archive = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
        manifest = {
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": image, "size": len(config), "digest": config_digest},
            "layers": [{"mediaType": archive, "size": os.path.getsize(layer), "digest": layer_digest}],
        }
        with open(layer, "rb") as file:
            self._put_blob(name, layer_digest, file, os.path.getsize(layer))
        self._put_blob(name, config_digest, config, len(config))
        self._request("PUT", f"/v2/{name}/manifests/latest", json.dumps(manifest).encode(), {"Content-Type": kind})

    def _put_blob(self, name, digest, body, size):
        where = self._request("POST", f"/v2/{name}/blobs/uploads/", b"", {}).getheader("Location")
        path = where.partition(self.host)[2]
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._request("PUT", f"{path}&digest={digest}", body, headers)

    def _request(self, method, path, body, headers):
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 300:
                raise BenchError(f"docker-registry: {method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
            return answer
        finally:
            connection.close()
