"""The settings of a run: defaults, YAML, overrides, the command line, and the sentences for what is wrong."""

import argparse
import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
import yaml

from vlm_caption.config.checks import field_types
from vlm_caption.config.command_line import add_arguments, parse_arguments, setting_meanings
from vlm_caption.config.run_config import RunConfig
from vlm_caption.config.sections import ModuleSettings, ReinforceSettings
from vlm_caption.config.settings_page import fill_tables
from vlm_caption.core.console import ArgumentParser
from vlm_caption.core.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SETTINGS_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def parse(*argv: str) -> tuple[argparse.Namespace, dict]:
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config")
    add_arguments(parser)
    return parse_arguments(parser, list(argv))


def load_error(overrides: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, overrides)
    return str(caught.value)


def test_without_a_file_everything_is_the_default():
    assert RunConfig.load() == RunConfig()
    assert RunConfig().training.learning_rate == 1e-3


def test_two_configs_share_nothing():
    RunConfig().training.epochs = 9.0
    assert RunConfig().training.epochs == 3.0


def test_an_override_beats_the_file_which_beats_the_default(tmp_path):
    path = write(tmp_path / "run.yaml", "training: {epochs: 7, seed: 5}\nmodel: {image_tokens: patches}\n")
    config = RunConfig.load(path, {"training.epochs": 9})
    assert (config.training.epochs, config.training.seed, config.model.image_tokens) == (9.0, 5, "patches")
    assert config.training.batch_size == RunConfig().training.batch_size


def test_an_empty_file_is_a_config_of_defaults(tmp_path):
    assert RunConfig.load(write(tmp_path / "run.yaml", "# nothing yet\n")) == RunConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path):
    config = RunConfig.load(path)
    assert config.training.output_dir == f"runs/{path.stem}"
    assert config.data.path


def test_the_shipped_checkpoint_writes_captions_as_its_config_says():
    repository = Path(__file__).parents[2]
    settings = RunConfig.load(repository / "configs" / "embedded.yaml").generation.settings()
    saved = json.loads((repository / "checkpoints" / "embedded" / "generation_config.json").read_text())
    assert settings == {"num_beams": saved["num_beams"]} == {"num_beams": 3}


def test_there_are_configs_to_load():
    assert {"tiny", "embedded", "vit_gpt2", "clip_gpt2"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("training.learning_rate", "1e-3", 1e-3),  # what YAML makes of 1e-3
        ("training.learning_rate", 1, 1.0),
        ("training.epochs", 0.5, 0.5),
        ("data.path", 2024, "2024"),
        ("data.limit", None, None),
        ("data.limit", 3, 3),
        ("data.dev_share", 0, 0.0),
        ("data.captions_per_image", "sample", "sample"),
        ("model.image_start", None, None),
        ("model.image_start", "none", "none"),
        ("model.vision", {"model_type": "vit"}, {"model_type": "vit"}),
        ("training.resume", False, False),
        ("training.max_steps", -1, -1),
        ("generation.num_beams", None, None),
        ("generation.num_beams", 4, 4),
        ("generation.length_penalty", -1, -1.0),
        ("generation.no_repeat_ngram_size", 0, 0),
    ],
)
def test_values_become_what_the_setting_holds(name, value, expected):
    section, _, attribute = name.partition(".")
    got = getattr(getattr(RunConfig.load(None, {name: value}), section), attribute)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("training.batch_size", True, "training.batch_size must be int, and True is not."),
        ("training.batch_size", 1.5, "training.batch_size must be int, and 1.5 is not."),
        ("training.batch_size", None, "training.batch_size must be int, and None is not."),
        ("training.learning_rate", False, "training.learning_rate must be float, and False is not."),
        ("training.learning_rate", "fast", "training.learning_rate must be float, and 'fast' is not."),
        ("training.learning_rate", float("nan"), "training.learning_rate must be float, and nan is not."),
        ("training.resume", 1, "training.resume must be bool, and 1 is not."),
        ("data.path", True, "data.path must be str|list, and True is not."),
        ("data.limit", "all", "data.limit must be int|null, and 'all' is not."),
        ("model.image_tokens", "patch", "model.image_tokens must be pooled|patches|all, and 'patch' is not."),
        ("model.image_start", "eos", "model.image_start must be bos|learned|none|null, and 'eos' is not."),
        ("model.vision", ["a"], "model.vision must be str|dict, and ['a'] is not."),
        ("training.batch_size", 0, "training.batch_size must be above 0, and 0 is not."),
        ("training.epochs", -1, "training.epochs must be above 0, and -1.0 is not."),
        ("training.patience", -1, "training.patience must be at least 0, and -1 is not."),
        ("data.dev_share", 1, "data.dev_share must be at least 0 and below 1, and 1.0 is not."),
        ("data.max_bad_share", 1.5, "data.max_bad_share must be at least 0 and below 1, and 1.5 is not."),
        ("data.on_bad_image", "stop", "data.on_bad_image must be error|skip, and 'stop' is not."),
        ("data.max_pixels", 0, "data.max_pixels must be above 0, and 0 is not."),
        ("data.captions_per_image", "two", "data.captions_per_image must be all|sample|first, and 'two' is not."),
        ("data.max_caption_tokens", 0, "data.max_caption_tokens must be above 0, and 0 is not."),
        ("generation.num_beams", 0, "generation.num_beams must be above 0, and 0 is not."),
        ("generation.repetition_penalty", 0, "generation.repetition_penalty must be above 0, and 0.0 is not."),
        ("generation.no_repeat_ngram_size", -1, "generation.no_repeat_ngram_size must be at least 0, and -1 is not."),
    ],
)
def test_a_wrong_value_gets_a_sentence(name, value, sentence):
    assert load_error({name: value}) == sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 4}, "training.train_language: say its policy too, which is frozen|lora|last_n|full."),
        ({"policy": "full", "rank": 4}, "training.train_language: rank is for the policy lora, and this is full."),
        (
            {"policy": "lora", "layers": 1},
            "training.train_language: layers is for the policy last_n, and this is lora.",
        ),
    ],
)
def test_settings_of_a_module_that_would_do_nothing_are_refused(settings, sentence):
    assert load_error({"training.train_language": settings}) == sentence


