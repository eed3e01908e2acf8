"""A folder to a repository of the hub, with the login that the user has there, and no other."""

from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError

LOGIN = "run: hf auth login, with a token that may write"


def check_login(repo: str) -> None:
    """Refuse what could not be published, before there is anything to publish.

    Raises:
        ConfigError: The name is no repository's.
        WeightsError: The network is forbidden, or the user has no login.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # made when asked for

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo} is no repository's name", "give ORG/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{repo} cannot be written offline", "leave out --offline and HF_HUB_OFFLINE")
    if not get_token():
        raise WeightsError(f"{repo} cannot be written without a login", LOGIN)


def publish(folder: Path, repo: str, left_out: tuple[str, ...]) -> str:
    """Upload a folder as one commit; the repository is made where there is none.

    Args:
        folder: What to upload.
        repo: Its name, ORG/NAME.
        left_out: Names that stay here.

    Returns:
        The commit's address.

    Raises:
        WeightsError: It may not be written, or the hub cannot be reached.
        InputError: The hub refuses what is in it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    of_httpx: Any = HfHubHTTPError.__bases__[0]  # httpx itself has another name with each huggingface_hub
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
