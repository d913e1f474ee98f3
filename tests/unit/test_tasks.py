"""Tasks: patterns in bounded time, parameters that stay where they belong, and foolish ones."""

import datetime as dt
import os
import re
import subprocess
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tariq.agent import policy_file
from tariq.agent.pattern import Pattern
from tariq.agent.tasks import BadParams, Choice, Int, Task, Text

KEY = "0123456789ABCDEF0123456789ABCDEF01234567"
PIECES = st.sampled_from(
    ["a", "b", "[ab]", "[^a]", ".", r"\d", r"\w", r"\S", "(ab)", "(a|b)", "(a|ab)", "(?:b|)", "|"]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}"])
PATTERNS = st.lists(st.tuples(PIECES, REPEATS), min_size=1, max_size=5).map(
    lambda parts: "".join(a + b if a != "|" else a for a, b in parts)
)


@given(PATTERNS, st.text("ab1. ", max_size=8))
def test_it_matches_what_python_s_own_engine_matches(source, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.fullmatch(source, text, re.ASCII) is not None
        assert Pattern(source).matches(text) == expected


@pytest.mark.parametrize("source", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "a*a*a*a*a*a*b", "((a*)*)*b"])
def test_no_pattern_takes_long(source):
    """Python's own engine would be at it for hours."""
    started = time.process_time()
    assert not Pattern(source).matches("a" * 256)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (r"(a)\1", "no regular expression: invalid escape sequence"),
        ("(?=a)b", "no regular expression: invalid perl operator"),
        ("(a", "no regular expression: missing )"),
        ("a{9999}", "no regular expression: invalid repetition size"),
        ("((a{99}){99}){99}", "no regular expression: invalid repetition size"),
        ("a" * 200, "longer than"),
    ],
)
def test_patterns_that_can_not_be_used(source, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        Pattern(source)


VERSION = Text(Pattern("v[0-9.]+"), 20)


@pytest.mark.parametrize(
    ("param", "good", "bad"),
    [
        (
            VERSION,
            ["v1", "v1.2.3"],
            ["", "1", "v1\n", " v1", "v1 ", "v1;id", "v1\0", "v" + "1" * 20, "v१"],
        ),
        (
            Int(1, 9),
            ["1", "9"],
            ["0", "10", "-1", "+1", "01", "1.0", "", " 1", "1\n", "१", "9" * 99],
        ),
        (Int(-3, 3), ["-3", "0"], ["-0", "--1", "-4"]),
        (Choice(("blue", "green")), ["blue"], ["", "Blue", "blue ", "blue\n"]),
        (Text(Pattern(".*"), 5), ["a b", "$(id)"], ["", "abcdef", "a\nb", "é"]),
    ],
)
def test_values(param, good, bad):
    assert [param.wrong(value) for value in good] == [None] * len(good)
    assert all(param.wrong(value) for value in bad)


def test_a_value_stays_one_argument():
    task = Task(("/bin/x", "{a}", "--name={a}", "{{a}}", "{a}{b}"), "root", {"a": FREE, "b": FREE})
    filled = task.fill({"a": "x y; $(z)", "b": "{a}"})
    assert filled == ["/bin/x", "x y; $(z)", "--name=x y; $(z)", "{a}", "x y; $(z){a}"]


FREE = Text(Pattern(".*"), 50)


def test_a_value_can_not_become_an_option():
    task = Task(("/bin/x", "{a}"), "root", {"a": FREE})
    with pytest.raises(BadParams, match="a: begins with '-'"):
        task.fill({"a": "--root=/"})
    allowed = Task(("/bin/x", "{a}"), "root", {"a": Text(Pattern(".*"), 50, dash=True)})
    assert allowed.fill({"a": "-v"}) == ["/bin/x", "-v"]
    inside = Task(("/bin/x", "--v={a}"), "root", {"a": FREE})
    assert inside.fill({"a": "-v"}) == ["/bin/x", "--v=-v"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({}, "without version"),
        ({"version": "v1", "x": "1"}, "no parameter 'x'"),
        ({"version": "1"}, "version: doesn't match"),
    ],
)
def test_parameters_that_are_missing_unknown_or_wrong_are_named(args, why):
    with pytest.raises(BadParams, match=re.escape(why)):
        Task(("/bin/x", "{version}"), "root", {"version": VERSION}).fill(args)


def policy(**task):
    return {
        "version": 1,
        "serial": 1,
        "host": "web1",
        "port": 62201,
        "sentry_user": "nobody",
        "services": {"ssh": {"protocol": "tcp", "port": 22}},
        "operators": {"alice": {"fingerprint": KEY, "services": ["ssh"], "tasks": ["deploy"]}},
        "tasks": {"deploy": {"argv": ["/bin/true"], "user": "root", **task}},
    }


