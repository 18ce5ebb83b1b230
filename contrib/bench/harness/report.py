"""The numbers of all rounds as a Markdown table."""

import os
import platform
from statistics import median


def machine(directory):
    """The machine in a line."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    with open("/proc/meminfo", encoding="utf-8") as lines:
        memory = int(next(lines).split()[1]) / (1 << 20)
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; Linux {platform.release()}; {_file_system(directory)}"


def load():
    """What else runs on the machine, in a clause: times mean little when this is not near zero."""
    return f"load average before the start {os.getloadavg()[0]:.1f}"


def _file_system(directory):
    best = ("", "unknown file system")
    with open("/proc/self/mounts", encoding="utf-8") as table:
        for line in table:
            point, kind = line.split()[1:3]
            if f"{directory}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _number(value, unit):
    if unit == "MiB":
        return f"{value:.0f} MiB"
    if unit == "×":
        return f"{value:.2f}"
    if value < 0.02:
        return f"{value * 1000:.1f} ms"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _cell(values, unit, rounds):
    if not values:
        return "–"
    text = _number(median(values), unit)
    if len(values) > 1:
        text += f" ({_number(min(values), unit)} – {_number(max(values), unit)})"
    # Rounds that failed are listed beneath the table, and are not passed over here.
    return text if len(values) == rounds else f"{text}, {len(values)} of {rounds} rounds"


def table(scenarios, names, numbers, peaks, arguments):
    """The table. `numbers` and `peaks` map (daemon, scenario[, row]) to lists, one entry for each round that succeeded."""
    rounds, images = arguments.rounds, arguments.images
    first, *peers = names
    head = ["scenario", "goal", *names, *(f"ratio to {peer}" for peer in peers), *(f"peak memory {name}" for name in names)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for scenario in scenarios:
        peak_cells = [_cell(peaks.get((name, scenario.name)), "MiB", rounds) for name in names]
        for key, row in scenario.rows.items():
            values = {name: numbers.get((name, scenario.name, key)) for name in names}
            cells = [row.title.format(images=f"{images:,}"), row.goal, *(_cell(values[name], row.unit, rounds) for name in names)]
            for peer in peers:
                known = values[first] and values[peer]
                cells.append(f"**{median(values[first]) / median(values[peer]):.2f}**" if known else "–")
            # The peak is the scenario's, and is shown with its first row.
            lines.append("| " + " | ".join(cells + peak_cells) + " |")
            peak_cells = [""] * len(names)
    return "\n".join(lines)
