"""What is built: the base image, and files that no daemon has seen before."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from .client import BenchError

BENCH = Path(__file__).resolve().parents[1]
DEBIAN = "bookworm"
BUSYBOX = "/bin/busybox"
BASE_IMAGE = "lapstrake-bench-base:latest"

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def _add(archive, name, *, data=None, mode=0o755, kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, target, 1_700_000_000
    entry.size = len(data or b"")
    archive.addfile(entry, io.BytesIO(data or b""))


def compile_program(source, program):
    """Makes a static program of a C source beside this package."""
    subprocess.run(["cc", "-O2", "-static", "-o", str(program), str(BENCH / source)], check=True)


def write_base(path, writer):
    """Debian's static busybox under all its names, and the program that writes many files, as a tar file."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    with tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr", 0o755)):
            _add(archive, name, mode=mode, kind=tarfile.DIRTYPE)
        for name, program in (("busybox", Path(BUSYBOX)), ("write-files", writer)):
            _add(archive, f"bin/{name}", data=program.read_bytes())
        for applet in applets:
            if applet != "busybox":
                _add(archive, f"bin/{applet}", mode=0o777, kind=tarfile.SYMTYPE, target="busybox")
        _add(archive, "etc/passwd", data=_PASSWD, mode=0o644)
        _add(archive, "etc/group", data=_GROUP, mode=0o644)


def write_debian(path):
    """A Debian with a C compiler as a tar file, made by mmdebstrap from the machine's own package sources: minutes."""
    if shutil.which("mmdebstrap") is None:
        raise BenchError("mmdebstrap is not here; on Debian: apt-get install mmdebstrap; or name a tar file with --debian")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=gcc,libc6-dev,make", DEBIAN, str(path)]
    environment = dict(os.environ, TMPDIR=str(path.parent))
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def compress_fresh(rootfs, path, nonce):
    """Compresses a tar file with one more file that nobody has seen; returns its diff id.

    The tar's own part is compressed once. What is fresh is a second gzip member behind it, which gzip files may have.
    """
    # What marks the end of a tar file, and whatever fills its last record.
    end = _end_of_entries(rootfs)
    first = rootfs.with_suffix(".gz")
    if not first.exists():
        with open(first, "wb") as packed:
            packer = subprocess.Popen(["gzip", "-nc"], stdin=subprocess.PIPE, stdout=packed)
            for block in _blocks(rootfs, end):
                packer.stdin.write(block)
            packer.stdin.close()
            if packer.wait() != 0:
                raise BenchError(f"gzip: exit code {packer.returncode}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, "nonce", data=nonce.encode(), mode=0o644)
    digest = hashlib.sha256()
    for block in _blocks(rootfs, end):
        digest.update(block)
    digest.update(buffer.getvalue())
    shutil.copy(first, path)
    with open(path, "ab") as packed:
        packed.write(gzip.compress(buffer.getvalue(), mtime=0))
    return "sha256:" + digest.hexdigest()


def _blocks(path, end):
    with open(path, "rb") as file:
        while file.tell() < end:
            yield file.read(min(1 << 20, end - file.tell()))


def _end_of_entries(path):
    """Where a tar file's last entry ends: what is behind it are zeros."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            filled = len(file.read(end - start).rstrip(b"\0"))
            if filled:
                return (start + filled + 511) // 512 * 512
            end = start
    raise BenchError(f"{path} is empty")


def kernel_run(work):
    """Seconds that the kernel alone takes for a RUN (floor.c)."""
    directory = work / "floor"
    (directory / "layers").mkdir(parents=True)
    try:
        compile_program("floor.c", directory / "floor")
        command = [str(directory / "floor"), str(directory / "layers"), BUSYBOX, "50"]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(found.stdout.split()[1]) / 1000
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def own_disk(directory, gib):
    """A new ext4 of so many GiB, in a file below a directory, for as long as a `with` lasts; the directory itself without a size.

    Without a journal (as on some cloud machines), ext4 looks past all that was deleted in the last minutes for each file that it makes:
    then whoever deletes much on the same disk slows everybody.
    """
    if not gib:
        yield directory
        return
    image, point = directory / "disk.img", directory / "d"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(gib << 30)
    # All of it is written now, and not by a thread of the kernel while something is measured.
    settled = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", settled, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()


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


def write_c_project(directory, count):
    """So many sources, each with functions enough to be work for a compiler, and a Makefile that compiles two at a time."""
    directory.mkdir(parents=True)
    names = [f"part{number}" for number in range(count)]
    for name in names:
        _write_source(directory, name, os.urandom(4).hex())
    calls = "".join(f"int {name}(int);\n" for name in names)
    total = " + ".join(f"{name}(argc)" for name in names)
    (directory / "main.c").write_text(f"{calls}int main(int argc, char **argv) {{ (void)argv; return ({total}) == -1; }}\n")
    objects = " ".join(f"{name}.o" for name in ("main", *names))
    (directory / "Makefile").write_text(f"MAKEFLAGS += -j2\nCFLAGS = -O2\napp: {objects}\n\t$(CC) -static -o $@ $^\n")


def change_c_project(directory):
    """One of the sources becomes another one."""
    _write_source(directory, "part0", os.urandom(4).hex())


def _write_source(directory, name, nonce):
    functions = "".join(
        f"static int f{number}(int x) {{ for (int i = 0; i < {number + 3}; i++) x = x * 31 + (int)(0x{nonce}u >> i % 8); return x; }}\n"
        for number in range(30)
    )
    total = " ^ ".join(f"f{number}(x)" for number in range(30))
    (directory / f"{name}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{functions}int {name}(int x) {{ return {total}; }}\n")
