#!/usr/bin/env python3
"""Draws the dashboard from a Prometheus: the same queries over the time it has data for, laid out as in the JSON.

    docker/grafana/render.py http://127.0.0.1:9090 picture.png

It is a rendering of the queries and not a screenshot of Grafana. It knows the panels, units, thresholds and mappings
that dashboard.py uses, and fails on a query that fails. scripts/picture makes a run to draw; it needs matplotlib.
"""

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image

DASHBOARD = Path(__file__).parent / "dashboards" / "reprieve.json"

# Of a grid cell, in inches, and of an inch, in pixels.
CELL_WIDTH, CELL_HEIGHT, DPI = 0.66, 0.36, 88
POINTS = 240
# Of a label's value, in letters.
LONGEST = 15
BACK, BOX, EDGE, INK, DIM = "#111217", "#181b1f", "#2a2d33", "#d8d9da", "#8e9097"
CURVES = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#ffee52"]
COLORS = {"green": "#3f8f4f", "yellow": "#b08a00", "red": "#c4162a", "transparent": BOX}


class Prometheus:
    """A few questions to its API."""

    def __init__(self, address):
        self.address = address
        self.end = time.time()
        first = self._ask("query_range", query="up", start=self.end - 7200, end=self.end, step=1)
        self.start = min(series["values"][0][0] for series in first)
        self.step = max(1, math.ceil((self.end - self.start) / POINTS))

    def _ask(self, what, **asked):
        address = f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def _fill(self, expression):
        """Grafana's variables as when everything is chosen and the whole run is shown."""
        seconds = math.ceil(self.end - self.start)
        values = {"$__rate_interval": f"{max(15, 2 * self.step)}s", "$__range": f"{seconds}s", "$job": "reprieve",
                  "$kind": ".*", "$store": ".*"}
        for name, value in values.items():
            expression = expression.replace(name, value)
        return expression

    def now(self, target):
        """(labels, value) of each series."""
        found = self._ask("query", query=self._fill(target["expr"]), time=self.end)
        return [(series["metric"], float(series["value"][1])) for series in found]

    def over_time(self, target):
        """(labels, times, values) of each series; a gap is NaN."""
        found = self._ask("query_range", query=self._fill(target["expr"]),
                          start=self.start, end=self.end, step=self.step)
        times = [self.start + self.step * n for n in range(int((self.end - self.start) / self.step) + 1)]
        made = []
        for series in found:
            values = {round(float(at), 3): float(value) for at, value in series["values"]}
            made.append((series["metric"], times, [values.get(round(at, 3), math.nan) for at in times]))
        return made


def legend(target, labels):
    def value(found):
        text = labels.get(found[1], "")
        # a bucket of the run has a number of 32 digits
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

    return re.sub(r"\{\{\s*(\w+)\s*\}\}", value, target["legendFormat"])


