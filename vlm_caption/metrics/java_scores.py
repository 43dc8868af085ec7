"""METEOR and SPICE, which exist in Java only: pycocoevalcap's, with a time limit and without processes left behind."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Timer

import numpy as np

from ..core.errors import ScorerMissingError

# The weights of exact, stem, synonym and paraphrase matches, and the parameters of METEOR 1.5 for English: Denkowski
# and Lavie, "Meteor Universal", WMT 2014; `-l en` of the program.
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def score_meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """METEOR of the corpus and of each image [N], fractions, and the counts it is made of [N, 23].

    Args:
        captions: tokens of each image's caption, separated by spaces.
        references: tokens of each image's references, at least one.
        timeout: seconds.

    Raises:
        ScorerMissingError: if there is no Java, or it fails, or takes longer than `timeout`.
    """
    _find_java("METEOR")
    from pycocoevalcap.meteor.meteor import Meteor

    class RecordingMeteor(Meteor):
        """Keeps the counts that pycocoevalcap passes on."""

        def _stat(self, hypothesis_str: str, reference_list: Sequence[str]) -> str:
            counts = super()._stat(hypothesis_str, reference_list)
            statistics.append([float(count) for count in counts.split()])
            return counts

    statistics: list[list[float]] = []
    scorer = RecordingMeteor()
    process = scorer.meteor_p
    expired = Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = Timer(timeout, expire)
    timer.start()
    try:
        corpus, per_image = scorer.compute_score(
            {index: list(texts) for index, texts in enumerate(references)},
            {index: [caption] for index, caption in enumerate(captions)},
        )
    except (OSError, ValueError) as error:  # it has died: nothing to write to, or an empty line instead of a number
        process.kill()
        _, complaint = process.communicate()
        reason = f"took longer than {timeout:g} s" if expired.is_set() else f"failed: {_last_line(complaint.decode())}"
        raise ScorerMissingError(f"METEOR's Java program {reason}") from error
    finally:
        timer.cancel()
        process.kill()
        process.communicate()  # closes the pipes and waits for its end
        if scorer.lock.locked():  # or pycocoevalcap's destructor would wait for ever
            scorer.lock.release()
    return corpus, np.array(per_image), _without_chunks_where_perfect(np.array(statistics))


def combine_meteor(totals: np.ndarray) -> np.ndarray:
    """METEOR [...] of summed counts [..., 23], as METEOR 1.5 reckons a corpus.

    The counts are lengths and function words of caption and reference; for each of four kinds of matches the content
    words matched in caption and reference and the function words matched in both; chunks; words matched in both.
    """
    lengths, functions = totals[..., 0:2], totals[..., 2:4]
    matches = totals[..., 4:20].reshape(*totals.shape[:-1], 4, 2, 2)  # kind, content or function, caption or reference
    by_class = np.einsum("k,...kcs->...cs", _MATCH_WEIGHTS, matches)
    weighted = _DELTA * by_class[..., 0, :] + (1 - _DELTA) * by_class[..., 1, :]
    whole = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    precision, recall = np.moveaxis(_divide(weighted, whole), -1, 0)
    f_mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = _divide(totals[..., 20], totals[..., 21:23].mean(axis=-1))
    return f_mean * (1 - _GAMMA * fragmentation**_BETA)


def _without_chunks_where_perfect(counts: np.ndarray) -> np.ndarray:
    """A caption that matches word for word, in one piece, counts as unfragmented, in a corpus as well."""
    perfect = np.all(counts[:, 21:23] == counts[:, 0:2], axis=1) & (counts[:, 20] == 1)
    counts[perfect, 20] = 0
    return counts


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def score_spice(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> tuple[float, np.ndarray]:
    """SPICE (Anderson et al. 2016) of the corpus and of each image [N], fractions; arguments as for `score_meteor`.

    pycocoevalcap's own class would fetch 500 MB of models and knows no time limit: here its program is run if the
    models are there.

    Raises:
        ScorerMissingError: if there is no Java or there are no models, or it fails, or takes longer than `timeout`.
    """
    java = _find_java("SPICE")
    from pycocoevalcap.spice import spice

    folder = Path(spice.__file__).parent
    if not (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
        raise ScorerMissingError(
            "SPICE needs the models of Stanford CoreNLP 3.6.0 (500 MB): fetch them with "
            "python -m pycocoevalcap.spice.get_stanford_models"
        )
    images = [
        {"image_id": index, "test": caption, "refs": list(texts)}
        for index, (caption, texts) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        source.write_text(json.dumps(images))
        command = [java, "-jar", "-Xmx8G", spice.SPICE_JAR, source, "-out", target, "-subset", "-silent"]
        try:
            subprocess.run(command, cwd=folder, timeout=timeout, check=True, capture_output=True, text=True)
            scores = json.loads(target.read_text())
        except subprocess.TimeoutExpired as error:
            raise ScorerMissingError(f"SPICE's Java program took longer than {timeout:g} s") from error
        except subprocess.CalledProcessError as error:
            raise ScorerMissingError(f"SPICE's Java program failed: {_last_line(error.stderr)}") from error
        except (OSError, ValueError) as error:
            raise ScorerMissingError(f"SPICE's Java program wrote no scores: {error}") from error
    by_image = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in scores}
    per_image = np.array([by_image[index] for index in range(len(images))])
    return float(per_image.mean()), per_image


def _find_java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise ScorerMissingError(f"{metric} needs java, and there is none on the PATH")
    return java


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
