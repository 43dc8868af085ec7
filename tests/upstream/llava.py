"""Stock LLaVA in the same tests, to compare with: run by report.py alone, for its failures are not ours."""

import tiny_models
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel, LlavaProcessor
from upstream.suites import IMAGE_TOKEN, Kind, ModelTests, ProcessorTests, suite

from vlm_caption.towers.tokenizers import byte_tokenizer


def _config() -> LlavaConfig:
    usual = {"initializer_range": 0.02}
    # A row for the placeholder, and some behind it: the tests of resizing take 15 rows away and count from the end.
    text_config = {**tiny_models.LANGUAGE["llama"], **usual, "vocab_size": tiny_models.VOCAB_SIZE + 32}
    return LlavaConfig(
        vision_config={**tiny_models.VISION["clip"]["vision_config"], **usual},
        text_config=text_config,
        image_token_index=tiny_models.IMAGE,
        image_seq_length=tiny_models.PATCHES,
        vision_feature_layer=-1,
    )


def _processor(config: LlavaConfig) -> LlavaProcessor:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = "left"
    image_processor = tiny_models.image_processor()
    image_processor.crop_size = image_processor.size  # from which the number of tokens is worked out
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=tiny_models.PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


LLAVA = Kind(
    base_class=LlavaModel,
    class_with_head=LlavaForConditionalGeneration,
    processor_class=LlavaProcessor,
    make_config=_config,
    make_processor=_processor,
    common_properties=("image_token_id", "image_seq_length", "vision_feature_layer"),
)

# CLIP's last LayerNorm is not used where the patches are taken.
LlavaModelTest = suite("LlavaModelTest", ModelTests, LLAVA, test_all_params_have_gradient=False)
LlavaProcessorTest = suite("LlavaProcessorTest", ProcessorTests, LLAVA)
