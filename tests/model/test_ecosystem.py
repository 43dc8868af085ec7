"""Tools that know transformers models and nothing of this one: generation's options, PEFT, Trainer, torch.compile."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import EOS, VOCAB_SIZE, picture, pixels, tiny_model, tiny_processor
from transformers import (
    AutoModelForImageTextToText,
    CompileConfig,
    DataCollatorWithPadding,
    GenerationConfig,
    TextIteratorStreamer,
    TextStreamer,
    Trainer,
    TrainingArguments,
)

from vlm_caption import CaptionerForConditionalGeneration

GREEDY = {"max_new_tokens": 6, "do_sample": False}
LANGUAGES = ["gpt2", "llama"]


@pytest.fixture(params=LANGUAGES)
def model(request) -> CaptionerForConditionalGeneration:
    return tiny_model(language=request.param)


# generate


def test_streamers_get_the_caption_token_by_token(model, capsys):
    processor = tiny_processor(model.config)
    inputs = processor(images=picture(), return_tensors="pt")
    ids = model.generate(**inputs, **GREEDY)
    caption = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.generate(**inputs, **GREEDY, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip()
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
    model.generate(**inputs, **GREEDY, streamer=streamer)
    assert "".join(streamer) == caption


def test_scores_are_those_of_the_tokens_taken(model):
    outputs = model.generate(
        pixel_values=pixels(),
        **GREEDY,
        min_new_tokens=6,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert [score.shape for score in outputs.scores] == [(2, VOCAB_SIZE)] * 6
    new_ids = outputs.sequences[:, -6:]
    taken = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    expected = torch.stack(outputs.scores, dim=1).log_softmax(-1).gather(-1, new_ids[..., None])[..., 0]
    torch.testing.assert_close(taken, expected)


def test_beams_give_as_many_captions_as_asked_best_first(model):
    outputs = model.generate(
        pixel_values=pixels(),
        max_new_tokens=6,
        num_beams=4,
        num_return_sequences=3,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert outputs.sequences.shape[0] == 6
    scores = outputs.sequences_scores.view(2, 3)
    assert (scores.diff(dim=1) <= 0).all()
    assert len({tuple(row) for row in outputs.sequences[:3].tolist()}) == 3


def test_an_assistant_that_cannot_see_is_refused(model):
    with pytest.raises(ValueError, match=r"(LMHeadModel|ForCausalLM) cannot see the image"):
        model.generate(pixel_values=pixels(1), **GREEDY, assistant_model=model.core.language_model)


def test_drafts_from_a_prompt_that_is_an_image_are_refused(model):
    with pytest.raises(ValueError, match="Prompt lookup drafts from the prompt, and an image is no text"):
        model.generate(pixel_values=pixels(1), **GREEDY, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="Early layers draft from token ids"):
        model.generate(pixel_values=pixels(1), **GREEDY, assistant_early_exit=1)
    model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.raises(ValueError, match="Prompt lookup drafts from the prompt, and an image is no text"):
        model.generate(pixel_values=pixels(1), **GREEDY)


def test_penalties_of_repetition_see_what_was_written_and_not_the_placeholders(model):
    plain = model.generate(pixel_values=pixels(), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    for how in ({"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}):
        found = model.generate(pixel_values=pixels(), max_new_tokens=12, min_new_tokens=12, do_sample=False, **how)
        assert found.shape == plain.shape
        new_ids = found[:, model.core.image_prompt(1).shape[1] :].tolist()
        if "no_repeat_ngram_size" in how:
            assert all(len(set(row)) == len(row) for row in new_ids)


def test_a_string_stops_generation(model):
    processor = tiny_processor(model.config)
    inputs = processor(images=picture(), return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    whole = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, start:]
    stop = processor.tokenizer.convert_ids_to_tokens(whole.tolist())[2]
    found = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, stop_strings=[stop], tokenizer=processor.tokenizer
    )[0, start:]
    assert len(found) <= 3
    assert found.tolist() == whole.tolist()[: len(found)]


def test_logits_processors_and_stopping_criteria_of_ones_own_see_the_new_tokens(model):
    seen = []

    def forbid(input_ids, scores):
        seen.append(input_ids.shape[1])
        return scores.index_fill(1, torch.tensor([VOCAB_SIZE - 1]), torch.inf)

    found = model.generate(
        pixel_values=pixels(),
        max_new_tokens=6,
        logits_processor=[forbid],
        stopping_criteria=[lambda ids, _: torch.full(ids.shape[:1], ids.shape[1] == 3)],
    )
    assert (found[:, -3:] == VOCAB_SIZE - 1).all()
    assert seen == [0, 1, 2]


def test_a_callers_settings_are_completed_by_the_models_own(model):
    model.generation_config.update(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    found = model.generate(pixel_values=pixels(), generation_config=GenerationConfig(num_beams=2))
    expected = model.generate(pixel_values=pixels(), num_beams=2)
    assert torch.equal(found, expected)
    assert found.shape[1] == model.core.image_prompt(1).shape[1] + 5


def test_a_compiled_static_cache_has_no_graph_break_and_changes_no_token(model):
    expected = model.generate(pixel_values=pixels(), **GREEDY)
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True  # transformers compiles on accelerators alone
    found = model.generate(pixel_values=pixels(), **GREEDY, cache_implementation="static", compile_config=compiled)
    assert torch.equal(found, expected)


def test_the_forward_pass_of_image_and_text_compiles_into_one_graph(model):
    processor = tiny_processor(model.config)
    inputs = processor(images=[picture(0), picture(1)], text="A", return_tensors="pt")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


# PEFT


def lora(model) -> LoraConfig:
    names = ["c_attn"] if model.config.text_config.model_type == "gpt2" else ["q_proj", "v_proj"]
    return LoraConfig(
        r=4,
        target_modules=rf".*language_model.*\.({'|'.join(names)})",
        task_type="CAUSAL_LM",
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )


def test_lora_trains_saves_loads_and_merges(model, tmp_path):
    original = copy.deepcopy(model)
    tuned = get_peft_model(model, lora(model)).train()
    ids = tuned.core.image_prompt(2)
    ids = torch.cat([ids, torch.tensor([[5, 6, EOS], [7, 8, EOS]])], dim=1)
    labels = ids.clone()
    labels[:, :-3] = -100
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = tuned(input_ids=ids, pixel_values=pixels(), labels=labels).loss
        loss.backward()
        unreached = [name for name, p in tuned.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert unreached == []
    tuned.eval().save_pretrained(tmp_path)
    expected = tuned(input_ids=ids, pixel_values=pixels()).logits
    assert not torch.allclose(expected, original(input_ids=ids, pixel_values=pixels()).logits, atol=1e-3)
    loaded = PeftModel.from_pretrained(original, tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids, pixel_values=pixels()).logits, expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is CaptionerForConditionalGeneration
    torch.testing.assert_close(merged(input_ids=ids, pixel_values=pixels()).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.generate(pixel_values=pixels(), **GREEDY).shape[0] == 2


# Trainer, as somebody would write it who never saw our scripts


def test_a_plain_trainer_learns_saves_and_goes_on(model, tmp_path):
    processor = tiny_processor(model.config)

    def encode(index: int) -> dict:
        row = processor(images=picture(index), text=f"caption {index}", return_tensors="pt")
        return {
            "input_ids": row["input_ids"][0],
            "attention_mask": row["attention_mask"][0],
            "pixel_values": row["pixel_values"][0],
        }

    class WithLabels(DataCollatorWithPadding):
        def __call__(self, features):
            images = torch.stack([feature["pixel_values"] for feature in features])
            texts = [{key: feature[key] for key in ("input_ids", "attention_mask")} for feature in features]
            batch = super().__call__(texts)
            return {**batch, "pixel_values": images, "labels": batch["input_ids"].clone()}

    def trainer(model: torch.nn.Module, steps: int) -> Trainer:
        return Trainer(
            model=model,
            args=TrainingArguments(
                str(tmp_path),
                max_steps=steps,
                per_device_train_batch_size=2,
                learning_rate=1e-2,
                save_steps=4,
                gradient_checkpointing=True,
                gradient_accumulation_steps=2,
                logging_steps=1,
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=[encode(index) for index in range(4)],
            eval_dataset=[encode(index) for index in range(4)],
            data_collator=WithLabels(processor.tokenizer),
            processing_class=processor,
        )

    first = trainer(model, 8)
    before = first.evaluate()["eval_loss"]
    towers = copy.deepcopy(model.core.language_model.state_dict())
    first.train()
    assert first.evaluate()["eval_loss"] < before
    assert all(torch.equal(weight, towers[name]) for name, weight in model.core.language_model.state_dict().items())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-8")
    second = trainer(loaded, 12)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert second.state.global_step == 12
