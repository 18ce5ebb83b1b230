"""The scenarios of the table in README.md, with their goals.

To add one: a subclass of Scenario with its rows, `fresh` and `measure`, and its name in `table` at the end.
"""

import shutil
import statistics
import subprocess
import time
import uuid

from . import content
from .registry import Registry
from .scenario import BASE, MIB, Row, Scenario, plain, run_chain, settle, write


class Start(Scenario):
    """A daemon of its own over a store of a thousand images."""

    name = "start"
    needs_start = True
    bytes = 100 * MIB
    rows = {
        "ping": Row("start to first `/_ping`, store with 1,000 images", ratio=0.1, limit=0.05),
        "idle": Row("idle memory over that store", "MiB", ratio=0.25),
    }

    def __init__(self):
        self.images, self.others = 0, {}

    def fresh(self, directory, size):
        self.images = 1000 * size
        self.archive = directory / "images.tar"
        content.write_archive_of_images(self.archive, self.images)

    def measure(self, peer, directory):
        other = self._over_images(peer)
        settle()
        try:
            seconds = other.start()
            time.sleep(2)
            return {"ping": seconds, "idle": other.resident() / MIB}
        finally:
            other.stop()

    def _over_images(self, peer):
        """The same store in each round: what is fresh is the process."""
        other, images = self.others.get(peer, (None, 0))
        if images == self.images:
            return other
        self.leave(peer)
        other = peer.sibling("start")
        self.others[peer] = (other, self.images)
        try:
            other.start()
            other.client.load(self.archive)
            other.client.at_least(f"bench-store:{self.images - 1}", 1)
        finally:
            other.stop()
        return other

    def finish(self, peer):
        pass

    def leave(self, peer):
        other, _ = self.others.pop(peer, (None, 0))
        if other is not None:
            other.remove()


class Idle(Scenario):
    """A daemon just started, over a store with only the base image."""

    name = "idle"
    needs_start = True
    grows = False
    rows = {"idle": Row("idle memory, store with one image", "MiB", ratio=0.25)}

    def measure(self, peer, directory):
        peer.stop()
        peer.start()
        time.sleep(2)
        return {"idle": peer.resident() / MIB}


class Cached(Scenario):
    """A rebuild in which every step is cached; and what of it is the daemon's."""

    name = "cached-51"
    has_run = True
    rows = {
        "rebuild": Row("cached rebuild, 51 steps, through the CLI", ratio=0.5),
        "daemon": Row("daemon's time of it: `POST /build` from the request to the answer's end", limit=0.015),
        "cli": Row("for scale: `docker version` against it"),
    }

    def fresh(self, directory, size):
        write(directory, run_chain(49 * size, 49, "COPY Dockerfile /"))

    def measure(self, peer, directory):
        client = peer.client
        client.build(directory, self.tag())
        settle()
        found = {"rebuild": statistics.median(client.build(directory, self.tag()) for _ in range(3))}
        if hasattr(client, "post_archive"):
            archive = subprocess.run(["tar", "-C", str(directory), "-c", "Dockerfile"], check=True, stdout=subprocess.PIPE).stdout
            query = {"t": self.tag(), "networkmode": "host"}
            # At dockerd, classic builds have a cache of their own.
            client.post_archive(archive, query)
            found["daemon"] = statistics.median(client.post_archive(archive, query) for _ in range(10))
            found["cli"] = statistics.median(client.show_version() for _ in range(3))
        return found


class OneBuild(Scenario):
    """One that is a single build of what `fresh` made."""

    def measure(self, peer, directory):
        settle()
        return {"build": peer.client.build(directory, self.tag())}


class RunChain(OneBuild):
    """Twenty RUN, each on the one before."""

    name = "run-20"
    has_run = True
    rows = {"build": Row("chain of 20 RUN", ratio=0.25)}

    def __init__(self, kernel):
        self.kernel, self.count = kernel, 0

    def fresh(self, directory, size):
        self.count = 20 * size
        write(directory, run_chain(self.count, 20))

    def floor(self, directory):
        return {"build": self.count * self.kernel.get()}


class FanIn(OneBuild):
    """Stages that do not depend on each other, and one that needs them all."""

    name = "fan-in-32"
    has_run = True
    rows = {"build": Row("fan-in of 32 stages, each a RUN", ratio=0.3)}

    def fresh(self, directory, size):
        nonce, text, last = uuid.uuid4().hex, "", BASE
        for group in range(size):
            # In groups, as an image has no more than about 120 layers.
            gather = f"FROM scratch AS group{group}\n"
            for number in range(32):
                text += f"{BASE.strip()} AS s{group}-{number}\nRUN echo {nonce} {group} {number} > /out\n"
                gather += f"COPY --from=s{group}-{number} /out /out-{number}\n"
            text += gather if size > 1 else ""
            last += f"COPY --from=group{group} / /group{group}/\n" if size > 1 else gather.partition("\n")[2]
        write(directory, text + last)


