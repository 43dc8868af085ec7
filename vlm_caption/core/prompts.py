"""The rules for prompts, which hold with torch and without it."""

import re

QUESTION = "{question}"


def check_prompt(prompt: str, image_token: str = "<image>") -> str:
    """Returns a prompt with its `<image>`, which comes first unless it is placed.

    Raises:
        ValueError: The prompt has several images, a field that is not `{question}`, or a question before the image.
    """
    fields = re.findall(r"\{\w*\}", prompt)
    if unknown := [field for field in fields if field != QUESTION]:
        raise ValueError(
            f"{unknown[0]} in the prompt cannot be filled: its one field is {QUESTION}, and the answer follows it."
        )
    if len(fields) > 1:
        raise ValueError(f"The prompt has {QUESTION} {len(fields)} times: a prompt asks one question.")
    if (count := prompt.count(image_token)) > 1:
        raise ValueError(f"The prompt has {image_token} {count} times: it is of one image.")
    if count == 0:
        return image_token + prompt
    if QUESTION in prompt.partition(image_token)[0]:
        raise ValueError(
            f"In the prompt, {QUESTION} stands before {image_token}: put it behind, for questions share their image's "
            "tokens."
        )
    return prompt
