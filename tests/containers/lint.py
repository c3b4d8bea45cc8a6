"""Holds docker/ to its linters and to the product: lint.py TREE TOOLS BINARY. Ends at the first problem."""

import sys
from pathlib import Path

import compose
import image
import kubernetes
import monitoring
from common import Problem, Tree

HERE = Path(__file__).parent


def yaml_style(tree):
    tree.run("yamllint", "--strict", "--config-file", HERE / "yamllint.yaml", "docker")


def shell(tree):
    tree.run("shellcheck", *sorted((tree.root / "docker/demo").glob("*.sh")))


CHECKS = {
    "yaml": yaml_style,
    "shell": shell,
    "image": image.check,
    "compose": compose.check,
    "monitoring": monitoring.check,
    "kubernetes": kubernetes.check,
}


def main():
    tree = Tree(*(Path(argument).absolute() for argument in sys.argv[1:4]))
    for name, check in CHECKS.items():
        try:
            check(tree)
        except Problem as problem:
            sys.exit(f"docker: {name}: {problem}")
        print(f"docker: {name}: good")


if __name__ == "__main__":
    main()
