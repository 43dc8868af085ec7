"""Uploads a captioner's checkpoint with its model card to the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import huggingface_hub

from .card import write_upload_card


def upload_checkpoint(
    model: Any,
    folder: str | Path,
    repo_id: str,
    files: list[str] | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    tags: str | list[str] | None = None,
    **commit: Any,
) -> huggingface_hub.CommitInfo:
    """Uploads a folder that a model was saved to, with its model card, in one commit.

    Args:
        model: The captioner, as it was saved.
        folder: The folder that it was saved to. The card is written there as well.
        repo_id: "org/name", or a name in the token's own namespace. The repository is created if it does not exist.
        files: The files of the folder to upload, by default all.
        private: Whether a new repository is private, by default as in the namespace.
        token: A token to use instead of the one that is logged in.
        revision: The branch, which is created if it does not exist; by default "main".
        tags: More tags for the card.
        **commit: `commit_message` (by default "Upload model"), `commit_description`, and `create_pr` to open a pull
            request instead of committing to the branch.

    Returns:
        The commit.

    Raises:
        HfHubHTTPError: The Hub refuses, for example because there is no token.
    """
    commit.setdefault("commit_message", "Upload model")
    hub = huggingface_hub.HfApi(token=token, library_name="transformers")
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    tags = [*(model.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
    cards = write_upload_card(model, Path(folder), repo_id, hub=hub, revision=revision, tags=tags)
    return hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=None if files is None else [*files, *cards],
        ignore_patterns=None if "README.md" in cards else "README.md",
        revision=revision,
        **commit,
    )
