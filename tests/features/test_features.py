"""The cache of image features: what it holds, when it is read, what is computed anew, and by whom."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import VISION, picture, pixels, tiny_model, tiny_processor
from transformers import ViTImageProcessorPil

from vlm_caption.core.errors import ImageError, NotAnImageError
from vlm_caption.data import DataError, PictureOpener, Place
from vlm_caption.features import cache as features_module
from vlm_caption.features import shards as feature_shards
from vlm_caption.features.cache import features_key, image_features
from vlm_caption.images.opening import open_image
from vlm_caption.towers.processor import CaptionerProcessor

PATCHES = {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True}


@pytest.fixture
def model():
    return tiny_model("dinov2", **PATCHES)


@pytest.fixture
def processor(model):
    return tiny_processor(model.config)


@pytest.fixture
def images(tmp_path):
    """Paths of five different pictures."""
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "features"


def opener(function) -> PictureOpener:
    """Opens pictures by `function`."""

    class Opener(PictureOpener):
        def __call__(self, image):
            return function(image)

    return Opener()


class Runs:
    """Counts the images that go through a model's vision tower."""

    def __init__(self, model):
        self.count = 0
        model.core.vision_tower.register_forward_hook(self._add)

    def _add(self, module, inputs, outputs):
        self.count += len(outputs.last_hidden_state)


def shards_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.safetensors"))


def test_features_are_what_the_tower_says_of_the_same_pixels_in_order(model, processor, images, directory):
    found = image_features(model, processor, images, directory, batch_size=2, dtype=torch.float32)
    inputs = processor.image_processor([open_image(image) for image in images], return_tensors="pt")
    expected = model.core.encode_images(inputs["pixel_values"]).pooler_output
    assert found.shape == (5, 5, model.config.vision_feature_size)  # 2 × 2 patches and the pooled one
    assert len(found) == 5
    torch.testing.assert_close(found[:], expected)
    torch.testing.assert_close(found[[3, 1]], expected[[3, 1]])
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)  # or the order would not show


def test_features_are_stored_in_the_dtype_asked_for(model, processor, images, directory):
    exact = image_features(model, processor, images, directory, dtype=torch.float32)
    rounded = image_features(model, processor, images, directory)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded[:], exact[:].bfloat16())


def test_learned_start_is_no_part_of_the_features(processor, images, directory):
    model = tiny_model("dinov2", **PATCHES, image_start="learned")
    assert image_features(model, processor, images, directory).shape[1] == 5
    assert model.config.image_seq_length == 6


def test_second_time_the_tower_rests(model, processor, images, directory):
    first = image_features(model, processor, images, directory)
    runs = Runs(model)
    second = image_features(model, processor, images, directory)
    assert runs.count == 0
    assert torch.equal(first[:], second[:])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to see memory maps in")
def test_a_table_maps_its_files_into_memory(model, processor, images, directory):
    table = image_features(model, processor, images, directory)
    [path] = shards_in(directory)
    assert str(path) in Path("/proc/self/maps").read_text()
    del table
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_the_cache_is_in_the_packages_folder_by_default(model, processor, images, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "own"))
    image_features(model, processor, images)
    folder = tmp_path / "own" / "features"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [features_key(model, processor)]


class TestContent:
    """Features belong to the content of an image, and to nothing else about it."""

    def test_a_changed_image_alone_is_computed(self, model, processor, images, directory):
        before = image_features(model, processor, images, directory)[:]
        picture(9).save(images[3])
        runs = Runs(model)
        after = image_features(model, processor, images, directory, batch_size=1)[:]
        assert runs.count == 1
        assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, True, False, True]

    def test_a_renamed_image_a_twin_and_another_order_are_known(self, model, processor, images, directory, tmp_path):
        before = image_features(model, processor, images, directory)
        renamed = str(tmp_path / "renamed.png")
        shutil.copy(images[0], renamed)
        runs = Runs(model)
        after = image_features(model, processor, [images[2], renamed, images[0]], directory)
        assert runs.count == 0
        assert torch.equal(after[:], before[[2, 0, 0]])

    def test_twins_are_computed_and_stored_once(self, model, processor, images, directory):
        runs = Runs(model)
        table = image_features(model, processor, [images[0]] * 3 + [images[1]], directory, batch_size=1)
        assert runs.count == 2
        [path] = shards_in(directory)
        with safe_open(path, framework="pt") as shard:
            assert shard.get_slice("features").get_shape()[0] == 2
        assert torch.equal(table[[0]], table[[2]])

    def test_more_images_need_only_what_is_new(self, model, processor, images, directory):
        image_features(model, processor, images[:3], directory)
        runs = Runs(model)
        image_features(model, processor, images, directory, batch_size=1)
        assert runs.count == 2

    def test_an_image_that_changes_meanwhile_is_named(self, model, processor, images, directory):
        def change(image):
            opened = open_image(image)
            if image == images[2]:
                picture(9).save(image)
            return opened

        with pytest.raises(ImageError, match=r"2\.png: the file changed while its features were computed"):
            image_features(model, processor, images, directory, open_picture=opener(change))


