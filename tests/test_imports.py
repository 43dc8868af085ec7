"""What the package loads of others."""

import subprocess
import sys


def test_captioning_does_not_wait_for_trainer_nor_peft():
    code = "import sys, vlm_caption; print([name for name in ('transformers.trainer', 'peft') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
