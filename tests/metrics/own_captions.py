"""A few captions of our own with references, and what pycocoevalcap 1.2 with its Java tokenizer makes of them."""

CAPTIONS = [
    "A dog runs on the beach.",
    "Two people ride bikes",
    "a man's cat isn't on the couch , it sleeps",
    "A train (red) at the station .",
    "A child holds the letter B.",
    "A bowl of fruit on a table on a table on a table",
]
REFERENCES = [
    ["A dog is running on the beach.", "A brown dog runs on sand.", "The dog runs along the beach"],
    ["Two people are riding bikes down a road .", "Two people ride their bikes ."],
    ["A black cat sleeps on a couch .", "The man's cat is asleep.", "A cat isn't awake"],
    ["A red train is waiting at the U.S. station.", "A train stands at a platform"],
    ["A child with the letter B.", "A girl shows a letter to the camera"],
    ["A bowl of fruit stands on a table.", "Some fruit in a bowl"],
]

EXPECTED = {
    "bleu_1": 0.791666666650,
    "bleu_2": 0.629152869592,
    "bleu_3": 0.479074756567,
    "bleu_4": 0.292603590456,
    "rouge_l": 0.713061233752,
    "cider": 2.242487610129,
}
METEOR = 0.386342996640
