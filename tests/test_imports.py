"""What the package loads of others."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import vlm_caption


def test_every_module_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(vlm_caption.__path__, "vlm_caption.")]
    assert len(names) > 60
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize("name", ["vlm_caption", "vlm_caption.config", "vlm_caption.data", "vlm_caption.metrics"])
def test_every_name_of_a_face_is_there(name):
    face = importlib.import_module(name)
    assert len(face.__all__) > 6
    for public in face.__all__:
        assert getattr(face, public) is not None


def test_captioning_does_not_wait_for_trainer_nor_peft():
    code = "import sys, vlm_caption; print([name for name in ('transformers.trainer', 'peft') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_every_room_has_a_face_whose_names_are_no_modules():
    # Where a name is a module as well, which of the two one gets depends on what was imported before.
    for room in pkgutil.iter_modules(vlm_caption.__path__, "vlm_caption."):
        if room.ispkg:
            face = importlib.import_module(room.name)
            modules = {module.name for module in pkgutil.iter_modules(face.__path__)}
            assert face.__all__
            assert not modules & set(face.__all__), room.name
            for public in face.__all__:
                assert getattr(face, public) is not None, f"{room.name}.{public}"