def shown(value, unit, decimals=None):
    """A figure with its unit, as Grafana writes it."""
    if math.isnan(value):
        return "–"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= size:
                return f"{number(value / size, decimals if decimals is not None else 1)} {name}"
        return f"{number(value * 1000)} ms" if 0 < abs(value) < 1 else f"{number(value, decimals)} s"
    if unit in ("bytes", "Bps"):
        names = iter(["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
        name = next(names)
        while abs(value) >= 1024 and name != "PiB":
            value, name = value / 1024, next(names)
        return f"{number(value)} {name}" + ("/s" if unit == "Bps" else "")
    if unit == "percentunit":
        return f"{number(value * 100)} %"
    return f"{number(value, decimals)}{ {'cps': '/s', 'reqps': ' req/s', 'cpm': '/min'}.get(unit, '')}"


def number(value, decimals=None):
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g} K" if abs(value) < 1e6 else f"{value / 1e6:.3g} Mil"
    if decimals is None:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"


def threshold_color(steps, value):
    color = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            color = step["color"]
    return color


class Page:
    """The figure, and where a panel's box is in it."""

    def __init__(self, panels):
        self.rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1
        self.width, self.height = 24 * CELL_WIDTH, self.rows * CELL_HEIGHT
        self.figure = plt.figure(figsize=(self.width, self.height), dpi=DPI, facecolor=BACK)

    def box(self, panel, inset):
        """Left, bottom, width and height in parts of the figure; `inset` is left, top, right, bottom in inches."""
        at, (left, top, right, bottom) = panel["gridPos"], inset
        x, y = at["x"] * CELL_WIDTH + left, (at["y"] + 1) * CELL_HEIGHT + top
        w, h = at["w"] * CELL_WIDTH - left - right, at["h"] * CELL_HEIGHT - top - bottom
        return x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height

    def frame(self, panel, face):
        x, y, w, h = self.box(panel, (0.04, 0.04, 0.04, 0.04))
        style = "round,pad=0,rounding_size=0.001"
        patch = FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=face, edgecolor=EDGE, lw=0.8,
                               transform=self.figure.transFigure, zorder=-1)
        self.figure.patches.append(patch)
        self.text(panel, 0.14, 0.2, panel["title"], size=9.5, weight="bold")

    def text(self, panel, x, y, text, **how):
        at = panel["gridPos"]
        x, y = at["x"] * CELL_WIDTH + x, (at["y"] + 1) * CELL_HEIGHT + y
        how = {"color": INK, "va": "center", **how}
        self.figure.text(x / self.width, 1 - y / self.height, text, **how)

    def axes(self, panel, inset):
        axes = self.figure.add_axes(self.box(panel, inset), facecolor=BOX)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(colors=DIM, labelsize=7.5, length=0)
        return axes


def draw_stat(page, panel, source):
    defaults = panel["fieldConfig"]["defaults"]
    found = [(legend(target, labels), value) for target in panel["targets"] for labels, value in source.now(target)]
    steps = defaults.get("thresholds", {}).get("steps")
    texts, face = [], BOX
    for name, value in found:
        text = shown(value, defaults["unit"], defaults.get("decimals"))
        color = threshold_color(steps, value) if steps and not math.isnan(value) else None
        for mapping in defaults.get("mappings", []):
            options = mapping["options"]
            if mapping["type"] == "special" and math.isnan(value):
                text, color = options["result"]["text"], options["result"].get("color")
            elif mapping["type"] == "value" and str(int(value)) in options:
                text = options[str(int(value))]["text"]
        face = COLORS[color] if color else face
        texts.append(f"{text} {name}" if len(found) > 1 else text)
    page.frame(panel, face)
    at = panel["gridPos"]
    text = "     ".join(texts) or defaults["noValue"]
    middle = 0.55 if at["h"] > 4 else 0.6
    page.text(panel, at["w"] * CELL_WIDTH / 2, at["h"] * CELL_HEIGHT * middle, text, ha="center",
              size=20 if len(text) < 12 else 16, color="white", weight="bold")


