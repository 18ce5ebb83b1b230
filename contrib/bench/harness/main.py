"""Arguments, rounds, and the order of it all."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from . import content, report
from .client import BenchError, CannotRun
from .further import further
from .memory import Peak
from .peer import Buildah, Dockerd, Lapstrake, LapstrakeWithRuntime, Remote
from .scenario import MIB, Once, empty, write
from .table import table

REPOSITORY = Path(__file__).resolve().parents[3]
# Bytes of disk that are left alone, and how often a peer has what a scenario writes, at most: the content, the store, and what is on its way.
RESERVE, COPIES = 4 << 30, 4
ERRORS = (BenchError, OSError, subprocess.SubprocessError)


def _scenarios(arguments, work):
    """The table's, and the further ones."""
    debian = Once(lambda: _debian(arguments.debian, work / "debian.tar"))
    kernel = Once(lambda: content.kernel_run(work))
    return table(debian, work, kernel), further(arguments.lapstrake)


def _debian(given, path):
    """The Debian as a tar file at `path`; made, where none is given."""
    if given is None:
        _say("making a Debian with mmdebstrap")
        content.write_debian(path)
    else:
        path.symlink_to(given.resolve())
    return path


def _arguments():
    parser = argparse.ArgumentParser(
        prog="contrib/bench/run",
        description="Runs the same work against Lapstrake and its peers, in turn, several rounds with fresh content each, and prints "
        "medians, ratios and peak memory as Markdown tables. Run it as root: daemons are started on private sockets and directories.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds [default: %(default)s]")
    parser.add_argument("--scenario", metavar="NAME", action="append", default=[],
                        help="only this scenario; may be repeated, or hold several between commas [default: those of the table]")
    parser.add_argument("--list", action="store_true", help="list the scenarios, and end")
    parser.add_argument("--size", metavar="N[,N]", default="1",
                        help="so many times the size of each scenario; several print how cost grows, such as 1,4,16 [default: 1]")
    parser.add_argument("--peers", metavar="A,B", default="lapstrake,dockerd,buildah,lapstrake-runc,lapstrake-crun",
                        help="the first is compared with the best of the others [default: %(default)s]")
    parser.add_argument("--host", metavar="DOCKER_HOST", action="append", default=[],
                        help="one more peer: a daemon that runs already; may be repeated")
    parser.add_argument("--host-pid", metavar="PID", action="append", type=int, default=[],
                        help="process id of the n-th --host, for its memory")
    parser.add_argument("--lapstrake", metavar="PROGRAM", default=os.environ.get("LAPSTRAKE_BIN", str(REPOSITORY / "target/release/lapstrake")),
                        help="[default: $LAPSTRAKE_BIN, or target/release/lapstrake]")
    parser.add_argument("--dockerd", metavar="PROGRAM", default="/usr/sbin/dockerd", help="[default: %(default)s]")
    parser.add_argument("--docker", metavar="PROGRAM", default="/usr/bin/docker",
                        help="the CLI; Debian's builds with BuildKit by itself, newer ones need buildx [default: %(default)s]")
    parser.add_argument("--buildah", metavar="PROGRAM", default="/usr/bin/buildah", help="[default: %(default)s]")
    parser.add_argument("--debian", metavar="FILE", type=Path, help="tar file of a Debian with gcc and make [default: made by mmdebstrap]")
    parser.add_argument("--work-dir", metavar="DIR", default="/var/tmp", help="where stores and contexts go; about 10 GB [default: %(default)s]")
    parser.add_argument("--disk", metavar="GIB", type=int, default=0, help="work on a new ext4 of that size, in a file in the work directory")
    parser.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="limit of one build or request [default: %(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round there")
    arguments = parser.parse_args()
    try:
        arguments.sizes = sorted({int(size) for size in arguments.size.split(",")})
    except ValueError:
        parser.error(f"--size {arguments.size}: whole numbers between commas")
    if arguments.rounds < 1 or arguments.sizes[0] < 1:
        parser.error("--rounds and --size are above zero")
    if len(arguments.host_pid) > len(arguments.host):
        parser.error("there are more --host-pid than --host")
    arguments.scenario = [name for names in arguments.scenario for name in names.split(",")]
    known = [scenario.name for each in _scenarios(arguments, Path()) for scenario in each]
    for name in arguments.scenario:
        if name not in known:
            parser.error(f"no scenario is called {name}; see --list")
    return parser, arguments


