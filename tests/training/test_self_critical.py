"""Training on the CIDEr of captions that the model samples: what is learnt, what is not, and how it is resumed."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import EOS
from tiny_runs import tiny_settings, write_colours

from vlm_caption.captioning.sampling import Samples, sample_captions
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.model.loss import IGNORE_INDEX
from vlm_caption.training import self_critical
from vlm_caption.training import train as training
from vlm_caption.training.metrics_log import read_metrics
from vlm_caption.training.reward import CaptionReward
from vlm_caption.training.self_critical import SelfCriticalLoop, _divergence
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")

STAGES = [
    {"name": "align", "max_steps": 2},
    {"name": "cider", "max_steps": 4, "objective": "cider", "eval_captions": 4, "learning_rate": 1e-3},
]


def config_of(folder: Path, stages: list[dict], **changes) -> RunConfig:
    sections: dict = {"stages": stages, "generation": {"max_new_tokens": 6}}
    settings = tiny_settings(folder) | {"training.save_steps": 1, "training.warmup_steps": 0} | changes
    for name, value in settings.items():
        section, _, attribute = name.partition(".")
        sections.setdefault(section, {})[attribute] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections))
    return RunConfig.load(path)


@pytest.fixture
def run(tmp_path):
    write_colours(tmp_path)

    def run(output_dir: str = "run", stages: list[dict] = STAGES, **changes):
        return train(config_of(tmp_path, stages, **{"training.output_dir": str(tmp_path / output_dir)} | changes))

    return run


@pytest.fixture
def rewarding(monkeypatch):
    """Replaces the reward by a function of a caption's text."""

    def rewarding(rate) -> None:
        def reward(self, images, captions, ended):
            return torch.tensor([float(rate(text)) for text in captions]).view(len(images), -1)

        monkeypatch.setattr(CaptionReward, "__call__", reward)

    return rewarding


@pytest.fixture
def steps(monkeypatch):
    """The loop of a run, with what each of its steps sampled and how that changed."""
    seen: list[dict] = []

    class Loop(SelfCriticalLoop):
        def step(self, batches):
            self.batches = []
            super().step(batches)

        def sample(self, images, number):
            batch = super().sample(images, number)
            self.batches.append(batch)
            return batch

        def update(self, batches, targets):
            before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
            super().update(batches, targets)
            with torch.no_grad():
                after = [self._nll(self.model(**self._inputs(batch)).logits, batch) for batch in batches]
            changed = any(not p.equal(before[n]) for n, p in self.model.named_parameters() if n in before)
            seen.append({"batches": batches, "after": after, "changed": changed})

    monkeypatch.setattr(training, "SelfCriticalLoop", Loop)
    return seen


def test_a_rewarded_caption_becomes_more_probable_and_a_worse_one_less(run, steps, rewarding):
    rewarding(lambda text: "e" in text or "a" in text)
    run(stages=[STAGES[0], STAGES[1] | {"max_steps": 1, "learning_rate": 1e-4}])
    [step] = steps
    [batch], [after] = step["batches"], step["after"]
    weights = batch["advantages"]
    assert (weights > 0).any()
    assert (weights < 0).any()
    change = batch["sampled_nll"] - after  # of log-probabilities
    assert (change * weights).sum() > 0
    assert change[weights > 0].sum() > change[weights < 0].sum()


def test_equal_rewards_change_nothing(run, steps, rewarding):
    rewarding(lambda text: 0.1)
    run()
    assert len(steps) == 4
    assert not any(step["changed"] for step in steps)


