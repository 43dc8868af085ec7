from .attribution import heat_map
from .beside import Descriptions, Sidecars, Wording
from .caption import Caption
from .caption_file import CaptionFile
from .captioner import Captioner
from .checkpoints import DEFAULT_CHECKPOINT, find_checkpoint, find_device
from .confidence import Confidence
from .consensus import DocumentFrequencies
from .datastore import Datastore
from .generation import Generation, GenerationSettings, generate, score
from .inputs import find_pictures
from .job import CaptionJob
from .nll import caption_nll, sum_nll
from .review import Review
from .tables import read_table, write_table
from .writers import ErrorLog, OutputFile, StandardOutput, StandardTable, Writer

__all__ = [
    "DEFAULT_CHECKPOINT",
    "Caption",
    "CaptionFile",
    "CaptionJob",
    "Captioner",
    "Confidence",
    "Datastore",
    "Descriptions",
    "DocumentFrequencies",
    "ErrorLog",
    "Generation",
    "GenerationSettings",
    "OutputFile",
    "Review",
    "Sidecars",
    "StandardOutput",
    "StandardTable",
    "Wording",
    "Writer",
    "caption_nll",
    "find_checkpoint",
    "find_device",
    "find_pictures",
    "generate",
    "heat_map",
    "read_table",
    "score",
    "sum_nll",
    "write_table",
]
