"""The same examples in each run, so that a change that passed once passes again."""

from hypothesis import settings

settings.register_profile("everyday", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("everyday")