class AtOnce(Scenario):
    """Eight builds at once, of eight RUN each."""

    name = "parallel-8"
    has_run = True
    rows = {"build": Row("8 builds at once of 8 RUN", ratio=0.3)}

    def fresh(self, directory, size):
        self.directories = [directory / str(number) for number in range(8)]
        for each in self.directories:
            write(each, run_chain(8 * size, 8))

    def measure(self, peer, directory):
        settle()
        return {"build": peer.client.build_many(self.directories, self.tag())}

    def finish(self, peer):
        for number in range(8):
            peer.client.remove(f"{self.tag()}-{number}")
        peer.client.prune()


class SmallFiles(Scenario):
    """A context of many small files; then one of them changes."""

    name = "context-20k"
    bytes = 200 * MIB
    rows = {
        "first": Row("context of 20,000 small files (42 MB), first send", ratio=0.35),
        "changed": Row("then one file changed", ratio=0.2),
    }

    def fresh(self, directory, size):
        write(directory / "context", BASE + "COPY src /src\n")
        self.one = content.write_small_files(directory / "context" / "src", 20_000 * size, 2100)

    def measure(self, peer, directory):
        settle()
        first = peer.client.build(directory / "context", self.tag())
        self.one.write_text(f"{uuid.uuid4()}\n")
        settle()
        return {"first": first, "changed": peer.client.build(directory / "context", self.tag())}

    def floor(self, directory):
        return {"first": plain(directory, f"tar -C {directory / 'context'} -cf - . | tar -xf -")}


class LargeFile(Scenario):
    """One large file into the image store."""

    name = "copy-512m"
    bytes = 512 * MIB
    rows = {"build": Row("COPY of one 512 MiB file into the image store", ratio=0.2)}

    def fresh(self, directory, size):
        write(directory, BASE + "COPY large /\n")
        self.size = 512 * MIB * size
        content.write_random(directory / "large", self.size)

    def measure(self, peer, directory):
        settle()
        seconds = peer.client.build(directory, self.tag())
        peer.client.at_least(self.tag(), self.size)
        return {"build": seconds}

    def floor(self, directory):
        return {"build": plain(directory, f"cp {directory / 'large'} copy; sha256sum copy")}


class Pull(Scenario):
    """A Debian from a registry, and a RUN on it."""

    name = "pull"
    has_run = True
    grows = False
    bytes = 700 * MIB
    rows = {"build": Row("cold pull of a 386 MB Debian (130 MB gzip) from a loopback registry + RUN", ratio=0.5)}

    def __init__(self, debian):
        self.debian = debian

    def fresh(self, directory, size):
        self.nonce = uuid.uuid4().hex
        self.layer, self.storage = directory / "layer.tar.gz", directory / "registry"
        diff_id = content.compress_fresh(self.debian.get(), self.layer, self.nonce)
        with Registry(self.storage) as registry:
            registry.put_image("debian", self.layer, diff_id)

    def measure(self, peer, directory):
        with Registry(self.storage) as registry:
            image = f"{registry.host}/debian:latest"
            write(directory / "context", f"FROM {image}\nRUN test -x /usr/bin/gcc && echo {self.nonce} > /file\n")
            settle()
            seconds = peer.client.build(directory / "context", self.tag())
            peer.client.remove(image)
        return {"build": seconds}

    def floor(self, directory):
        return {"build": plain(directory, f"gzip -dc {self.layer} | tar -xf -")}


def _write_files(directory, count, size):
    """What a shell says to write so many files of so many bytes on average, which nobody has seen before."""
    return f"write-files {directory} {count} {size} {uuid.uuid4().hex}"