def _list(arguments):
    for title, scenarios in zip(("The table:", "Further ones:"), _scenarios(arguments, Path())):
        print(title)
        for scenario in scenarios:
            print(f"  {scenario.name:18}" + "; ".join(row.title for row in scenario.rows.values()))


def _peers(parser, arguments, work):
    def check(program, package):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not here; {package}")
        return program

    debian = "on Debian: apt-get install {}".format
    cargo = "cargo build --release -p lapstrake-api-daemon"
    check(content.BUSYBOX, debian("busybox-static"))
    for name in ("cc", "make"):
        check(shutil.which(name) or name, debian("gcc libc6-dev make"))
    docker, timeout = check(arguments.docker, debian("docker.io")), arguments.timeout
    peers = []
    for name in filter(None, arguments.peers.split(",")):
        directory = work / name
        if name == "lapstrake":
            peers.append(Lapstrake(name, check(arguments.lapstrake, cargo), directory, docker, timeout))
        elif name in ("lapstrake-runc", "lapstrake-crun"):
            if shutil.which(name.removeprefix("lapstrake-")) is None:
                parser.error(f"--peers {name}: {name.removeprefix('lapstrake-')} is not installed")
            peers.append(LapstrakeWithRuntime(name, check(arguments.lapstrake, cargo), directory, docker, timeout))
        elif name == "dockerd":
            peers.append(Dockerd(name, check(arguments.dockerd, debian("docker.io")), directory, docker, timeout))
        elif name == "buildah":
            peers.append(Buildah(name, check(arguments.buildah, debian("buildah")), directory, timeout))
        else:
            parser.error(f"--peers {name}: there are lapstrake, lapstrake-runc, lapstrake-crun, dockerd and buildah")
    for number, host in enumerate(arguments.host):
        pid = arguments.host_pid[number] if number < len(arguments.host_pid) else None
        peers.append(Remote(host, pid, work / f"host-{number}", docker, timeout))
    if not peers:
        parser.error("there is no peer to measure")
    return peers


def _say(text):
    print(text, file=sys.stderr, flush=True)


