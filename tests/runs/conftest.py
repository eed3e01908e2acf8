from tests.resuming import again, whole  # noqa: F401  # fixtures
