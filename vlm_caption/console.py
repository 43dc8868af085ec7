"""placeholder"""
import logging, sys, contextlib
from tqdm import tqdm
def progress(iterable, total=None, desc=""):
    return tqdm(iterable, total=total, desc=desc, mininterval=5)
def setup_logging():
    h=logging.StreamHandler(sys.stderr); h.setFormatter(logging.Formatter("%(message)s"))
    l=logging.getLogger("vlm_caption"); l.addHandler(h); l.setLevel(logging.INFO)
