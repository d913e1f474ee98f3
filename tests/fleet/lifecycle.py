"""What takes long of a fleet's life: ``make lifecycle``, an hour and a half on two cores."""

import shutil
from pathlib import Path

import pytest
import yaml
from test_lifecycle import BIN, cut_off_and_finish, eve, site  # noqa: F401 - fixtures


@pytest.fixture
def vault(fleet, tmp_path):
    """Run ansible-vault; meanwhile, all that is run knows its password."""
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    fleet.env["ANSIBLE_VAULT_PASSWORD_FILE"] = str(password)
    yield lambda *words: fleet.run(BIN / "ansible-vault", *words).stdout
    del fleet.env["ANSIBLE_VAULT_PASSWORD_FILE"]


def test_hosts_change_their_keys_and_old_cards_count_until_the_end(site, fleet, tmp_path, vault):  # noqa: F811
    """And the card is vaulted from the first deployment to the last, with nothing in the clear."""
    cards = site.fleet.env["TARIQ_CARDS"]
    card = Path(cards, "web2.yml")
    old = tmp_path / "old"

    def gets_in(folder):
        return fleet.outcomes("status", "web2", "--cards", folder)["web2"]["ok"]

    def secret(folder):
        return yaml.safe_load(vault("view", Path(folder, "web2.yml")))["knock_key"]

    site.play("deploy.yml", "-e", "tariq_cards_vaulted=true", limit="web2")
    assert card.read_text().startswith("$ANSIBLE_VAULT;")
    shutil.copytree(cards, old)
    told = site.play("playbooks/rotate.yml", "-vvv", limit="web2")
    assert card.read_text().startswith("$ANSIBLE_VAULT;")
    assert secret(cards) != secret(old)
    assert gets_in(cards)
    assert gets_in(old)
    for key in (secret(cards), secret(old)):
        assert key not in told.stdout + told.stderr

    done = site.play("playbooks/rotate.yml", "-e", "tariq_rotate_finish=true", limit="web2")
    assert "failed=0" in done.stdout
    assert gets_in(cards)
    assert not gets_in(old)
    again = site.play("deploy.yml", limit="web2")
    assert "changed=0" in again.stdout, again.stdout
    vault("decrypt", card)


def test_a_run_may_be_killed_at_any_task(site, fleet, eve):  # noqa: F811
    for at in range(1, 200):
        if cut_off_and_finish(site, fleet, eve, at) is None:
            break
    assert 50 < at < 199, "the last one ran to its end"
