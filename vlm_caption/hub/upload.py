"""Uploading a captioner's checkpoint to the Hugging Face Hub, with its model card."""

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
    commit_message: str = "Upload model",
    **commit: Any,
) -> huggingface_hub.CommitInfo:
    """Uploads a folder that a model was saved to, with its model card, in one commit.

    Args:
        model: The captioner, as it was saved.
        folder: Where it was saved; the card is written there as well.
        repo_id: "org/name", or a name in the token's own namespace; the repository is made if there is none.
        files: Upload these files of the folder alone.
        private: Whether a new repository is private; by default as the namespace has it.
        token: A token instead of the one that is logged in.
        revision: The branch, made if there is none; by default "main".
        tags: More tags for the card.
        commit_message: The commit's first line.
        **commit: `commit_description`, and `create_pr` to open a pull request instead of committing to the branch.

    Returns:
        The commit.

    Raises:
        HfHubHTTPError: The Hub refuses, for example because there is no token.
    """
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
        commit_message=commit_message,
        **commit,
    )
