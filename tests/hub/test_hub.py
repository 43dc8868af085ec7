"""Pushing to and pulling from the Hub: the real client against a local stand-in of the Hub's HTTP API."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from fake_hub import Hub, running_hub
from safetensors.torch import load
from tiny_models import save_language_model, save_vision_tower

from vlm_caption.towers.checkpoints import CODE_FILES

TOWER_LICENCE = "---\nlicense: cc-by-4.0\n---\n\n# A tower\n"
MODEL = {"model.safetensors", "config.json", "generation_config.json"}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
CARD = {"README.md", "model_card.json"}
CODE = set(CODE_FILES)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with two towers: the language model on its main branch, the vision tower's wanted weights on another."""
    towers = tmp_path_factory.mktemp("towers")
    with running_hub(tmp_path_factory.mktemp("hub") / "objects") as hub:
        hub.add("org/vision", save_vision_tower(towers / "other", seed=1))
        save_vision_tower(towers / "vision")
        (towers / "vision" / "README.md").write_text(TOWER_LICENCE)
        hub.add("org/vision", towers / "vision", branch="v2")
        hub.add("org/language", save_language_model(towers / "language"))
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> dict:
    """What hub_push.py said; `folder` is what it wrote."""
    folder = tmp_path_factory.mktemp("pushed")
    script = Path(__file__).with_name("hub_push.py")
    return {"folder": folder, **hub.run(script, str(folder), home=tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def pulled(hub, pushed, tmp_path_factory) -> dict:
    """What hub_pull.py found, in a process with an empty cache."""
    script = Path(__file__).with_name("hub_pull.py")
    return hub.run(script, str(pushed["folder"]), home=tmp_path_factory.mktemp("home"))


def card(hub: Hub, repo_id: str, revision: str = "main") -> tuple[dict, str]:
    """The metadata and the text of a repository's card."""
    _, metadata, text = hub.files(repo_id, revision)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def tensors(hub: Hub, repo_id: str, revision: str = "main") -> set[str]:
    return {name.split(".")[1] for name in load(hub.files(repo_id, revision)["model.safetensors"])}


def commits(hub: Hub, repo_id: str, branch: str = "main") -> list[str]:
    repository = hub.repositories[repo_id]
    return [repository.messages[oid] for oid in repository.branches[branch]]


class TestPush:
    def test_of_a_bridge_holds_no_tower_weights(self, hub, pushed):
        assert hub.files("org/bridge", "nightly/1").keys() - {".gitattributes"} == MODEL | PROCESSOR | CARD
        assert tensors(hub, "org/bridge") == {"multi_modal_projector"}

    def test_of_the_whole_holds_everything(self, hub, pushed):
        assert hub.files("org/whole").keys() - {".gitattributes"} == MODEL | PROCESSOR | CARD | CODE
        assert tensors(hub, "org/whole") == {"multi_modal_projector", "vision_tower", "language_model"}
        assert hub.repositories["org/whole"].private
        assert not hub.repositories["org/bridge"].private

    def test_sends_weights_as_large_files(self, hub, pushed):
        weights = hub.files("org/bridge")["model.safetensors"]
        assert hashlib.sha256(weights).hexdigest() in hub.lfs

    def test_is_one_commit_and_another_one_updates(self, hub, pushed):
        assert commits(hub, "org/whole") == ["initial commit", "Upload captioner"]
        assert commits(hub, "org/bridge") == ["initial commit", "Upload captioner", "Train on"]
        assert hub.repositories["org/bridge"].branches["main"][1:] == pushed["commits"]

    def test_to_a_branch_leaves_main_alone(self, hub, pushed):
        assert commits(hub, "org/bridge", "nightly/1")[-1] == "Upload captioner"
        assert hub.files("org/bridge", "nightly/1") != hub.files("org/bridge")

    def test_of_the_model_alone_goes_into_the_own_namespace(self, hub, pushed):
        assert hub.files("someone/weights-alone").keys() - {".gitattributes"} == MODEL | CARD
        assert commits(hub, "someone/weights-alone")[-1] == "Only the weights"
        assert tensors(hub, "someone/whole-model") == {"multi_modal_projector", "vision_tower", "language_model"}

    def test_as_a_pull_request(self, hub, pushed):
        assert pushed["pull_request"] == f"{hub.endpoint}/org/bridge/discussions/1"
        assert commits(hub, "org/bridge", "refs/pr/1")[-1] == "Upload model"

    def test_by_save_pretrained_is_the_same(self, hub, pushed):
        saved, by_push = hub.files("org/saved", "half"), hub.files("org/pushed")
        assert saved.keys() == by_push.keys()  # no notes.txt
        names = by_push.keys() - {"README.md"}  # whose title is the repository
        assert {name: saved[name] for name in names} == {name: by_push[name] for name in names}
        assert json.loads(saved["config.json"])["dtype"] == "float32"
        assert hub.repositories["org/saved"].private
        assert "README.md" not in hub.files("org/saved")

    def test_by_save_pretrained_takes_the_folders_name(self, hub, pushed):
        assert hub.files("someone/someones").keys() >= MODEL | CARD

    @pytest.mark.parametrize(
        ("case", "kind", "words"),
        [
            ("no token", "HfHubHTTPError", "401"),
            ("wrong token", "HfHubHTTPError", "401"),
            ("reader", "HfHubHTTPError", "rights to write"),
            ("saving", "HfHubHTTPError", "rights to write"),
            ("no such checkpoint", "CheckpointError", "'org/nowhere'"),
            ("no such tower", "BackboneError", "'org/nowhere'"),
            ("no such revision", "BackboneError", "at 'v3'"),
            ("bad name", "HFValidationError", "a/b/c"),
        ],
    )
    def test_that_cannot_be_says_so(self, hub, pushed, case, kind, words):
        assert pushed["errors"][case][0] == kind
        assert words in pushed["errors"][case][1]
        assert "org/refused" not in hub.repositories


class TestCard:
    def test_has_the_facts_in_its_metadata(self, hub, pushed):
        metadata, _ = card(hub, "org/bridge", "nightly/1")
        assert metadata["library_name"] == "transformers"
        assert metadata["pipeline_tag"] == "image-text-to-text"
        assert metadata["base_model"] == ["org/vision", "org/language"]
        assert "license" not in metadata
        [model] = metadata["model-index"]
        assert model["name"] == "org/bridge"
        [result] = model["results"]
        assert (result["dataset"]["name"], result["dataset"]["split"]) == ("colours", "test")
        scores = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert scores == {"loss": 1.234, "BLEU-4": 25.0, "CIDEr": 50.0}

    def test_names_the_towers_with_revision_licence_and_fingerprint(self, hub, pushed):
        _, text = card(hub, "org/bridge", "nightly/1")
        [vision] = [line for line in text.splitlines() if line.startswith("| vision tower")]
        [language] = [line for line in text.splitlines() if line.startswith("| language model")]
        config = json.loads(hub.files("org/bridge")["config.json"])
        assert "[org/vision](https://huggingface.co/org/vision) at `v2`" in vision
        assert config["vision_backbone"]["fingerprint"][:19] in vision
        assert "| cc-by-4.0 | frozen |" in vision
        assert config["text_backbone"]["fingerprint"][:19] in language
        assert "| not stated | frozen |" in language

    def test_says_how_to_load_what_was_pushed(self, hub, pushed):
        bridge, whole, weights = (
            card(hub, repo_id)[1] for repo_id in ("org/bridge", "org/whole", "someone/weights-alone")
        )
        assert 'Captioner.from_pretrained("org/bridge")' in bridge
        assert "trust_remote_code" not in bridge
        assert 'model="org/whole", trust_remote_code=True' in whole
        assert 'CaptionerForConditionalGeneration.from_pretrained("someone/weights-alone")' in weights

    def test_tells_the_scores_of_these_weights_alone(self, hub, pushed):
        assert "python scripts/evaluate.py --split test" in card(hub, "org/bridge", "nightly/1")[1]
        metadata, text = card(hub, "org/bridge")  # trained on since
        assert "model-index" not in metadata
        assert "None recorded" in text
        assert json.loads(hub.files("org/whole")["model_card.json"])["evaluations"][0]["images"] == 3
        assert "model_card.json" not in hub.files("org/by-hand")

    def test_takes_the_place_of_transformers_own(self, hub, pushed):
        first, second = (
            hub.files("org/processor-first", revision)["README.md"].decode()
            for revision in hub.repositories["org/processor-first"].branches["main"][1:]
        )
        assert "automatically generated" in first
        assert "Written by vlm_caption" in second
        assert "automatically generated" not in second

    def test_has_the_tags_that_were_asked_for(self, hub, pushed):
        assert card(hub, "someone/weights-alone")[0]["tags"] == ["image-captioning", "vlm_captioner", "toy"]

    def test_written_by_hand_stays(self, hub, pushed):
        assert hub.files("org/by-hand")["README.md"] == b"Mine."
        assert (pushed["folder"] / "readme" / "README.md").read_text() == "Mine."

    def test_written_by_hand_is_uploaded_with_the_weights_it_is_about(self, hub, pushed):
        assert hub.files("org/theirs")["README.md"] == b"Theirs."
        assert "Written by vlm_caption" in card(hub, "org/of-unknown-weights")[1]

    def test_without_the_package_is_transformers_own(self, hub, pushed):
        assert "automatically generated" in card(hub, "org/without-package")[1]


class TestPull:
    @pytest.mark.parametrize("what", ["bridge, updated", "branch", "whole", "whole model"])
    def test_gives_the_model_that_was_pushed(self, pulled, what):
        assert pulled[what] is True

    @pytest.mark.parametrize("what", ["caption", "settings", "settings of the whole", "revision of the tower"])
    def test_gives_its_settings(self, pulled, what):
        assert pulled[what] is True

    def test_fetches_each_repository_it_needs(self, pulled):
        pulled_repos = ["org/bridge", "org/language", "org/vision", "org/whole", "someone/whole-model"]
        assert pulled["cached"] == pulled_repos

    def test_hands_the_facts_on(self, hub, pushed, pulled):
        assert hub.files("org/passed-on")["model_card.json"] == hub.files("org/bridge", "nightly/1")["model_card.json"]
