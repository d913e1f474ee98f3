"""How a payload gets to a host and an answer back.

A *transport* carries opaque payloads and knows nothing of keys. The client's
transports share ``base.Transport``; the agent's side is ``wire`` (what a SYN looks
like, in raw bytes), ``bpf`` (what the kernel drops before anybody looks) and
``answer`` (the three crafted packets).
"""
