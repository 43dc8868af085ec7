"""Training with prompts: questions and answers, chats; and a checkpoint that asks as it was trained."""

import csv
import json

import pytest
from commands import load_script
from tiny_models import save_language_model
from tiny_runs import tiny_settings, write_colours

from vlm_caption import Captioner, CaptionerForConditionalGeneration, CaptionerProcessor
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.towers.tokenizers import byte_tokenizer
from vlm_caption.training.train import train

CHAT_TEMPLATE = "{% for m in messages %}{{ '<bos>' + m.role + ':' + m.content }}{{ '<pad>' }}{% endfor %}"


pytestmark = pytest.mark.usefixtures("own_cache")


def write_questions(folder) -> None:
    """Two questions about each of the pictures of `write_colours`."""
    with write_colours(folder).open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "split"])
        for row in rows:
            writer.writerow([row["image"], "Which colour?", row["caption"], row["split"]])
            writer.writerow([row["image"], "A dog?", "no", row["split"]])


def test_questions_are_trained_on_and_asked_again_by_the_same_commands(tmp_path, capsys):
    write_questions(tmp_path)
    prompt = "Look: <image> {question} Answer:"
    settings = tiny_settings(tmp_path) | {"data.prompt": prompt, "training.max_steps": 2, "training.samples": 2}
    train(RunConfig.load(None, settings))
    run, photo = tmp_path / "run", tmp_path / "dev_red.png"
    assert CaptionerProcessor.from_pretrained(run).prompt == prompt
    captioner = Captioner.from_pretrained(run, device="cpu")
    answers = [captioner.caption(photo, question=question)[0].text for question in ("Which colour?", "A dog?")]
    facts = json.loads((run / "model_card.json").read_text())["training"]
    assert facts["prompt"] == prompt
    assert facts["data"]["train"]["captions"] == 16  # answers

    assert load_script("caption").main(["--checkpoint", str(run), "--question", "A dog?", str(photo)]) == 0
    assert capsys.readouterr().out.strip() == answers[1]
    assert load_script("caption").main(["--checkpoint", str(run), str(photo)]) == 2
    assert "there is no question to fill it" in capsys.readouterr().err

    arguments = ["--checkpoint", str(run), "--data.path", str(tmp_path), "--precision", "fp32"]
    arguments += ["--output-dir", str(tmp_path / "scores"), "--question-column", "question"]
    assert load_script("evaluate").main(arguments) == 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    found = {entry["image_id"]: entry["caption"] for entry in results}
    assert len(found) == 16
    assert found["dev_red.png: A dog?"] == answers[1]


def test_a_chat_is_trained_on_and_captions_as_a_chat(tmp_path, capsys):
    write_colours(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    language = save_language_model(tmp_path / "language", "llama", tokenizer=tokenizer)
    settings = {"model.language": language, "data.prompt": "Say.", "data.chat": True, "training.max_steps": 2}
    train(RunConfig.load(None, tiny_settings(tmp_path) | settings))
    processor = CaptionerProcessor.from_pretrained(tmp_path / "run")
    assert processor.render_prompt() == "<bos>user:<image>Say.<pad><bos>assistant:"
    model = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    captioner = Captioner(model, processor)
    [caption] = captioner.caption(tmp_path / "dev_red.png", max_new_tokens=4)
    [same] = captioner.caption(tmp_path / "dev_red.png", prompt="Say.", max_new_tokens=4)
    assert caption == same
    arguments = ["--checkpoint", str(tmp_path / "run"), "--data.path", str(tmp_path), "--chat", "false"]
    assert load_script("evaluate").main([*arguments, "--output-dir", str(tmp_path / "scores")]) == 2
    sentence = f"data.chat is false, and the checkpoint {tmp_path / 'run'} was trained with true: leave it out."
    assert sentence in capsys.readouterr().err
    assert (
        "Prompt before each caption, in the language model's chat template: `Say.`"
        in (tmp_path / "run" / "README.md").read_text()
    )


def test_a_base_model_is_refused_as_a_chat_before_any_picture_is_opened(tmp_path):
    write_colours(tmp_path)
    with pytest.raises(ConfigError, match="has no chat template"):
        train(RunConfig.load(None, tiny_settings(tmp_path) | {"data.chat": True}))
    assert not (tmp_path / "run").exists()


def test_a_language_model_that_lets_captions_see_each_other_is_refused(tmp_path):
    write_colours(tmp_path)
    language = {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 2}
    with pytest.raises(ConfigError, match=r"^model\.language: mpt language models cannot be trained here"):
        train(RunConfig.load(None, tiny_settings(tmp_path) | {"model.language": language}))