def test_what_is_trained_is_what_was_sampled_with_an_end_where_one_was_drawn(run, steps, monkeypatch, tmp_path):
    drawn: list[Samples] = []

    def sample(*arguments, **options):
        drawn.append(sample_captions(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(self_critical, "sample_captions", sample)
    run(stages=[STAGES[0], STAGES[1] | {"max_steps": 2, "reinforce": {"max_completion_length": 5}}])
    assert len(steps) == len(drawn) == 2
    assert max(len(ids) for samples in drawn for ids in samples.token_ids) == 5
    for step, samples in zip(steps, drawn, strict=True):
        [batch] = step["batches"]
        trained = [int(token) for row in batch["labels"] for token in row if token != IGNORE_INDEX]
        assert trained == list(itertools.chain.from_iterable(samples.token_ids))
        assert [EOS in ids for ids in samples.token_ids] == samples.ended
        assert trained.count(EOS) == sum(samples.ended)
    logged = [entry["ended"] for entry in read_metrics(tmp_path / "run/stage-2-cider") if "ended" in entry]
    assert logged == pytest.approx([sum(samples.ended) / len(samples.ended) for samples in drawn])


def test_beams_are_trained_on_where_nothing_is_sampled(run, steps, rewarding):
    numbers = itertools.count()
    rewarding(lambda text: next(numbers) % 3)
    run(stages=[STAGES[0], STAGES[1] | {"max_steps": 1, "reinforce": {"do_sample": False, "num_generations": 3}}])
    [step] = steps
    [batch] = step["batches"]
    assert batch["amount"][:, 0].tolist() == [3] * len(batch["rows"])
    assert batch["advantages"].any()
    change = batch["sampled_nll"] - step["after"][0]
    assert (change * batch["advantages"]).sum() > 0


def test_a_killed_run_ends_with_the_same_weights(run, monkeypatch, tmp_path):
    reinforce = {"num_generations": 3, "num_iterations": 2, "epsilon": 0.2, "beta": 0.1, "bleu": 0.5}
    stages = [STAGES[0], STAGES[1] | {"reinforce": reinforce}]
    changes = {"training.accumulation": 2, "training.batch_size": 2, "training.eval_steps": 2}
    whole = run("whole", stages, **changes)
    for stop in (1, 4):

        class Loop(SelfCriticalLoop):
            def step(self, batches, stop=stop):
                if self.state.global_step + 1 == stop:
                    raise KeyboardInterrupt
                super().step(batches)

        with monkeypatch.context() as patch:
            patch.setattr(training, "SelfCriticalLoop", Loop)
            with pytest.raises(KeyboardInterrupt):
                run("run", stages, **changes)
    resumed = run("run", stages, **changes)
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name
    logs = [
        [
            {name: value for name, value in entry.items() if "second" not in name and "runtime" not in name}
            for entry in read_metrics(tmp_path / folder / "stage-2-cider")
        ]
        for folder in ("whole", "run")
    ]
    assert logs[0] == logs[1]
    measured = [entry for entry in logs[0] if "reward" in entry]
    assert len(measured) == 4
    for entry in measured:
        assert 0 <= entry["ended"] <= 1
        assert 1 / 3 <= entry["distinct"] <= 1
        assert 1 <= entry["sampled_tokens"] <= 6
    assert measured[0]["kl"] < measured[-1]["kl"]


def test_the_divergence_is_nought_where_nothing_changed_and_never_negative():
    nll = torch.linspace(0, 6, 50)
    assert not _divergence(nll, nll).any()
    assert (_divergence(nll, nll.flip(0)) >= 0).all()


def test_settings_that_do_not_fit_are_refused_in_one_sentence(run, tmp_path):
    first, second = STAGES
    with pytest.raises(
        ConfigError, match=r"cider trains a captioner that can already write captions: set model\.init"
    ):
        run(stages=[second])
    with pytest.raises(ConfigError, match=r"cider needs training\.eval_captions"):
        run(stages=[first, second | {"eval_captions": 0}])
    with pytest.raises(ConfigError, match=r"training\.reinforce is for training\.objective cider"):
        run(stages=[first], **{"training.reinforce": {"beta": 0.1}})
    with pytest.raises(ConfigError, match=r"data\.prompt asks questions"):
        run(**{"data.prompt": "<image>{question}"})
    for wrong, message in (
        ({"samples": 5}, "there is no setting 'samples'"),
        ({"num_generations": 1}, "num_generations must be at least 2, and 1 is not"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"do_sample": False, "temperature": 0.5}, "temperature is for samples"),
        ({"epsilon": 1.5}, "epsilon must be above 0 and below 1"),
        ({"beta": "much"}, "beta must be float, and 'much' is not"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(tmp_path, [first, second | {"reinforce": wrong}])
