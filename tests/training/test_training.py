"""Training on tiny random towers: what is learnt, what stays as it was, and how a run is taken up again."""

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import EOS, save_language_model, save_vision_tower, tiny_model, tiny_processor
from tiny_runs import VISION, interrupted_before, projector, step_values, tiny_settings, weights, write_colours

from vlm_caption import Captioner, CaptionerForConditionalGeneration, CaptionerProcessor
from vlm_caption.captioning.nll import caption_nll
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import BackboneError, ConfigError, ImageError
from vlm_caption.data import DataError, PictureOpener, load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index
from vlm_caption.towers import precision as hardware
from vlm_caption.towers.precision import use_bf16
from vlm_caption.training import data as training_data
from vlm_caption.training import train as training
from vlm_caption.training.data import CaptionSplits, prepare_data
from vlm_caption.training.launch import use_all_cores
from vlm_caption.training.model import log_parts
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """One longer run, with all that it left: `folder`, `model`, `before` (the weights it began with), `lines`."""
    folder = tmp_path_factory.mktemp("overfitted")
    write_colours(folder)
    lines: list[str] = []
    before: dict[str, torch.Tensor] = {}

    def compose(*args):
        model, processor = compose_captioner(*args)
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model, processor

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("vlm_caption")
    level = logger.level
    compose_captioner = training.compose_captioner
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_CAPTION_CACHE", str(folder / "cache"))
        patch.setattr(training, "compose_captioner", compose)
        patch.setattr(sys, "stderr", io.StringIO())  # no terminal
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            changes = {"batch_size": 8, "max_steps": 60, "eval_steps": 30, "save_steps": 30, "samples": 2}
            changes = {f"training.{name}": value for name, value in changes.items()}
            model = train(RunConfig.load(None, tiny_settings(folder) | changes))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
    return SimpleNamespace(folder=folder / "run", model=model, before=before, lines=lines)


class TestWholeRun:
    def test_learns_to_name_what_it_sees(self, overfitted):
        losses = step_values(overfitted.folder)
        assert losses[0] > 5
        assert losses[-1] < 3.5

    def test_ends_with_the_dev_loss_beside_that_of_shuffled_images(self, overfitted):
        loss, shuffled = (float(line.split(": ")[1].split()[0]) for line in overfitted.lines[-2:])
        assert loss < 3.5 < 5 < shuffled

    def test_takes_the_dev_loss_on_the_dev_images(self, overfitted):
        """The dev pictures stand in another order than those trained on, and have features of their own."""
        [line] = [line for line in overfitted.lines if line.startswith("Dev loss")]
        assert float(line.split()[2]) == pytest.approx(step_values(overfitted.folder, "eval_loss")[-1], abs=1e-3)

    def test_leaves_frozen_towers_bit_identical(self, overfitted):
        after = overfitted.model.state_dict()
        changed = {name for name, tensor in overfitted.before.items() if not torch.equal(after[name].cpu(), tensor)}
        assert changed == {f"core.multi_modal_projector.{name}" for name in projector(overfitted.model)}

    def test_saves_random_towers_too_and_loads_again(self, overfitted):
        loaded = CaptionerForConditionalGeneration.from_pretrained(overfitted.folder)
        state = loaded.state_dict()
        for name, tensor in overfitted.model.state_dict().items():
            assert torch.equal(state[name], tensor.cpu()), name
        assert CaptionerProcessor.from_pretrained(overfitted.folder).image_seq_length == 5

    def test_saves_no_pickle(self, overfitted):
        names = {path.name for path in overfitted.folder.iterdir() if path.is_file()} - {".lock"}
        suffixes = {".html", ".json", ".jsonl", ".md", ".png", ".safetensors", ".yaml"}
        assert {Path(name).suffix for name in names} == suffixes
        checkpoints = {path.suffix for path in overfitted.folder.glob("checkpoint-*/*")}
        assert checkpoints == {".json", ".safetensors"}
        assert {"model.safetensors", "config.json", "processor_config.json", "run_config.yaml"} <= names

    def test_lets_others_read_the_weights_where_they_may_read_the_config(self, overfitted):
        mode = (overfitted.folder / "config.json").stat().st_mode
        assert (overfitted.folder / "model.safetensors").stat().st_mode == mode

    def test_writes_down_its_settings(self, overfitted):
        config = RunConfig.load(overfitted.folder / "run_config.yaml")
        assert (config.model.vision, config.training.max_steps) == (VISION, 60)

    def test_keeps_two_checkpoints(self, overfitted):
        checkpoints = {path.name for path in overfitted.folder.glob("checkpoint-*")}
        assert checkpoints == {"checkpoint-30", "checkpoint-60"}

    def test_says_what_is_frozen_and_what_is_trained(self, overfitted):
        states = {line.split()[0]: line.split()[-1] for line in overfitted.lines if " parameters  " in line}
        assert states == {"vision_tower": "frozen", "multi_modal_projector": "trained", "language_model": "frozen"}
        count = sum(tensor.numel() for tensor in projector(overfitted.model).values())
        assert f"Trained in all: {count:,} parameters" in overfitted.lines

    def test_writes_plain_lines_where_there_is_no_terminal(self, overfitted):
        steps = [line for line in overfitted.lines if line.startswith("step ")]
        assert re.fullmatch(r"step 1/60  loss [\d.]+  [\d.e+]+ captions/s  \d+ (s|min \d\d s) left", steps[0])
        assert [line.split("  ")[0] for line in steps if "dev loss " in line] == ["step 30/60", "step 60/60"]

    def test_shows_captions_of_dev_images_whenever_it_takes_the_dev_loss(self, overfitted):
        samples = [line for line in overfitted.lines if "[reference: " in line]
        assert len(samples) == 2 * 2
        assert samples[0].startswith("  dev_cyan.png: ")
        assert samples[0].endswith("[reference: cyan]")


