"""What the tests of content share."""

from publisher import publish, publisher  # noqa: F401  # fixtures
