"""The documents say what is so."""

import ast
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_merge import PUBLIC, play

from tariq import strict
from tariq.agent import policy_file
from tariq.errors import PolicyError

REPO = Path(__file__).parents[2]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])


def names_in(path: Path) -> set[str]:
    """Return functions, classes and methods (``Class.method``) that a file defines."""
    function = ast.FunctionDef | ast.AsyncFunctionDef
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, function | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, function)}
    return found


def test_the_walkthrough_names_files_and_functions_that_exist():
    page = (REPO / "docs" / "walkthrough.md").read_text()
    files = set(re.findall(r"`(tariq/[\w/]+\.py)`", page))
    assert len(files) > 15
    known = set().union(*(names_in(REPO / file) for file in files))
    pairs = re.findall(r"`(tariq/[\w/]+\.py)`\s+`([\w.]+)`", page)
    assert len(pairs) > 25
    for file, name in pairs:
        assert name in names_in(REPO / file), f"{file} has no {name}"
    for name in re.findall(r"`((?:[A-Z]\w+\.)?_?[a-z_]+)`", page):
        if "_" in name or "." in name:
            assert name in known, f"no file of the page has {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_the_commands_that_there_are():
    told = subprocess.run(
        [sys.executable, "-m", "tariq", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"^    (\w+) ", told, re.MULTILINE))
    readme = (REPO / "README.md").read_text()
    shown = set(re.findall(r"^\| `tariq (\w+)", readme, re.MULTILINE))
    assert commands == shown
    options = subprocess.run(
        [sys.executable, "-m", "tariq", "knock", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    row = next(line for line in readme.splitlines() if line.startswith("| `tariq knock"))
    for option in re.findall(r"--?[a-z0-9]+", row.partition("|")[2]):
        assert option in options, option


COMMAND = re.compile(
    r"tariq ((?:key|agent|fleet|task)(?: trial)? [a-z]+|[a-z]+)((?: +(?!tariq )[^\s`|;#)]+)*)"
)


@functools.cache
def help_of(words):
    done = subprocess.run(
        [sys.executable, "-m", "tariq", *words.split(), "--help"],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout if done.returncode == 0 else None


def commands_in(text):
    """Yield command and options of what a page shows as code: spans, blocks, indented lines."""
    code = re.findall(r"`(tariq [^`]+)`", text)
    code += re.findall(r"^(?:    )?(?:\$ )?(tariq .*)$", text, re.MULTILINE)
    for line in code:
        for words, rest in COMMAND.findall(line):
            yield words, re.findall(r"(?:^|\s)(--?[a-z0-9][a-z-]*)", rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_on_a_page_exist(page):
    for words, options in commands_in(page.read_text()):
        told = help_of(words)
        assert told is not None, f"{page.name}: tariq {words}"
        for option in options:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", told), f"tariq {words} {option}"


def test_that_test_reads_what_a_page_shows():
    shown = "run `tariq knock web1 --for 2m`\n\n    $ tariq key new x --no-passphrase  # --not\n"
    assert list(commands_in(shown)) == [("knock", ["--for"]), ("key new", ["--no-passphrase"])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_playbooks_and_plugins_on_a_page_exist(page):
    text = page.read_text()
    for name in re.findall(r"playbooks/([a-z]+\.yml)", text):
        assert (REPO / "playbooks" / name).exists(), name
    places = ("playbooks/{}.yml", "plugins/modules/{}.py", "plugins/inventory/{}.py", "roles/{}")
    for name in re.findall(r"tariq\.tariq\.(\w+)", text):
        assert any((REPO / place.format(name)).exists() for place in places), name


def shown(page):
    """Return the blocks of YAML on a page."""
    return re.findall(r"```yaml\n(.*?)```", (REPO / "docs" / page).read_text(), re.DOTALL)


PLAIN, GRANTS, *MIXED = shown("policy.md")
MIXED = {text.partition("\n")[0].removeprefix("# "): text for text in MIXED}


def completed(folder, text):
    """Return a policy out of the page's first and what a block shows of another."""
    whole, part = (strict.parse(each, "a block", PolicyError) for each in (PLAIN, text))
    for name, value in part.items():
        whole[name] = whole[name] | value if name in ("services", "operators") else value
    path = folder / "agent.yml"
    path.write_text(yaml.safe_dump(whole))
    return path


def agent(*words):
    command = [sys.executable, "-m", "tariq", "agent", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("text", [PLAIN, GRANTS, *shown("firewall.md"), *shown("tasks.md")])
def test_a_policy_that_a_page_shows_is_good(tmp_path, text):
    told = agent("check", completed(tmp_path, text))
    assert told.returncode == 0, told.stderr
    fields = re.findall(r"`((?:mark|break_glass): .*?)`", (REPO / "docs/firewall.md").read_text())
    assert len(fields) >= 2
    for field in fields:
        told = agent("check", completed(tmp_path, field))
        assert told.returncode == 0, told.stderr


def test_what_the_policy_page_asks_to_be_explained_is_as_it_says(tmp_path):
    page = (REPO / "docs" / "policy.md").read_text()
    [words] = re.findall(r"`tariq agent explain (bob [^`]+)`", page)
    told = agent("explain", *shlex.split(words), "--file", completed(tmp_path, GRANTS))
    assert told.stdout.startswith("yes: by group oncall, for 3600 s at most (Sat ")


def test_the_mixed_fleet_s_variables_make_the_policies_beside_them(tmp_path):
    variables = {name: yaml.safe_load(text) for name, text in MIXED.items() if name[-4:] == ".yml"}
    variables["hosts.yml"]["all"]["vars"] = {"ansible_connection": "local"}
    for holder in variables["group_vars/all.yml"]["tariq_operators"].values():
        path = tmp_path / holder["key_file"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(PUBLIC)
    done = play(tmp_path, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    common = MIXED["agent.yml of every host"]
    hosts = [name.split()[-1] for name in MIXED if name.startswith("agent.yml of ")][1:]
    assert len(hosts) == 4
    for host in hosts:
        by_hand = tmp_path / f"{host}.by-hand"
        by_hand.write_text(common + MIXED[f"agent.yml of {host}"])
        by_role = policy_file.load(tmp_path / f"{host}.agent")
        assert repr(policy_file.load(by_hand)) == repr(by_role)


def test_make_targets_in_the_documents_exist():
    known = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in known, f"{page.name}: make {target}"


def test_the_workflow_runs_targets_and_scenarios_that_exist():
    known = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load((REPO / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = [target for run in runs for target in re.findall(r"^make ([a-z-]+)", run)]
    assert known >= set(targets) >= {"lint", "unit", "wire", "fleet-test", "molecule"}
    assert known >= set(jobs["long"]["strategy"]["matrix"]["target"]) >= {"guide", "lifecycle"}
    for job in jobs.values():
        assert job["timeout-minutes"] <= 90
    for each in jobs["molecule"]["strategy"]["matrix"]["include"]:
        name = each["arguments"].removeprefix("-s ")
        assert name == "--all" or (REPO / "molecule" / name / "molecule.yml").exists()


def test_security_md_names_files_that_exist():
    page = (REPO / "SECURITY.md").read_text()
    files = set(re.findall(r"`((?:tariq|tests)/[\w/]+\.py)`", page))
    assert len(files) > 12
    for file in files:
        assert (REPO / file).exists(), file
    for file, name in re.findall(r"`(tariq/[\w/]+\.py)` \(`(\w+)`", page):
        assert name in names_in(REPO / file), f"{file} has no {name}"
