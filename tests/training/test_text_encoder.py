import numpy as np

from training.clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, draw_attributes
from training.text_encoder import FIELDS, draw_text, find_labels, make_text_encoder, tokenize
from training.tokenizer import MAX_LENGTH, make_tokenizer


def test_labels_follow_the_caption_not_the_clip():
    assert find_labels("a red star moves left behind a pillar on a gray background") == [
        list(COLOURS).index("red"),
        SHAPES.index("star"),
        MOTIONS.index("moves left"),
        list(BACKGROUNDS).index("gray"),
        0,
    ]
    assert find_labels("") == [len(values) for values in FIELDS.values()]
    assert find_labels("on a white background, a square")[0] == len(COLOURS)


def test_fillers_never_change_the_labels():
    rng = np.random.default_rng(0)
    for attributes in draw_attributes(rng, 200):
        caption = attributes.caption()
        assert find_labels(draw_text(rng, caption)) in (find_labels(caption), find_labels(""))


def test_prompts_are_padded_to_the_length_of_the_encoder():
    tokenizer = make_tokenizer()
    ids = tokenize(tokenizer, ["a red star", "word " * 100])
    assert ids.shape == (2, MAX_LENGTH)
    assert ids[0, -1] == ids[1, -1] == tokenizer.eos_token_id
    states = make_text_encoder(tokenizer)(ids).last_hidden_state
    assert states.shape == (2, MAX_LENGTH, 128)
