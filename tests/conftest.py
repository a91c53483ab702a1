"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("selfloop", deadline=None)  # a busy machine is no failure
settings.load_profile("selfloop")
