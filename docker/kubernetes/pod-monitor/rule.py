#!/usr/bin/env python3
"""Writes prometheus-rule.yaml: docker/prometheus/alerts.yml as the Prometheus operator takes it."""

from pathlib import Path

HERE = Path(__file__).parent
HEAD = """\
# docker/prometheus/alerts.yml for the Prometheus operator: change that one, and run rule.py.
# yamllint disable rule:line-length
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: reprieve
  labels:
    app.kubernetes.io/name: reprieve
spec:
"""


def main():
    rules = (HERE / "../../prometheus/alerts.yml").read_text()
    body = rules[rules.index("groups:\n") :]
    indented = "".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True))
    (HERE / "prometheus-rule.yaml").write_text(HEAD + indented)


if __name__ == "__main__":
    main()
