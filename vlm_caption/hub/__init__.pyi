from .card import model_card, write_model_card, write_upload_card
from .facts import evaluation_facts, read_facts, record_evaluation, record_training
from .upload import upload_checkpoint

__all__ = [
    "evaluation_facts",
    "model_card",
    "read_facts",
    "record_evaluation",
    "record_training",
    "upload_checkpoint",
    "write_model_card",
    "write_upload_card",
]
