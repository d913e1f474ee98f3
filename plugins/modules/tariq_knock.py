# Copyright: The Tariq contributors
# MIT License (see LICENSE, or https://opensource.org/license/mit)
"""What ansible-doc shows of tariq_knock; plugins/action/tariq_knock.py does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tariq_knock
short_description: Knock at hosts, and return the receipts that they signed
version_added: 0.1.0
author:
  - The Tariq contributors (@tariq)
description:
  - Opens services of hosts for this controller's address, ends those leases, asks what is open, or
    runs a task that the hosts' policies name.
  - Works on the controller, whatever the play's connection, and needs no way into the host.
  - One task is one signature for up to 64 hosts. A task that runs for each host signs once for each
    of them; to knock at all of them at once, name them in O(hosts) and set C(run_once).
  - Fails unless every host said yes. The receipts are returned in that case, too.
options:
  hosts:
    description:
      - Names of hosts that have a card.
      - By default the host that the task runs for.
    type: list
    elements: str
  do:
    description:
      - What is asked of the hosts.
    type: str
    choices: [open, close, status, run]
    default: open
  services:
    description:
      - Names of services, for V(open) and V(close).
      - By default each host's own default service.
    type: list
    elements: str
    default: []
  for:
    description:
      - How long to open for, such as V(30s) or V(2m). By default as long as the host allows.
    type: str
  task:
    description:
      - The name of the task, for V(run).
    type: str
  params:
    description:
      - The task's parameters, for V(run).
    type: dict
    default: {}
  source:
    description:
      - The address that the hosts must see. An address, V(auto) for this machine's own, or
        V(remembered) for what each host saw before.
    type: str
  ip_version:
    description:
      - Knock over this version of IP only.
    type: int
    choices: [4, 6]
  transport:
    description:
      - How the packet is sent. By default as the card says.
    type: str
    choices: [fastopen, scapy]
  cards:
    description:
      - The folder of host cards.
      - By default the variable C(tariq_cards_dir), and without it C(cards) beside the inventory.
    type: path
  key:
    description:
      - The operator's key, by name or the end of its fingerprint. By default the only one.
    type: str
  gnupg_home:
    description:
      - The folder of the operator's key. By default as C(tariq) itself finds it.
    type: path
  program:
    description:
      - The program C(tariq) on the controller.
      - By default the one beside Ansible's own Python, and otherwise the one on C(PATH).
    type: path
  timeout:
    description:
      - Seconds until the task gives up, with the time that it takes to enter a passphrase or to
        touch a token.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    description: V(status) is asked; anything else sends nothing and reports a change.
notes:
  - Nobody can be asked for a passphrase between Ansible's lines on a terminal, other than by a
    graphical pinentry. Enter it before, for example with C(tariq status), and gpg-agent keeps it.
seealso:
  - plugin: tariq.tariq.cards
    plugin_type: inventory
"""

EXAMPLES = r"""
- name: Open the whole group with one signature, before Ansible connects to it
  hosts: webservers
  gather_facts: false
  tasks:
    - name: Knock
      tariq.tariq.tariq_knock:
        hosts: "{{ ansible_play_hosts }}"
        services: [ssh, dashboard]
        for: 2m
      run_once: true
      register: knock

    - name: Which policy does each host have
      ansible.builtin.debug:
        msg: "{{ item.host }} has policy {{ item.receipt.policy }}"
      loop: "{{ knock.receipts }}"
      run_once: true

- name: Restart a service without any connection
  hosts: webservers
  gather_facts: false
  tasks:
    - name: Run what the hosts' policies call restart-nginx
      tariq.tariq.tariq_knock:
        do: run
        task: restart-nginx
        hosts: "{{ ansible_play_hosts }}"
      run_once: true

- name: Close the door behind us
  hosts: webservers
  gather_facts: false
  tasks:
    - name: Close
      tariq.tariq.tariq_knock:
        do: close
        services: [ssh]
"""

RETURN = r"""
receipts:
  description:
    - What came of each host's knock, in the order of O(hosts), as C(tariq knock --json) prints it.
  returned: always
  type: list
  elements: dict
  contains:
    host:
      description: The host's name.
      type: str
    ok:
      description: Whether the host said yes.
      type: bool
    ending:
      description: How the knock ended, such as V(yes), V(no), V(silent) or V(unreachable).
      type: str
    address:
      description: The address that was knocked at.
      type: str
    reason:
      description: Why the host did not say yes.
      type: str
    milliseconds:
      description: How long the answer took; absent where none came.
      type: int
    receipt:
      description: The receipt that the host signed; absent where none came.
      type: dict
  sample:
    - host: web1
      ok: true
      ending: "yes"
      address: 192.0.2.11
      reason: ""
      milliseconds: 41
      receipt:
        code: opened
        leases: {ssh: 1796560200}
        policy: 12
        seen: 198.51.100.7
"""
