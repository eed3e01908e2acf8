import pytest

from rapm_cli.cli.app import main
from tests.small_demo import use_small_demo


@pytest.fixture(scope="session")
def short_run(tmp_path_factory, small_folder):
    """The folder of a short run of the small demo base."""
    folder = tmp_path_factory.mktemp("run") / "short"
    options = ("--iterations", "3", "--trajectories", "4", "--fine-steps", "2", "--rank", "2", "--batch-size", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(tmp_path_factory.mktemp("home")))
        use_small_demo(small_folder, patch)
        argv = ["distill", "--base", "demo", *options, "--samples", "0", "--output", str(folder), "--quiet"]
        assert main(argv) == 0
    return folder
