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

# METEOR's program fails, for all images, on texts of some ten thousand words.
METEOR_WORDS = 1000


def score_meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> tuple[float, np.ndarray]:
    """Returns METEOR 1.5 (Denkowski and Lavie 2014) of the corpus and of each image [N], fractions.

    Longer texts are cut to `METEOR_WORDS` words, so one absurd caption costs no score but its own.

    Args:
        captions: Tokens of each image's caption, separated by spaces.
        references: Tokens of each image's references, at least one.
        timeout: Seconds.

    Raises:
        ScorerMissingError: There is no Java, or it fails, or takes longer than `timeout`.
    """
    _find_java("METEOR")
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    process = scorer.meteor_p
    expired = Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = Timer(timeout, expire)
    timer.start()
    try:
        corpus, per_image = scorer.compute_score(
            {index: [_cut(text) for text in texts] for index, texts in enumerate(references)},
            {index: [_cut(caption)] for index, caption in enumerate(captions)},
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
    return corpus, np.array(per_image)


def _cut(text: str) -> str:
    return " ".join(text.split(" ")[:METEOR_WORDS])


def score_spice(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> tuple[float, np.ndarray]:
    """Returns SPICE (Anderson et al. 2016) of the corpus and of each image [N], fractions.

    For the arguments, see `score_meteor`. pycocoevalcap's own class would fetch 500 MB of models and has no time
    limit, so its program is run here, if the models are there.

    Raises:
        ScorerMissingError: There is no Java or there are no models, or it fails, or takes longer than `timeout`.
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
