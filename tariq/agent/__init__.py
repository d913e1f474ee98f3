"""The host's side: sentry and warden, and what they decide by.

Read it in this order: ``sentry`` (parses what strangers send, may do nothing),
``link`` (what passes between the two), ``warden`` (decides and acts), then
``policy``, ``ledger`` and ``firewall`` that it decides and acts with.
"""