class TestResuming:
    @pytest.fixture
    def interrupt(self, monkeypatch):
        """Makes the next run stop in its sixth step, as by Ctrl-C; the last checkpoint then is that of step 4."""

        def interrupt(run, *args, **kwargs):
            with interrupted_before(5, monkeypatch):
                run(*args, **kwargs)

        return interrupt

    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, run, interrupt, tmp_path, caplog):
        whole = run("whole")
        interrupt(run, "stopped")
        assert not (tmp_path / "stopped" / "model.safetensors").exists()
        caplog.set_level(logging.INFO, "vlm_caption")
        resumed = run("stopped")
        assert "checkpoint-4" in next(line for line in caplog.messages if line.startswith("Resuming from "))
        for name, tensor in projector(whole).items():
            assert torch.equal(projector(resumed)[name], tensor), name
        assert step_values(tmp_path / "stopped") == step_values(tmp_path / "whole")

    def test_a_layer_prefix_is_trained_and_resumed_too(self, run, interrupt):
        whole = run("whole", **{"model.layer_prefix_rank": 2}).state_dict()
        interrupt(run, "stopped", **{"model.layer_prefix_rank": 2})
        resumed = run("stopped", **{"model.layer_prefix_rank": 2}).state_dict()
        names = [name for name in whole if name.startswith("core.layer_prefix.")]
        assert names
        assert all(whole[name].any() and torch.equal(whole[name], resumed[name]) for name in names)

    @pytest.mark.parametrize("save_steps", [2, 3])  # at the end of an epoch, and inside one
    def test_a_resumed_run_sees_the_same_sampled_captions(self, run, interrupt, tmp_path, monkeypatch, save_steps):
        table = tmp_path / "captions.csv"
        header, *rows = table.read_text().splitlines()
        more = [row.replace("png,", f"png,{word} ") for row in rows for word in ("a", "the", "some", "one")]
        table.write_text("\n".join([header, *rows, *more]))
        seen: dict[tuple[int, str], str] = {}

        class Seen(training_data.CaptionChoice):
            def __call__(self, row):
                [caption] = chosen = super().__call__(row)
                assert seen.setdefault((self.epoch, row["image"]), caption) == caption
                return chosen

        monkeypatch.setattr(training_data, "CaptionChoice", Seen)
        settings = {"data.captions_per_image": "sample", "training.save_steps": save_steps}
        whole = run("whole", **settings)
        seen_whole = dict(seen)
        assert {epoch for epoch, _ in seen} == {0, 1, 2, 3}
        assert len(seen) == 4 * 8
        assert len({(image, caption) for (_, image), caption in seen.items()}) > 8, "other captions in other epochs"
        seen.clear()
        interrupt(run, "stopped", **settings)
        resumed = run("stopped", **settings)
        assert seen == seen_whole
        for name, tensor in projector(whole).items():
            assert torch.equal(projector(resumed)[name], tensor), name
        assert step_values(tmp_path / "stopped") == step_values(tmp_path / "whole")

    def test_a_checkpoint_cut_short_is_passed_over(self, run, interrupt, tmp_path, caplog):
        interrupt(run)
        (tmp_path / "run" / "checkpoint-6").mkdir()
        (tmp_path / "run" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
        caplog.set_level(logging.INFO, "vlm_caption")
        run()
        assert any(line.startswith("Resuming from ") and line.endswith("checkpoint-4") for line in caplog.messages)

    def test_a_finished_run_stays_as_it_is(self, run, tmp_path):
        run()
        before = weights(tmp_path / "run")
        run()
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "run").items())
        assert len(step_values(tmp_path / "run")) == 8

    def test_a_run_can_be_taken_further(self, run, tmp_path):
        run()
        run(**{"training.max_steps": 10})
        assert len(step_values(tmp_path / "run")) == 10

    def test_other_settings_are_refused_with_the_difference(self, run, interrupt, tmp_path):
        interrupt(run)
        with pytest.raises(ConfigError) as caught:
            run(**{"training.learning_rate": 3e-4, "training.eval_steps": 50})
        assert str(caught.value) == (
            f"{tmp_path / 'run'} holds a run of another config (training.learning_rate: 0.01 → 0.0003): choose "
            "another training.output_dir, go back to its settings, or start afresh with training.resume false."
        )

    def test_a_run_of_an_earlier_version_is_refused_with_the_warm_up_that_it_had(self, run, interrupt):
        interrupt(run, **{"training.warmup_steps": 100})
        with pytest.raises(ConfigError, match=r"to go on with this run, add --warmup-steps 100\.$"):
            run(**{"training.warmup_steps": None})

    def test_another_way_to_write_captions_is_refused_with_the_difference(self, run, interrupt):
        interrupt(run)
        with pytest.raises(ConfigError, match=r"another config \(generation\.num_beams: None → 2\): choose"):
            run(**{"generation.num_beams": 2})

    def test_a_fresh_start_leaves_nothing_of_the_run_before(self, run, tmp_path):
        run()
        run(**{"training.resume": False, "training.max_steps": 2, "training.learning_rate": 1e-3})
        assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
        assert len(step_values(tmp_path / "run")) == 2


