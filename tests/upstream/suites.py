"""transformers' test mixins, filled in for vision-language models composed of two towers: one class for each pair."""

import inspect
import tempfile
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tiny_models
import torch
from transformers import ImageTextToTextPipeline, PreTrainedModel
from upstream.sdist import PICTURE, upstream

modeling = upstream("test_modeling_common")
configuration = upstream("test_configuration_common")
processing = upstream("test_processing_common")
pipelines = upstream("test_pipeline_mixin")

TEXT_LENGTH = 7
BATCH_SIZE = 7  # one of the tests completes smaller batches with rows that have no image
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Kind:
    """What one kind of model puts into the mixins.

    Attributes:
        base_class, class_with_head: the two classes of the model.
        processor_class: the processor's class.
        make_config: the config of a tiny model.
        make_processor: the processor of a model of that config.
        common_properties: names that every such config answers to.
    """

    base_class: type[PreTrainedModel]
    class_with_head: type[PreTrainedModel]
    processor_class: type
    make_config: Callable[[], Any]
    make_processor: Callable[[Any], Any]
    common_properties: tuple[str, ...]


class ModelTester:
    """What the model mixin asks of a `model_tester`: a small config, inputs for it, and its sizes."""

    is_training = True

    def __init__(self, kind: Kind):
        self.get_config = kind.make_config
        config = self.get_config()
        self.batch_size = BATCH_SIZE
        self.seq_length = self.encoder_seq_length = 1 + config.image_seq_length + TEXT_LENGTH
        text = config.text_config
        self.vocab_size, self.hidden_size = text.vocab_size, text.hidden_size
        self.num_hidden_layers, self.num_attention_heads = text.num_hidden_layers, text.num_attention_heads

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A config, and a batch of one image, its placeholders and a few letters a row."""
        config = self.get_config()
        prompt = torch.tensor([[tiny_models.BOS] + [config.image_token_id] * config.image_seq_length] * BATCH_SIZE)
        letters = modeling.ids_tensor([BATCH_SIZE, TEXT_LENGTH], tiny_models.VOCAB_SIZE - 3).cpu() + 3
        input_ids = torch.cat([prompt, letters], dim=1).to(modeling.torch_device)
        pixel_values = modeling.floats_tensor([BATCH_SIZE, 3, tiny_models.IMAGE_SIZE, tiny_models.IMAGE_SIZE])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": pixel_values,
        }


class PipelineTests(unittest.TestCase):
    """In place of `ImageTextToTextPipelineTests`, which the source distribution leaves out: the same two methods."""

    def get_test_pipeline(self, model, tokenizer, processor, image_processor=None, dtype="float32"):
        pipe = ImageTextToTextPipeline(model=model, processor=processor, dtype=dtype, max_new_tokens=5)
        return pipe, [
            {"images": tiny_models.picture(), "text": f"{IMAGE_TOKEN}This is a "},
            {"images": str(PICTURE), "text": f"{IMAGE_TOKEN}Here I see a "},
        ]

    def run_pipeline_test(self, pipe, examples):
        for example in examples:
            (output,) = pipe(example["images"], text=example["text"])
            assert output.keys() == {"input_text", "generated_text"}
            assert output["input_text"] == example["text"]
            assert output["generated_text"].startswith(example["text"])


class ModelTests(modeling.ModelTesterMixin, modeling.GenerationTesterMixin, pipelines.PipelineTesterMixin):
    """The model, configuration and pipeline mixins on one model of a kind."""

    kind: Kind
    _is_composite = True
    additional_model_inputs = ("pixel_values",)
    # Otherwise for the configuration files with a copyright line of 2023 or later alone.
    test_can_init_all_missing_weights_before_2023 = True

    def __init_subclass__(cls):
        super().__init_subclass__()
        if kind := cls.__dict__.get("kind"):
            cls.all_model_classes = (kind.base_class, kind.class_with_head)
            cls.pipeline_model_mapping = {"image-text-to-text": kind.class_with_head}

    def setUp(self):
        self.model_tester = ModelTester(self.kind)
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=self.kind.base_class.config_class,
            has_text_modality=False,
            common_properties=list(self.kind.common_properties),
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def run_task_tests(self, task, dtype="float32"):
        """As of the mixin, on a model of this kind in a local folder instead of one on the Hub."""
        kind = self.kind
        config = kind.make_config()
        processor = kind.make_processor(config)
        name = kind.class_with_head.__name__
        classes = (kind.processor_class, type(processor.tokenizer), type(processor.image_processor))
        with (
            tempfile.TemporaryDirectory() as directory,
            mock.patch.multiple(
                pipelines,
                TRANSFORMERS_TINY_MODEL_PATH=directory,
                tiny_model_summary={
                    name: {
                        "tokenizer_classes": [type(processor.tokenizer).__name__],
                        "processor_classes": [type(processor.image_processor).__name__],
                    }
                },
                PROCESSOR_MAPPING_NAMES={config.model_type: kind.processor_class.__name__},
                transformers_module=SimpleNamespace(**{cls.__name__: cls for cls in classes}),
                pipeline_test_mapping={task: {"test": f"{__name__}.PipelineTests"}},
            ),
        ):
            folder = Path(directory, config.model_type, name)
            model = kind.class_with_head(config)
            model.generation_config.update(
                bos_token_id=tiny_models.BOS, eos_token_id=tiny_models.EOS, pad_token_id=tiny_models.PAD
            )
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            super().run_task_tests(task, dtype)


# Two tests for each of the pipelines, of which these models have one.
for _name in dir(pipelines.PipelineTesterMixin):
    if _name.startswith("test_pipeline_") and "image_text_to_text" not in _name:
        setattr(ModelTests, _name, None)


class ProcessorTests(processing.ProcessorTesterMixin):
    """The processor mixin."""

    kind: Kind

    def __init_subclass__(cls):
        super().__init_subclass__()
        if kind := cls.__dict__.get("kind"):
            cls.processor_class = kind.processor_class

    @classmethod
    def _processor(cls):
        return cls.kind.make_processor(cls.kind.make_config())

    @classmethod
    def _setup_image_processor(cls):
        return cls._processor().image_processor

    @classmethod
    def _setup_tokenizer(cls):
        return cls._processor().tokenizer

    @classmethod
    def prepare_processor_dict(cls):
        processor = cls._processor()
        names = set(inspect.signature(cls.processor_class).parameters) - {*processor.get_attributes(), "kwargs"}
        return {name: getattr(processor, name) for name in names} | {"chat_template": CHAT_TEMPLATE}


# With a `generation` block, by which the mask of the assistant's tokens is found.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] }}{% endgeneration %}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def suite(name: str, base: type, kind: Kind, **flags: Any) -> type[unittest.TestCase]:
    """The test class `name` of one kind of model: `base` is [`ModelTests`], [`ProcessorTests`] or a subclass."""
    return type(name, (base, unittest.TestCase), {"kind": kind, **flags})
