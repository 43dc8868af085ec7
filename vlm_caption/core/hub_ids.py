"""Names of repositories on the Hugging Face Hub."""


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of a Hugging Face Hub id, "org/name"."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1