class TestSettings:
    def test_samples_and_checkpoint_write_captions_as_the_config_says(self, run, tmp_path):
        generation = {"generation.num_beams": 3, "generation.max_new_tokens": 6}
        run(**generation, **{"training.samples": 8, "training.max_steps": 2})
        saved = json.loads((tmp_path / "run" / "generation_config.json").read_text())
        assert (saved["num_beams"], saved["max_new_tokens"]) == (3, 6)
        facts = json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]
        captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
        photos = [tmp_path / sample["image"] for sample in facts["samples"]]
        told = [sample["caption"] for sample in facts["samples"]]
        assert [caption.text for caption in captioner.caption(photos)] == told
        assert [caption.text for caption in captioner.caption(photos, num_beams=1)] != told

    def test_a_setting_of_beam_search_needs_beams(self, run, tmp_path):
        with pytest.raises(ConfigError, match=r"^generation\.length_penalty is of beam search: set"):
            run(**{"generation.length_penalty": 0.5})
        assert not (tmp_path / "run").exists()

    def test_one_seed_gives_one_model(self, run):
        first, second, other = run("a"), run("b"), run("c", **{"training.seed": 1})
        assert torch.equal(projector(first)["linear_1.weight"], projector(second)["linear_1.weight"])
        assert not torch.equal(projector(first)["linear_1.weight"], projector(other)["linear_1.weight"])

    def test_cached_features_learn_as_pixels_do(self, run, tmp_path, own_cache):
        changes = {"training.max_steps": 3, "training.save_steps": 3, "training.learning_rate": 1e-3}
        run("pixels", **changes, **{"training.cache_features": False})
        assert not (own_cache / "features").exists()
        run("features", **changes)
        assert len(list((own_cache / "features").glob("*/*.safetensors"))) == 1  # the dev pictures are the same
        # The cache rounds to bfloat16.
        assert step_values(tmp_path / "features") == pytest.approx(step_values(tmp_path / "pixels"), rel=5e-3)

    def test_accumulated_batches_weigh_as_one_large_batch(self, run, tmp_path):
        """Captions differ in length: a mean of the two batches' means would be another gradient."""
        changes = {"training.max_steps": 2, "training.learning_rate": 1e-3, "training.warmup_steps": 0}
        whole = run("whole", **changes)
        halves = run("halves", **changes, **{"training.batch_size": 2, "training.accumulation": 2})
        for name in ("loss", "grad_norm"):
            expected = step_values(tmp_path / "whole", name)
            assert step_values(tmp_path / "halves", name) == pytest.approx(expected, rel=1e-4)
        for name, tensor in projector(whole).items():
            torch.testing.assert_close(projector(halves)[name], tensor, rtol=0, atol=1e-5)

    def test_bf16_is_for_frozen_towers_only(self, run, tmp_path):
        model = run(**{"training.precision": "bf16", "training.max_steps": 2})
        dtypes = {name: {p.dtype for p in part.parameters()} for name, part in model.core.named_children()}
        assert dtypes == {
            "vision_tower": {torch.bfloat16},
            "multi_modal_projector": {torch.float32},
            "language_model": {torch.bfloat16},
        }
        saved = weights(tmp_path / "run")
        assert saved["core.multi_modal_projector.linear_1.weight"].dtype == torch.float32

    def test_precision_auto_asks_the_machine(self, monkeypatch):
        assert isinstance(use_bf16("auto"), bool)
        assert (use_bf16("bf16"), use_bf16("fp32")) == (True, False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(hardware, "_cpuinfo", lambda: "flags : fpu sse avx2 avx512f")
        assert use_bf16("auto") is False
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        # A GPU that can, by emulation alone.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        assert use_bf16("auto") is False

    def test_the_best_weights_keep_the_running_statistics_of_their_step(self, run, tmp_path):
        resnet = {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "num_features": 16,
        }
        pooled = {"model.image_tokens": "pooled", "model.image_grid": None, "model.pooled_in_front": False}
        changes = {"model.vision": {"model_type": "resnet", **resnet}, "training.train_vision": "full", **pooled}
        table = tmp_path / "captions.csv"  # what is learnt soon makes the dev loss worse
        table.write_text(re.sub(r"(dev_\w+\.png),\w+", r"\1,XQKZ", table.read_text()))
        run(**changes, train_language="full", learning_rate=0.1, warmup_steps=0, max_steps=30, eval_steps=3)
        log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
        assert min(losses) < losses[-1]
        captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
        dataset = with_index(load_captions(tmp_path, "dev"))
        images = ImageInputs(captioner.model, captioner.processor, dataset["image"], cache=False)
        loss = caption_nll(captioner.model, dataset, CaptionCollator(captioner.processor, images), 4)
        assert loss == pytest.approx(min(losses), rel=1e-4)

    def test_pretrained_towers_are_not_saved_again(self, run, tmp_path):
        towers = {
            "model.vision": save_vision_tower(tmp_path / "vision"),
            "model.language": save_language_model(tmp_path / "language"),
        }
        model = run(**towers, **{"training.max_steps": 2})
        assert set(weights(tmp_path / "run")) == {f"core.multi_modal_projector.{name}" for name in projector(model)}
        loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "run")
        assert loaded.state_dict().keys() == model.state_dict().keys()

    def test_only_the_first_caption_is_trained_on_and_the_dev_loss_is_of_all(self, run, tmp_path, caplog):
        table = tmp_path / "captions.csv"
        header, *rows = table.read_text().splitlines()
        more = [row.replace("png,", "png,a long caption in ") for row in rows]
        changes = {"training.max_steps": 2, "training.eval_steps": 2}
        run("single", **changes)
        table.write_text("\n".join([header, *rows, *more]))
        caplog.set_level(logging.INFO, "vlm_caption")
        run("first", **changes, **{"data.captions_per_image": "first"})
        assert "16 captions to train on (first of each image's)" in caplog.messages[0]
        assert step_values(tmp_path / "first") == step_values(tmp_path / "single")
        assert step_values(tmp_path / "first", "eval_loss") != step_values(tmp_path / "single", "eval_loss")


