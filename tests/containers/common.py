"""What the checks of docker/ share: the tree that is checked, its tools, and the program that has the last word on a
configuration. A check raises `Problem` at the first thing that is wrong; nothing here prints or skips."""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

SERVER_AWAY = 1  # the program's exit code where the configuration is good and no server is there (6: it has mistakes)


class Problem(Exception):
    """Something in the tree is not as it has to be."""


def expect(holds, why):
    if not holds:
        raise Problem(why)


@dataclass(frozen=True)
class Tree:
    root: Path  # the repository, or a copy of its parts with a mistake planted in it
    tools: Path  # where the linters are installed
    binary: Path  # the program `reprieve`

    def text(self, path):
        expect((self.root / path).is_file(), f"{path}: there is no such file")
        return (self.root / path).read_text()

    def yaml(self, path):
        return yaml.safe_load(self.text(path))

    def run(self, tool, *arguments):
        """A linter over the tree; what it says is the problem."""
        command = [self.tools / tool, *map(str, arguments)]
        ended = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=300)
        expect(ended.returncode == 0, f"{tool}: {(ended.stdout + ended.stderr).strip()}")
        return ended.stdout

    def reprieve(self, arguments, environment):
        """The program, with nothing of our own surroundings that would configure it."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("REPRIEVE")}
        command = [self.binary, *arguments]
        return subprocess.run(command, env=bare | environment, capture_output=True, text=True, timeout=60)

    def route(self, path):
        """Whether the program serves it."""
        return f'.route("{path}"' in self.text("src/http/mod.rs")


def settings(text):
    """`section.key` and its value as written, of the plain lines of a configuration file."""
    section, found = "", {}
    for line in text.splitlines():
        if header := re.fullmatch(r"\[([^\[\]]+)\]\s*(#.*)?", line):
            section = header[1]
        elif setting := re.match(r'(\w+) = "?([^"#]*)"?', line):
            found[f"{section}.{setting[1]}"] = setting[2].strip()
    return found


def seconds(text):
    number = re.fullmatch(r"(\d+)(s|m)", str(text))
    expect(number, f"{text!r} is not a duration in seconds or minutes")
    return int(number[1]) * {"s": 1, "m": 60}[number[2]]


def is_command(tree, arguments, what):
    """The program has this command."""
    ended = tree.reprieve([*arguments, "--help"], {})
    expect(ended.returncode == 0, f"{what}: the program has no {arguments}: {ended.stderr.strip()}")


def is_read(tree, config, environment, what):
    """The program reads this configuration, and finds nothing wrong but that the database is not there."""
    # an address in the environment wins, so this asks nobody, whatever the configuration names
    nowhere = {"REPRIEVE__DATABASE__URL": "postgres://a:b@127.0.0.1:1/x", "REPRIEVE__DATABASE__ACQUIRE_TIMEOUT": "1s"}
    ended = tree.reprieve(["--config", str(config), "migrate"], environment | nowhere)
    expect(ended.returncode == SERVER_AWAY, f"{what}: exit code {ended.returncode}: {ended.stderr.strip()}")


def temporary():
    return tempfile.TemporaryDirectory(prefix="reprieve-docker-")
