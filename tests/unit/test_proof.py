"""playbooks/revoke.yml ends with a proof: of every host of the run, and of nothing less."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
CLIENT = """\
#!{python}
import json, os, sys
json.dump(sys.argv[1:], open({asked!r}, "w"))
print("HOST  STATE    POLICY  DETAIL")
for host in {answers!r}:
    print(f"{{host}}  current  1")
sys.exit({status})
"""


@pytest.fixture
def prove(tmp_path):
    """Run the playbook's second play with a client that says what it is told to say."""
    plays = yaml.safe_load((REPO / "playbooks" / "revoke.yml").read_text())
    (tmp_path / "prove.yml").write_text(yaml.safe_dump(plays[1:]))
    variables = {
        "tariq_client": [str(tmp_path / "client")],
        "ansible_connection": "local",
        "ansible_become": True,
        "ansible_become_exe": "/nonexistent/sudo",
    }
    for name, host in (("one", "web1"), ("two", "web2")):
        inventory = {"webservers": {"hosts": {host: None}, "vars": variables}}
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(inventory))

    def run(*words, answers, status=0):
        asked = tmp_path / "asked"
        asked.unlink(missing_ok=True)
        text = CLIENT.format(
            python=sys.executable, asked=str(asked), answers=answers, status=status
        )
        (tmp_path / "client").write_text(text)
        (tmp_path / "client").chmod(0o755)
        sources = ["-i", "one.yml", "-i", "two.yml"]
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", *sources, "prove.yml", *words],
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_BECOME_ALLOW_SAME_USER": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done, json.loads(asked.read_text()) if asked.exists() else []

    return run


def test_hosts_of_every_inventory_are_asked_however_they_were_chosen(prove, tmp_path):
    (tmp_path / "names").write_text("web2\nweb1\n")
    for words in (["--limit", "@names"], ["-e", "tariq_hosts=webservers"], []):
        done, asked = prove(*words, answers=["web1", "web2"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert [each for each in asked if each.endswith(".yml")] == [
            str(tmp_path / "one.yml"),
            str(tmp_path / "two.yml"),
        ]
        assert sorted(asked[-1].split(",")) == ["web1", "web2"]


def test_a_host_that_was_not_asked_is_not_proved(prove):
    done, _ = prove(answers=["web1"])
    assert done.returncode != 0
    assert prove("--limit", "web1", answers=["web1"])[0].returncode == 0, "the control"


def test_a_dry_run_asks_as_well_and_tells_the_truth(prove):
    done, asked = prove("--check", answers=["web1", "web2"], status=16)
    assert asked
    assert "FAILED" in done.stdout
    assert done.returncode == 0, "hosts are as they were, which is no mistake"