def test_a_projector_with_a_rate_of_its_own_is_trained():
    config = RunConfig.load(None, {"training.train_projector": {"learning_rate": 1e-4}})
    assert config.training.module("projector").policy == "full"


def test_an_unknown_setting_names_the_nearest():
    assert load_error({"training.learning_rte": 1}) == (
        "there is no setting 'training.learning_rte'; did you mean 'training.learning_rate'?"
    )
    assert load_error({"zzz": 1}) == "there is no setting 'zzz'."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("trainig: {epochs: 1}", "there is no section 'trainig'; did you mean 'training'?"),
        ("training: {epoch: 1}", "there is no setting 'training.epoch'; did you mean 'training.epochs'?"),
        ("training: 3", "the section training holds no fields."),
        ("training:", "the section training holds no fields."),
        ("- training", "a config is made of the sections model, data, training, generation."),
        ("training: [", "the config is not valid YAML: while parsing a flow node"),
    ],
)
def test_a_wrong_file_gets_a_sentence(tmp_path, text, complaint):
    path = write(tmp_path / "run.yaml", text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "setting" in complaint or str(caught.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            RunConfig.load(path)
        assert str(caught.value) == f"{path}: the config cannot be read ({reason})."


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.yaml: the config is not valid YAML"):
        RunConfig.load(path)


class TestDataPath:
    """A relative path in a file means: from where the program runs, else from the repository of the config."""

    @pytest.fixture
    def config(self, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        return write(tmp_path / "repo" / "configs" / "run.yaml", "data: {path: photos/captions.csv}\n")

    def test_is_found_beside_the_configs_folder(self, config, tmp_path):
        table = write(tmp_path / "repo" / "photos" / "captions.csv", "")
        assert Path(RunConfig.load(config).data.path) == table

    def test_is_found_for_the_folder_of_images_too(self, config, tmp_path):
        write(config, "data: {images: photos}\n")
        photo = write(tmp_path / "repo" / "photos" / "a.jpg", "")
        assert Path(RunConfig.load(config).data.images) == photo.parent

    def test_is_first_looked_for_where_the_program_runs(self, config, tmp_path):
        write(tmp_path / "repo" / "photos" / "captions.csv", "")
        write(tmp_path / "elsewhere" / "photos" / "captions.csv", "")
        assert RunConfig.load(config).data.path == "photos/captions.csv"

    def test_stays_as_written_where_nothing_is(self, config):
        assert RunConfig.load(config).data.path == "photos/captions.csv"

    def test_of_an_override_is_taken_as_it_is(self, config, tmp_path):
        write(tmp_path / "repo" / "mine.csv", "")
        assert RunConfig.load(config, {"data.path": "mine.csv"}).data.path == "mine.csv"


class TestCommandLine:
    @pytest.mark.parametrize("option", ["--max-steps", "--training.max_steps"])
    def test_knows_each_setting_by_two_names(self, option):
        assert parse(option, "7")[1] == {"training.max_steps": 7}

    def test_has_an_option_for_every_setting(self):
        options = [word for name in field_types() for word in (f"--{name}", "null")]
        assert set(parse(*options)[1]) == set(field_types())

    def test_help_says_what_each_setting_means(self):
        meanings = setting_meanings()
        assert all(meanings[name].endswith(".") for name in field_types())
        assert meanings["data.dev_share"].startswith("The share of images that becomes the development split")
        parser = ArgumentParser()
        add_arguments(parser)
        assert "training: Images in a batch. (default: 8)" in " ".join(parser.format_help().split())

    def test_says_nothing_of_settings_that_were_not_given(self):
        arguments, overrides = parse("--config", "run.yaml")
        assert (arguments.config, overrides) == ("run.yaml", {})

    def test_reads_values_as_yaml(self):
        _, overrides = parse("--limit", "null", "--resume", "false", "--vision", "{model_type: vit}", "--seed", "3")
        assert overrides == {
            "data.limit": None,
            "training.resume": False,
            "model.vision": {"model_type": "vit"},
            "training.seed": 3,
        }

    @pytest.mark.parametrize("prompt", ["Photo: a", "'s", "[INST]", "yes", "null", "Photo #1", "007", "{a: 1}"])
    def test_leaves_text_as_it_is(self, prompt):
        _, overrides = parse("--prompt", prompt)
        assert RunConfig.load(None, overrides).data.prompt == prompt

    def test_scientific_notation_is_a_number(self):
        assert RunConfig.load(None, parse("--learning-rate", "3e-4")[1]).training.learning_rate == 3e-4

    @pytest.mark.parametrize(
        ("argv", "sentence"),
        [
            (["--max-step", "3"], "there is no option '--max-step'; did you mean '--max-steps'?"),
            (["--batchsize=3"], "there is no option '--batchsize'; did you mean '--batch-size'?"),
            (["-batch-size", "3"], "there is no option '-batch-size'; did you mean '--batch-size'?"),
            (["samples"], "there is no option 'samples'; did you mean '--samples'?"),
            (["--limit", "[1"], "data.limit must be int|null, and '[1' is not."),
            (["--vision", "{model_type"], "model.vision must be str|dict, and '{model_type' is not."),
        ],
    )
    def test_refuses_in_a_sentence(self, argv, sentence):
        with pytest.raises(ConfigError) as caught:
            parse(*argv)
        assert str(caught.value) == sentence


# docs/settings.md


def documented() -> dict[str, object]:
    """The settings in the page's tables and the defaults that it gives them."""
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \|", page, re.MULTILINE)
    assert len(dict(rows)) == len(rows)  # none is there twice
    return {name: yaml.safe_load(default) for name, default in rows}


def test_the_page_of_settings_has_every_setting_and_no_other():
    fields = {field.name for section in (ModuleSettings, ReinforceSettings) for field in dataclasses.fields(section)}
    assert set(documented()) == set(field_types()) | fields


@pytest.mark.parametrize("name", field_types())
def test_the_page_of_settings_gives_the_default(name):
    section, _, attribute = name.partition(".")
    loaded = RunConfig.load(None, {name: documented()[name]})
    assert getattr(getattr(loaded, section), attribute) == getattr(getattr(RunConfig(), section), attribute)


def test_the_page_of_settings_gives_the_defaults_of_what_is_trained():
    given = {name: default for name, default in documented().items() if "." not in name}
    for section in (ModuleSettings, ReinforceSettings):
        names = {field.name for field in dataclasses.fields(section)}
        assert section(**{name: given[name] for name in names}) == section()


def choices(hint: object) -> list:
    """The values of a `Literal`, also within a union; [] where there is none."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for part in typing.get_args(hint) for choice in choices(part)]


def test_the_page_of_settings_names_every_choice():
    rows = {
        line.split("`")[1]: line for line in SETTINGS_PAGE.read_text(encoding="utf-8").splitlines() if "| `" in line
    }
    for name, hint in field_types().items():
        for choice in choices(hint):
            assert f"`{choice}`" in rows[name], name


def test_the_page_of_settings_is_written_from_the_docstrings():
    page = SETTINGS_PAGE.read_text(encoding="utf-8")
    assert fill_tables(page) == page, "run: python -m vlm_caption.config.settings_page docs/settings.md"
    emptied = re.sub(r"(<!-- \w+ -->\n)(\|.*\n)+", r"\1", page)
    assert "| `data.path` |" not in emptied
    assert fill_tables(emptied) == page


def test_a_path_that_is_too_long_for_the_system_is_left_for_the_data_to_refuse(tmp_path):
    (tmp_path / "run.yaml").write_text(f"data: {{path: {'x' * 300}}}")
    assert RunConfig.load(tmp_path / "run.yaml").data.path == "x" * 300
