"""Many scenes at once must be judged as one by one, for every meaning that captions have."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.judging import FALSE, TRUE, UNSETTLED, Scenes
from evaluation.scenes.meaning import (
    RELATIONS,
    WHERES,
    And,
    Count,
    Enumeration,
    Ground,
    Meaning,
    Not,
    Place,
    Relation,
    What,
    judge,
)
from evaluation.scenes.palette import COLOURS, SHAPES, TEXTURES, TONES
from evaluation.scenes.sampling import sample

SCENES = [sample(seed, SceneConfig(count=(1, 4), textures=("plain", "striped"))) for seed in range(60)]
SEEN = [What(shape=thing.shape, colour=thing.colour) for scene in SCENES[:20] for thing in scene.things]

whats = st.one_of(
    st.sampled_from(SEEN),
    st.builds(What, shape=st.none() | st.sampled_from(SHAPES), colour=st.none() | st.sampled_from(tuple(COLOURS))),
    st.builds(
        What,
        shape=st.sampled_from(SHAPES),
        texture=st.none() | st.sampled_from(TEXTURES),
        size=st.none() | st.sampled_from(("small", "large")),
        but_not=st.none() | st.builds(What, colour=st.sampled_from(tuple(COLOURS))),
    ),
)
affirmations = st.one_of(
    st.builds(Enumeration, st.lists(whats, min_size=1, max_size=3).map(tuple)),
    st.builds(Count, whats, st.integers(1, 4)),
    st.builds(Place, whats, st.sampled_from(WHERES)),
    st.builds(Relation, whats, st.sampled_from(RELATIONS), whats),
    st.builds(Ground, st.sampled_from(tuple(TONES))),
)
meanings = st.recursive(
    affirmations,
    lambda inner: st.builds(Not, inner) | st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    max_leaves=4,
)


@given(meanings)
@settings(max_examples=300, deadline=None)
def test_all_at_once_is_one_by_one(meaning: Meaning) -> None:
    code = {True: TRUE, False: FALSE, None: UNSETTLED}
    expected = [code[judge(meaning, scene)] for scene in SCENES]
    assert Scenes(SCENES).judge(meaning).tolist() == expected


def test_every_answer_occurs() -> None:
    asked = [Place(what, where) for what in SEEN for where in WHERES]
    found = np.concatenate([Scenes(SCENES).judge(meaning) for meaning in asked])
    assert set(np.unique(found)) == {TRUE, UNSETTLED, FALSE}


def test_no_scene_no_answer() -> None:
    assert Scenes([]).judge(Enumeration((What(shape=SHAPES[0]),))).shape == (0,)
