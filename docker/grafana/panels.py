"""Grafana's JSON for what dashboard.py says: one function a kind of panel, and `board`, which lays them out in rows.

Nothing here knows a metric. Only what differs from Grafana's defaults is written down.
"""

GRID = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Grafana 12. A newer one reads it, too.
SCHEMA = 41


def threshold(steps):
    """`[(None, "green"), (60, "red")]`: from which value on which colour."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


def panel(kind, title, says, see, queries, unit, width, steps, options, custom, instant, **more):
    """A panel. `queries` maps legends to expressions; `see` is an anchor of the runbook."""
    defaults = {"unit": unit, "custom": custom, **more}
    defaults["color"] = {"mode": "thresholds" if kind in ("stat", "table", "bargauge") else "palette-classic"}
    if steps:
        defaults["thresholds"] = threshold(steps)
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": " ".join(expression.split()),
            "legendFormat": legend,
            "range": not instant,
            "instant": instant,
            **({"format": "table"} if kind == "table" else {}),
        }
        for number, (legend, expression) in enumerate(queries.items())
    ]
    return width, {
        "type": kind,
        "title": title,
        "description": f"{says}\n\n[Runbook](${{docs}}/runbook.md#{see})",
        "links": [{"title": "Runbook", "url": f"${{docs}}/runbook.md#{see}", "targetBlank": True}],
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def stat(title, says, see, queries, unit="short", width=4, steps=None, instant=True, **more):
    """One figure, coloured by its thresholds. A state that has no figure is shown as such and not as zero."""
    options = {
        "colorMode": "background_solid" if steps else "none",
        "graphMode": "none",
        "justifyMode": "center",
        "textMode": "auto" if len(queries) == 1 else "value_and_name",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    more.setdefault("noValue", "no data")
    return panel("stat", title, says, see, queries, unit, width, steps, options, {}, instant, **more)


def lines(title, says, see, queries, unit="short", width=8, steps=None, stack=False, **more):
    """Curves over time; with thresholds a line at each but the first."""
    custom = {
        "lineWidth": 1,
        "fillOpacity": 25 if stack else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    more.setdefault("min", 0)
    return panel("timeseries", title, says, see, queries, unit, width, steps, options, custom, False, **more)


def bars(title, says, see, queries, unit="short", width=8, steps=None, **more):
    """A bar for each series as it is now."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    more.setdefault("min", 0)
    return panel("bargauge", title, says, see, queries, unit, width, steps, options, {}, True, **more)


def table(title, says, see, queries, columns, width=8, **more):
    """The labels of each series now; `columns` maps labels to headings, `Value` to that of the figure."""
    made = panel("table", title, says, see, queries, "short", width, None, {"showHeader": True}, {}, True, **more)
    places = {name: number for number, name in enumerate(columns)}
    made[1]["transformations"] = [
        {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
        {"id": "organize", "options": {"renameByName": columns, "indexByName": places}},
    ]
    return made


def variable(name, label, query, says):
    """A choice among the values of a label, all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": says,
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def board(title, uid, says, tags, variables, rows):
    """The dashboard. `rows` is a list of (title, height of its panels, panels)."""
    panels, y = [], 0
    for heading, height, members in rows:
        panels.append({"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": at(0, y, GRID, 1)})
        y, x = y + 1, 0
        for width, member in members:
            if x + width > GRID:
                x, y = 0, y + height
            panels.append({**member, "gridPos": at(x, y, width, height)})
            x += width
        y += height
    for number, member in enumerate(panels, start=1):
        member["id"] = number
    return {
        "title": title,
        "uid": uid,
        "description": says,
        "tags": tags,
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"title": "Runbook", "type": "link", "icon": "doc", "url": "${docs}/runbook.md", "targetBlank": True},
        ],
        "annotations": {"list": []},
        "templating": {"list": variables},
        "panels": panels,
    }


def at(x, y, w, h):
    return {"x": x, "y": y, "w": w, "h": h}
