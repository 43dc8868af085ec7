"""Pictures and text to the model's inputs: placeholders for the image tokens, the start token before them."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

from tokenizers import AddedToken
from transformers import AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData

from .configuration_captioner import CaptionerConfig


class CaptionerProcessor(ProcessorMixin):
    r"""
    Wraps an image processor and a tokenizer.

    `processor(images=image)` asks for a caption; `processor(images=image, text="A photo of")` for the rest of one.
    Text may say where the image goes with `<image>`; where it does not, the image goes in front.

    Where the package `vlm_caption` is imported, its `open_image` opens the images here too: paths, URLs, bytes and
    arrays, transparency on white, deep pixels scaled. The pipeline `image-text-to-text` opens paths and Pillow images
    itself before they come here (those of a chat excepted), in transformers' own way, which shows the colour behind
    transparency and makes 16-bit pictures white: give it what `vlm_caption.open_image` returns.

    Args:
        image_processor: any image processor.
        tokenizer: the language model's tokenizer, with `image_token` added (see [`CaptionerProcessor.from_config`]).
        image_seq_length (`int`): placeholders an image takes.
        start_token (`str`, *optional*): what stands at position 0 of every input: the BOS, or nothing.
        image_token (`str`): how a placeholder is written in text.
        chat_template (`str`, *optional*): as of `ProcessorMixin`.
    """

    # Set by the package; this file travels with checkpoints without it, and leaves images to transformers then.
    open_image: ClassVar[Callable[[Any], Any] | None] = None

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 1,
        start_token: str | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs,
    ):
        self.image_seq_length = image_seq_length
        self.start_token = start_token
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokenizer.padding_side = "left"  # a decoder continues each row at its right end
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As of `ProcessorMixin`, with the place of this code in checkpoints that carry it."""
        return super().to_dict() | {
            "auto_map": {"AutoProcessor": f"{__name__.rpartition('.')[2]}.{type(self).__name__}"}
        }

    @classmethod
    def from_config(cls, config: CaptionerConfig, image_processor, tokenizer, image_token: str = "<image>"):
        """The processor that belongs to a model of this config. The tokenizer is changed in place.

        Where the model has no vision tower that is a [`VectorProcessor`], and `image_processor` does not count.

        Raises:
            ValueError: if the tokenizer knows `image_token` as something else, or has grown past the placeholder.
        """
        if image_token not in tokenizer.get_vocab():
            # Language models pad their embedding tables; the placeholder must have an id behind the padding, and a
            # tokenizer hands out ids in order.
            gap = cast(int, config.image_token_id) - len(tokenizer)
            tokenizer.add_tokens([AddedToken(f"<unused_{i}>", special=True) for i in range(gap)], special_tokens=True)
            tokenizer.add_tokens([AddedToken(image_token, special=True)], special_tokens=True)
        if (image_token_id := tokenizer.convert_tokens_to_ids(image_token)) != config.image_token_id:
            raise ValueError(
                f"The tokenizer has {image_token} at id {image_token_id}, and the model's image placeholder is "
                f"{config.image_token_id}: set image_token_id of the model, or choose another image_token."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        start_token_id = config.start_token_id
        processor_class, parts = cls, {"image_processor": image_processor, "tokenizer": tokenizer}
        if config.feature_size is not None:
            processor_class, parts = VectorProcessor, {"tokenizer": tokenizer}
        return processor_class(
            **parts,
            image_seq_length=config.image_seq_length,
            start_token=None if start_token_id is None else tokenizer.convert_ids_to_tokens(start_token_id),
            image_token=image_token,
        )

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path, backend: str = "pil", **kwargs
    ):
        """As of `ProcessorMixin`; `backend` is the image processor's, as of `AutoImageProcessor`.

        Pillow by default, whether torchvision is installed or not: the two differ in their pixels. Of a model without
        a vision tower, it is a [`VectorProcessor`].
        """
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings and "image_processor" not in settings:
            return VectorProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        # The base class would hand `backend` to the tokenizer too, which has its own meaning of the word.
        processor.image_processor = AutoImageProcessor.from_pretrained(
            pretrained_model_name_or_path, backend=backend, **kwargs
        )
        return processor

    def __call__(self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs):
        """
        Args:
            images: a picture or a list of them, as `vlm_caption.open_image` takes them, or a 4-D array or tensor;
                without the package, as of the image processor. Given `do_rescale=False` or `input_data_format`,
                arrays and tensors go to the image processor as they are.
            text: a prompt for each row. Without `<image>` in it, each row gets one image in front; a single prompt
                is then repeated for all images.
            **kwargs: as of `ProcessorMixin.__call__` (`return_tensors="pt"`, `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [B, T], and `pixel_values`, float [I, 3, H, W].
        """
        if images is not None:
            images = self._open_images(images, kwargs | kwargs.get("images_kwargs", {}))
        rows = self._place_images(images, text)
        kwargs.setdefault("add_special_tokens", False)  # `get_text_with_replacements` writes the start token out
        return super().__call__(images=images, text=rows, **kwargs)

    def _open_images(self, images, settings: dict[str, Any]):
        if self.open_image is None:
            return self.image_processor.fetch_images(images)
        is_array = hasattr(images, "ndim")
        if is_array and (settings.get("do_rescale") is False or settings.get("input_data_format") is not None):
            return images
        if isinstance(images, (list, tuple)) or (is_array and images.ndim > 3):
            return [self._open_images(image, settings) for image in images]
        return self.open_image(images)

    def get_text_with_replacements(self, text, *args, **kwargs):
        """As of `ProcessorMixin`, with the start token in front of each row that has none."""
        replaced: Any = super().get_text_with_replacements(text, *args, **kwargs)
        rows, replacements = replaced
        start = self.start_token or ""
        for index, row in enumerate(rows):
            if row.startswith(start):
                continue
            rows[index] = start + row
            for replacement in replacements[index]:
                replacement["new_span"] = tuple(place + len(start) for place in replacement["new_span"])
            # In this form the base class moves the spans of a chat template's turns along.
            inserted = {"span": (0, 0), "new_span": (0, len(start)), "text": "", "replacement": start}
            replacements[index].insert(0, {"type": "text", **inserted})
        return rows, replacements

    def _place_images(self, images, text: str | list[str] | None) -> list[str] | None:
        """The rows of text, each image's `<image>` among them."""
        num_images = 0 if images is None else len(cast(list, make_flat_list_of_images(images)))
        if text is None and num_images == 0:
            return None
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        if placed := sum(row.count(self.image_token) for row in rows):
            if placed != num_images:
                raise ValueError(
                    f"The number of {self.image_token} tokens in the prompts should be the same as the number of "
                    f"images, and there are {placed} for {num_images} images."
                )
            return rows
        if num_images == 0:
            return rows
        if len(rows) == 1:
            rows *= num_images
        if len(rows) != num_images:
            raise ValueError(
                f"{len(rows)} prompts for {num_images} images: give one prompt for all, one for each, or say with "
                f"{self.image_token} where the images go."
            )
        return [self.image_token + row for row in rows]

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        # vLLM asks for this: placeholders and encoder inputs of images of these (height, width).
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * count, num_image_patches=[1] * count)

    def image_prefix(self, prompt: str = "") -> str:
        """What stands before a caption, written out: the start token, an image's placeholders, the prompt."""
        return (self.start_token or "") + self.image_token * self.image_seq_length + prompt

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """One `<image>` in the text becomes as many placeholders as the image has tokens."""
        return self.image_token * self.image_seq_length