class RunWrites(Scenario):
    """A RUN that writes many files, into the image store; then the image is pushed."""

    name = "run-250m"
    has_run = True
    bytes = 500 * MIB
    rows = {
        "store": Row("RUN writing 250 MB in 10,000 files, into the image store", ratio=0.4),
        "pushed": Row("the same, and pushed to a loopback registry", ratio=0.4),
    }

    def __init__(self, programs):
        self.programs = programs

    def fresh(self, directory, size):
        self.count = 10_000 * size
        self.writes = _write_files("out", self.count, 25_000)
        write(directory / "context", BASE + f"RUN {self.writes}\n")

    def measure(self, peer, directory):
        settle()
        store = peer.client.build(directory / "context", self.tag())
        peer.client.at_least(self.tag(), self.count * 24_900)
        try:
            with Registry(directory / "registry") as registry:
                return {"store": store, "pushed": store + peer.client.push(self.tag(), f"{registry.host}/bench:latest")}
        finally:
            shutil.rmtree(directory / "registry", ignore_errors=True)

    def floor(self, directory):
        return {"store": plain(directory, f"PATH={self.programs}:$PATH {self.writes}")}


class RunOci(Scenario):
    """The same into an archive of compressed layers."""

    name = "oci-250m"
    has_run = True
    bytes = 700 * MIB
    rows = {"oci": Row("the same to `type=oci`", ratio=0.4)}

    def __init__(self, base):
        self.base = base

    def fresh(self, directory, size):
        # Its base comes along: `lapstrake build` has a store of its own, which is empty.
        write(directory / "context", f"FROM scratch\nADD base.tar /\nRUN {_write_files('out', 10_000 * size, 25_000)}\n")
        shutil.copy(self.base, directory / "context" / "base.tar")

    def measure(self, peer, directory):
        settle()
        file = directory / "out.tar"
        try:
            return {"oci": peer.save_oci(directory / "context", self.tag(), file)}
        finally:
            file.unlink(missing_ok=True)


class CopyFrom(Scenario):
    """A COPY --from of many files, whose RUN is cached."""

    name = "copy-from-50k"
    bytes = 500 * MIB
    rows = {"build": Row("`COPY --from` of 50,000 files, with export to the store", ratio=0.15)}

    def __init__(self, programs):
        self.programs = programs

    def fresh(self, directory, size):
        self.writes = _write_files("o", 50_000 * size, 45)
        self.stage = f"{BASE.strip()} AS files\nRUN {self.writes}\n"

    def measure(self, peer, directory):
        write(directory, self.stage)
        peer.client.build(directory, self.tag())
        write(directory, self.stage + BASE + "COPY --from=files /o /o\n")
        settle()
        return {"build": peer.client.build(directory, self.tag())}

    def floor(self, directory):
        return {"build": plain(directory, "cp -a o copy", before=f"PATH={self.programs}:$PATH {self.writes}")}


class Project(Scenario):
    """A C program, compiled in one stage and copied into another; then one of its sources changes."""

    name = "c-project"
    has_run = True
    bytes = 500 * MIB
    rows = {
        "first": Row("C project in two stages", ratio=0.6),
        "changed": Row("then one source changed", ratio=0.6),
    }
    IMAGE = "lapstrake-bench-debian:latest"

    def __init__(self, debian):
        self.debian = debian

    def prepare(self, peer, work):
        peer.client.import_image(self.debian.get(), self.IMAGE)

    def fresh(self, directory, size):
        stages = f"FROM {self.IMAGE} AS build\nCOPY src /src\nRUN make -s -C /src\n{BASE}COPY --from=build /src/app /app\nRUN /app\n"
        write(directory, stages)
        content.write_c_project(directory / "src", 10 * size)

    def measure(self, peer, directory):
        settle()
        first = peer.client.build(directory, self.tag())
        content.change_c_project(directory / "src")
        settle()
        return {"first": first, "changed": peer.client.build(directory, self.tag())}

    def floor(self, directory):
        return {"first": plain(directory, "make -s -C src", before=f"cp -r {directory / 'src'} src")}

    def leave(self, peer):
        peer.client.remove(self.IMAGE)
        peer.client.prune()


class Memory(Scenario):
    """What the run left in memory. It is the last."""

    name = "memory"
    once = True
    grows = False
    rows = {
        "after": Row("idle memory after the whole run", "MiB"),
        "peak": Row("peak memory over the whole run", "MiB", ratio=0.25),
    }

    def measure(self, peer, directory):
        peak = {"peak": peer.peak / MIB} if peer.peak else {}
        time.sleep(2)
        after = peer.resident()
        return peak | ({"after": after / MIB} if after else {})

    def finish(self, peer):
        pass


def table(debian, work, kernel):
    """In the order in which they run and are shown. A Debian as a tar file; where the base image and the programs in it are; the kernel's time for a RUN."""
    return [
        Start(), Idle(), Cached(), RunChain(kernel), FanIn(), AtOnce(), SmallFiles(), LargeFile(), Pull(debian),
        RunWrites(work), RunOci(work / "base.tar"), CopyFrom(work), Project(debian), Memory(),
    ]