class TestBits:
    """An image's features are the same to the last bit, however it comes to them."""

    @pytest.fixture
    def expected(self, model, processor, images, tmp_path):
        return image_features(model, processor, images, tmp_path / "other", batch_size=4, dtype=torch.float32)[:]

    def test_in_another_order_and_in_parts(self, model, processor, images, directory, expected):
        for part in (images[4:], images[1:3], images[::-1]):
            image_features(model, processor, part, directory, batch_size=4, dtype=torch.float32)
        table = image_features(model, processor, images, directory, batch_size=4, dtype=torch.float32)
        assert torch.equal(table[:], expected)

    def test_on_one_thread_and_on_many(self, model, processor, images, directory, expected):
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                folder = directory / str(threads)
                table = image_features(model, processor, images, folder, batch_size=4, dtype=torch.float32)
                assert torch.equal(table[:], expected)
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)

    def test_computed_by_two_processes(self, images, tmp_path):
        """Each computes its share, writes shards of its own, and reads all of them."""
        script = tmp_path / "share.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import json, sys
                from pathlib import Path
                import torch
                from torch import distributed
                from safetensors.torch import save_file
                from tiny_models import tiny_model, tiny_processor
                from vlm_caption.features.cache import image_features

                distributed.init_process_group("gloo")
                model = tiny_model("dinov2", **{PATCHES!r})
                images = {[images[0], *images]!r}
                bad = []
                counted = []
                model.core.vision_tower.register_forward_hook(lambda *_: counted.append(1))
                table = image_features(
                    model, tiny_processor(model.config), [*images, __file__], Path({str(tmp_path)!r}) / "shared",
                    batch_size=1, dtype=torch.float32, on_error=lambda index, error: bad.append((index, str(error))),
                )
                rank = distributed.get_rank()
                save_file({{"features": table[range(len(images))]}}, f"{tmp_path}/{{rank}}.safetensors")
                Path(f"{tmp_path}/{{rank}}.json").write_text(json.dumps([len(counted), bad]))
                distributed.destroy_process_group()
                """
            )
        )
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
        done = subprocess.run(
            launch, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        model = tiny_model("dinov2", **PATCHES)
        alone = image_features(
            model,
            tiny_processor(model.config),
            [images[0], *images],
            tmp_path / "alone",
            batch_size=1,
            dtype=torch.float32,
        )
        counts = []
        for rank in range(2):
            assert torch.equal(load_file(tmp_path / f"{rank}.safetensors")["features"], alone[:])
            count, bad = json.loads((tmp_path / f"{rank}.json").read_text())
            counts.append(count)
            assert [index for index, _ in bad] == [6]
            assert "share.py: this is text, not a picture" in bad[0][1]
        assert sorted(counts) == [2, 3]
        assert len(shards_in(tmp_path / "shared")) == 2


class TestKey:
    """Whatever the features of an image depend on, but for the image, makes another folder."""

    @pytest.fixture
    def key(self, model, processor):
        def key(**changes):
            arguments = {"model": model, "processor": processor, "dtype": torch.bfloat16} | changes
            return features_key(**arguments)

        return key

    def test_is_the_same_for_the_same_things(self, key):
        fresh = tiny_model("dinov2", **PATCHES)
        assert key() == key(model=fresh, processor=tiny_processor(fresh.config))

    def test_follows_the_way_that_pictures_are_opened(self, key, monkeypatch):
        before = key()
        monkeypatch.setattr(features_module, "PIXELS_VERSION", features_module.PIXELS_VERSION + 1)
        assert key() != before

    def test_follows_the_choice_of_tokens(self, key):
        choices = (PATCHES, PATCHES | {"image_grid": 4}, PATCHES | {"pooled_in_front": False}, {})
        assert len({key(model=tiny_model("dinov2", **choice)) for choice in choices}) == 4
        assert key(model=tiny_model("vit_cls")) != key(model=tiny_model("vit_cls", pooled_feature="pooler_output"))

    def test_with_chosen_layers_does_not_follow_the_pooled_feature_which_is_then_the_class_token(self, key):
        layers = PATCHES | {"vision_feature_layer": [1, 2]}
        models = [tiny_model("dinov2", **layers, pooled_feature=name) for name in ("cls", "pooler_output")]
        first, second = (model.core.encode_images(pixels(1)).pooler_output for model in models)
        assert torch.equal(first, second)
        assert key(model=models[0]) == key(model=models[1])

    def test_without_chosen_layers_is_that_of_caches_from_before_there_were_any(
        self, model, processor, images, directory
    ):
        image_features(model, processor, images[:1], directory)
        [described] = directory.glob("*/*.json")
        known = {"image_tokens", "image_grid", "pooled_in_front", "pooled_feature"}
        assert json.loads(described.read_text())["tokens"].keys() == known

    def test_follows_the_preprocessing(self, key, processor):
        other = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1] * 3)
        assert key(processor=CaptionerProcessor(other, processor.tokenizer)) != key()

    def test_follows_a_single_weight_of_the_tower(self, key, model):
        before = key()
        with torch.no_grad():
            next(model.core.vision_tower.parameters()).view(-1)[0] += 1
        assert key() != before

    def test_follows_the_weights_even_where_a_backbone_is_named(self, key, model):
        """A checkpoint may be loaded with a tower that is not the one its config names."""
        model.config.vision_backbone = {"name": "org/tower", "revision": None, "fingerprint": "sha256:00"}
        before = key()
        with torch.no_grad():
            next(model.core.vision_tower.parameters()).view(-1)[0] += 1
        assert key() != before

    def test_follows_a_tower_setting_that_has_no_weights(self, key):
        other = tiny_model("dinov2", **PATCHES, vision_config={"hidden_act": "relu"})
        assert key(model=other) != key()

    def test_follows_dtypes(self, key, model):
        before = key(), key(dtype=torch.float32)
        model.core.vision_tower.bfloat16()
        assert len({*before, key()}) == 3

    def test_does_not_follow_what_comes_behind_the_tower(self, key, model):
        before = key()
        with torch.no_grad():
            model.core.multi_modal_projector.linear_1.weight.zero_()
        assert key() == before

    def test_survives_saving_and_loading(self, key, model, tmp_path):
        model.save_pretrained(tmp_path / "checkpoint")
        assert key(model=type(model).from_pretrained(tmp_path / "checkpoint")) == key()


@pytest.mark.parametrize("vision", VISION)
def test_every_family_of_towers_can_be_cached(vision, images, directory):
    model = tiny_model(vision)
    found = image_features(model, tiny_processor(model.config), images[:1], directory, dtype=torch.float32)
    assert found.shape == (1, 1, model.config.vision_feature_size)
    assert not torch.equal(found[:], model.core.encode_images(pixels(1)).pooler_output)


class TestBadImages:
    def test_one_is_named_and_the_others_before_it_are_kept(self, model, processor, images, directory):
        Path(images[4]).write_text("no picture")
        with pytest.raises(NotAnImageError, match=r"4\.png: this is text"):
            image_features(model, processor, images, directory, batch_size=2)
        runs = Runs(model)
        image_features(model, processor, images[:4], directory)
        assert runs.count == 0

    def test_a_missing_one_is_named_before_anything_is_computed(self, model, processor, images, directory, tmp_path):
        runs = Runs(model)
        missing = str(tmp_path / "gone.jpg")
        with pytest.raises(ImageError, match=r"gone\.jpg: the file cannot be read \(No such file or directory\)"):
            image_features(model, processor, [*images, missing], directory)
        assert runs.count == 0

    def test_all_are_handed_over_where_that_is_asked_for(self, model, processor, images, directory, tmp_path):
        expected = image_features(model, processor, images, tmp_path / "other", batch_size=4)
        for name in ("bad.png", "twin.png"):
            (tmp_path / name).write_text("no picture")
        rows = [
            str(tmp_path / "gone.png"),
            images[0],
            str(tmp_path / "bad.png"),
            *images[1:],
            str(tmp_path / "twin.png"),
        ]
        bad = {}
        table = image_features(model, processor, rows, directory, batch_size=4, on_error=bad.__setitem__)
        assert list(bad) == [0, 2, 7]
        assert [Path(error.source).name for error in bad.values()] == ["gone.png", "bad.png", "twin.png"]
        assert torch.equal(table[[1, 3, 4, 5, 6]], expected[:])
        with pytest.raises(ValueError, match="could not be opened has no features"):
            table[[1, 2]]

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
    @pytest.mark.parametrize("fails_in", ["opening", "reading"])
    def test_a_failing_disk_or_too_little_memory_costs_one_picture(
        self, model, processor, images, directory, monkeypatch, error, fails_in
    ):
        opens, reads = PictureOpener.__call__, Place.read

        def fail_opening(self, image):
            if image == images[2] and fails_in == "opening":
                raise error
            return opens(self, image)

        def fail_reading(self, max_bytes):
            if self.path == images[2] and fails_in == "reading":
                raise error
            return reads(self, max_bytes)

        monkeypatch.setattr(PictureOpener, "__call__", fail_opening)
        monkeypatch.setattr(Place, "read", fail_reading)
        reason = "needs more memory than there is" if isinstance(error, MemoryError) else "Input/output error"
        with pytest.raises(ImageError, match=rf"2\.png: .*{reason}"):
            image_features(model, processor, images, directory)
        bad = {}
        table = image_features(model, processor, images, directory, on_error=bad.__setitem__)
        assert list(bad) == [2]
        assert len(table[[0, 1, 3, 4]]) == 4

    def test_all_of_them_bad_leave_an_empty_cache(self, model, processor, directory, tmp_path):
        (tmp_path / "bad.png").write_text("no picture")
        bad = {}
        image_features(model, processor, [str(tmp_path / "bad.png")], directory, on_error=bad.__setitem__)
        assert list(bad) == [0]
        assert shards_in(directory) == []


class TestShards:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(features_module, "_SHARD_IMAGES", 2)

    def test_are_written_as_they_fill(self, model, processor, images, directory):
        image_features(model, processor, images, directory, batch_size=1)
        assert len(shards_in(directory)) == 3

    def test_killed_half_way_goes_on_where_it_was(self, model, processor, images, directory, tmp_path):
        whole = image_features(model, processor, images, tmp_path / "other", batch_size=1)
        script = tmp_path / "killed.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import os, signal
                from pathlib import Path
                import torch
                from tiny_models import tiny_model, tiny_processor
                from vlm_caption.features import cache
                from vlm_caption.data import PictureOpener

                class OpenFour(PictureOpener):
                  def __call__(self, image):
                    if image == {images[4]!r}:
                        while len(list(Path({str(directory)!r}).glob("*/*.safetensors"))) < 2:
                            pass
                        os.kill(os.getpid(), signal.SIGKILL)
                    return PictureOpener()(image)

                cache._SHARD_IMAGES = 2
                model = tiny_model("dinov2", **{PATCHES!r})
                processor = tiny_processor(model.config)
                cache.image_features(
                    model, processor, {images!r}, Path({str(directory)!r}), batch_size=1, open_picture=OpenFour()
                )
                """
            )
        )
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        assert subprocess.run([sys.executable, str(script)], env=env, timeout=60).returncode == -9
        runs = Runs(model)
        table = image_features(model, processor, images, directory, batch_size=1)
        assert runs.count == 1
        assert torch.equal(table[:], whole[:])

    def test_an_interruption_keeps_what_is_done(self, model, processor, images, directory):
        def open_three(image):
            if image == images[3]:
                raise KeyboardInterrupt
            return open_image(image)

        with pytest.raises(KeyboardInterrupt):
            image_features(model, processor, images, directory, batch_size=1, open_picture=opener(open_three))
        runs = Runs(model)
        image_features(model, processor, images, directory, batch_size=1)
        assert runs.count == 2

    @pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "emptied", "another name"])
    def test_a_damaged_one_is_told_of_removed_and_rebuilt(self, model, processor, images, directory, damage, caplog):
        before = image_features(model, processor, images, directory, batch_size=1)[:].clone()
        path = shards_in(directory)[0]
        content = bytearray(path.read_bytes())
        if damage == "a flipped bit":
            content[-3] ^= 4
        path.unlink()  # what is mapped stays as it is
        if damage == "another name":
            path = path.with_stem("0" * 32)
        path.write_bytes({"cut short": content[:-7], "emptied": b""}.get(damage, bytes(content)))
        runs = Runs(model)
        after = image_features(model, processor, images, directory, batch_size=1)
        assert runs.count in (1, 2)  # as many as the shard held
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warning.startswith(f"{path} is damaged (")
        assert warning.endswith("): removed, and its images are computed again")
        assert torch.equal(after[:], before)
        assert len(shards_in(directory)) == 3

    def test_one_that_another_process_mends_meanwhile_is_read_as_it_is_then(
        self, model, processor, images, directory, monkeypatch
    ):
        before = image_features(model, processor, images, directory, batch_size=1)[:].clone()
        path = shards_in(directory)[0]
        whole = path.read_bytes()
        path.write_bytes(whole[:-400] + bytes(100) + whole[-300:])  # its features
        original = feature_shards._check_shard

        def mend(shard):
            path.unlink()
            path.write_bytes(whole)
            return original(shard)

        monkeypatch.setattr(feature_shards, "_check_shard", mend)
        assert torch.equal(image_features(model, processor, images, directory, batch_size=1)[:], before)

    def test_only_those_that_hold_wanted_images_are_read_whole(self, model, processor, images, directory, monkeypatch):
        image_features(model, processor, images, directory, batch_size=1)
        checked = []
        original = feature_shards.checksum_file
        monkeypatch.setattr(feature_shards, "checksum_file", lambda path: checked.append(path) or original(path))
        image_features(model, processor, images[:2], directory, batch_size=1)
        assert len(set(checked)) == 1

    @pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files")])
    def test_one_that_cannot_be_read_is_told_and_stays(self, model, processor, images, directory, error, monkeypatch):
        image_features(model, processor, images, directory)
        shards = shards_in(directory)

        def fail(path):
            raise error

        monkeypatch.setattr(feature_shards, "_open_shard", fail)
        with pytest.raises(DataError) as caught:
            image_features(model, processor, images, directory)
        told = f"{shards[0]}: these image features cannot be read ({error.strerror}): see that it may be read"
        assert str(caught.value).startswith(told)
        assert shards_in(directory) == shards

    def test_a_damaged_one_that_cannot_be_removed_is_told(self, model, processor, images, directory, monkeypatch):
        image_features(model, processor, images, directory)
        shards_in(directory)[0].write_bytes(b"")

        def fail(path, missing_ok=False):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", fail)
        with pytest.raises(DataError, match=r"image features cannot be kept there \(Permission denied\)"):
            image_features(model, processor, images, directory)

    def test_what_a_killed_process_left_is_cleared_away_later(self, model, processor, images, directory):
        image_features(model, processor, images, directory)
        folder = directory / features_key(model, processor)
        for name, age in (("old.1.partial", 7200), ("new.2.partial", 60)):
            (folder / name).write_bytes(b"half")
            then = (folder / name).stat().st_mtime - age
            os.utime(folder / name, (then, then))
        image_features(model, processor, images, directory)
        assert [path.name for path in folder.glob("*.partial")] == ["new.2.partial"]

    def test_a_write_that_fails_is_told_and_leaves_nothing_behind(
        self, model, processor, images, directory, monkeypatch
    ):
        def fail(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(DataError, match=r"cannot be kept there \(No space left on device\): make room"):
            image_features(model, processor, images, directory)
        assert list((directory / features_key(model, processor)).iterdir()) == []

    def test_a_folder_that_is_a_file_is_told(self, model, processor, images, directory):
        directory.write_text("no folder")
        with pytest.raises(DataError, match="cannot be kept there"):
            image_features(model, processor, images, directory)

    def test_too_little_room_is_told_before_anything_is_computed(
        self, model, processor, images, directory, monkeypatch
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        runs = Runs(model)
        with pytest.raises(DataError, match=r"of 5 images take 0 MB, and 0 MB are free there: make room"):
            image_features(model, processor, images, directory)
        assert runs.count == 0


def test_size_and_time_are_told_beforehand(model, processor, images, directory, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "vlm_caption")
    clock = iter([0.0, 40.0])
    monkeypatch.setattr(features_module.time, "monotonic", lambda: next(clock, 1e6))
    results = features_module._say_time(iter(range(20)), total=20, warm=5)
    assert list(results) == list(range(20))
    assert caplog.messages == ["Image features: 0.125 images/s, about 2 minutes to go"]
    caplog.clear()
    image_features(model, processor, images, directory)
    folder = directory / features_key(model, processor)
    assert caplog.messages[0] == f"Image features: computing 5 images once, 0 MB into {folder}"
    image_features(model, processor, images, directory)
    assert caplog.messages[-1] == f"Image features: 5 images from {folder}"


def test_no_images_have_no_features(model, processor, directory):
    assert image_features(model, processor, [], directory).shape == (0, 5, model.config.vision_feature_size)