class TestWrongInput:
    def test_data_is_looked_at_before_towers_are_fetched(self, run, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.csv: there is no such file"):
            run(**{"data.path": str(tmp_path / "nowhere.csv"), "model.vision": "wheel:nothing"})

    def test_an_unknown_tower_is_named(self, run):
        with pytest.raises(BackboneError, match="dinov2-smal"):
            run(**{"model.vision": "wheel:dinov2-smal"})

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"model.image_tokens": "pooled"}, "image_grid and pooled_in_front belong to image_tokens='patches'"),
            ({"model.vision": {"hidden_size": 32}}, "needs a model_type"),
            ({"model.vision": VISION | {"hidden_size": "wide"}}, "'hidden_size' expected int, got str"),
        ],
    )
    def test_settings_that_do_not_go_together_get_a_sentence(self, run, changes, complaint):
        with pytest.raises(ConfigError) as caught:
            run(**changes)
        assert str(caught.value).startswith("The settings in model do not go together: ")
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_empty_caption_is_refused(self, run, tmp_path):
        table = tmp_path / "captions.csv"
        table.write_text(table.read_text().replace("train_blue.png,blue", "train_blue.png,"))
        with pytest.raises(DataError, match=r"captions\.csv, row 4: a caption is empty"):
            run()

    def test_a_picture_that_is_none_is_named(self, run, tmp_path):
        (tmp_path / "train_blue.png").write_text("blue")
        with pytest.raises(ImageError, match=r"train_blue\.png"):
            run()


