#!/usr/bin/env python3
"""Write the table of variables in the role's README out of its argument specs.

With --check nothing is written: the exit status is 1 if the README is out of date, if
meta/argument_specs.yml and defaults/main.yml disagree, if a variable is never used, or if
one is used that nothing declares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLE = Path(__file__).resolve().parent.parent / "roles" / "tariq"
BEGIN = "<!-- variables: written by tools/role_readme.py from meta/argument_specs.yml -->"
END = "<!-- end of variables -->"


def load(path: Path) -> Any:  # noqa: ANN401  (YAML can be anything)
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Turn Ansible's markup into Markdown's."""
    text = re.sub(r"\b[CVO]\(([^)]*)\)", r"`\1`", text)
    return " ".join(text.split()).replace("|", r"\|")


def shown(value: object) -> str:
    """Show a default value in a table's cell."""
    if value == "":
        return "empty"
    text = value if isinstance(value, str) else json.dumps(value)
    return "`" + text.replace("|", r"\|") + "`"


def table(options: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, spec in options.items():
        kind = spec["type"] + (f" of {spec['elements']}" if "elements" in spec else "")
        if "choices" in spec:
            kind = " or ".join(f"`{choice}`" for choice in spec["choices"])
        # A computed default is for machines; the description says what it comes to.
        default = spec.get("default")
        cell = "computed" if "{{" in str(default) else shown(default)
        meaning = " ".join(plain(line) for line in spec["description"])
        lines.append(f"| `{name}` | {kind} | {cell} | {meaning} |")
    return "\n".join(lines)


def problems(options: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Compare specs, defaults and use."""
    found = []
    for name in sorted(options.keys() ^ defaults.keys()):
        here, missing = (
            ("meta/argument_specs.yml", "defaults/main.yml")
            if name in options
            else ("defaults/main.yml", "meta/argument_specs.yml")
        )
        found.append(f"{name} is in {here} and not in {missing}")
    found += [
        f"{name}: the default is {defaults[name]!r} in defaults/main.yml "
        f"and {options[name].get('default')!r} in meta/argument_specs.yml"
        for name in sorted(options.keys() & defaults.keys())
        if options[name].get("default") != defaults[name]
    ]
    internal: dict[str, Any] = load(ROLE / "vars" / "main.yml")
    files = [
        path
        for folder in ("tasks", "handlers", "templates", "vars", "defaults")
        for path in (ROLE / folder).iterdir()
    ]
    used = Counter(name for path in files for name in names_in(path))
    declared = {*defaults, *internal}
    for folder in ("tasks", "handlers"):
        for path in (ROLE / folder).iterdir():
            declared |= {name for name in declarations(load(path)) if "tariq_" in name}
    # Once where it is set, so a variable that is used occurs at least twice.
    found += [f"{name} is set and never used" for name in sorted(declared) if used[name] < 2]
    found += [f"{name} is used and never set" for name in sorted(used.keys() - declared)]
    return found


def names_in(path: Path) -> list[str]:
    """Return what in a file looks like a variable of the role's; comments and files don't."""
    text = re.sub(r"^\s*#(?!jinja2).*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.findall(r"(?<![\w/.-])(?:__)?tariq_\w+(?![\w-]|\.(?:yml|j2|py)\b)", text)


def declarations(tree: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield what tasks set by themselves: task variables, results, facts; and names of tags."""
    for item in tree if isinstance(tree, list) else [tree]:
        if not isinstance(item, dict):
            continue
        for key, value in item.items():
            if key in ("vars", "ansible.builtin.set_fact") and isinstance(value, dict):
                yield from value
            elif key in ("register", "loop_var", "index_var"):
                yield value
            elif key == "tags":
                yield from [value] if isinstance(value, str) else value
            elif isinstance(value, dict | list):
                yield from declarations(value)


def main() -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    options = parser.parse_args()

    specs = load(ROLE / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    found = problems(specs, load(ROLE / "defaults" / "main.yml"))

    readme = ROLE / "README.md"
    old = readme.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        found.append(f"README.md has no place for the table: put {BEGIN!r} and {END!r} in it")
    else:
        new = f"{before}{BEGIN}\n{table(specs)}\n{END}{after}"
        if new != old and options.check:
            found.append("README.md is out of date; run tools/role_readme.py")
        elif new != old:
            readme.write_text(new, encoding="utf-8")

    for line in found:
        print(f"role tariq: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
