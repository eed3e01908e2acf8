"""Upload a folder to a repository of the hub, with the user's own login."""

from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError

LOGIN = "run: hf auth login, with a token that may write"


def check_login(repo: str) -> None:
    """Refuse a repository that cannot be written, before the export begins.

    Args:
        repo: `ORG/NAME`.

    Raises:
        ConfigError: The name is not valid.
        WeightsError: The network is forbidden, or the user has no login.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # the module creates its names on demand

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo} is no repository's name", "give ORG/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{repo} cannot be written offline", "leave out --offline and HF_HUB_OFFLINE")
    if not get_token():
        raise WeightsError(f"{repo} cannot be written without a login", LOGIN)


def publish(folder: Path, repo: str, left_out: tuple[str, ...]) -> str:
    """Upload a folder as one commit, and create the repository if it does not exist.

    Args:
        folder: Folder to upload.
        repo: `ORG/NAME`.
        left_out: Names of files to leave out.

    Returns:
        URL of the commit.

    Raises:
        WeightsError: The user may not write to the repository, or the hub cannot be reached.
        InputError: The hub refuses the content.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    of_httpx: Any = HfHubHTTPError.__bases__[0]  # each huggingface_hub imports httpx under another name
    api = HfApi()
    kept = f"the export is in {folder}"
    try:
        api.create_repo(repo, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=list(left_out), commit_message="Export of rapm"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise WeightsError(f"{repo} may not be written by this login; {kept}", LOGIN) from error
        raise InputError(f"the hub answers with status {status} to {repo}; {kept}", "see what it says there") from error
    except of_httpx as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise WeightsError(f"the hub cannot be reached: {reason}; {kept}", "try again: hf upload, by hand") from error
    return str(done.commit_url)
