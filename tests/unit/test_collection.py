"""What `ansible-galaxy collection install` gives: role, playbooks and plugins."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tomllib

import galaxy
import pytest
import yaml
from galaxy import REPO

import tariq

EXAMPLE = REPO / "inventories" / "example" / "hosts.yml"
PLAYBOOKS = sorted(path.stem for path in (REPO / "playbooks").glob("*.yml"))
CARD = {
    "card": 1,
    "name": "web1",
    "addresses": ["192.0.2.11", "2001:db8::11"],
    "port": 62201,
    "transports": ["fastopen"],
    "fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567",
    "public_key": "AAAA",
    "knock_key": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlYzA=",
    "services": {"ssh": "tcp/22"},
    "groups": ["webservers"],
    "policy": 12,
}


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def tarball(tmp_path_factory):
    """Built from a checkout in which somebody has worked."""
    if not (REPO / ".git").exists():
        pytest.skip("cannot here: not a git checkout, so nothing says what belongs to it")
    base = tmp_path_factory.mktemp("galaxy")
    checkout = galaxy.copy_checkout(base / "checkout")
    for junk in (
        "inventories/mine/cards/web1.yml",
        ".venv/lib/x.py",
        ".fleet/tariq/id_ed25519",
        ".wheelhouse/x.whl",
        ".ansible/x",
        "build/lib/x.py",
        "dist/tariq-0.1.0.tar.gz",
        "tariq/__pycache__/x.pyc",
    ):
        (checkout / junk).parent.mkdir(parents=True, exist_ok=True)
        (checkout / junk).write_text("secret")
    return galaxy.build(checkout, base)


@pytest.fixture(scope="module")
def installed(tarball, tmp_path_factory):
    return galaxy.install(tarball, tmp_path_factory.mktemp("collections"))


@pytest.fixture(scope="module")
def env(installed):
    return {"ANSIBLE_COLLECTIONS_PATH": str(installed.parents[2])}


def test_it_holds_what_is_needed_and_nothing_of_the_machine(tarball):
    with tarfile.open(tarball) as archive:
        files = {each.name for each in archive if each.isfile()}
    tops = {name.partition("/")[0] for name in files}
    assert tops == {
        *("MANIFEST.json", "FILES.json", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"),
        *("CONTRIBUTING.md", "pyproject.toml", "meta", "playbooks", "plugins", "roles", "docs"),
        *("tariq", "tools", "requirements"),
    }
    assert {name for name in files if name.startswith("tools/")} == {"tools/wheelhouse.py"}
    assert all((REPO / name).exists() for name in files - {"MANIFEST.json", "FILES.json"})


def test_the_versions_agree():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((REPO / "galaxy.yml").read_text())["version"] == project
    assert tariq.__version__ == project


def test_the_hosts_get_the_same_wheel_as_from_the_checkout(installed):
    tool = module(REPO / "tools" / "wheelhouse.py")

    def sum_of(place):
        return tool.sources_digest(place, tool.sources(place))

    assert sum_of(installed) == sum_of(REPO)
    for name in ("requirements/agent.lock", "tools/wheelhouse.py"):
        assert (installed / name).read_bytes() == (REPO / name).read_bytes()


def test_wheels_are_kept_outside_of_an_installed_collection(installed, monkeypatch, tmp_path):
    tool = module(REPO / "tools" / "wheelhouse.py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tool.usual_place(installed) == tmp_path / "tariq" / "wheelhouse"
    assert tool.usual_place(REPO) == REPO / ".wheelhouse"


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_its_playbooks_are_playbooks(env, name):
    told = galaxy.run("playbook", "-i", EXAMPLE, f"tariq.tariq.{name}", "--syntax-check", env=env)
    assert f"ansible_collections/tariq/tariq/playbooks/{name}.yml" in told.stdout


def test_deploying_from_it_uses_its_role_and_no_other(env):
    told = galaxy.run("playbook", "-i", EXAMPLE, "tariq.tariq.deploy", "--list-tasks", env=env)
    assert "tariq.tariq.tariq : Validating arguments" in told.stdout or (
        "tariq.tariq.tariq : Check what the role needs" in told.stdout
    ), told.stdout


def test_a_role_of_the_checkout_works_as_before():
    told = galaxy.run(
        "playbook",
        "-i",
        EXAMPLE,
        REPO / "deploy.yml",
        "--list-tasks",
        env={
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": "/nonexistent",
        },
    )
    assert "tariq : Check what the role needs" in told.stdout


def documented(env, kind, name):
    told = galaxy.run("doc", "-t", kind, "-j", f"tariq.tariq.{name}", env=env)
    return json.loads(told.stdout)[f"tariq.tariq.{name}"]


def test_ansible_doc_shows_the_module_as_it_is(env, installed):
    shown = documented(env, "module", "tariq_knock")
    options = shown["doc"]["options"]
    arguments = module(installed / "plugins" / "action" / "tariq_knock.py").ARGUMENTS
    facts = ("type", "elements", "choices", "default")
    assert {
        name: {fact: option[fact] for fact in facts if option.get(fact) is not None}
        for name, option in options.items()
    } == arguments
    assert shown["examples"]
    assert shown["return"]["receipts"]


def test_ansible_doc_shows_the_role_and_the_inventory(env):
    assert documented(env, "inventory", "cards")["doc"]["options"]["use_groups"]
    role = documented(env, "role", "tariq")
    assert role["entry_points"]["main"]["options"]["tariq_operators"]


def test_the_examples_are_yaml_that_ansible_reads(env, installed, tmp_path):
    examples = module(installed / "plugins" / "modules" / "tariq_knock.py").EXAMPLES
    path = tmp_path / "examples.yml"
    path.write_text(examples)
    galaxy.run("playbook", "-i", EXAMPLE, path, "--syntax-check", env=env)


# --- the inventory of host cards


@pytest.fixture
def inventory(env, tmp_path):
    """Write cards and a configuration; return what ansible-inventory makes of them."""
    (tmp_path / "cards").mkdir()

    def listed(*cards, check=True, options="", **files):
        for card in cards:
            path = tmp_path / "cards" / f"{card['name']}.yml"
            path.write_text(yaml.safe_dump(card))
        for name, text in files.items():
            (tmp_path / "cards" / f"{name}.yml").write_text(text)
        config = tmp_path / "cards.yml"
        config.write_text(f"plugin: tariq.tariq.cards\n{options}")
        more = {
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
            "ANSIBLE_INVENTORY_ENABLED": "auto",
            **({"ANSIBLE_VAULT_PASSWORD_FILE": str(tmp_path / "pw")} if "vault" in files else {}),
        }
        done = galaxy.run("inventory", "-i", config, "--list", check=check, env={**env, **more})
        if not check:
            return done
        # What a host wrote is marked, so that Ansible never takes it for a template.
        return json.loads(done.stdout, object_hook=lambda each: each.get("__ansible_unsafe", each))

    return listed


def test_hosts_groups_and_addresses_come_from_the_cards(inventory, tmp_path):
    told = inventory(CARD, {**CARD, "name": "db1", "groups": ["databases"]})
    assert told["webservers"]["hosts"] == ["web1"]
    assert told["databases"]["hosts"] == ["db1"]
    web1 = told["_meta"]["hostvars"]["web1"]
    assert web1["ansible_host"] == "192.0.2.11"
    assert web1["tariq_cards_dir"] == str(tmp_path / "cards")
    assert web1["tariq_card"]["policy"] == 12
    [option, command] = shlex.split(web1["ansible_ssh_common_args"])
    assert option == "-o"
    assert command == f"ProxyCommand=tariq proxy --cards {tmp_path}/cards web1 %p"


def test_no_key_of_a_card_becomes_a_variable(inventory):
    assert CARD["knock_key"] not in json.dumps(inventory(CARD))


def test_options_choose_the_address_groups_and_proxy(inventory):
    options = (
        "ip_version: 6\nproxy: false\nuse_groups: false\n"
        "keyed_groups: [{key: tariq_card.policy | string, prefix: serial}]\n"
        "compose: {ansible_port: \"tariq_card.services.ssh.split('/')[1] | int\"}\n"
    )
    told = inventory(CARD, options=options)
    web1 = told["_meta"]["hostvars"]["web1"]
    assert web1["ansible_host"] == "2001:db8::11"
    assert web1["ansible_port"] == 22
    assert "ansible_ssh_common_args" not in web1
    assert "webservers" not in told
    assert told["serial_12"]["hosts"] == ["web1"]


def test_a_card_may_be_vaulted(inventory, tmp_path):
    (tmp_path / "pw").write_text("secret\n")
    plain = tmp_path / "plain.yml"
    plain.write_text(yaml.safe_dump({**CARD, "name": "vault"}))
    galaxy.run("vault", "encrypt", "--vault-password-file", tmp_path / "pw", plain)
    # Of a card whose knock key alone is encrypted, what the inventory needs is in the clear.
    key = "knock_key: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6161\n"
    others = {field: value for field, value in CARD.items() if field != "knock_key"}
    only = yaml.safe_dump({**others, "name": "only"}) + key
    told = inventory(vault=plain.read_text(), only=only)
    for host in ("vault", "only"):
        assert told["_meta"]["hostvars"][host]["ansible_host"] == "192.0.2.11"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("addresses", ["{{ lookup('pipe', 'touch PWNED') }}"]),
        ("addresses", ["fe80::1%{{ lookup('pipe', 'touch PWNED') }}"]),
        ("addresses", []),
        ("groups", ["{{ lookup('pipe', 'touch PWNED') }}"]),
        ("groups", "webservers"),
        ("services", {"ssh": "{{ lookup('pipe', 'touch PWNED') }}"}),
        ("services", {"{{ 1 }}": "tcp/22"}),
        ("fingerprint", "{{ lookup('pipe', 'touch PWNED') }}"),
        ("policy", "{{ 1 }}"),
        ("port", True),
        ("services", []),
        ("name", "db1"),
    ],
)
def test_a_card_that_a_host_made_up_is_refused(installed, field, value):
    plugin = module(installed / "plugins" / "inventory" / "cards.py")
    assert plugin.read_card(CARD, "web1")["port"] == 62201
    with pytest.raises(plugin.WrongCard, match=f"^{field}: "):
        plugin.read_card({**CARD, field: value}, "web1")


def test_a_refused_card_is_named_with_the_next_step(inventory, tmp_path):
    told = inventory(check=False, web1=yaml.safe_dump({**CARD, "name": "db1"}))
    assert told.returncode != 0
    said = " ".join(told.stderr.split())
    assert f"{tmp_path}/cards/web1.yml: name: 'db1' is not the name of the file; deploy" in said
    assert "Traceback" not in said


# --- the module, as far as it goes without a host (tests/wire/test_ansible.py goes on)


@pytest.fixture
def knock(env, tmp_path):
    """Run the module for web1 with a program in tariq's place that tells its arguments."""
    program = tmp_path / "tariq"

    def told(*words, script="import json, sys; print(json.dumps([]), sys.argv, file=sys.stderr)"):
        program.write_text(f"#!{sys.executable}\nimport sys, time\n{script}\n")
        program.chmod(0o755)
        arguments = " ".join([f"program={program}", f"cards={tmp_path}", *words])
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "adhoc", "-i", "web1,", "web1"),
                *("-m", "tariq.tariq.tariq_knock", "-a", arguments),
            ],
            env={**os.environ, **env, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    return told


def test_options_become_arguments_and_names_are_never_options(knock):
    status, told = knock(
        "hosts=--help,web2",
        "services=ssh,web",
        "for=30s",
        "ip_version=6",
        "source=auto",
        script="sys.exit(f'arguments {sys.argv[1:]}')",
    )
    assert status != 0
    assert (
        "'knock', '--json', '--cards=" in told
        and "'--source=auto', '-6', '--open=ssh,web', '--for=30s', '--', '--help', 'web2'" in told
    ), told


def test_a_task_is_a_word_with_its_parameters(knock):
    arguments = ("do=run", "hosts=web1,web2", "task=deploy", "params={'env':'prod'}")
    told = knock(*arguments, script="sys.exit(f'arguments {sys.argv[1:]}')")[1]
    assert "['run', '--json', '--cards=" in told
    assert "'--', 'web1,web2', 'deploy', 'env=prod']" in told, told


@pytest.mark.parametrize(
    ("words", "script", "reason"),
    [
        (["do=close", "for=30s"], "", "for: nothing that 'do: close' could use"),
        (["do=status", "services=ssh"], "", "services: nothing that 'do: status' could use"),
        (["do=shut"], "", "value of do must be one of: open, close, status, run"),
        (["do=run"], "", "task: missing, for 'do: run'"),
        (["task=reboot"], "", "task: nothing that 'do: open' could use"),
        (["timeout=1"], "time.sleep(9)", "not done after 1 seconds"),
        (
            [],
            "sys.exit('tariq: web1: no card at x; deploy to the host first')",
            "web1: no card at x",
        ),
        (["program=/nonexistent"], "", "/nonexistent: no such file or directory"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(knock, words, script, reason):
    status, told = knock(*words, script=script)
    assert status != 0
    assert reason in told
    assert "Traceback" not in told
