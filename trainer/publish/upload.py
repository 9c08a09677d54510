"""The upload: a repository that is made where it is missing, and one commit with all files or none."""

from __future__ import annotations

import re

from autoft import __version__
from autoft.errors import HubError, OptionError
from autoft.trainer.publish.contents import Publication
from autoft.trainer.runtime import environment
from autoft.trainer.storage.ownership import CARD

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(repository: str) -> None:
    """Raises: OptionError where it is not OWNER/NAME as the hub has it."""
    if REPOSITORY.fullmatch(repository) is None or "--" in repository or ".." in repository:
        raise OptionError(f"{repository}: not the name of a repository", fix="OWNER/NAME, such as me/my-adapter")


def token() -> str:
    """The user's token for the hub. Raises: OptionError where there is none, or the network is forbidden."""
    from huggingface_hub import get_token

    if environment.is_offline():
        raise OptionError("push needs the hub, and this is offline", fix="leave out --offline, unset HF_HUB_OFFLINE")
    value = get_token()
    if value is None:
        raise OptionError("no token for the hub", fix="hf auth login, or set HF_TOKEN to one that may write")
    return value


def upload(publication: Publication, repository: str, *, private: bool, user_token: str) -> str:
    """Commit the files to the main branch; returns the address of the commit.

    private: of a repository that is made. Other files of one that exists stay as they are.
    Raises: OptionError when the token may not do that, or a public repository exists and private is asked for;
    HubError when the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # theirs, whatever its version is named

    api = HfApi(token=user_token)
    contents: dict[str, bytes | str] = {CARD: publication.card.encode()}
    contents |= {name: str(path) for name, path in publication.files.items()}
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise OptionError(
                f"--private: {repository} exists and is public", fix="another name, or make it private on the hub"
            )
        commit = api.create_commit(repository, operations, commit_message=f"Upload from autoft {__version__}")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise OptionError(
                f"{repository}: the hub does not let this token write there (HTTP {status})",
                fix="a token with write access: hf auth login; or a name under your own",
            ) from error
        raise HubError(f"{repository}: the hub refused: {_first_line(error)}", fix="try again") from error
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        what = f"{repository}: not uploaded: {_first_line(error)}"
        raise HubError(what, fix="check the network, and try again") from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