class VectorProcessor(CaptionerProcessor):
    r"""
    The processor of a model without a vision tower: it wraps a tokenizer alone.

    `processor(image_features=vectors, return_tensors="pt")` gives what `generate` takes.

    Args:
        tokenizer, image_seq_length, start_token, image_token, chat_template: as of [`CaptionerProcessor`]; an image
            is here an input that comes as vectors.
    """

    image_processor = None

    def __init__(
        self,
        tokenizer: Any = None,
        image_seq_length: int = 1,
        start_token: str | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs,
    ):
        self.image_seq_length = image_seq_length
        self.start_token = start_token
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokenizer.padding_side = "left"
        ProcessorMixin.__init__(self, tokenizer, chat_template=chat_template, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As of `CaptionerProcessor`, under its name: the Auto classes know one processor of a kind of model."""
        name = CaptionerProcessor.__name__
        auto_map = {"AutoProcessor": f"{__name__.rpartition('.')[2]}.{name}"}
        return super().to_dict() | {"processor_class": name, "auto_map": auto_map}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # ty: ignore[incompatible-method-override]
        """As of `ProcessorMixin`."""
        return super(CaptionerProcessor, cls).from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs):
        """
        Args:
            images: none: there is no vision tower.
            text: a prompt for all inputs, or one for each; it stands behind the vectors.
            **kwargs: `image_features`, the vectors, float [I, N, D]; and as of the tokenizer (`return_tensors="pt"`,
                `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [I, T], and `image_features` as they are. Without vectors, the
            text's tokens alone.

        Raises:
            ValueError: for pictures, or where prompts and vectors differ in number.
        """
        if images is not None:
            raise ValueError(
                "This captioner has no vision tower, and takes no pictures: pass vectors, as image_features."
            )
        vectors = kwargs.pop("image_features", None)
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        data = {}
        if vectors is not None:
            if len(rows) == 1:
                rows *= len(vectors)
            if len(rows) != len(vectors):
                raise ValueError(f"{len(rows)} prompts for {len(vectors)} inputs: give one for all, or one for each.")
            rows, data = [self.image_prefix(row) for row in rows], {"image_features": vectors}
        tensor_type = kwargs.pop("return_tensors", None)
        encoded = self.tokenizer(rows, add_special_tokens=False, **kwargs)
        return BatchFeature({**encoded, **data}, tensor_type=tensor_type)


__all__ = ["CaptionerProcessor", "VectorProcessor"]
