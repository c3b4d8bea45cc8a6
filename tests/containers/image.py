"""docker/Dockerfile and .dockerignore: hadolint, and what no linter knows. Every path that is copied is there and
reaches the build; every file that the program's source includes is copied; the image runs as nobody in particular."""

import fnmatch
import json
import re
from pathlib import PurePosixPath

from common import Problem, expect, is_command

DOCKERFILE = "docker/Dockerfile"


def check(tree):
    tree.run("hadolint", "--no-color", "--failure-threshold", "style", DOCKERFILE)
    steps = instructions(tree.text(DOCKERFILE))
    copied = copies(tree, steps)
    includes(tree, copied)
    release(tree, steps)
    runtime(steps)
    health(tree, steps)


def instructions(text):
    """(instruction, arguments), lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def copies(tree, steps):
    """Every path that comes from the context."""
    patterns = [line for line in tree.text(".dockerignore").splitlines() if line and not line.startswith("#")]
    found = set()
    for name, arguments in steps:
        expect(name != "ADD", "ADD fetches and unpacks: use COPY")
        if name != "COPY" or "--from=" in arguments:
            continue
        *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
        for source in sources:
            expect((tree.root / source).exists(), f"COPY {source}: there is no such path")
            files = [source] if (tree.root / source).is_file() else walk(tree, source)
            for file in files:
                expect(not is_ignored(file, patterns), f"COPY {source}: .dockerignore keeps {file} from the build")
            found.add(source)
    for never in (".git/HEAD", "docker/.env", "target/debug/reprieve", ".venv/pyvenv.cfg"):
        expect(is_ignored(never, patterns), f".dockerignore lets {never} into the build")
    return found


def walk(tree, folder):
    return [str(path.relative_to(tree.root)) for path in (tree.root / folder).rglob("*") if path.is_file()]


def is_ignored(path, patterns):
    """As Docker decides: the last pattern that matches the path, or a folder above it."""
    ignored = False
    lines = [path, *(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")]
    for pattern in patterns:
        kept = pattern.startswith("!")
        if any(fnmatch.fnmatchcase(line, pattern.lstrip("!").rstrip("/")) for line in lines):
            ignored = not kept
    return ignored


def includes(tree, copied):
    """What `include_str!` and `migrate!` name in src/ is part of the build."""
    seen = 0
    for source in walk(tree, "src"):
        if not source.endswith(".rs"):
            continue
        text = tree.text(source)
        named = [
            PurePosixPath(source).parent / name for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', text)
        ]
        named += [PurePosixPath(name) for name in re.findall(r'migrate!\("([^"]+)"\)', text)]
        for path in named:
            plain = (tree.root / path).resolve().relative_to(tree.root.resolve())
            parents = {str(plain), *map(str, plain.parents)}
            expect(parents & copied, f"{source} includes {plain}, which the Dockerfile does not copy")
            seen += 1
    expect(seen, "no included file was found in src/: this check looks in the wrong place")


def release(tree, steps):
    manifest = tree.text("Cargo.toml")
    version = re.search(r'^version = "(.+)"', manifest, re.M)[1]
    expect(("ARG", f"VERSION={version}") in steps, f"ARG VERSION is not that of Cargo.toml, {version}")
    least = re.search(r'^rust-version = "(\d+)\.(\d+)', manifest, re.M)
    base = re.search(r"^rust:(\d+)\.(\d+)", next(arguments for name, arguments in steps if name == "FROM"))
    expect(
        base and (int(base[1]), int(base[2])) >= (int(least[1]), int(least[2])),
        "the base's Rust is older than rust-version",
    )


def runtime(steps):
    last = max(n for n, (name, _) in enumerate(steps) if name == "FROM")
    final = dict(steps[last:])
    for name, arguments in steps:
        if name == "FROM":
            pinned = re.match(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}( AS \w+)?$", arguments)
            expect(pinned, f"FROM {arguments}: not pinned by tag and digest")
    user = re.fullmatch(r"(\d+):(\d+)", final.get("USER", ""))
    expect(user and int(user[1]) > 0, "USER is not a number other than root's")
    expect(final.get("STOPSIGNAL") == "SIGTERM", "STOPSIGNAL is not what the program ends by")
    for name in ("ENTRYPOINT", "CMD"):
        try:
            json.loads(final[name])
        except (KeyError, ValueError) as error:
            raise Problem(f"{name} is not in exec form, and there is no shell in the image") from error


def health(tree, steps):
    """The image's own check is a command of its program: there is no shell in the image, and no other client."""
    found = re.search(r"CMD (\[.+\])$", dict(steps).get("HEALTHCHECK", ""))
    expect(found, "HEALTHCHECK is not a command in exec form")
    asked, *command = json.loads(found[1])
    expect([asked] == entrypoint(tree), f"HEALTHCHECK runs {asked}, which is not the image's program")
    is_command(tree, command, "HEALTHCHECK")


def uid(tree):
    """Whom the image runs as."""
    return int(dict(instructions(tree.text(DOCKERFILE)))["USER"].split(":")[0])


def entrypoint(tree):
    return json.loads(dict(instructions(tree.text(DOCKERFILE)))["ENTRYPOINT"])