class _Run:
    """All numbers of a run, and the peers that take part."""

    def __init__(self, arguments, work):
        self.arguments, self.work, self.peers = arguments, work, []
        self.numbers, self.failures = report.Numbers(), []

    def begin(self):
        """Makes the peers ready, gives each the base image, and lets it build once, so that nobody's first build is timed."""
        base, writer = self.work / "base.tar", self.work / "write-files"
        content.compile_program("write_files.c", writer)
        content.write_base(base, writer)
        for peer in self.peers:
            peer.start()
            peer.client.import_image(base, content.BASE_IMAGE)
            self._warm(peer)
            _say(f"{peer.name}: version {peer.client.version()}")

    def _warm(self, peer):
        directory = self.work / "warm"
        write(directory, f"FROM {content.BASE_IMAGE}\nRUN true\n")
        while True:
            try:
                peer.client.build(directory, "bench-warm")
                break
            except BenchError as error:
                if not (isinstance(peer, Buildah) and peer.try_next()):
                    raise
                _say(f"{peer.name}: tries its next runtime: {str(error).splitlines()[-1]}")
        peer.client.remove("bench-warm")
        peer.client.prune()

    def scenario(self, scenario, size):
        """All rounds of one scenario at one size, peers in turn."""
        takers = [peer for peer in self.peers if self._takes(peer, scenario, size)]
        prepared, directory = [], self.work / "content"
        try:
            for peer in takers:
                try:
                    scenario.prepare(peer, self.work)
                    prepared.append(peer)
                except ERRORS as error:
                    self._failed(peer, scenario, error)
            for round_number in range(1, 2 if scenario.once else self.arguments.rounds + 1):
                empty(directory)
                scenario.fresh(directory, size)
                if not scenario.once:
                    self._floor(scenario, directory, round_number, size)
                for peer in prepared:
                    self._measure(scenario, peer, directory, round_number, size)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            for peer in takers:
                try:
                    scenario.leave(peer)
                except ERRORS as error:
                    self._failed(peer, scenario, error)

    def _takes(self, peer, scenario, size):
        """Whether a peer takes part; why not is kept."""
        why, needed = scenario.refuses(peer), scenario.bytes * size * COPIES + RESERVE
        if why is None and shutil.disk_usage(self.work).free < needed:
            why = f"needs {needed >> 30} GiB of free disk at {size}×"
        if why is not None:
            self.numbers.cannot(peer.name, scenario.name, why)
        return why is None

    def _floor(self, scenario, directory, round_number, size):
        try:
            self.numbers.add(size, report.FLOOR, scenario.name, round_number, scenario.floor(directory), 0)
        except ERRORS as error:
            self.failures.append(f"{scenario.name} with plain tools: {error}")

    def _measure(self, scenario, peer, directory, round_number, size):
        peak, found = Peak(peer.roots), {}
        try:
            with peak:
                found = scenario.measure(peer, directory)
        except CannotRun as why:
            self.numbers.cannot(peer.name, scenario.name, str(why))
        except ERRORS as error:
            self._failed(peer, scenario, error)
        try:
            # Also after a failure: what is left would be found cached by the next round.
            scenario.finish(peer)
        except ERRORS as error:
            self._failed(peer, scenario, error)
        if not found:
            return
        peer.peak = max(peer.peak, peak.bytes)
        # A daemon that was started and ended meanwhile has its own memory in a row.
        highest = 0 if scenario.needs_start else peak.bytes / MIB
        self.numbers.add(size, peer.name, scenario.name, round_number, found, highest)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        _say(f"{scenario.name} {size}× {round_number}: {peer.name}: {shown}; peak {highest:.0f} MiB")

    def _failed(self, peer, scenario, error):
        self.failures.append(f"{scenario.name} at {peer.name}: {error}")
        _say(f"FAILED {self.failures[-1]}")

    def print(self, scenarios):
        """The tables, and beneath them what was not measured."""
        sizes = self.arguments.sizes
        if len(sizes) > 1:
            growing = [scenario for scenario in scenarios if scenario.grows]
            for peer in self.peers:
                print(report.growth(self.numbers, growing, peer, sizes) + "\n")
        else:
            print(report.table(self.numbers, scenarios, self.peers, self.arguments.rounds, sizes[0]))
            print("\n" + report.memory(self.numbers, scenarios, self.peers, sizes[0]))
            if self.arguments.rounds > 1:
                print("\n" + report.spread(self.numbers, scenarios, self.peers, sizes[0]))
        reasons = self.numbers.reasons()
        if reasons:
            print("\nNot measured:\n\n" + reasons)
        for failure in self.failures:
            lines = failure.splitlines()
            print(f"\nFailed: {lines[0]}" + (f" … {lines[-1]}" if len(lines) > 1 else ""))
        if self.arguments.json:
            Path(self.arguments.json).write_text(json.dumps(self.numbers.flat(), indent=1) + "\n")

    def end(self):
        """Ends the peers; those of others lose the base image."""
        for peer in self.peers:
            try:
                if isinstance(peer, Remote):
                    peer.client.remove(content.BASE_IMAGE)
            except OSError:
                pass  # it went away by itself
            try:
                peer.remove()
            except OSError as error:
                self.failures.append(f"{peer.name}: its files stay: {error}")
                _say(f"FAILED {self.failures[-1]}")


def main():
    """Runs what the arguments say; returns the exit code: 1 when something failed."""
    parser, arguments = _arguments()
    if arguments.list:
        _list(arguments)
        return 0
    if os.geteuid() != 0:
        parser.error("run this as root: builds make containers and mounts")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="lapstrake-bench-", dir=arguments.work_dir))
    try:
        with content.own_disk(directory, arguments.disk) as work:
            return _measure(parser, arguments, work)
    except KeyboardInterrupt:
        return 130
    except ERRORS as error:
        _say(f"error: {error}")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(parser, arguments, work):
    """All scenarios below a directory; returns the exit code."""
    run, load = _Run(arguments, work), report.load()
    try:
        run.peers = _peers(parser, arguments, work)
        run.begin()
        of_table, others = _scenarios(arguments, work)
        scenarios = [each for each in of_table + others if each.name in arguments.scenario] if arguments.scenario else of_table
        versions = ", ".join(f"{peer.name} {peer.client.version()}" for peer in run.peers)
        begun = []
        try:
            for scenario in scenarios:
                begun.append(scenario)
                for size in arguments.sizes if scenario.grows else arguments.sizes[:1]:
                    run.scenario(scenario, size)
        finally:
            # Also after Ctrl-C and SIGTERM: what was measured until then was measured.
            sizes = "" if arguments.sizes == [1] else f", sizes × {', '.join(map(str, arguments.sizes))}"
            print(f"{report.machine(work)}; {load} before, {report.load()} after. {versions}. Medians of {arguments.rounds} rounds{sizes}.\n")
            run.print(begun)
    finally:
        run.end()
    return 1 if run.failures else 0
