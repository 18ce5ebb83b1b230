"""Arguments, rounds, and the order of it all."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import content, report
from .client import BenchError
from .daemon import Dockerd, Lapstrake, Remote
from .memory import Peak
from .scenario import MIB, all_scenarios, empty

REPOSITORY = Path(__file__).resolve().parents[3]


def _arguments():
    names = [scenario.name for scenario in all_scenarios(0, None)]
    parser = argparse.ArgumentParser(
        prog="contrib/bench/run",
        description="Runs the same work against Lapstrake and its peers, in turn, several rounds with fresh content each, and prints "
        "medians, ratios and peak memory of each daemon with its helpers as a Markdown table.",
        epilog="Scenarios: " + ", ".join(names) + ". Run it as root: daemons are started on private sockets and directories.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds [default: %(default)s]")
    parser.add_argument("--only", metavar="A,B", help="only these scenarios (a name's beginning is enough)")
    parser.add_argument(
        "--daemons", metavar="A,B", default="lapstrake,dockerd",
        help="lapstrake, lapstrake-runc, lapstrake-crun, dockerd; ratios are the first's to each other [default: %(default)s]",
    )
    parser.add_argument("--host", metavar="DOCKER_HOST", action="append", default=[],
                        help="one more peer: a daemon that runs already; may be repeated")
    parser.add_argument("--host-pid", metavar="PID", action="append", type=int, default=[],
                        help="process id of the n-th --host, for its memory")
    parser.add_argument("--lapstrake", metavar="PROGRAM", default=os.environ.get("LAPSTRAKE_BIN", str(REPOSITORY / "target/release/lapstrake")),
                        help="[default: $LAPSTRAKE_BIN, or target/release/lapstrake]")
    parser.add_argument("--dockerd", metavar="PROGRAM", default="/usr/sbin/dockerd", help="[default: %(default)s]")
    parser.add_argument("--docker", metavar="PROGRAM", default="/usr/bin/docker",
                        help="the CLI; Debian's builds with BuildKit by itself, newer ones need buildx [default: %(default)s]")
    parser.add_argument("--work-dir", metavar="DIR", default="/var/tmp", help="where stores and contexts go; about 20 GB [default: %(default)s]")
    parser.add_argument("--scale", type=float, default=1, metavar="X", help="X times the size of each scenario [default: 1]")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="images in the store of `start` [default: %(default)s]")
    parser.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="limit of one build or request [default: %(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round there")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.scale <= 0 or arguments.images < 1:
        parser.error("--rounds, --scale and --images are above zero")
    if len(arguments.host_pid) > len(arguments.host):
        parser.error("there are more --host-pid than --host")
    arguments.scenarios = all_scenarios(arguments.images, arguments.lapstrake)
    if arguments.only:
        wanted = arguments.only.split(",")
        for want in wanted:
            if not any(name.startswith(want) for name in names):
                parser.error(f"no scenario is called {want}; there are {', '.join(names)}")
        arguments.scenarios = [each for each in arguments.scenarios if any(each.name.startswith(want) for want in wanted)]
    for program in (arguments.docker, content.BUSYBOX):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not here; on Debian: apt-get install docker.io busybox-static")
    return parser, arguments


def _daemons(parser, arguments, work):
    daemons = []
    for name in filter(None, arguments.daemons.split(",")):
        common = (arguments.docker, arguments.timeout)
        if name == "dockerd":
            make, program, options = Dockerd, arguments.dockerd, {}
        elif name == "lapstrake":
            make, program, options = Lapstrake, arguments.lapstrake, {}
        elif name in ("lapstrake-runc", "lapstrake-crun"):
            runtime = shutil.which(name.removeprefix("lapstrake-"))
            if runtime is None:
                parser.error(f"--daemons {name}: {name.removeprefix('lapstrake-')} is not installed")
            make, program, options = Lapstrake, arguments.lapstrake, {"runtime": runtime}
        else:
            parser.error(f"--daemons {name}: there are lapstrake, lapstrake-runc, lapstrake-crun and dockerd")
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not here; cargo build --release -p lapstrake-api-daemon, or apt-get install docker.io")
        daemons.append(make(name, program, work / name, *common, **options))
    for number, host in enumerate(arguments.host):
        pid = arguments.host_pid[number] if number < len(arguments.host_pid) else None
        daemons.append(Remote(host, pid, work / f"host-{number}", arguments.docker, arguments.timeout))
    if not daemons:
        parser.error("there is no daemon to measure")
    return daemons


def _say(text):
    print(text, file=sys.stderr, flush=True)


class _Run:
    """All numbers of a run, and the daemons that take part."""

    def __init__(self, arguments, daemons, work):
        self.arguments, self.daemons, self.work = arguments, daemons, work
        self.numbers, self.peaks, self.failures = {}, {}, []

    def begin(self):
        """Starts the daemons, gives each the base image, and lets it build once, so that nobody's first build is timed."""
        rootfs = content.base_rootfs()
        warm = self.work / "warm"
        empty(warm)
        (warm / "Dockerfile").write_text(f"FROM {content.BASE_IMAGE}\nRUN true\n")
        for daemon in self.daemons:
            daemon.start()
            daemon.client.import_image(rootfs, content.BASE_IMAGE)
            daemon.client.build(warm, "bench-warm")
            daemon.client.remove("bench-warm")
            _say(f"{daemon.name}: version {daemon.client.version()}")

    def scenario(self, scenario):
        """All rounds of one scenario, daemons in turn."""
        takers = [daemon for daemon in self.daemons if daemon.starts or not scenario.needs_start]
        prepared = []
        for daemon in takers:
            try:
                scenario.prepare(daemon, self.work)
                prepared.append(daemon)
            except (BenchError, OSError) as error:
                self._failed(daemon, scenario, error)
        directory = self.work / "content"
        for round_number in range(1, self.arguments.rounds + 1):
            empty(directory)
            scenario.fresh(directory, self.arguments.scale)
            for daemon in prepared:
                self._measure(scenario, daemon, directory, round_number)
        empty(directory)

    def _measure(self, scenario, daemon, directory, round_number):
        peak = Peak(None if scenario.needs_start else daemon.pid)
        found = {}
        try:
            with peak:
                found = scenario.measure(daemon, directory)
        except (BenchError, OSError) as error:
            self._failed(daemon, scenario, error)
        try:
            # Also after a failure: what is left would be found cached by the next round.
            scenario.finish(daemon)
        except (BenchError, OSError) as error:
            self._failed(daemon, scenario, error)
        if not found:
            return
        for key, value in found.items():
            self.numbers.setdefault((daemon.name, scenario.name, key), []).append(value)
        if peak.bytes:
            self.peaks.setdefault((daemon.name, scenario.name), []).append(peak.bytes / MIB)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        _say(f"{scenario.name} {round_number}: {daemon.name}: {shown}; peak {peak.bytes / MIB:.0f} MiB")

    def _failed(self, daemon, scenario, error):
        self.failures.append(f"{scenario.name} at {daemon.name}: {error}")
        _say(f"FAILED {self.failures[-1]}")

    def print(self, scenarios):
        """The table, failures beneath it; and the numbers of each round, where --json asks for them."""
        names = [daemon.name for daemon in self.daemons]
        print(report.table(scenarios, names, self.numbers, self.peaks, self.arguments))
        for failure in self.failures:
            lines = failure.splitlines()
            print(f"\nFailed: {lines[0]}" + (f" … {lines[-1]}" if len(lines) > 1 else ""))
        if self.arguments.json:
            found = {"/".join(key): value for key, value in self.numbers.items()}
            found.update({"/".join((*key, "peak MiB")): value for key, value in self.peaks.items()})
            Path(self.arguments.json).write_text(json.dumps(found, indent=1) + "\n")

    def end(self):
        """Ends the daemons; those of others lose the base image."""
        for daemon in self.daemons:
            try:
                if not daemon.starts:
                    daemon.client.remove(content.BASE_IMAGE)
            except OSError:
                pass  # it went away by itself
            daemon.remove()


def main():
    """Runs what the arguments say; returns the exit code: 1 when a scenario failed."""
    parser, arguments = _arguments()
    if os.geteuid() != 0:
        parser.error("run this as root: builds make containers and mounts")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Path(tempfile.mkdtemp(prefix="lapstrake-bench-", dir=arguments.work_dir))
    run, load = None, report.load()
    try:
        run = _Run(arguments, _daemons(parser, arguments, work), work)
        run.begin()
        versions = ", ".join(f"{daemon.name} {daemon.client.version()}" for daemon in run.daemons)
        begun = []
        try:
            for scenario in arguments.scenarios:
                begun.append(scenario)
                run.scenario(scenario)
        finally:
            # Also after Ctrl-C and SIGTERM: what was measured until then was measured.
            scale = "" if arguments.scale == 1 else f", sizes × {arguments.scale:g}"
            print(f"{report.machine(work)}; {load}. {versions}. Medians of {arguments.rounds} rounds (lowest – highest){scale}.\n")
            run.print(begun)
        return 1 if run.failures else 0
    except KeyboardInterrupt:
        return 130
    except BenchError as error:
        _say(f"error: {error}")
        return 1
    finally:
        if run is not None:
            run.end()
        shutil.rmtree(work, ignore_errors=True)