def draw_lines(page, panel, source):
    defaults = panel["fieldConfig"]["defaults"]
    page.frame(panel, BOX)
    axes = page.axes(panel, (0.72, 0.42, 0.16, 0.62))
    curves = [(legend(target, labels), times, values)
              for target in panel["targets"] for labels, times, values in source.over_time(target)]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    below = None
    handles = []
    for number_, (name, times, values) in enumerate(curves):
        color = CURVES[number_ % len(CURVES)]
        if stacked:
            values = [0 if math.isnan(value) else value for value in values]
            below = below or [0] * len(values)
            top = [low + value for low, value in zip(below, values)]
            axes.fill_between(times, below, top, color=color, alpha=0.35, lw=0)
            values, below = top, top
        line, = axes.plot(times, values, color=color, lw=1.1, label=name)
        handles.append(line)
    axes.set_xlim(source.start, source.end)
    axes.set_ylim(bottom=0)
    if "max" in defaults:
        axes.set_ylim(top=defaults["max"])
    elif axes.get_ylim()[1] < 1e-3 or all(v == 0 or math.isnan(v) for _, _, values in curves for v in values):
        axes.set_ylim(top=1)
    limit = axes.get_ylim()[1]
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= limit:
            axes.axhline(step["value"], color=COLORS[step["color"]], lw=1, ls="--")
    axes.grid(axis="y", color=EDGE, lw=0.6)
    axes.yaxis.set_major_locator(plt.MaxNLocator(4, prune="lower"))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, defaults["unit"], defaults.get("decimals")))
    axes.set_xticks([source.start + part * (source.end - source.start) for part in (0.1, 0.5, 0.9)])
    axes.xaxis.set_major_formatter(lambda value, _: datetime.fromtimestamp(value, timezone.utc).strftime("%H:%M:%S"))
    if curves:
        handles, names = spoken(handles, [name for name, _, _ in curves])
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(-0.12, -0.13), ncols=4, fontsize=7, frameon=False,
                    labelcolor=INK, handlelength=1.1, columnspacing=1, handletextpad=0.4, borderaxespad=0.2)
    else:
        page.text(panel, 2, 1.2, defaults.get("noValue", "no data"), color=DIM)


def spoken(handles, names, most=8):
    """As many legends as there is room for."""
    if len(names) <= most:
        return handles, names
    return handles[:most], [*names[: most - 1], f"{names[most - 1]}, and {len(names) - most} more"]


def draw_bars(page, panel, source):
    defaults = panel["fieldConfig"]["defaults"]
    page.frame(panel, BOX)
    found = [(legend(target, labels), value) for target in panel["targets"] for labels, value in source.now(target)]
    if not found:
        return page.text(panel, 2, 1.2, "no data", color=DIM)
    axes = page.axes(panel, (1.7, 0.45, 0.6, 0.15))
    most = max(value for _, value in found) or 1
    for row, (name, value) in enumerate(found):
        axes.barh(row, most, color=EDGE, height=0.6)
        axes.barh(row, value, color=CURVES[0], height=0.6)
        axes.text(most * 1.02, row, shown(value, defaults["unit"], defaults.get("decimals", 0)),
                  color=INK, size=8, va="center")
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set_xticks([])
    axes.set_xlim(0, most)
    axes.invert_yaxis()


def draw_table(page, panel, source):
    page.frame(panel, BOX)
    columns = panel["transformations"][1]["options"]["renameByName"]
    rows = sorted([labels.get(name, "") for name in columns] for labels, _ in source.now(panel["targets"][0]))
    width = panel["gridPos"]["w"] * CELL_WIDTH / len(columns)
    for line, row in enumerate([list(columns.values()), *rows]):
        for column, text in enumerate(row):
            page.text(panel, 0.2 + column * width, 0.5 + line * 0.24, text, size=8.5, color=DIM if line == 0 else INK)


DRAWN = {"stat": draw_stat, "timeseries": draw_lines, "bargauge": draw_bars, "table": draw_table}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source = Prometheus(sys.argv[1])
    dashboard = json.loads(DASHBOARD.read_text())
    page = Page(dashboard["panels"])
    title = f"{dashboard['title']}: a rendering of the dashboard's queries"
    page.figure.text(0.005, 1 - 0.5 * CELL_HEIGHT / page.height, title,
                     color=INK, size=11, va="center")
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            page.text(panel, 0.06, 0.2, panel["title"], size=11, weight="bold")
        else:
            DRAWN[panel["type"]](page, panel, source)
    target = Path(sys.argv[2])
    page.figure.savefig(target, facecolor=BACK)
    # few colours: a third of the size
    Image.open(target).convert("RGB").quantize(96).save(target, optimize=True)


if __name__ == "__main__":
    main()