@pytest.mark.parametrize(
    ("task", "where", "why"),
    [
        ({"argv": ["true"]}, "argv.0", "absolute path of a program"),
        ({"argv": ["/bin/{x}"]}, "argv.0", "without placeholders"),
        ({"argv": ["/bin/true", "{}"]}, "argv.1", "a placeholder is a name"),
        ({"argv": ["/bin/true", "{x!r}"]}, "argv.1", "a placeholder is a name"),
        ({"argv": ["/bin/true", "{x"]}, "argv.1", "expected '}'"),
        ({"argv": ["/bin/true", "{x}"]}, "argv.1", "no parameter 'x'"),
        ({"params": {"x": {"int": [1, 2]}}}, "params.x", "no argument uses it"),
        ({"params": {"x": {"int": [2, 1]}}}, "params.x.int", "not a range"),
        ({"params": {"x": {"int": [1, 2], "choice": ["a"]}}}, "params.x", "one of int, choice"),
        ({"params": {"x": {"choice": [1]}}}, "params.x.choice.0", "not a word"),
        ({"params": {"x": {"pattern": "(a"}}}, "params.x.pattern", "no regular expression"),
        ({"params": {"x": {"pattern": "a", "length": 999}}}, "params.x.length", "not a whole"),
        ({"params": {"x": {"pattern": "a", "len": 9}}}, "params.x.len", "unknown field"),
        ({"seconds": 0}, "seconds", "not a whole number"),
        ({"cwd": "srv"}, "cwd", "not an absolute path"),
        ({"shell": True}, "shell", "unknown field"),
    ],
)
def test_mistakes_are_told_with_line_and_column(tmp_path, task, where, why):
    path = tmp_path / "agent.yml"
    path.write_text(yaml.safe_dump(policy(**task)))
    rules, mistakes = policy_file.check(path)
    assert rules is None
    [told] = [str(each) for each in mistakes if f"tasks.deploy.{where}:" in str(each)]
    assert re.search(r"line \d+, column \d+", told)
    assert why in told


def test_what_is_foolish_is_warned_of(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    program = shared / "deploy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    argv = [str(program), "{x}"]
    task = {"argv": argv, "params": {"x": {"pattern": ".+"}}, "cwd": str(shared)}
    path = tmp_path / "agent.yml"

    def told(**task):
        path.write_text(yaml.safe_dump(policy(**task)))
        return list(policy_file.warnings(policy_file.load(path), dt.date(2026, 1, 1)))

    found = told(**task)
    assert "tasks.deploy: runs as root, and x may be nearly anything" in found
    assert f"tasks.deploy: program {shared} can be written by others than its owner" in found
    assert f"tasks.deploy: cwd {shared} can be written by others than its owner" in found
    assert told() == []
    assert "tasks.deploy: no program /nonexistent on this machine" in told(argv=["/nonexistent"])
    assert "tasks.deploy: no user 'nemo' on this machine" in told(user="nemo")
    assert not any(
        "nearly" in each
        for each in told(argv=["/bin/true", "{x}"], user="nobody", params={"x": {"pattern": ".+"}})
    )
    strict = {"x": {"pattern": "v[0-9.]+"}}
    assert told(argv=["/bin/true", "{x}"], params=strict) == []
    for free in ("[^;]+", "[^/]*", r"\S+.*", "[^ ]+"):
        found = told(argv=["/bin/true", "{x}"], params={"x": {"pattern": free}})
        assert found == ["tasks.deploy: runs as root, and x may be nearly anything"], free


@pytest.mark.parametrize(
    ("argv", "foolish"),
    [
        (["/bin/sh", "-c", "echo {x}"], True),
        (["/usr/bin/env", "bash", "-euc", "{x}"], True),
        (["/usr/bin/env", "/bin/dash", "-e", "-c", "echo {x}"], True),
        (["/bin/sh", "-c", 'echo "$1"', "sh", "{x}"], False),
        (["/bin/sh", "/bin/true", "{x}"], False),
        (["/bin/true", "-c", "{x}"], False),
    ],
)
def test_a_parameter_within_a_shell_s_program_is_warned_of(tmp_path, argv, foolish):
    """It would be a shell by the back door; as an argument of its own it is safe."""
    path = tmp_path / "agent.yml"
    task = {"argv": argv, "params": {"x": {"int": [1, 9]}}, "user": "nobody"}
    path.write_text(yaml.safe_dump(policy(**task)))
    found = list(policy_file.warnings(policy_file.load(path), dt.date(2026, 1, 1)))
    says = 'tasks.deploy: x becomes part of a shell\'s program; pass it after that, and use "$1"'
    assert found == ([says] if foolish else [])


def test_explain_says_what_would_be_run(tmp_path):
    path = tmp_path / "agent.yml"
    task = {
        "argv": ["/bin/echo", "{v}"],
        "params": {"v": {"pattern": "v[0-9 ]+"}},
        "user": "nobody",
    }
    path.write_text(yaml.safe_dump(policy(**task)))

    def explain(*words):
        command = [sys.executable, "-m", "tariq", "agent", "explain", *words, "--file", path]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    told = explain("alice", "run", "deploy", "v=v1 2", "from", "192.0.2.1")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("yes: by its own (")
    assert "runs as nobody, in /, for 60 s at most: /bin/echo 'v1 2'" in told.stdout
    told = explain("alice", "run", "deploy", "v=x")
    assert told.returncode == 1
    assert told.stdout == "no: deploy: v: doesn't match v[0-9 ]+\n"
    told = explain("alice", "run", "deploy")
    assert (told.returncode, told.stdout) == (1, "no: deploy: without v\n")
    assert explain("alice", "run", "reboot").returncode == 2
    for words in (["run", "deploy", "v=v1", "v=v2"], ["open", "ssh", "v=v1"]):
        told = explain("alice", *words)
        assert (told.returncode, told.stdout) == (2, ""), words
        assert "v" in told.stderr.partition(":")[2], words


def test_the_page_on_tasks_shows_tasks_that_are_good(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    path = tmp_path / "agent.yml"
    path.write_text(yaml.safe_dump(policy() | shown))
    deploy = policy_file.load(path).tasks["deploy"]
    assert deploy.fill({"env": "staging", "version": "v1.2.3"})[1:] == [
        "--to",
        "staging",
        "--release=v1.2.3",
    ]
    assert set(re.findall(r"^\| `(\w+)` \| (?:yes|no) ", page, re.MULTILINE)) == {
        field.name for field in fields(Task)
    }
