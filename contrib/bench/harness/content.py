"""What is built: the base image, and files that no daemon has seen before."""

import io
import json
import hashlib
import os
import subprocess
import tarfile

BUSYBOX = "/bin/busybox"
BASE_IMAGE = "lapstrake-bench-base:latest"

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def _add(archive, name, *, data=None, mode=0o755, kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, target, 1_700_000_000
    entry.size = len(data or b"")
    archive.addfile(entry, io.BytesIO(data or b""))


def base_rootfs():
    """Debian's static busybox under all its names, as a tar file: what the tests in integration-cli build on, too."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr", 0o755)):
            _add(archive, name, mode=mode, kind=tarfile.DIRTYPE)
        with open(BUSYBOX, "rb") as program:
            _add(archive, "bin/busybox", data=program.read())
        for applet in applets:
            if applet != "busybox":
                _add(archive, f"bin/{applet}", mode=0o777, kind=tarfile.SYMTYPE, target="busybox")
        _add(archive, "etc/passwd", data=_PASSWD, mode=0o644)
        _add(archive, "etc/group", data=_GROUP, mode=0o644)
    return buffer.getvalue()


def write_archive_of_images(path, count):
    """Writes a `docker load` archive of `count` tiny images `bench-store:<n>`, each with a layer of its own."""
    manifest = []
    with tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(count):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as layer:
                _add(layer, "number", data=b"%d\n" % number, mode=0o644)
            layer = buffer.getvalue()
            diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
            config = json.dumps(
                {
                    "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
                    "os": "linux",
                    "config": {"Cmd": ["/number"]},
                    "created": "2023-11-14T22:13:20Z",
                    "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"number {number}"}],
                    "rootfs": {"type": "layers", "diff_ids": [diff_id]},
                }
            ).encode()
            name = hashlib.sha256(config).hexdigest()
            _add(archive, f"{name}.json", data=config, mode=0o644)
            _add(archive, f"{name}/layer.tar", data=layer, mode=0o644)
            tags = [f"bench-store:{number}"]
            manifest.append({"Config": f"{name}.json", "RepoTags": tags, "Layers": [f"{name}/layer.tar"]})
        _add(archive, "manifest.json", data=json.dumps(manifest).encode(), mode=0o644)


def write_random(path, size):
    """A file of `size` fresh random bytes."""
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, 1 << 20)))


def write_small_files(directory, count, average):
    """`count` files of `average` bytes on average, a hundred to a directory; returns the path of one of them."""
    random = os.urandom(3 * average)
    path = None
    for number in range(count):
        folder = directory / f"d{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        path = folder / f"f{number:06}.txt"
        # Sizes from half to one and a half of the average; the contents differ by their first bytes.
        size = average // 2 + (number * 7919) % average
        start = (number * 104_729) % (len(random) - size)
        with open(path, "wb") as file:
            file.write(b"%d %s" % (number, random[:8]))
            file.write(random[start : start + size])
    return path
