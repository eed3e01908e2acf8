from tests.bases.conftest import copy_of, originals  # noqa: F401  # fixtures
from tests.resuming import again, whole  # noqa: F401  # fixtures
