"""The captioner in transformers' test mixins: what differs between it and a model inside transformers."""

import copy
import functools
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tiny_models
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel
from upstream.suites import Kind, ModelTests, ProcessorTests, modeling, processing

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerModel, CaptionerProcessor
from vlm_caption.towers.captioner import CaptionerPreTrainedModel

# The mixin looks classes up by name in transformers' own tables, where a class from outside never stands, however it
# is registered. These are the mixin's names for the tables, not the tables that the auto classes use.
modeling.MODEL_MAPPING_NAMES = {
    **modeling.MODEL_MAPPING_NAMES,
    CaptionerConfig.model_type: "CaptionerModel",
}
modeling.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES = {
    **modeling.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    CaptionerConfig.model_type: "CaptionerForConditionalGeneration",
}


class CaptionerTests(ModelTests):
    """The mixins on a captioner of one pair of towers."""

    test_resize_embeddings = False  # refused: a frozen table keeps its rows

    def _without_image(self):
        """The tests' inputs without image and placeholders, for as long as this is entered."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        is_text = (inputs["input_ids"] != config.image_token_id)[0]
        inputs = {name: inputs[name][:, is_text] for name in ("input_ids", "attention_mask")}
        return mock.patch.object(
            self.model_tester, "prepare_config_and_inputs_for_common", side_effect=lambda: (config, copy.copy(inputs))
        )

    def test_inputs_embeds(self):
        # A placeholder has no row in the embedding table, and embeddings hold their image already.
        with self._without_image():
            super().test_inputs_embeds()

    def test_inputs_embeds_matches_input_ids(self):
        with self._without_image():
            super().test_inputs_embeds_matches_input_ids()

    def _with_trained_towers(self):
        """Configs that call no tower frozen, for as long as this is entered."""

        def config() -> CaptionerConfig:
            config = self.kind.make_config()
            config.freeze_vision = config.freeze_language = False
            return config

        return mock.patch.object(self.model_tester, "get_config", config)

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        # The tests thaw the towers of a model that is in train mode already: frozen ones are then in eval mode for
        # good, and a vision tower's layers checkpoint in train mode only.
        with self._with_trained_towers():
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def test_enable_input_require_grads_with_gradient_checkpointing(self):
        with self._with_trained_towers():  # the test looks at the embedding table's gradient
            super().test_enable_input_require_grads_with_gradient_checkpointing()

    def test_can_init_all_missing_weights(self):
        # The subject is `_init_weights`: our own loader refuses a state dict with gaps, and towers inside a class from
        # outside transformers miss what their parents do to children that are initialised (GPT-2's residual scale).
        stock = classmethod(PreTrainedModel.from_pretrained.__func__)
        with mock.patch.multiple(CaptionerPreTrainedModel, from_pretrained=stock, is_custom_code=lambda self: False):
            super().test_can_init_all_missing_weights()

    def test_get_image_features_hidden_states(self):
        self._skip_if_timm("hidden states of timm towers are those behind each layer, without the embeddings'")
        super().test_get_image_features_hidden_states()

    def test_get_image_features_attentions(self):
        self._skip_if_timm("timm towers give no attentions")
        super().test_get_image_features_attentions()

    def _skip_if_timm(self, reason: str) -> None:
        if self.model_tester.get_config().vision_config.model_type == "timm_wrapper":
            self.skipTest(reason)


class CaptionerProcessorTests(ProcessorTests):
    """The processor mixin on the captioner's processor."""

    def test_subprocessor_defaults_0_text(self):
        # The start token in front is the processor's doing; without it, its text is what the tokenizer makes of it.
        settings = self.prepare_processor_dict() | {"start_token": None}
        with mock.patch.object(self, "prepare_processor_dict", return_value=settings):
            super().test_subprocessor_defaults_0_text()

    def test_processor_from_and_save_pretrained_as_nested_dict(self):
        # The captioner's image processor uses Pillow unless told otherwise, AutoImageProcessor torchvision if there.
        with_pillow = functools.partial(AutoImageProcessor.from_pretrained, backend="pil")
        loaders = {"image_processor": SimpleNamespace(from_pretrained=with_pillow), "tokenizer": AutoTokenizer}
        with mock.patch.object(processing, "MODALITY_TO_AUTOPROCESSOR_MAPPING", loaders):
            super().test_processor_from_and_save_pretrained_as_nested_dict()


# By vision tower.
FLAGS: dict[str, dict[str, Any]] = {
    "vit": {"test_all_params_have_gradient": False},  # the pooler is not used where the class token is taken
    "dinov2": {"test_all_params_have_gradient": False},  # the mask token is for pretraining
}


def captioner(vision: str, language: str) -> Kind:
    """A captioner of the families `vision` and `language` of tests/tiny_models.py."""
    family = "vit_cls" if vision == "vit" else vision
    # Weights as large as those of our own tests leave the tolerances of these.
    usual = {"initializer_range": 0.02}
    return Kind(
        base_class=CaptionerModel,
        class_with_head=CaptionerForConditionalGeneration,
        processor_class=CaptionerProcessor,
        make_config=functools.partial(
            tiny_models.tiny_config, family, language, vision_config=usual, text_config=usual
        ),
        make_processor=tiny_models.tiny_processor,
        common_properties=("image_token_id", "image_seq_length", "vision_feature_size"),
    )