class TestNll:
    """`caption_nll` of a random model on two pictures."""

    @pytest.fixture
    def parts(self, tmp_path):
        write_colours(tmp_path, dev_colours=("red", "blue", "white"))
        dataset = with_index(load_captions(tmp_path / "captions.csv", "dev"))
        captions = [["red"], ["blue", "a cold and blue one"], ["white"]]
        dataset = dataset.remove_columns("captions").add_column("captions", captions)
        model = tiny_model("dinov2", image_tokens="patches", image_grid=2)
        processor = tiny_processor(model.config)
        images = ImageInputs(model, processor, dataset["image"], cache=False)
        return model, dataset, CaptionCollator(processor, images), processor

    def test_is_the_mean_over_all_tokens_of_all_captions(self, parts):
        model, dataset, collator, processor = parts
        total, count = 0.0, 0
        for row in dataset:
            pixels = processor.image_processor(Image.open(row["image"]), return_tensors="pt")["pixel_values"]
            for caption in row["captions"]:
                prefix = model.core.image_prompt(1)
                ids = [*processor.tokenizer(caption, add_special_tokens=False).input_ids, EOS]
                inputs = torch.cat([prefix, torch.tensor([ids])], dim=1)
                with torch.no_grad():
                    logits = model(input_ids=inputs, pixel_values=pixels).logits[0, prefix.shape[1] - 1 : -1]
                total -= logits.log_softmax(-1)[range(len(ids)), ids].sum().item()
                count += len(ids)
        assert caption_nll(model, dataset, collator, 2) == pytest.approx(total / count, rel=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_does_not_depend_on_the_batch_size(self, parts, batch_size):
        model, dataset, collator, _ = parts
        expected = caption_nll(model, dataset, collator, 2)
        assert caption_nll(model, dataset, collator, batch_size) == pytest.approx(expected, rel=1e-5)

    def test_shuffled_images_change_it_where_the_projector_does_anything(self, parts):
        model, dataset, collator, _ = parts

        def both() -> tuple[float, float]:
            return tuple(caption_nll(model, dataset, collator, 3, shuffle_images=shuffle) for shuffle in (False, True))

        right, shuffled = both()
        assert right != pytest.approx(shuffled, abs=1e-3)
        with torch.no_grad():
            model.core.multi_modal_projector.linear_2.weight.zero_()
        right, shuffled = both()
        assert right == pytest.approx(shuffled, abs=1e-6)

    def test_shuffling_gives_every_caption_the_image_of_another(self, parts):
        model, dataset, collator, _ = parts
        seen = []
        encode = collator.encode_images
        collator.encode_images = lambda rows: seen.extend(row["index"] for row in rows) or encode(rows)
        caption_nll(model, dataset, collator, 2, shuffle_images=True)
        assert sorted(seen) == [0, 1, 2]
        assert all(index != place for place, index in enumerate(seen))

    def test_leaves_the_mode_of_the_model(self, parts):
        model, dataset, collator, _ = parts
        for mode in (True, False):
            model.train(mode)
            caption_nll(model, dataset, collator, 3)
            assert model.training is mode

    def test_a_single_image_cannot_be_shuffled(self, parts):
        model, dataset, collator, _ = parts
        with pytest.raises(ValueError, match="no other image"):
            caption_nll(model, dataset.select([0]), collator, 3, shuffle_images=True)

    def test_an_empty_caption_is_refused(self, parts):
        with pytest.raises(DataError, match="a caption is empty"):
            parts[2].count_tokens([{"captions": ["  "]}])


def test_a_single_dev_image_has_a_loss_and_no_shuffled_one(run, tmp_path, caplog):
    write_colours(tmp_path, dev_colours=("red",))
    caplog.set_level(logging.INFO, "vlm_caption")
    run(**{"training.max_steps": 1, "training.samples": 3, "training.eval_steps": 1})
    assert caplog.messages[-1].startswith("Dev loss: ")
    assert not any("shuffled" in message for message in caplog.messages)


def test_features_for_the_scale_are_spread_over_all_images(tmp_path):
    write_colours(tmp_path)
    dataset = load_captions(tmp_path / "captions.csv", "train")
    model = tiny_model("dinov2")
    processor = tiny_processor(model.config)
    cached = ImageInputs(model, processor, dataset["image"], cache=True)
    from_pixels = ImageInputs(model, processor, dataset["image"], cache=False)
    assert torch.equal(cached.sample_features(), cached.features[:])
    assert torch.equal(cached.sample_features(2), cached.features[[0, 4]])
    torch.testing.assert_close(from_pixels.sample_features(2).bfloat16(), cached.features[[0, 4]])


def test_pictures_for_the_scale_are_encoded_one_after_the_other(tmp_path):
    write_colours(tmp_path)
    dataset = load_captions(tmp_path / "captions.csv", "train")
    model = tiny_model("dinov2")
    order = []

    class Opener(PictureOpener):
        def __call__(self, image):
            order.append("opened")
            return super().__call__(image)

    model.core.vision_tower.register_forward_hook(lambda *_: order.append("encoded"))
    inputs = ImageInputs(model, tiny_processor(model.config), dataset["image"], cache=False, open_picture=Opener())
    assert len(inputs.sample_features()) == len(dataset)
    assert order == ["opened", "encoded"] * len(dataset)


def test_a_tower_that_is_trained_gets_pixels(tmp_path):
    write_colours(tmp_path)
    config = RunConfig.load(None, tiny_settings(tmp_path))
    model = tiny_model("dinov2", freeze_vision=False)
    data = prepare_data(CaptionSplits(config), config.training, model, tiny_processor(model.config))
    assert list(data.images([{"index": 3}])) == ["pixel_values"]


def test_a_part_that_is_partly_trained_is_told(caplog):
    model = tiny_model("dinov2")
    model.core.vision_tower.layernorm.requires_grad_(True)
    caplog.set_level(logging.INFO, "vlm_caption")
    log_parts(model)
    [line] = [message for message in caplog.messages if message.startswith("vision_tower")]
    assert line.endswith("float32  32 trained")


def test_learned_vectors_around_the_image_are_told(caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    model = tiny_model("dinov2", image_start="learned", query_tokens=2)
    log_parts(model)
    told = [message.split() for message in caplog.messages if message.startswith(("image_", "query_"))]
    size = model.config.text_config.hidden_size
    assert told == [
        ["image_start", "learned", str(size), "parameters", "float32", "trained"],
        ["query_tokens", "learned", str(2 * size), "parameters", "float32", "trained"],
    ]


def test_two_processes_train_as_one_with_twice_the_batch(run, tmp_path):
    write_colours(tmp_path, dev_colours=("red", "blue", "white"))
    watched = {"training.max_steps": 2, "training.eval_steps": 2, "training.eval_captions": 3}
    run("whole", **watched)
    settings = tiny_settings(tmp_path) | watched | {"training.batch_size": 2}
    sections: dict[str, dict] = {}
    for name, value in settings.items():
        section, _, attribute = name.partition(".")
        sections.setdefault(section, {})[attribute] = value
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    repository = Path(__file__).parents[2]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(repository),
        "VLM_CAPTION_CACHE": str(tmp_path / "cache-of-two"),
    }
    processes = [  # as torchrun --nproc_per_node 2 starts them
        subprocess.Popen(
            [sys.executable, repository / "scripts" / "train.py", "--config", tmp_path / "run.yaml"],
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

    assert errors[0].count("Saved the bridge") == 1
    spoken = [line for line in errors[1].splitlines() if "kernels-community" not in line]  # of bitsandbytes, if there
    assert spoken == []  # one of them speaks
    assert len(list((tmp_path / "cache-of-two" / "features").glob("*/*.safetensors"))) == 1
    for name in ("loss", "grad_norm"):
        assert step_values(tmp_path / "run", name) == pytest.approx(step_values(tmp_path / "whole", name), rel=1e-3)
    [two], [one] = (step_values(tmp_path / name, "eval_cider") for name in ("run", "whole"))
    assert two == pytest.approx(one, rel=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]


class TestThreads:
    """A run that is resumed computes with the number of threads that it began with."""

    @pytest.fixture(autouse=True)
    def three_cores(self, monkeypatch):
        monkeypatch.setattr("vlm_caption.training.launch.count_cores", lambda: 3)
        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)

    def begin(self, run, tmp_path, threads: int) -> Path:
        torch.set_num_threads(1)
        run(max_steps=1)
        path = tmp_path / "run" / "run_data.json"
        record = json.loads(path.read_text())
        assert record["threads"] == 1
        path.write_text(json.dumps(record | {"threads": threads}))
        return path

    def test_their_number_is_kept_and_told(self, run, tmp_path, caplog):
        path = self.begin(run, tmp_path, threads=2)
        caplog.set_level(logging.INFO, "vlm_caption")
        run(max_steps=2)
        assert "Computing with 2 threads, as this run began with, instead of 1" in caplog.messages
        assert json.loads(path.read_text())["threads"] == torch.get_num_threads() == 2

    def test_more_than_the_machine_has_are_told_and_not_used(self, run, tmp_path, caplog):
        self.begin(run, tmp_path, threads=4)
        run(max_steps=2)
        assert any(line.startswith("This run began with 4 threads, more than there are") for line in caplog.messages)
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("launched", "threads"), [("no", 3), (None, 1)], ids=["by accelerate", "by hand"])
def test_a_single_process_started_by_accelerate_uses_all_cores(monkeypatch, launched, threads):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("vlm_caption.training.launch.count_cores", lambda: 3)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        use_all_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
